//! `helm template` for our chart.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::template::Templates;
use crate::{Result, yaml};

/// The order in which Helm installs what a chart of ours may have.
const KINDS: [&str; 8] = [
    "Namespace",
    "ServiceAccount",
    "ConfigMap",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "DaemonSet",
];

/// Renders a chart as `helm template NAME CHART --namespace NAMESPACE -f VALUES…` does; the texts of the
/// values files come in the order in which they count.
///
/// # Errors
/// A file cannot be read, or a template not evaluated.
pub fn render(dir: &Path, namespace: &str, values: &[String]) -> Result<String> {
    let read = |name: &str| {
        let file = dir.join(name);
        fs::read_to_string(&file).map_err(|error| format!("read {}: {error}", file.display()))
    };
    let chart = yaml::document(&read("Chart.yaml")?)?;
    let mut all = yaml::document(&read("values.yaml")?)?;
    for text in values {
        merge(&mut all, &yaml::document(text)?);
    }
    let root = json!({
        "Values": all,
        "Release": { "Namespace": namespace, "Name": "loden", "Service": "Helm" },
        "Chart": { "Name": chart["name"], "Version": chart["version"], "AppVersion": chart["appVersion"] },
    });
    let mut names: Vec<String> = fs::read_dir(dir.join("templates"))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    let mut templates = Templates::default();
    for name in &names {
        templates.add(name, &read(&format!("templates/{name}"))?)?;
    }
    let mut documents = Vec::new();
    for name in names.iter().filter(|name| name.ends_with(".yaml")) {
        let text = templates.render(name, &root)?;
        for document in text.split("\n---").map(str::trim).filter(|document| !document.is_empty()) {
            let kind = document.lines().find_map(|line| line.strip_prefix("kind: ")).unwrap_or_default();
            let place = KINDS.iter().position(|known| *known == kind);
            let place =
                place.ok_or_else(|| format!("{name}: the order of kind {kind:?} is not known here"))?;
            let source = chart["name"].as_str().unwrap_or_default();
            documents.push((place, format!("---\n# Source: {source}/templates/{name}\n{document}\n")));
        }
    }
    documents.sort_by_key(|(place, _)| *place);
    Ok(documents.into_iter().map(|(_, text)| text).collect())
}

/// Maps are merged, null deletes, all else replaces.
fn merge(into: &mut Value, from: &Value) {
    let (Value::Object(into), Value::Object(from)) = (into, from) else { return };
    for (key, value) in from {
        match (into.get_mut(key), value) {
            (_, Value::Null) => drop(into.remove(key)),
            (Some(there @ Value::Object(_)), Value::Object(_)) => merge(there, value),
            _ => drop(into.insert(key.clone(), value.clone())),
        }
    }
}
