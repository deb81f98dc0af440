//! CHECK: both ends, routes, rules, neighbours, translations (cni.md 2.19.7).

use kernel::rtnl::{NeighInfo, RouteFilter, RouteInfo, Rtnl};
use model::cni::Error;
use model::cni::veth_to_host::Mode;

use super::plan::Facts;
use super::{end_of, find, host_end, host_interface, parse, pod_addresses, rules, table};
use crate::pod::{self, internal};
use crate::skel::Call;
use crate::{compare, masquerade};

/// Compares the attachment with the result of its ADD.
///
/// # Errors
/// The first difference.
pub fn check(call: &Call) -> Result<(), Error> {
    let conf = parse(call)?;
    let result = compare::told(call, "Required prevResult missing")?;
    let mut inside = pod::rtnl(&pod::open(&call.env.netns)?)?;
    let mut host = Rtnl::open().map_err(internal)?;
    let (_, addresses) = host_interface(&mut host, &conf)?;
    let (pod, _) = pod_addresses(result, &addresses)?;
    let inner = find(&mut inside, conf.container_interface)?;
    let outer = find(&mut host, host_end(call, conf.container_interface)?)?;
    if inner.lower != Some(outer.index) || outer.lower != Some(inner.index) {
        let (inner, outer) = (inner.link.name, outer.link.name);
        return Err(Error::internal(format!("{inner} in the pod and {outer} on the host are no pair")));
    }
    for link in [&inner, &outer] {
        let name = link.link.name;
        let told = result.interfaces.iter().find(|i| i.name == name.as_str());
        let told = told.ok_or_else(|| Error::internal(format!("interface {name} is not in prevResult")))?;
        compare::same_mac(link, told, "Interface")?;
        if !link.link.up {
            return Err(Error::internal(format!("interface {name} is down")));
        }
    }
    let facts = Facts {
        conf: &conf,
        pod,
        host: addresses,
        routes: &result.routes,
        outer: end_of(&outer)?,
        inner: end_of(&inner)?,
    };
    let (pod_neighbours, host_neighbours) = facts.neighbours();
    has_routes(&mut inside, &facts.pod_routes(), "pod")?;
    has_neighbours(&mut inside, &pod_neighbours, "pod")?;
    has_routes(&mut host, &facts.host_routes(), "host")?;
    has_neighbours(&mut host, &host_neighbours, "host")?;
    if conf.bounces() {
        check_table(&mut host, &facts)?;
    }
    rules::check(call, &facts)?;
    if conf.mode == Mode::Tutorial && conf.ip_masq { masquerade::check(call) } else { Ok(()) }
}

fn check_table(host: &mut Rtnl, facts: &Facts<'_>) -> Result<(), Error> {
    let have = host.rules().map_err(internal)?;
    for family in facts.families() {
        let outer = facts.outer.name;
        let found = have.iter().find(|info| info.rule.family == family && table::leads_from(info, outer));
        let missing = || Error::internal(format!("rule for packets from {outer} not found ({family})"));
        let number = found.ok_or_else(missing)?.rule.table;
        let mut wanted = facts.table_routes(number);
        wanted.retain(|route| model::Family::of_net(route.dst) == family);
        has_routes(host, &wanted, "host")?;
    }
    Ok(())
}

fn has_routes(rtnl: &mut Rtnl, wanted: &[RouteInfo], place: &str) -> Result<(), Error> {
    let Some(first) = wanted.first() else { return Ok(()) };
    let in_table = RouteFilter { table: Some(first.table), ..RouteFilter::default() };
    let have = rtnl.routes(in_table).map_err(internal)?;
    let same = |a: &RouteInfo, b: &RouteInfo| (a.dst, a.gateway, a.dev) == (b.dst, b.gateway, b.dev);
    match wanted.iter().find(|wanted| !have.iter().any(|have| same(have, wanted))) {
        Some(missing) => {
            Err(Error::internal(format!("Expected Route {{{missing}}} not found on the {place}")))
        }
        None => Ok(()),
    }
}

fn has_neighbours(rtnl: &mut Rtnl, wanted: &[NeighInfo], place: &str) -> Result<(), Error> {
    let Some(first) = wanted.first() else { return Ok(()) };
    let have = rtnl.neighbours(Some(first.index)).map_err(internal)?;
    let same = |a: &NeighInfo, b: &NeighInfo| (a.dst, a.mac, a.state) == (b.dst, b.mac, b.state);
    match wanted.iter().find(|wanted| !have.iter().any(|have| same(have, wanted))) {
        Some(missing) => {
            let dst = missing.dst;
            Err(Error::internal(format!("permanent neighbour {dst} not found on the {place}")))
        }
        None => Ok(()),
    }
}
