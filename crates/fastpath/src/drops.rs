//! Packets the kernel drops, in namespaces of one's choice: a program at the tracepoint skb:kfree_skb writes a record of
//! each into a ring (decision 0224). It is there as long as the [`Watch`], and gone when the process ends, however it
//! ends. Needs Linux 5.17 with BTF, CAP_BPF and CAP_PERFMON.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::AsFd;
use std::time::Duration;

use aya::maps::{HashMap, MapData, PerCpuArray, RingBuf};
use aya::programs::{ProgramError, RawTracePoint};
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::btf::Types;

/// What the build script compiled; empty where there was no clang.
const BUILT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/drops.o"));

/// Bytes of a record, as `bpf/drops.c` has it.
const RECORD: usize = 288;
const FRAMES: usize = 12;
const HEAD: usize = 128;

/// A packet that was dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// Nanoseconds of the monotonic clock.
    pub at_ns: u64,
    /// Address of the instruction that gave the packet up.
    pub location: u64,
    /// Addresses of its callers, the nearest first; the tracepoint's own first.
    pub stack: Vec<u64>,
    /// Number of the reason, which this kernel alone gives a [name](reasons).
    pub reason: u32,
    /// Inode number of the namespace.
    pub netns: u32,
    /// Index and name of the device it was at; 0 if there was none yet.
    pub device: (u32, String),
    /// Index of the device it came in by; 0 if it was sent from here.
    pub came_by: u32,
    /// Length in bytes.
    pub bytes: u32,
    /// `ETH_P_…`
    pub protocol: u16,
    /// The beginning, up to 128 bytes, from the network header on.
    pub head: Vec<u8>,
}

impl Dropped {
    /// Reads a record. Pure.
    pub fn read(bytes: &[u8]) -> Option<Dropped> {
        let bytes: &[u8; RECORD] = bytes.get(..RECORD)?.try_into().ok()?;
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| {
            let mut long = [0; 8];
            long.copy_from_slice(&bytes[at..at + 8]);
            u64::from_ne_bytes(long)
        };
        let rest = 16 + 8 * FRAMES;
        let frames = (word(rest + 28) as usize).min(FRAMES);
        let name = &bytes[rest + 32..rest + 48];
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let kept = (word(rest + 20) as usize).min(HEAD);
        Some(Dropped {
            at_ns: long(0),
            location: long(8),
            stack: (0..frames).map(|n| long(16 + 8 * n)).collect(),
            reason: word(rest),
            netns: word(rest + 4),
            device: (word(rest + 8), String::from_utf8_lossy(name).into_owned()),
            came_by: word(rest + 12),
            bytes: word(rest + 16),
            protocol: word(rest + 24) as u16,
            head: bytes[rest + 48..rest + 48 + kept].to_vec(),
        })
    }
}

