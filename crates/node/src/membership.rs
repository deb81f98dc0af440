//! The agent's dealings with the registry: fetch the configuration, take a lease, keep it, follow the
//! others. Everything is tried again for as long as the process lives; what worked goes on working.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use model::{LeaseAttrs, NetConf, Subnets};
use store::{Held, LeaseStore, Remembered, Request, Standing, StoreError, View};
use tokio::sync::watch;

use crate::board::{Board, Topic};
use crate::inputs::Inbox;
use crate::last_good::{Contact, Own, Shelf, StandIn};
use crate::reconcile::Report;
use crate::{bridged, clock};

/// Distance of tries while something is missing that an operator has to bring: counted from the start of
/// one try to that of the next, give or take a tenth, so that a cluster does not ask in step.
const RETRY: Duration = Duration::from_secs(1);
/// The same for renewals, which nobody waits for; doubles with each failure, up to the last.
const RENEW_RETRY: [Duration; 2] = [RETRY, Duration::from_secs(10)];

/// What the membership needs besides the store.
pub struct Member {
    /// Where results go.
    pub inbox: Arc<Inbox>,
    /// Where troubles go.
    pub board: Arc<Board>,
    /// Where our lease's attributes come from.
    pub reports: watch::Receiver<Report>,
    /// How the node fares, for the store to show.
    pub standing: watch::Receiver<Standing>,
    /// Subnets of an earlier run.
    pub previous: Cell<Subnets>,
    /// How the store fares.
    pub contact: Cell<Contact>,
    /// Where the last good state is, for stores that can be out of reach.
    pub shelf: Option<Arc<Shelf>>,
    /// `--subnet-lease-renew-margin`.
    pub margin: Duration,
    /// Whether services may be used here by pods on a bridge, see [`bridged`].
    pub services: fn(&NetConf) -> bool,
    /// How often the store is asked whether the configuration is still the one in use.
    pub recheck: Duration,
}

/// Distance between two tries.
struct Pace(Instant);

impl Pace {
    fn start() -> Pace {
        Pace(Instant::now())
    }

    /// Waits until `every` after the last call, a little at least.
    async fn wait(&mut self, every: Duration) {
        // Any number will do that differs between nodes and tries.
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
        let every = every.mul_f64(0.9 + f64::from(nanos % 1024) / 5120.0);
        tokio::time::sleep(every.saturating_sub(self.0.elapsed()).max(Duration::from_millis(100))).await;
        self.0 = Instant::now();
    }
}

/// Asks, and while there is no answer asks again beside it every second: what swallowed the first question,
/// such as a service address without a server behind it, may be gone long before the store gives up on it.
/// Only for questions that change nothing.
async fn ask<T, F: Future<Output = T>>(question: impl Fn() -> F) -> T {
    let again = async {
        tokio::time::sleep(RETRY).await;
        loop {
            if let Ok(answer) = tokio::time::timeout(RETRY, question()).await {
                return answer;
            }
        }
    };
    tokio::select! {
        answer = question() => answer,
        answer = again => answer,
    }
}

impl Member {
    /// Runs for ever; cancel by dropping.
    pub async fn run<S: LeaseStore>(self, store: S) {
        tracing::info!("Created subnet manager: {}", store.name());
        self.inbox.update(|inputs| (inputs.store, inputs.heard) = (store.name(), store.heard()));
        tokio::join!(store.announce(self.standing.clone()), self.work(&store));
    }

    async fn work<S: LeaseStore>(&self, store: &S) {
        let (feed, view) = watch::channel(View::default());
        tokio::join!(self.stand_in(store, view.clone()), self.follow(store, &feed, view));
    }

    /// Everything that is asked of the store.
    async fn follow<S: LeaseStore>(
        &self,
        store: &S,
        feed: &watch::Sender<View>,
        view: watch::Receiver<View>,
    ) {
        let (text, conf) = self.configuration(store).await;
        let remembered = self.remembered(store).await;
        self.inbox.update(|inputs| {
            inputs.remembered = remembered.clone();
            inputs.conf = Some(conf.clone());
        });
        let (hold, own) = watch::channel(None);
        let save = async {
            let Some(shelf) = &self.shelf else { return };
            let reports = self.reports.clone();
            shelf.save(&self.board, &text, &remembered, own, view.clone(), reports).await;
        };
        tokio::join!(
            store.watch(feed),
            forward(view.clone(), self.inbox.clone(), self.board.clone()),
            look_at_bridges(&conf, self.services, self.board.clone()),
            watch_configuration(store, &conf, self.recheck, self.board.clone()),
            self.hold(store, &conf, view.clone(), hold),
            save,
        );
    }

