//! UDP below the network layer, for a device without an address: DHCP; and what a small daemon needs of the
//! system: signals that end it, a socket handed down.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use crate::sys;

/// Datagrams to one UDP port of one device, whatever its addresses.
pub struct UdpPackets {
    socket: OwnedFd,
    device: u32,
    port: u16,
    buffer: Vec<u8>,
}

/// Length of an IPv4 header without options, and of a UDP header.
const IP: usize = 20;
const UDP: usize = 8;

impl UdpPackets {
    /// Opens the socket in the namespace of the calling thread, and keeps that one.
    ///
    /// # Errors
    /// The device is gone, or no permission.
    pub fn open(device: u32, port: u16) -> io::Result<UdpPackets> {
        let socket = sys::udp_packet_socket(device, port)?;
        Ok(UdpPackets { socket, device, port, buffer: vec![0; 4096] })
    }

    /// Sends a datagram from no address to everybody.
    ///
    /// # Errors
    /// The device is gone or down.
    pub fn broadcast(&self, to_port: u16, data: &[u8]) -> io::Result<()> {
        let packet = packet(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, self.port, to_port, data);
        sys::send_broadcast(self.socket.as_fd(), self.device, &packet).map(drop)
    }

    /// The next datagram; `None` if none came in time.
    ///
    /// # Errors
    /// The device is gone or down.
    pub fn receive(&mut self, limit: Duration) -> io::Result<Option<&[u8]>> {
        if sys::poll([self.socket.as_fd()], Some(limit))? == [false] {
            return Ok(None);
        }
        let length = sys::receive(self.socket.as_fd(), &mut self.buffer, false)?;
        let packet = self.buffer.get(..length).unwrap_or_default();
        // The filter has looked at protocol and port; the length of the datagram ends the padding.
        let header = usize::from(packet.first().copied().unwrap_or(0) & 15) * 4;
        let Some(udp) = packet.get(header..).filter(|udp| udp.len() >= UDP) else { return Ok(Some(&[])) };
        let length = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
        Ok(Some(udp.get(UDP..length).unwrap_or_default()))
    }
}

/// RFC 791 3.1, RFC 768.
fn packet(from: Ipv4Addr, to: Ipv4Addr, from_port: u16, to_port: u16, data: &[u8]) -> Vec<u8> {
    let length = |n: usize| u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes();
    let mut packet = vec![0x45, 0x10];
    packet.extend(length(IP + UDP + data.len()));
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = checksum(&[&packet]);
    packet[10..12].copy_from_slice(&sum);
    let mut udp = Vec::with_capacity(UDP + data.len());
    udp.extend(from_port.to_be_bytes());
    udp.extend(to_port.to_be_bytes());
    udp.extend(length(UDP + data.len()));
    udp.extend([0, 0]);
    udp.extend(data);
    let pseudo = [&packet[12..20], &[0, 17], &length(udp.len())].concat();
    let sum = match checksum(&[&pseudo, &udp]) {
        // Zero means "not computed".
        [0, 0] => [0xff, 0xff],
        sum => sum,
    };
    udp[6..8].copy_from_slice(&sum);
    packet.extend(udp);
    packet
}

/// RFC 1071; all parts but the last have an even length.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u32 = words.map(|w| u32::from(w[0]) << 8 | w.get(1).copied().map_or(0, u32::from)).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    (!(folded as u16)).to_be_bytes()
}

/// Lets SIGINT and SIGTERM wait for [`wait_for_end`]; to be called before any thread is started.
///
/// # Errors
/// None in practice.
pub fn hold_end_signals() -> io::Result<()> {
    sys::hold_end_signals()
}

/// Waits until SIGINT or SIGTERM comes.
///
/// # Errors
/// None in practice.
pub fn wait_for_end() -> io::Result<()> {
    sys::wait_for_end()
}

/// The listening socket a service manager hands down, if it hands down any. To be called once.
///
/// # Errors
/// It hands down more than one.
pub fn inherited_listener() -> io::Result<Option<UnixListener>> {
    let var = |key: &str| std::env::var(key).ok().and_then(|text| text.parse::<u32>().ok());
    if var("LISTEN_PID") != Some(std::process::id()) {
        return Ok(None);
    }
    match var("LISTEN_FDS") {
        None | Some(0) => Ok(None),
        Some(1) => Ok(Some(UnixListener::from(sys::first_inherited()))),
        Some(n) => Err(io::Error::other(format!("{n} sockets are handed down, one is expected"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_add_up() {
        let bytes = packet(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2), 68, 67, b"abc");
        assert_eq!((bytes.len(), &bytes[..4]), (31, &[0x45, 0x10, 0, 31][..]));
        assert_eq!(checksum(&[&bytes[..20]]), [0, 0]);
        let pseudo = [&bytes[12..20], &[0, 17, 0, 11]].concat();
        assert_eq!(checksum(&[&pseudo, &bytes[20..]]), [0, 0]);
        assert_eq!(&bytes[20..26], &[0, 68, 0, 67, 0, 11]);
    }
}
