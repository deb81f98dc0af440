use model::config::VxlanConf;
use model::{IfName, Lease, LeaseAttrs, Mac};

use super::super::testing::{assembly, expect, facts, ip, lease, text};
use super::{Backend, Vxlan};
use crate::facts::Families;
use crate::state::{Bridge, Link, LinkKind, Object};

const V4: Families = Families { v4: true, v6: false };
const V6: Families = Families { v4: false, v6: true };
const DUAL: Families = Families { v4: true, v6: true };

fn config() -> VxlanConf {
    VxlanConf::default()
}

fn backend(families: Families, change: impl FnOnce(&mut VxlanConf)) -> Vxlan {
    let mut config = config();
    change(&mut config);
    Vxlan::new(config, families).expect("a valid configuration")
}

fn vtep(last: u8) -> String {
    format!("{{\"VNI\":1,\"VtepMAC\":\"8e:00:00:00:00:{last:02x}\"}}")
}

fn own() -> Lease {
    lease("10.244.1.0/24 fd00:1::/64", "192.0.2.10 2001:db8::10", "vxlan", ["", ""])
}

#[test]
fn a_peer_is_a_neighbour_a_forwarding_entry_and_a_route() {
    let peers = [lease("10.244.2.0/24", "192.0.2.12", "vxlan", [&vtep(2), ""])];
    expect(
        &text(&backend(V4, |_| ()), &facts(), Some(&own()), &peers),
        "ip link add flannel.1 address 0e:00:00:00:00:04 mtu 1450 txqueuelen 0 up type vxlan id 1 local 192.0.2.10 dev eth0 dstport 8472 nolearning
         sysctl -w net/ipv6/conf/flannel.1/accept_ra=0
         ip address replace 10.244.1.0/32 dev flannel.1
         ip neigh replace 10.244.2.0 lladdr 8e:00:00:00:00:02 dev flannel.1 nud permanent
         bridge fdb replace 8e:00:00:00:00:02 dev flannel.1 dst 192.0.2.12 self permanent
         ip route replace 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink proto 76",
    );
}

#[test]
fn sources_are_checked_where_the_configuration_asks_for_it() {
    let peers =
        [lease("10.244.2.0/24 fd00:2::/64", "192.0.2.12 2001:db8::12", "vxlan", [&vtep(2), &vtep(3)])];
    let mut facts = facts();
    facts.on_link.insert(ip("192.0.2.12"), IfName::fixed("eth0"));
    let direct = backend(DUAL, |config| (config.check_sources, config.direct_routing) = (true, true));
    let got = text(&direct, &facts, Some(&own()), &peers);
    let sources: Vec<&str> = got.lines().filter(|line| line.starts_with("nft")).collect();
    // A peer may take the tunnel to us whatever our way to it is.
    expect(
        &sources.join("\n"),
        "nft replace table ip loden-flannel.1 (1 chains, 1 rules)
         nft replace table ip6 loden-flannel-v6.1 (1 chains, 1 rules)
         nft add element ip loden-flannel.1 nodes { 192.0.2.12 }
         nft add element ip6 loden-flannel-v6.1 nodes { 2001:db8::12 }",
    );
}

#[test]
fn families_of_a_peer_stand_alone() {
    // The v4 half is broken; the v6 half is programmed all the same (F-79).
    let peers = [lease("10.244.2.0/24 fd00:2::/64", "192.0.2.12 2001:db8::12", "vxlan", ["{", &vtep(3)])];
    let got = text(&backend(DUAL, |_| ()), &facts(), Some(&own()), &peers);
    let tail: Vec<&str> = got.lines().skip(6).collect();
    assert_eq!(tail.len(), 4, "{got}");
    expect(
        &tail[..3].join("\n"),
        "ip neigh replace fd00:2:: lladdr 8e:00:00:00:00:03 dev flannel-v6.1 nud permanent
         bridge fdb replace 8e:00:00:00:00:03 dev flannel-v6.1 dst 2001:db8::12 self permanent
         ip route replace fd00:2::/64 via fd00:2:: dev flannel-v6.1 onlink proto 76",
    );
    assert!(tail[3].starts_with("left out 10.244.2.0/24 and fd00:2::/64: its IPv4 VTEP data \"{\""), "{got}");
}

