//! Pods behind a bridge as the CNI chain makes them, and pings and datagrams between them that go on while nodes
//! change.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kernel::Netns;
use kernel::sysctl::has_ipv6;

use crate::world::{Host, asked_patience, sh, until};

/// A pod with the second address of each of its host's subnets.
pub struct Pod {
    pub netns: Netns,
    pub addresses: Vec<IpAddr>,
}

impl Pod {
    pub fn on(host: &Host, keys: &[&str]) -> Pod {
        let netns = Netns::create().unwrap();
        // On a busy machine addresses take long to be sure of themselves.
        let sure = "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0";
        if has_ipv6() {
            sh(&netns, sure);
            host.sh(sure);
            host.sh("sysctl -qw net.ipv6.conf.all.forwarding=1");
        }
        host.sh("ip link add cni0 type bridge");
        host.sh("ip link set cni0 up");
        host.sh("ip link add veth0 type veth peer name inpod");
        host.sh(&format!("ip link set inpod netns {}", netns.path().display()));
        host.sh("ip link set veth0 master cni0 up");
        sh(&netns, "ip link set lo up");
        sh(&netns, "ip link set inpod name eth0 up");
        let mut addresses = Vec::new();
        for key in keys {
            let subnet = host.subnet(key);
            let (gateway, address) = (nth(&subnet, 1), nth(&subnet, 2));
            let nodad = if address.is_ipv6() { "nodad" } else { "" };
            host.sh(&format!("ip addr add {gateway}/{} dev cni0 {nodad}", subnet.prefix_len()));
            sh(&netns, &format!("ip addr add {address}/{} dev eth0 {nodad}", subnet.prefix_len()));
            let family = if address.is_ipv6() { "-6" } else { "-4" };
            sh(&netns, &format!("ip {family} route add default via {gateway}"));
            addresses.push(address);
        }
        // Links that just came up ask for a second whether their addresses are free.
        until("addresses to be sure", || {
            if !has_ipv6() {
                return Ok(());
            }
            let tentative = host.sh("ip -6 addr show tentative") + &sh(&netns, "ip -6 addr show tentative");
            if tentative.trim().is_empty() { Ok(()) } else { Err(tentative) }
        });
        Pod { netns, addresses }
    }
}

fn nth(subnet: &ipnet::IpNet, n: u8) -> IpAddr {
    match subnet.network() {
        IpAddr::V4(ip) => IpAddr::from((u32::from(ip) + u32::from(n)).to_be_bytes()),
        IpAddr::V6(ip) => IpAddr::from((u128::from(ip) + u128::from(n)).to_be_bytes()),
    }
}

/// One `ping` that runs until it is asked how it went.
pub struct Pings {
    pub what: String,
    child: Child,
    heard: Arc<Mutex<Heard>>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Heard {
    sequences: BTreeSet<u64>,
    other: Vec<String>,
}

impl Pings {
    /// Every 10 ms, from a pod to an address; where the processor is slow, five a second.
    pub fn start(from: &Pod, to: IpAddr) -> Pings {
        let mut command = Command::new("ping");
        let beat = if asked_patience().is_some() { "0.2" } else { "0.01" };
        command.args(["-n", "-i", beat, &to.to_string()]).env("LC_ALL", "C");
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = from.netns.run(|| command.spawn()).unwrap().unwrap();
        let heard: Arc<Mutex<Heard>> = Arc::default();
        let (lines, into) = (BufReader::new(child.stdout.take().unwrap()).lines(), heard.clone());
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut heard = into.lock().unwrap();
                let sequence = line.split("icmp_seq=").nth(1).and_then(|rest| rest.split(' ').next());
                match sequence.and_then(|n| n.parse().ok()) {
                    Some(n) if line.contains("time=") => drop(heard.sequences.insert(n)),
                    _ => heard.other.push(line),
                }
            }
        });
        Pings { what: format!("{:?} to {to}", from.addresses), child, heard, reader: Some(reader) }
    }

    /// Waits for so many more answers.
    pub fn more(&self, count: usize) {
        let before = self.heard.lock().unwrap().sequences.len();
        until(&format!("{count} more answers, {}", self.what), || {
            let heard = self.heard.lock().unwrap();
            let got = heard.sequences.len() - before;
            if got >= count { Ok(()) } else { Err(format!("{got}; {:?}", heard.other.last())) }
        });
    }

    /// Ends it; gives how many were answered, and the numbers of those that were not though later ones were.
    pub fn finish(mut self) -> (usize, Vec<u64>) {
        let _ = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        self.child.wait().unwrap();
        self.reader.take().unwrap().join().unwrap();
        let heard = self.heard.lock().unwrap();
        let last = heard.sequences.last().copied().unwrap_or(0);
        let lost: Vec<u64> = (1..last).filter(|n| !heard.sequences.contains(n)).collect();
        (heard.sequences.len(), lost)
    }
}

impl Drop for Pings {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Numbered datagrams from one pod to another. Those with even numbers are one connection,
/// answered by the receiver; each with an odd number is one of its own, about which rules of NAT and firewalls
/// decide anew.
pub struct Stream {
    pub what: String,
    source: IpAddr,
    stop: Arc<AtomicBool>,
    arrived: Arc<AtomicU64>,
    threads: Option<(JoinHandle<Vec<Instant>>, JoinHandle<Received>)>,
}

/// Numbers, and the addresses they came with.
type Received = BTreeMap<u64, IpAddr>;

/// How a stream fared.
#[derive(Debug)]
pub struct Fared {
    pub what: String,
    pub sent: usize,
    pub arrived: usize,
    /// Numbers of those that did not arrive.
    pub lost: Vec<u64>,
    /// The longest time in which nothing arrived.
    pub gap: Duration,
    /// How many came with which address that is not the sender's.
    pub disguised: BTreeMap<IpAddr, u64>,
    /// Numbers of those that came with the sender's.
    pub bare: Vec<u64>,
}

impl Stream {
    /// To an address of a pod; counts from the first one that arrives.
    pub fn start(from: &Pod, to: &Pod, family: usize) -> Stream {
        Stream::every(1, from, to, family)
    }

