//! Every class of broken path, made in namespaces, and what the agents say of it.

use crate::world::{Host, World, patience, until};

const VXLAN: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// A table of the host's own that breaks what passes.
fn rule(host: &Host, hook: &str, rule: &str) {
    host.sh("nft add table inet fault");
    host.sh(&format!("nft add chain inet fault broken {{ type filter hook {hook} priority -300 ; }}"));
    host.sh(&format!("nft add rule inet fault broken {rule}"));
}

fn says(host: &Host, verdict: &str, text: &str, code: i32) {
    until(&format!("{verdict} to be told"), || {
        let (status, json) = host.status_json();
        let path = &json["probes"]["paths"][0];
        let told = path["text"].as_str().unwrap_or_default();
        if path["verdict"] == verdict && told.contains(text) && status == code {
            Ok(())
        } else {
            Err(format!("{status}: {}", json["probes"]))
        }
    });
}

/// Two healthy nodes that have heard each other; then something breaks, is told, and is over.
fn broken(fault: impl FnOnce(&World), verdict: &str, text: &str, mend: &str) {
    let world = World::with_config(2, VXLAN);
    let _agents = world.start(&[]);
    for host in &world.hosts {
        says(host, "ok", "packets of up to 1450 bytes come back", 0);
    }
    let host = &world.hosts[0];
    fault(&world);
    says(host, verdict, text, 1);
    let (_, screen) = host.status(&[]);
    assert!(screen.contains("1 bad") && screen.contains("✗ ready, but not all is well"), "{screen}");
    if !mend.is_empty() {
        world.hosts[1].sh(mend);
        says(host, "ok", "", 0);
    }
}

const MEND: &str = "nft delete table inet fault";

#[test]
fn the_wire_is_cut() {
    let cut = |world: &World| drop(world.hosts[1].sh("ip link set eth0 down"));
    broken(cut, "underlay_down", "192.0.2.12 ", "");
}

#[test]
fn a_host_falls_silent() {
    let fault = |world: &World| {
        rule(&world.hosts[1], "prerouting", "ip saddr 192.0.2.11 drop");
        rule(&world.hosts[0], "prerouting", "ip saddr 192.0.2.12 drop");
    };
    broken(fault, "underlay_down", "192.0.2.12 answers nothing", "");
}

#[test]
fn the_tunnel_port_is_dropped_both_ways() {
    let fault = |world: &World| {
        rule(&world.hosts[1], "prerouting", "udp dport 8472 drop");
        rule(&world.hosts[0], "prerouting", "udp dport 8472 drop");
    };
    broken(fault, "tunnel_dropped", "UDP port 8472 is dropped", "");
}

#[test]
fn one_direction_is_dropped() {
    let fault = |world: &World| rule(&world.hosts[1], "prerouting", "udp dport 8472 drop");
    broken(fault, "one_way", "its packets arrive here and ours are not answered", MEND);
}

#[test]
fn large_packets_are_dropped() {
    let fault = |world: &World| rule(&world.hosts[1], "prerouting", "ip length > 1400 drop");
    broken(fault, "large_dropped", "the largest that passed has 1320; nor do the hosts", MEND);
}

#[test]
fn large_packets_of_the_tunnel_are_dropped() {
    let fault = |world: &World| rule(&world.hosts[1], "prerouting", "udp dport 8472 ip length > 1400 drop");
    broken(fault, "large_dropped", "the hosts exchange packets of 1500 bytes", MEND);
}

#[test]
fn datagrams_with_a_checksum_get_lost() {
    let world = World::with_config(2, VXLAN);
    let _agents = world.start(&[]);
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    for host in &world.hosts {
        says(host, "ok", "packets of up to 1450 bytes come back", 0);
    }
    let offload = |host: &Host| {
        let all = host.try_sh("ethtool -k flannel.1")?;
        let line = all.lines().find(|line| line.contains("tx-checksum-ip-generic")).unwrap_or_default();
        Ok::<_, String>(line.trim().to_owned())
    };
    assert_eq!(offload(host).unwrap(), "tx-checksum-ip-generic: on");
    // As if hardware had left them wrong: the peer's kernel drops what has a checksum.
    rule(peer, "prerouting", "iifname flannel.1 udp checksum != 0 drop");
    until("the node to compute checksums itself", || {
        let shown = offload(host)?;
        if shown.contains(": off") { Ok(()) } else { Err(shown) }
    });
    // What is on the way all the same is not the card's fault, and said to be another's.
    says(host, "checksum", "though this node computes the checksums of packets in flannel.1 itself", 1);
    assert!(offload(peer).unwrap().contains(": on"), "its packets arrive");
    peer.sh(MEND);
    says(host, "ok", "", 0);
    let (_, screen) = host.status(&[]);
    assert!(screen.contains("ethtool -K flannel.1 tx-checksum-ip-generic off"), "{screen}");
    // It is a wish like any other: who turns it on, or makes the device anew, has it turned off again.
    host.sh("ethtool -K flannel.1 tx-checksum-ip-generic on");
    host.sh("ip link delete flannel.1");
    until("the new device to be as the old one", || {
        let shown = offload(host)?;
        if shown.contains(": off") { Ok(()) } else { Err(shown) }
    });
}

