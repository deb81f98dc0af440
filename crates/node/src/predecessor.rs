//! What a flanneld that ran here before leaves in the way of ours: the masquerade rules of its iptables
//! mode (flannel.md 7.1). They name the subnet this node had then. With another one they masquerade
//! traffic between pods, and a NAT rule of any program decides where ours say "return" (decision 0062).
//!
//! Its accepts (7.2) stay: they name the network only, and they are what gets pods past another program's
//! policy. What went in through iptables-legacy is not seen from here.

use kernel::{Nft, NftBatch};
use plan::state::{NftFamily, TableKey};

/// flannel's name for the chain since v0.20; nobody else's.
const CHAIN: &str = "FLANNEL-POSTRTG";

/// Empties flannel's masquerade chains, which iptables keeps as chains of the tables `nat`. The jump to
/// them and the chains stay, as flanneld itself leaves them when it changes to nftables. To be called when
/// our rules are in place. Gives the tables that held rules.
///
/// # Errors
/// What failed, as a sentence; nothing was changed then.
pub fn empty_masquerade_chains() -> Result<Vec<String>, String> {
    let mut nft = Nft::open().map_err(|error| error.to_string())?;
    let mut batch = NftBatch::new();
    let mut found = Vec::new();
    for family in [NftFamily::Ip, NftFamily::Ip6] {
        let key = TableKey { family, name: "nat".to_owned() };
        let rules = nft
            .rules(&key, Some(CHAIN))
            .map_err(|errno| format!("list the rules of {key} {CHAIN}: {errno}"))?;
        if !rules.is_empty() {
            batch.flush_chain(&key, CHAIN);
            found.push(key.to_string());
        }
    }
    if !found.is_empty() {
        nft.commit(&batch).map_err(|error| error.to_string())?;
    }
    Ok(found)
}
