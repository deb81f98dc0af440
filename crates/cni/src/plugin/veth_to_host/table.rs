//! The pods' routing tables and the rules that lead to them.

use std::collections::BTreeSet;

use kernel::rtnl::{RouteFilter, Rtnl, RuleInfo};
use model::cni::Error;
use model::cni::veth_to_host::Mode;
use model::{Family, IfName};
use plan::ROUTE_PROTOCOL;

use super::plan::{Facts, NODE_PORT_PRIORITY, PRIORITY};
use crate::pod::internal;
use crate::skel::Call;
use crate::{lock, names};

/// How many numbers are tried from the first one on.
const TABLES: u32 = 1000;
const LOCK: &str = "veth-to-host";

/// Finds a table that nobody uses and adds the rules that lead to it. Under a lock, so that two pods do not
/// find the same one; which it is follows from the pod, so that it does not change needlessly.
///
/// # Errors
/// All are in use, or the kernel's refusal.
pub fn claim(host: &mut Rtnl, call: &Call, facts: &Facts<'_>) -> Result<u32, Error> {
    let _lock = lock::named(&call.env.state_dir, LOCK)?;
    let used: BTreeSet<u32> = host.rules().map_err(internal)?.iter().map(|r| r.rule.table).collect();
    let mark = names::mark(&call.network, &call.env.container_id, &call.env.ifname);
    let first = u32::from_str_radix(&names::sha512(&mark)[..6], 16).unwrap_or(0);
    let start = facts.conf.table_start;
    let numbers = (0..TABLES).map(|n| start.saturating_add((first + n) % TABLES));
    for table in numbers.filter(|table| !(253..=255).contains(table) && !used.contains(table)) {
        let inside = RouteFilter { table: Some(table), ..RouteFilter::default() };
        if host.routes(inside).map_err(internal)?.is_empty() {
            add_rules(host, facts, table)?;
            return Ok(table);
        }
    }
    let last = start.saturating_add(TABLES - 1);
    let details = format!("the tables {start} to {last} are all in use; set routeTableStart");
    Err(Error::internal("failed to add routes to a free table").details(details))
}

fn add_rules(host: &mut Rtnl, facts: &Facts<'_>, table: u32) -> Result<(), Error> {
    // As published, rules say nothing about who made them.
    let protocol = if facts.conf.mode == Mode::Tutorial { 0 } else { ROUTE_PROTOCOL };
    for rule in facts.policy_rules(table) {
        host.add_rule_as(&rule, protocol).map_err(internal)?;
    }
    for rule in facts.node_port_rules() {
        match host.add_rule_as(&rule, protocol) {
            Err(e) if crate::device::is_exists(&e) => {}
            other => other.map_err(internal)?,
        }
    }
    Ok(())
}

/// Whether a rule leads packets from a pair to a table.
pub fn leads_from(info: &RuleInfo, outer: IfName) -> bool {
    info.rule.priority == PRIORITY && info.rule.iif == Some(outer)
}

/// Removes the rules of one pair, and with the last pair's the one for node ports. The routes go with the
/// device.
///
/// # Errors
/// The kernel's refusal.
pub fn release(call: &Call, outer: IfName) -> Result<(), Error> {
    delete(call, &|info| leads_from(info, outer))
}

/// Removes the rules of pairs that are gone.
///
/// # Errors
/// The kernel's refusal.
pub fn sweep(call: &Call) -> Result<(), Error> {
    let mut host = Rtnl::open().map_err(internal)?;
    let links: BTreeSet<IfName> = host.links().map_err(internal)?.iter().map(|l| l.link.name).collect();
    let hex = |name: &str| name.len() == 12 && name.starts_with("veth");
    delete(call, &|info| {
        let gone = |iif: IfName| hex(iif.as_str()) && !links.contains(&iif);
        info.rule.priority == PRIORITY && info.rule.iif.is_some_and(gone)
    })
}

fn delete(call: &Call, stale: &dyn Fn(&RuleInfo) -> bool) -> Result<(), Error> {
    let mut host = Rtnl::open().map_err(internal)?;
    if !host.rules().map_err(internal)?.iter().any(stale) {
        return Ok(());
    }
    let _lock = lock::named(&call.env.state_dir, LOCK)?;
    let rules = host.rules().map_err(internal)?;
    let (stale, rest): (Vec<_>, Vec<_>) = rules.iter().partition(|info| stale(info));
    for info in &stale {
        host.delete_rule(&info.rule).map_err(internal)?;
    }
    for family in Family::BOTH {
        let of_pair = |info: &&&RuleInfo| info.rule.priority == PRIORITY && info.rule.iif.is_some();
        if rest.iter().filter(of_pair).any(|info| info.rule.family == family) {
            continue;
        }
        let node_port = |info: &&&RuleInfo| {
            let rule = &info.rule;
            rule.family == family
                && rule.priority == NODE_PORT_PRIORITY
                && rule.fwmark.is_some()
                && rule.table == plan::state::TABLE_MAIN
        };
        for info in rest.iter().filter(node_port) {
            host.delete_rule(&info.rule).map_err(internal)?;
        }
    }
    Ok(())
}
