//! What arrives is the same with the fast path and without.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddrV4, TcpListener, TcpStream};

use super::packets::{Capture, Packet, outer, told};
use super::{Talk, Two, address, can, counted, early, end, has_tun, v4};
use crate::traffic::Pod;
use crate::world::{Host, sh};

/// What became of one row: on the pod it was sent to, on the pod it came from, and on the wire.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    pub row: &'static str,
    pub sent: bool,
    pub arrived: Vec<String>,
    pub came_back: Vec<String>,
    pub wire: Vec<String>,
}

/// Every kind of packet that is treated in a way of its own.
fn rows(talk: &Talk, most: usize) -> Vec<(&'static str, Packet)> {
    let plain = Packet {
        tos: 0,
        ttl: 64,
        fragment: 0,
        options: Vec::new(),
        from: end(talk.from),
        to: end(talk.to),
        payload: b"a question".to_vec(),
        checksum: Some(0),
    };
    let sized = |bytes: usize| vec![0x5a; bytes - 28];
    let closed = SocketAddrV4::new(v4(talk.to.ip()), 9);
    // A subnet that neither host was given.
    let taken = [talk.from, talk.to].map(|end| v4(end.ip()).octets()[2]);
    let free = (0..=u8::MAX).rev().find(|third| !taken.contains(third)).unwrap();
    let of = |change: &dyn Fn(&mut Packet)| {
        let mut packet = plain.clone();
        change(&mut packet);
        packet
    };
    vec![
        ("plain", plain.clone()),
        ("one byte", of(&|p| p.payload = vec![1])),
        ("nothing in it", of(&|p| p.payload = Vec::new())),
        ("as long as fits, whole", of(&|p| (p.payload, p.fragment) = (sized(most), 0x4000))),
        ("a byte too long, may be cut", of(&|p| p.payload = sized(most + 1))),
        ("a byte too long, whole", of(&|p| (p.payload, p.fragment) = (sized(most + 1), 0x4000))),
        ("as long as the wire, whole", of(&|p| (p.payload, p.fragment) = (sized(1500), 0x4000))),
        ("not to be cut", of(&|p| p.fragment = 0x4000)),
        ("first fragment", of(&|p| (p.payload, p.fragment) = (sized(100), 0x2000))),
        ("last fragment", of(&|p| (p.payload, p.fragment) = (sized(100), 9))),
        ("two hops left", of(&|p| p.ttl = 2)),
        ("three hops left", of(&|p| p.ttl = 3)),
        ("one hop left", of(&|p| p.ttl = 1)),
        ("most hops", of(&|p| p.ttl = 255)),
        ("ECN 1", of(&|p| p.tos = 1)),
        ("ECN 0", of(&|p| p.tos = 2)),
        ("congestion on the way", of(&|p| p.tos = 3)),
        ("expedited", of(&|p| p.tos = 0xb8)),
        ("an option", of(&|p| p.options = vec![1, 1, 1, 0])),
        ("record route", of(&|p| p.options = vec![7, 7, 4, 0, 0, 0, 0, 0])),
        ("wrong checksum", of(&|p| p.checksum = Some(1))),
        ("no checksum", of(&|p| p.checksum = None)),
        ("closed port", of(&|p| p.to = closed)),
        ("a group", of(&|p| p.to = SocketAddrV4::new([224, 0, 0, 9].into(), 9))),
        ("nobody's", of(&|p| p.to = SocketAddrV4::new([10, 244, free, 9].into(), 9))),
    ]
}

