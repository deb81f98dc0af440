//! Shared nftables tables: a few rules of ours in a table several programs write (cni.md 2.0.6, 2.3).

use std::cell::RefCell;
use std::fs::File;
use std::process::Command;
use std::time::{Duration, Instant};

use kernel::nft::message::RuleInfo;
use kernel::nft::{CommentIs, Nft, NftBatch};
use kernel::process;
use kernel::rtnl::{Deleting, Rtnl};
use model::cni::{Error, code};
use plan::state::{NftRule, NftTable, TableKey};

use crate::pod::internal;
use crate::skel::state_dir;
use crate::{iptables, lock};

/// `ENOENT`
const MISSING: i32 = 2;
/// How often an update is begun again because another program removed what it builds on.
const ATTEMPTS: usize = 5;
/// How long the `nft` program may take.
const PROGRAM: Duration = Duration::from_secs(20);
/// How long other programs may keep us from reading or writing.
const PATIENCE: Duration = Duration::from_secs(10);

/// The host's nftables during a call: one socket for all that is asked and changed, made when it is needed.
/// The closing of each one would wait for what was deleted lately, by whomever (decision 0070).
pub struct Host {
    socket: RefCell<Option<Nft>>,
    /// Deletions are about, our own or those of calls beside us: the closing is left to a child process.
    leave: bool,
}

impl Host {
    /// For a call that may delete rules, or not.
    pub fn new(deletes: bool) -> Host {
        Host { socket: RefCell::new(None), leave: deletes }
    }

    /// Asks or changes something; not within itself.
    fn with<T>(&self, work: impl FnOnce(&mut Nft) -> Result<T, Error>) -> Result<T, Error> {
        let mut socket = self.socket.borrow_mut();
        match &mut *socket {
            Some(nft) => work(nft),
            none => work(none.insert(Nft::open().map_err(internal)?)),
        }
    }

    /// Whether the kernel has nftables for us.
    pub fn is_usable(&self) -> bool {
        self.with(|nft| Ok(nft.is_usable())).unwrap_or(false)
    }

    /// Whether a table has one of these chains; also if the kernel does not tell.
    pub fn may_have(&self, key: &TableKey, chains: &[&str]) -> bool {
        let found = |nft: &mut Nft, chain: &&str| nft.has_chain(key, chain).unwrap_or(true);
        self.with(|nft| Ok(chains.iter().any(|chain| found(nft, chain)))).unwrap_or(false)
    }

