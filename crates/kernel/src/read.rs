//! What the kernel holds, as a [`State`]: everything that is ours by its mark, and whatever else stands
//! under a key we want.
//!
//! Dumps are filtered by the kernel to tables and devices of interest. Objects of other programs under
//! other keys never get in, so nothing downstream can touch them.

use std::collections::{BTreeMap, BTreeSet};

use model::{Family, IfName};
use plan::state::{
    Addr, Fdb, Iptables, LinkKind, Neigh, Nexthop, Object, Route, RouteKey, Scope, SetKey, State, TABLE_MAIN,
    TableKey, Via,
};
use plan::{Key, ROUTE_PROTOCOL};

use crate::rtnl::neigh::PERMANENT;
use crate::rtnl::{AddrInfo, FdbInfo, NeighInfo, NexthopInfo, RouteFilter, RouteInfo};
use crate::{Error, Kernel, ethtool, sysctl};

/// Names of devices by index.
pub(crate) type Names = BTreeMap<u32, IfName>;

/// What a wanted state asks to be looked at, besides what is ours by mark.
#[derive(Default)]
struct Interest {
    devices: BTreeSet<IfName>,
    sysctls: BTreeSet<String>,
    offloads: BTreeSet<(IfName, &'static str)>,
    route_tables: BTreeSet<u32>,
    rules: bool,
    nft_tables: BTreeSet<TableKey>,
    policies: bool,
}

impl Interest {
    fn of(scope: &Scope, wanted: &State) -> Interest {
        let mut interest = Interest {
            devices: scope.devices.clone(),
            sysctls: scope.sysctls.clone(),
            nft_tables: scope.tables.clone(),
            policies: scope.policies,
            ..Interest::default()
        };
        if scope.adopt {
            interest.route_tables.insert(TABLE_MAIN);
        }
        for (key, _) in wanted.iter() {
            match key {
                Key::Addr(dev, _) | Key::Neigh(dev, _) | Key::Fdb(dev, _) | Key::WgPeer(dev, _) => {
                    interest.devices.insert(*dev);
                }
                Key::Sysctl(path) => {
                    interest.sysctls.insert(path.clone());
                }
                Key::Offload(dev, name) => {
                    interest.offloads.insert((*dev, name));
                }
                Key::Route(route) => {
                    interest.route_tables.insert(route.table);
                }
                Key::Rule(_) => interest.rules = true,
                Key::Nft(table) => {
                    interest.nft_tables.insert(table.clone());
                }
                Key::Policy(_) => interest.policies = true,
                Key::Element(_)
                | Key::Iptables(_)
                | Key::Link(_)
                | Key::Nexthop(_)
                | Key::Command(_)
                | Key::Charon
                // Tunnels are read from their processes, by whoever may speak with them.
                | Key::Tunnel(_)
                | Key::TunnelPeer(..)
                | Key::Ike(_)
                | Key::CloudRoute(_) => {}
            }
        }
        interest
    }
}

impl Kernel {
    /// Everything that is ours by `scope`, and everything under a key of `wanted`.
    ///
    /// # Errors
    /// A listing failed or kept changing; never a part of the state.
    pub fn read(&mut self, scope: &Scope, wanted: &State) -> Result<State, Error> {
        let interest = Interest::of(scope, wanted);
        let mut found = Vec::new();
        let mut keep = |object: Object| {
            if scope.owns(&object) || wanted.get(&object.key()).is_some() {
                found.push(object);
            }
        };
        let links = self.rtnl.links()?;
        let names: Names = links.iter().map(|l| (l.index, l.link.name)).collect();
        for info in links {
            let (index, mut link) = (info.index, info.link);
            let name = link.name;
            let vxlan = matches!(link.kind, LinkKind::Vxlan(_));
            if !interest.devices.contains(&name) {
                keep(Object::Link(Box::new(link)));
                continue;
            }
            let peers = self.tunnels.fill(self.netns.as_ref(), index, &mut link, wanted);
            keep(Object::Link(Box::new(link)));
            peers.into_iter().for_each(&mut keep);
            let addresses = self.rtnl.addresses(Some(index))?;
            addresses.iter().filter_map(|a| addr(a, name)).for_each(&mut keep);
            let neighbours = self.rtnl.neighbours(Some(index))?;
            neighbours.iter().filter_map(|n| neigh(n, name)).for_each(&mut keep);
            if vxlan {
                let entries = self.rtnl.fdb(Some(index))?;
                entries.iter().filter_map(|e| fdb(e, name)).for_each(&mut keep);
            }
        }
        self.read_sysctls(&interest.sysctls)?.into_iter().for_each(&mut keep);
        self.read_offloads(&interest.offloads)?.into_iter().for_each(&mut keep);
        let nexthops = self.read_nexthops(&names)?;
        // The first of several routes under one key is the one in force.
        let mut seen: BTreeSet<RouteKey> = BTreeSet::new();
        let mut used = Vec::new();
        for route in self.read_routes(&interest.route_tables)? {
            let route = plan_route(&route, &names);
            let ours = scope.owns(&Object::Route(route));
            used.push(route);
            if (ours || wanted.get(&Key::Route(route.key())).is_some()) && seen.insert(route.key()) {
                keep(Object::Route(route));
            }
        }
        let users = scope.users(&used);
        for nexthop in nexthops {
            if wanted.get(&Key::Nexthop(nexthop.id)).is_some() || scope.owns_nexthop(&nexthop, &users) {
                found.push(Object::Nexthop(nexthop));
            }
        }
        let mut keep = |object: Object| {
            if scope.owns(&object) || wanted.get(&object.key()).is_some() {
                found.push(object);
            }
        };
        for key in &interest.nft_tables {
            let like = match wanted.get(&Key::Nft(key.clone())) {
                Some(Object::Nft(table)) => Some(&**table),
                _ => None,
            };
            let Some(table) = self.nft.read(key, like)? else { continue };
            // A table that is to be made anew is filled anew.
            let sets = if table.drifted { Vec::new() } else { table.sets.clone() };
            keep(Object::Nft(Box::new(table)));
            for set in sets {
                let set = SetKey { table: key.clone(), name: set.name };
                let action = || format!("read nftables set {} {}", set.table, set.name);
                let elements =
                    self.nft.elements(&set).map_err(|errno| Error::Kernel { action: action(), errno })?;
                elements.into_iter().map(Object::Element).for_each(&mut keep);
            }
        }
        self.read_iptables(scope, wanted).into_iter().for_each(&mut keep);
        if interest.rules {
            let rules = self.rtnl.rules()?;
            rules.into_iter().filter(|r| !r.foreign).for_each(|r| keep(Object::Rule(Box::new(r.rule))));
        }
        if interest.policies {
            self.policies()?.into_iter().for_each(|policy| keep(Object::Policy(Box::new(policy))));
        }
        Ok(found.into_iter().collect())
    }

