//! The host's side: the bridge, and the veth pair with its end in it.

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::os::fd::AsFd;
use std::path::Path;

use kernel::Netns;
use kernel::link::{
    self, BridgeVlan, End, LinkChange, LinkInfo, NewKind, NewLink, PortFlags, VlanOp, change, vlan,
};
use kernel::netlink::Message;
use kernel::rtnl::Rtnl;
use kernel::sysctl;
use model::cni::Error;
use model::cni::bridge::BridgeConf;
use model::{IfName, Mac};
use plan::state::LinkKind;

use crate::device::{self, is_exists};
use crate::pod::internal;
use crate::{lock, names};

/// `IFF_PROMISC`
const PROMISCUOUS: u32 = 0x100;
/// `EOPNOTSUPP`
const NOT_SUPPORTED: i32 = 95;
/// Marks bridges of our making (B-20).
pub const ALIAS: &str = "loden";
/// The VLAN every port has from the kernel.
const DEFAULT_VLAN: u16 = 1;

/// A lock around the making of a bridge and its address (B-18).
///
/// # Errors
/// The file cannot be made, or the wait ran out.
pub fn lock_bridge(state_dir: &Path, bridge: IfName) -> Result<File, Error> {
    lock::named(state_dir, bridge.as_str())
}

/// The bridge, made if it is not there.
///
/// # Errors
/// The name is taken by another kind of device, or the kernel's refusal.
pub fn ensure_bridge(rtnl: &mut Rtnl, conf: &BridgeConf, state_dir: &Path) -> Result<LinkInfo, Error> {
    let found = match rtnl.link_by_name(conf.bridge).map_err(internal)? {
        Some(found) => found,
        None => {
            let _lock = lock_bridge(state_dir, conf.bridge)?;
            match rtnl.link_by_name(conf.bridge).map_err(internal)? {
                Some(found) => found,
                None => create_bridge(rtnl, conf)?,
            }
        }
    };
    let name = conf.bridge.as_str();
    if !matches!(found.link.kind, LinkKind::Bridge(_)) {
        let msg = format!("failed to create bridge {name:?}: {name:?} already exists but is not a bridge");
        return Err(Error::internal(msg));
    }
    let promiscuous = conf.promiscuous && found.flags & PROMISCUOUS == 0;
    if !found.link.up || promiscuous {
        let wanted =
            LinkChange { up: Some(true), promisc: promiscuous.then_some(true), ..LinkChange::default() };
        rtnl.set_link(found.index, &wanted)
            .map_err(|e| internal(e).during(format!("set up bridge {name}")))?;
    }
    Ok(found)
}

/// A new bridge has its hardware address from the start and for ever (B-19), and with `mtu` a fixed MTU
/// (B-50).
fn create_bridge(rtnl: &mut Rtnl, conf: &BridgeConf) -> Result<LinkInfo, Error> {
    let name = conf.bridge;
    let failed =
        |e: kernel::Error| Error::internal(format!("failed to create bridge {:?}: {e}", name.as_str()));
    let kind = NewKind::Bridge { vlan_filtering: conf.filters_vlans() };
    let mut new = NewLink::new(name, kind);
    new.end.mac = Some(bridge_mac(name));
    match rtnl.create_link(&new) {
        Err(e) if e.code() == Some(NOT_SUPPORTED) && conf.filters_vlans() => {
            let way_out = "the kernel lacks VLAN filtering (CONFIG_BRIDGE_VLAN_FILTERING): leave vlan and vlanTrunk out";
            return Err(failed(e).details(way_out));
        }
        Err(e) if !is_exists(&e) => return Err(failed(e)),
        _ => {}
    }
    let _ = sysctl::write(&format!("net/ipv6/conf/{name}/accept_ra"), "0");
    // While its link-local address is looked for elsewhere (RFC 4862 5.4), 1 to 2 s, the kernel asks for no neighbour on behalf
    // of packets that are not its own: what comes for the first pod from outside waited, or was told that there is no way.
    let _ = sysctl::write(&format!("net/ipv6/conf/{name}/accept_dad"), "0");
    let made = rtnl.link_by_name(name).map_err(failed)?;
    let made = made.ok_or_else(|| Error::internal(format!("failed to create bridge {name}: it vanished")))?;
    // An MTU set on the living device is fixed; one given at creation would follow the ports.
    let fixed = LinkChange { alias: Some(ALIAS), mtu: conf.mtu, up: Some(true), ..LinkChange::default() };
    rtnl.set_link(made.index, &fixed).map_err(failed)?;
    rtnl.link_by_index(made.index).map_err(failed).map(|again| again.unwrap_or(made))
}

/// The same on this machine for ever, another one on every other machine and in every other namespace.
fn bridge_mac(name: IfName) -> Mac {
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let machine =
        if machine.trim().is_empty() { RandomState::new().hash_one(0).to_string() } else { machine };
    // The first namespace of a boot has the same inode always; others are the lab's or a test's.
    let netns = Netns::current().and_then(|netns| netns.id()).map(|id| id.inode).unwrap_or(0);
    let hash = names::sha512(&format!("{}\0{name}\0{netns}", machine.trim()));
    let byte = |n: usize| u8::from_str_radix(&hash[2 * n..2 * n + 2], 16).unwrap_or(0);
    Mac::local([byte(0), byte(1), byte(2), byte(3), byte(4), byte(5)])
}

