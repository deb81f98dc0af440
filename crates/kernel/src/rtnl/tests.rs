//! Messages byte by byte (little-endian hosts), and decoding what was encoded.

use std::net::IpAddr;

use ipnet::IpNet;
use model::{IfName, Mac};
use plan::state::Rule;

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// Reads a request as if the kernel had sent it.
fn echo<T>(message: &Message, decode: impl Fn(&Reply<'_>) -> Option<T>) -> T {
    let reply =
        Reply { kind: message.kind(), flags: message.flags(), sequence: 0, payload: message.payload() };
    decode(&reply).unwrap()
}

#[cfg(target_endian = "little")] // the bytes are those of such a machine
#[test]
fn bytes_are_those_of_the_headers() {
    let mac = Mac([2, 0, 0, 0, 0, 1]);
    let gateway = RouteInfo {
        gateway: Some(ip("10.9.0.0")),
        dev: Some(4),
        onlink: true,
        protocol: 76,
        ..RouteInfo::to(net("10.9.0.0/24"))
    };
    let nexthop = NexthopInfo {
        id: 7,
        protocol: 76,
        index: Some(4),
        gateway: Some(ip("10.9.0.0")),
        onlink: true,
        group: false,
    };
    #[rustfmt::skip]
    let table: [(&str, Message, u16, &[u8]); 4] = [
        ("route", route::add(&gateway, Put::Replace), libc::RTM_NEWROUTE, &[
            2, 24, 0, 0, 254, 76, 0, 1, 4, 0, 0, 0,
            8, 0, 1, 0, 10, 9, 0, 0,
            8, 0, 15, 0, 254, 0, 0, 0,
            8, 0, 5, 0, 10, 9, 0, 0,
            8, 0, 4, 0, 4, 0, 0, 0,
        ]),
        ("nexthop", nexthop::add(&nexthop, Put::Replace), 104, &[
            2, 0, 76, 0, 4, 0, 0, 0,
            8, 0, 1, 0, 7, 0, 0, 0,
            8, 0, 5, 0, 4, 0, 0, 0,
            8, 0, 6, 0, 10, 9, 0, 0,
        ]),
        ("neighbour", neigh::add(&NeighInfo::permanent(4, ip("10.9.0.0"), mac), Put::Replace), libc::RTM_NEWNEIGH, &[
            2, 0, 0, 0, 4, 0, 0, 0, 0x80, 0, 0, 0,
            8, 0, 1, 0, 10, 9, 0, 0,
            10, 0, 2, 0, 2, 0, 0, 0, 0, 1, 0, 0,
        ]),
        ("fdb", neigh::add_fdb(&FdbInfo::vxlan(4, mac, ip("192.0.2.2")), Put::Replace), libc::RTM_NEWNEIGH, &[
            7, 0, 0, 0, 4, 0, 0, 0, 0x80, 0, 2, 0,
            10, 0, 2, 0, 2, 0, 0, 0, 0, 1, 0, 0,
            8, 0, 1, 0, 192, 0, 2, 2,
        ]),
    ];
    for (what, message, kind, payload) in table {
        assert_eq!((message.kind(), message.payload()), (kind, payload), "{what}");
        // REQUEST, CREATE, REPLACE
        assert_eq!(message.flags(), 0x501, "{what}");
    }
}

#[test]
fn what_is_encoded_decodes_to_itself() {
    for (dst, gateway, src) in
        [("10.9.0.0/24", "192.0.2.9", "192.0.2.1"), ("fd00:9::/64", "2001:db8::9", "2001:db8::1")]
    {
        let route = RouteInfo {
            dev: Some(3),
            gateway: Some(ip(gateway)),
            src: Some(ip(src)),
            priority: Some(9),
            mtu: Some(1400),
            advmss: Some(1360),
            scope: Some(0),
            table: 70_000,
            ..RouteInfo::to(net(dst))
        };
        assert_eq!(echo(&route::add(&route, Put::Append), route::decode), route);
        let crossed = RouteInfo { gateway: Some(ip("fe80::1")), src: None, ..route.clone() };
        assert_eq!(echo(&route::add(&crossed, Put::Append), route::decode), crossed);
        let through = RouteInfo { nexthop: Some(5), gateway: None, dev: None, ..route.clone() };
        assert_eq!(echo(&route::add(&through, Put::Append), route::decode), through);
        assert_eq!(echo(&route::delete(&route), route::decode), route);

        let address = AddrInfo {
            broadcast: ip(src).is_ipv4().then(|| "192.0.2.255".parse().unwrap()),
            flags: AddrInfo::NODAD | AddrInfo::NOPREFIXROUTE,
            ..AddrInfo::new(3, net(&format!("{src}/25")))
        };
        assert_eq!(echo(&addr::add(&address, Put::Replace), addr::decode), address);

        let rule = Rule {
            family: model::Family::of(ip(src)),
            priority: 512,
            from: Some(net(dst)),
            to: Some(net(dst)),
            iif: Some(IfName::fixed("eth0")),
            fwmark: Some((1, 3)),
            table: 1000,
        };
        let found = echo(&rule::add(&rule), rule::decode);
        assert_eq!(found, RuleInfo { rule, protocol: 76, action: 1, narrower: false, foreign: false });
    }
}

#[test]
fn scopes_follow_the_address_and_the_gateway() {
    for (text, scope) in
        [("127.0.0.1/8", 254), ("169.254.0.1/16", 253), ("fe80::1/64", 253), ("10.0.0.1/8", 0)]
    {
        assert_eq!(AddrInfo::new(1, net(text)).scope, scope, "{text}");
    }
    for (dst, dev, gateway, scope) in [
        ("10.0.0.0/8", Some(1), None, 253),
        ("10.0.0.0/8", Some(1), Some("192.0.2.1"), 0),
        ("fd00::/8", Some(1), None, 0),
    ] {
        let route = RouteInfo { dev, gateway: gateway.map(ip), ..RouteInfo::to(net(dst)) };
        assert_eq!(route::add(&route, Put::Replace).payload()[6], scope, "{dst}");
    }
}

/// Whatever bytes come, decoding neither panics nor hangs.
#[test]
fn arbitrary_bytes_are_harmless() {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let kinds = [
        libc::RTM_NEWLINK,
        libc::RTM_NEWADDR,
        libc::RTM_NEWROUTE,
        libc::RTM_NEWNEIGH,
        libc::RTM_NEWRULE,
        nexthop::RTM_NEWNEXTHOP,
        0x0a00,
        0x0a03,
        0x0a06,
        0x0a09,
    ];
    for _ in 0..200_000 {
        // Small numbers often, so that lengths and types fit now and then.
        let bytes: Vec<u8> = (0..random() % 120)
            .map(|_| {
                if random() % 3 == 0 {
                    random() as u8
                } else {
                    (random() % 20) as u8 * ((random() % 2) as u8)
                }
            })
            .collect();
        let kind = kinds[(random() % kinds.len() as u64) as usize];
        let reply = Reply { kind, flags: random() as u16, sequence: 0, payload: &bytes };
        let _ = crate::link::decode(&reply);
        let _ = crate::link::decode_vlans(&reply);
        let _ = (addr::decode(&reply), route::decode(&reply), neigh::decode(&reply));
        let _ = (neigh::decode_fdb(&reply), nexthop::decode(&reply), rule::decode(&reply));
        let _ = crate::nft::message::decode_table(&reply);
        let _ = crate::nft::message::decode_chain(&reply);
        let _ = crate::nft::message::decode_rule(&reply);
        let _ = Reply::split(&bytes).count();
    }
}
