//! The least the kernel takes for a pod on a bridge: the same state as our program's, by nothing but the
//! requests for it. No process is started, no store kept, nothing looked up and nothing waited for; the
//! numbers of the devices are given, so that nobody has to ask for them.
//!
//! Two parameters have no request and are written as files below `/proc/sys`.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd as _;

use ipnet::IpNet;
use kernel::link::{self, End, LinkChange, NewKind, NewLink, PortFlags};
use kernel::rtnl::{AddrInfo, Put, RouteFilter, RouteInfo, addr, route};
use kernel::{Netns, Rtnl, sysctl};
use model::{Family, IfName, Ipv4Net};

use super::case;
use crate::Result;

const BRIDGE: &str = "cni0";
const ETH0: &str = "eth0";
/// Numbers of the ports begin here, those of the pods' ends too: a namespace that was used has given low ones.
const FIRST: u32 = 100_000;

/// A machine whose pods nobody but the kernel knows.
pub struct Bare {
    /// The machine.
    pub host: Netns,
    bridge: Option<u32>,
    subnet: Ipv4Net,
}

impl Bare {
    /// With a bridge, as our program makes it, or with pairs alone.
    pub fn new(bridge: bool) -> Result<Bare> {
        let host = Netns::create()?;
        let subnet: Ipv4Net = case::SUBNET.parse()?;
        let mut bare = Bare { host, bridge: None, subnet };
        if bridge {
            bare.bridge = Some(bare.make_bridge()?);
        }
        Ok(bare)
    }

    fn make_bridge(&self) -> Result<u32> {
        let mut rtnl = Rtnl::open_in(self.host.as_fd())?;
        let name = IfName::fixed(BRIDGE);
        rtnl.create_link(&NewLink::new(name, NewKind::Bridge { vlan_filtering: false }))?;
        let made = rtnl.link_by_name(name)?.ok_or("the bridge has gone")?;
        // A hardware address of its own, else it follows its ports.
        let change = LinkChange { up: Some(true), mac: made.link.mac, ..LinkChange::default() };
        rtnl.set_link(made.index, &change)?;
        let net = IpNet::new(self.gateway(), self.subnet.prefix_len())?;
        let mut address = AddrInfo::new(made.index, net);
        address.broadcast = Some(self.subnet.broadcast());
        rtnl.add_address(&address, Put::Exclusive)?;
        sysctl::write_in(&self.host, "net/ipv4/ip_forward", "1")?;
        Ok(made.index)
    }

    fn gateway(&self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(u32::from(self.subnet.network()) + 1))
    }

    /// The attachment of a pod, by its number. Runs on a thread in the host's namespace.
    pub fn add(&self, host: &mut Rtnl, pod: &Netns, number: u32) -> Result<()> {
        let (port, inner) = (FIRST + number, FIRST + number);
        let name = IfName::new(&format!("veth{number:08x}"))?;
        let far = End { index: Some(inner), netns: Some(pod.as_fd()), ..End::new(IfName::fixed(ETH0)) };
        let near = End { index: Some(port), ..End::new(name) };
        let new = NewLink { end: near, master: self.bridge, ..NewLink::new(name, NewKind::Veth(far)) };
        host.create_link(&new)?;
        sysctl::set(&format!("net/ipv6/conf/{name}/accept_ra"), "0")?;
        let flags = PortFlags { hairpin: self.bridge.map(|_| true), ..PortFlags::default() };
        all(host.run(&[link::port_up(port, &flags)]))?;
        let up = LinkChange { up: Some(true), ..LinkChange::default() };
        let mut inside = pod.visit(|| -> Result<Rtnl> {
            sysctl::set(&format!("net/ipv6/conf/{ETH0}/accept_dad"), "0")?;
            Ok(Rtnl::open()?)
        })??;
        let own = Ipv4Addr::from(u32::from(self.subnet.network()) + 2 + number);
        let mut address = AddrInfo::new(inner, IpNet::new(own.into(), self.subnet.prefix_len())?);
        address.broadcast = Some(self.subnet.broadcast());
        let mut messages = vec![link::arp_notify(inner), addr::add(&address, Put::Exclusive)];
        messages.extend(link::change(inner, &up));
        for dst in [case::NETWORK, "0.0.0.0/0"] {
            let gateway = Some(self.gateway());
            let info = RouteInfo { dev: Some(inner), gateway, ..RouteInfo::to(dst.parse()?) };
            messages.push(route::add(&info, Put::Append));
        }
        all(inside.run(&messages))
    }

    /// Takes it away; the kernel deletes both ends before it answers.
    pub fn del(pod: &Netns, number: u32) -> Result<()> {
        let mut inside = pod.visit(Rtnl::open)??;
        inside.delete_link(FIRST + number)?;
        Ok(())
    }
}

fn all(results: Vec<std::result::Result<(), kernel::Errno>>) -> Result<()> {
    Ok(results.into_iter().collect::<std::result::Result<(), _>>()?)
}

/// What a pod's attachment is in the kernel, on the host and in the pod, without what differs from one to the next.
pub fn picture(host: &Netns, pod: &Netns) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for netns in [host, pod] {
        let mut rtnl = Rtnl::open_in(netns.as_fd())?;
        let links = rtnl.links()?;
        for link in links.iter().filter(|link| link.link.kind.name() == "veth") {
            let (name, port) = (link.link.name, link.port.unwrap_or_default());
            let known = if name.as_str() == ETH0 { ETH0 } else { "port" };
            lines.push(format!(
                "{known}: up {}, mtu {:?}, queue {:?}, in {:?}, hairpin {:?}, isolated {:?}",
                link.link.up, link.link.mtu, link.link.txqlen, link.link.master, port.hairpin, port.isolated
            ));
            for key in
                ["net/ipv6/conf/{}/accept_ra", "net/ipv6/conf/{}/accept_dad", "net/ipv4/conf/{}/arp_notify"]
            {
                let value = sysctl::read_in(netns, &key.replace("{}", name.as_str()))?;
                lines.push(format!("{known}: {key} {value}"));
            }
            // The kernel gives link-local ones by itself, a moment later.
            for address in rtnl.addresses(Some(link.index))?.iter().filter(|a| a.net.addr().is_ipv4()) {
                let (net, broadcast, flags) = (address.net, address.broadcast, address.flags);
                lines.push(format!("{known}: {net} broadcast {broadcast:?} flags {flags:#x}"));
            }
            let routes = rtnl.routes(RouteFilter { family: Some(Family::V4), ..RouteFilter::default() })?;
            let own = routes.into_iter().filter(|route| route.dev == Some(link.index));
            lines.extend(own.map(|route| format!("{known}: {}", RouteInfo { dev: None, ..route })));
        }
    }
    Ok(lines)
}
