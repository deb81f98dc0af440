//! Packet filters, and other programs that configure the network.

use model::Family;

use super::network::tunnel_is_v6;
use super::{Check, Facts, Finding, check};
use crate::doctor::Weight::{Broken, Risk};
use crate::doctor::finding;
use crate::doctor::ruleset::Chain;
use crate::doctor::verdict::{Lost, Packet};

pub const CHECKS: &[Check] = &[
    check("firewalld", firewalld),
    check("ufw", ufw),
    check("forward-policy", forward_policy),
    check("forward-refused", forward_refused),
    check("tunnel-port-closed", tunnel_port_closed),
    check("two-iptables", two_iptables),
    check("network-manager", network_manager),
    check("networkd", networkd),
];

/// Hooks that packets between pods of two hosts pass, in order.
const PASSING: [&str; 3] = ["prerouting", "forward", "postrouting"];

/// Packets between a pod of this host and one of another, both ways; of one host's pods, where rules of bridges lose them.
fn of_pods(facts: &Facts) -> Vec<Packet> {
    let bridge = if facts.docker() && facts.device("cni0").is_none() { "docker0" } else { "cni0" };
    let mut packets = Vec::new();
    let known: Vec<Family> = Family::BOTH.into_iter().filter(|f| facts.subnet(*f).is_some()).collect();
    // Before the first start most are of IPv4, and none has an address yet.
    for family in if known.is_empty() { vec![Family::V4] } else { known } {
        let host = |net: ipnet::IpNet| net.hosts().nth(1).unwrap_or(net.network());
        let peer = facts.peers(family).next();
        let tunnel =
            facts.tunnels().find(|t| tunnel_is_v6(t) == (family == Family::V6)).map(|t| t.name.clone());
        let way = peer.and_then(|route| route.dev.clone()).or(tunnel);
        let out = Packet {
            family,
            iif: Some(bridge.to_owned()),
            oif: way,
            src: facts.subnet(family).map(host),
            dst: peer.map(|route| host(route.dst)),
            protocol: "tcp",
            // One that no list of services names.
            port: 40_404,
        };
        let back =
            Packet { iif: out.oif.clone(), oif: out.iif.clone(), src: out.dst, dst: out.src, ..out.clone() };
        packets.extend([out, back]);
    }
    packets
}

/// Where packets of pods are lost, once for each chain.
fn lost_of_pods(facts: &Facts) -> Vec<Lost<'_>> {
    let mut all: Vec<Lost> = Vec::new();
    for packet in of_pods(facts) {
        let within = Packet { iif: None, oif: None, dst: packet.src, ..packet.clone() };
        for hook in PASSING {
            // Before the way is known no rule asks for it.
            let seen =
                if hook == "prerouting" { Packet { oif: None, ..packet.clone() } } else { packet.clone() };
            let routed = facts.ruleset.losses(hook, &seen).filter(|lost| !bridged(lost));
            all.extend(routed);
        }
        // Packets between hosts are routed, those of one host's pods are not.
        all.extend(facts.ruleset.losses("forward", &within).filter(bridged));
    }
    let mut once: Vec<Lost> = Vec::new();
    for lost in all {
        if !once.iter().any(|other| std::ptr::eq(other.chain, lost.chain)) {
            once.push(lost);
        }
    }
    once
}

fn bridged(lost: &Lost) -> bool {
    lost.chain.table.starts_with("bridge ")
}

fn of_firewalld(lost: &Lost) -> bool {
    lost.chain.table.ends_with(" firewalld")
}

fn network(facts: &Facts) -> String {
    facts.networks().first().map_or("NETWORK".to_owned(), ToString::to_string)
}

fn seen(lost: &Lost) -> String {
    let Lost { chain, rule } = lost;
    match rule {
        Some(rule) => format!("{rule} in {} of {}", chain.name, chain.table),
        None => format!("policy drop of {} in {}, and no rule for these packets", chain.name, chain.table),
    }
}

