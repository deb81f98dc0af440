use lab::paint::Style;

use super::frame::{Size, frame, short};
use super::view::{Action, Key, Shown, Sort, View, keys, natural};
use super::*;
use crate::status::{Agent, Backend, Lease, Objects, Probes, Store, Trouble};

fn counters(number: u64) -> Counters {
    Counters {
        in_packets: 10 * number,
        in_bytes: 15_000 * number,
        out_packets: 20 * number,
        out_bytes: 1_200 * number,
        dropped: number / 3,
        errors: 0,
    }
}

fn path(number: u64) -> Path {
    Path {
        subnet: format!("10.244.{number}.0/24"),
        inner: format!("10.244.{number}.0"),
        public: format!("192.0.2.{number}"),
        verdict: if number == 7 { "tunnel_dropped" } else { "ok" }.to_owned(),
        bad: number == 7,
        rtt_us: (number != 7).then_some(100 * number),
        mtu: (number != 7).then_some(1450),
        ago_ms: if number > 9 { 400_000 } else { 3_000 * number },
        echoes: 20,
        lost: if number == 7 { 5 } else { 0 },
        ..Path::default()
    }
}

/// A node with so many peers, of which number 7 is bad and number 3 was never probed.
fn sample(peers: u64) -> Sample {
    let peer = |number: u64| Peer {
        node: Some(format!("node-{number}")),
        subnets: vec![format!("10.244.{number}.0/24")],
        public: vec![format!("192.0.2.{number}")],
        backend: "vxlan".to_owned(),
        left_out: None,
        paths: if number == 3 { Vec::new() } else { vec![path(number)] },
        traffic: None,
    };
    let traffic = |number: u64| Traffic { counters: counters(number), rates: None };
    let pod = |number: u64| Pod {
        pod: None,
        device: format!("veth{number}"),
        bridge: Some("cni0".to_owned()),
        addresses: vec![format!("10.244.1.{number}")],
        traffic: traffic(number),
    };
    let device = |name: &str, kind: &str, role: &str, up: bool| Device {
        name: name.to_owned(),
        kind: kind.to_owned(),
        role: role.to_owned(),
        up,
        mtu: 1450,
        traffic: traffic(9),
    };
    Sample {
        at_ms: 1_000,
        host: "node-1".to_owned(),
        status: Status {
            agent: Some(Agent { version: "v0.1.0".to_owned(), pid: 5, uptime_s: 61 }),
            ready: true,
            store: Some(Store { name: "etcd at h:2379".to_owned(), heard_ms: Some(400), complete: true }),
            lease: Some(Lease { subnets: vec!["10.244.1.0/24".to_owned()], ..Lease::default() }),
            backend: Some(Backend { kind: "vxlan".to_owned(), mtu: 1450, ..Backend::default() }),
            objects: Some(Objects { wanted: 12, actual: 12, ..Objects::default() }),
            probes: Some(Probes { off: None, nodes: 3, paths: vec![path(2)] }),
            ..Status::default()
        },
        compared_ms: Some(1_000),
        peers: (2..2 + peers).map(peer).collect(),
        repairs: vec![Repair { kind: "route".to_owned(), cause: "missing".to_owned(), times: 3, new: 0 }],
        pods: vec![pod(2), pod(10)],
        devices: vec![
            device("eth0", "", "hosts", true),
            device("flannel.1", "vxlan", "tunnel", true),
            device("cni0", "bridge", "pods", false),
        ],
    }
}

/// Two seconds later: twice as much came by.
fn later(before: &Sample) -> Sample {
    let mut now = before.clone();
    now.at_ms += 2_000;
    let more = |traffic: &mut Traffic, number| traffic.counters = counters(number);
    now.pods.iter_mut().for_each(|pod| more(&mut pod.traffic, 100));
    now.devices.iter_mut().for_each(|device| more(&mut device.traffic, 2_009));
    now.repairs[0].times += 2;
    now.compare(before);
    now
}

fn drawn(sample: &Sample, view: &View, width: usize, height: usize) -> String {
    Style::PLAIN.lines(&frame(sample, view, Size { width, height }, Style::PLAIN, true))
}

