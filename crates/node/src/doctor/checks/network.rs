//! Devices, addresses, routes.

use std::collections::BTreeMap;

use model::Family;

use super::{Check, Facts, Finding, check};
use crate::doctor::Weight::{Broken, Risk};
use crate::doctor::facts::{Address, Device, Route};
use crate::doctor::finding;

pub const CHECKS: &[Check] = &[
    check("uplink-down", uplink_down),
    check("tunnel-source", tunnel_source),
    check("default-route", default_route),
    check("same-address-everywhere", same_address_everywhere),
    check("two-default-routes", two_default_routes),
    check("network-overlap", network_overlap),
    check("duplicate-address", duplicate_address),
    check("duplicate-mac", duplicate_mac),
    check("tunnel-down", tunnel_down),
    check("tunnel-address", tunnel_address),
    check("conflicting-vxlan", conflicting_vxlan),
    check("port-taken", port_taken),
    check("mtu", mtu),
    check("stale-bridge", stale_bridge),
    check("bridge-down", bridge_down),
    check("docker-bridge", docker_bridge),
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
    // A bridge that has lost its ports may still say that it has a carrier.
    let deaf = |d: &Device| d.kind == "bridge" && !facts.ports(&d.name).any(|port| port.up && port.carrier);
    let Some(uplink) = facts.uplink().filter(|d| !d.up || !d.carrier || deaf(d)) else { return Vec::new() };
    let state = match uplink {
        d if !d.up => "is down",
        d if deaf(d) => "is a bridge without a port that has a carrier",
        _ => "has no carrier",
    };
    let name = &uplink.name;
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

/// Bridges that programs make on every host, with an address of their own choice.
const ALIKE: [&str; 6] = ["docker0", "virbr0", "lxcbr0", "lxdbr0", "podman0", "cni-podman0"];

/// VirtualBox gives every guest this address on its first interface; Docker and others give each host's bridge the same.
fn same_address_everywhere(facts: &Facts) -> Vec<Finding> {
    if let Some(uplink) = facts.uplink().filter(|d| ALIKE.contains(&d.name.as_str()) && d.kind == "bridge") {
        let found = finding(
            Broken,
            format!("the tunnel goes out by {}, which every host has", uplink.name),
            facts.of(&uplink.name).map(|a| a.net.to_string()).collect::<Vec<_>>().join(", "),
        )
        .so("it leads to no other host, and others have the same address there")
        .fix(format!("start the agent with --iface={}", other_interface(facts)));
        return vec![found];
    }
    let public =
        facts.agent.as_ref().and_then(|agent| agent.lease.as_ref()).map(|lease| lease.public.join(" "));
    let local = facts.tunnels().find_map(|tunnel| tunnel.vxlan?.2).map(|ip| ip.to_string());
    let told = public.or(local).unwrap_or_default();
    if !told.split(' ').any(|ip| ip == "10.0.2.15") {
        return Vec::new();
    }
    let other = other_interface(facts);
    let found = finding(
        Broken,
        "the node announces an address that every VirtualBox guest has",
        "others send to 10.0.2.15",
    )
    .so("packets for this node end at whoever else has the address, usually the sender itself")
    .fix(format!("start the agent with --iface={other}"));
    vec![found]
}

fn other_interface(facts: &Facts) -> &str {
    let others =
        facts.devices.iter().filter(|d| d.kind.is_empty() && d.name != "lo" && Some(*d) != facts.uplink());
    others.map(|d| d.name.as_str()).next().unwrap_or("eth1")
}

fn two_default_routes(facts: &Facts) -> Vec<Finding> {
    let routes = facts.defaults(Family::V4);
    if routes.first().is_some_and(|route| route.dev.is_none()) {
        let found =
            finding(Risk, "the default route has several ways", "ip route show default: nexthop … nexthop …")
                .so("no interface of it is that to other hosts; flannel refuses to start")
                .fix("start the agent with --iface=NAME, the interface that leads to other hosts");
        return vec![found];
    }
    let [first, second, ..] = routes.as_slice() else { return Vec::new() };
    if first.metric != second.metric || first.dev == second.dev {
        return Vec::new();
    }
    let name = |route: &Route| route.dev.clone().unwrap_or_default();
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
    let ours = |dev: &str| {
        dev.starts_with("flannel") || ["cni0", "lo"].contains(&dev) || dev == "docker0" && facts.docker()
    };
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
    let own = |ip: &std::net::IpAddr| facts.addresses.iter().any(|address| address.net.addr() == *ip);
    let tunnels = facts.forwarding.iter().filter(|(dev, ..)| dev.starts_with("flannel"));
    for (dev, ip, mac) in tunnels.filter(|(_, ip, _)| own(ip)).take(1) {
        found.push(
            finding(
                Broken,
                format!("another node says it has {ip}, which is this host's"),
                format!("bridge fdb show dev {dev}: {mac} dst {ip}"),
            )
            .so("packets for that node come back to this one; each node must announce an address of its own")
            .fix("on that node start the agent with --iface=NAME or --public-ip=ADDRESS that it alone has"),
        );
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
    let mut by: BTreeMap<(String, &str), Vec<(&str, std::net::IpAddr)>> = BTreeMap::new();
    // The kernel keeps groups of IPv6 among neighbours, the same on each device.
    let tunnels =
        facts.neighbours.iter().filter(|(dev, ip, _)| dev.starts_with("flannel") && !ip.is_multicast());
    for (dev, ip, mac) in tunnels {
        by.entry((mac.to_string(), dev)).or_default().push((dev, *ip));
    }
    let own = facts.tunnels().filter_map(|tunnel| Some((tunnel.mac?.to_string(), tunnel.name.as_str())));
    for (mac, name) in own.collect::<Vec<_>>() {
        if let Some(others) = by.get_mut(&(mac, name)) {
            others.push((name, std::net::Ipv4Addr::UNSPECIFIED.into()));
        }
    }
    let doubled = by.into_iter().filter(|(_, users)| users.len() > 1);
    doubled
        .map(|((mac, _), users)| {
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
    let told = |tunnel: &Device| {
        finding(Broken, format!("{} is down", tunnel.name), "ip link shows no UP")
            .so("no packet reaches another node; an agent that runs sets it up at once, so none does, or somebody fights it")
            .fix(format!("ip link set {} up; systemctl restart loden", tunnel.name))
    };
    down.map(told).collect()
}

fn tunnel_address(facts: &Facts) -> Vec<Finding> {
    let of = |(tunnel, family): (&Device, Family)| {
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
    let expects =
        |tunnel: &&Device| ["vxlan", "ipip", "wireguard"].contains(&tunnel.kind.as_str()) && tunnel.up;
    let with = |tunnel| (tunnel, if tunnel_is_v6(tunnel) { Family::V6 } else { Family::V4 });
    facts.tunnels().filter(expects).map(with).filter_map(of).collect()
}

/// Whether a tunnel is that of IPv6.
pub fn tunnel_is_v6(tunnel: &Device) -> bool {
    tunnel.name.starts_with("flannel-v6") || tunnel.name == "flannel-wg-v6"
}

fn tunnel_source(facts: &Facts) -> Vec<Finding> {
    let gone = |tunnel: &Device| {
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
    let elsewhere = |tunnel: &Device| {
        let (local, lower) = (tunnel.vxlan?.2?, tunnel.lower.as_ref()?);
        let home = facts.addresses.iter().filter(|a| a.net.addr() == local).collect::<Vec<_>>();
        // An address of the loopback device is one of the host, whichever way packets go.
        let other = home.first().filter(|_| home.iter().all(|a| a.dev != *lower && a.dev != "lo"))?;
        Some(
            finding(
                Broken,
                format!("{} sends through {lower} with an address of {}", tunnel.name, other.dev),
                format!("local {local} dev {lower}"),
            )
            .so("its packets leave by an interface that other hosts do not expect, or do not reach")
            .fix(format!("ip link del {}, and start the agent with --iface={}", tunnel.name, other.dev)),
        )
    };
    facts.tunnels().filter_map(|tunnel| gone(tunnel).or_else(|| elsewhere(tunnel))).collect()
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
    let overhead = |tunnel: &Device| match (tunnel.kind.as_str(), tunnel_is_v6(tunnel)) {
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
    // Docker gives its MTU to containers; an empty bridge still has the usual one.
    let docker =
        facts.device("docker0").filter(|_| facts.docker() && facts.ports("docker0").next().is_some());
    let bridges = [
        (facts.device("cni0"), "make the pods anew (kubectl delete pod …), the bridge follows them"),
        (docker, "give dockerd the options of the file that mk-docker-opts writes (--mtu), and restart it"),
    ];
    for (bridge, fix) in bridges.into_iter().filter_map(|(bridge, fix)| Some((bridge?, fix))) {
        if let Some(told) = told.filter(|told| bridge.mtu > *told) {
            found.push(
                finding(
                    Risk,
                    format!("{} has a larger MTU than pods should have", bridge.name),
                    format!("{}, FLANNEL_MTU={told}", bridge.mtu),
                )
                .so("pods made before keep the larger one and depend on path MTU discovery")
                .fix(fix),
            );
        }
    }
    found
}

fn stale_bridge(facts: &Facts) -> Vec<Finding> {
    let pods = facts.ports("cni0").count();
    let bare = facts.of("cni0").all(|a| is_link_local(a.net.addr()));
    if let Some(subnet) = Family::BOTH.into_iter().find_map(|f| facts.subnet(f)).filter(|_| bare && pods > 0)
    {
        let gateway = subnet.hosts().next().unwrap_or(subnet.network());
        let found = finding(
            Broken,
            "cni0 has no address",
            format!("{pods} pods are on it, and {gateway} is their gateway"),
        )
        .so("pods of this node reach nothing but each other")
        .fix(format!("ip addr add {gateway}/{} dev cni0", subnet.prefix_len()));
        return vec![found];
    }
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
    let told = |address: &Address| {
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
