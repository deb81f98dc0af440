//! Every kind of change is told, and lost events are admitted.

use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use kernel::rtnl::Rtnl;
use kernel::{Event, Monitor, Netns};
use model::{Family, IfName, Mac};
use plan::state::{Fdb, Key, Neigh, Nexthop, NftFamily, Object, Route, TableKey, Via};

use super::{fresh, run_in};

/// What must not take longer fails.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn every_kind_of_change_is_an_event() {
    let netns = fresh();
    for command in ["ip link set lo up", "ip link add eth0 type veth peer name wire", "ip link set eth0 up"] {
        run_in(&netns, command);
    }
    let mut monitor = Monitor::open_in(&netns).unwrap();
    let closer = monitor.closer().unwrap();
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        while let Some(event) = monitor.next().unwrap() {
            sender.send(event).unwrap();
        }
    });
    let eth0 = IfName::fixed("eth0");
    let vx = IfName::fixed("vx");
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let mac = |last| Mac([2, 0, 0, 0, 0, last]);
    let gateway = |text: &str| Via::Gateway { gateway: ip(text), dev: eth0, onlink: false };
    let route = |dst: &str, protocol, via: Option<Via>| {
        let route = Route { protocol, ..Route::ours(dst.parse().unwrap(), Via::Blackhole) };
        Event::Route(route.key(), protocol, via.map(|via| Route { via, ..route }))
    };
    let nexthop = Object::Nexthop(Nexthop { id: 7, dev: eth0, via: ip("192.0.2.2"), onlink: false });
    let neigh = Object::Neigh(Neigh { dev: eth0, dst: ip("192.0.2.9"), mac: mac(9) });
    let fdb = Object::Fdb(Fdb { dev: vx, mac: mac(8), dst: ip("192.0.2.8") });
    let table = TableKey { family: NftFamily::Inet, name: "t".to_owned() };
    for (command, want) in [
        ("ip link set wire up", Event::Link(IfName::fixed("wire"), 2)),
        ("ip addr add 192.0.2.1/24 dev eth0", Event::Addr(eth0)),
        ("ip addr add 2001:db8::1/64 dev eth0 nodad", Event::Addr(eth0)),
        (
            "ip route add 10.1.0.0/24 via 192.0.2.2 proto 76",
            route("10.1.0.0/24", 76, Some(gateway("192.0.2.2"))),
        ),
        ("ip route del 10.1.0.0/24", route("10.1.0.0/24", 76, None)),
        ("ip route add fd00:1::/64 via 2001:db8::2", route("fd00:1::/64", 3, Some(gateway("2001:db8::2")))),
        (
            "ip nexthop add id 7 via 192.0.2.2 dev eth0 proto 76",
            Event::Object(Key::Nexthop(7), Some(nexthop)),
        ),
        ("ip route add 10.2.0.0/24 nhid 7 proto 76", route("10.2.0.0/24", 76, Some(Via::Nexthop(7)))),
        ("ip nexthop del id 7", Event::Object(Key::Nexthop(7), None)),
        ("ip rule add pref 9 lookup 9", Event::Rule(Family::V4)),
        ("ip -6 rule add pref 9 lookup 9", Event::Rule(Family::V6)),
        (
            "ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent",
            Event::Object(Key::Neigh(eth0, ip("192.0.2.9")), Some(neigh)),
        ),
        (
            "ip neigh change 192.0.2.9 dev eth0 nud stale",
            Event::Object(Key::Neigh(eth0, ip("192.0.2.9")), None),
        ),
        ("ip link add vx type vxlan id 5 dstport 8472 dev eth0", Event::Link(vx, 4)),
        (
            "bridge fdb add 02:00:00:00:00:08 dev vx dst 192.0.2.8 self permanent",
            Event::Object(Key::Fdb(vx, mac(8)), Some(fdb)),
        ),
        ("bridge fdb del 02:00:00:00:00:08 dev vx", Event::Object(Key::Fdb(vx, mac(8)), None)),
        ("nft add table inet t", Event::Nft(table.clone())),
        ("nft add chain inet t c", Event::Nft(table.clone())),
        ("nft delete table inet t", Event::Nft(table)),
        ("nft add table netdev d", Event::OtherNft),
        ("nft add table arp a", Event::OtherNft),
        ("ip link set vx name vx2", Event::Link(vx, 4)),
        ("ip link del vx2", Event::Link(IfName::fixed("vx2"), 4)),
    ] {
        run_in(&netns, command);
        let mut seen = Vec::new();
        while !seen.contains(&want) {
            let event = receiver.recv_timeout(PATIENCE);
            seen.push(event.unwrap_or_else(|_| panic!("{command}: no {want:?} among {seen:?}")));
        }
    }
    closer.close();
    thread.join().unwrap();
}

