//! Network devices as rtnetlink messages: create, change, delete, read; bridge ports and their VLANs.
//!
//! Pure functions between values and bytes (linux/if_link.h, linux/if_bridge.h); `rtnl` sends them.
//! Devices are named by index here, because that is what the kernel's messages hold.

mod decode;
mod encode;

use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use model::{IfName, Mac};
use plan::state::{Ipip, Link, Vxlan};

pub use decode::{decode, decode_vlans};
pub use encode::{
    arp_notify, change, create, delete, delete_group, dump, dump_vlans, get, get_by_name, no_own_address,
    port_up, set_port, vlan,
};

/// Attribute numbers libc lacks.
mod number {
    // IFLA_VXLAN_…
    pub const VXLAN_ID: u16 = 1;
    pub const VXLAN_GROUP: u16 = 2;
    pub const VXLAN_LINK: u16 = 3;
    pub const VXLAN_LOCAL: u16 = 4;
    pub const VXLAN_TTL: u16 = 5;
    pub const VXLAN_TOS: u16 = 6;
    pub const VXLAN_LEARNING: u16 = 7;
    pub const VXLAN_PROXY: u16 = 11;
    pub const VXLAN_RSC: u16 = 12;
    pub const VXLAN_L2MISS: u16 = 13;
    pub const VXLAN_L3MISS: u16 = 14;
    pub const VXLAN_PORT: u16 = 15;
    pub const VXLAN_GROUP6: u16 = 16;
    pub const VXLAN_LOCAL6: u16 = 17;
    pub const VXLAN_ZERO_CSUM6_TX: u16 = 19;
    pub const VXLAN_ZERO_CSUM6_RX: u16 = 20;
    pub const VXLAN_GBP: u16 = 23;
    // IFLA_TUN_…
    pub const TUN_TYPE: u16 = 3;
    pub const TUN_VNET_HDR: u16 = 5;
    pub const TUN_PERSIST: u16 = 6;
    pub const TUN_MULTI_QUEUE: u16 = 7;

    pub const IPTUN_LOCAL: u16 = 2;
    pub const IPTUN_REMOTE: u16 = 3;
    pub const IPTUN_TTL: u16 = 4;
    pub const IPTUN_TOS: u16 = 5;
    pub const IPTUN_PMTUDISC: u16 = 10;
    // IFLA_BR_…
    pub const BR_VLAN_FILTERING: u16 = 7;
    // VETH_INFO_PEER
    pub const VETH_PEER: u16 = 1;
    // IFLA_MACVLAN_…
    pub const MACVLAN_MODE: u16 = 1;
    pub const MACVLAN_BC_QUEUE_LEN: u16 = 7;
    // IFLA_IPVLAN_MODE
    pub const IPVLAN_MODE: u16 = 1;
    // IFLA_VRF_TABLE
    pub const VRF_TABLE: u16 = 1;
    // IFLA_VLAN_ID
    pub const VLAN_ID: u16 = 1;
    // IFLA_BRPORT_…
    pub const BRPORT_MODE: u16 = 4;
    pub const BRPORT_LEARNING: u16 = 8;
    pub const BRPORT_ISOLATED: u16 = 33;
    // IFLA_BRIDGE_…
    pub const BRIDGE_FLAGS: u16 = 0;
    pub const BRIDGE_VLAN_INFO: u16 = 2;
}

/// A device as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// Index in its namespace.
    pub index: u32,
    /// The attributes Loden plans with.
    pub link: Link,
    /// `IFF_…`
    pub flags: u32,
    /// RFC 2863 state, `IF_OPER_…`: 6 is up, 2 down, 3 lower layer down.
    pub operstate: u8,
    /// `ARPHRD_…`: 1 is Ethernet, 772 loopback.
    pub hardware: u16,
    /// Index of the bridge or bond it belongs to.
    pub master: Option<u32>,
    /// `IFLA_LINK`: index of the device below, for a veth of the other end.
    pub lower: Option<u32>,
    /// The namespace `lower` is in, if another one: an id private to this namespace.
    pub lower_netns: Option<i32>,
    /// Free text (`ip link set … alias`).
    pub alias: Option<String>,
    /// Device group; 0 is the default.
    pub group: u32,
    /// How many ask for all frames.
    pub promiscuity: u32,
    /// Its flags as a bridge port.
    pub port: Option<PortFlags>,
    /// What tells it from others of its kind.
    pub detail: Detail,
}

/// Attributes of kinds that Loden makes for pods but does not plan with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// Another kind.
    #[default]
    None,
    /// `MACVLAN_MODE_…`: 1 private, 2 VEPA, 4 bridge, 8 passthru.
    MacvlanMode(u32),
    /// `IPVLAN_MODE_…`: 0 L2, 1 L3, 2 L3S.
    IpvlanMode(u16),
    /// VLAN id of a VLAN device.
    VlanId(u16),
    /// Routing table of a VRF.
    VrfTable(u32),
}

impl LinkInfo {
    /// RFC 2863 up.
    pub const OPER_UP: u8 = 6;

    /// Whether it is a loopback device.
    pub fn is_loopback(&self) -> bool {
        self.flags & libc::IFF_LOOPBACK as u32 != 0
    }
}

/// Flags of a bridge port. `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortFlags {
    /// Send frames back out of the port they came in by.
    pub hairpin: Option<bool>,
    /// No traffic to other isolated ports.
    pub isolated: Option<bool>,
    /// Learn addresses from frames.
    pub learning: Option<bool>,
}

