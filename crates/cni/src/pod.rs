//! The pod's side: its namespace, and its interface set up from a result (cni.md 2.0.1, 2.0.3).

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use kernel::link::{self, LinkChange, LinkInfo};
use kernel::netlink::{Message, Protocol, Socket};
use kernel::rtnl::{AddrInfo, Put, RouteInfo, Rtnl, addr, route};
use kernel::{Netns, NetnsError, sysctl};
use model::cni::{CniResult, Error, IpConfig, RouteConfig, code};
use model::{Family, IfName};

/// `RTNLGRP_IPV6_IFADDR`
const GROUP_ADDRESS_V6: u32 = 9;
/// `RTNLGRP_LINK`
const GROUP_LINK: u32 = 1;
/// `RTM_SETLINK`
const RTM_SETLINK: u16 = 19;
/// `RTM_DELROUTE`
const RTM_DELROUTE: u16 = 25;
/// `ESRCH`
const NO_SUCH_ROUTE: i32 = 3;

/// A failure of the kernel's without a code of its own.
pub fn internal(error: impl std::fmt::Display) -> Error {
    Error::internal(error.to_string())
}

/// Opens the pod's namespace.
///
/// # Errors
/// The path is missing or no network namespace (code 8).
pub fn open(path: &str) -> Result<Netns, Error> {
    Netns::open(Path::new(path))
        .map_err(|e| Error::new(code::NETNS, format!("failed to open netns {path:?}: {e}")))
}

/// Opens the pod's namespace for DEL: `None` if there is nothing left to do in it, because the path is
/// empty, missing, or a plain file that a failed unmount left.
///
/// # Errors
/// It is there and cannot be opened.
pub fn open_for_del(path: &str) -> Result<Option<Netns>, Error> {
    if path.is_empty() {
        return Ok(None);
    }
    match Netns::open(Path::new(path)) {
        Ok(netns) => Ok(Some(netns)),
        Err(NetnsError::Missing(_) | NetnsError::NotANamespace { .. } | NetnsError::OtherKind(_)) => Ok(None),
        // A process that ended between two look-ups.
        Err(NetnsError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::new(code::NETNS, format!("failed to open netns {path:?}: {e}"))),
    }
}

/// A socket in the pod's namespace.
///
/// # Errors
/// It cannot be entered, or no socket be made.
pub fn rtnl(netns: &Netns) -> Result<Rtnl, Error> {
    netns.visit(Rtnl::open).map_err(internal)?.map_err(internal)
}

/// A socket in the pod's namespace, and whether it has a device of that name. Seen in the list below `/proc`, which the
/// kernel gives without its lock of all network configuration; asked for only where that cannot be read.
///
/// # Errors
/// As [`rtnl`], or the kernel's refusal.
pub fn look(netns: &Netns, name: IfName) -> Result<(Rtnl, bool), Error> {
    let list = || std::fs::read_to_string("/proc/thread-self/net/dev");
    let (rtnl, list) = netns.visit(|| (Rtnl::open(), list())).map_err(internal)?;
    let mut rtnl = rtnl.map_err(internal)?;
    let taken = match list {
        // Two lines of headings, then `  eth0: ` and numbers.
        Ok(list) => list.lines().skip(2).any(|line| line.trim_start().starts_with(&format!("{name}:"))),
        Err(_) => rtnl.link_by_name(name).map_err(internal)?.is_some(),
    };
    Ok((rtnl, taken))
}

/// `CNI_IFNAME` as the kernel takes it.
///
/// # Errors
/// The kernel's rules are narrower than the protocol's.
pub fn interface(name: &str) -> Result<IfName, Error> {
    IfName::new(name).map_err(|e| Error::new(code::ENVIRONMENT, e.to_string()))
}

/// IPv6 duplicate address detection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dad {
    /// None: nobody else can have the address.
    Off,
    /// It is done, and the address used meanwhile (RFC 4429). Waited for where the kernel cannot.
    Optimistic,
    /// It is waited for.
    Wait,
}

