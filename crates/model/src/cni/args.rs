//! `CNI_ARGS`: `KEY=VALUE` pairs joined by `;` (cni.md 1.8).

use std::collections::BTreeMap;

/// The pairs a plugin knows, after the check for unknown ones. The last of equal keys wins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args(BTreeMap<String, String>);

impl Args {
    /// Parses the variable. `known` are the keys the plugin understands.
    ///
    /// # Errors
    /// A pair without exactly one `=`, a bad boolean for `IgnoreUnknown`, or a key that is neither known
    /// nor told to be ignored.
    pub fn parse(text: &str, known: &[&str]) -> Result<Args, String> {
        if text.is_empty() {
            return Ok(Args::default());
        }
        let mut found = BTreeMap::new();
        let mut unknown = Vec::new();
        let mut ignore = false;
        for pair in text.split(';') {
            let Some((key, value)) = pair.split_once('=').filter(|(_, v)| !v.contains('=')) else {
                return Err(format!("ARGS: invalid pair {pair:?}"));
            };
            if key == "IgnoreUnknown" {
                ignore = boolean(value).ok_or_else(|| {
                    let cause = format!("boolean unmarshal error: invalid input {value}");
                    format!("ARGS: error parsing value of pair {pair:?}: {cause}")
                })?;
            } else if known.contains(&key) {
                found.insert(key.to_owned(), value.to_owned());
            } else {
                unknown.push(format!("{pair:?}"));
            }
        }
        if !unknown.is_empty() && !ignore {
            return Err(format!("ARGS: unknown args [{}]", unknown.join(" ")));
        }
        Ok(Args(found))
    }

    /// The value of a key, `None` if absent or empty.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|v| !v.is_empty())
    }
}

fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn args_parse_as_upstream() {
        let yes = "boolean unmarshal error: invalid input yes";
        for (text, want) in [
            ("", Ok(None)),
            ("IP=10.1.2.3", Ok(Some("10.1.2.3"))),
            ("IP=a;IP=b", Ok(Some("b"))),
            ("FOO=BAR;X=Y", Err("ARGS: unknown args [\"FOO=BAR\" \"X=Y\"]".to_owned())),
            ("FOO=BAR;IgnoreUnknown=TRUE;IP=1", Ok(Some("1"))),
            ("IgnoreUnknown=1;K8S_POD_NAME=a/b:c", Ok(None)),
            ("IP=1;", Err("ARGS: invalid pair \"\"".to_owned())),
            ("IP=1=2", Err("ARGS: invalid pair \"IP=1=2\"".to_owned())),
            ("IP", Err("ARGS: invalid pair \"IP\"".to_owned())),
            (
                "IgnoreUnknown=yes",
                Err(format!("ARGS: error parsing value of pair \"IgnoreUnknown=yes\": {yes}")),
            ),
            ("ip=1", Err("ARGS: unknown args [\"ip=1\"]".to_owned())),
        ] {
            let got = Args::parse(text, &["IP"]);
            assert_eq!(got.as_ref().map(|a| a.get("IP")).map_err(Clone::clone), want, "{text:?}");
        }
    }
}