/// Makes the pair in one request: the near end in the bridge, the far one already in the pod. Both are down: an
/// end that is up without the other one is put to sleep by the kernel, which waits with its lock held.
///
/// # Errors
/// The pod's interface exists, the kernel's refusal.
pub fn make_veth(
    rtnl: &mut Rtnl,
    conf: &BridgeConf,
    bridge: &LinkInfo,
    netns: &Netns,
    name: IfName,
    peer: IfName,
) -> Result<(), Error> {
    let far = End { mac: conf.mac, mtu: conf.mtu, netns: Some(netns.as_fd()), ..End::new(name) };
    let mut new = NewLink::new(peer, NewKind::Veth(far));
    new.end.mtu = conf.mtu;
    new.master = Some(bridge.index);
    device::make_veth(rtnl, &new)
}

/// The pod's port as configured: hairpin, isolation, up, VLANs.
///
/// # Errors
/// The kernel's refusal.
pub fn set_port(rtnl: &mut Rtnl, conf: &BridgeConf, port: u32) -> Result<(), Error> {
    let flags = PortFlags {
        hairpin: conf.hairpin.then_some(true),
        isolated: conf.port_isolation.then_some(true),
        ..PortFlags::default()
    };
    // What it would do with an address of its own costs as much as the pod's end, and no frame reaches it.
    let at_once = rtnl.run(&[link::port_up(port, &flags)]).into_iter().all(|done| done.is_ok());
    if !at_once {
        // A kernel without IPv6; or what it says to each of the parts is told.
        let mut messages: Vec<Message> = Vec::new();
        if flags != PortFlags::default() {
            messages.push(link::set_port(port, &flags));
        }
        messages.extend(change(port, &LinkChange { up: Some(true), ..LinkChange::default() }));
        let set = rtnl.run(&messages).into_iter().collect::<Result<(), _>>();
        set.map_err(|e| internal(e).during(format!("set bridge port {port} up")))?;
    }
    if conf.filters_vlans() { set_vlans(rtnl, conf, port) } else { Ok(()) }
}

/// VLANs of the pod's port (cni.md 2.1, step 2).
fn set_vlans(rtnl: &mut Rtnl, conf: &BridgeConf, port: u32) -> Result<(), Error> {
    let untagged = |id| BridgeVlan { id, pvid: true, untagged: true };
    if !conf.preserve_default_vlan {
        rtnl.delete_vlan(port, DEFAULT_VLAN, false).map_err(internal)?;
    }
    let mut messages: Vec<Message> = Vec::new();
    let own = if conf.vlan != 0 { conf.vlan } else { DEFAULT_VLAN };
    messages.push(vlan(VlanOp::Add, port, untagged(own), own, false));
    for (first, last) in &conf.trunk {
        let tagged = BridgeVlan { id: *first, pvid: false, untagged: false };
        messages.push(vlan(VlanOp::Add, port, tagged, *last, false));
    }
    let results = rtnl.run(&messages);
    results
        .into_iter()
        .collect::<Result<(), _>>()
        .map_err(|e| internal(e).during("set VLANs of the bridge port"))
}

/// One end of a pair within the host as an untagged port of the VLAN, the other as the gateway's device.
///
/// # Errors
/// The kernel's refusal.
pub fn ensure_vlan_gateway(rtnl: &mut Rtnl, conf: &BridgeConf, bridge: &LinkInfo) -> Result<LinkInfo, Error> {
    let name = format!("{}.{}", conf.bridge, conf.vlan);
    let name = IfName::new(&name).map_err(|e| Error::config(format!("name of the VLAN gateway: {e}")))?;
    let failed = |e: kernel::Error| internal(e).during(format!("failed to create VLAN gateway {name}"));
    if let Some(found) = rtnl.link_by_name(name).map_err(failed)? {
        return Ok(found);
    }
    let peer = device::random_name()?;
    let mut new = NewLink::new(peer, NewKind::Veth(End { mtu: conf.mtu, ..End::new(name) }));
    new.end.mtu = conf.mtu;
    new.up = true;
    new.master = Some(bridge.index);
    match rtnl.create_link(&new) {
        Err(e) if !is_exists(&e) => return Err(failed(e)),
        _ => {}
    }
    if let Some(port) = rtnl.link_by_name(peer).map_err(failed)? {
        let gateway = BridgeConf { trunk: Vec::new(), preserve_default_vlan: false, ..conf.clone() };
        set_vlans(rtnl, &gateway, port.index)?;
    }
    let made = rtnl.link_by_name(name).map_err(failed)?;
    let made = made.ok_or_else(|| Error::internal(format!("VLAN gateway {name} vanished")))?;
    let _ = sysctl::write(&format!("net/ipv6/conf/{name}/accept_ra"), "0");
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    rtnl.set_link(made.index, &up).map_err(failed)?;
    Ok(made)
}

/// A bridge follows its ports' MTU until one is set (B-50).
///
/// # Errors
/// The kernel's refusal.
pub fn keep_mtu(rtnl: &mut Rtnl, conf: &BridgeConf, bridge: &LinkInfo) -> Result<(), Error> {
    let Some(mtu) = conf.mtu.filter(|mtu| Some(*mtu) != bridge.link.mtu) else { return Ok(()) };
    let now = rtnl.link_by_index(bridge.index).map_err(internal)?;
    if now.is_none_or(|now| now.link.mtu == Some(mtu)) {
        return Ok(());
    }
    let change_mtu = change(bridge.index, &LinkChange { mtu: Some(mtu), ..LinkChange::default() });
    let results = rtnl.run(&change_mtu);
    results.into_iter().collect::<Result<(), _>>().map_err(|e| internal(e).during("set the bridge's MTU"))
}
