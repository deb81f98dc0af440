//! Masquerading of a network's pods (`ipMasq`), in the table upstream's nftables backend uses (cni.md
//! 2.0.6), so that either program removes what the other made.

use std::sync::LazyLock;

use ipnet::IpNet;
use model::cni::Error;
use plan::state::{
    Chain, ChainType, Hook, Match, NftFamily, NftRule, NftTable, Statement, TableKey, Verdict,
};

use crate::nft;
use crate::skel::Call;
use crate::{names, pod};

const CHECKS: &str = "masq_checks";

static TABLE: LazyLock<NftTable> = LazyLock::new(table);

/// Refuses what this version does not build.
///
/// # Errors
/// The backend is iptables (code 7: later) or unknown.
pub fn check_backend(name: &str) -> Result<(), Error> {
    match name {
        "" | "nftables" => Ok(()),
        "iptables" => Err(nft::no_iptables("ipMasqBackend")),
        other => Err(Error::config(format!("unknown ipmasq backend {other:?}"))),
    }
}

/// Masquerades what leaves these addresses for outside their subnets. Repeating changes nothing.
///
/// # Errors
/// The kernel's refusal.
pub fn add(call: &Call, addresses: &[IpNet]) -> Result<(), Error> {
    let comment = names::comment(&call.network, &call.env.container_id, &call.env.ifname);
    let rules: Vec<(&str, NftRule)> = addresses.iter().map(|a| (CHECKS, rule(*a, &comment))).collect();
    let mark = mark(call);
    nft::update(&TABLE, &rules, &|comment| comment.starts_with(&mark))
        .map_err(|e| e.during("masquerade the pod's addresses"))
}

/// Removes the rules of the attachment, whoever made them. Needs no address and no namespace (B-08).
///
/// # Errors
/// The kernel's refusal.
pub fn remove(call: &Call) -> Result<(), Error> {
    let mark = mark(call);
    nft::update(&TABLE, &[], &|comment| comment.starts_with(&mark))
        .map_err(|e| e.during("remove the pod's masquerade rules"))
}

/// Removes the rules of the network's attachments that are not valid.
///
/// # Errors
/// The kernel's refusal.
pub fn keep_only(call: &Call, valid: &[(String, String)]) -> Result<(), Error> {
    nft::update(&TABLE, &[], &|comment| names::is_stale(comment, &call.network, valid))
}

/// Fails unless the attachment has its rules.
///
/// # Errors
/// As said.
pub fn check(call: &Call) -> Result<(), Error> {
    let mark = mark(call);
    let rules = nft::rules(&TABLE.key)?;
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
        assert!(check_backend("").is_ok() && check_backend("nftables").is_ok());
        assert_eq!(check_backend("iptables").unwrap_err().code, model::cni::code::CONFIG);
        assert_eq!(check_backend("x").unwrap_err().msg, "unknown ipmasq backend \"x\"");
    }
}