    /// The rules of a table that have a comment; none if it is not there or the kernel lacks nftables.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn rules(&self, key: &TableKey) -> Result<Vec<RuleInfo>, Error> {
        let mut rules = self.with(|nft| read(nft, key, None, &mut Turn::default()))?;
        rules.retain(|rule| rule.comment.is_some());
        Ok(rules)
    }

    /// In one transaction: deletes the commented rules for which `stale` says so, and adds rules to chains.
    /// The table's own chains and rules are made if they are missing and something is added. Without
    /// anything to change nothing is written.
    ///
    /// # Errors
    /// The kernel's refusal; nothing was changed then.
    pub fn update(
        &self,
        table: &NftTable,
        add: &[(&str, NftRule)],
        stale: &dyn Fn(&str) -> bool,
    ) -> Result<(), Error> {
        self.with(|nft| change(nft, table, add, Some(stale), !add.is_empty())).map(drop)
    }

    /// [`Host::update`], and the table's own chains and rules are made also if nothing is added.
    ///
    /// # Errors
    /// As [`Host::update`].
    pub fn update_in_full(
        &self,
        table: &NftTable,
        add: &[(&str, NftRule)],
        stale: &dyn Fn(&str) -> bool,
    ) -> Result<(), Error> {
        self.with(|nft| change(nft, table, add, Some(stale), true)).map(drop)
    }

    /// [`Host::update`] where nothing is stale: rules of other pods are not looked at, however many there are. Gives the
    /// numbers of what was added; none from kernels that do not tell.
    ///
    /// # Errors
    /// As [`Host::update`].
    pub fn add(&self, table: &NftTable, add: &[(&str, NftRule)]) -> Result<Vec<u64>, Error> {
        let told = self.with(|nft| change(nft, table, add, None, true))?;
        let ours =
            |rule: &&RuleInfo| rule.comment.is_some() && add.iter().any(|(chain, _)| *chain == rule.chain);
        let handles: Vec<u64> = told.iter().filter(ours).map(|rule| rule.handle).collect();
        Ok(if handles.len() == add.len() { handles } else { Vec::new() })
    }

    /// Deletes rules by their numbers, without looking at others; false if one of them is not there or its comment does
    /// not begin so. Nothing was changed then.
    ///
    /// # Errors
    /// The kernel's refusal; nothing was changed.
    pub fn delete(&self, key: &TableKey, chain: &str, handles: &[u64], mark: &str) -> Result<bool, Error> {
        let mut batch = NftBatch::new();
        for handle in handles {
            batch.delete_rule(key, chain, *handle, CommentIs::StartsWith(mark.to_owned()));
        }
        let _turn = Turn::now();
        self.with(|nft| match nft.commit(&batch) {
            Ok(()) => Ok(true),
            Err(e) if e.code() == Some(MISSING) => Ok(false),
            Err(e) => Err(internal(e)),
        })
    }

    /// Other changes of rules.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn commit(&self, batch: &NftBatch) -> Result<(), Error> {
        self.with(|nft| nft.commit(batch).map_err(internal))
    }

    /// Begins to delete a device; the child process that does it closes our socket as well.
    ///
    /// # Errors
    /// No process can be made; nothing has happened.
    pub fn start_deleting(&self, rtnl: &mut Rtnl, index: u32) -> Result<Deleting, Error> {
        // A kernel without nftables deletes devices too.
        let _ = self.with(|_| Ok(()));
        rtnl.start_deleting(index, self.socket.borrow_mut().as_mut()).map_err(internal)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(nft) = self.socket.take().filter(|_| self.leave) {
            nft.leave();
        }
    }
}

/// Dozens of pods may come and go at once, and each change interrupts the listings of all others. So changes are made
/// one call after the other (decision 0184), and who only reads waits its turn when it was interrupted.
#[derive(Default)]
struct Turn(Option<File>);

impl Turn {
    /// Waits for it. Without a place for a lock there are only more attempts.
    fn now() -> Turn {
        Turn(lock::named(&state_dir(), "nftables").ok())
    }

    /// True if it is worth another attempt.
    fn take(&mut self, errno: i32, deadline: Instant) -> bool {
        /// `EINTR`, `ERESTART`
        const INTERRUPTED: [i32; 2] = [4, 85];
        if !INTERRUPTED.contains(&errno) || Instant::now() > deadline {
            return false;
        }
        if self.0.is_none() {
            *self = Turn::now();
        }
        true
    }
}

fn read(nft: &mut Nft, key: &TableKey, chain: Option<&str>, turn: &mut Turn) -> Result<Vec<RuleInfo>, Error> {
    /// `EPROTONOSUPPORT`, `EOPNOTSUPP`, `EINVAL`: no nftables, or not for this family.
    const NOT_SUPPORTED: [i32; 3] = [93, 95, 22];
    let deadline = Instant::now() + PATIENCE;
    loop {
        match nft.rules(key, chain) {
            Err(errno) if NOT_SUPPORTED.contains(&errno.code) => return Ok(Vec::new()),
            Err(errno) if turn.take(errno.code, deadline) => {}
            other => return other.map_err(|e| internal(e).during(format!("list nftables table {key}"))),
        }
    }
}

