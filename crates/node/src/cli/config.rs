//! `loden config get | put FILE`: the network configuration in the store.

use std::io::Read as _;

use super::{complain, print};
use crate::start::{self, Personality, Store};

const USAGE: &str = "\
usage: loden config get
       loden config put FILE

Reads or writes the network configuration in the store named by LODEN_STORE or the FLANNELD_*
variables. FILE is JSON such as {\"Network\":\"10.244.0.0/16\",\"Backend\":{\"Type\":\"vxlan\"}}; - is standard
input. It is checked before it is written.
";

/// Runs the command; gives the exit status.
pub fn main(words: &[String]) -> u8 {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["get"] => get(),
        ["put", file] => put(file),
        ["-h" | "-help" | "--help" | "help"] => return print(USAGE),
        _ => {
            complain(USAGE);
            return 2;
        }
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
    let store = start::choose_store(&options, Personality::Loden)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("start the runtime for stores: {error}"))?;
    runtime.block_on(work(&store)).map_err(|error| error.to_string())
}
