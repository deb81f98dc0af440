//! Answers to senders whose IPv4 packets cannot go on (RFC 792, 1122 3.2.2, 1812 4.3.2).

use std::net::Ipv4Addr;

use model::Family;

use super::checksum;
use super::header::{self, Header, ICMP};

/// Why a packet does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No peer has the destination: network unreachable.
    NoRoute,
    /// The last hop is used up: time exceeded in transit.
    Hops,
}

/// Bytes of the offender's payload that are quoted.
const QUOTED: usize = 8;

/// The answer as a whole IPv4 packet from `from`; the kernel fills in its identification and header checksum.
/// `None` where there must be no answer: to errors of ICMP, to other fragments than the first, to what went
/// to or came from no single host.
pub fn answer(offender: &[u8], from: Ipv4Addr, reason: Reason) -> Option<Vec<u8>> {
    let read = Header::read(offender).filter(|read| read.family == Family::V4)?;
    let (source, destination) = (header::v4(offender, 12)?, header::v4(offender, 16)?);
    let later = u16::from_be_bytes([offender[6], offender[7]]) & 0x1fff != 0;
    let single = |ip: Ipv4Addr| !ip.is_multicast() && !ip.is_broadcast() && !ip.is_unspecified();
    if later || !single(source) || !single(destination) || source.is_loopback() {
        return None;
    }
    // Echo request and reply are no errors; of those we do not know any better, none is answered.
    if read.protocol == ICMP && !matches!(offender.get(read.header), Some(0 | 8 | 13 | 14)) {
        return None;
    }
    let quoted = &offender[..(read.header + QUOTED).min(read.length)];
    let (kind, code) = match reason {
        Reason::NoRoute => (3, 0),
        Reason::Hops => (11, 0),
    };
    let length = 20 + 8 + quoted.len();
    let mut packet = vec![0; 28];
    // Internetwork control, as routers send it.
    packet[..2].copy_from_slice(&[0x45, 0xc0]);
    packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    packet[8..10].copy_from_slice(&[64, ICMP]);
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&source.octets());
    packet[20..22].copy_from_slice(&[kind, code]);
    packet.extend_from_slice(quoted);
    let sum = checksum::finish(checksum::sum(&packet[20..]));
    packet[22..24].copy_from_slice(&sum.to_be_bytes());
    header::seal(&mut packet, 20);
    Some(packet)
}

/// How many answers may be sent: a bucket that fills with time (RFC 1812 4.3.2.8). Time is in milliseconds.
#[derive(Debug)]
pub struct Allowance {
    left: u32,
    at_ms: u64,
}

impl Allowance {
    /// Answers at once, and as many in each second.
    const MOST: u32 = 100;

    /// A full one.
    pub fn new() -> Allowance {
        Allowance { left: Allowance::MOST, at_ms: 0 }
    }

    /// Takes one answer out.
    pub fn take(&mut self, now_ms: u64) -> bool {
        let earned = now_ms.saturating_sub(self.at_ms) * u64::from(Allowance::MOST) / 1000;
        if earned > 0 {
            self.left = u32::try_from(u64::from(self.left) + earned)
                .map_or(Allowance::MOST, |n| n.min(Allowance::MOST));
            self.at_ms = now_ms;
        }
        let some = self.left > 0;
        self.left = self.left.saturating_sub(1);
        some
    }
}

impl Default for Allowance {
    fn default() -> Allowance {
        Allowance::new()
    }
}
