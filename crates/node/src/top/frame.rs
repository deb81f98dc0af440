//! A [`Sample`] on a screen of some size. Pure: no line is longer than the screen is wide, and there are no more lines
//! than it is high.

use lab::paint::{Style, Text, Tone, time};

use super::view::{Shown, View};
use super::{Device, Peer, Pod, Sample, State, Traffic};
use crate::doctor::show::wrapped;
use crate::status::{Status, Verdict};

/// A screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub width: usize,
    /// Lines.
    pub height: usize,
}

/// Lines of a heading and its column titles, with one row: less is not worth it.
const LEAST: usize = 3;

/// The screen. `keys` are shown at its foot, but for those who cannot press any.
pub fn frame(sample: &Sample, view: &View, size: Size, style: Style, keys: bool) -> Vec<Text> {
    let style = Style { width: size.width, ..style };
    let mut lines = head(sample, style);
    let foot = if keys { vec![foot(view, style)] } else { Vec::new() };
    let room = size.height.saturating_sub(lines.len() + foot.len());
    let sections = sections(sample, view, style);
    let wants: Vec<usize> = sections.iter().map(Section::height).collect();
    let last = sections.len().saturating_sub(1);
    for (at, (section, lines_of_it)) in sections.iter().zip(share(room, &wants)).enumerate() {
        let mut block = section.lines(lines_of_it, view, style);
        if at < last && block.len() < lines_of_it {
            block.push(Text::default());
        }
        lines.append(&mut block);
    }
    // The verdict is worth more than keys on a screen of one line.
    lines.truncate(size.height.saturating_sub(if size.height > 1 { foot.len() } else { 0 }));
    if size.height > 1 && !foot.is_empty() {
        lines.resize(size.height - foot.len(), Text::default());
        lines.extend(foot);
    }
    lines.into_iter().map(|line| line.fit(size.width, style)).collect()
}

/// How many rows a page of one thing has.
pub fn page(size: Size) -> usize {
    size.height.saturating_sub(6).max(1)
}

/// Control characters in names and sentences would draw elsewhere.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn head(sample: &Sample, style: Style) -> Vec<Text> {
    let status = &sample.status;
    let dot = style.dot();
    let mut first = Text::of(Tone::Bold, clean(&sample.host));
    if let Some(agent) = &status.agent {
        let up = duration(agent.uptime_s * 1000);
        first = first.and(Tone::Dim, format!(" {dot} loden {} up {up}", clean(&agent.version)));
    }
    first = first.and(Tone::Dim, format!(" {dot} "));
    let first = match (sample.partial(), status.verdict()) {
        (Some(why), _) => first
            .and(Tone::Bad, "partial")
            .and(Tone::Plain, format!(", from the kernel alone: {}", clean(why))),
        (None, Verdict::Healthy) => first.join(style.tick()).and(Tone::Plain, " healthy"),
        (None, Verdict::Unhealthy) => {
            first.join(style.cross()).and(Tone::Plain, format!(" {}", clean(&status.reason())))
        }
        (None, Verdict::Unknown) => first.and(Tone::Plain, format!("? {}", clean(&status.reason()))),
    };
    vec![first, second(status, style), repairs(sample, style)]
}

/// What the node is.
fn second(status: &Status, style: Style) -> Text {
    let dot = format!(" {} ", style.dot());
    let mut parts = Vec::new();
    parts.extend(status.backend.as_ref().map(|backend| format!("{} MTU {}", backend.kind, backend.mtu)));
    parts.extend(status.lease.as_ref().map(|lease| lease.subnets.join(" ")));
    if let Some(store) = &status.store {
        let heard =
            store.heard_ms.map_or("not heard yet".to_owned(), |ms| format!("heard {} ago", duration(ms)));
        parts.push(format!("{}, {heard}", store.name));
    }
    if let Some(objects) = &status.objects {
        parts.push(format!("{} objects, {} different", objects.actual, objects.differences.len()));
    }
    if status.agent.is_none() {
        let env = status.subnet_env.iter().find_map(|line| line.strip_prefix("FLANNEL_SUBNET="));
        parts.extend(env.map(str::to_owned));
        parts.push(format!("{} kernel objects of ours", status.kernel.len()));
    }
    Text::of(Tone::Dim, clean(&parts.join(&dot)))
}

