//! `loden status`: how this node is, by its agent, or by the kernel alone.

use std::path::{Path, PathBuf};

use kernel::Kernel;

use super::{cleanup, complain, print};
use crate::status::{Status, json, show};
use crate::{args, socket};

const USAGE: &str = "\
usage: loden status [--why] [-o table|json] [--socket PATH]

Shows how this node is: store, lease, interface, backend, peers, kernel objects, troubles. Asks the agent
through its socket, which is beside the subnet file (FLANNELD_SUBNET_FILE, else /run/flannel/subnet.env) or
where LODEN_SOCKET says. Without an agent it shows what the kernel holds.

  --why           show everything that was looked at in choosing the interface
  -o table        text for people (the default), coloured on a terminal unless NO_COLOR is set
  -o json         one JSON document, with a version
  --socket PATH   ask the agent with this socket

Exit status: 0 healthy, 1 not healthy, 2 cannot tell.
";

struct Wish {
    why: bool,
    json: bool,
    socket: Option<PathBuf>,
}

/// Runs the command; gives the exit status.
pub fn main(words: &[String]) -> u8 {
    let wish = match parse(words) {
        Ok(Some(wish)) => wish,
        Ok(None) => return print(USAGE),
        Err(error) => {
            complain(&format!("loden status: {error}\n\n{USAGE}"));
            return 2;
        }
    };
    let options = args::from_environment();
    let said = std::env::var("LODEN_SOCKET").ok();
    let path = wish.socket.or_else(|| socket::path(said.as_deref(), &options.subnet_file));
    let answer = match &path {
        Some(path) => socket::ask(path),
        None => Err("the agent has no socket: LODEN_SOCKET is none".to_owned()),
    };
    let status = answer.unwrap_or_else(|silent| alone(silent, Path::new(&options.subnet_file)));
    if wish.json {
        print(&format!("{}\n", json::write(&status).to_indented()));
    } else {
        let style = lab::style(false);
        print(&style.lines(&show::show(&status, wish.why, style)));
    }
    status.verdict().code()
}

/// `None` for help.
fn parse(words: &[String]) -> Result<Option<Wish>, String> {
    let mut wish = Wish { why: false, json: false, socket: None };
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        let (name, given) = match word.split_once('=') {
            Some((name, value)) if name.starts_with('-') => (name, Some(value)),
            _ => (word, None),
        };
        let mut value = |what: &str| {
            given.or_else(|| words.next()).ok_or_else(|| format!("{name} needs a value: {what}"))
        };
        match name {
            "--why" | "-why" => wish.why = true,
            "-o" | "--output" => match value("table or json")? {
                "table" => wish.json = false,
                "json" => wish.json = true,
                other => return Err(format!("-o {other:?} is no format; write table or json")),
            },
            "--socket" => wish.socket = Some(PathBuf::from(value("a path")?)),
            "-h" | "-help" | "--help" | "help" => return Ok(None),
            other => return Err(format!("there is no {other:?} here")),
        }
    }
    Ok(Some(wish))
}

/// What the kernel and the disk tell by themselves.
fn alone(silent: String, subnet_file: &Path) -> Status {
    let mut status = Status { silent: Some(silent), ..Status::default() };
    let ours = Kernel::open()
        .map_err(|error| error.to_string())
        .and_then(|mut kernel| cleanup::ours(&mut kernel, &[]));
    match ours {
        Ok(state) => status.kernel = state.iter().map(|(_, object)| object.to_string()).collect(),
        Err(error) => {
            let silent = status.silent.get_or_insert_default();
            silent.push_str(&format!("; the kernel cannot be read either: {error}"));
        }
    }
    // A file that cannot be read is none.
    let text = std::fs::read_to_string(subnet_file).unwrap_or_default();
    status.subnet_env = text.lines().map(str::to_owned).collect();
    status
}
