//! What the agent counts, as Prometheus reads it (text format 0.0.4; names by the naming rules: prefix, base
//! units, `_total` for counters, no label with an unbounded number of values). Pure: [`Counts`] is filled by
//! the loop, [`Surroundings`] is read when somebody asks ([`read`]), [`page`] makes the text.
//!
//! Labels never name a peer or a pod: a cluster has thousands of them, and `loden status` tells of each.

pub mod read;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::board::Troubles;
use crate::inputs::Inputs;
use crate::probe;
use crate::reconcile::Report;
use crate::reconcile::drift::Cause;
use text::{Page, label};

/// What a family is, as in the line `# TYPE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, until the process ends.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Observations in buckets.
    Histogram,
}

/// A name, and what stands under it.
#[derive(Debug)]
pub struct Family {
    /// The name without `_bucket`, `_sum`, `_count`.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// One sentence.
    pub help: &'static str,
}

macro_rules! families {
    ($($id:ident = $name:literal $kind:ident $help:literal;)*) => {
        $(const $id: Family = Family { name: $name, kind: Kind::$kind, help: $help };)*
        /// Every family there can be, in the order of the page.
        #[cfg(test)]
        pub const FAMILIES: &[&Family] = &[$(&$id),*];
    };
}

families! {
    BUILD = "loden_build_info" Gauge "Always 1; the label tells the version.";
    READY = "loden_ready" Gauge "Whether pods of this node can be reached and reach others, as /readyz says.";
    PEERS = "loden_peers" Gauge "Other nodes by state: programmed in the kernel, or left out because their lease cannot be used.";
    PEER_CHANGES = "loden_peer_changes_total" Counter "Leases of other nodes that came, changed or went.";
    LEASE_END = "loden_lease_expiry_timestamp_seconds" Gauge "When the own lease ends unless it is renewed; absent where leases do not end.";
    LEASE_HELD = "loden_lease_held" Gauge "Whether this node holds a lease that the store has confirmed.";
    HEARD = "loden_store_last_heard_timestamp_seconds" Gauge "When the store last answered or sent something.";
    COMPLETE = "loden_store_complete" Gauge "Whether a complete list of leases has arrived since the start.";
    ROUNDS = "loden_reconcile_duration_seconds" Histogram "Duration of a round of the loop; a full one reads all of the kernel's objects.";
    REPAIRS = "loden_reconcile_repairs_total" Counter "Kernel objects of ours that another program removed, altered or added, and that were put right.";
    EVENTS_LOST = "loden_kernel_events_lost_total" Counter "How often the kernel dropped notifications because more changed at once than the agent read; it reads everything again then.";
    STEPS = "loden_reconcile_steps_total" Counter "Changes made to the kernel, or refused by it.";
    OBJECTS = "loden_kernel_objects" Gauge "Kernel objects this node shall hold.";
    TROUBLES = "loden_troubles" Gauge "What is wrong now, by topic; `loden status` has the sentences.";
    SOURCE_PACKETS = "loden_source_check_dropped_packets_total" Counter "Packets for a tunnel that were dropped because they came from no known node.";
    SOURCE_BYTES = "loden_source_check_dropped_bytes_total" Counter "Bytes of the packets dropped because they came from no known node.";
    PROBE_PEERS = "loden_probe_peers" Gauge "Peers that are probed, by what came of it; anything but ok and unsure means that packets do not arrive.";
    PROBE_PACKETS = "loden_probe_packets_total" Counter "Probes sent through the tunnel and beside it, and whether anything came back.";
    PROBE_RTT = "loden_probe_rtt_seconds" Histogram "Round trip of small probes through the tunnel and beside it.";
    PATH_MTU = "loden_probe_path_mtu_bytes" Gauge "Smallest of the largest packets that passed to each probed peer through the tunnel.";
    CPU = "process_cpu_seconds_total" Counter "Processor time used by the agent, in user and kernel mode.";
    RESIDENT = "process_resident_memory_bytes" Gauge "Memory of the agent that is in RAM.";
    VIRTUAL = "process_virtual_memory_bytes" Gauge "Address space of the agent.";
    FDS = "process_open_fds" Gauge "Open file descriptors of the agent.";
    MAX_FDS = "process_max_fds" Gauge "How many file descriptors the agent may have.";
    START = "process_start_time_seconds" Gauge "When the agent started, in seconds since 1970.";
}

