//! The backends beside vxlan and host-gw, between hosts.

use serde_json::Value;

use crate::world::{Host, World, has, until};

fn route(host: &Host, peer: &Host) -> Value {
    host.json(&format!("ip -j route show {}", peer.subnet("FLANNEL_SUBNET")))[0].clone()
}

fn leads(host: &Host, peer: &Host, dev: &str, onlink: bool) {
    until(&format!("a route through {dev}"), || {
        let route = route(host, peer);
        let flags = route["flags"].as_array().is_some_and(|f| f.contains(&"onlink".into()));
        let fits = route["gateway"] == peer.public() && route["dev"] == dev && flags == onlink;
        if fits && route["protocol"] == "76" { Ok(()) } else { Err(route.to_string()) }
    });
}

#[test]
fn ipip_hosts_reach_each_other() {
    if !has("ipip local 192.0.2.11", "ipip_hosts_reach_each_other") {
        return;
    }
    let world = World::with_config(3, r#"{"Network":"10.244.0.0/16","Backend":{"Type":"ipip"}}"#);
    let mut agents = world.start(&["--ip-masq"]);
    for host in &world.hosts {
        let link = &host.json("ip -d -j link show flannel.ipip")[0];
        let data = &link["linkinfo"]["info_data"];
        assert_eq!(
            (&link["linkinfo"]["info_kind"], &link["mtu"]),
            (&"ipip".into(), &1480.into()),
            "{link:#}"
        );
        assert_eq!((&data["local"], &data["remote"]), (&host.public().into(), &"any".into()), "{data:#}");
        assert_eq!(data["pmtudisc"], false, "{data:#}");
        assert_eq!(host.env("FLANNEL_MTU"), "1480");
        let own = host.subnet("FLANNEL_SUBNET").network();
        assert!(host.sh("ip -4 addr show dev flannel.ipip").contains(&format!("inet {own}/32 scope global")));
        for peer in world.hosts.iter().filter(|p| p.number != host.number) {
            leads(host, peer, "flannel.ipip", true);
            let address = peer.subnet("FLANNEL_SUBNET").network();
            let from = until("the tunnel to carry traffic", || host.greet(peer, address));
            assert_eq!(from, own, "no address translation inside");
        }
    }
    // What is altered or deleted comes back, and an agent that comes again changes nothing.
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    for damage in [
        "ip link set flannel.ipip mtu 1000",
        "ip link set flannel.ipip down",
        "ip link del flannel.ipip",
        "ip link set flannel.ipip type ipip local 192.0.2.99",
    ] {
        host.sh(damage);
        until(&format!("repair of {damage:?}"), || {
            // Between two moments it is not there at all.
            let shown = host.try_sh("ip -d -j link show flannel.ipip")?;
            let link = serde_json::from_str::<Value>(&shown).map_err(|e| e.to_string())?[0].clone();
            let up = link["flags"].as_array().is_some_and(|f| f.contains(&"UP".into()));
            let data = &link["linkinfo"]["info_data"];
            let whole = link["mtu"] == 1480 && up && data["local"] == "192.0.2.11";
            if whole {
                host.greet(peer, peer.subnet("FLANNEL_SUBNET").network())
            } else {
                Err(link.to_string())
            }
        });
    }
    let before = host.json("ip -j link show flannel.ipip")[0]["ifindex"].clone();
    assert_eq!(agents.remove(0).terminate(), 0);
    std::fs::remove_file(host.dir.join("log")).unwrap();
    let _again = host.agent(&[]);
    _again.ready();
    assert_eq!(host.json("ip -j link show flannel.ipip")[0]["ifindex"], before, "the same device");
}

#[test]
fn ipip_routes_directly_on_a_common_network() {
    if !has("ipip local 192.0.2.11", "ipip_routes_directly_on_a_common_network") {
        return;
    }
    let config = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"ipip","DirectRouting":true}}"#;
    let world = World::with_config(2, config);
    let _agents = world.start(&[]);
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    leads(host, peer, "eth0", false);
    // Decided anew when the network between them is no longer common (F-92).
    host.sh("ip addr add 192.0.2.11/32 dev eth0");
    host.sh("ip addr del 192.0.2.11/24 dev eth0");
    host.sh("ip route replace 192.0.2.1 dev eth0");
    host.sh("ip route replace default via 192.0.2.1");
    leads(host, peer, "flannel.ipip", true);
    host.sh("ip addr add 192.0.2.11/24 dev eth0");
    leads(host, peer, "eth0", false);
}

#[test]
fn alloc_gives_a_subnet_and_makes_nothing() {
    let world = World::with_config(2, r#"{"Network":"10.244.0.0/16","Backend":{"Type":"alloc"}}"#);
    let links = |host: &Host| host.sh("ip -o link");
    let before: Vec<String> = world.hosts.iter().map(links).collect();
    let _agents = world.start(&["--iptables-forward-rules=false"]);
    let (one, two) = (&world.hosts[0], &world.hosts[1]);
    assert_ne!(one.subnet("FLANNEL_SUBNET"), two.subnet("FLANNEL_SUBNET"));
    assert_eq!(one.env("FLANNEL_MTU"), "1500");
    assert_eq!(world.hosts.iter().map(links).collect::<Vec<_>>(), before);
    assert_eq!(route(one, two), Value::Null);
}

#[test]
fn a_blackhole_route_stands_beside_a_bridge() {
    let config = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10::/48","Backend":{"Type":"host-gw"}}"#;
    let world = World::with_config(1, config);
    let host = &world.hosts[0];
    let agent = host.agent(&["--ip-blackhole-route"]);
    agent.ready();
    let holes =
        |host: &Host| host.sh("ip route show type blackhole") + &host.sh("ip -6 route show type blackhole");
    let (v4, v6) = (host.subnet("FLANNEL_SUBNET"), host.subnet("FLANNEL_IPV6_SUBNET"));
    let both = |host: &Host| {
        let text = holes(host);
        let whole = [v4, v6].iter().all(|net| text.contains(&format!("blackhole {net}")));
        if whole { Ok(()) } else { Err(text) }
    };
    until("both routes", || both(host));
    // A bridge with the same subnet: its connected route goes before ours, which stays (F-10).
    host.sh("ip link add cni0 type bridge");
    host.sh("ip link set cni0 up");
    host.sh(&format!("ip addr add {} dev cni0", host.env("FLANNEL_SUBNET")));
    host.sh("ip route flush type blackhole");
    until("the route again", || both(host));
    let pod = v4.hosts().nth(5).unwrap();
    assert!(host.sh(&format!("ip route get {pod}")).contains("dev cni0"));
    host.sh("ip link del cni0");
    assert!(
        host.try_sh(&format!("ip route get {pod}")).is_err(),
        "nothing leaves for a pod that is not here"
    );
    assert_eq!(agent.terminate(), 0);
    // Without the flag they go.
    std::fs::remove_file(host.dir.join("log")).unwrap();
    let agent = host.agent(&[]);
    agent.ready();
    until("no such route", || if holes(host).is_empty() { Ok(()) } else { Err(holes(host)) });
}
