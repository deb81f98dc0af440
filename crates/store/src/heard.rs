//! When a store last gave a sign of life.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Shared between a store and whoever shows it; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Heard(Arc<AtomicU64>);

impl Heard {
    /// The store has answered.
    pub fn touch(&self) {
        self.0.store(millis(), Ordering::Relaxed);
    }

    /// How long ago that was; `None` if it never has.
    pub fn ago(&self) -> Option<Duration> {
        let at = self.0.load(Ordering::Relaxed);
        (at != 0).then(|| Duration::from_millis(millis().saturating_sub(at)))
    }
}

/// Of a clock nobody sets; never 0.
fn millis() -> u64 {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    u64::try_from(ORIGIN.get_or_init(Instant::now).elapsed().as_millis())
        .unwrap_or(u64::MAX)
        .saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_are_the_same() {
        let heard = Heard::default();
        let other = heard.clone();
        assert_eq!(heard.ago(), None);
        other.touch();
        assert!(heard.ago().is_some_and(|ago| ago < Duration::from_secs(60)));
    }
}
