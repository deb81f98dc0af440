use serde_json::{Value, json};

use super::apply;
use crate::kind::{NODES, PODS};

const STRATEGIC: &str = "application/strategic-merge-patch+json";
const MERGE: &str = "application/merge-patch+json";
const JSON: &str = "application/json-patch+json";

fn node() -> Value {
    json!({
        "metadata": {"name": "n", "annotations": {"a": "1", "b": "2"}},
        "spec": {"podCIDRs": ["10.244.1.0/24"], "taints": [{"key": "t"}]},
        "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": "False"}]},
    })
}

/// (form, patch, pointer, what is there afterwards)
#[test]
fn each_form_changes_what_it_should() {
    let table = [
        (
            STRATEGIC,
            json!({"metadata": {"annotations": {"a": null, "c": "3"}}}),
            "/metadata/annotations",
            json!({"b": "2", "c": "3"}),
        ),
        (
            STRATEGIC,
            json!({"status": {"conditions": [{"type": "NetworkUnavailable", "status": "False"}]}}),
            "/status/conditions",
            json!([{"type": "NetworkUnavailable", "status": "False"}, {"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": "False"}]),
        ),
        (
            STRATEGIC,
            json!({"status": {"conditions": [{"type": "Ready", "reason": "R"}]}}),
            "/status/conditions/0",
            json!({"type": "Ready", "status": "True", "reason": "R"}),
        ),
        (
            STRATEGIC,
            json!({"status": {"conditions": [{"type": "Ready", "$patch": "delete"}]}}),
            "/status/conditions",
            json!([{"type": "DiskPressure", "status": "False"}]),
        ),
        (
            STRATEGIC,
            json!({"status": {"$setElementOrder/conditions": [{"type": "DiskPressure"}, {"type": "Ready"}]}}),
            "/status/conditions/0/type",
            json!("DiskPressure"),
        ),
        (
            STRATEGIC,
            json!({"metadata": {"annotations": {"$patch": "replace", "z": "9"}}}),
            "/metadata/annotations",
            json!({"z": "9"}),
        ),
        (STRATEGIC, json!({"spec": {"taints": [{"key": "u"}]}}), "/spec/taints", json!([{"key": "u"}])),
        (
            STRATEGIC,
            json!({"spec": {"podCIDRs": ["fd00::/64"]}}),
            "/spec/podCIDRs",
            json!(["fd00::/64", "10.244.1.0/24"]),
        ),
        (
            STRATEGIC,
            json!({"spec": {"$deleteFromPrimitiveList/podCIDRs": ["10.244.1.0/24"]}}),
            "/spec/podCIDRs",
            json!([]),
        ),
        (
            MERGE,
            json!({"status": {"conditions": [{"type": "X"}]}}),
            "/status/conditions",
            json!([{"type": "X"}]),
        ),
        (
            MERGE,
            json!({"metadata": {"annotations": {"a": null}}}),
            "/metadata/annotations",
            json!({"b": "2"}),
        ),
        (
            JSON,
            json!([{"op": "add", "path": "/metadata/annotations/x~1y", "value": "1"}]),
            "/metadata/annotations/x~1y",
            json!("1"),
        ),
        (
            JSON,
            json!([{"op": "remove", "path": "/metadata/annotations/a"}]),
            "/metadata/annotations",
            json!({"b": "2"}),
        ),
        (
            JSON,
            json!([{"op": "test", "path": "/metadata/name", "value": "n"}, {"op": "add", "path": "/spec/taints/-", "value": 1}]),
            "/spec/taints/1",
            json!(1),
        ),
        (
            JSON,
            json!([{"op": "move", "from": "/metadata/annotations/a", "path": "/metadata/annotations/d"}]),
            "/metadata/annotations",
            json!({"b": "2", "d": "1"}),
        ),
    ];
    for (form, patch, pointer, wanted) in table {
        let patched = apply(&NODES, form, node(), &patch).unwrap();
        assert_eq!(patched.pointer(pointer), Some(&wanted), "{form} {patch}");
    }
}

#[test]
fn patches_that_cannot_be_are_refused() {
    let table = [
        (STRATEGIC, json!([]), 400),
        (STRATEGIC, json!({"status": {"conditions": [{"status": "True"}]}}), 500),
        (STRATEGIC, json!({"metadata": {"$patch": "frobnicate"}}), 400),
        (JSON, json!({}), 400),
        (JSON, json!([{"op": "remove", "path": "/metadata/none"}]), 422),
        (JSON, json!([{"op": "test", "path": "/metadata/name", "value": "other"}]), 422),
        ("text/plain", json!({}), 415),
    ];
    for (form, patch, code) in table {
        assert_eq!(apply(&NODES, form, node(), &patch).unwrap_err().code, code, "{form} {patch}");
    }
}

#[test]
fn lists_inside_lists_are_merged_too() {
    let pod = json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 80}]}]}});
    let patch = json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 81}]}]}});
    let patched = apply(&PODS, STRATEGIC, pod, &patch).unwrap();
    assert_eq!(
        patched["spec"]["containers"][0]["ports"],
        json!([{"containerPort": 81}, {"containerPort": 80}])
    );
}

#[test]
fn what_a_manager_applies_no_more_goes_and_what_others_wrote_stays() {
    let first = json!({"metadata": {"annotations": {"mine": "1", "also": "1"}}, "status": {"conditions": [{"type": "Mine", "status": "True"}]}});
    let after_first = super::server_side(&NODES, node(), None, &first).unwrap();
    assert_eq!(after_first["metadata"]["annotations"], json!({"a": "1", "b": "2", "mine": "1", "also": "1"}));
    let second = json!({"metadata": {"annotations": {"mine": "2"}}});
    let after_second = super::server_side(&NODES, after_first, Some(&first), &second).unwrap();
    assert_eq!(after_second["metadata"]["annotations"], json!({"a": "1", "b": "2", "mine": "2"}));
    assert_eq!(after_second["status"], node()["status"]);
}
