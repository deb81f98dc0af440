//! `loden-cni dhcp daemon`: keeps the leases of a node's pods.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use kernel::packet;
use model::cni::dhcp::{Lease, SOCKET, Timing};
use model::cni::{Error, Members, code, version};
use model::gojson::Json;

use super::task::{Command, Key, Manner, Request, Task};
use crate::skel::state_dir;

const USAGE: &str = "\
usage: loden-cni dhcp daemon [FLAG]...

  -socketpath PATH       where it listens; else /run/cni/dhcp.sock, or a socket handed down by systemd
  -pidfile PATH          absolute; holds the process id
  -hostprefix PATH       put before paths of namespaces, in a container
  -broadcast             have servers answer by broadcast
  -resendmax DURATION    longest pause between two attempts (62s)
  -resendtimeout DURATION  no server for so long is a failure (208s)
  -timeout DURATION      answers are listened for so long after each message (10s)
";

/// More than any document has.
const LONGEST: u64 = 16 << 20;
/// A client that does not finish its request.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

struct Options {
    socket: String,
    pidfile: Option<PathBuf>,
    prefix: String,
    manner: Manner,
}

/// The command; `words` follow `daemon`.
pub fn main(words: &[String]) -> ExitCode {
    let options = match options(words) {
        Ok(options) => options,
        Err(error) => {
            say(&format!("loden-cni dhcp daemon: {error}\n\n{USAGE}"));
            return ExitCode::from(2);
        }
    };
    match serve(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("loden-cni dhcp daemon: {error}\n"));
            ExitCode::FAILURE
        }
    }
}

fn options(words: &[String]) -> Result<Options, String> {
    let timing = Timing { resend_max: 62_000, give_up: 208_000 };
    let manner = Manner { broadcast: false, timing, listen: 10_000, dir: state_dir().join("dhcp") };
    let mut options = Options { socket: SOCKET.to_owned(), pidfile: None, prefix: String::new(), manner };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let (flag, given) = match word.split_once('=') {
            Some((flag, value)) => (flag, Some(value.to_owned())),
            None => (word.as_str(), None),
        };
        let flag = flag.trim_start_matches('-');
        if flag == "broadcast" {
            options.manner.broadcast = given.is_none_or(|value| value != "false");
            continue;
        }
        let value = given.or_else(|| words.next().cloned()).ok_or_else(|| format!("{word} needs a value"))?;
        let time =
            || milliseconds(&value).ok_or_else(|| format!("{word} {value:?}: write a time such as 62s"));
        match flag {
            "socketpath" => options.socket = value,
            "pidfile" if !value.starts_with('/') => {
                return Err(format!("-pidfile {value:?} is not absolute"));
            }
            "pidfile" => options.pidfile = Some(value.into()),
            "hostprefix" => options.prefix = value,
            "resendmax" => options.manner.timing.resend_max = time()?,
            "resendtimeout" => options.manner.timing.give_up = time()?,
            "timeout" => options.manner.listen = time()?,
            _ => return Err(format!("there is no flag {word}")),
        }
    }
    Ok(options)
}

/// `62s`, `1m`, `500ms`, `1m30s`.
fn milliseconds(text: &str) -> Option<u64> {
    let (mut total, mut rest) = (0, text);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        let unit = &rest[digits..];
        let length = unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len());
        let factor = match &unit[..length] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        total += number.checked_mul(factor)?;
        rest = &unit[length..];
    }
    (!text.is_empty()).then_some(total)
}

/// The leases and how to reach their threads.
struct Leases {
    prefix: String,
    manner: Manner,
    threads: Mutex<BTreeMap<Key, Sender<Command>>>,
}

fn serve(options: Options) -> Result<(), String> {
    let failed = |what: &str, path: &Path| {
        let text = format!("{what} {}", path.display());
        move |e: std::io::Error| format!("{text}: {e}")
    };
    packet::hold_end_signals().map_err(|e| e.to_string())?;
    let path = PathBuf::from(&options.socket);
    let handed = packet::inherited_listener().map_err(|e| format!("socket of the service manager: {e}"))?;
    let own = handed.is_none();
    let listener = match handed {
        Some(listener) => listener,
        None => listen(&path).map_err(failed("listen at", &path))?,
    };
    if let Some(pidfile) = &options.pidfile {
        fs::write(pidfile, format!("{}\n", std::process::id())).map_err(failed("write", pidfile))?;
    }
    let leases = Arc::new(Leases {
        prefix: options.prefix,
        manner: options.manner,
        threads: Mutex::new(BTreeMap::new()),
    });
    restore(&leases);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let leases = Arc::clone(&leases);
            thread::spawn(move || answer(&leases, stream));
        }
    });
    packet::wait_for_end().map_err(|e| e.to_string())?;
    if own {
        let _ = fs::remove_file(&path);
    }
    if let Some(pidfile) = &options.pidfile {
        let _ = fs::remove_file(pidfile);
    }
    Ok(())
}

/// A socket nobody listens at is the remains of a killed daemon.
fn listen(path: &Path) -> std::io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    if UnixStream::connect(path).is_ok() {
        return Err(std::io::Error::other("another daemon listens there"));
    }
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Leases an earlier daemon kept go on (B-47).
fn restore(leases: &Arc<Leases>) {
    for file in fs::read_dir(&leases.manner.dir).into_iter().flatten().flatten() {
        let file = file.path();
        if file.extension().is_none_or(|e| e != "json") {
            continue;
        }
        if let Some(task) = Task::restore(&file, &leases.prefix, &leases.manner) {
            start(leases, task, None);
        }
    }
}

