//! Who reaches whom.

use std::collections::BTreeMap;

use crate::paint::{Style, Text, Tone, time};
use crate::proto::Reach;

/// Most failures listed one by one.
const FAILURES: usize = 8;

/// A square of round-trip times for each address family, and a summary.
pub fn matrix(reaches: &[Reach], style: Style) -> Vec<Text> {
    let mut lines = Vec::new();
    for v6 in [false, true] {
        let family: Vec<&Reach> = reaches.iter().filter(|r| r.address.is_ipv6() == v6).collect();
        if family.is_empty() {
            continue;
        }
        if reaches.iter().any(|r| r.address.is_ipv6() != v6) {
            if !lines.is_empty() {
                lines.push(Text::default());
            }
            lines.push(Text::of(Tone::Dim, if v6 { "   IPv6" } else { "   IPv4" }));
        }
        lines.extend(square(&family, style));
    }
    lines.push(Text::default());
    lines.extend(summary(reaches, style));
    lines
}

fn square(reaches: &[&Reach], style: Style) -> Vec<Text> {
    let froms = in_order(reaches.iter().map(|r| r.from.as_str()));
    let tos = in_order(reaches.iter().map(|r| r.to.as_str()));
    let cells: BTreeMap<(&str, &str), &Reach> =
        reaches.iter().map(|r| ((r.from.as_str(), r.to.as_str()), *r)).collect();
    let head = froms.iter().map(|f| f.len()).max().unwrap_or(0) + 5;
    let cell = tos.iter().map(|t| t.len()).max().unwrap_or(0).max(7) + 2;
    let in_row = (style.width.saturating_sub(head) / cell).max(1);
    let mut lines = Vec::new();
    for columns in tos.chunks(in_row) {
        let mut line = Text::plain("   ").and(Tone::Dim, "from \\ to").left(head);
        for to in columns {
            line = line.join(Text::of(Tone::Bold, to).right(cell));
        }
        lines.push(line);
        for from in &froms {
            let mut line = Text::plain("   ").and(Tone::Bold, from).left(head);
            for to in columns {
                let text = cells.get(&(*from, *to)).map_or_else(
                    || Text::of(Tone::Dim, style.dot()),
                    |reach| match reach {
                        Reach { small_us: Some(us), full_us: Some(_), .. } => {
                            Text::of(Tone::Good, time(*us, style))
                        }
                        Reach { small_us: Some(_), .. } => Text::of(Tone::Bad, "partly"),
                        _ => style.cross(),
                    },
                );
                line = line.join(text.right(cell));
            }
            lines.push(line);
        }
    }
    lines
}

fn in_order<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for name in names {
        if !seen.contains(&name) {
            seen.push(name);
        }
    }
    seen
}

fn summary(reaches: &[Reach], style: Style) -> Vec<Text> {
    let small = reaches.iter().filter(|r| r.small_us.is_some()).count();
    let full = reaches.iter().filter(|r| r.full_us.is_some()).count();
    let bytes = reaches.iter().map(|r| r.full_bytes).max().unwrap_or(0);
    let all = reaches.len();
    let (mark, line) = if full == all {
        (style.tick(), format!(" {all} of {all} pairs answer, small packets and full ones of {bytes} bytes"))
    } else {
        (
            style.cross(),
            format!(" {small} of {all} pairs answer small packets, {full} full ones of {bytes} bytes"),
        )
    };
    let line = Text::plain("   ").join(mark).and(Tone::Plain, line);
    let small = middle(reaches.iter().filter_map(|r| r.small_us).collect());
    let full = middle(reaches.iter().filter_map(|r| r.full_us).collect());
    let line = match (small, full) {
        (Some(small), Some(full)) => {
            line.and(Tone::Dim, format!("   median {} and {}", time(small, style), time(full, style)))
        }
        _ => line,
    };
    let mut lines = vec![line];
    let bad: Vec<&Reach> = reaches.iter().filter(|r| !r.ok()).collect();
    for reach in bad.iter().take(FAILURES) {
        lines.push(Text::of(Tone::Bad, format!("     {} {} {}", reach.from, style.arrow(), reach.to)).and(
            Tone::Plain,
            format!(" ({}): {}", reach.address, reach.why.as_deref().unwrap_or("no answer")),
        ));
    }
    if bad.len() > FAILURES {
        lines.push(Text::of(Tone::Bad, format!("     and {} more", bad.len() - FAILURES)));
    }
    lines
}

fn middle(mut times: Vec<f64>) -> Option<f64> {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied()
}
