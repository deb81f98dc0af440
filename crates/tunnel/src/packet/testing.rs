//! Packets for tests, made the plain way.

use model::Family;

use super::checksum;
use super::header::{TCP, UDP};

/// A generator of numbers that gives the same ones every time (xorshift64*).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// Below a limit.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// Once in so many times.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

/// What a packet of a flow is made from.
#[derive(Clone, Debug)]
pub struct Plan {
    pub family: Family,
    pub protocol: u8,
    pub flow: u8,
    pub id: u16,
    pub whole: bool,
    pub ttl: u8,
    pub tos: u8,
    pub sequence: u32,
    pub flags: u8,
    pub window: u16,
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Plan {
    pub fn new(family: Family, protocol: u8, payload: Vec<u8>) -> Plan {
        let (flags, window) = (0x10, 501);
        let (id, sequence) = (100, 1_000_000);
        Plan {
            family,
            protocol,
            flow: 0,
            id,
            whole: true,
            ttl: 64,
            tos: 0,
            sequence,
            flags,
            window,
            options: Vec::new(),
            payload,
        }
    }

    /// The packet with all checksums.
    pub fn packet(&self) -> Vec<u8> {
        let mut transport = match self.protocol {
            TCP => {
                let mut tcp = vec![0x9c, 0x40, 0x14, self.flow];
                tcp.extend(self.sequence.to_be_bytes());
                tcp.extend(77u32.to_be_bytes());
                tcp.push(((20 + self.options.len()) / 4 * 16) as u8);
                tcp.push(self.flags);
                tcp.extend(self.window.to_be_bytes());
                tcp.extend([0, 0, 0, 0]);
                tcp.extend(&self.options);
                tcp
            }
            UDP => {
                let mut udp = vec![0x9c, 0x40, 0x14, self.flow];
                udp.extend((8 + self.payload.len() as u16).to_be_bytes());
                udp.extend([0, 0]);
                udp
            }
            _ => Vec::new(),
        };
        transport.extend(&self.payload);
        let mut packet = match self.family {
            Family::V4 => {
                let mut ip = vec![0x45, self.tos];
                ip.extend((20 + transport.len() as u16).to_be_bytes());
                ip.extend(self.id.to_be_bytes());
                ip.extend([if self.whole { 0x40 } else { 0 }, 0, self.ttl, self.protocol, 0, 0]);
                ip.extend([10, 244, 1, 7, 10, 244, 2, 9]);
                let sum = checksum::finish(checksum::sum(&ip));
                ip[10..12].copy_from_slice(&sum.to_be_bytes());
                ip
            }
            Family::V6 => {
                let mut ip = vec![0x60, self.tos, 0, 0];
                ip.extend((transport.len() as u16).to_be_bytes());
                ip.extend([self.protocol, self.ttl]);
                ip.extend([0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
                ip.extend([0xfd, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
                ip
            }
        };
        let addresses = if self.family == Family::V4 { 12..20 } else { 8..40 };
        if matches!(self.protocol, TCP | UDP) {
            let at = if self.protocol == TCP { 16 } else { 6 };
            let pseudo = checksum::pseudo(&packet[addresses], self.protocol, transport.len());
            let sum = checksum::finish(pseudo + checksum::sum(&transport));
            let sum = if sum == 0 && self.protocol == UDP { 0xffff } else { sum };
            transport[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        packet.extend(transport);
        packet
    }
}
