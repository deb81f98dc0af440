//! Runs every test of the workspace, shows what failed and what was skipped, and closes with one line
//! of counts. A test that cannot run here prints `SKIP name: reason`; it counts as skipped, not passed.
//! Features named in `LODEN_REQUIRE` (words separated by commas) must not be skipped.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use crate::say;

pub fn run() -> Result<(), String> {
    let mut tally = Tally::default();
    let here = native(&[], &mut tally)?;
    let here = tally.settle(here, native)?;
    let (there, in_guests) = guests(&[]);
    tally.add(in_guests);
    let (text, verdict) = tally.close(here && there, &std::env::var("LODEN_REQUIRE").unwrap_or_default());
    say(&text);
    verdict
}

/// Runs the tests in guests alone.
pub fn vm(filters: &[String]) -> Result<(), String> {
    crate::run("cargo", &["build", "--workspace", "--bins", "-j2"])?;
    let (well, tally) = guests(filters);
    let (text, verdict) = tally.close(well, &std::env::var("LODEN_REQUIRE").unwrap_or_default());
    say(&text);
    verdict
}

/// Runs the suites of the guests that fit `filters`; gives whether all went well, and the counts.
fn guests(filters: &[String]) -> (bool, Tally) {
    let (mut well, mut all, mut runs) = (true, Tally::default(), Vec::new());
    let boots = crate::vm::boots(filters).unwrap_or_else(|error| {
        say(&format!("vm: {error}\n"));
        well = false;
        Vec::new()
    });
    // A guest tells what it has to tell also after trouble with the one before.
    for boot in boots {
        let mut tally = Tally::default();
        let done = crate::vm::run(boot, filters, &[], &mut tally);
        runs.push((boot, done, tally));
    }
    let failed: usize = runs.iter().map(|(_, _, tally)| tally.failures.len()).sum();
    for (boot, mut done, mut tally) in runs {
        if failed <= UNSTEADY {
            // In the guest where they failed: another one lacks what they need.
            let again = |names: &[String], second: &mut Tally| crate::vm::run(boot, filters, names, second);
            done = done.and_then(|well| tally.settle(well, again));
        }
        if let Err(error) = &done {
            say(&format!("vm: {error}\n"));
        }
        well &= done == Ok(true);
        all.add(tally);
    }
    (well, all)
}

/// Runs the tests on this kernel, or those of some names alone and one after the other; gives whether all went well.
fn native(names: &[String], tally: &mut Tally) -> Result<bool, String> {
    // The lab and the CNI tests run the programs themselves.
    crate::run("cargo", &["build", "--workspace", "--bins", "-j2"])?;
    let mut arguments = vec!["test", "--workspace", "-j2", "--no-fail-fast", "--", "--show-output"];
    if !names.is_empty() {
        arguments.extend(["--test-threads=1", "--exact"]);
        arguments.extend(names.iter().map(String::as_str));
    }
    say(&format!("+ cargo {}\n", arguments.join(" ")));
    let mut cargo = Command::new("cargo");
    crate::require_fast_path(&mut cargo);
    let mut child = cargo
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("start cargo: {error}"))?;
    let Some(output) = child.stdout.take() else { return Err("cargo test has no output".to_owned()) };
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        if tally.line(&line) {
            say(&format!("{line}\n"));
        }
    }
    let status = child.wait().map_err(|error| format!("wait for cargo test: {error}"))?;
    Ok(status.success())
}

/// What the lines of test programs add up to.
#[derive(Default)]
pub struct Tally {
    passed: usize,
    failed: usize,
    skips: Vec<String>,
    /// Tests that failed, each with the first lines of what it complains about.
    failures: Vec<(String, Vec<String>)>,
    /// Tests that failed among all others and passed alone, likewise.
    unsteady: Vec<(String, Vec<String>)>,
    /// Programs that began and did not come to their counts: ended by a signal, say.
    open: usize,
    /// Inside the section that repeats the output of tests that passed.
    successes: bool,
    /// Inside a complaint.
    complaint: bool,
}

