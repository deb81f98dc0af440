//! What a lab shows, as text. Pure: measured values in, lines out; golden-tested.

mod matrix;
mod picture;
mod walk;

pub use matrix::matrix;
pub use picture::picture;
pub use walk::walk;

use crate::paint::{Style, Text, Tone, time};
use crate::proto::{Agent, Fetch, Pod, Status, Step};
use crate::spec::{DEFAULT_NAME, Spec};

/// The first line of a show.
pub fn title(spec: &Spec, style: Style) -> Vec<Text> {
    let parts = [
        counted(spec.hosts, "host"),
        counted(spec.hosts * spec.pods, "pod"),
        if spec.direct_routing {
            format!("{} with direct routing", spec.backend)
        } else {
            spec.backend.clone()
        },
    ];
    let parts = parts.join(&format!(" {} ", style.dot()));
    vec![
        Text::default(),
        Text::of(Tone::Bold, "  loden lab").and(Tone::Dim, format!("   {parts}")),
        Text::default(),
    ]
}

/// "1 pod", "2 pods".
pub fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// A step that is done.
pub fn step(step: &Step, style: Style) -> Text {
    let what = Text::plain("  ").join(style.tick()).and(Tone::Plain, format!(" {}", step.what));
    what.left(62).join(Text::of(Tone::Dim, time(step.ms * 1000.0, style)).right(9))
}

/// Pages fetched between pods, with the servers' log lines.
pub fn fetches(fetches: &[Fetch], style: Style) -> Vec<Text> {
    let mut lines = Vec::new();
    for fetch in fetches {
        lines.push(
            Text::of(Tone::Bold, format!("   {} ", fetch.from))
                .and(Tone::Plain, format!("GET {}", fetch.url))
                .and(Tone::Dim, format!("   {}", time(fetch.us, style))),
        );
        let body = Text::of(Tone::Dim, format!("      {} ", fetch.status));
        lines.push(body.and(Tone::Plain, format!("{:?}", fetch.body.trim_end())));
        lines.push(
            Text::of(Tone::Dim, format!("      log of {}: ", fetch.to)).and(Tone::Plain, &fetch.server_log),
        );
        let verdict = match (fetch.source, fetch.unmasked()) {
            (Some(source), true) => Text::plain("      ").join(style.tick()).and(
                Tone::Plain,
                format!(" the server saw {source}, the pod's own address: nothing translated it"),
            ),
            _ => Text::plain("      ")
                .join(style.cross())
                .and(Tone::Plain, " the server saw another address than the pod's own"),
        };
        lines.push(verdict);
    }
    lines
}

/// How long each pod's ADD took, as bars.
pub fn add_times(pods: &[Pod], style: Style) -> Vec<Text> {
    let longest = pods.iter().map(|p| p.add_ms).fold(0.1, f64::max);
    let room = style.width.saturating_sub(60).clamp(8, 30) as f64;
    let row = |pod: &Pod| {
        let bar = style.pick("▇", "#").repeat(((pod.add_ms / longest * room).round() as usize).max(1));
        let parts: Vec<String> =
            pod.plugins.iter().map(|s| format!("{} {}", s.what, time(s.ms * 1000.0, style))).collect();
        vec![
            Text::of(Tone::Bold, &pod.name),
            Text::of(Tone::Good, bar),
            Text::plain(time(pod.add_ms * 1000.0, style)),
            Text::of(Tone::Dim, parts.join(&format!(" {} ", style.dot()))),
        ]
    };
    let rows: Vec<Vec<Text>> = pods.iter().map(row).collect();
    style.table(&rows, &[2])
}

/// Hosts and pods, in columns.
pub fn status(status: &Status, style: Style) -> Vec<Text> {
    let head = Text::of(Tone::Bold, format!("  {}", status.name)).and(
        Tone::Dim,
        format!(
            "   {} {} up for {}{}",
            status.backend,
            style.dot(),
            age(status.age_s),
            if status.rootless { ", without root" } else { "" }
        ),
    );
    let mut lines = vec![head, Text::default()];
    let mut rows = vec![header(&["HOST", "UNDERLAY", "POD SUBNET", "VIA", "MAC", "MTU", "AGENT"])];
    for host in &status.hosts {
        let list = |items: Vec<String>| if items.is_empty() { "-".to_owned() } else { items.join(" ") };
        rows.push(vec![
            Text::of(Tone::Bold, &host.name),
            Text::of(Tone::Host, list(host.underlay.iter().map(|n| n.addr().to_string()).collect())),
            Text::of(Tone::Pod, list(host.subnets.iter().map(ToString::to_string).collect())),
            Text::plain(list(host.devices.iter().map(|d| d.name.clone()).collect())),
            Text::of(Tone::Dim, list(host.devices.iter().map(|d| d.mac.clone()).collect())),
            Text::plain(host.mtu.map_or("-".to_owned(), |m| m.to_string())),
            agent(&host.agent, style),
        ]);
    }
    lines.extend(style.table(&rows, &[5]));
    if !status.pods.is_empty() {
        lines.push(Text::default());
        lines.extend(pods(&status.pods, style));
    }
    lines
}

/// Pods, in columns.
pub fn pods(pods: &[Pod], style: Style) -> Vec<Text> {
    let mut rows = vec![header(&["POD", "HOST", "ADDRESS", "ADD TOOK"])];
    for pod in pods {
        let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
        rows.push(vec![
            Text::of(Tone::Bold, &pod.name),
            Text::plain(&pod.host),
            Text::of(Tone::Pod, addresses.join(" ")),
            Text::plain(time(pod.add_ms * 1000.0, style)),
        ]);
    }
    style.table(&rows, &[3])
}

fn header(names: &[&str]) -> Vec<Text> {
    names.iter().map(|n| Text::of(Tone::Dim, n)).collect()
}

fn agent(agent: &Agent, style: Style) -> Text {
    match agent {
        Agent::Absent => Text::of(Tone::Dim, "not started"),
        Agent::Running { ready: true, ready_ms, .. } => {
            Text::of(Tone::Good, format!("ready in {}", time(ready_ms * 1000.0, style)))
        }
        Agent::Running { .. } => Text::plain("starting"),
        Agent::Exited { status } => Text::of(Tone::Bad, format!("ended: {status}")),
    }
}

fn age(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

/// How to go on, after a demo or an `up`.
pub fn way_on(name: &str, up: bool, style: Style) -> Vec<Text> {
    let name = if name == DEFAULT_NAME { String::new() } else { format!(" --name {name}") };
    let mut rows = Vec::new();
    if !up {
        rows.push(("loden lab up", "the same lab, and it stays"));
    }
    rows.extend([
        ("loden lab exec host1 -- ip route", "look inside, also `bridge fdb`, `ip -d link`, a shell"),
        ("loden lab exec pod1-1 -- bash", "be a pod"),
        ("loden lab walk pod1-1 pod2-1", "follow a packet"),
        ("loden lab agent kill host2", "break something, then `loden lab show`"),
        ("loden lab down", "the end: nothing is left behind"),
    ]);
    let row = |(command, what): (&str, &str)| {
        let (verb, rest) = command.split_at(command.find(" -- ").unwrap_or(command.len()));
        vec![Text::of(Tone::Bold, format!("{verb}{name}{rest}")), Text::of(Tone::Dim, what)]
    };
    let rows: Vec<Vec<Text>> = rows.into_iter().map(row).collect();
    style.table(&rows, &[])
}

#[cfg(test)]
mod tests;
