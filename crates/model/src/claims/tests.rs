use super::*;
use crate::codec::etcd_key;
use crate::testing::Random;

fn lease(key: &str, v4: &str, v6: &str) -> Lease {
    let mut lease = Lease { subnets: etcd_key::read(key).expect(key), ..Lease::default() };
    (lease.attrs.public_ip, lease.attrs.public_ip6) = (v4.parse().ok(), v6.parse().ok());
    lease
}

fn check_leases(conf: &str, leases: &[(&str, &str, &str)]) -> Claims {
    let conf = NetConf::parse(conf).and_then(NetConf::validate).expect(conf);
    let own = lease("10.3.1.0-24&fd00:3:0:1::-64", "192.0.2.1", "2001:db8::1");
    let local = ["10.0.2.15", "2001:db8::2", "127.0.0.1"].map(|ip| ip.parse().expect("an address"));
    let mut peers = Peers::default();
    peers.reset(leases.iter().map(|(key, v4, v6)| lease(key, v4, v6)).chain([own.clone()]));
    check(&conf, &own, &BTreeSet::from(local), &peers)
}

const V4: &str = r#"{"Network":"10.3.0.0/16"}"#;
const DUAL: &str = r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:3::/48"}"#;

#[test]
fn a_claim_is_judged_family_by_family() {
    for (conf, claim, accepted, rejected) in [
        (V4, ("10.3.2.0-24", "192.0.2.2", ""), "10.3.2.0/24", ""),
        (V4, ("10.3.2.0-24", "", ""), "10.3.2.0/24", ""),
        (V4, ("10.3.2.0-25", "192.0.2.2", ""), "10.3.2.0/25", ""),
        (
            V4,
            ("10.4.2.0-24", "192.0.2.2", ""),
            "",
            "10.4.2.0/24: it is not inside the cluster network 10.3.0.0/16",
        ),
        (
            V4,
            ("10.0.0.0-8", "192.0.2.2", ""),
            "",
            "10.0.0.0/8: it is not inside the cluster network 10.3.0.0/16",
        ),
        (
            V4,
            ("0.0.0.0-0", "192.0.2.2", ""),
            "",
            "0.0.0.0/0: it is not inside the cluster network 10.3.0.0/16",
        ),
        (V4, ("10.3.0.0-16", "192.0.2.2", ""), "", "10.3.0.0/16: it overlaps this node's subnet 10.3.1.0/24"),
        (
            V4,
            ("10.3.1.128-25", "192.0.2.2", ""),
            "",
            "10.3.1.128/25: it overlaps this node's subnet 10.3.1.0/24",
        ),
        (V4, ("10.3.1.0-24", "192.0.2.2", ""), "", "10.3.1.0/24: it overlaps this node's subnet 10.3.1.0/24"),
        (
            V4,
            ("10.3.2.0-24", "192.0.2.1", ""),
            "",
            "10.3.2.0/24: its owner's public address 192.0.2.1 is one of this node's own",
        ),
        (
            V4,
            ("10.3.2.0-24", "10.0.2.15", ""),
            "",
            "10.3.2.0/24: its owner's public address 10.0.2.15 is one of this node's own",
        ),
        (
            V4,
            ("10.3.2.0-24", "127.0.0.2", ""),
            "",
            "10.3.2.0/24: its owner's public address 127.0.0.2 is a loopback address",
        ),
        (
            V4,
            ("10.3.2.0-24", "224.0.0.1", ""),
            "",
            "10.3.2.0/24: its owner's public address 224.0.0.1 is a multicast address",
        ),
        (
            V4,
            ("10.3.2.0-24", "255.255.255.255", ""),
            "",
            "10.3.2.0/24: its owner's public address 255.255.255.255 is the broadcast address",
        ),
        (
            V4,
            ("10.3.2.0-24", "10.3.2.9", ""),
            "",
            "10.3.2.0/24: its owner's public address 10.3.2.9 is inside the subnet itself",
        ),
        (V4, ("10.3.2.0-24&fd00:3:0:2::-64", "192.0.2.2", "ff02::1"), "10.3.2.0/24", ""),
        (V4, ("0.0.0.0-31&fd00:3:0:2::-64", "", "2001:db8::3"), "", ""),
        (
            DUAL,
            ("10.3.2.0-24&fd00:3:0:2::-64", "192.0.2.2", "2001:db8::3"),
            "10.3.2.0/24 and fd00:3:0:2::/64",
            "",
        ),
        (DUAL, ("10.3.2.0-24", "192.0.2.2", ""), "10.3.2.0/24", ""),
        (
            DUAL,
            ("10.3.2.0-24&fd00:9:0:2::-64", "192.0.2.2", "2001:db8::3"),
            "10.3.2.0/24",
            "fd00:9:0:2::/64: it is not inside the cluster network fd00:3::/48",
        ),
        (
            DUAL,
            ("10.3.1.0-24&fd00:3:0:2::-64", "192.0.2.2", "2001:db8::3"),
            "fd00:3:0:2::/64",
            "10.3.1.0/24: it overlaps this node's subnet 10.3.1.0/24",
        ),
        (
            DUAL,
            ("10.3.2.0-24&fd00:3:0:2::-64", "192.0.2.2", "2001:db8::2"),
            "10.3.2.0/24",
            "fd00:3:0:2::/64: its owner's public address 2001:db8::2 is one of this node's own",
        ),
    ] {
        let claims = check_leases(conf, &[claim]);
        let got: Vec<String> = claims.accepted.iter().map(|l| l.subnets.to_string()).collect();
        assert_eq!(got.join(" "), accepted, "{claim:?}");
        let got: Vec<String> = claims.rejected.into_values().collect();
        assert_eq!(got.join(" ").replace("refuse peer subnet ", ""), rejected, "{claim:?}");
    }
}

