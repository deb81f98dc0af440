//! Answers that are not the object asked for, in the server's own words: `Status` objects and their HTTP codes.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::kind::Kind;

/// A request refused.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// HTTP status.
    pub code: u16,
    /// `reason` of the `Status`; empty if it has none.
    pub reason: String,
    /// The sentence.
    pub message: String,
    /// `details`, or null.
    pub details: Value,
    /// `metadata`: usually empty.
    pub metadata: Map<String, Value>,
    /// Seconds in a `Retry-After` header.
    pub retry_after_s: Option<u32>,
    /// Whether only the sentence is sent, as text.
    pub plain: bool,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.code, self.reason, self.message)
    }
}

impl std::error::Error for Refusal {}

/// `nodes`, or `pods.GROUP` as the messages name a resource of a group.
fn qualified(kind: &Kind) -> String {
    if kind.group.is_empty() { kind.plural.to_owned() } else { format!("{}.{}", kind.plural, kind.group) }
}

/// `details` that name an object: with the plural or the kind's name, as the message at hand does.
fn details(kind: &Kind, called: &str, name: &str) -> Value {
    let mut details = Map::new();
    if !name.is_empty() {
        details.insert("name".into(), name.into());
    }
    if !kind.group.is_empty() {
        details.insert("group".into(), kind.group.into());
    }
    details.insert("kind".into(), called.into());
    Value::Object(details)
}

