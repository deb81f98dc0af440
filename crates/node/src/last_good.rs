//! The last good state on this node's disk (decision 0090): saved while everything works, and put in the
//! store's place while that cannot be reached, so that pods start and reach known peers after a reboot
//! without it.

use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use model::codec::last_good::{LastGood, Life};
use model::{Lease, NetConf, Subnets};
use store::{Remembered, StoreError, View};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::board::{Board, Topic};
use crate::inputs::Inbox;
use crate::outputs::replace_for_root;
use crate::reconcile::Report;
use crate::{clock, log};

/// Where states are kept unless `LODEN_STATE_DIR` says otherwise.
const DIR: &str = "/var/lib/loden";
/// How long a store may take before the last good state stands in for it.
const GRACE: Duration = Duration::from_secs(1);
/// How often it is looked at whether that has to begin or end.
const LOOK: Duration = Duration::from_millis(250);
/// A burst at start becomes one write.
const FIRST_WRITE: Duration = Duration::from_secs(1);
/// At most one write in this time,
const WRITE_EVERY: Duration = Duration::from_secs(5);
/// and on average not more than this, so that a large cluster in motion does not wear out a disk.
const BYTES_PER_SECOND: u32 = 100_000;
/// Nothing of ours is longer: ten times the largest cluster.
const LONGEST: u64 = 64 << 20;

/// Where states are kept.
pub fn dir() -> PathBuf {
    let said = std::env::var_os("LODEN_STATE_DIR").filter(|dir| !dir.is_empty());
    said.map_or_else(|| PathBuf::from(DIR), PathBuf::from)
}

/// What the store has said so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contact {
    /// Nothing yet.
    Silent,
    /// Cannot be reached, or does not let us in.
    Away,
    /// It is there.
    Answers,
    /// It is there, and this node has no subnet.
    Refuses,
}

impl Contact {
    /// What a failure says about it. A configuration that is missing or a failure inside the store is an
    /// answer: nothing saved must take its place.
    pub fn of(error: &StoreError) -> Contact {
        match error {
            StoreError::Unreachable(_) | StoreError::Denied(_) => Contact::Away,
            StoreError::NoSubnet(_) | StoreError::Exhausted(_) | StoreError::Lost(_) => Contact::Refuses,
            StoreError::NoConfig(_) | StoreError::Broken(_) => Contact::Answers,
        }
    }
}

/// A state to be saved. Clones pointers, not leases.
struct Draft {
    state: LastGood,
    /// When the own lease ends, by [`clock::uptime`].
    ends: Option<Duration>,
}

impl Draft {
    /// Gives the length in bytes.
    fn write(&mut self, path: &Path) -> io::Result<usize> {
        self.state.saved = clock::now();
        self.state.left = self.ends.map(|ends| ends.saturating_sub(clock::uptime()).as_secs());
        let text = self.state.encode();
        replace_for_root(path, text.as_bytes())?;
        Ok(text.len())
    }
}

/// The place of one agent's state. Shared by the threads; the last one to end writes what is left.
pub struct Shelf {
    path: PathBuf,
    node: String,
    store: OnceLock<String>,
    draft: Mutex<Option<Draft>>,
    writing: AtomicBool,
}

/// An own lease and when it ends, by [`clock::uptime`].
pub type Own = Option<(Lease, Option<Duration>)>;

impl Shelf {
    /// The place of the agent that writes this subnet file: several may run on one host.
    pub fn new(subnet_file: &str) -> Shelf {
        let dir = dir();
        let file = std::path::absolute(subnet_file).unwrap_or_else(|_| PathBuf::from(subnet_file));
        let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') { c } else { '-' };
        let name: String = file.to_string_lossy().trim_start_matches('/').chars().map(plain).collect();
        // File names end at 255 bytes; the end of a path tells more than its beginning.
        let name = &name[name.len().saturating_sub(200)..];
        Shelf {
            path: dir.join(format!("last-good.{name}")),
            node: this_node(),
            store: OnceLock::new(),
            draft: Mutex::new(None),
            writing: AtomicBool::new(false),
        }
    }

    /// Which store the states are of.
    pub fn is_for(&self, store: String) {
        let _ = self.store.set(store);
    }

    fn store(&self) -> &str {
        self.store.get().map_or("", String::as_str)
    }

