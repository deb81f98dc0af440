//! Packets from the device to peers and back, encrypted and decrypted by the library, in the trains of this room:
//! what one system call brings is worked on under one lock of its peer and leaves in one call.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use bytes::BytesMut;
use gotatun::noise::errors::WireGuardError;
use gotatun::noise::index_table::IndexTable;
use gotatun::noise::{TunnResult, handshake};
use gotatun::packet::{Packet, WgKind};
use gotatun::tun::MtuWatcher;
use model::IfName;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};

use super::device::{Device, Indices, Peer, State, View};
use crate::packet::coalesce::Coalescer;
use crate::packet::header::{self, Header};
use crate::packet::outbox::Outbox;
use crate::packet::segment::Segments;
use crate::packet::vnet::{self, Vnet};
use crate::run::drop_privileges;
use crate::udp::Batch;
use crate::{alloc, sys, tun, udp};

/// Bytes of packets gathered before they are sent: some trains, which stay in the processor's cache.
const OUTBOX: usize = 256 << 10;
/// Packets or trains read before what they became is sent, though there may be more.
const READS: usize = 128;
/// How often timers of the protocol are looked at. Its own are seconds.
const TICK: Duration = Duration::from_millis(250);
/// A peer with keepalive that has not answered for 90 s is given up by the protocol, and tried again this often:
/// it may be back, and where it is behind NAT nobody else can begin.
const TRY_AGAIN: Duration = Duration::from_secs(10);
/// `type` of a packet with data; the protocol's other ones are of handshakes.
const DATA: u8 = 4;

/// What all threads look at.
pub struct Shared {
    view: Mutex<Arc<View>>,
    /// Counts up with each new view.
    edition: AtomicU64,
    indices: Arc<Indices>,
    used: IndexTable,
    device: IfName,
    mtu: AtomicU16,
    stop: AtomicBool,
    /// Readable once threads shall end.
    wake: OwnedFd,
    /// Readable once a thread had to end.
    ended: OwnedFd,
}

impl Shared {
    /// For the threads of a device that has no view yet.
    ///
    /// # Errors
    /// The kernel gives no descriptor.
    pub fn new(name: IfName, device: &Device) -> io::Result<Arc<Shared>> {
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let shared = Shared {
            view: Mutex::default(),
            edition: AtomicU64::new(0),
            indices: device.indices(),
            used: device.used(),
            device: name,
            mtu: AtomicU16::new(0),
            stop: AtomicBool::new(false),
            wake: event()?,
            ended: event()?,
        };
        shared.measure();
        Ok(Arc::new(shared))
    }

    /// Replaces the view.
    pub fn set_view(&self, view: View) {
        *self.view() = Arc::new(view);
        self.edition.fetch_add(1, Ordering::Release);
    }

    /// Readable once the tunnel cannot go on because its device is gone.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    fn view(&self) -> MutexGuard<'_, Arc<View>> {
        // A view is replaced as a whole or not at all.
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device's MTU, which no packet is padded beyond.
    fn measure(&self) {
        if let Ok(mtu) = sys::mtu(self.device.as_str()) {
            self.mtu.store(u16::try_from(mtu).unwrap_or(u16::MAX), Ordering::Relaxed);
        }
    }

    fn limit(&self) -> MtuWatcher {
        MtuWatcher::new(self.mtu.load(Ordering::Relaxed))
    }

