//! `sbr`: one row for each of its scenarios (cni.md 4.3), beside Debian's plugin.

use crate::harness::{DEBIAN, Host, Pod, debian, ip_in, pod, twins, with};
use kernel::Netns;
use model::gojson::Json;

/// A pod with two interfaces, addressed as a plugin before would have left them.
fn dressed(addresses: &[&str], more: &[&str]) -> (Netns, Pod) {
    let (netns, pod) = pod("c1");
    ip_in(&netns, "link set lo up");
    for (dev, own) in [("net1", &["192.0.2.2/24"][..]), ("eth0", addresses)] {
        ip_in(
            &netns,
            &format!("link add {dev} address 0a:00:00:00:00:0{} type veth peer name far{dev}", dev.len()),
        );
        ip_in(&netns, &format!("link set far{dev} up"));
        ip_in(&netns, &format!("link set {dev} up"));
        for address in own {
            ip_in(
                &netns,
                &format!("addr add {address} dev {dev}{}", if address.contains(':') { " nodad" } else { "" }),
            );
        }
    }
    // Link-local addresses come when they like; the twins are compared without.
    for dev in ["eth0", "net1", "fareth0", "farnet1"] {
        kernel::sysctl::write_in(&netns, &format!("net/ipv6/conf/{dev}/addr_gen_mode"), "1").unwrap();
    }
    for dev in ["eth0", "net1", "fareth0", "farnet1"] {
        ip_in(&netns, &format!("-6 addr flush dev {dev} scope link"));
    }
    for command in more {
        ip_in(&netns, command);
    }
    (netns, pod)
}

fn conf(members: &str, ips: &[(&str, Option<&str>)]) -> String {
    let list: Vec<String> = ips
        .iter()
        .map(|(address, gateway)| {
            let gateway = gateway.map(|g| format!(r#", "gateway": "{g}""#)).unwrap_or_default();
            format!(r#"{{"address": "{address}", "interface": 1{gateway}}}"#)
        })
        .collect();
    format!(
        r#"{{"cniVersion": "1.0.0", "name": "net", "type": "sbr"{members}, "prevResult": {{
            "cniVersion": "1.0.0", "interfaces": [{{"name": "net1", "sandbox": "/x"}}, {{"name": "eth0", "sandbox": "/x"}}],
            "ips": [{{"address": "192.0.2.2/24", "interface": 0}}, {}]}}}}"#,
        list.join(", ")
    )
}

/// Rules and routes without what tells only who made them.
fn look(netns: &Netns) -> String {
    let text =
        ["rule", "-6 rule", "route show table all", "-6 route show table all"].map(|what| ip_in(netns, what));
    let clean = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut kept = Vec::new();
        let mut skip = false;
        for word in words {
            if skip {
                skip = false;
            } else if word == "proto" {
                skip = true;
            } else if word != "linkdown" {
                kept.push(word);
            }
        }
        kept.join(" ")
    };
    let lines = text
        .iter()
        .flat_map(|t| t.lines())
        .filter(|line| !line.contains("table local") && !line.contains("fe80"));
    lines.map(clean).collect::<Vec<_>>().join("\n")
}

