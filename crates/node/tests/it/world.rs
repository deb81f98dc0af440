//! Hosts joined by a wire, and agents on them.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kernel::Netns;
use kernel::sysctl::has_ipv6;
use model::Subnets;
use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take before a test gives up; the guest of `cargo xtask vm`, whose processor is
/// emulated, asks for more.
pub fn patience() -> Duration {
    asked_patience().unwrap_or(Duration::from_secs(60))
}

/// The patience asked for, where the processor is slow.
pub fn asked_patience() -> Option<Duration> {
    std::env::var("LODEN_TEST_PATIENCE").ok()?.parse().ok().map(Duration::from_secs)
}

/// Waits until `check` gives a value; the last complaint is in the message.
pub fn until<T>(what: &str, mut check: impl FnMut() -> Result<T, String>) -> T {
    let (patience, start) = (patience(), Instant::now());
    loop {
        match check() {
            Ok(value) => return value,
            Err(last) if start.elapsed() > patience => {
                // Of hundreds of peers a few tell enough.
                let lines: Vec<&str> = last.lines().collect();
                let shown = lines[..lines.len().min(30)].join("\n");
                panic!("waited {patience:?} for {what}: {} line(s): {shown}", lines.len())
            }
            // Looking costs programs: who waits long looks less often, or what is waited for has no processor.
            Err(_) => {
                let pause = start.elapsed() / 10;
                std::thread::sleep(pause.clamp(Duration::from_millis(20), Duration::from_millis(500)));
            }
        }
    }
}

/// Whether the kernel has a kind of device, or a note that the test is skipped. The guest of
/// `cargo xtask vm` has them all.
pub fn has(kind: &str, test: &str) -> bool {
    let netns = Netns::create().unwrap();
    let words = format!("link add probe type {kind}");
    let made = || Command::new("ip").args(words.split(' ')).output().unwrap().status.success();
    let there = netns.run(made).unwrap();
    if !there {
        println!("SKIP {test}: this kernel has no {kind}");
    }
    there
}

/// A bridge in a namespace of its own, and hosts on it. Everything ends with the value.
pub struct World {
    pub hosts: Vec<Host>,
    pub dir: TempDir,
    /// The wire itself.
    pub hub: Netns,
}

/// One host: `eth0` with 192.0.2.(10+n)/24 and 2001:db8::(10+n)/64, default routes to .1.
pub struct Host {
    pub netns: Netns,
    pub number: usize,
    pub dir: PathBuf,
    store: String,
    /// Its agents probe nobody: nothing but what a test sends is on the wire.
    quiet: bool,
}

impl World {
    pub fn new(hosts: usize) -> World {
        let dir = TempDir::new().unwrap();
        let hub = Netns::create().expect("making a network namespace needs root");
        sh(&hub, "ip link add wire type bridge");
        sh(&hub, "ip link set wire up");
        let store = format!("sqlite:{}", dir.path().join("leases.db").display());
        let host = |number: usize| {
            let netns = Netns::create().unwrap();
            let path = dir.path().join(format!("host{number}"));
            fs::create_dir(&path).unwrap();
            wire(&hub, &netns, number);
            for command in [
                "ip link set lo up",
                "ip link set eth0 up",
                &format!("ip addr add {} dev eth0", format_args!("192.0.2.{}/24", 10 + number)),
                &format!("ip addr add 2001:db8::{}/64 dev eth0 nodad", 10 + number),
                "ip route add default via 192.0.2.1",
                "ip -6 route add default via 2001:db8::1",
                "sysctl -qw net.ipv4.ip_forward=1",
            ] {
                if has_ipv6() || !command.contains("2001:db8") {
                    sh(&netns, command);
                }
            }
            Host { netns, number, dir: path, store: store.clone(), quiet: false }
        };
        let hosts = (1..=hosts).map(host).collect();
        World { hosts, dir, hub }
    }

    /// A new `eth0`, down and without addresses, for a host whose old one was deleted.
    pub fn rewire(&self, host: &Host) {
        wire(&self.hub, &host.netns, host.number);
    }

