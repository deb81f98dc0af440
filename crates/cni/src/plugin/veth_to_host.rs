//! `veth-to-host`: a second link to the host for a pod that sits in the underlay (cni.md 2.19).
//!
//! Chained after macvlan or ipvlan. Takes the result before; gives it back with both ends of a pair, over
//! which the pod reaches the host and its services, and the host the pod. Everything on the host goes by
//! names derived from (network, container, interface), so that DEL needs neither the pod nor a result.

mod check;
mod plan;
mod rules;
mod table;

use std::io::Write;
use std::os::fd::AsFd;

use ipnet::IpNet;
use kernel::Netns;
use kernel::link::{End, LinkChange, LinkInfo, NewKind, NewLink, change};
use kernel::netlink::Message;
use kernel::rtnl::{Put, RouteFilter, RouteInfo, Rtnl, neigh, route};
use kernel::sysctl;
use model::cni::flannel::SUBNET_FILE;
use model::cni::veth_to_host::{Mode, SERVICES_SUFFIX, VethToHostConf};
use model::cni::{CniResult, Error, Members, RouteConfig, code};
use model::{Family, IfName};
use plan::{Facts, PairEnd};
use sha2::{Digest, Sha256};

use crate::pod::{self, internal};
use crate::record::{self, Record};
use crate::skel::Call;
use crate::undo::Undo;
use crate::{device, forwarding, masquerade};

pub use check::check;

const NAME: &str = "veth-to-host";

/// Makes the second link.
///
/// # Errors
/// One sentence; everything made so far has been taken back.
pub fn add(call: &Call) -> Result<CniResult, Error> {
    let conf = parse(call)?;
    let before = call.prev_result.clone();
    let before = before.ok_or_else(|| Error::config("must be called as chained plugin"))?;
    let underlay = pod::interface(&call.env.ifname)?;
    let name = conf.container_interface;
    if name == underlay {
        let msg = format!("containerInterface {name}: the pod's own interface has that name");
        return Err(Error::config(msg));
    }
    let netns = pod::open(&call.env.netns)?;
    let mut inside = pod::rtnl(&netns)?;
    let mut host = Rtnl::open().map_err(internal)?;
    let (lower, addresses) = host_interface(&mut host, &conf)?;
    let (ours, theirs) = pod_addresses(&before, &addresses)?;
    if !theirs.is_empty() {
        let list: Vec<String> = theirs.iter().map(IpNet::to_string).collect();
        let (list, dev) = (list.join(", "), conf.host_interface);
        let _ = writeln!(std::io::stderr().lock(), "{dev} has no address of the family of {list}: left out");
    }
    if record::read(NAME, call).is_some_and(|record| !record.is_complete) {
        // A killed ADD of ours; what it left is cleared away (B-36).
        del(call)?;
    }
    let peer = host_end(call, name)?;
    if inside.link_by_name(name).map_err(internal)?.is_some() {
        return Err(device::taken(name, peer).details("DEL the attachment first"));
    }
    let missing = || Error::internal(format!("failed to lookup {:?}: Link not found", underlay.as_str()));
    let own = inside.link_by_name(underlay).map_err(internal)?.ok_or_else(missing)?;
    let record =
        Record { host_interface: peer.to_string(), addresses: ours.clone(), ..record::new(NAME, call) };
    record::begin(&record, call)?;
    let mut undo = Undo::default();
    undo.push(|| record::remove(NAME, call));
    undo.push(move || clear(call, peer));
    let mtu = conf.mtu.or_else(|| lower.link.mtu.min(own.link.mtu));
    let pair = (End { mtu, netns: Some(netns.as_fd()), ..End::new(name) }, End { mtu, ..End::new(peer) });
    let mut place = Place { call, conf: &conf, netns: &netns, inside, host };
    let made = place.make(pair, before, (ours, addresses), underlay, &mut undo).and_then(|result| {
        record::complete(&record, call)?;
        Ok(result)
    });
    undo.finish(made)
}

/// Where the link is made.
struct Place<'a, 'b> {
    call: &'a Call,
    conf: &'b VethToHostConf,
    netns: &'b Netns,
    inside: Rtnl,
    host: Rtnl,
}

