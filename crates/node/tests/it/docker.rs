//! Real Docker on two hosts, started as our units and the tutorials start it: containers reach each other with
//! their own addresses, the outside sees the host's, and neither a restart of Docker nor one of the agent, in
//! either order, costs a packet (docs/guide/docker.md).

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use kernel::Netns;
use model::Family;
use plan::state::Variant;
use tempfile::TempDir;

use crate::iptables;
use crate::machine::{Machine, child_of, remove_cgroup};
use crate::migrate::recording::etcdctl;
use crate::traffic::{Pod, Stream};
use crate::world::{Agent, Etcd, Host, World, has_etcd, run, until};

/// Where the programs of this test are, in place of `/usr/local/bin`.
const BIN: &str = "/opt/loden/bin";
/// An image of our own making; no registry has it.
const IMAGE: &str = "loden.test/busybox:1";
/// Tells callers the address they come from.
const WHO: &str = "#!/bin/sh\necho\necho $REMOTE_ADDR\n";

/// What systemd would read of a unit.
struct Unit {
    files: Vec<String>,
    start: String,
    post: Option<String>,
}

impl Unit {
    /// A file below `deploy/systemd`.
    fn read(name: &str) -> Unit {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/systemd").join(name);
        let text = fs::read_to_string(path).unwrap();
        let all = |key: &str| -> Vec<String> {
            let values = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            values.map(|value| value.trim_start_matches('-').to_owned()).collect()
        };
        // An empty value takes back what was said before.
        let start = all("ExecStart").into_iter().rfind(|line| !line.is_empty()).unwrap();
        Unit { files: all("EnvironmentFile"), start, post: all("ExecStartPost").pop() }
    }

    /// A line of it as a command on a machine.
    fn command(&self, machine: &Machine, line: &str) -> Command {
        let mut variables = Vec::new();
        for file in &self.files {
            let text = fs::read_to_string(machine.path(file)).unwrap_or_default();
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            let pairs = lines.filter_map(|line| line.split_once('='));
            variables
                .extend(pairs.map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned())));
        }
        let value = |name: &str| variables.iter().rev().find(|(known, _)| known == name);
        let mut words = Vec::new();
        for word in line.split_whitespace() {
            match word.strip_prefix('$') {
                Some(name) => {
                    words.extend(value(name).into_iter().flat_map(|(_, value)| value.split_whitespace()));
                }
                None => words.push(word),
            }
        }
        let mut command = machine.command(words[0]);
        command.args(&words[1..]).env("PATH", path()).envs(variables.iter().cloned());
        command.env_remove("LODEN_STORE").env_remove("LODEN_STATE_DIR");
        command
    }
}

fn path() -> String {
    format!("{BIN}:/usr/sbin:/usr/bin:/sbin:/bin")
}

/// A Docker host.
struct Node<'a> {
    host: &'a Host,
    machine: Machine,
    engine: Engine,
    dockerd: Option<Child>,
    agent: Option<Agent>,
}

/// What Docker needs on a machine before it starts: containerd, settings, and one variant of iptables.
pub struct Engine {
    containerd: Child,
    cgroup: String,
}

impl Engine {
    pub fn settle(machine: &Machine, host: &Host, variant: Variant) -> Engine {
        machine.sh("mkdir -p /run/containerd /run/flannel /etc/docker /etc/alternatives");
        for family in Family::BOTH {
            let names = [variant.program(family).to_owned(), variant.program(family).replace("-nft", "")];
            let plain = names[1].replace("-legacy", "");
            machine.sh(&format!("ln -sf /usr/sbin/{} /etc/alternatives/{plain}", names[0]));
        }
        let mut command = machine.command("containerd");
        let log = fs::File::create(host.dir.join("containerd.log")).unwrap();
        let containerd = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let cgroup = format!(
            "/loden-docker-{}-{}",
            std::process::id(),
            host.dir.display().to_string().replace('/', "-")
        );
        let engine = Engine { containerd, cgroup };
        engine.set(machine, true);
        engine
    }

