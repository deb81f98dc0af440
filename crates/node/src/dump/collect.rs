//! Collects what belongs to a bug report: the agent through its socket, the kernel through our own netlink and, for packet
//! rules, through the host's programs, and files. Changes nothing. What cannot be got is noted with the reason.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kernel::rtnl::RouteFilter;
use kernel::{Kernel, Nft, process, sysctl};
use model::Json;
use plan::state::NftFamily;

use super::{Bundle, tables};
use crate::args::Options;
use crate::cli::{cleanup, status};
use crate::doctor::{self, collect, examine};
use crate::redact::Redactor;
use crate::settings::Settings;
use crate::status::json;
use crate::{socket, start, wgkey};

/// How long a program of the host may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Kernel parameters besides those that `loden doctor` looks at, below `/proc/sys`.
const SYSCTLS: &[&str] = &[
    "kernel/osrelease",
    "net/core/bpf_jit_enable",
    "net/core/netdev_max_backlog",
    "net/core/rmem_max",
    "net/core/wmem_max",
    "net/bridge/bridge-nf-call-ip6tables",
    "net/bridge/bridge-nf-call-arptables",
    "net/ipv4/conf/all/accept_local",
    "net/ipv4/conf/all/arp_ignore",
    "net/ipv4/conf/all/arp_announce",
    "net/ipv4/conf/all/forwarding",
    "net/ipv4/conf/all/proxy_arp",
    "net/ipv4/conf/all/route_localnet",
    "net/ipv4/conf/default/rp_filter",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/ip_no_pmtu_disc",
    "net/ipv4/neigh/default/gc_thresh1",
    "net/ipv4/neigh/default/gc_thresh2",
    "net/ipv4/tcp_mtu_probing",
    "net/ipv6/conf/all/accept_ra",
    "net/ipv6/conf/default/disable_ipv6",
    "net/ipv6/neigh/default/gc_thresh3",
    "net/netfilter/nf_conntrack_tcp_be_liberal",
    "net/netfilter/nf_conntrack_tcp_loose",
    "net/netfilter/nf_conntrack_checksum",
];

/// Counters of the kernel, below `/proc`, and what they are called here.
const COUNTERS: &[(&str, &str)] = &[
    ("thread-self/net/dev", "kernel/counters-dev.txt"),
    ("thread-self/net/snmp", "kernel/counters-snmp.txt"),
    ("thread-self/net/snmp6", "kernel/counters-snmp6.txt"),
    ("thread-self/net/netstat", "kernel/counters-netstat.txt"),
    ("thread-self/net/softnet_stat", "kernel/counters-softnet.txt"),
    ("thread-self/net/stat/nf_conntrack", "kernel/counters-conntrack.txt"),
];

/// Where to look.
pub struct Place<'a> {
    /// The agent's socket; `None` if it has none.
    pub socket: Option<PathBuf>,
    /// Files of the host are below it.
    pub root: PathBuf,
    /// What this command's own variables say.
    pub options: &'a Options,
}

/// Everything.
pub fn bundle(place: &Place<'_>) -> Bundle {
    let page = |name: &str| socket::get(place.socket.as_deref(), name);
    let settings = page("/v1/settings");
    let told = settings.as_ref().ok().and_then(|text| Json::parse(text.as_bytes()).ok()).unwrap_or_default();
    // Its files are read and kept: somebody else's socket does not say which.
    let trusted = place.socket.as_deref().is_some_and(is_of_root_or_ours);
    let options = &as_told(place.options, if trusted { &told } else { &Json::Null });
    let place = &Place { socket: place.socket.clone(), root: place.root.clone(), options };
    let mut bundle = Bundle::new(secrets(place, &told));
    agent(&mut bundle, place, settings, page);
    host(&mut bundle, place);
    kernel_tables(&mut bundle);
    rules(&mut bundle);
    files(&mut bundle, place);
    bundle
}

/// A member of the agent's settings that is not empty.
fn member<'a>(told: &'a Json, part: &str, name: &str) -> Option<&'a str> {
    told.get_exact(part)?.get_exact(name)?.as_str().filter(|value| !value.is_empty())
}

