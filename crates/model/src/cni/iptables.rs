//! The iptables backends as text: what `iptables-save` says, and the lines for `iptables-restore
//! --noflush` that lead to what is wanted (cni.md 2.0.6, 2.3, 2.5).
//!
//! All changes of one table go in one restore, which the tools make one transaction. Rules are written in
//! the form the tools print, so that they are found again by comparing text, and by `-C` and `-D` of the
//! reference plugins.

mod firewall;
mod masquerade;
mod own;
mod portmap;

use std::collections::{BTreeMap, BTreeSet};

pub use firewall::{ADMIN_CHAIN, Firewall, IngressPolicy};
pub use masquerade::Masquerade;
pub use own::OwnChain;
pub use portmap::HostPorts;

/// A table as `iptables-save -t` prints it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    chains: BTreeMap<String, Vec<String>>,
}

impl Saved {
    /// Reads the tool's output, or that of `iptables -S`. Counters and comments of the file are passed over.
    pub fn parse(text: &str) -> Saved {
        let mut saved = Saved::default();
        for line in text.lines() {
            let chain = [":", "-N ", "-P "].iter().find_map(|sign| line.strip_prefix(sign));
            if let Some(chain) = chain {
                let name = chain.split(' ').next().unwrap_or_default();
                saved.chains.entry(name.to_owned()).or_default();
            } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|l| l.split_once(' ')) {
                saved.chains.entry(chain.to_owned()).or_default().push(rule.to_owned());
            }
        }
        saved
    }

    /// Whether a chain is there.
    pub fn has(&self, chain: &str) -> bool {
        self.chains.contains_key(chain)
    }

    /// The rules of a chain in order, without its name.
    pub fn rules(&self, chain: &str) -> &[String] {
        self.chains.get(chain).map_or(&[], Vec::as_slice)
    }

    /// Every rule of any chain that ends in a jump to `target`, with its chain.
    pub fn leading_to<'a>(&'a self, target: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        // The first question is the cheaper one, and answers nearly all.
        self.all().filter(move |(_, rule)| rule.contains(target) && target_of(rule) == Some(target))
    }

    /// Every rule with its chain.
    fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        self.chains.iter().flat_map(|(c, rules)| rules.iter().map(move |r| (c.as_str(), r.as_str())))
    }
}

/// Lines for one table, built against what it holds.
pub struct Changes<'a> {
    saved: &'a Saved,
    made: Vec<String>,
    lines: Vec<String>,
}

impl<'a> Changes<'a> {
    /// Nothing to change yet.
    pub fn new(saved: &'a Saved) -> Changes<'a> {
        Changes { saved, made: Vec::new(), lines: Vec::new() }
    }

    /// The commands, for the middle of a restore; empty when there is nothing to do.
    pub fn into_lines(self) -> Vec<String> {
        self.lines
    }

    /// Makes a chain that is not there.
    pub fn ensure(&mut self, chain: &str) {
        if !self.saved.has(chain) && !self.made.iter().any(|made| made == chain) {
            self.lines.push(format!("-N {chain}"));
            self.made.push(chain.to_owned());
        }
    }

    /// Makes a chain hold exactly these rules.
    pub fn fill(&mut self, chain: &str, rules: &[String]) {
        if self.saved.has(chain) {
            self.lines.push(format!("-F {chain}"));
        }
        self.ensure(chain);
        self.lines.extend(rules.iter().map(|rule| format!("-A {chain} {rule}")));
    }

    /// Puts a rule at the head of a chain unless the chain has it anywhere.
    pub fn first(&mut self, chain: &str, rule: &str) {
        self.once(chain, rule, "-I");
    }

    /// Puts a rule at the end of a chain unless the chain has it anywhere.
    pub fn append(&mut self, chain: &str, rule: &str) {
        self.once(chain, rule, "-A");
    }

    /// Comments do not count, as they changed from release to release; doubles are collapsed (B-11).
    fn once(&mut self, chain: &str, rule: &str, command: &str) {
        let wanted = bare(rule);
        let have: Vec<&String> = self.saved.rules(chain).iter().filter(|r| bare(r) == wanted).collect();
        if have.is_empty() {
            self.lines.push(format!("{command} {chain} {rule}"));
        }
        self.lines.extend(have.iter().skip(1).map(|rule| format!("-D {chain} {rule}")));
    }

    /// Deletes a rule as it was printed.
    pub fn delete(&mut self, chain: &str, rule: &str) {
        self.lines.push(format!("-D {chain} {rule}"));
    }

    /// Deletes every rule that leads to a chain.
    pub fn detach(&mut self, chain: &str) {
        let saved = self.saved;
        for (parent, rule) in saved.leading_to(chain) {
            self.lines.push(format!("-D {parent} {rule}"));
        }
    }

    /// Deletes a chain, its rules, and every rule that leads to it.
    pub fn remove(&mut self, chain: &str) {
        self.detach(chain);
        self.end(chain);
    }

    /// The same for many chains, with one look at the table.
    pub fn remove_each(&mut self, chains: &BTreeSet<&str>) {
        let saved = self.saved;
        let mut leading: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (parent, rule) in saved.all() {
            if let Some(chain) = target_of(rule).filter(|chain| chains.contains(chain)) {
                leading.entry(chain).or_default().push(format!("-D {parent} {rule}"));
            }
        }
        for chain in chains {
            self.lines.extend(leading.remove(chain).unwrap_or_default());
            self.end(chain);
        }
    }

    fn end(&mut self, chain: &str) {
        if self.saved.has(chain) {
            self.lines.push(format!("-F {chain}"));
            self.lines.push(format!("-X {chain}"));
        }
    }
}

/// The words of a printed rule, quotes removed.
pub fn words(rule: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut any) = (Vec::new(), String::new(), false, false);
    let mut letters = rule.chars();
    while let Some(c) = letters.next() {
        match c {
            '"' => (quoted, any) = (!quoted, true),
            '\\' if quoted => word.extend(letters.next()),
            ' ' if !quoted => {
                if any {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            c => {
                word.push(c);
                any = true;
            }
        }
    }
    if any {
        words.push(word);
    }
    words
}

/// A word as the tools print and read it.
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,!+%@=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    let mut text = String::from("\"");
    for c in word.chars() {
        if matches!(c, '"' | '\\' | '\'') {
            text.push('\\');
        }
        // A line is a rule; a comment must not begin another one.
        text.push(if c.is_control() { ' ' } else { c });
    }
    text.push('"');
    text
}

/// Whether a text may name a chain: what comes from a document must stay one word of one line.
///
/// # Errors
/// One sentence that names it.
pub fn check_chain(name: &str) -> Result<(), String> {
    let plain = name.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\' && b != b'\'');
    if plain && (1..=28).contains(&name.len()) && !name.starts_with(['-', '!']) {
        return Ok(());
    }
    let rule = "1 to 28 letters, digits, and signs other than blanks";
    Err(format!("{name:?} is no name of an iptables chain ({rule})"))
}

