//! Address ranges of host-local and the order in which addresses are tried (cni.md 2.2).

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::members::Members;
use crate::Family;

/// A checked range: both ends lie in the subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The subnet, masked.
    pub subnet: IpNet,
    /// First address given out.
    pub start: IpAddr,
    /// Last address given out.
    pub end: IpAddr,
    /// Never given out; may lie outside the range.
    pub gateway: IpAddr,
}

impl Range {
    /// Reads and checks a range object.
    ///
    /// # Errors
    /// With upstream's sentences: too small, host bits set, an end outside the subnet.
    pub fn parse(m: &Members<'_>) -> Result<Range, String> {
        let subnet = m.net("subnet")?.ok_or("IPAM range without subnet: name it, such as 10.244.1.0/24")?;
        let length = subnet.prefix_len();
        if subnet.max_prefix_len() - length < 2 {
            return Err(format!("Network {subnet} too small to allocate from"));
        }
        if subnet.addr() != subnet.network() {
            let network = subnet.network();
            let rule = format!("For a subnet mask of length {length} the network address is {network}");
            return Err(format!("Network has host bits set. {rule}"));
        }
        let (start, end) = (m.ip("rangeStart")?, m.ip("rangeEnd")?);
        // Upstream asks "between start and end" for both ends, so start > end is the start's fault.
        let inside = |ip: IpAddr, start: Option<IpAddr>| {
            subnet.contains(&ip) && start.is_none_or(|s| s <= ip) && end.is_none_or(|e| ip <= e)
        };
        if let Some(start) = start.filter(|s| !inside(*s, None)) {
            return Err(format!("RangeStart {start} not in network {subnet}"));
        }
        let first = offset(subnet.network(), 1);
        let start = start.unwrap_or(first);
        if let Some(end) = end.filter(|e| !inside(*e, Some(start))) {
            return Err(format!("RangeEnd {end} not in network {subnet}"));
        }
        let last = match Family::of_net(subnet) {
            Family::V4 => from_bits(Family::V4, bits(subnet.broadcast()) - 1),
            Family::V6 => subnet.broadcast(),
        };
        Ok(Range { subnet, start, end: end.unwrap_or(last), gateway: m.ip("gateway")?.unwrap_or(first) })
    }

