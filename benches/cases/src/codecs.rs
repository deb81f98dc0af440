//! Wire forms of configuration and leases, and the file of the last good state.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::codec::annotation::{Annotations, DEFAULT_PREFIX, Item, Names};
use model::codec::last_good::{LastGood, Moment};
use model::codec::{etcd_key, lease_json};
use model::{Lease, LeaseAttrs, NetConf};

use crate::cluster::{Cluster, leases};
use crate::{Row, Work};

pub const ROWS: &[Row] = &[
    Row { what: "model/net-conf/read", sizes: &[1], gives: |n| n, make: net_conf },
    Row { what: "model/etcd-key/read", sizes: &[1_000], gives: |n| n, make: keys_read },
    Row { what: "model/etcd-key/write", sizes: &[1_000], gives: |n| n, make: keys_written },
    Row { what: "model/lease-json/read", sizes: &[1_000], gives: |n| n, make: values_read },
    Row { what: "model/lease-json/write", sizes: &[1_000], gives: |n| n, make: values_written },
    Row { what: "model/annotations/read", sizes: &[1_000], gives: |n| n, make: annotations_read },
    // All is as it should be, as nearly always.
    Row { what: "model/annotations/compare", sizes: &[1_000], gives: |_| 0, make: annotations_compared },
    Row { what: "model/last-good/write", sizes: &[100, 10_000], gives: |n| n + 3, make: last_good_written },
    Row { what: "model/last-good/read", sizes: &[100, 10_000], gives: |n| n + 1, make: last_good_read },
];

const DUAL: &str = r#"{
    "Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:10:244::/48", "SubnetLen": 24,
    "SubnetMin": "10.244.16.0", "SubnetMax": "10.244.200.0", "EnableNFTables": true,
    "Backend": {"Type": "vxlan", "VNI": 4096, "Port": 4789, "DirectRouting": true, "CheckSources": true}
}"#;

fn net_conf(_: usize) -> Work {
    Box::new(|| NetConf::parse(DUAL).and_then(NetConf::validate).is_ok().into())
}

fn keys_read(size: usize) -> Work {
    let write = |lease: &Lease| format!("/coreos.com/network/subnets/{}", etcd_key::write(&lease.subnets));
    let keys: Vec<String> = leases(size).iter().map(write).collect();
    Box::new(move || keys.iter().filter_map(|key| etcd_key::read(key)).count())
}

fn keys_written(size: usize) -> Work {
    let leases = leases(size);
    Box::new(move || leases.iter().filter(|lease| !etcd_key::write(&lease.subnets).is_empty()).count())
}

fn values_read(size: usize) -> Work {
    let values: Vec<String> = leases(size).iter().map(|lease| lease_json::write(&lease.attrs)).collect();
    Box::new(move || values.iter().filter(|value| lease_json::read(value.as_bytes()).is_ok()).count())
}

fn values_written(size: usize) -> Work {
    let leases = leases(size);
    Box::new(move || leases.iter().filter(|lease| !lease_json::write(&lease.attrs).is_empty()).count())
}

fn names() -> Names {
    Names::new(DEFAULT_PREFIX).expect("flannel's own prefix")
}

/// What a node publishes, with that as it stands in the registry.
fn annotated(size: usize) -> Vec<(LeaseAttrs, Annotations)> {
    let (names, mut all) = (names(), Vec::new());
    for Lease { attrs, .. } in leases(size) {
        let mut there = Annotations::default();
        let (changes, _) = there.changes(&names, &attrs);
        for (name, value) in changes {
            let item = Item::ALL.into_iter().find(|item| names.of(*item) == name);
            if let (Some(item), Some(value)) = (item, value) {
                there.set(item, &value);
            }
        }
        all.push((attrs, there));
    }
    all
}

fn annotations_read(size: usize) -> Work {
    let (names, all) = (names(), annotated(size));
    let is_read = move |(attrs, there): &&(LeaseAttrs, Annotations)| there.read(&names, None).0 == *attrs;
    Box::new(move || all.iter().filter(&is_read).count())
}

fn annotations_compared(size: usize) -> Work {
    let (names, all) = (names(), annotated(size));
    Box::new(move || all.iter().map(|(attrs, there)| there.changes(&names, attrs).0.len()).sum())
}

fn last_good(size: usize) -> LastGood {
    let Cluster { own, peers, .. } = Cluster::of("vxlan", size);
    let name = |(n, lease): (usize, &Lease)| (lease.subnets, format!("node-{n}").into());
    LastGood {
        node: "node-0".to_owned(),
        store: "kubernetes".to_owned(),
        saved: Moment { unix: 1_795_000_000, uptime: 86_400, boot: "0c2b3f8e".to_owned() },
        conf: DUAL.to_owned(),
        left: Some(86_400),
        names: Arc::new(peers.iter().enumerate().map(name).collect::<BTreeMap<_, _>>()),
        own,
        peers,
        ..LastGood::default()
    }
}

fn last_good_written(size: usize) -> Work {
    let state = last_good(size);
    // The first line, that of the node, and its lease, which is also among all.
    Box::new(move || state.encode().lines().count() - 1)
}

fn last_good_read(size: usize) -> Work {
    let text = last_good(size).encode();
    Box::new(move || LastGood::decode(text.as_bytes()).map_or(0, |state| state.peers.len()))
}
