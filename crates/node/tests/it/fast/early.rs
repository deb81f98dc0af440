//! The backend udp taken apart in the uplink's driver, before the kernel makes trains (decision 0239): the same packets, in
//! trains, and nothing that anybody on the wire could send as if it had been taken apart.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::time::Duration;

use fastpath::{FastPath, Role};

use super::packets::{Capture, send};
use super::same::transfer;
use super::segments::plain;
use super::taken::{index, links, other_links};
use super::{FLAGS, Talk, Two, can, counted, end, has_tun, v4};
use crate::capture::Watching;
use crate::traffic::Pod;
use crate::world::{Host, until};

/// By itself where it is known to do no harm; nowhere unless asked (decision 0240).
pub const AUTO: (&str, &str) = ("LODEN_FASTPATH_XDP", "auto");

/// Whether there is what these tests need.
pub fn can_early(test: &str) -> bool {
    can(test) && has_tun()
}

/// What an agent says of it.
fn said(host: &Host) -> String {
    let (_, status) = host.status_json();
    status["fast_path"]["early"].as_str().unwrap_or_default().to_owned()
}

pub fn says(hosts: &[Host], wanted: &str) {
    for host in hosts {
        until(&format!("the agent to say {wanted}"), || {
            let said = said(host);
            if said.contains(wanted) { Ok(()) } else { Err(host.status_json().1["fast_path"].to_string()) }
        });
    }
}

/// The program in a device's driver, by name.
pub fn in_driver(host: &Host) -> Option<String> {
    let link = host.json("ip -j -d link show eth0");
    let id = link[0]["xdp"]["prog"]["id"].as_u64()?;
    let shown = host.json(&format!("bpftool -j prog show id {id}"));
    Some(shown["name"].as_str().unwrap_or_default().to_owned())
}

/// Two nodes of which each takes frames apart early.
pub fn early() -> Two {
    let mut two = Two::start("udp", "on");
    two.like_cards();
    two.again_in("on", &[AUTO]);
    says(&two.world.hosts, "on eth0");
    two
}

/// A TCP connection between the pods.
pub struct Line {
    ask: TcpStream,
    answer: TcpStream,
}

impl Line {
    pub fn new(from: &Pod, to: &Pod) -> Line {
        let listener = to.netns.run(|| TcpListener::bind((to.addresses[0], 0))).unwrap().unwrap();
        let address = listener.local_addr().unwrap();
        let ask = from.netns.run(|| TcpStream::connect(address)).unwrap().unwrap();
        let answer = listener.accept().unwrap().0;
        for stream in [&ask, &answer] {
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        }
        Line { ask, answer }
    }

    pub fn round(&mut self) {
        self.ask.write_all(b"question").unwrap();
        self.answer.read_exact(&mut [0; 8]).unwrap();
        self.answer.write_all(b"answer").unwrap();
        self.ask.read_exact(&mut [0; 6]).unwrap();
    }

    /// Goes on until hosts have taken its frames apart early.
    pub fn until_early(&mut self, hosts: &[Host]) {
        for host in hosts {
            let before = counted(host, "early_frames");
            until("frames to be taken apart early", || {
                (0..50).for_each(|_| self.round());
                if counted(host, "early_frames") > before + 20 { Ok(()) } else { Err(host.status(&[]).1) }
            });
        }
    }

    pub fn ends(&self) -> [SocketAddrV4; 2] {
        [end(self.ask.local_addr().unwrap()), end(self.ask.peer_addr().unwrap())]
    }
}

