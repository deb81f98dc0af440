//! What is handed out, checked by those who will read it: the schema of Kubernetes, containerd, Docker,
//! podman, Helm, kustomize, systemd.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests fail by panicking and print skips")]

mod chart;
mod containers;
mod images;
mod manifests;
mod share;
mod units;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The top of the project.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("read {path}: {error}"))
}

/// Whether a program is there; says so if not.
fn there(test: &str, program: &str) -> bool {
    let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .any(|dir| dir.join(program).is_file());
    if !found {
        println!("SKIP {test}: {program} is not installed");
    }
    found
}

/// The programs as the tests of the workspace build them; `None` after saying that they are not.
fn programs(test: &str) -> Option<PathBuf> {
    let dir = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().to_owned();
    if ["loden", "loden-cni"].iter().all(|program| dir.join(program).is_file()) {
        return Some(dir);
    }
    println!("SKIP {test}: the programs are not built; run: cargo build --workspace --bins");
    None
}

/// Runs a command that must succeed; gives its standard output.
fn run(program: &str, words: &[&str]) -> String {
    let output = output(program, words);
    assert!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn output(program: &str, words: &[&str]) -> Output {
    Command::new(program).args(words).output().unwrap_or_else(|error| panic!("start {program}: {error}"))
}
