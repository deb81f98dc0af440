//! Keeps the view of a store up to date from its raw keys and values, whichever store they come from, and
//! logs changes of its state sparingly. Knows nothing of transports.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use model::peers::Change;
use model::{Lease, Subnets};
use tokio::sync::watch;

use crate::View;

/// A trouble that comes and goes is logged at most this often.
const LOG_EVERY: Duration = Duration::from_secs(20);

/// What is known of a store, and where it is published.
pub(crate) struct Mirror<'a> {
    view: View,
    /// Keys of the leases in `view.peers`, to tell what a deleted or corrupted key stood for.
    known: BTreeMap<String, Subnets>,
    feed: &'a watch::Sender<View>,
    dirty: bool,
    /// For messages.
    store: String,
    logged: Option<Instant>,
    announced: bool,
}

impl<'a> Mirror<'a> {
    pub(crate) fn new(store: String, feed: &'a watch::Sender<View>) -> Mirror<'a> {
        let view = View::default();
        Mirror { view, known: BTreeMap::new(), feed, dirty: false, store, logged: None, announced: false }
    }

    /// Takes the complete content of the store: what is not in it is gone. A key whose value cannot be
    /// read keeps the lease it last held.
    pub(crate) fn reset<K: Into<String>>(
        &mut self,
        entries: impl IntoIterator<Item = (K, Result<Lease, String>)>,
    ) {
        let mut known = BTreeMap::new();
        let mut rejected = BTreeMap::new();
        let mut leases = Vec::new();
        for (key, lease) in entries {
            let key = key.into();
            match lease {
                Ok(lease) => {
                    known.insert(key, lease.subnets);
                    leases.push(lease);
                }
                Err(reason) => {
                    if let Some(subnets) = self.known.get(&key) {
                        leases.extend(self.view.peers.get(subnets).cloned());
                        known.insert(key.clone(), *subnets);
                    }
                    rejected.insert(key, reason);
                }
            }
        }
        self.dirty |= self.view.peers.reset(leases) | !self.view.complete | (rejected != self.view.rejected);
        self.known = known;
        self.view.complete = true;
        self.set_rejected(rejected);
    }

    /// A key was written.
    pub(crate) fn put(&mut self, key: &str, lease: Result<Lease, String>) {
        match lease {
            Ok(lease) => {
                if self.view.rejected.remove(key).is_some() {
                    self.dirty = true;
                }
                self.known.insert(key.to_owned(), lease.subnets);
                self.dirty |= self.view.peers.apply(Change::Put(lease));
            }
            Err(reason) => {
                let mut rejected = self.view.rejected.clone();
                self.dirty |= rejected.insert(key.to_owned(), reason.clone()) != Some(reason);
                self.set_rejected(rejected);
            }
        }
    }

    /// A key was deleted or ran out.
    pub(crate) fn remove(&mut self, key: &str) {
        self.dirty |= self.view.rejected.remove(key).is_some();
        if let Some(subnets) = self.known.remove(key) {
            self.dirty |= self.view.peers.apply(Change::Removed(subnets));
        }
    }

    /// The store cannot be read, and why; what is known stays.
    pub(crate) fn trouble(&mut self, cause: String) {
        // Asked again with every failed try, so an outage that lasts is announced in the end.
        if !self.announced && self.logged.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
            tracing::warn!("{cause}; the {} leases known stay in force", self.view.peers.len());
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
                tracing::info!("{} can be read again, {} leases", self.store, self.view.peers.len());
            }
        }
    }

    /// Hands the view to the reader, if anything in it changed since the last time.
    pub(crate) fn publish(&mut self) {
        if std::mem::take(&mut self.dirty) {
            self.feed.send_replace(self.view.clone());
        }
    }

    /// Logs keys that have just become unreadable in one line.
    fn set_rejected(&mut self, rejected: BTreeMap<String, String>) {
        let fresh: BTreeSet<_> = rejected.keys().filter(|k| !self.view.rejected.contains_key(*k)).collect();
        if let Some(first) = fresh.first() {
            let others = match fresh.len() - 1 {
                0 => String::new(),
                n => format!(" (and {n} more)"),
            };
            tracing::warn!(
                "{}: key {first:?} holds no valid lease, ignored{others}: {}",
                self.store,
                rejected[*first]
            );
        }
        self.view.rejected = rejected;
    }
}
