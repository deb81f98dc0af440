//! The difference between two states, as steps in the order in which they are safe.
//!
//! Links first (a device must be there before anything on it), then what is new or changed in creation
//! order, then what is no longer wanted, backwards. So a change is made before the old is broken.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use model::IfName;

use crate::state::{Key, Link, LinkFit, LinkKind, Object, State, TableKey, Via};

/// One change of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Create the object, or bring the one under its key to this value.
    Put(Object),
    /// Change attributes of a living device.
    Change(Box<Link>),
    /// Delete the object.
    Delete(Object),
}

impl Step {
    /// The object the step is about.
    pub fn key(&self) -> crate::Key {
        match self {
            Step::Put(object) | Step::Delete(object) => object.key(),
            Step::Change(link) => crate::Key::Link(link.name),
        }
    }

    /// Whether it puts an object that changes no other.
    pub fn is_plain(&self) -> bool {
        matches!(self, Step::Put(object) if !matches!(object, Object::Nft(_)))
    }

    /// Whether it is for those who hold what the kernel does not, see [`Object::is_outside`].
    pub fn is_outside(&self) -> bool {
        matches!(self, Step::Put(object) | Step::Delete(object) if object.is_outside())
    }

    /// The device without which the step cannot succeed; `None` for steps on devices themselves.
    pub fn device(&self) -> Option<IfName> {
        let (Step::Put(object) | Step::Delete(object)) = self else { return None };
        match object {
            Object::Addr(a) => Some(a.dev),
            Object::Offload { dev, .. } => Some(*dev),
            Object::Neigh(n) => Some(n.dev),
            Object::Fdb(f) => Some(f.dev),
            Object::WgPeer(p) => Some(p.dev),
            Object::TunnelPeer(p) => Some(p.dev),
            Object::Nexthop(n) => Some(n.dev),
            Object::Route(r) => match r.via {
                Via::Dev(dev) | Via::Behind(dev) | Via::Gateway { dev, .. } => Some(dev),
                Via::Nexthop(_) | Via::Blackhole | Via::Foreign => None,
            },
            Object::Sysctl { path, .. } => {
                let mut parts = path.split('/').skip_while(|part| *part != "conf").skip(1);
                parts
                    .next()
                    .and_then(|name| IfName::new(name).ok())
                    .filter(|n| !matches!(n.as_str(), "all" | "default"))
            }
            Object::Nft(_)
            | Object::Iptables(_)
            | Object::Element(_)
            | Object::Link(_)
            | Object::Rule(_)
            | Object::Policy(_)
            | Object::Tunnel(_)
            | Object::Command(_)
            | Object::Charon
            | Object::Ike(_)
            | Object::CloudRoute(_) => None,
        }
    }

    /// The nftables table in which the object is an element of a set.
    pub fn table(&self) -> Option<&TableKey> {
        match self {
            Step::Put(Object::Element(element)) | Step::Delete(Object::Element(element)) => {
                Some(&element.set.table)
            }
            _ => None,
        }
    }
}

/// What [`diff`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Steps on devices and the processes behind them; after these the rest must be read again, because the
    /// kernel removes routes and neighbours with a device without saying so, and a tunnel its peers.
    pub links: Vec<Step>,
    /// All other steps, in order.
    pub rest: Vec<Step>,
    /// Devices that stand in the way and are not ours: name and reason.
    pub foreign: Vec<(IfName, String)>,
    /// Devices that will be made anew, and why.
    pub recreated: Vec<(IfName, String)>,
    /// Tables that are made anew, and so with all elements of their sets.
    anew: BTreeSet<TableKey>,
}

impl Difference {
    /// Whether actual and wanted agree.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty() && self.rest.is_empty() && self.foreign.is_empty()
    }
}

/// Steps from `actual` (only objects that are ours) to `wanted`.
pub fn diff(wanted: &State, actual: &State) -> Difference {
    let mut out = Difference::default();
    // Both are in the same order: walked side by side, neither has to be searched.
    let mut there = actual.iter().peekable();
    let mut extra = Vec::new();
    for (key, want) in wanted.iter() {
        while let Some((_, have)) = there.next_if(|(other, _)| *other < key) {
            extra.push(have);
        }
        let have = there.next_if(|(other, _)| *other == key);
        out.want(want, have.map(|(_, have)| have));
    }
    extra.extend(there.map(|(_, have)| have));
    extra.into_iter().rev().for_each(|have| out.unwanted(wanted, have));
    out
}

/// The same where only what is under these keys can differ.
pub fn diff_within(wanted: &State, actual: &State, keys: &BTreeSet<Key>) -> Difference {
    let mut out = Difference::default();
    let mut keys = Cow::Borrowed(keys);
    let tables: Vec<Key> = keys.iter().filter(|key| matches!(key, Key::Nft(_))).cloned().collect();
    for key in tables {
        if let (Key::Nft(table), Some(want)) = (&key, wanted.get(&key))
            && !actual.get(&key).is_some_and(|have| have.is(want))
        {
            keys.to_mut().extend(wanted.elements(table).map(|(key, _)| key.clone()));
        }
    }
    for (key, want) in keys.iter().filter_map(|key| Some((key, wanted.get(key)?))) {
        out.want(want, actual.get(key));
    }
    for have in keys.iter().rev().filter(|key| wanted.get(key).is_none()).filter_map(|key| actual.get(key)) {
        out.unwanted(wanted, have);
    }
    out
}

/// Whether a table is there as we made it.
pub fn stands(actual: &State, table: &TableKey) -> bool {
    matches!(actual.get(&Key::Nft(table.clone())), Some(Object::Nft(table)) if !table.drifted)
}

