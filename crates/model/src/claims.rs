//! Which peers' leases may reach the kernel: what a peer says of itself is checked before it is believed.
//!
//! Takes the configuration, the own lease, the host's addresses and all leases; gives those accepted and
//! a reason for each one refused. Each family of a lease is judged on its own, so that a bad half does
//! not cost the good one. Knows no backend: whether an address or data is *missing* is the backend's
//! business.

pub mod doubles;
pub mod judge;
pub mod nodes;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::addr::{Family, bounds};
use crate::config::NetConf;
use crate::lease::{Lease, Subnets};
use crate::peers::Peers;

/// The outcome of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// Peers' leases in order of their subnets, the own one left out, reduced to the families that are
    /// enabled and were accepted. At least one family is left in each.
    pub accepted: Vec<Arc<Lease>>,
    /// Refused subnets, as text, and why, in one sentence.
    pub rejected: BTreeMap<String, String>,
}

/// Checks all leases of `peers` but the own.
///
/// A subnet is refused if it lies outside the cluster network of its family, overlaps ours or that of a
/// peer who goes before, contains the address its owner is to be reached at (the tunnel would run through
/// itself), or if that address is one of ours, unspecified, loopback, multicast or broadcast.
///
/// Who goes before, when two peers overlap: a subnet of the configured length before others, then the
/// lease first in order of subnets. So every node comes to the same verdict from the same leases, and
/// nobody gains by claiming a wider or narrower part of another's subnet. A family that is switched off
/// is left out of a lease without a word.
///
/// `local` holds the host's own addresses. O(n log n).
pub fn check(conf: &NetConf, own: &Lease, local: &BTreeSet<IpAddr>, peers: &Peers) -> Claims {
    let mut claims = Claims::default();
    for verdict in verdicts(conf, own, local, peers) {
        claims.accepted.extend(verdict.accepted());
        claims.rejected.extend(verdict.refused);
    }
    claims
}

/// What became of one lease.
struct Verdict<'a> {
    lease: &'a Arc<Lease>,
    /// The subnets accepted.
    good: Subnets,
    /// Subnets refused, as text, and why.
    refused: Vec<(String, String)>,
}

impl Verdict<'_> {
    /// The lease reduced to what was accepted.
    fn accepted(&self) -> Option<Arc<Lease>> {
        if self.good == self.lease.subnets {
            Some(Arc::clone(self.lease))
        } else if self.good != Subnets::default() {
            Some(Arc::new(Lease { subnets: self.good, attrs: self.lease.attrs.clone() }))
        } else {
            None
        }
    }

    fn note(&mut self, net: IpNet, problem: Option<String>) {
        match (problem, net) {
            (Some(problem), _) => {
                self.refused.push((net.to_string(), format!("refuse peer subnet {net}: {problem}")));
            }
            (None, IpNet::V4(net)) => self.good.v4 = Some(net),
            (None, IpNet::V6(net)) => self.good.v6 = Some(net),
        }
    }
}

/// All leases but the own, in order of their subnets.
fn verdicts<'a>(conf: &NetConf, own: &Lease, local: &BTreeSet<IpAddr>, peers: &'a Peers) -> Vec<Verdict<'a>> {
    let others = peers.iter_shared().filter(|l| l.subnets != own.subnets);
    let mut verdicts: Vec<Verdict<'a>> =
        others.map(|lease| Verdict { lease, good: Subnets::default(), refused: Vec::new() }).collect();
    for family in conf.families() {
        let mut taken = Taken::default();
        let wanted_len = if family == Family::V4 { conf.subnet_len } else { conf.ipv6_subnet_len };
        let mut order: Vec<(bool, usize, IpNet)> = verdicts
            .iter()
            .enumerate()
            .filter_map(|(index, verdict)| {
                let net = verdict.lease.subnets.of(family)?;
                Some((wanted_len != 0 && net.prefix_len() != wanted_len, index, net))
            })
            .collect();
        // Indexes go up with the subnets, so a stable sort by the first part is the whole rule.
        order.sort_by_key(|(odd, ..)| *odd);
        for (_, index, net) in order {
            let verdict = &mut verdicts[index];
            let problem = alone(conf, own, local, verdict.lease, net)
                .or_else(|| taken.overlap(net).map(|other| format!("it overlaps {other} of another node")));
            if problem.is_none() {
                taken.insert(net);
            }
            verdict.note(net, problem);
        }
    }
    verdicts
}

