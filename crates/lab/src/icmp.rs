//! ICMP and ICMPv6 echo, spoken by ourselves in the network namespace of the sender.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::sys;

/// Bytes of an echo header.
pub const HEADER: usize = 8;
/// Smallest payload: our mark and the number that makes it unique.
pub const MIN_PAYLOAD: usize = 24;
/// So much of what comes is read: an error quotes the tag behind two IP headers, each of 60 bytes at most (RFC 791,
/// 3.1), or behind those of IPv6. The rest of a large echo says nothing.
const HEARD: usize = 512;
/// Packets read in one go, at most: more than the queue of a socket holds.
const WAITING: usize = 1_000;
/// What every payload begins with, readable in any capture.
const MARK: &[u8; 16] = b"loden-lab echo: ";

/// What came of one echo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It came back.
    Echo(Duration),
    /// Somebody on the way, or our own kernel, says why not.
    Refused(String),
    /// Nothing came.
    Silence,
}

/// A socket that sends echoes to one address and knows its own answers.
pub struct Pinger {
    socket: OwnedFd,
    to: IpAddr,
    id: u16,
    sequence: u16,
}

/// An echo on its way.
struct Asked {
    tag: Tag,
    at: Instant,
    bytes: usize,
    /// Our own kernel did not let it go.
    refused: Option<Answer>,
}

/// The 24 bytes that tell one echo from all others, in any capture.
pub type Tag = [u8; MIN_PAYLOAD];

impl Pinger {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel's: raw sockets need `CAP_NET_RAW`.
    pub fn open(to: IpAddr) -> io::Result<Pinger> {
        let id = next_number() as u16;
        Ok(Pinger { socket: sys::icmp_socket(to.is_ipv6())?, to, id, sequence: 0 })
    }

    /// Sends one echo of `payload` bytes (at least [`MIN_PAYLOAD`]) and waits for its answer.
    ///
    /// # Errors
    /// Only those of the socket itself; a network that says no is an [`Answer::Refused`].
    pub fn echo(&mut self, payload: usize, patience: Duration) -> io::Result<(Answer, Tag)> {
        let asked = self.ask(payload);
        let tag = asked.tag;
        let deadline = asked.at + patience;
        loop {
            if let Some(answer) = self.hear(&asked) {
                return Ok((answer, tag));
            }
            // Asked here, too: where packets of others come faster than they are read, something is always there.
            if Instant::now() >= deadline || sys::wait_readable(&[self.socket.as_fd()], deadline)?.is_empty()
            {
                return Ok((Answer::Silence, tag));
            }
        }
    }

    fn ask(&mut self, payload: usize) -> Asked {
        self.sequence = self.sequence.wrapping_add(1);
        let tag = tag(next_number());
        let request = request(self.to.is_ipv6(), self.id, self.sequence, &tag, payload);
        let (bytes, at) = (payload + HEADER, Instant::now());
        let refused = sys::send_to(&self.socket, &request, self.to).err();
        Asked { tag, at, bytes, refused: refused.map(|error| Answer::Refused(refusal(&error, bytes))) }
    }

    /// What has come so far; `None` if nothing about this echo.
    fn hear(&self, asked: &Asked) -> Option<Answer> {
        if asked.refused.is_some() {
            return asked.refused.clone();
        }
        let mut buf = [0; HEARD];
        for _ in 0..WAITING {
            let len = match sys::receive(&self.socket, &mut buf) {
                Ok(len) => len,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return None,
                Err(e) => return Some(Answer::Refused(refusal(&e, asked.bytes))),
            };
            match reading(self.to.is_ipv6(), &buf[..len], &asked.tag) {
                Some(Reading::Echo) => return Some(Answer::Echo(asked.at.elapsed())),
                Some(Reading::Error(why)) => return Some(Answer::Refused(why)),
                None => {}
            }
        }
        None
    }

    /// Repeats small echoes until one comes back or the patience ends. Without an echo, the last refusal
    /// is the answer: refusals are rate limited, and silence says less.
    ///
    /// # Errors
    /// Those of [`Pinger::echo`].
    pub fn until_answered(&mut self, patience: Duration) -> io::Result<Answer> {
        let deadline = Instant::now() + patience;
        let mut refused = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let (answer, _) = self.echo(MIN_PAYLOAD, left.min(Duration::from_millis(250)))?;
            match answer {
                Answer::Echo(_) => return Ok(answer),
                Answer::Refused(_) => {
                    // A refusal comes at once; what it complains of may still change.
                    std::thread::sleep(left.min(Duration::from_millis(20)));
                    refused = Some(answer);
                }
                Answer::Silence => {}
            }
            if Instant::now() >= deadline {
                return Ok(refused.unwrap_or(Answer::Silence));
            }
        }
    }
}