    /// Hosts with the network configuration already in the embedded store.
    pub fn with_config(hosts: usize, config: &str) -> World {
        let world = World::new(hosts);
        world.hosts[0].put_config(config);
        world
    }

    /// The same with agents that probe nobody.
    pub fn quiet(mut self) -> World {
        self.hosts.iter_mut().for_each(|host| host.quiet = true);
        self
    }

    /// Takes a host's lease out of the embedded store.
    pub fn forget(&self, host: &Host) {
        let connection = rusqlite::Connection::open(self.dir.path().join("leases.db")).unwrap();
        let key = model::codec::etcd_key::write(&host.subnets());
        assert_eq!(connection.execute("DELETE FROM lease WHERE key = ?1", [&key]), Ok(1), "{key}");
    }

    /// One agent on each host, all ready.
    pub fn start(&self, flags: &[&str]) -> Vec<Agent> {
        let agents: Vec<Agent> = self.hosts.iter().map(|host| host.agent(flags)).collect();
        for agent in &agents {
            agent.ready();
        }
        agents
    }
}

impl Drop for World {
    /// Tunnels outlive their agents, not their world.
    fn drop(&mut self) {
        for host in &self.hosts {
            for socket in host.tunnels() {
                let _ = host.loden(&["tunnel", "stop", "any", "--socket", &socket]).output();
            }
        }
    }
}

/// Lays a wire from the hub to a host's `eth0`.
fn wire(hub: &Netns, netns: &Netns, number: usize) {
    // The far end is made inside the hub; `ip` wants a process id or a name, so move it.
    sh(hub, &format!("ip link add h{number} type veth peer name e{number}"));
    sh(hub, &format!("ip link set e{number} netns {}", netns.path().display()));
    sh(hub, &format!("ip link set h{number} master wire up"));
    sh(netns, &format!("ip link set e{number} name eth0"));
}

impl Host {
    /// Something else with a namespace of its own beside a host, such as a pod.
    pub fn around(netns: Netns, host: &Host) -> Host {
        Host {
            netns,
            number: host.number,
            dir: host.dir.clone(),
            store: host.store.clone(),
            quiet: host.quiet,
        }
    }

    /// The same host for another agent, with a registry and files of its own.
    pub fn instance(&self, name: &str) -> Host {
        let dir = self.dir.join(name);
        fs::create_dir(&dir).unwrap();
        let store = self.dir.parent().unwrap().join(format!("{name}.db"));
        Host {
            netns: self.netns.try_clone().unwrap(),
            number: self.number,
            dir,
            store: format!("sqlite:{}", store.display()),
            quiet: self.quiet,
        }
    }

    pub fn public(&self) -> String {
        format!("192.0.2.{}", 10 + self.number)
    }

    pub fn public6(&self) -> String {
        format!("2001:db8::{}", 10 + self.number)
    }

    pub fn subnet_file(&self) -> PathBuf {
        self.dir.join("subnet.env")
    }

    /// Where the agent keeps its last good state.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// What the agent says is wrong, in the file for the CNI plugins.
    pub fn troubles(&self) -> String {
        fs::read_to_string(self.dir.join("subnet.env.trouble")).unwrap_or_default()
    }

    /// Status and body of a path of the health endpoint.
    pub fn http(&self, port: u16, path: &str) -> Result<(u16, String), String> {
        let mut stream = self
            .netns
            .run(|| TcpStream::connect(("127.0.0.1", port)))
            .unwrap()
            .map_err(|e| format!("connect to port {port}: {e}"))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .map_err(|e| e.to_string())?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map_err(|e| e.to_string())?;
        let (head, body) = text.split_once("\r\n\r\n").ok_or("no answer")?;
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or("no status")?;
        Ok((status, body.to_owned()))
    }

