//! Kernel parameters below `/proc/sys`, of the calling thread's network namespace or another one.
//!
//! A value that is already right is not written: containers often have `/proc/sys` read-only, with the
//! values set from outside.

use std::io;
use std::path::{Path, PathBuf};

use crate::{Error, Netns};

/// Whether the kernel was not started without IPv6 (`ipv6.disable=1`, decision 0197).
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// The value without the newline. `path` is below `/proc/sys`: `net/ipv4/ip_forward`.
///
/// # Errors
/// The parameter does not exist (source of kind `NotFound`) or may not be read.
pub fn read(path: &str) -> Result<String, Error> {
    let file = file(path)?;
    match std::fs::read_to_string(&file) {
        Ok(text) => Ok(text.trim_end_matches('\n').to_owned()),
        Err(source) => Err(Error::Sysctl { action: "read".to_owned(), path: file, source }),
    }
}

/// Writes the value unless it is there already; tells whether it wrote.
///
/// # Errors
/// The parameter does not exist, or differs and cannot be written.
pub fn write(path: &str, value: &str) -> Result<bool, Error> {
    if read(path).is_ok_and(|now| now.split_whitespace().eq(value.split_whitespace())) {
        return Ok(false);
    }
    set(path, value).map(|()| true)
}

/// Writes the value whatever is there, for a device just made: looking first would cost as much again.
///
/// # Errors
/// The parameter does not exist or cannot be written.
pub fn set(path: &str, value: &str) -> Result<(), Error> {
    let file = file(path)?;
    // Neither created nor cut: procfs knows no other files than its own.
    let done = std::fs::OpenOptions::new()
        .write(true)
        .open(&file)
        .and_then(|mut f| io::Write::write_all(&mut f, value.as_bytes()));
    done.map_err(|source| Error::Sysctl { action: format!("write {value:?} to"), path: file, source })
}

/// [`read`] inside another namespace.
///
/// # Errors
/// As [`read`], or the namespace cannot be entered.
pub fn read_in(netns: &Netns, path: &str) -> Result<String, Error> {
    netns.run(|| read(path))?
}

/// [`write`] inside another namespace.
///
/// # Errors
/// As [`write`], or the namespace cannot be entered.
pub fn write_in(netns: &Netns, path: &str, value: &str) -> Result<bool, Error> {
    netns.run(|| write(path, value))?
}

/// A path that could leave `/proc/sys` is refused: parts of it come from configuration.
fn file(path: &str) -> Result<PathBuf, Error> {
    let file = PathBuf::from("/proc/sys").join(path.trim_start_matches('/'));
    if path.split('/').any(|part| matches!(part, "." | "..")) {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "the path leaves /proc/sys");
        return Err(Error::Sysctl { action: "open".to_owned(), path: file, source });
    }
    Ok(file)
}
