use super::ruleset::Ruleset;
use super::*;

#[test]
fn every_check_has_a_name_of_its_own() {
    let mut names: Vec<&str> = checks::all().map(|check| check.name).collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
    assert!(
        names
            .iter()
            .all(|name| name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'))
    );
    assert!(examine(&Facts::default()).is_empty(), "of nothing nothing follows");
}

#[test]
fn rules_are_understood_in_both_forms() {
    let nft = Ruleset::nft(
        "table ip filter {\n\tchain FORWARD {\n\t\ttype filter hook forward priority filter; policy drop;\n\
         \t\tcounter packets 0 bytes 0 jump FLANNEL-FWD\n\t}\n\tset s {\n\t\ttype ipv4_addr\n\t}\n}\n\
         table inet x {\n\tchain i {\n\t\ttype filter hook input priority 0; policy accept;\n\t\tcounter packets 12 bytes 99 drop\n\t}\n}\n",
    );
    let legacy = Ruleset::iptables(
        "*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [5:300]\n:FLANNEL-FWD - [0:0]\n\
         -A FORWARD -j FLANNEL-FWD\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\n-A INPUT -j REJECT --reject-with icmp-host-prohibited\nCOMMIT\n",
        "iptables-legacy",
    );
    for rules in [&nft, &legacy] {
        let chain = rules.at("forward").next().expect("a chain");
        assert_eq!((chain.name.as_str(), chain.drops), ("FORWARD", true));
        assert_eq!(rules.at("input").count(), 1);
    }
    assert_eq!(nft.chains.len(), 2, "sets are no chains");
}

/// Faults that cannot be made in a namespace of this kernel, or only by waiting for months.
#[test]
fn what_no_test_can_break_is_found_in_facts() {
    let agent = |change: fn(&mut crate::status::Status)| {
        let mut status =
            crate::status::Status { agent: Some(Default::default()), ready: true, ..Default::default() };
        change(&mut status);
        Some(status)
    };
    let number = |path: &str, value: &str| [(path.to_owned(), value.to_owned())];
    let faults = [
        ("kernel-device", Facts { kinds: Some([("vxlan".to_owned(), false)].into()), ..Facts::default() }),
        (
            "bridged-packets",
            Facts {
                sysctls: number("net/bridge/bridge-nf-call-iptables", "0").into(),
                devices: vec![facts::Device { name: "cni0".to_owned(), up: true, ..Default::default() }],
                routes: vec![facts::Route {
                    dst: "0.0.0.0/0".parse().expect("a network"),
                    dev: None,
                    gateway: None,
                    metric: 0,
                    kind: 1,
                    protocol: 3,
                }],
                ruleset: Ruleset::nft("table ip nat {\n\tchain KUBE-SERVICES {\n\t}\n}\n"),
                subnet_env: Some("FLANNEL_NETWORK=10.0.0.0/8\nFLANNEL_SUBNET=10.1.0.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n".to_owned()),
                ..Facts::default()
            },
        ),
        (
            "connection-table",
            Facts {
                sysctls: number("net/netfilter/nf_conntrack_count", "9500")
                    .into_iter()
                    .chain(number("net/netfilter/nf_conntrack_max", "10000"))
                    .collect(),
                ..Facts::default()
            },
        ),
        ("clock", Facts { now: 1_000, ..Facts::default() }),
        ("clock", Facts { now: 1_800_000_000, written: 1_800_090_000, ..Facts::default() }),
        ("certificate", Facts { now: 1_800_000_000, certificates: vec![("a".to_owned(), 0, 1_800_500_000)], ..Facts::default() }),
        ("disk-full", Facts { space: vec![("/run".to_owned(), 0, 900)], ..Facts::default() }),
        (
            "store",
            Facts {
                agent: agent(|s| {
                    s.store = Some(crate::status::Store { name: "etcd".to_owned(), heard_ms: Some(900_000), complete: true });
                }),
                ..Facts::default()
            },
        ),
        (
            "paths",
            Facts {
                agent: agent(|s| {
                    let path = crate::status::Path { bad: true, text: "why".to_owned(), ..Default::default() };
                    s.probes = Some(crate::status::Probes { off: None, nodes: 1, paths: vec![path] });
                }),
                ..Facts::default()
            },
        ),
    ];
    for (check, facts) in faults {
        let found = examine(&facts);
        assert_eq!(found.first().map(|finding| finding.check), Some(check), "{found:?}");
    }
}

#[test]
fn facts_as_json_and_back() {
    let facts = Facts {
        missing: vec!["packet rules: nft: not there".to_owned()],
        sysctls: [("net/ipv4/ip_forward".to_owned(), "1".to_owned())].into(),
        kinds: Some([("vxlan".to_owned(), true)].into()),
        devices: vec![
            facts::Device {
                name: "flannel.1".to_owned(),
                kind: "vxlan".to_owned(),
                mtu: 1450,
                up: true,
                carrier: true,
                mac: "02:00:00:00:00:01".parse().ok(),
                master: Some("br0".to_owned()),
                vxlan: Some((1, 8472, "192.0.2.1".parse().ok())),
                lower: Some("eth0".to_owned()),
            },
            facts::Device { vxlan: Some((2, 4789, None)), ..Default::default() },
        ],
        addresses: vec![facts::Address {
            dev: "eth0".to_owned(),
            net: "2001:db8::1/64".parse().expect("an address"),
            duplicate: true,
        }],
        routes: vec![facts::Route {
            dst: "10.1.0.0/24".parse().expect("a network"),
            dev: Some("flannel.1".to_owned()),
            gateway: "10.1.0.0".parse().ok(),
            metric: 7,
            kind: 1,
            protocol: 76,
        }],
        rules: vec!["512: from all lookup 256".to_owned()],
        tables: [(
            52,
            vec![facts::Route {
                dst: "0.0.0.0/0".parse().expect("a network"),
                dev: None,
                gateway: None,
                metric: 0,
                kind: 7,
                protocol: 3,
            }],
        )]
        .into(),
        forwarding: vec![(
            "flannel.1".to_owned(),
            "192.0.2.12".parse().expect("an address"),
            "02:00:00:00:00:02".parse().expect("a hardware address"),
        )],
        neighbours: vec![(
            "flannel.1".to_owned(),
            "10.1.0.0".parse().expect("an address"),
            "02:00:00:00:00:02".parse().expect("a hardware address"),
        )],
        udp: vec![8472],
        ruleset: Ruleset::nft(
            "table ip t {\n\tchain c {\n\t\ttype filter hook forward priority 0; policy drop;\n\t\taccept\n\t}\n}\n",
        ),
        subnet_env: Some("FLANNEL_MTU=1450\n".to_owned()),
        subnet_file: "/run/flannel/subnet.env".to_owned(),
        cni_confs: vec![("10-flannel.conflist".to_owned(), "{}".to_owned())],
        cni_programs: Some(Vec::new()),
        cni_dirs: vec!["/opt/cni/bin".to_owned()],
        reserved: [("cbr0".to_owned(), 3)].into(),
        network_manager: Some(String::new()),
        networkd: Some(vec![("a.network".to_owned(), "[Match]".to_owned())]),
        ufw: Some("ENABLED=no".to_owned()),
        docker_options: Some("x".to_owned()),
        certificates: vec![("/a.pem".to_owned(), 1, u64::MAX)],
        now: 1_800_000_000,
        written: 1_700_000_000,
        space: vec![("/run".to_owned(), 1 << 40, u64::MAX)],
        agent: None,
    };
    for facts in [facts, Facts::default()] {
        let text = json::write(&facts).to_indented();
        assert_eq!(json::read(text.as_bytes()), Ok(facts), "{text}");
    }
    for (text, error) in [("x", "not JSON: "), ("{}", "not what a doctor collects")] {
        let got = json::read(text.as_bytes()).expect_err(text);
        assert!(got.starts_with(error), "{got}");
    }
}
