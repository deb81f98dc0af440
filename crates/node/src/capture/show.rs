//! A packet in one line, or as JSON. Pure.

use lab::paint::{Style, Text, Tone, time};
use model::Json;

use super::{Fate, Followed, Hop};

/// Version of the JSON.
const VERSION: u32 = 1;

/// What the lines of one capture have in common.
pub struct Names<'a> {
    /// Names of the namespaces, by position; the first is the host.
    pub places: &'a [String],
    /// All hops.
    pub hops: &'a [Hop],
    /// Those that this packet must pass.
    pub way: &'a [usize],
    /// Those that it went past.
    pub skipped: &'a [usize],
    /// The interface to other hosts, if this host has a fast path to it.
    pub fast: Option<&'a str>,
}

impl Names<'_> {
    /// `eth0` of the host, `eth0@10.244.1.7` of a pod.
    pub fn hop(&self, hop: usize) -> String {
        match self.hops.get(hop) {
            Some(Hop { place: 0, device }) => device.clone(),
            Some(Hop { place, device }) => format!("{device}@{}", self.places[*place]),
            None => String::new(),
        }
    }

    fn missing(&self, fate: Fate) -> Option<(String, String)> {
        let (at, how) = match fate {
            Fate::Passed => return None,
            Fate::Missing(at) => (at, "not seen on"),
            Fate::Partly(at) => (at, "only in part on"),
        };
        Some((self.hop(*self.way.get(at)?), how.to_owned()))
    }

    /// Where the fast path leads, for a packet that is missing where that begins: it may be lost on either.
    fn or_fast(&self, fate: Fate) -> Option<String> {
        let (Fate::Missing(missing), Some(uplink)) = (fate, self.fast) else { return None };
        let is_pods = |at: usize| self.hops[self.way[at]].place != 0;
        // Neither the pod's port, where packets come in, nor the uplink.
        let skips = |at: usize| {
            !is_pods(at) && self.hops[self.way[at]].device != uplink && (at == 0 || !is_pods(at - 1))
        };
        if !skips(missing) || (0..missing).any(skips) {
            return None;
        }
        let last = self.way.len() - 1;
        Some(if is_pods(last) { self.hop(self.way[last]) } else { uplink.to_owned() })
    }

    fn went_fast(&self) -> Option<String> {
        let devices: Vec<String> = self.skipped.iter().map(|hop| self.hop(*hop)).collect();
        let fast = if self.fast.is_some() { "went fast: " } else { "" };
        (!devices.is_empty()).then(|| format!("{fast}skipped {}", devices.join(", ")))
    }
}

/// One line.
pub fn line(followed: &Followed, fate: Fate, names: &Names<'_>, style: Style) -> Text {
    let packet = &followed.packet;
    let mark = if fate == Fate::Passed { style.tick() } else { style.cross() };
    let mut line = Text::of(Tone::Dim, format!("{:>5} ", followed.number))
        .join(mark)
        .and(Tone::Pod, format!(" {} {} {}", packet.from, style.arrow(), packet.to))
        .and(Tone::Plain, format!("  {}, {} bytes", packet.what, packet.bytes))
        .and(Tone::Dim, " :");
    let mut before = None;
    for sight in &followed.sights {
        let after = before.map_or(String::new(), |at: u64| {
            format!(" +{}", time(sight.at_ns.saturating_sub(at) as f64 / 1000.0, style))
        });
        before = Some(sight.at_ns);
        line = line.and(Tone::Plain, format!(" {}", names.hop(sight.hop))).and(Tone::Dim, after);
        if !sight.wraps.is_empty() {
            let wraps: Vec<String> = sight.wraps.iter().map(ToString::to_string).collect();
            line = line.and(Tone::Host, format!(" [{}]", wraps.join(", ")));
        }
    }
    if let Some(fast) = names.went_fast() {
        line = line.and(Tone::Dim, format!("  {fast}"));
    }
    if let Some((hop, how)) = names.missing(fate) {
        let fast = names.or_fast(fate).map_or(String::new(), |to| format!(", nor on {to} by the fast path"));
        line = line.and(Tone::Bad, format!("  {how} {hop}{fast}"));
    }
    line
}

