//! Addresses as rtnetlink messages (linux/if_addr.h).

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use model::Family;

use super::{Put, family_number, family_of};
use crate::netlink::{Attr, Message, Reply};

/// `IFA_FLAGS`; libc lacks it.
const FLAGS: u16 = 8;

/// An address on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddrInfo {
    /// Index of the device.
    pub index: u32,
    /// Address, host bits kept, and prefix length.
    pub net: IpNet,
    /// The other end's address, on point-to-point links.
    pub peer: Option<IpAddr>,
    /// Broadcast address.
    pub broadcast: Option<Ipv4Addr>,
    /// `RT_SCOPE_…`: 0 global, 253 link, 254 host.
    pub scope: u8,
    /// `IFA_F_…`, see the constants; more bits when read.
    pub flags: u32,
}

impl AddrInfo {
    /// Do not look for duplicates (IPv6).
    pub const NODAD: u32 = libc::IFA_F_NODAD;
    /// Look for duplicates, but use the address meanwhile (IPv6, RFC 4429).
    pub const OPTIMISTIC: u32 = libc::IFA_F_OPTIMISTIC;
    /// Add no route to the prefix.
    pub const NOPREFIXROUTE: u32 = 0x200;
    /// Looking for duplicates is under way.
    pub const TENTATIVE: u32 = libc::IFA_F_TENTATIVE;
    /// A duplicate was found.
    pub const DADFAILED: u32 = libc::IFA_F_DADFAILED;
    /// Not from a router advertisement or lease.
    pub const PERMANENT: u32 = libc::IFA_F_PERMANENT;

    /// An address with the scope it has by itself: host for loopback, link for link-local ones.
    pub fn new(index: u32, net: IpNet) -> AddrInfo {
        let scope = match net.addr() {
            ip if ip.is_loopback() => libc::RT_SCOPE_HOST,
            IpAddr::V4(ip) if ip.is_link_local() => libc::RT_SCOPE_LINK,
            IpAddr::V6(ip) if ip.is_unicast_link_local() => libc::RT_SCOPE_LINK,
            _ => libc::RT_SCOPE_UNIVERSE,
        };
        AddrInfo { index, net, peer: None, broadcast: None, scope, flags: 0 }
    }
}

/// `struct ifaddrmsg`
fn header(family: u8, length: u8, scope: u8, index: u32) -> [u8; 8] {
    let [a, b, c, d] = index.to_ne_bytes();
    [family, length, 0, scope, a, b, c, d]
}

/// Adds an address.
pub fn add(address: &AddrInfo, put: Put) -> Message {
    let mut m = Message::new(libc::RTM_NEWADDR, put.flags());
    fill(&mut m, address.index, address.net, address.peer, address.scope);
    if let Some(broadcast) = address.broadcast {
        m.attr_ip(libc::IFA_BROADCAST, broadcast.into());
    }
    if address.flags != 0 {
        m.attr_u32(FLAGS, address.flags);
    }
    m
}

/// Deletes an address.
pub fn delete(index: u32, net: IpNet) -> Message {
    let mut m = Message::new(libc::RTM_DELADDR, 0);
    fill(&mut m, index, net, None, 0);
    m
}

fn fill(m: &mut Message, index: u32, net: IpNet, peer: Option<IpAddr>, scope: u8) {
    let family = family_number(Family::of_net(net));
    m.bytes(&header(family, net.prefix_len(), scope, index));
    m.attr_ip(libc::IFA_LOCAL, net.addr());
    m.attr_ip(libc::IFA_ADDRESS, peer.unwrap_or(net.addr()));
}

/// Asks for the addresses of one device or all.
pub fn dump(index: Option<u32>) -> Message {
    let mut m = Message::new(libc::RTM_GETADDR, 0);
    m.bytes(&header(0, 0, 0, index.unwrap_or(0)));
    m
}

/// An address from an `RTM_NEWADDR` or `RTM_DELADDR` message.
pub fn decode(reply: &Reply<'_>) -> Option<AddrInfo> {
    if reply.kind != libc::RTM_NEWADDR && reply.kind != libc::RTM_DELADDR {
        return None;
    }
    let [family, length, flags, scope] = reply.field(0)?;
    family_of(family)?;
    let attrs = reply.attrs(8);
    let address = attrs.find(libc::IFA_ADDRESS).as_ref().and_then(Attr::ip);
    // IPv6 sends the local one only when there is a peer.
    let local = attrs.find(libc::IFA_LOCAL).as_ref().and_then(Attr::ip).or(address)?;
    Some(AddrInfo {
        index: u32::from_ne_bytes(reply.field(4)?),
        net: IpNet::new(local, length).ok()?,
        peer: address.filter(|a| *a != local),
        broadcast: attrs.find(libc::IFA_BROADCAST).as_ref().and_then(Attr::ip).and_then(|ip| match ip {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        }),
        scope,
        flags: attrs.find(FLAGS).as_ref().and_then(Attr::u32).unwrap_or(u32::from(flags)),
    })
}
