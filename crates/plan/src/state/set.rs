//! Many objects, by their keys.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use model::IfName;

use super::{Element, Key, Link, Object, SetKey, TableKey};

/// A set of kernel objects, at most one for each key, ordered by [`Key`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    objects: BTreeMap<Key, Object>,
}

impl State {
    /// Adds or replaces one object.
    pub fn put(&mut self, object: Object) {
        self.objects.insert(object.key(), object);
    }

    /// Adds or replaces many, which stand in the order of their keys, each key once.
    pub(crate) fn put_sorted(&mut self, more: Vec<(Key, Object)>) {
        let mut before = std::mem::replace(&mut self.objects, more.into_iter().collect());
        if before.len() < self.objects.len() / 4 {
            for (key, object) in before {
                self.objects.entry(key).or_insert(object);
            }
        } else {
            before.append(&mut self.objects);
            self.objects = before;
        }
    }

    /// Removes an object; with a table the elements of its sets.
    pub fn remove(&mut self, key: &Key) -> Option<Object> {
        if let Key::Nft(table) = key {
            let elements: Vec<Key> = self.elements(table).map(|(key, _)| key.clone()).collect();
            elements.iter().for_each(|key| drop(self.objects.remove(key)));
        }
        self.objects.remove(key)
    }

    /// Elements of the sets of a table.
    pub fn elements(&self, table: &TableKey) -> impl Iterator<Item = (&Key, &Object)> {
        let set = SetKey { table: table.clone(), name: String::new() };
        let first = Element { set: Arc::new(set), address: IpAddr::from([0; 4]) };
        let of_table = |(key, _): &(&Key, &Object)| matches!(key, Key::Element(e) if e.set.table == *table);
        self.objects.range(Key::Element(first)..).take_while(of_table)
    }

    /// Removes every object for which `keep` is false.
    pub fn retain(&mut self, mut keep: impl FnMut(&Key, &Object) -> bool) {
        self.objects.retain(|key, object| keep(key, object));
    }

    /// The object under a key.
    pub fn get(&self, key: &Key) -> Option<&Object> {
        self.objects.get(key)
    }

    /// A device by name.
    pub fn link(&self, name: IfName) -> Option<&Link> {
        match self.objects.get(&Key::Link(name)) {
            Some(Object::Link(link)) => Some(link),
            _ => None,
        }
    }

    /// All objects in creation order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&Key, &Object)> {
        self.objects.iter()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }
}

impl FromIterator<Object> for State {
    fn from_iter<T: IntoIterator<Item = Object>>(objects: T) -> State {
        let mut state = State::default();
        state.extend(objects);
        state
    }
}

impl Extend<Object> for State {
    /// As [`State::put`] with one after the other. Where many come to few the tree is built of all, in order, in place of
    /// a search for each; that leaves its nodes full, too.
    fn extend<T: IntoIterator<Item = Object>>(&mut self, objects: T) {
        let mut more: Vec<(Key, Object)> = objects.into_iter().map(|o| (o.key(), o)).collect();
        if more.len() < 64 || more.len() < self.objects.len() / 4 {
            return self.objects.extend(more);
        }
        if !more.is_sorted_by(|(a, _), (b, _)| a < b) {
            more.sort_by(|(a, _), (b, _)| a.cmp(b));
            // Of several under one key the last stays.
            more.reverse();
            more.dedup_by(|(earlier, _), (last, _)| earlier == last);
            more.reverse();
        }
        self.put_sorted(more);
    }
}

impl IntoIterator for State {
    type Item = Object;
    type IntoIter = std::collections::btree_map::IntoValues<Key, Object>;

    fn into_iter(self) -> Self::IntoIter {
        self.objects.into_values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sysctl(path: usize, value: usize) -> Object {
        Object::Sysctl { path: format!("{path:04}"), value: value.to_string() }
    }

    #[test]
    fn many_at_once_are_as_one_after_the_other() {
        for (there, more) in [(0, 5), (0, 500), (30, 100), (400, 30), (400, 60), (400, 900)] {
            // Some twice, some over what is there, in no order.
            let more: Vec<Object> = (0..more).map(|n| sysctl(n * 7919 % 611, n)).collect();
            let before: State = (0..there).map(|n| sysctl(n, 9_999)).collect();
            let (mut one, mut all) = (before.clone(), before);
            more.iter().for_each(|object| one.put(object.clone()));
            all.extend(more);
            assert_eq!(one, all, "{there}");
            assert_eq!(all.iter().count(), all.len());
        }
    }
}
