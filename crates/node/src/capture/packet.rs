//! A frame → the packet of the pair inside it, how it is wrapped, and what it is known by at every hop. Pure.

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::filter::Ports;

/// What is around a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrap {
    /// VXLAN, with its network identifier.
    Vxlan(u32),
    /// A bare packet in UDP (flannel's backend udp), with the port.
    Udp(u16),
    /// IP in IP.
    Ip,
}

impl fmt::Display for Wrap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wrap::Vxlan(vni) => write!(f, "vxlan vni {vni}"),
            Wrap::Udp(port) => write!(f, "udp {port}"),
            Wrap::Ip => write!(f, "ipip"),
        }
    }
}

/// What a packet is known by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// A digest of all that no hop changes.
    Whole(u64),
    /// TCP data: a digest of the connection's direction. The range of sequence numbers tells the rest.
    Stream(u64),
}

/// A packet of the pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source.
    pub from: IpAddr,
    /// Destination.
    pub to: IpAddr,
    /// IP protocol.
    pub protocol: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Source and destination port, where there are ports.
    pub ports: Option<(u16, u16)>,
    /// What it is known by.
    pub key: Key,
    /// First sequence number and bytes of TCP data; 0 bytes for everything else.
    pub range: (u32, u32),
    /// Bytes, IP header included.
    pub bytes: usize,
    /// What is around it here, outermost first.
    pub wraps: Vec<Wrap>,
    /// In words.
    pub what: String,
}

/// Deeper tunnels are not looked into.
const DEEPEST: usize = 3;

/// Finds the packet that `wanted` wants, by source and destination, in an IP packet or in what it carries.
pub fn find(bytes: &[u8], ports: &Ports, wanted: &dyn Fn(IpAddr, IpAddr) -> bool) -> Option<Packet> {
    let (mut at, mut wraps) = (bytes, Vec::new());
    for _ in 0..DEEPEST {
        let ip = Ip::read(at)?;
        if wanted(ip.from, ip.to) {
            return Some(ip.packet(wraps));
        }
        let (wrap, inside) = ip.carried(ports)?;
        wraps.push(wrap);
        at = inside;
    }
    None
}

struct Ip<'a> {
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    ttl: u8,
    /// The header's fields that no hop changes.
    fixed: Vec<u8>,
    /// Not the first fragment.
    later: bool,
    header: usize,
    payload: &'a [u8],
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

