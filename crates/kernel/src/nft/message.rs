//! nftables objects as netlink messages: tables, chains, rules, and the frame of a transaction.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use std::net::IpAddr;
use std::sync::Arc;

use model::Family;
use plan::state::{Chain, ChainType, Element, Hook, NftFamily, NftRule, Set, SetKey, TableKey};

use super::expr::Expr;
use super::lower::{family_number, lower};
use crate::netlink::{Attr, Message, Reply};

/// Length of `struct nfgenmsg`.
const HEADER: usize = 4;
/// `NFT_TABLE_F_OWNER` and `NFT_TABLE_F_PERSIST`
pub const OWNER: u32 = 2;
/// The table outlives its owner.
pub const PERSIST: u32 = 4;

// NFTA_TABLE_…
const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const TABLE_HANDLE: u16 = 4;
const TABLE_USERDATA: u16 = 6;
const TABLE_OWNER: u16 = 7;
// NFTA_CHAIN_…
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const CHAIN_USERDATA: u16 = 12;
// NFTA_HOOK_…
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
// NFTA_RULE_…
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;
// NFTA_SET_…
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LENGTH: u16 = 5;
const SET_ID: u16 = 10;
const SET_USERDATA: u16 = 13;
// NFTA_SET_ELEM_LIST_…
const ELEMENTS_TABLE: u16 = 1;
const ELEMENTS_SET: u16 = 2;
const ELEMENTS: u16 = 3;
// NFTA_LIST_ELEM, NFTA_SET_ELEM_KEY and NFTA_DATA_VALUE
const LIST_ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const DATA_VALUE: u16 = 1;
// NFTA_GEN_ID
const GEN_ID: u16 = 1;

fn kind(message: i32) -> u16 {
    ((libc::NFNL_SUBSYS_NFTABLES << 8) | message) as u16
}

fn start(message: i32, flags: i32, family: u8) -> Message {
    let mut m = Message::new(kind(message), flags);
    m.bytes(&[family, 0, 0, 0]);
    m
}

fn about(message: i32, flags: i32, key: &TableKey) -> Message {
    let mut m = start(message, flags, family_number(key.family));
    // NFTA_…_TABLE and NFTA_TABLE_NAME are all 1.
    m.attr_text(TABLE_NAME, &key.name);
    m
}

/// Begins a transaction that is refused if the rule set is no longer of `generation`.
pub fn begin(generation: Option<u32>) -> Message {
    let mut m = frame(libc::NFNL_MSG_BATCH_BEGIN);
    if let Some(generation) = generation {
        m.attr_be32(libc::NFNL_BATCH_GENID as u16, generation);
    }
    m
}

/// Ends a transaction.
pub fn end() -> Message {
    frame(libc::NFNL_MSG_BATCH_END)
}

fn frame(kind: i32) -> Message {
    let mut m = Message::new(kind as u16, 0);
    let [a, b] = (libc::NFNL_SUBSYS_NFTABLES as u16).to_be_bytes();
    m.bytes(&[0, 0, a, b]);
    m
}

