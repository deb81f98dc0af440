use model::{NetConf, Subnets};

use super::{Choice, blackholes, tables};

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
