//! All Nodes in a few hundred bytes each, and what becomes of them in the view: a lease where a Node takes
//! part and its pod CIDR is its own, and a sentence where something is wrong.

use std::collections::{BTreeMap, BTreeSet};

use model::claims::nodes::{Claim, Granted, grant};
use model::codec::annotation::{Annotations, Names};
use model::{Family, IpNet, Lease, LeaseAttrs, Subnets};

use super::object::Node;
use crate::mirror::Mirror;

/// What we have published, or are about to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mine {
    pub(super) attrs: LeaseAttrs,
    pub(super) subnets: Subnets,
}

/// A Node, reduced.
#[derive(Debug, Default)]
struct Entry {
    uid: Box<str>,
    created: Box<str>,
    subnets: Subnets,
    /// What it says of itself; `None` = it takes no part.
    said: Option<LeaseAttrs>,
    /// What is wrong with its specification or its annotations.
    wrong: Option<Box<str>>,
    granted: Granted,
    /// The list it was last in.
    list: u32,
}

impl Entry {
    /// Whether a claim is decided by other things than before.
    fn claims_else(&self, old: &Entry) -> bool {
        self.subnets != old.subnets || self.created != old.created
    }
}

/// Every Node there is.
pub(super) struct Nodes<'a> {
    names: &'a Names,
    own: String,
    entries: BTreeMap<String, Entry>,
    /// Our own annotations as they are.
    own_annotations: Option<Annotations>,
    /// Pod CIDRs, Nodes or networks changed: all have to be judged again.
    judge: bool,
    changed: BTreeSet<String>,
    list: u32,
    networks: Option<Vec<IpNet>>,
}

impl<'a> Nodes<'a> {
    pub(super) fn new(names: &'a Names, own: String) -> Nodes<'a> {
        Nodes {
            names,
            own,
            entries: BTreeMap::new(),
            own_annotations: None,
            judge: true,
            changed: BTreeSet::new(),
            list: 0,
            networks: None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether our Node exists.
    pub(super) fn has_own(&self) -> bool {
        self.entries.contains_key(&self.own)
    }

    /// What is put from here on is a complete list.
    pub(super) fn begin_list(&mut self) {
        self.list += 1;
    }

    /// The list is complete: who was not in it is gone.
    pub(super) fn end_list(&mut self) {
        let list = self.list;
        self.entries.retain(|_, entry| entry.list == list);
        if !self.has_own() {
            self.own_annotations = None;
        }
        self.judge = true;
    }

    /// A Node was made or changed.
    pub(super) fn put(&mut self, node: &Node) {
        let old = self.entries.get(&node.name);
        // Another one of the same name has no past.
        let before = old.filter(|old| *old.uid == *node.uid);
        let mut wrong = Vec::new();
        let subnets = node.subnets().unwrap_or_else(|why| {
            wrong.push(why);
            Subnets::default()
        });
        let said = node.annotations.managed().then(|| {
            let (attrs, why) = node.annotations.read(self.names, before.and_then(|old| old.said.as_ref()));
            wrong.extend(why);
            attrs
        });
        let mut entry = Entry {
            uid: node.uid.as_str().into(),
            created: node.created.as_str().into(),
            subnets,
            said,
            wrong: (!wrong.is_empty()).then(|| wrong.join("; ").into()),
            granted: Granted::default(),
            list: self.list,
        };
        match old {
            Some(old) if !entry.claims_else(old) => {
                entry.granted = old.granted.clone();
                if (&entry.said, &entry.wrong) != (&old.said, &old.wrong) {
                    self.changed.insert(node.name.clone());
                }
            }
            _ => self.judge = true,
        }
        if node.name == self.own && self.own_annotations.as_ref() != Some(&node.annotations) {
            self.own_annotations = Some(node.annotations.clone());
            self.changed.insert(node.name.clone());
        }
        self.entries.insert(node.name.clone(), entry);
    }

    /// A Node was deleted.
    pub(super) fn remove(&mut self, name: &str) {
        self.judge |= self.entries.remove(name).is_some();
        if name == self.own {
            self.own_annotations = None;
        }
    }

    /// What we publish ourselves changed.
    pub(super) fn look_at_own(&mut self) {
        self.changed.insert(self.own.clone());
    }

    /// Brings a view up to date.
    pub(super) fn flush(&mut self, mirror: &mut Mirror<'_>, networks: Option<&[IpNet]>, mine: Option<&Mine>) {
        if networks != self.networks.as_deref() {
            self.networks = networks.map(<[IpNet]>::to_vec);
            self.judge = true;
        }
        if std::mem::take(&mut self.judge) {
            self.changed.clear();
            self.grant();
            let places = self.entries.iter().map(|(name, entry)| {
                let (lease, wrong) = self.place(name, entry, mine);
                (name.clone(), lease, wrong)
            });
            mirror.replace(places);
            return;
        }
        for name in std::mem::take(&mut self.changed) {
            match self.entries.get(&name) {
                Some(entry) => {
                    let (lease, wrong) = self.place(&name, entry, mine);
                    mirror.place(&name, lease, wrong);
                }
                None => mirror.remove(&name),
            }
        }
    }

    fn grant(&mut self) {
        let claims: Vec<Claim<'_>> = self
            .entries
            .iter()
            .map(|(name, entry)| Claim { name, created: &entry.created, subnets: entry.subnets })
            .collect();
        let granted = grant(&claims, Some(&self.own), self.networks.as_deref());
        for (entry, granted) in self.entries.values_mut().zip(granted) {
            entry.granted = granted;
        }
    }

    /// The lease that counts for a Node, and what is wrong.
    fn place(&self, name: &str, entry: &Entry, mine: Option<&Mine>) -> (Option<Lease>, Option<String>) {
        let own = name == self.own;
        if entry.said.is_none() && !own {
            return (None, None);
        }
        let subnets = entry.granted.subnets;
        let mut wrong: Vec<String> = Vec::new();
        wrong.extend(entry.wrong.as_ref().map(|why| format!("Node {name}: {why}")));
        wrong.extend(entry.granted.refused.clone());
        if entry.wrong.is_none() {
            let missing = self.enabled().filter(|family| entry.subnets.of(*family).is_none());
            wrong.extend(missing.map(|family| format!("Node {name} has no {family} podCIDR")));
        }
        let mut attrs = entry.said.clone();
        if let (true, Some(mine)) = (own, mine) {
            // Others see what overwriting annotations say; we know what we said. Anything else there is
            // somebody's hand, and then it is not our lease.
            let (changes, complaint) = match &self.own_annotations {
                Some(annotations) => annotations.changes(self.names, &mine.attrs),
                None => (Vec::new(), None),
            };
            wrong.extend(complaint.map(|why| format!("Node {name}: {why}")));
            let ours = changes.is_empty() && self.own_annotations.is_some() && mine.subnets == subnets;
            attrs = ours.then(|| mine.attrs.clone());
        }
        let lease = attrs.filter(|_| subnets != Subnets::default()).map(|attrs| Lease { subnets, attrs });
        (lease, (!wrong.is_empty()).then(|| wrong.join("; ")))
    }

    fn enabled(&self) -> impl Iterator<Item = Family> {
        self.networks.iter().flatten().map(|net| Family::of_net(*net))
    }
}
