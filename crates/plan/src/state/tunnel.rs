//! User-space tunnels: the process behind a TUN device, and its peers. Not of the kernel, but read, compared and
//! written as if it were (decision 0140).

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;
use model::IfName;

/// A process that carries a device's packets in UDP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The device.
    pub dev: IfName,
    /// Where it listens, and what it sends from.
    pub listen: SocketAddrV4,
    /// This host's address on the device.
    pub address: Ipv4Addr,
    /// The cluster's network.
    pub network: Ipv4Net,
    /// Version of the program; another one is replaced.
    pub version: String,
}

/// Where a tunnel finds a subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelPeer {
    /// The tunnel's device.
    pub dev: IfName,
    /// The subnet.
    pub net: Ipv4Net,
    /// The host it is on.
    pub to: SocketAddrV4,
}

impl fmt::Display for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tunnel { dev, listen, address, network, .. } = self;
        write!(f, "loden tunnel run {dev} --listen {listen} --address {address} --network {network}")
    }
}

impl fmt::Display for TunnelPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "loden tunnel set {} {} {}", self.dev, self.net, self.to)
    }
}
