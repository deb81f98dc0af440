//! The command line as a value. Pure.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use model::Family;

use crate::ways::Way;

/// Where `serve` listens and `host` connects unless said otherwise.
pub const PORT: u16 = 8477;

/// Help.
pub const USAGE: &str = "\
usage: loden bench [lab] [OPTION]...                       in a lab of two hosts on this machine
       loden bench serve [--listen ADDRESS[:PORT]] ...     on one of two real hosts
       loden bench host ADDRESS[:PORT] --token T ...       on the other one

Measures the ways packets take between pods, side by side with the bare wire, in turns, and prints medians, their spread
and how they stand to the wire. Needs root. A lab is made and ended by it; it leaves nothing behind. All of it takes ten
minutes.

  --what WAYS           some of, joined by commas (default: all but the wire, which always stands beside)
                          host-gw vxlan udp wireguard       between pods of two hosts
                          routed-vxlan                      the same behind routes (plugin ptp) in place of a bridge
                          fast-host-gw fast fast-udp        with the fast path; fast is vxlan
                          bridge fast-bridge routed         between two pods of one host, by the plugin bridge or ptp
                          cni peers                         pods attached and detached, peers programmed, per second
  --beside WAY          lab: what all others are compared with (default wire)
  --rounds N            turns of each (1 to 100; default 5)
  --seconds S           of each measurement (0.1 to 60; default 1)
  --family 4|6          lab: everything in IPv4 (default), or in IPv6; host: the family of ADDRESS, and no other
  --wire WIRE           lab: frames (default): frames alone, as through a plain network card; summed: the same with the
                        checksums of all ways computed by the processor, as fast-udp always has them; or trains: trains
                        of segments whole
  -o table|json|html    for people, for programs, or a page with pictures (default table)
  -w FILE               write there instead of to standard output

Between real hosts the wire and the pods' way the hosts are set up for are measured.

  --token T             who may use `serve`: it makes one and prints it; 8 to 64 letters, digits and dashes. Also read
                        from LODEN_BENCH_TOKEN, which other users of the host cannot see
  --listen ADDRESS      serve: address and port (default: all addresses, port 8477)
  --network NET         CNI network pods are attached to (default cbr0), or none
  --idle SECONDS        serve: ends after so long without a client (default 600)

Exit status: 0 measured, 1 a way asked for by name could not be, 2 nothing could be.
";

/// What is to be done.
#[derive(Debug, PartialEq)]
pub enum Command {
    /// Print help.
    Help,
    /// In a lab.
    Lab(Plan),
    /// From this host to another.
    Host(Link, Plan),
    /// Be the other host.
    Serve(Serve),
}

/// Form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// A page.
    Html,
}

/// What the wire of a lab takes, and who computes checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// Frames alone; checksums as with a card that computes them.
    Frames,
    /// Frames alone, with checksums that the processor computed.
    Summed,
    /// Trains of segments whole.
    Trains,
}

impl Wire {
    const ALL: [(&str, Wire); 3] =
        [("frames", Wire::Frames), ("summed", Wire::Summed), ("trains", Wire::Trains)];

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        Wire::ALL.iter().find(|(_, wire)| *wire == self).map_or("", |(name, _)| name)
    }
}

/// What is measured, how often, how long.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The ways, in order.
    pub ways: Vec<Way>,
    /// They were asked for by name.
    pub named: bool,
    /// What all else stands beside, if not the wire.
    pub beside: Option<Way>,
    /// Turns of each.
    pub rounds: usize,
    /// Time of each measurement.
    pub span: Duration,
    /// In which wire and pods are reached.
    pub family: Family,
    /// What the wire of a lab takes.
    pub wire: Wire,
    /// Form of the output.
    pub format: Format,
    /// Where it goes, if not to standard output.
    pub file: Option<PathBuf>,
}

/// The other host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Where its `serve` listens.
    pub to: SocketAddr,
    /// The word it wants to hear.
    pub token: String,
    /// CNI network of our pod.
    pub network: Option<String>,
}

/// Being the other host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serve {
    /// Where to listen.
    pub at: SocketAddr,
    /// The word clients must say; made if absent.
    pub token: Option<String>,
    /// CNI network of our pod.
    pub network: Option<String>,
    /// How long without a client.
    pub idle: Duration,
}

