//! Following the file: look when the folder says so and every few seconds, read only rows that changed.
//!
//! Every write has a number (decision 0247), so a look asks for the rows above the last one it saw, and whether as many rows
//! are there as it knows. Only if not, and now and then to be sure, it lists all keys.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, Transaction};

use super::file::{File, INDEXES, Problem};
use super::hint::{Hint, Touched};
use super::{Clock, EmbeddedStore, expire, seconds};
use crate::backoff::Backoff;
use crate::entry;
use crate::mirror::Mirror;
use crate::{StoreError, View};

/// Looks where nobody says when the file changes.
const POLL: Duration = Duration::from_secs(1);
/// Looks where the folder does: each wakes three threads, at rest half of what an agent does (decision 0249).
const POLL_BESIDE_HINT: Duration = Duration::from_secs(5);
/// Writers come in bursts; one look serves them all.
const SETTLE: Duration = Duration::from_millis(5);

/// After looks at single rows all are listed once more, at most this many seconds later.
const LIST_AFTER: i64 = 30;

/// What has been read so far; moves to the blocking pool and back.
#[derive(Default)]
struct Seen {
    /// SQLite's own number for "somebody else has written".
    data_version: i64,
    /// Revision of every row read.
    rows: BTreeMap<String, i64>,
    /// The file's counter then.
    revision: i64,
    /// Unix time of the look.
    at: i64,
    /// Unix time at which the next row runs out.
    next_expiry: Option<i64>,
    /// Unix time at which all rows are to be listed, if single ones were looked at.
    list_at: Option<i64>,
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
    let mut touched = false;
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
                if news.complete {
                    // Opened anew: the folder we watch may be another one than that the path leads to now. Once more, for
                    // what was written meanwhile.
                    hint = None;
                    continue;
                }
                touched = wait(&mut hint, touched, &seen, &store.clock).await;
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

/// Waits for the next look; gives whether the folder told of something. After that the one after it comes soon as well: a
/// writer tells of its pages, and may be kept from the processor before it makes them valid, which nobody tells.
async fn wait(hint: &mut Option<Hint>, touched: bool, seen: &Seen, clock: &Clock) -> bool {
    let until_expiry =
        seen.next_expiry.map(|at| Duration::from_secs((at - seconds(clock)).max(0).unsigned_abs()));
    let most = if hint.is_some() && !touched { POLL_BESIDE_HINT } else { POLL };
    // Rounded up to the second in which the row has run out.
    let poll = until_expiry.map_or(most, |left| left.clamp(Duration::from_millis(50), most));
    let Some(watched) = hint else {
        tokio::time::sleep(poll).await;
        return false;
    };
    let touched = tokio::select! {
        touched = watched.touched() => touched,
        () = tokio::time::sleep(poll) => return false,
    };
    if touched == Touched::Folder {
        *hint = None;
    }
    tokio::time::sleep(SETTLE).await;
    true
}

async fn look(file: &File, clock: &Clock, seen: Seen) -> Result<News, StoreError> {
    let clock = Arc::clone(clock);
    file.read("watch", move |conn, reopened| {
        let now = seconds(&clock);
        let mut seen = if reopened { Seen::default() } else { seen };
        if reopened {
            // A file of an older program has no indexes; without them everything is as right, and slower.
            let _ = conn.execute_batch(INDEXES);
        }
        if seen.next_expiry.is_some_and(|at| at <= now) {
            // A file that cannot be written still shows which rows count.
            let _ = expire(conn, now);
        }
        let version = conn.query_row("PRAGMA data_version", [], |row| row.get(0))?;
        let complete = seen.data_version == 0;
        let due = |at: Option<i64>| at.is_some_and(|at| at <= now);
        if version == seen.data_version && !due(seen.next_expiry) && !due(seen.list_at) {
            return Ok(News { seen, complete, written: Vec::new(), removed: Vec::new() });
        }
        let news = difference(conn, now, &mut seen)?;
        seen.data_version = version;
        Ok(News { seen, complete, ..news })
    })
    .await
}

/// New and changed rows, and those that are gone, since the last time.
fn difference(conn: &mut Connection, now: i64, seen: &mut Seen) -> Result<News, Problem> {
    let txn = conn.transaction()?;
    let revision = txn.query_row("SELECT revision FROM counter", [], |row| row.get(0))?;
    let news = match above(&txn, now, revision, seen)? {
        Some(news) => news,
        None => listed(&txn, now, seen)?,
    };
    let next = "SELECT min(expires) FROM lease WHERE expires > ?1";
    seen.next_expiry = txn.query_row(next, [now], |row| row.get(0))?;
    (seen.revision, seen.at) = (revision, now);
    txn.finish()?;
    Ok(news)
}

/// The difference by the numbers of the rows; `None` if that does not tell all: rows are gone, a clock or the
/// file's counter went back, or it is time for a list.
fn above(txn: &Transaction<'_>, now: i64, revision: i64, seen: &mut Seen) -> Result<Option<News>, Problem> {
    let list_due = seen.list_at.is_some_and(|at| at <= now);
    if seen.data_version == 0 || revision < seen.revision || now < seen.at || list_due {
        return Ok(None);
    }
    let mut query = txn.prepare(
        "SELECT key, revision, CAST(value AS BLOB) FROM lease WHERE revision > ?1 AND (expires IS NULL OR expires > ?2)",
    )?;
    let rows = query.query_map([seen.revision, now], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let rows: Vec<(String, i64, Vec<u8>)> = rows.collect::<Result<_, _>>()?;
    let new = rows.iter().filter(|(key, ..)| !seen.rows.contains_key(key)).count();
    // Two counts, because each is one of an index.
    let count = "SELECT (SELECT count(*) FROM lease) - (SELECT count(*) FROM lease WHERE expires <= ?1)";
    let there: i64 = txn.prepare(count)?.query_row([now], |row| row.get(0))?;
    if there != (seen.rows.len() + new) as i64 {
        return Ok(None);
    }
    let mut written = Vec::new();
    for (key, revision, value) in rows {
        seen.rows.insert(key.clone(), revision);
        written.push((key, value));
    }
    seen.list_at.get_or_insert(now + LIST_AFTER);
    Ok(Some(News { seen: Seen::default(), complete: false, written, removed: Vec::new() }))
}

/// Compares all rows with those seen; takes the values of new and changed ones.
fn listed(txn: &Transaction<'_>, now: i64, seen: &mut Seen) -> Result<News, Problem> {
    let mut rows = BTreeMap::new();
    let mut written = Vec::new();
    let query = "SELECT key, revision, CAST(value AS BLOB) FROM lease WHERE expires IS NULL OR expires > ?1";
    let mut all = txn.prepare(query)?;
    let mut cursor = all.query([now])?;
    while let Some(row) = cursor.next()? {
        let (key, revision): (String, i64) = (row.get(0)?, row.get(1)?);
        if seen.rows.remove(&key) != Some(revision) {
            written.push((key.clone(), row.get(2)?));
        }
        rows.insert(key, revision);
    }
    let removed = std::mem::replace(&mut seen.rows, rows).into_keys().collect();
    seen.list_at = None;
    Ok(News { seen: Seen::default(), complete: false, written, removed })
}

#[cfg(test)]
mod tests {
    use super::super::file;
    use super::*;

    /// What is told of each look, applied to what was known, is what the file holds: however rows come, change,
    /// run out and go.
    #[test]
    fn what_is_told_adds_up_to_the_rows() {
        let (mut quick, mut whole) = (0, 0);
        for seed in 0..30u64 {
            // Marsaglia's xorshift (2003, 64 bits).
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut below = |end: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 11) % end
            };
            let mut conn = Connection::open_in_memory().unwrap();
            conn.execute_batch(file::SCHEMA).unwrap();
            // Some are as an older program made them.
            if seed % 3 != 0 {
                conn.execute_batch(INDEXES).unwrap();
            }
            let (mut now, mut seen, mut known) = (1_000, Seen::default(), BTreeMap::new());
            for _ in 0..150 {
                for _ in 0..below(4) {
                    let key = format!("10.3.{}.0-24", below(25));
                    let value = below(4).to_string();
                    let expires = (below(5) > 0).then(|| now + below(60) as i64);
                    let upsert = "INSERT INTO lease (key, value, expires) VALUES (?1, ?2, ?3) ON CONFLICT (key) \
                                  DO UPDATE SET value = excluded.value, expires = excluded.expires";
                    match below(12) {
                        0 => conn.execute("DELETE FROM lease WHERE key = ?1", [key]),
                        1 => conn.execute("UPDATE lease SET expires = ?2 WHERE key = ?1", (key, expires)),
                        _ => conn.execute(upsert, (key, value, expires)),
                    }
                    .unwrap();
                }
                now += below(3) as i64;
                if below(40) == 0 {
                    now -= 20;
                }
                if below(3) == 0 {
                    expire(&conn, now).unwrap();
                }
                let news = difference(&mut conn, now, &mut seen).unwrap();
                seen.data_version = 1;
                *if seen.list_at.is_some() { &mut quick } else { &mut whole } += 1;
                news.removed.iter().for_each(|key| drop(known.remove(key)));
                known.extend(news.written);
                let rows = super::super::rows(&conn, now).unwrap();
                let want: BTreeMap<_, _> = rows.iter().map(|r| (r.key.clone(), r.value.clone())).collect();
                assert_eq!(known, want, "seed {seed}");
                let next = rows.iter().filter_map(|row| row.expires).min();
                assert_eq!(seen.next_expiry, next, "seed {seed}");
            }
        }
        assert!(quick > 1_000 && whole > 1_000, "{quick} {whole}");
    }
    /// As a copy of the tables written back into the file does: rows come with numbers below the last one seen.
    #[test]
    fn a_counter_that_went_back_makes_all_be_listed() {
        let mut conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(file::SCHEMA).unwrap();
        let put = "INSERT OR REPLACE INTO lease (key, value) VALUES (?1, ?2)";
        for key in ["a", "b", "c", "d"] {
            conn.execute(put, [key, "old"]).unwrap();
        }
        let mut seen = Seen::default();
        assert_eq!(difference(&mut conn, 1, &mut seen).unwrap().written.len(), 4);
        seen.data_version = 1;
        conn.execute("UPDATE counter SET revision = 1", []).unwrap();
        conn.execute(put, ["d", "new"]).unwrap();
        let news = difference(&mut conn, 1, &mut seen).unwrap();
        assert_eq!(news.written, [("d".to_owned(), b"new".to_vec())]);
        assert_eq!((news.removed.len(), seen.revision), (0, 2));
    }
}