fn repairs(sample: &Sample, style: Style) -> Text {
    let mut line = Text::of(Tone::Bold, "repairs");
    if sample.status.agent.is_none() {
        return line.and(Tone::Dim, " not known without an agent");
    }
    if sample.repairs.is_empty() {
        return line.and(Tone::Dim, " none since the agent started");
    }
    let mut repairs: Vec<_> = sample.repairs.iter().collect();
    repairs.sort_by_key(|repair| std::cmp::Reverse(repair.new));
    for (at, repair) in repairs.into_iter().enumerate() {
        let gap = if at == 0 { " ".to_owned() } else { format!(" {} ", style.dot()) };
        line = line.and(Tone::Dim, gap);
        line = line.and(Tone::Plain, clean(&format!("{} {} {}", repair.kind, repair.cause, repair.times)));
        if repair.new > 0 {
            line = line.and(Tone::Bad, format!(" +{}", repair.new));
        }
    }
    line
}

fn foot(view: &View, style: Style) -> Text {
    if view.typing {
        let cursor = style.pick("▏", "_");
        return Text::of(Tone::Bold, format!("/{}{cursor}", clean(&view.filter)))
            .and(Tone::Dim, "  Enter keeps it, Esc drops it");
    }
    let dot = style.dot();
    let way = if view.reverse { " backwards" } else { "" };
    let filter = if view.filter.is_empty() { String::new() } else { format!(": {}", clean(&view.filter)) };
    Text::of(
        Tone::Dim,
        format!(
            "q quit {dot} s sort: {}{way} {dot} r reverse {dot} / filter{filter} {dot} Tab view: {} {dot} {} scroll",
            view.sort.word(),
            view.shown.word(),
            style.pick("↑↓", "up/down"),
        ),
    )
}

/// A heading and a table below it.
struct Section {
    title: Text,
    columns: Vec<Column>,
    rows: Vec<Vec<Text>>,
    /// Said where there is no row.
    empty: &'static str,
    /// It stands alone and can be scrolled.
    alone: bool,
}

/// A column.
struct Column {
    head: &'static str,
    right: bool,
    /// The lowest goes first where there is no room.
    keep: u8,
}

const fn left(head: &'static str, keep: u8) -> Column {
    Column { head, right: false, keep }
}

const fn right(head: &'static str, keep: u8) -> Column {
    Column { head, right: true, keep }
}

impl Section {
    fn height(&self) -> usize {
        let titles = usize::from(!self.rows.is_empty() && !self.columns.iter().all(|c| c.head.is_empty()));
        1 + titles + self.rows.len().max(usize::from(!self.empty.is_empty())) + 1
    }

    /// Within so many lines.
    fn lines(&self, room: usize, view: &View, style: Style) -> Vec<Text> {
        let mut title = self.title.clone();
        let (head, rows) = table(&self.columns, &self.rows, style);
        let mut lines = Vec::new();
        let place = room.saturating_sub(1 + usize::from(head.is_some()));
        let skip = if self.alone { view.skip.min(rows.len().saturating_sub(place)) } else { 0 };
        if rows.len() > place && place > 0 {
            let range = format!("{}{}{}", skip + 1, style.pick("–", "-"), skip + place);
            title = title.and(Tone::Dim, format!("  {range} of {}", rows.len()));
        }
        lines.push(title);
        if rows.is_empty() {
            lines.push(Text::of(Tone::Dim, format!("  {}", self.empty)));
        } else {
            lines.extend(head);
            lines.extend(rows.into_iter().skip(skip).take(place));
        }
        lines.truncate(room);
        lines
    }
}

