//! The backend udp between hosts: what it looks like, what it carries, what it survives and whom it believes.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::traffic::{Pings, Pod};
use crate::world::{Host, World, until};

const UDP: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp"}}"#;

pub fn has_tun(test: &str) -> bool {
    let there = Path::new("/dev/net/tun").exists();
    if !there {
        println!("SKIP {test}: this kernel has no TUN devices");
    }
    there
}

/// A host's address on `flannel0`.
fn own(host: &Host) -> IpAddr {
    host.subnet("FLANNEL_SUBNET").network()
}

fn greets(host: &Host, peer: &Host) {
    let from = until("the tunnel to carry traffic", || host.greet(peer, own(peer)));
    assert_eq!(from, own(host), "no address translation inside");
}

/// What `loden tunnel show` says.
fn show(host: &Host) -> Result<String, String> {
    let socket = host.tunnels().pop().ok_or("no tunnel")?;
    let output = host.loden(&["tunnel", "show", "flannel0", "--socket", &socket]).output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

fn count(host: &Host, name: &str) -> u64 {
    let text = show(host).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("count {name} ")));
    line.map_or(0, |n| n.parse().unwrap())
}

/// The process of a host's tunnel, found by the socket in its arguments.
fn process(host: &Host) -> Result<u32, String> {
    let socket = format!("--socket={}", host.dir.join("flannel0.tunnel").display());
    let is_it = |pid: &u32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let runs = fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
        runs && words.split(|b| *b == 0).any(|word| word == socket.as_bytes())
    };
    let all = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(is_it).ok_or_else(|| format!("no process with {socket}"))
}

/// Device, address and route as flannel has them.
fn looks_right(host: &Host) -> Result<(), String> {
    let shown = host.try_sh("ip -d -j link show flannel0")?;
    let link = serde_json::from_str::<Value>(&shown).map_err(|e| e.to_string())?[0].clone();
    let up = link["flags"].as_array().is_some_and(|flags| flags.contains(&"LOWER_UP".into()));
    if link["linkinfo"]["info_kind"] != "tun" || link["mtu"] != 1472 || !up {
        return Err(link.to_string());
    }
    let address = host.try_sh("ip -4 addr show dev flannel0")?;
    if !address.contains(&format!("inet {}/32 scope global flannel0", own(host))) {
        return Err(address);
    }
    let routes = host.try_sh("ip -N -4 route show dev flannel0")?;
    let wanted = "10.244.0.0/16 proto 76 scope 0";
    if routes.contains(wanted) || routes.contains("10.244.0.0/16 proto 76 ") && !routes.contains("scope") {
        Ok(())
    } else {
        Err(routes)
    }
}

#[test]
fn hosts_reach_each_other() {
    if !has_tun("udp::hosts_reach_each_other") {
        return;
    }
    let world = World::with_config(3, UDP);
    let agents = world.start(&["--ip-masq"]);
    for host in &world.hosts {
        until("the device", || looks_right(host));
        assert_eq!(host.env("FLANNEL_MTU"), "1472");
        world.hosts.iter().filter(|peer| peer.number != host.number).for_each(|peer| greets(host, peer));
    }
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    // A hop on each side, as with flannel.
    let ping = host.sh(&format!("ping -n -c 1 -W 5 {}", own(peer)));
    assert!(ping.contains("ttl=62"), "{ping}");
    // Senders are told.
    for (words, answer) in [("-t 1", "Time to live exceeded"), ("-t 2", "Time to live exceeded")] {
        let output = host.netns.run(|| {
            let mut command = std::process::Command::new("ping");
            let words = words.split(' ').chain(["-n", "-c", "1", "-W", "5"]);
            command.args(words).arg(own(peer).to_string()).env("LC_ALL", "C").output()
        });
        let text = String::from_utf8(output.unwrap().unwrap().stdout).unwrap();
        assert!(text.contains(answer), "{words}: {text}");
    }
    let nobody = host.netns.run(|| {
        let mut command = std::process::Command::new("ping");
        command.args(["-n", "-c", "1", "-W", "5", "10.244.255.9"]).env("LC_ALL", "C").output()
    });
    let text = String::from_utf8(nobody.unwrap().unwrap().stdout).unwrap();
    assert!(text.contains(&format!("From {} icmp_seq=1 Destination Net Unreachable", own(host))), "{text}");
    // A peer that leaves is no peer any more.
    drop(agents);
    let mut agents: Vec<_> = world.hosts[..2].iter().map(|host| host.agent(&["--ip-masq"])).collect();
    agents.iter().for_each(crate::world::Agent::ready);
    let gone = own(&world.hosts[2]);
    let connection = rusqlite::Connection::open(world.dir.path().join("leases.db")).unwrap();
    connection.execute("DELETE FROM lease WHERE key = ?1", [format!("{gone}-24")]).unwrap();
    until("the peer to be forgotten", || {
        let text = show(host)?;
        if text.contains(&format!("peer {gone}/24")) { Err(text) } else { Ok(()) }
    });
    greets(host, peer);
    assert!(agents.iter_mut().all(crate::world::Agent::alive));
}