impl Refusal {
    /// A refusal with nothing but code, reason and sentence.
    pub fn new(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.to_owned(),
            message: message.into(),
            details: Value::Null,
            metadata: Map::new(),
            retry_after_s: None,
            plain: false,
        }
    }

    /// 500 as a server gives it for an error nobody made a `Status` of.
    pub fn unexplained(message: impl Into<String>) -> Self {
        Self::new(500, "", message).with(Value::Null)
    }

    fn with(mut self, details: Value) -> Self {
        self.details = details;
        self
    }

    /// The `Status` object.
    pub fn body(&self) -> Value {
        let mut body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": self.metadata,
            "status": "Failure", "message": self.message,
        });
        if !self.reason.is_empty() {
            body["reason"] = self.reason.clone().into();
        }
        if !self.details.is_null() {
            body["details"] = self.details.clone();
        }
        body["code"] = self.code.into();
        body
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 404 for an object.
    pub fn not_found(kind: &Kind, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} \"{name}\" not found", qualified(kind))).with(details(
            kind,
            kind.plural,
            name,
        ))
    }

    /// 404 for a path nobody serves.
    pub fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource").with(json!({}))
    }

    /// 404 where there is not even an API group.
    pub fn nothing_there() -> Self {
        Self { plain: true, ..Self::new(404, "NotFound", "404 page not found") }
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
            .with(json!({}))
    }

    /// 409: the name is taken.
    pub fn exists(kind: &Kind, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{} \"{name}\" already exists", qualified(kind)))
            .with(details(kind, kind.plural, name))
    }

    /// 409: written from an old state.
    pub fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", qualified(kind));
        Self::new(409, "Conflict", message).with(details(kind, kind.plural, name))
    }

    /// 409: a deletion was meant for another state of the object.
    pub fn precondition(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", kind.name);
        Self::new(409, "Conflict", message).with(details(kind, kind.name, name))
    }

    /// 409: the resource version of a write is not the stored one.
    pub fn modified(kind: &Kind, name: &str) -> Self {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(kind, name, why)
    }

    /// 410: from before what the server still knows.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 415: a patch of a form the server does not know.
    pub fn unsupported_media_type() -> Self {
        Self::new(415, "UnsupportedMediaType", "415: Unsupported Media Type").with(json!({}))
    }

    /// 422 with one cause: `cause` is the reason of the cause, such as `FieldValueInvalid`.
    pub fn invalid(kind: &Kind, name: &str, field: &str, cause: &str, message: &str) -> Self {
        let (group, called) = (kind.group, kind.name);
        Self::invalid_as(group, called, name, field, cause, message)
    }

    /// 422 for something that is no stored kind.
    pub fn invalid_as(
        group: &str,
        called: &str,
        name: &str,
        field: &str,
        cause: &str,
        message: &str,
    ) -> Self {
        let in_group = if group.is_empty() { called.to_owned() } else { format!("{called}.{group}") };
        let mut details = json!({"causes": [{"reason": cause, "message": message, "field": field}]});
        if !called.is_empty() {
            details["kind"] = called.into();
        }
        if !name.is_empty() {
            details["name"] = name.into();
        }
        if !group.is_empty() {
            details["group"] = group.into();
        }
        Self::new(422, "Invalid", format!("{in_group} \"{name}\" is invalid: {field}: {message}"))
            .with(details)
    }

    /// 422 for the options of a list or watch: (field, cause, message) each.
    pub fn invalid_options(faults: &[(&str, &str, String)]) -> Self {
        let texts: Vec<_> = faults.iter().map(|(field, _, message)| format!("{field}: {message}")).collect();
        let text = if let [one] = &texts[..] { one.clone() } else { format!("[{}]", texts.join(", ")) };
        let causes = faults
            .iter()
            .map(|(field, cause, message)| json!({"reason": cause, "message": message, "field": field}));
        let details = json!({
            "group": "meta.k8s.io", "kind": "ListOptions", "causes": causes.collect::<Vec<_>>(),
        });
        Self::new(422, "Invalid", format!("ListOptions.meta.k8s.io \"\" is invalid: {text}")).with(details)
    }

    /// 429.
    pub fn too_many_requests(retry_after_s: u32) -> Self {
        let mut refusal = Self::new(429, "TooManyRequests", "Too many requests, please try again later.");
        refusal.details = json!({"retryAfterSeconds": retry_after_s});
        refusal.retry_after_s = Some(retry_after_s);
        refusal
    }

    /// 500.
    pub fn internal(message: impl Into<String>) -> Self {
        let message = message.into();
        let details = json!({"causes": [{"message": message}]});
        Self::new(500, "InternalError", format!("Internal error occurred: {message}")).with(details)
    }

    /// 500 with a reason and nothing but the sentence.
    pub fn internal_as(message: &str) -> Self {
        Self::new(500, "InternalError", message).with(json!({}))
    }

    /// 504: a resource version from the future.
    pub fn too_large(asked: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {asked}, current: {current}");
        let cause = json!({"reason": "ResourceVersionTooLarge", "message": "Too large resource version"});
        let mut refusal = Self::new(504, "Timeout", format!("Timeout: {message}"))
            .with(json!({"causes": [cause], "retryAfterSeconds": 1}));
        refusal.retry_after_s = Some(1);
        refusal
    }

    /// 403: `who` may not do this.
    pub fn forbidden(who: &str, verb: &str, kind: &Kind, call: Target<'_>) -> Self {
        let named = if call.name.is_empty() {
            qualified(kind)
        } else {
            format!("{} \"{}\"", qualified(kind), call.name)
        };
        let resource = if call.subresource.is_empty() {
            kind.plural.to_owned()
        } else {
            format!("{}/{}", kind.plural, call.subresource)
        };
        let scope = match call.namespace {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace \"{namespace}\""),
        };
        let message = format!(
            "{named} is forbidden: User \"{who}\" cannot {verb} resource \"{resource}\" in API group \
             \"{}\" {scope}",
            kind.group
        );
        Self::new(403, "Forbidden", message).with(details(kind, kind.plural, call.name))
    }

    /// 403 on a path that is no object.
    pub fn forbidden_path(who: &str, verb: &str, path: &str) -> Self {
        let message = format!("forbidden: User \"{who}\" cannot {verb} path \"{path}\"");
        Self::new(403, "Forbidden", message).with(json!({}))
    }
}

/// What a refused request aimed at.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Namespace, or empty.
    pub namespace: &'a str,
    /// Name, or empty.
    pub name: &'a str,
    /// Subresource, or empty.
    pub subresource: &'a str,
}
