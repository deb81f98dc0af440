//! The ways there are, and how each stands in a lab: two hosts with real agents and a pod each, or one host with two.

use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use kernel::Netns;
use lab::spec::Spec;
use lab::{Builder, Lab, Stack};
use model::{Family, IfName, Json};

use crate::args::{Plan, Wire};
use crate::traffic::{self, Client, Server};
use crate::{Result, inside};

/// What can be measured besides the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Plain routes to the other host.
    HostGw,
    /// The kernel's VXLAN.
    Vxlan,
    /// The same with pods behind routes in place of a bridge.
    RoutedVxlan,
    /// VXLAN with the fast path.
    Fast,
    /// Plain routes with the fast path.
    FastHostGw,
    /// flannel's udp, in user space.
    Udp,
    /// flannel's udp with the fast path.
    FastUdp,
    /// WireGuard: the kernel's, or in user space.
    Wireguard,
    /// Between two pods of one host, by a bridge.
    Bridge,
    /// The same with the fast path.
    FastBridge,
    /// Between two pods of one host, by routes.
    Routed,
    /// Pods attached and detached.
    Cni,
    /// Peers programmed.
    Peers,
}

impl Way {
    /// All, in the order of reports.
    pub const ALL: [Way; 13] = [
        Way::HostGw,
        Way::Vxlan,
        Way::RoutedVxlan,
        Way::Fast,
        Way::FastHostGw,
        Way::Udp,
        Way::FastUdp,
        Way::Wireguard,
        Way::Bridge,
        Way::FastBridge,
        Way::Routed,
        Way::Cni,
        Way::Peers,
    ];

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Way::HostGw => "host-gw",
            Way::Vxlan => "vxlan",
            Way::RoutedVxlan => "routed-vxlan",
            Way::Fast => "fast",
            Way::FastHostGw => "fast-host-gw",
            Way::Udp => "udp",
            Way::FastUdp => "fast-udp",
            Way::Wireguard => "wireguard",
            Way::Bridge => "bridge",
            Way::FastBridge => "fast-bridge",
            Way::Routed => "routed",
            Way::Cni => "cni",
            Way::Peers => "peers",
        }
    }

    /// What it is, for people.
    pub fn about(self) -> &'static str {
        match self {
            Way::HostGw => "pods of two hosts, plain routes",
            Way::Vxlan => "pods of two hosts, the kernel's VXLAN",
            Way::RoutedVxlan => "pods of two hosts, the kernel's VXLAN, by the plugin ptp",
            Way::Fast => "VXLAN with the fast path",
            Way::FastHostGw => "pods of two hosts, plain routes with the fast path",
            Way::Udp => "pods of two hosts, flannel's udp in user space",
            Way::FastUdp => "the same with the fast path, past user space",
            Way::Wireguard => "pods of two hosts, WireGuard",
            Way::Bridge => "two pods of one host, by the plugin bridge",
            Way::FastBridge => "the same with the fast path",
            Way::Routed => "two pods of one host, by the plugin ptp",
            Way::Cni => "pods attached and detached through CNI, one after the other",
            Way::Peers => "routes, neighbours and forwarding entries of 1,000 peers into the kernel",
        }
    }

    /// Why it is not in a family, where it is not.
    fn missing_in(self, family: Family) -> Option<&'static str> {
        let is_udp = matches!(self, Way::Udp | Way::FastUdp);
        (is_udp && family == Family::V6).then_some("flannel's udp carries IPv4 alone")
    }

    fn spec(self, family: Family) -> Spec {
        let backend = match self {
            Way::HostGw | Way::FastHostGw => "host-gw",
            Way::Udp | Way::FastUdp => "udp",
            Way::Wireguard => "wireguard",
            _ => "vxlan",
        };
        let (hosts, pods) = match self {
            Way::Bridge | Way::FastBridge | Way::Routed => (1, 2),
            Way::Cni => (1, 0),
            _ => (2, 1),
        };
        Spec {
            name: format!("bench-{}-{}", std::process::id(), self.name()),
            hosts,
            pods,
            backend: backend.to_owned(),
            stack: stack(family),
            agent_args: if self.is_fast() { vec!["--fast-path=on".to_owned()] } else { Vec::new() },
            conflist: matches!(self, Way::Routed | Way::RoutedVxlan).then(|| PTP.to_owned()),
            ..Spec::default()
        }
    }

    /// Its figures are those of traffic.
    pub fn carries(self) -> bool {
        !matches!(self, Way::Cni | Way::Peers)
    }

    fn is_fast(self) -> bool {
        matches!(self, Way::Fast | Way::FastHostGw | Way::FastUdp | Way::FastBridge)
    }

    fn ends(self) -> [&'static str; 2] {
        match self {
            Way::Bridge | Way::FastBridge | Way::Routed => ["pod1-1", "pod1-2"],
            _ => ["pod1-1", "pod2-1"],
        }
    }
}

