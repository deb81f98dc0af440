//! The leases of all nodes, as one snapshot that is cheap to hand around.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::lease::{Lease, Subnets};

/// Every lease a store knows, own one included, as of one revision. Cloning copies a pointer.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    leases: Arc<BTreeMap<Subnets, Arc<Lease>>>,
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
    /// Replaces everything by the complete content of the store. Gives whether anything changed.
    pub fn reset(&mut self, leases: impl IntoIterator<Item = Lease>) -> bool {
        let next: BTreeMap<_, _> = leases.into_iter().map(|l| (l.subnets, Arc::new(l))).collect();
        let changed = next != *self.leases;
        if changed {
            self.leases = Arc::new(next);
            self.revision += 1;
        }
        changed
    }

    /// Applies one change. A renewal that alters nothing is not a change (F-41).
    pub fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Put(lease) => {
                if self.leases.get(&lease.subnets).is_some_and(|old| **old == lease) {
                    return false;
                }
                Arc::make_mut(&mut self.leases).insert(lease.subnets, Arc::new(lease));
            }
            Change::Removed(subnets) => {
                if !self.leases.contains_key(&subnets) {
                    return false;
                }
                Arc::make_mut(&mut self.leases).remove(&subnets);
            }
        }
        self.revision += 1;
        true
    }

    /// Goes up with every real change; equal revisions of one `Peers` mean equal content.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The lease that owns exactly these subnets.
    pub fn get(&self, subnets: &Subnets) -> Option<&Lease> {
        self.leases.get(subnets).map(|l| &**l)
    }

    /// All leases in order of their subnets.
    pub fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values().map(|l| &**l)
    }

    /// All leases in order of their subnets, to be kept without copying them.
    pub fn iter_shared(&self) -> impl Iterator<Item = &Arc<Lease>> {
        self.leases.values()
    }

    /// How many leases there are, the own one included.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether the store holds no lease at all.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }
}
