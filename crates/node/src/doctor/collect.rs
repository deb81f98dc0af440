//! Reads the facts: the kernel, files below a root, the programs `nft` and `iptables-legacy-save` if they are there.
//! Changes nothing but for devices in a network namespace of its own, by which it learns what the kernel makes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use kernel::rtnl::RouteFilter;
use kernel::{Netns, Rtnl, sysctl};
use model::{Family, IfName};
use plan::state::{LinkKind, TABLE_MAIN};

use super::cert;
use super::facts::{Address, Device, Facts, Route};
use super::ruleset::Ruleset;
use crate::args::Options;
use crate::status::Status;

/// Where to look.
pub struct Place {
    /// Files of the host are below it: `/`, or where a container has mounted it.
    pub root: PathBuf,
    /// `subnet.env`, as it is.
    pub subnet_file: PathBuf,
    /// Certificates the agent uses, as they are.
    pub certificates: Vec<PathBuf>,
}

impl Place {
    /// That of an agent with these options.
    pub fn of(root: &Path, options: &Options) -> Place {
        let certificates = [&options.etcd_certfile, &options.etcd_cafile].into_iter();
        Place {
            root: root.to_owned(),
            subnet_file: PathBuf::from(&options.subnet_file),
            certificates: certificates.filter(|file| !file.is_empty()).map(PathBuf::from).collect(),
        }
    }
}

/// Everything. What cannot be read is said in `missing`.
pub fn facts(place: &Place, agent: Status) -> Facts {
    let mut facts = Facts {
        agent: Some(agent),
        subnet_file: place.subnet_file.display().to_string(),
        ..Facts::default()
    };
    if let Err(why) = network(&mut facts) {
        facts.missing.push(format!("devices, addresses and routes: {why}"));
    }
    parameters(&mut facts);
    kinds(&mut facts);
    ruleset(&mut facts);
    files(place, &mut facts);
    facts
}

fn network(facts: &mut Facts) -> Result<(), String> {
    let text = |error: kernel::Error| error.to_string();
    let mut rtnl = Rtnl::open().map_err(text)?;
    let links = rtnl.links().map_err(text)?;
    let names: BTreeMap<u32, String> = links.iter().map(|l| (l.index, l.link.name.to_string())).collect();
    let name = |index: u32| names.get(&index).cloned();
    for link in &links {
        let (vxlan, lower) = match &link.link.kind {
            LinkKind::Vxlan(vxlan) => (Some((vxlan.vni, vxlan.port, vxlan.local)), vxlan.lower),
            _ => (None, None),
        };
        facts.devices.push(Device {
            name: link.link.name.to_string(),
            kind: link.link.kind.name().to_owned(),
            mtu: link.link.mtu.unwrap_or_default(),
            up: link.link.up,
            // RFC 2863: down, or the layer below is.
            carrier: !matches!(link.operstate, 2 | 3),
            mac: link.link.mac,
            master: link.link.master.map(|master: IfName| master.to_string()),
            vxlan,
            lower: lower.map(|lower: IfName| lower.to_string()),
        });
    }
    /// `IFA_F_DADFAILED`
    const DUPLICATE: u32 = 0x08;
    for address in rtnl.addresses(None).map_err(text)? {
        if let Some(dev) = name(address.index) {
            let duplicate = address.net.addr().is_ipv6() && address.flags & DUPLICATE != 0;
            facts.addresses.push(Address { dev, net: address.net, duplicate });
        }
    }
    let table = |rtnl: &mut Rtnl, family: Family, table: u32| -> Result<Vec<Route>, String> {
        let filter = RouteFilter { family: Some(family), table: Some(table), ..RouteFilter::default() };
        let read = |route: kernel::rtnl::RouteInfo| Route {
            dst: route.dst,
            dev: route.dev.and_then(name),
            gateway: route.gateway,
            metric: route.priority.unwrap_or_default(),
            kind: route.kind,
            protocol: route.protocol,
        };
        Ok(rtnl.routes(filter).map_err(text)?.into_iter().map(read).collect())
    };
    for family in Family::BOTH {
        facts.routes.extend(table(&mut rtnl, family, TABLE_MAIN)?);
    }
    for neighbour in rtnl.neighbours(None).map_err(text)? {
        if let (Some(dev), Some(mac)) = (name(neighbour.index), neighbour.mac) {
            facts.neighbours.push((dev, neighbour.dst, mac));
        }
    }
    for entry in rtnl.fdb(None).map_err(text)? {
        if let (Some(dev), Some(dst)) = (name(entry.index), entry.dst) {
            facts.forwarding.push((dev, dst, entry.mac));
        }
    }
    for info in rtnl.rules().map_err(text)? {
        let (rule, plain) = (&info.rule, [0, 32_766, 32_767].contains(&info.rule.priority));
        let does = match info.action {
            _ if plain || info.narrower => continue,
            1 => None,
            6 => Some("blackhole"),
            7 => Some("unreachable"),
            8 => Some("prohibit"),
            _ => continue,
        };
        let mut text = shown(rule);
        if let Some((does, (head, _))) = does.zip(text.split_once(" lookup ")) {
            text = format!("{head} {does}");
        } else if rule.table != TABLE_MAIN {
            let routes = table(&mut rtnl, rule.family, rule.table)?;
            let known = facts.tables.entry(rule.table).or_default();
            known.retain(|route| Family::of_net(route.dst) != rule.family);
            known.extend(routes);
        }
        facts.rules.push(if rule.family == Family::V6 { format!("-6 {text}") } else { text });
    }
    facts.udp = udp_ports();
    Ok(())
}