/// Upper limits of the buckets in seconds: a round without news takes well under a millisecond, one of ten
/// thousand peers a few hundred.
const LIMITS: [f64; 12] = [0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 0.5, 1.0, 5.0];

/// Durations in buckets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Each with those up to its limit and above the one before; the last without a limit.
    buckets: [u64; LIMITS.len() + 1],
    sum: f64,
}

impl Histogram {
    /// One more.
    pub fn observe(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        let at = LIMITS.iter().position(|limit| seconds <= *limit).unwrap_or(LIMITS.len());
        self.buckets[at] += 1;
        self.sum += seconds;
    }
}

/// What the loop has counted since the agent started.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    full: Histogram,
    partial: Histogram,
    repairs: BTreeMap<(&'static str, Cause), u64>,
    events_lost: u64,
    done: u64,
    failed: u64,
    peer_changes: u64,
    peers: usize,
    left_out: usize,
    objects: usize,
    held: bool,
    complete: bool,
    heard: store::Heard,
    /// End of the lease, by `clock::uptime`.
    ends: Option<Duration>,
}

impl Counts {
    /// A round.
    pub fn round(&mut self, inputs: &Inputs, report: &Report, took: Duration) {
        if report.full { &mut self.full } else { &mut self.partial }.observe(took);
        for (of, number) in &report.drift {
            *self.repairs.entry(*of).or_default() += *number as u64;
        }
        self.events_lost += inputs.news.lost;
        self.done += report.done.count() as u64;
        self.failed += report.failed as u64;
        self.peer_changes += report.peer_changes as u64;
        self.peers = report.peers;
        self.left_out = report.left_out.len();
        self.objects = report.objects;
        self.held = inputs.own.is_some() && !inputs.recalled.own;
        self.complete = inputs.view.complete;
        self.heard = inputs.heard.clone();
        self.ends = inputs.ends.filter(|_| self.held);
    }
}

impl Counts {
    /// How many peers are in the kernel, and how many are left out.
    pub fn peers(&self) -> (usize, usize) {
        (self.peers, self.left_out)
    }

    /// What others did to objects of ours and was put right: kind, cause, how many.
    pub fn repairs(&self) -> impl Iterator<Item = (&'static str, Cause, u64)> {
        self.repairs.iter().map(|((kind, cause), times)| (*kind, *cause, *times))
    }
}

/// [`Counts`] between the loop, which writes, and whoever asks.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<Counts>);

impl Ledger {
    /// The counts. Held for no longer than a copy takes.
    pub fn open(&self) -> MutexGuard<'_, Counts> {
        // A writer that panicked leaves numbers behind, at worst one of them old.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is read when somebody asks.
#[derive(Clone, Debug, PartialEq)]
pub struct Surroundings {
    /// Wall clock.
    pub now: SystemTime,
    /// `clock::uptime` at that moment.
    pub uptime: Duration,
    /// The process, if `/proc` tells.
    pub process: Option<Process>,
    /// What the source checks dropped, by device and family.
    pub dropped: Vec<Dropped>,
    /// What is known of the paths to peers.
    pub probes: Probes,
}

/// Of the probes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Probes {
    verdicts: BTreeMap<&'static str, u64>,
    packets: [[u64; 2]; 2],
    rtt: [Histogram; 2],
    mtu: Option<u32>,
}

impl Probes {
    /// From what the prober shares.
    pub fn of(inner: &probe::Inner) -> Probes {
        let mut verdicts: BTreeMap<_, _> = probe::Verdict::ALL.iter().map(|v| (v.word(), 0)).collect();
        for finding in inner.findings.values() {
            *verdicts.entry(finding.verdict.word()).or_default() += 1;
        }
        Probes {
            verdicts,
            packets: inner.tally.packets,
            rtt: inner.tally.rtt.clone(),
            mtu: inner.findings.values().filter_map(|finding| finding.mtu).min(),
        }
    }

