//! The main job: hosts find each other, in both backends and all families.

use serde_json::Value;

use crate::world::{Host, World, until};

const DUAL: &str =
    r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10::/48","Backend":{"Type":"TYPE"}}"#;
const V4: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"TYPE"}}"#;
const V6: &str =
    r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10::/48","Backend":{"Type":"TYPE"}}"#;

const FAMILIES: [(&str, &[Names]); 3] = [(V4, &[N4]), (V6, &[N6]), (DUAL, &[N4, N6])];

/// What differs between the families.
#[derive(Clone, Copy)]
struct Names {
    flag: &'static str,
    key: &'static str,
    device: &'static str,
    host_length: u8,
    public: fn(&Host) -> String,
    subnet_length: u8,
    mtu: u32,
}

const N4: Names = Names {
    flag: "-4",
    key: "FLANNEL_SUBNET",
    device: "flannel.1",
    host_length: 32,
    public: Host::public,
    subnet_length: 24,
    mtu: 1450,
};
const N6: Names = Names {
    flag: "-6",
    key: "FLANNEL_IPV6_SUBNET",
    device: "flannel-v6.1",
    host_length: 128,
    public: Host::public6,
    subnet_length: 64,
    mtu: 1430,
};

fn find<'a>(list: &'a Value, member: &str, value: &str) -> Option<&'a Value> {
    list.as_array()?.iter().find(|entry| entry[member] == value)
}

#[test]
fn vxlan_hosts_reach_each_other_in_every_family() {
    for (config, families) in FAMILIES {
        let world = World::with_config(3, &config.replace("TYPE", "vxlan"));
        let agents = world.start(&["--ip-masq"]);
        for names in families {
            for host in &world.hosts {
                device_is_flannels(host, *names);
                for peer in world.hosts.iter().filter(|p| p.number != host.number) {
                    until("the peer's entries", || entries_are_flannels(host, peer, *names));
                    let address = peer.subnet(names.key).network();
                    let from = until("the tunnel to carry traffic", || host.greet(peer, address));
                    assert_eq!(from, host.subnet(names.key).network(), "no address translation inside");
                }
            }
        }
        for agent in agents {
            assert_eq!(agent.terminate(), 0);
        }
    }
}

/// flannel.md 6.2, as `ip -d link`, `ip addr` and `subnet.env` show it.
fn device_is_flannels(host: &Host, names: Names) {
    let link = &host.json(&format!("ip -d -j link show {}", names.device))[0];
    let data = &link["linkinfo"]["info_data"];
    assert_eq!(link["linkinfo"]["info_kind"], "vxlan");
    assert_eq!((&link["mtu"], &data["link"]), (&names.mtu.into(), &"eth0".into()), "{link:#}");
    assert_eq!(
        (&data["id"], &data["port"], &data["learning"]),
        (&1.into(), &8472.into(), &false.into()),
        "{data:#}"
    );
    assert_eq!(
        data["local"].as_str().or(data["local6"].as_str()),
        Some((names.public)(host).as_str()),
        "{data:#}"
    );
    assert!(data["group"].is_null() && data["group6"].is_null(), "{data:#}");
    assert_eq!((&data["udp_csum"], &data["udp_zero_csum6_tx"]), (&true.into(), &false.into()), "{data:#}");
    assert!(link["flags"].as_array().unwrap().contains(&"UP".into()), "{link:#}");

    let subnet = host.subnet(names.key);
    assert_eq!(subnet.prefix_len(), names.subnet_length);
    let addresses = host.json(&format!("ip -j {} addr show dev {}", names.flag, names.device));
    let own = find(&addresses[0]["addr_info"], "scope", "global").unwrap_or_else(|| panic!("{addresses:#}"));
    assert_eq!(own["local"], subnet.network().to_string());
    assert_eq!(own["prefixlen"], names.host_length);
    let gateway = host.env(names.key);
    assert_eq!(gateway.parse::<ipnet::IpNet>().unwrap().addr(), first(subnet), "gateway form");
    let smallest = if host.json("ip -j link").to_string().contains("flannel-v6") { "1430" } else { "1450" };
    assert_eq!(host.env("FLANNEL_MTU"), smallest);
    assert_eq!(host.env("FLANNEL_IPMASQ"), "true");
    assert_eq!(host.sh(&format!("cat /proc/sys/net/ipv6/conf/{}/accept_ra", names.device)).trim(), "0");
}

