use lab::paint::Style;

use super::*;

fn path(number: u8, rtt_us: Option<u64>) -> Path {
    Path {
        node: Some(format!("node-{number}")),
        subnet: format!("10.244.{number}.0/24"),
        inner: format!("10.244.{number}.0"),
        public: format!("1.1.1.{number}"),
        verdict: if rtt_us.is_some() { "ok" } else { "tunnel_dropped" }.to_owned(),
        text: "packets of up to 1450 bytes come back".to_owned(),
        bad: rtt_us.is_none(),
        rtt_us,
        mtu: rtt_us.map(|_| 1450),
        ago_ms: 500,
        echoes: 4,
        lost: if rtt_us.is_some() { 0 } else { 4 },
    }
}

fn healthy() -> Status {
    let texts = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
    let step = |candidate: &str, taken: bool, because: &str| Step {
        candidate: candidate.to_owned(),
        taken,
        because: because.to_owned(),
    };
    Status {
        agent: Some(Agent { version: "v0.1.0".to_owned(), pid: 4711, uptime_s: 7384 }),
        ready: true,
        store: Some(Store {
            name: "file /var/lib/loden/leases.db".to_owned(),
            heard_ms: Some(412),
            complete: true,
        }),
        lease: Some(Lease { subnets: texts(&["10.244.1.0/24"]), public: texts(&["1.1.1.198"]) }),
        interface: Some(Interface {
            name: Some("enp125s0f3".to_owned()),
            mtu: 1500,
            addresses: texts(&["1.1.1.198"]),
            public: texts(&["1.1.1.198"]),
            trouble: None,
            why: vec![
                step("IPv4 default route", true, "the first, through enp125s0f3"),
                step(
                    "enp2s0f0",
                    false,
                    "no selector names it, and the default route does not lead through it first",
                ),
                step("1.1.1.198 of enp125s0f3", true, "its only IPv4 address"),
            ],
            otherwise: texts(&["to use enp2s0f0 (192.168.0.1) instead: --iface=enp2s0f0"]),
        }),
        backend: Some(Backend {
            kind: "vxlan".to_owned(),
            carrier: None,
            mtu: 1450,
            devices: texts(&[
                "ip link add flannel.1 type vxlan id 1 local 1.1.1.198 dev enp125s0f3 dstport 8472",
            ]),
            rules: texts(&[
                "iptables-nft -t nat -S FLANNEL-POSTRTG",
                "iptables-nft -t filter -S FLANNEL-FWD",
            ]),
        }),
        peers: Some(Peers { programmed: 2, left_out: Vec::new() }),
        probes: Some(Probes { off: None, nodes: 2, paths: vec![path(2, Some(412)), path(13, Some(1200))] }),
        dropped: vec![Dropped {
            device: "flannel.1".to_owned(),
            family: "ip".to_owned(),
            packets: 3,
            bytes: 288,
        }],
        objects: Some(Objects { wanted: 12, actual: 12, ..Objects::default() }),
        ..Status::default()
    }
}

fn unhealthy() -> Status {
    let mut status = healthy();
    status.ready = false;
    status.store =
        Some(Store { name: "etcd at http://192.0.2.1:2379".to_owned(), heard_ms: None, complete: false });
    status.lease = None;
    status.interface = Some(Interface {
        trouble: Some(
            "find the interface for traffic between hosts: there is no IPv4 default route".to_owned(),
        ),
        ..Interface::default()
    });
    let left_out = |node: Option<&str>, subnets: &str, reason: &str| LeftOut {
        node: node.map(str::to_owned),
        subnets: subnets.to_owned(),
        reason: reason.to_owned(),
    };
    status.probes = Some(Probes { off: None, nodes: 1, paths: vec![path(3, None)] });
    status.dropped = Vec::new();
    status.peers = Some(Peers {
        programmed: 1,
        left_out: vec![
            left_out(Some("node-b"), "10.244.2.0/24", "its backend is \"host-gw\", ours is \"vxlan\""),
            left_out(None, "hello", "is no subnet"),
        ],
    });
    let failed = "ip route replace 10.244.3.0/24 via 10.244.3.0 dev flannel.1 onlink proto 76: no such device (ENODEV)";
    status.objects = Some(Objects {
        wanted: 12,
        actual: 11,
        repaired: vec![
            "ip neigh replace 10.244.4.0 lladdr 02:00:00:00:00:04 dev flannel.1 nud permanent".to_owned(),
        ],
        differences: vec![Difference {
            command: "ip route replace …".to_owned(),
            reason: Some(failed.to_owned()),
        }],
    });
    let trouble = |text: &str, last: &str, over: bool| Trouble {
        text: text.to_owned(),
        first: "2026-11-26T11:49:00Z".to_owned(),
        last: last.to_owned(),
        over,
    };
    status.troubles = vec![
        trouble("acquire lease: connection refused", "2026-11-26T11:50:30Z", false),
        trouble("fetch network config: timed out", "2026-11-26T11:49:00Z", true),
    ];
    status
}

