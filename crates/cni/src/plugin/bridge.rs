//! `bridge`: a veth pair between the pod and a bridge of the host (cni.md 2.1).
//!
//! Takes the network's document; gives the bridge, both ends, addresses and routes. What the address
//! manager can refuse is asked first, then the host's side is made, then the pod's, so that nothing has to
//! be taken back in the common failures.

mod check;
mod gateway;
mod host;

use kernel::Netns;
use kernel::link::{LinkChange, LinkInfo};
use kernel::rtnl::Rtnl;
use model::cni::bridge::BridgeConf;
use model::cni::{CniResult, Error, Interface, RouteConfig, Version, code};
use model::{Family, IfName};

use crate::delegate;
use crate::masquerade;
use crate::pod::{self, Setup, internal};
use crate::record::{self, Record};
use crate::skel::{Call, Verb};
use crate::undo::Undo;

pub use check::check;

const NAME: &str = "bridge";
/// Place of the pod's interface in the result.
const POD: i64 = 2;

/// Makes the attachment.
///
/// # Errors
/// One sentence; everything made so far has been taken back.
pub fn add(call: &Call) -> Result<CniResult, Error> {
    let conf = parse(call)?;
    let name = pod::interface(&call.env.ifname)?;
    let netns = pod::open(&call.env.netns)?;
    let mut pod = pod::rtnl(&netns)?;
    let mut host = Rtnl::open().map_err(internal)?;
    let peer = host::random_name()?;
    if record::read(NAME, call).is_some_and(|record| !record.is_complete) {
        // A killed ADD of ours; what it left is cleared away (B-36).
        del(call)?;
    }
    if pod.link_by_name(name).map_err(internal)?.is_some() {
        let (name, peer) = (name.as_str(), peer.as_str());
        let msg = format!("container veth name ({name:?}) peer provided ({peer:?}) already exists");
        return Err(Error::internal(msg).details("DEL the attachment first"));
    }
    let mut undo = Undo::default();
    let mut record = Record { host_interface: peer.to_string(), ..Record::new(NAME, call) };
    record.begin(call)?;
    undo.push(|| record::remove(NAME, call));
    let made = make(call, &conf, &netns, &mut pod, &mut host, &mut record, &mut undo);
    undo.finish(made)
}

/// The steps with side effects, each preceded by its inverse.
fn make<'a>(
    call: &'a Call,
    conf: &BridgeConf,
    netns: &Netns,
    pod: &mut Rtnl,
    host: &mut Rtnl,
    record: &mut Record,
    undo: &mut Undo<'a>,
) -> Result<CniResult, Error> {
    let name = pod::interface(&call.env.ifname)?;
    let peer = pod::interface(&record.host_interface)?;
    let mut result = ask_ipam(call, conf, undo)?;
    complete(conf, &mut result);
    let bridge = host::ensure_bridge(host, conf, &call.env.state_dir)?;
    let vlan_gateway = gateway::set_up(host, conf, &bridge, &result, &call.env.state_dir)?;
    undo.push(move || delete_host_end(peer));
    host::make_veth(host, conf, &bridge, netns, name, peer)?;
    let inside = pod.link_by_name(name).map_err(internal)?;
    let missing = || Error::internal(format!("failed to lookup {:?}", name.as_str()));
    let inside = inside.ok_or_else(missing)?;
    // The pod's end names the other one: one look-up is saved, each of which waits for the kernel's lock.
    let port = inside.lower.ok_or_else(missing)?;
    host::set_port(host, conf, port)?;
    result.interfaces = (0..POD).map(|_| Interface::default()).collect();
    result.interfaces.push(interface(call, &inside, &call.env.netns));
    if conf.ipam.is_empty() {
        if !conf.disable_container_interface {
            let up = LinkChange { up: Some(true), ..LinkChange::default() };
            pod.set_link(inside.index, &up).map_err(internal)?;
        }
    } else {
        let setup = Setup { name, result: &result, dad: conf.enable_dad };
        pod::configure(netns, pod, inside.index, &setup)?;
        record.addresses = result.ips.iter().map(|ip| ip.address).collect();
        if conf.ip_masq {
            undo.push(|| masquerade::remove(call));
            masquerade::add(call, &record.addresses)?;
        }
    }
    let port = pod::wait_up(host, port, !conf.disable_container_interface)?;
    host::keep_mtu(host, conf, &bridge)?;
    result.interfaces[0] = interface(call, &bridge, "");
    result.interfaces[1] = interface(call, &port, "");
    result.interfaces.extend(vlan_gateway.map(|link| interface(call, &link, "")));
    if let Some(dns) = &conf.dns {
        result.dns = dns.clone();
    }
    record.complete(call)?;
    Ok(result)
}

