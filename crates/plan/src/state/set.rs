//! Many objects, by their keys.

use std::mem::discriminant;
use std::net::IpAddr;
use std::sync::Arc;

use model::IfName;

use super::kind::Kind;
use super::{Element, Key, Link, Object, SetKey, TableKey};
use crate::Step;

/// A set of kernel objects, at most one for each key, ordered by [`Key`]. Copies share what none of them changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Kind by kind, in the order of [`Key::rank`].
    kinds: [Kind; Key::RANKS],
}

impl State {
    fn kind(&self, key: &Key) -> &Kind {
        &self.kinds[key.rank()]
    }

    fn kind_mut(&mut self, key: &Key) -> &mut Kind {
        &mut self.kinds[key.rank()]
    }

    /// Adds or replaces one object.
    pub fn put(&mut self, object: Object) {
        let key = object.key();
        self.kind_mut(&key).put(key, object);
    }

    /// Adds or replaces many of one kind, which stand in the order of their keys, each key once.
    pub(crate) fn put_sorted(&mut self, more: Vec<(Key, Object)>) {
        if let Some((first, _)) = more.first() {
            self.kind_mut(first).put_sorted(more);
        }
    }

    /// What the plain ones among these steps put, see [`Step::is_plain`]. They put objects of `wanted`, each once: a kind of
    /// which all is put is that of `wanted`.
    pub fn put_by(steps: &[Step], wanted: &State) -> State {
        fn put(step: &Step) -> Option<&Object> {
            if let Step::Put(object) = step
                && step.is_plain()
            {
                Some(object)
            } else {
                None
            }
        }
        debug_assert!(
            steps.iter().filter_map(put).all(|object| wanted.get(&object.key()) == Some(object)),
            "a step that does not lead to what is wanted"
        );
        // Kind by kind, as they come: a key for each would have to be made to be looked at.
        let of_a_kind = |a: &Step, b: &Step| match (put(a), put(b)) {
            (Some(a), Some(b)) => discriminant(a) == discriminant(b),
            _ => false,
        };
        let kinds = || steps.chunk_by(of_a_kind).filter_map(|kind| Some((put(&kind[0])?.key().rank(), kind)));
        let mut counts = [0; Key::RANKS];
        kinds().for_each(|(rank, kind)| counts[rank] += kind.len());
        let is_whole = |rank: usize| counts[rank] == wanted.kinds[rank].len();
        let some = kinds().filter(|(rank, _)| !is_whole(*rank)).flat_map(|(_, kind)| kind);
        let mut state: State = some.filter_map(put).cloned().collect();
        for (rank, kind) in state.kinds.iter_mut().enumerate().filter(|(rank, _)| is_whole(*rank)) {
            kind.clone_from(&wanted.kinds[rank]);
        }
        state
    }

    /// Adds or replaces all of another one.
    pub fn append(&mut self, more: State) {
        for (there, more) in self.kinds.iter_mut().zip(more.kinds) {
            if there.is_empty() { *there = more } else { there.put_sorted(more.into_sorted()) }
        }
    }

    /// Takes of another one the kinds that are equal, so that both are in memory once.
    pub fn share(&mut self, other: &State) {
        for (kind, other) in self.kinds.iter_mut().zip(&other.kinds).filter(|(kind, other)| kind == other) {
            kind.clone_from(other);
        }
    }

    /// Removes an object; with a table the elements of its sets.
    pub fn remove(&mut self, key: &Key) -> Option<Object> {
        if let Key::Nft(table) = key {
            let elements: Vec<Key> = self.elements(table).map(|(key, _)| key.clone()).collect();
            elements.iter().for_each(|key| drop(self.kind_mut(key).remove(key)));
        }
        self.kind_mut(key).remove(key)
    }

    /// Elements of the sets of a table.
    pub fn elements(&self, table: &TableKey) -> impl Iterator<Item = (&Key, &Object)> {
        let set = SetKey { table: table.clone(), name: String::new() };
        let first = Key::Element(Element { set: Arc::new(set), address: IpAddr::from([0; 4]) });
        let of_table = |(key, _): &(&Key, &Object)| matches!(key, Key::Element(e) if e.set.table == *table);
        self.kind(&first).range(&first).take_while(of_table)
    }

    /// Removes every object for which `keep` is false.
    pub fn retain(&mut self, mut keep: impl FnMut(&Key, &Object) -> bool) {
        self.kinds.iter_mut().for_each(|kind| kind.retain(&mut keep));
    }

    /// The object under a key.
    pub fn get(&self, key: &Key) -> Option<&Object> {
        self.kind(key).get(key)
    }

    /// A device by name.
    pub fn link(&self, name: IfName) -> Option<&Link> {
        match self.get(&Key::Link(name)) {
            Some(Object::Link(link)) => Some(link),
            _ => None,
        }
    }

