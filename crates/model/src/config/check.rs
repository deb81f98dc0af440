//! Completing and checking a configuration for stores that allocate subnets (flannel.md 2.2).

use std::net::IpAddr;

use ipnet::IpNet;

use super::{ConfError, NetConf};
use crate::addr::{Family, bounds, to_bits};

/// From where to where a store hands out subnets of one family, and how long they are. Addresses are
/// numbers of 32 or 128 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Which family.
    pub family: Family,
    /// Prefix length of each subnet.
    pub len: u8,
    /// First address of the first subnet.
    pub min: u128,
    /// First address of the last subnet. Not below `min`.
    pub max: u128,
}

impl Range {
    /// Addresses in one subnet.
    pub fn size(&self) -> u128 {
        1 << (self.family.bits() - self.len)
    }
}

/// The keys of one family and the lengths it allows.
struct Rules {
    family: Family,
    network: &'static str,
    len: &'static str,
    min: &'static str,
    max: &'static str,
    /// The longest subnet.
    longest: u8,
    /// The subnet length where the network leaves the choice.
    usual: u8,
}

const V4: Rules = Rules {
    family: Family::V4,
    network: "Network",
    len: "SubnetLen",
    min: "SubnetMin",
    max: "SubnetMax",
    longest: 30,
    usual: 24,
};

const V6: Rules = Rules {
    family: Family::V6,
    network: "IPv6Network",
    len: "IPv6SubnetLen",
    min: "IPv6SubnetMin",
    max: "IPv6SubnetMax",
    longest: 126,
    usual: 64,
};

impl NetConf {
    /// Checks that a family is enabled, and that every enabled one has a network: what any store needs
    /// (F-16).
    ///
    /// # Errors
    /// None is enabled, or a family is enabled whose network is missing, `0.0.0.0/0` or `::/0`.
    pub fn require_networks(&self) -> Result<(), ConfError> {
        if self.families().next().is_none() {
            let problem = "is false and EnableIPv6 too: enable one of the two".to_owned();
            return Err(ConfError::value("EnableIPv4", problem));
        }
        for rules in [V4, V6] {
            if self.families().any(|family| family == rules.family) && self.network_of(rules.family).is_none()
            {
                let enable = if rules.family == Family::V4 { "EnableIPv4" } else { "EnableIPv6" };
                let problem = format!("is missing, though {enable} is true: name the cluster's network");
                return Err(ConfError::value(rules.network, problem));
            }
        }
        Ok(())
    }

    /// Fills in what is left out and checks the rest, exactly by flannel.md 2.2, and `min ≤ max` (F-15).
    ///
    /// # Errors
    /// The first key that breaks a rule.
    pub fn validate(mut self) -> Result<NetConf, ConfError> {
        self.require_networks()?;
        for rules in [V4, V6] {
            let Some(network) = self.network_of(rules.family) else { continue };
            let (len, min, max) = match rules.family {
                Family::V4 => {
                    (self.subnet_len, self.subnet_min.map(IpAddr::V4), self.subnet_max.map(IpAddr::V4))
                }
                Family::V6 => (
                    self.ipv6_subnet_len,
                    self.ipv6_subnet_min.map(IpAddr::V6),
                    self.ipv6_subnet_max.map(IpAddr::V6),
                ),
            };
            let range = complete(&rules, network, len, min, max)?;
            let ends = [range.min, range.max].map(|bits| rules.family.from_bits(bits));
            match ends {
                [IpAddr::V4(min), IpAddr::V4(max)] => {
                    (self.subnet_len, self.subnet_min, self.subnet_max) = (range.len, Some(min), Some(max));
                }
                [IpAddr::V6(min), IpAddr::V6(max)] => {
                    self.ipv6_subnet_len = range.len;
                    (self.ipv6_subnet_min, self.ipv6_subnet_max) = (Some(min), Some(max));
                }
                _ => {}
            }
        }
        Ok(self)
    }

    /// The range of a family, if it is enabled and the configuration was completed by
    /// [`NetConf::validate`].
    pub fn range(&self, family: Family) -> Option<Range> {
        self.network_of(family)?;
        let (len, min, max) = match family {
            Family::V4 => {
                (self.subnet_len, to_bits(self.subnet_min?.into()), to_bits(self.subnet_max?.into()))
            }
            Family::V6 => (
                self.ipv6_subnet_len,
                to_bits(self.ipv6_subnet_min?.into()),
                to_bits(self.ipv6_subnet_max?.into()),
            ),
        };
        Some(Range { family, len, min, max }).filter(|r| min <= max && (1..family.bits()).contains(&r.len))
    }
}

fn complete(
    rules: &Rules,
    network: IpNet,
    len: u8,
    min: Option<IpAddr>,
    max: Option<IpAddr>,
) -> Result<Range, ConfError> {
    let family = rules.family;
    let len = subnet_len(rules, network, len)?;
    let size = 1u128 << (family.bits() - len);
    let (first, last) = bounds(network);
    // The first subnet is skipped on purpose, as in flannel. Aligned and inside, the last one fits whole.
    let ends = [(rules.min, min, first + size), (rules.max, max, last - (size - 1))];
    let [min, max] = ends.map(|(key, given, default)| {
        let Some(given) = given else { return Ok(default) };
        let bits = to_bits(given);
        if !(first..=last).contains(&bits) {
            return Err(ConfError::value(key, format!("{given} lies outside {} {network}", rules.network)));
        }
        if !bits.is_multiple_of(size) {
            let below = family.from_bits(bits - bits % size);
            let problem = format!("{given} is not on a boundary of {} {len}; {below} is", rules.len);
            return Err(ConfError::value(key, problem));
        }
        Ok(bits)
    });
    let (min, max) = (min?, max?);
    if min > max {
        let [min, max] = [min, max].map(|bits| family.from_bits(bits));
        return Err(ConfError::value(rules.min, format!("{min} is above {} {max}", rules.max)));
    }
    Ok(Range { family, len, min, max })
}

fn subnet_len(rules: &Rules, network: IpNet, len: u8) -> Result<u8, ConfError> {
    let prefix = network.prefix_len();
    if len == 0 {
        if prefix > rules.longest - 2 {
            let problem = format!("{network} is too small; /{} is the smallest", rules.longest - 2);
            return Err(ConfError::value(rules.network, problem));
        }
        return Ok(rules.usual.max(prefix + 2));
    }
    if len > rules.longest {
        let problem = format!("{len} must be {} or less", rules.longest);
        return Err(ConfError::value(rules.len, problem));
    }
    if len < prefix + 2 {
        let problem = format!(
            "{len} leaves {} {network} fewer than four subnets; use {} or more",
            rules.network,
            prefix + 2
        );
        return Err(ConfError::value(rules.len, problem));
    }
    Ok(len)
}
