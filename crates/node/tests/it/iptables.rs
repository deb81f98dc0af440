//! iptables mode in both variants: whatever others do to our rules is repaired, no packet loses its way over
//! it, and nothing of theirs is touched.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kernel::Netns;
use model::Family;
use plan::state::Variant;

use crate::faults::try_sh;
use crate::traffic::{Pings, Pod, Stream};
use crate::world::{Agent, Host, World, until};

/// A search path without iptables.
pub const PATH_WITHOUT: &str = "/nonexistent";

const DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10::/48","EnableNFTables":GOLDEN,
    "Backend":{"Type":"vxlan"}}"#;
const KEYS: [&str; 2] = ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"];

/// Whether a variant works here; says so if not.
pub fn works(test: &str, variant: Variant) -> bool {
    let name = variant.program(Family::V4);
    if !Path::new("/usr/sbin").join(name).exists() {
        println!("SKIP {test}: {name} is not installed (package iptables)");
        return false;
    }
    let netns = Netns::create().unwrap();
    let listed = netns.run(|| Command::new(name).args(["-t", "nat", "-S"]).output()).unwrap().unwrap();
    if !listed.status.success() {
        println!("SKIP {test}: {name} does not work with this kernel");
    }
    listed.status.success()
}

/// Rules of other programs, by which the agent knows the host's variant: kube-proxy's and Docker's, with its
/// policy.
pub fn seed(host: &Host, variant: Variant) {
    // An `-X` of all chains removes none when one of ours is there again already: then the others are there, and empty.
    both(
        host,
        variant,
        "T -t nat -N KUBE-POSTROUTING || T -t nat -F KUBE-POSTROUTING; T -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN; \
         T -t nat -A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0; T -t nat -A KUBE-POSTROUTING -j MASQUERADE --random-fully; \
         T -t nat -A POSTROUTING -m comment --comment 'kubernetes postrouting rules' -j KUBE-POSTROUTING; \
         T -N DOCKER-USER || T -F DOCKER-USER; T -A DOCKER-USER -j RETURN; T -A FORWARD -j DOCKER-USER; T -P FORWARD DROP",
    );
}

