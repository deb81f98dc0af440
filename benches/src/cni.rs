//! Plugin calls: our program beside the reference plugins, both started by the same driver with the same
//! documents, each in a host namespace of its own with a store of its own, a fresh pod namespace per round.
//!
//! Rounds alternate and the order within a round too. Time is from before the start of the process to its
//! end, answer read; processor time is that of the process and all it started. A chain is the sum of its calls.

mod bare;
mod case;
pub mod crowd;
mod store;

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use kernel::Netns;

use crate::figure::{Figure, Goal, Samples, Table};
use crate::{Options, Result, sys};
use case::{Case, Chain, Step};

const PODS_AT_ONCE: usize = 30;

/// One of the two that are compared.
struct Side {
    /// The machine its pods are on.
    host: Netns,
    /// `CNI_PATH`.
    path: String,
    /// Stores and state.
    folder: PathBuf,
    pods: usize,
}

/// One attachment.
struct Pod {
    /// Kept, so that its end does not fall into a measured call.
    netns: Netns,
    id: String,
    /// Result of its ADD, empty before.
    result: String,
}

/// What a call cost.
#[derive(Clone, Copy, Default)]
struct Cost {
    ms: f64,
    cpu_ms: f64,
}

impl Cost {
    fn and(self, other: Cost) -> Cost {
        Cost { ms: self.ms + other.ms, cpu_ms: self.cpu_ms + other.cpu_ms }
    }
}

impl Side {
    fn new(folder: PathBuf, path: String) -> Result<Side> {
        std::fs::create_dir_all(&folder)?;
        Ok(Side { host: Netns::create()?, path, folder, pods: 0 })
    }

    fn ours(options: &Options, case: &str) -> Result<Side> {
        let folder = options.folder(case)?.join("ours");
        let bin = folder.join("bin");
        std::fs::create_dir_all(&bin)?;
        let program = options.program("loden-cni")?;
        let done = Command::new(&program).args(["install", "--bin-dir"]).arg(&bin).output()?;
        if !done.status.success() {
            return Err(
                format!("{} install: {}", program.display(), String::from_utf8_lossy(&done.stderr)).into()
            );
        }
        Side::new(folder, bin.display().to_string())
    }

    fn reference(options: &Options, case: &str) -> Result<Side> {
        let folder = options.folder(case)?.join("reference");
        let bin = folder.join("bin");
        std::fs::create_dir_all(&bin)?;
        if let Some(flannel) = &options.flannel {
            std::os::unix::fs::symlink(std::fs::canonicalize(flannel)?, bin.join("flannel"))?;
        }
        Side::new(folder, format!("{}:{}", bin.display(), options.reference.display()))
    }

    /// `dataDir` of the address manager.
    fn store(&self) -> String {
        self.folder.join("networks").display().to_string()
    }

    fn pod(&mut self) -> Result<Pod> {
        self.pods += 1;
        Ok(Pod { netns: Netns::create()?, id: format!("pod{}", self.pods), result: String::new() })
    }

    fn command(&self, plugin: &str, verb: &str, pod: &Pod) -> Result<Command> {
        let files = self.path.split(':').map(|dir| Path::new(dir).join(plugin));
        let file = files.into_iter().find(|f| f.exists()).ok_or(format!("no {plugin} in {}", self.path))?;
        let mut command = Command::new(file);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("CNI_PATH", &self.path);
        command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", &pod.id).env("CNI_IFNAME", "eth0");
        command.env("CNI_NETNS", pod.netns.path()).env("LODEN_CNI_STATE_DIR", self.folder.join("state"));
        Ok(command)
    }

    /// One call on this side's host, with the result before if there is one.
    fn call(&self, step: &Step, verb: &str, pod: &Pod) -> Result<(Cost, String)> {
        let mut command = self.command(step.plugin, verb, pod)?;
        let document = step.with_result(&pod.result);
        self.host.run(|| {
            let cpu = sys::children_cpu();
            let (time, answer) = timed(&mut command, &document)?;
            Ok((Cost { ms: ms(time), cpu_ms: ms(sys::children_cpu() - cpu) }, answer))
        })?
    }

    /// ADD of all steps in order.
    fn attach(&self, steps: &[Step], pod: &mut Pod) -> Result<Cost> {
        let mut all = Cost::default();
        for step in steps {
            let (cost, result) = self.call(step, "ADD", pod)?;
            all = all.and(cost);
            pod.result = result;
        }
        Ok(all)
    }

