//! A cluster on the Kubernetes store: real agents on hosts, subnets from their Nodes.

use std::fs;
use std::net::{IpAddr, TcpListener};

use apidouble::{Door, Double, EVENTS, NODES, Rule, full_node};
use kernel::Netns;
use serde_json::{Value, json};

use crate::world::{Agent, Host, World, until};

const DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10::/48","Backend":{"Type":"vxlan"}}"#;
const P: &str = "flannel.alpha.coreos.com/";

/// Hosts as Nodes `node1`, … with `10.244.N.0/24` and `fd00:10:0:N::/64`, and the API server on the first.
struct Cluster {
    world: World,
    double: Double,
}

impl Cluster {
    fn new(hosts: usize, conf: &str) -> Cluster {
        let world = World::new(hosts);
        let double = api_server(&world.hosts[0]);
        for host in &world.hosts {
            let n = host.number;
            let cidrs = [format!("10.244.{n}.0/24"), format!("fd00:10:0:{n}::/64")];
            let cidrs: Vec<&str> = cidrs.iter().map(String::as_str).collect();
            double.create(&NODES, full_node(&name(host), &cidrs, &host.public())).unwrap();
            admit(&double, host, conf);
        }
        Cluster { world, double }
    }

    fn agent(&self, host: &Host, more: &[&str]) -> Agent {
        agent(host, more)
    }

    fn start(&self) -> Vec<Agent> {
        let agents: Vec<Agent> = self.world.hosts.iter().map(|host| self.agent(host, &[])).collect();
        agents.iter().for_each(Agent::ready);
        agents
    }

    fn annotation(&self, host: &Host, suffix: &str) -> Option<String> {
        let node = self.double.get(&NODES, &name(host))?;
        node["metadata"]["annotations"][format!("{P}{suffix}")].as_str().map(str::to_owned)
    }

    /// A Node without a host, with the annotations of a flanneld: `last` is part of its addresses.
    fn stranger(&self, node: &str, cidrs: &[&str], last: u8) {
        let mut object = full_node(node, cidrs, &format!("192.0.2.{last}"));
        let data = |family: u8| format!("{{\"VNI\":1,\"VtepMAC\":\"8e:00:00:00:0{family}:{last:02x}\"}}");
        for (suffix, value) in [
            ("kube-subnet-manager", "true".to_owned()),
            ("backend-type", "vxlan".to_owned()),
            ("backend-data", data(4)),
            ("backend-v6-data", data(6)),
            ("public-ip", format!("192.0.2.{last}")),
            ("public-ipv6", format!("2001:db8::{last}")),
        ] {
            object["metadata"]["annotations"][format!("{P}{suffix}")] = value.into();
        }
        self.double.create(&NODES, object).unwrap();
    }

    fn annotate(&self, node: &str, suffix: &str, value: Value) {
        let change = json!({"metadata": {"annotations": {format!("{P}{suffix}"): value}}});
        self.double.merge(&NODES, node, &change).unwrap();
    }
}

/// The name of a host's Node.
pub fn name(host: &Host) -> String {
    format!("node{}", host.number)
}

/// An API server on a host, at 192.0.2.11.
pub fn api_server(host: &Host) -> Double {
    let path = host.netns.path();
    let bind = move || {
        let netns = Netns::open(&path).map_err(std::io::Error::other)?;
        netns.run(|| TcpListener::bind("192.0.2.11:6443")).map_err(std::io::Error::other)?
    };
    let double = Double::start(Door::made_by(true, Box::new(bind))).unwrap();
    double.forbid_anonymous();
    double
}

/// Gives a host what an agent there needs: flannel's rights and the network configuration.
pub fn admit(double: &Double, host: &Host, conf: &str) {
    let token = double.token(&format!("flannel-{}", host.number), Rule::flannel());
    fs::write(host.dir.join("kubeconfig"), double.kubeconfig(&token)).unwrap();
    fs::write(host.dir.join("net-conf.json"), conf).unwrap();
}

