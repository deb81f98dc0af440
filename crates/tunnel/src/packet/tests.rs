//! Trains are cut and put together; what is damaged or nonsense does no harm.

use std::net::{Ipv4Addr, SocketAddr};

use model::Family;

use super::coalesce::Coalescer;
use super::header::{self, Header, ICMP, TCP, UDP};
use super::icmp::{Allowance, Reason, answer};
use super::outbox::{MESSAGES, Outbox};
use super::segment::Segments;
use super::testing::{Dice, Plan};
use super::vnet::{self, Gso, Vnet};

/// Puts packets together and cuts what comes out again. Gives the packets and how many calls they took.
fn through(packets: &[Vec<u8>], datagrams: bool) -> (Vec<Vec<u8>>, usize) {
    let mut arena = Vec::new();
    let mut coalescer = Coalescer::new(datagrams);
    let mut places = Vec::new();
    for packet in packets {
        places.push(arena.len()..arena.len() + packet.len());
        arena.extend_from_slice(packet);
        // Padding, as a slot of a receive buffer has it.
        arena.extend_from_slice(&[0xee; 13]);
    }
    for place in places {
        assert!(coalescer.push(&arena, place));
    }
    let (mut out, mut calls) = (Vec::new(), 0);
    for frame in coalescer.frames() {
        calls += 1;
        let vnet = Vnet::read(&frame.vnet).unwrap();
        let mut train = frame.head.to_vec();
        frame.pieces.iter().for_each(|piece| train.extend_from_slice(&arena[piece.clone()]));
        out.extend(cut(&vnet, train));
    }
    (out, calls)
}

fn cut(vnet: &Vnet, mut train: Vec<u8>) -> Vec<Vec<u8>> {
    let segments = Segments::new(vnet, &mut train).expect("a train of our own");
    let one = |number| {
        let mut packet = vec![0; segments.size(number)];
        segments.write(number, &mut packet);
        assert!(packet.len() <= segments.largest());
        packet
    };
    (0..segments.count()).map(one).collect()
}

/// Without what means nothing in a packet that must not be fragmented.
fn essence(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// A row of packets of one flow as a sender makes them.
fn row(family: Family, protocol: u8, count: usize, size: usize, last: usize) -> Vec<Vec<u8>> {
    let mut plan = Plan::new(family, protocol, Vec::new());
    plan.options = if protocol == TCP { vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2] } else { Vec::new() };
    let packet = |number: usize| {
        let length = if number + 1 == count { last } else { size };
        plan.payload = (0..length).map(|n| (n * 7 + number) as u8).collect();
        let packet = plan.packet();
        plan.sequence = plan.sequence.wrapping_add(length as u32);
        plan.id = plan.id.wrapping_add(1);
        packet
    };
    (0..count).map(packet).collect()
}

#[test]
fn a_row_of_packets_is_one_call_and_comes_out_as_it_was() {
    for (family, protocol, count, size, last, calls) in [
        (Family::V4, TCP, 40, 1420, 1420, 1),
        (Family::V4, TCP, 40, 1420, 1, 1),
        (Family::V4, TCP, 60, 1420, 1420, 2),
        (Family::V6, TCP, 40, 1400, 99, 1),
        (Family::V4, UDP, 64, 100, 100, 1),
        (Family::V4, UDP, 65, 100, 100, 2),
        (Family::V6, UDP, 10, 1000, 999, 1),
        (Family::V4, TCP, 3, 8, 8, 1),
        // A longer one begins a train of its own.
        (Family::V4, UDP, 3, 100, 101, 2),
        (Family::V4, TCP, 1, 1420, 1420, 1),
    ] {
        let packets = row(family, protocol, count, size, last);
        let (out, took) = through(&packets, true);
        assert_eq!(took, calls, "{family} {protocol} {count}");
        assert!(out == packets, "{family} {protocol} {count}");
    }
    assert_eq!(through(&row(Family::V4, UDP, 5, 100, 100), false).1, 5, "the device takes no datagrams");
}

