//! The thread that holds the fast path: loads it, ties it to devices, voids flows, counts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastpath::layout::{Config, Format, Tunnel, Tunnel6};
use fastpath::{BUILT, Pins, Role};
use kernel::ethtool;
use kernel::link::LinkInfo;
use kernel::rtnl::{AddrInfo, Rtnl};
use model::{FastPath, IfName, IpNet};
use plan::backend::is_our_link;
use plan::rules;
use plan::state::LinkKind;

use super::{Shown, Slot, Wish, lock, ports};
use crate::board::{Board, Topic};
use crate::inputs::{Inbox, News};
use crate::status;

/// Directions of connections remembered at most, 176 bytes each and 200 in IPv6, unless `LODEN_FASTPATH_FLOWS` says another number.
const FLOWS: u32 = 32_768;
/// How long a flow is believed without asking the slow path: what nobody tells of takes effect within this
/// (decision 0215).
const LIFETIME: Duration = Duration::from_secs(1);
/// How long the programs go on without an agent.
const ALIVE: Duration = Duration::from_secs(30);
/// How often they are told that there is one, and looked after.
const BEAT: Duration = Duration::from_secs(5);
/// Distance of tries after a failure.
const AGAIN: Duration = Duration::from_secs(30);
/// How long the loop may take for what it is asked before that is worth a word.
const ASKING: Duration = Duration::from_secs(2);

/// The thread's memory.
pub struct Worker {
    shown: Shown,
    board: Arc<Board>,
    inbox: Arc<Inbox>,
    wish: Option<Wish>,
    fast: Option<fastpath::FastPath>,
    config: Option<Config>,
    generation: u32,
    /// How many directions are remembered at most.
    flows: u32,
    /// Where programs may be in the driver.
    xdp: ports::Xdp,
    /// Devices that are tied, or cannot be.
    tied: BTreeMap<u32, Result<(), String>>,
    /// What became of taking packets out of frames before the kernel makes trains, and at which device.
    early: Option<(u32, Result<(), String>)>,
    /// When to try again what failed.
    again: Option<Instant>,
    /// When the loop was asked for its part.
    asked: Option<Instant>,
    /// When what is tied was last looked at.
    mended: Option<Instant>,
    swept: bool,
}

/// Where this agent's links are: by namespace and network, since one file system serves all. Where there is IPv4 it is the
/// network of IPv4.
fn pins_name(network: &IpNet) -> String {
    format!("{}{}", pins_prefix(), network.to_string().replace(['.', ':', '/'], "_"))
}

fn pins_prefix() -> String {
    let netns = std::fs::metadata("/proc/thread-self/ns/net").map_or(0, |file| file.ino());
    format!("{netns}-")
}

/// Where links of this host's agents are, of some networks or of all.
pub fn left(networks: &[IpNet]) -> Vec<Pins> {
    let of = |net: &IpNet| Pins::find(&pins_name(net));
    if networks.is_empty() { Pins::all(&pins_prefix()) } else { networks.iter().filter_map(of).collect() }
}