/// The part of a comment that is kept: at most 127 bytes (`NFTNL_UDATA_RULE_COMMENT` of `nft`).
pub fn cut_comment(text: &str) -> &str {
    let mut end = text.len().min(127);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A comment as `nft` stores it: type 0, length, text with NUL.
fn comment(text: &str) -> Vec<u8> {
    let text = cut_comment(text);
    let mut bytes = vec![0, text.len() as u8 + 1];
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    bytes
}

fn decode_comment(userdata: Option<Attr<'_>>) -> Option<String> {
    let mut rest = userdata?.data;
    while let [kind, length, tail @ ..] = rest {
        let (value, next) = tail.split_at_checked(usize::from(*length))?;
        if *kind == 0 {
            return Attr { kind: 0, data: value }.text().map(str::to_owned);
        }
        rest = next;
    }
    None
}

/// Adds a table, or changes its flags.
pub fn add_table(key: &TableKey, flags: Option<u32>, text: Option<&str>) -> Message {
    let mut m = about(libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE, key);
    if let Some(flags) = flags {
        m.attr_be32(TABLE_FLAGS, flags);
    }
    if let Some(text) = text {
        m.attr(TABLE_USERDATA, &comment(text));
    }
    m
}

/// Deletes a table with all in it.
pub fn delete_table(key: &TableKey) -> Message {
    about(libc::NFT_MSG_DELTABLE, 0, key)
}

/// Adds a chain without its rules.
pub fn add_chain(key: &TableKey, chain: &Chain) -> Message {
    let mut m = about(libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE, key);
    m.attr_text(CHAIN_NAME, &chain.name);
    if let Some(hook) = chain.hook {
        m.nest(CHAIN_HOOK, |m| {
            m.attr_be32(HOOK_NUMBER, hook.number).attr_be32(HOOK_PRIORITY, hook.priority as u32);
        });
        m.attr_be32(CHAIN_POLICY, libc::NF_ACCEPT as u32);
        m.attr_text(CHAIN_TYPE, type_name(hook.kind));
    }
    if let Some(text) = &chain.comment {
        m.attr(CHAIN_USERDATA, &comment(text));
    }
    m
}

fn type_name(kind: ChainType) -> &'static str {
    match kind {
        ChainType::Filter => "filter",
        ChainType::Nat => "nat",
        ChainType::Route => "route",
    }
}

/// Deletes an empty chain.
pub fn delete_chain(key: &TableKey, chain: &str) -> Message {
    let mut m = about(libc::NFT_MSG_DELCHAIN, 0, key);
    m.attr_text(CHAIN_NAME, chain);
    m
}

/// Deletes one rule by its handle, or all rules of a chain.
pub fn delete_rule(key: &TableKey, chain: &str, handle: Option<u64>) -> Message {
    let mut m = about(libc::NFT_MSG_DELRULE, 0, key);
    m.attr_text(RULE_CHAIN, chain);
    if let Some(handle) = handle {
        m.attr_be64(RULE_HANDLE, handle);
    }
    m
}

/// Adds a rule at the end of a chain, or with `first` before all others.
pub fn add_rule(key: &TableKey, chain: &str, rule: &NftRule, first: bool) -> Message {
    let flags = libc::NLM_F_CREATE | if first { 0 } else { libc::NLM_F_APPEND };
    let mut m = about(libc::NFT_MSG_NEWRULE, flags, key);
    m.attr_text(RULE_CHAIN, chain);
    m.nest(RULE_EXPRESSIONS, |m| {
        for expr in lower(key.family, rule) {
            expr.encode(m);
        }
    });
    if let Some(text) = &rule.comment {
        m.attr(RULE_USERDATA, &comment(text));
    }
    m
}

/// Asks for the generation of the rule set.
pub fn get_generation() -> Message {
    start(libc::NFT_MSG_GETGEN, 0, 0)
}

/// The generation in a reply.
pub fn decode_generation(reply: &Reply<'_>) -> Option<u32> {
    if reply.kind != kind(libc::NFT_MSG_NEWGEN) {
        return None;
    }
    reply.attrs(HEADER).find(GEN_ID)?.be32()
}

/// Asks for one table.
pub fn get_table(key: &TableKey) -> Message {
    about(libc::NFT_MSG_GETTABLE, 0, key)
}

/// Asks for all tables of a family.
pub fn dump_tables(family: NftFamily) -> Message {
    start(libc::NFT_MSG_GETTABLE, 0, family_number(family))
}

/// Asks for all chains of a table's family.
pub fn dump_chains(key: &TableKey) -> Message {
    start(libc::NFT_MSG_GETCHAIN, 0, family_number(key.family))
}

/// Asks for one chain.
pub fn get_chain(key: &TableKey, chain: &str) -> Message {
    let mut m = about(libc::NFT_MSG_GETCHAIN, 0, key);
    m.attr_text(CHAIN_NAME, chain);
    m
}