/// Everything that was found on the command line.
#[derive(Default)]
struct Found {
    what: Option<Vec<Way>>,
    beside: Option<Way>,
    rounds: Option<usize>,
    seconds: Option<f64>,
    family: Option<Family>,
    wire: Option<Wire>,
    format: Option<Format>,
    file: Option<PathBuf>,
    token: Option<String>,
    listen: Option<SocketAddr>,
    network: Option<String>,
    idle: Option<f64>,
    words: Vec<String>,
}

/// Reads the words after `bench`.
///
/// # Errors
/// A sentence that names the word.
pub fn parse(words: &[String]) -> Result<Command, String> {
    if words.iter().any(|word| matches!(word.as_str(), "-h" | "-help" | "--help" | "help")) {
        return Ok(Command::Help);
    }
    let found = scan(words)?;
    let plain: Vec<&str> = found.words.iter().map(String::as_str).collect();
    match plain.as_slice() {
        [] | ["lab"] => {
            refuse(&found, "lab", &["--token", "--listen", "--network", "--idle"])?;
            let plan = found.plan(Family::V4);
            match plan.beside {
                Some(way) if !plan.ways.contains(&way) => {
                    Err(format!("--beside {0}: {0} is not among --what", way.name()))
                }
                _ => Ok(Command::Lab(plan)),
            }
        }
        ["host", to] => {
            refuse(&found, "host", &["--listen", "--idle", "--what", "--beside", "--wire"])?;
            let to = address(to, "host")?;
            let token = found.token.clone();
            let token =
                token.ok_or("host needs --token, which `loden bench serve` on the other host prints")?;
            let link = Link { to, token, network: found.network() };
            // The wire is measured in the family of its address, and the pods beside it.
            let family = Family::of(to.ip().to_canonical());
            let plan = found.plan(family);
            if plan.family != family {
                return Err(format!("{} is {family}, and --family asks for {}", to.ip(), plan.family));
            }
            Ok(Command::Host(link, plan))
        }
        ["host"] => Err("host needs the address of a host on which `loden bench serve` runs".to_owned()),
        ["serve"] => {
            let others = ["--what", "--beside", "--rounds", "--seconds", "--family", "--wire", "-o", "-w"];
            refuse(&found, "serve", &others)?;
            Ok(Command::Serve(Serve {
                at: found.listen.unwrap_or_else(|| SocketAddr::from(([0; 8], PORT))),
                network: found.network(),
                idle: Duration::from_secs_f64(found.idle.unwrap_or(600.0)),
                token: found.token,
            }))
        }
        [word, ..] if !matches!(*word, "lab" | "host" | "serve") => {
            Err(format!("{word:?} is not one of lab, serve and host"))
        }
        [.., word] => Err(format!("{word:?} is one word too many")),
    }
}

impl Found {
    fn plan(&self, family: Family) -> Plan {
        Plan {
            ways: self.what.clone().unwrap_or_else(|| Way::ALL.to_vec()),
            named: self.what.is_some(),
            beside: self.beside,
            rounds: self.rounds.unwrap_or(5),
            span: Duration::from_secs_f64(self.seconds.unwrap_or(1.0)),
            family: self.family.unwrap_or(family),
            wire: self.wire.unwrap_or(Wire::Frames),
            format: self.format.unwrap_or(Format::Table),
            file: self.file.clone(),
        }
    }

    fn network(&self) -> Option<String> {
        match self.network.as_deref() {
            None => Some("cbr0".to_owned()),
            Some("none") => None,
            Some(name) => Some(name.to_owned()),
        }
    }
}

/// Options that mean nothing to a command are mistakes.
fn refuse(found: &Found, command: &str, options: &[&str]) -> Result<(), String> {
    let given = |option: &str| match option {
        "--what" => found.what.is_some(),
        "--beside" => found.beside.is_some(),
        "--rounds" => found.rounds.is_some(),
        "--seconds" => found.seconds.is_some(),
        "--family" => found.family.is_some(),
        "--wire" => found.wire.is_some(),
        "-o" => found.format.is_some(),
        "-w" => found.file.is_some(),
        // The variable may be there for another command.
        "--token" => found.token.is_some() && std::env::var_os(TOKEN).is_none(),
        "--listen" => found.listen.is_some(),
        "--network" => found.network.is_some(),
        _ => found.idle.is_some(),
    };
    match options.iter().find(|option| given(option)) {
        Some(option) => Err(format!("{option} means nothing to `{command}`")),
        None => Ok(()),
    }
}