impl<'a> Place<'a, '_> {
    fn make(
        &mut self,
        (far, near): (End<'_>, End<'_>),
        mut result: CniResult,
        (ours, addresses): (Vec<IpNet>, Vec<std::net::IpAddr>),
        underlay: IfName,
        undo: &mut Undo<'a>,
    ) -> Result<CniResult, Error> {
        let (call, conf) = (self.call, self.conf);
        let pair = NewLink { end: near, up: true, ..NewLink::new(near.name, NewKind::Veth(far)) };
        device::make_veth(&mut self.host, &pair)?;
        let inner = find(&mut self.inside, far.name)?;
        let outer = find(&mut self.host, near.name)?;
        let routes = result.routes.clone();
        let facts = Facts {
            conf,
            pod: ours,
            host: addresses,
            routes: &routes,
            outer: end_of(&outer)?,
            inner: end_of(&inner)?,
        };
        self.set_parameters(&facts)?;
        let (pod_neighbours, host_neighbours) = facts.neighbours();
        let mut batch = Batch::default();
        for neighbour in &host_neighbours {
            batch.push(neigh::add(neighbour, Put::Replace), || format!("add neighbour {}", neighbour.dst));
        }
        for to_pod in facts.host_routes() {
            batch.push(route::add(&to_pod, Put::Exclusive), || {
                format!("failed to add host route to {}, which another link may have", to_pod.dst)
            });
        }
        batch.send(&mut self.host)?;
        if conf.bounces() {
            let table = table::claim(&mut self.host, call, &facts)?;
            let mut batch = Batch::default();
            for back in facts.table_routes(table) {
                batch.push(route::add(&back, Put::Exclusive), || format!("failed to add route {back}"));
            }
            batch.send(&mut self.host)?;
        }
        self.set_up_pod(&facts, &pod_neighbours, undo)?;
        rules::add(call, &facts)?;
        if conf.mode == Mode::Tutorial && conf.ip_masq {
            let hosts: Vec<IpNet> = facts.pod.iter().map(|net| net.addr().into()).collect();
            masquerade::add(call, &hosts)?;
        }
        if conf.pod_forwards() {
            rules::masquerade_in_pod(call, self.netns, &facts, underlay)?;
        }
        pod::await_carrier(self.netns, (&mut self.inside, inner.index), (&mut self.host, outer.index));
        result.interfaces.push(device::interface(call, &outer, ""));
        result.interfaces.push(device::interface(call, &inner, &call.env.netns));
        if conf.mode == Mode::Split {
            let over = facts.pod_routes().into_iter().filter(|r| r.gateway.is_some());
            result.routes.extend(over.map(|r| RouteConfig::new(r.dst, r.gateway)));
        }
        Ok(result)
    }

    fn set_parameters(&self, facts: &Facts<'_>) -> Result<(), Error> {
        let (conf, outer, inner) = (self.conf, facts.outer.name, facts.inner.name);
        for key in ["accept_ra", "accept_dad"] {
            let _ = sysctl::set(&format!("net/ipv6/conf/{outer}/{key}"), "0");
        }
        if conf.mode != Mode::Tutorial {
            // What comes back over the pod passes: its source is looked up in the pod's own table.
            sysctl::set(&format!("net/ipv4/conf/{outer}/rp_filter"), "1").map_err(internal)?;
        }
        if conf.ip_masq || conf.mode == Mode::Split {
            facts.families().try_for_each(pod::forward)?;
        }
        if conf.node_ports.is_some() {
            let key = format!("net/ipv4/conf/{}/rp_filter", conf.host_interface);
            sysctl::write(&key, "2").map_err(internal)?;
        }
        let families: Vec<Family> = facts.families().collect();
        let in_pod = || -> Result<(), Error> {
            for key in ["accept_ra", "accept_dad"] {
                let _ = sysctl::set(&format!("net/ipv6/conf/{inner}/{key}"), "0");
            }
            if families.contains(&Family::V6) {
                let key = format!("net/ipv6/conf/{inner}/disable_ipv6");
                sysctl::write(&key, "0").map_err(internal)?;
            }
            if conf.pod_forwards() { families.iter().try_for_each(|f| pod::forward(*f)) } else { Ok(()) }
        };
        self.netns.visit(in_pod).map_err(internal)?
    }

    /// Neighbours and routes; default routes over the underlay make way where all goes over the host.
    fn set_up_pod(
        &mut self,
        facts: &Facts<'_>,
        neighbours: &[kernel::rtnl::NeighInfo],
        undo: &mut Undo<'a>,
    ) -> Result<(), Error> {
        let mut batch = Batch::default();
        let up = LinkChange { up: Some(true), ..LinkChange::default() };
        for message in change(facts.inner.index, &up) {
            batch.push(message, || format!("failed to set {:?} up", facts.inner.name.as_str()));
        }
        for neighbour in neighbours {
            batch.push(neigh::add(neighbour, Put::Replace), || format!("add neighbour {}", neighbour.dst));
        }
        let replaced = self.replaced(facts)?;
        for old in &replaced {
            batch.push(route::delete(old), || format!("failed to delete route {old}"));
        }
        let call = self.call;
        undo.push(move || restore(call, &replaced));
        for wanted in facts.pod_routes() {
            batch.push(route::add(&wanted, Put::Exclusive), || {
                let details = "the pod has another route there";
                format!("failed to add route {wanted} in the pod; {details}")
            });
        }
        batch.send(&mut self.inside)
    }

    /// Routes of the pod to the very destinations it shall reach over the host.
    fn replaced(&mut self, facts: &Facts<'_>) -> Result<Vec<RouteInfo>, Error> {
        let over = facts.over_host();
        let main = RouteFilter { table: Some(::plan::state::TABLE_MAIN), ..RouteFilter::default() };
        let mut routes = self.inside.routes(main).map_err(internal)?;
        routes.retain(|route| route.kind == UNICAST && over.contains(&route.dst));
        Ok(routes)
    }
}

