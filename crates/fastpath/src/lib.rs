//! The fast path: programs at the host's ends of pods' veths and at the uplink carry packets of established flows
//! between pods past the bridge, netfilter and the tunnel device. What they do is learnt from the slow path; what is
//! not plain stays there (decisions 0215 to 0219).
//!
//! Beside it [`drops`] says which packets the kernel drops, and why (decision 0224).
//!
//! This room loads the programs, ties them to devices and tells them what they have to know. When and where is the
//! agent's to say. Needs CAP_BPF, CAP_NET_ADMIN, Linux 6.6 or newer with BTF, and connection tracking built in.

mod error;
mod object;
mod pins;

pub mod drops;
pub mod layout;

use std::collections::BTreeMap;
use std::path::PathBuf;

use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};

pub use error::Error;
use layout::{CONFIG, Config, Counters, FLOW, TUPLE};
pub use object::{BUILT, is_built};
pub use pins::Pins;

/// The programs, by name, and where each is tied to a device.
const PROGRAMS: [&str; 4] = ["pod_in", "pod_out", "uplink_in", "uplink_out"];

/// What a device is to the fast path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The host's end of a pod's veth.
    Pod,
    /// The interface for traffic between hosts.
    Uplink,
}

impl Role {
    fn programs(self) -> [(&'static str, TcAttachType); 2] {
        let [pod_in, pod_out, uplink_in, uplink_out] = PROGRAMS;
        match self {
            Role::Pod => [(pod_in, TcAttachType::Ingress), (pod_out, TcAttachType::Egress)],
            Role::Uplink => [(uplink_in, TcAttachType::Ingress), (uplink_out, TcAttachType::Egress)],
        }
    }
}

/// A program tied to a device: as long as this is there, or the file that pins it.
struct Tie {
    _link: FdLink,
    pin: Option<PathBuf>,
}

/// The loaded programs and where they are. Dropping it unties what is not pinned.
pub struct FastPath {
    ebpf: Ebpf,
    pins: Option<Pins>,
    ties: BTreeMap<(u32, &'static str), Tie>,
}

impl FastPath {
    /// Loads `object` (see [`BUILT`]); no device is touched yet, and the programs do nothing until they are
    /// [told](FastPath::tell). `flows` is how many directions of connections are remembered at most.
    ///
    /// # Errors
    /// No object was built, the kernel lacks something, or its verifier refuses a program.
    pub fn load(object: &[u8], flows: u32, pins: Option<Pins>) -> Result<FastPath, Error> {
        let object = object::with_kernel_functions(object)?;
        let mut ebpf =
            EbpfLoader::new().map_max_entries("flows", flows).load(&object).map_err(Error::object)?;
        for name in PROGRAMS {
            program(&mut ebpf, name)?.load().map_err(|error| Error::program(name, error))?;
        }
        Ok(FastPath { ebpf, pins, ties: BTreeMap::new() })
    }

    /// Tells the programs what to go by, from the next packet on.
    ///
    /// # Errors
    /// The kernel refuses, which it does not.
    pub fn tell(&mut self, config: &Config) -> Result<(), Error> {
        let map = self.ebpf.map_mut("config").ok_or(Error::Object("it has no map config".to_owned()))?;
        let mut map: Array<&mut MapData, [u8; CONFIG]> = Array::try_from(map).map_err(Error::map)?;
        map.set(0, config.bytes(), 0).map_err(Error::map)
    }

    /// What has been counted since loading.
    ///
    /// # Errors
    /// As [`FastPath::tell`].
    pub fn counters(&self) -> Result<Counters, Error> {
        let map = self.ebpf.map("counters").ok_or(Error::Object("it has no map counters".to_owned()))?;
        let map: PerCpuArray<&MapData, u64> = PerCpuArray::try_from(map).map_err(Error::map)?;
        let mut rows = [0; Counters::ROWS as usize];
        for (row, index) in rows.iter_mut().zip(0..) {
            *row = map.get(&index, 0).map_err(Error::map)?.iter().sum();
        }
        Ok(Counters::of(rows))
    }

