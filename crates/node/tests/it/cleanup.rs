//! `loden cleanup` beside a full picture of a host before anything of ours was there: kernel, every
//! parameter of the network, every file. What differs afterwards is nothing, or is named with the reason.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::{Value, json};

use crate::faults::{FOREIGN, try_sh};
use crate::machine::{Machine, child_of};
use crate::migrate::recording::Recording;
use crate::world::{Agent, Host, World, until};

const NETWORK: &str = r#"{"Network":"10.244.0.0/16","SubnetMax":"10.244.199.0","EnableIPv6":true,"IPv6Network":"fd00:10::/48","Backend":{"Type":"vxlan","CheckSources":true}}"#;

/// Everything a host is, as lines that say where they come from. What lives by itself is left out: learned
/// neighbours and counters.
fn kernel_picture(host: &Host) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for command in [
        "ip -j -d link show",
        "ip -j addr show",
        "ip -j route show table all",
        "ip -j -6 route show table all",
        "ip -j rule show",
        "ip -j -6 rule show",
        "ip -j nexthop show",
        "ip -j neigh show nud permanent",
        "ip -j -6 neigh show nud permanent",
        "bridge -j fdb show",
    ] {
        let mut items: Value = serde_json::from_str(&try_sh(host, command)).unwrap_or_default();
        for item in items.as_array_mut().into_iter().flatten() {
            // A bridge's timers run.
            if let Some(data) = item.pointer_mut("/linkinfo/info_data").and_then(Value::as_object_mut) {
                data.retain(|key, _| !key.ends_with("_timer"));
            }
            lines.insert(format!("{command}: {item}"));
        }
    }
    for program in ["nft -s list ruleset", "iptables-save", "ip6tables-save"] {
        let text = try_sh(host, program);
        let mut table = String::new();
        for line in text.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty()) {
            if line.starts_with("table ") || line.starts_with('*') {
                table = line.trim_end_matches(" {").to_owned();
            }
            // Chains are shown with counters.
            let line = line.split(" [").next().unwrap_or_default();
            lines.insert(format!("{program}: {table}: {line}"));
        }
    }
    let parameters = host.netns.run(|| {
        let mut found = BTreeSet::new();
        parameters(Path::new("/proc/sys/net"), &mut found);
        found
    });
    lines.extend(parameters.unwrap());
    lines
}

fn parameters(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            parameters(&path, found);
        } else if path.file_name().is_some_and(|name| name != "nf_conntrack_count") {
            // Some are for writing only.
            let value = std::fs::read_to_string(&path).unwrap_or_default();
            found.insert(format!("sysctl: {} = {}", path.display(), value.trim()));
        }
    }
}

