//! nftables tables as data: chains of rules, a rule being matches and one statement.
//!
//! This is the vocabulary of all packet rules in the suite (masquerade, forward, host ports; later
//! policy and services). It knows meanings, not the kernel's expressions: `kernel::nft` lowers it.
//! `Display` gives the text `nft list table` prints.

use std::cmp::Ordering;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;
use model::{Family, IfName, Mac};

/// Family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NftFamily {
    /// `ip`
    Ip,
    /// `ip6`
    Ip6,
    /// `inet`: both
    Inet,
    /// `bridge`
    Bridge,
}

/// Identity of a table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableKey {
    /// Family.
    pub family: NftFamily,
    /// Name.
    pub name: String,
}

/// A table and all it holds but the elements of its sets, which are objects of their own. Written as a
/// whole, in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NftTable {
    /// Family and name.
    pub key: TableKey,
    /// Comment on the table.
    pub comment: Option<String>,
    /// Keep other programs out, survive our own crash (flags OWNER and PERSIST, kernel ≥ 6.9). Ignored
    /// in comparison: a kernel without the flags holds the same table.
    pub owned: bool,
    /// Named sets in order.
    pub sets: Vec<Set>,
    /// Chains in order.
    pub chains: Vec<Chain>,
    /// Actual state only: the kernel holds something we cannot express, so it differs from all we want.
    pub drifted: bool,
}

impl NftTable {
    /// Whether the kernel already holds this table; see the fields for what does not count.
    pub fn same(&self, actual: &NftTable) -> bool {
        !actual.drifted
            && self.key == actual.key
            && self.comment == actual.comment
            && self.sets == actual.sets
            && self.chains == actual.chains
    }

    /// Whether it gives packets another source address.
    pub fn masquerades(&self) -> bool {
        let mut rules = self.chains.iter().flat_map(|chain| &chain.rules);
        rules.any(|rule| matches!(rule.statement, Statement::Masquerade { .. } | Statement::Snat { .. }))
    }
}

/// A named set of addresses of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Name.
    pub name: String,
    /// Family of its elements.
    pub family: Family,
}

/// Identity of a set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetKey {
    /// The table it is in.
    pub table: TableKey,
    /// Name.
    pub name: String,
}

/// An address in a set. All of it is its identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Element {
    /// The set; shared, since there may be thousands of elements.
    pub set: Arc<SetKey>,
    /// The address.
    pub address: IpAddr,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Name.
    pub name: String,
    /// Comment on the chain.
    pub comment: Option<String>,
    /// Base chains hang on a hook; the policy is always accept, so that ours never decides for others.
    pub hook: Option<Hook>,
    /// Rules in order.
    pub rules: Vec<Rule>,
}

/// Where a base chain hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// `filter`, `nat` or `route`.
    pub kind: ChainType,
    /// Netfilter hook number: 0 prerouting, 1 input, 2 forward, 3 output, 4 postrouting.
    pub number: u32,
    /// Priority: −100 is dstnat, 0 filter, 100 srcnat.
    pub priority: i32,
}

/// Type of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainType {
    /// Filtering.
    Filter,
    /// Address translation.
    Nat,
    /// Re-route on change.
    Route,
}

/// A rule: every match must hold, then the statement is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// All must hold.
    pub matches: Vec<Match>,
    /// What happens then.
    pub statement: Statement,
    /// Comment, at most 127 bytes (`NFTNL_UDATA_RULE_COMMENT`).
    pub comment: Option<String>,
}

