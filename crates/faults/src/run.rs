//! Runs lines of the table on a scene.

use std::process::Command;

use lab::Stack;
use sim::Random;

use crate::Result;
use crate::fast::Watch;
use crate::picture;
use crate::promise::{Clock, Seen, judge};
use crate::report::{Outcome, Verdict};
use crate::scene::{HOSTS, Scene, Setup};
use crate::table::{Act, Fault, Way};
use crate::traffic::Traffic;

/// Names of backends and what `Backend` of a configuration says for each.
pub const BACKENDS: &[(&str, &str)] = &[
    ("vxlan", r#""Type":"vxlan""#),
    ("host-gw", r#""Type":"host-gw""#),
    ("udp", r#""Type":"udp""#),
    ("wireguard", r#""Type":"wireguard""#),
];

/// Backends that have a fast path: in either family, but for udp, which has no IPv6 (decision 0241).
pub const FAST: &[&str] = &["vxlan", "host-gw", "udp"];

/// Families by the word of the command line.
pub const FAMILIES: &[(&str, Stack)] = &[("4", Stack::V4), ("6", Stack::V6), ("dual", Stack::Dual)];

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Where numbers by chance begin.
    pub seed: u64,
    /// How often each fault is done; none, as the table says in full.
    pub rounds: Option<usize>,
    /// The short slice instead.
    pub short: bool,
    /// Whether times count.
    pub clock: Clock,
}

impl Size {
    fn rounds(&self, act: &Act) -> usize {
        let (short, full) = act.rounds;
        self.rounds.unwrap_or(if self.short { short } else { full }).max(1)
    }
}

/// Whether a line can be done on such a scene of this backend.
pub fn fits(act: &Act, backend: &str, setup: &Setup) -> bool {
    act.etcd == setup.etcd
        && (setup.other.is_some() || !act.other)
        && (setup.fast || !act.fast)
        && (act.backends.is_empty() || act.backends.contains(&backend))
}

/// Does one fault so often as asked, with traffic all the time; gives what was seen.
///
/// # Errors
/// The runner itself fails; what the fault does is in the value.
pub fn act(scene: &mut Scene, act: &Act, size: &Size) -> Result<Seen> {
    let mut random = Random::new(size.seed);
    let mut seen = Seen { fast_within: act.fast_within, ..Seen::default() };
    let traffic = Traffic::start(&scene.ends, scene.setup.load, &scene.denied)?;
    let watch = scene.setup.fast.then(|| Watch::start(scene)).transpose();
    let (mut watch, rounds) = match watch {
        Ok(watch) => (watch, size.rounds(act)),
        // Then nothing would be shown.
        Err(error) => {
            seen.troubles.extend([format!("before the fault {error}")].into_iter().chain(scene.last_words()));
            (None, 0)
        }
    };
    let (dropped, unread) = (dropped(), unread(scene));
    for _ in 0..rounds {
        seen.rounds += 1;
        let done = (act.inject)(scene, &mut random, &mut seen)
            .and_then(|()| watch.as_mut().map_or(Ok(()), |watch| watch.again(scene)))
            .and_then(|()| traffic.flows());
        if let Err(error) = done {
            seen.troubles.push(error);
            seen.troubles.extend(scene.last_words());
            break;
        }
    }
    traffic.finish(&mut seen);
    seen.fast = watch.map(|watch| watch.seen);
    seen.overrun = self::dropped().saturating_sub(dropped);
    seen.unread = self::unread(scene).saturating_sub(unread);
    scene.compare(&mut seen)?;
    Ok(seen)
}

/// Packets this machine dropped since it runs because a processor's queue was full, in all namespaces.
fn dropped() -> u64 {
    let text = std::fs::read_to_string("/proc/net/softnet_stat").unwrap_or_default();
    let column = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok();
    text.lines().filter_map(column).sum()
}

/// Packets for which a tunnel in user space was too late, on all hosts.
fn unread(scene: &Scene) -> u64 {
    let script = "cat /sys/class/net/flannel[0-9]/statistics/tx_dropped 2>/dev/null";
    let of = |host| picture::shell(&scene.lab, host, script).unwrap_or_default();
    (1..=HOSTS)
        .flat_map(|host| of(host).lines().map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|line| line.parse::<u64>().ok())
        .sum()
}

/// Does all these lines on one scene; `told` hears of each when it is done.
///
/// # Errors
/// The scene cannot be made.
pub fn scene(
    setup: &Setup,
    backend: &str,
    faults: &[&'static Fault],
    size: &Size,
    told: &mut dyn FnMut(&Outcome),
) -> Result<Vec<Outcome>> {
    let mut scene = Scene::start(setup)?;
    let mut outcomes = Vec::new();
    for fault in faults {
        let Way::Here(line) = fault.way else { continue };
        if !fits(&line, backend, setup) {
            continue;
        }
        let seen = act(&mut scene, &line, size)?;
        let broken = judge(line.promise, size.clock, &seen);
        let fresh = !broken.is_empty();
        let verdict = if broken.is_empty() { Verdict::Kept } else { Verdict::Broken(broken) };
        let outcome = Outcome::here(fault, &line, backend, setup.stack, seen, verdict);
        told(&outcome);
        outcomes.push(outcome);
        // What is broken by one line is not held against the next.
        if fresh {
            scene = Scene::start(setup)?;
        }
    }
    Ok(outcomes)
}

/// Runs the tests of a line, as `cargo test` does.
pub fn tests(fault: &'static Fault, by: &[(&str, &str, &str)]) -> Outcome {
    let mut broken = Vec::new();
    let mut passed = 0;
    for (package, program, filter) in by {
        match run_tests(package, program, filter) {
            Ok(count) => passed += count,
            Err(error) => broken.push(error),
        }
    }
    let verdict = if broken.is_empty() { Verdict::Kept } else { Verdict::Broken(broken) };
    Outcome::tests(fault, by, passed, verdict)
}

fn run_tests(package: &str, program: &str, filter: &str) -> Result<usize> {
    let line = test_command(package, program, filter);
    let mut words = line.split(' ');
    let output = Command::new(words.next().unwrap_or("cargo"))
        .args(words)
        .output()
        .map_err(|error| format!("start cargo: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let results = text.lines().filter(|line| line.starts_with("test result:"));
    let number = |line: &str| line.split(' ').nth(3).and_then(|n| n.parse::<usize>().ok()).unwrap_or(0);
    let passed: usize = results.map(number).sum();
    match (output.status.success(), passed) {
        (true, 0) => Err(format!("no test is called {filter}: `{line}`")),
        (true, passed) => Ok(passed),
        (false, _) => Err(format!("`{line}` failed")),
    }
}

/// How a test of the table is run by hand.
pub fn test_command(package: &str, program: &str, filter: &str) -> String {
    let which = match program {
        "lib" if package == "node" => "--bin loden".to_owned(),
        "lib" => "--lib".to_owned(),
        name => format!("--test {name}"),
    };
    format!("cargo test -q -j2 -p {package} {which} {filter}")
}