/// A receiver that takes frames apart early gets trains; and every byte.
#[test]
fn trains_arrive_as_trains() {
    if !can_early("trains_arrive_as_trains") {
        return;
    }
    let two = early();
    let host = &two.world.hosts[1];
    // A card's wire: frames alone.
    transfer(0, &two.pods[0], &two.pods[1], 8 << 20);
    let capture = Capture::start(&two.pods[1].netns);
    let (early, fast) = (counted(host, "early_frames"), counted(host, "fast_packets"));
    transfer(0, &two.pods[0], &two.pods[1], 64 << 20);
    transfer(0, &two.pods[1], &two.pods[0], 8 << 20);
    let (early, fast) = (counted(host, "early_frames") - early, counted(host, "fast_packets") - fast);
    let trains = capture.there().iter().filter(|frame| frame.len() > 1600).count();
    println!("{early} frames, {fast} packets or trains to or from the pod; {trains} trains seen in the pod");
    assert!(early > 30_000 && fast * 3 < early && trains > 100, "{}", host.status(&[]).1);
    assert!(host.status(&[]).1.contains("before trains are made (XDP): on eth0, "), "{}", host.status(&[]).1);
}

/// Somebody who listens at the uplink takes nothing away: of a packet that others hold, too, a program that writes would be given a
/// copy without what was written in front of it. What is heard is the packet taken out of its frame.
#[test]
fn somebody_may_listen() {
    if !can_early("somebody_may_listen") {
        return;
    }
    let two = early();
    let host = &two.world.hosts[1];
    let mut line = Line::new(&two.pods[0], &two.pods[1]);
    line.until_early(&two.world.hosts);
    let capture = Capture::start(&host.netns);
    let before = counted(host, "early_frames");
    transfer(0, &two.pods[0], &two.pods[1], 8 << 20);
    assert!(counted(host, "early_frames") > before + 3000, "{}", host.status(&[]).1);
    let pod = v4(two.pods[1].addresses[0]).octets();
    let bare = capture
        .there()
        .iter()
        .filter(|frame| frame.get(23) == Some(&6) && frame.get(30..34) == Some(&pod))
        .count();
    assert!(bare > 0);
    // And our own command knows where packets are seen.
    let [ask, _] = line.ends();
    let (own, port) = (two.pods[1].netns.path().display().to_string(), format!("{}/tcp", ask.port()));
    let words = ["capture", &own, &ask.ip().to_string(), &port, "-o", "json", "--count", "60"];
    let capture = Watching::start(host, &words);
    (0..40).for_each(|_| line.round());
    let (code, out, err) = capture.end();
    let packets = out.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let bare = |packet: &serde_json::Value| {
        let sights = packet["sights"].as_array().unwrap();
        let at_the_uplink = sights.iter().find(|sight| sight["device"] == "eth0" && sight["place"] == "host");
        at_the_uplink.is_some_and(|sight| sight["wraps"].as_array().unwrap().is_empty())
    };
    let came: Vec<_> = packets.filter(|packet| packet["forward"] == false).collect();
    let passed = came.iter().all(|packet| packet["passed"] == true);
    assert!(passed && came.iter().any(bare), "{code} {out} {err}");
}

/// The end of a connection comes right behind its last bytes, and overtakes none of them.
#[test]
fn what_ends_a_connection_loses_nothing() {
    if !can_early("what_ends_a_connection_loses_nothing") {
        return;
    }
    let two = early();
    let before = counted(&two.world.hosts[1], "early_frames");
    for round in 0..60 {
        let mut line = Line::new(&two.pods[0], &two.pods[1]);
        (0..20).for_each(|_| line.round());
        let Line { mut ask, mut answer } = line;
        let bytes: Vec<u8> = (0..200_000u32).map(|n| (n / 7 + round) as u8).collect();
        let sent = bytes.clone();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                ask.write_all(&sent).unwrap();
                drop(ask);
            });
            let mut got = Vec::new();
            answer.read_to_end(&mut got).unwrap();
            assert!(got == bytes, "round {round}: {} bytes", got.len());
        });
    }
    assert!(counted(&two.world.hosts[1], "early_frames") > before + 1000);
    let lost = two.world.hosts[1].json("ip -j -s link show eth0")[0]["stats64"]["rx"]["dropped"].as_u64();
    println!("{lost:?} frames dropped by the uplink");
}

