use model::config::VxlanConf;
use model::{IfName, LeaseAttrs, Mac};

use super::*;
use crate::backend::testing::{Random, facts, lease};
use crate::backend::vxlan::Vxlan;
use crate::facts::Families;
use crate::{Step, diff, diff_within};

fn backend() -> Vxlan {
    let config = VxlanConf { direct_routing: true, check_sources: true, ..VxlanConf::default() };
    Vxlan::new(config, Families { v4: true, v6: true }).expect("a valid configuration")
}

fn own() -> Lease {
    lease("10.244.0.0/24 fd00::/64", "192.0.2.10 2001:db8::10", "vxlan", ["", ""])
}

/// One of `crowd` peers, now and then with another's address, another backend, no data, one family.
fn peer(random: &mut Random, crowd: u64) -> Lease {
    let n = random.below(crowd) + 1;
    let mac = |n: u64| Mac([0x8e, 0, 0, 0, (n >> 8) as u8, n as u8]);
    let data = |n: u64| format!("{{\"VNI\":1,\"VtepMAC\":\"{}\"}}", mac(n));
    let subnets = format!("10.{}.{}.0/24 fd00:{n:x}::/64", 1 + n / 256, n % 256);
    let publics = format!("198.51.100.{} 2001:db8::{:x}", random.below(3) * 80 + n % 80, 0x100 + n);
    let like = if random.below(25) == 0 { random.below(crowd) + 1 } else { n + 1000 * random.below(2) };
    let mut lease = lease(&subnets, &publics, "vxlan", [&data(like), &data(n)]);
    match random.below(30) {
        0 => lease.attrs.backend_type = "host-gw".to_owned(),
        1 => lease.attrs.backend_data = None,
        2 => lease.attrs.public_ip6 = None,
        3 => lease.attrs = LeaseAttrs { backend_type: "vxlan".to_owned(), ..LeaseAttrs::default() },
        _ => {}
    }
    lease
}

/// Routes with their nexthops in place of the numbers.
fn resolved(state: &State) -> State {
    let nexthop = |id: u32| match state.get(&Key::Nexthop(id)) {
        Some(Object::Nexthop(Nexthop { dev, via, onlink, .. })) => {
            Via::Gateway { gateway: *via, dev: *dev, onlink: *onlink }
        }
        other => panic!("nexthop {id} is {other:?}"),
    };
    let objects = state.iter().filter(|(key, _)| !matches!(key, Key::Nexthop(_)));
    let object = |(_, object): (&Key, &Object)| match object {
        Object::Route(route @ Route { via: Via::Nexthop(id), .. }) => {
            Object::Route(Route { via: nexthop(*id), ..*route })
        }
        other => other.clone(),
    };
    objects.map(object).collect()
}

/// However peers come, change and go: the state is what starting afresh gives, and what differs from before
/// lies under the keys touched.
#[test]
fn step_by_step_is_the_same_as_afresh() {
    let backend = backend();
    let (mut quick, mut whole) = (0, 0);
    for seed in 1..16u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let crowd = [6, 120, 330][seed as usize % 3];
        let mut facts = facts();
        let mut accepted: BTreeMap<Subnets, Arc<Lease>> = BTreeMap::new();
        let mut assembly = Assembly::default();
        for _ in 0..60 {
            let mut changes: BTreeMap<Subnets, Option<Arc<Lease>>> = BTreeMap::new();
            for _ in 0..=random.below(if crowd > 200 { 25 } else { 2 }) {
                let lease = peer(&mut random, crowd);
                let there = random.below(6) != 0;
                let key = lease.subnets;
                let next = there.then(|| Arc::new(lease));
                match &next {
                    Some(lease) => drop(accepted.insert(key, lease.clone())),
                    None => drop(accepted.remove(&key)),
                }
                changes.insert(key, next);
            }
            if random.below(40) == 0 {
                let public = format!("198.51.100.{}", random.below(240)).parse().expect("an address");
                facts.on_link.insert(public, IfName::fixed("eth0"));
            }
            let before = assembly.wanted().clone();
            let changes: Vec<_> = changes.into_iter().collect();
            let touched = assembly.update(&backend, &facts, Some(&own()), Vec::new(), &accepted, &changes);
            let mut fresh = Assembly::default();
            let facts = Facts { nexthops_in_use: assembly.many, ..facts.clone() };
            fresh.update(&backend, &facts, Some(&own()), Vec::new(), &accepted, &[]);
            assert_eq!(resolved(fresh.wanted()), resolved(assembly.wanted()), "seed {seed}");
            assert_eq!(fresh.wanted().len(), assembly.wanted().len(), "seed {seed}");
            assert_eq!(fresh.rejected(), assembly.rejected(), "seed {seed}");
            let all = diff(assembly.wanted(), &before);
            match touched {
                Touched::All => whole += 1,
                Touched::Keys(keys) => {
                    quick += 1;
                    assert_eq!(diff_within(assembly.wanted(), &before, &keys), all, "seed {seed}");
                }
            }
        }
    }
    assert!(quick > 100 && whole > 30, "{quick} {whole}");
}

#[test]
fn one_peer_of_thousands_touches_its_own_objects() {
    let backend = backend();
    let one = |n: u32, mac: u8| {
        let data = format!("{{\"VNI\":1,\"VtepMAC\":\"8e:00:00:{mac:02x}:{:02x}:{:02x}\"}}", n >> 8, n & 255);
        lease(
            &format!("10.{}.{}.0/24", 1 + (n >> 8), n & 255),
            &format!("203.0.{}.{}", n >> 8, n & 255),
            "vxlan",
            [&data, ""],
        )
    };
    let mut accepted: BTreeMap<Subnets, Arc<Lease>> =
        (0..5_000).map(|n| one(n, 0)).map(|l| (l.subnets, Arc::new(l))).collect();
    let mut assembly = Assembly::default();
    let facts = facts();
    assert_eq!(assembly.update(&backend, &facts, Some(&own()), Vec::new(), &accepted, &[]), Touched::All);
    let before = assembly.wanted().clone();
    let lease = Arc::new(one(777, 9));
    accepted.insert(lease.subnets, lease.clone());
    let changes = [(lease.subnets, Some(lease))];
    let touched = assembly.update(&backend, &facts, Some(&own()), Vec::new(), &accepted, &changes);
    let Touched::Keys(keys) = touched else { panic!("all anew") };
    // The address in the set, the neighbour, the old and the new forwarding entry, the nexthop and the route.
    assert_eq!(keys.len(), 6, "{keys:?}");
    let steps = diff_within(assembly.wanted(), &before, &keys).rest;
    let puts = steps.iter().filter(|step| matches!(step, Step::Put(_))).count();
    assert_eq!((puts, steps.len()), (2, 3), "{steps:?}");
    assert_eq!(
        assembly.update(&backend, &facts, Some(&own()), Vec::new(), &accepted, &[]),
        Touched::Keys(BTreeSet::new())
    );
}
