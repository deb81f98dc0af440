//! The report as one page that needs nothing else: no script, no font, no address.

use super::{heading, spread};
use crate::report::{Figure, Measured, Report, Row, number};

const STYLE: &str = "
:root{color-scheme:light dark;--ink:#1c2330;--soft:#667085;--line:#d9dee7;--ground:#fff;--wire:#98a2b3;--ours:#2f6fde;
--mark:#1c2330;--good:#d5f0dc;--fair:#eef3cf;--low:#fde9c8;--poor:#fbd5d0}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ef;--soft:#98a2b3;--line:#333b49;--ground:#12161d;--wire:#667085;
--ours:#5b93f5;--mark:#e6e9ef;--good:#1e4a2c;--fair:#3d4620;--low:#553c14;--poor:#5a2622}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--ground);max-width:62rem;margin:2.5rem auto;
padding:0 1.25rem}
h1{font-size:1.7rem;margin:0 0 .25rem}h2{font-size:1.05rem;margin:2.2rem 0 .4rem}
p{margin:.15rem 0}.soft{color:var(--soft)}h2 .soft{font-weight:400;font-size:.85rem;margin-left:.5rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.4rem .55rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:bottom}
th:first-child,td:first-child{text-align:left}th{font-weight:600;font-size:.82rem}td small{color:var(--soft)}
.wide{overflow-x:auto}.good{background:var(--good)}.fair{background:var(--fair)}.low{background:var(--low)}
.poor{background:var(--poor)}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font:13px system-ui,sans-serif;fill:var(--ink)}svg .s{fill:var(--soft)}
.w{fill:var(--wire)}.o{fill:var(--ours)}.m{stroke:var(--mark);stroke-width:1.5}
.r{stroke:var(--soft);stroke-dasharray:3 3}
";

/// The page.
pub fn html(report: &Report) -> String {
    let lines = heading(report);
    let mut page = String::from("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n");
    page.push_str("<meta name=\"viewport\" content=\"width=device-width\">\n<title>loden bench</title>\n");
    page.push_str(&format!("<style>{STYLE}</style></head>\n<body>\n<h1>loden bench</h1>\n"));
    for line in &lines {
        page.push_str(&format!("<p class=\"soft\">{}</p>\n", escape(line)));
    }
    summary(report, &mut page);
    for figure in Figure::ALL {
        let column = report.column(figure);
        if !column.is_empty() {
            chart(figure, &column, &mut page);
        }
    }
    ways(report, &mut page);
    page.push_str("</body></html>\n");
    page
}

fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            c => safe.push(c),
        }
    }
    safe
}

/// How each way stands to the wire, or to what else it is compared with, in one look.
fn summary(report: &Report, page: &mut String) {
    let Some(what) = yardstick(report) else { return };
    let beside = |row: &'_ Row| row.figures.iter().any(|m| m.beside.as_ref().is_some_and(|b| b.what == what));
    let rows: Vec<&Row> = report.ways.iter().filter(|row| beside(row)).collect();
    let Some(first) = rows.first() else { return };
    let name = if what == "wire" { "the wire" } else { what };
    page.push_str(&format!(
        "<h2>Times {}<span class=\"soft\">medians of the turns' ratios; green is near, or better</span></h2>\n",
        escape(name)
    ));
    page.push_str("<div class=\"wide\"><table><tr><th></th>");
    for measured in &first.figures {
        page.push_str(&format!("<th>{}</th>", measured.figure.title()));
    }
    page.push_str("</tr>\n");
    for row in rows {
        page.push_str(&format!("<tr><td>{}</td>", escape(&row.name)));
        for measured in &row.figures {
            let Some(beside) = &measured.beside else { continue };
            let ratio = beside.ratio.median;
            let class = class(measured.figure, ratio);
            page.push_str(&format!("<td class=\"{class}\">{}</td>", number(ratio)));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table></div>\n");
}

/// What traffic is compared with.
fn yardstick(report: &Report) -> Option<&'static str> {
    let figures = report.ways.iter().flat_map(|row| &row.figures);
    let trips = figures.filter(|measured| measured.figure == Figure::TripHalf);
    trips.filter_map(|measured| Some(measured.beside.as_ref()?.what)).next()
}

/// How near to the wire.
fn class(figure: Figure, ratio: f64) -> &'static str {
    match if figure.more() { ratio } else { 1.0 / ratio } {
        near if near >= 0.9 => "good",
        near if near >= 0.65 => "fair",
        near if near >= 0.4 => "low",
        _ => "poor",
    }
}