/// Whether root or the user of this process has made a socket.
fn is_of_root_or_ours(path: &Path) -> bool {
    let owner = |path: &Path| fs::metadata(path).map(|data| data.uid());
    // The directory of a process belongs to its effective user (proc(5)).
    let own = owner(Path::new("/proc/self"));
    owner(path).is_ok_and(|owner| owner == 0 || own.is_ok_and(|own| own == owner))
}

/// The agent may have other files than this command's variables name.
fn as_told(options: &Options, told: &Json) -> Options {
    let mut options = options.clone();
    for (name, field) in [
        ("subnet-file", &mut options.subnet_file),
        ("net-config-path", &mut options.net_config_path),
        ("kubeconfig-file", &mut options.kubeconfig_file),
        ("etcd-certfile", &mut options.etcd_certfile),
        ("etcd-cafile", &mut options.etcd_cafile),
    ] {
        if let Some(value) = member(told, "flags", name) {
            value.clone_into(field);
        }
    }
    options
}

/// What is read to be recognised wherever it stands, and never kept.
fn secrets(place: &Place<'_>, told: &Json) -> Redactor {
    let mut redactor = Redactor::default();
    redactor.know(&place.options.etcd_password);
    let account = place.root.join("var/run/secrets/kubernetes.io/serviceaccount/token");
    let key_file = member(told, "environment", "WIREGUARD_KEY_FILE").map(PathBuf::from);
    for file in [Some(wgkey::file()), key_file, Some(account)].into_iter().flatten() {
        fs::read_to_string(file).iter().for_each(|text| redactor.know(text));
    }
    let options = place.options;
    let files = [options.kubeconfig_file.clone(), options.net_config_path.clone()].into_iter();
    for file in files.chain(std::env::var("KUBECONFIG").ok()).filter(|file| !file.is_empty()) {
        fs::read_to_string(file).iter().for_each(|text| redactor.learn(text));
    }
    start::environment().for_each(|(name, value)| redactor.learn(&format!("{name}={value}")));
    redactor
}

fn agent(
    bundle: &mut Bundle,
    place: &Place<'_>,
    settings: Result<String, String>,
    page: impl Fn(&str) -> Result<String, String>,
) {
    let subnet_file = Path::new(&place.options.subnet_file);
    let status = socket::ask(place.socket.as_deref());
    let from = match &status {
        Ok(_) => "the agent's answer",
        Err(_) => "the kernel alone, since no agent answers",
    };
    // One reason is mostly that of all.
    let mut silent: Vec<(&str, String)> = Vec::new();
    silent.extend(status.as_ref().err().map(|why| ("status", why.clone())));
    let status = status.unwrap_or_else(|silent| status::alone(silent, subnet_file));
    bundle.json("status.json", from, &json::write(&status));
    match settings {
        Ok(text) => bundle.maybe_json("settings.json", "the agent's answer", &text),
        Err(why) => {
            silent.push(("settings", why));
            let own = Settings::new(place.options, start::environment());
            bundle.json("settings.json", "variables of `loden dump`, no agent answers", &own.json(None));
        }
    }
    for (what, name, file) in [("metrics", "/v1/metrics", "metrics.txt"), ("log", "/v1/log", "log.txt")] {
        match page(name) {
            Ok(text) => bundle.text(file, "the agent's answer", &text),
            Err(why) => silent.push((what, why)),
        }
    }
    while let Some((_, why)) = silent.first().cloned() {
        let (same, others): (Vec<_>, Vec<_>) = silent.into_iter().partition(|(_, reason)| *reason == why);
        let what: Vec<&str> = same.into_iter().map(|(what, _)| what).collect();
        bundle.missing(&format!("the agent's {}", what.join(", ")), &why);
        silent = others;
    }
    let facts = collect::facts(&collect::Place::of(&place.root, place.options), status);
    facts.missing.iter().for_each(|what| bundle.missing("doctor", what));
    bundle.json("doctor.json", "`loden doctor -o json`", &doctor::show::json(&examine(&facts), &facts));
    bundle.json("facts.json", "what `loden doctor` looks at", &doctor::json::write(&facts));
    let mut values: Vec<(String, String)> = facts.sysctls.into_iter().collect();
    values.extend(SYSCTLS.iter().filter_map(|path| Some(((*path).to_owned(), sysctl::read(path).ok()?))));
    values.sort();
    let line = |(path, value): &(String, String)| format!("{} = {value}", path.replace('/', "."));
    bundle.text("kernel/sysctl.txt", "/proc/sys", &tables::lines(&values, line));
}