/// Asks for the rules of a table or of one chain.
pub fn dump_rules(key: &TableKey, chain: Option<&str>) -> Message {
    let mut m = about(libc::NFT_MSG_GETRULE, 0, key);
    if let Some(chain) = chain {
        m.attr_text(RULE_CHAIN, chain);
    }
    m
}

/// Asks for one rule.
pub fn get_rule(key: &TableKey, chain: &str, handle: u64) -> Message {
    let mut m = about(libc::NFT_MSG_GETRULE, 0, key);
    m.attr_text(RULE_CHAIN, chain).attr_be64(RULE_HANDLE, handle);
    m
}

/// Asks for the sets of a table.
pub fn dump_sets(key: &TableKey) -> Message {
    about(libc::NFT_MSG_GETSET, 0, key)
}

/// A table as reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableInfo {
    /// Name.
    pub name: String,
    /// `NFT_TABLE_F_…`
    pub flags: u32,
    /// Netlink port of the owner.
    pub owner: Option<u32>,
    /// Its number in the namespace, never given twice.
    pub handle: Option<u64>,
    /// Comment.
    pub comment: Option<String>,
}

/// A table in a reply.
pub fn decode_table(reply: &Reply<'_>) -> Option<TableInfo> {
    if reply.kind != kind(libc::NFT_MSG_NEWTABLE) && reply.kind != kind(libc::NFT_MSG_DELTABLE) {
        return None;
    }
    let attrs = reply.attrs(HEADER);
    Some(TableInfo {
        name: attrs.find(TABLE_NAME)?.text()?.to_owned(),
        flags: attrs.find(TABLE_FLAGS).as_ref().and_then(Attr::be32).unwrap_or(0),
        owner: attrs.find(TABLE_OWNER).as_ref().and_then(Attr::be32),
        handle: attrs.find(TABLE_HANDLE).as_ref().and_then(Attr::be64),
        comment: decode_comment(attrs.find(TABLE_USERDATA)),
    })
}

/// A chain as reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainInfo {
    /// Table it is in.
    pub table: String,
    /// Name.
    pub name: String,
    /// Comment.
    pub comment: Option<String>,
    /// Where it hangs; `None` also for hooks we have no words for, which then are `odd`.
    pub hook: Option<Hook>,
    /// A type, policy or device we never set.
    pub odd: bool,
}

/// A chain in a reply.
pub fn decode_chain(reply: &Reply<'_>) -> Option<ChainInfo> {
    if reply.kind != kind(libc::NFT_MSG_NEWCHAIN) && reply.kind != kind(libc::NFT_MSG_DELCHAIN) {
        return None;
    }
    let attrs = reply.attrs(HEADER);
    let kind = [ChainType::Filter, ChainType::Nat, ChainType::Route]
        .into_iter()
        .find(|k| attrs.find(CHAIN_TYPE).and_then(|a| a.text()) == Some(type_name(*k)));
    let hooked = attrs.find(CHAIN_HOOK);
    let hook = hooked.as_ref().zip(kind).and_then(|(hook, kind)| {
        let hook = hook.nested();
        Some(Hook {
            kind,
            number: hook.find(HOOK_NUMBER)?.be32()?,
            priority: hook.find(HOOK_PRIORITY)?.be32()? as i32,
        })
    });
    let policy = attrs.find(CHAIN_POLICY).as_ref().and_then(Attr::be32);
    Some(ChainInfo {
        table: attrs.find(CHAIN_TABLE)?.text()?.to_owned(),
        name: attrs.find(CHAIN_NAME)?.text()?.to_owned(),
        comment: decode_comment(attrs.find(CHAIN_USERDATA)),
        odd: hooked.is_some() != hook.is_some() || policy.is_some_and(|p| p != libc::NF_ACCEPT as u32),
        hook,
    })
}

/// A rule as reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleInfo {
    /// Chain it is in.
    pub chain: String,
    /// Its number in the table.
    pub handle: u64,
    /// Comment.
    pub comment: Option<String>,
    /// What it does.
    pub expressions: Vec<Expr>,
}