    /// Sleeps until a descriptor can be read. False when it is time to end.
    fn wait(&self, fd: BorrowedFd<'_>) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN), PollFd::new(&self.wake, PollFlags::IN)];
        // Interrupted by a signal: the caller tries and comes back.
        let _ = poll(&mut fds, None);
        !self.stop.load(Ordering::Relaxed)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// A view as a thread sees it: looked at again only if there is another.
struct Seen {
    view: Arc<View>,
    edition: u64,
}

impl Seen {
    fn of(shared: &Shared) -> Seen {
        let edition = shared.edition.load(Ordering::Acquire);
        Seen { view: shared.view().clone(), edition }
    }

    fn renew(&mut self, shared: &Shared) {
        if shared.edition.load(Ordering::Acquire) != self.edition {
            *self = Seen::of(shared);
        }
    }
}

/// A socket for peers of both families.
pub struct Port {
    udp: udp::Socket,
    /// It is one of IPv6, which has IPv4 addresses in a form of its own (RFC 4291 §2.5.5.2).
    dual: bool,
}

impl Port {
    /// As many sockets on one port as asked for, among which the kernel divides peers. On a kernel without IPv6
    /// they are of IPv4. Port 0 takes any.
    ///
    /// # Errors
    /// The kernel's refusal, with what it means.
    pub fn bind(port: u16, count: usize) -> io::Result<(u16, Vec<Port>)> {
        let dual = socket_with(AddressFamily::INET6, SocketType::DGRAM, SocketFlags::CLOEXEC, None).is_ok();
        let (family, any) = match dual {
            true => (AddressFamily::INET6, IpAddr::from([0u16; 8])),
            false => (AddressFamily::INET, IpAddr::from([0u8; 4])),
        };
        let (mut port, mut ports) = (port, Vec::new());
        for number in 0..count.max(1) {
            let fd = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
            if dual {
                sockopt::set_ipv6_v6only(&fd, false)?;
            }
            // The first one finds out whether somebody is there, and lets the others in afterwards.
            sys::set_shared(fd.as_fd(), number > 0)?;
            bind(&fd, &SocketAddr::new(any, port))?;
            sys::set_shared(fd.as_fd(), true)?;
            let udp = udp::Socket::over(fd);
            port = udp.address()?.port();
            ports.push(Port { udp, dual });
        }
        Ok((port, ports))
    }

    /// An address in the form this socket has it.
    fn to(&self, peer: SocketAddr) -> SocketAddr {
        match peer {
            SocketAddr::V4(v4) if self.dual => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
            other => other,
        }
    }

    /// The address of a sender as everybody writes it.
    fn from(&self, sender: SocketAddr) -> SocketAddr {
        SocketAddr::new(sender.ip().to_canonical(), sender.port())
    }
}

/// Running threads.
pub struct Relay {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Relay {
    /// Starts threads over queues of the device and as many sockets.
    ///
    /// # Errors
    /// The kernel gives no thread.
    pub fn start(shared: &Arc<Shared>, queues: &[Arc<tun::Queue>], ports: Vec<Port>) -> io::Result<Relay> {
        shared.stop.store(false, Ordering::Relaxed);
        let mut relay = Relay { shared: shared.clone(), threads: Vec::new() };
        let ports: Vec<Arc<Port>> = ports.into_iter().map(Arc::new).collect();
        for (number, (queue, port)) in queues.iter().zip(&ports).enumerate() {
            let (q, p) = (queue.clone(), port.clone());
            relay.spawn(format!("out-{number}"), move |shared| outward(shared, &q, &p))?;
            let (q, p) = (queue.clone(), port.clone());
            relay.spawn(format!("in-{number}"), move |shared| inward(shared, &q, &p))?;
        }
        if let Some(port) = ports.first().cloned() {
            relay.spawn("timers".to_owned(), move |shared| timers(shared, &port))?;
        }
        Ok(relay)
    }

    fn spawn(&mut self, name: String, work: impl FnOnce(&Shared) + Send + 'static) -> io::Result<()> {
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            // Rights are each thread's own; the one that binds ports keeps its.
            drop_privileges();
            let _keeping = alloc::keep();
            work(&shared);
            if !shared.stopped() {
                signal(&shared.ended);
            }
        })?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        signal(&self.shared.wake);
        for thread in self.threads.drain(..) {
            // A panic in it has been printed.
            let _ = thread.join();
        }
        // For the next ones.
        let _ = rustix::io::read(&self.shared.wake, &mut [0; 8]);
    }
}

fn signal(event: &OwnedFd) {
    // Fails only when it is signalled already, to the brim.
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}

/// Packets of the protocol on their way to a socket.
struct Out<'a> {
    port: &'a Port,
    outbox: Outbox,
}

impl Out<'_> {
    fn new(port: &Port) -> Out<'_> {
        Out { port, outbox: Outbox::new(OUTBOX) }
    }

    fn put(&mut self, peer: &Peer, to: SocketAddr, packet: WgKind) {
        let packet = Packet::<[u8]>::from(packet);
        peer.sent.fetch_add(packet.len() as u64, Ordering::Relaxed);
        self.put_bytes(to, &packet);
    }

    fn put_bytes(&mut self, to: SocketAddr, packet: &[u8]) {
        let to = self.port.to(to);
        if self.outbox.room(to, packet.len()).map(|room| room.copy_from_slice(packet)).is_none() {
            self.flush();
            // Longer than any datagram: nobody can have it.
            self.outbox.room(to, packet.len()).into_iter().for_each(|room| room.copy_from_slice(packet));
        }
    }

    /// What a session that stands now has waiting.
    fn put_waiting(&mut self, shared: &Shared, peer: &Peer, state: &mut State, to: SocketAddr) {
        let waiting: Vec<WgKind> = state.tunnel.get_queued_packets(&mut shared.limit()).collect();
        waiting.into_iter().for_each(|packet| self.put(peer, to, packet));
    }

    fn flush(&mut self) {
        if !self.outbox.is_empty() {
            // What cannot be sent is lost, as on any wire.
            self.port.udp.send(&mut self.outbox);
        }
    }
}

