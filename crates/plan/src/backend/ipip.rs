//! ipip: IPv4 in IPv4 (RFC 2003) through one device for all peers; the outer destination is the gateway of
//! a peer's route (flannel.md 6.6). With `DirectRouting` a plain route where the peer is on a common network.
//!
//! Better than upstream: device, address and routes are compared with the kernel at all times, the MTU
//! follows the interface, and a direct route is decided anew when the host changes (F-92).

use std::net::IpAddr;

use model::gojson::Json;
use model::{Family, IfName, Lease, LeaseAttrs};

use super::{Backend, Half, Hop};
use crate::facts::{Facts, Families};
use crate::sources::{Guard, Outer};
use crate::state::{self, Addr, Link, LinkKind, Object, State};

/// The device's name, flannel's.
pub const DEVICE: &str = "flannel.ipip";
/// The outer IPv4 header without options.
const OVERHEAD: u32 = 20;

/// The backend `ipip`.
#[derive(Clone, Debug)]
pub struct Ipip {
    direct_routing: bool,
    /// If sources are checked.
    guard: Option<Guard>,
}

impl Ipip {
    /// Decodes the `Backend` object.
    ///
    /// # Errors
    /// `DirectRouting` or `CheckSources` of another type; IPv6, which the tunnel cannot carry.
    pub fn new(backend: &Json, families: Families) -> Result<Ipip, String> {
        if families.v6 {
            return Err(
                "network config: the backend \"ipip\" carries IPv4 only, and EnableIPv6 is true; set it to \
                        false, or use \"vxlan\" or \"host-gw\""
                    .to_owned(),
            );
        }
        let fields = backend.fields("Backend").map_err(|e| format!("network config: {e}"))?;
        let flag = |key| fields.bool(key).map_err(|e| format!("network config: {e}"));
        let checked = flag("CheckSources")?.unwrap_or(true);
        let guard = checked.then(|| Guard::new(Ipip::device(), Family::V4));
        Ok(Ipip { direct_routing: flag("DirectRouting")?.unwrap_or(false), guard })
    }

    fn device() -> IfName {
        IfName::fixed(DEVICE)
    }

    fn link(facts: &Facts) -> Link {
        Link {
            name: Ipip::device(),
            kind: LinkKind::Ipip(state::Ipip { local: facts.source(Family::V4), remote: None }),
            mac: None,
            mtu: Some(facts.uplink.mtu.saturating_sub(OVERHEAD)),
            up: true,
            txqlen: Some(0),
            master: None,
        }
    }
}

