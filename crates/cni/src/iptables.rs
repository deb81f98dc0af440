//! The host's iptables, in whichever variant its names lead to: read a table, write what is missing in one
//! restore (decision 0120).
//!
//! Two processes for a change instead of one for each rule (B-13). Between reading and writing another
//! program may act; the restore then fails as a whole and all of it is done again. Our own calls take
//! turns by a lock file, so that shared rules are never made twice (B-11).

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use model::Family;
use model::cni::iptables::Saved;
use model::cni::{Error, code};
use plan::state::{NftFamily, TableKey};

use crate::pod::internal;
use crate::skel::Call;
use crate::{lock, nft};

/// How often an update is begun again because another program changed what it builds on.
const ATTEMPTS: usize = 5;
/// How long the legacy variant waits for `/run/xtables.lock`, in seconds.
const WAIT: &str = "5";
/// Where the tools are when a runtime starts us without `PATH`.
pub const DIRECTORIES: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A table of a family, and the directory of our lock.
#[derive(Clone, Copy)]
pub struct Table<'a> {
    /// Its family, and with it the tools.
    pub family: Family,
    /// `nat` or `filter`.
    pub name: &'a str,
    /// The directory of our own state.
    pub state_dir: &'a Path,
    /// Where the nf_tables variant keeps them.
    pub nft: &'a nft::Host,
}

impl<'a> Table<'a> {
    /// A table of the host.
    pub fn of(call: &'a Call, family: Family, name: &'a str) -> Table<'a> {
        Table { family, name, state_dir: &call.env.state_dir, nft: &call.nft }
    }
}

impl Table<'_> {
    /// What the table holds.
    ///
    /// # Errors
    /// The tools are missing or refuse.
    pub fn read(&self) -> Result<Saved, Error> {
        let output = self.run("save", &["-t", self.name], "")?;
        if output.status.success() {
            return Ok(Saved::parse(&String::from_utf8_lossy(&output.stdout)));
        }
        Err(self.failed("save", &output))
    }

    /// Writes the lines `plan` asks for, in one transaction; without any nothing is written.
    ///
    /// # Errors
    /// The tools are missing (code 999) or refuse, another program holds the tables (code 11), or the plan
    /// does; nothing was changed then.
    pub fn update(&self, plan: &dyn Fn(&Saved) -> Result<Vec<String>, Error>) -> Result<(), Error> {
        let _turn = lock::named(self.state_dir, "iptables")?;
        let mut before = self.read()?;
        let mut attempt = 1;
        loop {
            let lines = plan(&before)?;
            if lines.is_empty() {
                return Ok(());
            }
            let text = format!("*{}\n{}\nCOMMIT\n", self.name, lines.join("\n"));
            let output = self.run("restore", &["--noflush", "-w", WAIT], &text)?;
            if output.status.success() {
                return Ok(());
            }
            let now = self.read()?;
            if now == before || attempt == ATTEMPTS {
                return Err(self.failed("restore", &output));
            }
            (before, attempt) = (now, attempt + 1);
        }
    }

    /// Whether the table may hold a chain. Starts no process: the nf_tables variant's chains are the
    /// kernel's, and the legacy variant's tables are counted as holding everything.
    pub fn may_hold(&self, chains: &[&str]) -> bool {
        let (nft_family, legacy) = match self.family {
            Family::V4 => (NftFamily::Ip, "/proc/net/ip_tables_names"),
            Family::V6 => (NftFamily::Ip6, "/proc/net/ip6_tables_names"),
        };
        if fs::read_to_string(legacy).is_ok_and(|names| names.lines().any(|name| name == self.name)) {
            return true;
        }
        let key = TableKey { family: nft_family, name: self.name.to_owned() };
        self.nft.may_have(&key, chains)
    }

    fn tool(&self, what: &str) -> String {
        format!("{}-{what}", if self.family == Family::V4 { "iptables" } else { "ip6tables" })
    }

    fn run(&self, what: &str, args: &[&str], input: &str) -> Result<Output, Error> {
        let tool = self.tool(what);
        let start = |e: std::io::Error| {
            let way_out = "install iptables on this node, or set the backend to \"nftables\"";
            Error::internal(format!("could not initialize iptables: execute {tool}: {e}")).details(way_out)
        };
        let mut command = Command::new(&tool);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if std::env::var_os("PATH").is_none_or(|path| path.is_empty()) {
            command.env("PATH", DIRECTORIES);
        }
        let mut child = command.spawn().map_err(start)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A tool that refuses its first line reads no further.
            let _ = stdin.write_all(input.as_bytes());
        }
        child.wait_with_output().map_err(start)
    }

    fn failed(&self, what: &str, output: &Output) -> Error {
        /// `RESOURCE_PROBLEM` in iptables: somebody else holds the lock.
        const BUSY: i32 = 4;
        let text = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let msg = format!("{} of table {}: {}", self.tool(what), self.name, lines.join(" "));
        if output.status.code() == Some(BUSY) && text.contains("lock") {
            return Error::new(code::TRY_LATER, msg);
        }
        internal(msg)
    }
}
