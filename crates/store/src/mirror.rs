//! Keeps the view of a store up to date from its raw keys and values, whichever store they come from, and
//! logs changes of its state sparingly. Knows nothing of transports.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::peers::Change;
use model::{Lease, Subnets};
use tokio::sync::watch;

use crate::View;

/// A trouble that comes and goes is logged at most this often.
const LOG_EVERY: Duration = Duration::from_secs(20);

/// Keys that hold no valid lease of which the reason is remembered. The others are left out just the same.
const MOST_REJECTED: usize = 1024;

/// What is known of a store, and where it is published.
pub(crate) struct Mirror<'a> {
    view: View,
    /// Keys of the leases in `view.peers`, to tell what a deleted or corrupted key stood for.
    known: BTreeMap<String, Subnets>,
    feed: &'a watch::Sender<View>,
    dirty: bool,
    /// For messages.
    store: String,
    /// Keys are names of nodes.
    named: bool,
    logged: Option<Instant>,
    announced: bool,
}

impl<'a> Mirror<'a> {
    pub(crate) fn new(store: String, feed: &'a watch::Sender<View>) -> Mirror<'a> {
        Mirror {
            view: View::default(),
            known: BTreeMap::new(),
            feed,
            dirty: false,
            store,
            named: false,
            logged: None,
            announced: false,
        }
    }

    /// For a store whose keys are names of nodes, which the view then tells.
    pub(crate) fn of_nodes(store: String, feed: &'a watch::Sender<View>) -> Mirror<'a> {
        Mirror { named: true, ..Mirror::new(store, feed) }
    }

    /// Takes the complete content of the store: what is not in it is gone. A key whose value cannot be
    /// read keeps the lease it last held.
    pub(crate) fn reset<K: Into<String>>(
        &mut self,
        entries: impl IntoIterator<Item = (K, Result<Lease, String>)>,
    ) {
        let last = |key: &str| self.view.peers.get(self.known.get(key)?).cloned();
        let places: Vec<_> = entries
            .into_iter()
            .map(|(key, lease)| {
                let key = key.into();
                match lease {
                    Ok(lease) => (key, Some(lease), None),
                    Err(reason) => {
                        let lease = last(&key);
                        (key, lease, Some(reason))
                    }
                }
            })
            .collect();
        self.replace(places);
    }

    /// Takes the complete content of the store, key by key: the lease that counts, if any, and what is
    /// wrong with it, if anything. No two may hold the same subnets.
    pub(crate) fn replace(
        &mut self,
        entries: impl IntoIterator<Item = (String, Option<Lease>, Option<String>)>,
    ) {
        let (mut known, mut names) = (BTreeMap::new(), BTreeMap::new());
        let mut rejected = BTreeMap::new();
        let mut leases = Vec::new();
        for (key, lease, wrong) in entries {
            if let Some(reason) = wrong.filter(|_| rejected.len() < MOST_REJECTED) {
                rejected.insert(key.clone(), reason);
            }
            if let Some(lease) = lease {
                if self.named {
                    names.insert(lease.subnets, key.as_str().into());
                }
                known.insert(key, lease.subnets);
                leases.push(lease);
            }
        }
        self.dirty |= self.view.peers.reset(leases) | !self.view.complete | (rejected != self.view.rejected);
        if names != *self.view.names {
            self.view.names = Arc::new(names);
            self.dirty = true;
        }
        self.known = known;
        self.view.complete = true;
        self.set_rejected(rejected);
    }

    /// A key was written.
    pub(crate) fn put(&mut self, key: &str, lease: Result<Lease, String>) {
        match lease {
            Ok(lease) => self.place(key, Some(lease), None),
            Err(reason) => self.complain(key, Some(reason)),
        }
    }

    /// The lease that counts for a key now, if any, and what is wrong with it, if anything.
    pub(crate) fn place(&mut self, key: &str, lease: Option<Lease>, wrong: Option<String>) {
        self.complain(key, wrong);
        let old = match &lease {
            Some(lease) => self.known.insert(key.to_owned(), lease.subnets),
            None => self.known.remove(key),
        };
        if let Some(old) = old.filter(|old| lease.as_ref().is_none_or(|lease| lease.subnets != *old)) {
            self.dirty |= self.view.peers.apply(Change::Removed(old));
            if self.named {
                Arc::make_mut(&mut self.view.names).remove(&old);
            }
        }
        if let Some(lease) = lease {
            if self.named && self.view.names.get(&lease.subnets).is_none_or(|name| **name != *key) {
                Arc::make_mut(&mut self.view.names).insert(lease.subnets, key.into());
                self.dirty = true;
            }
            self.dirty |= self.view.peers.apply(Change::Put(lease));
        }
    }

    /// A key was deleted or ran out.
    pub(crate) fn remove(&mut self, key: &str) {
        self.place(key, None, None);
    }

    /// Readers are woken by the next publication though nothing in the view changed.
    pub(crate) fn touch(&mut self) {
        self.dirty = true;
    }

    /// The store cannot be read, and why; what is known stays.
    pub(crate) fn trouble(&mut self, cause: String) {
        // Asked again with every failed try, so an outage that lasts is announced in the end.
        if !self.announced && self.logged.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
            tracing::warn!(
                topic = "watch",
                state = "begins",
                "{cause}; the {} leases known stay in force",
                self.view.peers.len()
            );
            self.logged = Some(Instant::now());
            self.announced = true;
        }
        if self.view.trouble.as_ref() == Some(&cause) {
            return;
        }
        self.view.trouble = Some(cause);
        self.dirty = true;
        self.publish();
    }

    /// The store can be read again.
    pub(crate) fn recovered(&mut self) {
        if self.view.trouble.take().is_some() {
            self.dirty = true;
            if std::mem::take(&mut self.announced) {
                tracing::info!(
                    topic = "watch",
                    state = "over",
                    "{} can be read again, {} leases",
                    self.store,
                    self.view.peers.len()
                );
            }
        }
    }

    /// Hands the view to the reader, if anything in it changed since the last time.
    pub(crate) fn publish(&mut self) {
        if std::mem::take(&mut self.dirty) {
            self.feed.send_replace(self.view.clone());
        }
    }

    /// Notes what is wrong with a key, or that nothing is.
    fn complain(&mut self, key: &str, wrong: Option<String>) {
        let there = self.view.rejected.get(key);
        if there == wrong.as_ref() || there.is_none() && self.view.rejected.len() >= MOST_REJECTED {
            return;
        }
        self.dirty = true;
        let mut rejected = self.view.rejected.clone();
        match wrong {
            Some(reason) => drop(rejected.insert(key.to_owned(), reason)),
            None => drop(rejected.remove(key)),
        }
        self.set_rejected(rejected);
    }

    /// Logs keys that have just become unreadable in one line.
    fn set_rejected(&mut self, rejected: BTreeMap<String, String>) {
        let fresh: BTreeSet<_> = rejected.keys().filter(|k| !self.view.rejected.contains_key(*k)).collect();
        if let Some(first) = fresh.first() {
            let others = match fresh.len() - 1 {
                0 => String::new(),
                n => format!(" (and {n} more)"),
            };
            let what = match self.named {
                true => format!("Node {first} is not used as it is"),
                false => format!("key {first:?} holds no valid lease, ignored"),
            };
            tracing::warn!("{}: {what}{others}: {}", self.store, rejected[*first]);
        }
        self.view.rejected = rejected;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_of_any_number_of_bad_keys_take_little_room() {
        let (feed, view) = watch::channel(View::default());
        let mut mirror = Mirror::new("a store".to_owned(), &feed);
        let bad = |number: usize| (format!("key {number:05}"), Err::<Lease, _>("it is bad".to_owned()));
        mirror.reset((0..3 * MOST_REJECTED).map(bad));
        mirror.put("one more", bad(0).1);
        mirror.publish();
        assert_eq!((view.borrow().rejected.len(), view.borrow().complete), (MOST_REJECTED, true));
        mirror.remove("key 00000");
        mirror.put("one more", bad(0).1);
        mirror.publish();
        assert!(view.borrow().rejected.contains_key("one more"), "where there is room it is remembered");
    }
}
