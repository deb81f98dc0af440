//! Which devices of a host carry pods whose packets may go fast. Pure.

use std::collections::BTreeSet;

use fastpath::layout::Format;
use kernel::link::LinkInfo;
use kernel::rtnl::AddrInfo;
use kernel::rtnl::tc::QdiscInfo;
use model::{IfName, IpNet};
use plan::state::LinkKind;

/// The host's ends of pods' veths: ports of a bridge that has an address in a network of the cluster's.
pub fn of_pods(links: &[LinkInfo], addresses: &[AddrInfo], networks: &[IpNet]) -> Vec<(u32, IfName)> {
    let inside = |index: u32| {
        let mut own = addresses.iter().filter(|a| a.index == index);
        own.any(|a| networks.iter().any(|net| net.contains(&a.net.addr())))
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

/// Whether an uplink may hand a packet to another host whose checksum nobody has computed. A card computes it, and so
/// does the kernel for a device without the offload; but a veth leads into another namespace of this machine, where the kernel
/// would know and a program that reads the datagram does not. Devices on top of others count as they say of themselves.
pub fn hands_on_bare(kind: &LinkKind, on: &BTreeSet<String>, is_virtio: impl Fn() -> bool) -> bool {
    let has = |names: &[&str]| names.iter().any(|name| on.contains(*name));
    let sums = has(&["tx-checksum-ip-generic", "tx-checksum-ipv4"]);
    match kind {
        // A card, whose kind has no name; virtio hands trains on whole where both sides know tunnels (Linux 6.17).
        LinkKind::Other(kind) if kind.is_empty() => {
            has(&["tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"]) && is_virtio()
        }
        _ => sums,
    }
}

/// Where an operator wants programs in the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Xdp {
    /// Where it loses nothing and keeps nobody else's trains away.
    Auto,
    On,
    Off,
}

/// The MTU of frames that lie in one page of 4096 bytes beside what the kernel keeps there for XDP (256 bytes before, 320 behind).
const IN_ONE_PAGE: u32 = 3498;

/// Whether packets are to be taken out of frames in the uplink's driver, or why not; `None` with a backend for which there is
/// nothing to gain, and where nobody asked for it. Without GRO there is nothing either, nor where frames are longer than a page: only what lies in one piece is
/// taken apart, and a veth copies all. A card may set up its queues anew for that, which loses packets and
/// offloads; a veth does not, but its other end sends no trains any more: where our own end sends none, which is where udp goes
/// fast at all, nobody is taken for sending any.
pub fn early(
    wanted: Xdp,
    kind: &LinkKind,
    mtu: u32,
    format: Option<Format>,
    on: &BTreeSet<String>,
) -> Option<Result<(), String>> {
    let Some(Format::Udp { bare }) = format else { return None };
    let why = match (wanted, kind) {
        (Xdp::Off, _) => return None,
        _ if !on.contains("rx-gro") => "the uplink makes no trains of frames (ethtool -K DEVICE gro on)",
        _ if mtu > IN_ONE_PAGE => "the uplink's frames are longer than a page",
        (Xdp::On, _) => return Some(Ok(())),
        (Xdp::Auto, LinkKind::Veth(_)) if !bare => return Some(Ok(())),
        (Xdp::Auto, LinkKind::Veth(_)) => {
            "the wire takes trains of packets whole (LODEN_FASTPATH_XDP=on has them cut)"
        }
        (Xdp::Auto, _) => "a card may lose packets while it begins (LODEN_FASTPATH_XDP=on)",
    };
    Some(Err(why.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_leads_past_no_card_hands_bare_packets_on() {
        let veth = LinkKind::Veth(Default::default());
        let card = LinkKind::Other(String::new());
        let vlan = LinkKind::Other("vlan".to_owned());
        for (kind, on, virtio, wanted) in [
            (&veth, vec!["tx-checksum-ip-generic", "tx-tcp-segmentation"], false, true),
            (&veth, vec!["tx-scatter-gather"], false, false),
            (&card, vec!["tx-checksum-ip-generic", "tx-udp_tnl-segmentation"], false, false),
            (&card, vec!["tx-checksum-ip-generic"], true, false),
            (&card, vec!["tx-checksum-ip-generic", "tx-udp_tnl-segmentation"], true, true),
            (&vlan, vec!["tx-checksum-ipv4"], false, true),
            (&vlan, vec![], false, false),
        ] {
            let on = on.into_iter().map(str::to_owned).collect();
            assert_eq!(hands_on_bare(kind, &on, || virtio), wanted, "{kind:?} {on:?}");
        }
    }

    #[test]
    fn packets_are_taken_out_early_where_that_does_no_harm() {
        let (veth, card) = (LinkKind::Veth(Default::default()), LinkKind::Other(String::new()));
        let udp = |bare| Some(Format::Udp { bare });
        let vxlan = Some(Format::Vxlan { vni: 1, sums: false });
        for (wanted, kind, format, gro, mtu, result) in [
            (Xdp::Auto, &veth, udp(false), true, 1500, Some("")),
            (Xdp::Auto, &veth, udp(false), false, 1500, Some("no trains of frames")),
            (Xdp::Auto, &veth, udp(true), true, 1500, Some("trains of packets whole")),
            (Xdp::Auto, &card, udp(false), true, 1500, Some("may lose packets")),
            (Xdp::On, &veth, udp(true), true, 1500, Some("")),
            (Xdp::On, &card, udp(true), true, 1500, Some("")),
            (Xdp::On, &card, udp(false), false, 1500, Some("no trains of frames")),
            (Xdp::Off, &veth, udp(false), true, 1500, None),
            (Xdp::On, &veth, vxlan, true, 1500, None),
            (Xdp::Auto, &veth, None, true, 1500, None),
            (Xdp::On, &veth, udp(false), true, 9000, Some("longer than a page")),
        ] {
            let on = gro.then(|| "rx-gro".to_owned()).into_iter().collect();
            let found = early(wanted, kind, mtu, format, &on).map(|found| found.err().unwrap_or_default());
            let same = match (&found, result) {
                (Some(found), Some("")) => found.is_empty(),
                (Some(found), Some(result)) => found.contains(result),
                (found, result) => found.is_none() && result.is_none(),
            };
            assert!(same, "{wanted:?} {kind:?} {format:?} {gro} {mtu}: {found:?}");
        }
    }

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
