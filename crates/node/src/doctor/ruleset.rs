//! Packet rules as far as a check must know them: chains at a hook, their policy, and their rules as text. From what
//! `nft list ruleset` or `iptables-save` print. Pure.

/// Chains.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ruleset {
    /// In order.
    pub chains: Vec<Chain>,
}

/// A chain.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chain {
    /// Table, such as `inet firewalld`, or `iptables filter`.
    pub table: String,
    /// Name.
    pub name: String,
    /// Hook, for base chains: `input`, `forward`, …
    pub hook: Option<String>,
    /// What becomes of packets no rule decided about is dropping them.
    pub drops: bool,
    /// Rules as printed.
    pub rules: Vec<String>,
}

impl Ruleset {
    /// From `nft list ruleset`.
    pub fn nft(text: &str) -> Ruleset {
        let (mut chains, mut table): (Vec<Chain>, _) = (Vec::new(), String::new());
        let mut inside = false;
        for line in text.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix("table ").and_then(|rest| rest.strip_suffix(" {")) {
                name.clone_into(&mut table);
            } else if let Some(name) = line.strip_prefix("chain ").and_then(|rest| rest.strip_suffix(" {")) {
                inside = true;
                chains.push(Chain { table: table.clone(), name: name.to_owned(), ..Chain::default() });
            } else if line == "}" {
                inside = false;
            } else if let Some(chain) = chains.last_mut().filter(|_| inside && !line.is_empty()) {
                match line.strip_prefix("type ") {
                    Some(kind) => {
                        let words: Vec<&str> = kind.split_whitespace().collect();
                        let hook =
                            words.iter().position(|word| *word == "hook").and_then(|at| words.get(at + 1));
                        // NAT chains see the first packet alone and cannot forbid by their policy.
                        chain.hook =
                            hook.filter(|_| kind.starts_with("filter")).map(|hook| (*hook).to_owned());
                        chain.drops = kind.contains("policy drop");
                    }
                    None => chain.rules.push(line.to_owned()),
                }
            }
        }
        Ruleset { chains }
    }

    /// From `iptables-save`, of the table filter.
    pub fn iptables(text: &str, program: &str) -> Ruleset {
        let (mut chains, mut filter): (Vec<Chain>, _) = (Vec::new(), false);
        for line in text.lines() {
            if let Some(table) = line.strip_prefix('*') {
                filter = table == "filter";
            } else if let Some((name, rest)) =
                line.strip_prefix(':').and_then(|l| l.split_once(' ')).filter(|_| filter)
            {
                let base = ["INPUT", "FORWARD", "OUTPUT"].contains(&name);
                chains.push(Chain {
                    table: format!("{program} filter"),
                    name: name.to_owned(),
                    hook: base.then(|| name.to_lowercase()),
                    drops: rest.starts_with("DROP"),
                    rules: Vec::new(),
                });
            } else if let Some(rest) = line.strip_prefix("-A ").filter(|_| filter) {
                let (name, rule) = rest.split_once(' ').unwrap_or((rest, ""));
                if let Some(chain) = chains.iter_mut().find(|chain| chain.name == name) {
                    chain.rules.push(rule.to_owned());
                }
            }
        }
        Ruleset { chains }
    }

    /// Both.
    pub fn and(mut self, other: Ruleset) -> Ruleset {
        self.chains.extend(other.chains);
        self
    }

    /// Base chains at a hook.
    pub fn at<'a>(&'a self, hook: &'a str) -> impl Iterator<Item = &'a Chain> {
        self.chains.iter().filter(move |chain| chain.hook.as_deref() == Some(hook))
    }

    /// Whether a rule of the chain, or of one of its table's it may lead to, accepts and mentions one of these, or
    /// accepts everything.
    pub fn accepts(&self, base: &Chain, words: &[String]) -> bool {
        let same_table = self.chains.iter().filter(|chain| chain.table == base.table && chain.hook.is_none());
        std::iter::once(base)
            .chain(same_table)
            .any(|chain| chain.rules.iter().any(|rule| accepts(rule, words)))
    }

    /// The rule at the end of a chain that refuses or drops all, unless an earlier one accepts one of these.
    pub fn refusal<'a>(&self, base: &'a Chain, words: &[String]) -> Option<&'a str> {
        let at = base.rules.iter().position(|rule| refuses_all(rule))?;
        let before = Chain { rules: base.rules[..at].to_vec(), ..base.clone() };
        (!self.accepts(&before, words)).then(|| base.rules[at].as_str())
    }

    /// Whether there is a chain or table whose name begins so.
    pub fn named(&self, beginning: &str) -> Option<&Chain> {
        self.chains.iter().find(|chain| {
            let table = chain.table.rsplit(' ').next().unwrap_or_default();
            chain.name.starts_with(beginning) || table.starts_with(beginning)
        })
    }
}

fn accepts(rule: &str, words: &[String]) -> bool {
    let rule = without_comment(rule);
    let accepted =
        rule.contains("accept") || rule.ends_with("-j ACCEPT") || rule.contains("jump FLANNEL-FWD");
    let bare = rule.replace("counter", "");
    let bare =
        bare.split_whitespace().filter(|w| !["packets", "bytes"].contains(w) && w.parse::<u64>().is_err());
    let all = bare.collect::<Vec<_>>().join(" ");
    accepted
        && (["accept", "-j ACCEPT"].contains(&all.as_str())
            || words.iter().any(|word| rule.contains(word.as_str())))
        || rule.contains("FLANNEL-FWD")
}

fn refuses_all(rule: &str) -> bool {
    let bare = without_comment(rule);
    let bare = bare.replace("counter", "");
    let words: Vec<&str> = bare
        .split_whitespace()
        .filter(|w| !["packets", "bytes"].contains(w) && w.parse::<u64>().is_err())
        .collect();
    matches!(words.first(), Some(&"drop" | &"reject"))
        || words.first() == Some(&"-j") && matches!(words.get(1), Some(&"DROP" | &"REJECT"))
        || words.first() == Some(&"xt") && words.contains(&"\"REJECT\"") && words.len() <= 3
}

fn without_comment(rule: &str) -> String {
    match rule.split_once(" comment \"") {
        Some((head, tail)) => {
            format!("{head}{}", tail.split_once('"').map_or("", |(_, rest)| rest)).trim().to_owned()
        }
        None => rule.trim().to_owned(),
    }
}
