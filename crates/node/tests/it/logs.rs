//! What the agent's log looks like, and how much of it there is while something is down.

use serde_json::Value;

use crate::troubles::etcdctl;
use crate::world::{Etcd, World, has_etcd, until};

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
    // Who does not listen is asked in vain, a packet for each try.
    for command in [
        "add table inet tries",
        "add counter inet tries syn",
        "add chain inet tries out { type filter hook output priority 0 ; }",
        "add rule inet tries out tcp dport 2379 tcp flags & (syn|ack) == syn counter name syn",
    ] {
        host.sh(&format!("nft {command}"));
    }
    let since = std::time::Instant::now();
    until("the store to be missed", || {
        let away = lines(&agent.log()).into_iter().find(|line| line["topic"] == "watch");
        away.filter(|line| line["state"] == "begins").map(drop).ok_or_else(|| agent.log())
    });
    until("the store to be tried again and again", || {
        let tries =
            host.json("nft -j list counter inet tries syn")["nftables"][1]["counter"]["packets"].clone();
        if tries.as_u64() >= Some(TRIES) { Ok(()) } else { Err(format!("{tries} tries")) }
    });
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
