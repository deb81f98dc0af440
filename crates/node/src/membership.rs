//! The agent's dealings with the registry: fetch the configuration, take a lease, keep it, follow the
//! others. Everything is tried again for as long as the process lives; what worked goes on working.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use model::{LeaseAttrs, NetConf, Subnets};
use store::{Held, LeaseStore, Remembered, Request, StoreError, View};
use tokio::sync::watch;

use crate::inputs::Inbox;
use crate::reconcile::Report;

/// Distance of tries while something is missing that an operator has to bring.
const RETRY: Duration = Duration::from_secs(1);
/// Distance of renewals after a failed one (flannel.md 3.3 has one minute; a store that comes back
/// should see us sooner).
const RENEW_RETRY: Duration = Duration::from_secs(10);

/// What the membership needs besides the store.
pub struct Member {
    /// Where results go.
    pub inbox: Arc<Inbox>,
    /// Where our lease's attributes come from.
    pub reports: watch::Receiver<Report>,
    /// Subnets of an earlier run.
    pub previous: Subnets,
    /// `--subnet-lease-renew-margin`.
    pub margin: Duration,
}

/// Says a trouble once, and once more when it is over.
struct Said {
    what: &'static str,
    last: Option<String>,
}

impl Said {
    fn new(what: &'static str) -> Said {
        Said { what, last: None }
    }

    fn trouble(&mut self, text: String) {
        if self.last.as_ref() != Some(&text) {
            tracing::error!("{}: {text}", self.what);
            self.last = Some(text);
        }
    }

    fn over(&mut self) {
        if self.last.take().is_some() {
            tracing::info!("{}: works again", self.what);
        }
    }
}

impl Member {
    /// Runs for ever; cancel by dropping.
    pub async fn run<S: LeaseStore>(mut self, store: S) {
        tracing::info!("Created subnet manager: {}", store.name());
        let conf = self.configuration(&store).await;
        let remembered = self.remembered(&store).await;
        self.inbox.update(|inputs| {
            inputs.remembered = remembered;
            inputs.conf = Some(conf.clone());
        });
        let (feed, view) = watch::channel(View::default());
        tokio::join!(
            store.watch(&feed),
            forward(view.clone(), self.inbox.clone()),
            self.hold(&store, &conf, view)
        );
    }