    /// Docker's own settings: no file system in layers on top of one, control groups without systemd.
    fn set(&self, machine: &Machine, live_restore: bool) {
        let text = format!(
            r#"{{"storage-driver": "vfs", "cgroup-parent": "{}", "exec-opts": ["native.cgroupdriver=cgroupfs"], "live-restore": {live_restore}}}"#,
            self.cgroup
        );
        machine.write("/etc/docker/daemon.json", &text);
    }
}

impl Drop for Engine {
    /// Control groups outlive the processes in them. Those have ended: by whoever uses this, or with their machine.
    fn drop(&mut self) {
        let _ = self.containerd.wait();
        remove_cgroup(&self.cgroup);
    }
}

impl<'a> Node<'a> {
    /// With our programs, our settings and an image. `None` with a printed reason where Docker cannot run.
    fn new(host: &'a Host, variant: Variant, image: &Path, test: &str) -> Option<Node<'a>> {
        let machine = Machine::on(host, test)?;
        machine.sh(&format!("mkdir -p {BIN}"));
        for name in ["flanneld", "flanneld-start", "mk-docker-opts.sh"] {
            machine.sh(&format!("ln -sf {} {BIN}/{name}", env!("CARGO_BIN_EXE_loden")));
        }
        let settings = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/systemd/loden.env");
        let settings = fs::read_to_string(settings).unwrap();
        let members = "https://192.0.2.1:2379,https://192.0.2.2:2379";
        assert!(settings.contains(members));
        machine.write("/etc/default/loden", &settings.replace(members, "http://192.0.2.11:2379"));
        let engine = Engine::settle(&machine, host, variant);
        let mut node = Node { host, machine, engine, dockerd: None, agent: None };
        // Whether this machine can run containers at all, before anything of ours matters.
        let able = node
            .dockerd("dockerd -H unix:///run/docker.sock --containerd=/run/containerd/containerd.sock --bridge=none --iptables=false", &Unit::read("docker.service.d/loden.conf"))
            .and_then(|()| node.docker(&format!("import {} {IMAGE}", image.display())))
            .and_then(|_| node.docker(&format!("run --rm --net=none {IMAGE} true")));
        if let Err(error) = able {
            println!("SKIP {test}: Docker cannot run containers here: {}", error.replace('\n', " "));
            return None;
        }
        node.stop_docker();
        // As a machine is until Docker comes, which then sets its policy.
        host.sh("sysctl -qw net.ipv4.ip_forward=0");
        Some(node)
    }

    /// `systemctl start loden`
    fn start_agent(&mut self) {
        let unit = Unit::read("loden.service");
        let command = unit.command(&self.machine, &unit.start);
        let file = self.machine.path("/run/flannel/subnet.env");
        let agent = Agent::by(command, &self.host.dir.join("log"), file, |child| child_of(child.id()));
        agent.ready();
        self.agent = Some(agent);
        run(unit.command(&self.machine, unit.post.as_ref().unwrap()), "ExecStartPost");
    }

    fn stop_agent(&mut self, force: bool) {
        let agent = self.agent.take().unwrap();
        if force {
            agent.kill();
        } else {
            assert_eq!(agent.terminate(), 0);
        }
    }

    /// `systemctl start docker`, which has been given our drop-in.
    fn start_docker(&mut self) {
        let unit = Unit::read("docker.service.d/loden.conf");
        // Nobody has opened a socket for it.
        let line = unit.start.replace("-H fd://", "-H unix:///run/docker.sock");
        assert_ne!(line, unit.start);
        self.dockerd(&line, &unit).unwrap();
    }

    fn dockerd(&mut self, line: &str, unit: &Unit) -> Result<(), String> {
        let mut command = unit.command(&self.machine, line);
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        self.dockerd = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
        until("Docker to answer or to end", || match self.docker("version") {
            Ok(_) => Ok(Ok(())),
            Err(_) if self.dockerd.as_mut().unwrap().try_wait().unwrap().is_some() => {
                let log = fs::read_to_string(self.log()).unwrap_or_default();
                Ok(Err(log.lines().last().unwrap_or_default().to_owned()))
            }
            Err(error) => Err(error),
        })
    }

    fn log(&self) -> PathBuf {
        self.host.dir.join("docker.log")
    }

    fn signal_docker(&self, signal: &str) {
        let pid = fs::read_to_string(self.machine.path("/run/docker.pid")).unwrap();
        self.machine.sh(&format!("kill -{signal} {}", pid.trim()));
    }

    fn stop_docker(&mut self) {
        self.signal_docker("TERM");
        self.dockerd.take().unwrap().wait().unwrap();
    }

    /// Stops or starts one of the two daemons, such as `-docker`.
    fn step(&mut self, step: &str, force: bool) {
        match step {
            "-agent" => self.stop_agent(force),
            "+agent" => self.start_agent(),
            "-docker" => self.stop_docker(),
            "+docker" => self.start_docker(),
            _ => unreachable!("{step}"),
        }
    }

    fn docker(&self, words: &str) -> Result<String, String> {
        let words: Vec<&str> =
            ["-H", "unix:///run/docker.sock"].into_iter().chain(words.split(' ')).collect();
        let output = self.machine.output("docker", &words);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(format!(
                "docker {}: {}: {}{}",
                words[2..].join(" "),
                output.status,
                text(&output.stdout),
                text(&output.stderr)
            ))
        }
    }

