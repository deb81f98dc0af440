//! `loden status`: how this node is, by its agent, or by the kernel alone.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kernel::Kernel;
use plan::State;

use super::words::{Command, FORMAT, SOCKET, Words, flag, switch};
use super::{cleanup, complain, print};
use crate::dump::open::Dump;
use crate::status::{Status, Verdict, json, show};
use crate::{args, metrics, socket};

/// How long `--wait` waits unless it is told.
const WAIT: Duration = Duration::from_secs(60);
/// Distance of questions.
const AGAIN: Duration = Duration::from_secs(1);

/// What it is, for help, completion and manual.
pub const COMMAND: Command = Command {
    name: "status",
    words: "",
    summary: "show how this node is, and why",
    text: "\
Shows how this node is: store, lease, interface, backend, peers, kernel objects, troubles. Asks the agent through its \
socket, which is beside the subnet file (FLANNELD_SUBNET_FILE, else /run/flannel/subnet.env) or where LODEN_SOCKET says. \
Without an agent it shows what the kernel holds.",
    flags: &[
        flag("--wait", "SECONDS", "ask again until the node is healthy, at most so long (60 s)").maybe(),
        switch(
            "--why",
            "show everything that was looked at in choosing the interface, and a sentence for each path",
        ),
        FORMAT,
        SOCKET,
        flag("--from", "FILE", "show what it was when `loden dump` made this archive; - is standard input"),
    ],
    exit: "0 healthy: ready, nothing wrong, and packets were seen to come back from another node if there is one; 1 not \
           healthy; 2 cannot tell: no agent answers, or no path has been probed.",
    sub: &[],
};

struct Wish {
    why: bool,
    wait: Option<Duration>,
    json: bool,
    socket: Option<PathBuf>,
    from: Option<String>,
}

/// Runs the command; gives the exit status.
pub fn main(words: &[String]) -> u8 {
    COMMAND.serve(parse(words), |wish| run(&wish))
}

fn run(wish: &Wish) -> Result<u8, String> {
    if let Some(file) = &wish.from {
        return Ok(tell(&recorded(file)?, wish));
    }
    let options = args::from_environment();
    let said = std::env::var("LODEN_SOCKET").ok();
    let path = wish.socket.clone().or_else(|| socket::path(said.as_deref(), &options.subnet_file));
    let ask = || {
        let answer = socket::ask(path.as_deref());
        answer.unwrap_or_else(|silent| alone(silent, Path::new(&options.subnet_file)))
    };
    Ok(tell(&patiently(wish.wait.unwrap_or_default(), ask), wish))
}

/// Prints it; gives the exit status.
fn tell(status: &Status, wish: &Wish) -> u8 {
    if wish.json {
        print(&format!("{}\n", json::write(status).to_indented()));
    } else {
        let style = lab::style(false);
        print(&style.lines(&show::show(status, wish.why, style)));
    }
    status.verdict().code()
}

/// What an archive says.
fn recorded(file: &str) -> Result<Status, String> {
    let dump = Dump::open(file)?;
    let status = dump.status()?;
    complain(&format!("as of {}\n", dump.made));
    Ok(status)
}

/// Whether the words make sense.
#[cfg(test)]
pub fn understands(words: &[String]) -> Result<(), String> {
    parse(words).map(drop)
}

/// `None` for help.
fn parse(words: &[String]) -> Result<Option<Wish>, String> {
    let mut wish = Wish { why: false, wait: None, json: false, socket: None, from: None };
    let mut words = Words::new(words, &COMMAND);
    while let Some(name) = words.word()? {
        match name {
            "--why" => wish.why = true,
            "--wait" => wish.wait = Some(seconds(words.given)?),
            "-o" => wish.json = super::is_json(words.value()?)?,
            "--socket" => wish.socket = Some(PathBuf::from(words.value()?)),
            "--from" => wish.from = Some(words.value()?.to_owned()),
            "--help" => return Ok(None),
            other => return Err(words.unknown(other)),
        }
    }
    if wish.from.is_some() && (wish.wait.is_some() || wish.socket.is_some()) {
        return Err("--from shows an archive, which neither --wait nor --socket can change".to_owned());
    }
    Ok(Some(wish))
}

/// The time to wait, 0 to a day.
fn seconds(given: Option<&str>) -> Result<Duration, String> {
    let Some(text) = given else { return Ok(WAIT) };
    let seconds = text.strip_suffix('s').unwrap_or(text).parse::<u64>().ok().filter(|s| *s <= 86_400);
    let seconds = seconds.ok_or_else(|| format!("--wait={text:?} is no number of seconds, 0 to 86400"))?;
    Ok(Duration::from_secs(seconds))
}

/// Asks until the answer is a healthy one or the time is over; says what it waits for, once each.
fn patiently(limit: Duration, mut ask: impl FnMut() -> Status) -> Status {
    let end = Instant::now() + limit;
    let mut said = String::new();
    loop {
        let status = ask();
        let left = end.saturating_duration_since(Instant::now());
        if status.verdict() == Verdict::Healthy || left.is_zero() {
            return status;
        }
        let reason = status.reason();
        if said != reason {
            complain(&format!("waiting: {reason}\n"));
            said = reason;
        }
        std::thread::sleep(left.min(AGAIN));
    }
}

/// What the kernel and the disk tell by themselves.
pub fn alone(silent: String, subnet_file: &Path) -> Status {
    by_kernel(silent, subnet_file).0
}

/// The same, and what the kernel holds of ours as a value.
pub fn by_kernel(silent: String, subnet_file: &Path) -> (Status, State) {
    let mut status = Status { silent: Some(silent), ..Status::default() };
    let ours = Kernel::open()
        .map_err(|error| error.to_string())
        .and_then(|mut kernel| cleanup::ours(&mut kernel, &[]));
    let state = match ours {
        Ok(state) => {
            status.kernel = state.iter().map(|(_, object)| object.to_string()).collect();
            state
        }
        Err(error) => {
            let silent = status.silent.get_or_insert_default();
            silent.push_str(&format!("; the kernel cannot be read either: {error}"));
            State::default()
        }
    };
    status.dropped = metrics::read::dropped();
    // A file that cannot be read is none.
    let text = std::fs::read_to_string(subnet_file).unwrap_or_default();
    status.subnet_env = text.lines().map(str::to_owned).collect();
    (status, state)
}
