use model::IfName;

use super::{Iface, IfaceAddress, Routing, Selectors, choose};
use crate::facts::Families;

/// `name index mtu address[flags]…`; flags: d deprecated, y dynamic, t temporary.
fn ifaces(text: &str) -> Vec<Iface> {
    text.lines()
        .map(|line| {
            let mut words = line.split_whitespace();
            let mut word = || words.next().expect("name, index, MTU");
            let (name, index, mtu) = (word(), word(), word());
            let address = |word: &str| {
                let (net, flags) = word.split_once('!').unwrap_or((word, ""));
                IfaceAddress {
                    net: net.parse().expect("a valid address in a test"),
                    deprecated: flags.contains('d'),
                    permanent: !flags.contains('y'),
                    temporary: flags.contains('t'),
                }
            };
            Iface {
                name: IfName::fixed(name),
                index: index.parse().expect("an index"),
                mtu: mtu.parse().expect("an MTU"),
                addresses: words.map(address).collect(),
            }
        })
        .collect()
}

const HOST: &str = "lo 1 65536 127.0.0.1/8 ::1/128
eth0 2 1500 10.0.2.15/24 fe80::15/64 2001:db8:2::15/64
eth1 3 1400 192.0.2.10/24 192.0.2.11/24 2001:db8::10/64 fe80::10/64
eth2 4 9000 169.254.7.7/16
eth3 5 1500 198.51.100.9/24!d 198.51.100.8/24!y 198.51.100.7/24 2001:db8:3::9/64!t 2001:db8:3::8/64!y 2001:db8:3::7/64!yt
eth4 6 1500
zero 7 0 203.0.113.7/24";

/// `flags` are the selectors as on a command line; `want` is interface, local addresses, advertised ones.
fn check(stack: &str, flags: &str, want: &str) {
    let mut s = Selectors::default();
    let mut routing = Routing { default_v4: Some(2), default_v6: Some(2), reach: None };
    for flag in flags.split_whitespace() {
        let (name, value) = flag.split_once('=').expect("name=value");
        match name {
            "iface" => s.iface.push(value.to_owned()),
            "regex" => s.iface_regex.push(value.to_owned()),
            "ip" => s.public_ip = value.to_owned(),
            "ip6" => s.public_ipv6 = value.to_owned(),
            "default" => {
                let (v4, v6) = value.split_once(',').expect("two indexes");
                (routing.default_v4, routing.default_v6) = (v4.parse().ok(), v6.parse().ok());
            }
            "reach" => {
                s.can_reach = "198.51.100.1".to_owned();
                let mut parts = value.split(',');
                let index = parts.next().and_then(|n| n.parse().ok());
                routing.reach =
                    index.map(|index| (index, parts.next().map(|ip| ip.parse().expect("an address"))));
            }
            other => panic!("unknown selector {other}"),
        }
    }
    let families = Families { v4: stack != "6", v6: stack != "4" };
    let text = |a: crate::facts::Addresses| {
        let all = [a.v4.map(|ip| ip.to_string()), a.v6.map(|ip| ip.to_string())];
        all.into_iter().flatten().collect::<Vec<_>>().join(",")
    };
    let got = match choose(&s, families, &ifaces(HOST), &routing) {
        Ok(c) => {
            assert!(!c.why.is_empty(), "{flags}: the reason is missing");
            format!("{} {} {}", c.uplink.name, text(c.uplink.addresses), text(c.public))
        }
        Err(error) => format!("error: {error}"),
    };
    match want.strip_prefix("error: ") {
        Some(part) => assert!(got.starts_with("error: ") && got.contains(part), "{stack} {flags}: {got}"),
        None => assert_eq!(got, want, "{stack} {flags}"),
    }
}

