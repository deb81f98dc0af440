//! `veth-to-host`: the tutorial's transcripts, the twelve paths of cni.md 2.19.5 and an overlay for each
//! mode, DEL, CHECK, GC, STATUS.

use std::net::SocketAddr;
use std::time::Duration;

use crate::harness::{Host, Pod, ip_in, pod, with};
use crate::underlay::{Attached, PORT, Underlay, ask, conflist, service};
use model::gojson::Json;

/// How long a path may take that works, and how long one is looked at that does not. The kernel brings a link to life
/// when it gets its lock, for which the devices of all other tests stand in line.
const WORKS: Duration = Duration::from_secs(60);
const FAILS: Duration = Duration::from_millis(700);

const PATHS: [&str; 13] = [
    "pod to own node",
    "pod to service, endpoint in the host's network",
    "pod to service, remote underlay pod",
    "pod to service, underlay pod here",
    "pod to service, endpoint off the subnet",
    "pod to service, itself",
    "pod to remote underlay pod",
    "pod to underlay pod here",
    "pod to internet",
    "node to pod",
    "remote pod to pod",
    "internet to pod",
    "pod to service, overlay pod here",
];

/// Walks all paths of both pods of a node in one family; the pod's and the node's address are called so.
fn walk(lab: &Underlay, members: &str, family: usize, want: [&str; 13]) {
    let [a, b] = ["a", "b"].map(|id| lab.pod(&lab.node, id, members));
    let r = lab.pod(&lab.remote, "r", members);
    let parse = |list: [&str; 2]| list.map(|text| text.parse().unwrap());
    let node = parse(["10.10.20.152", "2001:db8:20::152"]);
    let internet = parse(["203.0.113.9", "2001:db8:113::9"]);
    let overlay = parse(["10.244.1.5", "fd44::5"]);
    lab.services(&[node, r.addresses, b.addresses, internet, a.addresses, overlay]);
    let to = |list: [std::net::IpAddr; 2]| SocketAddr::new(list[family], PORT);
    let paths = [
        (&a.netns, to(node)),
        (&a.netns, service(0)[family]),
        (&a.netns, service(1)[family]),
        (&a.netns, service(2)[family]),
        (&a.netns, service(3)[family]),
        (&a.netns, service(4)[family]),
        (&a.netns, to(r.addresses)),
        (&a.netns, to(b.addresses)),
        (&a.netns, to(internet)),
        (&lab.node.netns, to(a.addresses)),
        (&r.netns, to(a.addresses)),
        (&lab.internet, to(a.addresses)),
        (&a.netns, service(5)[family]),
    ];
    let names = [
        (a.addresses[family], "pod"),
        (node[family], "node"),
        (r.addresses[family], "remote"),
        (internet[family], "internet"),
    ];
    for (((from, to), want), path) in paths.into_iter().zip(want).zip(PATHS) {
        let seen = ask(from, to, if want == "-" { FAILS } else { WORKS });
        let seen = seen.map_or("-".to_owned(), |seen| {
            let known = names.iter().find(|(ip, _)| ip.to_string() == seen);
            known.map_or(seen, |(_, name)| (*name).to_owned())
        });
        let fine = seen == want || (want == "any" && seen != "-");
        if !fine {
            for (name, netns) in
                [("node", &lab.node.netns), ("a", &a.netns), ("b", &b.netns), ("r", &r.netns)]
            {
                println!("{name}:\n{}", state(netns));
            }
        }
        assert!(fine, "{path} ({members}, family {family}): {seen} instead of {want}");
    }
    for (host, attached) in [(&lab.node, &a), (&lab.node, &b), (&lab.remote, &r)] {
        let told = with(&attached.chain[1], "prevResult", attached.result.clone());
        host.call("veth-to-host", "CHECK", &attached.pod, &told).expect("CHECK");
        del(host, attached);
        nothing_left(host);
    }
}

