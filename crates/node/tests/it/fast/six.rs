//! IPv6: the same packets with the fast path and without, as they are and through a tunnel.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::time::Instant;

use kernel::Netns;
use rustix::net::{AddressFamily, Protocol, SendFlags, SocketFlags, SocketType, sockopt};

use super::packets::{Capture, datagram_of, sum};
use super::same::{Outcome, compared, transfer};
use super::taken::programs;
use super::{FLAGS, Talk, Two, can, counted};
use crate::world::{Host, sh, until};

/// A datagram in an IPv6 packet.
#[derive(Clone)]
struct Packet {
    class: u8,
    label: u32,
    hops: u8,
    /// Kind and bytes of an extension header, which names UDP as what follows.
    extension: Option<(u8, [u8; 8])>,
    from: SocketAddrV6,
    to: SocketAddrV6,
    payload: Vec<u8>,
    /// Added to the right checksum; the field is 0 where it is `None`.
    checksum: Option<u16>,
}

impl Packet {
    fn bytes(&self) -> Vec<u8> {
        let datagram = 8 + self.payload.len();
        let extension = self.extension.map(|(_, bytes)| bytes.to_vec()).unwrap_or_default();
        let mut ip = (6 << 28 | u32::from(self.class) << 20 | self.label).to_be_bytes().to_vec();
        ip.extend(((extension.len() + datagram) as u16).to_be_bytes());
        ip.extend([self.extension.map_or(17, |(kind, _)| kind), self.hops]);
        ip.extend(self.from.ip().octets());
        ip.extend(self.to.ip().octets());
        let udp = datagram_of([self.from.port(), self.to.port()], &self.payload, self.checksum, &ip[8..40]);
        [ip, extension, udp].concat()
    }

    /// By a socket of the pod's, whose kernel leaves the checksum to devices, as it does for all that programs send; only what
    /// a socket can be told is done.
    fn say(&self, socket: &UdpSocket) -> Result<(), rustix::io::Errno> {
        sockopt::set_ipv6_tclass(socket, self.class.into()).unwrap();
        sockopt::set_ipv6_unicast_hops(socket, Some(self.hops)).unwrap();
        let sent = rustix::net::sendto(socket, &self.payload, SendFlags::empty(), &self.to).map(drop);
        sockopt::set_ipv6_tclass(socket, 0).unwrap();
        sockopt::set_ipv6_unicast_hops(socket, None).unwrap();
        sent
    }

    fn send(&self, netns: &Netns) -> Result<(), rustix::io::Errno> {
        let raw = Protocol::from_raw(std::num::NonZeroU32::new(255).unwrap());
        let (kind, flags) = (SocketType::RAW, SocketFlags::empty());
        let open = || rustix::net::socket_with(AddressFamily::INET6, kind, flags, Some(raw));
        let socket = netns.run(open).unwrap()?;
        let to = SocketAddrV6::new(*self.to.ip(), 0, 0, 0);
        rustix::net::sendto(&socket, &self.bytes(), SendFlags::empty(), &to).map(drop)
    }
}

fn end(address: SocketAddr) -> SocketAddrV6 {
    let SocketAddr::V6(address) = address else { panic!("{address} is not IPv6") };
    address
}