#[test]
fn of_two_peers_that_overlap_the_same_one_wins_everywhere() {
    for (conf, keys, winners) in [
        (V4, ["10.3.2.0-24", "10.3.2.0-25"], "10.3.2.0/24"),
        (V4, ["10.3.2.0-23", "10.3.2.0-24"], "10.3.2.0/24"),
        (V4, ["10.3.2.0-24", "10.3.2.64-26"], "10.3.2.0/24"),
        (V4, ["10.3.2.0-25", "10.3.2.0-26"], "10.3.2.0/25"),
        (V4, ["10.3.2.0-24", "10.3.3.0-24"], "10.3.2.0/24 10.3.3.0/24"),
        (DUAL, ["10.3.2.0-24", "10.3.2.0-24&fd00:3:0:2::-64"], "10.3.2.0/24 fd00:3:0:2::/64"),
    ] {
        for keys in [keys, [keys[1], keys[0]]] {
            let claims = check_leases(conf, &keys.map(|key| (key, "192.0.2.2", "2001:db8::3")));
            let got: Vec<String> = claims.accepted.iter().map(|l| l.subnets.to_string()).collect();
            assert_eq!(got.join(" "), winners, "{keys:?}");
        }
    }
}

/// However wild the claims: what is accepted overlaps nothing, and every subnet is accounted for.
#[test]
fn accepted_claims_never_overlap() {
    let mut random = Random::new(7);
    for _ in 0..300 {
        let keys: BTreeSet<String> = (0..40)
            .map(|_| {
                let [third, fourth] = [random.below(8), random.below(256)];
                format!("10.3.{third}.{fourth}-{}", 20 + random.below(12))
            })
            .collect();
        let leases: Vec<_> = keys.iter().map(|key| (key.as_str(), "192.0.2.2", "")).collect();
        let claims = check_leases(V4, &leases);
        let own = etcd_key::read("10.3.1.0-24").expect("valid");
        for (index, lease) in claims.accepted.iter().enumerate() {
            assert!(!lease.subnets.overlaps(&own));
            assert!(!claims.accepted[index + 1..].iter().any(|l| l.subnets.overlaps(&lease.subnets)));
        }
        let distinct: BTreeSet<Subnets> = keys.iter().filter_map(|key| etcd_key::read(key)).collect();
        assert_eq!(claims.accepted.len() + claims.rejected.len(), distinct.len());
    }
}
