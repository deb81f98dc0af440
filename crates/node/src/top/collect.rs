//! The look itself: the agent's answer, or the kernel alone; pods and devices by netlink and `/proc/net/dev`. Changes
//! nothing, sends nothing to other hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kernel::link::LinkInfo;
use kernel::rtnl::RouteFilter;
use kernel::{Kernel, Rtnl};
use model::{Family, Subnets};
use plan::State;
use plan::backend::wireguard;
use plan::state::{LinkKind, Object, Via};

use super::{Counters, Device, Peer, Pod, Repair, Sample, json};
use crate::cli::status;
use crate::metrics::Counts;
use crate::pods::names::Names;
use crate::probe;
use crate::status::{LeftOut, probed};
use crate::{clock, host, pods, socket};

/// Pods come and go seldom, and looking for them takes a look at every process.
const PODS: Duration = Duration::from_secs(3);

/// Who looks again and again.
pub struct Watcher {
    socket: Option<PathBuf>,
    subnet_file: PathBuf,
    pods: Option<(Instant, Vec<pods::Pod>, Names)>,
}

impl Watcher {
    /// Asks the agent at this socket; without one the subnet file tells what there was.
    pub fn new(socket: Option<PathBuf>, subnet_file: &str) -> Watcher {
        Watcher { socket, subnet_file: PathBuf::from(subnet_file), pods: None }
    }

    /// One look.
    pub fn look(&mut self) -> Sample {
        let answer = socket::get(self.socket.as_deref(), "/v1/look").and_then(|text| {
            json::read(text.as_bytes()).map_err(|error| format!("the agent's answer is {error}"))
        });
        let mut sample = answer.unwrap_or_else(|silent| by_kernel(silent, &self.subnet_file));
        let known = self.pods.take().filter(|(at, ..)| at.elapsed() < PODS);
        let known = known.unwrap_or_else(|| (Instant::now(), pods::all().unwrap_or_default(), Names::read()));
        let addresses = known.1.iter().flat_map(|pod| {
            let texts: Vec<String> = pod.addresses.iter().map(|net| net.addr().to_string()).collect();
            pod.host_ends.iter().map(move |end| (*end, texts.clone()))
        });
        local(&mut sample, addresses.collect(), &known.2);
        self.pods = Some(known);
        sample
    }
}

/// Without an agent: peers are the routes it left.
fn by_kernel(silent: String, subnet_file: &Path) -> Sample {
    let (status, state) = status::by_kernel(silent, subnet_file);
    Sample { status, peers: routed(&state), ..Sample::default() }
}

/// The subnets that routes of ours lead to, and the addresses between hosts behind them.
pub fn routed(state: &State) -> Vec<Peer> {
    let (mut macs, mut outer, mut nexthops) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (_, object) in state.iter() {
        match object {
            Object::Neigh(neigh) => drop(macs.insert(neigh.dst, neigh.mac)),
            Object::Fdb(fdb) => drop(outer.insert(fdb.mac, fdb.dst)),
            Object::Nexthop(nexthop) => drop(nexthops.insert(nexthop.id, nexthop.via)),
            _ => {}
        }
    }
    let peer = |object: &Object| {
        let Object::Route(route) = object else { return None };
        let gateway = match route.via {
            Via::Gateway { gateway, .. } => Some(gateway),
            Via::Nexthop(id) => nexthops.get(&id).copied(),
            Via::Dev(_) => None,
            _ => return None,
        };
        // What is inside a tunnel's network is sent to where its forwarding entry says.
        let far = gateway.map(|via| macs.get(&via).and_then(|mac| outer.get(mac)).copied().unwrap_or(via));
        let public = far.map(|far| far.to_string()).into_iter().collect();
        Some(Peer { subnets: vec![route.dst.to_string()], public, ..Peer::default() })
    };
    state.iter().filter_map(|(_, object)| peer(object)).collect()
}

