//! The patch forms: merge (RFC 7396), JSON patch (RFC 6902), and Kubernetes' strategic merge.

use serde_json::{Map, Value};

use crate::kind::{ENDPOINTSLICES, Kind, NODES, PODS, SERVICES};
use crate::refusal::Refusal;

/// How a list is merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Merge {
    /// Elements are objects; this field tells which is which.
    By(&'static str),
    /// A set of plain values.
    Set,
}

/// Lists that are merged instead of replaced. Paths lead through lists without a step of their own.
const MERGED: &[(Option<&Kind>, &str, Merge)] = &[
    (None, "metadata.finalizers", Merge::Set),
    (None, "metadata.ownerReferences", Merge::By("uid")),
    (None, "status.conditions", Merge::By("type")),
    (Some(&NODES), "status.addresses", Merge::By("type")),
    (Some(&NODES), "spec.podCIDRs", Merge::Set),
    (Some(&PODS), "status.podIPs", Merge::By("ip")),
    (Some(&PODS), "status.hostIPs", Merge::By("ip")),
    (Some(&PODS), "spec.containers", Merge::By("name")),
    (Some(&PODS), "spec.containers.ports", Merge::By("containerPort")),
    (Some(&PODS), "spec.containers.env", Merge::By("name")),
    (Some(&PODS), "spec.containers.volumeMounts", Merge::By("mountPath")),
    (Some(&PODS), "spec.initContainers", Merge::By("name")),
    (Some(&PODS), "spec.volumes", Merge::By("name")),
    (Some(&PODS), "spec.imagePullSecrets", Merge::By("name")),
    (Some(&PODS), "spec.hostAliases", Merge::By("ip")),
    (Some(&SERVICES), "spec.ports", Merge::By("port")),
];

fn merge_of(kind: &Kind, path: &str) -> Option<Merge> {
    // EndpointSlice has no merged lists, and no conditions of its own at this path.
    let found = MERGED.iter().find(|(of, at, _)| *at == path && of.is_none_or(|of| of == kind));
    found.filter(|_| *kind != ENDPOINTSLICES || path.starts_with("metadata")).map(|(_, _, merge)| *merge)
}

/// Applies a patch of content type `form` to `value`.
pub fn apply(kind: &Kind, form: &str, mut value: Value, patch: &Value) -> Result<Value, Refusal> {
    match form {
        "application/merge-patch+json" => {
            merge(&mut value, patch);
            Ok(value)
        }
        "application/json-patch+json" => json_patch(value, patch),
        "application/strategic-merge-patch+json" => {
            let fields = patch.as_object().ok_or_else(|| {
                Refusal::bad_request("json: cannot unmarshal the patch into Go value of type map")
            })?;
            check_texts(patch)?;
            strategic(kind, "", &mut value, fields)?;
            Ok(value)
        }
        _ => Err(Refusal::unsupported_media_type()),
    }
}

/// What a manager applies (server-side apply, one writer): `new`, and without what it applied last and does
/// not any more. Fields of others stay; conflicts between managers are not looked for.
pub fn server_side(
    kind: &Kind,
    mut value: Value,
    last: Option<&Value>,
    new: &Value,
) -> Result<Value, Refusal> {
    let mut patch = new.clone();
    if let Some(last) = last {
        without(kind, "", last, &mut patch);
    }
    let fields = patch.as_object().ok_or_else(|| Refusal::bad_request("error decoding YAML: no object"))?;
    strategic(kind, "", &mut value, fields)?;
    Ok(value)
}

/// Adds to `patch` the removal of what is in `last` and not in `patch`.
fn without(kind: &Kind, path: &str, last: &Value, patch: &mut Value) {
    let (Some(last), Some(patch)) = (last.as_object(), patch.as_object_mut()) else { return };
    for (field, held) in last {
        let here = if path.is_empty() { field.clone() } else { format!("{path}.{field}") };
        match (patch.get_mut(field), merge_of(kind, &here)) {
            (None, Some(Merge::By(_))) if held.is_array() => {
                let mut none = Value::Array(Vec::new());
                without_elements(kind, &here, held, &mut none);
                patch.insert(field.clone(), none);
            }
            (None, _) if held.is_object() => {
                let mut none = Value::Object(Map::new());
                without(kind, &here, held, &mut none);
                patch.insert(field.clone(), none);
            }
            (None, _) => drop(patch.insert(field.clone(), Value::Null)),
            (Some(new), Some(Merge::By(_))) => without_elements(kind, &here, held, new),
            (Some(new), _) => without(kind, &here, held, new),
        }
    }
}

