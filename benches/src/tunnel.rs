//! Tunnels in user space between pods of two hosts, which have flannel's bridge and rules: that of the backend udp beside
//! one that moves one packet per system call, as flannel's proxy does, and beside the kernel's VXLAN; WireGuard beside
//! another program's. And what agents make in the kernel beside the same by hand. All stand all the time, each between
//! two hosts of its own, and are measured in turn, in changing order.
//!
//! Two wires: one on which each frame goes alone and is put together by the receiver, as with a plain network card; one
//! that takes trains whole, as with a card that cuts and couples. The first decides.

mod pair;
mod plain;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::figure::{Figure, Goal, Samples, Table};
use crate::{Options, Result, sys};

use pair::{Kind, Pair, Way, pod};
pub use plain::{WORD as PLAIN, run as plain};

const ROUNDS: usize = 7;
const WARM: Duration = Duration::from_millis(300);
const SPAN: Duration = Duration::from_secs(2);
/// Datagrams of the small kind.
const SMALL: usize = 64;

/// What one turn gave: Gbit/s of TCP, CPU seconds of both tunnels per GB, datagrams a second, CPU microseconds of both
/// tunnels for one, round trips a second.
#[derive(Default)]
struct Taken {
    tcp: Samples,
    cpu: Samples,
    datagrams: Samples,
    each: Samples,
    trips: Samples,
}

impl Pair {
    fn turn(&self, taken: &mut Taken) -> Result<()> {
        let (bytes, seconds, cpu) = self.stream()?;
        taken.tcp.0.push(bytes * 8.0 / seconds / 1e9);
        taken.cpu.0.push(cpu / (bytes / 1e9));
        let (rate, each) = self.flood()?;
        taken.datagrams.0.push(rate);
        taken.each.0.push(each);
        taken.trips.0.push(self.trips()?);
        Ok(())
    }

    /// One stream of TCP from the first host to the second: bytes that arrived, the time, the tunnels' time.
    fn stream(&self) -> Result<(f64, f64, f64)> {
        let listener = self.pods[1].run(|| TcpListener::bind((pod(1), 0)))??;
        let target = listener.local_addr()?;
        let total = Arc::new(AtomicU64::new(0));
        let count = total.clone();
        let receiver = std::thread::spawn(move || -> std::io::Result<()> {
            let (mut stream, _) = listener.accept()?;
            let mut buffer = vec![0; 1 << 18];
            loop {
                match stream.read(&mut buffer)? {
                    0 => return Ok(()),
                    n => count.fetch_add(n as u64, Ordering::Relaxed),
                };
            }
        });
        let mut stream = self.pods[0].run(|| TcpStream::connect(target))??;
        sys::use_cubic(&stream)?;
        let stop = Arc::new(AtomicBool::new(false));
        let ended = stop.clone();
        let sender = std::thread::spawn(move || {
            let data = vec![0x5a; 1 << 18];
            while !ended.load(Ordering::Relaxed) && stream.write_all(&data).is_ok() {}
        });
        std::thread::sleep(WARM);
        let (before, start, cpu) = (total.load(Ordering::Relaxed), Instant::now(), self.cpu()?);
        std::thread::sleep(SPAN);
        let (after, seconds, cpu) =
            (total.load(Ordering::Relaxed), start.elapsed().as_secs_f64(), self.cpu()? - cpu);
        stop.store(true, Ordering::Relaxed);
        let _ = sender.join();
        receiver.join().map_err(|_| "the receiver panicked")??;
        Ok(((after - before) as f64, seconds, cpu))
    }

