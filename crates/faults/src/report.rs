//! What is printed: a line for each outcome, as a table for terminals and for `docs/guide/faults.md`. Pure.

use lab::Stack;

use crate::promise::Seen;
use crate::run::{FAMILIES, test_command};
use crate::table::{Act, Fault, Way};

/// Whether a promise was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was.
    Kept,
    /// It was not, in sentences.
    Broken(Vec<String>),
    /// It was not tried, and why.
    NotHere(String),
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Cells: row, what, backend, family, rounds, lost of sent, gap, right, went fast, promise.
    pub cells: [String; 10],
    /// Whether the promise was kept.
    pub verdict: Verdict,
    /// The command that does it again.
    pub again: String,
}

/// Titles of the columns.
pub const TITLES: [&str; 12] = [
    "Row",
    "What is done",
    "Backend",
    "Family",
    "Times",
    "Lost / sent",
    "Longest gap",
    "Right again (p99)",
    "Went fast, again after (p99)",
    "Promise",
    "Verdict",
    "Again",
];

impl Outcome {
    /// Of a line that was done here.
    pub fn here(
        fault: &Fault,
        act: &Act,
        backend: &str,
        stack: Stack,
        seen: Seen,
        verdict: Verdict,
    ) -> Outcome {
        let family = FAMILIES.iter().find(|(_, known)| *known == stack).map_or("", |(word, _)| word);
        let ms = |time: std::time::Duration| format!("{} ms", time.as_millis());
        let mut right = if seen.right.is_empty() { "–".to_owned() } else { ms(seen.right_at(99)) };
        if !seen.stopped.is_empty() {
            right.push_str(&format!("; stopped or back {}", ms(seen.stopped_at(99))));
        }
        let fast = |fast: &crate::promise::Fast| format!("{} %, {}", fast.share(), ms(seen.fast_at(99)));
        let flag = if seen.fast.is_some() { " --fast-path" } else { "" };
        Outcome {
            cells: [
                fault.row.to_owned(),
                fault.what.to_owned(),
                if act.etcd { format!("{backend}, etcd") } else { backend.to_owned() },
                family.to_owned(),
                seen.rounds.to_string(),
                format!("{} / {}", seen.lost(), seen.sent()),
                ms(seen.gap()),
                right,
                seen.fast.as_ref().map_or("–".to_owned(), fast),
                act.promise.words(),
            ],
            verdict,
            again: format!("cargo xtask faults {} --backend {backend} --family {family}{flag}", fault.row),
        }
    }

    /// Of a line that tests stand for.
    pub fn tests(fault: &Fault, by: &[(&str, &str, &str)], passed: usize, verdict: Verdict) -> Outcome {
        let again: Vec<String> =
            by.iter().map(|(package, program, name)| test_command(package, program, name)).collect();
        let mut cells = Outcome::bare(fault);
        cells[4] = format!("{passed} tests");
        Outcome { cells, verdict, again: again.join("; ") }
    }

    /// Of a line that is not done.
    pub fn cannot(fault: &Fault, why: &str) -> Outcome {
        Outcome {
            cells: Outcome::bare(fault),
            verdict: Verdict::NotHere(why.to_owned()),
            again: String::new(),
        }
    }

    fn bare(fault: &Fault) -> [String; 10] {
        let mut cells: [String; 10] = std::array::from_fn(|_| "–".to_owned());
        cells[0] = fault.row.to_owned();
        cells[1] = fault.what.to_owned();
        cells
    }

    /// For a terminal: the cells, and beneath them what is broken.
    pub fn line(&self) -> String {
        let [row, what, backend, family, times, lost, gap, right, fast, promise] = &self.cells;
        let (word, reasons) = match &self.verdict {
            Verdict::Kept => ("kept", Vec::new()),
            Verdict::Broken(reasons) => ("BROKEN", reasons.clone()),
            Verdict::NotHere(why) => ("not here", vec![why.clone()]),
        };
        let mut text = format!(
            "{row} {word:8} {what} [{backend}, {family}] times {times}, lost {lost}, gap {gap}, right {right}, fast {fast}, promised {promise}\n"
        );
        for reason in reasons.iter().take(40) {
            text.push_str(&format!("      {reason}\n"));
        }
        if matches!(self.verdict, Verdict::Broken(_)) {
            text.push_str(&format!("      again: {}\n", self.again));
        }
        text
    }

    /// For the guide.
    pub fn markdown(&self) -> String {
        let verdict = match &self.verdict {
            Verdict::Kept => "kept".to_owned(),
            Verdict::Broken(reasons) => format!("**broken**: {}", reasons.first().map_or("", String::as_str)),
            Verdict::NotHere(why) => format!("not here: {why}"),
        };
        let again = if self.again.is_empty() { "–".to_owned() } else { format!("`{}`", self.again) };
        let cells: Vec<&str> =
            self.cells.iter().map(String::as_str).chain([verdict.as_str(), &again]).collect();
        format!("| {} |\n", cells.join(" | "))
    }
}

/// The whole table for the guide.
pub fn markdown(outcomes: &[Outcome]) -> String {
    let rule = vec!["---"; TITLES.len()].join(" | ");
    let mut text = format!("| {} |\n| {rule} |\n", TITLES.join(" | "));
    text.extend(outcomes.iter().map(Outcome::markdown));
    text
}

/// The catalogue without running anything.
pub fn list(faults: &[&'static Fault]) -> String {
    let mut text = String::new();
    for fault in faults {
        let how = match fault.way {
            Way::Here(act) => {
                let where_ = if act.backends.is_empty() {
                    "every backend".to_owned()
                } else {
                    act.backends.join(", ")
                };
                let only = if act.fast { "; with --fast-path" } else { "" };
                format!("{}; {} times; {where_}{only}", act.promise.words(), act.rounds.1)
            }
            Way::Tests(by) => {
                let names: Vec<&str> = by.iter().map(|(_, _, name)| *name).collect();
                format!("tests: {}", names.join(" "))
            }
            Way::Cannot(why) => format!("not here: {why}"),
        };
        text.push_str(&format!("{} {}: {how}\n", fault.row, fault.what));
    }
    text
}
