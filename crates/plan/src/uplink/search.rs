//! The search itself: selectors in flannel's order, then the addresses of the interface found.

use std::net::IpAddr;

use model::addr::parse_ip;
use model::{Family, IfName};
use regex_lite::Regex;

use super::{Candidate, Iface, IfaceAddress, Selectors, Situation, Step, Why};
use crate::facts::{Addresses, Uplink};

/// An interface, and the addresses on it that a selector has fixed.
type Found<'a> = (&'a Iface, Addresses);
type By<'a> = fn(&mut Search<'a>, &str) -> Result<Found<'a>, String>;

/// More interfaces than this are counted, not named: a node may have hundreds.
const NAMED: usize = 12;

pub(super) struct Search<'a> {
    selectors: &'a Selectors,
    situation: &'a Situation,
    pub(super) why: Why,
}

impl<'a> Search<'a> {
    pub(super) fn new(selectors: &'a Selectors, situation: &'a Situation) -> Search<'a> {
        Search { selectors, situation, why: Why::default() }
    }

    /// Interface with the addresses bound, and the addresses advertised.
    pub(super) fn run(&mut self) -> Result<(Uplink, Addresses), String> {
        let s = self.selectors;
        if self.situation.families.v6 && self.situation.routing.without_ipv6 {
            return Err(
                "EnableIPv6 is true, and this kernel has no IPv6: start it without ipv6.disable=1".to_owned()
            );
        }
        let mut announced = Vec::new();
        for family in self.situation.families.iter() {
            let (flag, text) = self.announcing(family);
            if let Some(ip) = s.registry.of(family).filter(|_| !text.is_empty()) {
                let because = format!("the registry has {ip} for this node, which goes before it");
                self.note(Candidate::Selector(format!("{flag}={text}")), false, because);
            }
            announced.extend(self.announced(family)?);
        }
        let explicit = !s.iface.is_empty() || !s.iface_regex.is_empty() || !s.can_reach.is_empty();
        let (iface, bound) = if explicit { self.first_of_flags()? } else { self.without_flags(&announced)? };
        if iface.mtu == 0 {
            let name = iface.name;
            return Err(format!("interface {name} has MTU 0; set one with: ip link set {name} mtu 1500"));
        }
        if !iface.up {
            let name = iface.name;
            self.why.otherwise.push(format!("{name} is down; bring it up with: ip link set {name} up"));
        }
        let mut public = bound;
        for (label, ip) in announced {
            put(&mut public, ip);
            if let Some(bound) = bound.of(Family::of(ip)).filter(|bound| *bound != ip) {
                let because =
                    format!("advertised to other hosts in place of {bound}, which stays this host's own");
                self.note(Candidate::Selector(label), true, because);
            }
        }
        Ok((Uplink { name: iface.name, mtu: iface.mtu, addresses: bound }, public))
    }

    fn note(&mut self, candidate: Candidate, taken: bool, because: impl Into<String>) {
        self.why.steps.push(Step { candidate, taken, because: because.into() });
    }

    fn enabled(&self, family: Family) -> bool {
        self.situation.families.iter().any(|f| f == family)
    }

    /// The flag that sets the advertised address of one family, and its value.
    fn announcing(&self, family: Family) -> (&'static str, &'a str) {
        match family {
            Family::V4 => ("--public-ip", &self.selectors.public_ip),
            Family::V6 => ("--public-ipv6", &self.selectors.public_ipv6),
        }
    }

    /// The address set for this node in one family, and by what.
    fn announced(&self, family: Family) -> Result<Option<(String, IpAddr)>, String> {
        if let Some(ip) = self.selectors.registry.of(family) {
            return Ok(Some((format!("{ip} set for this node in the registry"), ip)));
        }
        let (flag, text) = self.announcing(family);
        if text.is_empty() {
            return Ok(None);
        }
        match parse_ip(text).filter(|ip| Family::of(*ip) == family) {
            Some(ip) => Ok(Some((format!("{flag}={text}"), ip))),
            None => Err(format!("{flag}={text:?} is not an {family} address")),
        }
    }

    fn first_of_flags(&mut self) -> Result<Found<'a>, String> {
        let s = self.selectors;
        let by_iface = s.iface.iter().map(|text| ("--iface", text, Search::by_name_or_address as By<'a>));
        let by_regex = s.iface_regex.iter().map(|text| ("--iface-regex", text, Search::by_regex as By<'a>));
        let by_reach = [("--iface-can-reach", &s.can_reach, Search::by_reach as By<'a>)];
        let by_reach = by_reach.into_iter().filter(|(_, text, _)| !text.is_empty());
        let mut failures = Vec::new();
        for (flag, text, by) in by_iface.chain(by_regex).chain(by_reach) {
            let label = Candidate::Selector(format!("{flag}={text}"));
            // What a selector looks at comes before its verdict, so the place is kept.
            let place = self.why.steps.len();
            let by = if text.is_empty() { Search::by_default_route_too as By<'a> } else { by };
            let (taken, because) = match by(self, text).and_then(|found| self.complete(found)) {
                Ok(found) => {
                    let name = found.0.name;
                    let step = Step { candidate: label, taken: true, because: format!("it leads to {name}") };
                    self.why.steps.insert(place, step);
                    return Ok(found);
                }
                Err(error) => (false, error),
            };
            failures.push(format!("{flag}={text}: {because}"));
            self.why.steps.insert(place, Step { candidate: label, taken, because });
        }
        Err(format!(
            "find the interface for traffic between hosts: {}; this host has {}",
            failures.join("; "),
            self.list()
        ))
    }

    /// A flag without a value, as a manifest's empty variable gives it: flannel takes the default route.
    fn by_default_route_too(&mut self, _: &str) -> Result<Found<'a>, String> {
        self.by_default_route()
    }

    fn without_flags(&mut self, announced: &[(String, IpAddr)]) -> Result<Found<'a>, String> {
        let fail = |search: &Search<'_>, error: String| {
            format!("find the interface for traffic between hosts: {error}; this host has {}", search.list())
        };
        if let Some((label, ip)) = announced.first() {
            let found = self.by_address(*ip).and_then(|found| self.complete(found));
            let (taken, because) = match &found {
                Ok((iface, _)) => (true, format!("it is an address of {}", iface.name)),
                Err(error) => (false, error.clone()),
            };
            self.why.steps.insert(0, Step { candidate: Candidate::Selector(label.clone()), taken, because });
            return found.map_err(|error| {
                fail(self, format!("{label}: {error}; an address behind NAT needs --iface too"))
            });
        }
        let found = self.by_default_route().and_then(|found| self.complete(found));
        found.map_err(|error| fail(self, format!("{error}; name the interface with --iface")))
    }

    fn by_name_or_address(&mut self, text: &str) -> Result<Found<'a>, String> {
        let named = self.situation.ifaces.iter().find(|i| i.name.as_str() == text);
        if let Some(ip) = parse_ip(text) {
            // A name may look like an address; the address goes before it, as in flannel.
            return match (self.by_address(ip), named) {
                (Err(_), Some(iface)) => not_the_tunnel(iface).map(|iface| (iface, Addresses::default())),
                (found, _) => found,
            };
        }
        let iface = named.ok_or_else(|| {
            let label = text
                .split_once(':')
                .filter(|(dev, _)| self.situation.ifaces.iter().any(|i| i.name.as_str() == *dev));
            match label {
                Some((dev, _)) => format!(
                    "it is a label of addresses, not an interface; write --iface={dev}, or the address"
                ),
                None if text.contains(',') => {
                    "there is no such interface; give each interface a flag of its own".to_owned()
                }
                None => "there is no such interface".to_owned(),
            }
        })?;
        Ok((not_the_tunnel(iface)?, Addresses::default()))
    }

    /// The interface that has an address, which counts whatever its flags are.
    fn by_address(&mut self, ip: IpAddr) -> Result<Found<'a>, String> {
        if !self.enabled(Family::of(ip)) {
            return Err(format!("{} is not enabled in the network config", Family::of(ip)));
        }
        if ip.is_loopback() {
            return Err("other hosts cannot reach a loopback address".to_owned());
        }
        let iface = self.holder(ip).ok_or_else(|| "no interface has this address".to_owned())?;
        let mut fixed = Addresses::default();
        put(&mut fixed, ip);
        // In a dual-stack network the other family's advertised address, if it is local, must be beside it.
        let other = match ip {
            IpAddr::V4(_) => Family::V6,
            IpAddr::V6(_) => Family::V4,
        };
        if self.enabled(other)
            && let Some((label, other)) = self.announced(other)?
            && let Some(holder) = self.holder(other)
        {
            if !has(iface, other) {
                return Err(format!(
                    "interface {} does not have {other} too ({label}), which is on {}; both families need one interface",
                    iface.name, holder.name
                ));
            }
            put(&mut fixed, other);
        }
        Ok((not_the_tunnel(iface)?, fixed))
    }

    fn by_regex(&mut self, text: &str) -> Result<Found<'a>, String> {
        let regex = Regex::new(text).map_err(|error| {
            format!(
                "is not a regular expression: {error} (unlike flannel's, ours know no \\p{{…}}, \\Q…\\E, \\C and no \
                 octal \\123)"
            )
        })?;
        let set = text.starts_with('[') && text.ends_with(']') && text[1..].find(']') == Some(text.len() - 2);
        if set && text.len() > 3 {
            let inner = &text[1..text.len() - 1];
            self.why.otherwise.push(format!(
                "--iface-regex={text} is a set of single characters and fits whatever contains one of them; for \
                 one word or the other write --iface-regex='{inner}'"
            ));
        }
        let ifaces: &'a [Iface] = &self.situation.ifaces;
        let families: Vec<Family> = self.situation.families.iter().collect();
        for iface in ifaces {
            let fits = |family: &Family| {
                let fitting = iface.addresses.iter().filter(|a| regex.is_match(&a.net.addr().to_string()));
                best(fitting.filter(|a| Family::of_net(a.net) == *family), &self.situation.held)
            };
            let found: Vec<(Family, IpAddr)> = families.iter().filter_map(|f| Some((*f, fits(f)?))).collect();
            if found.is_empty() {
                self.passed(iface, "no address of it matches");
            } else if let Some(reason) = pods_only(iface.name) {
                self.passed(iface, &format!("an address matches, but {reason}"));
            } else if found.len() < families.len() {
                let (one, ip) = found[0];
                let other = if one == Family::V4 { Family::V6 } else { Family::V4 };
                self.passed(
                    iface,
                    &format!("{ip} matches, but none of its {other} addresses, and both must"),
                );
            } else {
                let mut fixed = Addresses::default();
                found.into_iter().for_each(|(_, ip)| put(&mut fixed, ip));
                let because = "the first with an address that matches";
                self.note(Candidate::Interface(iface.name), true, because);
                return Ok((iface, fixed));
            }
        }
        let mut failure = None;
        for iface in ifaces.iter().filter(|i| regex.is_match(i.name.as_str())) {
            let lacks = families.iter().find(|f| {
                !iface.addresses.iter().any(|a| Family::of_net(a.net) == **f && unusable(a).is_none())
            });
            let problem = match (pods_only(iface.name), lacks) {
                (Some(reason), _) => format!("its name matches, but {reason}"),
                (None, Some(family)) => lacking(iface, *family),
                (None, None) => {
                    self.note(Candidate::Interface(iface.name), true, "no address matches, its name does");
                    return Ok((iface, Addresses::default()));
                }
            };
            self.note(Candidate::Interface(iface.name), false, problem.clone());
            failure.get_or_insert(format!("{}: {problem}", iface.name));
        }
        Err(failure.unwrap_or_else(|| "no address and no name of an interface matches".to_owned()))
    }

    fn by_reach(&mut self, text: &str) -> Result<Found<'a>, String> {
        let target = parse_ip(text).ok_or("it is not an address")?;
        let mut fixed = Addresses::default();
        let (iface, source) = match self.holder(target) {
            // On the node that has the address itself the kernel would answer with the loopback device.
            Some(iface) => (iface, Some(target)),
            None => {
                let reach = self.situation.routing.reach.ok_or("the kernel has no route to it")?;
                let iface =
                    self.by_index(reach.dev).ok_or("the kernel routes it through an unknown interface")?;
                (iface, reach.source)
            }
        };
        if let Some(reason) = pods_only(iface.name) {
            return Err(format!("the kernel reaches it through {}, and {reason}", iface.name));
        }
        if let Some(source) = source.filter(|ip| self.enabled(Family::of(*ip)) && !ip.is_loopback()) {
            put(&mut fixed, source);
        }
        let because =
            if source == Some(target) { "has the address itself" } else { "the kernel's way to it" };
        self.note(Candidate::Interface(iface.name), true, because);
        Ok((iface, fixed))
    }

    fn by_default_route(&mut self) -> Result<Found<'a>, String> {
        let mut found: Vec<(Family, &'a Iface)> = Vec::new();
        for family in self.situation.families.iter() {
            let routes = match family {
                Family::V4 => &self.situation.routing.defaults_v4,
                Family::V6 => &self.situation.routing.defaults_v6,
            };
            let mut taken = None;
            for route in routes {
                let Some(index) = route.dev else {
                    if taken.is_some() {
                        continue;
                    }
                    return Err(format!("the {family} default route has several next hops"));
                };
                let iface = self.by_index(index);
                let iface = iface.ok_or("the default route leads through an unknown interface")?;
                let metric =
                    if route.metric == 0 { String::new() } else { format!(" (metric {})", route.metric) };
                let (first, because) = match (taken, pods_only(iface.name)) {
                    (Some(_), _) => (false, format!("through {}{metric}, after the first", iface.name)),
                    (None, Some(reason)) => (false, format!("through {}{metric}, but {reason}", iface.name)),
                    (None, None) => (true, format!("the first, through {}{metric}", iface.name)),
                };
                self.note(Candidate::Route(family), first, because);
                taken = taken.or(first.then_some(iface));
            }
            found.push((family, taken.ok_or_else(|| format!("there is no {family} default route"))?));
        }
        if let [(_, v4), (_, v6)] = found[..]
            && v4.index != v6.index
        {
            return Err(format!(
                "the default routes of IPv4 and IPv6 lead through different interfaces, {} and {}",
                v4.name, v6.name
            ));
        }
        let (_, iface) = found.first().ok_or("no address family is enabled in the network config")?;
        let others = self.situation.ifaces.iter().filter(|i| i.index != iface.index && self.could_do(i));
        for other in others.take(NAMED).collect::<Vec<_>>() {
            self.passed(other, "no selector names it, and the default route does not lead through it first");
            let addresses: Vec<String> = usable(other).map(|a| a.net.addr().to_string()).collect();
            self.why.otherwise.push(format!(
                "to use {} ({}) instead: --iface={}",
                other.name,
                addresses.join(", "),
                other.name
            ));
        }
        Ok((iface, Addresses::default()))
    }

    /// Whether an interface could carry the traffic, by its name and addresses.
    fn could_do(&self, iface: &Iface) -> bool {
        let global = |f| usable(iface).any(|a| Family::of_net(a.net) == f && !link_local(a.net.addr()));
        pods_only(iface.name).is_none() && self.situation.families.iter().all(global)
    }

    /// Notes an interface that was not taken, unless it has nothing to be taken for: the host's end of a
    /// pod's wire has a link-local address.
    fn passed(&mut self, iface: &Iface, because: &str) {
        if usable(iface).any(|a| !link_local(a.net.addr())) {
            self.note(Candidate::Interface(iface.name), false, because);
        }
    }

    fn by_index(&self, index: u32) -> Option<&'a Iface> {
        self.situation.ifaces.iter().find(|i| i.index == index)
    }

    fn holder(&self, ip: IpAddr) -> Option<&'a Iface> {
        self.situation.ifaces.iter().find(|i| has(i, ip))
    }

    /// Fills in the best address of each enabled family that is not fixed yet (flannel.md 5.4), and notes
    /// what became of the others.
    fn complete(&mut self, (iface, mut fixed): Found<'a>) -> Result<Found<'a>, String> {
        for family in self.situation.families.iter() {
            let of_family = || iface.addresses.iter().filter(|a| Family::of_net(a.net) == family);
            let named = fixed.of(family);
            let held = &self.situation.held;
            let chosen = named.or_else(|| best(of_family(), held)).ok_or_else(|| lacking(iface, family))?;
            put(&mut fixed, chosen);
            let winner = of_family().find(|a| a.net.addr() == chosen);
            let because = match winner {
                _ if named.is_some() => "the selector fixes it".to_owned(),
                Some(winner) if of_family().count() > 1 => {
                    format!("{}, the best of its addresses", quality(winner))
                }
                _ => format!("its only {family} address"),
            };
            self.note(Candidate::Address(iface.name, chosen), true, because);
            for loser in of_family().filter(|a| a.net.addr() != chosen).take(NAMED).collect::<Vec<_>>() {
                let ip = loser.net.addr();
                let because = match (unusable(loser), winner) {
                    (Some(reason), _) => reason.to_owned(),
                    (None, Some(winner)) if named.is_none() && rank(winner) != rank(loser) => {
                        format!("{}, and {chosen} is {}", quality(loser), quality(winner))
                    }
                    (None, _) if named.is_some() => format!("the selector fixes {chosen}"),
                    (None, _) if held.contains(&chosen) => {
                        format!("no better than {chosen}, which is in use")
                    }
                    (None, _) => format!("no better than {chosen}, which the kernel lists before it"),
                };
                self.note(Candidate::Address(iface.name, ip), false, because);
                if unusable(loser).is_none() && !link_local(ip) {
                    self.why.otherwise.push(format!("to use {ip} instead of {chosen}: --iface={ip}"));
                }
            }
        }
        Ok((iface, fixed))
    }

    fn list(&self) -> String {
        let one = |iface: &Iface| {
            let addresses: Vec<String> = usable(iface).map(|a| a.net.addr().to_string()).collect();
            let text = if addresses.is_empty() { "no address".to_owned() } else { addresses.join(", ") };
            format!("{} ({text})", iface.name)
        };
        let (with, without): (Vec<&Iface>, Vec<&Iface>) = self
            .situation
            .ifaces
            .iter()
            .filter(|i| !tunnel(i.name))
            .partition(|i| usable(i).next().is_some());
        let all = with.len() + without.len();
        let mut names: Vec<String> = with.into_iter().chain(without).take(NAMED).map(one).collect();
        let more = all - names.len();
        if more > 0 {
            names.push(format!("{more} more"));
        }
        if names.is_empty() { "no interface".to_owned() } else { names.join(", ") }
    }
}

