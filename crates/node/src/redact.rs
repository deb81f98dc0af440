//! Takes secrets out of texts. Two ways, both always: what a text itself calls a secret (a value behind a name such
//! as `password`, a private key, a token, the user of a URL), and what is known to be one from elsewhere, wherever it
//! stands. Pure. Prefers taking too much: a report without a harmless word is still a report.

use std::fmt;
use std::ops::Range;

use model::Json;

/// What stands where something was taken out.
pub const MARK: &str = "(removed)";
/// Shorter texts are not looked for everywhere: they would be found in innocent words.
const SHORTEST: usize = 4;

/// Parts of names whose values are secrets; letters and digits alone, in lower case.
const NAMES: &[&str] = &[
    "password",
    "passwd",
    "passphrase",
    "psk",
    "presharedkey",
    "secret",
    "token",
    "privatekey",
    "clientkey",
    "keydata",
    "apikey",
    "accesskey",
    "authkey",
    "etcdkey",
    "credential",
    "authorization",
    "cookie",
];

/// Ends of names that tell where a secret is, not what it is.
const PLACES: &[&str] = &["file", "path", "dir", "name", "ref", "url", "type", "ttl", "id"];

/// Knows secrets.
#[derive(Default)]
pub struct Redactor {
    known: Vec<String>,
}

impl Redactor {
    /// A whole text is a secret: the content of a key file.
    pub fn know(&mut self, text: &str) {
        let text = text.trim();
        let plain = ["null", "true", "false", "none", "default", "root", "flannel"].contains(&text);
        if text.len() >= SHORTEST
            && !plain
            && !MARK.contains(text)
            && !self.known.iter().any(|known| known == text)
        {
            self.known.push(text.to_owned());
            // A secret that begins like another one must not leave its end behind.
            self.known.sort_by_key(|known| std::cmp::Reverse(known.len()));
        }
    }

    /// Every secret a text itself tells of.
    pub fn learn(&mut self, text: &str) {
        spans(text).into_iter().for_each(|span| self.know(&text[span]));
    }

    /// The text without secrets.
    pub fn text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for known in &self.known {
            text = text.replace(known.as_str(), MARK);
            // As it stands in JSON.
            let escaped = Json::from(known.as_str()).to_compact();
            let escaped = escaped.trim_matches('"');
            if escaped != known {
                text = text.replace(escaped, MARK);
            }
        }
        let (mut out, mut at) = (String::new(), 0);
        for span in spans(&text) {
            out.push_str(&text[at..span.start]);
            out.push_str(MARK);
            at = span.end;
        }
        out.push_str(&text[at..]);
        out
    }

    /// The document without secrets: members by their names, and all texts in it.
    pub fn json(&self, json: &Json) -> Json {
        match json {
            Json::String(text) => Json::String(self.text(text)),
            Json::Array(items) => Json::Array(items.iter().map(|item| self.json(item)).collect()),
            Json::Object(members) => Json::object(members.iter().map(|(name, value)| {
                let empty = value.is_null() || value.as_str() == Some("") || value.as_bool().is_some();
                let value = if is_secret(name) && !empty { MARK.into() } else { self.json(value) };
                (name.as_str(), value)
            })),
            other => other.clone(),
        }
    }
}

impl fmt::Debug for Redactor {
    /// Not what it knows.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redactor of {} secrets", self.known.len())
    }
}

/// Whether the value of something called so is a secret.
pub fn is_secret(name: &str) -> bool {
    let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase();
    NAMES.iter().any(|part| plain.contains(part)) && !PLACES.iter().any(|end| plain.ends_with(end))
}

/// Where a text tells of secrets; in order, without overlaps, none empty.
fn spans(text: &str) -> Vec<Range<usize>> {
    let mut all = blocks(text);
    all.extend(users(text));
    all.extend(schemes(text));
    all.extend(tokens(text));
    all.extend(values(text));
    all.retain(|span| !span.is_empty() && &text[span.clone()] != MARK);
    all.sort_by_key(|span| (span.start, std::cmp::Reverse(span.end)));
    let mut end = 0;
    all.retain_mut(|span| {
        span.start = span.start.max(end);
        let left = span.start < span.end;
        end = end.max(span.end);
        left
    });
    all
}

/// Private keys in PEM (RFC 7468), also where line ends are escaped.
fn blocks(text: &str) -> Vec<Range<usize>> {
    let (mut found, mut from) = (Vec::new(), 0);
    while let Some(at) = text[from..].find("-----BEGIN ").map(|at| from + at) {
        let label = text[at + 11..].split("-----").next().unwrap_or_default();
        from = at + 11;
        if label.ends_with("PRIVATE KEY") {
            let begin = (from + label.len() + 5).min(text.len());
            let end = text[begin..].find("-----END").map_or(text.len(), |end| begin + end);
            found.push(begin..end);
            from = end;
        }
    }
    found
}

