//! iptables rules as data: one chain of ours in a table, and the rules of the built-in chain that are ours.
//!
//! Rules are text as `iptables -S` prints it without `-A` and the name of the chain, which goes back in by
//! `iptables-restore`. Everything between what a table holds and what it shall hold is one restore, which
//! both variants make one transaction: no packet meets half of it.

use std::fmt::{self, Write as _};

use ipnet::IpNet;
use model::Family;
use model::cni::iptables::{Saved, words};

/// The two implementations of iptables. Each has rules of its own, and the kernel obeys both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Variant {
    /// `iptables-nft`: the rules are in nftables' tables `nat` and `filter`.
    Nft,
    /// `iptables-legacy`: tables of their own.
    Legacy,
}

impl Variant {
    /// Both.
    pub const BOTH: [Variant; 2] = [Variant::Nft, Variant::Legacy];

    /// Name of its program for a family, such as `ip6tables-legacy`.
    pub fn program(self, family: Family) -> &'static str {
        match (family, self) {
            (Family::V4, Variant::Nft) => "iptables-nft",
            (Family::V4, Variant::Legacy) => "iptables-legacy",
            (Family::V6, Variant::Nft) => "ip6tables-nft",
            (Family::V6, Variant::Legacy) => "ip6tables-legacy",
        }
    }
}

/// The tables flannel has rules in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IptablesTable {
    /// Masquerading.
    Nat,
    /// Accepting what is forwarded.
    Filter,
}

impl IptablesTable {
    /// `nat` or `filter`
    pub fn name(self) -> &'static str {
        match self {
            IptablesTable::Nat => "nat",
            IptablesTable::Filter => "filter",
        }
    }

    /// Our chain, by flannel's name since v0.20.
    pub fn chain(self) -> &'static str {
        match self {
            IptablesTable::Nat => "FLANNEL-POSTRTG",
            IptablesTable::Filter => "FLANNEL-FWD",
        }
    }

    /// The built-in chain that leads to ours.
    pub fn parent(self) -> &'static str {
        match self {
            IptablesTable::Nat => "POSTROUTING",
            IptablesTable::Filter => "FORWARD",
        }
    }

    /// The comment all rules carry.
    pub fn comment(self) -> &'static str {
        match self {
            IptablesTable::Nat => "flanneld masq",
            IptablesTable::Filter => "flanneld forward",
        }
    }

    /// The rule of the built-in chain that leads to ours.
    pub fn jump(self) -> String {
        format!("-m comment --comment \"{}\" -j {}", self.comment(), self.chain())
    }

    /// Whether a rule of the built-in chain, as printed, is ours or an older flannel's (flannel.md 7.6): by
    /// target, by comment, or in `nat`, where rules without either decide what ours are there for, by its
    /// whole text. Rules of FORWARD without comment accept what ours accept, and administrators write the
    /// same ones: those stay (decision 0132).
    fn owns(self, rule: &str, networks: &[IpNet]) -> bool {
        let words = words(rule);
        let after = |flag: &str| {
            let at = words.iter().position(|word| word == flag)?;
            words.get(at + 1).map(String::as_str)
        };
        let comments: &[&str] = match self {
            IptablesTable::Nat => &["flanneld masq", "flannel masq"],
            IptablesTable::Filter => &["flanneld forward"],
        };
        after("-j") == Some(self.chain())
            || after("--comment").is_some_and(|comment| comments.contains(&comment))
            || self == IptablesTable::Nat && networks.iter().any(|net| is_bare(rule, *net))
    }
}

/// Whether a rule of POSTROUTING is one of those v0.9 to v0.15 made for a network.
fn is_bare(rule: &str, net: IpNet) -> bool {
    let inside = |text: &str| text.parse::<IpNet>().is_ok_and(|pods| pods != net && net.contains(&pods));
    let rule = rule.strip_suffix(" --random-fully").unwrap_or(rule);
    let multicast = multicast(Family::of_net(net));
    // The subnet may have been another one then.
    let entering = rule
        .strip_prefix(&format!("! -s {net} -d "))
        .and_then(|rest| rest.strip_suffix(" -j RETURN"))
        .is_some_and(inside);
    entering
        || rule == format!("-s {net} -d {net} -j RETURN")
        || rule == format!("-s {net} ! -d {multicast} -j MASQUERADE")
        || rule == format!("! -s {net} -d {net} -j MASQUERADE")
}

/// All multicast addresses of a family.
pub fn multicast(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::from(ipnet::Ipv4Net::new_assert([224, 0, 0, 0].into(), 4)),
        Family::V6 => IpNet::from(ipnet::Ipv6Net::new_assert([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8)),
    }
}

