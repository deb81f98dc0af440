//! Packet rules as far as a check must know them: chains at a hook, their policy, and their rules as text. From what
//! `nft list ruleset` or `iptables-save` print. Pure.

use std::collections::BTreeMap;

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
        let (mut inside, mut sets) = (false, Sets::default());
        for line in text.lines().map(str::trim) {
            if sets.take(line) {
                continue;
            }
            if let Some(name) = line.strip_prefix("table ").and_then(|rest| rest.strip_suffix(" {")) {
                name.clone_into(&mut table);
                sets = Sets::default();
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
                    None => chain.rules.push(sets.spelled(line)),
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

    /// Whether there is a chain or table whose name begins so.
    pub fn named(&self, beginning: &str) -> Option<&Chain> {
        self.chains.iter().find(|chain| {
            let table = chain.table.rsplit(' ').next().unwrap_or_default();
            chain.name.starts_with(beginning) || table.starts_with(beginning)
        })
    }
}

/// The sets of a table; nftables prints them before its chains.
#[derive(Default)]
struct Sets {
    all: BTreeMap<String, String>,
    /// The one whose lines are read, and whether those are of its elements.
    open: Option<(String, bool)>,
}

impl Sets {
    /// Whether the line is of a set.
    fn take(&mut self, line: &str) -> bool {
        if let Some(name) = line.strip_prefix("set ").and_then(|rest| rest.strip_suffix(" {")) {
            self.all.insert(name.to_owned(), String::new());
            self.open = Some((name.to_owned(), false));
            return true;
        }
        let Some((name, elements)) = &mut self.open else { return false };
        let values = line.strip_prefix("elements = {");
        *elements |= values.is_some();
        if *elements {
            let values = values.unwrap_or(line);
            self.all.entry(name.clone()).or_default().push_str(values.trim_end_matches('}'));
            *elements = !values.ends_with('}');
        } else if line == "}" {
            self.open = None;
        }
        true
    }

    /// A rule with what is in its sets, where that is short enough to be read. What is in a set that is empty now
    /// nobody knows: programs fill them.
    fn spelled(&self, rule: &str) -> String {
        /// More are no administrator's list.
        const MOST: usize = 64;
        let spell = |word: &str| {
            let values = word.strip_prefix('@').and_then(|name| self.all.get(name))?;
            let values: Vec<&str> =
                values.split(',').filter_map(|value| value.split_whitespace().next()).collect();
            (1..=MOST).contains(&values.len()).then(|| format!("{{ {} }}", values.join(", ")))
        };
        if !rule.contains('@') || rule.contains("map @") {
            return rule.to_owned();
        }
        rule.split(' ')
            .map(|word| spell(word).unwrap_or_else(|| word.to_owned()))
            .collect::<Vec<_>>()
            .join(" ")
    }
}
