//! The kernel's tables as text, one object a line, much as `ip` and `bridge` write them. Pure.

use std::collections::BTreeMap;

use kernel::link::LinkInfo;
use kernel::rtnl::tc::QdiscInfo;
use kernel::rtnl::{AddrInfo, FdbInfo, NeighInfo, NexthopInfo, RouteInfo, RuleInfo};

use crate::doctor::collect::shown;

/// Names of devices by index.
pub struct Names(BTreeMap<u32, String>);

impl Names {
    /// Of these devices.
    pub fn of(links: &[LinkInfo]) -> Names {
        Names(links.iter().map(|link| (link.index, link.link.name.to_string())).collect())
    }

    fn name(&self, index: u32) -> String {
        self.0.get(&index).cloned().unwrap_or_else(|| format!("#{index}"))
    }
}

/// A line for each.
pub fn lines<T>(all: &[T], line: impl Fn(&T) -> String) -> String {
    all.iter().flat_map(|item| [line(item), "\n".to_owned()]).collect()
}

/// A device: what it is as a command, and what no command sets.
pub fn link(link: &LinkInfo, names: &Names) -> String {
    let state = match link.operstate {
        0 => "unknown",
        1 => "not-present",
        2 => "down",
        3 => "lower-layer-down",
        4 => "testing",
        5 => "dormant",
        _ => "up",
    };
    let mut text = format!("{}: state {state} flags {:#x}", link.index, link.flags);
    if let Some(lower) = link.lower {
        text += &match link.lower_netns {
            Some(netns) => format!(" on #{lower} of namespace {netns}"),
            None => format!(" on {}", names.name(lower)),
        };
    }
    if let Some(alias) = &link.alias {
        text += &format!(" alias {alias:?}");
    }
    if link.group != 0 {
        text += &format!(" group {}", link.group);
    }
    if link.promiscuity != 0 {
        text += &format!(" promiscuity {}", link.promiscuity);
    }
    // A physical device has no kind.
    let command = link.link.to_string();
    format!("{text}: {}", command.strip_suffix(" type ").unwrap_or(&command))
}

/// An address.
pub fn address(address: &AddrInfo, names: &Names) -> String {
    let peer = address.peer.map_or(String::new(), |peer| format!(" peer {peer}"));
    let scope = match address.scope {
        0 => "global",
        200 => "site",
        253 => "link",
        254 => "host",
        _ => "other",
    };
    format!(
        "{}{peer} dev {} scope {scope} flags {:#x}",
        address.net,
        names.name(address.index),
        address.flags
    )
}

/// A route.
pub fn route(route: &RouteInfo, names: &Names) -> String {
    let kind = match route.kind {
        2 => "local ",
        3 => "broadcast ",
        4 => "anycast ",
        5 => "multicast ",
        7 => "unreachable ",
        8 => "prohibit ",
        9 => "throw ",
        // Unicast, or said by the route itself.
        _ => "",
    };
    let dev = route.dev.map_or(String::new(), |dev| format!(" dev {}", names.name(dev)));
    let mtu = route.mtu.map_or(String::new(), |mtu| format!(" mtu {mtu}"));
    let many = if route.multipath { " (several next hops)" } else { "" };
    let flags = if route.flags == 0 { String::new() } else { format!(" flags {:#x}", route.flags) };
    format!("{kind}{}{dev}{mtu}{many}{flags}", RouteInfo { dev: None, ..route.clone() })
}

/// A policy rule.
pub fn rule(rule: &RuleInfo) -> String {
    let more = if rule.foreign { " (and conditions not shown)" } else { "" };
    format!("{:?} {} proto {}{more}", rule.rule.family, shown(&rule.rule), rule.protocol)
}

/// A neighbour.
pub fn neighbour(neighbour: &NeighInfo, names: &Names) -> String {
    let mac = neighbour.mac.map_or(String::new(), |mac| format!(" lladdr {mac}"));
    let dev = names.name(neighbour.index);
    format!("{} dev {dev}{mac} {}", neighbour.dst, state(neighbour.state))
}

/// `NUD_…` (linux/neighbour.h)
fn state(state: u16) -> String {
    let word = match state {
        0x01 => "incomplete",
        0x02 => "reachable",
        0x04 => "stale",
        0x08 => "delay",
        0x10 => "probe",
        0x20 => "failed",
        0x40 => "noarp",
        0x80 => "permanent",
        other => return format!("state {other:#x}"),
    };
    word.to_owned()
}

/// A forwarding entry.
pub fn fdb(entry: &FdbInfo, names: &Names) -> String {
    let dst = entry.dst.map_or(String::new(), |dst| format!(" dst {dst}"));
    let vlan = entry.vlan.map_or(String::new(), |vlan| format!(" vlan {vlan}"));
    // NTF_SELF, NTF_MASTER
    let of = match entry.flags & 6 {
        2 => " self",
        4 => " master",
        _ => "",
    };
    format!("{} dev {}{dst}{vlan}{of} {}", entry.mac, names.name(entry.index), state(entry.state))
}

/// A nexthop object.
pub fn nexthop(nexthop: &NexthopInfo, names: &Names) -> String {
    let via = nexthop.gateway.map_or(String::new(), |gateway| format!(" via {gateway}"));
    let dev = nexthop.index.map_or(String::new(), |dev| format!(" dev {}", names.name(dev)));
    let onlink = if nexthop.onlink { " onlink" } else { "" };
    let group = if nexthop.group { " group" } else { "" };
    format!("id {}{group}{via}{dev}{onlink} proto {}", nexthop.id, nexthop.protocol)
}

/// A queueing discipline.
pub fn qdisc(qdisc: &QdiscInfo, names: &Names) -> String {
    let bucket = qdisc.bucket.as_ref().map_or(String::new(), |bucket| format!(" {bucket:?}"));
    format!("{} dev {} parent {:#x}{bucket}", qdisc.kind, names.name(qdisc.dev), qdisc.parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_ip() {
        let names = Names([(2, "eth0".to_owned()), (3, "flannel.1".to_owned())].into());
        let net = |text: &str| text.parse::<model::IpNet>().unwrap();
        let mut to = RouteInfo::to(net("10.1.0.0/24"));
        (to.dev, to.gateway, to.onlink, to.protocol) = (Some(3), "10.1.0.0".parse().ok(), true, 76);
        let local = RouteInfo { kind: 2, table: 255, dev: Some(2), ..RouteInfo::to(net("192.0.2.1/32")) };
        for (got, want) in [
            (route(&to, &names), "10.1.0.0/24 via 10.1.0.0 onlink proto 76 dev flannel.1"),
            (route(&local, &names), "local 192.0.2.1/32 table 255 proto 3 dev eth0"),
            (
                address(&AddrInfo::new(2, net("192.0.2.1/24")), &names),
                "192.0.2.1/24 dev eth0 scope global flags 0x0",
            ),
            (
                neighbour(
                    &NeighInfo::permanent(
                        3,
                        "10.1.0.0".parse().unwrap(),
                        "02:00:00:00:00:01".parse().unwrap(),
                    ),
                    &names,
                ),
                "10.1.0.0 dev flannel.1 lladdr 02:00:00:00:00:01 permanent",
            ),
            (
                fdb(
                    &FdbInfo::vxlan(9, "02:00:00:00:00:01".parse().unwrap(), "192.0.2.2".parse().unwrap()),
                    &names,
                ),
                "02:00:00:00:00:01 dev #9 dst 192.0.2.2 self permanent",
            ),
        ] {
            assert_eq!(got, want);
        }
        assert_eq!(lines(&[1, 2], u8::to_string), "1\n2\n");
    }
}
