use super::*;
use model::cni::{IpConfig, Members};
use model::gojson::Json;

fn conf(text: &str) -> BridgeConf {
    let doc: Json = text.parse().unwrap();
    BridgeConf::parse(&Members::of(&doc, "NetConf").unwrap(), "").unwrap()
}

/// Document, addresses, routes given, routes wanted.
type Case<'a> = (&'a str, &'a [&'a str], &'a [(&'a str, Option<&'a str>)], &'a [&'a str]);

#[test]
fn gateways_and_default_routes_are_completed() {
    let v4 = "10.9.1.2/24";
    let v6 = "2001:db8::2/64";
    let cases: &[Case<'_>] = &[
        ("{}", &[v4], &[], &[]),
        (r#"{"isGateway": true}"#, &[v4], &[("10.0.0.0/8", None)], &["10.0.0.0/8"]),
        (r#"{"isDefaultGateway": true}"#, &[v4], &[], &["0.0.0.0/0 10.9.1.1"]),
        (r#"{"isDefaultGateway": true}"#, &[v4, v6], &[], &["0.0.0.0/0 10.9.1.1", "::/0 2001:db8::1"]),
        // A default route with a gateway stays, one without gets ours (B-22).
        (r#"{"isDefaultGateway": true}"#, &[v4], &[("0.0.0.0/0", Some("10.9.1.9"))], &["0.0.0.0/0 10.9.1.9"]),
        (
            r#"{"isDefaultGateway": true}"#,
            &[v4, v6],
            &[("0.0.0.0/0", None)],
            &["0.0.0.0/0 10.9.1.1", "::/0 2001:db8::1"],
        ),
    ];
    for (text, ips, routes, want) in cases {
        let ip = |ip: &&str| IpConfig { interface: None, address: ip.parse().unwrap(), gateway: None };
        let route = |(dst, gw): &(&str, Option<&str>)| {
            RouteConfig::new(dst.parse().unwrap(), gw.map(|gw| gw.parse().unwrap()))
        };
        let mut result = CniResult {
            ips: ips.iter().map(ip).collect(),
            routes: routes.iter().map(route).collect(),
            ..CniResult::default()
        };
        let conf = conf(text);
        complete(&conf, &mut result);
        let show = |r: &RouteConfig| match r.gw {
            Some(gw) => format!("{} {gw}", r.dst),
            None => r.dst.to_string(),
        };
        assert_eq!(result.routes.iter().map(show).collect::<Vec<_>>(), *want, "{text}");
        assert!(result.ips.iter().all(|ip| ip.interface == Some(2)));
        assert!(result.ips.iter().all(|ip| ip.gateway.is_some() == conf.is_gateway), "{text}");
    }
}