/// Sends a small echo to each at once, and waits until the first is answered or `limit` has passed: where neither is, one
/// timer in place of two. What comes after `patience` is no answer.
///
/// # Errors
/// Those of [`Pinger::open`] and of waiting.
pub fn both(to: [IpAddr; 2], patience: Duration, limit: Duration) -> io::Result<[Answer; 2]> {
    let mut pingers = [Pinger::open(to[0])?, Pinger::open(to[1])?];
    let asked = pingers.each_mut().map(|pinger| pinger.ask(MIN_PAYLOAD));
    let start = Instant::now();
    let mut answers = [None, None];
    loop {
        let late = start.elapsed() > patience;
        for ((pinger, asked), answer) in pingers.iter().zip(&asked).zip(&mut answers) {
            if answer.is_none() && !late {
                *answer = pinger.hear(asked);
            }
        }
        let missing = pingers.iter().zip(&answers).filter(|(_, answer)| answer.is_none());
        let missing: Vec<_> = missing.map(|(pinger, _)| pinger.socket.as_fd()).collect();
        let echo = matches!(answers[0], Some(Answer::Echo(_)));
        if late && !echo {
            // Nothing that comes now counts, and must not wake us.
            std::thread::sleep(limit.saturating_sub(start.elapsed()));
        }
        let over = echo || late || missing.is_empty();
        if over || sys::wait_readable(&missing, start + limit)?.is_empty() {
            return Ok(answers.map(|answer| answer.unwrap_or(Answer::Silence)));
        }
    }
}

/// Hears echo requests that others of our kind send to this host (IPv4).
pub struct Listener {
    socket: OwnedFd,
}

impl Listener {
    /// Opens a socket in the network namespace of the calling thread that nothing but echo requests wakes.
    ///
    /// # Errors
    /// The kernel's: raw sockets need `CAP_NET_RAW`.
    pub fn open() -> io::Result<Listener> {
        let socket = sys::icmp_socket(false)?;
        sys::hear_requests_only(&socket)?;
        Ok(Listener { socket })
    }

    /// Waits for the next request and gives who sent it.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn wait(&mut self) -> io::Result<IpAddr> {
        let mut buf = [0; 128];
        loop {
            sys::wait_readable(&[self.socket.as_fd()], Instant::now() + Duration::from_secs(3600))?;
            match sys::receive(&self.socket, &mut buf) {
                Ok(len) => {
                    if let Some(from) = sender(&buf[..len]) {
                        return Ok(from);
                    }
                }
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// The source of a request of our kind.
fn sender(packet: &[u8]) -> Option<IpAddr> {
    let header = usize::from(packet.first()? & 15) * 4;
    let marked = packet.get(header + HEADER..)?.starts_with(MARK);
    let from: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
    (marked && packet[header] == 8).then(|| from.into())
}

/// Sends a datagram to a port where nobody should listen, and waits for the kernel there to say so, which is an
/// [`Answer::Refused`]. Without `checksum` the datagram has none (RFC 768; IPv4 alone).
///
/// # Errors
/// Only those of the socket itself.
pub fn knock(to: IpAddr, port: u16, checksum: bool, patience: Duration) -> io::Result<Answer> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let mut socket = UdpSocket::bind((any, 0))?;
    if !checksum {
        socket = sys::without_checksum(socket)?;
    }
    socket.set_read_timeout(Some(patience))?;
    let start = Instant::now();
    let exchange = || {
        socket.connect((to, port))?;
        socket.send(MARK)?;
        socket.recv(&mut [0; 64])
    };
    Ok(match exchange() {
        Ok(_) => Answer::Echo(start.elapsed()),
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Answer::Silence,
        Err(e) => Answer::Refused(refusal(&e, MARK.len() + HEADER)),
    })
}

/// Largest payload that fits an IP packet of `mtu` bytes.
pub fn full_payload(to: IpAddr, mtu: u32) -> usize {
    (mtu as usize).saturating_sub(if to.is_ipv4() { 20 } else { 40 } + HEADER).max(MIN_PAYLOAD)
}

fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed) | (u64::from(std::process::id()) << 40)
}

fn tag(number: u64) -> Tag {
    let mut tag = [0; MIN_PAYLOAD];
    tag[..16].copy_from_slice(MARK);
    tag[16..].copy_from_slice(&number.to_be_bytes());
    tag
}

