//! `loden`: the agent and the command line; `flanneld` when called by that name.

mod args;
mod board;
mod bridged;
mod cli;
mod health;
mod host;
mod inputs;
mod log;
mod membership;
mod outputs;
mod predecessor;
mod reconcile;
mod start;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words = std::env::args();
    let program = words.next().unwrap_or_default();
    let name = program.rsplit('/').next().unwrap_or_default();
    let rest: Vec<String> = words.collect();
    let code = if name == "flanneld" {
        start::agent(&program, &rest, start::Personality::Flanneld)
    } else {
        cli::main(&program, rest)
    };
    ExitCode::from(code)
}
