//! How long N leases (route, neighbour, forwarding entry each) take from zero into the kernel.
//!
//! Three ways, alternating, each time in a fresh namespace with one vxlan device. `one by one`: one
//! acknowledged request after the other on one socket, routes with gateways (performance.md 2, the
//! yardstick); the same objects through `Kernel::apply`; and with routes by nexthop objects, as the agent
//! does it with many peers. Reading them back is timed and checked as well.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use kernel::rtnl::{FdbInfo, NeighInfo, Put, RouteInfo};
use kernel::{Kernel, Netns, Rtnl};
use model::{IfName, Ipv4Net, Mac};
use plan::Step;
use plan::state::{Addr, Fdb, Link, LinkKind, Neigh, Nexthop, Object, Route, Scope, State, Via, Vxlan};

use crate::figure::{Figure, Goal, Samples, Table};
use crate::{Options, Result};

pub struct Lease {
    subnet: Ipv4Net,
    mac: Mac,
    outer: IpAddr,
}

pub fn lease(n: u32) -> Result<Lease> {
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
fn one_by_one(leases: &[Lease]) -> Result<Duration> {
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

/// Everything in batches; times of writing and of reading back.
pub fn batch(leases: &[Lease], nexthops: bool) -> Result<[Duration; 2]> {
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

/// The measurement.
pub fn run(options: &Options) -> Result<Table> {
    let rounds = options.rounds.unwrap_or(7);
    let about = format!("leases from zero into the kernel, ms; beside: one by one; {rounds} rounds");
    let mut table = Table::new("leases", about);
    let ms = |took: Duration| took.as_secs_f64() * 1e3;
    for (count, goal) in [(100, Goal::None), (1_000, Goal::None), (10_000, Goal::AtLeast(5.0))] {
        let leases: Vec<Lease> = (0..count).map(lease).collect::<Result<_>>()?;
        let [mut single, mut plain, mut nexthop, mut back] = [const { Samples(Vec::new()) }; 4];
        for _ in 0..rounds {
            single.0.push(ms(one_by_one(&leases)?));
            plain.0.push(ms(batch(&leases, false)?[0]));
            let [written, read] = batch(&leases, true)?;
            nexthop.0.push(ms(written));
            back.0.push(ms(read));
        }
        table.figures.push(Figure::faster(
            format!("{count} leases, nexthop objects"),
            nexthop,
            single.clone(),
            goal,
        ));
        table.figures.push(Figure::faster(
            format!("{count} leases, plain routes"),
            plain,
            single,
            Goal::None,
        ));
        table.figures.push(Figure::alone(format!("{count} leases, read back"), back, Goal::None));
    }
    Ok(table)
}
