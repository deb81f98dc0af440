//! How long a started agent takes from its own lease until all peers are in the kernel and it is ready, beside the time in
//! which the same neighbours, forwarding entries, nexthop objects and routes are handed to the kernel in the largest batches.
//! In turns, each time on a fresh host.

use std::fs;
use std::time::Duration;

use crate::agent::{Agent, converge, host};
use crate::figure::{Figure, Goal, Samples, Table};
use crate::leases::{self, batch};
use crate::memory::Store;
use crate::{Options, Result};

/// What of a host before is still going on in the kernel would be counted.
const PAUSE: Duration = Duration::from_secs(2);
const PEERS: [(u32, Goal); 2] = [(1_000, Goal::None), (10_000, Goal::AtMost(1.5))];

/// Seconds of the day at which the agent's log says something.
fn said(log: &str, what: &str) -> Result<f64> {
    let line =
        log.lines().find(|line| line.contains(what)).ok_or_else(|| format!("no {what:?} in the log"))?;
    let clock = line.split_whitespace().nth(1).ok_or("no time in the log")?;
    let parts = clock.split(':').map(str::parse::<f64>).collect::<std::result::Result<Vec<_>, _>>()?;
    Ok(parts.iter().fold(0.0, |sum, part| sum * 60.0 + part))
}

/// The measurement.
pub fn run(options: &Options) -> Result<Table> {
    let loden = options.program("loden")?;
    let rounds = options.rounds.unwrap_or(7);
    let about =
        format!("an agent from its lease to ready, ms; beside: the same in bare batches; {rounds} rounds");
    let mut table = Table::new("zero", about);
    for (peers, goal) in PEERS {
        let folder = options.folder(&format!("zero{peers}"))?;
        let file = folder.join("leases.db");
        Store::create(&loden, &file)?.put(0..peers)?;
        let bare = (0..peers).map(leases::lease).collect::<Result<Vec<_>>>()?;
        let (mut ours, mut other) = (Samples::default(), Samples::default());
        for round in 0..rounds {
            let turn = options.folder(&format!("zero{peers}/{round}"))?;
            let copy = turn.join("leases.db");
            fs::copy(&file, &copy)?;
            let host = host()?;
            let agent = Agent::start(&loden, &turn, &host, |command| {
                command.env("LODEN_STORE", format!("sqlite:{}", copy.display()));
            })?;
            converge(&agent, &host, peers)?;
            let log = agent.log()?;
            // Past midnight.
            let took = (said(&log, "is ready")? - said(&log, "Acquired lease")?).rem_euclid(86_400.0);
            ours.0.push(took * 1e3);
            drop((agent, host));
            std::thread::sleep(PAUSE);
            other.0.push(batch(&bare, true)?[0].as_secs_f64() * 1e3);
            std::thread::sleep(PAUSE);
        }
        table.figures.push(Figure::beside(format!("{peers} peers"), ours, other, goal));
    }
    Ok(table)
}
