//! Cuts what was read from a TUN device into packets as they go on a wire, with the checksums they need.
//!
//! The kernel does the same in software for devices that cannot (`tcp_gso_segment`, `udp_gso_segment`); here it
//! happens once for a train of packets that took one system call to read.

use model::Family;

use super::checksum;
use super::header::{self, Header, TCP, UDP};
use super::vnet::{Gso, NEEDS_CHECKSUM, Vnet};

/// Flags of TCP: only the last segment has these,
const FIN_PSH: u8 = 0x09;
/// and only the first this one.
const CWR: u8 = 0x80;

/// The packets one train is cut into.
#[derive(Debug)]
pub struct Segments<'a> {
    packet: &'a [u8],
    read: Header,
    /// Bytes of all headers; nothing is to be cut if 0.
    headers: usize,
    /// Bytes of payload in each but the last.
    size: usize,
    count: usize,
    /// The sum of the addresses and the protocol.
    pseudo: u32,
}

impl<'a> Segments<'a> {
    /// Checks what the kernel handed over, and completes the checksum of a packet that is not to be cut.
    /// `None` for what we have not asked the kernel for.
    pub fn new(vnet: &Vnet, packet: &'a mut [u8]) -> Option<Segments<'a>> {
        let read = Header::read(packet)?;
        let whole = |packet| Segments { packet, read, headers: 0, size: 0, count: 1, pseudo: 0 };
        if vnet.gso == Gso::None {
            if vnet.flags & NEEDS_CHECKSUM != 0 {
                complete(packet, vnet, &read)?;
            }
            return Some(whole(packet));
        }
        let transport = read.transport(packet)?;
        let fits = match vnet.gso {
            Gso::Tcp4 => read.family == Family::V4 && read.protocol == TCP,
            Gso::Tcp6 => read.family == Family::V6 && read.protocol == TCP,
            Gso::Udp => read.protocol == UDP,
            Gso::None | Gso::Other(_) => false,
        };
        if !fits || vnet.size == 0 {
            return None;
        }
        let headers = read.header + transport;
        let size = usize::from(vnet.size);
        let count = (read.length - headers).div_ceil(size).max(1);
        let pseudo = checksum::pseudo(&packet[read.addresses()], read.protocol, 0);
        Some(Segments { packet, read, headers, size, count, pseudo })
    }

    /// How many packets there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes of the largest, which is each but the last.
    pub fn largest(&self) -> usize {
        if self.headers == 0 { self.read.length } else { (self.headers + self.size).min(self.read.length) }
    }

    /// Bytes of one of them.
    pub fn size(&self, number: usize) -> usize {
        match self.headers {
            0 => self.read.length,
            headers => headers + self.payload(number).len(),
        }
    }

    fn payload(&self, number: usize) -> &'a [u8] {
        let start = (self.headers + number * self.size).min(self.read.length);
        &self.packet[start..(start + self.size).min(self.read.length)]
    }

    /// Writes one of them into room of exactly its size.
    pub fn write(&self, number: usize, out: &mut [u8]) {
        if self.headers == 0 {
            out.copy_from_slice(&self.packet[..self.read.length]);
            return;
        }
        let payload = self.payload(number);
        let (head, body) = out.split_at_mut(self.headers);
        head.copy_from_slice(&self.packet[..self.headers]);
        body.copy_from_slice(payload);
        let (ip, transport) = head.split_at_mut(self.read.header);
        let length = transport.len() + payload.len();
        let whole = ip.len() + length;
        match self.read.family {
            Family::V4 => {
                ip[2..4].copy_from_slice(&(whole as u16).to_be_bytes());
                let id = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(number as u16);
                ip[4..6].copy_from_slice(&id.to_be_bytes());
                header::seal(ip, self.read.header);
            }
            Family::V6 => ip[4..6].copy_from_slice(&(length as u16).to_be_bytes()),
        }
        if self.read.protocol == TCP {
            let first = u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
            let sequence = first.wrapping_add((number * self.size) as u32);
            transport[4..8].copy_from_slice(&sequence.to_be_bytes());
            if number > 0 {
                transport[13] &= !CWR;
            }
            if number + 1 < self.count {
                transport[13] &= !FIN_PSH;
            }
        } else {
            transport[4..6].copy_from_slice(&(length as u16).to_be_bytes());
        }
        let at = self.read.checksum_offset();
        transport[at..at + 2].fill(0);
        let sum = self.pseudo + length as u32 + checksum::sum(transport) + checksum::sum(body);
        transport[at..at + 2].copy_from_slice(&filled(checksum::finish(sum), self.read.protocol));
    }
}

/// A checksum of UDP that comes out as zero is written as all ones: zero says that there is none.
fn filled(sum: u16, protocol: u8) -> [u8; 2] {
    if sum == 0 && protocol == UDP { [0xff, 0xff] } else { sum.to_be_bytes() }
}

/// Completes a checksum of which the kernel has left the pseudo header's part in its place.
fn complete(packet: &mut [u8], vnet: &Vnet, read: &Header) -> Option<()> {
    let (start, at) = (usize::from(vnet.start), usize::from(vnet.start) + usize::from(vnet.offset));
    let covered = packet.get(start..read.length)?;
    let sum = checksum::finish(checksum::sum(covered));
    packet
        .get_mut(at..at + 2)
        .filter(|_| at + 2 <= read.length)?
        .copy_from_slice(&filled(sum, read.protocol));
    Some(())
}
