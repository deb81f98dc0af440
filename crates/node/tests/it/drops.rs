//! `loden drops`: packets that are dropped on purpose, and the reason that comes first.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;

use kernel::Netns;
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};
use serde_json::Value;

use crate::capture::{Sandbox, Watching, pod, reaches};
use crate::world::{Host, World, sh, until};

const VXLAN: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// Whether this build and this kernel can watch drops, or a note that the test is skipped.
fn can(test: &str) -> bool {
    let watch = fastpath::drops::Watch::start();
    if let Err(why) = &watch {
        println!("SKIP {test}: {why}");
    }
    watch.is_ok()
}

/// What was dropped on a host while something was done, the gravest first.
fn dropped(host: &Host, work: impl FnOnce()) -> Vec<Value> {
    let watching = Watching::start(host, &["drops", "-o", "json", "--seconds", "600"]);
    assert!(watching.first.starts_with("listening for drops on this host and in "), "{}", watching.first);
    work();
    watching.signal("-INT");
    let (code, out, err) = watching.end();
    let json: Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out} {err}"));
    let groups = json["groups"].as_array().unwrap().clone();
    assert_eq!((code, &json["version"]), (i32::from(!groups.is_empty()), &1.into()));
    groups
}

fn ping(from: &Netns, words: &[&str]) {
    let run = || Command::new("ping").args(["-c", "2", "-i", "0.2", "-W", "1"]).args(words).output().unwrap();
    from.run(run).unwrap();
}

fn datagram(from: &Netns, to: &str, data: &[u8]) {
    from.run(|| UdpSocket::bind(("0.0.0.0", 0)).unwrap().send_to(data, to).unwrap()).unwrap();
}

/// Another address of the same subnet.
fn beside_of(address: &str, last: u8) -> String {
    format!("{}.{last}", address.rsplit_once('.').unwrap().0)
}

/// A datagram whose checksum is wrong.
fn broken_datagram(from: &Netns, to: &str) {
    let to: SocketAddr = format!("{to}:0").parse().unwrap();
    let udp = [0x9c, 0x40, 0, 9, 0, 12, 0xde, 0xad, 1, 2, 3, 4];
    from.run(|| {
        let raw = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::UDP)).unwrap();
        sendto(&raw, &udp, SendFlags::empty(), &to).unwrap();
    })
    .unwrap();
}

#[test]
fn the_right_reason_comes_first() {
    if !can("the_right_reason_comes_first") {
        return;
    }
    let world = World::with_config(2, VXLAN).quiet();
    let agents = world.start(&[]);
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    let (near, from) = pod(host, 7);
    let (beside, _) = pod(host, 9);
    let (_far, to) = pod(peer, 8);
    reaches(&near.netns, &to);
    reaches(&beside.netns, &from);
    let inside = beside_of(&from, 200);
    let spoofed = beside_of(&from, 77);
    peer.sh(&format!("ping -c 1 {}", host.public()));
    let check = |what: &str, work: &dyn Fn(), reason: &str, device: &str, parts: &[&str]| {
        let groups = dropped(host, work);
        let first = groups.first().unwrap_or_else(|| panic!("{what}: nothing was dropped"));
        assert_eq!(
            (&first["reason"], &first["device"]),
            (&reason.into(), &device.into()),
            "{what}: {groups:#?}"
        );
        let text = first.to_string();
        for part in parts {
            assert!(text.contains(part), "{what}: no {part:?} in {text}");
        }
    };
    // Healthy traffic drops nothing.
    assert_eq!(dropped(host, || ping(&near.netns, &[&to])), Vec::<Value>::new());

    host.sh("nft add table inet fault");
    host.sh("nft add chain inet fault c { type filter hook forward priority -5 ; }");
    host.sh("nft add rule inet fault c ip protocol icmp drop");
    let owner = "at the hook forward: table inet fault chain c, rule `ip protocol icmp drop`";
    let mend = "nft list chain inet fault c";
    let flow =
        [owner, mend, &format!("\"from\":\"{from}\""), &format!("\"to\":\"{to}\""), "icmp echo request"];
    check("a rule in forward", &|| ping(&near.netns, &[&to]), "NETFILTER_DROP", "cni0", &flow);
    host.sh("nft flush chain inet fault c");
    host.sh("nft add chain inet fault c { type filter hook forward priority -5 ; policy drop ; }");
    let policy = ["table inet fault chain c, policy drop"];
    check("a policy", &|| ping(&near.netns, &[&to]), "NETFILTER_DROP", "cni0", &policy);
    host.sh("nft delete table inet fault");

    host.sh("nft add table inet fault");
    host.sh("nft add chain inet fault out { type filter hook output priority 0 ; }");
    host.sh("nft add rule inet fault out udp dport 8472 drop");
    let tunnel = ["at the hook output", "\"wraps\":\"vxlan vni 1\""];
    check("the tunnel's packets", &|| ping(&near.netns, &[&to]), "NETFILTER_DROP", "flannel.1", &tunnel);
    host.sh("nft delete table inet fault");

    host.sh("sysctl -qw net.ipv4.conf.all.rp_filter=1");
    peer.sh(&format!("ip addr add {spoofed}/32 dev lo"));
    let spoof = || ping(&peer.netns, &["-I", &spoofed, &host.public()]);
    check("a source from elsewhere", &spoof, "IP_RPFILTER", "eth0", &["net.ipv4.conf.eth0.rp_filter=2"]);
    peer.sh(&format!("ip addr del {spoofed}/32 dev lo"));
    host.sh("sysctl -qw net.ipv4.conf.all.rp_filter=0");

    let place = format!("\"place\":\"{from}\"");
    let alone = || ping(&near.netns, &["-W", "5", &inside]);
    check("nobody answers", &alone, "NEIGH_FAILED", "eth0", &[&place, "ip neigh show dev eth0"]);
    let closed = || datagram(&beside.netns, &format!("{from}:9"), b"anybody?");
    check("a closed port", &closed, "NO_SOCKET", "eth0", &[&place, "udp port 9"]);
    check("a wrong checksum", &|| broken_datagram(&beside.netns, &from), "UDP_CSUM", "eth0", &[&place]);

    host.sh("ip link add tiny mtu 600 type bridge");
    host.sh("ip addr add 198.51.100.1/24 dev tiny");
    host.sh("ip link set tiny up");
    let large = || ping(&near.netns, &["-M", "do", "-s", "1000", "198.51.100.9"]);
    check("too large", &large, "PKT_TOO_BIG", "cni0", &["1028 bytes do not fit"]);
    host.sh("ip link del tiny");

    let strange =
        [&[8, 0, 0, 0, 0, 0, 9, 0][..], &[2; 12], &[8, 0], &[0x45, 0, 0, 20, 0, 0, 0, 0, 64, 1, 0, 0]]
            .concat();
    let strange = [&strange[..], &[10, 244, 9, 9, 10, 244, 9, 8]].concat();
    let send = || datagram(&peer.netns, &format!("{}:8472", host.public()), &strange);
    check("another VNI", &send, "VXLAN_VNI_NOT_FOUND", "eth0", &["vxlan vni 9"]);

    // Without agents nobody mends what is missing.
    drop(agents);
    let gateway = beside_of(&to, 0);
    let entry = host.sh(&format!("ip neigh show {gateway} dev flannel.1"));
    let mac = entry.split(' ').nth(2).unwrap().to_owned();
    host.sh(&format!("bridge fdb del {mac} dev flannel.1"));
    check(
        "no forwarding entry",
        &|| ping(&near.netns, &[&to]),
        "NO_TX_TARGET",
        "flannel.1",
        &["bridge fdb show"],
    );
    host.sh("ip route del default");
    let nowhere = || ping(&near.netns, &["203.0.113.5"]);
    check("no route", &nowhere, "IP_INNOROUTES", "cni0", &["ip route get 203.0.113.5"]);
}

