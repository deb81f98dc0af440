//! Puts packets that came one by one together to trains that a TUN device takes in one call, as generic
//! receive offload does in the kernel.
//!
//! A train says to the kernel "checksums are right, compute them anew where they are needed". So only packets
//! get on whose checksums have been found right; what is damaged goes on alone and as it is, and whoever it is
//! for finds the damage. Cutting a train again gives the packets that got on, byte by byte; only the
//! identification of an IPv4 packet that must not be fragmented, which means nothing (RFC 6864), may differ.
//! Packets of one flow keep their order.

use std::ops::Range;

use model::Family;

use super::checksum;
use super::header::{self, Header, TCP, UDP};
use super::vnet::{self, CHECKED, Gso, NEEDS_CHECKSUM, Vnet};

/// Flows in view at once; a batch rarely has more, and the oldest is let go.
const OPEN: usize = 16;
/// Packets of one train: the kernel takes 1,024 pieces in a call, and 64 datagrams.
const PIECES: usize = 128;
const DATAGRAMS: usize = 64;
/// Room for all headers: 40 of IPv6, 60 of TCP.
const HEADERS: usize = 100;
/// Bytes of one train.
const TRAIN: usize = 65_535;

const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// What one call to the device writes.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The header of the device.
    pub vnet: [u8; vnet::LENGTH],
    /// Headers of a train; empty for a packet that goes alone.
    pub head: &'a [u8],
    /// Where in the arena the rest lies.
    pub pieces: &'a [Range<usize>],
}

/// A batch of packets, emptied and filled again and again.
#[derive(Debug)]
pub struct Coalescer {
    groups: Vec<Group>,
    used: usize,
    /// Those of the groups that may still grow, the newest last.
    open: Vec<usize>,
    datagrams: bool,
}

/// A train, or a packet that goes alone.
#[derive(Debug)]
struct Group {
    pieces: Vec<Range<usize>>,
    head: [u8; HEADERS],
    read: Header,
    /// Bytes of all headers.
    headers: usize,
    /// Payload of the first packet, which each but the last must have.
    size: usize,
    /// Payload of all.
    total: usize,
    /// Checksums are right.
    checked: bool,
}

/// What is read of a packet that may get on a train.
struct Passenger<'a> {
    read: Header,
    headers: usize,
    packet: &'a [u8],
}

impl Coalescer {
    /// With trains of UDP datagrams only if the device takes them.
    pub fn new(datagrams: bool) -> Coalescer {
        Coalescer { groups: Vec::new(), used: 0, open: Vec::with_capacity(OPEN), datagrams }
    }

    /// Forgets everything; what was in the arena may go.
    pub fn clear(&mut self) {
        self.used = 0;
        self.open.clear();
    }

    /// Takes a packet that lies in the arena. False, and nothing done, if it is none.
    pub fn push(&mut self, arena: &[u8], at: Range<usize>) -> bool {
        let Some(packet) = arena.get(at.clone()) else { return false };
        let Some(read) = Header::read(packet) else { return false };
        let (packet, at) = (&packet[..read.length], at.start..at.start + read.length);
        let Some(transport) = read.transport(packet) else {
            // A fragment, whose flow cannot be seen, or something without trains: nothing may overtake it.
            if read.fragment {
                self.open.clear();
            }
            self.alone(read, at, false);
            return true;
        };
        let headers = read.header + transport;
        let passenger = Passenger { read, headers, packet };
        let place = self.open.iter().rposition(|number| self.groups[*number].same_flow(&passenger));
        if !self.may_ride(&passenger) {
            // Later ones of the flow must not get on a train before it.
            place.map(|place| self.open.remove(place));
            self.alone(read, at, false);
            return true;
        }
        let payload = packet.len() - headers;
        let pushed = read.protocol == TCP && packet[read.header + 13] & PSH != 0;
        if let Some(place) = place {
            let group = &mut self.groups[self.open[place]];
            if group.takes(&passenger) {
                group.pieces.push(at.start + headers..at.end);
                group.total += payload;
                if pushed {
                    group.head[read.header + 13] |= PSH;
                }
                if payload < group.size || pushed {
                    self.open.remove(place);
                }
                return true;
            }
            self.open.remove(place);
        }
        let number = self.alone(read, at, true);
        let group = &mut self.groups[number];
        group.head[..headers].copy_from_slice(&packet[..headers]);
        (group.headers, group.size, group.total) = (headers, payload, payload);
        if !pushed {
            if self.open.len() == OPEN {
                self.open.remove(0);
            }
            self.open.push(number);
        }
        true
    }

    fn alone(&mut self, read: Header, at: Range<usize>, checked: bool) -> usize {
        if self.used == self.groups.len() {
            let head = [0; HEADERS];
            let pieces = Vec::new();
            self.groups.push(Group { pieces, head, read, headers: 0, size: 0, total: 0, checked });
        }
        let group = &mut self.groups[self.used];
        group.pieces.clear();
        group.pieces.push(at);
        (group.read, group.headers, group.checked) = (read, 0, checked);
        self.used += 1;
        self.used - 1
    }

