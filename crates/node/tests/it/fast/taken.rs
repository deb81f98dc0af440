//! Somebody takes the programs of the fast path from their devices, or the files that keep them there; and a peer that
//! moves. What the fault catalogue found (`cargo xtask faults --fast-path`).

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use fastpath::{FastPath, Pins, Role};

use super::same::transfer;
use super::{FLAGS, Talk, Two, can, counted};
use crate::world::{Host, World, until};

/// Name of the directory of a host's links.
fn name(host: &Host) -> String {
    let netns = std::fs::metadata(host.netns.path()).map_or(0, |file| file.ino());
    format!("{netns}-10_244_0_0_16")
}

/// Files of a host's links, with their numbers.
pub fn links(host: &Host) -> Vec<(PathBuf, u64)> {
    let dir = std::fs::read_dir(format!("/sys/fs/bpf/loden/{}", name(host)));
    let files = dir.into_iter().flatten().flatten();
    files.map(|file| (file.path(), file.metadata().map_or(0, |data| data.ino()))).collect()
}

/// Two at the uplink and two before the pod, and one at the tunnel's device.
const ALL: usize = 5;

/// Waits until as many links are there as before, and none of these.
pub fn other_links(host: &Host, before: usize, taken: &[(PathBuf, u64)]) {
    until("the links to be there again", || {
        let now = links(host);
        let same = now.iter().any(|link| taken.contains(link));
        if now.len() == before && !same { Ok(()) } else { Err(format!("{now:?} after {taken:?}")) }
    });
}

/// Those of a device.
pub fn programs(host: &Host, device: &str) -> Vec<String> {
    host.netns.run(|| fastpath::programs_on(device)).unwrap().unwrap()
}

/// Nobody tells of it: the agent looks.
#[test]
fn programs_that_are_taken_from_devices_come_back() {
    let test = "programs_that_are_taken_from_devices_come_back";
    if !can(test) {
        return;
    }
    if std::process::Command::new("bpftool").arg("version").output().is_err() {
        println!("SKIP {test}: there is no bpftool");
        return;
    }
    let two = Two::start("vxlan", "on");
    let hosts: Vec<&Host> = two.world.hosts.iter().collect();
    let talk = Talk::new(&two.pods[0], &two.pods[1]);
    talk.until_fast(&hosts);
    let all = links(hosts[0]);
    assert_eq!(all.len(), ALL, "{all:?}");
    for (file, number) in &all {
        let before = links(hosts[0]).len();
        hosts[0].sh(&format!("bpftool link detach pinned {}", file.display()));
        talk.whole(200);
        other_links(hosts[0], before, &[(file.clone(), *number)]);
        talk.whole(20);
        talk.until_fast(&hosts);
    }
    assert_eq!(programs(hosts[0], "eth0"), ["uplink_in", "uplink_out"]);
    assert_eq!(programs(hosts[0], "veth0"), ["pod_in", "pod_out"]);
    assert_eq!(programs(hosts[0], "flannel.1"), ["tunnel_out"]);
}

/// Another agent, which ended since, has put its own in their place.
#[test]
fn programs_that_were_exchanged_come_back() {
    if !can("programs_that_were_exchanged_come_back") {
        return;
    }
    let two = Two::start("vxlan", "on");
    let hosts: Vec<&Host> = two.world.hosts.iter().collect();
    let talk = Talk::new(&two.pods[0], &two.pods[1]);
    talk.until_fast(&hosts);
    hosts[0]
        .netns
        .run(|| {
            let pins = Pins::open(&name(hosts[0])).unwrap();
            let mut other = FastPath::load(fastpath::BUILT, 16, Some(pins)).unwrap();
            for (device, role) in [("eth0", Role::Uplink), ("veth0", Role::Pod)] {
                other.attach(device, index(hosts[0], device), role).unwrap();
            }
        })
        .unwrap();
    talk.whole(200);
    talk.until_fast(&hosts);
    assert_eq!(programs(hosts[0], "eth0"), ["uplink_in", "uplink_out"]);
}

pub fn index(host: &Host, device: &str) -> u32 {
    u32::try_from(host.json(&format!("ip -j link show {device}"))[0]["ifindex"].as_u64().unwrap()).unwrap()
}

/// Links of a device that is gone are lost, and nothing of them stays.
#[test]
fn a_device_that_is_gone_leaves_no_files() {
    if !can("a_device_that_is_gone_leaves_no_files") {
        return;
    }
    let world = World::new(1);
    let host = &world.hosts[0];
    host.sh("ip link add veth0 type veth peer name other");
    let pod = index(host, "veth0");
    host.netns
        .run(|| {
            let pins = Pins::open(&name(host)).unwrap();
            let mut fast = FastPath::load(fastpath::BUILT, 16, Some(pins.clone())).unwrap();
            fast.attach("eth0", index(host, "eth0"), Role::Uplink).unwrap();
            fast.attach("veth0", pod, Role::Pod).unwrap();
            assert_eq!((fast.mend(), links(host).len()), (vec![], 4));
            host.sh("ip link del veth0");
            assert_eq!((fast.mend(), links(host).len()), (vec![pod], 2));
            assert_eq!(fast.mend(), [0u32; 0]);
            pins.clear();
        })
        .unwrap();
}

