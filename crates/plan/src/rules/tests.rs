use std::collections::BTreeSet;

use model::{Family, IfName, NetConf, Subnets};

use super::{
    Choice, blackholes, in_iptables, iptables_keys, is_agents, objects, our_keys, summed_here, table_keys,
    tables,
};
use crate::facts::IptablesTool;
use crate::state::{Object, Variant};

const ALL: Choice = Choice { masquerade: true, fully_random: true, forward: true, blackhole: true };

fn conf(text: &str) -> NetConf {
    NetConf::parse(text).and_then(NetConf::validate).expect("a valid configuration")
}

fn own() -> Subnets {
    Subnets {
        v4: Some("10.244.1.0/24".parse().expect("valid")),
        v6: Some("fd00:1::/64".parse().expect("valid")),
    }
}

/// The listing of flannel.md 7.4 with its placeholders filled in.
const GOLDEN: &str = "table ip flannel-ipv4 {
\tcomment \"rules for flannel-ipv4\"
\tchain postrtg {
\t\tcomment \"chain to manage traffic masquerading by flannel\"
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\tmeta mark 0x00004000 return
\t\tip saddr 10.244.1.0/24 ip daddr 10.244.0.0/16 return
\t\tip saddr 10.244.0.0/16 ip daddr 10.244.1.0/24 return
\t\tip saddr != 10.244.1.0/24 ip daddr 10.244.0.0/16 return
\t\tip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
\t\tip saddr != 10.244.0.0/16 ip daddr 10.244.0.0/16 masquerade fully-random
\t}

\tchain forward {
\t\tcomment \"chain to accept flannel traffic\"
\t\ttype filter hook forward priority filter; policy accept;
\t\tip saddr 10.244.0.0/16 accept
\t\tip daddr 10.244.0.0/16 accept
\t}
}";

#[test]
fn golden_text_with_nftables_asked_for() {
    let conf = conf(r#"{"Network":"10.244.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#);
    let got = tables(&conf, &own(), ALL);
    assert_eq!(got.len(), 1, "the disabled family has no table");
    assert_eq!(got[0].to_string(), GOLDEN);
}

#[test]
fn meaning_of_the_iptables_rules_otherwise() {
    let conf = conf(
        r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{"Type":"vxlan"}}"#,
    );
    let got = tables(&conf, &own(), Choice { fully_random: false, ..ALL });
    let rules = |n: usize| got[n].chains[0].rules.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        rules(0),
        [
            "meta mark & 0x00004000 == 0x00004000 return",
            "ip saddr 10.244.1.0/24 ip daddr 10.244.0.0/16 return",
            "ip saddr 10.244.0.0/16 ip daddr 10.244.1.0/24 return",
            "ip saddr != 10.244.0.0/16 ip daddr 10.244.1.0/24 return",
            "ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade",
            "ip saddr != 10.244.0.0/16 ip daddr 10.244.0.0/16 masquerade",
        ]
    );
    assert_eq!(rules(1)[4], "ip6 saddr fd00::/48 ip6 daddr != ff00::/8 masquerade");
}

#[test]
fn only_what_is_asked_for() {
    let conf = conf(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#);
    let names = |choice| {
        let tables = tables(&conf, &own(), choice);
        tables.iter().flat_map(|t| t.chains.iter().map(|c| c.name.clone())).collect::<Vec<_>>()
    };
    assert_eq!(names(Choice { masquerade: false, ..ALL }), ["forward"]);
    assert_eq!(names(Choice { forward: false, ..ALL }), ["postrtg"]);
    assert_eq!(names(Choice { masquerade: false, forward: false, ..ALL }), [""; 0]);
}

#[test]
fn a_blackhole_for_each_subnet_goes_after_a_bridges_route() {
    let own = Subnets { v4: "10.244.1.0/24".parse().ok(), v6: "fd00:1::/64".parse().ok() };
    let text = |choice| blackholes(&own, choice).map(|route| route.to_string()).collect::<Vec<_>>();
    let want = ["blackhole 10.244.1.0/24 metric 1024 proto 76", "blackhole fd00:1::/64 proto 76"];
    assert_eq!(text(ALL), want);
    assert_eq!(text(Choice { blackhole: false, ..ALL }), [""; 0]);
}

/// What stands beside the rules of iptables.
const STAY: &str = "table ip flannel-ipv4 {
\tcomment \"the rules of flannel are in iptables\"
\tchain stay {
\t\tcomment \"keeps connections translated while the rules of iptables are away\"
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\tip saddr 10.244.0.0/16 ct status dnat accept
\t}
}";

