//! Configuration of source-based routing (cni.md 2.11).

use std::net::IpAddr;

use super::members::{Members, parse_ip};
use super::result::{CniResult, IpConfig};
use crate::Family;

/// First table taken when the configuration names none.
pub const FIRST_TABLE: u32 = 100;

/// What the plugin is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sbr {
    /// Fixed table: rules only.
    pub table: Option<u32>,
    /// Gateways instead of the result's, at most one for each family.
    pub gateways: Vec<IpAddr>,
    /// Keep the subnet's route in the main table, with the address as its source.
    pub source_hints: bool,
}

impl Sbr {
    /// Reads and checks the document.
    ///
    /// # Errors
    /// One sentence, upstream's where it has one.
    pub fn parse(doc: &Members<'_>) -> Result<Sbr, String> {
        let table = doc.integer("table")?;
        let number = |table: i64| match u32::try_from(table) {
            Ok(table) if table > 0 => Ok(table),
            _ => Err(format!("table {table} is no routing table (1 to {})", u32::MAX)),
        };
        let mut gateways: Vec<IpAddr> = Vec::new();
        let texts = doc.strings("gateways")?;
        if texts.len() > 2 {
            return Err("gateways list cannot contain more than 2 entries (one IPv4, one IPv6)".to_owned());
        }
        for text in texts {
            let ip = parse_ip(&text).map_err(|_| format!("invalid static gateway IP address: {text}"))?;
            if let Some(other) = gateways.iter().find(|g| g.is_ipv4() == ip.is_ipv4()) {
                let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
                return Err(format!("gateways list contains multiple {family} addresses: {other} and {ip}"));
            }
            gateways.push(ip);
        }
        Ok(Sbr {
            table: table.map(number).transpose()?,
            gateways,
            source_hints: doc.boolean("addSourceHints")?.unwrap_or(false),
        })
    }

    /// The gateway of an address.
    pub fn gateway(&self, ip: &IpConfig) -> Option<IpAddr> {
        let family = Family::of_net(ip.address);
        self.gateways.iter().copied().find(|g| Family::of(*g) == family).or(ip.gateway)
    }
}

/// The addresses of an interface: those that name it, or no interface that is known.
pub fn addresses<'a>(result: &'a CniResult, ifname: &str) -> Vec<&'a IpConfig> {
    let name = |ip: &&IpConfig| {
        let interface = ip.interface.and_then(|n| result.interfaces.get(usize::try_from(n).ok()?));
        interface.is_none_or(|i| i.name == ifname)
    };
    result.ips.iter().filter(name).collect()
}

/// The first table from `from` on that is not among those in use.
pub fn free_table(from: u32, used: &[u32]) -> u32 {
    (from..).find(|table| !used.contains(table)).unwrap_or(from)
}

/// The preference the kernel would choose for the next rule: one less than that of the second rule.
pub fn next_priority(priorities: &[u32]) -> u32 {
    let mut sorted = priorities.to_vec();
    sorted.sort_unstable();
    sorted.get(1).map_or(0, |second| second.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_read() {
        let parse = |doc| Sbr::parse(&Members::of(&doc, "PluginConf").unwrap());
        assert_eq!(parse(json!({})), Ok(Sbr::default()));
        let all =
            parse(json!({"table": 300, "gateways": ["10.0.0.1", "2001:db8::1"], "addSourceHints": true}));
        let all = all.unwrap();
        assert_eq!((all.table, all.gateways.len(), all.source_hints), (Some(300), 2, true));
        for (doc, want) in [
            (
                json!({"gateways": ["10.0.0.1", "10.0.0.2"]}),
                "gateways list contains multiple IPv4 addresses: 10.0.0.1 and 10.0.0.2",
            ),
            (
                json!({"gateways": ["::1", "::2"]}),
                "gateways list contains multiple IPv6 addresses: ::1 and ::2",
            ),
            (
                json!({"gateways": ["1", "2", "3"]}),
                "gateways list cannot contain more than 2 entries (one IPv4, one IPv6)",
            ),
            (json!({"gateways": ["x"]}), "invalid static gateway IP address: x"),
            (json!({"table": 0}), "table 0 is no routing table (1 to 4294967295)"),
            (
                json!({"table": "a"}),
                "json: cannot unmarshal string into Go struct field PluginConf.table of type int",
            ),
        ] {
            assert_eq!(parse(doc), Err(want.to_owned()));
        }
    }

    #[test]
    fn numbers_are_the_kernels() {
        assert_eq!(free_table(100, &[254, 255, 100, 101]), 102);
        assert_eq!(next_priority(&[32767, 0, 32766]), 32765);
        assert_eq!(next_priority(&[32765, 32767, 0, 32766]), 32764);
        assert_eq!(next_priority(&[]), 0);
    }
}
