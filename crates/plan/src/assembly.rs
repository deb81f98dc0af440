//! The wanted state, put together from a backend's parts and kept up to date: one peer's news costs what
//! that peer has in the kernel, not what the cluster has.
//!
//! What depends on the order of peers (two that want the same object with other values) or touches all of
//! them (host, own lease, rules, plain routes or nexthop objects) is put together anew, in order of the peers'
//! subnets. So the state is always what starting afresh would give, but for the number of a nexthop object
//! whose number another one has.

mod laid;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use ipnet::IpNet;
use model::{Family, Lease, Subnets};

use crate::Facts;
use crate::backend::{self, Backend, Half, Hop, hash64};
use crate::state::{Key, Nexthop, Object, Route, State, Via};
use laid::Laid;

/// From how many routes on nexthop objects are used, and below how many they are given up again: thousands
/// of routes with distinct gateways on one device are quadratic in the kernel (decision 0004).
const NEXTHOPS_FROM: usize = 256;
const NEXTHOPS_UNTIL: usize = 128;

/// Fewer changes than this, or than half of the peers, are made one by one; of more all is put together anew.
const FEW: usize = 64;

/// Nexthop ids are one space for the whole host; ours lie in the 16 M that begin here.
const NEXTHOP_BASE: u32 = 0x4e00_0000;

/// Which part of the wanted state may be another one now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// Any.
    All,
    /// What is under these keys.
    Keys(BTreeSet<Key>),
}

/// The wanted state and how it came about.
#[derive(Clone, Debug, Default)]
pub struct Assembly {
    wanted: State,
    basis: Option<Basis>,
    /// Who is in it. What a peer has there is what putting it together again gives.
    peers: BTreeMap<Subnets, Arc<Lease>>,
    /// Objects that several peers want, with their number, in which the base counts as one. Those of one peer are here as
    /// well where they came one after the other; then the peer that is named is the first.
    shared: BTreeMap<Key, (Subnets, usize)>,
    hops: usize,
    /// Whether routes go by nexthop objects.
    many: bool,
    /// The state depends on the order of the peers.
    ordered: bool,
    rejected: BTreeMap<Subnets, Vec<String>>,
}

/// What everything depends on.
#[derive(Clone, Debug, PartialEq)]
struct Basis {
    facts: Facts,
    own: Option<Lease>,
    rules: Arc<Vec<Object>>,
}

/// The order of the peers would matter.
struct OrderMatters;

impl Assembly {
    /// Brings the state up to date. `accepted` are all peers, `changes` those that differ from the last call;
    /// `rules` are objects that have nothing to do with peers. The backend is the same in each call.
    pub fn update(
        &mut self,
        backend: &dyn Backend,
        facts: &Facts,
        own: Option<&Lease>,
        rules: impl Into<Arc<Vec<Object>>>,
        accepted: &BTreeMap<Subnets, Arc<Lease>>,
        changes: &[(Subnets, Option<Arc<Lease>>)],
    ) -> Touched {
        let basis = self.basis.as_ref();
        let rules = rules.into();
        let stand = |basis: &Basis| Arc::ptr_eq(&basis.rules, &rules) || basis.rules == rules;
        let same = basis.is_some_and(|b| b.facts == *facts && b.own.as_ref() == own && stand(b));
        if !same {
            self.basis = Some(Basis { facts: facts.clone(), own: own.cloned(), rules });
        } else if changes.is_empty() || own.is_none() {
            return Touched::Keys(BTreeSet::new());
        } else if !self.ordered
            && changes.len() < accepted.len() / 2 + FEW
            && let Some(own) = own
            && let Ok(touched) = self.change(backend, facts, own, changes)
            && self.wants_many() == self.many
        {
            return Touched::Keys(touched);
        }
        self.anew(backend, facts, own, accepted);
        Touched::All
    }

    /// What the kernel shall hold.
    pub fn wanted(&self) -> &State {
        &self.wanted
    }

    /// Peers left out in part or whole, and why: one sentence with the way out for each.
    pub fn rejected(&self) -> &BTreeMap<Subnets, Vec<String>> {
        &self.rejected
    }

    fn wants_many(&self) -> bool {
        wants_many(self.hops, self.many)
    }

