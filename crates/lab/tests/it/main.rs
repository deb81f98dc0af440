//! The lab on the real kernel, without an agent: hosts, wire, pods, control, and that nothing is left.
//! The pods are connected by Debian's CNI plugins, so that ours are not their own witnesses; the ways
//! between hosts are made by hand with `ip`.

#![expect(clippy::unwrap_used, reason = "helpers of tests, too, may panic")]

mod agents;
mod gone;
mod pods;
mod reach;
mod whole;

use std::process::{Command, Output};

use lab::{Builder, Lab};

/// The lab's command line without an agent, built by cargo for this test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_lab-standin");

/// A lab without agents.
fn bare() -> Builder {
    Lab::builder(PROGRAM).without_agents()
}

/// Says why a test cannot run here; gives whether it can.
fn able(test: &str) -> bool {
    // SAFETY is not at stake: this asks procfs who we are.
    let root = std::fs::read_to_string("/proc/self/status")
        .is_ok_and(|s| s.lines().any(|l| l.starts_with("Uid:\t0\t0\t")));
    if !root {
        writeln(&format!("SKIP {test}: needs root"));
    }
    root
}

/// Debian's plugins, if they are installed.
fn debian_plugins(test: &str) -> Option<&'static std::path::Path> {
    let dir = std::path::Path::new("/usr/lib/cni");
    let there = ["bridge", "host-local", "portmap", "loopback"].iter().all(|p| dir.join(p).is_file());
    if !there {
        writeln(&format!("SKIP {test}: needs Debian's containernetworking-plugins in /usr/lib/cni"));
    }
    there.then_some(dir)
}

fn writeln(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Runs the command line.
fn cli(args: &[&str]) -> Output {
    Command::new(PROGRAM).arg("lab").args(args).output().expect("the lab's command line starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
