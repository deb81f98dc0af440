//! `bridge`: a veth pair between the pod and a bridge of the host (cni.md 2.1).
//!
//! Takes the network's document; gives the bridge, both ends, addresses and routes. What the address
//! manager can refuse is asked first, then the host's side is made, then the pod's, so that nothing has to
//! be taken back in the common failures.

mod check;
mod gateway;
mod host;
mod source;
mod spoof;

use kernel::Netns;
use kernel::link::LinkChange;
use kernel::rtnl::Rtnl;
use model::Family;
use model::cni::bridge::BridgeConf;
use model::cni::{CniResult, Error, Interface, RouteConfig};

use crate::forwarding;
use crate::pod::{self, Dad, Setup, internal};
use crate::record::{self, Record, Rules};
use crate::skel::{Call, Verb};
use crate::undo::Undo;
use crate::{device, ipam, masquerade, pair};

pub use check::check;

const NAME: &str = "bridge";
/// Place of the pod's interface in the result.
const POD: i64 = 2;

/// Makes the attachment.
///
/// # Errors
/// One sentence; everything made so far has been taken back.
pub fn add(call: &Call) -> Result<CniResult, Error> {
    let conf = parse(call)?;
    let name = pod::interface(&call.env.ifname)?;
    let netns = pod::open(&call.env.netns)?;
    let peer = device::random_name()?;
    let known = record::read(NAME, call);
    if known.as_ref().is_some_and(|record| !record.is_complete) {
        // A killed ADD of ours; what it left is cleared away (B-36).
        del(call)?;
    }
    let (mut pod, taken) = pod::look(&netns, name)?;
    let mut host = Rtnl::open().map_err(internal)?;
    if taken {
        return Err(device::taken(name, peer).details("DEL the attachment first"));
    }
    if known.is_some() {
        // Its namespace ended without DEL.
        masquerade::remove(call)?;
    }
    let mut undo = Undo::default();
    let mut record = Record { host_interface: peer.to_string(), ..record::new(NAME, call) };
    record::begin(&record, call)?;
    undo.push(|| record::remove(NAME, call));
    let made = make(call, &conf, &netns, &mut pod, &mut host, &mut record, &mut undo);
    undo.finish(made)
}

/// The steps with side effects, each preceded by its inverse.
fn make<'a>(
    call: &'a Call,
    conf: &BridgeConf,
    netns: &Netns,
    pod: &mut Rtnl,
    host: &mut Rtnl,
    record: &mut Record,
    undo: &mut Undo<'a>,
) -> Result<CniResult, Error> {
    let name = pod::interface(&call.env.ifname)?;
    let peer = pod::interface(&record.host_interface)?;
    // A pair without an address manager is all layer 2 needs; one that needs the device comes later.
    let late = ipam::needs_device(call, &conf.ipam)?;
    let mut result = CniResult::default();
    if !conf.ipam.is_empty() && !late {
        result = ipam::ask(call, &conf.ipam, undo)?;
        complete(conf, &mut result);
    }
    let bridge = host::ensure_bridge(host, conf, &call.env.state_dir)?;
    let mut vlan_gateway = gateway::set_up(host, conf, &bridge, &result, &call.env.state_dir)?;
    undo.push(move || device::delete_on_host(peer));
    host::make_veth(host, conf, &bridge, netns, name, peer)?;
    let inside = pod.link_by_name(name).map_err(internal)?;
    let missing = || Error::internal(format!("failed to lookup {:?}", name.as_str()));
    let inside = inside.ok_or_else(missing)?;
    // The pod's end names the other one: one look-up is saved, each of which waits for the kernel's lock.
    let port = inside.lower.ok_or_else(missing)?;
    host::set_port(host, conf, port)?;
    if conf.mac_spoof_check {
        undo.push(|| spoof::remove(&call.nft, &call.env.container_id, &call.env.ifname));
        spoof::add(call, peer, &inside)?;
    }
    if late {
        result = ipam::ask(call, &conf.ipam, undo)?;
        complete(conf, &mut result);
        vlan_gateway = gateway::set_up(host, conf, &bridge, &result, &call.env.state_dir)?;
    }
    if conf.ip_spoof_check {
        undo.push(|| source::remove(&call.nft, &call.env.container_id, &call.env.ifname));
        source::add(call, peer, &inside, &result)?;
    }
    result.interfaces = (0..POD).map(|_| Interface::default()).collect();
    result.interfaces.push(device::interface(call, &inside, &call.env.netns));
    if conf.ipam.is_empty() {
        if !conf.disable_container_interface {
            let up = LinkChange { up: Some(true), ..LinkChange::default() };
            pod.set_link(inside.index, &up).map_err(internal)?;
        }
    } else {
        let setup =
            Setup { dad: if conf.enable_dad { Dad::Wait } else { Dad::Off }, ..Setup::of(name, &result) };
        pod::configure(netns, pod, inside.index, &setup)?;
        record.addresses = result.ips.iter().map(|ip| ip.address).collect();
        if conf.ip_masq {
            undo.push(|| masquerade::remove(call));
            record.masquerade = masquerade::add_first(call, &record.addresses)?;
        }
    }
    if !conf.ip_masq || conf.ipam.is_empty() {
        record.masquerade = Some(Rules::None);
    }
    let port = pod::wait_up(None, host, port, !conf.disable_container_interface)?;
    host::keep_mtu(host, conf, &bridge)?;
    result.interfaces[0] = device::interface(call, &bridge, "");
    result.interfaces[1] = device::interface(call, &port, "");
    result.interfaces.extend(vlan_gateway.map(|link| device::interface(call, &link, "")));
    if let Some(dns) = &conf.dns {
        result.dns = dns.clone();
    }
    record::complete(record, call)?;
    Ok(result)
}

