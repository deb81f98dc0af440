//! The yardstick: a tunnel of the shape flannel's proxy has. One thread, one packet per system call, a list of
//! peers of which the one hit goes to the front; the same format, hops taken on both sides.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd as _;

use ipnet::Ipv4Net;

use crate::{Result, sys};

/// The first word that makes us this tunnel; then device, address with port, and pairs of subnet and peer.
pub const WORD: &str = "__plain-tunnel";

struct Peer {
    net: Ipv4Net,
    to: SocketAddrV4,
}

/// Is the tunnel; ends with an error alone.
pub fn run(words: &[String]) -> Result<()> {
    let [device, listen, pairs @ ..] = words else { return Err("device and address".into()) };
    let mut peers = Vec::new();
    for pair in pairs.chunks_exact(2) {
        peers.push(Peer { net: pair[0].parse()?, to: pair[1].parse()? });
    }
    let tun = sys::plain_tun(device)?;
    let socket = UdpSocket::bind(listen.parse::<SocketAddr>()?)?;
    socket.set_nonblocking(true)?;
    // The MTU of the device, as flannel has it.
    let mut buffer = vec![0; 1472];
    loop {
        sys::wait_for_either(tun.as_raw_fd(), socket.as_raw_fd())?;
        loop {
            let out = outward(&tun, &socket, &mut peers, &mut buffer)?;
            let into = inward(&tun, &socket, &mut buffer)?;
            if !out && !into {
                break;
            }
        }
    }
}

/// One packet from the device to the network; false if there is none.
fn outward(mut tun: &File, socket: &UdpSocket, peers: &mut [Peer], buffer: &mut [u8]) -> Result<bool> {
    let length = match tun.read(buffer) {
        Ok(length) => length,
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let packet = &mut buffer[..length];
    if length < 20 || packet[0] >> 4 != 4 {
        return Ok(true);
    }
    let to = Ipv4Addr::from([packet[16], packet[17], packet[18], packet[19]]);
    let Some(hit) = peers.iter().position(|peer| peer.net.contains(&to)) else { return Ok(true) };
    peers.swap(0, hit);
    if take_hop(packet) {
        // What the network does not take is lost.
        let _ = socket.send_to(packet, peers[0].to);
    }
    Ok(true)
}

/// One packet from the network to the device; false if there is none.
fn inward(mut tun: &File, socket: &UdpSocket, buffer: &mut [u8]) -> Result<bool> {
    let length = match socket.recv(buffer) {
        Ok(length) => length,
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
        Err(_) => return Ok(true),
    };
    let packet = &mut buffer[..length];
    if length >= 20 && take_hop(packet) {
        let _ = tun.write(packet);
    }
    Ok(true)
}

fn take_hop(packet: &mut [u8]) -> bool {
    if packet[8] <= 1 {
        return false;
    }
    packet[8] -= 1;
    let sum = u32::from(u16::from_be_bytes([packet[10], packet[11]])) + 0x100;
    let sum = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(sum as u16).to_be_bytes());
    true
}
