//! The network configuration of a cluster (`net-conf.json`, etcd key `config`; flannel.md 2).

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::gojson::Json;

/// The network configuration, decoded by Go's rules and, for stores that allocate subnets, completed
/// and checked by flannel.md 2.2.
#[derive(Clone, Debug, PartialEq)]
pub struct NetConf {
    /// `EnableIPv4`, default true.
    pub enable_ipv4: bool,
    /// `EnableIPv6`, default false.
    pub enable_ipv6: bool,
    /// `EnableNFTables`, default false.
    pub enable_nftables: bool,
    /// `Network`, masked.
    pub network: Option<Ipv4Net>,
    /// `IPv6Network`, masked.
    pub ipv6_network: Option<Ipv6Net>,
    /// `SubnetLen`; 0 = unset.
    pub subnet_len: u8,
    /// `SubnetMin`.
    pub subnet_min: Option<Ipv4Addr>,
    /// `SubnetMax`, the last subnet's address.
    pub subnet_max: Option<Ipv4Addr>,
    /// `IPv6SubnetLen`; 0 = unset.
    pub ipv6_subnet_len: u8,
    /// `IPv6SubnetMin`.
    pub ipv6_subnet_min: Option<Ipv6Addr>,
    /// `IPv6SubnetMax`.
    pub ipv6_subnet_max: Option<Ipv6Addr>,
    /// `Backend.Type` as written; `udp` when there is no `Backend` at all (F-14).
    pub backend_type: String,
    /// The `Backend` object; an empty object when absent.
    pub backend: Json,
}

impl NetConf {
    /// The enabled networks, v4 first.
    pub fn networks(&self) -> Vec<IpNet> {
        let v4 = self.network.filter(|_| self.enable_ipv4).map(IpNet::V4);
        let v6 = self.ipv6_network.filter(|_| self.enable_ipv6).map(IpNet::V6);
        [v4, v6].into_iter().flatten().collect()
    }
}
