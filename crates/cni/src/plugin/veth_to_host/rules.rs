//! The plugin's nftables: one table for each family on the host, one in the pod.

use kernel::Netns;
use kernel::nft::Nft;
use model::cni::Error;
use model::{Family, IfName};
use plan::state::{
    Chain, ChainType, Hook, Match, NftFamily, NftRule, NftTable, Statement, TableKey, Verdict,
};

use super::plan::Facts;
use crate::pod::internal;
use crate::skel::Call;
use crate::{names, nft, record};

/// Name of the tables.
const TABLE: &str = "loden-veth-to-host";
const MASQUERADE: &str = "pods";
const MARKS: &str = "node-ports";

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
        comment: Some("pods on the underlay that reach services over the host".to_owned()),
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
            nft::update(&table(family), &rules, &stale)
                .map_err(|e| e.during("translate the pod's addresses"))?;
        }
    }
    Ok(())
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
    update_both(&stale)
}

/// Removes the rules of the network's attachments that are not valid.
///
/// # Errors
/// The kernel's refusal.
pub fn keep_only(call: &Call, valid: &[(String, String)]) -> Result<(), Error> {
    let shared = shared_comment(call);
    update_both(&|comment| {
        names::is_stale(comment, &call.network, valid) || (valid.is_empty() && comment == shared)
    })
}

fn update_both(stale: &dyn Fn(&str) -> bool) -> Result<(), Error> {
    let update = |family| nft::update(&table(family), &[], stale);
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
        let have = if wanted == 0 { Vec::new() } else { nft::rules(&key(family))? };
        let ours = have.iter().filter(|r| r.comment.as_ref().is_some_and(|c| c.starts_with(&mark)));
        if ours.count() < wanted {
            let id = &call.env.container_id;
            return Err(Error::internal(format!("missing rules of {id} in nftables table {}", key(family))));
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
pub fn masquerade_in_pod(netns: &Netns, facts: &Facts<'_>, underlay: IfName) -> Result<(), Error> {
    let mut nft = netns.visit(Nft::open).map_err(internal)?.map_err(internal)?;
    for family in facts.families() {
        let own = facts.pod.iter().filter(|net| Family::of_net(**net) == family);
        // What the pod itself sends has its address, perhaps not the one that would be chosen.
        let mut rules: Vec<NftRule> = own
            .map(|net| NftRule {
                matches: vec![Match::Source(net.addr().into())],
                statement: Statement::Verdict(Verdict::Return),
                comment: None,
            })
            .collect();
        rules.push(NftRule {
            matches: vec![Match::OutputDevice(underlay)],
            statement: Statement::Masquerade { fully_random: false },
            comment: None,
        });
        let chain = Chain {
            name: "postrouting".to_owned(),
            comment: None,
            hook: Some(Hook { kind: ChainType::Nat, number: 4, priority: 100 }),
            rules,
        };
        let table = NftTable { chains: vec![chain], ..table(family) };
        nft.replace(&table).map_err(|e| internal(e).during("masquerade in the pod"))?;
    }
    nft.leave();
    Ok(())
}
