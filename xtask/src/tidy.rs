//! House rules that no compiler checks: arrows between rooms, purity, budgets, texts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::say;

/// Which rooms a room may use. An arrow that is not here is a mistake in one of the two.
const ARROWS: &[(&str, &[&str])] = &[
    ("apidouble", &[]),
    ("bench", &["kernel", "lab", "model", "plan"]),
    ("benches", &["apidouble", "kernel", "model", "plan"]),
    ("cases", &["kernel", "model", "plan", "tunnel"]),
    ("fastpath", &[]),
    ("memmove", &[]),
    ("model", &[]),
    ("plan", &["model"]),
    ("kernel", &["model", "plan"]),
    ("store", &["model"]),
    ("cni", &["kernel", "memmove", "model", "plan"]),
    ("lab", &["kernel", "model", "plan"]),
    ("faults", &["kernel", "lab", "sim"]),
    ("fuzz", &["kernel", "model", "sim", "tunnel"]),
    ("packaging", &[]),
    ("pure", &["cases"]),
    ("sim", &["model", "plan"]),
    ("tunnel", &["model"]),
    ("node", &["bench", "fastpath", "kernel", "lab", "memmove", "model", "plan", "store", "tunnel"]),
];

/// What a plugin call must not pay for.
const NOT_IN_CNI: &[&str] = &["tokio", "hyper", "rustls", "ring", "aws-lc-rs", "tonic", "clap", "rusqlite"];

/// What measures, and is no part of what is measured.
const NOT_SHIPPED: &[&str] = &["criterion"];

/// Rooms of values in, values out, and the part of one.
const PURE: &[&str] = &[
    "benches/cases/src/",
    "crates/model/src/",
    "crates/plan/src/",
    "crates/fastpath/src/layout",
    "crates/node/src/capture/filter",
    "crates/node/src/capture/packet",
    "crates/node/src/capture/pcapng",
    "crates/node/src/fast/ports",
    "crates/node/src/trace/picture",
    "crates/sim/src/",
    "crates/tunnel/src/packet",
    "crates/tunnel/src/peers",
];
const IMPURE: &[&str] = &[
    "std::fs",
    "std::thread",
    "TcpStream",
    "UdpSocket",
    "Instant::now",
    "SystemTime::now",
    "std::process",
    "std::env",
];

/// Lines of a file without its tests.
const FILE_LINES: usize = 600;

/// Texts that would tell about one machine or one session.
const NOT_IN_TREE: &[&str] = &["/work/", "/root/", "TODO", "FIXME", "XXX"];

pub fn root() -> Result<PathBuf, String> {
    let output = Command::new("cargo")
        .args(["locate-project", "--workspace", "--message-format", "plain"])
        .output()
        .map_err(|error| format!("start cargo: {error}"))?;
    let manifest = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    manifest.parent().map(Path::to_owned).ok_or_else(|| "not inside the workspace".to_owned())
}

pub fn run() -> Result<(), String> {
    let root = root()?;
    let mut faults = Vec::new();
    for (room, allowed) in ARROWS {
        arrows(room, allowed, &mut faults)?;
    }
    cni_is_small(&mut faults)?;
    tools_stay_here(&mut faults)?;
    let mut files = Vec::new();
    collect(&root, &mut files)?;
    for path in &files {
        let Ok(text) = fs::read_to_string(path) else { continue };
        let name = path.strip_prefix(&root).unwrap_or(path).to_string_lossy().into_owned();
        check_file(&name, &text, &mut faults);
        if name.starts_with("docs/design/") || name == "ARCHITECTURE.md" {
            named_files_exist(&root, &name, &text, &mut faults);
        }
    }
    for fault in &faults {
        say(&format!("tidy: {fault}\n"));
    }
    if faults.is_empty() { Ok(()) } else { Err(format!("{} house rules broken", faults.len())) }
}

fn cargo_tree(arguments: &[&str]) -> Result<Vec<String>, String> {
    let output = Command::new("cargo")
        .args(["tree", "--edges", "normal", "--prefix", "none", "--offline"])
        .args(arguments)
        .output()
        .map_err(|error| format!("start cargo tree: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().skip(1).filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
}

fn arrows(room: &str, allowed: &[&str], faults: &mut Vec<String>) -> Result<(), String> {
    for used in cargo_tree(&["-p", room, "--depth", "1"])? {
        let ours = ARROWS.iter().any(|(name, _)| *name == used);
        if ours && !allowed.contains(&used.as_str()) {
            faults.push(format!("{room} must not use {used}: the arrows of ARCHITECTURE.md point one way"));
        }
    }
    Ok(())
}

fn cni_is_small(faults: &mut Vec<String>) -> Result<(), String> {
    for used in cargo_tree(&["-p", "cni"])? {
        if NOT_IN_CNI.contains(&used.as_str()) {
            faults.push(format!("cni links {used}: a plugin call would pay for what only the agent needs"));
        }
    }
    Ok(())
}

fn tools_stay_here(faults: &mut Vec<String>) -> Result<(), String> {
    for program in ["node", "cni"] {
        for used in cargo_tree(&["-p", program])? {
            if NOT_SHIPPED.contains(&used.as_str()) {
                faults.push(format!("{program} links {used}, which is for measuring it"));
            }
        }
    }
    Ok(())
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<(), String> {
    let entries = fs::read_dir(dir).map_err(|error| format!("read {}: {error}", dir.display()))?;
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() {
            if !matches!(name.as_str(), "target" | "dist" | ".git" | "corpus") {
                collect(&path, files)?;
            }
        } else if [".rs", ".md", ".toml", ".yml", ".sh"].iter().any(|end| name.ends_with(end))
            || name == "run"
        {
            files.push(path);
        }
    }
    Ok(())
}

fn check_file(name: &str, text: &str, faults: &mut Vec<String>) {
    if name != "xtask/src/tidy.rs" {
        // `/proc/PID/root/` is the kernel's name for a process's root, not a place on this machine.
        let text = text.replace("}/root/", "");
        for bad in NOT_IN_TREE.iter().filter(|bad| text.contains(**bad)) {
            faults.push(format!("{name}: contains {bad:?}"));
        }
    }
    if !name.ends_with(".rs") {
        return;
    }
    let is_test = name.contains("/tests/") || name.ends_with("tests.rs");
    if !text.trim_start().starts_with("//!") && !name.ends_with("/tests.rs") {
        faults.push(format!("{name}: does not say in a module doc what it is"));
    }
    let body = text.split("\n#[cfg(test)]").next().unwrap_or(text);
    let lines = body.lines().count();
    if lines > FILE_LINES && !is_test {
        faults.push(format!("{name}: {lines} lines without tests, more than {FILE_LINES}; split it"));
    }
    let pure = PURE.iter().any(|place| name.starts_with(place));
    if pure && !is_test {
        for bad in IMPURE.iter().filter(|bad| body.contains(**bad)) {
            faults.push(format!("{name}: a pure room must not use {bad}"));
        }
    }
}

/// Every `crates/….rs` a design note or the architecture names must be there.
fn named_files_exist(root: &Path, name: &str, text: &str, faults: &mut Vec<String>) {
    for word in text.split(|c: char| c.is_whitespace() || "`(),:;|".contains(c)) {
        let file = word.starts_with("crates/") || word.starts_with("docs/") || word.starts_with("xtask/");
        if file && !word.contains(['*', '{', '<', '…']) && !root.join(word.trim_end_matches('.')).exists() {
            faults.push(format!("{name}: names {word}, which does not exist"));
        }
    }
}
