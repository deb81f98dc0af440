//! The commands of the guides, run as they stand there (decision 0201). Before each block a comment says in which world, or why
//! it is not run.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use plan::state::Variant;

use crate::capture::{Sandbox, pod};
use crate::docker::{self, Engine};
use crate::machine::Machine;
use crate::tutorials::certificates;
use crate::world::{Agent, Etcd, Host, World, has_etcd, until};

/// Most blocks that may go without being run, here or by another test: what builds releases, and what wants a cluster.
const MOST_NOT_RUN: usize = 14;

/// Commands that go on until Ctrl-C, where a block is run line by line, and what they have said by then.
const ENDLESS: &[(&str, &str)] = &[("loden drops -f", "listening for drops"), ("loden capture", "echo re")];

/// Commands that may end otherwise than with 0 on a host that is well.
const STATUSES: &[(&str, &[i32])] = &[
    // It finds that the agent is not there yet.
    ("loden doctor", &[0, 1]),
];

/// How a block is run.
#[derive(Clone, Debug, PartialEq, Eq)]
enum How {
    In { world: String, each: bool, until: Option<String> },
    By(String),
    Not(String),
}

/// A block of commands in a guide.
#[derive(Clone, Debug)]
struct Block {
    file: String,
    line: usize,
    how: How,
    text: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// All blocks of `README.md` and the guides, in order.
fn blocks() -> Result<Vec<Block>, String> {
    let mut files = vec![PathBuf::from("README.md")];
    let guides = fs::read_dir(root().join("docs/guide")).unwrap().flatten();
    files.extend(guides.map(|entry| Path::new("docs/guide").join(entry.file_name())));
    files.retain(|file| file.extension().is_some_and(|end| end == "md"));
    files.sort();
    let mut all = Vec::new();
    for file in files {
        let text = fs::read_to_string(root().join(&file)).unwrap();
        all.extend(read(&file.display().to_string(), &text)?);
    }
    Ok(all)
}

fn read(file: &str, text: &str) -> Result<Vec<Block>, String> {
    let mut found = Vec::new();
    let mut before = "";
    let mut lines = text.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        if let Some(kind) = line.trim_start().strip_prefix("```") {
            let inside: Vec<&str> = lines
                .by_ref()
                .map(|(_, line)| line)
                .take_while(|line| !line.trim_start().starts_with("```"))
                .collect();
            if ["sh", "bash", "console", "shell"].contains(&kind) {
                let how = how(before).map_err(|error| format!("{file}:{}: {error}", at + 1))?;
                found.push(Block { file: file.to_owned(), line: at + 1, how, text: inside.join("\n") });
            }
        }
        before = line;
    }
    Ok(found)
}

fn how(comment: &str) -> Result<How, String> {
    let words = comment.trim().strip_prefix("<!-- snippet: ").and_then(|rest| rest.strip_suffix(" -->"));
    let words =
        words.ok_or("no comment before it says how it is run (docs/decisions/0201-snippets-are-run.md)")?;
    if let Some(why) = words.strip_prefix("not run: ") {
        return if why.len() > 10 { Ok(How::Not(why.to_owned())) } else { Err("no reason".to_owned()) };
    }
    if let Some(test) = words.strip_prefix("by ") {
        return Ok(How::By(test.to_owned()));
    }
    let (words, until) = match words.split_once(" until ") {
        Some((words, text)) => (words, Some(text.to_owned())),
        None => (words, None),
    };
    let (world, each) = match words.strip_suffix(" each") {
        Some(world) => (world, true),
        None => (words, false),
    };
    match WORLDS.contains(&world) {
        true => Ok(How::In { world: world.to_owned(), each, until }),
        false => Err(format!("{world:?} is no world; there are {WORLDS:?}")),
    }
}

const WORLDS: &[&str] = &[
    "new host",
    "node",
    "node to remove",
    "host of etcd with certificates",
    "Docker host",
    "Docker node",
    "lab",
];