fn alone() -> Status {
    Status {
        silent: Some("no agent runs here: there is no socket /run/flannel/loden.sock".to_owned()),
        kernel: (0..10)
            .map(|n| format!("ip route replace 10.244.{n}.0/24 via 10.244.{n}.0 dev flannel.1"))
            .collect(),
        subnet_env: vec![
            "FLANNEL_NETWORK=10.244.0.0/16".to_owned(),
            "FLANNEL_SUBNET=10.244.1.1/24".to_owned(),
        ],
        ..Status::default()
    }
}

fn screen(status: &Status, why: bool) -> String {
    format!("\n{}", Style::PLAIN.lines(&show::show(status, why, Style::PLAIN)))
}

#[test]
fn a_healthy_node_is_one_screen() {
    assert_eq!(
        screen(&healthy(), false),
        "
loden v0.1.0 · process 4711 · up 2 h 3 min
  store      file /var/lib/loden/leases.db, heard 0.4 s ago
  lease      10.244.1.0/24, others send to 1.1.1.198
  interface  enp125s0f3, MTU 1500, 1.1.1.198
             ✓ IPv4 default route: the first, through enp125s0f3
             ✓ 1.1.1.198 of enp125s0f3: its only IPv4 address
             → to use enp2s0f0 (192.168.0.1) instead: --iface=enp2s0f0
             all that was looked at: loden status --why
  backend    vxlan, MTU 1450 for pods
             ip link add flannel.1 type vxlan id 1 local 1.1.1.198 dev enp125s0f3 dstport 8472
  rules      iptables-nft -t nat -S FLANNEL-POSTRTG
             iptables-nft -t filter -S FLANNEL-FWD
  peers      2 in the kernel, none left out
  paths      2 probed, all well
             ✓ 10.244.2.0/24   node-2 1.1.1.2    412 µs  1450 bytes  ok
             ✓ 10.244.13.0/24  node-13 1.1.1.13  1.2 ms  1450 bytes  ok
  strangers  dropped 3 packets (288 bytes) on flannel.1
  objects    12 wanted, 12 there, no difference
  troubles   none

✓ healthy, and packets come back from other nodes
"
    );
    assert!(screen(&healthy(), true).contains(
        "             · enp2s0f0: no selector names it, and the default route does not lead through it first\n"
    ));
}

#[test]
fn what_is_wrong_is_on_it() {
    assert_eq!(
        screen(&unhealthy(), false),
        "
loden v0.1.0 · process 4711 · up 2 h 3 min
  store      etcd at http://192.0.2.1:2379, not heard yet, without a complete list of leases
  lease      none yet
  interface  none fits
             find the interface for traffic between hosts: there is no IPv4 default route
  backend    vxlan, MTU 1450 for pods
             ip link add flannel.1 type vxlan id 1 local 1.1.1.198 dev enp125s0f3 dstport 8472
  rules      iptables-nft -t nat -S FLANNEL-POSTRTG
             iptables-nft -t filter -S FLANNEL-FWD
  peers      1 in the kernel, 2 left out
             ✗ node-b (10.244.2.0/24): its backend is \"host-gw\", ours is \"vxlan\"
             ✗ hello: is no subnet
  paths      1 probed, 1 bad
             ✗ 10.244.3.0/24  node-3 1.1.1.3      tunnel dropped
               packets of up to 1450 bytes come back
  objects    12 wanted, 11 there, 1 difference
             ✗ ip route replace 10.244.3.0/24 via 10.244.3.0 dev flannel.1 onlink proto 76: no such device (ENODEV)
             put right just now: ip neigh replace 10.244.4.0 lladdr 02:00:00:00:00:04 dev flannel.1 nud permanent
  troubles   1
             ✗ acquire lease: connection refused
               since 2026-11-26T11:49:00Z, last found 2026-11-26T11:50:30Z
             over: fetch network config: timed out (2026-11-26T11:49:00Z to 2026-11-26T11:49:00Z)

✗ not ready, see above
"
    );
}

