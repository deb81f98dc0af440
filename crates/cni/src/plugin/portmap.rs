//! `portmap`: ports of the host that lead into the pod (cni.md 2.3), by either backend of the reference
//! plugin, in its tables and chains.
//!
//! DEL closes what either backend opened, by the attachment's mark or the container's chain, and needs
//! neither the port mappings nor a result. Without port mappings ADD touches nothing (B-12).

mod conditions;
mod conntrack;
mod iptables;
mod nftables;

use std::io::Write;
use std::net::IpAddr;

use ipnet::IpNet;
use kernel::rtnl::Rtnl;
use kernel::sysctl;
use model::Family;
use model::cni::portmap::{Backend, HostIp, PortMap};
use model::cni::{CniResult, Error};

use crate::pod::internal;
use crate::record::{self, Record};
use crate::skel::Call;
use crate::undo::Undo;

const NAME: &str = "portmap";
/// Protocol number.
const UDP: u8 = 17;
/// A host port is taken and the configuration wants it exclusively.
const TAKEN: u32 = 100;

/// Opens the ports; hands the result on.
///
/// # Errors
/// The configuration, no result handed on, the kernel's or the tools' refusal; no rule stays then.
pub fn add(call: &Call) -> Result<CniResult, Error> {
    let (conf, result) = read(call)?;
    if conf.mappings.is_empty() {
        return Ok(result);
    }
    let pods = pod_addresses(call, &result);
    let mut undo = Undo::default();
    undo.push(|| del(call));
    let opened = || {
        if conf.mappings.iter().any(|m| m.protocol == UDP) {
            // DEL ends the connections of these addresses.
            record::complete(&Record { addresses: pods.clone(), ..record::new(NAME, call) }, call)?;
        }
        let backend = backend(call, &conf);
        pods.iter().try_for_each(|pod| open(call, &conf, backend, *pod))
    };
    undo.finish(opened())?;
    flush_udp(&conf, &pods);
    Ok(result)
}

/// Closes the ports.
///
/// # Errors
/// The kernel's or the tools' refusal.
pub fn del(call: &Call) -> Result<(), Error> {
    for family in Family::BOTH {
        nftables::close(call, family)?;
        iptables::close(call, family)?;
    }
    if let Some(record) = record::read(NAME, call) {
        let pods: Vec<IpAddr> = record.addresses.iter().map(IpNet::addr).collect();
        if let Err(error) = conntrack::forget_pods(&pods) {
            warn(&format!("connection tracking: {error}"));
        }
    }
    record::remove(NAME, call)
}

/// Fails unless the rules are there.
///
/// # Errors
/// As said.
pub fn check(call: &Call) -> Result<(), Error> {
    let (conf, result) = read(call)?;
    pod_addresses(call, &result).into_iter().try_for_each(|pod| match backend(call, &conf) {
        Backend::Nftables => nftables::check(call, &conf, pod),
        Backend::Iptables => iptables::check(call, &conf, pod),
    })
}

/// Whether the configuration is one we serve.
///
/// # Errors
/// It is not.
pub fn status(call: &Call) -> Result<(), Error> {
    parse(call).map(|_| ())
}

/// Closes the ports of the network's attachments that are not valid.
///
/// # Errors
/// The kernel's or the tools' refusal.
pub fn gc(call: &Call) -> Result<(), Error> {
    let Some(valid) = call.valid_attachments()? else { return Ok(()) };
    for family in Family::BOTH {
        nftables::keep_only(call, family, &valid)?;
        iptables::keep_only(call, family, &valid)?;
    }
    record::stale(NAME, call, &valid).iter().try_for_each(|record| record::remove_record(call, record))
}

fn parse(call: &Call) -> Result<PortMap, Error> {
    let failed = |e: String| Error::config(format!("failed to parse config: {e}"));
    let conf = PortMap::parse(&call.conf()).map_err(failed)?;
    // Conditions tell the backend, so there is nothing to detect. What nft makes of them is seen on ADD.
    if conf.backend == Some(Backend::Nftables) {
        for family in Family::BOTH {
            conditions::parse(family, conf.conditions(family))?;
        }
    }
    Ok(conf)
}

