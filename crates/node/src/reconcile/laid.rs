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
    ) -> &Arc<Vec<Object>> {
        if self.of.replace(of) != Some(of) {
            self.objects = Arc::new(make(of, conf, backend, facts));
        }
        &self.objects
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
