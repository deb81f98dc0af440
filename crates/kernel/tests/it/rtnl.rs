//! What `rtnl` writes is what `ip` and `bridge` show, and what it reads back.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::process::Command;

use ipnet::IpNet;
use kernel::link::{self, BridgeVlan, End, LinkChange, NewKind, NewLink, PortFlags};
use kernel::rtnl::neigh::PERMANENT;
use kernel::rtnl::{AddrInfo, FdbInfo, NeighInfo, Put, RouteFilter, RouteInfo, Rtnl};
use kernel::{Error, Netns, sysctl};
use model::{Family, IfName, Mac};
use plan::state::{LinkKind, Rule, Vxlan};
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

fn index(rtnl: &mut Rtnl, name: &str) -> u32 {
    rtnl.link_by_name(IfName::fixed(name)).unwrap().unwrap().index
}

/// A namespace with `veth0` up, carrying 192.0.2.1/24 and 2001:db8::1/64, and its peer up as well.
fn wired() -> (Netns, Rtnl, u32) {
    let netns = fresh();
    let mut rtnl = Rtnl::open_in(netns.as_fd()).unwrap();
    let mut new = NewLink::new(name("veth0"), NewKind::Veth(End::new(name("peer0"))));
    new.up = true;
    rtnl.create_link(&new).unwrap();
    for device in ["lo", "peer0"] {
        let device = index(&mut rtnl, device);
        rtnl.set_link(device, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
    }
    let veth = index(&mut rtnl, "veth0");
    for address in ["192.0.2.1/24", "2001:db8::1/64"] {
        let mut address = AddrInfo::new(veth, net(address));
        address.flags = AddrInfo::NODAD;
        rtnl.add_address(&address, Put::Exclusive).unwrap();
    }
    (netns, rtnl, veth)
}

#[test]
fn a_veth_is_born_in_two_namespaces_with_everything_set() {
    let (host, pod) = (fresh(), fresh());
    let mut rtnl = Rtnl::open_in(host.as_fd()).unwrap();
    rtnl.create_link(&NewLink::new(name("cni0"), NewKind::Bridge { vlan_filtering: false })).unwrap();
    let bridge = index(&mut rtnl, "cni0");
    let mac = Mac([2, 0, 0, 0, 0, 7]);
    let peer = End {
        mac: Some(mac),
        mtu: Some(1450),
        txqlen: Some(500),
        index: Some(77),
        netns: Some(pod.as_fd()),
        ..End::new(name("eth0"))
    };
    let mut new = NewLink::new(name("veth7"), NewKind::Veth(peer));
    new.up = true;
    new.end.mtu = Some(1450);
    new.end.index = Some(78);
    new.master = Some(bridge);
    new.group = Some(9);
    rtnl.create_link(&new).unwrap();

    let in_pod = json_in(&pod, "ip -j -d link show eth0");
    let want = json!([{"ifname": "eth0", "ifindex": 77, "mtu": 1450, "txqlen": 500,
        "address": "02:00:00:00:00:07", "operstate": "DOWN", "linkinfo": {"info_kind": "veth"}}]);
    assert_has(&in_pod, &want);
    let on_host = json_in(&host, "ip -j -d link show veth7");
    assert_has(&on_host, &json!([{"master": "cni0", "mtu": 1450, "group": "9"}]));

    let info = rtnl.link_by_name(name("veth7")).unwrap().unwrap();
    assert_eq!(info.link.master, Some(name("cni0")));
    assert_eq!((info.lower, info.lower_netns.is_some(), info.group), (Some(77), true, 9));
    assert!(info.link.up);
    assert_eq!(info.port.unwrap().hairpin, Some(false));

    let mut inside = Rtnl::open_in(pod.as_fd()).unwrap();
    // What each protocol keeps for a device.
    let run = |rtnl: &mut Rtnl, message| rtnl.run(&[message]).pop().unwrap().unwrap();
    run(&mut rtnl, link::no_own_address(78));
    run(&mut inside, link::arp_notify(77));
    let on_host = json_in(&host, "ip -j -d link show veth7");
    assert_has(&on_host, &json!([{"inet6_addr_gen_mode": "none"}]));
    assert_eq!(sysctl::read_in(&pod, "net/ipv4/conf/eth0/arp_notify").unwrap(), "1");

    inside.set_link(77, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
    let info = inside.link_by_name(name("eth0")).unwrap().unwrap();
    assert_eq!(info.link.mac, Some(mac));
    // Its state of operation may have changed in between.
    assert_eq!(inside.link_by_index(77).unwrap().map(|found| found.link), Some(info.link));

    assert!(run_in(&host, "ip -6 addr show veth7").is_empty(), "up, and without an address");

    // A taken name is an error that says so; the other end is not left behind.
    let again = rtnl.create_link(&new).unwrap_err();
    assert_eq!(again.code(), Some(libc::EEXIST));
    assert!(again.to_string().starts_with("make device veth7: exists already (EEXIST"), "{again}");

    // A whole group at once, and twice is fine.
    assert!(rtnl.delete_group(9).unwrap());
    assert!(!rtnl.delete_group(9).unwrap());
    assert_eq!(inside.link_by_name(name("eth0")).unwrap(), None);
    assert!(rtnl.delete_link(bridge).unwrap());
    assert!(!rtnl.delete_link(bridge).unwrap());
}

/// A port as the CNI plugin wants it, in one request; flags nobody spoke of stay.
#[test]
fn a_port_comes_up_with_its_flags_and_without_an_address() {
    for (flags, want) in [
        (PortFlags::default(), json!({"hairpin": false, "isolated": false, "learning": true})),
        (
            PortFlags { hairpin: Some(true), ..PortFlags::default() },
            json!({"hairpin": true, "isolated": false, "learning": true}),
        ),
        (
            PortFlags { hairpin: Some(false), isolated: Some(true), learning: Some(false) },
            json!({"hairpin": false, "isolated": true, "learning": false}),
        ),
    ] {
        let (host, pod) = (fresh(), fresh());
        let mut rtnl = Rtnl::open_in(host.as_fd()).unwrap();
        rtnl.create_link(&NewLink::new(name("cni0"), NewKind::Bridge { vlan_filtering: false })).unwrap();
        let peer = End { netns: Some(pod.as_fd()), ..End::new(name("eth0")) };
        let mut new = NewLink::new(name("veth7"), NewKind::Veth(peer));
        new.master = Some(index(&mut rtnl, "cni0"));
        rtnl.create_link(&new).unwrap();
        let port = index(&mut rtnl, "veth7");
        assert_eq!(rtnl.run(&[link::port_up(port, &flags)]), [Ok(())]);
        run_in(&pod, "ip link set eth0 up");
        let shown = json_in(&host, "ip -j -d link show veth7");
        assert_has(
            &shown,
            &json!([{"inet6_addr_gen_mode": "none", "master": "cni0", "linkinfo": {"info_slave_data": want}}]),
        );
        assert!(rtnl.link_alone(port).unwrap().unwrap().link.up);
        assert!(run_in(&host, "ip -6 addr show veth7").is_empty(), "up, and without an address");
    }
}

#[test]
fn a_device_is_out_of_sight_when_its_deletion_is_announced() {
    let (host, pod) = (fresh(), fresh());
    run_in(&host, "ip link add port type veth peer name eth0");
    run_in(&host, &format!("ip link set eth0 netns {}", pod.path().display()));
    run_in(&host, "ip link add cni0 type bridge");
    run_in(&host, "ip link set port master cni0 up");
    run_in(&pod, "ip link set eth0 up");
    let mut inside = Rtnl::open_in(pod.as_fd()).unwrap();
    let index = self::index(&mut inside, "eth0");
    let deleting = inside.start_deleting(index, None).unwrap();
    assert!(inside.await_deleted(deleting).unwrap());
    for (netns, device) in [(&pod, "eth0"), (&host, "port")] {
        let mut rtnl = Rtnl::open_in(netns.as_fd()).unwrap();
        assert!(rtnl.link_by_name(name(device)).unwrap().is_none(), "{device}");
    }
    let mut again = Rtnl::open_in(pod.as_fd()).unwrap();
    let deleting = again.start_deleting(index, None).unwrap();
    assert!(!again.await_deleted(deleting).unwrap(), "was not there any more");
}

#[test]
fn vxlan_devices_are_like_flannels() {
    let (netns, mut rtnl, veth) = wired();
    // More than the lower device's MTU less the outer headers (50 or 70 bytes) is cut by the kernel.
    for (device, local, kind, mtu, moved) in [
        ("flannel.1", "192.0.2.1", "local", 1450, "192.0.2.9"),
        ("flannel-v6.1", "2001:db8::1", "local6", 1430, "2001:db8::9"),
    ] {
        let vxlan = Vxlan {
            vni: 1,
            port: 8472,
            local: Some(ip(local)),
            lower: Some(name("veth0")),
            learning: false,
            gbp: false,
            l2miss: false,
            group: None,
        };
        let kind_of = NewKind::Vxlan { vxlan: &vxlan, lower: Some(veth) };
        let mut new = NewLink::new(name(device), kind_of);
        new.end.mac = Some(Mac([14, 0, 0, 0, 0, 1]));
        new.end.mtu = Some(1450);
        new.up = true;
        rtnl.create_link(&new).unwrap();
        let shown = json_in(&netns, &format!("ip -j -d link show {device}"));
        let want = json!([{"ifname": device, "mtu": mtu, "address": "0e:00:00:00:00:01",
            "linkinfo": {"info_kind": "vxlan", "info_data": {"id": 1, kind: local, "link": "veth0", "port": 8472,
                "learning": false, "ageing": 300, "udp_csum": true,
                "udp_zero_csum6_tx": false, "udp_zero_csum6_rx": false}}}]);
        assert_has(&shown, &want);
        let text = run_in(&netns, &format!("ip -d link show {device}"));
        let line = text.lines().find(|l| l.contains("vxlan id")).unwrap();
        let words = format!(
            "vxlan id 1 local {local} dev veth0 srcport 0 0 dstport 8472 nolearning ttl auto ageing 300 \
             udpcsum noudp6zerocsumtx noudp6zerocsumrx"
        );
        assert!(line.contains(&words), "{line}");
        let info = rtnl.link_by_name(name(device)).unwrap().unwrap();
        assert_eq!(info.link.kind, LinkKind::Vxlan(vxlan));
        // The address of a living device can be changed without taking it down.
        let change = LinkChange {
            mac: Some(Mac([14, 0, 0, 0, 0, 2])),
            mtu: Some(1400),
            vxlan_learning: Some(true),
            vxlan_local: Some(ip(moved)),
            vxlan_lower: Some(1),
            ..LinkChange::default()
        };
        rtnl.set_link(info.index, &change).unwrap();
        let after = rtnl.link_by_name(name(device)).unwrap().unwrap();
        assert_eq!((after.link.mac, after.link.mtu), (change.mac, change.mtu));
        let LinkKind::Vxlan(vxlan) = &after.link.kind else { panic!("{after:?}") };
        assert_eq!((vxlan.learning, vxlan.local, vxlan.lower), (true, Some(ip(moved)), Some(name("lo"))));
        assert!(after.link.up);
    }
}

#[test]
fn bridge_vlans() {
    let (netns, mut rtnl, veth) = wired();
    let new = NewLink::new(name("br0"), NewKind::Bridge { vlan_filtering: true });
    match rtnl.create_link(&new) {
        Err(e) if e.code() == Some(libc::EOPNOTSUPP) => {
            return println!("SKIP bridge_vlans: this kernel has no VLAN filtering in bridges");
        }
        other => other.unwrap(),
    }
    let bridge = index(&mut rtnl, "br0");
    rtnl.set_link(veth, &LinkChange { master: Some(bridge), ..LinkChange::default() }).unwrap();
    assert!(matches!(
        rtnl.link_by_index(bridge).unwrap().unwrap().link.kind,
        LinkKind::Bridge(b) if b.vlan_filtering
    ));

    let vlan = |id, pvid, untagged| BridgeVlan { id, pvid, untagged };
    rtnl.delete_vlan(veth, 1, false).unwrap();
    rtnl.add_vlan(veth, vlan(100, true, true), false).unwrap();
    rtnl.add_vlan(veth, vlan(200, false, false), false).unwrap();
    rtnl.add_vlan(bridge, vlan(100, false, false), true).unwrap();
    assert_eq!(rtnl.vlans(veth).unwrap(), [vlan(100, true, true), vlan(200, false, false)]);
    assert_eq!(rtnl.vlans(bridge).unwrap(), [vlan(1, true, true), vlan(100, false, false)]);
    let shown = json_in(&netns, "bridge -j vlan show dev veth0");
    let want = json!([{"vlans": [{"vlan": 100, "flags": ["PVID", "Egress Untagged"]}, {"vlan": 200}]}]);
    assert_has(&shown, &want);
    rtnl.delete_vlan(veth, 4000, false).unwrap();
}

#[test]
fn bridges_and_ports() {
    let (netns, mut rtnl, veth) = wired();
    rtnl.create_link(&NewLink::new(name("br0"), NewKind::Bridge { vlan_filtering: false })).unwrap();
    let bridge = index(&mut rtnl, "br0");
    let join = LinkChange { master: Some(bridge), promisc: Some(true), ..LinkChange::default() };
    rtnl.set_link(veth, &join).unwrap();
    let flags = PortFlags { hairpin: Some(true), isolated: Some(true), learning: Some(false) };
    rtnl.set_port(veth, &flags).unwrap();
    let info = rtnl.link_by_index(veth).unwrap().unwrap();
    assert_eq!((info.port, info.master, info.promiscuity > 0), (Some(flags), Some(bridge), true));
    let shown = json_in(&netns, "bridge -j -d link show dev veth0");
    assert_has(&shown, &json!([{"hairpin": true, "isolated": true, "learning": false}]));

    rtnl.set_link(veth, &LinkChange { master: Some(0), promisc: Some(false), ..LinkChange::default() })
        .unwrap();
    let rename = LinkChange { up: Some(false), ..LinkChange::default() };
    rtnl.set_link(veth, &rename).unwrap();
    let rename = LinkChange { name: Some(name("veth9")), alias: Some("pod x"), ..LinkChange::default() };
    rtnl.set_link(veth, &rename).unwrap();
    let info = rtnl.link_by_name(name("veth9")).unwrap().unwrap();
    assert_eq!((info.index, info.master, info.alias.as_deref()), (veth, None, Some("pod x")));
    assert_eq!(rtnl.link_by_name(name("veth0")).unwrap(), None);
    let other = fresh();
    rtnl.set_link(veth, &LinkChange { netns: Some(other.as_fd()), ..LinkChange::default() }).unwrap();
    assert!(run_in(&other, "ip link show veth9").contains("veth9@"));
    assert_eq!(rtnl.links().unwrap().iter().filter(|l| l.link.name == name("veth9")).count(), 0);
}

#[test]
fn addresses() {
    let (netns, mut rtnl, veth) = wired();
    let mut v4 = AddrInfo::new(veth, net("10.1.2.3/24"));
    v4.broadcast = Some("10.1.2.255".parse().unwrap());
    v4.flags = AddrInfo::NOPREFIXROUTE;
    rtnl.add_address(&v4, Put::Exclusive).unwrap();
    assert_eq!(rtnl.add_address(&v4, Put::Exclusive).unwrap_err().code(), Some(libc::EEXIST));
    rtnl.add_address(&v4, Put::Replace).unwrap();
    let shown = json_in(&netns, "ip -4 -j addr show dev veth0 to 10.1.2.3");
    let want = json!([{"addr_info": [{"local": "10.1.2.3", "prefixlen": 24, "broadcast": "10.1.2.255",
        "scope": "global", "noprefixroute": true}]}]);
    let about: Vec<_> =
        shown[0]["addr_info"].as_array().unwrap().iter().filter(|a| a["local"] == "10.1.2.3").collect();
    assert_has(&json!([{ "addr_info": about }]), &want);
    let read = rtnl.addresses(Some(veth)).unwrap();
    assert!(read.iter().any(|a| a.net == v4.net && a.broadcast == v4.broadcast));
    assert!(read.iter().any(|a| a.net == net("2001:db8::1/64") && a.flags & AddrInfo::NODAD != 0));
    assert!(rtnl.addresses(None).unwrap().len() > read.len(), "peer0 has a link-local one at least");
    assert!(rtnl.delete_address(veth, v4.net).unwrap());
    assert!(!rtnl.delete_address(veth, v4.net).unwrap());
}

#[test]
fn routes_of_both_families() {
    let (netns, mut rtnl, veth) = wired();
    for (family, dst, gateway, src) in
        [("-4", "10.9.0.0/24", "192.0.2.9", "192.0.2.1"), ("-6", "fd00:9::/64", "2001:db8::9", "2001:db8::1")]
    {
        let route = RouteInfo {
            gateway: Some(ip(gateway)),
            dev: Some(veth),
            src: Some(ip(src)),
            priority: Some(77),
            mtu: Some(1400),
            advmss: Some(1300),
            protocol: 76,
            ..RouteInfo::to(net(dst))
        };
        rtnl.add_route(&route, Put::Exclusive).unwrap();
        assert_eq!(rtnl.add_route(&route, Put::Exclusive).unwrap_err().code(), Some(libc::EEXIST));
        let shown = json_in(&netns, &format!("ip {family} -j route show {dst}"));
        let want = json!([{"dst": dst, "gateway": gateway, "dev": "veth0", "prefsrc": src, "metric": 77,
            "protocol": "76", "metrics": [{"mtu": 1400, "advmss": 1300}]}]);
        assert_has(&shown, &want);
        let filter = RouteFilter { protocol: Some(76), table: Some(254), ..RouteFilter::default() };
        let read: Vec<_> = rtnl.routes(filter).unwrap().into_iter().filter(|r| r.dst == net(dst)).collect();
        let flags = read[0].flags;
        assert_eq!(read, [RouteInfo { scope: Some(0), flags, ..route.clone() }]);

        let other = RouteInfo { gateway: None, mtu: None, advmss: None, src: None, ..route.clone() };
        rtnl.add_route(&other, Put::Replace).unwrap();
        let shown = json_in(&netns, &format!("ip {family} -j route show {dst}"));
        assert_eq!((shown.as_array().unwrap().len(), &shown[0]["gateway"]), (1, &json!(null)));

        assert!(!rtnl.delete_route(&RouteInfo { protocol: 3, ..other.clone() }).unwrap(), "not another's");
        assert!(rtnl.delete_route(&other).unwrap());
        assert!(!rtnl.delete_route(&other).unwrap());

        let onlink = RouteInfo {
            dev: Some(veth),
            gateway: Some(ip(if family == "-4" { "10.9.0.0" } else { "fd00:9::" })),
            onlink: true,
            table: 1000,
            ..RouteInfo::to(net(dst))
        };
        rtnl.add_route(&onlink, Put::Replace).unwrap();
        let read = rtnl.routes(RouteFilter { table: Some(1000), ..RouteFilter::default() }).unwrap();
        assert!(read.iter().any(|r| r.dst == onlink.dst && r.onlink && r.gateway == onlink.gateway));
    }
    assert!(rtnl.routes(RouteFilter { table: Some(4242), ..RouteFilter::default() }).unwrap().is_empty());

    // The kernel's own words reach us.
    let wrong =
        RouteInfo { gateway: Some(ip("203.0.113.1")), dev: Some(veth), ..RouteInfo::to(net("10.8.0.0/24")) };
    let error = rtnl.add_route(&wrong, Put::Replace).unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "add route 10.8.0.0/24 via 203.0.113.1 dev {veth} proto 3: network is unreachable \
             (ENETUNREACH, \"Nexthop has invalid gateway\")"
        )
    );
}

