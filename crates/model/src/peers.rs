//! The leases of all nodes, as one snapshot that is cheap to hand around, to change and to compare.
//!
//! Sorted in chunks that snapshots share: a change copies one chunk and the list of chunks, a comparison
//! with an earlier snapshot passes over the chunks that are still the same. So one node's news costs the
//! same in a cluster of ten and of ten thousand.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::lease::{Lease, Subnets};

/// Leases in one chunk, at most; a full one becomes two.
const CHUNK: usize = 128;

type Chunk = Vec<Arc<Lease>>;

/// Every lease a store knows, own one included, as of one revision. Cloning copies a pointer.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    /// Sorted by subnets, none of them empty.
    chunks: Arc<Vec<Arc<Chunk>>>,
    len: usize,
    revision: u64,
}

/// One change of the registry. An event is a hint: a `Snapshot` may follow at any time and wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A lease was written.
    Put(Lease),
    /// A lease was deleted or ran out.
    Removed(Subnets),
}

impl Peers {
    /// Replaces everything by the complete content of the store. Gives whether anything changed. Leases that
    /// stay as they are stay the same in memory, too.
    pub fn reset(&mut self, leases: impl IntoIterator<Item = Lease>) -> bool {
        let next: BTreeMap<Subnets, Lease> = leases.into_iter().map(|l| (l.subnets, l)).collect();
        let same = next.len() == self.len && self.iter().eq(next.values());
        if same {
            return false;
        }
        let kept = |lease: Lease| match self.shared(&lease.subnets) {
            Some(old) if **old == lease => Arc::clone(old),
            _ => Arc::new(lease),
        };
        let all: Vec<Arc<Lease>> = next.into_values().map(kept).collect();
        self.len = all.len();
        // Half full, so that the next changes fit.
        self.chunks = Arc::new(all.chunks(CHUNK / 2).map(|chunk| Arc::new(chunk.to_vec())).collect());
        self.revision += 1;
        true
    }

    /// Applies one change. A renewal that alters nothing is not a change (F-41).
    pub fn apply(&mut self, change: Change) -> bool {
        let key = match &change {
            Change::Put(lease) => lease.subnets,
            Change::Removed(subnets) => *subnets,
        };
        let (at, found) = self.place(&key);
        match change {
            Change::Put(lease) => {
                if found.is_ok_and(|n| *self.chunks[at][n] == lease) {
                    return false;
                }
                let chunks = Arc::make_mut(&mut self.chunks);
                if chunks.is_empty() {
                    chunks.push(Arc::default());
                }
                let chunk = Arc::make_mut(&mut chunks[at]);
                match found {
                    Ok(n) => chunk[n] = Arc::new(lease),
                    Err(n) => {
                        chunk.insert(n, Arc::new(lease));
                        self.len += 1;
                    }
                }
                if chunk.len() > CHUNK {
                    let upper = chunk.split_off(CHUNK / 2);
                    chunks.insert(at + 1, Arc::new(upper));
                }
            }
            Change::Removed(_) => {
                let Ok(n) = found else { return false };
                let chunks = Arc::make_mut(&mut self.chunks);
                let chunk = Arc::make_mut(&mut chunks[at]);
                chunk.remove(n);
                if chunk.is_empty() {
                    chunks.remove(at);
                }
                self.len -= 1;
            }
        }
        self.revision += 1;
        true
    }

    /// The chunk a lease is in or would go into, and its place there.
    fn place(&self, subnets: &Subnets) -> (usize, Result<usize, usize>) {
        let before = |chunk: &Arc<Chunk>| chunk.last().is_some_and(|last| last.subnets < *subnets);
        let at = self.chunks.partition_point(before).min(self.chunks.len().saturating_sub(1));
        let found = self.chunks.get(at).map(|chunk| chunk.binary_search_by_key(subnets, |l| l.subnets));
        (at, found.unwrap_or(Err(0)))
    }

    fn shared(&self, subnets: &Subnets) -> Option<&Arc<Lease>> {
        let (at, found) = self.place(subnets);
        self.chunks.get(at)?.get(found.ok()?)
    }

    /// Goes up with every real change; equal revisions of one `Peers` mean equal content.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The lease that owns exactly these subnets.
    pub fn get(&self, subnets: &Subnets) -> Option<&Lease> {
        self.shared(subnets).map(|l| &**l)
    }

