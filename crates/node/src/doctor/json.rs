//! [`Facts`] as JSON and back, for a bug report that is looked at elsewhere. The names of members are those of the
//! fields; what a later version does not know is left out. What the agent says is a document of its own.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use model::Json;
use model::gojson::GoInt;

use super::facts::{Address, Device, Facts, Route};
use super::ruleset::{Chain, Ruleset};
use crate::status::json::{Part, flag, int, list, many, maybe_text, parts, put, text, texts, words};

/// Version of the JSON.
const VERSION: u32 = 1;

/// The document.
pub fn write(facts: &Facts) -> Json {
    facts.write()
}

/// Reads a document of our version or a later one; what is missing is empty.
///
/// # Errors
/// Half a sentence: not JSON, or no facts.
pub fn read(bytes: &[u8]) -> Result<Facts, String> {
    let json = Json::parse(bytes).map_err(|error| format!("not JSON: {error}"))?;
    if int::<u32>(&json, "version") < VERSION {
        return Err("not what a doctor collects".to_owned());
    }
    Ok(Facts::read(&json))
}

fn shown<T: Display>(value: &T) -> Json {
    value.to_string().into()
}

fn parsed<T: FromStr>(json: &Json, key: &str) -> Option<T> {
    text(json, key).parse().ok()
}

fn maybe_shown<T: Display>(value: &Option<T>) -> Json {
    value.as_ref().map(T::to_string).into()
}

fn map<V: Clone + Into<Json>>(all: &BTreeMap<String, V>) -> Json {
    Json::object(all.iter().map(|(name, value)| (name.as_str(), value.clone().into())))
}

/// The members of an object that `of` understands.
fn members<V>(json: &Json, key: &str, of: impl Fn(&Json) -> Option<V>) -> Vec<(String, V)> {
    let members = json.get_exact(key).and_then(Json::members).unwrap_or_default();
    members.iter().filter_map(|(name, value)| Some((name.clone(), of(value)?))).collect()
}

fn owned(json: &Json) -> Option<String> {
    json.as_str().map(str::to_owned)
}

/// Names and texts, in order.
fn pairs(all: &[(String, String)]) -> Json {
    Json::object(all.iter().map(|(name, text)| (name.as_str(), text.as_str().into())))
}

/// Names and two numbers.
fn numbers(all: &[(String, u64, u64)]) -> Json {
    Json::object(all.iter().map(|(name, a, b)| (name.as_str(), Json::array([*a, *b]))))
}

fn two(json: &Json) -> Option<(u64, u64)> {
    match json.as_array()? {
        [a, b] => Some((a.as_int()?, b.as_int()?)),
        _ => None,
    }
}

fn triples(json: &Json, key: &str) -> Vec<(String, u64, u64)> {
    members(json, key, two).into_iter().map(|(name, (a, b))| (name, a, b)).collect()
}

fn maybe_int<T: GoInt>(json: &Json, key: &str) -> Option<T> {
    json.get_exact(key).and_then(Json::as_int)
}

parts! {
    Device {
        name: put, text;
        kind: put, text;
        mtu: put, int;
        up: put, flag;
        carrier: put, flag;
        mac: maybe_shown, parsed;
        master: put, maybe_text;
        vxlan: vxlan, vxlan_of;
        lower: put, maybe_text;
    }
    Chain {
        table: put, text;
        name: put, text;
        hook: put, maybe_text;
        drops: put, flag;
        rules: |v: &Vec<String>| texts(v), words;
    }
}

/// Network identifier, port, own address.
type Vxlan = (u32, u16, Option<std::net::IpAddr>);

fn vxlan(vxlan: &Option<Vxlan>) -> Json {
    let members = |(vni, port, local): &Vxlan| {
        Json::object([("vni", (*vni).into()), ("port", (*port).into()), ("local", maybe_shown(local))])
    };
    vxlan.as_ref().map(members).into()
}

fn vxlan_of(json: &Json, key: &str) -> Option<Vxlan> {
    let vxlan = json.get_exact(key)?;
    Some((maybe_int(vxlan, "vni")?, maybe_int(vxlan, "port")?, parsed(vxlan, "local")))
}

/// A neighbour: device, address, hardware address.
type Neighbour = (String, std::net::IpAddr, model::Mac);

fn neighbours(all: &[Neighbour]) -> Json {
    Json::array(all.iter().map(|(dev, ip, mac)| texts(&[dev.clone(), ip.to_string(), mac.to_string()])))
}

fn neighbour(json: &Json) -> Option<Neighbour> {
    match json.as_array()? {
        [dev, ip, mac] => Some((owned(dev)?, ip.as_str()?.parse().ok()?, mac.as_str()?.parse().ok()?)),
        _ => None,
    }
}

fn items<T>(json: &Json, key: &str, of: impl Fn(&Json) -> Option<T>) -> Vec<T> {
    json.get_exact(key).and_then(Json::as_array).unwrap_or_default().iter().filter_map(of).collect()
}

