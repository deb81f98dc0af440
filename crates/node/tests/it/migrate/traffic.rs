//! Pods behind a bridge as the CNI chain makes them, and pings between them that go on while nodes change.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use kernel::Netns;

use crate::world::{Host, sh, until};

/// A pod with the second address of each of its host's subnets.
pub struct Pod {
    pub netns: Netns,
    pub addresses: Vec<IpAddr>,
}

impl Pod {
    pub fn on(host: &Host, keys: &[&str]) -> Pod {
        let netns = Netns::create().unwrap();
        host.sh("ip link add cni0 type bridge");
        host.sh("ip link set cni0 up");
        host.sh("sysctl -qw net.ipv6.conf.cni0.accept_dad=0 net.ipv6.conf.all.forwarding=1");
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
    /// Every 10 ms, from a pod to an address.
    pub fn start(from: &Pod, to: IpAddr) -> Pings {
        let mut command = Command::new("ping");
        command.args(["-n", "-i", "0.01", &to.to_string()]).env("LC_ALL", "C");
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