#[test]
fn a_screen_of_three_peers() {
    let now = later(&sample(3));
    let want = "\
node-1 · loden v0.1.0 up 1 min 1 s · ✓ healthy
vxlan MTU 1450 · 10.244.1.0/24 · etcd at h:2379, heard 0.4 s ago · 12 objects, 0 different
repairs route missing 5 +2
PEERS 3, 1 not known
  node      subnet         address    round trip  loss   MTU    probed  state
  ? node-3  10.244.3.0/24  192.0.2.3                                    not probed
  ✓ node-2  10.244.2.0/24  192.0.2.2      200 µs  0/20  1450   6 s ago  ok
  ✓ node-4  10.244.4.0/24  192.0.2.4      400 µs  0/20  1450  12 s ago  ok

PODS 2
  address      device  in pkt/s  in B/s  out pkt/s  out B/s  drop/s  dropped
  10.244.1.2   veth2        490    735k        980    58.8k      17       33
  10.244.1.10  veth10       450    675k        900    54.0k      15       33

DEVICES 3
  device     kind    for              MTU  in pkt/s  in B/s  out pkt/s  out B/s  drop/s  dropped
  eth0               to hosts        1450     10.0k   15.0M      20.0k     1.2M     333      669
  flannel.1  vxlan   tunnel          1450     10.0k   15.0M      20.0k     1.2M     333      669
  cni0       bridge  to pods   down  1450     10.0k   15.0M      20.0k     1.2M     333      669
q quit · s sort: state · r reverse · / filter · Tab view: all · ↑↓ scroll
";
    assert_eq!(drawn(&now, &View::default(), 100, 20), want);
}

#[test]
fn a_pods_name_stands_beside_its_address() {
    let mut now = later(&sample(1));
    now.pods[0].pod = Some("shop/web-0".to_owned());
    now.pods[1].addresses.clear();
    let mut view = View { shown: Shown::Pods, ..View::default() };
    let pods = |sample: &Sample, view: &View, width| {
        let text = drawn(sample, view, width, 20);
        let lines = text.lines().skip_while(|line| !line.starts_with("PODS")).skip(1).take(2);
        lines.map(|line| line.trim_end().to_owned()).collect::<Vec<String>>()
    };
    assert_eq!(
        pods(&now, &view, 100),
        [
            "  pod         address     device  in pkt/s  in B/s  out pkt/s  out B/s  drop/s  dropped",
            "  shop/web-0  10.244.1.2  veth2        490    735k        980    58.8k      17       33",
        ]
    );
    // Where there is little room the address stays, and then the name.
    assert_eq!(pods(&now, &view, 30)[0], "  pod         address");
    view.filter = "WEB".to_owned();
    assert!(drawn(&now, &view, 100, 20).contains("PODS 1 of 2"));
    // An agent of elsewhere may say anything.
    now.pods[0].pod = Some("shop/\u{1b}[2Jweb".to_owned());
    assert_eq!(pods(&now, &view, 100)[1].split("  ").nth(1), Some("shop/?[2Jweb"));
    let read = json::read(json::write(&now).to_compact().as_bytes()).unwrap();
    assert_eq!(read.pods[0].pod, now.pods[0].pod);
}

