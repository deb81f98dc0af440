//! Where etcd listens: the list of endpoints as flannel's `etcd-endpoints` writes it (flannel.md 1.2, 3.9).

use std::path::PathBuf;

/// How to get to a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Host name or address without brackets, and port.
    Tcp(String, u16),
    /// A socket file.
    Unix(PathBuf),
}

/// One member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// As the user wrote it, for messages.
    pub text: String,
    pub place: Place,
    pub tls: bool,
}

impl Endpoint {
    /// The name the member's certificate must carry.
    pub(super) fn host(&self) -> &str {
        match &self.place {
            Place::Tcp(host, _) => host,
            Place::Unix(_) => "localhost",
        }
    }

    /// The base of request URIs.
    pub(super) fn origin(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        match &self.place {
            Place::Tcp(host, port) if host.contains(':') => format!("{scheme}://[{host}]:{port}"),
            Place::Tcp(host, port) => format!("{scheme}://{host}:{port}"),
            Place::Unix(_) => format!("{scheme}://localhost"),
        }
    }
}

/// Reads a comma-separated list. `http://` and `unix:` never use TLS, `https://` and `unixs:` always do,
/// a bare `host:port` exactly when `tls_settings` were given. A missing port is 2379.
///
/// # Errors
/// The list is empty, or names the entry that cannot be read.
pub(super) fn parse_list(list: &str, tls_settings: bool) -> Result<Vec<Endpoint>, String> {
    let mut endpoints = Vec::new();
    for text in list.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        let endpoint = parse(text, tls_settings).ok_or_else(|| match text.rsplit_once('@') {
            // What stands before it may be a password, and this goes into the log.
            Some((_, host)) => format!(
                "etcd endpoint at {host:?}: name the user with etcd-username and etcd-password, not in the endpoint"
            ),
            None => format!(
                "etcd endpoint {text:?}: not of the form http://host:port, https://host:port, host:port or unix:/path"
            ),
        })?;
        endpoints.push(endpoint);
    }
    if endpoints.is_empty() {
        return Err("no etcd endpoint given; name at least one, such as http://127.0.0.1:2379".to_owned());
    }
    Ok(endpoints)
}

fn parse(text: &str, tls_settings: bool) -> Option<Endpoint> {
    let made = |place, tls| Some(Endpoint { text: text.to_owned(), place, tls });
    for (scheme, tls) in [("unix:", false), ("unixs:", true)] {
        if let Some(path) = text.strip_prefix(scheme) {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() { None } else { made(Place::Unix(path.into()), tls) };
        }
    }
    let (rest, tls) = match text.split_once("://") {
        Some(("http", rest)) => (rest, false),
        Some(("https", rest)) => (rest, true),
        Some(_) => return None,
        None => (text, tls_settings),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = split_port(rest)?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
    if host.is_empty() || !host.chars().all(fits) {
        return None;
    }
    made(Place::Tcp(host.to_owned(), port), tls)
}

/// Splits `host`, `host:port`, `[v6]`, `[v6]:port` or a bare IPv6 address.
fn split_port(text: &str) -> Option<(&str, u16)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        let port = if port.is_empty() { 2379 } else { port.strip_prefix(':')?.parse().ok()? };
        return host.parse::<std::net::Ipv6Addr>().ok().map(|_| (host, port));
    }
    match text.split_once(':') {
        None => Some((text, 2379)),
        Some((_, rest)) if rest.contains(':') => {
            text.parse::<std::net::Ipv6Addr>().ok().map(|_| (text, 2379))
        }
        Some((host, port)) => Some((host, port.parse().ok()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_as_etcd_clients_do() {
        let tcp = |host: &str, port| Some(Place::Tcp(host.to_owned(), port));
        for (text, settings, place, tls) in [
            ("http://127.0.0.1:2379", true, tcp("127.0.0.1", 2379), false),
            ("https://etcd-1.example:4001/", false, tcp("etcd-1.example", 4001), true),
            ("etcd-1:2379", false, tcp("etcd-1", 2379), false),
            ("etcd-1:2379", true, tcp("etcd-1", 2379), true),
            ("etcd-1", true, tcp("etcd-1", 2379), true),
            ("https://[fd00::1]:2379", false, tcp("fd00::1", 2379), true),
            ("fd00::1", false, tcp("fd00::1", 2379), false),
            ("[fd00::1]", false, tcp("fd00::1", 2379), false),
            ("unix:///run/etcd.sock", true, Some(Place::Unix("/run/etcd.sock".into())), false),
            ("unixs:run/etcd.sock", false, Some(Place::Unix("run/etcd.sock".into())), true),
            ("ftp://host:1", false, None, false),
            ("http://host:70000", false, None, false),
            ("http://host:", false, None, false),
            ("http://", false, None, false),
            ("http://a b:1", false, None, false),
            ("http://[fd00::1", false, None, false),
            ("unix:", false, None, false),
        ] {
            let got = parse(text, settings);
            assert_eq!(got.as_ref().map(|e| e.place.clone()), place, "{text}");
            assert!(got.is_none_or(|e| e.tls == tls), "{text}");
        }
        assert_eq!(parse_list("http://a:1, http://b:2,", false).unwrap().len(), 2);
        assert!(parse_list("", false).unwrap_err().contains("no etcd endpoint"));
        let said = parse_list("http://u:secret@a:1", false).unwrap_err();
        assert!(said.contains("\"a:1\"") && !said.contains("secret"), "{said}");
        assert!(parse_list("http://a:1,x://", false).unwrap_err().contains("\"x://\""));
    }
}
