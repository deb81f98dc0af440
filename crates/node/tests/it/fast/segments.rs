//! Segments of TCP made byte by byte, and what arrives of them three ways: taken apart in the uplink's driver, later, and by the
//! tunnel in user space (decision 0239).

use std::net::SocketAddrV4;

use super::early::{Line, can_early, early, in_driver};
use super::packets::{Capture, send, sum};
use super::{Two, counted};
use crate::world::Host;

/// A packet of a connection, not one of its own packets.
#[derive(Clone)]
pub struct Segment {
    tos: u8,
    ttl: u8,
    fragment: u16,
    options: Vec<u8>,
    flags: u8,
    tcp_options: Vec<u8>,
    payload: Vec<u8>,
    /// Added to the right checksum.
    wrong: u16,
}

/// Sequence number no connection here gets as far as.
const SEQ: [u8; 4] = [0x11, 0x22, 0x33, 0x44];

impl Segment {
    pub fn bytes(&self, [from, to]: [SocketAddrV4; 2]) -> Vec<u8> {
        let (header, tcp_header) = (20 + self.options.len(), 20 + self.tcp_options.len());
        let mut tcp = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
        tcp.extend([SEQ, [0, 0, 0, 1], [(tcp_header as u8) << 2, self.flags, 1, 0], [0; 4]].concat());
        tcp.extend(&self.tcp_options);
        tcp.extend(&self.payload);
        let length = (tcp.len() as u16).to_be_bytes();
        let pseudo = [&from.ip().octets()[..], &to.ip().octets(), &[0, 6], &length].concat();
        let check = sum(&tcp, u32::from(!sum(&pseudo, 0))).wrapping_add(self.wrong);
        tcp[16..18].copy_from_slice(&check.to_be_bytes());
        let total = ((header + tcp.len()) as u16).to_be_bytes();
        let mut ip = vec![
            0x40 | (header / 4) as u8,
            self.tos,
            total[0],
            total[1],
            0x12,
            0x34,
            0,
            0,
            self.ttl,
            6,
            0,
            0,
        ];
        ip[6..8].copy_from_slice(&self.fragment.to_be_bytes());
        ip.extend([from.ip().octets(), to.ip().octets()].concat());
        ip.extend(&self.options);
        [ip, tcp].concat()
    }
}

pub fn plain() -> Segment {
    Segment {
        tos: 0,
        ttl: 64,
        fragment: 0x4000,
        options: Vec::new(),
        flags: 0x18,
        tcp_options: Vec::new(),
        payload: b"a question".to_vec(),
        wrong: 0,
    }
}

/// Every kind of packet that is treated in a way of its own; and whether one like it is taken apart early.
fn rows() -> Vec<(&'static str, bool, Segment)> {
    let of = |change: &dyn Fn(&mut Segment)| {
        let mut segment = plain();
        change(&mut segment);
        segment
    };
    let times = vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
    let mut rows = vec![
        ("plain", true, plain()),
        ("may be cut", true, of(&|s| s.fragment = 0)),
        ("nothing in it", true, of(&|s| s.payload = Vec::new())),
        ("timestamps", true, of(&|s| s.tcp_options = times.clone())),
        ("urgent", true, of(&|s| s.flags = 0x38)),
        ("as long as fits", true, of(&|s| s.payload = vec![0x5a; 1472 - 40])),
        ("a byte too long", false, of(&|s| s.payload = vec![0x5a; 1473 - 40])),
        ("first fragment", false, of(&|s| (s.payload, s.fragment) = (vec![7; 104 - 20], 0x2000))),
        ("last fragment", false, of(&|s| s.fragment = 9)),
        ("two hops left", false, of(&|s| s.ttl = 2)),
        ("four hops left", false, of(&|s| s.ttl = 4)),
        ("five hops left", true, of(&|s| s.ttl = 5)),
        ("most hops", true, of(&|s| s.ttl = 255)),
        ("ECN 1", true, of(&|s| s.tos = 1)),
        ("ECN 0", true, of(&|s| s.tos = 2)),
        ("congestion on the way", true, of(&|s| s.tos = 3)),
        ("expedited", false, of(&|s| s.tos = 0xb8)),
        ("an option", false, of(&|s| s.options = vec![1, 1, 1, 0])),
        ("wrong checksum", false, of(&|s| s.wrong = 1)),
        ("it begins", false, of(&|s| s.flags = 2)),
        ("it ends", false, of(&|s| s.flags = 0x11)),
        ("it is broken off", false, of(&|s| s.flags = 4)),
    ];
    // What is summed, in steps of its own length each.
    for length in [1, 2, 3, 5, 511, 512, 513, 1023] {
        rows.push(("of some length", true, of(&|s| s.payload = vec![length as u8; length])));
    }
    rows
}

