//! Objects of one kind in the order of their keys, made for tens of thousands that are put together at once and then change
//! one by one: what was put together lies in one piece, which copies share, and what changed since stands beside it
//! (decision 0255).

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Key, Object};

/// Changes that are always borne beside a piece; above, a quarter of its length. Then both become one piece.
const FEW: usize = 64;

/// At most one object for each key.
#[derive(Clone, Debug, Default)]
pub(super) struct Kind {
    /// In the order of keys, each once.
    laid: Option<Arc<Vec<(Key, Object)>>>,
    /// What stands over it; nothing under the key of an object that is gone.
    since: BTreeMap<Key, Option<Object>>,
    len: usize,
}

impl Kind {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn laid(&self) -> &[(Key, Object)] {
        self.laid.as_ref().map_or(&[], |laid| laid)
    }

    fn laid_under(&self, key: &Key) -> Option<&Object> {
        let laid = self.laid();
        laid.binary_search_by(|(other, _)| other.cmp(key)).ok().map(|at| &laid[at].1)
    }

    pub fn get(&self, key: &Key) -> Option<&Object> {
        match self.since.get(key) {
            Some(now) => now.as_ref(),
            None => self.laid_under(key),
        }
    }

    /// Adds or replaces one.
    pub fn put(&mut self, key: Key, object: Object) {
        let laid = self.laid_under(&key);
        let again = laid == Some(&object);
        let before = self.since.get(&key).map_or(laid.is_some(), Option::is_some);
        self.len += usize::from(!before);
        if again {
            // What is as it was needs nothing beside it.
            self.since.remove(&key);
        } else {
            self.since.insert(key, Some(object));
            self.join();
        }
    }

    pub fn remove(&mut self, key: &Key) -> Option<Object> {
        let gone = match self.laid_under(key).cloned() {
            Some(laid) => self.since.insert(key.clone(), None).unwrap_or(Some(laid)),
            None => self.since.remove(key).flatten(),
        };
        self.len -= usize::from(gone.is_some());
        self.join();
        gone
    }

    /// Adds or replaces many, which stand in the order of their keys, each key once.
    pub fn put_sorted(&mut self, more: Vec<(Key, Object)>) {
        if self.is_empty() && more.len() >= FEW {
            self.lay(more);
        } else if more.len() <= self.most() {
            more.into_iter().for_each(|(key, object)| self.put(key, object));
        } else {
            let before = std::mem::take(self).into_sorted();
            let since = more.into_iter().map(|(key, object)| (key, Some(object))).collect();
            let both = Kind { len: before.len(), laid: Some(Arc::new(before)), since };
            self.lay(both.into_sorted());
        }
    }

    /// Leaves those for which `keep` is true.
    pub fn retain(&mut self, keep: &mut dyn FnMut(&Key, &Object) -> bool) {
        let gone: Vec<Key> =
            self.iter().filter(|(key, object)| !keep(key, object)).map(|(key, _)| key.clone()).collect();
        if gone.len() == self.len {
            *self = Kind::default();
        }
        gone.iter().for_each(|key| drop(self.remove(key)));
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Object)> {
        merged(self.laid().iter(), self.since.iter())
    }

    /// From this key on.
    pub fn range<'a>(&'a self, from: &Key) -> impl Iterator<Item = (&'a Key, &'a Object)> + use<'a> {
        let laid = self.laid();
        let at = laid.partition_point(|(key, _)| key < from);
        merged(laid[at..].iter(), self.since.range(from..))
    }

    /// All of it as one piece. Nothing is copied that no other state shares.
    pub fn into_sorted(self) -> Vec<(Key, Object)> {
        let laid = self.laid.map(Arc::unwrap_or_clone).unwrap_or_default();
        if self.since.is_empty() {
            return laid;
        }
        let mut all = Vec::with_capacity(self.len);
        let mut since = self.since.into_iter().peekable();
        let mut put = |key, now: Option<Object>| all.extend(now.map(|object| (key, object)));
        for (key, object) in laid {
            while let Some((new, now)) = since.next_if(|(new, _)| *new < key) {
                put(new, now);
            }
            let now = since.next_if(|(new, _)| *new == key).map_or(Some(object), |(_, now)| now);
            put(key, now);
        }
        since.for_each(|(new, now)| put(new, now));
        all
    }

    fn lay(&mut self, mut sorted: Vec<(Key, Object)>) {
        debug_assert!(sorted.is_sorted_by(|(a, _), (b, _)| a < b), "not in the order of their keys");
        sorted.shrink_to_fit();
        *self = Kind { len: sorted.len(), laid: Some(Arc::new(sorted)), since: BTreeMap::new() };
    }

    /// Changes that are borne beside the piece.
    fn most(&self) -> usize {
        FEW.max(self.laid().len() / 4)
    }

    fn join(&mut self) {
        if self.since.len() > self.most() {
            let all = std::mem::take(self).into_sorted();
            self.lay(all);
        }
    }
}

