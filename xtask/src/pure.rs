//! `cargo xtask bench pure`: the parts that only compute, measured by criterion, beside a baseline kept under `target/`
//! or beside another revision in turns (decision 0233).

mod figures;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::{say, tidy};
use figures::Compared;

const USAGE: &str = "\
usage: cargo xtask bench pure [FILTER] [OPTION]...

  FILTER             only benchmarks whose name this regular expression finds, such as plan/diff
  --save NAME        keep the figures under this name, in target/criterion
  --baseline NAME    beside the figures kept under this name
  --against REV      beside another revision, built under target/against, in turns
  --rounds N         how often each of the two is measured, with --against (5)
";

const ROUNDS: usize = 5;
/// Of fewer there is no spread.
const LEAST: usize = 3;
const MOST: usize = 99;

/// Folders criterion makes beside baselines.
const NO_NAMES: &[&str] = &["base", "change", "new", "report"];

/// One process of a comparison: short, for there are many, and their spread is seen between them.
const BRIEF: &[&str] = &["--warm-up-time", "0.1", "--measurement-time", "0.3", "--sample-size", "10"];

#[derive(Debug, PartialEq, Eq)]
struct Options {
    filter: String,
    what: What,
}

#[derive(Debug, PartialEq, Eq)]
enum What {
    /// Beside the run before.
    Now,
    Save(String),
    Beside(String),
    Against {
        rev: String,
        rounds: usize,
    },
}

impl Options {
    fn parse(words: &[String]) -> Result<Options, String> {
        let (mut filter, mut what, mut rounds) = (None, None, None);
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if !word.starts_with('-') {
                if filter.replace(word.clone()).is_some() {
                    return Err("one FILTER at most: `a|b` finds two things".to_owned());
                }
                continue;
            }
            let mut value = || words.next().cloned().ok_or(format!("{word} needs a value"));
            let next = match word.as_str() {
                "--save" => What::Save(fit(value()?)?),
                "--baseline" => What::Beside(fit(value()?)?),
                "--against" => What::Against { rev: value()?, rounds: ROUNDS },
                "--rounds" => {
                    let number = value()?.parse().ok().filter(|number| (LEAST..=MOST).contains(number));
                    rounds = Some(number.ok_or(format!("--rounds takes a number from {LEAST} to {MOST}"))?);
                    continue;
                }
                _ => return Err(format!("there is no option {word}")),
            };
            if what.replace(next).is_some() {
                return Err("--save, --baseline and --against do not go together".to_owned());
            }
        }
        let what = match (what, rounds) {
            (Some(What::Against { rev, .. }), Some(rounds)) => What::Against { rev, rounds },
            (_, Some(_)) => return Err("--rounds goes with --against".to_owned()),
            (what, None) => what.unwrap_or(What::Now),
        };
        Ok(Options { filter: filter.unwrap_or_default(), what })
    }
}

/// A baseline's name is that of a folder among others.
fn fit(name: String) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let fits = name.starts_with(|first: char| first.is_ascii_alphanumeric()) && name.bytes().all(plain);
    if fits && !NO_NAMES.contains(&name.as_str()) {
        return Ok(name);
    }
    Err(format!(
        "{name:?} cannot be the name of a baseline: letters, digits, `-`, `_`, `.`, and not {NO_NAMES:?}"
    ))
}

/// The words after `bench pure`.
pub fn run(words: &[String]) -> Result<(), String> {
    let options = Options::parse(words).map_err(|error| format!("{error}\n\n{USAGE}"))?;
    let root = tidy::root()?;
    let kept = root.join("target/criterion");
    let mut beside = Vec::new();
    match &options.what {
        What::Against { rev, rounds } => return against(&root, &options.filter, rev, *rounds),
        What::Now => {}
        What::Save(name) => beside.extend(["--save-baseline", name]),
        What::Beside(name) => {
            let names = baselines(&kept);
            if !names.contains(name) {
                let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                return Err(format!(
                    "no figures are kept under {name:?}: --save {name} keeps some; there are {names}"
                ));
            }
            // What is new since then stands alone.
            beside.extend(["--baseline-lenient", name]);
        }
    }
    let program = build(&root, None)?;
    let names = list(&program, &options.filter)?;
    some(&program, &names, &options.filter)?;
    let mut command = command(&program, &kept);
    let status = command.args(beside).arg(&options.filter).status();
    let status = status.map_err(|error| format!("start {}: {error}", program.display()))?;
    if status.success() { Ok(()) } else { Err(format!("measuring: {status}")) }
}

