//! The one trait all backends implement. Three questions: what do we advertise, what MTU do pods get,
//! what state do we want, of ourselves and of each peer. No events, no handles, no I/O. The parts are put
//! together in [`crate::assembly`].
//!
//! Adding a backend is one file below `backend/` with its table of expectations, and a line in
//! [`from_config`].

pub mod alloc;
pub mod extension;
pub mod hostgw;
pub mod ipip;
pub mod ipsec;
pub mod tencent;
pub mod udp;
pub mod vxlan;
pub mod wireguard;

use std::net::IpAddr;

use ipnet::IpNet;
use model::{Family, IfName, Lease, LeaseAttrs, NetConf, Subnets};

use crate::facts::{Facts, Families};
use crate::state::{self, Link, LinkKind, Object, State};

/// What one family of a peer adds to the wanted state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Half {
    /// Entries of a tunnel device.
    pub entries: Vec<Object>,
    /// The way to the peer's subnet.
    pub hop: Option<Hop>,
}

/// A route through a gateway, plain or by a nexthop object as the number of peers wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The peer's subnet.
    pub dst: IpNet,
    /// The gateway.
    pub gateway: IpAddr,
    /// Outgoing device.
    pub dev: IfName,
    /// The gateway is on the link although no address of ours says so.
    pub onlink: bool,
}

/// A way to carry packets between hosts.
pub trait Backend {
    /// `BackendType` of a lease; also the word in messages.
    fn kind(&self) -> &'static str;

    /// Devices the backend makes; nobody else's by their name.
    fn devices(&self) -> Vec<IfName> {
        Vec::new()
    }

    /// Those of the devices that are ours to change: all, unless other programs use names of the pattern.
    fn own_devices(&self, _: &Facts) -> Vec<IfName> {
        self.devices()
    }

    /// What the operator should know of the choice, told once.
    fn remark(&self) -> Option<&'static str> {
        None
    }

    /// Whether [`Facts::on_link`] is looked at, so that it need not be asked for otherwise.
    fn asks_on_link(&self) -> bool {
        false
    }

    /// Whether [`Facts::wireguard`] is looked at; a key is made for it where there is none.
    fn asks_wireguard(&self) -> bool {
        false
    }

    /// Whether the backend can work on this host.
    ///
    /// # Errors
    /// One sentence that names the object and the way out.
    fn check(&self, facts: &Facts) -> Result<(), String>;

    /// MTU in bytes of pods' interfaces (`FLANNEL_MTU`).
    fn mtu(&self, facts: &Facts) -> u32;

    /// What our lease tells other nodes.
    fn attrs(&self, facts: &Facts) -> LeaseAttrs;

    /// Whether what our lease tells is not known yet, so that none may be taken.
    fn lease_waits(&self, _: &Facts) -> bool {
        false
    }

    /// Whether a peer that says this of itself is reached by [`Backend::peer`], as all are when every node has the
    /// same configuration.
    fn carries(&self, attrs: &LeaseAttrs) -> bool {
        attrs.backend_type == self.kind()
    }

    /// What lets packets of our tunnel in from a host; whether it takes the tunnel, it judges for itself.
    fn admit(&self, _family: Family, _host: IpAddr) -> Option<Object> {
        None
    }

    /// The way to a peer with another configuration that is on no common network, see [`way`].
    ///
    /// # Errors
    /// There is none: one sentence.
    fn detour(&self, _facts: &Facts, _family: Family, peer: &Lease) -> Result<Half, String> {
        Err(other_backend(self.kind(), peer))
    }

    /// What the kernel shall hold whoever the peers are: devices, and with an own lease their addresses.
    fn base(&self, facts: &Facts, own: Option<&Lease>) -> State;

    /// What one family of a peer adds beside our own lease. The peer has passed `model::claims` and has a subnet of the family.
    ///
    /// # Errors
    /// Why this half of the peer cannot be reached: one sentence with the way out.
    fn peer(&self, facts: &Facts, own: &Lease, family: Family, peer: &Lease) -> Result<Half, String>;

    /// Why a peer is left out whose object stands already, with another value, for another peer.
    fn clash(&self, object: &Object, other: &Subnets) -> String {
        format!("it wants what {other} has: {object}")
    }
}

/// Why a peer with another backend cannot be reached.
fn other_backend(ours: &str, peer: &Lease) -> String {
    format!("its backend is {:?}, ours is {ours:?}", peer.attrs.backend_type)
}

/// Backends of hosts that forward what reaches them without a tunnel too, and expect no encryption.
const PLAIN: [&str; 3] = ["vxlan", "host-gw", "ipip"];

