//! Sizes of the programs that are shipped.

use crate::figure::{Figure, Goal, Table};
use crate::{Options, Result};

/// The measurement.
pub fn run(options: &Options) -> Result<Table> {
    let mut table = Table::new("size", "programs of `cargo xtask dist`, MiB");
    for (program, limit) in [("loden", 16.0), ("loden-cni", 2.0)] {
        let bytes = std::fs::metadata(options.program(program)?)?.len();
        table.figures.push(Figure::alone(program, bytes as f64 / f64::from(1 << 20), Goal::AtMost(limit)));
    }
    Ok(table)
}
