//! `portmap`: ports of the host that lead into the pod (cni.md 2.3), in the tables upstream's nftables
//! backend uses.
//!
//! Every rule of an attachment carries its mark as the comment (B-17), so that DEL needs neither the port
//! mappings nor a result. Without port mappings ADD touches nothing (B-12).

mod conntrack;

use std::io::Write;
use std::net::IpAddr;

use ipnet::IpNet;
use kernel::nft::expr::Expr;
use kernel::nft::lower::lower;
use kernel::nft::message::RuleInfo;
use kernel::rtnl::Rtnl;
use kernel::sysctl;
use model::Family;
use model::cni::portmap::{HostIp, Mapping, PortMap};
use model::cni::{CniResult, Error};
use plan::state::{
    Chain, ChainType, Hook, Match, NftFamily, NftRule, NftTable, Statement, TableKey, Verdict,
};

use crate::pod::internal;
use crate::record::{self, Record};
use crate::skel::Call;
use crate::undo::Undo;
use crate::{names, nft};

const NAME: &str = "portmap";
/// Protocol number.
const UDP: u8 = 17;
const PORTS: &str = "hostports";
const MASQUERADING: &str = "masquerading";
/// A host port is taken and the configuration wants it exclusively.
const TAKEN: u32 = 100;

/// Opens the ports; hands the result on.
///
/// # Errors
/// The configuration, no result handed on, the kernel's refusal; no rule stays then.
pub fn add(call: &Call) -> Result<CniResult, Error> {
    let (conf, result) = read(call)?;
    if conf.mappings.is_empty() {
        return Ok(result);
    }
    let pods = pod_addresses(call, &result);
    let mut undo = Undo::default();
    undo.push(|| del(call));
    let opened = || {
        if conf.mappings.iter().any(|m| m.protocol == UDP) {
            // DEL ends the connections of these addresses.
            let addresses = pods.iter().copied().map(IpNet::from).collect();
            Record { addresses, ..Record::new(NAME, call) }.complete(call)?;
        }
        pods.iter().try_for_each(|pod| open(call, &conf, *pod))
    };
    undo.finish(opened())?;
    flush_udp(&conf, &pods);
    Ok(result)
}

/// Closes the ports by their mark; needs neither port mappings nor a result.
///
/// # Errors
/// The kernel's refusal.
pub fn del(call: &Call) -> Result<(), Error> {
    remove(call)?;
    if let Some(record) = record::read(NAME, call) {
        let pods: Vec<IpAddr> = record.addresses.iter().map(IpNet::addr).collect();
        if let Err(error) = conntrack::forget_pods(&pods) {
            warn(&format!("connection tracking: {error}"));
        }
    }
    record::remove(NAME, call)
}

/// Fails unless the rules are there.
///
/// # Errors
/// As said.
pub fn check(call: &Call) -> Result<(), Error> {
    let (conf, result) = read(call)?;
    for pod in pod_addresses(call, &result) {
        let family = Family::of(pod);
        let want = conf.mappings.iter().filter(|m| applies(m, family)).count();
        let found = nft::rules(&table(family).key)?;
        let have = found.iter().filter(|f| f.chain == PORTS && is_ours(call, comment(f))).count();
        if have < want {
            return Err(Error::internal(format!("missing hostport rules in {PORTS:?} chain")));
        }
    }
    Ok(())
}

/// Whether the configuration is one we serve.
///
/// # Errors
/// It is not.
pub fn status(call: &Call) -> Result<(), Error> {
    parse(call).map(|_| ())
}

/// Closes the ports of the network's attachments that are not valid.
///
/// # Errors
/// The kernel's refusal.
pub fn gc(call: &Call) -> Result<(), Error> {
    let Some(valid) = call.valid_attachments()? else { return Ok(()) };
    Family::BOTH.into_iter().try_for_each(|family| {
        nft::update(&table(family), &[], &|comment| names::is_stale(comment, &call.network, &valid))
    })
}

fn parse(call: &Call) -> Result<PortMap, Error> {
    let failed = |e: String| Error::config(format!("failed to parse config: {e}"));
    let conf = PortMap::parse(&call.conf()).map_err(failed)?;
    if conf.backend == "iptables" {
        return Err(nft::no_iptables("backend"));
    }
    if !conf.external_set_mark_chain.is_empty() {
        let chain = &conf.external_set_mark_chain;
        return Err(nft::no_iptables("externalSetMarkChain").details(format!("{chain} is an iptables chain")));
    }
    if !conf.conditions.is_empty() {
        let words = conf.conditions.join(" ");
        let msg = format!("conditionsV4/conditionsV6 {words:?}: this version cannot apply conditions yet");
        return Err(Error::new(model::cni::code::UNSUPPORTED, msg).details("leave them out"));
    }
    Ok(conf)
}

fn read(call: &Call) -> Result<(PortMap, CniResult), Error> {
    let conf = parse(call)?;
    let result = call.prev_result.clone();
    let result = result.ok_or_else(|| Error::config("must be called as chained plugin"))?;
    Ok((conf, result))
}

/// The first address of each family that is the pod's.
fn pod_addresses(call: &Call, result: &CniResult) -> Vec<IpAddr> {
    let is_pods = |index: Option<i64>| {
        let interface = index.and_then(|index| result.interfaces.get(usize::try_from(index).ok()?));
        interface.is_none_or(|i| i.name == call.env.ifname && !i.sandbox.is_empty())
    };
    let ips = result.ips.iter().filter(|ip| is_pods(ip.interface)).map(|ip| ip.address.addr());
    let ips: Vec<IpAddr> = ips.collect();
    Family::BOTH.into_iter().filter_map(|f| ips.iter().copied().find(|ip| Family::of(*ip) == f)).collect()
}

