//! A DHCP client as values: configuration, messages, and the state machine (cni.md 2.18, RFC 2131).
//!
//! Opens no socket and reads no clock: packets and times come as arguments, what is to be sent comes back.

mod client;
mod message;

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

pub use client::{Action, Client, Timing};
pub use message::{Kind, Message, option};

use super::members::Members;
use super::result::{CniResult, IpConfig, RouteConfig};
use crate::gojson::Json;

/// Where the daemon listens when nothing else is said.
pub const SOCKET: &str = "/run/cni/dhcp.sock";
/// Longest value of an option.
const LONGEST: usize = 255;

/// What the `ipam` member says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DhcpConf {
    /// Socket of the daemon.
    pub socket: String,
    /// Options sent with every message.
    pub provide: Vec<(u8, Vec<u8>)>,
    /// Options asked for.
    pub request: Vec<u8>,
    /// Metric of all routes, 0 for none.
    pub priority: i64,
}

impl DhcpConf {
    /// Reads the document. `cni_args` is split leniently, for values that come from it.
    ///
    /// # Errors
    /// One sentence that names the option.
    pub fn parse(doc: &Members<'_>, cni_args: &str) -> Result<DhcpConf, String> {
        let ipam = doc.object("ipam", "IPAMConfig")?.ok_or("IPAM config missing 'ipam' key")?;
        let arg = |key: &str| {
            let pairs = cni_args.split(';').filter_map(|pair| pair.split_once('='));
            pairs.filter(|(k, _)| *k == key).map(|(_, v)| v.to_owned()).next_back()
        };
        let mut provide: Vec<(u8, Vec<u8>)> = Vec::new();
        for item in ipam.objects("provide", "ProvideOption")? {
            let name = text_or_number(&item, "option")?;
            let code = code(&name)?;
            let (value, from) = (item.string("value")?, item.string("fromArg")?);
            let from = if from.is_empty() { None } else { arg(&from) };
            for value in [Some(value).filter(|v| !v.is_empty()), from].into_iter().flatten() {
                if value.len() > LONGEST {
                    return Err(format!(
                        "value too long for option {name:?}: {} bytes, at most 255",
                        value.len()
                    ));
                }
                provide.retain(|(known, _)| *known != code);
                provide.push((code, value.into_bytes()));
            }
        }
        let (mut request, mut skip) = (Vec::new(), false);
        for item in ipam.objects("request", "RequestOption")? {
            skip |= item.boolean("skipDefault")?.unwrap_or(false);
            let name = text_or_number(&item, "option")?;
            if !name.is_empty() {
                request.push(code(&name)?);
            }
        }
        if !skip {
            request.extend([option::ROUTERS, option::SUBNET_MASK]);
        }
        let mut seen = Vec::new();
        request.retain(|code| {
            !seen.contains(code) && {
                seen.push(*code);
                true
            }
        });
        // DEL takes the usual one for a wrong one; who asks there does not.
        ipam.string("daemonSocketPath")?;
        Ok(DhcpConf {
            socket: socket(doc),
            provide,
            request,
            priority: ipam.integer("priority")?.unwrap_or(0),
        })
    }
}

/// The daemon's socket: all that DEL needs.
pub fn socket(doc: &Members<'_>) -> String {
    let ipam = doc.object("ipam", "IPAMConfig").ok().flatten();
    let path = ipam.and_then(|ipam| ipam.string("daemonSocketPath").ok()).unwrap_or_default();
    if path.is_empty() { SOCKET.to_owned() } else { path }
}

fn text_or_number(item: &Members<'_>, key: &str) -> Result<String, String> {
    match item.get(key) {
        Some(Json::Number(text)) => Ok(text.to_string()),
        _ => item.string(key),
    }
}

/// An option by number or by one of the names upstream knows.
fn code(name: &str) -> Result<u8, String> {
    Ok(match name {
        "dhcp-client-identifier" => option::CLIENT_ID,
        "subnet-mask" => option::SUBNET_MASK,
        "routers" => option::ROUTERS,
        "host-name" => 12,
        "user-class" => 77,
        "vendor-class-identifier" => 60,
        number => {
            let bad = || format!("option {number:?} is neither a number from 1 to 254 nor a known name");
            number.parse().ok().filter(|n| (1..=254).contains(n)).ok_or_else(bad)?
        }
    })
}

