//! One list of requests, asked of the double and, where there is one, of a real server; the answers of the
//! real one are recorded beside this file, reduced to what clients rely on.
//!
//! `KUBEBUILDER_ASSETS=FOLDER` names `kube-apiserver` and `etcd`; with `LODEN_RECORD=1` too the real answers
//! are written down again.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use apidouble::{Client, Cluster, Real, Stage, Who};
use serde_json::{Map, Value, json};

const STRATEGIC: &str = "application/strategic-merge-patch+json";
const MERGE: &str = "application/merge-patch+json";
const JSON_PATCH: &str = "application/json-patch+json";
const NODES: &str = "/api/v1/nodes";
const PODS: &str = "/api/v1/namespaces/kube-flannel/pods";

/// How long a watch may stay silent before it has nothing more to say.
const SILENCE: Duration = Duration::from_millis(1500);

/// In the bookmark that ends what was there at the beginning of a watch.
const INITIAL_END: &str = "/object/metadata/annotations/k8s.io~1initial-events-end";

struct Script<'a> {
    cluster: &'a dyn Cluster,
    facts: Vec<Value>,
}

impl Script<'_> {
    fn client(&self, who: Who) -> Client {
        self.cluster.client(who)
    }

    /// Asks, and notes the code and, of an object, what `keep` points at; of a refusal all.
    fn ask(&mut self, who: Who, line: &str, form: &str, body: Value, keep: &[&str]) -> Value {
        let (method, path) = line.split_once(' ').unwrap();
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let reply = self.client(who).ask(method, path, form, &text).unwrap();
        let json = reply.json();
        let asked: String = plain(&format!("{line} {text}")).chars().take(300).collect();
        let mut fact = json!({"asked": asked, "code": reply.code});
        if let Some(seconds) = reply.headers.get("retry-after") {
            fact["retry-after"] = seconds.as_str().into();
        }
        fact["answer"] = match &json["kind"] {
            kind if kind == "Status" => status(json.clone()),
            _ if json.is_null() => reply.text.clone().into(),
            kind => json!({"kind": kind, "kept": kept(&json, keep)}),
        };
        self.facts.push(fact);
        json
    }

    fn get(&mut self, path: &str, keep: &[&str]) -> Value {
        self.ask(Who::Flannel, &format!("GET {path}"), "", Value::Null, keep)
    }

    fn admin(&mut self, line: &str, form: &str, body: Value, keep: &[&str]) -> Value {
        self.ask(Who::Admin, line, form, body, keep)
    }

    /// Watches while `act` is done, and notes the events about nodes whose names begin with `t-`.
    fn watch(
        &mut self,
        query: &str,
        keep: &[&str],
        events: usize,
        act: impl FnOnce(&mut Self),
    ) -> Vec<Value> {
        let path = format!("{NODES}?watch=true&{query}");
        let mut watch = self.client(Who::Flannel).begin("GET", &path, "", "").unwrap();
        let at = self.facts.len();
        self.facts.push(Value::Null);
        act(self);
        let mut seen = Vec::new();
        let mut end = "open";
        loop {
            let limit = if seen.len() < events { Duration::from_secs(20) } else { SILENCE };
            match watch.event(limit) {
                // When bookmarks come is the server's choice, but for the one after the first list.
                Ok(Some(event)) if event["type"] == "BOOKMARK" && event.pointer(INITIAL_END).is_none() => {}
                Ok(Some(event)) => seen.push(event),
                Ok(None) => {
                    end = "ended";
                    break;
                }
                Err(_) => break,
            }
        }
        let lines: Vec<_> = seen.iter().map(|event| reduced(event, keep)).collect();
        self.facts[at] = json!({"watched": plain(query), "code": watch.code, "events": lines, "then": end});
        seen
    }
}

