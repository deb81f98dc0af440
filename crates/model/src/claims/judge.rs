//! The check of claims for one snapshot after the other, at the cost of what changed between them.
//!
//! A lease that overlaps no other is judged alone, and almost all are like that. As soon as a change touches
//! a lease that overlaps another, everything is judged anew, by [`super::check`]'s rules.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Verdict, alone, verdicts};
use crate::addr::{Family, bounds};
use crate::config::NetConf;
use crate::lease::{Lease, Subnets};
use crate::peers::Peers;

/// Remembers the last snapshot and what became of it.
#[derive(Clone, Debug, Default)]
pub struct Judge {
    seen: Peers,
    basis: Option<Basis>,
    /// Index of `seen`, made at the first change after everything was judged; `None` until then.
    claimed: Option<[Claimed; 2]>,
    /// Leases of which something was accepted, by the subnets they claim.
    accepted: BTreeMap<Subnets, Arc<Lease>>,
    refused: BTreeMap<Subnets, Vec<(String, String)>>,
}

/// So many changes, and half of the peers, are judged one by one; of more everything is judged.
const FEW: usize = 64;

/// What a verdict depends on besides the leases.
#[derive(Clone, Debug, PartialEq)]
struct Basis {
    conf: NetConf,
    own: Lease,
    local: BTreeSet<IpAddr>,
}

/// A lease whose verdict is another one now: the subnets it claims, and what is accepted of it.
pub type Change = (Subnets, Option<Arc<Lease>>);

impl Judge {
    /// Judges a snapshot; gives the leases whose verdict is another one than last time, in order.
    pub fn judge(
        &mut self,
        conf: &NetConf,
        own: &Lease,
        local: &BTreeSet<IpAddr>,
        peers: &Peers,
    ) -> Vec<Change> {
        let same = self.basis.as_ref().is_some_and(|b| b.conf == *conf && b.own == *own && b.local == *local);
        if !same {
            self.basis = Some(Basis { conf: conf.clone(), own: own.clone(), local: local.clone() });
            (self.seen, self.claimed) = (peers.clone(), None);
            return self.all(conf, own, local);
        }
        let changes = peers.changes(&self.seen);
        if changes.is_empty() {
            return Vec::new();
        }
        // A list that came after our lease, say.
        if changes.len() > peers.len() / 2 + FEW {
            (self.seen, self.claimed) = (peers.clone(), None);
            return self.all(conf, own, local);
        }
        let mut claimed = self.claimed.take().unwrap_or_else(|| Claimed::of(&self.seen));
        let mut crowded = false;
        for (subnets, lease) in &changes {
            crowded |= self.claim(&mut claimed, subnets, lease.is_some(), crowded);
        }
        (self.seen, self.claimed) = (peers.clone(), Some(claimed));
        if crowded {
            return self.all(conf, own, local);
        }
        let mut out = Vec::new();
        for (subnets, lease) in changes {
            let verdict = lease.filter(|lease| lease.subnets != own.subnets).map(|lease| {
                let mut verdict = Verdict { lease: &lease, good: Subnets::default(), refused: Vec::new() };
                for net in conf.families().filter_map(|family| lease.subnets.of(family)) {
                    verdict.note(net, alone(conf, own, local, &lease, net));
                }
                (verdict.accepted(), verdict.refused)
            });
            let (accepted, refused) = verdict.unwrap_or_default();
            out.extend(self.take(subnets, accepted, refused));
        }
        out
    }

    /// What is accepted, by the subnets claimed.
    pub fn accepted(&self) -> &BTreeMap<Subnets, Arc<Lease>> {
        &self.accepted
    }

    /// Refused subnets, as text, and why, in one sentence.
    pub fn refused(&self) -> impl Iterator<Item = &(String, String)> {
        self.refused.values().flatten()
    }

    /// Notes in the index that a lease came, changed or went. Gives whether it overlaps another, unless that is `known`.
    fn claim(&self, claimed: &mut [Claimed; 2], subnets: &Subnets, there: bool, known: bool) -> bool {
        let mut crowded = false;
        let before = self.seen.get(subnets).is_some();
        for (family, claimed) in Family::BOTH.into_iter().zip(claimed) {
            let Some(net) = subnets.of(family) else { continue };
            if before {
                claimed.remove(net);
            }
            crowded |= !known && claimed.overlaps(net);
            if there {
                claimed.insert(net);
            }
        }
        crowded
    }

