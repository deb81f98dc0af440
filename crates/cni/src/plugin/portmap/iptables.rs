//! Host ports in iptables.

use std::cell::RefCell;

use ipnet::IpNet;
use model::Family;
use model::cni::Error;
use model::cni::iptables::HostPorts;
use model::cni::portmap::PortMap;

use super::tell_taken;
use crate::iptables::Table;
use crate::names;
use crate::skel::Call;

/// Chains of an attachment: of the container, and of old releases.
fn chains(call: &Call) -> [String; 2] {
    ["DN-", "SN-"].map(|prefix| names::chain(prefix, &call.network, &call.env.container_id))
}

fn ports<'a>(call: &'a Call, chains: &'a [String; 2]) -> HostPorts<'a> {
    let [chain, old_chain] = chains;
    HostPorts { chain, old_chain, network: &call.network, container_id: &call.env.container_id }
}

fn nat(call: &Call, family: Family) -> Table<'_> {
    Table::of(call, family, "nat")
}

/// Opens the ports of one family.
///
/// # Errors
/// A chain to mark in that is not there, the tools' refusal.
pub fn open(call: &Call, conf: &PortMap, pod: IpNet) -> Result<(), Error> {
    let (family, chains) = (Family::of_net(pod), chains(call));
    let ports = ports(call, &chains);
    let taken = RefCell::new(None);
    let plan = |saved: &_| {
        let external = &conf.external_set_mark_chain;
        if conf.snat && !external.is_empty() && !model::cni::iptables::Saved::has(saved, external) {
            let msg = format!("externalSetMarkChain: chain {external} is not in iptables table nat");
            return Err(
                Error::internal(msg).details("its owner has to make it first; kube-proxy does at its start")
            );
        }
        let found = ports.taken(saved, conf, family);
        if let Some((port, owner)) = found.as_ref().filter(|_| conf.exclusive) {
            tell_taken(conf, *port, owner)?;
        }
        taken.replace(found);
        Ok(ports.open(saved, conf, pod))
    };
    nat(call, family).update(&plan).map_err(|e| e.during("open the pod's host ports"))?;
    taken.into_inner().map_or(Ok(()), |(port, owner)| tell_taken(conf, port, &owner))
}

/// Closes the ports of one family, if there are any.
///
/// # Errors
/// The tools' refusal.
pub fn close(call: &Call, family: Family) -> Result<(), Error> {
    let chains = chains(call);
    let table = nat(call, family);
    if !table.may_hold(&[&chains[0], &chains[1]]) {
        return Ok(());
    }
    let done = table.update(&|saved| Ok(ports(call, &chains).close(saved)));
    done.map_err(|e| e.during("close the pod's host ports"))
}

/// Fails unless the rules of one family are there.
///
/// # Errors
/// As said.
pub fn check(call: &Call, conf: &PortMap, pod: IpNet) -> Result<(), Error> {
    let (family, chains) = (Family::of_net(pod), chains(call));
    let saved = nat(call, family).read()?;
    let number = if family == Family::V4 { 4 } else { 6 };
    match ports(call, &chains).missing(&saved, conf, pod) {
        Some(what) => Err(Error::internal(format!("could not check ipv{number} dnat: {what}"))),
        None => Ok(()),
    }
}

/// Closes the ports of the network's attachments that are not valid.
///
/// # Errors
/// The tools' refusal.
pub fn keep_only(call: &Call, family: Family, valid: &[(String, String)]) -> Result<(), Error> {
    let table = nat(call, family);
    if !table.may_hold(&["CNI-HOSTPORT-DNAT"]) {
        return Ok(());
    }
    let is_valid = |id: &str| valid.iter().any(|(known, _)| known == id);
    table.update(&|saved| Ok(HostPorts::keep_only(saved, &call.network, &is_valid)))
}
