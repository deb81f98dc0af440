//! Bad surroundings: one clear sentence each, the right code, nothing left behind.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::chain::conflist;
use crate::harness::{Host, Pod, ip_in, pod};

/// Nothing of a failed ADD is left.
#[track_caller]
fn nothing_left(host: &Host) {
    let links = host.links();
    assert!(links.iter().all(|name| !name.starts_with("veth")), "{links:?}");
    let files = host.files("networks");
    assert!(files.iter().all(|f| f.ends_with("lock") || f.contains("last_reserved_ip")), "{files:?}");
    assert_eq!(host.files("flannel"), [""; 0]);
    assert_eq!(host.files("state/attachments"), [""; 0]);
}

#[test]
fn a_namespace_that_is_gone() {
    let host = Host::new();
    let chain = conflist(&host, "1.0.0");
    let file = host.path("plain");
    std::fs::write(&file, "").unwrap();
    for (path, want) in [
        ("/run/netns/no-such", "failed to open netns \"/run/netns/no-such\": failed to Statfs"),
        (file.as_str(), "unknown FS magic on"),
        ("/proc/self/ns/mnt", "not a network namespace"),
    ] {
        let pod = Pod { id: "c1".to_owned(), ifname: "eth0".to_owned(), path: path.to_owned() };
        for verb in ["ADD", "CHECK"] {
            if verb == "CHECK" && host.files("flannel").is_empty() {
                continue;
            }
            let (code, text) = host.call("flannel", verb, &pod, &chain[0].1).error();
            assert_eq!(code, 8, "{text}");
            assert!(text.contains(want), "{text}");
        }
        nothing_left(&host);
        assert!(host.call("flannel", "DEL", &pod, &chain[0].1).ok);
    }
}

#[test]
fn a_taken_interface_name() {
    let host = Host::new();
    let chain = conflist(&host, "1.0.0");
    let (netns, pod) = pod("c1");
    ip_in(&netns, "link add eth0 type bridge");
    let (_, text) = host.call("flannel", "ADD", &pod, &chain[0].1).error();
    assert!(text.starts_with("container veth name (\"eth0\") peer provided (\"veth"), "{text}");
    nothing_left(&host);
}

#[test]
fn a_name_that_is_no_bridge() {
    let host = Host::new();
    let chain = conflist(&host, "1.0.0");
    let (netns, pod) = pod("c1");
    host.ip("link add cni0 type veth peer name other");
    let (_, text) = host.call("flannel", "ADD", &pod, &chain[0].1).error();
    let want = "failed to create bridge \"cni0\": \"cni0\" already exists but is not a bridge";
    assert!(text.starts_with(want), "{text}");
    nothing_left(&host);
    assert!(!ip_in(&netns, "link show").contains("eth0"));
}

/// A small disk without room left, which is not left mounted when a test fails.
struct FullDisk(String);

impl FullDisk {
    fn at(dir: &str) -> FullDisk {
        mount(&["-t", "tmpfs", "-o", "size=16k", "none", dir]);
        let mut n = 0;
        while std::fs::write(format!("{dir}/fill{n}"), [b'x'; 4096]).is_ok() {
            n += 1;
        }
        FullDisk(dir.to_owned())
    }

    /// `rw` or `ro`.
    fn remount(&self, how: &str) {
        mount(&["-o", &format!("remount,{how}"), &self.0]);
    }
}

impl Drop for FullDisk {
    fn drop(&mut self) {
        // The process that deletes what a failed call made may not have closed its files yet.
        let deadline = Instant::now() + Duration::from_secs(20);
        let unmount = || {
            let status = Command::new("umount").arg(&self.0).stderr(Stdio::null()).status();
            status.is_ok_and(|status| status.success())
        };
        let mut done = unmount();
        while !done && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
            done = unmount();
        }
        // A second panic would end the process without a word about the first.
        assert!(std::thread::panicking() || done, "umount {}", self.0);
    }
}

fn mount(args: &[&str]) {
    assert!(Command::new("mount").args(args).status().unwrap().success(), "{args:?}");
}

#[test]
fn a_full_and_a_read_only_disk() {
    let host = Host::new();
    let chain = conflist(&host, "1.0.0");
    let (_netns, pod) = pod("c1");
    for (name, place) in [("networks", "address store"), ("flannel", "writable"), ("state", "writable")] {
        let dir = host.path(name);
        std::fs::create_dir_all(&dir).unwrap();
        let disk = FullDisk::at(&dir);
        let (code, text) = host.call("flannel", "ADD", &pod, &chain[0].1).error();
        assert_eq!(code, 5, "{name}: {text}");
        assert!(text.contains("No space left on device") && text.contains(place), "{name}: {text}");
        assert!(host.links().iter().all(|name| !name.starts_with("veth")));
        disk.remount("ro");
        let (code, text) = host.call("flannel", "ADD", &pod, &chain[0].1).error();
        assert_eq!(code, 5, "{name}: {text}");
        assert!(text.contains("Read-only file system"), "{name}: {text}");
        // A file of the attachment that cannot be removed is told; one that is not there is no error.
        assert!(host.call("flannel", "DEL", &pod, &chain[0].1).ok, "{name}");
        drop(disk);
        nothing_left(&host);
    }
}

