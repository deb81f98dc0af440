//! Configuration of the veth-to-host plugin (cni.md 2.19).

use ipnet::IpNet;

use super::common::{device, flag, mtu, number};
use super::members::{Members, parse_net};
use crate::IfName;

/// Which packets go through the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All that are not for the underlay; what the host cannot bring back over the pod leaves by itself.
    Reference,
    /// Those for the host and for services only.
    Split,
    /// As [`Mode::Reference`], but exactly as published, with its loops (cni.md 2.19.5, A and B).
    Tutorial,
}

/// What the plugin is told to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VethToHostConf {
    /// The host's interface in the underlay.
    pub host_interface: IfName,
    /// The pod's end of the pair.
    pub container_interface: IfName,
    /// Masquerade on the host, forward and masquerade in the pod.
    pub ip_masq: bool,
    /// MTU in bytes; `None` is the smaller one of the underlay's two interfaces.
    pub mtu: Option<u32>,
    /// First number of the pods' routing tables.
    pub table_start: u32,
    /// Mark of node-port connections.
    pub node_port_mark: u32,
    /// Node ports; `None` for no marks.
    pub node_ports: Option<(u16, u16)>,
    /// Which packets go through the host.
    pub mode: Mode,
    /// In split mode: underlay endpoints see the pod's address.
    pub keep_source: bool,
    /// Destinations that go through the host in split mode: services, then others.
    pub through_host: Vec<IpNet>,
    /// Addresses are translated by the host's iptables, not by nftables directly.
    pub by_iptables: bool,
}

/// What the name of the file with the networks of the services has after that of the subnet file. The agent
/// writes it when it is told by `LODEN_SERVICE_CIDRS` (decision 0167).
pub const SERVICES_SUFFIX: &str = ".services";

/// The mark unless one is named. The published one, 0x2000, is portmap's "masquerade me".
const MARK: u32 = 0x1000;
const PUBLISHED_MARK: u32 = 0x2000;
const PUBLISHED_PORTS: (u16, u16) = (30000, 32767);
const TABLE_START: u32 = 256;

impl VethToHostConf {
    /// Whether what the agent says of the services is needed.
    pub fn asks_agent(doc: &Members<'_>) -> bool {
        let is_split = doc.string("mode").is_ok_and(|mode| mode == "split");
        is_split && doc.strings("serviceCIDRs").is_ok_and(|list| list.is_empty())
    }

    /// Reads and checks the whole document; `told` is what the agent says of the services.
    ///
    /// # Errors
    /// One sentence, the model's where it has one.
    pub fn parse(doc: &Members<'_>, told: &str) -> Result<VethToHostConf, String> {
        let named = |key: &str| device(doc, key)?.ok_or_else(|| format!("{key} must be specified"));
        let (host_interface, container_interface) = (named("hostInterface")?, named("containerInterface")?);
        let mut services = networks("serviceCIDRs", doc.strings("serviceCIDRs")?)?;
        let mode = mode(&doc.string("mode")?, !services.is_empty())?;
        if services.is_empty() && mode == Mode::Split {
            services = service_networks(told).map_err(|e| format!("serviceCIDRs of the agent: {e}"))?;
        }
        let routes = doc.objects("routes", "Route")?;
        let routes = routes.iter().map(|r| r.string("dst")).collect::<Result<Vec<_>, _>>()?;
        let routes = networks("routes", routes)?;
        let keep_source = flag(doc, "keepSource")?;
        let given = doc.string("nodePorts")?;
        let tutorial = mode == Mode::Tutorial;
        let node_ports = match (given.as_str(), tutorial) {
            ("", true) => Some(PUBLISHED_PORTS),
            ("", false) => None,
            (text, _) => Some(ports(text)?),
        };
        match mode {
            Mode::Split if services.is_empty() => {
                let way_out = "name them here, or tell the agent by LODEN_SERVICE_CIDRS";
                let what = "serviceCIDRs missing: mode split needs the networks of the services";
                return Err(format!("{what}; {way_out}"));
            }
            Mode::Split if node_ports.is_some() => {
                return Err("nodePorts: mode split has no node-port marks; leave nodePorts out".to_owned());
            }
            Mode::Reference | Mode::Tutorial if keep_source || !routes.is_empty() || !services.is_empty() => {
                return Err("keepSource, routes and serviceCIDRs need mode split".to_owned());
            }
            _ => {}
        }
        let backend = doc.string("masqBackend")?;
        if !matches!(backend.as_str(), "" | "nftables" | "iptables") {
            return Err(format!("unknown masqBackend {backend:?}: known are \"nftables\", \"iptables\""));
        }
        let mark = number(doc, "nodePortMark")?.filter(|mark| *mark != 0);
        Ok(VethToHostConf {
            host_interface,
            container_interface,
            ip_masq: flag(doc, "ipMasq")?,
            mtu: mtu(doc)?,
            table_start: number(doc, "routeTableStart")?.filter(|n| *n != 0).unwrap_or(TABLE_START),
            node_port_mark: mark.unwrap_or(if tutorial { PUBLISHED_MARK } else { MARK }),
            node_ports,
            mode,
            keep_source,
            through_host: [services, routes].concat(),
            by_iptables: backend == "iptables",
        })
    }

