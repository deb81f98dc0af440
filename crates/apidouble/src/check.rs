//! What a server refuses in an object, and what it adds: the part that clients of nodes and pods can meet.

use serde_json::{Map, Value, json};

use crate::kind::{KINDS, Kind, NAMESPACES, NODES, PODS};
use crate::refusal::Refusal;
use crate::world::Key;

/// All keys and values of the annotations together, in bytes.
const ANNOTATIONS: usize = 256 * 1024;

/// `kind` and `apiVersion` are the path's.
pub fn shape(kind: &Kind, value: &mut Value) -> Result<(), Refusal> {
    let Some(fields) = value.as_object_mut() else {
        return Err(Refusal::bad_request("the object provided is unrecognized (must be of type Object)"));
    };
    for (field, wanted) in [("apiVersion", kind.api_version()), ("kind", kind.name.to_owned())] {
        let given = fields.get(field).and_then(Value::as_str).unwrap_or_default();
        if field == "kind" && KINDS.into_iter().any(|other| other.name == given && other.name != kind.name) {
            let (version, name) = (kind.version, kind.name);
            return Err(Refusal::bad_request(format!(
                "{given} in version \"{version}\" cannot be handled as a {name}: converting \
                 ({version}.{given}) to (core.{name}): unknown conversion"
            )));
        }
        if !given.is_empty() && given != wanted {
            let expected = format!("{}, Kind={}", kind.api_version(), kind.name);
            return Err(Refusal::bad_request(format!(
                "the {field} in the data ({given}) does not match the expected {field} ({expected})"
            )));
        }
        fields.insert(field.into(), wanted.into());
    }
    Ok(())
}

/// The metadata of an object, made if there are none.
pub fn metadata(value: &mut Value) -> Result<&mut Map<String, Value>, Refusal> {
    if value["metadata"].is_null() {
        value["metadata"] = json!({});
    }
    value["metadata"]
        .as_object_mut()
        .ok_or_else(|| Refusal::bad_request("json: cannot unmarshal metadata into an ObjectMeta"))
}

/// The namespace in an object, if there is one, is the request's.
pub fn namespace(metadata: &mut Map<String, Value>, wanted: &str) -> Result<(), Refusal> {
    let given = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default();
    if !given.is_empty() && given != wanted {
        return Err(Refusal::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    metadata.insert("namespace".into(), wanted.into());
    Ok(())
}

/// What a server writes into a new object by itself, of that which somebody here reads.
pub fn born(kind: &Kind, value: &mut Value) {
    if *kind == NAMESPACES {
        let name = value["metadata"]["name"].clone();
        value["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
        value["spec"]["finalizers"] = json!(["kubernetes"]);
        value["status"]["phase"] = "Active".into();
    }
    if *kind == PODS && value["status"]["phase"].is_null() {
        value["status"]["phase"] = "Pending".into();
    }
    // The old single field and the list are one thing.
    if *kind == NODES {
        let first = value["spec"]["podCIDRs"][0].clone();
        let single = value["spec"]["podCIDR"].clone();
        if first.is_null() && single.is_string() {
            value["spec"]["podCIDRs"] = json!([single]);
        } else if single.is_null() && first.is_string() {
            value["spec"]["podCIDR"] = first;
        }
        if value["spec"].is_null() {
            value["spec"] = json!({});
        }
    }
}

/// A whole object that is written has the name of the path.
pub fn addressed(key: &Key, value: &Value) -> Result<(), Refusal> {
    match value["metadata"]["name"].as_str() {
        Some(name) if name != key.1 => Err(Refusal::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            key.1
        ))),
        _ => Ok(()),
    }
}

/// Fields that are always sent, if only as null.
pub fn filled(kind: &Kind, value: &mut Value) {
    if *kind != NODES {
        return;
    }
    let conditions = value.get_mut("status").and_then(|status| status.get_mut("conditions"));
    for condition in conditions.and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(fields) = condition.as_object_mut() else { continue };
        for time in ["lastHeartbeatTime", "lastTransitionTime"] {
            fields.entry(time).or_insert(Value::Null);
        }
    }
}

