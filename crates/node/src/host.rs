//! The real border to the kernel: facts, read, apply, and the thread that listens for news.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use kernel::Kernel;
use kernel::link::LinkInfo;
use kernel::monitor::{Ears, Event, Monitor};
use kernel::rtnl::{AddrInfo, RouteFilter, RouteInfo};
use kernel::wireguard::UserSpace;
use model::{Family, IfName, NetConf};
use plan::advice::advice;
use plan::backend::Backend;
use plan::facts::{Addresses, Families, WireguardFacts};
use plan::state::{LinkKind, Scope, TABLE_MAIN, TableKey};
use plan::uplink::{
    self, Choice, DefaultRoute, Iface, IfaceAddress, Reach, Refusal, Routing, Selectors, Situation,
};
use plan::{Facts, Key, Object, State, Step, backend, rules, sources};
use store::Remembered;

use crate::args::Options;
use crate::helpers::Helpers;
use crate::inputs::{Inbox, Inputs, MOST_ENTRIES, News};
use crate::reconcile;
use crate::rights::Rights;
use crate::tunnels::{Tunnels, is_tunnel};
use crate::wgkey::Keeper;

/// Ways to another choice that the log names; `loden status --why` has all.
const HINTS: usize = 4;
/// Where `wg` looks for tunnels of user space, unless `LODEN_WIREGUARD_DIR` says otherwise: agents in several network
/// namespaces of one machine must not take each other's tunnels for theirs.
const WIREGUARD_DIR: &str = "/var/run/wireguard";

/// How WireGuard is carried where the kernel has none.
pub fn user_space() -> UserSpace {
    let dir = std::env::var_os("LODEN_WIREGUARD_DIR").filter(|dir| !dir.is_empty());
    UserSpace {
        start: tunnel::process::start_wireguard,
        dir: dir.map_or_else(|| WIREGUARD_DIR.into(), Into::into),
    }
}

/// The kernel of this host, seen through the operator's choice of interface.
pub struct Host {
    kernel: Kernel,
    helpers: Helpers,
    tunnels: Tunnels,
    selectors: Selectors,
    machine_id: String,
    /// The interface chosen last, which stands while nothing better is there.
    last: Option<Choice>,
    /// How the last decision came about, good or not.
    decision: Option<Result<Choice, Refusal>>,
    said: Vec<String>,
    /// What was said about iptables, and whether all is well with it.
    iptables_said: Vec<(bool, String)>,
    /// This node's WireGuard key, once a backend asked for it.
    wgkey: Keeper,
    inbox: Arc<Inbox>,
    hearing: Arc<Hearing>,
}

impl Host {
    /// Opens the sockets.
    ///
    /// # Errors
    /// No right to, or the kernel lacks netlink.
    pub fn open(
        options: &Options,
        inbox: Arc<Inbox>,
        rights: Arc<Rights>,
        hearing: Arc<Hearing>,
    ) -> Result<Host, String> {
        let mut kernel = Kernel::open()
            .map_err(|error| format!("{error}; the agent needs CAP_NET_ADMIN, run it as root"))?;
        kernel.set_user_space(user_space());
        let selectors = Selectors {
            iface: options.iface.clone(),
            iface_regex: options.iface_regex.clone(),
            can_reach: options.iface_can_reach.clone(),
            public_ip: options.public_ip.clone(),
            public_ipv6: options.public_ipv6.clone(),
            registry: Addresses::default(),
        };
        let machine_id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default().trim().to_owned();
        Ok(Host {
            kernel,
            helpers: Helpers::new(inbox.clone(), rights),
            tunnels: Tunnels::beside(Path::new(&options.subnet_file)),
            selectors,
            last: None,
            decision: None,
            said: Vec::new(),
            iptables_said: Vec::new(),
            wgkey: Keeper::new(&machine_id),
            machine_id,
            inbox,
            hearing,
        })
    }

