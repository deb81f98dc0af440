//! Configuration of the host-local address manager (cni.md 2.2).

use std::net::IpAddr;

use super::args::Args;
use super::members::{Members, parse_ip, parse_net};
use super::range::{Range, RangeSet};
use super::result::RouteConfig;
use super::version::Version;
use crate::Family;
use crate::gojson::Json;

/// Where reservations live when the configuration does not say.
pub const DATA_DIR: &str = "/var/lib/cni/networks";

/// What host-local needs of a network's document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLocal {
    /// Directory of the stores of all networks.
    pub data_dir: String,
    /// Resolver file to read into the result; empty for none.
    pub resolv_conf: String,
    /// Routes for the result.
    pub routes: Vec<RouteConfig>,
    /// One address is given out of each.
    pub sets: Vec<RangeSet>,
    /// Addresses asked for, in order of precedence.
    pub requested: Vec<IpAddr>,
}

impl HostLocal {
    /// Reads the whole document of the network.
    ///
    /// # Errors
    /// One sentence, upstream's where it has one.
    pub fn parse(doc: &Members<'_>, cni_args: &str, version: Version) -> Result<HostLocal, String> {
        let ipam = doc.object("ipam", "IPAMConfig")?.ok_or("IPAM config missing 'ipam' key")?;
        let runtime = doc.object("runtimeConfig", "RuntimeConfig")?;
        let sets = range_sets(&ipam, runtime.as_ref())?;
        if version < Version(0, 3, 0) {
            let many = |family| sets.iter().filter(|s| s.family() == family).count() > 1;
            if Family::BOTH.into_iter().any(many) {
                let Version(a, b, c) = version;
                let rule = "does not support more than 1 address per family";
                return Err(format!("CNI version {a}.{b}.{c} {rule}"));
            }
        }
        let routes = ipam.objects("routes", "Route")?;
        // DEL takes the usual one for a wrong one; who writes there does not.
        ipam.string("dataDir")?;
        Ok(HostLocal {
            data_dir: data_dir(doc),
            resolv_conf: ipam.string("resolvConf")?,
            routes: routes.iter().map(RouteConfig::parse).collect::<Result<_, _>>()?,
            sets,
            requested: requested(doc, runtime, cni_args)?,
        })
    }
}

/// The store's directory: all that releasing needs, whatever else the document holds (P-3).
pub fn data_dir(doc: &Members<'_>) -> String {
    let ipam = doc.object("ipam", "IPAMConfig").ok().flatten();
    let dir = ipam.and_then(|ipam| ipam.string("dataDir").ok()).unwrap_or_default();
    if dir.is_empty() { DATA_DIR.to_owned() } else { dir }
}

/// `runtimeConfig.ipRanges`, then the old style's single range, then `ranges`.
fn range_sets(ipam: &Members<'_>, runtime: Option<&Members<'_>>) -> Result<Vec<RangeSet>, String> {
    let mut raw: Vec<Vec<Members<'_>>> = Vec::new();
    if let Some(list) = runtime.map(|r| r.list("ipRanges")).transpose()?.flatten() {
        raw.extend(list.iter().map(set_members).collect::<Result<Vec<_>, _>>()?);
    }
    if ipam.get("subnet").is_some() {
        raw.push(vec![ipam.clone()]);
    }
    if let Some(list) = ipam.list("ranges")? {
        raw.extend(list.iter().map(set_members).collect::<Result<Vec<_>, _>>()?);
    }
    if raw.is_empty() {
        return Err("no IP ranges specified".to_owned());
    }
    let mut sets: Vec<RangeSet> = Vec::new();
    for (n, ranges) in raw.into_iter().enumerate() {
        let ranges: Result<Vec<Range>, String> = ranges.iter().map(Range::parse).collect();
        sets.push(ranges.and_then(RangeSet::new).map_err(|e| format!("invalid range set {n}: {e}"))?);
    }
    for (n, set) in sets.iter().enumerate() {
        if let Some(m) = sets[n + 1..].iter().position(|other| set.overlaps(other)) {
            return Err(format!("range set {n} overlaps with {}", n + 1 + m));
        }
    }
    Ok(sets)
}