/// Sends one row and looks at what comes of it.
fn play(two: &Two, talk: &Talk, row: &'static str, packet: &Packet, most: usize) -> Outcome {
    // What another row taught the pod of the way's MTU.
    sh(&two.pods[0].netns, "ip route flush cache");
    let captures = [&two.pods[1].netns, &two.pods[0].netns, &two.world.hub].map(Capture::start);
    let sent = packet.send(&two.pods[0].netns).is_ok();
    // What follows on the same way tells that all of it is there. A tunnel in user space would put it into one train with
    // the row's packet, or be overtaken by it: there it is silence that tells.
    let mark = b"the end of this row";
    let silent = two.backend == "udp";
    if !silent {
        talk.works_with(mark);
    }
    let ends = |frame: &[u8]| frame.ends_with(mark);
    let own = |frames: Vec<Vec<u8>>, to: std::net::Ipv4Addr| -> Vec<String> {
        let about = |frame: &&Vec<u8>| !ends(frame) && frame[12..14] == [8, 0];
        let packets = frames.iter().filter(about).map(|frame| &frame[14..]);
        packets.filter(|ip| ip.get(16..20) == Some(&to.octets()[..])).map(told).collect()
    };
    let [to, from, hub] = &captures;
    let (there, here, wire) = if silent {
        let wire = hub.rest();
        (to.there(), from.there(), wire)
    } else {
        (to.until(ends), from.until(ends), hub.rest())
    };
    let arrived = own(there, v4(talk.to.ip()));
    let came_back = own(here, v4(talk.from.ip()));
    let from = v4(talk.from.ip()).octets();
    let mut wire: Vec<String> = wire
        .iter()
        .filter_map(|frame| outer(frame, two.backend))
        .filter(|(_, inner)| !inner.ends_with(mark) && inner.get(12..16) == Some(&from[..]))
        .map(|(outer, inner)| format!("{outer} {}", told(&inner)))
        .collect();
    // Each frame is seen on both ports of the wire and on the bridge.
    wire.dedup();
    wire.sort();
    wire.dedup();
    if packet.payload.len() + 28 > most && packet.fragment == 0 {
        // Fragments that the first host makes share their bytes with what the second one makes of them, in place:
        // whoever listens in between may see either. What arrives is compared.
        wire.clear();
    }
    Outcome { row, sent, arrived, came_back, wire }
}

impl Talk {
    pub fn works_with(&self, bytes: &[u8]) {
        crate::world::until("a round to succeed", || self.round(bytes));
    }
}

/// All rows, each in a flow that is as fast as it may be.
fn table(two: &Two, talk: &Talk, fast: bool) -> Vec<Outcome> {
    // What the tunnel takes of 1500 bytes.
    let most = if two.backend == "udp" { 1472 } else { 1450 };
    let hosts: Vec<&Host> = two.world.hosts.iter().collect();
    let mut outcomes = Vec::new();
    for (row, packet) in rows(talk, most) {
        if fast {
            talk.until_fast(&hosts);
        } else {
            talk.works();
        }
        outcomes.push(play(two, talk, row, &packet, most));
    }
    outcomes
}

#[test]
fn every_packet_arrives_as_on_the_slow_path() {
    if !can("every_packet_arrives_as_on_the_slow_path") {
        return;
    }
    same_packets("vxlan", 62);
}

/// The same through a tunnel in user space, in which a packet loses a hop on each side besides.
#[test]
fn every_packet_arrives_as_through_user_space() {
    if can("every_packet_arrives_as_through_user_space") && has_tun() {
        same_packets("udp", 60);
    }
}

/// Both ways of every row were the same; gives what came of a row.
pub fn compared<'a>(fast: &[Outcome], slow: &'a [Outcome]) -> impl Fn(&str) -> &'a Outcome {
    let differ: Vec<_> = fast.iter().zip(slow).filter(|(fast, slow)| fast != slow).collect();
    assert!(fast.len() == slow.len() && differ.is_empty(), "with and without the fast path: {differ:#?}");
    |row| slow.iter().find(|outcome| outcome.row == row).unwrap()
}