/// Peers as the agent knows them.
pub fn peers(
    leases: &model::Peers,
    names: &BTreeMap<Subnets, Box<str>>,
    own: Option<Subnets>,
    board: &probe::Board,
    left_out: &[LeftOut],
) -> Vec<Peer> {
    let left_out: BTreeMap<&str, &str> =
        left_out.iter().map(|peer| (peer.subnets.as_str(), peer.reason.as_str())).collect();
    let inner = board.open();
    let others = leases.iter().filter(|lease| Some(lease.subnets) != own);
    let peer = |lease: &model::Lease| {
        let found = |net: model::IpNet| inner.findings.get(&net).map(|at| probed::path(&inner, at, names));
        let subnets: Vec<String> = lease.subnets.nets().map(|net| net.to_string()).collect();
        // Said of one family, or of both.
        let reason = || {
            let mut each = subnets.iter().map(String::as_str);
            let one = each.find_map(|net| left_out.get(net).copied());
            one.or_else(|| left_out.get(lease.subnets.to_string().as_str()).copied())
        };
        let publics = Family::BOTH.into_iter().filter_map(|family| lease.attrs.public(family));
        Peer {
            node: names.get(&lease.subnets).map(ToString::to_string),
            left_out: if left_out.is_empty() { None } else { reason().map(str::to_owned) },
            public: publics.map(|address| address.to_string()).collect(),
            backend: lease.attrs.backend_type.clone(),
            paths: lease.subnets.nets().filter_map(found).collect(),
            subnets,
            traffic: None,
        }
    };
    others.map(peer).collect()
}

/// Repairs as the loop counts them.
pub fn repairs(counts: &Counts) -> Vec<Repair> {
    let repair = |(kind, cause, times): (&str, crate::reconcile::drift::Cause, u64)| Repair {
        kind: kind.to_owned(),
        cause: cause.word().to_owned(),
        times,
        new: 0,
    };
    counts.repairs().map(repair).collect()
}

/// Fills in time, name, pods and devices. `addresses` are those of pods that are known already, by the index of the
/// host's end; others are taken from their record, else looked for in the neighbours.
pub fn local(sample: &mut Sample, addresses: BTreeMap<u32, Vec<String>>, names: &Names) {
    sample.at_ms = u64::try_from(clock::uptime().as_millis()).unwrap_or_default();
    sample.host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    // Of this thread's namespace, which is the process's.
    let counters = counters(&fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default());
    let Ok(mut rtnl) = Rtnl::open() else { return };
    let Ok(links) = rtnl.links() else { return };
    by_wireguard(sample, &links);
    let routes = rtnl.routes(RouteFilter::default()).unwrap_or_default();
    let defaults: BTreeSet<u32> =
        routes.iter().filter(|route| route.dst.prefix_len() == 0).filter_map(|route| route.dev).collect();
    let is_pod = |link: &&LinkInfo| {
        link.link.kind.name() == "veth" && link.lower_netns.is_some() && !defaults.contains(&link.index)
    };
    let (of_pods, others): (Vec<&LinkInfo>, Vec<&LinkInfo>) = links.iter().partition(is_pod);
    let unknown = of_pods.iter().any(|link| !addresses.contains_key(&link.index));
    let heard = if unknown { neighbours(&mut rtnl, &routes) } else { BTreeMap::new() };
    let uplink = sample.status.interface.as_ref().and_then(|interface| interface.name.clone());
    let traffic = |link: &LinkInfo| counters.get(&link.link.name.to_string()).copied().unwrap_or_default();
    let name = |index: u32| links.iter().find(|l| l.index == index).map(|l| l.link.name.to_string());
    let pod = |link: &&LinkInfo| {
        let device = link.link.name.to_string();
        let called = names.of_device(&device);
        // What was recorded is all of them, what was heard those that spoke.
        let recorded = called
            .and_then(|pod| names.place(pod))
            .map(|place| place.addresses.iter().map(ToString::to_string).collect::<Vec<String>>());
        let recorded = recorded.filter(|addresses| !addresses.is_empty());
        let known = addresses.get(&link.index).cloned().or(recorded);
        let known = known.or_else(|| heard.get(&link.index).cloned());
        Pod {
            pod: called.map(ToString::to_string),
            device,
            bridge: link.master.and_then(name),
            addresses: known.unwrap_or_default(),
            traffic: super::Traffic { counters: traffic(link).turned(), rates: None },
        }
    };
    sample.pods = of_pods.iter().map(pod).collect();
    let bridges: BTreeSet<u32> = of_pods.iter().filter_map(|link| link.master).collect();
    let device = |link: &&LinkInfo| {
        let name = link.link.name.to_string();
        let role = match &link.link.kind {
            _ if uplink.as_ref() == Some(&name) => "hosts",
            _ if plan::backend::is_our_link(&link.link) => "tunnel",
            LinkKind::Bridge(_) if bridges.contains(&link.index) => "pods",
            _ => "",
        };
        Device {
            kind: link.link.kind.name().to_owned(),
            role: role.to_owned(),
            up: link.link.up,
            mtu: link.link.mtu.unwrap_or_default(),
            traffic: super::Traffic { counters: traffic(link), rates: None },
            name,
        }
    };
    sample.devices = others.iter().filter(|link| !link.is_loopback()).map(device).collect();
    let place =
        |device: &Device| ["hosts", "tunnel", "pods", ""].iter().position(|role| *role == device.role);
    sample.devices.sort_by_key(|device| (place(device), !device.up, device.name.clone()));
}

