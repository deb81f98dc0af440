//! WireGuard: encrypted tunnels, one device for each family or one for both, and per peer an entry with its
//! key (flannel.md 6.5). One route for each cluster network leads into the tunnel; which peer gets a packet
//! the device decides by the peers' subnets.
//!
//! A second, worse route drops what would otherwise leave in the clear while a device is away.
//!
//! Better than upstream: the device is kept over restarts (F-100), an absent `IPv6Network` is no fault
//! (F-101), we advertise the port we listen on (F-102), a peer's old key goes with its change (F-104), and
//! everything is compared with the device at all times.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use model::codec::wireguard::{self as codec, Tunnel};
use model::config::WireguardMode as Mode;
use model::{Family, IfName, IpNet, Lease, LeaseAttrs, NetConf, Subnets, WireguardConf};

use super::{Backend, Half};
use crate::facts::{Facts, Families, WireguardFacts};
use crate::sources::from_outside;
use crate::state::{
    Addr, Carrier, Link, LinkKind, Object, Route, State, Tun, Via, WgPeer, Wireguard as Device,
};

/// The device of IPv4, or of both families.
pub const DEVICE: &str = "flannel-wg";
/// The device of IPv6 where each family has its own.
pub const DEVICE_V6: &str = "flannel-wg-v6";
/// Metric of the routes that keep packets in the host while a tunnel is away: worse than that of any other.
const LAST_METRIC: u32 = u32::MAX;
/// Outer headers: IPv6, UDP, WireGuard's own and the tag. Taken off for IPv4 too, which has 20 less.
const OVERHEAD: u32 = 80;

/// The backend `wireguard`.
#[derive(Clone, Debug)]
pub struct Wireguard {
    config: WireguardConf,
    families: Families,
    networks: Vec<IpNet>,
}

impl Wireguard {
    /// Decodes the `Backend` object and checks that its keys fit each other.
    ///
    /// # Errors
    /// A key of another type, or out of range; two devices on one port; a mode of a family that is off.
    pub fn new(conf: &NetConf) -> Result<Wireguard, String> {
        let config = WireguardConf::decode(&conf.backend).map_err(|e| e.to_string())?;
        let families = Families { v4: conf.enable_ipv4, v6: conf.enable_ipv6 };
        if config.mode == Mode::Separate && families.v4 && families.v6 && config.port == config.port_v6 {
            return Err(format!(
                "network config: ListenPort and ListenPortV6 are both {}, and in Mode \"separate\" each family's tunnel \
                 needs a port of its own; choose two, or Mode \"auto\"",
                config.port
            ));
        }
        for (mode, on, word, key) in
            [(Mode::Ipv4, families.v4, "ipv4", "EnableIPv4"), (Mode::Ipv6, families.v6, "ipv6", "EnableIPv6")]
        {
            if config.mode == mode && !on {
                return Err(format!(
                    "network config: Mode {word:?} sends over a family that {key} switches off, so that nodes announce \
                     no address of it; set {key} to true, or choose Mode \"separate\""
                ));
            }
        }
        Ok(Wireguard { config, families, networks: conf.networks() })
    }

    fn separate(&self) -> bool {
        self.config.mode == Mode::Separate
    }

    /// The device that carries a family's pods.
    fn device(&self, family: Family) -> Option<IfName> {
        let on = self.families.iter().any(|f| f == family);
        let name = if self.separate() && family == Family::V6 { DEVICE_V6 } else { DEVICE };
        on.then(|| IfName::fixed(name))
    }

    /// The port a family's tunnel listens on.
    fn port(&self, family: Family) -> u16 {
        if self.separate() && family == Family::V6 { self.config.port_v6 } else { self.config.port }
    }

    /// Families outer packets may be of.
    fn outer(&self) -> impl Iterator<Item = Family> {
        let mode = self.config.mode;
        self.families.iter().filter(move |family| match mode {
            Mode::Separate | Mode::Auto => true,
            Mode::Ipv4 => *family == Family::V4,
            Mode::Ipv6 => *family == Family::V6,
        })
    }

    /// Where the tunnel is as long as it lives, and for a new one the kernel if it can: a device that works is
    /// not taken down because the kernel has learnt WireGuard meanwhile.
    fn carrier(facts: &Facts, own: &WireguardFacts, name: IfName) -> Carrier {
        match facts.devices.get(&name).map(|link| link.kind.name()) {
            Some("wireguard") => Carrier::Kernel,
            Some("tun") => Carrier::UserSpace,
            _ if own.in_kernel => Carrier::Kernel,
            _ => Carrier::UserSpace,
        }
    }