/// `RTN_UNICAST`
const UNICAST: u8 = 1;

/// Puts back the routes that made way. The pod may be gone.
fn restore(call: &Call, routes: &[RouteInfo]) -> Result<(), Error> {
    let Some(netns) = pod::open_for_del(&call.env.netns)? else { return Ok(()) };
    let mut inside = pod::rtnl(&netns)?;
    for old in routes {
        // Not if nothing was deleted.
        let _ = inside.add_route(old, Put::Replace);
    }
    Ok(())
}

/// Messages of one request, each with what is said if it fails.
#[derive(Default)]
struct Batch {
    messages: Vec<Message>,
    actions: Vec<String>,
}

impl Batch {
    fn push(&mut self, message: Message, action: impl FnOnce() -> String) {
        self.messages.push(message);
        self.actions.push(action());
    }

    fn send(self, rtnl: &mut Rtnl) -> Result<(), Error> {
        let results = rtnl.run(&self.messages).into_iter().zip(self.actions);
        results.into_iter().try_for_each(|(result, action)| result.map_err(|e| internal(e).during(action)))
    }
}

/// The pair's end on the host: `veth` and eight hex digits, as tools look for, but derived.
fn host_end(call: &Call, container_interface: IfName) -> Result<IfName, Error> {
    let text = format!("{}\0{}\0{container_interface}", call.network, call.env.container_id);
    let [a, b, c, d, ..] = Sha256::digest(text.as_bytes())[..] else { return Err(internal("SHA-256")) };
    IfName::new(&format!("veth{a:02x}{b:02x}{c:02x}{d:02x}")).map_err(internal)
}

/// The host's interface in the underlay and its addresses; those of the link alone are of no use.
fn host_interface(
    host: &mut Rtnl,
    conf: &VethToHostConf,
) -> Result<(LinkInfo, Vec<std::net::IpAddr>), Error> {
    let name = conf.host_interface;
    let link = host.link_by_name(name).map_err(internal)?;
    let missing = || {
        let details = "name the host's interface in the underlay in \"hostInterface\"; `ip link` lists them";
        Error::internal(format!("failed to lookup {:?}: Link not found", name.as_str())).details(details)
    };
    let link = link.ok_or_else(missing)?;
    let addresses = host.addresses(Some(link.index)).map_err(internal)?;
    let global: Vec<_> = addresses.iter().filter(|a| a.scope == 0).map(|a| a.net.addr()).collect();
    if global.is_empty() {
        let details = format!("{name} needs a global address, which the pod sends to");
        let msg = format!("failed to get host IP addresses for {:?}: it has none", name.as_str());
        return Err(Error::internal(msg).details(details));
    }
    Ok((link, global))
}

/// Addresses of the result, those of families the host has first.
fn pod_addresses(result: &CniResult, host: &[std::net::IpAddr]) -> Result<(Vec<IpNet>, Vec<IpNet>), Error> {
    let all: Vec<IpNet> = result.ips.iter().map(|ip| ip.address).collect();
    if all.is_empty() {
        return Err(Error::config("got no container IPs").details("the plugin before has to give addresses"));
    }
    let common = |net: &IpNet| host.iter().any(|ip| Family::of(*ip) == Family::of_net(*net));
    let (ours, theirs): (Vec<IpNet>, Vec<IpNet>) = all.into_iter().partition(common);
    if ours.is_empty() {
        let msg = "failed to get host IP addresses: hostInterface has none of the pod's families";
        return Err(Error::internal(msg));
    }
    Ok((ours, theirs))
}

fn find(rtnl: &mut Rtnl, name: IfName) -> Result<LinkInfo, Error> {
    let missing = || Error::internal(format!("failed to lookup {:?}: Link not found", name.as_str()));
    rtnl.link_by_name(name).map_err(internal)?.ok_or_else(missing)
}