/// Without the files an agent that is killed takes its programs with it.
#[test]
fn files_that_are_taken_away_come_back() {
    if !can("files_that_are_taken_away_come_back") {
        return;
    }
    let mut two = Two::start("vxlan", "on");
    let hosts: Vec<&Host> = two.world.hosts.iter().collect();
    let talk = Talk::new(&two.pods[0], &two.pods[1]);
    talk.until_fast(&hosts);
    let before = links(hosts[0]);
    let remove = || std::fs::remove_dir_all(format!("/sys/fs/bpf/loden/{}", name(hosts[0]))).unwrap();
    remove();
    talk.whole(200);
    other_links(hosts[0], ALL, &before);
    two.agents.remove(0).kill();
    talk.whole(200);
    assert_eq!(programs(hosts[0], "eth0"), ["uplink_in", "uplink_out"], "they outlive the agent");
    // And if it is killed before it has put them back, nothing is broken.
    let agent = hosts[0].agent(FLAGS);
    agent.ready();
    talk.until_fast(&hosts);
    remove();
    agent.kill();
    talk.whole(200);
    let agent = hosts[0].agent(FLAGS);
    agent.ready();
    two.agents.push(agent);
    other_links(hosts[0], ALL, &[]);
    talk.until_fast(&hosts);
}

/// A peer has another address from now on; what goes fast follows it.
#[test]
fn a_peer_that_moves() {
    if !can("a_peer_that_moves") {
        return;
    }
    for backend in ["vxlan", "host-gw"] {
        let two = Two::start(backend, "on");
        let hosts: Vec<&Host> = two.world.hosts.iter().collect();
        let talk = Talk::new(&two.pods[0], &two.pods[1]);
        talk.until_fast(&hosts);
        let old = hosts[1].public();
        for command in [
            &format!("ip addr del {old}/24 dev eth0"),
            "ip addr add 192.0.2.77/24 dev eth0",
            "ip route replace default via 192.0.2.1",
        ] {
            hosts[1].sh(command);
        }
        until("the peer to be known by its new address", || {
            let text = if backend == "vxlan" {
                hosts[0].sh("bridge fdb show dev flannel.1")
            } else {
                hosts[0].sh("ip route show proto 76")
            };
            if text.contains("192.0.2.77") { Ok(()) } else { Err(text) }
        });
        talk.works();
        talk.until_fast(&hosts);
        // The old address is nobody's: nothing may depend on it.
        talk.whole(500);
    }
}

/// Connections that carry much outlive what happens to a node, though somebody drops what conntrack calls invalid.
#[test]
fn bulk_outlives_what_happens_meanwhile() {
    if !can("bulk_outlives_what_happens_meanwhile") {
        return;
    }
    let mut two = Two::start("vxlan", "on");
    for host in &two.world.hosts {
        host.sh("nft add table ip strict");
        host.sh("nft add chain ip strict forward { type filter hook forward priority 0 ; }");
        host.sh("nft add rule ip strict forward ct state invalid counter drop");
    }
    let agent = std::cell::RefCell::new(Some(two.agents.remove(0)));
    let host = &two.world.hosts[0];
    let (stop, whole) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let bulk = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                transfer(0, &two.pods[0], &two.pods[1], 32 << 20);
                whole.fetch_add(1, Ordering::Relaxed);
            }
        });
        // One that is under way when it happens, and one that is not.
        let more = |what: &str| {
            let before = whole.load(Ordering::Relaxed);
            until(&format!("transfers to go on: {what}"), || {
                assert!(!bulk.is_finished(), "{what}");
                let now = whole.load(Ordering::Relaxed);
                if now >= before + 2 { Ok(()) } else { Err(format!("{now} after {before}")) }
            });
        };
        more("nothing");
        for command in [
            "ip link set eth0 mtu 1400",
            "ip link set eth0 mtu 1500",
            "conntrack -F",
            "ip link set eth0 address 02:00:00:00:00:78",
            "sysctl -qw net.netfilter.nf_conntrack_tcp_be_liberal=0",
        ] {
            host.sh(command);
            more(command);
        }
        agent.borrow_mut().take().into_iter().for_each(|agent| agent.kill());
        more("without an agent");
        agent.replace(Some(host.agent(FLAGS)));
        more("another agent");
        stop.store(true, Ordering::Relaxed);
    });
    assert!(counted(host, "fast_packets") > 100, "{}", host.status(&[]).1);
    two.agents.extend(agent.take());
}
