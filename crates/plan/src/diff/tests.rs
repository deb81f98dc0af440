use std::collections::BTreeMap;

use model::{Family, IfName, Mac};

use super::{Step, diff, diff_within};
use crate::Key;
use crate::sources::{Guard, Outer};
use crate::state::{Addr, Bridge, Fdb, Link, LinkKind, Neigh, Object, Route, Scope, State, Via, Vxlan};

fn flannel() -> Link {
    Link {
        name: IfName::fixed("flannel.1"),
        kind: LinkKind::Vxlan(Vxlan {
            vni: 1,
            port: 8472,
            local: Some([192, 0, 2, 10].into()),
            lower: Some(IfName::fixed("eth0")),
            learning: false,
            gbp: false,
            l2miss: false,
            group: None,
        }),
        mac: Some(Mac([0x0e, 0, 0, 0, 0, 1])),
        mtu: Some(1450),
        up: true,
        txqlen: Some(0),
        master: None,
    }
}

fn vxlan(change: impl FnOnce(&mut Vxlan)) -> Object {
    let mut link = flannel();
    if let LinkKind::Vxlan(v) = &mut link.kind {
        change(v);
    }
    Object::Link(Box::new(link))
}

fn link(change: impl FnOnce(&mut Link)) -> Object {
    let mut link = flannel();
    change(&mut link);
    Object::Link(Box::new(link))
}

fn peer(n: u8) -> Vec<Object> {
    let dev = IfName::fixed("flannel.1");
    let mac = Mac([0x8e, 0, 0, 0, 0, n]);
    let subnet: ipnet::IpNet = format!("10.244.{n}.0/24").parse().expect("valid");
    let via = Via::Gateway { gateway: subnet.addr(), dev, onlink: true };
    vec![
        Object::Route(Route::ours(subnet, via)),
        Object::Neigh(Neigh { dev, dst: subnet.addr(), mac }),
        Object::Fdb(Fdb { dev, mac, dst: [192, 0, 2, n].into() }),
    ]
}

