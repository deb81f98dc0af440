//! iptables through the host's own programs: which variant the host uses, what of its tables is ours, and
//! one `iptables-restore --noflush` that puts it right.
//!
//! The kernel takes rules of iptables-legacy only from a program that knows their binary form, and those of
//! iptables-nft are its own dialect of nftables: no other program may write them. A program is started
//! only when the kernel itself says that something has changed: by digests of the rules or of the legacy
//! table, which do not cover counters. One that hangs or waits for the lock costs [`LIMIT`] at most.

mod find;
mod legacy;

pub use find::plain;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use model::Family;
use plan::state::iptables::{Iptables, IptablesKey, Variant, removal};
use plan::state::{NftFamily, TableKey};

use crate::{Errno, Netns, Nft, NftBatch, process};

/// Longest time for one program. The thread that waits is the one that writes the kernel.
const LIMIT: Duration = Duration::from_secs(2);
/// How long the legacy variant waits for its lock, in seconds.
const WAIT: &str = "--wait=1";
/// After a program that hung, or a lock that did not come free, no other is started for so long.
const REST: Duration = Duration::from_millis(400);
/// How often a restore is begun again because another program changed what it builds on.
const ATTEMPTS: usize = 5;
/// The lock of iptables-legacy.
const LOCK: &str = "/run/xtables.lock";

/// Major, minor and patch.
type Version = (u32, u32, u32);

/// A program `iptables`, with its companions `-save` and `-restore`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Program {
    path: PathBuf,
    version: Version,
}

/// The iptables of a namespace, as seen so far.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    /// Found programs; an absent one is looked for again.
    programs: BTreeMap<(Variant, Family), Program>,
    versions: BTreeMap<PathBuf, (Version, Variant)>,
    /// The variant this host uses, once decided.
    pub(crate) variant: Option<Variant>,
    seen: BTreeMap<IptablesKey, (Mark, Option<Iptables>)>,
    /// For which networks `seen` was judged.
    networks: Vec<IpNet>,
    /// Several tables could not be restored together.
    apart: bool,
    /// Something hung: until when nothing is tried, and what to say.
    broken: Option<(Instant, String)>,
}

/// What tells, without a process, that a table is the one seen before.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Mark {
    /// There is nothing of anybody in our chain and the built-in one.
    Nothing,
    /// Number of the table, and digests of the rules in our chain, if it is there, and in the built-in one.
    Nft(Option<u64>, Option<Vec<u64>>, Vec<u64>),
    /// Digest of the table.
    Legacy(u64),
    /// The kernel does not say.
    Unknown,
}

/// What a program works on: sockets and the namespace.
pub(crate) struct Place<'a> {
    pub(crate) nft: &'a mut Nft,
    pub(crate) netns: Option<&'a Netns>,
}

