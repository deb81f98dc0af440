//! What becomes of a packet by packet rules as text, as far as that can be told: a condition of a rule holds, does not,
//! or nobody knows from the text (a mark's origin, a lookup of routes). Where nobody knows, a rule that accepts does so and
//! one that drops does not: a finding is a packet that is lost for certain (decision 0206). Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use model::Family;

use super::ruleset::{Chain, Ruleset};

/// The first packet of a connection, without a mark. What is `None` is not known.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Its family.
    pub family: Family,
    /// Device it comes in through.
    pub iif: Option<String>,
    /// Device it leaves through.
    pub oif: Option<String>,
    /// Source.
    pub src: Option<IpAddr>,
    /// Destination.
    pub dst: Option<IpAddr>,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// Destination port.
    pub port: u16,
}

/// Where a packet is lost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lost<'a> {
    /// The chain.
    pub chain: &'a Chain,
    /// The rule; without one it is the chain's policy.
    pub rule: Option<&'a str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Match {
    Yes,
    No,
    Unsure,
}

impl Match {
    fn of(yes: bool) -> Match {
        if yes { Match::Yes } else { Match::No }
    }

    fn not(self, negated: bool) -> Match {
        match self {
            Match::Yes if negated => Match::No,
            Match::No if negated => Match::Yes,
            same => same,
        }
    }

    fn and(self, other: Match) -> Match {
        match (self, other) {
            (Match::No, _) | (_, Match::No) => Match::No,
            (Match::Yes, Match::Yes) => Match::Yes,
            _ => Match::Unsure,
        }
    }