    /// DEL of all steps, the last first, with the result of the chain.
    fn detach(&self, steps: &[Step], pod: &Pod) -> Result<Cost> {
        steps.iter().rev().try_fold(Cost::default(), |all, step| Ok(all.and(self.call(step, "DEL", pod)?.0)))
    }

    /// The same call for many pods at the same moment; what all of them together took.
    fn calls(&self, step: &Step, verb: &str, pods: &[Pod]) -> Result<Cost> {
        let ready = Barrier::new(pods.len() + 1);
        let cpu = sys::children_cpu();
        let time = std::thread::scope(|scope| -> Result<Duration> {
            let call = |pod| -> Result<()> {
                let command = self.command(step.plugin, verb, pod);
                self.host.run(|| {
                    ready.wait();
                    timed(&mut command?, &step.document).map(drop)
                })?
            };
            let threads: Vec<_> = pods.iter().map(|pod| scope.spawn(move || call(pod))).collect();
            ready.wait();
            let start = Instant::now();
            for thread in threads {
                thread.join().map_err(|_| "a calling thread panicked")??;
            }
            Ok(start.elapsed())
        })?;
        Ok(Cost { ms: ms(time), cpu_ms: ms(sys::children_cpu() - cpu) })
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// From before the start of the process to its end, and its answer.
fn timed(command: &mut Command, input: &str) -> Result<(Duration, String)> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let start = Instant::now();
    let mut child = command.spawn().map_err(|e| format!("start {:?}: {e}", command.get_program()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input closes the pipe.
        let _ = stdin.write_all(input.as_bytes());
    }
    let mut answer = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut answer)?;
    }
    let status = child.wait()?;
    let time = start.elapsed();
    if status.success() { Ok((time, answer)) } else { Err(format!("{command:?}: {status}: {answer}").into()) }
}

/// Costs of one verb, ours and the reference's.
#[derive(Default)]
struct Pair {
    ms: [Samples; 2],
    cpu: [Samples; 2],
}

impl Pair {
    fn push(&mut self, side: usize, cost: Cost) {
        self.ms[side].0.push(cost.ms);
        self.cpu[side].0.push(cost.cpu_ms);
    }

    fn figures(self, what: &str, goal: Goal) -> [Figure; 2] {
        let [ours, other] = self.ms;
        let [ours_cpu, other_cpu] = self.cpu;
        [
            Figure::beside(format!("{what}, ms"), ours, other, goal),
            Figure::beside(format!("{what}, CPU ms"), ours_cpu, other_cpu, Goal::None),
        ]
    }
}

/// ADD and DEL, one pod at a time.
fn serial(options: &Options, case: Case, rounds: usize) -> Result<Vec<Figure>> {
    let name = case.name();
    let mut sides = [Side::ours(options, &name)?, Side::reference(options, &name)?];
    let steps = [case.steps(&sides[0])?, case.steps(&sides[1])?];
    // A pod that stays: the bridge exists, as on any node that is in use.
    let mut pods = Vec::new();
    for (side, steps) in sides.iter_mut().zip(&steps) {
        let mut pod = side.pod()?;
        side.attach(steps, &mut pod)?;
        pods.push(pod);
    }
    let (mut add, mut del) = (Pair::default(), Pair::default());
    for round in 0..rounds {
        for turn in 0..2 {
            let which = (round + turn) % 2;
            let (side, steps) = (&mut sides[which], &steps[which]);
            let mut pod = side.pod()?;
            add.push(which, side.attach(steps, &mut pod)?);
            del.push(which, side.detach(steps, &pod)?);
            pods.push(pod);
        }
    }
    let [add_goal, del_goal] = case.goals();
    Ok([add.figures(&format!("ADD {name}"), add_goal), del.figures(&format!("DEL {name}"), del_goal)]
        .into_iter()
        .flatten()
        .collect())
}

