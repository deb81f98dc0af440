//! The nouns of the kernel: one type for each kind of object Loden writes, in normal form.
//!
//! Values hold only what we care about, prefixes are masked, lists sorted, so that reading back what
//! was written gives an *equal* value. Every object prints as the command that would make it.
//!
//! How a process without memory recognises what is ours is decided in [`Scope`].

mod cloud;
mod command;
mod ipsec;
pub mod iptables;
mod kind;
mod link;
mod nft;
mod set;
mod text;
mod tunnel;
pub mod wireguard;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use model::wireguard::PublicKey;
use model::{Family, IfName, Mac};

pub use cloud::CloudRoute;
pub use command::{Command, CommandKey, Line};
pub use ipsec::{
    Direction, GUARD_PRIORITY, Ike, IkeKey, OWN_PRIORITY, Policy, PolicyAction, PolicyKey, REQID,
};
pub use iptables::{Iptables, IptablesKey, IptablesTable, Variant};
pub use link::{Bridge, Ipip, Link, LinkFit, LinkKind, Tun, Veth, Vxlan};
pub use nft::{
    Chain, ChainType, Element, Hook, Match, NftFamily, NftTable, Rule as NftRule, Set, SetKey, Statement,
    TableKey, Verdict,
};
pub use set::State;
pub use tunnel::{Tunnel, TunnelPeer};
pub use wireguard::{Carrier, WgPeer, Wireguard};

/// The kernel's own key of an object. The order of the variants is the order of creation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// An nftables table as a whole: filtering comes up first and goes down last.
    Nft(TableKey),
    /// Our chain in a table of iptables with the rules that lead to it.
    Iptables(IptablesKey),
    /// A network device by name.
    Link(IfName),
    /// The process that carries a device's packets.
    Tunnel(IfName),
    /// A sysctl by path below `/proc/sys`, such as `net/ipv6/conf/flannel.1/accept_ra`.
    Sysctl(String),
    /// An offload of a device, by the name `ethtool -k` prints.
    Offload(IfName, &'static str),
    /// An address on a device.
    Addr(IfName, IpNet),
    /// An address in a set of an nftables table: there before the way to whom it lets in, gone after it.
    Element(Element),
    /// A neighbour entry: device and network-layer address.
    Neigh(IfName, IpAddr),
    /// A forwarding entry of a vxlan device.
    Fdb(IfName, Mac),
    /// A peer of a WireGuard device.
    WgPeer(IfName, Box<PublicKey>),
    /// A peer of a tunnel: device and subnet.
    TunnelPeer(IfName, Ipv4Net),
    /// A nexthop object by id.
    Nexthop(u32),
    /// A route: table, destination, metric.
    Route(RouteKey),
    /// A policy rule.
    Rule(Box<Rule>),
    /// An IPsec policy.
    Policy(PolicyKey),
    /// A command of the operator that was run.
    Command(CommandKey),
    /// strongSwan's daemon.
    Charon,
    /// A connection it keeps up.
    Ike(IkeKey),
    /// A route in the tables of a cloud, by destination.
    CloudRoute(IpNet),
}