fn firewalld(facts: &Facts) -> Vec<Finding> {
    let lost = lost_of_pods(facts).into_iter().find(of_firewalld);
    let told = |lost: Lost| {
        finding(Broken, "firewalld refuses what pods send to other hosts, or get from them", seen(&lost))
            .so("packets of pods to other hosts are answered with \"admin prohibited\"")
            .fix(format!(
                "firewall-cmd --permanent --zone=trusted --add-source={}; firewall-cmd --permanent --add-port=8472/udp; \
                 firewall-cmd --reload",
                network(facts)
            ))
    };
    lost.map(told).into_iter().collect()
}

fn ufw(facts: &Facts) -> Vec<Finding> {
    let Some(text) = &facts.ufw else { return Vec::new() };
    let value = |key: &str| {
        let line = text.lines().map(str::trim).find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.map(|value| value.trim().trim_matches('"').to_lowercase())
    };
    if value("ENABLED").as_deref() != Some("yes")
        || value("DEFAULT_FORWARD_POLICY").is_none_or(|p| p == "accept")
    {
        return Vec::new();
    }
    let own = facts.ruleset.at("forward").any(|chain| ufw_owns(facts, chain));
    if own && !lost_of_pods(facts).iter().any(|lost| ufw_owns(facts, lost.chain)) {
        return Vec::new();
    }
    let found = finding(
        Broken,
        "ufw drops what the host passes on",
        "DEFAULT_FORWARD_POLICY is not ACCEPT in /etc/default/ufw",
    )
    .so("packets of pods to other hosts are dropped")
    .fix("ufw default allow routed; ufw allow 8472/udp; ufw reload");
    vec![found]
}

fn ufw_owns(facts: &Facts, chain: &Chain) -> bool {
    facts.ufw.is_some()
        && (chain.name.starts_with("ufw-") || chain.rules.iter().any(|rule| rule.contains("ufw-")))
}

fn forward_policy(facts: &Facts) -> Vec<Finding> {
    let docker = facts.ruleset.named("DOCKER").is_some();
    let shut = lost_of_pods(facts).into_iter().filter(|lost| lost.rule.is_none() && !of_firewalld(lost));
    shut.filter(|lost| !ufw_owns(facts, lost.chain))
        .map(|lost| {
            let chain = lost.chain;
            let who = if docker { "Docker" } else { "a firewall" };
            let iptables = chain.table.contains("filter") && chain.name == "FORWARD";
            let (what, so, fix) = if bridged(&lost) {
                (
                    "a firewall drops what bridges pass on".to_owned(),
                    "pods of this host do not reach each other",
                    format!(
                        "nft insert rule {} {} meta ibrname cni0 accept, in its own configuration",
                        chain.table, chain.name
                    ),
                )
            } else {
                let fix = if iptables {
                    "run the agent with --iptables-forward-rules=true, or: iptables -P FORWARD ACCEPT"
                        .to_owned()
                } else {
                    format!(
                        "nft insert rule {} {} ip daddr {} accept (and saddr), in its own configuration",
                        chain.table,
                        chain.name,
                        network(facts)
                    )
                };
                (
                    format!("{who} drops what the host passes on"),
                    "packets of pods to other hosts, or from them, are dropped",
                    fix,
                )
            };
            finding(Broken, what, seen(&lost)).so(so).fix(fix)
        })
        .collect()
}

fn forward_refused(facts: &Facts) -> Vec<Finding> {
    let refused = lost_of_pods(facts).into_iter().filter(|lost| lost.rule.is_some() && !of_firewalld(lost));
    refused
        .filter(|lost| !ufw_owns(facts, lost.chain))
        .map(|lost| {
            finding(Broken, "a rule refuses what the host passes on", seen(&lost))
                .so("packets of pods to other hosts, or from them, are answered with \"prohibited\", or dropped")
                .fix("remove it, or put an accept for the network of pods before it, in the service that makes it (iptables-services: /etc/sysconfig/iptables)")
        })
        .collect()
}

