//! The hosts as boxes on their wires.

use ipnet::IpNet;

use crate::paint::{Style, Text, Tone, beside};
use crate::proto::{Host, Pod, Status};

/// Most pods named in a box.
const PODS: usize = 6;

/// Who has which subnet: a box for each host with its lease, its tunnel and its pods, on its wire.
pub fn picture(status: &Status, style: Style) -> Vec<Text> {
    let wires = status.hosts.iter().map(|h| h.wire).max().unwrap_or(0);
    let mut lines = Vec::new();
    for wire in 0..=wires {
        let hosts: Vec<&Host> = status.hosts.iter().filter(|h| h.wire == wire).collect();
        let inner = inner_width(status);
        // Two spaces before the first box, two after each.
        let in_row = (style.width.saturating_sub(2) / (inner + 6)).max(1);
        for row in hosts.chunks(in_row) {
            let height = row.iter().map(|h| body(h, &pods_of(status, h), style).len()).max().unwrap_or(0);
            let boxes: Vec<Vec<Text>> =
                row.iter().map(|h| host_box(h, &pods_of(status, h), style, inner, height)).collect();
            let width = row.len() * (inner + 6) - 2;
            lines.extend(beside(boxes, 2).into_iter().map(|l| Text::plain("  ").join(l)));
            lines.push(Text::plain("  ").join(cable(row, wire, width, inner, style)));
        }
        if wire < wires {
            let router = style.pick("║", "#");
            lines.push(Text::of(Tone::Host, format!("      {router}")).and(Tone::Dim, "  a router between"));
        }
    }
    lines
}

fn pods_of<'a>(status: &'a Status, host: &Host) -> Vec<&'a Pod> {
    status.pods.iter().filter(|p| p.host == host.name).collect()
}

/// Wide enough for every line of every box, so that all boxes are equal.
fn inner_width(status: &Status) -> usize {
    let style = Style::PLAIN;
    let widest = |h: &Host| {
        let lines = body(h, &pods_of(status, h), style).iter().map(Text::width).max().unwrap_or(0);
        lines.max(foot(h).width() + 2)
    };
    status.hosts.iter().map(widest).max().unwrap_or(20)
}

fn host_box(host: &Host, pods: &[&Pod], style: Style, inner: usize, height: usize) -> Vec<Text> {
    let mut lines = body(host, pods, style);
    lines.resize(height, Text::default());
    style.boxed(Text::of(Tone::Bold, &host.name), lines, foot(host), inner)
}

fn body(host: &Host, pods: &[&Pod], style: Style) -> Vec<Text> {
    let labelled = |label: &str, text: Text| Text::of(Tone::Dim, format!("{label:<8}")).join(text);
    let mut lines = Vec::new();
    for pod in pods.iter().take(PODS) {
        for (at, address) in pod.addresses.iter().enumerate() {
            let label = if at == 0 { pod.name.as_str() } else { "" };
            lines.push(Text::of(Tone::Bold, format!("{label:<8} ")).and(Tone::Pod, address));
        }
    }
    if pods.len() > PODS {
        lines.push(Text::of(Tone::Dim, format!("and {} more pods", pods.len() - PODS)));
    }
    for (at, net) in host.subnets.iter().enumerate() {
        lines.push(labelled(if at == 0 { "subnet" } else { "" }, Text::of(Tone::Pod, format!(" {net}"))));
    }
    if host.subnets.is_empty() {
        lines.push(labelled("subnet", Text::of(Tone::Dim, " none yet")));
    }
    for device in host.devices.iter().filter(|d| d.name != crate::wire::ETH0) {
        let mtu = host.mtu.map_or(String::new(), |mtu| format!(" {} MTU {mtu}", style.dot()));
        lines.push(Text::of(Tone::Plain, &device.name).and(Tone::Dim, mtu));
        lines.push(labelled("", Text::of(Tone::Dim, format!(" {}", device.mac))));
    }
    lines
}

fn foot(host: &Host) -> Text {
    let addresses: Vec<String> = host.underlay.iter().map(|n| n.addr().to_string()).collect();
    Text::of(Tone::Dim, "eth0 ").and(Tone::Host, addresses.join(" "))
}

/// The wire below a row of boxes, with a plug under each.
fn cable(row: &[&Host], wire: usize, width: usize, inner: usize, style: Style) -> Text {
    let [line, plug] = if style.unicode { ["═", "╧"] } else { ["=", "+"] };
    let plugs: Vec<usize> = (0..row.len()).map(|at| at * (inner + 6) + 4).collect();
    let nets: Vec<String> =
        row.iter().take(1).flat_map(|h| &h.underlay).map(|n: &IpNet| n.trunc().to_string()).collect();
    let label = format!(" {} {} ", crate::wire::bridge(wire), nets.join(" "));
    let mut cells: Vec<String> =
        (0..width).map(|at| if plugs.contains(&at) { plug.to_owned() } else { line.to_owned() }).collect();
    // The label stands where it hides no plug, if there is such a place.
    let length = label.chars().count();
    let free = |start: &usize| plugs.iter().all(|p| !(*start..start + length).contains(p));
    if let Some(start) = (6..width.saturating_sub(length)).find(free) {
        cells.splice(start..start + length, label.chars().map(String::from));
    }
    Text::of(Tone::Host, cells.concat())
}
