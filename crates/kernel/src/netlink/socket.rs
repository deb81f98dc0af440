//! One socket to the kernel.
//!
//! The kernel works through a request while it is being sent, so its answers are in our receive queue
//! when `send` returns. Hence the big buffers, and batches that ask for one acknowledgement only: with
//! one for each message some hundred overflow the default queue, and the call fails although all
//! changes were made (dependencies.md 1, trap 3).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::{Attr, Attrs, HEADER, Message, Reply, align};
use crate::{Errno, Error, netns, sys};

/// Send and receive buffer asked for, in bytes.
const BUFFER: i32 = 4 << 20;
/// Receive buffer of a monitor, in bytes.
pub const MULTICAST_BUFFER: i32 = 8 << 20;
/// Datagrams of a monitor left unread in one go after a loss: more than a full buffer holds.
pub const MULTICAST_SKIP: usize = 65_536;
/// Most bytes of one batch. The kernel copies them at once, so more gains nothing.
const BATCH_BYTES: usize = 256 << 10;
/// Most messages of one batch: if all fail, that many answers must fit the receive queue.
const BATCH_MESSAGES: usize = 1_000;
/// The same when the buffers could not be forced (no CAP_NET_ADMIN in the initial user namespace).
const BATCH_MESSAGES_SMALL: usize = 100;
/// How often a dump is begun again when the kernel says that it changed meanwhile.
const DUMP_ATTEMPTS: usize = 5;
/// Dump answers are at most 32 KiB each (`NLMSG_GOODSIZE` limits).
const RECEIVE: usize = 64 << 10;

/// Which part of the kernel a socket talks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Links, addresses, routes, neighbours, rules.
    Route,
    /// nftables (and conntrack).
    Netfilter,
    /// Families that have no protocol of their own, such as WireGuard.
    Generic,
    /// IPsec.
    Xfrm,
}

/// A socket. It stays in the namespace it was opened in.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Box<[u8]>,
    /// Reused for outgoing batches.
    out: Vec<u8>,
    batch_messages: usize,
    send_buffer: usize,
    port: u32,
}

/// What [`Socket::receive`] found.
#[derive(Debug)]
pub enum Received<'a> {
    /// Messages, to be split with [`Reply::split`].
    Data(&'a [u8]),
    /// Nothing is waiting.
    Nothing,
    /// Messages were lost because the queue was full.
    Overrun,
}

impl Socket {
    /// Opens a socket in the namespace of the calling thread.
    ///
    /// # Errors
    /// Too many open files, or the kernel lacks the protocol.
    pub fn open(protocol: Protocol) -> Result<Socket, Error> {
        Socket::with_groups(protocol, &[], BUFFER)
    }

    /// Opens a socket in another namespace.
    ///
    /// # Errors
    /// As [`Socket::open`], or the namespace cannot be entered.
    pub fn open_in(netns: BorrowedFd<'_>, protocol: Protocol) -> Result<Socket, Error> {
        netns::thread(|| {
            sys::enter_netns(netns)
                .map_err(|source| Error::Socket { action: "enter the network namespace", source })?;
            Socket::open(protocol)
        })?
    }

