//! Devices, addresses, routes.

use std::collections::BTreeMap;

use model::Family;

use super::{Check, Facts, Finding, check};
use crate::doctor::Weight::{Broken, Risk};
use crate::doctor::finding;

pub const CHECKS: &[Check] = &[
    check("uplink-down", uplink_down),
    check("default-route", default_route),
    check("same-address-everywhere", same_address_everywhere),
    check("two-default-routes", two_default_routes),
    check("network-overlap", network_overlap),
    check("duplicate-address", duplicate_address),
    check("duplicate-mac", duplicate_mac),
    check("tunnel-down", tunnel_down),
    check("tunnel-address", tunnel_address),
    check("tunnel-source", tunnel_source),
    check("conflicting-vxlan", conflicting_vxlan),
    check("port-taken", port_taken),
    check("mtu", mtu),
    check("stale-bridge", stale_bridge),
    check("bridge-down", bridge_down),
    check("docker-bridge", docker_bridge),
    check("foreign-route", foreign_route),
    check("policy-rule", policy_rule),
    check("leftovers", leftovers),
];

fn default_route(facts: &Facts) -> Vec<Finding> {
    if facts.devices.is_empty() || Family::BOTH.into_iter().any(|family| !facts.defaults(family).is_empty()) {
        return Vec::new();
    }
    let told =
        facts.agent.as_ref().is_some_and(|agent| agent.interface.as_ref().is_some_and(|i| i.name.is_some()));
    let weight = if told { Risk } else { Broken };
    let found = finding(weight, "there is no default route", "ip route show default prints nothing")
        .so("the agent cannot tell which interface leads to other hosts")
        .fix("ip route add default via GATEWAY, or tell the agent: --iface=NAME");
    vec![found]
}

fn uplink_down(facts: &Facts) -> Vec<Finding> {
    let Some(uplink) = facts.uplink().filter(|d| !d.up || !d.carrier) else { return Vec::new() };
    let (name, state) = (&uplink.name, if uplink.up { "has no carrier" } else { "is down" });
    let found =
        finding(Broken, format!("the interface to other hosts {state}"), format!("ip link show {name}"))
            .so("nothing reaches other hosts")
            .fix(if uplink.up {
                format!("plug in the cable of {name}, or look at its switch")
            } else {
                format!("ip link set {name} up")
            });
    vec![found]
}

/// VirtualBox gives every guest this address on its first interface.
fn same_address_everywhere(facts: &Facts) -> Vec<Finding> {
    let public =
        facts.agent.as_ref().and_then(|agent| agent.lease.as_ref()).map(|lease| lease.public.join(" "));
    let local = facts.tunnels().find_map(|tunnel| tunnel.vxlan?.2).map(|ip| ip.to_string());
    let told = public.or(local).unwrap_or_default();
    if !told.split(' ').any(|ip| ip == "10.0.2.15") {
        return Vec::new();
    }
    let others =
        facts.devices.iter().filter(|d| d.kind.is_empty() && d.name != "lo" && Some(*d) != facts.uplink());
    let other = others.map(|d| d.name.as_str()).next().unwrap_or("eth1");
    let found = finding(
        Broken,
        "the node announces an address that every VirtualBox guest has",
        "others send to 10.0.2.15",
    )
    .so("packets for this node end at whoever else has the address, usually the sender itself")
    .fix(format!("start the agent with --iface={other}"));
    vec![found]
}

fn two_default_routes(facts: &Facts) -> Vec<Finding> {
    let routes = facts.defaults(Family::V4);
    let [first, second, ..] = routes.as_slice() else { return Vec::new() };
    if first.metric != second.metric || first.dev == second.dev {
        return Vec::new();
    }
    let name = |route: &crate::doctor::facts::Route| route.dev.clone().unwrap_or_default();
    let found = finding(
        Risk,
        "two default routes are equally good",
        format!("through {} and {}, metric {}", name(first), name(second), first.metric),
    )
    .so("which interface the agent chooses depends on which came up first")
    .fix(format!("give one of them another metric, or start the agent with --iface={}", name(first)));
    vec![found]
}

