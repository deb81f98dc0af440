//! The room against the real kernel, in namespaces of its own; `ip`, `bridge` and `nft` are the witnesses.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests fail by panicking and print skips")]

mod iptables;
mod monitor;
mod nft;
mod rtnl;
mod socket;
mod state;
mod twin;
mod wireguard;
mod xfrm;

use std::process::Command;

use kernel::Netns;
use serde_json::Value;

/// A fresh namespace with `lo` down and nothing else.
fn fresh() -> Netns {
    Netns::create().expect("making a network namespace needs root")
}

/// What a program prints inside a namespace; fails the test if the program fails.
fn run_in(netns: &Netns, command: &str) -> String {
    let words: Vec<&str> = command.split_whitespace().collect();
    let output = netns.run(|| Command::new(words[0]).args(&words[1..]).output()).unwrap().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What a program that prints JSON says, inside a namespace.
fn json_in(netns: &Netns, command: &str) -> Value {
    let text = run_in(netns, command);
    if text.trim().is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() }
}

/// Checks that every member of `want` is in `have` with an equal value; arrays must agree in full.
fn assert_has(have: &Value, want: &Value) {
    fn has(have: &Value, want: &Value) -> bool {
        match (have, want) {
            (Value::Object(h), Value::Object(w)) => {
                w.iter().all(|(k, v)| h.get(k).is_some_and(|h| has(h, v)))
            }
            (Value::Array(h), Value::Array(w)) => {
                h.len() == w.len() && h.iter().zip(w).all(|(h, w)| has(h, w))
            }
            _ => have == want,
        }
    }
    assert!(has(have, want), "expected {want:#}\nfound {have:#}");
}

#[test]
fn a_visit_to_a_namespace_ends_where_it_began() {
    let home = Netns::current().unwrap().id().unwrap();
    let away = fresh();
    let here = || Netns::current().unwrap().id().unwrap();
    assert_eq!(away.visit(here).unwrap(), away.id().unwrap());
    assert_eq!(here(), home);
    let panicked = std::panic::catch_unwind(|| away.visit(|| panic!("inside")));
    assert!(panicked.is_err());
    assert_eq!(here(), home);
}
