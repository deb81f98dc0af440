//! `cargo xtask faults`: runs the fault catalogue on this machine and prints what was promised and what was seen.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use faults::promise::{Clock, Promise, judge};
use faults::report::{self, Outcome, Verdict};
use faults::run::{self, BACKENDS, FAMILIES, FAST, Size};
use faults::scene::Setup;
use faults::soak;
use faults::table::{FAULTS, Fault, Way};
use faults::traffic::Load;
use lab::Stack;

const USAGE: &str = "\
usage: cargo xtask faults [ROW]... [OPTION]...
       cargo xtask faults soak [--minutes N] [OPTION]...

  ROW              rows of the catalogue, R01 to R31; none: all
  --seed N         where numbers by chance begin (1)
  --family F       4, 6, dual or all (dual)
  --backend B      vxlan, host-gw, udp, wireguard or all (vxlan)
  --fast-path      with the fast path on: for vxlan and host-gw, and for udp in IPv4; a row in which packets do not go fast
                   is broken
  --other FILE     R03: the `loden` of another release, its `loden-cni` beside it
  --minutes N      soak: how long faults by chance go on, one a second, two fifths of it without the store (20)
  --rounds N       how often each fault is done, instead of the table's number
  --short          the short slice: few times, little traffic
  --no-tests       leave out the rows that tests stand for
  --write FILE     write the result as a table
  --list           only say what there is
As root. Without --short it takes hours: see docs/guide/faults.md.
";

struct Options {
    rows: Vec<String>,
    seed: u64,
    families: Vec<Stack>,
    backends: Vec<(&'static str, &'static str)>,
    rounds: Option<usize>,
    short: bool,
    tests: bool,
    write: Option<PathBuf>,
    list: bool,
    soak: bool,
    other: Option<PathBuf>,
    fast: bool,
    minutes: u64,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match options(&words).and_then(|options| work(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("faults: {error}\n"));
            ExitCode::from(2)
        }
    }
}

fn options(words: &[String]) -> faults::Result<Options> {
    let mut options = Options {
        rows: Vec::new(),
        seed: 1,
        families: vec![Stack::Dual],
        backends: vec![BACKENDS[0]],
        rounds: None,
        short: false,
        tests: true,
        write: None,
        list: false,
        soak: false,
        other: None,
        fast: false,
        minutes: 20,
    };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value\n{USAGE}"));
        let number = |text: &String| text.parse::<u64>().map_err(|_| format!("{text:?} is no number"));
        match word.as_str() {
            "--seed" => options.seed = number(value()?)?,
            "--rounds" => options.rounds = Some(number(value()?)? as usize),
            "--family" => {
                options.families = chosen("family", value()?, FAMILIES)?.iter().map(|(_, v)| *v).collect()
            }
            "--backend" => options.backends = chosen("backend", value()?, BACKENDS)?,
            "--other" => options.other = Some(another(value()?)?),
            "--write" => options.write = Some(PathBuf::from(value()?)),
            "--fast-path" => options.fast = true,
            "--short" => options.short = true,
            "--no-tests" => options.tests = false,
            "--minutes" => options.minutes = number(value()?)?,
            "soak" => options.soak = true,
            "--list" => options.list = true,
            row if FAULTS.iter().any(|fault| fault.row == row) => options.rows.push(row.to_owned()),
            _ => return Err(format!("{word:?} is not understood\n{USAGE}")),
        }
    }
    if options.fast {
        only_fast(&mut options)?;
    }
    Ok(options)
}

/// What was asked for by name and has no fast path is refused; of `all` it is left out, and that is said.
fn only_fast(options: &mut Options) -> faults::Result<()> {
    let fast = |backend: &str| FAST.contains(&backend);
    let v4 = options.families.contains(&Stack::V4);
    let has = |(name, _): &(&str, &str)| fast(name) && (v4 || *name != "udp");
    let (can, cannot): (Vec<_>, Vec<_>) = options.backends.iter().partition(|backend| has(backend));
    for (name, _) in &cannot {
        let why = if fast(name) {
            format!("the backend {name} carries IPv4 alone: --family 4")
        } else {
            format!("the backend {name} has no fast path; {} have", FAST.join(", "))
        };
        left_out(can.is_empty(), why)?;
    }
    options.backends = can;
    Ok(())
}

