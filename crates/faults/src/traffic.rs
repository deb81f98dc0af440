//! Traffic that goes on while things break: pings between all pods, long TCP connections, numbered datagrams, and a
//! flow that is denied and must never be seen.

mod ping;
mod tcp;
mod udp;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kernel::Netns;

use crate::Result;
use crate::promise::Seen;
pub use udp::{Pair, Talk};

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Between two pings of a pair.
    pub ping: Duration,
    /// TCP connections in all.
    pub tcp: usize,
    /// Numbered datagrams a second in all.
    pub datagrams: u64,
}

impl Load {
    /// What the catalogue asks for.
    pub const FULL: Load = Load { ping: Duration::from_millis(10), tcp: 100, datagrams: 10_000 };
    /// Beside other tests on few cores.
    pub const LIGHT: Load = Load { ping: Duration::from_millis(10), tcp: 20, datagrams: 1_000 };
}

/// One end of flows.
pub struct End {
    /// Its name.
    pub name: String,
    /// Its network namespace.
    pub net: Netns,
    /// Its addresses, at most one of a family.
    pub addresses: Vec<IpAddr>,
}

impl End {
    /// Its address of a family, if it has one.
    pub fn address(&self, v6: bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| address.is_ipv6() == v6)
    }
}

/// What all parts share: whether to go on, and a clock.
#[derive(Clone)]
struct Shared {
    stop: Arc<AtomicBool>,
    start: Instant,
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Microseconds since the start.
    fn now(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }
}

/// Counts what arrives of a flow, for those who wait for it.
#[derive(Clone)]
struct Beat {
    what: String,
    count: Arc<AtomicU64>,
}

impl Beat {
    fn new(what: String) -> Beat {
        Beat { what, count: Arc::default() }
    }

    fn one(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }
}

/// All flows, until [`Traffic::finish`].
pub struct Traffic {
    shared: Shared,
    beats: Vec<Beat>,
    pings: Vec<ping::Task>,
    streams: Vec<udp::Task>,
    tcp: Option<tcp::Task>,
    denied: Vec<udp::Denied>,
}

/// How long flows may take to flow, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

/// The port of the flow that is denied.
pub const DENIED: u16 = 7777;

impl Traffic {
    /// Starts everything between these ends and waits until all of it flows. Flows of `denied` must not.
    ///
    /// # Errors
    /// A socket cannot be made, or some flow does not come to flow.
    pub fn start(ends: &[End], load: Load, denied: &[Pair]) -> Result<Traffic> {
        let shared = Shared { stop: Arc::default(), start: Instant::now() };
        let mut traffic = Traffic {
            shared: shared.clone(),
            beats: Vec::new(),
            pings: Vec::new(),
            streams: Vec::new(),
            tcp: None,
            denied: Vec::new(),
        };
        let (first, second) = (&ends[0], &ends[1]);
        let families: Vec<bool> =
            [false, true].into_iter().filter(|v6| first.address(*v6).is_some()).collect();
        let rate = load.datagrams / (ends.len() * families.len()) as u64;
        for v6 in &families {
            for (at, from) in ends.iter().enumerate() {
                let to: Vec<&End> = ends.iter().filter(|to| to.name != from.name).collect();
                let task = ping::Task::start(from, &to, *v6, load.ping, &shared)?;
                traffic.beats.extend(task.beats());
                traffic.pings.push(task);
                // In a ring, so that every host has to do with it.
                let task = udp::Task::start(from, &ends[(at + 1) % ends.len()], *v6, rate, &shared)?;
                traffic.beats.push(task.beat.clone());
                traffic.streams.push(task);
            }
        }
        for pair in denied {
            traffic.denied.push(udp::Denied::start(pair, &shared)?);
        }
        let tcp = tcp::Task::start(first, second, &families, load.tcp, &shared)?;
        traffic.beats.push(tcp.beat.clone());
        traffic.tcp = Some(tcp);
        traffic.flows()?;
        Ok(traffic)
    }

    /// Waits until every flow that is to arrive does so again and again.
    ///
    /// # Errors
    /// One does not, by name.
    pub fn flows(&self) -> Result<()> {
        let before: Vec<u64> = self.beats.iter().map(|beat| beat.count.load(Ordering::Relaxed)).collect();
        let start = Instant::now();
        loop {
            let behind = self
                .beats
                .iter()
                .zip(&before)
                .find(|(beat, before)| beat.count.load(Ordering::Relaxed) < *before + 3);
            match behind {
                None => return Ok(()),
                Some((beat, _)) if start.elapsed() > PATIENCE => {
                    return Err(format!("nothing arrives for {} s, {}", PATIENCE.as_secs(), beat.what));
                }
                Some(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Ends all of it and writes what became of it.
    pub fn finish(mut self, seen: &mut Seen) {
        self.shared.stop.store(true, Ordering::Relaxed);
        seen.lines.extend(self.pings.drain(..).flat_map(ping::Task::finish));
        seen.lines.extend(self.streams.drain(..).map(udp::Task::finish));
        for denied in self.denied.drain(..) {
            let (sent, passed) = denied.finish();
            seen.denied = (seen.denied.0 + sent, seen.denied.1 + passed);
        }
        if let Some(tcp) = self.tcp.take() {
            let (flows, broken, stall) = tcp.finish();
            seen.tcp = (seen.tcp.0 + flows, seen.tcp.1 + broken);
            seen.tcp_stall = seen.tcp_stall.max(stall);
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

/// Does something with sockets in an end's namespace.
fn inside<T: Send>(end: &End, what: &str, work: impl FnOnce() -> std::io::Result<T> + Send) -> Result<T> {
    let done = end.net.run(work).map_err(|error| format!("enter {}: {error}", end.name))?;
    done.map_err(|error| format!("{what} in {}: {error}", end.name))
}