#[test]
fn direct_routing_needs_a_common_network() {
    let peers = [
        lease("10.244.2.0/24", "192.0.2.12", "vxlan", [&vtep(2), ""]),
        lease("10.244.3.0/24", "198.51.100.3", "vxlan", [&vtep(3), ""]),
    ];
    let mut facts = facts();
    facts.on_link.insert(ip("192.0.2.12"), IfName::fixed("eth0"));
    let got = text(&backend(V4, |c| c.direct_routing = true), &facts, Some(&own()), &peers);
    expect(
        &got.lines().skip(3).collect::<Vec<_>>().join("\n"),
        "ip neigh replace 10.244.3.0 lladdr 8e:00:00:00:00:03 dev flannel.1 nud permanent
         bridge fdb replace 8e:00:00:00:00:03 dev flannel.1 dst 198.51.100.3 self permanent
         ip route replace 10.244.2.0/24 via 192.0.2.12 dev eth0 proto 76
         ip route replace 10.244.3.0/24 via 10.244.3.0 dev flannel.1 onlink proto 76",
    );
}

#[test]
fn bad_peers_are_left_out_by_name() {
    for (peer, reason) in [
        (
            lease("10.244.2.0/24", "192.0.2.12", "host-gw", ["", ""]),
            "its backend is \"host-gw\", ours is \"vxlan\"",
        ),
        (lease("10.244.2.0/24", "", "vxlan", [&vtep(2), ""]), "its lease has no public IPv4 address"),
        (lease("10.244.2.0/24", "192.0.2.12", "vxlan", ["", ""]), "its lease has no IPv4 VTEP data"),
        (
            lease("10.244.2.0/24", "192.0.2.12", "vxlan", [r#"{"VNI":1,"VtepMAC":"01:00:00:00:00:01"}"#, ""]),
            "its IPv4 VTEP data \"{\\\"VNI\\\":1,\\\"VtepMAC\\\":\\\"01:00:00:00:00:01\\\"}\" is of no use: read vxlan backend data: VtepMAC 01:00:00:00:00:01 is zero or a multicast address",
        ),
        (
            lease("10.244.2.0/24", "192.0.2.12", "vxlan", [r#"{"VNI":1,"VtepMAC":"0e:00:00:00:00:04"}"#, ""]),
            "its VTEP address 0e:00:00:00:00:04 is ours too, as on cloned machines; give one of the two another \
             machine id and delete its flannel.1",
        ),
        (
            lease("10.244.2.0/24", "192.0.2.12", "vxlan", [&vtep(9), ""]),
            "its VTEP address 8e:00:00:00:00:09 is also that of 10.244.0.0/24, as on cloned machines; give one of \
             the two another machine id and delete its flannel.1",
        ),
    ] {
        let good = lease("10.244.0.0/24", "192.0.2.9", "vxlan", [&vtep(9), ""]);
        let got = text(&backend(V4, |_| ()), &facts(), Some(&own()), &[good, peer]);
        assert_eq!(got.lines().last(), Some(format!("left out 10.244.2.0/24: {reason}").as_str()));
        assert_eq!(got.lines().count(), 7, "the good peer is unharmed: {got}");
    }
}

/// A node whose subnet changed has its old lease for a day: both say the same, and both can be had.
#[test]
fn a_node_with_two_leases_is_reached_by_both() {
    let peers =
        ["10.244.2.0/24", "10.244.3.0/24"].map(|net| lease(net, "192.0.2.12", "vxlan", [&vtep(9), ""]));
    let got = text(&backend(V4, |_| ()), &facts(), Some(&own()), &peers);
    assert!(!got.contains("left out"), "{got}");
    assert_eq!((got.matches("bridge fdb").count(), got.matches("ip route").count()), (1, 2), "{got}");
}

#[test]
fn without_a_lease_only_the_device_is_wanted() {
    let peers = [lease("10.244.2.0/24", "192.0.2.12", "vxlan", [&vtep(2), ""])];
    let got = text(&backend(V4, |_| ()), &facts(), None, &peers);
    assert_eq!(got.lines().count(), 2, "{got}");
}

#[test]
fn the_local_address_is_one_the_host_has() {
    let mut behind_nat = facts();
    behind_nat.public.v4 = Some([203, 0, 113, 1].into());
    for (facts, local) in [(facts(), "local 192.0.2.10 "), (behind_nat, "local 192.0.2.10 ")] {
        let got = text(&backend(V4, |_| ()), &facts, None, &[]);
        assert!(got.contains(local), "{got}");
    }
}

#[test]
fn device_follows_the_configuration() {
    let got = text(
        &backend(V4, |c| {
            (c.vni, c.port, c.mtu, c.gbp, c.learning) = (42, Some(4789), Some(1400), true, true)
        }),
        &facts(),
        None,
        &[],
    );
    let first = got.lines().next().unwrap_or_default();
    assert!(
        first.contains("flannel.42 ") && first.contains(" mtu 1350 ") && first.ends_with(" gbp"),
        "{got}"
    );
    assert!(first.contains("dstport 4789 learning"), "{got}");
    assert!(Vxlan::new(VxlanConf { vni: 16_777_215, ..config() }, V4).is_err());
}

#[test]
fn mac_is_kept_then_found_then_remembered_then_derived() {
    let name = IfName::fixed("flannel.1");
    let mac_of = |facts: &crate::Facts| {
        let data = backend(V4, |_| ()).attrs(facts).backend_data.expect("v4 data");
        model::codec::vtep::read(&data).expect("our own data").mac
    };
    let mut facts = facts();
    assert_eq!(mac_of(&facts), Mac([0x0e, 0, 0, 0, 0, 4]), "pinned");
    facts.pinned_macs.clear();
    let derived = mac_of(&facts);
    assert!(derived.is_unicast() && derived.0[0] & 2 == 2, "{derived}");
    assert_eq!(mac_of(&facts), derived, "the same after a reboot");
    facts.machine_id.push('x');
    assert_ne!(mac_of(&facts), derived, "another machine, another address");
    let published = |kind, data| Some(lease("10.244.1.0/24", "192.0.2.10", kind, [data, ""]).attrs);
    facts.published = published("vxlan", r#"{"VNI":1,"VtepMAC":"8e:00:00:00:00:07"}"#);
    assert_eq!(mac_of(&facts), Mac([0x8e, 0, 0, 0, 0, 7]), "as the registry remembers");
    for (kind, data) in [("wireguard", r#"{"VNI":1,"VtepMAC":"8e:00:00:00:00:07"}"#), ("vxlan", "null")] {
        facts.published = published(kind, data);
        assert_ne!(mac_of(&facts), Mac([0x8e, 0, 0, 0, 0, 7]), "{kind} {data}");
    }
    facts.published = published("vxlan", r#"{"VNI":1,"VtepMAC":"8e:00:00:00:00:08"}"#);
    let found = Link {
        name,
        kind: match backend(V4, |_| ()).link(&facts, model::Family::V4, name).kind {
            LinkKind::Vxlan(v) => LinkKind::Vxlan(v),
            other => other,
        },
        mac: Some(Mac([0x8e, 0, 0, 0, 0, 7])),
        mtu: None,
        up: true,
        txqlen: None,
        master: None,
    };
    facts.devices.insert(name, found.clone());
    assert_eq!(mac_of(&facts), Mac([0x8e, 0, 0, 0, 0, 7]), "found");
    let bridge = Link { kind: LinkKind::Bridge(Bridge::default()), ..found };
    facts.devices.insert(name, bridge);
    assert_ne!(mac_of(&facts), Mac([0x8e, 0, 0, 0, 0, 7]), "a foreign device's address is not taken");
}

#[test]
fn lease_is_byte_for_byte_flannels() {
    let want = LeaseAttrs {
        public_ip: Some([192, 0, 2, 10].into()),
        public_ip6: Some("2001:db8::10".parse().expect("valid")),
        backend_type: "vxlan".to_owned(),
        backend_data: Some(r#"{"VNI":1,"VtepMAC":"0e:00:00:00:00:04"}"#.into()),
        backend_v6_data: Some(r#"{"VNI":1,"VtepMAC":"0e:00:00:00:00:06"}"#.into()),
    };
    assert_eq!(backend(DUAL, |_| ()).attrs(&facts()), want);
    let only_v6 = backend(V6, |_| ()).attrs(&facts());
    assert_eq!((only_v6.public_ip, only_v6.backend_data), (None, None));
}

#[test]
fn many_peers_go_through_nexthop_objects() {
    let peers: Vec<Lease> = (0..300u32)
        .map(|n| {
            let net = format!("10.{}.{}.0/24", n / 256 + 1, n % 256);
            let data = format!(r#"{{"VNI":1,"VtepMAC":"8e:00:00:00:{:02x}:{:02x}"}}"#, n / 256, n % 256);
            lease(&net, &format!("198.51.{}.{}", n / 200, n % 200 + 1), "vxlan", [&data, ""])
        })
        .collect();
    let count = |peers: &[Lease], in_use: bool| {
        let mut facts = facts();
        facts.nexthops_in_use = in_use;
        let assembly = assembly(&backend(V4, |_| ()), &facts, Some(&own()), peers);
        assembly.wanted().iter().filter(|(_, o)| matches!(o, Object::Nexthop(_))).count()
    };
    assert_eq!(count(&peers, false), 300);
    assert_eq!(count(&peers[..256], false), 0);
    assert_eq!(count(&peers[..256], true), 256, "hysteresis: stays on");
    assert_eq!(count(&peers[..128], true), 0, "and goes off");
}

#[test]
fn hosts_it_cannot_work_on_are_told_why() {
    let mut no_v6 = facts();
    no_v6.uplink.addresses.v6 = None;
    let mut small = facts();
    small.uplink.mtu = 1300;
    assert_eq!(backend(DUAL, |_| ()).check(&facts()), Ok(()));
    for (facts, families, part) in
        [(no_v6, DUAL, "eth0 has no IPv6 address"), (small, V6, "less than the 1280 needed")]
    {
        let error = backend(families, |_| ()).check(&facts).expect_err(part);
        assert!(error.contains(part), "{error}");
    }
}

/// A configuration that goes from node to node: who has the other one is reached without a tunnel where that can be.
#[test]
fn peers_with_another_configuration_are_reached_past_the_tunnel() {
    let seven = |last| vtep(last).replace("\"VNI\":1", "\"VNI\":7");
    let peers = [
        lease("10.244.2.0/24 fd00:2::/64", "192.0.2.12 2001:db8::12", "host-gw", ["", ""]),
        lease("10.244.3.0/24", "192.0.2.13", "vxlan", [&seven(3), ""]),
        lease("10.244.4.0/24", "198.51.100.4", "vxlan", [&seven(4), ""]),
        lease("10.244.5.0/24", "192.0.2.15", "wireguard", ["", ""]),
        lease("10.244.6.0/24", "198.51.100.6", "ipip", ["", ""]),
    ];
    let mut facts = facts();
    for public in ["192.0.2.12", "2001:db8::12", "192.0.2.13", "192.0.2.15"] {
        facts.on_link.insert(ip(public), IfName::fixed("eth0"));
    }
    let left_out =
        |net: &str, kind: &str| format!("left out {net}: its backend is \"{kind}\", ours is \"vxlan\"");
    let left_out = [left_out("10.244.5.0/24", "wireguard"), left_out("10.244.6.0/24", "ipip")].join("\n");
    let rest = |facts: &crate::Facts| {
        let got = text(&backend(DUAL, |_| ()), facts, Some(&own()), &peers);
        got.lines()
            .filter(|line| !line.contains("link add") && !line.contains("address replace"))
            .skip(2)
            .fold(String::new(), |text, line| text + line + "\n")
    };
    let way = |device: &str| {
        format!(
            "ip neigh replace 10.244.4.0 lladdr 8e:00:00:00:00:04 dev {device} nud permanent
             bridge fdb replace 8e:00:00:00:00:04 dev {device} dst 198.51.100.4 self permanent
             ip route replace 10.244.2.0/24 via 192.0.2.12 dev eth0 proto 76
             ip route replace 10.244.3.0/24 via 192.0.2.13 dev eth0 proto 76
             ip route replace 10.244.4.0/24 via 10.244.4.0 dev {device} onlink proto 76
             ip route replace fd00:2::/64 via 2001:db8::12 dev eth0 proto 76
             {left_out}"
        )
    };
    // A node that had this VNI before, and keeps its device.
    expect(&rest(&facts), &way("flannel.1"));
    // A node that has it now: such a device of ours is still there.
    let former = IfName::fixed("flannel.7");
    let link = Link { name: former, ..backend(V4, |c| c.vni = 7).link(&facts, super::Family::V4, former) };
    facts.devices.insert(former, link);
    expect(&rest(&facts), &way("flannel.7"));
    // A new device has the address of that of before, to which the others send.
    facts.pinned_macs.clear();
    facts.devices.values_mut().for_each(|link| link.mac = Some(Mac([0x0e, 0, 0, 0, 0, 7])));
    let attrs = backend(DUAL, |_| ()).attrs(&facts);
    assert_eq!(attrs.backend_data.as_deref(), Some(r#"{"VNI":1,"VtepMAC":"0e:00:00:00:00:07"}"#));
    assert!(!attrs.backend_v6_data.unwrap().contains("0e:00:00:00:00:07"), "the other family has its own");
}