#[test]
fn lookups_are_batched_and_tell_gateways() {
    let (_netns, mut rtnl, veth) = wired();
    let default = RouteInfo { gateway: Some(ip("192.0.2.254")), ..RouteInfo::to(net("0.0.0.0/0")) };
    rtnl.add_route(&default, Put::Exclusive).unwrap();
    let mut asked =
        vec![ip("192.0.2.7"), ip("203.0.113.5"), ip("192.0.2.1"), ip("2001:db8::7"), ip("2001:db9::1")];
    asked.extend((0..500u32).map(|n| IpAddr::from((0xc000_0200 + n % 200 + 2).to_be_bytes())));
    let found = rtnl.lookup(&asked).unwrap();
    assert_eq!(found.len(), asked.len());
    let via = |n: usize| found[n].map(|l| (l.dev == veth, l.gateway));
    assert_eq!(via(0), Some((true, None)));
    assert_eq!(via(1), Some((true, Some(ip("192.0.2.254")))));
    assert_eq!(found[2].map(|l| l.kind), Some(libc::RTN_LOCAL));
    assert_eq!(via(3), Some((true, None)));
    assert_eq!(found[3].unwrap().src, Some(ip("2001:db8::1")));
    assert_eq!(via(4), None);
    assert!(found[5..].iter().all(|l| l.is_some_and(|l| l.dev == veth && l.gateway.is_none())));
}

