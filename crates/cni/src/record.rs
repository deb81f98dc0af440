//! Our own record of an attachment, under a directory of our own (P-6).
//!
//! Written before the first side effect, so that DEL and GC can clean what a killed ADD left although the
//! runtime then has no result (B-44). Losing it costs comfort, never correctness: DEL also goes by derived
//! names and by what the kernel holds.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use model::cni::{Error, Members, code};
use model::gojson::Json;

use crate::names;
use crate::skel::Call;

/// What a plugin knows of an attachment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The plugin that wrote it.
    pub plugin: String,
    /// Container id.
    pub container_id: String,
    /// Interface in the pod.
    pub ifname: String,
    /// Path of the namespace as passed to ADD.
    pub netns: String,
    /// Interface on the host; empty for none.
    pub host_interface: String,
    /// Addresses of the pod.
    pub addresses: Vec<IpNet>,
    /// The ADD came to its end. As read; writing sets it.
    pub is_complete: bool,
}

impl Record {
    /// The beginnings of a record for the attachment of a call.
    pub fn new(plugin: &str, call: &Call) -> Record {
        Record {
            plugin: plugin.to_owned(),
            container_id: call.env.container_id.clone(),
            ifname: call.env.ifname.clone(),
            netns: call.env.netns.clone(),
            ..Record::default()
        }
    }

    /// Written before the first side effect.
    ///
    /// # Errors
    /// The disk is full or read-only.
    pub fn begin(&self, call: &Call) -> Result<(), Error> {
        self.write(call, false)
    }

    /// Written when all is done.
    ///
    /// # Errors
    /// The disk is full or read-only.
    pub fn complete(&self, call: &Call) -> Result<(), Error> {
        self.write(call, true)
    }

    fn write(&self, call: &Call, complete: bool) -> Result<(), Error> {
        let addresses: Vec<String> = self.addresses.iter().map(IpNet::to_string).collect();
        let text = Json::object([
            ("plugin", Json::from(self.plugin.as_str())),
            ("containerID", self.container_id.as_str().into()),
            ("ifname", self.ifname.as_str().into()),
            ("netns", self.netns.as_str().into()),
            ("hostInterface", self.host_interface.as_str().into()),
            ("addresses", Json::array(addresses)),
            ("complete", complete.into()),
        ]);
        overwrite(&path(&self.plugin, call), text.to_compact().as_bytes())
    }

    fn parse(text: &str) -> Option<Record> {
        let value: Json = text.parse().ok()?;
        let m = Members::of(&value, "Record").ok()?;
        let addresses = m.strings("addresses").ok()?;
        Some(Record {
            plugin: m.string("plugin").ok()?,
            container_id: m.string("containerID").ok()?,
            ifname: m.string("ifname").ok()?,
            netns: m.string("netns").ok()?,
            host_interface: m.string("hostInterface").ok()?,
            addresses: addresses.iter().map(|a| a.parse().ok()).collect::<Option<_>>()?,
            is_complete: m.boolean("complete").ok()?.unwrap_or(false),
        })
    }
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

fn path(plugin: &str, call: &Call) -> PathBuf {
    directory(call).join(file_name(plugin, &call.env.container_id, &call.env.ifname))
}

fn directory(call: &Call) -> PathBuf {
    call.env.state_dir.join("attachments").join(&call.network)
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
