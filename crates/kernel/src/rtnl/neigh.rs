//! Neighbours and forwarding entries as rtnetlink messages (linux/neighbour.h): one message type for both.

use std::net::IpAddr;

use model::{Family, Mac};

use super::{Put, family_number, family_of};
use crate::netlink::{Attr, Message, Reply};

/// Length of `struct ndmsg`.
const HEADER: usize = 12;
/// Entries that do not age; the only ones we write.
pub const PERMANENT: u16 = libc::NUD_PERMANENT;

/// A neighbour entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeighInfo {
    /// Index of the device.
    pub index: u32,
    /// Network-layer address.
    pub dst: IpAddr,
    /// Link-layer address, where known.
    pub mac: Option<Mac>,
    /// `NUD_…`
    pub state: u16,
    /// `NTF_…`
    pub flags: u8,
}

impl NeighInfo {
    /// An entry that does not age.
    pub fn permanent(index: u32, dst: IpAddr, mac: Mac) -> NeighInfo {
        NeighInfo { index, dst, mac: Some(mac), state: PERMANENT, flags: 0 }
    }
}

/// A forwarding entry of a bridge port or vxlan device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FdbInfo {
    /// Index of the device.
    pub index: u32,
    /// Destination address of frames.
    pub mac: Mac,
    /// Outer destination, for vxlan devices.
    pub dst: Option<IpAddr>,
    /// VLAN, for bridges that filter.
    pub vlan: Option<u16>,
    /// `NUD_…`: permanent, reachable (static), or learned.
    pub state: u16,
    /// `NTF_SELF` (the device's own table) or `NTF_MASTER` (its bridge's).
    pub flags: u8,
}

impl FdbInfo {
    /// `bridge fdb … dst … self permanent` of a vxlan device.
    pub fn vxlan(index: u32, mac: Mac, dst: IpAddr) -> FdbInfo {
        FdbInfo { index, mac, dst: Some(dst), vlan: None, state: PERMANENT, flags: libc::NTF_SELF }
    }
}

fn header(family: u8, index: u32, state: u16, flags: u8) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[0] = family;
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..10].copy_from_slice(&state.to_ne_bytes());
    bytes[10] = flags;
    bytes
}

fn family(ip: IpAddr) -> u8 {
    family_number(Family::of(ip))
}

/// Adds a neighbour.
pub fn add(n: &NeighInfo, put: Put) -> Message {
    let mut m = Message::new(libc::RTM_NEWNEIGH, put.flags());
    m.header(header(family(n.dst), n.index, n.state, n.flags)).attr_ip(libc::NDA_DST, n.dst);
    if let Some(mac) = n.mac {
        m.attr_mac(libc::NDA_LLADDR, mac);
    }
    m
}

/// Deletes a neighbour.
pub fn delete(index: u32, dst: IpAddr) -> Message {
    let mut m = Message::new(libc::RTM_DELNEIGH, 0);
    m.header(header(family(dst), index, 0, 0)).attr_ip(libc::NDA_DST, dst);
    m
}

/// Adds a forwarding entry. Replacing one of a vxlan device changes its destination.
pub fn add_fdb(entry: &FdbInfo, put: Put) -> Message {
    fdb(libc::RTM_NEWNEIGH, put.flags(), entry)
}

/// Deletes a forwarding entry, if it has the given destination.
pub fn delete_fdb(entry: &FdbInfo) -> Message {
    fdb(libc::RTM_DELNEIGH, 0, entry)
}

fn fdb(kind: u16, flags: i32, entry: &FdbInfo) -> Message {
    let mut m = Message::new(kind, flags);
    m.header(header(libc::AF_BRIDGE as u8, entry.index, entry.state, entry.flags));
    m.attr_mac(libc::NDA_LLADDR, entry.mac);
    if let Some(dst) = entry.dst {
        m.attr_ip(libc::NDA_DST, dst);
    }
    if let Some(vlan) = entry.vlan {
        m.attr_u16(libc::NDA_VLAN, vlan);
    }
    m
}

/// Asks for neighbours of both families, of one device or all. The device must be an attribute: strict
/// checking refuses it in the header.
pub fn dump(index: Option<u32>) -> Message {
    dump_family(0, index)
}

/// Asks for forwarding entries.
pub fn dump_fdb(index: Option<u32>) -> Message {
    dump_family(libc::AF_BRIDGE as u8, index)
}

fn dump_family(family: u8, index: Option<u32>) -> Message {
    let mut m = Message::new(libc::RTM_GETNEIGH, 0);
    m.header(header(family, 0, 0, 0));
    if let Some(index) = index {
        m.attr_u32(libc::NDA_IFINDEX, index);
    }
    m
}

fn is_neigh(reply: &Reply<'_>) -> bool {
    reply.kind == libc::RTM_NEWNEIGH || reply.kind == libc::RTM_DELNEIGH
}

/// A neighbour from an `RTM_NEWNEIGH` or `RTM_DELNEIGH` message.
pub fn decode(reply: &Reply<'_>) -> Option<NeighInfo> {
    let [family] = reply.field(0)?;
    if !is_neigh(reply) || family_of(family).is_none() {
        return None;
    }
    let attrs = reply.attrs(HEADER);
    Some(NeighInfo {
        index: u32::from_ne_bytes(reply.field(4)?),
        dst: attrs.find(libc::NDA_DST)?.ip()?,
        mac: attrs.find(libc::NDA_LLADDR).as_ref().and_then(Attr::mac),
        state: u16::from_ne_bytes(reply.field(8)?),
        flags: reply.field::<1>(10)?[0],
    })
}

/// A forwarding entry from an `RTM_NEWNEIGH` or `RTM_DELNEIGH` message.
pub fn decode_fdb(reply: &Reply<'_>) -> Option<FdbInfo> {
    if !is_neigh(reply) || reply.field(0)? != [libc::AF_BRIDGE as u8] {
        return None;
    }
    let attrs = reply.attrs(HEADER);
    Some(FdbInfo {
        index: u32::from_ne_bytes(reply.field(4)?),
        mac: attrs.find(libc::NDA_LLADDR)?.mac()?,
        dst: attrs.find(libc::NDA_DST).as_ref().and_then(Attr::ip),
        vlan: attrs.find(libc::NDA_VLAN).as_ref().and_then(Attr::u16),
        state: u16::from_ne_bytes(reply.field(8)?),
        flags: reply.field::<1>(10)?[0],
    })
}