fn left_out(is_all: bool, why: String) -> faults::Result<()> {
    if is_all {
        return Err(why);
    }
    say(&format!("left out: {why}\n"));
    Ok(())
}

fn chosen<T: Copy>(
    what: &str,
    word: &str,
    from: &[(&'static str, T)],
) -> faults::Result<Vec<(&'static str, T)>> {
    let found: Vec<_> = from.iter().copied().filter(|(name, _)| word == "all" || *name == word).collect();
    let names: Vec<&str> = from.iter().map(|(name, _)| *name).collect();
    if found.is_empty() {
        Err(format!("there is no {what} {word:?}; there are {}", names.join(", ")))
    } else {
        Ok(found)
    }
}

fn work(options: &Options) -> faults::Result<bool> {
    let chosen = |fault: &&Fault| options.rows.is_empty() || options.rows.iter().any(|row| row == fault.row);
    let faults: Vec<&'static Fault> = FAULTS.iter().filter(chosen).collect();
    if options.list {
        say(&report::list(&faults));
        return Ok(true);
    }
    if options.soak {
        return soak(options);
    }
    let mut outcomes = Vec::new();
    let mut told = |outcome: &Outcome| say(&outcome.line());
    let size =
        Size { seed: options.seed, rounds: options.rounds, short: options.short, clock: Clock::Counts };
    for (backend, config) in &options.backends {
        for stack in &options.families {
            // flannel's udp knows no IPv6.
            if *backend == "udp" && *stack != Stack::V4 {
                continue;
            }
            for etcd in [false, true] {
                let setup = setup(options, config, *stack, etcd)?;
                let fits =
                    |fault: &&&Fault| matches!(fault.way, Way::Here(act) if run::fits(&act, backend, &setup));
                let here: Vec<&'static Fault> = faults.iter().filter(fits).copied().collect();
                if here.is_empty() {
                    continue;
                }
                outcomes.extend(run::scene(&setup, backend, &here, &size, &mut told)?);
            }
        }
    }
    for fault in faults {
        let outcome = match fault.way {
            Way::Here(act) if act.other && options.other.is_none() => {
                Outcome::cannot(fault, "needs another release: --other FILE names its `loden`")
            }
            Way::Here(act) if act.fast && !options.fast => {
                Outcome::cannot(fault, "about the fast path: --fast-path turns it on")
            }
            Way::Here(_) => continue,
            Way::Tests(_) if !options.tests => continue,
            Way::Tests(by) => run::tests(fault, by),
            Way::Cannot(why) => Outcome::cannot(fault, why),
        };
        told(&outcome);
        outcomes.push(outcome);
    }
    if let Some(file) = &options.write {
        outcomes.sort_by(|a, b| a.cells[0].cmp(&b.cells[0]));
        std::fs::write(file, report::markdown(&outcomes))
            .map_err(|error| format!("write {}: {error}", file.display()))?;
    }
    let broken = outcomes.iter().filter(|outcome| matches!(outcome.verdict, Verdict::Broken(_))).count();
    say(&format!("{} lines, {broken} broken\n", outcomes.len()));
    Ok(broken == 0)
}

fn soak(options: &Options) -> faults::Result<bool> {
    let mut good = true;
    for (backend, config) in &options.backends {
        for stack in options.families.iter().filter(|stack| *backend != "udp" || **stack == Stack::V4) {
            let setup = Setup { other: None, ..setup(options, config, *stack, false)? };
            let time = Duration::from_secs(options.minutes * 60);
            let soaked = soak::soak(&setup, backend, time, options.seed)?;
            let seen = &soaked.seen;
            // A fault a second, the slowest may take three: a gap may span the end of one and the next.
            let mut broken = judge(Promise::Gap(Duration::from_secs(5)), Clock::Counts, seen);
            if soaked.lines_in_outages() > soak::LINES {
                broken.push(format!(
                    "an agent logged {:.0} lines a minute while the store was away; at most {:.0} are promised",
                    soaked.lines_in_outages(),
                    soak::LINES
                ));
            }
            let slope = soak::slope(&soaked.memory);
            if time >= soak::LONG && slope > soak::SLOPE {
                broken.push(format!(
                    "memory grew by {slope:.2} MiB an hour; at most {:.0} is promised",
                    soak::SLOPE
                ));
            }
            let (first, last) = (soaked.memory.first(), soaked.memory.last());
            let mib = |point: Option<&(f64, f64)>| point.map_or(0.0, |point| point.1 / 1024.0);
            say(&format!(
                "{backend}: {} faults, {} of {} packets lost, longest gap {} ms, right again after {} ms (p99), memory of three \
                 agents {:.1} to {:.1} MiB, slope {:.2} MiB/h, {} lines logged; the store was away {} times, and an agent logged at \
                 most {} lines in {} s of it without other faults\n",
                seen.rounds,
                seen.lost(),
                seen.sent(),
                seen.gap().as_millis(),
                seen.right_at(99).as_millis(),
                mib(first),
                mib(last),
                slope,
                soaked.lines,
                soaked.outages.len(),
                soaked.outages.iter().max().unwrap_or(&0),
                soaked.quiet.as_secs(),
            ));
            broken.iter().for_each(|line| say(&format!("      {line}\n")));
            good &= broken.is_empty();
        }
    }
    Ok(good)
}

fn setup(options: &Options, config: &str, stack: Stack, etcd: bool) -> faults::Result<Setup> {
    Ok(Setup {
        program: program()?,
        other: options.other.clone(),
        backend: config.to_owned(),
        stack,
        etcd,
        fast: options.fast,
        load: if options.short { Load::LIGHT } else { Load::FULL },
    })
}

/// `loden` beside this program.
fn program() -> faults::Result<PathBuf> {
    let own = std::env::current_exe().map_err(|error| format!("find this program: {error}"))?;
    let loden = own.with_file_name("loden");
    match missing(&loden) {
        Some(file) => Err(format!("{} is missing: cargo build -p node -p cni", file.display())),
        None => Ok(loden),
    }
}

/// Another release's `loden`, with `loden-cni` beside it.
fn another(word: &str) -> faults::Result<PathBuf> {
    let loden = std::fs::canonicalize(word).map_err(|error| format!("--other {word}: {error}"))?;
    match missing(&loden) {
        Some(file) => Err(format!("--other {word}: {} is missing", file.display())),
        None => Ok(loden),
    }
}

fn missing(loden: &Path) -> Option<PathBuf> {
    let cni = loden.with_file_name("loden-cni");
    [loden.to_owned(), cni].into_iter().find(|file| !file.is_file())
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_fast_path_is_refused_or_left_out() {
        let all = ["vxlan", "host-gw", "udp"];
        for (words, wanted) in [
            ("--fast-path", Ok((&all[..1], 1))),
            ("--fast-path --backend all --family all", Ok((&all[..], 3))),
            ("--fast-path --family 6", Ok((&all[..1], 1))),
            ("--fast-path --backend all --family 6", Ok((&all[..2], 1))),
            ("--fast-path --backend udp --family 4", Ok((&all[2..], 1))),
            ("--fast-path --backend udp --family 6", Err("udp carries IPv4 alone: --family 4")),
            ("--backend wireguard --fast-path", Err("wireguard has no fast path; vxlan, host-gw, udp have")),
        ] {
            let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
            match (options(&words), wanted) {
                (Ok(options), Ok((backends, families))) => {
                    let names: Vec<&str> = options.backends.iter().map(|(name, _)| *name).collect();
                    assert_eq!((&names[..], options.families.len()), (backends, families), "{words:?}");
                }
                (Err(said), Err(why)) => assert!(said.contains(why), "{words:?}: {said}"),
                (Ok(_), Err(_)) => panic!("{words:?} is not refused"),
                (Err(said), Ok(_)) => panic!("{words:?}: {said}"),
            }
        }
    }
}