/// What decides about packets, to be read when they went astray.
fn state(netns: &kernel::Netns) -> String {
    let mut text = String::new();
    for words in [
        "ip -s addr",
        "ip rule",
        "ip -6 rule",
        "ip route show table all",
        "ip -6 route show table all",
        "ip -s neigh",
        "ip -6 -s neigh",
        "nft list ruleset",
        "conntrack -L",
    ] {
        let mut words = words.split(' ');
        let mut command = std::process::Command::new(words.next().unwrap());
        let output = netns.run(|| command.args(words).output()).unwrap();
        text.push_str(
            &output.map_or_else(|e| e.to_string(), |o| String::from_utf8_lossy(&o.stdout).into_owned()),
        );
    }
    text
}

fn del(host: &Host, attached: &Attached) {
    for _ in 0..2 {
        let told = with(&attached.chain[1], "prevResult", attached.result.clone());
        assert!(host.call("veth-to-host", "DEL", &attached.pod, &told).ok);
        assert!(host.call("macvlan", "DEL", &attached.pod, &attached.chain[0]).ok);
    }
}

/// What one pod had is gone; others' may be there.
#[track_caller]
fn nothing_left(host: &Host) {
    let devices = host.links().into_iter().filter(|name| name.starts_with("veth")).count();
    for family in ["-4", "-6"] {
        let rules = host.ip(&format!("{family} rule show"));
        assert!(!rules.contains("detached"), "{rules}");
        assert!(rules.matches("1024:").count() <= devices, "{rules}");
    }
    let records = host.files("state/attachments");
    assert_eq!(records.iter().filter(|name| name.ends_with("veth-to-host")).count(), devices);
    if devices == 0 {
        let all = host.rules();
        let ours = |table: &&str| table.contains("loden-veth-to-host") || table.contains("cni_plugins");
        let rules: String = all.split("\ntable ").filter(ours).collect();
        assert!(!rules.contains("10.10.20.5") && !rules.contains("2001:db8:20::5"), "{rules}");
        let chains = crate::harness::iptables(host);
        let ours: Vec<&str> = chains.lines().filter(|line| line.starts_with("-A LODEN-UNDERLAY ")).collect();
        assert_eq!(ours, [""; 0]);
        let tables = host.ip("route show table all");
        assert!(
            !tables.lines().any(|line| line.contains("table") && line.contains("10.10.20.5")),
            "{tables}"
        );
    }
}

const REFERENCE: [&str; 13] =
    ["pod", "pod", "pod", "pod", "node", "any", "pod", "pod", "node", "node", "remote", "-", "any"];
const SPLIT: [&str; 13] =
    ["pod", "pod", "node", "any", "node", "any", "pod", "pod", "pod", "node", "remote", "internet", "any"];
const KEPT: [&str; 13] =
    ["pod", "pod", "pod", "pod", "node", "any", "pod", "pod", "pod", "node", "remote", "internet", "any"];
const SERVICES: &str = r#", "serviceCIDRs": ["10.96.0.0/12", "fd01::/112"]"#;

