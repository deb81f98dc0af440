//! How the node fares, shown on its Node (decision 0084): the condition NetworkUnavailable, and an Event for
//! each trouble and its end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use http::Method;
use k8s_openapi::jiff::Timestamp;
use model::Json;
use model::codec::annotation;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::KubeStore;
use super::client::{ANSWER, Ask, Verb};
use crate::Standing;
use crate::backoff::{Backoff, random};

/// Between two times the condition is set, so that nobody is fought with at full speed.
const CONDITION_PAUSE: Duration = Duration::from_secs(1);
/// The same sentence, and a request that was denied, are not repeated within this time.
const QUIET: Duration = Duration::from_secs(600);
/// Events in that time.
const BUDGET: usize = 30;
/// Longer messages are cut.
const LONGEST: usize = 1000;

pub(super) async fn announce(store: &KubeStore, standing: watch::Receiver<Standing>) {
    tokio::join!(condition(store, standing.clone()), events(store, standing));
}

/// Clears the condition when we are ready, and again whenever it is not clear.
async fn condition(store: &KubeStore, mut standing: watch::Receiver<Standing>) {
    if !store.options.set_condition {
        return;
    }
    let mut own = store.own.subscribe();
    let mut backoff = Backoff::new();
    let mut failed = None;
    let mut done = false;
    loop {
        let ready = standing.borrow_and_update().ready;
        let set_back =
            own.borrow_and_update().node.as_ref().is_some_and(|n| n.unavailable.as_deref() != Some("False"));
        if !ready || done && !set_back {
            tokio::select! {
                Ok(()) = standing.changed() => {}
                Ok(()) = own.changed() => {}
                else => return,
            }
            continue;
        }
        let name = match store.node_name().await {
            Ok(name) => name,
            Err(_) => {
                backoff.wait().await;
                continue;
            }
        };
        match store.client.patch_status(&name, annotation::condition_patch(&now())).await {
            Ok(_) => {
                done = true;
                failed = None;
                backoff.reset();
                tracing::info!("condition NetworkUnavailable of Node {name} is cleared");
                sleep(CONDITION_PAUSE).await;
            }
            Err(fault) => {
                let text = fault.sentence();
                if failed.as_ref() != Some(&text) {
                    tracing::error!("clear condition NetworkUnavailable: {text}");
                    failed = Some(text);
                }
                backoff.wait().await;
            }
        }
    }
}

/// Now, as the API writes times.
fn now() -> String {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default().to_string()
}

/// What has been posted, and what may be.
#[derive(Default)]
struct Diary {
    /// Troubles whose beginning is posted and whose end is not.
    open: BTreeSet<String>,
    /// When a sentence was last posted, and one of any kind.
    posted: BTreeMap<String, Instant>,
    recent: Vec<Instant>,
}

impl Diary {
    /// What to post next, and whether it is the end of a trouble.
    fn next(&mut self, troubles: &[String], now: Instant) -> Option<(String, bool)> {
        self.recent.retain(|at| now.duration_since(*at) < QUIET);
        self.posted.retain(|text, at| self.open.contains(text) || now.duration_since(*at) < QUIET);
        if self.recent.len() >= BUDGET {
            return None;
        }
        let over = self.open.iter().find(|text| !troubles.contains(text));
        let fresh = |text: &&String| !self.open.contains(*text) && !self.posted.contains_key(*text);
        over.map(|text| (text.clone(), true)).or_else(|| Some((troubles.iter().find(fresh)?.clone(), false)))
    }

    fn done(&mut self, text: &str, over: bool, now: Instant) {
        self.recent.push(now);
        if over {
            self.open.remove(text);
        } else {
            self.open.insert(text.to_owned());
            self.posted.insert(text.to_owned(), now);
        }
    }
}

async fn events(store: &KubeStore, mut standing: watch::Receiver<Standing>) {
    let mut diary = Diary::default();
    let mut backoff = Backoff::new();
    let mut told = false;
    // Of troubles that are over, too: their end has the same topic.
    let mut topics = BTreeMap::new();
    loop {
        let Standing { troubles, topics: now, .. } = standing.borrow_and_update().clone();
        topics.retain(|text, _| diary.open.contains(text));
        topics.extend(now);
        let Some((text, over)) = diary.next(&troubles, Instant::now()) else {
            // Also looks again when a sentence may be repeated.
            match timeout(QUIET, standing.changed()).await {
                Ok(Err(_)) => return,
                _ => continue,
            }
        };
        match post(store, &text, topics.get(&text).copied(), over).await {
            Ok(()) => {
                backoff.reset();
                diary.done(&text, over, Instant::now());
            }
            Err((403, denied)) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::info!(
                        "troubles of this node do not show as Events, which is harmless: {denied}"
                    );
                }
                sleep_until(Instant::now() + QUIET).await;
            }
            Err((_, error)) => {
                tracing::debug!("{error}");
                backoff.wait().await;
            }
        }
    }
}

/// Posts one Event; the failure's code and sentence.
async fn post(store: &KubeStore, text: &str, topic: Option<&str>, over: bool) -> Result<(), (u16, String)> {
    let node = store.node_name().await.map_err(|error| (0, error.to_string()))?;
    // The name, as kubelets write it, is found too.
    let uid = store.own.borrow().node.as_ref().map_or_else(|| node.clone(), |node| node.uid.clone());
    let body = event(&node, &uid, text, topic, over, &now());
    let ask = Ask {
        verb: Verb::CreateEvent,
        name: &node,
        method: Method::POST,
        path: "/api/v1/namespaces/default/events".to_owned(),
        body,
        limit: ANSWER,
    };
    match store.client.send(&ask).await {
        Ok(_) => Ok(()),
        // Sent twice: the first one arrived.
        Err(fault) if fault.code() == 409 => Ok(()),
        Err(fault) => Err((fault.code(), fault.sentence())),
    }
}

/// An Event (core/v1) on a Node; those of objects without a namespace are in `default`.
fn event(node: &str, uid: &str, text: &str, topic: Option<&str>, over: bool, now: &str) -> String {
    let (kind, reason) =
        if over { ("Normal", "PodNetworkRecovered") } else { ("Warning", "PodNetworkTrouble") };
    let message = if over { format!("over: {text}") } else { text.to_owned() };
    let cut = message.char_indices().nth(LONGEST).map_or(message.as_str(), |(at, _)| &message[..at]);
    let object = Json::object([
        ("apiVersion", Json::from("v1")),
        ("kind", "Node".into()),
        ("name", node.into()),
        ("uid", uid.into()),
    ]);
    let name = format!("loden-{:016x}", random());
    Json::object([
        ("apiVersion", Json::from("v1")),
        ("kind", "Event".into()),
        ("metadata", Json::object([("name", Json::from(name)), ("namespace", "default".into())])),
        ("involvedObject", object),
        ("reason", reason.into()),
        // The word of the log, of metrics and of alerts (decision 0205).
        ("action", topic.into()),
        ("message", cut.into()),
        ("type", kind.into()),
        ("source", Json::object([("component", Json::from("flannel")), ("host", node.into())])),
        ("firstTimestamp", now.into()),
        ("lastTimestamp", now.into()),
        ("count", 1.into()),
        ("reportingComponent", "flannel".into()),
        ("reportingInstance", node.into()),
    ])
    .to_compact()
}
