//! The tunnel of the backend udp between two hosts, beside a tunnel that moves one packet per system call, as
//! flannel's proxy does, and beside the kernel's VXLAN. All three stand all the time, each between two hosts of its own,
//! and are measured in turn, in changing order.
//!
//! Two wires: one on which each frame goes alone and is put together by the receiver, as with a plain network card; one
//! that takes trains whole, as with a card that cuts and couples. The first decides.

mod plain;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kernel::Netns;

use crate::agent::Kept;
use crate::figure::{Figure, Goal, Samples, Table};
use crate::{Options, Result, sys};

pub use plain::{WORD as PLAIN, run as plain};

const ROUNDS: usize = 7;
const WARM: Duration = Duration::from_millis(300);
const SPAN: Duration = Duration::from_secs(2);
/// Datagrams of the small kind.
const SMALL: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ours,
    Plain,
    Vxlan,
}

const KINDS: [Kind; 3] = [Kind::Ours, Kind::Plain, Kind::Vxlan];

/// Two hosts and what joins them.
struct Pair {
    hosts: [Netns; 2],
    processes: Vec<Kept>,
}

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

fn inner(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, number as u8 + 1, 0)
}

fn sh(host: &Netns, command: &str) -> Result<()> {
    let mut words = command.split(' ');
    let mut made = Command::new(words.next().unwrap_or_default());
    made.args(words);
    let output = host.run(|| made.output())??;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command}: {}", String::from_utf8_lossy(&output.stderr)).into())
}

impl Pair {
    fn new(kind: Kind, whole: bool, options: &Options) -> Result<Pair> {
        let hosts = [Netns::create()?, Netns::create()?];
        sh(&hosts[0], "ip link add eth0 type veth peer name other")?;
        sh(&hosts[0], &format!("ip link set other netns {}", hosts[1].path().display()))?;
        sh(&hosts[1], "ip link set other name eth0")?;
        let mut pair = Pair { hosts, processes: Vec::new() };
        for number in [0, 1] {
            let host = &pair.hosts[number];
            let (own, peer) = (number + 1, 2 - number);
            sh(host, "ip link set lo up")?;
            sh(host, "ip link set eth0 up")?;
            sh(host, &format!("ip addr add 192.0.2.{own}/24 dev eth0"))?;
            if !whole {
                sh(host, "ethtool -K eth0 tso off gso off tx-udp-segmentation off")?;
                sh(host, "ethtool -K eth0 gro on")?;
            }
            let (mine, theirs) = (inner(number), inner(1 - number));
            match kind {
                Kind::Ours => {
                    sh(host, "ip tuntap add flannel0 mode tun multi_queue vnet_hdr")?;
                    let socket = options.folder("tunnel")?.join(format!("{}.{own}", pair.path()));
                    let mut command = Command::new(options.program("loden")?);
                    command.args(["tunnel", "run", "flannel0", "--network=10.244.0.0/16"]);
                    command.arg(format!("--listen=192.0.2.{own}:8285")).arg(format!("--address={mine}"));
                    command.arg(format!("--socket={}", socket.display()));
                    pair.processes.push(Kept::start(command, host)?);
                    let set = [&format!("{theirs}/24"), &format!("192.0.2.{peer}:8285")];
                    let mut command = Command::new(options.program("loden")?);
                    command.args(["tunnel", "set", "flannel0"]).args(set).arg("--socket").arg(&socket);
                    wait(|| command.output().is_ok_and(|done| done.status.success()))?;
                }
                Kind::Plain => {
                    let mut command = Command::new(std::env::current_exe()?);
                    command.args([PLAIN, "flannel0", &format!("192.0.2.{own}:8285")]);
                    command.args([&format!("{theirs}/24"), &format!("192.0.2.{peer}:8285")]);
                    pair.processes.push(Kept::start(command, host)?);
                    wait(|| sh(host, "ip link show flannel0").is_ok())?;
                }
                Kind::Vxlan => {
                    let words = format!("id 1 local 192.0.2.{own} dev eth0 dstport 8472 nolearning");
                    sh(
                        host,
                        &format!("ip link add flannel0 address 02:00:00:00:00:0{own} type vxlan {words}"),
                    )?;
                    sh(
                        host,
                        &format!("bridge fdb append 02:00:00:00:00:0{peer} dev flannel0 dst 192.0.2.{peer}"),
                    )?;
                }
            }
            sh(host, &format!("ip addr add {mine}/32 dev flannel0"))?;
            let mtu = if kind == Kind::Vxlan { 1450 } else { 1472 };
            sh(host, &format!("ip link set flannel0 mtu {mtu} up"))?;
            if kind == Kind::Vxlan {
                let mac = format!("02:00:00:00:00:0{peer}");
                sh(host, &format!("ip neigh replace {theirs} lladdr {mac} dev flannel0 nud permanent"))?;
                sh(host, &format!("ip route add {theirs}/24 via {theirs} dev flannel0 onlink"))?;
            } else {
                sh(host, "ip route add 10.244.0.0/16 dev flannel0 scope global")?;
            }
        }
        pair.stands()?;
        Ok(pair)
    }

