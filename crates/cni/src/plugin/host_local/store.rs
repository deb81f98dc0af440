//! The store of reservations: one file for each address, as upstream's programs read and write it
//! (cni.md 2.2 [C]), and beside it an index of ours.
//!
//! ```text
//! <dataDir>/<network>/10.244.1.5            <cid> CR LF <ifname>
//! <dataDir>/<network>/last_reserved_ip.0    the address given last, one file for each range set
//! <dataDir>/<network>/lock                  flock, exclusive
//! ```
//!
//! The index (in our own directory) says who holds what, since which boot and for which namespace, so that
//! garbage is known (decision 0122) and no call need read every file (B-05). It is believed only if the
//! directory has not changed since it was written; else the files are read. It is cut into parts by container,
//! and a call reads and writes its own part only, so that a full store costs what an empty one does. Whether an
//! address is free is asked of the directory itself. DEL counts the files when the index knows nothing, so a
//! foreign writer within the same tick of the clock cannot make us forget a reservation.

mod index;
mod spare;

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::cni::{Error, code};

use crate::lock;
use crate::record::overwrite;
use crate::skel::Call;
use index::{Head, Index, Stamp};
use spare::Spare;

/// An empty reservation this old is the remains of a crash (B-03), not a writer at work.
const EMPTY_IS_DEAD: Duration = Duration::from_secs(60);

/// Begins the name of a reservation in the making; found under the lock it is the remains of a crash.
const TEMPORARY: &str = ".loden-";

/// Who a reservation is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Container id.
    pub container_id: String,
    /// Interface; empty in files of very old versions.
    pub ifname: String,
}

impl Owner {
    /// The attachment of a call.
    pub fn of(call: &Call) -> Owner {
        Owner { container_id: call.env.container_id.clone(), ifname: call.env.ifname.clone() }
    }

    fn parse(content: &str) -> Owner {
        let (id, ifname) = content.trim().split_once("\r\n").unwrap_or((content.trim(), ""));
        Owner { container_id: id.to_owned(), ifname: ifname.to_owned() }
    }

    fn content(&self) -> String {
        format!("{}\r\n{}", self.container_id, self.ifname)
    }

    /// The same container, in a file that does not name the interface.
    fn matches_old(&self, holder: &Owner) -> bool {
        holder.ifname.is_empty() && holder.container_id == self.container_id
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    owner: Owner,
    /// Where it was made; of a foreign one nothing is known.
    place: Option<Place>,
}

/// The boot and the namespace a reservation was made in.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    boot: String,
    /// Inode of the namespace, 0 if it could not be looked at.
    inode: u64,
    /// Its path, empty if it does not go into a line.
    path: String,
}

impl Place {
    fn of(boot: &str, netns: &str) -> Place {
        let path = if netns.contains(['\r', '\n']) { "" } else { netns };
        let inode = fs::metadata(path).map_or(0, |meta| meta.ino());
        Place { boot: boot.to_owned(), inode, path: path.to_owned() }
    }

    /// Whether no container of then can be alive: another boot; or the path leads to the namespace no more,
    /// and no process is in it.
    fn is_gone(&self, boot: &str, inhabited: impl Fn(u64) -> bool) -> bool {
        if self.boot.is_empty() || boot.is_empty() {
            return false;
        }
        let other = || match fs::metadata(&self.path) {
            Ok(meta) => meta.ino() != self.inode,
            Err(e) => e.kind() == ErrorKind::NotFound,
        };
        self.boot != boot || (self.inode != 0 && other() && !inhabited(self.inode))
    }
}

/// Inodes of the namespaces that processes are in.
fn inhabited() -> BTreeSet<u64> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let inode = |entry: fs::DirEntry| Some(fs::metadata(entry.path().join("ns/net")).ok()?.ino());
    processes.filter_map(inode).collect()
}