    /// Small datagrams from the first host to the second, as many as go: how many arrive in a second, and what one costs.
    fn flood(&self) -> Result<(f64, f64)> {
        let server = self.pods[1].run(|| UdpSocket::bind((pod(1), 0)))??;
        let target = server.local_addr()?;
        server.set_read_timeout(Some(Duration::from_millis(100)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let total = Arc::new(AtomicU64::new(0));
        let (ended, count) = (stop.clone(), total.clone());
        let receiver = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                count.fetch_add(sys::receive_many(&server).unwrap_or(0) as u64, Ordering::Relaxed);
            }
        });
        let client = self.pods[0].run(|| UdpSocket::bind((pod(0), 0)))??;
        client.connect(target)?;
        let ended = stop.clone();
        let sender = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                // A full queue is what is wanted.
                let _ = sys::send_many(&client, &[0x5a; SMALL]);
            }
        });
        std::thread::sleep(WARM);
        let (before, start, cpu) = (total.load(Ordering::Relaxed), Instant::now(), self.cpu()?);
        std::thread::sleep(SPAN);
        let count = (total.load(Ordering::Relaxed) - before) as f64;
        let (seconds, cpu) = (start.elapsed().as_secs_f64(), self.cpu()? - cpu);
        stop.store(true, Ordering::Relaxed);
        let _ = (sender.join(), receiver.join());
        Ok((count / seconds, cpu * 1e6 / count))
    }

    /// One datagram there and back at a time: how many in a second.
    fn trips(&self) -> Result<f64> {
        let server = self.pods[1].run(|| UdpSocket::bind((pod(1), 0)))??;
        let target = server.local_addr()?;
        server.set_read_timeout(Some(Duration::from_millis(200)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let ended = stop.clone();
        let echo = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while !ended.load(Ordering::Relaxed) {
                if let Ok((length, from)) = server.recv_from(&mut buffer) {
                    let _ = server.send_to(&buffer[..length], from);
                }
            }
        });
        let client = self.pods[0].run(|| UdpSocket::bind((pod(0), 0)))??;
        client.connect(target)?;
        client.set_read_timeout(Some(Duration::from_millis(200)))?;
        let (start, mut count) = (Instant::now(), 0u32);
        while start.elapsed() < SPAN / 2 {
            client.send(&[1])?;
            count += u32::from(client.recv(&mut [0; 8]).is_ok());
        }
        let rate = f64::from(count) / start.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        let _ = echo.join();
        Ok(rate)
    }
}

/// Measures kinds of tunnels side by side, on one wire.
fn beside(kinds: &[Kind], whole: bool, rounds: usize, options: &Options) -> Result<Vec<Taken>> {
    let pairs = kinds
        .iter()
        .map(|kind| Pair::new(*kind, whole, options).map_err(|e| format!("{kind:?}: {e}").into()))
        .collect::<Result<Vec<Pair>>>()?;
    let mut taken: Vec<Taken> = kinds.iter().map(|_| Taken::default()).collect();
    for round in 0..rounds {
        for turn in 0..kinds.len() {
            let number = if round % 2 == 0 { turn } else { kinds.len() - 1 - turn };
            pairs[number].turn(&mut taken[number])?;
        }
    }
    Ok(taken)
}

const WIRES: [(&str, bool); 2] = [("frames alone", false), ("trains whole", true)];

