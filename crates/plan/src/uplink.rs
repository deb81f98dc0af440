//! Which interface carries the traffic between hosts, which of its addresses are used, and which are
//! advertised (flannel.md 5). A pure function over what the host has; the reasons come with the answer.
//!
//! Differs from upstream where that crashes or mixes interfaces: F-66 to F-69.

use std::net::IpAddr;

use ipnet::IpNet;
use model::addr::parse_ip;
use model::{Family, IfName};
use regex_lite::Regex;

use crate::facts::{Addresses, Families, Uplink};

/// An interface of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Iface {
    /// Name.
    pub name: IfName,
    /// Index.
    pub index: u32,
    /// MTU in bytes.
    pub mtu: u32,
    /// Addresses in the kernel's order.
    pub addresses: Vec<IfaceAddress>,
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IfaceAddress {
    /// Address and prefix length.
    pub net: IpNet,
    /// Not to be used for new traffic (`IFA_F_DEPRECATED`).
    pub deprecated: bool,
    /// Set by hand, not by a lease or advertisement (`IFA_F_PERMANENT`).
    pub permanent: bool,
    /// A privacy address (`IFA_F_TEMPORARY`).
    pub temporary: bool,
}

/// What the operator said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selectors {
    /// `--iface`, in order.
    pub iface: Vec<String>,
    /// `--iface-regex`, in order.
    pub iface_regex: Vec<String>,
    /// `--iface-can-reach`
    pub can_reach: String,
    /// `--public-ip`
    pub public_ip: String,
    /// `--public-ipv6`
    pub public_ipv6: String,
}

/// What the kernel's routing tables say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// Index of the device of the first IPv4 default route in the main table.
    pub default_v4: Option<u32>,
    /// The same in IPv6.
    pub default_v6: Option<u32>,
    /// How the address of `--iface-can-reach` is reached: device index and preferred source.
    pub reach: Option<(u32, Option<IpAddr>)>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Interface and the addresses bound locally.
    pub uplink: Uplink,
    /// Addresses other hosts shall use.
    pub public: Addresses,
    /// Each decision taken, for people.
    pub why: Vec<String>,
}

/// Chooses.
///
/// # Errors
/// One sentence that names what was looked for, what was found, and the flag that helps.
pub fn choose(
    selectors: &Selectors,
    families: Families,
    ifaces: &[Iface],
    routing: &Routing,
) -> Result<Choice, String> {
    let host = Host { families, ifaces, routing, selectors };
    let mut why = Vec::new();
    let explicit =
        !selectors.iface.is_empty() || !selectors.iface_regex.is_empty() || !selectors.can_reach.is_empty();
    let (iface, bound) =
        if explicit { host.first_of_flags(&mut why)? } else { host.without_flags(&mut why)? };
    if iface.mtu == 0 {
        return Err(format!(
            "interface {} has MTU 0; set one with: ip link set {} mtu 1500",
            iface.name, iface.name
        ));
    }
    let mut public = bound;
    for (family, flag, text) in [
        (Family::V4, "--public-ip", &selectors.public_ip),
        (Family::V6, "--public-ipv6", &selectors.public_ipv6),
    ] {
        if let Some(ip) = host.public(family, flag, text)? {
            put(&mut public, ip);
        }
    }
    for family in families.iter() {
        if let (Some(bound), Some(public)) = (bound.of(family), public.of(family)) {
            let note = if bound == public { String::new() } else { format!(", advertised as {public}") };
            why.push(format!("{family}: {bound} on {}{note}", iface.name));
        }
    }
    Ok(Choice { uplink: Uplink { name: iface.name, mtu: iface.mtu, addresses: bound }, public, why })
}

type Found<'a> = (&'a Iface, Addresses);

struct Host<'a> {
    families: Families,
    ifaces: &'a [Iface],
    routing: &'a Routing,
    selectors: &'a Selectors,
}