fn change(
    nft: &mut Nft,
    table: &NftTable,
    add: &[(&str, NftRule)],
    stale: Option<&dyn Fn(&str) -> bool>,
    in_full: bool,
) -> Result<Vec<RuleInfo>, Error> {
    let mut attempt = 1;
    let (mut turn, deadline) = (Turn::now(), Instant::now() + PATIENCE);
    loop {
        let have = match stale {
            Some(_) => read(nft, &table.key, None, &mut turn)?,
            // Chains of the table's own rules have no others.
            None => {
                let own = table.chains.iter().filter(|chain| !chain.rules.is_empty());
                let each = own.map(|chain| read(nft, &table.key, Some(&chain.name), &mut turn));
                each.collect::<Result<Vec<_>, _>>()?.concat()
            }
        };
        let Some(batch) = changes(table, &have, add, stale.unwrap_or(&|_| false), in_full) else {
            return Ok(Vec::new());
        };
        match nft.commit_and_tell(&batch) {
            Err(e) if e.code() == Some(MISSING) && attempt < ATTEMPTS => attempt += 1,
            Err(e) if e.code().is_some_and(|errno| turn.take(errno, deadline)) => {}
            other => return other.map_err(internal),
        }
    }
}

/// `None` if there is nothing to do.
fn changes(
    table: &NftTable,
    have: &[RuleInfo],
    add: &[(&str, NftRule)],
    stale: &dyn Fn(&str) -> bool,
    in_full: bool,
) -> Option<NftBatch> {
    let key = &table.key;
    let mut batch = NftBatch::new();
    let mut any = false;
    let own_rules = |chain: &str| have.iter().filter(|r| r.chain == chain).count();
    if in_full && table.chains.iter().any(|c| own_rules(&c.name) < c.rules.len()) {
        any = true;
        batch.ensure_table(key, table.comment.as_deref());
        table.chains.iter().for_each(|chain| {
            batch.ensure_chain(key, chain);
        });
        for chain in table.chains.iter().filter(|c| !c.rules.is_empty()) {
            batch.flush_chain(key, &chain.name);
            chain.rules.iter().for_each(|rule| {
                batch.add_rule(key, &chain.name, rule);
            });
        }
    }
    let mut deleted: Vec<(&str, &str)> = Vec::new();
    for rule in have {
        let Some(comment) = rule.comment.as_deref().filter(|c| stale(c)) else { continue };
        let pair = (rule.chain.as_str(), comment);
        if !deleted.contains(&pair) {
            batch.delete_rules(key, pair.0, CommentIs::Exactly(comment.to_owned()));
            deleted.push(pair);
            any = true;
        }
    }
    for (chain, rule) in add {
        batch.add_rule(key, chain, rule);
        any = true;
    }
    any.then_some(batch)
}

/// Commands for the `nft` program, one transaction, for what we have no words for. `member` and `words` are
/// the configuration's, for the error.
///
/// # Errors
/// The program is not there, or it refuses the words (code 7) or the kernel what it made of them.
pub fn script(commands: &str, member: &str, words: &str) -> Result<(), Error> {
    let start = |e: std::io::Error| {
        let msg = format!("{member}: {words:?} needs the program nft: execute nft: {e}");
        Error::internal(msg).details(
            "install nftables on this node; without it there are: ip/ip6 saddr/daddr, iifname, oifname, meta mark, each \
             with one value, != before it or not",
        )
    };
    let mut command = Command::new("nft");
    if std::env::var_os("PATH").is_none_or(|path| path.is_empty()) {
        command.env("PATH", iptables::DIRECTORIES);
    }
    let ran = process::run(command.args(["-f", "-"]), commands.into(), PROGRAM).map_err(start)?;
    let output = ran.ok_or_else(|| {
        let msg = format!("nft did not end within {} s and was killed", PROGRAM.as_secs());
        Error::new(code::TRY_LATER, msg)
    })?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let said = lines.first().copied().unwrap_or("no reason given");
    let said = said.split_once("Error: ").map_or(said, |(_, reason)| reason);
    Err(Error::config(format!("{member}: nft refuses {words:?}: {said}")).details(commands.trim()))
}
