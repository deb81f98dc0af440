//! Decoders of packets: what anybody on the wire can send, what a device hands over, what a daemon answers.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use gotatun::noise::Tunn;
use gotatun::noise::index_table::IndexTable;
use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::packet::Packet;
use gotatun::x25519::{PublicKey, StaticSecret};
use model::cni::dhcp::Message;
use tunnel::packet::coalesce::Coalescer;
use tunnel::packet::header::{self, Header};
use tunnel::packet::icmp::{self, Reason};
use tunnel::packet::segment::Segments;
use tunnel::packet::vnet::{self, Vnet};
use tunnel::peers::Table;

/// Datagrams of the backend udp: two bytes of length, then so many of a datagram, again and again. They go
/// through everything the tunnel does with them but the device.
pub fn udp_datagram(bytes: &[u8]) {
    let mut arena = bytes.to_vec();
    let mut coalescer = Coalescer::new(true);
    let peers = [("10.244.2.0/24", "192.0.2.12:8285"), ("10.244.3.0/24", "192.0.2.13:8285")];
    let peers = peers.iter().filter_map(|(net, to)| Some((net.parse().ok()?, to.parse().ok()?))).collect();
    let Ok(network) = "10.244.0.0/16".parse() else { return };
    let table = Table::new(&peers, network);
    let mut at = 0;
    while let Some(length) = arena.get(at..at + 2) {
        let length = usize::from(u16::from_le_bytes([length[0], length[1]])) % 2048;
        let datagram = at + 2..(at + 2 + length).min(arena.len());
        at = datagram.end.max(at + 2);
        let packet = &mut arena[datagram.clone()];
        let Some(read) = Header::read(packet) else { continue };
        assert!(read.length <= packet.len() && read.header <= read.length, "a length outside the packet");
        let _ = (header::is_sound(packet, &read), header::ends(packet), read.transport(packet));
        if let (Some(source), Some(sender)) = (header::v4(packet, 12), table.sender([192, 0, 2, 12].into())) {
            let _ = sender.may_send(source);
        }
        let _ = icmp::answer(packet, [10, 244, 1, 0].into(), Reason::Hops);
        if header::take_hop(packet) {
            coalescer.push(&arena, datagram);
        }
    }
    for frame in coalescer.frames() {
        let _ = format!("{frame:?}");
    }
}

/// What a device with offloads hands over: its header, then a packet, cut as asked.
pub fn tun_frame(bytes: &[u8]) {
    let Some(read) = Vnet::read(bytes) else { return };
    let mut packet = bytes[vnet::LENGTH.min(bytes.len())..].to_vec();
    let Some(segments) = Segments::new(&read, &mut packet) else { return };
    let mut room = vec![0; segments.largest()];
    for number in 0..segments.count() {
        let size = segments.size(number);
        assert!(size <= room.len(), "a segment larger than the largest");
        segments.write(number, &mut room[..size]);
    }
}

/// Packets of WireGuard from anybody, in front of the check of their first code and behind it.
pub fn wireguard_data(bytes: &[u8]) {
    static KEYS: OnceLock<(StaticSecret, PublicKey, PublicKey)> = OnceLock::new();
    let (own, public, peer) = KEYS.get_or_init(|| {
        let own = StaticSecret::from([7; 32]);
        let public = PublicKey::from(&own);
        (own, public, PublicKey::from(&StaticSecret::from([9; 32])))
    });
    let limiter = Arc::new(RateLimiter::new(public, 100));
    let from = SocketAddr::from(([192, 0, 2, 12], 51820));
    let _ = limiter.verify_packet(from, Packet::copy_from(bytes)).is_ok();
    let Ok(packet) = Packet::copy_from(bytes).try_into_wg() else { return };
    let mut tunnel = Tunn::new(own.clone(), *peer, None, None, IndexTable::from_os_rng(), limiter);
    let _ = tunnel.handle_incoming_packet(packet);
}

pub fn dhcp(bytes: &[u8]) {
    if let Some(message) = Message::decode(bytes) {
        let _ = format!("{message:?}");
    }
}

/// charon's answers; the decoder is the agent's own and not public: its file is taken as it is.
#[expect(dead_code, unreachable_pub, reason = "only the decoder is of interest")]
#[path = "../../node/src/helpers/charon/wire.rs"]
mod wire;

pub fn vici(bytes: &[u8]) {
    if let Ok(packet) = wire::Packet::decode(bytes)
        && let Ok(again) = packet.encode()
    {
        let again = wire::Packet::decode(&again[4..]);
        assert!(again.is_ok_and(|again| again == packet), "what was written is read as it was");
    }
}
