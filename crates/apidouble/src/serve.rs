//! One request from its first byte to its answer.

use std::future::pending;
use std::sync::Arc;
use std::time::Instant;

use http_body_util::{BodyExt, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER,
};
use hyper::{Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::body::{Body, Cut};
use crate::call::Call;
use crate::check;
use crate::discovery;
use crate::fault::Effect;
use crate::kind::{Kind, NAMESPACES, NODES};
use crate::list;
use crate::options::Options;
use crate::patch;
use crate::refusal::Refusal;
use crate::shared::{Inner, Seen, Shared};
use crate::watch;
use crate::world::{Key, Part, World};

/// The largest request taken, as servers have it.
const LARGEST: usize = 3 * 1024 * 1024;

/// What a server says in the stream whose etcd is too old for streaming lists (before 3.4.25 and 3.5.8).
const NO_PROGRESS: &str = "a watch stream was requested by the client but the required storage feature \
                           RequestWatchProgress is disabled";

type Answer = Result<(u16, Body), Refusal>;

/// Answers one request; an error breaks the connection.
pub async fn serve(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Cut> {
    let (head, body) = request.into_parts();
    let text = |name: HeaderName| {
        head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    let call = Call::new(&head.method, &head.uri);
    let user =
        shared.lock().access.user(head.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()));
    let body = Limited::new(body, LARGEST).collect().await.map(|body| body.to_bytes());
    let content_type = text(CONTENT_TYPE).split(';').next().unwrap_or_default().trim().to_owned();
    let seen = Seen {
        at: Instant::now(),
        call: call.clone(),
        user: user.clone().unwrap_or_default(),
        accept: text(ACCEPT),
        content_type: content_type.clone(),
        body: body.as_ref().cloned().unwrap_or_default(),
        code: 0,
    };
    let (number, effect) = {
        let mut inner = shared.lock();
        inner.seen.push(seen);
        let effect = inner.take_fault(&call, user.as_deref().unwrap_or_default());
        (inner.seen.len() - 1, effect)
    };
    shared.ring();
    let mut refused = None;
    match &effect {
        Some(Effect::Hang) => pending().await,
        Some(Effect::Late(time)) => sleep(*time).await,
        Some(Effect::Drop) => return Err(Cut),
        Some(Effect::Refuse { code, retry_after_s }) => {
            let mut refusal = refusal(*code, &call, user.as_deref().unwrap_or_default());
            refusal.retry_after_s = retry_after_s.or(refusal.retry_after_s);
            refused = Some(refusal);
        }
        _ => {}
    }
    let answer = match (refused, user, body) {
        (Some(refusal), ..) | (None, Err(refusal), _) => Err(refusal),
        (None, Ok(_), Err(_)) => {
            Err(Refusal::new(413, "RequestEntityTooLarge", "Request entity too large: limit is 3145728"))
        }
        (None, Ok(user), Ok(body)) => {
            let mut inner = shared.lock();
            inner.access.check(&user, &call).and_then(|()| {
                let sent = Sent { call: &call, content_type: &content_type, body: &body };
                dispatch(&shared, &mut inner, &sent, effect.as_ref())
            })
        }
    };
    let response = respond(answer, effect.as_ref());
    {
        let mut inner = shared.lock();
        // The record may have been cleared meanwhile.
        if let Some(seen) = inner.seen.get_mut(number) {
            seen.code = response.status().as_u16();
        }
    }
    shared.ring();
    if effect == Some(Effect::DoneButCut) { Err(Cut) } else { Ok(response) }
}

fn respond(answer: Answer, effect: Option<&Effect>) -> Response<Body> {
    let (mut retry_after_s, mut form) = (None, "application/json");
    let (code, body) = answer.unwrap_or_else(|refusal| {
        retry_after_s = refusal.retry_after_s;
        if refusal.plain {
            form = "text/plain; charset=utf-8";
            return (refusal.code, Body::of(format!("{}\n", refusal.message)));
        }
        (refusal.code, Body::of(format!("{}\n", refusal.body())))
    });
    let mut response = Response::new(body.under(effect));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(form));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    if let Some(seconds) = retry_after_s {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    response
}

/// A refusal on command, in the form it has when the server means it.
pub fn refusal(code: u16, call: &Call, user: &str) -> Refusal {
    let kind = call.kind.unwrap_or(&NODES);
    match code {
        400 => Refusal::bad_request("the server rejected our request for an unknown reason"),
        401 => Refusal::unauthorized(),
        403 => Refusal::forbidden(user, call.verb, kind, call.target()),
        404 if call.name.is_empty() => Refusal::no_such_path(),
        404 => Refusal::not_found(kind, &call.name),
        409 => Refusal::modified(kind, &call.name),
        410 => Refusal::expired("The resourceVersion for the provided list is too old."),
        422 => Refusal::invalid(kind, &call.name, "metadata", "FieldValueInvalid", "Invalid value"),
        429 => Refusal::too_many_requests(1),
        500 => Refusal::internal("etcdserver: request timed out"),
        503 => {
            Refusal::new(503, "ServiceUnavailable", "the server is currently unable to handle the request")
        }
        504 => Refusal::new(504, "Timeout", "Timeout: request did not complete within the allotted timeout"),
        code => Refusal::new(code, "", "refused on command"),
    }
}

struct Sent<'a> {
    call: &'a Call,
    content_type: &'a str,
    body: &'a Bytes,
}

impl Sent<'_> {
    fn json(&self) -> Result<Value, Refusal> {
        serde_json::from_slice(self.body)
            .map_err(|error| Refusal::bad_request(format!("json: cannot decode the body: {error}")))
    }
}