#[test]
fn a_firewall_there_refuses() {
    let fault = |world: &World| {
        let reject = "iifname flannel.1 icmp type echo-request reject with icmp type admin-prohibited";
        rule(&world.hosts[1], "input", reject);
    };
    broken(fault, "refused", "forbidden by a firewall (admin prohibited)", MEND);
}

#[test]
fn packets_leave_with_the_hosts_source() {
    let fault = |world: &World| {
        let (host, peer) = (&world.hosts[0], &world.hosts[1]);
        let subnet = peer.subnet("FLANNEL_SUBNET");
        let gateway = subnet.network();
        host.sh(&format!(
            "ip route add {subnet} via {gateway} dev flannel.1 onlink src 192.0.2.11 table 100"
        ));
        host.sh(&format!("ip rule add to {subnet} lookup 100 priority 100"));
    };
    broken(fault, "wrong_source", "leave with the source 192.0.2.11", "");
}

#[test]
fn an_agent_that_is_gone_is_missed() {
    let world = World::with_config(2, VXLAN);
    let mut agents = world.start(&[]);
    for host in &world.hosts {
        says(host, "ok", "", 0);
    }
    // Its requests have been heard.
    until("both to have heard each other", || {
        let (_, json) = world.hosts[0].status_json();
        let text = json["probes"]["paths"][0]["text"].as_str().unwrap_or_default().to_owned();
        if text.contains("has not been heard") { Err(text) } else { Ok(()) }
    });
    agents.remove(1).kill();
    // Twice the patience: silence is believed after most of a minute.
    let deadline = std::time::Instant::now() + patience() * 2;
    while world.hosts[0].status_json().0 == 0 && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    says(&world.hosts[0], "agent_down", "it is down or hangs", 1);
}

#[test]
fn a_peer_that_does_not_probe_is_probed() {
    let world = World::with_config(2, VXLAN);
    let _first = world.hosts[0].agent(&[]);
    let quiet = [("LODEN_STORE", world.hosts[1].store()), ("LODEN_PROBE", "off")];
    let _second = world.hosts[1].agent_in(&[], &quiet);
    says(&world.hosts[0], "ok", "its agent has not been heard, so this is seen from here alone", 0);
    until("the other not to know", || {
        let (code, text) = world.hosts[1].status(&[]);
        let told = text.contains("paths      not probed: LODEN_PROBE is off");
        if code == 2 && told && text.contains("? ready, but whether packets arrive") {
            Ok(())
        } else {
            Err(text)
        }
    });
}

#[test]
fn every_tunnel_answers() {
    for (config, test) in [
        (r#"{"Network":"10.244.0.0/16","Backend":{"Type":"ipip"}}"#, "ipip"),
        (r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#, "host-gw"),
        (r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp"}}"#, "udp"),
        (r#"{"Network":"10.244.0.0/16","Backend":{"Type":"wireguard"}}"#, "wireguard"),
        (
            r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"vxlan"}}"#,
            "vxlan over IPv6",
        ),
        (
            r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#,
            "vxlan beside the tunnel",
        ),
    ] {
        if test == "ipip" && !crate::world::has("ipip", "every_tunnel_answers") {
            continue;
        }
        let world = World::with_config(2, config);
        let _agents = world.start(&[]);
        // Without pods nothing of a host answers behind host-gw, and that is not yet a healthy path.
        let expected = if test == "host-gw" { (2, "unsure") } else { (0, "ok") };
        until(test, || {
            let (code, json) = world.hosts[0].status_json();
            let path = &json["probes"]["paths"][0];
            if code == expected.0 && path["verdict"] == expected.1 {
                Ok(())
            } else {
                Err(format!("{test} {code} {json:#}"))
            }
        });
    }
}
