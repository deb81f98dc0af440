//! Ours and flannel's own agent with the same cluster, in turns: from the start to the last route, memory, and
//! the processor time of a Node's heartbeat, which changes no lease and is most of what a watch brings.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use apidouble::program::numbered;
use ipnet::IpNet;
use kernel::rtnl::RouteFilter;
use kernel::{Netns, Rtnl};
use model::Family;
use serde_json::json;

use super::{Server, cluster, of_nodes, vtep_of};
use crate::agent::{Agent, PATIENCE, host};
use crate::figure::{Figure, Goal, Samples, Table};
use crate::{Options, Result};

/// Changes of Nodes that change no lease.
const HEARTBEATS: u32 = 2_000;
const ROUNDS: usize = 3;
/// Four of the looks that flannel takes at its rules.
const REST: Duration = Duration::from_secs(20);
/// Between looks at the kernel.
const LOOK: Duration = Duration::from_millis(20);

/// What one agent did in one round.
struct Round {
    all: f64,
    resident: f64,
    start_cpu: f64,
    rest: f64,
    heartbeat: f64,
    after: f64,
}

/// What a row shows, with its unit; of which value; and what the ratio should be.
type Row = (&'static str, fn(&Round) -> f64, Goal);

/// `nodes` Nodes, both agents, in changing order.
pub fn run(options: &Options, flanneld: &Path, nodes: u32, table: &mut Table) -> Result<()> {
    let programs = [options.program("loden")?, flanneld.canonicalize()?];
    let mut rounds: [Vec<Round>; 2] = [Vec::new(), Vec::new()];
    for round in 0..options.rounds.unwrap_or(ROUNDS) {
        for turn in 0..2 {
            let which = (round + turn) % 2;
            let folder = options.folder(&format!("beside{nodes}-{round}-{which}"))?;
            rounds[which].push(one(&programs[which], &folder, nodes)?);
        }
    }
    let rows: [Row; 6] = [
        ("start to all in the kernel, s", |round| round.all, Goal::AtMost(1.0 / 5.0)),
        ("processor until then, s", |round| round.start_cpu, Goal::None),
        ("resident then, MiB", |round| round.resident, Goal::AtMost(1.0 / 10.0)),
        ("processor at rest, with what it starts, % of one core", |round| round.rest, Goal::None),
        ("processor for a heartbeat of a Node, us", |round| round.heartbeat, Goal::AtMost(1.0 / 20.0)),
        ("resident at the end, MiB", |round| round.after, Goal::None),
    ];
    for (what, value, goal) in rows {
        let [ours, theirs] = &rounds;
        let samples = |of: &Vec<Round>| Samples(of.iter().map(value).collect());
        let goal = if nodes >= 5_000 { goal } else { Goal::None };
        let what = format!("{nodes} nodes, beside flanneld: {what}");
        table.figures.push(Figure::beside(what, samples(ours), samples(theirs), goal));
    }
    Ok(())
}

fn one(program: &Path, folder: &Path, nodes: u32) -> Result<Round> {
    let host = host()?;
    let mut server = cluster(&host, folder, nodes)?;
    let begun = Instant::now();
    let agent = Agent::start(program, folder, &host, |command| of_nodes(command, folder))?;
    let mut rtnl = Rtnl::open_in(host.as_fd())?;
    let cluster: IpNet = "10.0.0.0/8".parse()?;
    let filter = RouteFilter { family: Some(Family::V4), ..RouteFilter::default() };
    wait("the routes to all nodes", &agent, || {
        // Each agent marks its routes in its own way; the cluster's network is the same.
        let routes = rtnl.routes(filter)?;
        let peers = routes.iter().filter(|route| {
            cluster.contains(&route.dst) && (route.gateway.is_some() || route.nexthop.is_some())
        });
        Ok(peers.count() as u32 >= nodes - 1)
    })?;
    let (all, start_cpu, resident) =
        (begun.elapsed().as_secs_f64(), agent.cpu()?.as_secs_f64(), agent.memory("Rss")?);
    // Flannel looks after its rules every five seconds, by programs it starts.
    let used = || -> Result<Duration> { Ok(agent.cpu()? + agent.cpu_of_children()?) };
    let before = used()?;
    std::thread::sleep(REST);
    let rest = (used()? - before).as_secs_f64() / REST.as_secs_f64() * 100.0;
    let cpu = agent.cpu()?;
    for beat in 0..HEARTBEATS {
        heartbeat(&mut server, 2 + beat % (nodes - 1), beat)?;
    }
    // What was changed last is told last.
    let last = vtep_of(2, 1);
    server.announce(2, last)?;
    wait("the change after the heartbeats", &agent, || fdb_has(&host, &last.to_string()))?;
    let heartbeat = (agent.cpu()? - cpu).as_secs_f64() * 1e6 / f64::from(HEARTBEATS);
    Ok(Round { all, resident, start_cpu, rest, heartbeat, after: agent.memory("Rss")? })
}

/// What a kubelet writes every few minutes: the same conditions, another time.
fn heartbeat(server: &mut Server, number: u32, beat: u32) -> Result<()> {
    let (minute, second) = (beat / 60 % 60, beat % 60);
    let at = format!("2026-01-01T00:{minute:02}:{second:02}Z");
    let conditions: Vec<_> = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"]
        .into_iter()
        .map(|kind| {
            let status = if kind == "Ready" { "True" } else { "False" };
            json!({"type": kind, "status": status, "lastHeartbeatTime": at, "reason": "KubeletReady",
                   "lastTransitionTime": "2026-01-01T00:00:00Z", "message": "kubelet is posting ready status"})
        })
        .collect();
    let change = json!({"status": {"conditions": conditions}});
    server.tell(&format!("merge nodes {} {change}", numbered(number).0)).map(drop)
}

fn fdb_has(host: &Netns, mac: &str) -> Result<bool> {
    let output = host.run(|| Command::new("bridge").args(["fdb", "show", "dev", "flannel.1"]).output())??;
    Ok(String::from_utf8_lossy(&output.stdout).contains(mac))
}

fn wait(what: &str, agent: &Agent, mut there: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !there()? {
        if begun.elapsed() > PATIENCE {
            return Err(
                format!("{what}: not there after {PATIENCE:?}; the agent says:\n{}", agent.says()).into()
            );
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}
