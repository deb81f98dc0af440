//! What could not be done, per object: so that one bad peer never stalls the others, a failure is said
//! once, and a retry comes with growing distance.
//!
//! Time is milliseconds of any monotonic clock, passed in.

use std::collections::BTreeMap;

use crate::state::Key;

/// The first retry comes after this, each further one after twice the last distance.
const FIRST_RETRY_MS: u64 = 500;
/// The longest distance between two tries.
const LAST_RETRY_MS: u64 = 30_000;
/// The same for what no pod can do without: what an operator puts right, such as a module loaded or a port
/// freed, is not always news from the kernel, and shall show within two seconds.
const LAST_CRITICAL_RETRY_MS: u64 = 1_000;

/// A step that keeps failing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What the kernel said, with the step as a command.
    pub message: String,
    /// When it failed first.
    pub since_ms: u64,
    /// How often it failed in a row.
    pub count: u32,
    /// Not tried again before.
    pub retry_ms: u64,
}

/// Failures by object.
#[derive(Clone, Debug, Default)]
pub struct Tracker {
    failures: BTreeMap<Key, Failure>,
}

impl Tracker {
    /// Whether an object may be tried now.
    pub fn ready(&self, key: &Key, now_ms: u64) -> bool {
        self.failures.get(key).is_none_or(|f| f.retry_ms <= now_ms)
    }

    /// Notes a failure. Gives whether it is news: the first of its kind for this object.
    pub fn failed(&mut self, key: Key, message: String, now_ms: u64) -> bool {
        // A cloud counts the questions.
        let often = key.is_critical() && !matches!(key, Key::CloudRoute(_));
        let limit = if often { LAST_CRITICAL_RETRY_MS } else { LAST_RETRY_MS };
        let new = Failure { message: String::new(), since_ms: now_ms, count: 0, retry_ms: now_ms };
        let failure = self.failures.entry(key).or_insert(new);
        let news = failure.message != message;
        failure.message = message;
        failure.count += 1;
        let distance = FIRST_RETRY_MS.saturating_mul(1 << (failure.count - 1).min(10)).min(limit);
        failure.retry_ms = now_ms + distance;
        news
    }

    /// Forgets the failures of all objects for which `still` is false: they are in place, or nobody
    /// wants them any more. Gives the keys forgotten.
    pub fn settle(&mut self, mut still: impl FnMut(&Key) -> bool) -> Vec<Key> {
        let gone: Vec<Key> = self.failures.keys().filter(|key| !still(key)).cloned().collect();
        for key in &gone {
            self.failures.remove(key);
        }
        gone
    }

    /// Everything may be tried at once: something about the host has changed.
    pub fn forgive(&mut self) {
        for failure in self.failures.values_mut() {
            failure.retry_ms = 0;
        }
    }

    /// When the next retry is due.
    pub fn next_retry_ms(&self) -> Option<u64> {
        self.failures.values().map(|f| f.retry_ms).min()
    }

    /// Whether nothing failed.
    pub fn is_empty(&self) -> bool {
        self.failures.is_empty()
    }

    /// All failures.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Failure)> {
        self.failures.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::IfName;

    #[test]
    fn distance_grows_to_a_limit_and_settles() {
        let dev = IfName::fixed("flannel.1");
        let neigh = Key::Neigh(dev, "10.244.2.0".parse().expect("an address"));
        for (key, want) in [
            (neigh, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]),
            (Key::Link(dev), [500, 1_000, 1_000, 1_000, 1_000, 1_000, 1_000, 1_000]),
        ] {
            let mut tracker = Tracker::default();
            let mut now = 1_000;
            let mut distances = Vec::new();
            for n in 0..8 {
                assert!(tracker.ready(&key, now));
                assert_eq!(tracker.failed(key.clone(), "device or resource busy".to_owned(), now), n == 0);
                assert!(!tracker.ready(&key, now));
                let next = tracker.next_retry_ms().expect("a failure is tracked");
                distances.push(next - now);
                now = next;
            }
            assert_eq!(distances, want, "{key:?}");
            assert!(tracker.failed(key.clone(), "no such device".to_owned(), now), "another message is news");
            tracker.forgive();
            assert!(tracker.ready(&key, 0));
            assert_eq!(tracker.settle(|_| false), [key]);
            assert_eq!(tracker.next_retry_ms(), None);
        }
    }
}