    pub fn put_config(&self, config: &str) {
        let mut child =
            self.loden(&["config", "put", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(config.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Sockets of the tunnels that were started here.
    pub fn tunnels(&self) -> Vec<String> {
        let files = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let names = files.map(|file| file.path().display().to_string());
        names.filter(|name| name.ends_with(".tunnel")).collect()
    }

    /// The program with words, still to be started.
    pub fn loden(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loden"));
        command.args(words).env("LODEN_STORE", &self.store);
        command
    }

    /// Starts `flanneld` with these flags besides the subnet file.
    pub fn agent(&self, flags: &[&str]) -> Agent {
        self.agent_in(flags, &[("LODEN_STORE", &self.store)])
    }

    /// The same with an environment of its own.
    pub fn agent_in(&self, flags: &[&str], env: &[(&str, &str)]) -> Agent {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loden"));
        command.arg0("flanneld");
        self.agent_by(command, flags, env)
    }

    /// An agent that sees the files of `dir` as `/proc/sys/net/bridge`: with none the kernel has no
    /// br_netfilter. The mount is in a namespace of the agent alone.
    pub fn agent_with_bridge_files(&self, dir: &Path, flags: &[&str], env: &[(&str, &str)]) -> Agent {
        let mut command = Command::new("unshare");
        let mount =
            format!("mount --bind {} /proc/sys/net/bridge && exec -a flanneld \"$0\" \"$@\"", dir.display());
        command.args([
            "--mount",
            "--propagation",
            "private",
            "bash",
            "-c",
            &mount,
            env!("CARGO_BIN_EXE_loden"),
        ]);
        self.agent_by(command, flags, env)
    }

    /// An agent started by another program, which is given its words.
    pub fn agent_under(&self, under: &[&str], flags: &[&str], env: &[(&str, &str)]) -> Agent {
        let Some((first, more)) = under.split_first() else { return self.agent_in(flags, env) };
        let mut command = Command::new(first);
        command.args(more).args([env!("CARGO_BIN_EXE_loden"), "agent"]);
        self.agent_by(command, flags, env)
    }

    fn agent_by(&self, mut command: Command, flags: &[&str], env: &[(&str, &str)]) -> Agent {
        let log = self.dir.join("log");
        let stderr = fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        command.arg(format!("--subnet-file={}", self.subnet_file().display()));
        command.env_remove("NOTIFY_SOCKET").args(flags).envs(env.iter().copied()).stderr(stderr);
        // Places that are one for all hosts of a machine, since they share its files.
        let sockets = self.dir.join("wireguard");
        fs::create_dir_all(&sockets).unwrap();
        for (name, value) in [
            ("LODEN_STORE", None),
            ("LODEN_STATE_DIR", Some(self.state_dir())),
            ("LODEN_WIREGUARD_DIR", Some(sockets)),
            ("WIREGUARD_KEY_FILE", Some(self.dir.join("wgkey"))),
            ("LODEN_PROBE", self.quiet.then(|| "off".into())),
        ] {
            match value {
                _ if env.iter().any(|(given, _)| *given == name) => {}
                Some(value) => drop(command.env(name, value)),
                None => drop(command.env_remove(name)),
            }
        }
        let since = length(&log);
        let child = self.netns.run(|| command.spawn()).unwrap().unwrap();
        let pid = child.id();
        Agent { child, pid, log, since, subnet_file: self.subnet_file() }
    }

    /// `LODEN_STORE` of the hosts of this world.
    pub fn store(&self) -> &str {
        &self.store
    }

    /// `loden status` beside this host's subnet file: exit status and what it prints.
    pub fn status(&self, words: &[&str]) -> (i32, String) {
        let mut command = self.loden(&["status"]);
        command.args(words).env("FLANNELD_SUBNET_FILE", self.subnet_file()).env_remove("LODEN_SOCKET");
        let output = self.netns.run(|| command.output()).unwrap().unwrap();
        (output.status.code().unwrap_or(-1), String::from_utf8(output.stdout).unwrap())
    }

    /// The same as JSON.
    pub fn status_json(&self) -> (i32, Value) {
        let (code, text) = self.status(&["-o", "json"]);
        (code, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
    }

    /// What a program prints inside the host; fails the test if the program fails.
    pub fn sh(&self, command: &str) -> String {
        sh(&self.netns, command)
    }

    /// What a program prints inside the host, or what it complained about.
    pub fn try_sh(&self, command: &str) -> Result<String, String> {
        let words: Vec<&str> = command.split_whitespace().collect();
        let output = self.netns.run(|| Command::new(words[0]).args(&words[1..]).output()).unwrap().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// What a program that prints JSON says, inside the host.
    pub fn json(&self, command: &str) -> Value {
        let text = self.sh(command);
        if text.trim().is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() }
    }

    /// Value of a key of `subnet.env`.
    pub fn env(&self, key: &str) -> String {
        let text = fs::read_to_string(self.subnet_file()).unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix(&format!("{key}=")));
        line.unwrap_or_else(|| panic!("{key} is not in {text:?}")).to_owned()
    }

    /// Own subnet as network and length, from the gateway form of `subnet.env`.
    pub fn subnet(&self, key: &str) -> ipnet::IpNet {
        self.env(key).parse::<ipnet::IpNet>().unwrap().trunc()
    }

    /// The subnets of the lease it has or had last.
    pub fn subnets(&self) -> Subnets {
        let text = fs::read_to_string(self.subnet_file()).unwrap();
        let of = |key: &str| text.lines().find_map(|l| l.strip_prefix(&format!("{key}="))).map(str::to_owned);
        Subnets {
            v4: of("FLANNEL_SUBNET").map(|net| net.parse::<ipnet::Ipv4Net>().unwrap().trunc()),
            v6: of("FLANNEL_IPV6_SUBNET").map(|net| net.parse::<ipnet::Ipv6Net>().unwrap().trunc()),
        }
    }

    /// Sends a line over TCP to a listener on another host; gives the source address seen there.
    pub fn greet(&self, other: &Host, address: IpAddr) -> Result<IpAddr, String> {
        let listener = other
            .netns
            .run(|| TcpListener::bind((address, 0)))
            .unwrap()
            .map_err(|e| format!("bind {address}: {e}"))?;
        let target = listener.local_addr().unwrap();
        let connect = self.netns.run(|| TcpStream::connect_timeout(&target, Duration::from_secs(1))).unwrap();
        let mut client = connect.map_err(|e| format!("connect to {target}: {e}"))?;
        let (mut server, from) = listener.accept().map_err(|e| e.to_string())?;
        client.write_all(b"hello").map_err(|e| e.to_string())?;
        drop(client);
        let mut text = String::new();
        server.read_to_string(&mut text).map_err(|e| e.to_string())?;
        if text == "hello" { Ok(from.ip()) } else { Err(format!("got {text:?}")) }
    }
}

/// A running agent; killed when dropped.
pub struct Agent {
    child: Child,
    /// The agent itself, where `child` is a program that waits for it.
    pid: u32,
    log: PathBuf,
    /// Where in the log, which earlier agents wrote too, its own words begin.
    since: usize,
    subnet_file: PathBuf,
}

impl Agent {
    /// Started by a command that is not the agent itself; `pid` finds the agent.
    pub fn by(
        mut command: Command,
        log: &Path,
        subnet_file: PathBuf,
        pid: impl FnOnce(&Child) -> u32,
    ) -> Agent {
        let stderr = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let since = length(log);
        let child = command.stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
        let pid = pid(&child);
        Agent { child, pid, log: log.to_owned(), since, subnet_file }
    }

    /// Waits until it has written its file and says that it is ready.
    pub fn ready(&self) {
        until("the agent to be ready", || {
            let log = self.log();
            let own = log.get(self.since..).unwrap_or_default();
            if self.subnet_file.exists() && own.contains("flannel is ready") { Ok(()) } else { Err(log) }
        });
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Process id of the agent.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What the kernel says limits the agent.
    pub fn limits(&self) -> String {
        fs::read_to_string(format!("/proc/{}/limits", self.pid)).unwrap()
    }

    /// How often the log has a text.
    pub fn count(&self, text: &str) -> usize {
        self.log().matches(text).count()
    }

    /// Waits for a text in the log.
    pub fn says(&self, text: &str) {
        until(&format!("the log to say {text:?}"), || {
            let log = self.log();
            if log.contains(text) { Ok(()) } else { Err(log) }
        });
    }

    pub fn alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Sends SIGTERM and gives the exit status.
    pub fn terminate(mut self) -> i32 {
        sh_here(&format!("kill -TERM {}", self.pid));
        until("the agent to end", || match self.child.try_wait().unwrap() {
            Some(status) => Ok(status.code().unwrap_or(-1)),
            None => Err(self.log()),
        })
    }

    /// Waits until it ends by itself and gives the exit status.
    pub fn ends(mut self) -> i32 {
        until("the agent to end", || match self.child.try_wait().unwrap() {
            Some(status) => Ok(status.code().unwrap_or(-1)),
            None => Err(self.log()),
        })
    }

    /// Stops it, or lets it go on.
    pub fn signal(&self, name: &str) {
        sh_here(&format!("kill -{name} {}", self.pid));
    }

    /// As `kill -9`.
    pub fn kill(mut self) {
        sh_here(&format!("kill -KILL {}", self.pid));
        self.child.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.pid != self.child.id() && self.alive() {
            let _ = Command::new("kill").args(["-KILL", &self.pid.to_string()]).status();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("---- {}\n{}", self.log.display(), self.log());
        }
    }
}

/// A real etcd on a host; killed when dropped.
pub struct Etcd {
    child: Child,
    command: Command,
    address: String,
    _dir: TempDir,
}

/// Whether Debian's etcd is there; says so if not.
pub fn has_etcd(test: &str) -> bool {
    let there = Path::new("/usr/bin/etcd").exists();
    if !there {
        println!("SKIP {test}: etcd is not installed (package etcd-server)");
    }
    there
}

impl Etcd {
    /// Inside a host's namespace, listening on an address of it.
    pub fn on(host: &Host, address: &str, tls: Option<&Path>) -> Etcd {
        let dir = TempDir::new().unwrap();
        let port = 2379;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{address}:{port}");
        let peer = format!("http://{address}:2380");
        let mut command = Command::new("/usr/bin/etcd");
        command.arg("--data-dir").arg(dir.path().join("data"));
        command.args([
            "--listen-client-urls",
            &url,
            "--advertise-client-urls",
            &url,
            "--listen-peer-urls",
            &peer,
        ]);
        command.args([
            "--initial-advertise-peer-urls",
            &peer,
            "--initial-cluster",
            &format!("default={peer}"),
        ]);
        if let Some(certs) = tls {
            for (flag, file) in [
                ("--cert-file", "server.pem"),
                ("--key-file", "server-key.pem"),
                ("--trusted-ca-file", "ca.pem"),
            ] {
                command.arg(flag).arg(certs.join(file));
            }
            command.arg("--client-cert-auth");
        }
        command.env_clear().stderr(Stdio::null()).stdout(Stdio::null());
        let child = host.netns.run(|| command.spawn()).unwrap().unwrap();
        let etcd = Etcd { child, command, address: address.to_owned(), _dir: dir };
        etcd.listens(host);
        etcd
    }

    fn listens(&self, host: &Host) {
        let address = (self.address.as_str(), 2379);
        until("etcd to listen", || {
            host.netns.run(|| TcpStream::connect(address)).unwrap().map_err(|e| e.to_string())
        });
    }

    /// As if the power failed.
    pub fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again with what is on its disk.
    pub fn start_again(&mut self, host: &Host) {
        self.child = host.netns.run(|| self.command.spawn()).unwrap().unwrap();
        self.listens(host);
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn length(file: &Path) -> usize {
    fs::read(file).map_or(0, |text| text.len())
}

/// What a command prints; fails the test if it fails.
pub fn run(mut command: Command, shown: &str) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{shown}: {e}"));
    assert!(output.status.success(), "{shown}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn words(command: &str) -> Command {
    let mut words = command.split_whitespace();
    let mut made = Command::new(words.next().unwrap());
    made.args(words);
    made
}

/// Runs a command inside a namespace.
pub fn sh(netns: &Netns, command: &str) -> String {
    let made = words(command);
    netns.run(|| run(made, command)).unwrap()
}

fn sh_here(command: &str) -> String {
    run(words(command), command)
}
