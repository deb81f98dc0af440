//! Figures: samples with their spread, ratios to what was measured beside them, goals, and how all that is
//! printed. Takes numbers; measures nothing.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// Samples of one quantity, in the order they were taken.
#[derive(Clone, Debug, Default)]
pub struct Samples(pub Vec<f64>);

impl Samples {
    /// The value below which a share of the samples lies; 0 if there are none.
    pub fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1) as f64;
        sorted.get((last * share).round() as usize).copied().unwrap_or(0.0)
    }

    /// The middle.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Each sample over the one taken beside it.
    pub fn over(&self, other: &Samples) -> Samples {
        Samples(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect())
    }

    fn json(&self) -> Value {
        json!({ "median": self.median(), "p10": self.quantile(0.1), "p90": self.quantile(0.9), "n": self.0.len() })
    }

    /// `1.52 [1.40..1.71]`: the median, and where the middle eight tenths lie. A single one stands alone.
    fn text(&self) -> String {
        let number = |value: f64| match value.abs() {
            v if v >= 1000.0 => format!("{value:.0}"),
            v if v >= 10.0 => format!("{value:.1}"),
            _ => format!("{value:.2}"),
        };
        match self.0.as_slice() {
            [] => String::new(),
            [one] => number(*one),
            _ => format!(
                "{} [{}..{}]",
                number(self.median()),
                number(self.quantile(0.1)),
                number(self.quantile(0.9))
            ),
        }
    }
}

impl From<f64> for Samples {
    fn from(value: f64) -> Samples {
        Samples(vec![value])
    }
}

/// What a figure should be: the median of its ratio, or of itself where nothing stands beside it.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// No goal; told only.
    None,
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
    /// The difference of the medians is at most this.
    Above(f64),
}

/// One line of a table.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What was measured, with its unit.
    pub what: String,
    /// Ours.
    pub ours: Samples,
    /// What it is compared with, measured alternately.
    pub other: Option<Samples>,
    /// The ratio tells how many times faster ours is, not what share of the other's time it takes.
    pub faster: bool,
    /// What it should be.
    pub goal: Goal,
}

impl Figure {
    /// A figure that stands alone.
    pub fn alone(what: impl Into<String>, ours: impl Into<Samples>, goal: Goal) -> Figure {
        Figure { what: what.into(), ours: ours.into(), other: None, faster: false, goal }
    }

    /// A figure beside another.
    pub fn beside(what: impl Into<String>, ours: Samples, other: Samples, goal: Goal) -> Figure {
        Figure { what: what.into(), ours, other: Some(other), faster: false, goal }
    }

    /// The same, told as how many times faster ours is.
    pub fn faster(what: impl Into<String>, ours: Samples, other: Samples, goal: Goal) -> Figure {
        Figure { faster: true, ..Figure::beside(what, ours, other, goal) }
    }

    /// Ours over the other, pair by pair: a disturbance of the machine meets both of a pair.
    fn ratio(&self) -> Option<Samples> {
        let other = self.other.as_ref()?;
        Some(if self.faster { other.over(&self.ours) } else { self.ours.over(other) })
    }

    /// Whether the goal is reached; `None` without one.
    pub fn reached(&self) -> Option<bool> {
        let value = self.ratio().unwrap_or_else(|| self.ours.clone()).median();
        match self.goal {
            Goal::None => None,
            Goal::AtMost(limit) => Some(value <= limit),
            Goal::AtLeast(limit) => Some(value >= limit),
            Goal::Above(limit) => {
                let other = self.other.as_ref().map_or(0.0, Samples::median);
                Some(self.ours.median() - other <= limit)
            }
        }
    }

    fn goal_text(&self) -> String {
        match self.goal {
            Goal::None => String::new(),
            Goal::AtMost(limit) => format!("<= {limit}"),
            Goal::AtLeast(limit) => format!(">= {limit}"),
            Goal::Above(limit) => format!("<= +{limit}"),
        }
    }

    fn json(&self) -> Value {
        json!({
            "what": self.what,
            "ours": self.ours.json(),
            "other": self.other.as_ref().map(Samples::json),
            "ratio": self.ratio().map(|r| r.json()),
            "goal": self.goal_text(),
            "reached": self.reached(),
        })
    }
}

/// The figures of one measurement.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// The measurement.
    pub name: &'static str,
    /// What stands in the columns, in a few words.
    pub about: String,
    /// Its lines.
    pub figures: Vec<Figure>,
    /// What could not be measured, and why.
    pub skipped: Vec<String>,
}

impl Table {
    /// An empty one.
    pub fn new(name: &'static str, about: impl Into<String>) -> Table {
        Table { name, about: about.into(), ..Table::default() }
    }

    /// As text for people.
    pub fn text(&self) -> String {
        let mut text = format!("\n{}: {}\n", self.name, self.about);
        let cells = |f: &Figure| {
            let reached = match f.reached() {
                None => "",
                Some(true) => "reached",
                Some(false) => "MISSED",
            };
            let other = f.other.as_ref().map(Samples::text).unwrap_or_default();
            let ratio = f.ratio().map(|r| r.text()).unwrap_or_default();
            [f.what.clone(), f.ours.text(), other, ratio, f.goal_text(), reached.to_owned()]
        };
        let mut rows = vec![["", "ours", "beside", "ratio", "goal", ""].map(str::to_owned)];
        rows.extend(self.figures.iter().map(cells));
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..6).map(width).collect();
        for row in &rows {
            let line: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            let _ = writeln!(text, "  {}", line.join("  ").trim_end());
        }
        for skip in &self.skipped {
            let _ = writeln!(text, "  SKIP {skip}");
        }
        text
    }

    /// As JSON for programs.
    pub fn json(&self) -> Value {
        let figures: Vec<Value> = self.figures.iter().map(Figure::json).collect();
        json!({ "name": self.name, "about": self.about, "figures": figures, "skipped": self.skipped })
    }
}

#[cfg(test)]
mod tests {
    use super::{Figure, Goal, Samples};

    #[test]
    fn ratios_are_taken_pair_by_pair() {
        let (ours, other) = (Samples(vec![1.0, 2.0, 9.0]), Samples(vec![4.0, 8.0, 36.0]));
        for (goal, want) in [
            (Goal::AtMost(0.25), Some(true)),
            (Goal::AtMost(0.2), Some(false)),
            (Goal::Above(-6.0), Some(true)),
            (Goal::Above(-6.5), Some(false)),
            (Goal::None, None),
        ] {
            let figure = Figure::beside("x", ours.clone(), other.clone(), goal);
            assert_eq!(figure.reached(), want, "{goal:?}");
        }
        for (goal, want) in [(Goal::AtLeast(4.0), true), (Goal::AtLeast(4.1), false)] {
            let figure = Figure::faster("x", ours.clone(), other.clone(), goal);
            assert_eq!(figure.reached(), Some(want), "{goal:?}");
        }
        assert_eq!(Figure::alone("x", 3.0, Goal::AtMost(3.0)).reached(), Some(true));
    }

    #[test]
    fn spread_leaves_the_ends_out() {
        let samples = Samples((0..=10).map(f64::from).collect());
        assert_eq!(samples.text(), "5.00 [1.00..9.00]");
        assert_eq!(Samples(vec![12.34]).text(), "12.3");
        assert_eq!(Samples::default().text(), "");
    }
}
