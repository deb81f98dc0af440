//! What somebody else did to objects of ours since the loop looked last: the number no log shows, because each
//! case is put right at once. Pure.

use std::collections::BTreeMap;

use plan::state::Scope;
use plan::{Key, Object, State};

/// How a kernel object was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// It was gone.
    Missing,
    /// It was there and another one.
    Altered,
    /// It was there with our mark and not of us.
    Added,
}

impl Cause {
    /// The word in the metric.
    pub fn word(self) -> &'static str {
        match self {
            Cause::Missing => "missing",
            Cause::Altered => "altered",
            Cause::Added => "added",
        }
    }
}

/// Number of objects by kind and cause.
pub type Drift = BTreeMap<(&'static str, Cause), usize>;

/// What was believed to be in the kernel, and in which scope it had been read.
#[derive(Default)]
pub struct Believed(Option<(Scope, State)>);

impl Believed {
    /// What is to be read again.
    pub fn keep(&mut self, scope: &Scope, actual: Option<State>) {
        if let Some(actual) = actual {
            self.0 = Some((scope.clone(), actual));
        }
    }

    /// The differences that are nobody's wish: neither as they were nor as they shall be. Forgets what was
    /// believed.
    pub fn drift(&mut self, scope: &Scope, found: &State, wanted: &State) -> Drift {
        let Some((before, believed)) = self.0.take() else { return Drift::new() };
        // Of what was not looked at before it is not known who made it.
        drift(&believed, found, wanted, before == *scope)
    }
}

/// See [`Believed::drift`]; `added` says whether objects that were not there before count.
pub fn drift(believed: &State, found: &State, wanted: &State, added: bool) -> Drift {
    let mut drift = Drift::new();
    let mut count = |key: &Key, cause| *drift.entry((key.kind(), cause)).or_default() += 1;
    for (key, before) in believed.iter() {
        let Some(want) = wanted.get(key) else { continue };
        match found.get(key) {
            None => count(key, Cause::Missing),
            Some(now) if !now.is(want) && !same(now, before) => count(key, Cause::Altered),
            Some(_) => {}
        }
    }
    for (key, _) in found.iter().filter(|_| added) {
        if believed.get(key).is_none() && wanted.get(key).is_none() {
            count(key, Cause::Added);
        }
    }
    drift
}

fn same(now: &Object, before: &Object) -> bool {
    now == before || now.is(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(lines: &[(&str, &str)]) -> State {
        let mut state = State::default();
        for (path, value) in lines {
            state.put(Object::Sysctl { path: (*path).to_owned(), value: (*value).to_owned() });
        }
        state
    }

    #[test]
    fn what_nobody_wished_is_counted_once() {
        let before = &[("a", "1"), ("b", "1"), ("c", "1")];
        for (found, wanted, added, want) in [
            (&before[..], &before[..], true, vec![]),
            (&[("a", "1"), ("b", "1")], before, true, vec![(Cause::Missing, 1)]),
            (&[("a", "1"), ("b", "0"), ("c", "0")], before, true, vec![(Cause::Altered, 2)]),
            // Gone, and not wanted any more: no repair.
            (&[("a", "1"), ("b", "1")], &[("a", "1"), ("b", "1")], true, vec![]),
            // It became what is wanted now, whoever did it.
            (&[("a", "2"), ("b", "1"), ("c", "1")], &[("a", "2"), ("b", "1"), ("c", "1")], true, vec![]),
            (&[("a", "1"), ("b", "1"), ("c", "1"), ("d", "1")], before, true, vec![(Cause::Added, 1)]),
            (&[("a", "1"), ("b", "1"), ("c", "1"), ("d", "1")], before, false, vec![]),
        ] {
            let found = drift(&state(before), &state(found), &state(wanted), added);
            let want: Drift = want.into_iter().map(|(cause, n)| (("sysctl", cause), n)).collect();
            assert_eq!(found, want, "{wanted:?}");
        }
    }

    #[test]
    fn a_first_look_finds_no_drift() {
        let mut believed = Believed::default();
        let now = state(&[("a", "1")]);
        let scope = Scope::default();
        assert_eq!(believed.drift(&scope, &now, &State::default()), Drift::new());
        believed.keep(&scope, Some(State::default()));
        believed.keep(&scope, None);
        assert_eq!(believed.drift(&scope, &now, &State::default()).len(), 1);
        assert_eq!(believed.drift(&scope, &now, &State::default()).len(), 0, "it is forgotten");
    }
}
