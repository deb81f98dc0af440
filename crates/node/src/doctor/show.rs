//! Findings for people and for programs. Pure.

use lab::paint::{Style, Text, Tone};
use model::Json;

use super::{Facts, Finding, Weight, checks};

/// Version of the JSON.
const VERSION: u32 = 1;

/// The screen.
pub fn show(found: &[Finding], facts: &Facts, style: Style) -> Vec<Text> {
    let mut lines = Vec::new();
    for finding in found {
        let mark = match finding.weight {
            Weight::Broken => style.cross(),
            Weight::Risk => Text::of(Tone::Bold, style.pick("!", "!")),
        };
        lines.push(
            mark.and(Tone::Bold, format!(" {}", finding.what))
                .and(Tone::Dim, format!("  [{}]", finding.check)),
        );
        for (head, text, tone) in [
            ("seen", &finding.seen, Tone::Plain),
            ("so", &finding.so, Tone::Plain),
            ("do", &finding.fix, Tone::Good),
        ] {
            let room = style.width.saturating_sub(10).max(40);
            for (at, part) in wrapped(text, room).into_iter().enumerate() {
                let head = if at == 0 { head } else { "" };
                lines.push(Text::of(Tone::Dim, format!("    {head}")).left(10).and(tone, part));
            }
        }
        lines.push(Text::default());
    }
    for missing in &facts.missing {
        lines.push(Text::of(Tone::Dim, format!("not looked at: {missing}")));
    }
    let all = checks::all().count();
    let verdict = match found.len() {
        0 if facts.missing.is_empty() => {
            style.tick().and(Tone::Plain, format!(" {all} checks, nothing found"))
        }
        0 => Text::plain(format!("? {all} checks, nothing found in what could be looked at")),
        1 => style.cross().and(Tone::Plain, format!(" {all} checks, 1 finding")),
        n => style.cross().and(Tone::Plain, format!(" {all} checks, {n} findings, the gravest first")),
    };
    lines.push(verdict);
    lines
}

/// Words in lines of at most `room` columns; a longer word has a line of its own.
pub fn wrapped(text: &str, room: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines
            .last_mut()
            .filter(|line| line.is_empty() || line.chars().count() + word.chars().count() < room);
        match last {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) => {
                line.push(' ');
                line.push_str(word);
            }
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

/// The document.
pub fn json(found: &[Finding], facts: &Facts) -> Json {
    let one = |finding: &Finding| {
        Json::object([
            ("check", finding.check.into()),
            ("weight", if finding.weight == Weight::Broken { "broken" } else { "risk" }.into()),
            ("what", finding.what.as_str().into()),
            ("seen", finding.seen.as_str().into()),
            ("so", finding.so.as_str().into()),
            ("fix", finding.fix.as_str().into()),
            ("automatic", finding.sysctl.is_some().into()),
        ])
    };
    Json::object([
        ("version", VERSION.into()),
        ("checks", u32::try_from(checks::all().count()).unwrap_or(u32::MAX).into()),
        ("findings", Json::array(found.iter().map(one))),
        ("missing", Json::array(facts.missing.iter().map(String::as_str))),
    ])
}
