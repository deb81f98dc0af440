//! [`Status`] on one screen. Pure.

use lab::paint::{Style, Text, Tone};

use super::{Interface, LeftOut, Status, Verdict};

/// Lines of one list shown before the rest is counted.
const SHOWN: usize = 8;
/// Columns of the headings on the left.
const LEFT: usize = 11;

/// The screen; `why` adds every step of the choice of the interface.
pub fn show(status: &Status, why: bool, style: Style) -> Vec<Text> {
    let mut page = Page { lines: Vec::new(), style };
    page.head(status);
    page.store(status);
    if let Some(lease) = &status.lease {
        let to = if lease.public.is_empty() {
            String::new()
        } else {
            format!(", others send to {}", lease.public.join(" and "))
        };
        page.row("lease", Text::plain(format!("{}{to}", lease.subnets.join(" and "))));
    } else if status.agent.is_some() {
        page.row("lease", Text::of(Tone::Bad, "none yet"));
    }
    if let Some(interface) = &status.interface {
        page.interface(interface, why);
    }
    if let Some(backend) = &status.backend {
        let carrier = backend.carrier.as_ref().map(|carrier| format!(" in {carrier}")).unwrap_or_default();
        let line = format!("{}{carrier}, MTU {} for pods", backend.kind, backend.mtu);
        page.row("backend", Text::plain(line));
        page.list(backend.devices.iter().map(|command| Text::of(Tone::Dim, command)));
        if let Some((first, more)) = backend.rules.split_first() {
            page.row("rules", Text::of(Tone::Dim, first));
            page.list(more.iter().map(|command| Text::of(Tone::Dim, command)));
        }
    }
    page.fast_path(status);
    page.peers(status);
    page.probes(status, why);
    page.dropped(status);
    page.objects(status);
    page.troubles(status);
    page.kernel(status);
    page.foot(status);
    page.lines
}

struct Page {
    lines: Vec<Text>,
    style: Style,
}

impl Page {
    fn row(&mut self, heading: &str, text: Text) {
        self.lines.push(Text::of(Tone::Bold, format!("  {heading}")).left(LEFT + 2).join(text));
    }

    fn more(&mut self, text: Text) {
        self.lines.push(Text::plain(" ".repeat(LEFT + 2)).join(text));
    }

    fn list(&mut self, items: impl Iterator<Item = Text>) {
        let items: Vec<Text> = items.collect();
        let hidden = items.len().saturating_sub(SHOWN);
        items.into_iter().take(SHOWN).for_each(|item| self.more(item));
        if hidden > 0 {
            self.more(Text::of(Tone::Dim, format!("and {hidden} more, see -o json")));
        }
    }

    fn head(&mut self, status: &Status) {
        let dot = self.style.dot();
        let line = match &status.agent {
            Some(agent) => Text::of(Tone::Bold, format!("loden {}", agent.version)).and(
                Tone::Dim,
                format!(" {dot} process {} {dot} up {}", agent.pid, duration(agent.uptime_s * 1000)),
            ),
            None => Text::of(Tone::Bold, "no agent answers"),
        };
        self.lines.push(line);
        if let Some(silent) = &status.silent {
            self.lines.push(Text::plain(silent));
        }
    }

    fn store(&mut self, status: &Status) {
        let Some(store) = &status.store else { return };
        let name = if store.name.is_empty() { "none yet" } else { &store.name };
        let heard = match store.heard_ms {
            Some(ms) => format!(", heard {} ago", duration(ms)),
            None => ", not heard yet".to_owned(),
        };
        let list = if store.complete { "" } else { ", without a complete list of leases" };
        self.row("store", Text::plain(format!("{name}{heard}{list}")));
    }

    fn interface(&mut self, interface: &Interface, why: bool) {
        match &interface.name {
            Some(name) => {
                let as_ = if interface.public == interface.addresses {
                    String::new()
                } else {
                    format!(", advertised as {}", interface.public.join(" and "))
                };
                let text =
                    format!("{name}, MTU {}, {}{as_}", interface.mtu, interface.addresses.join(" and "));
                self.row("interface", Text::plain(text));
            }
            None => self.row("interface", Text::of(Tone::Bad, "none fits")),
        }
        if let Some(trouble) = &interface.trouble {
            self.more(Text::of(Tone::Bad, trouble));
        }
        let mark = |taken: bool| {
            if taken { self.style.tick() } else { Text::of(Tone::Dim, self.style.pick("·", "-")) }
        };
        let steps = interface.why.iter().filter(|step| why || step.taken);
        let steps: Vec<Text> = steps
            .map(|step| {
                mark(step.taken)
                    .and(Tone::Plain, format!(" {}: ", step.candidate))
                    .and(Tone::Dim, &step.because)
            })
            .collect();
        steps.into_iter().for_each(|step| self.more(step));
        let others = if why { interface.otherwise.len() } else { 2 };
        for hint in interface.otherwise.iter().take(others) {
            self.more(Text::of(Tone::Dim, self.style.pick("→ ", "-> ")).and(Tone::Plain, hint));
        }
        let hidden = interface.why.iter().any(|step| !step.taken) || interface.otherwise.len() > others;
        if !why && hidden {
            self.more(Text::of(Tone::Dim, "all that was looked at: loden status --why"));
        }
    }