fn rows(talk: &Talk, most: usize) -> Vec<(&'static str, Packet)> {
    let (from, to) = (end(talk.from), end(talk.to));
    let plain = Packet {
        class: 0,
        label: 0,
        hops: 64,
        extension: None,
        from,
        to,
        payload: b"a question".to_vec(),
        checksum: Some(0),
    };
    let sized = |bytes: usize| vec![0x5a; bytes - 48];
    // A subnet that neither host was given.
    let taken = [from, to].map(|end| end.ip().segments()[3]);
    let free = (0..=u16::MAX).rev().find(|fourth| !taken.contains(fourth)).unwrap();
    let free = Ipv6Addr::new(0xfd00, 0x10, 0, free, 0, 0, 0, 9);
    let of = |change: &dyn Fn(&mut Packet)| {
        let mut packet = plain.clone();
        change(&mut packet);
        packet
    };
    vec![
        ("plain", plain.clone()),
        ("nothing in it", of(&|p| p.payload = Vec::new())),
        ("as long as fits", of(&|p| p.payload = sized(most))),
        ("a byte too long", of(&|p| p.payload = sized(most + 1))),
        ("one hop left", of(&|p| p.hops = 1)),
        ("two hops left", of(&|p| p.hops = 2)),
        ("three hops left", of(&|p| p.hops = 3)),
        ("most hops", of(&|p| p.hops = 255)),
        ("ECN 0", of(&|p| p.class = 2)),
        ("congestion on the way", of(&|p| p.class = 3)),
        ("expedited", of(&|p| p.class = 0xb8)),
        ("a label", of(&|p| p.label = 0x1_2345)),
        ("options for the destination", of(&|p| p.extension = Some((60, [17, 0, 1, 4, 0, 0, 0, 0])))),
        ("options for every hop", of(&|p| p.extension = Some((0, [17, 0, 1, 4, 0, 0, 0, 0])))),
        ("the only fragment", of(&|p| p.extension = Some((44, [17, 0, 0, 0, 0, 0, 0, 7])))),
        ("first fragment", of(&|p| p.extension = Some((44, [17, 0, 0, 1, 0, 0, 0, 9])))),
        ("wrong checksum", of(&|p| p.checksum = Some(1))),
        ("no checksum", of(&|p| p.checksum = None)),
        ("closed port", of(&|p| p.to = SocketAddrV6::new(*to.ip(), 9, 0, 0))),
        ("nobody's", of(&|p| p.to = SocketAddrV6::new(free, 9, 0, 0))),
    ]
}

/// What a packet says. Of answers about packets: which, and about what.
fn told(packet: &[u8]) -> String {
    let address = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap());
    let ends = format!("{} to {}", address(8), address(24));
    match packet[6] {
        58 => format!(
            "{ends} hops {}: icmp {} {} about {:02x?}",
            packet[7],
            packet[40],
            packet[41],
            packet.get(48..96)
        ),
        next => format!(
            "{ends} first {:02x?} next {next} hops {}: {:02x?}",
            &packet[..6],
            packet[7],
            &packet[40..]
        ),
    }
}

/// Whose hand a packet is made by.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    /// Byte by byte: complete when it leaves the pod.
    Hand,
    /// The pod's kernel.
    Socket,
}

/// What is on the wire of a packet from a pod: with all that is around it, if anything is.
fn on_wire(frame: &[u8], from: &Ipv6Addr) -> Option<String> {
    let is_from = |at: usize| frame.get(at..at + 16) == Some(&from.octets()[..]);
    if frame[12..14] != [0x86, 0xdd] {
        return None;
    }
    if is_from(22) {
        return Some(format!("macs {:02x?} {}", &frame[..14], told(&frame[14..])));
    }
    // Port and identifier of the tunnel: the kernel takes frames apart in place that others still look at.
    let tunnelled = frame[20] == 17 && frame.get(56..58) == Some(&8472u16.to_be_bytes());
    if !tunnelled || !is_from(92) || frame[66..69] != [0, 0, 1] {
        return None;
    }
    Some(format!("outer {:02x?} {}", &frame[..84], told(&frame[84..])))
}

