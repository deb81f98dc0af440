//! Everything a backend may ask about the host, as values.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use model::wireguard::{PublicKey, Secret};
use model::{Family, IfName, LeaseAttrs, Mac};

use crate::state::{Link, TableKey, Variant};

/// What is known of the host at one moment. `kernel` reads it, backends consume it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The external interface, chosen as in flannel.md 5.
    pub uplink: Uplink,
    /// Addresses other nodes shall use: `--public-ip` or the interface's own.
    pub public: Addresses,
    /// Every address of the host.
    pub local: BTreeSet<IpAddr>,
    /// Existing devices under names the backend wants, and those of ours with an address of the cluster network:
    /// they are from another configuration of it.
    pub devices: BTreeMap<IfName, Link>,
    /// Hardware addresses our devices keep as long as we run, whatever happens to the devices.
    pub pinned_macs: BTreeMap<IfName, Mac>,
    /// What this node published before this process, as the registry remembers it: a device that has to
    /// be made anew gets its old hardware address.
    pub published: Option<LeaseAttrs>,
    /// Peers' public addresses that the kernel would reach without a gateway, and through which device.
    /// Asked for only by backends that route directly.
    pub on_link: BTreeMap<IpAddr, IfName>,
    /// Far ends of ipip tunnels on this host that are not ours.
    pub tunnels: BTreeSet<IpAddr>,
    /// nftables tables of flannel's names that are about another network: another agent's.
    pub taken: BTreeSet<TableKey>,
    /// Whether the kernel already holds nexthop objects of ours (hysteresis of the threshold).
    pub nexthops_in_use: bool,
    /// Whether the kernel has IPv6 at all.
    pub ipv6: bool,
    /// Identity of this machine, from which a VTEP's hardware address is derived so that it survives a
    /// reboot: the content of `/etc/machine-id`, or empty.
    pub machine_id: String,
    /// Whether this kernel shows IPsec policies, so that old ones of ours may be among them.
    pub xfrm: bool,
    /// What `PreStartupCommand` of the extension backend printed, once it has run.
    pub printed: Option<String>,
    /// The programs of iptables, for each family that has them; asked for only where rules are to go there.
    pub iptables: Iptables,
    /// What the backend wireguard needs; asked for by it only.
    pub wireguard: Option<WireguardFacts>,
}

/// What is known of the host's WireGuard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireguardFacts {
    /// This node's private key.
    pub private: Secret,
    /// The public key that belongs to it.
    pub public: PublicKey,
    /// The file it is in.
    pub key_file: String,
    /// The kernel has WireGuard.
    pub in_kernel: bool,
}

impl Facts {
    /// Where packets of a tunnel leave from: the public address, unless no interface has it (NAT; F-78).
    pub fn source(&self, family: Family) -> Option<IpAddr> {
        let public = self.public.of(family).filter(|ip| self.local.contains(ip));
        public.or(self.uplink.addresses.of(family))
    }
}

/// What is known of the host's iptables, by family.
pub type Iptables = BTreeMap<Family, IptablesTool>;

/// The iptables of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IptablesTool {
    /// The variant this host uses.
    pub variant: Variant,
    /// It knows `--random-fully` (1.6.2 and later).
    pub fully_random: bool,
}

/// Which families are enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    /// `EnableIPv4`
    pub v4: bool,
    /// `EnableIPv6`
    pub v6: bool,
}

impl Families {
    /// The enabled ones, v4 first.
    pub fn iter(self) -> impl Iterator<Item = Family> {
        Family::BOTH.into_iter().filter(move |f| match f {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        })
    }
}

/// The external interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Name.
    pub name: IfName,
    /// MTU in bytes.
    pub mtu: u32,
    /// The addresses chosen on it.
    pub addresses: Addresses,
}

/// At most one address of each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4
    pub v4: Option<Ipv4Addr>,
    /// IPv6
    pub v6: Option<Ipv6Addr>,
}

impl Addresses {
    /// The address of one family.
    pub fn of(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4.map(IpAddr::V4),
            Family::V6 => self.v6.map(IpAddr::V6),
        }
    }
}