/// Where a token may come from.
const TOKEN: &str = "LODEN_BENCH_TOKEN";

fn scan(words: &[String]) -> Result<Found, String> {
    let variable = std::env::var(TOKEN).ok().filter(|token| !token.is_empty());
    let mut found = Found { token: variable.map(|text| token(&text)).transpose()?, ..Found::default() };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let (name, given) = match word.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value)),
            _ => (word.as_str(), None),
        };
        if !name.starts_with('-') {
            found.words.push(word.clone());
            continue;
        }
        let value = given.or_else(|| words.next().map(String::as_str));
        let value = value.ok_or_else(|| format!("{name} needs a value"));
        match name {
            "--what" => found.what = Some(ways(value?)?),
            "--beside" => found.beside = yardstick(value?)?,
            "--rounds" => found.rounds = Some(number(name, value?, 1.0, 100.0)?.trunc() as usize),
            "--seconds" => found.seconds = Some(number(name, value?, 0.1, 60.0)?),
            "--family" => found.family = Some(choose(name, value?, &[("4", Family::V4), ("6", Family::V6)])?),
            "--wire" => found.wire = Some(choose(name, value?, &Wire::ALL)?),
            "-o" | "--output" => {
                let all = [("table", Format::Table), ("json", Format::Json), ("html", Format::Html)];
                found.format = Some(choose(name, value?, &all)?);
            }
            "-w" | "--write" => found.file = Some(PathBuf::from(value?)),
            "--token" => found.token = Some(token(value?)?),
            "--listen" => found.listen = Some(address(value?, name)?),
            "--network" => found.network = Some(value?.to_owned()),
            "--idle" => found.idle = Some(number(name, value?, 1.0, 86_400.0)?),
            _ => return Err(format!("there is no option {name}")),
        }
    }
    Ok(found)
}

fn number(name: &str, text: &str, least: f64, most: f64) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value| (least..=most).contains(value));
    value.ok_or_else(|| format!("{name} is a number from {least} to {most}, not {text:?}"))
}

fn choose<T: Copy>(name: &str, text: &str, all: &[(&str, T)]) -> Result<T, String> {
    all.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<&str> = all.iter().map(|(word, _)| *word).collect();
        format!("{name} is one of {}, not {text:?}", words.join(", "))
    })
}

/// Each once, in the order of the report.
fn ways(text: &str) -> Result<Vec<Way>, String> {
    let mut chosen = Vec::new();
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        match Way::ALL.into_iter().find(|way| way.name() == word) {
            Some(way) => chosen.push(way),
            // It always stands beside.
            None if word == "wire" => {}
            None if word == "all" => chosen.extend(Way::ALL),
            None => {
                let names: Vec<&str> = Way::ALL.iter().map(|way| way.name()).collect();
                return Err(format!("{word:?} is no way; there are wire, {}", names.join(", ")));
            }
        }
    }
    chosen.sort_unstable();
    chosen.dedup();
    Ok(chosen)
}

/// `None` is the wire.
fn yardstick(text: &str) -> Result<Option<Way>, String> {
    let named = |way: &Way| way.name() == text;
    match Way::ALL.into_iter().filter(|way| way.carries()).find(named) {
        None if text != "wire" => {
            Err(format!("--beside is a way that carries traffic, or wire, not {text:?}"))
        }
        way => Ok(way),
    }
}

fn token(text: &str) -> Result<String, String> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    if (8..=64).contains(&text.len()) && text.bytes().all(fits) {
        return Ok(text.to_owned());
    }
    Err("a token is 8 to 64 letters, digits and dashes".to_owned())
}

