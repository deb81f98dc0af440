//! Results of ADD in every version's shape (cni.md 1.6, 1.7).
//!
//! One type holds the newest form; reading lifts to it, printing lowers from it. Members we do not model
//! are dropped, as upstream drops them.

use std::net::IpAddr;

use ipnet::IpNet;

use super::members::Members;
use super::version::Shape;
use crate::Family;
use crate::gojson::Json;

/// What an attachment consists of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CniResult {
    /// Interfaces made, on the host and in the pod.
    pub interfaces: Vec<Interface>,
    /// Addresses given.
    pub ips: Vec<IpConfig>,
    /// Routes of the pod.
    pub routes: Vec<RouteConfig>,
    /// Resolver settings.
    pub dns: Dns,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Hardware address as text; may be empty.
    pub mac: String,
    /// MTU in bytes, 0 for not told (1.1).
    pub mtu: i64,
    /// Path of the namespace it is in; empty for the host.
    pub sandbox: String,
    /// Path of a vhost-user socket (1.1).
    pub socket_path: String,
    /// PCI address (1.1).
    pub pci_id: String,
}

impl Interface {
    fn to_json(&self, shape: Shape) -> Json {
        let mut object = Json::empty();
        let mut text = |key: &str, value: &str| {
            if !value.is_empty() {
                object.set(key, value);
            }
        };
        text("name", &self.name);
        text("mac", &self.mac);
        text("sandbox", &self.sandbox);
        if shape == Shape::One {
            text("socketPath", &self.socket_path);
            text("pciID", &self.pci_id);
            if self.mtu != 0 {
                object.set("mtu", self.mtu);
            }
        }
        object
    }
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpConfig {
    /// Index into the interfaces; `None` is "unknown, assume the pod's".
    pub interface: Option<i64>,
    /// Host address with the prefix length of its subnet.
    pub address: IpNet,
    /// Gateway of the subnet.
    pub gateway: Option<IpAddr>,
}

impl IpConfig {
    fn to_json(&self, shape: Shape) -> Json {
        let mut object = Json::empty();
        if shape == Shape::Four {
            object.set("version", if self.address.addr().is_ipv4() { "4" } else { "6" });
        }
        if let Some(interface) = self.interface {
            object.set("interface", interface);
        }
        object.set("address", self.address.to_string());
        if let Some(gateway) = self.gateway {
            object.set("gateway", gateway.to_string());
        }
        object
    }
}

/// A route of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// Destination.
    pub dst: IpNet,
    /// Gateway; `None` takes that of the first address of the family.
    pub gw: Option<IpAddr>,
    /// Path MTU, 0 for none.
    pub mtu: i64,
    /// Advertised MSS, 0 for none.
    pub advmss: i64,
    /// Metric, 0 for none.
    pub priority: i64,
    /// Table, `None` for main.
    pub table: Option<i64>,
    /// Scope number.
    pub scope: Option<i64>,
}

impl RouteConfig {
    /// A route with nothing but destination and gateway.
    pub fn new(dst: IpNet, gw: Option<IpAddr>) -> RouteConfig {
        RouteConfig { dst, gw, mtu: 0, advmss: 0, priority: 0, table: None, scope: None }
    }

    /// Reads a route object.
    ///
    /// # Errors
    /// A member of the wrong type, or no destination.
    pub fn parse(m: &Members<'_>) -> Result<RouteConfig, String> {
        let dst = m.net("dst")?.ok_or("route without dst: name a destination network")?;
        Ok(RouteConfig {
            dst,
            gw: m.ip("gw")?,
            mtu: m.integer("mtu")?.unwrap_or(0),
            advmss: m.integer("advmss")?.unwrap_or(0),
            priority: m.integer("priority")?.unwrap_or(0),
            table: m.integer("table")?,
            scope: m.integer("scope")?,
        })
    }

    /// The route as an object, members in the order of the versions before 1.0.
    pub fn to_json(&self) -> Json {
        let mut object = Json::empty();
        object.set("dst", self.dst.to_string());
        if let Some(gw) = self.gw {
            object.set("gw", gw.to_string());
        }
        for (key, value) in [("mtu", self.mtu), ("advmss", self.advmss), ("priority", self.priority)] {
            if value != 0 {
                object.set(key, value);
            }
        }
        for (key, value) in [("table", self.table), ("scope", self.scope)] {
            if let Some(value) = value {
                object.set(key, value);
            }
        }
        object
    }
}

/// Resolver settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Name servers.
    pub nameservers: Vec<String>,
    /// Local domain.
    pub domain: String,
    /// Search list.
    pub search: Vec<String>,
    /// Options of the resolver.
    pub options: Vec<String>,
}

