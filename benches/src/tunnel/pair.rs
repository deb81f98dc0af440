//! Two hosts with a pod each, as flannel sets them up (bridge, forwarding, masquerade rules and so connections that
//! are followed), joined by a wire and one kind of tunnel.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kernel::Netns;

use super::PLAIN;
use crate::agent::Kept;
use crate::{Options, Result};

/// What carries packets between the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Our tunnel of the backend udp.
    Udp,
    /// One packet per system call: flannel's own proxy where it was given, else one of its shape.
    Plain,
    /// The kernel's VXLAN.
    Vxlan,
    /// Our WireGuard in user space.
    Wireguard,
    /// Another program's.
    OtherWireguard,
    /// What two agents make.
    Agents(Way),
    /// The same by hand, as flannel specifies it (flannel.md 6, 7.4).
    ByHand(Way),
}

/// What the kernel carries by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Vxlan,
    HostGw,
    Ipip,
}

impl Way {
    /// All.
    pub const ALL: [Way; 3] = [Way::Vxlan, Way::HostGw, Way::Ipip];

    /// The word of configurations.
    pub fn word(self) -> &'static str {
        match self {
            Way::Vxlan => "vxlan",
            Way::HostGw => "host-gw",
            Way::Ipip => "ipip",
        }
    }

    /// Whether this kernel has it.
    pub fn is_there(self) -> Result<bool> {
        let probe = match self {
            Way::HostGw => return Ok(true),
            Way::Vxlan => "vxlan id 1 dstport 8472",
            Way::Ipip => "ipip local 192.0.2.1",
        };
        Ok(sh(&Netns::create()?, &format!("ip link add probe type {probe}")).is_ok())
    }
}

/// Two hosts, their pods and what joins them.
pub struct Pair {
    kind: Kind,
    hosts: [Netns; 2],
    /// One on each host.
    pub pods: [Netns; 2],
    processes: Vec<Kept>,
    /// Names of devices that are told apart by their sockets in one folder.
    devices: [String; 2],
}

/// The address of a pod.
pub fn pod(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, number as u8 + 1, 2)
}

/// The address of a host's tunnel.
fn inner(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, number as u8 + 1, 0)
}

impl Pair {
    /// Sets everything up. A `whole` wire takes trains of segments as they are.
    pub fn new(kind: Kind, whole: bool, options: &Options) -> Result<Pair> {
        let hosts = [Netns::create()?, Netns::create()?];
        sh(&hosts[0], "ip link add eth0 type veth peer name other")?;
        sh(&hosts[0], &format!("ip link set other netns {}", hosts[1].path().display()))?;
        sh(&hosts[1], "ip link set other name eth0")?;
        let device = |host: usize| match kind {
            Kind::Wireguard | Kind::OtherWireguard => {
                format!("lb{}{kind:?}{host}", std::process::id() % 100_000).replace("Wireguard", "w")
            }
            Kind::Agents(_) | Kind::ByHand(_) => "flannel.1".to_owned(),
            _ => "flannel0".to_owned(),
        };
        let devices = [0, 1].map(|host| device(host).chars().take(15).collect());
        let pods = [Netns::create()?, Netns::create()?];
        let mut pair = Pair { kind, hosts, pods, processes: Vec::new(), devices };
        for number in [0, 1] {
            pair.host(number, whole)?;
            pair.tunnel(number, options)?;
        }
        if matches!(kind, Kind::Wireguard | Kind::OtherWireguard) {
            pair.keys(options)?;
        }
        wait(|| sh(&pair.pods[0], &format!("ping -n -c 1 -W 1 {}", pod(1))).is_ok())?;
        Ok(pair)
    }

    /// Bytes of a packet inside.
    fn mtu(&self) -> u32 {
        match self.kind {
            Kind::Udp | Kind::Plain => 1472,
            Kind::Vxlan | Kind::Agents(Way::Vxlan) | Kind::ByHand(Way::Vxlan) => 1450,
            Kind::Agents(Way::HostGw) | Kind::ByHand(Way::HostGw) => 1500,
            Kind::Agents(Way::Ipip) | Kind::ByHand(Way::Ipip) => 1480,
            Kind::Wireguard | Kind::OtherWireguard => 1420,
        }
    }

