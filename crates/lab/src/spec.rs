//! What a lab is to be: a value made from the command line or the builder, and everything that follows
//! from it alone: names, underlay addresses, the network configuration.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// Name of a lab when none is given.
pub const DEFAULT_NAME: &str = "lab";
/// Most hosts a lab may have: the last byte of an underlay address is 10 + number.
pub const MAX_HOSTS: usize = 200;
/// Most pods on one host: a /24 less the gateway.
pub const MAX_PODS: usize = 250;
/// Name under which the lab's own namespace, which holds the wire, is entered.
pub const WIRE: &str = "wire";

/// The chain of the tutorials.
const CONFLIST: &str = r#"{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
"#;

/// Which address families pods and hosts have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stack {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both.
    Dual,
}

impl Stack {
    /// Whether pods have IPv4 addresses.
    pub fn v4(self) -> bool {
        self != Stack::V6
    }

    /// Whether pods have IPv6 addresses.
    pub fn v6(self) -> bool {
        self != Stack::V4
    }
}

/// How the hosts are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Topology {
    /// All on one wire, in one subnet.
    Flat,
    /// The first half on one wire, the rest on a second one, with a router between.
    Routed,
}

/// Everything that defines a lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Name; part of the control socket's address, so one lab of a name at a time.
    pub name: String,
    /// Number of hosts, 1 to [`MAX_HOSTS`].
    pub hosts: usize,
    /// Pods on each host at the start, 0 to [`MAX_PODS`].
    pub pods: usize,
    /// `Backend.Type`.
    pub backend: String,
    /// `Backend.DirectRouting`.
    pub direct_routing: bool,
    /// How the hosts are joined.
    pub topology: Topology,
    /// Address families.
    pub stack: Stack,
    /// MTU of the wire in bytes.
    pub mtu: u32,
    /// Start an agent on each host; without, only hosts and the wire come up.
    pub agents: bool,
    /// Further flags for every agent.
    pub agent_args: Vec<String>,
    /// Further environment of every agent, and of `loden config put`.
    pub agent_env: Vec<(String, String)>,
    /// The network configuration as JSON text; made from the other fields when absent.
    pub net_conf: Option<String>,
    /// The CNI network list as JSON text; the tutorials' chain when absent.
    pub conflist: Option<String>,
    /// Where the CNI plugins are; `loden-cni` beside the running program when absent.
    pub cni_bin_dir: Option<String>,
    /// The program agents are started from, another release perhaps; the running program when absent.
    pub agent_program: Option<String>,
}

impl Default for Spec {
    fn default() -> Spec {
        Spec {
            name: DEFAULT_NAME.to_owned(),
            hosts: 3,
            pods: 2,
            backend: "vxlan".to_owned(),
            direct_routing: false,
            topology: Topology::Flat,
            stack: Stack::V4,
            mtu: 1500,
            agents: true,
            agent_args: Vec::new(),
            agent_env: Vec::new(),
            net_conf: None,
            conflist: None,
            cni_bin_dir: None,
            agent_program: None,
        }
    }
}

/// Where one host is plugged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Host name, `host1`…
    pub host: String,
    /// Number of the wire, from 0.
    pub wire: usize,
    /// Addresses of the host's `eth0`.
    pub addresses: Vec<IpNet>,
    /// The wire's own addresses: default gateways of the host.
    pub gateways: Vec<IpNet>,
}

