//! `loden trace`: which way a packet should take from here, and which it takes.

use std::fs;
use std::io::IsTerminal as _;
use std::net::IpAddr;
use std::process::Command as Program;
use std::time::Duration;

use kernel::{Netns, Rtnl, process};
use lab::icmp::{self, Answer};
use lab::proto::Hop;
use lab::walk::{self, Station};
use model::cni::record::PodName;

use super::words::{Command, FORMAT, Words, flag};
use super::{complain, print};
use crate::capture::way;
use crate::pods::names::{Names, may_be_one};
use crate::pods::{self, End};
use crate::trace::connect::{self, Port};
use crate::trace::{Ends, Model, Sight, Verdict, Walk, compare, model as tables, nat, picture, show};

/// What it is, for help, completion and manual.
pub const COMMAND: Command = Command {
    name: "trace",
    words: "[SOURCE] DESTINATION [PORT/PROTO]",
    summary: "follow a packet by the kernel's tables and by a real one",
    text: "\
Follows a packet from this host, or from a pod on it, to an address: by the kernel's tables (route, neighbour, \
forwarding entry, outer route) and by a real ICMP echo that packet sockets see on every device. The first hop where the two part is \
named. What happens beyond this host is seen from the host there.

SOURCE is `host` (the default), a pod of this host by its address or its name, or the path of a network namespace. DESTINATION \
is an address, or the name of a pod of this host. A name is NAMESPACE/NAME, or NAME where one pod here has it; pods have names where a \
runtime had plugins of Loden attach them. With PORT/PROTO, such as 80/tcp or 53/udp, a SYN or a datagram is sent in place of the echo: what a service of a cluster or a \
published port translates, and masquerading, is a hop NAT, with the rule, and the way goes on from there.",
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
    to: String,
    port: Option<Port>,
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
    let port = ends.last().and_then(|end| Port::of(end));
    if port.is_some() {
        ends.pop();
    }
    let (source, to) = match ends.as_slice() {
        [to] => ("host", *to),
        [source, to] => (*source, *to),
        [_, _, port, ..] => {
            return Err(format!("{port:?} is no port of a protocol, such as 80/tcp or 53/udp"));
        }
        [] => return Err("it needs a destination".to_owned()),
    };
    Ok(Some(Wish { source: source.to_owned(), to: to.to_owned(), port, json, svg, html }))
}

/// Where it goes, and the pod of this host that is there.
fn destination(word: &str, source: &End, names: &Names) -> Result<(IpAddr, Option<PodName>), String> {
    if let Ok(address) = word.parse() {
        return Ok((address, names.of_address(address).cloned()));
    }
    if word == "host" || !may_be_one(word) {
        return Err(format!("{word:?} is neither an address nor the name of a pod of this host"));
    }
    let (pod, place) = names.find(word).map_err(|why| names.elsewhere(word, why))?;
    let address = place.address(source.addresses.first().copied());
    let address = address.ok_or_else(|| format!("{pod} has no address that is known; give it"))?;
    Ok((address, Some(pod.clone())))
}

/// The source beside its name: its address, if the name is all that was said.
fn from(word: &str, source: &End, to: IpAddr) -> String {
    let same = source.addresses.iter().find(|address| address.is_ipv4() == to.is_ipv4());
    same.or(source.addresses.first()).map_or_else(|| word.to_owned(), ToString::to_string)
}