/// The tunnel's own packets, in and out.
fn tunnel_port_closed(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    for (tunnel, (_, port, local)) in facts.tunnels().filter_map(|tunnel| Some((tunnel, tunnel.vxlan?))) {
        let family = if local.is_some_and(|ip| ip.is_ipv6()) { Family::V6 } else { Family::V4 };
        let peer = facts.forwarding.iter().find(|(dev, ..)| *dev == tunnel.name).map(|(_, ip, _)| *ip);
        let uplink = tunnel.lower.clone().or_else(|| facts.uplink().map(|device| device.name.clone()));
        let arriving =
            Packet { family, iif: uplink.clone(), oif: None, src: peer, dst: local, protocol: "udp", port };
        let leaving = Packet { iif: None, oif: uplink, src: local, dst: peer, ..arriving.clone() };
        let ways = [
            ("prerouting", &arriving, "keeps packets for", "out"),
            ("input", &arriving, "keeps packets for", "out"),
            ("output", &leaving, "keeps packets of", "in"),
            ("postrouting", &leaving, "keeps packets of", "in"),
        ];
        for (hook, packet, keeps, side) in ways {
            let Some(lost) = facts.ruleset.losses(hook, packet).find(|lost| !bridged(lost)) else { continue };
            let chain = lost.chain;
            let fix = if of_firewalld(&lost) {
                format!("firewall-cmd --permanent --add-port={port}/udp; firewall-cmd --reload")
            } else if ufw_owns(facts, chain) {
                format!("ufw allow {port}/udp; ufw allow out {port}/udp; ufw reload")
            } else if ["INPUT", "OUTPUT"].contains(&chain.name.as_str()) {
                format!(
                    "iptables -I {} -p udp --dport {port} -j ACCEPT, and in what makes the rules",
                    chain.name
                )
            } else {
                format!(
                    "nft insert rule {} {} udp dport {port} accept, and in /etc/nftables.conf",
                    chain.table, chain.name
                )
            };
            found.push(
                finding(
                    Broken,
                    format!("a firewall {keeps} {} {side}", tunnel.name),
                    format!("UDP port {port}: {}", seen(&lost)),
                )
                .so("the tunnel between this node and others works in one direction at most")
                .fix(fix),
            );
            break;
        }
    }
    found
}

fn two_iptables(facts: &Facts) -> Vec<Finding> {
    let rules = |of: &dyn Fn(&Chain) -> bool| {
        facts.ruleset.chains.iter().filter(|chain| of(chain)).map(|chain| chain.rules.len()).sum::<usize>()
    };
    let legacy = rules(&|chain| chain.table.starts_with("iptables-legacy"));
    let nft = rules(&|chain| chain.table == "ip filter" || chain.table == "ip nat");
    if legacy == 0 || nft == 0 {
        return Vec::new();
    }
    let found = finding(Risk, "both kinds of iptables hold rules", format!("{legacy} of iptables-legacy, {nft} of iptables-nft"))
        .so("each packet passes both, and each program shows only its own")
        .fix("iptables-legacy -F; iptables-legacy -t nat -F, or update-alternatives --set iptables to the one in use");
    vec![found]
}

/// Whether a pattern list of NetworkManager or networkd names our devices.
fn leaves_alone(text: &str) -> bool {
    ["flannel", "cni0"].iter().any(|word| text.contains(word))
}

fn network_manager(facts: &Facts) -> Vec<Finding> {
    let Some(text) = &facts.network_manager else { return Vec::new() };
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let set: Vec<(&str, &str)> = lines
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.trim(), value.trim()))
        .collect();
    let unmanaged = set.contains(&("managed", "0"));
    let named = set
        .iter()
        .filter(|(key, _)| key.starts_with("unmanaged-devices") || *key == "match-device" && unmanaged);
    let mut specs = named.flat_map(|(_, value)| value.split([';', ','])).map(str::trim);
    // A bridge without a connection of its own is left alone anyway; the tunnel is not.
    let ours = |spec: &str| match spec.split_once(':') {
        Some(("interface-name", pattern)) => glob(pattern.trim_start_matches('='), "flannel.1"),
        Some(("type", kind)) => kind == "vxlan",
        _ => spec == "*",
    };
    if specs.any(ours) {
        return Vec::new();
    }
    let found = finding(Risk, "NetworkManager may configure our devices", "no unmanaged-devices names flannel*")
        .so("it takes down or re-addresses flannel.1, cni0 and veths when its connections change")
        .fix(
            "printf '[keyfile]\\nunmanaged-devices=interface-name:flannel*;interface-name:cni0;interface-name:veth*\\n' \
             > /etc/NetworkManager/conf.d/loden.conf; systemctl reload NetworkManager",
        );
    vec![found]
}