    async fn stand_in<S: LeaseStore>(&self, store: &S, view: watch::Receiver<View>) {
        let Some(shelf) = &self.shelf else { return };
        shelf.is_for(store.name());
        let stand_in = StandIn {
            shelf,
            inbox: &self.inbox,
            board: &self.board,
            contact: &self.contact,
            previous: &self.previous,
            usable: &|text: &str| usable(text, store.allocates()),
        };
        stand_in.run(view).await;
    }

    /// What the registry knows of us from before.
    async fn remembered<S: LeaseStore>(&self, store: &S) -> Remembered {
        let mut pace = Pace::start();
        loop {
            match ask(|| store.remembered()).await {
                Ok(remembered) => {
                    self.contact.set(Contact::Answers);
                    self.board.clear(&Topic::Remembered);
                    return remembered;
                }
                Err(error) => {
                    self.board
                        .set(Topic::Remembered, format!("read what this node published before: {error}"));
                }
            }
            pace.wait(RETRY).await;
        }
    }

    /// Waits for a configuration that makes sense. Gives its text too.
    async fn configuration<S: LeaseStore>(&self, store: &S) -> (String, NetConf) {
        let mut pace = Pace::start();
        loop {
            // Success tells nothing about a store whose configuration is a file.
            let found = ask(|| store.config()).await.map_err(|error| {
                self.contact.set(Contact::of(&error));
                error.to_string()
            });
            match found.and_then(|text| Ok((usable(&text, store.allocates())?, text))) {
                Err(error) => self.board.set(Topic::Config, format!("fetch network config: {error}")),
                Ok((conf, text)) => {
                    self.board.clear(&Topic::Config);
                    tracing::info!("Found network config - Backend type: {}", conf.backend_type);
                    return (text, conf);
                }
            }
            pace.wait(RETRY).await;
        }
    }