#[test]
fn neighbours_and_forwarding_entries() {
    let (netns, mut rtnl, veth) = wired();
    let vxlan = Vxlan {
        vni: 7,
        port: 8472,
        local: Some(ip("192.0.2.1")),
        lower: None,
        learning: false,
        gbp: false,
        l2miss: false,
        group: None,
    };
    let mut new = NewLink::new(name("flannel.7"), NewKind::Vxlan { vxlan: &vxlan, lower: Some(veth) });
    new.up = true;
    rtnl.create_link(&new).unwrap();
    let device = index(&mut rtnl, "flannel.7");
    let mac = |n| Mac([2, 0, 0, 0, 0, n]);
    for (n, dst) in [(1, "10.1.0.0"), (2, "fd00:1::")] {
        let entry = NeighInfo::permanent(device, ip(dst), mac(n));
        rtnl.add_neighbour(&entry, Put::Replace).unwrap();
        rtnl.add_neighbour(&NeighInfo::permanent(device, ip(dst), mac(n + 10)), Put::Replace).unwrap();
        let read: Vec<_> =
            rtnl.neighbours(Some(device)).unwrap().into_iter().filter(|e| e.dst == ip(dst)).collect();
        assert_eq!(read, [NeighInfo::permanent(device, ip(dst), mac(n + 10))]);
        assert!(rtnl.delete_neighbour(device, ip(dst)).unwrap());
        assert!(!rtnl.delete_neighbour(device, ip(dst)).unwrap());
    }
    rtnl.add_fdb(&FdbInfo::vxlan(device, mac(1), ip("192.0.2.11")), Put::Replace).unwrap();
    rtnl.add_fdb(&FdbInfo::vxlan(device, mac(1), ip("192.0.2.12")), Put::Replace).unwrap();
    let shown = json_in(&netns, "bridge -j fdb show dev flannel.7");
    let want =
        json!([{"mac": "02:00:00:00:00:01", "dst": "192.0.2.12", "flags": ["self"], "state": "permanent"}]);
    assert_has(&shown, &want);
    let read = rtnl.fdb(Some(device)).unwrap();
    assert_eq!(
        (read.len(), read[0].mac, read[0].dst, read[0].state),
        (1, mac(1), Some(ip("192.0.2.12")), PERMANENT)
    );
    // With another destination it stays, whatever the kernel answers (6.18 says that all is well).
    rtnl.delete_fdb(&FdbInfo::vxlan(device, mac(1), ip("192.0.2.11"))).unwrap();
    assert_eq!(rtnl.fdb(Some(device)).unwrap(), read);
    assert!(rtnl.delete_fdb(&FdbInfo::vxlan(device, mac(1), ip("192.0.2.12"))).unwrap());
    assert!(rtnl.fdb(Some(device)).unwrap().is_empty());
}