fn start(leases: &Arc<Leases>, task: Task, first: Option<Sender<Result<Lease, Error>>>) {
    let (sender, commands) = mpsc::channel();
    leases.lock().insert(task.key().clone(), sender);
    thread::spawn(move || task.run(&commands, first));
}

fn answer(leases: &Arc<Leases>, mut stream: UnixStream) {
    let mut text = Vec::new();
    let _ = stream.set_read_timeout(Some(REQUEST_LIMIT));
    if (&stream).take(LONGEST).read_to_end(&mut text).is_err() {
        return;
    }
    let answer = match handle(leases, &text) {
        Ok(result) => Json::object([("result", result)]),
        Err(error) => {
            let object = error.to_json(None).parse().unwrap_or_default();
            Json::object([("error", object)])
        }
    };
    let _ = stream.write_all(answer.to_compact().as_bytes());
}

fn handle(leases: &Arc<Leases>, text: &[u8]) -> Result<Json, Error> {
    let failed = |e: String| Error::new(code::DECODE, format!("read the request: {e}"));
    let value = Json::parse(text).map_err(|e| failed(e.to_string()))?;
    let m = Members::of(&value, "Request").map_err(failed)?;
    match m.string("verb").map_err(failed)?.as_str() {
        "ADD" => {
            let request = Request::parse(&value, &leases.prefix)?;
            let priority = request.conf.priority;
            let lease = leases.get(request)?;
            let text = lease.to_result(priority).to_json(version::NEWEST).map_err(Error::internal)?;
            text.parse().map_err(|e: model::gojson::SyntaxError| Error::internal(e.to_string()))
        }
        "CHECK" => {
            let key = key(&m).map_err(failed)?;
            let missing = || {
                let msg = format!("dhcp: no lease for {} of {}: it was lost, or never made", key.2, key.0);
                Error::internal(msg).details("the daemon's log says why")
            };
            leases.look(&key).map(|_| Json::Null).ok_or_else(missing)
        }
        "DEL" => {
            leases.release(&key(&m).map_err(failed)?);
            Ok(Json::Null)
        }
        "GC" => {
            leases.keep_only(&m.string("network").map_err(failed)?, m.get("document").unwrap_or(&Json::Null));
            Ok(Json::Null)
        }
        _ => Ok(Json::Null),
    }
}

fn key(m: &Members<'_>) -> Result<Key, String> {
    Ok((m.string("containerID")?, m.string("network")?, m.string("ifname")?))
}

impl Leases {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Key, Sender<Command>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The living lease of an attachment.
    fn look(&self, key: &Key) -> Option<Lease> {
        let thread = self.lock().get(key).cloned()?;
        let (sender, answer) = mpsc::channel();
        let lease = thread.send(Command::Look(sender)).ok().and_then(|()| answer.recv().ok());
        if lease.is_none() {
            // The thread has ended.
            self.lock().remove(key);
        }
        lease.flatten()
    }

    /// The lease of an attachment: the one there is, or a new one.
    fn get(self: &Arc<Self>, request: Request) -> Result<Lease, Error> {
        if let Some(lease) = self.look(&request.key) {
            return Ok(lease);
        }
        let key = request.key.clone();
        let task = Task::new(request, self.manner.clone())?;
        let (first, outcome) = mpsc::channel();
        start(self, task, Some(first));
        let ended = || Error::internal("error acquiring lease: the interface or its namespace vanished");
        outcome.recv().unwrap_or_else(|_| Err(ended())).inspect_err(|_| drop(self.lock().remove(&key)))
    }

    fn release(&self, key: &Key) {
        let Some(thread) = self.lock().remove(key) else { return };
        let (done, wait) = mpsc::channel();
        if thread.send(Command::Release(done)).is_ok() {
            let _ = wait.recv_timeout(Duration::from_secs(5));
        }
    }

    fn keep_only(&self, network: &str, document: &Json) {
        let list = document.get("cni.dev/valid-attachments").or_else(|| document.get("cni.dev/attachments"));
        let Some(list) = list.and_then(Json::as_array) else { return };
        let text =
            |item: &Json, key: &str| item.get(key).and_then(Json::as_str).unwrap_or_default().to_owned();
        let valid: Vec<(String, String)> =
            list.iter().map(|item| (text(item, "containerID"), text(item, "ifname"))).collect();
        let stale: Vec<Key> = self
            .lock()
            .keys()
            .filter(|key| key.1 == network && !valid.contains(&(key.0.clone(), key.2.clone())))
            .cloned()
            .collect();
        stale.iter().for_each(|key| self.release(key));
    }
}

fn say(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_the_reference_daemons() {
        let read = |words: &str| options(&words.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        let all = read(
            "-socketpath /s --pidfile=/p -hostprefix /host -broadcast -timeout 3s -resendmax 1m2s -resendtimeout 500ms",
        );
        let all = all.ok().unwrap();
        assert_eq!(
            (all.socket.as_str(), all.pidfile, all.prefix.as_str()),
            ("/s", Some("/p".into()), "/host")
        );
        assert!(all.manner.broadcast);
        let manner = all.manner;
        assert_eq!((manner.timing.resend_max, manner.timing.give_up, manner.listen), (62_000, 500, 3_000));
        let manner = read("").ok().unwrap().manner;
        assert_eq!(
            (manner.timing.resend_max, manner.timing.give_up, manner.listen),
            (62_000, 208_000, 10_000)
        );
        for (words, want) in [
            ("-pidfile p", "-pidfile \"p\" is not absolute"),
            ("-resendmax 5", "-resendmax \"5\": write a time such as 62s"),
            ("-resendmax", "-resendmax needs a value"),
            ("-x 1", "there is no flag -x"),
        ] {
            assert_eq!(read(words).err().as_deref(), Some(want));
        }
    }
}
