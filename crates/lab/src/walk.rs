//! Follows one packet: packet sockets in every namespace on the way see everything, one echo with a
//! recognisable payload is sent, and what carries it is the way it took.
//!
//! Nothing is assumed about devices: whichever saw the packet are the hops.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::icmp::{Answer, Pinger, Tag};
use crate::packet::{Content, Frame};
use crate::proto::Hop;
use crate::sys::{self, Seen};

/// A namespace to listen in, in the order of the way there.
pub struct Station<'a> {
    /// What it is called in the result.
    pub place: String,
    /// Its network namespace.
    pub net: BorrowedFd<'a>,
}

/// The hops of a request and of its answer.
pub type Hops = (Vec<Hop>, Vec<Hop>);

/// How long the answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// After the answer has come, how long the packet sockets may go without a frame of ours.
const QUIET: Duration = Duration::from_millis(30);

struct Listener {
    socket: OwnedFd,
    raw: Vec<(Seen, String, Vec<u8>)>,
}

/// Sends one echo of `payload` bytes from the first station to `to` and gives the hops there and back.
///
/// # Errors
/// The kernel's; no answer is an error that says why.
pub fn follow(stations: &[Station<'_>], to: IpAddr, payload: usize, vxlan_port: u16) -> io::Result<Hops> {
    let from = stations.first().ok_or_else(|| io::Error::other("a way needs a first station"))?;
    let mut listeners = Vec::new();
    let mut pinger = sys::in_netns(from.net, || Pinger::open(to))?;
    // Neighbours are resolved before, so that the walk shows the packet and not the search for it.
    if let Answer::Refused(why) = pinger.until_answered(PATIENCE)? {
        return Err(io::Error::other(why));
    }
    for station in stations {
        let socket = sys::in_netns(station.net, sys::packet_socket)?;
        listeners.push(Listener { socket, raw: Vec::new() });
    }
    let (answer, tag) = pinger.echo(payload, PATIENCE)?;
    collect(stations, &mut listeners, &tag)?;
    match answer {
        Answer::Echo(_) => Ok(sort(stations, &listeners, vxlan_port)),
        Answer::Refused(why) => Err(io::Error::other(why)),
        Answer::Silence => {
            let (there, back) = sort(stations, &listeners, vxlan_port);
            let last = back.last().or(there.last());
            let last = last.map_or("nowhere".to_owned(), |hop| format!("at {} of {}", hop.device, hop.place));
            Err(io::Error::other(format!("no answer; the packet was last seen {last}")))
        }
    }
}

/// Takes what the sockets have, until they stay quiet.
fn collect(stations: &[Station<'_>], listeners: &mut [Listener], tag: &Tag) -> io::Result<()> {
    let mut buf = vec![0; 70_000];
    loop {
        let fds: Vec<BorrowedFd<'_>> = listeners.iter().map(|l| l.socket.as_fd()).collect();
        let ready = sys::wait_readable(&fds, Instant::now() + QUIET)?;
        let mut ours = false;
        for at in ready {
            let listener = &mut listeners[at];
            loop {
                let seen = match sys::receive_frame(&listener.socket, &mut buf) {
                    Ok(seen) => seen,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(e) => return Err(e),
                };
                let bytes = &buf[..seen.len.min(buf.len())];
                if bytes.windows(tag.len()).any(|w| w == tag) {
                    let index = seen.device;
                    let name = sys::in_netns(stations[at].net, || Ok(sys::device_name(index)))?;
                    listener.raw.push((seen, name.unwrap_or_else(|| "?".to_owned()), bytes.to_vec()));
                    ours = true;
                }
            }
        }
        if !ours {
            return Ok(());
        }
    }
}

/// Decodes, splits into there and back, and orders by time. The kernel stamps a frame once for a
/// device and what lies on top of it, so frames of one stamp are ordered by station and by arrival.
fn sort(stations: &[Station<'_>], listeners: &[Listener], vxlan_port: u16) -> Hops {
    let mut there = Vec::new();
    let mut back = Vec::new();
    for (station, listener) in listeners.iter().enumerate() {
        for (arrival, (seen, device, bytes)) in listener.raw.iter().enumerate() {
            let Some(frame) = Frame::decode(bytes, vxlan_port) else { continue };
            let hop = Hop {
                place: stations[station].place.clone(),
                device: device.clone(),
                outgoing: seen.outgoing,
                at_us: 0.0,
                frame,
            };
            match hop.frame.innermost().content {
                Content::Echo { request: true, .. } => there.push((seen.at_ns, station, arrival, hop)),
                Content::Echo { request: false, .. } => {
                    back.push((seen.at_ns, stations.len() - station, arrival, hop));
                }
                _ => {}
            }
        }
    }
    let start = there.iter().map(|(at, ..)| *at).min().unwrap_or(0);
    let finish = |mut hops: Vec<(u64, usize, usize, Hop)>| {
        hops.sort_by_key(|(at, station, arrival, _)| (*at, *station, *arrival));
        let timed = hops.into_iter().map(|(at, _, _, hop)| Hop {
            at_us: at.saturating_sub(start) as f64 / 1000.0,
            ..hop
        });
        timed.collect()
    };
    (finish(there), finish(back))
}