/// How often a row is sent.
const SENT: usize = 6;

/// What arrives of each row: frames, without what is another connection's.
fn arrive(two: &Two, early: Option<&Host>) -> Vec<(&'static str, Vec<String>)> {
    let play = |(row, is_early, segment): (&'static str, bool, Segment)| {
        let mut line = Line::new(&two.pods[0], &two.pods[1]);
        line.round();
        if early.is_some() {
            line.until_early(&two.world.hosts[1..]);
        }
        let before = early.map_or(0, |host| counted(host, "early_frames"));
        let ends = line.ends();
        let capture = Capture::start(&two.pods[1].netns);
        // The first of them may find that nothing has come for long.
        let sent = send(&two.pods[0].netns, &segment.bytes(ends), *ends[1].ip(), SENT);
        let own = |frame: &[u8]| {
            let header = frame.get(14).map_or(0, |first| usize::from(first & 0xf) * 4);
            let to = frame.get(30..34) == Some(&ends[1].ip().octets());
            let ours = frame.get(23) == Some(&6) && frame.get(18..20) == Some(&[0x12, 0x34]);
            (to && ours).then_some(14 + header)
        };
        let seen = std::cell::Cell::new(0);
        let frames = capture.until(|frame| {
            seen.set(seen.get() + usize::from(own(frame).is_some()));
            seen.get() == SENT
        });
        if let Some(host) = early {
            let taken = counted(host, "early_frames") - before;
            // An acknowledgement of the connection itself may be late and among them.
            assert_eq!(taken > SENT as u64 / 2, is_early, "{row}: {taken} of {SENT}, {sent:?}");
        }
        let told = |frame: &Vec<u8>| {
            let tcp = own(frame)?;
            let mut frame = frame.clone();
            let right = if sum(&frame[14..tcp], 0) == 0 { "right" } else { "wrong" };
            let pseudo = [&frame[26..34], &[0, 6], &((frame.len() - tcp) as u16).to_be_bytes()].concat();
            let whole = sum(&frame[tcp..], u32::from(!sum(&pseudo, 0))) == 0;
            // Ports are another connection's each time, and so is the checksum.
            frame[tcp..tcp + 4].fill(0);
            if let Some(check) = frame.get_mut(tcp + 16..tcp + 18) {
                check.fill(0);
            }
            Some(format!("{right}, {}: {frame:02x?}", if whole { "whole" } else { "damaged" }))
        };
        (row, frames.iter().filter_map(told).collect())
    };
    rows().into_iter().map(play).collect()
}

#[test]
fn every_segment_arrives_as_without() {
    if !can_early("every_segment_arrives_as_without") {
        return;
    }
    let mut two = early();
    let with = arrive(&two, Some(&two.world.hosts[1]));
    two.again_in("on", &[("LODEN_FASTPATH_XDP", "off")]);
    // Nobody asks for it, nothing is said of it.
    for host in &two.world.hosts {
        assert_eq!(host.status_json().1["fast_path"]["early"], serde_json::Value::Null);
        let text = host.status(&[]).1;
        assert!(text.contains("fast path") && !text.contains("XDP"), "{text}");
    }
    assert_eq!(two.world.hosts.iter().filter_map(in_driver).count(), 0);
    let later = arrive(&two, None);
    two.again("off");
    let slow = arrive(&two, None);
    for ((with, later), slow) in with.iter().zip(&later).zip(&slow) {
        assert_eq!(with, later, "in the driver, and later");
        assert_eq!(with, slow, "in the driver, and by the tunnel");
    }
    assert_eq!(with[0].1.len(), SENT, "{with:?}");
}
