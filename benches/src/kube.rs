//! The agent as it is shipped with a cluster's Nodes as its store: an API server of our own, a process beside
//! it, holds 5,000 Nodes of 15 kB. How long from its first request to the last route, memory then; one Node in
//! a hundred a second gets another VTEP for a minute: time until the kernel tells of the new forwarding entry,
//! by `bridge monitor`, and processor time.

mod beside;

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use apidouble::program::numbered;
use kernel::Netns;
use model::Mac;
use model::codec::vtep;
use serde_json::{Value, json};

use crate::agent::{Agent, Kept, PATIENCE, converge, host};
use crate::figure::{Figure, Goal, Samples, Table};
use crate::{Options, Result};

/// The first word that makes us the API server.
pub const SERVER: &str = "__apidouble";

const CONFIG: &str = r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#;
const USER: &str = "system:serviceaccount:kube-flannel:flannel";
const REST: Duration = Duration::from_secs(30);
const UPDATES: u32 = 6_000;
const EVERY: Duration = Duration::from_millis(10);

/// The API server's process and the pipe it is told by.
struct Server {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    _process: Kept,
}

impl Server {
    /// On the loopback device of `host`, HTTPS.
    fn start(host: &Netns) -> Result<Server> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args([SERVER, "--tls", "--listen", "127.0.0.1:0"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = Kept::start(command, host)?;
        let input = process.input.take().ok_or("no pipe")?;
        let output = BufReader::new(process.output.take().ok_or("no pipe")?);
        let mut server = Server { input, output, _process: process };
        server.answer()?;
        Ok(server)
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(serde_json::from_str(&line).map_err(|e| format!("the API server said {line:?}: {e}"))?)
    }

    fn tell(&mut self, command: &str) -> Result<Value> {
        writeln!(self.input, "{command}")?;
        let mut answer = self.answer()?;
        match answer["error"].as_str() {
            Some(error) => Err(format!("{command}: {error}").into()),
            None => Ok(answer["ok"].take()),
        }
    }

    /// Node `number` as its agent would have announced it, with a VTEP of this address.
    fn announce(&mut self, number: u32, mac: Mac) -> Result<()> {
        let (name, _) = numbered(number);
        let [_, b, c, d] = number.to_be_bytes();
        let annotations = json!({
            "flannel.alpha.coreos.com/kube-subnet-manager": "true",
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/backend-data": vtep::write(&vtep::Vtep { vni: 1, mac }),
            "flannel.alpha.coreos.com/public-ip": format!("172.{}.{c}.{d}", 16 + b),
        });
        let change = json!({"metadata": {"annotations": annotations}});
        self.tell(&format!("merge nodes {name} {change}")).map(drop)
    }
}

/// The address of the VTEP that node `number` has after `turn` changes in all.
fn vtep_of(number: u32, turn: u32) -> Mac {
    let ([_, _, c, d], [_, _, e, f]) = (number.to_be_bytes(), turn.to_be_bytes());
    Mac([2, 1, c, d, e, f])
}

/// From the change of a Node to its forwarding entry, in milliseconds, at a steady rate.
fn latency(server: &mut Server, host: &Netns, nodes: u32) -> Result<Samples> {
    let mut command = Command::new("bridge");
    command.args(["monitor", "fdb"]).stdout(Stdio::piped()).stdin(Stdio::null());
    let mut monitor = Kept::start(command, host)?;
    let lines = BufReader::new(monitor.output.take().ok_or("no pipe")?);
    let last = vtep_of(2 + (UPDATES - 1) % (nodes - 1), UPDATES).to_string();
    let (done, over) = channel();
    let follower = std::thread::spawn(move || {
        let mut seen: HashMap<String, Instant> = HashMap::new();
        for line in
            lines.lines().map_while(std::result::Result::ok).filter(|line| !line.starts_with("Deleted"))
        {
            let mac = line.split(' ').next().unwrap_or_default().to_owned();
            if mac == last {
                let _ = done.send(());
            }
            seen.entry(mac).or_insert_with(Instant::now);
        }
        seen
    });
    let start = Instant::now();
    let mut written = Vec::new();
    for turn in 1..=UPDATES {
        std::thread::sleep((EVERY * turn).saturating_sub(start.elapsed()));
        // Node 1 is the agent's own.
        let number = 2 + (turn - 1) % (nodes - 1);
        let mac = vtep_of(number, turn);
        written.push((mac.to_string(), Instant::now()));
        server.announce(number, mac)?;
    }
    let arrived = over.recv_timeout(PATIENCE);
    drop(monitor);
    let seen = follower.join().map_err(|_| "the thread that follows the kernel panicked")?;
    arrived.map_err(|_| format!("a changed Node was not in the kernel after {PATIENCE:?}"))?;
    // A change that a later one of the same Node overtook may be skipped: that one counts.
    let took = |(mac, at): &(String, Instant)| Some(seen.get(mac)?.duration_since(*at).as_secs_f64() * 1e3);
    Ok(Samples(written.iter().filter_map(took).collect()))
}

/// An API server with that many Nodes, and in `folder` what an agent needs to ask it.
fn cluster(host: &Netns, folder: &Path, nodes: u32) -> Result<Server> {
    let mut server = Server::start(host)?;
    server.tell(&format!("fill {nodes} full"))?;
    for number in 2..=nodes {
        server.announce(number, vtep_of(number, 0))?;
    }
    server.tell("compact")?;
    let token = server.tell(&format!("token {USER} flannel"))?;
    let config = server.tell(&format!("kubeconfig {}", token.as_str().unwrap_or_default()))?;
    fs::write(folder.join("kubeconfig"), config.as_str().unwrap_or_default())?;
    fs::write(folder.join("net-conf.json"), CONFIG)?;
    Ok(server)
}

/// The flags of an agent, ours or another's, whose leases are that cluster's Nodes.
fn of_nodes(command: &mut Command, folder: &Path) {
    command.arg("--kube-subnet-mgr");
    command.arg(format!("--kubeconfig-file={}", folder.join("kubeconfig").display()));
    command.arg(format!("--net-config-path={}", folder.join("net-conf.json").display()));
    command.env("NODE_NAME", numbered(1).0);
}

fn with_nodes(options: &Options, nodes: u32, limit: Goal, table: &mut Table) -> Result<()> {
    let folder = options.folder(&format!("kube{nodes}"))?;
    let host = host()?;
    let mut server = cluster(&host, &folder, nodes)?;
    let begun = Instant::now();
    let agent =
        Agent::start(&options.program("loden")?, &folder, &host, |command| of_nodes(command, &folder))?;
    converge(&agent, &host, nodes - 1)?;
    let all = begun.elapsed().as_secs_f64();
    let asked = server.tell("age list nodes").or_else(|_| server.tell("age watch nodes"))?;
    let mut add = |what: &str, value: Samples, goal: Goal| {
        table.figures.push(Figure::alone(format!("{nodes} nodes: {what}"), value, goal));
    };
    let since = asked.as_f64().ok_or("no time of the list")? / 1e6;
    let many = |goal: Goal| if nodes >= 5_000 { goal } else { Goal::None };
    add("list asked for to all in the kernel, s", since.into(), many(Goal::AtMost(3.0)));
    add("start to all in the kernel, s", all.into(), Goal::None);
    add("resident then, MiB", agent.memory("Rss")?.into(), limit);
    add("peak so far, MiB", agent.peak()?.into(), limit);
    let cpu = agent.cpu()?;
    std::thread::sleep(REST);
    let rest = (agent.cpu()? - cpu).as_secs_f64();
    add("resident after 30 s of rest, MiB", agent.memory("Rss")?.into(), limit);
    add("of which anonymous, MiB", agent.memory("Anonymous")?.into(), Goal::None);
    add("processor at rest, % of one core", (rest / REST.as_secs_f64() * 100.0).into(), Goal::None);
    let (cpu, begun) = (agent.cpu()?, Instant::now());
    let samples = latency(&mut server, &host, nodes)?;
    let cpu = (agent.cpu()? - cpu).as_secs_f64() / begun.elapsed().as_secs_f64() * 100.0;
    add("changes seen in the kernel, of 6000", (samples.0.len() as f64).into(), Goal::None);
    add("changed Node to kernel at 100/s, ms", samples.clone(), Goal::None);
    add("the same, p99 ms", samples.quantile(0.99).into(), many(Goal::AtMost(100.0)));
    add("processor at 100/s, % of one core", cpu.into(), many(Goal::AtMost(10.0)));
    add("resident at the end, MiB", agent.memory("Rss")?.into(), limit);
    Ok(())
}

/// The measurement.
pub fn run(options: &Options) -> Result<Table> {
    let mut table = Table::new("kube", "the agent with a cluster's Nodes of 15 kB, vxlan");
    if Command::new("bridge").arg("-V").output().is_err() {
        table.skipped.push("kube: `bridge` is not installed (Debian: iproute2)".to_owned());
        return Ok(table);
    }
    let sizes = if options.peers == [100, 10_000] { vec![100, 5_000] } else { options.peers.clone() };
    for nodes in sizes {
        let limit = match nodes {
            100 => Goal::AtMost(14.0),
            5_000 => Goal::AtMost(64.0),
            _ => Goal::None,
        };
        with_nodes(options, nodes, limit, &mut table)?;
        if let Some(flanneld) = &options.flanneld {
            beside::run(options, flanneld, nodes, &mut table)?;
        }
    }
    Ok(table)
}
