//! CHECK: what the kernel holds in the pod against the result of ADD (cni.md 2.0.8).

use std::net::IpAddr;

use ipnet::IpNet;
use kernel::link::LinkInfo;
use kernel::rtnl::{RouteFilter, RouteInfo, Rtnl};
use model::Family;
use model::cni::{CniResult, Error, Interface};

use crate::pod::{self, internal};
use crate::skel::Call;

/// The result CHECK compares with. `missing` is the plugin's way to say that there is none.
///
/// # Errors
/// The runtime gave none.
pub fn told<'a>(call: &'a Call, missing: &str) -> Result<&'a CniResult, Error> {
    call.prev_result.as_ref().ok_or_else(|| Error::config(missing))
}

/// The pod's interface: told of, in the right namespace, there, with the hardware address told.
///
/// # Errors
/// The first difference.
pub fn pod_interface(inside: &mut Rtnl, call: &Call, result: &CniResult) -> Result<LinkInfo, Error> {
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
    same_mac(&link, told, "Interface")?;
    Ok(link)
}

/// The hardware address told is the one there.
///
/// # Errors
/// It is another one.
pub fn same_mac(link: &LinkInfo, told: &Interface, what: &str) -> Result<(), Error> {
    let have = link.link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    if told.mac.is_empty() || told.mac.eq_ignore_ascii_case(&have) {
        return Ok(());
    }
    let (name, mac) = (link.link.name, &told.mac);
    Err(Error::internal(format!(
        "{what} {name} Mac doesn't match: {mac} in the result, {have} in the kernel"
    )))
}

/// The addresses told for an interface are on it, each with a route to its subnet.
///
/// # Errors
/// The first that is missing.
pub fn addresses(inside: &mut Rtnl, link: &LinkInfo, result: &CniResult) -> Result<(), Error> {
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
        if link.link.up && routes.iter().all(|route| route.dst != net) {
            return Err(Error::internal(format!("Failed to find Gateway {net} for interface {name}")));
        }
    }
    Ok(())
}

/// The routes told are there.
///
/// # Errors
/// The first that is missing.
pub fn routes(inside: &mut Rtnl, result: &CniResult) -> Result<(), Error> {
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
