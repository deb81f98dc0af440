use std::net::IpAddr;

use super::filter::{self, BARE, Pair, Ports};
use super::packet::{self, Key, Packet, Wrap};
use super::*;

fn ports() -> Ports {
    Ports { vxlan: vec![8472], udp: vec![8285] }
}

fn ip(from: &str, to: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let mut bytes = Vec::new();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            bytes.extend([0x45, 0]);
            bytes.extend((20 + payload.len() as u16).to_be_bytes());
            bytes.extend([0, 7, 0x40, 0, 64, protocol, 0, 0]);
            bytes.extend(from.octets());
            bytes.extend(to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            bytes.extend([0x60, 0, 0, 0]);
            bytes.extend((payload.len() as u16).to_be_bytes());
            bytes.extend([protocol, 64]);
            bytes.extend(from.octets());
            bytes.extend(to.octets());
        }
        _ => unreachable!("one family"),
    }
    bytes.extend(payload);
    bytes
}

fn ethernet(packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend(if packet[0] >> 4 == 6 { [0x86, 0xdd] } else { [8, 0] });
    frame.extend(packet);
    frame
}

fn udp(port: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = 40_000u16.to_be_bytes().to_vec();
    bytes.extend(port.to_be_bytes());
    bytes.extend((8 + data.len() as u16).to_be_bytes());
    bytes.extend([0x12, 0x34]);
    bytes.extend(data);
    bytes
}

fn vxlan(frame: &[u8]) -> Vec<u8> {
    udp(8472, &[&[8, 0, 0, 0, 0, 0, 5, 0], frame].concat())
}

