//! The SQLite file: opening it, its tables, and what its errors mean to the person at the keyboard.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use crate::{Heard, StoreError};

/// Marks the file as ours: "Lodn".
const APPLICATION: i32 = 0x4c6f_646e;
const SCHEMA_VERSION: i32 = 1;
const LOCK_LIMIT: Duration = Duration::from_secs(5);

/// Keys and values have the text forms of etcd, so `sqlite3 FILE .dump` reads like `etcdctl get --prefix`.
/// `expires` is in Unix seconds, NULL for a reservation. Every write to a lease, also one by hand, gives it
/// the next number of the file's counter as its `revision`.
pub(super) const SCHEMA: &str = "
    CREATE TABLE counter (revision INTEGER NOT NULL);
    INSERT INTO counter VALUES (0);
    CREATE TABLE config (key TEXT PRIMARY KEY DEFAULT 'config' CHECK (key = 'config'), value TEXT NOT NULL);
    CREATE TABLE lease (
        key TEXT PRIMARY KEY, value TEXT NOT NULL, expires INTEGER, revision INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID;
    CREATE TRIGGER lease_made AFTER INSERT ON lease BEGIN
        UPDATE counter SET revision = revision + 1;
        UPDATE lease SET revision = (SELECT revision FROM counter) WHERE key = NEW.key;
    END;
    CREATE TRIGGER lease_changed AFTER UPDATE OF key, value, expires ON lease BEGIN
        UPDATE counter SET revision = revision + 1;
        UPDATE lease SET revision = (SELECT revision FROM counter) WHERE key = NEW.key;
    END;
";

/// What the watch asks by. Programs that do not know them keep them all the same.
pub(super) const INDEXES: &str = "
    CREATE INDEX IF NOT EXISTS lease_revision ON lease (revision);
    CREATE INDEX IF NOT EXISTS lease_expires ON lease (expires);
";

/// An error that knows the file.
#[derive(Debug)]
pub(super) enum Problem {
    Sqlite(rusqlite::Error),
    Store(StoreError),
}

impl From<rusqlite::Error> for Problem {
    fn from(error: rusqlite::Error) -> Problem {
        Problem::Sqlite(error)
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Problem {
        Problem::Store(error)
    }
}

/// A handle that opens the file when first needed, and again when it was replaced or an error made the
/// old handle doubtful. Clones share it.
#[derive(Clone)]
pub(super) struct File {
    path: PathBuf,
    open: Arc<Mutex<Option<Open>>>,
    pub heard: Heard,
}

struct Open {
    conn: Connection,
    /// Device and inode, to notice that the path leads to another file now.
    identity: (u64, u64),
}

impl File {
    pub(super) fn new(path: PathBuf) -> File {
        File { path, open: Arc::default(), heard: Heard::default() }
    }

    /// A second handle on the same file, with a connection of its own.
    pub(super) fn another(&self) -> File {
        File { heard: self.heard.clone(), ..File::new(self.path.clone()) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `job` on a file that exists already. `reopened` tells it that what it remembers is void.
    ///
    /// # Errors
    /// One sentence with the path and the way out.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        action: &'static str,
        job: impl FnOnce(&mut Connection, bool) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.run(action, false, job).await
    }

    /// Runs `job`; a missing file is made first, with its folder.
    ///
    /// # Errors
    /// As [`File::read`].
    pub(super) async fn create<T: Send + 'static>(
        &self,
        action: &'static str,
        job: impl FnOnce(&mut Connection) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.run(action, true, |conn, _| job(conn)).await
    }

    /// On the blocking pool.
    async fn run<T: Send + 'static>(
        &self,
        action: &'static str,
        create: bool,
        job: impl FnOnce(&mut Connection, bool) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, StoreError> {
        let file = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let mut open = file.open.lock().unwrap_or_else(PoisonError::into_inner);
            let result = file.opened(&mut open, create).and_then(|(open, fresh)| job(&mut open.conn, fresh));
            result.map_err(|problem| match problem {
                Problem::Store(error) => error,
                Problem::Sqlite(error) => {
                    // The next try begins with a fresh handle, unless it merely had to wait.
                    if error.sqlite_error_code() != Some(ErrorCode::DatabaseBusy) {
                        *open = None;
                    }
                    explain(action, &file.path, &error)
                }
            })
        });
        let done = done.await;
        let done = done
            .unwrap_or_else(|e| Err(StoreError::Broken(format!("{action} {}: {e}", self.path.display()))));
        done.inspect(|_| self.heard.touch())
    }

    /// Opens the file unless it is open and still the one at our path. Gives whether it was opened now.
    fn opened<'a>(&self, open: &'a mut Option<Open>, create: bool) -> Result<(&'a mut Open, bool), Problem> {
        let path = &self.path;
        let identity = || std::fs::metadata(path).map(|m| (m.dev(), m.ino()));
        let now = identity();
        if open.as_ref().is_some_and(|o| now.as_ref().is_ok_and(|now| *now == o.identity))
            && let Some(current) = open.take()
        {
            return Ok((open.insert(current), false));
        }
        *open = None;
        let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        if create {
            flags |= OpenFlags::SQLITE_OPEN_CREATE;
            if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
                std::fs::create_dir_all(folder)
                    .map_err(|e| StoreError::Denied(format!("create folder {}: {e}", folder.display())))?;
            }
        } else if let Err(error) = now {
            return Err(StoreError::Unreachable(format!("open {}: {error}", path.display())).into());
        }
        let mut conn = Connection::open_with_flags(path, flags)?;
        conn.busy_timeout(LOCK_LIMIT)?;
        prepare(&mut conn, path)?;
        let identity =
            identity().map_err(|e| StoreError::Unreachable(format!("open {}: {e}", path.display())))?;
        Ok((open.insert(Open { conn, identity }), true))
    }
}

