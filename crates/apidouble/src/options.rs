//! The options of list and watch, checked as a server checks them, and the selectors.

use serde_json::Value;

use crate::call::Call;
use crate::kind::Kind;
use crate::refusal::Refusal;
use crate::world::Key;

/// Which revision a read asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// The newest.
    Newest,
    /// Any: `resourceVersion=0`.
    Any,
    /// Not older than.
    NotOlder(u64),
    /// Exactly.
    Exactly(u64),
}

/// Options of list and watch.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which revision.
    pub at: At,
    /// At most so many objects; 0 for all.
    pub limit: usize,
    /// Revision and last key of the page before; no revision for "whatever is now".
    pub resume: Option<(Option<u64>, Key)>,
    /// Whether the watch begins with all objects as they are, if it says so.
    pub initial_events: Option<bool>,
    /// Whether bookmarks are sent.
    pub bookmarks: bool,
    /// When the watch ends, in seconds.
    pub timeout_s: Option<u64>,
    /// Which objects.
    pub selector: Selector,
}

impl Options {
    /// Reads the options of `call`. `streaming` says whether the server knows streaming lists.
    pub fn new(call: &Call, kind: &Kind, streaming: bool) -> Result<Self, Refusal> {
        let watch = call.verb == "watch";
        let initial_events = boolean(call, "sendInitialEvents")?;
        check(call, watch, initial_events, streaming)?;
        let revision = match call.option("resourceVersion") {
            None => None,
            Some(text) => Some(text.parse::<u64>().map_err(|_| {
                let why =
                    format!("Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax");
                version(watch, &why)
            })?),
        };
        let limit = number(call, "limit")?.unwrap_or(0);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let exact = call.option("resourceVersionMatch") == Some("Exact");
        let at = match revision {
            None => At::Newest,
            Some(0) => At::Any,
            // A page of an old list is a page of exactly that list.
            Some(revision)
                if exact || (!watch && limit > 0 && call.option("resourceVersionMatch").is_none()) =>
            {
                At::Exactly(revision)
            }
            Some(revision) => At::NotOlder(revision),
        };
        Ok(Self {
            at,
            limit,
            resume: call.option("continue").map(read_page).transpose()?,
            // A watch from nowhere is a streaming list that does not say so.
            initial_events: initial_events
                .or((watch && streaming && matches!(at, At::Newest | At::Any)).then_some(true)),
            bookmarks: boolean(call, "allowWatchBookmarks")? == Some(true),
            timeout_s: number(call, "timeoutSeconds")?,
            selector: Selector::new(call, kind)?,
        })
    }
}

/// A page's token: revision, namespace and name, none of which contains a `/`.
pub fn page(revision: Option<u64>, key: &Key) -> String {
    let plain = format!("{}/{}/{}", revision.map_or(-1, u64::cast_signed), key.0, key.1);
    plain.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn read_page(token: &str) -> Result<(Option<u64>, Key), Refusal> {
    let digits = token.as_bytes().chunks(2);
    let bytes = digits.map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok());
    let plain = bytes.collect::<Option<Vec<u8>>>().and_then(|bytes| String::from_utf8(bytes).ok());
    let parts = plain.as_deref().and_then(|plain| {
        let mut parts = plain.split('/');
        let revision = parts.next()?.parse::<i64>().ok()?;
        Some((u64::try_from(revision).ok(), (parts.next()?.to_owned(), parts.next()?.to_owned())))
    });
    parts.ok_or_else(|| {
        Refusal::bad_request(
            "invalid continue token: continue key is not valid: illegal base64 data at input byte 0",
        )
    })
}

fn boolean(call: &Call, name: &str) -> Result<Option<bool>, Refusal> {
    match call.option(name) {
        None => Ok(None),
        Some("true" | "1") => Ok(Some(true)),
        Some("false" | "0") => Ok(Some(false)),
        // What servers make of any other word.
        Some(_) => Ok(Some(true)),
    }
}

fn number(call: &Call, name: &str) -> Result<Option<u64>, Refusal> {
    let Some(text) = call.option(name) else { return Ok(None) };
    let wrong = |_| Refusal::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"));
    text.parse().map(Some).map_err(wrong)
}