impl Key {
    /// The kind of object in one word, for counts.
    pub fn kind(&self) -> &'static str {
        match self {
            Key::Nft(_) => "nftables",
            Key::Iptables(_) => "iptables",
            Key::Link(_) => "link",
            Key::Tunnel(_) | Key::TunnelPeer(..) => "tunnel",
            Key::Sysctl(_) => "sysctl",
            Key::Offload(..) => "offload",
            Key::Addr(..) => "address",
            Key::Element(_) => "element",
            Key::Neigh(..) => "neighbour",
            Key::Fdb(..) => "fdb",
            Key::WgPeer(..) => "wireguard",
            Key::Nexthop(_) => "nexthop",
            Key::Route(_) => "route",
            Key::Rule(_) => "rule",
            Key::Policy(_) | Key::Charon | Key::Ike(_) => "ipsec",
            Key::Command(_) => "command",
            Key::CloudRoute(_) => "cloud",
        }
    }

    /// How many kinds there are.
    pub(crate) const RANKS: usize = 20;

    /// The place of the key's kind in the order of creation, below [`Key::RANKS`].
    pub(crate) fn rank(&self) -> usize {
        match self {
            Key::Nft(_) => 0,
            Key::Iptables(_) => 1,
            Key::Link(_) => 2,
            Key::Tunnel(_) => 3,
            Key::Sysctl(_) => 4,
            Key::Offload(..) => 5,
            Key::Addr(..) => 6,
            Key::Element(_) => 7,
            Key::Neigh(..) => 8,
            Key::Fdb(..) => 9,
            Key::WgPeer(..) => 10,
            Key::TunnelPeer(..) => 11,
            Key::Nexthop(_) => 12,
            Key::Route(_) => 13,
            Key::Rule(_) => 14,
            Key::Policy(_) => 15,
            Key::Command(_) => 16,
            Key::Charon => 17,
            Key::Ike(_) => 18,
            Key::CloudRoute(_) => 19,
        }
    }

    /// The device this object disappears with, if any.
    pub fn device(&self) -> Option<IfName> {
        match self {
            Key::Link(dev)
            | Key::Offload(dev, _)
            | Key::Addr(dev, _)
            | Key::Neigh(dev, _)
            | Key::Fdb(dev, _)
            | Key::WgPeer(dev, _)
            | Key::Tunnel(dev)
            | Key::TunnelPeer(dev, _) => Some(*dev),
            _ => None,
        }
    }

    /// Whether no pod can work without it; other entries concern one peer alone, or only keep strangers out.
    pub fn is_critical(&self) -> bool {
        match self {
            Key::Nft(table) => !crate::sources::is_ours(table) && !crate::backend::ipsec::is_guard(table),
            Key::Iptables(_) | Key::Link(_) | Key::Tunnel(_) | Key::Addr(..) => true,
            Key::Charon | Key::CloudRoute(_) => true,
            Key::Command(key) => !matches!(key, CommandKey::Peer(_)),
            // Those without which packets would leave in clear.
            Key::Policy(policy) => policy.is_guard(),
            _ => false,
        }
    }

    /// Objects outside that must stand before, where they are wanted.
    pub fn needs(&self) -> &'static [Key] {
        match self {
            Key::Command(CommandKey::Peer(_)) => {
                &[Key::Command(CommandKey::Prepare), Key::Command(CommandKey::Startup)]
            }
            Key::Command(CommandKey::Startup) => &[Key::Command(CommandKey::Prepare)],
            Key::Ike(_) => &[Key::Charon],
            _ => &[],
        }
    }
}

/// A cluster of ten thousand nodes has forty thousand objects here, wanted and actual: what is rare and big is boxed.
const _: () = assert!(size_of::<Key>() <= 40 && size_of::<Object>() <= 72);

/// One object of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// An nftables table with everything in it.
    Nft(Box<NftTable>),
    /// All we have in a table of iptables.
    Iptables(Box<Iptables>),
    /// A network device.
    Link(Box<Link>),
    /// The process that carries a device's packets.
    Tunnel(Box<Tunnel>),
    /// Whether hardware, or whoever gets the packets of a device, does a piece of work for it.
    Offload {
        /// The device.
        dev: IfName,
        /// The name `ethtool -k` prints.
        name: &'static str,
        /// Whether it does.
        on: bool,
    },
    /// A sysctl and its value, without newline.
    Sysctl {
        /// Path below `/proc/sys`.
        path: String,
        /// Content without the newline.
        value: String,
    },
    /// A permanent address.
    Addr(Addr),
    /// An address in a set of an nftables table.
    Element(Element),
    /// A permanent neighbour entry.
    Neigh(Neigh),
    /// A permanent forwarding entry.
    Fdb(Fdb),
    /// A peer of a WireGuard device.
    WgPeer(Box<WgPeer>),
    /// A peer of a tunnel.
    TunnelPeer(TunnelPeer),
    /// A nexthop object of our protocol.
    Nexthop(Nexthop),
    /// A route.
    Route(Route),
    /// A policy rule.
    Rule(Box<Rule>),
    /// An IPsec policy.
    Policy(Box<Policy>),
    /// A command of the operator that was run.
    Command(Box<Command>),
    /// strongSwan's daemon, which runs and answers.
    Charon,
    /// A connection it keeps up.
    Ike(Box<Ike>),
    /// A route in the tables of a cloud.
    CloudRoute(CloudRoute),
}