/// Whoever writes thousands of them does not want to hear of each; devices it does hear of, and of all afterwards.
#[test]
fn what_is_written_in_bulk_is_not_heard() {
    let netns = fresh();
    run_in(&netns, "ip link add eth0 type veth peer name wire");
    run_in(&netns, "ip link set eth0 up");
    run_in(&netns, "ip addr add 192.0.2.1/24 dev eth0");
    run_in(&netns, "ip link add vx type vxlan id 5 dstport 8472 dev eth0");
    run_in(&netns, "ip link set wire up");
    let mut monitor = Monitor::open_in(&netns).unwrap();
    let ears = monitor.ears().unwrap();
    let write = |last: u8| {
        for command in [
            format!("ip neigh add 192.0.2.{last} lladdr 02:00:00:00:00:{last} dev eth0 nud permanent"),
            format!("bridge fdb add 02:00:00:00:00:{last} dev vx dst 192.0.2.{last} self permanent"),
            format!("ip nexthop add id {last} via 192.0.2.{last} dev eth0"),
            format!("ip route add 10.{last}.0.0/24 nhid {last}"),
            format!("ip route add fd00:{last}::/64 dev eth0"),
        ] {
            run_in(&netns, &command);
        }
        run_in(&netns, &format!("ip rule add pref {last} lookup 9"));
    };
    let mut heard = || {
        let mut heard = Vec::new();
        loop {
            match monitor.next().unwrap().unwrap() {
                Event::Rule(_) => {
                    // Linux 6.1 tells of some twice.
                    heard.dedup();
                    return heard;
                }
                Event::Object(key, _) => heard.push(key.kind()),
                // Devices that came up get routes of their own when the kernel comes to it.
                Event::Route(key, ..)
                    if ["10.", "fd00:"].iter().any(|of| key.dst.to_string().starts_with(of)) =>
                {
                    heard.push("route");
                }
                _ => {}
            }
        }
    };
    let all = ["neighbour", "fdb", "nexthop", "route"];
    let covered = ears.cover();
    write(20);
    assert_eq!(heard(), [""; 0], "covered");
    drop(covered);
    write(21);
    assert_eq!(heard(), all, "again");
}

