//! nftables over netlink: whole tables written and recognised, and small changes of shared ones.
//!
//! Takes tables and rules of the plan; every change is one transaction, so that there is no moment without
//! rules. Our own tables carry the flags OWNER and PERSIST where the kernel has them (≥ 6.9): no other
//! process can change or flush them, and they outlive this process. A flag alone would not do: a table
//! with OWNER only vanishes with its owner.

mod batch;
pub mod expr;
pub mod lower;
pub mod message;

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use ipnet::IpNet;
use plan::state::{Element, NftFamily, NftTable, SetKey, TableKey};

use crate::netlink::{Message, Protocol, Reply, Socket};
use crate::{Errno, Error};
use batch::Change;
pub use batch::{CommentIs, NftBatch};
pub use message::Counted;
use message::{ChainInfo, OWNER, PERSIST, RuleInfo, TableInfo};

/// How often a transaction is tried again after another program was faster.
const ATTEMPTS: usize = 100;

/// Longer than the kernel takes to free deleted rules.
const GRACE: Duration = Duration::from_millis(100);

/// A socket to the nftables of one namespace. Owner of the tables it wrote as owned, as long as it lives.
#[derive(Debug)]
pub struct Nft {
    socket: Socket,
    /// The kernel refused the flags OWNER and PERSIST.
    plain: bool,
    /// A child process closes the socket after us.
    pub(crate) is_left: bool,
}

/// One message of a transaction, and what it does in words.
struct Operation {
    message: Message,
    action: String,
}

impl Operation {
    fn new(message: Message, action: String) -> Operation {
        Operation { message, action }
    }
}

impl Nft {
    /// Opens the namespace of the calling thread.
    ///
    /// # Errors
    /// No socket could be made; the kernel may lack nftables.
    pub fn open() -> Result<Nft, Error> {
        Ok(Nft { socket: Socket::open(Protocol::Netfilter)?, plain: false, is_left: false })
    }

    /// Opens another namespace.
    ///
    /// # Errors
    /// As [`Nft::open`], or the namespace cannot be entered.
    pub fn open_in(netns: BorrowedFd<'_>) -> Result<Nft, Error> {
        Ok(Nft { socket: Socket::open_in(netns, Protocol::Netfilter)?, plain: false, is_left: false })
    }

    /// Closes the socket without waiting. The kernel lets the closing of a netfilter socket wait until it
    /// has freed all rules deleted lately, 10 to 20 ms, and bars all transactions meanwhile: a child
    /// process closes it when that is over (decision 0070). For programs that end; who lives on just drops.
    pub fn leave(self) {
        if !self.is_left {
            // Without a process the closing at the end of this function waits.
            let _ = self.socket.hold_in_child(GRACE);
        }
    }

    /// For a child process that is made for something else.
    pub(crate) fn to_be_left(&self) -> (&Socket, Duration) {
        (&self.socket, GRACE)
    }

    /// Brings a table to the wanted content, whatever is in it now, in one transaction. Others' rules in
    /// it are lost: it is ours. Its sets are empty afterwards.
    ///
    /// # Errors
    /// The kernel's refusal, with the part of the table it is about; `EPERM` if another process owns the
    /// table.
    pub fn replace(&mut self, table: &NftTable) -> Result<(), Errno> {
        self.replace_with(table, &[])
    }

    /// The same with elements of its sets.
    ///
    /// # Errors
    /// As [`Nft::replace`].
    pub fn replace_with(&mut self, table: &NftTable, elements: &[&Element]) -> Result<(), Errno> {
        let flags = (table.owned && !self.plain).then_some(OWNER | PERSIST);
        match self.transaction(None, replace(table, flags, elements)) {
            // Kernels before 6.9 do not know the flags.
            Err(errno) if flags.is_some() && matches!(errno.code, libc::EOPNOTSUPP | libc::EINVAL) => {
                self.transaction(None, replace(table, None, elements))?;
                self.plain = true;
                Ok(())
            }
            Err(errno) if errno.code == libc::EPERM => Err(self.owned_by_other(&table.key, errno)),
            other => other.map(drop),
        }
    }