/// The store of one network, locked for as long as the value lives.
pub struct Store {
    dir: PathBuf,
    index: Index,
    spare: Spare,
    /// Whose part of the index this call needs.
    container_id: String,
    boot: String,
    /// Namespace of the call.
    netns: String,
    /// Looked at once, and only if somebody may be dead.
    inhabited: OnceCell<BTreeSet<u64>>,
    /// What is known: of the container, or of all.
    entries: BTreeMap<IpAddr, Entry>,
    /// Taken by this call.
    taken: Vec<IpAddr>,
    /// What the index says of itself; `None` if the files were read.
    head: Option<Head>,
    /// `entries` holds all.
    complete: bool,
    /// The index has to be written.
    changed: bool,
    _lock: Option<File>,
}

impl Store {
    /// Opens and locks the store; makes it if it is not there.
    ///
    /// # Errors
    /// The directory cannot be made or locked (code 5, or 11 when the wait ran out).
    pub fn open(data_dir: &str, call: &Call) -> Result<Store, Error> {
        let dir = Path::new(data_dir).join(&call.network);
        if !dir.is_dir() {
            let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(&dir);
            made.map_err(|e| failed("make", &dir, &e))?;
        }
        let file = dir.join("lock");
        let opened = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .mode(0o750)
            .truncate(false)
            .open(&file);
        // A read-only file can be locked too; writing will tell what is wrong, if anything is written.
        let opened = opened.or_else(|e| File::open(&file).map_err(|_| e));
        let lock = opened.map_err(|e| failed("open", &file, &e))?;
        lock::exclusive(&lock, &file.display().to_string())?;
        Store::load(dir, call, Some(lock))
    }

