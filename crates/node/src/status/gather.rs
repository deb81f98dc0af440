//! The agent's side: a [`Status`] from what the loop has at hand. Costs nothing until somebody asks, but for
//! the memory of troubles.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model::{Family, IpNet, Subnets};
use plan::State;
use plan::facts::{Addresses, Families};
use plan::state::{LinkKind, Object};
use plan::uplink::Why;

use super::{
    Agent, Backend, Difference, Interface, Lease, LeftOut, Objects, Peers, Status, Step, Store, Trouble,
};
use crate::board::Troubles;
use crate::inputs::Inputs;
use crate::log;
use crate::reconcile::{Picture, Report};

/// Troubles remembered after they are over.
const REMEMBERED: usize = 8;

/// When troubles came and went.
#[derive(Debug, Default)]
pub struct History {
    now: BTreeMap<String, (SystemTime, SystemTime)>,
    over: Vec<(String, SystemTime, SystemTime)>,
}

impl History {
    /// What is wrong at this time; to be told once a round.
    pub fn note(&mut self, troubles: &Troubles, time: SystemTime) {
        if troubles.troubles.is_empty() && self.now.is_empty() {
            return;
        }
        let mut now = BTreeMap::new();
        for trouble in troubles.troubles.values() {
            let first = self.now.remove(&trouble.text).map_or(trouble.since, |(first, _)| first);
            now.insert(trouble.text.clone(), (first, time));
        }
        for (text, (first, last)) in std::mem::replace(&mut self.now, now) {
            self.over.retain(|(known, ..)| *known != text);
            self.over.push((text, first, last));
        }
        let many = self.over.len().saturating_sub(REMEMBERED);
        self.over.drain(..many);
    }

    fn troubles(&self, current: &Troubles) -> Vec<Trouble> {
        // In the board's order: what others may follow from goes first.
        let now = current.troubles.values().map(|trouble| {
            let (first, last) =
                self.now.get(&trouble.text).copied().unwrap_or((trouble.since, trouble.since));
            (&trouble.text, first, last, false)
        });
        let over = self.over.iter().rev().map(|(text, first, last)| (text, *first, *last, true));
        let trouble = |(text, first, last, over): (&String, _, _, _)| Trouble {
            text: text.clone(),
            first: rfc3339(first),
            last: rfc3339(last),
            over,
        };
        now.chain(over).map(trouble).collect()
    }
}

/// Everything, after a round.
pub fn gather(
    inputs: &Inputs,
    report: &Report,
    picture: Picture,
    troubles: &Troubles,
    history: &History,
    uptime: Duration,
) -> Status {
    let agent = Agent {
        version: crate::start::VERSION.to_owned(),
        pid: std::process::id(),
        uptime_s: uptime.as_secs(),
    };
    let store = store(inputs.store.clone(), &inputs.heard, inputs.view.complete);
    let lease = inputs.own.as_ref().map(|own| Lease {
        subnets: own.subnets.nets().map(|net| net.to_string()).collect(),
        public: both(|family| own.attrs.public(family)),
    });
    let devices = picture
        .wanted
        .iter()
        .filter(|(_, object)| matches!(object, Object::Link(_) | Object::Offload { .. }));
    let backend = (!picture.backend.is_empty()).then(|| Backend {
        kind: picture.backend.to_owned(),
        carrier: carrier(&picture.wanted),
        mtu: report.mtu,
        devices: devices.map(|(_, object)| object.to_string()).collect(),
        rules: picture.wanted.iter().filter_map(|(_, object)| shown_by(object)).collect(),
    });
    let difference = |(step, reason): (plan::Step, _)| Difference { command: step.to_string(), reason };
    let objects = backend.is_some().then(|| Objects {
        wanted: count(picture.wanted.len()),
        actual: count(picture.actual),
        repaired: report.done.words().collect(),
        differences: picture.left.into_iter().map(difference).collect(),
    });
    Status {
        agent: Some(agent),
        ready: troubles.ready,
        store: Some(store),
        lease,
        interface: picture.decision.map(interface),
        peers: backend.is_some().then(|| Peers {
            programmed: count(report.peers),
            left_out: left_out(report, &inputs.view.names),
        }),
        backend,
        objects,
        troubles: history.troubles(troubles),
        ..Status::default()
    }
}

/// The registry, now.
pub fn store(name: String, heard: &store::Heard, complete: bool) -> Store {
    let heard_ms = heard.ago().map(|ago| u64::try_from(ago.as_millis()).unwrap_or(u64::MAX));
    Store { name, heard_ms, complete }
}

/// What carries the tunnels, if that differs from host to host.
fn carrier(wanted: &State) -> Option<String> {
    let of = |object: &Object| match object {
        Object::Link(link) => match &link.kind {
            LinkKind::Wireguard(wireguard) => Some(wireguard.carrier.to_string()),
            _ => None,
        },
        _ => None,
    };
    let all: BTreeSet<String> = wanted.iter().filter_map(|(_, object)| of(object)).collect();
    (!all.is_empty()).then(|| all.into_iter().collect::<Vec<_>>().join(" and "))
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn both(of: impl Fn(Family) -> Option<std::net::IpAddr>) -> Vec<String> {
    Families { v4: true, v6: true }.iter().filter_map(of).map(|ip| ip.to_string()).collect()
}

fn interface(decision: Result<plan::uplink::Choice, plan::uplink::Refusal>) -> Interface {
    let steps = |why: &Why| {
        let step = |s: &plan::uplink::Step| Step {
            candidate: s.candidate.to_string(),
            taken: s.taken,
            because: s.because.clone(),
        };
        why.steps.iter().map(step).collect()
    };
    let texts = |addresses: Addresses| both(|family| addresses.of(family));
    match decision {
        Ok(choice) => Interface {
            name: Some(choice.uplink.name.to_string()),
            mtu: choice.uplink.mtu,
            addresses: texts(choice.uplink.addresses),
            public: texts(choice.public),
            trouble: choice.kept,
            why: steps(&choice.why),
            otherwise: choice.why.otherwise,
        },
        Err(refusal) => Interface {
            trouble: Some(refusal.message),
            why: steps(&refusal.why),
            otherwise: refusal.why.otherwise,
            ..Interface::default()
        },
    }
}

/// Reasons are kept by subnet as text, of one family or of both; names by subnets.
fn left_out(report: &Report, names: &BTreeMap<Subnets, Box<str>>) -> Vec<LeftOut> {
    let mut by_text: BTreeMap<String, &str> = BTreeMap::new();
    if !report.left_out.is_empty() {
        for (subnets, name) in names {
            let nets = subnets.nets().map(|net: IpNet| net.to_string());
            by_text.extend(nets.chain([subnets.to_string()]).map(|text| (text, &**name)));
        }
    }
    let peer = |(subnets, reason): (&String, &String)| LeftOut {
        node: by_text.get(subnets).map(|name| (*name).to_owned()),
        subnets: subnets.clone(),
        reason: reason.clone(),
    };
    report.left_out.iter().map(peer).collect()
}

/// RFC 3339 in UTC, whole seconds.
pub fn rfc3339(time: SystemTime) -> String {
    let unix = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (year, month, day) = log::date(unix / 86_400);
    let (hour, minute, second) = (unix / 3_600 % 24, unix / 60 % 60, unix % 60);
    format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// The command that shows a packet rule of ours.
fn shown_by(object: &Object) -> Option<String> {
    match object {
        Object::Nft(table) => Some(format!("nft list table {}", table.key)),
        Object::Iptables(rules) => Some(format!("{} -S {}", rules.key, rules.key.table.chain())),
        _ => None,
    }
}
