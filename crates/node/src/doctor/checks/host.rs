//! Kernel, parameters, clock, disk.

use model::Family;

use super::{Check, Facts, Finding, check};
use crate::doctor::Weight::{Broken, Risk};
use crate::doctor::facts::best;
use crate::doctor::finding;

pub const CHECKS: &[Check] = &[
    check("kernel-device", kernel_device),
    check("forwarding", forwarding),
    check("forwarding-of-device", forwarding_of_device),
    check("ipv6-off", ipv6_off),
    check("reverse-path", reverse_path),
    check("bridged-packets", bridged_packets),
    check("neighbour-table", neighbour_table),
    check("connection-table", connection_table),
    check("clock", clock),
    check("certificate", certificate),
    check("disk-full", disk_full),
];

fn kernel_device(facts: &Facts) -> Vec<Finding> {
    let Some(kinds) = &facts.kinds else { return Vec::new() };
    let backend = facts.agent.as_ref().and_then(|agent| Some(agent.backend.as_ref()?.kind.clone()));
    let needed = |kind: &str| match &backend {
        Some(backend) => backend == kind,
        None => kind == "vxlan",
    };
    let absent = kinds.iter().filter(|(kind, there)| !**there && needed(kind));
    let told = |(kind, _): (&String, _)| {
        finding(
            Broken,
            format!("the kernel makes no {kind} devices"),
            format!("ip link add type {kind}: not supported"),
        )
        .so("the backend's device cannot be made, so no packet reaches another node")
        .fix(format!("modprobe {kind} (package linux-modules-extra on Ubuntu), or choose another backend"))
    };
    absent.map(told).collect()
}

fn forwarding(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    let ipv6_only = facts.subnet(Family::V6).is_some() && facts.subnet(Family::V4).is_none();
    if facts.number("net/ipv4/ip_forward") == Some(0) && !ipv6_only {
        found.push(
            finding(Broken, "IPv4 forwarding is off", "net.ipv4.ip_forward = 0")
                .so("the host drops packets between pods and other hosts")
                .set("net/ipv4/ip_forward", "1"),
        );
    }
    if facts.subnet(Family::V6).is_some() && facts.number("net/ipv6/conf/all/forwarding") == Some(0) {
        found.push(
            finding(Broken, "IPv6 forwarding is off", "net.ipv6.conf.all.forwarding = 0")
                .so("the host drops IPv6 packets between pods and other hosts")
                .set("net/ipv6/conf/all/forwarding", "1"),
        );
    }
    found
}

fn forwarding_of_device(facts: &Facts) -> Vec<Finding> {
    let ours = facts.devices.iter().filter(|d| is_ours(&d.name) || facts.uplink() == Some(d));
    let path = |name: &str| format!("net/ipv4/conf/{name}/forwarding");
    let off = ours.filter(|d| facts.number(&path(&d.name)) == Some(0));
    let whole = facts.number("net/ipv4/ip_forward") == Some(0)
        || facts.subnet(Family::V6).is_some() && facts.subnet(Family::V4).is_none();
    let told = |name: &str| {
        finding(
            Broken,
            format!("forwarding is off on {name}"),
            format!("net.ipv4.conf.{name}.forwarding = 0"),
        )
        .so("packets that come in there are not passed on")
        .set(&path(name), "1")
    };
    off.filter(|_| !whole).map(|d| told(&d.name)).collect()
}

/// Devices of the pod network.
fn is_ours(name: &str) -> bool {
    name.starts_with("flannel") || name == "cni0"
}

fn ipv6_off(facts: &Facts) -> Vec<Finding> {
    if facts.subnet(Family::V6).is_none() {
        return Vec::new();
    }
    let names = facts.devices.iter().map(|d| d.name.as_str()).filter(|name| is_ours(name)).chain(["all"]);
    let path = |name: &str| format!("net/ipv6/conf/{name}/disable_ipv6");
    let off = names.filter(|name| facts.number(&path(name)) == Some(1));
    let told = |name: &str| {
        finding(Broken, format!("IPv6 is off on {name}"), format!("net.ipv6.conf.{name}.disable_ipv6 = 1"))
            .so("the node has an IPv6 subnet, and no address of it can be used")
            .set(&path(name), "0")
    };
    off.map(told).collect()
}

/// Strict checking is harmless where answers leave the way requests come, which the main table tells.
fn reverse_path(facts: &Facts) -> Vec<Finding> {
    let all = facts.number("net/ipv4/conf/all/rp_filter").unwrap_or(0);
    let default = facts.defaults(Family::V4).first().and_then(|route| route.dev.clone());
    let uplink = facts.uplink().map(|device| device.name.clone());
    let diverted =
        facts.rules.iter().any(|rule| facts.networks().iter().any(|net| rule.contains(&net.to_string())));
    let mut found = Vec::new();
    for device in &facts.devices {
        let own = facts.number(&format!("net/ipv4/conf/{}/rp_filter", device.name)).unwrap_or(0);
        // The stricter of the two counts (ip-sysctl, rp_filter).
        if all.max(own) != 1 {
            continue;
        }
        let elsewhere = |ip: std::net::IpAddr| {
            ip.is_ipv4()
                && best(&facts.routes, ip).is_some_and(|route| route.dev.is_some() && route.dev != uplink)
        };
        let tunnels = facts.forwarding.iter().filter(|(dev, ..)| dev.starts_with("flannel"));
        let peers = tunnels.map(|(_, ip, _)| *ip).any(elsewhere);
        let asymmetric =
            uplink.as_ref() == Some(&device.name) && (default.is_some() && default != uplink || peers);
        if !(asymmetric || device.name.starts_with("flannel") && diverted) {
            continue;
        }
        found.push(
            finding(
                Risk,
                format!("{} drops what it would not answer the same way", device.name),
                format!(
                    "net.ipv4.conf.{}.rp_filter is strict, and the route back leads elsewhere",
                    device.name
                ),
            )
            .so("packets from other networks that come in there are dropped without a word")
            .set(&format!("net/ipv4/conf/{}/rp_filter", device.name), "2"),
        );
    }
    found
}

