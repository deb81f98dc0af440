//! Network devices: what we want of one, and how a device that is there fits that.

use std::fmt;
use std::net::IpAddr;

use model::{IfName, Mac};

use super::{Carrier, Wireguard};

/// A network device. `None` means "we do not care" in a wanted state and "not reported" in an actual one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: IfName,
    /// What it is.
    pub kind: LinkKind,
    /// Hardware address.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Administratively up.
    pub up: bool,
    /// Transmit queue length in packets.
    pub txqlen: Option<u32>,
    /// The bridge it is a port of.
    pub master: Option<IfName>,
}

/// The kinds of device Loden makes, and all others by the kernel's name of the kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// RFC 7348 tunnel end point.
    Vxlan(Vxlan),
    /// IPv4 in IPv4 (RFC 2003), one device for all peers.
    Ipip(Ipip),
    /// WireGuard, in the kernel or in user space.
    Wireguard(Wireguard),
    /// Packets to and from a process (networking/tuntap of the kernel's documentation).
    Tun(Tun),
    /// Ethernet bridge.
    Bridge(Bridge),
    /// Virtual Ethernet pair.
    Veth(Veth),
    /// Anything else; the empty text is a physical device.
    Other(String),
}

impl LinkKind {
    /// The kernel's name of the kind (`IFLA_INFO_KIND`); empty for physical devices.
    pub fn name(&self) -> &str {
        match self {
            LinkKind::Vxlan(_) => "vxlan",
            LinkKind::Ipip(_) => "ipip",
            LinkKind::Wireguard(_) => "wireguard",
            LinkKind::Tun(_) => "tun",
            LinkKind::Bridge(_) => "bridge",
            LinkKind::Veth(_) => "veth",
            LinkKind::Other(kind) => kind,
        }
    }

    /// Whether what is sent through it waits for a process.
    fn is_read_by_a_process(&self) -> bool {
        match self {
            LinkKind::Tun(_) => true,
            LinkKind::Wireguard(wireguard) => wireguard.carrier == Carrier::UserSpace,
            _ => false,
        }
    }
}

/// Attributes of a vxlan device that flannel sets or compares (flannel.md 6.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// Outer source address.
    pub local: Option<IpAddr>,
    /// Device the outer packets leave through.
    pub lower: Option<IfName>,
    /// Learn forwarding entries from traffic.
    pub learning: bool,
    /// Group policy extension.
    pub gbp: bool,
    /// Ask user space on a forwarding miss; never wanted, but compared.
    pub l2miss: bool,
    /// Multicast or default remote address; never wanted, but compared.
    pub group: Option<IpAddr>,
}

/// Attributes of an ipip device that flannel sets or compares (flannel.md 6.6). The outer destination
/// comes from the route's gateway, hop limit and type of service from the inner packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Ipip {
    /// Outer source address.
    pub local: Option<IpAddr>,
    /// A fixed peer; never wanted, but compared.
    pub remote: Option<IpAddr>,
}

/// Attributes of a TUN device that are fixed when it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tun {
    /// Frames instead of packets.
    pub tap: bool,
    /// It stays when no process has it.
    pub persistent: bool,
    /// Several queues.
    pub multi_queue: bool,
    /// A header with offloads before each packet.
    pub headers: bool,
}

impl Tun {
    /// What our tunnels attach to. Others by their names, such as a flanneld's, differ in something.
    pub const OURS: Tun = Tun { tap: false, persistent: true, multi_queue: true, headers: true };

    /// Packets that wait for the tunnel's turn on the processor. The kernel's 500 are a tenth of a second of 5,000 packets, as
    /// long as a process may have to wait where processors are scarce; what comes in may wait longer in the socket (decision 0245).
    pub const QUEUE: u32 = 2000;
}

/// Attributes of a bridge.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Bridge {
    /// VLAN filtering.
    pub vlan_filtering: bool,
}

/// Attributes of a veth.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Veth {
    /// Index of the other end, in its own namespace.
    pub peer_index: Option<u32>,
}

/// How an existing device relates to the wanted one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkFit {
    /// Nothing to do.
    Same,
    /// Attributes that can be changed on the living device differ.
    Change,
    /// Only a new device will do; the text names the difference.
    Recreate(String),
    /// The name is taken by something that is not ours to delete; the text names it.
    Foreign(String),
}

