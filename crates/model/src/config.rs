//! The network configuration of a cluster (`net-conf.json`, etcd key `config`; flannel.md 2).
//!
//! Takes JSON text, gives a [`NetConf`]; [`NetConf::validate`] completes and checks it for stores that
//! allocate subnets themselves. Does not know which backends exist.

mod check;
mod fast;
mod ipsec;
mod secret;
mod tencent;
#[cfg(test)]
mod tests;
mod vxlan;
mod wireguard;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::addr::{Family, parse_cidr, parse_ip};
use crate::gojson::{Fields, Json, SyntaxError, TypeError};

pub use check::Range;
pub use fast::FastPath;
pub use ipsec::IpsecConf;
pub use secret::Secret;
pub use tencent::TencentConf;
pub use vxlan::VxlanConf;
pub use wireguard::{Mode as WireguardMode, WireguardConf};

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

/// What is wrong with a network configuration: one sentence that names the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfError {
    /// Not JSON.
    #[error("read network config: {0}")]
    Syntax(#[from] SyntaxError),
    /// A key of another type.
    #[error("read network config: {0}")]
    Type(#[from] TypeError),
    /// A key whose value cannot be.
    #[error("read network config: {key} {problem}")]
    Value {
        /// The key, as flannel spells it.
        key: &'static str,
        /// What is wrong, with the value, and what would be right.
        problem: String,
    },
}

impl ConfError {
    fn value(key: &'static str, problem: impl Into<String>) -> ConfError {
        ConfError::Value { key, problem: problem.into() }
    }
}

impl NetConf {
    /// Decodes the JSON text. Unknown keys are ignored; a `Network` of `0.0.0.0/0` and a limit of
    /// `0.0.0.0` or `::` count as unset.
    ///
    /// # Errors
    /// Not JSON, a key of another type, or an address that is none or of the other family (F-17, F-18).
    pub fn parse(text: impl AsRef<[u8]>) -> Result<NetConf, ConfError> {
        let json = Json::parse(text.as_ref())?;
        let fields = json.fields("Config")?;
        let (backend_type, backend) = backend(&fields)?;
        Ok(NetConf {
            enable_ipv4: fields.bool("EnableIPv4")?.unwrap_or(true),
            enable_ipv6: fields.bool("EnableIPv6")?.unwrap_or(false),
            enable_nftables: fields.bool("EnableNFTables")?.unwrap_or(false),
            network: match network(&fields, "Network", Family::V4)? {
                Some(IpNet::V4(net)) => Some(net),
                _ => None,
            },
            ipv6_network: match network(&fields, "IPv6Network", Family::V6)? {
                Some(IpNet::V6(net)) => Some(net),
                _ => None,
            },
            subnet_len: length(&fields, "SubnetLen")?,
            subnet_min: v4(&fields, "SubnetMin")?,
            subnet_max: v4(&fields, "SubnetMax")?,
            ipv6_subnet_len: length(&fields, "IPv6SubnetLen")?,
            ipv6_subnet_min: v6(&fields, "IPv6SubnetMin")?,
            ipv6_subnet_max: v6(&fields, "IPv6SubnetMax")?,
            backend_type,
            backend,
        })
    }

    /// The families switched on, v4 first. Empty = nothing to do, which the agent refuses (flannel.md
    /// 1.5 step 10).
    pub fn families(&self) -> impl Iterator<Item = Family> + use<> {
        let (v4, v6) = (self.enable_ipv4, self.enable_ipv6);
        Family::BOTH.into_iter().filter(move |family| if *family == Family::V4 { v4 } else { v6 })
    }

    /// The network of a family, if it is enabled and has one.
    pub fn network_of(&self, family: Family) -> Option<IpNet> {
        match family {
            Family::V4 => self.network.filter(|_| self.enable_ipv4).map(IpNet::V4),
            Family::V6 => self.ipv6_network.filter(|_| self.enable_ipv6).map(IpNet::V6),
        }
    }

    /// The enabled networks, v4 first.
    pub fn networks(&self) -> Vec<IpNet> {
        Family::BOTH.into_iter().filter_map(|family| self.network_of(family)).collect()
    }
}

fn backend(fields: &Fields<'_>) -> Result<(String, Json), ConfError> {
    let Some(json) = fields.raw("Backend") else { return Ok(("udp".to_owned(), Json::empty())) };
    if json.is_null() {
        return Ok((String::new(), Json::empty()));
    }
    let kind = json.fields("Backend")?.str("Type")?.unwrap_or_default().to_owned();
    Ok((kind, json.clone()))
}

fn network(fields: &Fields<'_>, key: &'static str, family: Family) -> Result<Option<IpNet>, ConfError> {
    let Some(json) = fields.raw(key) else { return Ok(None) };
    let net = json.as_str().and_then(parse_cidr).filter(|net| Family::of_net(*net) == family);
    let example = if family == Family::V4 { "10.244.0.0/16" } else { "fd00:10:244::/48" };
    let net = net.ok_or_else(|| {
        let problem = format!("{} is not an {family} network such as \"{example}\"", json.to_compact());
        ConfError::value(key, problem)
    })?;
    Ok(Some(net.trunc()).filter(|net| net.prefix_len() > 0 || !net.addr().is_unspecified()))
}

fn length(fields: &Fields<'_>, key: &'static str) -> Result<u8, ConfError> {
    let value = fields.int::<u64>(key)?.unwrap_or(0);
    u8::try_from(value).map_err(|_| ConfError::value(key, format!("{value} is longer than any address")))
}

fn v4(fields: &Fields<'_>, key: &'static str) -> Result<Option<Ipv4Addr>, ConfError> {
    match fields.raw(key).map(|json| (json, json.as_str().and_then(parse_ip))) {
        None => Ok(None),
        Some((_, Some(IpAddr::V4(ip)))) => Ok(Some(ip).filter(|ip| !ip.is_unspecified())),
        Some((json, _)) => {
            Err(ConfError::value(key, format!("{} is not an IPv4 address in quotes", json.to_compact())))
        }
    }
}

fn v6(fields: &Fields<'_>, key: &'static str) -> Result<Option<Ipv6Addr>, ConfError> {
    match fields.raw(key).map(|json| (json, json.as_str().and_then(parse_ip))) {
        None | Some((Json::Null, _)) => Ok(None),
        Some((_, Some(IpAddr::V6(ip)))) => Ok(Some(ip).filter(|ip| !ip.is_unspecified())),
        Some((json, _)) => {
            Err(ConfError::value(key, format!("{} is not an IPv6 address in quotes", json.to_compact())))
        }
    }
}
