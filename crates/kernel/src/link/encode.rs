//! Requests about devices.

use std::os::fd::{AsRawFd, BorrowedFd};

use model::IfName;
use plan::state::{Ipip, Vxlan};

use super::number::*;
use super::{BridgeVlan, End, LinkChange, NewKind, NewLink, PortFlags, VlanOp};
use crate::netlink::Message;

const UP: u32 = libc::IFF_UP as u32;
/// `IFLA_INET_CONF`, `IFLA_INET6_ADDR_GEN_MODE` (uapi/linux/if_link.h)
const INET_CONF: u16 = 1;
const ADDR_GEN_MODE: u16 = 8;
/// `IN6_ADDR_GEN_MODE_NONE`
const GENERATE_NONE: u8 = 1;
/// `IPV4_DEVCONF_ARP_NOTIFY` (uapi/linux/ip.h)
const ARP_NOTIFY: u16 = 22;

/// `struct ifinfomsg`
fn header(family: i32, index: u32, flags: u32, mask: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0] = family as u8;
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&mask.to_ne_bytes());
    bytes
}

/// Makes a device.
pub fn create(new: &NewLink<'_>) -> Message {
    let mut m = Message::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
    end(&mut m, &new.end, if new.up { UP } else { 0 });
    for (attr, value) in [(libc::IFLA_MASTER, new.master), (libc::IFLA_GROUP, new.group)] {
        if let Some(value) = value {
            m.attr_u32(attr, value);
        }
    }
    if let NewKind::Macvlan { lower, .. } | NewKind::Ipvlan { lower, .. } | NewKind::Vlan { lower, .. } =
        new.kind
    {
        m.attr_u32(libc::IFLA_LINK, lower);
    }
    m.nest(libc::IFLA_LINKINFO, |m| {
        m.attr_text(libc::IFLA_INFO_KIND, new.kind.name());
        match &new.kind {
            NewKind::Veth(peer) => m.nest(libc::IFLA_INFO_DATA, |m| {
                m.nest(VETH_PEER, |m| end(m, peer, 0));
            }),
            NewKind::Bridge { vlan_filtering: true } => m.nest(libc::IFLA_INFO_DATA, |m| {
                m.attr_u8(BR_VLAN_FILTERING, 1);
            }),
            // A kernel built without VLAN filtering refuses the attribute even when it says "off".
            NewKind::Bridge { vlan_filtering: false } | NewKind::Plain(_) => m,
            NewKind::Vxlan { vxlan, lower } => m.nest(libc::IFLA_INFO_DATA, |m| vxlan_data(m, vxlan, *lower)),
            NewKind::Ipip(ipip) => m.nest(libc::IFLA_INFO_DATA, |m| ipip_data(m, ipip)),
            NewKind::Macvlan { mode, broadcast_queue, .. } => m.nest(libc::IFLA_INFO_DATA, |m| {
                m.attr_u32(MACVLAN_MODE, *mode);
                if let Some(length) = broadcast_queue {
                    m.attr_u32(MACVLAN_BC_QUEUE_LEN, *length);
                }
            }),
            NewKind::Ipvlan { mode, .. } => m.nest(libc::IFLA_INFO_DATA, |m| {
                m.attr_u16(IPVLAN_MODE, *mode);
            }),
            NewKind::Vrf { table } => m.nest(libc::IFLA_INFO_DATA, |m| {
                m.attr_u32(VRF_TABLE, *table);
            }),
            NewKind::Vlan { id, .. } => m.nest(libc::IFLA_INFO_DATA, |m| {
                m.attr_u16(VLAN_ID, *id);
            }),
        };
    });
    m
}

fn end(m: &mut Message, end: &End<'_>, flags: u32) {
    m.bytes(&header(libc::AF_UNSPEC, end.index.unwrap_or(0), flags, flags));
    m.attr_text(libc::IFLA_IFNAME, end.name.as_str());
    if let Some(mac) = end.mac {
        m.attr_mac(libc::IFLA_ADDRESS, mac);
    }
    numbers(m, end.mtu, end.txqlen, end.netns);
}

