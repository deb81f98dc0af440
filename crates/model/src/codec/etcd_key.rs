//! The last part of a lease's key in etcd: `10.5.52.0-24`, `10.12.13.0-24&fd00:12:13::-56`
//! (flannel.md 3.1; decision 0011 for leases without v4).

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::lease::Subnets;

/// Stands in the place of the v4 subnet of a lease that has none. A flannel of another mind parses it,
/// finds it overlaps nothing, and never sends anything there (decision 0011).
const NO_V4: &str = "0.0.0.0-31";

/// The key of a lease below `<prefix>/subnets/`.
pub fn write(subnets: &Subnets) -> String {
    let v4 =
        subnets.v4.map_or_else(|| NO_V4.to_owned(), |net| format!("{}-{}", net.network(), net.prefix_len()));
    match subnets.v6 {
        Some(net) => format!("{v4}&{}-{}", net.network(), net.prefix_len()),
        None => v4,
    }
}

/// Reads a key, or the last part of one. `None` = not the key of a lease. Host bits are masked off.
///
/// Several keys can name the same subnets (upstream's `0.0.0.0-0&…`, host bits, other spellings of v6);
/// the one that [`write`] gives is the lease's own.
pub fn read(key: &str) -> Option<Subnets> {
    let name = key.rsplit('/').next()?;
    let (v4, v6) = match name.split_once('&') {
        Some((v4, v6)) => (v4, Some(v6)),
        None => (name, None),
    };
    let (address, length) = half(v4, |b| b.is_ascii_digit() || b == b'.', 31)?;
    let v4 = Ipv4Net::new(address.parse::<Ipv4Addr>().ok()?, length).ok()?.trunc();
    let Some(v6) = v6 else { return Some(Subnets { v4: Some(v4), v6: None }) };
    let (address, length) = half(v6, |b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b':'), 127)?;
    let v6 = Ipv6Net::new(address.parse::<Ipv6Addr>().ok()?, length).ok()?.trunc();
    Some(Subnets { v4: Some(v4).filter(|net| !net.network().is_unspecified()), v6: Some(v6) })
}

/// Splits `address-length`; the length is a number up to `max`.
fn half(text: &str, allowed: fn(u8) -> bool, max: u8) -> Option<(&str, u8)> {
    let (address, length) = text.split_once('-')?;
    let plain = address.bytes().all(allowed) && length.bytes().all(|b| b.is_ascii_digit());
    let length = length.parse().ok().filter(|length| plain && *length <= max)?;
    Some((address, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_flannel_does() {
        for (key, want) in [
            ("10.12.13.0-24", Some("10.12.13.0/24")),
            ("/coreos.com/network/subnets/10.5.52.0-24", Some("10.5.52.0/24")),
            ("10.12.13.0-24&fd00:12:13::-56", Some("10.12.13.0/24 and fd00:12:13::/56")),
            ("/a/10.12.13.0-24&fd00:12:13::-56", Some("10.12.13.0/24 and fd00:12:13::/56")),
            ("0.0.0.0-0&fd00:1::-64", Some("fd00:1::/64")),
            ("0.0.0.0-31&fd00:1::-64", Some("fd00:1::/64")),
            ("10.12.13.7-24", Some("10.12.13.0/24")),
            ("10", None),
            ("10.12.13.0", None),
            ("10.12.13-24", None),
            ("10.12.13.300-24", None),
            ("10.12.13.01-24", None),
            ("10.12.13.0-24hi", None),
            ("10.12.13.0-", None),
            ("10.12.13.0-+4", None),
            ("10.12.13.0-32", None),
            ("10.12.13.0-256", None),
            ("&2001::-56", None),
            ("10.12.13.0-24&", None),
            ("10.12.13.0-24&:12:13:-56", None),
            ("10.12.13.0-24&20011::-56", None),
            ("10.12.13.0-24&2001-56", None),
            ("10.12.13.0-24&2001::", None),
            ("10.12.13.0-24&2001::-56hi", None),
            ("10.12.13.0-24&2001::-128", None),
            ("10.12.13.0-24&FD00::-56", None),
            ("10.12.13.0-24&::ffff:1.2.3.4-56", None),
            ("10.12.13.0-24&2001::-56&2002::-56", None),
            ("subnets/", None),
            ("", None),
        ] {
            assert_eq!(read(key).map(|s| s.to_string()).as_deref(), want, "{key:?}");
        }
    }

    #[test]
    fn keys_survive_a_round_trip() {
        for (v4, v6, key) in [
            (Some("10.5.52.0/24"), None, "10.5.52.0-24"),
            (Some("10.12.13.0/24"), Some("fd00:12:13::/56"), "10.12.13.0-24&fd00:12:13::-56"),
            (None, Some("fd00:0:0:1::/64"), "0.0.0.0-31&fd00:0:0:1::-64"),
        ] {
            let subnets = Subnets { v4: v4.map(|n| n.parse().unwrap()), v6: v6.map(|n| n.parse().unwrap()) };
            assert_eq!(write(&subnets), key);
            assert_eq!(read(key), Some(subnets));
        }
    }
}