/// Names figures are kept under.
fn baselines(kept: &Path) -> Vec<String> {
    let folders = |path: &Path| {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect::<Vec<_>>()
    };
    let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let mut names: Vec<String> =
        folders(kept).iter().flat_map(|folder| folders(folder)).filter_map(|path| name(&path)).collect();
    names.retain(|name| !NO_NAMES.contains(&name.as_str()));
    names.sort();
    names.dedup();
    names
}

/// Measures two programs in turns. However they compare, the status is 0: the reader judges.
fn against(root: &Path, filter: &str, rev: &str, rounds: usize) -> Result<(), String> {
    let (commit, short) = revision(root, rev)?;
    let ours = build(root, None)?;
    let names = list(&ours, filter)?;
    some(&ours, &names, filter)?;
    let folder = root.join("target/against");
    let tree = checked_out(root, &folder, &commit)?;
    let theirs = build(&tree, Some(&folder.join("target")))
        .map_err(|error| format!("{error}; the benchmarks of {rev} cannot be built, see above"))?;
    let others = list(&theirs, filter)?;
    let (both, only): (Vec<&String>, Vec<&String>) = names.iter().partition(|name| others.contains(name));
    let gone: Vec<&String> = others.iter().filter(|name| !names.contains(name)).collect();
    if both.is_empty() {
        return Err(format!("{rev} ({short}) has none of these {} benchmarks: they came later", names.len()));
    }
    let load = || fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = |text: String| text.split(' ').take(3).collect::<Vec<_>>().join(" ");
    say(&format!("\nload averages at the start: {}\n", first(load())));
    let width = both.iter().map(|name| name.len()).max().unwrap_or(0);
    say(&figures::heading(width, rev, &short, rounds));
    let kept = folder.join("criterion");
    let mut all = Vec::new();
    for name in both {
        let mut compared = Compared::new(name);
        for round in 0..rounds {
            // Who goes first changes: what a disturbance or a warm cache gives, it gives to both.
            let (mut one, mut other) = (0.0, 0.0);
            let mut turns = [(&ours, &mut one), (&theirs, &mut other)];
            if round % 2 == 1 {
                turns.reverse();
            }
            for (program, time) in turns {
                *time = measure(program, &kept, name)?;
            }
            compared.add(one, other);
        }
        say(&compared.row(width));
        all.push(compared);
    }
    say(&figures::closing(&all, &only, &gone, &short));
    say(&format!("load averages at the end: {}\n", first(load())));
    Ok(())
}

/// The time of one benchmark, ns.
fn measure(program: &Path, kept: &Path, name: &str) -> Result<f64, String> {
    let mut command = command(program, kept);
    command.args(["--exact", "--output-format", "bencher", "--discard-baseline", "--nresamples", "100"]);
    let output = output(command.args(BRIEF).arg(name))?;
    let text = String::from_utf8_lossy(&output.stdout);
    figures::time_of(&text, name).ok_or(format!("{name}: criterion says no time, but {text:?}"))
}

/// A program with benchmarks, about to measure. Criterion asks cargo for its folder unless it is told one.
fn command(program: &Path, kept: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("--bench").env("CRITERION_HOME", kept);
    command
}

/// Names of the benchmarks the filter finds.
fn list(program: &Path, filter: &str) -> Result<Vec<String>, String> {
    let output = output(Command::new(program).args(["--list", "--format", "terse", filter]))
        .map_err(|said| format!("find {filter:?} among the benchmarks: {}", figures::reason(&said)))?;
    Ok(figures::listed(&String::from_utf8_lossy(&output.stdout)))
}

/// There are some.
fn some(program: &Path, names: &[String], filter: &str) -> Result<(), String> {
    if !names.is_empty() {
        return Ok(());
    }
    Err(format!("no benchmark's name has {filter:?} in it; there are\n  {}", list(program, "")?.join("\n  ")))
}

