//! `loden capture` beside `ping`, `tcpdump` and rules that drop.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};

use kernel::Netns;
use serde_json::Value;

use crate::world::{Host, World, sh, until};

const VXLAN: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// A pod with a process that holds its namespace, as a sandbox does.
pub struct Sandbox {
    pub netns: Netns,
    hold: Child,
}

impl Sandbox {
    pub fn hold(netns: Netns) -> Sandbox {
        let hold = netns.run(|| Command::new("sleep").arg("infinity").spawn().unwrap()).unwrap();
        Sandbox { netns, hold }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self.hold.kill();
        let _ = self.hold.wait();
    }
}

/// A pod behind a bridge, as the CNI plugins leave it; gives it and its address.
pub fn pod(host: &Host, number: u8) -> (Sandbox, String) {
    let gateway = host.env("FLANNEL_SUBNET");
    let address = gateway.replace(".1/24", &format!(".{number}"));
    let pod = Netns::create().unwrap();
    if host.try_sh("ip link show cni0").is_err() {
        for command in [
            "ip link add cni0 mtu 1450 type bridge",
            &format!("ip addr add {gateway} dev cni0"),
            "ip link set cni0 up",
        ] {
            host.sh(command);
        }
    }
    for command in [
        &format!("ip link add veth{number} mtu 1450 type veth peer name pod{number} mtu 1450"),
        &format!("ip link set veth{number} master cni0 up"),
        &format!("ip link set pod{number} netns {}", pod.path().display()),
    ] {
        host.sh(command);
    }
    for command in [
        &format!("ip link set pod{number} name eth0"),
        "ip link set lo up",
        "ip link set eth0 up",
        &format!("ip addr add {address}/24 dev eth0"),
        &format!("ip route add default via {}", gateway.trim_end_matches("/24")),
    ] {
        sh(&pod, command);
    }
    (Sandbox::hold(pod), address)
}

/// Waits until a pod reaches an address.
pub fn reaches(pod: &Netns, address: &str) {
    until(&format!("a pod to reach {address}"), || {
        let ping = || Command::new("ping").args(["-c", "1", "-W", "1", address]).output().unwrap();
        let output = pod.run(ping).unwrap();
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stdout).into()) }
    });
}

/// A command that watches, and has said on standard error that it does.
pub struct Watching {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: BufReader<ChildStderr>,
    pub first: String,
}

