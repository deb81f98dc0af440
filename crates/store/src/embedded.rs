//! Leases in one SQLite file that the agents of a machine share: the lab, a single host, tests.
//!
//! Keys and values have the text forms of etcd. Every change is one transaction that only one agent at a
//! time can make, so there are no races to lose. A lease that has run out is free, and is deleted by
//! whoever sees it. Nothing blocks the runtime: SQLite runs on its blocking pool.

mod file;
mod hint;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model::codec::{etcd_key, lease_json};
use model::pool::same_owner;
use model::{Lease, LeaseAttrs, NetConf, Subnets};
use rusqlite::{Connection, OptionalExtension, Transaction};

use crate::choose::{Candidate, Choice, choose};
use crate::{Heard, Held, LeaseStore, Request, StoreError, Stored, View, entry};
use file::{File, Problem};

/// Tells the time; tests have their own.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// A registry in one file.
pub struct EmbeddedStore {
    file: File,
    /// Seconds.
    ttl: i64,
    clock: Clock,
}

impl EmbeddedStore {
    /// A store in the file at `path`, made (with its folder) when first written to. `ttl` is the life of
    /// a lease that is not renewed, in whole seconds.
    pub fn new(path: impl Into<PathBuf>, ttl: Duration) -> EmbeddedStore {
        EmbeddedStore::with_clock(path, ttl, Arc::new(SystemTime::now))
    }

    /// As [`EmbeddedStore::new`], with a clock of your own.
    pub fn with_clock(path: impl Into<PathBuf>, ttl: Duration, clock: Clock) -> EmbeddedStore {
        EmbeddedStore { file: File::new(path.into()), ttl: ttl.as_secs().max(1).cast_signed(), clock }
    }

    /// Writes the network configuration, whatever was there before.
    ///
    /// # Errors
    /// One sentence with the path: read-only, full, locked, not a database.
    pub async fn put_config(&self, text: &str) -> Result<(), StoreError> {
        let text = text.to_owned();
        self.file
            .create("write network configuration to", move |conn| {
                conn.execute("INSERT OR REPLACE INTO config (value) VALUES (?1)", [text])?;
                Ok(())
            })
            .await
    }

    /// All leases that have not run out, readable or not, in order of their keys.
    ///
    /// # Errors
    /// As [`EmbeddedStore::put_config`].
    pub async fn stored(&self) -> Result<Vec<Stored>, StoreError> {
        let now = seconds(&self.clock);
        self.file
            .read("list leases in", move |conn, _| {
                let rows = rows(conn, now)?.into_iter();
                Ok(rows
                    .map(|row| Stored {
                        lease: entry::read(&row.key, &row.value),
                        reserved: row.expires.is_none(),
                        key: row.key,
                    })
                    .collect())
            })
            .await
    }

    /// Deletes one lease by its key, such as `10.5.52.0-24`, whoever owns it.
    ///
    /// # Errors
    /// As [`EmbeddedStore::put_config`].
    pub async fn delete(&self, name: &str) -> Result<(), StoreError> {
        let name = name.to_owned();
        self.file
            .read("delete a lease in", move |conn, _| {
                conn.execute("DELETE FROM lease WHERE key = ?1", [name])?;
                Ok(())
            })
            .await
    }
}

/// One lease as stored.
struct Row {
    key: String,
    value: Vec<u8>,
    /// Unix seconds; `None` = reservation.
    expires: Option<i64>,
}

impl LeaseStore for EmbeddedStore {
    fn name(&self) -> String {
        format!("file {}", self.file.path().display())
    }

    fn heard(&self) -> Heard {
        self.file.heard.clone()
    }

    async fn config(&self) -> Result<String, StoreError> {
        let text = self.file.read("read network configuration from", |conn, _| {
            let query = "SELECT CAST(value AS BLOB) FROM config";
            Ok(conn.query_row(query, [], |row| row.get::<_, Vec<u8>>(0)).optional()?)
        });
        let missing = || {
            let path = self.file.path().display();
            StoreError::NoConfig(format!("no network configuration in {path} yet; write one"))
        };
        match text.await {
            Ok(Some(text)) => Ok(String::from_utf8_lossy(&text).into_owned()),
            Ok(None) => Err(missing()),
            Err(_) if !self.file.path().exists() => Err(missing()),
            Err(error) => Err(error),
        }
    }