impl Place<'_> {
    /// Runs `work` inside.
    fn inside<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        match self.netns {
            Some(netns) => netns.run(work).map_err(io::Error::other)?,
            None => work(),
        }
    }

    /// Names of the tables iptables-legacy has in use; none where the kernel has no such thing.
    fn legacy_tables(&self, family: Family) -> Vec<String> {
        let file = match family {
            Family::V4 => "/proc/thread-self/net/ip_tables_names",
            Family::V6 => "/proc/thread-self/net/ip6_tables_names",
        };
        let text = self.inside(|| fs::read_to_string(file)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn mark(&mut self, key: IptablesKey) -> Result<Mark, Errno> {
        let table = key.table;
        if key.variant == Variant::Legacy {
            if !self.legacy_tables(key.family).iter().any(|name| name == table.name()) {
                return Ok(Mark::Nothing);
            }
            let digest = self.inside(move || legacy::digest(key.family, table.name()));
            return Ok(digest.map_or(Mark::Unknown, Mark::Legacy));
        }
        let name = nft_table(key);
        let Some(info) = self.nft.table(&name)? else { return Ok(Mark::Nothing) };
        let there = self.nft.has_chain(&name, table.chain())?;
        let chain = if there { Some(self.nft.digests(&name, table.chain())?) } else { None };
        let parent = self.nft.digests(&name, table.parent())?;
        if chain.is_none() && parent.is_empty() {
            return Ok(Mark::Nothing);
        }
        Ok(Mark::Nft(info.handle, chain, parent))
    }
}

/// The table of nftables in which iptables-nft keeps one of its own.
fn nft_table(key: IptablesKey) -> TableKey {
    let family = if key.family == Family::V4 { NftFamily::Ip } else { NftFamily::Ip6 };
    TableKey { family, name: key.table.name().to_owned() }
}

impl Tables {
    /// What of a table is ours; `None` if nothing is. Only when something has changed a program is started.
    ///
    /// # Errors
    /// The table cannot be read, as a sentence.
    pub(crate) fn read(
        &mut self,
        place: &mut Place<'_>,
        key: IptablesKey,
        networks: &[IpNet],
    ) -> Result<Option<Iptables>, String> {
        if self.networks != networks {
            self.seen.clear();
            self.networks = networks.to_vec();
        }
        let mark = place.mark(key).map_err(|errno| format!("read table {}: {errno}", nft_table(key)))?;
        if mark == Mark::Nothing {
            self.seen.remove(&key);
            return Ok(None);
        }
        if let Some((seen, found)) = self.seen.get(&key)
            && *seen == mark
            && mark != Mark::Unknown
        {
            return Ok(found.clone());
        }
        let Some(program) = self.program(key.variant, key.family) else {
            return Ok(without_program(key, &mark));
        };
        let text = match &mark {
            Mark::Nft(_, chain, _) => {
                // Only these two, for a save of ten thousand rules takes a third of a second.
                let table = key.table;
                let chains = [Some(table.parent()), chain.as_ref().map(|_| table.chain())];
                let mut text = String::new();
                for chain in chains.into_iter().flatten() {
                    text += &self.ask(place, &program, "", &["-t", table.name(), "-S", chain])?;
                }
                text
            }
            _ => self.save(place, &program, key)?,
        };
        let found = Iptables::found(key, &text, networks);
        self.seen.insert(key, (mark, found.clone()));
        Ok(found)
    }

    /// Makes a table hold what is wanted of ours, in one transaction.
    ///
    /// # Errors
    /// One sentence; nothing was changed then.
    pub(crate) fn put(&mut self, place: &mut Place<'_>, wanted: &Iptables) -> Result<(), Errno> {
        let networks = self.networks.clone();
        self.change(place, wanted.key, |tables, place, _| {
            let actual = tables.read(place, wanted.key, &networks)?;
            Ok(Some(wanted.restore(actual.as_ref())))
        })
    }

    /// As [`Tables::put`] for several tables of one variant and family, by one program: most of its time is its start. If
    /// that fails, one by one from then on: each knows its own reason, and has the time for itself.
    pub(crate) fn put_all(&mut self, place: &mut Place<'_>, wanted: &[&Iptables]) -> Vec<Result<(), Errno>> {
        if wanted.len() > 1 && !self.apart && self.put_together(place, wanted).is_some() {
            return vec![Ok(()); wanted.len()];
        }
        wanted.iter().map(|rules| self.put(place, rules)).collect()
    }

    fn put_together(&mut self, place: &mut Place<'_>, wanted: &[&Iptables]) -> Option<()> {
        let IptablesKey { variant, family, .. } = wanted.first()?.key;
        let program = self.program(variant, family)?;
        let networks = self.networks.clone();
        let mut text = String::new();
        for rules in wanted {
            let actual = self.read(place, rules.key, &networks).ok()?;
            text += &rules.restore(actual.as_ref());
        }
        let restored = self.restore(place, &program, variant, text);
        for rules in wanted {
            self.seen.remove(&rules.key);
        }
        self.apart = restored.is_err();
        restored.ok()
    }

    /// Removes what is ours from a table. Where no program is there to do it, the masquerade rules of the
    /// nft variant are removed and their chain and jump stay, as flanneld leaves them (decision 0132).
    ///
    /// # Errors
    /// As [`Tables::put`].
    pub(crate) fn delete(&mut self, place: &mut Place<'_>, key: IptablesKey) -> Result<(), Errno> {
        if self.program(key.variant, key.family).is_none() {
            let mut batch = NftBatch::new();
            batch.flush_chain(&nft_table(key), key.table.chain());
            return place.nft.commit(&batch).map_err(|error| sentence(error.to_string()));
        }
        let networks = self.networks.clone();
        self.change(place, key, |tables, place, program| {
            Ok(removal(key, &tables.save(place, program, key)?, &networks))
        })
    }

    /// Plans and restores; again if another program acted in between.
    fn change(
        &mut self,
        place: &mut Place<'_>,
        key: IptablesKey,
        plan: impl Fn(&mut Tables, &mut Place<'_>, &Program) -> Result<Option<String>, String>,
    ) -> Result<(), Errno> {
        let Some(program) = self.program(key.variant, key.family) else {
            let name = plain(key.family);
            return Err(sentence(format!("{name} is not installed where the agent runs (package iptables)")));
        };
        let mut attempt = 1;
        loop {
            let before = place.mark(key)?;
            let Some(text) = plan(self, place, &program).map_err(sentence)? else { return Ok(()) };
            let restored = self.restore(place, &program, key.variant, text);
            self.seen.remove(&key);
            match restored {
                Ok(()) => return Ok(()),
                Err(error)
                    if attempt == ATTEMPTS || self.broken.is_some() || before == place.mark(key)? =>
                {
                    return Err(sentence(error));
                }
                Err(_) => attempt += 1,
            }
        }
    }

    fn save(&mut self, place: &mut Place<'_>, program: &Program, key: IptablesKey) -> Result<String, String> {
        self.ask(place, program, "-save", &["-t", key.table.name()])
    }

    fn restore(
        &mut self,
        place: &mut Place<'_>,
        program: &Program,
        variant: Variant,
        text: String,
    ) -> Result<(), String> {
        let mut args = vec!["--noflush"];
        let mut held = None;
        if variant == Variant::Legacy {
            if program.version >= (1, 6, 2) {
                args.push(WAIT);
            } else {
                held = Some(self.lock()?);
            }
        }
        let done = self.run(place, program, "-restore", &args, text.into_bytes());
        drop(held);
        done.map(drop)
    }

    /// The lock, for programs that do not take it themselves.
    fn lock(&mut self) -> Result<fs::File, String> {
        let open = || fs::OpenOptions::new().create(true).truncate(false).write(true).open(LOCK);
        let file = open().map_err(|error| format!("open {LOCK}: {error}"))?;
        let deadline = Instant::now() + Duration::from_secs(1);
        while file.try_lock().is_err() {
            if Instant::now() > deadline {
                return Err(self.rest(busy()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(file)
    }

    fn ask(
        &mut self,
        place: &mut Place<'_>,
        program: &Program,
        part: &str,
        args: &[&str],
    ) -> Result<String, String> {
        let output = self.run(place, program, part, args, Vec::new())?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn run(
        &mut self,
        place: &Place<'_>,
        program: &Program,
        part: &str,
        args: &[&str],
        input: Vec<u8>,
    ) -> Result<Output, String> {
        if let Some((until, said)) = &self.broken {
            if Instant::now() < *until {
                return Err(said.clone());
            }
            self.broken = None;
        }
        let mut path = program.path.clone().into_os_string();
        path.push(part);
        let shown = format!("{} {}", PathBuf::from(&path).display(), args.join(" "));
        let limit = LIMIT;
        let done = place.inside(move || process::run(Command::new(path).args(args), input, limit));
        match done {
            Ok(Some(output)) if output.status.success() => Ok(output),
            Ok(Some(output)) => {
                let text = String::from_utf8_lossy(&output.stderr);
                if text.contains("xtables lock") {
                    return Err(self.rest(busy()));
                }
                let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
                Err(format!("{shown}: {}", lines.join(" ")))
            }
            Ok(None) => {
                let seconds = LIMIT.as_secs();
                Err(self
                    .rest(format!("{shown} did not end within {seconds} s and was stopped; try it by hand")))
            }
            Err(error) => Err(format!("start {shown}: {error}; install the package iptables anew")),
        }
    }

    fn rest(&mut self, said: String) -> String {
        self.broken = Some((Instant::now() + REST, said.clone()));
        said
    }
}

/// What can be said of a table that no program is there for: whether our masquerade rules, or a flanneld's,
/// stand there.
fn without_program(key: IptablesKey, mark: &Mark) -> Option<Iptables> {
    let Mark::Nft(_, Some(chain), _) = mark else { return None };
    (!chain.is_empty()).then(|| Iptables::unknown(key))
}

fn busy() -> String {
    format!("another program holds the lock of iptables for longer than 1 s; find it with: fuser -v {LOCK}")
}

/// An answer that is a sentence and no number of the kernel.
fn sentence(text: String) -> Errno {
    Errno { code: 0, text: Some(text), offset: None }
}