/// Client id of an attachment: zero and `<cid>/<network>/<ifname>`, cut.
pub fn client_id(container_id: &str, network: &str, ifname: &str) -> Vec<u8> {
    let mut id = vec![0];
    id.extend(format!("{container_id}/{network}/{ifname}").bytes());
    id.truncate(LONGEST);
    id
}

/// What a server gave, and until when. Times are milliseconds of the clock the client is run by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Address and mask.
    pub address: Ipv4Net,
    /// The server that gave it.
    pub server: Ipv4Addr,
    /// All options of the acknowledgement.
    pub options: Vec<(u8, Vec<u8>)>,
    /// Renewal begins.
    pub renew_at: u64,
    /// Any server is asked from here on.
    pub rebind_at: u64,
    /// The address may not be used any more.
    pub expires_at: u64,
}

impl Lease {
    fn option(&self, code: u8) -> Option<&[u8]> {
        self.options.iter().find(|(known, _)| *known == code).map(|(_, value)| value.as_slice())
    }

    /// The address manager's answer.
    pub fn to_result(&self, priority: i64) -> CniResult {
        let routers = addresses(self.option(option::ROUTERS).unwrap_or_default());
        let gateway = routers.first().copied().map(IpAddr::V4);
        let mut routes = Vec::new();
        let mut add = |dst: Ipv4Net, gw: Option<Ipv4Addr>| {
            let on_link = gw.is_none_or(|gw| gw.is_unspecified());
            let mut route = RouteConfig::new(IpNet::V4(dst), gw.filter(|_| !on_link).map(IpAddr::V4));
            /// `RT_SCOPE_LINK`
            const LINK: i64 = 253;
            route.scope = on_link.then_some(LINK);
            route.priority = priority;
            routes.push(route);
        };
        // RFC 3442: with this option the others are not looked at.
        if let Some(bytes) = self.option(option::CLASSLESS_ROUTES) {
            classless(bytes).into_iter().for_each(|(dst, gw)| add(dst, Some(gw)));
        } else {
            for pair in addresses(self.option(option::STATIC_ROUTES).unwrap_or_default()).chunks_exact(2) {
                if let Some(dst) = classful(pair[0]) {
                    add(dst, Some(pair[1]));
                }
            }
            if let Some(router) = routers.first() {
                add(Ipv4Net::default(), Some(*router));
            }
        }
        let address = IpConfig { interface: None, address: IpNet::V4(self.address), gateway };
        CniResult { ips: vec![address], routes, ..CniResult::default() }
    }
}

fn addresses(bytes: &[u8]) -> Vec<Ipv4Addr> {
    bytes.chunks_exact(4).map(|b| Ipv4Addr::new(b[0], b[1], b[2], b[3])).collect()
}

/// RFC 3442: length of the prefix, its significant bytes, the router. A malformed end is left out.
fn classless(mut bytes: &[u8]) -> Vec<(Ipv4Net, Ipv4Addr)> {
    let mut routes = Vec::new();
    while let Some((length, rest)) = bytes.split_first() {
        let significant = usize::from(*length).div_ceil(8);
        let (Some(prefix), Some(router)) = (rest.get(..significant), rest.get(significant..significant + 4))
        else {
            break;
        };
        let mut octets = [0; 4];
        if significant > octets.len() {
            break;
        }
        octets[..significant].copy_from_slice(prefix);
        let Ok(net) = Ipv4Net::new(octets.into(), *length) else { break };
        routes.push((net.trunc(), addresses(router)[0]));
        bytes = &rest[significant + 4..];
    }
    routes
}