/// Combinations a server refuses.
fn check(call: &Call, watch: bool, initial: Option<bool>, streaming: bool) -> Result<(), Refusal> {
    let matching = call.option("resourceVersionMatch");
    let has = |name| call.option(name).is_some();
    let mut faults: Vec<(&str, &str, String)> = Vec::new();
    let mut forbid =
        |field, why: &str| faults.push((field, "FieldValueForbidden", format!("Forbidden: {why}")));
    let (matched, sent) = ("resourceVersionMatch", "sendInitialEvents");
    if watch && initial.is_some() {
        if matching != Some("NotOlderThan") {
            forbid(matched, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
        }
        if !streaming {
            forbid(
                sent,
                "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
            );
        }
    } else if initial.is_some() {
        forbid(sent, "sendInitialEvents is forbidden for list");
    }
    if let Some(matching) = matching {
        if watch && initial.is_none() {
            forbid(
                matched,
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            );
        }
        if !watch && !has("resourceVersion") {
            forbid(matched, "resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
        if has("continue") {
            forbid(matched, "resourceVersionMatch is forbidden when continue is provided");
        }
        if !watch && matching == "Exact" && call.option("resourceVersion") == Some("0") {
            forbid(matched, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
        }
        let known: &[&str] = if watch { &["NotOlderThan"] } else { &["Exact", "NotOlderThan", ""] };
        if !known.contains(&matching) {
            let list: Vec<_> = known.iter().map(|word| format!("{word:?}")).collect();
            let text = format!("Unsupported value: {matching:?}: supported values: {}", list.join(", "));
            faults.push((matched, "FieldValueNotSupported", text));
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(Refusal::invalid_options(&faults)) }
}

/// Label and field selectors together.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    labels: Vec<Requirement>,
    /// Path, wanted value, and whether it is that or anything else.
    fields: Vec<(String, String, bool)>,
}

#[derive(Clone, Debug)]
struct Requirement {
    key: String,
    /// Values; none for "has the key".
    values: Option<Vec<String>>,
    negated: bool,
}

impl Selector {
    fn new(call: &Call, kind: &Kind) -> Result<Self, Refusal> {
        let mut fields = Vec::new();
        for term in
            call.option("fieldSelector").unwrap_or_default().split(',').filter(|term| !term.is_empty())
        {
            let (path, value, equal) = equation(term)
                .ok_or_else(|| Refusal::bad_request(format!("invalid field selector: {term:?}")))?;
            let known =
                ["metadata.name", "metadata.namespace"].contains(&path) || kind.selectable.contains(&path);
            if !known {
                return Err(Refusal::bad_request(format!("field label not supported: {path}")));
            }
            fields.push((path.to_owned(), value.to_owned(), equal));
        }
        let text = call.option("labelSelector").unwrap_or_default();
        let labels = terms(text).into_iter().map(requirement).collect::<Result<_, _>>();
        let labels =
            labels.map_err(|why| Refusal::bad_request(format!("unable to parse requirement: {why}")))?;
        Ok(Self { labels, fields })
    }

    /// Whether everything is selected.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether an object is selected.
    pub fn matches(&self, value: &Value) -> bool {
        let label = |wanted: &Requirement| {
            let held = value["metadata"]["labels"][&wanted.key].as_str();
            let there = match (&wanted.values, held) {
                (_, None) => false,
                (None, Some(_)) => true,
                (Some(values), Some(held)) => values.iter().any(|value| value == held),
            };
            there != wanted.negated
        };
        let field = |(path, wanted, equal): &(String, String, bool)| {
            let held = path.split('.').fold(value, |value, step| &value[step]);
            let text = match held {
                Value::String(text) => text.clone(),
                Value::Null if path == "spec.unschedulable" => "false".to_owned(),
                Value::Null => String::new(),
                other => other.to_string(),
            };
            (text == *wanted) == *equal
        };
        self.labels.iter().all(label) && self.fields.iter().all(field)
    }
}

/// `a=b`, `a==b`, `a!=b`.
fn equation(term: &str) -> Option<(&str, &str, bool)> {
    let pair = |sign, equal| term.split_once(sign).map(|(a, b): (&str, &str)| (a.trim(), b.trim(), equal));
    pair("!=", false).or_else(|| pair("==", true)).or_else(|| pair("=", true))
}

/// Splits at commas outside of parentheses.
fn terms(text: &str) -> Vec<&str> {
    let (mut depth, mut from, mut found) = (0, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                found.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    found.push(&text[from..]);
    found.into_iter().map(str::trim).filter(|term| !term.is_empty()).collect()
}

fn requirement(term: &str) -> Result<Requirement, String> {
    let new = |key: &str, values, negated| Ok(Requirement { key: key.trim().to_owned(), values, negated });
    for (word, negated) in [(" notin ", true), (" in ", false)] {
        if let Some((key, list)) = term.split_once(word) {
            let list = list.trim();
            let inside = list.strip_prefix('(').and_then(|list| list.strip_suffix(')'));
            let inside = inside.ok_or_else(|| format!("found '{list}' expected: '('"))?;
            return new(key, Some(inside.split(',').map(|value| value.trim().to_owned()).collect()), negated);
        }
    }
    if let Some((key, value, equal)) = equation(term) {
        return new(key, Some(vec![value.to_owned()]), !equal);
    }
    match term.strip_prefix('!') {
        Some(key) => new(key, None, true),
        None => new(term, None, false),
    }
}

/// A revision that is none. Lists and watches tell it differently.
fn version(watch: bool, why: &str) -> Refusal {
    if watch {
        return Refusal::unexplained(format!("resourceVersion: {why}"));
    }
    Refusal::bad_request(format!("invalid resource version: resourceVersion: {why}"))
}

#[cfg(test)]
mod tests {
    use hyper::{Method, Uri};
    use serde_json::json;

    use super::{Options, page, read_page};
    use crate::call::Call;
    use crate::kind::NODES;

    fn options(query: &str, streaming: bool) -> Result<Options, crate::Refusal> {
        let uri = format!("/api/v1/nodes?{query}").parse::<Uri>().unwrap();
        Options::new(&Call::new(&Method::GET, &uri), &NODES, streaming)
    }

    /// (query, streaming lists known, code)
    #[test]
    fn combinations_that_no_server_takes_are_refused() {
        for (query, streaming, code) in [
            ("limit=x", true, 400),
            ("resourceVersion=x", true, 400),
            ("continue=zz", true, 400),
            ("fieldSelector=spec.podCIDR%3Da", true, 400),
            ("labelSelector=a%20in%20b", true, 400),
            ("resourceVersionMatch=Exact", true, 422),
            ("resourceVersion=0&resourceVersionMatch=Exact", true, 422),
            ("resourceVersion=1&resourceVersionMatch=Older", true, 422),
            ("sendInitialEvents=true", true, 422),
            ("watch=1&sendInitialEvents=true", true, 422),
            ("watch=1&resourceVersionMatch=NotOlderThan", true, 422),
            ("watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan", false, 422),
            ("watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan", true, 0),
        ] {
            let got = options(query, streaming).err().map_or(0, |refusal| refusal.code);
            assert_eq!(got, code, "{query}");
        }
    }

    /// (selector, selected)
    #[test]
    fn selectors_select() {
        let node = json!({"metadata": {"name": "n", "labels": {"a": "1", "b/c": ""}}});
        for (query, selected) in [
            ("labelSelector=a%3D1", true),
            ("labelSelector=a%3D2", false),
            ("labelSelector=a!%3D2,b/c", true),
            ("labelSelector=!a", false),
            ("labelSelector=a%20in%20(1,2),!d", true),
            ("labelSelector=a%20notin%20(1,2)", false),
            ("labelSelector=d%20notin%20(1,2)", true),
            ("fieldSelector=metadata.name%3Dn", true),
            ("fieldSelector=metadata.name!%3Dn", false),
            ("fieldSelector=spec.unschedulable%3Dfalse", true),
        ] {
            assert_eq!(options(query, true).unwrap().selector.matches(&node), selected, "{query}");
        }
    }

    #[test]
    fn pages_resume_where_they_ended() {
        for key in [("".to_owned(), "n-1.x".to_owned()), ("kube-system".to_owned(), "p".to_owned())] {
            for revision in [None, Some(7)] {
                assert_eq!(read_page(&page(revision, &key)).unwrap(), (revision, key.clone()));
            }
        }
    }
}
