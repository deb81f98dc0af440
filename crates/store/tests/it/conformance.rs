//! The cases every store must pass, whatever it keeps its leases in.

use std::collections::BTreeSet;

use model::{LeaseAttrs, Subnets};
use store::{Held, LeaseStore, Request, StoreError};

use crate::kube::KubeWorld;
use crate::server::etcd_missing;
use crate::world::{EtcdWorld, FileWorld, World, block_on, net, node, seen, until, watching};

macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        mod in_etcd {
            $(#[test] fn $case() {
                if !super::etcd_missing(stringify!($case)) {
                    super::block_on(async { super::$case(super::EtcdWorld::new()).await });
                }
            })*
        }
        mod in_a_file {
            $(#[test] fn $case() { super::block_on(super::$case(super::FileWorld::new())); })*
        }
    };
}

cases!(
    a_fresh_lease_is_stored_as_flannel_stores_it,
    the_same_owner_gets_its_subnet_again,
    the_previous_subnet_is_taken_if_free,
    fifty_at_once_never_share_a_subnet,
    a_full_network_is_refused_in_one_sentence,
    a_lease_outside_the_configuration_is_replaced,
    a_reservation_stays_one,
    a_lease_that_ran_out_is_free,
    a_deleted_lease_is_lost_and_can_be_had_again,
    renewing_publishes_and_extends,
    the_watch_sees_all_that_happens,
    garbage_costs_nobody_else_anything,
    the_configuration_may_come_late,
);

/// The cases that make sense where the cluster gives the subnets; the others' counterparts are in `kube`.
mod in_kubernetes {
    #[test]
    fn the_same_owner_gets_its_subnet_again() {
        super::block_on(super::the_same_owner_gets_its_subnet_again(super::KubeWorld::new()));
    }

    #[test]
    fn the_configuration_may_come_late() {
        super::block_on(super::the_configuration_may_come_late(super::KubeWorld::new()));
    }
}

const V4: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
const DUAL: &str =
    r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;
const V6: &str =
    r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;
/// All three stacks.
const STACKS: [&str; 3] = [V4, DUAL, V6];

fn subnets(v4: &str) -> Subnets {
    Subnets { v4: Some(v4.parse().unwrap()), v6: None }
}

fn assert_lost(result: Result<Held, StoreError>, words: &str) {
    match result {
        Err(StoreError::Lost(text)) => assert!(text.contains(words), "{text:?} does not say {words:?}"),
        other => panic!("not lost: {other:?}"),
    }
}

