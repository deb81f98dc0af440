//! One SYN or one datagram to a port, seen by packet sockets on every device.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use kernel::Netns;
use lab::walk::{self, Listeners, Station};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_ip_ttl, set_ipv6_unicast_hops, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, getsockname, socket_with};

use super::nat::Flow;
use super::{Sight, Walk};
use crate::capture::filter::{BARE, Ports};
use crate::capture::packet::{self, Packet};

/// How long an answer may take: less than until a SYN is sent again.
const PATIENCE: Duration = Duration::from_millis(900);
/// Times it is sent at the most.
const TRIES: usize = 10;
/// Routers that a packet passes on one host, pods included.
const HOPS: u8 = 4;
/// What a datagram carries, before the number that makes it unique.
const MARK: &str = "loden trace: ";

/// A port of a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// 6 or 17.
    pub protocol: u8,
    /// Port.
    pub number: u16,
}

impl Port {
    /// Reads `80/tcp`, `53/udp`; `None` if it is nothing of the kind.
    pub fn of(text: &str) -> Option<Port> {
        let (number, protocol) = text.split_once('/')?;
        let protocol = match protocol {
            "tcp" => 6,
            "udp" => 17,
            _ => return None,
        };
        let number = number.parse().ok().filter(|number| *number > 0)?;
        Some(Port { protocol, number })
    }
}

/// What came of it.
enum Came {
    Answer,
    Refusal(String),
    Nothing,
}