/// An agent on a host that was admitted.
pub fn agent(host: &Host, more: &[&str]) -> Agent {
    let files = [
        format!("--kubeconfig-file={}", host.dir.join("kubeconfig").display()),
        format!("--net-config-path={}", host.dir.join("net-conf.json").display()),
    ];
    let mut flags = vec!["--kube-subnet-mgr", "--ip-masq"];
    flags.extend(files.iter().map(String::as_str));
    flags.extend(more);
    host.agent_in(&flags, &[("NODE_NAME", &name(host))])
}

fn forwarding(host: &Host, device: &str) -> Vec<(String, String)> {
    let fdb = host.json(&format!("bridge -j fdb show dev {device}"));
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let mut all: Vec<_> =
        fdb.as_array().unwrap().iter().map(|entry| (text(entry, "mac"), text(entry, "dst"))).collect();
    all.sort();
    all
}

fn has_route(host: &Host, subnet: &str) -> bool {
    let family = if subnet.contains(':') { "-6" } else { "-4" };
    !host.sh(&format!("ip {family} route show {subnet}")).is_empty()
}

fn holds(what: &str, mut condition: impl FnMut() -> bool) {
    until(what, || if condition() { Ok(()) } else { Err("not yet".to_owned()) });
}

#[test]
fn nodes_reach_each_other_and_say_what_flannel_says() {
    let cluster = Cluster::new(3, DUAL);
    let agents = cluster.start();
    let hosts = &cluster.world.hosts;
    for host in hosts {
        assert_eq!(host.env("FLANNEL_SUBNET"), format!("10.244.{}.1/24", host.number));
        assert_eq!(host.env("FLANNEL_IPV6_SUBNET"), format!("fd00:10:0:{}::1/64", host.number));
        for peer in hosts.iter().filter(|peer| peer.number != host.number) {
            for key in ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"] {
                let address = peer.subnet(key).network();
                let from = until("the tunnel to carry traffic", || host.greet(peer, address));
                assert_eq!(from, host.subnet(key).network(), "no address translation inside");
            }
        }
        let mac = |device: &str| host.json(&format!("ip -j link show {device}"))[0]["address"].clone();
        let data = |device| format!("{{\"VNI\":1,\"VtepMAC\":{}}}", mac(device));
        for (suffix, want) in [
            ("kube-subnet-manager", "true".to_owned()),
            ("backend-type", "vxlan".to_owned()),
            ("backend-data", data("flannel.1")),
            ("backend-v6-data", data("flannel-v6.1")),
            ("public-ip", host.public()),
            ("public-ipv6", host.public6()),
        ] {
            assert_eq!(cluster.annotation(host, suffix), Some(want), "{suffix}");
        }
        holds("the condition", || {
            let node = cluster.double.get(&NODES, &name(host)).unwrap();
            let conditions = node["status"]["conditions"].as_array().unwrap().clone();
            let kept = conditions.iter().any(|c| c["type"] == "Ready");
            kept && conditions.iter().any(|c| {
                c["type"] == "NetworkUnavailable"
                    && c["status"] == "False"
                    && c["reason"] == "FlannelIsUp"
                    && c["message"] == "Flannel is running on this node"
            })
        });
    }
    // No request went beyond flannel's rights.
    let refused = cluster.double.seen().into_iter().filter(|seen| seen.code == 403).count();
    assert_eq!(refused, 0);

    // After a restart a device that is gone comes back with the address that peers know (flannel.md 4.2).
    let (host, peer) = (&hosts[0], &hosts[1]);
    let before = cluster.annotation(host, "backend-data");
    let mut agents = agents.into_iter();
    assert_eq!(agents.next().unwrap().terminate(), 0);
    host.sh("ip link del flannel.1");
    fs::remove_file(host.dir.join("log")).unwrap();
    let again = cluster.agent(host, &[]);
    again.ready();
    assert_eq!(cluster.annotation(host, "backend-data"), before);
    until("traffic", || host.greet(peer, peer.subnet("FLANNEL_SUBNET").network()));

    // Own annotations that somebody edits are ours again; what an operator may say stays, and is not local.
    cluster.annotate("node1", "backend-data", json!("nonsense"));
    holds("the own data again", || cluster.annotation(host, "backend-data") == before);
    cluster.annotate("node1", "public-ip-overwrite", json!("192.0.2.77"));
    holds("the overwritten address", || {
        cluster.annotation(host, "public-ip").as_deref() == Some("192.0.2.77")
            && forwarding(peer, "flannel.1").iter().any(|(_, dst)| dst == "192.0.2.77")
    });
    let local = &host.json("ip -d -j link show flannel.1")[0]["linkinfo"]["info_data"]["local"];
    assert_eq!(*local, Value::from(host.public()));
    let writes = cluster.double.count("patch", "nodes/status");
    cluster.annotate("node1", "public-ip-overwrite", Value::Null);
    holds("the own address again", || cluster.annotation(host, "public-ip") == Some(host.public()));
    assert!(cluster.double.count("patch", "nodes/status") - writes < 4, "it does not go on writing");
}

