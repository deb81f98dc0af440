//! `vrf`: the pod's interface joins a VRF, a routing table of its own (cni.md 2.15).
//!
//! Chained. Takes the result before and gives it back unchanged. The kernel takes the interface down and up
//! for it, which costs it its routes and IPv6 addresses: both are put back, in the VRF's table.

use kernel::link::{Detail, LinkChange, LinkInfo, NewKind, NewLink, change};
use kernel::netlink::Message;
use kernel::rtnl::{AddrInfo, Put, RouteFilter, RouteInfo, Rtnl, addr, route};
use model::cni::vrf::{VrfConf, free_table};
use model::cni::{CniResult, Error};
use plan::state::TABLE_MAIN;

use crate::compare;
use crate::pod::{self, internal};
use crate::skel::Call;
use crate::undo::Undo;

/// `RTPROT_KERNEL`: routes that come with addresses.
const BY_KERNEL: u8 = 2;

/// Puts the interface into the VRF, which is made if it is not there.
///
/// # Errors
/// One sentence; the interface is as before.
pub fn add(call: &Call) -> Result<CniResult, Error> {
    join(call).map_err(|e| e.during("cmdAdd failed"))
}

fn join(call: &Call) -> Result<CniResult, Error> {
    let conf = parse(call)?;
    let result = compare::told(call, "missing prevResult from earlier plugin")?.clone();
    let name = pod::interface(&call.env.ifname)?;
    let mut inside = pod::rtnl(&pod::open(&call.env.netns)?)?;
    let missing = || Error::internal(format!("failed to lookup {:?}: Link not found", name.as_str()));
    let link = inside.link_by_name(name).map_err(internal)?.ok_or_else(missing)?;
    if link.master.is_some() {
        let master = link.link.master.map(|m| m.to_string()).unwrap_or_default();
        return Err(Error::internal(format!("interface {name} has already a master set: {master}")));
    }
    let before = Setting::read(&mut inside, &link)?;
    let mut undo = Undo::default();
    undo.push(|| leave(call, &conf));
    let joined = ensure_vrf(&mut inside, &conf)
        .and_then(|(vrf, table)| before.enter(&mut inside, &link, Some(vrf), table));
    undo.finish(joined.map(|()| result)).inspect_err(|_| {
        // As far as the interface is still there.
        let _ = before.enter(&mut inside, &link, None, TABLE_MAIN);
    })
}

/// What an interface loses when it changes its VRF.
struct Setting {
    addresses: Vec<AddrInfo>,
    routes: Vec<RouteInfo>,
}

impl Setting {
    fn read(inside: &mut Rtnl, link: &LinkInfo) -> Result<Setting, Error> {
        let mut addresses = inside.addresses(Some(link.index)).map_err(internal)?;
        addresses.retain(|a| a.net.addr().is_ipv6() && a.scope == 0);
        let main = RouteFilter { table: Some(TABLE_MAIN), dev: Some(link.index), ..RouteFilter::default() };
        let mut routes = inside.routes(main).map_err(internal)?;
        routes.retain(|route| route.protocol != BY_KERNEL && route.dev == Some(link.index));
        // Gateways have to be reachable first.
        routes.sort_by_key(|route| route.gateway.is_some());
        Ok(Setting { addresses, routes })
    }

    /// Enslaves the interface (to nobody with `None`) and puts back what that cost.
    fn enter(&self, inside: &mut Rtnl, link: &LinkInfo, vrf: Option<u32>, table: u32) -> Result<(), Error> {
        let name = link.link.name;
        let enslave = LinkChange { master: Some(vrf.unwrap_or(0)), ..LinkChange::default() };
        inside.set_link(link.index, &enslave).map_err(|e| internal(e).during(format!("enslave {name}")))?;
        let mut messages: Vec<Message> = Vec::new();
        for address in &self.addresses {
            // It was looked for before; other flags are the kernel's.
            let again = AddrInfo { flags: AddrInfo::NODAD, ..address.clone() };
            messages.push(addr::add(&again, Put::Replace));
        }
        for old in &self.routes {
            messages.push(route::add(&RouteInfo { table, ..old.clone() }, Put::Replace));
        }
        let results = inside.run(&messages);
        let done = results.into_iter().collect::<Result<(), _>>();
        done.map_err(|e| internal(e).during(format!("put addresses and routes of {name} back")))
    }
}