    fn anew(
        &mut self,
        backend: &dyn Backend,
        facts: &Facts,
        own: Option<&Lease>,
        accepted: &BTreeMap<Subnets, Arc<Lease>>,
    ) {
        let rules = self.basis.as_ref().map(|basis| basis.rules.to_vec()).unwrap_or_default();
        let many = self.many || (self.peers.is_empty() && facts.nexthops_in_use);
        let ordered = self.ordered;
        *self = Assembly { basis: self.basis.take(), many, ..Assembly::default() };
        self.wanted = backend.base(facts, own);
        self.wanted.extend(rules);
        let Some(own) = own else { return };
        self.peers.clone_from(accepted);
        let all = || accepted.iter().map(|(key, lease)| (*key, halves(backend, facts, own, lease)));
        // Most often each peer has one way. Where the order mattered it most likely still does.
        let expected = wants_many(accepted.len(), self.many);
        for many in [expected, !expected].into_iter().filter(|_| !ordered) {
            let laid = Laid::of(all(), many, None, &self.wanted);
            // Two nexthops of one number, most likely.
            let laid = laid.or_else(|_| Laid::of(all(), many, Some(HashMap::new()), &self.wanted));
            let Ok(laid) = laid else { break };
            if wants_many(laid.hops, self.many) == many {
                self.take(laid);
                return;
            }
        }
        let halves: Vec<_> = all().collect();
        let hops = halves.iter().flat_map(|(_, halves)| halves.iter().flatten().flatten());
        self.hops = hops.filter(|half| half.hop.is_some()).count();
        self.many = self.wants_many();
        self.hops = 0;
        for (subnets, halves) in halves {
            self.add(backend, subnets, halves, None);
        }
    }

    /// Takes what all peers want together.
    fn take(&mut self, laid: Laid) {
        let Laid { objects, shared, rejected, hops, many } = laid;
        objects.into_iter().for_each(|kind| self.wanted.put_sorted(kind));
        self.shared = shared.into_iter().collect();
        (self.rejected, self.hops, self.many) = (rejected, hops, many);
    }

    fn change(
        &mut self,
        backend: &dyn Backend,
        facts: &Facts,
        own: &Lease,
        changes: &[(Subnets, Option<Arc<Lease>>)],
    ) -> Result<BTreeSet<Key>, OrderMatters> {
        let mut touched = BTreeSet::new();
        // All that goes first, so that what moved from one peer to another is free.
        for (subnets, _) in changes {
            let Some(lease) = self.peers.remove(subnets) else { continue };
            self.remove(subnets, halves(backend, facts, own, &lease), &mut touched);
        }
        for (subnets, lease) in changes {
            let Some(lease) = lease else { continue };
            self.peers.insert(*subnets, Arc::clone(lease));
            let halves = halves(backend, facts, own, lease);
            self.add(backend, *subnets, halves, Some(&mut touched));
            if self.ordered {
                return Err(OrderMatters);
            }
        }
        Ok(touched)
    }

    fn remove(&mut self, subnets: &Subnets, halves: Halves, touched: &mut BTreeSet<Key>) {
        self.rejected.remove(subnets);
        for half in halves.into_iter().flatten().flatten() {
            self.hops -= usize::from(half.hop.is_some());
            let mut keys: Vec<Key> = half.entries.iter().map(Object::key).collect();
            if let Some(hop) = half.hop {
                let key = Key::Route(Route::ours(hop.dst, Via::Dev(hop.dev)).key());
                if let Some(Object::Route(Route { via: Via::Nexthop(id), .. })) = self.wanted.get(&key) {
                    keys.push(Key::Nexthop(*id));
                }
                keys.push(key);
            }
            for key in keys {
                if let Some((_, count)) = self.shared.get_mut(&key) {
                    *count -= 1;
                    if *count > 0 {
                        continue;
                    }
                    self.shared.remove(&key);
                }
                self.wanted.remove(&key);
                touched.insert(key);
            }
        }
    }

