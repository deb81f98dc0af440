//! What ends the fast path of a flow, and what must not.

use std::fs;

use super::{FLAGS, Talk, Two, bound, can, counted, on_devices};
use crate::capture::Watching;
use crate::traffic::Pod;
use crate::world::{Host, sh, until};

#[test]
fn established_flows_go_fast() {
    if !can("established_flows_go_fast") {
        return;
    }
    for backend in ["vxlan", "host-gw"] {
        let two = Two::start(backend, "auto");
        let hosts: Vec<_> = two.world.hosts.iter().collect();
        Talk::new(&two.pods[0], &two.pods[1]).until_fast(&hosts);
        let (_, screen) = hosts[0].status(&[]);
        assert!(screen.contains("fast path  on eth0, veth0"), "{screen}");
    }
}

#[test]
fn a_capture_knows_what_passes_over_devices() {
    if !can("a_capture_knows_what_passes_over_devices") {
        return;
    }
    let two = Two::start("vxlan", "auto");
    let hosts: Vec<_> = two.world.hosts.iter().collect();
    let talk = Talk::new(&two.pods[0], &two.pods[1]);
    talk.until_fast(&hosts);
    let from = two.pods[0].netns.path().display().to_string();
    let (to, port) = (talk.to.ip().to_string(), format!("{}/udp", talk.to.port()));
    let words = ["capture", &from, &to, &port, "-o", "json", "--count", "40"];
    let capture = Watching::start(hosts[0], &words);
    talk.whole(20);
    let (code, out, err) = capture.end();
    assert_eq!(code, 0, "{out} {err}");
    let fast = |forward: bool| {
        out.lines().any(|line| {
            let packet: serde_json::Value = serde_json::from_str(line).unwrap();
            let passes = |device: &str| line.contains(&format!("\"device\":\"{device}\""));
            packet["forward"] == forward && passes("eth0") && !passes("cni0") && !passes("flannel.1")
        })
    };
    assert!(fast(true) && fast(false), "{out}");
}

/// What is done to the first host, what undoes it, and whether rounds fail in between.
struct Cut {
    what: &'static str,
    cut: &'static [&'static str],
    mend: &'static [&'static str],
    fails: bool,
}

/// `{other}` is the other pod, `{port}` its port, `{eth}` the wire of the other host in the hub.
const CUTS: &[Cut] = &[
    Cut {
        what: "a foreign rule drops",
        cut: &[
            "nft add table ip foreign",
            "nft add chain ip foreign forward { type filter hook forward priority 0 ; }",
            "nft add rule ip foreign forward ip daddr {other} drop",
        ],
        mend: &["nft delete table ip foreign"],
        fails: true,
    },
    Cut {
        what: "a foreign rule drops the tunnel's packets",
        cut: &[
            "nft add table ip foreign",
            "nft add chain ip foreign output { type filter hook output priority 0 ; }",
            "nft add rule ip foreign output udp dport 8472 drop",
        ],
        mend: &["nft delete table ip foreign"],
        fails: true,
    },
    Cut {
        what: "a legacy rule, of which nobody tells",
        cut: &["iptables-legacy -I FORWARD -d {other} -j DROP"],
        mend: &["iptables-legacy -D FORWARD -d {other} -j DROP"],
        fails: true,
    },
    Cut {
        what: "a route into nothing",
        cut: &["ip route add blackhole {other}/32"],
        mend: &["ip route del blackhole {other}/32"],
        fails: true,
    },
    Cut {
        what: "a policy rule that forbids",
        cut: &["ip rule add to {other}/32 prohibit pref 9"],
        mend: &["ip rule del pref 9"],
        fails: true,
    },
    Cut {
        what: "the uplink goes down",
        cut: &["ip link set eth0 down"],
        mend: &["ip link set eth0 up", "ip route replace default via 192.0.2.1"],
        fails: true,
    },
    Cut {
        what: "the pod's port goes down",
        cut: &["ip link set veth0 down"],
        mend: &["ip link set veth0 up"],
        fails: true,
    },
    Cut {
        what: "the pod's port leaves the bridge",
        cut: &["ip link set veth0 nomaster"],
        mend: &["ip link set veth0 master cni0"],
        fails: true,
    },
    Cut {
        what: "the connection is forgotten",
        cut: &["conntrack -D -p udp --dport {port}"],
        mend: &[],
        fails: false,
    },
    Cut {
        what: "the uplink has another address of hardware",
        cut: &["ip link set eth0 address 02:00:00:00:00:77"],
        mend: &[],
        fails: false,
    },
    Cut {
        what: "the agent's neighbour is gone, which it repairs",
        cut: &["ip neigh flush dev flannel.1 nud permanent"],
        mend: &[],
        fails: false,
    },
    Cut {
        what: "the uplink's MTU is lower",
        cut: &["ip link set eth0 mtu 1400"],
        mend: &["ip link set eth0 mtu 1500"],
        fails: false,
    },
];

