//! udp: IPv4 packets in UDP datagrams, without a header between, through a tunnel in user space (flannel.md 6.4). For
//! kernels without VXLAN and networks that carry nothing but UDP.
//!
//! One route leads the whole network onto the TUN device; the process behind it knows where each subnet is.

use std::net::{IpAddr, SocketAddrV4};

use ipnet::Ipv4Net;
use model::{Family, IfName, Lease, LeaseAttrs, NetConf};

use super::{Backend, Half, is_our_link};
use crate::facts::{Facts, Families};
use crate::state::{Addr, Link, LinkKind, Object, Route, State, Tun, Tunnel, TunnelPeer, Via};

/// The outer headers, IPv4 and UDP.
const OVERHEAD: u32 = 28;
/// flannel's, unless the configuration names one.
const PORT: u16 = 8285;
/// Names tried; flannel lets the kernel number them.
const NAMES: u8 = 10;

/// The backend `udp`.
#[derive(Clone, Copy, Debug)]
pub struct Udp {
    port: u16,
    network: Ipv4Net,
    /// The configuration names no backend.
    implied: bool,
}

/// Whether a device has a name of the pattern.
pub fn is_device(name: &str) -> bool {
    matches!(name.strip_prefix("flannel").map(str::as_bytes), Some([b'0'..=b'9']))
}

impl Udp {
    /// Decodes the `Backend` object.
    ///
    /// # Errors
    /// `Port` is none; IPv6, which the format does not know.
    pub fn new(conf: &NetConf, families: Families) -> Result<Udp, String> {
        let implied = conf.backend.fields("Backend").is_ok_and(|fields| fields.raw("Type").is_none());
        let why = if implied { " (which it is without a Backend key)" } else { "" };
        if families.v6 {
            return Err(format!(
                "network config: the backend \"udp\"{why} carries IPv4 only, and EnableIPv6 is true; set it to false, or \
                 use \"vxlan\" or \"host-gw\""
            ));
        }
        let network = conf.network.ok_or("network config: Network is missing: name the cluster's network")?;
        let fields = conf.backend.fields("Backend").map_err(|e| format!("network config: {e}"))?;
        let port = fields.int::<i64>("Port").map_err(|e| format!("network config: {e}"))?;
        let port = port.unwrap_or(i64::from(PORT));
        let valid = u16::try_from(port).ok().filter(|port| *port > 0);
        let port = valid.ok_or_else(|| {
            format!("network config: Port {port} of the backend \"udp\" is no port; write 1 to 65535, the same for all nodes")
        })?;
        Ok(Udp { port, network, implied })
    }

    /// Where all nodes listen.
    pub fn port(&self) -> u16 {
        self.port
    }

    fn names() -> impl Iterator<Item = IfName> {
        (0..NAMES).map(|number| IfName::fixed(&format!("flannel{number}")))
    }

    /// The one that is ours already; else the first free name.
    fn device(facts: &Facts) -> IfName {
        let ours = |name: &IfName| facts.devices.get(name).is_some_and(is_our_link);
        let mut free = Udp::names().filter(|name| !facts.devices.contains_key(name));
        Udp::names().find(ours).or_else(|| free.next()).unwrap_or(IfName::fixed("flannel0"))
    }

    fn link(&self, facts: &Facts) -> Link {
        Link {
            name: Udp::device(facts),
            kind: LinkKind::Tun(Tun::OURS),
            mac: None,
            mtu: Some(self.mtu(facts)),
            up: true,
            txqlen: Some(Tun::QUEUE),
            master: None,
        }
    }
}

