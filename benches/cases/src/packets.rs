//! The tunnels' packets: sums, trains cut and put together, and who is where.

// Packets made the plain way, as the room's own tests make them.
#[expect(dead_code, reason = "not all that tests want is wanted here")]
#[path = "../../../crates/tunnel/src/packet/testing.rs"]
mod testing;

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use model::Family;
use testing::Plan;
use tunnel::packet::coalesce::Coalescer;
use tunnel::packet::header::{Header, TCP, UDP};
use tunnel::packet::outbox::Outbox;
use tunnel::packet::segment::Segments;
use tunnel::packet::vnet::{Gso, Vnet};
use tunnel::packet::{checksum, header};
use tunnel::peers::{Peers, Table};

use crate::cluster::{conf, lease};
use crate::{Row, Work};

/// Bytes of payload in a packet of a pod with a full MTU.
const FULL: usize = 1398;
/// Packets of a train that has as many bytes as fit.
const TRAIN: usize = 46;
/// Datagrams of a batch.
const BATCH: usize = 64;
/// Addresses that are looked up.
const LOOKUPS: usize = 1_000;

pub const ROWS: &[Row] = &[
    Row { what: "tunnel/checksum", sizes: &[64, 1_448, 65_536], gives: |_| 100, make: summed },
    Row {
        what: "tunnel/segment/tcp",
        sizes: &[TRAIN],
        gives: |n| n,
        make: |n| cut(Family::V4, TCP, n, FULL),
    },
    Row {
        what: "tunnel/segment/tcp6",
        sizes: &[TRAIN],
        gives: |n| n,
        make: |n| cut(Family::V6, TCP, n, FULL),
    },
    Row { what: "tunnel/segment/udp", sizes: &[BATCH], gives: |n| n, make: |n| cut(Family::V4, UDP, n, 64) },
    Row { what: "tunnel/coalesce/tcp", sizes: &[TRAIN], gives: |_| 1, make: |n| joined(TCP, n, FULL, 1) },
    Row { what: "tunnel/coalesce/udp", sizes: &[BATCH], gives: |_| 1, make: |n| joined(UDP, n, 64, 1) },
    // Eight connections at once, packet by packet.
    Row { what: "tunnel/coalesce/mixed", sizes: &[48], gives: |_| 8, make: |n| joined(TCP, n, FULL, 8) },
    Row { what: "tunnel/hop", sizes: &[BATCH], gives: |n| n, make: hops },
    Row { what: "tunnel/outbox", sizes: &[BATCH], gives: |_| 1, make: gathered },
    Row { what: "tunnel/peers/table", sizes: &[10_000], gives: |_| 1, make: table_made },
    Row { what: "tunnel/peers/route", sizes: &[100, 10_000], gives: |_| LOOKUPS, make: routed },
    Row { what: "tunnel/peers/sender", sizes: &[100, 10_000], gives: |_| LOOKUPS, make: admitted },
];

/// A hundred sums of so many bytes.
fn summed(size: usize) -> Work {
    let data: Vec<u8> = (0..size).map(|n| (n * 7) as u8).collect();
    let want = checksum::fold(checksum::sum(&data));
    Box::new(move || (0..100).filter(|_| checksum::fold(checksum::sum(black_box(&data))) == want).count())
}

/// Packets of one flow as a sender makes them.
fn row(family: Family, protocol: u8, flow: u8, count: usize, size: usize) -> Vec<Vec<u8>> {
    let mut plan = Plan::new(family, protocol, (0..size).map(|n| (n * 7) as u8).collect());
    plan.flow = flow;
    let packet = |_| {
        let packet = plan.packet();
        plan.sequence = plan.sequence.wrapping_add(size as u32);
        plan.id = plan.id.wrapping_add(1);
        packet
    };
    (0..count).map(packet).collect()
}

