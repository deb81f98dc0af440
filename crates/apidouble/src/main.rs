//! `apidouble`: the API server double as a process of its own.

use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match apidouble::program::run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            let _nobody_reads = writeln!(std::io::stderr().lock(), "apidouble: {why}");
            ExitCode::from(2)
        }
    }
}
