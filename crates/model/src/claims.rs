//! Which peers' leases may reach the kernel: what a peer says of itself is checked before it is believed.
//!
//! Takes the configuration, the own lease, the host's addresses and all leases; gives those accepted and
//! a reason for each one refused. Each family of a lease is judged on its own, so that a bad half does
//! not cost the good one. Knows no backend: whether an address or data is *missing* is the backend's
//! business.

pub mod doubles;
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
    let others: Vec<&Arc<Lease>> = peers.iter_shared().filter(|l| l.subnets != own.subnets).collect();
    let mut good = vec![Subnets::default(); others.len()];
    for family in conf.families() {
        let mut taken = Taken::default();
        if let Some(net) = own.subnets.of(family) {
            taken.insert(net);
        }
        let own_nets = taken.clone();
        let wanted_len = if family == Family::V4 { conf.subnet_len } else { conf.ipv6_subnet_len };
        let mut order: Vec<(bool, usize, IpNet)> = others
            .iter()
            .enumerate()
            .filter_map(|(index, lease)| {
                let net = lease.subnets.of(family)?;
                Some((wanted_len != 0 && net.prefix_len() != wanted_len, index, net))
            })
            .collect();
        // Indexes go up with the subnets, so a stable sort by the first part is the whole rule.
        order.sort_by_key(|(odd, ..)| *odd);
        for (_, index, net) in order {
            let public = others[index].attrs.public(family);
            let problem = misplaced(conf, family, net)
                .or_else(|| own_nets.overlap(net).map(|own| format!("it overlaps this node's subnet {own}")))
                .or_else(|| public.and_then(|ip| unreachable(ip, net, own, local)))
                .or_else(|| taken.overlap(net).map(|other| format!("it overlaps {other} of another node")));
            match problem {
                Some(problem) => {
                    let why = format!("refuse peer subnet {net}: {problem}");
                    claims.rejected.insert(net.to_string(), why);
                }
                None => {
                    taken.insert(net);
                    match net {
                        IpNet::V4(net) => good[index].v4 = Some(net),
                        IpNet::V6(net) => good[index].v6 = Some(net),
                    }
                }
            }
        }
    }
    for (lease, subnets) in others.into_iter().zip(good) {
        if subnets == lease.subnets {
            claims.accepted.push(Arc::clone(lease));
        } else if subnets != Subnets::default() {
            claims.accepted.push(Arc::new(Lease { subnets, attrs: lease.attrs.clone() }));
        }
    }
    claims
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
struct Taken(BTreeMap<u128, (u128, IpNet)>);

impl Taken {
    fn insert(&mut self, net: IpNet) {
        let (first, last) = bounds(net);
        self.0.insert(first, (last, net));
    }

    /// A network in here that shares an address with `net`. O(log n): of disjoint networks, only the
    /// last that starts at or before the end of `net` can.
    fn overlap(&self, net: IpNet) -> Option<IpNet> {
        let (first, last) = bounds(net);
        let (_, (end, other)) = self.0.range(..=last).next_back()?;
        (*end >= first).then_some(*other)
    }
}
