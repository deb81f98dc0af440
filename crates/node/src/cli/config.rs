//! `loden config get | put FILE`: the network configuration in the store.

use std::io::Read as _;

use super::words::{Command, NONE, Words};
use super::{complain, print};
use crate::start::Personality;
use crate::stores::{Store, choose_store};

/// What it is, for help, completion and manual.
pub const COMMAND: Command = Command {
    name: "config",
    words: "",
    summary: "read or write the network configuration in the store",
    text: "\
Reads or writes the network configuration in the store named by LODEN_STORE or the FLANNELD_* variables. FILE is JSON such as \
{\"Network\":\"10.244.0.0/16\",\"Backend\":{\"Type\":\"vxlan\"}}; - is standard input. It is checked before it is written.",
    flags: &[],
    exit: "0 done, 1 the store or the file does not do, 2 the command line is not understood.",
    sub: &[
        Command { name: "get", words: "", summary: "print it", ..NONE },
        Command { name: "put", words: "FILE", summary: "check a file and write it", ..NONE },
    ],
};

/// Runs the command; gives the exit status.
pub fn main(words: &[String]) -> u8 {
    let texts: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match texts.as_slice() {
        ["get"] => get(),
        ["put", file] => put(file),
        ["-h" | "-help" | "--help" | "help"] => return print(&COMMAND.usage()),
        [] => return COMMAND.refuse("get or put?"),
        ["put"] => return COMMAND.refuse("put needs a file; - is standard input"),
        ["get" | "put", more @ ..] => {
            return COMMAND.refuse(&format!("{:?} is too much", more.last().unwrap_or(&"")));
        }
        [other, ..] => return COMMAND.refuse(&Words::new(words, &COMMAND).unknown(other)),
    };
    match done {
        Ok(()) => 0,
        Err(error) => {
            complain(&format!("loden config: {error}\n"));
            1
        }
    }
}

fn get() -> Result<(), String> {
    let text = with_store(async |store| store.config().await)?;
    print(&format!("{}\n", text.trim_end()));
    Ok(())
}

fn put(file: &str) -> Result<(), String> {
    let mut text = String::new();
    let read = if file == "-" {
        std::io::stdin().lock().read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|mut f| f.read_to_string(&mut text))
    };
    read.map_err(|error| format!("read {file}: {error}"))?;
    crate::membership::usable(&text, true)?;
    with_store(async |store| store.put_config(text.trim()).await)
}

fn with_store<T>(work: impl AsyncFnOnce(&Store) -> Result<T, store::StoreError>) -> Result<T, String> {
    let options = crate::args::from_environment();
    let store = choose_store(&options, Personality::Loden)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("start the runtime for stores: {error}"))?;
    runtime.block_on(work(&store)).map_err(|error| error.to_string())
}