/// What each peer carried, where WireGuard counts it.
fn by_wireguard(sample: &mut Sample, links: &[LinkInfo]) {
    let is_one = |link: &&LinkInfo| {
        [wireguard::DEVICE, wireguard::DEVICE_V6].contains(&link.link.name.as_str())
            && plan::backend::is_our_link(&link.link)
    };
    let tunnels: Vec<&LinkInfo> = links.iter().filter(is_one).collect();
    if tunnels.is_empty() {
        return;
    }
    let Ok(mut kernel) = Kernel::open() else { return };
    kernel.set_user_space(host::user_space());
    let told = tunnels.into_iter().flat_map(|link| kernel.wireguard_peers(link));
    let mut carried: BTreeMap<String, Counters> = BTreeMap::new();
    for peer in told {
        let counters = Counters { in_bytes: peer.received, out_bytes: peer.sent, ..Counters::default() };
        carried.extend(peer.peer.allowed.iter().map(|net| (net.to_string(), counters)));
    }
    for peer in &mut sample.peers {
        // Of two families one device may carry both, or each its own.
        let known = peer.subnets.iter().find_map(|net| carried.get(net));
        peer.traffic = known.map(|counters| super::Traffic { counters: *counters, rates: None });
    }
}

/// Addresses behind each port, for those that may not look into namespaces: by neighbours and forwarding entries, which
/// know who spoke lately, and by routes to one address, which `ptp` makes.
fn neighbours(rtnl: &mut Rtnl, routes: &[kernel::rtnl::RouteInfo]) -> BTreeMap<u32, Vec<String>> {
    let ports: BTreeMap<model::Mac, u32> =
        rtnl.fdb(None).unwrap_or_default().iter().map(|entry| (entry.mac, entry.index)).collect();
    let mut found: BTreeMap<u32, BTreeSet<std::net::IpAddr>> = BTreeMap::new();
    for neighbour in rtnl.neighbours(None).unwrap_or_default() {
        let port = neighbour.mac.and_then(|mac| ports.get(&mac)).copied().unwrap_or(neighbour.index);
        if pods::is_global(neighbour.dst) && !neighbour.dst.is_multicast() && neighbour.mac.is_some() {
            found.entry(port).or_default().insert(neighbour.dst);
        }
    }
    for route in routes.iter().filter(|route| route.dst.prefix_len() == route.dst.max_prefix_len()) {
        if let Some(dev) = route.dev.filter(|_| pods::is_global(route.dst.addr())) {
            found.entry(dev).or_default().insert(route.dst.addr());
        }
    }
    let texts = |(index, all): (u32, BTreeSet<std::net::IpAddr>)| {
        (index, all.iter().map(ToString::to_string).collect())
    };
    found.into_iter().map(texts).collect()
}

/// `/proc/net/dev` (proc_net(5)): after two lines of headings a name, a colon, eight numbers of what came and eight of
/// what went.
pub fn counters(text: &str) -> BTreeMap<String, Counters> {
    let of = |line: &str| {
        let (name, numbers) = line.rsplit_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let [
            in_bytes,
            in_packets,
            in_errors,
            in_dropped,
            ..,
            out_bytes,
            out_packets,
            out_errors,
            out_dropped,
            _,
            _,
            _,
            _,
        ] = numbers[..]
        else {
            return None;
        };
        let counters = Counters {
            in_packets,
            in_bytes,
            out_packets,
            out_bytes,
            dropped: in_dropped + out_dropped,
            errors: in_errors + out_errors,
        };
        Some((name.trim().to_owned(), counters))
    };
    text.lines().skip(2).filter_map(of).collect()
}
