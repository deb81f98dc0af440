//! Building one request.

use std::net::IpAddr;

use super::{HEADER, align};

/// `NLA_F_NESTED`
const NESTED: u16 = 1 << 15;

/// One request: header and payload. Sequence number and length are filled in when it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    buffer: Vec<u8>,
}

impl Message {
    /// A message of a type (`RTM_…`, or subsystem and `NFT_MSG_…`) with `NLM_F_…` flags besides
    /// `NLM_F_REQUEST`, which is always set.
    pub fn new(kind: u16, flags: i32) -> Message {
        let mut buffer = Vec::with_capacity(128);
        buffer.extend_from_slice(&[0; 4]);
        buffer.extend_from_slice(&kind.to_ne_bytes());
        buffer.extend_from_slice(&((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        buffer.extend_from_slice(&[0; 8]);
        Message { buffer }
    }

    /// Type of the message.
    pub fn kind(&self) -> u16 {
        u16::from_ne_bytes([self.buffer[4], self.buffer[5]])
    }

    /// Flags as set so far.
    pub fn flags(&self) -> u16 {
        u16::from_ne_bytes([self.buffer[6], self.buffer[7]])
    }

    /// Sets more `NLM_F_…` flags.
    pub fn set_flags(&mut self, more: i32) {
        let flags = self.flags() | more as u16;
        self.buffer[6..8].copy_from_slice(&flags.to_ne_bytes());
    }

    /// The payload so far: family header and attributes.
    pub fn payload(&self) -> &[u8] {
        &self.buffer[HEADER..]
    }

    /// Length in bytes on the wire.
    pub(crate) fn wire_length(&self) -> usize {
        align(self.buffer.len())
    }

    /// Appends the frame to `out`.
    pub(crate) fn write(&self, sequence: u32, more_flags: i32, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.buffer);
        let length = u32::try_from(self.buffer.len()).unwrap_or(u32::MAX);
        let flags = self.flags() | more_flags as u16;
        out[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        out[start + 6..start + 8].copy_from_slice(&flags.to_ne_bytes());
        out[start + 8..start + 12].copy_from_slice(&sequence.to_ne_bytes());
        out.resize(start + align(self.buffer.len()), 0);
    }

    /// Appends raw bytes, padded: the fixed header of a family (`ifinfomsg` and the like).
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Message {
        self.buffer.extend_from_slice(bytes);
        self.buffer.resize(align(self.buffer.len()), 0);
        self
    }

    /// Appends an attribute. `kind` may carry the nested or byte-order flag. Longer than 65,531 bytes is
    /// not expressible; such an attribute is cut, and the kernel refuses the message.
    pub fn attr(&mut self, kind: u16, data: &[u8]) -> &mut Message {
        let length = u16::try_from(data.len() + 4).unwrap_or(u16::MAX);
        self.buffer.extend_from_slice(&length.to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.bytes(&data[..usize::from(length) - 4])
    }

    /// An attribute without value (a flag).
    pub fn attr_flag(&mut self, kind: u16) -> &mut Message {
        self.attr(kind, &[])
    }

    /// One byte.
    pub fn attr_u8(&mut self, kind: u16, value: u8) -> &mut Message {
        self.attr(kind, &[value])
    }

    /// Two bytes, host order.
    pub fn attr_u16(&mut self, kind: u16, value: u16) -> &mut Message {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Four bytes, host order.
    pub fn attr_u32(&mut self, kind: u16, value: u32) -> &mut Message {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Two bytes, network order.
    pub fn attr_be16(&mut self, kind: u16, value: u16) -> &mut Message {
        self.attr(kind, &value.to_be_bytes())
    }

    /// Four bytes, network order.
    pub fn attr_be32(&mut self, kind: u16, value: u32) -> &mut Message {
        self.attr(kind, &value.to_be_bytes())
    }

    /// Eight bytes, network order.
    pub fn attr_be64(&mut self, kind: u16, value: u64) -> &mut Message {
        self.attr(kind, &value.to_be_bytes())
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
            IpAddr::V4(ip) => self.attr(kind, &ip.octets()),
            IpAddr::V6(ip) => self.attr(kind, &ip.octets()),
        }
    }

    /// An attribute that holds what `fill` appends.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) -> &mut Message {
        self.nest_plain(kind | NESTED, fill)
    }

    /// As [`Message::nest`] without the flag that says so: a few old attributes are matched with it.
    pub fn nest_plain(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) -> &mut Message {
        let start = self.buffer.len();
        self.attr(kind, &[]);
        fill(self);
        let length = u16::try_from(self.buffer.len() - start).unwrap_or(u16::MAX);
        self.buffer[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }
}