/// What one family of a peer adds, whatever the peer's backend: while a changed configuration goes from node to
/// node, a plain route reaches those that have the other one, if it can (decision 0162).
///
/// # Errors
/// As [`Backend::peer`].
pub fn way(
    backend: &dyn Backend,
    facts: &Facts,
    own: &Lease,
    family: Family,
    peer: &Lease,
) -> Result<Half, String> {
    if backend.carries(&peer.attrs) {
        return backend.peer(facts, own, family, peer);
    }
    let (dst, public) = (peer.subnets.of(family), peer.attrs.public(family));
    let dev = public.and_then(|public| facts.on_link.get(&public));
    let plain = PLAIN.contains(&peer.attrs.backend_type.as_str()) && PLAIN.contains(&backend.kind());
    match (dst, public, dev) {
        (Some(dst), Some(gateway), Some(dev)) if plain => {
            let hop = Hop { dst, gateway, dev: *dev, onlink: false };
            Ok(Half { entries: backend.admit(family, gateway).into_iter().collect(), hop: Some(hop) })
        }
        _ => backend.detour(facts, family, peer),
    }
}

/// The backend a configuration names.
///
/// # Errors
/// An unknown or not yet built type, or keys that make no sense: one sentence.
pub fn from_config(conf: &NetConf) -> Result<Box<dyn Backend>, String> {
    let families = Families { v4: conf.enable_ipv4, v6: conf.enable_ipv6 };
    match conf.backend_type.to_ascii_lowercase().as_str() {
        "vxlan" => {
            let config = model::config::VxlanConf::decode(&conf.backend).map_err(|e| e.to_string())?;
            Ok(Box::new(vxlan::Vxlan::new(config, families)?))
        }
        "host-gw" => Ok(Box::new(hostgw::HostGw { families })),
        "ipip" => Ok(Box::new(ipip::Ipip::new(&conf.backend, families)?)),
        extension::KIND => Ok(Box::new(extension::Extension::new(conf, families)?)),
        "wireguard" => Ok(Box::new(wireguard::Wireguard::new(conf)?)),
        ipsec::KIND => Ok(Box::new(ipsec::Ipsec::new(conf, families)?)),
        tencent::KIND => Ok(Box::new(tencent::Tencent::new(conf, families)?)),
        "alloc" => Ok(Box::new(alloc::Alloc { families })),
        "udp" => Ok(Box::new(udp::Udp::new(conf, families)?)),
        "" => {
            Err("network config: Backend has no Type; write for example {\"Backend\":{\"Type\":\"vxlan\"}}"
                .into())
        }
        "aws-vpc" | "gce" | "ali-vpc" => Err(format!(
            "network config: backend {:?} was removed from flannel in v0.20; use \"vxlan\", or \"host-gw\" where \
             the nodes share a network",
            conf.backend_type
        )),
        _ => Err(format!(
            "network config: unknown backend type {:?}; this version knows \"vxlan\", \"host-gw\", \"wireguard\", \
             \"ipip\", \"udp\", \"ipsec\", \"extension\", \"tencent-vpc\" and \"alloc\"",
            conf.backend_type
        )),
    }
}

/// Whether a device is a backend's by its name: `flannel.N`, `flannel-v6.N`, `flannel.ipip`, `flannel0`, `flannel-wg`,
/// `flannel-wg-v6`. The name is how a process without memory knows its devices, as with flannel.
pub fn is_our_device(name: IfName) -> bool {
    let name = name.as_str();
    if [ipip::DEVICE, wireguard::DEVICE, wireguard::DEVICE_V6].contains(&name) || udp::is_device(name) {
        return true;
    }
    let number = name.strip_prefix("flannel.").or_else(|| name.strip_prefix("flannel-v6."));
    number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// Whether a device of one of our names is also of the kind we make under it.
pub fn is_our_link(link: &Link) -> bool {
    let name = link.name.as_str();
    match &link.kind {
        LinkKind::Vxlan(_) => name.contains('.') && is_our_device(link.name) && name != ipip::DEVICE,
        LinkKind::Ipip(_) => name == ipip::DEVICE,
        LinkKind::Wireguard(_) => [wireguard::DEVICE, wireguard::DEVICE_V6].contains(&name),
        // Of udp, or of WireGuard in user space.
        LinkKind::Tun(tun) => {
            let tunnel = [wireguard::DEVICE, wireguard::DEVICE_V6].contains(&name);
            (udp::is_device(name) || tunnel) && tun == &state::Tun::OURS
        }
        _ => false,
    }
}

/// 64-bit FNV-1a over all parts, its bits mixed once more at the end: stable over versions and machines,
/// unlike the standard hasher, and every bit depends on every byte.
pub(crate) fn hash64(parts: &[&[u8]]) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let mut hash =
        parts.iter().flat_map(|p| p.iter().copied().chain([0xff])).fold(0xcbf2_9ce4_8422_2325, step);
    for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
        hash = (hash ^ (hash >> 33)).wrapping_mul(factor);
    }
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod keys;
#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_pattern_are_ours() {
        for (name, ours) in [
            ("flannel.1", true),
            ("flannel-v6.42", true),
            ("flannel.ipip", true),
            ("flannel0", true),
            ("flannel10", false),
            ("flannel.", false),
            ("flannel.x", false),
            ("flannel-wg", true),
            ("flannel-wg-v6", true),
            ("flannel-wg-v4", false),
        ] {
            assert_eq!(is_our_device(IfName::fixed(name)), ours, "{name}");
        }
    }
}
