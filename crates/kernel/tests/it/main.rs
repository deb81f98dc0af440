//! The room against the real kernel, in namespaces of its own; `ip`, `bridge` and `nft` are the witnesses.

mod socket;

use std::process::Command;

use kernel::Netns;

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
