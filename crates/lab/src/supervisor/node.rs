//! Processes that hold namespaces: hosts and pods. Each is this same program under a hidden verb, says
//! `ready` and stays until its standard input ends.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use kernel::Netns;

use crate::error::{Doing, Error, Result};
use crate::proto::LOG_LINES;
use crate::sys::{self, Namespaces};

/// The last lines a program said.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<VecDeque<String>>>);

impl Log {
    /// Reads a pipe to its end, on a thread of its own.
    pub fn follow(&self, pipe: impl Read + Send + 'static) {
        let log = self.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(|l| l.ok()) {
                log.push(line);
            }
        });
    }

    fn push(&self, line: String) {
        if let Ok(mut lines) = self.0.lock() {
            if lines.len() == LOG_LINES {
                lines.pop_front();
            }
            lines.push_back(line);
        }
    }

    /// The last `count` lines.
    pub fn tail(&self, count: usize) -> Vec<String> {
        self.0.lock().map_or_else(
            |_| Vec::new(),
            |lines| lines.iter().skip(lines.len().saturating_sub(count)).cloned().collect(),
        )
    }

    /// Everything kept.
    pub fn all(&self) -> Vec<String> {
        self.tail(LOG_LINES)
    }
}

/// A process that holds namespaces.
pub struct Place {
    /// Name of the host or pod.
    pub name: String,
    /// What it says.
    pub log: Log,
    process: Child,
    /// Its end is the signal to go.
    _stdin: Option<ChildStdin>,
}

impl Place {
    /// Starts this program under a hidden verb, inside `inside` and in new namespaces of the kinds
    /// `fresh`, and waits until it is ready.
    ///
    /// # Errors
    /// It cannot be started, or it says why it failed.
    pub fn start(name: &str, verb: &[&str], inside: Namespaces, fresh: i32) -> Result<Place> {
        let mut command = ourselves("loden");
        command.arg("lab").args(verb);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        sys::start_inside(&mut command, inside, fresh);
        let mut process = command.spawn().doing(|| format!("start {name}"))?;
        let log = Log::default();
        let stdin = process.stdin.take();
        if let Some(stderr) = process.stderr.take() {
            log.follow(stderr);
        }
        let mut line = String::new();
        if let Some(stdout) = process.stdout.take() {
            let mut reader = BufReader::new(stdout);
            reader.read_line(&mut line).doing(|| format!("start {name}"))?;
            log.follow(reader);
        }
        if line.trim_end() != "ready" {
            let _ = process.wait();
            return Err(Error::Failed { what: format!("start {name}: it ended at once"), log: log.all() });
        }
        Ok(Place { name: name.to_owned(), log, process, _stdin: stdin })
    }

    /// Process id in the lab.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Opens one of its namespace files: `net`, `mnt`, `uts`.
    ///
    /// # Errors
    /// The process is gone.
    pub fn namespace(&self, kind: &str) -> Result<OwnedFd> {
        namespace(self.pid(), kind).doing(|| format!("open the {kind} namespace of {}", self.name))
    }

    /// Its network namespace.
    ///
    /// # Errors
    /// The process is gone.
    pub fn net(&self) -> Result<Netns> {
        net_of(self.pid())
    }

    /// Descriptors of what makes this place, for a child of the supervisor.
    ///
    /// # Errors
    /// The process is gone.
    pub fn inside(&self) -> Result<Namespaces> {
        Ok(Namespaces {
            net: Some(self.namespace("net")?),
            mnt: Some(self.namespace("mnt")?),
            uts: Some(self.namespace("uts")?),
            ..Namespaces::default()
        })
    }

    /// Ends the process and waits for it.
    pub fn end(mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Network namespace of a process.
///
/// # Errors
/// The process is gone.
pub fn net_of(pid: u32) -> Result<Netns> {
    let path = format!("/proc/{pid}/ns/net");
    Ok(Netns::open(Path::new(&path)).map_err(kernel::Error::from)?)
}

/// A namespace file of a process.
pub fn namespace(pid: u32, kind: &str) -> std::io::Result<OwnedFd> {
    File::open(format!("/proc/{pid}/ns/{kind}")).map(OwnedFd::from)
}

/// How long a program that answers a question may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a program: `input` goes in, everything it says comes out. One that takes longer than a minute is
/// killed, and `action` says so.
///
/// # Errors
/// It cannot be started, or had to be killed.
pub fn converse(mut command: Command, input: &[u8], action: &str) -> Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().doing(|| action.to_owned())?;
    let pid = process.id();
    let (done, watch) = mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        let late = watch.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout);
        late && sys::kill(pid, libc::SIGKILL).is_ok()
    });
    if let Some(mut stdin) = process.stdin.take() {
        // A program that ends without reading says why on its outputs.
        let _ = stdin.write_all(input);
    }
    let output = process.wait_with_output().doing(|| action.to_owned())?;
    drop(done);
    if watchdog.join().unwrap_or(false) {
        return Err(Error::said(format!("{action}: killed after {} s", PATIENCE.as_secs())));
    }
    Ok(output)
}

/// This program, to be started again under another name.
pub fn ourselves(name: &str) -> Command {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new("/proc/self/exe");
    command.arg0(name);
    command
}
