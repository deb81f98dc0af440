//! What whoever watches wants to see, and what keys do to it. Pure.

use std::cmp::Ordering;

use super::{Device, Peer, Pod, Traffic};

/// What is on the screen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shown {
    /// Some of everything.
    #[default]
    All,
    /// Peers alone.
    Peers,
    /// Pods alone.
    Pods,
    /// Devices alone.
    Devices,
    /// Troubles alone, whole.
    Troubles,
}

impl Shown {
    const EACH: [Shown; 5] = [Shown::All, Shown::Peers, Shown::Pods, Shown::Devices, Shown::Troubles];

    /// The word on the screen.
    pub fn word(self) -> &'static str {
        match self {
            Shown::All => "all",
            Shown::Peers => "peers",
            Shown::Pods => "pods",
            Shown::Devices => "devices",
            Shown::Troubles => "troubles",
        }
    }
}

/// The order of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    /// What is bad first; devices by what they are for.
    #[default]
    State,
    /// By name.
    Name,
    /// The most bytes first.
    Traffic,
    /// The slowest peers first.
    RoundTrip,
    /// The peers that lose most first.
    Loss,
}

impl Sort {
    /// All of them.
    pub const EACH: [Sort; 5] = [Sort::State, Sort::Name, Sort::Traffic, Sort::RoundTrip, Sort::Loss];

    /// The word on the screen and of the flag.
    pub fn word(self) -> &'static str {
        match self {
            Sort::State => "state",
            Sort::Name => "name",
            Sort::Traffic => "traffic",
            Sort::RoundTrip => "rtt",
            Sort::Loss => "loss",
        }
    }
}

/// What is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// What is shown.
    pub shown: Shown,
    /// In which order.
    pub sort: Sort,
    /// The other way round.
    pub reverse: bool,
    /// Only rows with this text in them, whatever the case.
    pub filter: String,
    /// The filter is being typed.
    pub typing: bool,
    /// Rows passed over, where one thing alone is shown.
    pub skip: usize,
}

/// A key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A character.
    Char(char),
    /// Enter.
    Enter,
    /// Escape alone.
    Escape,
    /// Backspace.
    Backspace,
    /// Tab.
    Tab,
    /// Lines up (negative) or down.
    Lines(isize),
    /// Pages up or down.
    Pages(isize),
    /// Ctrl-C, or the terminal is gone.
    Interrupt,
    /// Ctrl-Z.
    Suspend,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Draw again.
    Draw,
    /// End.
    Quit,
    /// Let the shell have the terminal.
    Suspend,
}

/// Longest filter.
const LONGEST: usize = 60;

impl View {
    /// What a key does, where a page has so many rows.
    pub fn press(&mut self, key: Key, page: usize) -> Action {
        match (key, self.typing) {
            (Key::Interrupt, _) => return Action::Quit,
            (Key::Suspend, _) => return Action::Suspend,
            (Key::Enter, true) => self.typing = false,
            (Key::Escape, true) => (self.typing, self.filter) = (false, String::new()),
            (Key::Backspace, true) => drop(self.filter.pop()),
            (Key::Char(c), true) if self.filter.chars().count() < LONGEST => self.filter.push(c),
            (Key::Char('q' | 'Q'), false) => return Action::Quit,
            (Key::Escape, false) if self.filter.is_empty() => return Action::Quit,
            (Key::Escape, false) => self.filter.clear(),
            (Key::Char('/' | 'f'), false) => self.typing = true,
            (Key::Char('s'), false) => self.sort = next(&Sort::EACH, self.sort),
            (Key::Char('r'), false) => self.reverse = !self.reverse,
            (Key::Tab, _) => (self.shown, self.skip) = (next(&Shown::EACH, self.shown), 0),
            (Key::Char('j'), false) => self.scroll(1),
            (Key::Char('k'), false) => self.scroll(-1),
            (Key::Lines(lines), _) => self.scroll(lines),
            (Key::Pages(pages), _) => self.scroll(pages * isize::try_from(page).unwrap_or(1)),
            _ => {}
        }
        Action::Draw
    }

    fn scroll(&mut self, lines: isize) {
        if self.shown != Shown::All {
            self.skip = self.skip.saturating_add_signed(lines);
        }
    }