    fn or(self, other: Match) -> Match {
        self.not(true).and(other.not(true)).not(true)
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

enum End<'a> {
    Accepted,
    Lost(Lost<'a>),
    Through,
}

/// Chains lead to chains at most so deep (the kernel's `NFT_JUMP_STACK_SIZE`).
const DEPTH: usize = 16;

impl Ruleset {
    /// Where the chains at a hook lose a packet for certain. A packet passes all of them.
    pub fn losses<'a>(&'a self, hook: &'a str, packet: &Packet) -> impl Iterator<Item = Lost<'a>> {
        let packet = packet.clone();
        self.at(hook).filter_map(move |base| self.lost(base, &packet))
    }

    fn lost<'a>(&'a self, base: &'a Chain, packet: &Packet) -> Option<Lost<'a>> {
        let concerned = match base.table.split(' ').next().unwrap_or_default() {
            "inet" | "bridge" => true,
            "ip6" | "ip6tables" | "ip6tables-legacy" => packet.family == Family::V6,
            "ip" | "iptables" | "iptables-legacy" => packet.family == Family::V4,
            _ => false,
        };
        if !concerned {
            return None;
        }
        match self.walk(base, packet, DEPTH) {
            End::Accepted => None,
            End::Lost(lost) => Some(lost),
            End::Through => base.drops.then_some(Lost { chain: base, rule: None }),
        }
    }

    fn walk<'a>(&'a self, chain: &'a Chain, packet: &Packet, depth: usize) -> End<'a> {
        for rule in &chain.rules {
            let (hit, verdict) =
                if chain.table.contains("iptables") { iptables(rule, packet) } else { nft(rule, packet) };
            if hit == Match::No {
                continue;
            }
            match verdict {
                Some(Verdict::Accept) => return End::Accepted,
                Some(Verdict::Drop) if hit == Match::Yes => {
                    return End::Lost(Lost { chain, rule: Some(rule) });
                }
                Some(Verdict::Return) => return End::Through,
                Some(Verdict::Jump(ref name) | Verdict::Goto(ref name)) => {
                    let same = |next: &&Chain| next.table == chain.table && next.name == *name;
                    let Some(next) = self.chains.iter().find(same).filter(|_| depth > 0) else {
                        return End::Accepted;
                    };
                    match self.walk(next, packet, depth - 1) {
                        End::Accepted => return End::Accepted,
                        lost @ End::Lost(_) if hit == Match::Yes => return lost,
                        End::Through if matches!(verdict, Some(Verdict::Goto(_))) && hit == Match::Yes => {
                            return End::Through;
                        }
                        End::Lost(_) | End::Through => {}
                    }
                }
                Some(Verdict::Drop) | None => {}
            }
        }
        End::Through
    }
}

/// Words; what is in quotes or braces is one, without the quotes.
fn words(rule: &str) -> Vec<String> {
    let (mut words, mut word) = (Vec::new(), String::new());
    let (mut quoted, mut braces) = (false, 0usize);
    for c in rule.chars() {
        match c {
            '"' => quoted = !quoted,
            '{' if !quoted => braces += 1,
            '}' if !quoted => braces = braces.saturating_sub(1),
            _ => {}
        }
        let between = c.is_whitespace() && !quoted && braces == 0;
        if between && !word.is_empty() {
            words.push(std::mem::take(&mut word));
        } else if !between && c != '"' {
            word.push(c);
        }
    }
    words.extend(Some(word).filter(|word| !word.is_empty()));
    words
}

fn elements(value: &str) -> impl Iterator<Item = &str> {
    let bare = value.trim_start_matches('{').trim_end_matches('}');
    bare.split(',').map(str::trim).filter(|element| !element.is_empty())
}

fn device(known: Option<&String>, pattern: &str) -> Match {
    let Some(name) = known else { return Match::Unsure };
    match pattern.strip_suffix(['*', '+']) {
        Some(beginning) => Match::of(name.starts_with(beginning)),
        None => Match::of(name == pattern),
    }
}

fn address(known: Option<IpAddr>, pattern: &str) -> Match {
    if pattern.starts_with('@') {
        return Match::Unsure;
    }
    let net = pattern.parse::<IpNet>().or_else(|_| pattern.parse::<IpAddr>().map(IpNet::from));
    let Some(ip) = known else {
        return if net.is_ok_and(|net| net.prefix_len() == 0) { Match::Yes } else { Match::Unsure };
    };
    if let Ok(net) = net {
        return Match::of(net.contains(&ip));
    }
    let ends = pattern.split_once('-').map(|(low, high)| (low.parse::<IpAddr>(), high.parse::<IpAddr>()));
    match ends {
        Some((Ok(low), Ok(high))) => Match::of(low <= ip && ip <= high),
        _ => Match::Unsure,
    }
}

fn port(known: u16, pattern: &str) -> Match {
    if pattern.starts_with('@') {
        return Match::Unsure;
    }
    let (low, high) = pattern.split_once(['-', ':']).unwrap_or((pattern, pattern));
    match (low.parse::<u16>(), high.parse::<u16>()) {
        (Ok(low), Ok(high)) => Match::of((low..=high).contains(&known)),
        _ => Match::No,
    }
}

fn protocol(known: &str, pattern: &str) -> Match {
    let number = if known == "tcp" { "6" } else { "17" };
    Match::of(pattern == known || pattern == number)
}

fn family(known: Family, pattern: &str) -> Match {
    match pattern {
        "ipv4" | "ip" => Match::of(known == Family::V4),
        "ipv6" | "ip6" => Match::of(known == Family::V6),
        _ => Match::No,
    }
}

/// A rule as `nft list ruleset` prints it, read word by word.
struct Reader<'a> {
    words: &'a [String],
    at: usize,
    hit: Match,
    verdict: Option<Verdict>,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<&str> {
        self.at += 1;
        self.words.get(self.at - 1).map(String::as_str)
    }

    fn peek(&self) -> &str {
        self.words.get(self.at).map_or("", String::as_str)
    }

    /// An operator and a value, or a map of values to verdicts.
    fn value(&mut self, matches: impl Fn(&str) -> Match) {
        if self.peek() == "." {
            return self.combined();
        }
        if self.peek() == "vmap" {
            self.at += 1;
            return self.map(matches);
        }
        let negated = self.peek() == "!=";
        if ["!=", "=="].contains(&self.peek()) {
            self.at += 1;
        }
        let any = self.next().unwrap_or_default().to_owned();
        let any = elements(&any).map(matches).fold(Match::No, Match::or);
        self.hit = self.hit.and(any.not(negated));
    }

    fn map(&mut self, matches: impl Fn(&str) -> Match) {
        let text = self.next().unwrap_or_default().to_owned();
        if text.starts_with('@') {
            self.hit = self.hit.and(Match::Unsure);
            self.verdict = Some(Verdict::Accept);
            return;
        }
        for (key, verdict) in elements(&text).filter_map(|entry| entry.split_once(" : ")) {
            match matches(key.trim()) {
                Match::No => {}
                hit => {
                    self.hit = self.hit.and(hit);
                    self.verdict = verdict_of(&words(verdict));
                    return;
                }
            }
        }
        self.hit = Match::No;
    }

    /// Several values at once, or a condition this reader does not know: not looked into.
    fn combined(&mut self) {
        self.hit = self.hit.and(Match::Unsure);
        while self.at < self.words.len() && verdict_of(&self.words[self.at..]).is_none() {
            if self.next() == Some("vmap") {
                self.verdict = Some(Verdict::Accept);
            }
        }
    }

    /// What packets without a mark do: it matches none, and all that ask for its absence.
    fn unmarked(&mut self) {
        if self.peek() == "set" {
            self.at += 2;
            return;
        }
        let mut negated = false;
        while ["&", "and", "==", "!=", "|", "or"].contains(&self.peek())
            || self.peek().starts_with(|c: char| c.is_ascii_digit())
        {
            negated |= self.next() == Some("!=");
        }
        self.hit = self.hit.and(Match::No.not(negated));
    }

    fn skip(&mut self, keys: &[&str]) {
        while keys.contains(&self.peek()) {
            self.at += 2;
        }
    }

    fn limit(&mut self) {
        if self.peek() == "rate" {
            self.at += 1;
        }
        if self.peek() == "over" {
            self.hit = self.hit.and(Match::Unsure);
        }
        let ends = ["accept", "drop", "reject", "return", "jump", "goto", "continue", "log", "counter"];
        while self.at < self.words.len() && !ends.contains(&self.peek()) {
            self.at += 1;
        }
    }

    fn connection(&mut self) {
        match self.next().unwrap_or_default() {
            "state" => self.value(|state| Match::of(state == "new")),
            "status" => self.value(|_| Match::No),
            "direction" => self.value(|way| Match::of(way == "original")),
            "mark" => self.unmarked(),
            _ => self.combined(),
        }
    }

    fn transport(&mut self, word: &str, packet: &Packet) {
        if word != "th" {
            self.hit = self.hit.and(Match::of(word == packet.protocol));
        }
        match self.next().unwrap_or_default() {
            "dport" => self.value(|pattern| port(packet.port, pattern)),
            _ => self.value(|_| Match::Unsure),
        }
    }

    fn network(&mut self, word: &str, packet: &Packet) {
        self.hit = self.hit.and(family(packet.family, word));
        match self.next().unwrap_or_default() {
            "saddr" => self.value(|pattern| address(packet.src, pattern)),
            "daddr" => self.value(|pattern| address(packet.dst, pattern)),
            "protocol" | "nexthdr" => self.value(|pattern| protocol(packet.protocol, pattern)),
            _ => self.value(|_| Match::Unsure),
        }
    }

    /// What iptables has and nftables prints by name only.
    fn extension(&mut self) {
        let kind = self.next().unwrap_or_default().to_owned();
        let name = self.next().unwrap_or_default().to_owned();
        match (kind.as_str(), name.as_str()) {
            ("target", "REJECT" | "DROP") => self.verdict = Some(Verdict::Drop),
            ("match", "comment") | ("target", _) => {}
            _ => self.hit = self.hit.and(Match::Unsure),
        }
    }
}

fn verdict_of(words: &[String]) -> Option<Verdict> {
    let target = || words.get(1).cloned().unwrap_or_default();
    match words.first()?.as_str() {
        "accept" | "queue" => Some(Verdict::Accept),
        "drop" | "reject" => Some(Verdict::Drop),
        "return" => Some(Verdict::Return),
        "jump" => Some(Verdict::Jump(target())),
        "goto" => Some(Verdict::Goto(target())),
        _ => None,
    }
}

fn nft(rule: &str, packet: &Packet) -> (Match, Option<Verdict>) {
    let words = words(rule);
    let mut read = Reader { words: &words, at: 0, hit: Match::Yes, verdict: None };
    while read.at < words.len() {
        if let Some(verdict) = verdict_of(&words[read.at..]) {
            return (read.hit, Some(verdict));
        }
        let word = read.next().unwrap_or_default().to_owned();
        match word.as_str() {
            "meta" | "continue" | "notrack" => {}
            "counter" => read.skip(&["packets", "bytes", "name"]),
            "comment" => read.at += 1,
            "log" => read.skip(&["prefix", "level", "group", "snaplen", "queue-threshold", "flags"]),
            "limit" => read.limit(),
            "iif" | "iifname" => read.value(|pattern| device(packet.iif.as_ref(), pattern)),
            "oif" | "oifname" => read.value(|pattern| device(packet.oif.as_ref(), pattern)),
            "nfproto" => read.value(|pattern| family(packet.family, pattern)),
            "l4proto" => read.value(|pattern| protocol(packet.protocol, pattern)),
            "mark" => read.unmarked(),
            "ct" => read.connection(),
            "ip" | "ip6" => read.network(&word, packet),
            "tcp" | "udp" | "sctp" | "dccp" | "udplite" | "icmp" | "icmpv6" | "igmp" | "esp" | "ah"
            | "th" => read.transport(&word, packet),
            "ether" if read.peek() == "type" => {
                read.at += 1;
                read.value(|pattern| family(packet.family, pattern));
            }
            "xt" => read.extension(),
            "vmap" => read.map(|_| Match::Unsure),
            _ => read.combined(),
        }
    }
    (read.hit, read.verdict)
}

/// A rule as `iptables-save` prints it, without its chain.
fn iptables(rule: &str, packet: &Packet) -> (Match, Option<Verdict>) {
    let words = words(rule);
    let (mut hit, mut negated, mut at) = (Match::Yes, false, 0);
    while at < words.len() {
        let value = words.get(at + 1).map_or("", String::as_str);
        let any = |matches: &dyn Fn(&str) -> Match| elements(value).map(matches).fold(Match::No, Match::or);
        let holds = match words[at].as_str() {
            "!" => {
                negated = true;
                at += 1;
                continue;
            }
            "-j" | "-g" => {
                let verdict = match value {
                    "ACCEPT" | "NFQUEUE" => Some(Verdict::Accept),
                    "DROP" | "REJECT" => Some(Verdict::Drop),
                    "RETURN" => Some(Verdict::Return),
                    "LOG" | "NFLOG" | "MARK" | "CONNMARK" | "TCPMSS" | "CT" | "NOTRACK" | "CHECKSUM"
                    | "SET" | "TRACE" | "CLASSIFY" => None,
                    name if words[at] == "-g" => Some(Verdict::Goto(name.to_owned())),
                    name => Some(Verdict::Jump(name.to_owned())),
                };
                return (hit, verdict);
            }
            "-m" | "--comment" => Match::Yes,
            "-s" => any(&|pattern| address(packet.src, pattern)),
            "-d" => any(&|pattern| address(packet.dst, pattern)),
            "-i" => device(packet.iif.as_ref(), value),
            "-o" => device(packet.oif.as_ref(), value),
            "-p" => protocol(packet.protocol, value),
            "--dport" | "--dports" => any(&|pattern| port(packet.port, pattern)),
            "--ctstate" | "--state" => any(&|state| Match::of(state.eq_ignore_ascii_case("new"))),
            "--mark" | "--ctstatus" => Match::No,
            _ => Match::Unsure,
        };
        hit = hit.and(holds.not(negated));
        negated = false;
        at += if value.starts_with('-') || value == "!" { 1 } else { 2 };
    }
    (hit, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_hold_or_not_or_nobody_knows() {
        let packet = Packet {
            family: Family::V4,
            iif: Some("eth0".to_owned()),
            oif: None,
            src: None,
            dst: "192.0.2.11".parse().ok(),
            protocol: "udp",
            port: 8472,
        };
        let drop = Some(Verdict::Drop);
        let accept = Some(Verdict::Accept);
        for (rule, hit, verdict) in [
            ("counter packets 1 bytes 2 drop", Match::Yes, drop.clone()),
            (
                "iifname \"eth*\" udp dport { 8472, 51820 } accept comment \"the tunnel's drop\"",
                Match::Yes,
                accept.clone(),
            ),
            ("udp dport 8000-9000 accept", Match::Yes, accept.clone()),
            ("udp dport != 4789 drop", Match::Yes, drop.clone()),
            ("tcp dport 8472 accept", Match::No, accept.clone()),
            ("tcp flags & (fin | syn) == syn drop", Match::No, drop.clone()),
            ("ip saddr 192.0.2.0/24 accept", Match::Unsure, accept.clone()),
            ("ip saddr 0.0.0.0/0 accept", Match::Yes, accept.clone()),
            ("ip daddr 192.0.2.10-192.0.2.20 drop", Match::Yes, drop.clone()),
            ("ip6 daddr ::/0 drop", Match::No, drop.clone()),
            ("meta nfproto ipv6 drop", Match::No, drop.clone()),
            ("meta l4proto { tcp, 17 } drop", Match::Yes, drop.clone()),
            ("ct state established,related accept", Match::No, accept.clone()),
            ("ct state { established, new } accept", Match::Yes, accept.clone()),
            ("ct state vmap { established : accept, new : drop }", Match::Yes, drop.clone()),
            (
                "iifname vmap { \"lo\" : accept, \"eth0\" : jump world }",
                Match::Yes,
                Some(Verdict::Jump("world".to_owned())),
            ),
            ("meta mark & 0x00004000 == 0x00004000 drop", Match::No, drop.clone()),
            ("meta mark & 0x00004000 != 0x00004000 return", Match::Yes, Some(Verdict::Return)),
            ("ip daddr . meta l4proto . th dport vmap @services", Match::Unsure, accept.clone()),
            ("fib saddr . iif oif missing drop", Match::Unsure, drop.clone()),
            (
                "limit rate 5/minute burst 5 packets log prefix \"x drop \" level warn drop",
                Match::Yes,
                drop.clone(),
            ),
            (
                "xt match \"addrtype\" counter packets 0 bytes 0 jump DOCKER",
                Match::Unsure,
                Some(Verdict::Jump("DOCKER".to_owned())),
            ),
            ("counter packets 0 bytes 0 xt target \"REJECT\"", Match::Yes, drop.clone()),
            ("ether type arp accept", Match::No, accept.clone()),
            ("icmp type echo-request accept", Match::No, accept.clone()),
        ] {
            assert_eq!(nft(rule, &packet), (hit, verdict), "{rule}");
        }
        for (rule, hit, verdict) in [
            ("-p udp -m udp --dport 8472 -j ACCEPT", Match::Yes, accept.clone()),
            (
                "-p udp -m multiport --dports 80,8000:9000 -m comment --comment \"a -j DROP\" -j ACCEPT",
                Match::Yes,
                accept.clone(),
            ),
            ("! -i eth0 -j DROP", Match::No, drop.clone()),
            ("-i docker+ -j DROP", Match::No, drop.clone()),
            ("-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", Match::No, accept.clone()),
            (
                "-m addrtype --dst-type LOCAL -j DOCKER",
                Match::Unsure,
                Some(Verdict::Jump("DOCKER".to_owned())),
            ),
            ("-m mark --mark 0x8000/0x8000 -j DROP", Match::No, drop.clone()),
            ("-s 198.51.100.0/24 -j DROP", Match::Unsure, drop.clone()),
            ("-j LOG --log-prefix x", Match::Yes, None),
            ("-g OTHER", Match::Yes, Some(Verdict::Goto("OTHER".to_owned()))),
        ] {
            assert_eq!(iptables(rule, &packet), (hit, verdict), "{rule}");
        }
    }

    #[test]
    fn a_packet_goes_from_chain_to_chain() {
        let rules = Ruleset::nft(
            "table ip filter {\n\tset pods {\n\t\ttype ipv4_addr\n\t\tflags interval\n\t\telements = { 10.244.0.0/16,\n\t\t\t     10.42.0.0/16 }\n\t}\n\
             \tchain USER {\n\t\tip saddr 192.0.2.0/24 return\n\t\tip saddr @pods accept\n\t\tdrop\n\t}\n\
             \tchain FORWARD {\n\t\ttype filter hook forward priority filter; policy drop;\n\t\tjump USER\n\t}\n}\n",
        );
        let from = |src: &str| Packet {
            family: Family::V4,
            iif: None,
            oif: None,
            src: src.parse().ok(),
            dst: None,
            protocol: "tcp",
            port: 80,
        };
        let lost = |src: &str| {
            rules.losses("forward", &from(src)).next().map(|lost| (lost.chain.name.as_str(), lost.rule))
        };
        assert_eq!(lost("10.42.1.2"), None);
        assert_eq!(lost("10.1.1.2"), Some(("USER", Some("drop"))));
        assert_eq!(lost("192.0.2.7"), Some(("FORWARD", None)));
        assert_eq!(rules.losses("forward", &Packet { family: Family::V6, ..from("fd00::1") }).next(), None);
    }
}