#[test]
fn without_a_backend_it_is_udp_and_said() {
    if !has_tun("udp::without_a_backend_it_is_udp_and_said") {
        return;
    }
    let world = World::with_config(1, r#"{"Network":"10.244.0.0/16"}"#);
    let agents = world.start(&[]);
    agents[0].says("the network config has no Backend, which means \"udp\"");
    until("the device", || looks_right(&world.hosts[0]));
    // A foreign device of the name is left alone.
    let world = World::with_config(1, UDP);
    let host = &world.hosts[0];
    host.sh("ip link add flannel0 type bridge");
    let agent = host.agent(&[]);
    agent.ready();
    assert!(host.sh("ip -d link show flannel1").contains("tun"));
    assert!(host.sh("ip -d link show flannel0").contains("bridge"));
}

/// Not one packet is lost when agents end, come again or are killed, nor when a tunnel is replaced.
#[test]
fn a_tunnel_outlives_its_agent() {
    if !has_tun("udp::a_tunnel_outlives_its_agent") {
        return;
    }
    let world = World::with_config(2, UDP);
    let mut agents = world.start(&[]);
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    greets(host, peer);
    let pods = [Pod::on(host, &["FLANNEL_SUBNET"]), Pod::on(peer, &["FLANNEL_SUBNET"])];
    let tunnel = process(host).unwrap();
    let pings = Pings::start(&pods[0], pods[1].addresses[0]);
    pings.more(20);
    for force in [false, true] {
        let agent = agents.remove(0);
        if force {
            agent.kill();
        } else {
            assert_eq!(agent.terminate(), 0);
        }
        pings.more(20);
        fs::remove_file(host.dir.join("log")).unwrap();
        let again = host.agent(&[]);
        again.ready();
        pings.more(20);
        agents.insert(0, again);
        assert_eq!(process(host), Ok(tunnel), "adopted, not made anew");
    }
    // As an agent of another version does it: the new process takes everything over.
    let socket = host.tunnels().pop().unwrap();
    let mut command =
        host.loden(&["tunnel", "run", "flannel0", "--take-over", "--detach", "--socket", &socket]);
    command.args(["--network", "10.244.0.0/16", "--listen", &format!("{}:8285", host.public())]);
    command.args(["--address", &own(host).to_string()]);
    let mut other = host.netns.run(|| command.spawn()).unwrap().unwrap();
    until("another process", || match process(host) {
        Ok(pid) if pid == tunnel => Err("the same".to_owned()),
        _ => Ok(()),
    });
    pings.more(50);
    assert!(show(host).unwrap().contains(&format!("peer {}/24", own(peer))), "its peers too");
    assert_eq!(agents[0].count("loden tunnel run"), 0, "the agent has nothing to do");
    let (answered, lost) = pings.finish();
    assert!(lost.is_empty(), "{lost:?} of {answered} lost");
    drop(agents);
    let _ = host.loden(&["tunnel", "stop", "flannel0", "--socket", &socket]).output();
    other.wait().unwrap();
}

#[test]
fn whatever_is_damaged_comes_back() {
    if !has_tun("udp::whatever_is_damaged_comes_back") {
        return;
    }
    let world = World::with_config(2, UDP);
    let _agents = world.start(&[]);
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    greets(host, peer);
    let damages: [(&str, &dyn Fn()); 9] = [
        ("the tunnel is killed", &|| drop(host.sh(&format!("kill -KILL {}", process(host).unwrap())))),
        ("the tunnel hangs", &|| drop(host.sh(&format!("kill -STOP {}", process(host).unwrap())))),
        ("its socket is gone", &|| fs::remove_file(host.dir.join("flannel0.tunnel")).unwrap()),
        ("a peer is gone", &|| {
            let socket = host.dir.join("flannel0.tunnel").display().to_string();
            let net = host_net(peer);
            let words = ["tunnel", "delete", "flannel0", &net, "--socket", &socket];
            assert!(host.loden(&words).status().unwrap().success());
            // Nobody tells of it: the next look finds it.
            host.status(&[]);
        }),
        ("the device is deleted", &|| drop(host.sh("ip link del flannel0"))),
        ("the device is down", &|| drop(host.sh("ip link set flannel0 down"))),
        ("another MTU", &|| drop(host.sh("ip link set flannel0 mtu 1000"))),
        ("the address is gone", &|| drop(host.sh(&format!("ip addr del {}/32 dev flannel0", own(host))))),
        ("the route is gone", &|| drop(host.sh("ip route del 10.244.0.0/16 dev flannel0"))),
    ];
    for (what, damage) in damages {
        let before = process(host);
        damage();
        if what == "the tunnel hangs" {
            host.status(&[]);
        }
        let another =
            ["the tunnel is killed", "the tunnel hangs", "its socket is gone", "the device is deleted"];
        until(&format!("repair after: {what}"), || {
            if another.contains(&what) && process(host) == before {
                return Err("the same process".to_owned());
            }
            show(host)?;
            looks_right(host)?;
            host.greet(peer, own(peer))
        });
    }
    // Another address of the host: the device stays, peers follow.
    let index = host.json("ip -j link show flannel0")[0]["ifindex"].clone();
    host.sh("sysctl -qw net.ipv4.conf.eth0.promote_secondaries=1");
    host.sh("ip addr add 192.0.2.77/24 dev eth0");
    host.sh("ip addr del 192.0.2.11/24 dev eth0");
    until("the tunnel to listen elsewhere", || {
        let text = show(host)?;
        if text.contains("listen 192.0.2.77:8285") {
            host.greet(peer, own(peer)).map(drop)
        } else {
            Err(text)
        }
    });
    assert_eq!(host.json("ip -j link show flannel0")[0]["ifindex"], index, "the same device");
}

fn host_net(host: &Host) -> String {
    format!("{}/24", own(host))
}

/// Sends so much from one end to the other over TCP and compares the digests.
fn transfer(from: &Host, to: &Host, bytes: usize) {
    let listener = to.netns.run(|| TcpListener::bind((own(to), 0))).unwrap().unwrap();
    let target = listener.local_addr().unwrap();
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut digest, mut total, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 16]);
        loop {
            match stream.read(&mut buffer).unwrap() {
                0 => return (total, digest.finalize()),
                n => {
                    digest.update(&buffer[..n]);
                    total += n;
                }
            }
        }
    });
    let mut stream = from.netns.run(|| TcpStream::connect(target)).unwrap().unwrap();
    let (mut digest, mut sent, mut seed) = (Sha256::new(), 0, 88_172_645_463_325_252_u64);
    while sent < bytes {
        let mut chunk = vec![0; 50_000];
        for word in chunk.chunks_mut(8) {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            word.copy_from_slice(&seed.to_ne_bytes()[..word.len()]);
        }
        digest.update(&chunk);
        stream.write_all(&chunk).unwrap();
        sent += chunk.len();
    }
    drop(stream);
    assert!(receiver.join().unwrap() == (sent, digest.finalize()), "the same bytes on both ends");
}