/// As `ip rule` does.
pub fn shown(rule: &plan::state::Rule) -> String {
    let from = rule.from.map_or("all".to_owned(), |net| net.to_string());
    let to = rule.to.map_or(String::new(), |net| format!(" to {net}"));
    let mark = rule.fwmark.map_or(String::new(), |(mark, mask)| format!(" fwmark {mark:#x}/{mask:#x}"));
    let iif = rule.iif.map_or(String::new(), |iif| format!(" iif {iif}"));
    format!("{}: from {from}{to}{mark}{iif} lookup {}", rule.priority, rule.table)
}

/// Of processes: the kernel's own tunnels have sockets as well (proc(5), net/udp), and no descriptor.
fn udp_ports() -> Vec<u16> {
    let mut open = Vec::new();
    for file in ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"] {
        for line in fs::read_to_string(file).unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let port =
                fields.get(1).and_then(|local| u16::from_str_radix(local.rsplit(':').next()?, 16).ok());
            if let (Some(port), Some(inode)) = (port, fields.get(9)) {
                open.push((port, format!("socket:[{inode}]")));
            }
        }
    }
    let held = if open.is_empty() { BTreeSet::new() } else { sockets() };
    open.into_iter().filter(|(_, socket)| held.contains(socket)).map(|(port, _)| port).collect()
}

/// What the descriptors of all processes name, sockets alone.
fn sockets() -> BTreeSet<String> {
    let processes = names(Path::new("/proc")).unwrap_or_default().into_iter();
    let processes = processes.filter(|name| name.bytes().all(|c| c.is_ascii_digit()));
    let descriptors = processes.flat_map(|process| {
        let dir = Path::new("/proc").join(process).join("fd");
        names(&dir).unwrap_or_default().into_iter().map(move |fd| dir.join(fd))
    });
    let targets = descriptors.filter_map(|fd| fs::read_link(fd).ok()?.into_os_string().into_string().ok());
    targets.filter(|target| target.starts_with("socket:")).collect()
}

