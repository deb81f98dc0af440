//! Whose packets a tunnel takes: a set of the addresses of known nodes beside each tunnel device of the
//! kernel's, and a rule that drops what comes for that tunnel from elsewhere, and counts it. Without it
//! anyone who reaches the host can put packets into the pod network, for ipip and vxlan look at no outer
//! source (services-policy-dns.md R-13, decision 0155).
//!
//! A table per device and family, because several agents may share a host. It is not owned, so that an
//! agent that starts finds it filled and leaves it as it is.

use std::net::IpAddr;
use std::sync::Arc;

use model::{Family, IfName, IpNet};

use crate::backend::is_our_device;
use crate::state::{
    Chain, ChainType, Element, Hook, Match, NftFamily, NftRule, NftTable, Object, Set, SetKey, Statement,
    TableKey, Verdict,
};

/// The table of device `flannel.1` is called `loden-flannel.1`.
const PREFIX: &str = "loden-";
/// Addresses of nodes that have a lease.
const NODES: &str = "nodes";
/// Far ends of tunnels that are not ours, and end at the same address as ours.
const TUNNELS: &str = "tunnels";

/// Numbers of IP in IP and of UDP.
const IPIP: u8 = 4;
const UDP: u8 = 17;

/// How packets for a tunnel are recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outer {
    /// IPv4 in IPv4 to this address: another address may be another tunnel's.
    Ipip {
        /// The tunnel's end.
        local: IpAddr,
    },
    /// A VXLAN network on a port, which other networks may share. The kernel looks at no address.
    Vxlan {
        /// UDP destination port.
        port: u16,
        /// Network identifier.
        vni: u32,
    },
}

/// The table beside one device, in one family of outer packets.
#[derive(Clone, Debug)]
pub struct Guard {
    family: Family,
    nodes: Arc<SetKey>,
    tunnels: Arc<SetKey>,
}

impl Guard {
    /// For a device of ours.
    pub fn new(device: IfName, family: Family) -> Guard {
        let set = |name: &str| Arc::new(SetKey { table: key(device, family), name: name.to_owned() });
        Guard { family, nodes: set(NODES), tunnels: set(TUNNELS) }
    }

    /// The table without the elements of its sets.
    pub fn table(&self, outer: Outer) -> Object {
        let unknown = |set: &str| Match::SourceNotIn(self.family, set.to_owned());
        let (matches, sets) = match outer {
            Outer::Ipip { local } => (
                vec![
                    Match::Protocol(IPIP),
                    Match::Destination(local.into()),
                    unknown(NODES),
                    // The kernel prefers a tunnel with a fixed far end to ours.
                    unknown(TUNNELS),
                ],
                vec![NODES, TUNNELS],
            ),
            Outer::Vxlan { port, vni } => (
                vec![Match::Protocol(UDP), Match::DestinationPort(port), Match::VxlanId(vni), unknown(NODES)],
                vec![NODES],
            ),
        };
        let drop = NftRule { matches, statement: Statement::Counted(Verdict::Drop), comment: None };
        let set = |name: &str| Set { name: name.to_owned(), family: self.family };
        Object::Nft(Box::new(NftTable {
            key: self.nodes.table.clone(),
            comment: Some("the tunnel takes packets from nodes with a lease".to_owned()),
            owned: false,
            sets: sets.into_iter().map(set).collect(),
            chains: vec![Chain {
                name: "input".to_owned(),
                comment: None,
                hook: Some(Hook { kind: ChainType::Filter, number: 1, priority: 0 }),
                rules: vec![drop],
            }],
            drifted: false,
        }))
    }

    /// A node's address.
    pub fn node(&self, address: IpAddr) -> Object {
        Object::Element(Element { set: self.nodes.clone(), address })
    }

    /// The far end of a tunnel that is not ours.
    pub fn tunnel(&self, address: IpAddr) -> Object {
        Object::Element(Element { set: self.tunnels.clone(), address })
    }
}

/// The table beside a WireGuard device, in one family of outer packets: none of them comes from the cluster's own
/// networks. A node without its public address for a moment takes the next best source, which is that of its tunnel;
/// who hears that moves the endpoint there, into the tunnel, and the kernel then wraps what it has wrapped without
/// end (decision 0172). Nor does this node send such packets to nodes that do not look.
pub fn from_outside(device: IfName, family: Family, port: u16, networks: &[IpNet]) -> Object {
    let drop = |network: &IpNet, leaving: Option<Match>| NftRule {
        matches: [Match::Protocol(UDP), Match::DestinationPort(port), Match::Source(*network)]
            .into_iter()
            .chain(leaving)
            .collect(),
        statement: Statement::Counted(Verdict::Drop),
        comment: None,
    };
    let chain = |name: &str, number: u32, leaving: Option<Match>| Chain {
        name: name.to_owned(),
        comment: None,
        hook: Some(Hook { kind: ChainType::Filter, number, priority: 0 }),
        rules: networks.iter().map(|network| drop(network, leaving.clone())).collect(),
    };
    Object::Nft(Box::new(NftTable {
        key: key(device, family),
        comment: Some("the tunnel's own packets come from outside".to_owned()),
        owned: false,
        sets: Vec::new(),
        chains: vec![chain("input", 1, None), chain("output", 3, Some(Match::OutputDeviceNot(device)))],
        drifted: false,
    }))
}

fn key(device: IfName, family: Family) -> TableKey {
    let family = match family {
        Family::V4 => NftFamily::Ip,
        Family::V6 => NftFamily::Ip6,
    };
    TableKey { family, name: format!("{PREFIX}{device}") }
}

/// The tables that may stand beside these devices, whether wanted or not: what a scope must own to remove
/// them.
pub fn keys(devices: impl IntoIterator<Item = IfName>) -> impl Iterator<Item = TableKey> {
    devices.into_iter().flat_map(|device| Family::BOTH.map(|family| key(device, family)))
}

/// Whether a table is one of these, by its name.
pub fn is_ours(table: &TableKey) -> bool {
    device(table).is_some()
}

/// Whether it is that of [`from_outside`].
pub fn is_of_wireguard(table: &TableKey) -> bool {
    use crate::backend::wireguard::{DEVICE, DEVICE_V6};
    device(table).is_some_and(|device| [DEVICE, DEVICE_V6].contains(&device.as_str()))
}

/// The device a table stands beside, by its name.
pub fn device(table: &TableKey) -> Option<IfName> {
    let device = table.name.strip_prefix(PREFIX).and_then(|name| IfName::new(name).ok());
    device.filter(|device| matches!(table.family, NftFamily::Ip | NftFamily::Ip6) && is_our_device(*device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_known_by_the_device_in_their_name() {
        let table = |family, name: &str| TableKey { family, name: name.to_owned() };
        for (key, ours) in [
            (table(NftFamily::Ip, "loden-flannel.1"), true),
            (table(NftFamily::Ip6, "loden-flannel-v6.4096"), true),
            (table(NftFamily::Ip, "loden-flannel.ipip"), true),
            (table(NftFamily::Ip6, "loden-flannel-wg-v6"), true),
            (table(NftFamily::Inet, "loden-flannel.1"), false),
            (table(NftFamily::Ip, "loden-veth-to-host"), false),
            (table(NftFamily::Ip, "flannel.1"), false),
        ] {
            assert_eq!(is_ours(&key), ours, "{key}");
        }
        let devices = ["flannel.7", "flannel-v6.7"].map(|name| IfName::new(name).expect("a name"));
        assert!(keys(devices).all(|key| is_ours(&key)));
    }
}
