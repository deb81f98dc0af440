//! Configuration of the static address manager (cni.md 2.10).

use std::net::IpAddr;

use ipnet::IpNet;

use super::args::Args;
use super::members::{Members, parse_ip, parse_net};
use super::result::{Dns, IpConfig, RouteConfig};
use super::version::Version;
use crate::Family;

/// Addresses, routes and resolver settings as the document and the runtime give them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StaticIpam {
    /// Addresses with their gateways.
    pub ips: Vec<IpConfig>,
    /// Routes for the result.
    pub routes: Vec<RouteConfig>,
    /// Resolver settings for the result.
    pub dns: Dns,
}

impl StaticIpam {
    /// Reads the whole document of the network. `CNI_ARGS` adds addresses, `args.cni.ips` replaces all,
    /// `runtimeConfig.ips` replaces those.
    ///
    /// # Errors
    /// One sentence, upstream's where it has one.
    pub fn parse(doc: &Members<'_>, cni_args: &str, version: Version) -> Result<StaticIpam, String> {
        let ipam = doc.object("ipam", "IPAMConfig")?.ok_or("IPAM config missing 'ipam' key")?;
        let mut ips = from_args(cni_args)?;
        let mut configured = Vec::new();
        let cni = doc.object("args", "Args")?.map(|a| a.object("cni", "IPAMArgs")).transpose()?.flatten();
        let runtime = doc.object("runtimeConfig", "RuntimeConfig")?;
        let replacing = [runtime, cni].into_iter().flatten().map(|source| source.strings("ips"));
        let replacing = replacing.collect::<Result<Vec<_>, _>>()?;
        match replacing.into_iter().find(|list| !list.is_empty()) {
            Some(list) => {
                let bad = |text: &str| {
                    format!("an entry in the 'ips' field is NOT in CIDR notation, got: '{text}'")
                };
                ips = list.iter().map(|a| address(a, bad)).collect::<Result<_, _>>()?;
            }
            None => {
                for item in ipam.objects("addresses", "Address")? {
                    let bad = |text: &str| {
                        format!("the 'address' field is expected to be in CIDR notation, got: '{text}'")
                    };
                    let ip = address(&item.string("address")?, bad)?;
                    configured.push(IpConfig { gateway: item.ip("gateway")?, ..ip });
                }
            }
        }
        configured.append(&mut ips);
        let ips = configured;
        if version < Version(0, 3, 0) {
            let many = |family| ips.iter().filter(|ip| Family::of_net(ip.address) == family).count() > 1;
            if Family::BOTH.into_iter().any(many) {
                let Version(a, b, c) = version;
                return Err(format!(
                    "CNI version {a}.{b}.{c} does not support more than 1 address per family"
                ));
            }
        }
        let routes = ipam.objects("routes", "Route")?;
        Ok(StaticIpam {
            ips,
            routes: routes.iter().map(RouteConfig::parse).collect::<Result<_, _>>()?,
            dns: ipam.object("dns", "DNS")?.map(|dns| Dns::parse(&dns)).transpose()?.unwrap_or_default(),
        })
    }
}

fn address(text: &str, bad: impl Fn(&str) -> String) -> Result<IpConfig, String> {
    let address = parse_net(text).map_err(|_| bad(text))?;
    Ok(IpConfig { interface: None, address, gateway: None })
}