/// The tutorials' chain with routes in place of the bridge.
const PTP: &str = r#"{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [{"type": "flannel", "delegate": {"type": "ptp"}}]
}
"#;

/// How long the first packet of a way may take, in ms.
const FIRST_MS: u64 = 20_000;

/// Two ends with a server on the second: one way, or the wire.
pub struct Standing {
    client: Client,
    inside: Netns,
    _server: Server,
    _lab: Lab,
    /// What there is to say of it besides.
    pub note: Option<String>,
}

impl Standing {
    /// The wire: the hosts themselves, without agents, rules and followed connections.
    ///
    /// # Errors
    /// One sentence.
    pub fn wire(plan: &Plan) -> Result<Standing> {
        let name = format!("bench-{}-wire", std::process::id());
        let stack = stack(plan.family);
        let spec = Spec { name, hosts: 2, pods: 0, agents: false, stack, ..Spec::default() };
        let lab = start(&spec, plan)?;
        let to = lab.spec().ports().get(1).and_then(|port| port.addresses.first().map(|net| net.addr()));
        Standing::between(lab, ["host1", "host2"], to.ok_or("the wire has no address")?, plan)
    }

    /// A way packets take.
    ///
    /// # Errors
    /// One sentence: what this kernel or this host lacks.
    pub fn way(way: Way, plan: &Plan) -> Result<Standing> {
        if let Some(why) = way.missing_in(plan.family) {
            return Err(why.to_owned());
        }
        let mut spec = way.spec(plan.family);
        if way == Way::FastUdp {
            // Both ways of taking datagrams apart can be measured.
            let name = "LODEN_FASTPATH_XDP".to_owned();
            spec.agent_env.extend(std::env::var(&name).ok().map(|value| (name, value)));
        }
        let lab = start(&spec, plan)?;
        if way == Way::FastUdp {
            features(&lab, 2, SUMMED)?;
        }
        let [from, to] = way.ends();
        let pods = lab.status().map_err(|error| error.to_string())?.pods;
        let address =
            pods.iter().find(|pod| pod.name == to).and_then(|pod| pod.address(plan.family == Family::V6));
        let reach = lab.ping_within(from, to, FIRST_MS).map_err(|error| error.to_string())?;
        if let Some(why) = reach.why {
            return Err(format!("{to} does not answer {from}: {why}"));
        }
        let note = match way {
            Way::Fast | Way::FastHostGw | Way::FastBridge => fast_path(&lab)?,
            Way::FastUdp => fast_path(&lab)?.or(Some(SUMMED_NOTE.to_owned())),
            Way::Wireguard => carrier(&lab),
            _ => None,
        };
        let standing = Standing::between(lab, [from, to], address.ok_or("the pod has no address")?, plan)?;
        Ok(Standing { note, ..standing })
    }

    fn between(lab: Lab, [from, to]: [&str; 2], address: IpAddr, plan: &Plan) -> Result<Standing> {
        let token = traffic::fresh_token().map_err(|error| format!("make a token: {error}"))?;
        let net = |place: &str| lab.place(place).net().map_err(|error| error.to_string());
        let at = SocketAddr::new(address, 0);
        let begin = || Server::start(at, &token, Arc::new(String::new), || {});
        let server = inside(&net(to)?, begin)?;
        let server = server.map_err(|error| format!("listen on {at} in {to}: {error}"))?;
        let client = Client { to: server.at(), token, span: plan.span, apart: false };
        Ok(Standing { client, inside: net(from)?, _server: server, _lab: lab, note: None })
    }