/// Runs a script for both families; `T` is the program, `NET`, `POD`, `MC` are as in flannel.md 7.
fn both(host: &Host, variant: Variant, script: &str) {
    for (family, net, pod, multicast) in [
        (Family::V4, "10.244.0.0/16", "10.244.222.0/24", "224.0.0.0/4"),
        (Family::V6, "fd00:10::/48", "fd00:10:0:222::/64", "ff00::/8"),
    ] {
        let script = script.replace("NET", net).replace("POD", pod).replace("MC", multicast);
        let script = script.replace("T ", &format!("{} ", variant.program(family)));
        let output = host.netns.run(|| Command::new("sh").args(["-ec", &script]).output()).unwrap().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Everything both programs hold, without counters.
fn listing(host: &Host, variant: Variant) -> String {
    let of = |family: Family| {
        ["nat", "filter"]
            .map(|table| try_sh(host, &format!("{} -t {table} -S", variant.program(family))))
            .concat()
    };
    Family::BOTH.map(of).concat()
}

/// Which of our tables of nftables masquerade; one without rules of flannel's stands beside those of iptables.
pub fn masquerading(host: &Host) -> Vec<&'static str> {
    let tables = ["ip flannel-ipv4", "ip6 flannel-ipv6"].into_iter();
    tables.filter(|table| try_sh(host, &format!("nft list table {table}")).contains("masquerade")).collect()
}

/// New connections from a pod, one each millisecond.
struct Flows {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Flows {
    fn start(from: &Pod, to: Vec<IpAddr>) -> Flows {
        let stop = Arc::new(AtomicBool::new(false));
        let (netns, stopped) = (from.netns.try_clone().unwrap(), stop.clone());
        let send = move || {
            // A port that comes again while its connection is followed (30 s) is not new.
            let mut ports = (10_000..60_000).cycle();
            while !stopped.load(Ordering::Relaxed) {
                let port = ports.next().unwrap_or_default();
                for to in &to {
                    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
                    let Ok(socket) = UdpSocket::bind((any, port)) else { continue };
                    // An unreachable port answers that it is.
                    let _ = socket.send_to(b"new", (*to, 4444));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let thread = Some(std::thread::spawn(move || netns.run(send).unwrap()));
        Flows { stop, thread }
    }
}

impl Drop for Flows {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Counts at a host outside what comes with a pod's address, which nobody there could answer.
fn witness(host: &Host) {
    for command in [
        "add table inet witness",
        "add chain inet witness input { type filter hook input priority 0 ; }",
        "add rule inet witness input ip saddr 10.244.0.0/16 icmp type echo-request counter comment \"ping\"",
        "add rule inet witness input ip6 saddr fd00:10::/48 icmpv6 type echo-request counter comment \"ping\"",
        "add rule inet witness input ip saddr 10.244.0.0/16 meta l4proto udp counter comment \"new\"",
        "add rule inet witness input ip6 saddr fd00:10::/48 meta l4proto udp counter comment \"new\"",
        "add rule inet witness input meta l4proto udp th dport 4444 counter comment \"all\"",
    ] {
        let output = host.netns.run(|| Command::new("nft").arg(command).output()).unwrap().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// What the witness counted: by comment.
fn counted(host: &Host) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for line in host.sh("nft list chain inet witness input").lines() {
        let Some((_, rest)) = line.split_once("counter packets ") else { continue };
        let number: u64 = rest.split(' ').next().unwrap().parse().unwrap();
        *counts.entry(line.split('"').nth(1).unwrap().to_owned()).or_default() += number;
    }
    counts
}

/// Two hosts with a pod each, one of them with Docker's policy and kube-proxy's rules, and a host outside.
struct Bed {
    world: World,
    agents: Vec<Agent>,
    pods: [Pod; 2],
    variant: Variant,
    flags: Vec<&'static str>,
}

impl Bed {
    fn new(variant: Variant) -> Bed {
        let world = World::with_config(3, &DUAL.replace("GOLDEN", "false"));
        // The legacy variant tells nobody of changes; for the other one the resync is out of the way.
        let resync =
            if variant == Variant::Legacy { "--iptables-resync=1" } else { "--iptables-resync=3600" };
        let flags = vec!["--ip-masq", resync];
        world.hosts[..2].iter().for_each(|host| seed(host, variant));
        let agents: Vec<Agent> = world.hosts[..2].iter().map(|host| host.agent(&flags)).collect();
        agents.iter().for_each(Agent::ready);
        let pods = [Pod::on(&world.hosts[0], &KEYS), Pod::on(&world.hosts[1], &KEYS)];
        witness(&world.hosts[2]);
        Bed { world, agents, pods, variant, flags }
    }

    fn outside(&self) -> Vec<IpAddr> {
        let host = &self.world.hosts[2];
        vec![host.public().parse().unwrap(), host.public6().parse().unwrap()]
    }

    /// Pings from the pod to the other pod and to the host outside, in both families.
    fn pings(&self) -> Vec<Pings> {
        let to = self.pods[1].addresses.iter().copied().chain(self.outside());
        to.map(|to| Pings::start(&self.pods[0], to)).collect()
    }

    /// Does damage; gives how long our rules were not what they should be.
    fn damage(&self, script: &str, whole: &str) -> Duration {
        let host = &self.world.hosts[0];
        both(host, self.variant, script);
        let start = Instant::now();
        until(&format!("{:?}: {script}: to be repaired", self.variant), || {
            let now = listing(host, self.variant);
            if now == whole { Ok(()) } else { Err(format!("{now}\ninstead of\n{whole}")) }
        });
        start.elapsed()
    }
}

const MASQ: &str = "-m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG";
const FORWARD: &str = "-m comment --comment 'flanneld forward' -j FLANNEL-FWD";

/// What leaves our rules in force goes by without one packet lost or one address let out.
fn gentle(test: &str, variant: Variant) {
    if !works(test, variant) || !Path::new("/usr/bin/ping").exists() {
        return;
    }
    let mut bed = Bed::new(variant);
    let whole = listing(&bed.world.hosts[0], variant);
    let pings = bed.pings();
    let more = |count| pings.iter().for_each(|pings| pings.more(count));
    more(10);
    let flows = Flows::start(&bed.pods[0], bed.outside());
    for script in [
        &format!("T -t nat -A POSTROUTING {MASQ}; T -A FORWARD {FORWARD}"),
        &format!("T -t nat -I POSTROUTING {MASQ}; T -t nat -I POSTROUTING {MASQ}; T -I FORWARD {FORWARD}"),
        // To the head, as v0.20 had it. The agent may have taken the third away before the script does.
        &format!(
            "T -t nat -I POSTROUTING {MASQ}; T -t nat -D POSTROUTING 3 || :; T -I FORWARD {FORWARD}; T -D FORWARD 3 || :"
        ),
        "T -t nat -A FLANNEL-POSTRTG -j RETURN; T -A FLANNEL-FWD -j ACCEPT",
        // v0.9 to v0.15, and v0.16 to v0.19, of another subnet
        "T -t nat -A POSTROUTING -s NET -d NET -j RETURN; T -t nat -A POSTROUTING -s NET ! -d MC -j MASQUERADE; \
         T -t nat -A POSTROUTING ! -s NET -d POD -j RETURN; T -t nat -A POSTROUTING ! -s NET -d NET -j MASQUERADE --random-fully",
        "T -t nat -I POSTROUTING ! -s NET -d POD -m comment --comment 'flanneld masq' -j RETURN",
    ] {
        bed.damage(script, &whole);
        more(5);
    }
    // Restarts, in order and by force.
    let host = &bed.world.hosts[0];
    for force in [false, true] {
        let agent = bed.agents.remove(0);
        if force {
            agent.kill();
        } else {
            assert_eq!(agent.terminate(), 0);
        }
        assert_eq!(listing(host, variant), whole, "an agent that ends leaves the rules");
        more(5);
        let agent = host.agent(&bed.flags);
        agent.ready();
        bed.agents.insert(0, agent);
        assert_eq!(listing(host, variant), whole);
        more(5);
    }
    // To nftables and back.
    for golden in [true, false] {
        assert_eq!(bed.agents.remove(0).terminate(), 0);
        host.put_config(&DUAL.replace("GOLDEN", if golden { "true" } else { "false" }));
        bed.agents.insert(0, host.agent(&bed.flags));
        until("the other mode to stand alone", || {
            let (tables, rules) = (masquerading(host), listing(host, variant));
            let (table, chain) = (tables.len(), rules.contains("FLANNEL-POSTRTG"));
            let accepts =
                rules.contains("-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD");
            if (table == 2) == golden && (table == 0) != golden && chain != golden && accepts {
                Ok(())
            } else {
                Err(format!("{tables:?} {rules}"))
            }
        });
        more(5);
    }
    assert_eq!(listing(host, variant), whole);
    drop(flows);
    let counts = counted(&bed.world.hosts[2]);
    println!("{variant:?}: {} new connections to the outside, {counts:?}", counts["all"]);
    assert_eq!((counts["ping"], counts["new"]), (0, 0), "packets with a pod's address outside: {counts:?}");
    assert!(counts["all"] > 100, "{counts:?}");
    for pings in pings {
        let what = pings.what.clone();
        assert_eq!(pings.finish().1, [0; 0], "pings that were lost, by number: {what}");
    }
}

#[test]
fn what_leaves_our_rules_in_force_costs_no_packet_nft() {
    gentle("what_leaves_our_rules_in_force_costs_no_packet_nft", Variant::Nft);
}

#[test]
fn what_leaves_our_rules_in_force_costs_no_packet_legacy() {
    gentle("what_leaves_our_rules_in_force_costs_no_packet_legacy", Variant::Legacy);
}

/// What takes our rules away, and those of everybody else in the same table: connections that were there keep
/// their address, and new ones have it as soon as the rules are back.
#[test]
fn rules_that_were_taken_away_come_back() {
    const TEST: &str = "rules_that_were_taken_away_come_back";
    for variant in Variant::BOTH.into_iter().filter(|variant| works(TEST, *variant)) {
        let bed = Bed::new(variant);
        let whole = listing(&bed.world.hosts[0], variant);
        let pings = bed.pings();
        let more = |count| pings.iter().for_each(|pings| pings.more(count));
        more(10);
        let flows = Flows::start(&bed.pods[0], bed.outside());
        // With a pod's address outside: never in pings, which are one connection each, and in new connections not
        // any more once the rules are back.
        let outside = || counted(&bed.world.hosts[2]);
        let over = |script: &str| {
            more(1);
            let before = outside();
            more(10);
            let after = outside();
            assert_eq!(after["new"], before["new"], "{variant:?}: {script}: after the repair, {after:?}");
        };
        let kube =
            "T -t nat -I POSTROUTING -m comment --comment 'kubernetes postrouting rules' -j KUBE-POSTROUTING";
        let docker = "T -I FORWARD -j DOCKER-USER";
        let mut longest = Duration::ZERO;
        for script in [
            &format!("T -t nat -F POSTROUTING; {kube}"),
            &format!("T -F FORWARD; {docker}"),
            "T -t nat -F FLANNEL-POSTRTG; T -F FLANNEL-FWD",
            &format!(
                "T -t nat -D POSTROUTING {MASQ}; T -t nat -F FLANNEL-POSTRTG; T -t nat -X FLANNEL-POSTRTG || :"
            ),
            &format!("T -D FORWARD {FORWARD}; T -F FLANNEL-FWD; T -X FLANNEL-FWD || :"),
            "T -t nat -D FLANNEL-POSTRTG 5; T -R FLANNEL-FWD 1 -j DROP",
        ] {
            longest = longest.max(bed.damage(script, &whole));
            over(script);
        }
        // `iptables -F`, `-X`, and the reload of a firewall that restores the whole of what it knows.
        let host = &bed.world.hosts[0];
        let start = Instant::now();
        both(host, variant, "T -F; T -X || :; T -t nat -F; T -t nat -X || :; T -P FORWARD DROP");
        until("everything to be there again", || {
            let now = listing(host, variant);
            let parts = ["-A POSTROUTING", "-A FORWARD"].map(|rule| now.matches(rule).count());
            let (rules, accepts) =
                (now.matches("-A FLANNEL-POSTRTG").count(), now.matches("-A FLANNEL-FWD").count());
            if parts == [2, 2] && rules == 12 && accepts == 4 { Ok(()) } else { Err(now) }
        });
        longest = longest.max(start.elapsed());
        over("everything flushed");
        seed(host, variant);
        let whole = listing(host, variant);
        for restore in [
            "*nat\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n",
            "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -j DROP\nCOMMIT\n",
        ] {
            let text = restore.replace('\n', "\\n");
            for family in Family::BOTH {
                let command = format!("printf '{text}' | {}-restore", variant.program(family));
                let output = host.netns.run(|| Command::new("sh").args(["-ec", &command]).output());
                assert!(output.unwrap().unwrap().status.success(), "{command}");
            }
        }
        until("the jumps to be there after a reload", || {
            let now = listing(host, variant);
            let parts = ["-A POSTROUTING", "-A FORWARD"].map(|rule| now.matches(rule).count());
            if parts == [2, 4] { Ok(()) } else { Err(now) }
        });
        assert_ne!(listing(host, variant), whole);
        both(host, variant, "T -D FORWARD -j DROP");
        over("a reload");
        drop(flows);
        // The kernel follows and translates connections only while a rule looks at them: one of ours does.
        let counts = counted(&bed.world.hosts[2]);
        assert_eq!(counts["ping"], 0, "{variant:?}: {counts:?}");
        let lost = pings.into_iter().map(|pings| pings.finish().1.len()).sum::<usize>();
        println!(
            "{variant:?}: at most {longest:?} until repaired, {lost} pings lost to the policy meanwhile; {} of {} new \
             connections with a pod's address outside",
            counts["new"], counts["all"]
        );
    }
}

/// With `EnableNFTables` the same damage concerns nobody of ours.
#[test]
fn what_is_done_to_iptables_costs_nothing_in_nftables_mode() {
    const TEST: &str = "what_is_done_to_iptables_costs_nothing_in_nftables_mode";
    for variant in Variant::BOTH.into_iter().filter(|variant| works(TEST, *variant)) {
        let world = World::with_config(3, &DUAL.replace("GOLDEN", "true"));
        let agents: Vec<Agent> = world.hosts[..2].iter().map(|host| host.agent(&["--ip-masq"])).collect();
        agents.iter().for_each(Agent::ready);
        let (one, outside) = (&world.hosts[0], &world.hosts[2]);
        let pods = [Pod::on(one, &KEYS), Pod::on(&world.hosts[1], &KEYS)];
        let out = Pod {
            netns: outside.netns.try_clone().unwrap(),
            addresses: vec![outside.public().parse().unwrap(), outside.public6().parse().unwrap()],
        };
        let seen: [IpAddr; 2] = [one.public().parse().unwrap(), one.public6().parse().unwrap()];
        let mut streams = Vec::new();
        for (family, seen) in seen.into_iter().enumerate() {
            streams.push((Stream::start(&pods[0], &pods[1], family), None));
            streams.push((Stream::start(&pods[1], &pods[0], family), None));
            streams.push((Stream::start(&pods[0], &out, family), Some(seen)));
        }
        for script in [
            "T -t nat -A POSTROUTING -m mark --mark 7 -j MASQUERADE; T -A FORWARD -j ACCEPT",
            "T -F FORWARD",
            "T -t nat -F POSTROUTING",
            "T -t nat -N X; T -t nat -A X -j RETURN; T -t nat -I POSTROUTING -j X",
            "T -F; T -X || :; T -t nat -F; T -t nat -X || :",
            "printf '*nat\\nCOMMIT\\n*filter\\n:FORWARD ACCEPT\\nCOMMIT\\n' | $(echo T -restore | tr -d ' ')",
        ] {
            both(one, variant, script);
            streams.iter().for_each(|(stream, _)| stream.more(50));
        }
        for (stream, seen) in streams {
            stream.finish().assert_whole(seen);
        }
    }
}

/// A directory of programs that note their calls before they do them.
fn noted(dir: &Path, names: &[&str]) -> (String, impl Fn() -> Vec<String>) {
    let (programs, log) = (dir.join("programs"), dir.join("calls"));
    fs::create_dir_all(&programs).unwrap();
    for name in names {
        for part in ["", "-save", "-restore"] {
            let name = format!("{name}{part}");
            let text =
                format!("#!/bin/sh\necho {name} \"$@\" >> {}\nexec /usr/sbin/{name} \"$@\"\n", log.display());
            script(&programs.join(&name), &text);
        }
    }
    let calls = move || fs::read_to_string(&log).unwrap_or_default().lines().map(str::to_owned).collect();
    (format!("{}:/usr/bin:/bin", programs.display()), calls)
}

fn script(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(new, path).unwrap();
}

const ALL: [&str; 6] =
    ["iptables", "ip6tables", "iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"];

#[test]
fn programs_are_started_only_when_something_changed() {
    const TEST: &str = "programs_are_started_only_when_something_changed";
    for variant in Variant::BOTH.into_iter().filter(|variant| works(TEST, *variant)) {
        let world = World::with_config(1, &DUAL.replace("GOLDEN", "false"));
        let host = &world.hosts[0];
        seed(host, variant);
        let (path, calls) = noted(&host.dir, &ALL);
        let env = [("LODEN_STORE", host.store()), ("PATH", path.as_str())];
        let agent = host.agent_in(&["--ip-masq", "--iptables-resync=1"], &env);
        agent.ready();
        let settled = || {
            let mut count = calls().len();
            until("no more calls", || {
                // As long as three resyncs of the legacy variant, in which nothing happens.
                std::thread::sleep(Duration::from_millis(3_200));
                let before = std::mem::replace(&mut count, calls().len());
                if before == count { Ok(()) } else { Err(calls().join("\n")) }
            });
            count
        };
        let start = settled();
        let restores = |calls: &[String]| calls.iter().filter(|call| call.contains("-restore")).count();
        assert_eq!(restores(&calls()), 2, "one for each family: {:#?}", calls());
        assert!(
            calls().iter().filter(|call| call.contains("-restore")).all(|call| call.contains("--noflush"))
        );
        // Others' rules, in chains that are not ours and at the end of ours' parents.
        both(host, variant, "T -t nat -A KUBE-POSTROUTING -j RETURN; T -A DOCKER-USER -j RETURN");
        both(host, variant, "T -t nat -A POSTROUTING -j RETURN");
        settled();
        println!(
            "{variant:?}: {start} programs to start with, {} for rules of others",
            calls().len() - start
        );
        assert_eq!(restores(&calls()), 2, "{:#?}", calls());
    }
}

#[test]
fn without_its_programs_a_family_has_nftables_until_they_come() {
    const TEST: &str = "without_its_programs_a_family_has_nftables_until_they_come";
    if !works(TEST, Variant::Nft) {
        return;
    }
    let world = World::with_config(1, &DUAL.replace("GOLDEN", "false"));
    let host = &world.hosts[0];
    let (path, _) = noted(&host.dir, &["iptables"]);
    let env = [("LODEN_STORE", host.store()), ("PATH", path.as_str())];
    let agent = host.agent_in(&["--ip-masq"], &env);
    agent.ready();
    agent.says("ip6tables with ip6tables-save and ip6tables-restore is not where the agent runs");
    agent.says("masquerade and forward rules go through iptables-nft");
    assert_eq!(masquerading(host), ["ip6 flannel-ipv6"]);
    // The package is installed.
    let _ = noted(&host.dir, &["ip6tables"]);
    host.sh("ip addr add 192.0.2.200/24 dev eth0");
    until("the rules to move", || {
        let (tables, rules) = (masquerading(host), try_sh(host, "ip6tables-nft -t nat -S"));
        if tables.is_empty() && rules.contains("FLANNEL-POSTRTG") {
            Ok(())
        } else {
            Err(format!("{tables:?} {rules}"))
        }
    });
    assert_eq!(agent.count("is not where the agent runs"), 1, "said once");
}

#[test]
fn a_lock_that_is_held_and_a_program_that_hangs_hinder_nothing_else() {
    const TEST: &str = "a_lock_that_is_held_and_a_program_that_hangs_hinder_nothing_else";
    for (variant, said) in [
        (Variant::Legacy, "another program holds the lock of iptables for longer than 1 s"),
        (Variant::Nft, "did not end within 2 s and was stopped"),
        (Variant::Nft, "iptables-nft-restore --noflush: no space"),
    ] {
        if !works(TEST, variant) {
            continue;
        }
        let world = World::with_config(2, &DUAL.replace("GOLDEN", "false"));
        let host = &world.hosts[0];
        seed(host, variant);
        let (path, _) = noted(&host.dir, &ALL);
        let lock = host.dir.join("lock");
        let held = fs::File::create(&lock).unwrap();
        match variant {
            Variant::Legacy => held.lock().unwrap(),
            Variant::Nft => {
                let act = if said.contains("2 s") { "sleep 1000" } else { "echo no space >&2; exit 1" };
                for name in ["iptables-nft-restore", "ip6tables-nft-restore"] {
                    script(&host.dir.join("programs").join(name), &format!("#!/bin/sh\n{act}\n"));
                }
            }
        }
        let env = [
            ("LODEN_STORE", host.store()),
            ("PATH", path.as_str()),
            ("XTABLES_LOCKFILE", lock.to_str().unwrap()),
        ];
        let mut agent = host.agent_in(&["--ip-masq"], &env);
        agent.says(said);
        let peer = world.hosts[1].agent(&["--ip-masq"]);
        peer.ready();
        let subnet = world.hosts[1].subnet("FLANNEL_SUBNET");
        until("the way to the peer", || {
            let routes = try_sh(host, &format!("ip route show {subnet}"));
            if routes.is_empty() { Err(agent.log()) } else { Ok(()) }
        });
        assert!(agent.alive() && !agent.log().contains("flannel is ready"), "{}", agent.log());
        assert!(host.troubles().contains(said), "{}", host.troubles());
        held.unlock().unwrap();
        let _ = noted(&host.dir, &ALL);
        agent.ready();
        assert!(listing(host, variant).contains("-j FLANNEL-POSTRTG"));
        until("no trouble", || if host.troubles().contains(said) { Err(host.troubles()) } else { Ok(()) });
    }
}

/// Rules of a flanneld of the other variant, and after a change of the variant our own.
#[test]
fn rules_in_the_variant_the_host_does_not_use_go() {
    const TEST: &str = "rules_in_the_variant_the_host_does_not_use_go";
    if !Variant::BOTH.into_iter().all(|variant| works(TEST, variant)) {
        return;
    }
    for (golden, uses, other) in [
        (false, Variant::Nft, Variant::Legacy),
        (false, Variant::Legacy, Variant::Nft),
        (true, Variant::Nft, Variant::Legacy),
    ] {
        let world = World::with_config(1, &DUAL.replace("GOLDEN", &golden.to_string()));
        let host = &world.hosts[0];
        seed(host, uses);
        both(
            host,
            other,
            &format!(
                "T -t nat -N FLANNEL-POSTRTG; T -t nat -A FLANNEL-POSTRTG -s NET ! -d POD -j MASQUERADE; \
                 T -t nat -A POSTROUTING {MASQ}; T -t nat -A POSTROUTING -m mark --mark 7 -j MASQUERADE"
            ),
        );
        let agent = host.agent(&["--ip-masq"]);
        agent.ready();
        until("the other variant to be without ours", || {
            let rules = listing(host, other);
            if rules.contains("FLANNEL") || rules.matches("--mark 0x7").count() != 2 {
                Err(rules)
            } else {
                Ok(())
            }
        });
        assert_eq!(listing(host, uses).contains("FLANNEL-POSTRTG"), !golden);
    }
}