    /// Whether packets of connections begun by the pod may come back to it to leave by its own interface.
    pub fn bounces(&self) -> bool {
        if self.mode == Mode::Split { self.keep_source } else { true }
    }

    /// Whether the pod forwards them and gives them its address.
    pub fn pod_forwards(&self) -> bool {
        if self.mode == Mode::Split { self.keep_source } else { self.ip_masq }
    }
}

fn mode(name: &str, has_services: bool) -> Result<Mode, String> {
    match name {
        "" if has_services => Ok(Mode::Split),
        "" | "reference" => Ok(Mode::Reference),
        "split" => Ok(Mode::Split),
        "tutorial" => Ok(Mode::Tutorial),
        other => Err(format!("unknown mode {other:?}: known are \"reference\", \"split\", \"tutorial\"")),
    }
}

/// The networks in a text: separated by commas, spaces, line ends. The agent's setting, and its file.
///
/// # Errors
/// The first that is none.
pub fn service_networks(text: &str) -> Result<Vec<IpNet>, String> {
    let words = text.split([',', ' ', '\t', '\n']).filter(|word| !word.is_empty());
    words.map(|word| parse_net(word).map(|net| net.trunc())).collect()
}

fn networks(key: &str, texts: Vec<String>) -> Result<Vec<IpNet>, String> {
    let net = |text: &String| parse_net(text).map(|net| net.trunc()).map_err(|e| format!("{key}: {e}"));
    texts.iter().map(net).collect()
}

