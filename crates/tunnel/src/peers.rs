//! Who the peers are: where a packet goes, and who may have sent one.
//!
//! Everything is looked up in a table that never changes; a change makes a new one. Pure.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;

/// Subnets and where their hosts are.
pub type Peers = BTreeMap<Ipv4Net, SocketAddrV4>;

/// Made for looking up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// By length of the prefix, the longest first: mask, and networks in order.
    lengths: Vec<(u32, Vec<(u32, SocketAddrV4)>)>,
    /// Outer address and subnet, in order.
    senders: Vec<(u32, Ipv4Net)>,
    network: Ipv4Net,
}

/// One who may send: the part of the table with the subnets of an outer address.
#[derive(Clone, Copy, Debug)]
pub struct Sender<'a> {
    subnets: &'a [(u32, Ipv4Net)],
    network: Ipv4Net,
}

impl Table {
    /// A table of these peers in the cluster's network.
    pub fn new(peers: &Peers, network: Ipv4Net) -> Table {
        let mut lengths: BTreeMap<u8, Vec<(u32, SocketAddrV4)>> = BTreeMap::new();
        for (net, to) in peers {
            lengths.entry(net.prefix_len()).or_default().push((net.network().into(), *to));
        }
        let mut senders: Vec<_> = peers.iter().map(|(net, to)| (u32::from(*to.ip()), *net)).collect();
        senders.sort_unstable();
        let lengths = lengths.into_iter().rev().map(|(length, mut nets)| {
            nets.sort_unstable_by_key(|(net, _)| *net);
            (mask(length), nets)
        });
        Table { lengths: lengths.collect(), senders, network }
    }

    /// Where packets for an address go.
    pub fn route(&self, to: Ipv4Addr) -> Option<SocketAddrV4> {
        self.lengths.iter().find_map(|(mask, nets)| {
            let key = u32::from(to) & mask;
            nets.binary_search_by_key(&key, |(net, _)| *net).ok().map(|found| nets[found].1)
        })
    }

    /// The peer at an outer address, whatever port it sends from: address translation may change that.
    pub fn sender(&self, outer: Ipv4Addr) -> Option<Sender<'_>> {
        let key = u32::from(outer);
        let start = self.senders.partition_point(|(ip, _)| *ip < key);
        let count = self.senders[start..].partition_point(|(ip, _)| *ip == key);
        let subnets = &self.senders[start..start + count];
        (count > 0).then_some(Sender { subnets, network: self.network })
    }
}

impl Sender<'_> {
    /// Whether a packet with this inner source may come from the peer: its own pods and host, or somebody
    /// outside the cluster whose packets it passes on; never another node's pods, and no address that stands
    /// for no single host.
    pub fn may_send(&self, inner: Ipv4Addr) -> bool {
        if self.subnets.iter().any(|(_, net)| net.contains(&inner)) {
            return true;
        }
        let nobody =
            inner.is_loopback() || inner.is_multicast() || inner.octets()[0] == 0 || inner.is_broadcast();
        !nobody && !self.network.contains(&inner)
    }
}

fn mask(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::testing::Dice;

    fn table(peers: &[(&str, &str)]) -> Table {
        let peers =
            peers.iter().map(|(net, to)| (net.parse().unwrap(), format!("{to}:8285").parse().unwrap()));
        Table::new(&peers.collect(), "10.244.0.0/16".parse().unwrap())
    }

    #[test]
    fn who_may_send_what() {
        let table = table(&[
            ("10.244.2.0/24", "192.0.2.12"),
            ("10.244.3.0/24", "192.0.2.13"),
            ("10.244.9.0/24", "192.0.2.12"),
        ]);
        for (outer, inner, may) in [
            ("192.0.2.12", "10.244.2.0", true),
            ("192.0.2.12", "10.244.2.200", true),
            ("192.0.2.12", "10.244.9.1", true),
            ("192.0.2.12", "10.244.3.7", false),
            ("192.0.2.13", "10.244.3.7", true),
            // Our own subnet, and one of nobody.
            ("192.0.2.13", "10.244.1.7", false),
            ("192.0.2.13", "10.244.77.7", false),
            // Passed on without address translation.
            ("192.0.2.13", "198.51.100.1", true),
            ("192.0.2.13", "192.0.2.13", true),
            ("192.0.2.13", "127.0.0.1", false),
            ("192.0.2.13", "224.0.0.1", false),
            ("192.0.2.13", "0.0.0.0", false),
            ("192.0.2.13", "255.255.255.255", false),
            // Nobody we know.
            ("192.0.2.14", "10.244.3.7", false),
        ] {
            let sender = table.sender(outer.parse().unwrap());
            let got = sender.is_some_and(|sender| sender.may_send(inner.parse().unwrap()));
            assert_eq!(got, may, "{inner} from {outer}");
        }
    }

    #[test]
    fn the_longest_prefix_wins_as_in_a_list() {
        for seed in 0..200 {
            let mut dice = Dice::new(seed);
            let mut peers = Peers::new();
            for _ in 0..dice.below(60) {
                let length = [0, 8, 16, 20, 24, 24, 24, 30, 32][dice.below(9) as usize];
                let ip = Ipv4Addr::from(0x0af4_0000 | dice.below(0x1_0000) as u32 & 0x0f0f);
                let net = Ipv4Net::new(ip, length).unwrap().trunc();
                peers.insert(net, SocketAddrV4::new(Ipv4Addr::from(dice.next() as u32), 8285));
            }
            let table = Table::new(&peers, Ipv4Net::default());
            for _ in 0..200 {
                let ip = Ipv4Addr::from(0x0af4_0000 | dice.below(0x1_0000) as u32 & 0x1f0f);
                let plain = peers.iter().filter(|(net, _)| net.contains(&ip));
                let plain = plain.max_by_key(|(net, _)| net.prefix_len()).map(|(_, to)| *to);
                assert_eq!(table.route(ip), plain, "seed {seed}: {ip}");
            }
        }
    }
}
