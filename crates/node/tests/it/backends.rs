//! What is particular to one backend; what all have in common is in `table` and `golden`.

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
fn an_altered_ipip_tunnel_comes_back() {
    if !has("ipip local 192.0.2.11", "an_altered_ipip_tunnel_comes_back") {
        return;
    }
    let world = World::with_config(2, r#"{"Network":"10.244.0.0/16","Backend":{"Type":"ipip"}}"#);
    let _agents = world.start(&["--ip-masq"]);
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
