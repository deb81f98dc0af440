//! The agent of one host: started as `flanneld`, watched, asked to go.

use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::node::{Log, Place, ourselves};
use super::stage::SHARED;
use crate::error::{Doing, Error, Result};
use crate::proto;
use crate::spec::Spec;
use crate::sys;

/// How long an agent may take to say that it is ready.
const PATIENCE: Duration = Duration::from_secs(30);

/// An agent that was started at least once.
pub struct Agent {
    /// What it says.
    pub log: Log,
    process: Option<Child>,
    ready: Option<Duration>,
    exited: String,
}

impl Agent {
    /// Starts an agent on a host and waits until it is ready.
    ///
    /// # Errors
    /// It ends before, or takes too long; its last log lines come with the error.
    pub fn start(host: &Place, spec: &Spec, log: Log) -> Result<Agent> {
        let path = PathBuf::from(SHARED).join("notify").join(&host.name);
        let _ = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).doing(|| format!("bind {}", path.display()))?;
        socket.set_read_timeout(Some(Duration::from_millis(20))).doing(|| "set a time limit".to_owned())?;
        let mut command = match &spec.agent_program {
            Some(program) => Command::new(program),
            None => ourselves("flanneld"),
        };
        command.arg0("flanneld");
        command.args(["--iface=eth0", "--ip-masq"]).args(&spec.agent_args);
        command.env_clear().envs(environment(spec)).env("NOTIFY_SOCKET", &path);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        sys::start_inside(&mut command, host.inside()?, 0);
        let start = Instant::now();
        let mut process = command.spawn().doing(|| format!("start the agent of {}", host.name))?;
        if let Some(stdout) = process.stdout.take() {
            log.follow(stdout);
        }
        if let Some(stderr) = process.stderr.take() {
            log.follow(stderr);
        }
        let mut agent = Agent { log, process: Some(process), ready: None, exited: String::new() };
        agent.wait_until_ready(&host.name, &socket, start)?;
        Ok(agent)
    }

    fn wait_until_ready(&mut self, host: &str, socket: &UnixDatagram, start: Instant) -> Result<()> {
        let mut buf = [0; 256];
        loop {
            if let Ok(len) = socket.recv(&mut buf)
                && buf[..len].split(|b| *b == b'\n').any(|line| line == b"READY=1")
            {
                self.ready = Some(start.elapsed());
                return Ok(());
            }
            let why = match self.state() {
                proto::Agent::Exited { status } => format!("ended with {status}"),
                _ if start.elapsed() > PATIENCE => {
                    format!("is not ready after {} s", PATIENCE.as_secs())
                }
                _ => continue,
            };
            self.stop(true);
            let what = format!("the agent of {host} {why}; its last words follow");
            return Err(Error::Failed { what, log: self.log.tail(15) });
        }
    }

    /// How it is.
    pub fn state(&mut self) -> proto::Agent {
        let Some(process) = &mut self.process else {
            return proto::Agent::Exited { status: self.exited.clone() };
        };
        match process.try_wait() {
            Ok(Some(status)) => {
                self.exited = status.to_string();
                self.process = None;
                proto::Agent::Exited { status: self.exited.clone() }
            }
            _ => proto::Agent::Running {
                pid: process.id(),
                ready: self.ready.is_some(),
                ready_ms: self.ready.map_or(0.0, |t| t.as_secs_f64() * 1000.0),
            },
        }
    }

    /// Ends it, with SIGKILL if `kill` or if SIGTERM does nothing for ten seconds.
    pub fn stop(&mut self, kill: bool) {
        let Some(mut process) = self.process.take() else { return };
        let deadline = Instant::now() + Duration::from_secs(10);
        if kill {
            let _ = process.kill();
        } else {
            let _ = sys::kill(process.id(), libc::SIGTERM);
            while matches!(process.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
            let _ = process.kill();
        }
        self.exited = process.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
    }
}

/// Environment of our programs: nothing of the caller's but the path.
pub fn environment(spec: &Spec) -> Vec<(String, String)> {
    let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    let mut all =
        vec![("PATH".to_owned(), path), ("LODEN_STORE".to_owned(), format!("sqlite:{SHARED}/store.db"))];
    all.extend(spec.agent_env.iter().cloned());
    all
}