    /// The uplink, the pod, its bridge, and the rules.
    fn host(&self, number: usize, whole: bool) -> Result<()> {
        let (host, mtu, n) = (&self.hosts[number], self.mtu(), number + 1);
        sh(host, "ip link set lo up")?;
        sh(host, "ip link set eth0 up")?;
        sh(host, &format!("ip addr add 192.0.2.{n}/24 dev eth0"))?;
        if !whole {
            sh(host, "ethtool -K eth0 tso off gso off tx-udp-segmentation off")?;
            sh(host, "ethtool -K eth0 gro on")?;
        }
        sh(host, "sysctl -qw net.ipv4.ip_forward=1")?;
        sh(host, "ip link add cni0 type bridge")?;
        let place = self.pods[number].path();
        sh(
            host,
            &format!(
                "ip link add pod mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}",
                place.display()
            ),
        )?;
        sh(host, &format!("ip link set cni0 mtu {mtu} up"))?;
        sh(host, "ip link set pod master cni0 up")?;
        sh(host, &format!("ip addr add 10.244.{n}.1/24 dev cni0"))?;
        let inside = &self.pods[number];
        sh(inside, "ip link set lo up")?;
        sh(inside, "ip link set eth0 up")?;
        sh(inside, &format!("ip addr add {}/24 dev eth0", pod(number)))?;
        sh(inside, &format!("ip route add default via 10.244.{n}.1"))?;
        if matches!(self.kind, Kind::Agents(_)) {
            return Ok(());
        }
        // flannel.md 7.4
        let (own, net) = (format!("10.244.{n}.0/24"), "10.244.0.0/16");
        let rules = format!(
            "table ip flannel-ipv4 {{
                chain postrtg {{
                    type nat hook postrouting priority srcnat;
                    ip saddr {own} ip daddr {net} return
                    ip saddr {net} ip daddr {own} return
                    ip saddr != {own} ip daddr {net} return
                    ip saddr {net} ip daddr != 224.0.0.0/4 masquerade fully-random
                }}
                chain forward {{
                    type filter hook forward priority filter;
                    ip saddr {net} accept
                    ip daddr {net} accept
                }}
            }}"
        );
        fed(host, "nft -f -", &rules).map(drop)
    }

    /// What carries packets to the other host.
    fn tunnel(&mut self, number: usize, options: &Options) -> Result<()> {
        let host = &self.hosts[number];
        let (own, peer) = (number + 1, 2 - number);
        let (mine, theirs) = (inner(number), inner(1 - number));
        let device = &self.devices[number];
        let queues = format!("ip tuntap add {device} mode tun multi_queue vnet_hdr");
        let by_hand = matches!(self.kind, Kind::ByHand(_));
        match self.kind {
            Kind::Agents(way) => {
                let agent = self.agent(number, way, options)?;
                self.processes.push(agent);
                return Ok(());
            }
            Kind::ByHand(Way::HostGw) => {
                return sh(host, &format!("ip route add {theirs}/24 via 192.0.2.{peer} dev eth0"));
            }
            Kind::ByHand(Way::Ipip) => {
                let words = format!("type ipip local 192.0.2.{own} remote any ttl inherit nopmtudisc");
                sh(host, &format!("ip link add {device} {words}"))?;
                sh(host, &format!("ip addr add {mine}/32 dev {device}"))?;
                sh(host, &format!("ip link set {device} txqueuelen 0 mtu {} up", self.mtu()))?;
                return sh(host, &format!("ip route add {theirs}/24 via 192.0.2.{peer} dev {device} onlink"));
            }
            Kind::Udp => {
                sh(host, &queues)?;
                let name = self.hosts[0].path().display().to_string().replace('/', "-");
                let socket = options.folder("tunnel")?.join(format!("{name}.{own}"));
                let mut command = Command::new(options.program("loden")?);
                command.args(["tunnel", "run", device, "--network=10.244.0.0/16"]);
                command.arg(format!("--listen=192.0.2.{own}:8285")).arg(format!("--address={mine}"));
                command.arg(format!("--socket={}", socket.display()));
                self.processes.push(Kept::start(command, host)?);
                let set = [&format!("{theirs}/24"), &format!("192.0.2.{peer}:8285")];
                let mut command = Command::new(options.program("loden")?);
                command.args(["tunnel", "set", device]).args(set).arg("--socket").arg(&socket);
                wait(|| command.output().is_ok_and(|done| done.status.success()))?;
            }
            Kind::Plain => {
                let own_program = std::env::current_exe()?;
                let mut command = Command::new(options.proxy.as_ref().unwrap_or(&own_program));
                command.args([PLAIN, device, &format!("192.0.2.{own}:8285")]);
                command.args([&format!("{theirs}/24"), &format!("192.0.2.{peer}:8285")]);
                self.processes.push(Kept::start(command, host)?);
            }
            Kind::Vxlan | Kind::ByHand(Way::Vxlan) => {
                let words = format!("id 1 local 192.0.2.{own} dev eth0 dstport 8472 nolearning");
                let address = format!("address 02:00:00:00:00:0{own}");
                sh(host, &format!("ip link add {device} {address} type vxlan {words}"))?;
                sh(
                    host,
                    &format!("bridge fdb append 02:00:00:00:00:0{peer} dev {device} dst 192.0.2.{peer}"),
                )?;
            }
            Kind::Wireguard => {
                sh(host, &queues)?;
                let mut command = Command::new(options.program("loden")?);
                command.args(["tunnel", "wireguard", device]);
                self.processes.push(Kept::start(command, host)?);
            }
            Kind::OtherWireguard => {
                let mut command =
                    Command::new(options.wireguard.as_ref().ok_or("no other WireGuard is given")?);
                command.args(["-f", device]);
                self.processes.push(Kept::start(command, host)?);
            }
        }
        wait(|| sh(host, &format!("ip link show {device}")).is_ok())?;
        sh(host, &format!("ip addr add {mine}/32 dev {device}"))?;
        sh(host, &format!("ip link set {device} mtu {} up", self.mtu()))?;
        if by_hand {
            sh(host, &format!("ip link set {device} txqueuelen 0"))?;
        }
        if self.kind == Kind::Vxlan || by_hand {
            let mac = format!("02:00:00:00:00:0{peer}");
            sh(host, &format!("ip neigh replace {theirs} lladdr {mac} dev {device} nud permanent"))?;
            sh(host, &format!("ip route add {theirs}/24 via {theirs} dev {device} onlink"))
        } else {
            sh(host, &format!("ip route add 10.244.0.0/16 dev {device} scope global"))
        }
    }

    /// An agent with the subnet the pod is in; both share a store.
    fn agent(&self, number: usize, way: Way, options: &Options) -> Result<Kept> {
        let host = &self.hosts[number];
        sh(host, "ip route add default via 192.0.2.254")?;
        // A folder for this pair, and in it one for each host.
        let pair = self.hosts[0].path().display().to_string().replace('/', "-");
        let folder = options.folder(&format!("agents{pair}"))?;
        let own = options.folder(&format!("agents{pair}/{number}"))?;
        let store = format!("sqlite:{}", folder.join("leases.db").display());
        let program = options.program("loden")?;
        if number == 0 {
            let config = format!(
                r#"{{"Network":"10.244.0.0/16","EnableNFTables":true,"Backend":{{"Type":"{}"}}}}"#,
                way.word()
            );
            let mut command = Command::new(&program);
            command.args(["config", "put", "-"]).env("LODEN_STORE", &store).stdin(Stdio::piped());
            let mut child = command.spawn()?;
            child.stdin.take().map(|mut input| input.write_all(config.as_bytes()));
            if !child.wait()?.success() {
                return Err("loden config put".into());
            }
        }
        let subnet_file = own.join("subnet.env");
        // The one it had before, and so gets again.
        std::fs::write(&subnet_file, format!("FLANNEL_SUBNET=10.244.{}.1/24\n", number + 1))?;
        let mut command = Command::new(&program);
        command.args(["agent", "--ip-masq"]).arg(format!("--subnet-file={}", subnet_file.display()));
        command.env("LODEN_STORE", &store).env("LODEN_STATE_DIR", own.join("state"));
        command.stdout(Stdio::null()).stderr(std::fs::File::create(own.join("log"))?);
        Kept::start(command, host)
    }

    /// Gives both ends of WireGuard a key and each other.
    fn keys(&self, options: &Options) -> Result<()> {
        let folder = options.folder("wireguard")?;
        let mut keys = Vec::new();
        for number in [0, 1] {
            let private = fed(&self.hosts[number], "wg genkey", "")?;
            let file = folder.join(&self.devices[number]);
            std::fs::write(&file, &private)?;
            keys.push((file, fed(&self.hosts[number], "wg pubkey", &private)?.trim().to_owned()));
        }
        for number in [0, 1] {
            let (device, other) = (&self.devices[number], 1 - number);
            let (file, public) = (keys[number].0.display(), &keys[other].1);
            let peer =
                format!("peer {public} endpoint 192.0.2.{}:51820 allowed-ips {}/24", other + 1, inner(other));
            wait(|| {
                let set = format!("wg set {device} listen-port 51820 private-key {file} {peer}");
                sh(&self.hosts[number], &set).is_ok()
            })?;
        }
        Ok(())
    }

    /// Seconds of processor time of both tunnels.
    pub fn cpu(&self) -> Result<f64> {
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
}

impl Drop for Pair {
    fn drop(&mut self) {
        if matches!(self.kind, Kind::Wireguard | Kind::OtherWireguard) {
            for device in &self.devices {
                // A killed process leaves it behind.
                let _ = std::fs::remove_file(format!("/var/run/wireguard/{device}.sock"));
            }
        }
    }
}

fn sh(host: &Netns, command: &str) -> Result<()> {
    fed(host, command, "").map(drop)
}

/// Runs a command in a namespace with text for it to read; gives what it prints.
fn fed(host: &Netns, command: &str, text: &str) -> Result<String> {
    let mut words = command.split(' ');
    let mut made = Command::new(words.next().unwrap_or_default());
    made.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = host.run(|| made.spawn())?.map_err(|e| format!("{command}: {e}"))?;
    // A command that does not read has ended well or says why.
    child.stdin.take().map(|mut input| input.write_all(text.as_bytes()));
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{command}: {}", String::from_utf8_lossy(&output.stderr)).into())
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