    /// Whether an address lies between the ends.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.subnet.contains(&ip) && self.start <= ip && ip <= self.end
    }

    fn overlaps(&self, other: &Range) -> bool {
        Family::of_net(self.subnet) == Family::of_net(other.subnet)
            && self.start <= other.end
            && other.start <= self.end
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

/// Ranges of one family; an attachment gets one address out of each set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

impl RangeSet {
    /// Checks that the ranges go together.
    ///
    /// # Errors
    /// With upstream's sentences: none, mixed families, overlap.
    pub fn new(ranges: Vec<Range>) -> Result<RangeSet, String> {
        let first = ranges.first().ok_or("empty range set")?;
        let family = Family::of_net(first.subnet);
        if ranges.iter().any(|r| Family::of_net(r.subnet) != family) {
            return Err("mixed address families".to_owned());
        }
        for (n, a) in ranges.iter().enumerate() {
            if let Some(b) = ranges[n + 1..].iter().find(|b| a.overlaps(b)) {
                return Err(format!("subnets {a} and {b} overlap"));
            }
        }
        Ok(RangeSet(ranges))
    }

    /// The family of the set.
    pub fn family(&self) -> Family {
        Family::of_net(self.0[0].subnet)
    }

    /// The range an address lies in.
    pub fn range_of(&self, ip: IpAddr) -> Option<&Range> {
        self.0.iter().find(|r| r.contains(ip))
    }

    /// Whether any address is in both sets.
    pub fn overlaps(&self, other: &RangeSet) -> bool {
        self.0.iter().any(|a| other.0.iter().any(|b| a.overlaps(b)))
    }

    /// Addresses in the order they are tried: after `last`, round to it again, gateways left out.
    pub fn candidates(&self, last: Option<IpAddr>) -> impl Iterator<Item = (IpAddr, &Range)> {
        let from = last.and_then(|last| Some((self.0.iter().position(|r| r.contains(last))?, last)));
        let first = match from {
            Some((at, last)) => self.after(at, last),
            None => (0, self.0[0].start),
        };
        let mut next = Some(first);
        std::iter::from_fn(move || {
            let (at, ip) = next?;
            next = Some(self.after(at, ip)).filter(|n| *n != first);
            Some((ip, &self.0[at]))
        })
        .filter(|(ip, range)| *ip != range.gateway)
    }

    fn after(&self, at: usize, ip: IpAddr) -> (usize, IpAddr) {
        if ip < self.0[at].end {
            return (at, offset(ip, 1));
        }
        let at = (at + 1) % self.0.len();
        (at, self.0[at].start)
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, range) in self.0.iter().enumerate() {
            write!(f, "{}{range}", if n > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

fn from_bits(family: Family, bits: u128) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4((bits as u32).into()),
        Family::V6 => IpAddr::V6(bits.into()),
    }
}

/// The address `by` places further on, wrapping at the end of the family.
pub fn offset(ip: IpAddr, by: u128) -> IpAddr {
    from_bits(Family::of(ip), bits(ip).wrapping_add(by))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gojson::Json;

    fn range(value: &Json) -> Result<Range, String> {
        Range::parse(&Members::of(value, "Range").unwrap())
    }

    fn set(values: &[Json]) -> RangeSet {
        RangeSet::new(values.iter().map(|v| range(v).unwrap()).collect()).unwrap()
    }

    #[test]
    fn ranges_are_checked() {
        for (value, want) in [
            (json!({"subnet": "10.1.2.0/24"}), Ok("10.1.2.1-10.1.2.254 gw 10.1.2.1")),
            (
                json!({"subnet": "2001:db8::/64"}),
                Ok("2001:db8::1-2001:db8::ffff:ffff:ffff:ffff gw 2001:db8::1"),
            ),
            (
                json!({"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.40", "rangeEnd": "192.0.2.50", "gateway": "192.0.2.254"}),
                Ok("192.0.2.40-192.0.2.50 gw 192.0.2.254"),
            ),
            (json!({"subnet": "192.0.2.0/31"}), Err("Network 192.0.2.0/31 too small to allocate from")),
            (
                json!({"subnet": "192.0.2.12/24"}),
                Err(
                    "Network has host bits set. For a subnet mask of length 24 the network address is 192.0.2.0",
                ),
            ),
            (
                json!({"subnet": "192.0.2.0/24", "rangeStart": "192.0.3.0"}),
                Err("RangeStart 192.0.3.0 not in network 192.0.2.0/24"),
            ),
            (
                json!({"subnet": "192.0.2.0/24", "rangeEnd": "192.0.4.0"}),
                Err("RangeEnd 192.0.4.0 not in network 192.0.2.0/24"),
            ),
            (
                json!({"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.50", "rangeEnd": "192.0.2.40"}),
                Err("RangeStart 192.0.2.50 not in network 192.0.2.0/24"),
            ),
        ] {
            let got = range(&value).map(|r| format!("{r} gw {}", r.gateway));
            assert_eq!(got.as_deref().map_err(String::as_str), want, "{value:?}");
        }
    }

    #[test]
    fn sets_are_checked() {
        let v4 = json!({"subnet": "10.0.0.0/24"});
        let half = json!({"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.200"});
        let v6 = json!({"subnet": "2001:db8::/64"});
        for (values, want) in [
            (vec![], "empty range set"),
            (vec![&v4, &v6], "mixed address families"),
            (vec![&v4, &half], "subnets 10.0.0.1-10.0.0.254 and 10.0.0.200-10.0.0.254 overlap"),
        ] {
            let ranges = values.iter().map(|v| range(v).unwrap()).collect();
            assert_eq!(RangeSet::new(ranges), Err(want.to_owned()));
        }
        assert!(set(&[v4]).overlaps(&set(&[half])));
    }

    #[test]
    fn addresses_go_round() {
        let one = set(&[json!({"subnet": "10.0.0.0/29"})]);
        let two = set(&[json!({"subnet": "10.0.1.0/30"}), json!({"subnet": "10.0.2.0/30"})]);
        let three = set(&[
            json!({"subnet": "10.0.1.0/30"}),
            json!({"subnet": "10.0.2.0/30"}),
            json!({"subnet": "10.0.4.0/30"}),
        ]);
        for (set, last, taken, want) in [
            (&one, None, vec![], Some("10.0.0.2")),
            (&one, Some("10.0.0.5"), vec![], Some("10.0.0.6")),
            (&one, Some("10.0.0.5"), vec!["10.0.0.6"], Some("10.0.0.2")),
            (&one, Some("10.0.0.128"), vec!["10.0.0.2"], Some("10.0.0.3")),
            (&one, Some("10.0.0.3"), vec!["10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6"], Some("10.0.0.3")),
            (&one, Some("10.0.0.3"), vec!["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"], None),
            (&two, None, vec![], Some("10.0.1.2")),
            (&two, Some("10.0.1.2"), vec![], Some("10.0.2.2")),
            (&three, Some("10.0.4.2"), vec![], Some("10.0.1.2")),
        ] {
            let last = last.map(|l| l.parse().unwrap());
            let free = set.candidates(last).find(|(ip, _)| !taken.contains(&ip.to_string().as_str()));
            assert_eq!(free.map(|(ip, _)| ip.to_string()).as_deref(), want, "{set} after {last:?}");
        }
        assert_eq!(one.to_string(), "10.0.0.1-10.0.0.6");
        assert_eq!(two.to_string(), "10.0.1.1-10.0.1.2,10.0.2.1-10.0.2.2");
    }
}