    /// The state on disk, checked; `None` if there is none. An error is the rest of a sentence.
    fn read(&self) -> Result<Option<LastGood>, String> {
        let length = match std::fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
            Ok(meta) => meta.len(),
        };
        if length > LONGEST {
            return Err(format!("it is {length} bytes long, which is nothing of ours"));
        }
        let bytes = std::fs::read(&self.path).map_err(|error| error.to_string())?;
        let state = LastGood::decode(&bytes).map_err(|refusal| refusal.to_string())?;
        state.is_of(&self.node, self.store()).map_err(|refusal| refusal.to_string())?;
        Ok(Some(state))
    }

    /// Saves what changed, some time after a round in which everything stood. For ever; cancel by dropping.
    pub async fn save(
        &self,
        board: &Board,
        conf: &str,
        remembered: &Remembered,
        mut own: watch::Receiver<Own>,
        mut view: watch::Receiver<View>,
        mut reports: watch::Receiver<Report>,
    ) {
        let mut saved = None;
        let mut due = Instant::now() + FIRST_WRITE;
        loop {
            let good = {
                let report = reports.borrow_and_update();
                report.converged && !report.recalled
            };
            let (own_now, view_now) = (own.borrow_and_update().clone(), view.borrow_and_update().clone());
            if let (true, true, Some((lease, ends))) = (good, view_now.complete, own_now) {
                let names = Arc::as_ptr(&view_now.names);
                let mark = (lease.clone(), ends, view_now.peers.revision(), names as usize);
                if saved.as_ref() != Some(&mark) {
                    *self.draft() = Some(Draft {
                        state: LastGood {
                            node: self.node.clone(),
                            store: self.store().to_owned(),
                            conf: conf.to_owned(),
                            published: remembered.attrs.clone(),
                            public_ip: remembered.public_ip,
                            public_ip6: remembered.public_ip6,
                            own: lease,
                            peers: view_now.peers,
                            names: view_now.names,
                            ..LastGood::default()
                        },
                        ends,
                    });
                    saved = Some(mark);
                }
            }
            let waiting = self.draft().is_some();
            tokio::select! {
                changed = reports.changed() => if changed.is_err() { return std::future::pending().await },
                Ok(()) = own.changed() => {}
                Ok(()) = view.changed() => {}
                () = sleep_until(due), if waiting => due = Instant::now() + self.write(board).await,
            }
        }
    }

    /// Gives how long to wait before the next.
    async fn write(&self, board: &Board) -> Duration {
        let Some(mut draft) = self.draft().take() else { return WRITE_EVERY };
        let path = self.path.clone();
        self.writing.store(true, Ordering::Release);
        // A disk that hangs must not hold up leases.
        let work = move || {
            let done = draft.write(&path);
            (done, draft)
        };
        let done = tokio::task::spawn_blocking(work).await;
        self.writing.store(false, Ordering::Release);
        match done {
            Ok((Ok(length), _)) => {
                board.clear(&Topic::StateFile);
                let length = u32::try_from(length).unwrap_or(u32::MAX);
                WRITE_EVERY.max(Duration::from_secs(u64::from(length / BYTES_PER_SECOND)))
            }
            Ok((Err(error), draft)) => {
                board.set(
                    Topic::StateFile,
                    format!(
                        "write {}: {error}; after a reboot without the store no pod could start on this node: free or \
                         remount the disk, or set LODEN_STATE_DIR to a folder that can be written",
                        self.path.display()
                    ),
                );
                self.draft().get_or_insert(draft);
                WRITE_EVERY
            }
            // The runtime ends.
            Err(_) => WRITE_EVERY,
        }
    }

    /// The last write, at an orderly end.
    pub fn finish(&self) {
        // A write that hangs until now would get in the way of another one.
        let draft = if self.writing.load(Ordering::Acquire) { None } else { self.draft().take() };
        if let Some(mut draft) = draft
            && let Err(error) = draft.write(&self.path)
        {
            tracing::warn!("write {}: {error}", self.path.display());
        }
    }

    // A writer that panicked leaves a whole draft behind, or none.
    fn draft(&self) -> MutexGuard<'_, Option<Draft>> {
        self.draft.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What tells this machine from others it may share a disk image with, and does not change with addresses
/// or before the host has its name.
fn this_node() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let mut parts = vec![read("/etc/machine-id"), read("/sys/class/dmi/id/product_uuid")];
    parts.push(std::env::var("NODE_NAME").unwrap_or_default());
    if parts.iter().all(String::is_empty) {
        parts.push(read("/proc/sys/kernel/hostname"));
    }
    parts.retain(|part| !part.is_empty());
    parts.join(" ")
}

/// Puts the last good state in the store's place.
pub struct StandIn<'a> {
    /// The state's place.
    pub shelf: &'a Arc<Shelf>,
    /// Where it goes.
    pub inbox: &'a Inbox,
    /// Where it is said.
    pub board: &'a Board,
    /// How the store fares.
    pub contact: &'a Cell<Contact>,
    /// The subnet to ask for when the store is back.
    pub previous: &'a Cell<Subnets>,
    /// Decodes and checks a configuration of this store.
    pub usable: &'a dyn Fn(&str) -> Result<NetConf, String>,
}

