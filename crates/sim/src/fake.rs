//! The objects of one network namespace and what happens to some when others go.

use std::collections::BTreeSet;
use std::net::IpAddr;

use model::{Family, IfName};
use plan::state::{Link, LinkKind, Nexthop, Object, Route, RouteKey, Scope, State, TableKey, Via};
use plan::{Key, Step};

use crate::Disturbance;

/// What the kernel tells those who listen. What goes with a device is not told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A device changed or went.
    Link(IfName),
    /// An address of a device changed.
    Addr(IfName),
    /// One object, and what it is now.
    Object(Key, Option<Object>),
    /// A route, and what it is now; the number is its protocol, of the one before if it is gone.
    Route(RouteKey, u8, Option<Route>),
    /// A table of nftables.
    Nft(TableKey),
    /// A policy rule.
    Rule,
}

/// A way to refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Not done, and said so: EBUSY, ENOMEM.
    Refused,
    /// Done, but the answer was lost: ENOBUFS, EINTR.
    Unsaid,
}

/// Numbers of errors as Linux has them (errno(3)).
mod errno {
    pub const ENOENT: i32 = 2;
    pub const ENOMEM: i32 = 12;
    pub const EEXIST: i32 = 17;
    pub const ENODEV: i32 = 19;
    pub const EINVAL: i32 = 22;
    pub const ENETDOWN: i32 = 100;
    pub const ENETUNREACH: i32 = 101;
    pub const ENOBUFS: i32 = 105;
}

/// A kernel with everything in it, ours and others'.
#[derive(Clone, Debug, Default)]
pub struct FakeKernel {
    state: State,
    notices: Vec<Notice>,
}

impl FakeKernel {
    /// A kernel that holds these objects.
    pub fn with(objects: impl IntoIterator<Item = Object>) -> FakeKernel {
        FakeKernel { state: objects.into_iter().collect(), ..FakeKernel::default() }
    }

    /// Everything it holds.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What was told since the last call.
    pub fn notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// What is ours by `scope` or stands under a key of `wanted`.
    pub fn read(&self, scope: &Scope, wanted: &State) -> State {
        let routes =
            self.state.iter().filter_map(|(_, o)| if let Object::Route(r) = o { Some(r) } else { None });
        let users = scope.users(routes);
        let ours = |object: &Object| match object {
            Object::Nexthop(nexthop) => scope.owns_nexthop(nexthop, &users),
            other => scope.owns(other),
        };
        let seen = self.state.iter().filter(|(key, object)| ours(object) || wanted.get(key).is_some());
        seen.map(|(_, object)| object.clone()).collect()
    }

    /// Carries out all steps; one answer each, an error as its number. `fault` is asked before each.
    pub fn apply(
        &mut self,
        steps: &[Step],
        mut fault: impl FnMut(&Step) -> Option<Fault>,
    ) -> Vec<Result<(), i32>> {
        let mut one = |step: &Step| match fault(step) {
            Some(Fault::Refused) => Err(errno::ENOMEM),
            Some(Fault::Unsaid) => self.step(step).and(Err(errno::ENOBUFS)),
            None => self.step(step),
        };
        steps.iter().map(&mut one).collect()
    }

