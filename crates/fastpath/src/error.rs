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
    /// The kernel does not offer a function to programs.
    NoFunction(&'static str),
    /// The kernel does not say what an entry of conntrack looks like.
    NoConntrack,
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
            Error::NoFunction(function) => {
                write!(f, "the kernel has no {function}, which came with Linux 6.2")
            }
            Error::NoConntrack => write!(
                f,
                "neither /sys/kernel/btf/vmlinux nor /sys/kernel/btf/nf_conntrack tells what connection tracking keeps: modprobe nf_conntrack, in a kernel with CONFIG_DEBUG_INFO_BTF_MODULES"
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
        let mut why = chain(&error);
        // EBUSY, ERANGE, EOPNOTSUPP of dev_xdp_attach and of drivers.
        let meanings = [
            ("os error 16)", "another program has its place"),
            ("os error 34)", "its MTU is too large for XDP"),
            ("os error 95)", "its driver runs no programs"),
        ];
        if let Some((_, meaning)) = meanings.iter().find(|(said, _)| why.contains(said)) {
            why = format!("{why}; {meaning}");
        }
        Error::Attach(device.to_owned(), why)
    }

    pub(crate) fn pin(file: &Path, error: PinError) -> Error {
        Error::Pin(file.display().to_string(), chain(&error))
    }
}
