//! `sbr`: routes of an interface go to a table of their own for each of its addresses, chosen by source
//! (cni.md 2.11).

use std::fs::File;

use ipnet::IpNet;
use kernel::rtnl::{Put, RouteFilter, RouteInfo, Rtnl};
use model::cni::sbr::{FIRST_TABLE, Sbr, addresses, free_table, next_priority};
use model::cni::{CniResult, Error, IpConfig};
use model::{Family, IfName};
use plan::state::{Rule, TABLE_MAIN};

use crate::lock;
use crate::pod::{self, internal};
use crate::skel::Call;
use crate::undo::Undo;

/// `RT_SCOPE_LINK`
const LINK: u8 = 253;

/// Makes the rules and moves the routes; hands the result on.
///
/// # Errors
/// The configuration, no result handed on, the kernel's refusal; what was made is taken back then.
pub fn add(call: &Call) -> Result<CniResult, Error> {
    let (conf, result) = read(call)?;
    let name = pod::interface(&call.env.ifname)?;
    let ips = addresses(&result, name.as_str());
    if ips.is_empty() {
        return Err(Error::config(format!("No IP addresses supplied on interface: {name}")));
    }
    let netns = pod::open(&call.env.netns)?;
    let _turn = take_turn(&call.env.netns)?;
    let mut rtnl = pod::rtnl(&netns)?;
    let dev = look(&mut rtnl, name)?.ok_or_else(|| {
        Error::internal(format!("failed to lookup {name:?}: Link not found", name = name.as_str()))
    })?;
    let before =
        rtnl.routes(RouteFilter { dev: Some(dev), table: Some(TABLE_MAIN), ..RouteFilter::default() });
    let before = before.map_err(internal)?;
    let mut undo = Undo::default();
    let netns = &netns;
    let fixed = conf.table.is_some();
    undo.push(move || {
        let mut rtnl = pod::rtnl(netns)?;
        let mut tables = forget(&mut rtnl, &ips_of(&result_of(call)?, name))?;
        tables.retain(|table| !fixed && *table != TABLE_MAIN);
        let routes =
            rtnl.routes(RouteFilter { dev: Some(dev), ..RouteFilter::default() }).map_err(internal)?;
        let mut made = routes.iter().filter(|route| tables.contains(&route.table));
        made.try_for_each(|route| rtnl.delete_route(route).map(|_| ()).map_err(internal))
    });
    let main = before.clone();
    undo.push(move || {
        let mut rtnl = pod::rtnl(netns)?;
        // Most are there; a route through a gateway needs that of its subnet first.
        let mut main = main;
        main.sort_by_key(|route| route.gateway.is_some());
        main.iter().for_each(|route| drop(rtnl.add_route(&kept(route, TABLE_MAIN), Put::Exclusive)));
        Ok(())
    });
    let moved = redirect(&mut rtnl, &conf, dev, &ips, &before);
    undo.finish(moved)?;
    Ok(result)
}

fn redirect(
    rtnl: &mut Rtnl,
    conf: &Sbr,
    dev: u32,
    ips: &[&IpConfig],
    before: &[RouteInfo],
) -> Result<(), Error> {
    let rules = rtnl.rules().map_err(internal)?;
    let used: Vec<u32> = rules.iter().map(|r| r.rule.table).collect();
    let mut taken = used.clone();
    for ip in ips {
        let family = Family::of_net(ip.address);
        let table = conf.table.unwrap_or_else(|| free_table(FIRST_TABLE, &taken));
        taken.push(table);
        let rules = rtnl.rules().map_err(internal)?;
        let own: Vec<u32> =
            rules.iter().filter(|r| r.rule.family == family).map(|r| r.rule.priority).collect();
        let rule = rule(ip.address, next_priority(&own), table);
        rtnl.add_rule(&rule).map_err(|e| internal(e).during("failed to add rule"))?;
        if conf.table.is_some() {
            continue;
        }
        if let Some(gateway) = conf.gateway(ip) {
            let any = if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
            let any = any.parse().map_err(internal)?;
            let route = RouteInfo { table, dev: Some(dev), gateway: Some(gateway), ..RouteInfo::to(any) };
            rtnl.add_route(&route, Put::Exclusive)
                .map_err(|e| internal(e).during(format!("failed to add default route to {gateway}")))?;
        }
        for route in before.iter().filter(|route| concerns(route, ip.address)) {
            rtnl.add_route(&kept(route, table), Put::Replace)
                .map_err(|e| internal(e).during(format!("failed to copy route {route}")))?;
        }
        if conf.source_hints {
            let hint = RouteInfo {
                dev: Some(dev),
                src: Some(ip.address.addr()),
                scope: Some(LINK),
                ..RouteInfo::to(ip.address)
            };
            rtnl.add_route(&hint, Put::Replace)
                .map_err(|e| internal(e).during(format!("failed to add route {hint}")))?;
        }
    }
    if conf.table.is_some() {
        return Ok(());
    }
    // At the end, as addresses of one subnet need the same routes; those through a gateway first.
    let mut main: Vec<&RouteInfo> = before.iter().collect();
    main.retain(|route| !conf.source_hints || route.scope != Some(LINK));
    main.sort_by_key(|route| route.gateway.is_none());
    main.iter().try_for_each(|route| {
        rtnl.delete_route(route).map(|_| ()).map_err(|e| internal(e).during("failed to move the routes"))
    })
}

