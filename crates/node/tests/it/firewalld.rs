//! A real firewalld beside the agent: what it does not know it refuses, until it is told as docs/guide/firewalld.md
//! says; its reloads, stops and starts under traffic cost what firewalld itself drops, no address of a pod between
//! pods, and in nftables mode nothing else at all.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::iptables;
use crate::machine::Machine;
use crate::traffic::{Fared, Pod, Stream, kinds};
use crate::world::{Agent, Host, World, sh, until};

const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/>
<allow send_type="method_call"/></policy></busconfig>"#;

/// A firewalld on a bus of its own, with its usual paths.
struct Firewalld {
    machine: Machine,
    _bus: Child,
    daemon: Option<Child>,
}

impl Firewalld {
    /// `None` with a printed reason where it cannot be.
    fn on(host: &Host, backend: &str, test: &str) -> Option<Firewalld> {
        let machine = Machine::on(host, test)?;
        machine.sh("mkdir -p /run/dbus");
        machine.write("/etc/dbus-loden.conf", BUS);
        let conf = fs::read_to_string("/etc/firewalld/firewalld.conf").unwrap();
        let ours = conf.replace("FirewallBackend=nftables", &format!("FirewallBackend={backend}"));
        machine.write("/etc/firewalld/firewalld.conf", &ours);
        let mut command = machine.command("dbus-daemon");
        command.args(["--config-file=/etc/dbus-loden.conf", "--nofork"]);
        let bus = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let socket = machine.path("/run/dbus/system_bus_socket");
        until("the bus", || if socket.exists() { Ok(()) } else { Err(format!("no {}", socket.display())) });
        let mut firewalld = Firewalld { machine, _bus: bus, daemon: None };
        firewalld.start();
        Some(firewalld)
    }

    fn start(&mut self) {
        let mut command = self.machine.command("firewalld");
        command.args(["--nofork", "--nopid"]).stdout(Stdio::null()).stderr(Stdio::null());
        self.daemon = Some(command.spawn().unwrap());
        until("firewalld to run", || self.cmd("--state"));
    }

    fn stop(&mut self) {
        // The only one of this name in the host's process namespace.
        self.machine.sh("pkill -TERM -f /usr/sbin/firewalld");
        self.daemon.take().unwrap().wait().unwrap();
    }

    fn cmd(&self, words: &str) -> Result<String, String> {
        let words: Vec<&str> = words.split_whitespace().collect();
        let output = self.machine.output("firewall-cmd", &words);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }
}

/// The guide's commands for a backend of ours.
fn commands(backend: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guide/firewalld.md");
    let text = fs::read_to_string(path).unwrap();
    let all = text.lines().filter_map(|line| line.strip_prefix("firewall-cmd "));
    let ours = all.filter(|line| match backend {
        "vxlan" => !line.contains("192.0.2.0/24"),
        _ => !line.contains("8472/udp"),
    });
    let ours: Vec<String> = ours.map(str::to_owned).collect();
    assert_eq!(ours.len(), 3, "{ours:?}");
    ours
}

/// One ping from somewhere; what it said if there was no answer.
fn ping(from: &kernel::Netns, to: &Pod) -> Result<(), String> {
    let mut command = Command::new("ping");
    command.args(["-n", "-c1", "-W1", &to.addresses[0].to_string()]).env("LC_ALL", "C");
    let output = from.run(|| command.output()).unwrap().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stdout).into_owned()) }
}

