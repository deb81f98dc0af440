//! Pods of this host, found without asking a runtime: namespaces with a name and those of processes. What runtimes call
//! them is in [`names`].

pub mod names;

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
use model::cni::record::PodName;

use names::{Names, Place};

/// An end of a packet's way on this host.
#[derive(Debug, Default)]
pub struct End {
    /// Its namespace; `None` for the host itself.
    pub netns: Option<Netns>,
    /// What a runtime calls it.
    pub pod: Option<PodName>,
    /// Its addresses, as far as the word for it tells them.
    pub addresses: Vec<IpAddr>,
}

/// The source a word means: `host`, an address, a path, or the name of a pod.
///
/// # Errors
/// One sentence: there is no such pod here, or the namespace cannot be opened.
pub fn source(word: &str, names: &Names) -> Result<End, String> {
    if word == "host" {
        return Ok(End::default());
    }
    if word.starts_with('/') {
        let path = Path::new(word);
        let netns = Netns::open(path).map_err(|error| error.to_string())?;
        return Ok(End { netns: Some(netns), pod: names.of_path(path).cloned(), addresses: Vec::new() });
    }
    if let Ok(address) = word.parse() {
        let pod = names.of_address(address);
        // A namespace without a process or a name in the usual place is found by its record.
        let recorded = || pod.and_then(|pod| open(names.place(pod)?));
        let netns = of_address(address).or_else(|why| recorded().map(Some).ok_or(why))?;
        return Ok(End { netns, pod: pod.cloned(), addresses: vec![address] });
    }
    named(word, names)
}

/// The pod with this name.
///
/// # Errors
/// As [`Names::find`], or its namespace is not to be found.
pub fn named(word: &str, known: &Names) -> Result<End, String> {
    if !names::may_be_one(word) {
        return Err(format!(
            "{word:?} is neither `host`, nor an address, nor the path of a network namespace, nor the name of a pod"
        ));
    }
    let (pod, place) = known.find(word)?;
    let netns = open(place).ok_or_else(|| {
        format!("the namespace of {pod} cannot be opened; it takes root, and the host's own view of /run and /proc")
    })?;
    Ok(End { netns: Some(netns), pod: Some(pod.clone()), addresses: place.addresses.clone() })
}

/// Its namespace: by its path, unless that leads elsewhere by now, else by the host's end of its veth.
fn open(place: &Place) -> Option<Netns> {
    let is_it = |netns: &Netns| {
        place.addresses.is_empty() || place.addresses.iter().any(|address| has(netns, *address))
    };
    let by_path = place.paths.iter().filter_map(|path| Netns::open(path).ok()).find(is_it);
    by_path.or_else(|| {
        let links = Rtnl::open().and_then(|mut rtnl| rtnl.links()).ok()?;
        let ours = links.iter().filter(|link| place.devices.contains(&link.link.name.to_string()));
        let ends: Vec<u32> = ours.map(|link| link.index).collect();
        let mut pods = all().ok()?.into_iter();
        pods.find(|pod| pod.host_ends.iter().any(|end| ends.contains(end))).map(|pod| pod.netns)
    })
}

fn has(netns: &Netns, address: IpAddr) -> bool {
    let all = Rtnl::open_in(netns.as_fd()).and_then(|mut rtnl| rtnl.addresses(None));
    all.is_ok_and(|all| all.iter().any(|a| a.net.addr() == address))
}

/// The namespace with an address; `None` for the host itself.
///
/// # Errors
/// No pod of this host has it.
pub fn of_address(address: IpAddr) -> Result<Option<Netns>, String> {
    let host = Rtnl::open().and_then(|mut rtnl| rtnl.addresses(None));
    if host.is_ok_and(|all| all.iter().any(|a| a.net.addr() == address)) {
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
    let mut open = namespaces().into_iter().filter_map(|path| Netns::open(&path).ok());
    open.find(|netns| has(netns, address))
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
