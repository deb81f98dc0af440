//! `loden trace` on hosts that are broken on purpose.

use serde_json::Value;

use crate::world::{Host, World, until};

const VXLAN: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;

fn trace(host: &Host, words: &[&str]) -> (i32, String) {
    let mut command = host.loden(&["trace"]);
    command.args(words);
    let output = host.netns.run(|| command.output()).unwrap().unwrap();
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    (output.status.code().unwrap_or(-1), String::from_utf8(text).unwrap())
}

fn devices(json: &Value, key: &str) -> Vec<String> {
    json[key].as_array().unwrap().iter().map(|step| step["device"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn model_and_packet_agree_until_something_breaks() {
    let world = World::with_config(2, VXLAN);
    let agents = world.start(&[]);
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    let far = peer.subnet("FLANNEL_SUBNET").network().to_string();
    let json = until("the way to work", || {
        let (code, text) = trace(host, &[&far, "-o", "json"]);
        let json: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        // Before the route is there, the default route leads through the uplink alone.
        if code == 0 && devices(&json, "model").len() == 2 { Ok(json) } else { Err(text) }
    });
    assert_eq!(devices(&json, "model"), ["flannel.1", "eth0"]);
    assert_eq!(devices(&json, "there"), ["flannel.1", "eth0"]);
    assert_eq!((&json["mtu"], &json["answered"]), (&1450.into(), &true.into()));
    let by = json["model"][0]["by"].as_str().unwrap();
    assert!(by.contains("neigh ") && by.contains("fdb 192.0.2.12, VNI 1 UDP 8472"), "{by}");
    let (_, screen) = trace(host, &[&far]);
    for part in
        ["✓ host flannel.1", "✓ host eth0", "192.0.2.12  beyond this host", "✓ the packet took the way"]
    {
        assert!(screen.contains(part), "{part}: {screen}");
    }

    let says = |what: &str, part: &str| {
        let (code, text) = trace(host, &[&far]);
        assert!(code == 1 && text.contains(part), "{what}: {code} {text}");
    };
    host.sh("nft add table inet fault");
    host.sh("nft add chain inet fault out { type filter hook output priority 0 ; }");
    host.sh("nft add rule inet fault out udp dport 8472 drop");
    says("our own filter", "seen on flannel.1 and not on eth0");
    host.sh("nft flush chain inet fault out");
    host.sh("nft add chain inet fault in { type filter hook prerouting priority -300 ; }");
    host.sh("nft add rule inet fault in udp dport 8472 drop");
    says("our own filter on the way back", "came back to eth0 and did not reach flannel.1");
    host.sh("nft delete table inet fault");
    peer.sh("nft add table inet fault");
    peer.sh("nft add chain inet fault in { type filter hook prerouting priority -300 ; }");
    peer.sh("nft add rule inet fault in udp dport 8472 drop");
    says("the peer's filter", "left through eth0 towards 192.0.2.12 and nothing came back");
    peer.sh("nft delete table inet fault");
    // Without agents nobody mends what is missing.
    drop(agents);
    let entry = host.sh(&format!("ip neigh show {far} dev flannel.1"));
    let mac = entry.split(' ').nth(2).unwrap().to_owned();
    host.sh(&format!("bridge fdb del {mac} dev flannel.1"));
    says("no forwarding entry", "`bridge fdb show dev flannel.1` has no");
    host.sh(&format!("ip neigh del {far} dev flannel.1"));
    says("no neighbour", "is empty: the peer is not programmed");
    host.sh(&format!("ip route del {}", peer.subnet("FLANNEL_SUBNET")));
    host.sh("ip route del default");
    says("no route", "finds no route");
    let picture = world.dir.path().join("way.svg").display().to_string();
    let page = world.dir.path().join("way.html").display().to_string();
    let (code, _) = trace(host, &[&far, "--svg", &picture, "--html", &page]);
    for file in [&picture, &page] {
        let text = std::fs::read_to_string(file).unwrap();
        let named = text.contains(&format!("host → {far}")) && text.contains("finds no route");
        assert!(code == 1 && named && text.contains("</svg>"), "{text}");
    }
    for (words, want) in [
        (&["--help"][..], 0),
        (&["host", &far, "--svg", "/proc/nowhere"], 2),
        (&[], 2),
        (&["nonsense"], 2),
        (&["10.244.250.9", &far], 2),
        (&["host", &far, "80/tcp"], 2),
    ] {
        let (code, text) = trace(host, words);
        assert_eq!(code, want, "{words:?}: {text}");
    }
}

#[test]
fn a_pods_packet_passes_its_bridge() {
    let world = World::with_config(2, VXLAN);
    let _agents = world.start(&[]);
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    let gateway = host.env("FLANNEL_SUBNET");
    let subnet = host.subnet("FLANNEL_SUBNET");
    let address = gateway.replace(".1/24", ".7");
    let pod = kernel::Netns::create().unwrap();
    let far = peer.subnet("FLANNEL_SUBNET").network().to_string();
    for command in [
        "ip link add cni0 mtu 1450 type bridge",
        &format!("ip addr add {gateway} dev cni0"),
        "ip link set cni0 up",
        "ip link add veth7 mtu 1450 type veth peer name pod7 mtu 1450",
        "ip link set veth7 master cni0 up",
        &format!("ip link set pod7 netns {}", pod.path().display()),
    ] {
        host.sh(command);
    }
    for command in [
        "ip link set pod7 name eth0",
        "ip link set eth0 up",
        &format!("ip addr add {address}/{} dev eth0", subnet.prefix_len()),
        &format!("ip route add default via {}", gateway.trim_end_matches("/24")),
    ] {
        crate::world::sh(&pod, command);
    }
    let path = pod.path().display().to_string();
    until("the pod's packet to come back", || {
        let (code, text) = trace(host, &[&path, &far]);
        let all = ["✓ pod  eth0", "✓ host cni0", "✓ host flannel.1", "✓ host eth0"];
        if code == 0 && all.iter().all(|part| text.contains(part)) { Ok(()) } else { Err(text) }
    });
}