#[test]
fn it_follows_and_leaves_nothing_behind() {
    if !can("it_follows_and_leaves_nothing_behind") {
        return;
    }
    let world = World::new(1);
    let host = &world.hosts[0];
    let other = Netns::create().unwrap();
    host.sh("ip link add veth7 type veth peer name in7");
    host.sh(&format!("ip link set in7 netns {}", other.path().display()));
    host.sh("ip addr add 10.1.0.1/24 dev veth7");
    host.sh("ip link set veth7 up");
    for command in ["ip link set in7 name eth0", "ip addr add 10.1.0.7/24 dev eth0", "ip link set eth0 up"] {
        sh(&other, command);
    }
    let _other = Sandbox::hold(other);
    reaches(&host.netns, "10.1.0.7");
    let mut watching = Watching::start(host, &["drops", "-f", "-o", "json"]);
    assert!(watching.first.contains("in 1 pods;"), "{}", watching.first);
    // It stays open: an answer to a closed one would be dropped too.
    let socket = host.netns.run(|| UdpSocket::bind(("0.0.0.0", 0)).unwrap()).unwrap();
    for times in 1..3 {
        socket.send_to(b"anybody?", "10.1.0.7:9").unwrap();
        let line = watching.line();
        let json: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let told = (&json["reason"], &json["packets"], &json["place"]);
        assert_eq!(told, (&"NO_SOCKET".into(), &times.into(), &"10.1.0.7".into()), "{line}");
    }
    // However it ends, the kernel forgets the program.
    let pid = watching.pid();
    let files = fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap().flatten();
    let texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
    let ids: Vec<u32> = texts
        .flat_map(|text| {
            text.lines().filter_map(|l| l.strip_prefix("prog_id:")?.trim().parse().ok()).collect::<Vec<_>>()
        })
        .collect();
    let ours = |loaded: &[u32]| ids.iter().any(|id| loaded.contains(id));
    assert!(ours(&fastpath::drops::loaded()), "{ids:?}");
    watching.signal("-KILL");
    drop(watching);
    until("the program to be gone", || {
        let loaded = fastpath::drops::loaded();
        if ours(&loaded) { Err(format!("{ids:?} of {loaded:?}")) } else { Ok(()) }
    });

    // More than is looked at is counted, and ends nothing.
    let flood = Watching::start(host, &["drops", "--seconds", "600"]);
    for _ in 0..20_000 {
        // Some may find the queue full.
        let _ = socket.send_to(b"anybody?", "10.1.0.7:9");
    }
    flood.signal("-INT");
    let (code, out, err) = flood.end();
    assert!(code == 1 && out.contains("NO_SOCKET on eth0@10.1.0.7: 10.1.0.1 → 10.1.0.7 udp port 9"), "{out}");
    assert!(
        out.contains("/ns/net ss -lntu") && err.contains("dropped too fast to be looked at"),
        "{out} {err}"
    );

    for (words, want) in
        [(&["--help"][..], 0), (&["--seconds", "0"], 2), (&["-o", "xml"], 2), (&["nonsense"], 2)]
    {
        let mut command = host.loden(&["drops"]);
        command.args(words);
        let output = host.netns.run(|| command.output()).unwrap().unwrap();
        assert_eq!(output.status.code(), Some(want), "{words:?}");
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]);
    command.args([env!("CARGO_BIN_EXE_loden"), "drops", "--seconds", "1"]);
    let output = host.netns.run(|| command.output()).unwrap().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("needs the capabilities BPF and PERFMON"), "{text}");
}