fn reduced(event: &Value, keep: &[&str]) -> Value {
    let object = &event["object"];
    if event["type"] == "ERROR" {
        return json!({"type": "ERROR", "object": status(object.clone())});
    }
    if event["type"] == "BOOKMARK" {
        let annotations = &object["metadata"]["annotations"];
        return json!({"type": "BOOKMARK", "kind": object["kind"], "annotations": annotations});
    }
    json!({"type": event["type"], "name": object["metadata"]["name"], "kept": kept(object, keep)})
}

fn kept(object: &Value, keep: &[&str]) -> Map<String, Value> {
    keep.iter().map(|path| ((*path).to_owned(), object.pointer(path).cloned().unwrap_or_default())).collect()
}

/// A refusal without numbers that differ from run to run.
fn status(mut status: Value) -> Value {
    if let Some(message) = status["message"].as_str() {
        status["message"] = plain(message).into();
    }
    if let Some(causes) = status.pointer_mut("/details/causes").and_then(Value::as_array_mut) {
        for cause in &mut *causes {
            if let Some(message) = cause["message"].as_str() {
                cause["message"] = plain(message).into();
            }
        }
        // Some checks are made, and told, more than once.
        causes.dedup();
    }
    if let Some(details) = status.get_mut("details").and_then(Value::as_object_mut) {
        details.remove("uid");
    }
    if let Some(metadata) = status["metadata"].as_object_mut()
        && metadata.contains_key("continue")
    {
        metadata.insert("continue".into(), "TOKEN".into());
    }
    status
}

/// Revisions, uids and page tokens by their names.
fn plain(text: &str) -> String {
    let mut words = Vec::new();
    for word in text.split_inclusive([' ', '&', '?', '=', ',', '(', ')', '"']) {
        let (core, end) =
            word.split_at(word.trim_end_matches([' ', '&', '?', '=', ',', '(', ')', '"']).len());
        let is_number = core.parse::<u64>().is_ok_and(|number| number > 1);
        let before = words.last().map_or("", String::as_str).to_owned();
        let about_versions = ["version: ", "(", "current: ", "resourceVersion="];
        let core = match core {
            core if core.len() == 36 && core.matches('-').count() == 4 => "UID",
            _ if is_number
                && (about_versions.iter().any(|end| before.ends_with(end))
                    || before == "resourceVersion="
                    || end == ")") =>
            {
                "N"
            }
            _ if before == "continue=" => "TOKEN",
            core => core,
        };
        words.push(format!("{core}{end}"));
    }
    words.concat()
}

fn node(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"role": "test"}},
        "spec": {"podCIDR": "10.244.7.0/24", "podCIDRs": ["10.244.7.0/24"]},
    })
}

fn version(object: &Value) -> String {
    object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned()
}

fn play(cluster: &dyn Cluster) -> Vec<Value> {
    let mut script = Script { cluster, facts: Vec::new() };
    access(&mut script);
    writes(&mut script);
    lists(&mut script);
    watches(&mut script);
    pods(&mut script);
    script.facts
}

fn access(script: &mut Script<'_>) {
    for (who, line) in [
        (Who::Stranger, "GET /api/v1/nodes"),
        (Who::Nobody, "GET /api/v1/nodes"),
        (Who::Nobody, "GET /api/v1/nodes/t-1"),
        (Who::Flannel, "DELETE /api/v1/nodes/t-1"),
        (Who::Flannel, "GET /api/v1/namespaces/kube-flannel/pods"),
        (Who::Flannel, "GET /api/v1/pods"),
        (Who::Flannel, "GET /apis/discovery.k8s.io/v1/endpointslices"),
        (Who::Flannel, "GET /api/v1/namespaces/kube-flannel/services/s"),
        (Who::Flannel, "GET /metrics"),
        (Who::Flannel, "GET /api/v1/nodes/none"),
        (Who::Admin, "GET /api/v1/nodes/none"),
        (Who::Admin, "GET /apis/discovery.k8s.io/v1/namespaces/default/endpointslices/none"),
        (Who::Admin, "GET /api/v1/nowhere"),
        (Who::Admin, "GET /apis/nowhere.io/v1/things"),
        (Who::Admin, "DELETE /api/v1/nodes/none"),
        (Who::Admin, "GET /readyz"),
    ] {
        script.ask(who, line, "", Value::Null, &[]);
    }
    let body = json!({"metadata": {"annotations": {"a": "1"}}});
    script.ask(Who::Flannel, "PATCH /api/v1/nodes/t-1", STRATEGIC, body.clone(), &[]);
    script.ask(Who::Flannel, "PATCH /api/v1/nodes/t-1/status", STRATEGIC, body, &[]);
    script.ask(
        Who::Flannel,
        "POST /api/v1/namespaces/default/events",
        "",
        json!({"metadata": {"name": "e"}}),
        &[],
    );
}