fn run(wish: &Wish) -> Result<u8, String> {
    let host = Netns::current().map_err(|error| error.to_string())?;
    let names = Names::read();
    let source = pods::source(&wish.source, &names)?;
    let (to, to_pod) = destination(&wish.to, &source, &names)?;
    let ends = Ends {
        from: from(&wish.source, &source, to),
        to: to.to_string(),
        from_pod: source.pod.as_ref().map(ToString::to_string),
        to_pod: to_pod.as_ref().map(ToString::to_string),
    };
    let pod = source.netns;
    let mut stations = Vec::new();
    if let Some(pod) = &pod {
        stations.push(Station { place: "pod".to_owned(), net: pod });
    }
    stations.push(Station { place: "host".to_owned(), net: &host });
    // Two packets, each with its time for an answer; the first is for the neighbours.
    if std::io::stderr().is_terminal() {
        complain("sending; without an answer this takes two seconds\n");
    }
    let mut walk = send(wish, to, &stations)?;
    let real = nat::destination(to, &walk);
    let mut model = tables::whole(pod.as_ref(), to, real)?;
    let rules = rules(real);
    nat::mark(&mut model, &mut walk, to, wish.port.map(|port| port.number), &rules);
    let mut verdict = compare(&model, &walk);
    if let Some(rule) = rules.naming(to).filter(|_| !verdict.fine && real == to) {
        verdict
            .text
            .push_str(&format!("; a rule of this host names {} and did not translate it: `{rule}`", to));
    }
    if wish.port.is_some_and(|port| port.protocol == 17) && !walk.answered && walk.refused.is_none() {
        verdict.text.push_str("; a program need not answer a datagram it does not understand");
    }
    let (from, to) = (ends.from(), ends.to());
    let draw: fn(&str, &str, &Model, &Walk, &Verdict) -> String = picture::svg;
    for (file, draw) in [(&wish.svg, draw), (&wish.html, picture::html)] {
        if let Some(file) = file {
            fs::write(file, draw(&from, &to, &model, &walk, &verdict))
                .map_err(|error| format!("write {file}: {error}"))?;
        }
    }
    if wish.json {
        print(&format!("{}\n", show::json(&ends, &model, &walk, &verdict).to_indented()));
    } else {
        let style = lab::style(false);
        print(&style.lines(&show::show(&from, &to, &model, &walk, &verdict, style)));
    }
    Ok(if verdict.fine { 0 } else { 1 })
}

/// The real packet.
fn send(wish: &Wish, to: IpAddr, stations: &[Station<'_>]) -> Result<Walk, String> {
    if let Some(port) = wish.port {
        let ports = way::ports(None).map_err(|error| error.to_string())?;
        let walk = connect::attempt(stations, to, port, &ports);
        return walk
            .map_err(|error| format!("send to {} port {}: {error}; it needs CAP_NET_RAW", to, port.number));
    }
    let mut way = Model::default();
    let mut rtnl = Rtnl::open().map_err(|error| error.to_string())?;
    tables::follow(&mut rtnl, "host", to, &mut way).map_err(|error| error.to_string())?;
    let port = way.port.unwrap_or(8472);
    let tried = walk::attempt(stations, to, icmp::MIN_PAYLOAD, port);
    let ((there, back), answer) =
        tried.map_err(|error| format!("send an echo: {error}; it needs CAP_NET_RAW"))?;
    Ok(Walk {
        there: sights(there),
        back: sights(back),
        answered: matches!(answer, Answer::Echo(_)),
        refused: if let Answer::Refused(why) = answer { Some(why) } else { None },
        planned: false,
    })
}

/// The host's rules of a family, as far as they can be read; who cannot name a rule is told why.
fn rules(to: IpAddr) -> nat::Rules {
    const LIMIT: Duration = Duration::from_secs(10);
    let mut rules = nat::Rules::default();
    let six = if to.is_ipv6() { "ip6tables" } else { "iptables" };
    for (program, words) in
        [(format!("{six}-save"), &["-t", "nat"][..]), ("nft".to_owned(), &["list", "ruleset"])]
    {
        match process::run(Program::new(&program).args(words).env("LC_ALL", "C"), Vec::new(), LIMIT) {
            Ok(Some(output)) if output.status.success() => {
                rules.text.push_str(&String::from_utf8_lossy(&output.stdout))
            }
            Ok(Some(output)) => {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                rules.missing.push(format!("{program}: {}", said.lines().next().unwrap_or("it failed")));
            }
            Ok(None) => rules.missing.push(format!("{program}: not done after {} s", LIMIT.as_secs())),
            // Without the program nothing is to be read by it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => rules.missing.push(format!("{program}: {error}")),
        }
    }
    rules
}

fn sights(hops: Vec<Hop>) -> Vec<Sight> {
    let flow = |hop: &Hop| {
        let inner = hop.frame.innermost();
        Some(nat::Flow { from: inner.source, to: inner.destination, ports: None })
    };
    hops.into_iter()
        .map(|hop| Sight { flow: flow(&hop), place: hop.place, device: hop.device, at_us: hop.at_us })
        .collect()
}