impl Watching {
    pub fn start(host: &Host, words: &[&str]) -> Watching {
        let mut command = host.loden(words);
        command.env("FLANNELD_SUBNET_FILE", host.subnet_file());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = host.netns.run(|| command.spawn()).unwrap().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut first = String::new();
        stderr.read_line(&mut first).unwrap();
        Watching { child, stdout, stderr, first }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// The next line it prints; empty at the end.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    /// Exit status, standard output, the rest of standard error.
    pub fn end(self) -> (i32, String, String) {
        let (code, out, err) = self.end_bytes();
        (code, String::from_utf8(out).unwrap(), err)
    }

    /// The same for output that is no text.
    fn end_bytes(mut self) -> (i32, Vec<u8>, String) {
        let (mut out, mut err) = (Vec::new(), String::new());
        self.stdout.read_to_end(&mut out).unwrap();
        self.stderr.read_to_string(&mut err).unwrap();
        (self.child.wait().unwrap().code().unwrap_or(-1), out, err)
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ping(pod: &Netns, address: &str, count: &str) {
    let ping =
        || Command::new("ping").args(["-c", count, "-i", "0.05", "-W", "1", address]).output().unwrap();
    pod.run(ping).unwrap();
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

fn devices(packet: &Value) -> Vec<String> {
    let name = |sight: &Value| {
        let (place, device) = (sight["place"].as_str().unwrap(), sight["device"].as_str().unwrap());
        if place == "host" { device.to_owned() } else { format!("pod:{device}") }
    };
    packet["sights"].as_array().unwrap().iter().map(name).collect()
}

#[test]
fn every_hop_of_a_pair_is_recorded() {
    let world = World::with_config(2, VXLAN).quiet();
    let _agents = world.start(&[]);
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    let (near, from) = pod(host, 7);
    let (_far, to) = pod(peer, 8);
    let (other, beside) = pod(host, 9);
    reaches(&near.netns, &to);
    reaches(&near.netns, &beside);
    let file = world.dir.path().join("pair.pcapng");
    let path = file.display().to_string();

    let capture =
        Watching::start(host, &["capture", &from, &to, "icmp", "-w", &path, "-o", "json", "--count", "10"]);
    assert!(capture.first.contains("eth0@") && capture.first.contains("veth7"), "{}", capture.first);
    // Others talk too.
    ping(&other.netns, &from, "3");
    ping(&near.netns, &to, "5");
    let (code, out, err) = capture.end();
    let all = lines(&out);
    assert_eq!((code, all.len()), (0, 11), "{out} {err}");
    assert_eq!(all[10]["summary"]["packets"], 10);
    let there = ["pod:eth0", "veth7", "cni0", "flannel.1", "eth0"];
    for (at, packet) in all[..10].iter().enumerate() {
        let mut want: Vec<&str> = there.to_vec();
        if at % 2 == 1 {
            want.reverse();
        }
        assert_eq!(devices(packet), want, "{packet}");
        let outer = &packet["sights"][if at % 2 == 0 { 4 } else { 0 }];
        assert_eq!((&outer["wraps"][0], &packet["version"]), (&"vxlan vni 1".into(), &1.into()), "{packet}");
        let kind = if at % 2 == 0 { "request" } else { "reply" };
        assert_eq!(packet["what"], format!("icmp echo {kind} seq {}", at / 2 + 1));
    }
    // A foreign reader counts: ten packets at five hops.
    let read = |words: &[&str]| {
        let output = Command::new("tcpdump").args(["-n", "-r", &path]).args(words).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    // What is inside VXLAN it prints in a line of its own.
    let stamped = |line: &&str| line.starts_with(|c: char| c.is_ascii_digit());
    assert_eq!(read(&[]).lines().filter(stamped).count(), 50);
    assert_eq!(
        read(&["-T", "vxlan", "udp port 8472"]).lines().filter(|line| line.contains("VXLAN")).count(),
        10
    );
    assert_eq!(read(&["icmp[icmptype] = icmp-echo"]).lines().count(), 20);
    let bytes = std::fs::read(&file).unwrap();
    let has = |text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
    for text in ["packet 10", "flannel.1", &format!("pod {from}"), "loden capture"] {
        assert!(has(text), "{text}");
    }

    // Pods of one host: the bridge's own device sees nothing.
    let capture = Watching::start(host, &["capture", &from, &beside, "--count", "4"]);
    ping(&near.netns, &beside, "2");
    let (code, out, err) = capture.end();
    let first = out.lines().next().unwrap_or_default();
    assert!(code == 0 && first.contains(&format!("eth0@{from}")), "{out}");
    assert!(first.contains("veth7 +") && first.contains("veth9 +") && !first.contains("cni0"), "{first}");
    assert!(err.contains("4 packets, all of which passed every hop of this host"), "{err}");

    // To a pipe, and the end by a signal.
    let capture = Watching::start(host, &["capture", "host", &beside, "-w", "-"]);
    host.sh(&format!("ping -c 1 -W 1 {beside}"));
    capture.signal("-INT");
    let (code, out, err) = capture.end_bytes();
    assert!(code == 0 && err.contains("2 packets"), "{code} {err}");
    assert_eq!(out[..4], [0x0a, 0x0d, 0x0d, 0x0a]);
}

#[test]
fn every_backend_is_looked_through_or_said_to_be_opaque() {
    for (backend, devices, last, opaque) in [
        (r#""Type":"host-gw""#, "cni0 eth0", "", ""),
        (r#""Type":"udp""#, "cni0 flannel0 eth0", " [udp 8285]", ""),
        (
            r#""Type":"wireguard""#,
            "cni0 flannel-wg",
            "",
            "behind flannel-wg packets are encrypted (WireGuard)",
        ),
    ] {
        if backend.contains("udp") || backend.contains("wireguard") {
            // WireGuard may be in user space.
            if !std::path::Path::new("/dev/net/tun").exists() {
                println!("SKIP {backend}: this kernel has no tun");
                continue;
            }
        }
        let config =
            format!(r#"{{"Network":"10.244.0.0/16","EnableNFTables":true,"Backend":{{{backend}}}}}"#);
        let world = World::with_config(2, &config).quiet();
        let _agents = world.start(&[]);
        let (host, peer) = (&world.hosts[0], &world.hosts[1]);
        let (near, from) = pod(host, 7);
        let (_far, to) = pod(peer, 8);
        reaches(&near.netns, &to);
        let file = world.dir.path().join("pair.pcapng").display().to_string();
        let capture = Watching::start(host, &["capture", &from, &to, "--count", "4", "-w", &file]);
        ping(&near.netns, &to, "2");
        let (code, out, err) = capture.end();
        assert_eq!((code, out.lines().count()), (0, 4), "{backend}: {out} {err}");
        assert!(err.contains(opaque), "{backend}: {err}");
        let line = out.lines().next().unwrap();
        let (_, seen) = line.split_once(" : ").unwrap();
        let bare: Vec<&str> = seen.split(' ').filter(|word| word.starts_with(char::is_alphabetic)).collect();
        let bare: Vec<&str> = bare.into_iter().filter(|word| !["µs", "ms", "s"].contains(word)).collect();
        assert_eq!(bare.join(" "), format!("eth0@{from} veth7 {devices}"), "{backend}: {line}");
        assert!(seen.ends_with(last), "{backend}: {line}");
        // One file, although a TUN device has no link layer.
        let read = Command::new("tcpdump").args(["-n", "-r", &file, "icmp"]).output().unwrap();
        let text = String::from_utf8(read.stdout).unwrap();
        let hops = devices.split(' ').count() + if last.is_empty() { 2 } else { 1 };
        let count = text.lines().filter(|line| line.contains("ICMP echo")).count();
        assert_eq!(count, 4 * hops, "{backend}: {text}");
    }
}

#[test]
fn the_packets_of_ipv6_and_of_ipsec() {
    let dual = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#;
    let world = World::with_config(2, dual).quiet();
    let _agents = world.start(&[]);
    let (near, from) = pod(&world.hosts[0], 7);
    let (far, to) = pod(&world.hosts[1], 8);
    let mut addresses = Vec::new();
    for (host, pod) in world.hosts.iter().zip([&near, &far]) {
        let gateway = host.env("FLANNEL_IPV6_SUBNET");
        let gateway = gateway.trim_end_matches("/64");
        let address = format!("{}2", gateway.trim_end_matches('1'));
        host.sh("sysctl -qw net.ipv6.conf.all.forwarding=1");
        host.sh(&format!("ip addr add {gateway}/64 dev cni0 nodad"));
        sh(&pod.netns, &format!("ip addr add {address}/64 dev eth0 nodad"));
        sh(&pod.netns, &format!("ip -6 route add default via {gateway}"));
        addresses.push(address);
    }
    reaches(&near.netns, &addresses[1]);
    let host = &world.hosts[0];
    let capture = Watching::start(host, &["capture", &addresses[0], &addresses[1], "icmp", "--count", "4"]);
    ping(&near.netns, &addresses[1], "2");
    let (code, out, err) = capture.end();
    assert_eq!(code, 0, "{out} {err}");
    for part in ["flannel-v6.1", "eth0 +", "[vxlan vni 1]", "icmp echo request seq 1, 104 bytes"] {
        assert!(out.lines().next().unwrap().contains(part), "{part}: {out}");
    }

    reaches(&near.netns, &to);
    // A policy that wants ESP; nothing is encrypted here, since the kernel may have none.
    let policy = format!(
        "ip xfrm policy add src {from}/32 dst {to}/32 dir out tmpl src 192.0.2.11 dst 192.0.2.12 proto esp reqid 11 mode tunnel"
    );
    if host.try_sh(&policy).is_err() {
        println!("SKIP the_packets_of_ipv6_and_of_ipsec: this kernel has no IPsec (xfrm_user)");
        return;
    }
    let capture = Watching::start(host, &["capture", &from, &to, "--seconds", "1"]);
    assert!(capture.first.trim_end().ends_with("flannel.1"), "{}", capture.first);
    let (_, _, err) = capture.end();
    assert!(err.contains("packets leave eth0 encrypted (IPsec, ESP)"), "{err}");
}

#[test]
fn the_hop_that_misses_a_packet_is_named() {
    let world = World::with_config(2, VXLAN).quiet();
    let _agents = world.start(&[]);
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    let (near, from) = pod(host, 7);
    let (far, to) = pod(peer, 8);
    reaches(&near.netns, &to);
    let lost = |where_: &Host, hop: &str, rule: &str, chain: &str| {
        let capture = Watching::start(where_, &["capture", &from, &to, "--count", "4"]);
        ping(&near.netns, &to, "1");
        where_.sh("nft add table inet fault");
        where_.sh(&format!("nft add chain inet fault c {{ type filter hook {chain} ; }}"));
        where_.sh(&format!("nft add rule inet fault c {rule} drop"));
        ping(&near.netns, &to, "2");
        where_.sh("nft delete table inet fault");
        let (code, out, err) = capture.end();
        assert_eq!(code, 1, "{out} {err}");
        let missing = out.lines().filter(|line| line.contains(&format!("not seen on {hop}"))).count();
        assert_eq!(missing, 2, "{hop}: {out}");
        assert!(err.contains(&format!("2 lost on this host: 2 not seen on {hop}")), "{err}");
    };
    lost(host, "flannel.1", "ip protocol icmp", "forward priority -5");
    lost(host, "eth0", "udp dport 8472", "output priority 0");
    lost(peer, "flannel.1", "udp dport 8472", "prerouting priority -300");
    lost(peer, "cni0", "ip protocol icmp", "forward priority -5");
    drop(far);

    for (words, want) in [
        (&["--help"][..], ""),
        (&[&from], "needs a source and a destination"),
        (&[&from, "nonsense"], "; of a pod of another host, give the address"),
        (&[&from, "10.244.1.300"], "is neither"),
        (&["10.244.0.1", &to], "is on this host"),
        (&[&from, &to, "80/gre"], "is no PORT/PROTO"),
        (&[&from, "fd00::1"], "no address of the same family"),
        (&[&from, &to, "--count", "0"], "no number from 1 on"),
        (&[&from, &to, "-w", "/proc/nowhere"], "write /proc/nowhere"),
        (&["/proc/version", &to], "/proc/version"),
    ] {
        let mut command = host.loden(&["capture"]);
        command.args(words);
        let output = host.netns.run(|| command.output()).unwrap().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        let code = output.status.code();
        assert_eq!(code, Some(if want.is_empty() { 0 } else { 2 }), "{words:?}: {text}");
        assert!(text.contains(want), "{words:?}: {text}");
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]);
    command.args([env!("CARGO_BIN_EXE_loden"), "capture", &from, &to]);
    let output = host.netns.run(|| command.output()).unwrap().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
}

#[test]
fn trains_of_tcp_are_one_packet() {
    let world = World::with_config(2, VXLAN).quiet();
    let _agents = world.start(&[]);
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    let (near, from) = pod(host, 7);
    let (far, to) = pod(peer, 8);
    reaches(&near.netns, &to);
    let listener = far.netns.run(|| std::net::TcpListener::bind((to.as_str(), 8080))).unwrap().unwrap();
    let capture = Watching::start(host, &["capture", &from, &to, "8080/tcp", "-o", "json", "--seconds", "3"]);
    let sent = vec![b'x'; 300_000];
    std::thread::scope(|scope| {
        let taker = scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut got = Vec::new();
            stream.read_to_end(&mut got).unwrap();
            got.len()
        });
        let mut stream =
            near.netns.run(|| std::net::TcpStream::connect((to.as_str(), 8080))).unwrap().unwrap();
        std::io::Write::write_all(&mut stream, &sent).unwrap();
        drop(stream);
        assert_eq!(taker.join().unwrap(), sent.len());
    });
    let (code, out, err) = capture.end();
    let all = lines(&out);
    assert_eq!(code, 0, "{err} {}", all.last().unwrap());
    let length = |packet: &Value| {
        let what = packet["what"].as_str().unwrap_or_default();
        what.rsplit_once(" length ").map_or(0, |(_, length)| length.parse::<usize>().unwrap())
    };
    let forward = all.iter().filter(|packet| packet["forward"] == true);
    assert_eq!(forward.map(length).sum::<usize>(), sent.len());
}