/// Every block says how it is run; those that are not are few, and told.
#[test]
fn every_block_is_run_or_says_why_not() {
    let blocks = blocks().unwrap_or_else(|error| panic!("{error}"));
    let mut not = String::new();
    let (mut run, mut by, mut count) = (0, 0, 0);
    for Block { file, line, how, .. } in &blocks {
        match how {
            How::In { .. } => run += 1,
            How::By(test) => {
                by += 1;
                let (path, name) = test.split_once("::").unwrap_or_else(|| panic!("{file}:{line}: {test}"));
                let text = fs::read_to_string(root().join(path))
                    .unwrap_or_else(|e| panic!("{file}:{line}: {path}: {e}"));
                assert!(text.contains(&format!("fn {name}(")), "{file}:{line}: {path} has no {name}");
            }
            How::Not(why) => {
                count += 1;
                writeln!(not, "  {file}:{line}: {why}").unwrap();
            }
        }
    }
    println!("{run} blocks are run here, {by} by other tests, {count} are not:\n{not}");
    assert!(count <= MOST_NOT_RUN && run > 20, "{run} are run, {count} are not:\n{not}");
}

#[test]
fn comments_are_understood() {
    let text = "a\n<!-- snippet: node each -->\n```sh\nb\nc\n```\n```json\n{}\n```\n";
    let found = read("x.md", text).unwrap();
    assert_eq!((found.len(), found[0].line, found[0].text.as_str()), (1, 3, "b\nc"));
    assert_eq!(found[0].how, How::In { world: "node".to_owned(), each: true, until: None });
    for (comment, part) in [
        ("", "no comment"),
        ("<!-- snippet: not run:  -->", "no reason"),
        ("<!-- snippet: not run: no -->", "no reason"),
        ("<!-- snippet: moon -->", "is no world"),
    ] {
        let error = read("x.md", &format!("{comment}\n```sh\ntrue\n```\n")).unwrap_err();
        assert!(error.starts_with("x.md:2: ") && error.contains(part), "{comment}: {error}");
    }
}

