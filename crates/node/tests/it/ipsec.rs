//! The backend ipsec between hosts, each with a charon of its own; `ip xfrm`, `swanctl` and tcpdump are the
//! witnesses. This machine's kernel may have policies but no ESP: what needs that runs in the guest.

mod esp;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::machine::Machine;
use crate::world::{Agent, Host, World};

/// An emulated processor takes its time for the keys of an association (modp4096).
const PATIENCE: Duration = Duration::from_secs(120);

fn until<T>(what: &str, mut check: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match check() {
            Ok(value) => return value,
            Err(last) if Instant::now() > deadline => panic!("waited {PATIENCE:?} for {what}: {last}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Half of a key: all of it must not be seen anywhere.
const SECRET: &str = "5f4dcc3b5aa765d61d8327deb882cf99e10adc3949ba59ab";

fn config(members: &str) -> String {
    // Programs of iptables take their time on an emulated processor.
    format!(
        r#"{{"Network":"10.244.0.0/16","EnableNFTables":true,"Backend":{{"Type":"ipsec","PSK":"{SECRET}{SECRET}"{members}}}}}"#
    )
}

pub fn has_charon(test: &str) -> bool {
    let there = ["/usr/lib/ipsec/charon", "/usr/sbin/swanctl"].iter().all(|file| Path::new(file).exists());
    if !there {
        println!("SKIP {test}: strongSwan is not installed (packages strongswan-charon, strongswan-swanctl)");
    }
    there
}

pub fn has_policies(test: &str) -> bool {
    let policy = "ip xfrm policy add src 1.1.1.1 dst 2.2.2.2 dir out action block";
    let there = World::new(1).hosts[0].try_sh(policy).is_ok();
    if !there {
        println!("SKIP {test}: this kernel has no IPsec (xfrm_user)");
    }
    there
}

/// Whether packets go through its tunnels here; a note that the test is skipped, if not.
pub fn available(test: &str) -> bool {
    has_charon(test) && esp::has_esp(&World::new(1).hosts[0], test)
}

/// Hosts with machines and agents; they end in this order.
struct Cluster {
    agents: Vec<Agent>,
    machines: Vec<Machine>,
    world: World,
}

impl Cluster {
    /// `None` with a printed reason where something is missing.
    fn start(hosts: usize, config: &str, test: &str) -> Option<Cluster> {
        if !has_charon(test) || !has_policies(test) {
            return None;
        }
        let world = World::with_config(hosts, config);
        let machines: Option<Vec<Machine>> = world.hosts.iter().map(|host| Machine::on(host, test)).collect();
        let machines = machines?;
        let mut cluster = Cluster { agents: Vec::new(), machines, world };
        for n in 0..hosts {
            let agent = cluster.agent(n);
            cluster.agents.push(agent);
        }
        for n in 0..hosts {
            cluster.ready(n);
        }
        Some(cluster)
    }

    fn agent(&self, n: usize) -> Agent {
        self.machines[n].agent(self.host(n), &[], &[])
    }

    fn host(&self, n: usize) -> &Host {
        &self.world.hosts[n]
    }

    fn subnet(&self, n: usize) -> ipnet::IpNet {
        let text = fs::read_to_string(self.machines[n].path("/run/flannel/subnet.env")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET=")).unwrap();
        line.parse::<ipnet::IpNet>().unwrap().trunc()
    }

    fn ready(&self, n: usize) {
        until("the agent to be ready", || {
            let log = self.agents[n].log();
            let file = self.machines[n].path("/run/flannel/subnet.env");
            if file.exists() && log.contains("flannel is ready") { Ok(()) } else { Err(log) }
        });
    }

    fn policies(&self, n: usize) -> String {
        let text = self.host(n).sh("ip xfrm policy");
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// What `ip xfrm policy` shows of a peer.
    fn wanted(&self, n: usize, peer: usize) -> [String; 3] {
        let (own, other) = (self.subnet(n), self.subnet(peer));
        let (here, there) = (self.host(n).public(), self.host(peer).public());
        let shown = |src, dst, dir: &str, from, to| {
            format!(
                "src {src} dst {dst} dir {dir} priority 0 ptype main tmpl src {from} dst {to} proto esp reqid 11 mode \
                 tunnel"
            )
        };
        [
            shown(own, other, "out", &here, &there),
            shown(other, own, "in", &there, &here),
            shown(other, own, "fwd", &there, &here),
        ]
    }

    fn has_policies(&self, n: usize, peer: usize) {
        let guard = format!("src {} dst 10.244.0.0/16 dir out action block", self.subnet(n));
        until("the policies of a peer", || {
            let there = self.policies(n);
            let missing =
                self.wanted(n, peer).into_iter().chain([guard.clone()]).find(|p| !there.contains(p));
            missing.map_or(Ok(()), |missing| Err(format!("{missing} is not in {there}")))
        });
    }

    fn connection(&self, n: usize, peer: usize) -> String {
        let (here, there) = (self.host(n).public(), self.host(peer).public());
        format!("{here}-{}-{}-{there}", self.subnet(n), self.subnet(peer))
    }

    fn has_connection(&self, n: usize, peer: usize) {
        let name = self.connection(n, peer);
        until("the connection to a peer", || {
            let output = self.machines[n].output("swanctl", &["--list-conns"]);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if text.contains(&format!("{name}:")) { Ok(()) } else { Err(format!("{name} is not in {text}")) }
        });
    }

    /// The process of charon, seen from inside.
    fn charon(&self, n: usize) -> String {
        until("charon", || {
            let pid =
                fs::read_to_string(self.machines[n].path("/run/charon.pid")).map_err(|e| e.to_string())?;
            let pid = pid.trim().to_owned();
            let name = fs::read_to_string(self.machines[n].path(&format!("/proc/{pid}/comm")));
            if name.is_ok_and(|name| name.trim() == "charon") {
                Ok(pid)
            } else {
                Err(format!("process {pid} is gone"))
            }
        })
    }

    /// Everybody has the first address of its subnet, and uses it towards the others.
    fn settle(&self) {
        for n in 0..self.world.hosts.len() {
            let own = self.subnet(n).network();
            self.host(n).sh(&format!("ip addr add {own} dev lo"));
            self.host(n).sh(&format!("ip route add 10.244.0.0/16 via 192.0.2.1 src {own}"));
        }
    }

    fn talks(&self, n: usize, peer: usize) {
        let (own, address) = (self.subnet(n).network(), self.subnet(peer).network());
        until("traffic", || self.host(n).try_sh(&format!("ping -c 1 -W 2 -I {own} {address}")));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for (host, machine) in self.world.hosts.iter().zip(&self.machines) {
            let sas = machine.output("swanctl", &["--list-sas"]);
            println!("---- host {}\n{}", host.number, String::from_utf8_lossy(&sas.stdout));
            for command in ["ip -s xfrm state", "ip xfrm policy", "cat /proc/net/xfrm_stat"] {
                println!("{}", host.try_sh(command).unwrap_or_else(|error| error));
            }
        }
    }
}

/// What passes on the wire of the first host, until dropped.
struct Capture {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Capture {
    fn start(cluster: &Cluster) -> Capture {
        let mut command = Command::new("tcpdump");
        command.args(["-n", "-l", "-i", "h1", "ip"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = cluster.world.hub.run(|| command.spawn()).unwrap().unwrap();
        // It says so once it listens.
        let mut said = Vec::new();
        let mut stderr = child.stderr.take().unwrap();
        while !String::from_utf8_lossy(&said).contains("listening on") {
            let mut bytes = [0; 256];
            let length = stderr.read(&mut bytes).unwrap();
            assert!(length > 0, "{}", String::from_utf8_lossy(&said));
            said.extend(&bytes[..length]);
        }
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        let (sender, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Capture { child, lines }
    }

    /// All of it up to a text.
    fn until(self, wanted: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut text = String::new();
        while !text.contains(wanted) {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            text +=
                &line.unwrap_or_else(|error| panic!("waited for {wanted:?} on the wire: {error}: {text}"));
            text.push('\n');
        }
        text
    }

    /// All of it, less the broadcasts that end it: a packet seen after all others.
    fn end(self, cluster: &Cluster) -> String {
        let host = cluster.host(0);
        let _ = host.try_sh("ping -c 1 -W 1 192.0.2.99");
        let _ = host.try_sh("ping -c 1 -W 1 -I 192.0.2.11 -b 192.0.2.255");
        self.until("192.0.2.11 > 192.0.2.255")
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn in_clear(capture: &str) -> Vec<&str> {
    capture.lines().filter(|line| line.contains("10.244.")).collect()
}

#[test]
fn ipsec_is_kept_as_it_should_be() {
    let Some(mut cluster) = Cluster::start(2, &config(""), "ipsec_is_kept_as_it_should_be") else { return };
    cluster.has_policies(0, 1);
    cluster.has_policies(1, 0);
    cluster.has_connection(0, 1);
    cluster.has_connection(1, 0);
    let daemon = cluster.machines[0].path(&format!("/proc/{}/status", cluster.charon(0)));
    crate::rights::ipsec(&cluster.agents[0], &daemon.display().to_string());
    let foreign =
        "src 10.9.0.0/16 dst 10.8.0.0/16 dir out tmpl src 1.1.1.1 dst 2.2.2.2 proto esp reqid 11 mode tunnel";
    let host = cluster.host(0);
    host.sh(&format!("ip xfrm policy add {foreign}"));
    let (own, peer) = (cluster.subnet(0), cluster.subnet(1));
    for damage in [
        "ip xfrm policy flush".to_owned(),
        format!("ip xfrm policy delete src {own} dst {peer} dir out"),
        format!("ip xfrm policy update src {own} dst 10.244.0.0/16 dir out action allow"),
        format!(
            "ip xfrm policy update src {peer} dst {own} dir in tmpl src 192.0.2.12 dst 192.0.2.11 proto esp reqid 12 \
             mode tunnel"
        ),
    ] {
        host.sh(&damage);
        cluster.has_policies(0, 1);
    }
    // Old ones of ours go, of nodes that are gone.
    host.sh(&format!(
        "ip xfrm policy add src 10.244.0.0/24 dst {own} dir in tmpl src 192.0.2.77 dst 192.0.2.11 proto esp reqid 11 \
         mode tunnel"
    ));
    host.sh(&format!("ip xfrm policy add {foreign}"));
    until("an old policy to go", || {
        let text = cluster.policies(0);
        if text.contains("10.244.0.0/24") { Err(text) } else { Ok(()) }
    });
    assert!(cluster.policies(0).contains("10.9.0.0/16"), "another's policy stays");

    // A file without connections makes swanctl unload all.
    cluster.machines[0].write("/etc/swanctl/swanctl.conf", "");
    for damage in ["swanctl --load-conns", "swanctl --load-creds --clear"] {
        cluster.machines[0].sh(damage);
        cluster.has_connection(0, 1);
    }
    // Charon dies, is started again and told everything again.
    let first = cluster.charon(0);
    cluster.machines[0].sh(&format!("kill -9 {first}"));
    until("the log to tell", || {
        let log = cluster.agents[0].log();
        if log.contains("charon ended with signal: 9") { Ok(()) } else { Err(log) }
    });
    let second = until("another charon", || {
        let pid = cluster.charon(0);
        if pid == first { Err(pid) } else { Ok(pid) }
    });
    cluster.has_connection(0, 1);
    // An agent that comes again takes charon over, one that was killed too.
    for kill in [false, true] {
        let old = cluster.agents.remove(0);
        if kill {
            old.kill()
        } else {
            assert_eq!(old.terminate(), 0)
        }
        fs::remove_file(cluster.host(0).dir.join("log")).unwrap();
        let agent = cluster.agent(0);
        cluster.agents.insert(0, agent);
        cluster.ready(0);
        assert_eq!(cluster.charon(0), second, "the same charon");
        assert!(cluster.agents[0].log().contains("takes over the charon that runs, with 1 connections"));
        cluster.has_connection(0, 1);
        cluster.has_policies(0, 1);
        assert!(cluster.policies(0).contains("10.9.0.0/16"), "another's policy stays");
    }
    // Cleaning up would take the connection too.
    let shown = cluster.machines[0].sh(&format!("{} cleanup --dry-run", env!("CARGO_BIN_EXE_loden")));
    assert!(shown.contains(&format!("without {}", cluster.connection(0, 1))), "{shown}");
    // A node that is gone: no policy and no connection of it stays, and the guard does.
    let key = format!("{}-24", peer.network());
    cluster.agents.pop().unwrap().kill();
    let connection = rusqlite::Connection::open(cluster.world.dir.path().join("leases.db")).unwrap();
    connection.execute("DELETE FROM lease WHERE key = ?1", [key]).unwrap();
    until("nothing of the peer", || {
        let text = cluster.policies(0) + &cluster.machines[0].sh("swanctl --list-conns");
        if text.contains(&peer.to_string()) || !text.contains("action block") { Err(text) } else { Ok(()) }
    });
    // What is ours goes on request, and by marks alone.
    let (_, status) = cluster.status(0);
    assert_eq!(cluster.agents.remove(0).terminate(), 0);
    let log = fs::read_to_string(cluster.host(0).dir.join("log")).unwrap();
    let cleaned = cluster.machines[0].output(env!("CARGO_BIN_EXE_loden"), &["cleanup"]);
    let said = String::from_utf8_lossy(&cleaned.stdout).into_owned();
    assert!(
        cleaned.status.success() && said.contains("kept: charon runs, and others may use it: kill "),
        "{said}"
    );
    let left = cluster.policies(0);
    assert!(!left.contains("10.244.") && left.contains("10.9.0.0/16"), "{left}");
    for text in [log, status, said] {
        assert!(!text.contains(SECRET), "the secret is shown: {text}");
    }
}

#[test]
fn ipsec_leaks_nothing_without_an_association() {
    // No charon of the peer: there is no association, and no policy without one lets anything pass.
    let Some(cluster) = Cluster::start(1, &config(""), "ipsec_leaks_nothing_without_an_association") else {
        return;
    };
    let dead = r#"{"PublicIP":"192.0.2.12","PublicIPv6":null,"BackendType":"ipsec"}"#;
    let connection = rusqlite::Connection::open(cluster.world.dir.path().join("leases.db")).unwrap();
    let insert =
        "INSERT INTO lease (key, value, expires) SELECT '10.244.250.0-24', ?1, expires FROM lease LIMIT 1";
    connection.execute(insert, [dead]).unwrap();
    let host = cluster.host(0);
    host.sh("ip neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 dev eth0");
    cluster.settle();
    let own = cluster.subnet(0).network();
    until("the peer's policy", || {
        let text = cluster.policies(0);
        if text.contains("dst 10.244.250.0/24 dir out priority 0") { Ok(()) } else { Err(text) }
    });
    let capture = Capture::start(&cluster);
    let capture_sees = |target: &str| {
        let _ = host.try_sh(&format!("ping -c 3 -i 0.2 -W 1 -I {own} {target}"));
    };
    // A peer, a subnet nobody has, and a pod of another cluster, which is none of our business.
    ["10.244.250.1", "10.244.0.99", "10.99.0.1"].iter().for_each(|target| capture_sees(target));
    let seen = capture.end(&cluster);
    let clear = in_clear(&seen);
    assert!(clear.iter().any(|line| line.contains("10.99.0.1")), "what leaves is seen: {seen}");
    assert!(clear.iter().all(|line| line.contains("10.99.0.1")), "{clear:#?}");
    // Pods of this node reach each other without.
    host.sh(&format!("ping -c 1 -W 2 -I {own} {own}"));
    // It is said, when it lasts.
    let said = "IPsec peer 192.0.2.12 of 10.244.250.0/24: no association, so nothing is sent to it";
    until("the peer to be named", || {
        let log = cluster.agents[0].log();
        if log.contains(said) { Ok(()) } else { Err(log) }
    });
    assert!(cluster.status(0).1.contains(said), "{}", cluster.status(0).1);
    connection.execute("DELETE FROM lease WHERE key = '10.244.250.0-24'", []).unwrap();
    until("it to be over", || {
        let log = cluster.agents[0].log();
        if log.contains("hear peers of encrypted tunnels: works again") { Ok(()) } else { Err(log) }
    });
}

/// What the rule behind the policies has dropped.
fn dropped(host: &Host) -> u64 {
    let table = host.json("nft -j list table ip loden-ipsec-10.244.0.0-16");
    let rules = table["nftables"].as_array().unwrap().iter().filter_map(|o| o["rule"]["expr"].as_array());
    rules.flatten().filter_map(|expression| expression["counter"]["packets"].as_u64()).sum()
}

#[test]
fn ipsec_leaks_nothing_while_its_policies_are_away() {
    let test = "ipsec_leaks_nothing_while_its_policies_are_away";
    let Some(cluster) = Cluster::start(2, &config(""), test) else { return };
    cluster.has_policies(0, 1);
    cluster.settle();
    let host = cluster.host(0);
    host.sh("ip neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 dev eth0");
    let (own, peer) = (cluster.subnet(0).network(), cluster.subnet(1).network());
    let pings = |count: u32| {
        let _ = host.try_sh(&format!("ping -c {count} -i 0.01 -W 1 -I {own} {peer}"));
    };
    let capture = Capture::start(&cluster);
    // As long as nobody repairs them.
    cluster.agents[0].signal("STOP");
    host.sh("ip xfrm policy flush");
    let before = dropped(host);
    pings(5);
    let held_back = dropped(host) - before;
    cluster.agents[0].signal("CONT");
    cluster.has_policies(0, 1);
    assert_eq!(held_back, 5, "each is counted");
    // Again and again, under traffic.
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let mut command = Command::new("ping");
            command.args([
                "-q",
                "-c",
                "200",
                "-i",
                "0.005",
                "-W",
                "1",
                "-I",
                &own.to_string(),
                &peer.to_string(),
            ]);
            host.netns.run(|| command.output()).unwrap().unwrap();
        });
        while !sending.is_finished() {
            host.sh("ip xfrm policy flush");
            cluster.has_policies(0, 1);
        }
    });
    // The rule goes alone: the policies hold packets back. It is back by itself, and goes with all that is ours.
    let table = "ip loden-ipsec-10.244.0.0-16";
    host.sh(&format!("nft delete table {table}"));
    pings(3);
    until("the rule", || host.try_sh(&format!("nft list table {table}")));
    let seen = capture.end(&cluster);
    assert_eq!(in_clear(&seen), [""; 0]);
    let shown = cluster.machines[0].sh(&format!("{} cleanup --dry-run", env!("CARGO_BIN_EXE_loden")));
    assert!(shown.contains(table), "{shown}");
}

#[test]
fn ipsec_charon_that_hangs_is_replaced() {
    let Some(cluster) = Cluster::start(2, &config(""), "ipsec_charon_that_hangs_is_replaced") else { return };
    cluster.has_connection(0, 1);
    let first = cluster.charon(0);
    cluster.machines[0].sh(&format!("kill -STOP {first}"));
    for sentence in ["charon does not answer on", "charon did not answer and was killed"] {
        until("the log to tell", || {
            let log = cluster.agents[0].log();
            if log.contains(sentence) { Ok(()) } else { Err(log) }
        });
    }
    until("another charon", || {
        let pid = cluster.charon(0);
        if pid == first { Err(pid) } else { Ok(()) }
    });
    cluster.has_connection(0, 1);
    cluster.has_policies(0, 1);
}

impl Cluster {
    fn status(&self, n: usize) -> (i32, String) {
        let output = self.machines[n].output(env!("CARGO_BIN_EXE_loden"), &["status", "--why", "-o", "json"]);
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

#[test]
fn ipsec_without_charon_is_named() {
    let test = "ipsec_without_charon_is_named";
    let world = World::with_config(1, &config(""));
    let Some(machine) = Machine::on(&world.hosts[0], test) else { return };
    if world.hosts[0].try_sh("ip xfrm policy").is_err() {
        println!("SKIP {test}: this kernel has no IPsec (xfrm_user)");
        return;
    }
    let broken = "sh -c 'exit 7'";
    machine.write("/run/bin/charon", &format!("#!/bin/sh\n{broken}\n"));
    machine.sh("chmod +x /run/bin/charon");
    let mut agent =
        machine.agent(&world.hosts[0], &[], &[("PATH", "/run/bin:/usr/sbin:/usr/bin:/sbin:/bin")]);
    agent.says("charon ended with exit status: 7 when it was started");
    assert!(agent.alive() && !machine.path("/run/flannel/subnet.env").exists(), "not ready without charon");
    // None at all: in no place where a distribution has it.
    machine.sh("rm /run/bin/charon");
    for place in ["/usr/lib/strongswan", "/usr/lib/ipsec", "/usr/libexec/strongswan", "/usr/libexec/ipsec"] {
        if Path::new(place).join("charon").exists() {
            machine.sh(&format!("mount --bind /dev/null {place}/charon"));
        }
    }
    agent.says("the backend ipsec needs strongSwan's daemon, and there is no charon in PATH nor at ");
    assert!(agent.alive() && !agent.log().contains(SECRET));
}

#[test]
fn ipsec_mistakes_in_the_configuration_are_named() {
    let good = config("");
    for (bad, sentence) in [
        (config("").replace(SECRET, "5f4dcc3b"), "PSK has 16 bytes"),
        (config("").replace("PSK", "PKS"), "PSK has 0 bytes"),
        (config(r#","UDPEncap":1"#), "UDPEncap"),
        (config(r#","ESPProposal":["aes"]"#), "ESPProposal"),
        (config(r#","ESPProposal":"aes 128""#), "ESPProposal"),
        (
            config("").replacen('{', r#"{"EnableIPv6":true,"IPv6Network":"fd00:10::/48","#, 1),
            "carries IPv4 only",
        ),
    ] {
        let world = World::with_config(1, r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#);
        let connection = rusqlite::Connection::open(world.dir.path().join("leases.db")).unwrap();
        connection.execute("INSERT OR REPLACE INTO config (value) VALUES (?1)", [&bad]).unwrap();
        let mut agent = world.hosts[0].agent(&[]);
        agent.says("fetch network config: ");
        assert!(agent.log().contains(sentence), "{bad}: {}", agent.log());
        assert!(agent.alive() && !agent.log().contains("5f4dcc3b"), "{}", agent.log());
    }
    assert!(good.len() > 96);
}
