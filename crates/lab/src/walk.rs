//! Follows one packet: packet sockets in every namespace on the way see everything, one echo with a
//! recognisable payload is sent, and what carries it is the way it took.
//!
//! Nothing is assumed about devices: whichever saw the packet are the hops.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use kernel::Netns;

use crate::icmp::{Answer, Pinger};
use crate::inside;
use crate::packet::{Content, Frame};
use crate::proto::Hop;
use crate::sys;

/// A namespace to listen in, in the order of the way there.
pub struct Station<'a> {
    /// What it is called in the result.
    pub place: String,
    /// Its network namespace.
    pub net: &'a Netns,
}

/// The hops of a request and of its answer.
pub type Hops = (Vec<Hop>, Vec<Hop>);

/// How long the answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Echoes after which frames without a stamp are taken as they are.
const STAMPED_BY: usize = 10;
/// How long the packet sockets may go without a wanted frame before the listening ends.
const QUIET: Duration = Duration::from_millis(30);

/// A frame as one station saw it.
pub struct Sight {
    /// Position of the station.
    pub station: usize,
    /// Name of the device.
    pub device: String,
    /// The station was sending it.
    pub outgoing: bool,
    /// Kernel time, nanoseconds of the wall clock; 0 if the kernel had not begun to stamp frames.
    pub at_ns: u64,
    /// What kind of device it is (`ARPHRD_…`).
    pub hardware: u16,
    /// The frame, from its Ethernet header on; of devices that have none from the IP header on.
    pub bytes: Vec<u8>,
}

/// An instruction of a classic BPF program (Documentation/networking/filter.rst).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip if a comparison holds.
    pub jt: u8,
    /// And if not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// Packet sockets in several namespaces. They see every frame from the moment they are opened.
pub struct Listeners<'a> {
    stations: &'a [Station<'a>],
    sockets: Vec<OwnedFd>,
}

impl<'a> Listeners<'a> {
    /// Starts to listen.
    ///
    /// # Errors
    /// The kernel's: packet sockets need `CAP_NET_RAW`.
    pub fn open(stations: &'a [Station<'a>]) -> io::Result<Listeners<'a>> {
        let sockets: io::Result<_> = stations.iter().map(|s| inside(s.net, sys::packet_socket)).collect();
        Ok(Listeners { stations, sockets: sockets? })
    }

    /// Takes what `keep` wants of the frames seen so far and until none of those came for a while. In
    /// the order of arrival at each station.
    ///
    /// # Errors
    /// The kernel's.
    pub fn take(&self, keep: impl Fn(&[u8]) -> bool) -> io::Result<Vec<Sight>> {
        let fds: Vec<BorrowedFd<'_>> = self.sockets.iter().map(AsFd::as_fd).collect();
        let mut buf = vec![0; 70_000];
        let mut sights = Vec::new();
        let mut quiet_at = Instant::now() + QUIET;
        loop {
            let ready = sys::wait_readable(&fds, quiet_at)?;
            if ready.is_empty() {
                return Ok(sights);
            }
            for station in ready {
                if self.drain(station, &mut buf, &keep, &mut sights)? {
                    quiet_at = Instant::now() + QUIET;
                }
            }
        }
    }

    fn drain(
        &self,
        station: usize,
        buf: &mut [u8],
        keep: &impl Fn(&[u8]) -> bool,
        sights: &mut Vec<Sight>,
    ) -> io::Result<bool> {
        let before = sights.len();
        loop {
            let seen = match sys::receive_frame(&self.sockets[station], buf) {
                Ok(seen) => seen,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(sights.len() > before),
                Err(e) => return Err(e),
            };
            let bytes = &buf[..seen.len.min(buf.len())];
            if keep(bytes) {
                let name = inside(self.stations[station].net, || Ok(sys::device_name(seen.device)))?;
                sights.push(Sight {
                    station,
                    device: name.unwrap_or_else(|| "?".to_owned()),
                    outgoing: seen.outgoing,
                    at_ns: seen.at_ns,
                    hardware: seen.hardware,
                    bytes: bytes.to_vec(),
                });
            }
        }
    }
}