fn put(addresses: &mut Addresses, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => addresses.v4 = Some(ip),
        IpAddr::V6(ip) => addresses.v6 = Some(ip),
    }
}

fn has(iface: &Iface, ip: IpAddr) -> bool {
    iface.addresses.iter().any(|a| a.net.addr() == ip)
}

fn lacking(iface: &Iface, family: Family) -> String {
    let reasons = iface.addresses.iter().filter(|a| Family::of_net(a.net) == family);
    let reasons: Vec<String> =
        reasons.filter_map(|a| Some(format!("{}: {}", a.net.addr(), unusable(a)?))).collect();
    let reasons = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) };
    format!("interface {} has no {family} address{reasons}", iface.name)
}

fn not_the_tunnel(iface: &Iface) -> Result<&Iface, String> {
    match tunnel(iface.name) {
        true => Err(format!("{} is the tunnel itself", iface.name)),
        false => Ok(iface),
    }
}

/// Devices of flannel's backends and ours.
fn tunnel(name: IfName) -> bool {
    name.as_str().starts_with("flannel")
}

/// Why an interface cannot be meant by a route or an expression: behind it are this host's pods or
/// containers, not other hosts. Named outright with `--iface` it is taken all the same.
fn pods_only(name: IfName) -> Option<&'static str> {
    const BRIDGES: [&str; 9] = [
        "cni0",
        "cbr0",
        "docker0",
        "docker_gwbridge",
        "podman0",
        "kube-bridge",
        "kube-ipvs0",
        "lxcbr0",
        "nodelocaldns",
    ];
    let text = name.as_str();
    // Docker's networks: br- and twelve hexadecimal digits.
    let dockers = text
        .strip_prefix("br-")
        .is_some_and(|id| id.len() == 12 && id.bytes().all(|b| b.is_ascii_hexdigit()));
    if tunnel(name) {
        Some("it is a tunnel of flannel's kind itself")
    } else if dockers || BRIDGES.contains(&text) || text.starts_with("virbr") {
        Some("only pods or containers of this host are behind it")
    } else {
        None
    }
}

