//! Agents are started, watched, ended; what they say is heard.

use std::time::{Duration, Instant};

use lab::Lab;
use lab::proto::Agent;

use crate::{PROGRAM, able, cli, text};

#[test]
fn agents_are_started_and_heard() {
    if !able("agents_are_started_and_heard") {
        return;
    }
    let plugins = std::env::temp_dir();
    let lab = Lab::builder(PROGRAM).hosts(2).agent_arg("--v=4").cni_bin_dir(&plugins).start().unwrap();
    assert!(matches!(lab.agent(1).unwrap(), Agent::Running { ready: true, .. }));
    // What an agent says goes through a pipe and a thread.
    let lines = |place: &str, count: usize| {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let lines = lab.logs(place).unwrap();
            if lines.len() >= count || Instant::now() > deadline {
                return lines;
            }
        }
    };
    let log = [
        "stand-in started with --iface=eth0 --ip-masq --v=4",
        "store sqlite:/run/loden-lab/store.db",
        "about to be ready",
    ];
    assert_eq!(lines("host2", 3), log);
    assert_eq!(lines("host1", 3), log);
    let why = lab.agent_start(1).unwrap_err().to_string();
    assert_eq!(why, "the agent of host1 is running already");
    lab.agent_kill(1).unwrap();
    lab.agent_stop(2).unwrap();
    let ended = |status: &str| Agent::Exited { status: status.to_owned() };
    assert_eq!(lab.agent(1).unwrap(), ended("signal: 9 (SIGKILL)"));
    assert_eq!(lab.agent(2).unwrap(), ended("signal: 15 (SIGTERM)"));
    let name = lab.client().name();
    let out = cli(&["agent", "restart", "host1", "--name", name]);
    assert!(text(&out.stdout).contains("the agent of host1 is ready after"), "{}", text(&out.stderr));
    assert_eq!(lines("host1", 6), [log, log].concat(), "the log goes on");
}

#[test]
fn a_failing_agent_is_quoted_and_nothing_is_left() {
    if !able("a_failing_agent_is_quoted_and_nothing_is_left") {
        return;
    }
    let builder = Lab::builder(PROGRAM).hosts(1).cni_bin_dir(&std::env::temp_dir());
    let error = builder.clone().agent_env("STANDIN", "dies").start().unwrap_err();
    let want = "the agent of host1 ended with exit status: 3; its last words follow";
    assert_eq!(error.to_string(), want);
    assert_eq!(error.log().last().map(String::as_str), Some("E cannot go on: the stars are wrong"));
    let error = builder.clone().net_conf(r#"{"Backend": {"Type": "nonsense"}}"#).start().unwrap_err();
    let want = "write the network configuration (`loden config put -`) failed: exit status: 1";
    assert_eq!(error.to_string(), want);
    assert_eq!(error.log(), ["loden: Backend.Type \"nonsense\" is unknown"]);
    // The same name is free at once.
    builder.start().unwrap();
}