/// User and password of URLs (RFC 3986, 3.2.1).
fn users(text: &str) -> Vec<Range<usize>> {
    let starts = text.match_indices("://").map(|(at, mark)| at + mark.len());
    let of = |start: usize| {
        // Commas and brackets may be part of a password.
        let authority = text[start..].find(|c: char| "/?#\\\"<>` \t\r\n".contains(c));
        let authority = &text[start..authority.map_or(text.len(), |end| start + end)];
        Some(start..start + authority.rfind('@')?)
    };
    starts.filter_map(of).collect()
}

/// What stands behind the name of a way to show who one is (RFC 9110, 11.4).
fn schemes(text: &str) -> Vec<Range<usize>> {
    let lower = text.to_ascii_lowercase();
    let mut found = Vec::new();
    for scheme in ["bearer ", "basic "] {
        for (at, _) in lower.match_indices(scheme) {
            let start = at + scheme.len();
            let value = text[start..].find(|c: char| !c.is_ascii_alphanumeric() && !"-._~+/=".contains(c));
            let end = value.map_or(text.len(), |end| start + end);
            // "basic support" is no password.
            if end - start >= 16 {
                found.push(start..end);
            }
        }
    }
    found
}

/// JSON web tokens (RFC 7519): three parts, the first of which begins with `{"`.
fn tokens(text: &str) -> Vec<Range<usize>> {
    let of = |(start, _)| {
        let value = text[start..].find(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c));
        let end = value.map_or(text.len(), |end| start + end);
        (text[start..end].matches('.').count() == 2).then_some(start..end)
    };
    text.match_indices("eyJ").filter_map(of).collect()
}

/// Values behind names: `name: value`, `name=value`, `"name": "value"`, `--name value`, also in quotes that are
/// escaped once or more.
fn values(text: &str) -> Vec<Range<usize>> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(start) = text[at..].find(is_name).map(|start| at + start) {
        let end = text[start..].find(|c| !is_name(c)).map_or(text.len(), |end| start + end);
        at = end;
        if !is_secret(&text[start..end]) {
            continue;
        }
        let closing = text[end..].trim_start_matches(['\\', '"', '\'']);
        let gap = closing.trim_start_matches([' ', '\t']);
        let value = match gap.strip_prefix([':', '=']) {
            // Behind a line end only what is in quotes.
            Some(value) => match value.trim_start_matches([' ', '\t', '=']) {
                rest if rest.starts_with(['\n', '\r']) => {
                    Some(value.trim_start()).filter(|value| value.starts_with(['"', '\'']))
                }
                rest => Some(rest),
            },
            None if text[start..].starts_with('-') && gap.len() < closing.len() => Some(gap),
            None => None,
        };
        if let Some(value) = value {
            let begin = text.len() - value.len();
            let span = of(value);
            found.push(begin + span.start..begin + span.end);
            at = at.max(begin + span.end);
        }
    }
    found
}