    fn interfaces(links: &[LinkInfo], addresses: &[AddrInfo]) -> Vec<Iface> {
        /// `IFA_F_TEMPORARY`, include/uapi/linux/if_addr.h
        const TEMPORARY: u32 = 0x01;
        /// `IFA_F_DADFAILED`
        const DUPLICATE: u32 = 0x08;
        /// `IFA_F_DEPRECATED`
        const DEPRECATED: u32 = 0x20;
        let of = |link: &LinkInfo| {
            let own = addresses.iter().filter(|a| a.index == link.index);
            let address = |a: &AddrInfo| IfaceAddress {
                net: a.net,
                deprecated: a.flags & DEPRECATED != 0,
                permanent: a.flags & AddrInfo::PERMANENT != 0,
                // In IPv4 the bit says "secondary".
                temporary: a.net.addr().is_ipv6() && a.flags & TEMPORARY != 0,
                duplicate: a.flags & DUPLICATE != 0,
            };
            Iface {
                name: link.link.name,
                index: link.index,
                mtu: link.link.mtu.unwrap_or_default(),
                up: link.link.up,
                addresses: own.map(address).collect(),
            }
        };
        links.iter().map(of).collect()
    }

    fn default_routes(&mut self, family: Family) -> Result<Vec<DefaultRoute>, String> {
        let filter = RouteFilter { family: Some(family), table: Some(TABLE_MAIN), ..RouteFilter::default() };
        let routes = self.kernel.rtnl().routes(filter).map_err(|error| error.to_string())?;
        let unicast = routes.iter().filter(|r| r.dst.prefix_len() == 0 && r.kind == 1);
        let route = |r: &RouteInfo| DefaultRoute {
            dev: r.dev.filter(|_| !r.multipath),
            metric: r.priority.unwrap_or_default(),
        };
        Ok(unicast.map(route).collect())
    }

    fn routing(&mut self, families: Families) -> Result<Routing, String> {
        let without_ipv6 = !kernel::sysctl::has_ipv6();
        let mut routing = Routing { without_ipv6, ..Routing::default() };
        for family in families.iter() {
            let routes = self.default_routes(family)?;
            match family {
                Family::V4 => routing.defaults_v4 = routes,
                Family::V6 => routing.defaults_v6 = routes,
            }
        }
        if let Some(target) = model::addr::parse_ip(&self.selectors.can_reach) {
            let found = self.kernel.rtnl().lookup(&[target]).map_err(|error| error.to_string())?;
            routing.reach = found.first().copied().flatten().map(|l| Reach { dev: l.dev, source: l.src });
        }
        Ok(routing)
    }

    /// The programs of iptables, where the configuration wants rules there. Says which it will be, and what
    /// is missing.
    fn iptables(&mut self, conf: &NetConf) -> plan::facts::Iptables {
        if conf.enable_nftables {
            self.iptables_said.clear();
            return plan::facts::Iptables::new();
        }
        let tools = self.kernel.iptables_tools();
        let mut lines = Vec::new();
        for family in conf.networks().into_iter().map(Family::of_net) {
            let name = kernel::iptables::plain(family);
            match tools.get(&family) {
                Some(tool) => lines.push((true, format!("masquerade and forward rules go through {}", tool.variant.program(family)))),
                None => lines.push((false, format!(
                    "EnableNFTables is off, but {name} with {name}-save and {name}-restore is not where the agent runs: \
                     rules of the same meaning are kept in nftables; where another program drops in iptables' \
                     FORWARD, as Docker does, install the package iptables, for accepts in nftables do not overrule it"
                ))),
            }
        }
        if self.iptables_said != lines {
            for (fine, line) in &lines {
                if *fine { tracing::info!("{line}") } else { tracing::warn!("{line}") }
            }
            self.iptables_said = lines;
        }
        tools
    }

    fn wireguard(&mut self) -> Result<WireguardFacts, String> {
        let (private, public) = self.wgkey.get()?;
        let key_file = self.wgkey.file().display().to_string();
        Ok(WireguardFacts { private, public, key_file, in_kernel: self.kernel.has_wireguard() })
    }