#[test]
fn rules_of_both_families() {
    let (netns, mut rtnl, _) = wired();
    let before = rtnl.rules().unwrap().len();
    for (family, flag, from) in [(Family::V4, "-4", "10.1.0.0/16"), (Family::V6, "-6", "fd00:1::/48")] {
        let rule = Rule {
            family,
            priority: 512,
            from: Some(net(from)),
            to: None,
            iif: Some(name("veth0")),
            fwmark: Some((0x2000, 0x2000)),
            table: 1234,
        };
        rtnl.add_rule(&rule).unwrap();
        assert!(
            matches!(rtnl.add_rule(&rule), Err(Error::Kernel { errno, .. }) if errno.code == libc::EEXIST)
        );
        let shown = run_in(&netns, &format!("ip {flag} rule show pref 512"));
        assert!(shown.contains("iif veth0") && shown.contains("fwmark 0x2000/0x2000"), "{shown}");
        let found = rtnl.rules().unwrap();
        assert_eq!(found.len(), before + 1);
        let found: Vec<_> = found.into_iter().filter(|r| r.rule.priority == 512).collect();
        assert_eq!((&found[0].rule, found[0].protocol, found[0].foreign), (&rule, 76, false));
        assert!(rtnl.delete_rule(&rule).unwrap());
        assert!(!rtnl.delete_rule(&rule).unwrap());
    }
}

