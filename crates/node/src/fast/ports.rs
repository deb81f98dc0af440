//! Which devices of a host carry pods whose packets may go fast. Pure.

use std::net::IpAddr;

use kernel::link::LinkInfo;
use kernel::rtnl::AddrInfo;
use kernel::rtnl::tc::QdiscInfo;
use model::{IfName, Ipv4Net};
use plan::state::LinkKind;

/// The host's ends of pods' veths: ports of a bridge that has an address in the cluster's network.
pub fn of_pods(links: &[LinkInfo], addresses: &[AddrInfo], network: Ipv4Net) -> Vec<(u32, IfName)> {
    let inside = |index: u32| {
        addresses
            .iter()
            .any(|a| a.index == index && matches!(a.net.addr(), IpAddr::V4(ip) if network.contains(&ip)))
    };
    let bridges: Vec<u32> = links
        .iter()
        .filter(|l| matches!(l.link.kind, LinkKind::Bridge(_)) && inside(l.index))
        .map(|l| l.index)
        .collect();
    let port = |l: &&LinkInfo| {
        let veth = matches!(l.link.kind, LinkKind::Veth(_));
        // An isolated port has rules of its own; the pod's end in this namespace is no pod.
        let plain = l.port.as_ref().is_none_or(|port| port.isolated != Some(true)) && l.lower_netns.is_some();
        veth && plain && l.link.up && l.master.is_some_and(|master| bridges.contains(&master))
    };
    links.iter().filter(port).map(|l| (l.index, l.link.name)).collect()
}

/// Why the traffic of a device must pass its queues or filters: somebody shapes it, or looks at it.
pub fn shaped(qdiscs: &[QdiscInfo], device: u32) -> Option<&str> {
    let plain = ["noqueue", "pfifo_fast", "fq_codel", "fq", "mq", "noop"];
    let own = qdiscs.iter().filter(|q| q.dev == device);
    own.map(|q| q.kind.as_str()).find(|kind| !plain.contains(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_shapes_or_filters_counts() {
        let qdisc =
            |dev, kind: &str| QdiscInfo { dev, kind: kind.to_owned(), parent: u32::MAX, bucket: None };
        for (kinds, wanted) in [
            (vec![(1, "noqueue")], None),
            (vec![], None),
            (vec![(1, "tbf")], Some("tbf")),
            (vec![(2, "tbf"), (1, "fq_codel")], None),
            (vec![(1, "noqueue"), (1, "ingress")], Some("ingress")),
            (vec![(1, "clsact"), (1, "noqueue")], Some("clsact")),
            (vec![(1, "htb")], Some("htb")),
        ] {
            let qdiscs: Vec<QdiscInfo> = kinds.iter().map(|(dev, kind)| qdisc(*dev, kind)).collect();
            assert_eq!(shaped(&qdiscs, 1), wanted, "{kinds:?}");
        }
    }
}