    /// The part of [`Kernel::read`] that is in iptables. One that cannot be read differs from what is wanted,
    /// so that it is written, and that says why it cannot be.
    pub fn read_iptables(&mut self, scope: &Scope, wanted: &State) -> Vec<Object> {
        let mut objects = Vec::new();
        for key in &scope.iptables {
            let (tables, mut place) = self.iptables();
            let found = tables
                .read(&mut place, *key, &scope.networks)
                .unwrap_or_else(|_| wanted.get(&Key::Iptables(*key)).map(|_| Iptables::unknown(*key)));
            let found = found.map(|rules| Object::Iptables(Box::new(rules)));
            let ours = |object: &Object| match object {
                Object::Iptables(rules) => !rules.is_anothers() || wanted.get(&object.key()).is_some(),
                _ => true,
            };
            objects.extend(found.filter(ours));
        }
        objects
    }

    /// Sysctls that exist; one whose device is not there (yet) is left out.
    fn read_sysctls(&self, paths: &BTreeSet<String>) -> Result<Vec<Object>, Error> {
        if paths.is_empty() {
            return Ok(Vec::new());
        }
        let read = || {
            paths
                .iter()
                .filter_map(|path| {
                    let value = sysctl::read(path).ok()?;
                    Some(Object::Sysctl { path: path.clone(), value })
                })
                .collect()
        };
        match &self.netns {
            Some(netns) => Ok(netns.run(read)?),
            None => Ok(read()),
        }
    }

