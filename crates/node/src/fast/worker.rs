//! The thread that holds the fast path: loads it, ties it to devices, voids flows, counts.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastpath::layout::{Config, Vxlan};
use fastpath::{BUILT, Pins, Role};
use kernel::rtnl::Rtnl;
use model::{FastPath, IfName, IpNet, Ipv4Net};
use plan::rules;
use plan::state::LinkKind;

use super::{Shown, Slot, Wish, lock, ports};
use crate::board::{Board, Topic};
use crate::inputs::Inbox;
use crate::status;

/// Directions of connections remembered at most: 136 bytes each.
const FLOWS: u32 = 32_768;
/// How long a flow is believed without asking the slow path: what nobody tells of takes effect within this
/// (decision 0215).
const LIFETIME: Duration = Duration::from_secs(1);
/// How long the programs go on without an agent.
const ALIVE: Duration = Duration::from_secs(30);
/// How often they are told that there is one.
const BEAT: Duration = Duration::from_secs(5);
/// Distance of tries after a failure.
const AGAIN: Duration = Duration::from_secs(30);
/// The thread's memory.
pub struct Worker {
    shown: Shown,
    board: Arc<Board>,
    inbox: Arc<Inbox>,
    wish: Option<Wish>,
    fast: Option<fastpath::FastPath>,
    config: Option<Config>,
    generation: u32,
    /// Devices that are tied, or cannot be.
    tied: BTreeMap<u32, Result<(), String>>,
    /// When to try again what failed.
    again: Option<Instant>,
    swept: bool,
}

/// Where this agent's links are: by namespace and network, since one file system serves all.
fn pins_name(network: Ipv4Net) -> String {
    format!("{}{}", pins_prefix(), network.to_string().replace(['.', '/'], "_"))
}

fn pins_prefix() -> String {
    let netns = std::fs::metadata("/proc/thread-self/ns/net").map_or(0, |file| file.ino());
    format!("{netns}-")
}

/// Where links of this host's agents are, of some networks or of all.
pub fn left(networks: &[IpNet]) -> Vec<Pins> {
    let of = |net: &IpNet| if let IpNet::V4(net) = net { Pins::find(&pins_name(*net)) } else { None };
    if networks.is_empty() { Pins::all(&pins_prefix()) } else { networks.iter().filter_map(of).collect() }
}

/// Takes away what an agent with a fast path left.
pub fn clear(network: Ipv4Net) {
    Pins::find(&pins_name(network)).into_iter().for_each(|pins| pins.clear());
}

impl Worker {
    /// Nothing is done yet.
    pub fn new(shown: Shown, board: Arc<Board>, inbox: Arc<Inbox>) -> Worker {
        Worker {
            shown,
            board,
            inbox,
            wish: None,
            fast: None,
            config: None,
            generation: 0,
            tied: BTreeMap::new(),
            again: None,
            swept: false,
        }
    }

    /// For ever.
    pub fn run(mut self, slot: &Slot) {
        loop {
            let todo = slot.take(BEAT);
            let mut look = todo.look || self.again.is_some_and(|at| at <= Instant::now());
            if let Some(wish) = todo.wish {
                self.change(wish);
                look = true;
            }
            if let Some(done) = todo.count {
                self.count();
                let _ = done.try_send(());
            }
            if todo.void {
                // First of all: what was true may not be so any more.
                self.generation = self.generation.wrapping_add(1);
            }
            self.tell();
            if look && self.wish.is_some() {
                self.again = None;
                match self.fit() {
                    Ok(true) => self.say(None),
                    // The loop tells when it has done its part.
                    Ok(false) => {}
                    Err(trouble) => self.say(Some(trouble)),
                }
                self.tell();
            }
        }
    }

    fn change(&mut self, wish: Option<Wish>) {
        let network = self.wish.as_ref().map(|wish| wish.network);
        if network != wish.as_ref().map(|wish| wish.network) {
            // Untied and gone: nothing of it is left.
            (self.fast, self.config, self.swept) = (None, None, false);
            self.tied.clear();
            network.into_iter().for_each(clear);
        }
        if wish.is_none() {
            // Why is the loop's to say.
            let mut shown = lock(&self.shown);
            *shown = status::FastPath { why: shown.why.take(), ..Default::default() };
        }
        self.wish = wish;
        self.generation = self.generation.wrapping_add(1);
    }

    /// The sentence for people: on the board if it was asked for without ifs.
    fn say(&mut self, trouble: Option<String>) {
        let insisted = self.wish.as_ref().is_some_and(|wish| wish.mode == FastPath::On);
        match &trouble {
            Some(trouble) => {
                self.again = Some(Instant::now() + AGAIN);
                if insisted {
                    self.board.set(Topic::FastPath, format!("{trouble}; packets take the kernel's own path"));
                }
            }
            None => self.board.clear(&Topic::FastPath),
        }
        lock(&self.shown).why = trouble;
        self.count();
    }

    /// Whether conntrack takes packets whose predecessors it has not seen (decision 0218). The loop, which writes the
    /// kernel, is asked to see to it; not where it could not, which is no trouble of the node's.
    fn is_liberal(&self) -> Result<bool, String> {
        let path = rules::LIBERAL;
        let is_set = kernel::sysctl::read(path).map_err(|error| error.to_string())? == "1";
        if !is_set {
            rustix::fs::access(format!("/proc/sys/{path}"), rustix::fs::Access::WRITE_OK)
                .map_err(|error| format!("write 1 to /proc/sys/{path}: {error}"))?;
        }
        let asked = self.inbox.look(|inputs| inputs.liberal);
        if !asked {
            self.inbox.update(|inputs| inputs.liberal = true);
        } else if !is_set {
            return Err(format!("{path} is not 1 yet; `loden status` says why"));
        }
        Ok(asked)
    }

