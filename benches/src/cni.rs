//! Plugin calls: our program beside the reference plugins, both started by the same driver with the same
//! documents, each in a host namespace of its own with a store of its own, a fresh pod namespace per round.
//!
//! Rounds alternate and the order within a round too. Time is from before the start of the process to its
//! end, answer read; processor time is that of the process and all it started.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use kernel::Netns;

use crate::figure::{Figure, Goal, Samples, Table};
use crate::{Options, Result, sys};

const PODS_AT_ONCE: usize = 30;
const SUBNET: &str = "10.244.1.0/24";

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
}

/// What a call cost.
#[derive(Clone, Copy, Default)]
struct Cost {
    ms: f64,
    cpu_ms: f64,
}

/// The document and the plugin it is for.
#[derive(Clone, Copy, PartialEq)]
enum Chain {
    /// `bridge` with `host-local`.
    Bridge,
    /// `flannel`, which calls `bridge`.
    Flannel,
}

#[derive(Clone, Copy)]
struct Case {
    chain: Chain,
    masquerade: bool,
}

impl Case {
    fn plugin(self) -> &'static str {
        match self.chain {
            Chain::Bridge => "bridge",
            Chain::Flannel => "flannel",
        }
    }

    fn name(self) -> String {
        let chain = match self.chain {
            Chain::Bridge => "bridge + host-local",
            Chain::Flannel => "flannel + bridge + host-local",
        };
        format!("{chain}{}", if self.masquerade { ", ipMasq" } else { "" })
    }

    /// Limits of ADD and DEL (the first issue of this measurement; flannel's chain is told only).
    fn goals(self) -> [Goal; 2] {
        match (self.chain, self.masquerade) {
            (Chain::Bridge, false) => [Goal::AtMost(0.25), Goal::AtMost(0.5)],
            (Chain::Bridge, true) => [Goal::AtMost(0.1667), Goal::AtMost(0.25)],
            (Chain::Flannel, _) => [Goal::None; 2],
        }
    }

    fn document(self, side: &Side) -> Result<String> {
        let masquerade = self.masquerade;
        let path = |name: &str| side.folder.join(name).display().to_string();
        let (store, scratch) = (path("networks"), path("flannel"));
        match self.chain {
            Chain::Bridge => Ok(format!(
                r#"{{"cniVersion":"1.0.0","name":"cbr0","type":"bridge","bridge":"cni0","hairpinMode":true,
                    "isDefaultGateway":true,"ipMasq":{masquerade},
                    "ipam":{{"type":"host-local","dataDir":"{store}","ranges":[[{{"subnet":"{SUBNET}"}}]],
                             "routes":[{{"dst":"10.244.0.0/16"}}]}}}}"#
            )),
            Chain::Flannel => {
                // The agent masquerades or the bridge does.
                let agent = !masquerade;
                let env = path(if masquerade { "masquerade.env" } else { "subnet.env" });
                let text = format!(
                    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\n\
                     FLANNEL_IPMASQ={agent}\n"
                );
                std::fs::write(&env, text)?;
                Ok(format!(
                    r#"{{"cniVersion":"1.0.0","name":"cbr0","type":"flannel","subnetFile":"{env}",
                        "dataDir":"{scratch}","ipam":{{"dataDir":"{store}"}},
                        "delegate":{{"hairpinMode":true,"isDefaultGateway":true}}}}"#
                ))
            }
        }
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

    fn pod(&mut self) -> Result<Pod> {
        self.pods += 1;
        Ok(Pod { netns: Netns::create()?, id: format!("pod{}", self.pods) })
    }

    fn command(&self, case: Case, verb: &str, pod: &Pod) -> Result<Command> {
        let files = self.path.split(':').map(|dir| Path::new(dir).join(case.plugin()));
        let file =
            files.into_iter().find(|f| f.exists()).ok_or(format!("no {} in {}", case.plugin(), self.path))?;
        let mut command = Command::new(file);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("CNI_PATH", &self.path);
        command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", &pod.id).env("CNI_IFNAME", "eth0");
        command.env("CNI_NETNS", pod.netns.path()).env("LODEN_CNI_STATE_DIR", self.folder.join("state"));
        Ok(command)
    }

    /// One call on this side's host.
    fn call(&self, case: Case, verb: &str, pod: &Pod, document: &str) -> Result<Cost> {
        let mut command = self.command(case, verb, pod)?;
        self.host.run(|| {
            let cpu = sys::children_cpu();
            let time = timed(&mut command, document)?;
            Ok(Cost { ms: ms(time), cpu_ms: ms(sys::children_cpu() - cpu) })
        })?
    }

    /// The same call for many pods at the same moment; what all of them together took.
    fn calls(&self, case: Case, verb: &str, pods: &[Pod], document: &str) -> Result<Cost> {
        let ready = Barrier::new(pods.len() + 1);
        let cpu = sys::children_cpu();
        let time = std::thread::scope(|scope| -> Result<Duration> {
            let call = |pod| -> Result<()> {
                let command = self.command(case, verb, pod);
                self.host.run(|| {
                    ready.wait();
                    timed(&mut command?, document).map(drop)
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

/// From before the start of the process to its end.
fn timed(command: &mut Command, input: &str) -> Result<Duration> {
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
    if status.success() { Ok(time) } else { Err(format!("{command:?}: {status}: {answer}").into()) }
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
    let documents = [case.document(&sides[0])?, case.document(&sides[1])?];
    // A pod that stays: the bridge exists, as on any node that is in use.
    let mut pods = Vec::new();
    for (side, document) in sides.iter_mut().zip(&documents) {
        let pod = side.pod()?;
        side.call(case, "ADD", &pod, document)?;
        pods.push(pod);
    }
    let (mut add, mut del) = (Pair::default(), Pair::default());
    for round in 0..rounds {
        for turn in 0..2 {
            let which = (round + turn) % 2;
            let (side, document) = (&mut sides[which], &documents[which]);
            let pod = side.pod()?;
            add.push(which, side.call(case, "ADD", &pod, document)?);
            del.push(which, side.call(case, "DEL", &pod, document)?);
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
    let documents = [case.document(&sides[0])?, case.document(&sides[1])?];
    let (mut add, mut del) = (Pair::default(), Pair::default());
    let mut all = Vec::new();
    for round in 0..rounds {
        for turn in 0..2 {
            let which = (round + turn) % 2;
            let (side, document) = (&mut sides[which], &documents[which]);
            let pods: Vec<Pod> = (0..PODS_AT_ONCE).map(|_| side.pod()).collect::<Result<_>>()?;
            add.push(which, side.calls(case, "ADD", &pods, document)?);
            del.push(which, side.calls(case, "DEL", &pods, document)?);
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
    let case = Case { chain: Chain::Bridge, masquerade: false };
    let pod = Pod { netns: Netns::create()?, id: "version".to_owned() };
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
    let theirs = reference.command(case, "VERSION", &pod)?;
    others.push(("VERSION beside the reference, ms".to_owned(), theirs, Goal::None));
    let mut ours = ours.command(case, "VERSION", &pod)?;
    let mut samples = Samples::default();
    let mut beside = vec![Samples::default(); others.len()];
    for _ in 0..rounds {
        samples.0.push(ms(timed(&mut ours, document)?));
        for ((_, command, _), samples) in others.iter_mut().zip(&mut beside) {
            samples.0.push(ms(timed(command, document)?));
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
    let mut chains = vec![Chain::Bridge];
    match options.flannel {
        Some(_) => chains.push(Chain::Flannel),
        None => table
            .skipped
            .push("chain that begins with flannel's own plugin: name it with --flannel".to_owned()),
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
    Ok(table)
}
