//! What the checks look at.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use model::{Family, Mac};

use super::ruleset::Ruleset;

/// One host. `None` and what is empty was not there, or could not be looked at (then it is in `missing`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// What could not be looked at, and why.
    pub missing: Vec<String>,
    /// Kernel parameters by path below `/proc/sys`.
    pub sysctls: BTreeMap<String, String>,
    /// Kinds of device this kernel makes, of those asked for; `None` when nobody may try.
    pub kinds: Option<BTreeMap<String, bool>>,
    /// Devices.
    pub devices: Vec<Device>,
    /// Addresses.
    pub addresses: Vec<Address>,
    /// Routes of the main table.
    pub routes: Vec<Route>,
    /// Policy rules, as `ip rule` shows them, but for the three that are always there, and those that concern
    /// something an ordinary packet has not; those of IPv6 begin with `-6 `.
    pub rules: Vec<String>,
    /// Routes of the tables that these rules name.
    pub tables: BTreeMap<u32, Vec<Route>>,
    /// Neighbours with a hardware address: device, address, hardware address.
    pub neighbours: Vec<(String, IpAddr, Mac)>,
    /// Where tunnels send frames: device, other host, hardware address.
    pub forwarding: Vec<(String, IpAddr, Mac)>,
    /// UDP ports that a process listens on.
    pub udp: Vec<u16>,
    /// Packet rules.
    pub ruleset: Ruleset,
    /// `subnet.env`.
    pub subnet_env: Option<String>,
    /// Where it is.
    pub subnet_file: String,
    /// CNI configurations by file name, in the order runtimes look.
    pub cni_confs: Vec<(String, String)>,
    /// Names of CNI programs; `None` without the directory.
    pub cni_programs: Option<Vec<String>>,
    /// Where runtimes look for them.
    pub cni_dirs: Vec<String>,
    /// Addresses in the store of the plugin host-local, by network.
    pub reserved: BTreeMap<String, usize>,
    /// NetworkManager runs, and its configuration.
    pub network_manager: Option<String>,
    /// systemd-networkd runs, and its configuration: name and text.
    pub networkd: Option<Vec<(String, String)>>,
    /// `ufw.conf` and `default/ufw`.
    pub ufw: Option<String>,
    /// Docker's options as written by `mk-docker-opts`.
    pub docker_options: Option<String>,
    /// Certificates: file, first and last second of their time since 1970.
    pub certificates: Vec<(String, u64, u64)>,
    /// Seconds since 1970, and of the newest file the agent wrote.
    pub now: u64,
    /// See `now`.
    pub written: u64,
    /// Free bytes and nodes of files, by directory.
    pub space: Vec<(String, u64, u64)>,
    /// What the agent says, or why it says nothing.
    pub agent: Option<crate::status::Status>,
}

/// A device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Device {
    /// Name.
    pub name: String,
    /// Kind as the kernel names it; empty for a physical one.
    pub kind: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// It has a carrier.
    pub carrier: bool,
    /// Hardware address.
    pub mac: Option<Mac>,
    /// Bridge it is a port of.
    pub master: Option<String>,
    /// Network identifier, port and own address, of VXLAN.
    pub vxlan: Option<(u32, u16, Option<IpAddr>)>,
    /// Device that the packets of VXLAN leave through, whatever routes say.
    pub lower: Option<String>,
}

/// An address.
#[derive(Clone, Debug, PartialEq)]
pub struct Address {
    /// Its device.
    pub dev: String,
    /// Address and prefix length.
    pub net: IpNet,
    /// Duplicate address detection has found it elsewhere.
    pub duplicate: bool,
}

/// A route.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Destination.
    pub dst: IpNet,
    /// Device.
    pub dev: Option<String>,
    /// Gateway.
    pub gateway: Option<IpAddr>,
    /// Metric.
    pub metric: u32,
    /// `RTN_…`
    pub kind: u8,
    /// `RTPROT_…`
    pub protocol: u8,
}

/// `RTN_UNICAST`
pub const UNICAST: u8 = 1;
/// `RTN_BLACKHOLE`, `RTN_UNREACHABLE`, `RTN_PROHIBIT`
pub const REFUSING: [u8; 3] = [6, 7, 8];

