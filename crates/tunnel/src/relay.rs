//! The data path of the backend `udp`: an IPv4 packet in a UDP datagram, with no header of its own (flannel.md
//! 6.4). A lane is a queue of the device, a socket and two threads, one for each direction.
//!
//! Nothing waits for anything but work: reads and writes return at once, a thread without work sleeps in
//! `poll`, and what cannot be sent is thrown away and counted. A change of peers is seen at the next batch.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use ipnet::Ipv4Net;
use model::Family;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, sendto, socket_with};

use crate::packet::coalesce::Coalescer;
use crate::packet::header::{self, Header};
use crate::packet::icmp::{Allowance, Reason, answer};
use crate::packet::outbox::Outbox;
use crate::packet::segment::Segments;
use crate::packet::vnet::{self, Vnet};
use crate::peers::{Peers, Sender, Table};
use crate::udp::{Batch, Sent};
use crate::{sys, tun, udp};

/// Bytes of packets gathered before they are sent: some trains, which stay in the processor's cache.
const OUTBOX: usize = 256 << 10;
/// Packets or trains read before what they became is sent, though there may be more.
const READS: usize = 128;

/// A queue of the device and the socket its packets go through.
#[derive(Debug)]
pub struct Lane {
    /// The device's side.
    pub tun: tun::Queue,
    /// The network's side.
    pub udp: udp::Socket,
}

/// What two threads of a lane count, each for itself; read by whoever asks.
#[derive(Debug, Default)]
struct Counters {
    out: [AtomicU64; Fate::COUNT],
    into: [AtomicU64; Fate::COUNT],
}

/// What became of packets, by its name in answers to `show`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Packets,
    Bytes,
    /// System calls that moved them.
    Calls,
    Malformed,
    /// Not IPv4, such as what the kernel sends by itself on a new device.
    Other,
    NoRoute,
    Hops,
    /// From an address that is no peer's.
    Stranger,
    /// From a peer, with an inner source that cannot be behind it.
    Foreign,
    Refused,
    Full,
}

impl Fate {
    const ALL: [(Fate, &str); Fate::COUNT] = [
        (Fate::Packets, "packets"),
        (Fate::Bytes, "bytes"),
        (Fate::Calls, "calls"),
        (Fate::Malformed, "malformed"),
        (Fate::Other, "other"),
        (Fate::NoRoute, "no-route"),
        (Fate::Hops, "hops"),
        (Fate::Stranger, "stranger"),
        (Fate::Foreign, "foreign"),
        (Fate::Refused, "refused"),
        (Fate::Full, "full"),
    ];
    const COUNT: usize = 11;
}

/// Counts of one batch, added up once at its end.
#[derive(Default)]
struct Tally([u64; Fate::COUNT]);

impl Tally {
    fn add(&mut self, fate: Fate, count: u64) {
        self.0[fate as usize] += count;
    }

    fn sent(&mut self, sent: Sent) {
        self.add(Fate::Packets, sent.datagrams);
        self.add(Fate::Refused, sent.refused);
        self.add(Fate::Full, sent.full);
    }

    fn pour(&mut self, into: &[AtomicU64; Fate::COUNT]) {
        for (count, total) in std::mem::take(&mut self.0).into_iter().zip(into) {
            if count > 0 {
                total.fetch_add(count, Ordering::Relaxed);
            }
        }
    }
}

/// What all threads look at.
#[derive(Debug)]
struct Shared {
    table: Mutex<Arc<Table>>,
    /// Counts up with each new table.
    edition: AtomicU64,
    stop: AtomicBool,
    /// Readable once threads shall end.
    wake: OwnedFd,
    /// Readable once a thread had to end.
    ended: OwnedFd,
    answers: Answers,
    counters: Vec<Counters>,
    start: Instant,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Arc<Table>> {
        // A table is replaced as a whole or not at all.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until a descriptor can be read. False when it is time to end.
    fn wait(&self, fd: BorrowedFd<'_>) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN), PollFd::new(&self.wake, PollFlags::IN)];
        // Interrupted by a signal: the caller tries and comes back.
        let _ = poll(&mut fds, None);
        !self.stop.load(Ordering::Relaxed)
    }

    fn answer(&self, offender: &[u8], reason: Reason, allowance: &mut Allowance) {
        let Answers { address, raw: Some(raw) } = &self.answers else { return };
        let now_ms = self.start.elapsed().as_millis() as u64;
        let Some(packet) = answer(offender, *address, reason) else { return };
        if allowance.take(now_ms)
            && let Some(to) = header::v4(&packet, 16)
        {
            // Nobody waits for an answer that does not come.
            let _ = sendto(raw, &packet, SendFlags::DONTWAIT, &SocketAddr::new(to.into(), 0));
        }
    }
}

/// A table as a thread sees it: looked at again only if there is another.
struct View {
    table: Arc<Table>,
    edition: u64,
}

impl View {
    fn of(shared: &Shared) -> View {
        let edition = shared.edition.load(Ordering::Acquire);
        View { table: shared.table().clone(), edition }
    }

