//! What can go wrong, each in one sentence with the way out.

use std::io;

/// A failure of the lab.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line cannot be understood.
    #[error("{0}; `loden lab --help` lists the commands")]
    Usage(String),
    /// A system call failed; the first text says what was being done.
    #[error("{0}: {1}")]
    Io(String, #[source] io::Error),
    /// The kernel refused something.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// A sentence of its own.
    #[error("{0}")]
    Said(String),
    /// A program the lab runs failed; its last words come with it.
    #[error("{what}")]
    Failed {
        /// The sentence.
        what: String,
        /// Last log lines of the program.
        log: Vec<String>,
    },
}

impl Error {
    /// An error that is one sentence.
    pub fn said(sentence: impl Into<String>) -> Error {
        Error::Said(sentence.into())
    }

    /// The log lines that explain the failure; empty for most.
    pub fn log(&self) -> &[String] {
        match self {
            Error::Failed { log, .. } => log,
            _ => &[],
        }
    }
}

/// Shorthand of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Names the action a failed call was part of.
pub trait Doing<T> {
    /// `action` is a phrase such as "mount /run in host1".
    fn doing(self, action: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, action: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|cause| Error::Io(action(), cause))
    }
}
