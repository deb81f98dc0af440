//! The backend wireguard between hosts: in the kernel where it has WireGuard (the guest of `cargo xtask vm`), in user
//! space elsewhere. `wg` and captures on the wire are the witnesses.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};

use model::IpNet;

use crate::world::{Agent, Host, World, run, until};

const V4: &str = r#""Network":"10.244.0.0/16""#;
const V6: &str = r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:244::/48""#;
const DUAL: &str = r#""Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48""#;

/// What carries tunnels here; nothing, and a note that the test is skipped, where nothing does.
fn carrier(test: &str) -> Option<&'static str> {
    let world = World::new(1);
    if world.hosts[0].try_sh("ip link add probe type wireguard").is_ok() {
        return Some("kernel");
    }
    if std::path::Path::new("/dev/net/tun").exists() {
        return Some("user space");
    }
    println!("SKIP {test}: this kernel has neither wireguard nor tun");
    None
}

/// Whether something does; a note that the test is skipped, if not.
pub fn available(test: &str) -> bool {
    carrier(test).is_some()
}

fn world(hosts: usize, network: &str, backend: &str) -> World {
    // Programs of iptables take seconds each where the kernel is emulated.
    World::with_config(
        hosts,
        &format!(r#"{{{network},"EnableNFTables":true,"Backend":{{"Type":"wireguard"{backend}}}}}"#),
    )
}

fn agent(host: &Host) -> Agent {
    host.agent(&["--ip-masq"])
}

fn start(world: &World) -> Vec<Agent> {
    let agents: Vec<Agent> = world.hosts.iter().map(agent).collect();
    agents.iter().for_each(Agent::ready);
    agents
}

/// Addresses of the pods' networks of a host, one of each family it has.
fn inside(host: &Host) -> Vec<IpAddr> {
    let text = std::fs::read_to_string(host.subnet_file()).unwrap();
    let keys = ["FLANNEL_SUBNET=", "FLANNEL_IPV6_SUBNET="];
    let nets = keys.iter().filter_map(|key| text.lines().find_map(|line| line.strip_prefix(key)));
    nets.map(|net| net.parse::<IpNet>().unwrap().network()).collect()
}

/// Waits until pods' networks reach each other, in each family.
fn reach(from: &Host, to: &Host) {
    for (address, own) in inside(to).into_iter().zip(inside(from)) {
        let seen = until(&format!("the tunnel to carry traffic to {address}"), || from.greet(to, address));
        assert_eq!(seen, own, "no address translation inside");
    }
}

/// What `wg` prints on a host. It looks for sockets in one place, which is made the host's own.
pub fn wg_sh(host: &Host, words: &str) -> String {
    std::fs::create_dir_all("/run/wireguard").unwrap();
    let sockets = host.dir.join("wireguard");
    let command = format!("mount --bind {} /run/wireguard && wg {words}", sockets.display());
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--propagation", "private", "bash", "-c", &command]);
    host.netns.run(|| run(unshare, &command)).unwrap()
}

/// A column of `wg show DEV what` beside a peer's key.
fn wg(host: &Host, dev: &str, what: &str, key: &str) -> String {
    let text = wg_sh(host, &format!("show {dev} {what}"));
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap_or_else(|| panic!("{key} is not in {text:?}")).trim().to_owned()
}

/// The tunnels' names and indices.
fn links(host: &Host) -> Vec<String> {
    let text = host.sh("ip -o link");
    text.lines()
        .filter_map(|line| line.split(": <").next())
        .filter(|l| l.contains("flannel-wg"))
        .map(str::to_owned)
        .collect()
}

/// The process behind a host's tunnel: the one started with its socket.
fn pid(host: &Host) -> Option<u32> {
    let socket = host.dir.join("wireguard/flannel-wg.sock").display().to_string();
    let is = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&format!("--socket={socket}")) && alive(*pid)
    };
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(is)
}

/// Whether a process runs; one that only waits to be reaped does not.
fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

fn public_key(host: &Host, dev: &str) -> String {
    wg_sh(host, &format!("show {dev} public-key")).trim().to_owned()
}

/// Everything that passes a host's wire, while it lives.
struct Capture(Child, std::path::PathBuf);

