//! What a node is like, as one plain value: made by the agent when somebody asks ([`gather`]), sent as
//! JSON through its socket ([`json`]), shown by `loden status` ([`show`]). Without an agent the kernel
//! alone is told of.
//!
//! The JSON has a version; members are added, never renamed or given another meaning. Later parts (round
//! trips to peers, policies, services) get members of their own.

pub mod gather;
pub mod json;
pub mod probed;
pub mod show;
#[cfg(test)]
mod tests;

pub use crate::metrics::Dropped;

/// Version of the JSON.
pub const VERSION: u32 = 1;

/// Everything `loden status` shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The agent that answered; `None` when the kernel alone was asked.
    pub agent: Option<Agent>,
    /// Why there is no agent's answer, in one sentence.
    pub silent: Option<String>,
    /// The node's pods can be reached and reach others, as far as this node's own state tells.
    pub ready: bool,
    /// The registry.
    pub store: Option<Store>,
    /// The own lease.
    pub lease: Option<Lease>,
    /// The interface for traffic between hosts, once it was looked for.
    pub interface: Option<Interface>,
    /// How packets go to other hosts.
    pub backend: Option<Backend>,
    /// The fast path; `None` where it is off.
    pub fast_path: Option<FastPath>,
    /// Other nodes.
    pub peers: Option<Peers>,
    /// What probes of the paths to others came to.
    pub probes: Option<Probes>,
    /// What source checks of tunnels dropped.
    pub dropped: Vec<Dropped>,
    /// The kernel's objects, wanted and actual.
    pub objects: Option<Objects>,
    /// What is wrong or was a short time ago, what is wrong now first.
    pub troubles: Vec<Trouble>,
    /// What the kernel holds of ours, as commands; filled without an agent.
    pub kernel: Vec<String>,
    /// The lines of `subnet.env`; filled without an agent.
    pub subnet_env: Vec<String>,
}

/// The answering process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agent {
    /// Its version.
    pub version: String,
    /// Its process id, in its own namespace.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_s: u64,
}

/// The registry of leases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Store {
    /// Which and where.
    pub name: String,
    /// Milliseconds since it last answered; `None` if it never has, or does not tell.
    pub heard_ms: Option<u64>,
    /// A complete list of leases has arrived.
    pub complete: bool,
}

/// What this node has and tells the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// Its pods' subnets.
    pub subnets: Vec<String>,
    /// Addresses others send to.
    pub public: Vec<String>,
}

/// The interface chosen, or why none was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name; `None` if nothing fits.
    pub name: Option<String>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Addresses used on it.
    pub addresses: Vec<String>,
    /// Addresses advertised.
    pub public: Vec<String>,
    /// Why nothing fits, or why the interface stays although nothing does.
    pub trouble: Option<String>,
    /// What was looked at, in order.
    pub why: Vec<Step>,
    /// What would change the choice.
    pub otherwise: Vec<String>,
}

/// One step of the choice, see `plan::uplink::Step`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// What was looked at.
    pub candidate: String,
    /// Whether it was taken.
    pub taken: bool,
    /// Why it was taken or not.
    pub because: String,
}

/// The backend in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// Its type in the network configuration.
    pub kind: String,
    /// What carries its packets, `kernel` or `user space`, where both can.
    pub carrier: Option<String>,
    /// MTU for pods in bytes.
    pub mtu: u32,
    /// Its devices, as the commands that make them; and an offload that is off because hardware got it wrong.
    pub devices: Vec<String>,
    /// Where its packet rules are, as the commands that show them.
    pub rules: Vec<String>,
}

/// What goes past bridge, netfilter and tunnel device. Packets are counted since the programs were loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FastPath {
    /// Packets take it where they may.
    pub on: bool,
    /// Why not, in one sentence.
    pub why: Option<String>,
    /// Devices with the programs.
    pub devices: Vec<String>,
    /// Devices of pods without, and why.
    pub left_out: Vec<String>,
    /// Directions of connections remembered.
    pub flows: u64,
    /// Packets that took it.
    pub fast_packets: u64,
    /// TCP and UDP packets between pods that took the kernel's own path.
    pub slow_packets: u64,
    /// Times a connection was asked for and was not established, not assured, or had NAT.
    pub untracked: u64,
    /// Packets longer than an MTU on the way.
    pub too_big: u64,
    /// Flows there was no room for.
    pub full: u64,
    /// Packets with the backend udp whose checksum a peer's socket would have got unfinished, or not at all.
    pub unfinished: u64,
    /// With the backend udp and where it was asked for, whether packets are taken out of their frames before the kernel makes
    /// trains (XDP): `on` and the device, or `off:` and why.
    pub early: Option<String>,
    /// Frames that it was done with.
    pub early_frames: u64,
    /// Directions of connections that are remembered at most.
    pub most_flows: u64,
}

/// Other nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// How many are in the kernel.
    pub programmed: u32,
    /// Those that are not, or not wholly.
    pub left_out: Vec<LeftOut>,
}