impl<'a> Host<'a> {
    fn first_of_flags(&self, why: &mut Vec<String>) -> Result<Found<'a>, String> {
        let s = self.selectors;
        let by_iface = s.iface.iter().map(|text| ("--iface", text, Host::by_name_or_address as By<'a>));
        let by_regex = s.iface_regex.iter().map(|text| ("--iface-regex", text, Host::by_regex as By<'a>));
        let by_reach = [("--iface-can-reach", &s.can_reach, Host::by_reach as By<'a>)];
        let by_reach = by_reach.into_iter().filter(|(_, text, _)| !text.is_empty());
        let mut failures = Vec::new();
        for (flag, text, by) in by_iface.chain(by_regex).chain(by_reach) {
            match by(self, text) {
                Ok(found) => {
                    why.push(format!("{flag}={text} fits {}", found.0.name));
                    return Ok(found);
                }
                Err(error) => {
                    let failure = format!("{flag}={text}: {error}");
                    why.push(failure.clone());
                    failures.push(failure);
                }
            }
        }
        Err(format!(
            "find the interface for traffic between hosts: {}; this host has {}",
            failures.join("; "),
            self.list()
        ))
    }

    fn without_flags(&self, why: &mut Vec<String>) -> Result<Found<'a>, String> {
        let s = self.selectors;
        for (flag, text) in [("--public-ip", &s.public_ip), ("--public-ipv6", &s.public_ipv6)] {
            if !text.is_empty() {
                let found = self.by_name_or_address(text).map_err(|error| {
                    format!(
                        "{flag}={text}: {error}; an address behind NAT needs --iface too; this host has {}",
                        self.list()
                    )
                })?;
                why.push(format!("{flag}={text} is an address of {}", found.0.name));
                return Ok(found);
            }
        }
        let found = self.by_default_route()?;
        why.push(format!("the default route leads through {}", found.0.name));
        Ok(found)
    }

    fn by_name_or_address(&self, text: &str) -> Result<Found<'a>, String> {
        let Some(ip) = parse_ip(text) else {
            let iface = self.ifaces.iter().find(|i| i.name.as_str() == text);
            let iface = iface.ok_or_else(|| "there is no such interface".to_owned())?;
            return Ok((iface, self.complete(iface, Addresses::default())?));
        };
        if !self.families.iter().any(|f| f == Family::of(ip)) {
            return Err(format!("{} is not enabled in the network config", Family::of(ip)));
        }
        let holder = self.ifaces.iter().find(|i| i.addresses.iter().any(|a| a.net.addr() == ip));
        let iface = holder.ok_or_else(|| "no interface has this address".to_owned())?;
        let mut fixed = Addresses::default();
        put(&mut fixed, ip);
        // In a dual-stack network an advertised address that is local must be on the same interface.
        let other = match ip {
            IpAddr::V4(_) => &self.selectors.public_ipv6,
            IpAddr::V6(_) => &self.selectors.public_ip,
        };
        if let Some(other) = parse_ip(other)
            && self.families.iter().any(|f| f == Family::of(other))
        {
            if !iface.addresses.iter().any(|a| a.net.addr() == other) {
                return Err(format!("interface {} does not have {other} too", iface.name));
            }
            put(&mut fixed, other);
        }
        Ok((iface, self.complete(iface, fixed)?))
    }

    fn by_regex(&self, text: &str) -> Result<Found<'a>, String> {
        let regex = Regex::new(text).map_err(|error| format!("is not a regular expression: {error}"))?;
        let matching = |iface: &Iface, family: Family| {
            let candidates = iface.addresses.iter().filter(|a| Family::of_net(a.net) == family && usable(a));
            best(candidates.filter(|a| regex.is_match(&a.net.addr().to_string())))
        };
        for iface in self.ifaces {
            let found: Vec<IpAddr> = self.families.iter().filter_map(|f| matching(iface, f)).collect();
            if !found.is_empty() && found.len() == self.families.iter().count() {
                let mut fixed = Addresses::default();
                found.into_iter().for_each(|ip| put(&mut fixed, ip));
                return Ok((iface, fixed));
            }
        }
        let named = self.ifaces.iter().filter(|i| regex.is_match(i.name.as_str()));
        let mut failure = "no address and no name of an interface matches".to_owned();
        for iface in named {
            match self.complete(iface, Addresses::default()) {
                Ok(addresses) => return Ok((iface, addresses)),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    fn by_reach(&self, _: &str) -> Result<Found<'a>, String> {
        let (index, source) = self.routing.reach.ok_or("the kernel has no route to it")?;
        let iface = self.by_index(index).ok_or("the kernel routes it through an unknown interface")?;
        let mut fixed = Addresses::default();
        let enabled = |ip: &IpAddr| self.families.iter().any(|f| f == Family::of(*ip));
        if let Some(source) = source.filter(enabled) {
            put(&mut fixed, source);
        }
        Ok((iface, self.complete(iface, fixed)?))
    }

    fn by_default_route(&self) -> Result<Found<'a>, String> {
        let mut indexes = Vec::new();
        for family in self.families.iter() {
            let index = match family {
                Family::V4 => self.routing.default_v4,
                Family::V6 => self.routing.default_v6,
            };
            indexes.push(index.ok_or_else(|| {
                format!(
                    "find the interface for traffic between hosts: there is no {family} default route through a single \
                     interface; name the interface with --iface; this host has {}",
                    self.list()
                )
            })?);
        }
        if indexes.windows(2).any(|pair| pair[0] != pair[1]) {
            return Err(format!(
                "find the interface for traffic between hosts: the default routes of IPv4 and IPv6 lead through \
                 different interfaces; name one with --iface; this host has {}",
                self.list()
            ));
        }
        let index = indexes.first().copied().unwrap_or_default();
        let iface = self.by_index(index).ok_or("the default route leads through an unknown interface")?;
        Ok((iface, self.complete(iface, Addresses::default())?))
    }

    fn by_index(&self, index: u32) -> Option<&'a Iface> {
        self.ifaces.iter().find(|i| i.index == index)
    }

    /// Fills in the best address of each enabled family that is not fixed yet (flannel.md 5.4).
    fn complete(&self, iface: &Iface, mut fixed: Addresses) -> Result<Addresses, String> {
        for family in self.families.iter().filter(|f| fixed.of(*f).is_none()).collect::<Vec<_>>() {
            let candidates = iface.addresses.iter().filter(|a| Family::of_net(a.net) == family && usable(a));
            let ip = best(candidates)
                .ok_or_else(|| format!("interface {} has no {family} address", iface.name))?;
            put(&mut fixed, ip);
        }
        Ok(fixed)
    }

    fn public(&self, family: Family, flag: &str, text: &str) -> Result<Option<IpAddr>, String> {
        if text.is_empty() || !self.families.iter().any(|f| f == family) {
            return Ok(None);
        }
        let ip = parse_ip(text).filter(|ip| Family::of(*ip) == family);
        ip.map(Some).ok_or_else(|| format!("{flag}={text:?} is not an {family} address"))
    }

    fn list(&self) -> String {
        let one = |iface: &Iface| {
            let addresses: Vec<String> =
                iface.addresses.iter().filter(|a| usable(a)).map(|a| a.net.addr().to_string()).collect();
            format!(
                "{} ({})",
                iface.name,
                if addresses.is_empty() { "no address".to_owned() } else { addresses.join(", ") }
            )
        };
        self.ifaces.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

type By<'a> = fn(&Host<'a>, &str) -> Result<Found<'a>, String>;

fn put(addresses: &mut Addresses, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => addresses.v4 = Some(ip),
        IpAddr::V6(ip) => addresses.v6 = Some(ip),
    }
}

fn link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn usable(address: &IfaceAddress) -> bool {
    let ip = address.net.addr();
    !address.deprecated && !ip.is_loopback() && !ip.is_multicast() && !ip.is_unspecified()
}

/// Global before link-local, permanent before dynamic, lasting before temporary, else the first.
fn best<'b>(candidates: impl Iterator<Item = &'b IfaceAddress>) -> Option<IpAddr> {
    candidates.min_by_key(|a| (link_local(a.net.addr()), !a.permanent, a.temporary)).map(|a| a.net.addr())
}

#[cfg(test)]
mod tests;