/// The match of a comment.
fn comment(text: &str) -> String {
    format!("-m comment --comment {}", quote(text))
}

/// The comment of a printed rule.
pub fn comment_of(rule: &str) -> Option<String> {
    let words = words(rule);
    let at = words.iter().position(|word| word == "--comment")?;
    words.into_iter().nth(at + 1)
}

fn target_of(rule: &str) -> Option<&str> {
    let (_, rest) = rule.rsplit_once("-j ")?;
    if rest.contains(' ') { None } else { Some(rest) }
}

fn same(a: &str, b: &str) -> bool {
    bare(a) == bare(b)
}

/// The words of a rule but for its comment.
fn bare(rule: &str) -> Vec<String> {
    let mut words = words(rule);
    if let Some(at) = words.iter().position(|word| word == "--comment") {
        words.drain(at.saturating_sub(2)..(at + 2).min(words.len()));
    }
    words
}

/// An address as a source or destination is printed.
fn host(ip: std::net::IpAddr) -> String {
    ipnet::IpNet::from(ip).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Generated\n*nat\n:PREROUTING ACCEPT [0:0]\n:A - [0:0]\n\
        -A PREROUTING -m addrtype --dst-type LOCAL -j A\n-A PREROUTING -m comment --comment x -m addrtype --dst-type LOCAL -j A\n\
        -A A -s 10.0.0.1/32 -m comment --comment \"a \\\"b\\\"\" -j MARK --set-xmark 0x1/0x1\nCOMMIT\n";

    #[test]
    fn tables_are_read() {
        let saved = Saved::parse(TEXT);
        assert!(saved.has("A") && saved.has("PREROUTING") && !saved.has("B"));
        assert_eq!(saved.leading_to("A").count(), 2);
        assert_eq!(comment_of(&saved.rules("A")[0]).as_deref(), Some("a \"b\""));
    }

    #[test]
    fn words_are_quoted_and_read_back() {
        for (word, want) in [
            ("abc", "abc"),
            ("a b", "\"a b\""),
            ("name: \"n\"", "\"name: \\\"n\\\"\""),
            ("it's", "\"it\\'s\""),
            ("", "\"\""),
            ("a\n-F", "\"a -F\""),
            ("a\\", "\"a\\\\\""),
        ] {
            assert_eq!(quote(word), want);
            assert_eq!(words(&format!("-x {want} y")), ["-x", &word.replace('\n', " "), "y"]);
        }
    }

    #[test]
    fn only_what_is_missing_is_written() {
        let saved = Saved::parse(TEXT);
        let lines = |change: &dyn Fn(&mut Changes<'_>)| {
            let mut changes = Changes::new(&saved);
            change(&mut changes);
            changes.into_lines()
        };
        assert_eq!(lines(&|c| c.ensure("A")), [""; 0]);
        assert_eq!(
            lines(&|c| {
                c.ensure("B");
                c.ensure("B")
            }),
            ["-N B"]
        );
        // There twice: the second goes.
        assert_eq!(
            lines(&|c| c.append("PREROUTING", "-m addrtype --dst-type LOCAL -j A")),
            ["-D PREROUTING -m comment --comment x -m addrtype --dst-type LOCAL -j A"]
        );
        assert_eq!(lines(&|c| c.first("A", "-j RETURN")), ["-I A -j RETURN"]);
        assert_eq!(lines(&|c| c.fill("A", &["-j DROP".to_owned()])), ["-F A", "-A A -j DROP"]);
        assert_eq!(lines(&|c| c.remove("A")).len(), 4);
        assert_eq!(lines(&|c| c.remove("B")), [""; 0]);
        let chains = ["A", "B", "PREROUTING"];
        let one_by_one = lines(&|c| chains.iter().for_each(|chain| c.remove(chain)));
        assert_eq!(lines(&|c| c.remove_each(&chains.into())), one_by_one);
    }
}