/// Column titles, if there are any, and rows; columns that do not fit are left out, the least important first.
fn table(columns: &[Column], rows: &[Vec<Text>], style: Style) -> (Option<Text>, Vec<Text>) {
    let widest = |at: usize| rows.iter().filter_map(|row| row.get(at)).map(Text::width).max().unwrap_or(0);
    // A column in which nothing stands says nothing.
    let mut kept: Vec<(usize, usize)> = (0..columns.len())
        .filter(|at| widest(*at) > 0)
        .map(|at| (at, widest(at).max(columns[at].head.chars().count())))
        .collect();
    let total = |kept: &[(usize, usize)]| kept.iter().map(|(_, width)| width + 2).sum::<usize>();
    while kept.len() > 1 && total(&kept) > style.width {
        let least = kept.iter().enumerate().min_by_key(|(_, (at, _))| columns[*at].keep);
        let Some((position, _)) = least else { break };
        kept.remove(position);
    }
    let line = |cell: &dyn Fn(usize) -> Text| {
        kept.iter().fold(Text::plain("  "), |line, (at, width)| {
            let cell = cell(*at);
            let cell = if columns[*at].right { cell.right(*width) } else { cell.left(*width) };
            line.join(cell).and(Tone::Plain, "  ")
        })
    };
    let head = columns.iter().any(|column| !column.head.is_empty());
    let head = head.then(|| line(&|at| Text::of(Tone::Dim, columns[at].head)));
    let rows = rows.iter().map(|row| line(&|at| row.get(at).cloned().unwrap_or_default())).collect();
    (head, rows)
}

/// Lines for each, at most what it wants. Where there is little, the last ones get nothing.
fn share(room: usize, wants: &[usize]) -> Vec<usize> {
    let mut given = vec![0; wants.len()];
    let mut count = wants.len();
    while count > 1 && wants[..count].iter().map(|want| (*want).min(LEAST)).sum::<usize>() > room {
        count -= 1;
    }
    let mut left = room;
    while left > 0 {
        let hungry: Vec<usize> = (0..count).filter(|at| given[*at] < wants[*at]).collect();
        if hungry.is_empty() {
            break;
        }
        let each = (left / hungry.len()).max(1);
        for at in hungry {
            let more = each.min(wants[at] - given[at]).min(left);
            given[at] += more;
            left -= more;
        }
    }
    given
}

fn sections(sample: &Sample, view: &View, style: Style) -> Vec<Section> {
    let all = view.shown == Shown::All;
    let mut sections = Vec::new();
    let is = |shown| all || view.shown == shown;
    if is(Shown::Troubles) {
        let troubles = troubles(sample, !all, style);
        if !all || !troubles.rows.is_empty() {
            sections.push(troubles);
        }
    }
    if is(Shown::Peers) {
        sections.push(peers(sample, view, style));
    }
    if is(Shown::Pods) {
        sections.push(pods(sample, view, style));
    }
    if is(Shown::Devices) {
        sections.push(devices(sample, view, style));
    }
    sections.iter_mut().for_each(|section| section.alone = !all);
    sections
}

fn title(name: &str, count: usize, of: usize) -> Text {
    let count = if count == of { count.to_string() } else { format!("{count} of {of}") };
    Text::of(Tone::Bold, format!("{name} {count}"))
}

fn troubles(sample: &Sample, whole: bool, style: Style) -> Section {
    let (over, now): (Vec<_>, Vec<_>) = sample.status.troubles.iter().partition(|trouble| trouble.over);
    let mut rows = Vec::new();
    let width = style.width.saturating_sub(8).max(20);
    for trouble in &now {
        let text = clean(&trouble.text);
        let lines = if whole { wrapped(&text, width) } else { vec![text] };
        for (at, line) in lines.into_iter().enumerate() {
            let mark = if at == 0 { style.cross() } else { Text::default() };
            rows.push(vec![mark, Text::plain(line)]);
        }
        if whole {
            let times = format!("since {}, last found {}", trouble.first, trouble.last);
            rows.push(vec![Text::default(), Text::of(Tone::Dim, times)]);
        }
    }
    for trouble in over.iter().filter(|_| whole) {
        let text = format!("over: {} ({} to {})", clean(&trouble.text), trouble.first, trouble.last);
        let lines = wrapped(&text, width).into_iter();
        rows.extend(lines.map(|line| vec![Text::default(), Text::of(Tone::Dim, line)]));
    }
    Section {
        title: title("TROUBLES", now.len(), now.len()),
        columns: vec![left("", 9), left("", 10)],
        rows,
        empty: if sample.status.agent.is_some() { "none" } else { "not known without an agent" },
        alone: false,
    }
}