#[test]
fn the_interface_is_the_one_flannel_would_take() {
    for (stack, flags, want) in [
        // default route
        ("4", "", "eth0 10.0.2.15 10.0.2.15"),
        ("6", "", "eth0 2001:db8:2::15 2001:db8:2::15"),
        ("d", "", "eth0 10.0.2.15,2001:db8:2::15 10.0.2.15,2001:db8:2::15"),
        ("4", "default=3,2", "eth1 192.0.2.10 192.0.2.10"),
        ("d", "default=3,2", "error: different interfaces"),
        ("4", "default=x,2", "error: there is no IPv4 default route"),
        ("6", "default=2,x", "error: there is no IPv6 default route"),
        ("4", "default=4,4", "eth2 169.254.7.7 169.254.7.7"),
        ("6", "default=4,4", "error: eth2 has no IPv6 address"),
        ("4", "default=99,99", "error: unknown interface"),
        // names and addresses
        ("4", "iface=eth1", "eth1 192.0.2.10 192.0.2.10"),
        ("d", "iface=eth1", "eth1 192.0.2.10,2001:db8::10 192.0.2.10,2001:db8::10"),
        ("4", "iface=192.0.2.11", "eth1 192.0.2.11 192.0.2.11"),
        ("6", "iface=2001:db8::10", "eth1 2001:db8::10 2001:db8::10"),
        ("4", "iface=::ffff:192.0.2.11", "eth1 192.0.2.11 192.0.2.11"),
        ("4", "iface=192.000.2.11", "error: there is no such interface"),
        ("4", "iface=2001:db8::10", "error: IPv6 is not enabled"),
        ("6", "iface=192.0.2.10", "error: IPv4 is not enabled"),
        ("d", "iface=192.0.2.11", "eth1 192.0.2.11,2001:db8::10 192.0.2.11,2001:db8::10"),
        ("d", "iface=2001:db8::10", "eth1 192.0.2.10,2001:db8::10 192.0.2.10,2001:db8::10"),
        ("d", "iface=192.0.2.11 ip6=2001:db8::10", "eth1 192.0.2.11,2001:db8::10 192.0.2.11,2001:db8::10"),
        ("d", "iface=192.0.2.11 ip6=2001:db8:2::15", "error: eth1 does not have 2001:db8:2::15 too"),
        ("4", "iface=nope iface=eth1", "eth1 192.0.2.10 192.0.2.10"),
        ("4", "iface=eth0,eth1", "error: there is no such interface"),
        ("4", "iface=192.0.2.99", "error: no interface has this address"),
        ("4", "iface=eth4", "error: eth4 has no IPv4 address"),
        ("4", "iface=zero", "error: has MTU 0"),
        // preference among addresses
        ("4", "iface=eth3", "eth3 198.51.100.7 198.51.100.7"),
        ("6", "iface=eth3", "eth3 2001:db8:3::9 2001:db8:3::9"),
        // expressions
        ("4", "regex=192\\.0\\.2\\.11", "eth1 192.0.2.11 192.0.2.11"),
        ("4", "regex=^eth1$", "eth1 192.0.2.10 192.0.2.10"),
        ("4", "regex=th[13]", "eth1 192.0.2.10 192.0.2.10"),
        ("d", "regex=^(192\\.0|2001:db8::)", "eth1 192.0.2.10,2001:db8::10 192.0.2.10,2001:db8::10"),
        ("d", "regex=^(10\\.0|2001:db8::)", "error: no address and no name"),
        ("4", "regex=[", "error: is not a regular expression"),
        ("4", "regex=127", "error: no address and no name"),
        ("4", "iface=nope regex=^eth3$", "eth3 198.51.100.7 198.51.100.7"),
        ("6", "regex=^eth[24]$", "error: has no IPv6 address"),
        // reachability
        ("4", "reach=5,198.51.100.8", "eth3 198.51.100.8 198.51.100.8"),
        ("6", "reach=3,2001:db8::10", "eth1 2001:db8::10 2001:db8::10"),
        // The preferred source counts, not the best address (F-69).
        ("6", "reach=5,2001:db8:3::8", "eth3 2001:db8:3::8 2001:db8:3::8"),
        ("6", "reach=5,198.51.100.8", "eth3 2001:db8:3::9 2001:db8:3::9"),
        ("6", "reach=3", "eth1 2001:db8::10 2001:db8::10"),
        ("d", "reach=3,192.0.2.11", "eth1 192.0.2.11,2001:db8::10 192.0.2.11,2001:db8::10"),
        ("4", "reach=x", "error: no route to it"),
        ("4", "iface=nope reach=3,192.0.2.10", "eth1 192.0.2.10 192.0.2.10"),
        // advertised addresses
        ("4", "ip=192.0.2.11", "eth1 192.0.2.11 192.0.2.11"),
        ("4", "ip=203.0.113.1", "error: an address behind NAT needs --iface too"),
        ("4", "ip=203.0.113.1 iface=eth1", "eth1 192.0.2.10 203.0.113.1"),
        (
            "d",
            "ip=203.0.113.1 ip6=2001:db8:ffff::1 iface=eth1",
            "eth1 192.0.2.10,2001:db8::10 203.0.113.1,2001:db8:ffff::1",
        ),
        ("6", "ip6=2001:db8::10", "eth1 2001:db8::10 2001:db8::10"),
        ("4", "ip=nonsense iface=eth1", "error: --public-ip=\"nonsense\" is not an IPv4 address"),
        ("4", "ip=2001:db8::10 iface=eth1", "error: is not an IPv4 address"),
    ] {
        check(stack, flags, want);
    }
}

#[test]
fn selectors_that_failed_are_among_the_reasons() {
    let selectors = Selectors { iface: vec!["nope".to_owned(), "eth1".to_owned()], ..Selectors::default() };
    let families = Families { v4: true, v6: false };
    let choice = choose(&selectors, families, &ifaces(HOST), &Routing::default()).expect("eth1 fits");
    assert_eq!(
        choice.why,
        ["--iface=nope: there is no such interface", "--iface=eth1 fits eth1", "IPv4: 192.0.2.10 on eth1"]
    );
}