/// What kind of machine it is.
fn host(bundle: &mut Bundle, place: &Place<'_>) {
    let mut text = String::new();
    let files = ["/proc/version", "/proc/cmdline", "/proc/uptime", "/proc/loadavg", "/proc/meminfo"];
    let release = place.root.join("etc/os-release");
    for path in files.iter().map(Path::new).chain([release.as_path()]) {
        match fs::read_to_string(path) {
            Ok(content) => text += &format!("== {}\n{}\n", path.display(), content.trim_end()),
            Err(error) => text += &format!("== {}\n({error})\n", path.display()),
        }
    }
    bundle.text("host.txt", "/proc and os-release", &text);
}

/// By our own netlink.
fn kernel_tables(bundle: &mut Bundle) {
    let from = "netlink";
    let mut kernel = match Kernel::open() {
        Ok(kernel) => kernel,
        Err(error) => return bundle.missing("the kernel's tables", &error.to_string()),
    };
    let links = match kernel.rtnl().links() {
        Ok(links) => links,
        Err(error) => return bundle.missing("the kernel's tables", &error.to_string()),
    };
    let names = tables::Names::of(&links);
    bundle.text("kernel/links.txt", from, &tables::lines(&links, |link| tables::link(link, &names)));
    let rtnl = kernel.rtnl();
    let mut table = |name: &str, text: Result<String, kernel::Error>| match text {
        Ok(text) => bundle.text(&format!("kernel/{name}.txt"), from, &text),
        Err(error) => bundle.missing(&format!("kernel/{name}.txt"), &error.to_string()),
    };
    let all = rtnl.addresses(None).map(|all| tables::lines(&all, |a| tables::address(a, &names)));
    table("addresses", all);
    let all =
        rtnl.routes(RouteFilter::default()).map(|all| tables::lines(&all, |r| tables::route(r, &names)));
    table("routes", all);
    table("rules", rtnl.rules().map(|all| tables::lines(&all, tables::rule)));
    let all = rtnl.neighbours(None).map(|all| tables::lines(&all, |n| tables::neighbour(n, &names)));
    table("neighbours", all);
    table("fdb", rtnl.fdb(None).map(|all| tables::lines(&all, |entry| tables::fdb(entry, &names))));
    table("nexthops", rtnl.nexthops().map(|all| tables::lines(&all, |n| tables::nexthop(n, &names))));
    table("qdiscs", rtnl.all_qdiscs().map(|all| tables::lines(&all, |q| tables::qdisc(q, &names))));
    match cleanup::ours(&mut kernel, &[]) {
        Ok(state) => {
            let text: String = state.iter().map(|(_, object)| format!("{object}\n")).collect();
            bundle.text("kernel/ours.txt", "netlink: what carries Loden's marks", &text);
        }
        Err(error) => bundle.missing("kernel/ours.txt", &error),
    }
    for (path, name) in COUNTERS {
        let path = Path::new("/proc").join(path);
        match fs::read_to_string(&path) {
            Ok(text) => bundle.text(name, &path.display().to_string(), &text),
            Err(error) if error.kind() == ErrorKind::NotFound => bundle.absent(&path.display().to_string()),
            Err(error) => bundle.missing(name, &error.to_string()),
        }
    }
}

