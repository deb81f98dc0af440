//! CHECK of the bridge plugin: the kernel against the result (cni.md 2.0.8, 2.1).

use std::net::IpAddr;

use ipnet::IpNet;
use kernel::link::LinkInfo;
use kernel::rtnl::{RouteFilter, RouteInfo, Rtnl};
use model::cni::bridge::BridgeConf;
use model::cni::{CniResult, Error, Interface};
use model::{Family, IfName};
use plan::state::LinkKind;

use crate::pod::{self, internal};
use crate::skel::Call;
use crate::{delegate, masquerade};

/// `IFF_PROMISC`
const PROMISCUOUS: u32 = 0x100;

/// Compares the attachment with the result of its ADD.
///
/// # Errors
/// The first difference.
pub fn check(call: &Call) -> Result<(), Error> {
    let conf = super::parse(call)?;
    if let Some(kind) = delegate::ipam_type(call) {
        delegate::forward(&kind, call)?;
    }
    let result = call.prev_result.as_ref().ok_or_else(|| Error::config("Required prevResult missing"))?;
    let netns = pod::open(&call.env.netns)?;
    let mut host = Rtnl::open().map_err(internal)?;
    let mut inside = pod::rtnl(&netns)?;
    let bridge = check_bridge(&mut host, &conf, result)?;
    let link = check_pod(&mut inside, call, result)?;
    check_port(&mut host, result, &bridge, &link)?;
    check_addresses(&mut inside, &link, result)?;
    check_routes(&mut inside, result)?;
    if conf.ip_masq && !conf.ipam.is_empty() {
        masquerade::check(call)?;
    }
    Ok(())
}

fn check_bridge(host: &mut Rtnl, conf: &BridgeConf, result: &CniResult) -> Result<LinkInfo, Error> {
    let name = conf.bridge.as_str();
    let told = result.interfaces.iter().find(|i| i.name == name && i.sandbox.is_empty());
    let missing = || Error::internal(format!("CNI created bridge {name} in host namespace was not found"));
    let told = told.ok_or_else(missing)?;
    let link = host.link_by_name(conf.bridge).map_err(internal)?.ok_or_else(missing)?;
    if !matches!(link.link.kind, LinkKind::Bridge(_)) {
        return Err(Error::internal(format!("Bridge interface {name} is not a bridge")));
    }
    same_mac(&link, told, "Bridge interface")?;
    // Somebody who listens on the bridge makes it promiscuous as well (B-25).
    if conf.promiscuous && link.flags & PROMISCUOUS == 0 {
        let msg = format!(
            "Bridge interface {name} configured Promisc Mode true doesn't match current state: false"
        );
        return Err(Error::internal(msg));
    }
    Ok(link)
}

fn check_pod(inside: &mut Rtnl, call: &Call, result: &CniResult) -> Result<LinkInfo, Error> {
    let (ifname, netns) = (&call.env.ifname, &call.env.netns);
    let missing = || Error::internal(format!("CNI created interface in container {ifname} not found"));
    let told = result.interfaces.iter().find(|i| i.name == *ifname && !i.sandbox.is_empty());
    let told = told.ok_or_else(missing)?;
    if told.sandbox != *netns {
        let (want, have) = (&told.sandbox, netns);
        let msg = format!("Sandbox in prevResult {want} doesn't match configured netns: {have}");
        return Err(Error::internal(msg));
    }
    let link = inside.link_by_name(pod::interface(ifname)?).map_err(internal)?.ok_or_else(missing)?;
    if !matches!(link.link.kind, LinkKind::Veth(_)) {
        return Err(Error::internal(format!("Container interface {ifname} not of type veth/p2p")));
    }
    same_mac(&link, told, "Interface")?;
    Ok(link)
}

/// One host end of the result is the other end of the pod's interface and a port of the bridge.
fn check_port(host: &mut Rtnl, result: &CniResult, bridge: &LinkInfo, pod: &LinkInfo) -> Result<(), Error> {
    for told in result.interfaces.iter().filter(|i| i.sandbox.is_empty()) {
        let Ok(name) = IfName::new(&told.name) else { continue };
        let Some(link) = host.link_by_name(name).map_err(internal)? else { continue };
        let ends = pod.lower == Some(link.index) && link.lower == Some(pod.index);
        if ends && link.master == Some(bridge.index) {
            return same_mac(&link, told, "Interface");
        }
    }
    let bridge = bridge.link.name;
    Err(Error::internal(format!("CNI veth created for bridge {bridge} was not found")))
}

fn same_mac(link: &LinkInfo, told: &Interface, what: &str) -> Result<(), Error> {
    let have = link.link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    if told.mac.is_empty() || told.mac.eq_ignore_ascii_case(&have) {
        return Ok(());
    }
    let (name, mac) = (link.link.name, &told.mac);
    Err(Error::internal(format!(
        "{what} {name} Mac doesn't match: {mac} in the result, {have} in the kernel"
    )))
}

fn check_addresses(inside: &mut Rtnl, link: &LinkInfo, result: &CniResult) -> Result<(), Error> {
    let have = inside.addresses(Some(link.index)).map_err(internal)?;
    let routes =
        inside.routes(RouteFilter { dev: Some(link.index), ..RouteFilter::default() }).map_err(internal)?;
    let name = link.link.name;
    for ip in &result.ips {
        // Another interface's address is that one's affair.
        let other = |index: i64| {
            let interface = usize::try_from(index).ok().and_then(|index| result.interfaces.get(index));
            interface.is_some_and(|i| i.name != name.as_str())
        };
        if ip.interface.is_some_and(other) {
            continue;
        }
        if have.iter().all(|a| a.net != ip.address) {
            return Err(Error::internal(format!("Failed to match addr {} on interface {name}", ip.address)));
        }
        let net = ip.address.trunc();
        if routes.iter().all(|route| route.dst != net) {
            return Err(Error::internal(format!("Failed to find Gateway {net} for interface {name}")));
        }
    }
    Ok(())
}

fn check_routes(inside: &mut Rtnl, result: &CniResult) -> Result<(), Error> {
    let routes = inside.routes(RouteFilter::default()).map_err(internal)?;
    for told in &result.routes {
        let is = |route: &RouteInfo| {
            let dst = told.dst.trunc();
            let default = dst.prefix_len() == 0;
            route.dst == dst && (default || told.gw.is_none_or(|gw| route.gateway == Some(gw)))
        };
        if !routes.iter().any(is) {
            let gw = told.gw.as_ref().map(|gw: &IpAddr| format!(" via {gw}")).unwrap_or_default();
            let dst: IpNet = told.dst;
            let family = Family::of_net(dst);
            let msg = format!("Expected Route {{{dst}{gw}}} not found in routing table ({family})");
            return Err(Error::internal(msg));
        }
    }
    Ok(())
}