fn end_of(link: &LinkInfo) -> Result<PairEnd, Error> {
    let name = link.link.name;
    let mac = link.link.mac.ok_or_else(|| internal(format!("{name} has no hardware address")))?;
    Ok(PairEnd { name, index: link.index, mac })
}

/// Takes the second link away, and all that is on the host because of it.
///
/// # Errors
/// What could not be removed; what is missing is no error.
pub fn del(call: &Call) -> Result<(), Error> {
    let configured = call.conf().string("containerInterface").ok().and_then(|n| IfName::new(&n).ok());
    let recorded = record::read(NAME, call).and_then(|r| IfName::new(&r.host_interface).ok());
    let derived = configured.map(|name| host_end(call, name)).transpose()?;
    let mut outcome = Ok(());
    let peers = [recorded, derived.filter(|d| Some(*d) != recorded), foreign(call, configured)?];
    for peer in peers.into_iter().flatten() {
        outcome = outcome.and(clear(call, peer));
    }
    outcome?;
    record::remove(NAME, call)
}

/// The host's end of a pair that the model made, under a name of its own.
fn foreign(call: &Call, configured: Option<IfName>) -> Result<Option<IfName>, Error> {
    let (Some(name), Some(netns)) = (configured, pod::open_for_del(&call.env.netns)?) else {
        return Ok(None);
    };
    let Some(inner) = pod::rtnl(&netns)?.link_by_name(name).map_err(internal)? else { return Ok(None) };
    let Some(peer) = inner.lower else { return Ok(None) };
    let outer = Rtnl::open().map_err(internal)?.link_by_index(peer).map_err(internal)?;
    let is_pair = |outer: &LinkInfo| outer.link.kind.name() == "veth" && outer.lower == Some(inner.index);
    Ok(outer.filter(is_pair).map(|outer| outer.link.name))
}

/// Everything about one host end. With the device go the routes, the neighbours and the pod's end.
fn clear(call: &Call, peer: IfName) -> Result<(), Error> {
    let gone = device::remove_named(Rtnl::open().map_err(internal)?, peer, Some(&call.nft))?.finish();
    let rules = rules::remove(call, NAME);
    let published = masquerade::remove(call);
    let table = table::release(call, peer);
    gone.and(rules).and(published).and(table)
}

/// Whether ADD could be served.
///
/// # Errors
/// Code 50: the host's interface is missing, down or without address; 51: forwarding is off.
pub fn status(call: &Call) -> Result<(), Error> {
    let conf = parse(call)?;
    let mut host = Rtnl::open().map_err(internal)?;
    let not_ready = |e: Error| Error { code: code::NOT_READY, ..e };
    let (link, _) = host_interface(&mut host, &conf).map_err(not_ready)?;
    let name = link.link.name;
    if !link.link.up {
        return Err(not_ready(
            internal(format!("hostInterface {name} is down")).details(format!("ip link set {name} up")),
        ));
    }
    if conf.ip_masq || conf.mode == Mode::Split { forwarding::status(NAME, call) } else { Ok(()) }
}

/// Removes what attachments that are not valid left on the host: devices, rules, tables, translations.
///
/// # Errors
/// The first failure, after everything was tried.
pub fn gc(call: &Call) -> Result<(), Error> {
    let Some(valid) = call.valid_attachments()? else { return Ok(()) };
    let mut outcome = rules::keep_only(call, &valid).and(masquerade::keep_only(call, &valid));
    for record in record::stale(NAME, call, &valid) {
        let name = IfName::new(&record.host_interface).ok();
        let released = name.map_or(Ok(()), |name| table::release(call, name));
        outcome = outcome.and(released).and(device::end(call, &record));
    }
    outcome.and(table::sweep(call))
}

fn parse(call: &Call) -> Result<VethToHostConf, Error> {
    let failed = |e: String| Error::config(format!("failed to load netconf: {e}"));
    let conf = call.conf();
    let told =
        if VethToHostConf::asks_agent(&conf) { told_by_agent(&conf).map_err(failed)? } else { String::new() };
    VethToHostConf::parse(&conf, &told).map_err(failed)
}

/// The networks of the services, which the agent knows where it was told (decision 0167).
fn told_by_agent(conf: &Members<'_>) -> Result<String, String> {
    let given = conf.string("subnetFile")?;
    let file = if given.is_empty() { SUBNET_FILE } else { &given };
    Ok(std::fs::read_to_string(format!("{file}{SERVICES_SUFFIX}")).unwrap_or_default())
}