    /// One turn.
    ///
    /// # Errors
    /// One sentence.
    pub fn turn(&self) -> Result<traffic::Taken> {
        let turn = inside(&self.inside, || self.client.turn())?;
        turn.map_err(|error| format!("measure to {}: {error}", self.client.to))
    }
}

/// Clusters of one family: all there is goes in it.
fn stack(family: Family) -> Stack {
    match family {
        Family::V4 => Stack::V4,
        Family::V6 => Stack::V6,
    }
}

/// Starts a lab whose wire is as the plan says.
fn start(spec: &Spec, plan: &Plan) -> Result<Lab> {
    let named = |error: lab::Error| match error.log() {
        [] => error.to_string(),
        [.., last] => format!("{error}: {last}"),
    };
    let lab = Builder::of(spec.clone()).start_with(&mut |_| {}, Stdio::inherit()).map_err(named)?;
    if plan.wire != Wire::Trains {
        features(&lab, spec.hosts, ALONE).map_err(|error| format!("{error}; try --wire trains"))?;
    }
    if plan.wire == Wire::Summed {
        features(&lab, spec.hosts, SUMMED)?;
    }
    Ok(lab)
}

/// Changes the offloads of all hosts' uplinks.
fn features(lab: &Lab, hosts: usize, features: &[(&str, bool)]) -> Result<()> {
    for number in 1..=hosts {
        let change = || kernel::ethtool::set_features(IfName::fixed("eth0"), features);
        let net = lab.host(number).net().map_err(|error| error.to_string())?;
        inside(&net, change)?.map_err(|error| format!("make the wire like a network card's: {error}"))?;
    }
    Ok(())
}

/// Checksums are complete on the wire, as behind a card: without this a peer's program would get them unfinished, and
/// packets stay in user space (decision 0228).
const SUMMED: &[(&str, bool)] = &[("tx-checksum-ip-generic", false)];
const SUMMED_NOTE: &str = "checksums computed by the processor, where a card would do it";

/// What makes frames go one by one and be put together by the receiver, as with a plain network card.
const ALONE: &[(&str, bool)] = &[
    ("tx-tcp-segmentation", false),
    ("tx-tcp-ecn-segmentation", false),
    ("tx-tcp-mangleid-segmentation", false),
    ("tx-tcp6-segmentation", false),
    ("tx-udp-segmentation", false),
    ("tx-generic-segmentation", false),
    ("rx-gro", true),
];

/// Makes a lab in which pods are attached and detached.
///
/// # Errors
/// One sentence.
pub fn empty(plan: &Plan) -> Result<Lab> {
    start(&Way::Cni.spec(plan.family), plan)
}

/// A part of what an agent says of itself.
fn status(lab: &Lab, part: &str) -> Option<Json> {
    let program = std::env::current_exe().ok()?;
    let output = lab.host(1).exec(program.to_str()?, &["status", "-o", "json"]).ok()?;
    Json::parse(&output.stdout).ok()?.get_exact(part).cloned()
}

/// Waits until the fast path is on its devices.
fn fast_path(lab: &Lab) -> Result<Option<String>> {
    let mut last = None;
    for _ in 0..100 {
        if let Some(path) = status(lab, "fast_path") {
            let devices = path.get_exact("devices").and_then(Json::as_array);
            if devices.is_some_and(|devices| devices.len() > 1) {
                return Ok(None);
            }
            last = path.get_exact("why").and_then(Json::as_str).map(str::to_owned);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Err(format!("the fast path is not on: {}", last.as_deref().unwrap_or("the agent does not say why")))
}

/// Who carries WireGuard's packets.
fn carrier(lab: &Lab) -> Option<String> {
    let backend = status(lab, "backend")?;
    Some(format!("carried by {}", backend.get_exact("carrier").and_then(Json::as_str)?))
}
