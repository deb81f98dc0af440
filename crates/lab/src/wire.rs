//! The wire: bridges in the lab's own namespace, a veth from each host to one of them, and the
//! namespace itself as the router between.

use std::os::fd::AsFd;

use ipnet::IpNet;
use kernel::link::{End, LinkChange, NewKind, NewLink};
use kernel::rtnl::{AddrInfo, Put, RouteInfo};
use kernel::{Netns, Rtnl, sysctl};
use model::IfName;

use crate::error::{Error, Result};
use crate::proto::Device;
use crate::spec::{Port, Spec};

/// The device of every host and every pod.
pub const ETH0: &str = "eth0";

/// Name of a wire's bridge in the lab's own namespace.
pub fn bridge(wire: usize) -> String {
    format!("wire{wire}")
}

/// Makes the bridges, in the namespace of the calling thread.
///
/// # Errors
/// The kernel's, with the object named.
pub fn lay(spec: &Spec) -> Result<()> {
    let mut rtnl = Rtnl::open()?;
    up(&mut rtnl, IfName::fixed("lo"))?;
    let ports = spec.ports();
    for wire in 0..spec.wires() {
        let name = IfName::new(&bridge(wire)).map_err(|e| Error::said(e.to_string()))?;
        let mut new = NewLink::new(name, NewKind::Bridge { vlan_filtering: false });
        new.end.mtu = Some(spec.mtu);
        rtnl.create_link(&new)?;
        known_unique(name.as_str())?;
        let index = up(&mut rtnl, name)?;
        for net in ports.iter().find(|p| p.wire == wire).into_iter().flat_map(|p| &p.gateways) {
            rtnl.add_address(&AddrInfo::new(index, *net), Put::Exclusive)?;
        }
    }
    if spec.stack.v4() {
        sysctl::write("net/ipv4/ip_forward", "1")?;
    }
    if spec.stack.v6() {
        sysctl::write("net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// Joins a host to its wire and gives it addresses and default routes. Called in the lab's own namespace.
///
/// # Errors
/// The kernel's, with the object named.
pub fn plug(port: &Port, host: &Netns, mtu: u32) -> Result<()> {
    let mut rtnl = Rtnl::open()?;
    let name = |text: &str| IfName::new(text).map_err(|e| Error::said(e.to_string()));
    let far = End { mtu: Some(mtu), netns: Some(host.as_fd()), ..End::new(IfName::fixed(ETH0)) };
    let mut new = NewLink::new(name(&port.host)?, NewKind::Veth(far));
    new.end.mtu = Some(mtu);
    new.up = true;
    let bridge = name(&bridge(port.wire))?;
    new.master = rtnl.link_by_name(bridge)?.map(|l| l.index);
    rtnl.create_link(&new)?;

    host.run(|| known_unique(ETH0)).map_err(kernel::Error::from)??;
    let mut inside = Rtnl::open_in(host.as_fd())?;
    up(&mut inside, IfName::fixed("lo"))?;
    let eth0 = up(&mut inside, IfName::fixed(ETH0))?;
    for net in &port.addresses {
        inside.add_address(&AddrInfo::new(eth0, *net), Put::Exclusive)?;
    }
    for gateway in &port.gateways {
        let everything = IpNet::new_assert(unspecified(gateway), 0);
        let route = RouteInfo { dev: Some(eth0), gateway: Some(gateway.addr()), ..RouteInfo::to(everything) };
        inside.add_route(&route, Put::Exclusive)?;
    }
    Ok(())
}

fn unspecified(like: &IpNet) -> std::net::IpAddr {
    match like {
        IpNet::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpNet::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn up(rtnl: &mut Rtnl, name: IfName) -> Result<u32> {
    let missing = || Error::said(format!("the device {name} has gone"));
    let index = rtnl.link_by_name(name)?.ok_or_else(missing)?.index;
    rtnl.set_link(index, &LinkChange { up: Some(true), ..LinkChange::default() })?;
    Ok(index)
}

/// Spares a device the second the kernel waits for a duplicate of an IPv6 address: we chose them all.
/// A kernel without IPv6 has no such parameter.
fn known_unique(device: &str) -> Result<()> {
    let path = format!("net/ipv6/conf/{device}/accept_dad");
    if std::path::Path::new("/proc/sys").join(&path).exists() {
        sysctl::write(&path, "0")?;
    }
    Ok(())
}

/// MTU of a device in a namespace, in bytes.
///
/// # Errors
/// It is not there.
pub fn mtu(net: &Netns, device: &str) -> Result<u32> {
    let name = IfName::new(device).map_err(|e| Error::said(e.to_string()))?;
    let link = Rtnl::open_in(net.as_fd())?.link_by_name(name)?;
    link.and_then(|l| l.link.mtu).ok_or_else(|| Error::said(format!("there is no device {device}")))
}

/// The devices through which a host reaches the others' pods: its tunnels, else `eth0`.
///
/// # Errors
/// The kernel's.
pub fn overlay_devices(net: &Netns) -> Result<Vec<Device>> {
    let links = Rtnl::open_in(net.as_fd())?.links()?;
    let chosen = |wanted: &dyn Fn(&str) -> bool| -> Vec<Device> {
        links
            .iter()
            .filter(|l| wanted(l.link.name.as_str()))
            .map(|l| Device {
                name: l.link.name.to_string(),
                mac: l.link.mac.map_or_else(String::new, |mac| mac.to_string()),
            })
            .collect()
    };
    let tunnels = chosen(&|name| name.starts_with("flannel"));
    Ok(if tunnels.is_empty() { chosen(&|name| name == ETH0) } else { tunnels })
}