fn writes(script: &mut Script<'_>) {
    let keep = &[
        "/metadata/name",
        "/metadata/labels",
        "/metadata/annotations",
        "/spec/podCIDRs",
        "/status/conditions",
    ];
    let short = &["/metadata/annotations", "/status/conditions"];
    let made = script.admin("POST /api/v1/nodes", "", node("t-1"), keep);
    script.admin("POST /api/v1/nodes", "", node("t-1"), keep);
    script.admin("POST /api/v1/nodes", "", json!({"metadata": {"name": "No_Good"}}), keep);
    script.admin("POST /api/v1/nodes", "", json!({"metadata": {}}), keep);
    script.admin(
        "POST /api/v1/nodes",
        "",
        json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "x"}}),
        keep,
    );
    let mut set = node("t-9");
    set["metadata"]["resourceVersion"] = "7".into();
    script.admin("POST /api/v1/nodes", "", set, keep);
    let patch = json!({
        "metadata": {"annotations": {"flannel.alpha.coreos.com/public-ip": "192.0.2.1", "t/gone": "x"}},
        "status": {"conditions": [{"type": "NetworkUnavailable", "status": "False", "reason": "FlannelIsUp",
            "message": "Flannel is running on this node", "lastHeartbeatTime": "2026-11-26T10:00:00Z",
            "lastTransitionTime": "2026-11-26T10:00:00Z"}]},
    });
    let status = "PATCH /api/v1/nodes/t-1/status";
    let first = script.ask(Who::Flannel, status, STRATEGIC, patch.clone(), short);
    let again = script.ask(Who::Flannel, status, STRATEGIC, patch, short);
    script.facts.push(json!({"an equal patch writes": version(&first) != version(&again)}));
    for (form, body) in [
        (STRATEGIC, json!({"metadata": {"annotations": {"t/gone": null}}})),
        (STRATEGIC, json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}})),
        (STRATEGIC, json!({"status": {"conditions": [{"type": "Ready", "reason": "R"}]}})),
        (STRATEGIC, json!({"status": {"conditions": [{"type": "Ready", "$patch": "delete"}]}})),
        (
            STRATEGIC,
            json!({"status": {"$setElementOrder/conditions": [{"type": "A"}, {"type": "NetworkUnavailable"}], "conditions": [{"type": "A", "status": "True"}]}}),
        ),
        (STRATEGIC, json!({"status": {"conditions": [{"status": "True"}]}})),
        (STRATEGIC, json!({"metadata": {"annotations": {"bad key!": "1"}}})),
        (STRATEGIC, json!({"metadata": {"annotations": {"a": 1}}})),
        (STRATEGIC, json!({"metadata": {"annotations": {"a": "x".repeat(300_000)}}})),
        (STRATEGIC, json!({"metadata": {"resourceVersion": "1", "annotations": {"a": "1"}}})),
        (
            STRATEGIC,
            json!({"metadata": {"uid": "00000000-0000-0000-0000-000000000000", "annotations": {"a": "1"}}}),
        ),
        (STRATEGIC, json!({"metadata": {"labels": {"via": "status"}}, "spec": {"unschedulable": true}})),
        (MERGE, json!({"metadata": {"annotations": {"m": "1"}}})),
        (MERGE, json!({"status": {"conditions": [{"type": "B", "status": "True"}]}})),
        (JSON_PATCH, json!([{"op": "add", "path": "/metadata/annotations/j", "value": "1"}])),
        (JSON_PATCH, json!([{"op": "test", "path": "/metadata/name", "value": "x"}])),
        (JSON_PATCH, json!([{"op": "remove", "path": "/metadata/annotations/none"}])),
        ("text/plain", json!({})),
    ] {
        script.ask(Who::Flannel, status, form, body, short);
    }
    script.get(
        "/api/v1/nodes/t-1",
        &[
            "/metadata/annotations",
            "/metadata/labels",
            "/spec/podCIDRs",
            "/spec/unschedulable",
            "/status/conditions",
        ],
    );
    let main = "PATCH /api/v1/nodes/t-1";
    script.admin(main, MERGE, json!({"spec": {"podCIDR": "10.9.0.0/24", "podCIDRs": ["10.9.0.0/24"]}}), keep);
    script.admin(main, MERGE, json!({"metadata": {"name": "other"}}), keep);
    script.admin(
        main,
        STRATEGIC,
        json!({"metadata": {"labels": {"l": "1"}}, "status": {"conditions": null}}),
        short,
    );
    let mut put = script.get("/api/v1/nodes/t-1", &[]);
    put["metadata"]["annotations"]["put"] = "1".into();
    script.put("t-1", &put, &["/metadata/annotations"]);
    script.put("t-1", &put, &["/metadata/annotations"]);
    script.put("t-2", &put, &[]);
    put["metadata"]["uid"] = "00000000-0000-0000-0000-000000000000".into();
    put["metadata"]["resourceVersion"] = Value::Null;
    script.put("t-1", &put, &[]);
    let uid = json!({"preconditions": {"uid": "00000000-0000-0000-0000-000000000000"}});
    script.admin("DELETE /api/v1/nodes/t-1", "", uid, &[]);
    script.admin("DELETE /api/v1/nodes/t-1", "", Value::Null, &[]);
    let reborn = script.admin("POST /api/v1/nodes", "", node("t-1"), keep);
    script
        .facts
        .push(json!({"made again, another uid": reborn["metadata"]["uid"] != made["metadata"]["uid"]}));
}

