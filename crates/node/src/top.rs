//! One look at a node: how it is, its peers, pods and devices, with counters and, after a second look, rates. What
//! `loden top` draws ([`frame`]) and prints ([`json`]), and the agent's web page shows. Pure, but for [`collect`], which
//! reads, and [`screen`], which draws (decision 0195).

pub mod collect;
pub mod frame;
pub mod json;
pub mod screen;
#[cfg(test)]
mod tests;
pub mod view;

use std::collections::BTreeMap;

use crate::status::{Path, Status};

/// Version of the JSON.
pub const VERSION: u32 = 1;

/// One look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// When, in milliseconds of a clock that nobody sets.
    pub at_ms: u64,
    /// The host's name.
    pub host: String,
    /// What the agent says, or the kernel alone.
    pub status: Status,
    /// Milliseconds since the kernel's objects were compared with what is wanted.
    pub compared_ms: Option<u64>,
    /// Other nodes.
    pub peers: Vec<Peer>,
    /// What others did to kernel objects of ours and was put right, since the agent started.
    pub repairs: Vec<Repair>,
    /// Pods of this host.
    pub pods: Vec<Pod>,
    /// Devices of this host, but those of pods.
    pub devices: Vec<Device>,
}

/// Another node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Its name, where the registry has names.
    pub node: Option<String>,
    /// Its subnets.
    pub subnets: Vec<String>,
    /// Its addresses between hosts.
    pub public: Vec<String>,
    /// Its backend.
    pub backend: String,
    /// Why it is not programmed.
    pub left_out: Option<String>,
    /// What probes found, one for each family; empty before the first.
    pub paths: Vec<Path>,
    /// What came from it and went there, where the kernel counts that by peer: WireGuard does, in bytes alone.
    pub traffic: Option<Traffic>,
}

/// Repairs of one kind of object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repair {
    /// Kind of object, such as `route`.
    pub kind: String,
    /// `missing`, `altered` or `added`.
    pub cause: String,
    /// How often, since the agent started.
    pub times: u64,
    /// How often since the look before.
    pub new: u64,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// What a runtime calls it, as `namespace/name`.
    pub pod: Option<String>,
    /// The host's end of its veth.
    pub device: String,
    /// The bridge it is on.
    pub bridge: Option<String>,
    /// Its addresses, as far as they are known.
    pub addresses: Vec<String>,
    /// What the pod received and sent: the host's end sees it the other way round.
    pub traffic: Traffic,
}

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its kind, such as `vxlan`; empty for a network card.
    pub kind: String,
    /// What it is for: `hosts` (traffic between hosts), `tunnel`, `pods` (a bridge), or empty.
    pub role: String,
    /// It is up.
    pub up: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// What it received and sent.
    pub traffic: Traffic,
}

/// Counters and rates of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Since the device was made.
    pub counters: Counters,
    /// Each second, between two looks; `None` at the first, or when the device was made anew.
    pub rates: Option<Rates>,
}

/// Counters of a device; packets and bytes as the kernel counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets received.
    pub in_packets: u64,
    /// Bytes received.
    pub in_bytes: u64,
    /// Packets sent.
    pub out_packets: u64,
    /// Bytes sent.
    pub out_bytes: u64,
    /// Packets dropped in both directions.
    pub dropped: u64,
    /// Errors in both directions.
    pub errors: u64,
}

/// The same, each second, rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Packets received.
    pub in_packets: u64,
    /// Bytes received.
    pub in_bytes: u64,
    /// Packets sent.
    pub out_packets: u64,
    /// Bytes sent.
    pub out_bytes: u64,
    /// Packets dropped in both directions.
    pub dropped: u64,
}

impl Counters {
    /// Seen from the other end.
    pub fn turned(self) -> Counters {
        Counters {
            in_packets: self.out_packets,
            in_bytes: self.out_bytes,
            out_packets: self.in_packets,
            out_bytes: self.in_bytes,
            ..self
        }
    }

    /// What happened each second since; nothing where a counter went back.
    fn since(&self, before: &Counters, ms: u64) -> Option<Rates> {
        // Rounded: half of a packet is none.
        let each =
            |now: u64, before: u64| Some((now.checked_sub(before)?.saturating_mul(1000) + ms / 2) / ms);
        if ms == 0 {
            return None;
        }
        Some(Rates {
            in_packets: each(self.in_packets, before.in_packets)?,
            in_bytes: each(self.in_bytes, before.in_bytes)?,
            out_packets: each(self.out_packets, before.out_packets)?,
            out_bytes: each(self.out_bytes, before.out_bytes)?,
            dropped: each(self.dropped, before.dropped)?,
        })
    }
}

