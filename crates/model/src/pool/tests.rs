use std::net::IpAddr;

use super::*;
use crate::codec::etcd_key;
use crate::testing::Random;

fn conf(text: &str) -> NetConf {
    NetConf::parse(text).and_then(NetConf::validate).expect(text)
}

fn keys(keys: &[&str]) -> Vec<Subnets> {
    keys.iter().map(|key| etcd_key::read(key).expect(key)).collect()
}

/// `pick` done the slow way: look at every subnet of the range.
fn free_naively(conf: &NetConf, family: Family, taken: &[Subnets]) -> Vec<IpNet> {
    let Some(range) = conf.range(family) else { return Vec::new() };
    let steps = (range.max - range.min) / range.size();
    let all = (0..=steps).map(|step| range.family.from_bits(range.min + step * range.size()));
    let nets = all.map(|start| IpNet::new(start, range.len).expect("a valid length"));
    nets.filter(|net| {
        let nets = taken.iter().filter_map(|subnets| subnets.of(family));
        !nets.into_iter().any(|other| other.contains(net) || net.contains(&other))
    })
    .collect()
}

#[test]
fn every_free_subnet_and_no_other_can_be_picked() {
    let mut random = Random::new(3);
    for (text, families) in [
        (r#"{"Network":"10.3.0.0/20","SubnetLen":26}"#, 1),
        (r#"{"Network":"255.255.240.0/20","SubnetLen":26}"#, 1),
        (r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"ffff:ffff:ffff:ffc0::/58"}"#, 1),
        (r#"{"Network":"10.3.0.0/20","SubnetLen":26,"EnableIPv6":true,"IPv6Network":"fd00:0:0:40::/58"}"#, 2),
    ] {
        let conf = conf(text);
        for round in 0..60 {
            let mut taken = Vec::new();
            for _ in 0..round {
                let v4 = conf.network.map(|net| {
                    let bits = net.network().to_bits() | random.below(1 << 12) as u32;
                    Ipv4Net::new(bits.into(), 16 + random.below(17) as u8).expect("valid").trunc()
                });
                let v6 = conf.ipv6_network.map(|net| {
                    let bits = net.network().to_bits() | u128::from(random.below(64)) << 64;
                    Ipv6Net::new(bits.into(), 56 + random.below(10) as u8).expect("valid").trunc()
                });
                // Wide networks would take everything at once.
                let v4 = v4.filter(|net| net.prefix_len() > 22 || random.below(20) == 0);
                let v6 = v6.filter(|net| net.prefix_len() > 60 || random.below(20) == 0);
                taken.push(Subnets { v4, v6: v6.filter(|_| random.below(2) == 0) });
            }
            let free: Vec<Vec<IpNet>> = conf.families().map(|f| free_naively(&conf, f, &taken)).collect();
            assert_eq!(free.len(), families);
            // Count through the slots by giving the numbers a random source could give.
            let most = free.iter().map(Vec::len).max().unwrap_or(0).max(1);
            for number in 0..most {
                let mut high = true;
                let picked = pick(&conf, &taken, &mut || {
                    high = !high;
                    if high { number as u64 } else { 0 }
                });
                if free.iter().any(Vec::is_empty) {
                    assert!(matches!(picked, Err(PoolError::Exhausted { .. })));
                    continue;
                }
                let picked = picked.expect("there are free subnets");
                for (family, free) in conf.families().zip(&free) {
                    assert_eq!(picked.of(family), Some(free[number % free.len()]), "{text} {taken:?}");
                }
                assert!(compatible(&conf, &picked));
            }
        }
    }
}

#[test]
fn an_exhausted_range_is_one_clear_sentence() {
    let conf = conf(r#"{"Network":"10.3.0.0/22","SubnetMin":"10.3.1.0","SubnetMax":"10.3.2.0"}"#);
    let taken = keys(&["10.3.1.0-24", "10.3.2.128-25"]);
    let error = pick(&conf, &taken, &mut || 5).expect_err("nothing is free").to_string();
    assert_eq!(
        error,
        "pick IPv4 subnet: all 2 subnets of length 24 from 10.3.1.0 to 10.3.2.0 are taken; widen the range in the \
         network config or wait for a lease to run out"
    );
    let raw = NetConf::parse(r#"{"Network":"10.3.0.0/22"}"#).expect("decodes");
    assert_eq!(pick(&raw, &[], &mut || 5), Err(PoolError::NoRange(Family::V4)));
}

#[test]
fn v6_leases_of_v4_only_nodes_do_not_matter() {
    let conf = conf(r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48"}"#);
    let picked = pick(&conf, &keys(&["10.3.1.0-24"]), &mut || 0).expect("free");
    assert_eq!(picked.to_string(), "10.3.2.0/24 and fd00:0:0:1::/64");
}

const V4: &str = r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.10.0","SubnetMax":"10.3.20.0"}"#;
const V6: &str = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48"}"#;
const DUAL: &str = r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48"}"#;

#[test]
fn earlier_subnets_are_checked_before_reuse() {
    for (text, old, fits, reused) in [
        (V4, "10.3.10.0-24", true, "10.3.10.0/24"),
        (V4, "10.3.20.0-24", true, "10.3.20.0/24"),
        (V4, "10.3.9.0-24", false, ""),
        (V4, "10.3.21.0-24", false, ""),
        (V4, "10.3.10.0-25", false, ""),
        (V4, "10.3.12.0-24", true, ""),
        (V4, "10.3.10.0-24&fd00:0:0:1::-64", false, "10.3.10.0/24"),
        (V6, "0.0.0.0-31&fd00:0:0:1::-64", true, "fd00:0:0:1::/64"),
        (V6, "0.0.0.0-31&fd00:0:0:12::-64", true, ""),
        (V6, "0.0.0.0-31&fd00:0:0:1::-80", false, ""),
        (V6, "10.3.10.0-24&fd00:0:0:1::-64", false, "fd00:0:0:1::/64"),
        (V6, "10.3.10.0-24", false, ""),
        (DUAL, "10.3.10.0-24&fd00:0:0:1::-64", true, "10.3.10.0/24 and fd00:0:0:1::/64"),
        (DUAL, "10.3.10.0-24&fd00:0:0:12::-64", true, ""),
        (DUAL, "10.3.10.0-24", false, ""),
    ] {
        let (conf, old) = (conf(text), etcd_key::read(old).expect(old));
        assert_eq!(compatible(&conf, &old), fits, "{text} {old}");
        let taken = keys(&["10.3.12.128-25", "0.0.0.0-31&fd00:0:0:12::-64"]);
        let got = previous(&conf, &old, &taken).map(|subnets| subnets.to_string());
        assert_eq!(got.unwrap_or_default(), reused, "{text} {old}");
    }
}

#[test]
fn a_node_finds_its_own_lease_by_public_address() {
    let lease = |key: &str, ip: &str| {
        let mut lease = Lease { subnets: etcd_key::read(key).expect(key), ..Lease::default() };
        match ip.parse() {
            Ok(IpAddr::V4(ip)) => lease.attrs.public_ip = Some(ip),
            Ok(IpAddr::V6(ip)) => lease.attrs.public_ip6 = Some(ip),
            Err(_) => {}
        }
        lease
    };
    for (text, me, stored, keep, outdated) in [
        (V4, "192.0.2.1", vec![("10.3.10.0-24", "192.0.2.2", false)], "", ""),
        (V4, "192.0.2.1", vec![("10.3.10.0-24", "192.0.2.1", false)], "10.3.10.0/24", ""),
        (
            V4,
            "192.0.2.1",
            vec![("10.3.10.0-24", "192.0.2.1", false), ("10.3.11.0-24", "192.0.2.1", false)],
            "10.3.10.0/24",
            "",
        ),
        (
            V4,
            "192.0.2.1",
            vec![("10.3.10.0-24", "192.0.2.1", false), ("10.3.11.0-24", "192.0.2.1", true)],
            "10.3.11.0/24",
            "",
        ),
        (
            V4,
            "192.0.2.1",
            vec![("10.3.1.0-24", "192.0.2.1", false), ("10.3.11.0-24", "192.0.2.1", false)],
            "10.3.11.0/24",
            "10.3.1.0/24",
        ),
        (V4, "192.0.2.1", vec![("10.3.1.0-24", "192.0.2.1", true)], "", ""),
        (V4, "192.0.2.1", vec![("10.3.10.0-24", "", false)], "", ""),
        (
            V6,
            "2001:db8::1",
            vec![("0.0.0.0-31&fd00:0:0:1::-64", "2001:db8::1", false)],
            "fd00:0:0:1::/64",
            "",
        ),
        (V6, "2001:db8::1", vec![("0.0.0.0-31&fd00:0:0:1::-64", "2001:db8::2", false)], "", ""),
        (V6, "2001:db8::1", vec![("0.0.0.0-31&fd00:0:0:1::-64", "", false)], "", ""),
        (V6, "", vec![("0.0.0.0-31&fd00:0:0:1::-64", "", false)], "", ""),
    ] {
        let leases: Vec<(Lease, bool)> = stored.iter().map(|(key, ip, r)| (lease(key, ip), *r)).collect();
        let entries = leases.iter().map(|(lease, reserved)| Entry { lease, reserved: *reserved });
        let conf = conf(text);
        let found = own(&conf, entries, &lease("10.3.99.0-24", me).attrs);
        assert_eq!(found.keep.map(|e| e.lease.subnets.to_string()).unwrap_or_default(), keep, "{stored:?}");
        let gone: Vec<String> = found.outdated.iter().map(|l| l.subnets.to_string()).collect();
        assert_eq!(gone.join(" "), outdated, "{stored:?}");
    }
}
