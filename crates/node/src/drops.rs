//! Which packets this host drops, where and why: records of the kernel ([`fastpath::drops`]), put together by reason,
//! device and flow, with what usually causes it and what mends it. Pure, but for reading files in [`symbols`].

pub mod owner;
pub mod reasons;
pub mod show;
pub mod symbols;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;

use fastpath::drops::Dropped;
use ipnet::IpNet;

use crate::capture::filter::Ports;
use crate::capture::packet::{self, Packet, Wrap};
use crate::probe::run::PORT;
use owner::Hook;
use reasons::Class;

/// Groups that are told apart; packets of others are counted together.
pub const MOST: usize = 1024;

/// What a namespace is to us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// `host`, or the address of a pod.
    pub name: String,
    /// The file of its namespace, if it is a pod's.
    pub netns: Option<String>,
    /// What a runtime calls the pod, as `namespace/name`.
    pub pod: Option<String>,
}

/// What is known of the host when a record comes.
#[derive(Clone, Debug, Default)]
pub struct Scene {
    /// Namespaces by inode number.
    pub places: BTreeMap<u32, Place>,
    /// Networks of pods.
    pub networks: Vec<IpNet>,
    /// Devices of the host that only carry packets of pods: bridges, veths, tunnels.
    pub devices: Vec<String>,
    /// Ports that mean a tunnel.
    pub ports: Ports,
    /// The kernel's names of reasons.
    pub reasons: BTreeMap<u32, String>,
}

impl Scene {
    /// The file of the namespace that a group's packets were dropped in, if it is a pod's.
    pub fn netns_of(&self, group: &Group) -> Option<&str> {
        self.place_of(group)?.netns.as_deref()
    }

    /// What a runtime calls the pod that a group's packets were dropped in.
    pub fn pod_of(&self, group: &Group) -> Option<&str> {
        self.place_of(group)?.pod.as_deref()
    }

    fn place_of(&self, group: &Group) -> Option<&Place> {
        self.places.values().find(|place| place.name == group.place)
    }
}

/// What is the same for all packets of a line.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    /// The kernel's name of the reason.
    pub reason: String,
    /// Where: `host`, or the address of a pod.
    pub place: String,
    /// Device; empty if it had none yet.
    pub device: String,
    /// Source and destination of the innermost packet.
    pub flow: Option<(IpAddr, IpAddr)>,
    /// Protocol, and the port of the service where there are ports.
    pub what: String,
    /// What is around it.
    pub wraps: String,
    /// The netfilter hook it was at.
    pub hook: Option<Hook>,
    /// The function that gave it up; empty if the kernel hides its symbols.
    pub function: String,
}

/// How many, and when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Those of them that were told already.
    pub told: u64,
    /// Bytes of the longest.
    pub longest: u32,
}

/// Lines that grow.
#[derive(Debug, Default)]
pub struct Groups {
    all: BTreeMap<Group, Count>,
    /// Packets of further groups.
    pub others: u64,
}

impl Groups {
    /// Counts a packet.
    pub fn add(&mut self, group: Group, bytes: u32) {
        if self.all.len() >= MOST && !self.all.contains_key(&group) {
            self.others += 1;
            return;
        }
        let count = self.all.entry(group).or_default();
        count.packets += 1;
        count.longest = count.longest.max(bytes);
    }

    /// All, the gravest first, then the most.
    pub fn sorted(&self) -> Vec<(&Group, Count)> {
        let mut all: Vec<(&Group, Count)> = self.all.iter().map(|(group, count)| (group, *count)).collect();
        all.sort_by_key(|(group, count)| (reasons::class(&group.reason), std::cmp::Reverse(count.packets)));
        all
    }

    /// Those that grew since this was asked last.
    pub fn news(&mut self) -> Vec<(Group, Count)> {
        let grown = self.all.iter_mut().filter(|(_, count)| count.packets > count.told);
        grown
            .map(|(group, count)| {
                let now = *count;
                count.told = count.packets;
                (group.clone(), now)
            })
            .collect()
    }
}

/// The line a record belongs to; `None` if nobody asked for it. `stack` are the names of the functions, the nearest
/// first; `all` wants everything.
pub fn group(record: &Dropped, stack: &[&str], scene: &Scene, all: bool) -> Option<Group> {
    let place = scene.places.get(&record.netns)?;
    let reason = scene.reasons.get(&record.reason).cloned();
    let reason = reason.unwrap_or_else(|| format!("reason {}", record.reason));
    let packet = packet::innermost(&record.head, &scene.ports)
        .or_else(|| packet::innermost(record.head.get(14..)?, &scene.ports));
    if !all && !concerns(record, &reason, packet.as_ref(), place, scene) {
        return None;
    }
    let hook = (reason == "NETFILTER_DROP").then(|| owner::hook(stack)).flatten();
    let wraps: Vec<String> =
        packet.iter().flat_map(|packet| packet.wraps.iter().map(Wrap::to_string)).collect();
    Some(Group {
        reason,
        place: place.name.clone(),
        device: record.device.1.clone(),
        flow: packet.as_ref().map(|packet| (packet.from, packet.to)),
        what: packet.as_ref().map_or_else(|| format!("EtherType {:#06x}", record.protocol), what),
        wraps: wraps.join(", "),
        hook,
        function: stack.first().map(|name| (*name).to_owned()).unwrap_or_default(),
    })
}

/// Whether it is a loss that pods can notice.
fn concerns(record: &Dropped, reason: &str, packet: Option<&Packet>, place: &Place, scene: &Scene) -> bool {
    if reasons::class(reason) == Class::NoLoss || record.device.1 == "lo" {
        return false;
    }
    let Some(packet) = packet else { return false };
    if reason == "NO_SOCKET" && answers_itself(packet) || !is_unicast(packet.to) {
        return false;
    }
    let of_pods = |address: IpAddr| scene.networks.iter().any(|net| net.contains(&address));
    place.netns.is_some()
        || !packet.wraps.is_empty()
        || of_pods(packet.from)
        || of_pods(packet.to)
        || scene.devices.contains(&record.device.1)
}

/// What is dropped for want of a socket and did what it was for all the same: `ping` reads answers from a raw socket,
/// which got its copy, and probes of agents and traceroute ask for nothing but the refusal.
fn answers_itself(packet: &Packet) -> bool {
    let probe = |(_, to)| to == PORT || to == PORT + 1;
    matches!(packet.protocol, 1 | 58) || packet.protocol == 17 && packet.ports.is_some_and(probe)
}

/// To one host beyond this link.
fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => !a.is_multicast() && !a.is_broadcast() && !a.is_link_local(),
        IpAddr::V6(a) => !a.is_multicast() && !a.is_unicast_link_local(),
    }
}

/// Ports of connections are all different: the lower one is the service's.
fn what(packet: &Packet) -> String {
    let name = match packet.protocol {
        1 | 58 => return packet.what.split(" seq ").next().unwrap_or_default().to_owned(),
        6 => "tcp",
        17 => "udp",
        132 => "sctp",
        other => return format!("protocol {other}"),
    };
    match packet.ports {
        Some((from, to)) => format!("{name} port {}", from.min(to)),
        None => name.to_owned(),
    }
}
