//! Masquerading of a network's pods (`ipMasq`), in the tables and chains upstream's backends use (cni.md
//! 2.0.6), so that either program removes what the other made.

use std::sync::LazyLock;

use ipnet::IpNet;
use model::Family;
use model::cni::Error;
use model::cni::iptables::Masquerade;
use plan::state::{
    Chain, ChainType, Hook, Match, NftFamily, NftRule, NftTable, Statement, TableKey, Verdict,
};

use crate::record::Rules;
use crate::skel::Call;
use crate::{iptables, names, pod};

const CHECKS: &str = "masq_checks";

static TABLE: LazyLock<NftTable> = LazyLock::new(table);

/// Refuses a backend that does not exist.
///
/// # Errors
/// As said (code 7).
pub fn check_backend(name: &str) -> Result<(), Error> {
    match name {
        "" | "nftables" | "iptables" => Ok(()),
        other => Err(Error::config(format!("unknown ipmasq backend {other:?}"))),
    }
}

/// By name; without one nftables, unless the kernel has none (decision 0040).
fn by_iptables(call: &Call) -> Result<bool, Error> {
    let name = call.conf().string("ipMasqBackend").map_err(Error::config)?;
    check_backend(&name)?;
    Ok(name == "iptables" || (name.is_empty() && !call.nft.is_usable()))
}

/// Masquerades what leaves these addresses for outside their subnets. Repeating changes nothing.
///
/// # Errors
/// The kernel's or the tools' refusal.
pub fn add(call: &Call, addresses: &[IpNet]) -> Result<(), Error> {
    put(call, addresses, false).map(drop)
}

/// The same for an attachment that has no rules, as it had no record. Gives where they are, if that is known.
///
/// # Errors
/// As [`add`].
pub fn add_first(call: &Call, addresses: &[IpNet]) -> Result<Option<Rules>, Error> {
    put(call, addresses, true)
}

fn put(call: &Call, addresses: &[IpNet], first: bool) -> Result<Option<Rules>, Error> {
    let failed = |e: Error| e.during("masquerade the pod's addresses");
    if by_iptables(call)? {
        let chain = chain(call);
        let put = Family::BOTH.into_iter().try_for_each(|family| {
            let own: Vec<IpNet> =
                addresses.iter().copied().filter(|a| Family::of_net(*a) == family).collect();
            match own.is_empty() {
                true => Ok(()),
                false => nat(call, family).update(&|saved| Ok(rules_of(call, &chain).add(saved, &own))),
            }
            .map_err(failed)
        });
        return put.map(|()| None);
    }
    let comment = names::comment(&call.network, &call.env.container_id, &call.env.ifname);
    let rules: Vec<(&str, NftRule)> = addresses.iter().map(|a| (CHECKS, rule(*a, &comment))).collect();
    let mark = mark(call);
    let handles = match first {
        true => call.nft.add(&TABLE, &rules),
        false => call.nft.update(&TABLE, &rules, &|comment| comment.starts_with(&mark)).map(|()| Vec::new()),
    };
    let known = |handles: Vec<u64>| (!handles.is_empty()).then_some(Rules::Nft(handles));
    handles.map(known).map_err(failed)
}

/// Removes the rules of an attachment that are where its record says; all there may be if that is not true, or not
/// known.
///
/// # Errors
/// As [`remove`].
pub fn remove_known(call: &Call, known: Option<&Rules>) -> Result<(), Error> {
    match known {
        Some(Rules::None) => Ok(()),
        Some(Rules::Nft(handles)) if call.nft.delete(&TABLE.key, CHECKS, handles, &mark(call))? => Ok(()),
        _ => remove(call),
    }
}

/// Removes the rules of the attachment by either backend, whoever made them. Needs no address and no
/// namespace (B-08).
///
/// # Errors
/// The kernel's or the tools' refusal.
pub fn remove(call: &Call) -> Result<(), Error> {
    let failed = |e: Error| e.during("remove the pod's masquerade rules");
    let (mark, chain) = (mark(call), chain(call));
    call.nft.update(&TABLE, &[], &|comment| comment.starts_with(&mark)).map_err(failed)?;
    Family::BOTH.into_iter().try_for_each(|family| {
        let table = nat(call, family);
        match table.may_hold(&[&chain]) {
            true => table.update(&|saved| Ok(rules_of(call, &chain).remove(saved))).map_err(failed),
            false => Ok(()),
        }
    })
}

