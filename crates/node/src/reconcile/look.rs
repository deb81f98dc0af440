//! Looking at the kernel: when, and what others were found to have done there.

use plan::state::{Link, LinkKind, Scope, Variant};
use plan::{Key, Object, State, rules};

use super::{Kernel, Reconciler, Report, drift};
use crate::inputs::Inputs;
use crate::probe;

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
        let mut actual = self.kernel.read(scope, wanted)?;
        actual.share(wanted);
        self.actual = Some(actual);
        self.read_ms = now_ms;
        self.iptables.due_ms = self.iptables_due(scope, now_ms);
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
        self.iptables.due_ms = self.iptables_due(scope, now_ms);
    }

    /// The kernel tells of changes of the nft variant, or that some were lost; of the legacy one's nobody tells.
    fn iptables_due(&self, scope: &Scope, now_ms: u64) -> Option<u64> {
        is_untold(scope).then_some(now_ms + self.iptables.every_ms)
    }

    /// Counts what is not as it was left, after [`Reconciler::reread`].
    pub(super) fn compare(&mut self, scope: &Scope, wanted: &State, report: &mut Report) {
        let Some(found) = &self.actual else { return };
        report.drift.extend(self.believed.drift(scope, found, wanted));
    }

    /// What is to be known to probe other nodes; `None` until packets may pass.
    pub fn probing(&self, inputs: &Inputs, report: &Report) -> Option<probe::Plan> {
        let ((_, backend), facts) = (self.conf.as_ref()?, self.facts.as_ref()?);
        let own = inputs.own.clone().filter(|_| report.converged)?;
        let devices = backend.own_devices(facts);
        let wanted = self.assembly.wanted();
        let links = devices.iter().filter_map(|device| wanted.link(*device));
        let offloads = rules::summed_here(backend.kind(), &devices);
        let carrier = |link: &Link| match &link.kind {
            LinkKind::Vxlan(vxlan) => Some(format!("UDP port {}", vxlan.port)),
            LinkKind::Wireguard(wireguard) => Some(format!("UDP port {}", wireguard.port?)),
            LinkKind::Ipip(_) => Some("IP protocol 4".to_owned()),
            LinkKind::Tun(_) => Some("the tunnel's UDP port".to_owned()),
            _ => None,
        };
        let tunnel = links.filter_map(|link| Some((link.name.to_string(), carrier(link)?))).next();
        let (device, carried_by) = tunnel.map_or((None, String::new()), |(name, by)| (Some(name), by));
        Some(probe::Plan {
            kind: backend.kind(),
            carried_by,
            device,
            summed_here: offloads.first().map(|_| offloads.iter().any(|o| wanted.get(&o.key()).is_some())),
            mtu: report.mtu,
            outer_mtu: facts.uplink.mtu,
            own: Some(own),
            peers: inputs.view.peers.clone(),
            left_out: report.left_out.keys().cloned().collect(),
            direct: facts.on_link.keys().filter(|_| backend.asks_on_link()).copied().collect(),
        })
    }
}

impl Report {
    /// Becomes the next one if that tells the keepers of the lease and of the last good state anything new. Most rounds do
    /// not, and each wakes their thread.
    pub fn says_another(&mut self, next: Report) -> bool {
        let told = |report: &Report| (report.attrs.clone(), report.converged, report.recalled);
        let another = told(self) != told(&next);
        if another {
            *self = next;
        }
        another
    }
}

/// Whether there are rules in iptables of whose changes nobody tells.
fn is_untold(scope: &Scope) -> bool {
    scope.iptables.iter().any(|key| key.variant == Variant::Legacy)
}

#[cfg(test)]
mod tests {
    use model::Family;
    use plan::state::{IptablesKey, IptablesTable};

    use super::*;

    #[test]
    fn rules_are_read_again_and_again_where_nobody_tells_of_them() {
        let key = |variant| IptablesKey { variant, family: Family::V4, table: IptablesTable::Nat };
        for (variants, untold) in [
            (&[][..], false),
            (&[Variant::Nft], false),
            (&[Variant::Legacy], true),
            (&[Variant::Nft, Variant::Legacy], true),
        ] {
            let iptables = variants.iter().copied().map(key).collect();
            assert_eq!(is_untold(&Scope { iptables, ..Scope::default() }), untold, "{variants:?}");
        }
    }
}