/// Sends it from the first station.
///
/// # Errors
/// The kernel's.
pub fn attempt(stations: &[Station<'_>], to: IpAddr, port: Port, ports: &Ports) -> io::Result<Walk> {
    let from = stations.first().ok_or_else(|| io::Error::other("a way needs a first station"))?;
    let target = SocketAddr::new(to, port.number);
    // Neighbours are resolved by the first; what comes of it does not matter.
    send(from.net, target, port, "first", 64)?;
    let listeners = Listeners::open(stations)?;
    let mut tries = 0;
    // The kernel begins to stamp frames some moments after it was asked to.
    let (probe, came, seen) = loop {
        let probe =
            Probe { port, tag: format!("{MARK}{}-{:x}", std::process::id(), now()), ttl: unusual_ttl() };
        let (own, came) = send(from.net, target, port, &probe.tag, probe.ttl)?;
        let seen = probe.sights(&listeners, ports)?;
        tries += 1;
        if tries == TRIES || seen.iter().all(|(sight, ..)| sight.at_ns != 0) {
            break ((probe, own), came, seen);
        }
    };
    Ok(probe.0.walk(probe.1, came, seen, stations))
}

/// What tells ours from others.
struct Probe {
    port: Port,
    tag: String,
    ttl: u8,
}

type Seen = (walk::Sight, Packet, bool);

impl Probe {
    fn opens(&self, packet: &Packet) -> bool {
        let ttl = (self.ttl.saturating_sub(HOPS)..=self.ttl).contains(&packet.ttl);
        ttl && packet.what.ends_with(" [S]")
    }

    /// Frames of the conversation: what was sent, and what comes to a port it was sent from. Others do not keep us looking.
    fn sights(&self, listeners: &Listeners<'_>, ports: &Ports) -> io::Result<Vec<Seen>> {
        let known = RefCell::new(BTreeSet::new());
        let look = |bytes: &[u8], header: usize| {
            let packet = packet::innermost(bytes.get(header..)?, ports)?;
            let (own, to) = packet.ports.filter(|_| packet.protocol == self.port.protocol)?;
            let tagged = bytes.windows(self.tag.len()).any(|part| part == self.tag.as_bytes());
            if tagged || self.opens(&packet) {
                known.borrow_mut().insert(own);
            } else if !known.borrow().contains(&to) {
                return None;
            }
            Some((packet, tagged))
        };
        let header = |bytes: &[u8]| match bytes.get(12..14) {
            Some([0x08, 0x00] | [0x86, 0xdd]) => 14,
            _ => 0,
        };
        let sights = listeners.take(|bytes| look(bytes, header(bytes)).is_some())?;
        let all = sights.into_iter().filter_map(|sight| {
            let header = if BARE.contains(&sight.hardware) { 0 } else { 14 };
            let (packet, tagged) = look(&sight.bytes, header)?;
            Some((sight, packet, tagged))
        });
        Ok(all.collect())
    }

    /// In order, there and back.
    fn walk(&self, own: u16, came: Came, mut seen: Vec<Seen>, stations: &[Station<'_>]) -> Walk {
        let mut walk = Walk { answered: matches!(came, Came::Answer), ..Walk::default() };
        if let Came::Refusal(why) = came {
            walk.refused = Some(why);
        }
        // Of this host's own SYN even the port may be another one on the first device: then its TTL alone tells.
        let number = |own: Option<u16>| {
            let ours =
                |packet: &Packet| own.is_none_or(|own| packet.ports.is_some_and(|(from, _)| from == own));
            let found = seen.iter().find(|(_, packet, _)| self.opens(packet) && ours(packet));
            found.map(|(_, packet, _)| packet.range.0)
        };
        let number = number(Some(own)).or_else(|| number(None));
        let there = |packet: &Packet, tagged: bool| match self.port.protocol {
            6 => self.opens(packet) && Some(packet.range.0) == number,
            _ => tagged,
        };
        let sent = seen.iter().filter(|(_, packet, tagged)| there(packet, *tagged));
        let start = sent.clone().map(|(sight, ..)| sight.at_ns).min().unwrap_or(0);
        let flows: Vec<Flow> = sent.map(|(_, packet, _)| flow(packet)).collect();
        let answers = |packet: &Packet| {
            let back = flow(packet);
            flows.iter().any(|flow| flow.destination() == back.source())
                && flows.iter().any(|flow| flow.source() == back.destination())
        };
        // The kernel stamps a frame once for a device and what lies on top of it: the station decides, then the arrival.
        seen.sort_by_key(|(sight, packet, tagged)| {
            let is_there = there(packet, *tagged);
            (sight.at_ns, if is_there { sight.station } else { stations.len() - sight.station })
        });
        for (sight, packet, tagged) in seen {
            let place = &stations[sight.station].place;
            let known = |all: &[Sight]| all.iter().any(|s| s.device == sight.device && s.place == *place);
            let side = if there(&packet, tagged) {
                &mut walk.there
            } else if answers(&packet) && !known(&walk.back) {
                // Of the conversation the first answer.
                &mut walk.back
            } else {
                continue;
            };
            side.push(Sight {
                place: place.clone(),
                device: sight.device.clone(),
                at_us: sight.at_ns.saturating_sub(start) as f64 / 1000.0,
                flow: Some(flow(&packet)),
            });
        }
        walk
    }
}

fn flow(packet: &Packet) -> Flow {
    Flow { from: packet.from, to: packet.to, ports: packet.ports }
}

/// Sends, and waits for what comes; gives the own port.
fn send(from: &Netns, target: SocketAddr, port: Port, tag: &str, ttl: u8) -> io::Result<(u16, Came)> {
    let work = || match port.protocol {
        6 => open(target, ttl),
        _ => datagram(target, tag),
    };
    from.run(work).map_err(|error| io::Error::other(error.to_string()))?
}

fn open(target: SocketAddr, ttl: u8) -> io::Result<(u16, Came)> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    match target {
        SocketAddr::V4(_) => set_ip_ttl(&socket, u32::from(ttl))?,
        SocketAddr::V6(_) => set_ipv6_unicast_hops(&socket, Some(ttl))?,
    }
    // Connecting waits as well (socket(7)).
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    let came = match connect(&socket, &target) {
        Ok(()) => Came::Answer,
        Err(Errno::INPROGRESS | Errno::AGAIN) => Came::Nothing,
        Err(error) => refusal(&error.into()),
    };
    let own = SocketAddr::try_from(getsockname(&socket)?)
        .map_err(|_| io::Error::other("a socket without an address"))?;
    Ok((own.port(), came))
}

fn datagram(target: SocketAddr, tag: &str) -> io::Result<(u16, Came)> {
    let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let own = socket.local_addr()?.port();
    let sent = socket
        .connect(target)
        .and_then(|()| socket.send(tag.as_bytes()))
        .and_then(|_| socket.recv(&mut [0; 64]));
    let came = match sent {
        Ok(_) => Came::Answer,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Came::Nothing,
        Err(error) => refusal(&error),
    };
    Ok((own, came))
}

fn refusal(error: &io::Error) -> Came {
    let words = match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            "the port is closed: nothing listens there, or a rule rejects it".to_owned()
        }
        _ => error.to_string(),
    };
    Came::Refusal(words)
}

/// Nobody else's: systems begin at 64, 128 and 255.
fn unusual_ttl() -> u8 {
    140 + (now() / 1000 % 100) as u8
}

/// Makes a datagram unlike those before.
fn now() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}
