//! The rows of `troubles` that need a Kubernetes API, and a boot without one.

use std::fs;
use std::net::TcpListener;
use std::time::Instant;

use apidouble::{Door, Double, NODES, Rule, node};
use kernel::Netns;
use serde_json::json;

use crate::troubles::{is_over, is_said};
use crate::world::{Agent, Host, World, until};

const CONF: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
const USER: &str = "system:serviceaccount:kube-flannel:flannel";
const CIDR: &str = "10.244.7.0/24";

/// An API server on the host, and the files an agent there is given.
struct Kube {
    double: Double,
    token: String,
}

impl Kube {
    fn on(host: &Host) -> Kube {
        let path = host.netns.path();
        let bind = move || {
            let netns = Netns::open(&path).map_err(std::io::Error::other)?;
            netns.run(|| TcpListener::bind("192.0.2.11:6443")).map_err(std::io::Error::other)?
        };
        let double = Double::start(Door::made_by(true, Box::new(bind))).unwrap();
        double.forbid_anonymous();
        let token = double.token(USER, Rule::flannel());
        fs::write(host.dir.join("kubeconfig"), double.kubeconfig(&token)).unwrap();
        fs::write(host.dir.join("net-conf.json"), CONF).unwrap();
        double.create(&NODES, node("one", &[CIDR])).unwrap();
        Kube { double, token }
    }
}

fn agent(host: &Host) -> Agent {
    let flags = [
        "--kube-subnet-mgr".to_owned(),
        "--healthz-port=2402".to_owned(),
        format!("--kubeconfig-file={}", host.dir.join("kubeconfig").display()),
        format!("--net-config-path={}", host.dir.join("net-conf.json").display()),
    ];
    host.agent_in(&flags.each_ref().map(String::as_str), &[("NODE_NAME", "one")])
}

#[test]
fn each_missing_thing_of_a_cluster_is_said_once_and_the_fix_is_noticed_soon() {
    type Act = fn(&Host, &Kube);
    let rows: &[(&str, &str, Act, Act)] = &[
        (
            "no podCIDR",
            "acquire lease: Node one has no podCIDR",
            |_, kube| {
                kube.double.delete(&NODES, "one").unwrap();
                kube.double.create(&NODES, node("one", &[])).unwrap();
            },
            |_, kube| {
                let spec = json!({"spec": {"podCIDR": CIDR, "podCIDRs": [CIDR]}});
                kube.double.merge(&NODES, "one", &spec).unwrap();
            },
        ),
        (
            "no Node",
            "read what this node published before: ",
            |_, kube| drop(kube.double.delete(&NODES, "one").unwrap()),
            |_, kube| drop(kube.double.create(&NODES, node("one", &[CIDR])).unwrap()),
        ),
        (
            "no rights",
            "read what this node published before: ",
            |_, kube| kube.double.grant(USER, &[]),
            |_, kube| kube.double.grant(USER, &Rule::flannel()),
        ),
        (
            "a token that has expired",
            "read what this node published before: ",
            |_, kube| kube.double.expire(&kube.token),
            |_, kube| kube.double.renew(&kube.token),
        ),
        (
            "nobody listens",
            "read what this node published before: ",
            |_, kube| kube.double.shut().unwrap(),
            |_, kube| kube.double.open().unwrap(),
        ),
        (
            "the API takes connections and says nothing",
            "read what this node published before: ",
            |_, kube| kube.double.go_deaf().unwrap(),
            |_, kube| kube.double.open().unwrap(),
        ),
        (
            "no net-conf.json",
            "fetch network config: ",
            |host, _| fs::remove_file(host.dir.join("net-conf.json")).unwrap(),
            |host, _| fs::write(host.dir.join("net-conf.json"), CONF).unwrap(),
        ),
        (
            "a wrong net-conf.json",
            "fetch network config: ",
            |host, _| fs::write(host.dir.join("net-conf.json"), CONF.replace("/16", "/33")).unwrap(),
            |host, _| fs::write(host.dir.join("net-conf.json"), CONF).unwrap(),
        ),
    ];
    for (what, sentence, harm, fix) in rows {
        let world = World::new(1);
        let host = &world.hosts[0];
        let kube = Kube::on(host);
        harm(host, &kube);
        let mut agent = agent(host);
        println!("{what}");
        is_said(host, &mut agent, sentence);
        println!("  {}", host.troubles().trim_end());
        fix(host, &kube);
        is_over(host, &agent, what, Instant::now());
    }
}

#[test]
fn a_node_that_boots_without_the_api_has_its_network() {
    let world = World::new(1);
    let host = &world.hosts[0];
    let kube = Kube::on(host);
    let first = agent(host);
    first.ready();
    let env = fs::read_to_string(host.subnet_file()).unwrap();
    until("the state to be saved", || {
        let files = fs::read_dir(host.state_dir()).map_err(|e| e.to_string())?;
        let saved = files.flatten().any(|file| file.file_name().to_string_lossy().starts_with("last-good."));
        if saved { Ok(()) } else { Err("not yet".to_owned()) }
    });
    let mac = || host.json("ip -j link show flannel.1")[0]["address"].clone();
    let before = mac();
    drop(first);
    kube.double.go_deaf().unwrap();
    // What a boot costs.
    host.sh("ip link del flannel.1");
    host.sh("nft flush ruleset");
    fs::remove_file(host.subnet_file()).unwrap();
    fs::remove_file(host.dir.join("log")).unwrap();
    let start = Instant::now();
    let agent = agent(host);
    agent.ready();
    println!("ready {} ms after the start without an API server", start.elapsed().as_millis());
    assert_eq!(fs::read_to_string(host.subnet_file()).unwrap(), env);
    assert_eq!(mac(), before);
    agent.says("does not answer: this node runs on the state of ");
    kube.double.open().unwrap();
    agent.says("take everything from the store: works again");
    assert_eq!(fs::read_to_string(host.subnet_file()).unwrap(), env);
}
