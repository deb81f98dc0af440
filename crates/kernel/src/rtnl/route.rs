//! Routes and route look-ups as rtnetlink messages (linux/rtnetlink.h).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use model::Family;
use plan::state::TABLE_MAIN;

use super::nexthop::ONLINK;
use super::{Put, family_number, family_of};
use crate::netlink::{Attr, Message, Reply};

/// `RTA_NH_ID`; libc lacks it.
const NH_ID: u16 = 30;
/// `RTA_VIA`; libc lacks it for musl.
const VIA: u16 = 18;
// RTAX_…
const METRIC_MTU: u16 = 2;
const METRIC_ADVMSS: u16 = 8;
/// Length of `struct rtmsg`.
const HEADER: usize = 12;

/// A route, as it is added and as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteInfo {
    /// Destination, masked; length 0 for the default route.
    pub dst: IpNet,
    /// Table number.
    pub table: u32,
    /// `RTN_…`: 1 unicast, 2 local, 6 blackhole.
    pub kind: u8,
    /// `RTPROT_…`: 2 kernel, 3 boot, 4 static, 76 ours.
    pub protocol: u8,
    /// `RT_SCOPE_…`; when adding, `None` gives what `ip route` does: link without a gateway, else global.
    pub scope: Option<u8>,
    /// Index of the outgoing device.
    pub dev: Option<u32>,
    /// Gateway, also of the other family.
    pub gateway: Option<IpAddr>,
    /// The gateway need not be covered by an address of ours.
    pub onlink: bool,
    /// Preferred source address.
    pub src: Option<IpAddr>,
    /// Metric; `None` is the kernel's default.
    pub priority: Option<u32>,
    /// Nexthop object.
    pub nexthop: Option<u32>,
    /// MTU of the route in bytes.
    pub mtu: Option<u32>,
    /// Advertised maximal segment size in bytes.
    pub advmss: Option<u32>,
    /// Several next hops; read only.
    pub multipath: bool,
    /// `RTNH_F_…` and `RTM_F_…` as read.
    pub flags: u32,
}

impl RouteInfo {
    /// A unicast route in the main table that leads nowhere yet, of protocol boot as `ip route add` has it.
    pub fn to(dst: IpNet) -> RouteInfo {
        RouteInfo {
            dst: dst.trunc(),
            table: TABLE_MAIN,
            kind: libc::RTN_UNICAST,
            protocol: libc::RTPROT_BOOT,
            scope: None,
            dev: None,
            gateway: None,
            onlink: false,
            src: None,
            priority: None,
            nexthop: None,
            mtu: None,
            advmss: None,
            multipath: false,
            flags: 0,
        }
    }
}

impl fmt::Display for RouteInfo {
    /// As `ip route` prints it, with the device as a number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind == libc::RTN_BLACKHOLE {
            f.write_str("blackhole ")?;
        }
        write!(f, "{}", self.dst)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        for (word, value) in [("nhid", self.nexthop), ("dev", self.dev), ("metric", self.priority)] {
            if let Some(value) = value {
                write!(f, " {word} {value}")?;
            }
        }
        if let Some(src) = self.src {
            write!(f, " src {src}")?;
        }
        if self.table != TABLE_MAIN {
            write!(f, " table {}", self.table)?;
        }
        f.write_str(if self.onlink { " onlink" } else { "" })?;
        write!(f, " proto {}", self.protocol)
    }
}

/// Which routes are asked for; `None` asks for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteFilter {
    /// Family.
    pub family: Option<Family>,
    /// Table number.
    pub table: Option<u32>,
    /// `RTPROT_…`
    pub protocol: Option<u8>,
    /// Index of the outgoing device. Routes through nexthop objects are found as well.
    pub dev: Option<u32>,
}

impl RouteFilter {
    /// Kernels before 5.0 do not filter.
    pub(super) fn passes(&self, route: &RouteInfo) -> bool {
        self.table.is_none_or(|t| t == route.table)
            && self.protocol.is_none_or(|p| p == route.protocol)
            && self.dev.is_none_or(|d| route.dev == Some(d) || route.multipath)
    }
}

/// Where a packet would go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// Index of the outgoing device.
    pub dev: u32,
    /// The gateway, if the destination is not on the link itself.
    pub gateway: Option<IpAddr>,
    /// Source address the kernel would choose.
    pub src: Option<IpAddr>,
    /// `RTN_…`: 1 unicast, 2 an address of this host.
    pub kind: u8,
    /// MTU of the route in bytes, if it has one of its own.
    pub mtu: Option<u32>,
}

impl Lookup {
    /// From the route the kernel answered with.
    pub fn of(route: RouteInfo) -> Option<Lookup> {
        Some(Lookup {
            dev: route.dev?,
            gateway: route.gateway,
            src: route.src,
            kind: route.kind,
            mtu: route.mtu,
        })
    }
}

fn header(family: Family, length: u8, table: u32, protocol: u8, scope: u8, kind: u8, flags: u32) -> [u8; 12] {
    let [a, b, c, d] = flags.to_ne_bytes();
    // Larger tables go by attribute only.
    let table = u8::try_from(table).unwrap_or(0);
    [family_number(family), length, 0, 0, table, protocol, scope, kind, a, b, c, d]
}