fn beside(test: &str, golden: bool, cases: [(&str, &str); 2]) {
    if !Path::new("/usr/sbin/firewalld").exists() || !Path::new("/usr/bin/dbus-daemon").exists() {
        println!("SKIP {test}: firewalld or dbus-daemon is not installed");
        return;
    }
    if !iptables::works(test, plan::state::Variant::Nft) || !Path::new("/usr/bin/ping").exists() {
        return;
    }
    for (ours, theirs) in cases {
        let config = format!(
            r#"{{"Network":"10.244.0.0/16","EnableNFTables":{golden},"Backend":{{"Type":"{ours}"}}}}"#
        );
        let world = World::with_config(3, &config);
        let agents: Vec<Agent> = world.hosts[..2].iter().map(|host| host.agent(&["--ip-masq"])).collect();
        agents.iter().for_each(Agent::ready);
        let pods = [0, 1].map(|n| Pod::on(&world.hosts[n], &["FLANNEL_SUBNET"]));
        let outside = &world.hosts[2];
        let outside = Pod {
            netns: outside.netns.try_clone().unwrap(),
            addresses: vec![outside.public().parse().unwrap()],
        };
        until("the pods to reach each other", || ping(&pods[0].netns, &pods[1]));
        let Some(mut firewalld) = Firewalld::on(&world.hosts[0], theirs, test) else { return };

        // As installed it refuses what it forwards, and says so.
        let refused = until("firewalld to refuse", || match ping(&pods[0].netns, &pods[1]) {
            Err(said) if said.contains("From ") => Ok(said),
            other => Err(format!("{other:?}")),
        });
        assert!(refused.contains("Packet filtered") || refused.contains("Unreachable"), "{refused}");
        assert!(ping(&pods[1].netns, &pods[0]).is_err());
        for line in commands(ours) {
            firewalld.cmd(&line).unwrap_or_else(|error| panic!("firewall-cmd {line}: {error}"));
        }
        for (from, to) in
            [(&pods[0].netns, &pods[1]), (&pods[1].netns, &pods[0]), (&world.hosts[1].netns, &pods[0])]
        {
            until("what the guide allows", || ping(from, to));
        }

        let table = || golden.then(|| sh(&world.hosts[0].netns, "nft -a list table ip flannel-ipv4"));
        let before = table();
        let host: std::net::IpAddr = world.hosts[0].public().parse().unwrap();
        for act in ["--reload", "--complete-reload", "stop", "start"] {
            let between = [Stream::start(&pods[0], &pods[1], 0), Stream::start(&pods[1], &pods[0], 0)];
            let out = Stream::start(&pods[0], &outside, 0);
            let more = || between.iter().chain([&out]).for_each(|stream| stream.more(100));
            more();
            match act {
                "stop" => firewalld.stop(),
                "start" => firewalld.start(),
                _ => drop(firewalld.cmd(act).unwrap()),
            }
            more();
            let fared: Vec<Fared> = between.into_iter().chain([out]).map(Stream::finish).collect();
            let lost: Vec<_> = fared.iter().map(|fared| kinds(&fared.lost)).collect();
            println!(
                "{ours}, EnableNFTables {golden}, firewalld with {theirs}, {act}: of {} datagrams [old, new] lost {lost:?} within {:?}, \
                 {:?} to the outside with the pod's address",
                fared.iter().map(|fared| fared.sent).sum::<usize>(),
                fared.iter().map(|fared| fared.gap).max().unwrap(),
                kinds(&fared[2].bare)
            );
            // Between pods nobody is masqueraded, outside everybody; connections that were there stay as they were.
            assert!(fared[..2].iter().all(|fared| fared.disguised.is_empty()), "{fared:?}");
            assert!(fared[2].disguised.keys().all(|address| *address == host), "{:?}", fared[2].disguised);
            assert_eq!(kinds(&fared[2].bare)[0], 0, "{:?}", fared[2].bare);
            if golden {
                assert_eq!(fared[2].bare, [0; 0], "with a pod's address outside, by number");
                assert_eq!(table(), before, "firewalld does not reach our tables");
            }
            // While it loads its rules firewalld drops whatever is new to it, each packet of a tunnel included.
            if !act.contains("reload") {
                fared.iter().for_each(|fared| assert_eq!(fared.lost, [0; 0], "{}", fared.what));
            }
        }
    }
}

#[test]
fn beside_firewalld_rules_in_nftables_stand_untouched() {
    const TEST: &str = "beside_firewalld_rules_in_nftables_stand_untouched";
    beside(TEST, true, [("vxlan", "nftables"), ("host-gw", "iptables")]);
}

#[test]
fn beside_firewalld_rules_in_iptables_come_back() {
    const TEST: &str = "beside_firewalld_rules_in_iptables_come_back";
    beside(TEST, false, [("vxlan", "iptables"), ("host-gw", "nftables")]);
}
