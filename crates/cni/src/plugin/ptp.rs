//! `ptp`: a veth pair between pod and host, routed (cni.md 2.9).
//!
//! Takes the network's document; gives the host's end, the pod's end, addresses and routes. All of the
//! pod's traffic goes to the gateway's address, which every host end has; no two ends share a segment, so
//! nobody can hold an address twice and IPv6 looks for no duplicates.

use std::net::IpAddr;
use std::os::fd::AsFd;

use ipnet::IpNet;
use kernel::Netns;
use kernel::link::{End, NewKind, NewLink};
use kernel::netlink::Message;
use kernel::rtnl::{AddrInfo, Put, RouteInfo, Rtnl, addr, route};
use model::cni::ptp::PtpConf;
use model::cni::{CniResult, Error, Interface};
use model::{Family, IfName};

use crate::pod::{self, Setup, internal};
use crate::record::{self, Record, Rules};
use crate::skel::{Call, Verb};
use crate::undo::Undo;
use crate::{compare, device, forwarding, ipam, masquerade, pair};

const NAME: &str = "ptp";
/// Place of the pod's interface in the result.
const POD: i64 = 1;
/// `RT_SCOPE_HOST`
const SCOPE_HOST: u8 = 254;
/// `RT_SCOPE_LINK`
const SCOPE_LINK: u8 = 253;

/// Makes the attachment.
///
/// # Errors
/// One sentence; everything made so far has been taken back.
pub fn add(call: &Call) -> Result<CniResult, Error> {
    let conf = parse(call)?;
    let name = pod::interface(&call.env.ifname)?;
    let netns = pod::open(&call.env.netns)?;
    let peer = device::random_name()?;
    let known = record::read(NAME, call);
    if known.as_ref().is_some_and(|record| !record.is_complete) {
        // A killed ADD of ours; what it left is cleared away (B-36).
        del(call)?;
    }
    let (mut inside, taken) = pod::look(&netns, name)?;
    if taken {
        return Err(device::taken(name, peer).details("DEL the attachment first"));
    }
    if known.is_some() {
        // Its namespace ended without DEL.
        masquerade::remove(call)?;
    }
    let mut undo = Undo::default();
    let mut record = Record { host_interface: peer.to_string(), ..record::new(NAME, call) };
    record::begin(&record, call)?;
    undo.push(|| record::remove(NAME, call));
    let made = make(call, &conf, (&netns, &mut inside), (name, peer), &mut record, &mut undo);
    let made = made.and_then(|result| {
        record.addresses = result.ips.iter().map(|ip| ip.address).collect();
        record::complete(&record, call)?;
        Ok(result)
    });
    undo.finish(made)
}

/// The steps with side effects, each preceded by its inverse.
fn make<'a>(
    call: &'a Call,
    conf: &PtpConf,
    (netns, inside): (&Netns, &mut Rtnl),
    (name, peer): (IfName, IfName),
    record: &mut Record,
    undo: &mut Undo<'a>,
) -> Result<CniResult, Error> {
    let mut host = Rtnl::open().map_err(internal)?;
    let mut result = ipam::ask(call, &conf.ipam, undo)?;
    let gateways = gateways(&result)?;
    for family in Family::BOTH {
        if result.ips.iter().any(|ip| Family::of_net(ip.address) == family) {
            pod::forward(family)?;
        }
    }
    undo.push(move || device::delete_on_host(peer));
    let far = End { mtu: conf.mtu, netns: Some(netns.as_fd()), ..End::new(name) };
    let near = End { mtu: conf.mtu, ..End::new(peer) };
    let pair = NewLink { end: near, up: true, ..NewLink::new(peer, NewKind::Veth(far)) };
    device::make_veth(&mut host, &pair)?;
    let missing = || Error::internal(format!("failed to lookup {:?}", name.as_str()));
    let link = inside.link_by_name(name).map_err(internal)?.ok_or_else(missing)?;
    let port = link.lower.ok_or_else(missing)?;
    result.ips.iter_mut().for_each(|ip| ip.interface = Some(POD));
    result.interfaces = vec![Interface::default(), device::interface(call, &link, &call.env.netns)];
    let after =
        result.ips.iter().zip(&gateways).flat_map(|(ip, gw)| over_gateway(ip.address, *gw, link.index));
    let setup = Setup { after: after.collect(), ..Setup::of(name, &result) };
    pod::configure(netns, inside, link.index, &setup)?;
    for (ip, gateway) in result.ips.iter().zip(gateways) {
        set_up_host(&mut host, port, ip.address, gateway)?;
    }
    record.masquerade = Some(Rules::None);
    if conf.ip_masq {
        undo.push(|| masquerade::remove(call));
        let addresses: Vec<IpNet> = result.ips.iter().map(|ip| ip.address).collect();
        record.masquerade = masquerade::add_first(call, &addresses)?;
    }
    pod::await_carrier(netns, (inside, link.index), (&mut host, port));
    let port = pod::wait_up(None, &mut host, port, false)?;
    result.interfaces[0] = device::interface(call, &port, "");
    if let Some(dns) = &conf.dns {
        result.dns = dns.clone();
    }
    Ok(result)
}

