//! A real containerd runs real pods through our CNI configuration, asked as the kubelet asks (CRI).

mod cri;
mod image;

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use kernel::Netns;

use cri::{Cri, LinuxPod, PodConfig, PodMetadata, PortMapping};

use crate::machine::{Machine, remove_cgroup};
use crate::world::{Agent, Host, World, sh, until};

/// As `kube-flannel.yml` has it.
const CONFLIST: &str = r#"{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
"#;

/// Devices in memory, no AppArmor, and our image where a registry's pause image would be.
const CONTAINERD: &str = r#"
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "loden.test/pod:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
"#;

const NETWORK: &str = r#"{"Network":"10.244.0.0/16","IPv6Network":"fd00:10::/56","EnableIPv6":true,"EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#;

/// A node of a cluster: a host, its files, its containerd.
struct Node<'a> {
    host: &'a Host,
    machine: Machine,
    containerd: Option<Child>,
    socket: PathBuf,
    cgroup: String,
}

impl<'a> Node<'a> {
    /// With the image imported; `None` with a printed reason where containerd cannot run containers.
    fn new(host: &'a Host, image: &Path, test: &str) -> Option<Node<'a>> {
        let machine = Machine::on(host, test)?;
        machine.write("/etc/containerd/config.toml", CONTAINERD);
        // What a package or a user put on the machine the test runs on is not part of it.
        for place in ["/etc/cni/net.d", "/opt/cni/bin", "/var/lib/cni"] {
            machine.sh(&format!("mkdir -p {place}"));
            machine.sh(&format!("find {place} -mindepth 1 -delete"));
        }
        let socket = machine.path("/run/containerd/containerd.sock");
        let cgroup = format!("/loden-it-{}-{}", std::process::id(), host.number);
        let mut node = Node { host, machine, containerd: None, socket, cgroup };
        node.start_containerd();
        let ctr = |words: &[&str]| {
            let output = node.machine.output("ctr", &[&["--namespace", "k8s.io"], words].concat());
            let error = String::from_utf8_lossy(&output.stderr).replace('\n', " ");
            if output.status.success() { Ok(()) } else { Err(format!("ctr {}: {error}", words[0])) }
        };
        let (archive, group) = (image.display().to_string(), format!("{}/probe", node.cgroup));
        let probe = ["run", "--rm", "--cgroup", &group, image::NAME, "probe", "/pod", "end"];
        let able = ctr(&["images", "import", "--snapshotter", "native", &archive])
            .and_then(|()| ctr(&[&probe[..1], &["--snapshotter", "native"], &probe[1..]].concat()));
        match able {
            Ok(()) => Some(node),
            Err(error) => {
                println!("SKIP {test}: containerd cannot run a container here: {error}");
                None
            }
        }
    }

    fn start_containerd(&mut self) {
        let mut command = self.machine.command("containerd");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        command.stdout(Stdio::null()).stderr(log);
        self.containerd = Some(command.spawn().unwrap());
        until("containerd to answer", || self.cri().pods().map_err(|e| format!("{e}\n{}", self.said())));
    }

    fn stop_containerd(&mut self) {
        self.machine.sh("pkill -TERM -x containerd");
        self.containerd.take().unwrap().wait().unwrap();
    }

    fn log(&self) -> PathBuf {
        self.host.dir.join("containerd.log")
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn cri(&self) -> Cri<'_> {
        Cri { socket: &self.socket }
    }

    /// An agent that keeps the runtime's configuration in place once pods can be given a network.
    fn agent(&self) -> Agent {
        let conflist = [("LODEN_CNI_CONF", "/etc/cni/net.d/10-flannel.conflist")];
        let agent = self.machine.agent(self.host, &["--ip-masq"], &conflist);
        agent.ready();
        agent
    }

    /// The plugins and what the agent copies, as the manifest's init container and ConfigMap provide them.
    fn install_cni(&self) {
        let program = Path::new(env!("CARGO_BIN_EXE_loden")).with_file_name("loden-cni");
        assert!(program.exists(), "{} is built with the workspace: cargo build -p cni", program.display());
        self.machine.sh(&format!("{} install --bin-dir /opt/cni/bin", program.display()));
        self.machine.write("/etc/kube-flannel/cni-conf.json", CONFLIST);
    }

    fn config(&self, name: &str, ports: &[(i32, i32)]) -> PodConfig {
        let port = |&(host_port, container_port)| PortMapping { protocol: 0, container_port, host_port };
        PodConfig {
            metadata: Some(PodMetadata {
                name: name.to_owned(),
                uid: format!("{name}-uid"),
                namespace: "default".to_owned(),
            }),
            log_directory: "/run/pods".to_owned(),
            port_mappings: ports.iter().map(port).collect(),
            linux: Some(LinuxPod { cgroup_parent: self.cgroup.clone() }),
        }
    }

    /// A pod with a container in it that tells callers their address.
    fn pod(&self, name: &str, ports: &[(i32, i32)]) -> Pod {
        let config = self.config(name, ports);
        let made = self.cri().run_pod(&config).and_then(|id| {
            self.cri().start(&id, &config, image::NAME, &["/pod", "serve"])?;
            Ok(Pod { addresses: self.cri().addresses(&id)?, netns: self.netns_of(&id), id })
        });
        made.unwrap_or_else(|error| panic!("{error}\n{}", self.said()))
    }

    /// The namespace the runtime made for a pod, by the address it has.
    fn netns_of(&self, pod: &str) -> Netns {
        let address = self.cri().addresses(pod).unwrap()[0].clone();
        let wanted = format!(" {address}/");
        let paths = std::fs::read_dir(self.machine.path("/run/netns")).unwrap().map(|e| e.unwrap().path());
        let mut namespaces = paths.map(|path| Netns::open(&path).unwrap());
        namespaces.find(|netns| sh(netns, "ip -o addr show").contains(&wanted)).unwrap()
    }

    /// What everybody can still see of pods that are gone: devices, files, rules, namespaces.
    fn remains(&self) -> Vec<String> {
        let links = self.host.json("ip -j link show");
        let links = links.as_array().unwrap().iter().map(|l| l["ifname"].as_str().unwrap().to_owned());
        let mut found: Vec<String> = links.filter(|name| name.starts_with("veth")).collect();
        // The store keeps its lock and the last address given; the index of it is one file per store.
        let lasting = ["/lock", "/last_reserved_ip.0", "/last_reserved_ip.1"];
        let of_pods = |name: &String| {
            let kept = ["/var/lib/cni/loden/ipam/", "/var/lib/cni/loden/locks/"];
            !self.machine.path(name).is_dir()
                && !kept.iter().any(|place| name.starts_with(place))
                && !lasting.iter().any(|end| name.ends_with(end))
        };
        for place in ["/var/lib/cni", "/run/netns", "/run/containerd/io.containerd.runtime.v2.task/k8s.io"] {
            found.extend(self.machine.list(place).into_iter().filter(of_pods));
        }
        found.extend(
            self.host.sh("nft list ruleset").lines().filter(|l| l.contains("dnat to")).map(str::to_owned),
        );
        found
    }
}

impl Drop for Node<'_> {
    /// Control groups outlive the processes in them.
    fn drop(&mut self) {
        for pod in self.cri().pods().unwrap_or_default() {
            let _ = self.cri().end_pod(&pod);
        }
        remove_cgroup(&self.cgroup);
        if let Some(mut containerd) = self.containerd.take() {
            let _ = self.machine.output("pkill", &["-KILL", "-x", "containerd"]);
            let _ = containerd.wait();
        }
        if std::thread::panicking() {
            println!("---- containerd on host {}\n{}", self.host.number, self.said());
        }
    }
}

