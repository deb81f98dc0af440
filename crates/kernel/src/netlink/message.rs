//! Building one request.

use std::fmt;
use std::net::IpAddr;

use model::Mac;

use super::{HEADER, align};

/// `NLA_F_NESTED`
const NESTED: u16 = 1 << 15;

/// Bytes of a message that need no memory of their own: neighbour, forwarding entry, nexthop and the route by it have no
/// more, and at a start among ten thousand peers there are forty thousand of them (decision 0253).
const SHORT: usize = 72;

/// One request: header and payload. Sequence number and length are filled in when it is sent.
#[derive(Clone)]
pub struct Message {
    short: [u8; SHORT],
    /// How much of `short` is used.
    used: usize,
    /// All of it, once it is longer.
    long: Vec<u8>,
}

impl Message {
    /// A message of a type (`RTM_…`, or subsystem and `NFT_MSG_…`) with `NLM_F_…` flags besides
    /// `NLM_F_REQUEST`, which is always set.
    #[inline]
    pub fn new(kind: u16, flags: i32) -> Message {
        let mut short = [0; SHORT];
        short[4..6].copy_from_slice(&kind.to_ne_bytes());
        short[6..8].copy_from_slice(&((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        Message { short, used: HEADER, long: Vec::new() }
    }

    #[inline]
    fn buffer(&self) -> &[u8] {
        if self.long.is_empty() { &self.short[..self.used] } else { &self.long }
    }

    #[inline]
    fn buffer_mut(&mut self) -> &mut [u8] {
        if self.long.is_empty() { &mut self.short[..self.used] } else { &mut self.long }
    }

    /// Appends bytes of a length known where it is called, so that copying is no call, and zeros up to the alignment.
    #[inline(always)]
    fn push<const N: usize>(&mut self, data: [u8; N]) {
        let end = self.used + align(N);
        if self.long.is_empty() && end <= SHORT {
            // What is behind the end has been zero from the beginning.
            self.short[self.used..self.used + N].copy_from_slice(&data);
            self.used = end;
        } else {
            self.append(&data);
        }
    }

    fn append(&mut self, data: &[u8]) {
        let end = self.used + align(data.len());
        if self.long.is_empty() && end <= SHORT {
            self.short[self.used..self.used + data.len()].copy_from_slice(data);
            self.used = end;
            return;
        }
        if self.long.is_empty() {
            self.long.reserve(2 * end);
            self.long.extend_from_slice(&self.short[..self.used]);
        }
        self.long.extend_from_slice(data);
        self.long.resize(align(self.long.len()), 0);
    }

    /// Type of the message.
    pub fn kind(&self) -> u16 {
        u16::from_ne_bytes([self.buffer()[4], self.buffer()[5]])
    }

    /// Flags as set so far.
    pub fn flags(&self) -> u16 {
        u16::from_ne_bytes([self.buffer()[6], self.buffer()[7]])
    }

    /// Sets more `NLM_F_…` flags.
    pub fn set_flags(&mut self, more: i32) {
        let flags = self.flags() | more as u16;
        self.buffer_mut()[6..8].copy_from_slice(&flags.to_ne_bytes());
    }

    /// The payload so far: family header and attributes.
    pub fn payload(&self) -> &[u8] {
        &self.buffer()[HEADER..]
    }

    /// Length in bytes on the wire.
    pub(crate) fn wire_length(&self) -> usize {
        self.buffer().len()
    }

    /// Appends the frame to `out`.
    pub(crate) fn write(&self, sequence: u32, more_flags: i32, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(self.buffer());
        let length = u32::try_from(self.buffer().len()).unwrap_or(u32::MAX);
        let flags = self.flags() | more_flags as u16;
        let header = &mut out[start..start + HEADER];
        header[..4].copy_from_slice(&length.to_ne_bytes());
        header[6..8].copy_from_slice(&flags.to_ne_bytes());
        header[8..12].copy_from_slice(&sequence.to_ne_bytes());
    }

    /// Appends raw bytes, padded: the fixed header of a family (`ifinfomsg` and the like).
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Message {
        self.append(bytes);
        self
    }

    /// As [`Message::bytes`], for a length known at compile time.
    #[inline]
    pub fn header<const N: usize>(&mut self, bytes: [u8; N]) -> &mut Message {
        self.push(bytes);
        self
    }

    /// Appends an attribute. `kind` may carry the nested or byte-order flag. Longer than 65,531 bytes is
    /// not expressible; such an attribute is cut, and the kernel refuses the message.
    pub fn attr(&mut self, kind: u16, data: &[u8]) -> &mut Message {
        let length = u16::try_from(data.len() + 4).unwrap_or(u16::MAX);
        self.push(attribute(length, kind));
        self.append(&data[..usize::from(length) - 4]);
        self
    }

    /// As [`Message::attr`], for a length known at compile time.
    #[inline(always)]
    fn attr_of<const N: usize>(&mut self, kind: u16, data: [u8; N]) -> &mut Message {
        self.push(attribute(N as u16 + 4, kind));
        self.push(data);
        self
    }

    /// An attribute without value (a flag).
    pub fn attr_flag(&mut self, kind: u16) -> &mut Message {
        self.attr(kind, &[])
    }

    /// One byte.
    pub fn attr_u8(&mut self, kind: u16, value: u8) -> &mut Message {
        self.attr_of(kind, [value])
    }

    /// Two bytes, host order.
    pub fn attr_u16(&mut self, kind: u16, value: u16) -> &mut Message {
        self.attr_of(kind, value.to_ne_bytes())
    }

    /// Four bytes, host order.
    pub fn attr_u32(&mut self, kind: u16, value: u32) -> &mut Message {
        self.attr_of(kind, value.to_ne_bytes())
    }

    /// Two bytes, network order.
    pub fn attr_be16(&mut self, kind: u16, value: u16) -> &mut Message {
        self.attr_of(kind, value.to_be_bytes())
    }

    /// Four bytes, network order.
    pub fn attr_be32(&mut self, kind: u16, value: u32) -> &mut Message {
        self.attr_of(kind, value.to_be_bytes())
    }

    /// Eight bytes, network order.
    pub fn attr_be64(&mut self, kind: u16, value: u64) -> &mut Message {
        self.attr_of(kind, value.to_be_bytes())
    }

    /// Text, ended by a NUL byte.
    pub fn attr_text(&mut self, kind: u16, text: &str) -> &mut Message {
        let mut bytes = Vec::with_capacity(text.len() + 1);
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// An address of four or sixteen bytes.
    pub fn attr_ip(&mut self, kind: u16, ip: IpAddr) -> &mut Message {
        match ip {
            IpAddr::V4(ip) => self.attr_of(kind, ip.octets()),
            IpAddr::V6(ip) => self.attr_of(kind, ip.octets()),
        }
    }

    /// A hardware address.
    pub fn attr_mac(&mut self, kind: u16, mac: Mac) -> &mut Message {
        self.attr_of(kind, mac.0)
    }

    /// An attribute that holds what `fill` appends.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) -> &mut Message {
        self.nest_plain(kind | NESTED, fill)
    }

    /// As [`Message::nest`] without the flag that says so: a few old attributes are matched with it.
    pub fn nest_plain(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) -> &mut Message {
        let start = self.wire_length();
        self.attr(kind, &[]);
        fill(self);
        let length = u16::try_from(self.wire_length() - start).unwrap_or(u16::MAX);
        self.buffer_mut()[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }
}

/// `struct nlattr`
#[inline]
fn attribute(length: u16, kind: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (length.to_ne_bytes(), kind.to_ne_bytes());
    [a, b, c, d]
}

impl PartialEq for Message {
    fn eq(&self, other: &Message) -> bool {
        self.buffer() == other.buffer()
    }
}

impl Eq for Message {}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Message").field(&self.buffer()).finish()
    }
}
