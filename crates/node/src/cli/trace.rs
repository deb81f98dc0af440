//! `loden trace`: which way a packet should take from here, and which it takes.

use std::fs;
use std::net::IpAddr;
use std::os::fd::AsFd as _;

use kernel::{Netns, Rtnl};
use lab::icmp::{self, Answer};
use lab::proto::Hop;
use lab::walk::{self, Station};

use super::print;
use super::words::{Command, FORMAT, Words, flag};
use crate::pods::pod;
use crate::trace::{Model, Sight, Verdict, Walk, compare, model as tables, picture, show};

/// What it is, for help, completion and manual.
pub const COMMAND: Command = Command {
    name: "trace",
    words: "[SOURCE] DESTINATION",
    summary: "follow a packet by the kernel's tables and by a real one",
    text: "\
Follows a packet from this host, or from a pod on it, to an address: by the kernel's tables (route, neighbour, \
forwarding entry, outer route) and by a real ICMP echo that packet sockets see on every device. The first hop where the two part is \
named. What happens beyond this host is seen from the host there.

SOURCE is `host` (the default), the address of a pod of this host, or the path of a network namespace. DESTINATION is an \
address.",
    flags: &[
        FORMAT,
        flag("--svg", "FILE", "also draw it; nothing else is needed to look at it"),
        flag("--html", "FILE", "the same as a page with the table"),
    ],
    exit: "0 the packet took that way and came back, 1 it did not, 2 it could not be tried.",
    sub: &[],
};

/// Runs the command; gives the exit status.
pub fn main(words: &[String]) -> u8 {
    COMMAND.serve(parse(words), |wish| run(&wish))
}

struct Wish {
    source: String,
    to: IpAddr,
    json: bool,
    svg: Option<String>,
    html: Option<String>,
}

/// Whether the words make sense.
#[cfg(test)]
pub fn understands(words: &[String]) -> Result<(), String> {
    parse(words).map(drop)
}

/// `None` for help.
fn parse(words: &[String]) -> Result<Option<Wish>, String> {
    let (mut json, mut ends, mut svg, mut html) = (false, Vec::new(), None, None);
    let mut words = Words::new(words, &COMMAND);
    while let Some(name) = words.word()? {
        match name {
            "-o" => json = super::is_json(words.value()?)?,
            "--svg" => svg = Some(words.value()?.to_owned()),
            "--html" => html = Some(words.value()?.to_owned()),
            "--help" => return Ok(None),
            end => ends.push(end),
        }
    }
    let (source, to) = match ends.as_slice() {
        [to] => ("host", *to),
        [source, to] => (*source, *to),
        [_, _, port, ..] => return Err(format!("{port:?}: only ICMP echo is sent, ports are not traced")),
        [] => return Err("it needs a destination".to_owned()),
    };
    let to = to.parse().map_err(|_| format!("{to:?} is not an address"))?;
    Ok(Some(Wish { source: source.to_owned(), to, json, svg, html }))
}

fn run(wish: &Wish) -> Result<u8, String> {
    let host = Netns::current().map_err(|error| error.to_string())?;
    let pod = pod(&wish.source)?;
    let mut model = Model::default();
    let ask = |error: kernel::Error| error.to_string();
    let mut rtnl = Rtnl::open().map_err(ask)?;
    if let Some(pod) = &pod {
        let mut inside = Rtnl::open_in(pod.as_fd()).map_err(ask)?;
        let mut first = Model::default();
        tables::follow(&mut inside, "pod", wish.to, &mut first).map_err(ask)?;
        model.steps.append(&mut first.steps);
        (model.broken, model.mtu) = (first.broken, first.mtu);
        if let Some(gateway) = first.gateway {
            tables::enter(&mut rtnl, gateway, &mut model).map_err(ask)?;
        }
    }
    if model.broken.is_none() {
        tables::follow(&mut rtnl, "host", wish.to, &mut model).map_err(ask)?;
    }
    let mut stations = Vec::new();
    if let Some(pod) = &pod {
        stations.push(Station { place: "pod".to_owned(), net: pod });
    }
    stations.push(Station { place: "host".to_owned(), net: &host });
    let port = model.port.unwrap_or(8472);
    let tried = walk::attempt(&stations, wish.to, icmp::MIN_PAYLOAD, port);
    let ((there, back), answer) =
        tried.map_err(|error| format!("send an echo: {error}; it needs CAP_NET_RAW"))?;
    let walk = Walk {
        there: sights(there),
        back: sights(back),
        answered: matches!(answer, Answer::Echo(_)),
        refused: if let Answer::Refused(why) = answer { Some(why) } else { None },
    };
    let verdict = compare(&model, &walk);
    let to = wish.to.to_string();
    let draw: fn(&str, &str, &Model, &Walk, &Verdict) -> String = picture::svg;
    for (file, draw) in [(&wish.svg, draw), (&wish.html, picture::html)] {
        if let Some(file) = file {
            fs::write(file, draw(&wish.source, &to, &model, &walk, &verdict))
                .map_err(|error| format!("write {file}: {error}"))?;
        }
    }
    if wish.json {
        print(&format!("{}\n", show::json(&wish.source, &to, &model, &walk, &verdict).to_indented()));
    } else {
        let style = lab::style(false);
        print(&style.lines(&show::show(&wish.source, &to, &model, &walk, &verdict, style)));
    }
    Ok(if verdict.fine { 0 } else { 1 })
}

fn sights(hops: Vec<Hop>) -> Vec<Sight> {
    hops.into_iter().map(|hop| Sight { place: hop.place, device: hop.device, at_us: hop.at_us }).collect()
}
