//! The agent as it is shipped, alone on a host of its own, with N peers in the embedded store: resident
//! memory when all of them are in the kernel and after half a minute of rest, the processor time of that
//! rest (one full comparison with the kernel is in it), and how long a new lease takes from the store into
//! the kernel.

use std::collections::HashMap;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kernel::{Event, Monitor, Netns};
use model::codec::{etcd_key, lease_json, vtep};
use model::{IpNet, Ipv4Net, LeaseAttrs, Mac, Subnets};
use rusqlite::Connection;

use crate::agent::{Agent, PATIENCE, converge, host};
use crate::figure::{Figure, Goal, Samples, Table};
use crate::{Options, Result};

const CONFIG: &str = r#"{"Network":"10.0.0.0/8","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#;
const REST: Duration = Duration::from_secs(30);

/// The lease of peer `n`.
fn lease(n: u32) -> Result<(Ipv4Net, String, String)> {
    let net = Ipv4Net::new(Ipv4Addr::from(0x0a00_0000 | (n + 1) << 8), 24)?;
    let [_, b, c, d] = n.to_be_bytes();
    let data = vtep::write(&vtep::Vtep { vni: 1, mac: Mac([2, 0, 0, b, c, d]) });
    let attrs = LeaseAttrs {
        public_ip: Some(Ipv4Addr::from(0xac10_0000 | (n + 1))),
        backend_type: "vxlan".to_owned(),
        backend_data: Some(data.into()),
        ..LeaseAttrs::default()
    };
    Ok((net, etcd_key::write(&Subnets { v4: Some(net), v6: None }), lease_json::write(&attrs)))
}

/// The file all agents of a machine share, written to as another agent would.
pub struct Store {
    conn: Connection,
}

impl Store {
    pub fn create(loden: &Path, path: &Path) -> Result<Store> {
        let mut put = Command::new(loden)
            .args(["config", "put", "-"])
            .env("LODEN_STORE", format!("sqlite:{}", path.display()))
            .stdin(Stdio::piped())
            .spawn()?;
        put.stdin.take().ok_or("no pipe")?.write_all(CONFIG.as_bytes())?;
        if !put.wait()?.success() {
            return Err(format!("loden config put into {} failed", path.display()).into());
        }
        let conn = Connection::open(path)?;
        conn.busy_timeout(Duration::from_secs(5))?;
        conn.pragma_update(None, "synchronous", "NORMAL")?;
        Ok(Store { conn })
    }

    pub fn put(&mut self, numbers: std::ops::Range<u32>) -> Result<()> {
        let expires = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() + 86_400;
        let txn = self.conn.transaction()?;
        {
            let mut insert = txn.prepare("INSERT INTO lease (key, value, expires) VALUES (?1, ?2, ?3)")?;
            for n in numbers {
                let (_, key, value) = lease(n)?;
                insert.execute((key, value, expires as i64))?;
            }
        }
        Ok(txn.commit()?)
    }
}

/// From the write of a new lease to its route, in milliseconds, at a steady rate.
fn latency(
    store: &mut Store,
    host: &Netns,
    numbers: std::ops::Range<u32>,
    every: Duration,
) -> Result<Samples> {
    let mut monitor = Monitor::open_in(host)?;
    let closer = monitor.closer()?;
    let last = numbers.end - 1;
    let last: IpNet = lease(last)?.0.into();
    let (done, over) = channel();
    let follower = std::thread::spawn(move || {
        let mut seen: HashMap<IpNet, Instant> = HashMap::new();
        while let Ok(Some(event)) = monitor.next() {
            if let Event::Route(key, protocol, _) = event
                && protocol == plan::ROUTE_PROTOCOL
            {
                seen.entry(key.dst).or_insert_with(Instant::now);
                if key.dst == last {
                    let _ = done.send(());
                }
            }
        }
        seen
    });
    let start = Instant::now();
    let mut written = Vec::new();
    for (turn, n) in (0..).zip(numbers) {
        std::thread::sleep((every * turn).saturating_sub(start.elapsed()));
        let subnet: IpNet = lease(n)?.0.into();
        written.push((subnet, Instant::now()));
        store.put(n..n + 1)?;
    }
    let arrived = over.recv_timeout(PATIENCE);
    closer.close();
    let seen = follower.join().map_err(|_| "the thread that follows the kernel panicked")?;
    arrived.map_err(|_| format!("a new lease was not in the kernel after {PATIENCE:?}"))?;
    let took = |(subnet, at): (IpNet, Instant)| {
        let seen = seen.get(&subnet).ok_or(format!("the kernel did not tell of the route to {subnet}"))?;
        Ok(seen.duration_since(at).as_secs_f64() * 1e3)
    };
    written.into_iter().map(took).collect::<Result<Vec<f64>>>().map(Samples)
}