impl<'a> Ip<'a> {
    fn read(bytes: &'a [u8]) -> Option<Ip<'a>> {
        // Padding of short frames is not part of the packet; a length of 0 is a train longer than 64 KiB.
        let cut = |length: usize| if length == 0 { bytes } else { bytes.get(..length).unwrap_or(bytes) };
        match bytes.first()? >> 4 {
            4 => {
                let header = usize::from(bytes[0] & 15) * 4;
                let packet = cut(usize::from(half(bytes, 2)?));
                let place = |at: usize| <[u8; 4]>::try_from(packet.get(at..at + 4)?).ok();
                let fragment = half(packet, 6)?;
                Some(Ip {
                    from: Ipv4Addr::from(place(12)?).into(),
                    to: Ipv4Addr::from(place(16)?).into(),
                    protocol: *packet.get(9)?,
                    ttl: *packet.get(8)?,
                    // Identification and place of the fragment.
                    fixed: packet.get(4..8)?.to_vec(),
                    later: fragment & 0x1fff != 0,
                    header,
                    payload: packet.get(header.max(20)..)?,
                })
            }
            6 => {
                let length = usize::from(half(bytes, 4)?);
                let packet = cut(if length == 0 { 0 } else { 40 + length });
                let place = |at: usize| <[u8; 16]>::try_from(packet.get(at..at + 16)?).ok();
                Some(Ip {
                    from: Ipv6Addr::from(place(8)?).into(),
                    to: Ipv6Addr::from(place(24)?).into(),
                    protocol: *packet.get(6)?,
                    ttl: *packet.get(7)?,
                    fixed: Vec::new(),
                    later: false,
                    header: 40,
                    payload: packet.get(40..)?,
                })
            }
            _ => None,
        }
    }

    fn carried(&self, ports: &Ports) -> Option<(Wrap, &'a [u8])> {
        if self.later {
            return None;
        }
        match self.protocol {
            4 | 41 => Some((Wrap::Ip, self.payload)),
            17 => {
                let port = half(self.payload, 2)?;
                if ports.vxlan.contains(&port) {
                    // The I flag says that the identifier is valid (RFC 7348, 5).
                    let vni = word(self.payload, 12).filter(|_| self.payload[8] & 8 != 0)? >> 8;
                    let ethernet = matches!(half(self.payload, 28)?, 0x0800 | 0x86dd);
                    return Some((Wrap::Vxlan(vni), self.payload.get(30..).filter(|_| ethernet)?));
                }
                ports.udp.contains(&port).then_some((Wrap::Udp(port), self.payload.get(8..)?))
            }
            _ => None,
        }
    }

    fn packet(&self, wraps: Vec<Wrap>) -> Packet {
        let has_ports = matches!(self.protocol, 6 | 17 | 132) && !self.later;
        let ports = half(self.payload, 0).zip(half(self.payload, 2)).filter(|_| has_ports);
        let mut digest = DefaultHasher::new();
        (self.from, self.to, self.protocol, ports).hash(&mut digest);
        let tcp = if self.protocol == 6 && !self.later { self.tcp() } else { None };
        let (key, range, what) = match tcp {
            Some((sequence, data, what)) if data > 0 => {
                (Key::Stream(digest.finish()), (sequence, data), what)
            }
            tcp => {
                self.fixed.hash(&mut digest);
                // Checksums are left to devices, and are not yet right on the first hops.
                let sum = match self.protocol {
                    1 | 58 => 2..4,
                    6 => 16..18,
                    17 => 6..8,
                    _ => 0..0,
                };
                let sum = if self.later { 0..0 } else { sum };
                digest.write(self.payload.get(..sum.start).unwrap_or(self.payload));
                digest.write(self.payload.get(sum.end..).unwrap_or_default());
                let first = tcp.as_ref().map_or(0, |(sequence, ..)| *sequence);
                (Key::Whole(digest.finish()), (first, 0), tcp.map_or_else(|| self.what(), |(.., what)| what))
            }
        };
        let bytes = self.header + self.payload.len();
        Packet {
            from: self.from,
            to: self.to,
            protocol: self.protocol,
            ttl: self.ttl,
            ports,
            key,
            range,
            bytes,
            wraps,
            what,
        }
    }

    /// Sequence number, bytes of data, and words.
    fn tcp(&self) -> Option<(u32, u32, String)> {
        let header = usize::from(self.payload.get(12)? >> 4) * 4;
        let flags = *self.payload.get(13)?;
        let sequence = word(self.payload, 4)?;
        let data = self.payload.len().saturating_sub(header) as u32;
        let names = ["F", "S", "R", "P", "."].iter().enumerate();
        let named: String = names.filter(|(bit, _)| flags >> bit & 1 == 1).map(|(_, name)| *name).collect();
        let (from, to) = (half(self.payload, 0)?, half(self.payload, 2)?);
        let what = if data > 0 {
            format!("tcp {from} > {to} [{named}] seq {sequence} length {data}")
        } else {
            format!("tcp {from} > {to} [{named}]")
        };
        Some((sequence, data, what))
    }

    fn what(&self) -> String {
        let number = || half(self.payload, 6).unwrap_or_default();
        let kind = self.payload.first().copied().unwrap_or_default();
        match (self.protocol, kind) {
            _ if self.later => format!("fragment, protocol {}", self.protocol),
            (1, 8) | (58, 128) => format!("icmp echo request seq {}", number()),
            (1, 0) | (58, 129) => format!("icmp echo reply seq {}", number()),
            (1 | 58, kind) => format!("icmp type {kind}"),
            (17 | 132, _) => {
                let name = if self.protocol == 17 { "udp" } else { "sctp" };
                let ports = half(self.payload, 0).zip(half(self.payload, 2)).unwrap_or_default();
                format!("{name} {} > {}", ports.0, ports.1)
            }
            (protocol, _) => format!("protocol {protocol}"),
        }
    }
}

/// The innermost packet of an IP packet, which may be cut.
pub fn innermost(bytes: &[u8], ports: &Ports) -> Option<Packet> {
    let (mut ip, mut wraps) = (Ip::read(bytes)?, Vec::new());
    while let Some((wrap, inner)) = ip.carried(ports).and_then(|(wrap, at)| Some((wrap, Ip::read(at)?))) {
        if wraps.len() == DEEPEST {
            break;
        }
        wraps.push(wrap);
        ip = inner;
    }
    Some(ip.packet(wraps))
}