    fn fast_path(&mut self, status: &Status) {
        let Some(fast) = &status.fast_path else { return };
        let line = match (&fast.why, fast.on) {
            (Some(why), _) => Text::of(Tone::Bad, format!("off: {why}")),
            (None, false) => Text::plain("not yet"),
            (None, true) => Text::plain(format!(
                "on {}: {} flows, {} packets fast and {} slow",
                fast.devices.join(", "),
                fast.flows,
                fast.fast_packets,
                fast.slow_packets
            )),
        };
        self.row("fast path", line);
        let early = fast.early.iter().map(|early| {
            let frames = fast.early_frames;
            Text::of(Tone::Dim, format!("before trains are made (XDP): {early}, {frames} frames"))
        });
        self.list(early);
        let fallbacks = [
            (fast.untracked, "of connections not established, or with NAT"),
            (fast.too_big, "longer than an MTU on the way"),
            (fast.full, "of flows there was no room for"),
            (fast.unfinished, "whose checksums nobody would finish before the peer's tunnel"),
        ];
        let fallbacks = fallbacks.iter().filter(|(times, _)| *times > 0);
        self.list(fallbacks.map(|(times, what)| Text::of(Tone::Dim, format!("slow: {times} {what}"))));
        // Some places are always kept free for the next ones, on each processor.
        let full = (fast.flows * 4 > fast.most_flows * 3).then(|| {
            let most = fast.most_flows;
            format!("of {most} places most are taken: a flow used long ago goes slow (LODEN_FASTPATH_FLOWS)")
        });
        self.list(full.into_iter().map(|line| Text::of(Tone::Dim, line)));
        self.list(fast.left_out.iter().map(|device| Text::of(Tone::Dim, format!("without: {device}"))));
    }

    fn peers(&mut self, status: &Status) {
        let Some(peers) = &status.peers else { return };
        let left = match peers.left_out.len() {
            0 => Text::plain(", none left out"),
            n => Text::of(Tone::Bad, format!(", {n} left out")),
        };
        let text = Text::plain(format!("{} in the kernel", peers.programmed)).join(left);
        self.row("peers", text);
        let who = |peer: &LeftOut| match &peer.node {
            Some(node) => format!("{node} ({})", peer.subnets),
            None => peer.subnets.clone(),
        };
        let line =
            |peer: &LeftOut| self.style.cross().and(Tone::Plain, format!(" {}: {}", who(peer), peer.reason));
        let lines: Vec<Text> = peers.left_out.iter().map(line).collect();
        self.list(lines.into_iter());
    }

    fn probes(&mut self, status: &Status, why: bool) {
        let Some(probes) = status.probes.as_ref().filter(|probes| probes.nodes > 0) else { return };
        if let Some(off) = &probes.off {
            self.row("paths", Text::of(Tone::Bad, format!("not probed: {off}")));
            return;
        }
        let bad = probes.paths.iter().filter(|path| path.bad).count();
        let verdict = match (probes.paths.len(), bad) {
            (0, _) => Text::of(Tone::Bad, "not probed yet, so whether packets arrive is not known"),
            (all, 0) => Text::plain(format!("{all} probed, all well")),
            (all, bad) => Text::plain(format!("{all} probed, ")).and(Tone::Bad, format!("{bad} bad")),
        };
        self.row("paths", verdict);
        let shown = probes.paths.iter().take(SHOWN);
        let rows: Vec<Vec<Text>> = shown.map(|path| self.path(path)).collect();
        for (row, path) in self.style.table(&rows, &[2, 3]).into_iter().zip(&probes.paths) {
            // A table is indented by three.
            self.lines.push(Text::plain(" ".repeat(LEFT - 1)).join(row));
            if path.bad || why {
                self.more(Text::of(Tone::Dim, format!("  {}", path.text)));
            }
        }
        if let Some(more @ 1..) = probes.paths.len().checked_sub(SHOWN) {
            self.more(Text::of(Tone::Dim, format!("and {more} more, see -o json")));
        }
    }

