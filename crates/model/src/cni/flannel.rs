//! The `flannel` meta-plugin's document for its delegate (flannel.md 9.2 to 9.4).

use std::net::IpAddr;

use super::members::{Members, parse_net};
use super::result::RouteConfig;
use crate::gojson::Json;
use ipnet::IpNet;

/// Where the agent writes what it learnt.
pub const SUBNET_FILE: &str = "/run/flannel/subnet.env";
/// What the name of the file of the agent's troubles has after that of the subnet file. It holds one
/// sentence a line, the gravest first, and is there while something is wrong (decision 0088).
pub const TROUBLE_SUFFIX: &str = ".trouble";
/// Where the delegate's document is kept between ADD and DEL.
pub const DATA_DIR: &str = "/var/lib/cni/flannel";

/// The directory of the delegates' documents, which is all DEL needs.
pub fn data_dir(doc: &Members<'_>) -> String {
    let dir = doc.string("dataDir").unwrap_or_default();
    if dir.is_empty() { DATA_DIR.to_owned() } else { dir }
}

/// What `subnet.env` says, as the plugin reads it: plain `KEY=VALUE` lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// Cluster networks, v4 first.
    pub networks: Vec<IpNet>,
    /// The node's own subnets, masked, v4 first.
    pub subnets: Vec<IpNet>,
    /// MTU of the pods' interfaces in bytes.
    pub mtu: u32,
    /// The agent masquerades, so the delegate must not.
    pub ip_masq: bool,
}

impl SubnetEnv {
    /// Reads the text of `file`.
    ///
    /// # Errors
    /// A value that does not parse, or `<file> is missing A, B, …`.
    pub fn parse(text: &str, file: &str) -> Result<SubnetEnv, String> {
        let (mut networks, mut subnets) = ([Vec::new(), Vec::new()], [None, None]);
        let (mut mtu, mut ip_masq) = (None, None);
        for line in text.lines() {
            let Some((key, value)) = line.split_once('=') else { continue };
            let bad = |cause: String| format!("{file}: {key}={value}: {cause}");
            match key {
                "FLANNEL_NETWORK" | "FLANNEL_IPV6_NETWORK" => {
                    let list = &mut networks[usize::from(key == "FLANNEL_IPV6_NETWORK")];
                    for item in value.split(',') {
                        let net = parse_net(item).map_err(bad)?.trunc();
                        if !list.contains(&net) {
                            list.push(net);
                        }
                    }
                }
                "FLANNEL_SUBNET" | "FLANNEL_IPV6_SUBNET" => {
                    subnets[usize::from(key == "FLANNEL_IPV6_SUBNET")] =
                        Some(parse_net(value).map_err(bad)?.trunc());
                }
                "FLANNEL_MTU" => {
                    mtu = Some(value.parse().map_err(|_| bad("not a number of bytes".to_owned()))?)
                }
                "FLANNEL_IPMASQ" => ip_masq = Some(value == "true"),
                _ => {}
            }
        }
        let mut missing = Vec::new();
        if networks.iter().all(Vec::is_empty) {
            missing.extend(["FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"]);
        }
        if subnets.iter().all(Option::is_none) {
            missing.extend(["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"]);
        }
        missing.extend(mtu.is_none().then_some("FLANNEL_MTU"));
        missing.extend(ip_masq.is_none().then_some("FLANNEL_IPMASQ"));
        match (mtu, ip_masq) {
            (Some(mtu), Some(ip_masq)) if missing.is_empty() => Ok(SubnetEnv {
                networks: networks.concat(),
                subnets: subnets.into_iter().flatten().collect(),
                mtu,
                ip_masq,
            }),
            _ => Err(format!("{file} is missing {}", missing.join(", "))),
        }
    }
}

/// The plugin's own members of the document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flannel {
    /// Path of `subnet.env`.
    pub subnet_file: String,
    /// Directory of the delegates' documents.
    pub data_dir: String,
    delegate: Json,
    ipam: Json,
    runtime_config: Option<Json>,
}

