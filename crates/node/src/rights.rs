//! What the agent may do beyond the files of its user (capabilities(7)): no more than its mode needs (decision 0193).
//!
//! Capabilities belong to threads, and threads inherit them. So the first thing a process does is to start one
//! thread that keeps what it was given, and to give up the rest of its own before any other thread is there. That one
//! starts the few threads that need more; as soon as the network configuration tells that there will be none, it gives
//! up the rest as well, for good.

use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use model::{FastPath, NetConf};
use plan::backend::{extension, ipsec};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::args::Options;

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Loading the fast path and tying it to devices.
    FastPath,
    /// Starting strongSwan's daemon, which serves ports 500 and 4500 and may change its user.
    Charon,
    /// An operator's commands, of which nothing is known.
    Everything,
}

/// What every thread may have: netlink, sockets for echoes, ports below 1024 that a flag or a backend names.
const BASE: CapabilitySet =
    CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_RAW).union(CapabilitySet::NET_BIND_SERVICE);

impl Need {
    /// What a thread keeps besides.
    fn more(self) -> CapabilitySet {
        match self {
            Need::FastPath => CapabilitySet::BPF | CapabilitySet::PERFMON,
            Need::Charon => CapabilitySet::CHOWN | CapabilitySet::SETGID | CapabilitySet::SETUID,
            Need::Everything => CapabilitySet::all(),
        }
    }

    /// What takes more still, and only once.
    fn prepare(self) {
        if self == Need::FastPath {
            // Found missing again, and then said, when the place is needed.
            let _ = fastpath::Pins::mount();
        }
    }

    /// What a configuration needs. `flag` goes before it.
    pub fn of(conf: &NetConf, flag: Option<FastPath>) -> Option<Need> {
        match conf.backend_type.to_ascii_lowercase().as_str() {
            extension::KIND => Some(Need::Everything),
            ipsec::KIND => Some(Need::Charon),
            _ => {
                let mode = flag.or_else(|| FastPath::decode(&conf.backend).ok());
                mode.filter(|mode| *mode != FastPath::Off).map(|_| Need::FastPath)
            }
        }
    }
}

/// Rights over files that belong to another user, which root without capabilities has not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Files {
    /// Keys and tokens that are named by flags.
    read: bool,
    /// Directories we write in.
    write: bool,
}

impl Files {
    fn of(options: &Options, env: impl Fn(&str) -> Option<String>) -> Files {
        let named =
            [&options.etcd_keyfile, &options.etcd_certfile, &options.etcd_cafile, &options.kubeconfig_file];
        let said = |name: &str| env(name).unwrap_or_default();
        let store = said("LODEN_STORE");
        let ours = [
            options.subnet_file.as_str(),
            &said("LODEN_STATE_DIR"),
            store.strip_prefix("sqlite:").unwrap_or_default(),
            &said("LODEN_CNI_CONF"),
            &said("WIREGUARD_KEY_FILE"),
        ];
        Files {
            read: named.iter().any(|file| !file.is_empty()),
            write: ours.iter().any(|file| !file.is_empty() && is_anothers(Path::new(file))),
        }
    }

    fn capabilities(self) -> CapabilitySet {
        let mut all = CapabilitySet::empty();
        all.set(CapabilitySet::DAC_READ_SEARCH, self.read);
        all.set(CapabilitySet::DAC_OVERRIDE, self.write);
        all
    }
}

/// Whether a file, or else the directory it will be made in, belongs to another user.
fn is_anothers(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let own = rustix::process::geteuid().as_raw();
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let uid = |path: &Path| std::fs::metadata(path).ok().map(|found| found.uid());
    let nearest = dir.ancestors().find_map(uid);
    [uid(path), nearest].into_iter().flatten().any(|uid| uid != own)
}

/// A thread to be started.
struct Order {
    name: &'static str,
    need: Need,
    work: Box<dyn FnOnce() + Send>,
    done: SyncSender<io::Result<()>>,
}

enum Word {
    Start(Order),
    Settle(Option<Need>),
}

/// Starts threads that need more than the others.
pub struct Rights {
    words: SyncSender<Word>,
    common: CapabilitySet,
}

