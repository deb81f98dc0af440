//! Configuration of the port mapper (cni.md 2.3).

use std::net::IpAddr;

use super::members::{Members, parse_ip};

/// What the port mapper is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMap {
    /// Named backend; empty for ours to choose.
    pub backend: String,
    /// Masquerade hairpin and localhost traffic.
    pub snat: bool,
    /// Masquerade every forwarded connection.
    pub masq_all: bool,
    /// Somebody else's chain to mark in (iptables only).
    pub external_set_mark_chain: String,
    /// Extra matches for both families, in the words of a rule.
    pub conditions: Vec<String>,
    /// A host port that is taken already is an error (B-15).
    pub exclusive: bool,
    /// The mappings.
    pub mappings: Vec<Mapping>,
}

/// One port of the host that leads into the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Port on the host.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: u16,
    /// Transport protocol number: 6, 17 or 132.
    pub protocol: u8,
    /// Address of the host; `None` for any.
    pub host_ip: Option<HostIp>,
}

/// The host's side of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostIp {
    /// Any address of one family.
    Any(crate::Family),
    /// This address.
    One(IpAddr),
}

impl PortMap {
    /// Reads and checks the document.
    ///
    /// # Errors
    /// One sentence, upstream's where it has one.
    pub fn parse(doc: &Members<'_>) -> Result<PortMap, String> {
        let backend = doc.string("backend")?;
        if !matches!(backend.as_str(), "" | "iptables" | "nftables") {
            return Err(format!("unrecognized backend {backend:?}"));
        }
        let bit = doc.integer("markMasqBit")?;
        let external_set_mark_chain = doc.string("externalSetMarkChain")?;
        if !external_set_mark_chain.is_empty() && bit.is_some() {
            return Err("Cannot specify externalSetMarkChain and markMasqBit".to_owned());
        }
        if bit.is_some_and(|bit| !(0..=31).contains(&bit)) {
            return Err("MasqMarkBit must be between 0 and 31".to_owned());
        }
        let mut conditions = doc.strings("conditionsV4")?;
        conditions.extend(doc.strings("conditionsV6")?);
        let mut mappings = Vec::new();
        if let Some(runtime) = doc.object("runtimeConfig", "RuntimeConfig")? {
            for mapping in runtime.objects("portMappings", "MappingEntry")? {
                mappings.push(Mapping::parse(&mapping)?);
            }
        }
        Ok(PortMap {
            backend,
            snat: doc.boolean("snat")?.unwrap_or(true),
            masq_all: doc.boolean("masqAll")?.unwrap_or(false),
            external_set_mark_chain,
            conditions,
            exclusive: doc.boolean("exclusiveHostPorts")?.unwrap_or(false),
            mappings,
        })
    }
}

impl Mapping {
    fn parse(m: &Members<'_>) -> Result<Mapping, String> {
        let port = |key: &str, what: &str| -> Result<u16, String> {
            let port = m.integer(key)?.unwrap_or(0);
            let bad = || format!("Invalid {what} port number: {port}");
            u16::try_from(port).ok().filter(|p| *p > 0).ok_or_else(bad)
        };
        let (container_port, host_port) = (port("containerPort", "container")?, port("hostPort", "host")?);
        let name = m.string("protocol")?;
        let protocol = match name.to_ascii_lowercase().as_str() {
            "tcp" => 6,
            "udp" => 17,
            "sctp" => 132,
            _ => {
                return Err(format!(
                    "Invalid protocol of host port {host_port}: {name:?} is not tcp, udp or sctp"
                ));
            }
        };
        let host_ip = m.string("hostIP")?;
        let host_ip = match host_ip.as_str() {
            "" => None,
            text => {
                let ip =
                    parse_ip(text).map_err(|e| format!("Invalid hostIP of host port {host_port}: {e}"))?;
                let any = HostIp::Any(crate::Family::of(ip));
                Some(if ip.is_unspecified() { any } else { HostIp::One(ip) })
            }
        };
        Ok(Mapping { host_port, container_port, protocol, host_ip })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read() {
        let doc = json!({"runtimeConfig": {"portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": "0.0.0.0"},
            {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "2001:db8::1"}
        ]}});
        let got = PortMap::parse(&Members::of(&doc, "PortMapConf").unwrap()).unwrap();
        assert!(got.snat && !got.masq_all);
        assert_eq!(got.mappings[0].host_ip, Some(HostIp::Any(crate::Family::V4)));
        assert_eq!((got.mappings[1].protocol, got.mappings[1].host_port), (17, 53));
        for absent in
            [json!({}), json!({"runtimeConfig": {"portMappings": null}}), json!({"runtimeConfig": null})]
        {
            assert_eq!(PortMap::parse(&Members::of(&absent, "P").unwrap()).unwrap().mappings, []);
        }
    }

    #[test]
    fn faults_are_named() {
        for (doc, want) in [
            (json!({"backend": "x"}), "unrecognized backend \"x\""),
            (json!({"markMasqBit": 32}), "MasqMarkBit must be between 0 and 31"),
            (
                json!({"markMasqBit": 1, "externalSetMarkChain": "K"}),
                "Cannot specify externalSetMarkChain and markMasqBit",
            ),
            (
                json!({"runtimeConfig": {"portMappings": [{"containerPort": 80, "protocol": "tcp"}]}}),
                "Invalid host port number: 0",
            ),
            (
                json!({"runtimeConfig": {"portMappings": [{"hostPort": 80, "protocol": "tcp"}]}}),
                "Invalid container port number: 0",
            ),
            (
                json!({"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "x"}]}}),
                "Invalid protocol of host port 80: \"x\" is not tcp, udp or sctp",
            ),
            (
                json!({"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "tcp", "hostIP": "y"}]}}),
                "Invalid hostIP of host port 80: invalid IP address: y",
            ),
        ] {
            let got = PortMap::parse(&Members::of(&doc, "PortMapConf").unwrap());
            assert_eq!(got, Err(want.to_owned()), "{doc:?}");
        }
    }
}
