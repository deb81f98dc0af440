//! Watches: what was there, what changes, bookmarks; and everything that can go wrong with them.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::body::{Body, Pieces, break_off};
use crate::fault::{Effect, Stroke};
use crate::kind::Kind;
use crate::options::{At, Options};
use crate::refusal::Refusal;
use crate::shared::{Inner, Shared};
use crate::world::{Change, Stored};

/// When a watch ends that did not ask for an end: servers choose between half an hour and a whole one.
const LIFE: Duration = Duration::from_secs(45 * 60);

/// Changes taken under one hold of the lock.
const BATCH: usize = 256;

struct Watcher {
    shared: Arc<Shared>,
    kind: &'static Kind,
    namespace: String,
    options: Options,
    /// Revision up to which everything was sent.
    at: u64,
    /// Revision of the last line that told one.
    told: u64,
    /// Strokes seen.
    strokes: usize,
    repeat: usize,
    half: bool,
    bookmark_due: bool,
    news: watch::Receiver<u64>,
}

/// What a look at the state says to do next.
struct Turn {
    lines: Vec<Bytes>,
    more: bool,
    end: Option<End>,
}

#[derive(PartialEq, Eq)]
enum End {
    Orderly,
    Broken,
    Silent,
}

/// Begins a watch.
pub fn start(
    shared: &Arc<Shared>,
    inner: &mut Inner,
    (kind, namespace): (&'static Kind, &str),
    options: Options,
    (effect, reported): (Option<&Effect>, Option<&Refusal>),
) -> Result<Body, Refusal> {
    let world = &inner.world;
    let mut first = Vec::new();
    let mut ended = None;
    let stale = if let Some(Effect::Stale(revision)) = effect { Some(*revision) } else { None };
    let now = stale.unwrap_or(world.revision);
    let from_now = options.initial_events == Some(true)
        || options.initial_events.is_none() && matches!(options.at, At::Newest | At::Any);
    let at = match options.at {
        At::NotOlder(revision) | At::Exactly(revision) if !from_now => revision,
        _ => now,
    };
    if from_now {
        let there = world.list_at(kind, namespace, now).unwrap_or_else(|| world.list(kind, namespace));
        let chosen =
            |stored: &Stored| options.selector.is_empty() || options.selector.matches(&stored.value());
        let chosen = there.iter().filter(|(_, stored)| chosen(stored));
        first.extend(chosen.map(|(_, stored)| line("ADDED", &stored.json)));
        if options.initial_events == Some(true) && options.bookmarks {
            first.push(bookmark(kind, now, true));
        }
    } else if at < world.floor {
        first.push(error(&too_old(at, world.floor)));
        ended = Some(End::Orderly);
    }
    match effect {
        Some(Effect::End) => {
            first.clear();
            ended = Some(End::Orderly);
        }
        Some(Effect::Gone) => {
            first = vec![error(&too_old(at, world.revision))];
            ended = Some(End::Orderly);
        }
        Some(Effect::InStream(_)) => {
            first = reported.map(error).into_iter().collect();
            ended = Some(End::Orderly);
        }
        Some(Effect::Garbage(text)) => first.insert(0, Bytes::from(text.clone())),
        _ => {}
    }
    let (pieces, body) = Body::stream();
    let repeat = if let Some(Effect::Repeat(times)) = effect { *times } else { 0 };
    inner.watches += 1;
    let watcher = Watcher {
        shared: shared.clone(),
        kind,
        namespace: namespace.to_owned(),
        options,
        at,
        told: at,
        strokes: inner.strokes.len(),
        repeat,
        half: false,
        bookmark_due: false,
        // Taken while the state is held: no change falls between.
        news: shared.news(),
    };
    tokio::spawn(watcher.run(pieces, first, ended, inner.bookmark_every));
    Ok(body)
}

impl Watcher {
    async fn run(mut self, to: Pieces, first: Vec<Bytes>, ended: Option<End>, bookmark_every: Duration) {
        let born = Instant::now();
        let death = born + self.options.timeout_s.map_or(LIFE, Duration::from_secs);
        let mut next_bookmark = born + bookmark_every;
        let mut turn = Turn { lines: first, more: false, end: ended };
        loop {
            for line in turn.lines.drain(..) {
                if to.send(Ok(line)).await.is_err() {
                    return;
                }
            }
            match turn.end {
                Some(End::Orderly) => return,
                Some(End::Broken) => return break_off(&to).await,
                Some(End::Silent) => {
                    to.closed().await;
                    return;
                }
                None => {}
            }
            if !turn.more {
                tokio::select! {
                    _ = self.news.changed() => {}
                    () = sleep_until(death) => return,
                    () = sleep_until(next_bookmark), if self.options.bookmarks => {
                        next_bookmark += bookmark_every;
                        self.bookmark_due = true;
                    }
                    () = to.closed() => return,
                }
            }
            turn = self.turn();
        }
    }

    /// Looks at the state once.
    fn turn(&mut self) -> Turn {
        let shared = self.shared.clone();
        let inner = shared.lock();
        let changes: Vec<_> = inner.world.since(self.at).take(BATCH).cloned().collect();
        let mut turn = Turn { lines: Vec::new(), more: changes.len() == BATCH, end: None };
        for change in changes {
            self.suffer_before(&inner, change.revision, &mut turn);
            if turn.end.is_some() {
                return turn;
            }
            self.at = change.revision;
            let Some(line) = self.event(&change) else { continue };
            if self.half {
                turn.lines.push(line.slice(..line.len() / 2));
                turn.end = Some(End::Broken);
                return turn;
            }
            self.told = change.revision;
            turn.lines.extend(std::iter::repeat_n(line, 1 + self.repeat));
        }
        if turn.more {
            return turn;
        }
        self.suffer_before(&inner, u64::MAX, &mut turn);
        if std::mem::take(&mut self.bookmark_due) && self.options.bookmarks && turn.end.is_none() {
            self.at = self.at.max(inner.world.revision);
            self.told = self.at;
            turn.lines.push(bookmark(self.kind, self.at, false));
        }
        turn
    }

    /// Every stroke that fell before the change of `revision`.
    fn suffer_before(&mut self, inner: &Inner, revision: u64, turn: &mut Turn) {
        while let Some((fell, stroke)) = inner.strokes.get(self.strokes)
            && *fell < revision
            && turn.end.is_none()
        {
            self.strokes += 1;
            self.suffer(inner, stroke.clone(), turn);
        }
    }

    fn suffer(&mut self, inner: &Inner, stroke: Stroke, turn: &mut Turn) {
        match stroke {
            Stroke::Cut => turn.end = Some(End::Broken),
            Stroke::CutInLine => self.half = true,
            Stroke::End => turn.end = Some(End::Orderly),
            Stroke::Gone => {
                turn.lines.push(error(&too_old(self.told, inner.world.revision)));
                turn.end = Some(End::Orderly);
            }
            Stroke::Error => {
                turn.lines.push(error(&Refusal::internal("etcdserver: request timed out")));
                turn.end = Some(End::Orderly);
            }
            Stroke::Bookmark => self.bookmark_due = true,
            Stroke::Replay(count) => {
                let last: Vec<_> =
                    inner.world.since(0).rev().filter_map(|change| self.event(change)).take(count).collect();
                turn.lines.extend(last.into_iter().rev());
            }
            Stroke::Garbage(text) => turn.lines.push(Bytes::from(text)),
            Stroke::Silence => turn.end = Some(End::Silent),
        }
    }

    /// The line for a change; none if it is not about anything selected.
    fn event(&self, change: &Change) -> Option<Bytes> {
        let here = self.namespace.is_empty() || change.key.0 == self.namespace;
        if change.kind != self.kind || !here {
            return None;
        }
        let chosen = |stored: &Stored| {
            self.options.selector.is_empty() || self.options.selector.matches(&stored.value())
        };
        let was = change.before.as_deref().is_some_and(chosen);
        let is = !change.deleted && chosen(&change.now);
        match (was, is) {
            (false, false) => None,
            (false, true) => Some(line("ADDED", &change.now.json)),
            (true, true) => Some(line("MODIFIED", &change.now.json)),
            (true, false) if change.deleted => Some(line("DELETED", &change.now.json)),
            // It left the selection: shown as it was before, with the new revision.
            (true, false) => {
                let mut value = change.before.as_deref()?.value();
                value["metadata"]["resourceVersion"] = change.revision.to_string().into();
                Some(line("DELETED", &Bytes::from(value.to_string())))
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.lock().watches -= 1;
        self.shared.ring();
    }
}

fn line(kind: &str, object: &Bytes) -> Bytes {
    let mut line = Vec::with_capacity(object.len() + 40);
    line.extend_from_slice(format!(r#"{{"type":"{kind}","object":"#).as_bytes());
    line.extend_from_slice(object);
    line.extend_from_slice(b"}\n");
    line.into()
}

fn error(refusal: &Refusal) -> Bytes {
    line("ERROR", &Bytes::from(refusal.body().to_string()))
}

fn too_old(asked: u64, oldest: u64) -> Refusal {
    Refusal::expired(format!("too old resource version: {asked} ({oldest})"))
}

fn bookmark(kind: &Kind, revision: u64, initial_end: bool) -> Bytes {
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if initial_end {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    let object: Value = json!({"kind": kind.name, "apiVersion": kind.api_version(), "metadata": metadata});
    line("BOOKMARK", &Bytes::from(object.to_string()))
}