fn peers(sample: &Sample, view: &View, style: Style) -> Section {
    let shown = view.peers(&sample.peers);
    let count = |state: State| sample.peers.iter().filter(|peer| peer.state() == state).count();
    let mut title = title("PEERS", shown.len(), sample.peers.len());
    if let bad @ 1.. = count(State::Bad) {
        title = title.and(Tone::Bad, format!(", {bad} bad"));
    }
    if let unknown @ 1.. = count(State::Unknown) {
        title = title.and(Tone::Dim, format!(", {unknown} not known"));
    }
    if let Some(off) = sample.status.probes.as_ref().and_then(|probes| probes.off.as_ref()) {
        title = title.and(Tone::Bad, format!(", not probed: {}", clean(off)));
    }
    let named = shown.iter().any(|peer| peer.node.is_some());
    Section {
        title,
        columns: [
            left(if named { "node" } else { "subnet" }, 20),
            left("subnet", 15),
            left("address", 9),
            right("round trip", 18),
            right("loss", 17),
            right("MTU", 8),
            right("probed", 7),
        ]
        .into_iter()
        .chain(RATES)
        .chain([left("state", 16)])
        .collect(),
        rows: shown.iter().map(|peer| of_peer(peer, style)).collect(),
        empty: if sample.peers.is_empty() { "no other node" } else { "none with this text" },
        alone: false,
    }
}

fn mark(state: State, style: Style) -> Text {
    match state {
        State::Good => style.tick(),
        State::Bad => style.cross(),
        State::Stale => Text::of(Tone::Dim, style.pick("·", "-")),
        State::Unknown => Text::plain("?"),
    }
}

fn of_peer(peer: &Peer, style: Style) -> Vec<Text> {
    let state = peer.state();
    let worst = peer.paths.iter().max_by_key(|path| (path.bad, path.ago_ms));
    let word = match (&peer.left_out, worst) {
        (Some(why), _) => Text::of(Tone::Bad, format!("left out: {}", clean(why))),
        (None, None) => Text::of(Tone::Dim, "not probed"),
        (None, Some(path)) => {
            Text::of(if path.bad { Tone::Bad } else { Tone::Dim }, clean(&path.verdict.replace('_', " ")))
        }
    };
    let loss = peer.loss().map_or(Text::default(), |(lost, sent)| {
        let text = format!("{}/{sent}", lost);
        if lost > 0 { Text::of(Tone::Bad, text) } else { Text::plain(text) }
    });
    let subnets = clean(&peer.subnets.join(" "));
    let (name, subnets) = match &peer.node {
        Some(node) => (clean(node), subnets),
        None => (subnets, String::new()),
    };
    let ago = worst.map_or(String::new(), |path| format!("{} ago", coarse(path.ago_ms)));
    let mut row = vec![
        mark(state, style).and(Tone::Plain, " ").join(Text::plain(name)),
        Text::plain(subnets),
        Text::plain(clean(&peer.public.join(" "))),
        Text::plain(peer.rtt_us().map_or(String::new(), |us| time(us as f64, style))),
        loss,
        Text::plain(peer.mtu().map_or(String::new(), |mtu| mtu.to_string())),
        Text::of(Tone::Dim, ago),
    ];
    row.extend(peer.traffic.as_ref().map_or_else(|| vec![Text::default(); RATES.len()], |t| rates(t, style)));
    row.push(word);
    row
}