    /// Tables of flannel's names whose rules are about none of our networks. One that says nothing is free.
    fn taken(&mut self, conf: &NetConf) -> BTreeSet<TableKey> {
        let ours = conf.networks();
        let mut taken = BTreeSet::new();
        for key in rules::table_keys() {
            let nets = self.kernel.networks_of(&key);
            let about_ours = |net: &IpNet| ours.iter().any(|own| own.contains(net) || net.contains(own));
            if !nets.is_empty() && !nets.iter().any(about_ours) {
                taken.insert(key);
            }
        }
        taken
    }

    /// The interface for traffic between hosts (flannel.md 5), and the log's lines about it.
    fn choose(&mut self, situation: &Situation) -> Result<Choice, String> {
        let decision = uplink::follow(&self.selectors, situation, self.last.as_ref());
        self.decision = Some(decision.clone());
        let choice = decision.map_err(|refusal| refusal.message)?;
        let name = choice.uplink.name;
        let mut lines: Vec<String> =
            choice.why.steps.iter().filter(|s| s.taken).map(ToString::to_string).collect();
        lines.extend(choice.why.otherwise.iter().take(HINTS).cloned());
        if self.said != lines {
            lines.iter().for_each(|line| tracing::info!("Using interface {name}: {line}"));
            if let Some(kept) = &choice.kept {
                tracing::warn!("interface {name} stays in use as it is: {kept}");
            }
            self.said = lines;
        }
        self.last = Some(choice.clone());
        Ok(choice)
    }

    /// Which of the peers' addresses the kernel reaches without a gateway.
    fn on_link(
        &mut self,
        names: &BTreeMap<u32, IfName>,
        peers: &[IpAddr],
    ) -> Result<BTreeMap<IpAddr, IfName>, String> {
        if peers.is_empty() {
            return Ok(BTreeMap::new());
        }
        let found = self.kernel.rtnl().lookup(peers).map_err(|error| error.to_string())?;
        let direct = |(peer, lookup): (&IpAddr, _)| {
            let lookup: kernel::rtnl::Lookup = Option::flatten(lookup)?;
            let unicast = lookup.kind == 1 && lookup.gateway.is_none();
            Some((*peer, *names.get(&lookup.dev).filter(|_| unicast)?))
        };
        Ok(peers.iter().zip(found.into_iter().map(Some)).filter_map(direct).collect())
    }
}

impl reconcile::Kernel for Host {
    fn facts(
        &mut self,
        conf: &NetConf,
        remembered: &Remembered,
        backend: &dyn Backend,
        peers: &[IpAddr],
    ) -> Result<Facts, String> {
        self.helpers.fit(conf);
        let devices = backend.devices();
        let families = Families { v4: conf.enable_ipv4, v6: conf.enable_ipv6 };
        let text = |error: kernel::Error| error.to_string();
        let links = self.kernel.rtnl().links().map_err(text)?;
        let addresses = self.kernel.rtnl().addresses(None).map_err(text)?;
        let routing = self.routing(families)?;
        let networks = conf.networks();
        let inside = |index| {
            addresses.iter().any(|a| a.index == index && networks.iter().any(|n| n.contains(&a.net.addr())))
        };
        let former = |l: &LinkInfo| {
            let plain = matches!(l.link.kind, LinkKind::Vxlan(_) | LinkKind::Ipip(_));
            plain && backend::is_our_link(&l.link) && inside(l.index)
        };
        let ours = |l: &&LinkInfo| devices.contains(&l.link.name) || former(l);
        let made: Vec<&LinkInfo> = links.iter().filter(ours).collect();
        let local = made.iter().filter_map(|l| match &l.link.kind {
            LinkKind::Vxlan(vxlan) => vxlan.local,
            _ => None,
        });
        let ifaces = Host::interfaces(&links, &addresses);
        let situation = Situation { families, ifaces, routing, held: local.collect() };
        self.selectors.registry = Addresses { v4: remembered.public_ip, v6: remembered.public_ip6 };
        let choice = self.choose(&situation)?;
        let names: BTreeMap<u32, IfName> = links.iter().map(|l| (l.index, l.link.name)).collect();
        let on_link = self.on_link(&names, peers)?;
        let local: BTreeSet<IpAddr> = addresses.iter().map(|a| a.net.addr()).collect();
        let others = links.iter().filter(|l| !devices.contains(&l.link.name));
        let far = others.filter_map(|l| match &l.link.kind {
            LinkKind::Ipip(ipip) => ipip.remote,
            _ => None,
        });
        let tunnels = far.collect();
        let nexthops = self.kernel.rtnl().nexthops().map_err(text)?;
        Ok(Facts {
            uplink: choice.uplink,
            public: choice.public,
            local,
            devices: made.into_iter().map(|l| (l.link.name, l.link.clone())).collect(),
            pinned_macs: BTreeMap::new(),
            published: remembered.attrs.clone(),
            on_link,
            tunnels,
            taken: self.taken(conf),
            nexthops_in_use: nexthops.iter().any(|n| n.protocol == plan::ROUTE_PROTOCOL),
            ipv6: Path::new("/proc/sys/net/ipv6").exists(),
            machine_id: self.machine_id.clone(),
            xfrm: kernel::xfrm::is_there(),
            printed: self.helpers.printed(),
            iptables: self.iptables(conf),
            wireguard: backend.asks_wireguard().then(|| self.wireguard()).transpose()?,
        })
    }

