//! All that all peers want, put together at once: sorted, and the tables made of that, where one peer after the other
//! would search a place in each of them for each object. For when no two want the same with other values.

use std::collections::{BTreeMap, HashMap};

use model::Subnets;

use super::{Halves, OrderMatters, is_shared, lay};
use crate::state::{Key, Nexthop, Object, State};

/// What becomes of an `Assembly` in which there was nothing of peers.
pub(super) struct Laid {
    /// Kind by kind, each in the order of its keys.
    pub objects: Vec<Vec<(Key, Object)>>,
    /// What several want, in the order of their keys.
    pub shared: Vec<(Key, (Subnets, usize))>,
    pub rejected: BTreeMap<Subnets, Vec<String>>,
    pub hops: usize,
    pub many: bool,
}

/// Objects of one kind in the order of their peers, and these where several may want the same.
#[derive(Default)]
struct Kind {
    objects: Vec<(Key, Object)>,
    peers: Vec<Subnets>,
}

/// Objects kind by kind, for most kinds come in the order of their keys.
#[derive(Default)]
struct Heap(Vec<Kind>);

impl Heap {
    fn push(&mut self, object: Object, peer: Subnets) {
        let key = object.key();
        let same = |kind: &Kind| kind.first().rank() == key.rank();
        let at = self.0.iter().position(same).unwrap_or_else(|| {
            self.0.push(Kind::default());
            self.0.len() - 1
        });
        if is_shared(&key) {
            self.0[at].peers.push(peer);
        }
        self.0[at].objects.push((key, object));
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
    /// `halves` are the peers in order, `base` what is wanted whoever they are; `many` says whether routes go by nexthop
    /// objects; whether they had to, [`Laid::hops`] says. Nexthops that share a number take others with a table in which to
    /// look for it, and without are two of one number that differ.
    pub fn of(
        halves: impl Iterator<Item = (Subnets, Halves)>,
        many: bool,
        mut known: Option<HashMap<u32, Nexthop>>,
        base: &State,
    ) -> Result<Laid, OrderMatters> {
        let mut heap = Heap::default();
        let mut hops = 0;
        let mut rejected: BTreeMap<Subnets, Vec<String>> = BTreeMap::new();
        for (subnets, halves) in halves {
            for half in halves.into_iter().flatten() {
                match half {
                    Ok(half) => {
                        half.entries.into_iter().for_each(|object| heap.push(object, subnets));
                        let Some(hop) = half.hop else { continue };
                        hops += 1;
                        let way = lay(hop, many, |id| known.as_ref().and_then(|known| known.get(&id)));
                        for object in way.into_iter().flatten() {
                            if let (Some(known), Object::Nexthop(nexthop)) = (&mut known, &object) {
                                known.insert(nexthop.id, *nexthop);
                            }
                            heap.push(object, subnets);
                        }
                    }
                    Err(reason) => rejected.entry(subnets).or_default().push(reason),
                }
            }
        }
        let mut laid = Laid { objects: Vec::new(), shared: Vec::new(), rejected, hops, many };
        laid.sort(heap, base)?;
        Ok(laid)
    }

    fn sort(&mut self, mut heap: Heap, base: &State) -> Result<(), OrderMatters> {
        // So that what is shared is in the order of its keys.
        heap.0.sort_by_key(|kind| kind.first().rank());
        for kind in heap.0 {
            // Where the base has the kind, it may have the object.
            let based = base.has_kind(kind.first());
            let clashes =
                |key: &Key, object: &Object| based && base.get(key).is_some_and(|have| have != object);
            let counts = based && is_shared(kind.first());
            if !counts && kind.objects.is_sorted_by(|(a, _), (b, _)| a < b) {
                if based && kind.objects.iter().any(|(key, object)| clashes(key, object)) {
                    return Err(OrderMatters);
                }
                self.objects.push(kind.objects);
                continue;
            }
            let mut sorted = Vec::with_capacity(kind.objects.len());
            for same in kind.order().chunk_by(|a, b| kind.objects[*a].0 == kind.objects[*b].0) {
                let (key, object) = &kind.objects[same[0]];
                if same[1..].iter().any(|at| kind.objects[*at].1 != *object) || clashes(key, object) {
                    return Err(OrderMatters);
                }
                let wanted = same.len() + usize::from(based && base.get(key).is_some());
                if is_shared(key) && wanted > 1 {
                    self.shared.push((key.clone(), (kind.peers[same[0]], wanted)));
                }
                sorted.push((key.clone(), object.clone()));
            }
            self.objects.push(sorted);
        }
        Ok(())
    }
}
