//! Whose turn it is. Nodes stand in a ring by their subnets, and each probes both its neighbours, so that two
//! that probe each other hear of both directions; one more place goes round all others. Pure.

use std::net::IpAddr;

use model::{Family, IpNet, Lease};

use super::{Plan, Target};

/// Bad ones that stay on the list until they are good.
const HELD: usize = 2;

/// The targets of a turn: neighbours, one that goes round, and some of those in `bad`.
pub fn targets(plan: &Plan, turn: usize, bad: &[IpNet]) -> Vec<Target> {
    let Some(own) = plan.own.as_ref().filter(|_| knows(plan.kind)) else { return Vec::new() };
    let all: Vec<&Lease> = plan.others().filter(|peer| peer.subnets != own.subnets).collect();
    let count = all.len();
    if count == 0 {
        return Vec::new();
    }
    let after = all.iter().position(|peer| peer.subnets > own.subnets).unwrap_or(0);
    let mut chosen = vec![after % count, (after + count - 1) % count];
    if count > 2 {
        chosen.push((after + 1 + turn % (count - 2)) % count);
    }
    chosen.dedup();
    let mut targets: Vec<Target> = chosen.into_iter().flat_map(|at| of(plan, all[at])).collect();
    let held = all.iter().flat_map(|peer| of(plan, peer)).filter(|target| bad.contains(&target.net));
    for target in held.take(HELD) {
        if !targets.contains(&target) {
            targets.push(target);
        }
    }
    targets
}

/// Backends with a device that has an address of its own (flannel.md 6): the first one of the subnet, which no
/// pod has.
const TUNNELS: [&str; 4] = ["vxlan", "ipip", "udp", "wireguard"];
/// Those without: the bridge of the pods has the address after it.
const BRIDGES: [&str; 2] = ["host-gw", "tencent-vpc"];

/// Whether peers of this backend can be probed at all. Of ipsec they cannot: its policies are about pods, so an echo
/// of the host's would go in the clear.
pub fn knows(kind: &str) -> bool {
    TUNNELS.contains(&kind) || BRIDGES.contains(&kind)
}

/// Each family of a peer that can be probed with this backend.
fn of(plan: &Plan, peer: &Lease) -> Vec<Target> {
    let target = |family: Family| {
        let net = peer.subnets.of(family)?;
        let other = if family == Family::V4 { Family::V6 } else { Family::V4 };
        // WireGuard and IPsec may carry a family over the other one.
        let public = peer.attrs.public(family).or_else(|| peer.attrs.public(other))?;
        let certain = TUNNELS.contains(&plan.kind);
        let inner = if certain { net.network() } else { next(net.network())? };
        Some(Target {
            subnets: peer.subnets,
            net,
            inner,
            certain,
            public,
            direct: plan.direct.contains(&public),
        })
    };
    Family::BOTH.into_iter().filter_map(target).collect()
}

fn next(ip: IpAddr) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(ip) => Some(u32::from(ip).checked_add(1)?.to_be_bytes().into()),
        IpAddr::V6(ip) => Some(u128::from(ip).checked_add(1)?.to_be_bytes().into()),
    }
}