impl Script<'_> {
    /// PUT of a whole object; the facts name only the node.
    fn put(&mut self, name: &str, object: &Value, keep: &[&str]) {
        self.ask(Who::Admin, &format!("PUT /api/v1/nodes/{name}"), "", object.clone(), keep);
        let at = self.facts.len() - 1;
        self.facts[at]["asked"] = format!("PUT /api/v1/nodes/{name}").into();
    }
}

fn lists(script: &mut Script<'_>) {
    for name in ["t-2", "t-3", "t-4"] {
        script.admin("POST /api/v1/nodes", "", node(name), &[]);
    }
    let names = &["/items/0/metadata/name", "/items/1/metadata/name", "/items/2/metadata/name", "/items/4"];
    let whole = script.get(NODES, names);
    let then = version(&whole);
    for query in [
        "resourceVersion=0",
        "labelSelector=role%3Dtest",
        "labelSelector=role%3Dnone",
        "fieldSelector=metadata.name%3Dt-3",
        "fieldSelector=spec.podCIDR%3Dx",
        "labelSelector=a%20in%20b",
        "resourceVersion=x",
        "limit=x",
        "resourceVersionMatch=Exact",
        "resourceVersionMatch=NotOlderThan",
        "resourceVersion=0&resourceVersionMatch=Exact",
        "resourceVersion=5&resourceVersionMatch=Older",
        "sendInitialEvents=true",
        "resourceVersion=99999999",
        "continue=%21",
    ] {
        script.get(&format!("{NODES}?{query}"), names);
    }
    script.admin("DELETE /api/v1/nodes/t-4", "", Value::Null, &[]);
    script.get(
        &format!("{NODES}?resourceVersion={then}&resourceVersionMatch=Exact"),
        &["/items/3/metadata/name"],
    );
    script.get(&format!("{NODES}?resourceVersion={then}&resourceVersionMatch=NotOlderThan"), names);
    let page = script.get(
        &format!("{NODES}?limit=2"),
        &["/items/1/metadata/name", "/items/2", "/metadata/remainingItemCount"],
    );
    script.admin("DELETE /api/v1/nodes/t-3", "", Value::Null, &[]);
    let token = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
    let rest = script.get(
        &format!("{NODES}?limit=2&continue={token}"),
        &["/items/0/metadata/name", "/items/1", "/metadata/continue"],
    );
    script.facts.push(json!({"a page is of the first page's revision": version(&rest) == version(&page)}));
    script.get(&format!("/api/v1/nodes/t-1?resourceVersion={then}"), &["/metadata/name"]);
    script.get("/api/v1/nodes/t-1?resourceVersion=99999999", &["/metadata/name"]);
}

