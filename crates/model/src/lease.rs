//! A lease: the subnet(s) of one node and what other nodes need to reach it (flannel.md 3.2, 4.2).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::addr::Family;

/// The subnets of one lease, and its identity. At least one family is present.
/// Networks are masked: no host bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Subnets {
    /// The IPv4 subnet, such as `10.244.7.0/24`.
    pub v4: Option<Ipv4Net>,
    /// The IPv6 subnet, such as `fd00:10:244:7::/64`.
    pub v6: Option<Ipv6Net>,
}

impl Subnets {
    /// The subnet of one family.
    pub fn of(&self, family: Family) -> Option<IpNet> {
        match family {
            Family::V4 => self.v4.map(IpNet::V4),
            Family::V6 => self.v6.map(IpNet::V6),
        }
    }

    /// The subnets present, v4 first.
    pub fn nets(&self) -> impl Iterator<Item = IpNet> + use<> {
        [self.v4.map(IpNet::V4), self.v6.map(IpNet::V6)].into_iter().flatten()
    }

    /// Whether the two share an address in either family.
    pub fn overlaps(&self, other: &Subnets) -> bool {
        Family::BOTH.into_iter().any(|family| match (self.of(family), other.of(family)) {
            (Some(a), Some(b)) => a.contains(&b) || b.contains(&a),
            _ => false,
        })
    }
}

impl fmt::Display for Subnets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.v4, self.v6) {
            (Some(a), Some(b)) => write!(f, "{a} and {b}"),
            (Some(a), None) => a.fmt(f),
            (None, Some(b)) => b.fmt(f),
            (None, None) => f.write_str("(no subnet)"),
        }
    }
}

/// What a node publishes of itself with its lease.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct LeaseAttrs {
    /// Address other nodes send to. `None` is written as `0.0.0.0` (flannel.md 3.2).
    pub public_ip: Option<Ipv4Addr>,
    /// The same in IPv6.
    pub public_ip6: Option<Ipv6Addr>,
    /// `vxlan`, `host-gw`, …; empty for udp, alloc and tencent-vpc.
    pub backend_type: String,
    /// JSON text of the backend's IPv4 data, exactly as stored.
    pub backend_data: Option<Box<str>>,
    /// JSON text of the backend's IPv6 data, exactly as stored.
    pub backend_v6_data: Option<Box<str>>,
}

impl LeaseAttrs {
    /// The public address of one family.
    pub fn public(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.public_ip.map(IpAddr::V4),
            Family::V6 => self.public_ip6.map(IpAddr::V6),
        }
    }

    /// The backend's data of one family.
    pub fn data(&self, family: Family) -> Option<&str> {
        match family {
            Family::V4 => self.backend_data.as_deref(),
            Family::V6 => self.backend_v6_data.as_deref(),
        }
    }
}

/// A node's place in the cluster network.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Lease {
    /// Which subnets the node owns; the identity of the lease.
    pub subnets: Subnets,
    /// How to reach it.
    pub attrs: LeaseAttrs,
}
