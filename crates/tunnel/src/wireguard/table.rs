//! Whose an inner address is: the longest prefix that holds it. Never changes; a change makes a new table. Pure.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

/// Networks and what belongs to them, of both families.
#[derive(Debug)]
pub struct Table<T> {
    v4: Lengths<T>,
    v6: Lengths<T>,
}

/// By length of the prefix, the longest first.
type Lengths<T> = Vec<(u128, HashMap<u128, T>)>;

impl<T> Default for Table<T> {
    fn default() -> Table<T> {
        Table { v4: Vec::new(), v6: Vec::new() }
    }
}

impl<T> Table<T> {
    /// A table of these; of equal networks the last one counts.
    pub fn new(entries: impl IntoIterator<Item = (IpNet, T)>) -> Table<T> {
        let mut families: [BTreeMap<u8, HashMap<u128, T>>; 2] = Default::default();
        for (net, owner) in entries {
            let family = &mut families[usize::from(net.addr().is_ipv6())];
            family.entry(net.prefix_len()).or_default().insert(bits(net.network()), owner);
        }
        let [v4, v6] = families
            .map(|lengths| lengths.into_iter().rev().map(|(length, nets)| (mask(length), nets)).collect());
        Table { v4, v6 }
    }

    /// Whose an address is.
    pub fn find(&self, address: IpAddr) -> Option<&T> {
        let lengths = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        let bits = bits(address);
        lengths.iter().find_map(|(mask, nets)| nets.get(&(bits & mask)))
    }
}

/// The address from the left, so that a length means the same in both families.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(ip) => u128::from(u32::from(ip)) << 96,
        IpAddr::V6(ip) => ip.into(),
    }
}

fn mask(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_counts() {
        let nets =
            ["0.0.0.0/0", "10.244.0.0/16", "10.244.7.0/24", "10.244.7.9/32", "fd00::/8", "fd00:7::/64"];
        let table = Table::new(nets.iter().map(|net| (net.parse().unwrap(), *net)));
        for (address, want) in [
            ("10.244.7.9", Some("10.244.7.9/32")),
            ("10.244.7.8", Some("10.244.7.0/24")),
            ("10.244.8.8", Some("10.244.0.0/16")),
            ("192.0.2.1", Some("0.0.0.0/0")),
            ("fd00:7::1", Some("fd00:7::/64")),
            ("fd00:7:0:1::1", Some("fd00::/8")),
            ("2001:db8::1", None),
        ] {
            assert_eq!(table.find(address.parse().unwrap()).copied(), want, "{address}");
        }
    }
}
