//! What can go wrong: the kernel's own answers ([`Errno`]) and the errors of this room.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// A refusal by the kernel: error number, and its explanation where it gave one (extended ack).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Errno {
    /// Positive error number; 0 where `text` is all there is to say.
    pub code: i32,
    /// The kernel's explanation.
    pub text: Option<String>,
    /// Offset in bytes of the offending attribute in the request.
    pub offset: Option<u32>,
}

impl Errno {
    /// An error number without explanation.
    pub fn new(code: i32) -> Errno {
        Errno { code, text: None, offset: None }
    }

    /// Symbolic name such as `ENETUNREACH`.
    pub fn name(&self) -> &'static str {
        known(self.code).map_or("unknown error", |(name, _)| name)
    }

    pub(crate) fn of(error: &io::Error) -> Errno {
        Errno::new(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl fmt::Display for Errno {
    /// `network is unreachable (ENETUNREACH, "Nexthop has invalid gateway")`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (0, Some(text)) = (self.code, &self.text) {
            return f.write_str(text);
        }
        match known(self.code) {
            Some((name, meaning)) => write!(f, "{meaning} ({name}")?,
            None => write!(f, "error (number {}", self.code)?,
        }
        match &self.text {
            Some(text) => write!(f, ", {text:?})"),
            None => f.write_str(")"),
        }
    }
}

/// Name and meaning of the numbers that netlink gives.
fn known(code: i32) -> Option<(&'static str, &'static str)> {
    macro_rules! table {
        ($($name:ident $meaning:literal)*) => {
            match code { $(libc::$name => Some((stringify!($name), $meaning)),)* _ => None }
        };
    }
    table! {
        EPERM "operation not permitted"
        ENOENT "no such object"
        ESRCH "no such route or process"
        EINTR "interrupted"
        EIO "input/output error"
        ENXIO "no such device or address"
        E2BIG "argument list too long"
        EBADF "bad file descriptor"
        EAGAIN "try again"
        ENOMEM "out of memory"
        EACCES "permission denied"
        EFAULT "bad address"
        EBUSY "device or resource busy"
        EEXIST "exists already"
        EXDEV "cross-device link"
        ENODEV "no such device"
        ENOTDIR "not a directory"
        EISDIR "is a directory"
        EINVAL "invalid argument"
        ENFILE "too many open files in the system"
        EMFILE "too many open files"
        ENOSPC "no space left"
        EROFS "read-only file system"
        EMLINK "too many links"
        EDOM "argument out of domain"
        ERANGE "value out of range"
        ELOOP "too many levels"
        EPROTO "protocol error"
        EOVERFLOW "value too large"
        ERESTART "changed meanwhile, to be repeated"
        EBADMSG "bad message"
        EMSGSIZE "message too long"
        EPROTONOSUPPORT "protocol not supported"
        EOPNOTSUPP "operation not supported"
        EPFNOSUPPORT "protocol family not supported"
        EAFNOSUPPORT "address family not supported"
        EADDRINUSE "address in use"
        EADDRNOTAVAIL "address not available"
        ENETDOWN "network is down"
        ENETUNREACH "network is unreachable"
        ENOBUFS "no buffer space"
        ENOTCONN "not connected"
        ETIMEDOUT "timed out"
        ECONNREFUSED "connection refused"
        EHOSTDOWN "host is down"
        EHOSTUNREACH "host is unreachable"
    }
}

/// Errors of this room.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A socket could not be made or used.
    #[error("{action}: {source}")]
    Socket {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("{action}: {errno}")]
    Kernel {
        /// What was tried, with its object.
        action: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// A network namespace could not be opened; the texts of the first two are those of cni.md 2.0.1.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A sysctl could not be read or written.
    #[error("{action} {path}: {source}")]
    Sysctl {
        /// "read" or "write", with the value.
        action: String,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    /// The error number behind it, if there is one.
    pub fn code(&self) -> Option<i32> {
        match self {
            Error::Kernel { errno, .. } => Some(errno.code),
            Error::Socket { source, .. } | Error::Sysctl { source, .. } => source.raw_os_error(),
            Error::Netns(_) => None,
        }
    }

    /// For `map_err`: names what was tried.
    pub(crate) fn kernel(action: impl Into<String>) -> impl FnOnce(Errno) -> Error {
        let action = action.into();
        move |errno| Error::Kernel { action, errno }
    }
}

/// Why a path is no network namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// Nothing is there.
    #[error("failed to Statfs {0:?}: no such file or directory")]
    Missing(PathBuf),
    /// A file, but not of nsfs or procfs.
    #[error("unknown FS magic on {path:?}: {magic:x}")]
    NotANamespace {
        /// The path.
        path: PathBuf,
        /// Magic number of its file system.
        magic: u64,
    },
    /// A namespace of another kind.
    #[error("open {0:?}: a namespace, but not a network namespace")]
    OtherKind(PathBuf),
    /// Anything else.
    #[error("{action}: {source}")]
    Io {
        /// What was tried, with its object.
        action: String,
        /// Why it failed.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_number_and_explanation() {
        for (errno, want) in [
            (Errno::new(libc::ENODEV), "no such device (ENODEV)"),
            (
                Errno {
                    code: libc::ENETUNREACH,
                    text: Some("Nexthop has invalid gateway".to_owned()),
                    offset: None,
                },
                r#"network is unreachable (ENETUNREACH, "Nexthop has invalid gateway")"#,
            ),
            (Errno::new(524), "error (number 524)"),
        ] {
            assert_eq!(errno.to_string(), want);
        }
    }
}