/// What one has and the other has not.
fn changes(before: &BTreeSet<String>, after: &BTreeSet<String>) -> Vec<String> {
    let gone = before.difference(after).map(|l| format!("- {l}"));
    gone.chain(after.difference(before).map(|l| format!("+ {l}"))).collect()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

/// One pod of the network with a port of the host, by the plugins as a runtime calls them.
struct Attached {
    result: Value,
}

/// Where a runtime has made a namespace for it.
const POD: &str = "/run/netns/pod";

fn plugin(machine: &Machine, verb: &str, conf: &Value) -> Value {
    let name = conf["type"].as_str().unwrap();
    let mut command = machine.command(&format!("/opt/cni/bin/{name}"));
    command.env("CNI_COMMAND", verb).env("CNI_PATH", "/opt/cni/bin").env("CNI_CONTAINERID", "c1");
    command.env("CNI_IFNAME", "eth0").env("CNI_NETNS", POD);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{verb} {name}: {}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// Both ways of portmap, as on a host whose plugins were changed.
const BACKENDS: [&str; 2] = ["nftables", "iptables"];

fn has_iptables() -> bool {
    Path::new("/usr/sbin/iptables").exists()
}

fn flannel() -> Value {
    json!({"name": "cbr0", "cniVersion": "1.0.0", "type": "flannel",
        "delegate": {"hairpinMode": true, "isDefaultGateway": true}})
}

fn portmap(result: &Value, backend: &str) -> Value {
    json!({"name": "cbr0", "cniVersion": "1.0.0", "type": "portmap", "prevResult": result,
        "backend": backend, "snat": true,
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}})
}

impl Attached {
    fn add(machine: &Machine) -> Attached {
        let mut result = plugin(machine, "ADD", &flannel());
        for backend in BACKENDS.iter().filter(|b| has_iptables() || **b == "nftables") {
            result = plugin(machine, "ADD", &portmap(&result, backend));
        }
        Attached { result }
    }

    fn del(self, machine: &Machine) {
        for backend in BACKENDS {
            plugin(machine, "DEL", &portmap(&self.result, backend));
        }
        plugin(machine, "DEL", &flannel());
    }
}

/// Waits until all addresses have passed duplicate detection.
fn settled(host: &Host) {
    until("addresses to be usable", || {
        let tentative = try_sh(host, "ip -6 addr show tentative");
        if tentative.is_empty() { Ok(()) } else { Err(tentative) }
    });
}

#[test]
fn cleanup_leaves_a_host_as_it_was() {
    let test = "cleanup_leaves_a_host_as_it_was";
    let world = World::new(2);
    let host = &world.hosts[0];
    for command in FOREIGN.iter().filter(|c| !c.contains("dev flannel.1")) {
        host.sh(command);
    }
    // As a machine is before anybody forwards.
    host.sh("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0");
    if has_iptables() {
        // Tables that iptables makes when it first writes are all programs'.
        for program in ["iptables", "ip6tables"] {
            for chain in ["nat -A PREROUTING", "nat -A OUTPUT", "nat -A POSTROUTING", "filter -A FORWARD"] {
                host.sh(&format!("{program} -t {chain} -j ACCEPT"));
                host.sh(&format!("{program} -t {} -j ACCEPT", chain.replace("-A", "-D")));
            }
        }
    }
    let Some(machine) = Machine::on(host, test) else { return };
    // What the runtime has before any network is there.
    machine.sh("mkdir -p /etc/cni/net.d");
    machine.sh("find /etc/cni/net.d -mindepth 1 -delete");
    // Nor is what the machine of the test has of ours already a part of it.
    machine.sh("rm -rf /var/lib/cni /var/lib/loden /opt/cni");
    machine.sh("ip netns add pod");
    settled(host);
    let files = |_: ()| machine.files(host).into_iter().collect::<BTreeSet<String>>();
    let (kernel_before, files_before) = (kernel_picture(host), files(()));

    // The registry on this host, as Loden has it unless told otherwise; another host beside it.
    let put = |words: &[&str]| {
        let mut command = machine.command(env!("CARGO_BIN_EXE_loden"));
        let mut child = command.env_remove("LODEN_STORE").args(words).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(NETWORK.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    };
    put(&["config", "put", "-"]);
    let agent = machine.agent(host, &["--ip-masq", "--iface=eth0"], &[("LODEN_STORE", "")]);
    agent.ready();
    let mut command = machine.command_on(&world.hosts[1], env!("CARGO_BIN_EXE_loden"));
    let file = world.hosts[1].subnet_file();
    command.env_remove("LODEN_STORE").args(["agent", "--iface=eth0", "--subnet-file"]).arg(&file);
    let other = Agent::by(command, &world.hosts[1].dir.join("log"), file, |child| child_of(child.id()));
    other.ready();
    let tunnel = world.hosts[1].subnet("FLANNEL_SUBNET").network();
    until("the tunnel", || host.greet(&world.hosts[1], tunnel));

    let program = Path::new(env!("CARGO_BIN_EXE_loden")).with_file_name("loden-cni");
    machine.sh(&format!("{} install --bin-dir /opt/cni/bin", program.display()));
    let list = json!({"name": "cbr0", "cniVersion": "1.0.0", "plugins": [flannel(), {"type": "portmap"}]});
    machine.write("/etc/cni/net.d/10-flannel.conflist", &list.to_string());
    let pod = Attached::add(&machine);

    let cleanup = |words: &[&str]| {
        let mut command = machine.command(env!("CARGO_BIN_EXE_loden"));
        command.env_remove("LODEN_STORE").arg("cleanup").args(words).output().unwrap()
    };
    // While a pod is attached its plugins do not go, and a refusal changes nothing.
    assert_eq!(agent.terminate(), 0);
    let (kernel_now, files_now) = (kernel_picture(host), files(()));
    let refused = cleanup(&["--all"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused).contains("pods are attached"), "{}", text(&refused));
    pod.del(&machine);
    until("the bridge to notice", || {
        let link = try_sh(host, "ip -o link show cni0");
        if link.contains("state DOWN") { Ok(()) } else { Err(link) }
    });
    settled(host);
    let dry = kernel_picture(host);
    let output = cleanup(&["--all", "--dry-run"]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(changes(&dry, &kernel_picture(host)), [""; 0], "a dry run changes nothing");
    assert!(changes(&kernel_before, &kernel_now).len() > 50 && files_now.len() > files_before.len() + 15);

    // Without a flag: the agent's part of the kernel. Everything else that is left is named.
    let output = cleanup(&[]);
    assert!(output.status.success(), "{}", text(&output));
    let said = text(&output);
    // Forwarding stays on, with a dozen parameters that follow it; cleanup names the way back.
    let switches: Vec<&str> =
        said.split("sysctl -w ").skip(1).filter_map(|rest| rest.split(' ').next()).collect();
    assert_eq!(switches, ["net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0"], "{said}");
    host.sh(&format!("sysctl -qw {}", switches.join(" ")));
    let named = [
        ("cni0", "ip link delete cni0"),
        ("cni_hostport", "nft delete table ip cni_hostport"),
        ("CNI-HOSTPORT", "iptables-nft -t nat -X CNI-HOSTPORT-DNAT"),
        // The same as nft shows them.
        ("ruleset: table ip nat:", "iptables-nft -t nat -X CNI-HOSTPORT-DNAT"),
        ("ruleset: table ip6 nat:", "ip6tables-nft -t nat -X CNI-HOSTPORT-DNAT"),
    ];
    let is_named =
        |line: &String| named.iter().any(|(object, command)| line.contains(object) && said.contains(command));
    // Beside other tests a listing of /proc/sys has been seen to leave a file out.
    let left = until("everything that is left to be named", || {
        let left = changes(&kernel_before, &kernel_picture(host));
        let unnamed: Vec<&String> = left.iter().filter(|line| !is_named(line)).collect();
        if unnamed.is_empty() { Ok(left) } else { Err(format!("{unnamed:#?}\n{said}")) }
    });
    assert!(left.iter().any(|l| l.contains("cni0")));
    for file in files(()).difference(&files_before) {
        let named = |path: &str| said.lines().any(|l| l.ends_with(&format!(" {path}")));
        // A directory goes with what is in it.
        assert!(named(file) || machine.path(file).is_dir(), "not named by cleanup: {file}\n{said}");
    }

    // With every flag: as before.
    let output = cleanup(&["--all"]);
    assert!(output.status.success(), "{}", text(&output));
    let said = text(&output);
    assert_eq!(changes(&kernel_before, &kernel_picture(host)), [""; 0], "{said}");
    assert_eq!(changes(&files_before, &files(())), [""; 0], "{said}");
    let again = cleanup(&["--all"]);
    assert!(text(&again).contains("nothing of what was asked for"), "{}", text(&again));
}

#[test]
fn what_other_networks_use_stays() {
    let world = World::new(1);
    let host = &world.hosts[0];
    let Some(machine) = Machine::on(host, "what_other_networks_use_stays") else { return };
    let stay = [
        (
            "/etc/cni/net.d/87-other.conflist",
            r#"{"name":"other","plugins":[{"type":"bridge","bridge":"cni9"}]}"#,
        ),
        ("/var/lib/cni/networks/other/10.88.0.2", "c9"),
        ("/var/lib/cni/loden/attachments/other/x.bridge", "{}"),
        ("/opt/cni/bin/loden-cni", ""),
        ("/opt/cni/bin/firewall", ""),
        ("/run/flannel/foreign", ""),
    ];
    let go = [
        ("/etc/cni/net.d/10-flannel.conflist", r#"{"name":"mine","plugins":[{"type":"flannel"}]}"#),
        ("/var/lib/cni/networks/mine/10.244.0.2", "c1"),
        ("/var/lib/cni/networks/cbr0/lock", ""),
        ("/var/lib/cni/flannel/c1", "{}"),
        ("/run/flannel/subnet.env", "FLANNEL_NETWORK=10.244.0.0/16\n"),
        ("/run/flannel/subnet.env.trouble", "a sentence\n"),
        ("/var/lib/loden/leases.db", ""),
        ("/var/lib/loden/leases.db-wal", ""),
    ];
    stay.iter().chain(&go).for_each(|(path, text)| machine.write(path, text));
    host.sh("ip link add cni9 type bridge");
    let output = machine.command(env!("CARGO_BIN_EXE_loden")).args(["cleanup", "--all"]).output().unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    for (path, _) in stay {
        assert!(machine.path(path).exists(), "{path} stays: {said}");
    }
    for (path, _) in go {
        assert!(!machine.path(path).exists(), "{path} goes: {said}");
    }
    for why in ["pods of other are recorded there", "87-other.conflist may use them"] {
        assert!(said.contains(why), "{said}");
    }
    host.sh("ip link show cni9");
}

#[test]
fn what_flanneld_left_goes_on_request() {
    if !has_iptables() {
        println!("SKIP what_flanneld_left_goes_on_request: iptables is not installed");
        return;
    }
    for file in ["host-gw-dual-ipt-v0.28.9", "vxlan-dual-ipt-v0.21.5", "vxlan-dual-nft-v0.28.9"] {
        let world = World::new(1);
        let host = &world.hosts[0];
        for command in FOREIGN.iter().filter(|c| !c.contains("dev flannel.1")) {
            host.sh(command);
        }
        // Another program's rules in the same chains.
        host.sh("iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE");
        host.sh("iptables -A FORWARD -s 172.17.0.0/16 -j ACCEPT");
        for program in ["iptables", "ip6tables"] {
            host.sh(&format!("{program} -t nat -S"));
            host.sh(&format!("{program} -S"));
        }
        settled(host);
        let before = kernel_picture(host);
        Recording::read(file).replay(host);
        assert!(changes(&before, &kernel_picture(host)).len() > 20, "{file}");
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_loden"));
        command.args(["cleanup", "--flannel", "--subnet-file"]).arg(host.subnet_file());
        let output = host.netns.run(|| command.output()).unwrap().unwrap();
        let said = text(&output);
        assert!(output.status.success(), "{file}: {said}");
        let left = changes(&before, &kernel_picture(host));
        // Tables that iptables makes when it is first asked for one, without a rule in them.
        let named = said.contains("kept: iptables' own tables");
        let is_empty_table = |line: &&String| {
            let line = line.as_str();
            let of = [
                "iptables-save",
                "ip6tables-save",
                "nft -s list ruleset: table ip nat",
                "nft -s list ruleset: table ip6 nat",
                "nft -s list ruleset: table ip filter",
                "nft -s list ruleset: table ip6 filter",
            ];
            named
                && of.iter().any(|start| line[2..].starts_with(start))
                && !line.contains("-A ")
                && !line.contains("FLANNEL")
        };
        let left: Vec<&String> = left.iter().filter(|line| !is_empty_table(line)).collect();
        assert_eq!(left, [""; 0], "{file}: {said}");
    }
}