#[test]
fn offloads_are_as_ethtool_shows_them() {
    if Command::new("ethtool").arg("--version").output().is_err() {
        return println!("SKIP offloads_are_as_ethtool_shows_them: ethtool is not installed");
    }
    let (netns, _rtnl, _) = wired();
    let set = |device: &str, features: &[(&str, bool)]| {
        netns.run(|| kernel::ethtool::set_features(name(device), features)).unwrap()
    };
    let shown = |feature: &str| {
        let all = run_in(&netns, "ethtool -k veth0");
        let line = all.lines().find_map(|line| line.trim().strip_prefix(&format!("{feature}: ")));
        line.unwrap_or_else(|| panic!("no {feature} in {all}")).to_owned()
    };
    for (segmentation, coalescing, want) in [(false, true, ["off", "on"]), (true, false, ["on", "off"])] {
        set("veth0", &[("tx-udp-segmentation", segmentation), ("rx-gro", coalescing)]).unwrap();
        assert_eq!([shown("tx-udp-segmentation"), shown("generic-receive-offload")], want);
    }
    let refused = set("veth0", &[("tx-by-pigeon", true)]).unwrap_err().to_string();
    assert!(refused.contains("change the offloads of veth0"), "{refused}");
    assert_eq!(set("none0", &[("rx-gro", true)]).unwrap_err().code(), Some(libc::ENODEV));
}

#[test]
fn a_namespace_is_known_by_the_devices_that_lead_there() {
    let (netns, mut rtnl, _) = wired();
    let [near, far] = [Netns::create().unwrap(), Netns::create().unwrap()];
    run_in(&netns, "ip link add out7 type veth peer name in7");
    assert_eq!(rtnl.netns_id(near.as_fd()).unwrap(), None);
    run_in(&netns, &format!("ip link set in7 netns {}", near.path().display()));
    let id = rtnl.netns_id(near.as_fd()).unwrap();
    let link = rtnl.link_by_name(name("out7")).unwrap().unwrap();
    assert!(id.is_some() && link.lower_netns == id, "{id:?} {link:?}");
    assert_eq!(rtnl.netns_id(far.as_fd()).unwrap(), None);
}