#[test]
fn what_is_bad_is_seen_on_the_smallest_screen() {
    let mut now = later(&sample(300));
    now.status.probes = Some(Probes { off: None, nodes: 300, paths: vec![path(7)] });
    now.status.troubles = vec![Trouble { text: "the disk is\x1b[31m full".to_owned(), ..Trouble::default() }];
    let want = "\
node-1 · loden v0.1.0 up 1 min 1 s · ✗ …
vxlan MTU 1450 · 10.244.1.0/24 · etcd a…
repairs route missing 5 +2
TROUBLES 1
  ✗  the disk is?[31m full

PEERS 300, 1 bad, 1 not known  1–3 of 3…
  node        round trip  loss
  ✗ node-7                5/20
  ? node-3
  · node-10       1.0 ms  0/20
q quit · s sort: state · r reverse · / …
";
    assert_eq!(drawn(&now, &View::default(), 40, 12), want);
    let troubles = View { shown: Shown::Troubles, ..View::default() };
    assert!(
        drawn(&now, &troubles, 80, 10).contains("  ✗  the disk is?[31m full\n     since "),
        "times are told"
    );
}

#[test]
fn no_screen_is_too_small() {
    for peers in [0, 3, 300] {
        for now in [later(&sample(peers)), Sample::default()] {
            for (width, height) in [(1, 1), (5, 2), (20, 3), (40, 5), (80, 24), (81, 7), (300, 90)] {
                for shown in [Shown::All, Shown::Peers, Shown::Pods, Shown::Devices, Shown::Troubles] {
                    let view = View { shown, skip: 1_000_000, ..View::default() };
                    let size = Size { width, height };
                    let lines = frame(&now, &view, size, Style::PLAIN, true);
                    assert!(lines.len() <= height, "{size:?} {shown:?}: {} lines", lines.len());
                    let widest = lines.iter().map(lab::paint::Text::width).max().unwrap_or_default();
                    assert!(widest <= width, "{size:?} {shown:?}: {widest} columns");
                }
            }
        }
    }
}

#[test]
fn a_long_list_is_scrolled_to_its_end() {
    let now = later(&sample(300));
    let view = View { shown: Shown::Peers, sort: Sort::Name, skip: 9_999, ..View::default() };
    let text = drawn(&now, &view, 100, 10);
    assert!(text.contains("297–300 of 300") || text.contains("of 300"), "{text}");
    assert!(text.contains("node-301") && !text.contains("node-5 "), "{text}");
}

#[test]
fn without_an_agent_it_says_so() {
    let status = Status { silent: Some("no agent runs here".to_owned()), ..Status::default() };
    let now = Sample { status, host: "h".to_owned(), ..Sample::default() };
    let text = drawn(&now, &View::default(), 80, 24);
    assert!(text.starts_with("h · partial, from the kernel alone: no agent runs here\n"), "{text}");
    assert!(text.contains("repairs not known without an agent"), "{text}");
    assert_eq!(now.partial(), Some("no agent runs here"));
}

#[test]
fn rates_take_two_looks_at_the_same_device() {
    let before = sample(1);
    let mut now = later(&before);
    let rates = now.devices[0].traffic.rates.unwrap();
    assert_eq!((rates.in_packets, rates.in_bytes, rates.out_packets), (10_000, 15_000_000, 20_000));
    // Made anew meanwhile, not there before, no time between.
    now.devices[0].traffic.counters = counters(1);
    now.devices[1].name = "new".to_owned();
    now.compare(&before);
    let known: Vec<bool> = now.devices.iter().map(|device| device.traffic.rates.is_some()).collect();
    assert_eq!(known, [false, false, true]);
    now.at_ms = before.at_ms;
    now.compare(&before);
    assert!(now.devices.iter().all(|device| device.traffic.rates.is_none()));
    // Another agent counts repairs from the beginning.
    now.status.agent = Some(Agent { pid: 6, ..Agent::default() });
    now.compare(&before);
    assert_eq!(now.repairs[0].new, 0);
}

#[test]
fn the_document_is_read_back() {
    let now = later(&sample(5));
    let text = json::write(&now).to_indented();
    assert_eq!(json::read(text.as_bytes()), Ok(now));
    assert!(text.contains("\"state\": \"good\"") && text.contains("\"partial\": null"), "{text}");
    for wrong in ["", "[]", "{}", "{\"status\":{}}"] {
        assert!(json::read(wrong.as_bytes()).is_err(), "{wrong}");
    }
}

#[test]
fn keys_change_the_view() {
    let view = |change: fn(&mut View)| {
        let mut view = View::default();
        change(&mut view);
        view
    };
    for (typed, action, want) in [
        (&b"q"[..], Action::Quit, view(|_| ())),
        (b"\x03", Action::Quit, view(|_| ())),
        (b"\x1b", Action::Quit, view(|_| ())),
        (b"\x1a", Action::Suspend, view(|_| ())),
        (b"s", Action::Draw, view(|v| v.sort = Sort::Name)),
        (b"sssss", Action::Draw, view(|_| ())),
        (b"r", Action::Draw, view(|v| v.reverse = true)),
        (b"/Qx\xc3\xa4\x7fy\r", Action::Draw, view(|v| v.filter = "Qxy".to_owned())),
        (b"/ab\x1b[A", Action::Draw, view(|v| (v.filter, v.typing) = ("ab".to_owned(), true))),
        (b"/ab\r\x1b", Action::Draw, view(|_| ())),
        (b"\t\x1b[B\x1b[B\x1b[A", Action::Draw, view(|v| (v.shown, v.skip) = (Shown::Peers, 1))),
        (b"\t\x1b[6~\t", Action::Draw, view(|v| v.shown = Shown::Pods)),
        (b"\x1b[B\x1b[24;5~\x00", Action::Draw, view(|_| ())),
    ] {
        let mut view = View::default();
        let mut last = Action::Draw;
        let mut rest: Vec<Key> = keys(typed);
        // Escape ends a filter where one is typed in one go.
        rest.drain(..).for_each(|key| last = view.press(key, 10));
        assert_eq!((last, view), (action, want), "{:?}", String::from_utf8_lossy(typed));
    }
}

#[test]
fn rows_are_chosen_and_ordered() {
    let mut now = sample(9);
    now.peers[0].paths[0].lost = 19;
    let names = |sort, reverse, filter: &str| {
        let view = View { sort, reverse, filter: filter.to_owned(), ..View::default() };
        view.peers(&now.peers)
            .iter()
            .map(|peer| peer.name().replace("node-", ""))
            .collect::<Vec<_>>()
            .join(" ")
    };
    for (sort, reverse, filter, want) in [
        (Sort::State, false, "", "7 3 10 2 4 5 6 8 9"),
        (Sort::Name, false, "", "2 3 4 5 6 7 8 9 10"),
        (Sort::Name, true, "NODE-1", "10"),
        (Sort::RoundTrip, false, "", "10 9 8 6 5 4 2 3 7"),
        (Sort::Loss, false, "", "2 7 4 5 6 8 9 10 3"),
        (Sort::State, false, "bad", "7"),
        (Sort::State, false, "tunnel_dropped", "7"),
        (Sort::State, false, "nobody", ""),
    ] {
        assert_eq!(names(sort, reverse, filter), want, "{sort:?} {reverse} {filter}");
    }
    for (a, b) in
        [("node-2", "node-10"), ("10.244.9.0", "10.244.10.0"), ("a", "a1"), ("a01b", "a1c"), ("", "a")]
    {
        assert_eq!(
            (natural(a, b), natural(b, a)),
            (std::cmp::Ordering::Less, std::cmp::Ordering::Greater),
            "{a} {b}"
        );
    }
}

#[test]
fn numbers_are_short() {
    for (number, want) in [
        (0, "0"),
        (999, "999"),
        (1_000, "1.0k"),
        (99_949, "99.9k"),
        (123_456, "123k"),
        (999_600, "1.0M"),
        (u64::MAX, "18446744T"),
    ] {
        assert_eq!(short(number), want);
    }
}

#[test]
fn counters_are_read_as_the_kernel_writes_them() {
    let text = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 1628 22 0 0 0 0 0 0 1628 22 0 0 0 0 0 0
flannel.1:    5 4    3    2    0     0          0         0      10      9    8    7    0     0       0          0
odd:name: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0
broken: 1 2 3
";
    let found = collect::counters(text);
    let want = Counters { in_packets: 4, in_bytes: 5, out_packets: 9, out_bytes: 10, dropped: 9, errors: 11 };
    assert_eq!(found["flannel.1"], want);
    assert_eq!(found["odd:name"].out_packets, 6);
    assert_eq!(found.keys().collect::<Vec<_>>(), ["flannel.1", "lo", "odd:name"]);
}
