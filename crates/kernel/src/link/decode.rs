//! Replies about devices.

use std::collections::HashMap;

use model::IfName;
use plan::state::{Bridge, Ipip, Link, LinkKind, Tun, Veth, Vxlan};

use super::number::*;
use super::{BridgeVlan, Detail, LinkInfo, PortFlags};
use crate::netlink::{Attr, Attrs, Reply};
use crate::wireguard;

/// Length of `struct ifinfomsg`.
const HEADER: usize = 16;

/// A device from an `RTM_NEWLINK` or `RTM_DELLINK` message. Names of other devices (`master`, a vxlan's
/// `lower`) are filled in later, by [`LinkInfo::resolve`].
pub fn decode(reply: &Reply<'_>) -> Option<LinkInfo> {
    if reply.kind != libc::RTM_NEWLINK && reply.kind != libc::RTM_DELLINK {
        return None;
    }
    // Bridges report their ports under their own family: not a device of its own.
    if reply.field::<1>(0)? != [0] {
        return None;
    }
    let index = u32::from_ne_bytes(reply.field(4)?);
    let flags = u32::from_ne_bytes(reply.field(8)?);
    let attrs: HashMap<u16, Attr<'_>> = reply.attrs(HEADER).map(|a| (a.kind, a)).collect();
    let number = |kind: u16| attrs.get(&kind).and_then(Attr::u32);
    let info = attrs.get(&libc::IFLA_LINKINFO).map_or(Attrs::new(&[]), Attr::nested);
    let kind = info.find(libc::IFLA_INFO_KIND).and_then(|a| a.text()).unwrap_or_default();
    let data = info.find(libc::IFLA_INFO_DATA).map_or(Attrs::new(&[]), |a| a.nested());
    // A vxlan device tells it among its own attributes only.
    let vxlan_lower = data.find(VXLAN_LINK).filter(|_| kind == "vxlan").and_then(|a| a.u32());
    let lower = number(libc::IFLA_LINK).or(vxlan_lower);
    Some(LinkInfo {
        index,
        link: Link {
            name: IfName::new(attrs.get(&libc::IFLA_IFNAME)?.text()?).ok()?,
            kind: link_kind(kind, data, lower),
            mac: attrs.get(&libc::IFLA_ADDRESS).and_then(Attr::mac),
            mtu: number(libc::IFLA_MTU),
            up: flags & libc::IFF_UP as u32 != 0,
            txqlen: number(libc::IFLA_TXQLEN),
            master: None,
        },
        flags,
        operstate: attrs.get(&libc::IFLA_OPERSTATE).and_then(Attr::u8).unwrap_or(0),
        hardware: reply.field(2).map_or(0, u16::from_ne_bytes),
        master: number(libc::IFLA_MASTER),
        lower,
        lower_netns: number(libc::IFLA_LINK_NETNSID).map(|n| n as i32),
        alias: attrs.get(&libc::IFLA_IFALIAS).and_then(Attr::text).map(str::to_owned),
        group: number(libc::IFLA_GROUP).unwrap_or(0),
        promiscuity: number(libc::IFLA_PROMISCUITY).unwrap_or(0),
        port: info
            .find(libc::IFLA_INFO_SLAVE_KIND)
            .filter(|a| a.text() == Some("bridge"))
            .and_then(|_| info.find(libc::IFLA_INFO_SLAVE_DATA))
            .map(|a| port(a.nested())),
        detail: detail(kind, data),
    })
}

fn detail(kind: &str, data: Attrs<'_>) -> Detail {
    let found = match kind {
        "macvlan" => data.find(MACVLAN_MODE).and_then(|a| a.u32()).map(Detail::MacvlanMode),
        "ipvlan" => data.find(IPVLAN_MODE).and_then(|a| a.u16()).map(Detail::IpvlanMode),
        "vlan" => data.find(VLAN_ID).and_then(|a| a.u16()).map(Detail::VlanId),
        "vrf" => data.find(VRF_TABLE).and_then(|a| a.u32()).map(Detail::VrfTable),
        _ => None,
    };
    found.unwrap_or_default()
}