fn entries_are_flannels(host: &Host, peer: &Host, names: Names) -> Result<(), String> {
    let subnet = peer.subnet(names.key);
    let gateway = subnet.network().to_string();
    let link = &peer.json(&format!("ip -j link show {}", names.device))[0];
    let mac = link["address"].as_str().unwrap_or_default().to_owned();

    let routes = host.json(&format!("ip -j {} route show {subnet}", names.flag));
    let route = &routes[0];
    let flags = route["flags"].as_array().is_some_and(|f| f.contains(&"onlink".into()));
    if route["gateway"] != gateway || route["dev"] != names.device || !flags || route["protocol"] != "76" {
        return Err(format!("route {routes}"));
    }
    let neighbours = host.json(&format!("ip -j {} neigh show dev {}", names.flag, names.device));
    let neighbour = find(&neighbours, "dst", &gateway).ok_or_else(|| format!("neighbours {neighbours}"))?;
    if neighbour["lladdr"] != mac || neighbour["state"][0] != "PERMANENT" {
        return Err(format!("neighbour {neighbour}"));
    }
    let fdb = host.json(&format!("bridge -j fdb show dev {}", names.device));
    let entry = find(&fdb, "mac", &mac).ok_or_else(|| format!("fdb {fdb}"))?;
    if entry["dst"] != (names.public)(peer) || entry["state"] != "permanent" {
        return Err(format!("fdb {entry}"));
    }
    Ok(())
}

#[test]
fn host_gw_routes_through_the_peers_own_address() {
    for (config, families) in FAMILIES {
        let world = World::with_config(2, &config.replace("TYPE", "host-gw"));
        let _agents = world.start(&[]);
        for names in families {
            for (host, peer) in [(0, 1), (1, 0)].map(|(a, b)| (&world.hosts[a], &world.hosts[b])) {
                let subnet = peer.subnet(names.key);
                until("the route", || {
                    let routes = host.json(&format!("ip -j {} route show {subnet}", names.flag));
                    let fits = routes[0]["gateway"] == (names.public)(peer) && routes[0]["dev"] == "eth0";
                    if fits { Ok(()) } else { Err(routes.to_string()) }
                });
                assert_eq!(host.env("FLANNEL_MTU"), "1500");
                // A pod's address on the peer, stood for by an address on its loopback.
                peer.sh(&format!("ip addr add {}/{} dev lo", first(subnet), names.host_length));
                until("traffic", || host.greet(peer, first(subnet)));
            }
        }
    }
}

/// The address after the network's own.
fn first(subnet: ipnet::IpNet) -> std::net::IpAddr {
    subnet.hosts().find(|ip| *ip != subnet.network()).unwrap()
}

#[test]
fn direct_routing_uses_a_plain_route_on_a_common_network() {
    let config = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;
    let world = World::with_config(2, config);
    let _agents = world.start(&[]);
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    until("a direct route", || {
        let routes = host.json(&format!("ip -j route show {}", peer.subnet("FLANNEL_SUBNET")));
        if routes[0]["gateway"] == peer.public() && routes[0]["dev"] == "eth0" {
            Ok(())
        } else {
            Err(routes.to_string())
        }
    });
    let fdb = host.json("bridge -j fdb show dev flannel.1");
    assert_eq!(fdb.as_array().map(Vec::len), Some(0), "no tunnel entries for a direct peer: {fdb}");
}

#[test]
fn subnet_and_device_survive_a_restart() {
    let world = World::with_config(2, &V4.replace("TYPE", "vxlan"));
    let mut agents = world.start(&[]);
    let host = &world.hosts[0];
    let before = (host.env("FLANNEL_SUBNET"), host.json("ip -j link show flannel.1")[0].clone());
    assert_eq!(agents.remove(0).terminate(), 0);
    std::fs::remove_file(host.dir.join("log")).unwrap();
    let agent = host.agent(&[]);
    agent.ready();
    let after = (host.env("FLANNEL_SUBNET"), host.json("ip -j link show flannel.1")[0].clone());
    assert_eq!(before, after, "same subnet, same device, same address");
}
