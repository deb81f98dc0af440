//! VXLAN: a tunnel device for each family, and per peer a neighbour, a forwarding entry and a route
//! (flannel.md 6.2), or one plain route where `DirectRouting` finds the peer on a common network.
//!
//! Better than upstream: every entry is compared with the kernel at all times (F-72, F-73), the families
//! of a peer stand alone (F-79), and the hardware address is derived from the machine, so that it is the
//! same after a reboot.

use std::net::IpAddr;

use model::codec::vtep::{self, Vtep};
use model::config::VxlanConf;
use model::{Family, IfName, Lease, LeaseAttrs, Mac, Subnets};

use super::{Backend, Half, Hop, hash64, other_backend};
use crate::facts::{Facts, Families};
use crate::sources::{Guard, Outer};
use crate::state::{self, Addr, Fdb, Link, LinkKind, Neigh, Object, State};

/// Bytes of outer Ethernet, IP, UDP and VXLAN headers. The kernel gives an IPv6 tunnel no larger MTU
/// than its 70 leave, whatever is asked for (F-77, decision 0009).
fn overhead(family: Family) -> u32 {
    match family {
        Family::V4 => 50,
        Family::V6 => 70,
    }
}

fn prefix(family: Family) -> &'static str {
    match family {
        Family::V4 => "flannel.",
        Family::V6 => "flannel-v6.",
    }
}

/// Name of the device of a VNI, or what would be one but is too long.
fn device_name(family: Family, vni: u32) -> Result<IfName, String> {
    let name = format!("{}{vni}", prefix(family));
    IfName::new(&name).map_err(|_| name)
}

/// Which VNI a lease names. Those of flannel up to 0.12 name none.
fn vni(attrs: &LeaseAttrs, family: Family) -> Option<u32> {
    Some(vtep::read(attrs.data(family)?).ok()?.vni).filter(|vni| *vni != 0)
}

/// The backend `vxlan`.
#[derive(Clone, Debug)]
pub struct Vxlan {
    config: VxlanConf,
    devices: Vec<(Family, IfName)>,
    /// Of each family, if sources are checked.
    guards: Vec<(Family, Guard)>,
}

impl Vxlan {
    /// Checks that the configuration gives valid device names.
    ///
    /// # Errors
    /// A VNI whose device name would be longer than 15 bytes.
    pub fn new(config: VxlanConf, families: Families) -> Result<Vxlan, String> {
        let mut devices = Vec::new();
        for family in families.iter() {
            let name = device_name(family, config.vni).map_err(|name| {
                format!(
                    "network config: VNI {} gives the device name {name:?}, longer than 15 bytes; \
                     choose a smaller VNI, such as 1",
                    config.vni
                )
            })?;
            devices.push((family, name));
        }
        let checked = devices.iter().filter(|_| config.check_sources);
        let guards = checked.map(|(family, name)| (*family, Guard::new(*name, *family))).collect();
        Ok(Vxlan { config, devices, guards })
    }

    fn device(&self, family: Family) -> Option<IfName> {
        self.devices.iter().find(|(f, _)| *f == family).map(|(_, name)| *name)
    }

    /// The address a device has: pinned since our start, else that of the device we found, else that of a device
    /// with another VNI from before, so that what others still send there arrives (decision 0162), else the one
    /// the registry remembers of us, else one derived from machine, device and public address.
    fn mac(&self, facts: &Facts, family: Family, name: IfName) -> Mac {
        if let Some(mac) = facts.pinned_macs.get(&name) {
            return *mac;
        }
        let vxlan = |link: &&Link| matches!(link.kind, LinkKind::Vxlan(_));
        let former = |link: &&Link| link.name.as_str().starts_with(prefix(family));
        let found = facts.devices.get(&name).filter(vxlan);
        let found = found.or_else(|| facts.devices.values().filter(vxlan).find(former));
        if let Some(mac) = found.and_then(|link| link.mac).filter(|mac| mac.is_unicast()) {
            return mac;
        }
        let published = facts.published.as_ref().filter(|attrs| attrs.backend_type == self.kind());
        if let Some(vtep) = published.and_then(|attrs| vtep::read(attrs.data(family)?).ok()) {
            return vtep.mac;
        }
        let public = facts.public.of(family).map(|ip| ip.to_string()).unwrap_or_default();
        let parts = [facts.machine_id.as_bytes(), name.as_str().as_bytes(), public.as_bytes()];
        let [a, b, c, d, e, g, ..] = hash64(&parts).to_be_bytes();
        Mac::local([a, b, c, d, e, g])
    }