fn network_overlap(facts: &Facts) -> Vec<Finding> {
    let networks = facts.networks();
    // Addresses of the own subnet are on bridges and on the host's ends of pods' interfaces.
    let own = |net: &ipnet::IpNet| {
        Family::BOTH.into_iter().filter_map(|f| facts.subnet(f)).any(|s| s.contains(net))
    };
    let ours = |dev: &str| dev.starts_with("flannel") || ["cni0", "lo"].contains(&dev);
    let bad = facts.addresses.iter().filter(|a| !ours(&a.dev) && !own(&a.net.trunc()));
    let overlap = bad.filter_map(|a| {
        let net = a.net.trunc();
        let hit = networks.iter().find(|n| n.contains(&net) || net.contains(*n) && net.prefix_len() > 0)?;
        Some((a, *hit))
    });
    overlap
        .take(1)
        .map(|(address, net)| {
            finding(
                Broken,
                "the network of pods overlaps with a network of this host",
                format!("{} on {}, and pods have {net}", address.net, address.dev),
            )
            .so("hosts in both cannot be told from pods; some of either are not reached")
            .fix("choose another Network in the network configuration, before any pod runs")
        })
        .collect()
}

fn duplicate_address(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut by: BTreeMap<std::net::IpAddr, Vec<&str>> = BTreeMap::new();
    for address in &facts.addresses {
        let ip = address.net.addr();
        let local = match ip {
            std::net::IpAddr::V4(ip) => ip.is_loopback(),
            std::net::IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_loopback(),
        };
        if !local {
            by.entry(ip).or_default().push(&address.dev);
        }
        if address.duplicate {
            found.push(
                finding(
                    Broken,
                    format!("{ip} is used by another host, too"),
                    format!("dadfailed on {}", address.dev),
                )
                .so("the kernel does not use the address")
                .fix(format!("ip addr del {} dev {}, and give it another one", address.net, address.dev)),
            );
        }
    }
    for (ip, devices) in by.into_iter().filter(|(_, devices)| devices.len() > 1) {
        let last = devices.last().copied().unwrap_or_default();
        found.push(
            finding(Broken, format!("{ip} is on two devices"), devices.join(" and "))
                .so("answers leave through whichever the kernel finds first")
                .fix(format!("ip addr del {ip} dev {last}, unless that one is right")),
        );
    }
    found
}

fn duplicate_mac(facts: &Facts) -> Vec<Finding> {
    let mut by: BTreeMap<String, Vec<(&str, std::net::IpAddr)>> = BTreeMap::new();
    let tunnels = facts.neighbours.iter().filter(|(dev, ..)| dev.starts_with("flannel"));
    for (dev, ip, mac) in tunnels {
        by.entry(mac.to_string()).or_default().push((dev, *ip));
    }
    let own = facts.tunnels().filter_map(|tunnel| Some((tunnel.mac?.to_string(), tunnel.name.as_str())));
    for (mac, name) in own.collect::<Vec<_>>() {
        if let Some(others) = by.get_mut(&mac) {
            others.push((name, std::net::Ipv4Addr::UNSPECIFIED.into()));
        }
    }
    let doubled = by.into_iter().filter(|(_, users)| users.len() > 1);
    doubled
        .map(|(mac, users)| {
            let who = |(dev, ip): &(&str, std::net::IpAddr)| {
                if ip.is_unspecified() { format!("this node's {dev}") } else { ip.to_string() }
            };
            let who: Vec<String> = users.iter().map(who).collect();
            finding(Broken, "two nodes have tunnels with one hardware address", format!("{mac}: {}", who.join(" and ")))
                .so("packets for one of them go to the other; machines cloned with their machine-id do that")
                .fix("on one of them: rm /etc/machine-id; systemd-machine-id-setup; ip link del flannel.1; restart the agent")
        })
        .collect()
}

