//! Runs every test of the workspace, shows what failed and what was skipped, and closes with one line
//! of counts. A test that cannot run here prints `SKIP name: reason`; it counts as skipped, not passed.
//! Features named in `LODEN_REQUIRE` (words separated by commas) must not be skipped.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use crate::say;

pub fn run() -> Result<(), String> {
    let mut tally = Tally::default();
    let native = native(&mut tally);
    let guest = crate::vm::run(&[], &mut tally);
    if let Err(error) = &guest {
        say(&format!("vm: {error}\n"));
    }
    let (text, verdict) =
        tally.close(native? && guest.is_ok(), &std::env::var("LODEN_REQUIRE").unwrap_or_default());
    say(&text);
    verdict
}

/// Runs the tests in the guest alone.
pub fn vm(filters: &[String]) -> Result<(), String> {
    crate::run("cargo", &["build", "--workspace", "--bins", "-j2"])?;
    let mut tally = Tally::default();
    let done = crate::vm::run(filters, &mut tally);
    let (text, verdict) = tally.close(done.is_ok(), &std::env::var("LODEN_REQUIRE").unwrap_or_default());
    say(&text);
    done.and(verdict)
}

/// Runs the tests on this kernel; gives whether all went well.
fn native(tally: &mut Tally) -> Result<bool, String> {
    // The lab and the CNI tests run the programs themselves.
    crate::run("cargo", &["build", "--workspace", "--bins", "-j2"])?;
    let arguments = ["test", "--workspace", "-j2", "--no-fail-fast", "--", "--show-output"];
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
    /// Inside the section that repeats the output of tests that passed.
    successes: bool,
}

impl Tally {
    /// Takes one line of cargo's output; gives whether it is worth showing.
    pub fn line(&mut self, line: &str) -> bool {
        if let Some(skip) = line.trim_start().strip_prefix("SKIP ") {
            self.skips.push(skip.to_owned());
            return false;
        }
        match line {
            "successes:" => self.successes = true,
            "failures:" => self.successes = false,
            _ if line.starts_with("test result:") => {
                self.successes = false;
                let number = |word: &str| {
                    let before = line.split(word).next().unwrap_or_default().trim_end();
                    before.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0)
                };
                self.passed += number(" passed");
                self.failed += number(" failed");
                return true;
            }
            _ => {}
        }
        !self.successes && !line.ends_with("... ok") && !line.trim().is_empty()
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
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured",
        ]
        .iter()
        .map(|line| tally.line(line))
        .collect();
        assert_eq!(shown, [true, false, true, false, false, false, true, true, true]);
        assert_eq!((tally.passed, tally.failed, tally.skips.len()), (2, 1, 1));
        let (text, verdict) = tally.close(true, "");
        assert!(text.ends_with("\n1 passed, 1 failed, 1 skipped\n") && verdict.is_err(), "{text}");
        let passed =
            || Tally { passed: 2, skips: vec!["a: no ipip in this kernel".to_owned()], ..Tally::default() };
        assert_eq!(passed().close(true, "").1, Ok(()));
        assert!(passed().close(true, "etcd, ipip").1.is_err(), "required");
        assert!(Tally::default().close(true, "").1.is_err(), "no test ran");
    }
}
