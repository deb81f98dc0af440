//! Lists: whole, in pages, at an old revision.

use std::collections::VecDeque;
use std::sync::Arc;

use hyper::body::Bytes;
use serde_json::{Value, json};

use crate::body::Body;
use crate::kind::Kind;
use crate::options::{At, Options, page};
use crate::refusal::Refusal;
use crate::world::{Key, Stored, World};

const PAGE_TOO_OLD: &str = "The provided continue parameter is too old to display a consistent list result. You \
    can start a new list without the continue parameter, or use the continue token in this response to retrieve \
    the remainder of the results. Continuing with the provided token results in an inconsistent list - objects \
    that were created, modified, or deleted between the time the first chunk was returned and now may show up in \
    the list.";

/// The answer to a list. `stale` is the revision to answer from against better knowledge.
pub fn answer(
    world: &World,
    kind: &'static Kind,
    namespace: &str,
    options: &Options,
    stale: Option<u64>,
) -> Result<Body, Refusal> {
    let at_least = match options.at {
        At::NotOlder(revision) | At::Exactly(revision) => revision,
        At::Newest | At::Any => 0,
    };
    if at_least > world.revision {
        return Err(Refusal::too_large(at_least, world.revision));
    }
    let (exactly, after) = match (&options.resume, options.at) {
        (Some((revision, key)), _) => (*revision, Some(key)),
        (None, At::Exactly(revision)) => (Some(revision), None),
        _ => (stale, None),
    };
    let revision = exactly.unwrap_or(world.revision);
    let listed = match exactly {
        None => Some(world.list(kind, namespace)),
        Some(revision) => world.list_at(kind, namespace, revision),
    };
    let listed = listed.ok_or_else(|| match after {
        Some(key) => {
            let mut refusal = Refusal::expired(PAGE_TOO_OLD);
            refusal.metadata.insert("continue".into(), page(None, key).into());
            refusal
        }
        None => Refusal::expired("The resourceVersion for the provided list is too old."),
    })?;
    let listed: Vec<_> = listed
        .into_iter()
        .filter(|(key, _)| after.is_none_or(|after| key > after))
        .filter(|(_, stored)| options.selector.is_empty() || options.selector.matches(&stored.value()))
        .collect();
    Ok(write(kind, revision, &listed, options))
}

fn write(kind: &Kind, revision: u64, listed: &[(Key, Arc<Stored>)], options: &Options) -> Body {
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    let shown = match options.limit {
        0 => listed.len(),
        limit => limit.min(listed.len()),
    };
    if shown < listed.len() {
        metadata["continue"] = page(Some(revision), &listed[shown - 1].0).into();
        if options.selector.is_empty() {
            metadata["remainingItemCount"] = (listed.len() - shown).into();
        }
    }
    let (name, version) = (format!("{}List", kind.name), kind.api_version());
    let head = format!(r#"{{"kind":"{name}","apiVersion":"{version}","metadata":{metadata},"items":["#);
    let mut pieces = VecDeque::from([Bytes::from(head)]);
    for (number, (_, stored)) in listed[..shown].iter().enumerate() {
        if number > 0 {
            pieces.push_back(Bytes::from_static(b","));
        }
        pieces.push_back(stored.json.clone());
    }
    pieces.push_back(Bytes::from_static(b"]}\n"));
    Body::Whole(pieces)
}

/// One object as it was at `revision`.
pub fn stale(world: &World, kind: &'static Kind, key: &Key, revision: u64) -> Result<Value, Refusal> {
    let then = world.list_at(kind, &key.0, revision).unwrap_or_default();
    let found = then.into_iter().find(|(held, _)| held == key);
    found.map(|(_, stored)| stored.value()).ok_or_else(|| Refusal::not_found(kind, &key.1))
}