/// One condition. In an `ip` or `ip6` table addresses must be of that family; in an `inet` table the
/// family of the address is matched too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// `meta mark` equal to the value.
    Mark(u32),
    /// `meta mark & mask` equal to the value.
    MarkMasked {
        /// Bits that must be set under the mask.
        value: u32,
        /// Which bits are looked at.
        mask: u32,
    },
    /// Source address inside the network.
    Source(IpNet),
    /// Source address outside the network.
    SourceNot(IpNet),
    /// Destination address inside the network.
    Destination(IpNet),
    /// Destination address outside the network.
    DestinationNot(IpNet),
    /// Incoming device.
    InputDevice(IfName),
    /// Incoming device is another one.
    InputDeviceNot(IfName),
    /// Outgoing device.
    OutputDevice(IfName),
    /// Outgoing device is another one.
    OutputDeviceNot(IfName),
    /// Transport protocol number: 6 TCP, 17 UDP, 132 SCTP. Must come before a port.
    Protocol(u8),
    /// Destination port of TCP, UDP, SCTP.
    DestinationPort(u16),
    /// Destination port of TCP, UDP, SCTP between these, both included.
    DestinationPorts(u16, u16),
    /// Destination address is one of the host (`fib daddr type local`).
    DestinationLocal,
    /// The connection's destination was translated (`ct status dnat`).
    DestinationTranslated,
    /// `ct mark & mask` equal to the value.
    ConnectionMark {
        /// Bits that must be set under the mask.
        value: u32,
        /// Which bits are looked at.
        mask: u32,
    },
    /// Source hardware address; for tables of family bridge.
    SourceMac(Mac),
    /// ARP for IPv4 over Ethernet (RFC 826) whose sender says to have these; for tables of family bridge.
    ArpSender(Mac, Ipv4Addr),
    /// Type of an ICMP or ICMPv6 message. Must come after the protocol.
    IcmpType(u8),
    /// Target of a neighbour solicitation or advertisement (RFC 4861 4.3, 4.4) outside the network. Must come after the type.
    NdTargetNot(IpNet),
    /// Source address is not in a set of the table.
    SourceNotIn(Family, String),
    /// Network identifier of a vxlan packet (RFC 7348 §5). Must come after the port.
    VxlanId(u32),
    /// No IPsec policy transforms the packet (`rt ipsec missing`); for what leaves: forward, output, postrouting.
    IpsecMissing,
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// End with a verdict.
    Verdict(Verdict),
    /// Count packets and bytes, then end with a verdict. What was counted is nobody's wish.
    Counted(Verdict),
    /// Source address becomes that of the outgoing device.
    Masquerade {
        /// Choose the port at random, not by the kernel's default order.
        fully_random: bool,
    },
    /// Source becomes this address.
    Snat {
        /// New source address.
        to: IpAddr,
    },
    /// Destination becomes this address and port.
    Dnat {
        /// New destination address.
        to: IpAddr,
        /// New destination port.
        port: u16,
    },
    /// `meta mark set meta mark | bits`.
    OrMark(u32),
    /// `ct mark set ct mark | bits`.
    OrConnectionMark(u32),
}

/// Verdicts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Accept in this hook.
    Accept,
    /// Drop.
    Drop,
    /// Back to the calling chain, or the policy.
    Return,
    /// Call a chain.
    Jump(String),
    /// Continue in a chain without coming back.
    Goto(String),
}

impl Ord for Element {
    /// By set, then by address. Thousands share one value of the set, which need not be looked into.
    fn cmp(&self, other: &Element) -> Ordering {
        let sets =
            if Arc::ptr_eq(&self.set, &other.set) { Ordering::Equal } else { self.set.cmp(&other.set) };
        sets.then_with(|| self.address.cmp(&other.address))
    }
}

impl PartialOrd for Element {
    fn partial_cmp(&self, other: &Element) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for NftFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NftFamily::Ip => "ip",
            NftFamily::Ip6 => "ip6",
            NftFamily::Inet => "inet",
            NftFamily::Bridge => "bridge",
        })
    }
}

impl fmt::Display for TableKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

impl fmt::Display for NftTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {{", self.key)?;
        if let Some(comment) = &self.comment {
            writeln!(f, "\tcomment \"{comment}\"")?;
        }
        let mut first = true;
        let mut between = |f: &mut fmt::Formatter<'_>| {
            if std::mem::take(&mut first) { Ok(()) } else { writeln!(f) }
        };
        for set in &self.sets {
            between(f)?;
            set.fmt(f)?;
        }
        for chain in &self.chains {
            between(f)?;
            chain.fmt(f)?;
        }
        f.write_str("}")
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.family {
            Family::V4 => "ipv4_addr",
            Family::V6 => "ipv6_addr",
        };
        writeln!(f, "\tset {} {{\n\t\ttype {kind}\n\t}}", self.name)
    }
}