    async fn acquire(&self, net: &NetConf, request: &Request) -> Result<Held, StoreError> {
        let (net, request) = (net.clone(), request.clone());
        let (now, ttl) = (seconds(&self.clock), self.ttl);
        self.file
            .create("take a lease in", move |conn| {
                let txn = file::begin(conn)?;
                expire(&txn, now)?;
                let rows = rows(&txn, now)?;
                let candidates: Vec<_> = rows
                    .iter()
                    .map(|row| Candidate::new(&row.key, &row.value, row.expires.is_none()))
                    .collect();
                let plan = choose(&net, &request, &candidates)?;
                for at in plan.replaced {
                    tracing::info!(
                        "lease {} is ours but no longer fits the configuration, replaced",
                        rows[at].key
                    );
                    txn.execute("DELETE FROM lease WHERE key = ?1", [&rows[at].key])?;
                }
                let (subnets, expires) = match plan.choice {
                    Choice::Keep(at, subnets) => (subnets, rows[at].expires.map(|_| now + ttl)),
                    Choice::Create(subnets) => (subnets, Some(now + ttl)),
                };
                let held = write(&txn, subnets, &request.attrs, expires)?;
                txn.commit()?;
                Ok(held)
            })
            .await
    }

    async fn renew(&self, held: &Held, attrs: &LeaseAttrs) -> Result<Held, StoreError> {
        let (held, attrs) = (held.clone(), attrs.clone());
        let (now, ttl) = (seconds(&self.clock), self.ttl);
        let path = self.file.path().to_owned();
        self.file
            .read("renew our lease in", move |conn, _| {
                let txn = file::begin(conn)?;
                let subnets = held.lease.subnets;
                let key = etcd_key::write(&subnets);
                let query = "SELECT CAST(value AS BLOB), expires, revision FROM lease \
                         WHERE key = ?1 AND (expires IS NULL OR expires > ?2)";
                let row =
                    txn.query_row(query, (&key, now), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
                let Some((value, expires, revision)): Option<(Vec<u8>, Option<i64>, i64)> = row.optional()?
                else {
                    return Err(StoreError::Lost(format!(
                        "lease {subnets} in file {} has run out or was deleted; nobody holds it now",
                        path.display()
                    ))
                    .into());
                };
                if revision != held.token
                    && let Ok(owner) = entry::read(&key, &value)
                    && !same_owner(&owner.attrs, &held.lease.attrs)
                {
                    let owner = entry::owner(&owner.attrs);
                    let text = format!("lease {subnets} in file {} belongs to {owner} now", path.display());
                    return Err(StoreError::Lost(text).into());
                }
                let renewed = write(&txn, subnets, &attrs, expires.map(|_| now + ttl))?;
                txn.commit()?;
                Ok(renewed)
            })
            .await
    }

    async fn watch(&self, feed: &tokio::sync::watch::Sender<View>) {
        watch::follow(self, feed).await;
    }
}

/// Unix seconds.
fn seconds(clock: &Clock) -> i64 {
    clock().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().cast_signed()
}

fn rows(conn: &Connection, now: i64) -> Result<Vec<Row>, Problem> {
    let query = "SELECT key, CAST(value AS BLOB), expires FROM lease WHERE expires IS NULL OR expires > ?1 ORDER BY key";
    let mut all = conn.prepare(query)?;
    let rows =
        all.query_map([now], |row| Ok(Row { key: row.get(0)?, value: row.get(1)?, expires: row.get(2)? }))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Deletes what has run out.
fn expire(conn: &Connection, now: i64) -> Result<(), rusqlite::Error> {
    conn.execute("DELETE FROM lease WHERE expires <= ?1", [now]).map(|_| ())
}

fn write(
    txn: &Transaction<'_>,
    subnets: Subnets,
    attrs: &LeaseAttrs,
    expires: Option<i64>,
) -> Result<Held, Problem> {
    let key = etcd_key::write(&subnets);
    txn.execute(
        "INSERT INTO lease (key, value, expires) VALUES (?1, ?2, ?3) \
         ON CONFLICT (key) DO UPDATE SET value = excluded.value, expires = excluded.expires",
        (&key, lease_json::write(attrs), expires),
    )?;
    let token = txn.query_row("SELECT revision FROM lease WHERE key = ?1", [&key], |row| row.get(0))?;
    let expires = expires.map(|at| UNIX_EPOCH + Duration::from_secs(at.unsigned_abs()));
    Ok(Held { lease: Lease { subnets, attrs: attrs.clone() }, expires, token })
}