#[test]
fn changes_end_flows_and_nothing_stays_broken() {
    if !can("changes_end_flows_and_nothing_stays_broken") {
        return;
    }
    let mut two = Two::start("vxlan", "on");
    let hosts: Vec<&Host> = two.world.hosts.iter().collect();
    let talk = Talk::new(&two.pods[0], &two.pods[1]);
    for Cut { what, cut, mend, fails } in CUTS {
        println!("{what}");
        talk.until_fast(&hosts);
        let words = |command: &str| {
            command
                .replace("{other}", &talk.to.ip().to_string())
                .replace("{port}", &talk.to.port().to_string())
        };
        cut.iter().for_each(|command| drop(hosts[0].sh(&words(command))));
        if *fails {
            talk.fails();
            talk.fails();
        }
        mend.iter().for_each(|command| drop(hosts[0].sh(&words(command))));
        talk.works();
    }
    talk.until_fast(&hosts);
    // A flow whose connection is forgotten is learnt anew by conntrack too.
    hosts[0].sh(&format!("conntrack -D -p udp --dport {}", talk.to.port()));
    until("the connection to be followed again", || {
        talk.round(b"again")?;
        let port = talk.to.port();
        hosts[0]
            .try_sh(&format!("conntrack -L -p udp --dport {port}"))
            .and_then(|list| if list.contains(&format!("dport={port}")) { Ok(()) } else { Err(list) })
    });
    // A peer that goes.
    two.agents.remove(1).kill();
    two.world.forget(&two.world.hosts[1]);
    talk.fails();
}

/// Another pod with the address of one that is gone gets its packets, and only its own.
#[test]
fn an_address_that_changes_hands() {
    if !can("an_address_that_changes_hands") {
        return;
    }
    let mut two = Two::start("vxlan", "on");
    let talk = Talk::new(&two.pods[0], &two.pods[1]);
    talk.until_fast(&two.world.hosts.iter().collect::<Vec<_>>());
    let host = &two.world.hosts[1];
    host.sh("ip link del veth0");
    host.sh("ip link del cni0");
    let pod = Pod::on(host, &["FLANNEL_SUBNET"]);
    let old = std::mem::replace(&mut two.pods[1], pod);
    let (answer, to) = bound(&two.pods[1], talk.to.port());
    let talk = Talk { ask: talk.ask, answer, from: talk.from, to };
    talk.works();
    two.attached();
    talk.until_fast(&two.world.hosts.iter().collect::<Vec<_>>());
    drop(old);
}

/// Programs outlive an agent that is killed; what changes meanwhile is obeyed all the same.
#[test]
fn an_agent_that_is_killed() {
    if !can("an_agent_that_is_killed") {
        return;
    }
    let mut two = Two::start("vxlan", "on");
    let talk = Talk::new(&two.pods[0], &two.pods[1]);
    talk.until_fast(&two.world.hosts.iter().collect::<Vec<_>>());
    two.agents.drain(..).for_each(|agent| agent.kill());
    talk.whole(500);
    let host = &two.world.hosts[0];
    host.sh("nft add table ip foreign");
    host.sh("nft add chain ip foreign forward { type filter hook forward priority 0 ; }");
    host.sh("nft add rule ip foreign forward udp dport != 9 drop");
    talk.fails();
    talk.fails();
    host.sh("nft delete table ip foreign");
    talk.works();
    two.agents = two.world.hosts.iter().map(|host| host.agent(FLAGS)).collect();
    talk.whole(200);
    two.agents.iter().for_each(|agent| agent.ready());
    two.attached();
    talk.until_fast(&two.world.hosts.iter().collect::<Vec<_>>());
}