/// What is wrong with a subnet whatever the other peers claim.
fn alone(conf: &NetConf, own: &Lease, local: &BTreeSet<IpAddr>, lease: &Lease, net: IpNet) -> Option<String> {
    let family = Family::of_net(net);
    let ours = own.subnets.of(family).filter(|own| own.contains(&net) || net.contains(own));
    let public = lease.attrs.public(family);
    misplaced(conf, family, net)
        .or_else(|| ours.map(|own| format!("it overlaps this node's subnet {own}")))
        .or_else(|| public.and_then(|ip| unreachable(ip, net, own, local)))
}

fn misplaced(conf: &NetConf, family: Family, net: IpNet) -> Option<String> {
    match conf.network_of(family) {
        Some(network) if network.contains(&net) => None,
        Some(network) => Some(format!("it is not inside the cluster network {network}")),
        None => Some(format!("the cluster has no {family} network")),
    }
}

fn unreachable(ip: IpAddr, net: IpNet, own: &Lease, local: &BTreeSet<IpAddr>) -> Option<String> {
    let kind = if own.attrs.public(Family::of(ip)) == Some(ip) || local.contains(&ip) {
        "one of this node's own"
    } else if ip.is_unspecified() {
        "unspecified"
    } else if ip.is_loopback() {
        "a loopback address"
    } else if ip.is_multicast() {
        "a multicast address"
    } else if matches!(ip, IpAddr::V4(ip) if ip.is_broadcast()) {
        "the broadcast address"
    } else if net.contains(&ip) {
        "inside the subnet itself"
    } else {
        return None;
    };
    Some(format!("its owner's public address {ip} is {kind}"))
}

/// Disjoint networks of one family, by their first address.
#[derive(Clone, Default)]
struct Taken {
    /// Those that came in order, as almost all do: no tree is searched for them.
    ordered: Vec<(u128, u128, IpNet)>,
    others: BTreeMap<u128, (u128, IpNet)>,
}

impl Taken {
    fn insert(&mut self, net: IpNet) {
        let (first, last) = bounds(net);
        if self.ordered.last().is_none_or(|(before, ..)| *before < first) {
            self.ordered.push((first, last, net));
        } else {
            self.others.insert(first, (last, net));
        }
    }

    /// A network in here that shares an address with `net`. O(log n): of disjoint networks, only the
    /// last that starts at or before the end of `net` can.
    fn overlap(&self, net: IpNet) -> Option<IpNet> {
        let (first, last) = bounds(net);
        let ends = match self.ordered.last() {
            Some((before, ..)) if *before <= last => self.ordered.len(),
            _ => self.ordered.partition_point(|(before, ..)| *before <= last),
        };
        let ordered = self.ordered[..ends].last().copied();
        let other = self.others.range(..=last).next_back();
        let other = other.map(|(start, (end, net))| (*start, *end, *net));
        let near = [ordered, other].into_iter().flatten().filter(|(_, end, _)| *end >= first);
        near.max_by_key(|(start, ..)| *start).map(|(_, _, net)| net)
    }
}

#[cfg(test)]
mod taken {
    use super::*;
    use crate::testing::Random;

    /// Whatever the order they come in: who overlaps finds the last that begins before its end.
    #[test]
    fn overlaps_are_found_in_any_order() {
        for seed in 0..40 {
            let mut random = Random::new(seed);
            let (mut taken, mut all) = (Taken::default(), Vec::<IpNet>::new());
            for _ in 0..200 {
                let length = 22 + random.below(4) as u8;
                let address = std::net::Ipv4Addr::from(0x0a00_0000 + (random.below(1 << 8) << 6) as u32);
                let net = IpNet::new(address.into(), length).expect("a length").trunc();
                let overlapping = all.iter().filter(|other| other.contains(&net) || net.contains(*other));
                let found = taken.overlap(net);
                assert_eq!(found, overlapping.max_by_key(|other| bounds(**other).0).copied(), "seed {seed}");
                if found.is_none() {
                    taken.insert(net);
                    all.push(net);
                }
            }
            assert!(!taken.others.is_empty() && taken.ordered.len() > 1, "seed {seed}: both ways");
        }
    }
}
