//! Objects that the kernel does not hold: a helper with a thread of its own brings them about. The loop asks
//! once for each step and hears the outcome as news, so it never waits; comparing, order, back-off and troubles
//! are the loop's own (decision 0150).

use std::collections::BTreeSet;

use plan::{Key, Step};

use super::{Kernel, Reconciler, Report};
use crate::inputs::Outcome;

/// What the loop remembers of them between rounds.
#[derive(Default)]
pub struct Outside {
    /// Asked for and not heard of yet.
    asked: BTreeSet<Key>,
    /// Heard of and not compared yet.
    pub heard: BTreeSet<Key>,
}

impl Outside {
    /// Whether something no pod can do without is on its way.
    pub fn waits_for_critical(&self) -> bool {
        self.asked.iter().any(Key::is_critical)
    }
}

impl<K: Kernel> Reconciler<K> {
    /// Takes in what helpers did.
    pub(super) fn hear(&mut self, outcomes: &[Outcome], now_ms: u64, report: &mut Report) {
        for Outcome { key, now, step, failure } in outcomes {
            self.outside.asked.remove(key);
            self.outside.heard.insert(key.clone());
            if let Some(actual) = &mut self.actual {
                match now {
                    Some(object) => actual.put(object.clone()),
                    None => drop(actual.remove(key)),
                }
            }
            match (failure, step) {
                (Some(failure), _) => drop(self.tracker.failed(key.clone(), failure.clone(), now_ms)),
                (None, Some(step)) => report.done.push(step),
                (None, None) => {}
            }
        }
    }

    /// Hands over steps, but for those on their way.
    pub(super) fn ask(&mut self, steps: Vec<Step>) {
        for step in steps {
            if self.outside.asked.insert(step.key()) {
                self.kernel.ask(step);
            }
        }
    }
}
