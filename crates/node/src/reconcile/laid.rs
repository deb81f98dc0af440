//! Objects that have nothing to do with peers. Making their texts takes longer than what a peer's news changes, so they
//! are made anew only when what they are made of is another.

use std::sync::Arc;

use model::{NetConf, Subnets};
use plan::backend::Backend;
use plan::rules::{self, Choice};
use plan::{Facts, Object};

/// What they are made of besides configuration and facts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Of {
    /// Our own subnets.
    pub(super) own: Option<Subnets>,
    pub(super) choice: Choice,
    /// See [`crate::inputs::Inputs::liberal`].
    pub(super) liberal: bool,
    /// See [`crate::inputs::Inputs::summed_here`].
    pub(super) summed_here: bool,
}

/// As last made.
#[derive(Default)]
pub(super) struct Laid {
    of: Option<Of>,
    objects: Arc<Vec<Object>>,
}

impl Laid {
    /// Configuration or facts are others now.
    pub(super) fn forget(&mut self) {
        self.of = None;
    }

    pub(super) fn objects(
        &mut self,
        of: Of,
        conf: &NetConf,
        backend: &dyn Backend,
        facts: &Facts,
    ) -> Arc<Vec<Object>> {
        if self.of.replace(of) != Some(of) {
            self.objects = Arc::new(make(of, conf, backend, facts));
        }
        self.objects.clone()
    }
}

fn make(of: Of, conf: &NetConf, backend: &dyn Backend, facts: &Facts) -> Vec<Object> {
    let mut objects = Vec::new();
    if let Some(own) = &of.own {
        objects.extend(rules::objects(conf, own, of.choice, &facts.iptables, &facts.taken));
        objects.extend(rules::blackholes(own, of.choice).map(Object::Route));
    }
    if of.liberal {
        objects.push(rules::liberal());
    }
    if of.summed_here {
        objects.extend(rules::summed_here(backend.kind(), &backend.own_devices(facts)));
    }
    objects
}

#[cfg(test)]
mod tests {
    use model::IfName;
    use plan::backend;
    use plan::facts::{Addresses, Uplink};

    use super::*;

    fn facts() -> Facts {
        let addresses = Addresses { v4: "192.0.2.10".parse().ok(), v6: None };
        Facts {
            uplink: Uplink { name: IfName::fixed("eth0"), mtu: 1500, addresses },
            public: addresses,
            local: Default::default(),
            devices: Default::default(),
            pinned_macs: Default::default(),
            published: None,
            on_link: Default::default(),
            tunnels: Default::default(),
            taken: Default::default(),
            nexthops_in_use: false,
            ipv6: true,
            machine_id: String::new(),
            xfrm: false,
            printed: None,
            iptables: Default::default(),
            wireguard: None,
        }
    }

    #[test]
    fn they_are_made_anew_for_another_reason_only() {
        let conf = NetConf::parse(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#).unwrap();
        let backend = backend::from_config(&conf).unwrap();
        let (facts, mut laid) = (facts(), Laid::default());
        let choice = Choice { masquerade: true, fully_random: true, forward: true, blackhole: false };
        let own = "10.244.1.0/24".parse().map(|v4| Subnets { v4: Some(v4), v6: None }).unwrap();
        let none = Of { own: None, choice, liberal: false, summed_here: false };
        let held = Of { own: Some(own), ..none };
        let mut last = laid.objects(none, &conf, backend.as_ref(), &facts);
        for (what, of, forget, same) in [
            ("nothing", none, false, true),
            ("a lease", held, false, false),
            ("nothing", held, false, true),
            ("the fast path", Of { liberal: true, ..held }, false, false),
            ("a probe", Of { summed_here: true, ..held }, false, false),
            ("back", held, false, false),
            ("a host that is another", held, true, false),
        ] {
            if forget {
                laid.forget();
            }
            let next = laid.objects(of, &conf, backend.as_ref(), &facts);
            assert_eq!(Arc::ptr_eq(&last, &next), same, "{what}");
            assert_eq!(*next, make(of, &conf, backend.as_ref(), &facts), "{what}");
            last = next;
        }
    }
}