/// The measurement of the backend udp.
pub fn run(options: &Options) -> Result<Table> {
    let rounds = options.rounds.unwrap_or(ROUNDS);
    let plain = if options.proxy.is_some() { "the proxy given" } else { "one packet per system call" };
    let about = format!(
        "backend udp, {rounds} rounds; beside {plain}, or kernel VXLAN; pods behind bridge and rules"
    );
    let mut table = Table::new("tunnel", about);
    for (wire, whole) in WIRES {
        let taken = beside(&[Kind::Udp, Kind::Plain, Kind::Vxlan], whole, rounds, options)?;
        let [ours, plain, vxlan] = taken.as_slice() else { return Err("three kinds".into()) };
        let goal = |goal| if whole { Goal::None } else { goal };
        let mut add = |what: &str, ours: &Samples, other: &Samples, limit| {
            let what = format!("{what}, {wire}");
            table.figures.push(Figure::beside(what, ours.clone(), other.clone(), goal(limit)));
        };
        add("TCP Gbit/s, one per call", &ours.tcp, &plain.tcp, Goal::AtLeast(8.0));
        add("TCP Gbit/s, VXLAN", &ours.tcp, &vxlan.tcp, Goal::AtLeast(0.7));
        add("tunnels' CPU s per GB, one per call", &ours.cpu, &plain.cpu, Goal::None);
        let (small, each) = ("datagrams of 64 B a second", "tunnels' CPU us per datagram of 64 B");
        add(&format!("{small}, one per call"), &ours.datagrams, &plain.datagrams, Goal::AtLeast(3.0));
        add(&format!("{each}, one per call"), &ours.each, &plain.each, Goal::None);
        add(&format!("{small}, VXLAN"), &ours.datagrams, &vxlan.datagrams, Goal::None);
        add("round trips a second, one per call", &ours.trips, &plain.trips, Goal::None);
        add("round trips a second, VXLAN", &ours.trips, &vxlan.trips, Goal::None);
    }
    Ok(table)
}

/// Rounds of what is to differ by less than a fiftieth.
const CLOSE: usize = 9;

/// What agents make in the kernel beside the same made by hand: nothing of ours is on a packet's way.
pub fn hand(options: &Options) -> Result<Table> {
    let rounds = options.rounds.unwrap_or(CLOSE);
    let about =
        format!("what agents make, {rounds} rounds; beside the same made by hand (flannel.md 6, 7.4)");
    let mut table = Table::new("hand", about);
    for way in Way::ALL {
        if !way.is_there()? {
            crate::say(&format!("\nhand: {}: this kernel has none\n", way.word()));
            continue;
        }
        for (wire, whole) in WIRES {
            let taken = beside(&[Kind::Agents(way), Kind::ByHand(way)], whole, rounds, options)?;
            let [ours, other] = taken.as_slice() else { return Err("two kinds".into()) };
            for (what, ours, other) in [
                ("TCP Gbit/s", &ours.tcp, &other.tcp),
                ("datagrams of 64 B a second", &ours.datagrams, &other.datagrams),
                ("round trips a second", &ours.trips, &other.trips),
            ] {
                let what = format!("{}: {what}, {wire}", way.word());
                let goal = Goal::AtLeast(0.98);
                table.figures.push(Figure::beside(what, ours.clone(), other.clone(), goal));
            }
        }
    }
    Ok(table)
}

/// The measurement of WireGuard in user space.
pub fn wireguard(options: &Options) -> Result<Table> {
    let rounds = options.rounds.unwrap_or(ROUNDS);
    let about = format!(
        "WireGuard in user space, {rounds} rounds; beside the program given, or our udp in the clear"
    );
    let mut table = Table::new("wireguard", about);
    for (wire, whole) in WIRES {
        let mut kinds = vec![Kind::Wireguard, Kind::Udp];
        kinds.extend(options.wireguard.is_some().then_some(Kind::OtherWireguard));
        let taken = beside(&kinds, whole, rounds, options)?;
        for (name, other, goal) in [("clear", 1, Goal::None), ("the other", 2, Goal::AtLeast(2.0))] {
            let (Some(other), ours) = (taken.get(other), &taken[0]) else { continue };
            let mut add = |what: &str, ours: &Samples, other: &Samples, goal| {
                let what = format!("{what}, {name}, {wire}");
                table.figures.push(Figure::beside(what, ours.clone(), other.clone(), goal));
            };
            add("TCP Gbit/s", &ours.tcp, &other.tcp, goal);
            add("CPU s per GB", &ours.cpu, &other.cpu, Goal::None);
            add("datagrams of 64 B a second", &ours.datagrams, &other.datagrams, Goal::None);
            add("round trips a second", &ours.trips, &other.trips, Goal::None);
        }
    }
    Ok(table)
}