    /// What our lease shall say, once the loop knows the host.
    async fn attrs(&self) -> LeaseAttrs {
        let mut reports = self.reports.clone();
        loop {
            if let Some(attrs) = reports.borrow_and_update().attrs.clone() {
                return attrs;
            }
            if reports.changed().await.is_err() {
                // The loop has ended, and so will we.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Takes a lease and keeps it: renews it in time, publishes changed attributes at once, takes it
    /// again when it was lost.
    async fn hold<S: LeaseStore>(
        &self,
        store: &S,
        conf: &NetConf,
        mut view: watch::Receiver<View>,
        own: watch::Sender<Own>,
    ) {
        loop {
            let held = Holding::new(self.acquire(store, conf).await);
            self.previous.set(held.held.lease.subnets);
            self.inbox.update(|inputs| {
                inputs.own = Some(held.held.lease.clone());
                inputs.ends = held.ends;
                inputs.recalled.own = false;
                inputs.void = false;
                // Pods wait for it. Without the peers it would only cost one more round.
                inputs.soon = inputs.view.complete;
            });
            own.send_replace(Some((held.held.lease.clone(), held.ends)));
            self.keep(store, held, &mut view, &own).await;
            own.send_replace(None);
        }
    }

    async fn acquire<S: LeaseStore>(&self, store: &S, conf: &NetConf) -> Held {
        let mut pace = Pace::start();
        loop {
            let request = Request { attrs: self.attrs().await, previous: self.previous.get() };
            match store.acquire(conf, &request).await {
                Ok(held) => {
                    self.contact.set(Contact::Answers);
                    self.board.clear(&Topic::Lease);
                    tracing::info!("Acquired lease {}", held.lease.subnets);
                    return held;
                }
                Err(error) => {
                    self.contact.set(Contact::of(&error));
                    self.board.set(Topic::Lease, format!("acquire lease: {error}"));
                }
            }
            pace.wait(RETRY).await;
        }
    }

    /// Returns when the lease is lost.
    async fn keep<S: LeaseStore>(
        &self,
        store: &S,
        mut holding: Holding,
        view: &mut watch::Receiver<View>,
        own: &watch::Sender<Own>,
    ) {
        let [first, last] = RENEW_RETRY;
        let mut reports = self.reports.clone();
        let mut failed: Option<Duration> = None;
        loop {
            let held = &holding.held;
            let due = failed.unwrap_or_else(|| renewal_in(holding.left(), self.margin));
            let mut check = false;
            tokio::select! {
                () = tokio::time::sleep(due) => {}
                Ok(()) = reports.changed() => {
                    let attrs = reports.borrow_and_update().attrs.clone();
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
            let attrs = reports.borrow().attrs.clone().unwrap_or_else(|| held.lease.attrs.clone());
            match store.renew(held, &attrs).await {
                Ok(renewed) => {
                    self.board.clear(&Topic::Renewal);
                    failed = None;
                    if renewed.lease != held.lease {
                        self.inbox.update(|inputs| inputs.own = Some(renewed.lease.clone()));
                    }
                    if !check {
                        tracing::info!("Lease renewed: {}", renewed.lease.subnets);
                    }
                    holding = Holding::new(renewed);
                    self.inbox.note_end(holding.ends);
                    own.send_replace(Some((holding.held.lease.clone(), holding.ends)));
                }
                Err(StoreError::Lost(text)) => {
                    self.board.clear(&Topic::Renewal);
                    tracing::error!("lost the lease {}: {text}; taking a new one", held.lease.subnets);
                    return;
                }
                Err(error) => {
                    failed = Some(failed.map_or(first, |wait| (wait * 2).min(last)));
                    self.board.set(Topic::Renewal, format!("renew lease: {error}"));
                }
            }
        }
    }
}

/// A lease, and its end on a clock that nobody sets: the store's word is the wall clock's time of the moment
/// it was given.
struct Holding {
    held: Held,
    ends: Option<Duration>,
}

impl Holding {
    fn new(held: Held) -> Holding {
        Holding { ends: held.expires.map(clock::due), held }
    }

    fn left(&self) -> Option<Duration> {
        Some(self.ends?.saturating_sub(clock::uptime()))
    }
}

async fn look_at_bridges(conf: &NetConf, services: fn(&NetConf) -> bool, board: Arc<Board>) {
    if services(conf) {
        bridged::watch(conf, board).await;
    }
}

/// Says when the store's configuration is no longer the one in use. It is not applied to a running agent:
/// devices and subnets of the old one would have to go under running pods, and all nodes together
/// (decision 0091).
async fn watch_configuration<S: LeaseStore>(store: &S, used: &NetConf, every: Duration, board: Arc<Board>) {
    let mut pace = Pace::start();
    loop {
        pace.wait(every).await;
        let goes_on = "this agent goes on with the one it started with";
        let trouble = match store.config().await {
            Ok(text) => match usable(&text, store.allocates()) {
                Ok(conf) if conf == *used => None,
                Ok(_) => Some(format!(
                    "the network config in {} was changed and {goes_on}; restart the agents of all nodes to use the \
                     new one: kubectl -n kube-flannel rollout restart daemonset, or systemctl restart flanneld",
                    store.name()
                )),
                Err(error) => Some(format!(
                    "the network config in {} was changed and cannot be used, {goes_on}: {error}",
                    store.name()
                )),
            },
            Err(StoreError::NoConfig(text)) => Some(format!("{text}; {goes_on}")),
            // That the store cannot be reached is said by those who need it.
            Err(_) => continue,
        };
        match trouble {
            Some(trouble) => board.set(Topic::ConfigChange, trouble),
            None => board.clear(&Topic::ConfigChange),
        }
    }
}

/// Decodes and checks a configuration, the backend included, so that the loop never sees a bad one; size
/// and range of subnets only for a store that hands them out (flannel.md 2.2).
pub fn usable(text: &str, allocates: bool) -> Result<NetConf, String> {
    let conf = NetConf::parse(text).and_then(|conf| if allocates { conf.validate() } else { Ok(conf) });
    let conf = conf.map_err(|error| error.to_string())?;
    conf.require_networks().map_err(|error| error.to_string())?;
    plan::backend::from_config(&conf)?;
    Ok(conf)
}

/// How long until a lease should be renewed: `margin` before its end, but at the earliest after a
/// third of what is left, so that short leases of tests do not spin.
fn renewal_in(left: Option<Duration>, margin: Duration) -> Duration {
    let Some(left) = left else { return Duration::from_secs(86_400) };
    if left > margin * 2 { left - margin } else { (left / 3).max(Duration::from_millis(50)) }
}

/// Hands each new view to the loop.
async fn forward(mut view: watch::Receiver<View>, inbox: Arc<Inbox>, board: Arc<Board>) {
    while view.changed().await.is_ok() {
        let view = view.borrow_and_update().clone();
        match &view.trouble {
            Some(trouble) => board.set(Topic::Watch, trouble.as_str()),
            None => board.clear(&Topic::Watch),
        }
        inbox.update(|inputs| {
            if view.trouble.is_none() {
                // For stores that do not tell by themselves.
                inputs.heard.touch();
            }
            if inputs.recalled.peers && !view.complete {
                // Until the store has listed its leases, the ones of the last good state stand in.
                inputs.view.trouble = view.trouble;
            } else {
                inputs.recalled.peers = false;
                inputs.view = view;
            }
        });
    }
}