impl Flannel {
    /// Reads the document.
    ///
    /// # Errors
    /// A member of the wrong type, or a `delegate` that sets what the plugin decides.
    pub fn parse(doc: &Members<'_>) -> Result<Flannel, String> {
        let map = |key: &str| -> Result<Json, String> {
            match doc.get(key) {
                None => Ok(Json::empty()),
                Some(map @ Json::Object(_)) => Ok(map.clone()),
                Some(_) => Err(format!("'{key}' has to be a JSON object")),
            }
        };
        let subnet_file = Some(doc.string("subnetFile")?).filter(|file| !file.is_empty());
        // DEL takes the usual one for a wrong one; who writes there does not.
        doc.string("dataDir")?;
        doc.object("runtimeConfig", "RuntimeConfig")?;
        let delegate = map("delegate")?;
        if delegate.get_exact("type").is_some_and(|t| t.as_str().is_none()) {
            return Err("'delegate' dictionary, if present, must have (string) 'type' field".to_owned());
        }
        for key in ["name", "ipam"] {
            if delegate.get_exact(key).is_some() {
                return Err(format!(
                    "'delegate' dictionary must not have '{key}' field, it'll be set by flannel"
                ));
            }
        }
        Ok(Flannel {
            subnet_file: subnet_file.unwrap_or_else(|| SUBNET_FILE.to_owned()),
            data_dir: data_dir(doc),
            delegate,
            ipam: map("ipam")?,
            runtime_config: doc.get("runtimeConfig").cloned(),
        })
    }

    /// The delegate's complete document; written with sorted keys it is upstream's.
    ///
    /// # Errors
    /// A route in the given `ipam` that does not parse.
    pub fn compose(&self, env: &SubnetEnv, name: &str, cni_version: &str) -> Result<Json, String> {
        let mut doc = self.delegate.clone();
        let mut default = |key: &str, value: Json| {
            if doc.get_exact(key).is_none() {
                doc.set(key, value);
            }
        };
        default("type", "bridge".into());
        default("ipMasq", (!env.ip_masq).into());
        default("mtu", env.mtu.into());
        if doc.get_exact("type").and_then(Json::as_str) == Some("bridge")
            && doc.get_exact("isGateway").is_none()
        {
            doc.set("isGateway", true);
        }
        doc.set("name", name);
        if let Some(runtime_config) = &self.runtime_config {
            doc.set("runtimeConfig", runtime_config.clone());
        }
        if !cni_version.is_empty() {
            doc.set("cniVersion", cni_version);
        }
        doc.set("ipam", self.compose_ipam(env)?);
        Ok(doc)
    }