/// Checks that the file is ours, and makes the tables of a new one.
fn prepare(conn: &mut Connection, path: &Path) -> Result<(), Problem> {
    let number = |conn: &Connection, pragma: &str| conn.query_row(pragma, [], |row| row.get::<_, i32>(0));
    let known = |conn: &Connection| -> Result<bool, Problem> {
        if number(conn, "PRAGMA application_id")? == APPLICATION {
            let version = number(conn, "PRAGMA user_version")?;
            return if version == SCHEMA_VERSION { Ok(true) } else { Err(newer(path, version).into()) };
        }
        if number(conn, "SELECT count(*) FROM sqlite_schema")? > 0 {
            let text = format!("open {}: the database of another program; name another file", path.display());
            return Err(StoreError::Broken(text).into());
        }
        Ok(false)
    };
    if !known(conn)? {
        conn.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
        let txn = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Another agent may have been faster.
        if !known(&txn)? {
            txn.execute_batch(SCHEMA)?;
            txn.execute_batch(INDEXES)?;
            txn.pragma_update(None, "application_id", APPLICATION)?;
            txn.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        }
        txn.commit()?;
    }
    conn.pragma_update(None, "synchronous", "NORMAL")?;
    Ok(())
}

fn newer(path: &Path, version: i32) -> StoreError {
    let path = path.display();
    StoreError::Broken(format!(
        "open {path}: written in form {version}, and this program knows form {SCHEMA_VERSION}; use the newer program"
    ))
}

/// Begins a transaction that may write; nobody else writes until it ends.
pub(super) fn begin(conn: &mut Connection) -> Result<Transaction<'_>, rusqlite::Error> {
    conn.transaction_with_behavior(TransactionBehavior::Immediate)
}

fn explain(action: &str, path: &Path, error: &rusqlite::Error) -> StoreError {
    let text = |advice: &str| format!("{action} {}: {advice} ({error})", path.display());
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            StoreError::Unreachable(text("another program keeps it locked; end that program's transaction"))
        }
        Some(ErrorCode::DiskFull) => StoreError::Unreachable(text("the disk is full; free some space")),
        Some(ErrorCode::ReadOnly) => StoreError::Denied(text(
            "the file or its disk is read-only; make it writable or name another file",
        )),
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => StoreError::Denied(text(
            "cannot be opened; is it a file, and may we read and write it and its folder?",
        )),
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => StoreError::Broken(text(
            "not a sound SQLite database; restore it, or move it away and the agents make a new one",
        )),
        Some(ErrorCode::SystemIoFailure) => {
            StoreError::Unreachable(text("the disk fails; see the kernel's log"))
        }
        _ => StoreError::Broken(format!("{action} {}: {error}", path.display())),
    }
}