/// Off means that nothing is left of it; and so does cleanup.
#[test]
fn nothing_is_left_of_it() {
    if !can("nothing_is_left_of_it") {
        return;
    }
    let mut two = Two::start("vxlan", "on");
    let programs = |host: &Host| host.netns.run(|| fastpath::programs_on("eth0")).unwrap().unwrap();
    for host in &two.world.hosts {
        assert_eq!(programs(host), ["uplink_in", "uplink_out"]);
    }
    two.again("off");
    until("the programs to be gone", || {
        let left: Vec<String> = two.world.hosts.iter().flat_map(programs).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    two.again("on");
    two.agents.clear();
    let host = &two.world.hosts[0];
    assert_eq!(programs(host).len(), 2);
    let mut cleanup = host.loden(&["cleanup"]);
    let output = host.netns.run(|| cleanup.output()).unwrap().unwrap();
    assert!(output.status.success(), "{output:?}");
    // The kernel unties what nobody holds any more a moment later.
    until("cleanup to have untied the programs", || {
        let left = programs(host);
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}: {}", String::from_utf8_lossy(&output.stdout)))
        }
    });
}

/// A kernel that refuses the programs, and a build without them: said, and packets go as before.
#[test]
fn programs_that_cannot_be_had() {
    if !can("programs_that_cannot_be_had") {
        return;
    }
    let mut two = Two::start("vxlan", "off");
    let host = Host::around(two.world.hosts[0].netns.try_clone().unwrap(), &two.world.hosts[0]);
    let (broken, none) = (host.dir.join("broken.o"), host.dir.join("none.o"));
    let mut object = fastpath::BUILT.to_vec();
    // The program ends by a call of a helper that there is none of.
    let call = [0x85u8, 0, 0, 0, 23, 0, 0, 0];
    for insn in object.chunks_exact_mut(8).filter(|insn| **insn == call) {
        insn[4..].copy_from_slice(&9999u32.to_le_bytes());
    }
    fs::write(&broken, object).unwrap();
    fs::write(&none, b"").unwrap();
    let talk = Talk::new(&two.pods[0], &two.pods[1]);
    let old: &[&str] = &["setarch", "--uname-2.6"];
    for (mode, file, under, says) in [
        ("on", Some(&broken), [].as_slice(), "the kernel refuses the program"),
        ("auto", Some(&broken), &[], "the kernel refuses the program"),
        ("on", Some(&none), &[], "this build has no fast path: clang was not there"),
        ("on", None, old, "the kernel has no tcx, which came with Linux 6.6"),
    ] {
        let file = file.map_or("", |file| file.to_str().unwrap());
        let mut env = vec![("LODEN_STORE", host.store())];
        env.extend((!file.is_empty()).then_some(("LODEN_FASTPATH_OBJECT", file)));
        assert_eq!(two.agents.remove(0).terminate(), 0);
        let agent = host.agent_under(under, &[FLAGS, &[&format!("--fast-path={mode}")]].concat(), &env);
        agent.ready();
        two.agents.insert(0, agent);
        until("status to say why", || {
            let (code, status) = host.status_json();
            let why = status["fast_path"]["why"].as_str().unwrap_or_default();
            let sick = i32::from(mode == "on");
            if why.contains(says) && code == sick { Ok(()) } else { Err(format!("{code}: {status}")) }
        });
        talk.works();
    }
}

