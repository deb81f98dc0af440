//! How long a contributor waits: a clean debug build of the programs, and from an edit of a pure crate to
//! the end of its tests. In a copy of the tree, so that nothing of the contributor's is touched.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::figure::{Figure, Goal, Samples, Table};
use crate::{Options, Result, say};

const EDITS: usize = 3;

/// The measurement. Takes minutes.
pub fn run(options: &Options) -> Result<Table> {
    let copy = options.folder("build")?;
    let files = Command::new("git").args(["ls-files", "-z", "--full-name", ":/"]).output()?;
    let root = Command::new("git").args(["rev-parse", "--show-toplevel"]).output()?;
    let root = String::from_utf8(root.stdout)?;
    for name in files.stdout.split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let name = std::str::from_utf8(name)?;
        let (from, to) = (Path::new(root.trim()).join(name), copy.join(name));
        if let Some(folder) = to.parent() {
            std::fs::create_dir_all(folder)?;
        }
        // A file that was removed but not yet committed is not part of the tree.
        if from.exists() {
            std::fs::copy(from, to)?;
        }
    }
    let mut table = Table::new("build", "seconds, debug profile, 2 jobs");
    cargo(&copy, &["fetch"])?;
    let clean = cargo(&copy, &["build", "-j2"])?;
    table.figures.push(Figure::alone(
        "clean build of loden and loden-cni",
        clean.as_secs_f64(),
        Goal::AtMost(240.0),
    ));
    for (package, file) in [("model", "crates/model/src/lease.rs"), ("plan", "crates/plan/src/state.rs")] {
        cargo(&copy, &["test", "-j2", "-p", package])?;
        let mut times = Samples::default();
        for edit in 0..options.rounds.unwrap_or(EDITS) {
            let mut source = OpenOptions::new().append(true).open(copy.join(file))?;
            writeln!(source, "\n/// An edit.\npub const EDIT_{edit}: usize = {edit};")?;
            times.0.push(cargo(&copy, &["test", "-j2", "-p", package])?.as_secs_f64());
        }
        table.figures.push(Figure::alone(
            format!("edit {package}, its tests have run"),
            times,
            Goal::AtMost(5.0),
        ));
    }
    Ok(table)
}

fn cargo(folder: &Path, arguments: &[&str]) -> Result<Duration> {
    say(&format!("+ cargo {}\n", arguments.join(" ")));
    let mut command = Command::new("cargo");
    command.args(arguments).current_dir(folder).env("CARGO_TARGET_DIR", folder.join("target"));
    // Not what the run of cargo that started us has set.
    for (name, _) in
        std::env::vars().filter(|(name, _)| name.starts_with("CARGO_PKG_") || name == "RUSTFLAGS")
    {
        command.env_remove(name);
    }
    let start = Instant::now();
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output()?;
    let time = start.elapsed();
    let (said, did) = (String::from_utf8_lossy(&output.stderr), arguments.join(" "));
    if !output.status.success() {
        return Err(format!("cargo {did}: {said}").into());
    }
    // An edit that cargo does not see would be measured as very fast.
    if arguments[0] != "fetch" && !said.contains("Compiling") {
        return Err(format!("cargo {did} compiled nothing").into());
    }
    Ok(time)
}