fn watches(script: &mut Script<'_>) {
    let keep = &["/metadata/annotations/w", "/metadata/labels"];
    let now = version(&script.client(Who::Admin).get(NODES).unwrap().json());
    let touch = |script: &mut Script<'_>, name: &str, value: &str| {
        let body = json!({"metadata": {"annotations": {"w": value}}});
        script.admin(&format!("PATCH {NODES}/{name}"), MERGE, body, &[]);
    };
    script.watch(&format!("resourceVersion={now}&timeoutSeconds=60"), keep, 4, |script| {
        touch(script, "t-1", "1");
        touch(script, "t-2", "2");
        script.admin("POST /api/v1/nodes", "", node("t-5"), &[]);
        script.admin("DELETE /api/v1/nodes/t-5", "", Value::Null, &[]);
    });
    // From the past: what was missed comes.
    script.watch(&format!("resourceVersion={now}&timeoutSeconds=60"), keep, 4, |_| {});
    // Without a revision: what is there comes first.
    script.watch("timeoutSeconds=60", keep, 2, |_| {});
    script.watch("resourceVersion=0&timeoutSeconds=60", keep, 2, |_| {});
    script.watch("timeoutSeconds=1", keep, 3, |_| {});
    let initial =
        "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=60";
    script.watch(initial, keep, 4, |script| touch(script, "t-1", "3"));
    script.watch(&format!("{initial}&resourceVersion="), keep, 3, |_| {});
    script.watch(
        "sendInitialEvents=false&resourceVersionMatch=NotOlderThan&timeoutSeconds=60",
        keep,
        1,
        |script| touch(script, "t-1", "4"),
    );
    // A label that comes and goes takes the node into the selection and out.
    let now = version(&script.client(Who::Admin).get(NODES).unwrap().json());
    script.watch(
        &format!("resourceVersion={now}&labelSelector=in%3D1&timeoutSeconds=60"),
        keep,
        3,
        |script| {
            for label in [json!("1"), json!("1"), Value::Null] {
                let body = json!({"metadata": {"labels": {"in": label}, "annotations": {"w": label}}});
                script.admin(&format!("PATCH {NODES}/t-1"), MERGE, body, &[]);
                touch(script, "t-1", if label.is_null() { "6" } else { "5" });
            }
        },
    );
    script.watch(
        &format!("resourceVersion={now}&fieldSelector=metadata.name%3Dt-2&timeoutSeconds=60"),
        keep,
        1,
        |script| {
            touch(script, "t-2", "7");
        },
    );
    for query in [
        "watch=true&sendInitialEvents=true",
        "watch=true&resourceVersionMatch=NotOlderThan",
        "watch=true&resourceVersion=x",
        "watch=true&timeoutSeconds=x",
    ] {
        script.get(&format!("{NODES}?{query}"), &[]);
    }
    // A watch from nowhere ends its list in the same way.
    script.watch("resourceVersion=0&allowWatchBookmarks=true&timeoutSeconds=60", &[], 3, |_| {});
}

