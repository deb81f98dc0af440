//! The walk as SVG, and as a page with it. Pure (decision 0225).

use lab::paint::{Style, time};

use super::{Model, Sight, Verdict, Walk};

const WIDTH: usize = 760;
/// Reckoned width of a character of the small font, in tenths of a pixel.
const CHARACTER: usize = 73;
const LINE: usize = 17;
/// Left edge of the boxes, and their width.
const LEFT: usize = 48;
const BOX: usize = WIDTH - 2 * LEFT;
const ARROW: usize = 30;

const LOOK: &str = "\
.page{fill:#fff}.place{fill:#f3f5f8;stroke:#c9d1db}.box{fill:#fff;stroke:#98a3b0}.seen{stroke:#1a7f4b;stroke-width:2}\
.lost{stroke:#c62828;stroke-width:2;stroke-dasharray:6 4}.way{stroke:#98a3b0;stroke-width:2;fill:none}\
.way.seen{stroke:#1a7f4b}.way.lost{stroke:#c62828}.way.head{stroke-dasharray:none}text{font:13px ui-monospace,Menlo,Consolas,monospace;fill:#1f2933}\
.title{font-size:18px;font-weight:600}.name{font-size:15px;font-weight:600}.dim{fill:#5b6775;font-size:12px}\
.good{fill:#1a7f4b}.bad{fill:#c62828}.end{text-anchor:end}\
@media(prefers-color-scheme:dark){.page{fill:#14181d}.place{fill:#1c2229;stroke:#3a4450}.box{fill:#14181d;stroke:#6b7785}\
.way{stroke:#6b7785}text{fill:#e4e9ef}.dim{fill:#a4b0bd}.seen,.way.seen{stroke:#4cc38a}.good{fill:#4cc38a}\
.lost,.way.lost{stroke:#ff7b72}.bad{fill:#ff7b72}}";

/// What became of the packet at a step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Seen,
    Lost,
    Open,
}

impl State {
    fn class(self) -> &'static str {
        match self {
            State::Seen => " seen",
            State::Lost => " lost",
            State::Open => "",
        }
    }
}

/// One row of the picture and of the page's table.
struct Row<'a> {
    place: &'a str,
    device: &'a str,
    by: &'a str,
    state: State,
    when: String,
}

fn rows<'a>(model: &'a Model, walk: &'a Walk, verdict: &Verdict) -> Vec<Row<'a>> {
    let mut seen = walk.there.iter();
    let mut lost = false;
    let row = |(at, step): (usize, &'a super::Step)| {
        let mut rest = seen.clone();
        let sight: Option<&Sight> =
            rest.find(|sight| sight.place == step.place && sight.device == step.device);
        if sight.is_some() {
            seen = rest;
        }
        let (state, when) = match sight {
            Some(sight) => (State::Seen, format!("✓ seen after {}", time(sight.at_us, Style::PLAIN))),
            None if walk.planned => (State::Open, String::new()),
            None if verdict.at == Some(at) && !lost => (State::Lost, "✗ not seen".to_owned()),
            None => (State::Open, "not reached".to_owned()),
        };
        lost |= state == State::Lost;
        Row { place: step.place, device: &step.device, by: &step.by, state, when }
    };
    model.steps.iter().enumerate().map(row).collect()
}

fn answer(walk: &Walk) -> Option<String> {
    let last = walk.back.last()?;
    let way: Vec<&str> = walk.back.iter().map(|sight| sight.device.as_str()).collect();
    Some(format!("the answer: {}, after {}", way.join(" → "), time(last.at_us, Style::PLAIN)))
}