    /// A container that tells callers their address, and comes back with Docker.
    fn web(&self, name: &str, options: &str) -> Pod {
        let options = if options.is_empty() { String::new() } else { format!("{options} ") };
        let line = format!(
            "run -d --restart=always --stop-signal=KILL --name={name} {options}{IMAGE} httpd -f -p 80 -h /www"
        );
        self.docker(&line).unwrap();
        self.pod(name)
    }

    /// A running container's namespace and address, as the tutorials find them.
    fn pod(&self, name: &str) -> Pod {
        let inspect = |format: &str| self.docker(&format!("inspect -f {format} {name}")).unwrap();
        until(&format!("container {name} to run"), || {
            // `/var/run` is a link that would lead out of the machine.
            let key = inspect("{{.NetworkSettings.SandboxKey}}").replace("/var/run/", "/run/");
            let netns = Netns::open(&self.machine.path(&key));
            let netns = netns.map_err(|error| error.to_string())?;
            let address: IpAddr =
                inspect("{{.NetworkSettings.IPAddress}}").parse().map_err(|_| "no address")?;
            Ok(Pod { netns, addresses: vec![address] })
        })
    }

    /// Which address a server sees of a container of ours.
    fn seen(&self, container: &str, server: &str) -> Result<String, String> {
        let who =
            self.docker(&format!("exec {container} timeout 2 wget -qO- http://{server}/cgi-bin/who"))?;
        Ok(who.trim_matches(['[', ']']).trim_start_matches("::ffff:").to_owned())
    }

    /// The same once it answers.
    fn asks(&self, container: &str, server: &str) -> String {
        until(&format!("{server} to answer {container} of host {}", self.host.number), || {
            self.seen(container, server)
        })
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            println!("---- Docker on host {}\n{log}", self.host.number);
        }
        let containers = self.docker("ps -aq").unwrap_or_default();
        if !containers.is_empty() {
            let _ = self.docker(&format!("rm -f {}", containers.replace('\n', " ")));
        }
        for (name, child) in
            [("dockerd", self.dockerd.as_mut()), ("containerd", Some(&mut self.engine.containerd))]
        {
            let Some(child) = child else { continue };
            let _ = self.machine.output("pkill", &["-KILL", "-x", name]);
            let _ = child.wait();
        }
    }
}

