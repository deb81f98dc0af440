//! What a person sees, from made-up measurements.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::*;
use crate::packet::{Content, Frame};
use crate::proto::{Device, Hop, Host, Reach, Walk};
use crate::spec::{Stack, Topology};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn host(n: usize, wire: usize, underlay: &[&str], subnets: &[&str]) -> Host {
    let vxlan = !subnets.is_empty();
    let name = if vxlan { "flannel.1" } else { "eth0" }.to_owned();
    Host {
        name: format!("host{n}"),
        wire,
        underlay: underlay.iter().map(|a| net(a)).collect(),
        subnets: subnets.iter().map(|a| net(a)).collect(),
        mtu: vxlan.then_some(1450),
        devices: vec![Device { name, mac: format!("0e:00:00:00:00:0{n}") }],
        agent: if vxlan {
            Agent::Running { pid: 10, ready: true, ready_ms: 120.0 }
        } else {
            Agent::Exited { status: "exit status: 1".to_owned() }
        },
    }
}

fn pod(name: &str, host: &str, addresses: &[&str], add_ms: f64) -> Pod {
    let part = |what: &str, ms: f64| Step { what: what.to_owned(), ms };
    Pod {
        name: name.to_owned(),
        host: host.to_owned(),
        addresses: addresses.iter().map(|a| ip(a)).collect(),
        mtu: 1450,
        add_ms,
        plugins: vec![part("flannel", add_ms - 0.5), part("portmap", 0.5)],
        pid: 20,
        result: Value::Null,
    }
}

fn three() -> Status {
    Status {
        name: "lab".to_owned(),
        backend: "vxlan".to_owned(),
        topology: Topology::Routed,
        stack: Stack::V4,
        net_conf: Value::Null,
        age_s: 3,
        rootless: false,
        hosts: vec![
            host(1, 0, &["192.0.2.11/24"], &["10.244.7.0/24"]),
            host(2, 0, &["192.0.2.12/24"], &["10.244.93.0/24"]),
            host(3, 1, &["198.51.100.13/24"], &[]),
        ],
        pods: vec![
            pod("pod1-1", "host1", &["10.244.7.2"], 4.0),
            pod("pod1-2", "host1", &["10.244.7.3"], 2.0),
            pod("pod2-1", "host2", &["10.244.93.2"], 8.5),
        ],
    }
}

fn check(lines: &[Text], style: Style, want: &str) {
    let got = style.lines(lines);
    assert_eq!(got.trim_matches('\n'), want.trim_matches('\n'), "\n{got}");
    // On a narrow terminal, running text may wrap; on a usual one nothing does.
    let fits = style.width < 100 || got.lines().all(|l| l.chars().count() <= style.width);
    assert!(fits, "wider than {}:\n{got}", style.width);
}

const NARROW: Style = Style { color: false, unicode: false, width: 72 };

#[test]
fn hosts_are_boxes_on_wires() {
    check(
        &picture(&three(), Style::PLAIN),
        Style::PLAIN,
        r#"
  ╭─ host1 ────────────────────╮  ╭─ host2 ────────────────────╮
  │ pod1-1   10.244.7.2        │  │ pod2-1   10.244.93.2       │
  │ pod1-2   10.244.7.3        │  │ subnet   10.244.93.0/24    │
  │ subnet   10.244.7.0/24     │  │ flannel.1 · MTU 1450       │
  │ flannel.1 · MTU 1450       │  │          0e:00:00:00:00:02 │
  │          0e:00:00:00:00:01 │  │                            │
  ╰─ eth0 192.0.2.11 ──────────╯  ╰─ eth0 192.0.2.12 ──────────╯
  ════╧═ wire0 192.0.2.0/24 ══════════╧═════════════════════════
      ║  a router between
  ╭─ host3 ────────────────────╮
  │ subnet   none yet          │
  ╰─ eth0 198.51.100.13 ───────╯
  ════╧═ wire1 198.51.100.0/24 ═
"#,
    );
    check(
        &picture(&three(), NARROW),
        NARROW,
        r#"
  +- host1 --------------------+  +- host2 --------------------+
  | pod1-1   10.244.7.2        |  | pod2-1   10.244.93.2       |
  | pod1-2   10.244.7.3        |  | subnet   10.244.93.0/24    |
  | subnet   10.244.7.0/24     |  | flannel.1 - MTU 1450       |
  | flannel.1 - MTU 1450       |  |          0e:00:00:00:00:02 |
  |          0e:00:00:00:00:01 |  |                            |
  +- eth0 192.0.2.11 ----------+  +- eth0 192.0.2.12 ----------+
  ====+= wire0 192.0.2.0/24 ==========+=========================
      #  a router between
  +- host3 --------------------+
  | subnet   none yet          |
  +- eth0 198.51.100.13 -------+
  ====+= wire1 198.51.100.0/24 =
"#,
    );
    let mut dual = three();
    dual.hosts.truncate(1);
    dual.pods.truncate(1);
    dual.hosts[0].underlay.push(net("2001:db8:0:1::11/64"));
    dual.hosts[0].subnets.push(net("fd00:10:244:7::/64"));
    dual.pods[0].addresses.push(ip("fd00:10:244:7::2"));
    check(
        &picture(&dual, Style::PLAIN),
        Style::PLAIN,
        r#"
  ╭─ host1 ────────────────────────────╮
  │ pod1-1   10.244.7.2                │
  │          fd00:10:244:7::2          │
  │ subnet   10.244.7.0/24             │
  │          fd00:10:244:7::/64        │
  │ flannel.1 · MTU 1450               │
  │          0e:00:00:00:00:01         │
  ╰─ eth0 192.0.2.11 2001:db8:0:1::11 ─╯
  ════╧═════════════════════════════════
"#,
    );
}