    /// Deletes a table; false if it was not there.
    ///
    /// # Errors
    /// As [`Nft::replace`].
    pub fn delete_table(&mut self, key: &TableKey) -> Result<bool, Errno> {
        let operation = Operation::new(message::delete_table(key), format!("delete table {key}"));
        match self.transaction(None, vec![operation]) {
            Ok(_) => Ok(true),
            Err(errno) if errno.code == libc::ENOENT => Ok(false),
            Err(errno) if errno.code == libc::EPERM => Err(self.owned_by_other(key, errno)),
            Err(errno) => Err(errno),
        }
    }

    /// Adds addresses to a set, which may be in it already, or takes them out: all of them or none.
    ///
    /// # Errors
    /// The kernel's refusal; `ENOENT` for a set that is not there, or an address to be taken out that is not.
    pub fn change_elements(&mut self, set: &SetKey, put: bool, addresses: &[IpAddr]) -> Result<(), Errno> {
        self.transaction(None, changes(set, put, addresses)).map(drop)
    }

    /// Addresses in a set; none if it is not there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn elements(&mut self, set: &SetKey) -> Result<Vec<Element>, Errno> {
        let lists = self.dump(&message::dump_elements(set), message::decode_elements)?;
        Ok(lists.into_iter().flat_map(|(elements, _)| elements).collect())
    }

    /// All tables of a family.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn tables(&mut self, family: NftFamily) -> Result<Vec<TableKey>, Errno> {
        let tables = self.dump(&message::dump_tables(family), message::decode_table)?;
        Ok(tables.into_iter().map(|table| TableKey { family, name: table.name }).collect())
    }

    /// The networks the rules of a table are about.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn networks(&mut self, key: &TableKey) -> Result<Vec<IpNet>, Errno> {
        let rules = self.rules(key, None)?;
        Ok(rules.iter().flat_map(|rule| lower::networks(&rule.expressions)).collect())
    }

    fn owned_by_other(&mut self, key: &TableKey, errno: Errno) -> Errno {
        match self.table(key) {
            Ok(Some(TableInfo { owner: Some(owner), .. })) => Errno {
                text: Some(format!(
                    "table {key} is owned by another process, netlink port {owner}; end that process first"
                )),
                ..errno
            },
            _ => errno,
        }
    }

    /// Whether the kernel holds a table, and if it is like `wanted`. Anything else in it, an unexpected
    /// rule or a missing owner, makes it `drifted`, as does having nothing to compare with.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn read(&mut self, key: &TableKey, wanted: Option<&NftTable>) -> Result<Option<NftTable>, Error> {
        let failed = |errno| Error::Kernel { action: format!("read nftables table {key}"), errno };
        let Some(info) = self.table(key).map_err(failed)? else { return Ok(None) };
        if let Some(wanted) = wanted
            && self.holds(wanted, &info).map_err(failed)?
        {
            return Ok(Some(NftTable { drifted: false, ..wanted.clone() }));
        }
        Ok(Some(NftTable {
            key: key.clone(),
            comment: info.comment,
            owned: info.flags & OWNER != 0,
            sets: Vec::new(),
            chains: Vec::new(),
            drifted: true,
        }))
    }

    fn holds(&mut self, wanted: &NftTable, info: &TableInfo) -> Result<bool, Errno> {
        let key = &wanted.key;
        let ours = self.plain || info.owner == Some(self.socket.port());
        if !same_comment(&info.comment, &wanted.comment) || (wanted.owned && !ours) {
            return Ok(false);
        }
        let chains = self.chains(key)?;
        let same_chain = |(have, want): (&ChainInfo, &plan::state::Chain)| {
            !have.odd
                && have.name == want.name
                && same_comment(&have.comment, &want.comment)
                && have.hook == want.hook
        };
        if chains.len() != wanted.chains.len() || !chains.iter().zip(&wanted.chains).all(same_chain) {
            return Ok(false);
        }
        let rules = self.rules(key, None)?;
        let wanted_rules = wanted.chains.iter().flat_map(|c| c.rules.iter().map(|r| (&c.name, r)));
        let same_rule = |(have, (chain, want)): (&RuleInfo, (&String, &plan::state::NftRule))| {
            have.chain == *chain
                && same_comment(&have.comment, &want.comment)
                && have.expressions == lower::lower(key.family, want)
        };
        if rules.len() != wanted_rules.clone().count() || !rules.iter().zip(wanted_rules).all(same_rule) {
            return Ok(false);
        }
        let sets = self.dump(&message::dump_sets(key), message::decode_set)?;
        let sets: Vec<_> = sets.into_iter().filter(|(table, _)| *table == key.name).collect();
        Ok(sets.len() == wanted.sets.len()
            && sets.iter().zip(&wanted.sets).all(|((_, have), want)| have.as_ref() == Some(want)))
    }

    /// A table, if it is there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn table(&mut self, key: &TableKey) -> Result<Option<TableInfo>, Errno> {
        let mut found = None;
        let each = &mut |reply: &Reply<'_>| found = message::decode_table(reply);
        match self.socket.query(&message::get_table(key), each) {
            Ok(()) => Ok(found),
            Err(errno) if errno.code == libc::ENOENT => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Chains of a table in order of creation; none if the table is not there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn chains(&mut self, key: &TableKey) -> Result<Vec<ChainInfo>, Errno> {
        let mut chains = self.dump(&message::dump_chains(key), message::decode_chain)?;
        chains.retain(|c| c.table == key.name);
        Ok(chains)
    }

    /// Whether a chain is there. Costs the same however many there are.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn has_chain(&mut self, key: &TableKey, chain: &str) -> Result<bool, Errno> {
        match self.socket.query(&message::get_chain(key, chain), &mut |_| ()) {
            Ok(()) => Ok(true),
            Err(errno) if errno.code == libc::ENOENT => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Whether the kernel has nftables at all.
    pub fn is_usable(&mut self) -> bool {
        self.generation().is_ok()
    }

    /// Rules of a table or of one of its chains, in order; none if it is not there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn rules(&mut self, key: &TableKey, chain: Option<&str>) -> Result<Vec<RuleInfo>, Errno> {
        let rules = self.dump(&message::dump_rules(key, chain), message::decode_rule)?;
        let ours = |(table, rule): (String, RuleInfo)| {
            (table == key.name && chain.is_none_or(|c| c == rule.chain)).then_some(rule)
        };
        Ok(rules.into_iter().filter_map(ours).collect())
    }

    /// One rule, if it is there. Costs the same however many there are.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn rule(&mut self, key: &TableKey, chain: &str, handle: u64) -> Result<Option<RuleInfo>, Errno> {
        let mut found = None;
        let each = &mut |reply: &Reply<'_>| found = message::decode_rule(reply).map(|(_, rule)| rule);
        match self.socket.query(&message::get_rule(key, chain, handle), each) {
            Ok(()) => Ok(found),
            Err(errno) if errno.code == libc::ENOENT => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Numbers for what the rules of a chain do, in order, whatever their counters say; none if it is not
    /// there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn digests(&mut self, key: &TableKey, chain: &str) -> Result<Vec<u64>, Errno> {
        let rules = self.dump(&message::dump_rules(key, Some(chain)), message::digest_rule)?;
        let of_chain = rules.into_iter().filter(|(table, of, _)| *table == key.name && of == chain);
        Ok(of_chain.map(|(.., digest)| digest).collect())
    }

    /// What the counters of a table's rules have seen, in order; none if it is not there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn counters(&mut self, key: &TableKey) -> Result<Vec<Counted>, Errno> {
        let counted = self.dump(&message::dump_rules(key, None), message::count_rule)?;
        Ok(counted.into_iter().filter_map(|(table, c)| (table == key.name).then_some(c)).collect())
    }

    fn dump<T>(
        &mut self,
        message: &Message,
        decode: impl FnMut(&Reply<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Errno> {
        match self.socket.dump(message, decode) {
            Err(errno) if errno.code == libc::ENOENT => Ok(Vec::new()),
            other => other,
        }
    }

    fn generation(&mut self) -> Result<u32, Errno> {
        let mut found = None;
        self.socket.query(&message::get_generation(), &mut |r| found = message::decode_generation(r))?;
        found.ok_or(Errno::new(libc::EPROTO))
    }

    /// Makes the changes of a batch. What it deletes is looked up first; if another program changes the
    /// rule set in between, all of it is done again.
    ///
    /// # Errors
    /// The kernel's refusal, with the change it is about; nothing was changed then.
    pub fn commit(&mut self, batch: &NftBatch) -> Result<(), Error> {
        self.commit_and_tell(batch).map(drop)
    }

    /// [`Nft::commit`], and the rules that were added, with the numbers the kernel gave them. Kernels before 4.10 do not
    /// tell.
    ///
    /// # Errors
    /// As there.
    pub fn commit_and_tell(&mut self, batch: &NftBatch) -> Result<Vec<RuleInfo>, Error> {
        let mut last = Errno::new(libc::ERESTART);
        for _ in 0..ATTEMPTS {
            match self.try_commit(batch) {
                Ok(added) => return Ok(added),
                // The rule set changed between reading and writing, or during a listing.
                Err(errno) if matches!(errno.code, libc::ERESTART | libc::EINTR) => last = errno,
                Err(errno) => return Err(Error::Kernel { action: "change nftables".to_owned(), errno }),
            }
        }
        Err(Error::Kernel { action: "change nftables".to_owned(), errno: last })
    }

    fn try_commit(&mut self, batch: &NftBatch) -> Result<Vec<RuleInfo>, Errno> {
        let generation = self.generation()?;
        let mut operations = Vec::new();
        for change in &batch.changes {
            self.operations_of(change, &mut operations)?;
        }
        if operations.is_empty() {
            return Ok(Vec::new());
        }
        self.transaction(Some(generation), operations)
    }

    fn operations_of(&mut self, change: &Change, out: &mut Vec<Operation>) -> Result<(), Errno> {
        match change {
            Change::EnsureTable { table, comment } => out.push(Operation::new(
                message::add_table(table, None, comment.as_deref()),
                format!("add table {table}"),
            )),
            Change::EnsureChain { table, chain } => out.push(Operation::new(
                message::add_chain(table, chain),
                format!("add chain {table} {}", chain.name),
            )),
            Change::FlushChain { table, chain } => out.push(Operation::new(
                message::delete_rule(table, chain, None),
                format!("flush chain {table} {chain}"),
            )),
            Change::AddRule { table, chain, rule } => {
                let mut message = message::add_rule(table, chain, rule, false);
                message.set_flags(libc::NLM_F_ECHO);
                out.push(Operation::new(message, format!("add rule {table} {chain} {rule}")));
            }
            Change::DeleteRules { table, chain, comment } => {
                let rules = self.rules(table, Some(chain))?;
                for rule in rules.iter().filter(|r| comment.matches(r.comment.as_deref())) {
                    out.push(Operation::new(
                        message::delete_rule(table, chain, Some(rule.handle)),
                        format!("delete rule {table} {chain} handle {}", rule.handle),
                    ));
                }
            }
            Change::DeleteRule { table, chain, handle, comment } => {
                let action = format!("delete rule {table} {chain} handle {handle}");
                let found = self.rule(table, chain, *handle)?;
                if !found.is_some_and(|rule| comment.matches(rule.comment.as_deref())) {
                    return Err(Errno { text: Some(action), ..Errno::new(libc::ENOENT) });
                }
                out.push(Operation::new(message::delete_rule(table, chain, Some(*handle)), action));
            }
            Change::DeleteChain { table, chain } => {
                if self.chains(table)?.iter().any(|c| c.name == *chain) {
                    for m in [message::delete_rule(table, chain, None), message::delete_chain(table, chain)] {
                        out.push(Operation::new(m, format!("delete chain {table} {chain}")));
                    }
                }
            }
            Change::DeleteTable { table } => {
                if self.table(table)?.is_some() {
                    out.push(Operation::new(message::delete_table(table), format!("delete table {table}")));
                }
            }
        }
        Ok(())
    }

    /// All or nothing; the first error names its operation. Gives the rules the kernel told of.
    fn transaction(
        &mut self,
        generation: Option<u32>,
        operations: Vec<Operation>,
    ) -> Result<Vec<RuleInfo>, Errno> {
        let count = operations.len();
        let (messages, actions): (Vec<Message>, Vec<String>) =
            operations.into_iter().map(|o| (o.message, o.action)).unzip();
        let all: Vec<Message> = std::iter::once(message::begin(generation))
            .chain(messages)
            .chain(std::iter::once(message::end()))
            .collect();
        // Kernels before 6.10 never answer the frame, so the last operation is asked for the answer.
        let mut told = Vec::new();
        let each = &mut |reply: &Reply<'_>| told.extend(message::decode_rule(reply).map(|(_, rule)| rule));
        let results = self.socket.transaction(&all, count, each);
        for (n, result) in results.into_iter().enumerate() {
            let Err(errno) = result else { continue };
            let action = n.checked_sub(1).and_then(|n| actions.get(n));
            let text = match (action, errno.text) {
                (Some(action), Some(text)) => Some(format!("{action}: {text}")),
                (Some(action), None) => Some(action.clone()),
                (None, text) => text,
            };
            return Err(Errno { text, ..errno });
        }
        Ok(told)
    }
}

/// The kernel's comment may be cut.
fn same_comment(have: &Option<String>, want: &Option<String>) -> bool {
    have.as_deref() == want.as_deref().map(message::cut_comment)
}

/// Deleting what is there, if anything, and making it anew, in one transaction: whatever was changed in
/// the table, by whatever means, is gone, and an orphan of ours is adopted.
fn replace(table: &NftTable, flags: Option<u32>, elements: &[&Element]) -> Vec<Operation> {
    let key = &table.key;
    let mut all = vec![
        Operation::new(message::add_table(key, None, None), format!("add table {key}")),
        Operation::new(message::delete_table(key), format!("delete table {key}")),
        Operation::new(message::add_table(key, flags, table.comment.as_deref()), format!("add table {key}")),
    ];
    for (id, set) in (1..).zip(&table.sets) {
        all.push(Operation::new(message::add_set(key, set, id), format!("add set {key} {}", set.name)));
    }
    for of_set in elements.chunk_by(|a, b| a.set == b.set) {
        let addresses: Vec<IpAddr> = of_set.iter().map(|element| element.address).collect();
        all.extend(of_set.first().into_iter().flat_map(|first| changes(&first.set, true, &addresses)));
    }
    for chain in &table.chains {
        all.push(Operation::new(message::add_chain(key, chain), format!("add chain {key} {}", chain.name)));
    }
    for chain in &table.chains {
        for rule in &chain.rules {
            all.push(Operation::new(
                message::add_rule(key, &chain.name, rule, false),
                format!("add rule {key} {} {rule}", chain.name),
            ));
        }
    }
    all
}

/// Addresses into a set or out of it.
fn changes(set: &SetKey, put: bool, addresses: &[IpAddr]) -> Vec<Operation> {
    let one = |addresses: &[IpAddr]| {
        let action = if put { "add" } else { "delete" };
        let action = format!("{action} {} elements of set {} {}", addresses.len(), set.table, set.name);
        Operation::new(message::change_elements(set, put, addresses), action)
    };
    addresses.chunks(message::ELEMENTS_AT_ONCE).map(one).collect()
}

#[cfg(test)]
mod tests;
