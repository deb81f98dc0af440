//! `loden dump`: one archive for a bug report.

use std::fs::{self, OpenOptions};
use std::io::{IsTerminal as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::words::{Command, Words, flag};
use super::{complain, print};
use crate::dump::collect;
use crate::status::gather::rfc3339;
use crate::{archive, args, socket};

/// What it is, for help, completion and manual.
pub const COMMAND: Command = Command {
    name: "dump",
    words: "",
    summary: "collect what a bug report needs in one archive, without secrets",
    text: "\
Writes a tar archive: the agent's status, settings, metrics and last log lines, what `loden doctor` finds and looks at, \
the kernel's links, addresses, routes, rules, neighbours, forwarding entries, counters, packet rules and parameters, \
subnet.env, the network configuration and CNI's. Its first file, MANIFEST, tells what is in it, what is not there and what could \
not be got.

Passwords, keys, tokens and users in URLs are taken out, and kubeconfig files are not in it; names of hosts and addresses \
are. Look through it before you give it to others: `tar -xOf FILE | less`. `loden status --from FILE` and `loden doctor --from \
FILE` show it on any machine.",
    flags: &[
        flag("-o", "FILE", "where to write it; - is standard output. Else loden-dump-HOST-TIME.tar in this directory")
            .long("--output"),
        flag("--socket", "PATH", "ask the agent with this socket"),
        flag("--root", "DIR", "files of the host are below DIR (for containers)"),
    ],
    exit: "0 everything is in it, 2 something is missing (said on standard error and in MANIFEST), or nothing was written.",
    sub: &[],
};

struct Wish {
    output: Option<String>,
    socket: Option<PathBuf>,
    root: PathBuf,
}

/// Runs the command; gives the exit status.
pub fn main(words: &[String]) -> u8 {
    COMMAND.serve(parse(words), run)
}

/// Whether the words make sense.
#[cfg(test)]
pub fn understands(words: &[String]) -> Result<(), String> {
    parse(words).map(drop)
}

/// `None` for help.
fn parse(words: &[String]) -> Result<Option<Wish>, String> {
    let mut wish = Wish { output: None, socket: None, root: PathBuf::from("/") };
    let mut words = Words::new(words, &COMMAND);
    while let Some(name) = words.word()? {
        match name {
            "-o" => wish.output = Some(words.value()?.to_owned()),
            "--socket" => wish.socket = Some(PathBuf::from(words.value()?)),
            "--root" => wish.root = PathBuf::from(words.value()?),
            "--help" => return Ok(None),
            other => return Err(words.unknown(other)),
        }
    }
    Ok(Some(wish))
}

fn run(wish: Wish) -> Result<u8, String> {
    let stdout = wish.output.as_deref() == Some("-");
    if stdout && std::io::stdout().is_terminal() {
        return Err(
            "an archive is no text for a terminal; name a file with -o, or send it to a program".to_owned()
        );
    }
    let options = args::from_environment();
    let said = std::env::var("LODEN_SOCKET").ok();
    let socket = wish.socket.or_else(|| socket::path(said.as_deref(), &options.subnet_file));
    if std::io::stderr().is_terminal() {
        complain("asking the agent, the kernel and the host's programs; this may take some seconds\n");
    }
    let bundle = collect::bundle(&collect::Place { socket, root: wish.root, options: &options });
    let gaps = bundle.gaps();
    let now = SystemTime::now();
    let made = rfc3339(now);
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "unknown" } else { host.trim() };
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let entries = bundle.finish(&made, host);
    let bytes = archive::write(&entries, seconds);
    if stdout {
        let mut out = std::io::stdout().lock();
        out.write_all(&bytes)
            .and_then(|()| out.flush())
            .map_err(|error| format!("write the archive: {error}"))?;
    } else {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let named = || {
            let host: String = host.chars().filter(|c| plain(*c)).collect();
            format!("loden-dump-{host}-{}.tar", made.replace([':', '-'], ""))
        };
        let path = PathBuf::from(wish.output.unwrap_or_else(named));
        write(&path, &bytes)?;
        print(&format!("wrote {} ({} files, {} KiB)\n", path.display(), entries.len(), bytes.len() / 1024));
    }
    gaps.iter().for_each(|gap| complain(&format!("not in it: {gap}\n")));
    if gaps.is_empty() {
        return Ok(0);
    }
    complain("the archive is not complete, see above\n");
    Ok(2)
}

/// Readable by nobody else, and there only whole.
fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let told = |error: std::io::Error| format!("write {}: {error}", path.display());
    // A device or a pipe is written as it is.
    let plain = fs::metadata(path).map_or(true, |data| data.is_file());
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = if plain { path.with_file_name(format!(".{name}.new")) } else { path.to_owned() };
    let write = || {
        let mut file =
            OpenOptions::new().write(true).create(plain).truncate(plain).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        if plain { fs::rename(&temporary, path) } else { Ok(()) }
    };
    write().map_err(|error| {
        if plain {
            // It may not have been made.
            let _ = fs::remove_file(&temporary);
        }
        told(error)
    })
}
