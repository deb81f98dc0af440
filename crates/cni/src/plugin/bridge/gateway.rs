//! The gateway's address on the bridge, and forwarding (cni.md 2.1, step 7).

use std::path::Path;

use ipnet::IpNet;
use kernel::link::{LinkChange, LinkInfo};
use kernel::rtnl::{AddrInfo, Put, Rtnl};
use model::cni::bridge::BridgeConf;
use model::cni::{CniResult, Error};
use model::{Family, IfName};

use super::host::{self, ALIAS};
use crate::pod::{self, internal};
use crate::skel::Call;

/// Puts each gateway on the bridge, or with a VLAN on a device of its own, which is returned.
///
/// # Errors
/// The bridge has an address of another subnet, or the kernel's refusal.
pub fn set_up(
    rtnl: &mut Rtnl,
    conf: &BridgeConf,
    bridge: &LinkInfo,
    result: &CniResult,
    state_dir: &Path,
) -> Result<Option<LinkInfo>, Error> {
    let gateways: Vec<IpNet> =
        result.ips.iter().filter_map(|ip| IpNet::new(ip.gateway?, ip.address.prefix_len()).ok()).collect();
    if !conf.is_gateway || gateways.is_empty() {
        return Ok(None);
    }
    let own = if conf.vlan == 0 {
        None
    } else {
        let _lock = host::lock_bridge(state_dir, conf.bridge)?;
        Some(host::ensure_vlan_gateway(rtnl, conf, bridge)?)
    };
    let device = own.as_ref().unwrap_or(bridge);
    let present = |rtnl: &mut Rtnl| rtnl.addresses(Some(device.index)).map_err(internal);
    let missing = |have: &[AddrInfo]| gateways.iter().any(|gw| have.iter().all(|a| a.net != *gw));
    if missing(&present(rtnl)?) {
        let _lock = host::lock_bridge(state_dir, conf.bridge)?;
        for gateway in &gateways {
            let have = present(rtnl)?;
            if have.iter().all(|a| a.net != *gateway) {
                make_room(rtnl, conf, device, *gateway, &have)?;
                put(rtnl, device, *gateway)?;
            }
        }
    }
    for family in Family::BOTH {
        if gateways.iter().any(|gw| Family::of_net(*gw) == family) {
            pod::forward(family)?;
        }
    }
    Ok(own)
}

/// Addresses that cannot stay beside the new one: in IPv4 any other, in IPv6 overlapping ones.
fn conflicts(gateway: IpNet, have: &[AddrInfo]) -> impl Iterator<Item = &AddrInfo> {
    let overlaps = move |net: IpNet| net.contains(&gateway.network()) || gateway.contains(&net.network());
    have.iter().filter(move |a| match (a.net, gateway) {
        (IpNet::V4(_), IpNet::V4(_)) => true,
        (IpNet::V6(_), IpNet::V6(_)) => overlaps(a.net),
        _ => false,
    })
}

fn make_room(
    rtnl: &mut Rtnl,
    conf: &BridgeConf,
    device: &LinkInfo,
    gateway: IpNet,
    have: &[AddrInfo],
) -> Result<(), Error> {
    let others: Vec<IpNet> = conflicts(gateway, have).map(|a| a.net).collect();
    if others.is_empty() {
        return Ok(());
    }
    // A bridge of our making without ports serves nobody at its old address (B-20).
    let idle = device.alias.as_deref() == Some(ALIAS) && {
        let links = rtnl.links().map_err(internal)?;
        links.iter().all(|link| link.master != Some(device.index))
    };
    if conf.force_address || idle {
        for net in others {
            rtnl.delete_address(device.index, net).map_err(internal)?;
        }
        return Ok(());
    }
    let name = device.link.name;
    let list: Vec<String> = others.iter().map(IpNet::to_string).collect();
    let msg = format!(
        "failed to set bridge addr: {:?} already has an IP address different from {gateway}",
        name.as_str()
    );
    let way_out = format!(
        "{name} has {}: the node's subnet changed, or another network uses the bridge. Move its pods away and run \
         `ip link delete {name}`, set forceAddress, or name another bridge",
        list.join(", ")
    );
    Err(Error::internal(msg).details(way_out))
}

/// The address, and the hardware address made permanent: until one is set it follows the ports (B-19).
fn put(rtnl: &mut Rtnl, device: &LinkInfo, gateway: IpNet) -> Result<(), Error> {
    let failed = |e: kernel::Error| Error::internal(format!("failed to set bridge addr: {e}"));
    let mut address = AddrInfo::new(device.index, gateway);
    if let IpNet::V4(net) = gateway {
        address.broadcast = (net.prefix_len() < 31).then(|| net.broadcast());
    } else {
        // An address of a router nobody else may claim; waiting for it would delay the first pod.
        address.flags = AddrInfo::NODAD;
    }
    rtnl.add_address(&address, Put::Replace).map_err(failed)?;
    let fixed = LinkChange { mac: device.link.mac, ..LinkChange::default() };
    rtnl.set_link(device.index, &fixed).map_err(failed)
}

/// Removes the gateway's device of a VLAN that no port of the bridge has any more (B-24). For GC, while
/// nobody adds a port.
///
/// # Errors
/// The kernel's refusal.
pub fn sweep(call: &Call) -> Result<(), Error> {
    let Ok(conf) = super::parse(call) else { return Ok(()) };
    let Ok(name) = IfName::new(&format!("{}.{}", conf.bridge, conf.vlan)) else { return Ok(()) };
    if conf.vlan == 0 {
        return Ok(());
    }
    let mut rtnl = Rtnl::open().map_err(internal)?;
    let links = rtnl.links().map_err(internal)?;
    let find = |name: IfName| links.iter().find(|link| link.link.name == name);
    let (Some(bridge), Some(gateway)) = (find(conf.bridge), find(name)) else { return Ok(()) };
    // Ours is one end of a pair, the other of which is a port.
    if gateway.link.kind.name() != "veth" {
        return Ok(());
    }
    let ports = links.iter().filter(|l| l.master == Some(bridge.index) && Some(l.index) != gateway.lower);
    for port in ports {
        if rtnl.vlans(port.index).map_err(internal)?.iter().any(|vlan| vlan.id == conf.vlan) {
            return Ok(());
        }
    }
    rtnl.delete_link(gateway.index).map(drop).map_err(internal)
}