impl Spec {
    /// Checks ranges and names.
    ///
    /// # Errors
    /// A sentence that names the value.
    pub fn check(&self) -> Result<()> {
        check_name("lab", &self.name)?;
        if self.hosts == 0 || self.hosts > MAX_HOSTS {
            return Err(Error::said(format!(
                "a lab has 1 to {MAX_HOSTS} hosts, not {}; set --hosts",
                self.hosts
            )));
        }
        if self.pods > MAX_PODS {
            return Err(Error::said(format!(
                "a host has at most {MAX_PODS} pods, not {}; set --pods",
                self.pods
            )));
        }
        if !(1280..=65_000).contains(&self.mtu) {
            return Err(Error::said(format!(
                "the wire's MTU is 1280 to 65000 bytes, not {}; set --mtu",
                self.mtu
            )));
        }
        for (option, text) in [("--net-conf", &self.net_conf), ("--conflist", &self.conflist)] {
            if let Some(text) = text {
                serde_json::from_str::<Value>(text)
                    .map_err(|e| Error::said(format!("the file of {option} is not JSON: {e}")))?;
            }
        }
        Ok(())
    }

    /// Host names in order.
    pub fn host_names(&self) -> impl Iterator<Item = String> {
        (1..=self.hosts).map(|n| format!("host{n}"))
    }

    /// How many wires there are.
    pub fn wires(&self) -> usize {
        match self.topology {
            Topology::Flat => 1,
            Topology::Routed if self.hosts < 2 => 1,
            Topology::Routed => 2,
        }
    }

    /// Where each host is plugged in. The first wire takes the larger half.
    pub fn ports(&self) -> Vec<Port> {
        let first = if self.wires() == 1 { self.hosts } else { self.hosts.div_ceil(2) };
        let port = |n: usize| {
            let wire = usize::from(n > first);
            Port {
                host: format!("host{n}"),
                wire,
                addresses: self.underlay(wire, 10 + n as u8),
                gateways: self.underlay(wire, 1),
            }
        };
        (1..=self.hosts).map(port).collect()
    }

    /// Addresses on a wire by last byte, from the documentation ranges (RFC 5737, RFC 3849): they
    /// collide with nothing a person knows.
    fn underlay(&self, wire: usize, last: u8) -> Vec<IpNet> {
        let v4 = match wire {
            0 => Ipv4Addr::new(192, 0, 2, last),
            _ => Ipv4Addr::new(198, 51, 100, last),
        };
        // Written so that the last group reads like the IPv4 address' last byte.
        let group = u16::from_str_radix(&last.to_string(), 16).unwrap_or(u16::from(last));
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 1 + wire as u16, 0, 0, 0, group);
        let v4 = Ipv4Net::new(v4, 24).ok().map(IpNet::V4).filter(|_| self.stack.v4());
        let v6 = Ipv6Net::new(v6, 64).ok().map(IpNet::V6).filter(|_| self.stack.v6());
        [v4, v6].into_iter().flatten().collect()
    }

    /// The network configuration the agents read.
    pub fn net_conf(&self) -> String {
        if let Some(text) = &self.net_conf {
            return text.clone();
        }
        let mut conf = json!({ "EnableNFTables": true, "Backend": { "Type": self.backend } });
        conf["EnableIPv4"] = Value::Bool(self.stack.v4());
        if self.stack.v4() {
            conf["Network"] = Value::from("10.244.0.0/16");
        }
        if self.stack.v6() {
            conf["EnableIPv6"] = Value::Bool(true);
            conf["IPv6Network"] = Value::from("fd00:10:244::/48");
        }
        if self.direct_routing {
            conf["Backend"]["DirectRouting"] = Value::Bool(true);
        }
        conf.to_string()
    }

    /// The CNI network list each host has as `/etc/cni/net.d/10-flannel.conflist`.
    pub fn conflist(&self) -> &str {
        self.conflist.as_deref().unwrap_or(CONFLIST)
    }
}

/// Checks the name of a lab or a pod: what a host name may be.
///
/// # Errors
/// A sentence that names the text.
pub fn check_name(what: &str, name: &str) -> Result<()> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if name.is_empty() || name.len() > 40 || !name.bytes().all(fits) || name.starts_with('-') {
        return Err(Error::said(format!(
            "{name:?} cannot name a {what}: use 1 to 40 lower-case letters, digits and dashes"
        )));
    }
    Ok(())
}