fn same_packets(backend: &'static str, hops_left: u8) {
    let mut two = if backend == "udp" { early::early() } else { Two::start(backend, "on") };
    // Longer packets than the tunnel takes have to get as far as the host.
    for (host, pod) in two.world.hosts.iter().zip(&two.pods) {
        sh(&pod.netns, "ip link set eth0 mtu 1500");
        host.sh("ip link set veth0 mtu 1500");
        sh(&pod.netns, "sysctl -qw net.ipv4.icmp_ratelimit=0");
        host.sh("sysctl -qw net.ipv4.icmp_ratelimit=0");
        host.sh("sysctl -qw net.ipv4.icmp_msgs_per_sec=100000");
    }
    // A question that is late is no part of the row after it.
    let talk = Talk::new(&two.pods[0], &two.pods[1]).patient();
    let fast = table(&two, &talk, true);
    two.again("off");
    let slow = table(&two, &talk, false);
    let by = compared(&fast, &slow);
    // The table itself does what it says.
    assert_eq!(by("plain").arrived.len(), 1, "{:?}", by("plain"));
    assert_eq!(by("plain").wire.len(), 1, "{:?}", by("plain"));
    assert!(by("plain").arrived[0].contains(&format!("ttl {hops_left}")), "{:?}", by("plain"));
    assert!(
        by("a byte too long, whole").came_back[0].contains("icmp 3 4"),
        "{:?}",
        by("a byte too long, whole")
    );
    assert!(by("closed port").came_back[0].contains("icmp 3 3"), "{:?}", by("closed port"));
    assert!(by("two hops left").came_back[0].contains("icmp 11 0"), "{:?}", by("two hops left"));
}

/// Sends so many bytes over TCP, and back; every byte arrives as it was sent.
pub fn transfer(family: usize, from: &Pod, to: &Pod, bytes: usize) {
    let listener = to.netns.run(|| TcpListener::bind((address(to, family), 0))).unwrap().unwrap();
    let listens = listener.local_addr().unwrap();
    let byte = |at: usize| ((at * 31) >> 3) as u8;
    let sender = std::thread::scope(|scope| {
        let server = scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut got, mut space) = (0, vec![0; 1 << 16]);
            while got < bytes {
                let read = stream.read(&mut space).unwrap();
                assert!(read > 0, "ended after {got} bytes");
                for (n, found) in space[..read].iter().enumerate() {
                    assert_eq!(*found, byte(got + n), "byte {}", got + n);
                }
                got += read;
                stream.write_all(&[1]).unwrap();
            }
            // The other direction ends the connection.
            drop(stream);
        });
        let mut stream = from.netns.run(|| TcpStream::connect(listens)).unwrap().unwrap();
        let mut echo = stream.try_clone().unwrap();
        scope.spawn(move || while echo.read(&mut [0; 1 << 12]).is_ok_and(|read| read > 0) {});
        let mut at = 0;
        while at < bytes {
            let length = (bytes - at).min(1 << 16);
            let chunk: Vec<u8> = (at..at + length).map(byte).collect();
            stream.write_all(&chunk).unwrap();
            at += length;
        }
        server.join()
    });
    sender.unwrap();
}

/// Bulk goes fast, in trains and in single frames, though somebody drops what conntrack calls invalid, as
/// kube-proxy does: the flow's packets that ask the slow path again have to be welcome there.
#[test]
fn transfers_are_whole() {
    if !can("transfers_are_whole") {
        return;
    }
    for backend in ["vxlan", "host-gw"] {
        let two = Two::start(backend, "on");
        for host in &two.world.hosts {
            host.sh("nft add table ip strict");
            host.sh("nft add chain ip strict forward { type filter hook forward priority 0 ; }");
            host.sh("nft add rule ip strict forward ct state invalid counter drop");
        }
        for wire in ["on", "off"] {
            for host in &two.world.hosts {
                host.sh(&format!("ethtool -K eth0 tso {wire} gso {wire} tx-udp-segmentation {wire}"));
            }
            let before: Vec<u64> = two.world.hosts.iter().map(|host| counted(host, "fast_packets")).collect();
            transfer(0, &two.pods[0], &two.pods[1], 96 << 20);
            for (host, before) in two.world.hosts.iter().zip(before) {
                let fast = counted(host, "fast_packets") - before;
                let slow = counted(host, "slow_packets");
                println!("{backend}, trains {wire}: {fast} fast, {slow} slow in all");
                assert!(fast > 500, "{backend}, trains {wire}: {:?}", host.status(&[]).1);
            }
        }
    }
}