#[test]
fn status_has_columns() {
    check(
        &status(&three(), Style::PLAIN),
        Style::PLAIN,
        r#"
  lab   vxlan · up for 3 s

   HOST   UNDERLAY       POD SUBNET      VIA        MAC                 MTU  AGENT
   host1  192.0.2.11     10.244.7.0/24   flannel.1  0e:00:00:00:00:01  1450  ready in 120 ms
   host2  192.0.2.12     10.244.93.0/24  flannel.1  0e:00:00:00:00:02  1450  ready in 120 ms
   host3  198.51.100.13  -               eth0       0e:00:00:00:00:03     -  ended: exit status: 1

   POD     HOST   ADDRESS      ADD TOOK
   pod1-1  host1  10.244.7.2     4.0 ms
   pod1-2  host1  10.244.7.3     2.0 ms
   pod2-1  host2  10.244.93.2    8.5 ms
"#,
    );
}

fn reach(from: &str, to: &str, address: &str, times: Option<(f64, f64)>, why: Option<&str>) -> Reach {
    Reach {
        from: from.to_owned(),
        to: to.to_owned(),
        address: ip(address),
        small_us: times.map(|t| t.0),
        full_us: times.map(|t| t.1),
        full_bytes: 1450,
        why: why.map(str::to_owned),
    }
}

#[test]
fn the_matrix_is_green_or_says_why_not() {
    let (one, two) = ("10.244.7.2", "10.244.93.2");
    let good = [
        reach("host1", "pod1-1", one, Some((8.0, 10.0)), None),
        reach("host1", "pod2-1", two, Some((45.0, 50.0)), None),
        reach("pod1-1", "pod2-1", two, Some((61.4, 1400.0)), None),
        reach("pod2-1", "pod1-1", one, Some((60.0, 66.0)), None),
    ];
    check(
        &matrix(&good, Style::PLAIN),
        Style::PLAIN,
        r#"
   from \ to   pod1-1   pod2-1
   host1        8 µs    45 µs
   pod1-1          ·    61 µs
   pod2-1      60 µs        ·

   ✓ 4 of 4 pairs answer, small packets and full ones of 1450 bytes   median 60 µs and 66 µs
"#,
    );
    let mut bad = good.to_vec();
    bad[1] = reach("host1", "pod2-1", two, None, Some("no answer"));
    bad[2].full_us = None;
    bad[2].why = Some("1422 bytes: the packet is too big for the way".to_owned());
    bad.push(reach("pod1-1", "pod2-1", "fd00::2", Some((70.0, 80.0)), None));
    check(
        &matrix(&bad, NARROW),
        NARROW,
        r#"
   IPv4
   from \ to   pod1-1   pod2-1
   host1        8 us     FAIL
   pod1-1          -   partly
   pod2-1      60 us        -

   IPv6
   from \ to   pod2-1
   pod1-1      70 us

   FAIL 4 of 5 pairs answer small packets, 3 full ones of 1450 bytes   median 61 us and 66 us
     host1 -> pod2-1 (10.244.93.2): no answer
     pod1-1 -> pod2-1 (10.244.93.2): 1422 bytes: the packet is too big for the way
"#,
    );
}

fn frame(from: &str, to: &str, ttl: u8, content: Content) -> Frame {
    let bytes = match &content {
        Content::Vxlan { inner, .. } => inner.bytes + 50,
        _ => 98,
    };
    let mac = |end: &str| format!("0a:00:00:00:00:{end}");
    let (mac_source, mac_destination) = (mac("01"), mac("02"));
    Frame { bytes, mac_source, mac_destination, source: ip(from), destination: ip(to), ttl, content }
}

