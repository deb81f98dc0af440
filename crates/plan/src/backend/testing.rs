//! A host and its peers in a few words, for the tables of backend tests.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use model::{IfName, Lease, LeaseAttrs, Mac};

use super::Backend;
use crate::Assembly;
use crate::facts::{Addresses, Facts, Uplink};

/// A host with `eth0` at 192.0.2.10 and 2001:db8::10, MTU 1500.
pub fn facts() -> Facts {
    let addresses = Addresses {
        v4: Some("192.0.2.10".parse().expect("valid")),
        v6: Some("2001:db8::10".parse().expect("valid")),
    };
    Facts {
        uplink: Uplink { name: IfName::fixed("eth0"), mtu: 1500, addresses },
        public: addresses,
        local: ["127.0.0.1", "192.0.2.10", "2001:db8::10"].iter().map(|a| ip(a)).collect::<BTreeSet<_>>(),
        devices: BTreeMap::new(),
        pinned_macs: [("flannel.1", 4), ("flannel-v6.1", 6)]
            .into_iter()
            .map(|(name, last)| (IfName::fixed(name), Mac([0x0e, 0, 0, 0, 0, last])))
            .collect(),
        published: None,
        on_link: BTreeMap::new(),
        tunnels: BTreeSet::new(),
        taken: BTreeSet::new(),
        nexthops_in_use: false,
        ipv6: true,
        machine_id: "0123456789abcdef".to_owned(),
        xfrm: false,
        printed: None,
        iptables: Default::default(),
        wireguard: None,
    }
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("a valid address in a test")
}

/// `subnets` is one or two CIDRs, `publics` one or two addresses, `data` one or two JSON texts or "".
pub fn lease(subnets: &str, publics: &str, kind: &str, data: [&str; 2]) -> Lease {
    let mut lease = Lease::default();
    for net in subnets.split_whitespace() {
        match net.parse().expect("a valid network in a test") {
            ipnet::IpNet::V4(net) => lease.subnets.v4 = Some(net),
            ipnet::IpNet::V6(net) => lease.subnets.v6 = Some(net),
        }
    }
    for public in publics.split_whitespace() {
        match ip(public) {
            IpAddr::V4(ip) => lease.attrs.public_ip = Some(ip),
            IpAddr::V6(ip) => lease.attrs.public_ip6 = Some(ip),
        }
    }
    let [v4, v6] = data.map(|d| Some(d).filter(|d| !d.is_empty()).map(Into::into));
    lease.attrs =
        LeaseAttrs { backend_type: kind.to_owned(), backend_data: v4, backend_v6_data: v6, ..lease.attrs };
    lease
}

/// Everything put together for these peers.
pub fn assembly(backend: &dyn Backend, facts: &Facts, own: Option<&Lease>, peers: &[Lease]) -> Assembly {
    let accepted = peers.iter().map(|lease| (lease.subnets, Arc::new(lease.clone()))).collect();
    let mut assembly = Assembly::default();
    assembly.update(backend, facts, own, Vec::new(), &accepted, &[]);
    assembly
}

/// The wanted state as commands, one a line, then the rejected peers.
pub fn text(backend: &dyn Backend, facts: &Facts, own: Option<&Lease>, peers: &[Lease]) -> String {
    let assembly = assembly(backend, facts, own, peers);
    let mut lines: Vec<String> = assembly.wanted().iter().map(|(_, object)| object.to_string()).collect();
    for (subnets, reasons) in assembly.rejected() {
        lines.extend(reasons.iter().map(|reason| format!("left out {subnets}: {reason}")));
    }
    lines.join("\n")
}

/// Compares line by line, ignoring indentation of the expectation.
pub fn expect(got: &str, want: &str) {
    let want: Vec<&str> = want.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let got: Vec<&str> = got.lines().collect();
    assert_eq!(got, want);
}

/// A xorshift generator (Marsaglia 2003, 64 bits), from a seed.
pub struct Random(pub u64);

impl Random {
    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}
