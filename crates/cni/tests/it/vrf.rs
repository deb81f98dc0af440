//! `vrf` beside Debian's: the rows of the conformance list (cni.md 4.3).

use crate::harness::{DEBIAN, Host, Pod, debian, ip_in, kernel_has, pod, with};
use crate::witness::picture;
use model::gojson::Json;

/// The document of `vrf` with a result of the plugin before.
fn conf(version: &str, members: &str, ifname: &str) -> String {
    format!(
        r#"{{"cniVersion": "{version}", "name": "net", "type": "vrf", {members}, "prevResult": {{"cniVersion": "{version}",
            "interfaces": [{{"name": "{ifname}", "sandbox": "x"}}], "ips": [{{"version": "4", "interface": 0, "address": "10.9.1.2/24"}}]}}}}"#
    )
}

/// A pod whose interface a plugin before has set up, in both families.
fn wired(id: &str, ifname: &str, net: u8) -> (kernel::Netns, Pod) {
    let (netns, pod) = pod(id);
    wire(&netns, ifname, net);
    (netns, Pod { ifname: ifname.to_owned(), ..pod })
}

fn wire(netns: &kernel::Netns, ifname: &str, net: u8) {
    for command in [
        format!("link add {ifname} type veth peer name p{ifname}"),
        format!("link set p{ifname} up"),
        format!("link set {ifname} up"),
        format!("addr add 10.9.{net}.2/24 dev {ifname}"),
        format!("addr add 2001:db8:{net}::2/64 dev {ifname} nodad"),
        format!("route add 10.{net}.0.0/16 via 10.9.{net}.1 dev {ifname}"),
        format!("route add 2001:db8:1{net}::/48 via 2001:db8:{net}::1 dev {ifname}"),
    ] {
        ip_in(netns, &command);
    }
}