    fn write(&self, page: &mut Page) {
        for (verdict, number) in &self.verdicts {
            page.one(&PROBE_PEERS, &[label("verdict", *verdict)], *number as f64);
        }
        let ways = ["tunnel", "underlay"];
        for (way, counts) in ways.iter().zip(&self.packets) {
            for (result, number) in ["answered", "lost"].iter().zip(counts) {
                page.one(&PROBE_PACKETS, &[label("way", *way), label("result", *result)], *number as f64);
            }
        }
        for (way, histogram) in ways.iter().zip(&self.rtt) {
            page.histogram(&PROBE_RTT, label("way", *way), histogram);
        }
        if let Some(mtu) = self.mtu {
            page.one(&PATH_MTU, &[], f64::from(mtu));
        }
    }
}

/// The agent's own process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Process {
    /// Seconds of processor time.
    pub cpu_s: f64,
    /// Bytes in RAM.
    pub resident: u64,
    /// Bytes of address space.
    pub virtual_: u64,
    /// Open file descriptors.
    pub fds: u64,
    /// Their limit.
    pub max_fds: u64,
    /// Start in seconds since 1970.
    pub start_s: f64,
}

/// Counter of one source check (decision 0155).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// The tunnel's device.
    pub device: String,
    /// `ip` or `ip6`, of the outer packets.
    pub family: String,
    /// Packets dropped.
    pub packets: u64,
    /// Bytes of them.
    pub bytes: u64,
}

fn unix(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// The page.
pub fn page(counts: &Counts, board: &Troubles, around: &Surroundings) -> String {
    let mut page = Page::default();
    let flag = |set: bool| f64::from(u8::from(set));
    page.one(&BUILD, &[label("version", crate::start::VERSION)], 1.0);
    page.one(&READY, &[], flag(board.ready));
    for (state, number) in [("programmed", counts.peers), ("left_out", counts.left_out)] {
        page.one(&PEERS, &[label("state", state)], number as f64);
    }
    page.one(&PEER_CHANGES, &[], counts.peer_changes as f64);
    if let Some(ends) = counts.ends {
        let left = ends.as_secs_f64() - around.uptime.as_secs_f64();
        page.one(&LEASE_END, &[], unix(around.now) + left);
    }
    page.one(&LEASE_HELD, &[], flag(counts.held));
    if let Some(ago) = counts.heard.ago() {
        page.one(&HEARD, &[], unix(around.now) - ago.as_secs_f64());
    }
    page.one(&COMPLETE, &[], flag(counts.complete));
    for (kind, histogram) in [("full", &counts.full), ("partial", &counts.partial)] {
        page.histogram(&ROUNDS, label("kind", kind), histogram);
    }
    for ((kind, cause), number) in &counts.repairs {
        page.one(&REPAIRS, &[label("kind", *kind), label("cause", cause.word())], *number as f64);
    }
    page.one(&EVENTS_LOST, &[], counts.events_lost as f64);
    for (result, number) in [("done", counts.done), ("failed", counts.failed)] {
        page.one(&STEPS, &[label("result", result)], number as f64);
    }
    page.one(&OBJECTS, &[], counts.objects as f64);
    let mut topics: BTreeMap<&str, u64> = BTreeMap::new();
    for topic in board.troubles.keys() {
        *topics.entry(topic.name()).or_default() += 1;
    }
    for (topic, number) in topics {
        page.one(&TROUBLES, &[label("topic", topic)], number as f64);
    }
    for (family, of) in
        [(&SOURCE_PACKETS, (|d| d.packets) as fn(&Dropped) -> u64), (&SOURCE_BYTES, |d| d.bytes)]
    {
        for dropped in &around.dropped {
            let labels = [label("device", &dropped.device), label("family", &dropped.family)];
            page.one(family, &labels, of(dropped) as f64);
        }
    }
    around.probes.write(&mut page);
    if let Some(process) = &around.process {
        for (family, value) in [
            (&CPU, process.cpu_s),
            (&RESIDENT, process.resident as f64),
            (&VIRTUAL, process.virtual_ as f64),
            (&FDS, process.fds as f64),
            (&MAX_FDS, process.max_fds as f64),
            (&START, process.start_s),
        ] {
            page.one(family, &[], value);
        }
    }
    page.finish()
}