fn numbers(m: &mut Message, mtu: Option<u32>, txqlen: Option<u32>, netns: Option<BorrowedFd<'_>>) {
    for (attr, value) in [
        (libc::IFLA_MTU, mtu),
        (libc::IFLA_TXQLEN, txqlen),
        (libc::IFLA_NET_NS_FD, netns.map(|fd| fd.as_raw_fd() as u32)),
    ] {
        if let Some(value) = value {
            m.attr_u32(attr, value);
        }
    }
}

/// The attributes flannel sets (flannel.md 6.2), so that a device of ours is like one of flannel's.
fn vxlan_data(m: &mut Message, vxlan: &Vxlan, lower: Option<u32>) {
    m.attr_u32(VXLAN_ID, vxlan.vni);
    if let Some(lower) = lower {
        m.attr_u32(VXLAN_LINK, lower);
    }
    for (address, v4, v6) in
        [(vxlan.local, VXLAN_LOCAL, VXLAN_LOCAL6), (vxlan.group, VXLAN_GROUP, VXLAN_GROUP6)]
    {
        if let Some(ip) = address {
            m.attr_ip(if ip.is_ipv4() { v4 } else { v6 }, ip);
        }
    }
    for (attr, value) in [
        (VXLAN_TTL, 0),
        (VXLAN_TOS, 0),
        (VXLAN_LEARNING, u8::from(vxlan.learning)),
        (VXLAN_PROXY, 0),
        (VXLAN_RSC, 0),
        (VXLAN_L2MISS, u8::from(vxlan.l2miss)),
        (VXLAN_L3MISS, 0),
        (VXLAN_ZERO_CSUM6_TX, 0),
        (VXLAN_ZERO_CSUM6_RX, 0),
    ] {
        m.attr_u8(attr, value);
    }
    if vxlan.port != 0 {
        m.attr_be16(VXLAN_PORT, vxlan.port);
    }
    if vxlan.gbp {
        m.attr_flag(VXLAN_GBP);
    }
}

/// Everything the kernel would otherwise choose is inherited from the inner packet, "do not fragment" is
/// not set: what fits the device fits the outer packet (flannel.md 6.6).
fn ipip_data(m: &mut Message, ipip: &Ipip) {
    for (attr, address) in [(IPTUN_LOCAL, ipip.local), (IPTUN_REMOTE, ipip.remote)] {
        if let Some(ip) = address {
            m.attr_ip(attr, ip);
        }
    }
    for attr in [IPTUN_TTL, IPTUN_TOS, IPTUN_PMTUDISC] {
        m.attr_u8(attr, 0);
    }
}