fn whole(code: u16, value: &Value) -> Answer {
    Ok((code, Body::of(format!("{value}\n"))))
}

fn dispatch(shared: &Arc<Shared>, inner: &mut Inner, sent: &Sent<'_>, effect: Option<&Effect>) -> Answer {
    let call = sent.call;
    let Some(kind) = call.kind else { return discovery::answer(call).map(|body| (200, body)) };
    if let Some(Effect::Garbage(text)) = effect
        && call.verb != "watch"
    {
        return Ok((200, Body::of(text.clone())));
    }
    let part = match call.subresource.as_str() {
        "" => Part::Main,
        "status" if kind.status => Part::Status,
        _ => return Err(Refusal::no_such_path()),
    };
    if call.option("dryRun").is_some() {
        return Err(Refusal::bad_request("dryRun: this double only acts in earnest"));
    }
    let key: Key = (call.namespace.clone(), call.name.clone());
    let stale = if let Some(Effect::Stale(revision)) = effect { Some(*revision) } else { None };
    match call.verb {
        "list" => {
            let options = Options::new(call, kind, inner.streaming)?;
            let body = list::answer(&inner.world, kind, &call.namespace, &options, stale)?;
            Ok((200, body))
        }
        "watch" => {
            let options = Options::new(call, kind, inner.streaming)?;
            let reported = match effect {
                Some(Effect::InStream(500)) => Some(Refusal::internal_as(NO_PROGRESS)),
                Some(Effect::InStream(code)) => Some(refusal(*code, call, "")),
                _ => None,
            };
            let effect = (effect, reported.as_ref());
            let body = watch::start(shared, inner, (kind, &call.namespace), options, effect)?;
            Ok((200, body))
        }
        "get" => match stale {
            Some(revision) => whole(200, &list::stale(&inner.world, kind, &key, revision)?),
            None => {
                let asked = call.option("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or(0);
                if asked > inner.world.revision {
                    return Err(Refusal::too_large(asked, inner.world.revision));
                }
                Ok((200, Body::of(inner.world.get(kind, &key)?.json.clone())))
            }
        },
        _ => {
            let answer = write(inner, sent, kind, &key, part);
            shared.ring();
            answer
        }
    }
}

fn write(inner: &mut Inner, sent: &Sent<'_>, kind: &'static Kind, key: &Key, part: Part) -> Answer {
    let (call, world) = (sent.call, &mut inner.world);
    match call.verb {
        "create" if call.name.is_empty() => {
            let made = world.create(kind, &call.namespace, sent.json()?)?;
            Ok((201, Body::of(made.json.clone())))
        }
        "update" => {
            let new = sent.json()?;
            check::addressed(key, &new)?;
            check_uid(world, kind, key, &new["metadata"]["uid"])?;
            let stored = world.write(kind, key, part, |_| Ok(new))?;
            Ok((200, Body::of(stored.json.clone())))
        }
        "patch" if sent.content_type == "application/apply-patch+yaml" => apply(inner, sent, kind, key, part),
        "patch" => {
            let change = sent.json()?;
            let stored =
                world.write(kind, key, part, |old| patch::apply(kind, sent.content_type, old, &change))?;
            Ok((200, Body::of(stored.json.clone())))
        }
        "delete" => {
            let wanted = if sent.body.is_empty() { Value::Null } else { sent.json()? };
            check_deletion(inner, kind, key, &wanted["preconditions"])?;
            let last = inner.world.delete(kind, key)?;
            if *kind == NAMESPACES {
                empty_namespace(inner, &key.1);
            }
            let mut details = json!({"name": key.1, "kind": kind.plural});
            if !kind.group.is_empty() {
                details["group"] = kind.group.into();
            }
            details["uid"] = last.value()["metadata"]["uid"].clone();
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                                "details": details});
            whole(200, &status)
        }
        "deletecollection" => {
            let options = Options::new(call, kind, inner.streaming)?;
            let all = inner.world.list(kind, &call.namespace);
            for (key, _) in all.iter().filter(|(_, stored)| options.selector.matches(&stored.value())) {
                inner.world.delete(kind, key)?;
            }
            let metadata = json!({"resourceVersion": inner.world.revision.to_string()});
            let items: Vec<_> = all.iter().map(|(_, stored)| stored.value()).collect();
            let (name, version) = (format!("{}List", kind.name), kind.api_version());
            whole(200, &json!({"kind": name, "apiVersion": version, "metadata": metadata, "items": items}))
        }
        _ => Err(Refusal::method_not_allowed()),
    }
}

