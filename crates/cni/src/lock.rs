//! A lock between processes: `flock` on a file, with a limit on the wait.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use model::cni::{Error, code};

/// How long a call waits for another one before it tells the runtime to try again.
const LIMIT: Duration = Duration::from_secs(10);

/// A lock by name, for what several calls build together.
///
/// # Errors
/// The file cannot be made, or the wait ran out.
pub fn named(state_dir: &Path, name: &str) -> Result<File, Error> {
    let dir = state_dir.join("locks");
    let file = dir.join(name);
    let open = || File::options().write(true).create(true).truncate(false).open(&file);
    let opened = open().or_else(|_| std::fs::create_dir_all(&dir).and_then(|()| open()));
    let opened = opened.map_err(|e| Error::new(code::IO, format!("open {}: {e}", file.display())))?;
    exclusive(&opened, &format!("{name} ({})", file.display()))?;
    Ok(opened)
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
