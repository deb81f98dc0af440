//! How long N leases (route, neighbour, forwarding entry each) take from zero into the kernel.
//!
//! Three ways, alternating in one run, each time in a fresh namespace with one vxlan device:
//! `single`: one acknowledged request after the other on one socket, routes with gateways (as
//! performance.md 2 defines the yardstick); `batch`: the same objects through `Kernel::apply`;
//! `nexthop`: through `Kernel::apply` with routes by nexthop objects. `read` is `Kernel::read` of the last.
//!
//! `cargo run --profile quick -p kernel --example leases -- [LEASES [REPETITIONS]]`, as root.

use std::error::Error;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use kernel::rtnl::{FdbInfo, NeighInfo, Put, RouteInfo};
use kernel::{Kernel, Netns, Rtnl};
use model::{IfName, Ipv4Net, Mac};
use plan::Step;
use plan::state::{Addr, Fdb, Link, LinkKind, Neigh, Nexthop, Object, Route, Scope, State, Via, Vxlan};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Lease {
    subnet: Ipv4Net,
    mac: Mac,
    outer: IpAddr,
}

fn lease(n: u32) -> Result<Lease> {
    let [_, b, c, d] = n.to_be_bytes();
    Ok(Lease {
        subnet: Ipv4Net::new(Ipv4Addr::from(0x0a00_0000 | (n + 1) << 8), 24)?,
        mac: Mac([2, 0, 0, b, c, d]),
        outer: IpAddr::V4(Ipv4Addr::from(0xac10_0000 | (n + 1))),
    })
}

/// A fresh namespace with `flannel.1` up.
fn host() -> Result<(Netns, Kernel, IfName)> {
    let netns = Netns::create()?;
    let mut kernel = Kernel::open_in(&netns)?;
    let dev = IfName::new("flannel.1")?;
    let vxlan = Vxlan {
        vni: 1,
        port: 8472,
        local: None,
        lower: None,
        learning: false,
        gbp: false,
        l2miss: false,
        group: None,
    };
    let link = Link {
        name: dev,
        kind: LinkKind::Vxlan(vxlan),
        mac: None,
        mtu: Some(1450),
        up: true,
        txqlen: None,
        master: None,
    };
    let address = Addr { dev, net: "10.0.0.0/32".parse()? };
    for object in [Object::Link(Box::new(link)), Object::Addr(address)] {
        kernel.apply(&[Step::Put(object)]).into_iter().collect::<std::result::Result<(), _>>()?;
    }
    Ok((netns, kernel, dev))
}

/// One acknowledged request at a time.
fn single(leases: &[Lease]) -> Result<Duration> {
    let (netns, mut kernel, dev) = host()?;
    let index = kernel.rtnl().link_by_name(dev)?.ok_or("no device")?.index;
    let mut rtnl = Rtnl::open_in(netns.as_fd())?;
    let start = Instant::now();
    for lease in leases {
        let gateway = IpAddr::V4(lease.subnet.network());
        rtnl.add_neighbour(&NeighInfo::permanent(index, gateway, lease.mac), Put::Replace)?;
        rtnl.add_fdb(&FdbInfo::vxlan(index, lease.mac, lease.outer), Put::Replace)?;
        let route = RouteInfo {
            gateway: Some(gateway),
            dev: Some(index),
            onlink: true,
            protocol: plan::ROUTE_PROTOCOL,
            ..RouteInfo::to(lease.subnet.into())
        };
        rtnl.add_route(&route, Put::Replace)?;
    }
    Ok(start.elapsed())
}

/// Everything in batches; how long writing took, and reading it back.
fn batch(leases: &[Lease], nexthops: bool) -> Result<[Duration; 2]> {
    let (_netns, mut kernel, dev) = host()?;
    let mut objects = Vec::new();
    for (id, lease) in (1..).zip(leases) {
        let gateway = IpAddr::V4(lease.subnet.network());
        objects.push(Object::Neigh(Neigh { dev, dst: gateway, mac: lease.mac }));
        objects.push(Object::Fdb(Fdb { dev, mac: lease.mac, dst: lease.outer }));
        let via = if nexthops {
            objects.push(Object::Nexthop(Nexthop { id, dev, via: gateway, onlink: true }));
            Via::Nexthop(id)
        } else {
            Via::Gateway { gateway, dev, onlink: true }
        };
        objects.push(Object::Route(Route::ours(lease.subnet.into(), via)));
    }
    objects.sort_by_key(Object::key);
    let steps: Vec<Step> = objects.into_iter().map(Step::Put).collect();
    let start = Instant::now();
    for result in kernel.apply(&steps) {
        result?;
    }
    let written = start.elapsed();
    let scope = Scope { devices: [dev].into(), networks: vec!["10.0.0.0/8".parse()?], ..Scope::default() };
    let start = Instant::now();
    let state = kernel.read(&scope, &State::default())?;
    let read = start.elapsed();
    // The device and its address besides.
    if state.len() != steps.len() + 2 {
        return Err(format!("{} objects were written, {} read", steps.len() + 2, state.len()).into());
    }
    Ok([written, read])
}

fn main() -> Result<()> {
    let mut numbers = std::env::args().skip(1).map(|a| a.parse::<u32>());
    let count = numbers.next().transpose()?.unwrap_or(10_000);
    let repetitions = numbers.next().transpose()?.unwrap_or(7);
    let leases: Vec<Lease> = (0..count).map(lease).collect::<Result<_>>()?;
    let mut times = [const { Vec::new() }; 4];
    for _ in 0..repetitions {
        times[0].push(single(&leases)?);
        times[1].push(batch(&leases, false)?[0]);
        let [written, read] = batch(&leases, true)?;
        times[2].push(written);
        times[3].push(read);
    }
    let mut out = std::io::stdout().lock();
    let median = |all: &[Duration]| all[all.len() / 2].as_secs_f64() * 1e3;
    times.iter_mut().for_each(|all| all.sort());
    writeln!(
        out,
        "{count} leases, {repetitions} repetitions, milliseconds: median [fastest..slowest], factor"
    )?;
    for (name, all) in ["single", "batch", "nexthop", "read"].into_iter().zip(&times) {
        let edge = |t: Option<&Duration>| t.map_or(0.0, |t| t.as_secs_f64() * 1e3);
        let factor = median(&times[0]) / median(all);
        let (first, last) = (edge(all.first()), edge(all.last()));
        writeln!(out, "{name:8} {:8.1} [{first:.1}..{last:.1}]  {factor:.1}", median(all))?;
    }
    Ok(())
}