/// The network of an address by its class (RFC 2132 5.8); 0.0.0.0 is none there.
fn classful(ip: Ipv4Addr) -> Option<Ipv4Net> {
    let length = match ip.octets()[0] {
        0 => return None,
        1..=127 => 8,
        128..=191 => 16,
        192..=223 => 24,
        _ => 32,
    };
    Ipv4Net::new(ip, length).ok().map(|net| net.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_read() {
        let parse = |doc, args| DhcpConf::parse(&Members::of(&doc, "NetConf").unwrap(), args);
        let plain = parse(json!({"ipam": {"type": "dhcp"}}), "").unwrap();
        assert_eq!((plain.socket.as_str(), plain.request.as_slice()), (SOCKET, &[3, 1][..]));
        let all = json!({"ipam": {"daemonSocketPath": "/s", "priority": 7,
            "provide": [{"option": "host-name", "value": "a"}, {"option": "host-name", "fromArg": "K"},
                        {"option": 60, "fromArg": "NONE"}, {"option": "61", "value": "id"}],
            "request": [{"option": "121"}, {"skipDefault": true}, {"option": 3}]}});
        let all = parse(all, "A=b;K=pod;broken").unwrap();
        assert_eq!((all.socket.as_str(), all.priority), ("/s", 7));
        assert_eq!(all.provide, [(12, b"pod".to_vec()), (61, b"id".to_vec())]);
        assert_eq!(all.request, [121, 3]);
        for (doc, want) in [
            (json!({}), "IPAM config missing 'ipam' key"),
            (
                json!({"ipam": {"provide": [{"option": "x"}]}}),
                "option \"x\" is neither a number from 1 to 254 nor a known name",
            ),
            (json!({"ipam": {"request": [{"option": "255"}]}}), "option \"255\" is neither"),
            (json!({"ipam": {"provide": [{"option": "12", "value": 5}]}}), "json: cannot unmarshal number"),
        ] {
            let error = parse(doc, "").unwrap_err();
            assert!(error.starts_with(want), "{error}");
        }
        let long =
            format!(r#"{{"ipam": {{"provide": [{{"option": "12", "value": "{}"}}]}}}}"#, "x".repeat(256));
        assert!(
            parse(long.parse().unwrap(), "").unwrap_err().starts_with("value too long for option \"12\"")
        );
        assert_eq!(client_id("c", "n", "i"), b"\0c/n/i");
        assert_eq!(client_id(&"c".repeat(300), "n", "i").len(), 255);
    }

    #[test]
    fn routes_are_upstreams() {
        let lease = |options: &[(u8, &[u8])]| Lease {
            address: "10.1.2.3/24".parse().unwrap(),
            server: Ipv4Addr::UNSPECIFIED,
            options: options.iter().map(|(code, value)| (*code, value.to_vec())).collect(),
            renew_at: 0,
            rebind_at: 0,
            expires_at: 0,
        };
        let routes = |options: &[(u8, &[u8])]| -> Vec<String> {
            let result = lease(options).to_result(0);
            result
                .routes
                .iter()
                .map(|r| format!("{} {:?} {:?}", r.dst, r.gw.map(|g| g.to_string()), r.scope))
                .collect()
        };
        let router = (3, &[10, 1, 2, 1, 10, 1, 2, 2][..]);
        assert_eq!(routes(&[]), [""; 0]);
        assert_eq!(routes(&[router]), ["0.0.0.0/0 Some(\"10.1.2.1\") None"]);
        assert_eq!(
            routes(&[
                router,
                (33, &[10, 9, 0, 0, 10, 1, 2, 9, 0, 0, 0, 0, 10, 1, 2, 8, 192, 0, 2, 5, 10, 1, 2, 7])
            ]),
            [
                "10.0.0.0/8 Some(\"10.1.2.9\") None",
                "192.0.2.0/24 Some(\"10.1.2.7\") None",
                "0.0.0.0/0 Some(\"10.1.2.1\") None"
            ]
        );
        assert_eq!(
            routes(&[
                router,
                (121, &[24, 192, 168, 7, 10, 1, 2, 9, 0, 10, 1, 2, 5, 32, 1, 2, 3, 4, 0, 0, 0, 0, 33, 1])
            ]),
            [
                "192.168.7.0/24 Some(\"10.1.2.9\") None",
                "0.0.0.0/0 Some(\"10.1.2.5\") None",
                "1.2.3.4/32 None Some(253)"
            ]
        );
        let result = lease(&[router]).to_result(9);
        assert_eq!(result.ips[0].gateway, Some("10.1.2.1".parse().unwrap()));
        assert_eq!(result.routes[0].priority, 9);
    }
}
