//! All that all peers want, put together at once: sorted, and the tables made of that, where one peer after the other
//! would search a place in each of them for each object. For when no two want the same with other values.

use std::collections::{BTreeMap, HashMap};
use std::mem::discriminant;

use model::Subnets;

use super::{Entry, OrderMatters, is_shared, lay, wants_many};
use crate::backend::{Half, Hop};
use crate::state::{Key, Object, State};

/// What becomes of an `Assembly` in which there was nothing of peers.
pub(super) struct Laid {
    /// In the order of their keys.
    pub objects: Vec<(Key, Object)>,
    /// In the order of their keys.
    pub shared: Vec<(Key, (Subnets, usize))>,
    pub peers: Vec<(Subnets, Entry)>,
    pub rejected: BTreeMap<Subnets, Vec<String>>,
    pub hops: usize,
    pub many: bool,
}

/// Objects of one kind in the order of their peers, and the numbers of these.
#[derive(Default)]
struct Kind {
    objects: Vec<(Key, Object)>,
    peers: Vec<usize>,
}

/// Objects kind by kind, for most kinds come in the order of their keys.
#[derive(Default)]
struct Heap(Vec<Kind>);

impl Heap {
    fn push(&mut self, key: Key, object: Object, peer: usize) {
        let same = |kind: &Kind| discriminant(kind.first()) == discriminant(&key);
        let at = self.0.iter().position(same).unwrap_or_else(|| {
            self.0.push(Kind::default());
            self.0.len() - 1
        });
        self.0[at].objects.push((key, object));
        self.0[at].peers.push(peer);
    }
}

impl Kind {
    /// There is one in each.
    fn first(&self) -> &Key {
        &self.objects[0].0
    }

    /// Places in the order of keys, and of peers under the same key.
    fn order(&self) -> Vec<usize> {
        let key = |at: &usize| &self.objects[*at].0;
        let mut order: Vec<usize> = (0..self.objects.len()).collect();
        order.sort_by(|a, b| key(a).cmp(key(b)));
        order
    }
}

impl Laid {
    /// `halves` are the peers in order, `base` what is wanted whoever they are.
    pub fn of(
        halves: impl Iterator<Item = (Subnets, Vec<Result<Half, String>>)>,
        many: bool,
        base: &State,
    ) -> Result<Laid, OrderMatters> {
        let mut heap = Heap::default();
        let mut peers: Vec<(Subnets, Entry)> = Vec::new();
        let mut ways: Vec<(usize, Hop)> = Vec::new();
        let mut rejected: BTreeMap<Subnets, Vec<String>> = BTreeMap::new();
        for (number, (subnets, halves)) in halves.enumerate() {
            let mut entry = Entry::default();
            for half in halves {
                match half {
                    Ok(half) => {
                        // Those of the way come later.
                        entry.keys.reserve(half.entries.len() + 2);
                        for object in half.entries {
                            let key = object.key();
                            entry.keys.push(key.clone());
                            heap.push(key, object, number);
                        }
                        entry.hops += usize::from(half.hop.is_some());
                        ways.extend(half.hop.map(|hop| (number, hop)));
                    }
                    Err(reason) => rejected.entry(subnets).or_default().push(reason),
                }
            }
            peers.push((subnets, entry));
        }
        let many = wants_many(ways.len(), many);
        let hops = ways.len();
        let mut nexthops = HashMap::new();
        for (number, hop) in ways {
            for object in lay(hop, many, |id| nexthops.get(&id)).into_iter().flatten() {
                if let Object::Nexthop(nexthop) = &object {
                    nexthops.insert(nexthop.id, *nexthop);
                }
                let key = object.key();
                peers[number].1.keys.push(key.clone());
                heap.push(key, object, number);
            }
        }
        let mut laid = Laid { objects: Vec::new(), shared: Vec::new(), peers, rejected, hops, many };
        laid.sort(heap, base)?;
        Ok(laid)
    }

    fn sort(&mut self, mut heap: Heap, base: &State) -> Result<(), OrderMatters> {
        heap.0.sort_by(|a, b| a.first().cmp(b.first()));
        self.objects.reserve(heap.0.iter().map(|kind| kind.objects.len()).sum());
        for mut kind in heap.0 {
            let like = discriminant(kind.first());
            // Where the base has the kind, it may have the object.
            let based = base.iter().any(|(key, _)| discriminant(key) == like);
            let clashes =
                |key: &Key, object: &Object| based && base.get(key).is_some_and(|have| have != object);
            if !is_shared(kind.first()) && kind.objects.is_sorted_by(|(a, _), (b, _)| a < b) {
                if based && kind.objects.iter().any(|(key, object)| clashes(key, object)) {
                    return Err(OrderMatters);
                }
                self.objects.append(&mut kind.objects);
                continue;
            }
            for same in kind.order().chunk_by(|a, b| kind.objects[*a].0 == kind.objects[*b].0) {
                let (key, object) = &kind.objects[same[0]];
                if same[1..].iter().any(|at| kind.objects[*at].1 != *object) || clashes(key, object) {
                    return Err(OrderMatters);
                }
                if is_shared(key) {
                    let first = self.peers[kind.peers[same[0]]].0;
                    self.shared.push((key.clone(), (first, same.len())));
                }
                self.objects.push((key.clone(), object.clone()));
            }
        }
        Ok(())
    }
}
