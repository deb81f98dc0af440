//! While a changed configuration goes from node to node (decision 0162): which peers have another one, and how
//! long the devices of the one before are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use model::{Lease, Peers, Subnets};
use plan::backend::Backend;

/// Devices of the configuration before are kept for so long after no node needs them any more: what a node says
/// of itself takes its time to others, and so do their routes.
const KEEP_MS: u64 = 60_000;

/// The peers whose reachability without a gateway matters: all where the backend asks for it, else those with
/// another configuration.
#[derive(Default)]
pub struct Neighbours {
    /// The leases seen.
    of: Peers,
    asked: BTreeMap<Subnets, Arc<Lease>>,
}

impl Neighbours {
    /// Takes news of peers; gives their addresses if there was any.
    pub fn follow(&mut self, backend: &dyn Backend, peers: &Peers) -> Option<Vec<IpAddr>> {
        let changes = peers.changes(&self.of);
        if changes.is_empty() {
            return None;
        }
        self.of = peers.clone();
        for (subnets, lease) in changes {
            match lease.filter(|lease| backend.asks_on_link() || !backend.carries(&lease.attrs)) {
                Some(lease) => drop(self.asked.insert(subnets, lease)),
                None => drop(self.asked.remove(&subnets)),
            }
        }
        let publics = self.asked.values().flat_map(|lease| {
            [lease.attrs.public_ip.map(IpAddr::V4), lease.attrs.public_ip6.map(IpAddr::V6)]
        });
        Some(publics.flatten().collect::<BTreeSet<_>>().into_iter().collect())
    }

    /// Whether a peer has another configuration.
    pub fn others(&self, backend: &dyn Backend, own: Option<&Lease>) -> bool {
        let own = own.map(|own| own.subnets);
        self.asked.values().any(|lease| !backend.carries(&lease.attrs) && own != Some(lease.subnets))
    }
}

/// Until when devices of the configuration before are kept. Others may send to them until they have the new one
/// too.
#[derive(Default)]
pub struct Former {
    until_ms: Option<u64>,
    over: bool,
}

impl Former {
    /// When they may go, if nobody needs them.
    pub fn due_ms(&self) -> Option<u64> {
        self.until_ms
    }

    /// Whether nobody needs them any more, and has not for long, if there are any. At our start others do not know
    /// yet what we are now.
    pub fn over(&mut self, any: bool, needed: bool, now_ms: u64) -> bool {
        if !any {
            *self = Former::default();
        } else if needed || !self.over && self.until_ms.is_none() {
            (self.until_ms, self.over) = (Some(now_ms + KEEP_MS), false);
        }
        self.over |= self.until_ms.take_if(|until| *until <= now_ms).is_some();
        self.over
    }
}

#[cfg(test)]
mod tests {
    use model::{LeaseAttrs, NetConf};
    use plan::backend;

    use super::*;

    fn attrs(kind: &str, data: &str) -> LeaseAttrs {
        let data = Some(data).filter(|data| !data.is_empty()).map(Into::into);
        LeaseAttrs {
            backend_type: kind.to_owned(),
            backend_data: data,
            public_ip: "192.0.2.12".parse().ok(),
            ..LeaseAttrs::default()
        }
    }

    const VTEP: &str = r#"{"VNI":7,"VtepMAC":"8e:00:00:00:00:02"}"#;

    #[test]
    fn devices_of_before_go_when_nobody_has_needed_them_for_a_while() {
        let mut former = Former::default();
        for (now_ms, any, needed, over, due) in [
            (0, false, false, false, None),
            (1_000, true, false, false, Some(61_000)),
            (2_000, true, false, false, Some(61_000)),
            (50_000, true, true, false, Some(110_000)),
            (109_999, true, false, false, Some(110_000)),
            (110_000, true, false, true, None),
            // A node with the old configuration appears before they are gone.
            (130_000, true, true, false, Some(190_000)),
            (190_000, true, false, true, None),
            (190_001, false, false, false, None),
            (300_000, false, false, false, None),
        ] {
            assert_eq!((former.over(any, needed, now_ms), former.due_ms()), (over, due), "{now_ms}");
        }
    }

    #[test]
    fn peers_with_another_configuration_are_asked_about() {
        let conf = NetConf::parse(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#).unwrap();
        let backend = backend::from_config(&conf).unwrap();
        let lease = |third: u8, attrs| {
            let mut lease = Lease { attrs, ..Lease::default() };
            lease.subnets.v4 = format!("10.244.{third}.0/24").parse().ok();
            lease.attrs.public_ip = format!("192.0.2.{third}").parse().ok();
            lease
        };
        let same = || attrs("vxlan", &VTEP.replace('7', "1"));
        let (mut peers, mut neighbours) = (Peers::default(), Neighbours::default());
        let own = lease(9, attrs("host-gw", ""));
        peers.reset([lease(1, same()), own.clone()]);
        let ip = |last: u8| IpAddr::from([192, 0, 2, last]);
        assert_eq!(neighbours.follow(backend.as_ref(), &peers), Some(vec![ip(9)]));
        assert_eq!(neighbours.follow(backend.as_ref(), &peers), None);
        assert!(!neighbours.others(backend.as_ref(), Some(&own)), "our own of before");
        peers.reset([lease(1, attrs("vxlan", VTEP)), lease(2, attrs("host-gw", "")), lease(3, same())]);
        assert_eq!(neighbours.follow(backend.as_ref(), &peers), Some(vec![ip(1), ip(2)]));
        assert!(neighbours.others(backend.as_ref(), None));
        peers.reset([lease(1, same()), lease(3, same())]);
        assert_eq!(neighbours.follow(backend.as_ref(), &peers), Some(Vec::new()));
        assert!(!neighbours.others(backend.as_ref(), None));
    }
}
