//! What is wrong with this host, and the command that mends it: facts are collected ([`collect`]), each check of a
//! table looks at them ([`checks`]), and what it finds is shown ([`show`]). The facts are plain values, so that
//! the checks are pure and a bug report can be looked at elsewhere.

pub mod cert;
pub mod checks;
pub mod collect;
pub mod facts;
pub mod json;
pub mod ruleset;
pub mod show;
#[cfg(test)]
mod tests;
pub mod verdict;

pub use facts::Facts;

/// How grave a finding is; the order is that of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Packets are lost, or pods do not start.
    Broken,
    /// It works, and will not, or not always.
    Risk,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The check's name, for programs and documentation.
    pub check: &'static str,
    /// How grave.
    pub weight: Weight,
    /// What it is, in a few words.
    pub what: String,
    /// What was seen.
    pub seen: String,
    /// What follows.
    pub so: String,
    /// The command that mends it, or what to do.
    pub fix: String,
    /// Kernel parameter and value that `--fix` writes.
    pub sysctl: Option<(String, String)>,
}

/// One check.
pub struct Check {
    /// Its name.
    pub name: &'static str,
    /// Looks.
    pub look: fn(&Facts) -> Vec<Finding>,
}

/// Makes a [`Finding`].
pub fn finding(weight: Weight, what: impl Into<String>, seen: impl Into<String>) -> Finding {
    Finding {
        check: "",
        weight,
        what: what.into(),
        seen: seen.into(),
        so: String::new(),
        fix: String::new(),
        sysctl: None,
    }
}

impl Finding {
    /// What follows from it.
    pub fn so(self, so: impl Into<String>) -> Finding {
        Finding { so: so.into(), ..self }
    }

    /// What mends it.
    pub fn fix(self, fix: impl Into<String>) -> Finding {
        Finding { fix: fix.into(), ..self }
    }

    /// A kernel parameter mends it.
    pub fn set(self, name: &str, value: &str) -> Finding {
        let dotted = name.replace('/', ".");
        Finding {
            fix: format!("sysctl -w {dotted}={value}"),
            sysctl: Some((name.to_owned(), value.to_owned())),
            ..self
        }
    }
}

/// Everything that is wrong, the gravest first; what others follow from goes before them.
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    for check in checks::all() {
        found.extend((check.look)(facts).into_iter().map(|f| Finding { check: check.name, ..f }));
    }
    found.sort_by_key(|finding| finding.weight);
    found
}
