//! The chart against golden files, which Helm 3.22 wrote byte for byte the same, and against Helm itself
//! where it is installed. `LODEN_BLESS=1` writes the golden files anew.

use std::path::PathBuf;

use packaging::{chart, yaml};
use serde_json::{Value, json};

use crate::{manifests, read, root, run, there};

const NAMESPACE: &str = "kube-flannel";

/// Values files, in the order of their names.
fn cases() -> Vec<(String, PathBuf)> {
    let dir = root().join("crates/packaging/tests/values");
    let mut all: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), path))
        .collect();
    all.sort();
    all
}

fn render(values: &[String]) -> String {
    chart::render(&root().join("deploy/chart/loden"), NAMESPACE, values).unwrap()
}

fn render_with(value: Value) -> String {
    render(&[value.to_string()])
}

#[test]
fn rendered_as_recorded() {
    assert!(cases().len() >= 9);
    for (name, values) in cases() {
        let golden = root().join(format!("crates/packaging/tests/golden/{name}.yaml"));
        let rendered = render(&[std::fs::read_to_string(values).unwrap()]);
        if std::env::var_os("LODEN_BLESS").is_some() {
            std::fs::write(&golden, &rendered).unwrap();
        }
        assert_eq!(
            rendered,
            std::fs::read_to_string(&golden).unwrap(),
            "{name}: differs from the golden file"
        );
    }
}

#[test]
fn rendered_as_helm_renders() {
    if !there("chart::rendered_as_helm_renders", "helm") {
        return;
    }
    let dir = root().join("deploy/chart/loden");
    for (name, values) in cases() {
        let words =
            ["template", "loden", dir.to_str().unwrap(), "-n", NAMESPACE, "-f", values.to_str().unwrap()];
        assert_eq!(run("helm", &words), render(&[std::fs::read_to_string(values).unwrap()]), "{name}");
    }
}

#[test]
fn what_is_rendered_passes_the_schema_and_reads_as_a_network() {
    for (name, values) in cases() {
        let documents = yaml::documents(&render(&[std::fs::read_to_string(values).unwrap()])).unwrap();
        manifests::check(&name, &documents);
        let conf = manifests::net_conf(&documents);
        let parsed = model::config::NetConf::parse(&conf);
        assert!(parsed.is_ok(), "{name}: {conf}: {parsed:?}");
    }
}