fn pods(sample: &Sample, view: &View, style: Style) -> Section {
    let shown = view.pods(&sample.pods);
    let row = |pod: &&Pod| {
        let mut row = vec![
            Text::of(Tone::Pod, clean(pod.pod.as_deref().unwrap_or_default())),
            Text::of(Tone::Pod, clean(&pod.reached_by())),
            Text::plain(clean(&pod.device)),
        ];
        row.extend(rates(&pod.traffic, style));
        row
    };
    Section {
        title: title("PODS", shown.len(), sample.pods.len()),
        columns: [left("pod", 19), left("address", 20), left("device", 10)]
            .into_iter()
            .chain(RATES)
            .collect(),
        rows: shown.iter().map(row).collect(),
        empty: if sample.pods.is_empty() { "no pod on this host" } else { "none with this text" },
        alone: false,
    }
}

fn devices(sample: &Sample, view: &View, style: Style) -> Section {
    let shown = view.devices(&sample.devices);
    let row = |device: &&Device| {
        let role = match device.role.as_str() {
            "hosts" => "to hosts",
            "tunnel" => "tunnel",
            "pods" => "to pods",
            _ => "",
        };
        let down = if device.up { Text::default() } else { Text::of(Tone::Bad, "down") };
        let mut row = vec![
            Text::of(Tone::Host, clean(&device.name)),
            Text::plain(clean(&device.kind)),
            Text::plain(role),
            down,
            Text::plain(device.mtu),
        ];
        row.extend(rates(&device.traffic, style));
        row
    };
    let columns = [left("device", 20), left("kind", 9), left("for", 10), left("", 16), right("MTU", 8)];
    Section {
        title: title("DEVICES", shown.len(), sample.devices.len()),
        columns: columns.into_iter().chain(RATES).collect(),
        rows: shown.iter().map(row).collect(),
        empty: if sample.devices.is_empty() { "none can be read" } else { "none with this text" },
        alone: false,
    }
}

/// Titles of what [`rates`] gives.
const RATES: [Column; 6] = [
    right("in pkt/s", 12),
    right("in B/s", 14),
    right("out pkt/s", 11),
    right("out B/s", 13),
    right("drop/s", 9),
    right("dropped", 6),
];

fn rates(traffic: &Traffic, style: Style) -> Vec<Text> {
    let dash = style.pick("–", "-");
    let cell = |of: fn(&super::Rates) -> u64, unit: fn(u64) -> String| {
        Text::plain(traffic.rates.as_ref().map_or(dash.to_owned(), |rates| unit(of(rates))))
    };
    let bad = |number: u64, text: Text| if number > 0 { Text::default().join(tinted(text)) } else { text };
    let dropped = traffic.rates.map_or(0, |rates| rates.dropped);
    let lost = traffic.counters.dropped + traffic.counters.errors;
    let no_packets = traffic.counters.in_packets == 0 && traffic.counters.out_packets == 0;
    let bytes_only = no_packets && traffic.counters.in_bytes + traffic.counters.out_bytes > 0;
    let packets = |text: Text| if bytes_only { Text::default() } else { text };
    vec![
        packets(cell(|rates| rates.in_packets, short)),
        cell(|rates| rates.in_bytes, short),
        packets(cell(|rates| rates.out_packets, short)),
        cell(|rates| rates.out_bytes, short),
        packets(bad(dropped, cell(|rates| rates.dropped, short))),
        if lost > 0 { Text::plain(short(lost)) } else { Text::default() },
    ]
}

fn tinted(text: Text) -> Text {
    Text::of(Tone::Bad, text.paint(Style::PLAIN))
}

/// A number in three digits and a letter for thousands, millions, and so on.
pub fn short(number: u64) -> String {
    let mut value = number as f64;
    for unit in ["", "k", "M", "G", "T"] {
        if value < 999.5 || unit == "T" {
            let digits = if unit.is_empty() || value >= 99.95 { 0 } else { 1 };
            return format!("{value:.digits$}{unit}");
        }
        value /= 1000.0;
    }
    String::new()
}

/// A duration for people, to two units.
fn duration(ms: u64) -> String {
    crate::status::show::duration(ms)
}

/// A duration for people, to one unit.
fn coarse(ms: u64) -> String {
    match ms / 1000 {
        s @ 0..=99 => format!("{s} s"),
        s @ 100..=5999 => format!("{} min", s / 60),
        s => format!("{} h", s / 3600),
    }
}
