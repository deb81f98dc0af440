//! Masquerade and forward rules of the cluster network, as one nftables table per family.
//!
//! The tables carry flannel's names, so that a node that changes between the two programs never has
//! two sets. With `EnableNFTables` they are the golden text of flannel.md 7.4; without it they have the
//! meaning of flannel's iptables rules (7.1, 7.2), which also masquerade host-to-remote-pod traffic
//! (F-134).

use ipnet::IpNet;
use model::{Family, NetConf, Subnets};

use crate::state::{
    Chain, ChainType, Hook, Match, NftFamily, NftRule, NftTable, Route, Statement, TableKey, Verdict, Via,
};

/// The mark kube-proxy sets on what it will masquerade itself.
const KUBE_MARK: u32 = 0x4000;

/// What the node's flags ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// `--ip-masq`
    pub masquerade: bool,
    /// not `--ip-masq-fully-random-disable`
    pub fully_random: bool,
    /// `--iptables-forward-rules`
    pub forward: bool,
    /// `--ip-blackhole-route`
    pub blackhole: bool,
}

/// Metric of blackhole routes in both families. A bridge's connected route (0 in IPv4, 256 in IPv6) goes
/// before it, so both can stand; with the same metric the second is refused (F-10).
const BLACKHOLE_METRIC: u32 = 1024;

/// Routes that keep traffic for pods which are not here from leaving by the default route.
pub fn blackholes(own: &Subnets, choice: Choice) -> impl Iterator<Item = Route> {
    let nets = own.nets().filter(move |_| choice.blackhole);
    nets.map(|net| Route { priority: BLACKHOLE_METRIC, ..Route::ours(net, Via::Blackhole) })
}

/// The names of the tables, whether wanted or not: what a scope must own to remove them (F-137).
pub fn table_keys() -> [TableKey; 2] {
    Family::BOTH.map(key)
}

fn key(family: Family) -> TableKey {
    let (family, name) = match family {
        Family::V4 => (NftFamily::Ip, "flannel-ipv4"),
        Family::V6 => (NftFamily::Ip6, "flannel-ipv6"),
    };
    TableKey { family, name: name.to_owned() }
}

/// The tables wanted, for each enabled family that we have a subnet in (F-136).
pub fn tables(conf: &NetConf, own: &Subnets, choice: Choice) -> Vec<NftTable> {
    let mut tables = Vec::new();
    for net in conf.networks() {
        let family = Family::of_net(net);
        let Some(pods) = own.of(family) else { continue };
        let mut chains = Vec::new();
        if choice.masquerade {
            chains.push(postrouting(family, net, pods, choice.fully_random, conf.enable_nftables));
        }
        if choice.forward {
            chains.push(forward(net));
        }
        if !chains.is_empty() {
            let key = key(family);
            let comment = Some(format!("rules for {}", key.name));
            tables.push(NftTable { key, comment, owned: true, chains, drifted: false });
        }
    }
    tables
}

fn rule(matches: Vec<Match>, statement: Statement) -> NftRule {
    NftRule { matches, statement, comment: None }
}

fn postrouting(family: Family, net: IpNet, pods: IpNet, fully_random: bool, golden: bool) -> Chain {
    use Match::{Destination, DestinationNot, Mark, MarkMasked, Source, SourceNot};
    let back = || Statement::Verdict(Verdict::Return);
    let masquerade = || Statement::Masquerade { fully_random };
    let multicast = match family {
        Family::V4 => IpNet::from(ipnet::Ipv4Net::new_assert([224, 0, 0, 0].into(), 4)),
        Family::V6 => IpNet::from(ipnet::Ipv6Net::new_assert([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8)),
    };
    let marked = if golden { Mark(KUBE_MARK) } else { MarkMasked { value: KUBE_MARK, mask: KUBE_MARK } };
    // Keeps the address of clients: of others entering towards local pods, or, in the golden text, of
    // everything that is not a local pod.
    let entering =
        if golden { [SourceNot(pods), Destination(net)] } else { [SourceNot(net), Destination(pods)] };
    Chain {
        name: "postrtg".to_owned(),
        comment: Some("chain to manage traffic masquerading by flannel".to_owned()),
        hook: Some(Hook { kind: ChainType::Nat, number: 4, priority: 100 }),
        rules: vec![
            rule(vec![marked], back()),
            rule(vec![Source(pods), Destination(net)], back()),
            rule(vec![Source(net), Destination(pods)], back()),
            rule(entering.into(), back()),
            rule(vec![Source(net), DestinationNot(multicast)], masquerade()),
            rule(vec![SourceNot(net), Destination(net)], masquerade()),
        ],
    }
}

fn forward(net: IpNet) -> Chain {
    let accept = || Statement::Verdict(Verdict::Accept);
    Chain {
        name: "forward".to_owned(),
        comment: Some("chain to accept flannel traffic".to_owned()),
        hook: Some(Hook { kind: ChainType::Filter, number: 2, priority: 0 }),
        rules: vec![rule(vec![Match::Source(net)], accept()), rule(vec![Match::Destination(net)], accept())],
    }
}

#[cfg(test)]
mod tests;
