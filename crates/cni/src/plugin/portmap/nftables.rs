//! Host ports in nftables. Every rule of an attachment carries its mark as the comment (B-17).

use ipnet::IpNet;
use kernel::nft::expr::Expr;
use kernel::nft::lower::lower;
use kernel::nft::message::RuleInfo;
use model::Family;
use model::cni::Error;
use model::cni::portmap::{HostIp, Mapping, PortMap};
use plan::state::{
    Chain, ChainType, Hook, Match, NftFamily, NftRule, NftTable, Statement, TableKey, Verdict,
};

use super::conditions::{self, Conditions};
use super::tell_taken;
use crate::skel::Call;
use crate::{names, nft};

const PORTS: &str = "hostports";
const MASQUERADING: &str = "masquerading";

/// Opens the ports of one family, in one transaction.
///
/// # Errors
/// A port that is taken and wanted exclusively, the kernel's refusal.
pub fn open(call: &Call, conf: &PortMap, pod: IpNet) -> Result<(), Error> {
    let family = Family::of_net(pod);
    let mappings: Vec<&Mapping> = conf.mappings.iter().filter(|m| m.applies(family)).collect();
    let extra = conditions::parse(family, conf.conditions(family))?;
    let table = table(family);
    look_for_taken(call, conf, &table, &mappings)?;
    let text = names::comment(&call.network, &call.env.container_id, &call.env.ifname);
    let mut rules: Vec<(&str, NftRule)> = Vec::new();
    if let Conditions::Matches(extra) = &extra {
        rules.extend(mappings.iter().map(|m| (PORTS, dnat(m, extra, pod, &text))));
    }
    if conf.snat {
        rules.extend(masquerade(conf, pod, &text).into_iter().map(|rule| (MASQUERADING, rule)));
    }
    let mark = mark(call);
    let opening = |e: Error| e.during("open the pod's host ports");
    call.nft.update_in_full(&table, &rules, &|comment| comment.starts_with(&mark)).map_err(opening)?;
    // Last, in a transaction of its own: until then the ports are closed.
    match &extra {
        Conditions::Matches(_) => Ok(()),
        Conditions::Words(words) => {
            by_program(&table, conditions::member(family), words, &mappings, pod, &text)
        }
    }
}

/// Rules with conditions only the `nft` program understands.
fn by_program(
    table: &NftTable,
    member: &str,
    words: &str,
    mappings: &[&Mapping],
    pod: IpNet,
    comment: &str,
) -> Result<(), Error> {
    let line = |mapping: &&Mapping| {
        let rule = dnat(mapping, &[], pod, comment);
        let matches: Vec<String> = rule.matches.iter().map(Match::to_string).collect();
        let bare = NftRule { matches: Vec::new(), ..rule };
        format!("add rule {} {PORTS} {} {words} {bare}\n", table.key, matches.join(" "))
    };
    let script: String = mappings.iter().map(line).collect();
    nft::script(&script, member, words)
}

/// Removes the attachment's rules of a family.
///
/// # Errors
/// The kernel's refusal.
pub fn close(call: &Call, family: Family) -> Result<(), Error> {
    call.nft
        .update(&table(family), &[], &|comment| is_ours(call, comment))
        .map_err(|e| e.during("close the pod's host ports"))
}

/// Fails unless the rules of one family are there.
///
/// # Errors
/// As said.
pub fn check(call: &Call, conf: &PortMap, pod: IpNet) -> Result<(), Error> {
    let family = Family::of_net(pod);
    let want = conf.mappings.iter().filter(|m| m.applies(family)).count();
    let found = call.nft.rules(&table(family).key)?;
    let have = found.iter().filter(|f| f.chain == PORTS && is_ours(call, comment(f))).count();
    if have < want {
        return Err(Error::internal(format!("missing hostport rules in {PORTS:?} chain")));
    }
    Ok(())
}

/// Closes the ports of the network's attachments that are not valid.
///
/// # Errors
/// The kernel's refusal.
pub fn keep_only(call: &Call, family: Family, valid: &[(String, String)]) -> Result<(), Error> {
    call.nft.update(&table(family), &[], &|comment| names::is_stale(comment, &call.network, valid))
}

fn look_for_taken(call: &Call, conf: &PortMap, table: &NftTable, mappings: &[&Mapping]) -> Result<(), Error> {
    let others = call.nft.rules(&table.key)?;
    for found in others.iter().filter(|f| f.chain == PORTS && !is_ours(call, comment(f))) {
        let same = |m: &&&Mapping| found.expressions.starts_with(&expressions(table, m));
        if let Some(mapping) = mappings.iter().find(same) {
            tell_taken(conf, mapping.host_port, comment(found))?;
        }
    }
    Ok(())
}

fn matches(mapping: &Mapping) -> Vec<Match> {
    let mut matches = Vec::new();
    if let Some(HostIp::One(ip)) = mapping.host_ip {
        matches.push(Match::Destination(IpNet::from(ip)));
    }
    matches.push(Match::Protocol(mapping.protocol));
    matches.push(Match::DestinationPort(mapping.host_port));
    matches
}

/// What the kernel holds for the matches of a mapping.
fn expressions(table: &NftTable, mapping: &Mapping) -> Vec<Expr> {
    let statement = Statement::Verdict(Verdict::Accept);
    let rule = NftRule { matches: matches(mapping), statement, comment: None };
    let mut expressions = lower(table.key.family, &rule);
    expressions.pop();
    expressions
}

