//! Two nodes, one subnet (faults.md row 11): nodes that sleep past their lease, come back, renew or take
//! anew in random order, on fewer subnets than there are nodes. At no time may two hold the same one.

use std::time::SystemTime;

use store::{Held, LeaseStore, Request, StoreError};

use crate::server::etcd_missing;
use crate::world::{EtcdWorld, FileWorld, World, block_on, net, node};

/// Three subnets.
const CONFIG: &str = r#"{"Network":"10.5.0.0/28","SubnetLen":30,"Backend":{"Type":"vxlan"}}"#;
const NODES: u16 = 5;
const TTL: u64 = 2;

/// What a node believes: this was mine from then until then.
struct Claim {
    node: u16,
    held: Held,
    from: SystemTime,
    until: SystemTime,
}

/// A small generator, seeded: a failure can be run again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

async fn play<W: World>(world: &W, seed: u64, moves: usize) {
    let config = net(CONFIG);
    let stores: Vec<_> = (0..NODES).map(|_| world.store(TTL)).collect();
    let mut hands: Vec<Option<Held>> = vec![None; NODES.into()];
    let mut claims: Vec<Claim> = Vec::new();
    let mut dice = Dice(seed);
    for _ in 0..moves {
        let at = usize::try_from(dice.roll(NODES.into())).unwrap();
        let n = u16::try_from(at).unwrap() + 1;
        let from = world.now();
        let result = match (dice.roll(4), hands[at].clone()) {
            (0, _) => {
                world.second().await;
                continue;
            }
            (1 | 2, Some(held)) => stores[at].renew(&held, &node(n).attrs).await,
            (_, held) => {
                let previous = held.map(|held| held.lease.subnets).unwrap_or_default();
                stores[at].acquire(&config, &Request { previous, ..node(n) }).await
            }
        };
        match result {
            Ok(held) => {
                let until = held.expires.unwrap();
                claims.push(Claim {
                    node: n,
                    held: held.clone(),
                    from: from.max(world.now().min(until)),
                    until,
                });
                hands[at] = Some(held);
            }
            Err(StoreError::Lost(_)) => hands[at] = None,
            Err(StoreError::Exhausted(_)) => {}
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
    let owners = claims.iter().map(|claim| claim.node).collect::<std::collections::BTreeSet<_>>();
    assert!(owners.len() > 2, "seed {seed}: the game was no game");
    for (at, one) in claims.iter().enumerate() {
        for two in claims[..at].iter().filter(|two| two.node != one.node) {
            let together = one.from < two.until && two.from < one.until;
            let shared = one.held.lease.subnets.overlaps(&two.held.lease.subnets);
            assert!(
                !(together && shared),
                "seed {seed}: nodes {} and {} both held {} at {:?}",
                one.node,
                two.node,
                one.held.lease.subnets,
                one.from
            );
        }
    }
}

#[test]
fn never_two_holders_in_a_file() {
    for seed in 0..200 {
        block_on(async move {
            let world = FileWorld::new();
            world.put_config(CONFIG);
            play(&world, seed, 60).await;
        });
    }
}

#[test]
fn never_two_holders_in_etcd() {
    if etcd_missing("never_two_holders_in_etcd") {
        return;
    }
    block_on(async {
        let world = EtcdWorld::new();
        play(&world, 11, 60).await;
        history_has_no_takeover(&world);
    });
}

/// Reads the whole history of each key back from etcd: between two owners there is always a deletion.
fn history_has_no_takeover(world: &EtcdWorld) {
    use std::collections::BTreeMap;
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    // A last key marks the end of history.
    world.put("end", "");
    let mut child = Command::new("/usr/bin/etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", &world.etcd.url(), "watch", "--prefix", "--rev=1", EtcdWorld::PREFIX])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut owners: BTreeMap<String, String> = BTreeMap::new();
    let mut puts = 0;
    loop {
        let (kind, key) = (lines.next().unwrap(), lines.next().unwrap());
        if key.ends_with("/end") {
            break;
        }
        let value = lines.next().unwrap_or_default();
        if kind == "DELETE" {
            owners.remove(&key);
            continue;
        }
        puts += 1;
        let owner = value.split(',').next().unwrap().to_owned();
        let before = owners.insert(key.clone(), owner.clone());
        assert!(
            before.as_ref().is_none_or(|before| *before == owner),
            "{key}: {before:?} was overwritten by {owner}"
        );
    }
    let _ = child.kill();
    let _ = child.wait();
    assert!(puts > 3, "{puts} writes seen");
}