/// Sends one echo of `payload` bytes from the first station to `to` and gives the hops there and back.
///
/// # Errors
/// The kernel's; no answer is an error that says why.
pub fn follow(stations: &[Station<'_>], to: IpAddr, payload: usize, vxlan_port: u16) -> io::Result<Hops> {
    let from = stations.first().ok_or_else(|| io::Error::other("a way needs a first station"))?;
    let mut pinger = inside(from.net, || Pinger::open(to))?;
    // Neighbours are resolved before, so that the walk shows the packet and not the search for it.
    if let Answer::Refused(why) = pinger.until_answered(PATIENCE)? {
        return Err(io::Error::other(why));
    }
    let ((there, back), answer) = send(stations, &mut pinger, payload, PATIENCE, vxlan_port)?;
    match answer {
        Answer::Echo(_) => Ok((there, back)),
        Answer::Refused(why) => Err(io::Error::other(why)),
        Answer::Silence => {
            let last = back.last().or(there.last());
            let last = last.map_or("nowhere".to_owned(), |hop| format!("at {} of {}", hop.device, hop.place));
            Err(io::Error::other(format!("no answer; the packet was last seen {last}")))
        }
    }
}

/// As [`follow`] where an answer may not come: gives how far the packet came, and what came of it.
///
/// # Errors
/// The kernel's.
pub fn attempt(
    stations: &[Station<'_>],
    to: IpAddr,
    payload: usize,
    vxlan_port: u16,
) -> io::Result<(Hops, Answer)> {
    const BRIEF: Duration = Duration::from_secs(1);
    let from = stations.first().ok_or_else(|| io::Error::other("a way needs a first station"))?;
    let mut pinger = inside(from.net, || Pinger::open(to))?;
    // Neighbours are resolved by the first, as in `follow`; what comes of it does not matter.
    pinger.echo(crate::icmp::MIN_PAYLOAD, BRIEF)?;
    send(stations, &mut pinger, payload, BRIEF, vxlan_port)
}

fn send(
    stations: &[Station<'_>],
    pinger: &mut Pinger,
    payload: usize,
    patience: Duration,
    vxlan_port: u16,
) -> io::Result<(Hops, Answer)> {
    let listeners = Listeners::open(stations)?;
    let mut tries = 0;
    loop {
        let (answer, tag) = pinger.echo(payload, patience)?;
        let sights = listeners.take(|bytes| bytes.windows(tag.len()).any(|w| w == tag))?;
        tries += 1;
        // The kernel begins to stamp frames some moments after it was asked to.
        if tries == STAMPED_BY || sights.iter().all(|sight| sight.at_ns != 0) {
            return Ok((sort(stations, sights, vxlan_port), answer));
        }
    }
}

/// Packet sockets in several namespaces that see what a program lets through, for as long as somebody looks.
pub struct Watch<'a> {
    stations: &'a [Station<'a>],
    sockets: Vec<OwnedFd>,
    names: HashMap<(usize, u32), String>,
    buffer: Vec<u8>,
}

/// Frames taken from one socket before the next has its turn.
const TURN: usize = 256;

impl<'a> Watch<'a> {
    /// Starts to listen. Each socket holds up to `bytes` of frames until they are taken.
    ///
    /// # Errors
    /// The kernel's: packet sockets need `CAP_NET_RAW`, and it refuses a program that is none.
    pub fn open(stations: &'a [Station<'a>], program: &[Instruction], bytes: usize) -> io::Result<Watch<'a>> {
        let raw = |i: &Instruction| libc::sock_filter { code: i.code, jt: i.jt, jf: i.jf, k: i.k };
        let program: Vec<libc::sock_filter> = program.iter().map(raw).collect();
        let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
        let open = |s: &Station<'_>| inside(s.net, || sys::filtered_packet_socket(&program, bytes));
        let sockets: io::Result<_> = stations.iter().map(open).collect();
        Ok(Watch { stations, sockets: sockets?, names: HashMap::new(), buffer: vec![0; 300_000] })
    }

    /// Takes some of what there is, waiting until the deadline for the first. In the order of arrival at each station.
    ///
    /// # Errors
    /// The kernel's.
    pub fn take(&mut self, deadline: Instant) -> io::Result<Vec<Sight>> {
        let fds: Vec<BorrowedFd<'_>> = self.sockets.iter().map(AsFd::as_fd).collect();
        let mut sights = Vec::new();
        for station in sys::wait_readable(&fds, deadline)? {
            for _ in 0..TURN {
                let seen = match sys::receive_frame(&self.sockets[station], &mut self.buffer) {
                    Ok(seen) => seen,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    // A device that went down says so once; the others go on.
                    Err(e) if e.raw_os_error() == Some(libc::ENETDOWN) => break,
                    Err(e) => return Err(e),
                };
                let device = match self.names.get(&(station, seen.device)) {
                    Some(name) => name.clone(),
                    None => {
                        let name = inside(self.stations[station].net, || Ok(sys::device_name(seen.device)))?;
                        let name = name.unwrap_or_else(|| "?".to_owned());
                        self.names.insert((station, seen.device), name.clone());
                        name
                    }
                };
                sights.push(Sight {
                    station,
                    device,
                    outgoing: seen.outgoing,
                    at_ns: seen.at_ns,
                    hardware: seen.hardware,
                    bytes: self.buffer[..seen.len.min(self.buffer.len())].to_vec(),
                });
            }
        }
        Ok(sights)
    }

    /// Frames that no socket had room for since this was asked last.
    pub fn lost(&self) -> u64 {
        self.sockets.iter().map(|socket| sys::frames_lost(socket).unwrap_or(0)).sum()
    }
}

/// Decodes, splits into there and back, and orders by time. The kernel stamps a frame once for a
/// device and what lies on top of it, so frames of one stamp are ordered by station and by arrival.
fn sort(stations: &[Station<'_>], sights: Vec<Sight>, vxlan_port: u16) -> Hops {
    let mut there = Vec::new();
    let mut back = Vec::new();
    for (arrival, sight) in sights.into_iter().enumerate() {
        let Some(frame) = Frame::decode(&sight.bytes, vxlan_port) else { continue };
        let station = sight.station;
        let hop = Hop {
            place: stations[station].place.clone(),
            device: sight.device,
            outgoing: sight.outgoing,
            at_us: 0.0,
            frame,
        };
        match hop.frame.innermost().content {
            Content::Echo { request: true, .. } => there.push((sight.at_ns, station, arrival, hop)),
            Content::Echo { request: false, .. } => {
                back.push((sight.at_ns, stations.len() - station, arrival, hop));
            }
            _ => {}
        }
    }
    let start = there.iter().map(|(at, ..)| *at).min().unwrap_or(0);
    let finish = |mut hops: Vec<(u64, usize, usize, Hop)>| {
        hops.sort_by_key(|(at, station, arrival, _)| (*at, *station, *arrival));
        let timed = hops
            .into_iter()
            .map(|(at, _, _, hop)| Hop { at_us: at.saturating_sub(start) as f64 / 1000.0, ..hop });
        timed.collect()
    };
    (finish(there), finish(back))
}
