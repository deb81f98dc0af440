//! What NAT made of a packet, read from the packet as the devices saw it, and the rule that says so. Pure (decision 0202).

use std::fmt;
use std::net::IpAddr;

use super::{Model, Sight, Step, Walk, same};

/// What stands in the place of a device.
pub const HOP: &str = "NAT";

/// Addresses of a packet, and ports where there are any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Source.
    pub from: IpAddr,
    /// Destination.
    pub to: IpAddr,
    /// Source and destination port.
    pub ports: Option<(u16, u16)>,
}

impl Flow {
    pub(super) fn source(&self) -> End {
        End(self.from, self.ports.map(|(from, _)| from))
    }

    pub(super) fn destination(&self) -> End {
        End(self.to, self.ports.map(|(_, to)| to))
    }
}

/// Address, and port where there is one.
#[derive(PartialEq, Eq, Clone, Copy)]
pub(super) struct End(IpAddr, Option<u16>);

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0, self.1) {
            (address, None) => write!(f, "{address}"),
            (IpAddr::V4(address), Some(port)) => write!(f, "{address}:{port}"),
            (IpAddr::V6(address), Some(port)) => write!(f, "[{address}]:{port}"),
        }
    }
}

/// Packet rules of the host as text.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// What `iptables-save` and its kind, and `nft list ruleset` print.
    pub text: String,
    /// What could not be read.
    pub missing: Vec<String>,
}

impl Rules {
    /// The rule, or the element of a map, that leads to a destination.
    fn to(&self, end: End) -> Option<&str> {
        let End(address, port) = end;
        let port = port.map_or(String::new(), |port| port.to_string());
        let element = format!("{address} . {port}");
        let lines = || self.text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        let rule = lines().find(|line| {
            let target = line
                .split_once("--to-destination ")
                .or_else(|| line.split_once("dnat to "))
                .or_else(|| line.split_once("dnat ip to "))
                .or_else(|| line.split_once("dnat ip6 to "))
                .map(|(_, rest)| rest.split([' ', ',']).next().unwrap_or_default());
            target.is_some_and(|target| target == end.to_string() || target == address.to_string())
        });
        // `nft` prints a map's elements behind one another: the one that matters is enough.
        let in_map = || {
            lines().flat_map(|line| line.split(", ")).find(|part| {
                let value = part.rsplit_once(" : ").map(|(_, value)| value.trim_end_matches([' ', '}', ',']));
                value.is_some_and(|value| value == element)
            })
        };
        rule.or_else(in_map).map(str::trim)
    }

    /// A rule that names an address, as that of a service or of a port of the host.
    pub fn naming(&self, address: IpAddr) -> Option<&str> {
        let text = address.to_string();
        let words = |line: &str| {
            line.split([' ', ',', '{', '}']).any(|word| word.split('/').next() == Some(text.as_str()))
        };
        let lines = self.text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        lines.into_iter().find(|line| {
            (line.contains("jump") || line.contains("-j ") || line.contains(" . ")) && words(line)
        })
    }
}

/// Where the packet really goes.
pub fn destination(asked: IpAddr, walk: &Walk) -> IpAddr {
    walk.there.iter().rev().find_map(|sight| sight.flow).map_or(asked, |flow| flow.to)
}

/// Puts a hop [`HOP`] into model and walk wherever addresses or ports changed.
pub fn mark(model: &mut Model, walk: &mut Walk, asked: IpAddr, port: Option<u16>, rules: &Rules) {
    let mut before: Option<Flow> = None;
    let mut marked = Vec::new();
    // The next step of the model that no sight has matched yet.
    let mut step = 0;
    for sight in std::mem::take(&mut walk.there) {
        if let Some(flow) = sight.flow {
            // A packet of the host itself is translated before any device sees it.
            let from = before.unwrap_or(Flow {
                to: asked,
                ports: flow.ports.map(|(own, to)| (own, port.unwrap_or(to))),
                ..flow
            });
            let words = changed(from, flow, rules);
            if !words.is_empty() && sight.place == "host" {
                let hop = Step { place: "host", device: HOP.to_owned(), by: words.join("; ") };
                marked.push(Sight {
                    place: "host".to_owned(),
                    device: HOP.to_owned(),
                    at_us: sight.at_us,
                    flow: None,
                });
                model.steps.insert(step.min(model.steps.len()), hop);
                step += 1;
            }
            before = Some(flow);
        }
        if let Some(at) = model.steps.iter().skip(step).position(|next| same(next, &sight)) {
            step += at + 1;
        }
        marked.push(sight);
    }
    walk.there = marked;
}

/// What differs, in words.
fn changed(before: Flow, after: Flow, rules: &Rules) -> Vec<String> {
    let mut words = Vec::new();
    if before.destination() != after.destination() {
        let end = after.destination();
        let by = match rules.to(end) {
            Some(rule) => format!("by `{rule}`"),
            None if rules.missing.is_empty() => "by no rule that iptables or nft shows".to_owned(),
            None => format!("the rule is not known: {}", rules.missing.join("; ")),
        };
        words.push(format!("to {} becomes {end}, {by}", before.destination()));
    }
    if before.source() != after.source() {
        words.push(format!("from {} becomes {}, masqueraded", before.source(), after.source()));
    }
    words
}
