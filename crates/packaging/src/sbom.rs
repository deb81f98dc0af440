//! Bills of materials: what is linked into a program, as CycloneDX 1.5 (JSON), from `cargo metadata` and
//! `Cargo.lock`. The same lock file gives the same bytes: no time, no random serial number.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::{Value, json};

use crate::Result;

/// The bill of the programs of these packages of the workspace. Crates that only build or test something
/// are left out.
///
/// # Errors
/// cargo fails, or does not know a package.
pub fn of(packages: &[&str]) -> Result<String> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version", "1", "--locked"])
        .output()
        .map_err(|error| format!("start cargo metadata: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim()).into());
    }
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let root = metadata["workspace_root"].as_str().unwrap_or_default();
    let lock = std::fs::read_to_string(format!("{root}/Cargo.lock"))
        .map_err(|error| format!("read Cargo.lock: {error}"))?;
    bill(&metadata, &checksums(&lock), packages)
}

/// Name and version to SHA-256, of all crates from a registry.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let mut out = BTreeMap::new();
    for package in lock.split("[[package]]").skip(1) {
        let value = |key: &str| {
            let line = package.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
            line.map(|text| text.trim_matches('"').to_owned())
        };
        if let (Some(name), Some(version), Some(sum)) = (value("name"), value("version"), value("checksum")) {
            out.insert((name, version), sum);
        }
    }
    out
}

fn bill(metadata: &Value, checksums: &BTreeMap<(String, String), String>, roots: &[&str]) -> Result<String> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages: BTreeMap<String, Value> =
        list(&metadata["packages"]).into_iter().map(|package| (text(&package["id"]), package)).collect();
    let members: BTreeSet<String> = list(&metadata["workspace_members"]).iter().map(text).collect();
    let mut linked: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in list(&metadata["resolve"]["nodes"]) {
        let normal = |dep: &Value| list(&dep["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
        let macros = |id: &str| {
            let targets = packages.get(id).map(|package| list(&package["targets"])).unwrap_or_default();
            targets.iter().any(|target| list(&target["kind"]).iter().any(|kind| kind == "proc-macro"))
        };
        let deps = list(&node["deps"]);
        let deps =
            deps.iter().filter(|dep| normal(dep)).map(|dep| text(&dep["pkg"])).filter(|id| !macros(id));
        linked.insert(text(&node["id"]), deps.collect());
    }
    let mut todo = Vec::new();
    for root in roots {
        let id = members.iter().find(|id| packages.get(*id).is_some_and(|package| package["name"] == *root));
        todo.push(id.cloned().ok_or_else(|| format!("the workspace has no package {root}"))?);
    }
    let mut found = BTreeSet::new();
    while let Some(id) = todo.pop() {
        if found.insert(id.clone()) {
            todo.extend(linked.get(&id).into_iter().flatten().cloned());
        }
    }
    let name = |id: &str| {
        let package = packages.get(id).cloned().unwrap_or_default();
        (text(&package["name"]), text(&package["version"]))
    };
    let url = |id: &str| {
        let (name, version) = name(id);
        format!("pkg:cargo/{name}@{version}")
    };
    let mut components = BTreeMap::new();
    let mut dependencies = BTreeMap::new();
    for id in &found {
        let (crate_name, version) = name(id);
        let mut component = json!({
            "type": "library",
            "bom-ref": url(id),
            "name": crate_name,
            "version": version,
            "purl": url(id),
        });
        if let Some(license) = packages.get(id).and_then(|package| package["license"].as_str()) {
            // Before SPDX expressions, crates separated alternatives by a slash.
            let expression = license.replace(" / ", " OR ").replace('/', " OR ");
            component["licenses"] = json!([{ "expression": expression }]);
        }
        if let Some(sum) = checksums.get(&(crate_name, version)) {
            component["hashes"] = json!([{ "alg": "SHA-256", "content": sum }]);
        }
        components.insert(url(id), component);
        let on: BTreeSet<String> =
            linked.get(id).into_iter().flatten().filter(|id| found.contains(*id)).map(|id| url(id)).collect();
        dependencies.insert(url(id), json!({ "ref": url(id), "dependsOn": on }));
    }
    let bom = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "name": if roots.len() > 1 { "loden" } else { "loden-cni" },
                "version": env!("CARGO_PKG_VERSION"),
                "licenses": [{ "expression": "Apache-2.0" }],
            },
        },
        "components": components.into_values().collect::<Vec<_>>(),
        "dependencies": dependencies.into_values().collect::<Vec<_>>(),
    });
    Ok(format!("{bom:#}\n"))
}