impl fmt::Display for Element {
    /// As `nft add element` and `nft delete element` want it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {{ {} }}", self.set.table, self.set.name, self.address)
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\tchain {} {{", self.name)?;
        if let Some(comment) = &self.comment {
            writeln!(f, "\t\tcomment \"{comment}\"")?;
        }
        if let Some(hook) = self.hook {
            let kind = match hook.kind {
                ChainType::Filter => "filter",
                ChainType::Nat => "nat",
                ChainType::Route => "route",
            };
            let names = ["prerouting", "input", "forward", "output", "postrouting"];
            let at = names.get(hook.number as usize).copied().unwrap_or("?");
            let priority = match (hook.priority, hook.number) {
                (-100, 0) => "dstnat".to_owned(),
                (0, _) => "filter".to_owned(),
                (100, 4) => "srcnat".to_owned(),
                (other, _) => other.to_string(),
            };
            writeln!(f, "\t\ttype {kind} hook {at} priority {priority}; policy accept;")?;
        }
        for rule in &self.rules {
            writeln!(f, "\t\t{rule}")?;
        }
        writeln!(f, "\t}}")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut matches = self.matches.iter().peekable();
        while let Some(m) = matches.next() {
            match (m, matches.peek()) {
                // nft joins the protocol and the port of it.
                (
                    Match::Protocol(protocol @ (6 | 17 | 132)),
                    Some(port @ (Match::DestinationPort(_) | Match::DestinationPorts(..))),
                ) => {
                    let name = match protocol {
                        6 => "tcp",
                        17 => "udp",
                        _ => "sctp",
                    };
                    write!(f, "{name}{} ", port.to_string().trim_start_matches("th"))?;
                    matches.next();
                }
                _ => write!(f, "{m} ")?,
            }
        }
        write!(f, "{}", self.statement)?;
        match &self.comment {
            Some(comment) => write!(f, " comment \"{comment}\""),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = |net: &IpNet| if net.addr().is_ipv4() { "ip" } else { "ip6" };
        // nft prints a host without its prefix length.
        let text = |net: &IpNet| {
            if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
        };
        match self {
            Match::Mark(value) => write!(f, "meta mark 0x{value:08x}"),
            Match::MarkMasked { value, mask } => write!(f, "meta mark & 0x{mask:08x} == 0x{value:08x}"),
            Match::Source(net) => write!(f, "{} saddr {}", ip(net), text(net)),
            Match::SourceNot(net) => write!(f, "{} saddr != {}", ip(net), text(net)),
            Match::Destination(net) => write!(f, "{} daddr {}", ip(net), text(net)),
            Match::DestinationNot(net) => write!(f, "{} daddr != {}", ip(net), text(net)),
            Match::InputDevice(dev) => write!(f, "iifname \"{dev}\""),
            Match::InputDeviceNot(dev) => write!(f, "iifname != \"{dev}\""),
            Match::OutputDevice(dev) => write!(f, "oifname \"{dev}\""),
            Match::OutputDeviceNot(dev) => write!(f, "oifname != \"{dev}\""),
            // As nft names them.
            Match::Protocol(4) => f.write_str("meta l4proto ipencap"),
            Match::Protocol(6) => f.write_str("meta l4proto tcp"),
            Match::Protocol(17) => f.write_str("meta l4proto udp"),
            Match::Protocol(132) => f.write_str("meta l4proto sctp"),
            Match::Protocol(other) => write!(f, "meta l4proto {other}"),
            Match::DestinationPort(port) => write!(f, "th dport {port}"),
            Match::DestinationPorts(first, last) => write!(f, "th dport {first}-{last}"),
            Match::DestinationLocal => f.write_str("fib daddr type local"),
            Match::DestinationTranslated => f.write_str("ct status dnat"),
            Match::ConnectionMark { value, mask } => {
                write!(f, "ct mark & 0x{mask:08x} == 0x{value:08x}")
            }
            Match::SourceMac(mac) => write!(f, "ether saddr {mac}"),
            Match::ArpSender(mac, ip) => write!(f, "arp saddr ether {mac} arp saddr ip {ip}"),
            Match::IcmpType(number) => write!(f, "@th,0,8 {number:#x}"),
            Match::NdTargetNot(net) => write!(f, "icmpv6 taddr != {}", text(net)),
            Match::SourceNotIn(Family::V4, set) => write!(f, "ip saddr != @{set}"),
            Match::SourceNotIn(Family::V6, set) => write!(f, "ip6 saddr != @{set}"),
            Match::VxlanId(vni) => write!(f, "@th,96,24 {vni:#x}"),
            Match::IpsecMissing => f.write_str("rt ipsec missing"),
        }
    }
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Statement::Verdict(verdict) => verdict.fmt(f),
            Statement::Counted(verdict) => write!(f, "counter {verdict}"),
            Statement::Masquerade { fully_random: true } => f.write_str("masquerade fully-random"),
            Statement::Masquerade { fully_random: false } => f.write_str("masquerade"),
            Statement::Snat { to } => write!(f, "snat to {to}"),
            Statement::Dnat { to: IpAddr::V4(ip), port } => write!(f, "dnat to {ip}:{port}"),
            Statement::Dnat { to: IpAddr::V6(ip), port } => write!(f, "dnat to [{ip}]:{port}"),
            Statement::OrMark(bits) => write!(f, "meta mark set meta mark | 0x{bits:08x}"),
            Statement::OrConnectionMark(bits) => write!(f, "ct mark set ct mark | 0x{bits:08x}"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Accept => f.write_str("accept"),
            Verdict::Drop => f.write_str("drop"),
            Verdict::Return => f.write_str("return"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
            Verdict::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}