/// Takes the attachment away.
///
/// # Errors
/// What could not be removed; what is missing is no error.
pub fn del(call: &Call) -> Result<(), Error> {
    let deleted = pair::del(NAME, call);
    deleted.and(uncheck(call, &call.env.container_id, &call.env.ifname))
}

/// Whether ADD could be served: the address manager says; and whether pods are cut off (code 51).
///
/// # Errors
/// The address manager's own, or a configuration we refuse.
pub fn status(call: &Call) -> Result<(), Error> {
    let conf = parse(call)?;
    if conf.is_gateway {
        forwarding::status(NAME, call)?;
    }
    ipam::forward(call)
}

/// Removes rules and records of attachments that are not valid, and has the address manager do the same.
///
/// # Errors
/// The first failure, after everything was tried.
pub fn gc(call: &Call) -> Result<(), Error> {
    let Some(valid) = call.valid_attachments()? else { return pair::gc(NAME, call) };
    let mut outcome = Ok(());
    if CHECKS.iter().any(|key| may_check(call, key)) {
        for record in record::stale(NAME, call, &valid) {
            outcome = outcome.and(uncheck(call, &record.container_id, &record.ifname));
        }
    }
    outcome.and(pair::gc(NAME, call)).and(gateway::sweep(call))
}

/// Keys of what looks at a pod's frames.
const CHECKS: [&str; 2] = ["macspoofchk", "ipspoofchk"];

/// Removes the rules of the checks the document speaks of.
fn uncheck(call: &Call, container_id: &str, ifname: &str) -> Result<(), Error> {
    let [frames, sources] = CHECKS.map(|key| may_check(call, key));
    let of_frames = if frames { spoof::remove(&call.nft, container_id, ifname) } else { Ok(()) };
    of_frames.and(if sources { source::remove(&call.nft, container_id, ifname) } else { Ok(()) })
}

/// Whether the document speaks of a check; one that cannot be read may have.
fn may_check(call: &Call, key: &str) -> bool {
    !matches!(call.conf().boolean(key), Ok(None | Some(false)))
}

fn parse(call: &Call) -> Result<BridgeConf, Error> {
    let failed = |e: String| Error::config(format!("failed to load netconf: {e}"));
    let conf = BridgeConf::parse(&call.conf(), &call.env.args).map_err(failed)?;
    masquerade::check_backend(&conf.ip_masq_backend)?;
    if conf.ipam.is_empty() && matches!(call.verb, Verb::Add) && call.needs_addresses() {
        let details = "a bridge without ipam needs cniVersion 0.3.0 or newer";
        return Err(Error::config("cannot convert: no valid IP addresses").details(details));
    }
    Ok(conf)
}

/// Gateways and default routes (cni.md 2.1, step 5). A default route without gateway gets ours instead of
/// a twin (B-22).
fn complete(conf: &BridgeConf, result: &mut CniResult) {
    let CniResult { ips, routes, .. } = result;
    for ip in ips {
        ip.interface = Some(POD);
        if conf.is_gateway && ip.gateway.is_none() {
            ip.gateway = Some(model::cni::range::offset(ip.address.network(), 1));
        }
        if !conf.is_default_gateway {
            continue;
        }
        let family = Family::of_net(ip.address);
        let is_default = |r: &&mut RouteConfig| r.dst.prefix_len() == 0 && Family::of_net(r.dst) == family;
        let mut defaults = routes.iter_mut().filter(is_default).peekable();
        if defaults.peek().is_none() {
            let any = if ip.address.addr().is_ipv4() { "0.0.0.0/0" } else { "::/0" };
            routes.extend(any.parse().map(|any| RouteConfig::new(any, ip.gateway)));
        } else {
            defaults.filter(|r| r.gw.is_none()).for_each(|r| r.gw = ip.gateway);
        }
    }
}

#[cfg(test)]
mod tests;