fn address(text: &str, what: &str) -> Result<SocketAddr, String> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let with_port = || text.parse::<SocketAddr>().ok().filter(|at| at.port() != 0);
    let without = || bare.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, PORT));
    with_port().or_else(without).ok_or_else(|| format!("{what}: {text:?} is no address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn commands_are_read() {
        let base = Plan {
            ways: Way::ALL.to_vec(),
            named: false,
            beside: None,
            rounds: 5,
            span: Duration::from_secs(1),
            family: Family::V4,
            wire: Wire::Frames,
            format: Format::Table,
            file: None,
        };
        let link = Link {
            to: "192.0.2.12:8477".parse().unwrap(),
            token: "abcdefgh".to_owned(),
            network: Some("cbr0".to_owned()),
        };
        let serve = Serve {
            at: "[::]:8477".parse().unwrap(),
            token: None,
            network: Some("cbr0".to_owned()),
            idle: Duration::from_secs(600),
        };
        for (line, want) in [
            ("", Command::Lab(base.clone())),
            ("lab", Command::Lab(base.clone())),
            ("lab --help", Command::Help),
            (
                "lab --what vxlan,wire,host-gw,vxlan --rounds 3 --seconds=0.5 --family 6 --wire trains -o html -w x.html",
                Command::Lab(Plan {
                    ways: vec![Way::HostGw, Way::Vxlan],
                    named: true,
                    beside: None,
                    rounds: 3,
                    span: Duration::from_millis(500),
                    family: Family::V6,
                    wire: Wire::Trains,
                    format: Format::Html,
                    file: Some("x.html".into()),
                }),
            ),
            (
                "--what vxlan,fast --beside vxlan",
                Command::Lab(Plan {
                    ways: vec![Way::Vxlan, Way::Fast],
                    named: true,
                    beside: Some(Way::Vxlan),
                    ..base.clone()
                }),
            ),
            ("--beside wire", Command::Lab(base.clone())),
            ("--wire summed", Command::Lab(Plan { wire: Wire::Summed, ..base.clone() })),
            ("--what wire", Command::Lab(Plan { ways: vec![], named: true, ..base.clone() })),
            ("host 192.0.2.12 --token abcdefgh", Command::Host(link.clone(), base.clone())),
            ("host 192.0.2.12 --token abcdefgh --family 4", Command::Host(link.clone(), base.clone())),
            (
                "host [2001:db8::1]:99 --token abcdefgh --network none",
                Command::Host(
                    Link { to: "[2001:db8::1]:99".parse().unwrap(), network: None, ..link.clone() },
                    Plan { family: Family::V6, ..base.clone() },
                ),
            ),
            ("serve", Command::Serve(serve.clone())),
            (
                "serve --listen 127.0.0.1 --token abcd-efgh --idle 5",
                Command::Serve(Serve {
                    at: "127.0.0.1:8477".parse().unwrap(),
                    token: Some("abcd-efgh".to_owned()),
                    idle: Duration::from_secs(5),
                    ..serve.clone()
                }),
            ),
        ] {
            assert_eq!(parse(&words(line)), Ok(want), "{line}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (line, want) in [
            ("moon", "\"moon\" is not one of lab, serve and host"),
            ("lab moon", "\"moon\" is one word too many"),
            (
                "--what vxlan,geneve",
                "\"geneve\" is no way; there are wire, host-gw, vxlan, routed-vxlan, fast, fast-host-gw, udp, fast-udp, \
                 wireguard, bridge, fast-bridge, routed, cni, peers",
            ),
            ("--beside peers", "--beside is a way that carries traffic, or wire, not \"peers\""),
            ("--what fast --beside vxlan", "--beside vxlan: vxlan is not among --what"),
            ("serve --beside vxlan", "--beside means nothing to `serve`"),
            ("--rounds 0", "--rounds is a number from 1 to 100, not \"0\""),
            ("--seconds 61", "--seconds is a number from 0.1 to 60, not \"61\""),
            ("--seconds", "--seconds needs a value"),
            ("--family both", "--family is one of 4, 6, not \"both\""),
            ("host 192.0.2.1 --token abcdefgh --family 6", "192.0.2.1 is IPv4, and --family asks for IPv6"),
            ("serve --family 6", "--family means nothing to `serve`"),
            ("--wire fibre", "--wire is one of frames, summed, trains, not \"fibre\""),
            ("-o yaml", "-o is one of table, json, html, not \"yaml\""),
            ("--frobnicate 1", "there is no option --frobnicate"),
            ("host", "host needs the address of a host on which `loden bench serve` runs"),
            ("host there --token abcdefgh", "host: \"there\" is no address"),
            ("host 192.0.2.1", "host needs --token, which `loden bench serve` on the other host prints"),
            ("host 192.0.2.1 --token short", "a token is 8 to 64 letters, digits and dashes"),
            ("host 192.0.2.1 --token abcdefgh --what udp", "--what means nothing to `host`"),
            ("serve --rounds 3", "--rounds means nothing to `serve`"),
            ("lab --listen 127.0.0.1", "--listen means nothing to `lab`"),
        ] {
            assert_eq!(parse(&words(line)), Err(want.to_owned()), "{line}");
        }
    }
}