/// A write keeps name, namespace, uid and birth, and is made from the newest state if it says from which.
pub fn same(kind: &Kind, key: &Key, old: &Value, new: &mut Map<String, Value>) -> Result<(), Refusal> {
    let old = &old["metadata"];
    let given = |new: &Map<String, Value>, field: &str| {
        new.get(field).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
    };
    if kind.namespaced {
        namespace(new, &key.0)?;
    }
    if let Some(uid) = given(new, "uid").filter(|uid| old["uid"] != **uid) {
        let message = format!("Invalid value: {uid:?}: field is immutable");
        return Err(Refusal::invalid(kind, &key.1, "metadata.uid", "FieldValueInvalid", &message));
    }
    if given(new, "resourceVersion").is_some_and(|version| old["resourceVersion"] != *version) {
        return Err(Refusal::modified(kind, &key.1));
    }
    for field in ["name", "uid", "creationTimestamp", "resourceVersion"] {
        new.insert(field.into(), old[field].clone());
    }
    Ok(())
}

/// Names, labels and annotations.
pub fn object(kind: &Kind, name: &str, value: &Value) -> Result<(), Refusal> {
    if name.is_empty() {
        let message = "Required value: name or generateName is required";
        return Err(Refusal::invalid(kind, name, "metadata.name", "FieldValueRequired", message));
    }
    if !is_subdomain(name) {
        let message = format!(
            "Invalid value: {name:?}: a lowercase RFC 1123 subdomain must consist of lower case \
             alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character \
             (e.g. 'example.com', regex used for validation is \
             '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
        );
        return Err(Refusal::invalid(kind, name, "metadata.name", "FieldValueInvalid", &message));
    }
    let mut bytes = 0;
    for field in ["labels", "annotations"] {
        let Some(map) = value["metadata"].get(field).filter(|map| !map.is_null()) else { continue };
        let path = format!("metadata.{field}");
        let entries = map.as_object().ok_or_else(|| not_of_type(kind, &path, "map[string]string"))?;
        for (key, value) in entries {
            let text = value.as_str().ok_or_else(|| not_of_type(kind, &path, "string"))?;
            check_key(kind, name, &path, key)?;
            if field == "annotations" {
                bytes += key.len() + text.len();
            } else if text.len() > 63 {
                let message = format!("Invalid value: {text:?}: must be no more than 63 bytes");
                return Err(Refusal::invalid(kind, name, &path, "FieldValueInvalid", &message));
            }
        }
    }
    if bytes > ANNOTATIONS {
        let message = format!("Too long: may not be more than {ANNOTATIONS} bytes");
        return Err(Refusal::invalid(kind, name, "metadata.annotations", "FieldValueTooLong", &message));
    }
    Ok(())
}

/// What may not change once it is set.
pub fn transition(kind: &Kind, name: &str, old: &Value, new: &Value) -> Result<(), Refusal> {
    let cidrs = |value: &Value| value["spec"]["podCIDRs"].as_array().cloned().unwrap_or_default();
    if *kind == NODES && !cidrs(old).is_empty() && cidrs(old) != cidrs(new) {
        let message = "Forbidden: node updates may not change podCIDR except from \"\" to valid";
        return Err(Refusal::invalid(kind, name, "spec.podCIDRs", "FieldValueForbidden", message));
    }
    Ok(())
}

fn not_of_type(kind: &Kind, path: &str, wanted: &str) -> Refusal {
    let (name, version) = (kind.name, kind.version);
    Refusal::bad_request(format!(
        "{name} in version \"{version}\" cannot be handled as a {name}: json: cannot unmarshal into Go \
         struct field ObjectMeta.{path} of type {wanted}"
    ))
}

/// A key of a label or annotation: an optional DNS subdomain and `/`, then a name of at most 63 characters.
fn check_key(kind: &Kind, name: &str, path: &str, key: &str) -> Result<(), Refusal> {
    let (prefix, last) = key.rsplit_once('/').unwrap_or(("a", key));
    let ends = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    let fine = last.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if ends(last) && fine && last.len() <= 63 && is_subdomain(&prefix.to_ascii_lowercase()) {
        return Ok(());
    }
    let message = format!(
        "Invalid value: {key:?}: name part must consist of alphanumeric characters, '-', '_' or '.', and \
         must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', \
         regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
    );
    Err(Refusal::invalid(kind, name, path, "FieldValueInvalid", &message))
}

/// RFC 1123 subdomain, at most 253 characters.
fn is_subdomain(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    name.len() <= 253 && name.split('.').all(label)
}
