//! Who sees whose address: the truth table of masquerading, checked by servers that say who called.

use std::net::IpAddr;

use kernel::Netns;
use plan::state::Variant;

use crate::iptables::{PATH_WITHOUT, masquerading, seed, works};
use crate::world::{Agent, Host, World, sh, until};

/// A pod: a namespace with the host's second address of its subnet, routed without a bridge.
fn pod(host: &Host, key: &str) -> (Host, IpAddr) {
    let subnet = host.subnet(key);
    let address = subnet.hosts().find(|ip| *ip != subnet.network()).unwrap();
    let netns = Netns::create().unwrap();
    let length = if address.is_ipv4() { 32 } else { 128 };
    let (family, gateway) = if address.is_ipv4() { ("-4", "169.254.1.1") } else { ("-6", "fe80::1") };
    sh(&netns, "ip link set lo up");
    host.sh("ip link add pod type veth peer name inpod");
    host.sh(&format!("ip link set inpod netns {}", netns.path().display()));
    host.sh("sysctl -qw net.ipv6.conf.all.forwarding=1");
    host.sh(&format!("ip {family} addr add {gateway}/{length} dev pod nodad"));
    host.sh("ip link set pod up");
    host.sh(&format!("ip {family} route add {address}/{length} dev pod"));
    sh(&netns, &format!("ip {family} addr add {address}/{length} dev inpod nodad"));
    sh(&netns, "ip link set inpod up");
    sh(&netns, &format!("ip {family} route add {gateway}/{length} dev inpod"));
    sh(&netns, &format!("ip {family} route add default via {gateway} dev inpod onlink"));
    (Host::around(netns, host), address)
}

#[test]
fn only_what_leaves_the_cluster_network_is_masqueraded() {
    const TEST: &str = "only_what_leaves_the_cluster_network_is_masqueraded";
    let all = ["nftables", "nft", "legacy", "without iptables"].into_iter();
    let modes = all.filter(|mode| match *mode {
        "nft" => works(TEST, Variant::Nft),
        "legacy" => works(TEST, Variant::Legacy),
        _ => true,
    });
    for (mode, family) in modes.flat_map(|mode| [(mode, "4"), (mode, "6")]) {
        let golden = mode == "nftables";
        let (network, key) = match family {
            "4" => (r#""Network":"10.244.0.0/16""#, "FLANNEL_SUBNET"),
            _ => (
                r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10::/48""#,
                "FLANNEL_IPV6_SUBNET",
            ),
        };
        let config = format!(r#"{{{network},"EnableNFTables":{golden},"Backend":{{"Type":"vxlan"}}}}"#);
        let world = World::with_config(3, &config);
        // The third host has no agent: it is the world outside.
        let start = |host: &Host| -> Agent {
            let mut env = vec![("LODEN_STORE", host.store())];
            match mode {
                "nft" => seed(host, Variant::Nft),
                "legacy" => seed(host, Variant::Legacy),
                _ => env.push(("PATH", PATH_WITHOUT)),
            }
            host.agent_in(&["--ip-masq"], &env)
        };
        let agents = [start(&world.hosts[0]), start(&world.hosts[1])];
        for agent in &agents {
            agent.ready();
        }
        assert_eq!(agents[0].log().contains("install the package iptables"), mode == "without iptables");
        let there = !masquerading(&world.hosts[0]).is_empty();
        assert_eq!(there, golden || mode == "without iptables", "{mode}");
        let [one, two, outside] = [&world.hosts[0], &world.hosts[1], &world.hosts[2]];
        let underlay = |host: &Host| -> IpAddr {
            if family == "4" { host.public() } else { host.public6() }.parse().unwrap()
        };
        let ((pod1, ip1), (pod2, ip2)) = (pod(one, key), pod(two, key));
        let tunnel = one.subnet(key).network();
        for (name, from, to, address, seen) in [
            ("pod to pod keeps its address", &pod1, &pod2, ip2, ip1),
            ("pod to outside has the host's", &pod1, outside, underlay(outside), underlay(one)),
            ("pod to the other host has the host's", &pod1, two, underlay(two), underlay(one)),
            ("host to a remote pod has the tunnel's", one, &pod2, ip2, tunnel),
        ] {
            let what = format!("IPv{family}, {mode}: {name}");
            let got = until(&what, || from.greet(to, address));
            assert_eq!(got, seen, "{what}");
        }
    }
}