/// The picture.
pub fn svg(from: &str, to: &str, model: &Model, walk: &Walk, verdict: &Verdict) -> String {
    let mut out = Canvas::default();
    // Its characters are half as wide again; the names of pods may take several lines.
    let mut y = 38;
    for line in wrap(&format!("{from} → {to}"), (WIDTH - 2 * (LEFT - 24)) * 2 / 3) {
        out.text(LEFT - 24, y, "title", &line);
        y += 24;
    }
    let mtu = model.mtu.map_or(String::new(), |mtu| format!("packets of up to {mtu} bytes"));
    out.text(LEFT - 24, y - 4, "dim", &mtu);
    let rows = rows(model, walk, verdict);
    y += 12;
    let mut rest = rows.as_slice();
    let mut first = true;
    while let Some(head) = rest.first() {
        let (group, others) = rest.split_at(rest.iter().take_while(|row| row.place == head.place).count());
        rest = others;
        if !first {
            out.arrow(y, head.state);
            y += ARROW;
        }
        first = false;
        let heights: Vec<usize> = group.iter().map(|row| 34 + LINE * wrap(row.by, BOX - 28).len()).collect();
        let height = 30 + heights.iter().sum::<usize>() + ARROW * (group.len() - 1) + 14;
        out.shape("place", LEFT - 24, y, WIDTH - 2 * (LEFT - 24), height);
        out.text(LEFT - 10, y + 20, "dim", if head.place == "pod" { "pod" } else { "this host" });
        let mut top = y + 30;
        for (at, (row, height)) in group.iter().zip(&heights).enumerate() {
            if at > 0 {
                out.arrow(top, row.state);
                top += ARROW;
            }
            out.row(row, top, *height);
            top += height;
        }
        y += height;
    }
    if let Some(far) = model.far.filter(|_| !model.local) {
        let state = if walk.answered { State::Seen } else { State::Open };
        out.arrow(y, state);
        y += ARROW;
        out.shape("place", LEFT - 24, y, WIDTH - 2 * (LEFT - 24), 44);
        out.text(LEFT - 10, y + 27, "name", &far.to_string());
        out.text(LEFT + BOX - 14, y + 27, "dim end", "beyond this host");
        y += 44;
    }
    y += 24;
    let class = if verdict.fine { "good" } else { "bad" };
    let mark = if verdict.fine { "✓" } else { "✗" };
    let said = answer(walk).map(|text| ("dim", text));
    for (class, text) in said.into_iter().chain([(class, format!("{mark} {}", verdict.text))]) {
        for line in wrap(&text, WIDTH - 2 * LEFT) {
            out.text(LEFT - 24, y, class, &line);
            y += LINE + 2;
        }
        y += 4;
    }
    let title = escape(&format!("The way of a packet from {from} to {to}"));
    let says = escape(&verdict.text);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" width=\"{WIDTH}\" height=\"{y}\" \
         role=\"img\">\n<title>{title}</title>\n<desc>{says}</desc>\n<style>{LOOK}</style>\n\
         <rect class=\"page\" width=\"{WIDTH}\" height=\"{y}\"/>\n{}</svg>\n",
        out.0
    )
}

/// The page.
pub fn html(from: &str, to: &str, model: &Model, walk: &Walk, verdict: &Verdict) -> String {
    let mut table = String::new();
    for row in rows(model, walk, verdict) {
        let cells = [row.place, row.device, row.when.as_str(), row.by];
        let cells: String = cells.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
        table.push_str(&format!("<tr>{cells}</tr>\n"));
    }
    let title = escape(&format!("{from} → {to}"));
    let said = answer(walk).map_or(String::new(), |text| format!("<p>{}</p>\n", escape(&text)));
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>loden trace: {title}</title>\n<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:{WIDTH}px;margin:2rem auto;\
         padding:0 1rem}}svg{{max-width:100%;height:auto}}table{{border-collapse:collapse;width:100%}}th,td{{text-align:left;\
         padding:.3rem .8rem .3rem 0;border-bottom:1px solid #8886;vertical-align:top}}\
         td:nth-child(3){{white-space:nowrap}}</style>\n</head>\n<body>\n\
         {}<table>\n<tr><th>where</th><th>device</th><th>the packet</th><th>what leads there</th></tr>\n{table}</table>\n\
         {said}<p>{}</p>\n</body>\n</html>\n",
        svg(from, to, model, walk, verdict),
        escape(&verdict.text)
    )
}

#[derive(Default)]
struct Canvas(String);

impl Canvas {
    fn text(&mut self, x: usize, y: usize, class: &str, text: &str) {
        if !text.is_empty() {
            self.0
                .push_str(&format!("<text class=\"{class}\" x=\"{x}\" y=\"{y}\">{}</text>\n", escape(text)));
        }
    }

    fn shape(&mut self, class: &str, x: usize, y: usize, width: usize, height: usize) {
        self.0.push_str(&format!(
            "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"8\"/>\n"
        ));
    }

    /// Down into a box of this state.
    fn arrow(&mut self, y: usize, state: State) {
        let (x, end) = (WIDTH / 2, y + ARROW - 3);
        let class = state.class();
        self.0.push_str(&format!("<path class=\"way{class}\" d=\"M{x} {} V{end}\"/>\n", y + 3));
        let head = format!("M{} {} L{x} {end} L{} {}", x - 6, end - 8, x + 6, end - 8);
        self.0.push_str(&format!("<path class=\"way head{class}\" d=\"{head}\"/>\n"));
        if state == State::Lost {
            self.text(x + 14, y + ARROW / 2 + 5, "bad", "✗ lost here");
        }
    }

    fn row(&mut self, row: &Row<'_>, y: usize, height: usize) {
        self.shape(&format!("box{}", row.state.class()), LEFT, y, BOX, height);
        self.text(LEFT + 14, y + 23, "name", row.device);
        let class = match row.state {
            State::Seen => "good end",
            State::Lost => "bad end",
            State::Open => "dim end",
        };
        self.text(LEFT + BOX - 14, y + 23, class, &row.when);
        for (at, line) in wrap(row.by, BOX - 28).iter().enumerate() {
            self.text(LEFT + 14, y + 42 + LINE * at, "dim", line);
        }
    }
}

/// Lines that fit so many pixels, broken at spaces.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let most = width * 10 / CHARACTER;
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= most => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn escape(text: &str) -> String {
    let clean = text.chars().filter(|c| !c.is_control());
    clean.fold(String::new(), |mut out, c| {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
        out
    })
}