/// How the pod's interface is set up.
pub struct Setup<'a> {
    /// Interface in the pod.
    pub name: IfName,
    /// Addresses (with the index of the interface) and routes.
    pub result: &'a CniResult,
    /// IPv6 duplicate address detection.
    pub dad: Dad,
    /// Tell the neighbours of IPv6 addresses when the link comes up, as of IPv4 ones always.
    pub notify_v6: bool,
    /// Sent in the same batch, after the routes: message and what is said if it fails.
    pub after: Vec<(Message, String)>,
}

impl<'a> Setup<'a> {
    /// For an interface that nobody else can be in conflict with.
    pub fn of(name: IfName, result: &'a CniResult) -> Setup<'a> {
        Setup { name, result, dad: Dad::Off, notify_v6: false, after: Vec::new() }
    }
}

/// Sets the interface up: parameters, addresses, link up, routes; the last three in one batch.
///
/// # Errors
/// The first refusal of the kernel.
pub fn configure(netns: &Netns, rtnl: &mut Rtnl, index: u32, setup: &Setup<'_>) -> Result<(), Error> {
    let Setup { name, result, .. } = setup;
    let ips = own_addresses(*name, result)?;
    ips.iter().try_for_each(|ip| has_family_of(ip.address))?;
    let v6 = ips.iter().any(|ip| ip.address.addr().is_ipv6());
    let dad = netns.visit(|| set_parameters(setup, v6)).map_err(internal)??;
    // A gratuitous ARP goes out when the link comes up, so that nobody keeps the last owner's hardware address.
    // Not by the parameter's file: to find that, the kernel compares it with those of all namespaces.
    let mut messages = vec![link::arp_notify(index)];
    let mut actions = vec![format!("failed to have {:?} announce its addresses", name.as_str())];
    for ip in &ips {
        let mut address = AddrInfo::new(index, ip.address);
        address.flags = match dad {
            _ if ip.address.addr().is_ipv4() => 0,
            Dad::Off => AddrInfo::NODAD,
            Dad::Optimistic => AddrInfo::OPTIMISTIC,
            Dad::Wait => 0,
        };
        address.broadcast = broadcast(ip.address);
        messages.push(addr::add(&address, Put::Exclusive));
        actions.push(format!("failed to add IP addr {} to {:?}", ip.address, name.as_str()));
    }
    let up = link::change(index, &LinkChange { up: Some(true), ..LinkChange::default() });
    actions.extend(up.iter().map(|_| format!("failed to set {:?} up", name.as_str())));
    messages.extend(up);
    if dad == Dad::Wait && v6 {
        // A route through an address that is still tentative would be refused.
        send(rtnl, &std::mem::take(&mut messages), &std::mem::take(&mut actions))?;
        settle(netns, rtnl, *name, index)?;
    }
    for wanted in &result.routes {
        let family = Family::of_net(wanted.dst);
        let default = ips.iter().filter(|ip| Family::of_net(ip.address) == family).find_map(|ip| ip.gateway);
        let info = route_info(wanted, index, wanted.gw.or(default))?;
        messages.push(route::add(&info, Put::Append));
        actions.push(format!("failed to add route {} for {:?}", describe(&info), name.as_str()));
    }
    messages.extend(setup.after.iter().map(|(message, _)| message.clone()));
    actions.extend(setup.after.iter().map(|(_, action)| action.clone()));
    send(rtnl, &messages, &actions)
}

fn describe(route: &RouteInfo) -> String {
    let via = route.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
    format!("{}{via}", route.dst)
}

/// The addresses of the result that are the interface's; those without index are left out.
fn own_addresses(name: IfName, result: &CniResult) -> Result<Vec<&IpConfig>, Error> {
    if result.interfaces.is_empty() {
        return Err(Error::internal("no interfaces to configure"));
    }
    let mut ips = Vec::new();
    for ip in &result.ips {
        let Some(index) = ip.interface else { continue };
        let interface = usize::try_from(index).ok().and_then(|index| result.interfaces.get(index));
        if interface.is_none_or(|i| i.name != name.as_str()) {
            let what = format!("failed to add IP addr {} to {:?}", ip.address, name.as_str());
            return Err(Error::internal(format!("{what}: invalid interface index")));
        }
        ips.push(ip);
    }
    Ok(ips)
}

/// v4 with room for one has the subnet's broadcast address.
fn broadcast(net: IpNet) -> Option<Ipv4Addr> {
    match net {
        IpNet::V4(net) if net.prefix_len() < 31 => Some(net.broadcast()),
        _ => None,
    }
}

/// A route of the pod; MTU and MSS become its metrics (B-27).
fn route_info(wanted: &RouteConfig, dev: u32, gateway: Option<IpAddr>) -> Result<RouteInfo, Error> {
    let number = |what: &str, value: i64| -> Result<Option<u32>, Error> {
        let bad = |_| Error::config(format!("route {}: {what} {value} is out of range", wanted.dst));
        u32::try_from(value).map_err(bad).map(|n| (n != 0).then_some(n))
    };
    let mut info = RouteInfo { dev: Some(dev), gateway, ..RouteInfo::to(wanted.dst) };
    info.mtu = number("mtu", wanted.mtu)?;
    info.advmss = number("advmss", wanted.advmss)?;
    info.priority = number("priority", wanted.priority)?;
    info.table = number("table", wanted.table.unwrap_or(0))?.unwrap_or(info.table);
    if let Some(scope) = number("scope", wanted.scope.unwrap_or(0))? {
        let bad = |_| Error::config(format!("route {}: scope {scope} is out of range", wanted.dst));
        info.scope = Some(scope.try_into().map_err(bad)?);
    }
    Ok(info)
}

fn send(rtnl: &mut Rtnl, messages: &[Message], actions: &[String]) -> Result<(), Error> {
    let results = rtnl.run(messages).into_iter().zip(messages.iter().zip(actions));
    results.into_iter().try_for_each(|(result, (message, action))| match result {
        // What is to be deleted may be gone.
        Err(e) if message.kind() == RTM_DELROUTE && e.code == NO_SUCH_ROUTE => Ok(()),
        // Nor has every kernel each protocol's settings.
        Err(_) if message.kind() == RTM_SETLINK => Ok(()),
        other => other.map_err(|e| internal(e).during(action)),
    })
}

/// Runs inside the pod. Gives the kind of duplicate detection that the kernel does.
fn set_parameters(setup: &Setup<'_>, v6: bool) -> Result<Dad, Error> {
    let Setup { name, notify_v6, .. } = setup;
    let mut dad = setup.dad;
    let v6_key = |key: &str| format!("net/ipv6/conf/{name}/{key}");
    if v6 {
        for dev in ["lo", name.as_str()] {
            let path = format!("net/ipv6/conf/{dev}/disable_ipv6");
            match sysctl::read(&path) {
                Ok(value) if value == "0" => {}
                Ok(_) => {
                    sysctl::write(&path, "0").map_err(internal)?;
                }
                Err(e) => {
                    let _ = writeln!(std::io::stderr().lock(), "IPv6 on {dev}: {e}");
                }
            }
        }
        sysctl::set(&v6_key("keep_addr_on_down"), "1").map_err(internal)?;
    }
    match dad {
        Dad::Off => {
            let _ = sysctl::set(&v6_key("accept_dad"), "0");
        }
        Dad::Optimistic if v6 => {
            let set = |key| sysctl::set(&v6_key(key), "1");
            if set("optimistic_dad").and_then(|()| set("use_optimistic")).is_err() {
                dad = Dad::Wait;
            }
        }
        Dad::Optimistic => {}
        Dad::Wait => {
            for key in ["enhanced_dad", "accept_dad"] {
                let _ = sysctl::set(&v6_key(key), "1");
            }
        }
    }
    if *notify_v6 {
        let _ = sysctl::set(&v6_key("ndisc_notify"), "1");
    }
    Ok(dad)
}

/// Waits until no address is tentative, at most 5 s.
fn settle(netns: &Netns, rtnl: &mut Rtnl, name: IfName, index: u32) -> Result<(), Error> {
    let mut failed = None;
    let settled = wait(Some(netns), (GROUP_ADDRESS_V6, index), Duration::from_secs(5), || {
        let addresses = rtnl.addresses(Some(index)).map_err(internal)?;
        failed = addresses.iter().find(|a| a.flags & AddrInfo::DADFAILED != 0).map(|a| a.net.addr());
        Ok(failed.is_some() || addresses.iter().all(|a| a.flags & AddrInfo::TENTATIVE == 0))
    })?;
    let what = format!("failed to settle addresses for {:?}", name.as_str());
    match failed {
        Some(ip) => Err(Error::internal(format!("{what}: link {name} has address {ip} in DADFAILED state"))),
        None if settled => Ok(()),
        None => {
            let link = rtnl.link_by_index(index).map_err(internal)?;
            match link.is_some_and(|l| l.operstate == LinkInfo::OPER_UP) {
                true => Err(Error::internal(format!("{what}: still tentative after 5 s"))),
                false => Ok(()),
            }
        }
    }
}

/// Gives a device as it is; with `up` waits until it is operationally up, at most 2.55 s (cni.md 5.5).
/// `netns` is where the device is, the host if absent.
///
/// # Errors
/// It vanished, or stays down: the state is named.
pub fn wait_up(netns: Option<&Netns>, rtnl: &mut Rtnl, index: u32, up: bool) -> Result<LinkInfo, Error> {
    let mut look = || -> Result<LinkInfo, Error> {
        let link = rtnl.link_alone(index).map_err(internal)?;
        link.ok_or_else(|| Error::internal(format!("device {index} vanished while it was set up")))
    };
    let mut link = look()?;
    if !up || link.operstate == LinkInfo::OPER_UP {
        return Ok(link);
    }
    let up = wait(netns, (GROUP_LINK, index), Duration::from_millis(2550), || {
        link = look()?;
        Ok(link.operstate == LinkInfo::OPER_UP)
    })?;
    if up {
        return Ok(link);
    }
    let states = ["unknown", "not-present", "down", "lower-layer-down", "testing", "dormant", "up"];
    let state = states.get(usize::from(link.operstate)).copied().unwrap_or("unknown");
    Err(Error::internal(format!("bridge port in error state: {state}")))
}

/// Waits until both ends of a pair are operationally up: until then the kernel drops what is sent. One that
/// somebody else took down is not our failure.
pub fn await_carrier(netns: &Netns, inner: (&mut Rtnl, u32), outer: (&mut Rtnl, u32)) {
    if wait_up(Some(netns), inner.0, inner.1, true).is_ok() {
        let _ = wait_up(None, outer.0, outer.1, true);
    }
}

/// Asks `done` now and after each notification of a group about one device; false when the time ran out.
fn wait(
    netns: Option<&Netns>,
    (group, index): (u32, u32),
    limit: Duration,
    mut done: impl FnMut() -> Result<bool, Error>,
) -> Result<bool, Error> {
    let deadline = Instant::now() + limit;
    let open = || Socket::with_groups(Protocol::Route, &[group], 1 << 20);
    let mut socket = match netns {
        Some(netns) => netns.run(open).map_err(internal)?.map_err(internal)?,
        None => open().map_err(internal)?,
    };
    // Each question waits for the kernel's lock, and a node that starts pods has news of all the others.
    let _ = socket.only_of_device(index);
    let (sender, news) = mpsc::channel();
    // Ends with the process, if no further notification comes.
    std::thread::spawn(move || while socket.receive(true).is_ok() && sender.send(()).is_ok() {});
    loop {
        if done()? {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if news.recv_timeout(left).is_err() {
            return done();
        }
    }
}

/// That the kernel knows the family of an address: one may be started without IPv6 (decision 0197).
///
/// # Errors
/// It does not.
pub fn has_family_of(address: IpNet) -> Result<(), Error> {
    if address.addr().is_ipv4() || sysctl::has_ipv6() {
        return Ok(());
    }
    let way_out = "start it without ipv6.disable=1, or give the network addresses of IPv4 only";
    Err(Error::internal(format!("{address} cannot be used: this kernel has no IPv6")).details(way_out))
}

/// Has the host forward packets of a family. Never switched off again.
///
/// # Errors
/// It is off and cannot be switched on.
pub fn forward(family: Family) -> Result<(), Error> {
    let path = match family {
        Family::V4 => "net/ipv4/ip_forward",
        Family::V6 => "net/ipv6/conf/all/forwarding",
    };
    sysctl::write(path, "1").map(|_| ()).map_err(|e| internal(e).during("failed to enable forwarding"))
}