/// From the device to peers.
fn outward(shared: &Shared, queue: &tun::Queue, port: &Port) {
    let mut buffer = vec![0; tun::READ];
    let mut out = Out::new(port);
    let mut seen = Seen::of(shared);
    while !shared.stopped() {
        seen.renew(shared);
        let mut idle = false;
        for _ in 0..READS {
            match queue.read(&mut buffer) {
                Ok(length) => drop(encrypt(shared, &seen.view, &mut buffer[..length], &mut out)),
                Err(error) if tun::Queue::is_gone(&error) => return,
                Err(_) => {
                    idle = true;
                    break;
                }
            }
            if out.outbox.is_nearly_full() {
                break;
            }
        }
        out.flush();
        if idle && !shared.wait(queue.as_fd()) {
            return;
        }
    }
}

/// Cuts what was read from the device and encrypts it for its peer. `None` for what cannot go on.
fn encrypt(shared: &Shared, view: &View, data: &mut [u8], out: &mut Out<'_>) -> Option<()> {
    view.own.as_ref()?;
    let vnet = Vnet::read(data)?;
    let packet = &mut data[vnet::LENGTH..];
    let (_, to) = header::ends(packet)?;
    let peer = view.allowed.find(to)?;
    let segments = Segments::new(&vnet, packet)?;
    let mut limit = shared.limit();
    let mut state = peer.state();
    let endpoint = state.endpoint.filter(|endpoint| view.allowed.find(endpoint.ip()).is_none())?;
    for number in 0..segments.count() {
        let size = segments.size(number);
        // Room for the padding.
        let mut bytes = BytesMut::with_capacity(size + 16);
        bytes.resize(size, 0);
        segments.write(number, &mut bytes);
        let packet = Packet::from_bytes(bytes);
        if let Some(packet) = state.tunnel.handle_outgoing_packet(packet, Some(&mut limit)) {
            shared.indices.note(&packet, peer);
            out.put(peer, endpoint, packet);
        }
    }
    Some(())
}

/// From peers to the device.
fn inward(shared: &Shared, queue: &tun::Queue, port: &Port) {
    let mut batch = Batch::new();
    let mut coalescer = Coalescer::new(queue.takes_datagrams());
    let mut out = Out::new(port);
    let mut seen = Seen::of(shared);
    let mut last = None;
    while !shared.stopped() {
        if port.udp.receive(&mut batch).is_err() {
            // Nothing there, or word of an earlier datagram that did not arrive.
            if !shared.wait(port.udp.as_fd()) {
                return;
            }
            continue;
        }
        if shared.edition.load(Ordering::Acquire) != seen.edition {
            seen = Seen::of(shared);
            last = None;
        }
        coalescer.clear();
        let Batch { arena, received } = &mut batch;
        for received in received.iter() {
            let from = port.from(received.from);
            let mut datagrams = received.datagrams().peekable();
            while let Some(at) = datagrams.next() {
                let Some(index) = index(&arena[at.clone()]) else {
                    shake(shared, &seen.view, &arena[at], from, &mut out);
                    continue;
                };
                let Some(peer) = find(shared, &mut last, index) else { continue };
                let mut state = peer.state();
                let mut next = Some(at);
                while let Some(at) = next {
                    let mut open = Open { shared, view: &seen.view, peer: &peer, from, out: &mut out };
                    if let Some(length) = open.decrypt(&mut state, &mut arena[at.clone()]) {
                        coalescer.push(arena, at.start..at.start + length);
                    }
                    next = datagrams.next_if(|at| self::index(&arena[at.clone()]) == Some(index));
                }
            }
        }
        for frame in coalescer.frames() {
            if let Err(error) = queue.write(&frame, &batch.arena)
                && tun::Queue::is_gone(&error)
            {
                return;
            }
        }
        out.flush();
    }
}

/// The index that a packet with data names; `None` for any other packet.
fn index(datagram: &[u8]) -> Option<u32> {
    let index: [u8; 4] = datagram.get(4..8)?.try_into().ok()?;
    (datagram[0] == DATA).then(|| u32::from_le_bytes(index))
}

/// The peer behind an index; nearly always that of the packet before.
fn find(shared: &Shared, last: &mut Option<(u32, Arc<Peer>)>, index: u32) -> Option<Arc<Peer>> {
    if last.as_ref().is_none_or(|(known, _)| *known != index) {
        *last = Some((index, shared.indices.get(index)?));
    }
    last.as_ref().map(|(_, peer)| peer.clone())
}

/// What opening a packet with data needs.
struct Open<'a, 'b> {
    shared: &'a Shared,
    view: &'a View,
    peer: &'a Arc<Peer>,
    from: SocketAddr,
    out: &'a mut Out<'b>,
}

