//! Which steps may be taken now, and what became of those that were.

use plan::{Object, State, Step, diff, sources};

use super::{Kernel, May, Reconciler, Report};

impl<K: Kernel> Reconciler<K> {
    pub(super) fn ready(&self, mut steps: Vec<Step>, may: May, now_ms: u64) -> Vec<Step> {
        let may = |step: &Step| {
            let replaces = matches!(step, Step::Delete(Object::Link(_)));
            let shuts = matches!(step, Step::Put(Object::Nft(table)) if sources::is_ours(&table.key));
            (self.tracker.is_empty() || self.tracker.ready(&step.key(), now_ms))
                && (may.sweep || replaces || !matches!(step, Step::Delete(_)))
                && (may.guard || !shuts)
        };
        // In place: of what is many, almost all stays.
        steps.retain(may);
        steps
    }

    pub(super) fn apply(&mut self, steps: Vec<Step>, wanted: &State, now_ms: u64, report: &mut Report) {
        if steps.is_empty() {
            return;
        }
        let answers = self.kernel.apply(&steps);
        let actual = self.actual.get_or_insert_default();
        // One that failed leaves something else than it says.
        if answers.iter().all(Result::is_ok) {
            let plain = State::put_by(&steps, wanted);
            report.done.extend(&steps);
            steps.iter().filter(|step| !step.is_plain()).for_each(|step| note(actual, step));
            return actual.append(plain);
        }
        let mut done = steps.into_iter().zip(answers).peekable();
        loop {
            // Noted together, for at a start they are tens of thousands.
            actual.extend(std::iter::from_fn(|| {
                let (step, _) = done.next_if(|(step, answer)| answer.is_ok() && step.is_plain())?;
                report.done.push(&step);
                if let Step::Put(object) = step { Some(object) } else { None }
            }));
            let Some((step, answer)) = done.next() else { return };
            match answer {
                Ok(()) => {
                    report.done.push(&step);
                    note(actual, &step);
                }
                Err(message) => {
                    self.stale = true;
                    report.failed += 1;
                    // The table's failure says it all.
                    let lost = step.table().is_some_and(|table| !diff::stands(actual, table));
                    if !lost {
                        self.tracker.failed(step.key(), message, now_ms);
                    }
                }
            }
        }
    }
}

/// Notes a step that has been done.
fn note(actual: &mut State, step: &Step) {
    match step {
        Step::Put(object) => {
            // Its sets have what the steps after this one say.
            actual.remove(&object.key());
            actual.put(object.clone());
        }
        Step::Change(link) => actual.put(Object::Link(link.clone())),
        Step::Delete(object) => drop(actual.remove(&object.key())),
    }
}
