//! Masquerade and forward rules of the cluster network: one nftables table per family, or chains of
//! iptables.
//!
//! Both carry flannel's names, so that a node that changes between the two programs never has two sets.
//! With `EnableNFTables` the tables are the golden text of flannel.md 7.4. Without it the rules are
//! flannel's iptables rules (7.1, 7.2), which also masquerade host-to-remote-pod traffic (F-134); where
//! the host has no iptables, a table of the same meaning stands for them (decision 0133).

use std::collections::BTreeSet;

use ipnet::IpNet;
use model::{Family, IfName, NetConf, Subnets};

use crate::facts::{self, IptablesTool};
use crate::state::iptables::multicast;
use crate::state::{
    Chain, ChainType, Hook, Iptables, IptablesKey, IptablesTable, Match, NftFamily, NftRule, NftTable,
    Object, Route, Statement, TableKey, Variant, Verdict, Via,
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

/// flannel's names of the tables.
pub fn table_keys() -> [TableKey; 2] {
    Family::BOTH.map(key)
}

/// The names our tables may have, whether wanted or not: what a scope must own to remove them (F-137).
pub fn our_keys(conf: &NetConf, taken: &BTreeSet<TableKey>) -> impl Iterator<Item = TableKey> {
    let flannels = table_keys().into_iter().filter(|key| !taken.contains(key));
    flannels.chain(conf.networks().into_iter().map(beside))
}

/// Whether a table is an agent's by its name, ours or that of another one on this host.
pub fn is_agents(table: &TableKey) -> bool {
    Family::BOTH.into_iter().map(key).any(|flannels| {
        let rest = table.name.strip_prefix(&flannels.name);
        table.family == flannels.family && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    })
}

fn table_key(net: IpNet, taken: &BTreeSet<TableKey>) -> TableKey {
    let flannels = key(Family::of_net(net));
    if taken.contains(&flannels) { beside(net) } else { flannels }
}

/// The name where another agent has flannel's: the same with the network (decision 0156).
fn beside(net: IpNet) -> TableKey {
    let TableKey { family, name } = key(Family::of_net(net));
    let net = net.to_string().replace('/', "-").replace(':', "_");
    TableKey { family, name: format!("{name}-{net}") }
}

fn key(family: Family) -> TableKey {
    let (family, name) = match family {
        Family::V4 => (NftFamily::Ip, "flannel-ipv4"),
        Family::V6 => (NftFamily::Ip6, "flannel-ipv6"),
    };
    TableKey { family, name: name.to_owned() }
}

/// Whether conntrack takes TCP packets beyond the window it knows; `1` with the fast path (decision 0218).
pub const LIBERAL: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";

/// What computes the checksums of a tunnel's packets unless it is off: the card, for packets that look like its own.
pub const TX_CHECKSUM: &str = "tx-checksum-ip-generic";

/// The checksums of packets that enter these tunnels are computed before they do. Only with the kinds named here does
/// what enters leave as it came; others make it whole themselves.
pub fn summed_here(kind: &str, tunnels: &[IfName]) -> Vec<Object> {
    let off = |dev: &IfName| Object::Offload { dev: *dev, name: TX_CHECKSUM, on: false };
    if matches!(kind, "vxlan" | "ipip") { tunnels.iter().map(off).collect() } else { Vec::new() }
}

/// Conntrack does not judge TCP windows.
pub fn liberal() -> Object {
    Object::Sysctl { path: LIBERAL.to_owned(), value: "1".to_owned() }
}

/// The packet rules of this node. They do not depend on peers.
pub fn objects(
    conf: &NetConf,
    own: &Subnets,
    choice: Choice,
    tools: &facts::Iptables,
    taken: &BTreeSet<TableKey>,
) -> Vec<Object> {
    let mut objects = Vec::new();
    let tables = tables(conf, own, choice);
    for net in conf.networks() {
        let family = Family::of_net(net);
        match (tool(conf, tools, family), own.of(family)) {
            (Some(tool), Some(pods)) => {
                let rules = iptables(family, net, pods, choice, tool);
                objects.extend(rules.into_iter().map(|rules| Object::Iptables(Box::new(rules))));
                if choice.masquerade {
                    objects.push(Object::Nft(Box::new(stay(net, table_key(net, taken)))));
                }
            }
            _ => {
                let table = tables.iter().find(|table| table.key == key(family));
                let named = table.map(|table| NftTable { key: table_key(net, taken), ..table.clone() });
                objects.extend(named.map(|table| Object::Nft(Box::new(table))));
            }
        }
    }
    objects
}

/// The iptables that keeps a family's rules, if it is to.
fn tool(conf: &NetConf, tools: &facts::Iptables, family: Family) -> Option<IptablesTool> {
    tools.get(&family).copied().filter(|_| !conf.enable_nftables)
}

/// Whether rules are in iptables.
pub fn in_iptables(conf: &NetConf, tools: &facts::Iptables) -> bool {
    conf.networks().into_iter().any(|net| tool(conf, tools, Family::of_net(net)).is_some())
}

/// Tables of iptables to look for our rules in. `adopt` says to look also where a flanneld before us, or we
/// in another mode, may have left some (flannel.md 7.5, decision 0132): there the accepts of FORWARD stay
/// unless iptables mode puts its own elsewhere.
pub fn iptables_keys(conf: &NetConf, tools: &facts::Iptables, adopt: bool) -> BTreeSet<IptablesKey> {
    let mut keys = BTreeSet::new();
    for family in Family::BOTH {
        let tool = tool(conf, tools, family);
        for variant in Variant::BOTH {
            let ours = tool.is_some_and(|tool| tool.variant == variant);
            if ours || adopt {
                keys.insert(IptablesKey { variant, family, table: IptablesTable::Nat });
            }
            if ours || adopt && tool.is_some() {
                keys.insert(IptablesKey { variant, family, table: IptablesTable::Filter });
            }
        }
    }
    keys
}

/// All tables of iptables that may hold rules of ours.
pub fn all_iptables_keys() -> BTreeSet<IptablesKey> {
    let tables = [IptablesTable::Nat, IptablesTable::Filter];
    let of = |variant| {
        let family = move |family| tables.map(|table| IptablesKey { variant, family, table });
        Family::BOTH.into_iter().flat_map(family)
    };
    Variant::BOTH.into_iter().flat_map(of).collect()
}

/// The rules of flannel.md 7.1 and 7.2.
fn iptables(family: Family, net: IpNet, pods: IpNet, choice: Choice, tool: IptablesTool) -> Vec<Iptables> {
    let key = |table| IptablesKey { variant: tool.variant, family, table };
    let mut wanted = Vec::new();
    if choice.masquerade {
        let comment = "-m comment --comment \"flanneld masq\"";
        let random = if choice.fully_random && tool.fully_random { " --random-fully" } else { "" };
        let multicast = multicast(family);
        let rules = vec![
            format!("-m mark --mark {KUBE_MARK:#x}/{KUBE_MARK:#x} {comment} -j RETURN"),
            format!("-s {pods} -d {net} {comment} -j RETURN"),
            format!("-s {net} -d {pods} {comment} -j RETURN"),
            format!("! -s {net} -d {pods} {comment} -j RETURN"),
            format!("-s {net} ! -d {multicast} {comment} -j MASQUERADE{random}"),
            format!("! -s {net} -d {net} {comment} -j MASQUERADE{random}"),
        ];
        wanted.push(Iptables::wanted(key(IptablesTable::Nat), rules));
    }
    if choice.forward {
        let comment = "-m comment --comment \"flanneld forward\"";
        let rules = vec![format!("-s {net} {comment} -j ACCEPT"), format!("-d {net} {comment} -j ACCEPT")];
        wanted.push(Iptables::wanted(key(IptablesTable::Filter), rules));
    }
    wanted
}

/// The tables wanted, for each enabled family that we have a subnet in (F-136).
fn tables(conf: &NetConf, own: &Subnets, choice: Choice) -> Vec<NftTable> {
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
            tables.push(NftTable { key, comment, owned: true, sets: Vec::new(), chains, drifted: false });
        }
    }
    tables
}