/// What the configuration asks for; else nftables where the kernel has it (decision 0120).
fn backend(call: &Call, conf: &PortMap) -> Backend {
    let detect = || if call.nft.is_usable() { Backend::Nftables } else { Backend::Iptables };
    conf.backend.unwrap_or_else(detect)
}

fn read(call: &Call) -> Result<(PortMap, CniResult), Error> {
    let conf = parse(call)?;
    let result = call.prev_result.clone();
    let result = result.ok_or_else(|| Error::config("must be called as chained plugin"))?;
    Ok((conf, result))
}

/// The first address of each family that is the pod's.
fn pod_addresses(call: &Call, result: &CniResult) -> Vec<IpNet> {
    let is_pods = |index: Option<i64>| {
        let interface = index.and_then(|index| result.interfaces.get(usize::try_from(index).ok()?));
        interface.is_none_or(|i| i.name == call.env.ifname && !i.sandbox.is_empty())
    };
    let ips = result.ips.iter().filter(|ip| is_pods(ip.interface)).map(|ip| ip.address);
    let ips: Vec<IpNet> = ips.collect();
    let first = |family| ips.iter().copied().find(|ip| Family::of_net(*ip) == family);
    Family::BOTH.into_iter().filter_map(first).collect()
}

/// The ports of one family.
fn open(call: &Call, conf: &PortMap, backend: Backend, pod: IpNet) -> Result<(), Error> {
    let family = Family::of_net(pod);
    if !conf.mappings.iter().any(|m| m.applies(family)) {
        return Ok(());
    }
    if family == Family::V4 && conf.snat {
        route_localnet(pod.addr())?;
    }
    match backend {
        Backend::Nftables => nftables::open(call, conf, pod),
        Backend::Iptables => iptables::open(call, conf, pod),
    }
}

/// Two pods may ask for one host port; the first goes on winning. That has to be told (B-15).
fn tell_taken(conf: &PortMap, port: u16, owner: &str) -> Result<(), Error> {
    let msg = format!("host port {port} is taken by another pod ({owner})");
    if conf.exclusive {
        return Err(Error::new(TAKEN, msg).details("exclusiveHostPorts is set"));
    }
    warn(&msg);
    Ok(())
}

/// Packets from 127.0.0.1 may leave through the device the pod is behind.
fn route_localnet(pod: IpAddr) -> Result<(), Error> {
    let failed = |cause: String| Error::internal(format!("unable to enable route_localnet: {cause}"));
    let mut rtnl = Rtnl::open().map_err(internal)?;
    let route = rtnl.lookup(&[pod]).map_err(|e| failed(e.to_string()))?.into_iter().next().flatten();
    let route = route.ok_or_else(|| failed(format!("no route to {pod}")))?;
    let link = rtnl.link_by_index(route.dev).map_err(|e| failed(e.to_string()))?;
    let link = link.ok_or_else(|| failed(format!("the device of the route to {pod} vanished")))?;
    let path = format!("net/ipv4/conf/{}/route_localnet", link.link.name);
    sysctl::write(&path, "1").map(|_| ()).map_err(|e| failed(e.to_string()))
}

fn flush_udp(conf: &PortMap, pods: &[IpNet]) {
    let ports: Vec<conntrack::LocalPort> = pods
        .iter()
        .flat_map(|pod| {
            let family = Family::of_net(*pod);
            let udp = conf.mappings.iter().filter(move |m| m.protocol == UDP && m.applies(family));
            udp.map(move |m| conntrack::LocalPort {
                family,
                port: m.host_port,
                address: match m.host_ip {
                    Some(HostIp::One(ip)) => Some(ip),
                    _ => None,
                },
            })
        })
        .collect();
    if let Err(error) = conntrack::forget_ports(&ports) {
        warn(&format!("connection tracking: {error}"));
    }
}

fn warn(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "portmap: {text}");
}