/// Identity of what we have in one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IptablesKey {
    /// Whose table.
    pub variant: Variant,
    /// `iptables` or `ip6tables`.
    pub family: Family,
    /// The table.
    pub table: IptablesTable,
}

/// All we have in one table. Written as a whole, in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Iptables {
    /// Where.
    pub key: IptablesKey,
    /// Rules of our chain in order; `None` if it is not there, which is never wanted.
    pub rules: Option<Vec<String>>,
    /// Actual state only: rules of the chain about other networks, which are another agent's (decision 0156).
    pub others: Vec<String>,
    /// Rules of the built-in chain that are ours, in order. Wanted is the jump, once.
    pub hooks: Vec<String>,
    /// Actual state only: our jump stands before every rule of other programs, where flannel v0.20 put it.
    /// Wanted is the end; rules that others append later stay behind it (decision 0131).
    pub ahead: bool,
    /// Actual state only: the table could not be read, so it differs from all we want.
    pub unknown: bool,
}

impl Iptables {
    /// Our chain with these rules, and the jump to it.
    pub fn wanted(key: IptablesKey, rules: Vec<String>) -> Iptables {
        let hooks = vec![key.table.jump()];
        Iptables { key, rules: Some(rules), others: Vec::new(), hooks, ahead: false, unknown: false }
    }

    /// What could not be read.
    pub fn unknown(key: IptablesKey) -> Iptables {
        Iptables { key, rules: None, others: Vec::new(), hooks: Vec::new(), ahead: false, unknown: true }
    }

    /// What of a table is ours, from what `iptables-save -t` or `-S` of both chains prints; `None` if
    /// nothing is. `networks` are those of the cluster; without them all of our chain is ours.
    pub fn found(key: IptablesKey, text: &str, networks: &[IpNet]) -> Option<Iptables> {
        let saved = Saved::parse(text);
        let table = key.table;
        let (rules, others) = shared(saved.rules(table.chain()), networks);
        let rules =
            Some(rules).filter(|rules| saved.has(table.chain()) && (others.is_empty() || !rules.is_empty()));
        let ours: Vec<bool> =
            saved.rules(table.parent()).iter().map(|rule| table.owns(rule, networks)).collect();
        let hooks = saved.rules(table.parent()).iter().zip(&ours).filter(|(_, ours)| **ours);
        let hooks: Vec<String> = hooks.map(|(rule, _)| rule.clone()).collect();
        let ahead = ours.first() == Some(&true) && ours.contains(&false);
        let found = Iptables { key, rules, others, hooks, ahead, unknown: false };
        (found.rules.is_some() || !found.hooks.is_empty()).then_some(found)
    }

    /// Whether chain and jump are there for another agent only.
    pub fn is_anothers(&self) -> bool {
        let jump = self.key.table.jump();
        self.rules.is_none()
            && !self.others.is_empty()
            && self.hooks.iter().all(|hook| options(hook) == options(&jump))
    }

    /// Whether the table already holds this. The order of options within a rule does not count: it differs
    /// from version to version.
    pub fn same(&self, actual: &Iptables) -> bool {
        let same = |want: &[String], have: &[String]| {
            want.len() == have.len()
                && want.iter().zip(have).all(|(want, have)| options(want) == options(have))
        };
        !actual.unknown
            && self.key == actual.key
            && self.ahead == actual.ahead
            && same(&self.hooks, &actual.hooks)
            && match (&self.rules, &actual.rules) {
                (Some(want), Some(have)) => same(want, have),
                (want, have) => want == have,
            }
    }

    /// The input of `iptables-restore --noflush` that leads here. The chain is filled in the transaction
    /// that makes or moves the jump; a jump that is right is not touched, so that the order of other
    /// programs' rules stays (F-130, F-139).
    pub fn restore(&self, actual: Option<&Iptables>) -> String {
        let (table, parent, chain) = (self.key.table, self.key.table.parent(), self.key.table.chain());
        // The line makes the chain, or empties the one that is there.
        let mut text = format!("*{}\n:{chain} - [0:0]\n", table.name());
        let others = actual.map_or(&[][..], |actual| &actual.others);
        for rule in others.iter().chain(self.rules.iter().flatten()) {
            let _ = writeln!(text, "-A {chain} {rule}");
        }
        let hooks = actual.map_or(&[][..], |actual| &actual.hooks);
        let misplaced = actual.is_some_and(|actual| actual.ahead);
        let keeps =
            |hook: &String| !misplaced && self.hooks.iter().any(|want| options(want) == options(hook));
        // One that can stay, stays; of several the last, nearest to where it belongs.
        let kept = hooks.iter().rposition(keeps);
        // Equal rules are deleted from the front, by number of times.
        for (_, hook) in hooks.iter().enumerate().filter(|(n, _)| Some(*n) != kept) {
            let _ = writeln!(text, "-D {parent} {hook}");
        }
        if kept.is_none() {
            for hook in &self.hooks {
                let _ = writeln!(text, "-A {parent} {hook}");
            }
        }
        text.push_str("COMMIT\n");
        text
    }
}