impl Object {
    /// Where the object stands in a [`State`].
    pub fn key(&self) -> Key {
        match self {
            Object::Nft(table) => Key::Nft(table.key.clone()),
            Object::Iptables(rules) => Key::Iptables(rules.key),
            Object::Link(link) => Key::Link(link.name),
            Object::Tunnel(tunnel) => Key::Tunnel(tunnel.dev),
            Object::Sysctl { path, .. } => Key::Sysctl(path.clone()),
            Object::Offload { dev, name, .. } => Key::Offload(*dev, name),
            Object::Addr(a) => Key::Addr(a.dev, a.net),
            Object::Element(element) => Key::Element(element.clone()),
            Object::Neigh(n) => Key::Neigh(n.dev, n.dst),
            Object::Fdb(f) => Key::Fdb(f.dev, f.mac),
            Object::WgPeer(p) => Key::WgPeer(p.dev, Box::new(p.key)),
            Object::TunnelPeer(p) => Key::TunnelPeer(p.dev, p.net),
            Object::Nexthop(n) => Key::Nexthop(n.id),
            Object::Route(r) => Key::Route(r.key()),
            Object::Rule(r) => Key::Rule(r.clone()),
            Object::Policy(policy) => Key::Policy(policy.key),
            Object::Command(command) => Key::Command(command.key),
            Object::Charon => Key::Charon,
            Object::Ike(ike) => Key::Ike(ike.key),
            Object::CloudRoute(route) => Key::CloudRoute(route.dst),
        }
    }

    /// Whether the kernel does not hold the object: a helper brings it about and tells when it is done.
    pub fn is_outside(&self) -> bool {
        matches!(self, Object::Command(_) | Object::Charon | Object::Ike(_) | Object::CloudRoute(_))
    }

    /// Whether the kernel, which holds this object, need not be told of `wanted`.
    pub fn is(&self, wanted: &Object) -> bool {
        match (wanted, self) {
            (Object::Link(want), Object::Link(have)) => want.fit(have) == LinkFit::Same,
            (Object::Nft(want), Object::Nft(have)) => want.same(have),
            (Object::Iptables(want), Object::Iptables(have)) => want.same(have),
            (want, have) => want == have,
        }
    }
}

/// An address on a device. Scope is global for all but link-local networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Addr {
    /// The device that carries it.
    pub dev: IfName,
    /// Address with prefix length; host bits are kept here.
    pub net: IpNet,
}

/// A permanent neighbour entry (ARP or ND).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Neigh {
    /// The device.
    pub dev: IfName,
    /// The neighbour's network-layer address.
    pub dst: IpAddr,
    /// Its link-layer address.
    pub mac: Mac,
}

/// A permanent forwarding entry of a vxlan device (`bridge fdb … self permanent`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fdb {
    /// The vxlan device.
    pub dev: IfName,
    /// Inner destination address.
    pub mac: Mac,
    /// Outer destination address.
    pub dst: IpAddr,
}

/// A nexthop object, always of protocol [`crate::ROUTE_PROTOCOL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Nexthop {
    /// Its id in the namespace.
    pub id: u32,
    /// Outgoing device.
    pub dev: IfName,
    /// Gateway.
    pub via: IpAddr,
    /// The gateway is on the link although no address of ours says so.
    pub onlink: bool,
}

/// Identity of a route, the kernel's own: two routes may differ in gateway only if they differ here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    /// Table number; 254 is `main`.
    pub table: u32,
    /// Destination, masked.
    pub dst: IpNet,
    /// Metric. 0 for IPv4; IPv6 reads an unset metric back as 1024.
    pub priority: u32,
}