/// Whether a mapping concerns pods of a family.
fn applies(mapping: &Mapping, family: Family) -> bool {
    match mapping.host_ip {
        None => true,
        Some(HostIp::Any(own)) => own == family,
        Some(HostIp::One(ip)) => Family::of(ip) == family,
    }
}

/// The rules of one family, in one transaction.
fn open(call: &Call, conf: &PortMap, pod: IpAddr) -> Result<(), Error> {
    let family = Family::of(pod);
    let mappings: Vec<&Mapping> = conf.mappings.iter().filter(|m| applies(m, family)).collect();
    if mappings.is_empty() {
        return Ok(());
    }
    if family == Family::V4 && conf.snat {
        route_localnet(pod)?;
    }
    let table = table(family);
    tell_taken(call, conf, &table, &mappings)?;
    let text = names::comment(&call.network, &call.env.container_id, &call.env.ifname);
    let mut rules: Vec<(&str, NftRule)> = mappings.iter().map(|m| (PORTS, dnat(m, pod, &text))).collect();
    if conf.snat {
        rules.extend(masquerade(conf, pod, &text).into_iter().map(|rule| (MASQUERADING, rule)));
    }
    let mark = mark(call);
    nft::update(&table, &rules, &|comment| comment.starts_with(&mark))
        .map_err(|e| e.during("open the pod's host ports"))
}

/// Two pods may ask for one host port; the first goes on winning. That has to be told (B-15).
fn tell_taken(call: &Call, conf: &PortMap, table: &NftTable, mappings: &[&Mapping]) -> Result<(), Error> {
    let others = nft::rules(&table.key)?;
    for found in others.iter().filter(|f| f.chain == PORTS && !is_ours(call, comment(f))) {
        let same = |m: &&&Mapping| found.expressions.starts_with(&expressions(table, m));
        let Some(mapping) = mappings.iter().find(same) else { continue };
        let port = mapping.host_port;
        let msg = format!("host port {port} is taken by another pod ({})", comment(found));
        if conf.exclusive {
            return Err(Error::new(TAKEN, msg).details("exclusiveHostPorts is set"));
        }
        warn(&msg);
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

fn dnat(mapping: &Mapping, pod: IpAddr, comment: &str) -> NftRule {
    NftRule {
        matches: matches(mapping),
        statement: Statement::Dnat { to: pod, port: mapping.container_port },
        comment: Some(comment.to_owned()),
    }
}

/// The pod that reaches itself through the host port (only itself, not its subnet: B-16), and the host's
/// own programs that go by 127.0.0.1.
fn masquerade(conf: &PortMap, pod: IpAddr, comment: &str) -> Vec<NftRule> {
    let to_pod = Match::Destination(IpNet::from(pod));
    let rule = |from: Option<IpAddr>| NftRule {
        matches: from.map(|ip| Match::Source(IpNet::from(ip))).into_iter().chain([to_pod.clone()]).collect(),
        statement: Statement::Masquerade { fully_random: false },
        comment: Some(comment.to_owned()),
    };
    if conf.masq_all {
        return vec![rule(None)];
    }
    let localhost = pod.is_ipv4().then_some(IpAddr::from([127, 0, 0, 1]));
    [Some(pod), localhost].into_iter().flatten().map(|from| rule(Some(from))).collect()
}

/// Packets from 127.0.0.1 may leave through the device the pod is behind.
fn route_localnet(pod: IpAddr) -> Result<(), Error> {
    let failed = |cause: String| Error::internal(format!("unable to enable route_localnet: {cause}"));
    let mut rtnl = Rtnl::open().map_err(internal)?;
    let route = rtnl.lookup(&[pod]).map_err(|e| failed(e.to_string()))?.into_iter().next().flatten();
    let route = route.ok_or_else(|| failed(format!("no route to {pod}")))?;
    let link = rtnl.link_by_index(route.dev).map_err(|e| failed(e.to_string()))?;
    let link = link.ok_or_else(|| failed(format!("the device of the route to {pod} vanished")))?;
    let path = format!("net/ipv4/conf/{}/route_localnet", link.link.name);
    sysctl::write(&path, "1").map(|_| ()).map_err(|e| failed(e.to_string()))
}

fn flush_udp(conf: &PortMap, pods: &[IpAddr]) {
    let ports: Vec<conntrack::LocalPort> = pods
        .iter()
        .flat_map(|pod| {
            let family = Family::of(*pod);
            let udp = conf.mappings.iter().filter(move |m| m.protocol == UDP && applies(m, family));
            udp.map(move |m| conntrack::LocalPort {
                family,
                port: m.host_port,
                address: match m.host_ip {
                    Some(HostIp::One(ip)) => Some(ip),
                    _ => None,
                },
            })
        })
        .collect();
    if let Err(error) = conntrack::forget_ports(&ports) {
        warn(&format!("connection tracking: {error}"));
    }
}

/// Removes the attachment's rules of both families.
fn remove(call: &Call) -> Result<(), Error> {
    Family::BOTH.into_iter().try_for_each(|family| {
        nft::update(&table(family), &[], &|comment| is_ours(call, comment))
            .map_err(|e| e.during("close the pod's host ports"))
    })
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

fn warn(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "portmap: {text}");
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
        let (v4, v6): (IpAddr, IpAddr) = ("10.1.2.3".parse().unwrap(), "2001:db8::3".parse().unwrap());
        let dnats = |pod: IpAddr| -> Vec<String> {
            let family = Family::of(pod);
            plain
                .mappings
                .iter()
                .filter(|m| applies(m, family))
                .map(|m| dnat(m, pod, "c").to_string())
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
            (masqs(&all, v4), vec!["ip daddr 10.1.2.3 masquerade comment \"c\""]),
        ] {
            assert_eq!(got, want);
        }
    }
}
