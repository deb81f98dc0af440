//! Nodes that say the same of themselves where each must say something else: others reach only one of
//! them, and which one may change. Named, not judged: who is right cannot be seen from here.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::net::IpAddr;

use crate::addr::{Family, Mac};
use crate::codec::{vtep, wireguard};
use crate::gojson::Json;
use crate::lease::{Lease, Subnets};
use crate::peers::Peers;
use crate::wireguard::PublicKey;

/// What nodes share and must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shared {
    /// The address others send to.
    Public(IpAddr),
    /// The hardware address of their tunnels of one family.
    Vtep(Family, Mac),
    /// The key that says who they are.
    Key(PublicKey),
}

/// Two nodes or more that share something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Double {
    /// What it is.
    pub what: Shared,
    /// The nodes' leases, this node's first, then in order.
    pub nodes: Vec<Subnets>,
    /// Whether this node is the first of them.
    pub ours: bool,
}

/// Nodes named in one sentence.
const NAMED: usize = 3;

/// All doubles among the leases, ours included as it is now. O(n log n).
pub fn find(own: Option<&Lease>, peers: &Peers) -> Vec<Double> {
    let others = peers.iter().filter(|lease| own.is_none_or(|own| own.subnets != lease.subnets));
    let all: Vec<&Lease> = own.into_iter().chain(others).collect();
    let mut doubles = Vec::new();
    for family in Family::BOTH {
        let publics = all.iter().enumerate().filter_map(|(at, lease)| {
            let ip = lease.attrs.public(family).filter(|ip| !ip.is_unspecified())?;
            Some(((ip, port(lease, family)), at))
        });
        for ((ip, _), nodes) in shared(publics.collect()) {
            doubles.push(double(Shared::Public(ip), &nodes, &all, own.is_some()));
        }
        // Of nodes in one network the text differs in the address alone, so that it need not be read.
        let vteps = all.iter().enumerate().filter_map(|(at, lease)| {
            let text = lease.attrs.data(family).filter(|_| lease.attrs.backend_type == "vxlan")?;
            Some((text, at))
        });
        for (text, nodes) in shared(vteps.collect()) {
            if let Ok(vtep) = vtep::read(text) {
                doubles.push(double(Shared::Vtep(family, vtep.mac), &nodes, &all, own.is_some()));
            }
        }
    }
    // One key for both families; cloned machines have the same port as well, so the text is the same too.
    let tunnels = all.iter().enumerate().filter_map(|(at, lease)| {
        let text = lease.attrs.data(Family::V4).or_else(|| lease.attrs.data(Family::V6))?;
        (lease.attrs.backend_type == "wireguard").then_some((text, at))
    });
    for (text, nodes) in shared(tunnels.collect()) {
        if let Ok(tunnel) = wireguard::read(text) {
            doubles.push(double(Shared::Key(tunnel.key), &nodes, &all, own.is_some()));
        }
    }
    doubles
}

/// WireGuard may run on another port at each node, so that nodes behind one address can be told apart.
fn port(lease: &Lease, family: Family) -> Option<u16> {
    let data = lease.attrs.data(family).filter(|_| lease.attrs.backend_type == "wireguard")?;
    data.parse::<Json>().ok()?.get("Port")?.as_int()
}

/// Keys that occur more than once, with the places where they do.
fn shared<K: Ord + Copy>(mut all: Vec<(K, usize)>) -> Vec<(K, Vec<usize>)> {
    all.sort_unstable();
    let groups = all.chunk_by(|a, b| a.0 == b.0).filter(|group| group.len() > 1);
    groups.map(|group| (group[0].0, group.iter().map(|(_, at)| *at).collect())).collect()
}

fn double(what: Shared, nodes: &[usize], all: &[&Lease], own_is_first: bool) -> Double {
    let ours = own_is_first && nodes.first() == Some(&0);
    Double { what, nodes: nodes.iter().map(|at| all[*at].subnets).collect(), ours }
}

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shared::Public(ip) => write!(f, "public address {ip}"),
            Shared::Vtep(family, mac) => write!(f, "{family} VTEP address {mac}"),
            Shared::Key(key) => write!(f, "WireGuard key {key}"),
        }
    }
}