impl Open<'_, '_> {
    /// Puts the inner packet in the place of the outer one, and gives its length; `None` if there is none for
    /// the device.
    fn decrypt(&mut self, state: &mut State, datagram: &mut [u8]) -> Option<usize> {
        let packet = Packet::copy_from(&*datagram).try_into_wg().ok()?;
        let TunnResult::WriteToTunnel(inner) = state.tunnel.handle_incoming_packet(packet) else {
            return None;
        };
        self.peer.received.fetch_add(datagram.len() as u64, Ordering::Relaxed);
        let to = learn(self.view, state, self.from);
        if std::mem::take(&mut state.unconfirmed) {
            state.handshake = Some(SystemTime::now());
            if let Some(to) = to {
                self.out.put_waiting(self.shared, self.peer, state, to);
            }
        }
        let read = Header::read(&inner)?;
        let (source, _) = header::ends(&inner)?;
        if !self.view.allowed.find(source).is_some_and(|owner| Arc::ptr_eq(owner, self.peer)) {
            return None;
        }
        datagram.get_mut(..read.length)?.copy_from_slice(&inner[..read.length]);
        Some(read.length)
    }
}

/// Whoever has the key is where his packets come from; gives where that is now. Not where packets to him would come back
/// into this device and leave it again, without end: a host between two addresses sends with that of its own tunnel.
fn learn(view: &View, state: &mut State, from: SocketAddr) -> Option<SocketAddr> {
    if view.allowed.find(from.ip()).is_none() {
        state.endpoint = Some(from);
    }
    state.endpoint
}

/// A packet of a handshake, from anybody.
fn shake(shared: &Shared, view: &View, datagram: &[u8], from: SocketAddr, out: &mut Out<'_>) -> Option<()> {
    let own = view.own.as_ref()?;
    let packet = match own.limiter.verify_packet(from, Packet::copy_from(datagram)) {
        Ok(packet) => packet,
        Err(TunnResult::WriteToNetwork(cookie)) => {
            out.put_bytes(from, &Packet::<[u8]>::from(cookie));
            return None;
        }
        Err(_) => return None,
    };
    let (peer, answered) = match &packet {
        WgKind::HandshakeInit(packet) => {
            let half = handshake::parse_handshake_anon(&own.private, &own.public, packet).ok()?;
            (view.peers.get(&half.peer_static_public).cloned()?, false)
        }
        WgKind::HandshakeResp(packet) => (shared.indices.get(packet.receiver_idx.get())?, true),
        WgKind::CookieReply(packet) => (shared.indices.get(packet.receiver_idx.get())?, false),
        WgKind::Data(_) => return None,
    };
    let mut state = peer.state();
    let TunnResult::WriteToNetwork(answer) = state.tunnel.handle_incoming_packet(packet) else { return None };
    peer.received.fetch_add(datagram.len() as u64, Ordering::Relaxed);
    let to = learn(view, &mut state, from)?;
    // Whoever began has seen the answer and knows; the other one learns it from the first packet.
    state.unconfirmed = !answered;
    shared.indices.note(&answer, &peer);
    out.put(&peer, to, answer);
    if answered {
        state.handshake = Some(SystemTime::now());
        out.put_waiting(shared, &peer, &mut state, to);
    }
    Some(())
}

/// What the protocol does by itself: handshakes again, keepalives, sessions that end.
fn timers(shared: &Shared, port: &Port) {
    let mut out = Out::new(port);
    let mut seen = Seen::of(shared);
    let tick = rustix::event::Timespec::try_from(TICK).ok();
    loop {
        let mut fds = [PollFd::new(&shared.wake, PollFlags::IN)];
        // Interrupted by a signal: a tick that comes early does no harm.
        let _ = poll(&mut fds, tick.as_ref());
        if shared.stopped() {
            return;
        }
        seen.renew(shared);
        shared.measure();
        shared.indices.tidy(&shared.used);
        let Some(own) = &seen.view.own else { continue };
        own.limiter.try_reset_count();
        for peer in seen.view.peers.values() {
            let mut state = peer.state();
            let due = match state.tunnel.update_timers() {
                Ok(packet) => packet,
                Err(WireGuardError::ConnectionExpired) => begin_again(&mut state),
                Err(_) => None,
            };
            if let (Some(packet), Some(endpoint)) = (due, state.endpoint) {
                shared.indices.note(&packet, peer);
                out.put(peer, endpoint, packet);
            }
        }
        out.flush();
    }
}

/// A handshake with a peer that was given up, if it is to be kept alive.
fn begin_again(state: &mut State) -> Option<WgKind> {
    state.tunnel.persistent_keepalive()?;
    let now = Instant::now();
    if state.tried.is_some_and(|at| now.duration_since(at) < TRY_AGAIN) {
        return None;
    }
    state.tried = Some(now);
    state.tunnel.format_handshake_initiation(false).map(WgKind::from)
}