#[test]
fn vrf_is_that_of_debians_plugin() {
    if !kernel_has("vrf_is_that_of_debians_plugin", "vrf") || !debian("vrf_is_that_of_debians_plugin") {
        return;
    }
    let ours = Host::new();
    let bin = ours.bin().display().to_string();
    for (version, members) in [
        ("0.3.1", r#""vrfname": "blue""#),
        ("0.4.0", r#""vrfname": "blue", "table": 1001"#),
        ("1.0.0", r#""vrfname": "a-long-name-15c", "table": 42"#),
    ] {
        let run = |dirs: &[&str]| {
            let host = Host::new();
            let (netns, pod) = wired("c1", "eth0", 1);
            let conf = conf(version, members, "eth0");
            let result = host.call_with(dirs, "vrf", "ADD", &pod, &conf).expect("ADD");
            let mut text = format!("{}\n{}", result.to_compact_sorted(), picture(&netns));
            if version >= "0.4.0" {
                host.call_with(dirs, "vrf", "CHECK", &pod, &conf).expect("CHECK");
            }
            assert!(host.call_with(dirs, "vrf", "DEL", &pod, &conf).ok);
            text.push_str(&ip_in(&netns, "-br link show type vrf"));
            // Ours tells an empty `dns` in the older shape only, theirs always. Theirs (1.1.1) loses routes over
            // gateways.
            let lines = text.lines().filter(|line| !line.contains("gateway=\""));
            lines.map(|line| line.replace("\"dns\":{},", "") + "\n").collect::<String>()
        };
        let (have, want) = (run(&[&bin]), run(&[DEBIAN]));
        assert!(have == want, "{version} {members}\nours:\n{have}\ntheirs:\n{want}");
    }
}

/// Two interfaces, one VRF: it goes with the last; a second VRF gets the next free table.
#[test]
fn vrf_goes_with_its_last_interface() {
    if !kernel_has("vrf_goes_with_its_last_interface", "vrf") {
        return;
    }
    let host = Host::new();
    let (netns, one) = wired("c1", "eth0", 1);
    wire(&netns, "eth1", 2);
    wire(&netns, "eth2", 3);
    let [two, three] = ["eth1", "eth2"].map(|name| Pod { ifname: name.to_owned(), ..one.clone() });
    let blue = r#""vrfname": "blue""#;
    host.call("vrf", "ADD", &one, &conf("1.0.0", blue, "eth0")).expect("ADD");
    host.call("vrf", "ADD", &two, &conf("1.0.0", blue, "eth1")).expect("ADD");
    host.call("vrf", "ADD", &three, &conf("1.0.0", r#""vrfname": "red""#, "eth2")).expect("ADD");
    for (name, table) in [("blue", 1), ("red", 2)] {
        assert!(ip_in(&netns, &format!("-d link show {name}")).contains(&format!("table {table} ")));
    }
    for (net, table) in [(1, 1), (2, 1), (3, 2)] {
        let v4 = ip_in(&netns, &format!("-4 route show table {table}"));
        assert!(v4.contains(&format!("10.{net}.0.0/16 via 10.9.{net}.1")), "{v4}");
        let v6 = ip_in(&netns, &format!("-6 route show table {table}"));
        assert!(v6.contains(&format!("2001:db8:1{net}::/48 via 2001:db8:{net}::1")), "{v6}");
    }
    // Conflicts: an interface that has a master, a table of another number, a device that is no VRF.
    for (pod, members, want) in [
        (&one, blue, "cmdAdd failed: interface eth0 has already a master set: blue"),
        (&one, r#""vrfname": "red""#, "cmdAdd failed: interface eth0 has already a master set: blue"),
    ] {
        let (_, text) = host.call("vrf", "ADD", pod, &conf("1.0.0", members, &pod.ifname)).error();
        assert!(text.contains(want), "{text}");
    }
    wire(&netns, "eth3", 4);
    let four = Pod { ifname: "eth3".to_owned(), ..one.clone() };
    for (members, want) in [
        (
            r#""vrfname": "blue", "table": 1001"#,
            "cmdAdd failed: VRF blue already exist with different routing table 1",
        ),
        (r#""vrfname": "peth3""#, "cmdAdd failed: interface peth3 exists and is no VRF"),
    ] {
        let before = picture(&netns);
        let (_, text) = host.call("vrf", "ADD", &four, &conf("1.0.0", members, "eth3")).error();
        assert!(text.contains(want), "{text}");
        assert_eq!(picture(&netns), before, "{members}");
    }
    host.call("vrf", "CHECK", &two, &conf("1.0.0", blue, "eth1")).expect("CHECK");
    for _ in 0..2 {
        assert!(host.call("vrf", "DEL", &one, &conf("1.0.0", blue, "eth0")).ok);
    }
    let (_, text) = host.call("vrf", "CHECK", &one, &conf("1.0.0", blue, "eth0")).error();
    assert!(text.contains("interface eth0 is not in VRF blue"), "{text}");
    assert!(ip_in(&netns, "link show type vrf").contains("blue"));
    assert!(host.call("vrf", "DEL", &two, &conf("1.0.0", blue, "eth1")).ok);
    assert!(!ip_in(&netns, "link show type vrf").contains("blue"));
    let (_, text) = host.call("vrf", "CHECK", &two, &conf("1.0.0", blue, "eth1")).error();
    assert!(text.contains("VRF blue not found"), "{text}");
    // A missing interface, a missing namespace: nothing to do.
    ip_in(&netns, "link del eth2");
    assert!(host.call("vrf", "DEL", &three, &conf("1.0.0", r#""vrfname": "red""#, "eth2")).ok);
    assert!(ip_in(&netns, "link show type vrf").is_empty());
}

#[test]
fn faults_are_named() {
    let host = Host::new();
    let (netns, pod) = wired("c1", "eth0", 1);
    let before = picture(&netns);
    let plain = conf("1.1.0", r#""vrfname": "blue""#, "eth0");
    for (conf, want) in [
        (conf("1.1.0", r#""table": 5"#, "eth0"), "configuration is expected to have a valid vrf name"),
        (conf("1.1.0", r#""vrfname": 5"#, "eth0"), "NetConf.vrfname of type string"),
        (conf("1.1.0", r#""vrfname": "a-name-too-long-for-it""#, "eth0"), "vrfname: "),
        (conf("1.1.0", r#""vrfname": "blue", "table": -5"#, "eth0"), "table: -5 is out of range"),
        (with(&plain, "prevResult", Json::Null), "missing prevResult from earlier plugin"),
    ] {
        let (code, text) = host.call("vrf", "ADD", &pod, &conf).error();
        assert_eq!(code, 7, "{text}");
        assert!(text.contains(want), "{text}");
        assert!(host.call("vrf", "DEL", &pod, &conf).ok);
    }
    if !host.has("vrf") {
        let (_, text) = host.call("vrf", "ADD", &pod, &plain).error();
        assert!(
            text.contains("failed to create VRF blue: ") && text.contains("load the module vrf"),
            "{text}"
        );
    }
    assert_eq!(picture(&netns), before);
    for path in ["", "/run/netns/no-such"] {
        assert!(host.call("vrf", "DEL", &Pod { path: path.to_owned(), ..pod.clone() }, &plain).ok);
    }
    let old = plain.replace("1.1.0", "0.3.0");
    assert_eq!(host.call("vrf", "ADD", &pod, &old).error().0, 1, "since 0.3.1");
}