impl Rights {
    /// Starts the thread that keeps everything, and gives up the rest of the calling thread, which is to be the
    /// only one.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(options: &Options) -> io::Result<Rights> {
        let files = Files::of(options, |name| std::env::var(name).ok());
        let common = BASE | files.capabilities();
        let (words, heard) = sync_channel(1);
        std::thread::Builder::new().name("rights".to_owned()).spawn(move || keep(&heard, common))?;
        match restrict(common) {
            Ok(held) => tracing::info!("the agent has {}, and what it starts gets no more", names(held)),
            Err(error) => {
                tracing::warn!("give up capabilities: {error}; the agent goes on with those it has")
            }
        }
        Ok(Rights { words, common })
    }

    /// Starts a thread that has what it needs, as far as we were given it. After [`Rights::settle`] without its need
    /// it has no more than others.
    ///
    /// # Errors
    /// There is no room for threads.
    pub fn thread(
        &self,
        name: &'static str,
        need: Need,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let (done, started) = sync_channel(1);
        let order = Order { name, need, work: Box::new(work), done };
        match self.words.send(Word::Start(order)) {
            Ok(()) => started.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into())),
            // It has ended.
            Err(refused) => match refused.0 {
                Word::Start(order) => spawn(order, self.common),
                Word::Settle(_) => Ok(()),
            },
        }
    }

    /// Nothing will need more than this.
    pub fn settle(&self, need: Option<Need>) {
        // It may have ended.
        let _ = self.words.send(Word::Settle(need));
    }
}

/// The work of the thread that keeps.
fn keep(words: &Receiver<Word>, common: CapabilitySet) {
    let mut common = common;
    while let Ok(word) = words.recv() {
        match word {
            Word::Start(order) => {
                let done = order.done.clone();
                // Nobody may wait any more.
                let _ = done.send(spawn(order, common));
            }
            Word::Settle(None) => return,
            Word::Settle(Some(Need::Everything)) => {
                tracing::info!("the commands of the backend extension have all rights the agent was given");
            }
            Word::Settle(Some(need)) => {
                need.prepare();
                common |= need.more();
                if let Err(error) = restrict(common) {
                    tracing::warn!("give up capabilities: {error}");
                }
            }
        }
    }
}

fn spawn(order: Order, common: CapabilitySet) -> io::Result<()> {
    let Order { name, need, work, .. } = order;
    let inside = move || {
        need.prepare();
        if need != Need::Everything
            && let Err(error) = restrict(common | need.more())
        {
            tracing::warn!("give up capabilities: {error}");
        }
        work();
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(inside).map(drop)
}

/// Takes everything but these from the calling thread and what it starts, for good. Gives what is left.
fn restrict(keep: CapabilitySet) -> io::Result<CapabilitySet> {
    let now = rustix::thread::capabilities(None)?;
    if now.effective.contains(CapabilitySet::SETPCAP) {
        for bit in 0..u64::BITS {
            let one = CapabilitySet::from_bits_retain(1 << bit);
            // The kernel knows no more than this.
            if !keep.contains(one) && rustix::thread::remove_capability_from_bounding_set(one).is_err() {
                break;
            }
        }
    }
    let sets = CapabilitySets {
        effective: now.effective & keep,
        permitted: now.permitted & keep,
        inheritable: now.inheritable & keep,
    };
    rustix::thread::set_capabilities(None, sets)?;
    rustix::thread::set_no_new_privs(true)?;
    Ok(sets.effective)
}

/// `CAP_NET_ADMIN CAP_NET_RAW`
fn names(set: CapabilitySet) -> String {
    let names: Vec<String> = set.iter_names().map(|(name, _)| format!("CAP_{name}")).collect();
    if names.is_empty() { "no capability".to_owned() } else { names.join(" ") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use super::*;

    #[test]
    fn a_configuration_tells_what_it_needs() {
        for (backend, flag, need) in [
            (r#""Type":"vxlan""#, None, None),
            (r#""Type":"vxlan","FastPath":"off""#, None, None),
            (r#""Type":"vxlan","FastPath":"on""#, None, Some(Need::FastPath)),
            (r#""Type":"vxlan","FastPath":"on""#, Some(FastPath::Off), None),
            (r#""Type":"host-gw""#, Some(FastPath::Auto), Some(Need::FastPath)),
            (r#""Type":"IPsec","PSK":"x""#, None, Some(Need::Charon)),
            (r#""Type":"extension""#, None, Some(Need::Everything)),
        ] {
            let text = format!(r#"{{"Network":"10.244.0.0/16","Backend":{{{backend}}}}}"#);
            assert_eq!(Need::of(&NetConf::parse(text).unwrap(), flag), need, "{backend} {flag:?}");
        }
    }

    #[test]
    fn files_of_others_are_known() {
        let dir = tempfile::TempDir::new().unwrap();
        let theirs = dir.path().join("theirs");
        std::fs::create_dir(&theirs).unwrap();
        let is_root = std::os::unix::fs::chown(&theirs, Some(65_534), None).is_ok();
        for (path, anothers) in [
            (dir.path().join("subnet.env"), false),
            (dir.path().join("no/such/subnet.env"), false),
            (theirs.join("subnet.env"), is_root),
            (theirs.join("no/such/subnet.env"), is_root),
        ] {
            assert_eq!(is_anothers(&path), anothers, "{}", path.display());
        }
    }

    #[test]
    fn capabilities_have_names() {
        assert_eq!(names(CapabilitySet::empty()), "no capability");
        assert_eq!(names(BASE), "CAP_NET_BIND_SERVICE CAP_NET_ADMIN CAP_NET_RAW");
    }
}