    fn renew(&mut self, shared: &Shared) {
        if shared.edition.load(Ordering::Acquire) != self.edition {
            *self = View::of(shared);
        }
    }
}

/// A running tunnel.
#[derive(Debug)]
pub struct Relay {
    shared: Arc<Shared>,
    lanes: Arc<Vec<Lane>>,
    threads: Vec<JoinHandle<()>>,
    peers: Peers,
    network: Ipv4Net,
}

impl Relay {
    /// Starts threads for lanes, in the namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel gives no thread or descriptor.
    pub fn start(lanes: Vec<Lane>, answers: Answers, network: Ipv4Net, peers: Peers) -> io::Result<Relay> {
        let shared = Arc::new(Shared {
            table: Mutex::new(Arc::new(Table::new(&peers, network))),
            edition: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            ended: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            answers,
            counters: lanes.iter().map(|_| Counters::default()).collect(),
            start: Instant::now(),
        });
        let mut relay = Relay { shared, lanes: Arc::new(lanes), threads: Vec::new(), peers, network };
        for lane in 0..relay.lanes.len() {
            for (name, work) in [("out", outward as fn(&Shared, &Lane, &Counters)), ("in", inward)] {
                let (shared, lanes) = (relay.shared.clone(), relay.lanes.clone());
                let thread = std::thread::Builder::new().name(format!("{name}-{lane}"));
                relay.threads.push(thread.spawn(move || {
                    work(&shared, &lanes[lane], &shared.counters[lane]);
                    if !shared.stop.load(Ordering::Relaxed) {
                        signal(&shared.ended);
                    }
                })?);
            }
        }
        Ok(relay)
    }

    /// The peers.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Replaces the peers.
    pub fn set_peers(&mut self, peers: Peers) {
        let table = Arc::new(Table::new(&peers, self.network));
        *self.shared.table() = table;
        self.shared.edition.fetch_add(1, Ordering::Release);
        self.peers = peers;
    }

    /// Readable once the tunnel cannot go on because its device is gone.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.shared.ended.as_fd()
    }

    /// What was counted, by name, both directions; only what is not zero.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for (fate, name) in Fate::ALL {
            let total = |side: fn(&Counters) -> &[AtomicU64; Fate::COUNT]| -> u64 {
                self.shared.counters.iter().map(|c| side(c)[fate as usize].load(Ordering::Relaxed)).sum()
            };
            for (side, count) in [("out", total(|c| &c.out)), ("in", total(|c| &c.into))] {
                if count > 0 {
                    counts.insert(format!("{side}-{name}"), count);
                }
            }
        }
        counts
    }

    /// Ends the threads, each after its batch, and gives the lanes back: packets wait in them.
    pub fn stop(mut self) -> Vec<Lane> {
        self.end();
        Arc::try_unwrap(std::mem::take(&mut self.lanes)).unwrap_or_default()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        signal(&self.shared.wake);
        for thread in self.threads.drain(..) {
            // A panic in it has been printed.
            let _ = thread.join();
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.end();
    }
}

fn signal(event: &OwnedFd) {
    // Fails only when it is signalled already, to the brim.
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}

/// How senders are told that their packets do not go on. Not through the device: a packet from there that
/// says to come from an address of this host is not believed, and flannel's answers are lost that way.
#[derive(Debug)]
pub struct Answers {
    /// Our address on the device, which answers come from.
    address: Ipv4Addr,
    /// Sends packets of ours whatever is in their headers; none where raw sockets are not allowed.
    raw: Option<OwnedFd>,
}

impl Answers {
    /// Answers from an address. Needs CAP_NET_RAW, and goes without.
    pub fn from(address: Ipv4Addr) -> Answers {
        let open = || -> io::Result<OwnedFd> {
            // IPPROTO_RAW receives nothing.
            let protocol = std::num::NonZero::new(255).map(rustix::net::Protocol::from_raw);
            let raw = socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
            sys::set_header_included(raw.as_fd())?;
            Ok(raw)
        };
        Answers { address, raw: open().ok() }
    }
}

/// From the device to the network.
fn outward(shared: &Shared, lane: &Lane, counters: &Counters) {
    let mut buffer = vec![0; tun::READ];
    let mut outbox = Outbox::new(OUTBOX);
    let (mut view, mut tally, mut allowance) = (View::of(shared), Tally::default(), Allowance::new());
    while !shared.stop.load(Ordering::Relaxed) {
        view.renew(shared);
        let mut idle = false;
        for _ in 0..READS {
            match lane.tun.read(&mut buffer) {
                Ok(length) => {
                    tally.add(Fate::Calls, 1);
                    let data = &mut buffer[..length];
                    pack(shared, &view.table, data, &lane.udp, &mut outbox, &mut tally, &mut allowance);
                }
                Err(error) if tun::Queue::is_gone(&error) => return,
                Err(_) => {
                    idle = true;
                    break;
                }
            }
            if outbox.is_nearly_full() {
                break;
            }
        }
        if !outbox.is_empty() {
            flush(&lane.udp, &mut outbox, &mut tally);
        }
        tally.pour(&counters.out);
        if idle && !shared.wait(lane.tun.as_fd()) {
            return;
        }
    }
}

