//! The short slice of the catalogue, with light traffic: what must not happen at all does not. Times are judged by
//! `cargo xtask faults` alone, on a machine that does nothing else. Needs `loden` and `loden-cni` beside this crate's
//! own program.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests fail by panicking and print skips")]

mod named;

use std::path::Path;

use faults::promise::Clock;
use faults::report::Verdict;
use faults::run::{self, BACKENDS, Size};
use faults::scene::Setup;
use faults::table::{FAULTS, Fault, Way};
use faults::traffic::Load;
use lab::Stack;

/// Why a test cannot run here, if so.
fn missing(etcd: bool) -> Option<&'static str> {
    let loden = Path::new(env!("CARGO_BIN_EXE_loden-faults")).with_file_name("loden");
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    if !status.lines().any(|line| line.starts_with("Uid:\t0\t0\t")) {
        return Some("needs root");
    }
    if etcd && !Path::new("/usr/bin/etcd").exists() {
        return Some("etcd is not installed (package etcd-server)");
    }
    let there = loden.is_file() && loden.with_file_name("loden-cni").is_file();
    (!there).then_some("needs loden and loden-cni: cargo build -p node -p cni")
}

fn slice(test: &str, backend: &str, stack: Stack, etcd: bool, rows: &[&str]) {
    if let Some(why) = missing(etcd) {
        println!("SKIP {test}: {why}");
        return;
    }
    let (_, config) = BACKENDS.iter().find(|(name, _)| *name == backend).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_loden-faults")).with_file_name("loden");
    let setup = Setup { program, backend: (*config).to_owned(), stack, etcd, load: Load::LIGHT };
    let size = Size { seed: 1, rounds: None, short: true, clock: Clock::Ignored };
    let wanted = |fault: &&Fault| {
        let here = matches!(fault.way, Way::Here(act) if run::fits(&act, backend, etcd));
        here && (rows.is_empty() || rows.contains(&fault.row))
    };
    let faults: Vec<&'static Fault> = FAULTS.iter().filter(wanted).collect();
    assert!(!faults.is_empty());
    let outcomes =
        run::scene(&setup, backend, &faults, &size, &mut |outcome| println!("{}", outcome.line())).unwrap();
    let broken: Vec<String> =
        outcomes.iter().filter(|o| o.verdict != Verdict::Kept).map(faults::report::Outcome::line).collect();
    assert_eq!(broken, [""; 0]);
}

#[test]
fn vxlan_in_both_families() {
    slice("vxlan_in_both_families", "vxlan", Stack::Dual, false, &[]);
}

#[test]
fn vxlan_in_ipv6_with_etcd() {
    slice("vxlan_in_ipv6_with_etcd", "vxlan", Stack::V6, true, &[]);
}

#[test]
fn host_gw_in_both_families() {
    let rows = ["R01", "R08", "R11", "R13", "R29"];
    slice("host_gw_in_both_families", "host-gw", Stack::Dual, false, &rows);
}

#[test]
fn udp_in_ipv4() {
    slice("udp_in_ipv4", "udp", Stack::V4, false, &["R01", "R10", "R11", "R12"]);
}

#[test]
fn wireguard_in_ipv6() {
    slice("wireguard_in_ipv6", "wireguard", Stack::V6, false, &["R01", "R10", "R11", "R12"]);
}