/// The listing of flannel.md 7.1 and 7.2, as the restore that makes it.
#[test]
fn golden_text_of_iptables_mode() {
    let conf = conf(
        r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{"Type":"vxlan"}}"#,
    );
    let tool = |variant, fully_random| IptablesTool { variant, fully_random };
    let tools = [(Family::V4, tool(Variant::Nft, true)), (Family::V6, tool(Variant::Legacy, false))].into();
    let text: Vec<String> = objects(&conf, &own(), ALL, &tools, &BTreeSet::new())
        .iter()
        .map(|object| match object {
            Object::Iptables(rules) => rules.restore(None),
            Object::Nft(table) => table.to_string(),
            other => panic!("{other}"),
        })
        .collect();
    let masq = |net: &str, pods: &str, multicast: &str, random: &str| {
        let comment = "-m comment --comment \"flanneld masq\"";
        format!(
            "*nat\n:FLANNEL-POSTRTG - [0:0]\n\
             -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {comment} -j RETURN\n\
             -A FLANNEL-POSTRTG -s {pods} -d {net} {comment} -j RETURN\n\
             -A FLANNEL-POSTRTG -s {net} -d {pods} {comment} -j RETURN\n\
             -A FLANNEL-POSTRTG ! -s {net} -d {pods} {comment} -j RETURN\n\
             -A FLANNEL-POSTRTG -s {net} ! -d {multicast} {comment} -j MASQUERADE{random}\n\
             -A FLANNEL-POSTRTG ! -s {net} -d {net} {comment} -j MASQUERADE{random}\n\
             -A POSTROUTING {comment} -j FLANNEL-POSTRTG\nCOMMIT\n"
        )
    };
    let forward = |net: &str| {
        let comment = "-m comment --comment \"flanneld forward\"";
        format!(
            "*filter\n:FLANNEL-FWD - [0:0]\n-A FLANNEL-FWD -s {net} {comment} -j ACCEPT\n\
             -A FLANNEL-FWD -d {net} {comment} -j ACCEPT\n-A FORWARD {comment} -j FLANNEL-FWD\nCOMMIT\n"
        )
    };
    assert_eq!(
        text,
        [
            masq("10.244.0.0/16", "10.244.1.0/24", "224.0.0.0/4", " --random-fully"),
            forward("10.244.0.0/16"),
            STAY.to_owned(),
            masq("fd00::/48", "fd00:1::/64", "ff00::/8", ""),
            forward("fd00::/48"),
            STAY.replace("table ip flannel-ipv4", "table ip6 flannel-ipv6")
                .replace("ip saddr 10.244.0.0/16", "ip6 saddr fd00::/48"),
        ]
    );
}