/// ADD and DEL of many pods at once.
fn parallel(options: &Options, case: Case, rounds: usize) -> Result<Vec<Figure>> {
    let name = format!("{PODS_AT_ONCE} pods at once, {}", case.name());
    let mut sides = [Side::ours(options, &name)?, Side::reference(options, &name)?];
    let steps = [case.steps(&sides[0])?, case.steps(&sides[1])?];
    let (mut add, mut del) = (Pair::default(), Pair::default());
    let mut all = Vec::new();
    for round in 0..rounds {
        for turn in 0..2 {
            let which = (round + turn) % 2;
            let (side, step) = (&mut sides[which], &steps[which][0]);
            let pods: Vec<Pod> = (0..PODS_AT_ONCE).map(|_| side.pod()).collect::<Result<_>>()?;
            add.push(which, side.calls(step, "ADD", &pods)?);
            del.push(which, side.calls(step, "DEL", &pods)?);
            all.extend(pods);
        }
    }
    Ok([add.figures(&format!("ADD {name}"), Goal::None), del.figures(&format!("DEL {name}"), Goal::None)]
        .into_iter()
        .flatten()
        .collect())
}

/// A VERSION call beside a program that does nothing.
fn version(options: &Options, rounds: usize, table: &mut Table) -> Result<()> {
    let ours = Side::ours(options, "version")?;
    let reference = Side::reference(options, "version")?;
    let pod = Pod { netns: Netns::create()?, id: "version".to_owned(), result: String::new() };
    let document = r#"{"cniVersion":"1.0.0"}"#;
    let mut others: Vec<(String, Command, Goal)> = Vec::new();
    for compiler in ["cc", "musl-gcc"] {
        match trivial(options, compiler) {
            Ok(file) => {
                let goal = if compiler == "cc" { Goal::Above(0.3) } else { Goal::None };
                others.push((
                    format!("VERSION beside trivial C ({compiler} -static), ms"),
                    Command::new(file),
                    goal,
                ));
            }
            Err(error) => table.skipped.push(format!("VERSION beside trivial C by {compiler}: {error}")),
        }
    }
    let theirs = reference.command("bridge", "VERSION", &pod)?;
    others.push(("VERSION beside the reference, ms".to_owned(), theirs, Goal::None));
    let mut ours = ours.command("bridge", "VERSION", &pod)?;
    let mut samples = Samples::default();
    let mut beside = vec![Samples::default(); others.len()];
    for _ in 0..rounds {
        samples.0.push(ms(timed(&mut ours, document)?.0));
        for ((_, command, _), samples) in others.iter_mut().zip(&mut beside) {
            samples.0.push(ms(timed(command, document)?.0));
        }
    }
    for ((what, _, goal), other) in others.into_iter().zip(beside) {
        table.figures.push(Figure::beside(what, samples.clone(), other, goal));
    }
    Ok(())
}

/// A program that only ends.
fn trivial(options: &Options, compiler: &str) -> Result<PathBuf> {
    let folder = options.folder("trivial")?;
    let (source, program) = (folder.join("trivial.c"), folder.join(compiler));
    std::fs::write(&source, "int main(void) { return 0; }\n")?;
    let made = Command::new(compiler).args(["-static", "-O2", "-o"]).arg(&program).arg(&source).output();
    let made = made.map_err(|e| format!("start {compiler}: {e}"))?;
    if !made.status.success() {
        return Err(format!("{compiler}: {}", String::from_utf8_lossy(&made.stderr)).into());
    }
    Ok(program)
}

/// The measurement.
pub fn run(options: &Options) -> Result<Table> {
    let rounds = options.rounds.unwrap_or(50);
    let mut table =
        Table::new("cni", format!("plugin calls; beside: the reference plugins; {rounds} rounds"));
    if !options.reference.join("bridge").exists() {
        let folder = options.reference.display();
        table
            .skipped
            .push(format!("cni: no reference plugins in {folder} (Debian: containernetworking-plugins)"));
        return Ok(table);
    }
    version(options, rounds * 4, &mut table)?;
    let mut chains = vec![Chain::Bridge, Chain::BridgePort];
    match options.flannel {
        Some(_) => chains.extend([Chain::Flannel, Chain::FlannelPort]),
        None => table
            .skipped
            .push("chains that begin with flannel's own plugin: name it with --flannel".to_owned()),
    }
    for chain in chains {
        for masquerade in [false, true] {
            let case = Case { chain, masquerade };
            table.figures.extend(serial(options, case, rounds)?);
            if chain == Chain::Bridge {
                table.figures.extend(parallel(options, case, rounds.div_ceil(10))?);
            }
        }
    }
    // The reference waits for duplicate detection: seconds each.
    let ptp = Case { chain: Chain::Ptp, masquerade: false };
    table.figures.extend(serial(options, ptp, rounds.div_ceil(10))?);
    store::measure(options, rounds, &mut table)?;
    Ok(table)
}
