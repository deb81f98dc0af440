//! Measures the finished programs on this machine, side by side with others, in namespaces of its own.
//!
//! `cargo xtask bench` builds what is measured and runs this. Prints a table per measurement, and JSON into
//! a file if asked; ends with status 1 if a goal is missed.

mod agent;
mod build;
mod cni;
mod figure;
mod kube;
mod leases;
mod machine;
mod memory;
mod size;
mod sys;
mod tunnel;
mod zero;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use figure::Table;
use machine::Machine;

/// Every error here ends one measurement, and is told in its place.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// One table.
type Measurement = fn(&Options) -> Result<Table>;

type Named = (&'static str, Measurement);

const MEASUREMENTS: [Named; 11] = [
    ("cni", cni::run),
    ("crowd", cni::crowd::run),
    ("leases", leases::run),
    ("zero", zero::run),
    ("memory", memory::run),
    ("kube", kube::run),
    ("tunnel", tunnel::run),
    ("wireguard", tunnel::wireguard),
    ("hand", tunnel::hand),
    ("size", size::run),
    ("build", build::run),
];

const USAGE: &str = "\
usage: loden-bench MEASUREMENT... [OPTION]...    (cargo xtask bench builds the programs first)

  cni       plugin calls, beside the reference plugins driven the same way
  crowd     a thousand pods, 64 calls at any moment, beside the kernel's bare requests for the same
  leases    leases from zero into the kernel, beside one request at a time
  zero      an agent from its lease until all peers are in the kernel, beside bare batches of the same
  memory    resident memory, idle time and latency of the agent
  kube      the same with the Nodes of a cluster: 5,000 from a list, then 100 changes a second
  tunnel    the tunnel of the backend udp, beside one packet per system call and kernel VXLAN
  wireguard WireGuard in user space, beside another program's (--wireguard) and our udp in the clear
  hand      vxlan, host-gw and ipip as agents make them, beside the same made by hand
  size      sizes of the programs
  build     time of a clean build, and from an edit to the end of its tests
  all       all of these

  --dist DIR         where loden and loden-cni are (dist)
  --reference DIR    reference plugins (/usr/lib/cni)
  --flannel FILE     flannel's own CNI plugin, to measure the chain that begins with it
  --flanneld FILE    kube: flannel's own agent, to measure beside ours
  --proxy FILE       tunnel: a program that takes WORD DEVICE LISTEN SUBNET PEER and moves one packet per call,
                     instead of ours of flannel's shape
  --wireguard FILE   wireguard: a program that takes -f DEVICE, as wireguard-go does
  --rounds N         how often, instead of each measurement's own number
  --peers N          agent: only with so many peers, instead of 100 and 10000 (kube: 5000)
  --json FILE        write the figures there as well
";

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder of `loden` and `loden-cni`.
    pub dist: PathBuf,
    /// Folder of the reference plugins.
    pub reference: PathBuf,
    /// Flannel's own plugin.
    pub flannel: Option<PathBuf>,
    /// Flannel's own agent.
    pub flanneld: Option<PathBuf>,
    /// A tunnel of one packet per system call.
    pub proxy: Option<PathBuf>,
    /// Another WireGuard in user space.
    pub wireguard: Option<PathBuf>,
    /// How often.
    pub rounds: Option<usize>,
    /// Numbers of peers.
    pub peers: Vec<u32>,
    /// Scratch space; removed at the end.
    pub scratch: PathBuf,
    json: Option<PathBuf>,
}

impl Options {
    /// A fresh folder in the scratch space.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.scratch.join(name);
        fs::create_dir_all(&folder).map_err(|e| format!("make {}: {e}", folder.display()))?;
        Ok(folder)
    }

    /// One of our programs, as an absolute path.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let path = self.dist.join(name);
        fs::canonicalize(&path).map_err(|e| format!("{}: {e}; run `cargo xtask dist`", path.display()).into())
    }
}

