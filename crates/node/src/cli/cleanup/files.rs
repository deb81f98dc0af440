//! Files of the agent.

use std::fs;
use std::path::{Path, PathBuf};

use super::act::Act;
use super::{Found, Options};
use crate::{outputs, wgkey};

/// Directories that are ours alone.
const OWN: [&str; 2] = ["/var/lib/loden", "/run/loden"];
/// The embedded registry there, with what SQLite lays beside it.
const REGISTRY: &str = "leases.db";

/// `subnet.env`, the troubles and services beside it, the WireGuard key, and everything in our directories but
/// the registry.
pub fn look(options: &Options) -> Found {
    let name = options.subnet_file.to_string_lossy();
    let beside = [outputs::trouble_file(&name), outputs::services_file(&name), wgkey::file()];
    let there = [options.subnet_file.clone()].into_iter().chain(beside).filter(|path| exists(path));
    let mut acts: Vec<Act> = there.map(Act::File).collect();
    if !acts.is_empty() {
        acts.extend(options.subnet_file.parent().map(|dir| Act::Dir(dir.to_owned())));
    }
    for dir in OWN {
        acts.extend(tree(Path::new(dir), &|path| !is_registry(path)));
    }
    if let Some(dir) = std::env::var_os("LODEN_STATE_DIR").filter(|dir| !dir.is_empty()) {
        let is_ours = |path: &Path| {
            let ours = |name: &str| name.starts_with("last-good.") || name.starts_with(wgkey::COPY);
            path.file_name().is_some_and(|name| ours(&name.to_string_lossy()))
        };
        acts.extend(tree(Path::new(&dir), &is_ours));
    }
    Found { acts, kept: Vec::new() }
}

/// The registry where it is unless said otherwise, and where `LODEN_STORE` says it is.
pub fn registry() -> Found {
    let said = std::env::var("LODEN_STORE").unwrap_or_default();
    let mut places = vec![PathBuf::from(OWN[0]).join(REGISTRY)];
    places.extend(said.strip_prefix("sqlite:").filter(|path| !path.is_empty()).map(PathBuf::from));
    let beside = |place: &PathBuf| {
        let parts = ["", "-wal", "-shm", "-journal"];
        parts.map(|part| PathBuf::from(format!("{}{part}", place.display())))
    };
    let files = places.iter().flat_map(beside).filter(|path| exists(path));
    let mut acts: Vec<Act> = files.map(Act::File).collect();
    if !acts.is_empty() {
        acts.push(Act::Dir(OWN[0].into()));
    }
    Found { acts, kept: Vec::new() }
}

fn is_registry(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(REGISTRY))
}

/// Whether something is there, a broken link included.
pub fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// The files of a directory that `take` says yes to, then the directories, innermost first.
pub fn tree(dir: &Path, take: &dyn Fn(&Path) -> bool) -> Vec<Act> {
    if !fs::symlink_metadata(dir).is_ok_and(|meta| meta.is_dir()) {
        return Vec::new();
    }
    let mut acts = Vec::new();
    let mut entries: Vec<_> = fs::read_dir(dir).into_iter().flatten().flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            acts.extend(tree(&entry.path(), take));
        } else if take(&entry.path()) {
            acts.push(Act::File(entry.path()));
        }
    }
    acts.push(Act::Dir(dir.to_owned()));
    acts
}
