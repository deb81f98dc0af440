//! Packets made byte by byte, and what comes of them, looked at on a device.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use kernel::Netns;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::world::patience;

/// An IPv4 packet with a UDP datagram in it.
#[derive(Clone)]
pub struct Packet {
    pub tos: u8,
    pub ttl: u8,
    /// Flags and offset.
    pub fragment: u16,
    pub options: Vec<u8>,
    pub from: SocketAddrV4,
    pub to: SocketAddrV4,
    pub payload: Vec<u8>,
    /// Added to the right checksum; the field is 0 where it is `None`.
    pub checksum: Option<u16>,
}

pub fn sum(bytes: &[u8], start: u32) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum = words.fold(start, |sum, word| sum + word);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A UDP datagram between these ports. `wrong` is added to the right checksum, over `addresses`, too; the field is 0
/// where it is `None`.
pub fn datagram_of(ports: [u16; 2], payload: &[u8], wrong: Option<u16>, addresses: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let mut udp: Vec<u8> =
        [ports[0], ports[1], length, 0].iter().flat_map(|word| word.to_be_bytes()).collect();
    udp.extend(payload);
    if let Some(wrong) = wrong {
        let pseudo = sum(&[addresses, &[0, 17], &udp[4..6]].concat(), 0);
        let check = sum(&udp, u32::from(!pseudo)).wrapping_add(wrong);
        udp[6..8].copy_from_slice(&check.to_be_bytes());
    }
    udp
}

impl Packet {
    pub fn bytes(&self) -> Vec<u8> {
        let header = 20 + self.options.len();
        let datagram = 8 + self.payload.len();
        let mut ip = vec![0; header];
        ip[0] = 0x40 | (header / 4) as u8;
        ip[1] = self.tos;
        ip[2..4].copy_from_slice(&((header + datagram) as u16).to_be_bytes());
        ip[4..6].copy_from_slice(&0x1234u16.to_be_bytes());
        ip[6..8].copy_from_slice(&self.fragment.to_be_bytes());
        (ip[8], ip[9]) = (self.ttl, 17);
        ip[12..16].copy_from_slice(&self.from.ip().octets());
        ip[16..20].copy_from_slice(&self.to.ip().octets());
        ip[20..].copy_from_slice(&self.options);
        let check = sum(&ip, 0);
        ip[10..12].copy_from_slice(&check.to_be_bytes());
        let udp = datagram_of([self.from.port(), self.to.port()], &self.payload, self.checksum, &ip[12..20]);
        [ip, udp].concat()
    }

    /// Sends it from a namespace.
    pub fn send(&self, netns: &Netns) -> Result<(), rustix::io::Errno> {
        send(netns, &self.bytes(), *self.to.ip(), 1)
    }
}

/// Sends an IPv4 packet as it is, so many times.
pub fn send(netns: &Netns, packet: &[u8], to: Ipv4Addr, times: usize) -> Result<(), rustix::io::Errno> {
    let raw = Protocol::from_raw(std::num::NonZeroU32::new(255).unwrap());
    let open =
        || rustix::net::socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::empty(), Some(raw));
    let socket = netns.run(open).unwrap()?;
    let to = SocketAddrV4::new(to, 0);
    (0..times).try_for_each(|_| rustix::net::sendto(&socket, packet, SendFlags::empty(), &to).map(drop))
}

/// Everything that passes the devices of a namespace (`ETH_P_ALL`): a bridge hands what it forwards to nobody else.
pub struct Capture(OwnedFd);