fn request(v6: bool, id: u16, sequence: u16, tag: &Tag, payload: usize) -> Vec<u8> {
    let mut bytes = vec![if v6 { 128 } else { 8 }, 0, 0, 0];
    bytes.extend(id.to_be_bytes());
    bytes.extend(sequence.to_be_bytes());
    bytes.extend(tag);
    bytes.resize(HEADER + payload.max(MIN_PAYLOAD), b'.');
    if !v6 {
        // The kernel fills in the checksum of ICMPv6, which covers addresses only it knows.
        let sum = checksum(&bytes);
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | w.get(1).map_or(0, |b| u32::from(*b)));
    let mut sum: u32 = words.sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[derive(Debug, PartialEq, Eq)]
enum Reading {
    Echo,
    Error(String),
}

/// What a received message says about the echo with this tag; `None` if it is about something else.
fn reading(v6: bool, bytes: &[u8], tag: &Tag) -> Option<Reading> {
    // IPv4 raw sockets deliver the IP header, IPv6 ones do not.
    let (from, bytes) = if v6 {
        (None, bytes)
    } else {
        let header = bytes.get(..20)?;
        let from: [u8; 4] = header[12..16].try_into().ok()?;
        (Some(IpAddr::from(from)), bytes.get(usize::from(header[0] & 15) * 4..)?)
    };
    let (kind, code) = (*bytes.first()?, *bytes.get(1)?);
    if !bytes.windows(tag.len()).any(|w| w == tag) {
        return None;
    }
    let meaning = match (v6, kind, code) {
        (false, 0, _) | (true, 129, _) => return Some(Reading::Echo),
        (false, 8, _) | (true, 128, _) => return None,
        (false, 3, 0) | (true, 1, 0) => "no route to the destination".to_owned(),
        (false, 3, 1) | (true, 1, 3) => "the host does not answer".to_owned(),
        (false, 3, 3) | (true, 1, 4) => "nothing listens there".to_owned(),
        (false, 3, 4) | (true, 2, _) => "the packet is too big for the way".to_owned(),
        (false, 3, 9 | 10 | 13) | (true, 1, 1) => "forbidden by a firewall (admin prohibited)".to_owned(),
        (false, 11, _) | (true, 3, _) => "the packet goes in a circle (time exceeded)".to_owned(),
        _ => format!("ICMP type {kind} code {code}"),
    };
    let from = from.map_or(String::new(), |ip| format!(", says {ip}"));
    Some(Reading::Error(format!("{meaning}{from}")))
}

fn refusal(error: &io::Error, bytes: usize) -> String {
    match error.raw_os_error() {
        Some(libc::ENETUNREACH) => "no route to the destination".to_owned(),
        Some(libc::EHOSTUNREACH) => "the host does not answer".to_owned(),
        Some(libc::EMSGSIZE) => format!("{bytes} bytes of ICMP are too big for the way"),
        Some(libc::EPERM) => "forbidden by a local firewall rule".to_owned(),
        _ => error.to_string(),
    }
}

/// The middle of several measurements in µs.
pub fn median_us(mut times: Vec<Duration>) -> Option<f64> {
    times.sort_unstable();
    let middle = times.get(times.len() / 2)?;
    Some(middle.as_nanos() as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_a_right_checksum() {
        // RFC 1071, section 3.
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        for payload in [0, 24, 25, 1422] {
            let bytes = request(false, 7, 3, &tag(1), payload);
            assert_eq!(bytes.len(), HEADER + payload.max(MIN_PAYLOAD));
            assert_eq!(checksum(&bytes), 0, "{payload}");
        }
        assert_eq!(request(true, 7, 3, &tag(1), 24)[..8], [128, 0, 0, 0, 0, 7, 0, 3]);
    }

    #[test]
    fn answers_are_told_from_noise() {
        let ours = tag(1);
        let v4 = |kind: u8, code: u8, tag: &Tag| {
            let mut bytes = vec![0x45; 20];
            bytes[12..16].copy_from_slice(&[192, 0, 2, 12]);
            bytes.extend([kind, code, 0, 0, 0, 0, 0, 0]);
            bytes.extend(tag);
            bytes
        };
        let v6 = |kind: u8, code: u8| v4(kind, code, &ours)[20..].to_vec();
        let error = |text: &str| Some(Reading::Error(text.to_owned()));
        for (is_v6, bytes, want) in [
            (false, v4(0, 0, &ours), Some(Reading::Echo)),
            (false, v4(0, 0, &tag(2)), None),
            (false, v4(8, 0, &ours), None),
            (false, v4(3, 13, &ours), error("forbidden by a firewall (admin prohibited), says 192.0.2.12")),
            (false, v4(3, 4, &ours), error("the packet is too big for the way, says 192.0.2.12")),
            (false, v4(5, 1, &ours), error("ICMP type 5 code 1, says 192.0.2.12")),
            (true, v6(129, 0), Some(Reading::Echo)),
            (true, v6(2, 0), error("the packet is too big for the way")),
            (true, vec![129], None),
            (false, vec![0x4f; 20], None),
        ] {
            assert_eq!(reading(is_v6, &bytes, &ours), want, "{bytes:?}");
        }
    }

    #[test]
    fn median_and_sizes() {
        let us = |n: u64| Duration::from_micros(n);
        assert_eq!(median_us(vec![us(9), us(1), us(5)]), Some(5.0));
        assert_eq!(median_us(vec![]), None);
        assert_eq!(full_payload("10.0.0.1".parse().unwrap(), 1450), 1422);
        assert_eq!(full_payload("fd00::1".parse().unwrap(), 1450), 1402);
    }
}
