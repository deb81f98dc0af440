//! The fast path: programs at the host's ends of pods' veths and at the uplink carry packets of established flows
//! between pods past the bridge, netfilter and the tunnel device. What they do is learnt from the slow path; what is
//! not plain stays there (decisions 0215 to 0219).
//!
//! Beside it [`drops`] says which packets the kernel drops, and why (decision 0224).
//!
//! This room loads the programs, ties them to devices and tells them what they have to know. When and where is the
//! agent's to say. Needs CAP_BPF, CAP_NET_ADMIN, Linux 6.6 or newer with BTF.

mod btf;
mod error;
mod object;
mod pins;

pub mod drops;
pub mod layout;

use std::collections::BTreeMap;

use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{Program, SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};

pub use error::Error;
use layout::{CONFIG, Config, Counters, FLOW, TUPLE, TUPLE6};
pub use object::{BUILT, is_built};
pub use pins::Pins;

/// The programs, by name. In this order they leave a device: what marks packets goes before what reads the marks, as where
/// names are sorted.
const PROGRAMS: [&str; 7] =
    ["uplink_early", "uplink_early_in", "pod_in", "pod_out", "uplink_in", "uplink_out", "tunnel_out"];
/// Those of them that are loaded only where they are wanted: a kernel that refuses them has all the rest.
const EARLY: [&str; 2] = ["uplink_early", "uplink_early_in"];

/// What a device is to the fast path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The host's end of a pod's veth.
    Pod,
    /// The interface for traffic between hosts.
    Uplink,
    /// The device that packs packets for another host.
    Tunnel,
    /// The uplink's driver, besides: what comes through the backend udp is taken out of its frames before the kernel makes
    /// trains (decision 0239).
    Early,
}

/// Where a program is tied to a device.
#[derive(Clone, Copy)]
enum Hook {
    In,
    Out,
    Driver,
}

impl Role {
    fn programs(self) -> &'static [(&'static str, Hook)] {
        match self {
            Role::Pod => &[("pod_in", Hook::In), ("pod_out", Hook::Out)],
            Role::Uplink => &[("uplink_in", Hook::In), ("uplink_out", Hook::Out)],
            Role::Tunnel => &[("tunnel_out", Hook::Out)],
            Role::Early => &[("uplink_early_in", Hook::In), ("uplink_early", Hook::Driver)],
        }
    }
}

/// The loaded programs and where they are. Dropping it unties what is not pinned.
pub struct FastPath {
    ebpf: Ebpf,
    pins: Option<Pins>,
    /// Programs tied to devices: as long as a link is there, or the file that pins it.
    ties: BTreeMap<(u32, &'static str), FdLink>,
    /// Where conntrack keeps what the programs ask for.
    conntrack: [u16; 2],
    /// What programs know each other by.
    key: u64,
}

impl FastPath {
    /// Loads `object` (see [`BUILT`]); no device is touched yet, and the programs do nothing until they are
    /// [told](FastPath::tell). `flows` is how many directions of connections are remembered at most.
    ///
    /// # Errors
    /// No object was built, the kernel lacks something, or its verifier refuses a program.
    pub fn load(object: &[u8], flows: u32, pins: Option<Pins>) -> Result<FastPath, Error> {
        let object = object::with_kernel_functions(object)?;
        let mut loader = EbpfLoader::new();
        let mut ebpf = loader
            .map_max_entries("flows", flows)
            .map_max_entries("flows6", flows)
            .load(&object)
            .map_err(Error::object)?;
        for name in PROGRAMS.into_iter().filter(|name| !EARLY.contains(name)) {
            load(&mut ebpf, name)?;
        }
        let key = key(&boot()?, pins.as_ref());
        Ok(FastPath { ebpf, pins, ties: BTreeMap::new(), conntrack: object::conntrack()?, key })
    }

    /// Tells the programs what to go by, from the next packet on.
    ///
    /// # Errors
    /// The kernel refuses, which it does not.
    pub fn tell(&mut self, config: &Config) -> Result<(), Error> {
        let map = self.ebpf.map_mut("config").ok_or(Error::Object("it has no map config".to_owned()))?;
        let mut map: Array<&mut MapData, [u8; CONFIG]> = Array::try_from(map).map_err(Error::map)?;
        map.set(0, config.bytes(self.conntrack, self.key), 0).map_err(Error::map)
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
        Ok(self.flows_of::<TUPLE>("flows")? + self.flows_of::<TUPLE6>("flows6")?)
    }