fn interface(call: &Call, link: &LinkInfo, sandbox: &str) -> Interface {
    Interface {
        name: link.link.name.to_string(),
        mac: link.link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: if call.version >= Version(1, 1, 0) { link.link.mtu.unwrap_or(0).into() } else { 0 },
        sandbox: sandbox.to_owned(),
        ..Interface::default()
    }
}

/// Takes the attachment away: the device, the address, the rules. While the kernel is at work on the
/// device, the rest is done.
///
/// # Errors
/// What could not be removed; what is missing is no error.
pub fn del(call: &Call) -> Result<(), Error> {
    let record = record::read(NAME, call);
    let silenced = silence(call, record.as_ref())?;
    let deleting = silenced.map(|(mut rtnl, link)| match rtnl.start_deleting(link.index) {
        Ok(deleting) => (rtnl, link, Some(deleting)),
        Err(_) => (rtnl, link, None),
    });
    let ipam = delegate::ipam_type(call).map_or(Ok(()), |kind| release(&kind, call));
    let rules = masquerade::remove(call);
    match deleting {
        Some((mut rtnl, _, Some(deleting))) => rtnl.await_deleted(deleting).map_err(internal)?,
        // No process could be made for it.
        Some((mut rtnl, link, None)) => rtnl.delete_link(link.index).map_err(internal)?,
        None => true,
    };
    ipam.and(rules)?;
    record::remove(NAME, call)
}

/// DEL of the address manager, also when an ADD clears away what a killed one left.
fn release(kind: &str, call: &Call) -> Result<(), Error> {
    delegate::call(kind, Verb::Del, &call.env, call.input.clone()).map(|_| ())
}

/// Takes the pod's interface down, so that its address may be given away before the device is gone. From
/// the pod if its namespace is there, else from the host by our record.
fn silence(call: &Call, record: Option<&Record>) -> Result<Option<(Rtnl, LinkInfo)>, Error> {
    let (mut rtnl, name) = match pod::open_for_del(&call.env.netns)? {
        Some(netns) => (pod::rtnl(&netns)?, call.env.ifname.as_str()),
        None => match record {
            Some(record) => (Rtnl::open().map_err(internal)?, record.host_interface.as_str()),
            None => return Ok(None),
        },
    };
    let Ok(name) = IfName::new(name) else { return Ok(None) };
    let Some(link) = rtnl.link_by_name(name).map_err(internal)? else { return Ok(None) };
    let down = LinkChange { up: Some(false), ..LinkChange::default() };
    // It may vanish meanwhile with its other end.
    let _ = rtnl.set_link(link.index, &down);
    Ok(Some((rtnl, link)))
}

/// Whether ADD could be served: the address manager says.
///
/// # Errors
/// The address manager's own, or a configuration we refuse.
pub fn status(call: &Call) -> Result<(), Error> {
    parse(call)?;
    match delegate::ipam_type(call) {
        Some(kind) => delegate::forward(&kind, call),
        None => Ok(()),
    }
}