/// Runs a program to its end.
fn output(command: &mut Command) -> Result<Output, String> {
    let output = command.output().map_err(|error| format!("start {:?}: {error}", command.get_program()))?;
    if output.status.success() {
        return Ok(output);
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

/// Builds the benchmarks of a tree, with the release's settings; gives the program.
fn build(root: &Path, target: Option<&Path>) -> Result<PathBuf, String> {
    let arguments = ["bench", "-j2", "-p", "pure", "--bench", "pure", "--no-run"];
    say(&format!("+ cargo {} # in {}\n", arguments.join(" "), root.display()));
    let mut cargo = Command::new("cargo");
    cargo.args(arguments).args(["--message-format", "json-render-diagnostics"]).current_dir(root);
    if let Some(target) = target {
        cargo.env("CARGO_TARGET_DIR", target);
    }
    let output = cargo.stderr(Stdio::inherit()).output().map_err(|error| format!("start cargo: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo bench --no-run: {}", output.status));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    figures::program(&text).map(PathBuf::from).ok_or("cargo bench --no-run made no program".to_owned())
}

fn git(root: &Path, arguments: &[&str]) -> Result<String, String> {
    let output = output(Command::new("git").arg("-C").arg(root).args(arguments))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The commit a revision names, whole and short, if it has benchmarks.
fn revision(root: &Path, rev: &str) -> Result<(String, String), String> {
    let wanted = format!("{rev}^{{commit}}");
    let commit = git(root, &["rev-parse", "--verify", "--quiet", "--end-of-options", &wanted])
        .map_err(|_| format!("there is no revision {rev:?} here"))?;
    let short = git(root, &["rev-parse", "--short", &commit])?;
    match git(root, &["cat-file", "-e", &format!("{commit}:benches/pure/Cargo.toml")]) {
        Ok(_) => Ok((commit, short)),
        Err(_) => Err(format!(
            "{rev} ({short}) has no benchmarks of the pure parts to compare with: they came later"
        )),
    }
}

/// A tree of its own with the commit; the same one each time, so that only what differs is built.
fn checked_out(root: &Path, folder: &Path, commit: &str) -> Result<PathBuf, String> {
    let tree = folder.join("tree");
    let path = tree.display().to_string();
    let done = if tree.join(".git").exists() {
        git(&tree, &["checkout", "--quiet", "--force", "--detach", commit])
    } else {
        // Forced, for git still knows of one that was removed with the target folder.
        git(root, &["worktree", "add", "--quiet", "--force", "--detach", &path, commit])
    };
    done.map(|_| tree).map_err(|error| format!("check out {commit} in {path}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::{Options, What};

    #[test]
    fn words_are_read_or_refused_with_a_sentence() {
        let options = |filter: &str, what| Ok(Options { filter: filter.to_owned(), what });
        let against = |rounds| What::Against { rev: "HEAD~3".to_owned(), rounds };
        for (words, want) in [
            ("", options("", What::Now)),
            ("plan/diff", options("plan/diff", What::Now)),
            ("plan --save before", options("plan", What::Save("before".to_owned()))),
            ("--baseline v0.1 plan", options("plan", What::Beside("v0.1".to_owned()))),
            ("--against HEAD~3", options("", against(5))),
            ("--rounds 9 --against HEAD~3 a|b", options("a|b", against(9))),
            ("a b", Err("one FILTER at most: `a|b` finds two things")),
            ("--save", Err("--save needs a value")),
            ("--against", Err("--against needs a value")),
            ("--verbose", Err("there is no option --verbose")),
            ("--rounds 5", Err("--rounds goes with --against")),
            ("--rounds 5 --save a", Err("--rounds goes with --against")),
            ("--against HEAD --rounds 2", Err("--rounds takes a number from 3 to 99")),
            ("--against HEAD --rounds many", Err("--rounds takes a number from 3 to 99")),
            ("--save a --baseline b", Err("--save, --baseline and --against do not go together")),
            ("--against a --against b", Err("--save, --baseline and --against do not go together")),
            ("--save new", Err("\"new\" cannot be the name of a baseline")),
            ("--save ../a", Err("\"../a\" cannot be the name of a baseline")),
            ("--baseline .", Err("\".\" cannot be the name of a baseline")),
        ] {
            let given: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
            let got =
                Options::parse(&given).map_err(|error| error.split(": letters").next().map(str::to_owned));
            assert_eq!(got, want.map_err(|error: &str| Some(error.to_owned())), "{words}");
        }
    }
}
