//! The backend udp without user space: beside peers that have it in user space, and when that is all there is.

use std::net::UdpSocket;
use std::time::Duration;

use super::packets::told;
use super::same::transfer;
use super::{FLAGS, Talk, Two, can, counted, has_tun};
use crate::world::until;

/// One side in the kernel, the other in user space, whatever the wire does about checksums.
#[test]
fn a_peer_in_user_space_cannot_tell() {
    if !can("a_peer_in_user_space_cannot_tell") || !has_tun() {
        return;
    }
    let mut two = Two::start("udp", "on");
    assert_eq!(two.agents.remove(1).terminate(), 0);
    let slow = two.world.hosts[1].agent(&[FLAGS, &["--fast-path=off"]].concat());
    slow.ready();
    two.agents.push(slow);
    let host = &two.world.hosts[0];
    let talk = Talk::new(&two.pods[0], &two.pods[1]).patient();
    let both = |bytes| {
        transfer(0, &two.pods[0], &two.pods[1], bytes);
        transfer(0, &two.pods[1], &two.pods[0], bytes);
    };
    // Veths leave checksums to the other end, which is a program here: that is seen, and nothing is lost.
    talk.works();
    until("packets to be found unfinished", || {
        talk.whole(20);
        if counted(host, "unfinished") > 0 { Ok(()) } else { Err(host.status(&[]).1) }
    });
    both(8 << 20);
    assert!(host.status(&[]).1.contains("whose checksums nobody would finish"), "{}", host.status(&[]).1);
    two.like_cards();
    talk.until_fast(&[host]);
    let before = counted(host, "fast_packets");
    both(32 << 20);
    let fast = counted(host, "fast_packets") - before;
    println!("{fast} fast beside a peer in user space");
    assert!(fast > 500, "{}", host.status(&[]).1);
}

/// Datagrams as any program gets them that listens where flanneld does, before and after the flow goes fast.
#[test]
fn datagrams_are_flannels() {
    if !can("datagrams_are_flannels") || !has_tun() {
        return;
    }
    let mut two = Two::start("udp", "on");
    two.like_cards();
    let [host, peer] = [&two.world.hosts[0], &two.world.hosts[1]];
    two.agents.remove(1).kill();
    let socket = peer.tunnels().pop().unwrap();
    assert!(peer.loden(&["tunnel", "stop", "flannel0", "--socket", &socket]).status().unwrap().success());
    let proxy = until("the port to be free", || {
        let bind = || UdpSocket::bind(format!("{}:8285", peer.public()));
        peer.netns.run(bind).unwrap().map_err(|error| error.to_string())
    });
    proxy.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let talk = Talk::new(&two.pods[0], &two.pods[1]).patient();
    // The packet goes back with its ends exchanged, which no checksum notices; with a word of the payload besides.
    let round = |word: &[u8]| -> Result<Vec<u8>, String> {
        talk.ask.send_to(word, talk.to).map_err(|error| error.to_string())?;
        let mut space = [0; 2000];
        let (question, from) = loop {
            let (length, from) = proxy.recv_from(&mut space).map_err(|error| error.to_string())?;
            if space[..length].ends_with(word) {
                break (space[..length].to_vec(), from);
            }
        };
        assert_eq!(from.to_string(), format!("{}:8285", host.public()));
        let mut answer = question.clone();
        for (a, b, bytes) in [(12, 16, 4), (20, 22, 2)] {
            (0..bytes).for_each(|n| answer.swap(a + n, b + n));
        }
        proxy.send_to(&answer, from).map_err(|error| error.to_string())?;
        let mut heard = [0; 2000];
        let (length, from) = talk.ask.recv_from(&mut heard).map_err(|error| error.to_string())?;
        assert_eq!((&heard[..length], from), (word, talk.to));
        Ok(question)
    };
    let slow = until("a datagram to arrive", || round(b"question"));
    until("datagrams to go fast", || {
        let before = counted(host, "fast_packets");
        (0..20).try_for_each(|_| round(b"question").map(drop))?;
        if counted(host, "fast_packets") > before + 20 { Ok(()) } else { Err(host.status(&[]).1) }
    });
    let fast = round(b"question").unwrap();
    let said = |packet: &[u8]| {
        let mut packet = packet.to_vec();
        // A number the pod's kernel counts up, and the checksum over it, which is right.
        packet[4..6].fill(0);
        told(&packet)
    };
    let numbered = |text: String| text.replace(" header sum wrong", "");
    assert_eq!(numbered(said(&fast)), numbered(said(&slow)));
    assert!(!told(&fast).contains("header sum wrong"), "{}", told(&fast));
}

/// A path that is narrower than the uplink, as routers say or a route does, holds for packets that go fast, too.
#[test]
fn the_path_to_the_peer_may_be_narrow() {
    if !can("the_path_to_the_peer_may_be_narrow") || !has_tun() {
        return;
    }
    let two = Two::start("udp", "on");
    two.like_cards();
    let hosts: Vec<_> = two.world.hosts.iter().collect();
    let talk = Talk::new(&two.pods[0], &two.pods[1]).patient();
    talk.until_fast(&hosts);
    let (whole, narrow) = ([7; 1444], [7; 1272 - 28]);
    talk.works();
    assert_eq!(talk.round(&whole), Ok(()));
    let peer = hosts[1].public();
    hosts[0].sh(&format!("ip route add {peer}/32 dev eth0 mtu 1300"));
    talk.until_fast(&hosts);
    let before = counted(hosts[0], "too_big");
    until("the long ones to be left to the tunnel", || {
        assert_eq!((talk.round(&whole), talk.round(&narrow)), (Ok(()), Ok(())));
        if counted(hosts[0], "too_big") > before { Ok(()) } else { Err(hosts[0].status(&[]).1) }
    });
}

/// What the agent's end leaves, and the tunnel's: the fast path goes on, or the tunnel does.
#[test]
fn whoever_ends_nothing_stays_broken() {
    if !can("whoever_ends_nothing_stays_broken") || !has_tun() {
        return;
    }
    let mut two = Two::start("udp", "on");
    two.like_cards();
    let talk = Talk::new(&two.pods[0], &two.pods[1]).patient();
    talk.until_fast(&two.world.hosts.iter().collect::<Vec<_>>());
    // The tunnel ends, and with it within a second all flows; the agent makes another one.
    let host = &two.world.hosts[0];
    let socket = host.tunnels().pop().unwrap();
    assert!(host.loden(&["tunnel", "stop", "flannel0", "--socket", &socket]).status().unwrap().success());
    talk.works();
    talk.until_fast(&two.world.hosts.iter().collect::<Vec<_>>());
    two.agents.drain(..).for_each(|agent| agent.kill());
    talk.whole(300);
    two.again("off");
    talk.whole(50);
    two.again("on");
    talk.until_fast(&two.world.hosts.iter().collect::<Vec<_>>());
}
