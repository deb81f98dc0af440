//! Sizes of the programs that are shipped.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use crate::figure::{Figure, Goal, Table};
use crate::{Options, Result};

const MIB: f64 = (1 << 20) as f64;

/// The measurement.
pub fn run(options: &Options) -> Result<Table> {
    let mut table = Table::new("size", "programs of `cargo xtask dist`, MiB");
    for (program, limit) in [("loden", 16.0), ("loden-cni", 2.0)] {
        let bytes = std::fs::metadata(options.program(program)?)?.len();
        table.figures.push(Figure::alone(program, bytes as f64 / MIB, Goal::AtMost(limit)));
    }
    if options.reference.join("bridge").exists() {
        let dir = options.folder("installed")?;
        let program = options.program("loden-cni")?;
        let done = Command::new(&program).args(["install", "--bin-dir"]).arg(&dir).status()?;
        if !done.success() {
            return Err(format!("{} install: {done}", program.display()).into());
        }
        let (ours, other) = (installed(&dir)?, installed(&options.reference)?);
        let what = "all plugins as installed, beside the reference's directory";
        table.figures.push(Figure::beside(what, ours.into(), other.into(), Goal::AtMost(0.05)));
    } else {
        table.skipped.push(format!("installed size: no reference in {}", options.reference.display()));
    }
    Ok(table)
}

/// What a directory of plugins takes: a file with several names counts once.
fn installed(dir: &Path) -> Result<f64> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let meta = entry?.path().symlink_metadata()?;
        files.insert((meta.dev(), meta.ino()), meta.len());
    }
    Ok(files.values().sum::<u64>() as f64 / MIB)
}
