//! Taking replies apart. Nothing here can fail hard: what is cut or malformed ends the iteration.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use model::Mac;

use super::{HEADER, align};

/// One message the kernel sent.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'a> {
    /// Type (`RTM_…`, or subsystem and `NFT_MSG_…`).
    pub kind: u16,
    /// `NLM_F_…`
    pub flags: u16,
    /// Sequence number of the request, 0 in notifications.
    pub sequence: u32,
    /// Family header and attributes.
    pub payload: &'a [u8],
}

impl<'a> Reply<'a> {
    /// The attributes after a family header of `header` bytes.
    pub fn attrs(&self, header: usize) -> Attrs<'a> {
        Attrs::new(self.payload.get(align(header)..).unwrap_or_default())
    }

    /// `N` bytes of the family header.
    pub fn field<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.payload.get(at..at + N)?.try_into().ok()
    }

    /// Splits what one receive call gave into messages.
    pub fn split(mut data: &'a [u8]) -> impl Iterator<Item = Reply<'a>> {
        std::iter::from_fn(move || {
            let header: [u8; HEADER] = data.get(..HEADER)?.try_into().ok()?;
            let [a, b, c, d, k0, k1, f0, f1, s0, s1, s2, s3, ..] = header;
            let length = u32::from_ne_bytes([a, b, c, d]) as usize;
            let reply = Reply {
                kind: u16::from_ne_bytes([k0, k1]),
                flags: u16::from_ne_bytes([f0, f1]),
                sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
                payload: data.get(HEADER..length)?,
            };
            data = data.get(align(length)..).unwrap_or_default();
            Some(reply)
        })
    }
}

/// Iterator over attributes.
#[derive(Clone, Copy, Debug)]
pub struct Attrs<'a> {
    rest: &'a [u8],
}

impl<'a> Attrs<'a> {
    /// Attributes in `bytes`.
    pub fn new(bytes: &'a [u8]) -> Attrs<'a> {
        Attrs { rest: bytes }
    }

    /// The first attribute of a type.
    pub fn find(mut self, kind: u16) -> Option<Attr<'a>> {
        Iterator::find(&mut self, |a| a.kind == kind)
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = Attr<'a>;

    fn next(&mut self) -> Option<Attr<'a>> {
        let header: [u8; 4] = self.rest.get(..4)?.try_into().ok()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        // The two high bits tell nesting and byte order.
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let data = self.rest.get(4..length)?;
        self.rest = self.rest.get(align(length)..).unwrap_or_default();
        Some(Attr { kind, data })
    }
}

/// One attribute: type without flags, and its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr<'a> {
    /// Type.
    pub kind: u16,
    /// Content.
    pub data: &'a [u8],
}

impl<'a> Attr<'a> {
    fn array<const N: usize>(&self) -> Option<[u8; N]> {
        self.data.get(..N)?.try_into().ok()
    }

    /// One byte.
    pub fn u8(&self) -> Option<u8> {
        self.data.first().copied()
    }

    /// Two bytes, host order.
    pub fn u16(&self) -> Option<u16> {
        self.array().map(u16::from_ne_bytes)
    }

    /// Four bytes, host order.
    pub fn u32(&self) -> Option<u32> {
        self.array().map(u32::from_ne_bytes)
    }

    /// Two bytes, network order.
    pub fn be16(&self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// Four bytes, network order.
    pub fn be32(&self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// Eight bytes, network order.
    pub fn be64(&self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// Text up to the first NUL byte.
    pub fn text(&self) -> Option<&'a str> {
        let end = self.data.iter().position(|b| *b == 0).unwrap_or(self.data.len());
        std::str::from_utf8(&self.data[..end]).ok()
    }

    /// An address of exactly four or sixteen bytes.
    pub fn ip(&self) -> Option<IpAddr> {
        match self.data.len() {
            4 => self.array().map(|b: [u8; 4]| IpAddr::V4(Ipv4Addr::from(b))),
            16 => self.array().map(|b: [u8; 16]| IpAddr::V6(Ipv6Addr::from(b))),
            _ => None,
        }
    }

    /// A hardware address of exactly six bytes.
    pub fn mac(&self) -> Option<Mac> {
        if self.data.len() == 6 { self.array().map(Mac) } else { None }
    }

    /// The attributes inside.
    pub fn nested(&self) -> Attrs<'a> {
        Attrs::new(self.data)
    }
}
