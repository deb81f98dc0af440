//! What the agent's log looks like, and how much of it there is while something is down.

use std::time::Instant;

use apidouble::{NODES, full_node};
use serde_json::Value;

use crate::kube;
use crate::troubles::etcdctl;
use crate::world::{Etcd, Host, World, has_etcd, until};

const VXLAN: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
/// Tries that would fill a page if each had a line.
const TRIES: u64 = 12;

/// Every line as JSON; each has the keys that are promised, in their order.
fn lines(log: &str) -> Vec<Value> {
    let line = |line: &str| {
        let json: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line.starts_with(r#"{"v":1,"ts":"20"#), "{line}");
        for (key, is) in [
            ("ts", json["ts"].as_str().is_some_and(|ts| ts.len() == 27 && ts.ends_with('Z'))),
            ("level", ["error", "warn", "info"].contains(&json["level"].as_str().unwrap_or_default())),
            ("file", json["file"].as_str().is_some_and(|file| file.ends_with(".rs"))),
            ("line", json["line"].as_u64().is_some_and(|line| line > 0)),
            ("msg", json["msg"].as_str().is_some_and(|msg| !msg.is_empty())),
        ] {
            assert!(is, "{key}: {line}");
        }
        json
    };
    log.lines().map(line).collect()
}

/// Counts the packets that ask for a connection, on the wire.
struct Tries<'a>(&'a Host);

impl Tries<'_> {
    fn of(host: &Host, port: u16) -> Tries<'_> {
        for command in [
            "add table inet tries",
            "add counter inet tries syn",
            "add chain inet tries out { type filter hook output priority 0 ; }",
            &format!(
                "add rule inet tries out tcp dport {port} tcp flags & (syn|ack) == syn counter name syn"
            ),
        ] {
            host.sh(&format!("nft {command}"));
        }
        Tries(host)
    }

    fn now(&self) -> u64 {
        let counter = self.0.json("nft -j list counter inet tries syn");
        counter["nftables"][1]["counter"]["packets"].as_u64().unwrap_or_default()
    }

    /// Waits until there are so many.
    fn reach(&self, many: u64) {
        until("the store to be tried again and again", || match self.now() {
            now if now >= many => Ok(()),
            now => Err(format!("{now} tries")),
        });
    }
}

#[test]
fn a_store_that_is_away_costs_a_line_and_its_return_another() {
    if !has_etcd("a_store_that_is_away_costs_a_line") {
        return;
    }
    let world = World::new(2);
    let (registry, host) = (&world.hosts[0], &world.hosts[1]);
    let mut etcd = Etcd::on(registry, "192.0.2.11", None);
    etcdctl(registry, &["put", "/coreos.com/network/config", VXLAN]);
    let flags = ["--etcd-endpoints=http://192.0.2.11:2379", "--log-format=json"];
    let agent = host.agent_in(&flags, &[]);
    agent.ready();
    let before = lines(&agent.log());
    let ready = before.iter().find(|line| line["topic"] == "ready").expect("it said that it is ready");
    assert_eq!((&ready["state"], &ready["peers"]), (&"begins".into(), &0.into()), "{ready}");

    etcd.stop();
    let tries = Tries::of(host, 2379);
    let since = Instant::now();
    until("the store to be missed", || {
        let away = lines(&agent.log()).into_iter().find(|line| line["topic"] == "watch");
        away.filter(|line| line["state"] == "begins").map(drop).ok_or_else(|| agent.log())
    });
    tries.reach(TRIES);
    let during = lines(&agent.log());
    let new = &during[before.len()..];
    assert!(new.len() <= 3, "{} lines in {:?}: {new:#?}", new.len(), since.elapsed());

    etcd.start_again(registry);
    until("the store to be back", || {
        let back = lines(&agent.log()).into_iter().rfind(|line| line["topic"] == "watch");
        back.filter(|line| line["state"] == "over").map(drop).ok_or_else(|| agent.log())
    });
    let minutes = (since.elapsed().as_secs_f64() / 60.0).max(1.0);
    let all = lines(&agent.log()).len() - before.len();
    println!("{all} lines in {minutes:.1} minutes");
    assert!(all as f64 <= 10.0 * minutes, "{all} lines: {}", agent.log());
}

#[test]
fn an_api_server_that_comes_and_goes_does_not_fill_a_page() {
    let world = World::new(2);
    let double = kube::api_server(&world.hosts[0]);
    let host = &world.hosts[1];
    double.create(&NODES, full_node("node2", &["10.244.2.0/24"], &host.public())).unwrap();
    kube::admit(&double, host, VXLAN);
    let agent = kube::agent(host, &["--log-format=json"]);
    agent.ready();
    let before = lines(&agent.log()).len();
    let tries = Tries::of(host, 6443);
    let since = Instant::now();
    for _ in 0..5 {
        double.shut().unwrap();
        tries.reach(tries.now() + 2);
        double.open().unwrap();
        let opened = Instant::now();
        // A watch without events is silent for a minute: asked is whether it was heard since, however late we ask.
        until("the API to be heard", || {
            let open = opened.elapsed().as_millis();
            let (_, json) = host.status_json();
            match json["store"]["heard_ms"].as_u64() {
                Some(ago) if u128::from(ago) < open => Ok(()),
                _ => Err(json["store"].to_string()),
            }
        });
    }
    let all = &lines(&agent.log())[before..];
    println!("{} lines in {:?}, {} tries", all.len(), since.elapsed(), tries.now());
    assert!(all.len() <= 10, "{all:#?}");
}

#[test]
fn text_is_the_default_and_a_word_that_is_none_is_refused() {
    let world = World::with_config(1, VXLAN);
    let host = &world.hosts[0];
    let agent = host.agent(&[]);
    agent.ready();
    assert!(agent.log().starts_with("I1") || agent.log().starts_with("I0"), "{}", agent.log());
    assert!(!agent.log().contains("topic="), "fields are for programs: {}", agent.log());
    drop(agent);
    std::fs::remove_file(host.dir.join("log")).unwrap();
    let agent = host.agent_in(&[], &[("LODEN_STORE", host.store()), ("LODEN_LOG_FORMAT", "json")]);
    agent.ready();
    lines(&agent.log());
    drop(agent);
    let agent = host.agent(&["--log-format=xml"]);
    agent.says("invalid value for flag -log-format: \"xml\" must be \"text\" or \"json\"");
    assert_eq!(agent.ends(), 2);
}