async fn a_fresh_lease_is_stored_as_flannel_stores_it<W: World>(world: W) {
    world.put_config(DUAL);
    let store = world.store(60);
    assert_eq!(store.config().await.unwrap(), DUAL);
    let mut left = BTreeSet::new();
    for (n, text) in (1..).zip(STACKS) {
        let held = store.acquire(&net(text), &node(n)).await.unwrap();
        let Subnets { v4, v6 } = held.lease.subnets;
        assert_eq!((v4.is_some(), v6.is_some()), (text != V6, text != V4), "{text}");
        assert!(v4.is_none_or(|v4| v4.prefix_len() == 24 && v4.to_string().starts_with("10.5.")));
        assert!(v6.is_none_or(|v6| v6.prefix_len() == 64 && v6.to_string().starts_with("fd00:5:")));
        let life = held.expires.unwrap().duration_since(world.now()).unwrap().as_secs();
        assert!((58..=60).contains(&life), "runs out in {life} s");
        let new: Vec<_> = world.content().into_iter().filter(|(key, _)| left.insert(key.clone())).collect();
        let [(key, (value, permanent))] = &new[..] else { panic!("{new:?}") };
        match (v4, v6) {
            (Some(v4), None) => assert_eq!(*key, v4.to_string().replace('/', "-")),
            (Some(v4), Some(v6)) => assert_eq!(*key, format!("{v4}&{v6}").replace('/', "-")),
            _ => {}
        }
        let data =
            format!(r#""BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"0e:00:00:00:00:0{n}"}}}}"#);
        let ip6 = format!(r#""fd00::{n}""#);
        assert_eq!(*value, format!(r#"{{"PublicIP":"192.168.0.{n}","PublicIPv6":{ip6},{data}"#));
        assert!(!permanent);
    }
}

async fn the_same_owner_gets_its_subnet_again<W: World>(world: W) {
    world.put_config(V4);
    for text in STACKS {
        let first = world.store(60).acquire(&net(text), &node(7)).await.unwrap();
        let again = world.store(60).acquire(&net(text), &node(7)).await.unwrap();
        assert_eq!(first.lease, again.lease, "{text}");
        let mut changed = node(7);
        changed.attrs.backend_data = Some(r#"{"VNI":2}"#.into());
        let changed = world.store(60).acquire(&net(text), &changed).await.unwrap();
        assert_eq!(first.lease.subnets, changed.lease.subnets, "{text}");
        let content = world.content();
        assert_eq!(content.len(), 1, "{content:?}");
        assert!(content.values().all(|(value, _)| value.contains(r#""BackendData":{"VNI":2}"#)));
        content.keys().for_each(|key| world.delete(key));
    }
}

async fn the_previous_subnet_is_taken_if_free<W: World>(world: W) {
    world.put_config(V4);
    let store = world.store(60);
    let with = |n, v4| Request { previous: subnets(v4), ..node(n) };
    let held = store.acquire(&net(V4), &with(1, "10.5.77.0/24")).await.unwrap();
    assert_eq!(held.lease.subnets, subnets("10.5.77.0/24"));
    for previous in ["10.5.77.0/24", "10.6.1.0/24", "10.5.78.0/25"] {
        let n = u16::try_from(world.content().len()).unwrap() + 1;
        let held = store.acquire(&net(V4), &with(n, previous)).await.unwrap();
        assert_ne!(held.lease.subnets, subnets(previous), "taken, foreign or of another size");
    }
    assert_eq!(world.content().len(), 4);
}

async fn fifty_at_once_never_share_a_subnet<W: World>(world: W) {
    // Just enough room: the first of 64 is not handed out (flannel.md 2.2).
    let v4 = r#"{"Network":"10.5.0.0/16","SubnetLen":22,"Backend":{"Type":"vxlan"}}"#;
    let dual = r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","SubnetLen":22,"IPv6Network":"fd00:5::/48","IPv6SubnetLen":54,"Backend":{}}"#;
    let v6 = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48","IPv6SubnetLen":54,"Backend":{}}"#;
    world.put_config(v4);
    for text in [v4, dual, v6] {
        let config = net(text);
        let stores: Vec<_> = (0..50).map(|_| world.store(60)).collect();
        let all = stores.iter().zip(1..).map(|(store, n)| {
            let (config, request) = (&config, node(n));
            async move { store.acquire(config, &request).await.unwrap() }
        });
        let held = join_all(all).await;
        for (at, one) in held.iter().enumerate() {
            for other in &held[..at] {
                assert!(!one.lease.subnets.overlaps(&other.lease.subnets), "{one:?} and {other:?}");
            }
        }
        let content = world.content();
        assert_eq!(content.len(), 50, "{content:?}");
        content.keys().for_each(|key| world.delete(key));
    }
}

/// Drives all futures on this task.
async fn join_all<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut running: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|cx| {
        let mut pending = false;
        for (future, done) in running.iter_mut().filter(|(_, done)| done.is_none()) {
            match future.as_mut().poll(cx) {
                std::task::Poll::Ready(value) => *done = Some(value),
                std::task::Poll::Pending => pending = true,
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    running.into_iter().filter_map(|(_, done)| done).collect()
}

async fn a_full_network_is_refused_in_one_sentence<W: World>(world: W) {
    let text = r#"{"Network":"10.5.0.0/28","SubnetLen":30,"Backend":{"Type":"vxlan"}}"#;
    world.put_config(text);
    let store = world.store(60);
    for n in 1..=3 {
        store.acquire(&net(text), &node(n)).await.unwrap();
    }
    match store.acquire(&net(text), &node(4)).await {
        Err(StoreError::Exhausted(text)) => {
            assert!(text.contains("from 10.5.0.4 to 10.5.0.12") && !text.contains('\n'), "{text:?}");
        }
        other => panic!("{other:?}"),
    }
    // Who has one, keeps it.
    store.acquire(&net(text), &node(2)).await.unwrap();
    assert_eq!(world.content().len(), 3);
}

async fn a_lease_outside_the_configuration_is_replaced<W: World>(world: W) {
    world.put_config(V4);
    let store = world.store(60);
    store.acquire(&net(V4), &node(1)).await.unwrap();
    store.acquire(&net(V4), &node(2)).await.unwrap();
    let moved = net(r#"{"Network":"10.8.0.0/16","Backend":{"Type":"vxlan"}}"#);
    let held = store.acquire(&moved, &node(1)).await.unwrap();
    assert!(held.lease.subnets.to_string().starts_with("10.8."), "{held:?}");
    let content = world.content();
    assert_eq!(content.len(), 2, "the old one of node 1 is gone, that of node 2 is not: {content:?}");
    // One family more: the old key is of the wrong kind.
    let held = store.acquire(&net(DUAL), &node(2)).await.unwrap();
    assert!(held.lease.subnets.v6.is_some());
    assert_eq!(world.content().len(), 2);
}

async fn a_reservation_stays_one<W: World>(world: W) {
    world.put_config(V4);
    let value = r#"{"PublicIP":"192.168.0.1","PublicIPv6":null}"#;
    world.put_config(V4);
    let store = world.store(2);
    // Makes the file where there is one.
    store.acquire(&net(V4), &node(9)).await.unwrap();
    world.put("10.5.200.0-24", value);
    let held = store.acquire(&net(V4), &node(1)).await.unwrap();
    assert_eq!((held.lease.subnets, held.expires), (subnets("10.5.200.0/24"), None));
    let stored = |world: &W| world.content()["10.5.200.0-24"].clone();
    let (value, permanent) = stored(&world);
    assert!(permanent && value.contains("VtepMAC"), "{value}");
    let mut attrs = node(1).attrs;
    attrs.backend_data = Some(r#"{"VNI":9}"#.into());
    let held = store.renew(&held, &attrs).await.unwrap();
    let (value, permanent) = stored(&world);
    assert!(permanent && value.contains(r#"{"VNI":9}"#) && held.expires.is_none(), "{value}");
    let other = Request { previous: subnets("10.5.200.0/24"), ..node(2) };
    let other = store.acquire(&net(V4), &other).await.unwrap();
    assert_ne!(other.lease.subnets, held.lease.subnets);
    world.run_out(&other).await;
    assert!(store.stored_names().await.contains("10.5.200.0-24"));
    // Turned into a reservation while held, by a plain put of the same value.
    let held = store.acquire(&net(V4), &node(3)).await.unwrap();
    let name = held.lease.subnets.to_string().replace('/', "-");
    world.put(&name, &world.content()[&name].0.clone());
    let held = store.renew(&held, &node(3).attrs).await.unwrap();
    assert!(held.expires.is_none() && world.content()[&name].1);
}

async fn a_lease_that_ran_out_is_free<W: World>(world: W) {
    world.put_config(V4);
    let store = world.store(2);
    let first = store.acquire(&net(V4), &node(1)).await.unwrap();
    world.run_out(&first).await;
    assert_lost(store.renew(&first, &first.lease.attrs).await, "nobody holds it now");
    let heir = Request { previous: first.lease.subnets, ..node(2) };
    let second = world.store(60).acquire(&net(V4), &heir).await.unwrap();
    assert_eq!(first.lease.subnets, second.lease.subnets);
    let before = world.content();
    assert_lost(store.renew(&first, &first.lease.attrs).await, "192.168.0.2");
    let late = Request { previous: first.lease.subnets, ..node(1) };
    let late = store.acquire(&net(V4), &late).await.unwrap();
    assert_ne!(late.lease.subnets, second.lease.subnets);
    let name = first.lease.subnets.to_string().replace('/', "-");
    assert_eq!(before[&name], world.content()[&name], "the new owner's lease is untouched");
}

async fn a_deleted_lease_is_lost_and_can_be_had_again<W: World>(world: W) {
    world.put_config(V4);
    let store = world.store(60);
    let held = store.acquire(&net(V4), &node(1)).await.unwrap();
    let name = held.lease.subnets.to_string().replace('/', "-");
    world.delete(&name);
    assert_lost(store.renew(&held, &held.lease.attrs).await, "nobody holds it now");
    let again = Request { previous: held.lease.subnets, ..node(1) };
    let again = store.acquire(&net(V4), &again).await.unwrap();
    assert_eq!(again.lease, held.lease);
    store.renew(&again, &again.lease.attrs).await.unwrap();
}

async fn renewing_publishes_and_extends<W: World>(world: W) {
    world.put_config(V4);
    let store = world.store(3);
    let mut held = store.acquire(&net(V4), &node(1)).await.unwrap();
    // Well beyond the first life.
    for second in 0..6 {
        world.second().await;
        let attrs =
            LeaseAttrs { backend_data: Some(format!(r#"{{"VNI":{}}}"#, second / 2).into()), ..node(1).attrs };
        let renewed = store.renew(&held, &attrs).await.unwrap();
        assert!(renewed.expires > held.expires);
        held = renewed;
        let content = world.content();
        let (value, _) = content.values().next().unwrap();
        assert!(value.contains(&format!(r#""BackendData":{{"VNI":{}}}"#, second / 2)), "{value}");
    }
    // Our address may change; the lease is still ours.
    let mut moved = node(1).attrs;
    moved.public_ip = Some("192.168.9.9".parse().unwrap());
    held = store.renew(&held, &moved).await.unwrap();
    store.renew(&held, &moved).await.unwrap();
    assert!(world.content().values().all(|(value, _)| value.contains("192.168.9.9")));
}

async fn the_watch_sees_all_that_happens<W: World>(world: W) {
    world.put_config(V4);
    let store = world.store(60);
    let first = store.acquire(&net(V4), &node(1)).await.unwrap();
    watching(&world.store(60), async |mut views| {
        let has = |n: u16| {
            let ip = node(n).attrs.public_ip;
            move |lease: &model::Lease| lease.attrs.public_ip == ip
        };
        let view = seen(&mut views, "the first snapshot is there", |v| v.complete).await;
        assert_eq!((view.peers.len(), view.trouble), (1, None));
        let second = world.store(2).acquire(&net(DUAL), &node(2)).await.unwrap();
        seen(&mut views, "the second lease is there", |v| v.peers.iter().any(has(2))).await;
        let attrs = LeaseAttrs { backend_data: Some(r#"{"VNI":5}"#.into()), ..node(1).attrs };
        store.renew(&first, &attrs).await.unwrap();
        let changed = |v: &store::View| v.peers.get(&first.lease.subnets).is_some_and(|l| l.attrs == attrs);
        seen(&mut views, "the change is there", changed).await;
        world.run_out(&second).await;
        seen(&mut views, "the second has run out", |v| !v.peers.iter().any(has(2))).await;
        world.delete(&first.lease.subnets.to_string().replace('/', "-"));
        seen(&mut views, "the first is deleted", |v| v.peers.is_empty()).await;
        let third = store.acquire(&net(V6), &node(3)).await.unwrap();
        seen(&mut views, "the third is there", |v| v.peers.get(&third.lease.subnets).is_some()).await;
    })
    .await;
}

async fn garbage_costs_nobody_else_anything<W: World>(world: W) {
    // Four subnets, of which the first is not handed out.
    let small = r#"{"Network":"10.5.0.0/28","SubnetLen":30,"Backend":{"Type":"vxlan"}}"#;
    world.put_config(small);
    let store = world.store(60);
    let held =
        store.acquire(&net(small), &Request { previous: subnets("10.5.0.4/30"), ..node(1) }).await.unwrap();
    world.put("10.5.0.8-30", "no json");
    for key in ["nonsense", "10.12.13.300-24", "10.12.13.0-24hi", "&2001::-56"] {
        world.put(key, r#"{"PublicIP":"192.168.0.8","PublicIPv6":null}"#);
    }
    watching(&world.store(60), async |mut views| {
        let view = seen(&mut views, "five keys are rejected", |v| v.rejected.len() == 5).await;
        assert_eq!(view.peers.len(), 1);
        assert!(view.rejected.values().all(|reason| !reason.contains('\n')), "{:?}", view.rejected);
        // The known lease goes bad: its last good state stays.
        let name = held.lease.subnets.to_string().replace('/', "-");
        world.put(&name, r#"{"PublicIP":null}"#);
        let view = seen(&mut views, "the sixth is rejected", |v| v.rejected.contains_key(&name)).await;
        assert_eq!(view.peers.get(&held.lease.subnets), Some(&held.lease));
        // Its subnet, and that of the other bad value, are not given to anybody.
        let next = store.acquire(&net(small), &node(2)).await.unwrap();
        assert_eq!(next.lease.subnets, subnets("10.5.0.12/30"));
        let view = seen(&mut views, "the new one is there", |v| v.peers.len() == 2).await;
        assert_eq!(view.rejected.len(), 6);
        assert!(matches!(store.acquire(&net(small), &node(3)).await, Err(StoreError::Exhausted(_))));
        // Our own goes well again with the next renewal.
        store.renew(&held, &held.lease.attrs).await.unwrap();
        let view = seen(&mut views, "five are rejected again", |v| v.rejected.len() == 5).await;
        assert_eq!(view.peers.len(), 2);
        world.delete("nonsense");
        seen(&mut views, "four are left", |v| v.rejected.len() == 4).await;
    })
    .await;
    // A watch that begins now is no worse off.
    watching(&world.store(60), async |mut views| {
        let view = seen(&mut views, "the snapshot is there", |v| v.complete).await;
        assert_eq!((view.peers.len(), view.rejected.len()), (2, 4));
    })
    .await;
}

async fn the_configuration_may_come_late<W: World>(world: W) {
    let store = world.store(60);
    match store.config().await {
        Err(StoreError::NoConfig(text)) => assert!(!text.contains('\n'), "{text:?}"),
        other => panic!("{other:?}"),
    }
    world.put_config(V4);
    assert_eq!(store.config().await.unwrap(), V4);
    world.put_config(DUAL);
    assert_eq!(store.config().await.unwrap(), DUAL);
    until("there is no lease", || world.content().is_empty()).await;
}

/// Keys by the stores' own listing.
pub trait Names {
    async fn stored_names(&self) -> BTreeSet<String>;
}

impl Names for store::etcd::EtcdStore {
    async fn stored_names(&self) -> BTreeSet<String> {
        self.stored().await.unwrap().into_iter().map(|stored| stored.key).collect()
    }
}

impl Names for store::embedded::EmbeddedStore {
    async fn stored_names(&self) -> BTreeSet<String> {
        self.stored().await.unwrap().into_iter().map(|stored| stored.key).collect()
    }
}

impl Names for store::kube::KubeStore {
    async fn stored_names(&self) -> BTreeSet<String> {
        unreachable!("no case for Kubernetes asks")
    }
}