fn without_elements(kind: &Kind, path: &str, last: &Value, patch: &mut Value) {
    let (Some(Merge::By(key)), Some(last), Some(patch)) =
        (merge_of(kind, path), last.as_array(), patch.as_array_mut())
    else {
        return;
    };
    for held in last {
        match patch.iter_mut().find(|new| new[key] == held[key]) {
            Some(new) => without(kind, path, held, new),
            None => patch.push(serde_json::json!({key: held[key], "$patch": "delete"})),
        }
    }
}

/// A value as Go prints it, which servers quote.
fn go(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(go).collect::<Vec<_>>().join(" ")),
        Value::Object(fields) => {
            let fields: Vec<_> = fields.iter().map(|(name, value)| format!("{name}:{}", go(value))).collect();
            format!("map[{}]", fields.join(" "))
        }
        plain => plain.to_string(),
    }
}

/// Labels and annotations are texts.
fn check_texts(patch: &Value) -> Result<(), Refusal> {
    for field in ["labels", "annotations"] {
        for value in patch["metadata"][field].as_object().into_iter().flat_map(|fields| fields.values()) {
            let kind = match value {
                Value::Bool(_) => "bool",
                Value::Number(number) if number.is_i64() => "int64",
                Value::Number(_) => "float64",
                Value::Array(_) => "[]interface {}",
                Value::Object(_) => "map[string]interface {}",
                Value::Null | Value::String(_) => continue,
            };
            let message = format!("Invalid value: {:?}: cannot convert {kind} to string", go(patch));
            return Err(Refusal::invalid_as("", "", "", "patch", "FieldValueInvalid", &message));
        }
    }
    Ok(())
}

/// RFC 7396.
pub fn merge(value: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *value = patch.clone();
        return;
    };
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    let Some(target) = value.as_object_mut() else { return };
    for (field, change) in fields {
        if change.is_null() {
            target.remove(field);
        } else {
            merge(target.entry(field.clone()).or_insert(Value::Null), change);
        }
    }
}

/// Strategic merge of the fields of one object at `path`.
fn strategic(kind: &Kind, path: &str, value: &mut Value, patch: &Map<String, Value>) -> Result<(), Refusal> {
    match patch.get("$patch").and_then(Value::as_str) {
        Some("replace") => {
            let rest = patch.iter().filter(|(field, _)| *field != "$patch");
            *value = Value::Object(rest.map(|(k, v)| (k.clone(), v.clone())).collect());
            return Ok(());
        }
        Some("delete") => {
            *value = Value::Object(Map::new());
            return Ok(());
        }
        Some("merge") | None => {}
        Some(other) => return Err(Refusal::bad_request(format!("unknown patch type found: {other}"))),
    }
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    let Some(target) = value.as_object_mut() else { return Ok(()) };
    let was = target.clone();
    for (field, change) in patch {
        if let Some(list) = field.strip_prefix("$deleteFromPrimitiveList/") {
            let gone = change.as_array().cloned().unwrap_or_default();
            if let Some(held) = target.get_mut(list).and_then(Value::as_array_mut) {
                held.retain(|element| !gone.contains(element));
            }
            continue;
        }
        if field.starts_with('$') {
            continue;
        }
        let here = if path.is_empty() { field.clone() } else { format!("{path}.{field}") };
        match change {
            Value::Null => {
                target.remove(field);
            }
            Value::Object(fields) => {
                strategic(kind, &here, target.entry(field.clone()).or_insert(Value::Null), fields)?;
            }
            Value::Array(elements) => {
                let held = target.entry(field.clone()).or_insert(Value::Null);
                merge_list(kind, &here, held, elements)?;
            }
            plain => {
                target.insert(field.clone(), plain.clone());
            }
        }
    }
    for (field, wanted) in patch {
        let field = field.strip_prefix("$setElementOrder/").unwrap_or(field);
        let here = if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") };
        // The order told goes before that of the patch's own elements.
        let told = patch.get(&format!("$setElementOrder/{field}")).unwrap_or(wanted);
        let before = was.get(field).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        if let (Some(how), Some(held), Some(told)) =
            (merge_of(kind, &here), target.get_mut(field).and_then(Value::as_array_mut), told.as_array())
        {
            sort(how, held, told, before);
        }
    }
    Ok(())
}