    fn path(&self, path: &super::Path) -> Vec<Text> {
        let mark = match (path.bad, path.verdict.as_str()) {
            (true, _) => self.style.cross(),
            (false, "ok") => self.style.tick(),
            _ => Text::plain("?"),
        };
        let who = path.node.as_ref().map_or(path.public.clone(), |node| format!("{node} {}", path.public));
        let rtt = path.rtt_us.map_or(String::new(), |us| lab::paint::time(us as f64, self.style));
        let mtu = path.mtu.map_or(String::new(), |mtu| format!("{mtu} bytes"));
        let word = Text::of(if path.bad { Tone::Bad } else { Tone::Dim }, path.verdict.replace('_', " "));
        vec![
            mark.and(Tone::Plain, format!(" {}", path.subnet)),
            Text::plain(who),
            Text::plain(rtt),
            Text::plain(mtu),
            word,
        ]
    }

    fn dropped(&mut self, status: &Status) {
        let shown: Vec<String> = status
            .dropped
            .iter()
            .filter(|dropped| dropped.packets > 0 || status.dropped.len() == 1)
            .map(|d| format!("{} packets ({} bytes) on {}", d.packets, d.bytes, d.device))
            .collect();
        if !shown.is_empty() {
            self.row("strangers", Text::plain(format!("dropped {}", shown.join(", "))));
        }
    }

    fn objects(&mut self, status: &Status) {
        let Some(objects) = &status.objects else { return };
        let text = format!("{} wanted, {} there, ", objects.wanted, objects.actual);
        let verdict = match objects.differences.len() {
            0 => Text::plain("no difference"),
            1 => Text::of(Tone::Bad, "1 difference"),
            n => Text::of(Tone::Bad, format!("{n} differences")),
        };
        self.row("objects", Text::plain(text).join(verdict));
        let differences = objects.differences.iter().map(|difference| {
            // The reason of a refusal begins with its command.
            let text = difference.reason.as_ref().unwrap_or(&difference.command);
            self.style.cross().and(Tone::Plain, format!(" {text}"))
        });
        let repaired = objects
            .repaired
            .iter()
            .map(|command| Text::of(Tone::Good, "put right just now: ").and(Tone::Plain, command));
        let lines: Vec<Text> = differences.chain(repaired).collect();
        self.list(lines.into_iter());
    }

    fn troubles(&mut self, status: &Status) {
        if status.agent.is_none() {
            return;
        }
        let (over, now): (Vec<_>, Vec<_>) = status.troubles.iter().partition(|trouble| trouble.over);
        match now.len() {
            0 => self.row("troubles", Text::plain("none")),
            n => self.row("troubles", Text::of(Tone::Bad, n)),
        }
        for trouble in now {
            let times = if trouble.first == trouble.last {
                format!("since {}", trouble.first)
            } else {
                format!("since {}, last found {}", trouble.first, trouble.last)
            };
            self.more(self.style.cross().and(Tone::Plain, format!(" {}", trouble.text)));
            self.more(Text::of(Tone::Dim, format!("  {times}")));
        }
        for trouble in over {
            self.more(Text::of(
                Tone::Dim,
                format!("over: {} ({} to {})", trouble.text, trouble.first, trouble.last),
            ));
        }
    }

    fn kernel(&mut self, status: &Status) {
        if status.agent.is_some() {
            return;
        }
        match status.kernel.len() {
            0 => self.row("kernel", Text::plain("nothing of ours on this host")),
            1 => self.row("kernel", Text::plain("1 object of ours")),
            n => self.row("kernel", Text::plain(format!("{n} objects of ours"))),
        }
        self.list(status.kernel.iter().map(Text::plain));
        if status.subnet_env.is_empty() {
            self.row("subnet.env", Text::plain("none"));
        }
        for (at, line) in status.subnet_env.iter().enumerate() {
            if at == 0 { self.row("subnet.env", Text::plain(line)) } else { self.more(Text::plain(line)) }
        }
    }

    fn foot(&mut self, status: &Status) {
        let verdict = match status.verdict() {
            Verdict::Healthy if status.probes.as_ref().is_some_and(|probes| probes.nodes > 0) => {
                self.style.tick().and(Tone::Plain, " healthy, and packets come back from other nodes")
            }
            Verdict::Healthy => self.style.tick().and(Tone::Plain, " healthy, with no other node to reach"),
            Verdict::Unknown if status.agent.is_some() => {
                Text::plain("? ready, but whether packets arrive at other nodes is not known yet")
            }
            Verdict::Unhealthy if status.ready => {
                self.style.cross().and(Tone::Plain, " ready, but not all is well, see above")
            }
            Verdict::Unhealthy => self.style.cross().and(Tone::Plain, " not ready, see above"),
            Verdict::Unknown => Text::plain("? cannot tell without an agent"),
        };
        self.lines.extend([Text::default(), verdict]);
    }
}

/// A duration for people, to two units.
pub fn duration(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..=9 => format!("{}.{} s", s, ms % 1000 / 100),
        10..=59 => format!("{s} s"),
        60..=3599 => format!("{} min {} s", s / 60, s % 60),
        3600..=86_399 => format!("{} h {} min", s / 3600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86_400, s / 3600 % 24),
    }
}