    /// What the registry knows of us from before.
    async fn remembered<S: LeaseStore>(&self, store: &S) -> Remembered {
        let mut said = Said::new("read what this node published before");
        loop {
            match store.remembered().await {
                Ok(remembered) => {
                    said.over();
                    return remembered;
                }
                Err(error) => said.trouble(error.to_string()),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Waits for a configuration that makes sense.
    async fn configuration<S: LeaseStore>(&self, store: &S) -> NetConf {
        let mut said = Said::new("fetch network config");
        loop {
            match store.config().await {
                Err(error) => said.trouble(error.to_string()),
                Ok(text) => match usable(&text) {
                    Err(error) => said.trouble(error),
                    Ok(conf) => {
                        said.over();
                        tracing::info!("Found network config - Backend type: {}", conf.backend_type);
                        if !conf.enable_nftables {
                            tracing::warn!(
                                "EnableNFTables is off, and iptables mode is not built yet: masquerade and forward \
                                 rules of the same meaning are kept in nftables; accepts there do not overrule a DROP \
                                 in iptables' FORWARD, such as Docker's"
                            );
                        }
                        return conf;
                    }
                },
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// What our lease shall say, once the loop knows the host.
    async fn attrs(&mut self) -> LeaseAttrs {
        loop {
            if let Some(attrs) = self.reports.borrow_and_update().attrs.clone() {
                return attrs;
            }
            if self.reports.changed().await.is_err() {
                // The loop has ended, and so will we.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Takes a lease and keeps it: renews it in time, publishes changed attributes at once, takes it
    /// again when it was lost.
    async fn hold<S: LeaseStore>(&mut self, store: &S, conf: &NetConf, mut view: watch::Receiver<View>) {
        loop {
            let mut held = self.acquire(store, conf).await;
            self.previous = held.lease.subnets;
            self.inbox.update(|inputs| inputs.own = Some(held.lease.clone()));
            self.keep(store, &mut held, &mut view).await;
        }
    }

    async fn acquire<S: LeaseStore>(&mut self, store: &S, conf: &NetConf) -> Held {
        let mut said = Said::new("acquire lease");
        let mut wait = Duration::from_millis(200);
        loop {
            let request = Request { attrs: self.attrs().await, previous: self.previous };
            match store.acquire(conf, &request).await {
                Ok(held) => {
                    said.over();
                    tracing::info!("Acquired lease {}", held.lease.subnets);
                    return held;
                }
                Err(error) => said.trouble(error.to_string()),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(10));
        }
    }

    /// Returns when the lease is lost.
    async fn keep<S: LeaseStore>(&mut self, store: &S, held: &mut Held, view: &mut watch::Receiver<View>) {
        let mut said = Said::new("renew lease");
        let mut failed = false;
        loop {
            let due = if failed { RENEW_RETRY } else { renewal_in(held.expires, self.margin) };
            let mut check = false;
            tokio::select! {
                () = tokio::time::sleep(due) => {}
                Ok(()) = self.reports.changed() => {
                    let attrs = self.reports.borrow_and_update().attrs.clone();
                    if attrs.is_none_or(|attrs| attrs == held.lease.attrs) {
                        continue;
                    }
                    tracing::info!("publishing changed address or device data of {}", held.lease.subnets);
                }
                Ok(()) = view.changed() => {
                    let view = view.borrow_and_update();
                    let ours = view.peers.get(&held.lease.subnets);
                    if !view.complete || ours.is_some_and(|lease| lease.attrs == held.lease.attrs) {
                        continue;
                    }
                    check = true;
                }
            }
            let attrs = self.reports.borrow().attrs.clone().unwrap_or_else(|| held.lease.attrs.clone());
            match store.renew(held, &attrs).await {
                Ok(renewed) => {
                    said.over();
                    failed = false;
                    if renewed.lease != held.lease {
                        self.inbox.update(|inputs| inputs.own = Some(renewed.lease.clone()));
                    }
                    if !check {
                        tracing::info!("Lease renewed: {}", renewed.lease.subnets);
                    }
                    *held = renewed;
                }
                Err(StoreError::Lost(text)) => {
                    tracing::error!("lost the lease {}: {text}; taking a new one", held.lease.subnets);
                    return;
                }
                Err(error) => {
                    failed = true;
                    said.trouble(error.to_string());
                }
            }
        }
    }
}

/// Decodes and checks a configuration, the backend included, so that the loop never sees a bad one.
pub fn usable(text: &str) -> Result<NetConf, String> {
    let conf = NetConf::parse(text).and_then(NetConf::validate).map_err(|error| error.to_string())?;
    conf.require_networks().map_err(|error| error.to_string())?;
    plan::backend::from_config(&conf)?;
    Ok(conf)
}

/// How long until a lease should be renewed: `margin` before its end, but at the earliest after a
/// third of what is left, so that short leases of tests do not spin.
fn renewal_in(expires: Option<SystemTime>, margin: Duration) -> Duration {
    let Some(expires) = expires else { return Duration::from_secs(86_400) };
    let left = expires.duration_since(SystemTime::now()).unwrap_or_default();
    if left > margin * 2 { left - margin } else { (left / 3).max(Duration::from_millis(50)) }
}

/// Hands each new view to the loop.
async fn forward(mut view: watch::Receiver<View>, inbox: Arc<Inbox>) {
    let mut said = Said::new("watch leases");
    while view.changed().await.is_ok() {
        let view = view.borrow_and_update().clone();
        match &view.trouble {
            Some(trouble) => said.trouble(trouble.clone()),
            None => said.over(),
        }
        inbox.update(|inputs| inputs.view = view);
    }
}
