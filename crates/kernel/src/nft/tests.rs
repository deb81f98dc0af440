//! Expressions survive the way to the kernel and back; forms are those of the `nft` program.

use ipnet::IpNet;
use model::{Family, IfName, Mac};
use plan::state::{Match, NftFamily, NftRule, Statement, TableKey, Verdict};

use super::expr::Expr;
use super::lower::{lower, networks};
use super::message;
use crate::netlink::Reply;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn rules() -> Vec<NftRule> {
    let dev = IfName::fixed("eth0");
    let accept = || Statement::Verdict(Verdict::Accept);
    [
        (vec![Match::Mark(0x4000)], Statement::Verdict(Verdict::Return)),
        (vec![Match::MarkMasked { value: 1, mask: 3 }], Statement::Verdict(Verdict::Drop)),
        (vec![Match::Source(net("10.1.2.3/32")), Match::DestinationNot(net("10.1.2.0/23"))], accept()),
        (vec![Match::SourceNot(net("fd00::/60")), Match::Destination(net("ff00::/8"))], accept()),
        (vec![Match::Source(net("0.0.0.0/0"))], Statement::Masquerade { fully_random: false }),
        (vec![], Statement::Masquerade { fully_random: true }),
        (vec![Match::InputDevice(dev), Match::OutputDevice(dev), Match::OutputDeviceNot(dev)], accept()),
        (
            vec![Match::Protocol(6), Match::DestinationPort(80)],
            Statement::Verdict(Verdict::Jump("x".to_owned())),
        ),
        (vec![Match::DestinationLocal], Statement::Verdict(Verdict::Goto("y".to_owned()))),
        (vec![Match::Protocol(17)], Statement::Dnat { to: "10.1.2.3".parse().unwrap(), port: 53 }),
        (vec![Match::Protocol(132)], Statement::Dnat { to: "fd00::3".parse().unwrap(), port: 9 }),
        (vec![Match::SourceMac(Mac([2, 0, 0, 0, 0, 1]))], Statement::OrMark(0x2000)),
        (
            vec![Match::ArpSender(Mac([2, 0, 0, 0, 0, 1]), [10, 1, 2, 3].into())],
            Statement::Verdict(Verdict::Return),
        ),
        (
            vec![
                Match::Protocol(58),
                Match::IcmpType(136),
                Match::NdTargetNot(net("fd00::3/128")),
                Match::NdTargetNot(net("fe80::/10")),
            ],
            Statement::Verdict(Verdict::Drop),
        ),
        (
            vec![Match::Protocol(6), Match::DestinationPorts(30000, 32767)],
            Statement::OrConnectionMark(0x1000),
        ),
        (
            vec![Match::ConnectionMark { value: 1, mask: 3 }],
            Statement::Snat { to: "10.1.2.3".parse().unwrap() },
        ),
        (vec![Match::DestinationTranslated], Statement::Snat { to: "fd00::3".parse().unwrap() }),
        (
            vec![
                Match::Protocol(17),
                Match::DestinationPort(8472),
                Match::VxlanId(0x01_0203),
                Match::SourceNotIn(Family::V4, "nodes".to_owned()),
                Match::SourceNotIn(Family::V6, "nodes".to_owned()),
            ],
            Statement::Counted(Verdict::Drop),
        ),
        (vec![Match::IpsecMissing], Statement::Counted(Verdict::Drop)),
    ]
    .into_iter()
    .map(|(matches, statement)| NftRule { matches, statement, comment: Some("a \"b\" ü".to_owned()) })
    .collect()
}

#[test]
fn rules_decode_to_the_expressions_they_were_made_of() {
    for family in [NftFamily::Ip, NftFamily::Ip6, NftFamily::Inet, NftFamily::Bridge] {
        for rule in rules() {
            let key = TableKey { family, name: "t".to_owned() };
            let mut m = message::add_rule(&key, "c", &rule, false);
            // NFTA_RULE_HANDLE, which the kernel adds.
            m.attr_be64(3, 7);
            let reply = Reply { kind: m.kind(), flags: 0, sequence: 0, payload: m.payload() };
            let (table, found) = message::decode_rule(&reply).unwrap();
            assert_eq!((table.as_str(), found.chain.as_str(), found.handle), ("t", "c", 7));
            assert_eq!(found.comment, rule.comment);
            assert_eq!(found.expressions, lower(family, &rule), "{rule}");
            assert!(!found.expressions.iter().any(|e| matches!(e, Expr::Other(_))), "{rule}");
        }
    }
}

#[test]
fn the_network_protocol_is_asked_once_where_it_is_not_given() {
    let rule = NftRule {
        matches: vec![Match::Source(net("10.0.0.0/8")), Match::Destination(net("10.0.0.0/12"))],
        statement: Statement::Verdict(Verdict::Accept),
        comment: None,
    };
    let load = |offset, length| Expr::Payload { base: 1, offset, length };
    let equal = |value: &[u8]| Expr::Compare { not: false, value: value.to_vec() };
    let plain = vec![
        load(12, 1),
        equal(&[10]),
        load(16, 4),
        Expr::Bitwise { mask: vec![255, 240, 0, 0], xor: vec![0; 4] },
        equal(&[10, 0, 0, 0]),
        Expr::Verdict { code: 1, chain: None },
    ];
    for (family, asked) in [
        (NftFamily::Ip, vec![]),
        (NftFamily::Inet, vec![Expr::MetaLoad(15), equal(&[2])]),
        (NftFamily::Bridge, vec![Expr::MetaLoad(1), equal(&[8, 0])]),
    ] {
        assert_eq!(lower(family, &rule), [asked, plain.clone()].concat(), "{family}");
    }
}

#[test]
fn long_comments_are_cut_at_a_character() {
    let text = "ü".repeat(100);
    let key = TableKey { family: NftFamily::Ip, name: "t".to_owned() };
    let m = message::add_table(&key, None, Some(&text));
    let reply = Reply { kind: m.kind(), flags: 0, sequence: 0, payload: m.payload() };
    assert_eq!(message::decode_table(&reply).unwrap().comment, Some("ü".repeat(63)));
}

#[test]
fn the_networks_of_a_rule_are_found_again() {
    for nets in
        [["10.244.0.0/16", "10.244.1.128/25"], ["fd00:10::/48", "ff00::/8"], ["0.0.0.0/0", "10.1.2.3/32"]]
    {
        let nets = nets.map(net);
        let rule = NftRule {
            matches: vec![
                Match::MarkMasked { value: 1, mask: 1 },
                Match::SourceNot(nets[0]),
                Match::Destination(nets[1]),
            ],
            statement: Statement::Verdict(Verdict::Accept),
            comment: None,
        };
        for family in [NftFamily::Ip, NftFamily::Inet] {
            assert_eq!(networks(&lower(family, &rule)), nets, "{rule}");
        }
    }
}
