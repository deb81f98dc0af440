//! The Kubernetes store against an API server: the double, and with `KUBEBUILDER_ASSETS` a real one, by the
//! same list of cases.

use std::collections::BTreeMap;
use std::time::Duration;

use apidouble::{Cluster, NODES, PODS, Stage, Who, node as node_object};
use model::{LeaseAttrs, NetConf};
use serde_json::{Value, json};
use store::kube::{KubeOptions, KubeStore};
use store::{Held, LeaseStore, Request, Standing, StoreError, View};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::world::{World, block_on, seen, until, watching};

pub const V4: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
pub const DUAL: &str = r#"{"EnableIPv6":true,"Network":"10.244.0.0/16","IPv6Network":"fd00:244::/48","Backend":{"Type":"vxlan"}}"#;
pub const PREFIX: &str = "flannel.alpha.coreos.com/";

/// Files of one node: kubeconfig and network configuration.
pub struct Files {
    pub dir: TempDir,
}

impl Files {
    pub fn new(cluster: &dyn Cluster, who: Who, conf: &str) -> Files {
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join("kubeconfig"), cluster.kubeconfig(who)).unwrap();
        std::fs::write(dir.path().join("net-conf.json"), conf).unwrap();
        Files { dir }
    }

    pub fn options(&self, node: &str) -> KubeOptions {
        KubeOptions {
            kubeconfig: Some(self.dir.path().join("kubeconfig")),
            net_conf: self.dir.path().join("net-conf.json"),
            node_name: Some(node.to_owned()),
            ..KubeOptions::default()
        }
    }

    pub fn store(&self, node: &str) -> KubeStore {
        KubeStore::new(self.options(node)).unwrap()
    }
}

pub fn conf(text: &str) -> NetConf {
    NetConf::parse(text).unwrap()
}

/// What node `n` publishes.
pub fn request(n: u8) -> Request {
    let attrs = LeaseAttrs {
        public_ip: Some([192, 168, 0, n].into()),
        public_ip6: Some(format!("fd00::{n}").parse().unwrap()),
        backend_type: "vxlan".to_owned(),
        backend_data: Some(vtep(n).into()),
        backend_v6_data: Some(vtep(n + 100).into()),
    };
    Request { attrs, ..request_none() }
}

pub fn request_none() -> Request {
    Request { attrs: LeaseAttrs::default(), previous: model::Subnets::default() }
}