/// The hosts around a reader who types what a guide says.
struct Stage {
    machine: Machine,
    tree: PathBuf,
    path: String,
    more: Vec<(&'static str, String)>,
    // In the order in which they must end.
    _pods: Vec<Sandbox>,
    _engine: Option<Engine>,
    _peer: Option<Agent>,
    _etcd: Vec<Etcd>,
    world: World,
}

/// What an installed node has, by the guides' own words.
const INSTALLED: &str = r#"
install -m 0755 dist/loden dist/loden-cni /usr/local/bin/
for name in flanneld flanneld-start mk-docker-opts.sh; do ln -sf loden /usr/local/bin/$name; done
install -D -m 0644 deploy/systemd/loden.service /etc/systemd/system/loden.service
install -D -m 0644 deploy/systemd/loden.env /etc/default/loden
install -D -m 0644 deploy/systemd/docker.service.d/loden.conf /etc/systemd/system/docker.service.d/loden.conf
echo LODEN_LOG_FORMAT=json >> /etc/default/loden
mkdir -p /run/flannel /etc/cni/net.d
printf 'FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n' > /run/flannel/subnet.env
cat > /etc/cni/net.d/10-flannel.conflist <<'END'
{"name":"cbr0","cniVersion":"1.0.0","plugins":[{"type":"flannel","delegate":{"isDefaultGateway":true}},{"type":"portmap","capabilities":{"portMappings":true}}]}
END
etcdctl put /coreos.com/network/config '{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}'
systemctl daemon-reload
systemctl enable --now loden
"#;

/// A pod with an address that guides name.
const POD: &str = "
loden-cni install --bin-dir /opt/cni/bin
ip netns add pod
loden cni add cbr0 /run/netns/pod
";

impl Stage {
    /// `None` with a printed reason where this machine cannot make it.
    fn new(world_name: &str, test: &str) -> Option<Stage> {
        let loden = Path::new(env!("CARGO_BIN_EXE_loden"));
        let cni = loden.with_file_name("loden-cni");
        if !cni.is_file() {
            println!("SKIP {test}: loden-cni is not built beside loden (`cargo build -p cni`)");
            return None;
        }
        if !has_etcd(test) || world_name.starts_with("Docker") && !docker::there(test, Variant::Nft) {
            return None;
        }
        let world = World::new(2);
        let host = &world.hosts[0];
        let machine = Machine::with(host, test, &["usr/local", "usr/share"])?;
        let tree = world.dir.path().join("tree");
        let bin = world.dir.path().join("bin");
        for dir in [&tree.join("dist"), &bin] {
            fs::create_dir_all(dir).unwrap();
        }
        for (name, text) in [
            ("systemctl", include_str!("snippets/systemctl")),
            ("journalctl", include_str!("snippets/journalctl")),
        ] {
            fs::write(bin.join(name), text).unwrap();
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        for program in [loden, &cni] {
            // Symbols of a debug build would fill the memory that these files live in.
            let to = tree.join("dist").join(program.file_name().unwrap());
            let done = Command::new("strip").arg("-o").args([&to, program]).status();
            if !done.is_ok_and(|status| status.success()) {
                fs::copy(program, &to).unwrap();
            }
        }
        let copied = Command::new("cp").arg("-a").arg(root().join("deploy")).arg(&tree).status().unwrap();
        assert!(copied.success());
        // What each reader is told to set.
        let settings = tree.join("deploy/systemd/loden.env");
        let text = fs::read_to_string(&settings).unwrap();
        let members = "https://192.0.2.1:2379,https://192.0.2.2:2379";
        assert!(text.contains(members));
        fs::write(&settings, text.replace(members, "http://192.0.2.1:2379")).unwrap();
        crate::world::sh(&world.hub, "ip addr add 192.0.2.1/24 dev wire");
        crate::world::sh(&world.hub, "ip link set lo up");
        let hub = Host::around(world.hub.try_clone().unwrap(), host);
        let mut more = vec![("ETCDCTL_API", "3".to_owned())];
        let tls = world_name.ends_with("certificates");
        let (etcd, scheme) = if tls {
            certificates(&tree, "192.0.2.1".parse().unwrap());
            let file = |name: &str| tree.join(name).display().to_string();
            more.extend([
                ("ETCDCTL_CACERT", file("ca.pem")),
                ("ETCDCTL_CERT", file("client.pem")),
                ("ETCDCTL_KEY", file("client-key.pem")),
            ]);
            (Etcd::on(&hub, "192.0.2.1", Some(&tree)), "https")
        } else {
            (Etcd::on(&hub, "192.0.2.1", None), "http")
        };
        more.push(("ETCDCTL_ENDPOINTS", format!("{scheme}://192.0.2.1:2379")));
        let path = format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", bin.display());
        let mut stage = Stage {
            machine,
            tree,
            path,
            more,
            _pods: Vec::new(),
            _engine: None,
            _peer: None,
            _etcd: vec![etcd],
            world,
        };
        if world_name.starts_with("Docker") {
            stage._engine = Some(Engine::settle(&stage.machine, &stage.world.hosts[0], Variant::Nft));
        }
        if !tls && world_name != "lab" {
            stage._peer = Some(stage.peer());
        }
        match world_name {
            "node" => {
                stage.prepare(INSTALLED);
                stage.prepare(POD);
                stage.furnish();
            }
            "Docker node" => stage.prepare(INSTALLED),
            "node to remove" => {
                stage.prepare(INSTALLED);
                stage.prepare("systemctl stop loden");
            }
            "lab" => {
                stage.prepare("install -m 0755 dist/loden dist/loden-cni /usr/local/bin/");
            }
            // Namespaces that a guide attaches by hand.
            "new host" => stage.prepare("ip netns add test"),
            _ => {}
        }
        Some(stage)
    }

    /// The agent of the other host, which has been in the cluster for a while.
    fn peer(&self) -> Agent {
        let peer = &self.world.hosts[1];
        let before = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.2.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
        fs::write(peer.subnet_file(), before).unwrap();
        peer.agent_in(
            &["--etcd-endpoints=http://192.0.2.1:2379", "--iface=eth0", "--ip-masq"],
            &[("LODEN_SOCKET", "none")],
        )
    }

    /// Pods, namespaces and traffic that guides speak of.
    fn furnish(&mut self) {
        self._peer.as_ref().unwrap().ready();
        let (far, address) = pod(&self.world.hosts[1], 3);
        assert_eq!(address, "10.244.2.3");
        self._pods.push(far);
        self.prepare("for name in x test; do ip netns add $name; done");
        until("the pods to reach each other", || {
            let (code, said) = self.run("ip netns exec pod ping -c 1 -W 1 10.244.2.3");
            if code == 0 { Ok(()) } else { Err(said) }
        });
        self.prepare("setsid ip netns exec pod ping -i 0.2 10.244.2.3 >/dev/null 2>&1 </dev/null &");
    }

    fn prepare(&self, script: &str) {
        let (code, said) = self.run(script);
        assert_eq!(code, 0, "{script}\n{said}");
    }

    /// A shell at the reader's place that goes on with the variables of the one before.
    fn shell(&self, script: &str) -> Command {
        let kept = self.tree.with_file_name("variables").display().to_string();
        let tree = self.tree.display();
        let script = format!(
            "set -e; cd {tree}; if [ -e {kept} ]; then . {kept}; fi; exec 2>&1; set -x\n{script}\n{{ set +x; }} 2>/dev/null; declare -px >{kept}\n"
        );
        let mut command = self.machine.command("env");
        command.args(["-i", &format!("PATH={}", self.path), "HOME=/root", "LC_ALL=C", "USER=root"]);
        command.args(self.more.iter().map(|(name, value)| format!("{name}={value}")));
        // An argument of the host's `sh` may be long; input would be read by the commands themselves.
        command.args(["bash", "-c", &script]).stdin(Stdio::null());
        command
    }

    fn run(&self, script: &str) -> (i32, String) {
        let output = self.shell(script).output().unwrap();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs what goes on until Ctrl-C; ends it so when it has said a text.
    fn run_until(&self, script: &str, text: &str) -> Result<(), String> {
        let mut child = self.shell(script).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut found = false;
        for line in out.lines().map_while(Result::ok) {
            said.push_str(&line);
            said.push('\n');
            // The shell repeats the command first.
            if !found && !line.starts_with('+') && line.contains(text) {
                found = true;
                self.interrupt(script);
            }
        }
        child.wait().unwrap();
        if found { Ok(()) } else { Err(format!("it ended without {text:?}:\n{said}")) }
    }

    /// Ctrl-C for the last command of a block.
    fn interrupt(&self, script: &str) {
        let joined = script.replace("\\\n", " ");
        let line = joined.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        let program = line.split_whitespace().next().unwrap_or_default();
        let program = program.rsplit('/').next().unwrap_or_default();
        until("the program to take Ctrl-C", || {
            let done = self.machine.output("pkill", &["-INT", "-f", &format!("^[^ ]*{program} ")]);
            if done.status.success() { Ok(()) } else { Err(format!("{program} is not there")) }
        });
    }

    fn try_block(&self, block: &Block, each: bool, until: Option<&str>) -> Result<(), String> {
        if !each {
            if let Some(text) = until {
                return self.run_until(&block.text, text);
            }
            let (code, said) = self.run(&block.text);
            return if code == 0 { Ok(()) } else { Err(format!("exit status {code}\n{said}")) };
        }
        for line in block.text.lines().filter(|line| !line.trim().is_empty()) {
            if let Some((_, text)) = ENDLESS.iter().find(|(command, _)| line.starts_with(command)) {
                self.run_until(line.split(" #").next().unwrap_or_default(), text)
                    .map_err(|error| format!("{line}: {error}"))?;
                continue;
            }
            let (code, said) = self.run(line);
            let allowed = STATUSES
                .iter()
                .find(|(command, _)| line.starts_with(command))
                .map_or(&[0][..], |(_, all)| all);
            if !allowed.contains(&code) {
                return Err(format!("{line}: exit status {code}\n{said}"));
            }
        }
        Ok(())
    }
}

/// Runs what the guides say of a world, each guide in a new one.
fn in_world(name: &str) {
    let all = blocks().unwrap_or_else(|error| panic!("{error}"));
    let here = |block: &Block| matches!(&block.how, How::In { world, .. } if world == name);
    let mut files: Vec<&str> =
        all.iter().filter(|block| here(block)).map(|block| block.file.as_str()).collect();
    files.dedup();
    assert!(!files.is_empty(), "no guide speaks of {name}");
    for file in files {
        let Some(stage) = Stage::new(name, &format!("snippets of {file}, {name}")) else { return };
        for block in all.iter().filter(|block| block.file == file && here(block)) {
            let How::In { each, until, .. } = &block.how else { unreachable!() };
            println!("{file}:{}", block.line);
            stage
                .try_block(block, *each, until.as_deref())
                .unwrap_or_else(|error| panic!("{file}:{}: {}\n---- {error}", block.line, block.text));
        }
    }
}

#[test]
fn on_a_new_host() {
    in_world("new host");
}

#[test]
fn on_a_node() {
    in_world("node");
}

#[test]
fn on_a_node_to_remove() {
    in_world("node to remove");
}

#[test]
fn with_etcd_and_certificates() {
    in_world("host of etcd with certificates");
}

#[test]
fn on_a_docker_host() {
    in_world("Docker host");
}

#[test]
fn on_a_docker_node() {
    in_world("Docker node");
}

#[test]
fn with_the_lab_alone() {
    in_world("lab");
}
