//! The store the operator chose: which it is, and what follows from its kind.

use std::time::Duration;

use model::NetConf;
use store::embedded::EmbeddedStore;
use store::etcd::EtcdStore;
use store::kube::KubeStore;
use store::{LeaseStore as _, StoreError};

use crate::args::Options;
use crate::membership::Member;
use crate::start::Personality;

/// Where the embedded store is unless said otherwise.
const EMBEDDED: &str = "/var/lib/loden/leases.db";
/// Life of a lease that is not renewed (flannel.md 3.3).
const LEASE_TTL: Duration = Duration::from_secs(86_400);

/// The store the operator chose.
pub enum Store {
    /// etcd v3
    Etcd(Box<EtcdStore>),
    /// One SQLite file
    Embedded(EmbeddedStore),
    /// The Kubernetes API
    Kubernetes(Box<KubeStore>),
}

impl Store {
    /// See [`LeaseStore::config`].
    pub async fn config(&self) -> Result<String, StoreError> {
        match self {
            Store::Etcd(store) => store.config().await,
            Store::Embedded(store) => store.config().await,
            Store::Kubernetes(store) => store.config().await,
        }
    }

    /// Writes the network configuration.
    pub async fn put_config(&self, text: &str) -> Result<(), StoreError> {
        match self {
            Store::Etcd(store) => store.put_config(text).await,
            Store::Embedded(store) => store.put_config(text).await,
            Store::Kubernetes(_) => Err(StoreError::Denied(
                "with --kube-subnet-mgr the configuration is a file, usually from a ConfigMap: kubectl -n kube-flannel \
                 edit configmap kube-flannel-cfg"
                    .to_owned(),
            )),
        }
    }
}

/// Keeps this node a member of its cluster, for ever.
pub async fn membership(store: Store, member: Member) {
    match store {
        Store::Etcd(store) => member.run(*store).await,
        Store::Embedded(store) => member.run(store).await,
        Store::Kubernetes(store) => member.run(*store).await,
    }
}

/// By `LODEN_STORE`, else by `--kube-subnet-mgr`, else by flags and name (decision 0006).
pub fn choose_store(options: &Options, personality: Personality) -> Result<Store, String> {
    let said = std::env::var("LODEN_STORE").unwrap_or_default();
    if said == "kubernetes" || said.is_empty() && options.kube_subnet_mgr {
        let store = KubeStore::new(options.kube(|name| std::env::var(name).ok()));
        return store.map(|kube| Store::Kubernetes(Box::new(kube))).map_err(|error| error.to_string());
    }
    if let Some(path) = said.strip_prefix("sqlite:").filter(|path| !path.is_empty()) {
        return Ok(Store::Embedded(EmbeddedStore::new(path, LEASE_TTL)));
    }
    let etcd = match said.as_str() {
        "etcd" => true,
        "" => personality == Personality::Flanneld || options.etcd_named,
        other => {
            return Err(format!(
                "LODEN_STORE={other:?} names no store; write etcd, kubernetes, or sqlite: and a path"
            ));
        }
    };
    if !etcd {
        return Ok(Store::Embedded(EmbeddedStore::new(EMBEDDED, LEASE_TTL)));
    }
    EtcdStore::new(options.etcd()).map(|etcd| Store::Etcd(Box::new(etcd))).map_err(|error| error.to_string())
}

/// What depends on the kind of store: how often to ask for its configuration again (a file costs little, a
/// registry has thousands of nodes), and whether services may be used (see [`Member::services`]).
pub fn habits(store: &Store) -> (Duration, fn(&NetConf) -> bool) {
    match store {
        // Not known with etcd; flannel looks unless it runs with nftables.
        Store::Etcd(_) => (Duration::from_secs(60), |conf| !conf.enable_nftables),
        // One machine, or the lab.
        Store::Embedded(_) => (Duration::from_secs(10), |_| false),
        // Services are what Kubernetes is about.
        Store::Kubernetes(_) => (Duration::from_secs(10), |_| true),
    }
}

/// A store on this host's disk needs no copy there.
pub fn has_last_good(store: &Store) -> bool {
    !matches!(store, Store::Embedded(_))
}