/// The value at the beginning of a text.
fn of(text: &str) -> Range<usize> {
    let slashes = text.len() - text.trim_start_matches('\\').len();
    match text[slashes..].chars().next() {
        Some(quote @ ('"' | '\'')) => {
            let open = slashes + 1;
            // Quotes escaped as deep as the opening one end it; deeper ones are part of it.
            let mut from = open;
            while let Some(close) = text[from..].find(quote).map(|close| from + close) {
                let before = text[..close].len() - text[..close].trim_end_matches('\\').len();
                if before <= slashes || slashes == 0 && before.is_multiple_of(2) {
                    return open..(if slashes == 0 { close } else { (close - before).max(open) });
                }
                from = close + 1;
            }
            open..text.len()
        }
        _ if text.starts_with(MARK) => 0..0,
        Some('[') => 0..text.find(']').map_or(text.len(), |end| end + 1),
        Some('{') => 0..0,
        _ => {
            let end = text.find(|c: char| c.is_whitespace() || ",;&)]}\"'\\".contains(c));
            let end = end.unwrap_or(text.len());
            let empty = ["null", "true", "false", "~", "|", ">", "\"\""].contains(&&text[..end]);
            if empty { 0..0 } else { 0..end }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_text_calls_a_secret_goes() {
        let redactor = Redactor::default();
        for (text, want) in [
            ("nothing here: 10.0.0.1", "nothing here: 10.0.0.1"),
            ("--etcd-password=hunter2 -v=2", "--etcd-password=(removed) -v=2"),
            ("-etcd-password hunter2 -v 2", "-etcd-password (removed) -v 2"),
            ("FLANNELD_ETCD_PASSWORD=hunter2", "FLANNELD_ETCD_PASSWORD=(removed)"),
            ("etcd-password: \"(hidden)\"", "etcd-password: \"(removed)\""),
            ("http://a:b@[::1]:2379,https://c@h/x", "http://(removed)@[::1]:2379,https://(removed)@h/x"),
            ("http://h:80/a@b", "http://h:80/a@b"),
            (r#"{"PSK":"s3c\"ret","MTU":1}"#, r#"{"PSK":"(removed)","MTU":1}"#),
            (r#""{\"PSK\":\"s3cret\",\"x\":1}""#, r#""{\"PSK\":\"(removed)\",\"x\":1}""#),
            (r#""a \\\"token\\\": \\\"x y\\\" b""#, r#""a \\\"token\\\": \\\"(removed)\\\" b""#),
            (r#"{"psk": null, "token": ""}"#, r#"{"psk": null, "token": ""}"#),
            (r#"{"tokens": ["a", "b"], "c": 1}"#, r#"{"tokens": (removed), "c": 1}"#),
            (r#"{"secret": {"password": "p"}}"#, r#"{"secret": {"password": "(removed)"}}"#),
            ("\"token\":\n   \"abc\"", "\"token\":\n   \"(removed)\""),
            ("    token: abc.def\n    user: x", "    token: (removed)\n    user: x"),
            ("  client-key-data: TFM0=\n", "  client-key-data: (removed)\n"),
            ("etcd-keyfile: \"/a/key.pem\"", "etcd-keyfile: \"/a/key.pem\""),
            ("tokenFile: /var/run/token\n", "tokenFile: /var/run/token\n"),
            ("Authorization: Bearer abcdefghijklmnop", "Authorization: (removed) (removed)"),
            ("bearer support", "bearer support"),
            ("x eyJhbGciOi.eyJpc3Mi.c2ln y", "x (removed) y"),
            (
                "-----BEGIN EC PRIVATE KEY-----\nMHcC\n-----END EC PRIVATE KEY-----\n",
                "-----BEGIN EC PRIVATE KEY-----(removed)-----END EC PRIVATE KEY-----\n",
            ),
            (
                "-----BEGIN CERTIFICATE-----\nMIIC\n-----END CERTIFICATE-----",
                "-----BEGIN CERTIFICATE-----\nMIIC\n-----END CERTIFICATE-----",
            ),
            ("-----BEGIN PRIVATE KEY-----\\nMHcC", "-----BEGIN PRIVATE KEY-----(removed)"),
            ("password", "password"),
            ("password=", "password="),
            ("wrong password: é", "wrong password: (removed)"),
        ] {
            assert_eq!(redactor.text(text), want, "{text}");
            assert_eq!(redactor.text(want), want, "once is enough: {want}");
        }
    }

    #[test]
    fn what_is_known_goes_everywhere() {
        let mut redactor = Redactor::default();
        redactor.know("hunter2\n");
        redactor.know("abc");
        redactor.learn("users:\n- user:\n    token: s3cr3t-token\nnull: 1\npassword: null\n");
        redactor.know("s3cr3t-token-longer");
        redactor.know("quo\"ted");
        for (text, want) in [
            ("login with hunter2hunter2 abc", "login with (removed)(removed) abc"),
            ("s3cr3t-token s3cr3t-token-longer null", "(removed) (removed) null"),
            (r#"{"a":"quo\"ted"}"#, r#"{"a":"(removed)"}"#),
        ] {
            assert_eq!(redactor.text(text), want);
        }
    }

    #[test]
    fn documents_stay_documents() {
        let mut redactor = Redactor::default();
        redactor.know("12345678");
        let text =
            r#"{"PSK":12345678,"a":[{"Token":["x"],"n":null,"secret":null,"on_token":true}],"t":"psk: x"}"#;
        let json: Json = text.parse().unwrap();
        let want = r#"{"PSK":"(removed)","a":[{"Token":"(removed)","n":null,"secret":null,"on_token":true}],"t":"psk: (removed)"}"#;
        let written = redactor.json(&json).to_compact();
        assert_eq!(written, want);
        assert_eq!(redactor.text(&written), want);
    }

    #[test]
    fn no_text_is_too_strange() {
        let parts = [
            "token",
            ":",
            "=",
            "\\",
            "\"",
            "'",
            "[",
            "{",
            "é",
            "://",
            "@",
            "-----BEGIN PRIVATE KEY-----",
            " ",
            "\n",
        ];
        let redactor = Redactor::default();
        let mut state = 1_u32;
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..8 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                text.push_str(parts[(state >> 16) as usize % parts.len()]);
            }
            redactor.text(&text);
        }
    }
}