    /// Brings devices to what is wanted; false if that has to wait for the loop.
    fn fit(&mut self) -> Result<bool, String> {
        let Some(wish) = self.wish.clone() else { return Ok(true) };
        if self.fast.is_none() {
            if !self.is_liberal()? {
                return Ok(false);
            }
            let pins = match Pins::open(&pins_name(wish.network)) {
                Ok(pins) => Some(pins),
                Err(error) => {
                    tracing::warn!("{error}; the fast path ends with the agent");
                    None
                }
            };
            let object = object()?;
            let fast = fastpath::FastPath::load(&object, FLOWS, pins).map_err(|error| error.to_string())?;
            self.fast = Some(fast);
            tracing::info!("fast path loaded");
        }
        let mut rtnl = Rtnl::open().map_err(|error| error.to_string())?;
        let links = rtnl.links().map_err(|error| error.to_string())?;
        let addresses = rtnl.addresses(None).map_err(|error| error.to_string())?;
        let uplink = links
            .iter()
            .find(|l| l.link.name == wish.uplink)
            .ok_or_else(|| format!("there is no device {}", wish.uplink))?;
        if uplink.hardware != 1 {
            return Err(format!("{} is not Ethernet", wish.uplink));
        }
        let vxlan = match wish.vxlan {
            None => None,
            Some(name) => {
                let link = links.iter().find(|l| l.link.name == name);
                let found = link.and_then(|l| match &l.link.kind {
                    LinkKind::Vxlan(v) => match v.local {
                        Some(std::net::IpAddr::V4(local)) => {
                            Some(Vxlan { index: l.index, vni: v.vni, local, port: v.port })
                        }
                        _ => None,
                    },
                    _ => None,
                });
                Some(found.ok_or_else(|| {
                    format!("there is no device {name} with an IPv4 address of its own yet")
                })?)
            }
        };
        self.config = Some(Config {
            alive_until: 0,
            lifetime: LIFETIME.as_nanos() as u64,
            generation: self.generation,
            uplink: uplink.index,
            vxlan,
            network: (wish.network.network(), wish.network.prefix_len()),
        });
        let mut wanted: BTreeMap<u32, (IfName, Role)> = BTreeMap::new();
        let mut shaped = BTreeSet::new();
        let qdiscs = rtnl.all_qdiscs().map_err(|error| error.to_string())?;
        for (index, name) in ports::of_pods(&links, &addresses, wish.network) {
            match ports::shaped(&qdiscs, index) {
                None => drop(wanted.insert(index, (name, Role::Pod))),
                Some(kind) => drop(shaped.insert(format!("{name} has a {kind}"))),
            }
        }
        wanted.insert(uplink.index, (wish.uplink, Role::Uplink));
        self.tie(&wanted);
        let failures: Vec<String> = self.tied.values().filter_map(|tied| tied.clone().err()).collect();
        let mut shown = lock(&self.shown);
        shown.devices = wanted
            .iter()
            .filter(|(index, _)| matches!(self.tied.get(index), Some(Ok(()))))
            .map(|(_, (name, _))| name.to_string())
            .collect();
        shown.left_out = shaped.into_iter().chain(failures.iter().cloned()).collect();
        drop(shown);
        match self.tied.get(&uplink.index) {
            Some(Err(failure)) => Err(failure.clone()),
            _ => Ok(true),
        }
    }

    fn tie(&mut self, wanted: &BTreeMap<u32, (IfName, Role)>) {
        let Some(fast) = &mut self.fast else { return };
        let gone: Vec<u32> = fast.attached().filter(|index| !wanted.contains_key(index)).collect();
        // What was learnt while they were being untied leads past whatever took their place.
        self.generation = self.generation.wrapping_add(u32::from(!gone.is_empty()));
        gone.into_iter().for_each(|index| fast.detach(index));
        self.tied.retain(|index, tied| tied.is_ok() && wanted.contains_key(index));
        for (index, (name, role)) in wanted {
            if self.tied.contains_key(index) {
                continue;
            }
            let tied = fast.attach(name.as_str(), *index, *role).map_err(|error| error.to_string());
            self.tied.insert(*index, tied);
        }
        if !std::mem::replace(&mut self.swept, true) {
            fast.sweep();
        }
    }

    /// Heartbeat and generation.
    fn tell(&mut self) {
        let (Some(fast), Some(config)) = (&mut self.fast, &self.config) else { return };
        let alive_until = fastpath::now_ns() + ALIVE.as_nanos() as u64;
        let told = fast.tell(&Config { alive_until, generation: self.generation, ..*config });
        if let Err(error) = told {
            tracing::warn!("{error}");
        }
    }

    fn count(&self) {
        let mut shown = lock(&self.shown);
        shown.on = self.fast.is_some() && shown.why.is_none();
        let Some(fast) = &self.fast else { return };
        if let (Ok(counters), Ok(flows)) = (fast.counters(), fast.flows()) {
            shown.flows = flows as u64;
            shown.fast_packets = counters.fast();
            shown.slow_packets = counters.slow;
            shown.untracked = counters.untracked;
            shown.too_big = counters.too_big;
            shown.full = counters.full;
        }
    }
}

/// The programs: those of this build, or a file's, with which a refusal of the kernel is tried.
fn object() -> Result<Vec<u8>, String> {
    match std::env::var_os("LODEN_FASTPATH_OBJECT") {
        Some(file) => std::fs::read(&file)
            .map_err(|error| format!("read {}: {error}", std::path::Path::new(&file).display())),
        None => Ok(BUILT.to_vec()),
    }
}
