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
    for (rules, forward) in [(&nft, "FORWARD"), (&legacy, "FORWARD")] {
        let chain = rules.at("forward").next().expect("a chain");
        assert_eq!((chain.name.as_str(), chain.drops), (forward, true));
        assert!(rules.accepts(chain, &[]), "FLANNEL-FWD accepts what is ours");
        let input = rules.at("input").next().expect("a chain");
        assert!(rules.refusal(input, &["8472".to_owned()]).is_some(), "{input:?}");
        assert!(rules.refusal(input, &["22".to_owned()]).is_none() || rules == &nft, "{input:?}");
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