fn flush(udp: &udp::Socket, outbox: &mut Outbox, tally: &mut Tally) {
    tally.add(Fate::Bytes, outbox.messages().1.len() as u64);
    tally.add(Fate::Calls, 1);
    tally.sent(udp.send(outbox));
}

/// Cuts what was read from the device and lays it out for its peer.
fn pack(
    shared: &Shared,
    table: &Table,
    data: &mut [u8],
    udp: &udp::Socket,
    outbox: &mut Outbox,
    tally: &mut Tally,
    allowance: &mut Allowance,
) {
    let Some(vnet) = Vnet::read(data) else { return tally.add(Fate::Malformed, 1) };
    let packet = &mut data[vnet::LENGTH..];
    let v4 = Header::read(packet).filter(|read| read.family == Family::V4);
    let Some(to) = v4.and_then(|_| header::v4(packet, 16)) else { return tally.add(Fate::Other, 1) };
    let Some(peer) = table.route(to) else {
        tally.add(Fate::NoRoute, 1);
        return shared.answer(packet, Reason::NoRoute, allowance);
    };
    if !header::take_hop(packet) {
        tally.add(Fate::Hops, 1);
        return shared.answer(packet, Reason::Hops, allowance);
    }
    let Some(segments) = Segments::new(&vnet, packet) else { return tally.add(Fate::Malformed, 1) };
    for number in 0..segments.count() {
        let size = segments.size(number);
        if outbox.room(peer.into(), size).map(|room| segments.write(number, room)).is_none() {
            flush(udp, outbox, tally);
            let written = outbox.room(peer.into(), size).map(|room| segments.write(number, room));
            tally.add(Fate::Malformed, u64::from(written.is_none()));
        }
    }
}

/// From the network to the device.
fn inward(shared: &Shared, lane: &Lane, counters: &Counters) {
    let mut batch = Batch::new();
    let mut coalescer = Coalescer::new(lane.tun.takes_datagrams());
    let (mut view, mut tally, mut allowance) = (View::of(shared), Tally::default(), Allowance::new());
    while !shared.stop.load(Ordering::Relaxed) {
        if lane.udp.receive(&mut batch).is_err() {
            // Nothing there, or word of an earlier datagram that did not arrive.
            if !shared.wait(lane.udp.as_fd()) {
                return;
            }
            continue;
        }
        view.renew(shared);
        coalescer.clear();
        tally.add(Fate::Calls, 1);
        for received in &batch.received {
            let sender = match received.from.ip() {
                IpAddr::V4(ip) => view.table.sender(ip),
                IpAddr::V6(_) => None,
            };
            let Some(sender) = sender else {
                tally.add(Fate::Stranger, received.datagrams().count() as u64);
                continue;
            };
            for datagram in received.datagrams() {
                match unpack(&mut batch.arena[datagram.clone()], &sender) {
                    Ok(()) if coalescer.push(&batch.arena, datagram.clone()) => {
                        tally.add(Fate::Packets, 1);
                        tally.add(Fate::Bytes, datagram.len() as u64);
                    }
                    Ok(()) => tally.add(Fate::Malformed, 1),
                    Err(Fate::Hops) => {
                        tally.add(Fate::Hops, 1);
                        shared.answer(&batch.arena[datagram], Reason::Hops, &mut allowance);
                    }
                    Err(fate) => tally.add(fate, 1),
                }
            }
        }
        for frame in coalescer.frames() {
            tally.add(Fate::Calls, 1);
            if let Err(error) = lane.tun.write(&frame, &batch.arena) {
                if tun::Queue::is_gone(&error) {
                    return;
                }
                tally.add(Fate::Refused, 1);
            }
        }
        tally.pour(&counters.into);
    }
}

/// Checks a datagram of a peer, and takes a hop from the packet in it, as flannel does on this side as well.
fn unpack(datagram: &mut [u8], sender: &Sender<'_>) -> Result<(), Fate> {
    let read = Header::read(datagram).filter(|read| read.family == Family::V4).ok_or(Fate::Malformed)?;
    if !header::is_sound(datagram, &read) {
        return Err(Fate::Malformed);
    }
    let source = header::v4(datagram, 12).ok_or(Fate::Malformed)?;
    if !sender.may_send(source) {
        return Err(Fate::Foreign);
    }
    if header::take_hop(datagram) { Ok(()) } else { Err(Fate::Hops) }
}

/// How many lanes this machine is worth: each keeps two processors busy.
pub fn lanes_here() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).div_ceil(2).clamp(1, 8)
}
