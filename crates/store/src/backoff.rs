//! Waiting longer after each failure, and a little at random, so that a thousand nodes do not return at once.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_millis(100);
const LAST: Duration = Duration::from_secs(5);

/// A number nobody can foresee, from the keys the standard library seeds its maps with.
pub(crate) fn random() -> u64 {
    RandomState::new().hash_one(Instant::now())
}

/// `span` times something between ¾ and 1¼.
pub(crate) fn jitter(span: Duration) -> Duration {
    span.mul_f64(0.75 + (random() % 1024) as f64 / 2048.0)
}

/// 100 ms doubling to 5 s (flannel.md 3.3).
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Backoff {
        Backoff { next: FIRST }
    }

    /// All is well again.
    pub(crate) fn reset(&mut self) {
        self.next = FIRST;
    }

    pub(crate) async fn wait(&mut self) {
        self.wait_at_most(LAST).await;
    }

    /// As [`Backoff::wait`], but not longer than about `most`.
    pub(crate) async fn wait_at_most(&mut self, most: Duration) {
        let span = self.next.min(most);
        self.next = (self.next * 2).min(LAST);
        tokio::time::sleep(jitter(span)).await;
    }
}