    /// Directions of connections that are remembered, void ones included. Walks all of them.
    ///
    /// # Errors
    /// As [`FastPath::tell`].
    pub fn flows(&self) -> Result<usize, Error> {
        let map = self.ebpf.map("flows").ok_or(Error::Object("it has no map flows".to_owned()))?;
        let map: HashMap<&MapData, [u8; TUPLE], [u8; FLOW]> = HashMap::try_from(map).map_err(Error::map)?;
        Ok(map.keys().filter(Result::is_ok).count())
    }

    /// Ties the programs of a role to a device, in front of others. A device an agent before us tied keeps its
    /// links and changes to our programs without a packet in between that sees none.
    ///
    /// # Errors
    /// The device is gone, or the kernel has no tcx.
    pub fn attach(&mut self, device: &str, index: u32, role: Role) -> Result<(), Error> {
        for (name, way) in role.programs() {
            if self.ties.contains_key(&(index, name)) {
                continue;
            }
            let tie = self.tie(device, index, name, way)?;
            self.ties.insert((index, name), tie);
        }
        Ok(())
    }

    fn tie(&mut self, device: &str, index: u32, name: &'static str, way: TcAttachType) -> Result<Tie, Error> {
        let pin = self.pins.as_ref().map(|pins| pins.file(name, index));
        let program = program(&mut self.ebpf, name)?;
        let refused = |error| Error::attach(device, error);
        if let Some(pinned) = pin.as_ref().and_then(|file| PinnedLink::from_pin(file).ok()) {
            let link = SchedClassifierLink::try_from(FdLink::from(pinned));
            if let Some(id) = link.ok().and_then(|link| program.attach_to_link(link).ok()) {
                let link = program.take_link(id).map_err(refused)?;
                return Ok(Tie { _link: FdLink::try_from(link).map_err(|_| Error::NoTcx)?, pin });
            }
        }
        // What is pinned there is another device's, which is gone.
        pin.iter().for_each(|file| drop(std::fs::remove_file(file)));
        let first = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = program.attach_with_options(device, way, first).map_err(refused)?;
        let link = FdLink::try_from(program.take_link(id).map_err(refused)?).map_err(|_| Error::NoTcx)?;
        let Some(file) = pin else { return Ok(Tie { _link: link, pin: None }) };
        let pinned = link.pin(&file).map_err(|error| Error::pin(&file, error))?;
        Ok(Tie { _link: pinned.into(), pin: Some(file) })
    }

    /// Unties a device; one that is gone has been untied by the kernel.
    pub fn detach(&mut self, index: u32) {
        for name in PROGRAMS {
            if let Some(Tie { pin: Some(file), .. }) = self.ties.remove(&(index, name)) {
                drop(std::fs::remove_file(file));
            }
        }
    }

    /// Indices of the devices that are tied.
    pub fn attached(&self) -> impl Iterator<Item = u32> {
        self.ties.keys().map(|(index, _)| *index)
    }

    /// Unties what agents before us left tied and we have not.
    pub fn sweep(&self) {
        if let Some(pins) = &self.pins {
            pins.sweep(|file| self.ties.values().any(|tie| tie.pin.as_deref() == Some(file)));
        }
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, Error> {
    let program = ebpf.program_mut(name).ok_or_else(|| Error::Object(format!("it has no program {name}")))?;
    program.try_into().map_err(|error| Error::program(name, error))
}

/// Now, by the clock of [`Config::alive_until`].
pub fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or_default() * 1_000_000_000
        + u64::try_from(now.tv_nsec).unwrap_or_default()
}

/// Names of the programs that tcx runs for a device of the caller's namespace, ours and others.
///
/// # Errors
/// There is no such device, or the kernel has no tcx.
pub fn programs_on(device: &str) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for way in [TcAttachType::Ingress, TcAttachType::Egress] {
        let (_, programs) =
            SchedClassifier::query_tcx(device, way).map_err(|error| Error::attach(device, error))?;
        names.extend(programs.iter().filter_map(|program| program.name_as_str().map(str::to_owned)));
    }
    Ok(names)
}
