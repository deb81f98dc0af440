//! The plugin's rules: in nftables one table for each family on the host and one in the pod, or chains of the
//! same meaning in iptables.

use kernel::Netns;
use kernel::nft::Nft;
use model::cni::Error;
use model::cni::iptables::OwnChain;
use model::{Family, IfName};
use plan::state::{
    Chain, ChainType, Hook, Match, NftFamily, NftRule, NftTable, Statement, TableKey, Verdict,
};

use super::plan::Facts;
use crate::iptables::Table;
use crate::pod::internal;
use crate::skel::Call;
use crate::{names, record};

/// Name of the tables.
const TABLE: &str = "loden-veth-to-host";
const MASQUERADE: &str = "pods";
const MARKS: &str = "node-ports";
const WHY: &str = "pods on the underlay that reach services over the host";
/// In iptables: before other programs' translations, and after conntrack, as in nftables.
const OWN: [(&str, &str, OwnChain<'static>); 2] = [
    (MASQUERADE, "nat", OwnChain { name: "LODEN-UNDERLAY", parent: "POSTROUTING", why: WHY }),
    (MARKS, "mangle", OwnChain { name: "LODEN-UNDERLAY", parent: "PREROUTING", why: WHY }),
];

fn key(family: Family) -> TableKey {
    let family = if family == Family::V4 { NftFamily::Ip } else { NftFamily::Ip6 };
    TableKey { family, name: TABLE.to_owned() }
}

/// A table without any pod's rules. The base chains do nothing but call the others.
fn table(family: Family) -> NftTable {
    let hooked = |name: &str, kind, number, priority, to: &str| Chain {
        name: name.to_owned(),
        comment: None,
        hook: Some(Hook { kind, number, priority }),
        rules: vec![NftRule {
            matches: Vec::new(),
            statement: Statement::Verdict(Verdict::Jump(to.to_owned())),
            comment: None,
        }],
    };
    let plain = |name: &str| Chain { name: name.to_owned(), comment: None, hook: None, rules: Vec::new() };
    NftTable {
        key: key(family),
        comment: Some(WHY.to_owned()),
        owned: false,
        sets: Vec::new(),
        chains: vec![
            plain(MASQUERADE),
            plain(MARKS),
            // Before other programs' srcnat and after conntrack (mangle).
            hooked("postrouting", ChainType::Nat, 4, 90, MASQUERADE),
            hooked("prerouting", ChainType::Filter, 0, -150, MARKS),
        ],
        drifted: false,
    }
}

/// Comment on the rules all pods of a network share.
fn shared_comment(call: &Call) -> String {
    format!("{}, node ports, net: {}", names::network_mark(&call.network), call.network)
}

/// Puts the attachment's rules in place of those it has.
///
/// # Errors
/// The kernel's refusal.
pub fn add(call: &Call, facts: &Facts<'_>) -> Result<(), Error> {
    let comment = names::comment(&call.network, &call.env.container_id, &call.env.ifname);
    let (mark, shared) = (mark(call), shared_comment(call));
    for family in facts.families() {
        let mut rules: Vec<(&str, NftRule)> =
            facts.masquerade(family, &comment).into_iter().map(|rule| (MASQUERADE, rule)).collect();
        rules.extend(facts.answer_mark(&comment).map(|rule| (MARKS, rule)));
        let marks = facts.node_port_marks(&shared);
        let has_marks = !marks.is_empty();
        rules.extend(marks.into_iter().map(|rule| (MARKS, rule)));
        if !rules.is_empty() {
            // Those that are shared are written anew, in the same transaction: two pods at once would add
            // them twice otherwise.
            let stale = |comment: &str| comment.starts_with(&mark) || (has_marks && comment == shared);
            let done = match facts.conf.by_iptables {
                true => put(call, family, &rules, &stale),
                false => call.nft.update(&table(family), &rules, &stale),
            };
            done.map_err(|e| e.during("translate the pod's addresses"))?;
        }
    }
    Ok(())
}

fn put(
    call: &Call,
    family: Family,
    rules: &[(&str, NftRule)],
    stale: &dyn Fn(&str) -> bool,
) -> Result<(), Error> {
    for (chain, name, own) in OWN {
        let rules: Vec<(String, String)> = rules
            .iter()
            .filter(|(place, _)| *place == chain)
            .map(|(_, rule)| (words(rule), rule.comment.clone().unwrap_or_default()))
            .collect();
        if !rules.is_empty() {
            iptables(call, family, name).update(&|saved| Ok(own.put(saved, &rules, stale)))?;
        }
    }
    Ok(())
}

fn iptables<'a>(call: &'a Call, family: Family, name: &'a str) -> Table<'a> {
    Table::of(call, family, name)
}

/// A rule in iptables' words; its comment is for the chain to add.
fn words(rule: &NftRule) -> String {
    let matches = rule.matches.iter().map(|m| match m {
        Match::Source(net) => format!("-s {net}"),
        Match::InputDevice(name) => format!("-i {name}"),
        Match::OutputDevice(name) => format!("-o {name}"),
        Match::OutputDeviceNot(name) => format!("! -o {name}"),
        Match::Protocol(6) => "-p tcp".to_owned(),
        Match::Protocol(number) => format!("-p {number}"),
        Match::DestinationPorts(first, last) => format!("--dport {first}:{last}"),
        Match::DestinationTranslated => "-m conntrack --ctstate DNAT".to_owned(),
        Match::ConnectionMark { value, mask } => format!("-m connmark --mark {value:#x}/{mask:#x}"),
        // The plan has no others; nonsense is refused by the tools, a rule without the match would not be.
        other => format!("--unknown {other}"),
    });
    let target = match &rule.statement {
        Statement::Snat { to } => format!("SNAT --to-source {to}"),
        Statement::Masquerade { .. } => "MASQUERADE".to_owned(),
        Statement::OrConnectionMark(bits) => format!("CONNMARK --set-xmark {bits:#x}/{bits:#x}"),
        Statement::OrMark(bits) => format!("MARK --set-xmark {bits:#x}/{bits:#x}"),
        Statement::Verdict(Verdict::Return) => "RETURN".to_owned(),
        other => format!("unknown-{other:?}"),
    };
    let matches: Vec<String> = matches.collect();
    format!("{} -j {target}", matches.join(" "))
}

/// Removes the attachment's rules, and with the last one of the network those they share.
///
/// # Errors
/// The kernel's refusal.
pub fn remove(call: &Call, plugin: &str) -> Result<(), Error> {
    let (mark, shared) = (mark(call), shared_comment(call));
    let own = (call.env.container_id.clone(), call.env.ifname.clone());
    let is_last = record::stale(plugin, call, &[own]).is_empty();
    let stale = |comment: &str| comment.starts_with(&mark) || (is_last && comment == shared);
    update_both(call, &stale)
}

/// Removes the rules of the network's attachments that are not valid.
///
/// # Errors
/// The kernel's refusal.
pub fn keep_only(call: &Call, valid: &[(String, String)]) -> Result<(), Error> {
    let shared = shared_comment(call);
    update_both(call, &|comment| {
        names::is_stale(comment, &call.network, valid) || (valid.is_empty() && comment == shared)
    })
}

/// By either backend, whatever the document says now.
fn update_both(call: &Call, stale: &dyn Fn(&str) -> bool) -> Result<(), Error> {
    let update = |family| {
        let mut outcome = call.nft.update(&table(family), &[], stale);
        for (_, name, own) in OWN {
            let table = iptables(call, family, name);
            if table.may_hold(&[own.name]) {
                outcome = outcome.and(table.update(&|saved| Ok(own.without(saved, stale))));
            }
        }
        outcome
    };
    let results = Family::BOTH.map(update);
    results.into_iter().collect()
}

/// Whether the attachment has the rules it should have.
///
/// # Errors
/// One is missing.
pub fn check(call: &Call, facts: &Facts<'_>) -> Result<(), Error> {
    let mark = mark(call);
    for family in facts.families() {
        let wanted = facts.masquerade(family, "").len() + usize::from(facts.answer_mark("").is_some());
        if facts.conf.by_iptables {
            check_iptables(call, family, facts)?;
            continue;
        }
        let have = if wanted == 0 { Vec::new() } else { call.nft.rules(&key(family))? };
        let ours = have.iter().filter(|r| r.comment.as_ref().is_some_and(|c| c.starts_with(&mark)));
        if ours.count() < wanted {
            let id = &call.env.container_id;
            return Err(Error::internal(format!("missing rules of {id} in nftables table {}", key(family))));
        }
    }
    Ok(())
}

fn check_iptables(call: &Call, family: Family, facts: &Facts<'_>) -> Result<(), Error> {
    let mark = mark(call);
    let wanted = [facts.masquerade(family, "").len(), usize::from(facts.answer_mark("").is_some())];
    for ((_, name, own), wanted) in OWN.into_iter().zip(wanted).filter(|(_, wanted)| *wanted > 0) {
        let saved = iptables(call, family, name).read()?;
        if own.count(&saved, &|text| text.starts_with(&mark)) < wanted {
            let (id, chain) = (&call.env.container_id, own.name);
            let msg = format!("missing rules of {id} in chain {chain} of iptables table {name}");
            return Err(Error::internal(msg));
        }
    }
    Ok(())
}

fn mark(call: &Call) -> String {
    names::mark(&call.network, &call.env.container_id, &call.env.ifname)
}

/// In the pod: what it forwards to the underlay gets its own address.
///
/// # Errors
/// The kernel's refusal.
pub fn masquerade_in_pod(
    call: &Call,
    netns: &Netns,
    facts: &Facts<'_>,
    underlay: IfName,
) -> Result<(), Error> {
    let failed = |e: Error| e.during("masquerade in the pod");
    if facts.conf.by_iptables {
        let put_all = || -> Result<(), Error> {
            for family in facts.families() {
                let rules: Vec<(&str, NftRule)> =
                    in_pod(facts, family, underlay).into_iter().map(|rule| (MASQUERADE, rule)).collect();
                put(call, family, &rules, &|_| true)?;
            }
            Ok(())
        };
        return netns.visit(put_all).map_err(internal)?.map_err(failed);
    }
    let mut nft = netns.visit(Nft::open).map_err(internal)?.map_err(internal)?;
    for family in facts.families() {
        let rules = in_pod(facts, family, underlay);
        let chain = Chain {
            name: "postrouting".to_owned(),
            comment: None,
            hook: Some(Hook { kind: ChainType::Nat, number: 4, priority: 100 }),
            rules,
        };
        let table = NftTable { chains: vec![chain], ..table(family) };
        nft.replace(&table).map_err(|e| failed(internal(e)))?;
    }
    nft.leave();
    Ok(())
}

/// What the pod itself sends has its address, perhaps not the one that would be chosen; what it forwards gets
/// one of its own.
fn in_pod(facts: &Facts<'_>, family: Family, underlay: IfName) -> Vec<NftRule> {
    let rule = |one: Match, statement| NftRule { matches: vec![one], statement, comment: None };
    let own = facts.pod.iter().filter(|net| Family::of_net(**net) == family);
    let back = || Statement::Verdict(Verdict::Return);
    let mut rules: Vec<NftRule> = own.map(|net| rule(Match::Source(net.addr().into()), back())).collect();
    rules.push(rule(Match::OutputDevice(underlay), Statement::Masquerade { fully_random: false }));
    rules
}
