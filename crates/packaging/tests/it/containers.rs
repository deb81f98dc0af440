//! Flannel's manifests with only the images replaced, run by containerd; and the other programs that load
//! images.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use packaging::image::{self, KINDS};
use packaging::yaml;
use serde_json::Value;
use tempfile::TempDir;

use crate::{output, programs, read, there};

const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon in a network namespace of its own; ends with the value.
struct Daemon(Child);

impl Daemon {
    fn start(dir: &Path, words: &[&str]) -> Daemon {
        let log = File::create(dir.join("log")).unwrap();
        let child = Command::new("unshare")
            .arg("--net")
            .args(words)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("start a daemon");
        Daemon(child)
    }

    fn in_namespace(&self, words: &str) -> Output {
        let target = format!("--target={}", self.0.id());
        let mut all = vec![target.as_str(), "--net"];
        all.extend(words.split(' '));
        output("nsenter", &all)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

fn until(what: &str, dir: &Path, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        let log = || fs::read_to_string(dir.join("log")).unwrap_or_default();
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}: {}", log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Both images of the programs the tests have built.
fn archives(programs: &Path, dir: &Path) -> Vec<(&'static str, PathBuf)> {
    let arch = image::this_architecture().unwrap().to_owned();
    let made = KINDS.iter().map(|kind| {
        let archive = image::build(kind, &[(arch.clone(), programs.to_owned())], "{}\n", 0, 1).unwrap();
        let file = dir.join(format!("{}.tar", kind.name));
        fs::write(&file, archive.bytes).unwrap();
        (kind.name, file)
    });
    made.collect()
}

/// One container of a manifest.
#[derive(Debug)]
struct Step {
    image: String,
    words: Vec<String>,
    /// Directory of the host below the test's own, and where it is mounted.
    mounts: Vec<(String, String)>,
    capabilities: Vec<String>,
    /// All others are dropped, and the image is read-only.
    tight: bool,
    env: Vec<String>,
}

/// containerd with our images, and a host's directories.
struct Node {
    dir: TempDir,
    daemon: Daemon,
}

impl Node {
    fn start(programs: &Path) -> Node {
        let dir = TempDir::new().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\n  address = {:?}\n",
            path("root"),
            path("state"),
            path("sock")
        );
        fs::write(dir.path().join("config.toml"), config).unwrap();
        let daemon = Daemon::start(dir.path(), &["containerd", "--config", &path("config.toml")]);
        let node = Node { dir, daemon };
        until("containerd", node.dir.path(), || node.ctr(&["version"]).status.success());
        for (name, file) in archives(programs, node.dir.path()) {
            let done = node.ctr(&["image", "import", file.to_str().unwrap()]);
            assert!(done.status.success(), "import {name}: {}", String::from_utf8_lossy(&done.stderr));
        }
        node.config_map();
        node
    }

    fn ctr(&self, words: &[&str]) -> Output {
        let socket = self.dir.path().join("sock");
        output("ctr", &[&["--address", socket.to_str().unwrap()], words].concat())
    }

    fn host(&self, path: &str) -> PathBuf {
        let path = self.dir.path().join("host").join(path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// The files of flannel's ConfigMap as kubelet mounts them: links through a directory that it swaps.
    fn config_map(&self) {
        let documents = yaml::documents(&read("deploy/kube-loden.yml")).unwrap();
        let map = documents.iter().find(|d| d["kind"] == "ConfigMap").unwrap();
        let dir = self.host("etc/kube-flannel");
        fs::create_dir(dir.join("..2026")).unwrap();
        symlink("..2026", dir.join("..data")).unwrap();
        for (key, value) in map["data"].as_object().unwrap() {
            fs::write(dir.join("..2026").join(key), value.as_str().unwrap()).unwrap();
            symlink(format!("..data/{key}"), dir.join(key)).unwrap();
        }
    }

    fn command(&self, name: &str, step: &Step) -> Vec<String> {
        let mut words: Vec<String> = ["run", "--rm", "--net-host"].map(str::to_owned).to_vec();
        let mut mount = |from: &Path, to: &str, how: &str| {
            words.push("--mount".to_owned());
            words.push(format!("type=bind,src={},dst={to},options=rbind:{how}", from.display()));
        };
        for (from, to) in &step.mounts {
            let read_only = to.starts_with("/etc/kube-flannel");
            mount(&self.host(from), to.trim_end_matches('/'), if read_only { "ro" } else { "rw" });
        }
        // Programs built for tests are linked with the system's C library; those of `cargo xtask dist` are not.
        for library in ["/lib", "/lib64"].iter().filter(|path| Path::new(path).exists()) {
            mount(Path::new(library), library, "ro");
        }
        if step.tight {
            words.push("--read-only".to_owned());
            for dropped in [
                "CHOWN",
                "DAC_OVERRIDE",
                "FSETID",
                "FOWNER",
                "MKNOD",
                "NET_RAW",
                "SETGID",
                "SETUID",
                "SETFCAP",
                "SETPCAP",
                "NET_BIND_SERVICE",
                "SYS_CHROOT",
                "KILL",
                "AUDIT_WRITE",
            ] {
                if !step.capabilities.iter().any(|kept| kept == dropped) {
                    words.extend(["--cap-drop".to_owned(), format!("CAP_{dropped}")]);
                }
            }
        }
        for capability in &step.capabilities {
            words.extend(["--cap-add".to_owned(), format!("CAP_{capability}")]);
        }
        for pair in &step.env {
            words.extend(["--env".to_owned(), pair.clone()]);
        }
        words.extend([step.image.clone(), name.to_owned()]);
        words.extend(step.words.iter().cloned());
        words
    }

    fn run(&self, name: &str, step: &Step) -> Output {
        let words = self.command(name, step);
        self.ctr(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

fn kind(name: &str) -> String {
    image::reference(KINDS.iter().find(|kind| kind.name == name).unwrap())
}

/// The containers of flannel's manifests: v0.21.5 as the tutorials have it and released manifests since
/// (built from its kustomize base), and v0.28.9 of its Documentation and its chart.
fn flannels(install: &[&str], flags: &[&str]) -> Vec<Step> {
    let step = |image: &str, words: &[&str], mounts: &[(&str, &str)], capabilities: &[&str]| Step {
        image: kind(image),
        words: words.iter().map(|w| (*w).to_owned()).collect(),
        mounts: mounts.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect(),
        capabilities: capabilities.iter().map(|c| (*c).to_owned()).collect(),
        tight: false,
        env: Vec::new(),
    };
    let files = ["/etc/kube-flannel/cni-conf.json", "/etc/cni/net.d/10-flannel.conflist"];
    vec![
        step(
            "loden-cni",
            &["cp", "-f", "/flannel", "/opt/cni/bin/flannel"],
            &[("opt/cni/bin", "/opt/cni/bin")],
            &[],
        ),
        step(
            "loden",
            &[install, &files].concat(),
            &[("etc/cni/net.d", "/etc/cni/net.d"), ("etc/kube-flannel", "/etc/kube-flannel/")],
            &[],
        ),
        step(
            "loden",
            &[&["/opt/bin/flanneld"], flags].concat(),
            &[("run/flannel", "/run/flannel"), ("etc/kube-flannel", "/etc/kube-flannel/")],
            &["NET_ADMIN", "NET_RAW"],
        ),
    ]
}

/// The containers of a manifest of ours.
fn ours(file: &str) -> Vec<Step> {
    let documents = yaml::documents(&read(file)).unwrap();
    let daemons = documents.iter().find(|d| d["kind"] == "DaemonSet").unwrap();
    let spec = &daemons["spec"]["template"]["spec"];
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let host = |name: &Value| {
        let volume = list(&spec["volumes"]).into_iter().find(|v| v["name"] == *name).unwrap();
        let path = text(&volume["hostPath"]["path"]);
        if path.is_empty() { "etc/kube-flannel".to_owned() } else { path.trim_start_matches('/').to_owned() }
    };
    let containers = [list(&spec["initContainers"]), list(&spec["containers"])].concat();
    let steps = containers.iter().map(|container| Step {
        image: text(&container["image"]),
        words: list(&container["command"]).iter().chain(&list(&container["args"])).map(text).collect(),
        mounts: list(&container["volumeMounts"])
            .iter()
            .filter(|mount| mount["name"] != "xtables-lock")
            .map(|mount| (host(&mount["name"]), text(&mount["mountPath"])))
            .collect(),
        capabilities: list(&container["securityContext"]["capabilities"]["add"]).iter().map(text).collect(),
        tight: container["securityContext"]["readOnlyRootFilesystem"] == true,
        env: list(&container["env"])
            .iter()
            .filter(|env| env["value"].is_string())
            .map(|env| format!("{}={}", text(&env["name"]), text(&env["value"])))
            .collect(),
    });
    steps.collect()
}

/// Every container of every manifest starts from our images and does its work; the agent with exactly the
/// manifest's privileges, on a store without a cluster.
#[test]
fn manifests_run_with_only_the_images_replaced() {
    let test = "containers::manifests_run_with_only_the_images_replaced";
    if !["containerd", "ctr", "runc"].iter().all(|program| there(test, program)) {
        return;
    }
    let Some(programs) = programs(test) else { return };
    let node = Node::start(&programs);
    for line in [
        "ip link set lo up",
        "ip link add eth0 type veth peer name wire",
        "ip addr add 192.0.2.11/24 dev eth0",
        "ip link set eth0 up",
        "ip link set wire up",
        "ip route add default via 192.0.2.1",
    ] {
        assert!(node.daemon.in_namespace(line).status.success(), "{line}");
    }
    let store = node.host("var/lib/loden").join("leases.db");
    let put = Command::new(programs.join("loden"))
        .args(["config", "put", "-"])
        .env("LODEN_STORE", format!("sqlite:{}", store.display()))
        .stdin(File::open(node.host("etc/kube-flannel").join("net-conf.json")).unwrap())
        .status();
    assert!(put.unwrap().success());
    let manifests = [
        ("v0.21.5", flannels(&["cp", "-f"], &["--ip-masq", "--kube-subnet-mgr"])),
        (
            "v0.28.9",
            flannels(&["/opt/bin/install-conf"], &["--ip-masq", "--kube-subnet-mgr", "--healthz-port=8081"]),
        ),
        ("ours", ours("deploy/kube-loden.yml")),
        ("chart", ours("crates/packaging/tests/golden/defaults.yaml")),
    ];
    for (manifest, steps) in &manifests {
        for dir in ["opt/cni/bin", "etc/cni/net.d", "run/flannel"] {
            fs::remove_dir_all(node.host(dir)).unwrap();
        }
        let (agent, init) = steps.split_last().unwrap();
        // Somebody's plugin, which must stay.
        fs::write(node.host("opt/cni/bin").join("bridge"), "foreign").unwrap();
        for (n, step) in init.iter().enumerate() {
            let done = node.run(&format!("init-{}-{n}", manifest.replace('.', "-")), step);
            assert!(done.status.success(), "{manifest} {step:?}: {}", String::from_utf8_lossy(&done.stderr));
        }
        let plugin = node.host("opt/cni/bin").join("flannel");
        assert!(fs::symlink_metadata(&plugin).unwrap().is_file(), "{manifest}");
        assert_eq!(fs::read(&plugin).unwrap(), fs::read(programs.join("loden-cni")).unwrap(), "{manifest}");
        assert_eq!(
            fs::read_to_string(node.host("opt/cni/bin").join("bridge")).unwrap(),
            "foreign",
            "{manifest}"
        );
        let conflist = node.host("etc/cni/net.d").join("10-flannel.conflist");
        let by_agent = agent.env.iter().any(|pair| pair.starts_with("LODEN_CNI_CONF="));
        assert_eq!(conflist.exists(), !by_agent, "{manifest}: before the agent is ready");
        run_agent(&node, manifest, agent);
        let source = node.host("etc/kube-flannel").join("cni-conf.json");
        assert_eq!(fs::read(&conflist).unwrap(), fs::read(source).unwrap(), "{manifest}");
    }
    replacing_a_running_plugin(&node);
}

/// Until `subnet.env` and the device are there; ended by SIGTERM, as kubelet does.
fn run_agent(node: &Node, manifest: &str, agent: &Step) {
    let name = format!("agent-{}", manifest.replace('.', "-"));
    let step = Step {
        image: agent.image.clone(),
        words: agent.words.iter().filter(|word| *word != "--kube-subnet-mgr").cloned().collect(),
        mounts: [agent.mounts.clone(), vec![("var/lib/loden".to_owned(), "/var/lib/loden".to_owned())]]
            .concat()
            .into_iter()
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect(),
        capabilities: agent.capabilities.clone(),
        env: [agent.env.clone(), vec!["LODEN_STORE=sqlite:/var/lib/loden/leases.db".to_owned()]].concat(),
        tight: agent.tight,
    };
    let words = node.command(&name, &step);
    let log = node.dir.path().join("agent.log");
    let socket = node.dir.path().join("sock");
    let mut child = Command::new("ctr")
        .arg("--address")
        .arg(&socket)
        .args(&words)
        .stdin(Stdio::null())
        .stdout(File::create(&log).unwrap())
        .stderr(File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let subnet = node.host("run/flannel").join("subnet.env");
    let waits_for_conf = step.env.iter().any(|pair| pair.starts_with("LODEN_CNI_CONF="));
    let conflist = node.host("etc/cni/net.d").join("10-flannel.conflist");
    let deadline = Instant::now() + PATIENCE;
    while !subnet.exists() || (waits_for_conf && !conflist.exists()) {
        let said = fs::read_to_string(&log).unwrap_or_default();
        assert!(Instant::now() < deadline, "{manifest}: the agent is not ready: {said}");
        assert!(child.try_wait().unwrap().is_none(), "{manifest}: the agent ended: {said}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let link = node.daemon.in_namespace("ip -o -d link show flannel.1");
    assert!(String::from_utf8_lossy(&link.stdout).contains("vxlan id 1"), "{manifest}: {link:?}");
    node.ctr(&["task", "kill", "--signal", "SIGTERM", &name]);
    let status = child.wait().unwrap();
    assert!(status.success(), "{manifest}: {status}: {}", fs::read_to_string(&log).unwrap());
}

/// F-160: `cp` while the plugin runs neither fails nor disturbs it.
fn replacing_a_running_plugin(node: &Node) {
    let plugin = node.host("opt/cni/bin").join("flannel");
    let before = fs::metadata(&plugin).unwrap().ino();
    let mut running = Command::new(&plugin)
        .envs([("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c"), ("CNI_IFNAME", "eth0")])
        .envs([("CNI_NETNS", "/nowhere"), ("CNI_PATH", "/nowhere")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let done = node.run("init-again", &flannels(&["cp", "-f"], &[])[0]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_ne!(fs::metadata(&plugin).unwrap().ino(), before, "the file is a new one");
    running.stdin.take().unwrap().write_all(b"{\"cniVersion\":\"1.0.0\"}").unwrap();
    let answer = running.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&answer.stdout).contains("\"code\""), "an error as JSON: {answer:?}");
}

#[test]
fn podman_loads_the_images() {
    let test = "containers::podman_loads_the_images";
    if !there(test, "podman") {
        return;
    }
    let Some(programs) = programs(test) else { return };
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (store, run) = (path("store"), path("run"));
    let podman = |words: &[&str]| {
        let place = ["--root", &store, "--runroot", &run, "--storage-driver", "vfs"];
        output("podman", &[place.as_slice(), words].concat())
    };
    for (name, file) in archives(&programs, dir.path()) {
        let done = podman(&["load", "--input", file.to_str().unwrap()]);
        assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
        let inspected = podman(&["image", "inspect", "--format", "{{.Config.Entrypoint}}", &kind(name)]);
        assert!(inspected.status.success() && inspected.stdout.starts_with(b"[/opt/bin/"), "{inspected:?}");
    }
}

#[test]
fn docker_loads_the_images() {
    let test = "containers::docker_loads_the_images";
    if !["dockerd", "docker"].iter().all(|program| there(test, program)) {
        return;
    }
    let Some(programs) = programs(test) else { return };
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let socket = format!("unix://{}", path("sock"));
    let _daemon = Daemon::start(
        dir.path(),
        &[
            "dockerd",
            &format!("--data-root={}", path("data")),
            &format!("--exec-root={}", path("exec")),
            &format!("--pidfile={}", path("pid")),
            &format!("--host={socket}"),
            "--bridge=none",
            "--iptables=false",
            "--storage-driver=vfs",
        ],
    );
    let docker = |words: &[&str]| output("docker", &[&["--host", socket.as_str()], words].concat());
    until("dockerd", dir.path(), || docker(&["version"]).status.success());
    for (name, file) in archives(&programs, dir.path()) {
        let done = docker(&["load", "--input", file.to_str().unwrap()]);
        assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
        let inspected = docker(&["image", "inspect", "--format", "{{.Architecture}}", &kind(name)]);
        assert_eq!(String::from_utf8_lossy(&inspected.stdout).trim(), image::this_architecture().unwrap());
    }
}