impl Backend for Udp {
    fn kind(&self) -> &'static str {
        "udp"
    }

    fn devices(&self) -> Vec<IfName> {
        Udp::names().collect()
    }

    fn own_devices(&self, facts: &Facts) -> Vec<IfName> {
        Udp::names().filter(|name| facts.devices.get(name).is_none_or(is_our_link)).collect()
    }

    fn remark(&self) -> Option<&'static str> {
        self.implied.then_some(
            "the network config has no Backend, which means \"udp\" for flannel and for us, through user space; write \
             {\"Backend\":{\"Type\":\"vxlan\"}} on all nodes for the kernel's tunnel, or {\"Backend\":{\"Type\":\"udp\"}} to \
             keep it",
        )
    }

    fn check(&self, facts: &Facts) -> Result<(), String> {
        let name = facts.uplink.name;
        if facts.uplink.addresses.v4.is_none() {
            return Err(format!(
                "interface {name} has no IPv4 address, which the tunnel needs; add one or choose another interface with \
                 --iface"
            ));
        }
        // RFC 791: an IPv4 link carries at least 68 bytes.
        if facts.uplink.mtu < 68 + OVERHEAD {
            return Err(format!(
                "MTU {} of {name} leaves {} bytes inside the tunnel, less than the 68 needed; raise it with: ip link set \
                 {name} mtu 1500",
                facts.uplink.mtu,
                self.mtu(facts)
            ));
        }
        Ok(())
    }

    fn mtu(&self, facts: &Facts) -> u32 {
        // The largest packet there is.
        facts.uplink.mtu.saturating_sub(OVERHEAD).min(65_507)
    }

    fn attrs(&self, facts: &Facts) -> LeaseAttrs {
        LeaseAttrs {
            public_ip: facts.public.v4,
            backend_type: self.kind().to_owned(),
            ..LeaseAttrs::default()
        }
    }

    /// flannel's own leases have no type.
    fn carries(&self, attrs: &LeaseAttrs) -> bool {
        let backend_type = attrs.backend_type.as_str();
        backend_type == self.kind() || backend_type.is_empty()
    }

    fn base(&self, facts: &Facts, own: Option<&Lease>) -> State {
        let mut state = State::default();
        let link = self.link(facts);
        let dev = link.name;
        state.put(Object::Link(Box::new(link)));
        let address = own.and_then(|own| own.subnets.v4).map(|net| net.network());
        if let (Some(address), Some(local)) = (address, facts.uplink.addresses.v4) {
            let host = Ipv4Net::from(address);
            state.put(Object::Addr(Addr { dev, net: host.into() }));
            state.put(Object::Route(Route::ours(self.network.into(), Via::Behind(dev))));
            state.put(Object::Tunnel(Box::new(Tunnel {
                dev,
                listen: SocketAddrV4::new(local, self.port),
                address,
                network: self.network,
                version: env!("CARGO_PKG_VERSION").to_owned(),
            })));
        }
        state
    }

    fn peer(&self, facts: &Facts, _own: &Lease, family: Family, peer: &Lease) -> Result<Half, String> {
        let Some(net) = peer.subnets.v4.filter(|_| family == Family::V4) else { return Ok(Half::default()) };
        let Some(IpAddr::V4(public)) = peer.attrs.public(family) else {
            return Err("its lease has no public IPv4 address".to_owned());
        };
        let to = SocketAddrV4::new(public, self.port);
        let entry = TunnelPeer { dev: Udp::device(facts), net, to };
        Ok(Half { entries: vec![Object::TunnelPeer(entry)], hop: None })
    }
}

#[cfg(test)]
mod tests {
    use super::super::from_config;
    use super::super::testing::{expect, facts, ip, lease, text};
    use super::*;
    use crate::state::LinkFit;