    fn may_ride(&self, passenger: &Passenger<'_>) -> bool {
        let Passenger { read, headers, packet } = passenger;
        // Options of IPv4 may mean something for each packet.
        if packet.len() == *headers || (read.family == Family::V4 && read.header != 20) {
            return false;
        }
        let transport = &packet[read.header..];
        let plain = match read.protocol {
            TCP => transport[13] & !PSH == ACK,
            _ => {
                let length = usize::from(u16::from_be_bytes([transport[4], transport[5]]));
                self.datagrams && transport[6..8] != [0, 0] && length == transport.len()
            }
        };
        if !plain || !header::is_sound(packet, read) {
            return false;
        }
        let pseudo = checksum::pseudo(&packet[read.addresses()], read.protocol, transport.len());
        checksum::fold(pseudo + checksum::sum(transport)) == 0xffff
    }

    /// What is to be written, in order. Finishes the headers of trains.
    pub fn frames(&mut self) -> impl Iterator<Item = Frame<'_>> {
        self.open.clear();
        self.groups[..self.used].iter_mut().map(Group::frame)
    }
}

impl Group {
    fn same_flow(&self, passenger: &Passenger<'_>) -> bool {
        let read = &passenger.read;
        self.read.family == read.family
            && self.read.protocol == read.protocol
            && self.read.header == read.header
            && self.head[read.addresses()] == passenger.packet[read.addresses()]
            && self.head[read.header..read.header + 4] == passenger.packet[read.header..read.header + 4]
    }

    /// Whether a packet of the flow follows right behind the last one.
    fn takes(&self, passenger: &Passenger<'_>) -> bool {
        let Passenger { read, headers, packet } = passenger;
        let payload = packet.len() - headers;
        let most = if read.protocol == TCP { PIECES } else { DATAGRAMS };
        if *headers != self.headers
            || payload > self.size
            || self.pieces.len() >= most
            || self.headers + self.total + payload > TRAIN
        {
            return false;
        }
        let same = |range: Range<usize>| self.head[range.clone()] == packet[range];
        let word = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let ip = match read.family {
            Family::V4 => {
                let next = word(&self.head, 4).wrapping_add(self.pieces.len() as u16);
                let whole = self.head[6] & 0x40 != 0;
                same(1..2) && same(6..9) && (whole || word(packet, 4) == next)
            }
            Family::V6 => same(0..4) && same(7..8),
        };
        if read.protocol == UDP {
            return ip;
        }
        let at = read.header;
        let number =
            |bytes: &[u8]| u32::from_be_bytes([bytes[at + 4], bytes[at + 5], bytes[at + 6], bytes[at + 7]]);
        ip
            // Acknowledgement, length of the header; window; urgent pointer and options.
            && same(at + 8..at + 13)
            && same(at + 14..at + 16)
            && same(at + 18..*headers)
            && number(packet) == number(&self.head).wrapping_add(self.total as u32)
    }

    fn frame(&mut self) -> Frame<'_> {
        let count = self.pieces.len();
        if count == 1 {
            let flags = if self.checked { CHECKED } else { 0 };
            let vnet = Vnet { flags, ..Vnet::default() }.bytes();
            return Frame { vnet, head: &[], pieces: &self.pieces };
        }
        let (read, at) = (self.read, self.read.header);
        // The first one was kept whole for the case that it stays alone.
        let first = &mut self.pieces[0];
        if first.end - first.start == self.headers + self.size {
            first.start += self.headers;
        }
        let head = &mut self.head[..self.headers];
        let length = self.headers - at + self.total;
        match read.family {
            Family::V4 => {
                head[2..4].copy_from_slice(&((at + length) as u16).to_be_bytes());
                header::seal(head, at);
            }
            Family::V6 => head[4..6].copy_from_slice(&(length as u16).to_be_bytes()),
        }
        if read.protocol == UDP {
            head[at + 4..at + 6].copy_from_slice(&(length as u16).to_be_bytes());
        }
        let offset = read.checksum_offset();
        let pseudo = checksum::fold(checksum::pseudo(&head[read.addresses()], read.protocol, length));
        head[at + offset..at + offset + 2].copy_from_slice(&pseudo.to_be_bytes());
        let gso = match (read.protocol, read.family) {
            (UDP, _) => Gso::Udp,
            (_, Family::V4) => Gso::Tcp4,
            (_, Family::V6) => Gso::Tcp6,
        };
        let vnet = Vnet {
            flags: NEEDS_CHECKSUM,
            gso,
            headers: self.headers as u16,
            size: self.size as u16,
            start: at as u16,
            offset: offset as u16,
        };
        Frame { vnet: vnet.bytes(), head, pieces: &self.pieces }
    }
}