/// Name of the table and the rule in a reply.
pub fn decode_rule(reply: &Reply<'_>) -> Option<(String, RuleInfo)> {
    if reply.kind != kind(libc::NFT_MSG_NEWRULE) && reply.kind != kind(libc::NFT_MSG_DELRULE) {
        return None;
    }
    let attrs = reply.attrs(HEADER);
    let expressions = attrs.find(RULE_EXPRESSIONS).map_or_else(Vec::new, |a| Expr::decode_list(a.nested()));
    let rule = RuleInfo {
        chain: attrs.find(RULE_CHAIN)?.text()?.to_owned(),
        handle: attrs.find(RULE_HANDLE)?.be64()?,
        comment: decode_comment(attrs.find(RULE_USERDATA)),
        expressions,
    };
    Some((attrs.find(RULE_TABLE)?.text()?.to_owned(), rule))
}

/// What the counter of a rule has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Packets.
    pub packets: u64,
    /// Bytes of them, IP header included.
    pub bytes: u64,
}

/// Table and chain of the rule in a reply, and a number for what it does, whatever its counter says. The
/// handle alone would not do: a rule that replaces another one keeps it.
pub fn digest_rule(reply: &Reply<'_>) -> Option<(String, String, u64)> {
    if reply.kind != kind(libc::NFT_MSG_NEWRULE) {
        return None;
    }
    let attrs = reply.attrs(HEADER);
    let mut hasher = DefaultHasher::new();
    for of in [RULE_HANDLE, RULE_USERDATA] {
        attrs.find(of).map_or(&[][..], |a| a.data).hash(&mut hasher);
    }
    if let Some(expressions) = attrs.find(RULE_EXPRESSIONS) {
        for expression in expressions.nested().filter(|e| !Expr::is_counter(e)) {
            expression.data.hash(&mut hasher);
        }
    }
    let text = |kind| attrs.find(kind)?.text().map(str::to_owned);
    Some((text(RULE_TABLE)?, text(RULE_CHAIN)?, hasher.finish()))
}

/// Table of the rule in a reply, and the packets and bytes its first counter has seen.
pub fn count_rule(reply: &Reply<'_>) -> Option<(String, Counted)> {
    if reply.kind != kind(libc::NFT_MSG_NEWRULE) {
        return None;
    }
    let attrs = reply.attrs(HEADER);
    let counter = attrs.find(RULE_EXPRESSIONS)?.nested().find_map(|element| Expr::counted(&element))?;
    Some((attrs.find(RULE_TABLE)?.text()?.to_owned(), counter))
}

/// What the `nft` program calls `ipv4_addr` and `ipv6_addr` (`TYPE_IPADDR`, `TYPE_IP6ADDR`), and the length.
fn address_type(family: Family) -> (u32, u32) {
    match family {
        Family::V4 => (7, 4),
        Family::V6 => (8, 16),
    }
}

/// Adds a set. `id` tells it from others of the same transaction.
pub fn add_set(key: &TableKey, set: &Set, id: u32) -> Message {
    /// `NFTNL_UDATA_SET_KEYBYTEORDER` with `BYTEORDER_BIG_ENDIAN`, as `nft` puts it there for itself.
    const BYTE_ORDER: (u8, u32) = (0, 2);
    let (data_type, length) = address_type(set.family);
    let mut m = about(libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE, key);
    m.attr_text(SET_NAME, &set.name).attr_be32(SET_FLAGS, 0);
    m.attr_be32(SET_KEY_TYPE, data_type).attr_be32(SET_KEY_LENGTH, length).attr_be32(SET_ID, id);
    let [a, b, c, d] = BYTE_ORDER.1.to_ne_bytes();
    m.attr(SET_USERDATA, &[BYTE_ORDER.0, 4, a, b, c, d]);
    m
}