    /// Opens a socket that is a member of multicast groups.
    ///
    /// # Errors
    /// As [`Socket::open`], or a group is unknown to the kernel.
    pub fn with_groups(protocol: Protocol, groups: &[u32], receive_buffer: i32) -> Result<Socket, Error> {
        let (number, action) = match protocol {
            Protocol::Route => (libc::NETLINK_ROUTE, "open a route netlink socket"),
            Protocol::Netfilter => (libc::NETLINK_NETFILTER, "open a netfilter netlink socket"),
            Protocol::Generic => (libc::NETLINK_GENERIC, "open a generic netlink socket"),
            Protocol::Xfrm => (libc::NETLINK_XFRM, "open an IPsec netlink socket"),
        };
        let failed = |source| Error::Socket { action, source };
        let fd = sys::netlink_socket(number, 0).map_err(failed)?;
        let set = |level, name, value| sys::set_option(fd.as_fd(), level, name, value);
        // Missing in kernels before 4.12 and 4.20: errors have less text, dumps are not filtered.
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            let _ = set(libc::SOL_NETLINK, option, 1);
        }
        if protocol == Protocol::Route {
            let _ = set(libc::SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK, 1);
        }
        let mut forced = true;
        for (force, polite, size) in [
            (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, receive_buffer),
            (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, BUFFER),
        ] {
            if set(libc::SOL_SOCKET, force, size).is_err() {
                forced = false;
                set(libc::SOL_SOCKET, polite, size).map_err(failed)?;
            }
        }
        for group in groups {
            set(libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, *group as i32).map_err(failed)?;
        }
        let port = sys::netlink_port(fd.as_fd()).map_err(failed)?;
        Ok(Socket {
            fd,
            sequence: 0,
            buffer: vec![0; RECEIVE].into_boxed_slice(),
            out: Vec::new(),
            batch_messages: if forced { BATCH_MESSAGES } else { BATCH_MESSAGES_SMALL },
            send_buffer: BUFFER as usize,
            port,
        })
    }

    /// The address the kernel knows this socket by.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// One request, acknowledged.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn request(&mut self, message: &Message) -> Result<(), Errno> {
        self.query(message, &mut |_| {})
    }

    /// One request with its replies (`GET` without `DUMP`, or with `NLM_F_ECHO`).
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn query(&mut self, message: &Message, each: &mut dyn FnMut(&Reply<'_>)) -> Result<(), Errno> {
        let sequence = self.send_one(message, libc::NLM_F_ACK)?;
        loop {
            let data = match receive(self.fd.as_fd(), &mut self.buffer, true)? {
                Received::Data(data) => data,
                Received::Nothing => continue,
                Received::Overrun => return Err(Errno::new(libc::ENOBUFS)),
            };
            for reply in Reply::split(data).filter(|r| r.sequence == sequence) {
                if reply.kind == libc::NLMSG_ERROR as u16 {
                    return outcome(&reply);
                }
                each(&reply);
            }
        }
    }

    /// All objects a request selects, each decoded by `decode`; `None` from it leaves one out. A dump the
    /// kernel says was interrupted by a change is repeated.
    ///
    /// # Errors
    /// The kernel's refusal, also when it comes in the message that ends the dump; or `EINTR` after five
    /// interrupted attempts. Never a part of the objects.
    pub fn dump<T>(
        &mut self,
        message: &Message,
        mut decode: impl FnMut(&Reply<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Errno> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut found = Vec::new();
            let complete = self.dump_once(message, &mut |reply| found.extend(decode(reply)))?;
            if complete {
                return Ok(found);
            }
        }
        let text = format!("changed during each of {DUMP_ATTEMPTS} attempts to list it");
        Err(Errno { code: libc::EINTR, text: Some(text), offset: None })
    }

    /// One attempt; false if it was interrupted.
    fn dump_once(&mut self, message: &Message, each: &mut dyn FnMut(&Reply<'_>)) -> Result<bool, Errno> {
        let sequence = self.send_one(message, libc::NLM_F_DUMP)?;
        let mut complete = true;
        loop {
            let data = match receive(self.fd.as_fd(), &mut self.buffer, true)? {
                Received::Data(data) => data,
                Received::Nothing => continue,
                Received::Overrun => {
                    // Reading on ends the dump, which else would stand in the way of the next one.
                    while let Received::Data(_) | Received::Overrun =
                        receive(self.fd.as_fd(), &mut self.buffer, false)?
                    {}
                    return Err(Errno::new(libc::ENOBUFS));
                }
            };
            for reply in Reply::split(data).filter(|r| r.sequence == sequence) {
                complete &= reply.flags & libc::NLM_F_DUMP_INTR as u16 == 0;
                // Both kinds begin with the error number, and both may carry an explanation.
                if reply.kind == libc::NLMSG_DONE as u16 || reply.kind == libc::NLMSG_ERROR as u16 {
                    return match outcome(&reply) {
                        Err(errno) if errno.code == libc::EINTR => Ok(false),
                        other => other.map(|()| complete),
                    };
                }
                each(&reply);
            }
        }
    }

    /// Many independent requests, some hundred in each system call, answered in the given order. One that
    /// fails does not stop the others.
    pub fn batch(&mut self, messages: &[Message]) -> Vec<Result<(), Errno>> {
        let mut results = Vec::new();
        self.batch_into(messages, &mut results);
        results
    }

    /// As [`Socket::batch`], into memory that is there: that of a thousand answers goes back to the system each time.
    pub fn batch_into(&mut self, messages: &[Message], results: &mut Vec<Result<(), Errno>>) {
        results.clear();
        results.resize(messages.len(), Ok(()));
        let (mut rest, mut answers) = (messages, &mut results[..]);
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = rest
                .iter()
                .take(self.batch_messages)
                .take_while(|m| {
                    bytes += m.wire_length();
                    bytes <= BATCH_BYTES
                })
                .count();
            let (chunk, later) = rest.split_at(fits.max(1));
            let (now, then) = answers.split_at_mut(chunk.len());
            self.chunk(chunk, chunk.len() - 1, &mut |_, _| {}, now);
            (rest, answers) = (later, then);
        }
    }

    /// Many independent questions; `each` gets the number of the question with every reply.
    pub fn query_batch(
        &mut self,
        messages: &[Message],
        each: &mut dyn FnMut(usize, &Reply<'_>),
    ) -> Vec<Result<(), Errno>> {
        let mut results = vec![Ok(()); messages.len()];
        let chunks = messages.chunks(BATCH_MESSAGES_SMALL).zip(results.chunks_mut(BATCH_MESSAGES_SMALL));
        for (number, (chunk, answers)) in chunks.enumerate() {
            let before = number * BATCH_MESSAGES_SMALL;
            self.chunk(chunk, chunk.len() - 1, &mut |n, reply| each(before + n, reply), answers);
        }
        results
    }

    /// Messages that only make sense together and go out in one system call (an nftables batch); the
    /// one at `acknowledged` is asked for an answer, as errors come in any case. `each` gets what else the kernel
    /// says (`NLM_F_ECHO`).
    pub fn transaction(
        &mut self,
        messages: &[Message],
        acknowledged: usize,
        each: &mut dyn FnMut(&Reply<'_>),
    ) -> Vec<Result<(), Errno>> {
        let size: usize = messages.iter().map(Message::wire_length).sum();
        // The kernel refuses what is larger than the send buffer less some bookkeeping.
        if size + 4096 > self.send_buffer {
            self.send_buffer = size + 4096;
            let wanted = i32::try_from(self.send_buffer).unwrap_or(i32::MAX);
            let _ = sys::set_option(self.fd.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, wanted);
        }
        let mut results = vec![Ok(()); messages.len()];
        self.chunk(messages, acknowledged, &mut |_, reply| each(reply), &mut results);
        results
    }

    /// One system call. `results` are as many as the messages, all `Ok` yet.
    fn chunk(
        &mut self,
        messages: &[Message],
        acknowledged: usize,
        each: &mut dyn FnMut(usize, &Reply<'_>),
        results: &mut [Result<(), Errno>],
    ) {
        let first = self.sequence.wrapping_add(1);
        self.sequence = self.sequence.wrapping_add(messages.len() as u32);
        let mut out = std::mem::take(&mut self.out);
        out.clear();
        for (n, message) in messages.iter().enumerate() {
            let flags = if n == acknowledged { libc::NLM_F_ACK } else { 0 };
            message.write(first.wrapping_add(n as u32), flags, &mut out);
        }
        let sent = send(self.fd.as_fd(), &out);
        self.out = out;
        if let Err(errno) = sent {
            return results.fill(Err(errno));
        }
        // All answers are there by now. The queue is emptied without waiting, so that an answer that never
        // comes (a kernel that gave up a broken batch) cannot hang us.
        let mut answered = false;
        loop {
            match receive(self.fd.as_fd(), &mut self.buffer, false) {
                Ok(Received::Data(data)) => {
                    for reply in Reply::split(data) {
                        let n = reply.sequence.wrapping_sub(first) as usize;
                        let Some(result) = results.get_mut(n) else { continue };
                        if reply.kind != libc::NLMSG_ERROR as u16 {
                            each(n, &reply);
                            continue;
                        }
                        answered |= n == acknowledged;
                        // The first error of a message explains most.
                        if result.is_ok() {
                            *result = outcome(&reply);
                        }
                    }
                }
                Ok(Received::Nothing) => break,
                Ok(Received::Overrun) => {
                    answered = true;
                    unknown(results, libc::ENOBUFS, "answers were lost; the change may have been made");
                }
                Err(errno) => {
                    return results.fill(Err(errno));
                }
            }
        }
        if !answered && results.iter().all(Result::is_ok) {
            unknown(results, libc::EPROTO, "the kernel did not answer");
        }
    }

    /// Becomes a member of a multicast group; notifications then come between answers, with sequence 0.
    ///
    /// # Errors
    /// The group is unknown to the kernel.
    pub(crate) fn join(&mut self, group: u32) -> Result<(), Errno> {
        sys::set_option(self.fd.as_fd(), libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group as i32)
            .map_err(|e| Errno::of(&e))
    }

    /// Sends a request through a child process and returns at once, with its sequence number. The answer
    /// comes to this socket when the kernel is done. The child closes `also` so much later.
    pub(crate) fn send_from_child(
        &mut self,
        message: &Message,
        also: Option<(&Socket, Duration)>,
    ) -> Result<u32, Errno> {
        let also = also.map(|(socket, time)| (socket.fd.as_fd(), time));
        self.sequence = self.sequence.wrapping_add(1);
        self.out.clear();
        message.write(self.sequence, libc::NLM_F_ACK, &mut self.out);
        sys::send_from_child(self.fd.as_fd(), &self.out, also).map_err(|e| Errno::of(&e))?;
        Ok(self.sequence)
    }

    /// Another descriptor of the same socket.
    pub(crate) fn try_clone_fd(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// Leaves the last closing of this socket to a child process, which does it after `time`.
    pub(crate) fn hold_in_child(&self, time: Duration) -> io::Result<()> {
        sys::hold_in_child(self.fd.as_fd(), time)
    }

    /// Waits until something is there to receive; false when the time ran out.
    pub(crate) fn readable(&self, timeout: Duration) -> io::Result<bool> {
        Ok(sys::poll([self.fd.as_fd()], Some(timeout))?[0])
    }

    fn send_one(&mut self, message: &Message, flags: i32) -> Result<u32, Errno> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        self.out.clear();
        message.write(sequence, flags, &mut self.out);
        send(self.fd.as_fd(), &self.out)?;
        Ok(sequence)
    }

    /// What is waiting on a socket of multicast groups.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn receive(&mut self, wait: bool) -> Result<Received<'_>, Errno> {
        receive(self.fd.as_fd(), &mut self.buffer, wait)
    }

    /// Takes news of one device only. The index is at the same place in messages of links, of addresses and of
    /// neighbours; those of routes and rules have none.
    ///
    /// # Errors
    /// The kernel has no socket filters.
    pub fn only_of_device(&self, index: u32) -> Result<(), Errno> {
        const INDEX: u32 = HEADER as u32 + 4;
        sys::only_with_word(self.fd.as_fd(), INDEX, index.to_ne_bytes()).map_err(|e| Errno::of(&e))
    }

    /// Takes what is waiting and leaves it unread, after [`Received::Overrun`]. From the first loss on the kernel
    /// drops everything until the queue is empty, and says so once (`netlink_overrun` and `netlink_rcv_wake` in
    /// net/netlink/af_netlink.c): whoever reads the objects again before that misses what came in between. False
    /// if it is not empty after `most` datagrams, since others fill it as fast as it is emptied.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn skip(&mut self, most: usize) -> Result<bool, Errno> {
        for _ in 0..most {
            if let Received::Nothing = self.receive(false)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Waits until this socket or `other` or `stop` is readable.
    pub(crate) fn wait(
        &self,
        other: &Socket,
        stop: BorrowedFd<'_>,
        timeout: Option<Duration>,
    ) -> io::Result<[bool; 3]> {
        sys::poll([self.fd.as_fd(), other.fd.as_fd(), stop], timeout)
    }
}

/// What we do not know to have succeeded is reported as failed.
fn unknown(results: &mut [Result<(), Errno>], code: i32, text: &str) {
    for result in results.iter_mut().filter(|r| r.is_ok()) {
        *result = Err(Errno { code, text: Some(text.to_owned()), offset: None });
    }
}

fn send(fd: BorrowedFd<'_>, data: &[u8]) -> Result<(), Errno> {
    loop {
        match sys::send(fd, data) {
            Ok(_) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Errno::of(&e)),
        }
    }
}

fn receive<'a>(fd: BorrowedFd<'_>, buffer: &'a mut [u8], wait: bool) -> Result<Received<'a>, Errno> {
    loop {
        match sys::receive(fd, buffer, wait) {
            Ok(length) if length > buffer.len() => return Err(Errno::new(libc::EMSGSIZE)),
            Ok(length) => return Ok(Received::Data(&buffer[..length])),
            Err(e) => match e.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN) => return Ok(Received::Nothing),
                Some(libc::ENOBUFS) => return Ok(Received::Overrun),
                _ => return Err(Errno::of(&e)),
            },
        }
    }
}