    /// All leases in order of their subnets.
    pub fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.iter_shared().map(|l| &**l)
    }

    /// All leases in order of their subnets, to be kept without copying them.
    pub fn iter_shared(&self) -> impl Iterator<Item = &Arc<Lease>> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// What has to be done to come from `before` to this: leases written, and subnets of leases that are gone,
    /// in order. Cheap where the two share their history, right in any case.
    pub fn changes(&self, before: &Peers) -> Vec<(Subnets, Option<Arc<Lease>>)> {
        let (mut new, mut old) = (Cursor::of(self), Cursor::of(before));
        let mut out = Vec::new();
        loop {
            while let (Some(a), Some(b)) = (new.whole(), old.whole())
                && Arc::ptr_eq(a, b)
            {
                new.skip();
                old.skip();
            }
            match (new.get(), old.get()) {
                (None, None) => return out,
                (Some(a), Some(b)) if a.subnets == b.subnets => {
                    if !Arc::ptr_eq(a, b) && a != b {
                        out.push((a.subnets, Some(Arc::clone(a))));
                    }
                    new.step();
                    old.step();
                }
                (Some(a), b) if b.is_none_or(|b| a.subnets < b.subnets) => {
                    out.push((a.subnets, Some(Arc::clone(a))));
                    new.step();
                }
                (_, Some(b)) => {
                    out.push((b.subnets, None));
                    old.step();
                }
                // Of two that are there one goes first or they are equal.
                (Some(_), None) => return out,
            }
        }
    }

    /// How many leases there are, the own one included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the store holds no lease at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// A place in a snapshot.
struct Cursor<'a> {
    chunks: &'a [Arc<Chunk>],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn of(peers: &'a Peers) -> Cursor<'a> {
        Cursor { chunks: &peers.chunks, at: 0 }
    }

    fn get(&self) -> Option<&'a Arc<Lease>> {
        self.chunks.first()?.get(self.at)
    }

    /// The chunk whose beginning this is.
    fn whole(&self) -> Option<&'a Arc<Chunk>> {
        self.chunks.first().filter(|_| self.at == 0)
    }

    fn skip(&mut self) {
        self.chunks = &self.chunks[1..];
        self.at = 0;
    }

    fn step(&mut self) {
        self.at += 1;
        if self.chunks.first().is_some_and(|chunk| self.at == chunk.len()) {
            self.skip();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    fn lease(n: u32, last: u8) -> Lease {
        let net = ipnet::Ipv4Net::new((0x0a00_0000 + (n << 8)).into(), 24).expect("a length");
        let mut lease = Lease { subnets: Subnets { v4: Some(net), v6: None }, ..Lease::default() };
        lease.attrs.public_ip = Some([192, 0, 2, last].into());
        lease
    }

    /// The clever structure against a stupid one, and changes against what they say they do.
    #[test]
    fn random_changes_agree_with_a_map() {
        for seed in 0..20 {
            let mut random = Random::new(seed);
            let (mut peers, mut map) = (Peers::default(), BTreeMap::new());
            let mut before = (peers.clone(), map.clone());
            for round in 0..400u32 {
                let n = random.below(if seed % 2 == 0 { 40 } else { 700 }) as u32;
                let key = lease(n, 0).subnets;
                let revision = peers.revision();
                let changed = match random.below(10) {
                    0..6 => {
                        let lease = lease(n, random.below(3) as u8);
                        let changed = map.insert(key, lease.clone()) != Some(lease.clone());
                        assert_eq!(peers.apply(Change::Put(lease)), changed);
                        changed
                    }
                    6..9 => {
                        let changed = map.remove(&key).is_some();
                        assert_eq!(peers.apply(Change::Removed(key)), changed);
                        changed
                    }
                    _ => {
                        let all: Vec<Lease> = (0..n).map(|n| lease(n, 1)).collect();
                        let next: BTreeMap<Subnets, Lease> =
                            all.iter().map(|l| (l.subnets, l.clone())).collect();
                        let changed = next != map;
                        map = next;
                        assert_eq!(peers.reset(all), changed);
                        changed
                    }
                };
                assert_eq!(peers.revision() != revision, changed);
                assert!(peers.iter().eq(map.values()) && peers.len() == map.len());
                assert_eq!(peers.get(&key), map.get(&key));
                if round % 7 == 0 {
                    let mut replay: BTreeMap<Subnets, Lease> = before.1;
                    let changes = peers.changes(&before.0);
                    assert!(changes.windows(2).all(|pair| pair[0].0 < pair[1].0), "in order, each once");
                    for (subnets, lease) in changes {
                        let old = match lease {
                            Some(lease) => {
                                replay.insert(subnets, (*lease).clone()).filter(|old| *old == *lease)
                            }
                            None => replay.remove(&subnets).map_or(Some(Lease::default()), |_| None),
                        };
                        assert_eq!(old, None, "only what differs");
                    }
                    assert_eq!(replay, map);
                    before = (peers.clone(), map.clone());
                }
            }
        }
    }

    #[test]
    fn one_change_copies_one_chunk() {
        let mut peers = Peers::default();
        peers.reset((0..10_000).map(|n| lease(n, 1)));
        let before = peers.clone();
        assert!(peers.apply(Change::Put(lease(5_000, 2))));
        let shared = peers.chunks.iter().zip(before.chunks.iter()).filter(|(a, b)| Arc::ptr_eq(a, b)).count();
        assert_eq!(shared + 1, before.chunks.len());
        assert_eq!(peers.changes(&before).len(), 1);
        // A list that says the same again keeps the leases in memory.
        let kept = |peers: &Peers| Arc::as_ptr(peers.iter_shared().next().expect("many"));
        assert!(peers.reset((0..9_999).map(|n| lease(n, 1))));
        assert_eq!(kept(&peers), kept(&before));
    }
}