/// Index and table of the VRF.
fn ensure_vrf(inside: &mut Rtnl, conf: &VrfConf) -> Result<(u32, u32), Error> {
    let vrf = conf.vrf;
    if let Some(found) = inside.link_by_name(vrf).map_err(internal)? {
        return match (found.detail, conf.table) {
            (Detail::VrfTable(have), Some(want)) if have != want => {
                let msg = format!("VRF {vrf} already exist with different routing table {have}");
                Err(Error::internal(msg))
            }
            (Detail::VrfTable(table), _) => Ok((found.index, table)),
            _ => Err(Error::internal(format!("interface {vrf} exists and is no VRF"))),
        };
    }
    let table = match conf.table {
        Some(table) => table,
        None => {
            let links = inside.links().map_err(internal)?;
            let mut used: Vec<u32> = links.iter().filter_map(|link| table_of(link.detail)).collect();
            // A table somebody uses otherwise is no table of its own.
            used.extend(inside.rules().map_err(internal)?.iter().map(|info| info.rule.table));
            free_table(&used).ok_or_else(|| Error::internal("no free routing table"))?
        }
    };
    let failed = |e: kernel::Error| Error::internal(format!("failed to create VRF {vrf}: {e}"));
    let mut new = NewLink::new(vrf, NewKind::Vrf { table });
    new.up = true;
    inside.create_link(&new).map_err(|e| {
        let lacks = e.code() == Some(NOT_SUPPORTED);
        failed(e).details(if lacks { "the kernel lacks VRF devices: load the module vrf" } else { "" })
    })?;
    let made = inside.link_by_name(vrf).map_err(failed)?;
    let made = made.ok_or_else(|| Error::internal(format!("failed to create VRF {vrf}: it vanished")))?;
    Ok((made.index, table))
}

/// `EOPNOTSUPP`
const NOT_SUPPORTED: i32 = 95;

fn table_of(detail: Detail) -> Option<u32> {
    match detail {
        Detail::VrfTable(table) => Some(table),
        _ => None,
    }
}

/// Takes the interface out of the VRF, and the VRF away with its last one.
///
/// # Errors
/// The kernel's refusal; what is missing is no error.
pub fn del(call: &Call) -> Result<(), Error> {
    // Without a name there is nothing that could be ours.
    VrfConf::parse(&call.conf()).map_or(Ok(()), |conf| leave(call, &conf))
}

fn leave(call: &Call, conf: &VrfConf) -> Result<(), Error> {
    let Some(netns) = pod::open_for_del(&call.env.netns)? else { return Ok(()) };
    let mut inside = pod::rtnl(&netns)?;
    let links = inside.links().map_err(internal)?;
    let is_vrf = |link: &&LinkInfo| link.link.name == conf.vrf && table_of(link.detail).is_some();
    let Some(vrf) = links.iter().find(is_vrf) else { return Ok(()) };
    let (own, others): (Vec<&LinkInfo>, Vec<&LinkInfo>) = links
        .iter()
        .filter(|link| link.master == Some(vrf.index))
        .partition(|link| link.link.name.as_str() == call.env.ifname);
    let free = LinkChange { master: Some(0), ..LinkChange::default() };
    let messages: Vec<Message> = own.iter().flat_map(|link| change(link.index, &free)).collect();
    inside.run(&messages).into_iter().collect::<Result<(), _>>().map_err(internal)?;
    if others.is_empty() {
        inside.delete_link(vrf.index).map_err(internal)?;
    }
    Ok(())
}

/// The VRF is there and the interface in it.
///
/// # Errors
/// As said.
pub fn check(call: &Call) -> Result<(), Error> {
    let conf = parse(call)?;
    compare::told(call, "missing prevResult from earlier plugin")?;
    let mut inside = pod::rtnl(&pod::open(&call.env.netns)?)?;
    let vrf = inside.link_by_name(conf.vrf).map_err(internal)?;
    let vrf = vrf.filter(|link| table_of(link.detail).is_some());
    let vrf = vrf.ok_or_else(|| Error::internal(format!("VRF {} not found", conf.vrf)))?;
    if let (Some(want), Some(have)) = (conf.table, table_of(vrf.detail))
        && want != have
    {
        return Err(Error::internal(format!("VRF {} has routing table {have}, not {want}", conf.vrf)));
    }
    let name = pod::interface(&call.env.ifname)?;
    let link = inside.link_by_name(name).map_err(internal)?;
    match link.is_some_and(|link| link.master == Some(vrf.index)) {
        true => Ok(()),
        false => Err(Error::internal(format!("interface {name} is not in VRF {}", conf.vrf))),
    }
}

/// Fails if the configuration cannot be served.
///
/// # Errors
/// As said.
pub fn status(call: &Call) -> Result<(), Error> {
    parse(call).map(drop)
}

fn parse(call: &Call) -> Result<VrfConf, Error> {
    VrfConf::parse(&call.conf()).map_err(|e| Error::config(format!("failed to load netconf: {e}")))
}