    /// Offloads of devices that are there.
    fn read_offloads(&self, wanted: &BTreeSet<(IfName, &'static str)>) -> Result<Vec<Object>, Error> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let read = || {
            let of = |(dev, name): &(IfName, &'static str)| {
                let on = ethtool::features(*dev).ok()?.contains(*name);
                Some(Object::Offload { dev: *dev, name, on })
            };
            wanted.iter().filter_map(of).collect()
        };
        match &self.netns {
            Some(netns) => Ok(netns.run(read)?),
            None => Ok(read()),
        }
    }

    fn read_nexthops(&mut self, names: &Names) -> Result<Vec<Nexthop>, Error> {
        let all = self.rtnl.nexthops()?;
        self.foreign_nexthops =
            all.iter().filter(|n| n.protocol != ROUTE_PROTOCOL).map(|n| (n.id, n.protocol)).collect();
        Ok(all.iter().filter_map(|n| plan_nexthop(n, names)).collect())
    }

    /// The main table is read whole only if a route in it is wanted or may be adopted.
    fn read_routes(&mut self, tables: &BTreeSet<u32>) -> Result<Vec<RouteInfo>, Error> {
        let mut routes = Vec::new();
        if !tables.contains(&TABLE_MAIN) {
            let protocol = Some(ROUTE_PROTOCOL);
            routes = self.rtnl.routes(RouteFilter {
                table: Some(TABLE_MAIN),
                protocol,
                ..RouteFilter::default()
            })?;
        }
        for table in tables {
            routes.extend(self.rtnl.routes(RouteFilter { table: Some(*table), ..RouteFilter::default() })?);
        }
        routes.retain(|r| r.flags & libc::RTM_F_CLONED == 0);
        Ok(routes)
    }
}

fn addr(info: &AddrInfo, dev: IfName) -> Option<Object> {
    let permanent = info.flags & AddrInfo::PERMANENT != 0;
    permanent.then_some(Object::Addr(Addr { dev, net: info.net }))
}

pub(crate) fn neigh(info: &NeighInfo, dev: IfName) -> Option<Object> {
    let permanent = info.state == PERMANENT && info.flags & libc::NTF_PROXY == 0;
    Some(Object::Neigh(Neigh { dev, dst: info.dst, mac: info.mac? })).filter(|_| permanent)
}

pub(crate) fn fdb(info: &FdbInfo, dev: IfName) -> Option<Object> {
    let permanent = info.state & PERMANENT != 0 && info.flags & libc::NTF_SELF != 0;
    Some(Object::Fdb(Fdb { dev, mac: info.mac, dst: info.dst? })).filter(|_| permanent)
}

pub(crate) fn nexthop(info: &NexthopInfo, names: &Names) -> Option<Object> {
    plan_nexthop(info, names).map(Object::Nexthop)
}

fn plan_nexthop(info: &NexthopInfo, names: &Names) -> Option<Nexthop> {
    if info.protocol != ROUTE_PROTOCOL || info.group {
        return None;
    }
    let dev = *names.get(&info.index?)?;
    Some(Nexthop { id: info.id, dev, via: info.gateway?, onlink: info.onlink })
}

/// A route in the terms of the plan; what it has no words for becomes [`Via::Foreign`].
pub(crate) fn plan_route(info: &RouteInfo, names: &Names) -> Route {
    let dev = info.dev.and_then(|index| names.get(&index)).copied();
    let via = match (info.kind, info.nexthop, info.gateway, dev) {
        (libc::RTN_BLACKHOLE, ..) => Via::Blackhole,
        (libc::RTN_UNICAST, Some(id), ..) => Via::Nexthop(id),
        (libc::RTN_UNICAST, None, _, _) if info.multipath => Via::Foreign,
        (libc::RTN_UNICAST, None, Some(gateway), Some(dev)) => {
            Via::Gateway { gateway, dev, onlink: info.onlink }
        }
        (libc::RTN_UNICAST, None, None, Some(dev)) => {
            let global = info.scope == Some(libc::RT_SCOPE_UNIVERSE) && info.dst.addr().is_ipv4();
            if global { Via::Behind(dev) } else { Via::Dev(dev) }
        }
        _ => Via::Foreign,
    };
    Route {
        table: info.table,
        dst: info.dst,
        priority: info.priority.unwrap_or(Route::default_priority(Family::of_net(info.dst))),
        via,
        protocol: info.protocol,
    }
}
