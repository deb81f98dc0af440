//! `loden capture`: the packets of a pair at all hops of this host at once.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kernel::{Netns, Rtnl, process};
use lab::paint::Style;
use lab::walk::{Sight as Frame, Station, Watch};
use model::Json;

use super::words::{Command, Words, flag};
use super::{complain, print};
use crate::capture::filter::{self, Pair, Ports};
use crate::capture::packet::{self, Packet};
use crate::capture::show::{self, Names, Summary};
use crate::capture::way::{self, End};
use crate::capture::{Follower, Hop, Sight, pcapng};
use crate::{args, pods, socket};

/// What it is, for help, completion and manual.
pub const COMMAND: Command = Command {
    name: "capture",
    words: "SOURCE DESTINATION [PORT/PROTO]",
    summary: "record a pair's packets on every device at once, and where they are lost",
    text: "\
Records the packets between two ends, both ways, on every device of this host at once: the pod's own, its veth, the \
bridge, the tunnel, the interface to other hosts, where the packet inside the tunnel is recognised. One line a packet \
says where it was seen, how long it took between, and on which device it is missing.

SOURCE and DESTINATION are the address of a pod, here or on another host, the name of a pod of this host, as NAMESPACE/NAME or NAME, \
the path of a network namespace, or `host`; one of them is here. PORT/PROTO is one side's port, such as 80/tcp, 53/udp or 53; or icmp. Without --count and --seconds, Ctrl-C ends it.",
    flags: &[
        flag(
            "-w",
            "FILE",
            "write pcapng for tcpdump and Wireshark: an interface for each device, nanoseconds, and the number of \
             the line as the comment; - writes to standard output, and no lines",
        )
        .long("--write"),
        flag(
            "-o",
            "table|json",
            "text for people (the default), or one JSON document in each line, with a version",
        )
        .long("--output"),
        flag("-c", "PACKETS", "end after so many packets").long("--count"),
        flag("--seconds", "SECONDS", "end after so many seconds"),
        flag("--udp-port", "PORT", "port of the backend udp, if it is not 8285"),
    ],
    exit: "0 packets were seen and none was lost on this host, 1 none was seen or some were lost, 2 it could not look.",
    sub: &[],
};

/// Room for frames that were not taken yet, in each namespace.
const ROOM: usize = 32 << 20;
/// Sights are put in order of time once this much time has gone by.
const SETTLE_NS: u64 = 50_000_000;
const TICK: Duration = Duration::from_millis(50);

/// Runs the command; gives the exit status.
pub fn main(words: &[String]) -> u8 {
    COMMAND.serve(parse(words), |wish| run(&wish))
}

struct Wish {
    from: String,
    to: String,
    only: Option<Only>,
    file: Option<String>,
    json: bool,
    count: Option<u64>,
    seconds: Option<u64>,
    udp: Option<u16>,
}

/// Packets of one protocol, or with one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Only {
    protocols: &'static [u8],
    port: Option<u16>,
}

impl Only {
    fn of(text: &str) -> Result<Only, String> {
        let wrong = || format!("{text:?} is no PORT/PROTO, such as 80/tcp, 53, or icmp");
        let (port, protocol) = match text.split_once('/') {
            Some((port, protocol)) => (port, protocol),
            None if text.starts_with(|c: char| c.is_ascii_digit()) => (text, ""),
            None => ("", text),
        };
        let protocols: &'static [u8] = match protocol {
            "tcp" => &[6],
            "udp" => &[17],
            "sctp" => &[132],
            "icmp" if port.is_empty() => &[1, 58],
            "" => &[6, 17, 132],
            _ => return Err(wrong()),
        };
        let port = if port.is_empty() { None } else { Some(port.parse().map_err(|_| wrong())?) };
        Ok(Only { protocols, port })
    }

    fn takes(&self, packet: &Packet) -> bool {
        let port = |wanted| packet.ports.is_some_and(|(from, to)| from == wanted || to == wanted);
        self.protocols.contains(&packet.protocol) && self.port.is_none_or(port)
    }
}