fn set_members(value: &Json) -> Result<Vec<Members<'_>>, String> {
    let list = value.as_array().ok_or("json: cannot unmarshal a range set that is no list of ranges")?;
    list.iter().map(|range| Members::of(range, "Range")).collect()
}

fn requested(doc: &Members<'_>, runtime: Option<Members<'_>>, cni_args: &str) -> Result<Vec<IpAddr>, String> {
    let args = Args::parse(cni_args, &["IP"])?;
    let mut texts: Vec<String> = args.get("IP").map(str::to_owned).into_iter().collect();
    let cni = doc.object("args", "Args")?.map(|a| a.object("cni", "CNIArgs")).transpose()?.flatten();
    for source in [cni, runtime].into_iter().flatten() {
        texts.extend(source.strings("ips")?);
    }
    texts.iter().map(|text| parse_net(text).map(|net| net.addr()).or_else(|_| parse_ip(text))).collect()
}

/// Reads resolver settings out of the text of a `resolv.conf`.
pub fn resolv_conf(text: &str) -> super::Dns {
    let mut dns = super::Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let words = (words.next(), words.map(str::to_owned));
        match words {
            (Some("nameserver"), mut rest) => dns.nameservers.extend(rest.next()),
            (Some("domain"), mut rest) => dns.domain = rest.next().unwrap_or_default(),
            (Some("search"), rest) => dns.search.extend(rest),
            (Some("options"), rest) => dns.options.extend(rest),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(doc: &Json, args: &str, version: Version) -> Result<HostLocal, String> {
        HostLocal::parse(&Members::of(doc, "Net").unwrap(), args, version)
    }

    #[test]
    fn sources_of_ranges_and_addresses_keep_their_order() {
        let doc = json!({
            "ipam": {
                "subnet": "10.1.2.0/24",
                "ranges": [[{"subnet": "2001:db8::/64"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "2001:db8::9"}]
            },
            "args": {"cni": {"ips": ["10.1.2.4"]}},
            "runtimeConfig": {"ipRanges": [[{"subnet": "10.9.0.0/24"}]], "ips": ["2001:db8::7/64"]}
        });
        let got = parse(&doc, "IP=10.9.0.5/24;IgnoreUnknown=1;A=b", Version(1, 0, 0)).unwrap();
        let sets: Vec<String> = got.sets.iter().map(RangeSet::to_string).collect();
        assert_eq!(sets[..2], ["10.9.0.1-10.9.0.254", "10.1.2.1-10.1.2.254"]);
        let ips: Vec<String> = got.requested.iter().map(IpAddr::to_string).collect();
        assert_eq!(ips, ["10.9.0.5", "10.1.2.4", "2001:db8::7"]);
        assert_eq!(got.routes.len(), 2);
        assert_eq!(got.data_dir, DATA_DIR);
        let error = parse(&doc, "", Version(0, 2, 0));
        assert_eq!(
            error,
            Err("CNI version 0.2.0 does not support more than 1 address per family".to_owned())
        );
    }

    #[test]
    fn faults_are_named() {
        for (doc, want) in [
            (json!({"ipam": null}), "IPAM config missing 'ipam' key"),
            (json!({"ipam": {}}), "no IP ranges specified"),
            (json!({"ipam": {"ranges": [[]]}}), "invalid range set 0: empty range set"),
            (
                json!({"ipam": {"subnet": "192.0.2.0/31"}}),
                "invalid range set 0: Network 192.0.2.0/31 too small to allocate from",
            ),
            (
                json!({"ipam": {"subnet": "10.0.0.0/24", "ranges": [[{"subnet": "10.0.0.0/25"}]]}}),
                "range set 0 overlaps with 1",
            ),
        ] {
            assert_eq!(parse(&doc, "", Version(1, 0, 0)), Err(want.to_owned()), "{doc:?}");
        }
    }

    #[test]
    fn resolver_files_are_read() {
        let text = " # c\nnameserver 192.0.2.1 \n;x\ndomain example.net\nsearch a b\nsearch c\noptions d:1 e\nother\n";
        let dns = resolv_conf(text);
        assert_eq!(dns.nameservers, ["192.0.2.1"]);
        assert_eq!(dns.domain, "example.net");
        assert_eq!(dns.search, ["a", "b", "c"]);
        assert_eq!(dns.options, ["d:1", "e"]);
    }
}