    /// All objects in creation order.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Object)> {
        self.kinds.iter().flat_map(Kind::iter)
    }

    /// Whether there is any object of the kind a key is of.
    pub(crate) fn has_kind(&self, key: &Key) -> bool {
        !self.kind(key).is_empty()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.kinds.iter().map(Kind::len).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.kinds.iter().all(Kind::is_empty)
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
    /// As [`State::put`] with one after the other.
    fn extend<T: IntoIterator<Item = Object>>(&mut self, objects: T) {
        let mut kinds = [const { Vec::new() }; Key::RANKS];
        for object in objects {
            let key = object.key();
            kinds[key.rank()].push((key, object));
        }
        for mut more in kinds {
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
}

impl IntoIterator for State {
    type Item = Object;
    type IntoIter = std::vec::IntoIter<Object>;

    fn into_iter(self) -> Self::IntoIter {
        let objects = self.kinds.into_iter().flat_map(Kind::into_sorted).map(|(_, object)| object);
        objects.collect::<Vec<Object>>().into_iter()
    }
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;
    use model::wireguard::PublicKey;
    use model::{Family, Mac};

    use super::*;
    use crate::state::{
        CommandKey, Direction, IkeKey, IptablesKey, IptablesTable, Neigh, NftFamily, PolicyKey, RouteKey,
        Rule, Variant,
    };

    fn sysctl(path: usize, value: usize) -> Object {
        Object::Sysctl { path: format!("{path:04}"), value: value.to_string() }
    }

    /// One of each kind, in the order of creation.
    #[test]
    fn kinds_stand_in_the_order_of_their_keys() {
        let dev = IfName::fixed("eth0");
        let net: IpNet = "192.0.2.0/24".parse().expect("valid");
        let net4 = "192.0.2.0/24".parse().expect("valid");
        let address = [192, 0, 2, 1].into();
        let table = TableKey { family: NftFamily::Ip, name: String::new() };
        let set = Arc::new(SetKey { table: table.clone(), name: String::new() });
        let (variant, filter) = (Variant::Nft, IptablesTable::Filter);
        let rule =
            Rule { family: Family::V4, priority: 1, from: None, to: None, iif: None, fwmark: None, table: 1 };
        let keys = [
            Key::Nft(table),
            Key::Iptables(IptablesKey { variant, family: Family::V4, table: filter }),
            Key::Link(dev),
            Key::Tunnel(dev),
            Key::Sysctl(String::new()),
            Key::Offload(dev, ""),
            Key::Addr(dev, net),
            Key::Element(Element { set, address }),
            Key::Neigh(dev, address),
            Key::Fdb(dev, Mac([2; 6])),
            Key::WgPeer(dev, Box::new(PublicKey([1; 32]))),
            Key::TunnelPeer(dev, net4),
            Key::Nexthop(1),
            Key::Route(RouteKey { table: 1, dst: net, priority: 0 }),
            Key::Rule(Box::new(rule)),
            Key::Policy(PolicyKey { dir: Direction::In, src: net, dst: net }),
            Key::Command(CommandKey::Prepare),
            Key::Charon,
            Key::Ike(IkeKey {
                local: [192, 0, 2, 1].into(),
                local_net: net4,
                remote_net: net4,
                remote: [192, 0, 2, 2].into(),
            }),
            Key::CloudRoute(net),
        ];
        assert!(keys.is_sorted());
        assert!(keys.iter().map(Key::rank).eq(0..Key::RANKS));
    }

    /// Whether a kind is put as a whole or in part, by steps among others.
    #[test]
    fn what_steps_put_is_what_they_say() {
        let neigh = |n: u8| {
            Object::Neigh(Neigh {
                dev: IfName::fixed("flannel.1"),
                dst: [10, 0, 0, n].into(),
                mac: Mac([n; 6]),
            })
        };
        let wanted: State = (0..9).map(|n| sysctl(n, n)).chain((0..9).map(neigh)).collect();
        for (from, to) in [(0, 9), (0, 8), (3, 9), (4, 4)] {
            let old = Step::Delete(sysctl(99, 1));
            let puts = (0..9).map(|n| sysctl(n, n)).chain((from..to).map(neigh));
            let steps: Vec<Step> = [old].into_iter().chain(puts.clone().map(Step::Put)).collect();
            assert_eq!(State::put_by(&steps, &wanted), puts.collect(), "{from} to {to}");
        }
    }

    #[test]
    fn many_at_once_are_as_one_after_the_other() {
        for (there, more) in [(0, 5), (0, 500), (30, 100), (400, 30), (400, 60), (400, 900)] {
            // Some twice, some over what is there, in no order.
            let more: Vec<Object> = (0..more).map(|n| sysctl(n * 7919 % 611, n)).collect();
            let before: State = (0..there).map(|n| sysctl(n, 9_999)).collect();
            let (mut one, mut all) = (before.clone(), before);
            more.iter().for_each(|object| one.put(object.clone()));
            let mut joined = all.clone();
            joined.append(more.iter().cloned().collect());
            all.extend(more);
            assert_eq!((&one, &one), (&all, &joined), "{there}");
            assert_eq!(all.iter().count(), all.len());
        }
    }
}