    fn link(&self, facts: &Facts, own: &WireguardFacts, family: Family, name: IfName) -> Link {
        let carrier = Wireguard::carrier(facts, own, name);
        let txqlen = (carrier == Carrier::UserSpace).then_some(Tun::QUEUE);
        Link {
            name,
            kind: LinkKind::Wireguard(Device {
                carrier,
                port: Some(self.port(family)),
                key: Some(own.private),
                key_file: own.key_file.clone(),
            }),
            mac: None,
            mtu: Some(self.mtu(facts)),
            up: true,
            txqlen,
            master: None,
        }
    }

    /// A peer's tunnel of a family, as it announces it.
    fn tunnel(peer: &Lease, family: Family) -> Result<Option<Tunnel>, String> {
        let Some(data) = peer.attrs.data(family) else { return Ok(None) };
        let read = codec::read(data);
        read.map(Some).map_err(|e| format!("its {family} WireGuard data {data:?} is of no use: {e}"))
    }

    fn entry(
        &self,
        facts: &Facts,
        dev: IfName,
        tunnel: Tunnel,
        endpoint: SocketAddr,
        allowed: Vec<IpNet>,
    ) -> Result<Half, String> {
        if facts.wireguard.as_ref().is_some_and(|own| own.public == tunnel.key) {
            return Err(format!(
                "it has this node's own WireGuard key {}, as cloned machines do; delete the key file on one of the two \
                 and restart its agent",
                tunnel.key
            ));
        }
        let peer = WgPeer {
            dev,
            key: tunnel.key,
            psk: self.config.psk,
            endpoint: Some(endpoint),
            allowed,
            keepalive_s: self.config.keepalive_s,
        };
        Ok(Half { entries: vec![Object::WgPeer(Box::new(peer))], hop: None })
    }

    /// One tunnel for both families: the whole peer is one entry.
    fn whole(&self, facts: &Facts, dev: IfName, peer: &Lease) -> Result<Half, String> {
        // One device has one key and one port, and that of IPv4 is always right. A flannel node announces
        // ListenPortV6 for IPv6, where nothing listens (F-102).
        let v4 = Wireguard::tunnel(peer, Family::V4)?;
        let tunnel = match v4 {
            Some(tunnel) => Some(tunnel),
            None => Wireguard::tunnel(peer, Family::V6)?
                .map(|t| Tunnel { port: t.port.filter(|port| *port != self.config.port_v6), ..t }),
        };
        let tunnel = tunnel.ok_or("its lease has no WireGuard data")?;
        let outer = self.outer_family(facts, peer);
        let public =
            peer.attrs.public(outer).ok_or_else(|| format!("its lease has no public {outer} address"))?;
        let endpoint = SocketAddr::new(public, tunnel.port.unwrap_or(self.config.port));
        let mut allowed: Vec<IpNet> = self.families.iter().filter_map(|f| peer.subnets.of(f)).collect();
        allowed.sort_unstable();
        self.entry(facts, dev, tunnel, endpoint, allowed)
    }

    /// Over which family to reach a peer.
    fn outer_family(&self, facts: &Facts, peer: &Lease) -> Family {
        match self.config.mode {
            Mode::Ipv4 => return Family::V4,
            Mode::Ipv6 => return Family::V6,
            Mode::Separate | Mode::Auto => {}
        }
        let (Some(v6), Some(v4)) = (peer.attrs.public_ip6, peer.attrs.public_ip) else {
            return if peer.attrs.public_ip.is_none() && peer.attrs.public_ip6.is_some() {
                Family::V6
            } else {
                Family::V4
            };
        };
        if !v4.is_private() && facts.public.v4.is_some() {
            return Family::V4;
        }
        let global = |ip: Ipv6Addr| !ip.is_unique_local();
        if global(v6) && facts.public.v6.is_some_and(global) { Family::V6 } else { Family::V4 }
    }
}

