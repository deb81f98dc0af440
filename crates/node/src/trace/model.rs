//! What the kernel's tables say of a packet: route, neighbour, forwarding entry, outer route; device by device.

use std::net::IpAddr;
use std::os::fd::AsFd as _;

use kernel::link::LinkInfo;
use kernel::rtnl::Lookup;
use kernel::{Error, Netns, Rtnl};
use plan::state::LinkKind;

use super::{Model, Step};

/// Tunnels in tunnels end here.
const DEEPEST: usize = 4;

/// From this host, or a pod on it, to a destination; for the host that is `real`, what rules make of it.
///
/// # Errors
/// The kernel cannot be asked.
pub fn whole(pod: Option<&Netns>, to: IpAddr, real: IpAddr) -> Result<Model, String> {
    let ask = |error: Error| error.to_string();
    let (mut model, mut rtnl) = (Model::default(), Rtnl::open().map_err(ask)?);
    if let Some(pod) = pod {
        let mut inside = Rtnl::open_in(pod.as_fd()).map_err(ask)?;
        let mut first = Model::default();
        follow(&mut inside, "pod", to, &mut first).map_err(ask)?;
        model.steps.append(&mut first.steps);
        (model.broken, model.mtu) = (first.broken, first.mtu);
        if let Some(gateway) = first.gateway {
            enter(&mut rtnl, gateway, &mut model).map_err(ask)?;
        } else if model.broken.is_none() && !first.local {
            // A neighbour of the pod: the bridge passes the packet on, and no route of the host is asked.
            if let Some(step) = bridged(&mut inside, &mut rtnl, to).map_err(ask)? {
                model.steps.push(step);
                (model.far, model.local) = (Some(to), true);
                return Ok(model);
            }
        }
    }
    if model.broken.is_none() {
        follow(&mut rtnl, "host", real, &mut model).map_err(ask)?;
    }
    Ok(model)
}

/// Follows the tables of a namespace to a destination.
///
/// # Errors
/// The kernel cannot be asked.
pub fn follow(rtnl: &mut Rtnl, place: &'static str, to: IpAddr, model: &mut Model) -> Result<(), Error> {
    let links = rtnl.links()?;
    let mut next = to;
    for _ in 0..DEEPEST {
        model.far = Some(next);
        let Some(lookup) = rtnl.lookup(&[next])?.first().copied().flatten() else {
            model.broken = Some(format!("`ip route get {next}` finds no route"));
            return Ok(());
        };
        if lookup.kind == libc_local() {
            model.local = true;
            return Ok(());
        }
        let Some(link) = links.iter().find(|link| link.index == lookup.dev) else {
            model.broken = Some(format!("the route to {next} leads to device {}, which is gone", lookup.dev));
            return Ok(());
        };
        let Some(outer) = pass(rtnl, place, &links, link, next, lookup, model)? else { return Ok(()) };
        next = outer;
    }
    model.broken = Some("tunnels lead into each other".to_owned());
    Ok(())
}

/// `RTN_LOCAL`, linux/rtnetlink.h
fn libc_local() -> u8 {
    2
}

