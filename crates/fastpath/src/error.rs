//! Why there is no fast path, in sentences an operator can do something with.

use std::fmt;
use std::path::Path;

use aya::EbpfError;
use aya::maps::MapError;
use aya::pin::PinError;
use aya::programs::ProgramError;

/// Why the fast path is not there, or not on one device.
#[derive(Debug)]
pub enum Error {
    /// The build had no clang.
    NotBuilt,
    /// Linux before 6.6, or built without it.
    NoTcx,
    /// The kernel's types cannot be read.
    NoBtf(String),
    /// The kernel does not offer connection tracking to programs.
    NoConntrack(&'static str),
    /// The object is not what this agent expects.
    Object(String),
    /// The verifier or the kernel refuses a program.
    Program(&'static str, String),
    /// A map cannot be read or written.
    Map(String),
    /// A device takes no program.
    Attach(String, String),
    /// A link cannot be kept.
    Pin(String, String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotBuilt => write!(
                f,
                "this build has no fast path: clang was not there; apt-get install clang linux-libc-dev, then cargo build"
            ),
            Error::NoTcx => write!(f, "the kernel has no tcx, which came with Linux 6.6"),
            Error::NoBtf(why) => {
                write!(f, "read /sys/kernel/btf/vmlinux: {why}; the kernel needs CONFIG_DEBUG_INFO_BTF")
            }
            Error::NoConntrack(function) => write!(
                f,
                "the kernel has no {function}: connection tracking has to be built in (CONFIG_NF_CONNTRACK=y), not a module"
            ),
            Error::Object(why) => write!(f, "the programs cannot be read: {why}"),
            Error::Program(name, why) => write!(f, "the kernel refuses the program {name}: {why}"),
            Error::Map(why) => write!(f, "a map of the fast path: {why}"),
            Error::Attach(device, why) => write!(f, "tie the fast path to {device}: {why}"),
            Error::Pin(file, why) => write!(f, "keep {file}: {why}"),
        }
    }
}

impl std::error::Error for Error {}

/// An error with what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    if text.contains("os error 1)") {
        text.push_str("; the agent needs the capabilities BPF and NET_ADMIN");
    }
    text
}

impl Error {
    pub(crate) fn object(error: EbpfError) -> Error {
        Error::Object(chain(&error))
    }

    /// Of the verifier's log the last lines say what it refused.
    pub(crate) fn program(name: &str, error: ProgramError) -> Error {
        let name = crate::PROGRAMS.into_iter().find(|known| *known == name).unwrap_or("of another name");
        let why = match &error {
            ProgramError::LoadError { io_error, verifier_log } => {
                let log = verifier_log.to_string();
                let figures = ["processed ", "stack depth ", "verification time "];
                let said =
                    log.lines().rev().find(|l| !l.is_empty() && !figures.iter().any(|f| l.starts_with(f)));
                format!("{io_error}: {}", said.unwrap_or("without a reason"))
            }
            other => chain(other),
        };
        Error::Program(name, why)
    }

    pub(crate) fn map(error: MapError) -> Error {
        Error::Map(chain(&error))
    }

    pub(crate) fn attach(device: &str, error: ProgramError) -> Error {
        Error::Attach(device.to_owned(), chain(&error))
    }

    pub(crate) fn pin(file: &Path, error: PinError) -> Error {
        Error::Pin(file.display().to_string(), chain(&error))
    }
}