fn link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// Why an address is no candidate.
fn unusable(address: &IfaceAddress) -> Option<&'static str> {
    let ip = address.net.addr();
    if ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() {
        Some("other hosts cannot reach it")
    } else if address.duplicate {
        Some("another host has it too, the kernel does not use it")
    } else if address.deprecated {
        Some("deprecated, its preferred lifetime is over")
    } else {
        None
    }
}

fn usable(iface: &Iface) -> impl Iterator<Item = &IfaceAddress> {
    iface.addresses.iter().filter(|a| unusable(a).is_none())
}

/// Global before link-local, permanent before dynamic, lasting before temporary.
fn rank(address: &IfaceAddress) -> (bool, bool, bool) {
    (link_local(address.net.addr()), !address.permanent, address.temporary)
}

fn quality(address: &IfaceAddress) -> String {
    let words = [
        if link_local(address.net.addr()) { "link-local" } else { "global" },
        if address.permanent { "permanent" } else { "dynamic" },
        if address.temporary { "temporary" } else { "" },
    ];
    words.into_iter().filter(|w| !w.is_empty()).collect::<Vec<_>>().join(", ")
}

/// By rank, then one in use already, else the first.
fn best<'b>(candidates: impl Iterator<Item = &'b IfaceAddress>, held: &[IpAddr]) -> Option<IpAddr> {
    candidates
        .filter(|a| unusable(a).is_none())
        .min_by_key(|a| (rank(a), !held.contains(&a.net.addr())))
        .map(|a| a.net.addr())
}
