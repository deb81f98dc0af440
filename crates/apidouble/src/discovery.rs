//! What a client asks before it asks for objects: versions, groups, health.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::body::Body;
use crate::call::Call;
use crate::kind::{KINDS, Kind};
use crate::refusal::Refusal;

/// The version this server says it has.
pub const VERSION: &str = "v1.36.2";

/// The answer for a path that is no object.
pub fn answer(call: &Call) -> Result<Body, Refusal> {
    if call.verb != "get" {
        return Err(Refusal::no_such_path());
    }
    let steps: Vec<&str> = call.path.trim_matches('/').split('/').collect();
    let value = match &steps[..] {
        ["healthz" | "livez" | "readyz", ..] => return Ok(Body::of("ok")),
        ["version"] => json!({
            "major": "1", "minor": "36", "gitVersion": VERSION, "gitCommit": "", "gitTreeState": "clean",
            "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "", "platform": "linux/amd64",
        }),
        ["api"] => json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": "127.0.0.1"}],
        }),
        ["apis"] => json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups()}),
        ["api", version] => resources("", version)?,
        ["apis", group, ..] if KINDS.into_iter().all(|kind| kind.group != *group) => {
            return Err(Refusal::nothing_there());
        }
        ["apis", group] => groups()
            .into_iter()
            .find(|known| known["name"] == **group)
            .map(|mut group| {
                group["kind"] = "APIGroup".into();
                group["apiVersion"] = "v1".into();
                group
            })
            .ok_or_else(Refusal::no_such_path)?,
        ["apis", group, version] => resources(group, version)?,
        _ => return Err(Refusal::no_such_path()),
    };
    Ok(Body::of(format!("{value}\n")))
}

fn groups() -> Vec<Value> {
    let names: BTreeSet<_> = KINDS.into_iter().filter(|kind| !kind.group.is_empty()).collect();
    let mut known: Vec<Value> = Vec::new();
    for kind in names {
        let version = json!({"groupVersion": kind.api_version(), "version": kind.version});
        if known.last().is_none_or(|last| last["name"] != kind.group) {
            known.push(
                json!({"name": kind.group, "versions": [version.clone()], "preferredVersion": version}),
            );
        }
    }
    known
}

fn resources(group: &str, version: &str) -> Result<Value, Refusal> {
    let here: Vec<&Kind> =
        KINDS.into_iter().filter(|kind| (kind.group, kind.version) == (group, version)).collect();
    let first = here.first().ok_or_else(Refusal::no_such_path)?;
    let mut list = Vec::new();
    for kind in &here {
        let verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
        let mut entry = json!({
            "name": kind.plural, "singularName": kind.name.to_lowercase(), "namespaced": kind.namespaced,
            "kind": kind.name, "verbs": verbs,
        });
        if !kind.short.is_empty() {
            entry["shortNames"] = json!([kind.short]);
        }
        list.push(entry);
        if kind.status {
            list.push(json!({
                "name": format!("{}/status", kind.plural), "singularName": "", "namespaced": kind.namespaced,
                "kind": kind.name, "verbs": ["get", "patch", "update"],
            }));
        }
    }
    Ok(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": first.api_version(), "resources": list,
    }))
}