/// What keeps NAT going when somebody empties the tables of iptables: without a rule that looks at connections the
/// kernel does not follow them, and those that were masqueraded go on with a pod's address (decision 0161).
fn stay(net: IpNet, key: TableKey) -> NftTable {
    let chain = Chain {
        name: "stay".to_owned(),
        comment: Some("keeps connections translated while the rules of iptables are away".to_owned()),
        hook: Some(Hook { kind: ChainType::Nat, number: 4, priority: 100 }),
        // Looks at connections and does nothing: a verdict here ends this chain alone. The network tells other
        // agents of the host whose table it is.
        rules: vec![rule(
            vec![Match::Source(net), Match::DestinationTranslated],
            Statement::Verdict(Verdict::Accept),
        )],
    };
    let comment = Some("the rules of flannel are in iptables".to_owned());
    NftTable { key, comment, owned: true, sets: Vec::new(), chains: vec![chain], drifted: false }
}

fn rule(matches: Vec<Match>, statement: Statement) -> NftRule {
    NftRule { matches, statement, comment: None }
}

fn postrouting(family: Family, net: IpNet, pods: IpNet, fully_random: bool, golden: bool) -> Chain {
    use Match::{Destination, DestinationNot, Mark, MarkMasked, Source, SourceNot};
    let back = || Statement::Verdict(Verdict::Return);
    let masquerade = || Statement::Masquerade { fully_random };
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
            rule(vec![Source(net), DestinationNot(multicast(family))], masquerade()),
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