#[test]
fn what_differs_does_not_get_on() {
    type Alter = fn(&mut Plan);
    let alters: [(&str, Alter); 10] = [
        ("hops", |p| p.ttl = 63),
        ("class", |p| p.tos = 1),
        ("window", |p| p.window += 1),
        ("options", |p| p.options = vec![1; 4]),
        ("congestion", |p| p.flags |= 0x40),
        ("the end", |p| p.flags |= 0x01),
        ("a gap", |p| p.sequence += 1),
        ("no payload", |p| p.payload.clear()),
        ("fragments allowed", |p| p.whole = false),
        ("another flow", |p| p.flow = 1),
    ];
    for (what, alter) in alters {
        let first = Plan::new(Family::V4, TCP, vec![1; 100]);
        let mut second = Plan { sequence: first.sequence + 100, id: first.id + 1, ..first.clone() };
        alter(&mut second);
        let third = Plan { sequence: first.sequence + 200, ..first.clone() };
        let packets = [first.packet(), second.packet(), third.packet()];
        let (out, calls) = through(&packets, true);
        assert!(calls >= 2, "{what}");
        assert!(out == packets, "{what}");
    }
    // Numbers that do not follow one another matter where there may be fragments.
    let mut plan = Plan { whole: false, ..Plan::new(Family::V4, UDP, vec![7; 50]) };
    let first = plan.packet();
    plan.id += 2;
    assert_eq!(through(&[first.clone(), plan.packet()], true).1, 2);
    plan.id -= 1;
    assert_eq!(through(&[first, plan.packet()], true).1, 1);
}

#[test]
fn damage_stays_what_it_is() {
    for at in [1, 8, 10, 15, 22, 30, 36, 52, 119] {
        let mut packets = row(Family::V4, TCP, 3, 100, 100);
        packets[1][at] ^= 0x10;
        let (out, calls) = through(&packets, true);
        assert!(out == packets, "byte {at}");
        assert!(calls > 1, "byte {at}");
    }
    let mut packets = row(Family::V4, UDP, 3, 100, 100);
    // No checksum is no statement, and no reason to make one.
    packets[1][26..28].fill(0);
    let (out, calls) = through(&packets, true);
    assert!(out == packets && calls == 3);
}

#[test]
fn any_mixture_of_flows_comes_out_whole_and_in_order() {
    for seed in 0..300 {
        let mut dice = Dice::new(seed);
        let mut flows: Vec<Plan> = (0..1 + dice.below(20))
            .map(|flow| {
                let family = if dice.once_in(3) { Family::V6 } else { Family::V4 };
                let protocol = [TCP, TCP, UDP, ICMP][dice.below(4) as usize];
                let whole = !dice.once_in(4);
                Plan {
                    flow: flow as u8,
                    whole,
                    sequence: dice.next() as u32,
                    ..Plan::new(family, protocol, Vec::new())
                }
            })
            .collect();
        let mut packets = Vec::new();
        let mut size = 1 + dice.below(1400) as usize;
        for _ in 0..dice.below(150) {
            let number = dice.below(flows.len() as u64) as usize;
            let burst = 1 + dice.below(8);
            for _ in 0..burst {
                let plan = &mut flows[number];
                if dice.once_in(10) {
                    size = 1 + dice.below(1400) as usize;
                }
                let length = if dice.once_in(9) { size.div_ceil(2) } else { size };
                plan.payload = dice.bytes(length);
                plan.flags =
                    0x10 | if dice.once_in(8) { 0x08 } else { 0 } | if dice.once_in(40) { 1 } else { 0 };
                let mut packet = plan.packet();
                plan.sequence = plan.sequence.wrapping_add(plan.payload.len() as u32);
                plan.id = plan.id.wrapping_add(if dice.once_in(20) { 5 } else { 1 });
                if dice.once_in(30) {
                    // Behind what says to which flow it belongs.
                    let start = if plan.family == Family::V4 { 24 } else { 44 };
                    let at = (start + dice.below(packet.len() as u64) as usize).min(packet.len() - 1);
                    packet[at] ^= 1 << dice.below(8);
                }
                packets.push(packet);
            }
        }
        let (out, calls) = through(&packets, !dice.once_in(3));
        assert!(calls <= packets.len() && out.len() == packets.len(), "seed {seed}");
        // By flow: flows may overtake one another.
        for plan in &flows {
            let of = |all: &[Vec<u8>]| -> Vec<Vec<u8>> {
                let start = if plan.family == Family::V4 { 20 } else { 40 };
                let mine = |p: &&Vec<u8>| {
                    Header::read(p).is_some_and(|r| r.family == plan.family && r.protocol == plan.protocol)
                        && p[start + 3..=start + 3] == [plan.flow]
                };
                all.iter().filter(mine).map(|p| essence(p)).collect()
            };
            assert!(plan.protocol == ICMP || of(&out) == of(&packets), "seed {seed}, flow {}", plan.flow);
        }
        let sorted = |all: &[Vec<u8>]| {
            let mut all: Vec<_> = all.iter().map(|p| essence(p)).collect();
            all.sort();
            all
        };
        assert!(sorted(&out) == sorted(&packets), "seed {seed}");
    }
}