    /// Adds what a peer wants, and the keys to `touched`.
    fn add(
        &mut self,
        backend: &dyn Backend,
        subnets: Subnets,
        halves: Halves,
        mut touched: Option<&mut BTreeSet<Key>>,
    ) {
        for half in halves.into_iter().flatten() {
            let half = match half {
                Ok(half) => half,
                Err(reason) => {
                    self.rejected.entry(subnets).or_default().push(reason);
                    continue;
                }
            };
            self.hops += usize::from(half.hop.is_some());
            let mut objects = half.entries;
            let nexthop = |id| match self.wanted.get(&Key::Nexthop(id)) {
                Some(Object::Nexthop(nexthop)) => Some(nexthop),
                _ => None,
            };
            let way = half.hop.map(|hop| lay(hop, self.many, nexthop));
            objects.extend(way.into_iter().flatten().flatten());
            let stands =
                |object: &&Object| self.wanted.get(&object.key()).is_some_and(|have| have != *object);
            if let Some(object) = objects.iter().find(stands) {
                self.ordered = true;
                let other = self.shared.get(&object.key()).map(|(first, _)| *first).unwrap_or_default();
                self.rejected.entry(subnets).or_default().push(backend.clash(object, &other));
                continue;
            }
            for object in objects {
                let key = object.key();
                if is_shared(&key) {
                    let there = usize::from(self.wanted.get(&key).is_some());
                    self.shared.entry(key.clone()).or_insert((subnets, there)).1 += 1;
                }
                if let Some(touched) = &mut touched {
                    touched.insert(key);
                }
                self.wanted.put(object);
            }
        }
    }
}

/// Whether several peers may want the object.
fn is_shared(key: &Key) -> bool {
    matches!(key, Key::Fdb(..) | Key::WgPeer(..) | Key::Nexthop(_) | Key::Element(_))
}

/// A gateway route, after its nexthop object if it has one; `known` are those there are.
fn lay<'a>(hop: Hop, many: bool, known: impl Fn(u32) -> Option<&'a Nexthop>) -> [Option<Object>; 2] {
    let Hop { dst, gateway, dev, onlink } = hop;
    if !many {
        return [None, Some(Object::Route(Route::ours(dst, Via::Gateway { gateway, dev, onlink })))];
    }
    let mut id = nexthop_id(dst);
    let nexthop = |id| Nexthop { id, dev, via: gateway, onlink };
    // Of two that share a number the first has it, and the next one is as good for the second.
    while known(id).is_some_and(|have| *have != nexthop(id)) {
        id = NEXTHOP_BASE | (id.wrapping_add(1) & 0x00ff_ffff);
    }
    [Some(Object::Nexthop(nexthop(id))), Some(Object::Route(Route::ours(dst, Via::Nexthop(id))))]
}

fn wants_many(hops: usize, many: bool) -> bool {
    hops > if many { NEXTHOPS_UNTIL } else { NEXTHOPS_FROM }
}

/// What a peer adds in each family it has, or why it cannot.
type Halves = [Option<Result<Half, String>>; 2];

/// What a peer adds, family by family. What is wrong with both is said once.
fn halves(backend: &dyn Backend, facts: &Facts, own: &Lease, lease: &Lease) -> Halves {
    let mut halves = Family::BOTH
        .map(|family| lease.subnets.of(family).map(|_| backend::way(backend, facts, own, family, lease)));
    if matches!(&halves, [Some(Err(first)), Some(Err(second))] if first == second) {
        halves[1] = None;
    }
    halves
}

/// An id that depends on the route alone. Of one network, subnets that follow each other have ids that do: the kernel keeps
/// nexthops in a tree of ids, in which tens of thousands in any order are a cache miss each (decision 0256). Where the ids of
/// a network begin is by chance, so that of two agents on a host hardly ever one has an id of the other's (decision 0156).
fn nexthop_id(dst: IpNet) -> u32 {
    let host = u32::from(dst.max_prefix_len() - dst.prefix_len());
    let (family, network) = match dst {
        IpNet::V4(net) => (4, u128::from(u32::from(net.addr()))),
        IpNet::V6(net) => (6, u128::from(net.addr())),
    };
    let number = network.checked_shr(host).unwrap_or_default();
    let first = hash64(&[&[family, dst.prefix_len()], &(number >> 24).to_be_bytes()]);
    NEXTHOP_BASE | ((number as u32).wrapping_add(first as u32) & 0x00ff_ffff)
}

#[cfg(test)]
mod parting;
#[cfg(test)]
mod tests;
