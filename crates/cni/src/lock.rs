//! A lock between processes: `flock` on a file, with a limit on the wait.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use model::cni::{Error, code};

/// How long a call waits for another one before it tells the runtime to try again.
const LIMIT: Duration = Duration::from_secs(10);

/// Takes the lock of that name in our own directory, which is made; it ends with the file.
///
/// # Errors
/// As [`exclusive`], or the file cannot be made.
pub fn named(state_dir: &Path, name: &str) -> Result<File, Error> {
    let dir = state_dir.join("locks");
    let path = dir.join(name);
    let open = || {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)
    };
    let file = match open() {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(&dir).and_then(|()| open())
        }
        other => other,
    };
    let file = file.map_err(|e| Error::new(code::IO, format!("open {}: {e}", path.display())))?;
    exclusive(&file, &path.display().to_string())?;
    Ok(file)
}

/// Takes the exclusive lock; it ends with the file. `what` is named in the error.
///
/// # Errors
/// Code 11 when the wait ran out, 5 when the file system has no locks.
pub fn exclusive(file: &File, what: &str) -> Result<(), Error> {
    match file.try_lock() {
        Ok(()) => return Ok(()),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(e)) => return Err(Error::new(code::IO, format!("lock {what}: {e}"))),
    }
    let failed = |e: std::io::Error| Error::new(code::IO, format!("lock {what}: {e}"));
    // The lock belongs to the open file, which both handles share. A thread left waiting ends with the
    // process, which is about to report the failure.
    let waiting = file.try_clone().map_err(failed)?;
    let (done, wait) = mpsc::channel();
    std::thread::spawn(move || done.send(waiting.lock()));
    match wait.recv_timeout(LIMIT) {
        Ok(result) => result.map_err(failed),
        Err(_) => {
            let msg = format!("lock {what}: held by another process for more than {} s", LIMIT.as_secs());
            Err(Error::new(code::TRY_LATER, msg))
        }
    }
}
