//! Reads what cargo and criterion print, sets the times of two programs side by side, and judges none: says what
//! differs by more than it varies. Values in, values out.

use std::fmt::Write as _;

use serde_json::Value;

/// The program with the benchmarks, out of cargo's messages.
pub fn program(messages: &str) -> Option<String> {
    let mut messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let made = messages.find(|message| {
        let target = &message["target"];
        message["reason"] == "compiler-artifact" && target["name"] == "pure" && target["kind"][0] == "bench"
    })?;
    made["executable"].as_str().map(str::to_owned)
}

/// Names out of `--list`: `plan/diff/one/100: benchmark`.
pub fn listed(output: &str) -> Vec<String> {
    output.lines().filter_map(|line| line.strip_suffix(": benchmark")).map(str::to_owned).collect()
}

/// Why criterion did not like its words: it panics, and the sentence is somewhere in what it prints.
pub fn reason(said: &str) -> &str {
    let sentence = said.lines().find_map(|line| line.strip_prefix("error: "));
    sentence.or_else(|| said.lines().next()).unwrap_or("it does not say why")
}

/// The median time in ns out of `--output-format bencher`: `test NAME ... bench:  12,345 ns/iter (+/- 67)`.
pub fn time_of(output: &str, name: &str) -> Option<f64> {
    let start = format!("test {name} ... bench:");
    let rest = output.lines().find_map(|line| line.strip_prefix(&start))?;
    let (number, _) = rest.split_once(" ns/iter")?;
    number.trim().replace(',', "").parse().ok()
}

/// One benchmark of two programs, round by round.
#[derive(Debug)]
pub struct Compared {
    name: String,
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

/// Least, middle, most.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Spread {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_by(f64::total_cmp);
        let at = |place: usize| sorted.get(place).copied().unwrap_or(f64::NAN);
        let last = sorted.len().saturating_sub(1);
        Spread { least: at(0), median: (at(last / 2) + at(last.div_ceil(2))) / 2.0, most: at(last) }
    }
}

/// What can be said of a ratio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    Slower,
    Faster,
}

/// Two builds of the same lines can differ so much, by where code lies alone.
const LAYOUT: f64 = 0.02;

impl Compared {
    pub fn new(name: &str) -> Compared {
        Compared { name: name.to_owned(), ours: Vec::new(), theirs: Vec::new() }
    }

    /// A round.
    pub fn add(&mut self, ours: f64, theirs: f64) {
        self.ours.push(ours);
        self.theirs.push(theirs);
    }

    /// Ours over theirs, round by round: a disturbance of the machine meets both.
    fn ratio(&self) -> Spread {
        Spread::of(self.ours.iter().zip(&self.theirs).map(|(ours, theirs)| ours / theirs))
    }

    /// A difference larger than what the rounds differ by among themselves.
    fn verdict(&self) -> Verdict {
        let ratio = self.ratio();
        let noise = (ratio.most - ratio.least).max(LAYOUT);
        match ratio.median - 1.0 {
            more if more > noise => Verdict::Slower,
            less if -less > noise => Verdict::Faster,
            _ => Verdict::Same,
        }
    }

    /// A line of the table.
    pub fn row(&self, width: usize) -> String {
        let [ours, theirs] =
            [&self.ours, &self.theirs].map(|times| time(Spread::of(times.iter().copied()).median));
        let Spread { least, median, most } = self.ratio();
        let word = match self.verdict() {
            Verdict::Same => "",
            Verdict::Slower => "  slower",
            Verdict::Faster => "  faster",
        };
        format!("{:width$}  {ours:>9}  {theirs:>9}  {median:.2} [{least:.2}..{most:.2}]{word}\n", self.name)
    }
}

/// What stands above the table.
pub fn heading(width: usize, rev: &str, short: &str, rounds: usize) -> String {
    format!(
        "this tree beside {rev}, {rounds} rounds in turns: median times, and the median of the rounds' ratios [least..most]; \
         below 1 this tree is faster\n\n{:width$}  {:>9}  {short:>9}  ratio\n",
        "", "this tree"
    )
}

/// What stands below it.
pub fn closing(all: &[Compared], only: &[&String], gone: &[&String], short: &str) -> String {
    let mut text = String::from("\n");
    let told = |verdict| {
        let such = all.iter().filter(move |compared| compared.verdict() == verdict);
        such.map(|compared| format!("{} ({:.2})", compared.name, compared.ratio().median)).collect::<Vec<_>>()
    };
    let [slower, faster] = [Verdict::Slower, Verdict::Faster].map(told);
    let mut line = |what: String, names: Vec<String>| {
        if !names.is_empty() {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{what}: {}", names.join(", "));
        }
    };
    let same = slower.is_empty() && faster.is_empty();
    line("slower here by more than the rounds differ".to_owned(), slower);
    line("faster here by more than the rounds differ".to_owned(), faster);
    line("only here".to_owned(), only.iter().map(|name| (*name).clone()).collect());
    line(format!("only in {short}"), gone.iter().map(|name| (*name).clone()).collect());
    if same {
        text.push_str("nothing differs by more than the rounds do\n");
    }
    text
}

