//! Small address types the whole suite shares: hardware addresses, interface names, families.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;

/// Reads an address as Go does: no leading zeros in v4 octets, no zone, and `::ffff:a.b.c.d` is the v4
/// address it holds (cni.md 1.9).
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

/// Reads `address/length`; gives the address as written, host bits included, and its length. v4 in v6
/// notation is refused: its length counts other bits than it seems to (F-18).
pub fn parse_cidr(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    if address.to_canonical() != address || !length.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    IpNet::new(address, length.parse().ok()?).ok()
}

/// The bits of an address, as a number of 32 or 128 bits.
pub fn to_bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// First and last address of a network, as numbers.
pub fn bounds(net: IpNet) -> (u128, u128) {
    (to_bits(net.network()), to_bits(net.broadcast()))
}

/// An address family. Code that handles both is written once over this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// Both families, v4 first: the order in which every output lists them.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// The family of an address.
    pub fn of(ip: IpAddr) -> Family {
        if ip.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The family of a network.
    pub fn of_net(net: IpNet) -> Family {
        Family::of(net.addr())
    }

    /// The address of these bits; for IPv4 the low 32 count.
    pub fn from_bits(self, bits: u128) -> IpAddr {
        match self {
            Family::V4 => IpAddr::V4(Ipv4Addr::from_bits((bits & u128::from(u32::MAX)) as u32)),
            Family::V6 => IpAddr::V6(Ipv6Addr::from_bits(bits)),
        }
    }

    /// Length in bits of a host address: 32 or 128.
    pub fn bits(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// An Ethernet address. Prints as lower-case hex with colons, the form of lease data (flannel.md 6.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Makes a unicast, locally administered address of six bytes (IEEE 802 bits: I/G 0, U/L 1), as
    /// flannel does for a VTEP.
    pub fn local(mut bytes: [u8; 6]) -> Mac {
        bytes[0] = (bytes[0] & 0xfe) | 0x02;
        Mac(bytes)
    }

    /// Whether a VTEP may carry this address: not zero, not multicast.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not a hardware address of six bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a hardware address of six bytes, such as 0e:2a:00:00:00:01")]
pub struct BadMac(pub String);

impl FromStr for Mac {
    type Err = BadMac;

    /// Accepts what Go's parser accepts of six bytes: `aa:bb:…`, `aa-bb-…` and `aabb.ccdd.eeff`.
    fn from_str(text: &str) -> Result<Mac, BadMac> {
        let bad = || BadMac(text.to_owned());
        let (separator, width) = match text.as_bytes().get(2) {
            Some(b':') => (b':', 2),
            Some(b'-') => (b'-', 2),
            _ => (b'.', 4),
        };
        let digit = |byte: u8| char::from(byte).to_digit(16).ok_or_else(bad);
        let mut bytes = [0u8; 6];
        let mut at = 0;
        for group in text.as_bytes().split(|byte| *byte == separator) {
            if group.len() != width {
                return Err(bad());
            }
            for pair in group.chunks_exact(2) {
                *bytes.get_mut(at).ok_or_else(bad)? = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
                at += 1;
            }
        }
        if at == 6 { Ok(Mac(bytes)) } else { Err(bad()) }
    }
}

/// The name of a network interface: 1 to 15 bytes, kept inline because tables hold many thousands.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct IfName([u8; 16]);

/// As bytes are ordered, but by one comparison of two numbers: most keys of the kernel's objects begin with a name.
impl Ord for IfName {
    fn cmp(&self, other: &IfName) -> std::cmp::Ordering {
        u128::from_be_bytes(self.0).cmp(&u128::from_be_bytes(other.0))
    }
}

impl PartialOrd for IfName {
    fn partial_cmp(&self, other: &IfName) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// A text the kernel would refuse as an interface name (`dev_valid_name`, net/core/dev.c).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an interface name: 1 to 15 bytes, not \".\" or \"..\", no '/', ':' or white space")]
pub struct BadIfName(pub String);

impl IfName {
    /// Checks a name by the kernel's rules.
    ///
    /// # Errors
    /// The text is empty, longer than 15 bytes, `.` or `..`, or has a `/`, `:` or white space.
    pub fn new(name: &str) -> Result<IfName, BadIfName> {
        let bytes = name.as_bytes();
        let odd = |b: &u8| matches!(b, b'/' | b':' | 0) || b.is_ascii_whitespace() || *b == 0x0b;
        if bytes.is_empty() || bytes.len() > 15 || name == "." || name == ".." || bytes.iter().any(odd) {
            return Err(BadIfName(name.to_owned()));
        }
        let mut inline = [0; 16];
        inline[..bytes.len()].copy_from_slice(bytes);
        Ok(IfName(inline))
    }

    /// A name fixed in our own source.
    ///
    /// # Panics
    /// If the constant breaks the kernel's rules, which a test would show at once.
    pub fn fixed(name: &str) -> IfName {
        IfName::new(name).expect("a constant interface name is valid")
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        let len = self.0.iter().position(|b| *b == 0).unwrap_or(16);
        std::str::from_utf8(&self.0[..len]).unwrap_or("?")
    }
}

impl FromStr for IfName {
    type Err = BadIfName;

    fn from_str(name: &str) -> Result<IfName, BadIfName> {
        IfName::new(name)
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_parse_as_in_go() {
        for (text, want) in [
            ("c6:d2:32:6f:8f:44", Some([0xc6, 0xd2, 0x32, 0x6f, 0x8f, 0x44])),
            ("C6-D2-32-6F-8F-44", Some([0xc6, 0xd2, 0x32, 0x6f, 0x8f, 0x44])),
            ("c6d2.326f.8f44", Some([0xc6, 0xd2, 0x32, 0x6f, 0x8f, 0x44])),
            ("", None),
            ("c6:d2:32:6f:8f", None),
            ("c6:d2:32:6f:8f:44:55:66", None),
            ("c6:d2:32:6f:8f:4g", None),
            ("c6:d2-32:6f:8f:44", None),
            ("+6:d2:32:6f:8f:44", None),
            ("ää:d2:32:6f:8f", None),
        ] {
            assert_eq!(text.parse::<Mac>().ok(), want.map(Mac), "{text:?}");
        }
        assert_eq!(Mac::local([0xff, 0, 0, 0, 0, 1]).to_string(), "fe:00:00:00:00:01");
    }

    #[test]
    fn addresses_parse_as_in_go() {
        for (text, want) in [
            ("1.2.3.4", Some("1.2.3.4")),
            ("01.2.3.4", None),
            ("1.2.3", None),
            (" 1.2.3.4", None),
            ("::ffff:1.2.3.4", Some("1.2.3.4")),
            ("::1.2.3.4", Some("::102:304")),
            ("1:2:3:4:5:6:7::", Some("1:2:3:4:5:6:7:0")),
            ("fd00:0:0:1:0:0:0:0", Some("fd00:0:0:1::")),
            ("fe80::1%eth0", None),
            ("", None),
        ] {
            assert_eq!(parse_ip(text).map(|ip| ip.to_string()).as_deref(), want, "{text:?}");
        }
        for (text, want) in [
            ("10.1.2.3/16", Some("10.1.2.3/16")),
            ("10.0.0.0/024", Some("10.0.0.0/24")),
            ("10.0.0.0/+8", None),
            ("10.0.0.0/33", None),
            ("10.0.0.0/256", None),
            ("10.0.0.0/", None),
            ("10.0.0.0", None),
            ("10.0.0.0/8/9", None),
            ("fd00::1/64", Some("fd00::1/64")),
            ("fd00::/129", None),
            ("::ffff:10.0.0.0/104", None),
        ] {
            assert_eq!(parse_cidr(text).map(|net| net.to_string()).as_deref(), want, "{text:?}");
        }
        for ip in ["255.255.255.255", "10.0.0.1", "fd00::1", "::"] {
            let ip: IpAddr = ip.parse().expect("an address");
            assert_eq!(Family::of(ip).from_bits(to_bits(ip)), ip);
        }
    }

    #[test]
    fn interface_names_follow_the_kernel() {
        for (name, ok) in [
            ("eth0", true),
            ("flannel-v6.4096", true),
            ("flannel-v6.40960", false),
            ("", false),
            (".", false),
            ("..", false),
            ("a b", false),
            ("a/b", false),
            ("a:b", false),
            ("...", true),
        ] {
            assert_eq!(IfName::new(name).is_ok(), ok, "{name:?}");
        }
        assert_eq!(IfName::fixed("cni0").to_string(), "cni0");
    }
}
