//! Our own record of an attachment, under a directory of our own (P-6).
//!
//! Written before the first side effect, so that DEL and GC can clean what a killed ADD left although the
//! runtime then has no result (B-44). Losing it costs comfort, never correctness: DEL also goes by derived
//! names and by what the kernel holds.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use model::cni::record::{ATTACHMENTS, PodName};
pub use model::cni::record::{Record, Rules};
use model::cni::{Error, code};

use crate::names;
use crate::skel::Call;

/// The beginnings of a record for the attachment of a call.
pub fn new(plugin: &str, call: &Call) -> Record {
    Record {
        plugin: plugin.to_owned(),
        container_id: call.env.container_id.clone(),
        ifname: call.env.ifname.clone(),
        netns: call.env.netns.clone(),
        pod: PodName::from_args(&call.env.args),
        ..Record::default()
    }
}

/// Written before the first side effect.
///
/// # Errors
/// The disk is full or read-only.
pub fn begin(record: &Record, call: &Call) -> Result<(), Error> {
    write(record, call, false)
}

/// Written when all is done.
///
/// # Errors
/// The disk is full or read-only.
pub fn complete(record: &Record, call: &Call) -> Result<(), Error> {
    write(record, call, true)
}

fn write(record: &Record, call: &Call, is_complete: bool) -> Result<(), Error> {
    let text = Record { is_complete, ..record.clone() }.text();
    overwrite(&path(&record.plugin, call), text.as_bytes())
}

/// The record of a call's attachment, if there is a readable one.
pub fn read(plugin: &str, call: &Call) -> Option<Record> {
    Record::parse(&fs::read_to_string(path(plugin, call)).ok()?)
}

/// Forgets a call's attachment.
///
/// # Errors
/// A file is there and cannot be removed.
pub fn remove(plugin: &str, call: &Call) -> Result<(), Error> {
    remove_file(&path(plugin, call))
}

/// Forgets another attachment of the call's network.
///
/// # Errors
/// A file is there and cannot be removed.
pub fn remove_record(call: &Call, record: &Record) -> Result<(), Error> {
    remove_file(&directory(call).join(file_name(&record.plugin, &record.container_id, &record.ifname)))
}

/// All records of the call's network by one plugin.
pub fn all(plugin: &str, call: &Call) -> Vec<Record> {
    let Ok(files) = fs::read_dir(directory(call)) else { return Vec::new() };
    let texts = files.filter_map(|file| fs::read_to_string(file.ok()?.path()).ok());
    texts.filter_map(|text| Record::parse(&text)).filter(|r| r.plugin == plugin).collect()
}

/// The records of the call's network by one plugin that belong to no valid attachment.
pub fn stale(plugin: &str, call: &Call, valid: &[(String, String)]) -> Vec<Record> {
    let mut records = all(plugin, call);
    records.retain(|r| !valid.iter().any(|(id, ifname)| *id == r.container_id && *ifname == r.ifname));
    records
}

/// Forgets records by one plugin of the call's network that nobody can read and that belong to no valid attachment: a
/// process killed between making its record and writing it had done nothing else yet.
///
/// # Errors
/// A file cannot be removed.
pub fn forget_unreadable(plugin: &str, call: &Call, valid: &[(String, String)]) -> Result<(), Error> {
    let Ok(files) = fs::read_dir(directory(call)) else { return Ok(()) };
    let kept: Vec<String> = valid.iter().map(|(id, ifname)| file_name(plugin, id, ifname)).collect();
    for file in files.flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        let is_ours = name.rsplit_once('.').is_some_and(|(_, by)| by == plugin) && !kept.contains(&name);
        if is_ours && fs::read_to_string(file.path()).is_ok_and(|text| Record::parse(&text).is_none()) {
            remove_file(&file.path())?;
        }
    }
    Ok(())
}

fn path(plugin: &str, call: &Call) -> PathBuf {
    directory(call).join(file_name(plugin, &call.env.container_id, &call.env.ifname))
}

fn directory(call: &Call) -> PathBuf {
    call.env.state_dir.join(ATTACHMENTS).join(&call.network)
}

fn file_name(plugin: &str, container_id: &str, ifname: &str) -> String {
    format!("{}.{plugin}", names::attachment_mark(container_id, ifname))
}

/// Removes a file; one that is not there counts as removed, also on a read-only disk.
///
/// # Errors
/// Anything else.
pub fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound && fs::symlink_metadata(path).is_ok() => {
            Err(Error::new(code::IO, format!("remove {}: {e}", path.display())))
        }
        _ => Ok(()),
    }
}

/// The name a file is written under before it gets its own. The same for every process: no two write one
/// file at a time, and what a killed one left is found.
pub fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.new"))
}

/// Writes a file readable by root only under [`temporary`], then renames it. Makes the directories on the
/// way (0700).
///
/// # Errors
/// The disk is full or read-only, or a directory is none.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<(), Error> {
    let temporary = temporary(path);
    overwrite(&temporary, content)?;
    fs::rename(&temporary, path).map_err(|e| {
        let _ = fs::remove_file(&temporary);
        failed(path, &e)
    })
}

/// Writes a file readable by root only in place, for content whose reader notices a cut. The pod waits for
/// this: a file emptied or replaced is written to disk at once by some file systems, and making and
/// removing files is what costs most on ext4. Leaves none after an error. Makes the directories on the way.
///
/// # Errors
/// As [`write_atomically`].
pub fn overwrite(path: &Path, content: &[u8]) -> Result<(), Error> {
    let open = || fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = match (open(), path.parent()) {
        (Err(e), Some(dir)) if e.kind() == ErrorKind::NotFound => {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| failed(path, &e))?;
            open()
        }
        (other, _) => other,
    };
    let write = |mut file: fs::File| {
        file.write_all(content)?;
        // Looking is much cheaper than cutting, which the file system has to write down.
        let length = content.len() as u64;
        if file.metadata()?.len() > length { file.set_len(length) } else { Ok(()) }
    };
    file.and_then(write).map_err(|e| {
        let _ = fs::remove_file(path);
        failed(path, &e)
    })
}

fn failed(path: &Path, cause: &std::io::Error) -> Error {
    let way_out = "the disk has to be writable and have room left";
    Error::new(code::IO, format!("write {}: {cause}", path.display())).details(way_out)
}
