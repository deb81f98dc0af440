//! What a peer had is worked out again when it goes: nothing of it may stay, and nothing of others go.

use std::collections::BTreeSet;
use std::net::IpAddr;

use model::wireguard::PublicKey;
use model::{IfName, NetConf};

use super::*;
use crate::backend::testing::{facts, lease};

/// A peer goes that is there, or comes.
fn turn(
    accepted: &mut BTreeMap<Subnets, Arc<Lease>>,
    (key, lease): (Subnets, Arc<Lease>),
) -> (Subnets, Option<Arc<Lease>>) {
    match accepted.remove(&key) {
        Some(_) => (key, None),
        None => {
            accepted.insert(key, lease.clone());
            (key, Some(lease))
        }
    }
}

/// Twelve peers come and go one by one, whatever the backend; each time the state is that of those who are there.
#[test]
fn peers_of_any_backend_go_with_all_they_had() {
    let own = lease("10.244.0.0/24 fd00::/64", "192.0.2.10 2001:db8::10", "", ["", ""]);
    for backend in [
        r#"{"Type":"vxlan"}"#,
        r#"{"Type":"vxlan","DirectRouting":true}"#,
        r#"{"Type":"host-gw"}"#,
        r#"{"Type":"wireguard"}"#,
        r#"{"Type":"wireguard","Mode":"separate"}"#,
        r#"{"Type":"extension","SubnetAddCommand":"add","SubnetRemoveCommand":"remove"}"#,
        r#"{"Type":"ipip"}"#,
        r#"{"Type":"ipip","DirectRouting":true}"#,
        r#"{"Type":"udp"}"#,
        r#"{"Type":"ipsec","PSK":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"}"#,
    ] {
        let two = ["vxlan", "host-gw", "wireguard", "extension"].iter().any(|kind| backend.contains(kind));
        let six = if two { r#","EnableIPv6":true,"IPv6Network":"fd00::/56""# } else { "" };
        let conf = format!(r#"{{"Network":"10.244.0.0/16"{six},"Backend":{backend}}}"#);
        let conf = NetConf::parse(&conf).and_then(NetConf::validate).expect(backend);
        let kind = conf.backend_type.clone();
        let backend = backend::from_config(&conf).expect(backend);
        let own =
            Lease { subnets: Subnets { v6: own.subnets.v6.filter(|_| two), ..own.subnets }, ..own.clone() };
        let own = Lease { attrs: model::LeaseAttrs { backend_type: kind.clone(), ..own.attrs }, ..own };
        let facts = Facts { on_link: facts_on_link(), ..facts() };
        let peer = |n: u8| {
            let key = PublicKey([n; 32]);
            let data = match kind.as_str() {
                "vxlan" => format!(r#"{{"VNI":1,"VtepMAC":"8e:00:00:00:00:{n:02x}"}}"#),
                "wireguard" => format!(r#"{{"PublicKey":"{key}"}}"#),
                _ => String::new(),
            };
            let six = |text: String| if two { text } else { String::new() };
            let subnets = format!("10.244.{n}.0/24 {}", six(format!("fd00:0:0:{n:x}::/64")));
            let publics = format!("198.51.100.{n} {}", six(format!("2001:db8::{n:x}")));
            let lease = lease(&subnets, &publics, &kind, [&data, if two { &data } else { "" }]);
            (lease.subnets, Arc::new(lease))
        };
        let mut accepted = BTreeMap::new();
        let mut assembly = Assembly::default();
        let empty = assembly.update(&*backend, &facts, Some(&own), Vec::new(), &accepted, &[]);
        assert_eq!(empty, Touched::All, "{kind}");
        let base = assembly.wanted().clone();
        let numbers: Vec<u8> = (1..13).chain(1..7).chain([3, 9, 3]).chain(1..13).collect();
        for n in numbers {
            let change = turn(&mut accepted, peer(n));
            let touched = assembly.update(&*backend, &facts, Some(&own), Vec::new(), &accepted, &[change]);
            assert!(matches!(touched, Touched::Keys(_)), "{kind}: made anew");
            let fresh = crate::backend::testing::assembly(
                &*backend,
                &facts,
                Some(&own),
                &accepted.values().map(|lease| Lease::clone(lease)).collect::<Vec<_>>(),
            );
            assert_eq!(fresh.wanted(), assembly.wanted(), "{kind}, peer {n}");
            assert_eq!(fresh.rejected(), assembly.rejected(), "{kind}, peer {n}");
            assert_eq!(accepted.is_empty(), *assembly.wanted() == base, "{kind}: of a peer there is nothing");
        }
    }
}

/// Every second peer is on the link.
fn facts_on_link() -> BTreeMap<IpAddr, IfName> {
    (1..13).step_by(2).map(|n| (IpAddr::from([198, 51, 100, n]), IfName::fixed("eth0"))).collect()
}

/// A vxlan backend, and our lease among tens of thousands.
fn crowd() -> (Box<dyn Backend>, Lease) {
    let conf =
        r#"{"Network":"10.0.0.0/8","EnableIPv6":true,"IPv6Network":"fd00::/8","Backend":{"Type":"vxlan"}}"#;
    let conf = NetConf::parse(conf).and_then(NetConf::validate).expect("valid");
    let own = lease("10.0.0.0/24 fd00::/64", "192.0.2.10 2001:db8::10", "vxlan", ["", ""]);
    (backend::from_config(&conf).expect("valid"), own)
}

/// One of them.
fn peer(n: u32) -> (Subnets, Arc<Lease>) {
    let data = format!(r#"{{"VNI":1,"VtepMAC":"8e:00:00:00:{:02x}:{:02x}"}}"#, n >> 8, n & 255);
    let public = format!("198.18.{}.{}", n >> 8, n & 255);
    let lease = lease(&format!("10.{}.{}.0/24", 1 + (n >> 8), n & 255), &public, "vxlan", [&data, ""]);
    (lease.subnets, Arc::new(lease))
}

/// Where the subnets of a network are more than there are numbers, two may have the same; the second has the next one then.
#[test]
fn nexthops_that_share_a_number_go_with_their_own_peer() {
    let (backend, own) = crowd();
    let id = |n: u128| {
        let subnet = ipnet::Ipv6Net::new((0xfd00 << 112 | (n << 28)).into(), 124).expect("a subnet");
        (nexthop_id(subnet.into()), subnet)
    };
    let mut seen = BTreeMap::new();
    let twins =
        (0..40_000).map(id).find_map(|(id, subnet)| seen.insert(id, subnet).map(|other| [other, subnet]));
    let twins = [1, 2].into_iter().zip(twins.expect("24 bits are few")).map(|(n, subnet)| {
        let data = format!(r#"{{"VNI":1,"VtepMAC":"8e:00:00:01:00:{n:02x}"}}"#);
        let lease = lease(&subnet.to_string(), &format!("2001:db8::{n}"), "vxlan", ["", &data]);
        (lease.subnets, Arc::new(lease))
    });
    let twins: Vec<_> = twins.collect();
    let others = (50_000..50_000 + NEXTHOPS_FROM as u32 + 9).map(peer);
    let mut accepted: BTreeMap<_, _> = others.chain(twins.clone()).collect();
    let facts = facts();
    let mut assembly = Assembly::default();
    assembly.update(&*backend, &facts, Some(&own), Vec::new(), &accepted, &[]);
    let all = assembly.wanted().clone();
    let ids = |assembly: &Assembly| {
        let id = |key: &Key| if let Key::Nexthop(id) = key { Some(*id) } else { None };
        assembly.wanted().iter().filter_map(|(key, _)| id(key)).collect::<BTreeSet<u32>>()
    };
    assert_eq!(ids(&assembly).len(), accepted.len(), "each has its own");
    for leaving in [&[0, 1][..], &[1, 0], &[0], &[1]] {
        for n in leaving.iter().chain(leaving) {
            let change = turn(&mut accepted, twins[*n].clone());
            let touched = assembly.update(&*backend, &facts, Some(&own), Vec::new(), &accepted, &[change]);
            assert!(matches!(touched, Touched::Keys(_)), "made anew");
            assert_eq!(ids(&assembly).len(), accepted.len(), "a nexthop for each route");
            let routes = assembly.wanted().iter().filter_map(|(_, object)| match object {
                Object::Route(Route { via: Via::Nexthop(id), .. }) => Some(*id),
                _ => None,
            });
            assert_eq!(routes.collect::<BTreeSet<u32>>(), ids(&assembly), "and a route for each nexthop");
        }
        assert_eq!(assembly.wanted().len(), all.len());
    }
}

/// A list that comes after our lease is put together at once, as one that was there before.
#[test]
fn many_at_once_are_put_together_anew() {
    let (backend, own) = crowd();
    let facts = facts();
    let mut assembly = Assembly::default();
    let none = BTreeMap::new();
    assembly.update(&*backend, &facts, Some(&own), Vec::new(), &none, &[]);
    for (count, anew) in [(200, true), (0, true), (60, false), (0, false)] {
        let accepted: BTreeMap<_, _> = (1..=count).map(peer).collect();
        let gone: Vec<_> = assembly.peers.keys().filter(|key| !accepted.contains_key(key)).copied().collect();
        let new = accepted.iter().filter(|(key, _)| !assembly.peers.contains_key(key));
        let mut changes: Vec<_> = new.map(|(key, lease)| (*key, Some(lease.clone()))).collect();
        changes.extend(gone.into_iter().map(|key| (key, None)));
        let touched = assembly.update(&*backend, &facts, Some(&own), Vec::new(), &accepted, &changes);
        assert_eq!(touched == Touched::All, anew, "{count}");
        let leases: Vec<Lease> = accepted.values().map(|lease| Lease::clone(lease)).collect();
        let fresh = crate::backend::testing::assembly(&*backend, &facts, Some(&own), &leases);
        assert_eq!(fresh.wanted(), assembly.wanted(), "{count}");
    }
}