impl Backend for Ipip {
    fn kind(&self) -> &'static str {
        "ipip"
    }

    fn devices(&self) -> Vec<IfName> {
        vec![Ipip::device()]
    }

    fn asks_on_link(&self) -> bool {
        self.direct_routing
    }

    fn check(&self, facts: &Facts) -> Result<(), String> {
        if facts.uplink.addresses.v4.is_none() {
            return Err(format!(
                "interface {} has no IPv4 address, which the tunnel needs; add one or choose another interface with \
                 --iface",
                facts.uplink.name
            ));
        }
        // RFC 791: an IPv4 link carries at least 68 bytes.
        if facts.uplink.mtu < 68 + OVERHEAD {
            return Err(format!(
                "MTU {0} of {1} leaves {2} bytes inside the tunnel, less than the 68 needed; raise it with: ip link set \
                 {1} mtu 1500",
                facts.uplink.mtu,
                facts.uplink.name,
                self.mtu(facts)
            ));
        }
        Ok(())
    }

    fn mtu(&self, facts: &Facts) -> u32 {
        facts.uplink.mtu.saturating_sub(OVERHEAD)
    }

    fn attrs(&self, facts: &Facts) -> LeaseAttrs {
        LeaseAttrs {
            public_ip: facts.public.v4,
            backend_type: self.kind().to_owned(),
            ..LeaseAttrs::default()
        }
    }

    fn base(&self, facts: &Facts, own: Option<&Lease>) -> State {
        let mut state = State::default();
        state.put(Object::Link(Box::new(Ipip::link(facts))));
        if let (Some(guard), Some(local)) = (&self.guard, facts.source(Family::V4)) {
            state.put(guard.table(Outer::Ipip { local }));
            state.extend(facts.tunnels.iter().map(|far| guard.tunnel(*far)));
        }
        if let Some(net) = own.and_then(|own| own.subnets.v4) {
            let host = ipnet::Ipv4Net::new(net.addr(), 32).unwrap_or(net);
            state.put(Object::Addr(Addr { dev: Ipip::device(), net: host.into() }));
        }
        state
    }

    fn admit(&self, _: Family, host: IpAddr) -> Option<Object> {
        self.guard.as_ref().map(|guard| guard.node(host))
    }

    fn peer(&self, facts: &Facts, _: &Lease, family: Family, peer: &Lease) -> Result<Half, String> {
        let v4 = peer.subnets.of(family).filter(|_| family == Family::V4);
        let Some(dst) = v4 else { return Ok(Half::default()) };
        let gateway = peer.attrs.public(family).ok_or("its lease has no public IPv4 address")?;
        let (dev, onlink) = match facts.on_link.get(&gateway).filter(|_| self.direct_routing) {
            Some(lower) => (*lower, false),
            None => (Ipip::device(), true),
        };
        let entries = self.admit(family, gateway).into_iter().collect();
        Ok(Half { entries, hop: Some(Hop { dst, gateway, dev, onlink }) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{expect, facts, ip, lease, text};
    use super::*;

    const V4: Families = Families { v4: true, v6: false };

    fn backend(json: &str) -> Result<Ipip, String> {
        Ipip::new(&json.parse().expect("JSON in a test"), V4)
    }

    #[test]
    fn a_peer_is_one_route_through_the_tunnel_or_past_it() {
        let own = lease("10.244.1.0/24", "192.0.2.10", "ipip", ["", ""]);
        let peers = [
            lease("10.244.2.0/24", "192.0.2.12", "ipip", ["", ""]),
            lease("10.244.3.0/24", "198.51.100.3", "ipip", ["", ""]),
            lease("10.244.4.0/24", "192.0.2.14", "vxlan", ["", ""]),
            lease("10.244.5.0/24", "", "ipip", ["", ""]),
        ];
        let mut facts = facts();
        facts.on_link.insert(ip("192.0.2.12"), IfName::fixed("eth0"));
        // The far end of another's tunnel.
        facts.tunnels.insert(ip("192.0.2.99"));
        let guard = "nft replace table ip loden-flannel.ipip (1 chains, 1 rules)";
        let device =
            "ip link add flannel.ipip mtu 1480 txqueuelen 0 up type ipip local 192.0.2.10 nopmtudisc";
        let far = "nft add element ip loden-flannel.ipip tunnels { 192.0.2.99 }";
        let nodes = "nft add element ip loden-flannel.ipip nodes { 192.0.2.12 }
             nft add element ip loden-flannel.ipip nodes { 198.51.100.3 }";
        let left_out = "left out 10.244.4.0/24: its backend is \"vxlan\", ours is \"ipip\"
             left out 10.244.5.0/24: its lease has no public IPv4 address";
        expect(
            &text(&backend("{}").expect("valid"), &facts, Some(&own), &peers),
            &format!(
                "{guard}
                 {device}
                 ip address replace 10.244.1.0/32 dev flannel.ipip
                 {nodes}
                 {far}
                 ip route replace 10.244.2.0/24 via 192.0.2.12 dev flannel.ipip onlink proto 76
                 ip route replace 10.244.3.0/24 via 198.51.100.3 dev flannel.ipip onlink proto 76
                 {left_out}"
            ),
        );
        let direct = backend(r#"{"directrouting":true}"#).expect("valid");
        expect(
            &text(&direct, &facts, Some(&own), &peers),
            &format!(
                "{guard}
                 {device}
                 ip address replace 10.244.1.0/32 dev flannel.ipip
                 {nodes}
                 {far}
                 ip route replace 10.244.2.0/24 via 192.0.2.12 dev eth0 proto 76
                 ip route replace 10.244.3.0/24 via 198.51.100.3 dev flannel.ipip onlink proto 76
                 {left_out}"
            ),
        );
        expect(&text(&direct, &facts, None, &peers), &format!("{guard}\n{device}\n{far}"));
        let open = backend(r#"{"checksources":false}"#).expect("valid");
        expect(&text(&open, &facts, None, &peers), device);
        assert_eq!(direct.attrs(&facts), own.attrs);
        assert_eq!(direct.mtu(&facts), 1480);
    }

    #[test]
    fn the_tunnel_leaves_from_the_interface_and_not_from_a_nat_address() {
        let mut facts = facts();
        // The second is an address of another interface: peers send to it, so the tunnel ends there.
        facts.local.insert(ip("198.51.100.1"));
        for (public, local) in [("203.0.113.1", "192.0.2.10"), ("198.51.100.1", "198.51.100.1")] {
            facts.public.v4 = public.parse().ok();
            let state = backend("{}").expect("valid").base(&facts, None);
            let link = state.link(Ipip::device()).expect("the device");
            assert_eq!(link.kind, LinkKind::Ipip(state::Ipip { local: Some(ip(local)), remote: None }));
            let Some((_, Object::Nft(table))) = state.iter().next() else { panic!("no table") };
            assert!(table.to_string().contains(&format!("ip daddr {local} ")), "{table}");
        }
    }

    #[test]
    fn what_cannot_work_is_said() {
        let dual = Ipip::new(&Json::empty(), Families { v4: true, v6: true }).expect_err("IPv6");
        assert!(dual.contains("carries IPv4 only"), "{dual}");
        for key in ["DirectRouting", "CheckSources"] {
            let wrong = backend(&format!(r#"{{"{key}":"yes"}}"#)).expect_err("a word");
            assert!(wrong.contains(key), "{wrong}");
        }
        let ipip = backend("{}").expect("valid");
        assert_eq!(ipip.check(&facts()), Ok(()));
        let mut facts = facts();
        facts.uplink.mtu = 80;
        assert!(ipip.check(&facts).expect_err("MTU").contains("MTU 80 of eth0 leaves 60 bytes"));
        facts.uplink.addresses.v4 = None;
        assert!(ipip.check(&facts).expect_err("address").contains("eth0 has no IPv4 address"));
    }
}