/// Takes away what an agent with a fast path left.
pub fn clear(network: &IpNet) {
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
            flows: FLOWS,
            xdp: ports::Xdp::Off,
            tied: BTreeMap::new(),
            early: None,
            again: None,
            asked: None,
            mended: None,
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
            look |= self.mend();
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

    /// Nobody tells when somebody takes programs from a device (`bpftool link detach`, another agent), the files
    /// that keep them there, or what makes conntrack welcome flows back. Whether a device is to be tied again.
    fn mend(&mut self) -> bool {
        let Some(fast) = &mut self.fast else { return false };
        if self.mended.is_some_and(|at| at.elapsed() < BEAT) {
            return false;
        }
        self.mended = Some(Instant::now());
        if kernel::sysctl::read(rules::LIBERAL).is_ok_and(|now| now != "1") {
            self.inbox.news(|_| News { ours: true, ..News::default() });
        }
        let lost = fast.mend();
        for index in &lost {
            tracing::info!("the fast path's programs are gone from the device with index {index}");
            self.tied.remove(index);
            self.early.take_if(|(at, _)| at == index);
        }
        // What was learnt leads past whatever took their place.
        self.generation = self.generation.wrapping_add(u32::from(!lost.is_empty()));
        !lost.is_empty()
    }

    fn change(&mut self, wish: Option<Wish>) {
        let network = self.wish.as_ref().map(|wish| wish.network);
        if network != wish.as_ref().map(|wish| wish.network) {
            // Untied and gone: nothing of it is left.
            (self.fast, self.config, self.early, self.swept) = (None, None, None, false);
            self.tied.clear();
            network.iter().for_each(clear);
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
    fn is_liberal(&mut self) -> Result<bool, String> {
        let path = rules::LIBERAL;
        let is_set = kernel::sysctl::read(path).map_err(|error| error.to_string())? == "1";
        if !is_set {
            rustix::fs::access(format!("/proc/sys/{path}"), rustix::fs::Access::WRITE_OK)
                .map_err(|error| format!("write 1 to /proc/sys/{path}: {error}"))?;
        }
        if !self.inbox.look(|inputs| inputs.liberal) {
            self.inbox.update(|inputs| inputs.liberal = true);
            self.asked = Some(Instant::now());
            return Ok(false);
        }
        let long_ago = self.asked.is_none_or(|at| at.elapsed() > ASKING);
        if !is_set && long_ago {
            return Err(format!("{path} is not 1 yet; `loden status` says why"));
        }
        Ok(is_set)
    }

    /// Brings devices to what is wanted; false if that has to wait for the loop.
    fn fit(&mut self) -> Result<bool, String> {
        let Some(wish) = self.wish.clone() else { return Ok(true) };
        if self.fast.is_none() {
            if !self.is_liberal()? {
                self.again = Some(Instant::now() + ASKING);
                return Ok(false);
            }
            let pins = match Pins::open(&pins_name(&wish.network)) {
                Ok(pins) => Some(pins),
                Err(error) => {
                    tracing::warn!("{error}; the fast path ends with the agent");
                    None
                }
            };
            let object = object()?;
            (self.flows, self.xdp) = (flows()?, xdp()?);
            let fast =
                fastpath::FastPath::load(&object, self.flows, pins).map_err(|error| error.to_string())?;
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
        let tunnel = tunnel_of(&wish, uplink, &links, &addresses)?;
        let tunnel6 = tunnel6_of(&wish, &links)?;
        self.config = Some(Config {
            alive_until: 0,
            lifetime: LIFETIME.as_nanos() as u64,
            generation: self.generation,
            uplink: uplink.index,
            tunnel,
            network: wish.v4().map(|net| (net.network(), net.prefix_len())),
            network6: wish.v6().map(|net| (net.network(), net.prefix_len())),
            tunnel6,
        });
        let mut wanted: BTreeMap<u32, (IfName, Role)> = BTreeMap::new();
        let mut shaped = BTreeSet::new();
        let qdiscs = rtnl.all_qdiscs().map_err(|error| error.to_string())?;
        for (index, name) in ports::of_pods(&links, &addresses, &wish.networks) {
            match ports::shaped(&qdiscs, index) {
                None => drop(wanted.insert(index, (name, Role::Pod))),
                Some(kind) => drop(shaped.insert(format!("{name} has a {kind}"))),
            }
        }
        wanted.insert(uplink.index, (wish.uplink, Role::Uplink));
        let tunnels = [tunnel.map(|tunnel| tunnel.index), tunnel6.map(|tunnel| tunnel.index)];
        let tunnels = links.iter().filter(|l| tunnels.contains(&Some(l.index)));
        wanted.extend(tunnels.map(|l| (l.index, (l.link.name, Role::Tunnel))));
        self.tie(&wanted);
        let early = self.tie_early(uplink, tunnel.map(|tunnel| tunnel.format));
        let failures: Vec<String> = self.tied.values().filter_map(|tied| tied.clone().err()).collect();
        let refused = matches!(self.early, Some((_, Err(_))));
        self.again = (refused || !failures.is_empty()).then(|| Instant::now() + AGAIN);
        let mut shown = lock(&self.shown);
        shown.devices = wanted
            .iter()
            .filter(|(index, (_, role))| {
                *role != Role::Tunnel && matches!(self.tied.get(index), Some(Ok(())))
            })
            .map(|(_, (name, _))| name.to_string())
            .collect();
        shown.left_out = shaped.into_iter().chain(failures.iter().cloned()).collect();
        shown.early = early;
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
    }

    /// Ties what takes packets out of frames in the uplink's driver, or unties it; says which, if somebody asked for it and the
    /// backend is one for which that is done at all. What cannot be had is no trouble: the programs at the uplink do it, later.
    fn tie_early(&mut self, uplink: &LinkInfo, format: Option<Format>) -> Option<String> {
        let fast = self.fast.as_mut()?;
        // An uplink whose features cannot be read has none.
        let on = ethtool::features(uplink.link.name).unwrap_or_default();
        let wanted =
            ports::early(self.xdp, &uplink.link.kind, uplink.link.mtu.unwrap_or(u32::MAX), format, &on);
        if !matches!(wanted, Some(Ok(()))) || self.early.as_ref().is_some_and(|(at, _)| *at != uplink.index) {
            fast.detach_early();
            self.early = None;
        }
        if matches!(wanted, Some(Ok(()))) && !matches!(self.early, Some((_, Ok(())))) {
            let before = self.early.take();
            let tied = fast.attach(uplink.link.name.as_str(), uplink.index, Role::Early);
            let tied = tied.map_err(|error| error.to_string());
            if tied.is_err() {
                fast.detach_early();
            }
            let tied = Some((uplink.index, tied));
            if let Some((_, Err(why))) = &tied
                && before != tied
            {
                tracing::warn!("take packets out of frames before trains are made: {why}");
            }
            self.early = tied;
        }
        if !std::mem::replace(&mut self.swept, true) {
            fast.sweep();
        }
        Some(match (wanted?, &self.early) {
            (Err(why), _) => format!("off: {why}"),
            (Ok(()), Some((_, Err(why)))) => format!("off: {why}"),
            (Ok(()), _) => format!("on {}", uplink.link.name),
        })
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
            shown.unfinished = counters.unfinished;
            shown.early_frames = counters.early;
            shown.most_flows = self.flows.into();
        }
    }
}

/// The tunnel between nodes as it is now.
fn tunnel_of(
    wish: &Wish,
    uplink: &LinkInfo,
    links: &[LinkInfo],
    addresses: &[AddrInfo],
) -> Result<Option<Tunnel>, String> {
    match wish.tunnel {
        None => Ok(None),
        Some(super::Tunnel::Vxlan(..)) if wish.v4().is_none() => Ok(None),
        Some(super::Tunnel::Vxlan(name, _)) => {
            let link = links.iter().find(|l| l.link.name == name);
            let found = link.and_then(|l| match &l.link.kind {
                LinkKind::Vxlan(v) => match v.local {
                    Some(IpAddr::V4(local)) => {
                        let format = Format::Vxlan { vni: v.vni, sums: sums(name) };
                        Some(Tunnel { index: l.index, format, local, port: v.port })
                    }
                    _ => None,
                },
                _ => None,
            });
            found
                .map(Some)
                .ok_or_else(|| format!("there is no device {name} with an IPv4 address of its own yet"))
        }
        Some(super::Tunnel::Udp(local, port)) => {
            // Another network's tunnel may be on this host, too.
            let inside = |a: &AddrInfo| wish.networks.iter().any(|net| net.contains(&a.net.addr()));
            let ours = |l: &&LinkInfo| {
                is_our_link(&l.link) && addresses.iter().any(|a| a.index == l.index && inside(a))
            };
            let link = links.iter().find(ours).ok_or("the tunnel in user space is not there yet")?;
            let on = ethtool::features(uplink.link.name).map_err(|error| error.to_string())?;
            let bare = ports::hands_on_bare(&uplink.link.kind, &on, || is_virtio(uplink.link.name));
            Ok(Some(Tunnel { index: link.index, format: Format::Udp { bare }, local, port }))
        }
    }
}

/// The tunnel of IPv6, once it is there: until then its packets go the slow way beside those of IPv4.
fn tunnel6_of(wish: &Wish, links: &[LinkInfo]) -> Result<Option<Tunnel6>, String> {
    let (Some(super::Tunnel::Vxlan(_, name)), Some(_)) = (wish.tunnel, wish.v6()) else { return Ok(None) };
    let link = links.iter().find(|l| l.link.name == name);
    let found = link.and_then(|l| match &l.link.kind {
        LinkKind::Vxlan(v) => match v.local {
            Some(IpAddr::V6(local)) => {
                Some(Tunnel6 { index: l.index, vni: v.vni, local, port: v.port, sums: sums(name) })
            }
            _ => None,
        },
        _ => None,
    });
    if found.is_none() && wish.v4().is_none() {
        return Err(format!("there is no device {name} with an IPv6 address of its own yet"));
    }
    Ok(found)
}

/// Whether checksums are computed before packets enter a device of ours, as this agent (decision 0178) or an operator has
/// told it. Where that cannot be read they are, which costs time alone.
fn sums(device: IfName) -> bool {
    !ethtool::features(device).is_ok_and(|on| on.contains(rules::TX_CHECKSUM))
}

/// Whether a device is a virtual machine's way out, as far as this process sees.
fn is_virtio(device: IfName) -> bool {
    let driver = std::fs::read_link(format!("/sys/class/net/{device}/device/driver"));
    driver.is_ok_and(|driver| driver.ends_with("virtio_net"))
}

/// The programs: those of this build, or a file's, with which a refusal of the kernel is tried.
fn object() -> Result<Vec<u8>, String> {
    match std::env::var_os("LODEN_FASTPATH_OBJECT") {
        Some(file) => std::fs::read(&file)
            .map_err(|error| format!("read {}: {error}", std::path::Path::new(&file).display())),
        None => Ok(BUILT.to_vec()),
    }
}

/// How many directions of connections are remembered at most.
fn flows() -> Result<u32, String> {
    let Some(text) = std::env::var_os("LODEN_FASTPATH_FLOWS") else { return Ok(FLOWS) };
    let number = text.to_str().and_then(|text| text.parse().ok());
    // The upper end is 600 MB of the kernel's memory.
    number.filter(|number| (16..=4_194_304).contains(number)).ok_or_else(|| {
        format!("LODEN_FASTPATH_FLOWS={}: write a number from 16 to 4194304", text.to_string_lossy())
    })
}

/// Where programs may be in the driver.
fn xdp() -> Result<ports::Xdp, String> {
    let Some(text) = std::env::var_os("LODEN_FASTPATH_XDP") else { return Ok(ports::Xdp::Off) };
    match text.to_str() {
        Some("off" | "") => Ok(ports::Xdp::Off),
        Some("auto") => Ok(ports::Xdp::Auto),
        Some("on") => Ok(ports::Xdp::On),
        _ => Err(format!("LODEN_FASTPATH_XDP={}: write auto, on or off", text.to_string_lossy())),
    }
}