/// Rules of our chain that are ours, and those that are another agent's: about other networks alone. One that
/// names no network belongs to whom the next one does.
fn shared(rules: &[String], networks: &[IpNet]) -> (Vec<String>, Vec<String>) {
    let overlap = |net: &IpNet| networks.iter().any(|ours| ours.contains(net) || net.contains(ours));
    let (mut ours, mut others) = (Vec::new(), Vec::new());
    let mut mine = true;
    for rule in rules.iter().rev() {
        let nets: Vec<IpNet> = words(rule)
            .windows(2)
            .filter(|pair| ["-s", "-d"].contains(&pair[0].as_str()))
            .filter_map(|pair| pair[1].parse().ok())
            .filter(|net| *net != multicast(Family::of_net(*net)))
            .collect();
        if !nets.is_empty() {
            mine = networks.is_empty() || nets.iter().any(overlap);
        }
        if mine { ours.push(rule.clone()) } else { others.push(rule.clone()) }
    }
    ours.reverse();
    others.reverse();
    (ours, others)
}

/// What removes our chain from a table, with every jump to it, and what of the built-in chain is ours;
/// `None` if nothing is. Where another agent has rules in the chain, only ours go. `text` is what `iptables-save -t` prints.
pub fn removal(key: IptablesKey, text: &str, networks: &[IpNet]) -> Option<String> {
    let found = Iptables::found(key, text, networks);
    let saved = Saved::parse(text);
    let (parent, chain) = (key.table.parent(), key.table.chain());
    let mut lines = String::new();
    if let Some(found) = found.as_ref().filter(|found| !found.others.is_empty()) {
        if found.is_anothers() {
            return None;
        }
        let _ = writeln!(lines, ":{chain} - [0:0]");
        for rule in &found.others {
            let _ = writeln!(lines, "-A {chain} {rule}");
        }
        let jump = options(&key.table.jump());
        for hook in found.hooks.iter().filter(|hook| options(hook) != jump) {
            let _ = writeln!(lines, "-D {parent} {hook}");
        }
        return Some(format!("*{}\n{lines}COMMIT\n", key.table.name()));
    }
    for hook in found.iter().flat_map(|found| &found.hooks) {
        let _ = writeln!(lines, "-D {parent} {hook}");
    }
    for (from, rule) in saved.leading_to(chain).filter(|(from, _)| *from != parent && *from != chain) {
        let _ = writeln!(lines, "-D {from} {rule}");
    }
    if saved.has(chain) {
        let _ = write!(lines, "-F {chain}\n-X {chain}\n");
    }
    (!lines.is_empty()).then(|| format!("*{}\n{lines}COMMIT\n", key.table.name()))
}

/// The options of a rule with their values, sorted.
fn options(rule: &str) -> Vec<Vec<String>> {
    let mut options: Vec<Vec<String>> = Vec::new();
    let mut negated = false;
    for word in words(rule) {
        let flag = word.starts_with('-') && word.len() > 1;
        match options.last_mut() {
            _ if word == "!" => negated = true,
            _ if flag => {
                let not = std::mem::take(&mut negated).then(|| "!".to_owned());
                options.push(not.into_iter().chain([word]).collect());
            }
            Some(option) => option.push(word),
            None => options.push(vec![word]),
        }
    }
    options.sort();
    options
}

impl fmt::Display for IptablesKey {
    /// `ip6tables-nft -t nat`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -t {}", self.variant.program(self.family), self.table.name())
    }
}

impl fmt::Display for Iptables {
    /// The command that shows it, and its size: the text itself fills a page.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = self.key.table;
        let rules = self.rules.as_ref().map_or(0, Vec::len);
        write!(
            f,
            "{}-restore --noflush (table {}: ",
            self.key.variant.program(self.key.family),
            table.name()
        )?;
        write!(f, "chain {}, {rules} rules, jump from {})", table.chain(), table.parent())
    }
}

#[cfg(test)]
mod tests;