impl Double {
    /// One sentence that names the nodes and the way out. Where the registry has no names, nodes go by
    /// their subnets.
    pub fn sentence(&self, names: &BTreeMap<Subnets, Box<str>>) -> String {
        let name = |(at, subnets): (usize, &Subnets)| match names.get(subnets) {
            _ if self.ours && at == 0 => format!("this node ({subnets})"),
            Some(name) => format!("node {name} ({subnets})"),
            None => format!("the node of {subnets}"),
        };
        let mut text = self.nodes.iter().enumerate().take(NAMED).map(name).collect::<Vec<_>>().join(" and ");
        if self.nodes.len() > NAMED {
            // Writing to a String cannot fail.
            let _ = write!(text, " and {} more", self.nodes.len() - NAMED);
        }
        match self.what {
            Shared::Public(ip) => format!(
                "{text} announce the same public address {ip}, so that pods of only one are reached: choose another \
                 interface or address there (--iface, --public-ip), or delete the lease of a node that is gone"
            ),
            Shared::Vtep(family, mac) => format!(
                "{text} have the same {family} VTEP address {mac}, as cloned machines do, so that pods of only one are \
                 reached: give one another machine id (rm /etc/machine-id && systemd-machine-id-setup), delete its \
                 tunnel device and restart its agent"
            ),
            Shared::Key(key) => format!(
                "{text} have the same WireGuard key {key}, as cloned machines do, so that pods of only one are \
                 reached: delete the key file of one and restart its agent"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::etcd_key;

    /// `key v4 v6 backend data`, with `-` for what is not there.
    fn leases(text: &str) -> Vec<Lease> {
        let one = |line: &str| {
            let parts: Vec<&str> = line.split_whitespace().collect();
            let [key, v4, v6, backend, data] = parts[..] else { panic!("{line}") };
            let mut lease = Lease { subnets: etcd_key::read(key).expect(key), ..Lease::default() };
            (lease.attrs.public_ip, lease.attrs.public_ip6) = (v4.parse().ok(), v6.parse().ok());
            lease.attrs.backend_type = backend.to_owned();
            lease.attrs.backend_data = Some(data).filter(|d| *d != "-").map(Into::into);
            lease
        };
        text.trim().lines().map(one).collect()
    }

    fn sentences(own: Option<&str>, others: &str) -> Vec<String> {
        let own = own.map(|text| leases(text).remove(0));
        let mut peers = Peers::default();
        // Our lease is in the registry too, perhaps as it was some time ago.
        let stale = own.clone().map(|own| Lease { attrs: Default::default(), ..own });
        peers.reset(leases(others).into_iter().chain(stale));
        let names: BTreeMap<Subnets, Box<str>> = peers
            .iter()
            .filter(|l| l.attrs.public_ip.is_some())
            .zip(["a", "b"])
            .map(|(l, n)| (l.subnets, n.into()))
            .collect();
        let found = find(own.as_ref(), &peers);
        let fault = |text: String| {
            text.split(", so that").next().unwrap_or_default().replace(", as cloned machines do", "")
        };
        found.iter().map(|double| fault(double.sentence(&names))).collect()
    }

    #[test]
    fn nodes_that_share_an_address_are_named() {
        let own = "10.3.1.0-24 192.0.2.1 - vxlan {\"VNI\":1,\"VtepMAC\":\"0a:00:00:00:00:01\"}";
        for (name, own, others, want) in [
            ("nobody", None, "10.3.2.0-24 192.0.2.2 - vxlan -\n10.3.3.0-24 192.0.2.3 - vxlan -", &[][..]),
            ("no address is no double", None, "10.3.2.0-24 - - vxlan -\n10.3.3.0-24 - - vxlan -", &[]),
            (
                "two peers",
                Some(own),
                "10.3.2.0-24 192.0.2.2 - vxlan -\n10.3.3.0-24 192.0.2.2 - host-gw -",
                &["node a (10.3.2.0/24) and node b (10.3.3.0/24) announce the same public address 192.0.2.2"],
            ),
            (
                "ours, by what we say now",
                Some(own),
                "10.3.2.0-24 192.0.2.1 - vxlan -",
                &[
                    "this node (10.3.1.0/24) and node a (10.3.2.0/24) announce the same public address 192.0.2.1",
                ],
            ),
            (
                "without names",
                None,
                "10.3.2.0-24 192.0.2.1 - - -\n10.3.3.0-24 192.0.2.2 - - -\n10.3.4.0-24 192.0.2.3 - - -\n10.3.5.0-24 192.0.2.3 - - -",
                &[
                    "the node of 10.3.4.0/24 and the node of 10.3.5.0/24 announce the same public address 192.0.2.3",
                ],
            ),
            (
                "many are counted",
                None,
                "10.3.2.0-24 192.0.2.2 - - -\n10.3.3.0-24 192.0.2.2 - - -\n10.3.4.0-24 192.0.2.2 - - -\n\
                 10.3.5.0-24 192.0.2.2 - - -\n10.3.6.0-24 192.0.2.2 - - -",
                &[
                    "node a (10.3.2.0/24) and node b (10.3.3.0/24) and the node of 10.3.4.0/24 and 2 more announce the \
                   same public address 192.0.2.2",
                ],
            ),
            (
                "the second family",
                None,
                "10.3.2.0-24&fd00:3:0:2::-64 192.0.2.2 2001:db8::1 - -\n10.3.3.0-24&fd00:3:0:3::-64 192.0.2.3 2001:db8::1 - -",
                &[
                    "node a (10.3.2.0/24 and fd00:3:0:2::/64) and node b (10.3.3.0/24 and fd00:3:0:3::/64) announce the \
                   same public address 2001:db8::1",
                ],
            ),
            (
                "a tunnel's hardware address",
                Some(own),
                "10.3.2.0-24 192.0.2.2 - vxlan {\"VNI\":1,\"VtepMAC\":\"0a:00:00:00:00:01\"}",
                &[
                    "this node (10.3.1.0/24) and node a (10.3.2.0/24) have the same IPv4 VTEP address 0a:00:00:00:00:01",
                ],
            ),
            (
                "WireGuard behind one address, by port",
                None,
                "10.3.2.0-24 192.0.2.2 - wireguard {\"PublicKey\":\"a\",\"Port\":51820}\n\
                 10.3.3.0-24 192.0.2.2 - wireguard {\"PublicKey\":\"b\",\"Port\":51821}",
                &[],
            ),
            (
                "WireGuard on one port",
                None,
                "10.3.2.0-24 192.0.2.2 - wireguard {\"PublicKey\":\"a\",\"Port\":51820}\n\
                 10.3.3.0-24 192.0.2.2 - wireguard {\"PublicKey\":\"b\",\"Port\":51820}",
                &["node a (10.3.2.0/24) and node b (10.3.3.0/24) announce the same public address 192.0.2.2"],
            ),
            (
                "a WireGuard key",
                None,
                "10.3.2.0-24 192.0.2.2 - wireguard {\"PublicKey\":\"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\",\"Port\":1}\n\
                 10.3.3.0-24 192.0.2.3 - wireguard {\"PublicKey\":\"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\",\"Port\":1}",
                &["node a (10.3.2.0/24) and node b (10.3.3.0/24) have the same WireGuard key \
                   xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="],
            ),
        ] {
            assert_eq!(sentences(own, others), want, "{name}");
        }
    }

    /// Ten thousand nodes behind one address are one sentence, and no quadratic search.
    #[test]
    fn the_worst_case_is_quick() {
        let lease = |n: u32| {
            let mut lease = leases("10.0.0.0-24 192.0.2.2 - vxlan {}").remove(0);
            let net = ipnet::Ipv4Net::new((0x0a00_0000 + (n << 8)).into(), 24).expect("a length");
            lease.subnets.v4 = Some(net);
            lease
        };
        let mut peers = Peers::default();
        peers.reset((0..10_000).map(lease));
        let start = std::time::Instant::now();
        let found = find(None, &peers);
        assert_eq!((found.len(), found[0].nodes.len()), (1, 10_000));
        assert!(start.elapsed() < std::time::Duration::from_secs(2), "{:?}", start.elapsed());
    }
}
