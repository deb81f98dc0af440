//! A node that starts: a thousand pods, dozens of calls at any moment.
//!
//! What one call waits is the number of calls at once over how many the machine ends a second, whatever
//! the order; so the figures also tell how many that are. All pods live on one bridge, which floods what each
//! new one announces to all that are there: the kernel's part grows with them, and the first ones are told apart.
//!
//! Beside our program stands the kernel alone: the same state by the bare requests, sent by as many threads (`bare`);
//! and what starting as many programs costs that do nothing. Sides alternate, and all use the same pods' namespaces
//! one after the other: making and ending some thousand of them would be measured too.

use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kernel::{Netns, Rtnl};
use std::os::fd::AsFd as _;

use super::bare::{self, Bare};
use super::case::{Case, Chain, Step};
use super::{Pod, Side, ms, timed, trivial};
use crate::figure::{Figure, Goal, Samples, Table};
use crate::{Options, Result};

const PODS: usize = 1_000;
const AT_ONCE: usize = 64;
/// More than a node has in most clusters.
const FIRST: usize = 250;
/// Pods one after the other, for what a call costs alone.
const ALONE: usize = 50;
/// How long devices may take to go.
const PATIENCE: Duration = Duration::from_secs(120);

/// Who attaches pods.
enum Who {
    /// Our program, as a runtime calls it.
    Program(Box<Side>, Step),
    /// The kernel's bare requests.
    Bare(Bare),
}

impl Who {
    fn host(&self) -> &Netns {
        match self {
            Who::Program(side, _) => &side.host,
            Who::Bare(bare) => &bare.host,
        }
    }

    /// One verb of one pod. Runs on a thread in the host's namespace, with a socket there.
    fn call(&self, verb: &str, host: &mut Rtnl, pod: &Pod, number: usize) -> Result<Duration> {
        match self {
            Who::Program(side, step) => {
                Ok(timed(&mut side.command(step.plugin, verb, pod)?, &step.document)?.0)
            }
            Who::Bare(bare) => {
                let start = Instant::now();
                match verb {
                    "ADD" => bare.add(host, &pod.netns, number as u32)?,
                    _ => Bare::del(&pod.netns, number as u32)?,
                }
                Ok(start.elapsed())
            }
        }
    }