    fn flows_of<const N: usize>(&self, name: &'static str) -> Result<usize, Error>
    where
        [u8; N]: aya::Pod,
    {
        let map = self.ebpf.map(name).ok_or_else(|| Error::Object(format!("it has no map {name}")))?;
        let map: HashMap<&MapData, [u8; N], [u8; FLOW]> = HashMap::try_from(map).map_err(Error::map)?;
        Ok(map.keys().filter(Result::is_ok).count())
    }

    /// Ties the programs of a role to a device, in front of others. A device an agent before us tied keeps its
    /// links and changes to our programs without a packet in between that sees none.
    ///
    /// # Errors
    /// The device is gone, or the kernel has no tcx; as [`Role::Early`] also that its driver runs no programs, or somebody
    /// else's.
    pub fn attach(&mut self, device: &str, index: u32, role: Role) -> Result<(), Error> {
        for &(name, hook) in role.programs() {
            if self.ties.contains_key(&(index, name)) {
                continue;
            }
            if role == Role::Early {
                load(&mut self.ebpf, name)?;
            }
            let tie = self.tie(device, index, name, hook)?;
            self.ties.insert((index, name), tie);
        }
        Ok(())
    }

    fn tie(&mut self, device: &str, index: u32, name: &'static str, hook: Hook) -> Result<FdLink, Error> {
        let pin = self.pins.as_ref().filter(|pins| pins.make()).map(|pins| pins.file(name, index));
        let program = program(&mut self.ebpf, name)?;
        if let Some(pinned) = pin.as_ref().and_then(|file| PinnedLink::from_pin(file).ok())
            && let Some(link) = run_by(program, pinned.into())
        {
            return Ok(link);
        }
        // What is pinned there is another device's, which is gone.
        pin.iter().for_each(|file| drop(std::fs::remove_file(file)));
        let refused = |error| Error::attach(device, error);
        let link = match (program, hook) {
            (Program::SchedClassifier(program), Hook::In | Hook::Out) => {
                let way = if matches!(hook, Hook::In) { TcAttachType::Ingress } else { TcAttachType::Egress };
                let first = TcAttachOptions::TcxOrder(LinkOrder::first());
                let id = program.attach_with_options(device, way, first).map_err(refused)?;
                FdLink::try_from(program.take_link(id).map_err(refused)?).map_err(|_| Error::NoTcx)?
            }
            (Program::Xdp(program), Hook::Driver) => {
                let id = program.attach_to_if_index(index, XdpMode::Driver).map_err(refused)?;
                let link = FdLink::try_from(program.take_link(id).map_err(refused)?);
                link.map_err(|_| Error::Object("XDP without a link".to_owned()))?
            }
            _ => return Err(Error::Object(format!("{name} is a program of another kind"))),
        };
        let Some(file) = pin else { return Ok(link) };
        Ok(link.pin(&file).map_err(|error| Error::pin(&file, error))?.into())
    }

    /// Sees to it that our programs are where they were tied, and that the files are there by which they stay when we
    /// are gone: nobody tells who takes them away. Gives the devices of which something is lost, to be tied again.
    pub fn mend(&mut self) -> Vec<u32> {
        let mut lost = Vec::new();
        let pins = self.pins.clone().filter(Pins::make);
        for ((index, name), link) in std::mem::take(&mut self.ties) {
            let pin = pins.as_ref().map(|pins| pins.file(name, index));
            // A link that runs the program already is not touched; one that was detached refuses.
            let held = program(&mut self.ebpf, name).ok().and_then(|program| run_by(program, link));
            let kept = match (held, pin) {
                (Some(link), Some(file)) if !file.exists() => link.pin(&file).ok().map(FdLink::from),
                (held, _) => held,
            };
            match kept {
                Some(link) => drop(self.ties.insert((index, name), link)),
                None => {
                    // A detached link is of no use to anybody, nor is one whose device is gone.
                    self.pins.iter().for_each(|pins| drop(std::fs::remove_file(pins.file(name, index))));
                    lost.push(index);
                }
            }
        }
        lost.dedup();
        lost
    }

    /// Unties a device; one that is gone has been untied by the kernel.
    pub fn detach(&mut self, index: u32) {
        self.untie(index, &PROGRAMS);
    }

    /// Unties what [`Role::Early`] tied, of any device.
    pub fn detach_early(&mut self) {
        let ours = |(index, name): &(u32, &str)| EARLY.contains(name).then_some(*index);
        let indices: Vec<u32> = self.ties.keys().filter_map(ours).collect();
        indices.into_iter().for_each(|index| self.untie(index, &EARLY));
    }

    fn untie(&mut self, index: u32, programs: &[&'static str]) {
        for &name in programs {
            if self.ties.remove(&(index, name)).is_some()
                && let Some(pins) = &self.pins
            {
                drop(std::fs::remove_file(pins.file(name, index)));
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
            pins.sweep(|file| self.ties.keys().any(|(index, name)| pins.file(name, *index) == file));
        }
    }
}

/// A link that runs this program, if it can; one whose device is gone, or that was detached, cannot.
fn run_by(program: &mut Program, link: FdLink) -> Option<FdLink> {
    match program {
        Program::SchedClassifier(program) => {
            let id = program.attach_to_link(SchedClassifierLink::try_from(link).ok()?).ok()?;
            program.take_link(id).ok()?.try_into().ok()
        }
        Program::Xdp(program) => {
            let id = program.attach_to_link(XdpLink::try_from(link).ok()?).ok()?;
            program.take_link(id).ok()?.try_into().ok()
        }
        _ => None,
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, Error> {
    ebpf.program_mut(name).ok_or_else(|| Error::Object(format!("it has no program {name}")))
}

/// Loads a program that is not loaded yet.
fn load(ebpf: &mut Ebpf, name: &str) -> Result<(), Error> {
    let loaded = match program(ebpf, name)? {
        program if program.fd().is_ok() => Ok(()),
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        _ => return Err(Error::Object(format!("{name} is a program of another kind"))),
    };
    loaded.map_err(|error| Error::program(name, error))
}

/// What the kernel calls this boot.
fn boot() -> Result<String, Error> {
    let file = "/proc/sys/kernel/random/boot_id";
    std::fs::read_to_string(file).map_err(|error| Error::Object(format!("read {file}: {error}")))
}

/// What the programs of one agent know each other by, and those of the agent after it: nobody else's program writes this in front
/// of a packet by chance. FNV-1a; never 0.
fn key(boot: &str, pins: Option<&Pins>) -> u64 {
    let place = pins.map_or(std::path::Path::new(""), |pins| pins.files().0).as_os_str().as_encoded_bytes();
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    boot.as_bytes().iter().chain(place).fold(0xcbf2_9ce4_8422_2325, mix).max(1)
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