/// The port comes before the conditions of the configuration, so that it is recognised by its beginning.
fn dnat(mapping: &Mapping, extra: &[Match], pod: IpNet, comment: &str) -> NftRule {
    let mut matches = matches(mapping);
    matches.extend_from_slice(extra);
    NftRule {
        matches,
        statement: Statement::Dnat { to: pod.addr(), port: mapping.container_port },
        comment: Some(comment.to_owned()),
    }
}

/// The pod that reaches itself through the host port (only itself, not its subnet, unless asked for:
/// B-16), and the host's own programs that go by 127.0.0.1.
fn masquerade(conf: &PortMap, pod: IpNet, comment: &str) -> Vec<NftRule> {
    let own = IpNet::from(pod.addr());
    let rule = |from: Option<IpNet>| NftRule {
        matches: from.map(Match::Source).into_iter().chain([Match::Destination(own)]).collect(),
        statement: Statement::Masquerade { fully_random: false },
        comment: Some(comment.to_owned()),
    };
    if conf.masq_all {
        return vec![rule(None)];
    }
    let hairpin = if conf.hairpin_subnet { pod.trunc() } else { own };
    let localhost = pod.addr().is_ipv4().then(|| IpNet::from(std::net::IpAddr::from([127, 0, 0, 1])));
    [Some(hairpin), localhost].into_iter().flatten().map(|from| rule(Some(from))).collect()
}

/// Ours by the mark, upstream's by the container's id.
fn is_ours(call: &Call, comment: &str) -> bool {
    comment.starts_with(&mark(call)) || comment == call.env.container_id
}

fn comment(rule: &RuleInfo) -> &str {
    rule.comment.as_deref().unwrap_or_default()
}

fn mark(call: &Call) -> String {
    names::mark(&call.network, &call.env.container_id, &call.env.ifname)
}

/// The table of a family without any pod's rules.
fn table(family: Family) -> NftTable {
    let jump = |matches: Vec<Match>, chain: &str| NftRule {
        matches,
        statement: Statement::Verdict(Verdict::Jump(chain.to_owned())),
        comment: None,
    };
    let chain = |name: &str, hook: Option<(u32, i32)>, rules: Vec<NftRule>| Chain {
        name: name.to_owned(),
        comment: None,
        hook: hook.map(|(number, priority)| Hook { kind: ChainType::Nat, number, priority }),
        rules,
    };
    let entry = || vec![jump(vec![Match::DestinationLocal], "hostports_all")];
    NftTable {
        key: TableKey {
            family: match family {
                Family::V4 => NftFamily::Ip,
                Family::V6 => NftFamily::Ip6,
            },
            name: "cni_hostport".to_owned(),
        },
        comment: Some("CNI portmap plugin".to_owned()),
        owned: false,
        sets: Vec::new(),
        chains: vec![
            chain(PORTS, None, Vec::new()),
            chain("hostip_hostports", None, Vec::new()),
            chain("hostports_all", None, vec![jump(vec![], "hostip_hostports"), jump(vec![], PORTS)]),
            chain("prerouting", Some((0, -100)), entry()),
            chain("output", Some((3, -100)), entry()),
            chain(MASQUERADING, Some((4, 100)), Vec::new()),
        ],
        drifted: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::cni::Members;
    use model::gojson::Json;

    fn conf(text: &str) -> PortMap {
        let doc: Json = text.parse().unwrap();
        PortMap::parse(&Members::of(&doc, "PortMapConf").unwrap()).unwrap()
    }

    #[test]
    fn rules_are_upstreams() {
        let ports = r#"{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"},
                       {"hostPort": 53, "containerPort": 5353, "protocol": "udp"}"#;
        let runtime = format!("\"runtimeConfig\": {{\"portMappings\": [{ports}]}}");
        let plain = conf(&format!("{{{runtime}}}"));
        let all = conf(&format!("{{{runtime}, \"masqAll\": true}}"));
        let wide = conf(&format!("{{{runtime}, \"hairpinSubnet\": true}}"));
        let (v4, v6): (IpNet, IpNet) = ("10.1.2.3/24".parse().unwrap(), "2001:db8::3/64".parse().unwrap());
        let dnats = |pod: IpNet| -> Vec<String> {
            let family = Family::of_net(pod);
            plain
                .mappings
                .iter()
                .filter(|m| m.applies(family))
                .map(|m| dnat(m, &[], pod, "c").to_string())
                .collect()
        };
        let masqs = |conf: &PortMap, pod| -> Vec<String> {
            masquerade(conf, pod, "c").iter().map(NftRule::to_string).collect()
        };
        for (got, want) in [
            (
                dnats(v4),
                vec![
                    "ip daddr 192.0.2.1 tcp dport 8080 dnat to 10.1.2.3:80 comment \"c\"",
                    "udp dport 53 dnat to 10.1.2.3:5353 comment \"c\"",
                ],
            ),
            (dnats(v6), vec!["udp dport 53 dnat to [2001:db8::3]:5353 comment \"c\""]),
            (
                masqs(&plain, v4),
                vec![
                    "ip saddr 10.1.2.3 ip daddr 10.1.2.3 masquerade comment \"c\"",
                    "ip saddr 127.0.0.1 ip daddr 10.1.2.3 masquerade comment \"c\"",
                ],
            ),
            (masqs(&plain, v6), vec!["ip6 saddr 2001:db8::3 ip6 daddr 2001:db8::3 masquerade comment \"c\""]),
            (
                masqs(&wide, v6),
                vec!["ip6 saddr 2001:db8::/64 ip6 daddr 2001:db8::3 masquerade comment \"c\""],
            ),
            (masqs(&all, v4), vec!["ip daddr 10.1.2.3 masquerade comment \"c\""]),
        ] {
            assert_eq!(got, want);
        }
    }
}