/// Packets without anything around them are what they were: the host's, whoever they say they are from.
#[test]
fn bare_packets_from_the_wire_get_nowhere() {
    if !can_early("bare_packets_from_the_wire_get_nowhere") {
        return;
    }
    let mut two = early();
    let mut found = Vec::new();
    for xdp in ["auto", "off"] {
        if xdp == "off" {
            two.again_in("on", &[("LODEN_FASTPATH_XDP", xdp)]);
            assert_eq!(two.world.hosts.iter().filter_map(in_driver).count(), 0);
        }
        let host = &two.world.hosts[1];
        let mut line = Line::new(&two.pods[0], &two.pods[1]);
        if xdp == "auto" {
            line.until_early(&two.world.hosts);
        } else {
            (0..2000).for_each(|_| line.round());
        }
        // Strict reverse paths: a bare packet with a pod's source has no business at the uplink.
        host.sh("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth0.rp_filter=1");
        let ends = line.ends();
        let hardware = |host: &Host, netns: &kernel::Netns| {
            let link = crate::world::sh(netns, "ip -j link show eth0");
            let link: serde_json::Value = serde_json::from_str(&link).unwrap();
            assert!(host.number > 0);
            link[0]["address"].as_str().unwrap().to_owned()
        };
        for (what, address) in [
            ("the host's address", hardware(host, &host.netns)),
            ("the pod's address", hardware(host, &two.pods[1].netns)),
        ] {
            let (hub, pod) = (&two.world.hub, ends[1].ip());
            for command in [
                "ip addr replace 192.0.2.1/24 dev wire".to_owned(),
                format!("ip route replace {pod}/32 dev wire"),
                format!("ip neigh replace {pod} lladdr {address} dev wire nud permanent"),
                format!("bridge fdb replace {address} dev h{} master static", host.number),
            ] {
                crate::world::sh(hub, &command);
            }
            line.round();
            let capture = Capture::start(&two.pods[1].netns);
            let wire = Capture::start(&host.netns);
            send(hub, &plain().bytes(ends), *pod, 3).unwrap();
            let own = |frame: &Vec<u8>| frame.get(18..20) == Some(&[0x12, 0x34]);
            let came = wire.until(|frame| own(&frame.to_vec()));
            assert!(came.iter().any(own), "{what}: nothing came to the host");
            let frames = capture.until(|frame| own(&frame.to_vec()));
            found.push((xdp, what, frames.iter().filter(|frame| own(frame)).count()));
        }
    }
    assert!(found.iter().all(|(.., arrived)| *arrived == 0), "{found:?}");
}

/// Programs that are taken from the uplink's driver, and those beside it, come back; and nothing is broken meanwhile.
#[test]
fn programs_that_are_taken_from_the_driver_come_back() {
    let test = "programs_that_are_taken_from_the_driver_come_back";
    if !can_early(test) {
        return;
    }
    if std::process::Command::new("bpftool").arg("version").output().is_err() {
        println!("SKIP {test}: there is no bpftool");
        return;
    }
    let two = early();
    let host = &two.world.hosts[0];
    let mut line = Line::new(&two.pods[0], &two.pods[1]);
    line.until_early(&two.world.hosts);
    let all = links(host);
    assert_eq!(all.len(), 7, "{all:?}");
    for (file, number) in all.iter().filter(|(file, _)| file.display().to_string().contains("early")) {
        host.sh(&format!("bpftool link detach pinned {}", file.display()));
        // What is in between is lost at most, and TCP sends it again.
        (0..200).for_each(|_| line.round());
        transfer(0, &two.pods[1], &two.pods[0], 4 << 20);
        other_links(host, all.len(), &[(file.clone(), *number)]);
        line.until_early(&two.world.hosts);
    }
    assert_eq!(in_driver(host).as_deref(), Some("uplink_early"));
}