#[test]
fn each_family_goes_where_it_can() {
    let text = |golden: bool| {
        format!(
            r#"{{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","EnableNFTables":{golden},
                "Backend":{{"Type":"vxlan"}}}}"#
        )
    };
    let tool = IptablesTool { variant: Variant::Legacy, fully_random: true };
    let both: crate::facts::Iptables = Family::BOTH.into_iter().map(|family| (family, tool)).collect();
    let v4: crate::facts::Iptables = [(Family::V4, tool)].into();
    let without = |what| match what {
        "masquerade" => Choice { masquerade: false, ..ALL },
        _ => Choice { forward: false, ..ALL },
    };
    for (name, golden, tools, choice, wanted) in [
        ("iptables", false, &both, ALL, "4 nat, 4 filter, ip kept, 6 nat, 6 filter, ip6 kept"),
        ("no ip6tables", false, &v4, ALL, "4 nat, 4 filter, ip kept, ip6 flannel-ipv6"),
        ("neither", false, &Default::default(), ALL, "ip flannel-ipv4, ip6 flannel-ipv6"),
        ("nftables asked for", true, &both, ALL, "ip flannel-ipv4, ip6 flannel-ipv6"),
        ("no masquerading", false, &both, without("masquerade"), "4 filter, 6 filter"),
        ("no accepts", false, &both, without("accepts"), "4 nat, ip kept, 6 nat, ip6 kept"),
    ] {
        let objects = objects(&conf(&text(golden)), &own(), choice, tools, &BTreeSet::new());
        let names = objects.iter().map(|object| match object {
            Object::Nft(table) if table.chains.iter().any(|chain| chain.name == "stay") => {
                format!("{} kept", table.key.family)
            }
            Object::Nft(table) => table.key.to_string(),
            Object::Iptables(rules) => {
                let family = if rules.key.family == Family::V4 { 4 } else { 6 };
                format!("{family} {}", rules.key.table.name())
            }
            other => other.to_string(),
        });
        assert_eq!(names.collect::<Vec<_>>().join(", "), wanted, "{name}");
        assert_eq!(in_iptables(&conf(&text(golden)), tools), wanted.contains("4 "), "{name}");
    }
    let count = |golden, tools, adopt| iptables_keys(&conf(&text(golden)), tools, adopt).len();
    assert_eq!(count(false, &both, false), 4, "both tables of both families");
    assert_eq!(count(false, &both, true), 8, "and of the other variant");
    assert_eq!(count(true, &both, false), 0, "nftables mode looks at no iptables");
    assert_eq!(count(true, &both, true), 4, "but once, for masquerade rules of others");
}

#[test]
fn beside_another_agent_the_tables_have_the_network_in_their_name() {
    let conf = conf(
        r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#,
    );
    let [four, six] = table_keys();
    for (taken, names) in [
        (vec![], ["ip flannel-ipv4", "ip6 flannel-ipv6"]),
        (vec![four.clone()], ["ip flannel-ipv4-10.244.0.0-16", "ip6 flannel-ipv6"]),
        (vec![four.clone(), six], ["ip flannel-ipv4-10.244.0.0-16", "ip6 flannel-ipv6-fd00__-48"]),
    ] {
        let taken = taken.into_iter().collect();
        let ours: BTreeSet<String> = our_keys(&conf, &taken).map(|key| key.to_string()).collect();
        let got = objects(&conf, &own(), ALL, &Default::default(), &taken);
        let keys = got.iter().map(|object| match object {
            Object::Nft(table) => table.key.clone(),
            other => panic!("{other}"),
        });
        let keys: Vec<_> = keys.collect();
        assert!(keys.iter().all(|key| is_agents(key) && ours.contains(&key.to_string())), "{keys:?}");
        assert_eq!(keys.iter().map(ToString::to_string).collect::<Vec<_>>(), names);
        assert!(taken.iter().all(|key| !ours.contains(&key.to_string())), "never another's");
    }
    let other = crate::state::TableKey { name: "flannel-ipv4x".to_owned(), ..four };
    assert!(!is_agents(&other));
}

#[test]
fn checksums_are_computed_here_where_the_tunnel_leaves_them() {
    let tunnels = ["flannel.1", "flannel-v6.1"].map(IfName::fixed);
    for (kind, want) in [("vxlan", 2), ("ipip", 2), ("wireguard", 0), ("udp", 0), ("host-gw", 0)] {
        assert_eq!(summed_here(kind, &tunnels).len(), want, "{kind}");
    }
    assert_eq!(
        summed_here("vxlan", &tunnels)[0].to_string(),
        "ethtool -K flannel.1 tx-checksum-ip-generic off"
    );
}