/// Server-side apply; of YAML only what is JSON as well.
fn apply(inner: &mut Inner, sent: &Sent<'_>, kind: &'static Kind, key: &Key, part: Part) -> Answer {
    let Some(manager) = sent.call.option("fieldManager") else {
        let (field, cause, message) =
            ("fieldManager", "FieldValueRequired", "Required value: is required for apply patch");
        return Err(Refusal::invalid_as("meta.k8s.io", "PatchOptions", "", field, cause, message));
    };
    let new = sent.json()?;
    let managed = (kind, key.clone(), manager.to_owned());
    let exists = inner.world.get(kind, key).is_ok();
    let stored = if exists || part == Part::Status {
        let last = inner.applied.get(&managed);
        inner.world.write(kind, key, part, |old| patch::server_side(kind, old, last, &new))?
    } else {
        inner.world.create(kind, &key.0, new.clone())?
    };
    inner.applied.insert(managed, new);
    Ok((if exists { 200 } else { 201 }, Body::of(stored.json.clone())))
}

fn check_deletion(inner: &Inner, kind: &'static Kind, key: &Key, wanted: &Value) -> Result<(), Refusal> {
    let held = inner.world.get(kind, key)?.value();
    let fields =
        [("uid", "UID", "deleted and then recreated"), ("resourceVersion", "ResourceVersion", "modified")];
    for (field, name, how) in fields {
        let held = held["metadata"][field].as_str().unwrap_or_default();
        if let Some(wanted) = wanted[field].as_str().filter(|wanted| *wanted != held) {
            let why = format!(
                "the {name} in the precondition ({wanted}) does not match the {name} in record ({held}). The \
                 object might have been {how}"
            );
            return Err(Refusal::precondition(kind, &key.1, &why));
        }
    }
    Ok(())
}

/// A whole object that is written is the one it was read as.
fn check_uid(world: &World, kind: &'static Kind, key: &Key, wanted: &Value) -> Result<(), Refusal> {
    let held = world.get(kind, key)?.value();
    let held = held["metadata"]["uid"].as_str().unwrap_or_default();
    let Some(wanted) = wanted.as_str().filter(|wanted| !wanted.is_empty() && *wanted != held) else {
        return Ok(());
    };
    let folder = if *kind == NODES { "minions" } else { kind.plural };
    let place =
        [folder, &key.0, &key.1].into_iter().filter(|step| !step.is_empty()).collect::<Vec<_>>().join("/");
    let why = format!(
        "StorageError: invalid object, Code: 4, Key: /registry/{place}, ResourceVersion: 0, \
         AdditionalErrorMsg: Precondition failed: UID in precondition: {wanted}, UID in object meta: {held}"
    );
    Err(Refusal::conflict(kind, &key.1, &why))
}

/// What was in a namespace goes with it.
fn empty_namespace(inner: &mut Inner, namespace: &str) {
    for kind in crate::kind::KINDS.into_iter().filter(|kind| kind.namespaced) {
        for (key, _) in inner.world.list(kind, namespace) {
            let _gone = inner.world.delete(kind, &key);
        }
    }
}