/// Whether the words make sense.
#[cfg(test)]
pub fn understands(words: &[String]) -> Result<(), String> {
    parse(words).map(drop)
}

/// `None` for help.
fn parse(words: &[String]) -> Result<Option<Wish>, String> {
    let mut ends = Vec::new();
    let (mut file, mut json, mut count, mut seconds, mut udp) = (None, false, None, None, None);
    let number = |text: &str| match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("{text:?} is no number from 1 on")),
    };
    let mut words = Words::new(words, &COMMAND);
    while let Some(name) = words.word()? {
        match name {
            "-w" => file = Some(words.value()?.to_owned()),
            "-o" => json = super::is_json(words.value()?)?,
            "-c" => count = Some(number(words.value()?)?),
            "--seconds" => seconds = Some(number(words.value()?)?),
            "--udp-port" => {
                let text = words.value()?;
                udp = Some(text.parse().map_err(|_| format!("{text:?} is no port"))?);
            }
            "--help" => return Ok(None),
            end => ends.push(end.to_owned()),
        }
    }
    let mut ends = ends.into_iter();
    let (Some(from), Some(to)) = (ends.next(), ends.next()) else {
        return Err("it needs a source and a destination".to_owned());
    };
    let only = ends.next().map(|text| Only::of(&text)).transpose()?;
    match ends.next() {
        Some(more) => Err(format!("{more:?} is one word too many")),
        None => Ok(Some(Wish { from, to, only, file, json, count, seconds, udp })),
    }
}

/// One end, by the words for it.
fn end(text: &str, names: &pods::names::Names) -> Result<End, String> {
    let ask = |error: kernel::Error| error.to_string();
    let addresses = |rtnl: &mut Rtnl| -> Result<Vec<IpAddr>, String> {
        let all = rtnl.addresses(None).map_err(ask)?;
        Ok(all.iter().map(|a| a.net.addr()).filter(|address| pods::is_global(*address)).collect())
    };
    let host = addresses(&mut Rtnl::open().map_err(ask)?)?;
    let name = text.to_owned();
    if text == "host" {
        return Ok(End { name, addresses: host, pod: None, host: true });
    }
    if text.starts_with('/') {
        let pod = pods::source(text, names)?.netns;
        let addresses = match &pod {
            Some(pod) => addresses(&mut Rtnl::open_in(pod.as_fd()).map_err(ask)?)?,
            None => Vec::new(),
        };
        if addresses.is_empty() {
            return Err(format!("{text} has no address: the pod is not attached to a network"));
        }
        return Ok(End { name, addresses, pod, host: false });
    }
    let Ok(address) = text.parse() else {
        let pods::End { netns, pod, addresses } =
            pods::named(text, names).map_err(|why| names.elsewhere(text, why))?;
        let name = pod.map_or(name, |pod| pod.to_string());
        if addresses.is_empty() {
            return Err(format!("{name} has no address that is known; give the path of its namespace"));
        }
        return Ok(End { name, addresses, pod: netns, host: false });
    };
    if host.contains(&address) {
        return Ok(End { name, addresses: vec![address], pod: None, host: true });
    }
    Ok(End { name, addresses: vec![address], pod: pods::tied(address), host: false })
}