/// Who listens for flows hears of more: disciplines, filters, and neighbours that have another hardware address.
#[test]
fn what_matters_to_flows_is_told_to_who_asks() {
    let netns = fresh();
    run_in(&netns, "ip link add shaped type veth peer name other");
    let index = netns.run(|| Rtnl::open().unwrap().links().unwrap()).unwrap();
    let index = index.iter().find(|l| l.link.name.as_str() == "shaped").unwrap().index;
    // Where the other end is down, the kernel drops neighbours when it notices, which may be later.
    run_in(&netns, "ip link set other up");
    run_in(&netns, "ip link set shaped up");
    run_in(&netns, "ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev shaped nud stale");
    let mut monitor = netns.run(Monitor::open_for_flows).unwrap().unwrap();
    let moved = Event::Moved(IfName::fixed("shaped"));
    let redirect = "u32 match u32 0 0 action mirred egress redirect dev other";
    for (command, told) in [
        ("tc qdisc add dev shaped clsact", Event::Qdisc(index)),
        (&format!("tc filter add dev shaped ingress protocol ip prio 1 {redirect}"), Event::Qdisc(index)),
        ("tc filter del dev shaped ingress", Event::Qdisc(index)),
        ("ip neigh change 192.0.2.9 lladdr 02:00:00:00:00:08 dev shaped nud stale", moved.clone()),
        // Only when it has another one.
        (
            "ip neigh change 192.0.2.9 lladdr 02:00:00:00:00:08 dev shaped nud reachable",
            Event::Rule(Family::V4),
        ),
        ("ip neigh change 192.0.2.9 lladdr 02:00:00:00:00:07 dev shaped nud stale", moved.clone()),
    ] {
        run_in(&netns, command);
        run_in(&netns, "ip rule add pref 9 lookup 9");
        let mut heard = vec![monitor.next().unwrap().unwrap()];
        while heard.last() != Some(&Event::Rule(Family::V4)) {
            heard.push(monitor.next().unwrap().unwrap());
        }
        assert!(heard.contains(&told), "{command}: {heard:?}");
        assert!(told == moved || !heard.contains(&moved), "{command}: {heard:?}");
        run_in(&netns, "ip rule del pref 9");
        while monitor.next().unwrap() != Some(Event::Rule(Family::V4)) {}
    }
}

#[test]
fn lost_events_are_told() {
    let netns = fresh();
    run_in(&netns, "ip link set lo up");
    let mut monitor = netns.run(|| Monitor::with_buffer(4096)).unwrap().unwrap();
    // Nobody listens meanwhile.
    for n in 0..200 {
        run_in(&netns, &format!("ip route add 10.9.{n}.0/24 dev lo"));
    }
    let closer = monitor.closer().unwrap();
    let mut events = Vec::new();
    while events.last() != Some(&Event::Overrun) {
        events.push(monitor.next().unwrap().unwrap());
        assert!(events.len() < 200, "all arrived");
    }
    // It goes on afterwards.
    run_in(&netns, "ip rule add pref 9 lookup 9");
    while events.last() != Some(&Event::Rule(Family::V4)) {
        events.push(monitor.next().unwrap().unwrap());
    }
    closer.close();
    assert_eq!(monitor.next().unwrap(), None);
}

/// The kernel says once that it drops, and drops until the socket is empty: who looks again when told must not miss
/// what happens in between.
#[test]
fn nothing_is_lost_after_a_loss_was_told() {
    let netns = fresh();
    run_in(&netns, "ip link set lo up");
    let routes: String =
        (0..8_000).map(|n| format!("route add 10.{}.{}.0/24 dev lo\n", n / 250, n % 250)).collect();
    for buffer in [8 << 10, 512 << 10, 1 << 20] {
        let mut monitor = netns.run(|| Monitor::with_buffer(buffer)).unwrap().unwrap();
        // Nobody listens meanwhile.
        ip_batch(&netns, &routes);
        let mut before = 0;
        while monitor.next().unwrap().unwrap() != Event::Overrun {
            before += 1;
            assert!(before < 8_000, "all arrived with {buffer} bytes");
        }
        run_in(&netns, "ip rule add pref 9 lookup 9");
        let closer = monitor.closer().unwrap();
        let (sender, receiver) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            while let Some(event) = monitor.next().unwrap() {
                sender.send(event).unwrap();
            }
        });
        let mut last = receiver.recv_timeout(PATIENCE);
        while !matches!(last, Ok(Event::Rule(Family::V4) | Event::Overrun)) {
            assert!(last.is_ok(), "with {buffer} bytes the rule was not told");
            last = receiver.recv_timeout(PATIENCE);
        }
        closer.close();
        thread.join().unwrap();
        run_in(&netns, "ip rule del pref 9");
        run_in(&netns, "ip route flush dev lo");
    }
}

fn ip_batch(netns: &Netns, lines: &str) {
    let mut child = netns
        .run(|| Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn())
        .unwrap()
        .unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}