fn parameters(facts: &mut Facts) {
    let mut paths: Vec<String> = [
        "net/ipv4/ip_forward",
        "net/ipv4/conf/all/rp_filter",
        "net/ipv6/conf/all/forwarding",
        "net/ipv6/conf/all/disable_ipv6",
        "net/bridge/bridge-nf-call-iptables",
        "net/ipv4/neigh/default/gc_thresh3",
        "net/netfilter/nf_conntrack_count",
        "net/netfilter/nf_conntrack_max",
    ]
    .map(str::to_owned)
    .to_vec();
    for device in facts.devices.iter().filter(|device| !device.name.contains('/')) {
        let name = &device.name;
        paths.extend(["rp_filter", "forwarding"].map(|key| format!("net/ipv4/conf/{name}/{key}")));
        paths.push(format!("net/ipv6/conf/{name}/disable_ipv6"));
    }
    facts.sysctls =
        paths.into_iter().filter_map(|path| Some((path.clone(), sysctl::read(&path).ok()?))).collect();
}

fn kinds(facts: &mut Facts) {
    let Ok(netns) = Netns::create() else {
        facts.missing.push("kinds of devices: no network namespace may be made (run it as root)".to_owned());
        return;
    };
    let tries = |kind: LinkKind| -> Option<(String, bool)> {
        let name = IfName::new("probe0").ok()?;
        let mut kernel = kernel::Kernel::open_in(&netns).ok()?;
        let word = kind.name().to_owned();
        let link =
            plan::state::Link { name, kind, mac: None, mtu: None, up: false, txqlen: None, master: None };
        let step = plan::Step::Put(plan::Object::Link(Box::new(link)));
        let made = kernel.apply(std::slice::from_ref(&step)).into_iter().all(|answer| answer.is_ok());
        if let Ok(Some(link)) = kernel.rtnl().link_by_name(name) {
            // It goes with the namespace at the latest.
            let _ = kernel.rtnl().delete_link(link.index);
        }
        Some((word, made))
    };
    let vxlan = plan::state::Vxlan {
        vni: 1,
        port: 8472,
        local: None,
        lower: None,
        learning: false,
        gbp: false,
        l2miss: false,
        group: None,
    };
    facts.kinds = Some([tries(LinkKind::Vxlan(vxlan))].into_iter().flatten().collect());
}

fn ruleset(facts: &mut Facts) {
    let (rules, missing) = rules();
    facts.ruleset = rules;
    facts.missing.extend(missing);
}

/// The packet rules of the caller's namespace, and what could not be read.
pub fn rules() -> (Ruleset, Vec<String>) {
    let (mut rules, mut missing) = (Ruleset::default(), Vec::new());
    match output("nft", &["list", "ruleset"]) {
        Ok(text) => rules = Ruleset::nft(&text),
        Err(why) => missing.push(format!("packet rules: {why}")),
    }
    let legacy = Path::new("/proc/thread-self/net/ip_tables_names");
    if fs::read_to_string(legacy).is_ok_and(|tables| !tables.trim().is_empty()) {
        match output("iptables-legacy-save", &[]) {
            Ok(text) => rules = rules.and(Ruleset::iptables(&text, "iptables-legacy")),
            Err(why) => missing.push(format!("rules of iptables-legacy: {why}")),
        }
    }
    (rules, missing)
}

fn output(program: &str, words: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(words).env("LC_ALL", "C").output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program}: {}", complaint.lines().next().unwrap_or("it failed").trim()))
}