fn address(address: &Address) -> Json {
    Json::object([
        ("dev", address.dev.as_str().into()),
        ("net", shown(&address.net)),
        ("duplicate", address.duplicate.into()),
    ])
}

fn route(route: &Route) -> Json {
    Json::object([
        ("dst", shown(&route.dst)),
        ("dev", route.dev.clone().into()),
        ("gateway", maybe_shown(&route.gateway)),
        ("metric", route.metric.into()),
        ("kind", route.kind.into()),
        ("protocol", route.protocol.into()),
    ])
}

fn route_of(json: &Json) -> Option<Route> {
    Some(Route {
        dst: parsed(json, "dst")?,
        dev: maybe_text(json, "dev"),
        gateway: parsed(json, "gateway"),
        metric: int(json, "metric"),
        kind: int(json, "kind"),
        protocol: int(json, "protocol"),
    })
}

fn tables(all: &BTreeMap<u32, Vec<Route>>) -> Json {
    let names: Vec<(String, Json)> = all
        .iter()
        .map(|(table, routes)| (table.to_string(), Json::array(routes.iter().map(route))))
        .collect();
    Json::object(names.iter().map(|(name, routes)| (name.as_str(), routes.clone())))
}

impl Part for Facts {
    fn write(&self) -> Json {
        Json::object([
            ("version", VERSION.into()),
            ("missing", texts(&self.missing)),
            ("sysctls", map(&self.sysctls)),
            ("kinds", self.kinds.as_ref().map(map).into()),
            ("devices", many(&self.devices)),
            ("addresses", Json::array(self.addresses.iter().map(address))),
            ("routes", Json::array(self.routes.iter().map(route))),
            ("rules", texts(&self.rules)),
            ("tables", tables(&self.tables)),
            ("neighbours", neighbours(&self.neighbours)),
            ("forwarding", neighbours(&self.forwarding)),
            ("udp", Json::array(self.udp.iter().copied())),
            ("chains", many(&self.ruleset.chains)),
            ("subnet_env", self.subnet_env.clone().into()),
            ("subnet_file", self.subnet_file.as_str().into()),
            ("cni_confs", pairs(&self.cni_confs)),
            ("cni_programs", self.cni_programs.as_deref().map(texts).into()),
            ("cni_dirs", texts(&self.cni_dirs)),
            ("reserved", map(&self.reserved)),
            ("network_manager", self.network_manager.clone().into()),
            ("networkd", self.networkd.as_deref().map(pairs).into()),
            ("ufw", self.ufw.clone().into()),
            ("docker_options", self.docker_options.clone().into()),
            ("certificates", numbers(&self.certificates)),
            ("now", self.now.into()),
            ("written", self.written.into()),
            ("space", numbers(&self.space)),
        ])
    }

    fn read(json: &Json) -> Facts {
        let there = |key: &str| json.get_exact(key).is_some_and(|value| !value.is_null());
        Facts {
            missing: words(json, "missing"),
            sysctls: members(json, "sysctls", owned).into_iter().collect(),
            kinds: there("kinds").then(|| members(json, "kinds", Json::as_bool).into_iter().collect()),
            devices: list(json, "devices"),
            addresses: items(json, "addresses", |json| {
                let net = parsed(json, "net")?;
                Some(Address { dev: text(json, "dev"), net, duplicate: flag(json, "duplicate") })
            }),
            routes: items(json, "routes", route_of),
            rules: words(json, "rules"),
            tables: members(json, "tables", |json| {
                Some(json.as_array()?.iter().filter_map(route_of).collect())
            })
            .into_iter()
            .filter_map(|(table, routes)| Some((table.parse().ok()?, routes)))
            .collect(),
            neighbours: items(json, "neighbours", neighbour),
            forwarding: items(json, "forwarding", neighbour),
            udp: items(json, "udp", Json::as_int),
            ruleset: Ruleset { chains: list(json, "chains") },
            subnet_env: maybe_text(json, "subnet_env"),
            subnet_file: text(json, "subnet_file"),
            cni_confs: members(json, "cni_confs", owned),
            cni_programs: there("cni_programs").then(|| words(json, "cni_programs")),
            cni_dirs: words(json, "cni_dirs"),
            reserved: members(json, "reserved", |json| usize::try_from(json.as_int::<u64>()?).ok())
                .into_iter()
                .collect(),
            network_manager: maybe_text(json, "network_manager"),
            networkd: there("networkd").then(|| members(json, "networkd", owned)),
            ufw: maybe_text(json, "ufw"),
            docker_options: maybe_text(json, "docker_options"),
            certificates: triples(json, "certificates"),
            now: int(json, "now"),
            written: int(json, "written"),
            space: triples(json, "space"),
            agent: None,
        }
    }
}