impl Dns {
    /// Reads a `dns` object.
    ///
    /// # Errors
    /// A member of the wrong type.
    pub fn parse(m: &Members<'_>) -> Result<Dns, String> {
        Ok(Dns {
            nameservers: m.strings("nameservers")?,
            domain: m.string("domain")?,
            search: m.strings("search")?,
            options: m.strings("options")?,
        })
    }

    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Dns::default()
    }

    fn to_json(&self) -> Json {
        let mut object = Json::empty();
        let lists =
            [("nameservers", &self.nameservers), ("search", &self.search), ("options", &self.options)];
        for (key, list) in lists {
            if key == "search" && !self.domain.is_empty() {
                object.set("domain", self.domain.as_str());
            }
            if !list.is_empty() {
                object.set(key, Json::array(list.iter().map(String::as_str)));
            }
        }
        object
    }
}

impl CniResult {
    /// Reads a result document. A result without `cniVersion` is taken as `default_version`.
    ///
    /// # Errors
    /// No such version, or a member of the wrong type.
    pub fn parse(value: &Json, default_version: &str) -> Result<CniResult, String> {
        let m = Members::of(value, "Result")?;
        let version = Some(m.string("cniVersion")?).filter(|v| !v.is_empty());
        let version = version.as_deref().unwrap_or(default_version);
        let shape =
            Shape::of(version).ok_or_else(|| format!("unsupported CNI result version {version:?}"))?;
        let dns = m.object("dns", "DNS")?.as_ref().map(Dns::parse).transpose()?.unwrap_or_default();
        let mut result = CniResult { dns, ..CniResult::default() };
        if shape == Shape::Two {
            for key in ["ip4", "ip6"] {
                result.lift_two(&m, key)?;
            }
            return Ok(result);
        }
        for i in m.objects("interfaces", "Interface")? {
            result.interfaces.push(Interface {
                name: i.string("name")?,
                mac: i.string("mac")?,
                mtu: i.integer("mtu")?.unwrap_or(0),
                sandbox: i.string("sandbox")?,
                socket_path: i.string("socketPath")?,
                pci_id: i.string("pciID")?,
            });
        }
        for ip in m.objects("ips", "IPConfig")? {
            let address =
                ip.net("address")?.ok_or("address missing in ips: name it with its prefix length")?;
            let (interface, gateway) = (ip.integer("interface")?, ip.ip("gateway")?);
            result.ips.push(IpConfig { interface, address, gateway });
        }
        for route in m.objects("routes", "Route")? {
            result.routes.push(RouteConfig::parse(&route)?);
        }
        Ok(result)
    }

    /// One family of a 0.2 document (cni.md 1.7).
    fn lift_two(&mut self, m: &Members<'_>, key: &str) -> Result<(), String> {
        let Some(ip) = m.object(key, "IPConfig")? else { return Ok(()) };
        let address = ip.net("ip")?.ok_or_else(|| format!("ip missing in {key}: name it with its length"))?;
        self.ips.push(IpConfig { interface: None, address, gateway: ip.ip("gateway")? });
        for route in ip.objects("routes", "Route")? {
            self.routes.push(RouteConfig::parse(&route)?);
        }
        Ok(())
    }

    /// The document in the shape of `version`.
    ///
    /// # Errors
    /// No such version, or (0.1, 0.2) no address to put in it.
    pub fn to_json(&self, version: &str) -> Result<String, String> {
        let shape = Shape::of(version)
            .ok_or_else(|| format!("no converter for CNI result version 1.1.0 to {version}"))?;
        let mut document = Json::empty();
        document.set("cniVersion", if version.is_empty() { "0.1.0" } else { version });
        match shape {
            Shape::Two => self.lower_two(&mut document)?,
            Shape::Four | Shape::One => self.lower_lists(&mut document, shape),
        }
        if shape != Shape::One || !self.dns.is_empty() {
            document.set("dns", self.dns.to_json());
        }
        Ok(if shape == Shape::One { document.to_indented_sorted() } else { document.to_indented() })
    }

    fn lower_two(&self, document: &mut Json) -> Result<(), String> {
        for (family, key) in [(Family::V4, "ip4"), (Family::V6, "ip6")] {
            let Some(ip) = self.ips.iter().find(|ip| Family::of_net(ip.address) == family) else { continue };
            let mut object = Json::empty();
            object.set("ip", ip.address.to_string());
            if let Some(gateway) = ip.gateway {
                object.set("gateway", gateway.to_string());
            }
            let ours = self.routes.iter().filter(|r| Family::of_net(r.dst) == family);
            let routes: Vec<Json> = ours.map(|r| RouteConfig::new(r.dst, r.gw).to_json()).collect();
            if !routes.is_empty() {
                object.set("routes", routes);
            }
            document.set(key, object);
        }
        if self.ips.is_empty() {
            return Err("cannot convert: no valid IP addresses".to_owned());
        }
        Ok(())
    }

    fn lower_lists(&self, document: &mut Json, shape: Shape) {
        let lists = [
            ("interfaces", self.interfaces.iter().map(|i| i.to_json(shape)).collect::<Vec<_>>()),
            ("ips", self.ips.iter().map(|ip| ip.to_json(shape)).collect()),
            ("routes", self.routes.iter().map(RouteConfig::to_json).collect()),
        ];
        for (key, list) in lists {
            if !list.is_empty() {
                document.set(key, list);
            }
        }
    }
}

#[cfg(test)]
mod tests;