/// The result in an `NLMSG_ERROR` or `NLMSG_DONE` message, with the kernel's explanation.
pub(crate) fn outcome(reply: &Reply<'_>) -> Result<(), Errno> {
    // `NLMSGERR_ATTR_…`, linux/netlink.h
    const MSG: u16 = 1;
    const OFFSET: u16 = 2;
    let code = reply.field(0).map_or(-libc::EPROTO, i32::from_ne_bytes);
    if code >= 0 {
        return Ok(());
    }
    let mut errno = Errno::new(code.wrapping_neg());
    if reply.flags & libc::NLM_F_ACK_TLVS as u16 != 0 {
        // After the number an error repeats the request: whole, or its header only (capped).
        let repeated = if reply.kind == libc::NLMSG_DONE as u16 {
            0
        } else if reply.flags & libc::NLM_F_CAPPED as u16 != 0 {
            HEADER
        } else {
            reply.field(4).map_or(HEADER, |b| align(u32::from_ne_bytes(b) as usize))
        };
        let attrs: Attrs<'_> = reply.attrs(4 + repeated);
        errno.text = attrs.find(MSG).and_then(|a| a.text()).map(str::to_owned);
        errno.offset = attrs.find(OFFSET).as_ref().and_then(Attr::u32);
    }
    Err(errno)
}