/// The route of a table that a packet to an address takes: the longest prefix, then the least metric, then the first.
pub fn best(routes: &[Route], ip: IpAddr) -> Option<&Route> {
    routes
        .iter()
        .enumerate()
        .filter(|(_, route)| route.dst.contains(&ip))
        .min_by_key(|(at, route)| (u8::MAX - route.dst.prefix_len(), route.metric, *at))
        .map(|(_, route)| route)
}

impl Facts {
    /// A key of `subnet.env`.
    pub fn env(&self, key: &str) -> Option<&str> {
        let lines = self.subnet_env.as_deref()?.lines();
        lines
            .filter_map(|line| line.split_once('='))
            .find(|(name, _)| *name == key)
            .map(|(_, value)| value.trim())
    }

    /// The networks of all pods, and the subnet of those of this node.
    pub fn networks(&self) -> Vec<IpNet> {
        let keys = ["FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"].into_iter();
        keys.filter_map(|key| self.env(key))
            .flat_map(|text| text.split(','))
            .filter_map(|net| net.parse().ok())
            .collect()
    }

    /// This node's subnet of a family.
    pub fn subnet(&self, family: Family) -> Option<IpNet> {
        let key = if family == Family::V4 { "FLANNEL_SUBNET" } else { "FLANNEL_IPV6_SUBNET" };
        self.env(key)?.parse::<IpNet>().ok().map(|net| net.trunc())
    }

    /// A device by name.
    pub fn device(&self, name: &str) -> Option<&Device> {
        self.devices.iter().find(|device| device.name == name)
    }

    /// Tunnel devices of flannel's and ours.
    pub fn tunnels(&self) -> impl Iterator<Item = &Device> {
        self.devices.iter().filter(|device| device.name.starts_with("flannel"))
    }

    /// Devices on a bridge.
    pub fn ports<'a>(&'a self, bridge: &'a str) -> impl Iterator<Item = &'a Device> {
        self.devices.iter().filter(move |device| device.master.as_deref() == Some(bridge))
    }

    /// Whether Docker has its addresses from flannel.
    pub fn docker(&self) -> bool {
        self.docker_options.is_some()
    }

    /// Routes to the subnets of other nodes.
    pub fn peers(&self, family: Family) -> impl Iterator<Item = &Route> {
        let (networks, own) = (self.networks(), self.subnet(family));
        self.routes.iter().filter(move |route| {
            Family::of_net(route.dst) == family
                && route.kind == UNICAST
                && networks.iter().any(|net| net.contains(&route.dst) && *net != route.dst)
                && own.is_some_and(|own| !own.contains(&route.dst) && !route.dst.contains(&own))
        })
    }

    /// Addresses of a device.
    pub fn of<'a>(&'a self, dev: &'a str) -> impl Iterator<Item = &'a Address> {
        self.addresses.iter().filter(move |address| address.dev == dev)
    }

    /// A kernel parameter that is a number.
    pub fn number(&self, path: &str) -> Option<i64> {
        self.sysctls.get(path)?.split_whitespace().next()?.parse().ok()
    }

    /// Default routes of a family that lead through a device, the preferred first.
    pub fn defaults(&self, family: Family) -> Vec<&Route> {
        let mut all: Vec<&Route> = self
            .routes
            .iter()
            .filter(|r| r.dst.prefix_len() == 0 && Family::of_net(r.dst) == family && r.kind == UNICAST)
            .collect();
        all.sort_by_key(|route| route.metric);
        all
    }

    /// The device between hosts: that of the tunnel's own address, else that of the default route.
    pub fn uplink(&self) -> Option<&Device> {
        let local = self.tunnels().find_map(|tunnel| tunnel.vxlan?.2);
        let of_local =
            local.and_then(|ip| self.addresses.iter().find(|a| a.net.addr() == ip)).map(|a| a.dev.as_str());
        let default = || Family::BOTH.into_iter().find_map(|f| self.defaults(f).first()?.dev.as_deref());
        let told = self.agent.as_ref().and_then(|agent| agent.interface.as_ref()?.name.as_deref());
        self.device(told.or(of_local).or_else(default)?)
    }
}