#[test]
fn what_nodes_say_reaches_every_peer_family_by_family() {
    let cluster = Cluster::new(2, DUAL);
    cluster.stranger("stranger", &["10.244.9.0/24", "fd00:10:0:9::/64"], 99);
    let _agents = cluster.start();
    let hosts = &cluster.world.hosts;
    let all = |what: &str, mut condition: Box<dyn FnMut(&Host) -> bool>| {
        hosts.iter().for_each(|host| holds(what, || condition(host)));
    };
    let entry = |mac: &str, dst: &str| (mac.to_owned(), dst.to_owned());
    let (v4, v6) = (entry("8e:00:00:00:04:63", "192.0.2.99"), entry("8e:00:00:00:06:63", "2001:db8::99"));
    let has = |device: &'static str, entry: (String, String)| -> Box<dyn FnMut(&Host) -> bool> {
        Box::new(move |host| forwarding(host, device).contains(&entry))
    };
    all("both halves", has("flannel.1", v4.clone()));
    all("both halves", has("flannel-v6.1", v6));
    // A change of the IPv6 half alone (F-51).
    cluster.annotate("stranger", "backend-v6-data", json!("{\"VNI\":1,\"VtepMAC\":\"8e:00:00:00:06:64\"}"));
    all("the new half", has("flannel-v6.1", entry("8e:00:00:00:06:64", "2001:db8::99")));
    all("the other half", has("flannel.1", v4.clone()));
    // A half that cannot be read keeps what it was, is named, and costs the other half nothing.
    cluster.annotate("stranger", "backend-v6-data", json!("{\"VNI\":1,"));
    cluster.annotate("stranger", "public-ip", json!("192.0.2.98"));
    all("the good half", has("flannel.1", entry("8e:00:00:00:04:63", "192.0.2.98")));
    all("the last good half", has("flannel-v6.1", entry("8e:00:00:00:06:64", "2001:db8::99")));
    for host in hosts {
        holds("its name in the log", || {
            fs::read_to_string(host.dir.join("log")).unwrap().contains("Node stranger: annotation")
        });
    }
    // Another Node of the same name with another pod CIDR (F-52).
    cluster.double.delete(&NODES, "stranger").unwrap();
    all("the route to go", Box::new(|host| !has_route(host, "10.244.9.0/24")));
    cluster.stranger("stranger", &["10.244.8.0/24", "fd00:10:0:8::/64"], 99);
    all("the new route", Box::new(|host| has_route(host, "10.244.8.0/24")));
    assert!(hosts.iter().all(|host| !has_route(host, "10.244.9.0/24")));
    // One that stops taking part (F-61).
    cluster.annotate("stranger", "kube-subnet-manager", Value::Null);
    all("the route to go", Box::new(|host| !has_route(host, "10.244.8.0/24")));
}

