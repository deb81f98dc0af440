//! Lines of `KEY=VALUE` as dotenv files have them: `export`, comments, quotes, `$VAR` from lines above.

use std::collections::BTreeMap;

/// Reads all lines; the last value of a key wins. Also gives a sentence for each line skipped.
pub fn read(text: &str) -> (BTreeMap<String, String>, Vec<String>) {
    let (mut values, mut warnings) = (BTreeMap::new(), Vec::new());
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let pair = line.split_once('=').map(|(key, value)| (key.trim(), value.trim()));
        let Some((key, value)) = pair.filter(|(key, _)| is_name(key)) else {
            warnings.push(format!("skip line {}: {line:?} is not KEY=VALUE", number + 1));
            continue;
        };
        match evaluate(value, &values) {
            Some(value) => drop(values.insert(key.to_owned(), value)),
            None => warnings.push(format!("skip line {}: the quotes of {key} do not close", number + 1)),
        }
    }
    (values, warnings)
}

fn is_name(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'))
}

/// The value of the right-hand side; `None` if a quote does not close.
fn evaluate(text: &str, known: &BTreeMap<String, String>) -> Option<String> {
    match text.chars().next() {
        Some('\'') => text[1..].split_once('\'').map(|(inside, _)| inside.to_owned()),
        Some('"') => {
            let mut inside = String::new();
            let mut chars = text[1..].chars();
            loop {
                match chars.next()? {
                    '"' => return Some(expand(&inside, known)),
                    '\\' => match chars.next()? {
                        'n' => inside.push('\n'),
                        'r' => inside.push('\r'),
                        // Left for `expand`, which takes it as a plain dollar.
                        '$' => inside.push_str("\\$"),
                        other => inside.push(other),
                    },
                    other => inside.push(other),
                }
            }
        }
        _ => {
            let end = text.find(" #").or_else(|| text.find("\t#")).unwrap_or(text.len());
            Some(expand(text[..end].trim_end(), known))
        }
    }
}

/// Puts the values of `$NAME` and `${NAME}` in; unknown names are empty, `\$` is a dollar.
fn expand(text: &str, known: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, after) = (&rest[..at], &rest[at + 1..]);
        if let Some(before) = before.strip_suffix('\\') {
            out.push_str(before);
            out.push('$');
            rest = after;
            continue;
        }
        out.push_str(before);
        let braced = after.strip_prefix('{').and_then(|inside| inside.split_once('}'));
        let (name, next) = match braced {
            Some(pair) => pair,
            None => after.split_at(
                after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len()),
            ),
        };
        if name.is_empty() {
            out.push('$');
        }
        out.push_str(known.get(name).map_or("", String::as_str));
        rest = next;
    }
    out.push_str(rest);
    out
}