fn pods(script: &mut Script<'_>) {
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "t-1", "containers": [{"name": "c", "image": "i"}]}});
    script.admin(
        &format!("POST {PODS}"),
        "",
        pod,
        &["/metadata/namespace", "/spec/nodeName", "/status/phase"],
    );
    script.get(&format!("{PODS}/p"), &["/spec/nodeName"]);
    script.get(&format!("{PODS}/none"), &[]);
    script.admin("GET /api/v1/namespaces/none/pods", "", Value::Null, &["/items"]);
    script.admin(
        "GET /api/v1/pods?fieldSelector=spec.nodeName%3Dt-1",
        "",
        Value::Null,
        &["/items/0/metadata/name", "/items/1"],
    );
    script.admin(
        "POST /api/v1/namespaces/none/pods",
        "",
        json!({"metadata": {"name": "q"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}),
        &[],
    );
    script.admin("POST /api/v1/namespaces/default/pods", "", json!({"metadata": {"name": "q", "namespace": "other"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}), &[]);
    let event = json!({
        "metadata": {"generateName": "t-1."}, "reason": "NoPodCIDR", "message": "m", "type": "Warning",
        "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": "t-1"},
    });
    script.admin(
        "POST /api/v1/namespaces/default/events",
        "",
        event,
        &["/reason", "/involvedObject/name", "/type"],
    );
    script.admin(
        "GET /api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dt-1,reason%3DNoPodCIDR",
        "",
        Value::Null,
        &["/items/0/message", "/items/1"],
    );
    let slice = json!({"metadata": {"name": "s", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4", "endpoints": [{"addresses": ["10.244.7.2"]}], "ports": [{"port": 80, "protocol": "TCP", "name": ""}]});
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    script.admin(&format!("POST {slices}"), "", slice, &["/endpoints/0/addresses", "/addressType"]);
    script.admin(
        &format!("GET {slices}?labelSelector=kubernetes.io/service-name%3Dweb"),
        "",
        Value::Null,
        &["/kind", "/items/0/metadata/name"],
    );
    script.admin(&format!("DELETE {slices}/s"), "", Value::Null, &[]);
    script.admin(
        "POST /api/v1/namespaces",
        "",
        json!({"metadata": {"name": "t-ns"}}),
        &["/metadata/labels", "/status/phase"],
    );
    script.admin("GET /version", "", Value::Null, &["/major"]);
}

fn recorded() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/transcript.json")
}

fn compare(name: &str, played: &[Value]) {
    let text = fs::read_to_string(recorded()).unwrap();
    let wanted: Vec<Value> = serde_json::from_str(&text).unwrap();
    let mut faults = Vec::new();
    for (number, (got, wanted)) in played.iter().zip(&wanted).enumerate() {
        if got != wanted {
            faults.push(format!("{number}\n  recorded {wanted}\n  {name:8} {got}"));
        }
    }
    assert!(faults.is_empty(), "{} answers differ:\n{}", faults.len(), faults.join("\n"));
    assert_eq!(played.len(), wanted.len(), "{name}: not as many answers as recorded");
}

#[test]
fn the_double_answers_as_recorded() {
    compare("double", &play(&Stage::start().unwrap()));
}

#[test]
fn a_real_server_answers_as_recorded() {
    let Some(real) = Real::start().unwrap() else {
        println!(
            "SKIP a_real_server_answers_as_recorded: KUBEBUILDER_ASSETS names no kube-apiserver and etcd"
        );
        return;
    };
    let played = play(&real);
    if std::env::var_os("LODEN_RECORD").is_some() {
        let lines: Vec<_> = played.iter().map(Value::to_string).collect();
        fs::write(recorded(), format!("[\n{}\n]\n", lines.join(",\n"))).unwrap();
    }
    compare("real", &played);
}
