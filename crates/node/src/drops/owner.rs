//! Who dropped it: the netfilter hook by the functions that called it, and the chains at that hook which drop. Pure.

use std::fmt;
use std::net::IpAddr;

use crate::doctor::ruleset::{Chain, Ruleset};

/// A netfilter hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hook {
    /// As nft names it.
    pub name: &'static str,
    /// Of a bridge, not of IP.
    pub bridge: bool,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bridge = if self.bridge { "bridge " } else { "" };
        write!(f, "{bridge}{}", self.name)
    }
}

/// Functions that run a hook; the nearest caller decides.
const CALLERS: &[(&str, &str, bool)] = &[
    ("br_nf_pre_routing", "prerouting", false),
    ("br_nf_pre_routing_ipv6", "prerouting", false),
    ("br_nf_forward", "forward", false),
    ("br_nf_forward_ip", "forward", false),
    ("br_nf_local_in", "input", false),
    ("br_nf_post_routing", "postrouting", false),
    ("br_handle_frame", "prerouting", true),
    ("br_pass_frame_up", "input", true),
    ("__br_forward", "forward", true),
    ("br_forward_finish", "postrouting", true),
    ("br_dev_xmit", "output", true),
    ("ip_rcv", "prerouting", false),
    ("ip_list_rcv", "prerouting", false),
    ("ip_sublist_rcv", "prerouting", false),
    ("ipv6_rcv", "prerouting", false),
    ("ipv6_list_rcv", "prerouting", false),
    ("ip_local_deliver", "input", false),
    ("ip6_input", "input", false),
    ("ip_forward", "forward", false),
    ("ip6_forward", "forward", false),
    ("__ip_local_out", "output", false),
    ("ip_local_out", "output", false),
    ("__ip6_local_out", "output", false),
    ("ip6_local_out", "output", false),
    ("ip6_xmit", "output", false),
    ("raw_sendmsg", "output", false),
    ("rawv6_sendmsg", "output", false),
    ("ip_output", "postrouting", false),
    ("ip_mc_output", "postrouting", false),
    ("ip6_output", "postrouting", false),
    ("__netif_receive_skb_core", "ingress", false),
    ("__dev_queue_xmit", "egress", false),
];

/// The hook, by the names of functions, the nearest first.
pub fn hook(stack: &[&str]) -> Option<Hook> {
    stack.iter().find_map(|function| {
        let (_, name, bridge) = CALLERS.iter().find(|(caller, ..)| caller == function)?;
        Some(Hook { name, bridge: *bridge })
    })
}

/// A chain that drops at the hook, and by what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// Table, such as `inet firewalld`.
    pub table: String,
    /// Chain.
    pub chain: String,
    /// The rule as printed, or `policy drop`.
    pub by: String,
}

impl fmt::Display for Suspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table {} chain {}, {}", self.table, self.chain, self.by)
    }
}

impl Suspect {
    /// The command that shows the chain.
    pub fn shown_by(&self) -> String {
        match self.table.split_once(' ') {
            Some((program, table)) if program.starts_with("iptables") || program.starts_with("ip6tables") => {
                format!("{program} -t {table} -L {} -n -v", self.chain)
            }
            _ => format!("nft list chain {} {}", self.table, self.chain),
        }
    }
}

/// Those that may have dropped a packet at a hook, policies last: they decide when no rule did.
pub fn suspects(rules: &Ruleset, hook: Hook, to: Option<IpAddr>) -> Vec<Suspect> {
    let family = |chain: &&Chain| {
        let family = chain.table.split(' ').next().unwrap_or_default();
        match (hook.bridge, to) {
            (true, _) => family == "bridge",
            (false, Some(IpAddr::V4(_))) => family != "ip6" && family != "bridge",
            (false, Some(IpAddr::V6(_))) => family != "ip" && family != "bridge",
            (false, None) => family != "bridge",
        }
    };
    let (mut by_rule, mut by_policy) = (Vec::new(), Vec::new());
    for base in rules.at(hook.name).filter(family) {
        let suspect =
            |chain: &Chain, by| Suspect { table: chain.table.clone(), chain: chain.name.clone(), by };
        let led = rules.chains.iter().filter(|chain| chain.table == base.table && chain.hook.is_none());
        let reached = led.filter(|chain| leads_to(rules, base, &chain.name));
        for chain in std::iter::once(base).chain(reached) {
            let dropping = chain.rules.iter().filter(|rule| drops(rule));
            by_rule.extend(dropping.map(|rule| suspect(chain, format!("rule `{rule}`"))));
        }
        if base.drops {
            by_policy.push(suspect(base, "policy drop".to_owned()));
        }
    }
    by_rule.extend(by_policy);
    by_rule
}

/// Whether a chain is reached from a base chain of its table.
fn leads_to(rules: &Ruleset, base: &Chain, name: &str) -> bool {
    let mut open: Vec<&Chain> = vec![base];
    let mut seen: Vec<&str> = Vec::new();
    while let Some(chain) = open.pop() {
        for other in rules.chains.iter().filter(|other| other.table == base.table) {
            let named = |rule: &String| rule.split_whitespace().any(|word| word == other.name);
            if seen.contains(&other.name.as_str()) || !chain.rules.iter().any(named) {
                continue;
            }
            if other.name == name {
                return true;
            }
            seen.push(&other.name);
            open.push(other);
        }
    }
    false
}

fn drops(rule: &str) -> bool {
    let words = rule.split(" comment \"").next().unwrap_or(rule).split_whitespace();
    words.into_iter().any(|word| matches!(word, "drop" | "reject" | "DROP" | "REJECT" | "\"REJECT\""))
}