    /// Waits until the last pod's device is gone: a program may leave the end of that to the kernel.
    fn settle(&self) -> Result<()> {
        let (mut rtnl, begun) = (Rtnl::open_in(self.host().as_fd())?, Instant::now());
        while rtnl.links()?.iter().any(|link| link.link.kind.name() == "veth") {
            if begun.elapsed() > PATIENCE {
                return Err("devices of pods are still there two minutes after their DEL".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// What a crowd of calls gave.
#[derive(Default)]
struct Crowd {
    half: Samples,
    most: Samples,
    first: Samples,
    rate: Samples,
    errors: Vec<String>,
}

impl Crowd {
    /// Adds a round: times in the order the calls ended.
    fn push(&mut self, times: &Samples, took: Duration, errors: Vec<String>) {
        let first = Samples(times.0.iter().copied().take(FIRST).collect());
        self.half.0.push(times.median());
        self.most.0.push(times.quantile(0.99));
        self.first.0.push(first.quantile(0.99));
        self.rate.0.push(times.0.len() as f64 / took.as_secs_f64());
        self.errors.extend(errors);
    }
}

/// The measurement.
pub fn run(options: &Options) -> Result<Table> {
    let rounds = options.rounds.unwrap_or(3);
    let about = format!(
        "a node that starts: {PODS} pods, {AT_ONCE} calls at any moment; beside: the kernel's bare requests for the \
         same state, as many at once; {rounds} rounds"
    );
    let mut table = Table::new("crowd", about);
    let pods: Vec<Pod> = (0..PODS).map(|n| pod(&format!("pod{n}"))).collect::<Result<_>>()?;
    floors(options, rounds, &mut table)?;
    for masquerade in [false, true] {
        let case = Case { chain: Chain::Bridge, masquerade };
        measure(options, case, rounds, &pods, &mut table)?;
    }
    Ok(table)
}

fn pod(id: &str) -> Result<Pod> {
    Ok(Pod { netns: Netns::create()?, id: id.to_owned(), result: String::new() })
}

/// What the machine can do at all: programs that do nothing, ours that only says its version, pairs without a
/// bridge.
fn floors(options: &Options, rounds: usize, table: &mut Table) -> Result<()> {
    let mut rates = Vec::new();
    let version = Side::ours(options, "crowd of versions")?;
    let nobody = pod("nobody")?;
    match trivial(options, "musl-gcc").or_else(|_| trivial(options, "cc")) {
        Ok(file) => rates.push(("an empty static program", vec![file.display().to_string()])),
        Err(error) => table.skipped.push(format!("crowd of empty programs: {error}")),
    }
    rates.push(("VERSION of our program", Vec::new()));
    for (what, program) in rates {
        let (mut rate, mut most) = (Samples::default(), Samples::default());
        for _ in 0..rounds {
            let (times, took, errors) = crowd(&version.host, PODS, &|_, _| {
                let mut command = match program.first() {
                    Some(file) => Command::new(file),
                    None => version.command("bridge", "VERSION", &nobody)?,
                };
                Ok(timed(&mut command, "{}")?.0)
            });
            table.skipped.extend(errors.first().map(|error| format!("{what}: {error}")));
            rate.0.push(times.0.len() as f64 / took.as_secs_f64());
            most.0.push(times.quantile(0.99));
        }
        table.figures.push(Figure::alone(format!("{what}: calls a second"), rate, Goal::None));
        table.figures.push(Figure::alone(format!("{what}: 99 % of them within, ms"), most, Goal::None));
    }
    Ok(())
}

/// ADD of all, then DEL of all, ours and the kernel's alone in turns.
fn measure(options: &Options, case: Case, rounds: usize, pods: &[Pod], table: &mut Table) -> Result<()> {
    let name = case.name();
    let side = Box::new(Side::ours(options, &format!("crowd, {name}"))?);
    let step = case.steps(&side)?.swap_remove(0);
    let mut sides = vec![("ours", Who::Program(side, step))];
    // Rules of the host have no bare side.
    if !case.masquerade {
        sides.push(("bare", Who::Bare(Bare::new(true)?)));
        sides.push(("pairs without a bridge", Who::Bare(Bare::new(false)?)));
    }
    if let [(_, ours), (_, bare), ..] = sides.as_slice() {
        compare(ours, bare, &pods[0])?;
        table.figures.extend(alone(ours, bare, pods, &name)?);
    }
    let verbs = ["ADD", "DEL"];
    let mut crowds: Vec<[Crowd; 2]> = sides.iter().map(|_| Default::default()).collect();
    for round in 0..rounds {
        for turn in 0..sides.len() {
            let which = (round + turn) % sides.len();
            let who = &sides[which].1;
            for (verb, crowd_of) in verbs.iter().zip(&mut crowds[which]) {
                let call = |n: usize, host: &mut Rtnl| who.call(verb, host, &pods[n], n);
                let (times, took, errors) = crowd(who.host(), pods.len(), &call);
                crowd_of.push(&times, took, errors);
            }
            who.settle()?;
        }
    }
    let mut crowds = crowds.into_iter();
    let ours = crowds.next().ok_or("our side")?;
    let bare = crowds.next();
    let pairs = crowds.next();
    for (n, crowd) in ours.into_iter().enumerate() {
        let (verb, bare) = (verbs[n], bare.as_ref().map(|sides| &sides[n]));
        figures(&format!("{verb} {name}"), &crowd, bare, n == 0, table);
        if let Some(pairs) = pairs.as_ref().map(|sides| &sides[n]) {
            let what = format!("{verb} bare requests without a bridge");
            table.figures.push(Figure::alone(
                format!("{what}: calls a second"),
                pairs.rate.clone(),
                Goal::None,
            ));
            let most = format!("{what}: 99 % of them within, ms");
            table.figures.push(Figure::alone(most, pairs.most.clone(), Goal::None));
        }
    }
    Ok(())
}

fn figures(name: &str, ours: &Crowd, bare: Option<&Crowd>, add: bool, table: &mut Table) {
    let figure = |what: &str, ours: &Samples, other: Option<&Samples>, goal| {
        let what = format!("{name}: {what}");
        match other {
            Some(other) => Figure::beside(what, ours.clone(), other.clone(), goal),
            None => Figure::alone(what, ours.clone(), goal),
        }
    };
    let goal = |goal: Goal| if add { goal } else { Goal::None };
    table.figures.extend([
        figure("half of them within, ms", &ours.half, bare.map(|b| &b.half), Goal::None),
        figure("99 % of them within, ms", &ours.most, None, goal(Goal::AtMost(50.0))),
        figure(
            &format!("99 % of the first {FIRST} within, ms"),
            &ours.first,
            bare.map(|b| &b.first),
            Goal::None,
        ),
        figure("errors", &Samples::from(ours.errors.len() as f64), None, Goal::AtMost(0.0)),
    ]);
    table.figures.extend(match bare {
        Some(bare) => vec![
            figure("99 % of them within, ms", &ours.most, Some(&bare.most), Goal::None),
            figure("calls a second", &ours.rate, Some(&bare.rate), goal(Goal::AtLeast(0.5))),
        ],
        None => vec![figure("calls a second", &ours.rate, None, Goal::None)],
    });
    let errors = ours.errors.iter().chain(bare.iter().flat_map(|bare| &bare.errors));
    table.skipped.extend(errors.take(1).map(|error| format!("{name}: the first error: {error}")));
}

/// One pod after the other.
fn alone(ours: &Who, bare: &Who, pods: &[Pod], name: &str) -> Result<Vec<Figure>> {
    let mut samples: [[Samples; 2]; 2] = Default::default();
    for (n, pod) in pods.iter().enumerate().take(ALONE) {
        for turn in 0..2 {
            let which = (n + turn) % 2;
            let who = [ours, bare][which];
            for (verb, samples) in ["ADD", "DEL"].iter().zip(&mut samples[which]) {
                let took = who
                    .host()
                    .run(|| -> Result<Duration> { who.call(verb, &mut Rtnl::open()?, pod, n) })??;
                samples.0.push(ms(took));
            }
            who.settle()?;
        }
    }
    let [ours, bare] = samples;
    let goals = [Goal::AtMost(2.0), Goal::None];
    Ok(ours
        .into_iter()
        .zip(bare)
        .zip(["ADD", "DEL"].into_iter().zip(goals))
        .map(|((ours, bare), (verb, goal))| {
            Figure::beside(format!("{verb} {name}, one after the other, ms"), ours, bare, goal)
        })
        .collect())
}

/// Fails unless both make the same of a pod and its port, as the kernel tells it.
fn compare(ours: &Who, bare: &Who, pod: &Pod) -> Result<()> {
    let mut pictures = Vec::new();
    for who in [ours, bare] {
        let call = |verb: &str| -> Result<()> {
            who.host().run(|| who.call(verb, &mut Rtnl::open()?, pod, 0).map(drop))?
        };
        call("ADD")?;
        pictures.push(bare::picture(who.host(), &pod.netns)?);
        call("DEL")?;
        who.settle()?;
    }
    match pictures[0] == pictures[1] {
        true => Ok(()),
        false => {
            let [ours, bare] = [&pictures[0], &pictures[1]].map(|lines| lines.join("\n"));
            Err(format!("the bare requests make another state.\nOurs:\n{ours}\nBare:\n{bare}").into())
        }
    }
}

/// So many calls, so many at a time, each told its number and given a socket in the host's namespace: their times in
/// the order they ended, what all took together, and what failed.
fn crowd(
    host: &Netns,
    count: usize,
    call: &(dyn Fn(usize, &mut Rtnl) -> Result<Duration> + Sync),
) -> (Samples, Duration, Vec<String>) {
    let (next, out) = (AtomicUsize::new(0), Mutex::new((Samples::default(), Vec::new())));
    let work = || -> Result<()> {
        let mut rtnl = Rtnl::open()?;
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= count {
                return Ok(());
            }
            let called = call(n, &mut rtnl);
            let Ok(mut out) = out.lock() else { return Ok(()) };
            match called {
                Ok(time) => out.0.0.push(ms(time)),
                Err(error) => out.1.push(error.to_string()),
            }
        }
    };
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                let failed = match host.run(work) {
                    Ok(done) => done.err().map(|error| error.to_string()),
                    Err(error) => Some(error.to_string()),
                };
                if let (Some(error), Ok(mut out)) = (failed, out.lock()) {
                    out.1.push(error);
                }
            });
        }
    });
    let took = start.elapsed();
    let (times, errors) = out.into_inner().unwrap_or_default();
    (times, took, errors)
}