    fn conf(backend: &str) -> NetConf {
        let text = format!(r#"{{"Network":"10.244.0.0/16"{backend}}}"#);
        NetConf::parse(&text).expect("JSON in a test").validate().expect("valid")
    }

    fn udp(backend: &str) -> Result<Udp, String> {
        Udp::new(&conf(backend), Families { v4: true, v6: false })
    }

    fn tun(name: &str, kind: LinkKind) -> Link {
        let name = IfName::fixed(name);
        Link { name, kind, mac: None, mtu: Some(1472), up: true, txqlen: None, master: None }
    }

    #[test]
    fn one_route_leads_to_all_peers() {
        let own = lease("10.244.1.0/24", "192.0.2.10", "udp", ["", ""]);
        let peers = [
            lease("10.244.2.0/24", "192.0.2.12", "udp", ["", ""]),
            lease("10.244.3.0/24", "198.51.100.3", "", ["", ""]),
            lease("10.244.4.0/24", "192.0.2.14", "vxlan", ["", ""]),
            lease("10.244.5.0/24", "", "udp", ["", ""]),
        ];
        let rest = |name: &str, port: u16| {
            format!(
                "ip tuntap add {name} mode tun multi_queue vnet_hdr && ip link set {name} mtu 1472 txqueuelen 2000 up
                 loden tunnel run {name} --listen 192.0.2.10:{port} --address 10.244.1.0 --network 10.244.0.0/16
                 ip address replace 10.244.1.0/32 dev {name}
                 loden tunnel set {name} 10.244.2.0/24 192.0.2.12:{port}
                 loden tunnel set {name} 10.244.3.0/24 198.51.100.3:{port}
                 ip route replace 10.244.0.0/16 dev {name} scope global proto 76
                 left out 10.244.4.0/24: its backend is \"vxlan\", ours is \"udp\"
                 left out 10.244.5.0/24: its lease has no public IPv4 address"
            )
        };
        let plain = udp(r#","Backend":{"Type":"udp"}"#).expect("valid");
        let mut facts = facts();
        expect(&text(&plain, &facts, Some(&own), &peers), &rest("flannel0", 8285));
        let other = udp(r#","Backend":{"Type":"udp","port":7000}"#).expect("valid");
        expect(&text(&other, &facts, Some(&own), &peers), &rest("flannel0", 7000));
        // A name that is taken is left to whoever has it; the one we have is kept.
        let foreign = LinkKind::Tun(Tun { persistent: false, ..Tun::OURS });
        facts.devices.insert(IfName::fixed("flannel0"), tun("flannel0", foreign));
        expect(&text(&plain, &facts, Some(&own), &peers), &rest("flannel1", 8285));
        assert!(!plain.own_devices(&facts).contains(&IfName::fixed("flannel0")));
        facts.devices.insert(IfName::fixed("flannel3"), tun("flannel3", LinkKind::Tun(Tun::OURS)));
        expect(&text(&plain, &facts, Some(&own), &peers), &rest("flannel3", 8285));
        let alone = "ip tuntap add flannel3 mode tun multi_queue vnet_hdr && ip link set flannel3 mtu 1472 txqueuelen 2000 up";
        expect(&text(&plain, &facts, None, &peers), alone);
        assert_eq!((plain.mtu(&facts), plain.attrs(&facts)), (1472, own.attrs));
    }

    /// Of an agent before, or an operator's: changed while packets are in it, it would lose them.
    #[test]
    fn a_queue_keeps_the_length_it_was_made_with() {
        let ours = udp(r#","Backend":{"Type":"udp"}"#).expect("valid").link(&facts());
        let with = |change: fn(&mut Link)| {
            let mut actual = ours.clone();
            change(&mut actual);
            ours.fit(&actual)
        };
        assert_eq!(with(|link| link.txqlen = Some(500)), LinkFit::Same);
        assert_eq!(with(|link| link.mtu = Some(1400)), LinkFit::Change);
    }

    #[test]
    fn no_backend_means_udp_and_says_so() {
        for (backend, remark) in [("", true), (r#","Backend":{"Type":"udp"}"#, false)] {
            let backend = from_config(&conf(backend)).expect("valid");
            assert_eq!((backend.kind(), backend.remark().is_some()), ("udp", remark));
        }
    }

    #[test]
    fn what_cannot_work_is_said() {
        for (backend, word) in [
            (r#","Backend":{"Type":"udp","Port":0}"#, "Port 0"),
            (r#","Backend":{"Type":"udp","Port":-1}"#, "Port -1"),
            (r#","Backend":{"Type":"udp","Port":65536}"#, "Port 65536"),
            (r#","Backend":{"Type":"udp","Port":"8285"}"#, "Port"),
        ] {
            let error = udp(backend).expect_err(backend);
            assert!(error.contains(word), "{error}");
        }
        let dual = Udp::new(&conf(""), Families { v4: true, v6: true }).expect_err("IPv6");
        assert!(dual.contains("carries IPv4 only") && dual.contains("without a Backend"), "{dual}");
        let udp = udp("").expect("valid");
        let mut facts = facts();
        assert_eq!(udp.check(&facts), Ok(()));
        facts.uplink.mtu = 90;
        assert!(udp.check(&facts).expect_err("MTU").contains("MTU 90 of eth0 leaves 62 bytes"));
        facts.uplink.addresses.v4 = None;
        assert!(udp.check(&facts).expect_err("address").contains("no IPv4 address"));
        let _ = ip("192.0.2.1");
    }
}
