//! Following all Nodes: list once, then watch, resume where it broke, list again only when that is not
//! possible (decision 0082). A snapshot is the truth, events are hints.

use std::time::Duration;

use futures_util::FutureExt as _;
use hyper::body::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::KubeStore;
use super::client::{ANSWER, Ask, Fault, Stream, Verb};
use super::nodes::Nodes;
use super::object::{Decoder, Event, Message, Node};
use crate::backoff::{Backoff, jitter, random};
use crate::mirror::Mirror;
use crate::{LeaseStore as _, View};

const NODES: &str = "/api/v1/nodes";
/// Nodes in a page read from etcd.
const PAGE: usize = 500;
/// A streaming list that has not ended by then comes from a server that does not know them.
const LIST: Duration = Duration::from_secs(60);
/// A watch that held this long counts as a success for the back-off.
const HEALTHY: Duration = Duration::from_secs(5);
/// The longest distance of tries while nothing is known yet or we are refused: an operator is waiting.
const EAGER: Duration = Duration::from_secs(1);
/// What a server may make us wait by `Retry-After`.
const PATIENT: Duration = Duration::from_secs(30);
/// The interval of lists grows by this for each Node, so that all agents together list a bounded number
/// of Nodes per second.
const RELIST_PER_NODE: Duration = Duration::from_secs(6);
/// After a version has expired for everybody at once, the lists are spread over this much per Node.
const SPREAD_PER_NODE: Duration = Duration::from_millis(4);
/// A version that many answers in a row call too new is of a store that was restored from a backup.
const TOO_NEW: u32 = 5;

/// Why a session came to its end.
enum End {
    /// Everything is to be listed again, and it is time for it.
    Relist,
    /// Our version has expired: list again.
    Expired,
    /// The server ended the watch in good order.
    Closed,
    Failed(Fault),
}

impl From<Fault> for End {
    fn from(fault: Fault) -> End {
        match &fault {
            Fault::Refused { refusal, .. }
                if refusal.code == 410 || matches!(refusal.reason.as_str(), "Expired" | "Gone") =>
            {
                End::Expired
            }
            _ => End::Failed(fault),
        }
    }
}

/// Whether a server that refuses a streaming list like this will never give one.
fn cannot_stream(code: u16) -> bool {
    matches!(code, 400 | 404 | 405 | 406 | 415 | 422 | 501)
}

pub(super) async fn follow(store: &KubeStore, feed: &watch::Sender<View>) {
    let mut mirror = Mirror::of_nodes(store.name(), feed);
    let mut backoff = Backoff::new();
    let own = loop {
        match store.node_name().await {
            Ok(name) => break name,
            Err(error) => mirror.trouble(error.to_string()),
        }
        backoff.wait_at_most(EAGER).await;
    };
    let nodes = Nodes::new(store.client.names(), own.clone());
    let mut follower = Follower {
        store,
        own,
        mirror,
        nodes,
        version: None,
        relist: None,
        streaming: true,
        failed: 0,
        too_new: 0,
    };
    loop {
        let begun = Instant::now();
        let end = follower.session().await;
        if begun.elapsed() >= HEALTHY {
            backoff.reset();
        }
        let mut least = Duration::ZERO;
        let mut most = Duration::MAX;
        match end {
            End::Relist => {
                follower.version = None;
                continue;
            }
            End::Expired => {
                follower.version = None;
                let spread = SPREAD_PER_NODE * u32::try_from(follower.nodes.len()).unwrap_or(u32::MAX);
                least = spread.mul_f64((random() % 1024) as f64 / 1024.0);
            }
            End::Closed if begun.elapsed() >= EAGER => continue,
            End::Closed => {}
            End::Failed(fault) => {
                if let Fault::Refused { refusal, after, .. } = &fault {
                    least = after.unwrap_or_default().min(PATIENT);
                    if matches!(refusal.code, 401 | 403) {
                        most = EAGER;
                    }
                    follower.too_new += u32::from(refusal.code == 504);
                    if follower.too_new >= TOO_NEW {
                        follower.version = None;
                    }
                }
                if follower.version.is_none() && follower.nodes.len() == 0 {
                    most = EAGER;
                }
                // A watch that broke after a while is resumed; only if that fails there is trouble.
                if follower.version.is_none() || begun.elapsed() < HEALTHY {
                    follower.mirror.trouble(fault.sentence());
                }
            }
        }
        tokio::join!(sleep(least), backoff.wait_at_most(most));
    }
}

