//! What other programs have put in the way of pods: routes, policy rules, what network plugins have left.

use std::collections::BTreeMap;

use model::Family;

use super::{Check, Facts, Finding, check};
use crate::doctor::Weight::{Broken, Risk};
use crate::doctor::facts::{REFUSING, Route, UNICAST, best};
use crate::doctor::finding;

pub const CHECKS: &[Check] = &[
    check("foreign-route", foreign_route),
    check("policy-rule", policy_rule),
    check("leftovers", leftovers),
];

/// Routes into the network of pods that are nobody's of ours.
fn foreign_route(facts: &Facts) -> Vec<Finding> {
    let networks = facts.networks();
    let subnet = |family| facts.subnet(family);
    let uplink = facts.uplink().map(|device| device.name.as_str());
    let tunnel = |dev: &str| facts.tunnels().any(|tunnel| tunnel.name == dev);
    let known = |dev: &str| {
        let kind = facts.device(dev).map_or("", |d| d.kind.as_str());
        let bridge = ["cni0", "docker0"].contains(&dev) || kind == "veth" || kind == "bridge";
        dev.starts_with("flannel") || bridge && Some(dev) != uplink
    };
    // Of two routes to one subnet the kernel takes that with the least metric, of these the first.
    let before_a_tunnel = |route: &Route| {
        let same = |other: &&Route| other.dst == route.dst;
        let taken = facts.routes.iter().filter(same).min_by_key(|other| other.metric);
        let tunnelled =
            facts.routes.iter().filter(same).any(|other| other.dev.as_deref().is_some_and(tunnel));
        tunnelled && taken == Some(route)
    };
    // host-gw's routes, and direct ones of vxlan, lead through the uplink; they are ours by protocol, or flannel's
    // (boot) via a gateway.
    let ours = |r: &Route| {
        let direct = r.gateway.is_some() && r.dev.as_deref() == uplink;
        r.protocol == 76
            || r.dev.as_deref().is_some_and(known)
            || direct && !before_a_tunnel(r)
            || r.gateway.is_some() && facts.tunnels().next().is_none()
    };
    let strange = |r: &&Route| {
        let family = Family::of_net(r.dst);
        let inside =
            networks.iter().any(|net| net.contains(&r.dst) && r.dst.prefix_len() >= net.prefix_len());
        let own = subnet(family).is_some_and(|own| own.contains(&r.dst));
        if REFUSING.contains(&r.kind) {
            // The agent keeps a black hole for the own subnet on request; one for all is behind every other route.
            let peer = || facts.peers(family).any(|peer| peer.dst.contains(&r.dst));
            return r.protocol != 76 && Some(r.dst) != subnet(family) && (own || peer());
        }
        // Addresses of IPv6 have a route each, of the kernel.
        let back = own && r.protocol != 2 && r.dev.as_deref().is_some_and(tunnel);
        inside && r.kind == UNICAST && (back || !ours(r))
    };
    facts
        .routes
        .iter()
        .filter(strange)
        .take(3)
        .map(|route| {
            let way = match (route.kind, &route.dev, route.gateway) {
                (6, ..) => "blackhole".to_owned(),
                (7, ..) => "unreachable".to_owned(),
                (8, ..) => "prohibit".to_owned(),
                (_, dev, Some(gateway)) => format!("via {gateway} dev {}", dev.as_deref().unwrap_or("?")),
                (_, dev, None) => format!("dev {}", dev.as_deref().unwrap_or("?")),
            };
            let arrive =
                "packets for those pods go there: a VPN, an old configuration, another network plugin";
            let (what, words, so) = if REFUSING.contains(&route.kind) {
                let so = "packets for those pods are dropped on this host";
                ("a route refuses what goes to pods", format!("{way} {}", route.dst), so)
            } else if route.dev.as_deref().is_some_and(tunnel) {
                let what = "a route sends packets for this node's own pods into the tunnel";
                (what, format!("{} {way}", route.dst), "they do not arrive at the pods of this node")
            } else {
                let what = "another program has a route into the network of pods";
                (what, format!("{} {way}", route.dst), arrive)
            };
            let fix =
                format!("ip route del {words}, and tell the program that made it to leave the network alone");
            finding(Broken, what, words).so(so).fix(fix)
        })
        .collect()
}

/// A rule as collected: its family and words.
fn rule_words(rule: &str) -> (Family, Vec<&str>) {
    let bare = rule.strip_prefix("-6 ");
    (if bare.is_some() { Family::V6 } else { Family::V4 }, bare.unwrap_or(rule).split_whitespace().collect())
}

