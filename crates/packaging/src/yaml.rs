//! YAML, as much of it as manifests need: read by a parser of others, written as Helm's `toYaml` writes it.

use std::fmt::Write as _;

use serde_json::Value;

use crate::Result;

/// All documents of a text; empty ones are left out.
///
/// # Errors
/// What is wrong, and where.
pub fn documents(text: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|error| format!("YAML: {error}"))?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// The one document of a text; `{}` if it is empty.
///
/// # Errors
/// What is wrong, and where.
pub fn document(text: &str) -> Result<Value> {
    let mut all = documents(text)?;
    match all.len() {
        0 => Ok(Value::Object(serde_json::Map::new())),
        1 => Ok(all.remove(0)),
        n => Err(format!("YAML: {n} documents where one is wanted").into()),
    }
}

/// Block style, keys in order, no newline at the end.
pub fn write(value: &Value) -> String {
    let mut out = String::new();
    block(&mut out, value, 0);
    out.trim_end_matches('\n').to_owned()
}

fn block(out: &mut String, value: &Value, depth: usize) {
    let pad = "  ".repeat(depth);
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let _ = write!(out, "{pad}{}:", scalar(&Value::String(key.clone())));
                match value {
                    Value::Object(inner) if !inner.is_empty() => {
                        out.push('\n');
                        block(out, value, depth + 1);
                    }
                    Value::Array(inner) if !inner.is_empty() => {
                        out.push('\n');
                        block(out, value, depth);
                    }
                    other => leaf(out, other, depth + 1),
                }
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for item in list {
                let mut inner = String::new();
                block(&mut inner, item, depth + 1);
                let inner = inner.strip_prefix(&"  ".repeat(depth + 1)).unwrap_or(&inner);
                let _ = write!(out, "{pad}- {inner}");
            }
        }
        other => {
            let _ = writeln!(out, "{pad}{}", scalar(other));
        }
    }
}

/// A value behind its key.
fn leaf(out: &mut String, value: &Value, depth: usize) {
    match value {
        Value::String(text) if text.contains('\n') => {
            let keep = match text.len() - text.trim_end_matches('\n').len() {
                0 => "-",
                1 => "",
                _ => "+",
            };
            let _ = writeln!(out, " |{keep}");
            for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
                let pad = if line.is_empty() { String::new() } else { "  ".repeat(depth) };
                let _ = writeln!(out, "{pad}{line}");
            }
        }
        other => {
            let _ = writeln!(out, " {}", scalar(other));
        }
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) if means_something_else(text) => json_string(text),
        Value::String(text) if needs_quotes(text) => format!("'{}'", text.replace('\'', "''")),
        Value::String(text) => text.clone(),
        Value::Array(_) => "[]".to_owned(),
        Value::Object(_) => "{}".to_owned(),
        other => other.to_string(),
    }
}

/// Read without quotes it would be no string (YAML 1.1).
fn means_something_else(text: &str) -> bool {
    let words = ["", "~", "null", "true", "false", "yes", "no", "on", "off", "y", "n"];
    let number =
        text.replace('_', "").parse::<f64>().is_ok() || text.starts_with("0x") || text.starts_with("0o");
    words.contains(&text.to_lowercase().as_str())
        || number && !text.eq_ignore_ascii_case("nan")
        || text.contains('\t')
}

fn needs_quotes(text: &str) -> bool {
    let first = text.chars().next().unwrap_or(' ');
    let indicator = "!&*{}[]|>@`\"'%#,".contains(first)
        || ("-?:".contains(first) && text.chars().nth(1).is_none_or(char::is_whitespace))
        || text.starts_with("---");
    indicator || text.contains(": ") || text.contains(" #") || text.ends_with(':') || text.trim() != text
}

/// As Go's encoding/json writes a string: `<`, `>` and `&` escaped.
pub fn json_string(text: &str) -> String {
    let quoted = Value::String(text.to_owned()).to_string();
    quoted.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use super::*;

    #[test]
    fn what_is_written_reads_the_same() {
        let text = "a: 1\nb: \"true\"\nc: ''\nd: []\ne: {}\nf:\n- x: 1\n  z:\n  - w\n- - 1\n  - 2\ng: |\n  line\n\n  more\nh: null\n\
                    i: '- a'\nj: 'k: v'\nk: \"8081\"\nl: --flag=$(X)\nm: '@x'\n";
        let value = document(text).unwrap();
        let written = write(&value);
        assert_eq!(document(&written).unwrap(), value, "{written}");
        assert!(
            written.contains("f:\n- x: 1\n  z:\n  - w\n- - 1\n  - 2\ng: |\n  line\n\n  more\n"),
            "{written}"
        );
    }
}