pub fn vtep(n: u8) -> String {
    format!(r#"{{"VNI":1,"VtepMAC":"0e:00:00:00:00:{n:02x}"}}"#)
}

/// A Node as another agent left it.
pub fn managed(name: &str, cidrs: &[&str], n: u8) -> Value {
    let mut node = node_object(name, cidrs);
    node["metadata"]["annotations"] = json!({
        format!("{PREFIX}kube-subnet-manager"): "true",
        format!("{PREFIX}backend-type"): "vxlan",
        format!("{PREFIX}backend-data"): vtep(n),
        format!("{PREFIX}backend-v6-data"): vtep(n + 100),
        format!("{PREFIX}public-ip"): format!("192.168.0.{n}"),
        format!("{PREFIX}public-ipv6"): format!("fd00::{n}"),
    });
    node
}

/// Annotations of a Node as the API server has them.
pub fn annotations(cluster: &dyn Cluster, node: &str) -> BTreeMap<String, String> {
    let node = cluster.read(&NODES, node).unwrap();
    serde_json::from_value(node["metadata"]["annotations"].clone()).unwrap_or_default()
}

/// Changes annotations; `null` takes one away.
pub fn annotate(cluster: &dyn Cluster, node: &str, changes: &[(&str, Value)]) {
    let members: serde_json::Map<String, Value> =
        changes.iter().map(|(name, value)| (format!("{PREFIX}{name}"), value.clone())).collect();
    cluster.merge(&NODES, node, "", &json!({"metadata": {"annotations": members}})).unwrap();
}

/// The public IPv4 address by which a lease in a view is known.
pub fn has(view: &View, subnet: &str, n: u8) -> bool {
    view.peers.iter().any(|lease| {
        lease.subnets.to_string() == subnet && lease.attrs.public_ip == Some([192, 168, 0, n].into())
    })
}

pub async fn acquire(store: &KubeStore, text: &str, n: u8) -> Held {
    store.config().await.unwrap();
    store.acquire(&conf(text), &request(n)).await.unwrap()
}

/// A cluster of one Node, for the cases all stores share.
pub struct KubeWorld {
    stage: Stage,
    files: Files,
}

impl KubeWorld {
    pub fn new() -> KubeWorld {
        let stage = Stage::start().unwrap();
        stage.create(&NODES, &node_object("own", &["10.5.1.0/24", "fd00:5:0:1::/64"])).unwrap();
        let files = Files::new(&stage, Who::Flannel, "");
        std::fs::remove_file(files.dir.path().join("net-conf.json")).unwrap();
        KubeWorld { stage, files }
    }
}

impl World for KubeWorld {
    type Store = KubeStore;

    fn store(&self, _ttl: u64) -> KubeStore {
        self.files.store("own")
    }

    fn put_config(&self, text: &str) {
        std::fs::write(self.files.dir.path().join("net-conf.json"), text).unwrap();
    }

    fn put(&self, name: &str, value: &str) {
        annotate(&self.stage, name, &[("backend-data", value.into())]);
    }

    fn delete(&self, name: &str) {
        let gone: Vec<(String, Value)> = annotations(&self.stage, name)
            .into_keys()
            .filter_map(|key| Some((key.strip_prefix(PREFIX)?.to_owned(), Value::Null)))
            .collect();
        let gone: Vec<(&str, Value)> =
            gone.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
        annotate(&self.stage, name, &gone);
    }

    fn content(&self) -> BTreeMap<String, (String, bool)> {
        let found = annotations(&self.stage, "own");
        let data = found.get(&format!("{PREFIX}backend-data"));
        data.map(|data| ("own".to_owned(), (format!(r#""BackendData":{data}"#), true))).into_iter().collect()
    }

    async fn run_out(&self, _held: &Held) {
        unreachable!("pod CIDRs do not run out")
    }

    fn now(&self) -> std::time::SystemTime {
        std::time::SystemTime::now()
    }

    async fn second(&self) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        $(#[test] fn $case() {
            let stage = Stage::start().unwrap();
            block_on(case::$case(&stage));
        })*

        #[test]
        fn all_of_it_against_a_real_api_server() {
            let Some(real) = apidouble::Real::start().unwrap() else {
                return println!("SKIP all_of_it_against_a_real_api_server: KUBEBUILDER_ASSETS is not set");
            };
            $({
                println!("{}", stringify!($case));
                block_on(case::$case(&real));
                let nodes = real.client(Who::Admin).get("/api/v1/nodes").unwrap().json();
                for node in nodes["items"].as_array().unwrap() {
                    real.remove(&NODES, node["metadata"]["name"].as_str().unwrap()).unwrap();
                }
            })*
        }
    };
}

cases!(
    a_node_says_exactly_what_flannel_would,
    an_operators_addresses_go_before_ours,
    another_prefix_is_another_network,
    the_hardware_address_survives_a_restart,
    a_pod_cidr_is_waited_for,
    a_pod_cidr_elsewhere_is_no_lease,
    the_watch_follows_every_node,
    a_bad_annotation_costs_that_node_its_news_alone,
    a_node_made_anew_is_another_one,
    our_own_node_made_anew_is_a_lost_lease,
    two_nodes_with_one_pod_cidr_are_both_named,
    claims_on_everything_count_for_nothing,
    a_hand_in_our_annotations_is_undone,
    the_condition_is_cleared_and_kept_clear,
    the_pod_tells_which_node_this_is,
    refusals_name_the_right_and_how_to_give_it,
    a_configuration_that_cannot_be_used_is_named,
);

mod case {
    use super::*;

    pub async fn a_node_says_exactly_what_flannel_would(cluster: &dyn Cluster) {
        let mut node = node_object("n1", &["10.244.1.0/24", "fd00:244:0:1::/64"]);
        node["metadata"]["annotations"] = json!({"example.org/mine": "stays"});
        cluster.create(&NODES, &node).unwrap();
        // One without any annotation, which upstream falls over (F-50).
        cluster.create(&NODES, &node_object("n2", &["10.244.2.0/24"])).unwrap();
        let files = Files::new(cluster, Who::Flannel, DUAL);
        let store = files.store("n1");
        assert_eq!(store.config().await.unwrap(), DUAL);
        let held = acquire(&store, DUAL, 7).await;
        assert_eq!(held.lease.subnets.to_string(), "10.244.1.0/24 and fd00:244:0:1::/64");
        assert_eq!((held.lease.attrs.clone(), held.expires), (request(7).attrs, None));
        let want: BTreeMap<String, String> = [
            ("kube-subnet-manager", "true".to_owned()),
            ("backend-type", "vxlan".to_owned()),
            ("backend-data", vtep(7)),
            ("backend-v6-data", vtep(107)),
            ("public-ip", "192.168.0.7".to_owned()),
            ("public-ipv6", "fd00::7".to_owned()),
        ]
        .map(|(name, value)| (format!("{PREFIX}{name}"), value))
        .into();
        let mut found = annotations(cluster, "n1");
        assert_eq!(found.remove("example.org/mine").as_deref(), Some("stays"));
        assert_eq!(found, want);
        // Nothing is written when nothing changed.
        let version = |name| cluster.read(&NODES, name).unwrap()["metadata"]["resourceVersion"].clone();
        let before = version("n1");
        acquire(&files.store("n1"), DUAL, 7).await;
        store.renew(&held, &request(7).attrs).await.unwrap();
        assert_eq!(version("n1"), before);
        // A switch to a backend without data and without IPv6 leaves nothing stale.
        let attrs = LeaseAttrs {
            backend_type: "host-gw".to_owned(),
            public_ip: Some([192, 168, 0, 7].into()),
            ..LeaseAttrs::default()
        };
        store.renew(&held, &attrs).await.unwrap();
        let mut want: BTreeMap<String, String> =
            want.into_iter().filter(|(name, _)| !name.contains("v6")).collect();
        want.insert(format!("{PREFIX}backend-type"), "host-gw".to_owned());
        want.insert(format!("{PREFIX}backend-data"), "null".to_owned());
        want.insert("example.org/mine".to_owned(), "stays".to_owned());
        assert_eq!(annotations(cluster, "n1"), want);
        // One family of two is better than none, and said.
        let held = acquire(&files.store("n2"), DUAL, 8).await;
        assert_eq!(held.lease.subnets.to_string(), "10.244.2.0/24");
        let watcher = files.store("n1");
        watcher.config().await.unwrap();
        watching(&watcher, async |mut views| {
            let view = seen(&mut views, "n2 is there", |v| v.complete && v.rejected.contains_key("n2")).await;
            assert_eq!(view.rejected["n2"], "Node n2 has no IPv6 podCIDR");
            assert!(has(&view, "10.244.2.0/24", 8), "{view:?}");
        })
        .await;
    }

    pub async fn an_operators_addresses_go_before_ours(cluster: &dyn Cluster) {
        cluster.create(&NODES, &node_object("n1", &["10.244.1.0/24"])).unwrap();
        annotate(
            cluster,
            "n1",
            &[
                ("public-ip-overwrite", "198.51.100.9".into()),
                ("node-public-ip", "192.168.0.77".into()),
                ("node-public-ipv6", "no address".into()),
            ],
        );
        let files = Files::new(cluster, Who::Flannel, V4);
        let store = files.store("n1");
        let remembered = store.remembered().await.unwrap();
        assert_eq!(remembered.public_ip, Some([192, 168, 0, 77].into()));
        assert_eq!((remembered.public_ip6, remembered.attrs), (None, None));
        let held = acquire(&store, V4, 7).await;
        assert_eq!(held.lease.attrs, request(7).attrs, "we know what we said");
        assert_eq!(annotations(cluster, "n1")[&format!("{PREFIX}public-ip")], "198.51.100.9");
        watching(&store, async |mut views| {
            // In our own view the lease is as we hold it, so nobody renews it for ever.
            let own = |v: &View| {
                v.peers.get(&held.lease.subnets).is_some_and(|lease| lease.attrs == held.lease.attrs)
            };
            seen(&mut views, "our own is as we hold it", own).await;
            // Taken away again: our own address is published with the next renewal, which the view asks for.
            annotate(cluster, "n1", &[("public-ip-overwrite", Value::Null)]);
            seen(&mut views, "our own is not as it should be", |v| v.peers.is_empty()).await;
            store.renew(&held, &held.lease.attrs).await.unwrap();
            seen(&mut views, "our own is back", own).await;
        })
        .await;
        assert_eq!(annotations(cluster, "n1")[&format!("{PREFIX}public-ip")], "192.168.0.7");
        // Everybody else sees what is published.
        cluster.create(&NODES, &node_object("n2", &["10.244.2.0/24"])).unwrap();
        annotate(cluster, "n1", &[("public-ip-overwrite", "192.168.0.99".into())]);
        store.renew(&held, &held.lease.attrs).await.unwrap();
        watching(&files.store("n2"), async |mut views| {
            seen(&mut views, "n1 is at the other address", |v| has(v, "10.244.1.0/24", 99)).await;
        })
        .await;
    }

    pub async fn another_prefix_is_another_network(cluster: &dyn Cluster) {
        cluster.create(&NODES, &managed("n1", &["10.244.1.0/24"], 1)).unwrap();
        cluster.create(&NODES, &node_object("n2", &["10.244.2.0/24"])).unwrap();
        let files = Files::new(cluster, Who::Flannel, V4);
        let options = KubeOptions { annotation_prefix: "example.org/pods".to_owned(), ..files.options("n2") };
        let store = KubeStore::new(options).unwrap();
        acquire(&store, V4, 2).await;
        let found = annotations(cluster, "n2");
        assert_eq!(found["example.org/pods-backend-type"], "vxlan");
        assert!(found.keys().all(|name| name.starts_with("example.org/pods-")), "{found:?}");
        watching(&store, async |mut views| {
            let view = seen(&mut views, "n2 alone is there", |v| has(v, "10.244.2.0/24", 2)).await;
            assert_eq!(view.peers.len(), 1);
        })
        .await;
        // The address is found again under the full name (F-55).
        assert_eq!(
            store.remembered().await.unwrap().attrs.unwrap().backend_data.as_deref(),
            Some(vtep(2).as_str())
        );
        for prefix in ["org", "org.com/a/b", "http://org.com"] {
            let options = KubeOptions { annotation_prefix: prefix.to_owned(), ..files.options("n2") };
            let Err(StoreError::Broken(text)) = KubeStore::new(options).map(|_| ()) else {
                panic!("{prefix}")
            };
            assert!(text.contains(prefix) && !text.contains('\n'), "{text}");
        }
    }

    pub async fn the_hardware_address_survives_a_restart(cluster: &dyn Cluster) {
        cluster.create(&NODES, &node_object("n1", &["10.244.1.0/24", "fd00:244:0:1::/64"])).unwrap();
        let files = Files::new(cluster, Who::Flannel, DUAL);
        let held = acquire(&files.store("n1"), DUAL, 7).await;
        let remembered = files.store("n1").remembered().await.unwrap().attrs.unwrap();
        assert_eq!(remembered, held.lease.attrs);
        // Also where a string more is in the data, which upstream falls over (F-56).
        annotate(
            cluster,
            "n1",
            &[("backend-data", r#"{"VNI":1,"VtepMAC":"0e:00:00:00:00:09","Note":"x"}"#.into())],
        );
        let remembered = files.store("n1").remembered().await.unwrap().attrs.unwrap();
        assert!(remembered.backend_data.unwrap().contains("0e:00:00:00:00:09"));
    }

    pub async fn a_pod_cidr_is_waited_for(cluster: &dyn Cluster) {
        let files = Files::new(cluster, Who::Flannel, V4);
        let store = files.store("n1");
        store.config().await.unwrap();
        // Not even the Node is there.
        match store.acquire(&conf(V4), &request(1)).await {
            Err(StoreError::NoSubnet(text)) => {
                assert!(
                    text.contains("get Node n1: there is no such Node") && text.contains("kubectl get nodes"),
                    "{text}"
                );
            }
            other => panic!("{other:?}"),
        }
        cluster.create(&NODES, &node_object("n1", &[])).unwrap();
        watching(&store, async |mut views| {
            seen(&mut views, "the list was read", |v| v.complete).await;
            match store.acquire(&conf(V4), &request(1)).await {
                Err(StoreError::NoSubnet(text)) => {
                    for part in ["Node n1 has no podCIDR", "--cluster-cidr=10.244.0.0/16", "kubectl patch node n1 -p '{\"spec\":{\"podCIDR\":\"10.244.1.0/24\",\"podCIDRs\":[\"10.244.1.0/24\"]}}'"] {
                        assert!(text.contains(part), "{text}");
                    }
                    assert!(!text.contains('\n'));
                }
                other => panic!("{other:?}"),
            }
            // As the membership does, but without its pauses: the store waits for the watch.
            let acquiring = async {
                loop {
                    match store.acquire(&conf(V4), &request(1)).await {
                        Ok(held) => break (held, std::time::Instant::now()),
                        Err(StoreError::NoSubnet(_)) => {}
                        Err(other) => panic!("{other:?}"),
                    }
                }
            };
            let giving = async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                let cidr = json!({"spec": {"podCIDR": "10.244.5.0/24", "podCIDRs": ["10.244.5.0/24"]}});
                cluster.merge(&NODES, "n1", "", &cidr).unwrap();
                std::time::Instant::now()
            };
            let ((held, done), given) = tokio::join!(acquiring, giving);
            assert_eq!(held.lease.subnets.to_string(), "10.244.5.0/24");
            // The issue asks for 2 s; this machine may be busy.
            assert!(done.duration_since(given) < Duration::from_secs(8), "{:?}", done.duration_since(given));
        })
        .await;
    }

    pub async fn a_pod_cidr_elsewhere_is_no_lease(cluster: &dyn Cluster) {
        cluster.create(&NODES, &node_object("n1", &["10.99.1.0/24"])).unwrap();
        cluster.create(&NODES, &node_object("n2", &["fd00:244:0:1::/64"])).unwrap();
        let files = Files::new(cluster, Who::Flannel, V4);
        for (node, part) in [
            ("n1", "podCIDR 10.99.1.0/24 of Node n1 is not inside the cluster network 10.244.0.0/16"),
            ("n2", "Node n2 has no IPv4 podCIDR"),
        ] {
            match files.store(node).acquire(&conf(V4), &request(1)).await {
                Err(StoreError::NoSubnet(text)) => assert!(text.contains(part), "{text}"),
                other => panic!("{other:?}"),
            }
            assert_eq!(annotations(cluster, node), BTreeMap::new(), "nothing is published");
        }
    }

    pub async fn the_watch_follows_every_node(cluster: &dyn Cluster) {
        cluster.create(&NODES, &node_object("own", &["10.244.9.0/24"])).unwrap();
        cluster.create(&NODES, &managed("a", &["10.244.1.0/24", "fd00:244:0:1::/64"], 1)).unwrap();
        cluster.create(&NODES, &node_object("idle", &["10.244.2.0/24"])).unwrap();
        let files = Files::new(cluster, Who::Flannel, DUAL);
        let store = files.store("own");
        store.config().await.unwrap();
        watching(&store, async |mut views| {
            let both = "10.244.1.0/24 and fd00:244:0:1::/64";
            let view = seen(&mut views, "the first snapshot is there", |v| v.complete).await;
            assert_eq!(
                (view.peers.len(), view.trouble.clone()),
                (1, None),
                "only those that take part: {view:?}"
            );
            assert!(has(&view, both, 1));
            let name =
                view.names.iter().map(|(subnets, name)| format!("{subnets} {name}")).collect::<Vec<_>>();
            assert_eq!(name, [format!("{both} a")]);
            // A change of one family alone (F-51).
            annotate(cluster, "a", &[("backend-v6-data", vtep(200).into())]);
            let v6 = |v: &View| {
                v.peers.iter().any(|l| l.attrs.backend_v6_data.as_deref() == Some(vtep(200).as_str()))
            };
            let view = seen(&mut views, "the v6 address changed", v6).await;
            assert!(view.peers.iter().all(|l| l.attrs.backend_data.as_deref() == Some(vtep(1).as_str())));
            annotate(cluster, "a", &[("public-ip", "192.168.0.50".into())]);
            seen(&mut views, "the v4 address changed", |v| has(v, both, 50)).await;
            // A node joins, annotates itself, and goes.
            cluster.create(&NODES, &node_object("b", &["10.244.3.0/24"])).unwrap();
            let taken = acquire(&files.store("b"), V4, 3).await;
            seen(&mut views, "b is there", |v| has(v, "10.244.3.0/24", 3)).await;
            assert_eq!(taken.lease.subnets.to_string(), "10.244.3.0/24");
            cluster.remove(&NODES, "b").unwrap();
            seen(&mut views, "b is gone", |v| v.peers.len() == 1 && v.names.len() == 1).await;
            // Taking no part any more is leaving (F-61).
            annotate(cluster, "a", &[("kube-subnet-manager", Value::Null)]);
            seen(&mut views, "a takes no part", |v| v.peers.is_empty() && v.names.is_empty()).await;
            annotate(cluster, "a", &[("kube-subnet-manager", "true".into())]);
            seen(&mut views, "a takes part again", |v| has(v, both, 50)).await;
        })
        .await;
    }

    pub async fn a_bad_annotation_costs_that_node_its_news_alone(cluster: &dyn Cluster) {
        cluster.create(&NODES, &node_object("own", &["10.244.9.0/24"])).unwrap();
        cluster.create(&NODES, &managed("a", &["10.244.1.0/24"], 1)).unwrap();
        cluster.create(&NODES, &managed("b", &["10.244.2.0/24"], 2)).unwrap();
        let files = Files::new(cluster, Who::Flannel, V4);
        let store = files.store("own");
        store.config().await.unwrap();
        watching(&store, async |mut views| {
            seen(&mut views, "both are there", |v| v.peers.len() == 2).await;
            for (change, part) in [
                (("public-ip", Value::from("nonsense")), "public-ip \"nonsense\" is not an IPv4 address"),
                (("public-ip", "fd00::1".into()), "is not an IPv4 address"),
                (("backend-data", "{\"VNI\":".into()), "backend-data: read vxlan backend data"),
                (("backend-data", "{\"VtepMAC\":\"01:00:5e:00:00:01\"}".into()), "multicast"),
                (("backend-data", "x".repeat(20_000).into()), "longer than 16384 bytes"),
            ] {
                annotate(cluster, "a", std::slice::from_ref(&change));
                let view =
                    seen(&mut views, part, |v| v.rejected.get("a").is_some_and(|why| why.contains(part)))
                        .await;
                let why = &view.rejected["a"];
                assert!(
                    why.starts_with("Node a: annotation flannel.alpha.coreos.com/") && !why.contains('\n'),
                    "{why}"
                );
                assert!(has(&view, "10.244.1.0/24", 1), "its last good lease stays: {view:?}");
                // Others go on.
                annotate(cluster, "b", &[("public-ip", "192.168.0.22".into())]);
                seen(&mut views, "b changed", |v| has(v, "10.244.2.0/24", 22)).await;
                annotate(cluster, "b", &[("public-ip", "192.168.0.2".into())]);
                seen(&mut views, "b changed back", |v| has(v, "10.244.2.0/24", 2)).await;
                annotate(
                    cluster,
                    "a",
                    &[("public-ip", "192.168.0.1".into()), ("backend-data", vtep(1).into())],
                );
                seen(&mut views, "a is good again", |v| v.rejected.is_empty()).await;
            }
        })
        .await;
        // Who was bad from the beginning has no last good lease, and nobody else is the worse for it.
        annotate(cluster, "a", &[("public-ip", "nonsense".into())]);
        let late = files.store("own");
        late.config().await.unwrap();
        watching(&late, async |mut views| {
            let view = seen(&mut views, "the list is there", |v| v.complete).await;
            assert!(has(&view, "10.244.2.0/24", 2) && view.rejected.contains_key("a"), "{view:?}");
            assert!(!has(&view, "10.244.1.0/24", 1));
        })
        .await;
    }

    pub async fn a_node_made_anew_is_another_one(cluster: &dyn Cluster) {
        cluster.create(&NODES, &node_object("own", &["10.244.9.0/24"])).unwrap();
        cluster.create(&NODES, &managed("a", &["10.244.1.0/24"], 1)).unwrap();
        let files = Files::new(cluster, Who::Flannel, V4);
        let store = files.store("own");
        store.config().await.unwrap();
        watching(&store, async |mut views| {
            seen(&mut views, "a is there", |v| has(v, "10.244.1.0/24", 1)).await;
            // Made anew with the same annotations and another podCIDR (F-52).
            cluster.remove(&NODES, "a").unwrap();
            cluster.create(&NODES, &managed("a", &["10.244.7.0/24"], 1)).unwrap();
            let view = seen(&mut views, "a moved", |v| has(v, "10.244.7.0/24", 1)).await;
            assert_eq!((view.peers.len(), view.names.len()), (1, 1), "{view:?}");
            // Made anew and bad: what the one before it said does not count for it.
            cluster.remove(&NODES, "a").unwrap();
            let mut bad = managed("a", &["10.244.7.0/24"], 1);
            bad["metadata"]["annotations"][format!("{PREFIX}public-ip")] = "nonsense".into();
            cluster.create(&NODES, &bad).unwrap();
            let view = seen(&mut views, "a is bad", |v| v.rejected.contains_key("a")).await;
            assert!(!has(&view, "10.244.7.0/24", 1), "{view:?}");
        })
        .await;
    }

    pub async fn our_own_node_made_anew_is_a_lost_lease(cluster: &dyn Cluster) {
        cluster.create(&NODES, &node_object("own", &["10.244.9.0/24"])).unwrap();
        let files = Files::new(cluster, Who::Flannel, V4);
        let store = files.store("own");
        let held = acquire(&store, V4, 1).await;
        watching(&store, async |mut views| {
            seen(&mut views, "ours is there", |v| has(v, "10.244.9.0/24", 1)).await;
            cluster.remove(&NODES, "own").unwrap();
            seen(&mut views, "ours is gone", |v| v.peers.is_empty()).await;
            // Without a Node nothing is known for sure: the lease is not given up.
            let error = store.renew(&held, &held.lease.attrs).await.unwrap_err();
            assert!(
                matches!(&error, StoreError::NoSubnet(text) if text.contains("no such Node")),
                "{error:?}"
            );
            views.mark_unchanged();
            cluster.create(&NODES, &node_object("own", &["10.244.8.0/24"])).unwrap();
            // Whoever holds the lease is woken, though no lease changed.
            seen(&mut views, "something happened", |_| true).await;
            tokio::time::timeout(crate::world::PATIENCE, views.changed()).await.unwrap().unwrap();
            match store.renew(&held, &held.lease.attrs).await {
                Err(StoreError::Lost(text)) => assert!(text.contains("10.244.8.0/24"), "{text}"),
                other => panic!("{other:?}"),
            }
            let again = store.acquire(&conf(V4), &request(1)).await.unwrap();
            assert_eq!(again.lease.subnets.to_string(), "10.244.8.0/24");
            seen(&mut views, "ours is there again", |v| has(v, "10.244.8.0/24", 1)).await;
        })
        .await;
        // Made anew with the same one: said again, not lost.
        let held = acquire(&store, V4, 1).await;
        cluster.remove(&NODES, "own").unwrap();
        cluster.create(&NODES, &node_object("own", &["10.244.8.0/24"])).unwrap();
        store.renew(&held, &held.lease.attrs).await.unwrap();
        assert_eq!(annotations(cluster, "own")[&format!("{PREFIX}public-ip")], "192.168.0.1");
    }

    pub async fn two_nodes_with_one_pod_cidr_are_both_named(cluster: &dyn Cluster) {
        cluster.create(&NODES, &node_object("own", &["10.244.9.0/24"])).unwrap();
        cluster.create(&NODES, &managed("a", &["10.244.1.0/24"], 1)).unwrap();
        let files = Files::new(cluster, Who::Flannel, V4);
        let store = files.store("own");
        store.config().await.unwrap();
        watching(&store, async |mut views| {
            seen(&mut views, "a is there", |v| has(v, "10.244.1.0/24", 1)).await;
            for (name, cidr) in [
                ("b", "10.244.1.0/24"),
                ("c", "10.244.0.0/21"),
                ("d", "10.244.1.128/25"),
                ("e", "10.244.9.0/24"),
            ] {
                cluster.create(&NODES, &managed(name, &[cidr], 2)).unwrap();
                let view = seen(&mut views, name, |v| v.rejected.contains_key(name)).await;
                let why = &view.rejected[name];
                let other = if name == "e" { "of Node own" } else { "of Node a" };
                assert!(
                    why.contains(&format!("podCIDR {cidr} of Node {name}")) && why.contains(other),
                    "{why}"
                );
                assert!(has(&view, "10.244.1.0/24", 1) && view.peers.len() == 1, "{view:?}");
            }
            // The one before goes: its podCIDR is another's now.
            cluster.remove(&NODES, "a").unwrap();
            let view = seen(&mut views, "b has it", |v| has(v, "10.244.1.0/24", 2)).await;
            let names: Vec<&str> = view.names.values().map(|name| &**name).collect();
            assert_eq!(names, ["b"]);
        })
        .await;
    }

    pub async fn claims_on_everything_count_for_nothing(cluster: &dyn Cluster) {
        cluster.create(&NODES, &node_object("own", &["10.244.9.0/24"])).unwrap();
        cluster.create(&NODES, &managed("all", &["0.0.0.0/0"], 3)).unwrap();
        cluster.create(&NODES, &managed("alien", &["10.99.0.0/24"], 4)).unwrap();
        cluster.create(&NODES, &managed("a", &["10.244.1.0/24"], 1)).unwrap();
        let files = Files::new(cluster, Who::Flannel, V4);
        let store = files.store("own");
        store.config().await.unwrap();
        watching(&store, async |mut views| {
            let view = seen(&mut views, "the list is there", |v| v.complete).await;
            assert!(has(&view, "10.244.1.0/24", 1) && view.peers.len() == 1, "{view:?}");
            assert_eq!(view.rejected.keys().collect::<Vec<_>>(), ["alien", "all"]);
            assert!(
                view.rejected
                    .values()
                    .all(|why| why.contains("is not inside the cluster network 10.244.0.0/16"))
            );
        })
        .await;
    }

    pub async fn a_hand_in_our_annotations_is_undone(cluster: &dyn Cluster) {
        cluster.create(&NODES, &node_object("own", &["10.244.9.0/24"])).unwrap();
        let files = Files::new(cluster, Who::Flannel, V4);
        let store = files.store("own");
        let held = acquire(&store, V4, 1).await;
        let good = annotations(cluster, "own");
        watching(&store, async |mut views| {
            seen(&mut views, "ours is there", |v| has(v, "10.244.9.0/24", 1)).await;
            for change in [
                ("public-ip", Value::from("192.168.0.200")),
                ("public-ip", "nonsense".into()),
                ("backend-data", Value::Null),
                ("kube-subnet-manager", "false".into()),
            ] {
                annotate(cluster, "own", &[change]);
                seen(&mut views, "ours is not as we hold it", |v| v.peers.get(&held.lease.subnets).is_none())
                    .await;
                store.renew(&held, &held.lease.attrs).await.unwrap();
                assert_eq!(annotations(cluster, "own"), good);
                seen(&mut views, "ours is there again", |v| has(v, "10.244.9.0/24", 1)).await;
            }
        })
        .await;
    }

    pub async fn the_condition_is_cleared_and_kept_clear(cluster: &dyn Cluster) {
        cluster.create(&NODES, &node_object("own", &["10.244.9.0/24"])).unwrap();
        let unavailable = |cluster: &dyn Cluster| {
            let node = cluster.read(&NODES, "own").unwrap();
            let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions.into_iter().find(|c| c["type"] == "NetworkUnavailable")
        };
        let set = |cluster: &dyn Cluster| {
            let taints = json!({"status": {"conditions": [
                {"type": "Ready", "status": "True", "reason": "r", "message": "m"},
                {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated", "message": "m"}]}});
            cluster.merge(&NODES, "own", "/status", &taints).unwrap();
        };
        set(cluster);
        let files = Files::new(cluster, Who::Flannel, V4);
        let store = files.store("own");
        let (say, standing) = watch::channel(Standing::default());
        watching(&store, async |mut views| {
            seen(&mut views, "the list is there", |v| v.complete).await;
            let working = async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                assert_eq!(unavailable(cluster).unwrap()["status"], "True", "not before we are ready");
                say.send_replace(Standing { ready: true, troubles: Vec::new(), ..Standing::default() });
                until("it is cleared", || unavailable(cluster).unwrap()["status"] == "False").await;
                let condition = unavailable(cluster).unwrap();
                assert_eq!(condition["reason"], "FlannelIsUp");
                assert_eq!(condition["message"], "Flannel is running on this node");
                for time in ["lastHeartbeatTime", "lastTransitionTime"] {
                    let text = condition[time].as_str().unwrap();
                    assert!(text.len() == 20 && text.ends_with('Z'), "{text}");
                }
                let node = cluster.read(&NODES, "own").unwrap();
                assert_eq!(node["status"]["conditions"].as_array().unwrap().len(), 2, "others stay: {node}");
                // A cloud's route controller sets it back; the Node is made anew.
                set(cluster);
                until("it is cleared again", || unavailable(cluster).unwrap()["status"] == "False").await;
                cluster.remove(&NODES, "own").unwrap();
                cluster.create(&NODES, &node_object("own", &["10.244.9.0/24"])).unwrap();
                until("it is cleared a third time", || unavailable(cluster).is_some_and(|c| c["status"] == "False")).await;
                // Never set by us.
                say.send_replace(Standing { ready: false, troubles: vec!["something".to_owned()], ..Standing::default() });
                tokio::time::sleep(Duration::from_millis(300)).await;
                assert_eq!(unavailable(cluster).unwrap()["status"], "False");
            };
            tokio::select! { () = store.announce(standing) => panic!("announcing never ends"), () = working => {} }
        })
        .await;
        // Switched off.
        set(cluster);
        let store = KubeStore::new(KubeOptions { set_condition: false, ..files.options("own") }).unwrap();
        let (_say, standing) =
            watch::channel(Standing { ready: true, troubles: Vec::new(), ..Standing::default() });
        let pause = tokio::time::sleep(Duration::from_millis(500));
        tokio::select! { () = store.announce(standing) => panic!("announcing never ends"), () = pause => {} }
        assert_eq!(unavailable(cluster).unwrap()["status"], "True");
    }

    pub async fn the_pod_tells_which_node_this_is(cluster: &dyn Cluster) {
        cluster.create(&NODES, &node_object("n1", &["10.244.1.0/24"])).unwrap();
        let files = Files::new(cluster, Who::Flannel, V4);
        let by_pod = |pod: Option<(&str, &str)>| {
            let pod = pod.map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
            KubeStore::new(KubeOptions { node_name: None, pod, ..files.options("") }).unwrap()
        };
        let pod = |name: &str, node: Option<&str>| {
            let mut pod = json!({"metadata": {"name": name, "namespace": "kube-flannel"},
                "spec": {"automountServiceAccountToken": false, "containers": [{"name": "c", "image": "i"}]}});
            if let Some(node) = node {
                pod["spec"]["nodeName"] = node.into();
            }
            pod
        };
        for (store, part) in [
            (by_pod(None), "NODE_NAME is not set"),
            (by_pod(Some(("kube-flannel", ""))), "NODE_NAME is not set"),
            (by_pod(Some(("kube-flannel", "p0"))), "get pod kube-flannel/p0"),
        ] {
            let error = store.acquire(&conf(V4), &request(1)).await.unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains('\n'), "{error}");
        }
        if cluster.name() == "real" {
            cluster
                .create(
                    &apidouble::Kind { ..core_account() },
                    &json!({"metadata": {"name": "default", "namespace": "kube-flannel"}}),
                )
                .ok();
        }
        cluster.create(&PODS, &pod("p1", None)).unwrap();
        let store = by_pod(Some(("kube-flannel", "p1")));
        let error = store.acquire(&conf(V4), &request(1)).await.unwrap_err().to_string();
        assert!(error.contains("is on none yet"), "{error}");
        cluster.create(&PODS, &pod("p2", Some("n1"))).unwrap();
        let held = by_pod(Some(("kube-flannel", "p2"))).acquire(&conf(V4), &request(1)).await.unwrap();
        assert_eq!(held.lease.subnets.to_string(), "10.244.1.0/24");
        for name in ["p1", "p2"] {
            cluster.remove(&PODS, &format!("kube-flannel/{name}")).unwrap();
        }
    }

    fn core_account() -> apidouble::Kind {
        apidouble::Kind {
            group: "",
            version: "v1",
            plural: "serviceaccounts",
            name: "ServiceAccount",
            short: "sa",
            namespaced: true,
            status: false,
            selectable: &[],
        }
    }

    pub async fn refusals_name_the_right_and_how_to_give_it(cluster: &dyn Cluster) {
        cluster.create(&NODES, &node_object("n1", &["10.244.1.0/24"])).unwrap();
        for (who, part) in [(Who::Stranger, "does not take our credentials (401)"), (Who::Nobody, "401")] {
            let files = Files::new(cluster, who, V4);
            let error = files.store("n1").acquire(&conf(V4), &request(1)).await.unwrap_err();
            assert!(matches!(error, StoreError::Denied(_)), "{error:?}");
            let text = error.to_string();
            assert!(
                text.contains(part) && text.contains("kubectl --kubeconfig") && !text.contains('\n'),
                "{text}"
            );
            watching(&files.store("n1"), async |mut views| {
                let view = seen(&mut views, "there is trouble", |v| v.trouble.is_some()).await;
                assert!(!view.complete && view.trouble.unwrap().contains("watch Nodes"));
            })
            .await;
        }
    }

    pub async fn a_configuration_that_cannot_be_used_is_named(cluster: &dyn Cluster) {
        let files = Files::new(cluster, Who::Flannel, V4);
        let path = files.dir.path().join("net-conf.json");
        let store = files.store("n1");
        for (text, part) in [
            (None, "failed to read net conf"),
            (Some("{"), "error parsing subnet config"),
            (Some(r#"{"Network":"10.244.0.0"}"#), "Network \"10.244.0.0\" is not an IPv4 network"),
            (Some(r#"{"EnableIPv6":true,"Network":"10.244.0.0/16"}"#), "IPv6Network is missing"),
            (Some(r#"{"EnableIPv4":false}"#), "EnableIPv4"),
        ] {
            match text {
                Some(text) => std::fs::write(&path, text).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            match store.config().await {
                Err(StoreError::NoConfig(why)) => {
                    assert!(why.contains(part) && why.contains(&path.display().to_string()), "{why}");
                    assert!(why.contains("kubectl -n kube-flannel") && !why.contains('\n'), "{why}");
                }
                other => panic!("{other:?}"),
            }
        }
        // Here nobody hands out subnets: their size does not matter (flannel.md 2.2).
        let small = r#"{"Network":"10.244.0.0/30","SubnetLen":99}"#;
        std::fs::write(&path, small).unwrap();
        assert_eq!(store.config().await.unwrap(), small);
        assert!(!store.allocates());
    }
}
