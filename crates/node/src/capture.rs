//! The packets of a pair at all hops of this host at once: which devices each was seen at, how long it took between
//! them, and where it was lost. Pure, but for [`way`], which asks the kernel (decision 0223).

pub mod filter;
pub mod packet;
pub mod pcapng;
pub mod show;
#[cfg(test)]
mod tests;
pub mod way;

use std::collections::{BTreeMap, HashMap, VecDeque};

use packet::{Key, Packet, Wrap};

/// How long after its last sight a packet is waited for: µs lie between the hops of one host, ms where it waits for a
/// neighbour or in a queue.
pub const PATIENCE_NS: u64 = 500_000_000;
/// How long after the last hop of its way a packet is kept: devices below it, such as those of a bond, come after.
const GRACE_NS: u64 = 100_000_000;
/// Packets that are followed at once; beyond them the oldest is closed.
const MOST: usize = 16_384;

/// A device of one of the namespaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Position of its namespace.
    pub place: usize,
    /// Name.
    pub device: String,
}

/// One record: a frame at a hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sight {
    /// Position of the hop in [`Followed::hops`].
    pub hop: usize,
    /// The namespace was sending it.
    pub outgoing: bool,
    /// Nanoseconds of the wall clock.
    pub at_ns: u64,
    /// How it is wrapped there.
    pub wraps: Vec<Wrap>,
}

/// A packet and where it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Followed {
    /// From 1.
    pub number: u64,
    /// It goes from the source to the destination; answers do not.
    pub forward: bool,
    /// As it was first seen.
    pub packet: Packet,
    /// First sight at each hop and direction, in the order of time.
    pub sights: Vec<Sight>,
    /// Bytes of TCP data seen, by hop and direction.
    covered: BTreeMap<(usize, bool), u32>,
    last_ns: u64,
}

/// What became of a packet on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was seen at the last hop.
    Passed,
    /// This position of the way is the first that it did not reach.
    Missing(usize),
    /// Part of its data did not reach this hop.
    Partly(usize),
}

/// Puts sights together.
#[derive(Debug, Default)]
pub struct Follower {
    hops: Vec<Hop>,
    there: Vec<usize>,
    back: Vec<usize>,
    /// The direction in which a process takes packets from the last hop and sends them on.
    handed_on: Option<bool>,
    open: VecDeque<Followed>,
    by_key: HashMap<Key, Vec<u64>>,
    numbered: u64,
}

impl Follower {
    /// For a way there and a way back. `handed_on` is the direction (`true` is there) whose last hop hands packets to
    /// a process, which may take its time.
    pub fn new(there: &[Hop], back: &[Hop], handed_on: Option<bool>) -> Follower {
        let mut follower = Follower { handed_on, ..Follower::default() };
        follower.there = there.iter().map(|hop| follower.hop(hop)).collect();
        follower.back = back.iter().map(|hop| follower.hop(hop)).collect();
        follower
    }

    /// The position of a hop; a new one is added.
    pub fn hop(&mut self, hop: &Hop) -> usize {
        match self.hops.iter().position(|known| known == hop) {
            Some(at) => at,
            None => {
                self.hops.push(hop.clone());
                self.hops.len() - 1
            }
        }
    }

    /// All hops: those of the ways first, then others in the order of their first packet.
    pub fn hops(&self) -> &[Hop] {
        &self.hops
    }

    /// The hops of one direction.
    pub fn way(&self, forward: bool) -> &[usize] {
        if forward { &self.there } else { &self.back }
    }

    /// Takes a record, in the order of time, and gives the numbers of its packets: several where it is a train of
    /// them. None if it would begin a packet beyond `most`.
    pub fn see(&mut self, sight: Sight, packet: Packet, forward: bool, most: Option<u64>) -> Vec<u64> {
        let place = (sight.hop, sight.outgoing);
        let first = self.open.front().map_or(0, |oldest| oldest.number);
        let numbers = self.by_key.get(&packet.key).cloned().unwrap_or_default();
        let mut found = Vec::new();
        for number in numbers.iter().rev() {
            let Some(known) = self.open.get_mut((number - first) as usize) else { continue };
            let fresh = sight.at_ns.saturating_sub(known.last_ns) < PATIENCE_NS;
            let shared = overlap(known.packet.range, packet.range);
            let seen = known.covered.get(&place).copied();
            let is_new = match packet.key {
                Key::Whole(_) => seen.is_none(),
                Key::Stream(_) => shared > 0 && seen.unwrap_or(0) + shared <= known.packet.range.1,
            };
            if !fresh || !is_new {
                continue;
            }
            if seen.is_none() {
                known.sights.push(sight.clone());
            }
            *known.covered.entry(place).or_default() += shared;
            known.last_ns = known.last_ns.max(sight.at_ns);
            found.push(*number);
            if matches!(packet.key, Key::Whole(_)) {
                break;
            }
        }
        found.reverse();
        if found.is_empty() && most.is_none_or(|most| self.numbered < most) {
            self.numbered += 1;
            let number = self.numbered;
            self.by_key.entry(packet.key.clone()).or_default().push(number);
            self.open.push_back(Followed {
                number,
                forward,
                covered: BTreeMap::from([(place, packet.range.1)]),
                last_ns: sight.at_ns,
                sights: vec![sight],
                packet,
            });
            found.push(number);
        }
        found
    }

