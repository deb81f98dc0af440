//! Where leases live. A store gives the network configuration and snapshots of all leases, and accepts
//! ours. It knows nothing of the kernel.

mod backoff;
mod choose;
pub mod embedded;
mod entry;
pub mod etcd;
mod heard;
pub mod kube;
mod mirror;
pub mod tencent;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::SystemTime;

use model::{Lease, LeaseAttrs, Peers, Subnets};
use tokio::sync::watch;

pub use heard::Heard;

/// What a node asks of the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What we publish.
    pub attrs: LeaseAttrs,
    /// Subnets of an earlier run, from `subnet.env`; taken again while they are free (flannel.md 3.4).
    pub previous: Subnets,
}

/// A lease in our hands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Subnets and what we published.
    pub lease: Lease,
    /// When it runs out unless renewed; `None` for a reservation and where the store sets no limit.
    pub expires: Option<SystemTime>,
    /// The store's own proof of possession (etcd: modification revision; SQLite: row version).
    pub token: i64,
}

/// One key under `subnets/`, for people and programs that look into a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The last part of the key, such as `10.5.52.0-24`.
    pub key: String,
    /// What it holds, or why it cannot be read.
    pub lease: Result<Lease, String>,
    /// Whether it never runs out.
    pub reserved: bool,
}

/// What the registry knows of this node before the agent has said anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// What this node published last; a tunnel keeps its hardware address or key by it (flannel.md 4.2).
    pub attrs: Option<LeaseAttrs>,
    /// An address an operator set for this node in the registry; goes before `--public-ip`.
    pub public_ip: Option<Ipv4Addr>,
    /// The same in IPv6; goes before `--public-ipv6`.
    pub public_ip6: Option<Ipv6Addr>,
}

/// How the node fares, for registries that show it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The node's pods reach others.
    pub ready: bool,
    /// What is wrong now, one sentence each, the gravest first.
    pub troubles: Vec<String>,
    /// What a sentence is about, in one word; not all have one.
    pub topics: BTreeMap<String, &'static str>,
}

/// What the watch has learnt so far. One slot: a slow reader sees only the newest.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// All leases, ours included.
    pub peers: Peers,
    /// Whether a first complete snapshot has arrived; before that nothing may be swept.
    pub complete: bool,
    /// Names of the nodes that hold the leases, where the store has names.
    pub names: Arc<BTreeMap<Subnets, Box<str>>>,
    /// Keys that hold no valid lease, and why. They cost nobody else anything (F-20).
    pub rejected: BTreeMap<String, String>,
    /// What keeps the store from being read right now, in one sentence; peers stay as last known.
    pub trouble: Option<String>,
}

/// Why a store did not do as asked. Each text names the object and the way out.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Cannot be reached now; retrying helps.
    #[error("{0}")]
    Unreachable(String),
    /// Answered, but refuses us: wrong password, certificate, permission.
    #[error("{0}")]
    Denied(String),
    /// The network configuration is not there yet.
    #[error("{0}")]
    NoConfig(String),
    /// Nobody has given this node a subnet yet, and only an operator can.
    #[error("{0}")]
    NoSubnet(String),
    /// No free subnet is left.
    #[error("{0}")]
    Exhausted(String),
    /// The lease is not ours any more; the text names the new owner if there is one.
    #[error("{0}")]
    Lost(String),
    /// Anything else: the store holds or did something unexpected.
    #[error("{0}")]
    Broken(String),
}

/// A registry of leases. Implementations: etcd v3, an embedded SQLite file, the Kubernetes API.
///
/// All methods may be cancelled by dropping the future; none leaves a half-made lease behind that
/// its time to live does not end.
#[allow(async_fn_in_trait, reason = "driven by one current-thread runtime; futures need not be Send")]
pub trait LeaseStore {
    /// For messages: which store, where, without secrets.
    fn name(&self) -> String;

    /// When the store last answered, whatever was asked. A store without one of its own gives one that
    /// never has.
    fn heard(&self) -> Heard {
        Heard::default()
    }

    /// Whether the store hands out subnets itself and so needs to know their size and range; else the
    /// cluster gives each node its own.
    fn allocates(&self) -> bool {
        true
    }

    /// The network configuration as JSON text (flannel.md 2), unparsed.
    ///
    /// # Errors
    /// `NoConfig` while nobody has written it; `Unreachable`, `Denied`.
    async fn config(&self) -> Result<String, StoreError>;

    /// What is known of this node from before. Asked once, before the first [`LeaseStore::acquire`].
    ///
    /// # Errors
    /// `Unreachable`, `Denied`.
    async fn remembered(&self) -> Result<Remembered, StoreError> {
        Ok(Remembered::default())
    }

    /// Shows in the registry how the node fares, for ever; cancel by dropping. Failures concern nobody.
    async fn announce(&self, _standing: watch::Receiver<Standing>) {
        std::future::pending().await
    }

    /// Takes a lease: our own again, our previous subnets, or a free one (flannel.md 3.4, without
    /// F-23, F-24, F-26, F-35, F-40). Lost races are retried inside.
    ///
    /// # Errors
    /// `Exhausted`, `Unreachable`, `Denied`.
    async fn acquire(&self, net: &model::NetConf, request: &Request) -> Result<Held, StoreError>;

    /// Extends our lease and publishes `attrs`, only if it is still ours (compare-and-swap, F-27).
    ///
    /// # Errors
    /// `Lost` if it ran out or someone else holds it; `Unreachable`, `Denied`.
    async fn renew(&self, held: &Held, attrs: &LeaseAttrs) -> Result<Held, StoreError>;

    /// Follows all leases for ever, reconnecting and listing again as needed, and publishes each new
    /// view. Never returns; cancel by dropping.
    async fn watch(&self, feed: &watch::Sender<View>);
}