/// Changes a device, by one message or more.
pub fn change(index: u32, change: &LinkChange<'_>) -> Vec<Message> {
    let (mut flags, mut mask) = (0, 0);
    for (bit, wanted) in [
        (UP, change.up),
        (libc::IFF_PROMISC as u32, change.promisc),
        (libc::IFF_ALLMULTI as u32, change.allmulticast),
    ] {
        if let Some(on) = wanted {
            mask |= bit;
            flags |= if on { bit } else { 0 };
        }
    }
    let mut m = Message::new(libc::RTM_NEWLINK, 0);
    m.bytes(&header(libc::AF_UNSPEC, index, flags, mask));
    if let Some(mac) = change.mac {
        m.attr_mac(libc::IFLA_ADDRESS, mac);
    }
    numbers(&mut m, change.mtu, change.txqlen, change.netns);
    for (attr, value) in [(libc::IFLA_MASTER, change.master), (libc::IFLA_GROUP, change.group)] {
        if let Some(value) = value {
            m.attr_u32(attr, value);
        }
    }
    if let Some(name) = change.name {
        m.attr_text(libc::IFLA_IFNAME, name.as_str());
    }
    if let Some(alias) = change.alias {
        m.attr(libc::IFLA_IFALIAS, alias.as_bytes());
    }
    let mut messages = vec![m];
    // Apart, because a vxlan device refuses an MTU beside its own attributes ("Cannot change mtu").
    let mut own = |kind: &str, attributes: &dyn Fn(&mut Message)| {
        let mut m = Message::new(libc::RTM_NEWLINK, 0);
        m.bytes(&header(libc::AF_UNSPEC, index, 0, 0));
        m.nest(libc::IFLA_LINKINFO, |m| {
            m.attr_text(libc::IFLA_INFO_KIND, kind);
            m.nest(libc::IFLA_INFO_DATA, |m| attributes(m));
        });
        messages.push(m);
    };
    let (learning, local, lower) = (change.vxlan_learning, change.vxlan_local, change.vxlan_lower);
    if learning.is_some() || local.is_some() || lower.is_some() {
        // Address and lower device in one message: no packet leaves with half of the two.
        own("vxlan", &|m| {
            if let Some(on) = learning {
                m.attr_u8(VXLAN_LEARNING, u8::from(on));
            }
            if let Some(local) = local {
                m.attr_ip(if local.is_ipv4() { VXLAN_LOCAL } else { VXLAN_LOCAL6 }, local);
            }
            if let Some(lower) = lower {
                m.attr_u32(VXLAN_LINK, lower);
            }
        });
    }
    if let Some(on) = change.vlan_filtering {
        own("bridge", &|m| {
            m.attr_u8(BR_VLAN_FILTERING, u8::from(on));
        });
    }
    messages
}

/// Has the kernel give a device no IPv6 address of its own accord (RFC 4291 2.5.1).
pub fn no_own_address(index: u32) -> Message {
    settings(index, no_address)
}

/// Has a device tell its neighbours of its IPv4 addresses when it comes up: `arp_notify`.
pub fn arp_notify(index: u32) -> Message {
    settings(index, |m| {
        m.nest_plain(libc::AF_INET as u16, |m| {
            m.nest_plain(INET_CONF, |m| {
                m.attr_u32(ARP_NOTIFY, 1);
            });
        });
    })
}

/// Settings that a protocol keeps for a device.
fn settings(index: u32, of_protocols: impl FnOnce(&mut Message)) -> Message {
    let mut m = Message::new(libc::RTM_SETLINK, 0);
    m.bytes(&header(libc::AF_UNSPEC, index, 0, 0));
    m.nest_plain(libc::IFLA_AF_SPEC, of_protocols);
    m
}

/// Sets flags of a bridge port.
pub fn set_port(index: u32, port: &PortFlags) -> Message {
    let mut m = Message::new(libc::RTM_SETLINK, 0);
    m.bytes(&header(libc::AF_BRIDGE, index, 0, 0));
    m.nest(libc::IFLA_PROTINFO, |m| port_flags(m, port));
    m
}

/// The same, the port brought up, and [`no_own_address`], in one request instead of three: each waits for the kernel's
/// lock. A kernel without IPv6 refuses all of it.
pub fn port_up(index: u32, port: &PortFlags) -> Message {
    let mut m = Message::new(libc::RTM_NEWLINK, 0);
    m.bytes(&header(libc::AF_UNSPEC, index, UP, UP));
    if *port != PortFlags::default() {
        m.nest(libc::IFLA_LINKINFO, |m| {
            m.attr_text(libc::IFLA_INFO_SLAVE_KIND, "bridge");
            m.nest(libc::IFLA_INFO_SLAVE_DATA, |m| port_flags(m, port));
        });
    }
    m.nest_plain(libc::IFLA_AF_SPEC, no_address);
    m
}