    fn compose_ipam(&self, env: &SubnetEnv) -> Result<Json, String> {
        let mut ipam = self.ipam.clone();
        if ipam.get_exact("type").is_none() {
            ipam.set("type", "host-local");
        }
        let mut routes = Vec::new();
        for route in Members::of(&self.ipam, "IPAM")?.objects("routes", "Route")? {
            routes.push(RouteConfig::parse(&route).map_err(|e| format!("ipam.routes: {e}"))?.to_json());
        }
        let both = |nets: &[IpNet]| {
            let (mut v4, v6): (Vec<IpNet>, Vec<IpNet>) =
                nets.iter().partition(|n| matches!(n.addr(), IpAddr::V4(_)));
            v4.extend(v6);
            v4
        };
        routes.extend(both(&env.networks).into_iter().map(|net| RouteConfig::new(net, None).to_json()));
        let range = |net: IpNet| Json::array([Json::object([("subnet", net.to_string().into())])]);
        ipam.set("ranges", Json::array(both(&env.subnets).into_iter().map(range)));
        ipam.set("routes", routes);
        Ok(ipam)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1472\n\
                      FLANNEL_IPMASQ=true\n";
    const V6: &str = "FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00:0:0:1::1/64\n";

    fn compose(doc: &Json, env: &str) -> Result<String, String> {
        let flannel = Flannel::parse(&Members::of(doc, "NetConf").unwrap())?;
        let version = doc.get("cniVersion").and_then(Json::as_str).unwrap_or_default();
        let document = flannel.compose(&SubnetEnv::parse(env, "f")?, "cni-flannel", version)?;
        Ok(document.to_compact_sorted())
    }

    #[test]
    fn delegates_are_composed_as_upstream() {
        for (doc, env, want) in [
            (
                json!({}),
                V4.to_owned(),
                r#"{"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.1.17.0/24"}]],"routes":[{"dst":"10.1.0.0/16"}],"type":"host-local"},"isGateway":true,"mtu":1472,"name":"cni-flannel","type":"bridge"}"#,
            ),
            (
                json!({
                    "cniVersion": "0.3.1",
                    "delegate": {"hairpinMode": true, "isDefaultGateway": true, "mtu": 1400, "ipMasq": true},
                    "ipam": {"dataDir": "/d", "ranges": [], "routes": [{"dst": "10.9.0.0/16", "gw": "10.1.17.9", "x": 1}]},
                    "runtimeConfig": {"portMappings": []}
                }),
                format!("{V4}{V6}"),
                r#"{"cniVersion":"0.3.1","hairpinMode":true,"ipMasq":true,"ipam":{"dataDir":"/d","ranges":[[{"subnet":"10.1.17.0/24"}],[{"subnet":"fc00:0:0:1::/64"}]],"routes":[{"dst":"10.9.0.0/16","gw":"10.1.17.9"},{"dst":"10.1.0.0/16"},{"dst":"fc00::/48"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1400,"name":"cni-flannel","runtimeConfig":{"portMappings":[]},"type":"bridge"}"#,
            ),
            (
                json!({"delegate": {"type": "macvlan"}, "ipam": {"type": "static"}}),
                V4.replace("true", "True"),
                r#"{"ipMasq":true,"ipam":{"ranges":[[{"subnet":"10.1.17.0/24"}]],"routes":[{"dst":"10.1.0.0/16"}],"type":"static"},"mtu":1472,"name":"cni-flannel","type":"macvlan"}"#,
            ),
        ] {
            assert_eq!(compose(&doc, &env).as_deref(), Ok(want), "{doc:?}");
        }
    }

    #[test]
    fn faults_are_named() {
        for (doc, want) in [
            (json!({"delegate": {"type": 1}}), "must have (string) 'type'"),
            (json!({"delegate": {"name": "x"}}), "must not have 'name'"),
            (json!({"delegate": {"ipam": {}}}), "must not have 'ipam'"),
            (json!({"delegate": []}), "has to be a JSON object"),
            (json!({"ipam": {"routes": [{}]}}), "route without dst"),
        ] {
            let error = compose(&doc, V4).unwrap_err();
            assert!(error.contains(want), "{doc:?}: {error}");
        }
    }

    #[test]
    fn subnet_files_are_read_leniently() {
        for (text, want) in [
            (
                "FLANNEL_SUBNET",
                "f is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ",
            ),
            (
                "FLANNEL_NETWORK=10.0.0.0/8\nFLANNEL_SUBNET=10.1.1.1/24\nFLANNEL_MTU=1450\n",
                "f is missing FLANNEL_IPMASQ",
            ),
            ("FLANNEL_SUBNET=x\n", "f: FLANNEL_SUBNET=x: invalid CIDR address: x"),
            ("FLANNEL_MTU=-1\n", "f: FLANNEL_MTU=-1: not a number of bytes"),
        ] {
            assert_eq!(SubnetEnv::parse(text, "f"), Err(want.to_owned()));
        }
        let got =
            SubnetEnv::parse(&V4.replace("10.1.0.0/16", "10.1.0.0/16,10.2.0.0/16,10.1.0.0/16"), "f").unwrap();
        assert_eq!(got.networks.len(), 2);
        assert_eq!(got.subnets[0].to_string(), "10.1.17.0/24");
    }
}