/// Place, device, outgoing, µs, TTL, outer TTL.
type Sight = (&'static str, &'static str, bool, f64, u8, Option<u8>);

fn steps(hops: &[Sight], request: bool) -> Vec<Hop> {
    let (a, b) = if request { ("10.244.7.2", "10.244.93.2") } else { ("10.244.93.2", "10.244.7.2") };
    let one = |(place, device, outgoing, at_us, ttl, outer): &Sight| {
        let inner = frame(a, b, *ttl, Content::Echo { request, sequence: 2 });
        let wrap = |outer: u8| {
            let content =
                Content::Vxlan { source_port: 45057, port: 8472, vni: 1, inner: Box::new(inner.clone()) };
            frame("192.0.2.11", "198.51.100.13", outer, content)
        };
        Hop {
            place: (*place).to_owned(),
            device: (*device).to_owned(),
            outgoing: *outgoing,
            at_us: *at_us,
            frame: outer.map_or(inner.clone(), wrap),
        }
    };
    hops.iter().map(one).collect()
}

#[test]
fn a_walk_names_every_header() {
    let there = [
        ("pod1-1", "eth0", true, 0.0, 64, None),
        ("host1", "veth1a2b3c4d", false, 2.25, 64, None),
        ("host1", "cni0", false, 2.25, 64, None),
        ("host1", "flannel.1", true, 5.0, 63, None),
        ("host1", "eth0", true, 8.0, 63, Some(64)),
        ("wire", "host1", false, 9.0, 63, Some(64)),
        ("wire", "wire0", false, 9.0, 63, Some(64)),
        ("wire", "wire1", true, 11.0, 63, Some(63)),
        ("wire", "host3", true, 12.0, 63, Some(63)),
        ("host3", "eth0", false, 13.0, 63, Some(63)),
        ("host3", "flannel.1", false, 15.0, 63, None),
        ("host3", "cni0", true, 18.0, 62, None),
        ("host3", "veth5e6f7a8b", true, 19.0, 62, None),
        ("pod3-1", "eth0", false, 20.5, 62, None),
    ];
    let back = [
        ("pod3-1", "eth0", true, 25.0, 64, None),
        ("host3", "eth0", true, 31.0, 63, Some(64)),
        ("host1", "eth0", false, 36.0, 63, Some(63)),
        ("pod1-1", "eth0", false, 44.0, 62, None),
    ];
    let mut way = Walk {
        from: "pod1-1".to_owned(),
        to: "pod3-1".to_owned(),
        source: ip("10.244.7.2"),
        destination: ip("10.244.93.2"),
        there: steps(&there, true),
        back: steps(&back, false),
    };
    check(
        &walk(&way, Style::PLAIN),
        Style::PLAIN,
        r#"
   pod1-1 10.244.7.2 → pod3-1 10.244.93.2   one ICMP echo, seen by packet sockets on the way

     0.0 µs  pod1-1   eth0          ↑ out  leaves the pod · TTL 64, 98 bytes
     2.2 µs  host1    veth1a2b3c4d  ↓ in   the other end of the veth
     2.2 µs           cni0          ↓ in   the bridge hands it to its host
     5.0 µs           flannel.1     ↑ out  routed into the tunnel · TTL 64 → 63
     8.0 µs           eth0          ↑ out  wrapped: 98 → 148 bytes
                      │ Ethernet 0a:00:00:00:00:01 → 0a:00:00:00:00:02    14 bytes
                      │ IPv4     192.0.2.11 → 198.51.100.13  TTL 64       20 bytes
                      │ UDP      45057 → 8472                              8 bytes
                      │ VXLAN    VNI 1                                     8 bytes
                      │ Ethernet 0a:00:00:00:00:01 → 0a:00:00:00:00:02    14 bytes
                      │ IPv4     10.244.7.2 → 10.244.93.2  TTL 63         84 bytes
                      ╰ 50 bytes added: so much smaller is the pods' MTU
     9.0 µs  wire     host1         ↓ in   the same outer packet
     9.0 µs           wire0         ↓ in   the same outer packet
    11.0 µs           wire1         ↑ out  routed between wires · outer TTL 63
    12.0 µs           host3         ↑ out  the same outer packet
    13.0 µs  host3    eth0          ↓ in   the same outer packet
    15.0 µs           flannel.1     ↓ in   unwrapped: the inner frame again
    18.0 µs           cni0          ↑ out  routed · TTL 63 → 62, to 0a:00:00:00:00:02
    19.0 µs           veth5e6f7a8b  ↑ out  bridged
    20.5 µs  pod3-1   eth0          ↓ in   arrives

   ✓ the answer: pod3-1 → host3 → host1 → pod1-1, 4 hops, back after 44 µs
"#,
    );
    // Plain routes.
    let there = [there[0], there[1], there[2], ("host1", "eth0", true, 5.0, 63, None)];
    let on = [
        ("wire", "host1", false, 6.0, 63, None),
        ("wire", "host2", true, 7.0, 63, None),
        ("host2", "eth0", false, 8.0, 63, None),
        ("host2", "cni0", true, 9.0, 62, None),
        ("host2", "veth5e6f7a8b", true, 9.5, 62, None),
        ("pod2-1", "eth0", false, 10.0, 62, None),
    ];
    way.there = steps(&there.iter().chain(&on).copied().collect::<Vec<_>>(), true);
    way.back.clear();
    check(
        &walk(&way, NARROW),
        NARROW,
        r#"
   pod1-1 10.244.7.2 -> pod3-1 10.244.93.2   one ICMP echo, seen by packet sockets on the way

     0.0 us  pod1-1   eth0          out    leaves the pod - TTL 64, 98 bytes
     2.2 us  host1    veth1a2b3c4d  in     the other end of the veth
     2.2 us           cni0          in     the bridge hands it to its host
     5.0 us           eth0          out    routed - TTL 64 -> 63, to 0a:00:00:00:00:02
     6.0 us  wire     host1         in     on the wire
     7.0 us           host2         out    bridged
     8.0 us  host2    eth0          in     arrives
     9.0 us           cni0          out    routed - TTL 63 -> 62, to 0a:00:00:00:00:02
     9.5 us           veth5e6f7a8b  out    bridged
    10.0 us  pod2-1   eth0          in     arrives

   FAIL no answer was seen
"#,
    );
}