    /// What leads to a peer through a tunnel device.
    fn tunnel(&self, facts: &Facts, family: Family, peer: &Lease, dev: IfName) -> Result<Half, String> {
        let Some(subnet) = peer.subnets.of(family) else { return Ok(Half::default()) };
        let public =
            peer.attrs.public(family).ok_or_else(|| format!("its lease has no public {family} address"))?;
        let data = peer.attrs.data(family).ok_or_else(|| format!("its lease has no {family} VTEP data"))?;
        let mac =
            vtep::read(data).map_err(|e| format!("its {family} VTEP data {data:?} is of no use: {e}"))?.mac;
        let own = self.mac(facts, family, dev);
        if mac == own {
            return Err(format!(
                "its VTEP address {own} is ours too, as on cloned machines; give one of the two another \
                 machine id and delete its {dev}"
            ));
        }
        let entries = [
            Object::Neigh(Neigh { dev, dst: subnet.addr(), mac }),
            Object::Fdb(Fdb { dev, mac, dst: public }),
        ];
        let entries = self.admit(family, public).into_iter().chain(entries).collect();
        Ok(Half { entries, hop: Some(Hop { dst: subnet, gateway: subnet.addr(), dev, onlink: true }) })
    }

    fn tunnel_mtu(&self, facts: &Facts, family: Family) -> u32 {
        self.config.mtu.unwrap_or(facts.uplink.mtu).saturating_sub(overhead(family))
    }

    fn link(&self, facts: &Facts, family: Family, name: IfName) -> Link {
        Link {
            name,
            kind: LinkKind::Vxlan(state::Vxlan {
                vni: self.config.vni,
                port: self.config.udp_port(),
                local: facts.source(family),
                lower: Some(facts.uplink.name),
                learning: self.config.learning,
                gbp: self.config.gbp,
                l2miss: false,
                group: None,
            }),
            mac: Some(self.mac(facts, family, name)),
            mtu: Some(self.tunnel_mtu(facts, family)),
            up: true,
            txqlen: Some(0),
            master: None,
        }
    }
}

