//! An agent as it is shipped, alone on a host of its own: how it is started, watched and ended.

use std::fs;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kernel::link::{End, LinkChange, NewKind, NewLink};
use kernel::rtnl::{AddrInfo, Put, RouteFilter, RouteInfo};
use kernel::{Netns, Rtnl};
use model::IfName;

use crate::{Result, sys};

/// Time limit of anything that is waited for.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A host with `eth0` and a default route through it.
pub fn host() -> Result<Netns> {
    let netns = Netns::create()?;
    let mut rtnl = Rtnl::open_in(netns.as_fd())?;
    let (near, far) = (IfName::new("eth0")?, IfName::new("wire")?);
    rtnl.create_link(&NewLink::new(near, NewKind::Veth(End::new(far))))?;
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    for name in [IfName::new("lo")?, near, far] {
        let index = rtnl.link_by_name(name)?.ok_or("no device")?.index;
        rtnl.set_link(index, &up)?;
    }
    let index = rtnl.link_by_name(near)?.ok_or("no eth0")?.index;
    rtnl.add_address(&AddrInfo::new(index, "192.0.2.10/24".parse()?), Put::Replace)?;
    let gateway = Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
    let default = RouteInfo { gateway, dev: Some(index), ..RouteInfo::to("0.0.0.0/0".parse()?) };
    rtnl.add_route(&default, Put::Replace)?;
    Ok(netns)
}

/// A process in a host; killed with this value, and with our own process.
pub struct Kept {
    pub pid: u32,
    /// Where the command asked for pipes.
    pub input: Option<ChildStdin>,
    pub output: Option<ChildStdout>,
    /// Dropped to end it.
    stop: Option<Sender<()>>,
    keeper: Option<JoinHandle<()>>,
}

type Started = (u32, Option<ChildStdin>, Option<ChildStdout>);

impl Kept {
    /// Starts the command in the namespace of `host`.
    pub fn start(mut command: Command, host: &Netns) -> Result<Kept> {
        sys::die_with_thread(&mut command);
        let name = command.get_program().to_string_lossy().into_owned();
        let host = host.try_clone()?;
        let (tell, started) = channel();
        let (stop, stopped) = channel::<()>();
        let keeper = std::thread::spawn(move || {
            let kept = host.run(move || keep(command, &tell, &stopped));
            drop(kept);
        });
        let (pid, input, output) = started
            .recv()
            .map_err(|_| format!("the thread of {name} ended"))?
            .map_err(|e: std::io::Error| format!("start {name}: {e}"))?;
        Ok(Kept { pid, input, output, stop: Some(stop), keeper: Some(keeper) })
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

/// Starts the process and keeps it until `stopped`.
fn keep(mut command: Command, tell: &Sender<std::io::Result<Started>>, stopped: &Receiver<()>) {
    match command.spawn() {
        Ok(mut child) => {
            let _ = tell.send(Ok((child.id(), child.stdin.take(), child.stdout.take())));
            let _ = stopped.recv();
            let _ = child.kill();
            let _ = child.wait();
        }
        Err(error) => drop(tell.send(Err(error))),
    }
}

/// An agent.
pub struct Agent {
    pid: u32,
    log: PathBuf,
    _process: Kept,
}

impl Agent {
    /// Starts `loden` as flanneld with its files in `folder`; `adjust` says where its leases are.
    pub fn start(
        loden: &Path,
        folder: &Path,
        host: &Netns,
        adjust: impl FnOnce(&mut Command),
    ) -> Result<Agent> {
        let log = folder.join("log");
        let mut command = Command::new(loden);
        command.arg0("flanneld").arg(format!("--subnet-file={}", folder.join("subnet.env").display()));
        command.arg("--ip-masq").env_remove("NOTIFY_SOCKET");
        command.stdin(Stdio::null()).stderr(fs::File::create(&log)?);
        adjust(&mut command);
        let process = Kept::start(command, host)?;
        Ok(Agent { pid: process.pid, log, _process: process })
    }

    /// All of its log.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.log)?)
    }

    /// The beginning of its log.
    pub fn says(&self) -> String {
        let mut log = String::new();
        let _ = fs::File::open(&self.log).map(|file| file.take(4_000).read_to_string(&mut log));
        log
    }

    /// `Rss` and its like, in MiB.
    pub fn memory(&self, key: &str) -> Result<f64> {
        let path = format!("/proc/{}/smaps_rollup", self.pid);
        let text = fs::read_to_string(&path).map_err(|e| format!("read {path}: {e}"))?;
        kib(&text, key).ok_or(format!("{path} has no {key}").into())
    }

    /// The most resident memory so far, in MiB.
    pub fn peak(&self) -> Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        kib(&text, "VmHWM").ok_or("no VmHWM".into())
    }

    /// Time on a processor since the start, of all threads that live.
    pub fn cpu(&self) -> Result<Duration> {
        let mut all = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.pid))?.flatten() {
            let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            all += text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(Duration::from_nanos(all))
    }

    /// Time on a processor of the programs it started and waited for, to a hundredth of a second.
    pub fn cpu_of_children(&self) -> Result<Duration> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        // The name in parentheses may hold anything; children's times are the 16th and 17th field.
        let after = text.rsplit_once(')').ok_or("no name in stat")?.1;
        let ticks = |field: &str| field.parse::<u32>().map(f64::from);
        let fields: Vec<&str> = after.split_whitespace().collect();
        let [user, system] = [13, 14].map(|n| fields.get(n).copied().unwrap_or_default());
        Ok(Duration::from_secs_f64((ticks(user)? + ticks(system)?) / TICKS))
    }
}

/// Clock ticks of a second in `/proc` (proc_pid_stat(5): `sysconf(_SC_CLK_TCK)`, 100 on Linux for programs).
const TICKS: f64 = 100.0;

fn kib(text: &str, key: &str) -> Option<f64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    let number: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(number / 1024.0)
}

/// Waits until the kernel has a route to every peer and the agent says that it is ready.
pub fn converge(agent: &Agent, host: &Netns, peers: u32) -> Result<Duration> {
    let start = Instant::now();
    let mut rtnl = Rtnl::open_in(host.as_fd())?;
    let filter = RouteFilter { protocol: Some(plan::ROUTE_PROTOCOL), ..RouteFilter::default() };
    loop {
        let ready = agent.log()?.contains("flannel is ready");
        // Asked before, the kernel would have less time for the agent.
        let routes = if ready { rtnl.routes(filter)?.len() } else { 0 };
        if ready && routes as u32 >= peers {
            return Ok(start.elapsed());
        }
        if start.elapsed() > PATIENCE {
            let log = agent.says();
            return Err(
                format!("{routes} of {peers} routes after {PATIENCE:?}; the agent says:\n{log}").into()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