fn run(wish: &Wish) -> Result<u8, String> {
    process::hold_end_signals().map_err(|error| error.to_string())?;
    let ask = |error: kernel::Error| error.to_string();
    let names = pods::names::Names::read();
    let (from, to) = (end(&wish.from, &names)?, end(&wish.to, &names)?);
    if [&from, &to].iter().all(|end| end.pod.is_none() && !end.host) {
        return Err(format!(
            "neither {} nor {} is on this host; capture them on the host of one of them",
            from.name, to.name
        ));
    }
    let pairs = pairs(&from, &to)?;
    let ports = way::ports(wish.udp).map_err(ask)?;
    let program = filter::program(&pairs, &ports);
    if program.len() > filter::MOST {
        return Err("the ends have too many addresses; name one address of each".to_owned());
    }
    let (mut there, mut back, mut opaque, mut handed_on) = (Vec::new(), Vec::new(), Vec::new(), None);
    if let Some((a, b)) = pairs.iter().find_map(|pair| Some((first(&from, pair)?, first(&to, pair)?))) {
        // From the end that is here: the other's way comes in as this one goes out.
        let here = from.pod.is_some() || from.host;
        let way = match here {
            true => way::between((&from, way::SOURCE), (&to, way::DESTINATION), b).map_err(ask)?,
            false => way::between((&to, way::DESTINATION), (&from, way::SOURCE), a).map_err(ask)?,
        };
        let reversed: Vec<Hop> = way.hops.iter().rev().cloned().collect();
        (there, back) = if here { (way.hops, reversed) } else { (reversed, way.hops) };
        // What is hidden as it leaves comes out of the tunnel on the same device, and is seen there.
        opaque.extend(way.opaque);
        handed_on = way.handed_on.then_some(here);
    }
    // Packets of the host itself never go fast.
    let fast = if from.host || to.host { None } else { fast_path() };
    let host = Netns::current().map_err(|error| error.to_string())?;
    let mut stations = vec![Station { place: "host".to_owned(), net: &host }];
    let mut places = vec!["host".to_owned(), from.name.clone(), to.name.clone()];
    // Positions of namespaces are fixed; who has no pod here has no station.
    let mut of_station = vec![way::HOST];
    for (end, place) in [(&from, way::SOURCE), (&to, way::DESTINATION)] {
        if let Some(net) = &end.pod {
            stations.push(Station { place: end.name.clone(), net });
            of_station.push(place);
            if end.name.starts_with('/') {
                places[place] = end.addresses.first().map_or(end.name.clone(), ToString::to_string);
            }
        }
    }
    let mut watch = Watch::open(&stations, &program, ROOM)
        .map_err(|error| format!("open packet sockets: {error}; it needs CAP_NET_RAW"))?;
    let mut session = Session {
        from: &from,
        to: &to,
        only: wish.only,
        ports,
        follower: Follower::new(&there, &back, handed_on),
        places,
        of_station,
        waiting: Vec::new(),
        count: wish.count,
        out: Out::open(wish)?,
        summary: Summary { opaque, fast: fast.is_some(), ..Summary::default() },
        fast,
    };
    session.begin()?;
    let deadline = wish.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    loop {
        let mut take = |until| watch.take(until).map_err(|error| format!("receive: {error}"));
        let mut frames = take(Instant::now() + TICK)?;
        let over = deadline.is_some_and(|deadline| Instant::now() >= deadline) || process::end_is_pending();
        if over {
            let mut rest = take(Instant::now())?;
            while !rest.is_empty() {
                frames.append(&mut rest);
                rest = take(Instant::now())?;
            }
        }
        let open = session.take(frames, over)?;
        if over || !open {
            break;
        }
    }
    session.summary.lost = watch.lost();
    session.finish()
}

/// The interface to other hosts, if an agent here says that the fast path is on.
fn fast_path() -> Option<String> {
    let said = std::env::var("LODEN_SOCKET").ok();
    let path = socket::path(said.as_deref(), &args::from_environment().subnet_file);
    let status = socket::ask(path.as_deref()).ok()?;
    status.fast_path.filter(|fast| fast.on)?;
    status.interface?.name
}

/// Every address of one end with every one of the other's, by family.
fn pairs(from: &End, to: &End) -> Result<Vec<Pair>, String> {
    let mut pairs = Vec::new();
    // Any address of the host: which one it sends from is its routes' to say.
    let (named, any) = if to.host && to.addresses.len() > 1 { (from, to) } else { (to, from) };
    for b in &named.addresses {
        if any.host && any.addresses.len() > 1 {
            pairs.push(Pair { from: None, to: *b });
        } else {
            let same = any.addresses.iter().filter(|a| a.is_ipv4() == b.is_ipv4());
            pairs.extend(same.map(|a| Pair { from: Some(*a), to: *b }));
        }
    }
    if from.host && to.host {
        return Err("both ends are this host itself; its own packets pass no device".to_owned());
    }
    match pairs.is_empty() {
        true => Err(format!("{} and {} have no address of the same family", from.name, to.name)),
        false => Ok(pairs),
    }
}