/// `30000:32767`, as iptables has it, or with a hyphen, or one port.
fn ports(text: &str) -> Result<(u16, u16), String> {
    let bad = || format!("nodePorts {text:?}: not a range of ports such as 30000:32767");
    let (first, last) = text.split_once([':', '-']).unwrap_or((text, text));
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(bad);
    let (first, last) = (port(first)?, port(last)?);
    if first <= last { Ok((first, last)) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(doc: &crate::Json) -> Result<VethToHostConf, String> {
        VethToHostConf::parse(&Members::of(doc, "NetConf").unwrap(), "")
    }

    /// What the agent says counts only where the document asks for services and names none.
    #[test]
    fn services_are_the_documents_or_the_agents() {
        for (more, told, want) in [
            (json!({"mode": "split"}), "10.96.0.0/12\nfd01::/112\n", &["10.96.0.0/12", "fd01::/112"][..]),
            (json!({"mode": "split"}), "10.96.1.1/12,fd01::/112", &["10.96.0.0/12", "fd01::/112"]),
            (json!({"serviceCIDRs": ["172.16.0.0/16"]}), "10.96.0.0/12", &["172.16.0.0/16"]),
            (json!({}), "10.96.0.0/12", &[]),
        ] {
            let doc = doc(&more);
            let got = VethToHostConf::parse(&Members::of(&doc, "NetConf").unwrap(), told).unwrap();
            let nets: Vec<String> = got.through_host.iter().map(IpNet::to_string).collect();
            assert_eq!(nets, want, "{more:?}");
        }
        let split = doc(&json!({"mode": "split"}));
        let got = VethToHostConf::parse(&Members::of(&split, "NetConf").unwrap(), "x").unwrap_err();
        assert_eq!(got, "serviceCIDRs of the agent: invalid CIDR address: x");
    }

    /// A document with two devices and more members.
    fn doc(more: &crate::Json) -> crate::Json {
        let mut doc = json!({"hostInterface": "eth0", "containerInterface": "veth0"});
        for (key, value) in more.members().unwrap() {
            doc.set(key.as_str(), value.clone());
        }
        doc
    }

    #[test]
    fn modes_and_their_defaults() {
        for (more, mode, mark, ports, bounces, forwards) in [
            (json!({}), Mode::Reference, 0x1000, None, true, false),
            (json!({"ipMasq": true}), Mode::Reference, 0x1000, None, true, true),
            (json!({"nodePorts": "30000:32767"}), Mode::Reference, 0x1000, Some((30000, 32767)), true, false),
            (json!({"mode": "tutorial"}), Mode::Tutorial, 0x2000, Some((30000, 32767)), true, false),
            (
                json!({"mode": "tutorial", "nodePortMark": 4}),
                Mode::Tutorial,
                4,
                Some((30000, 32767)),
                true,
                false,
            ),
            (json!({"serviceCIDRs": ["10.96.0.0/12"]}), Mode::Split, 0x1000, None, false, false),
            (
                json!({"mode": "split", "serviceCIDRs": ["10.96.0.0/12"], "keepSource": true}),
                Mode::Split,
                0x1000,
                None,
                true,
                true,
            ),
        ] {
            let conf = read(&doc(&more)).unwrap();
            let got = (conf.mode, conf.node_port_mark, conf.node_ports, conf.bounces(), conf.pod_forwards());
            assert_eq!(got, (mode, mark, ports, bounces, forwards), "{more:?}");
            assert_eq!(conf.table_start, 256);
        }
        let more =
            json!({"serviceCIDRs": ["10.96.1.1/12", "fd01::/112"], "routes": [{"dst": "172.16.0.0/12"}]});
        let nets: Vec<String> =
            read(&doc(&more)).unwrap().through_host.iter().map(IpNet::to_string).collect();
        assert_eq!(nets, ["10.96.0.0/12", "fd01::/112", "172.16.0.0/12"]);
    }

    #[test]
    fn faults_are_named() {
        for (more, want) in [
            (json!({"hostInterface": ""}), "hostInterface must be specified"),
            (json!({"containerInterface": null}), "containerInterface must be specified"),
            (json!({"containerInterface": "a b"}), "containerInterface: "),
            (json!({"hostInterface": 5}), "NetConf.hostInterface of type string"),
            (json!({"mode": "x"}), "unknown mode \"x\": known are \"reference\", \"split\", \"tutorial\""),
            (json!({"mode": "split"}), "serviceCIDRs missing"),
            (json!({"serviceCIDRs": ["10.96.0.0"]}), "serviceCIDRs: invalid CIDR address: 10.96.0.0"),
            (json!({"serviceCIDRs": "10.96.0.0/12"}), "NetConf.serviceCIDRs of type []string"),
            (json!({"serviceCIDRs": ["10.96.0.0/12"], "nodePorts": "1:2"}), "nodePorts: mode split"),
            (json!({"keepSource": true}), "keepSource, routes and serviceCIDRs need mode split"),
            (json!({"routes": [{"dst": "x"}]}), "routes: invalid CIDR address: x"),
            (json!({"nodePorts": "9:1"}), "nodePorts \"9:1\": not a range of ports"),
            (json!({"nodePorts": "0"}), "nodePorts \"0\": not a range of ports"),
            (json!({"nodePorts": 5}), "NetConf.nodePorts of type string"),
            (json!({"nodePortMark": -1}), "nodePortMark: -1 is out of range"),
            (json!({"routeTableStart": "x"}), "NetConf.routeTableStart of type int"),
            (json!({"masqBackend": "x"}), "unknown masqBackend \"x\": known are \"nftables\", \"iptables\""),
            (json!({"ipMasq": "true"}), "NetConf.ipMasq of type bool"),
            (json!({"mtu": 5}), "invalid MTU 5"),
        ] {
            let got = read(&doc(&more)).unwrap_err();
            assert!(got.contains(want), "{more:?}: {got}");
        }
    }
}