/// The main routing table (`RT_TABLE_MAIN`).
pub const TABLE_MAIN: u32 = 254;

/// A unicast or blackhole route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// Table number.
    pub table: u32,
    /// Destination, masked.
    pub dst: IpNet,
    /// Metric, see [`RouteKey::priority`].
    pub priority: u32,
    /// Where it leads.
    pub via: Via,
    /// `rtm_protocol`; ours is [`crate::ROUTE_PROTOCOL`].
    pub protocol: u8,
}

impl Route {
    /// A route of ours in the main table with the family's default metric.
    pub fn ours(dst: IpNet, via: Via) -> Route {
        Route {
            table: TABLE_MAIN,
            dst: dst.trunc(),
            priority: Route::default_priority(Family::of_net(dst)),
            via,
            protocol: crate::ROUTE_PROTOCOL,
        }
    }

    /// The metric the kernel stores when none is given: 0, in IPv6 `IP6_RT_PRIO_USER`.
    pub fn default_priority(family: Family) -> u32 {
        match family {
            Family::V4 => 0,
            Family::V6 => 1024,
        }
    }

    /// Identity of this route.
    pub fn key(&self) -> RouteKey {
        RouteKey { table: self.table, dst: self.dst, priority: self.priority }
    }
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Via {
    /// Directly onto a device.
    Dev(IfName),
    /// Onto a device behind which are others (IPv4, scope global).
    Behind(IfName),
    /// Through a gateway.
    Gateway {
        /// The gateway's address.
        gateway: IpAddr,
        /// Outgoing device.
        dev: IfName,
        /// `onlink`: do not look the gateway up.
        onlink: bool,
    },
    /// Through a nexthop object.
    Nexthop(u32),
    /// Drop silently.
    Blackhole,
    /// Something we never write (multipath, prohibit, …): differs from all we want.
    Foreign,
}

/// A policy rule (`ip rule`). All of it is its identity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// Family of the rule.
    pub family: Family,
    /// Preference.
    pub priority: u32,
    /// Source selector.
    pub from: Option<IpNet>,
    /// Destination selector.
    pub to: Option<IpNet>,
    /// Incoming device selector.
    pub iif: Option<IfName>,
    /// Mark and mask selector.
    pub fwmark: Option<(u32, u32)>,
    /// Table looked up.
    pub table: u32,
}

/// What is ours to see and to change. Reading the kernel through a scope gives only objects that carry
/// our mark, plus those that stand under a key we want (so that a foreign change of our object shows).
///
/// | Kind | Ours when |
/// | --- | --- |
/// | nft table, element of a set | the table's name is in `tables` |
/// | iptables chain | flannel's name, in a table of `iptables`; in the built-in chain by target, comment or the text of an old version |
/// | link | its name is in `devices`, and it is of the kind we make under that name |
/// | sysctl | its path is in `sysctls` |
/// | address | on one of `devices`, not link-local, IPv4 only inside `networks` (flannel.md 6.2) |
/// | tunnel and its peers | its socket is in our directory |
/// | neighbour, FDB | permanent, on one of `devices` |
/// | WireGuard peer | on one of `devices` |
/// | nexthop | protocol 76, and its device is one of `devices`; on another device if a route of ours uses it, or, with `adopt`, none does |
/// | route | protocol 76 in the main table, inside `networks` or through one of `devices`; with `adopt` also protocol boot inside `networks` that leads to one of `devices` or, with a gateway, to `uplink` |
/// | IPsec policy | between subnets inside `networks`, and reqid 11 or a priority of ours |
/// | command of the operator | this process ran it |
/// | connection of charon | by name, between subnets inside the network |
/// | any | its key is in `wanted` |
///
/// Another agent of the host has other devices and networks (flannel.md 10.8). Without `networks` all of that
/// protocol is ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Devices we own by name.
    pub devices: BTreeSet<IfName>,
    /// The cluster networks.
    pub networks: Vec<IpNet>,
    /// The external interface, for adopting another program's gateway routes.
    pub uplink: Option<IfName>,
    /// Tables we own by family and name.
    pub tables: BTreeSet<TableKey>,
    /// Tables of iptables to look for our rules in.
    pub iptables: BTreeSet<IptablesKey>,
    /// Sysctls we set.
    pub sysctls: BTreeSet<String>,
    /// Whether the kernel is asked for IPsec policies at all: asking may load a module.
    pub policies: bool,
    /// First read after a start: routes that flannel left behind count as ours, so that those of nodes
    /// which are gone can be removed (F-73, F-90).
    pub adopt: bool,
}