    /// As [`Store::open`], but a store that is not there holds nothing.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_existing(data_dir: &str, call: &Call) -> Result<Option<Store>, Error> {
        if Path::new(data_dir).join(&call.network).is_dir() {
            Store::open(data_dir, call).map(Some)
        } else {
            Ok(None)
        }
    }

    /// Looks without a lock: good enough to count.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn peek(data_dir: &str, call: &Call) -> Result<Option<Store>, Error> {
        let dir = Path::new(data_dir).join(&call.network);
        if dir.is_dir() { Store::load(dir, call, None).map(Some) } else { Ok(None) }
    }

    fn load(dir: PathBuf, call: &Call, lock: Option<File>) -> Result<Store, Error> {
        let index = Index::of(&call.env.state_dir, &dir);
        let boot =
            fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        let head = index.head().filter(|head| Some(head.stamp) == stamp(&dir));
        let mut store = Store {
            dir,
            spare: Spare::of(index.place()),
            index,
            container_id: call.env.container_id.clone(),
            boot,
            netns: call.env.netns.clone(),
            inhabited: OnceCell::new(),
            entries: BTreeMap::new(),
            taken: Vec::new(),
            head,
            complete: false,
            changed: false,
            _lock: lock,
        };
        match store.head.as_ref().and_then(|head| store.index.part(head, &store.container_id)) {
            Some(part) => store.entries = part,
            None => store.read_files()?,
        }
        Ok(store)
    }

    /// Reads every file; what the index knew about the boot is kept where the owner is the same.
    fn read_files(&mut self) -> Result<(), Error> {
        let known = self.index.head().and_then(|head| self.index.all(&head)).unwrap_or_default();
        self.entries.clear();
        let files = fs::read_dir(&self.dir).map_err(|e| failed("read", &self.dir, &e))?;
        for file in files {
            let file = file.map_err(|e| failed("read", &self.dir, &e))?;
            let name = file.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(TEMPORARY) && self._lock.is_some() {
                let _ = fs::remove_file(file.path());
            }
            let Ok(ip) = name.parse::<IpAddr>() else { continue };
            let content = match fs::read_to_string(file.path()) {
                Ok(content) => content,
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(failed("read", &file.path(), &e)),
            };
            let owner = Owner::parse(&content);
            let place = known.get(&ip).filter(|e| e.owner == owner).and_then(|e| e.place.clone());
            self.entries.insert(ip, Entry { owner, place });
        }
        (self.head, self.complete, self.changed) = (None, true, true);
        Ok(())
    }

    /// Makes sure that all is known, not only what concerns the container.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn know_all(&mut self) -> Result<(), Error> {
        if self.complete {
            return Ok(());
        }
        match self.head.as_ref().and_then(|head| self.index.all(head)) {
            // What this call took or freed is not written yet.
            Some(mut all) => {
                let part = index::part_of(&self.container_id);
                all.retain(|_, entry| index::part_of(&entry.owner.container_id) != part);
                all.append(&mut self.entries);
                (self.entries, self.complete) = (all, true);
                Ok(())
            }
            None => self.read_files(),
        }
    }

    /// Whether there are as many reservations as the index knows of.
    fn counts(&self) -> bool {
        let Some(head) = &self.head else { return true };
        let files = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let addresses = files.filter(|file| file.file_name().to_string_lossy().parse::<IpAddr>().is_ok());
        addresses.count() == head.count
    }

    /// Addresses the attachment holds; those of its container in the old format if there are none.
    pub fn held_by(&self, owner: &Owner) -> impl Iterator<Item = IpAddr> {
        let exact: Vec<IpAddr> = self.select(|holder| holder == owner);
        if exact.is_empty() { self.select(|holder| owner.matches_old(holder)) } else { exact }.into_iter()
    }

    fn select(&self, matches: impl Fn(&Owner) -> bool) -> Vec<IpAddr> {
        self.entries.iter().filter(|(_, e)| matches(&e.owner)).map(|(ip, _)| *ip).collect()
    }

    /// Whether nobody has an address.
    pub fn is_free(&self, ip: IpAddr) -> bool {
        let path = self.file(ip);
        fs::metadata(&path).is_err() || is_dead(&path)
    }

    /// Whether the reservation was made by us in an earlier boot, or for a namespace that is gone: no
    /// container of then is alive (B-02, decision 0122). Only what is known counts ([`Store::know_all`]).
    pub fn is_stale(&self, ip: IpAddr) -> bool {
        let place = self.entries.get(&ip).and_then(|e| e.place.as_ref());
        let lives_in = |inode| self.inhabited.get_or_init(inhabited).contains(&inode);
        place.is_some_and(|place| place.is_gone(&self.boot, lives_in))
    }

    /// Removes every reservation that is stale.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn free_stale(&mut self) -> Result<(), Error> {
        self.know_all()?;
        let stale: Vec<IpAddr> = self.entries.keys().copied().filter(|ip| self.is_stale(*ip)).collect();
        stale.into_iter().try_for_each(|ip| self.free(ip))
    }

    /// Reserves an address; false if it is taken.
    ///
    /// # Errors
    /// The disk is full or read-only.
    pub fn take(&mut self, ip: IpAddr, owner: &Owner) -> Result<bool, Error> {
        let path = self.file(ip);
        match fs::metadata(&path) {
            Err(_) => {}
            // The index has it too, somewhere.
            Ok(_) if is_dead(&path) => self.know_all()?,
            Ok(_) => return Ok(false),
        }
        // Written under another name and then linked: a reservation is there whole or not at all (B-03),
        // and linking fails if the name exists, as O_EXCL does.
        let temporary = self.dir.join(format!("{TEMPORARY}{}", std::process::id()));
        let write = || {
            if let Some(done) = self.spare.give(&path, owner.content().as_bytes()) {
                return done;
            }
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(owner.content().as_bytes())?;
            fs::hard_link(&temporary, &path)
        };
        let mut done = write();
        if matches!(&done, Err(e) if e.kind() == ErrorKind::AlreadyExists) && is_dead(&path) {
            let _ = fs::remove_file(&path);
            done = write();
        }
        let _ = fs::remove_file(&temporary);
        match done {
            Ok(()) => {
                let place = Some(Place::of(&self.boot, &self.netns));
                // An empty one that was taken over counted already.
                if self.entries.insert(ip, Entry { owner: owner.clone(), place }).is_none() {
                    self.count(1);
                }
                self.taken.push(ip);
                Ok(true)
            }
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(failed("reserve", &path, &e)),
        }
    }

    /// Removes one reservation.
    ///
    /// # Errors
    /// The file is there and cannot be removed.
    pub fn free(&mut self, ip: IpAddr) -> Result<(), Error> {
        let path = self.file(ip);
        match self.spare.keep(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(failed("release", &path, &e)),
            _ => {}
        }
        if self.entries.remove(&ip).is_some() {
            self.count(-1);
        }
        self.changed = true;
        Ok(())
    }

    fn count(&mut self, more: isize) {
        self.changed = true;
        if let Some(head) = &mut self.head {
            head.count = head.count.saturating_add_signed(more);
        }
    }

    /// Removes everything an attachment holds.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn release(&mut self, owner: &Owner) -> Result<(), Error> {
        let mut held: Vec<IpAddr> = self.held_by(owner).collect();
        if held.is_empty() && !self.counts() {
            self.read_files()?;
            held = self.held_by(owner).collect();
        }
        held.into_iter().try_for_each(|ip| self.free(ip))
    }

    /// Removes every reservation that no valid attachment holds. Files of old versions count by container.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn keep_only(&mut self, valid: &[(String, String)]) -> Result<(), Error> {
        if self.head.is_some() {
            self.read_files()?;
        }
        let is_valid = |owner: &Owner| {
            let same = |ifname: &str| owner.ifname.is_empty() || owner.ifname == ifname;
            valid.iter().any(|(id, ifname)| *id == owner.container_id && same(ifname))
        };
        let gone: Vec<IpAddr> =
            self.entries.iter().filter(|(_, e)| !is_valid(&e.owner)).map(|(ip, _)| *ip).collect();
        gone.into_iter().try_for_each(|ip| self.free(ip))
    }

    /// The address given last out of set `n`.
    pub fn last(&self, n: usize) -> Option<IpAddr> {
        fs::read_to_string(self.last_file(n)).ok()?.trim().parse().ok()
    }

    /// Remembers the address given last out of set `n`.
    ///
    /// # Errors
    /// The disk is full or read-only.
    pub fn set_last(&self, n: usize, ip: IpAddr) -> Result<(), Error> {
        let path = self.last_file(n);
        overwrite(&path, ip.to_string().as_bytes())
    }

    /// Ends an ADD: keeps the index when it succeeded, gives back what it took when it did not.
    ///
    /// # Errors
    /// The one given.
    pub fn save_or_release<T>(mut self, result: Result<T, Error>) -> Result<T, Error> {
        let mut result = result;
        if let Err(error) = &mut result {
            for ip in std::mem::take(&mut self.taken) {
                if let Err(second) = self.free(ip) {
                    *error = error.clone().also(second);
                }
            }
        }
        self.save();
        result
    }

    /// Writes the index. It may be missing: then the next call reads the files.
    pub fn save(&self) {
        let Some(stamp) = stamp(&self.dir).filter(|_| self.changed) else { return };
        match &self.head {
            Some(head) if !self.complete => {
                let part = index::part_of(&self.container_id);
                let mine = self.entries.iter().filter(|(_, e)| index::part_of(&e.owner.container_id) == part);
                let mut head = head.clone();
                head.stamp = stamp;
                self.index.write_part(&head, part, mine);
            }
            _ => self.index.write_all(stamp, &self.entries),
        }
    }

    fn file(&self, ip: IpAddr) -> PathBuf {
        self.dir.join(ip.to_string())
    }

    fn last_file(&self, n: usize) -> PathBuf {
        self.dir.join(format!("last_reserved_ip.{n}"))
    }
}

/// The state of a directory.
fn stamp(dir: &Path) -> Option<Stamp> {
    fs::metadata(dir).ok().map(|meta| (meta.mtime(), meta.mtime_nsec()))
}

fn is_dead(path: &Path) -> bool {
    let age = |meta: fs::Metadata| meta.modified().ok()?.elapsed().ok();
    fs::metadata(path).is_ok_and(|meta| meta.len() == 0 && age(meta).is_some_and(|age| age > EMPTY_IS_DEAD))
}

fn failed(action: &str, path: &Path, cause: &std::io::Error) -> Error {
    let error = Error::new(code::IO, format!("{action} {}: {cause}", path.display()));
    match cause.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem => {
            error.details("the address store has to be on a writable disk with room left")
        }
        _ => error,
    }
}