/// A train as the kernel hands it over, cut into packets.
fn cut(family: Family, protocol: u8, count: usize, size: usize) -> Work {
    let mut train = Plan::new(family, protocol, vec![7; count * size]).packet();
    let gso = match (protocol, family) {
        (UDP, _) => Gso::Udp,
        (_, Family::V4) => Gso::Tcp4,
        (_, Family::V6) => Gso::Tcp6,
    };
    let vnet = Vnet { gso, size: size as u16, ..Vnet::default() };
    let mut room = vec![0; size + 100];
    Box::new(move || {
        let Some(segments) = Segments::new(&vnet, &mut train) else { return 0 };
        for number in 0..segments.count() {
            segments.write(number, &mut room[..segments.size(number)]);
        }
        segments.count()
    })
}

/// Packets of so many flows, one of each in turns, put together.
fn joined(protocol: u8, count: usize, size: usize, flows: u8) -> Work {
    let rows: Vec<_> =
        (0..flows).map(|flow| row(Family::V4, protocol, flow, count / usize::from(flows), size)).collect();
    let (mut arena, mut places) = (Vec::new(), Vec::new());
    for number in 0..count / usize::from(flows) {
        for packet in rows.iter().map(|row| &row[number]) {
            places.push(arena.len()..arena.len() + packet.len());
            arena.extend_from_slice(packet);
        }
    }
    let mut coalescer = Coalescer::new(true);
    Box::new(move || {
        coalescer.clear();
        for place in &places {
            coalescer.push(&arena, place.clone());
        }
        coalescer.frames().count()
    })
}

/// Headers read, and a hop taken from each.
fn hops(size: usize) -> Work {
    let mut packets = row(Family::V4, UDP, 0, size, 64);
    Box::new(move || {
        let take = |packet: &mut Vec<u8>| {
            packet[8] = 64;
            Header::read(packet).is_some_and(|_| header::take_hop(packet))
        };
        packets.iter_mut().map(take).filter(|taken| *taken).count()
    })
}

/// Datagrams for one peer, which leave in one call.
fn gathered(size: usize) -> Work {
    let packets = row(Family::V4, UDP, 0, size, 64);
    let to = SocketAddr::from(([172, 16, 0, 2], 8285));
    let mut outbox = Outbox::new(1 << 18);
    Box::new(move || {
        outbox.clear();
        for packet in &packets {
            if let Some(room) = outbox.room(to, packet.len()) {
                room.copy_from_slice(packet);
            }
        }
        outbox.messages().0.len()
    })
}

fn peers(size: usize) -> Peers {
    let peer = |n| {
        let lease = lease("udp", n, 0);
        Some((lease.subnets.v4?, SocketAddrV4::new(lease.attrs.public_ip?, 8285)))
    };
    (0..size).filter_map(peer).collect()
}

fn table(size: usize) -> Table {
    Table::new(&peers(size), conf("udp").network.unwrap_or_default())
}

fn table_made(size: usize) -> Work {
    let (peers, network) = (peers(size), conf("udp").network.unwrap_or_default());
    let first = lease("udp", 0, 0).subnets.v4.unwrap_or_default().network();
    Box::new(move || Table::new(&peers, network).route(first).is_some().into())
}

/// Pods of many nodes, and their outer addresses, in no order.
fn pods(size: usize) -> Vec<(Ipv4Addr, Ipv4Addr)> {
    let pod = |n: usize| {
        let lease = lease("udp", n * 7919 % size, 0);
        let net = lease.subnets.v4.unwrap_or_default().network();
        Some((Ipv4Addr::from(u32::from(net) + 9), lease.attrs.public_ip?))
    };
    (0..LOOKUPS).filter_map(pod).collect()
}

fn routed(size: usize) -> Work {
    let (table, pods) = (table(size), pods(size));
    Box::new(move || pods.iter().filter(|(pod, _)| table.route(*pod).is_some()).count())
}

fn admitted(size: usize) -> Work {
    let (table, pods) = (table(size), pods(size));
    let may = move |(pod, outer): &&(Ipv4Addr, Ipv4Addr)| {
        table.sender(*outer).is_some_and(|sender| sender.may_send(*pod))
    };
    Box::new(move || pods.iter().filter(&may).count())
}
