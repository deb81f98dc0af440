//! What the headers of a packet say, read once and checked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use model::Family;

use super::checksum;

/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;

/// The IP header of a packet, as far as a tunnel looks at it. Both lengths lie inside the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// IPv4 or IPv6.
    pub family: Family,
    /// Bytes of the IP header; in IPv6 without extension headers.
    pub header: usize,
    /// Bytes of the whole packet; what follows is padding.
    pub length: usize,
    /// What follows the header; an extension header in IPv6 counts as a protocol nobody knows.
    pub protocol: u8,
    /// Part of a larger packet.
    pub fragment: bool,
    /// Hops left.
    pub ttl: u8,
}

impl Header {
    /// Reads the header; `None` if it does not fit the bytes that are there.
    pub fn read(packet: &[u8]) -> Option<Header> {
        let word = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
        let read = match packet.first()? >> 4 {
            4 => Header {
                family: Family::V4,
                header: usize::from(packet[0] & 15) * 4,
                length: word(2)?.into(),
                protocol: *packet.get(9)?,
                // More fragments, or not the first one.
                fragment: word(6)? & 0x3fff != 0,
                ttl: *packet.get(8)?,
            },
            6 => Header {
                family: Family::V6,
                header: 40,
                length: 40 + usize::from(word(4)?),
                protocol: *packet.get(6)?,
                fragment: false,
                ttl: *packet.get(7)?,
            },
            _ => return None,
        };
        let least = if read.family == Family::V4 { 20 } else { 40 };
        let fits = read.header >= least && read.header <= read.length && read.length <= packet.len();
        fits.then_some(read)
    }

    /// Where source and destination lie, one after the other.
    pub fn addresses(&self) -> std::ops::Range<usize> {
        match self.family {
            Family::V4 => 12..20,
            Family::V6 => 8..40,
        }
    }

    /// Whether TCP or UDP follows whole, with its header inside the packet: the bytes of that header.
    pub fn transport(&self, packet: &[u8]) -> Option<usize> {
        if self.fragment {
            return None;
        }
        let rest = packet.get(self.header..self.length)?;
        let length = match self.protocol {
            TCP => usize::from(*rest.get(12)? >> 4) * 4,
            UDP => 8,
            _ => return None,
        };
        let least = if self.protocol == TCP { 20 } else { 8 };
        (length >= least && length <= rest.len()).then_some(length)
    }

    /// Where in the header of TCP or UDP the checksum is.
    pub fn checksum_offset(&self) -> usize {
        if self.protocol == TCP { 16 } else { 6 }
    }
}

/// Source and destination of a packet that [`Header::read`] has accepted.
pub fn ends(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    Some(match Header::read(packet)?.family {
        Family::V4 => (v4(packet, 12)?.into(), v4(packet, 16)?.into()),
        Family::V6 => (v6(packet, 8)?.into(), v6(packet, 24)?.into()),
    })
}

/// An IPv4 address in a packet.
pub fn v4(packet: &[u8], at: usize) -> Option<Ipv4Addr> {
    let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
    Some(bytes.into())
}

fn v6(packet: &[u8], at: usize) -> Option<Ipv6Addr> {
    let bytes: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
    Some(bytes.into())
}

/// Takes a hop from an IPv4 packet and mends its checksum (RFC 1624). False if there is none left.
pub fn take_hop(packet: &mut [u8]) -> bool {
    let Some(header) = packet.get_mut(..20) else { return false };
    if header[8] <= 1 {
        return false;
    }
    header[8] -= 1;
    // The word of the time to live got smaller by 0x100, so the complement of the sum gets larger by it.
    let old = u32::from(u16::from_be_bytes([header[10], header[11]]));
    let new = checksum::fold(old + 0x100);
    // A header is never all zeroes, so its checksum is never all ones.
    let new = if new == 0xffff { 0 } else { new };
    header[10..12].copy_from_slice(&new.to_be_bytes());
    true
}

/// Whether the checksum of an IPv4 header is right; IPv6 has none.
pub fn is_sound(packet: &[u8], read: &Header) -> bool {
    read.family == Family::V6 || checksum::fold(checksum::sum(&packet[..read.header])) == 0xffff
}

/// Writes the checksum of an IPv4 header.
pub fn seal(packet: &mut [u8], header: usize) {
    packet[10..12].fill(0);
    let sum = checksum::finish(checksum::sum(&packet[..header]));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}