/// Removes the rules of the network's attachments that are not valid.
///
/// # Errors
/// The kernel's refusal.
pub fn keep_only(call: &Call, valid: &[(String, String)]) -> Result<(), Error> {
    call.nft.update(&TABLE, &[], &|comment| names::is_stale(comment, &call.network, valid))?;
    let is_valid = |id: &str| valid.iter().any(|(known, _)| known == id);
    Family::BOTH.into_iter().filter(|f| nat(call, *f).may_hold(&["POSTROUTING"])).try_for_each(|family| {
        nat(call, family).update(&|saved| Ok(Masquerade::keep_only(saved, &call.network, &is_valid)))
    })
}

fn nat(call: &Call, family: Family) -> iptables::Table<'_> {
    iptables::Table::of(call, family, "nat")
}

fn chain(call: &Call) -> String {
    names::chain("", &call.network, &call.env.container_id)
}

fn rules_of<'a>(call: &'a Call, chain: &'a str) -> Masquerade<'a> {
    Masquerade { chain, network: &call.network, container_id: &call.env.container_id }
}

/// Fails unless the attachment has its rules.
///
/// # Errors
/// As said.
pub fn check(call: &Call) -> Result<(), Error> {
    if by_iptables(call)? {
        let chain = chain(call);
        for family in Family::BOTH {
            let table = nat(call, family);
            if table.may_hold(&[&chain]) && table.read()?.has(&chain) {
                return Ok(());
            }
        }
        return Err(pod::internal(format!("missing masquerade chain {chain} in table nat")));
    }
    let mark = mark(call);
    let rules = call.nft.rules(&TABLE.key)?;
    let ours = |comment: &String| comment.starts_with(&mark);
    if rules.iter().any(|rule| rule.chain == CHECKS && rule.comment.as_ref().is_some_and(ours)) {
        return Ok(());
    }
    let id = &call.env.container_id;
    Err(pod::internal(format!("missing masquerade rules of {id} in table {}", TABLE.key)))
}

fn mark(call: &Call) -> String {
    names::mark(&call.network, &call.env.container_id, &call.env.ifname)
}

fn rule(address: IpNet, comment: &str) -> NftRule {
    let own = IpNet::from(address.addr());
    NftRule {
        matches: vec![Match::Source(own), Match::DestinationNot(address.trunc())],
        statement: Statement::Masquerade { fully_random: false },
        comment: Some(comment.to_owned()),
    }
}

/// The table without any pod's rules.
fn table() -> NftTable {
    let back = |net: &str| NftRule {
        matches: net.parse().map(Match::Destination).into_iter().collect(),
        statement: Statement::Verdict(Verdict::Return),
        comment: None,
    };
    let checks = NftRule {
        matches: Vec::new(),
        statement: Statement::Verdict(Verdict::Goto(CHECKS.to_owned())),
        comment: None,
    };
    NftTable {
        key: TableKey { family: NftFamily::Inet, name: "cni_plugins_masquerade".to_owned() },
        comment: Some("Masquerading for plugins from github.com/containernetworking/plugins".to_owned()),
        owned: false,
        sets: Vec::new(),
        chains: vec![
            Chain {
                name: CHECKS.to_owned(),
                comment: Some(
                    "Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet"
                        .to_owned(),
                ),
                hook: None,
                rules: Vec::new(),
            },
            Chain {
                name: "postrouting".to_owned(),
                comment: None,
                hook: Some(Hook { kind: ChainType::Nat, number: 4, priority: 100 }),
                rules: vec![back("224.0.0.0/4"), back("ff00::/8"), checks],
            },
        ],
        drifted: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_upstreams() {
        for (address, want) in [
            ("10.244.1.5/24", "ip saddr 10.244.1.5 ip daddr != 10.244.1.0/24 masquerade comment \"c\""),
            ("2001:db8::5/64", "ip6 saddr 2001:db8::5 ip6 daddr != 2001:db8::/64 masquerade comment \"c\""),
        ] {
            assert_eq!(rule(address.parse().unwrap(), "c").to_string(), want);
        }
        let text = TABLE.to_string();
        assert!(text.contains("type nat hook postrouting priority srcnat; policy accept;"), "{text}");
        assert!(text.contains("ip daddr 224.0.0.0/4 return"), "{text}");
    }

    #[test]
    fn backends() {
        assert!(["", "nftables", "iptables"].iter().all(|name| check_backend(name).is_ok()));
        assert_eq!(check_backend("x").unwrap_err().msg, "unknown ipmasq backend \"x\"");
    }
}