/// So many failures of one run may be of the moment: a test that waits for another program on a machine with 2 cores
/// and hundreds of tests. More are a fault.
const UNSTEADY: usize = 3;

/// Lines of a complaint that are repeated at the end: a log is often read from there, and cut before.
const LINES: usize = 12;

impl Tally {
    /// Takes one line of cargo's output; gives whether it is worth showing.
    pub fn line(&mut self, line: &str) -> bool {
        if let Some(skip) = line.trim_start().strip_prefix("SKIP ") {
            self.skips.push(skip.to_owned());
            return false;
        }
        match line {
            "successes:" => self.successes = true,
            _ if line.starts_with("running ") && (line.ends_with(" tests") || line.ends_with(" test")) => {
                self.open += 1;
            }
            "failures:" => self.successes = false,
            _ if line.starts_with("test result:") => {
                self.successes = false;
                self.open = self.open.saturating_sub(1);
                let number = |word: &str| {
                    let before = line.split(word).next().unwrap_or_default().trim_end();
                    before.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0)
                };
                self.passed += number(" passed");
                self.failed += number(" failed");
                return true;
            }
            _ if !self.successes => self.complaint(line),
            _ => {}
        }
        !self.successes && !line.ends_with("... ok") && !line.trim().is_empty()
    }

    fn complaint(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            self.failures.push((name.to_owned(), Vec::new()));
        }
        let Some((_, lines)) = self.failures.last_mut() else { return };
        self.complaint |= line.contains(" panicked at ");
        self.complaint &=
            !line.starts_with("stack backtrace:") && !line.starts_with("---- ") && lines.len() < LINES;
        if self.complaint {
            lines.push(line.to_owned());
        }
    }

    /// Few tests that failed run once more, alone. Those that pass are named at the end and do not fail the run
    /// (decision 0243); `success` tells whether the first run went well. Gives whether all did.
    fn settle(
        &mut self,
        success: bool,
        run: impl FnOnce(&[String], &mut Tally) -> Result<bool, String>,
    ) -> Result<bool, String> {
        let names: Vec<String> = self.failures.iter().map(|(name, _)| name.clone()).collect();
        let known = names.len() == self.failed && self.open == 0;
        if success || !known || names.is_empty() || names.len() > UNSTEADY {
            return Ok(success);
        }
        say(&format!("\nonce more, alone: {}\n", names.join(", ")));
        let mut second = Tally::default();
        let well = run(&names, &mut second)?
            && second.failed == 0
            && second.open == 0
            && second.skips.is_empty()
            && second.passed >= names.len();
        if well {
            self.passed += names.len();
            self.failed = 0;
            self.unsteady.append(&mut self.failures);
        }
        Ok(well)
    }

    /// Takes the counts of another run.
    fn add(&mut self, mut other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skips.append(&mut other.skips);
        self.failures.append(&mut other.failures);
        self.unsteady.append(&mut other.unsteady);
    }

    /// The last lines, and whether all is well.
    fn close(mut self, success: bool, required: &str) -> (String, Result<(), String>) {
        self.skips.sort();
        self.skips.dedup();
        let mut text = String::new();
        if !self.skips.is_empty() {
            text.push_str("\nskipped on this machine:\n");
            text.extend(self.skips.iter().map(|skip| format!("  {skip}\n")));
        }
        let mut required = required.split(',').map(str::trim).filter(|word| !word.is_empty());
        let missing = required.find_map(|word| self.skips.iter().find(|skip| skip.contains(word)));
        let skipped = self.skips.len();
        // A skipped test returned normally, so the harness counted it as passed.
        let passed = self.passed.saturating_sub(skipped);
        let unsteady = self.unsteady.iter().map(|test| ("passed alone, failed among all others", test));
        for (what, (name, lines)) in unsteady.chain(self.failures.iter().map(|test| ("failed", test))) {
            text.push_str(&format!("\n{what}: {name}\n"));
            text.extend(lines.iter().map(|line| format!("  {line}\n")));
        }
        text.push_str(&format!("\n{passed} passed, {} failed, {skipped} skipped\n", self.failed));
        let verdict = match missing {
            _ if !success || self.failed > 0 => Err("tests failed".to_owned()),
            Some(skip) => Err(format!("required by LODEN_REQUIRE but skipped: {skip}")),
            None if self.passed == 0 => Err("no test ran".to_owned()),
            None => Ok(()),
        };
        (text, verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn counts_and_skips_are_read_from_cargos_output() {
        let mut tally = Tally::default();
        let shown: Vec<bool> = [
            "running 3 tests",
            "test a ... ok",
            "test b ... FAILED",
            "successes:",
            "---- a stdout ----",
            "SKIP a: no ipip in this kernel",
            "failures:",
            "---- b stdout ----",
            "42 peers",
            "thread 'b' (7) panicked at b.rs:1:1:",
            "waited 60s for more",
            "stack backtrace:",
            "   0: begin",
            "failures:",
            "    b",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured",
        ]
        .iter()
        .map(|line| tally.line(line))
        .collect();
        assert_eq!(shown[..6], [true, false, true, false, false, false]);
        assert!(shown[6..].iter().all(|shown| *shown));
        assert_eq!((tally.passed, tally.failed, tally.skips.len()), (2, 1, 1));
        let (text, verdict) = tally.close(true, "");
        let end = "\nfailed: b\n  thread 'b' (7) panicked at b.rs:1:1:\n  waited 60s for more\n\n1 passed, 1 failed, 1 skipped\n";
        assert!(text.ends_with(end) && verdict.is_err(), "{text}");
        let passed =
            || Tally { passed: 2, skips: vec!["a: no ipip in this kernel".to_owned()], ..Tally::default() };
        assert_eq!(passed().close(true, "").1, Ok(()));
        assert!(passed().close(true, "etcd, ipip").1.is_err(), "required");
        assert!(Tally::default().close(true, "").1.is_err(), "no test ran");
    }

    /// How many failed, whether a program was cut off, what the run alone says, and whether all is well then.
    #[test]
    fn few_failures_are_run_once_more() {
        let good = "test result: ok. 1 passed; 0 failed";
        let bad = "test result: FAILED. 0 passed; 1 failed";
        for (failed, cut, alone, well) in [
            (1, false, good, true),
            (1, false, bad, false),
            (1, false, "SKIP a: no etcd\ntest result: ok. 1 passed; 0 failed", false),
            (1, false, "test result: ok. 0 passed; 0 failed", false),
            (1, true, good, false),
            (4, false, "test result: ok. 4 passed; 0 failed", false),
        ] {
            let mut tally = Tally::default();
            let cut_off = if cut { "running 9 tests\n" } else { "" };
            let names: String = (0..failed)
                .map(|n| format!("---- t{n} stdout ----\nthread panicked at b.rs:1:1:\nno\n"))
                .collect();
            let text = format!(
                "{cut_off}running 9 tests\nfailures:\n{names}test result: FAILED. 5 passed; {failed} failed"
            );
            for line in text.lines() {
                tally.line(line);
            }
            let settled = tally.settle(false, |names, second| {
                assert_eq!(names.len(), failed);
                for line in alone.lines() {
                    second.line(line);
                }
                Ok(alone == good)
            });
            assert_eq!(settled, Ok(well), "{failed} {cut} {alone}");
            let (text, verdict) = tally.close(well, "");
            assert_eq!(verdict.is_ok(), well, "{text}");
            assert_eq!(text.contains("passed alone, failed among all others: t0\n  thread"), well, "{text}");
            assert_eq!(text.ends_with("6 passed, 0 failed, 0 skipped\n"), well, "{text}");
        }
    }
}