fn bridged_packets(facts: &Facts) -> Vec<Finding> {
    // Chains of kube-proxy; with nftables it has a table of its own.
    let services = facts.ruleset.named("KUBE-").is_some() || facts.ruleset.named("kube-proxy").is_some();
    let path = "net/bridge/bridge-nf-call-iptables";
    if !services || facts.device("cni0").is_none() || facts.number(path) != Some(0) {
        return Vec::new();
    }
    let found = finding(Broken, "bridged packets pass no rules", "net.bridge.bridge-nf-call-iptables = 0")
        .so("a pod that reaches a service whose pod is on this node gets no answer")
        .set(path, "1");
    vec![found]
}

fn neighbour_table(facts: &Facts) -> Vec<Finding> {
    let Some(most) = facts.number("net/ipv4/neigh/default/gc_thresh3").filter(|most| *most > 0) else {
        return Vec::new();
    };
    let many = facts.neighbours.len() as i64;
    if many * 10 < most * 9 {
        return Vec::new();
    }
    let found = finding(
        Risk,
        "the table of neighbours is nearly full",
        format!("{many} entries, net.ipv4.neigh.default.gc_thresh3 = {most}"),
    )
    .so("new neighbours are refused (\"neighbour table overflow\" in the kernel's log)")
    .set("net/ipv4/neigh/default/gc_thresh3", &(most * 4).max(8192).to_string());
    vec![found]
}

fn connection_table(facts: &Facts) -> Vec<Finding> {
    let (count, most) =
        (facts.number("net/netfilter/nf_conntrack_count"), facts.number("net/netfilter/nf_conntrack_max"));
    match (count, most) {
        (Some(count), Some(most)) if most > 0 && count * 10 >= most * 9 => {
            let found = finding(
                Risk,
                "the table of connections is nearly full",
                format!("{count} of net.netfilter.nf_conntrack_max = {most}"),
            )
            .so("new connections are dropped")
            .set("net/netfilter/nf_conntrack_max", &(most * 4).to_string());
            vec![found]
        }
        _ => Vec::new(),
    }
}

/// Beginning of 2024: before this program was.
const BEGINNING: u64 = 1_704_067_200;

fn clock(facts: &Facts) -> Vec<Finding> {
    let early = facts.now < BEGINNING;
    let behind = facts.written > facts.now + 3600;
    if facts.now == 0 || !early && !behind {
        return Vec::new();
    }
    let seen = if early {
        format!("it is {} here", crate::log::utc(facts.now))
    } else {
        format!(
            "it is {}, and the agent wrote a file at {}",
            crate::log::utc(facts.now),
            crate::log::utc(facts.written)
        )
    };
    let found = finding(Broken, "the clock is wrong", seen)
        .so("certificates seem not to be valid yet, and leases end at the wrong time")
        .fix("timedatectl set-ntp true (or start chrony), then restart the agent");
    vec![found]
}

fn certificate(facts: &Facts) -> Vec<Finding> {
    /// Two weeks.
    const SOON: u64 = 14 * 86_400;
    let look = |(file, first, last): &(String, u64, u64)| {
        let (now, utc) = (facts.now, crate::log::utc);
        let told = |weight, what: String, seen: String| {
            finding(weight, what, seen)
                .so("the store refuses the agent, or the agent the store, once the connection is made anew")
                .fix(format!("renew {file} and restart the agent"))
        };
        if now > *last {
            Some(told(Broken, format!("{file} has expired"), format!("valid until {}", utc(*last))))
        } else if now < *first {
            Some(told(Broken, format!("{file} is not valid yet"), format!("valid from {}", utc(*first))))
        } else if now + SOON > *last {
            Some(told(Risk, format!("{file} expires soon"), format!("valid until {}", utc(*last))))
        } else {
            None
        }
    };
    facts.certificates.iter().filter_map(look).collect()
}

fn disk_full(facts: &Facts) -> Vec<Finding> {
    const BYTES: u64 = 1 << 20;
    let full = facts.space.iter().filter(|(_, bytes, nodes)| *bytes < BYTES || *nodes < 16);
    let told = |(place, bytes, nodes): &(String, u64, u64)| {
        finding(Broken, format!("{place} is full"), format!("{bytes} bytes and {nodes} inodes are free"))
            .so("subnet.env cannot be written, nor can pods get addresses")
            .fix(format!("df -h {place}; df -i {place}"))
    };
    full.map(told).collect()
}
