//! The way of one packet, hop by hop.

use crate::packet::{Content, ETHERNET, Frame, UDP, VXLAN};
use crate::paint::{Style, Text, Tone, time};
use crate::proto::{Hop, Walk};
use crate::spec::WIRE;
use crate::wire::ETH0;

/// The hops of the request in full, and of the answer in one line.
pub fn walk(walk: &Walk, style: Style) -> Vec<Text> {
    let mut lines = vec![
        Text::of(Tone::Bold, format!("   {}", walk.from))
            .and(Tone::Pod, format!(" {} ", walk.source))
            .and(Tone::Plain, style.arrow())
            .and(Tone::Bold, format!(" {}", walk.to))
            .and(Tone::Pod, format!(" {}", walk.destination))
            .and(Tone::Dim, "   one ICMP echo, seen by packet sockets on the way"),
        Text::default(),
    ];
    let device = walk.there.iter().map(|h| h.device.len()).max().unwrap_or(0) + 2;
    let mut before: Option<&Hop> = None;
    for (at, hop) in walk.there.iter().enumerate() {
        let into = walk.there.get(at + 1).is_some_and(|next| tunnelled(&next.frame));
        lines.push(line(hop, before, into, device, style));
        let wrapped_before = before.is_some_and(|b| tunnelled(&b.frame));
        if tunnelled(&hop.frame) && !wrapped_before {
            lines.extend(layers(&hop.frame, style));
        }
        before = Some(hop);
    }
    lines.push(Text::default());
    lines.push(answer(walk, style));
    lines
}

fn tunnelled(frame: &Frame) -> bool {
    matches!(frame.content, Content::Vxlan { .. })
}

/// Where, which device, which way, and what happens there. `into`: next it is wrapped.
fn line(hop: &Hop, before: Option<&Hop>, into: bool, device: usize, style: Style) -> Text {
    let at = format!("{:.1}", hop.at_us);
    let tone = if hop.place == WIRE { Tone::Host } else { Tone::Bold };
    let place = if before.is_some_and(|b| b.place == hop.place) { "" } else { hop.place.as_str() };
    let way = if hop.outgoing { style.pick("↑ out", "out") } else { style.pick("↓ in", "in") };
    Text::of(Tone::Dim, format!("{at:>8} {} ", style.pick("µs", "us")))
        .and(tone, format!(" {place:<8} "))
        .and(Tone::Plain, format!("{:<device$}", hop.device))
        .and(Tone::Dim, format!("{way:<7}"))
        .join(what(hop, before, into, style))
}

/// What a device did to the packet, told from the two frames alone.
fn what(hop: &Hop, before: Option<&Hop>, into: bool, style: Style) -> Text {
    let frame = &hop.frame;
    let inner = frame.innermost();
    let Some(before) = before else {
        let text = format!("leaves the pod {} TTL {}, {} bytes", style.dot(), inner.ttl, frame.bytes);
        return Text::plain(text);
    };
    let ttl = before.frame.innermost().ttl;
    match (tunnelled(&before.frame), tunnelled(frame)) {
        (false, true) => Text::of(
            Tone::Host,
            format!("wrapped: {} {} {} bytes", before.frame.bytes, style.arrow(), frame.bytes),
        ),
        (true, false) => Text::of(Tone::Pod, "unwrapped: the inner frame again"),
        (true, true) if before.frame.ttl != frame.ttl => {
            let text = format!("routed between wires {} outer TTL {}", style.dot(), frame.ttl);
            Text::of(Tone::Host, text)
        }
        (true, true) => Text::of(Tone::Dim, "the same outer packet"),
        (false, false) if ttl != inner.ttl => {
            let hops = format!("TTL {ttl} {} {}", style.arrow(), inner.ttl);
            if into {
                return Text::plain(format!("routed into the tunnel {} {hops}", style.dot()));
            }
            let text = format!("routed {} {hops}", style.dot());
            Text::plain(text).and(Tone::Dim, format!(", to {}", frame.mac_destination))
        }
        (false, false) if before.place != hop.place && hop.place != WIRE && hop.device == ETH0 => {
            Text::plain("arrives")
        }
        (false, false) if before.place == hop.place && !hop.outgoing => {
            Text::of(Tone::Dim, "the bridge hands it to its host")
        }
        (false, false) if before.place == hop.place => Text::of(Tone::Dim, "bridged"),
        (false, false) if hop.place == WIRE => Text::of(Tone::Dim, "on the wire"),
        (false, false) => Text::of(Tone::Dim, "the other end of the veth"),
    }
}

/// The headers of a tunnelled frame with their bytes, outermost first.
fn layers(frame: &Frame, style: Style) -> Vec<Text> {
    let Content::Vxlan { source_port, port, vni, inner } = &frame.content else { return Vec::new() };
    let arrow = style.arrow();
    let ip = |f: &Frame| if f.source.is_ipv4() { "IPv4" } else { "IPv6" };
    let rows = [
        (Tone::Host, "Ethernet", format!("{} {arrow} {}", frame.mac_source, frame.mac_destination), ETHERNET),
        (
            Tone::Host,
            ip(frame),
            format!("{} {arrow} {}  TTL {}", frame.source, frame.destination, frame.ttl),
            frame.ip_header(),
        ),
        (Tone::Host, "UDP", format!("{source_port} {arrow} {port}"), UDP),
        (Tone::Host, "VXLAN", format!("VNI {vni}"), VXLAN),
        (Tone::Pod, "Ethernet", format!("{} {arrow} {}", inner.mac_source, inner.mac_destination), ETHERNET),
        (
            Tone::Pod,
            ip(inner),
            format!("{} {arrow} {}  TTL {}", inner.source, inner.destination, inner.ttl),
            inner.bytes - ETHERNET,
        ),
    ];
    let indent = " ".repeat(22);
    let side = style.pick("│", "|");
    let width = rows.iter().map(|(_, _, text, _)| text.chars().count()).max().unwrap_or(0);
    let row = |(tone, name, text, bytes): &(Tone, &str, String, usize)| {
        Text::of(Tone::Dim, format!("{indent}{side} "))
            .and(*tone, format!("{name:<9}"))
            .and(Tone::Plain, format!("{text:<width$}"))
            .and(Tone::Dim, format!("  {bytes:>4} bytes"))
    };
    let mut lines: Vec<Text> = rows.iter().map(row).collect();
    let cost = frame.bytes - inner.bytes;
    lines.push(Text::of(
        Tone::Dim,
        format!("{indent}{} {cost} bytes added: so much smaller is the pods' MTU", style.pick("╰", "+")),
    ));
    lines
}

fn answer(walk: &Walk, style: Style) -> Text {
    let Some(last) = walk.back.last() else {
        return Text::plain("   ").join(style.cross()).and(Tone::Plain, " no answer was seen");
    };
    let mut places: Vec<&str> = Vec::new();
    for hop in &walk.back {
        if places.last() != Some(&hop.place.as_str()) {
            places.push(&hop.place);
        }
    }
    let way = places.join(&format!(" {} ", style.arrow()));
    let text =
        format!(" the answer: {way}, {} hops, back after {}", walk.back.len(), time(last.at_us, style));
    Text::plain("   ").join(style.tick()).and(Tone::Plain, text)
}