fn tcp(sequence: u32, data: usize) -> Vec<u8> {
    let mut bytes = vec![0x9c, 0x40, 0, 80];
    bytes.extend(sequence.to_be_bytes());
    bytes.extend([0, 0, 0, 0, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
    bytes.resize(20 + data, 7);
    bytes
}

const ECHO: [u8; 12] = [8, 0, 0, 0, 0, 7, 0, 3, 1, 2, 3, 4];

/// Classic BPF as Documentation/networking/filter.rst has it, as far as we use it.
fn runs(program: &[lab::walk::Instruction], frame: &[u8], hardware: u16) -> bool {
    let (mut at, mut a) = (0, 0u32);
    loop {
        let i = program[at];
        let load = |bytes: usize| {
            let k = i.k as usize;
            frame.get(k..k + bytes).map(|b| b.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
        };
        at += 1;
        match i.code {
            0x20 if i.k == 0xffff_f01c => a = u32::from(hardware),
            0x20 | 0x28 | 0x30 => match load([4, 2, 1][usize::from(i.code - 0x20) / 8]) {
                Some(value) => a = value,
                None => return false,
            },
            0x74 => a >>= i.k,
            0x05 => at += i.k as usize,
            0x15 => at += usize::from(if a == i.k { i.jt } else { i.jf }),
            0x06 => return i.k > 0,
            other => panic!("{other:#x}"),
        }
    }
}

#[test]
fn filter_and_reading_find_the_same() {
    let (a, b, c) = ("10.244.1.7", "10.244.2.9", "10.244.3.3");
    let (a6, b6) = ("fd00::1:7", "fd00::2:9");
    let pair = |from: &str, to: &str| Pair { from: from.parse().ok(), to: to.parse().unwrap() };
    let pairs = [pair(a, b), pair(a6, b6)];
    let program = filter::program(&pairs, &ports());
    assert!(program.len() <= filter::MOST, "{}", program.len());
    let outer = |protocol, payload: &[u8]| ip("192.0.2.11", "192.0.2.12", protocol, payload);
    let outer6 = |protocol, payload: &[u8]| ip("2001:db8::11", "2001:db8::12", protocol, payload);
    let echo = ip(a, b, 1, &ECHO);
    let echo6 = ip(b6, a6, 58, &ECHO);
    for (what, packet, want) in [
        ("plain", echo.clone(), Some(vec![])),
        ("the answer", ip(b, a, 1, &ECHO), Some(vec![])),
        ("IPv6", echo6.clone(), Some(vec![])),
        ("somebody else's", ip(a, c, 1, &ECHO), None),
        ("from somebody else", ip(c, b, 1, &ECHO), None),
        ("VXLAN", outer(17, &vxlan(&ethernet(&echo))), Some(vec![Wrap::Vxlan(5)])),
        ("VXLAN over IPv6", outer6(17, &vxlan(&ethernet(&echo6))), Some(vec![Wrap::Vxlan(5)])),
        ("IPv6 in VXLAN", outer(17, &vxlan(&ethernet(&echo6))), Some(vec![Wrap::Vxlan(5)])),
        ("another's in VXLAN", outer(17, &vxlan(&ethernet(&ip(c, b, 1, &ECHO)))), None),
        ("VXLAN to another port", outer(17, &udp(4789, &vxlan(&ethernet(&echo))[8..])), None),
        ("UDP", outer(17, &udp(8285, &echo)), Some(vec![Wrap::Udp(8285)])),
        ("IP in IP", outer(4, &echo), Some(vec![Wrap::Ip])),
        ("IPv6 in IP", outer(41, &echo6), Some(vec![Wrap::Ip])),
        ("ESP", outer(50, &echo), None),
    ] {
        let wanted = |x: IpAddr, y: IpAddr| {
            pairs.iter().any(|p| (Some(x), y) == (p.from, p.to) || (Some(y), x) == (p.from, p.to))
        };
        let found = packet::find(&packet, &ports(), &wanted);
        assert_eq!(found.map(|found| found.wraps), want, "{what}");
        assert_eq!(runs(&program, &ethernet(&packet), 1), want.is_some(), "{what}, filter");
        for bare in BARE {
            assert_eq!(runs(&program, &packet, bare), want.is_some(), "{what}, filter, {bare}");
        }
        for end in 0..packet.len() {
            let _ = packet::find(&packet[..end], &ports(), &wanted);
            runs(&program, &packet[..end], 1);
        }
    }
    let any = filter::program(&[Pair { from: None, to: b.parse().unwrap() }], &ports());
    assert!(runs(&any, &ethernet(&ip(c, b, 1, &ECHO)), 1) && !runs(&any, &ethernet(&ip(a, c, 1, &ECHO)), 1));
}

fn read(bytes: &[u8]) -> Packet {
    packet::find(bytes, &ports(), &|_, _| true).unwrap()
}

#[test]
fn a_packet_is_known_again_whatever_a_hop_changes() {
    let sent = ip("10.0.0.1", "10.0.0.2", 17, &udp(53, b"ask"));
    let key = |at: &[(usize, u8)]| {
        let mut changed = sent.clone();
        at.iter().for_each(|(at, value)| changed[*at] = *value);
        read(&changed).key
    };
    let known = key(&[]);
    for (what, changed, same) in [
        ("TTL and header checksum", &[(8, 63), (10, 9), (11, 9)][..], true),
        ("DSCP and ECN", &[(1, 3)], true),
        ("UDP checksum", &[(26, 9), (27, 9)], true),
        ("identification", &[(5, 8)], false),
        ("payload", &[(28, b'A')], false),
        ("port", &[(23, 54)], false),
        ("destination", &[(19, 3)], false),
    ] {
        assert_eq!(key(changed) == known, same, "{what}");
    }
    // Ethernet fills short frames up.
    let padded = [&sent[..], &[0; 20]].concat();
    assert_eq!((read(&padded).key, read(&padded).bytes), (known, sent.len()));
    assert_eq!(read(&ip("10.0.0.1", "10.0.0.2", 1, &ECHO)).what, "icmp echo request seq 3");
    let data = read(&ip("10.0.0.1", "10.0.0.2", 6, &tcp(100, 50)));
    assert_eq!((data.range, data.what.as_str()), ((100, 50), "tcp 40000 > 80 [P.] seq 100 length 50"));
    assert!(matches!(data.key, Key::Stream(_)));
    assert!(matches!(read(&ip("10.0.0.1", "10.0.0.2", 6, &tcp(100, 0))).key, Key::Whole(_)));
}

#[test]
fn ranges_are_modulo_two_to_the_32() {
    for (a, b, want) in [
        ((0, 10), (0, 10), 10),
        ((0, 10), (5, 10), 5),
        ((5, 10), (0, 10), 5),
        ((0, 10), (10, 10), 0),
        ((0, 100), (20, 10), 10),
        ((u32::MAX - 4, 10), (0, 10), 5),
        ((0, 0), (0, 10), 0),
    ] {
        assert_eq!((overlap(a, b), overlap(b, a)), (want, want), "{a:?} {b:?}");
    }
}

/// Hop, microseconds, sequence number, bytes of TCP data; 0 bytes is an echo of that number.
type Seen<'a> = (&'a str, u64, u32, usize);
/// What it is, records, and the packets: where each was seen, and what became of it.
type Case<'a> = (&'a str, &'a [Seen<'a>], &'a [(&'a str, &'a str)]);

/// Devices each packet was seen at, and what became of it.
fn follow(records: &[Seen]) -> Vec<(String, String)> {
    let hop = |device: &str| Hop { place: 0, device: device.to_owned() };
    let way: Vec<Hop> = ["veth7", "cni0", "flannel.1", "eth0"].map(hop).to_vec();
    let back: Vec<Hop> = way.iter().rev().cloned().collect();
    let mut follower = Follower::new(&way, &back, None);
    for (device, at_us, number, bytes) in records {
        let payload = match bytes {
            0 => [&ECHO[..6], &(*number as u16).to_be_bytes()].concat(),
            bytes => tcp(*number, *bytes),
        };
        let packet = read(&ip("10.0.0.1", "10.0.0.2", if *bytes == 0 { 1 } else { 6 }, &payload));
        let hop = follower.hop(&hop(device));
        let sight = Sight { hop, outgoing: true, at_ns: 1_000 * at_us, wraps: Vec::new() };
        follower.see(sight, packet, true, None);
    }
    let done = follower.done(u64::MAX);
    let name = |hop: usize| follower.hops()[hop].device.clone();
    let told = |followed: &Followed| {
        let seen: Vec<String> = followed.sights.iter().map(|sight| name(sight.hop)).collect();
        let fate = match follower.fate(followed) {
            Fate::Passed => String::new(),
            Fate::Missing(at) => format!("not {}", name(follower.way(true)[at])),
            Fate::Partly(at) => format!("part {}", name(follower.way(true)[at])),
        };
        (seen.join(" "), fate)
    };
    done.iter().map(told).collect()
}

#[test]
fn sights_become_packets() {
    const ALL: &str = "veth7 cni0 flannel.1 eth0";
    let cases: [Case; 8] = [
        (
            "an echo passes",
            &[("veth7", 0, 1, 0), ("cni0", 1, 1, 0), ("flannel.1", 2, 1, 0), ("eth0", 3, 1, 0)],
            &[(ALL, "")],
        ),
        (
            "the second is lost behind the bridge",
            &[
                ("veth7", 0, 1, 0),
                ("cni0", 1, 1, 0),
                ("flannel.1", 2, 1, 0),
                ("eth0", 3, 1, 0),
                ("veth7", 9, 2, 0),
                ("cni0", 10, 2, 0),
            ],
            &[(ALL, ""), ("veth7 cni0", "not flannel.1")],
        ),
        ("a fast path skips hops", &[("veth7", 0, 1, 0), ("eth0", 3, 1, 0)], &[("veth7 eth0", "")]),
        ("it left through another device", &[("eth1", 0, 1, 0)], &[("eth1", "not veth7")]),
        (
            "the same packet twice is two",
            &[("veth7", 0, 1, 0), ("veth7", 5, 1, 0), ("cni0", 6, 1, 0)],
            &[("veth7", "not cni0"), ("veth7 cni0", "not flannel.1")],
        ),
        (
            "a train is cut by the uplink",
            &[
                ("veth7", 0, 100, 3000),
                ("cni0", 1, 100, 3000),
                ("flannel.1", 2, 100, 3000),
                ("eth0", 3, 100, 1400),
                ("eth0", 4, 1500, 1400),
                ("eth0", 5, 2900, 200),
            ],
            &[(ALL, "")],
        ),
        (
            "the end of a train is lost",
            &[
                ("veth7", 0, 100, 3000),
                ("cni0", 1, 100, 3000),
                ("flannel.1", 2, 100, 3000),
                ("eth0", 3, 100, 1400),
            ],
            &[(ALL, "part eth0")],
        ),
        (
            "two packets become one train",
            &[
                ("veth7", 0, 100, 1400),
                ("veth7", 1, 1500, 1400),
                ("cni0", 2, 100, 2800),
                ("flannel.1", 3, 100, 2800),
                ("eth0", 4, 100, 2800),
            ],
            &[(ALL, ""), (ALL, "")],
        ),
    ];
    for (what, records, want) in cases {
        let want: Vec<(String, String)> =
            want.iter().map(|(seen, fate)| ((*seen).to_owned(), (*fate).to_owned())).collect();
        assert_eq!(follow(records), want, "{what}");
    }
}

/// A packet's line behind its sights, on a host with a fast path to `eth0`; hops with `@` are pods', those with `+` are seen
/// wrapped.
#[test]
fn what_goes_fast_is_told_as_such() {
    const VXLAN: &str = "eth0@a veth7 cni0 flannel.1 eth0";
    const UDP: &str = "eth0@a veth7 cni0 flannel0";
    const HERE: &str = "eth0@a veth7 veth9 eth0@b";
    let back = |way: &str| way.split(' ').rev().collect::<Vec<_>>().join(" ");
    for (way, process, seen, want) in [
        (VXLAN, false, VXLAN, ""),
        (VXLAN, false, "eth0@a veth7 +eth0", "  went fast: skipped cni0, flannel.1"),
        (VXLAN, false, "eth0@a veth7 +flannel.1 +eth0", "  went fast: skipped cni0"),
        (VXLAN, false, "eth0@a veth7", "  not seen on cni0, nor on eth0 by the fast path"),
        (VXLAN, false, "eth0@a", "  not seen on veth7"),
        (VXLAN, false, "eth0@a veth7 cni0", "  not seen on flannel.1"),
        (VXLAN, false, "eth0@a veth7 cni0 flannel.1", "  not seen on eth0"),
        // The capture began while it was on its way.
        (VXLAN, false, "cni0 flannel.1 +eth0", ""),
        (&back(VXLAN), false, "+eth0 eth0@a", "  went fast: skipped flannel.1, cni0, veth7"),
        (&back(VXLAN), false, "+eth0", "  not seen on flannel.1, nor on eth0@a by the fast path"),
        (UDP, true, "eth0@a veth7 cni0 flannel0", ""),
        (UDP, true, "eth0@a veth7 cni0 flannel0 +eth0", ""),
        (UDP, true, "eth0@a veth7 +eth0", "  went fast: skipped cni0, flannel0"),
        (UDP, true, "eth0@a veth7", "  not seen on cni0, nor on eth0 by the fast path"),
        // Another device of this host is not the way out.
        (UDP, true, "eth0@a veth7 eth1", "  not seen on cni0, nor on eth0 by the fast path"),
        (&back(UDP), false, "+eth0 eth0@a", "  went fast: skipped flannel0, cni0, veth7"),
        (&back(UDP), false, "+eth0 flannel0", "  not seen on cni0"),
        (HERE, false, "eth0@a veth7 eth0@b", "  went fast: skipped veth9"),
        (HERE, false, "eth0@a veth7", "  not seen on veth9, nor on eth0@b by the fast path"),
    ] {
        let hop = |text: &str| {
            let (device, place) = text.trim_start_matches('+').split_once('@').unwrap_or((text, ""));
            let place = ["", "a", "b"].iter().position(|known| *known == place).unwrap();
            Hop { place, device: device.trim_start_matches('+').to_owned() }
        };
        let hops: Vec<Hop> = way.split(' ').map(hop).collect();
        let mut follower = Follower::new(&hops, &[], process.then_some(true));
        let packet = read(&ip("10.0.0.1", "10.0.0.2", 1, &ECHO));
        for (at, text) in seen.split(' ').enumerate() {
            let wraps = if text.starts_with('+') { vec![Wrap::Udp(8285)] } else { Vec::new() };
            let sight = Sight { hop: follower.hop(&hop(text)), outgoing: true, at_ns: at as u64, wraps };
            follower.see(sight, packet.clone(), true, None);
        }
        let followed = follower.done(u64::MAX).remove(0);
        let (fate, skipped) = (follower.fate(&followed), follower.skipped(&followed));
        let places = ["host", "a", "b"].map(str::to_owned);
        let names = show::Names {
            places: &places,
            hops: follower.hops(),
            way: follower.way(true),
            skipped: &skipped,
            fast: Some("eth0"),
        };
        let style = lab::paint::Style { color: false, unicode: false, width: 300 };
        let line = style.lines(&[show::line(&followed, fate, &names, style)]);
        let (_, sights) = line.trim_end().split_once(" : ").unwrap();
        let end = sights.split_once("  ").map_or(String::new(), |(_, end)| format!("  {end}"));
        assert_eq!(end, want, "{way}: {line}");
    }
}

#[test]
fn packets_are_kept_until_nothing_more_can_come() {
    let hop = Hop { place: 0, device: "flannel0".to_owned() };
    let packet = read(&ip("10.0.0.1", "10.0.0.2", 1, &ECHO));
    for (handed_on, [soon, later]) in [(None, [1, 0]), (Some(true), [0, 1]), (Some(false), [1, 0])] {
        let mut follower = Follower::new(std::slice::from_ref(&hop), &[], handed_on);
        let sight = Sight { hop: 0, outgoing: true, at_ns: 1, wraps: Vec::new() };
        assert_eq!(follower.see(sight.clone(), packet.clone(), true, Some(1)), [1]);
        assert!(follower.done(GRACE_NS / 2).is_empty());
        // The uplink below it, which the way does not name.
        let uplink = follower.hop(&Hop { place: 0, device: "eth0".to_owned() });
        assert_eq!(follower.see(Sight { hop: uplink, ..sight }, packet.clone(), true, Some(1)), [1]);
        assert_eq!(follower.done(2 * GRACE_NS).len(), soon, "{handed_on:?}");
        assert_eq!(follower.done(2 * PATIENCE_NS).len(), later, "{handed_on:?}");
    }
}

#[test]
fn blocks_hold_their_lengths() {
    let record = pcapng::Record {
        interface: 1,
        at_ns: 1 << 40 | 5,
        outgoing: true,
        frame: &[7; 61],
        comment: "packet 12",
    };
    let file = [pcapng::section(), pcapng::interface("eth0", "host"), pcapng::record(&record)].concat();
    let word = |at: usize| u32::from_ne_bytes(file[at..at + 4].try_into().unwrap());
    let (mut at, mut kinds) = (0, Vec::new());
    while at < file.len() {
        let length = word(at + 4) as usize;
        assert_eq!((length % 4, word(at + length - 4) as usize), (0, length));
        kinds.push(word(at));
        at += length;
    }
    assert_eq!(kinds, [0x0a0d_0d0a, 1, 6]);
    assert_eq!(pcapng::header(&[0x60])[12..], [0x86, 0xdd]);
}