impl Backend for Wireguard {
    fn kind(&self) -> &'static str {
        "wireguard"
    }

    /// Both names, whatever the mode: what another mode made goes.
    fn devices(&self) -> Vec<IfName> {
        vec![IfName::fixed(DEVICE), IfName::fixed(DEVICE_V6)]
    }

    fn asks_wireguard(&self) -> bool {
        true
    }

    fn check(&self, facts: &Facts) -> Result<(), String> {
        let lacks = |family: &Family| facts.uplink.addresses.of(*family).is_none();
        let missing = match self.config.mode {
            // Either will do.
            Mode::Auto => self.outer().all(|family| lacks(&family)).then_some(Family::V4),
            _ => self.outer().find(lacks),
        };
        if let Some(family) = missing {
            return Err(format!(
                "interface {} has no {family} address, which the tunnel needs; add one or choose another interface with \
                 --iface",
                facts.uplink.name
            ));
        }
        // RFC 791: an IPv4 link carries at least 68 bytes; RFC 8200 §5: an IPv6 link 1280.
        let least = if self.families.v6 { 1280 } else { 68 };
        let mtu = self.mtu(facts);
        if mtu < least {
            let (whose, way) = match self.config.mtu {
                Some(mtu) => (
                    format!("MTU {mtu} of the network config"),
                    format!("raise it there to {}", least + OVERHEAD),
                ),
                None => (
                    format!("MTU {} of {}", facts.uplink.mtu, facts.uplink.name),
                    format!("raise it with: ip link set {} mtu 1500", facts.uplink.name),
                ),
            };
            return Err(format!(
                "{whose} leaves {mtu} bytes inside the tunnel, less than the {least} needed; {way}"
            ));
        }
        Ok(())
    }

    fn mtu(&self, facts: &Facts) -> u32 {
        self.config.mtu.unwrap_or(facts.uplink.mtu).saturating_sub(OVERHEAD)
    }

    fn attrs(&self, facts: &Facts) -> LeaseAttrs {
        let data = |family: Family| {
            let key = facts.wireguard.as_ref()?.public;
            self.device(family)?;
            let port = Some(self.port(family));
            Some(codec::write(&Tunnel { key, port }).into_boxed_str())
        };
        LeaseAttrs {
            public_ip: facts.public.v4.filter(|_| self.families.v4),
            public_ip6: facts.public.v6.filter(|_| self.families.v6),
            backend_type: self.kind().to_owned(),
            backend_data: data(Family::V4),
            backend_v6_data: data(Family::V6),
        }
    }

    fn base(&self, facts: &Facts, own: Option<&Lease>) -> State {
        let mut state = State::default();
        let Some(wireguard) = &facts.wireguard else { return state };
        for outer in self.outer() {
            let of_outer = |net: &IpNet| Family::of_net(*net) == outer;
            let networks: Vec<IpNet> = self.networks.iter().copied().filter(of_outer).collect();
            if let Some(dev) = self.device(outer).filter(|_| !networks.is_empty()) {
                state.put(from_outside(dev, outer, self.port(outer), &networks));
            }
        }
        for family in self.families.iter() {
            let Some(dev) = self.device(family) else { continue };
            state.put(Object::Link(Box::new(self.link(facts, wireguard, family, dev))));
            let Some(subnet) = own.and_then(|lease| lease.subnets.of(family)) else { continue };
            let host = IpNet::new(subnet.addr(), family.bits()).unwrap_or(subnet);
            state.put(Object::Addr(Addr { dev, net: host }));
            let networks = self.networks.iter().filter(|net| Family::of_net(**net) == family);
            for net in networks {
                state.put(Object::Route(Route::ours(*net, Via::Dev(dev))));
                // A device that goes takes its route along, and the next one that fits, such as the default
                // route, would carry pods' packets in the clear.
                let stop = Route { priority: LAST_METRIC, ..Route::ours(*net, Via::Blackhole) };
                state.put(Object::Route(stop));
            }
        }
        state
    }

    fn peer(&self, facts: &Facts, _own: &Lease, family: Family, peer: &Lease) -> Result<Half, String> {
        let (Some(dev), Some(subnet)) = (self.device(family), peer.subnets.of(family)) else {
            return Ok(Half::default());
        };
        if !self.separate() {
            // The first family has the whole peer.
            let first = self.families.iter().find(|f| peer.subnets.of(*f).is_some());
            return if first == Some(family) { self.whole(facts, dev, peer) } else { Ok(Half::default()) };
        }
        let public: IpAddr =
            peer.attrs.public(family).ok_or_else(|| format!("its lease has no public {family} address"))?;
        let tunnel = Wireguard::tunnel(peer, family)?
            .ok_or_else(|| format!("its lease has no {family} WireGuard data"))?;
        let endpoint = SocketAddr::new(public, tunnel.port.unwrap_or(self.port(family)));
        self.entry(facts, dev, tunnel, endpoint, vec![subnet])
    }

    fn clash(&self, object: &Object, other: &Subnets) -> String {
        match object {
            Object::WgPeer(peer) => format!(
                "it has the same WireGuard key {} as the node of {other}, as cloned machines do; delete the key file on \
                 one of the two and restart its agent",
                peer.key
            ),
            other_object => format!("it wants what {other} has: {other_object}"),
        }
    }
}

#[cfg(test)]
mod tests;