#[test]
fn everything_arrives_whole() {
    if !has_tun("udp::everything_arrives_whole") {
        return;
    }
    let world = World::with_config(2, UDP);
    let _agents = world.start(&[]);
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    greets(host, peer);
    // A wire that takes trains, and one where each frame goes alone.
    for alone in [false, true] {
        if alone {
            for host in &world.hosts {
                host.sh("ethtool -K eth0 tso off gso off tx-udp-segmentation off");
                host.sh("ethtool -K eth0 gro on");
            }
        }
        transfer(host, peer, 20_000_000);
        transfer(peer, host, 20_000_000);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| transfer(host, peer, 4_000_000));
                scope.spawn(|| transfer(peer, host, 4_000_000));
            }
        });
        sizes(host, peer);
        for size in [0, 1, 1444, 1445, 9000, 65_000] {
            host.sh(&format!("ping -n -c 2 -i 0.01 -W 5 -s {size} {}", own(peer)));
        }
    }
    assert!(count(host, "in-packets") > 0);
    assert_eq!(count(host, "in-malformed") + count(host, "in-foreign") + count(host, "out-malformed"), 0);
}

/// Receives, whatever signals come meanwhile.
fn take(socket: &UdpSocket, buffer: &mut [u8]) -> (usize, SocketAddr) {
    loop {
        match socket.recv_from(buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            other => return other.unwrap(),
        }
    }
}

