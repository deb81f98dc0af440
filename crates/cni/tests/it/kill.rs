//! Killed between any two steps, then DEL: nothing is left (cni.md 1.14.6).

use std::process::Output;
use std::time::Duration;

use crate::chain::{conflist, each};
use crate::harness::{Host, Pod, pod, with};
use model::gojson::Json;

/// System calls of an ADD before which it is killed, by strace's fault injection.
const POINTS: &[(&str, u32)] = &[
    ("flock", 1),
    ("link", 1),
    ("linkat", 1),
    ("unlink", 2),
    ("rename", 1),
    ("rename", 2),
    ("rename", 3),
    ("rename", 4),
    ("sendmsg", 4),
    ("sendto", 3),
    ("sendto", 5),
    ("sendto", 7),
    ("sendto", 9),
    ("sendto", 11),
    ("sendto", 14),
    ("setns", 2),
    ("setns", 3),
    ("write", 2),
    ("write", 6),
    ("write", 9),
];

/// ADD under strace, which kills it before its n-th system call of a name.
fn killed_at(host: &Host, plugin: &str, pod: &Pod, conf: &str, call: &str, nth: u32) -> Output {
    let inject = format!("inject={call}:signal=KILL:when={nth}");
    straced(host, pod, plugin, "ADD", conf, &["-f", "-qq", "-o", "/dev/null", "-e", &inject])
}

/// System calls that change something, or come right before or after one that does.
const CALLS: [&str; 9] =
    ["sendto", "sendmsg", "setns", "write", "flock", "link", "unlink", "ioctl", "ftruncate"];