fn play(two: &Two, talk: &Talk, (by, row): (By, &'static str), packet: &Packet) -> Outcome {
    sh(&two.pods[0].netns, "ip -6 route flush cache");
    let captures = [&two.pods[1].netns, &two.pods[0].netns, &two.world.hub].map(Capture::start);
    let sent = match by {
        By::Hand => packet.send(&two.pods[0].netns),
        By::Socket => packet.say(&talk.ask),
    };
    let sent = sent.is_ok();
    let mark = b"the end of this row";
    talk.works_with(mark);
    let ends = |frame: &[u8]| frame.ends_with(mark);
    // Neighbours ask for one another when they like.
    let about = |frame: &Vec<u8>| {
        !ends(frame) && frame[12..14] == [0x86, 0xdd] && !(frame[20] == 58 && (133..138).contains(&frame[54]))
    };
    let own = |frames: Vec<Vec<u8>>, to: Ipv6Addr| -> Vec<String> {
        let packets = frames.iter().filter(|frame| about(frame)).map(|frame| &frame[14..]);
        packets.filter(|ip| ip.get(24..40) == Some(&to.octets()[..])).map(told).collect()
    };
    let arrived = own(captures[0].until(ends), *end(talk.to).ip());
    let came_back = own(captures[1].until(ends), *end(talk.from).ip());
    let from = *end(talk.from).ip();
    let wire = captures[2].until(ends);
    let mut wire: Vec<String> =
        wire.iter().filter(|frame| !ends(frame)).filter_map(|frame| on_wire(frame, &from)).collect();
    wire.sort();
    wire.dedup();
    Outcome { row, sent, arrived, came_back, wire }
}

/// The rows that a socket can send, besides the hand.
const OF_SOCKETS: &[&str] = &[
    "plain",
    "nothing in it",
    "as long as fits",
    "a byte too long",
    "two hops left",
    "three hops left",
    "most hops",
    "ECN 0",
    "congestion on the way",
    "expedited",
    "closed port",
    "nobody's",
];

fn same_packets(mut two: Two, most: usize, sums: &str) {
    for (host, pod) in two.world.hosts.iter().zip(&two.pods) {
        let quick = "sysctl -qw net.ipv6.icmp.ratelimit=0";
        sh(&pod.netns, quick);
        host.sh(quick);
        host.sh(&format!("ethtool -K eth0 tx {sums}"));
    }
    if two.backend == "host-gw" {
        // Longer packets than the wire takes have to get as far as the host.
        two.world.hosts[0].sh(&format!("ip link set eth0 mtu {most}"));
    }
    let talk = Talk::by(1, &two.pods[0], &two.pods[1]).patient();
    let table = |two: &Two, fast: bool| -> Vec<Outcome> {
        let hosts: Vec<&Host> = two.world.hosts.iter().collect();
        let rows = rows(&talk, most);
        let by_hand = rows.iter().map(|(row, packet)| (By::Hand, *row, packet));
        let spoken = rows.iter().filter(|(row, _)| OF_SOCKETS.contains(row));
        let spoken = spoken.map(|(row, packet)| (By::Socket, *row, packet));
        let row = |(by, row, packet): (By, &'static str, &Packet)| {
            if fast {
                talk.until_fast(&hosts);
            } else {
                talk.works();
            }
            play(two, &talk, (by, row), packet)
        };
        by_hand.chain(spoken).map(row).collect()
    };
    let fast = table(&two, true);
    two.again("off");
    let slow = table(&two, false);
    let by = compared(&fast, &slow);
    assert!(by("plain").arrived[0].contains("hops 62") && by("plain").wire.len() == 1, "{:?}", by("plain"));
    for (row, answer) in
        [("a byte too long", "icmp 2 0"), ("two hops left", "icmp 3 0"), ("closed port", "icmp 1 4")]
    {
        assert!(by(row).came_back[0].contains(answer), "{:?}", by(row));
    }
}

#[test]
fn every_packet_of_ipv6_arrives_as_on_the_slow_path() {
    if can("every_packet_of_ipv6_arrives_as_on_the_slow_path") {
        same_packets(Two::dual("host-gw", "on"), 1400, "on");
    }
}

#[test]
fn every_packet_of_ipv6_alone_arrives_as_on_the_slow_path() {
    if can("every_packet_of_ipv6_alone_arrives_as_on_the_slow_path") {
        same_packets(Two::six("host-gw", "on"), 1400, "on");
    }
}

/// Every byte of the outer packet is the same, its checksum too, whoever computes those inside.
#[test]
fn every_packet_of_ipv6_arrives_as_through_the_tunnel() {
    if !can("every_packet_of_ipv6_arrives_as_through_the_tunnel") {
        return;
    }
    for sums in ["off", "on"] {
        same_packets(Two::dual("vxlan", "on"), 1430, sums);
    }
}

#[test]
fn every_packet_of_ipv6_alone_arrives_as_through_the_tunnel() {
    if !can("every_packet_of_ipv6_alone_arrives_as_through_the_tunnel") {
        return;
    }
    for sums in ["off", "on"] {
        same_packets(Two::six("vxlan", "on"), 1430, sums);
    }
}

/// Bulk of a cluster of IPv6 alone, in trains and in single frames; IPv4 is not looked for, though a network of it is named.
#[test]
fn ipv6_alone_goes_fast() {
    if !can("ipv6_alone_goes_fast") {
        return;
    }
    for backend in ["host-gw", "vxlan"] {
        let two = Two::six(backend, "on");
        let host = &two.world.hosts[0];
        for wire in ["on", "off"] {
            let words = format!("ethtool -K eth0 tso {wire} gso {wire}");
            two.world.hosts.iter().for_each(|host| drop(host.sh(&words)));
            let before = counted(host, "fast_packets");
            transfer(1, &two.pods[0], &two.pods[1], 32 << 20);
            let fast = counted(host, "fast_packets") - before;
            println!("{backend}, trains {wire}: {fast} fast");
            assert!(fast > 200, "{backend}, {wire}: {}", host.status(&[]).1);
        }
        let (code, screen) = host.status(&[]);
        assert!(code == 0 && screen.contains("fast path  on eth0, veth0"), "{screen}");
    }
}

/// Programs of the families there were before do not stay beside the new ones.
#[test]
fn families_that_come_and_go_leave_nothing() {
    if !can("families_that_come_and_go_leave_nothing") {
        return;
    }
    let mut two = Two::dual("vxlan", "on");
    let host = Host::around(two.world.hosts[0].netns.try_clone().unwrap(), &two.world.hosts[0]);
    for v4 in [false, true] {
        host.put_config(&format!(
            r#"{{"Network": "10.244.0.0/16", "EnableIPv4": {v4}, "EnableIPv6": true, "IPv6Network": "fd00:10::/48",
                "EnableNFTables": true, "Backend": {{"Type": "vxlan"}}}}"#
        ));
        two.again("on");
        until("the programs to be those of one agent", || match programs(&host, "eth0").as_slice() {
            [into, out] if into == "uplink_in" && out == "uplink_out" => Ok(()),
            more => Err(format!("EnableIPv4 {v4}: {more:?}")),
        });
    }
}