impl Capture {
    fn on(host: &Host) -> Capture {
        let file = host.dir.join("capture");
        let said = host.dir.join("capture.log");
        let mut command = Command::new("tcpdump");
        command.args(["-i", "eth0", "-nn", "-U", "--immediate-mode", "-Z", "root", "-w"]).arg(&file);
        command.stdout(Stdio::null()).stderr(std::fs::File::create(&said).unwrap());
        let capture = Capture(host.netns.run(|| command.spawn()).unwrap().unwrap(), file);
        until("tcpdump to listen", || {
            // Something it can hear.
            host.try_sh("ping -c1 -W1 192.0.2.254").ok();
            let heard = capture.text("").is_ok_and(|text| !text.is_empty());
            if heard { Ok(()) } else { Err(std::fs::read_to_string(&said).unwrap()) }
        });
        capture
    }

    /// What a filter finds so far, one packet a line; an error while the last packet is only half written.
    fn text(&self, filter: &str) -> Result<String, String> {
        let mut command = Command::new("tcpdump");
        command.args(["-nn", "-t", "-Z", "root", "-r"]).arg(&self.1).args(filter.split_whitespace());
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// The same, waited for.
    fn found(&self, filter: &str) -> String {
        until("a whole capture", || self.text(filter))
    }

    /// The bytes of all packets.
    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.1).unwrap()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Fails if a packet of pods' networks, or what they say, is on the wire.
fn nothing_in_the_clear(capture: &Capture) {
    let inner = capture.found("net 10.244.0.0/16 or net fd00:10:244::/48");
    assert_eq!(inner, "", "in the clear");
    assert!(!capture.bytes().windows(5).any(|bytes| bytes == b"hello"), "the text itself is on the wire");
}

#[test]
fn wireguard_carries_each_mode_and_family() {
    if !available("wireguard_carries_each_mode_and_family") {
        return;
    }
    for (name, network, backend, devices, outer) in [
        ("one family", V4, "", &["flannel-wg:51820"][..], "ip and udp port 51820"),
        ("the other", V6, r#","ListenPortV6":5001"#, &["flannel-wg-v6:5001"], "ip6 and udp port 5001"),
        (
            "both",
            DUAL,
            r#","PersistentKeepaliveInterval":25"#,
            &["flannel-wg:51820", "flannel-wg-v6:51821"],
            "udp and (port 51820 or port 51821)",
        ),
        ("auto", DUAL, r#","Mode":"auto""#, &["flannel-wg:51820"], "ip and udp port 51820"),
        (
            "over IPv4",
            DUAL,
            r#","Mode":"ipv4","ListenPort":5000"#,
            &["flannel-wg:5000"],
            "ip and udp port 5000",
        ),
        ("over IPv6", DUAL, r#","Mode":"ipv6""#, &["flannel-wg:51820"], "ip6 and udp port 51820"),
    ] {
        let world = world(2, network, backend).quiet();
        let _agents = start(&world);
        let (one, two) = (&world.hosts[0], &world.hosts[1]);
        let capture = Capture::on(one);
        reach(one, two);
        reach(two, one);
        for device in devices {
            let (dev, port) = device.split_once(':').unwrap();
            assert_eq!(wg_sh(one, &format!("show {dev} listen-port")).trim(), port, "{name}");
            let alive = if backend.contains("Keepalive") { "25" } else { "off" };
            assert_eq!(wg(one, dev, "persistent-keepalive", &public_key(two, dev)), alive, "{name}");
            assert!(one.sh(&format!("ip link show {dev}")).contains("mtu 1420"), "{name}");
        }
        assert_eq!(wg_sh(one, "show interfaces").split_whitespace().count(), devices.len(), "{name}");
        assert_eq!(one.env("FLANNEL_MTU"), "1420");
        let tunnelled = capture.found(outer);
        assert!(tunnelled.lines().count() > 3, "{name}: {tunnelled}");
        let other = capture.found(&format!("udp and not ({outer}) and not port 5353"));
        assert_eq!(other, "", "{name}: no tunnel elsewhere");
        nothing_in_the_clear(&capture);
        for (net, dev) in inside(one).iter().zip(devices.iter().cycle()) {
            let family = if net.is_ipv4() { ("10.244.0.0/16", "-4") } else { ("fd00:10:244::/48", "-6") };
            let route = &one.json(&format!("ip -j {} route show {}", family.1, family.0))[0];
            let dev = dev.split(':').next().unwrap();
            assert_eq!((&route["dev"], &route["protocol"]), (&dev.into(), &"76".into()), "{name}: {route}");
        }
    }
}

#[test]
fn wireguard_says_what_carries_it_and_never_a_key() {
    let Some(carrier) = carrier("wireguard_says_what_carries_it") else { return };
    const PSK: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
    let world = world(2, V4, &format!(r#","PSK":"{PSK}""#));
    let agents = start(&world);
    let (one, two) = (&world.hosts[0], &world.hosts[1]);
    reach(one, two);
    assert_eq!(wg(one, "flannel-wg", "preshared-keys", &public_key(two, "flannel-wg")), PSK);
    let (code, status) = one.status(&[]);
    assert!(code == 0 && status.contains(&format!("wireguard in {carrier}, MTU 1420")), "{status}");
    let (_, json) = one.status_json();
    assert_eq!(json["backend"]["carrier"], carrier);
    let private = std::fs::read_to_string(one.dir.join("wgkey")).unwrap();
    for damage in ["ip link delete flannel-wg", "ip link set flannel-wg down"] {
        one.sh(damage);
        reach(one, two);
    }
    let said = agents[0].log() + &status + &json.to_string() + &one.troubles();
    assert!(!said.contains(PSK) && !said.contains(&private), "a secret is shown");
    assert!(said.contains("private-key"), "the command names the file: {said}");
    // 1 and not 0: with 0 a collector of core dumps gets them all the same.
    let limits = agents[0].limits();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).collect::<Vec<_>>(), ["1", "1", "bytes"]);
}

#[test]
fn wireguard_outlives_its_agent() {
    if !available("wireguard_outlives_its_agent") {
        return;
    }
    let world = world(2, DUAL, "");
    let mut agents = start(&world);
    let (one, two) = (&world.hosts[0], &world.hosts[1]);
    reach(one, two);
    let address = inside(two)[0];
    let before = links(one);
    let capture = Capture::on(one);
    let key = std::fs::read_to_string(one.dir.join("wgkey")).unwrap();
    // Pings all the while.
    let mut command = Command::new("ping");
    command.args(["-i", "0.05", "-n", &address.to_string()]).stdout(Stdio::piped());
    let ping = one.netns.run(|| command.spawn()).unwrap().unwrap();
    agents.remove(0).kill();
    std::fs::remove_file(one.dir.join("log")).unwrap();
    let again = agent(one);
    again.ready();
    assert_eq!(again.count("changes:"), 0, "{}", again.log());
    assert_eq!(again.terminate(), 0);
    std::fs::remove_file(one.dir.join("log")).unwrap();
    let again = agent(one);
    again.ready();
    // Something has to have been sent after the second start.
    let sent = |host: &Host| wg(host, "flannel-wg", "transfer", &public_key(two, "flannel-wg"));
    let then = sent(one);
    until("more pings", || if sent(one) == then { Err(then.clone()) } else { Ok(()) });
    Command::new("kill").args(["-INT", &ping.id().to_string()]).status().unwrap();
    let output = String::from_utf8(ping.wait_with_output().unwrap().stdout).unwrap();
    // What was under way when it ended has no answer.
    let sequence = |line: &str| line.split("icmp_seq=").nth(1)?.split(' ').next()?.parse::<usize>().ok();
    let answered: BTreeSet<usize> = output.lines().filter_map(sequence).collect();
    assert!(!answered.is_empty() && answered.iter().copied().eq(1..=answered.len()), "{output}");
    assert_eq!(links(one), before, "the same devices");
    assert_eq!(std::fs::read_to_string(one.dir.join("wgkey")).unwrap(), key);
    reach(two, one);
    nothing_in_the_clear(&capture);
}

#[test]
fn wireguard_leaks_nothing_while_its_device_is_away() {
    if !available("wireguard_leaks_nothing") {
        return;
    }
    let world = world(2, DUAL, "");
    let mut agents = start(&world);
    let (one, two) = (&world.hosts[0], &world.hosts[1]);
    reach(one, two);
    // Nobody repairs it.
    agents.remove(0).kill();
    let capture = Capture::on(one);
    for dev in ["flannel-wg", "flannel-wg-v6"] {
        one.sh(&format!("ip link delete {dev}"));
    }
    for address in inside(two) {
        one.greet(two, address).expect_err("there is no way");
    }
    nothing_in_the_clear(&capture);
    let again = agent(one);
    again.ready();
    reach(one, two);
    nothing_in_the_clear(&capture);
}

#[test]
fn wireguard_follows_a_peers_new_key() {
    if !available("wireguard_follows_a_peers_new_key") {
        return;
    }
    let world = world(3, V4, "");
    let mut agents = start(&world);
    let [one, two, three] = [&world.hosts[0], &world.hosts[1], &world.hosts[2]];
    reach(one, two);
    let old = public_key(two, "flannel-wg");
    let captures = [Capture::on(one), Capture::on(two)];
    // All the while somebody sends to the node whose key changes.
    let mut command = Command::new("ping");
    command.args(["-i", "0.02", "-n", &inside(two)[0].to_string()]).stdout(Stdio::null());
    let mut ping = one.netns.run(|| command.spawn()).unwrap().unwrap();
    agents.remove(1).kill();
    let file = two.dir.join("wgkey");
    std::fs::remove_file(&file).unwrap();
    let again = agent(two);
    again.ready();
    reach(one, two);
    reach(three, two);
    let keys = || wg_sh(one, "show flannel-wg peers");
    until("the old key to be gone", || if keys().contains(&old) { Err(keys()) } else { Ok(()) });
    assert_eq!(keys().lines().count(), 2, "{}", keys());
    // A lost file is no new key while the agent lives.
    let key = public_key(two, "flannel-wg");
    std::fs::remove_file(&file).unwrap();
    two.sh("ip link add nudge type bridge");
    until("the file again", || if file.exists() { Ok(()) } else { Err("not yet".to_owned()) });
    assert_eq!(public_key(two, "flannel-wg"), key);
    ping.kill().unwrap();
    ping.wait().unwrap();
    captures.iter().for_each(nothing_in_the_clear);
}

#[test]
fn wireguard_peers_that_disagree_are_named_and_others_work() {
    if !available("wireguard_peers_that_disagree") {
        return;
    }
    let world = world(3, V4, "");
    let mut agents = start(&world);
    let [one, two, three] = [&world.hosts[0], &world.hosts[1], &world.hosts[2]];
    reach(one, three);
    // It would put right at once what is said in its name.
    agents.remove(1).kill();
    let connection = rusqlite::Connection::open(world.dir.path().join("leases.db")).unwrap();
    let key = format!("{}-24", two.subnet("FLANNEL_SUBNET").network());
    let own_key = public_key(one, "flannel-wg");
    for (kind, data, sentence) in [
        (
            "vxlan",
            r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:99"}"#.to_owned(),
            r#"its backend is "vxlan", ours is "wireguard""#,
        ),
        (
            "wireguard",
            r#"{"PublicKey":"short","Port":51820}"#.to_owned(),
            "is not a WireGuard key of 32 bytes",
        ),
        ("wireguard", r#"{"PublicKey":"","Port":"x"}"#.to_owned(), "is of no use"),
        ("wireguard", "null".to_owned(), "has no IPv4 WireGuard data"),
        (
            "wireguard",
            format!(r#"{{"PublicKey":"{own_key}","Port":51820}}"#),
            "this node's own WireGuard key",
        ),
    ] {
        let value = format!(
            r#"{{"PublicIP":"192.0.2.12","PublicIPv6":null,"BackendType":"{kind}","BackendData":{data}}}"#
        );
        connection.execute("UPDATE lease SET value = ?1 WHERE key = ?2", [&value, &key]).unwrap();
        until(sentence, || if agents[0].log().contains(sentence) { Ok(()) } else { Err(agents[0].log()) });
        // Of two nodes with one key, a third keeps the one whose subnet comes first.
        let subnet = |host: &Host| host.subnet("FLANNEL_SUBNET").network();
        if data.contains(&own_key.to_string()) && subnet(two) < subnet(one) {
            agents[1].says(&format!("peer {}/24 is left out: it has the same WireGuard key", subnet(one)));
        } else {
            reach(one, three);
        }
    }
}

#[test]
fn wireguard_waits_for_a_taken_port_and_names_a_bad_key_file() {
    if !available("wireguard_waits_for_a_taken_port") {
        return;
    }
    let world = world(1, V4, "");
    let host = &world.hosts[0];
    let file = host.dir.join("wgkey");
    std::fs::write(&file, "geheim").unwrap();
    let taken = host.netns.run(|| std::net::UdpSocket::bind("0.0.0.0:51820")).unwrap().unwrap();
    let mut agent = agent(host);
    agent.says("wgkey is not a WireGuard key of 32 bytes");
    assert!(!agent.log().contains("geheim") && agent.alive());
    std::fs::remove_file(&file).unwrap();
    agent.says("another program uses UDP port 51820");
    assert!(agent.alive() && !host.subnet_file().exists());
    drop(taken);
    agent.ready();
}

#[test]
fn wireguard_of_user_space_is_made_whole_whatever_is_killed_and_ends_when_told() {
    if carrier("wireguard_of_user_space") != Some("user space") {
        println!("SKIP wireguard_of_user_space: this kernel carries it itself");
        return;
    }
    let world = world(2, V4, "");
    let mut agents = start(&world);
    let (one, two) = (&world.hosts[0], &world.hosts[1]);
    reach(one, two);
    let tunnel = || pid(one).ok_or_else(|| "no process".to_owned());
    let before = until("the process", tunnel);
    let device = links(one);
    let shown = one.sh("ip link show flannel-wg");
    assert!(shown.contains("qlen 2000"), "what waits for the process: {shown}");
    let capture = Capture::on(one);
    Command::new("kill").args(["-KILL", &before.to_string()]).status().unwrap();
    let after = until("another process", || {
        tunnel().and_then(|now| if now == before { Err("the old one".into()) } else { Ok(now) })
    });
    reach(one, two);
    reach(two, one);
    assert_eq!(links(one), device, "the device stays");
    // A process that hangs is replaced when the loop looks.
    Command::new("kill").args(["-STOP", &after.to_string()]).status().unwrap();
    one.sh("ip link set flannel-wg mtu 1300");
    until("a process that answers", || {
        tunnel().and_then(|now| if now == after { Err("the old one".into()) } else { Ok(now) })
    });
    reach(one, two);
    nothing_in_the_clear(&capture);
    // Without its agent, `cleanup` ends it.
    assert_eq!(agents.remove(0).terminate(), 0);
    let last = until("the process", tunnel);
    let mut cleanup = Command::new(env!("CARGO_BIN_EXE_loden"));
    cleanup.arg("cleanup");
    let said = one.netns.run(|| run(cleanup, "loden cleanup")).unwrap();
    assert!(said.contains("ip link delete flannel-wg"), "{said}");
    until("the process to end", || if alive(last) { Err(last.to_string()) } else { Ok(()) });
    assert_eq!(links(one), Vec::<String>::new());
}

#[test]
fn wireguard_reaches_a_peer_behind_nat_where_its_packets_come_from() {
    if !available("wireguard_reaches_a_peer_behind_nat") {
        return;
    }
    let world = world(3, V4, r#","PersistentKeepaliveInterval":2"#);
    let [one, two, router] = [&world.hosts[0], &world.hosts[1], &world.hosts[2]];
    // The second host is behind the third, which translates.
    two.sh("ip link delete eth0");
    router.sh("ip link add lan type veth peer name far");
    router.sh(&format!("ip link set far netns {}", two.netns.path().display()));
    two.sh("ip link set far name eth0");
    for (host, command) in [
        (router, "ip addr add 10.99.0.1/24 dev lan"),
        (router, "ip link set lan up"),
        (two, "ip addr add 10.99.0.2/24 dev eth0"),
        (two, "ip link set eth0 up"),
        (two, "ip route add default via 10.99.0.1"),
        (router, "nft add table ip t"),
        (router, "nft add chain ip t c { type nat hook postrouting priority 100 ; }"),
        (router, "nft add rule ip t c oifname eth0 masquerade"),
    ] {
        host.sh(command);
    }
    let agents = [agent(one), agent(two)];
    agents.iter().for_each(Agent::ready);
    reach(two, one);
    reach(one, two);
    let key = public_key(two, "flannel-wg");
    let endpoint = || wg(one, "flannel-wg", "endpoints", &key);
    assert!(endpoint().starts_with("192.0.2.13:"), "{}", endpoint());
    // Each of these makes the agent look at everything, and write what differs.
    for damage in
        ["ip link set flannel-wg mtu 1300", "ip addr flush dev flannel-wg", "ip link set flannel-wg down"]
    {
        one.sh(damage);
        reach(one, two);
        assert!(endpoint().starts_with("192.0.2.13:"), "{damage}: {}", endpoint());
    }
    let [first, _second] = agents;
    first.kill();
    std::fs::remove_file(one.dir.join("log")).unwrap();
    let again = agent(one);
    again.ready();
    assert!(endpoint().starts_with("192.0.2.13:"), "after a restart: {}", endpoint());
    reach(one, two);
}

#[test]
fn wireguard_with_another_psk_is_out_and_others_are_not() {
    if !available("wireguard_with_another_psk") {
        return;
    }
    let world = world(3, V4, r#","PSK":"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=""#);
    let mut agents = start(&world);
    let [one, two, three] = [&world.hosts[0], &world.hosts[1], &world.hosts[2]];
    reach(two, one);
    agents.remove(1).kill();
    let file = two.dir.join("psk");
    std::fs::write(&file, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE=").unwrap();
    let (key, net) = (public_key(one, "flannel-wg"), one.subnet("FLANNEL_SUBNET"));
    wg_sh(two, &format!("set flannel-wg peer {key} remove"));
    wg_sh(
        two,
        &format!(
            "set flannel-wg peer {key} preshared-key {} endpoint {}:51820 allowed-ips {net}",
            file.display(),
            one.public()
        ),
    );
    two.greet(one, inside(one)[0]).expect_err("the keys differ");
    reach(three, one);
    reach(one, three);
    // The one whose packets go unanswered says so, with what to look at; any news make it look. The handshake of
    // before goes with the peer, which comes again.
    wg_sh(one, &format!("set flannel-wg peer {} remove", public_key(two, "flannel-wg")));
    let suspicion =
        "no handshake is answered; the node is down, its port is closed, or its PSK is another one";
    until("the suspicion", || {
        let _ = one.greet(two, inside(two)[0]);
        one.sh("ip link set flannel-wg mtu 1300");
        let status = one.status(&[]).1;
        let said = status.contains(suspicion) && status.contains("wg show flannel-wg latest-handshakes");
        if said && agents[0].log().contains(suspicion) { Ok(()) } else { Err(status + &agents[0].log()) }
    });
    let _again = agent(two);
    reach(two, one);
    until("the suspicion to go", || {
        let _ = one.greet(two, inside(two)[0]);
        one.sh("ip link set flannel-wg mtu 1300");
        let log = agents[0].log();
        if log.contains("hear peers of encrypted tunnels: works again") { Ok(()) } else { Err(log) }
    });
}

/// What the rule of a chain beside the IPv6 tunnel has dropped.
fn dropped(host: &Host, chain: &str) -> u64 {
    let listed = host.json("nft -j list table ip6 loden-flannel-wg-v6");
    let rules = listed["nftables"].as_array().unwrap().iter().filter_map(|object| object.get("rule"));
    let rule = rules.into_iter().find(|rule| rule["chain"] == chain).unwrap();
    let counter = rule["expr"].as_array().unwrap().iter().find_map(|part| part.get("counter")).unwrap();
    counter["packets"].as_u64().unwrap()
}

/// A node without its public address sends with that of its tunnel. Nobody shall take that for the way to it, which would
/// lead into the tunnel again (decision 0172).
#[test]
fn wireguard_never_leads_into_itself() {
    if !available("wireguard_never_leads_into_itself") {
        return;
    }
    let world = world(2, V6, "");
    let mut agents = start(&world);
    let [one, two] = &world.hosts[..] else { panic!("two hosts") };
    reach(one, two);
    reach(two, one);
    // Nobody puts anything back on the second host, and its tunnel goes on.
    agents.pop().unwrap().kill();
    two.sh(&format!("ip -6 addr del {}/64 dev eth0", two.public6()));
    two.sh("ip -6 route replace 2001:db8::/64 dev eth0");
    let knock = || two.greet(one, inside(one)[0]).is_ok();
    until("the host itself to drop what it would send with an inner source", || {
        let answered = knock();
        if dropped(two, "output") > 0 { Ok(()) } else { Err(format!("answered {answered}")) }
    });
    assert_eq!(dropped(one, "input"), 0, "nothing arrived");
    // As a node of flannel's.
    two.sh("nft delete table ip6 loden-flannel-wg-v6");
    until("the other host to drop it", || {
        let answered = knock();
        if dropped(one, "input") > 0 { Ok(()) } else { Err(format!("answered {answered}")) }
    });
    let endpoint = wg(one, "flannel-wg-v6", "endpoints", &public_key(two, "flannel-wg-v6"));
    assert_eq!(endpoint, format!("[{}]:51821", two.public6()), "the endpoint stays");
    assert_eq!(one.status_json().1["dropped"], serde_json::json!([]), "a node is no stranger");
}