/// The rights that the manifests give are enough (docs/guide/fast-path.md).
#[test]
fn with_the_rights_of_the_manifests() {
    if !can("with_the_rights_of_the_manifests") {
        return;
    }
    let mut two = Two::start("vxlan", "off");
    let host = Host::around(two.world.hosts[0].netns.try_clone().unwrap(), &two.world.hosts[0]);
    two.again("on");
    let env = [("LODEN_STORE", host.store())];
    assert_eq!(two.agents.remove(0).terminate(), 0);
    let rights = ["setpriv", "--bounding-set=-all,+net_admin,+net_raw,+bpf,+perfmon", "--no-new-privs"];
    let agent = host.agent_under(&rights, &[FLAGS, &["--fast-path=on"]].concat(), &env);
    agent.ready();
    two.agents.insert(0, agent);
    two.attached();
    let talk = Talk::new(&two.pods[0], &two.pods[1]);
    talk.until_fast(&[&two.world.hosts[0], &two.world.hosts[1]]);
}

/// Who shapes a pod's traffic wants to see all of it.
#[test]
fn a_shaped_pod_stays_slow() {
    if !can("a_shaped_pod_stays_slow") {
        return;
    }
    let two = Two::start("vxlan", "on");
    let host = &two.world.hosts[0];
    let talk = Talk::new(&two.pods[0], &two.pods[1]);
    talk.until_fast(&[host]);
    host.sh("tc qdisc add dev veth0 root tbf rate 100mbit burst 100kb latency 100ms");
    on_devices(host, 1);
    let (_, status) = host.status_json();
    assert!(status["fast_path"]["left_out"][0].as_str().unwrap().contains("veth0 has a tbf"), "{status}");
    let before = counted(host, "fast_packets");
    talk.whole(100);
    assert_eq!(counted(host, "fast_packets"), before, "packets of a shaped pod");
    host.sh("tc qdisc del dev veth0 root");
    on_devices(host, 2);
    talk.until_fast(&[host]);
}

/// Two pods of one node: past the bridge, where its packets pass the host's rules at all.
#[test]
fn pods_of_one_node() {
    if !can("pods_of_one_node") {
        return;
    }
    let two = Two::start("vxlan", "on");
    let host = &two.world.hosts[0];
    if host.try_sh("sysctl -qw net.bridge.bridge-nf-call-iptables=1").is_err() {
        println!("SKIP pods_of_one_node: this kernel has no br_netfilter");
        return;
    }
    // Bridged packets are followed where some rule asks for it.
    host.sh("nft add table ip follow");
    host.sh("nft add chain ip follow forward { type filter hook forward priority 0 ; }");
    host.sh("nft add rule ip follow forward ct state established counter accept");
    let netns = kernel::Netns::create().unwrap();
    host.sh("ip link add veth9 type veth peer name inpod9");
    host.sh(&format!("ip link set inpod9 netns {}", netns.path().display()));
    host.sh("ip link set veth9 master cni0 up");
    let std::net::IpAddr::V4(first) = two.pods[0].addresses[0] else { panic!("not IPv4") };
    let address = std::net::Ipv4Addr::from(u32::from(first) + 7);
    sh(&netns, "ip link set inpod9 name eth0 up");
    sh(&netns, &format!("ip addr add {address}/24 dev eth0"));
    let neighbour = Pod { netns, addresses: vec![address.into()] };
    on_devices(host, 3);
    let talk = Talk::new(&two.pods[0], &neighbour);
    talk.until_fast(&[host]);
    host.sh("nft insert rule ip follow forward ip daddr 10.244.0.0/16 drop");
    talk.fails();
    talk.fails();
}

/// Somebody who loads all parameters anew must not make flows that went fast INVALID.
#[test]
fn conntrack_is_kept_liberal() {
    if !can("conntrack_is_kept_liberal") {
        return;
    }
    let two = Two::start("vxlan", "on");
    let host = &two.world.hosts[0];
    let name = "net.netfilter.nf_conntrack_tcp_be_liberal";
    assert_eq!(host.sh(&format!("sysctl -n {name}")).trim(), "1");
    host.sh(&format!("sysctl -qw {name}=0"));
    until("the parameter to be 1 again", || {
        // Whoever asks has everything looked at; by itself the agent does it every 30 s.
        host.status_json();
        let now = host.sh(&format!("sysctl -n {name}"));
        if now.trim() == "1" { Ok(()) } else { Err(now) }
    });
}