#[test]
fn nonsense_does_no_harm() {
    for seed in 0..20_000 {
        let mut dice = Dice::new(seed);
        let mut packet = match dice.below(3) {
            0 => {
                let length = dice.below(200) as usize;
                dice.bytes(length)
            }
            _ => {
                let family = if dice.once_in(2) { Family::V6 } else { Family::V4 };
                let protocol = [TCP, UDP, ICMP, 58][dice.below(4) as usize];
                let length = dice.below(100) as usize;
                let payload = dice.bytes(length);
                Plan::new(family, protocol, payload).packet()
            }
        };
        for _ in 0..dice.below(4) {
            let at = dice.below(packet.len().min(60) as u64) as usize;
            if let Some(byte) = packet.get_mut(at) {
                *byte = dice.next() as u8;
            }
        }
        packet.truncate(packet.len() - dice.below(packet.len().min(8) as u64 + 1) as usize);
        if let Some(read) = Header::read(&packet) {
            assert!(read.header <= read.length && read.length <= packet.len());
            assert!(read.transport(&packet).is_none_or(|t| read.header + t <= read.length));
        }
        if let Some(answer) = answer(&packet, Ipv4Addr::new(10, 244, 1, 0), Reason::NoRoute) {
            assert!(answer.len() <= 28 + 60 + 8 && Header::read(&answer).is_some());
        }
        let mut coalescer = Coalescer::new(true);
        let twice = [packet.as_slice(), &packet].concat();
        coalescer.push(&twice, 0..packet.len());
        coalescer.push(&twice, packet.len()..twice.len());
        for frame in coalescer.frames() {
            assert!(frame.pieces.iter().all(|piece| piece.end <= twice.len()));
        }
        header::take_hop(&mut packet);
        let header = dice.bytes(vnet::LENGTH);
        let mut vnet = Vnet::read(&header).unwrap();
        vnet.gso = [Gso::None, Gso::Tcp4, Gso::Tcp6, Gso::Udp, Gso::Other(3)][dice.below(5) as usize];
        (vnet.start, vnet.offset) = (vnet.start % 200, vnet.offset % 40);
        let length = packet.len();
        if let Some(segments) = Segments::new(&vnet, &mut packet) {
            assert!(segments.largest() <= length);
            for number in 0..segments.count() {
                segments.write(number, &mut vec![0; segments.size(number)]);
            }
        }
    }
}

#[test]
fn hops_are_taken_and_the_checksum_stays_right() {
    for (ttl, id) in (0..=255u8).flat_map(|ttl| [0, 1, 0x7fff, 0xffff].map(|id| (ttl, id))) {
        let mut packet = Plan { ttl, id, ..Plan::new(Family::V4, UDP, vec![1]) }.packet();
        let taken = header::take_hop(&mut packet);
        assert_eq!((taken, packet[8]), if ttl > 1 { (true, ttl - 1) } else { (false, ttl) });
        let whole = Plan { ttl: packet[8], id, ..Plan::new(Family::V4, UDP, vec![1]) }.packet();
        assert_eq!(packet, whole, "ttl {ttl} id {id}");
    }
}

#[test]
fn a_checksum_left_to_the_device_is_completed() {
    for (family, protocol) in [(Family::V4, TCP), (Family::V4, UDP), (Family::V6, UDP)] {
        let whole = Plan::new(family, protocol, vec![9; 33]).packet();
        let read = Header::read(&whole).unwrap();
        let mut packet = whole.clone();
        let at = read.header + read.checksum_offset();
        let pseudo = super::checksum::pseudo(&whole[read.addresses()], protocol, read.length - read.header);
        packet[at..at + 2].copy_from_slice(&super::checksum::fold(pseudo).to_be_bytes());
        let (start, offset) = (read.header as u16, read.checksum_offset() as u16);
        let vnet = Vnet { flags: vnet::NEEDS_CHECKSUM, start, offset, ..Vnet::default() };
        assert_eq!(cut(&vnet, packet), [whole]);
    }
}