fn tunnel_down(facts: &Facts) -> Vec<Finding> {
    let down = facts.tunnels().filter(|tunnel| !tunnel.up);
    let told = |tunnel: &crate::doctor::facts::Device| {
        finding(Broken, format!("{} is down", tunnel.name), "ip link shows no UP")
            .so("no packet reaches another node; an agent that runs sets it up at once, so none does, or somebody fights it")
            .fix(format!("ip link set {} up; systemctl restart loden", tunnel.name))
    };
    down.map(told).collect()
}

fn tunnel_address(facts: &Facts) -> Vec<Finding> {
    let of = |(tunnel, family): (&crate::doctor::facts::Device, Family)| {
        let subnet = facts.subnet(family)?;
        let here: Vec<String> = facts
            .of(&tunnel.name)
            .filter(|a| Family::of_net(a.net) == family)
            .map(|a| a.net.to_string())
            .collect();
        let right = facts.of(&tunnel.name).any(|a| a.net.addr() == subnet.network());
        let seen =
            if here.is_empty() { "it has none".to_owned() } else { format!("it has {}", here.join(", ")) };
        (!right).then(|| {
            finding(Broken, format!("{} has not the address of this node's subnet", tunnel.name), seen)
                .so("packets of the host itself leave with a source that others answer elsewhere")
                .fix(format!("ip addr replace {}/{} dev {}", subnet.network(), family.bits(), tunnel.name))
        })
    };
    let expects = |tunnel: &&crate::doctor::facts::Device| {
        ["vxlan", "ipip", "wireguard"].contains(&tunnel.kind.as_str()) && tunnel.up
    };
    let with = |tunnel| (tunnel, if tunnel_is_v6(tunnel) { Family::V6 } else { Family::V4 });
    facts.tunnels().filter(expects).map(with).filter_map(of).collect()
}

fn tunnel_is_v6(tunnel: &crate::doctor::facts::Device) -> bool {
    tunnel.name.starts_with("flannel-v6") || tunnel.name == "flannel-wg-v6"
}

fn tunnel_source(facts: &Facts) -> Vec<Finding> {
    let gone = |tunnel: &crate::doctor::facts::Device| {
        let local = tunnel.vxlan?.2?;
        facts.addresses.iter().all(|a| a.net.addr() != local).then(|| {
            finding(
                Broken,
                format!("{} sends from an address this host has not", tunnel.name),
                format!("local {local}"),
            )
            .so("the kernel sends nothing from an address that is not its own")
            .fix("give the address back to its interface, or restart the agent")
        })
    };
    facts.tunnels().filter_map(gone).collect()
}

fn conflicting_vxlan(facts: &Facts) -> Vec<Finding> {
    let all = || facts.devices.iter().filter_map(|d| Some((d, d.vxlan?)));
    let mut found = Vec::new();
    for (ours, (vni, port, local)) in all().filter(|(d, _)| d.name.starts_with("flannel")) {
        for (other, (their_vni, their_port, their_local)) in
            all().filter(|(d, _)| !d.name.starts_with("flannel"))
        {
            let families = [local, their_local].map(|ip| ip.map(|ip| ip.is_ipv4()));
            if (vni, port) == (their_vni, their_port)
                && (families[0] == families[1] || families.contains(&None))
            {
                found.push(
                    finding(
                        Broken,
                        format!("{} takes the packets of {}", other.name, ours.name),
                        format!("both have VNI {vni} on port {port}"),
                    )
                    .so("one of the two gets the packets of both")
                    .fix(format!(
                        "ip link del {}, or choose another VNI or Port in the network configuration",
                        other.name
                    )),
                );
            }
        }
    }
    found
}