/// Packet rules, by the host's programs: ours read what we write, not what others do.
fn rules(bundle: &mut Bundle) {
    let legacy = |file: &str| {
        let tables = fs::read_to_string(Path::new("/proc/thread-self/net").join(file));
        tables.is_ok_and(|tables| !tables.trim().is_empty())
    };
    // Rules of iptables' nft variant are in `nft list ruleset`; the others' tables are loaded or not.
    for (program, words, file, needed) in [
        ("nft", &["list", "ruleset"][..], "kernel/nft.txt", true),
        ("iptables-save", &["-c"], "kernel/iptables.txt", false),
        ("ip6tables-save", &["-c"], "kernel/ip6tables.txt", false),
        ("iptables-legacy-save", &["-c"], "kernel/iptables-legacy.txt", legacy("ip_tables_names")),
        ("ip6tables-legacy-save", &["-c"], "kernel/ip6tables-legacy.txt", legacy("ip6_tables_names")),
    ] {
        // It would load the old tables.
        if program.contains("legacy") && !needed {
            continue;
        }
        let from = format!("{program} {}", words.join(" "));
        let output = process::run(Command::new(program).args(words).env("LC_ALL", "C"), Vec::new(), LIMIT);
        match output {
            Ok(Some(output)) if output.status.success() => {
                bundle.text(file, &from, &String::from_utf8_lossy(&output.stdout));
            }
            Ok(Some(output)) => {
                let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
                let first = complaint.lines().next().unwrap_or("it failed");
                bundle.missing(file, &format!("{from}: {first}"));
            }
            Ok(None) => bundle.missing(file, &format!("{from}: not done after {} s", LIMIT.as_secs())),
            Err(error) if error.kind() == ErrorKind::NotFound && !needed => {
                bundle.absent(&format!("program {program}"));
            }
            Err(error) => {
                bundle.missing(file, &format!("{program}: {error}"));
                if program == "nft" {
                    own_rules(bundle);
                }
            }
        }
    }
}

/// Rules of nftables as far as we can read them, where nobody else does: in an image there is no `nft`.
fn own_rules(bundle: &mut Bundle) {
    let read = || -> Result<String, String> {
        let text = |errno: kernel::Errno| errno.to_string();
        let mut nft = Nft::open().map_err(|error| error.to_string())?;
        let mut lines = Vec::new();
        for family in [NftFamily::Ip, NftFamily::Ip6, NftFamily::Inet, NftFamily::Bridge] {
            for table in nft.tables(family).map_err(text)? {
                lines.push(format!("table {table}"));
                let rules = nft.rules(&table, None).map_err(text)?;
                for chain in nft.chains(&table).map_err(text)? {
                    let hook = chain.hook.map_or(String::new(), |hook| format!(" {hook:?}"));
                    lines.push(format!("  chain {}{hook}", chain.name));
                    for rule in rules.iter().filter(|rule| rule.chain == chain.name) {
                        let comment = rule.comment.as_ref().map_or(String::new(), |c| format!(" {c:?}"));
                        lines.push(format!("    {:?}{comment}", rule.expressions));
                    }
                }
            }
        }
        Ok(tables::lines(&lines, String::clone))
    };
    match read() {
        Ok(text) => bundle.text("kernel/nft-own.txt", "netlink, as far as it is understood", &text),
        Err(why) => bundle.missing("kernel/nft-own.txt", &why),
    }
}

fn files(bundle: &mut Bundle, place: &Place<'_>) {
    let subnet_file = PathBuf::from(&place.options.subnet_file);
    let trouble = PathBuf::from(format!("{}.trouble", place.options.subnet_file));
    file(bundle, "subnet.env", &subnet_file);
    file(bundle, "subnet.env.trouble", &trouble);
    file(bundle, "net-conf.json", Path::new(&place.options.net_config_path));
    let dir = place.root.join("etc/cni/net.d");
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return bundle.absent(&dir.display().to_string());
        }
        Err(error) => return bundle.missing(&dir.display().to_string(), &error.to_string()),
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Others keep kubeconfigs here.
        if [".conflist", ".conf", ".json"].iter().any(|end| name.ends_with(end)) {
            file(bundle, &format!("cni/{name}"), &path);
        }
    }
}

fn file(bundle: &mut Bundle, name: &str, path: &Path) {
    match fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            bundle.maybe_json(name, &path.display().to_string(), &text);
        }
        Err(error) if error.kind() == ErrorKind::NotFound => bundle.absent(&path.display().to_string()),
        Err(error) => bundle.missing(name, &format!("{}: {error}", path.display())),
    }
}
