//! `subnet.env`: what the agent tells the CNI plugin, Docker and its own next start (flannel.md 8.1, 9.3).
//!
//! One writer and two readers, because flannel has two: the agent's forgives everything, the plugin's
//! takes lines as they stand and says what is missing.

mod dotenv;
#[cfg(test)]
mod tests;

use std::fmt::Write;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::addr::{Family, parse_cidr, to_bits};
use crate::config::NetConf;
use crate::lease::Subnets;

/// Names of the network and the subnet of a family.
fn keys(family: Family) -> [&'static str; 2] {
    match family {
        Family::V4 => ["FLANNEL_NETWORK", "FLANNEL_SUBNET"],
        Family::V6 => ["FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET"],
    }
}

/// The whole file. A family's lines are there if it is enabled and the node has a subnet of it; the
/// subnet is given by its first host address, the one the bridge takes. `mtu` in bytes.
pub fn write(conf: &NetConf, subnets: &Subnets, mtu: u32, ip_masq: bool) -> String {
    let mut out = String::new();
    for family in Family::BOTH {
        let (Some(network), Some(subnet)) = (conf.network_of(family), subnets.of(family)) else { continue };
        let gateway = gateway(subnet);
        let [network_key, subnet_key] = keys(family);
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{network_key}={network}\n{subnet_key}={gateway}/{}", subnet.prefix_len());
    }
    let _ = writeln!(out, "FLANNEL_MTU={mtu}\nFLANNEL_IPMASQ={ip_masq}");
    out
}

/// The variables of such a file by dotenv rules; lines that are none are passed over.
pub fn variables(text: &str) -> std::collections::BTreeMap<String, String> {
    dotenv::read(text).0
}

/// What an earlier start of the agent left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Previous {
    /// The cluster networks of then, masked.
    pub networks: Subnets,
    /// The node's subnets of then, masked.
    pub subnets: Subnets,
    /// Lines and values that were skipped, each one sentence for the log.
    pub warnings: Vec<String>,
}

/// Reads the file for the agent: dotenv rules, lists of networks. A list without exactly one valid entry
/// means no previous value.
pub fn read_previous(text: &str) -> Previous {
    let (values, mut warnings) = dotenv::read(text);
    let mut only = |family: Family, key: &str| -> Option<IpNet> {
        let list = values.get(key)?;
        let mut nets = Vec::new();
        for entry in list.split(',') {
            match parse_cidr(entry).filter(|net| Family::of_net(*net) == family) {
                Some(net) => nets.push(net.trunc()),
                None => warnings.push(format!("skip {entry:?} in {key}: it is not an {family} network")),
            }
        }
        Some(nets).filter(|nets| nets.len() == 1)?.pop()
    };
    let [v4_network, v4_subnet] = keys(Family::V4).map(|key| only(Family::V4, key).and_then(v4));
    let [v6_network, v6_subnet] = keys(Family::V6).map(|key| only(Family::V6, key).and_then(v6));
    Previous {
        networks: Subnets { v4: v4_network, v6: v6_network },
        subnets: Subnets { v4: v4_subnet, v6: v6_subnet },
        warnings,
    }
}

fn v4(net: IpNet) -> Option<Ipv4Net> {
    if let IpNet::V4(net) = net { Some(net) } else { None }
}

fn v6(net: IpNet) -> Option<Ipv6Net> {
    if let IpNet::V6(net) = net { Some(net) } else { None }
}

/// The file as the CNI plugin sees it; complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNetwork {
    /// The cluster networks, v4 before v6, each masked, without duplicates.
    pub networks: Vec<IpNet>,
    /// The node's subnets, masked.
    pub subnets: Subnets,
    /// MTU of pods in bytes.
    pub mtu: u32,
    /// Whether the agent masquerades.
    pub ip_masq: bool,
}

/// Why the plugin cannot use the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    /// Needed lines are not there.
    #[error("{file} is missing {keys}")]
    Missing {
        /// The file's name.
        file: String,
        /// The names, with `, ` between them.
        keys: String,
    },
    /// A line that cannot be right.
    #[error("read {file}: {key} {problem}")]
    Line {
        /// The file's name.
        file: String,
        /// Which key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// Reads the file for the CNI plugin: line by line, split at the first `=`, nothing else. `file` is its
/// name, for errors.
///
/// # Errors
/// A needed line is missing (flannel's exact text), has no `=` (F-152) or holds something else.
pub fn read_for_pods(file: &str, text: &str) -> Result<PodNetwork, EnvError> {
    let (mut networks, mut subnets) = ([Vec::new(), Vec::new()], Subnets::default());
    let (mut mtu, mut ip_masq) = (None, None);
    for line in text.lines() {
        let (key, value) = line.split_once('=').map_or((line, None), |(key, value)| (key, Some(value)));
        let bad = |problem: String| EnvError::Line { file: file.to_owned(), key: key.to_owned(), problem };
        let value = || value.ok_or_else(|| bad("has no '='".to_owned()));
        match key {
            "FLANNEL_NETWORK" => networks[0] = list(Family::V4, value()?).map_err(bad)?,
            "FLANNEL_IPV6_NETWORK" => networks[1] = list(Family::V6, value()?).map_err(bad)?,
            "FLANNEL_SUBNET" => subnets.v4 = v4(net(Family::V4, value()?).map_err(bad)?),
            "FLANNEL_IPV6_SUBNET" => subnets.v6 = v6(net(Family::V6, value()?).map_err(bad)?),
            "FLANNEL_MTU" => {
                let text = value()?;
                let number = text.parse::<u32>().ok().filter(|_| !text.starts_with('+'));
                mtu = Some(number.ok_or_else(|| bad(format!("{text:?} is not a number of bytes")))?);
            }
            "FLANNEL_IPMASQ" => ip_masq = Some(value()? == "true"),
            _ => {}
        }
    }
    let networks = networks.concat();
    match (networks.is_empty(), subnets.nets().next(), mtu, ip_masq) {
        (false, Some(_), Some(mtu), Some(ip_masq)) => Ok(PodNetwork { networks, subnets, mtu, ip_masq }),
        (no_network, subnet, mtu, ip_masq) => {
            let absent = [
                (no_network, "FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK"),
                (subnet.is_none(), "FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET"),
                (mtu.is_none(), "FLANNEL_MTU"),
                (ip_masq.is_none(), "FLANNEL_IPMASQ"),
            ];
            let names: Vec<&str> = absent.into_iter().filter(|(absent, _)| *absent).map(|(_, n)| n).collect();
            Err(EnvError::Missing { file: file.to_owned(), keys: names.join(", ") })
        }
    }
}

fn net(family: Family, text: &str) -> Result<IpNet, String> {
    let net = parse_cidr(text).filter(|net| Family::of_net(*net) == family);
    net.map(|net| net.trunc()).ok_or_else(|| format!("{text:?} is not an {family} network"))
}

fn list(family: Family, text: &str) -> Result<Vec<IpNet>, String> {
    let mut nets = Vec::new();
    for entry in text.split(',') {
        let net = net(family, entry)?;
        if !nets.contains(&net) {
            nets.push(net);
        }
    }
    Ok(nets)
}

/// The address a bridge on this subnet takes: the first host address.
pub fn gateway(subnet: IpNet) -> IpAddr {
    Family::of_net(subnet).from_bits(to_bits(subnet.network()).wrapping_add(1))
}