/// Every address needs one.
fn gateways(result: &CniResult) -> Result<Vec<IpAddr>, Error> {
    let missing = |net: &IpNet| {
        let details = "name a gateway in the address manager's configuration: it becomes the host's address";
        Error::config(format!("address {net} has no gateway")).details(details)
    };
    result.ips.iter().map(|ip| ip.gateway.ok_or_else(|| missing(&ip.address))).collect()
}

/// Instead of the route to the subnet that comes with the address: everything through the gateway, even
/// the neighbours of the subnet.
fn over_gateway(address: IpNet, gateway: IpAddr, dev: u32) -> [(Message, String); 3] {
    let route = |dst: IpNet| RouteInfo { dev: Some(dev), ..RouteInfo::to(dst) };
    let direct = RouteInfo { protocol: 0, ..route(address) };
    let source = Some(address.addr());
    let to_gateway = RouteInfo { src: source, scope: Some(SCOPE_LINK), ..route(gateway.into()) };
    let subnet = RouteInfo { src: source, gateway: Some(gateway), ..route(address) };
    let failed = |route: &RouteInfo| format!("failed to add route {route}");
    [
        (route::delete(&direct), format!("failed to delete route {direct}")),
        (route::add(&to_gateway, Put::Append), failed(&to_gateway)),
        (route::add(&subnet, Put::Append), failed(&subnet)),
    ]
}

/// The gateway's address and the route to the pod on the host's end. A route that is there already leads
/// to another pod with the address, as upstream has it.
fn set_up_host(host: &mut Rtnl, port: u32, address: IpNet, gateway: IpAddr) -> Result<(), Error> {
    let mut own = AddrInfo::new(port, gateway.into());
    own.flags = if gateway.is_ipv6() { AddrInfo::NODAD } else { 0 };
    let to_pod = RouteInfo {
        dev: Some(port),
        scope: address.addr().is_ipv4().then_some(SCOPE_HOST),
        ..RouteInfo::to(address.addr().into())
    };
    let messages = [addr::add(&own, Put::Exclusive), route::add(&to_pod, Put::Exclusive)];
    let results = host.run(&messages);
    for (result, what) in results.into_iter().zip(["address", "route"]) {
        match result {
            Err(e) if what == "route" && e.code == EXISTS => {}
            other => {
                other.map_err(|e| internal(e).during(format!("failed to add IP {what} to host veth")))?
            }
        }
    }
    Ok(())
}

/// `EEXIST`
const EXISTS: i32 = 17;

/// Takes the attachment away.
///
/// # Errors
/// What could not be removed; what is missing is no error.
pub fn del(call: &Call) -> Result<(), Error> {
    pair::del(NAME, call)
}

/// Compares the attachment with the result of its ADD.
///
/// # Errors
/// The first difference.
pub fn check(call: &Call) -> Result<(), Error> {
    let conf = parse(call)?;
    ipam::forward(call)?;
    let result = compare::told(call, "ptp: Required prevResult missing")?;
    let mut inside = pod::rtnl(&pod::open(&call.env.netns)?)?;
    let link = pair::check_pod(&mut inside, call, result)?;
    compare::addresses(&mut inside, &link, result)?;
    compare::routes(&mut inside, result)?;
    if conf.ip_masq { masquerade::check(call) } else { Ok(()) }
}

/// Whether ADD could be served: the address manager says, and the host has to forward.
///
/// # Errors
/// The address manager's own, code 51, or a configuration we refuse.
pub fn status(call: &Call) -> Result<(), Error> {
    parse(call)?;
    forwarding::status(NAME, call)?;
    ipam::forward(call)
}

/// Removes what attachments that are not valid left, and has the address manager do the same.
///
/// # Errors
/// The first failure, after everything was tried.
pub fn gc(call: &Call) -> Result<(), Error> {
    pair::gc(NAME, call)
}

fn parse(call: &Call) -> Result<PtpConf, Error> {
    let conf = PtpConf::parse(&call.conf());
    let conf = conf.map_err(|e| Error::config(format!("failed to load netconf: {e}")))?;
    masquerade::check_backend(&conf.ip_masq_backend)?;
    if conf.ipam.is_empty() && call.verb != Verb::Del {
        return Err(Error::config("no plugin name provided").details("ptp needs ipam with a type"));
    }
    Ok(conf)
}
