//! A UDP socket that sends and receives datagrams in trains (`UDP_SEGMENT`, `UDP_GRO`) and many of them in one call.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};

use crate::packet::outbox::{Message, Outbox};
use crate::sys::{self, SLOTS};
use crate::tun::named;

/// Bytes of one slot: the longest datagram or train.
const SLOT: usize = 65_536;
/// Bytes a socket may hold in each direction. Packets that wait for the link-layer address of a peer count as
/// sent only when it is found or given up: one that is gone must not use all of it up (`unres_qlen_bytes`,
/// 212,992 for each).
const BUFFER: i32 = 8 << 20;
/// How long a full socket may hold the thread up before the rest of its batch is thrown away.
const PATIENCE: Duration = Duration::from_millis(1);

/// A datagram, or a train of them from one peer, in the arena of a [`Batch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Where it begins.
    pub start: usize,
    /// Bytes of all.
    pub length: usize,
    /// Bytes of each datagram but the last.
    pub segment: usize,
    /// From whom.
    pub from: SocketAddr,
}

impl Received {
    /// Where its datagrams lie.
    pub fn datagrams(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (start, end, segment) = (self.start, self.start + self.length, self.segment.max(1));
        (start..end).step_by(segment).map(move |at| at..(at + segment).min(end))
    }
}

/// Room for what one call receives, used again and again.
#[derive(Debug)]
pub struct Batch {
    /// The bytes.
    pub arena: Vec<u8>,
    /// What was received.
    pub received: Vec<Received>,
}

impl Batch {
    /// Empty room. Memory that is never received into is never used.
    pub fn new() -> Batch {
        Batch { arena: vec![0; SLOTS * SLOT], received: Vec::with_capacity(SLOTS) }
    }
}

impl Default for Batch {
    fn default() -> Batch {
        Batch::new()
    }
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Datagrams sent.
    pub datagrams: u64,
    /// Datagrams the kernel refused, such as for want of a route to the peer.
    pub refused: u64,
    /// Datagrams for which there was no room.
    pub full: u64,
}

/// See the module. Several threads may send and receive.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    segments: AtomicBool,
}

impl Socket {
    /// As many sockets on one address as asked for, among which the kernel divides peers. Nobody else may hold
    /// the address, not even another tunnel.
    ///
    /// # Errors
    /// One sentence.
    pub fn bind(address: SocketAddr, count: usize) -> io::Result<Vec<Socket>> {
        let mut sockets = Vec::new();
        for number in 0..count.max(1) {
            let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            let fd = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
            // The first one finds out whether somebody is there, and lets the others in afterwards.
            sys::set_shared(fd.as_fd(), number > 0)?;
            bind(&fd, &address).map_err(|e| {
                let way_out = match e {
                    rustix::io::Errno::ADDRINUSE => {
                        "another program has the port, perhaps a flanneld: stop it"
                    }
                    rustix::io::Errno::ADDRNOTAVAIL => "this host does not have the address (any more)",
                    _ => "it needs an address of this host and a free port",
                };
                named(e.into(), &format!("listen on UDP {address}"), way_out)
            })?;
            sys::set_shared(fd.as_fd(), true)?;
            sockets.push(Socket::over(fd));
        }
        Ok(sockets)
    }

    /// A socket another process has opened.
    pub fn over(fd: OwnedFd) -> Socket {
        sys::set_buffers(fd.as_fd(), BUFFER);
        // Kernels before 5.0 hand datagrams over one by one.
        let _ = sys::set_coalescing(fd.as_fd());
        let segments = AtomicBool::new(sys::has_segmentation(fd.as_fd()));
        Socket { fd, segments }
    }

    /// The address it is bound to.
    ///
    /// # Errors
    /// It is no socket.
    pub fn address(&self) -> io::Result<SocketAddr> {
        UdpSocket::from(self.fd.try_clone()?).local_addr()
    }

    /// Receives what is there, without waiting.
    ///
    /// # Errors
    /// `WouldBlock`.
    pub fn receive(&self, batch: &mut Batch) -> io::Result<()> {
        batch.received.clear();
        sys::receive(self.fd.as_fd(), &mut batch.arena, &mut batch.received)
    }

    /// Sends a batch and empties it. What cannot be sent is thrown away: one peer that cannot be reached, or a
    /// full network, must not hold up what is for others.
    pub fn send(&self, outbox: &mut Outbox) -> Sent {
        let (messages, bytes) = outbox.messages();
        let (mut at, mut sent, mut waited) = (0, Sent::default(), false);
        while at < messages.len() {
            let message = &messages[at];
            if message.count() > 1 && !self.segments.load(Ordering::Relaxed) {
                self.send_apart(message, bytes, &mut sent);
                at += 1;
                continue;
            }
            let run =
                messages[at..].iter().take_while(|m| m.count() == 1 || self.segments.load(Ordering::Relaxed));
            match sys::send(self.fd.as_fd(), &messages[at..at + run.count()], bytes) {
                Ok(count) => {
                    let gone = &messages[at..at + count];
                    sent.datagrams += gone.iter().map(|m| m.count() as u64).sum::<u64>();
                    at += count;
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN | libc::ENOBUFS) if !waited => {
                        waited = true;
                        self.wait_for_room();
                    }
                    Some(libc::EAGAIN | libc::ENOBUFS) => {
                        sent.full += messages[at..].iter().map(|m| m.count() as u64).sum::<u64>();
                        at = messages.len();
                    }
                    // A path too narrow for a segment, or a device below that cannot complete checksums.
                    Some(libc::EMSGSIZE | libc::EINVAL | libc::EIO) if message.count() > 1 => {
                        if error.raw_os_error() == Some(libc::EIO) {
                            self.segments.store(false, Ordering::Relaxed);
                        }
                        self.send_apart(message, bytes, &mut sent);
                        at += 1;
                    }
                    _ => {
                        sent.refused += message.count() as u64;
                        at += 1;
                    }
                },
            }
        }
        outbox.clear();
        sent
    }

    /// The datagrams of a message one by one.
    fn send_apart(&self, message: &Message, bytes: &[u8], sent: &mut Sent) {
        for datagram in message.datagrams() {
            match rustix::net::sendto(
                &self.fd,
                &bytes[datagram],
                rustix::net::SendFlags::DONTWAIT,
                &message.to,
            ) {
                Ok(_) => sent.datagrams += 1,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOBUFS) => sent.full += 1,
                Err(_) => sent.refused += 1,
            }
        }
    }

    fn wait_for_room(&self) {
        let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
        let patience = rustix::event::Timespec::try_from(PATIENCE).ok();
        // Whether there is room shows at the next try.
        let _ = rustix::event::poll(&mut fds, patience.as_ref());
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