#[test]
fn who_is_answered_and_how() {
    let from = Ipv4Addr::new(10, 244, 1, 0);
    let udp = Plan::new(Family::V4, UDP, vec![5; 40]).packet();
    let got = answer(&udp, from, Reason::NoRoute).unwrap();
    let read = Header::read(&got).unwrap();
    assert!(header::is_sound(&got, &read));
    assert_eq!((read.length, read.protocol), (20 + 8 + 28, ICMP));
    assert_eq!((&got[12..16], &got[16..20]), (&[10, 244, 1, 0][..], &[10, 244, 1, 7][..]));
    assert_eq!((&got[20..22], &got[28..]), (&[3, 0][..], &udp[..28]));
    assert_eq!(answer(&udp, from, Reason::Hops).unwrap()[20..22], [11, 0]);
    type Alter = fn(&mut Vec<u8>);
    let alters: [(&str, bool, Alter); 8] = [
        ("as it is", true, |_| {}),
        ("a later fragment", false, |p| p[7] = 5),
        ("the first fragment", true, |p| p[6] = 0x20),
        ("to many", false, |p| p[16] = 224),
        ("from nobody", false, |p| p[12..16].fill(0)),
        ("an echo request", true, |p| (p[9], p[20]) = (ICMP, 8)),
        ("an error of ICMP", false, |p| (p[9], p[20]) = (ICMP, 3)),
        ("cut", false, |p| p.truncate(30)),
    ];
    for (what, answered, alter) in alters {
        let mut packet = udp.clone();
        alter(&mut packet);
        assert_eq!(answer(&packet, from, Reason::NoRoute).is_some(), answered, "{what}");
    }
    let mut allowance = Allowance::new();
    let count = |allowance: &mut Allowance, now| (0..1000).filter(|_| allowance.take(now)).count();
    assert_eq!(count(&mut allowance, 5), 100);
    assert_eq!(count(&mut allowance, 505), 50);
    assert_eq!(count(&mut allowance, 60_000), 100);
}

#[test]
fn messages_hold_what_one_call_can_send() {
    let [one, two]: [SocketAddr; 2] = ["192.0.2.1:8285", "192.0.2.2:8285"].map(|a| a.parse().unwrap());
    let mut outbox = Outbox::new(1 << 20);
    // Same size: one message; a shorter one ends it; another peer begins one.
    for (to, length) in [(one, 100), (one, 100), (one, 60), (one, 60), (two, 60), (two, 61), (two, 61)] {
        outbox.room(to, length).unwrap().fill(length as u8);
    }
    let (messages, bytes) = outbox.messages();
    let shape: Vec<_> = messages.iter().map(|m| (m.to, m.segment, m.count())).collect();
    assert_eq!(shape, [(one, 100, 3), (one, 60, 1), (two, 60, 1), (two, 61, 2)]);
    assert_eq!(bytes.len(), 100 + 100 + 60 + 60 + 60 + 61 + 61);
    assert_eq!(messages[0].datagrams().collect::<Vec<_>>(), [0..100, 100..200, 200..260]);
    outbox.clear();
    // At most 64 datagrams and 65,507 bytes.
    assert!((0..65).all(|_| outbox.room(one, 10).is_some()));
    assert!((0..45).all(|_| outbox.room(one, 1472).is_some()));
    let counts: Vec<_> = outbox.messages().0.iter().map(|m| m.count()).collect();
    assert_eq!(counts, [64, 1, 44, 1]);
    outbox.clear();
    // A full one says so, and a datagram that is too long has no room anywhere.
    let mut sent = 0;
    while outbox.room(if sent % 2 == 0 { one } else { two }, 10).is_some() {
        sent += 1;
    }
    assert!(sent == MESSAGES && outbox.is_nearly_full());
    outbox.clear();
    assert!(outbox.room(one, 65_508).is_none() && outbox.room(one, 0).is_none() && outbox.is_empty());
}
