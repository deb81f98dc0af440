//! Do packets arrive? A few echoes to a few other nodes, beside the tunnel and through it, small and full
//! ([`run`] sends them), what they show ([`judge`]) and whose turn it is ([`mesh`]). ICMP echo to the address
//! every tunnel device of flannel or Loden has is answered by the kernel there, so no agent has to answer, and
//! peers that run flannel are probed like ours (decision 0203).
//!
//! All but [`run`] is pure.

pub mod judge;
pub mod mesh;
pub mod run;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use model::{Family, IpNet, Lease, Peers, Subnets};

pub use judge::Verdict;

/// What the loop knows of the network, for those who probe it.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Backend's type.
    pub kind: &'static str,
    /// What carries the packets between hosts, such as `UDP port 8472`; empty without a tunnel.
    pub carried_by: String,
    /// The tunnel's device.
    pub device: Option<String>,
    /// Whether this node computes the checksums of what enters the tunnel, for hardware got them wrong (decision 0178);
    /// `None` where that would change nothing.
    pub summed_here: Option<bool>,
    /// MTU in bytes of pods, and of the interface between hosts.
    pub mtu: u32,
    /// See `mtu`.
    pub outer_mtu: u32,
    /// Our own lease.
    pub own: Option<Lease>,
    /// All leases.
    pub peers: Peers,
    /// Subnets that are not programmed.
    pub left_out: BTreeSet<String>,
    /// Addresses of nodes that are reached beside the tunnel, for they are on a common network (DirectRouting).
    pub direct: BTreeSet<IpAddr>,
}

impl Plan {
    /// Nodes that are programmed, and this one.
    pub fn others(&self) -> impl Iterator<Item = &Lease> {
        self.peers.iter().filter(|peer| {
            self.left_out.is_empty()
                || !peer.subnets.nets().any(|net| self.left_out.contains(&net.to_string()))
                    && !self.left_out.contains(&peer.subnets.to_string())
        })
    }
}

/// One family of one other node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its lease.
    pub subnets: Subnets,
    /// The subnet of this family.
    pub net: IpNet,
    /// An address there that answers through the tunnel.
    pub inner: IpAddr,
    /// Whether that address is there as soon as the node is: without a tunnel it comes with the first pod.
    pub certain: bool,
    /// Its address between hosts.
    pub public: IpAddr,
    /// Whether packets for it go beside the tunnel.
    pub direct: bool,
}

impl Target {
    /// Its family.
    pub fn family(&self) -> Family {
        Family::of_net(self.net)
    }
}

/// What is known of a target.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// Whose.
    pub target: Target,
    /// What it came to.
    pub verdict: Verdict,
    /// One sentence.
    pub text: String,
    /// Round trip through the tunnel.
    pub rtt: Option<Duration>,
    /// Largest packet in bytes that passed.
    pub mtu: Option<u32>,
    /// When it was last found so.
    pub last: Instant,
}

/// Echoes sent, by the way they went.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Through the tunnel, and beside it: answered, lost.
    pub packets: [[u64; 2]; 2],
    /// Round trips of the small ones.
    pub rtt: [crate::metrics::Histogram; 2],
}

/// What became of the last small echoes through the tunnel to one target, [`Echoes::MOST`] at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Echoes {
    /// A bit each, the newest lowest: whether it was lost.
    lost: u32,
    /// How many were sent.
    pub sent: u32,
}

impl Echoes {
    /// So many are remembered: of a neighbour in the ring, which is probed every 11 s or so, the last six minutes.
    pub const MOST: u32 = u32::BITS;

    /// One more.
    pub fn note(&mut self, lost: bool) {
        self.lost = self.lost << 1 | u32::from(lost);
        self.sent = (self.sent + 1).min(Echoes::MOST);
    }

    /// How many of them did not come back.
    pub fn lost(self) -> u32 {
        self.lost.count_ones()
    }
}

/// What was found, and by what plan; shared by the prober, the loop and who asks.
#[derive(Debug, Default)]
pub struct Board {
    inner: Mutex<Inner>,
    changed: Condvar,
}

/// Behind the lock.
#[derive(Debug, Default)]
pub struct Inner {
    /// The plan, once there is one.
    pub plan: Option<Arc<Plan>>,
    /// By subnet.
    pub findings: BTreeMap<IpNet, Finding>,
    /// Why nothing is probed.
    pub off: Option<String>,
    /// Targets of the present turn that were not judged yet.
    pub waiting: usize,
    /// Counts.
    pub tally: Tally,
    /// What became of the last echoes, by subnet.
    pub echoes: BTreeMap<IpNet, Echoes>,
}

impl Board {
    /// The lock; held for no longer than a copy takes.
    pub fn open(&self) -> MutexGuard<'_, Inner> {
        // Whoever panicked leaves whole values behind: each change is one assignment.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another plan.
    pub fn plan(&self, plan: Plan) {
        let mut inner = self.open();
        let known = inner.plan.as_ref();
        let same = |known: &Arc<Plan>| {
            known.peers.changes(&plan.peers).is_empty()
                && known.own == plan.own
                && known.left_out == plan.left_out
                && known.summed_here == plan.summed_here
                && (known.kind, known.mtu, known.outer_mtu) == (plan.kind, plan.mtu, plan.outer_mtu)
        };
        if known.is_some_and(same) {
            return;
        }
        let own = plan.own.as_ref().map(|own| own.subnets);
        inner.findings.retain(|_, finding| plan.peers.get(&finding.target.subnets).is_some());
        let Inner { findings, echoes, .. } = &mut *inner;
        echoes.retain(|net, _| findings.contains_key(net));
        let more = plan.others().filter(|peer| Some(peer.subnets) != own).nth(inner.findings.len()).is_some();
        if inner.off.is_none() && more {
            // Until the prober has counted itself.
            inner.waiting = inner.waiting.max(1);
        }
        inner.plan = Some(Arc::new(plan));
        self.changed.notify_all();
    }

    /// Waits until the plan may be another one, at most so long.
    pub fn wait(&self, limit: Duration) {
        let inner = self.open();
        drop(self.changed.wait_timeout(inner, limit));
    }

    /// Whether every target whose turn it is has been judged.
    pub fn is_judged(&self) -> bool {
        self.open().waiting == 0
    }
}