    fn decision(&self) -> Option<Result<Choice, Refusal>> {
        self.decision.clone()
    }

    fn read_iptables(&mut self, scope: &Scope, wanted: &State) -> Vec<Object> {
        self.kernel.read_iptables(scope, wanted)
    }

    fn read(&mut self, scope: &Scope, wanted: &State) -> Result<State, String> {
        let mut state = self.kernel.read(scope, wanted).map_err(|error| error.to_string())?;
        state.extend(self.helpers.held());
        state.extend(self.tunnels.read());
        Ok(state)
    }

    fn ask(&mut self, step: Step) {
        self.helpers.ask(step);
    }

    fn silence(&self) -> Option<String> {
        self.kernel.silence().or_else(|| self.helpers.silence())
    }

    fn apply(&mut self, steps: &[Step]) -> Vec<Result<(), String>> {
        let sentence = |(step, answer): (&Step, Result<(), Box<kernel::StepError>>)| {
            answer.map_err(|error| match advice(step, error.errno.code) {
                Some(advice) => format!("{error}; {advice}"),
                None => error.to_string(),
            })
        };
        // News of so many would be lost, and everything be read again, several times over while they come.
        let ears = if steps.len() > MOST_ENTRIES { self.hearing.ears() } else { None };
        let covered = ears.as_ref().map(|ears| ears.cover());
        let mut answers = Vec::with_capacity(steps.len());
        for run in steps.chunk_by(|a, b| is_tunnel(a) == is_tunnel(b)) {
            if run.first().is_some_and(is_tunnel) {
                answers.extend(self.tunnels.apply(run));
            } else {
                answers.extend(run.iter().zip(self.kernel.apply(run)).map(sentence));
            }
        }
        if let Some(covered) = covered {
            drop(covered);
            // What others changed meanwhile was not heard, the host's own routes among it.
            self.inbox.news(|_| News { host: true, ours: true, ..News::default() });
        }
        answers
    }
}

/// How the kernel's notifications are kept from the thread that hears them while the loop writes in bulk.
#[derive(Debug, Default)]
pub struct Hearing(Mutex<Option<Arc<Ears>>>);

impl Hearing {
    fn ears(&self) -> Option<Arc<Ears>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, ears: Option<Ears>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = ears.map(Arc::new);
    }
}