fn parse(scratch: &Path) -> std::result::Result<(Vec<Named>, Options), String> {
    let mut options = Options {
        dist: "dist".into(),
        reference: "/usr/lib/cni".into(),
        flannel: None,
        flanneld: None,
        proxy: None,
        wireguard: None,
        rounds: None,
        peers: vec![100, 10_000],
        scratch: scratch.to_owned(),
        json: None,
    };
    let mut chosen = Vec::new();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let known = MEASUREMENTS.into_iter().filter(|(name, _)| *name == word || word == "all");
        let found: Vec<_> = known.collect();
        if !found.is_empty() {
            chosen.extend(found);
            continue;
        }
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        let number = |text: String| text.parse::<u32>().map_err(|e| format!("{text:?}: {e}"));
        match word.as_str() {
            "--dist" => options.dist = value()?.into(),
            "--reference" => options.reference = value()?.into(),
            "--flannel" => options.flannel = Some(value()?.into()),
            "--flanneld" => options.flanneld = Some(value()?.into()),
            "--proxy" => options.proxy = Some(value()?.into()),
            "--wireguard" => options.wireguard = Some(value()?.into()),
            "--rounds" => options.rounds = Some(number(value()?)? as usize),
            "--peers" => options.peers = vec![number(value()?)?],
            "--json" => options.json = Some(value()?.into()),
            _ => return Err(format!("there is no measurement or option {word:?}")),
        }
    }
    if chosen.is_empty() { Err("no measurement named".to_owned()) } else { Ok((chosen, options)) }
}

/// Writes to standard output; a reader that went away is no failure.
pub fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn main() -> ExitCode {
    // Ourselves once more, as the API server of the measurement `kube`.
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some((first, rest)) = words.split_first()
        && first == kube::SERVER
    {
        let served = apidouble::program::run(rest);
        return served.map_or_else(|why| fail(&why), |()| ExitCode::SUCCESS);
    }
    if let Some((first, rest)) = words.split_first()
        && first == tunnel::PLAIN
    {
        return tunnel::plain(rest).map_or_else(|why| fail(&why.to_string()), |()| ExitCode::SUCCESS);
    }
    match measure() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => fail(&error.to_string()),
    }
}

fn fail(why: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "loden-bench: {why}");
    ExitCode::from(2)
}

/// Gives whether all goals are reached.
fn measure() -> Result<bool> {
    let scratch = tempfile::Builder::new().prefix("loden-bench-").tempdir()?;
    let (chosen, options) = parse(scratch.path()).map_err(|error| format!("{error}\n\n{USAGE}"))?;
    let path = scratch.path().to_owned();
    sys::on_interrupt(move || {
        // What we started dies with us.
        let _ = fs::remove_dir_all(path);
        std::process::exit(130);
    })?;
    let machine = Machine::here();
    say(&format!("{}\nload averages at the start: {}\n", machine.text(), machine::load()));
    let mut tables = Vec::new();
    let mut failed = false;
    for (name, measurement) in chosen {
        match measurement(&options) {
            Ok(table) => {
                say(&table.text());
                tables.push(table);
            }
            Err(error) => {
                failed = true;
                say(&format!("\n{name}: {error}\n"));
            }
        }
    }
    let busy = machine.busy() * 100.0;
    say(&format!(
        "\nload averages at the end: {}; processor in use meanwhile: {busy:.0} %\n",
        machine::load()
    ));
    if let Some(file) = &options.json {
        let tables: Vec<_> = tables.iter().map(Table::json).collect();
        let text = serde_json::to_string_pretty(
            &serde_json::json!({ "machine": machine.json(), "tables": tables }),
        )?;
        fs::write(file, text + "\n").map_err(|e| format!("write {}: {e}", file.display()))?;
    }
    let missed = tables.iter().flat_map(|t| &t.figures).any(|f| f.reached() == Some(false));
    Ok(!failed && !missed)
}