/// A device to be made.
#[derive(Clone, Debug)]
pub struct NewLink<'a> {
    /// Name, kind-independent attributes.
    pub end: End<'a>,
    /// Kind with its own attributes.
    pub kind: NewKind<'a>,
    /// Up from the start. For a veth this is about the near end only: the far one must be brought up
    /// afterwards, as the kernel ties the ends together last (`ENOTCONN` otherwise).
    pub up: bool,
    /// Index of the bridge to join.
    pub master: Option<u32>,
    /// Device group, for deleting many at once.
    pub group: Option<u32>,
}

impl<'a> NewLink<'a> {
    /// A device with the kernel's defaults.
    pub fn new(name: IfName, kind: NewKind<'a>) -> NewLink<'a> {
        NewLink { end: End::new(name), kind, up: false, master: None, group: None }
    }
}

/// What both ends of a veth have, and every other device.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// Name.
    pub name: IfName,
    /// Hardware address; random if absent.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Transmit queue length in packets.
    pub txqlen: Option<u32>,
    /// Index; chosen by the kernel if absent. For a veth set both ends' or neither: the kernel looks at
    /// the far one only if the near one is given.
    pub index: Option<u32>,
    /// Namespace to make it in; the socket's if absent.
    pub netns: Option<BorrowedFd<'a>>,
}

impl<'a> End<'a> {
    /// A device with the kernel's defaults.
    pub fn new(name: IfName) -> End<'a> {
        End { name, mac: None, mtu: None, txqlen: None, index: None, netns: None }
    }
}

/// Kinds of device that can be made.
#[derive(Clone, Debug)]
pub enum NewKind<'a> {
    /// A pair; both ends come into being in one request.
    Veth(End<'a>),
    /// A bridge.
    Bridge {
        /// VLAN filtering on.
        vlan_filtering: bool,
    },
    /// A vxlan device.
    Vxlan {
        /// Its attributes; the device below goes by index.
        vxlan: &'a Vxlan,
        /// Index of the device outer packets leave through.
        lower: Option<u32>,
    },
    /// An ipip device.
    Ipip(&'a Ipip),
    /// A macvlan device.
    Macvlan {
        /// Index of the device below.
        lower: u32,
        /// `MACVLAN_MODE_…`: 1 private, 2 VEPA, 4 bridge, 8 passthru.
        mode: u32,
        /// Length of the queue of broadcasts in packets; the kernel's default if absent (≥ 5.10).
        broadcast_queue: Option<u32>,
    },
    /// An ipvlan device.
    Ipvlan {
        /// Index of the device below.
        lower: u32,
        /// `IPVLAN_MODE_…`: 0 L2, 1 L3, 2 L3S.
        mode: u16,
    },
    /// A VLAN device.
    Vlan {
        /// Index of the device below.
        lower: u32,
        /// VLAN id, 1 to 4094.
        id: u16,
    },
    /// A VRF.
    Vrf {
        /// Its routing table.
        table: u32,
    },
    /// A kind that needs no attributes, such as `dummy`.
    Plain(&'a str),
}

impl NewKind<'_> {
    /// The kernel's name of the kind (`IFLA_INFO_KIND`).
    pub fn name(&self) -> &str {
        match self {
            NewKind::Veth(_) => "veth",
            NewKind::Bridge { .. } => "bridge",
            NewKind::Ipip(_) => "ipip",
            NewKind::Vxlan { .. } => "vxlan",
            NewKind::Macvlan { .. } => "macvlan",
            NewKind::Ipvlan { .. } => "ipvlan",
            NewKind::Vlan { .. } => "vlan",
            NewKind::Vrf { .. } => "vrf",
            NewKind::Plain(kind) => kind,
        }
    }
}

/// Changes of a living device. `None` leaves an attribute as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkChange<'a> {
    /// Up or down.
    pub up: Option<bool>,
    /// Index of the bridge to join, 0 to leave.
    pub master: Option<u32>,
    /// Hardware address.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Transmit queue length in packets.
    pub txqlen: Option<u32>,
    /// New name.
    pub name: Option<IfName>,
    /// Namespace to move to.
    pub netns: Option<BorrowedFd<'a>>,
    /// Take all frames.
    pub promisc: Option<bool>,
    /// Take all multicast frames.
    pub allmulticast: Option<bool>,
    /// Device group.
    pub group: Option<u32>,
    /// Free text.
    pub alias: Option<&'a str>,
    /// Learning of a vxlan device.
    pub vxlan_learning: Option<bool>,
    /// Outer source address of a vxlan device, of the family it has.
    pub vxlan_local: Option<IpAddr>,
    /// Index of the device outer packets of a vxlan device leave through.
    pub vxlan_lower: Option<u32>,
    /// VLAN filtering of a bridge.
    pub vlan_filtering: Option<bool>,
}

/// A VLAN of a bridge port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BridgeVlan {
    /// VLAN id, 1 to 4094.
    pub id: u16,
    /// Untagged frames that come in belong to it.
    pub pvid: bool,
    /// Its frames leave untagged.
    pub untagged: bool,
}

/// What to do with a VLAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VlanOp {
    /// Add it, or change its flags.
    Add,
    /// Remove it.
    Delete,
}

#[cfg(test)]
mod tests;
