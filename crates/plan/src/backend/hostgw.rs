//! host-gw: a plain route per peer through the peer's own address; no device, no encapsulation
//! (flannel.md 6.3). Needs a common network between the hosts.

use std::net::IpAddr;

use model::{Family, Lease, LeaseAttrs};

use super::{Backend, Half, Hop};
use crate::facts::{Facts, Families};
use crate::state::State;

/// The backend `host-gw`.
#[derive(Clone, Copy, Debug)]
pub struct HostGw {
    /// Enabled families.
    pub families: Families,
}

impl HostGw {
    fn gateway(&self, facts: &Facts, family: Family, peer: &Lease) -> Result<IpAddr, String> {
        let public =
            peer.attrs.public(family).ok_or_else(|| format!("its lease has no public {family} address"))?;
        if facts.on_link.get(&public) == Some(&facts.uplink.name) {
            return Ok(public);
        }
        Err(format!(
            "its address {public} is not on a network of {}, and host-gw needs one; put the nodes into one network \
             or use the vxlan backend with DirectRouting",
            facts.uplink.name
        ))
    }
}

impl Backend for HostGw {
    fn kind(&self) -> &'static str {
        "host-gw"
    }

    fn asks_on_link(&self) -> bool {
        true
    }

    fn check(&self, facts: &Facts) -> Result<(), String> {
        for family in self.families.iter() {
            let (Some(iface), Some(public)) = (facts.uplink.addresses.of(family), facts.public.of(family))
            else {
                return Err(format!(
                    "interface {} has no {family} address, which host-gw needs",
                    facts.uplink.name
                ));
            };
            // Another host would route to an address that this host does not answer for.
            if iface != public {
                return Err(format!(
                    "public address {public} is not {iface}, the address of {}: host-gw does not work through NAT; \
                     leave --public-ip away or use the vxlan backend",
                    facts.uplink.name
                ));
            }
        }
        Ok(())
    }

    fn mtu(&self, facts: &Facts) -> u32 {
        facts.uplink.mtu
    }

    fn attrs(&self, facts: &Facts) -> LeaseAttrs {
        LeaseAttrs {
            public_ip: facts.public.v4.filter(|_| self.families.v4),
            public_ip6: facts.public.v6.filter(|_| self.families.v6),
            backend_type: self.kind().to_owned(),
            ..LeaseAttrs::default()
        }
    }

    fn base(&self, _: &Facts, _: Option<&Lease>) -> State {
        State::default()
    }

    fn peer(&self, facts: &Facts, _: &Lease, family: Family, peer: &Lease) -> Result<Half, String> {
        let enabled = self.families.iter().any(|f| f == family);
        let Some(dst) = peer.subnets.of(family).filter(|_| enabled) else { return Ok(Half::default()) };
        let gateway = self.gateway(facts, family, peer)?;
        let hop = Hop { dst, gateway, dev: facts.uplink.name, onlink: false };
        Ok(Half { entries: Vec::new(), hop: Some(hop) })
    }
}

#[cfg(test)]
mod tests;
