//! Wanted state in, equal state out, foreign objects untouched.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use kernel::{Kernel, Netns};
use model::{IfName, Mac};
use plan::diff::Difference;
use plan::state::{Addr, Fdb, Link, LinkKind, Neigh, Nexthop, Object, Route, Rule, Scope, State, Via, Vxlan};
use plan::{Step, diff};
use serde_json::json;

use super::{assert_has, fresh, json_in, run_in};

fn name(text: &str) -> IfName {
    IfName::fixed(text)
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A namespace with `eth0` up and addressed, as a host has it, its other end `wire` up beside it.
fn host() -> (Netns, Kernel) {
    let netns = fresh();
    for command in [
        "ip link set lo up",
        "ip link add eth0 type veth peer name wire",
        "ip link set eth0 up",
        "ip link set wire up",
        "ip addr add 192.0.2.1/24 dev eth0",
        "ip addr add 2001:db8::1/64 dev eth0 nodad",
    ] {
        run_in(&netns, command);
    }
    let kernel = Kernel::open_in(&netns).unwrap();
    (netns, kernel)
}

fn vxlan(device: &str, local: &str, mtu: u32) -> Object {
    Object::Link(Box::new(Link {
        name: name(device),
        kind: LinkKind::Vxlan(Vxlan {
            vni: 1,
            port: 8472,
            local: Some(ip(local)),
            lower: Some(name("eth0")),
            learning: false,
            gbp: false,
            l2miss: false,
            group: None,
        }),
        mac: Some(Mac([14, 0, 0, 0, 0, 1])),
        mtu: Some(mtu),
        up: true,
        txqlen: None,
        master: None,
    }))
}

fn scope() -> Scope {
    Scope {
        devices: BTreeSet::from([name("flannel.1"), name("flannel-v6.1")]),
        networks: vec![net("10.244.0.0/16"), net("fd00::/48")],
        uplink: Some(name("eth0")),
        ..Scope::default()
    }
}

/// What a host with two dual-stack peers holds: one through gateways, one through nexthop objects.
fn wanted() -> State {
    let (v4, v6) = (name("flannel.1"), name("flannel-v6.1"));
    let mut state: State = [
        vxlan("flannel.1", "192.0.2.1", 1450),
        vxlan("flannel-v6.1", "2001:db8::1", 1430),
        Object::Sysctl { path: "net/ipv6/conf/flannel.1/accept_ra".to_owned(), value: "0".to_owned() },
        Object::Offload { dev: v4, name: "tx-checksum-ip-generic", on: false },
        Object::Addr(Addr { dev: v4, net: net("10.244.1.0/32") }),
        Object::Addr(Addr { dev: v6, net: net("fd00:0:0:1::/128") }),
        Object::Route(Route::ours(net("10.244.1.0/24"), Via::Blackhole)),
        Object::Route(Route::ours(net("fd00:0:0:1::/64"), Via::Blackhole)),
        Object::Route(Route::ours(
            net("10.244.9.0/24"),
            Via::Gateway { gateway: ip("192.0.2.9"), dev: name("eth0"), onlink: false },
        )),
        Object::Route(Route { table: 1000, ..Route::ours(net("0.0.0.0/0"), Via::Dev(v4)) }),
        Object::Rule(Box::new(Rule {
            family: model::Family::V4,
            priority: 512,
            from: Some(net("10.244.1.0/24")),
            to: None,
            iif: None,
            fwmark: None,
            table: 1000,
        })),
    ]
    .into_iter()
    .collect();
    for n in 2..4u8 {
        let mac = Mac([14, 0, 0, 0, 0, n]);
        for (dev, subnet, outer) in [
            (v4, format!("10.244.{n}.0/24"), format!("192.0.2.{n}")),
            (v6, format!("fd00:0:0:{n}::/64"), format!("2001:db8::{n}")),
        ] {
            let subnet = net(&subnet);
            let gateway = subnet.addr();
            state.put(Object::Neigh(Neigh { dev, dst: gateway, mac }));
            state.put(Object::Fdb(Fdb { dev, mac, dst: ip(&outer) }));
            let id = u32::from(n) * 2 + u32::from(gateway.is_ipv6());
            let via = if n == 2 {
                Via::Gateway { gateway, dev, onlink: true }
            } else {
                state.put(Object::Nexthop(Nexthop { id, dev, via: gateway, onlink: true }));
                Via::Nexthop(id)
            };
            state.put(Object::Route(Route::ours(subnet, via)));
        }
    }
    state
}

fn ok(results: Vec<Result<(), Box<kernel::StepError>>>) {
    for result in results {
        result.unwrap();
    }
}

/// Links first, then a fresh look, then the rest: as the agent's loop does it.
fn converge(kernel: &mut Kernel, scope: &Scope, wanted: &State) -> Difference {
    let first = diff(wanted, &kernel.read(scope, wanted).unwrap());
    ok(kernel.apply(&first.links));
    let second = diff(wanted, &kernel.read(scope, wanted).unwrap());
    ok(kernel.apply(&second.rest));
    assert_eq!(diff(wanted, &kernel.read(scope, wanted).unwrap()), Difference::default());
    first
}

#[test]
fn what_was_written_reads_back_equal() {
    let (netns, mut kernel) = host();
    let (scope, wanted) = (scope(), wanted());
    converge(&mut kernel, &scope, &wanted);
    let got = kernel.read(&scope, &wanted).unwrap();
    assert_eq!(got.len(), wanted.len());

    let route = run_in(&netns, "ip route show 10.244.2.0/24");
    assert_eq!(route.trim(), "10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto 76 onlink");
    let route = run_in(&netns, "ip -6 route show fd00:0:0:2::/64");
    assert_eq!(
        route.trim(),
        "fd00:0:0:2::/64 via fd00:0:0:2:: dev flannel-v6.1 proto 76 metric 1024 onlink pref medium"
    );
    let route = run_in(&netns, "ip route show 10.244.3.0/24");
    assert_eq!(route.trim(), "10.244.3.0/24 nhid 6 via 10.244.3.0 dev flannel.1 proto 76 onlink");
    let shown = json_in(&netns, "ip -j neigh show dev flannel.1 nud permanent to 10.244.2.0");
    assert_has(
        &shown,
        &json!([{"dst": "10.244.2.0", "lladdr": "0e:00:00:00:00:02", "state": ["PERMANENT"]}]),
    );
    let shown = run_in(&netns, "bridge fdb show dev flannel-v6.1");
    assert!(shown.contains("0e:00:00:00:00:02 dst 2001:db8::2 self permanent"), "{shown}");

    // Nothing wanted any more: all of ours goes, in an order the kernel accepts, and twice is fine.
    let nothing = State::default();
    let gone = diff(&nothing, &kernel.read(&scope, &nothing).unwrap());
    for _ in 0..2 {
        ok(kernel.apply(&gone.rest));
        ok(kernel.apply(&gone.links));
    }
    assert!(kernel.read(&scope, &nothing).unwrap().is_empty());
    // A rule carries no mark: it goes only by its key.
    assert!(run_in(&netns, "ip rule show").contains("512:"));
}

#[test]
fn whatever_is_disturbed_comes_back() {
    let (netns, mut kernel) = host();
    let (scope, wanted) = (scope(), wanted());
    converge(&mut kernel, &scope, &wanted);
    for (disturbance, steps) in [
        ("ip route del 10.244.2.0/24", 1),
        ("ip -6 route del fd00:0:0:2::/64", 1),
        ("ip route replace 10.244.2.0/24 via 192.0.2.7", 1),
        ("ip neigh flush all nud permanent", 4),
        ("ip neigh replace 10.244.2.0 lladdr 0e:00:00:00:00:99 dev flannel.1 nud permanent", 1),
        ("bridge fdb replace 0e:00:00:00:00:02 dev flannel.1 dst 192.0.2.77 self permanent", 1),
        ("bridge fdb append 0e:00:00:00:00:98 dev flannel.1 dst 192.0.2.98 self permanent", 1),
        // With its last address the device loses its IPv4 neighbours and routes as well.
        ("ip addr del 10.244.1.0/32 dev flannel.1", 5),
        ("ip addr add 10.244.77.1/32 dev flannel.1", 1),
        ("ip nexthop del id 6", 2),
        ("ip nexthop replace id 6 via 10.244.77.77 dev flannel.1 onlink proto 76", 1),
        ("ip rule del pref 512", 1),
        ("sysctl -qw net/ipv6/conf/flannel.1/accept_ra=2", 1),
        ("ip route add 10.244.50.0/24 dev flannel.1 proto 76", 1),
    ] {
        run_in(&netns, disturbance);
        let difference = converge(&mut kernel, &scope, &wanted);
        assert_eq!(
            (difference.links.len(), difference.rest.len()),
            (0, steps),
            "{disturbance}: {difference:?}"
        );
    }
    for disturbance in [
        "ip link set flannel.1 down",
        "ip link set flannel.1 address 0e:00:00:00:00:55",
        "ip link set flannel.1 mtu 1300",
        "ip link set flannel.1 type vxlan learning",
        "ip link set flannel.1 type vxlan local 192.0.2.2 dev lo",
        "ip link set flannel.1 type vxlan local 192.0.2.2",
        "ip link set flannel-v6.1 type vxlan local 2001:db8::2",
        "ip link del flannel.1",
        "ip link del flannel-v6.1",
    ] {
        run_in(&netns, disturbance);
        let difference = converge(&mut kernel, &scope, &wanted);
        assert_eq!(difference.links.len(), 1, "{disturbance}");
    }
    run_in(&netns, "ip link del flannel.1");
    run_in(&netns, "ip link add flannel.1 type vxlan id 2 dstport 4789 dev eth0");
    let difference = converge(&mut kernel, &scope, &wanted);
    assert_eq!(difference.recreated, [(name("flannel.1"), "vni is 2, not 1".to_owned())]);
}

#[test]
fn foreign_objects_stay() {
    let (netns, mut kernel) = host();
    for command in [
        "ip route add 10.244.60.0/24 via 192.0.2.60",
        "ip route add 10.1.0.0/24 via 192.0.2.60 proto static",
        "ip route add 10.2.0.0/24 via 192.0.2.60 table 77 proto 76",
        "ip nexthop add id 6 via 192.0.2.66 dev eth0 proto static",
        "ip rule add pref 600 from 10.9.0.0/16 lookup 77",
        "ip neigh add 192.0.2.60 lladdr 02:00:00:00:00:60 dev eth0 nud permanent",
    ] {
        run_in(&netns, command);
    }
    let before = ["ip route show table all proto static", "ip route show table 77", "ip neigh show dev eth0"]
        .map(|c| run_in(&netns, c));
    let (scope, wanted) = (scope(), wanted());
    let difference = diff(&wanted, &kernel.read(&scope, &wanted).unwrap());
    ok(kernel.apply(&difference.links));
    let difference = diff(&wanted, &kernel.read(&scope, &wanted).unwrap());
    let failed: Vec<String> =
        kernel.apply(&difference.rest).into_iter().filter_map(|r| r.err().map(|e| e.to_string())).collect();
    // Somebody has one of our nexthop ids: the step says so and nothing is taken away from him.
    assert_eq!(
        failed,
        ["ip nexthop replace id 6 via 10.244.3.0 dev flannel.1 onlink proto 76: exists already \
          (EEXIST, \"nexthop id 6 belongs to protocol 4\")"]
    );
    let after = ["ip route show table all proto static", "ip route show table 77", "ip neigh show dev eth0"]
        .map(|c| run_in(&netns, c));
    assert_eq!(before, after);
    assert!(!run_in(&netns, "ip route show 10.244.60.0/24").is_empty());

    // Only the first read after a start takes flannel's own routes for ours.
    let adopting = Scope { adopt: true, ..scope };
    let found = kernel.read(&adopting, &wanted).unwrap();
    let strays: Vec<String> = diff(&wanted, &found)
        .rest
        .iter()
        .filter(|s| matches!(s, Step::Delete(_)))
        .map(Step::to_string)
        .collect();
    assert_eq!(strays, ["ip route delete 10.244.60.0/24 via 192.0.2.60 dev eth0 proto 3"]);
}

#[test]
fn a_foreign_route_before_ours_is_replaced() {
    let (netns, mut kernel) = host();
    let scope = scope();
    let via = Via::Gateway { gateway: ip("192.0.2.9"), dev: name("eth0"), onlink: false };
    let wanted: State = [Object::Route(Route::ours(net("10.244.9.0/24"), via))].into_iter().collect();
    run_in(&netns, "ip route add 10.244.9.0/24 via 192.0.2.7");
    run_in(&netns, "ip route append 10.244.9.0/24 via 192.0.2.9 dev eth0 proto 76");
    converge(&mut kernel, &scope, &wanted);
    let shown = run_in(&netns, "ip route show 10.244.9.0/24");
    assert_eq!(shown.trim(), "10.244.9.0/24 via 192.0.2.9 dev eth0 proto 76");
}

#[test]
fn failing_steps_name_themselves_and_do_not_stop_others() {
    let (netns, mut kernel) = host();
    let gateway =
        |gateway: &str, dev: &str| Via::Gateway { gateway: ip(gateway), dev: name(dev), onlink: false };
    let put = |dst: &str, via| Step::Put(Object::Route(Route::ours(net(dst), via)));
    let steps = [
        put("10.244.2.0/24", gateway("203.0.113.1", "eth0")),
        put("10.244.3.0/24", gateway("192.0.2.3", "eth7")),
        put("10.244.4.0/24", gateway("192.0.2.4", "eth0")),
        put("fd00:0:0:5::/64", Via::Nexthop(4242)),
        Step::Put(Object::Sysctl { path: "net/nowhere".to_owned(), value: "1".to_owned() }),
    ];
    let results = kernel.apply(&steps);
    let texts: Vec<String> =
        results.iter().map(|r| r.as_ref().map_or_else(ToString::to_string, |()| String::new())).collect();
    assert_eq!(
        texts,
        [
            "ip route replace 10.244.2.0/24 via 203.0.113.1 dev eth0 proto 76: network is unreachable \
             (ENETUNREACH, \"Nexthop has invalid gateway\")",
            "ip route replace 10.244.3.0/24 via 192.0.2.3 dev eth7 proto 76: no such device \
             (ENODEV, \"eth7 is not there\")",
            "",
            "ip route replace fd00:0:0:5::/64 nhid 4242 proto 76: invalid argument \
             (EINVAL, \"Nexthop id does not exist\")",
            "sysctl -w net/nowhere=1: no such object (ENOENT)",
        ]
    );
    assert!(!run_in(&netns, "ip route show 10.244.4.0/24").is_empty());
}

#[test]
fn routes_change_their_form_in_place() {
    let (netns, mut kernel) = host();
    let (scope, first) = (scope(), wanted());
    converge(&mut kernel, &scope, &first);
    for (dst, dev, id) in [("10.244.2.0/24", "flannel.1", 100), ("fd00:0:0:2::/64", "flannel-v6.1", 101)] {
        let (dst, dev) = (net(dst), name(dev));
        let (mut wanted, gateway) = (first.clone(), dst.addr());
        let nexthop = Object::Nexthop(Nexthop { id, dev, via: gateway, onlink: true });
        // Past the tunnel: IPv6 then refuses the gateway inside, which this very route leads to elsewhere.
        let host = if gateway.is_ipv4() { "192.0.2.2" } else { "2001:db8::2" };
        let past = Via::Gateway { gateway: ip(host), dev: name("eth0"), onlink: false };
        for via in [
            Via::Nexthop(id),
            past,
            Via::Gateway { gateway, dev, onlink: true },
            past,
            Via::Nexthop(id),
            Via::Gateway { gateway, dev, onlink: true },
            Via::Blackhole,
            Via::Nexthop(id),
            Via::Dev(dev),
            Via::Blackhole,
            Via::Gateway { gateway, dev, onlink: true },
        ] {
            match via {
                Via::Nexthop(_) => wanted.put(nexthop.clone()),
                _ => drop(wanted.remove(&nexthop.key())),
            }
            wanted.put(Object::Route(Route::ours(dst, via)));
            converge(&mut kernel, &scope, &wanted);
            let family = if dst.addr().is_ipv6() { "-6" } else { "-4" };
            let shown = run_in(&netns, &format!("ip {family} route show {dst}"));
            assert_eq!(shown.lines().count(), 1, "{via:?}: {shown}");
        }
    }
}