    fn all(&mut self, conf: &NetConf, own: &Lease, local: &BTreeSet<IpAddr>) -> Vec<Change> {
        let seen = self.seen.clone();
        if self.accepted.is_empty() && self.refused.is_empty() {
            // At a start, of which all are in order: the tree is made of that, in place of a search for each.
            let mut out = Vec::with_capacity(seen.len());
            for verdict in verdicts(conf, own, local, &seen) {
                let subnets = verdict.lease.subnets;
                out.extend(verdict.accepted().map(|lease| (subnets, lease)));
                if !verdict.refused.is_empty() {
                    self.refused.insert(subnets, verdict.refused);
                }
            }
            self.accepted = out.iter().cloned().collect();
            return out.into_iter().map(|(subnets, lease)| (subnets, Some(lease))).collect();
        }
        let mut gone: BTreeSet<Subnets> = self.accepted.keys().chain(self.refused.keys()).copied().collect();
        let mut out = Vec::new();
        for verdict in verdicts(conf, own, local, &seen) {
            gone.remove(&verdict.lease.subnets);
            let accepted = verdict.accepted();
            out.extend(self.take(verdict.lease.subnets, accepted, verdict.refused));
        }
        out.extend(gone.into_iter().filter_map(|subnets| self.take(subnets, None, Vec::new())));
        out.sort_by_key(|(subnets, _)| *subnets);
        out
    }

    /// Notes a verdict; gives it if what is accepted differs from before.
    fn take(
        &mut self,
        subnets: Subnets,
        accepted: Option<Arc<Lease>>,
        refused: Vec<(String, String)>,
    ) -> Option<Change> {
        if refused.is_empty() {
            self.refused.remove(&subnets);
        } else {
            self.refused.insert(subnets, refused);
        }
        let before = match &accepted {
            Some(lease) => self.accepted.insert(subnets, Arc::clone(lease)),
            None => self.accepted.remove(&subnets),
        };
        (before != accepted).then_some((subnets, accepted))
    }
}

/// All networks claimed in one family, however they overlap.
#[derive(Clone, Debug, Default)]
struct Claimed {
    /// By first address and length, with how many leases claim it.
    nets: BTreeMap<(u128, u8), usize>,
    /// How many networks there are of each length.
    lengths: BTreeMap<u8, usize>,
}

impl Claimed {
    /// Of all leases, family by family.
    fn of(peers: &Peers) -> [Claimed; 2] {
        Family::BOTH.map(|family| {
            let mut claimed = Claimed::default();
            peers.iter().filter_map(|lease| lease.subnets.of(family)).for_each(|net| claimed.insert(net));
            claimed
        })
    }

    fn insert(&mut self, net: IpNet) {
        let count = self.nets.entry((bounds(net).0, net.prefix_len())).or_default();
        *count += 1;
        *self.lengths.entry(net.prefix_len()).or_default() += 1;
    }