/// Every plugin that makes an interface, killed before each of these calls, one after the other, until ADD
/// comes through; then DEL, with everything or with nothing but the names.
#[test]
fn each_call_of_each_plugin() {
    if !std::path::Path::new("/usr/bin/strace").exists() {
        println!("SKIP each_call_of_each_plugin: strace is not installed");
        return;
    }
    let rows = [
        ("ptp", r#""ipMasq": true"#, true),
        ("macvlan", r#""master": "eth0""#, true),
        ("tap", "", std::path::Path::new("/dev/net/tun").exists()),
        ("host-device", r#""device": "ov0""#, true),
        ("veth-to-host", r#""hostInterface": "eth0", "containerInterface": "veth0", "ipMasq": true"#, true),
        (
            "bridge",
            r#""isDefaultGateway": true, "ipMasq": true, "macspoofchk": true, "ipspoofchk": true"#,
            true,
        ),
    ];
    std::thread::scope(|scope| {
        for (plugin, members, _) in rows.into_iter().filter(|row| row.2) {
            scope.spawn(move || kill_at_each(plugin, members));
        }
    });
}

fn kill_at_each(plugin: &str, members: &str) {
    let mut killed = 0;
    for call in CALLS {
        for nth in 1.. {
            let host = &Host::new();
            for (dev, peer) in [("eth0", "eth1"), ("ov0", "ov1")] {
                host.ip(&format!("link add {dev} type veth peer name {peer}"));
            }
            host.ip("addr add 10.10.20.152/24 dev eth0");
            host.ip("link set eth0 up");
            let (netns, pod) = pod("c1");
            let members = if members.is_empty() { String::new() } else { format!(", {members}") };
            let ipam = format!(
                r#""ipam": {{"type": "host-local", "dataDir": "{}", "subnet": "10.9.1.0/24"}}"#,
                host.path("networks")
            );
            let mut conf =
                format!(r#"{{"cniVersion": "1.0.0", "name": "net", "type": "{plugin}"{members}, {ipam}}}"#);
            if plugin == "veth-to-host" {
                crate::harness::ip_in(&netns, "link add eth0 type veth peer name x");
                let before = r#"{"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "x"}],
                    "ips": [{"interface": 0, "address": "10.9.1.2/24"}]}"#;
                conf = with(&conf, "prevResult", before.parse::<Json>().unwrap());
            }
            let links = host.links();
            let output = killed_at(host, plugin, &pod, &conf, call, nth);
            let what = format!("{plugin} killed at {call} {nth}");
            let through = output.status.success();
            // The runtime knows everything, or the pod is gone and with it the result.
            let bare = nth % 2 == 0 && plugin != "host-device";
            let told = if bare { Pod { path: String::new(), ..pod.clone() } } else { pod.clone() };
            let mut inside = Some(netns);
            if bare {
                inside = None;
            }
            for _ in 0..2 {
                let answer = host.call(plugin, "DEL", &told, &conf);
                assert!(answer.ok, "{what}: {}", answer.text);
            }
            if bare {
                // A namespace ends a moment after its last user, and its devices with it.
                let gone = || host.links().iter().all(|name| !name.starts_with("veth"));
                assert!(
                    (0..500).any(|_| gone() || {
                        std::thread::sleep(Duration::from_millis(10));
                        false
                    }),
                    "{what}"
                );
            }
            if let Some(netns) = &inside {
                let left = crate::harness::ip_in(netns, "-br link show");
                let ours = if plugin == "veth-to-host" { "veth0" } else { "eth0" };
                assert!(
                    !left.contains(&format!("{ours}@")) && !left.contains(&format!("{ours} ")),
                    "{what}: {left}"
                );
                assert!(!left.lines().any(|l| l.starts_with("veth")), "{what}: {left}");
            }
            let mut now = host.links();
            now.retain(|name| name != "cni0");
            now.sort();
            let mut before = links;
            before.sort();
            assert_eq!(now, before, "{what}");
            assert!(!host.ip("-4 rule show").contains("1024:"), "{what}");
            let files = host.files("networks");
            assert!(files.iter().all(|f| !f.contains("10.9.1.")), "{what}: {files:?}");
            assert_eq!(host.files("state/attachments"), [""; 0], "{what}");
            let rules = host.rules();
            assert!(!rules.contains("10.9.1.") && !rules.contains("cni-br-iface"), "{what}: {rules}");
            killed += u32::from(!through);
            if through {
                break;
            }
        }
    }
    assert!(killed >= 15, "{plugin}: only {killed} points were met");
    println!("{plugin}: killed at {killed} points");
}

#[test]
fn a_killed_add_is_cleaned_up() {
    if !std::path::Path::new("/usr/bin/strace").exists() {
        println!("SKIP a_killed_add_is_cleaned_up: strace is not installed");
        return;
    }
    let mut killed = 0;
    for ((call, nth), retry) in POINTS.iter().flat_map(|point| [(point, false), (point, true)]) {
        let host = Host::new();
        let mut chain = conflist(&host, "0.3.1");
        chain[0].1 = chain[0].1.replace("\"hairpinMode\"", "\"ipMasq\": true, \"hairpinMode\"");
        let (netns, pod) = pod("c1");
        let output = killed_at(&host, "flannel", &pod, &chain[0].1, call, *nth);
        killed += u32::from(!output.status.success());
        let what = format!("killed at {call} {nth}: {output:?}");
        // The runtime may try again before it cleans up; whatever that says, DEL ends both.
        let again = if retry { host.call("flannel", "ADD", &pod, &chain[0].1).text } else { String::new() };
        each(&host, &chain[..1], &pod, "DEL", None);
        let links = host.links();
        assert!(links.iter().all(|name| !name.starts_with("veth")), "{what} {links:?} {again}");
        let files = host.files("networks");
        let fine = |f: &String| f.ends_with("lock") || f.contains("last_reserved_ip");
        assert!(files.iter().all(fine), "{what} {files:?}");
        assert_eq!(host.files("flannel"), [""; 0], "{what}");
        assert_eq!(host.files("state/attachments"), [""; 0], "{what}");
        assert!(!host.rules().contains("10.244.1."), "{what} {}", host.rules());
        assert!(netns.run(|| ()).is_ok());
    }
    assert!(killed >= 20, "only {killed} points were met");
}

/// A system call of a plugin's verb before which it is killed.
#[derive(Clone, Debug)]
struct Point {
    verb: &'static str,
    plugin: usize,
    call: String,
    nth: u32,
}

/// How many kills; the long run is asked for by `LODEN_KILLS=2000`.
fn kills() -> usize {
    std::env::var("LODEN_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(50)
}

fn chain_of_all(host: &Host) -> Vec<(&'static str, String)> {
    let [flannel, portmap] = conflist(host, "1.1.0");
    let flannel = (flannel.0, flannel.1.replace("\"hairpinMode\"", "\"ipMasq\": true, \"hairpinMode\""));
    let tuning = host.path("tuning");
    let tuning = format!(
        r#"{{"name": "cbr0", "cniVersion": "1.1.0", "type": "tuning", "dataDir": "{tuning}", "mtu": 1400,
            "sysctl": {{"net.core.somaxconn": "500"}}}}"#
    );
    let firewall = r#"{"name": "cbr0", "cniVersion": "1.1.0", "type": "firewall", "backend": "iptables",
                       "ingressPolicy": "same-bridge"}"#;
    vec![flannel, ("tuning", tuning), portmap, ("firewall", firewall.to_owned())]
}

/// Runs a plugin under strace and kills it at a point.
fn kill_at(host: &Host, pod: &Pod, plugin: &str, verb: &str, conf: &str, at: (&str, u32)) {
    let inject = format!("inject={}:signal=KILL:when={}", at.0, at.1);
    straced(host, pod, plugin, verb, conf, &["-o", "/dev/null", "-e", &inject]);
}

/// Runs a plugin under strace: the names of its system calls, and its answer.
fn traced(host: &Host, pod: &Pod, plugin: &str, verb: &str, conf: &str) -> (Vec<String>, Json) {
    let log = host.path("strace");
    let output = straced(host, pod, plugin, verb, conf, &["-o", &log]);
    assert!(output.status.success(), "{verb} {plugin}: {output:?}");
    let text = std::fs::read_to_string(&log).unwrap();
    let name = |line: &str| line.split_once('(').map(|(name, _)| name.to_owned());
    let is_name = |n: &String| n.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let answer = String::from_utf8_lossy(&output.stdout).parse().unwrap_or_default();
    (text.lines().filter_map(name).filter(is_name).collect(), answer)
}

fn straced(host: &Host, pod: &Pod, plugin: &str, verb: &str, conf: &str, args: &[&str]) -> Output {
    let plain = host.prepare(&[&host.bin().display().to_string()], plugin, verb, pod);
    let mut command = host.command("/usr/bin/strace");
    command.args(args).arg(plain.get_program());
    command.envs(plain.get_envs().filter_map(|(k, v)| Some((k, v?))));
    host.run(&mut command, conf)
}

/// Everything that may be left of a pod, in one text.
fn remains(host: &Host) -> String {
    let files = |what: &str| host.files(what).join(" ");
    let mut links = host.links();
    links.sort();
    format!(
        "links {links:?}\nnetworks {}\nflannel {}\nrecords {}\ntuning {}\nnft {}\niptables {}",
        files("networks"),
        files("flannel"),
        files("state/attachments"),
        files("tuning"),
        host.rules()
            .lines()
            .filter(|l| l.contains("10.244.1.") && !l.contains("counter"))
            .collect::<Vec<_>>()
            .join("\n"),
        crate::harness::iptables(host)
    )
}

/// A chain of ours is killed at every system-call boundary of ADD, DEL and GC, beside a pod that lives.
/// Afterwards leases, links, rules and files are those of the living pod (issue point 4).
#[test]
fn killed_at_every_boundary_nothing_is_left() {
    if !std::path::Path::new("/usr/bin/strace").exists() {
        println!("SKIP killed_at_every_boundary_nothing_is_left: strace is not installed");
        return;
    }
    let host = Host::new();
    let chain = chain_of_all(&host);
    let other_ports: Vec<_> = chain.iter().map(|(k, c)| (*k, c.replace("8080", "8181"))).collect();
    let (_living, alive) = pod("alive");
    let result = crate::chain::add(&host, &chain, &alive);
    let keep = Json::array([Json::object([("containerID", "alive".into()), ("ifname", "eth0".into())])]);
    let listed = |conf: &str| crate::harness::with(conf, "cni.dev/valid-attachments", keep.clone());
    // What an ADD, DEL and GC consist of.
    let mut points: Vec<Point> = Vec::new();
    let (_netns, first) = pod("traced");
    let mut prev = Json::Null;
    let mut note = |verb: &'static str, plugin: usize, calls: Vec<String>| {
        let mut seen = std::collections::BTreeMap::new();
        for call in calls {
            let nth = seen.entry(call.clone()).or_insert(0);
            *nth += 1;
            points.push(Point { verb, plugin, call, nth: *nth });
        }
    };
    for (n, (plugin, conf)) in other_ports.iter().enumerate() {
        let conf = if prev.is_null() {
            conf.clone()
        } else {
            crate::harness::with(conf, "prevResult", prev.clone())
        };
        let (calls, answer) = traced(&host, &first, plugin, "ADD", &conf);
        prev = answer;
        note("ADD", n, calls);
    }
    for (plugin, conf) in other_ports.iter().rev() {
        assert!(host.call(plugin, "DEL", &first, conf).ok);
    }
    let (_netns, second) = pod("traced2");
    crate::chain::add(&host, &other_ports, &second);
    for n in (0..chain.len()).rev() {
        note("DEL", n, traced(&host, &second, chain[n].0, "DEL", &other_ports[n].1).0);
    }
    let (_netns, third) = pod("traced3");
    crate::chain::add(&host, &other_ports, &third);
    for n in (0..chain.len()).rev() {
        note("GC", n, traced(&host, &third, chain[n].0, "GC", &listed(&other_ports[n].1)).0);
    }
    for (plugin, conf) in other_ports.iter().rev() {
        assert!(host.call(plugin, "DEL", &third, conf).ok);
    }
    let want = remains(&host);
    assert!(points.len() > 500, "{}", points.len());
    // Start-up is the same in all: a step that is prime to the count spreads over everything.
    let (kills, step) = (kills(), 389);
    for n in 0..kills {
        let point = &points[n * step % points.len()];
        let id = format!("k{n}");
        let (netns, pod) = crate::harness::pod(&id);
        let bare = Pod { path: String::new(), ..pod.clone() };
        let mut prev = Json::Null;
        for (at, (plugin, conf)) in other_ports.iter().enumerate() {
            let conf = if prev.is_null() {
                conf.clone()
            } else {
                crate::harness::with(conf, "prevResult", prev.clone())
            };
            if point.verb == "ADD" && at == point.plugin {
                kill_at(&host, &pod, plugin, "ADD", &conf, (&point.call, point.nth));
                if n % 3 == 1 {
                    // A runtime that tries again before it cleans up.
                    let _ = host.call(plugin, "ADD", &pod, &conf);
                }
                break;
            }
            prev = host.call(plugin, "ADD", &pod, &conf).expect(plugin);
        }
        if point.verb != "ADD" {
            let (plugin, conf) = &other_ports[point.plugin];
            let conf = if point.verb == "GC" { listed(conf) } else { conf.clone() };
            kill_at(&host, &pod, plugin, point.verb, &conf, (&point.call, point.nth));
        }
        // With everything, or with neither namespace nor result, or by GC.
        for (at, (plugin, conf)) in other_ports.iter().enumerate().rev() {
            let done = match n % 4 {
                0 => {
                    let told = crate::harness::with(conf, "prevResult", prev.clone());
                    host.call(plugin, "DEL", &pod, if prev.is_null() { conf } else { &told })
                }
                3 if at > 0 => host.call(plugin, "GC", &pod, &listed(conf)),
                3 => {
                    let gone = host.call(plugin, "GC", &pod, &listed(conf));
                    assert!(gone.ok, "{point:?} {}", gone.text);
                    host.call(plugin, "DEL", &bare, conf)
                }
                _ => host.call(plugin, "DEL", &bare, conf),
            };
            assert!(done.ok, "{point:?} n {n} {}", done.text);
        }
        drop(netns);
        assert_eq!(remains(&host), want, "after {point:?}, n {n}");
    }
    // The living pod never noticed.
    for (plugin, conf) in &chain {
        let told = crate::harness::with(conf, "prevResult", result.clone());
        let answer = host.call(plugin, "CHECK", &alive, &told);
        assert!(answer.ok, "{plugin} {}", answer.text);
    }
    println!("{kills} kills at {} points", points.len());
}
