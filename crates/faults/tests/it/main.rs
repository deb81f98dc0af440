//! The short slice of the catalogue, with light traffic: what must not happen at all does not. Times are judged by
//! `cargo xtask faults` alone, on a machine that does nothing else. Needs `loden` and `loden-cni` beside this crate's
//! own program.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests fail by panicking and print skips")]

mod named;

use std::path::Path;
use std::time::Duration;

use faults::promise::Clock;
use faults::report::Verdict;
use faults::run::{self, BACKENDS, Size};
use faults::scene::Setup;
use faults::soak;
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
    slice_of(test, backend, stack, etcd, false, rows);
}

fn slice_of(test: &str, backend: &str, stack: Stack, etcd: bool, fast: bool, rows: &[&str]) {
    if let Some(why) = missing(etcd) {
        println!("SKIP {test}: {why}");
        return;
    }
    let (_, config) = BACKENDS.iter().find(|(name, _)| *name == backend).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_loden-faults")).with_file_name("loden");
    // This release beside itself: what an exchange does, though not what differs.
    let other = Some(program.clone());
    let setup = Setup { program, other, backend: (*config).to_owned(), stack, etcd, fast, load: Load::LIGHT };
    let size = Size { seed: 1, rounds: None, short: true, clock: Clock::Ignored };
    let wanted = |fault: &&Fault| {
        let here = matches!(fault.way, Way::Here(act) if run::fits(&act, backend, &setup));
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

/// What this machine lacks for the fast path, if so; a build without clang says it by itself.
fn cannot_be_fast() -> Option<&'static str> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let numbers: Vec<u32> = release.split(['.', '-']).map_while(|n| n.parse().ok()).take(2).collect();
    let btf = Path::new("/sys/kernel/btf/vmlinux").exists();
    if !btf || numbers < vec![6, 6] {
        return Some("the fast path needs Linux 6.6 with BTF");
    }
    let bpftool = std::process::Command::new("bpftool").arg("version").output();
    bpftool.is_err().then_some("there is no bpftool, which tells what went fast")
}

fn fast_slice(test: &str, backend: &str, stack: Stack, rows: &[&str]) {
    match cannot_be_fast() {
        Some(why) => println!("SKIP {test}: {why}"),
        None => slice_of(test, backend, stack, false, true, rows),
    }
}

#[test]
fn vxlan_with_the_fast_path() {
    fast_slice("vxlan_with_the_fast_path", "vxlan", Stack::V4, &["R10", "R19"]);
}

#[test]
fn ipv6_alone_with_the_fast_path() {
    fast_slice("ipv6_alone_with_the_fast_path", "vxlan", Stack::V6, &["R10", "R19"]);
}

/// Some seconds of it: a fault a second, and an outage of the store.
#[test]
fn a_soak_with_outages_of_the_store() {
    if let Some(why) = missing(true) {
        println!("SKIP a_soak_with_outages_of_the_store: {why}");
        return;
    }
    let program = Path::new(env!("CARGO_BIN_EXE_loden-faults")).with_file_name("loden");
    let (_, config) = BACKENDS[0];
    let setup = Setup {
        program,
        other: None,
        backend: config.to_owned(),
        stack: Stack::Dual,
        etcd: true,
        fast: false,
        load: Load::LIGHT,
    };
    let soaked = soak::soak(&setup, "vxlan", Duration::from_secs(12), 1).unwrap();
    let seen = &soaked.seen;
    assert!(seen.rounds > 1 && !soaked.outages.is_empty(), "{} {:?}", seen.rounds, soaked.outages);
    let wrong = [&seen.troubles, &seen.foreign, &seen.leaked];
    assert!(wrong.iter().all(|lines| lines.is_empty()), "{wrong:?}");
    assert_eq!(seen.tcp.1, 0, "connections broke");
    assert!(soaked.lines_in_outages() <= soak::LINES, "{:?}", soaked.outages);
}
