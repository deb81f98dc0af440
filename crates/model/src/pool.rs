//! Choosing a subnet for a node: the one it had, else a free one (flannel.md 3.4, 3.5).
//!
//! Takes a configuration completed by [`NetConf::validate`], the leases there are and randomness; gives
//! subnets. Writes nothing: whether the choice holds is decided by the store's compare-and-swap.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::addr::{Family, bounds, to_bits};
use crate::config::{NetConf, Range};
use crate::lease::{Lease, LeaseAttrs, Subnets};

/// Why no subnet could be chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// Every subnet overlaps a lease.
    #[error(
        "pick {family} subnet: all {count} subnets of length {len} from {min} to {max} are taken; widen the \
         range in the network config or wait for a lease to run out"
    )]
    Exhausted {
        /// Which family.
        family: Family,
        /// How many subnets the range has.
        count: u128,
        /// Their prefix length.
        len: u8,
        /// The first.
        min: std::net::IpAddr,
        /// The last.
        max: std::net::IpAddr,
    },
    /// The configuration was not completed, so that there is no range.
    #[error("pick {0} subnet: the network config gives no range for it")]
    NoRange(Family),
}

/// Picks one free subnet of each enabled family, each equally likely among *all* free ones of its range
/// (F-40), v4 and v6 independently. `taken` are all leases and reservations; `random` gives 64 random
/// bits a call. O(n log n) in the leases, whatever the size of the range (F-39).
///
/// # Errors
/// A family has no free subnet left, or no range.
pub fn pick<'a>(
    conf: &NetConf,
    taken: impl IntoIterator<Item = &'a Subnets>,
    random: &mut dyn FnMut() -> u64,
) -> Result<Subnets, PoolError> {
    let taken: Vec<&Subnets> = taken.into_iter().collect();
    let mut picked = Subnets::default();
    for family in conf.families() {
        let range = conf.range(family).ok_or(PoolError::NoRange(family))?;
        let nets = taken.iter().filter_map(|subnets| subnets.of(family));
        match pick_one(&range, nets, random)? {
            IpNet::V4(net) => picked.v4 = Some(net),
            IpNet::V6(net) => picked.v6 = Some(net),
        }
    }
    Ok(picked)
}

fn pick_one(
    range: &Range,
    taken: impl Iterator<Item = IpNet>,
    random: &mut dyn FnMut() -> u64,
) -> Result<IpNet, PoolError> {
    let slots = (range.max - range.min) / range.size() + 1;
    let taken = taken_slots(range, taken);
    let free = slots - taken.iter().map(|(first, last)| last - first + 1).sum::<u128>();
    if free == 0 {
        let [min, max] = [range.min, range.max].map(|bits| range.family.from_bits(bits));
        return Err(PoolError::Exhausted { family: range.family, count: slots, len: range.len, min, max });
    }
    let bits = u128::from(random()) << 64 | u128::from(random());
    // The n-th free slot: step over the taken runs before it.
    let mut slot = bits % free;
    for (first, last) in taken {
        if slot < first {
            break;
        }
        slot += last - first + 1;
    }
    let start = range.family.from_bits(range.min + slot * range.size());
    IpNet::new(start, range.len).map_err(|_| PoolError::NoRange(range.family))
}

/// The slots of the range that a lease overlaps, as sorted runs that neither touch nor overlap.
fn taken_slots(range: &Range, taken: impl Iterator<Item = IpNet>) -> Vec<(u128, u128)> {
    let end = range.max + (range.size() - 1);
    let mut runs: Vec<(u128, u128)> = taken
        .map(bounds)
        .filter(|(first, last)| *first <= end && *last >= range.min)
        .map(|(first, last)| {
            let slot = |bits: u128| (bits.clamp(range.min, end) - range.min) / range.size();
            (slot(first), slot(last))
        })
        .collect();
    runs.sort_unstable();
    runs.dedup_by(|next, run| {
        let joined = next.0 <= run.1 + 1;
        if joined {
            run.1 = run.1.max(next.1);
        }
        joined
    });
    runs
}

/// Whether a lease with these subnets fits the configuration: for each enabled family a subnet of the
/// right length between min and max, for others none (flannel.md 3.4, step 3). False if the
/// configuration was not completed.
pub fn compatible(conf: &NetConf, subnets: &Subnets) -> bool {
    let enabled: BTreeSet<Family> = conf.families().collect();
    !enabled.is_empty()
        && Family::BOTH.into_iter().all(|family| match subnets.of(family) {
            None => !enabled.contains(&family),
            Some(net) => conf.range(family).is_some_and(|range| {
                net.prefix_len() == range.len && (range.min..=range.max).contains(&to_bits(net.addr()))
            }),
        })
}

/// The subnets of an earlier start, made fit to be asked for again: reduced to the enabled families,
/// compatible, and overlapping no lease (flannel.md 3.4, step 4). v6-only works, unlike in flannel.
pub fn previous<'a>(
    conf: &NetConf,
    previous: &Subnets,
    taken: impl IntoIterator<Item = &'a Subnets>,
) -> Option<Subnets> {
    let enabled: BTreeSet<Family> = conf.families().collect();
    let v4: Option<Ipv4Net> = previous.v4.filter(|_| enabled.contains(&Family::V4));
    let v6: Option<Ipv6Net> = previous.v6.filter(|_| enabled.contains(&Family::V6));
    let wanted = Subnets { v4, v6 };
    let free = compatible(conf, &wanted) && !taken.into_iter().any(|other| other.overlaps(&wanted));
    free.then_some(wanted)
}

/// A lease or reservation in the store.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// What is stored.
    pub lease: &'a Lease,
    /// Whether it never runs out: put there by hand to keep a subnet for a node (flannel.md 3.8).
    pub reserved: bool,
}

/// What the store already holds for a node.
#[derive(Clone, Debug, Default)]
pub struct Own<'a> {
    /// The entry to take over: of the compatible ones a reservation, else the first.
    pub keep: Option<Entry<'a>>,
    /// Leases of the node that no longer fit the configuration and should be deleted. Never reservations:
    /// those are the administrator's.
    pub outdated: Vec<&'a Lease>,
}

/// Finds the entries that belong to the node that publishes `attrs`, in the order given.
///
/// The owner is told by the public address, as in flannel: IPv4 if both have one, else IPv6 (F-35). Two
/// nodes behind one address are therefore one node (F-37); nothing else in a lease written by flannel
/// tells nodes apart, and what is unlike (the MAC) changes when a machine is rebuilt.
pub fn own<'a>(conf: &NetConf, entries: impl IntoIterator<Item = Entry<'a>>, attrs: &LeaseAttrs) -> Own<'a> {
    let mut found = Own::default();
    for entry in entries.into_iter().filter(|entry| same_owner(&entry.lease.attrs, attrs)) {
        if !compatible(conf, &entry.lease.subnets) {
            if !entry.reserved {
                found.outdated.push(entry.lease);
            }
        } else if found.keep.is_none_or(|kept| entry.reserved && !kept.reserved) {
            found.keep = Some(entry);
        }
    }
    found
}

/// Whether two leases are of one node: see [`own`].
pub fn same_owner(a: &LeaseAttrs, b: &LeaseAttrs) -> bool {
    match (a.public_ip, b.public_ip) {
        (Some(a), Some(b)) => a == b,
        _ => a.public_ip6.is_some() && a.public_ip6 == b.public_ip6,
    }
}