#[test]
fn a_bad_node_is_named_and_costs_nobody_else_anything() {
    let cluster = Cluster::new(2, DUAL);
    let bad = [
        ("everything", vec!["0.0.0.0/0"]),
        ("taker", vec!["10.244.2.0/24", "fd00:10:0:7::/64"]),
        ("outside", vec!["192.168.7.0/24"]),
        ("three", vec!["10.244.70.0/24", "fd00:10:0:70::/64", "10.244.71.0/24"]),
        ("twin-a", vec!["10.244.30.0/24"]),
        ("twin-b", vec!["10.244.30.0/24"]),
        ("ours", vec!["10.244.1.0/24"]),
        ("none", vec![]),
    ];
    for (number, (node, cidrs)) in bad.iter().enumerate() {
        cluster.stranger(node, cidrs, 100 + number as u8);
    }
    // As many annotations as an API server takes: 256 KiB.
    let mut heap = full_node("heap", &["10.244.40.0/24"], "192.0.2.140");
    for n in 0..6_000 {
        heap["metadata"]["annotations"][format!("example.org/{n}")] = json!("x".repeat(20));
    }
    cluster.double.create(&NODES, heap).unwrap();
    let _agents = cluster.start();
    let (one, two) = (&cluster.world.hosts[0], &cluster.world.hosts[1]);
    for key in ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"] {
        until("the good peer", || one.greet(two, two.subnet(key).network()));
    }
    let log = fs::read_to_string(one.dir.join("log")).unwrap();
    for (node, _) in &bad {
        // Of two with the same the older is served.
        if *node != "twin-a" {
            assert!(log.contains(&format!("Node {node}")), "{node} is named: {log}");
        }
    }
    let routes = one.sh("ip -4 route") + &one.sh("ip -6 route");
    for wrong in ["192.168.7.0", "10.244.71.0", "10.244.70.0", "via 192.0.2.101"] {
        assert!(!routes.contains(wrong), "{routes}");
    }
    let default: Vec<&str> = routes.lines().filter(|line| line.starts_with("default")).collect();
    assert_eq!(default.len(), 2, "{routes}");
    assert!(has_route(one, "10.244.30.0/24") && has_route(one, "fd00:10:0:7::/64"), "{routes}");
}

#[test]
fn an_outage_of_the_api_is_survived_and_made_up_for() {
    let cluster = Cluster::new(2, DUAL);
    cluster.stranger("stranger", &["10.244.9.0/24", "fd00:10:0:9::/64"], 99);
    let mut agents = cluster.start();
    let (one, two) = (&cluster.world.hosts[0], &cluster.world.hosts[1]);
    holds("the stranger's route", || has_route(one, "10.244.9.0/24"));
    cluster.double.shut().unwrap();
    cluster.double.delete(&NODES, "stranger").unwrap();
    cluster.stranger("newcomer", &["10.244.10.0/24", "fd00:10:0:a::/64"], 98);
    cluster.double.compact();
    // What is deleted meanwhile comes back without the API, and nothing goes.
    one.sh("ip route flush proto 76");
    one.sh("ip link del flannel-v6.1");
    let target = two.subnet("FLANNEL_SUBNET").network();
    until("the repaired way", || one.greet(two, target));
    until("the repaired way in IPv6", || one.greet(two, two.subnet("FLANNEL_IPV6_SUBNET").network()));
    holds("the stranger's route again", || has_route(one, "10.244.9.0/24"));
    cluster.double.open().unwrap();
    holds("what happened meanwhile", || has_route(one, "10.244.10.0/24") && !has_route(one, "10.244.9.0/24"));
    assert!(agents.iter_mut().all(Agent::alive));
    assert!(cluster.double.list(&EVENTS).is_empty(), "flannel's role may not write events");
    // Ping the other way, for the neighbours of both.
    let back: IpAddr = one.subnet("FLANNEL_SUBNET").network();
    until("the way back", || two.greet(one, back));
}