fn port_taken(facts: &Facts) -> Vec<Finding> {
    let ports: Vec<u16> = facts.tunnels().filter_map(|tunnel| Some(tunnel.vxlan?.1)).collect();
    // Before the first device is made, the usual one.
    let ports = if ports.is_empty() && facts.tunnels().next().is_none() { vec![8472] } else { ports };
    let taken = ports.into_iter().filter(|port| facts.udp.contains(port));
    taken
        .take(1)
        .map(|port| {
            finding(Broken, format!("a process has UDP port {port}"), format!("ss -lunp sport = {port}"))
                .so("the tunnel cannot be opened, or the process gets its packets")
                .fix(format!("stop the process, or choose another Port in the network configuration (ss -lunp | grep :{port})"))
        })
        .collect()
}

fn mtu(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    let overhead = |tunnel: &crate::doctor::facts::Device| match (tunnel.kind.as_str(), tunnel_is_v6(tunnel))
    {
        ("vxlan", false) => 50,
        ("vxlan", true) => 70,
        ("wireguard", _) => 60,
        ("ipip", _) => 20,
        _ => 0,
    };
    if let Some(uplink) = facts.uplink() {
        for tunnel in facts.tunnels().filter(|tunnel| tunnel.mtu + overhead(tunnel) > uplink.mtu) {
            let most = uplink.mtu.saturating_sub(overhead(tunnel));
            found.push(
                finding(
                    Broken,
                    format!("packets of {} are too large for {}", tunnel.name, uplink.name),
                    format!(
                        "MTU {} and {} bytes of encapsulation, {} has {}",
                        tunnel.mtu,
                        overhead(tunnel),
                        uplink.name,
                        uplink.mtu
                    ),
                )
                .so("small packets pass and large ones do not: connections hang after their first words")
                .fix(format!("ip link set {} mtu {most}; the agent does that, once it runs", tunnel.name)),
            );
        }
    }
    let told = facts.env("FLANNEL_MTU").and_then(|mtu| mtu.parse::<u32>().ok());
    let least = facts.tunnels().map(|tunnel| tunnel.mtu).min();
    if let (Some(told), Some(least)) = (told, least.filter(|least| *least < told.unwrap_or(0))) {
        found.push(
            finding(
                Broken,
                "new pods get an MTU that their tunnel has not",
                format!("FLANNEL_MTU={told} in {}, and the tunnel has {least}", facts.subnet_file),
            )
            .so("large packets of pods are dropped, or answered with ICMP that few heed")
            .fix("restart the agent, which writes the file anew"),
        );
    }
    if let (Some(bridge), Some(told)) = (facts.device("cni0").filter(|d| d.mtu > 0), told)
        && bridge.mtu > told
    {
        found.push(
            finding(
                Risk,
                "cni0 has a larger MTU than pods should have",
                format!("{}, FLANNEL_MTU={told}", bridge.mtu),
            )
            .so("pods made before keep the larger one and depend on path MTU discovery")
            .fix("make the pods anew (kubectl delete pod …), the bridge follows them"),
        );
    }
    found
}

fn stale_bridge(facts: &Facts) -> Vec<Finding> {
    let stale = |family: Family| {
        let subnet = facts.subnet(family)?;
        let mut here =
            facts.of("cni0").filter(|a| Family::of_net(a.net) == family && !is_link_local(a.net.addr()));
        let address = here.find(|a| !subnet.contains(&a.net.addr()))?;
        let found = finding(
            Broken,
            "cni0 has an address of another subnet",
            format!("{} on cni0, this node's subnet is {subnet}", address.net),
        )
        .so("new pods fail with \"cni0 already has an IP address different from\", old ones get no answers")
        .fix("ip link del cni0, then make this node's pods anew");
        Some(found)
    };
    Family::BOTH.into_iter().filter_map(stale).collect()
}

fn is_link_local(ip: std::net::IpAddr) -> bool {
    matches!(ip, std::net::IpAddr::V6(ip) if ip.is_unicast_link_local())
}