/// Datagrams of all sizes come back as they were, one by one and in bursts.
fn sizes(host: &Host, peer: &Host) {
    let server = peer.netns.run(|| UdpSocket::bind((own(peer), 0))).unwrap().unwrap();
    server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let target = server.local_addr().unwrap();
    let client = host.netns.run(|| UdpSocket::bind((own(host), 0))).unwrap().unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut buffer = vec![0; 70_000];
    let sizes: Vec<usize> = (0..200).chain((1400..1500).step_by(7)).chain([2_000, 9_000, 65_507]).collect();
    for burst in [1, 10] {
        for size in &sizes {
            // The room of a socket is what it is.
            let burst = if *size > 2000 { 1 } else { burst };
            let data: Vec<u8> = (0..*size).map(|n| (n * 31 + size) as u8).collect();
            (0..burst).for_each(|_| assert_eq!(client.send_to(&data, target).unwrap(), *size));
            for _ in 0..burst {
                let (length, from) = take(&server, &mut buffer);
                assert!(buffer[..length] == data, "{size} bytes there");
                server.send_to(&buffer[..length], from).unwrap();
            }
            for _ in 0..burst {
                let (length, _) = take(&client, &mut buffer);
                assert!(buffer[..length] == data, "{size} bytes back");
            }
        }
    }
}