/// A route of the subnet, through a gateway in it, or of the interface as such.
fn concerns(route: &RouteInfo, subnet: IpNet) -> bool {
    let inside = |ip: Option<std::net::IpAddr>| ip.is_some_and(|ip| subnet.contains(&ip));
    inside(route.src) || inside(route.gateway) || (route.src.is_none() && route.gateway.is_none())
}

/// The same route in a table, without what only the kernel may set.
fn kept(route: &RouteInfo, table: u32) -> RouteInfo {
    RouteInfo { table, flags: 0, onlink: false, ..route.clone() }
}

fn rule(address: IpNet, priority: u32, table: u32) -> Rule {
    let family = Family::of_net(address);
    let from = Some(IpNet::from(address.addr()));
    Rule { family, priority, from, to: None, iif: None, fwmark: None, table }
}

/// Removes the rules of the interface's addresses, as long as there is an interface.
///
/// # Errors
/// The kernel's refusal.
pub fn del(call: &Call) -> Result<(), Error> {
    let Some(netns) = pod::open_for_del(&call.env.netns)? else { return Ok(()) };
    let Ok(name) = IfName::new(&call.env.ifname) else { return Ok(()) };
    let mut rtnl = pod::rtnl(&netns)?;
    let mut ips = call.prev_result.as_ref().map(|result| ips_of(result, name)).unwrap_or_default();
    if let Some(dev) = look(&mut rtnl, name)? {
        ips.extend(rtnl.addresses(Some(dev)).map_err(internal)?.iter().map(|address| address.net));
    }
    forget(&mut rtnl, &ips).map(|_| ())
}

/// Fails unless each address has its rule.
///
/// # Errors
/// As said.
pub fn check(call: &Call) -> Result<(), Error> {
    let (conf, result) = read(call)?;
    let name = pod::interface(&call.env.ifname)?;
    let rules = pod::rtnl(&pod::open(&call.env.netns)?)?.rules().map_err(internal)?;
    ips_of(&result, name).into_iter().try_for_each(|address| {
        let from = Some(IpNet::from(address.addr()));
        let ours = |rule: &Rule| rule.from == from && conf.table.is_none_or(|table| table == rule.table);
        if rules.iter().any(|r| ours(&r.rule)) {
            return Ok(());
        }
        Err(Error::internal(format!("sbr: rule from {} lookup a table of its own not found", address.addr())))
    })
}

/// Whether the configuration is one we serve.
///
/// # Errors
/// It is not.
pub fn status(call: &Call) -> Result<(), Error> {
    parse(call).map(|_| ())
}

fn parse(call: &Call) -> Result<Sbr, Error> {
    Sbr::parse(&call.conf()).map_err(|e| Error::config(format!("failed to parse config: {e}")))
}

fn read(call: &Call) -> Result<(Sbr, CniResult), Error> {
    Ok((parse(call)?, result_of(call)?))
}

fn result_of(call: &Call) -> Result<CniResult, Error> {
    let missing = || Error::config("This plugin must be called as chained plugin");
    call.prev_result.clone().ok_or_else(missing)
}

fn ips_of(result: &CniResult, name: IfName) -> Vec<IpNet> {
    addresses(result, name.as_str()).iter().map(|ip| ip.address).collect()
}

fn look(rtnl: &mut Rtnl, name: IfName) -> Result<Option<u32>, Error> {
    Ok(rtnl.link_by_name(name).map_err(internal)?.map(|link| link.index))
}

/// Deletes the rules of addresses; gives the tables they led to.
fn forget(rtnl: &mut Rtnl, addresses: &[IpNet]) -> Result<Vec<u32>, Error> {
    let rules = rtnl.rules().map_err(internal)?;
    let mut tables = Vec::new();
    for found in rules {
        let own = |address: &IpNet| found.rule.from == Some(IpNet::from(address.addr()));
        if addresses.iter().any(own) {
            rtnl.delete_rule(&found.rule).map_err(|e| internal(e).during("failed to delete rule"))?;
            tables.push(found.rule.table);
        }
    }
    Ok(tables)
}

/// Calls for one namespace take turns, so that no two choose one table. The namespace's own file is locked,
/// and never made (B-32).
fn take_turn(path: &str) -> Result<File, Error> {
    let file =
        File::open(path).map_err(|e| Error::new(model::cni::code::NETNS, format!("open {path:?}: {e}")))?;
    lock::exclusive(&file, path)?;
    Ok(file)
}
