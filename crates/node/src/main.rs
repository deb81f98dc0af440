//! `loden`: the agent and the command line; by the names `flanneld`, `flanneld-start` and
//! `mk-docker-opts.sh` it is what flannel and the distributions ship under them.

mod archive;
mod args;
mod board;
mod bridged;
mod capture;
mod changing;
mod cli;
mod clock;
mod cniconf;
mod distro;
mod doctor;
mod drops;
mod dump;
mod fast;
mod guests;
mod health;
mod helpers;
mod host;
mod inputs;
mod last_good;
mod log;
mod membership;
mod metrics;
mod outputs;
mod pods;
mod probe;
mod reconcile;
mod redact;
mod rights;
mod settings;
#[cfg(test)]
mod sim;
mod socket;
mod start;
mod status;
mod stores;
mod top;
mod trace;
mod tunnels;
mod web;
mod wgkey;

use std::process::ExitCode;

// For what it puts in the place of musl's.
use memmove as _;

/// The system's allocator, but for the threads of a tunnel (decision 0171).
#[global_allocator]
static ALLOCATOR: tunnel::alloc::Packets = tunnel::alloc::Packets;

fn main() -> ExitCode {
    let mut words = std::env::args();
    let program = words.next().unwrap_or_default();
    let name = program.rsplit('/').next().unwrap_or_default();
    let rest: Vec<String> = words.collect();
    let code = match name {
        "flanneld" => start::agent(&program, &rest, start::Personality::Flanneld),
        "flanneld-start" => {
            let words = distro::words(|name| std::env::var(name).ok(), rest);
            start::agent(&program, &words, start::Personality::Flanneld)
        }
        "mk-docker-opts" | "mk-docker-opts.sh" => cli::docker_opts(&rest),
        _ => cli::main(&program, rest),
    };
    ExitCode::from(code)
}