/// Where bars begin, how long the longest is, and how high a line is.
const LEFT: f64 = 100.0;
const LENGTH: f64 = 440.0;
const HEIGHT: f64 = 30.0;

/// A bar for each way, its spread as a whisker, the wire as a line through all.
fn chart(figure: Figure, column: &[(&Row, &Measured)], page: &mut String) {
    let better = if figure.more() { "more is better" } else { "less is better" };
    page.push_str(&format!(
        "<h2>{}<span class=\"soft\">{}, {better}</span></h2>\n",
        figure.title(),
        figure.unit().replace("us", "µs")
    ));
    let most = column.iter().map(|(_, measured)| measured.samples.most).fold(f64::MIN_POSITIVE, f64::max);
    let x = |value: f64| LEFT + value / most * LENGTH;
    let height = column.len() as f64 * HEIGHT;
    page.push_str(&format!(
        "<svg viewBox=\"0 0 900 {height}\" role=\"img\" aria-label=\"{}\">\n",
        figure.title()
    ));
    if let Some((_, wire)) = column.iter().find(|(row, _)| row.name == "wire") {
        let at = x(wire.samples.median);
        page.push_str(&format!(
            "<line class=\"r\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"0\" y2=\"{height}\"/>\n"
        ));
    }
    for (number, (row, measured)) in column.iter().enumerate() {
        let (top, samples) = (number as f64 * HEIGHT, &measured.samples);
        let (class, text) = (if row.name == "wire" { "w" } else { "o" }, top + 19.0);
        let (width, middle) = (x(samples.median) - LEFT, top + 15.0);
        page.push_str(&format!("<text x=\"0\" y=\"{text}\">{}</text>", escape(&row.name)));
        page.push_str(&format!(
            "<rect class=\"{class}\" x=\"{LEFT}\" y=\"{}\" width=\"{width:.1}\" height=\"18\" rx=\"2\"/>",
            top + 6.0
        ));
        let (from, to) = (x(samples.least), x(samples.most));
        if samples.values.len() > 1 {
            page.push_str(&format!(
                "<path class=\"m\" fill=\"none\" d=\"M{from:.1} {a}v8M{from:.1} {middle}H{to:.1}M{to:.1} {a}v8\"/>",
                a = middle - 4.0
            ));
        }
        let end = to.max(LEFT + width) + 10.0;
        page.push_str(&format!("<text x=\"{end:.1}\" y=\"{text}\">{}", escape(&spread(samples))));
        if let Some(beside) = &measured.beside {
            let ratio = escape(&spread(&beside.ratio));
            page.push_str(&format!("<tspan class=\"s\" dx=\"10\">{ratio} x {}</tspan>", escape(beside.what)));
        }
        page.push_str("</text>\n");
    }
    page.push_str("</svg>\n");
}

/// What the names mean, and what could not be measured.
fn ways(report: &Report, page: &mut String) {
    page.push_str("<h2>Ways</h2>\n<table>\n");
    for row in &report.ways {
        let missing =
            row.unavailable.as_ref().map(|why| format!(": not measured, {why}")).unwrap_or_default();
        page.push_str(&format!(
            "<tr><td>{}</td><td style=\"text-align:left\">{}</td></tr>\n",
            escape(&row.name),
            escape(&format!("{}{missing}", row.about))
        ));
    }
    page.push_str("</table>\n");
}