impl Backend for Vxlan {
    fn kind(&self) -> &'static str {
        "vxlan"
    }

    fn devices(&self) -> Vec<IfName> {
        self.devices.iter().map(|(_, name)| *name).collect()
    }

    fn asks_on_link(&self) -> bool {
        self.config.direct_routing
    }

    /// What is wrong with its data is said where it would be used.
    fn carries(&self, attrs: &LeaseAttrs) -> bool {
        let other = |family| vni(attrs, family).is_some_and(|vni| vni != self.config.vni);
        attrs.backend_type == self.kind() && !Family::BOTH.into_iter().any(other)
    }

    fn check(&self, facts: &Facts) -> Result<(), String> {
        for (family, _) in &self.devices {
            if facts.uplink.addresses.of(*family).is_none() {
                return Err(format!(
                    "interface {} has no {family} address, which the {family} tunnel needs; add one or choose \
                     another interface with --iface",
                    facts.uplink.name
                ));
            }
        }
        // RFC 791: an IPv4 link carries at least 68 bytes; RFC 8200 §5: an IPv6 link 1280.
        let least = if self.device(Family::V6).is_some() { 1280 } else { 68 };
        if self.mtu(facts) < least {
            return Err(format!(
                "MTU {} of {} leaves {} bytes inside the tunnel, less than the {least} needed; raise it with: ip link \
                 set {} mtu 1500",
                facts.uplink.mtu,
                facts.uplink.name,
                self.mtu(facts),
                facts.uplink.name
            ));
        }
        Ok(())
    }

    fn mtu(&self, facts: &Facts) -> u32 {
        // Pods have one MTU for both families: the smaller.
        self.devices
            .iter()
            .map(|(family, _)| self.tunnel_mtu(facts, *family))
            .min()
            .unwrap_or(facts.uplink.mtu)
    }

    fn attrs(&self, facts: &Facts) -> LeaseAttrs {
        let data = |family| {
            let name = self.device(family)?;
            facts.public.of(family)?;
            let vtep = Vtep { vni: self.config.vni, mac: self.mac(facts, family, name) };
            Some(vtep::write(&vtep).into_boxed_str())
        };
        LeaseAttrs {
            public_ip: facts.public.v4.filter(|_| self.device(Family::V4).is_some()),
            public_ip6: facts.public.v6.filter(|_| self.device(Family::V6).is_some()),
            backend_type: self.kind().to_owned(),
            backend_data: data(Family::V4),
            backend_v6_data: data(Family::V6),
        }
    }

    fn base(&self, facts: &Facts, own: Option<&Lease>) -> State {
        let mut state = State::default();
        for (family, name) in &self.devices {
            state.put(Object::Link(Box::new(self.link(facts, *family, *name))));
            if facts.ipv6 {
                // A tunnel device must not take addresses or routes from a router's advertisement.
                let path = format!("net/ipv6/conf/{name}/accept_ra");
                state.put(Object::Sysctl { path, value: "0".to_owned() });
            }
            if let Some((_, guard)) = self.guards.iter().find(|(f, _)| f == family) {
                let outer = Outer::Vxlan { port: self.config.udp_port(), vni: self.config.vni };
                state.put(guard.table(outer));
            }
            if let Some(subnet) = own.and_then(|lease| lease.subnets.of(*family)) {
                let host = ipnet::IpNet::new(subnet.addr(), family.bits()).unwrap_or(subnet);
                state.put(Object::Addr(Addr { dev: *name, net: host }));
            }
        }
        state
    }

    fn peer(&self, facts: &Facts, _: &Lease, family: Family, peer: &Lease) -> Result<Half, String> {
        let (Some(dev), Some(subnet)) = (self.device(family), peer.subnets.of(family)) else {
            return Ok(Half::default());
        };
        let public =
            peer.attrs.public(family).ok_or_else(|| format!("its lease has no public {family} address"))?;
        if let Some(lower) = facts.on_link.get(&public).filter(|_| self.config.direct_routing) {
            let hop = Hop { dst: subnet, gateway: public, dev: *lower, onlink: false };
            return Ok(Half { entries: self.admit(family, public).into_iter().collect(), hop: Some(hop) });
        }
        self.tunnel(facts, family, peer, dev)
    }

    fn admit(&self, family: Family, host: IpAddr) -> Option<Object> {
        self.guards.iter().find(|(f, _)| *f == family).map(|(_, guard)| guard.node(host))
    }

    /// Another VNI. What we sent to such nodes before goes on by the device we had then; a node that had ours before
    /// keeps it, under the hardware address its lease says.
    fn detour(&self, facts: &Facts, family: Family, peer: &Lease) -> Result<Half, String> {
        let attrs = &peer.attrs;
        if attrs.backend_type != self.kind() {
            return Err(other_backend(self.kind(), peer));
        }
        let Some(own) = self.device(family) else { return Ok(Half::default()) };
        let former = vni(attrs, family).and_then(|vni| device_name(family, vni).ok());
        self.tunnel(
            facts,
            family,
            peer,
            former.filter(|name| facts.devices.contains_key(name)).unwrap_or(own),
        )
    }

    /// A node with two leases, one of them left over, says the same in both, and all of it can be had; with
    /// another destination it is another node.
    fn clash(&self, object: &Object, other: &Subnets) -> String {
        let Object::Fdb(Fdb { dev, mac, .. }) = object else { return format!("{other} has it: {object}") };
        format!(
            "its VTEP address {mac} is also that of {other}, as on cloned machines; give one of the two another \
             machine id and delete its {dev}"
        )
    }
}

#[cfg(test)]
mod tests;
