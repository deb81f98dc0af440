//! Which devices a packet between two ends must pass on this host, by the kernel's tables. Asks the kernel, changes
//! nothing.

use std::net::IpAddr;
use std::os::fd::AsFd as _;

use kernel::link::LinkInfo;
use kernel::netlink::{Protocol, Socket};
use kernel::{Error, Netns, Rtnl, xfrm};
use plan::state::{Direction, LinkKind, PolicyAction};

use super::Hop;
use super::filter::Ports;
use crate::trace::{Model, model as tables};

/// One end of the pair.
pub struct End {
    /// What it was called.
    pub name: String,
    /// Its addresses; for the host itself all it has.
    pub addresses: Vec<IpAddr>,
    /// Its namespace, if it is a pod of this host.
    pub pod: Option<Netns>,
    /// It is this host.
    pub host: bool,
}

/// Positions of the namespaces in a [`Hop`].
pub const HOST: usize = 0;
/// The source's.
pub const SOURCE: usize = 1;
/// The destination's.
pub const DESTINATION: usize = 2;

/// The hops from one end to the other.
#[derive(Debug, Default)]
pub struct Way {
    /// In order.
    pub hops: Vec<Hop>,
    /// What cannot be seen on them: one sentence.
    pub opaque: Option<String>,
    /// The last one hands packets to a process.
    pub handed_on: bool,
}

/// The hops from one end to the other.
///
/// # Errors
/// The kernel cannot be asked.
pub fn between(from: (&End, usize), to: (&End, usize), address: IpAddr) -> Result<Way, Error> {
    let mut rtnl = Rtnl::open()?;
    let links = rtnl.links()?;
    let mut hops: Vec<Hop> = Vec::new();
    let mut routed = true;
    if let Some(pod) = &from.0.pod {
        let mut inside = Rtnl::open_in(pod.as_fd())?;
        let mut first = Model::default();
        tables::follow(&mut inside, "pod", address, &mut first)?;
        if let Some(step) = first.steps.first() {
            hops.push(Hop { place: from.1, device: step.device.clone() });
            routed = first.gateway.is_some();
            if let Some(port) = far_end(&inside.links()?, &step.device, &links) {
                hops.push(host(port));
                match port.master.and_then(|master| links.iter().find(|link| link.index == master)) {
                    Some(bridge) if routed => hops.push(host(bridge)),
                    Some(_) => {}
                    None => routed = true,
                }
            }
        }
    }
    let (mut opaque, mut handed_on) = (None, false);
    if routed {
        let mut rest = Model::default();
        tables::follow(&mut rtnl, "host", address, &mut rest)?;
        for step in rest.steps {
            let kind = links.iter().find(|link| link.link.name.to_string() == step.device);
            hops.push(Hop { place: HOST, device: step.device });
            handed_on = kind.is_some_and(|link| matches!(link.link.kind, LinkKind::Tun(_)));
            if kind.is_some_and(is_wireguard) {
                let device = hops.last().map_or("", |hop| &hop.device);
                opaque = Some(format!(
                    "behind {device} packets are encrypted (WireGuard): the interface to other hosts is no hop"
                ));
            }
        }
        // What leaves by ESP is seen in the clear nowhere behind the last device before the uplink.
        let source = from.0.addresses.iter().copied().find(|a| a.is_ipv4() == address.is_ipv4());
        if to.0.pod.is_none() && source.is_some_and(|source| is_esp(source, address)) {
            let uplink = hops.pop().map_or(String::new(), |hop| hop.device);
            opaque =
                Some(format!("packets leave {uplink} encrypted (IPsec, ESP): it is no hop on the way out"));
        }
    }
    if let Some(pod) = &to.0.pod {
        let mut inside = Rtnl::open_in(pod.as_fd())?;
        let owner = inside.addresses(None)?.into_iter().find(|a| a.net.addr() == address);
        let device = owner.and_then(|a| inside.link_by_index(a.index).ok().flatten());
        if let Some(device) = device {
            let name = device.link.name.to_string();
            if let Some(port) = far_end(std::slice::from_ref(&device), &name, &links) {
                hops.push(host(port));
            }
            hops.push(Hop { place: to.1, device: name });
        }
    }
    hops.dedup();
    Ok(Way { hops, opaque, handed_on })
}

/// In the kernel, or in user space under the backend's name.
fn is_wireguard(link: &LinkInfo) -> bool {
    match link.link.kind {
        LinkKind::Wireguard(_) => true,
        LinkKind::Tun(_) => link.link.name.to_string().starts_with("flannel-wg"),
        _ => false,
    }
}

/// Whether an IPsec policy wants packets between these addresses inside ESP as they leave.
fn is_esp(from: IpAddr, to: IpAddr) -> bool {
    if !xfrm::is_there() {
        return false;
    }
    let policies = Socket::open(Protocol::Xfrm).map(|mut socket| socket.dump(&xfrm::dump(), xfrm::decode));
    let Ok(Ok(policies)) = policies else { return false };
    policies.iter().any(|policy| {
        let key = policy.key;
        key.dir == Direction::Out
            && matches!(policy.action, PolicyAction::Esp { .. })
            && key.src.contains(&from)
            && key.dst.contains(&to)
    })
}

fn host(link: &LinkInfo) -> Hop {
    Hop { place: HOST, device: link.link.name.to_string() }
}

/// The host's end of a pod's veth.
fn far_end<'a>(inside: &[LinkInfo], device: &str, host: &'a [LinkInfo]) -> Option<&'a LinkInfo> {
    let end = inside.iter().find(|link| link.link.name.to_string() == device)?;
    let index = end.lower.filter(|_| end.lower_netns.is_some())?;
    host.iter().find(|link| link.index == index && link.lower == Some(end.index))
}

/// The ports that mean a tunnel on this host: those of its VXLAN devices, and flannel's for the backend udp if a TUN
/// device is there.
///
/// # Errors
/// The kernel cannot be asked.
pub fn ports(udp: Option<u16>) -> Result<Ports, Error> {
    /// Of flannel's backend udp.
    const DEFAULT: u16 = 8285;
    let mut ports = Ports::default();
    for link in Rtnl::open()?.links()? {
        match link.link.kind {
            LinkKind::Vxlan(vxlan) if !ports.vxlan.contains(&vxlan.port) => ports.vxlan.push(vxlan.port),
            ref kind if kind.name() == "tun" => ports.udp = vec![DEFAULT],
            _ => {}
        }
    }
    if let Some(port) = udp {
        ports.udp = vec![port];
    }
    Ok(ports)
}