    /// Packets that are done with, in order: seen at the last hop a moment ago, or not seen again for [`PATIENCE_NS`];
    /// all of them with `u64::MAX`.
    pub fn done(&mut self, now_ns: u64) -> Vec<Followed> {
        let mut done = Vec::new();
        while let Some(oldest) = self.open.front() {
            let age = now_ns.saturating_sub(oldest.last_ns);
            let more = self.handed_on == Some(oldest.forward);
            let over = age >= GRACE_NS && !more && self.fate(oldest) == Fate::Passed;
            if !over && age < PATIENCE_NS && self.open.len() <= MOST {
                break;
            }
            let Some(followed) = self.open.pop_front() else { break };
            if let Some(numbers) = self.by_key.get_mut(&followed.packet.key) {
                numbers.retain(|number| *number != followed.number);
                if numbers.is_empty() {
                    self.by_key.remove(&followed.packet.key);
                }
            }
            done.push(followed);
        }
        done
    }

    /// How far along its way it was seen, in hops. What a process takes from the last hop leaves wrapped by a device
    /// that the way does not name; who is seen there, has the way behind it, by whatever means.
    fn reached(&self, followed: &Followed) -> usize {
        let way = self.way(followed.forward);
        let left = |sight: &Sight| sight.outgoing && !sight.wraps.is_empty() && !way.contains(&sight.hop);
        if self.handed_on == Some(followed.forward) && followed.sights.iter().any(left) {
            return way.len();
        }
        let seen = |hop: &usize| followed.sights.iter().any(|sight| sight.hop == *hop);
        way.iter().rposition(seen).map_or(0, |last| last + 1)
    }

    /// Hops that it went past: not seen there, but before and behind.
    pub fn skipped(&self, followed: &Followed) -> Vec<usize> {
        let way = self.way(followed.forward);
        let position = |hop: usize| way.iter().position(|at| *at == hop);
        let Some(first) = followed.sights.iter().min_by_key(|sight| sight.at_ns) else { return Vec::new() };
        let between = position(first.hop).map_or(0, |at| at + 1)..self.reached(followed);
        let unseen = |hop: &usize| followed.sights.iter().all(|sight| sight.hop != *hop);
        way.get(between).unwrap_or_default().iter().copied().filter(unseen).collect()
    }

    /// What became of it. A hop that was passed over is no loss if a later one saw the packet.
    pub fn fate(&self, followed: &Followed) -> Fate {
        let way = self.way(followed.forward);
        let next = self.reached(followed);
        if next < way.len() {
            return Fate::Missing(next);
        }
        let seen = |hop: &usize| followed.sights.iter().any(|sight| sight.hop == *hop);
        let bytes = followed.packet.range.1;
        let most = |hop: usize| {
            let all = followed.covered.iter().filter(|((at, _), _)| *at == hop);
            all.map(|(_, covered)| *covered).max().unwrap_or(0)
        };
        match way.iter().position(|hop| seen(hop) && most(*hop) < bytes) {
            Some(at) => Fate::Partly(at),
            None => Fate::Passed,
        }
    }
}

/// Bytes two ranges of sequence numbers share; they are taken modulo 2^32 (RFC 9293, 3.4).
fn overlap((a, a_bytes): (u32, u32), (b, b_bytes): (u32, u32)) -> u32 {
    let ahead = b.wrapping_sub(a);
    if ahead < a_bytes {
        return b_bytes.min(a_bytes - ahead);
    }
    let ahead = a.wrapping_sub(b);
    if ahead < b_bytes { a_bytes.min(b_bytes - ahead) } else { 0 }
}