/// What stands, of a piece and of what changed since.
fn merged<'a>(
    laid: impl Iterator<Item = &'a (Key, Object)>,
    since: impl Iterator<Item = (&'a Key, &'a Option<Object>)>,
) -> impl Iterator<Item = (&'a Key, &'a Object)> {
    let (mut laid, mut since) = (laid.peekable(), since.peekable());
    std::iter::from_fn(move || {
        loop {
            let order = match (laid.peek(), since.peek()) {
                (Some((old, _)), Some((new, _))) => old.cmp(new),
                (Some(_), None) => Ordering::Less,
                _ => Ordering::Greater,
            };
            if order.is_le() {
                let old = laid.next();
                if order.is_lt() {
                    return old.map(|(key, object)| (key, object));
                }
            }
            let (key, now) = since.next()?;
            if let Some(object) = now {
                return Some((key, object));
            }
        }
    })
}

impl PartialEq for Kind {
    fn eq(&self, other: &Kind) -> bool {
        let same = |(a, b)| Arc::ptr_eq(a, b) && self.since == other.since;
        self.len == other.len
            && (self.laid.as_ref().zip(other.laid.as_ref()).is_some_and(same) || self.iter().eq(other.iter()))
    }
}

impl Eq for Kind {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::testing::Random;

    fn sysctl(path: usize, value: usize) -> (Key, Object) {
        let object = Object::Sysctl { path: format!("{path:04}"), value: value.to_string() };
        (object.key(), object)
    }

    /// Whatever is done, in whatever order: the kind is what a plain map would be.
    #[test]
    fn it_is_as_a_map() {
        let mut numbers = Random(7);
        let mut random = |below: u64| numbers.below(below) as usize;
        let (mut kind, mut map) = (Kind::default(), BTreeMap::new());
        let mut copies = Vec::new();
        for turn in 0..3_000 {
            let (key, object) = sysctl(random(400), random(3));
            match random(20) {
                0..9 => {
                    kind.put(key.clone(), object.clone());
                    map.insert(key, object);
                }
                9..18 => assert_eq!(kind.remove(&key), map.remove(&key), "{turn}"),
                18 => {
                    let (first, count) = (random(400), random(300));
                    let more: Vec<_> = (first..first + count).map(|n| sysctl(n, n % 3)).collect();
                    kind.put_sorted(more.clone());
                    map.extend(more);
                }
                _ => {
                    let some = random(9) == 0;
                    let mut keep = |other: &Key, _: &Object| !some || *other < key;
                    kind.retain(&mut keep);
                    map.retain(|key, object| keep(key, object));
                }
            }
            if turn % 100 == 0 {
                // What shares a piece is not changed by what becomes of the other.
                copies.push((kind.clone(), map.clone()));
            }
            assert_eq!((kind.len(), kind.is_empty()), (map.len(), map.is_empty()), "{turn}");
            assert!(kind.iter().eq(map.iter()), "{turn}");
            let (from, _) = sysctl(random(400), 0);
            assert!(kind.range(&from).eq(map.range(&from..)), "{turn}");
            assert_eq!(kind.get(&from), map.get(&from), "{turn}");
        }
        for (kind, map) in copies {
            let mut other = Kind::default();
            other.put_sorted(map.clone().into_iter().collect());
            assert!(kind == other && kind == kind.clone() && kind.iter().eq(map.iter()));
            assert!(kind.into_sorted().into_iter().eq(map));
        }
    }

    #[test]
    fn what_is_again_as_it_was_stands_beside_nothing() {
        let mut kind = Kind::default();
        kind.put_sorted((0..500).map(|n| sysctl(n, n)).collect());
        let first = kind.clone();
        for n in 0..500 {
            let (key, object) = sysctl(n, n);
            assert_eq!(kind.remove(&key).as_ref(), Some(&object));
            assert!(kind != first);
            kind.put(key, object);
        }
        assert!(kind == first && kind.since.is_empty());
    }
}