/// Every plugin that keeps something, with each place where it does so.
#[test]
fn disks_that_are_full_or_read_only() {
    const UDP: &str = r#""snat": false, "runtimeConfig": {"portMappings":
        [{"hostPort": 5353, "containerPort": 53, "protocol": "udp"}]}"#;
    const UNDERLAY: &str = r#""hostInterface": "up0", "containerInterface": "veth0""#;
    let mut rows = vec![
        ("bridge", r#""isDefaultGateway": true, "ipMasq": true"#, "state"),
        ("bridge", r#""isDefaultGateway": true, "ipMasq": true"#, "networks"),
        ("ptp", r#""ipMasq": true"#, "state"),
        ("ptp", r#""ipMasq": true"#, "networks"),
        ("macvlan", r#""master": "up0""#, "state"),
        ("macvlan", r#""master": "up0""#, "networks"),
        ("host-device", r#""device": "up1""#, "state"),
        ("host-device", r#""device": "up1""#, "networks"),
        ("host-local", "", "networks"),
        ("veth-to-host", UNDERLAY, "state"),
        ("portmap", UDP, "state"),
        ("tuning", r#""mtu": 1400, "dataDir": "DIR/tuning""#, "state"),
        ("tuning", r#""mtu": 1400, "dataDir": "DIR/tuning""#, "tuning"),
        ("firewall", r#""backend": "iptables""#, "state"),
    ];
    if std::path::Path::new("/dev/net/tun").exists() {
        rows.extend([("tap", "", "state"), ("tap", "", "networks")]);
    }
    for kind in ["ipvlan", "vlan", "dummy"] {
        if Host::new().has(kind) {
            let members =
                if kind == "vlan" { r#""master": "up0", "vlanId": 7"# } else { r#""master": "up0""# };
            rows.extend([(kind, members, "state"), (kind, members, "networks")]);
        }
    }
    for (plugin, members, place) in rows {
        let host = Host::new();
        crate::children::wire(&host);
        host.ip("addr add 10.9.1.1/24 dev up0");
        host.ip("link set up0 up");
        let (netns, pod) = pod("c1");
        let is_chained = matches!(plugin, "veth-to-host" | "portmap" | "tuning" | "firewall");
        let members = members.replace("DIR", &host.path(""));
        let members = if members.is_empty() { members } else { format!(", {members}") };
        let mut conf = format!(
            r#"{{"cniVersion": "1.0.0", "name": "net", "type": "{plugin}"{members},
                "ipam": {{"type": "host-local", "dataDir": "{}", "subnet": "10.9.1.0/24"}}}}"#,
            host.path("networks")
        );
        if is_chained {
            ip_in(&netns, "link add eth0 type veth peer name x");
            let before: model::gojson::Json = r#"{"cniVersion": "1.0.0",
                "interfaces": [{"name": "eth0", "sandbox": "x"}],
                "ips": [{"interface": 0, "address": "10.9.1.2/24"}]}"#
                .parse()
                .unwrap();
            conf = crate::harness::with(&conf, "prevResult", before);
        }
        // Names and MTU; a bridge stays, as it does after any DEL.
        let links = || {
            let all = format!("{}{}", host.ip("-o link show"), ip_in(&netns, "-o link show"));
            let stays = |line: &&str| !line.contains(": cni0: ");
            let mut lines: Vec<String> = all
                .lines()
                .filter(stays)
                .map(|line| {
                    let words: Vec<&str> = line.split_whitespace().collect();
                    let mtu = words.iter().position(|word| *word == "mtu").unwrap();
                    format!("{} {}", words[1], words[mtu + 1])
                })
                .collect();
            lines.sort();
            lines
        };
        let before = links();
        let dir = host.path(place);
        std::fs::create_dir_all(&dir).unwrap();
        let disk = FullDisk::at(&dir);
        // Files without content fit on a full disk, and a lock is no more than that.
        let holds_locks_only = plugin == "firewall";
        let states = [("rw", "No space left on device"), ("ro", "Read-only file system")];
        for (how, want) in states.into_iter().filter(|(how, _)| *how == "ro" || !holds_locks_only) {
            disk.remount(how);
            let what = format!("{plugin}: {place} {how}");
            let (code, text) = host.call(plugin, "ADD", &pod, &conf).error();
            assert_eq!(code, 5, "{what}: {text}");
            assert!(text.contains(want) && text.contains(&host.path("")), "{what}: {text}");
            let deleted = host.call(plugin, "DEL", &pod, &conf);
            assert!(deleted.ok, "{what}: {}", deleted.text);
            assert_eq!(links(), before, "{what}");
            let rules = format!("{}{}", host.rules(), crate::harness::iptables(&host));
            assert!(!rules.contains("10.9.1.2"), "{what}: {rules}");
            let left =
                [host.files("networks"), host.files("state/attachments"), host.files("tuning")].concat();
            let left: Vec<String> = left.into_iter().filter(|f| !f.starts_with("fill")).collect();
            let fine = |f: &String| f.ends_with("lock") || f.contains("last_reserved_ip");
            assert!(left.iter().all(fine), "{what}: {left:?}");
        }
        drop(disk);
        // With a disk that can be written all is well.
        host.call(plugin, "ADD", &pod, &conf).expect(plugin);
        host.call(plugin, "DEL", &pod, &conf).expect(plugin);
    }
}

#[test]
fn bad_subnet_files() {
    let host = Host::new();
    let chain = conflist(&host, "1.1.0");
    let (_netns, pod) = pod("c1");
    for (text, want) in [
        (
            "",
            "is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ",
        ),
        ("FLANNEL_NETWORK\n", "is missing FLANNEL_NETWORK"),
        ("FLANNEL_SUBNET=10.1.1.0\n", "invalid CIDR address: 10.1.1.0"),
        ("\u{0}\u{1}\n", "is missing"),
    ] {
        host.subnet_env(text);
        for (verb, code) in [("ADD", 999), ("STATUS", 50)] {
            let (have, message) = host.call("flannel", verb, &pod, &chain[0].1).error();
            assert_eq!(have, code);
            assert!(message.contains(want), "{message}");
        }
    }
    nothing_left(&host);
}

#[test]
fn a_second_gateway_route_is_undone() {
    // The third route cannot be set: all of the attachment goes again.
    let host = Host::new();
    let (netns, pod) = pod("c1");
    let dir = host.path("networks");
    let conf = format!(
        r#"{{"cniVersion": "1.0.0", "name": "net", "type": "bridge", "isGateway": true, "ipMasq": true,
            "ipam": {{"type": "host-local", "dataDir": "{dir}", "subnet": "10.9.1.0/24",
                      "routes": [{{"dst": "10.0.0.0/8"}}, {{"dst": "10.8.0.0/16", "gw": "172.16.0.1"}}]}}}}"#
    );
    let (_, text) = host.call("bridge", "ADD", &pod, &conf).error();
    assert!(text.contains("failed to add route 10.8.0.0/16 via 172.16.0.1 for \"eth0\": "), "{text}");
    nothing_left(&host);
    assert!(!ip_in(&netns, "link show").contains("eth0"));
    assert!(!host.rules().contains("10.9.1."));
}

#[test]
fn a_result_that_could_not_be_printed_is_refused_first() {
    let host = Host::new();
    let (_netns, pod) = pod("c1");
    for version in ["", "0.1.0", "0.2.0"] {
        let conf = format!(r#"{{"cniVersion": "{version}", "name": "net", "type": "bridge"}}"#);
        let (code, text) = host.call("bridge", "ADD", &pod, &conf).error();
        assert_eq!(code, 7);
        assert!(text.starts_with("cannot convert: no valid IP addresses"), "{text}");
    }
    assert_eq!(host.links(), [""; 0]);
}

/// Kernels without a kind of device say so, and how to help it.
#[test]
fn a_missing_kind_of_device_is_named() {
    for (kind, members) in
        [("ipvlan", r#""master": "up0""#), ("vlan", r#""master": "up0", "vlanId": 7"#), ("dummy", "")]
    {
        if Host::new().has(kind) {
            println!("SKIP a_missing_kind_of_device_is_named ({kind}): this kernel has {kind}");
            continue;
        }
        let host = Host::new();
        crate::children::wire(&host);
        let (netns, pod) = pod("c1");
        let ipam = r#""type": "host-local", "dataDir": "DIR", "subnet": "10.9.1.0/24""#;
        let case = crate::witness::Case { plugin: kind, version: "1.0.0", members, ipam, args: "" };
        let conf = case.conf(&host);
        let (_, text) = host.call(kind, "ADD", &pod, &conf).error();
        assert!(text.contains(&format!("failed to create {kind}: ")), "{text}");
        assert!(text.contains(&format!("load the module {kind}")), "{text}");
        assert!(!ip_in(&netns, "link show").contains("eth0"));
        assert!(host.files("networks").iter().all(|f| !f.contains("10.9")));
    }
}
