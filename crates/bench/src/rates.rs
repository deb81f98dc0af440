//! Things done per second, beside the least the kernel takes for them: pods attached and detached, peers programmed.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use kernel::link::{End, LinkChange, NewKind, NewLink};
use kernel::rtnl::{AddrInfo, FdbInfo, NeighInfo, Put, RouteInfo};
use kernel::{Kernel, Netns, Rtnl};
use lab::Lab;
use model::{Family, IfName, IpNet, Mac};
use plan::Step;
use plan::state::{Addr, Fdb, Link, LinkKind, Neigh, Nexthop, Object, Route, Via, Vxlan};

use crate::Result;

/// Pods of one turn.
const PODS: u32 = 10;
/// Peers of one turn.
const PEERS: u32 = 1_000;

/// Names of the devices that are made.
const ETH0: &str = "eth0";
const BRIDGE: &str = "bench0";
const TUNNEL: &str = "flannel.1";

fn sentence(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Pods attached and detached in a second, and how often the bare requests of an attachment can be made.
///
/// # Errors
/// One sentence.
pub fn pods(lab: &Lab, family: Family) -> Result<[f64; 3]> {
    let (mut add, mut del) = (0.0, 0.0);
    for number in 0..PODS {
        let name = format!("bench-{number}");
        add += lab.pod_add(1, Some(&name)).map_err(sentence)?.add_ms;
        del += lab.pod_del(&name).map_err(sentence)?;
    }
    let bare = bare(family)?.as_secs_f64();
    let rate = |seconds: f64| f64::from(PODS) / seconds;
    Ok([rate(add / 1e3), rate(del / 1e3), rate(bare)])
}

/// What any plugin asks of the kernel for a pod on a bridge: the pair, its address, its routes; in one namespace after
/// the other, with sockets of its own.
fn bare(family: Family) -> Result<Duration> {
    let host = Netns::create().map_err(sentence)?;
    let mut rtnl = Rtnl::open_in(host.as_fd()).map_err(sentence)?;
    let kind = NewKind::Bridge { vlan_filtering: false };
    rtnl.create_link(&NewLink { up: true, ..NewLink::new(IfName::fixed(BRIDGE), kind) }).map_err(sentence)?;
    let bridge =
        rtnl.link_by_name(IfName::fixed(BRIDGE)).map_err(sentence)?.ok_or("the bridge has gone")?.index;
    let mut took = Duration::ZERO;
    for number in 0..PODS {
        let pod = Netns::create().map_err(sentence)?;
        let start = Instant::now();
        attach(&host, &pod, bridge, number, family).map_err(sentence)?;
        took += start.elapsed();
    }
    Ok(took)
}

fn attach(host: &Netns, pod: &Netns, bridge: u32, number: u32, family: Family) -> Result<(), kernel::Error> {
    let mut outside = Rtnl::open_in(host.as_fd())?;
    let far = End { netns: Some(pod.as_fd()), ..End::new(IfName::fixed(ETH0)) };
    let near = IfName::new(&format!("bench{}", number + 1)).unwrap_or(IfName::fixed(ETH0));
    let new = NewLink { up: true, master: Some(bridge), ..NewLink::new(near, NewKind::Veth(far)) };
    outside.create_link(&new)?;
    let mut inside = Rtnl::open_in(pod.as_fd())?;
    let Some(eth0) = inside.link_by_name(IfName::fixed(ETH0))?.map(|link| link.index) else { return Ok(()) };
    inside.set_link(eth0, &LinkChange { up: Some(true), ..LinkChange::default() })?;
    let (first, length) = match family {
        Family::V4 => (0x0af4_0101, 24),
        Family::V6 => (0xfd00_0010_0244_0001 << 64 | 1, 64),
    };
    let net = IpNet::new_assert(family.from_bits(first + 1 + u128::from(number)), length);
    let flags = if family == Family::V6 { AddrInfo::NODAD } else { 0 };
    inside.add_address(&AddrInfo { flags, ..AddrInfo::new(eth0, net) }, Put::Exclusive)?;
    let everything = IpNet::new_assert(family.from_bits(0), 0);
    let gateway = Some(family.from_bits(first));
    inside.add_route(&RouteInfo { gateway, dev: Some(eth0), ..RouteInfo::to(everything) }, Put::Exclusive)
}

/// Peers programmed in a second as the agent does it, and with one acknowledged request after the other.
///
/// # Errors
/// One sentence.
pub fn peers(family: Family) -> Result<[f64; 2]> {
    let batched = batched(family).map_err(sentence)?.as_secs_f64();
    let single = single(family).map_err(sentence)?.as_secs_f64();
    Ok([f64::from(PEERS) / batched, f64::from(PEERS) / single])
}

/// Subnet, hardware address and outer address of a peer.
fn peer(number: u32, family: Family) -> (IpNet, Mac, IpAddr) {
    let [_, b, c, d] = number.to_be_bytes();
    let bits = u128::from(number);
    let (subnet, length, outer) = match family {
        Family::V4 => (0x0a00_0000 | bits << 8, 24, 0xac10_0000 | bits),
        Family::V6 => (0xfd00_0010 << 96 | bits << 64, 64, 0x2001_0db8 << 96 | bits),
    };
    let subnet = IpNet::new_assert(family.from_bits(subnet), length);
    (subnet, Mac([2, 0, 0, b, c, d]), family.from_bits(outer))
}

/// A fresh namespace with a tunnel that is up.
fn tunnel(family: Family) -> Result<(Netns, Kernel), String> {
    let netns = Netns::create().map_err(sentence)?;
    let mut kernel = Kernel::open_in(&netns).map_err(sentence)?;
    let vxlan = Vxlan {
        vni: 1,
        port: 8472,
        // By which the kernel knows the family of peers; without one it is IPv4.
        local: (family == Family::V6).then(|| peer(0, family).2),
        lower: None,
        learning: false,
        gbp: false,
        l2miss: false,
        group: None,
    };
    let (name, kind) = (IfName::fixed(TUNNEL), LinkKind::Vxlan(vxlan));
    let link = Link { name, kind, mac: None, mtu: None, up: true, txqlen: None, master: None };
    let own = peer(0, family).0.addr();
    let address = Addr { dev: name, net: IpNet::new_assert(own, family.bits()) };
    // Addresses need their device to be there.
    for object in [Object::Link(Box::new(link)), Object::Addr(address)] {
        put(&mut kernel, vec![object])?;
    }
    Ok((netns, kernel))
}

fn put(kernel: &mut Kernel, objects: Vec<Object>) -> Result<()> {
    let steps: Vec<Step> = objects.into_iter().map(Step::Put).collect();
    kernel.apply(&steps).into_iter().collect::<std::result::Result<(), _>>().map_err(sentence)
}

fn batched(family: Family) -> Result<Duration> {
    let (_netns, mut kernel) = tunnel(family)?;
    let (dev, mut objects) = (IfName::fixed(TUNNEL), Vec::new());
    // In the order the agent writes them.
    for kind in 0..4 {
        for id in 1..=PEERS {
            let (subnet, mac, outer) = peer(id, family);
            let via = subnet.network();
            objects.push(match kind {
                0 => Object::Neigh(Neigh { dev, dst: via, mac }),
                1 => Object::Fdb(Fdb { dev, mac, dst: outer }),
                2 => Object::Nexthop(Nexthop { id, dev, via, onlink: true }),
                _ => Object::Route(Route::ours(subnet, Via::Nexthop(id))),
            });
        }
    }
    let start = Instant::now();
    put(&mut kernel, objects)?;
    Ok(start.elapsed())
}

fn single(family: Family) -> Result<Duration> {
    let (netns, mut kernel) = tunnel(family)?;
    let found = kernel.rtnl().link_by_name(IfName::fixed(TUNNEL)).map_err(sentence)?;
    let index = found.ok_or("the tunnel has gone")?.index;
    let mut rtnl = Rtnl::open_in(netns.as_fd()).map_err(sentence)?;
    let start = Instant::now();
    for number in 1..=PEERS {
        let (subnet, mac, outer) = peer(number, family);
        let via = subnet.network();
        let route = RouteInfo {
            gateway: Some(via),
            dev: Some(index),
            onlink: true,
            protocol: plan::ROUTE_PROTOCOL,
            ..RouteInfo::to(subnet)
        };
        rtnl.add_neighbour(&NeighInfo::permanent(index, via, mac), Put::Replace)
            .and_then(|()| rtnl.add_fdb(&FdbInfo::vxlan(index, mac, outer), Put::Replace))
            .and_then(|()| rtnl.add_route(&route, Put::Replace))
            .map_err(sentence)?;
    }
    Ok(start.elapsed())
}
