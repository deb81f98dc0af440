//! Following the file: look when the folder says so and once a second, read only rows that changed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;

use super::file::{File, Problem};
use super::hint::Hint;
use super::{Clock, EmbeddedStore, expire, seconds};
use crate::backoff::Backoff;
use crate::entry;
use crate::mirror::Mirror;
use crate::{StoreError, View};

const POLL: Duration = Duration::from_secs(1);
/// Writers come in bursts; one look serves them all.
const SETTLE: Duration = Duration::from_millis(5);

/// What has been read so far; moves to the blocking pool and back.
#[derive(Default)]
struct Seen {
    /// SQLite's own number for "somebody else has written".
    data_version: i64,
    /// Revision of every row read.
    rows: BTreeMap<String, i64>,
    /// Unix time at which the next row runs out.
    next_expiry: Option<i64>,
}

/// What a look has found.
struct News {
    seen: Seen,
    /// Whether `written` is the whole content.
    complete: bool,
    written: Vec<(String, Vec<u8>)>,
    removed: Vec<String>,
}

pub(super) async fn follow(store: &EmbeddedStore, feed: &tokio::sync::watch::Sender<View>) {
    let mut mirror = Mirror::new(crate::LeaseStore::name(store), feed);
    let file = store.file.another();
    let mut hint = None;
    let mut seen = Seen::default();
    let mut backoff = Backoff::new();
    loop {
        // Before the look: what is written after it must be heard of.
        hint = hint.or_else(|| Hint::new(file.path()));
        match look(&file, &store.clock, seen).await {
            Ok(news) => {
                backoff.reset();
                if news.complete {
                    let leases =
                        news.written.iter().map(|(key, value)| (key.as_str(), entry::read(key, value)));
                    mirror.reset(leases);
                } else {
                    news.removed.iter().for_each(|key| mirror.remove(key));
                    news.written.iter().for_each(|(key, value)| mirror.put(key, entry::read(key, value)));
                }
                mirror.recovered();
                mirror.publish();
                seen = news.seen;
                wait(hint.as_ref(), &seen, &store.clock).await;
            }
            Err(error) => {
                mirror.trouble(error.to_string());
                // The folder may have been replaced together with the file.
                (hint, seen) = (None, Seen::default());
                backoff.wait().await;
            }
        }
    }
}

async fn wait(hint: Option<&Hint>, seen: &Seen, clock: &Clock) {
    let until_expiry =
        seen.next_expiry.map(|at| Duration::from_secs((at - seconds(clock)).max(0).unsigned_abs()));
    // Rounded up to the second in which the row has run out.
    let poll = until_expiry.map_or(POLL, |left| left.clamp(Duration::from_millis(50), POLL));
    match hint {
        Some(hint) => {
            tokio::select! {
                () = hint.touched() => tokio::time::sleep(SETTLE).await,
                () = tokio::time::sleep(poll) => {}
            }
        }
        None => tokio::time::sleep(poll).await,
    }
}

async fn look(file: &File, clock: &Clock, seen: Seen) -> Result<News, StoreError> {
    let clock = Arc::clone(clock);
    file.read("watch", move |conn, reopened| {
        let now = seconds(&clock);
        let mut seen = if reopened { Seen::default() } else { seen };
        if seen.next_expiry.is_some_and(|at| at <= now) {
            // A file that cannot be written still shows which rows count.
            let _ = expire(conn, now);
        }
        let version = conn.query_row("PRAGMA data_version", [], |row| row.get(0))?;
        let complete = seen.data_version == 0;
        if version == seen.data_version && seen.next_expiry.is_none_or(|at| at > now) {
            return Ok(News { seen, complete, written: Vec::new(), removed: Vec::new() });
        }
        let mut news = difference(conn, now, &mut seen)?;
        seen.data_version = version;
        news.complete = complete;
        Ok(News { seen, ..news })
    })
    .await
}

/// Compares the rows with those seen; fetches the values of new and changed ones.
fn difference(conn: &mut Connection, now: i64, seen: &mut Seen) -> Result<News, Problem> {
    let txn = conn.transaction()?;
    let mut rows = BTreeMap::new();
    let mut written = Vec::new();
    {
        let mut all =
            txn.prepare("SELECT key, revision, expires FROM lease WHERE expires IS NULL OR expires > ?1")?;
        let mut value = txn.prepare("SELECT CAST(value AS BLOB) FROM lease WHERE key = ?1")?;
        seen.next_expiry = None;
        let mut cursor = all.query([now])?;
        while let Some(row) = cursor.next()? {
            let (key, revision, expires): (String, i64, Option<i64>) =
                (row.get(0)?, row.get(1)?, row.get(2)?);
            seen.next_expiry = seen.next_expiry.into_iter().chain(expires).min();
            if seen.rows.remove(&key) != Some(revision) {
                written.push((key.clone(), value.query_row([&key], |row| row.get(0))?));
            }
            rows.insert(key, revision);
        }
    }
    txn.finish()?;
    let removed = std::mem::replace(&mut seen.rows, rows).into_keys().collect();
    Ok(News { seen: Seen::default(), complete: false, written, removed })
}