/// `KEY=no` in one of systemd's spellings.
fn is_no(line: &str, key: &str) -> bool {
    let Some((name, value)) = line.split_once('=') else { return false };
    name.trim() == key
        && ["no", "false", "off", "0", "n", "f"].contains(&value.trim().to_lowercase().as_str())
}

/// Whether the section `[Match]` of a network file takes `flannel.1` or `cni0` (systemd.network(5)).
fn takes_ours(lines: &[String]) -> bool {
    let matching = lines.iter().skip_while(|line| *line != "[Match]").skip(1);
    let conditions: Vec<(&str, &str)> = matching
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.trim(), value.trim()))
        .collect();
    let takes = |(key, value): &(&str, &str)| {
        let (wanted, patterns) = value.strip_prefix('!').map_or((true, *value), |rest| (false, rest));
        let names: &[&str] = match *key {
            "Name" => &["flannel.1", "cni0"],
            "Kind" | "Type" => &["vxlan", "bridge"],
            // What else there is, is not ours: hardware, drivers, wireless networks.
            _ => return patterns == "*",
        };
        names.iter().any(|name| patterns.split_whitespace().any(|pattern| glob(pattern, name)) == wanted)
    };
    !conditions.is_empty() && conditions.iter().all(takes)
}

/// Shell patterns with `*` and `?`.
fn glob(pattern: &str, text: &str) -> bool {
    let mut rest = text.chars();
    match (pattern.chars().next(), rest.next()) {
        (None, None) => true,
        (Some('*'), first) => glob(&pattern[1..], text) || first.is_some() && glob(pattern, rest.as_str()),
        (Some(p), Some(t)) if p == '?' || p == t => glob(&pattern[p.len_utf8()..], rest.as_str()),
        _ => false,
    }
}

fn networkd(facts: &Facts) -> Vec<Finding> {
    let Some(files) = &facts.networkd else { return Vec::new() };
    let mut found = Vec::new();
    let bare = |text: &str| -> Vec<String> {
        text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])).map(str::to_owned).collect()
    };
    let keeps = |key: &str| files.iter().any(|(_, text)| bare(text).iter().any(|line| is_no(line, key)));
    let unmanaged = files.iter().any(|(_, text)| {
        let lines = bare(text);
        lines.iter().any(|l| l.eq_ignore_ascii_case("Unmanaged=yes")) && leaves_alone(text)
    });
    let greedy = files.iter().filter(|(name, text)| {
        let lines = bare(text);
        name.ends_with(".network")
            && takes_ours(&lines)
            && !lines.iter().any(|l| l.starts_with("Unmanaged=yes"))
    });
    for (name, _) in greedy.filter(|_| !unmanaged) {
        found.push(
            finding(Broken, "systemd-networkd configures our devices", format!("{name} matches every device"))
                .so("it gives flannel.1 and cni0 addresses and takes theirs away")
                .fix("printf '[Match]\\nName=flannel* cni0 veth*\\n[Link]\\nUnmanaged=yes\\n' > /etc/systemd/network/00-loden.network; networkctl reload"),
        );
    }
    if !keeps("ManageForeignRoutes") && !unmanaged {
        found.push(
            finding(Risk, "systemd-networkd may remove our routes", "ManageForeignRoutes is not set to no")
                .so("when it restarts it removes routes and rules that it has not made")
                .fix("printf '[Network]\\nManageForeignRoutes=no\\nManageForeignRoutingPolicyRules=no\\n' > /etc/systemd/networkd.conf.d/loden.conf; systemctl restart systemd-networkd"),
        );
    }
    found
}
