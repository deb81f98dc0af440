//! A request taken apart: which verb on which objects, with which options.

use std::fmt;

use hyper::Method;
use hyper::Uri;

use crate::kind::Kind;
use crate::refusal::Target;

/// What a client asks for.
#[derive(Clone, Debug)]
pub struct Call {
    /// As access rules name it: `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`,
    /// `deletecollection`; for a path that is no object the method in small letters.
    pub verb: &'static str,
    /// Path as sent.
    pub path: String,
    /// Kind of the objects; none for other paths.
    pub kind: Option<&'static Kind>,
    /// Namespace, or empty.
    pub namespace: String,
    /// Name, or empty.
    pub name: String,
    /// Subresource, or empty.
    pub subresource: String,
    /// Options, decoded, in the order sent.
    pub query: Vec<(String, String)>,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.path)?;
        for (number, (name, value)) in self.query.iter().enumerate() {
            write!(f, "{}{name}={value}", if number == 0 { '?' } else { '&' })?;
        }
        Ok(())
    }
}

impl Call {
    /// Takes a request apart.
    pub fn new(method: &Method, uri: &Uri) -> Self {
        let query: Vec<_> = uri.query().unwrap_or_default().split('&').filter_map(pair).collect();
        let path = decode(uri.path());
        let mut call = Self {
            verb: match method.as_str() {
                "GET" | "HEAD" => "get",
                "POST" => "create",
                "PUT" => "update",
                "PATCH" => "patch",
                "DELETE" => "delete",
                _ => "other",
            },
            path: path.clone(),
            kind: None,
            namespace: String::new(),
            name: String::new(),
            subresource: String::new(),
            query,
        };
        call.locate(&path);
        let watch = call.option("watch").is_some_and(|value| value == "true" || value == "1");
        if call.kind.is_none() {
            call.verb = match call.verb {
                "create" => "post",
                "update" => "put",
                verb => verb,
            };
        } else if call.name.is_empty() {
            call.verb = match call.verb {
                "get" if watch => "watch",
                "get" => "list",
                "delete" => "deletecollection",
                verb => verb,
            };
        }
        call
    }

    fn locate(&mut self, path: &str) {
        let steps: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, version, rest) = match &steps[..] {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return,
        };
        let (namespace, plural, rest) = match rest {
            // `namespaces/NAME`, `namespaces/NAME/status`: the namespace itself.
            ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => ("", "namespaces", &rest[1..]),
            ["namespaces", namespace, plural, rest @ ..] => (*namespace, *plural, rest),
            [plural, rest @ ..] => ("", *plural, rest),
            [] => return,
        };
        let (name, subresource) = match rest {
            [] => ("", ""),
            [name] => (*name, ""),
            [name, subresource] => (*name, *subresource),
            _ => return,
        };
        let Some(kind) = Kind::find(group, version, plural) else { return };
        // Objects of a namespaced kind have no place outside of one, those of another none inside.
        if kind.namespaced == namespace.is_empty() && !(kind.namespaced && name.is_empty()) {
            return;
        }
        self.kind = Some(kind);
        self.namespace = namespace.to_owned();
        self.name = name.to_owned();
        self.subresource = subresource.to_owned();
    }

    /// An option; an empty one counts as absent.
    pub fn option(&self, name: &str) -> Option<&str> {
        let found = self.query.iter().find(|(key, value)| key == name && !value.is_empty());
        found.map(|(_, value)| value.as_str())
    }

    /// What a refusal names.
    pub fn target(&self) -> Target<'_> {
        Target { namespace: &self.namespace, name: &self.name, subresource: &self.subresource }
    }

    /// `nodes`, `nodes/status`; the path where there is no kind.
    pub fn resource(&self) -> String {
        match self.kind {
            None => self.path.clone(),
            Some(kind) if self.subresource.is_empty() => kind.plural.to_owned(),
            Some(kind) => format!("{}/{}", kind.plural, self.subresource),
        }
    }
}

fn pair(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    (!name.is_empty()).then(|| (decode(&name.replace('+', " ")), decode(&value.replace('+', " "))))
}

/// RFC 3986 §2.1. What is no valid escape stays as it is.
fn decode(text: &str) -> String {
    let (bytes, mut plain, mut at) = (text.as_bytes(), Vec::new(), 0);
    while at < bytes.len() {
        let escaped = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| bytes[at] == b'%') {
            Some(byte) => {
                plain.push(byte);
                at += 3;
            }
            None => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use hyper::{Method, Uri};

    use super::Call;

    /// (method, path and query, verb, resource, namespace, name)
    #[test]
    fn requests_are_taken_apart() {
        let table = [
            ("GET", "/api/v1/nodes", "list", "nodes", "", ""),
            ("GET", "/api/v1/nodes?watch=true&x=%2Fy", "watch", "nodes", "", ""),
            ("GET", "/api/v1/nodes/n1", "get", "nodes", "", "n1"),
            ("PATCH", "/api/v1/nodes/n1/status", "patch", "nodes/status", "", "n1"),
            ("GET", "/api/v1/namespaces/kube-flannel/pods/p", "get", "pods", "kube-flannel", "p"),
            ("GET", "/api/v1/pods", "list", "pods", "", ""),
            ("DELETE", "/api/v1/namespaces/a/pods", "deletecollection", "pods", "a", ""),
            ("GET", "/api/v1/namespaces/a", "get", "namespaces", "", "a"),
            ("PUT", "/api/v1/namespaces/a/status", "update", "namespaces/status", "", "a"),
            ("POST", "/apis/events.k8s.io/v1/namespaces/default/events", "create", "events", "default", ""),
            ("GET", "/api/v1/pods/p", "get", "/api/v1/pods/p", "", ""),
            ("GET", "/api/v1/namespaces/a/nodes/n", "get", "/api/v1/namespaces/a/nodes/n", "", ""),
            ("POST", "/healthz", "post", "/healthz", "", ""),
        ];
        for (method, uri, verb, resource, namespace, name) in table {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let call = Call::new(&method, &uri.parse::<Uri>().unwrap());
            let got = (call.verb, &*call.resource(), &*call.namespace, &*call.name);
            assert_eq!(got, (verb, resource, namespace, name), "{method} {uri}");
        }
        let call = Call::new(&Method::GET, &"/api/v1/nodes?a=%2Fy+z&b=%zz".parse::<Uri>().unwrap());
        assert_eq!((call.option("a"), call.option("b")), (Some("/y z"), Some("%zz")));
    }
}
