//! Pods of this host, found without asking a runtime: namespaces with a name and those of processes.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use kernel::link::LinkInfo;
use kernel::netns::NetnsId;
use kernel::rtnl::RouteFilter;
use kernel::{Netns, Rtnl};
use model::Family;

/// The namespace of a source: `host`, an address, or a path; `None` for the host itself.
///
/// # Errors
/// One sentence: there is no such pod here, or the namespace cannot be opened.
pub fn pod(source: &str) -> Result<Option<Netns>, String> {
    if source == "host" {
        return Ok(None);
    }
    if source.starts_with('/') {
        return Netns::open(Path::new(source)).map(Some).map_err(|error| error.to_string());
    }
    let address: IpAddr = source.parse().map_err(|_| {
        format!("{source:?} is neither `host`, nor an address, nor the path of a network namespace")
    })?;
    let has =
        |rtnl: &mut Rtnl| rtnl.addresses(None).is_ok_and(|all| all.iter().any(|a| a.net.addr() == address));
    if Rtnl::open().is_ok_and(|mut rtnl| has(&mut rtnl)) {
        return Ok(None);
    }
    if let Some(netns) = holder(address, true) {
        return Ok(Some(netns));
    }
    let family = Family::of(address);
    Err(format!("no pod of this host has the {family} address {address}; trace it on the host that has it"))
}

/// The pod that is tied to the caller's namespace and has this address; one without a veth too, if `any`.
fn holder(address: IpAddr, any: bool) -> Option<Netns> {
    let tied = all().unwrap_or_default();
    let pod = tied.into_iter().find(|pod| pod.addresses.iter().any(|net| net.addr() == address));
    if pod.is_some() || !any {
        return pod.map(|pod| pod.netns);
    }
    let has =
        |rtnl: &mut Rtnl| rtnl.addresses(None).is_ok_and(|all| all.iter().any(|a| a.net.addr() == address));
    let mut open = namespaces().into_iter().filter_map(|path| Netns::open(&path).ok());
    open.find(|netns| Rtnl::open_in(netns.as_fd()).is_ok_and(|mut rtnl| has(&mut rtnl)))
}

/// The pod that is tied to the caller's namespace by a veth and has this address.
pub fn tied(address: IpAddr) -> Option<Netns> {
    holder(address, false)
}

/// A namespace with an address that is tied to the caller's by a veth.
#[derive(Debug)]
pub struct Pod {
    /// The file of its namespace.
    pub path: PathBuf,
    /// Its namespace.
    pub netns: Netns,
    /// What tells it from others.
    pub id: NetnsId,
    /// Its addresses with their prefix, loopback and link-local ones left out.
    pub addresses: Vec<IpNet>,
    /// Indices of the caller's ends of its veths.
    pub host_ends: Vec<u32>,
}

/// All pods that are tied to the caller's namespace by a veth.
///
/// # Errors
/// The kernel cannot be asked about the host's own devices.
pub fn all() -> Result<Vec<Pod>, String> {
    let text = |error: kernel::Error| error.to_string();
    let here = Netns::current().and_then(|netns| netns.id()).map_err(|error| error.to_string())?;
    let mut host = Rtnl::open().map_err(text)?;
    let links = host.links().map_err(text)?;
    // What the default route leads to is the world and no pod, for hosts that are namespaces themselves.
    let routes = host.routes(RouteFilter::default()).map_err(text)?;
    let default = |dev: u32| routes.iter().any(|route| route.dst.prefix_len() == 0 && route.dev == Some(dev));
    let veths = links.iter().filter(|l| l.link.kind.name() == "veth" && !default(l.index));
    let veths: Vec<&LinkInfo> = veths.collect();
    let mut pods = Vec::new();
    for path in namespaces() {
        let Ok(netns) = Netns::open(&path) else { continue };
        // What is gone by now is no pod.
        let (Ok(id), Ok(Some(number))) = (netns.id(), host.netns_id(netns.as_fd())) else { continue };
        let tied = veths.iter().filter(|l| l.lower_netns == Some(number));
        let host_ends: Vec<u32> = tied.map(|l| l.index).collect();
        if id == here || host_ends.is_empty() {
            continue;
        }
        let Ok(mut rtnl) = Rtnl::open_in(netns.as_fd()) else { continue };
        let addresses = rtnl.addresses(None).unwrap_or_default();
        let addresses: Vec<IpNet> = addresses.iter().map(|a| a.net).filter(|n| is_global(n.addr())).collect();
        if !addresses.is_empty() {
            pods.push(Pod { path, netns, id, addresses, host_ends });
        }
    }
    Ok(pods)
}

/// Neither loopback nor link-local.
pub fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => !a.is_loopback() && !a.is_link_local(),
        IpAddr::V6(a) => !a.is_loopback() && !a.is_unicast_link_local(),
    }
}

/// Every namespace once: those with a name, and those of processes.
fn namespaces() -> Vec<PathBuf> {
    let entries = |dir: &str| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let named = ["/run/netns", "/run/docker/netns"].into_iter().flat_map(entries);
    let processes = entries("/proc").map(|process| process.join("ns/net"));
    let mut unique = BTreeMap::new();
    for path in named.chain(processes) {
        if let Ok(data) = fs::metadata(&path) {
            unique.entry((data.dev(), data.ino())).or_insert(path);
        }
    }
    unique.into_values().collect()
}