    /// Whether a row with these texts is wanted.
    fn takes<'a>(&self, mut texts: impl Iterator<Item = &'a str>) -> bool {
        let wanted = self.filter.to_lowercase();
        wanted.is_empty() || texts.any(|text| text.to_lowercase().contains(&wanted))
    }

    fn order<'a, T>(&self, mut rows: Vec<&'a T>, by: impl Fn(&T, &T) -> Ordering) -> Vec<&'a T> {
        rows.sort_by(|a, b| by(a, b));
        if self.reverse {
            rows.reverse();
        }
        rows
    }

    /// Peers that are wanted, in order.
    pub fn peers<'a>(&self, peers: &'a [Peer]) -> Vec<&'a Peer> {
        let texts = |peer: &'a Peer| {
            let words = peer.paths.iter().map(|path| path.verdict.as_str());
            let addresses = peer.subnets.iter().chain(&peer.public).chain(&peer.node).map(String::as_str);
            addresses.chain([peer.backend.as_str(), peer.state().word()]).chain(words)
        };
        let rows = peers.iter().filter(|peer| self.takes(texts(peer))).collect();
        let bytes = |peer: &Peer| peer.traffic.as_ref().map(bytes);
        self.order(rows, |a, b| match self.sort {
            Sort::State => a.state().cmp(&b.state()).then_with(|| natural(&a.name(), &b.name())),
            Sort::Name => natural(&a.name(), &b.name()),
            Sort::Traffic => bytes(b).cmp(&bytes(a)).then_with(|| natural(&a.name(), &b.name())),
            Sort::RoundTrip => b.rtt_us().cmp(&a.rtt_us()).then_with(|| natural(&a.name(), &b.name())),
            Sort::Loss => b.loss_share().cmp(&a.loss_share()).then_with(|| natural(&a.name(), &b.name())),
        })
    }

    /// Pods that are wanted, in order.
    pub fn pods<'a>(&self, pods: &'a [Pod]) -> Vec<&'a Pod> {
        let texts =
            |pod: &'a Pod| pod.addresses.iter().chain([&pod.device]).chain(&pod.pod).map(String::as_str);
        let rows = pods.iter().filter(|pod| self.takes(texts(pod))).collect();
        self.order(rows, |a, b| match self.sort {
            Sort::Name => natural(&a.name(), &b.name()),
            _ => bytes(&b.traffic).cmp(&bytes(&a.traffic)).then_with(|| natural(&a.name(), &b.name())),
        })
    }

    /// Devices that are wanted, in order.
    pub fn devices<'a>(&self, devices: &'a [Device]) -> Vec<&'a Device> {
        let texts = |device: &'a Device| [&device.name, &device.kind, &device.role].into_iter();
        let rows: Vec<&Device> =
            devices.iter().filter(|device| self.takes(texts(device).map(String::as_str))).collect();
        self.order(rows, |a, b| match self.sort {
            Sort::Name => natural(&a.name, &b.name),
            Sort::Traffic => bytes(&b.traffic).cmp(&bytes(&a.traffic)),
            // As they come: by what they are for.
            _ => Ordering::Equal,
        })
    }
}

/// Bytes each second; before there is a rate, all of them decide.
fn bytes(traffic: &Traffic) -> (u64, u64) {
    let counters = &traffic.counters;
    (traffic.rates.map_or(0, |rates| rates.bytes()), counters.in_bytes.saturating_add(counters.out_bytes))
}

/// The one after, in a ring.
fn next<T: Copy + PartialEq>(ring: &[T], now: T) -> T {
    let at = ring.iter().position(|one| *one == now).unwrap_or(0);
    ring[(at + 1) % ring.len()]
}

/// Numbers in names count as numbers: `node-2` before `node-10`, 10.244.9.0 before 10.244.10.0.
pub fn natural(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    let number = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    loop {
        let (Some(x), Some(y)) = (a.chars().next(), b.chars().next()) else { return a.len().cmp(&b.len()) };
        if x.is_ascii_digit() && y.is_ascii_digit() {
            let (one, other) = (a.split_at(number(a)), b.split_at(number(b)));
            let plain = |digits: &'_ str| digits.trim_start_matches('0').to_owned();
            let (left, right) = (plain(one.0), plain(other.0));
            match left.len().cmp(&right.len()).then_with(|| left.cmp(&right)) {
                Ordering::Equal => (a, b) = (one.1, other.1),
                unequal => return unequal,
            }
        } else if x == y {
            (a, b) = (&a[x.len_utf8()..], &b[y.len_utf8()..]);
        } else {
            return x.cmp(&y);
        }
    }
}

/// Keys in what a terminal sent (xterm's sequences; ctlseqs). What is not known is passed over.
pub fn keys(bytes: &[u8]) -> Vec<Key> {
    let text = String::from_utf8_lossy(bytes);
    let mut rest: &str = &text;
    let mut keys = Vec::new();
    const SEQUENCES: [(&str, Key); 10] = [
        ("\x1b[A", Key::Lines(-1)),
        ("\x1bOA", Key::Lines(-1)),
        ("\x1b[B", Key::Lines(1)),
        ("\x1bOB", Key::Lines(1)),
        ("\x1b[5~", Key::Pages(-1)),
        ("\x1b[6~", Key::Pages(1)),
        // Home and End go as far as there is anything.
        ("\x1b[H", Key::Pages(-10_000)),
        ("\x1b[1~", Key::Pages(-10_000)),
        ("\x1b[F", Key::Pages(10_000)),
        ("\x1b[4~", Key::Pages(10_000)),
    ];
    while let Some(first) = rest.chars().next() {
        if let Some((sequence, key)) = SEQUENCES.iter().find(|(sequence, _)| rest.starts_with(sequence)) {
            keys.push(*key);
            rest = &rest[sequence.len()..];
            continue;
        }
        if let Some(tail) = rest.strip_prefix("\x1b[").or_else(|| rest.strip_prefix("\x1bO")) {
            // Another function key, up to its last letter.
            let end = tail.find(|c: char| ('@'..='~').contains(&c)).map_or(tail.len(), |at| at + 1);
            rest = &tail[end..];
            continue;
        }
        rest = &rest[first.len_utf8()..];
        keys.extend(match first {
            '\r' | '\n' => Some(Key::Enter),
            '\x1b' => Some(Key::Escape),
            '\x7f' | '\x08' => Some(Key::Backspace),
            '\t' => Some(Key::Tab),
            '\x03' | '\x04' => Some(Key::Interrupt),
            '\x1a' => Some(Key::Suspend),
            c if c.is_control() => None,
            c => Some(Key::Char(c)),
        });
    }
    keys
}