fn port_flags(m: &mut Message, port: &PortFlags) {
    for (attr, value) in
        [(BRPORT_MODE, port.hairpin), (BRPORT_ISOLATED, port.isolated), (BRPORT_LEARNING, port.learning)]
    {
        if let Some(on) = value {
            m.attr_u8(attr, u8::from(on));
        }
    }
}

/// Settings of IPv6 for a device that shall have no address of its own.
fn no_address(m: &mut Message) {
    m.nest_plain(libc::AF_INET6 as u16, |m| {
        m.attr_u8(ADDR_GEN_MODE, GENERATE_NONE);
    });
}

/// Adds or removes the VLANs from `vlan.id` to `last` on a bridge port, or with `own` on the bridge
/// device itself.
pub fn vlan(op: VlanOp, index: u32, vlan: BridgeVlan, last: u16, own: bool) -> Message {
    // BRIDGE_FLAGS_SELF; BRIDGE_VLAN_INFO_…
    const SELF: u16 = 2;
    const PVID: u16 = 1 << 1;
    const UNTAGGED: u16 = 1 << 2;
    const RANGE_BEGIN: u16 = 1 << 3;
    const RANGE_END: u16 = 1 << 4;
    let kind = match op {
        VlanOp::Add => libc::RTM_SETLINK,
        VlanOp::Delete => libc::RTM_DELLINK,
    };
    let flags = if vlan.pvid { PVID } else { 0 } | if vlan.untagged { UNTAGGED } else { 0 };
    let info = |flags: u16, id: u16| {
        let ([a, b], [c, d]) = (flags.to_ne_bytes(), id.to_ne_bytes());
        [a, b, c, d]
    };
    let mut m = Message::new(kind, 0);
    m.bytes(&header(libc::AF_BRIDGE, index, 0, 0));
    m.nest(libc::IFLA_AF_SPEC, |m| {
        if own {
            m.attr_u16(BRIDGE_FLAGS, SELF);
        }
        if last > vlan.id {
            m.attr(BRIDGE_VLAN_INFO, &info(flags | RANGE_BEGIN, vlan.id));
            m.attr(BRIDGE_VLAN_INFO, &info(flags | RANGE_END, last));
        } else {
            m.attr(BRIDGE_VLAN_INFO, &info(flags, vlan.id));
        }
    });
    m
}

/// Deletes a device.
pub fn delete(index: u32) -> Message {
    let mut m = Message::new(libc::RTM_DELLINK, 0);
    m.bytes(&header(libc::AF_UNSPEC, index, 0, 0));
    m
}

/// Deletes all devices of a group; one wait for the kernel's readers instead of one for each.
pub fn delete_group(group: u32) -> Message {
    let mut m = Message::new(libc::RTM_DELLINK, 0);
    m.bytes(&header(libc::AF_UNSPEC, 0, 0, 0)).attr_u32(libc::IFLA_GROUP, group);
    m
}

fn get_any(index: u32) -> Message {
    let mut m = Message::new(libc::RTM_GETLINK, 0);
    m.bytes(&header(libc::AF_UNSPEC, index, 0, 0));
    m.attr_u32(libc::IFLA_EXT_MASK, libc::RTEXT_FILTER_SKIP_STATS as u32);
    m
}

/// Asks for one device.
pub fn get(index: u32) -> Message {
    get_any(index)
}

/// Asks for one device.
pub fn get_by_name(name: IfName) -> Message {
    let mut m = get_any(0);
    m.attr_text(libc::IFLA_IFNAME, name.as_str());
    m
}

/// Asks for all devices.
pub fn dump() -> Message {
    get_any(0)
}

/// Asks for the VLANs of all bridge ports.
pub fn dump_vlans() -> Message {
    let mut m = Message::new(libc::RTM_GETLINK, 0);
    m.bytes(&header(libc::AF_BRIDGE, 0, 0, 0));
    m.attr_u32(libc::IFLA_EXT_MASK, libc::RTEXT_FILTER_BRVLAN as u32);
    m
}
