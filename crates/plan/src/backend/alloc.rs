//! alloc: a subnet and nothing else (flannel.md 6.9). Somebody else carries the packets.

use model::{Family, Lease, LeaseAttrs};

use super::{Backend, Half};
use crate::facts::{Facts, Families};
use crate::state::State;

/// The backend `alloc`.
#[derive(Clone, Copy, Debug)]
pub struct Alloc {
    /// Enabled families.
    pub families: Families,
}

impl Backend for Alloc {
    fn kind(&self) -> &'static str {
        "alloc"
    }

    fn check(&self, _: &Facts) -> Result<(), String> {
        Ok(())
    }

    fn mtu(&self, facts: &Facts) -> u32 {
        facts.uplink.mtu
    }

    /// Without a type, as upstream.
    fn attrs(&self, facts: &Facts) -> LeaseAttrs {
        LeaseAttrs {
            public_ip: facts.public.v4.filter(|_| self.families.v4),
            public_ip6: facts.public.v6.filter(|_| self.families.v6),
            ..LeaseAttrs::default()
        }
    }

    fn carries(&self, _: &LeaseAttrs) -> bool {
        true
    }

    fn base(&self, _: &Facts, _: Option<&Lease>) -> State {
        State::default()
    }

    fn peer(&self, _: &Facts, _: &Lease, _: Family, _: &Lease) -> Result<Half, String> {
        Ok(Half::default())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{facts, lease, text};
    use super::*;

    #[test]
    fn a_subnet_and_nothing_else() {
        let alloc = Alloc { families: Families { v4: true, v6: false } };
        let own = lease("10.244.1.0/24", "192.0.2.10", "", ["", ""]);
        let peer = lease("10.244.2.0/24", "192.0.2.12", "vxlan", ["", ""]);
        assert_eq!(text(&alloc, &facts(), Some(&own), &[peer]), "");
        assert_eq!(alloc.attrs(&facts()), own.attrs);
        assert_eq!(alloc.mtu(&facts()), 1500);
    }
}