    /// The same, one each so many milliseconds.
    pub fn every(ms: u64, from: &Pod, to: &Pod, family: usize) -> Stream {
        let (source, target) = (from.addresses[family], to.addresses[family]);
        let what = format!("{source} to {target}");
        let any: IpAddr =
            if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let inbox = to.netns.run(|| UdpSocket::bind((target, 0))).unwrap().unwrap();
        // Nothing is to be lost because the receiver has to wait for its turn.
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&inbox, 16 << 20).unwrap();
        inbox.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let to = inbox.local_addr().unwrap();
        let (stop, open, arrived): (Arc<AtomicBool>, Arc<AtomicBool>, Arc<AtomicU64>) = Default::default();
        let (netns, stopped, opened) = (from.netns.try_clone().unwrap(), stop.clone(), open.clone());
        let send = move || {
            let lasting = UdpSocket::bind((any, 0)).unwrap();
            lasting.set_nonblocking(true).unwrap();
            let mut sent = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let fresh = (sent.len() % 2 == 1).then(|| UdpSocket::bind((any, 0)).unwrap());
                let number = if opened.load(Ordering::Relaxed) { sent.len() as u64 } else { u64::MAX };
                while lasting.recv_from(&mut [0; 8]).is_ok() {}
                // What cannot be sent does not arrive.
                let _ = fresh.as_ref().unwrap_or(&lasting).send_to(&number.to_be_bytes(), to);
                if number != u64::MAX {
                    sent.push(Instant::now());
                }
                std::thread::sleep(Duration::from_millis(ms));
            }
            sent
        };
        let sender = std::thread::spawn(move || netns.run(send).unwrap());
        let (stopped, counted) = (stop.clone(), arrived.clone());
        let receiver = std::thread::spawn(move || {
            let mut received = Received::new();
            let mut bytes = [0; 8];
            loop {
                match inbox.recv_from(&mut bytes) {
                    Ok((_, from)) => {
                        open.store(true, Ordering::Relaxed);
                        let number = u64::from_be_bytes(bytes);
                        if number % 2 == 0 || number == u64::MAX {
                            let _ = inbox.send_to(b"heard", from);
                        }
                        if number != u64::MAX && received.insert(number, from.ip()).is_none() {
                            counted.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    // Nothing more is on its way.
                    Err(_) if stopped.load(Ordering::Relaxed) => return received,
                    Err(_) => {}
                }
            }
        });
        let stream = Stream { what, source, stop, arrived, threads: Some((sender, receiver)) };
        stream.more(1);
        stream
    }

    /// Waits for so many more to arrive.
    pub fn more(&self, count: u64) {
        let before = self.arrived.load(Ordering::Relaxed);
        until(&format!("{count} more datagrams, {}", self.what), || {
            let got = self.arrived.load(Ordering::Relaxed) - before;
            if got >= count { Ok(()) } else { Err(got.to_string()) }
        });
    }

    /// Ends several at once.
    pub fn finish_all(streams: Vec<Stream>) -> Vec<Fared> {
        streams.iter().for_each(|stream| stream.stop.store(true, Ordering::Relaxed));
        streams.into_iter().map(Stream::finish).collect()
    }

    /// Ends it.
    pub fn finish(mut self) -> Fared {
        self.stop.store(true, Ordering::Relaxed);
        let (sender, receiver) = self.threads.take().unwrap();
        let (sent, received) = (sender.join().unwrap(), receiver.join().unwrap());
        let lost: Vec<u64> = (0..sent.len() as u64).filter(|n| !received.contains_key(n)).collect();
        let at = |n: u64| sent[n as usize];
        let numbers: Vec<u64> = received.keys().copied().collect();
        let gaps = numbers.windows(2).filter(|pair| pair[1] != pair[0] + 1);
        let gap = gaps.map(|pair| at(pair[1]) - at(pair[0])).max().unwrap_or_default();
        let (mut disguised, mut bare) = (BTreeMap::new(), Vec::new());
        for (number, from) in &received {
            if *from == self.source {
                bare.push(*number);
            } else {
                *disguised.entry(*from).or_default() += 1;
            }
        }
        let what = std::mem::take(&mut self.what);
        Fared { what, sent: sent.len(), arrived: received.len(), lost, gap, disguised, bare }
    }
}

/// Of some numbers, how many belong to the one connection and how many to new ones.
pub fn kinds(numbers: &[u64]) -> [usize; 2] {
    let new = numbers.iter().filter(|number| *number % 2 == 1).count();
    [numbers.len() - new, new]
}

impl Fared {
    /// Nothing was lost, and all of it came with the address it should have.
    pub fn assert_whole(&self, seen: Option<IpAddr>) {
        assert_eq!(
            self.lost, [0; 0],
            "datagrams that were lost, by number, within {:?}: {}",
            self.gap, self.what
        );
        let all = seen.map(|address| (address, self.arrived as u64));
        assert_eq!(self.disguised, all.into_iter().collect(), "addresses seen of {}", self.what);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