#[test]
fn pages_prove_the_source_address() {
    let fetch = |body: &str| Fetch {
        from: "pod1-1".to_owned(),
        source: Some(ip("10.244.7.2")),
        to: "pod2-1".to_owned(),
        url: "http://10.244.93.2/hello".to_owned(),
        status: "HTTP/1.0 200 OK".to_owned(),
        body: body.to_owned(),
        server_log: "10.244.7.2 \"GET /hello HTTP/1.0\" 200 44".to_owned(),
        us: 870.0,
    };
    let good = fetch("pod pod2-1 on host2, you are 10.244.7.2\n");
    // An address that begins like the right one is not the right one.
    let bad = fetch("pod pod2-1 on host2, you are 10.244.7.20\n");
    assert!(good.unmasked() && !bad.unmasked());
    check(
        &fetches(&[good, bad], Style::PLAIN),
        Style::PLAIN,
        r#"
   pod1-1 GET http://10.244.93.2/hello   870 µs
      HTTP/1.0 200 OK "pod pod2-1 on host2, you are 10.244.7.2"
      log of pod2-1: 10.244.7.2 "GET /hello HTTP/1.0" 200 44
      ✓ the server saw 10.244.7.2, the pod's own address: nothing translated it
   pod1-1 GET http://10.244.93.2/hello   870 µs
      HTTP/1.0 200 OK "pod pod2-1 on host2, you are 10.244.7.20"
      log of pod2-1: 10.244.7.2 "GET /hello HTTP/1.0" 200 44
      ✗ the server saw another address than the pod's own
"#,
    );
}

#[test]
fn the_rest_is_short() {
    let style = Style::PLAIN;
    check(
        &add_times(&three().pods, style),
        style,
        r#"
   pod1-1  ▇▇▇▇▇▇▇▇▇▇▇▇▇▇                  4.0 ms  flannel 3.5 ms · portmap 500 µs
   pod1-2  ▇▇▇▇▇▇▇                         2.0 ms  flannel 1.5 ms · portmap 500 µs
   pod2-1  ▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇  8.5 ms  flannel 8.0 ms · portmap 500 µs
"#,
    );
    let done = Step { what: "3 hosts on one wire".to_owned(), ms: 9.87 };
    check(
        &[step(&done, style)],
        style,
        r#"
  ✓ 3 hosts on one wire                                          9.9 ms
"#,
    );
    let head = [title(&Spec::default(), style), style.heading(1, "Who has which subnet", "a remark")];
    check(
        &head.concat(),
        style,
        r#"
  loden lab   3 hosts · 6 pods · vxlan


  1  Who has which subnet                                                                   a remark
  ──────────────────────────────────────────────────────────────────────────────────────────────────
"#,
    );
    check(
        &way_on("x", true, style),
        style,
        r#"
   loden lab exec host1 --name x -- ip route  look inside, also `bridge fdb`, `ip -d link`, a shell
   loden lab exec pod1-1 --name x -- bash     be a pod
   loden lab walk pod1-1 pod2-1 --name x      follow a packet
   loden lab agent kill host2 --name x        break something, then `loden lab show`
   loden lab down --name x                    the end: nothing is left behind
"#,
    );
}