struct Follower<'a> {
    store: &'a KubeStore,
    /// Our Node.
    own: String,
    mirror: Mirror<'a>,
    nodes: Nodes<'a>,
    /// Up to where we have seen everything; `None` = list first.
    version: Option<String>,
    /// When the whole is listed again.
    relist: Option<Instant>,
    /// Whether the server has streaming lists, as far as we know.
    streaming: bool,
    /// How often streaming lists failed by the server's own fault.
    failed: u32,
    /// How often in a row our version was called too new.
    too_new: u32,
}

impl Follower<'_> {
    async fn session(&mut self) -> End {
        let result = match (&self.version, self.streaming) {
            (None, true) => self.list_streaming().await,
            (None, false) => match self.list_whole().await {
                Ok(()) => self.resume().await,
                Err(end) => Err(end),
            },
            (Some(_), _) => self.resume().await,
        };
        match result {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    /// List and watch in one request.
    async fn list_streaming(&mut self) -> Result<std::convert::Infallible, End> {
        let ask = watch_nodes("&sendInitialEvents=true&resourceVersionMatch=NotOlderThan");
        let mut stream = match self.store.client.send(&ask).await {
            Ok(stream) => stream,
            Err(fault) => {
                if cannot_stream(fault.code()) {
                    tracing::debug!("no streaming lists here: {}", fault.clone().sentence());
                    self.streaming = false;
                    return Err(End::Relist);
                }
                // An error of the server's own may pass; one that stays may be of streaming lists alone.
                self.failed += u32::from(fault.code() >= 500);
                self.streaming = self.failed < 2;
                return Err(fault.into());
            }
        };
        let mut decoder = Decoder::new(self.store.client.names());
        let begun = Instant::now();
        self.nodes.begin_list();
        let mut version = None;
        let mut some = false;
        while version.is_none() {
            let piece = stream.next(&ask, ANSWER).await;
            if begun.elapsed() > LIST || piece.is_err() && some && begun.elapsed() >= ANSWER {
                self.streaming = false;
            }
            let piece = piece?.ok_or_else(|| stream.broken(&ask, "the list ended before its end"))?;
            let mut bad = None;
            let (mut unmarked, mut refused) = (false, None);
            let fed = decoder.feed(&piece, |message| match message {
                // Those that follow are events already.
                Message::Event(Event::Bookmark, node) if version.is_none() => {
                    some = true;
                    unmarked |= !node.initial_end;
                    version = Some(node.version.clone());
                }
                Message::Event(event, node) => {
                    some = true;
                    self.change(event, &node);
                }
                Message::Refused(refusal) => refused = Some(refusal),
                other => bad = Some(other),
            });
            fed.map_err(|error| stream.broken(&ask, &error))?;
            if let Some(refusal) = refused {
                // Said inside the stream by a server whose etcd is too old for it (3.4: 500 at once).
                if refusal.code >= 500 || cannot_stream(refusal.code) {
                    tracing::debug!("no streaming lists here: {}", refusal.message);
                    self.streaming = false;
                    return Err(End::Relist);
                }
                return Err(stream.refused(&ask, refusal).into());
            }
            if bad.is_some() || unmarked || !self.streaming {
                self.streaming = false;
                return Err(End::Relist);
            }
        }
        self.listed(version);
        self.watch(&ask, stream, decoder).await
    }

    /// One list, from the server's cache if it can be had fresh from there.
    async fn list_whole(&mut self) -> Result<(), End> {
        let probe = self.page("?limit=1", false).await?;
        let fresh = format!("?resourceVersion={}&resourceVersionMatch=NotOlderThan", probe.0);
        self.nodes.begin_list();
        match self.page(&fresh, true).await {
            Ok((version, _)) => {
                self.listed(Some(version));
                return Ok(());
            }
            Err(fault) if matches!(fault.code(), 400 | 410 | 422 | 504) => {
                tracing::debug!("the server's cache is behind: {}", fault.sentence());
            }
            Err(fault) => return Err(fault.into()),
        }
        self.nodes.begin_list();
        let mut query = format!("?limit={PAGE}");
        loop {
            let (version, more) = self.page(&query, true).await?;
            if more.is_empty() {
                self.listed(Some(version));
                return Ok(());
            }
            query = format!("?limit={PAGE}&continue={}", escaped(&more));
        }
    }

    /// One answer to a list: its version, and where the next page begins.
    async fn page(&mut self, query: &str, keep: bool) -> Result<(String, String), Fault> {
        let ask = Ask::get(Verb::ListNodes, "", format!("{NODES}{query}"));
        let mut stream = self.store.client.send(&ask).await?;
        let mut decoder = Decoder::new(self.store.client.names());
        let mut end = None;
        while let Some(piece) = stream.next(&ask, ANSWER).await? {
            let fed = decoder.feed(&piece, |message| match message {
                Message::Object(node) if keep => self.change(Event::Put, &node),
                Message::ListEnd { version, more } => end = Some((version, more)),
                _ => {}
            });
            fed.map_err(|error| stream.broken(&ask, &error))?;
        }
        end.ok_or_else(|| stream.broken(&ask, "the answer ended before its end"))
    }

    fn listed(&mut self, version: Option<String>) {
        self.nodes.end_list();
        self.version = version;
        self.too_new = 0;
        let nodes = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        self.relist = Some(Instant::now() + jitter(self.store.relist().max(RELIST_PER_NODE * nodes)));
        self.store.own_listed(self.nodes.has_own());
        self.mirror.recovered();
        self.publish();
    }

    /// Watches from where we were.
    async fn resume(&mut self) -> Result<std::convert::Infallible, End> {
        let version = self.version.clone().unwrap_or_default();
        let ask = watch_nodes(&format!("&resourceVersion={}", escaped(&version)));
        let stream = self.store.client.send(&ask).await?;
        let decoder = Decoder::new(self.store.client.names());
        self.watch(&ask, stream, decoder).await
    }

    async fn watch(
        &mut self,
        ask: &Ask<'_>,
        mut stream: Stream,
        mut decoder: Decoder<'_>,
    ) -> Result<std::convert::Infallible, End> {
        self.mirror.recovered();
        self.publish();
        loop {
            let relist = self.relist.unwrap_or_else(Instant::now);
            tokio::select! {
                piece = stream.next(ask, self.store.silence()) => {
                    self.take(ask, &stream, &mut decoder, piece?)?;
                    // What came in together is published together.
                    while let Some(more) = stream.next(ask, ANSWER).now_or_never() {
                        self.take(ask, &stream, &mut decoder, more?)?;
                    }
                }
                () = self.store.nudge.notified() => self.nodes.look_at_own(),
                () = sleep_until(relist) => return Err(End::Relist),
            }
            self.publish();
        }
    }

    /// One piece of a watch; `None` is its end.
    fn take(
        &mut self,
        ask: &Ask<'_>,
        stream: &Stream,
        decoder: &mut Decoder<'_>,
        piece: Option<Bytes>,
    ) -> Result<(), End> {
        let Some(piece) = piece else {
            // What was complete counts, also when the rest never came.
            self.publish();
            return Err(if decoder.at_rest() {
                End::Closed
            } else {
                stream.broken(ask, "the connection broke in the middle of an event").into()
            });
        };
        let mut refused = None;
        let fed = decoder.feed(&piece, |message| match message {
            Message::Event(event, node) => {
                self.change(event, &node);
                if !node.version.is_empty() {
                    self.version = Some(node.version);
                    self.too_new = 0;
                }
            }
            Message::Refused(refusal) => refused = Some(refusal),
            Message::Object(_) | Message::ListEnd { .. } => {}
        });
        let broken = fed.err().map(|error| stream.broken(ask, &error));
        let broken = broken.or_else(|| refused.map(|refusal| stream.refused(ask, refusal)));
        match broken {
            Some(fault) => {
                self.publish();
                Err(fault.into())
            }
            None => Ok(()),
        }
    }

    fn change(&mut self, event: Event, node: &Node) {
        match event {
            Event::Bookmark => return,
            Event::Put => self.nodes.put(node),
            Event::Deleted => self.nodes.remove(&node.name),
        }
        if node.name == self.own {
            self.store.own_seen((event == Event::Put).then_some(node));
            // Whoever keeps our lease looks whether it still is one.
            self.mirror.touch();
        }
    }

    fn publish(&mut self) {
        let (networks, mine) = self.store.known();
        self.nodes.flush(&mut self.mirror, networks.as_deref(), mine.as_ref());
        self.mirror.publish();
    }
}

/// A watch of all Nodes; servers end it after five to ten minutes.
fn watch_nodes(from: &str) -> Ask<'static> {
    let seconds = 300 + random() % 300;
    let path = format!("{NODES}?watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}{from}");
    Ask::get(Verb::WatchNodes, "", path)
}

/// A value in a query: versions are numbers and continuations base64, but neither is promised.
fn escaped(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~');
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