/// One document.
pub fn json(followed: &Followed, fate: Fate, names: &Names<'_>) -> Json {
    let packet = &followed.packet;
    let sights = followed.sights.iter().map(|sight| {
        let hop = &names.hops[sight.hop];
        Json::object([
            ("place", names.places[hop.place].as_str().into()),
            ("device", hop.device.as_str().into()),
            ("outgoing", sight.outgoing.into()),
            ("at_ns", sight.at_ns.into()),
            ("wraps", Json::array(sight.wraps.iter().map(ToString::to_string))),
        ])
    });
    let missing = names.missing(fate);
    Json::object([
        ("version", VERSION.into()),
        ("packet", followed.number.into()),
        ("from", packet.from.to_string().into()),
        ("to", packet.to.to_string().into()),
        ("what", packet.what.as_str().into()),
        ("bytes", (packet.bytes as u64).into()),
        ("forward", followed.forward.into()),
        ("sights", Json::array(sights)),
        ("skipped", Json::array(names.skipped.iter().map(|hop| names.hop(*hop)))),
        ("passed", (fate == Fate::Passed).into()),
        ("missing_at", missing.map(|(hop, _)| hop).into()),
    ])
}

/// How a capture ended.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Packets.
    pub packets: u64,
    /// Packets that went past a hop.
    pub skipped: u64,
    /// There is a fast path.
    pub fast: bool,
    /// Packets missing, by the hop that missed them.
    pub missing: Vec<(String, u64)>,
    /// Frames the kernel had no room for.
    pub lost: u64,
    /// What cannot be seen.
    pub opaque: Vec<String>,
}

impl Summary {
    /// Counts a packet.
    pub fn count(&mut self, fate: Fate, names: &Names<'_>) {
        self.packets += 1;
        self.skipped += u64::from(!names.skipped.is_empty());
        if let Some((hop, _)) = names.missing(fate) {
            match self.missing.iter_mut().find(|(known, _)| *known == hop) {
                Some((_, count)) => *count += 1,
                None => self.missing.push((hop, 1)),
            }
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let plural = |n: u64, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let mut text = plural(self.packets, "packet");
        let missing: u64 = self.missing.iter().map(|(_, count)| count).sum();
        match missing {
            0 if self.skipped > 0 => text.push_str(", none of which was lost on this host"),
            0 if self.packets > 0 => text.push_str(", all of which passed every hop of this host"),
            0 => {}
            _ => {
                let each: Vec<String> =
                    self.missing.iter().map(|(hop, n)| format!("{n} not seen on {hop}")).collect();
                text.push_str(&format!(", {missing} lost on this host: {}", each.join(", ")));
            }
        }
        if self.skipped > 0 {
            let what = if self.fast { "went fast and skipped hops" } else { "skipped hops" };
            text.push_str(&format!("; {} {what}", self.skipped));
        }
        if self.lost > 0 {
            let lost = plural(self.lost, "frame");
            text.push_str(&format!("; {lost} came too fast to be taken, so that missing may mean that"));
        }
        text
    }

    /// For programs.
    pub fn json(&self) -> Json {
        let missing = self
            .missing
            .iter()
            .map(|(hop, count)| Json::object([("hop", hop.as_str().into()), ("packets", (*count).into())]));
        Json::object([
            ("version", VERSION.into()),
            ("packets", self.packets.into()),
            ("skipped", self.skipped.into()),
            ("fast_path", self.fast.into()),
            ("missing", Json::array(missing)),
            ("frames_lost", self.lost.into()),
            ("opaque", Json::array(self.opaque.iter().cloned())),
        ])
    }
}