    /// Does what somebody else does; one that the kernel refuses changes nothing.
    pub fn disturb(&mut self, disturbance: &Disturbance) -> Result<(), i32> {
        match disturbance {
            Disturbance::Put(object) => {
                self.fits_beside(object)?;
                self.put(object)
            }
            Disturbance::Delete(object) => {
                let Some(have) = self.state.get(&object.key()) else { return Err(errno::ENOENT) };
                match (object, names(object, have, true)) {
                    (_, true) => self.delete(object),
                    // An entry with another destination is let be, and nothing said.
                    (Object::Fdb(_), false) => Ok(()),
                    _ => Err(errno::ENOENT),
                }
            }
            Disturbance::Down(dev) => {
                let link = self.link(*dev)?;
                if link.up {
                    self.state.put(Object::Link(Box::new(Link { up: false, ..link })));
                    self.gone_down(*dev);
                    self.notices.push(Notice::Link(*dev));
                }
                Ok(())
            }
            Disturbance::Up(dev) => self.change(*dev, |link| link.up = true),
            Disturbance::Address(dev, mac) => {
                self.change(*dev, |link| link.mac = Some(*mac))?;
                self.state.retain(|key, _| !matches!(key, Key::Neigh(of, _) if of == dev));
                Ok(())
            }
            Disturbance::Mtu(dev, mtu) => self.change(*dev, |link| link.mtu = Some(*mtu)),
            Disturbance::Flush(dev) => {
                self.link(*dev)?;
                let on_it = |(key, object): (&Key, &Object)| {
                    matches!(key, Key::Addr(of, _) if of == dev).then(|| object.clone())
                };
                let all: Vec<Object> = self.state.iter().filter_map(on_it).collect();
                all.iter().try_for_each(|object| self.delete(object))
            }
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), i32> {
        match step {
            Step::Put(Object::Link(link)) if self.state.link(link.name).is_some() => Err(errno::EEXIST),
            Step::Put(object) => self.put(object),
            Step::Delete(object) => {
                let there = self.state.get(&object.key()).is_some_and(|have| names(object, have, false));
                if there { self.delete(object) } else { Ok(()) }
            }
            Step::Change(want) => {
                let now = self.link(want.name)?;
                let moved = want.mac.is_some() && want.mac != now.mac;
                let mut next = now.clone();
                next.mac = want.mac.or(now.mac);
                next.mtu = want.mtu.or(now.mtu);
                next.txqlen = want.txqlen.or(now.txqlen);
                next.master = want.master.or(now.master);
                next.up |= want.up;
                next.kind = want.kind.clone();
                self.state.put(Object::Link(Box::new(next)));
                if moved {
                    self.state.retain(|key, _| !matches!(key, Key::Neigh(of, _) if *of == want.name));
                }
                self.notices.push(Notice::Link(want.name));
                Ok(())
            }
        }
    }

    fn link(&self, dev: IfName) -> Result<Link, i32> {
        self.state.link(dev).cloned().ok_or(errno::ENODEV)
    }

    fn change(&mut self, dev: IfName, how: impl FnOnce(&mut Link)) -> Result<(), i32> {
        let mut link = self.link(dev)?;
        how(&mut link);
        self.state.put(Object::Link(Box::new(link)));
        self.notices.push(Notice::Link(dev));
        Ok(())
    }

    /// A device that carries packets.
    fn up(&self, dev: IfName) -> Result<(), i32> {
        if self.link(dev)?.up { Ok(()) } else { Err(errno::ENETDOWN) }
    }

    /// Whether an address of a device says that the gateway is next to it.
    fn on_link(&self, dev: IfName, gateway: IpAddr) -> bool {
        self.state
            .iter()
            .any(|(key, _)| matches!(key, Key::Addr(of, net) if *of == dev && net.contains(&gateway)))
    }

    fn reaches(&self, dev: IfName, gateway: IpAddr, onlink: bool) -> Result<(), i32> {
        self.up(dev)?;
        if onlink || self.on_link(dev, gateway) { Ok(()) } else { Err(errno::ENETUNREACH) }
    }

    /// IPv6 refuses a gateway that a standing route reaches through another device; Loden knows a way past it.
    fn fits_beside(&self, object: &Object) -> Result<(), i32> {
        let (gateway, dev) = match object {
            Object::Route(Route { via: Via::Gateway { gateway, dev, onlink: true }, .. }) => (*gateway, *dev),
            Object::Nexthop(Nexthop { via, dev, onlink: true, .. }) => (*via, *dev),
            _ => return Ok(()),
        };
        let route = |object: &Object| match object {
            Object::Route(r) if gateway.is_ipv6() && r.dst.contains(&gateway) => Some(*r),
            _ => None,
        };
        let over = |route: Route| match route.via {
            Via::Dev(dev) | Via::Behind(dev) | Via::Gateway { dev, .. } => Some(dev),
            Via::Nexthop(id) => match self.state.get(&Key::Nexthop(id)) {
                Some(Object::Nexthop(n)) => Some(n.dev),
                _ => None,
            },
            Via::Blackhole | Via::Foreign => None,
        };
        let best =
            self.state.iter().filter_map(|(_, object)| route(object)).max_by_key(|r| r.dst.prefix_len());
        match best {
            Some(route) if over(route) != Some(dev) => Err(errno::EINVAL),
            _ => Ok(()),
        }
    }

    fn put(&mut self, object: &Object) -> Result<(), i32> {
        match object {
            Object::Link(link) => {
                let lower = if let LinkKind::Vxlan(vxlan) = &link.kind { vxlan.lower } else { None };
                lower.map(|dev| self.link(dev)).transpose()?;
                self.state.put(object.clone());
                let path = format!("net/ipv6/conf/{}/accept_ra", link.name);
                self.state.put(Object::Sysctl { path, value: "1".to_owned() });
                self.notices.push(Notice::Link(link.name));
                return Ok(());
            }
            Object::Sysctl { path, .. } => {
                if !self.state.iter().any(|(key, _)| matches!(key, Key::Sysctl(known) if known == path)) {
                    return Err(errno::ENOENT);
                }
                self.state.put(object.clone());
                return Ok(());
            }
            Object::Offload { dev, .. } => {
                self.link(*dev)?;
                self.state.put(object.clone());
                return Ok(());
            }
            Object::Addr(a) => drop(self.link(a.dev)?),
            Object::Neigh(n) => drop(self.link(n.dev)?),
            Object::Fdb(f) => {
                if !matches!(self.link(f.dev)?.kind, LinkKind::Vxlan(_)) {
                    return Err(errno::EINVAL);
                }
            }
            Object::Nexthop(n) => self.reaches(n.dev, n.via, n.onlink)?,
            Object::Route(r) => match r.via {
                Via::Dev(dev) | Via::Behind(dev) => self.up(dev)?,
                Via::Gateway { gateway, dev, onlink } => self.reaches(dev, gateway, onlink)?,
                Via::Nexthop(id) => {
                    if self.state.get(&Key::Nexthop(id)).is_none() {
                        return Err(errno::EINVAL);
                    }
                }
                Via::Blackhole => {}
                Via::Foreign => return Err(errno::EINVAL),
            },
            Object::Element(e) => {
                if self.state.get(&Key::Nft(e.set.table.clone())).is_none() {
                    return Err(errno::ENOENT);
                }
            }
            Object::Nft(table) => self.without_elements(&table.key),
            Object::Rule(_) => {}
            // Not the kernel's, or not in this one.
            Object::Iptables(_)
            | Object::WgPeer(_)
            | Object::Tunnel(_)
            | Object::TunnelPeer(_)
            | Object::Policy(_)
            | Object::Command(_)
            | Object::Charon
            | Object::Ike(_)
            | Object::CloudRoute(_) => return Err(errno::EINVAL),
        }
        self.state.put(object.clone());
        self.tell(&object.key(), object, Some(object));
        Ok(())
    }

    fn delete(&mut self, object: &Object) -> Result<(), i32> {
        let key = object.key();
        match object {
            Object::Link(link) => {
                self.gone_down(link.name);
                let prefix = format!("/conf/{}/", link.name);
                self.state.retain(|key, _| match key {
                    Key::Sysctl(path) => !path.contains(&prefix),
                    other => other.device() != Some(link.name),
                });
                // Tunnels over a device go with it only in some kinds; vxlan stays.
                self.notices.push(Notice::Link(link.name));
                return Ok(());
            }
            Object::Sysctl { .. } | Object::Offload { .. } => return Ok(()),
            Object::Iptables(_)
            | Object::WgPeer(_)
            | Object::Tunnel(_)
            | Object::TunnelPeer(_)
            | Object::Policy(_)
            | Object::Command(_)
            | Object::Charon
            | Object::Ike(_)
            | Object::CloudRoute(_) => return Err(errno::EINVAL),
            _ => {}
        }
        let Some(was) = self.state.remove(&key) else { return Err(errno::ENOENT) };
        match &was {
            Object::Addr(a) => self.without_address(a.dev, Family::of_net(a.net)),
            Object::Nexthop(n) => self.without_nexthops(&BTreeSet::from([n.id])),
            Object::Nft(table) => self.without_elements(&table.key),
            _ => {}
        }
        self.tell(&key, &was, None);
        Ok(())
    }

    fn tell(&mut self, key: &Key, was: &Object, now: Option<&Object>) {
        self.notices.push(match was {
            Object::Addr(a) => Notice::Addr(a.dev),
            Object::Nft(table) => Notice::Nft(table.key.clone()),
            Object::Rule(_) => Notice::Rule,
            Object::Route(route) => {
                let now = now.and_then(|object| if let Object::Route(r) = object { Some(*r) } else { None });
                Notice::Route(route.key(), route.protocol, now)
            }
            _ => Notice::Object(key.clone(), now.cloned()),
        });
    }

    /// A table made anew comes with empty sets.
    fn without_elements(&mut self, table: &TableKey) {
        self.state.retain(|key, _| !matches!(key, Key::Element(e) if e.set.table == *table));
    }

    /// Without its last address of IPv4 a device has no IPv4: its routes and neighbours go, but not
    /// those through nexthop objects.
    fn without_address(&mut self, dev: IfName, family: Family) {
        let left = |(key, _): (&Key, &Object)| matches!(key, Key::Addr(of, net) if *of == dev && Family::of_net(*net) == Family::V4);
        if family == Family::V6 || self.state.iter().any(left) {
            return;
        }
        self.state.retain(|_, object| match object {
            Object::Route(r) => !(r.dst.addr().is_ipv4() && leads_over(r, dev)),
            Object::Neigh(n) => !(n.dev == dev && n.dst.is_ipv4()),
            _ => true,
        });
    }

    /// What a device takes with it when it goes down: routes, nexthops, neighbours, addresses of IPv6.
    fn gone_down(&mut self, dev: IfName) {
        let dead = self.nexthops_over(dev);
        self.without_nexthops(&dead);
        self.state.retain(|_, object| match object {
            Object::Route(r) => !leads_over(r, dev),
            Object::Neigh(n) => n.dev != dev,
            Object::Addr(a) => !(a.dev == dev && a.net.addr().is_ipv6()),
            _ => true,
        });
    }

    fn nexthops_over(&self, dev: IfName) -> BTreeSet<u32> {
        let over = |object: &Object| match object {
            Object::Nexthop(n) if n.dev == dev => Some(n.id),
            _ => None,
        };
        self.state.iter().filter_map(|(_, object)| over(object)).collect()
    }

    fn without_nexthops(&mut self, ids: &BTreeSet<u32>) {
        self.state.retain(|key, object| match (key, object) {
            (Key::Nexthop(id), _) => !ids.contains(id),
            (_, Object::Route(Route { via: Via::Nexthop(id), .. })) => !ids.contains(id),
            _ => true,
        });
    }
}

fn leads_over(route: &Route, over: IfName) -> bool {
    matches!(route.via, Via::Dev(dev) | Via::Behind(dev) | Via::Gateway { dev, .. } if dev == over)
}

/// Whether a request to delete `asked` hits `have`, which stands under its key. A person names the nexthop
/// object of a route, Loden does not.
fn names(asked: &Object, have: &Object, by_hand: bool) -> bool {
    match (asked, have) {
        (Object::Fdb(asked), Object::Fdb(have)) => asked == have,
        (Object::Route(asked), Object::Route(have)) => {
            let way = match (asked.via, have.via) {
                (Via::Nexthop(_), Via::Blackhole) => false,
                (Via::Nexthop(_), _) if !by_hand => true,
                // IPv6 compares no gateway with a nexthop object (`ip6_route_del`).
                (Via::Gateway { gateway, .. }, Via::Nexthop(_)) if gateway.is_ipv6() => true,
                (asked, have) => asked == have,
            };
            way && asked.protocol == have.protocol
        }
        _ => true,
    }
}