    /// Tells pairs apart.
    fn path(&self) -> String {
        self.hosts[0].path().display().to_string().replace('/', "-")
    }

    fn stands(&self) -> Result<()> {
        wait(|| sh(&self.hosts[0], &format!("ping -n -c 1 -W 1 {}", inner(1))).is_ok())
    }

    /// Seconds of processor time of both tunnels.
    fn cpu(&self) -> Result<f64> {
        let one = |process: &Kept| -> Result<f64> {
            let tasks = std::fs::read_dir(format!("/proc/{}/task", process.pid))?;
            let mut total = 0.0;
            for task in tasks.flatten() {
                let text = std::fs::read_to_string(task.path().join("schedstat"))?;
                total += text.split(' ').next().unwrap_or_default().parse::<f64>()? / 1e9;
            }
            Ok(total)
        };
        self.processes.iter().map(one).sum()
    }

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
        let listener = self.hosts[1].run(|| TcpListener::bind((inner(1), 0)))??;
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
        let mut stream = self.hosts[0].run(|| TcpStream::connect(target))??;
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
        let server = self.hosts[1].run(|| UdpSocket::bind((inner(1), 0)))??;
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
        let client = self.hosts[0].run(|| UdpSocket::bind((inner(0), 0)))??;
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
        let server = self.hosts[1].run(|| UdpSocket::bind((inner(1), 0)))??;
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
        let client = self.hosts[0].run(|| UdpSocket::bind((inner(0), 0)))??;
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

fn wait(mut done: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        if Instant::now() > deadline {
            return Err("a tunnel does not carry anything within 20 s".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The measurement.
pub fn run(options: &Options) -> Result<Table> {
    let rounds = options.rounds.unwrap_or(ROUNDS);
    let about = format!(
        "backend udp, {rounds} rounds; beside one packet per system call, or kernel VXLAN without bridge and rules"
    );
    let mut table = Table::new("tunnel", about);
    for (wire, whole) in [("frames alone", false), ("trains whole", true)] {
        let pairs = KINDS
            .iter()
            .map(|kind| Pair::new(*kind, whole, options).map_err(|e| format!("{kind:?}: {e}").into()))
            .collect::<Result<Vec<Pair>>>()?;
        let mut taken: [Taken; 3] = Default::default();
        for round in 0..rounds {
            for turn in 0..KINDS.len() {
                let number = if round % 2 == 0 { turn } else { KINDS.len() - 1 - turn };
                pairs[number].turn(&mut taken[number])?;
            }
        }
        let goal = |goal| if whole { Goal::None } else { goal };
        let [ours, plain, vxlan] = &taken;
        let beside = |what: &str, ours: &Samples, other: &Samples, limit| {
            Figure::beside(format!("{what}, {wire}"), ours.clone(), other.clone(), goal(limit))
        };
        table.figures.extend([
            beside("TCP Gbit/s, one per call", &ours.tcp, &plain.tcp, Goal::AtLeast(8.0)),
            beside("TCP Gbit/s, VXLAN", &ours.tcp, &vxlan.tcp, Goal::AtLeast(0.7)),
            beside("tunnels' CPU s per GB, one per call", &ours.cpu, &plain.cpu, Goal::None),
            beside(
                "datagrams of 64 B a second, one per call",
                &ours.datagrams,
                &plain.datagrams,
                Goal::AtLeast(3.0),
            ),
            beside("tunnels' CPU us per datagram of 64 B, one per call", &ours.each, &plain.each, Goal::None),
            beside("datagrams of 64 B a second, VXLAN", &ours.datagrams, &vxlan.datagrams, Goal::None),
            beside("round trips a second, one per call", &ours.trips, &plain.trips, Goal::None),
            beside("round trips a second, VXLAN", &ours.trips, &vxlan.trips, Goal::None),
        ]);
    }
    Ok(table)
}
