//! The fast path: the same packets with it and without, and everything that must end it. Counters of the agent are
//! the witness that packets took it.

mod added;
mod conntrack;
mod early;
mod ends;
mod packets;
mod same;
mod segments;
mod six;
mod taken;
mod udp;
mod watched;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use crate::traffic::Pod;
use crate::world::{Agent, Host, World, until};

/// Two nodes with a pod each.
struct Two {
    backend: &'static str,
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

/// Whether there are tunnels in user space.
fn has_tun() -> bool {
    let there = std::path::Path::new("/dev/net/tun").exists();
    if !there {
        println!("SKIP fast path with udp: this kernel has no TUN devices");
    }
    there
}

/// A figure of an agent's status; a status without it is that of an agent too busy to answer in time.
fn counted(host: &Host, member: &str) -> u64 {
    until("the agent to answer", || {
        let (_, status) = host.status_json();
        status["fast_path"][member].as_u64().ok_or_else(|| format!("{member} is not in {status}"))
    })
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
    fn start(backend: &'static str, mode: &str) -> Two {
        Two::of(backend, mode, "", &["FLANNEL_SUBNET"])
    }

    /// With both families.
    fn dual(backend: &'static str, mode: &str) -> Two {
        let six = r#""EnableIPv6": true, "IPv6Network": "fd00:10::/48", "#;
        Two::of(backend, mode, six, &["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"])
    }

    /// With IPv6 alone, though a network of IPv4 is named; the uplinks have no address of IPv4 either.
    fn six(backend: &'static str, mode: &str) -> Two {
        let six = r#""EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:10::/48", "#;
        Two::of(backend, mode, six, &["FLANNEL_IPV6_SUBNET"])
    }

    fn of(backend: &'static str, mode: &str, more: &str, keys: &[&str]) -> Two {
        let config = format!(
            r#"{{"Network": "10.244.0.0/16", {more}"EnableNFTables": true, "Backend": {{"Type": "{backend}", "FastPath": "{mode}"}}}}"#
        );
        let world = World::with_config(2, &config);
        if !keys.contains(&"FLANNEL_SUBNET") {
            world.hosts.iter().for_each(|host| drop(host.sh("ip -4 addr flush dev eth0")));
        }
        let agents = world.start(FLAGS);
        let pods = world.hosts.iter().map(|host| Pod::on(host, keys)).collect();
        let two = Two { backend, world, agents, pods };
        if mode != "off" {
            two.attached();
        }
        two
    }

    /// Has the uplinks of udp behave as cards do: checksums are computed, which a veth by itself leaves to whoever cares, and
    /// frames put into trains.
    fn like_cards(&self) {
        if self.backend == "udp" {
            self.world.hosts.iter().for_each(|host| drop(host.sh("ethtool -K eth0 tx off gro on")));
        }
    }

    fn attached(&self) {
        self.world.hosts.iter().for_each(|host| on_devices(host, 2));
    }

    /// New agents in place of the old ones, with another mind about the fast path.
    fn again(&mut self, mode: &str) {
        self.again_in(mode, &[]);
    }

    /// The same, in an environment with more in it.
    fn again_in(&mut self, mode: &str, env: &[(&str, &str)]) {
        self.agents.drain(..).for_each(|agent| assert_eq!(agent.terminate(), 0));
        let flag = format!("--fast-path={mode}");
        let start = |host: &Host| {
            let env = [&[("LODEN_STORE", host.store())], env].concat();
            host.agent_in(&[FLAGS, &[&flag]].concat(), &env)
        };
        self.agents = self.world.hosts.iter().map(start).collect();
        self.agents.iter().for_each(|agent| agent.ready());
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
            for network in ["10_244_0_0_16", "fd00_10___48"] {
                let _ = std::fs::remove_dir_all(format!("/sys/fs/bpf/loden/{netns}-{network}"));
            }
        }
    }
}

/// A UDP conversation between two pods: whatever is asked is answered.
struct Talk {
    ask: UdpSocket,
    answer: UdpSocket,
    from: SocketAddr,
    to: SocketAddr,
}

/// An end of a conversation in IPv4.
fn end(address: SocketAddr) -> SocketAddrV4 {
    SocketAddrV4::new(v4(address.ip()), address.port())
}

fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(ip) => panic!("{ip} is not IPv4"),
    }
}

/// A pod's address of a family: 0 is IPv4, 1 IPv6.
fn address(pod: &Pod, family: usize) -> IpAddr {
    *pod.addresses.iter().find(|address| usize::from(address.is_ipv6()) == family).unwrap()
}

/// A port of a pod's address of a family.
fn bound(pod: &Pod, family: usize, port: u16) -> (UdpSocket, SocketAddr) {
    let socket = pod.netns.run(|| UdpSocket::bind((address(pod, family), port))).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

impl Talk {
    fn new(from: &Pod, to: &Pod) -> Talk {
        Talk::by(0, from, to)
    }

    fn by(family: usize, from: &Pod, to: &Pod) -> Talk {
        let ((ask, from), (answer, to)) = (bound(from, family, 0), bound(to, family, 0));
        Talk { ask, answer, from, to }
    }

    /// For ways through user space, which on a busy machine take their time.
    fn patient(self) -> Talk {
        for socket in [&self.ask, &self.answer] {
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        }
        self
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