/// The address of an end that a pair is about.
fn first(end: &End, pair: &Pair) -> Option<IpAddr> {
    let named = [pair.from, Some(pair.to)].into_iter().flatten().find(|a| end.addresses.contains(a));
    named.or_else(|| end.addresses.iter().copied().find(|a| a.is_ipv4() == pair.to.is_ipv4()))
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64)
}

/// Where it goes.
struct Out {
    file: Option<BufWriter<Box<dyn Write>>>,
    /// Devices described in the file.
    described: Vec<usize>,
    lines: bool,
    json: bool,
    style: Style,
}

impl Out {
    fn open(wish: &Wish) -> Result<Out, String> {
        let file: Option<Box<dyn Write>> = match wish.file.as_deref() {
            None => None,
            Some("-") => Some(Box::new(io::stdout())),
            Some(path) => {
                Some(Box::new(File::create(path).map_err(|error| format!("write {path}: {error}"))?))
            }
        };
        Ok(Out {
            file: file.map(BufWriter::new),
            described: Vec::new(),
            lines: wish.file.as_deref() != Some("-"),
            json: wish.json,
            style: lab::style(false),
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), String> {
        match &mut self.file {
            Some(file) => file.write_all(bytes).map_err(|error| format!("write the capture: {error}")),
            None => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<(), String> {
        match &mut self.file {
            Some(file) => file.flush().map_err(|error| format!("write the capture: {error}")),
            None => Ok(()),
        }
    }
}

struct Session<'a> {
    from: &'a End,
    to: &'a End,
    only: Option<Only>,
    ports: Ports,
    follower: Follower,
    places: Vec<String>,
    of_station: Vec<usize>,
    /// Frames that are not in order of time yet.
    waiting: Vec<Frame>,
    count: Option<u64>,
    out: Out,
    summary: Summary,
    /// The interface to other hosts, if there is a fast path to it.
    fast: Option<String>,
}

impl Session<'_> {
    fn begin(&mut self) -> Result<(), String> {
        self.out.write(&pcapng::section())?;
        for hop in 0..self.follower.hops().len() {
            self.describe(hop, false)?;
        }
        self.out.flush()?;
        let names = Names {
            places: &self.places,
            hops: self.follower.hops(),
            way: &[],
            skipped: &[],
            fast: self.fast.as_deref(),
        };
        let way: Vec<String> = self.follower.way(true).iter().map(|hop| names.hop(*hop)).collect();
        let arrow = format!(" {} ", self.out.style.arrow());
        complain(&format!("capturing {}; the way is {}\n", self.title(), way.join(&arrow)));
        for sentence in &self.summary.opaque {
            complain(&format!("{sentence}\n"));
        }
        if self.fast.is_some() {
            complain(
                "the fast path is on: packets of established flows skip devices between port and uplink\n",
            );
        }
        Ok(())
    }

    fn title(&self) -> String {
        format!("{} {} {}", self.from.name, self.out.style.arrow(), self.to.name)
    }

    /// The file's number of a device; its block is written before its first record.
    fn describe(&mut self, hop: usize, bare: bool) -> Result<u32, String> {
        if let Some(at) = self.out.described.iter().position(|known| *known == hop) {
            return Ok(at as u32);
        }
        let Hop { place, device } = self.follower.hops()[hop].clone();
        let kind = if place == way::HOST { "" } else { "pod " };
        let link = if bare { ", no link layer: the Ethernet header is made up" } else { "" };
        let block = pcapng::interface(&device, &format!("{kind}{}{link}", self.places[place]));
        self.out.write(&block)?;
        self.out.described.push(hop);
        Ok(self.out.described.len() as u32 - 1)
    }

    /// Takes frames; gives whether it goes on.
    fn take(&mut self, frames: Vec<Frame>, over: bool) -> Result<bool, String> {
        let now = now_ns();
        self.waiting.extend(frames.into_iter().map(|frame| {
            // The kernel's first stamps come some moments after it was asked for them.
            if frame.at_ns == 0 { Frame { at_ns: now, ..frame } } else { frame }
        }));
        self.waiting.sort_by_key(|frame| frame.at_ns);
        let settled = if over { u64::MAX } else { now.saturating_sub(SETTLE_NS) };
        let ready = self.waiting.partition_point(|frame| frame.at_ns <= settled);
        let rest = self.waiting.split_off(ready);
        for frame in std::mem::replace(&mut self.waiting, rest) {
            self.see(frame)?;
        }
        let mut lines = String::new();
        for followed in self.follower.done(if over { u64::MAX } else { settled }) {
            let names = Names {
                places: &self.places,
                hops: self.follower.hops(),
                way: self.follower.way(followed.forward),
                skipped: &self.follower.skipped(&followed),
                fast: self.fast.as_deref(),
            };
            let fate = self.follower.fate(&followed);
            self.summary.count(fate, &names);
            if self.out.json {
                lines.push_str(&show::json(&followed, fate, &names).to_compact());
                lines.push('\n');
            } else {
                lines.push_str(&self.out.style.lines(&[show::line(&followed, fate, &names, self.out.style)]));
            }
        }
        if self.out.lines && !lines.is_empty() {
            print(&lines);
        }
        self.out.flush()?;
        Ok(self.count.is_none_or(|count| self.summary.packets < count))
    }

    fn see(&mut self, frame: Frame) -> Result<(), String> {
        let bare = filter::BARE.contains(&frame.hardware);
        let inner = if bare { Some(&frame.bytes[..]) } else { frame.bytes.get(14..) };
        let (from, to) = (&self.from.addresses, &self.to.addresses);
        let wanted = |a: IpAddr, b: IpAddr| {
            from.contains(&a) && to.contains(&b) || from.contains(&b) && to.contains(&a)
        };
        let Some(packet) = inner.and_then(|bytes| packet::find(bytes, &self.ports, &wanted)) else {
            return Ok(());
        };
        if self.only.is_some_and(|only| !only.takes(&packet)) {
            return Ok(());
        }
        let forward = from.contains(&packet.from);
        let place = self.of_station[frame.station];
        let hop = self.follower.hop(&Hop { place, device: frame.device.clone() });
        let sight = Sight { hop, outgoing: frame.outgoing, at_ns: frame.at_ns, wraps: packet.wraps.clone() };
        let numbers = self.follower.see(sight, packet, forward, self.count);
        if numbers.is_empty() || self.out.file.is_none() {
            return Ok(());
        }
        let interface = self.describe(hop, bare)?;
        let numbers: Vec<String> = numbers.iter().map(ToString::to_string).collect();
        let header = pcapng::header(&frame.bytes);
        let made = if bare { [&header, &frame.bytes[..]].concat() } else { Vec::new() };
        self.out.write(&pcapng::record(&pcapng::Record {
            interface,
            at_ns: frame.at_ns,
            outgoing: frame.outgoing,
            frame: if bare { &made } else { &frame.bytes },
            comment: &format!("packet {}", numbers.join(", ")),
        }))
    }

    fn finish(mut self) -> Result<u8, String> {
        self.out.flush()?;
        if self.out.json && self.out.lines {
            print(&format!("{}\n", Json::object([("summary", self.summary.json())]).to_compact()));
        } else {
            complain(&format!("{}\n", self.summary.text()));
        }
        Ok(u8::from(self.summary.packets == 0 || !self.summary.missing.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_protocols() {
        for (text, want) in [
            ("80/tcp", Some((&[6][..], Some(80)))),
            ("53/udp", Some((&[17], Some(53)))),
            ("53", Some((&[6, 17, 132], Some(53)))),
            ("icmp", Some((&[1, 58], None))),
            ("udp", Some((&[17], None))),
            ("80/icmp", None),
            ("http/tcp", None),
            ("65536", None),
            ("80/gre", None),
        ] {
            let got = Only::of(text).ok().map(|only| (only.protocols, only.port));
            assert_eq!(got, want, "{text}");
        }
    }
}
