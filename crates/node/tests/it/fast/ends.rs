//! What ends the fast path of a flow, and what must not.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use super::same::transfer;
use super::taken::programs;
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

/// `{other}` is the other pod, `{own}` the host's address; the rest is of the family ([`words`]).
const CUTS: &[Cut] = &[
    Cut {
        what: "a foreign rule drops",
        cut: &[
            "nft add table {nft} foreign",
            "nft add chain {nft} foreign forward { type filter hook forward priority 0 ; }",
            "nft add rule {nft} foreign forward {nft} daddr {other} drop",
        ],
        mend: &["nft delete table {nft} foreign"],
        fails: true,
    },
    Cut {
        what: "a foreign rule drops the tunnel's packets",
        cut: &[
            "nft add table {nft} foreign",
            "nft add chain {nft} foreign output { type filter hook output priority 0 ; }",
            "nft add rule {nft} foreign output udp dport 8472 drop",
        ],
        mend: &["nft delete table {nft} foreign"],
        fails: true,
    },
    Cut {
        what: "a legacy rule, of which nobody tells",
        cut: &["{iptables}-legacy -I FORWARD -d {other} -j DROP"],
        mend: &["{iptables}-legacy -D FORWARD -d {other} -j DROP"],
        fails: true,
    },
    Cut {
        what: "a rule of a device",
        cut: &[
            "nft add table netdev foreign",
            "nft add chain netdev foreign in { type filter hook ingress device eth0 priority 0 ; }",
            "nft add rule netdev foreign in udp dport 8472 drop",
        ],
        mend: &["nft delete table netdev foreign"],
        fails: true,
    },
    Cut {
        what: "a filter of the uplink",
        cut: &[
            "ip link add sink type veth peer name sunk",
            "tc qdisc add dev eth0 clsact",
            "tc filter add dev eth0 ingress protocol {tc} prio 1 u32 match {nft} protocol 17 0xff action mirred egress redirect dev sink",
        ],
        mend: &["tc qdisc del dev eth0 clsact", "ip link del sink"],
        fails: true,
    },
    Cut {
        what: "a route into nothing",
        cut: &["{ip} route add blackhole {other}"],
        mend: &["{ip} route del blackhole {other}"],
        fails: true,
    },
    Cut {
        what: "a policy rule that forbids",
        cut: &["{ip} rule add to {other} prohibit pref 9"],
        mend: &["{ip} rule del pref 9"],
        fails: true,
    },
    Cut {
        what: "the uplink goes down",
        cut: &["ip link set eth0 down"],
        // Addresses of IPv6 go with it.
        mend: &[
            "ip link set eth0 up",
            "ip addr replace {own} dev eth0 nodad",
            "{ip} route replace default via {router}",
        ],
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
        // All of them: a packet of either direction may have begun the one.
        cut: &["conntrack -F"],
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
        cut: &["{ip} neigh flush dev {tunnel} nud permanent"],
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

/// A command of the table in a family's words.
fn words(command: &str, talk: &Talk, host: &Host) -> String {
    let (own, own6) = (format!("{}/24", host.public()), format!("{}/64", host.public6()));
    let words = [
        ("{nft}", "ip", "ip6"),
        ("{ip}", "ip -4", "ip -6"),
        ("{tc}", "ip", "ipv6"),
        ("{conntrack}", "ipv4", "ipv6"),
        ("{iptables}", "iptables", "ip6tables"),
        ("{tunnel}", "flannel.1", "flannel-v6.1"),
        ("{router}", "192.0.2.1", "2001:db8::1"),
        ("{own}", &own, &own6),
    ];
    let command = command.replace("{other}", &talk.to.ip().to_string());
    words.iter().fold(command, |command, (word, four, six)| {
        command.replace(word, if talk.to.is_ipv6() { six } else { four })
    })
}

#[test]
fn changes_end_flows_and_nothing_stays_broken() {
    if can("changes_end_flows_and_nothing_stays_broken") {
        changes_end_flows(Two::start("vxlan", "on"), 0);
    }
}

#[test]
fn changes_end_flows_of_ipv6_alone() {
    if can("changes_end_flows_of_ipv6_alone") {
        changes_end_flows(Two::six("vxlan", "on"), 1);
    }
}

fn changes_end_flows(mut two: Two, family: usize) {
    let hosts: Vec<&Host> = two.world.hosts.iter().collect();
    let talk = Talk::by(family, &two.pods[0], &two.pods[1]);
    for Cut { what, cut, mend, fails } in CUTS {
        println!("{what}");
        talk.until_fast(&hosts);
        let done = |command: &&str| drop(hosts[0].sh(&words(command, &talk, hosts[0])));
        cut.iter().for_each(done);
        if *fails {
            talk.fails();
            talk.fails();
        }
        mend.iter().for_each(done);
        talk.works();
    }
    talk.until_fast(&hosts);
    // A flow whose connection is forgotten is learnt anew by conntrack too.
    hosts[0].sh("conntrack -F");
    until("the connection to be followed again", || {
        talk.round(b"again")?;
        let port = talk.to.port();
        hosts[0]
            .try_sh(&words("conntrack -L -p udp -f {conntrack}", &talk, hosts[0]))
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
    let (answer, to) = bound(&two.pods[1], 0, talk.to.port());
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
    for two in [Two::start, Two::six] {
        nothing_is_left(two("vxlan", "on"));
    }
}

fn nothing_is_left(mut two: Two) {
    let programs = |host: &Host| programs(host, "eth0");
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
    for (two, family) in [(Two::start("vxlan", "on"), 0), (Two::six("vxlan", "on"), 1)] {
        of_one_node(&two, family);
    }
}

fn of_one_node(two: &Two, family: usize) {
    let host = &two.world.hosts[0];
    let [tables, ip, length] = [["iptables", "ip", "24"], ["ip6tables", "ip6", "64"]][family];
    if host.try_sh(&format!("sysctl -qw net.bridge.bridge-nf-call-{tables}=1")).is_err() {
        println!("SKIP pods_of_one_node: this kernel has no br_netfilter");
        return;
    }
    // Bridged packets are followed where some rule asks for it.
    host.sh(&format!("nft add table {ip} follow"));
    host.sh(&format!("nft add chain {ip} follow forward {{ type filter hook forward priority 0 ; }}"));
    host.sh(&format!("nft add rule {ip} follow forward ct state established counter accept"));
    let netns = kernel::Netns::create().unwrap();
    host.sh("ip link add veth9 type veth peer name inpod9");
    host.sh(&format!("ip link set inpod9 netns {}", netns.path().display()));
    host.sh("ip link set veth9 master cni0 up");
    let address = match two.pods[0].addresses[0] {
        IpAddr::V4(first) => IpAddr::from((u32::from(first) + 7).to_be_bytes()),
        IpAddr::V6(first) => IpAddr::from((u128::from(first) + 7).to_be_bytes()),
    };
    sh(&netns, "ip link set inpod9 name eth0 up");
    sh(&netns, &format!("ip addr add {address}/{length} dev eth0 nodad"));
    let neighbour = Pod { netns, addresses: vec![address] };
    on_devices(host, 3);
    let talk = Talk::by(family, &two.pods[0], &neighbour);
    talk.until_fast(&[host]);
    host.sh(&format!("nft insert rule {ip} follow forward {ip} daddr {address} drop"));
    talk.fails();
    talk.fails();
}

/// A pod whose packets are in a tunnel of its own: nothing can put them into ours but the slow path.
#[test]
fn a_pods_own_tunnel_works() {
    if !can("a_pods_own_tunnel_works") {
        return;
    }
    let two = Two::dual("vxlan", "on");
    let hosts: Vec<&Host> = two.world.hosts.iter().collect();
    for family in [0, 1] {
        // One source port, so that both directions are one connection.
        let own = |number: usize| {
            let (pod, other) = (&two.pods[number], two.pods[1 - number].addresses[family]);
            let device = format!("own{family}");
            let address = Ipv4Addr::new(10, 99, family as u8, 1 + number as u8);
            let words = format!("id 7 remote {other} local {} dev eth0", pod.addresses[family]);
            sh(
                &pod.netns,
                &format!("ip link add {device} type vxlan {words} dstport 4789 srcport 4789 4790"),
            );
            sh(&pod.netns, &format!("ip addr add {address}/24 dev {device}"));
            sh(&pod.netns, &format!("ip link set {device} up"));
            Pod { netns: pod.netns.try_clone().unwrap(), addresses: vec![address.into()] }
        };
        let pods = [own(0), own(1)];
        let talk = Talk::new(&pods[0], &pods[1]);
        let before: Vec<u64> = hosts.iter().map(|host| counted(host, "slow_packets")).collect();
        talk.works();
        // Conntrack takes datagrams for a connection after two seconds.
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(4) {
            talk.whole(50);
        }
        transfer(0, &pods[0], &pods[1], 8 << 20);
        let slow = hosts.iter().zip(before).map(|(host, before)| counted(host, "slow_packets") - before);
        println!("family {family}: {:?} slow", slow.collect::<Vec<_>>());
    }
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
        let now = host.sh(&format!("sysctl -n {name}"));
        if now.trim() == "1" { Ok(()) } else { Err(now) }
    });
}

/// More connections than there are places: all work, the newest go fast, and it is said.
#[test]
fn a_table_that_is_full() {
    if !can("a_table_that_is_full") {
        return;
    }
    let mut two = Two::start("vxlan", "off");
    let host = Host::around(two.world.hosts[0].netns.try_clone().unwrap(), &two.world.hosts[0]);
    for (flows, mode) in [("many", "auto"), ("64", "on")] {
        assert_eq!(two.agents.remove(0).terminate(), 0);
        let env = [("LODEN_STORE", host.store()), ("LODEN_FASTPATH_FLOWS", flows)];
        let agent = host.agent_in(&[FLAGS, &[&format!("--fast-path={mode}")]].concat(), &env);
        agent.ready();
        two.agents.insert(0, agent);
        if mode == "auto" {
            until("status to say what is wrong", || {
                let says = "LODEN_FASTPATH_FLOWS=many: write a number from 16 to 4194304";
                let (_, screen) = host.status(&[]);
                if screen.contains(says) { Ok(()) } else { Err(screen) }
            });
        }
    }
    on_devices(&host, 2);
    let talks: Vec<Talk> = (0..100).map(|_| Talk::new(&two.pods[0], &two.pods[1])).collect();
    until("the table to be full", || {
        for talk in &talks {
            talk.round(b"one of many")?;
        }
        let (_, screen) = host.status(&[]);
        if screen.contains("of 64 places most are taken") { Ok(()) } else { Err(screen) }
    });
    assert!(counted(&host, "flows") <= 64, "{}", host.status(&[]).1);
    talks.iter().for_each(|talk| talk.whole(3));
    talks[99].until_fast(&[&host]);
}

/// The uplink is deleted and comes back as another device of the name: said, and then packets go fast again.
#[test]
fn an_uplink_that_vanishes() {
    if !can("an_uplink_that_vanishes") {
        return;
    }
    let two = Two::start("vxlan", "on");
    let hosts: Vec<&Host> = two.world.hosts.iter().collect();
    let talk = Talk::new(&two.pods[0], &two.pods[1]);
    talk.until_fast(&hosts);
    hosts[0].sh("ip link del eth0");
    talk.fails();
    until("status to say what is missing", || {
        let (_, status) = hosts[0].status_json();
        let why = status["fast_path"]["why"].as_str().unwrap_or_default();
        if why.contains("there is no device eth0") { Ok(()) } else { Err(status["fast_path"].to_string()) }
    });
    two.world.rewire(hosts[0]);
    for command in
        ["ip link set eth0 up", "ip addr add 192.0.2.11/24 dev eth0", "ip route add default via 192.0.2.1"]
    {
        hosts[0].sh(command);
    }
    talk.works();
    on_devices(hosts[0], 2);
    talk.until_fast(&hosts);
}

/// A kernel that lacks something: that is said, and packets go as before.
#[test]
fn a_kernel_without_it() {
    let Some(why) = fastpath::FastPath::load(fastpath::BUILT, 16, None).err() else {
        println!("SKIP a_kernel_without_it: this one has all it needs");
        return;
    };
    let mut two = Two::start("vxlan", "off");
    let flags = [FLAGS, &["--fast-path=on"]].concat();
    two.agents.drain(..).for_each(|agent| assert_eq!(agent.terminate(), 0));
    two.agents = two.world.start(&flags);
    until("status to say why", || {
        let (code, status) = two.world.hosts[0].status_json();
        let said = status["fast_path"]["why"].as_str().unwrap_or_default();
        if said.contains(&why.to_string()) && code == 1 { Ok(()) } else { Err(format!("{code}: {status}")) }
    });
    Talk::new(&two.pods[0], &two.pods[1]).works();
}