/// `IP` is a list of addresses, `GATEWAY` one of gateways, each for the addresses whose subnet it is in.
fn from_args(cni_args: &str) -> Result<Vec<IpConfig>, String> {
    let args = Args::parse(cni_args, &["IP", "GATEWAY"])?;
    let list = |key| args.get(key).unwrap_or_default().split(',').map(str::trim).collect::<Vec<_>>();
    let given = |key| args.get(key).is_some();
    let mut ips = Vec::new();
    if given("IP") {
        let bad = |text: &str| format!("the 'ip' field is expected to be in CIDR notation, got: '{text}'");
        ips = list("IP").into_iter().map(|text| address(text, bad)).collect::<Result<_, _>>()?;
    }
    if given("GATEWAY") {
        for text in list("GATEWAY") {
            let gateway: IpAddr = parse_ip(text).map_err(|_| format!("invalid gateway address: {text}"))?;
            let inside = |ip: &&mut IpConfig| -> bool { IpNet::trunc(&ip.address).contains(&gateway) };
            ips.iter_mut().filter(inside).for_each(|ip| ip.gateway = Some(gateway));
        }
    }
    Ok(ips)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(doc: &crate::Json, args: &str, version: Version) -> Result<Vec<String>, String> {
        let got = StaticIpam::parse(&Members::of(doc, "Net").unwrap(), args, version)?;
        let text = |ip: &IpConfig| match ip.gateway {
            Some(gateway) => format!("{} via {gateway}", ip.address),
            None => ip.address.to_string(),
        };
        Ok(got.ips.iter().map(text).collect())
    }

    #[test]
    fn sources_and_their_precedence() {
        let conf = json!({"ipam": {"addresses": [
            {"address": "10.10.0.1/24", "gateway": "10.10.0.254"}, {"address": "3ffe:ffff:0:01ff::1/64"}]}});
        let mut args = conf.clone();
        args.set("args", json!({"cni": {"ips": ["10.1.0.5/16"]}}));
        let mut both = args.clone();
        both.set("runtimeConfig", json!({"ips": ["10.2.0.5/16", "fd00::5/64"]}));
        for (doc, cni_args, want) in [
            (&conf, "", &["10.10.0.1/24 via 10.10.0.254", "3ffe:ffff:0:1ff::1/64"][..]),
            (
                &conf,
                "IP=10.10.0.9/24, 11.11.0.9/24;GATEWAY=10.10.0.254,11.11.0.254",
                &[
                    "10.10.0.1/24 via 10.10.0.254",
                    "3ffe:ffff:0:1ff::1/64",
                    "10.10.0.9/24 via 10.10.0.254",
                    "11.11.0.9/24 via 11.11.0.254",
                ],
            ),
            (&args, "IP=10.10.0.9/24", &["10.1.0.5/16"]),
            (&both, "IP=10.10.0.9/24", &["10.2.0.5/16", "fd00::5/64"]),
            (&json!({"ipam": {}}), "IgnoreUnknown=1;FOO=x", &[]),
        ] {
            let want: Vec<String> = want.iter().map(|w| (*w).to_owned()).collect();
            assert_eq!(read(doc, cni_args, Version(1, 0, 0)), Ok(want), "{doc:?} {cni_args}");
        }
    }

    #[test]
    fn faults_are_named() {
        let two = json!({"ipam": {"addresses": [{"address": "10.0.0.1/24"}, {"address": "10.0.1.1/24"}]}});
        for (doc, args, version, want) in [
            (json!({}), "IP=10.0.0.1/24", 1, "IPAM config missing 'ipam' key"),
            (json!({"args": {"cni": {"ips": ["10.0.0.1/24"]}}}), "", 1, "IPAM config missing 'ipam' key"),
            (
                json!({"ipam": {"addresses": [{"address": "10.0.0.1"}]}}),
                "",
                1,
                "the 'address' field is expected to be in CIDR notation, got: '10.0.0.1'",
            ),
            (
                json!({"ipam": {}}),
                "IP=10.0.0.1",
                1,
                "the 'ip' field is expected to be in CIDR notation, got: '10.0.0.1'",
            ),
            (
                json!({"ipam": {}, "args": {"cni": {"ips": ["10.0.0.1"]}}}),
                "",
                1,
                "an entry in the 'ips' field is NOT in CIDR notation, got: '10.0.0.1'",
            ),
            (
                json!({"ipam": {}, "runtimeConfig": {"ips": ["x/24"]}}),
                "",
                1,
                "an entry in the 'ips' field is NOT in CIDR notation, got: 'x/24'",
            ),
            (json!({"ipam": {}}), "IP=10.0.0.1/24;GATEWAY=x", 1, "invalid gateway address: x"),
            (two.clone(), "", 0, "CNI version 0.2.0 does not support more than 1 address per family"),
            (
                json!({"ipam": {"addresses": [{"address": 5}]}}),
                "",
                1,
                "json: cannot unmarshal number into Go struct field Address.ipam.addresses.address of type string",
            ),
        ] {
            let version = if version == 0 { Version(0, 2, 0) } else { Version(1, 0, 0) };
            assert_eq!(read(&doc, args, version), Err(want.to_owned()), "{doc:?} {args}");
        }
    }
}