fn files(place: &Place, facts: &mut Facts) {
    let at = |path: &str| place.root.join(path);
    let text = |path: &str| fs::read_to_string(at(path)).ok();
    facts.subnet_env = fs::read_to_string(&place.subnet_file).ok();
    facts.docker_options = text("run/flannel_docker_opts.env").or_else(|| text("run/docker_opts.env"));
    let confs = |dir: &str, endings: &[&str]| texts(&at(dir), endings);
    facts.cni_confs = confs("etc/cni/net.d", &[".conflist", ".conf", ".json"]);
    facts.cni_dirs = text("etc/containerd/config.toml").map_or_else(Vec::new, |text| plugin_dirs(&text));
    if facts.cni_dirs.is_empty() {
        facts.cni_dirs.push("/opt/cni/bin".to_owned());
    }
    let programs = facts.cni_dirs.iter().filter_map(|dir| names(&at(dir.trim_start_matches('/'))));
    facts.cni_programs = programs.reduce(|all, more| [all, more].concat());
    for network in names(&at("var/lib/cni/networks")).unwrap_or_default() {
        let files = names(&at("var/lib/cni/networks").join(&network)).unwrap_or_default();
        let addresses = files.iter().filter(|file| file.parse::<std::net::IpAddr>().is_ok()).count();
        facts.reserved.insert(network, addresses);
    }
    if at("run/NetworkManager").exists() {
        let all =
            ["etc/NetworkManager/conf.d", "usr/lib/NetworkManager/conf.d"].map(|dir| confs(dir, &[".conf"]));
        let own = text("etc/NetworkManager/NetworkManager.conf").unwrap_or_default();
        let all: Vec<String> = all.into_iter().flatten().map(|(_, text)| text).chain([own]).collect();
        facts.network_manager = Some(all.join("\n"));
    }
    if at("run/systemd/netif/links").exists() {
        let dirs = ["etc/systemd/network", "run/systemd/network", "etc/systemd/networkd.conf.d"];
        let mut all: Vec<(String, String)> =
            dirs.iter().flat_map(|dir| confs(dir, &[".network", ".conf"])).collect();
        all.extend(text("etc/systemd/networkd.conf").map(|text| ("networkd.conf".to_owned(), text)));
        facts.networkd = Some(all);
    }
    if let Some(conf) = text("etc/ufw/ufw.conf") {
        facts.ufw = Some(conf + "\n" + &text("etc/default/ufw").unwrap_or_default());
    }
    let places = [place.subnet_file.parent().map(Path::to_owned), Some(at("var/lib/cni"))];
    facts.space = places.into_iter().flatten().filter_map(space).collect();
    for file in &place.certificates {
        let name = file.display().to_string();
        match fs::read_to_string(file) {
            Ok(pem) => {
                facts.certificates.extend(cert::validity(&pem).map(|(first, last)| (name, first, last)))
            }
            Err(error) => facts.missing.push(format!("{name}: {error}")),
        }
    }
    facts.now = seconds(SystemTime::now());
    let written = fs::metadata(&place.subnet_file).and_then(|data| data.modified());
    facts.written = written.map_or(0, seconds);
}

/// Where containerd looks for CNI programs: `bin_dir`, or `bin_dirs` since its version 2.1.
fn plugin_dirs(config: &str) -> Vec<String> {
    let lines = config.lines().map(str::trim).filter_map(|line| line.strip_prefix("bin_dir"));
    let values = lines.filter_map(|rest| rest.split_once('=').map(|(_, value)| value));
    let quoted = |value: &str| -> Vec<String> {
        value.split(['"', '\'']).skip(1).step_by(2).map(str::to_owned).collect()
    };
    values.flat_map(quoted).filter(|dir| dir.starts_with('/')).collect()
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Free bytes and inodes; file systems that count no inodes have enough.
fn space(dir: PathBuf) -> Option<(String, u64, u64)> {
    let stat = rustix::fs::statvfs(&dir).ok()?;
    let inodes = if stat.f_files == 0 { u64::MAX } else { stat.f_favail };
    Some((dir.display().to_string(), stat.f_bavail.saturating_mul(stat.f_frsize), inodes))
}

fn names(dir: &Path) -> Option<Vec<String>> {
    let mut names: Vec<String> =
        fs::read_dir(dir).ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Some(names)
}

/// Files with one of these endings, by name.
fn texts(dir: &Path, endings: &[&str]) -> Vec<(String, String)> {
    let names = names(dir).unwrap_or_default().into_iter();
    let right = names.filter(|name| endings.iter().any(|ending| name.ends_with(ending)));
    right.filter_map(|name| Some((name.clone(), fs::read_to_string(dir.join(&name)).ok()?))).collect()
}
