//! Model and walk side by side. Pure.

use lab::paint::{Style, Text, Tone, time};
use model::Json;

use super::{Ends, Model, Sight, Verdict, Walk};

/// Version of the JSON.
const VERSION: u32 = 1;

/// The screen.
pub fn show(from: &str, to: &str, model: &Model, walk: &Walk, verdict: &Verdict, style: Style) -> Vec<Text> {
    let mtu = model.mtu.map_or(String::new(), |mtu| format!("   packets of up to {mtu} bytes"));
    let head = Text::of(Tone::Pod, from).and(Tone::Plain, format!(" {} ", style.arrow())).and(Tone::Pod, to);
    let mut lines = vec![head.and(Tone::Dim, mtu), Text::default()];
    let arrow = style.pick("│", "|");
    let mut seen = walk.there.iter();
    let mut rows = Vec::new();
    for (at, step) in model.steps.iter().enumerate() {
        let sight = seen.find(|sight| sight.place == step.place && sight.device == step.device);
        let (mark, when) = match sight {
            Some(sight) => (style.tick(), time(sight.at_us, style)),
            None if verdict.at == Some(at) => (style.cross(), "not seen".to_owned()),
            None => (Text::of(Tone::Dim, style.pick("·", "-")), String::new()),
        };
        rows.push(vec![
            mark.and(Tone::Bold, format!(" {:<4} ", step.place)).and(Tone::Plain, &step.device),
            Text::plain(when),
            Text::of(Tone::Dim, &step.by),
        ]);
    }
    for (at, row) in style.table(&rows, &[1]).into_iter().enumerate() {
        if at > 0 {
            lines.push(Text::of(Tone::Dim, format!("   {arrow}")));
        }
        lines.push(row);
    }
    if let Some(far) = model.far.filter(|_| !model.local) {
        lines.push(Text::of(Tone::Dim, format!("   {arrow}")));
        lines.push(
            Text::plain("   ").and(Tone::Host, format!("  {far}")).and(Tone::Dim, "  beyond this host"),
        );
    }
    let back: Vec<String> = walk.back.iter().map(|sight| sight.device.clone()).collect();
    if !back.is_empty() {
        let last = walk.back.last().map_or(String::new(), |sight| time(sight.at_us, style));
        let way = back.join(&format!(" {} ", style.arrow()));
        lines.extend([Text::default(), Text::of(Tone::Dim, format!("   the answer: {way}, after {last}"))]);
    }
    let mark = if verdict.fine { style.tick() } else { style.cross() };
    lines.extend([Text::default(), mark.and(Tone::Plain, format!(" {}", verdict.text))]);
    lines
}

/// The document.
pub fn json(ends: &Ends, model: &Model, walk: &Walk, verdict: &Verdict) -> Json {
    let sights = |sights: &[Sight]| {
        Json::array(sights.iter().map(|sight| {
            Json::object([
                ("place", sight.place.as_str().into()),
                ("device", sight.device.as_str().into()),
                ("at_us", (sight.at_us as u64).into()),
            ])
        }))
    };
    let steps = model.steps.iter().map(|step| {
        Json::object([
            ("place", step.place.into()),
            ("device", step.device.as_str().into()),
            ("by", step.by.as_str().into()),
        ])
    });
    Json::object([
        ("version", VERSION.into()),
        ("from", ends.from.as_str().into()),
        ("from_pod", ends.from_pod.clone().into()),
        ("to", ends.to.as_str().into()),
        ("to_pod", ends.to_pod.clone().into()),
        ("fine", verdict.fine.into()),
        ("verdict", verdict.text.as_str().into()),
        ("parted_at", verdict.at.map(|at| at as u64).into()),
        ("mtu", model.mtu.into()),
        ("model", Json::array(steps)),
        ("there", sights(&walk.there)),
        ("back", sights(&walk.back)),
        ("answered", walk.answered.into()),
        ("refused", walk.refused.clone().into()),
    ])
}