/// Somebody has a program in the driver already: it stays, everything else goes fast, and its place is taken when it is free.
#[test]
fn programs_of_others_are_left_alone() {
    if !can_early("programs_of_others_are_left_alone") {
        return;
    }
    let mut two = Two::start("udp", "off");
    two.like_cards();
    let host = &two.world.hosts[0];
    let mut other = FastPath::load(fastpath::BUILT, 16, None).unwrap();
    host.netns.run(|| other.attach("eth0", index(host, "eth0"), Role::Early).unwrap()).unwrap();
    let there = host.json("ip -j -d link show eth0")[0]["xdp"]["prog"]["id"].clone();
    two.again_in("on", &[AUTO]);
    let hosts = &two.world.hosts;
    says(&hosts[..1], "another program has its place");
    says(&hosts[1..], "on eth0");
    Talk::new(&two.pods[0], &two.pods[1]).patient().until_fast(&hosts.iter().collect::<Vec<_>>());
    let mut line = Line::new(&two.pods[0], &two.pods[1]);
    line.until_early(&hosts[1..]);
    assert_eq!(counted(&hosts[0], "early_frames"), 0);
    let (code, status) = hosts[0].status_json();
    assert_eq!((code, &status["fast_path"]["why"]), (0, &serde_json::Value::Null), "{status}");
    assert_eq!(hosts[0].json("ip -j -d link show eth0")[0]["xdp"]["prog"]["id"], there);
    hosts[0].netns.run(|| drop(other)).unwrap();
    says(&hosts[..1], "on eth0");
    line.until_early(hosts);
}