/// Removes rules and records of attachments that are not valid, and has the address manager do the same.
///
/// # Errors
/// The first failure, after everything was tried.
pub fn gc(call: &Call) -> Result<(), Error> {
    let mut outcome = Ok(());
    if let Some(valid) = call.valid_attachments()? {
        outcome = masquerade::keep_only(call, &valid);
        for record in record::all(NAME, call) {
            if !valid.contains(&(record.container_id.clone(), record.ifname.clone())) {
                outcome = outcome.and(end(call, &record));
            }
        }
    }
    let ipam = delegate::ipam_type(call).map_or(Ok(()), |kind| delegate::forward(&kind, call));
    outcome.and(ipam)
}

/// What a dead attachment may have left on the host.
fn end(call: &Call, record: &Record) -> Result<(), Error> {
    if let Ok(name) = IfName::new(&record.host_interface) {
        delete_host_end(name)?;
    }
    record::remove_record(call, record)
}

fn parse(call: &Call) -> Result<BridgeConf, Error> {
    let failed = |e: String| Error::config(format!("failed to load netconf: {e}"));
    let conf = BridgeConf::parse(&call.conf(), &call.env.args).map_err(failed)?;
    if conf.mac_spoof_check {
        let msg = "macspoofchk true: this version does not filter source MAC addresses yet";
        return Err(Error::new(code::UNSUPPORTED, msg).details("leave macspoofchk out"));
    }
    masquerade::check_backend(&conf.ip_masq_backend)?;
    if conf.ipam.is_empty() && matches!(call.verb, Verb::Add) && call.needs_addresses() {
        let details = "a bridge without ipam needs cniVersion 0.3.0 or newer";
        return Err(Error::config("cannot convert: no valid IP addresses").details(details));
    }
    Ok(conf)
}

/// The address manager's answer, empty in layer-2 mode.
fn ask_ipam<'a>(call: &'a Call, conf: &BridgeConf, undo: &mut Undo<'a>) -> Result<CniResult, Error> {
    if conf.ipam.is_empty() {
        return Ok(CniResult::default());
    }
    let (kind, kind_of, input) = (conf.ipam.clone(), conf.ipam.as_str(), call.input.clone());
    let given = delegate::call(&kind, Verb::Add, &call.env, input.clone());
    // Also after a failure of its own, as the specification wants.
    let undo_ipam = move || delegate::call(&kind, Verb::Del, &call.env, input).map(|_| ());
    match given {
        Ok(result) => {
            undo.push(undo_ipam);
            let result = result.unwrap_or_default();
            let missing = || Error::internal("IPAM plugin returned missing IP config");
            if result.ips.is_empty() { Err(missing()) } else { Ok(result) }
        }
        Err(error) => {
            // host-local takes back itself; DEL would release what an earlier ADD holds.
            if kind_of != "host-local" {
                undo.push(undo_ipam);
            }
            Err(error)
        }
    }
}

/// Gateways and default routes (cni.md 2.1, step 5). A default route without gateway gets ours instead of
/// a twin (B-22).
fn complete(conf: &BridgeConf, result: &mut CniResult) {
    let CniResult { ips, routes, .. } = result;
    for ip in ips {
        ip.interface = Some(POD);
        if conf.is_gateway && ip.gateway.is_none() {
            ip.gateway = Some(model::cni::range::offset(ip.address.network(), 1));
        }
        if !conf.is_default_gateway {
            continue;
        }
        let family = Family::of_net(ip.address);
        let is_default = |r: &&mut RouteConfig| r.dst.prefix_len() == 0 && Family::of_net(r.dst) == family;
        let mut defaults = routes.iter_mut().filter(is_default).peekable();
        if defaults.peek().is_none() {
            let any = if ip.address.addr().is_ipv4() { "0.0.0.0/0" } else { "::/0" };
            routes.extend(any.parse().map(|any| RouteConfig::new(any, ip.gateway)));
        } else {
            defaults.filter(|r| r.gw.is_none()).for_each(|r| r.gw = ip.gateway);
        }
    }
}

/// Both ends of a veth go together.
fn delete_host_end(name: IfName) -> Result<(), Error> {
    let mut rtnl = Rtnl::open().map_err(internal)?;
    match rtnl.link_by_name(name).map_err(internal)? {
        Some(link) => rtnl.delete_link(link.index).map(|_| ()).map_err(internal),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