struct Pod {
    id: String,
    addresses: Vec<String>,
    netns: Netns,
}

impl Pod {
    /// Asks the server at an address which address we have; as a user would, until it answers.
    fn asks(&self, address: &str, port: u16) -> String {
        let target = SocketAddr::new(address.parse().unwrap(), port);
        until(&format!("{target} to answer {}", self.addresses[0]), || {
            let called =
                self.netns.run(|| TcpStream::connect_timeout(&target, Duration::from_secs(1))).unwrap();
            let mut text = String::new();
            called.and_then(|mut stream| stream.read_to_string(&mut text)).map_err(|e| e.to_string())?;
            Ok(text)
        })
    }

    /// Each sees the other with its own address, in both families.
    fn reaches(&self, other: &Pod) {
        for (own, address) in self.addresses.iter().zip(&other.addresses) {
            assert_eq!(&self.asks(address, 80), own, "seen by {address}");
        }
    }
}

#[test]
fn containerd_runs_pods_that_reach_each_other() {
    let test = "containerd_runs_pods_that_reach_each_other";
    if !Path::new("/usr/bin/containerd").exists() {
        println!("SKIP {test}: containerd is not installed (package containerd)");
        return;
    }
    let world = World::with_config(2, NETWORK);
    let image = match image::make(world.dir.path()) {
        Ok(image) => image,
        Err(error) => {
            println!("SKIP {test}: no static program can be made for the image: {error}");
            return;
        }
    };
    let Some(mut one) = Node::new(&world.hosts[0], &image, test) else { return };
    let Some(two) = Node::new(&world.hosts[1], &image, test) else { return };

    one.install_cni();
    two.install_cni();
    // Before there is an agent the node is not ready; where flanneld's init container has put the file
    // already, a pod is refused with the way out, and nothing of it stays.
    assert!(two.cri().network().unwrap_err().contains("cni plugin not initialized"));
    one.machine.sh("cp /etc/kube-flannel/cni-conf.json /etc/cni/net.d/10-flannel.conflist");
    until("the runtime to read the file", || one.cri().network());
    let refused = one.cri().run_pod(&one.config("early", &[])).unwrap_err();
    assert!(refused.contains("/run/flannel/subnet.env") && refused.contains("agent"), "{refused}");
    assert_eq!(one.remains(), [""; 0]);

    let (agent, _agent2) = (one.agent(), two.agent());
    until("the other runtime's network to be ready", || two.cri().network());
    let (a, b) = (one.pod("a", &[]), two.pod("b", &[(8080, 80)]));
    assert_eq!((a.addresses.len(), b.addresses.len()), (2, 2), "{:?} {:?}", a.addresses, b.addresses);
    a.reaches(&b);
    b.reaches(&a);
    // The host's port, from a pod of the other host: masqueraded by its own host on the way out.
    assert_eq!(a.asks(&world.hosts[1].public(), 8080), world.hosts[0].public());

    assert!(one.remains().len() > 4, "what is looked for is there: {:?}", one.remains());

    // The runtime restarts; pods live on, are known and can be ended.
    one.stop_containerd();
    a.reaches(&b);
    one.start_containerd();
    assert_eq!(one.cri().pods().unwrap(), std::slice::from_ref(&a.id));
    until("the runtime's network to be ready again", || one.cri().network());

    // A pod started while the agent is away, and one deleted.
    assert_eq!(agent.terminate(), 0);
    let c = one.pod("c", &[(8081, 80)]);
    c.reaches(&b);
    b.reaches(&c);
    a.reaches(&c);
    one.cri().end_pod(&a.id).unwrap();
    let agent = one.agent();
    c.reaches(&b);
    // Killed and replaced, nothing is noticed.
    agent.kill();
    b.reaches(&c);
    let _agent = one.agent();
    b.reaches(&c);
    let d = one.pod("d", &[]);
    d.reaches(&b);
    c.reaches(&d);

    for (node, pods) in [(&one, vec![&c, &d]), (&two, vec![&b])] {
        for pod in pods {
            node.cri().end_pod(&pod.id).unwrap();
        }
        assert_eq!(node.cri().pods().unwrap(), [""; 0]);
        assert_eq!(node.remains(), [""; 0]);
    }
}