/// Name of the table a set in a reply is in, and the set; `None` in place of one we have no words for.
pub fn decode_set(reply: &Reply<'_>) -> Option<(String, Option<Set>)> {
    if reply.kind != kind(libc::NFT_MSG_NEWSET) {
        return None;
    }
    let attrs = reply.attrs(HEADER);
    let number = |kind| attrs.find(kind).as_ref().and_then(Attr::be32);
    let family = Family::BOTH.into_iter().find(|f| number(SET_KEY_TYPE) == Some(address_type(*f).0));
    let plain = number(SET_FLAGS).unwrap_or(0) == 0;
    let name = attrs.find(SET_NAME)?.text()?.to_owned();
    let set = family.filter(|_| plain).map(|family| Set { name, family });
    Some((attrs.find(SET_TABLE)?.text()?.to_owned(), set))
}

/// Adds addresses to a set or takes them out; at most [`ELEMENTS_AT_ONCE`].
pub fn change_elements(set: &SetKey, put: bool, addresses: &[IpAddr]) -> Message {
    let mut m = match put {
        true => about(libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE, &set.table),
        false => about(libc::NFT_MSG_DELSETELEM, 0, &set.table),
    };
    m.attr_text(ELEMENTS_SET, &set.name);
    m.nest(ELEMENTS, |m| {
        for address in addresses {
            m.nest(LIST_ELEMENT, |m| {
                m.nest(ELEMENT_KEY, |m| {
                    match address {
                        IpAddr::V4(ip) => m.attr(DATA_VALUE, &ip.octets()),
                        IpAddr::V6(ip) => m.attr(DATA_VALUE, &ip.octets()),
                    };
                });
            });
        }
    });
    m
}

/// An attribute's length has 16 bits, and an IPv6 address takes 28 bytes of one.
pub const ELEMENTS_AT_ONCE: usize = 2_000;

/// Asks for the elements of a set.
pub fn dump_elements(set: &SetKey) -> Message {
    let mut m = about(libc::NFT_MSG_GETSETELEM, 0, &set.table);
    m.attr_text(ELEMENTS_SET, &set.name);
    m
}

/// The addresses in a reply or notification about elements, and whether they are there now; `None` for any
/// other, and where there is more to an element than an address.
pub fn decode_elements(reply: &Reply<'_>) -> Option<(Vec<Element>, bool)> {
    let there = reply.kind == kind(libc::NFT_MSG_NEWSETELEM);
    if !there && reply.kind != kind(libc::NFT_MSG_DELSETELEM) {
        return None;
    }
    let attrs = reply.attrs(HEADER);
    let table = TableKey { family: family(reply)?, name: attrs.find(ELEMENTS_TABLE)?.text()?.to_owned() };
    let set = Arc::new(SetKey { table, name: attrs.find(ELEMENTS_SET)?.text()?.to_owned() });
    let element = |a: Attr<'_>| {
        let value = a.nested().find(ELEMENT_KEY)?.nested().find(DATA_VALUE)?.data;
        let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
        let address = v4.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok()?;
        Some(Element { set: set.clone(), address })
    };
    let listed = attrs.find(ELEMENTS)?.nested().filter(|a| a.kind == LIST_ELEMENT);
    Some((listed.map(element).collect::<Option<_>>()?, there))
}

fn family(reply: &Reply<'_>) -> Option<NftFamily> {
    let [family] = reply.field(0)?;
    [NftFamily::Ip, NftFamily::Ip6, NftFamily::Inet, NftFamily::Bridge]
        .into_iter()
        .find(|f| family_number(*f) == family)
}

/// Whether a message tells of a change in nftables; the end of a change, which is told as well, is none.
pub fn is_change(reply: &Reply<'_>) -> bool {
    reply.kind >> 8 == libc::NFNL_SUBSYS_NFTABLES as u16 && reply.kind != kind(libc::NFT_MSG_NEWGEN)
}

/// Table of any nftables notification; none in a family that the plan does not know.
pub fn decode_notification(reply: &Reply<'_>) -> Option<TableKey> {
    if !is_change(reply) {
        return None;
    }
    let name = reply.attrs(HEADER).find(TABLE_NAME)?.text()?.to_owned();
    Some(TableKey { family: family(reply)?, name })
}