/// A time with three digits that count.
fn time(ns: f64) -> String {
    let (value, unit) = match ns {
        ns if ns < 1e3 => (ns, "ns"),
        ns if ns < 1e6 => (ns / 1e3, "us"),
        ns if ns < 1e9 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_found_among_cargos_messages() {
        let made = |name: &str, kind: &str, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"kind":["{kind}"],"name":"{name}"}},"executable":{executable}}}"#
            )
        };
        let lib = made("cases", "lib", "null");
        let bench = made("pure", "bench", "\"/t/release/deps/pure-1\"");
        let end = r#"{"reason":"build-finished","success":true}"#;
        for (messages, want) in [
            (format!("{lib}\n{bench}\n{end}"), Some("/t/release/deps/pure-1")),
            (format!("words\n{bench}"), Some("/t/release/deps/pure-1")),
            (format!("{lib}\n{}\n{end}", made("pure", "lib", "null")), None),
            (made("other", "bench", "\"/x\""), None),
            (String::new(), None),
        ] {
            assert_eq!(program(&messages).as_deref(), want, "{messages}");
        }
    }

    #[test]
    fn criterions_lines_are_read() {
        assert_eq!(listed("a/b/1: benchmark\nc: benchmark\n\nd: test\n2 benchmarks"), ["a/b/1", "c"]);
        for (output, want) in [
            ("test a/b/1 ... bench:         123 ns/iter (+/- 4)\n", Some(123.0)),
            (
                "test a/b/10 ... bench: 5 ns/iter (+/- 4)\ntest a/b/1 ... bench:  12,345,678 ns/iter (+/- 1,000)\n\n",
                Some(12_345_678.0),
            ),
            ("test a/b/1 ... ok", None),
            ("test a/b/1 ... bench:         1 us/iter (+/- 4)", None),
            ("test a/b/1 ... bench: many ns/iter (+/- 4)", None),
            ("", None),
        ] {
            assert_eq!(time_of(output, "a/b/1"), want, "{output}");
        }
    }

    #[test]
    fn of_a_panic_the_sentence_is_told() {
        for (said, want) in [
            (
                "thread 'main' panicked at lib.rs:1:2:\nregex parse error:\n    (\n    ^\nerror: unclosed group\nstack backtrace:",
                "unclosed group",
            ),
            ("no such file", "no such file"),
            ("", "it does not say why"),
        ] {
            assert_eq!(reason(said), want);
        }
    }

    fn compared(ratios: &[f64]) -> Compared {
        let mut compared = Compared::new("a");
        ratios
            .iter()
            .zip(1..)
            .for_each(|(ratio, round)| compared.add(ratio * f64::from(round), f64::from(round)));
        compared
    }

    #[test]
    fn only_what_differs_by_more_than_it_varies_is_named() {
        for (ratios, want) in [
            (&[1.0, 1.0, 1.0][..], Verdict::Same),
            (&[1.01, 1.015, 1.012], Verdict::Same),
            (&[1.10, 1.12, 1.11], Verdict::Slower),
            (&[1.10, 1.30, 1.11], Verdict::Same),
            (&[0.95, 1.10, 1.11, 1.12, 1.13], Verdict::Same),
            (&[0.5, 0.52, 0.51, 0.55], Verdict::Faster),
            (&[0.90, 0.99, 0.95], Verdict::Same),
            (&[], Verdict::Same),
        ] {
            assert_eq!(compared(ratios).verdict(), want, "{ratios:?}");
        }
    }

    #[test]
    fn medians_lie_in_the_middle() {
        for (values, want) in [
            (&[3.0, 1.0, 2.0][..], (1.0, 2.0, 3.0)),
            (&[4.0, 1.0, 2.0, 3.0], (1.0, 2.5, 4.0)),
            (&[7.0], (7.0, 7.0, 7.0)),
        ] {
            let Spread { least, median, most } = Spread::of(values.iter().copied());
            assert_eq!((least, median, most), want, "{values:?}");
        }
    }

    #[test]
    fn the_table_is_as_people_read_it() {
        let (mut same, mut slower) = (compared(&[1.0, 1.01, 0.99]), compared(&[1.2, 1.21, 1.22]));
        (same.name, slower.name) = ("plan/a".to_owned(), "model/bc".to_owned());
        assert_eq!(same.row(8), "plan/a      2.02 ns    2.00 ns  1.00 [0.99..1.01]\n");
        assert_eq!(slower.row(8), "model/bc    2.42 ns    2.00 ns  1.21 [1.20..1.22]  slower\n");
        let (new, old) = ("x/new".to_owned(), "x/old".to_owned());
        let text = closing(&[same, slower], &[&new], &[&old], "b4e93fe");
        let lines = "\nslower here by more than the rounds differ: model/bc (1.21)\nonly here: x/new\nonly in b4e93fe: x/old\n";
        assert_eq!(text, lines);
        assert_eq!(closing(&[], &[], &[], ""), "\nnothing differs by more than the rounds do\n");
        for (ns, want) in [
            (0.0, "0.00 ns"),
            (12.3, "12.3 ns"),
            (999.0, "999 ns"),
            (1_234.0, "1.23 us"),
            (45_600_000.0, "45.6 ms"),
            (2e9, "2.00 s"),
        ] {
            assert_eq!(time(ns), want);
        }
    }
}