/// Takes a program's file out of memory. How much of it is resident depends on how it came there: just built it lies in large
/// pieces, each of which the kernel maps whole; read when it is run, as after a boot, in small ones.
fn forget(program: &Path) -> Result<()> {
    let file = std::fs::File::open(program)?;
    file.sync_all()?;
    Ok(rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?)
}

fn with_peers(options: &Options, peers: u32, limit: Goal, table: &mut Table) -> Result<()> {
    let loden = options.program("loden")?;
    let folder = options.folder(&format!("agent{peers}"))?;
    let mut store = Store::create(&loden, &folder.join("leases.db"))?;
    store.put(0..peers)?;
    let host = host()?;
    forget(&loden)?;
    let agent = Agent::start(&loden, &folder, &host, |command| {
        command.env("LODEN_STORE", format!("sqlite:{}", folder.join("leases.db").display()));
    })?;
    let start = converge(&agent, &host, peers)?;
    let mut add = |what: &str, value: Samples, goal: Goal| {
        table.figures.push(Figure::alone(format!("{peers} peers: {what}"), value, goal));
    };
    add("start to all in the kernel, s", start.as_secs_f64().into(), Goal::None);
    add("resident then, MiB", agent.memory("Rss")?.into(), limit);
    let cpu = agent.cpu()?;
    std::thread::sleep(REST);
    let rest = (agent.cpu()? - cpu).as_secs_f64();
    add("resident after 30 s of rest, MiB", agent.memory("Rss")?.into(), limit);
    add("of which anonymous, MiB", agent.memory("Anonymous")?.into(), Goal::None);
    add("proportional (PSS), MiB", agent.memory("Pss")?.into(), Goal::None);
    add("peak so far, MiB", agent.peak()?.into(), Goal::None);
    add("processor at rest, % of one core", (rest / REST.as_secs_f64() * 100.0).into(), Goal::None);
    let mut next = peers;
    for (updates, every) in [(15, Duration::from_secs(1)), (500, Duration::from_millis(10))] {
        let cpu = agent.cpu()?;
        let samples = latency(&mut store, &host, next..next + updates, every)?;
        let cpu = (agent.cpu()? - cpu).as_secs_f64() * 1e3 / f64::from(updates);
        next += updates;
        let rate = (1.0 / every.as_secs_f64()).round();
        add(&format!("new lease to kernel at {rate}/s, p99 ms"), samples.quantile(0.99).into(), Goal::None);
        add(&format!("new lease to kernel at {rate}/s, ms"), samples, Goal::None);
        add(&format!("processor per new lease at {rate}/s, ms"), cpu.into(), Goal::None);
    }
    add("resident at the end, MiB", agent.memory("Rss")?.into(), limit);
    Ok(())
}

/// The measurement.
pub fn run(options: &Options) -> Result<Table> {
    let mut table = Table::new("memory", "the agent with its peers in the embedded store, vxlan");
    for peers in &options.peers {
        let limit = match peers {
            100 => Goal::AtMost(12.0),
            10_000 => Goal::AtMost(64.0),
            _ => Goal::None,
        };
        with_peers(options, *peers, limit, &mut table)?;
    }
    Ok(table)
}
