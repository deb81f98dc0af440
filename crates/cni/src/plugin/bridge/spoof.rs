//! `macspoofchk`: frames from the pod with another source address than its own are dropped, by rules in
//! upstream's table (cni.md 2.1, step 3), so that either program removes what the other made.

use kernel::link::LinkInfo;
use kernel::nft::{CommentIs, NftBatch};
use model::cni::Error;
use model::{IfName, Mac};
use plan::state::{Chain, ChainType, Hook, Match, NftFamily, NftRule, Statement, TableKey, Verdict};

use crate::nft;
use crate::pod::internal;
use crate::skel::Call;

const BASE: &str = "PREROUTING";
/// The kernel keeps no more of a comment.
const COMMENT: usize = 127;

/// The rules of one attachment.
struct Names {
    frames: String,
    addresses: String,
    comment: String,
}

impl Names {
    fn of(container_id: &str, ifname: &str) -> Names {
        let frames = format!("cni-br-iface-{container_id}-{ifname}");
        let mut comment = format!("macspoofchk-{container_id}-{ifname}");
        while comment.len() > COMMENT {
            comment.pop();
        }
        Names { addresses: format!("{frames}-mac"), frames, comment }
    }
}

fn key() -> TableKey {
    TableKey { family: NftFamily::Bridge, name: "nat".to_owned() }
}

fn chain(name: &str, hook: Option<Hook>) -> Chain {
    Chain { name: name.to_owned(), comment: None, hook, rules: Vec::new() }
}

fn base() -> Chain {
    chain(BASE, Some(Hook { kind: ChainType::Filter, number: 0, priority: -300 }))
}

/// Rules in order, each with its chain: those that are jumped to come first.
fn rules(names: &Names, port: IfName, mac: Mac) -> [(&str, NftRule); 4] {
    let rule = |matches, verdict| NftRule {
        matches,
        statement: Statement::Verdict(verdict),
        comment: Some(names.comment.clone()),
    };
    let jump = |to: &str| Verdict::Jump(to.to_owned());
    [
        (&names.addresses, rule(vec![Match::SourceMac(mac)], Verdict::Return)),
        (&names.addresses, rule(Vec::new(), Verdict::Drop)),
        (&names.frames, rule(Vec::new(), jump(&names.addresses))),
        (BASE, rule(vec![Match::InputDevice(port)], jump(&names.frames))),
    ]
}

/// Lets only frames with the pod's own address pass. Repeating changes nothing.
///
/// # Errors
/// The kernel's refusal.
pub fn add(call: &Call, port: IfName, inside: &LinkInfo) -> Result<(), Error> {
    let mac = inside.link.mac.ok_or_else(|| internal("the pod's interface has no hardware address"))?;
    let names = Names::of(&call.env.container_id, &call.env.ifname);
    let key = key();
    let mut batch = NftBatch::new();
    batch.ensure_table(&key, None).ensure_chain(&key, &base());
    batch.delete_rules(&key, BASE, CommentIs::Exactly(names.comment.clone()));
    for name in [&names.frames, &names.addresses] {
        batch.ensure_chain(&key, &chain(name, None)).flush_chain(&key, name);
    }
    for (chain, rule) in rules(&names, port, mac) {
        batch.add_rule(&key, chain, &rule);
    }
    commit(&call.nft, &batch, "check source addresses of the pod's frames")
}

/// Removes the rules of an attachment, whoever made them.
///
/// # Errors
/// The kernel's refusal.
pub fn remove(nft: &nft::Host, container_id: &str, ifname: &str) -> Result<(), Error> {
    let names = Names::of(container_id, ifname);
    let key = key();
    let mut batch = NftBatch::new();
    batch.delete_rules(&key, BASE, CommentIs::Exactly(names.comment.clone()));
    batch.delete_chain(&key, &names.frames).delete_chain(&key, &names.addresses);
    commit(nft, &batch, "remove the source address check of the pod")
}

fn commit(nft: &nft::Host, batch: &NftBatch, action: &str) -> Result<(), Error> {
    nft.commit(batch).map_err(|e| e.during(action))
}

/// Fails unless the attachment has its rules.
///
/// # Errors
/// As said.
pub fn check(call: &Call, inside: &LinkInfo) -> Result<(), Error> {
    let names = Names::of(&call.env.container_id, &call.env.ifname);
    let have = call.nft.rules(&key())?;
    let mine: Vec<_> =
        have.iter().filter(|r| r.comment.as_deref() == Some(&names.comment)).map(|r| &r.chain).collect();
    let [first, second, third] =
        [BASE, &names.frames, &names.addresses].map(|chain| mine.iter().any(|have| have.as_str() == chain));
    if first && second && third {
        return Ok(());
    }
    let name = inside.link.name;
    Err(Error::internal(format!("missing rules of macspoofchk for {name} in nftables table {}", key())))
}
