//! Tree to text, byte for byte as Go writes it.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::Json;

#[derive(Clone, Copy)]
pub(super) struct Style {
    /// Blanks of one level; `None` = everything on one line.
    pub indent: Option<&'static str>,
    /// Members by name, the last of duplicates only.
    pub sorted: bool,
}

pub(super) fn text(json: &Json, style: Style) -> String {
    let mut out = String::new();
    value(&mut out, json, style, 0);
    out
}

fn value(out: &mut String, json: &Json, style: Style, level: usize) {
    match json {
        Json::Null => out.push_str("null"),
        Json::Bool(true) => out.push_str("true"),
        Json::Bool(false) => out.push_str("false"),
        Json::Number(text) => out.push_str(text),
        Json::String(text) => string(out, text),
        Json::Array(items) => list(out, style, level, ['[', ']'], items.iter(), |out, item| {
            value(out, item, style, level + 1);
        }),
        Json::Object(members) if style.sorted => {
            let by_name: BTreeMap<&str, &Json> = members.iter().map(|(k, v)| (k.as_str(), v)).collect();
            list(out, style, level, ['{', '}'], by_name.into_iter(), |out, (name, item)| {
                member(out, name, item, style, level);
            });
        }
        Json::Object(members) => list(out, style, level, ['{', '}'], members.iter(), |out, (name, item)| {
            member(out, name, item, style, level);
        }),
    }
}

fn member(out: &mut String, name: &str, item: &Json, style: Style, level: usize) {
    string(out, name);
    out.push_str(if style.indent.is_some() { ": " } else { ":" });
    value(out, item, style, level + 1);
}

fn list<I>(
    out: &mut String,
    style: Style,
    level: usize,
    brackets: [char; 2],
    items: impl Iterator<Item = I>,
    mut each: impl FnMut(&mut String, I),
) {
    out.push(brackets[0]);
    let mut empty = true;
    for item in items {
        if !empty {
            out.push(',');
        }
        empty = false;
        line(out, style, level + 1);
        each(out, item);
    }
    if !empty {
        line(out, style, level);
    }
    out.push(brackets[1]);
}

fn line(out: &mut String, style: Style, level: usize) {
    if let Some(indent) = style.indent {
        out.push('\n');
        (0..level).for_each(|_| out.push_str(indent));
    }
}

fn string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // Go keeps its output safe inside HTML and JavaScript.
            '\u{0}'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            _ => out.push(c),
        }
    }
    out.push('"');
}