fn words(steps: &[Step]) -> Vec<String> {
    steps.iter().map(|s| s.to_string().split_whitespace().take(3).collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn devices_are_kept_changed_made_anew_or_left_alone() {
    let wanted: State = [link(|_| ())].into_iter().collect();
    let bridge = Object::Link(Box::new(Link { kind: LinkKind::Bridge(Bridge::default()), ..flannel() }));
    for (name, actual, steps, said) in [
        ("same", link(|_| ()), &[][..], ""),
        ("down", link(|l| l.up = false), &["ip link set"], ""),
        ("mtu", link(|l| l.mtu = Some(1500)), &["ip link set"], ""),
        ("mac", link(|l| l.mac = Some(Mac([2; 6]))), &["ip link set"], ""),
        ("learning", vxlan(|v| v.learning = true), &["ip link set"], ""),
        ("vni", vxlan(|v| v.vni = 7), &["ip link delete", "ip link add"], "vni is 7, not 1"),
        ("port", vxlan(|v| v.port = 4789), &["ip link delete", "ip link add"], "port is 4789, not 8472"),
        ("lower", vxlan(|v| v.lower = Some(IfName::fixed("eth1"))), &["ip link set"], ""),
        ("no lower", vxlan(|v| v.lower = None), &[], ""),
        ("local", vxlan(|v| v.local = Some([192, 0, 2, 11].into())), &["ip link set"], ""),
        (
            "local of the other family",
            vxlan(|v| v.local = "2001:db8::1".parse().ok()),
            &["ip link delete", "ip link add"],
            "local address is 2001:db8::1, not 192.0.2.10",
        ),
        (
            "no local",
            vxlan(|v| v.local = None),
            &["ip link delete", "ip link add"],
            "local address is none, not 192.0.2.10",
        ),
        ("gbp", vxlan(|v| v.gbp = true), &["ip link delete", "ip link add"], "gbp is on"),
        ("foreign", bridge, &[], "is a bridge device, not a vxlan one"),
    ] {
        let found = diff(&wanted, &[actual].into_iter().collect());
        assert_eq!(words(&found.links), steps, "{name}");
        let texts: Vec<&str> =
            found.recreated.iter().chain(&found.foreign).map(|(_, why)| why.as_str()).collect();
        assert_eq!(texts.join(""), said, "{name}");
    }
}

#[test]
fn a_device_that_moves_is_shown_as_two_commands() {
    let wanted: State = [link(|_| ())].into_iter().collect();
    let actual = vxlan(|v| v.local = Some([192, 0, 2, 11].into()));
    let steps = diff(&wanted, &[actual].into_iter().collect()).links;
    let own = " && ip link set flannel.1 type vxlan local 192.0.2.10 dev eth0 nolearning";
    assert!(steps[0].to_string().ends_with(own), "{}", steps[0]);
}

#[test]
fn new_before_old_and_each_kind_in_its_place() {
    let wanted: State = peer(2).into_iter().chain([link(|_| ())]).collect();
    let actual: State = peer(3).into_iter().collect();
    let found = diff(&wanted, &actual);
    assert_eq!(words(&found.links), ["ip link add"]);
    assert_eq!(
        words(&found.rest),
        [
            "ip neigh replace",
            "bridge fdb replace",
            "ip route replace",
            "ip route delete",
            "bridge fdb delete",
            "ip neigh delete"
        ]
    );
}

/// The simplest thing that could be right: apply the steps to a map and look at the result.
#[test]
fn applying_the_difference_gives_the_wanted_state() {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..500 {
        let mut pick = || -> State {
            let bits = random();
            let peers = (0..16u8).filter(|n| bits >> n & 1 == 1).flat_map(peer);
            let extra = (bits >> 20 & 1 == 1).then(|| link(|l| l.mtu = Some(1400 + (bits >> 21 & 1) as u32)));
            peers.chain(extra).collect()
        };
        let (wanted, actual) = (pick(), pick());
        let mut map: BTreeMap<_, _> = actual.clone().into_iter().map(|o| (o.key(), o)).collect();
        let found = diff(&wanted, &actual);
        let count = found.links.len() + found.rest.len();
        for step in found.links.into_iter().chain(found.rest) {
            match step {
                Step::Put(object) => drop(map.insert(object.key(), object)),
                Step::Change(link) => drop(map.insert(crate::Key::Link(link.name), Object::Link(link))),
                Step::Delete(object) => drop(map.remove(&object.key())),
            }
        }
        let after: State = map.into_values().collect();
        assert_eq!(after, wanted);
        assert!(diff(&wanted, &after).is_empty());
        assert!(count <= wanted.len() + actual.len());
    }
}

#[test]
fn only_what_carries_our_mark_is_ours() {
    let dev = IfName::fixed("flannel.1");
    let eth0 = IfName::fixed("eth0");
    let scope = |adopt| Scope {
        devices: [dev].into(),
        networks: vec!["10.244.0.0/16".parse().expect("valid")],
        uplink: Some(eth0),
        adopt,
        ..Scope::default()
    };
    let net = |text: &str| -> ipnet::IpNet { text.parse().expect("valid") };
    let addr = |dev, text: &str| Object::Addr(Addr { dev, net: net(text) });
    let route = |dst: &str, gateway: [u8; 4], dev, onlink, protocol| {
        let via = Via::Gateway { gateway: gateway.into(), dev, onlink };
        Object::Route(Route { protocol, ..Route::ours(net(dst), via) })
    };
    for (object, always, adopting) in [
        (addr(dev, "10.244.9.0/32"), true, true),
        (addr(dev, "172.16.0.1/32"), false, false),
        (addr(dev, "fe80::1/64"), false, false),
        (addr(dev, "fd00::/128"), true, true),
        (addr(eth0, "10.244.9.0/32"), false, false),
        (route("10.244.2.0/24", [10, 244, 2, 0], dev, true, 76), true, true),
        (route("10.244.2.0/24", [192, 0, 2, 2], eth0, false, 76), true, true),
        // Those of another agent, or of ours with another network before.
        (route("10.99.2.0/24", [10, 99, 2, 0], dev, true, 76), true, true),
        (route("10.99.2.0/24", [10, 99, 2, 0], IfName::fixed("flannel.2"), true, 76), false, false),
        (route("10.99.2.0/24", [192, 0, 2, 2], eth0, false, 76), false, false),
        (route("10.244.2.0/24", [10, 244, 2, 0], dev, true, 3), false, true),
        (route("10.244.2.0/24", [192, 0, 2, 2], eth0, false, 3), false, true),
        (route("10.244.2.0/24", [192, 0, 2, 2], eth0, false, 4), false, false),
        (route("10.245.2.0/24", [192, 0, 2, 2], eth0, false, 3), false, false),
        (route("10.244.2.0/24", [192, 0, 2, 2], IfName::fixed("eth1"), false, 3), false, false),
    ] {
        assert_eq!(scope(false).owns(&object), always, "{object}");
        assert_eq!(scope(true).owns(&object), adopting, "adopting {object}");
    }
}

#[test]
fn the_elements_of_a_set_are_a_matter_of_their_own_unless_their_table_is_made_anew() {
    let guard = Guard::new(IfName::fixed("flannel.1"), Family::V4);
    let table = |vni| guard.table(Outer::Vxlan { port: 8472, vni });
    let node = |n: u8| guard.node([192, 0, 2, n].into());
    let state = |vni, nodes: &[u8]| -> State {
        nodes.iter().map(|n| node(*n)).chain([table(vni)]).chain(peer(2)).collect()
    };
    let nodes = |nodes: &[u8]| -> State { nodes.iter().map(|n| node(*n)).chain(peer(2)).collect() };
    for (name, wanted, actual, steps) in [
        ("nothing", state(1, &[2, 3]), state(1, &[2, 3]), vec![]),
        ("one more", state(1, &[2, 3]), state(1, &[2]), vec!["nft add element"]),
        ("one less", state(1, &[2]), state(1, &[2, 3]), vec!["nft delete element"]),
        (
            "another rule",
            state(7, &[2, 3]),
            state(1, &[2, 4]),
            vec!["nft replace table", "nft add element", "nft add element"],
        ),
        ("no table any more", nodes(&[]), state(1, &[2, 3]), vec!["nft delete table"]),
        ("a table that went by itself", nodes(&[]), nodes(&[2]), vec![]),
    ] {
        let found = diff(&wanted, &actual).rest;
        assert_eq!(words(&found), steps, "{name}");
        // The same where only the table is looked at.
        if name == "another rule" {
            let keys = [table(7).key(), node(4).key()].into();
            assert_eq!(diff_within(&wanted, &actual, &keys).rest, found, "{name}");
        }
        let mut gone = actual;
        if let (Some(Key::Nft(key)), "no table any more") = (found.first().map(Step::key), name) {
            gone.remove(&Key::Nft(key));
            assert_eq!(gone, wanted, "elements go with their table");
        }
    }
    // In before the way to the node, out after it.
    let order = |wanted: &State, actual: &State| words(&diff(wanted, actual).rest);
    let (with, without) = (state(1, &[2]), [table(1)].into_iter().collect::<State>());
    assert_eq!(order(&with, &without).first().map(String::as_str), Some("nft add element"));
    assert_eq!(order(&without, &with).last().map(String::as_str), Some("nft delete element"));
}