/// Why drops cannot be watched.
#[derive(Debug)]
pub enum Error {
    /// The build had no clang.
    NotBuilt,
    /// The kernel does not say why it drops.
    TooOld,
    /// The kernel's types cannot be read.
    NoBtf(String),
    /// The caller may not.
    NotPermitted,
    /// The kernel has no such tracepoint.
    NoTracepoint(String),
    /// Something else.
    Other(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotBuilt => write!(
                f,
                "this build cannot watch drops: clang was not there; apt-get install clang linux-libc-dev, then cargo build"
            ),
            Error::TooOld => write!(f, "the kernel gives no reasons for drops, which came with Linux 5.17"),
            Error::NoBtf(why) => {
                write!(f, "read /sys/kernel/btf/vmlinux: {why}; the kernel needs CONFIG_DEBUG_INFO_BTF")
            }
            Error::NotPermitted => {
                write!(f, "it needs the capabilities BPF and PERFMON, or SYS_ADMIN; run it as root")
            }
            Error::NoTracepoint(why) => write!(
                f,
                "the kernel does not offer the tracepoint skb:kfree_skb to programs: {why}; it needs CONFIG_BPF_EVENTS"
            ),
            Error::Other(why) => write!(f, "the kernel refuses the program: {why}"),
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    fn of(error: &(dyn std::error::Error + 'static)) -> Error {
        let mut text = error.to_string();
        let mut next = error.source();
        while let Some(cause) = next {
            text = format!("{text}: {cause}");
            next = cause.source();
        }
        match (text.contains("os error 1)"), text.contains("os error 13)")) {
            (false, false) => Error::Other(text),
            _ => Error::NotPermitted,
        }
    }

    fn program(error: ProgramError) -> Error {
        match error {
            ProgramError::LoadError { io_error, verifier_log } => match io_error.raw_os_error() {
                Some(1 | 13) => Error::NotPermitted,
                _ => {
                    let log = verifier_log.to_string();
                    let last =
                        log.lines().rev().find(|line| !line.is_empty() && !line.starts_with("processed "));
                    Error::Other(format!("{io_error}: {}", last.unwrap_or("without a reason")))
                }
            },
            other => match Error::of(&other) {
                Error::Other(why) => Error::NoTracepoint(why),
                known => known,
            },
        }
    }
}

/// The loaded program, at work.
pub struct Watch {
    /// Holds the program and its link.
    ebpf: Ebpf,
    ring: RingBuf<MapData>,
}

impl Watch {
    /// Starts to watch; nothing is recorded before namespaces are [named](Watch::include).
    ///
    /// # Errors
    /// The kernel lacks something, or the caller may not.
    pub fn start() -> Result<Watch, Error> {
        if BUILT.is_empty() {
            return Err(Error::NotBuilt);
        }
        if KernelVersion::current().is_ok_and(|now| now < KernelVersion::new(5, 17, 0)) {
            return Err(Error::TooOld);
        }
        if let Err(error) = std::fs::File::open(BTF) {
            return Err(Error::NoBtf(error.to_string()));
        }
        let mut ebpf = EbpfLoader::new().load(BUILT).map_err(|error| Error::of(&error))?;
        let ring = ebpf.take_map("ring").ok_or(Error::Other("it has no ring".to_owned()))?;
        let ring = RingBuf::try_from(ring).map_err(|error| Error::of(&error))?;
        let program = ebpf.program_mut("dropped").ok_or(Error::Other("it has no program".to_owned()))?;
        let program: &mut RawTracePoint = program.try_into().map_err(Error::program)?;
        program.load().map_err(Error::program)?;
        program.attach("kfree_skb").map_err(Error::program)?;
        Ok(Watch { ebpf, ring })
    }

    /// Also records what is dropped in the namespace with this inode number.
    ///
    /// # Errors
    /// There are 4096 already.
    pub fn include(&mut self, netns: u32) -> Result<(), Error> {
        let map = self.ebpf.map_mut("namespaces").ok_or(Error::Other("it has no namespaces".to_owned()))?;
        let mut map: HashMap<&mut MapData, u32, u8> = HashMap::try_from(map).map_err(|e| Error::of(&e))?;
        map.insert(netns, 1, 0).map_err(|error| Error::of(&error))
    }

    /// The records since the last call, waiting up to `patience` for the first.
    ///
    /// # Errors
    /// The ring cannot be waited for.
    pub fn take(&mut self, patience: Duration) -> Result<Vec<Dropped>, Error> {
        let limit = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: patience.subsec_nanos().into() };
        match poll(&mut [PollFd::from_borrowed_fd(self.ring.as_fd(), PollFlags::IN)], Some(&limit)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::of(&std::io::Error::from(error))),
        }
        let mut drops = Vec::new();
        while let Some(record) = self.ring.next() {
            drops.extend(Dropped::read(&record));
        }
        Ok(drops)
    }

    /// Packets that came too fast to be recorded, since the beginning.
    pub fn passed_over(&self) -> u64 {
        let Some(map) = self.ebpf.map("passed_over") else { return 0 };
        let Ok(map) = PerCpuArray::<&MapData, u64>::try_from(map) else { return 0 };
        map.get(&0, 0).map_or(0, |values| values.iter().sum())
    }
}

/// Ids of the programs of this kind that the kernel holds, those of other processes included.
pub fn loaded() -> Vec<u32> {
    let programs = aya::programs::loaded_programs().filter_map(Result::ok);
    programs.filter(|program| program.name_as_str() == Some("dropped")).map(|program| program.id()).collect()
}

const BTF: &str = "/sys/kernel/btf/vmlinux";

/// The kernel's names of reasons, without `SKB_DROP_REASON_`; empty where it has none.
pub fn reasons() -> BTreeMap<u32, String> {
    let names =
        std::fs::read(BTF).ok().and_then(|bytes| Types::read(&bytes, None)?.enumeration("skb_drop_reason"));
    let short = |name: String| name.strip_prefix("SKB_DROP_REASON_").map(str::to_owned).unwrap_or(name);
    names.unwrap_or_default().into_iter().map(|(number, name)| (number, short(name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_they_are_written() {
        let mut bytes = vec![0; RECORD];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &7u64.to_ne_bytes());
        put(8, &0xffff_0001u64.to_ne_bytes());
        put(16, &0xffff_0002u64.to_ne_bytes());
        for (at, value) in [(112, 12u32), (116, 4026), (120, 3), (124, 2), (128, 84), (132, 2), (136, 0x800)]
        {
            put(at, &value.to_ne_bytes());
        }
        put(140, &1u32.to_ne_bytes());
        put(144, b"flannel.1");
        put(160, &[0x45, 0]);
        let want = Dropped {
            at_ns: 7,
            location: 0xffff_0001,
            stack: vec![0xffff_0002],
            reason: 12,
            netns: 4026,
            device: (3, "flannel.1".to_owned()),
            came_by: 2,
            bytes: 84,
            protocol: 0x800,
            head: vec![0x45, 0],
        };
        assert_eq!(Dropped::read(&bytes), Some(want));
        assert_eq!(Dropped::read(&bytes[1..]), None);
    }
}
