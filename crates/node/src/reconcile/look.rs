//! Looking at the kernel: when, and what others were found to have done there.

use plan::state::Scope;
use plan::{Key, Object, State};

use super::{Kernel, Reconciler, Report, drift};

impl<K: Kernel> Reconciler<K> {
    /// Whether a notification says something else than we believe of an object that is ours or should be.
    pub(super) fn is_surprise(&self, scope: &Scope, wanted: &State, key: &Key, now: &Option<Object>) -> bool {
        let Some(actual) = &self.actual else { return true };
        let believed = actual.get(key);
        believed != now.as_ref()
            && (believed.is_some()
                || wanted.get(key).is_some()
                || now.as_ref().is_some_and(|object| scope.owns(object)))
    }

    pub(super) fn reread(&mut self, scope: &Scope, wanted: &State, now_ms: u64) -> Result<(), String> {
        self.actual = Some(self.kernel.read(scope, wanted)?);
        self.read_ms = now_ms;
        self.iptables.due_ms = (!scope.iptables.is_empty()).then_some(now_ms + self.iptables.every_ms);
        Ok(())
    }

    pub(super) fn reread_iptables(
        &mut self,
        scope: &Scope,
        wanted: &State,
        now_ms: u64,
        report: &mut Report,
    ) {
        let Some(actual) = &mut self.actual else { return };
        let mut believed = State::default();
        let keys = scope.iptables.iter().map(|key| Key::Iptables(*key));
        keys.filter_map(|key| actual.remove(&key)).for_each(|object| believed.put(object));
        let mut found = State::default();
        found.extend(self.kernel.read_iptables(scope, wanted));
        report.drift.extend(drift::drift(&believed, &found, wanted, false));
        actual.extend(found.iter().map(|(_, object)| object.clone()));
        self.iptables.due_ms = (!scope.iptables.is_empty()).then_some(now_ms + self.iptables.every_ms);
    }

    /// Counts what is not as it was left, after [`Reconciler::reread`].
    pub(super) fn compare(&mut self, scope: &Scope, wanted: &State, report: &mut Report) {
        let Some(found) = &self.actual else { return };
        report.drift.extend(self.believed.drift(scope, found, wanted));
    }
}