    fn remove(&mut self, net: IpNet) {
        fn less<K: Ord>(map: &mut BTreeMap<K, usize>, key: K) {
            if let Some(count) = map.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    map.remove(&key);
                }
            }
        }
        less(&mut self.nets, (bounds(net).0, net.prefix_len()));
        less(&mut self.lengths, net.prefix_len());
    }

    /// Whether a network in here shares an address with `net`: one that holds it, of one of the few lengths
    /// there are, or one that begins inside it.
    fn overlaps(&self, net: IpNet) -> bool {
        let (first, last) = bounds(net);
        let length = net.prefix_len();
        let holds = |shorter: &u8| {
            let wider = IpNet::new(net.addr(), *shorter).unwrap_or(net);
            self.nets.contains_key(&(bounds(wider).0, *shorter))
        };
        self.lengths.keys().take_while(|l| **l <= length).any(holds)
            || (length < net.max_prefix_len()
                && self.nets.range((first, length + 1)..=(last, u8::MAX)).next().is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;
    use crate::codec::etcd_key;
    use crate::peers;
    use crate::testing::Random;

    const CONF: &str = r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:3::/48"}"#;

    fn lease(random: &mut Random, crowd: u64) -> Lease {
        let third = random.below(crowd);
        // Mostly proper subnets, now and then a part or a multiple of one, now and then without a family.
        let key = match random.below(12) {
            0 => format!("10.3.{}.0-23", third & !1),
            1 => format!("10.3.{third}.128-25"),
            2 => format!("10.{}.{third}.0-24&fd00:3:0:{third:x}::-64", 3 + random.below(2)),
            3..6 => format!("10.3.{third}.0-24&fd00:3:0:{:x}::-64", random.below(crowd)),
            _ => format!("10.3.{third}.0-24"),
        };
        let mut lease = Lease { subnets: etcd_key::read(&key).expect("a key"), ..Lease::default() };
        // Some are ours, and some lie inside the subnet.
        lease.attrs.public_ip = Some(match random.below(8) {
            0 => [192, 0, 2, 1].into(),
            1 => [10, 3, third as u8, 9].into(),
            _ => [192, 0, 2, random.below(200) as u8 + 2].into(),
        });
        lease
    }

    /// However the leases come and go: the same verdicts as judging everything, and the changes lead there.
    #[test]
    fn one_by_one_is_the_same_as_all_at_once() {
        let conf = NetConf::parse(CONF).and_then(NetConf::validate).expect("valid");
        let local: BTreeSet<IpAddr> = ["192.0.2.1".parse().expect("an address")].into();
        let mut quick = 0;
        for seed in 0..15 {
            let mut random = Random::new(seed);
            let crowd = if seed % 3 == 0 { 12 } else { 250 };
            let mut own =
                Lease { subnets: etcd_key::read("10.3.1.0-24").expect("a key"), ..Lease::default() };
            let (mut judge, mut peers, mut replay) = (Judge::default(), Peers::default(), BTreeMap::new());
            for _ in 0..80 {
                // Now and then so many that all is judged again.
                let burst = if random.below(20) == 0 { 200 } else { random.below(3) };
                for _ in 0..=burst {
                    let lease = lease(&mut random, crowd);
                    let change = match random.below(4) {
                        0 => peers::Change::Removed(lease.subnets),
                        _ => peers::Change::Put(lease),
                    };
                    peers.apply(change);
                }
                if random.below(30) == 0 {
                    own.subnets =
                        etcd_key::read(&format!("10.3.{}.0-24", random.below(crowd))).expect("a key");
                }
                let before = judge.clone();
                let changes = judge.judge(&conf, &own, &local, &peers);
                quick += usize::from(changes.len() < 4);
                for (subnets, lease) in changes {
                    assert_ne!(before.accepted.get(&subnets), lease.as_ref(), "only what differs");
                    match lease {
                        Some(lease) => drop(replay.insert(subnets, lease)),
                        None => drop(replay.remove(&subnets)),
                    }
                }
                let want = check(&conf, &own, &local, &peers);
                assert_eq!(judge.accepted, replay);
                assert!(want.accepted.iter().eq(judge.accepted.values()), "seed {seed}");
                let refused: BTreeMap<_, _> = judge.refused().cloned().collect();
                assert_eq!(refused, want.rejected);
            }
        }
        assert!(quick > 200, "{quick}");
    }

    #[test]
    fn overlap_is_found_in_every_direction() {
        let net = |text: &str| text.parse::<IpNet>().expect("a network");
        let mut claimed = Claimed::default();
        for text in ["10.3.2.0/24", "10.3.8.0/22", "10.3.2.0/24"] {
            claimed.insert(net(text));
        }
        for (text, want) in [
            ("10.3.2.0/24", true),
            ("10.3.2.0/25", true),
            ("10.3.2.255/32", true),
            ("10.3.0.0/16", true),
            ("0.0.0.0/0", true),
            ("10.3.9.0/24", true),
            ("10.3.3.0/24", false),
            ("10.3.12.0/22", false),
            ("10.3.1.255/32", false),
        ] {
            assert_eq!(claimed.overlaps(net(text)), want, "{text}");
        }
        claimed.remove(net("10.3.2.0/24"));
        assert!(claimed.overlaps(net("10.3.2.0/25")), "claimed twice");
        claimed.remove(net("10.3.2.0/24"));
        assert!(!claimed.overlaps(net("10.3.2.0/25")));
    }
}