impl StandIn<'_> {
    /// Waits until the store has had its time, stands in while it is away, and ends when all inputs are the
    /// store's.
    pub async fn run(self, view: watch::Receiver<View>) {
        sleep(GRACE).await;
        let mut state: Option<LastGood> = None;
        let mut refused = false;
        while !self.is_over() {
            let away = matches!(self.contact.get(), Contact::Silent | Contact::Away);
            if state.is_none() && (away || view.borrow().trouble.is_some()) {
                let shelf = self.shelf.clone();
                let read = tokio::task::spawn_blocking(move || shelf.read()).await;
                let read = read.unwrap_or_else(|error| Err(error.to_string()));
                match read.and_then(|state| state.map(|state| self.feed(state)).transpose()) {
                    Ok(Some(fed)) => state = Some(fed),
                    // A first start, and nothing to say about it.
                    Ok(None) => return,
                    Err(refusal) => {
                        let place = self.shelf.path.display();
                        let text = format!("the last good state in {place} is not used: {refusal}");
                        self.board.set(Topic::LastGood, text);
                        break;
                    }
                }
            }
            if let Some(state) = &state {
                // What was another's once may be so for ever.
                refused |= self.contact.get() == Contact::Refuses;
                self.judge(state, refused);
            }
            sleep(LOOK).await;
        }
        while !self.is_over() {
            sleep(LOOK).await;
        }
        self.board.clear(&Topic::LastGood);
    }

    /// Whether everything the loop works with is the store's.
    fn is_over(&self) -> bool {
        self.inbox.look(|inputs| inputs.own.is_some() && !inputs.recalled.own && inputs.view.complete)
    }

    /// Hands over what the store has not given yet, but for the own lease.
    fn feed(&self, state: LastGood) -> Result<LastGood, String> {
        let conf = (self.usable)(&state.conf)?;
        self.inbox.update(|inputs| {
            if inputs.conf.as_ref().is_some_and(|known| *known != conf) {
                return Err("it was saved under another network config".to_owned());
            }
            if inputs.conf.is_none() {
                inputs.conf = Some(conf);
                inputs.remembered = Remembered {
                    // A device made anew after a reboot has the address that peers know.
                    attrs: state.published.clone().or_else(|| Some(state.own.attrs.clone())),
                    public_ip: state.public_ip,
                    public_ip6: state.public_ip6,
                };
            }
            if !inputs.view.complete {
                inputs.view.peers = state.peers.clone();
                inputs.view.names = state.names.clone();
                inputs.recalled.peers = true;
            }
            Ok(state)
        })
    }

    /// Whether the own lease may be used now, and what there is to say.
    fn judge(&self, state: &LastGood, refused: bool) {
        let (subnets, saved) = (state.own.subnets, log::utc(state.saved.unix));
        let store = self.shelf.store();
        let (ours, text) = match state.life(&clock::now()) {
            // The store says why itself.
            _ if refused => (false, None),
            Life::Endless | Life::Left(_) => (
                true,
                Some(format!(
                    "{store} does not answer: this node runs on the state of {saved} with {} leases, saved in {}; what \
                     changed since is not known here",
                    state.peers.len(),
                    self.shelf.path.display()
                )),
            ),
            Life::Over(_) => (
                false,
                Some(format!(
                    "the lease of {subnets} ran out while {store} did not answer, and may be another node's by now: no \
                     pod can start on this node until the store is back"
                )),
            ),
            Life::Unknown => (
                false,
                Some(format!(
                    "the clock of this machine is behind {saved}, when the last good state was saved, so nobody can \
                     tell whether {subnets} is still this node's: set the clock (timedatectl), or bring back {store}"
                )),
            ),
        };
        match text {
            Some(text) => self.board.set(Topic::LastGood, text),
            None => self.board.clear(&Topic::LastGood),
        }
        let change = self.inbox.look(|inputs| match (ours, inputs.own.is_some(), inputs.recalled.own) {
            // The store has given one.
            (_, true, false) => false,
            (true, there, _) => !there,
            (false, there, _) => there || !inputs.void,
        });
        if !change {
            return;
        }
        if ours && self.previous.get() == Subnets::default() {
            self.previous.set(subnets);
        }
        self.inbox.update(|inputs| {
            inputs.own = ours.then(|| state.own.clone());
            inputs.recalled.own = ours;
            inputs.void = !ours;
        });
    }
}