/// The device that carries it is away: said, and then packets go fast again.
#[test]
fn a_tunnel_of_ipv6_alone_that_is_away() {
    if !can("a_tunnel_of_ipv6_alone_that_is_away") {
        return;
    }
    let two = Two::six("vxlan", "on");
    let hosts: Vec<&Host> = two.world.hosts.iter().collect();
    let talk = Talk::by(1, &two.pods[0], &two.pods[1]);
    talk.until_fast(&hosts);
    for _ in 0..3 {
        hosts[0].sh("ip link del flannel-v6.1");
        talk.works();
        talk.until_fast(&hosts);
    }
}

/// TCP of both families side by side, in trains and in single frames, and what ends one family's flows ends them.
#[test]
fn both_families_go_fast() {
    if !can("both_families_go_fast") {
        return;
    }
    for backend in ["host-gw", "vxlan"] {
        let two = Two::dual(backend, "on");
        let host = &two.world.hosts[0];
        for (family, wire) in [(0, "on"), (1, "on"), (1, "off")] {
            two.world
                .hosts
                .iter()
                .for_each(|host| drop(host.sh(&format!("ethtool -K eth0 tso {wire} gso {wire}"))));
            let before = counted(host, "fast_packets");
            transfer(family, &two.pods[0], &two.pods[1], 32 << 20);
            let fast = counted(host, "fast_packets") - before;
            println!("{backend}, family {family}, trains {wire}: {fast} fast");
            assert!(fast > 200, "{backend}, {family}, {wire}: {}", host.status(&[]).1);
        }
        let talk = Talk::by(1, &two.pods[0], &two.pods[1]);
        let hosts: Vec<&Host> = two.world.hosts.iter().collect();
        talk.until_fast(&hosts);
        host.sh("nft add table ip6 foreign");
        host.sh("nft add chain ip6 foreign forward { type filter hook forward priority 0 ; }");
        host.sh(&format!("nft add rule ip6 foreign forward ip6 daddr {} drop", talk.to.ip()));
        talk.fails();
        talk.fails();
        host.sh("nft delete table ip6 foreign");
        talk.works();
        talk.until_fast(&hosts);
    }
}

