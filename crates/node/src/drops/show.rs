//! The lines, and the document. Pure.

use std::net::IpAddr;

use lab::paint::{Style, Text, Tone};
use model::Json;

use super::{Count, Group, Scene, owner, reasons};
use crate::doctor::ruleset::Ruleset;

/// Version of the JSON.
const VERSION: u32 = 1;

/// Chains that are named at most.
const SUSPECTS: usize = 3;

/// What is said about a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// What happened and what usually causes it.
    pub says: String,
    /// Who did it, where that can be known.
    pub owner: Option<String>,
    /// The command.
    pub mend: String,
    /// What a runtime calls the pod it happened in.
    pub pod: Option<String>,
}

/// In words; `rules` are those of the namespace it happened in.
pub fn tell(group: &Group, count: Count, rules: &Ruleset, scene: &Scene) -> Told {
    let netns = scene.netns_of(group);
    let known = reasons::find(&group.reason);
    let function = if group.function.is_empty() { "the kernel" } else { &group.function };
    let says = known.map_or_else(
        || match group.reason.as_str() {
            "NOT_SPECIFIED" => format!("dropped in {function}, which gives no reason"),
            _ => format!("dropped in {function}"),
        },
        |reason| fill(reason.says, group, count),
    );
    let suspects =
        group.hook.map(|hook| owner::suspects(rules, hook, group.flow.map(|(_, to)| to))).unwrap_or_default();
    let owner = group.hook.map(|hook| {
        let mut named: Vec<String> = suspects.iter().take(SUSPECTS).map(ToString::to_string).collect();
        if suspects.len() > SUSPECTS {
            named.push(format!("or one of {} more", suspects.len() - SUSPECTS));
        }
        match named.is_empty() {
            true => format!("at the hook {hook}"),
            false => format!("at the hook {hook}: {}", named.join("; or ")),
        }
    });
    let mend = match suspects.as_slice() {
        [only] => only.shown_by(),
        _ => known.map_or(String::new(), |reason| fill(reason.mend, group, count)),
    };
    let mend = netns.map_or_else(|| mend.clone(), |netns| inside(netns, &mend));
    Told { says, owner, mend, pod: scene.pod_of(group).map(str::to_owned) }
}

/// A command, run in a namespace.
fn inside(netns: &str, command: &str) -> String {
    // Checksums are made by the tunnel of the node that sends, whoever sees them.
    match command {
        "" => String::new(),
        command if command.contains("flannel") => command.to_owned(),
        command if command.contains([';', '|']) => format!("nsenter --net={netns} sh -c '{command}'"),
        command => format!("nsenter --net={netns} {command}"),
    }
}

fn fill(text: &str, group: &Group, count: Count) -> String {
    let address = |end: Option<IpAddr>| end.map_or("its address".to_owned(), |address| address.to_string());
    let device = if group.device.is_empty() { "the device" } else { &group.device };
    text.replace("{dev}", device)
        .replace("{from}", &address(group.flow.map(|(from, _)| from)))
        .replace("{to}", &address(group.flow.map(|(_, to)| to)))
        .replace("{bytes}", &count.longest.to_string())
}

fn place(group: &Group) -> String {
    let device = if group.device.is_empty() { "-" } else { &group.device };
    if group.place == "host" { device.to_owned() } else { format!("{device}@{}", group.place) }
}

/// Two lines and the command.
pub fn block(group: &Group, count: Count, told: &Told, style: Style) -> Vec<Text> {
    let flow = group.flow.map_or(String::new(), |(from, to)| format!(" {from} {} {to}", style.arrow()));
    let pod = told.pod.as_ref().map_or(String::new(), |pod| format!(" ({pod})"));
    let wraps = if group.wraps.is_empty() { String::new() } else { format!(" in {}", group.wraps) };
    let mut lines = vec![
        Text::of(Tone::Bad, format!("{:>7}  {}", count.packets, group.reason))
            .and(Tone::Plain, format!(" on {}{pod}:", place(group)))
            .and(Tone::Pod, flow)
            .and(Tone::Plain, format!(" {}{wraps}", group.what)),
        Text::plain(format!("         {}", told.says)),
    ];
    if let Some(owner) = &told.owner {
        lines.push(Text::plain(format!("         {owner}")));
    }
    if !told.mend.is_empty() {
        lines.push(Text::of(Tone::Dim, "         $ ").and(Tone::Bold, &told.mend));
    }
    lines
}

/// One group.
pub fn json(group: &Group, count: Count, told: &Told) -> Json {
    Json::object([
        ("version", VERSION.into()),
        ("reason", group.reason.as_str().into()),
        ("packets", count.packets.into()),
        ("longest", count.longest.into()),
        ("place", group.place.as_str().into()),
        ("pod", told.pod.clone().into()),
        ("device", group.device.as_str().into()),
        ("from", group.flow.map(|(from, _)| from.to_string()).into()),
        ("to", group.flow.map(|(_, to)| to.to_string()).into()),
        ("what", group.what.as_str().into()),
        ("wraps", group.wraps.as_str().into()),
        ("hook", group.hook.map(|hook| hook.to_string()).into()),
        ("function", group.function.as_str().into()),
        ("says", told.says.as_str().into()),
        ("owner", told.owner.clone().into()),
        ("mend", told.mend.as_str().into()),
    ])
}

/// Everything.
pub fn document(groups: Vec<Json>, others: u64, passed_over: u64, seconds: u64) -> Json {
    Json::object([
        ("version", VERSION.into()),
        ("seconds", seconds.into()),
        ("groups", Json::array(groups)),
        ("packets_of_other_groups", others.into()),
        ("packets_passed_over", passed_over.into()),
    ])
}
