//! Leases of all nodes: snapshots, what changed between two, who may be believed, and a free subnet.

use std::collections::BTreeMap;

use model::claims::{doubles, judge::Judge};
use model::peers::Change;
use model::{Lease, Peers, Subnets, pool};

use crate::cluster::{Cluster, conf, lease, leases};
use crate::{Row, Work};

const SIZES: &[usize] = &[100, 1_000, 10_000];

pub const ROWS: &[Row] = &[
    Row { what: "model/peers/reset", sizes: SIZES, gives: |n| n, make: reset },
    // A list that says nothing new.
    Row { what: "model/peers/again", sizes: SIZES, gives: |_| 0, make: again },
    Row { what: "model/peers/one-changes", sizes: SIZES, gives: |_| 1, make: one_changes },
    Row { what: "model/claims/all", sizes: SIZES, gives: |n| n, make: judged },
    Row { what: "model/claims/one", sizes: SIZES, gives: |_| 1, make: judged_one },
    // Two of the many say the same, so that all are judged once more.
    Row { what: "model/claims/overlap", sizes: &[10_000], gives: |n| n - 1, make: overlapping },
    Row { what: "model/doubles", sizes: SIZES, gives: |_| 1, make: doubled },
    Row { what: "model/pool/pick", sizes: SIZES, gives: |_| 1, make: picked },
];

fn reset(size: usize) -> Work {
    let leases = leases(size);
    Box::new(move || {
        let mut peers = Peers::default();
        peers.reset(leases.iter().cloned());
        peers.len()
    })
}

fn again(size: usize) -> Work {
    let leases = leases(size);
    let mut peers = Peers::default();
    peers.reset(leases.iter().cloned());
    Box::new(move || peers.reset(leases.iter().cloned()).into())
}

/// Says one thing and the other of the node in the middle, in turns.
pub fn in_turns(kind: &str, size: usize) -> impl FnMut() -> Change {
    let mut said = [1, 0].map(|change| lease(kind, size / 2, change));
    move || {
        said.swap(0, 1);
        Change::Put(said[1].clone())
    }
}

fn one_changes(size: usize) -> Work {
    let Cluster { mut peers, .. } = Cluster::of("vxlan", size);
    let mut next = in_turns("vxlan", size);
    Box::new(move || {
        let before = peers.clone();
        peers.apply(next());
        peers.changes(&before).len()
    })
}

fn judged(size: usize) -> Work {
    let Cluster { conf, facts, own, peers, .. } = Cluster::of("vxlan", size);
    Box::new(move || Judge::default().judge(&conf, &own, &facts.local, &peers).len())
}

fn judged_one(size: usize) -> Work {
    let Cluster { conf, facts, own, mut peers, .. } = Cluster::of("vxlan", size);
    let (mut judge, mut next) = (Judge::default(), in_turns("vxlan", size));
    judge.judge(&conf, &own, &facts.local, &peers);
    Box::new(move || {
        peers.apply(next());
        judge.judge(&conf, &own, &facts.local, &peers).len()
    })
}

fn overlapping(size: usize) -> Work {
    let Cluster { conf, facts, own, mut peers, .. } = Cluster::of("vxlan", size - 1);
    let mut wider = lease("vxlan", size / 2, 7);
    wider.subnets.v4 = wider.subnets.v4.and_then(|net| net.supernet());
    peers.apply(Change::Put(wider));
    Box::new(move || {
        let mut judge = Judge::default();
        judge.judge(&conf, &own, &facts.local, &peers);
        judge.accepted().len()
    })
}

/// The last node was cloned from the first.
fn doubled(size: usize) -> Work {
    let mut leases = leases(size);
    let last = leases.len() - 1;
    leases[last].attrs.backend_data = leases[1].attrs.backend_data.clone();
    let mut peers = Peers::default();
    peers.reset(leases.iter().cloned());
    let own = leases.swap_remove(0);
    Box::new(move || doubles::find(Some(&own), &peers).len())
}

fn picked(size: usize) -> Work {
    let conf = conf("vxlan");
    let taken: BTreeMap<Subnets, Lease> = leases(size).into_iter().map(|l| (l.subnets, l)).collect();
    let mut turn = 0u64;
    Box::new(move || {
        let mut random = || {
            turn = turn.wrapping_add(0x9e37_79b9_7f4a_7c15);
            turn
        };
        let picked = pool::pick(&conf, taken.keys(), &mut random);
        picked.is_ok_and(|subnets| !taken.contains_key(&subnets)).into()
    })
}