fn merge_list(kind: &Kind, path: &str, held: &mut Value, elements: &[Value]) -> Result<(), Refusal> {
    let Some(how) = merge_of(kind, path) else {
        *held = Value::Array(elements.to_vec());
        return Ok(());
    };
    if !held.is_array() {
        *held = Value::Array(Vec::new());
    }
    let Some(list) = held.as_array_mut() else { return Ok(()) };
    if how == Merge::Set {
        list.extend(elements.iter().filter(|element| !list.contains(element)).cloned().collect::<Vec<_>>());
        return Ok(());
    }
    let Merge::By(key) = how else { return Ok(()) };
    if elements.iter().any(|element| element["$patch"] == "replace") {
        let rest = elements.iter().filter(|element| element["$patch"] != "replace");
        *list = rest.cloned().collect();
        return Ok(());
    }
    for element in elements {
        let Some(fields) = element.as_object() else {
            return Err(Refusal::bad_request("cannot merge a list of objects with something else"));
        };
        let Some(name) = fields.get(key) else {
            let shown = go(element);
            return Err(Refusal::unexplained(format!(
                "map: {shown} does not contain declared merge key: {key}"
            )));
        };
        let place = list.iter().position(|held| &held[key] == name);
        if fields.get("$patch").and_then(Value::as_str) == Some("delete") {
            list.retain(|held| &held[key] != name);
            continue;
        }
        let place = place.unwrap_or_else(|| {
            list.push(Value::Null);
            list.len() - 1
        });
        strategic(kind, path, &mut list[place], fields)?;
    }
    Ok(())
}

/// The order servers give a merged list: elements named in `told` in that order, the others in the order
/// they had `before`; where both had a place before, that decides, and a new one goes in front.
fn sort(how: Merge, list: &mut Vec<Value>, told: &[Value], before: &[Value]) {
    let place = |among: &[Value], element: &Value| {
        among.iter().position(|other| match how {
            Merge::By(key) => other[key] == element[key],
            Merge::Set => other == element,
        })
    };
    let (mut named, others): (Vec<Value>, Vec<Value>) =
        list.drain(..).partition(|element| place(told, element).is_some());
    named.sort_by_key(|element| place(told, element));
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    while let Some(element) = named.peek() {
        let first = others.next_if(
            |other| matches!((place(before, other), place(before, element)), (Some(a), Some(b)) if a < b),
        );
        list.extend(first.or_else(|| named.next()));
    }
    list.extend(others);
}

/// RFC 6902.
fn json_patch(mut value: Value, patch: &Value) -> Result<Value, Refusal> {
    let refused = || {
        let message = "the server rejected our request due to an error in our request";
        Refusal { details: serde_json::json!({}), ..Refusal::new(422, "Invalid", message) }
    };
    let steps = patch.as_array().ok_or_else(|| {
        Refusal::bad_request("json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    })?;
    for step in steps {
        let text = |field: &str| step[field].as_str().unwrap_or_default().to_owned();
        let (op, path) = (text("op"), text("path"));
        match op.as_str() {
            "add" => insert(&mut value, &path, step["value"].clone()).ok_or_else(refused)?,
            "remove" => drop(remove(&mut value, &path).ok_or_else(refused)?),
            "replace" => *value.pointer_mut(&path).ok_or_else(refused)? = step["value"].clone(),
            "test" if value.pointer(&path).unwrap_or(&Value::Null) == &step["value"] => {}
            "move" => {
                let moved = remove(&mut value, &text("from")).ok_or_else(refused)?;
                insert(&mut value, &path, moved).ok_or_else(refused)?;
            }
            "copy" => {
                let copied = value.pointer(&text("from")).cloned().ok_or_else(refused)?;
                insert(&mut value, &path, copied).ok_or_else(refused)?;
            }
            _ => return Err(refused()),
        }
    }
    Ok(value)
}

/// The object or list that holds the last step of a JSON pointer (RFC 6901), and that step.
fn parent<'a>(value: &'a mut Value, path: &str) -> Option<(&'a mut Value, String)> {
    let (above, last) = path.rsplit_once('/')?;
    Some((value.pointer_mut(above)?, last.replace("~1", "/").replace("~0", "~")))
}

fn insert(value: &mut Value, path: &str, new: Value) -> Option<()> {
    if path.is_empty() {
        *value = new;
        return Some(());
    }
    match parent(value, path)? {
        (Value::Object(fields), last) => drop(fields.insert(last, new)),
        (Value::Array(list), last) if last == "-" => list.push(new),
        (Value::Array(list), last) => {
            let place = last.parse::<usize>().ok().filter(|place| *place <= list.len())?;
            list.insert(place, new);
        }
        _ => return None,
    }
    Some(())
}

fn remove(value: &mut Value, path: &str) -> Option<Value> {
    match parent(value, path)? {
        (Value::Object(fields), last) => fields.remove(&last),
        (Value::Array(list), last) => {
            let place = last.parse::<usize>().ok().filter(|place| *place < list.len())?;
            Some(list.remove(place))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