/// Adds a route.
pub fn add(route: &RouteInfo, put: Put) -> Message {
    let scope = route.scope.unwrap_or_else(|| {
        let direct = route.gateway.is_none() && route.nexthop.is_none() && !route.multipath;
        let link = Family::of_net(route.dst) == Family::V4 && direct && route.kind == libc::RTN_UNICAST;
        if link { libc::RT_SCOPE_LINK } else { libc::RT_SCOPE_UNIVERSE }
    });
    message(libc::RTM_NEWROUTE, put.flags(), route, scope)
}

/// Deletes a route. The scope is compared only if given.
pub fn delete(route: &RouteInfo) -> Message {
    message(libc::RTM_DELROUTE, 0, route, route.scope.unwrap_or(libc::RT_SCOPE_NOWHERE))
}

fn message(kind: u16, flags: i32, route: &RouteInfo, scope: u8) -> Message {
    let family = Family::of_net(route.dst);
    let mut m = Message::new(kind, flags);
    let onlink = if route.onlink { ONLINK } else { 0 };
    m.header(header(family, route.dst.prefix_len(), route.table, route.protocol, scope, route.kind, onlink));
    if route.dst.prefix_len() > 0 {
        m.attr_ip(libc::RTA_DST, route.dst.network());
    }
    m.attr_u32(libc::RTA_TABLE, route.table);
    match route.gateway {
        Some(ip) if Family::of(ip) == family => {
            m.attr_ip(libc::RTA_GATEWAY, ip);
        }
        Some(ip) => {
            let mut via = u16::from(family_number(Family::of(ip))).to_ne_bytes().to_vec();
            match ip {
                IpAddr::V4(ip) => via.extend(ip.octets()),
                IpAddr::V6(ip) => via.extend(ip.octets()),
            }
            m.attr(VIA, &via);
        }
        None => {}
    }
    for (attr, value) in
        [(libc::RTA_OIF, route.dev), (libc::RTA_PRIORITY, route.priority), (NH_ID, route.nexthop)]
    {
        if let Some(value) = value {
            m.attr_u32(attr, value);
        }
    }
    if let Some(src) = route.src {
        m.attr_ip(libc::RTA_PREFSRC, src);
    }
    if route.mtu.is_some() || route.advmss.is_some() {
        m.nest(libc::RTA_METRICS, |m| {
            for (attr, value) in [(METRIC_MTU, route.mtu), (METRIC_ADVMSS, route.advmss)] {
                if let Some(value) = value {
                    m.attr_u32(attr, value);
                }
            }
        });
    }
    m
}

/// Asks for routes of one family.
pub fn dump(family: Family, filter: &RouteFilter) -> Message {
    let mut m = Message::new(libc::RTM_GETROUTE, 0);
    m.bytes(&header(family, 0, 0, filter.protocol.unwrap_or(0), 0, 0, 0));
    if let Some(table) = filter.table {
        m.attr_u32(libc::RTA_TABLE, table);
    }
    if let Some(dev) = filter.dev {
        m.attr_u32(libc::RTA_OIF, dev);
    }
    m
}

/// Asks where a packet to an address would go.
pub fn lookup(dst: IpAddr) -> Message {
    let family = Family::of(dst);
    let mut m = Message::new(libc::RTM_GETROUTE, 0);
    m.bytes(&header(family, family.bits(), 0, 0, 0, 0, 0)).attr_ip(libc::RTA_DST, dst);
    m
}

/// A route from an `RTM_NEWROUTE` or `RTM_DELROUTE` message.
pub fn decode(reply: &Reply<'_>) -> Option<RouteInfo> {
    if reply.kind != libc::RTM_NEWROUTE && reply.kind != libc::RTM_DELROUTE {
        return None;
    }
    let [family, length, _, _, table, protocol, scope, kind] = reply.field(0)?;
    let flags = u32::from_ne_bytes(reply.field(8)?);
    let any = match family_of(family)? {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let mut route = RouteInfo::to(IpNet::new(any, length).ok()?);
    route.table = u32::from(table);
    route.kind = kind;
    route.protocol = protocol;
    route.scope = Some(scope);
    route.flags = flags;
    route.onlink = flags & ONLINK != 0;
    for attr in reply.attrs(HEADER) {
        match attr.kind {
            libc::RTA_DST => route.dst = IpNet::new(attr.ip()?, length).ok()?,
            libc::RTA_TABLE => route.table = attr.u32()?,
            libc::RTA_OIF => route.dev = attr.u32(),
            libc::RTA_GATEWAY => route.gateway = attr.ip(),
            VIA => route.gateway = via(&attr),
            libc::RTA_PREFSRC => route.src = attr.ip(),
            libc::RTA_PRIORITY => route.priority = attr.u32(),
            libc::RTA_MULTIPATH => route.multipath = true,
            NH_ID => route.nexthop = attr.u32(),
            libc::RTA_METRICS => {
                route.mtu = attr.nested().find(METRIC_MTU).as_ref().and_then(Attr::u32);
                route.advmss = attr.nested().find(METRIC_ADVMSS).as_ref().and_then(Attr::u32);
            }
            _ => {}
        }
    }
    Some(route)
}

/// `struct rtvia`: family, then the address.
fn via(attr: &Attr<'_>) -> Option<IpAddr> {
    Attr { kind: attr.kind, data: attr.data.get(2..)? }.ip()
}