/// An IPv4 packet with a UDP datagram, as anybody could make it.
fn forged(source: Ipv4Addr, target: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let IpAddr::V4(to) = target.ip() else { panic!("IPv4") };
    let mut packet = vec![0x45, 0];
    packet.extend((28 + payload.len() as u16).to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet.extend(source.octets());
    packet.extend(to.octets());
    let sum = packet.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum::<u32>();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(9999u16.to_be_bytes());
    packet.extend(target.port().to_be_bytes());
    packet.extend((8 + payload.len() as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

#[test]
fn only_peers_are_believed_and_only_what_is_theirs() {
    if !has_tun("udp::only_peers_are_believed_and_only_what_is_theirs") {
        return;
    }
    let world = World::with_config(3, UDP);
    let agents: Vec<_> = world.hosts[..2].iter().map(|host| host.agent(&[])).collect();
    agents.iter().for_each(crate::world::Agent::ready);
    let (host, peer, stranger) = (&world.hosts[0], &world.hosts[1], &world.hosts[2]);
    greets(host, peer);
    let service = host.netns.run(|| UdpSocket::bind((own(host), 0))).unwrap().unwrap();
    service.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let target = service.local_addr().unwrap();
    let port: SocketAddr = format!("{}:8285", host.public()).parse().unwrap();
    let IpAddr::V4(peers) = own(peer) else { panic!("IPv4") };
    let send = |from: &Host, source: Ipv4Addr, text: &str| {
        let socket = from.netns.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
        socket.send_to(&forged(source, target, text.as_bytes()), port).unwrap();
    };
    let elsewhere = Ipv4Addr::new(10, 244, 200, 7);
    send(stranger, peers, "a stranger with the address of a peer");
    until("the stranger to be noticed", || match count(host, "in-stranger") {
        0 => Err("not yet".to_owned()),
        _ => Ok(()),
    });
    send(peer, elsewhere, "a peer with somebody else's address");
    send(peer, Ipv4Addr::LOCALHOST, "a peer with an address of nobody");
    until("the forged addresses to be noticed", || match count(host, "in-foreign") {
        2 => Ok(()),
        n => Err(n.to_string()),
    });
    // Nonsense of all kinds from a peer, then the truth: from its own subnet, and passed on from outside.
    let socket = peer.netns.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    let mut seed = 1u64;
    for n in 0..3000u64 {
        let mut packet = forged(peers, target, &[0x55; 100]);
        for _ in 0..1 + n % 5 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Only where it shows: a damaged payload without a checksum would be somebody's mail.
            packet[(seed >> 33) as usize % 20] ^= 1 << (seed >> 61);
        }
        packet.truncate(if n % 7 == 0 { (seed >> 40) as usize % 20 } else { packet.len() });
        let _ = socket.send_to(&packet, port);
    }
    let tunnel = process(host).unwrap();
    // Only a datagram whose damage cancelled itself out may get through.
    send(peer, peers, "the truth");
    until("the truth", || {
        let mut buffer = [0; 2000];
        let (length, _) = take(&service, &mut buffer);
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        assert!(text == "the truth" || text.bytes().all(|b| b == 0x55), "{text}");
        if text == "the truth" { Ok(()) } else { Err("damage that cancelled itself out".to_owned()) }
    });
    assert!(count(host, "in-malformed") > 2000);
    greets(host, peer);
    assert_eq!(process(host), Ok(tunnel), "still the same process");
}

/// A host that cannot be reached, however much is sent to it, does not stop what is for others.
#[test]
fn a_peer_that_is_gone_holds_nobody_up() {
    if !has_tun("udp::a_peer_that_is_gone_holds_nobody_up") {
        return;
    }
    let world = World::with_config(3, UDP);
    let _agents = world.start(&[]);
    let (host, peer, gone) = (&world.hosts[0], &world.hosts[1], &world.hosts[2]);
    greets(host, peer);
    let dead = own(gone);
    gone.sh("ip link set eth0 down");
    host.sh("ip neigh flush dev eth0");
    let pods = [Pod::on(host, &["FLANNEL_SUBNET"]), Pod::on(peer, &["FLANNEL_SUBNET"])];
    let pings = Pings::start(&pods[0], pods[1].addresses[0]);
    pings.more(5);
    let socket = host.netns.run(|| UdpSocket::bind((own(host), 0))).unwrap().unwrap();
    for _ in 0..60 {
        // Much more in all than the neighbour's queue holds; at once less than the device's.
        (0..250).for_each(|_| drop(socket.send_to(&[0; 1444], (dead, 9))));
        pings.more(3);
    }
    transfer(host, peer, 2_000_000);
    let (answered, lost) = pings.finish();
    assert!(lost.is_empty(), "{lost:?} of {answered} lost");
}

/// On a busy machine: what pods send while it is not its turn waits for it.
#[test]
fn a_tunnel_that_has_to_wait_loses_nothing() {
    if !has_tun("udp::a_tunnel_that_has_to_wait_loses_nothing") {
        return;
    }
    const SENT: u32 = 1500;
    let world = World::with_config(2, UDP);
    let _agents = world.start(&[]);
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    greets(host, peer);
    let bound = |host: &Host| host.netns.run(|| UdpSocket::bind((own(host), 0))).unwrap().unwrap();
    let (from, to) = (bound(host), bound(peer));
    set_socket_recv_buffer_size_force(&to, 16 << 20).unwrap();
    let tunnel = process(host).unwrap();
    host.sh(&format!("kill -STOP {tunnel}"));
    until("the tunnel to stand still", || {
        let threads = fs::read_dir(format!("/proc/{tunnel}/task")).unwrap().flatten();
        let mut stats =
            threads.map(|thread| fs::read_to_string(thread.path().join("stat")).unwrap_or_default());
        stats.find(|stat| !stat.contains(") T ")).map_or(Ok(()), Err)
    });
    for number in 0..SENT {
        from.send_to(&number.to_be_bytes(), to.local_addr().unwrap()).unwrap();
    }
    host.sh(&format!("kill -CONT {tunnel}"));
    to.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    for number in 0..SENT {
        let mut bytes = [0; 4];
        to.recv(&mut bytes).unwrap_or_else(|error| panic!("{number}: {error}"));
        assert_eq!(u32::from_be_bytes(bytes), number);
    }
}

/// The format as flannel's proxy has it: an IPv4 packet and nothing before it, a hop less, from port to port.
#[test]
fn the_wire_format_is_flannels() {
    if !has_tun("udp::the_wire_format_is_flannels") {
        return;
    }
    let world = World::with_config(2, r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp","Port":7777}}"#);
    let agents = world.start(&[]);
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    // In place of the peer's tunnel: bytes.
    let [host_agent, peer_agent] = <[_; 2]>::try_from(agents).unwrap_or_else(|_| panic!("two agents"));
    peer_agent.kill();
    let socket = peer.tunnels().pop().unwrap();
    assert!(peer.loden(&["tunnel", "stop", "flannel0", "--socket", &socket]).status().unwrap().success());
    let proxy = until("the port to be free", || {
        peer.netns
            .run(|| UdpSocket::bind(format!("{}:7777", peer.public())))
            .unwrap()
            .map_err(|e| e.to_string())
    });
    proxy.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let client = host.netns.run(|| UdpSocket::bind((own(host), 5000))).unwrap().unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    client.send_to(b"hello", (own(peer), 6000)).unwrap();
    let mut buffer = [0; 2000];
    let (length, from) = take(&proxy, &mut buffer);
    assert_eq!(from.to_string(), format!("{}:7777", host.public()));
    let (IpAddr::V4(source), IpAddr::V4(target)) = (own(host), own(peer)) else { panic!("IPv4") };
    let mut wanted = forged(source, SocketAddr::new(target.into(), 6000), b"hello");
    // Identification, hops and checksums are looked at by themselves; ports are the program's.
    let (id, sums) = ([buffer[4], buffer[5]], [buffer[26], buffer[27]]);
    wanted[4..6].copy_from_slice(&id);
    (wanted[8], wanted[20], wanted[21]) = (63, (5000u16 >> 8) as u8, 5000u16 as u8);
    wanted[10..12].fill(0);
    let sum = wanted[..20].chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum::<u32>();
    wanted[10..12].copy_from_slice(&(!(((sum & 0xffff) + (sum >> 16)) as u16)).to_be_bytes());
    wanted[26..28].copy_from_slice(&sums);
    assert_eq!(buffer[..length], wanted);
    assert_ne!(sums, [0, 0], "the kernel's checksum is completed");
    // The way back, as flanneld's proxy writes it.
    let back = forged(target, SocketAddr::new(source.into(), 5000), b"welcome");
    proxy.send_to(&back, from).unwrap();
    let (length, from) = take(&client, &mut buffer);
    assert_eq!((&buffer[..length], from), (&b"welcome"[..], SocketAddr::new(target.into(), 9999)));
    drop(host_agent);
}

#[test]
fn cleanup_ends_it() {
    if !has_tun("udp::cleanup_ends_it") {
        return;
    }
    let world = World::with_config(1, UDP);
    let host = &world.hosts[0];
    let agent = host.agent(&[]);
    agent.ready();
    assert_eq!(agent.terminate(), 0);
    assert!(process(host).is_ok());
    let subnet_file = format!("--subnet-file={}", host.subnet_file().display());
    let mut command = host.loden(&["cleanup", &subnet_file]);
    let output = host.netns.run(|| command.output()).unwrap().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
    for act in ["loden tunnel stop flannel0", "ip link delete flannel0", "ip route delete 10.244.0.0/16"] {
        assert!(text.contains(act), "{act}: {text}");
    }
    // It is told to end, and on a busy machine that takes it a moment.
    until("the process to be gone", || {
        if process(host).is_err() { Ok(()) } else { Err("it is there".to_owned()) }
    });
    assert!(host.try_sh("ip link show flannel0").is_err());
    assert!(host.tunnels().is_empty());
}
