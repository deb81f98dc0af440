//! Configuration of the port mapper (cni.md 2.3).

use std::net::IpAddr;

use super::iptables::check_chain;
use super::members::{Members, parse_ip};

/// Who writes the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The host's `iptables-restore`.
    Iptables,
    /// The kernel's nftables, directly.
    Nftables,
}

impl Backend {
    fn name(self) -> &'static str {
        match self {
            Backend::Iptables => "iptables",
            Backend::Nftables => "nftables",
        }
    }
}

/// What the port mapper is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMap {
    /// The backend that is named or that other members are for; `None` for ours to choose.
    pub backend: Option<Backend>,
    /// Masquerade hairpin and localhost traffic.
    pub snat: bool,
    /// Masquerade every forwarded connection.
    pub masq_all: bool,
    /// Somebody else's chain to mark in (iptables only).
    pub external_set_mark_chain: String,
    /// Bit of the mark that asks for masquerading (iptables only).
    pub mark_bit: u32,
    /// Extra matches for IPv4, in the words of a rule of the backend.
    pub conditions_v4: Vec<String>,
    /// Extra matches for IPv6.
    pub conditions_v6: Vec<String>,
    /// Masquerade what anybody in the pod's subnet sends to the pod's host ports, as the reference does
    /// (B-16), not only what the pod itself sends.
    pub hairpin_subnet: bool,
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
        let bit = doc.integer("markMasqBit")?;
        let external_set_mark_chain = doc.string("externalSetMarkChain")?;
        if !external_set_mark_chain.is_empty() && bit.is_some() {
            return Err("Cannot specify externalSetMarkChain and markMasqBit".to_owned());
        }
        if !external_set_mark_chain.is_empty() {
            check_chain(&external_set_mark_chain).map_err(|e| format!("externalSetMarkChain: {e}"))?;
        }
        if bit.is_some_and(|bit| !(0..=31).contains(&bit)) {
            return Err("MasqMarkBit must be between 0 and 31".to_owned());
        }
        let mut mappings = Vec::new();
        if let Some(runtime) = doc.object("runtimeConfig", "RuntimeConfig")? {
            for mapping in runtime.objects("portMappings", "MappingEntry")? {
                mappings.push(Mapping::parse(&mapping)?);
            }
        }
        let conditions = [doc.strings("conditionsV4")?, doc.strings("conditionsV6")?];
        let backend = backend(&doc.string("backend")?, &external_set_mark_chain, &conditions)?;
        let [conditions_v4, conditions_v6] = conditions;
        Ok(PortMap {
            backend,
            snat: doc.boolean("snat")?.unwrap_or(true),
            masq_all: doc.boolean("masqAll")?.unwrap_or(false),
            external_set_mark_chain,
            mark_bit: bit.map_or(13, |bit| bit as u32),
            conditions_v4,
            conditions_v6,
            hairpin_subnet: doc.boolean("hairpinSubnet")?.unwrap_or(false),
            exclusive: doc.boolean("exclusiveHostPorts")?.unwrap_or(false),
            mappings,
        })
    }
}

/// A member of one backend beside the name of the other is a mistake that would change what is filtered.
fn backend(name: &str, mark_chain: &str, conditions: &[Vec<String>; 2]) -> Result<Option<Backend>, String> {
    let named = match name {
        "" => None,
        "iptables" => Some(Backend::Iptables),
        "nftables" => Some(Backend::Nftables),
        other => return Err(format!("unrecognized backend {other:?}")),
    };
    let kind = |words: &Vec<String>| {
        let first = words.first()?;
        let iptables = first.starts_with(['-', '!']);
        Some(if iptables { Backend::Iptables } else { Backend::Nftables })
    };
    let [v4, v6] = conditions;
    let asked = [
        ("externalSetMarkChain", (!mark_chain.is_empty()).then_some(Backend::Iptables)),
        ("conditionsV4", kind(v4)),
        ("conditionsV6", kind(v6)),
    ];
    let chosen = named.or_else(|| asked.iter().find_map(|(_, kind)| *kind));
    let Some(backend) = chosen else { return Ok(None) };
    let foreign = |(_, kind): &&(&str, Option<Backend>)| kind.is_some_and(|kind| kind != backend);
    let wrong: Vec<&str> = asked.iter().filter(foreign).map(|(member, _)| *member).collect();
    if wrong.is_empty() {
        return Ok(chosen);
    }
    let other = if backend == Backend::Iptables { Backend::Nftables } else { Backend::Iptables };
    let (name, other, wrong) = (backend.name(), other.name(), wrong.join(" "));
    Err(format!("{name} backend was requested but configuration contains {other}-specific options [{wrong}]"))
}

impl PortMap {
    /// The mark that asks for masquerading.
    pub fn mark(&self) -> u32 {
        1 << self.mark_bit
    }

    /// Extra matches of a family.
    pub fn conditions(&self, family: crate::Family) -> &[String] {
        match family {
            crate::Family::V4 => &self.conditions_v4,
            crate::Family::V6 => &self.conditions_v6,
        }
    }
}

impl Mapping {
    /// Whether the mapping concerns pods of a family.
    pub fn applies(&self, family: crate::Family) -> bool {
        match self.host_ip {
            None => true,
            Some(HostIp::Any(own)) => own == family,
            Some(HostIp::One(ip)) => crate::Family::of(ip) == family,
        }
    }

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