impl Link {
    /// Compares a device with what is wanted, by flannel's own list of what makes a vxlan device
    /// incompatible (flannel.md 6.2), and beyond it the attributes flannel never repairs (F-76). Unlike
    /// flannel we move a living device to another address or lower device: what is on it stays, and so do
    /// the pods' connections (decision 0092).
    pub fn fit(&self, actual: &Link) -> LinkFit {
        if let (LinkKind::Vxlan(want), LinkKind::Vxlan(have)) = (&self.kind, &actual.kind) {
            if let Some(difference) = want.incompatible(have) {
                return LinkFit::Recreate(difference);
            }
            if want.learning != have.learning
                || want.moves_from(have)
                || (want.local.is_some() && want.local != have.local)
            {
                return LinkFit::Change;
            }
        } else if let (LinkKind::Ipip(want), LinkKind::Ipip(have)) = (&self.kind, &actual.kind) {
            for (what, want, have) in
                [("local address", want.local, have.local), ("remote address", want.remote, have.remote)]
            {
                if want != have {
                    return LinkFit::Recreate(format!("{what} is {}, not {}", text(&have), text(&want)));
                }
            }
        } else if let (LinkKind::Wireguard(want), LinkKind::Wireguard(have)) = (&self.kind, &actual.kind) {
            if want.carrier != have.carrier {
                return LinkFit::Recreate(format!("tunnel is in {}, not in {}", have.carrier, want.carrier));
            }
            if want.changes(have) {
                return LinkFit::Change;
            }
        } else if let (LinkKind::Tun(want), LinkKind::Tun(have)) = (&self.kind, &actual.kind)
            && want != have
        {
            return LinkFit::Foreign("is a TUN device of another program".to_owned());
        } else if self.kind.name() != actual.kind.name() {
            let other = if actual.kind.name().is_empty() { "physical" } else { actual.kind.name() };
            return LinkFit::Foreign(format!("is a {other} device, not a {} one", self.kind.name()));
        }
        fn differs<T: PartialEq>(want: &Option<T>, have: &Option<T>) -> bool {
            want.is_some() && want != have
        }
        let changed = differs(&self.mac, &actual.mac)
            || differs(&self.mtu, &actual.mtu)
            // The kernel takes a device's queue away while its length is changed, which a tunnel that carries packets notices.
            || (!self.kind.is_read_by_a_process() && differs(&self.txqlen, &actual.txqlen))
            || differs(&self.master, &actual.master)
            || (self.up && !actual.up);
        if changed { LinkFit::Change } else { LinkFit::Same }
    }
}

impl Vxlan {
    /// Whether the device below is another one. A device without one is left so, as flannel does.
    pub fn moves_from(&self, have: &Vxlan) -> bool {
        self.lower.is_some() && have.lower.is_some() && self.lower != have.lower
    }

    /// The first attribute that cannot be changed on a living device and differs.
    fn incompatible(&self, have: &Vxlan) -> Option<String> {
        if self.vni != have.vni {
            return Some(format!("vni is {}, not {}", have.vni, self.vni));
        }
        if self.port != have.port {
            return Some(format!("port is {}, not {}", have.port, self.port));
        }
        // The kernel changes a local address to one of the same family only.
        if self.local.is_some_and(|want| have.local.is_none_or(|ip| ip.is_ipv4() != want.is_ipv4())) {
            return Some(format!("local address is {}, not {}", text(&have.local), text(&self.local)));
        }
        if have.group.is_some() && self.group != have.group {
            return Some(format!("group is {}, not {}", text(&have.group), text(&self.group)));
        }
        if self.l2miss != have.l2miss {
            return Some("l2miss is on".to_owned());
        }
        if self.gbp != have.gbp {
            return Some(format!("gbp is {}", if have.gbp { "on" } else { "off" }));
        }
        None
    }
}

fn text<T: fmt::Display>(value: &Option<T>) -> String {
    value.as_ref().map_or_else(|| "none".to_owned(), T::to_string)
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let LinkKind::Tun(tun) = &self.kind {
            write!(f, "ip tuntap add {} mode {}", self.name, if tun.tap { "tap" } else { "tun" })?;
            f.write_str(if tun.multi_queue { " multi_queue" } else { "" })?;
            f.write_str(if tun.headers { " vnet_hdr" } else { "" })?;
            write!(f, " && ip link set {}", self.name)?;
            if let Some(mtu) = self.mtu {
                write!(f, " mtu {mtu}")?;
            }
            if let Some(length) = self.txqlen {
                write!(f, " txqueuelen {length}")?;
            }
            return f.write_str(if self.up { " up" } else { "" });
        }
        if let LinkKind::Wireguard(Wireguard { carrier: Carrier::UserSpace, .. }) = self.kind {
            write!(
                f,
                "ip tuntap add {0} mode tun multi_queue vnet_hdr && loden tunnel wireguard {0} --detach && ip link set {0}",
                self.name
            )?;
        } else {
            write!(f, "ip link add {}", self.name)?;
        }
        if let Some(mac) = self.mac {
            write!(f, " address {mac}")?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, " mtu {mtu}")?;
        }
        if let Some(length) = self.txqlen {
            write!(f, " txqueuelen {length}")?;
        }
        if let Some(master) = self.master {
            write!(f, " master {master}")?;
        }
        f.write_str(if self.up { " up" } else { "" })?;
        match &self.kind {
            LinkKind::Wireguard(Wireguard { carrier: Carrier::UserSpace, .. }) => {}
            kind => write!(f, " type {}", kind.name())?,
        }
        match &self.kind {
            LinkKind::Vxlan(v) => {
                write!(f, " id {}", v.vni)?;
                if let Some(local) = v.local {
                    write!(f, " local {local}")?;
                }
                if let Some(lower) = v.lower {
                    write!(f, " dev {lower}")?;
                }
                write!(f, " dstport {} {}learning", v.port, if v.learning { "" } else { "no" })?;
                f.write_str(if v.gbp { " gbp" } else { "" })
            }
            LinkKind::Ipip(ipip) => {
                for (word, address) in [("local", ipip.local), ("remote", ipip.remote)] {
                    if let Some(address) = address {
                        write!(f, " {word} {address}")?;
                    }
                }
                f.write_str(" nopmtudisc")
            }
            LinkKind::Wireguard(wireguard) => write!(f, " && {}", wireguard.command(self.name)),
            LinkKind::Bridge(b) => f.write_str(if b.vlan_filtering { " vlan_filtering 1" } else { "" }),
            LinkKind::Tun(_) | LinkKind::Veth(_) | LinkKind::Other(_) => Ok(()),
        }
    }
}