/// Rules that decide about packets between pods before the main table does: those whose table has a route for them,
/// and those that refuse.
fn policy_rule(facts: &Facts) -> Vec<Finding> {
    let pod = |net: ipnet::IpNet| net.hosts().nth(1).unwrap_or(net.network());
    let mut packets = Vec::new();
    for family in Family::BOTH {
        let Some(own) = facts.subnet(family).map(pod) else { continue };
        for peer in facts.peers(family).take(1) {
            let dev = peer.dev.clone().unwrap_or_default();
            packets
                .extend([(family, own, pod(peer.dst), "cni0".to_owned()), (family, pod(peer.dst), own, dev)]);
        }
    }
    let diverts = |rule: &&String| {
        let (family, words) = rule_words(rule);
        let after =
            |key: &str| words.iter().position(|word| *word == key).and_then(|at| words.get(at + 1)).copied();
        let number = words.first().and_then(|first| first.trim_end_matches(':').parse::<u32>().ok());
        let table = after("lookup").and_then(|table| table.parse::<u32>().ok());
        // What is after the main table is asked for what that has no route for; and packets of pods have no mark.
        if number.is_some_and(|n| n > 32_766)
            || words.contains(&"fwmark")
            || [Some(1024), Some(512), Some(254)].contains(&table)
        {
            return false;
        }
        let selects = |key: &str, ip: std::net::IpAddr| match after(key) {
            None | Some("all") => true,
            Some(net) => net.parse::<ipnet::IpNet>().is_ok_and(|net| net.contains(&ip)),
        };
        let decides = |(_, src, dst, iif): &(Family, std::net::IpAddr, std::net::IpAddr, String)| {
            let hit =
                selects("from", *src) && selects("to", *dst) && after("iif").is_none_or(|dev| dev == iif);
            let routes = || table.and_then(|table| facts.tables.get(&table)).map_or(&[][..], Vec::as_slice);
            // `throw` (9) goes on with the next rule.
            let found = || best(routes(), *dst).filter(|route| route.kind != 9);
            let same = |route: &Route| {
                best(&facts.routes, *dst).is_some_and(|main| main.dev == route.dev && main.kind == route.kind)
            };
            hit && (table.is_none() || found().is_some_and(|route| !same(route)))
        };
        packets.iter().filter(|packet| packet.0 == family).any(decides)
    };
    let told = |rule: &String| {
        let (family, words) = rule_words(rule);
        let refuses = !words.contains(&"lookup");
        let (what, so) = if refuses {
            ("a policy rule refuses packets of pods", "they are dropped before any route is looked for")
        } else {
            (
                "a policy rule takes packets to pods past the main table",
                "routes to other nodes are in the main table; what the rule's table says goes before them",
            )
        };
        let ip = if family == Family::V6 { "ip -6" } else { "ip" };
        let number = words.first().map_or("", |first| first.trim_end_matches(':'));
        let mut fix = format!("{ip} rule del priority {number}");
        let net = facts.networks().into_iter().find(|net| Family::of_net(*net) == family);
        if let Some(net) = net.filter(|_| !refuses) {
            let table = words.last().copied().unwrap_or_default();
            fix += &format!(", or have its table leave pods alone: {ip} route add throw {net} table {table}");
        }
        finding(if refuses { Broken } else { Risk }, what, rule.clone()).so(so).fix(fix)
    };
    facts.rules.iter().filter(diverts).take(3).map(told).collect()
}

/// What other network plugins leave: the beginning of a device's name, whose it is, how to end it.
const OTHERS: [(&str, &str); 9] = [
    ("cali", "Calico"),
    ("vxlan.calico", "Calico"),
    ("cilium", "Cilium"),
    ("lxc_health", "Cilium"),
    ("weave", "Weave Net"),
    ("kube-bridge", "kube-router"),
    ("kube-dummy-if", "kube-router"),
    ("antrea-gw", "Antrea"),
    ("ovn-k8s", "OVN-Kubernetes"),
];
/// The same of chains.
const CHAINS: [(&str, &str); 5] = [
    ("cali-", "Calico"),
    ("CILIUM_", "Cilium"),
    ("WEAVE", "Weave Net"),
    ("KUBE-ROUTER", "kube-router"),
    ("KUBE-POD-FW", "kube-router"),
];

/// Calico's plugin with addresses of the node's subnet; alone Calico has addresses of its own.
pub fn is_canal(text: &str) -> bool {
    text.contains("\"calico\"") && !text.contains("\"calico-ipam\"")
}

fn leftovers(facts: &Facts) -> Vec<Finding> {
    let mut by: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for device in &facts.devices {
        if let Some((_, who)) = OTHERS.iter().find(|(begin, _)| device.name.starts_with(begin)) {
            by.entry(who).or_default().push(format!("device {}", device.name));
        }
    }
    for (begin, who) in CHAINS {
        if let Some(chain) = facts.ruleset.named(begin) {
            by.entry(who).or_default().push(format!("chain {} in {}", chain.name, chain.table));
        }
    }
    // Canal: Calico's policies over flannel's network, with Calico's configuration for pods.
    let canal = facts.cni_confs.iter().any(|(_, text)| is_canal(text));
    // k3s, k0s and others bring kube-router's policies alone, which are chains without its devices.
    let routed = facts
        .devices
        .iter()
        .any(|device| device.name.starts_with("kube-bridge") || device.name == "kube-dummy-if");
    by.into_iter()
        .filter(|(who, _)| !(*who == "Calico" && canal || *who == "kube-router" && !routed))
        .map(|(who, things)| {
            let device = things[0].strip_prefix("device ");
            let shown = things.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
            let fix = match device {
                Some(device) => format!("ip link del {device} (and what else is {who}'s), or reboot"),
                None => format!("remove {who}'s rules (its own uninstaller), or reboot"),
            };
            finding(Risk, format!("{who} has left something behind"), shown)
                .so("its rules and routes go on catching packets of pods")
                .fix(fix)
        })
        .collect()
}