/// Single packets of sockets do not pass the tunnel's device.
#[test]
fn single_packets_pass_by_the_device() {
    if !can("single_packets_pass_by_the_device") {
        return;
    }
    let two = Two::dual("vxlan", "on");
    let host = &two.world.hosts[0];
    let talk = Talk::by(1, &two.pods[0], &two.pods[1]);
    talk.until_fast(&two.world.hosts.iter().collect::<Vec<_>>());
    let sent = || {
        let links = host.json("ip -s -j link show flannel-v6.1");
        links[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
    };
    let before = sent();
    let started = Instant::now();
    talk.whole(2000);
    // One packet each 750 ms asks the slow path, and a flow that ended meanwhile is learnt again.
    let allowed = 20 + 4 * started.elapsed().as_secs();
    let by_device = sent() - before;
    assert!(by_device < allowed, "{by_device} of 2000 in {:?}", started.elapsed());
}

/// Whether the datagram in a packet has the checksum it needs.
fn is_summed(ip: &[u8]) -> bool {
    let (addresses, udp) = if ip[0] >> 4 == 4 { (&ip[12..20], &ip[20..]) } else { (&ip[8..40], &ip[40..]) };
    sum(&[addresses, &[0, 17], &udp[4..6], udp].concat(), 0) == 0
}

/// A card that gets checksums inside tunnels wrong is not asked for them by those who know (decision 0178).
#[test]
fn checksums_are_computed_where_the_device_does_it() {
    if !can("checksums_are_computed_where_the_device_does_it") {
        return;
    }
    let two = Two::dual("vxlan", "on");
    let hosts: Vec<&Host> = two.world.hosts.iter().collect();
    for (family, device, header) in [(0, "flannel.1", 64), (1, "flannel-v6.1", 84)] {
        let talk = Talk::by(family, &two.pods[0], &two.pods[1]);
        let word = b"summed or not?";
        let summed = || -> Vec<bool> {
            talk.until_fast(&hosts);
            let (before, capture) = (counted(hosts[0], "fast_packets"), Capture::start(&two.world.hub));
            (0..100).for_each(|_| talk.works_with(word));
            assert!(counted(hosts[0], "fast_packets") > before + 100, "{}", hosts[0].status(&[]).1);
            let question = |frame: &Vec<u8>| {
                let port = frame.len().checked_sub(word.len() + 8).map(|udp| &frame[udp..udp + 2]);
                frame.ends_with(word) && port == Some(&talk.from.port().to_be_bytes()[..])
            };
            capture.there().into_iter().filter(question).map(|frame| is_summed(&frame[header..])).collect()
        };
        assert!(summed().contains(&false), "the wire takes checksums that are left to a card");
        hosts[0].sh(&format!("ethtool -K {device} tx-checksum-ip-generic off"));
        until("what follows to be summed", || {
            let found = summed();
            if found.iter().all(|right| *right) && found.len() >= 100 {
                Ok(())
            } else {
                Err(format!("{found:?}"))
            }
        });
        transfer(family, &two.pods[0], &two.pods[1], 4 << 20);
    }
}

/// A peer whose kernel does all itself, and verifies the outer checksums, in both directions.
#[test]
fn a_peer_without_it_cannot_tell() {
    if !can("a_peer_without_it_cannot_tell") {
        return;
    }
    let mut two = Two::dual("vxlan", "on");
    assert_eq!(two.agents.remove(1).terminate(), 0);
    let slow = two.world.hosts[1].agent(&[FLAGS, &["--fast-path=off"]].concat());
    slow.ready();
    two.agents.push(slow);
    let host = &two.world.hosts[0];
    for sums in ["off", "on"] {
        two.world.hosts.iter().for_each(|host| drop(host.sh(&format!("ethtool -K eth0 tx {sums}"))));
        let talk = Talk::by(1, &two.pods[0], &two.pods[1]).patient();
        talk.until_fast(&[host]);
        talk.whole(200);
        for (from, to) in [(0, 1), (1, 0)] {
            let before = counted(host, "fast_packets");
            transfer(1, &two.pods[from], &two.pods[to], 16 << 20);
            let fast = counted(host, "fast_packets") - before;
            println!("checksums {sums}, from {from}: {fast} fast");
            assert!(fast > 200, "{sums}, from {from}: {}", host.status(&[]).1);
        }
    }
}

/// Nobody on the way cuts packets of IPv6: what is too long for the path goes the slow way, where the pod is told.
#[test]
fn the_path_of_ipv6_may_be_narrow() {
    if !can("the_path_of_ipv6_may_be_narrow") {
        return;
    }
    let two = Two::dual("vxlan", "on");
    let hosts: Vec<&Host> = two.world.hosts.iter().collect();
    let talk = Talk::by(1, &two.pods[0], &two.pods[1]).patient();
    let (long, short) = ([7; 1382], [7; 1382 - 100]);
    let peer = hosts[1].public6();
    hosts[0].sh(&format!("ip -6 route add {peer}/128 via {peer} dev eth0 mtu 1400"));
    talk.until_fast(&hosts);
    let (before, capture) = (counted(hosts[0], "too_big"), Capture::start(&two.world.hub));
    until("long ones to be left to the slow path", || {
        // What host and pod learnt of the path would shorten packets before they get here.
        hosts[0].sh("ip -6 route flush cache");
        sh(&two.pods[0].netns, "ip -6 route flush cache");
        talk.round(&short)?;
        talk.ask.send_to(&long, talk.to).map_err(|error| error.to_string())?;
        if counted(hosts[0], "too_big") > before { Ok(()) } else { Err(hosts[0].status(&[]).1) }
    });
    until("the pod to have been told", || talk.round(&long));
    let from = hosts[0].public6().parse::<Ipv6Addr>().unwrap().octets();
    let sent = capture.there().into_iter().filter(|frame| frame.get(22..38) == Some(&from[..]));
    let longest = sent.map(|frame| frame.len()).max();
    assert!(longest.is_some_and(|bytes| bytes > 1300 && bytes <= 14 + 1400), "{longest:?}");
}

/// What is done to the first host, what undoes it.
const CUTS: &[(&str, &str)] = &[
    ("nft add rule ip6 foreign output udp dport 8472 drop", "nft flush chain ip6 foreign output"),
    ("ip -6 route add blackhole {other}/128", "ip -6 route del blackhole {other}/128"),
    ("ip -6 rule add to {other}/128 prohibit pref 9", "ip -6 rule del pref 9"),
    ("ip6tables-legacy -I FORWARD -d {other} -j DROP", "ip6tables-legacy -D FORWARD -d {other} -j DROP"),
    ("bridge fdb replace {vtep} dev flannel-v6.1 dst 2001:db8::77 self", ""),
    ("ip link set flannel-v6.1 down", ""),
];

/// Changes end the tunnel's flows; what is the agent's it repairs.
#[test]
fn changes_end_flows_of_ipv6() {
    if !can("changes_end_flows_of_ipv6") {
        return;
    }
    let two = Two::dual("vxlan", "on");
    let hosts: Vec<&Host> = two.world.hosts.iter().collect();
    let talk = Talk::by(1, &two.pods[0], &two.pods[1]);
    hosts[0].sh("nft add table ip6 foreign");
    hosts[0].sh("nft add chain ip6 foreign output { type filter hook output priority 0 ; }");
    let link = hosts[1].json("ip -j link show flannel-v6.1");
    let vtep = link[0]["address"].as_str().unwrap();
    for (cut, mend) in CUTS {
        println!("{cut}");
        talk.until_fast(&hosts);
        let words = |text: &str| text.replace("{other}", &talk.to.ip().to_string()).replace("{vtep}", vtep);
        hosts[0].sh(&words(cut));
        if !mend.is_empty() {
            talk.fails();
            talk.fails();
            hosts[0].sh(&words(mend));
        }
        talk.works();
    }
    talk.until_fast(&hosts);
}
