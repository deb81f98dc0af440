//! The fast path: the same packets with it and without, and everything that must end it. Counters of the agent are
//! the witness that packets took it.

mod ends;
mod packets;
mod same;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use crate::traffic::Pod;
use crate::world::{Agent, Host, World, until};

/// Two nodes with a pod each.
struct Two {
    pods: Vec<Pod>,
    agents: Vec<Agent>,
    world: World,
}

/// Flags of all agents here.
const FLAGS: &[&str] = &["--ip-masq"];

/// Whether this build and this kernel have a fast path, or a note that the test is skipped.
pub fn can(test: &str) -> bool {
    let loaded = fastpath::FastPath::load(fastpath::BUILT, 16, None);
    if let Err(why) = &loaded {
        println!("SKIP {test}: {why}");
    }
    loaded.is_ok()
}

/// A figure of an agent's status.
fn counted(host: &Host, member: &str) -> u64 {
    let (_, status) = host.status_json();
    status["fast_path"][member].as_u64().unwrap_or_else(|| panic!("{member} is not in {status}"))
}

/// Waits until the programs are on so many devices.
fn on_devices(host: &Host, wanted: usize) {
    until("the fast path to be on its devices", || {
        let (_, status) = host.status_json();
        let devices = status["fast_path"]["devices"].as_array().map_or(0, Vec::len);
        if devices == wanted { Ok(()) } else { Err(status["fast_path"].to_string()) }
    });
}

impl Two {
    fn start(backend: &str, mode: &str) -> Two {
        let config = format!(
            r#"{{"Network": "10.244.0.0/16", "EnableNFTables": true, "Backend": {{"Type": "{backend}", "FastPath": "{mode}"}}}}"#
        );
        let world = World::with_config(2, &config);
        let agents = world.start(FLAGS);
        let pods = world.hosts.iter().map(|host| Pod::on(host, &["FLANNEL_SUBNET"])).collect();
        let two = Two { world, agents, pods };
        if mode != "off" {
            two.attached();
        }
        two
    }

    fn attached(&self) {
        self.world.hosts.iter().for_each(|host| on_devices(host, 2));
    }

    /// New agents in place of the old ones, with another mind about the fast path.
    fn again(&mut self, mode: &str) {
        self.agents.drain(..).for_each(|agent| assert_eq!(agent.terminate(), 0));
        let flag = format!("--fast-path={mode}");
        self.agents = self.world.start(&[FLAGS, &[&flag]].concat());
        if mode != "off" {
            self.attached();
        }
    }
}

impl Drop for Two {
    /// Links that outlive their agents are kept by files.
    fn drop(&mut self) {
        self.agents.clear();
        for host in &self.world.hosts {
            let netns = std::fs::metadata(host.netns.path()).map_or(0, |file| file.ino());
            let _ = std::fs::remove_dir_all(format!("/sys/fs/bpf/loden/{netns}-10_244_0_0_16"));
        }
    }
}

/// A UDP conversation between two pods: whatever is asked is answered.
struct Talk {
    ask: UdpSocket,
    answer: UdpSocket,
    from: SocketAddrV4,
    to: SocketAddrV4,
}

fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(ip) => panic!("{ip} is not IPv4"),
    }
}

fn bound(pod: &Pod, port: u16) -> (UdpSocket, SocketAddrV4) {
    let socket = pod.netns.run(|| UdpSocket::bind((pod.addresses[0], port))).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let SocketAddr::V4(address) = socket.local_addr().unwrap() else { panic!("not IPv4") };
    (socket, address)
}

impl Talk {
    fn new(from: &Pod, to: &Pod) -> Talk {
        let ((ask, from), (answer, to)) = (bound(from, 0), bound(to, 0));
        Talk { ask, answer, from, to }
    }

    /// One question and one answer; whether both arrived as they were sent.
    fn round(&self, bytes: &[u8]) -> Result<(), String> {
        let mut space = vec![0; 65536];
        let mut expect = |socket: &UdpSocket, what: &str| loop {
            let (length, from) =
                socket.recv_from(&mut space).map_err(|error| format!("hear the {what}: {error}"))?;
            // Others are late ones of a round that failed.
            if space[..length] == *bytes {
                return Ok::<SocketAddr, String>(from);
            }
        };
        self.ask.send_to(bytes, self.to).map_err(|error| format!("ask: {error}"))?;
        let from = expect(&self.answer, "question")?;
        self.answer.send_to(bytes, from).map_err(|error| format!("answer: {error}"))?;
        expect(&self.ask, "answer").map(drop)
    }

    /// So many rounds of which none may fail.
    fn whole(&self, rounds: usize) {
        for round in 0..rounds {
            assert_eq!(self.round(&round.to_be_bytes()), Ok(()), "round {round}");
        }
    }

    /// Goes on until rounds succeed.
    fn works(&self) {
        until("a round to succeed", || self.round(b"does it work?"));
    }

    /// Goes on until rounds fail.
    fn fails(&self) {
        until("a round to fail", || match self.round(b"does it fail?") {
            Ok(()) => Err("it succeeded".to_owned()),
            Err(_) => Ok(()),
        });
    }

    /// Goes on until hosts' agents have counted more packets that went fast.
    fn until_fast(&self, hosts: &[&Host]) {
        for host in hosts {
            let before = counted(host, "fast_packets");
            until("packets to go fast", || {
                for _ in 0..20 {
                    self.round(b"question")?;
                }
                let (_, status) = host.status_json();
                if counted(host, "fast_packets") > before + 20 {
                    Ok(())
                } else {
                    Err(status["fast_path"].to_string())
                }
            });
        }
    }
}