fn link_kind(kind: &str, data: Attrs<'_>, lower: Option<u32>) -> LinkKind {
    let flag = |attr| data.find(attr).and_then(|a| a.u8()).is_some_and(|v| v != 0);
    let address = |v4, v6| data.find(v4).or_else(|| data.find(v6)).and_then(|a| a.ip());
    match kind {
        "vxlan" => LinkKind::Vxlan(Vxlan {
            vni: data.find(VXLAN_ID).and_then(|a| a.u32()).unwrap_or(0),
            port: data.find(VXLAN_PORT).and_then(|a| a.be16()).unwrap_or(0),
            local: address(VXLAN_LOCAL, VXLAN_LOCAL6),
            lower: None,
            learning: flag(VXLAN_LEARNING),
            gbp: data.find(VXLAN_GBP).is_some(),
            l2miss: flag(VXLAN_L2MISS),
            group: address(VXLAN_GROUP, VXLAN_GROUP6),
        }),
        "ipip" => {
            // 0.0.0.0 stands for none.
            let address = |attr| data.find(attr).and_then(|a| a.ip()).filter(|ip| !ip.is_unspecified());
            LinkKind::Ipip(Ipip { local: address(IPTUN_LOCAL), remote: address(IPTUN_REMOTE) })
        }
        "wireguard" => LinkKind::Wireguard(wireguard::unknown()),
        "tun" => match data.find(TUN_TYPE).and_then(|a| a.u8()) {
            Some(kind) => LinkKind::Tun(Tun {
                tap: i32::from(kind) != libc::IFF_TUN,
                persistent: flag(TUN_PERSIST),
                multi_queue: flag(TUN_MULTI_QUEUE),
                headers: flag(TUN_VNET_HDR),
            }),
            // Before Linux 4.18 nothing is said of it.
            None => LinkKind::Tun(Tun::OURS),
        },
        "bridge" => LinkKind::Bridge(Bridge { vlan_filtering: flag(BR_VLAN_FILTERING) }),
        "veth" => LinkKind::Veth(Veth { peer_index: lower }),
        other => LinkKind::Other(other.to_owned()),
    }
}

fn port(data: Attrs<'_>) -> PortFlags {
    let flag = |attr| data.find(attr).and_then(|a| a.u8()).map(|v| v != 0);
    PortFlags { hairpin: flag(BRPORT_MODE), isolated: flag(BRPORT_ISOLATED), learning: flag(BRPORT_LEARNING) }
}

impl LinkInfo {
    /// Fills in the names of the devices this one refers to, as far as they are in this namespace.
    pub fn resolve(&mut self, mut name: impl FnMut(u32) -> Option<IfName>) {
        self.link.master = self.master.and_then(&mut name);
        if let (LinkKind::Vxlan(vxlan), Some(lower), None) =
            (&mut self.link.kind, self.lower, self.lower_netns)
        {
            vxlan.lower = name(lower);
        }
    }
}

/// Index of a port and its VLANs, from a dump of the bridge family.
pub fn decode_vlans(reply: &Reply<'_>) -> Option<(u32, Vec<BridgeVlan>)> {
    if reply.kind != libc::RTM_NEWLINK {
        return None;
    }
    let index = u32::from_ne_bytes(reply.field(4)?);
    let mut vlans = Vec::new();
    let mut begin = None;
    for attr in reply.attrs(HEADER).find(libc::IFLA_AF_SPEC)?.nested() {
        if let (BRIDGE_VLAN_INFO, [a, b, c, d]) = (attr.kind, attr.data) {
            let (flags, id) = (u16::from_ne_bytes([*a, *b]), u16::from_ne_bytes([*c, *d]));
            if flags & (1 << 3) != 0 {
                begin = Some(id);
                continue;
            }
            let first = begin.take().unwrap_or(id);
            let vlan = |id| BridgeVlan { id, pvid: flags & (1 << 1) != 0, untagged: flags & (1 << 2) != 0 };
            vlans.extend((first..=id).map(vlan));
        }
    }
    Some((index, vlans))
}
