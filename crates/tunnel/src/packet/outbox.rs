//! Packets on their way to a UDP socket, gathered so that those of one size for one peer leave in one call
//! (`UDP_SEGMENT`).

use std::net::SocketAddr;

/// Bytes of one message: what fits into IPv4 with a header of UDP. IPv6 could carry 20 more.
const MESSAGE: usize = 65_535 - 20 - 8;
/// Datagrams of one message; the kernel's limit until Linux 6.9, and 64 of them are a train already.
const SEGMENTS: usize = 64;
/// Messages of one batch.
pub const MESSAGES: usize = 64;

/// Datagrams for one peer, one behind the other, all of one size but the last, which may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// To whom.
    pub to: SocketAddr,
    /// Where its bytes begin.
    pub start: usize,
    /// Where they end.
    pub end: usize,
    /// Bytes of each datagram but the last.
    pub segment: usize,
    /// A shorter one is in it, which has to be the last.
    closed: bool,
}

impl Message {
    /// How many datagrams it is.
    pub fn count(&self) -> usize {
        (self.end - self.start).div_ceil(self.segment.max(1))
    }

    /// Its datagrams, one by one, for a way without segmentation.
    pub fn datagrams(&self) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        let (start, end, segment) = (self.start, self.end, self.segment.max(1));
        (start..end).step_by(segment).map(move |at| at..(at + segment).min(end))
    }
}

/// A batch of them, sent and emptied again and again.
#[derive(Debug)]
pub struct Outbox {
    buffer: Vec<u8>,
    used: usize,
    messages: Vec<Message>,
}

impl Outbox {
    /// Room for so many bytes, and at least one datagram.
    pub fn new(bytes: usize) -> Outbox {
        Outbox { buffer: vec![0; bytes.max(MESSAGE)], used: 0, messages: Vec::with_capacity(MESSAGES) }
    }

    /// Room for a datagram; `None` when the batch has to be sent first, or no datagram can be so long.
    pub fn room(&mut self, to: SocketAddr, length: usize) -> Option<&mut [u8]> {
        let (start, end) = (self.used, self.used + length);
        if end > self.buffer.len() || length > MESSAGE || length == 0 {
            return None;
        }
        let many = self.messages.len() == MESSAGES;
        let joined = self.messages.last_mut().filter(|last| {
            let fits = last.to == to && !last.closed && length <= last.segment;
            fits && end - last.start <= MESSAGE && last.count() < SEGMENTS
        });
        match joined {
            Some(last) => {
                last.end = end;
                last.closed = length < last.segment;
            }
            None if many => return None,
            None => self.messages.push(Message { to, start, end, segment: length, closed: false }),
        }
        self.used = end;
        Some(&mut self.buffer[start..end])
    }

    /// Whether a train of the largest size may not fit any more.
    pub fn is_nearly_full(&self) -> bool {
        self.messages.len() + 2 > MESSAGES || self.buffer.len() - self.used < MESSAGE
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// What is to be sent, and the bytes it is in.
    pub fn messages(&self) -> (&[Message], &[u8]) {
        (&self.messages, &self.buffer[..self.used])
    }

    /// Forgets what has been sent.
    pub fn clear(&mut self) {
        self.messages.clear();
        self.used = 0;
    }
}