/// The address of a list that has the family of `like`, or the first one.
pub fn of_family(addresses: &[IpAddr], like: Option<IpAddr>) -> Option<IpAddr> {
    let same = |a: &&IpAddr| like.is_none_or(|l| l.is_ipv4() == a.is_ipv4());
    addresses.iter().find(same).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_plugged_in_as_documented() {
        for (hosts, topology, stack, want) in [
            (2, Topology::Flat, Stack::V4, "host1@0 192.0.2.11/24 | host2@0 192.0.2.12/24"),
            (1, Topology::Routed, Stack::V4, "host1@0 192.0.2.11/24"),
            (
                3,
                Topology::Routed,
                Stack::V4,
                "host1@0 192.0.2.11/24 | host2@0 192.0.2.12/24 | host3@1 198.51.100.13/24",
            ),
            (
                2,
                Topology::Routed,
                Stack::Dual,
                "host1@0 192.0.2.11/24 2001:db8:0:1::11/64 | host2@1 198.51.100.12/24 2001:db8:0:2::12/64",
            ),
            (1, Topology::Flat, Stack::V6, "host1@0 2001:db8:0:1::11/64"),
        ] {
            let spec = Spec { hosts, topology, stack, ..Spec::default() };
            let port = |p: &Port| {
                let addresses: Vec<String> = p.addresses.iter().map(IpNet::to_string).collect();
                format!("{}@{} {}", p.host, p.wire, addresses.join(" "))
            };
            let got: Vec<String> = spec.ports().iter().map(port).collect();
            assert_eq!(got.join(" | "), want);
        }
    }

    #[test]
    fn network_configuration_follows_the_options() {
        for (stack, backend, direct, want) in [
            (
                Stack::V4,
                "vxlan",
                false,
                r#"{"Backend":{"Type":"vxlan"},"EnableIPv4":true,"EnableNFTables":true,"Network":"10.244.0.0/16"}"#,
            ),
            (
                Stack::Dual,
                "vxlan",
                true,
                r#"{"Backend":{"DirectRouting":true,"Type":"vxlan"},"EnableIPv4":true,"EnableIPv6":true,"EnableNFTables":true,"IPv6Network":"fd00:10:244::/48","Network":"10.244.0.0/16"}"#,
            ),
            (
                Stack::V6,
                "host-gw",
                false,
                r#"{"Backend":{"Type":"host-gw"},"EnableIPv4":false,"EnableIPv6":true,"EnableNFTables":true,"IPv6Network":"fd00:10:244::/48"}"#,
            ),
        ] {
            let spec = Spec { stack, backend: backend.to_owned(), direct_routing: direct, ..Spec::default() };
            let got: Value = serde_json::from_str(&spec.net_conf()).unwrap();
            assert_eq!(got, serde_json::from_str::<Value>(want).unwrap());
        }
    }

    #[test]
    fn bad_values_are_named() {
        let base = Spec::default();
        for (spec, want) in [
            (base.clone(), "ok"),
            (Spec { hosts: 0, ..base.clone() }, "a lab has 1 to 200 hosts, not 0; set --hosts"),
            (Spec { pods: 251, ..base.clone() }, "a host has at most 250 pods, not 251; set --pods"),
            (Spec { mtu: 500, ..base.clone() }, "the wire's MTU is 1280 to 65000 bytes, not 500; set --mtu"),
            (
                Spec { name: "A b".into(), ..base.clone() },
                "\"A b\" cannot name a lab: use 1 to 40 lower-case letters, digits and dashes",
            ),
            (
                Spec { net_conf: Some("{".into()), ..base.clone() },
                "the file of --net-conf is not JSON: EOF while parsing an object at line 1 column 1",
            ),
        ] {
            let got = spec.check().err().map_or("ok".to_owned(), |e| e.to_string());
            assert_eq!(got, want);
        }
    }
}