/// A peer that cannot be reached, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// The node's name, where the registry has names.
    pub node: Option<String>,
    /// Its subnet, or the registry's key of it.
    pub subnets: String,
    /// The reason, in one sentence.
    pub reason: String,
}

/// Probes of the paths to other nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probes {
    /// Why nothing is probed.
    pub off: Option<String>,
    /// Nodes that could be probed.
    pub nodes: u32,
    /// Those that were lately, the bad ones first.
    pub paths: Vec<Path>,
}

/// The path to one other node, in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path {
    /// The node's name, where the registry has names.
    pub node: Option<String>,
    /// Its subnet.
    pub subnet: String,
    /// The address probed through the tunnel.
    pub inner: String,
    /// Its address between hosts.
    pub public: String,
    /// One word: see `probe::Verdict`.
    pub verdict: String,
    /// One sentence.
    pub text: String,
    /// Whether pods suffer by it.
    pub bad: bool,
    /// Round trip through the tunnel in microseconds.
    pub rtt_us: Option<u64>,
    /// Largest packet that passed, in bytes.
    pub mtu: Option<u32>,
    /// Milliseconds since it was found so.
    pub ago_ms: u64,
    /// How many of the last small echoes through the tunnel are remembered, and how many of them were lost.
    pub echoes: u32,
    /// See `echoes`.
    pub lost: u32,
}

/// Wanted against actual.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// Objects the kernel shall hold.
    pub wanted: u32,
    /// Objects of ours it holds.
    pub actual: u32,
    /// What was found different by this look and put right, as commands; the first thousand.
    pub repaired: Vec<String>,
    /// What could not be put right.
    pub differences: Vec<Difference>,
}

/// One difference between wanted and actual.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// The command that would end it.
    pub command: String,
    /// Why it was not done, if it was tried.
    pub reason: Option<String>,
}

/// Something that is or was wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trouble {
    /// One sentence.
    pub text: String,
    /// When it was first found, RFC 3339 in UTC.
    pub first: String,
    /// When it was last found.
    pub last: String,
    /// It is over.
    pub over: bool,
}

/// What the exit status says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// 0
    Healthy,
    /// 1
    Unhealthy,
    /// 2: no agent answered, or whether packets arrive is not known yet.
    Unknown,
}

impl Verdict {
    /// The word in the JSON.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Healthy => "healthy",
            Verdict::Unhealthy => "unhealthy",
            Verdict::Unknown => "unknown",
        }
    }

    /// The exit status.
    pub fn code(self) -> u8 {
        match self {
            Verdict::Healthy => 0,
            Verdict::Unhealthy => 1,
            Verdict::Unknown => 2,
        }
    }
}

impl Status {
    /// What is most in the way of being healthy, in one sentence.
    pub fn reason(&self) -> String {
        let trouble = self.troubles.iter().find(|trouble| !trouble.over).map(|trouble| trouble.text.clone());
        let peer = || {
            let peer = self.peers.as_ref()?.left_out.first()?;
            Some(format!("{} is left out: {}", peer.subnets, peer.reason))
        };
        let path = || {
            let bad = self.probes.as_ref()?.paths.iter().find(|path| path.bad)?;
            Some(format!("{}: {}", bad.subnet, bad.text))
        };
        let difference = || Some(self.objects.as_ref()?.differences.first()?.command.clone());
        let found = self.silent.clone().or(trouble).or_else(peer).or_else(path).or_else(difference);
        found.unwrap_or_else(|| match (self.ready, &self.probes) {
            (false, _) => "the agent is not ready yet".to_owned(),
            (true, Some(Probes { off: Some(off), .. })) => format!("paths are not probed: {off}"),
            (true, Some(Probes { paths, .. })) if !paths.is_empty() => {
                format!("no packet came back from another node yet: {}", paths[0].text)
            }
            (true, _) => "no path has been probed yet".to_owned(),
        })
    }

    /// Healthy is a node that is ready and has nothing wrong with it now, no peer left out included, and whose
    /// packets were seen to come back from another node, if there is one.
    pub fn verdict(&self) -> Verdict {
        if self.agent.is_none() || self.silent.is_some() {
            return Verdict::Unknown;
        }
        let peers = self.peers.as_ref().is_none_or(|peers| peers.left_out.is_empty());
        let objects = self.objects.as_ref().is_none_or(|objects| objects.differences.is_empty());
        let quiet = self.troubles.iter().all(|trouble| trouble.over);
        let paths = self.probes.as_ref().map_or(&[][..], |probes| &probes.paths);
        if !(self.ready && peers && objects && quiet) || paths.iter().any(|path| path.bad) {
            return Verdict::Unhealthy;
        }
        // An older agent tells nothing of probes.
        let programmed = self.peers.as_ref().map_or(0, |peers| peers.programmed);
        let lonely = self.probes.as_ref().map_or(programmed, |probes| probes.nodes) == 0;
        // A path that is not bad may be one where nothing answers yet.
        let seen = paths.iter().any(|path| path.rtt_us.is_some());
        if lonely || seen { Verdict::Healthy } else { Verdict::Unknown }
    }
}