#[test]
fn without_an_agent_the_kernel_is_shown() {
    assert_eq!(
        screen(&alone(), false),
        "
no agent answers
no agent runs here: there is no socket /run/flannel/loden.sock
  kernel     10 objects of ours
             ip route replace 10.244.0.0/24 via 10.244.0.0 dev flannel.1
             ip route replace 10.244.1.0/24 via 10.244.1.0 dev flannel.1
             ip route replace 10.244.2.0/24 via 10.244.2.0 dev flannel.1
             ip route replace 10.244.3.0/24 via 10.244.3.0 dev flannel.1
             ip route replace 10.244.4.0/24 via 10.244.4.0 dev flannel.1
             ip route replace 10.244.5.0/24 via 10.244.5.0 dev flannel.1
             ip route replace 10.244.6.0/24 via 10.244.6.0 dev flannel.1
             ip route replace 10.244.7.0/24 via 10.244.7.0 dev flannel.1
             and 2 more, see -o json
  subnet.env FLANNEL_NETWORK=10.244.0.0/16
             FLANNEL_SUBNET=10.244.1.1/24

? cannot tell without an agent
"
    );
}

#[test]
fn json_and_back() {
    for status in [healthy(), unhealthy(), alone(), Status::default()] {
        let text = json::write(&status).to_indented();
        assert_eq!(json::read(text.as_bytes()), Ok(status));
    }
    for (text, error) in [("", "not JSON: "), ("{}", "not a status"), ("[1]", "not a status")] {
        let got = json::read(text.as_bytes()).expect_err(text);
        assert!(got.starts_with(error), "{got}");
    }
    let later = r#"{"version":2,"ready":true,"agent":{"version":"v9","news":[1]},"peers":"many"}"#;
    assert!(json::read(later.as_bytes()).expect("a later version is read as far as we know it").ready);
}

/// Others parse it: what is there stays as it is.
#[test]
fn the_json_is_this() {
    let text = json::write(&unhealthy()).to_compact();
    for part in [
        r#"{"version":1,"verdict":"unhealthy","ready":false,"silent":null,"agent":{"version":"v0.1.0","pid":4711,"uptime_s":7384}"#,
        r#""store":{"name":"etcd at http://192.0.2.1:2379","heard_ms":null,"complete":false},"lease":null"#,
        r#""interface":{"name":null,"mtu":0,"addresses":[],"public":[],"trouble":"find"#,
        r#""peers":{"programmed":1,"left_out":[{"node":"node-b","subnets":"10.244.2.0/24","reason":"#,
        r#""troubles":[{"text":"acquire lease: connection refused","first":"2026-11-26T11:49:00Z","last":"2026-11-26T11:50:30Z","over":false}"#,
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

#[test]
fn the_verdict_is_the_worst_of_all() {
    assert_eq!(healthy().verdict(), Verdict::Healthy);
    assert_eq!(alone().verdict(), Verdict::Unknown);
    type Change = fn(&mut Status);
    let changes: [(&str, Change); 6] = [
        ("a path", |s| s.probes = unhealthy().probes),
        ("not ready", |s| s.ready = false),
        ("a peer", |s| s.peers = unhealthy().peers),
        ("an object", |s| s.objects = unhealthy().objects),
        ("a trouble", |s| s.troubles = unhealthy().troubles),
        ("everything", |s| *s = unhealthy()),
    ];
    for (name, change) in changes {
        let mut status = healthy();
        change(&mut status);
        assert_eq!(status.verdict(), Verdict::Unhealthy, "{name}");
    }
    let mut status = healthy();
    status.probes = Some(Probes { nodes: 2, ..Probes::default() });
    assert_eq!(status.verdict(), Verdict::Unknown, "no path was probed");
    assert_eq!(status.reason(), "no path has been probed yet");
    status.probes = healthy().probes;
    for path in status.probes.iter_mut().flat_map(|probes| &mut probes.paths) {
        (path.verdict, path.rtt_us) = ("unsure".to_owned(), None);
    }
    assert_eq!(status.verdict(), Verdict::Unknown, "nothing answers yet");
    assert!(
        status.reason().starts_with("no packet came back from another node yet: "),
        "{}",
        status.reason()
    );
    status.probes = None;
    assert_eq!(status.verdict(), Verdict::Unknown, "an agent that does not probe");
    status.peers = None;
    assert_eq!(status.verdict(), Verdict::Healthy, "alone");
    let mut status = healthy();
    status.troubles = unhealthy().troubles.split_off(1);
    assert_eq!(status.verdict(), Verdict::Healthy, "what is over does not count");
}
