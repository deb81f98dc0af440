//! Manifests against the types of Kubernetes' own API description, and against what flannel's have.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use packaging::yaml;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{read, root, run, there};

fn all(file: &str) -> Vec<Value> {
    yaml::documents(&read(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// A field the type does not know is lost on the way, one of a wrong kind is refused.
fn typed<T: DeserializeOwned + Serialize>(document: &Value) -> Result<(), String> {
    let object: T = serde_json::from_value(document.clone()).map_err(|error| error.to_string())?;
    let back = serde_json::to_value(&object).map_err(|error| error.to_string())?;
    if back == *document { Ok(()) } else { Err(format!("{document:#}\nis read as\n{back:#}")) }
}

fn schema(document: &Value) -> Result<(), String> {
    match (text(&document["apiVersion"]), text(&document["kind"])) {
        ("v1", "Namespace") => typed::<Namespace>(document),
        ("v1", "ServiceAccount") => typed::<ServiceAccount>(document),
        ("v1", "ConfigMap") => typed::<ConfigMap>(document),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => typed::<ClusterRole>(document),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => typed::<ClusterRoleBinding>(document),
        ("rbac.authorization.k8s.io/v1", "Role") => typed::<Role>(document),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => typed::<RoleBinding>(document),
        ("apps/v1", "DaemonSet") => typed::<DaemonSet>(document),
        other => Err(format!("{other:?} is no kind of ours")),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn of<'a>(documents: &'a [Value], kind: &str) -> &'a Value {
    documents.iter().find(|document| document["kind"] == kind).unwrap_or(&Value::Null)
}

/// Schema, and that names used are names given.
pub fn check(name: &str, documents: &[Value]) {
    for document in documents {
        schema(document).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let pod = &of(documents, "DaemonSet")["spec"]["template"];
    let labels = &pod["metadata"]["labels"];
    for (key, value) in of(documents, "DaemonSet")["spec"]["selector"]["matchLabels"].as_object().unwrap() {
        assert_eq!(labels[key], *value, "{name}: the selector finds no pod");
    }
    let spec = &pod["spec"];
    let names = |value: &Value| list(value).iter().map(|v| text(&v["name"]).to_owned()).collect::<Vec<_>>();
    let volumes = names(&spec["volumes"]);
    let mut used = BTreeSet::new();
    for container in list(&spec["initContainers"]).iter().chain(list(&spec["containers"])) {
        let ports = names(&container["ports"]);
        for probe in ["livenessProbe", "readinessProbe"] {
            let port = &container[probe]["httpGet"]["port"];
            assert!(port.is_null() || ports.contains(&text(port).to_owned()), "{name}: {probe} of no port");
        }
        let mut paths = BTreeSet::new();
        for mount in list(&container["volumeMounts"]) {
            assert!(volumes.contains(&text(&mount["name"]).to_owned()), "{name}: {mount} of no volume");
            assert!(paths.insert(text(&mount["mountPath"])), "{name}: {mount} twice");
            used.insert(text(&mount["name"]).to_owned());
        }
    }
    let unused: Vec<_> =
        volumes.iter().filter(|volume| !used.contains(*volume) && *volume != "cni").collect();
    assert!(unused.is_empty(), "{name}: nobody mounts {unused:?}");
    assert_eq!(spec["serviceAccountName"], of(documents, "ServiceAccount")["metadata"]["name"], "{name}");
    for kind in ["ClusterRoleBinding", "RoleBinding"] {
        let binding = of(documents, kind);
        if !binding.is_null() {
            let role = of(documents, text(&binding["roleRef"]["kind"]));
            assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"], "{name}");
        }
    }
}

/// `net-conf.json` of the ConfigMap.
pub fn net_conf(documents: &[Value]) -> String {
    text(&of(documents, "ConfigMap")["data"]["net-conf.json"]).to_owned()
}

#[test]
fn the_schema_check_finds_mistakes() {
    let good = all("deploy/kube-loden.yml");
    let daemons = good.iter().find(|document| document["kind"] == "DaemonSet").unwrap();
    assert_eq!(schema(daemons), Ok(()));
    for (pointer, value, error) in [
        ("/spec/template/spec/hostNetwork", json!("yes"), "expected"),
        ("/spec/template/spec/tolerations/0", json!({ "effects": "NoSchedule" }), "is read as"),
        ("/spec/template/spec/containers/0/volumeMounts/0/mountpath", json!("/x"), "is read as"),
        ("/spec/template/spec/containers/0/ports/0/containerPort", json!("8081"), "expected"),
        ("/kind", json!("Daemonset"), "no kind of ours"),
    ] {
        let mut bad = daemons.clone();
        match bad.pointer_mut(pointer) {
            Some(place) => *place = value,
            None => {
                let (parent, key) = pointer.rsplit_once('/').unwrap();
                bad.pointer_mut(parent).unwrap()[key] = value;
            }
        }
        assert!(schema(&bad).is_err_and(|e| e.contains(error)), "{pointer}");
    }
}

/// Objects of flannel's released manifest (flannel.md 10.1; its selector as kustomize makes it).
#[test]
fn the_manifest_has_flannels_objects() {
    let documents = all("deploy/kube-loden.yml");
    check("kube-loden.yml", &documents);
    let objects: BTreeSet<[&str; 3]> = documents
        .iter()
        .map(|d| [text(&d["kind"]), text(&d["metadata"]["namespace"]), text(&d["metadata"]["name"])])
        .collect();
    let expected = [
        ["Namespace", "", "kube-flannel"],
        ["ServiceAccount", "kube-flannel", "flannel"],
        ["ClusterRole", "", "flannel"],
        ["ClusterRoleBinding", "", "flannel"],
        ["ConfigMap", "kube-flannel", "kube-flannel-cfg"],
        ["DaemonSet", "kube-flannel", "kube-flannel-ds"],
    ];
    assert_eq!(objects, expected.into());
    assert!(documents.iter().all(|d| d["metadata"]["labels"]["k8s-app"] == "flannel"));
    let daemons = of(&documents, "DaemonSet");
    assert_eq!(daemons["spec"]["selector"]["matchLabels"], json!({ "app": "flannel", "k8s-app": "flannel" }));
    let spec = &daemons["spec"]["template"]["spec"];
    assert_eq!(spec["hostNetwork"], true);
    assert_eq!(spec["priorityClassName"], "system-node-critical");
    let effects: Vec<_> = list(&spec["tolerations"]).iter().map(|t| text(&t["effect"])).collect();
    assert_eq!(effects, ["NoSchedule", "NoExecute"], "F-163");
    let agent = &list(&spec["containers"])[0];
    assert_eq!(agent["name"], "kube-flannel");
    assert_eq!(agent["command"], json!(["/opt/bin/flanneld"]));
    assert_eq!(agent["args"], json!(["--ip-masq", "--kube-subnet-mgr", "--healthz-port=8081"]));
    assert_eq!(
        agent["securityContext"]["capabilities"],
        json!({ "drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"] })
    );
    let mounts: BTreeSet<_> = list(&agent["volumeMounts"]).iter().map(|m| text(&m["mountPath"])).collect();
    for path in [
        "/run/flannel",
        "/etc/kube-flannel/",
        "/run/xtables.lock",
        "/var/lib/loden",
        model::cni::record::STATE_DIR,
        "/etc/cni/net.d",
    ] {
        assert!(mounts.contains(path), "{path}");
    }
    let cni: Value =
        serde_json::from_str(text(&of(&documents, "ConfigMap")["data"]["cni-conf.json"])).unwrap();
    assert_eq!((&cni["name"], &cni["cniVersion"]), (&json!("cbr0"), &json!("0.3.1")));
    let types: Vec<_> = list(&cni["plugins"]).iter().map(|p| text(&p["type"])).collect();
    assert_eq!(types, ["flannel", "portmap"]);
    model::config::NetConf::parse(net_conf(&documents)).unwrap();
}

/// (group, resource, verb), of all rules.
fn permissions(role: &Value) -> BTreeSet<(String, String, String)> {
    let strings = |value: &Value| list(value).iter().map(|v| text(v).to_owned()).collect::<Vec<_>>();
    let mut out = BTreeSet::new();
    for rule in list(&role["rules"]) {
        for group in strings(&rule["apiGroups"]) {
            for resource in strings(&rule["resources"]) {
                for verb in strings(&rule["verbs"]) {
                    out.insert((group.clone(), resource.clone(), verb));
                }
            }
        }
    }
    out
}

#[test]
fn permissions_are_flannels_and_events_are_apart() {
    let expected: BTreeSet<_> = [
        ("", "pods", "get"),
        ("", "nodes", "get"),
        ("", "nodes", "list"),
        ("", "nodes", "watch"),
        ("", "nodes/status", "patch"),
    ]
    .map(|(group, resource, verb)| (group.to_owned(), resource.to_owned(), verb.to_owned()))
    .into();
    assert_eq!(permissions(of(&all("deploy/kube-loden.yml"), "ClusterRole")), expected);
    let defaults = yaml::documents(&read("crates/packaging/tests/golden/defaults.yaml")).unwrap();
    assert_eq!(permissions(of(&defaults, "ClusterRole")), expected, "the chart");
    let events = all("deploy/rbac-events.yaml");
    for document in &events {
        assert_eq!(schema(document), Ok(()));
    }
    let resources: BTreeSet<_> = permissions(of(&events, "Role")).into_iter().map(|p| (p.1, p.2)).collect();
    let pair = |verb: &str| ("events".to_owned(), verb.to_owned());
    assert_eq!(resources, [pair("create"), pair("patch")].into());
}

#[test]
fn images_are_of_this_version() {
    for file in
        ["deploy/kube-loden.yml", "deploy/Containerfile", "deploy/overlays/example/kustomization.yaml"]
    {
        let wanted = packaging::image::VERSION;
        let versions: Vec<String> = read(file)
            .split(|c: char| c.is_whitespace() || c == ':' || c == '"')
            .filter(|word| {
                word.starts_with('v')
                    && word[1..].starts_with(|c: char| c.is_ascii_digit())
                    && word.contains('.')
            })
            .map(str::to_owned)
            .collect();
        assert!(!versions.is_empty() && versions.iter().all(|v| v == wanted), "{file}: {versions:?}");
    }
}

#[test]
fn kustomize_builds_the_base_and_the_overlays() {
    if !there("manifests::kustomize_builds_the_base_and_the_overlays", "kubectl") {
        return;
    }
    let build = |dir: &str| {
        let text = run("kubectl", &["kustomize", root().join(dir).to_str().unwrap()]);
        let documents = yaml::documents(&text).unwrap();
        check(dir, &documents);
        documents
    };
    let base = build("deploy/kubernetes");
    let sorted = |documents: &[Value]| documents.iter().map(Value::to_string).collect::<BTreeSet<_>>();
    assert_eq!(sorted(&base), sorted(&all("deploy/kube-loden.yml")));
    let example = build("deploy/overlays/example");
    assert!(net_conf(&example).contains("host-gw"));
    let spec = &of(&example, "DaemonSet")["spec"]["template"]["spec"];
    for container in list(&spec["initContainers"]).iter().chain(list(&spec["containers"])) {
        assert!(text(&container["image"]).starts_with("registry.example.net/network/loden:"));
    }
    assert_eq!(
        list(&spec["containers"])[0]["resources"]["requests"],
        json!({ "cpu": "100m", "memory": "100Mi" })
    );
    let fast = build("deploy/overlays/fast-path");
    let spec = &of(&fast, "DaemonSet")["spec"]["template"]["spec"];
    let agent = &list(&spec["containers"])[0];
    let rights = json!({ "add": ["NET_ADMIN", "NET_RAW", "BPF", "PERFMON"], "drop": ["ALL"] });
    assert_eq!(agent["securityContext"]["capabilities"], rights);
    // Beside the base's own words and directories.
    let base = &list(&of(&base, "DaemonSet")["spec"]["template"]["spec"]["containers"])[0];
    for (member, more) in [
        ("args", json!("--fast-path=auto")),
        ("volumeMounts", json!({ "name": "bpf", "mountPath": "/sys/fs/bpf" })),
    ] {
        let own: BTreeSet<String> = list(&agent[member]).iter().map(Value::to_string).collect();
        let wanted = list(&base[member]).iter().chain([&more]).map(Value::to_string).collect();
        assert_eq!(own, wanted, "{member}");
    }
    let selector = build("deploy/overlays/selector-app");
    assert_eq!(of(&selector, "DaemonSet")["spec"]["selector"]["matchLabels"], json!({ "app": "flannel" }));
}
