//! `ipspoofchk`: what a pod sends comes from its own addresses, in IP, ARP and neighbour discovery (decision 0194).

use std::net::{IpAddr, Ipv4Addr};

use kernel::link::LinkInfo;
use kernel::nft::{CommentIs, NftBatch};
use model::cni::{CniResult, Error};
use model::{IfName, IpNet, Mac};
use plan::state::{Chain, ChainType, Hook, Match, NftFamily, NftRule, Statement, TableKey, Verdict};

use crate::nft;
use crate::pod::internal;
use crate::skel::Call;

const TABLE: &str = "loden-pods";
const BASE: &str = "sources";
/// The kernel keeps no more of a comment.
const COMMENT: usize = 127;

/// UDP and its port of DHCP servers (RFC 2131 4.1).
const UDP: u8 = 17;
const DHCP_SERVER: u16 = 67;
const ICMPV6: u8 = 58;
/// Messages of routers alone: advertisements and redirects (RFC 4861 4.2, 4.5).
const OF_ROUTERS: [u8; 2] = [134, 137];
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// What comes from no address: neighbour solicitations (RFC 4862 5.4.2), multicast reports (RFC 3590 4).
const OF_NOBODY: [u8; 2] = [135, 143];

/// The rules of one attachment.
struct Names {
    chain: String,
    comment: String,
}

impl Names {
    fn of(container_id: &str, ifname: &str) -> Names {
        let mut comment = format!("ipspoofchk-{container_id}-{ifname}");
        while comment.len() > COMMENT {
            comment.pop();
        }
        Names { chain: format!("pod-{container_id}-{ifname}"), comment }
    }
}

fn key() -> TableKey {
    TableKey { family: NftFamily::Bridge, name: TABLE.to_owned() }
}

fn chain(name: &str, hook: Option<Hook>) -> Chain {
    Chain { name: name.to_owned(), comment: None, hook, rules: Vec::new() }
}

/// Before `macspoofchk`, so that either finds the frame as it came.
fn base() -> Chain {
    chain(BASE, Some(Hook { kind: ChainType::Filter, number: 0, priority: -301 }))
}

fn net(text: &str) -> Result<IpNet, Error> {
    text.parse().map_err(internal)
}

/// What passes, by what is looked at and the verdict; whatever is left is dropped.
///
/// # Errors
/// None.
fn rules(mac: Mac, addresses: &[IpAddr]) -> Result<Vec<(Vec<Match>, Verdict)>, Error> {
    let v4 = addresses.iter().filter_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None });
    let v4: Vec<Ipv4Addr> = v4.collect();
    let v6: Vec<IpNet> = addresses.iter().filter(|ip| ip.is_ipv6()).map(|ip| IpNet::from(*ip)).collect();
    let mut rules = Vec::new();
    let pass = |matches| (matches, Verdict::Accept);
    for ip in &v4 {
        rules.push(pass(vec![Match::Source(IpNet::from(IpAddr::V4(*ip)))]));
    }
    if !v4.is_empty() {
        let dhcp = [Match::Protocol(UDP), Match::DestinationPort(DHCP_SERVER)];
        rules.push(pass([vec![Match::Source(net("0.0.0.0/32")?)], dhcp.to_vec()].concat()));
        rules.extend(
            v4.iter().chain([&Ipv4Addr::UNSPECIFIED]).map(|ip| pass(vec![Match::ArpSender(mac, *ip)])),
        );
    }
    if !v6.is_empty() {
        let link_local = net("fe80::/10")?;
        let message = |kind| [Match::Protocol(ICMPV6), Match::IcmpType(kind)].to_vec();
        rules.extend(OF_ROUTERS.map(|kind| (message(kind), Verdict::Drop)));
        let own = v6.iter().copied().chain([link_local]);
        let others: Vec<Match> = own.clone().map(Match::NdTargetNot).collect();
        rules.push(([message(NEIGHBOUR_ADVERTISEMENT), others].concat(), Verdict::Drop));
        rules.extend(own.map(|net| pass(vec![Match::Source(net)])));
        let nobody = Match::Source(net("::/128")?);
        rules.extend(OF_NOBODY.map(|kind| pass([vec![nobody.clone()], message(kind)].concat())));
    }
    rules.push((Vec::new(), Verdict::Drop));
    Ok(rules)
}

fn addresses(result: &CniResult) -> Vec<IpAddr> {
    result.ips.iter().map(|ip| ip.address.addr()).collect()
}

/// Lets only what comes from the pod's own addresses pass. Repeating changes nothing.
///
/// # Errors
/// The kernel's refusal.
pub fn add(call: &Call, port: IfName, inside: &LinkInfo, result: &CniResult) -> Result<(), Error> {
    let mac = inside.link.mac.ok_or_else(|| internal("the pod's interface has no hardware address"))?;
    let names = Names::of(&call.env.container_id, &call.env.ifname);
    let key = key();
    let rule = |matches, verdict| NftRule {
        matches,
        statement: Statement::Verdict(verdict),
        comment: Some(names.comment.clone()),
    };
    let mut batch = NftBatch::new();
    batch
        .ensure_table(&key, Some("addresses of pods, see docs/guide/security.md"))
        .ensure_chain(&key, &base());
    batch.delete_rules(&key, BASE, CommentIs::Exactly(names.comment.clone()));
    batch.ensure_chain(&key, &chain(&names.chain, None)).flush_chain(&key, &names.chain);
    for (matches, verdict) in rules(mac, &addresses(result))? {
        batch.add_rule(&key, &names.chain, &rule(matches, verdict));
    }
    let here = Match::InputDevice(port);
    let own = Verdict::Goto(names.chain.clone());
    // The chain accepts or drops: nobody comes back from it.
    batch.add_rule(&key, BASE, &rule(vec![here.clone(), Match::SourceMac(mac)], own));
    batch.add_rule(&key, BASE, &rule(vec![here], Verdict::Drop));
    commit(&call.nft, &batch, "check addresses of what the pod sends")
}

/// Removes the rules of an attachment.
///
/// # Errors
/// The kernel's refusal.
pub fn remove(nft: &nft::Host, container_id: &str, ifname: &str) -> Result<(), Error> {
    let names = Names::of(container_id, ifname);
    let key = key();
    let mut batch = NftBatch::new();
    batch.delete_rules(&key, BASE, CommentIs::Exactly(names.comment));
    batch.delete_chain(&key, &names.chain);
    commit(nft, &batch, "remove the check of the pod's addresses")
}

fn commit(nft: &nft::Host, batch: &NftBatch, action: &str) -> Result<(), Error> {
    nft.commit(batch).map_err(|e| e.during(action))
}

/// Fails unless the attachment has its rules.
///
/// # Errors
/// As said.
pub fn check(call: &Call, inside: &LinkInfo, result: &CniResult) -> Result<(), Error> {
    let names = Names::of(&call.env.container_id, &call.env.ifname);
    let mac = inside.link.mac.ok_or_else(|| internal("the pod's interface has no hardware address"))?;
    let have = call.nft.rules(&key())?;
    let of = |chain: &str| {
        have.iter().filter(|r| r.chain == chain && r.comment.as_deref() == Some(&names.comment)).count()
    };
    if (of(BASE), of(&names.chain)) == (2, rules(mac, &addresses(result))?.len()) {
        return Ok(());
    }
    let name = inside.link.name;
    Err(Error::internal(format!("missing rules of ipspoofchk for {name} in nftables table {}", key())))
}