type Row<'a> = (&'a [&'a str], &'a [&'a str], &'a [(&'a str, Option<&'a str>)]);

#[test]
fn tables_are_debians() {
    let rows: &[Row<'_>] = &[
        (&["10.1.2.3/24"], &[], &[("10.1.2.3/24", Some("10.1.2.1"))]),
        (&["10.1.2.3/24"], &[], &[("10.1.2.3/24", None)]),
        (
            &["10.1.2.3/24"],
            &["route add default via 10.1.2.1 dev eth0"],
            &[("10.1.2.3/24", Some("10.1.2.1"))],
        ),
        (
            &["10.1.2.3/24"],
            &["route add default via 192.0.2.1 dev net1"],
            &[("10.1.2.3/24", Some("10.1.2.1"))],
        ),
        (
            &["10.1.2.3/24", "10.1.2.4/24", "10.9.0.1/16"],
            &["route add 172.16.0.0/12 via 10.9.0.2 dev eth0", "route add 198.51.100.0/24 dev eth0"],
            &[("10.1.2.3/24", Some("10.1.2.1")), ("10.1.2.4/24", Some("10.1.2.1")), ("10.9.0.1/16", None)],
        ),
        (&["2001:db8::3/64"], &[], &[("2001:db8::3/64", Some("2001:db8::1"))]),
        (
            &["10.1.2.3/24"],
            &["rule add from 10.0.0.1 table 100", "rule add from 10.0.0.2 table 101"],
            &[("10.1.2.3/24", Some("10.1.2.1"))],
        ),
    ];
    for (addresses, more, ips) in rows {
        twins("tables_are_debians", &format!("{addresses:?} {more:?}"), |host, dirs| {
            let (netns, pod) = dressed(addresses, more);
            let conf = conf("", ips);
            let result = host.call_with(dirs, "sbr", "ADD", &pod, &conf).expect("ADD");
            let made = look(&netns);
            host.call_with(dirs, "sbr", "CHECK", &pod, &conf).expect("CHECK");
            for _ in 0..2 {
                assert!(host.call_with(dirs, "sbr", "DEL", &pod, &conf).ok);
            }
            let mut result = result;
            result.remove("dns");
            format!("{}\n{made}\n{}", result.to_compact_sorted(), look(&netns))
        });
    }
}

#[test]
fn keys_of_newer_releases() {
    let host = Host::new();
    let ips = &[("10.1.2.3/24", Some("10.1.2.1")), ("2001:db8::3/64", None)];
    let addresses = &["10.1.2.3/24", "2001:db8::3/64"];
    for (members, want, without) in [
        (
            r#", "table": 300"#,
            vec!["from 10.1.2.3 lookup 300", "from 2001:db8::3 lookup 300"],
            vec!["table 300"],
        ),
        (
            r#", "gateways": ["10.1.2.9", "2001:db8::9"]"#,
            vec!["default via 10.1.2.9 dev eth0 table 100", "default via 2001:db8::9 dev eth0 table 101"],
            vec!["via 10.1.2.1 "],
        ),
        (
            r#", "gateways": ["2001:db8::9"]"#,
            vec!["default via 10.1.2.1 dev eth0 table 100", "default via 2001:db8::9 dev eth0 table 101"],
            vec![],
        ),
        (
            r#", "addSourceHints": true"#,
            vec![
                "10.1.2.0/24 dev eth0 scope link src 10.1.2.3\n",
                "10.1.2.0/24 dev eth0 table 100 scope link src 10.1.2.3",
            ],
            vec![],
        ),
    ] {
        let (netns, pod) = dressed(addresses, &[]);
        let conf = conf(members, ips);
        let before = look(&netns);
        host.call("sbr", "ADD", &pod, &conf).expect("ADD");
        let text = format!("{}\n", look(&netns));
        for want in want {
            assert!(text.contains(want), "{members}: {want:?} in\n{text}");
        }
        assert!(without.iter().all(|no| !text.contains(no)), "{members}\n{text}");
        host.call("sbr", "CHECK", &pod, &conf).expect("CHECK");
        assert!(host.call("sbr", "DEL", &pod, &conf).ok);
        let rules =
            |text: &str| text.lines().filter(|l| l.contains("lookup")).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(rules(&look(&netns)), rules(&before));
        let (_, text) = host.call("sbr", "CHECK", &pod, &conf).error();
        assert!(text.starts_with("sbr: rule from 10.1.2.3 "), "{text}");
    }
}

#[test]
fn what_is_wrong_is_named_and_nothing_stays() {
    let host = Host::new();
    let good = &[("10.1.2.3/24", Some("10.1.2.1"))];
    for (members, ips, code, want) in [
        (
            r#", "gateways": ["10.0.0.1", "10.0.0.2"]"#,
            &good[..],
            7,
            "failed to parse config: gateways list contains multiple IPv4",
        ),
        (r#", "table": -1"#, &good[..], 7, "failed to parse config: table -1 is no routing table"),
        // The second gateway cannot be reached: all of the first goes again.
        (
            "",
            &[("10.1.2.3/24", Some("10.1.2.1")), ("10.1.2.4/24", Some("203.0.113.1"))][..],
            999,
            "failed to add default route to 203.0.113.1",
        ),
    ] {
        let (netns, pod) =
            dressed(&["10.1.2.3/24", "10.1.2.4/24"], &["route add 198.51.100.0/24 via 10.1.2.7"]);
        let before = look(&netns);
        let conf = conf(members, ips);
        let (have, text) = host.call("sbr", "ADD", &pod, &conf).error();
        assert_eq!(have, code, "{text}");
        assert!(text.starts_with(want), "{text}");
        let sorted = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(&look(&netns)), sorted(&before));
    }
    let (_netns, pod) = dressed(&["10.1.2.3/24"], &[]);
    let (_, text) =
        host.call("sbr", "ADD", &pod, r#"{"cniVersion": "1.0.0", "name": "net", "type": "sbr"}"#).error();
    assert!(text.starts_with("This plugin must be called as chained plugin"), "{text}");
    let none = with(&conf("", good), "prevResult", r#"{"cniVersion": "1.0.0"}"#.parse::<Json>().unwrap());
    let (_, text) = host.call("sbr", "ADD", &pod, &none).error();
    assert!(text.starts_with("No IP addresses supplied on interface: eth0"), "{text}");
    let other = Pod { ifname: "net7".to_owned(), ..pod };
    let (_, text) = host.call("sbr", "ADD", &other, &conf("", good)).error();
    assert!(text.contains("net7"), "{text}");
}

#[test]
fn del_makes_no_file() {
    let host = Host::new();
    let conf = conf("", &[("10.1.2.3/24", None)]);
    let path = host.path("gone");
    for path in ["", &*path] {
        let pod = Pod { id: "c1".to_owned(), ifname: "eth0".to_owned(), path: path.to_owned() };
        assert!(host.call("sbr", "DEL", &pod, &conf).ok);
    }
    assert!(!std::path::Path::new(&path).exists(), "B-32");
    std::fs::write(&path, "").unwrap();
    let pod = Pod { id: "c1".to_owned(), ifname: "eth0".to_owned(), path };
    assert!(host.call("sbr", "DEL", &pod, &conf).ok);
    if debian("del_makes_no_file (that theirs does)") {
        let path = host.path("theirs");
        let pod = Pod { path: path.clone(), ..pod };
        assert!(!host.call_with(&[DEBIAN], "sbr", "DEL", &pod, &conf).ok);
        assert!(std::path::Path::new(&path).exists());
    }
}
