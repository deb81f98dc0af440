//! Which steps of a difference can be done now, and in which order: what stands on something waits for it, and
//! rules of one kind go when those that do their work stand.

use std::collections::{BTreeMap, BTreeSet};

use model::IfName;

use crate::Step;
use crate::diff::{diff_within, within_tables};
use crate::rules;
use crate::state::{Key, Object, State};

/// The steps that are left when the devices are there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// For the kernel.
    pub first: Vec<Step>,
    /// For those who hold what the kernel does not.
    pub outside: Vec<Step>,
    /// Rules that go, or make room for others that do not do their work; see [`may_go`].
    pub last: Vec<Step>,
    /// Nothing has to wait for something else.
    pub complete: bool,
}

impl Order {
    /// Sorts the steps from `actual` to `wanted`. What needs a device that could not be made is left out: the
    /// device's failure says it all.
    pub fn of(mut steps: Vec<Step>, wanted: &State, actual: &State) -> Order {
        let all = steps.len();
        // Tens of thousands of steps are on one or two devices.
        let mut devices: BTreeMap<IfName, bool> = BTreeMap::new();
        let can = |step: &Step| {
            step.device().is_none_or(|dev| *devices.entry(dev).or_insert_with(|| stands(dev, wanted, actual)))
                && has_what_it_needs(step, wanted, actual)
        };
        // In place, here and below: of what is many, almost all stays.
        steps.retain(can);
        let waiting = all - steps.len();
        let outside = steps.extract_if(.., |step| step.is_outside()).collect();
        let early = within_tables(&mut steps, wanted, actual);
        let goes = |step: &Step| match step {
            Step::Put(Object::Nft(table)) => rules::table_keys().contains(&table.key) && !table.masquerades(),
            Step::Delete(_) => is_rules(&step.key()),
            _ => false,
        };
        let last = steps.extract_if(.., |step| goes(step)).collect();
        Order { first: steps, outside, last, complete: waiting == 0 && early == 0 }
    }
}

/// Whether all other rules stand, so that these steps of [`Order::last`] open no gap.
pub fn may_go(last: &[Step], wanted: &State, actual: &State) -> bool {
    let waiting: BTreeSet<Key> = last.iter().map(Step::key).collect();
    let rules = wanted.iter().map(|(key, _)| key).take_while(|key| is_rules(key));
    let others = rules.filter(|key| !waiting.contains(key)).cloned().collect();
    diff_within(wanted, actual, &others).is_empty()
}

/// Whether an object decides about packets of pods whatever their peer. These come first in the order of keys.
pub fn is_rules(key: &Key) -> bool {
    matches!(key, Key::Nft(_) | Key::Iptables(_))
}

/// Whether a device is there as the kind that is wanted, with the process behind it: till then another one
/// may have the network.
fn stands(dev: IfName, wanted: &State, actual: &State) -> bool {
    let kind = match (wanted.link(dev), actual.link(dev)) {
        (Some(want), Some(have)) => want.kind.name() == have.kind.name(),
        (want, _) => want.is_none(),
    };
    let process = Key::Tunnel(dev);
    kind && (wanted.get(&process).is_none() || actual.get(&process).is_some())
}

/// Whether all a step needs stands; what goes needs nothing, nor does what the kernel holds.
fn has_what_it_needs(step: &Step, wanted: &State, actual: &State) -> bool {
    let stands = |key: &Key| wanted.get(key).is_none_or(|want| actual.get(key) == Some(want));
    debug_assert!(step.is_outside() || step.key().needs().is_empty(), "a need that is not looked at");
    matches!(step, Step::Delete(_)) || !step.is_outside() || step.key().needs().iter().all(stands)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Addr, Link, LinkKind};

    fn dev() -> IfName {
        IfName::fixed("flannel.1")
    }

    fn link(kind: &str) -> Object {
        Object::Link(Box::new(Link {
            name: dev(),
            kind: LinkKind::Other(kind.to_owned()),
            mac: None,
            mtu: None,
            up: true,
            txqlen: None,
            master: None,
        }))
    }

    fn address() -> Object {
        Object::Addr(Addr { dev: dev(), net: "10.244.1.0/32".parse().expect("valid") })
    }

    #[test]
    fn what_stands_on_a_device_waits_for_it() {
        let wanted: State = [link("vxlan"), address()].into_iter().collect();
        for (there, first) in [(None, 0), (Some("dummy"), 0), (Some("vxlan"), 1)] {
            let actual: State = there.map(link).into_iter().collect();
            let order = Order::of(vec![Step::Put(address())], &wanted, &actual);
            assert_eq!((order.first.len(), order.complete), (first, first == 1), "{there:?}");
        }
    }

    #[test]
    fn rules_go_when_the_others_stand() {
        let rules = rules::table_keys().map(|key| {
            Object::Nft(Box::new(crate::state::NftTable {
                key,
                comment: None,
                owned: true,
                sets: Vec::new(),
                chains: Vec::new(),
                drifted: false,
            }))
        });
        let [new, old] = rules;
        let wanted: State = [new.clone()].into_iter().collect();
        let delete = Step::Delete(old.clone());
        let order = Order::of(vec![delete.clone()], &wanted, &State::default());
        assert_eq!((&order.first, &order.last), (&vec![], &vec![delete]));
        assert!(!may_go(&order.last, &wanted, &[old.clone()].into_iter().collect()), "a gap");
        assert!(may_go(&order.last, &wanted, &[old, new].into_iter().collect()));
    }
}