fn bridge_down(facts: &Facts) -> Vec<Finding> {
    let Some(bridge) = facts.device("cni0").filter(|bridge| !bridge.up) else { return Vec::new() };
    let ports = facts.devices.iter().filter(|d| d.master.as_ref() == Some(&bridge.name)).count();
    let weight = if ports > 0 { Broken } else { Risk };
    let found = finding(weight, "cni0 is down", format!("{ports} pods are on it"))
        .so("pods of this node reach neither each other nor anybody else")
        .fix("ip link set cni0 up");
    vec![found]
}

fn docker_bridge(facts: &Facts) -> Vec<Finding> {
    let (Some(_), Some(subnet)) = (&facts.docker_options, facts.subnet(Family::V4)) else {
        return Vec::new();
    };
    let other = facts.of("docker0").find(|a| a.net.addr().is_ipv4() && !subnet.contains(&a.net.addr()));
    let told = |address: &crate::doctor::facts::Address| {
        finding(
            Broken,
            "docker0 has an address of another subnet",
            format!("{} on docker0, this node's subnet is {subnet}", address.net),
        )
        .so("containers have addresses that no other node sends here")
        .fix("systemctl restart docker, after the agent is ready")
    };
    other.map(told).into_iter().collect()
}

/// Routes into the network of pods that are nobody's of ours.
fn foreign_route(facts: &Facts) -> Vec<Finding> {
    let networks = facts.networks();
    let known = |dev: &str| {
        let kind = facts.device(dev).map_or("", |d| d.kind.as_str());
        dev.starts_with("flannel") || ["cni0", "docker0"].contains(&dev) || kind == "veth" || kind == "bridge"
    };
    // host-gw's routes lead through the uplink; they are ours by protocol, or flannel's (boot) via a gateway.
    let ours = |r: &crate::doctor::facts::Route| {
        r.protocol == 76
            || r.dev.as_deref().is_some_and(known)
            || r.gateway.is_some() && facts.tunnels().next().is_none()
    };
    let strange = facts.routes.iter().filter(|r| {
        let inside =
            networks.iter().any(|net| net.contains(&r.dst) && r.dst.prefix_len() >= net.prefix_len());
        inside && r.kind == 1 && !ours(r)
    });
    strange
        .take(3)
        .map(|route| {
            let dev = route.dev.as_deref().unwrap_or("?");
            finding(
                Broken,
                "another program has a route into the network of pods",
                format!("{} dev {dev}", route.dst),
            )
            .so("packets for those pods go there: a VPN, an old configuration, another network plugin")
            .fix(format!(
                "ip route del {} dev {dev}, and tell that program to leave the network alone",
                route.dst
            ))
        })
        .collect()
}

fn policy_rule(facts: &Facts) -> Vec<Finding> {
    let networks: Vec<String> = facts.networks().iter().map(ToString::to_string).collect();
    let diverts = |rule: &&String| {
        let own = rule.contains("lookup 1024") || rule.contains("lookup 512");
        let about_us = networks.iter().any(|net| rule.contains(&format!("to {net}")));
        let everything = rule.contains("from all lookup") || rule.contains("from 0.0.0.0/0 lookup");
        !own && (about_us || everything)
    };
    let strange = facts.rules.iter().filter(diverts);
    strange
        .take(1)
        .map(|rule| {
            finding(Risk, "a policy rule takes packets to pods past the main table", rule.clone())
                .so("routes to other nodes are in the main table; what the rule's table says goes before them")
                .fix(format!("ip rule del {}", rule.split_once(": ").map_or(rule.as_str(), |(_, rest)| rest)))
        })
        .collect()
}

/// What other network plugins leave: the beginning of a device's name, whose it is, how to end it.
const OTHERS: [(&str, &str); 8] = [
    ("cali", "Calico"),
    ("vxlan.calico", "Calico"),
    ("cilium", "Cilium"),
    ("lxc_health", "Cilium"),
    ("weave", "Weave Net"),
    ("kube-bridge", "kube-router"),
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
    let canal = facts.cni_confs.iter().any(|(_, text)| text.contains("\"calico\""));
    by.into_iter()
        .filter(|(who, _)| !(*who == "Calico" && canal))
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