/// Every value of flannel's chart (flannel.md 10.2): set to something else, and what must then be there.
#[test]
fn every_value_of_flannels_chart_has_its_effect() {
    let vxlan = |key: &str, value: Value| json!({ "flannel": { key: value } });
    let wireguard = |key: &str, value: Value| json!({ "flannel": { "backend": "wireguard", key: value } });
    let flannel = vxlan;
    let cases: Vec<(Value, &[&str])> = vec![
        (
            json!({ "global": { "imagePullSecrets": [{ "name": "s" }] } }),
            &["imagePullSecrets:\n        - name: s\n"],
        ),
        (json!({ "podCidr": "10.1.0.0/16" }), &["\"Network\": \"10.1.0.0/16\""]),
        (
            json!({ "podCidr": "", "podCidrv6": "fd00::/48" }),
            &["\"EnableIPv4\": false", "\"EnableIPv6\": true"],
        ),
        (json!({ "podCidrv6": "fd00::/48" }), &["\"IPv6Network\": \"fd00::/48\""]),
        (flannel("image", json!({ "repository": "r/loden", "tag": "t" })), &["image: \"r/loden:t\""]),
        (
            flannel("flannel_cni", json!({ "image": { "repository": "r/loden-cni", "tag": "t" } })),
            &["image: \"r/loden-cni:t\"", "image: \"localhost/loden:v"],
        ),
        (flannel("cniBinDir", json!("/a/bin")), &["path: \"/a/bin\""]),
        (flannel("cniConfDir", json!("/a/net.d")), &["path: \"/a/net.d\""]),
        (flannel("enableNFTables", json!(true)), &["\"EnableNFTables\": true"]),
        (
            flannel("args", json!(["--a", "--b=c"])),
            &["- /opt/bin/flanneld\n        - \"--a\"\n        - \"--b=c\"\n"],
        ),
        (flannel("backend", json!("host-gw")), &["\"Type\": \"host-gw\""]),
        (vxlan("backendPort", json!(1)), &["\"Port\": 1"]),
        (wireguard("backendPort", json!(1)), &["\"ListenPort\": 1"]),
        (json!({ "flannel": { "backend": "udp", "backendPort": 1 } }), &["\"Port\": 1", "privileged: true"]),
        (vxlan("mtu", json!(1400)), &["\"MTU\": 1400"]),
        (wireguard("mtu", json!(1400)), &["\"MTU\": 1400"]),
        (vxlan("vni", json!(16_777_215)), &["\"VNI\": 16777215"]),
        (vxlan("GBP", json!(true)), &["\"GBP\": true"]),
        (vxlan("directRouting", json!(true)), &["\"DirectRouting\": true"]),
        (vxlan("macPrefix", json!("0E-2A")), &["\"MacPrefix\": \"0E-2A\""]),
        (wireguard("backendPortv6", json!(1)), &["\"ListenPortV6\": 1"]),
        (wireguard("psk", json!("k")), &["\"PSK\": \"k\""]),
        (wireguard("tunnelMode", json!("auto")), &["\"Mode\": \"auto\""]),
        (wireguard("keepaliveInterval", json!(25)), &["\"PersistentKeepaliveInterval\": 25"]),
        (flannel("cniConf", json!("{\"name\":\"x\"}")), &["cni-conf.json: \"{\\\"name\\\":\\\"x\\\"}\""]),
        (flannel("resources", json!({ "limits": { "memory": "1Gi" } })), &["memory: 1Gi"]),
        (flannel("healthz", json!({ "port": 9 })), &["--healthz-port=9", "containerPort: 9"]),
        (
            flannel("healthz", json!({ "livenessProbe": { "periodSeconds": 77 } })),
            &["initialDelaySeconds: 10\n          periodSeconds: 77"],
        ),
        (
            flannel("healthz", json!({ "readinessProbe": { "failureThreshold": 7 } })),
            &["failureThreshold: 7"],
        ),
        (
            flannel("tolerations", json!([{ "key": "k", "operator": "Exists" }])),
            &["- key: k\n          operator: Exists"],
        ),
        (flannel("nodeSelector", json!({ "a/b": "c" })), &["nodeSelector:\n        a/b: c"]),
        (
            json!({ "netpol": { "enabled": true } }),
            &["kube-network-policies:v1.0.0", "resources: [networkpolicies]"],
        ),
        (json!({ "netpol": { "enabled": true, "args": ["--x"] } }), &["- /bin/netpol\n        - \"--x\"\n"]),
        (
            json!({ "netpol": { "enabled": true, "image": { "repository": "r", "tag": "t" } } }),
            &["image: \"r:t\"", "mountPath: /lib/modules"],
        ),
        (json!({ "loden": { "image": { "repository": "q", "tag": "u" } } }), &["image: \"q:u\""]),
        (json!({ "loden": { "stateDir": "/s" } }), &["path: \"/s\""]),
        (
            json!({ "loden": { "fastPath": "auto" } }),
            &[
                "- \"--fast-path=auto\"",
                "add: [NET_ADMIN, NET_RAW, BPF, PERFMON]",
                "mountPath: /sys/fs/bpf\n",
                "path: /sys/fs/bpf\n",
            ],
        ),
        (json!({ "loden": { "events": true } }), &["kind: RoleBinding", "resources: [events]"]),
        (
            json!({ "loden": { "cniConfWhenReady": false } }),
            &["name: install-cni\n", "command: [/opt/bin/install-conf]"],
        ),
        (json!({ "loden": { "addMissingPlugins": false } }), &["args: [-f, /flannel, /opt/cni/bin/flannel]"]),
    ];
    let before = render(&[]);
    for (value, parts) in cases {
        let rendered = render_with(value.clone());
        for part in parts {
            assert!(rendered.contains(part), "{value}: lacks {part:?}");
        }
        assert!(parts.iter().any(|part| !before.contains(part)), "{value}: the test would pass without it");
    }
    let without = |value: Value, part: &str| {
        assert!(
            before.contains(part) && !render_with(value.clone()).contains(part),
            "{value}: still has {part:?}"
        );
    };
    without(json!({ "flannel": { "healthz": { "port": 0 } } }), "Probe");
    without(json!({ "flannel": { "healthz": { "port": 0 } } }), "healthz");
    without(json!({ "flannel": { "skipCNIConfigInstallation": true } }), "LODEN_CNI_CONF");
    without(json!({ "flannel": { "tolerations": [] } }), "tolerations");
    // Flannel's own images are never run by this chart.
    let flannels =
        json!({ "flannel": { "image": { "repository": "ghcr.io/flannel-io/flannel", "tag": "v0.28.9" } } });
    assert_eq!(render_with(flannels), before);
}

#[test]
fn chart_and_programs_have_one_version() {
    let chart = yaml::document(&read("deploy/chart/loden/Chart.yaml")).unwrap();
    assert_eq!(chart["version"], json!(env!("CARGO_PKG_VERSION")));
    assert_eq!(chart["appVersion"], json!(packaging::image::VERSION));
}
