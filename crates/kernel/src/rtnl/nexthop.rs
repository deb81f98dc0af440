//! Nexthop objects as rtnetlink messages (linux/nexthop.h, kernel ≥ 5.3).

use std::net::IpAddr;

use model::Family;

use super::{Put, family_number};
use crate::netlink::{Attr, Message, Reply};

/// `RTM_NEWNEXTHOP` and the next two; libc lacks them.
pub const RTM_NEWNEXTHOP: u16 = 104;
/// Deletion.
pub const RTM_DELNEXTHOP: u16 = 105;
const RTM_GETNEXTHOP: u16 = 106;
// NHA_…
const ID: u16 = 1;
const GROUP: u16 = 2;
const OIF: u16 = 5;
const GATEWAY: u16 = 6;
/// `RTNH_F_ONLINK`
pub(super) const ONLINK: u32 = 4;
/// Length of `struct nhmsg`.
const HEADER: usize = 8;

/// A nexthop object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NexthopInfo {
    /// Its id.
    pub id: u32,
    /// `RTPROT_…`, tells whose it is.
    pub protocol: u8,
    /// Index of the outgoing device; none for groups and blackholes.
    pub index: Option<u32>,
    /// Gateway, if any.
    pub gateway: Option<IpAddr>,
    /// The gateway need not be covered by an address of ours.
    pub onlink: bool,
    /// A group of nexthops.
    pub group: bool,
}

fn header(family: u8, protocol: u8, flags: u32) -> [u8; HEADER] {
    let [a, b, c, d] = flags.to_ne_bytes();
    [family, 0, protocol, 0, a, b, c, d]
}

/// Adds a nexthop.
pub fn add(nexthop: &NexthopInfo, put: Put) -> Message {
    let mut m = Message::new(RTM_NEWNEXTHOP, put.flags());
    let family = nexthop.gateway.map_or(libc::AF_INET as u8, |ip| family_number(Family::of(ip)));
    m.header(header(family, nexthop.protocol, if nexthop.onlink { ONLINK } else { 0 }));
    m.attr_u32(ID, nexthop.id);
    if let Some(index) = nexthop.index {
        m.attr_u32(OIF, index);
    }
    if let Some(gateway) = nexthop.gateway {
        m.attr_ip(GATEWAY, gateway);
    }
    m
}

/// Deletes a nexthop and every route through it.
pub fn delete(id: u32) -> Message {
    let mut m = Message::new(RTM_DELNEXTHOP, 0);
    m.header(header(0, 0, 0)).attr_u32(ID, id);
    m
}

/// Asks for all nexthops.
pub fn dump() -> Message {
    let mut m = Message::new(RTM_GETNEXTHOP, 0);
    m.header(header(0, 0, 0));
    m
}

/// A nexthop from an `RTM_NEWNEXTHOP` or `RTM_DELNEXTHOP` message.
pub fn decode(reply: &Reply<'_>) -> Option<NexthopInfo> {
    if reply.kind != RTM_NEWNEXTHOP && reply.kind != RTM_DELNEXTHOP {
        return None;
    }
    let attrs = reply.attrs(HEADER);
    Some(NexthopInfo {
        id: attrs.find(ID)?.u32()?,
        protocol: reply.field::<1>(2)?[0],
        index: attrs.find(OIF).as_ref().and_then(Attr::u32),
        gateway: attrs.find(GATEWAY).as_ref().and_then(Attr::ip),
        onlink: u32::from_ne_bytes(reply.field(4)?) & ONLINK != 0,
        group: attrs.find(GROUP).is_some(),
    })
}
