//! Echoes of one pod to all others, each so many milliseconds, over one raw socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recv, sendto, socket_with, sockopt,
};

use super::{Beat, End, Shared, inside};
use crate::Result;
use crate::account::{Arrived, Line, account};

pub struct Task {
    beats: Vec<Beat>,
    thread: JoinHandle<Vec<Line>>,
}

/// One way of a pair.
struct Way {
    to: IpAddr,
    beat: Beat,
    sent: Vec<u64>,
    arrived: Arrived,
}

/// How long answers may be under way after the last question.
const STRAGGLERS: Duration = Duration::from_millis(500);

impl Task {
    pub fn start(from: &End, to: &[&End], v6: bool, pause: Duration, shared: &Shared) -> Result<Task> {
        let socket = inside(from, "open a raw socket", || open(v6))?;
        let ways: Vec<Way> = to
            .iter()
            .filter_map(|to| {
                let address = to.address(v6)?;
                let beat = Beat::new(format!("ping {} to {address}", from.name));
                Some(Way { to: address, beat, sent: Vec::new(), arrived: Arrived::default() })
            })
            .collect();
        let beats = ways.iter().map(|way| way.beat.clone()).collect();
        let shared = shared.clone();
        let thread = std::thread::spawn(move || run(&socket, v6, ways, pause, &shared));
        Ok(Task { beats, thread })
    }

    pub fn beats(&self) -> Vec<Beat> {
        self.beats.clone()
    }

    pub fn finish(self) -> Vec<Line> {
        self.thread.join().unwrap_or_default()
    }
}

fn open(v6: bool) -> io::Result<OwnedFd> {
    let (family, protocol) =
        if v6 { (AddressFamily::INET6, ipproto::ICMPV6) } else { (AddressFamily::INET, ipproto::ICMP) };
    let socket = socket_with(family, SocketType::RAW, SocketFlags::NONBLOCK, Some(protocol))?;
    // Nothing is to be lost because the reader has to wait for its turn.
    sockopt::set_socket_recv_buffer_size_force(&socket, 4 << 20)?;
    Ok(socket)
}

fn run(socket: &OwnedFd, v6: bool, mut ways: Vec<Way>, pause: Duration, shared: &Shared) -> Vec<Line> {
    let mut next = Instant::now();
    let mut end = None;
    loop {
        if shared.stopped() {
            let end = *end.get_or_insert_with(|| Instant::now() + STRAGGLERS);
            if Instant::now() >= end {
                break;
            }
        } else if Instant::now() >= next {
            for (at, way) in ways.iter_mut().enumerate() {
                let bytes = request(v6, at as u16, way.sent.len() as u64);
                way.sent.push(shared.now());
                // What cannot be sent does not arrive.
                let _ = sendto(socket, &bytes, SendFlags::empty(), &SocketAddr::new(way.to, 0));
            }
            // A beat that was missed is not made up for.
            next = (next + pause).max(Instant::now());
        }
        let wait = if end.is_some() {
            Duration::from_millis(20)
        } else {
            next.saturating_duration_since(Instant::now())
        };
        let wait = Timespec { tv_sec: 0, tv_nsec: wait.as_nanos().min(999_999_999) as _ };
        let _ = poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&wait));
        let mut bytes = [0; 256];
        while let Ok((len, _)) = recv(socket, &mut bytes[..], RecvFlags::empty()) {
            if let Some((at, number)) = reply(v6, &bytes[..len])
                && let Some(way) = ways.get_mut(usize::from(at))
                && way.arrived.note(number)
            {
                way.beat.one();
            }
        }
    }
    ways.iter().map(|way| account(&way.beat.what, &way.sent, &way.arrived)).collect()
}

/// What marks an echo as one of ours, in the identifier.
const MARK: u16 = 0x4c4f;

fn request(v6: bool, way: u16, number: u64) -> Vec<u8> {
    let mut bytes = vec![if v6 { 128 } else { 8 }, 0, 0, 0];
    bytes.extend(MARK.to_be_bytes());
    bytes.extend(way.to_be_bytes());
    bytes.extend(number.to_be_bytes());
    if !v6 {
        // RFC 1071; the kernel fills in that of ICMPv6.
        let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
        let sum: u32 = words.sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

/// Way and number of an answer to one of ours.
fn reply(v6: bool, bytes: &[u8]) -> Option<(u16, u64)> {
    let header = if v6 { 0 } else { usize::from(bytes.first()? & 15) * 4 };
    let bytes = bytes.get(header..)?;
    let kind = if v6 { 129 } else { 0 };
    let word = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    if *bytes.first()? != kind || word(4)? != MARK {
        return None;
    }
    Some((word(6)?, u64::from_be_bytes(bytes.get(8..16)?.try_into().ok()?)))
}

/// The address a socket of a family is bound to when it may be any.
pub fn any(v6: bool) -> IpAddr {
    if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_from_questions() {
        let mut bytes = request(false, 2, 77);
        assert_eq!(reply(false, &[&[0x45; 20][..], &bytes].concat()), None);
        bytes[0] = 0;
        assert_eq!(reply(false, &[&[0x45; 20][..], &bytes].concat()), Some((2, 77)));
        let mut bytes = request(true, 1, 9);
        assert_eq!(reply(true, &bytes), None);
        bytes[0] = 129;
        assert_eq!(reply(true, &bytes), Some((1, 9)));
        assert_eq!(reply(true, &bytes[..12]), None);
    }
}