/// Adds a device, and gives where its outer packets go if it is a tunnel.
fn pass(
    rtnl: &mut Rtnl,
    place: &'static str,
    links: &[LinkInfo],
    link: &LinkInfo,
    to: IpAddr,
    lookup: Lookup,
    model: &mut Model,
) -> Result<Option<IpAddr>, Error> {
    let device = link.link.name.to_string();
    let gateway = lookup.gateway.unwrap_or(to);
    model.gateway = model.gateway.or(lookup.gateway);
    let mtu = lookup.mtu.or(link.link.mtu);
    model.mtu = match (model.mtu, mtu) {
        // The tunnel's own MTU has its overhead taken off.
        (Some(known), _) => Some(known),
        (None, mtu) => mtu,
    };
    let via = lookup.gateway.map_or(String::new(), |gateway| format!(" via {gateway}"));
    let mut step = Step { place, device: device.clone(), by: format!("{to}{via} dev {device}") };
    if !link.link.up {
        model.broken = Some(format!("{device} is down"));
    }
    let mac = rtnl.neighbours(Some(link.index))?.into_iter().find(|n| n.dst == gateway).and_then(|n| n.mac);
    let outer = match &link.link.kind {
        LinkKind::Vxlan(vxlan) => {
            model.port = Some(vxlan.port);
            let Some(mac) = mac else {
                model.broken = Some(format!(
                    "`ip neigh show {gateway} dev {device}` is empty: the peer is not programmed"
                ));
                model.steps.push(step);
                return Ok(None);
            };
            let entry = rtnl.fdb(Some(link.index))?.into_iter().find(|e| e.mac == mac);
            let Some(far) = entry.and_then(|entry| entry.dst) else {
                model.broken =
                    Some(format!("`bridge fdb show dev {device}` has no {mac}: the peer is not programmed"));
                model.steps.push(step);
                return Ok(None);
            };
            step.by.push_str(&format!(", neigh {mac}, fdb {far}, VNI {} UDP {}", vxlan.vni, vxlan.port));
            Some(far)
        }
        LinkKind::Ipip(ipip) => {
            let far = ipip.remote.unwrap_or(gateway);
            step.by.push_str(&format!(", in IPv4 to {far}"));
            Some(far)
        }
        LinkKind::Bridge(_) => {
            let port = mac.and_then(|mac| port_of(rtnl, links, link.index, mac));
            if let Some(port) = &port {
                step.by.push_str(&format!(", bridge port {port}"));
            }
            model.local = true;
            None
        }
        _ => {
            if let Some(mac) = mac {
                step.by.push_str(&format!(", neigh {mac}"));
            }
            None
        }
    };
    model.steps.push(step);
    if model.broken.is_some() {
        return Ok(None);
    }
    Ok(outer)
}

/// The device a pod's packet enters the host by: that of its gateway's address.
///
/// # Errors
/// The kernel cannot be asked.
pub fn enter(rtnl: &mut Rtnl, gateway: IpAddr, model: &mut Model) -> Result<(), Error> {
    let address = rtnl.addresses(None)?.into_iter().find(|address| address.net.addr() == gateway);
    let Some(link) = address.and_then(|a| rtnl.link_by_index(a.index).ok().flatten()) else { return Ok(()) };
    let device = link.link.name.to_string();
    let by = format!("the pod's gateway {gateway} is on {device}");
    model.steps.push(Step { place: "host", device, by });
    Ok(())
}

/// The port of this host's bridge behind which a neighbour of a pod is.
fn bridged(inside: &mut Rtnl, host: &mut Rtnl, to: IpAddr) -> Result<Option<Step>, Error> {
    let neighbour = inside.neighbours(None)?.into_iter().find(|neighbour| neighbour.dst == to);
    let Some(mac) = neighbour.and_then(|neighbour| neighbour.mac) else { return Ok(None) };
    let Some(entry) = host.fdb(None)?.into_iter().find(|entry| entry.mac == mac) else { return Ok(None) };
    let link = host.link_by_index(entry.index)?.filter(|link| link.master.is_some());
    let step = |link: LinkInfo| {
        let device = link.link.name.to_string();
        Step { place: "host", by: format!("fdb {mac} dev {device}"), device }
    };
    Ok(link.map(step))
}

/// The port of a bridge behind which a hardware address is.
fn port_of(rtnl: &mut Rtnl, links: &[LinkInfo], bridge: u32, mac: model::Mac) -> Option<String> {
    let ports = links.iter().filter(|link| link.master == Some(bridge));
    for port in ports {
        if rtnl.fdb(Some(port.index)).ok()?.iter().any(|entry| entry.mac == mac) {
            return Some(port.link.name.to_string());
        }
    }
    None
}
