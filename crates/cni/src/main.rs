//! `loden-cni`: all CNI plugins in one program, chosen by the name it is called by.
//!
//! `argv[0]` (or the first argument) is a plugin's name, parameters come in the environment, the document
//! on stdin, the answer goes to stdout (cni.md 1). `loden-cni install --bin-dir DIR` puts it in place.

mod arena;
mod attach;
mod compare;
mod copy;
mod delegate;
mod device;
mod forwarding;
mod install;
mod ipam;
mod iptables;
mod lock;
mod masquerade;
mod names;
mod nft;
mod pair;
mod plugin;
mod pod;
mod record;
mod skel;
mod undo;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

// For what it puts in the place of musl's.
use memmove as _;

const USAGE: &str = "\
usage: loden-cni install --bin-dir DIR [--keep]
                                          put the program and a link for each plugin into DIR;
                                          --keep leaves plugins of others, but for flannel
       loden-cni cp -f SOURCE DEST        copy a file into place, as flannel's init containers do
       loden-cni install-conf SOURCE DEST the same for a configuration
       loden-cni PLUGIN                   act as a CNI plugin (cni.md 1: environment and stdin)
       loden-cni dhcp daemon [FLAG]...    keep the leases of pods with the dhcp plugin
       loden-cni --version
plugins:";

#[global_allocator]
static MEMORY: arena::Arena = arena::Arena::new();

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let called = args.next().unwrap_or_default();
    let args: Vec<OsString> = args.collect();
    if let Some(plugin) = plugin::by_name(&base_name(&called)) {
        return match (plugin.name, args.split_first()) {
            ("dhcp", Some((word, flags))) if word == "daemon" => dhcp_daemon(flags),
            _ => skel::main(plugin),
        };
    }
    let words: Vec<String> = args.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if let Some(tool) = copy::by_name(&base_name(&called)) {
        return finish(tool(&words));
    }
    match words.as_slice() {
        ["install", "--bin-dir", _] => install(Path::new(&args[2]), false),
        ["install", "--bin-dir", _, "--keep"] => install(Path::new(&args[2]), true),
        ["cp", words @ ..] => finish(copy::cp(words)),
        ["install-conf", words @ ..] => finish(copy::install_conf(words)),
        ["dhcp", "daemon", ..] => dhcp_daemon(&args[2..]),
        ["--version" | "version"] => say(&format!("loden-cni {}", env!("CARGO_PKG_VERSION")), true),
        ["--help" | "-h" | "help"] => say(&usage(), true),
        [name] => match plugin::by_name(name) {
            Some(plugin) => skel::main(plugin),
            None => say(&format!("{name:?} is no plugin of loden-cni\n{}", usage()), false),
        },
        _ => say(&usage(), false),
    }
}

fn dhcp_daemon(flags: &[OsString]) -> ExitCode {
    let flags: Vec<String> = flags.iter().map(|flag| flag.to_string_lossy().into_owned()).collect();
    plugin::dhcp::daemon::main(&flags)
}

fn base_name(path: &OsString) -> String {
    Path::new(path).file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn usage() -> String {
    let names: Vec<&str> = plugin::ALL.iter().map(|p| p.name).collect();
    format!("{USAGE} {}", names.join(" "))
}

/// Tools say nothing when all is well.
fn finish(done: Result<(), String>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => say(&error, false),
    }
}

fn install(dir: &Path, keep: bool) -> ExitCode {
    match install::install(dir, keep) {
        Ok(report) => say(&report, true),
        Err(error) => say(&format!("loden-cni install: {error}"), false),
    }
}

/// Success goes to stdout, failure to stderr; a reader that went away is no reason to panic.
fn say(text: &str, success: bool) -> ExitCode {
    let done = if success {
        writeln!(std::io::stdout().lock(), "{text}")
    } else {
        writeln!(std::io::stderr().lock(), "{text}")
    };
    if success && done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