#[test]
fn twelve_paths_of_the_repaired_reference() {
    for (strict, family) in [(false, 0), (true, 0), (true, 1)] {
        walk(&Underlay::new(strict), r#", "ipMasq": true"#, family, REFERENCE);
    }
}

#[test]
fn twelve_paths_of_split_mode() {
    for (strict, family) in [(false, 0), (true, 0), (true, 1)] {
        walk(&Underlay::new(strict), SERVICES, family, SPLIT);
    }
}

#[test]
fn twelve_paths_of_split_mode_with_sources_kept() {
    let members = format!(r#"{SERVICES}, "keepSource": true"#);
    for (strict, family) in [(false, 0), (true, 0), (true, 1)] {
        walk(&Underlay::new(strict), &members, family, KEPT);
    }
}

/// The networks of the services come from the agent, which writes them beside `subnet.env`.
#[test]
fn services_the_agent_tells_of() {
    let lab = Underlay::new(true);
    let file = lab.node.path("subnet.env");
    let members = format!(r#", "mode": "split", "subnetFile": "{file}""#);
    let conf = &conflist(&lab.node, 50, "1.0.0", &members)[1];
    let (_netns, pod) = pod("early");
    let (code, text) = lab.node.call("veth-to-host", "ADD", &pod, conf).error();
    assert!(code == 7 && text.contains("tell the agent by LODEN_SERVICE_CIDRS"), "{code} {text}");
    std::fs::write(format!("{file}.services"), "10.96.0.0/12\nfd01::/112\n").unwrap();
    walk(&lab, &members, 0, SPLIT);
}

/// Translations by iptables, kept source and all.
#[test]
fn twelve_paths_by_iptables() {
    let by = r#", "masqBackend": "iptables""#;
    for family in [0, 1] {
        walk(&Underlay::new(true), &format!(r#"{by}, "ipMasq": true"#), family, REFERENCE);
        walk(&Underlay::new(true), &format!(r#"{by}{SERVICES}, "keepSource": true"#), family, KEPT);
    }
}

/// The same after ipvlan, whose pods have the hardware address of the node.
#[test]
fn twelve_paths_after_ipvlan() {
    if !crate::harness::kernel_has("veth_to_host::twelve_paths_after_ipvlan", "ipvlan") {
        return;
    }
    for (members, want) in [(r#", "ipMasq": true"#, REFERENCE), (SERVICES, SPLIT)] {
        let mut lab = Underlay::new(true);
        lab.kind = "ipvlan";
        walk(&lab, members, 0, want);
    }
}

/// As published, failures included (cni.md 2.19.5, A and B).
#[test]
fn twelve_paths_of_the_tutorial() {
    let a = ["pod", "pod", "-", "-", "-", "-", "pod", "pod", "-", "node", "remote", "-", "-"];
    let b = ["pod", "pod", "pod", "any", "-", "-", "pod", "pod", "-", "node", "remote", "-", "-"];
    walk(&Underlay::new(false), r#", "mode": "tutorial""#, 0, a);
    walk(&Underlay::new(false), r#", "mode": "tutorial", "ipMasq": true"#, 0, b);
}

/// The transcripts of the published description, line by line (cni.md 2.19.2), with its documents.
#[test]
fn the_published_transcripts() {
    let lab = Underlay::new(false);
    let (netns, pod) = pod("1234");
    let dir = lab.node.path("networks");
    let macvlan = format!(
        r#"{{"name": "cni0", "cniVersion": "0.3.1", "type": "macvlan", "master": "eth0", "ipam": {{"type": "host-local",
            "dataDir": "{dir}", "subnet": "10.10.20.0/24", "rangeStart": "10.10.20.53", "rangeEnd": "10.10.20.60",
            "gateway": "10.10.20.254", "routes": [{{"dst": "0.0.0.0/0"}}]}}}}"#
    );
    let veth = r#"{"name": "cni0", "cniVersion": "0.3.1", "type": "veth-to-host", "hostInterface": "eth0",
        "containerInterface": "veth0", "ipMasq": true}"#;
    let first = lab.node.call("macvlan", "ADD", &pod, &macvlan).expect("ADD");
    for (mode, own_table) in
        [("tutorial", "default via 10.10.20.53 dev"), ("reference", "10.10.20.0/24 via 10.10.20.53 dev")]
    {
        let conf = with(&with(veth, "mode", mode), "prevResult", first.clone());
        let result = lab.node.call("veth-to-host", "ADD", &pod, &conf).expect("ADD");
        let outer = lab.node.links().into_iter().find(|name| name.starts_with("veth")).unwrap();
        assert_eq!(outer.len(), 12);
        let lines = |text: String| text.lines().map(|l| l.trim().to_owned()).collect::<Vec<_>>();
        assert_eq!(
            lines(ip_in(&netns, "-4 route show")),
            [
                "default via 10.10.20.152 dev veth0",
                "10.10.20.0/24 dev eth0 proto kernel scope link src 10.10.20.53",
                "10.10.20.152 dev veth0 scope link",
            ]
        );
        assert!(lines(lab.node.ip("-4 route show")).contains(&format!("10.10.20.53 dev {outer} scope link")));
        let rules = lines(lab.node.ip("-4 rule show"));
        let rule = rules.iter().find(|rule| rule.starts_with("1024:")).unwrap();
        let table = rule.split(" lookup ").nth(1).unwrap().split(' ').next().unwrap();
        let number: u32 = table.parse().unwrap();
        assert!((256..1256).contains(&number), "{rule}");
        if mode == "tutorial" {
            assert_eq!(*rule, format!("1024:\tfrom all iif {outer} lookup {table}"));
            assert!(
                rules.contains(&"512:\tfrom all fwmark 0x2000/0x2000 lookup main".to_owned()),
                "{rules:?}"
            );
        }
        assert_eq!(
            lines(lab.node.ip(&format!("-4 route show table {table}"))),
            [format!("{own_table} {outer}")]
        );
        let kinds: Vec<String> = lines(ip_in(&netns, "-br link"))
            .iter()
            .map(|l| l.split('@').next().unwrap().to_owned())
            .collect();
        assert!(kinds.contains(&"eth0".to_owned()) && kinds.contains(&"veth0".to_owned()), "{kinds:?}");
        assert!(!ip_in(&netns, "-4 addr show veth0").contains("inet "), "no address of its own");
        // The result: both ends appended, addresses and routes as before.
        let text = crate::harness::stable(&result);
        let want = concat!(
            r#"{"cniVersion":"0.3.1","interfaces":[{"mac":"M","name":"eth0","sandbox":"S"},"#,
            r#"{"mac":"M","name":"vethX"},{"mac":"M","name":"vethX","sandbox":"S"}],"#,
            r#""ips":[{"address":"10.10.20.53/24","gateway":"10.10.20.254","interface":0,"version":"4"}],"#,
            r#""routes":[{"dst":"0.0.0.0/0"}]}"#
        );
        assert_eq!(text, want);
        assert!(lab.node.call("veth-to-host", "DEL", &pod, &conf).ok);
        assert_eq!(lab.node.ip("-4 rule show").lines().count(), 3, "{}", lab.node.ip("-4 rule show"));
        ip_in(&netns, "route replace default via 10.10.20.254");
    }
}

/// A connection to a node's port from off the subnet comes back the way it came.
#[test]
fn node_ports_find_their_way_back() {
    for members in [
        r#", "ipMasq": true, "nodePorts": "30000:32767""#,
        r#", "ipMasq": true, "nodePorts": "30000:32767", "masqBackend": "iptables""#,
        r#", "mode": "tutorial", "ipMasq": true"#,
    ] {
        let lab = Underlay::new(false);
        let a = lab.pod(&lab.node, "a", members);
        let to = SocketAddr::new(a.addresses[0], PORT);
        let text = format!(
            "add table ip np\nadd chain ip np pre {{ type nat hook prerouting priority -100; }}\n\
             add rule ip np pre ip daddr 10.10.20.152 tcp dport 30080 dnat to {to}\n"
        );
        let output = crate::harness::run_in(
            &lab.node.netns,
            std::process::Command::new("nft").args(["-f", "-"]),
            &text,
        );
        assert!(output.status.success());
        let seen = ask(&lab.internet, "10.10.20.152:30080".parse().unwrap(), WORKS);
        assert_eq!(seen.as_deref(), Some("203.0.113.9"), "{members}");
        assert_eq!(kernel::sysctl::read_in(&lab.node.netns, "net/ipv4/conf/eth0/rp_filter").unwrap(), "2");
        let rules = lab.node.ip("-4 rule show");
        let mark = if members.contains("tutorial") { "0x2000" } else { "0x1000" };
        assert!(rules.contains(&format!("512:\tfrom all fwmark {mark}/{mark} lookup main")), "{rules}");
        let told = with(&a.chain[1], "prevResult", a.result.clone());
        lab.node.call("veth-to-host", "CHECK", &a.pod, &told).expect("CHECK");
        del(&lab.node, &a);
        assert!(!lab.node.ip("-4 rule show").contains("512:"), "the last pod takes the rule with it");
        let rules = format!("{}{}", lab.node.rules(), crate::harness::iptables(&lab.node));
        assert!(!rules.contains("30000-32767") && !rules.contains("30000:32767"), "{rules}");
    }
}

/// DEL works from derived names: without namespace, result, record; any number of times.
#[test]
fn del_leaves_nothing_however_it_comes() {
    let lab = Underlay::new(false);
    let host = &lab.node;
    for (path, result, record) in [
        (None, true, true),
        (Some(""), false, true),
        (Some(""), false, false),
        (Some("/run/netns/no-such"), true, false),
        (Some("plain"), false, true),
    ] {
        let a = lab.pod(host, "a", r#", "ipMasq": true, "nodePorts": "30000-32767""#);
        let file = host.path("plain");
        std::fs::write(&file, "").unwrap();
        let path =
            path.map_or(a.pod.path.clone(), |p| if p == "plain" { file.clone() } else { p.to_owned() });
        if !record {
            std::fs::remove_dir_all(host.path("state/attachments")).unwrap();
        }
        let gone = Pod { path, ..a.pod.clone() };
        let conf =
            if result { with(&a.chain[1], "prevResult", a.result.clone()) } else { a.chain[1].clone() };
        for _ in 0..3 {
            host.call("veth-to-host", "DEL", &gone, &conf).expect("DEL");
            host.call("macvlan", "DEL", &gone, &a.chain[0]).expect("DEL");
        }
        nothing_left(host);
        assert_eq!(host.links().iter().filter(|n| n.starts_with("veth")).count(), 0);
    }
    // DEL without ADD; DEL with a document that no longer parses.
    let (_netns, never) = pod("never");
    let conf = &conflist(host, 50, "1.0.0", "")[1];
    host.call("veth-to-host", "DEL", &never, conf).expect("DEL");
    host.call("veth-to-host", "DEL", &never, &with(conf, "mode", "x")).expect("DEL");
}

/// GC keeps the valid and removes the rest, rules of pairs that are gone included.
#[test]
fn gc_removes_what_is_not_valid() {
    for members in [r#", "ipMasq": true"#, r#", "ipMasq": true, "masqBackend": "iptables""#] {
        gc_keeps_the_valid(members);
    }
}

fn gc_keeps_the_valid(members: &str) {
    let lab = Underlay::new(false);
    let host = &lab.node;
    let [a, b] = ["a", "b"].map(|id| lab.pod(host, id, members));
    // A pod whose namespace ended takes the pair with it, but neither rule nor translation.
    let c = lab.pod(host, "c", members);
    let outer = c.result.get("interfaces").and_then(Json::as_array).unwrap()[1].clone();
    let outer = outer.get("name").and_then(Json::as_str).unwrap().to_owned();
    host.ip(&format!("link del {outer}"));
    assert!(host.ip("-4 rule show").contains(&format!("iif {outer} [detached]")));
    let pair = |attached: &Attached| {
        Json::object([("containerID", attached.pod.id.as_str().into()), ("ifname", "eth0".into())])
    };
    let gc = |valid: Vec<Json>| {
        let conf =
            with(&with(&a.chain[1], "cniVersion", "1.1.0"), "cni.dev/valid-attachments", Json::array(valid));
        host.call("veth-to-host", "GC", &a.pod, &conf).expect("GC");
    };
    let told = |attached: &Attached| with(&attached.chain[1], "prevResult", attached.result.clone());
    gc(vec![pair(&a), pair(&b)]);
    for attached in [&a, &b] {
        host.call("veth-to-host", "CHECK", &attached.pod, &told(attached)).expect("CHECK");
    }
    assert!(!host.ip("-4 rule show").contains("detached"));
    assert!(!host.rules().contains(&c.addresses[0].to_string()), "{}", host.rules());
    gc(vec![pair(&b)]);
    host.call("veth-to-host", "CHECK", &b.pod, &told(&b)).expect("CHECK");
    assert!(!host.call("veth-to-host", "CHECK", &a.pod, &told(&a)).ok);
    gc(Vec::new());
    nothing_left(host);
    assert!(host.links().iter().all(|name| !name.starts_with("veth")));
    // Without a list nothing is known to be invalid.
    let (d, newer) = (lab.pod(host, "d", members), with(&a.chain[1], "cniVersion", "1.1.0"));
    host.call("veth-to-host", "GC", &d.pod, &newer).expect("GC");
    host.call("veth-to-host", "CHECK", &d.pod, &told(&d)).expect("CHECK");
}

/// Many at once: a table each, and nothing is left of any.
#[test]
fn pods_at_once_have_tables_of_their_own() {
    const PODS: usize = 10;
    let lab = Underlay::new(false);
    let host = &lab.node;
    for _ in 0..2 {
        // Numbers close together meet each other.
        let members = r#", "ipMasq": true, "nodePorts": "30000:32767""#;
        let pods: Vec<Attached> = std::thread::scope(|scope| {
            let make = |n: usize| {
                let lab = &lab;
                scope.spawn(move || lab.pod(host, &format!("c{n}"), members))
            };
            let threads: Vec<_> = (0..PODS).map(make).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        for family in ["-4", "-6"] {
            let rules = host.ip(&format!("{family} rule show"));
            let tables: std::collections::BTreeSet<&str> = rules
                .lines()
                .filter(|l| l.starts_with("1024:"))
                .filter_map(|l| l.split(" lookup ").nth(1))
                .collect();
            assert_eq!(tables.len(), PODS, "{rules}");
            assert_eq!(rules.matches("512:").count(), 1, "{rules}");
        }
        assert_eq!(
            host.rules().matches("tcp dport 30000-32767").count(),
            2,
            "one for each family: {}",
            host.rules()
        );
        std::thread::scope(|scope| {
            for attached in &pods {
                scope.spawn(|| del(host, attached));
            }
        });
        nothing_left(host);
        assert!(host.links().iter().all(|name| !name.starts_with("veth")));
        assert!(!host.ip("-4 rule show").contains("512:"));
    }
}

#[test]
fn check_finds_what_was_changed() {
    let lab = Underlay::new(false);
    let host = &lab.node;
    for (place, change, want) in [
        ("pod", "route del default", "Expected Route {0.0.0.0/0 via 10.10.20.152"),
        ("pod", "route del 10.10.20.152", "Expected Route {10.10.20.152/32"),
        ("pod", "neigh del 10.10.20.152 dev veth0", "permanent neighbour 10.10.20.152 not found on the pod"),
        ("pod", "link set veth0 down", "interface veth0 is down"),
        ("pod", "link del veth0", "failed to lookup \"veth0\""),
        ("host", "route del POD", "not found on the host"),
        ("host", "neigh del POD dev OUTER", "permanent neighbour POD not found on the host"),
        ("host", "rule del prio 1024", "rule for packets from OUTER not found (IPv4)"),
        ("host", "route flush table TABLE", "Expected Route {10.10.20.0/24 via POD"),
        ("nft", "", "missing rules of a in nftables table ip loden-veth-to-host"),
    ] {
        let a = lab.pod(host, "a", r#", "ipMasq": true"#);
        let told = with(&a.chain[1], "prevResult", a.result.clone());
        host.call("veth-to-host", "CHECK", &a.pod, &told).expect("CHECK");
        let outer = host.links().into_iter().find(|name| name.starts_with("veth")).unwrap();
        let rules = host.ip("-4 rule show");
        let table =
            rules.split(&format!("{outer} lookup ")).nth(1).unwrap().split_whitespace().next().unwrap();
        let fill = |text: &str| {
            text.replace("POD", &a.addresses[0].to_string()).replace("OUTER", &outer).replace("TABLE", table)
        };
        match place {
            "pod" => ip_in(&a.netns, &fill(change)),
            "host" => host.ip(&fill(change)),
            _ => {
                let flush = ["flush", "chain", "ip", "loden-veth-to-host", "pods"];
                host.run(std::process::Command::new("nft").args(flush), "");
                String::new()
            }
        };
        let (_, text) = host.call("veth-to-host", "CHECK", &a.pod, &told).error();
        assert!(text.contains(&fill(want)), "{change}: {text}");
        del(host, &a);
        nothing_left(host);
    }
}

#[test]
fn faults_leave_nothing() {
    let lab = Underlay::new(false);
    let host = &lab.node;
    let (netns, pod) = pod("a");
    let chain = conflist(host, 50, "1.0.0", "");
    let first = host.call("macvlan", "ADD", &pod, &chain[0]).expect("ADD");
    let before = crate::witness::picture(&netns);
    let told = |conf: &str| with(conf, "prevResult", first.clone());
    let no_ips = r#"{"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "x"}]}"#;
    for (conf, code, want) in [
        (chain[1].clone(), 7, "must be called as chained plugin"),
        (with(&chain[1], "prevResult", no_ips.parse::<Json>().unwrap()), 7, "got no container IPs"),
        (told(&with(&chain[1], "hostInterface", "")), 7, "hostInterface must be specified"),
        (told(&with(&chain[1], "containerInterface", Json::Null)), 7, "containerInterface must be specified"),
        (told(&with(&chain[1], "containerInterface", "eth0")), 7, "containerInterface eth0: the pod's own"),
        (told(&with(&chain[1], "hostInterface", "no")), 999, "failed to lookup \"no\": Link not found"),
        (told(&with(&chain[1], "hostInterface", "lo")), 999, "failed to get host IP addresses for \"lo\""),
        (told(&with(&chain[1], "mode", "x")), 7, "unknown mode \"x\""),
        (told(&with(&chain[1], "mode", "split")), 7, "serviceCIDRs missing"),
        (told(&with(&chain[1], "mtu", "x")), 7, "NetConf.mtu of type int"),
    ] {
        let (have, text) = host.call("veth-to-host", "ADD", &pod, &conf).error();
        assert!(text.contains(want), "{text}");
        assert_eq!(have, code, "{text}");
        assert_eq!(crate::witness::picture(&netns), before, "{want}");
        assert!(host.links().iter().all(|name| !name.starts_with("veth")), "{want}");
    }
    // A route that is in the way on the host: everything is taken back, the pod's default route too.
    host.ip("route add 10.10.20.50/32 dev ov0");
    let (_, text) = host.call("veth-to-host", "ADD", &pod, &told(&chain[1])).error();
    assert!(text.contains("failed to add host route to 10.10.20.50/32"), "{text}");
    host.ip("route del 10.10.20.50/32");
    // One that is in the way in the pod.
    ip_in(&netns, "route add 10.10.20.152/32 dev eth0");
    let (_, text) = host.call("veth-to-host", "ADD", &pod, &told(&chain[1])).error();
    assert!(text.contains("the pod has another route there"), "{text}");
    ip_in(&netns, "route del 10.10.20.152/32");
    assert_eq!(crate::witness::picture(&netns), before);
    nothing_left(host);
    assert!(host.links().iter().all(|name| !name.starts_with("veth")));
    // No free table.
    for family in ["-4", "-6"] {
        host.ip(&format!("{family} rule add prio 9 fwmark 0x77 lookup 300"));
    }
    // Twice: the second is refused and the first unharmed.
    let result = host.call("veth-to-host", "ADD", &pod, &told(&chain[1])).expect("ADD");
    let (_, text) = host.call("veth-to-host", "ADD", &pod, &told(&chain[1])).error();
    assert!(text.contains("container veth name (\"veth0\") peer provided (\"veth"), "{text}");
    host.call("veth-to-host", "CHECK", &pod, &with(&chain[1], "prevResult", result)).expect("CHECK");
}

#[test]
fn status_tells_why_not() {
    let lab = Underlay::new(false);
    let host = &lab.node;
    let conf = conflist(host, 50, "1.1.0", r#", "ipMasq": true"#)[1].clone();
    let (_netns, pod) = pod("a");
    host.call("veth-to-host", "STATUS", &pod, &conf).expect("STATUS");
    for (dev, want) in [("no", "failed to lookup \"no\""), ("lo", "failed to get host IP addresses")] {
        let (code, text) =
            host.call("veth-to-host", "STATUS", &pod, &with(&conf, "hostInterface", dev)).error();
        assert_eq!(code, 50);
        assert!(text.contains(want), "{text}");
    }
    let _a = lab.pod(host, "a", r#", "ipMasq": true"#);
    kernel::sysctl::write_in(&host.netns, "net/ipv4/ip_forward", "0").unwrap();
    let (code, text) = host.call("veth-to-host", "STATUS", &pod, &conf).error();
    assert_eq!(code, 51);
    assert!(text.contains("net/ipv4/ip_forward is 0") && text.contains("sysctl -w"), "{text}");
    host.ip("link set eth0 down");
    assert_eq!(host.call("veth-to-host", "STATUS", &pod, &conf).error().0, 50);
}