/// Starts the thread that turns the kernel's notifications into news. Without it only the slow resync
/// repairs anything, so it is opened again for as long as the process lives.
pub fn listen(inbox: Arc<Inbox>, hearing: Arc<Hearing>) {
    let work = move || {
        let mut losses = Losses::default();
        loop {
            let Err(error) = follow(&inbox, &hearing, &mut losses) else { return };
            // A socket nobody reads from must not be kept.
            hearing.set(None);
            tracing::error!(
                "follow the kernel's notifications: {error}; again in 1 s, until when changes are noticed every 30 s"
            );
            std::thread::sleep(Duration::from_secs(1));
        }
    };
    if let Err(error) = std::thread::Builder::new().name("monitor".to_owned()).spawn(work) {
        tracing::error!("start the monitor thread: {error}; changes are noticed only every 30 s");
    }
}

fn follow(inbox: &Inbox, hearing: &Hearing, losses: &mut Losses) -> Result<(), kernel::Error> {
    let mut monitor = Monitor::open()?;
    hearing.set(monitor.ears().ok());
    // What happened before the socket was open has not been reported.
    inbox.news(|_| News { host: true, ours: true, ..News::default() });
    while let Some(event) = monitor.next()? {
        if event == Event::Overrun
            && let Some(before) = losses.note(Instant::now())
        {
            let before =
                if before == 0 { String::new() } else { format!(", {before} times since last said") };
            tracing::warn!(
                "the kernel dropped notifications, for more changed at once than we read{before}; everything is read again"
            );
        }
        inbox.news(|inputs| judge(event, inputs));
    }
    Ok(())
}

/// When it was last said that notifications were lost. A storm loses many times.
#[derive(Debug, Default)]
struct Losses {
    said: Option<Instant>,
    since: u64,
}

impl Losses {
    /// One more. Gives how many were not said since the last line, if it is time for one.
    fn note(&mut self, now: Instant) -> Option<u64> {
        /// Between two lines.
        const QUIET: Duration = Duration::from_secs(60);
        if self.said.is_some_and(|said| now.duration_since(said) < QUIET) {
            self.since += 1;
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.since))
    }
}

/// What an event means to a node with these inputs. Pure.
pub fn judge(event: Event, inputs: &Inputs) -> News {
    let some = |host, ours| News { host, ours, ..News::default() };
    let entry = |host, key, now| News { host, entries: vec![(key, now)], ..News::default() };
    match event {
        Event::Overrun => News { lost: 1, ..some(true, true) },
        // Any device or address may decide which interface carries the traffic.
        // IPv4 routes go with their interface, and the kernel does not say so.
        Event::Link(dev, _) | Event::Addr(dev) => {
            some(true, backend::is_our_device(dev) || inputs.uplink == Some(dev))
        }
        Event::Object(Key::Element(e), _) if !sources::is_ours(&e.set.table) => News::default(),
        Event::Object(key, now) if key.device().is_none_or(backend::is_our_device) => entry(false, key, now),
        Event::Object(..) => News::default(),
        Event::Route(key, protocol, now) => {
            // The default route, or the way to the address of --iface-can-reach.
            let host = key.dst.prefix_len() == 0 || inputs.reach.is_some_and(|ip| key.dst.contains(&ip));
            let inside = |conf: &NetConf| conf.networks().iter().any(|net| net.contains(&key.dst));
            // A route of someone else to a destination of ours may have replaced ours.
            if protocol == plan::ROUTE_PROTOCOL || inputs.conf.as_ref().is_some_and(inside) {
                entry(host, Key::Route(key), now.map(Object::Route))
            } else {
                some(host, false)
            }
        }
        Event::Rule(_) => some(true, false),
        Event::Qdisc(_) | Event::OtherNft | Event::Moved(_) => News::default(),
        Event::Nft(table) => News {
            // Another agent may have taken flannel's name, or left it.
            host: rules::table_keys().contains(&table),
            ours: rules::is_agents(&table) || sources::is_ours(&table) || backend::ipsec::is_guard(&table),
            // The tables iptables-nft keeps its own in.
            iptables: inputs.conf.as_ref().is_some_and(|conf| !conf.enable_nftables)
                && matches!(table.name.as_str(), "nat" | "filter"),
            ..News::default()
        },
    }
}
