//! What probes found, for people: from the prober's board to [`Probes`].

use std::collections::BTreeMap;
use std::sync::Arc;

use model::Subnets;

use super::{Path, Probes};
use crate::probe::run::STALE;
use crate::probe::{Board, Finding, Inner, Plan, mesh};

/// What is known now. What was found long ago is not.
pub fn gather(board: &Board, names: &BTreeMap<Subnets, Box<str>>) -> Probes {
    let inner = board.open();
    let own = inner.plan.as_ref().and_then(|plan| Some(plan.own.as_ref()?.subnets));
    let others = |plan: &Arc<Plan>| plan.others().filter(|peer| Some(peer.subnets) != own).count();
    let unknown = inner.plan.as_ref().filter(|plan| !mesh::knows(plan.kind));
    let unknown =
        unknown.map(|plan| format!("no address of the backend {} answers the host itself", plan.kind));
    let fresh = inner.findings.values().filter(|finding| finding.last.elapsed() < STALE);
    let mut paths: Vec<Path> = fresh.map(|finding| path(&inner, finding, names)).collect();
    paths.sort_by_key(|path| !path.bad);
    Probes {
        off: inner.off.clone().or(unknown),
        nodes: inner.plan.as_ref().map_or(0, |plan| u32::try_from(others(plan)).unwrap_or(u32::MAX)),
        paths,
    }
}

/// What is known of one.
pub fn path(inner: &Inner, finding: &Finding, names: &BTreeMap<Subnets, Box<str>>) -> Path {
    let echoes = inner.echoes.get(&finding.target.net).copied().unwrap_or_default();
    let whole = |number: u128| u64::try_from(number).unwrap_or(u64::MAX);
    Path {
        node: names.get(&finding.target.subnets).map(|name| name.to_string()),
        subnet: finding.target.net.to_string(),
        inner: finding.target.inner.to_string(),
        public: finding.target.public.to_string(),
        verdict: finding.verdict.word().to_owned(),
        text: finding.text.clone(),
        bad: finding.verdict.is_bad(),
        rtt_us: finding.rtt.map(|rtt| whole(rtt.as_micros())),
        mtu: finding.mtu,
        ago_ms: whole(finding.last.elapsed().as_millis()),
        echoes: echoes.sent,
        lost: echoes.lost(),
    }
}