/// Leaves of steps on elements those of tables that stand or will; gives how many were none of these.
pub fn within_tables(steps: &mut Vec<Step>, wanted: &State, actual: &State) -> usize {
    let tables = wanted.iter().map_while(|(key, object)| match object {
        Object::Nft(table) => Some((&table.key, actual.get(key).is_some_and(|have| have.is(object)))),
        _ => None,
    });
    let mut stand: BTreeMap<&TableKey, bool> = tables.collect();
    for step in steps.iter() {
        if let Step::Put(Object::Nft(table)) = step
            && let Some(stands) = stand.get_mut(&table.key)
        {
            *stands = true;
        }
    }
    let all = steps.len();
    let inside = |step: &Step| step.table().is_none_or(|table| stand.get(table) == Some(&true));
    steps.retain(inside);
    all - steps.len()
}

impl Difference {
    fn want(&mut self, want: &Object, have: Option<&Object>) {
        match (want, have) {
            (Object::Link(want), Some(Object::Link(have))) => match want.fit(have) {
                LinkFit::Same => {}
                LinkFit::Change => self.links.push(Step::Change(want.clone())),
                LinkFit::Recreate(why) => {
                    self.recreated.push((want.name, why));
                    self.links.push(Step::Delete(Object::Link(have.clone())));
                    self.links.push(Step::Put(Object::Link(want.clone())));
                }
                LinkFit::Foreign(why) => self.foreign.push((want.name, why)),
            },
            (Object::Link(_), _) => self.links.push(Step::Put(want.clone())),
            (Object::Element(element), _) if self.anew.contains(&element.set.table) => {
                self.rest.push(Step::Put(want.clone()));
            }
            (_, Some(have)) if have.is(want) => {}
            (Object::Tunnel(_), _) => self.links.push(Step::Put(want.clone())),
            _ => {
                if let Object::Nft(table) = want {
                    self.anew.insert(table.key.clone());
                }
                self.rest.push(Step::Put(want.clone()));
            }
        }
    }

    fn unwanted(&mut self, wanted: &State, have: &Object) {
        if let Object::Element(element) = have {
            let table = &element.set.table;
            // It goes with the table: taken out before, it would have its packets dropped.
            if self.anew.contains(table) || wanted.get(&Key::Nft(table.clone())).is_none() {
                return;
            }
        }
        let step = Step::Delete(have.clone());
        let first = matches!(have, Object::Link(_) | Object::Tunnel(_));
        if first { self.links.push(step) } else { self.rest.push(step) }
    }
}

impl fmt::Display for Step {
    /// The command that does the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Put(object) => object.fmt(f),
            Step::Change(link) => {
                write!(f, "ip link set {}", link.name)?;
                if let Some(mac) = link.mac {
                    write!(f, " address {mac}")?;
                }
                if let Some(mtu) = link.mtu {
                    write!(f, " mtu {mtu}")?;
                }
                if let Some(length) = link.txqlen {
                    write!(f, " txqueuelen {length}")?;
                }
                if let Some(master) = link.master {
                    write!(f, " master {master}")?;
                }
                f.write_str(if link.up { " up" } else { "" })?;
                let vxlan = match &link.kind {
                    LinkKind::Vxlan(vxlan) => vxlan,
                    LinkKind::Wireguard(wireguard) => {
                        return write!(f, " && {}", wireguard.command(link.name));
                    }
                    _ => return Ok(()),
                };
                // The kernel takes a vxlan device's own attributes only apart from the others.
                write!(f, " && ip link set {} type vxlan", link.name)?;
                if let Some(local) = vxlan.local {
                    write!(f, " local {local}")?;
                }
                if let Some(lower) = vxlan.lower {
                    write!(f, " dev {lower}")?;
                }
                f.write_str(if vxlan.learning { " learning" } else { " nolearning" })
            }
            Step::Delete(object) => match object {
                Object::Nft(table) => write!(f, "nft delete table {}", table.key),
                Object::Iptables(rules) => write!(f, "{} -X {}", rules.key, rules.key.table.chain()),
                Object::Link(link) => write!(f, "ip link delete {}", link.name),
                Object::Tunnel(tunnel) => write!(f, "loden tunnel stop {}", tunnel.dev),
                Object::TunnelPeer(p) => write!(f, "loden tunnel delete {} {}", p.dev, p.net),
                Object::Sysctl { path, .. } => write!(f, "sysctl -w {path}= (left as it is)"),
                Object::Offload { dev, name, .. } => write!(f, "ethtool -K {dev} {name} (left as it is)"),
                Object::Addr(a) => write!(f, "ip address delete {} dev {}", a.net, a.dev),
                Object::Element(element) => write!(f, "nft delete element {element}"),
                Object::Neigh(n) => write!(f, "ip neigh delete {} dev {}", n.dst, n.dev),
                Object::Fdb(e) => write!(f, "bridge fdb delete {} dev {} dst {} self", e.mac, e.dev, e.dst),
                Object::WgPeer(p) => write!(f, "wg set {} peer {} remove", p.dev, p.key),
                Object::Nexthop(n) => write!(f, "ip nexthop delete id {}", n.id),
                Object::Route(r) => write!(f, "ip route delete {r}"),
                Object::Rule(r) => write!(f, "ip rule delete {r}"),
                Object::Policy(p) => write!(f, "ip xfrm policy delete {}", p.key),
                Object::Command(command) => f.write_str(&command.shown(false)),
                Object::Charon => f.write_str("kill charon"),
                Object::Ike(ike) => write!(f, "swanctl --load-conns # without {}", ike.key),
                Object::CloudRoute(route) => write!(f, "tccli vpc DeleteRoutes # {route}"),
            },
        }
    }
}

#[cfg(test)]
mod tests;