impl Capture {
    pub fn start(netns: &Netns) -> Capture {
        let all = Protocol::from_raw(std::num::NonZeroU32::new(u32::from(3u16.to_be())).unwrap());
        let open = || {
            rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::NONBLOCK, Some(all))
        };
        let socket = netns.run(open).unwrap().unwrap();
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 16 << 20).unwrap();
        Capture(socket)
    }

    /// Frames that are there already.
    pub fn there(&self) -> Vec<Vec<u8>> {
        let (mut frames, mut space) = (Vec::new(), vec![0; 65536]);
        while let Ok((length, _)) = rustix::net::recv(&self.0, &mut space[..], RecvFlags::empty()) {
            frames.push(space[..length].to_vec());
        }
        frames
    }

    /// Frames until one satisfies `last`, or nothing comes for a second.
    pub fn until(&self, last: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
        self.take(last, patience())
    }

    /// Frames until nothing comes for a second; of a wire on which agents never are silent, of two.
    pub fn rest(&self) -> Vec<Vec<u8>> {
        self.take(|_| false, Duration::from_secs(2))
    }

    fn take(&self, last: impl Fn(&[u8]) -> bool, most: Duration) -> Vec<Vec<u8>> {
        let (mut frames, mut space, start) = (Vec::new(), vec![0; 65536], Instant::now());
        let mut heard = start;
        while heard.elapsed() < Duration::from_secs(1) && start.elapsed() < most {
            match rustix::net::recv(&self.0, &mut space[..], RecvFlags::empty()) {
                Ok((length, _)) => {
                    heard = Instant::now();
                    frames.push(space[..length].to_vec());
                    if last(&space[..length]) {
                        return frames;
                    }
                }
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        frames
    }
}

/// What an IPv4 packet says, without what the kernel numbers as it likes: for comparing and for reading.
pub fn told(packet: &[u8]) -> String {
    let Some(header) = packet.first().map(|first| usize::from(first & 0xf) * 4) else {
        return "nothing".to_owned();
    };
    if packet.len() < header + 8 {
        return format!("short {packet:02x?}");
    }
    let address = |at: usize| Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]);
    let right = if sum(&packet[..header], 0) == 0 { "" } else { " header sum wrong" };
    let rest = &packet[header..];
    let what = match packet[9] {
        1 => format!("icmp {} {} about {}", rest[0], rest[1], rest.get(8..).map_or_else(String::new, inner)),
        17 => format!("{rest:02x?}"),
        other => format!("protocol {other}, {} bytes", rest.len()),
    };
    let id = if packet[9] == 1 { "" } else { &format!(" id {:02x}{:02x}", packet[4], packet[5]) };
    format!(
        "{} to {} length {:02x}{:02x} tos {:02x} ttl {} frag {:02x}{:02x}{id} options {:02x?}{right}: {what}",
        address(12),
        address(16),
        packet[2],
        packet[3],
        packet[1],
        packet[8],
        packet[6],
        packet[7],
        &packet[20..header],
    )
}

/// Of the packet an ICMP error is about: its header and ports, without the checksum.
fn inner(packet: &[u8]) -> String {
    let upto =
        |at: usize, to: usize| packet.get(at..to).map(|bytes| format!("{bytes:02x?}")).unwrap_or_default();
    format!("{} {}", upto(0, 10), upto(12, 24))
}

/// An outer packet of a backend, without identification and checksums; `None` for others. A frame of VXLAN whose
/// receiver was quicker than we has lost its identifier, which is 1: the kernel takes shared ones apart in place.
pub fn outer(frame: &[u8], backend: &str) -> Option<(String, Vec<u8>)> {
    let (port, header) = if backend == "udp" { (8285u16, 42) } else { (8472, 64) };
    let ip = frame.get(14..)?;
    let inner = frame.get(header..)?;
    if frame[12..14] != [8, 0]
        || ip[9] != 17
        || ip[22..24] != port.to_be_bytes()
        || ip[6] & 0x3f != 0
        || ip[7] != 0
    {
        return None;
    }
    if backend != "udp" && ip[32..35] != [0, 0, 1] {
        return None;
    }
    let right = if sum(&ip[..20], 0) == 0 { "" } else { " header sum wrong" };
    let told = format!(
        "macs {:02x?} tos {:02x} frag {:02x}{:02x} ttl {} addresses {:02x?} ports {:02x?} vxlan {:02x?}{right}",
        &frame[..14],
        ip[1],
        ip[6],
        ip[7],
        ip[8],
        &ip[12..20],
        &ip[20..24],
        &ip[28..header - 14],
    );
    Some((told, inner.to_vec()))
}