impl Rates {
    /// Bytes in both directions.
    pub fn bytes(&self) -> u64 {
        self.in_bytes + self.out_bytes
    }
}

impl Sample {
    /// Fills in what takes two looks.
    pub fn compare(&mut self, before: &Sample) {
        let ms = self.at_ms.saturating_sub(before.at_ms);
        let pods: BTreeMap<&str, &Pod> = before.pods.iter().map(|pod| (pod.device.as_str(), pod)).collect();
        for pod in &mut self.pods {
            let known = pods.get(pod.device.as_str());
            pod.traffic.rates = known.and_then(|old| pod.traffic.counters.since(&old.traffic.counters, ms));
        }
        for device in &mut self.devices {
            let known = before.devices.iter().find(|old| old.name == device.name);
            device.traffic.rates =
                known.and_then(|old| device.traffic.counters.since(&old.traffic.counters, ms));
        }
        let peers: BTreeMap<&[String], &Peer> =
            before.peers.iter().map(|peer| (peer.subnets.as_slice(), peer)).collect();
        for peer in &mut self.peers {
            let Some(traffic) = &mut peer.traffic else { continue };
            let known = peers.get(peer.subnets.as_slice()).and_then(|old| old.traffic.as_ref());
            traffic.rates = known.and_then(|old| traffic.counters.since(&old.counters, ms));
        }
        // Another agent, or one that was started anew, counts from the beginning.
        let agent =
            |sample: &Sample| sample.status.agent.as_ref().map(|agent| (agent.pid, agent.version.clone()));
        let same = agent(self).is_some() && agent(self) == agent(before);
        for repair in &mut self.repairs {
            let is = |old: &&Repair| (&old.kind, &old.cause) == (&repair.kind, &repair.cause);
            let old = before.repairs.iter().find(is).map_or(0, |old| old.times);
            repair.new = if same { repair.times.saturating_sub(old) } else { 0 };
        }
    }

    /// Why this is not all there is to know; `None` where an agent answered.
    pub fn partial(&self) -> Option<&str> {
        self.status.silent.as_deref().or(self.status.agent.is_none().then_some("no agent answers"))
    }
}

/// How a peer is, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Packets do not arrive, or it is not programmed.
    Bad,
    /// It was not probed, or nothing there answers yet.
    Unknown,
    /// It was well when it was probed last, which is long ago.
    Stale,
    /// Packets come back.
    Good,
}

impl State {
    /// The word in the JSON.
    pub fn word(self) -> &'static str {
        match self {
            State::Bad => "bad",
            State::Unknown => "unknown",
            State::Stale => "stale",
            State::Good => "good",
        }
    }
}

impl Pod {
    /// What a runtime calls it, else what it is reached by.
    pub fn name(&self) -> String {
        self.pod.clone().unwrap_or_else(|| self.reached_by())
    }

    /// Addresses, else its device.
    pub fn reached_by(&self) -> String {
        if self.addresses.is_empty() { self.device.clone() } else { self.addresses.join(" ") }
    }
}

/// A finding of a probe is old after so long; there is no need to probe everybody more often in a large cluster.
const OLD_MS: u64 = crate::probe::run::STALE.as_millis() as u64;

impl Peer {
    /// The worst of its paths.
    pub fn state(&self) -> State {
        if self.left_out.is_some() {
            return State::Bad;
        }
        let of = |path: &Path| match (path.bad, path.rtt_us, path.ago_ms > OLD_MS) {
            (true, _, false) => State::Bad,
            (false, Some(_), false) => State::Good,
            (false, Some(_), true) => State::Stale,
            _ => State::Unknown,
        };
        self.paths.iter().map(of).min().unwrap_or(State::Unknown)
    }

    /// Round trip of the slowest path.
    pub fn rtt_us(&self) -> Option<u64> {
        self.paths.iter().filter_map(|path| path.rtt_us).max()
    }

    /// Echoes lost of those remembered, of the worst path.
    pub fn loss(&self) -> Option<(u32, u32)> {
        let sent = self.paths.iter().filter(|path| path.echoes > 0);
        sent.map(|path| (path.lost, path.echoes))
            .max_by(|a, b| (u64::from(a.0) * u64::from(b.1)).cmp(&(u64::from(b.0) * u64::from(a.1))))
    }

    /// The same in millionths.
    pub fn loss_share(&self) -> Option<u32> {
        self.loss().map(|(lost, sent)| lost * 1_000_000 / sent)
    }

    /// Largest packet in bytes that passed on each path.
    pub fn mtu(&self) -> Option<u32> {
        self.paths.iter().filter_map(|path| path.mtu).min()
    }

    /// Name, else subnets.
    pub fn name(&self) -> String {
        self.node.clone().unwrap_or_else(|| self.subnets.join(" "))
    }
}