/// What is wanted is what is there; off and cleanup leave nothing.
#[test]
fn it_is_there_where_it_is_wanted() {
    if !can_early("it_is_there_where_it_is_wanted") {
        return;
    }
    let mut two = early();
    let there = |two: &Two| two.world.hosts.iter().map(in_driver).collect::<Vec<_>>();
    let ours = vec![Some("uplink_early".to_owned()); 2];
    assert_eq!(there(&two), ours);
    let none = |two: &Two| {
        until("nothing to be in the driver", || {
            let there = there(two);
            if there == [None, None] { Ok(()) } else { Err(format!("{there:?}")) }
        });
    };
    // Frames that do not lie in one piece.
    for host in &two.world.hosts {
        host.sh("ip link set eth0 mtu 9000");
        says(std::slice::from_ref(host), "off: the uplink's frames are longer than a page");
    }
    none(&two);
    two.world.hosts.iter().for_each(|host| drop(host.sh("ip link set eth0 mtu 1500")));
    says(&two.world.hosts, "on eth0");
    // Where no trains are made, and where they come whole, there is no use for it, unless somebody asks.
    two.world.hosts.iter().for_each(|host| drop(host.sh("ethtool -K eth0 gro off")));
    says(&two.world.hosts, "off: the uplink makes no trains of frames");
    none(&two);
    two.world.hosts.iter().for_each(|host| drop(host.sh("ethtool -K eth0 gro on")));
    says(&two.world.hosts, "on eth0");
    two.world.hosts.iter().for_each(|host| drop(host.sh("ethtool -K eth0 tx on")));
    says(&two.world.hosts, "off: the wire takes trains of packets whole");
    none(&two);
    two.again_in("on", &[("LODEN_FASTPATH_XDP", "on")]);
    says(&two.world.hosts, "on eth0");
    assert_eq!(there(&two), ours);
    transfer(0, &two.pods[0], &two.pods[1], 8 << 20);
    two.again("off");
    none(&two);
    two.like_cards();
    two.again_in("on", &[AUTO]);
    says(&two.world.hosts, "on eth0");
    two.agents.clear();
    assert_eq!(there(&two), ours, "it outlives the agents");
    for host in &two.world.hosts {
        let mut cleanup = host.loden(&["cleanup"]);
        let output = host.netns.run(|| cleanup.output()).unwrap().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    none(&two);
    let host = &two.world.hosts[0];
    let wrong = host.agent_in(FLAGS, &[("LODEN_STORE", host.store()), ("LODEN_FASTPATH_XDP", "often")]);
    wrong.ready();
    until("the agent to refuse the word", || {
        let (_, status) = host.status_json();
        let why = status["fast_path"]["why"].as_str().unwrap_or_default().to_owned();
        if why == "LODEN_FASTPATH_XDP=often: write auto, on or off" {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
}

/// Without agents frames are taken apart for half a minute more, then the tunnel has them; another agent takes it all over, and not a
/// byte is lost.
#[test]
fn an_agent_that_is_killed_takes_nothing_along() {
    if !can_early("an_agent_that_is_killed_takes_nothing_along") {
        return;
    }
    let mut two = early();
    let mut line = Line::new(&two.pods[0], &two.pods[1]);
    line.until_early(&two.world.hosts);
    two.agents.drain(..).for_each(|agent| agent.kill());
    let killed = std::time::Instant::now();
    let pods = &two.pods;
    while killed.elapsed() < Duration::from_secs(33) {
        transfer(0, &pods[0], &pods[1], 4 << 20);
        (0..100).for_each(|_| line.round());
    }
    two.agents = two
        .world
        .hosts
        .iter()
        .map(|host| host.agent_in(FLAGS, &[("LODEN_STORE", host.store()), AUTO]))
        .collect();
    (0..2000).for_each(|_| line.round());
    two.agents.iter().for_each(|agent| agent.ready());
    says(&two.world.hosts, "on eth0");
    line.until_early(&two.world.hosts);
    // And while frames are taken apart.
    for _ in 0..3 {
        two.agents.drain(..).for_each(|agent| agent.kill());
        two.agents = two
            .world
            .hosts
            .iter()
            .map(|host| host.agent_in(FLAGS, &[("LODEN_STORE", host.store()), AUTO]))
            .collect();
        transfer(0, &two.pods[0], &two.pods[1], 32 << 20);
        two.agents.iter().for_each(|agent| agent.ready());
        says(&two.world.hosts, "on eth0");
    }
    line.until_early(&two.world.hosts);
}

/// A peer that has another address from now on is another one.
#[test]
fn a_peer_that_moves_is_followed() {
    if !can_early("a_peer_that_moves_is_followed") {
        return;
    }
    let two = early();
    let mut line = Line::new(&two.pods[0], &two.pods[1]);
    line.until_early(&two.world.hosts);
    let [host, peer] = [&two.world.hosts[0], &two.world.hosts[1]];
    for command in [
        &format!("ip addr del {}/24 dev eth0", peer.public()),
        "ip addr add 192.0.2.77/24 dev eth0",
        "ip route replace default via 192.0.2.1",
    ] {
        peer.sh(command);
    }
    let wire = Capture::start(&host.netns);
    until("packets to come from the new address", || {
        line.round();
        let frames = wire.there();
        let new = |frame: &Vec<u8>| {
            frame.get(26..30) == Some(&Ipv4Addr::new(192, 0, 2, 77).octets())
                && frame.get(36..38) == Some(&8285u16.to_be_bytes())
        };
        if frames.iter().any(new) { Ok(()) } else { Err(format!("{} frames", frames.len())) }
    });
    line.until_early(&two.world.hosts);
    transfer(0, &two.pods[1], &two.pods[0], 8 << 20);
    assert_eq!(v4(two.pods[0].addresses[0]), *line.ends()[0].ip());
}

/// Beginning and ending under traffic: datagrams that are answered one by one show each loss.
#[test]
fn it_begins_and_ends_without_a_loss() {
    if !can_early("it_begins_and_ends_without_a_loss") {
        return;
    }
    let two = early();
    let host = &two.world.hosts[0];
    let talk = Talk::new(&two.pods[0], &two.pods[1]).patient();
    talk.until_fast(&two.world.hosts.iter().collect::<Vec<_>>());
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let rounds = scope.spawn(|| {
            let mut rounds = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                talk.whole(50);
                rounds += 50;
            }
            rounds
        });
        for tx in ["on", "off"].into_iter().cycle().take(6) {
            host.sh(&format!("ethtool -K eth0 tx {tx}"));
            says(&two.world.hosts[..1], if tx == "on" { "off: the wire" } else { "on eth0" });
            assert!(!rounds.is_finished(), "tx {tx}");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        println!("{} rounds", rounds.join().unwrap());
    });
}
