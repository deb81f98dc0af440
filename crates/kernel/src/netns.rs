//! Network namespaces: opening one by path, making one, running code inside.
//!
//! No other code can find itself in the wrong namespace: [`Netns::run`] starts a thread for what is done
//! inside and lets it die, [`Netns::visit`] comes back or ends the process.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

use crate::{NetnsError, sys};

/// A network namespace, kept alive by an open descriptor.
#[derive(Debug)]
pub struct Netns {
    file: File,
}

/// Identity of a namespace on this machine; equal for every path to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetnsId {
    /// Device number of nsfs.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

impl Netns {
    /// Opens the namespace a path stands for, such as `/run/netns/x` or `/proc/7/ns/net`. Creates nothing.
    ///
    /// # Errors
    /// With the texts of cni.md 2.0.1: the path is missing, or no namespace file.
    pub fn open(path: &Path) -> Result<Netns, NetnsError> {
        let magic = sys::file_system_magic(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => NetnsError::Missing(path.to_owned()),
            _ => failed(format!("failed to Statfs {path:?}"))(source),
        })?;
        if magic != libc::NSFS_MAGIC as u64 && magic != libc::PROC_SUPER_MAGIC as u64 {
            return Err(NetnsError::NotANamespace { path: path.to_owned(), magic });
        }
        let file = File::open(path).map_err(failed(format!("open {path:?}")))?;
        match sys::namespace_type(file.as_fd()) {
            Ok(libc::CLONE_NEWNET) => Ok(Netns { file }),
            Ok(_) => Err(NetnsError::OtherKind(path.to_owned())),
            // An ordinary file of procfs.
            Err(_) => Err(NetnsError::NotANamespace { path: path.to_owned(), magic }),
        }
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn current() -> Result<Netns, NetnsError> {
        Netns::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Makes a namespace without a name. It ends with its last descriptor, process and device mount.
    ///
    /// # Errors
    /// No permission (CAP_SYS_ADMIN), or a limit of the system.
    pub fn create() -> Result<Netns, NetnsError> {
        thread(|| {
            sys::unshare_netns().map_err(failed("make a network namespace".to_owned()))?;
            Netns::current()
        })?
    }

    /// Runs `work` on a fresh thread inside the namespace and waits for it. A panic inside continues here.
    ///
    /// # Errors
    /// The thread cannot be started or the namespace not be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        thread(|| {
            sys::enter_netns(self.file.as_fd()).map_err(failed("enter the network namespace".to_owned()))?;
            Ok(work())
        })?
    }

    /// Runs `work` inside the namespace on the calling thread, which comes back. Saves a thread, which costs
    /// a tenth of a millisecond: for programs that make one call and end. Who cannot come back must not go
    /// on in the wrong place, so the process is ended then.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn visit<T>(&self, work: impl FnOnce() -> T) -> Result<T, NetnsError> {
        let home = File::open("/proc/thread-self/ns/net").map_err(failed("open our namespace".to_owned()))?;
        sys::enter_netns(self.file.as_fd()).map_err(failed("enter the network namespace".to_owned()))?;
        let done = catch_unwind(AssertUnwindSafe(work));
        if sys::enter_netns(home.as_fd()).is_err() {
            std::process::abort();
        }
        Ok(done.unwrap_or_else(|panic| resume_unwind(panic)))
    }

    /// Device and inode of the namespace.
    ///
    /// # Errors
    /// The descriptor cannot be examined, which does not happen.
    pub fn id(&self) -> Result<NetnsId, NetnsError> {
        let meta = self.file.metadata().map_err(failed("examine the network namespace".to_owned()))?;
        Ok(NetnsId { device: meta.dev(), inode: meta.ino() })
    }

    /// A path other processes can open it by, as long as this value lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()))
    }

    /// A second handle on the same namespace.
    ///
    /// # Errors
    /// Too many open files.
    pub fn try_clone(&self) -> Result<Netns, NetnsError> {
        let file = self.file.try_clone().map_err(failed("copy a namespace descriptor".to_owned()))?;
        Ok(Netns { file })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Runs `work` on a thread of its own, which ends with it.
pub(crate) fn thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    std::thread::scope(|scope| {
        let handle = std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)
            .map_err(failed("start a thread".to_owned()))?;
        Ok(handle.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

fn failed(action: String) -> impl FnOnce(io::Error) -> NetnsError {
    move |source| NetnsError::Io { action, source }
}