impl Scope {
    /// Whether an object the kernel reported is ours by its mark.
    pub fn owns(&self, object: &Object) -> bool {
        match object {
            Object::Nft(table) => self.tables.contains(&table.key),
            Object::Iptables(rules) => self.iptables.contains(&rules.key),
            Object::Link(link) => self.devices.contains(&link.name) && crate::backend::is_our_link(link),
            Object::Sysctl { path, .. } => self.sysctls.contains(path),
            Object::Addr(a) => {
                self.devices.contains(&a.dev)
                    && match a.net.addr() {
                        IpAddr::V4(ip) => self.networks.iter().any(|n| n.contains(&IpAddr::V4(ip))),
                        IpAddr::V6(ip) => !ip.is_unicast_link_local(),
                    }
            }
            Object::Element(element) => self.tables.contains(&element.set.table),
            Object::Neigh(n) => self.devices.contains(&n.dev),
            Object::Fdb(f) => self.devices.contains(&f.dev),
            Object::WgPeer(p) => self.devices.contains(&p.dev),
            Object::Tunnel(_) | Object::TunnelPeer(_) => true,
            Object::Nexthop(n) => self.networks.is_empty() || self.devices.contains(&n.dev),
            Object::Route(r) => self.owns_route(r),
            Object::Rule(_) | Object::Offload { .. } => false,
            Object::Policy(policy) => policy.is_ours(|net| self.networks.iter().any(|n| n.contains(net))),
            Object::Command(_) | Object::Charon | Object::Ike(_) | Object::CloudRoute(_) => true,
        }
    }

    /// The nexthop objects that routes use, and whether a route of ours does.
    pub fn users<'a>(&self, routes: impl IntoIterator<Item = &'a Route>) -> BTreeMap<u32, bool> {
        let mut users = BTreeMap::new();
        for route in routes {
            if let Via::Nexthop(id) = route.via {
                *users.entry(id).or_default() |= self.owns_route(route);
            }
        }
        users
    }

    /// Whether a nexthop object is ours, which on a device that agents share its `users` decide.
    pub fn owns_nexthop(&self, nexthop: &Nexthop, users: &BTreeMap<u32, bool>) -> bool {
        let used = users.get(&nexthop.id).copied();
        used.unwrap_or(self.adopt) || self.owns(&Object::Nexthop(*nexthop))
    }

    fn owns_route(&self, route: &Route) -> bool {
        /// `RTPROT_BOOT`: what `ip route add` and flannel write.
        const BOOT: u8 = 3;
        if route.table != TABLE_MAIN {
            return false;
        }
        let inside = self.networks.iter().any(|n| n.contains(&route.dst));
        if route.protocol == crate::ROUTE_PROTOCOL {
            let dev = match route.via {
                Via::Dev(dev) | Via::Behind(dev) | Via::Gateway { dev, .. } => Some(dev),
                Via::Nexthop(_) | Via::Blackhole | Via::Foreign => None,
            };
            return inside || self.networks.is_empty() || dev.is_some_and(|dev| self.devices.contains(&dev));
        }
        let flannels = match route.via {
            // vxlan leads through an address of the subnet itself, ipip through the peer's own.
            Via::Gateway { dev, onlink: true, .. } if self.devices.contains(&dev) => true,
            // ipip keeps `onlink` where it routes directly, host-gw and vxlan do not (F-92).
            Via::Gateway { dev, .. } => self.uplink == Some(dev),
            _ => false,
        };
        self.adopt && flannels && route.protocol == BOOT && inside
    }
}