/// busybox, its names, and a page that tells callers their address, as `docker import` takes it.
fn image(dir: &Path) -> PathBuf {
    let root = dir.join("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::create_dir_all(root.join("www/cgi-bin")).unwrap();
    fs::copy("/usr/bin/busybox", root.join("bin/busybox")).unwrap();
    for name in ["sh", "true", "echo", "httpd", "wget", "ping", "cat", "timeout"] {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    fs::write(root.join("www/cgi-bin/who"), WHO).unwrap();
    fs::set_permissions(root.join("www/cgi-bin/who"), fs::Permissions::from_mode(0o755)).unwrap();
    let archive = dir.join("image.tar");
    let mut tar = Command::new("tar");
    tar.args(["--owner=0", "--group=0", "--create", "--file"])
        .arg(&archive)
        .arg("--directory")
        .arg(root)
        .arg(".");
    run(tar, "tar");
    archive
}

/// Whether the programs are there; says so if not.
pub fn there(test: &str, variant: Variant) -> bool {
    for (program, package) in [
        ("/usr/sbin/dockerd", "docker.io"),
        ("/usr/bin/containerd", "containerd"),
        ("/usr/bin/busybox", "busybox-static"),
    ] {
        if !Path::new(program).exists() {
            println!("SKIP {test}: {program} is not installed (package {package})");
            return false;
        }
    }
    has_etcd(test) && iptables::works(test, variant)
}

/// Two Docker hosts, and another machine with etcd, which is also the world outside.
struct Bed<'a> {
    nodes: Vec<Node<'a>>,
    outside: &'a Host,
    _etcd: Etcd,
    _dir: TempDir,
}

impl<'a> Bed<'a> {
    fn new(world: &'a World, variant: Variant, config: &str, test: &str) -> Option<Bed<'a>> {
        let outside = &world.hosts[0];
        let etcd = Etcd::on(outside, &outside.public(), None);
        etcdctl(outside, &["put", "/coreos.com/network/config", config]);
        let dir = TempDir::new().unwrap();
        let image = image(dir.path());
        let nodes = world.hosts[1..].iter().map(|host| Node::new(host, variant, &image, test));
        Some(Bed { nodes: nodes.collect::<Option<_>>()?, outside, _etcd: etcd, _dir: dir })
    }
}

impl Bed<'_> {
    /// Containers see each other's own address, the outside their host's, and have the network's MTU.
    fn check(&self) {
        for (own, other) in [(0, 1), (1, 0)] {
            let (own, other) = (&self.nodes[own], &self.nodes[other]);
            let [from, to] = [own, other].map(|node| node.pod("web").addresses[0].to_string());
            assert_eq!(own.asks("web", &to), from, "host {} to host {}", own.host.number, other.host.number);
            // Masqueraded on the way out; behind the other host's published port that is seen.
            assert_eq!(own.asks("web", &format!("{}:8080", other.host.public())), own.host.public());
            let mtu = own.docker("exec web cat /sys/class/net/eth0/mtu").unwrap();
            assert_eq!(mtu, env(own, "FLANNEL_MTU"));
            // From the host itself.
            until("the host to reach a container of the other one", || {
                own.host.try_sh(&format!("ping -n -c 1 -W 1 {to}"))
            });
        }
    }

    fn outside(&self) -> Pod {
        let netns = self.outside.netns.try_clone().unwrap();
        Pod { netns, addresses: vec![self.outside.public().parse().unwrap()] }
    }
}

/// A value of `subnet.env` on a node.
fn env(node: &Node, key: &str) -> String {
    let text = fs::read_to_string(node.machine.path("/run/flannel/subnet.env")).unwrap();
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap().to_owned()
}

/// As docs/guide/docker.md has it, through the units, with masquerading by the agent.
fn by_units(test: &str, variant: Variant, config: &str) {
    if !there(test, variant) {
        return;
    }
    let world = World::new(3);
    let Some(mut bed) = Bed::new(&world, variant, config, test) else { return };
    let in_iptables = !config.contains("EnableNFTables");
    let program = variant.program(Family::V4);
    let rules = |node: &Node, table: &str| node.host.sh(&format!("{program} -t {table} -S"));
    for node in &mut bed.nodes {
        node.start_agent();
        node.start_docker();
        assert!(env(node, "FLANNEL_SUBNET").ends_with("/24"));
        assert!(rules(node, "filter").contains("-P FORWARD DROP"), "Docker's policy");
        let nat = rules(node, "nat");
        assert!(!nat.contains("! -o docker0 -j MASQUERADE"), "Docker was told not to masquerade: {nat}");
        assert_eq!(
            nat.contains("-A POSTROUTING -m comment --comment \"flanneld masq\""),
            in_iptables,
            "{nat}"
        );
        node.web("web", "-p 8080:80");
    }
    if !in_iptables {
        // Accepts in nftables do not overrule a drop: what leaves passes, what comes does not.
        let [one, two] = &bed.nodes[..] else { unreachable!() };
        let target = two.pod("web").addresses[0].to_string();
        until("Docker's policy to drop", || {
            // No published port, which Docker would let through.
            let lost = one.docker(&format!("exec web ping -c 1 -W 1 {target}")).is_err();
            let policy = two.host.sh(&format!("{program} -v -S FORWARD")).lines().next().unwrap().to_owned();
            let dropped = policy.split_whitespace().nth(4).and_then(|count| count.parse().ok()).unwrap_or(0);
            if lost && dropped > 0 { Ok(()) } else { Err(policy) }
        });
        for node in &bed.nodes {
            for side in ["-s", "-d"] {
                node.host.sh(&format!(
                    "{program} -I DOCKER-USER {side} {} -j ACCEPT",
                    env(node, "FLANNEL_NETWORK")
                ));
            }
        }
    }
    bed.check();

    // Docker and the agent go and come in every order, in order and by force; nothing is lost, no container's
    // address gets out, and none is hidden from another container.
    let pods = [bed.nodes[0].pod("web"), bed.nodes[1].pod("web")];
    let between = [Stream::start(&pods[0], &pods[1], 0), Stream::start(&pods[1], &pods[0], 0)];
    let out = Stream::start(&pods[0], &bed.outside(), 0);
    let more = || between.iter().chain([&out]).for_each(|stream| stream.more(20));
    let node = &mut bed.nodes[0];
    for force in [false, true] {
        for order in [["-agent", "-docker", "+docker", "+agent"], ["-docker", "-agent", "+agent", "+docker"]]
        {
            for step in order {
                node.step(step, force);
                more();
            }
        }
    }
    let (host, number) = (node.host.public().parse().unwrap(), node.host.number);
    let fared: Vec<_> = between.into_iter().map(Stream::finish).collect();
    let out = out.finish();
    println!(
        "host {number} restarted: {} and {} datagrams between, {} out",
        fared[0].sent, fared[1].sent, out.sent
    );
    fared.iter().for_each(|fared| fared.assert_whole(None));
    out.assert_whole(Some(host));
    bed.check();
    // A namespace that is kept open keeps its address on the bridge.
    drop(pods);

    // As Docker does it when it is not told to leave containers running: they end, and come with it again.
    for (node, order) in bed
        .nodes
        .iter_mut()
        .zip([["-docker", "-agent", "+agent", "+docker"], ["-agent", "-docker", "+docker", "+agent"]])
    {
        node.engine.set(&node.machine, false);
        node.signal_docker("HUP");
        until("Docker to read its settings", || {
            match node.docker("info -f {{.LiveRestoreEnabled}}")?.as_str() {
                "false" => Ok(()),
                other => Err(other.to_owned()),
            }
        });
        for step in order {
            node.step(step, false);
        }
    }
    bed.check();
}

#[test]
fn docker_with_vxlan() {
    let config = r#"{"Network":"172.30.0.0/16","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#;
    by_units("docker_with_vxlan", Variant::Nft, config);
}

#[test]
fn docker_with_host_gw_and_legacy_iptables() {
    let config = r#"{"Network": "172.7.0.0/16", "Backend": {"Type": "host-gw"}}"#;
    by_units("docker_with_host_gw_and_legacy_iptables", Variant::Legacy, config);
}

#[test]
fn docker_with_rules_in_nftables() {
    let config = r#"{"Network":"10.244.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#;
    by_units("docker_with_rules_in_nftables", Variant::Nft, config);
}

/// The first tutorial: host-gw, the agent without `--ip-masq`, Docker from a script. Docker then masquerades,
/// also between containers; the tutorial's rule ends that until Docker starts again; letting the agent
/// masquerade ends it for good.
#[test]
fn first_tutorial_containers_keep_their_addresses() {
    const TEST: &str = "first_tutorial_containers_keep_their_addresses";
    if !there(TEST, Variant::Nft) {
        return;
    }
    let world = World::new(3);
    let config = r#"{"Network": "172.7.0.0/16", "Backend": {"Type": "host-gw"}}"#;
    let Some(mut bed) = Bed::new(&world, Variant::Nft, config, TEST) else { return };
    for (node, third) in bed.nodes.iter_mut().zip([21, 22]) {
        let previous = format!(
            "FLANNEL_NETWORK=172.7.0.0/16\nFLANNEL_SUBNET=172.7.{third}.1/24\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=false\n"
        );
        node.machine.write("/run/flannel/subnet.env", &previous);
        let settings = node.machine.path("/etc/default/loden");
        let text = fs::read_to_string(&settings).unwrap().replace("IP_MASQ=true", "IP_MASQ=false");
        fs::write(settings, text).unwrap();
        node.engine.set(&node.machine, false);
        node.start_agent();
        node.start_docker();
        node.web("web", "");
    }
    let [one, two] = &mut bed.nodes[..] else { unreachable!() };
    assert_eq!(
        (env(one, "FLANNEL_SUBNET").as_str(), env(two, "FLANNEL_SUBNET").as_str()),
        ("172.7.21.1/24", "172.7.22.1/24")
    );
    assert_eq!(one.asks("web", "172.7.22.2"), "192.0.2.12", "Docker masquerades all that leaves its bridge");
    assert_eq!(two.asks("web", "172.7.21.2"), "192.0.2.13");
    for (node, net) in [(&*one, "172.7.21.0/24"), (&*two, "172.7.22.0/24")] {
        node.host.sh(&format!("iptables -t nat -D POSTROUTING -s {net} ! -o docker0 -j MASQUERADE"));
        node.host.sh(&format!(
            "iptables -t nat -I POSTROUTING -s {net} ! -d 172.7.0.0/16 ! -o docker0 -j MASQUERADE"
        ));
    }
    assert_eq!(one.asks("web", "172.7.22.2"), "172.7.21.2");
    assert_eq!(two.asks("web", "172.7.21.2"), "172.7.22.2");
    one.stop_docker();
    one.start_docker();
    assert_eq!(
        one.asks("web", "172.7.22.2"),
        "192.0.2.12",
        "the rule is back with Docker, as the tutorial warns"
    );
    for node in [&mut *one, two] {
        let settings = node.machine.path("/etc/default/loden");
        let text = fs::read_to_string(&settings).unwrap().replace("IP_MASQ=false", "IP_MASQ=true");
        fs::write(settings, text).unwrap();
        node.stop_agent(false);
        node.start_agent();
        node.stop_docker();
        node.start_docker();
    }
    let [one, two] = &bed.nodes[..] else { unreachable!() };
    assert_eq!(one.asks("web", "172.7.22.2"), "172.7.21.2");
    assert_eq!(two.asks("web", "172.7.21.2"), "172.7.22.2");
}
