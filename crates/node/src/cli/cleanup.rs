//! `loden cleanup`: takes from this host what the agent made, and nothing else; on request also what pods,
//! files and a flanneld before us left. Everything is looked for every time: what stays is named with the
//! reason and the flag that takes it (decision 0101). The agent itself never tears the data path down.

mod act;
mod files;
mod flannel;
mod iptables;
mod pods;

use std::collections::BTreeSet;
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net};
use kernel::link::LinkInfo;
use kernel::{Kernel, Nft};
use model::IfName;
use plan::state::{GUARD_PRIORITY, NftFamily, Scope, TableKey};
use plan::{Object, State, Step, backend, diff, rules, sources};

use super::words::{Command, Words, flag, switch};
use super::{complain, print};
use crate::fast;
use crate::helpers::charon;
use crate::tunnels::Tunnels;
use act::Act;

/// What it is, for help, completion and manual.
pub const COMMAND: Command = Command {
    name: "cleanup",
    words: "",
    summary: "remove what is ours from this host: the kernel, on request files, pods, flannel",
    text: "\
Removes the devices flannel.N, flannel-v6.N, flannel.ipip, flannel0, flannel-wg and flannel-wg-v6 with all that is on them, the \
tunnel behind flannel0, routes and nexthop objects of protocol 76, the nftables tables flannel-ipv4, flannel-ipv6 and \
loden-flannel*, the iptables chains FLANNEL-POSTRTG and FLANNEL-FWD, IPsec policies of the cluster's network and charon's \
connections for it, and the fast path. Pods on this host lose their way to other hosts. Stop the agent first, or it puts everything \
back. What else is of ours or of flannel is named at the end, with the flag that removes it.",
    flags: &[
        flag(
            "--network",
            "CIDR",
            "of the agent's part only what belongs to this cluster network, where several agents share the host: its \
             devices, routes and rules; repeat it for the other family",
        ),
        switch(
            "--files",
            "also the agent's files: subnet.env and the troubles beside it, the WireGuard key, /var/lib/loden and \
             /run/loden but the registry",
        ),
        switch(
            "--cni",
            "also what pods needed: the bridge, address files, records and rules of the plugins, the network's \
             configuration, the plugins. Refused while pods are attached",
        ),
        switch("--flannel", "also what a flanneld left: iptables rules of old versions, host-gw routes"),
        switch("--registry", "also the embedded registry, which may hold the leases of the whole cluster"),
        switch("--all", "the four together"),
        switch(
            "--only",
            "only the parts named, not the devices, routes and rules of the agent, which may go on running: `loden \
             cleanup --only --flannel` after a change from flannel also takes the iptables chains, which an agent in \
             iptables mode makes anew",
        ),
        switch("--dry-run", "print the commands that would do it, change nothing"),
        flag("--subnet-file", "PATH", "where subnet.env is (/run/flannel/subnet.env)"),
        flag("--cni-conf-dir", "DIR", "where the runtime's network configurations are (/etc/cni/net.d)"),
        flag("--cni-bin-dir", "DIR", "where the plugins are (/opt/cni/bin)"),
    ],
    exit: "0 nothing is left of what was asked for, 1 something is, 2 the command line is not understood.",
    sub: &[],
};

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Options {
    dry_run: bool,
    only: bool,
    networks: Vec<IpNet>,
    files: bool,
    cni: bool,
    flannel: bool,
    registry: bool,
    subnet_file: PathBuf,
    conf_dir: PathBuf,
    bin_dir: PathBuf,
}

impl Options {
    /// `None` for help.
    fn parse(words: &[String]) -> Result<Option<Options>, String> {
        let mut options = Options {
            dry_run: false,
            only: false,
            networks: Vec::new(),
            files: false,
            cni: false,
            flannel: false,
            registry: false,
            subnet_file: "/run/flannel/subnet.env".into(),
            conf_dir: "/etc/cni/net.d".into(),
            bin_dir: "/opt/cni/bin".into(),
        };
        let mut words = Words::new(words, &COMMAND);
        while let Some(name) = words.word()? {
            match name {
                "--subnet-file" => options.subnet_file = words.value()?.into(),
                "--cni-conf-dir" => options.conf_dir = words.value()?.into(),
                "--cni-bin-dir" => options.bin_dir = words.value()?.into(),
                "--network" => {
                    let word = words.value()?;
                    let net = word.parse::<IpNet>();
                    let net =
                        net.map_err(|_| format!("--network {word:?} is no network such as 10.244.0.0/16"))?;
                    options.networks.push(net.trunc());
                }
                "--dry-run" => options.dry_run = true,
                "--only" => options.only = true,
                "--files" | "--cni" | "--flannel" | "--registry" | "--all" => {
                    let is = |flag| name == flag || name == "--all";
                    options.files |= is("--files");
                    options.cni |= is("--cni");
                    options.flannel |= is("--flannel");
                    options.registry |= is("--registry");
                }
                "--help" => return Ok(None),
                other => return Err(words.unknown(other)),
            }
        }
        let parts = [options.files, options.cni, options.flannel, options.registry];
        if options.only && !parts.contains(&true) {
            return Err("--only needs a part: --files, --cni, --flannel or --registry".to_owned());
        }
        // The other parts know no networks.
        if !options.networks.is_empty() && parts.contains(&true) {
            return Err(
                "--network is about the agent's part, and the other parts know no networks".to_owned()
            );
        }
        Ok(Some(options))
    }
}

/// Whether the words make sense.
#[cfg(test)]
pub fn understands(words: &[String]) -> Result<(), String> {
    Options::parse(words).map(drop)
}

/// What one look found.
#[derive(Debug, Default)]
struct Found {
    acts: Vec<Act>,
    /// What no flag takes, one sentence each.
    kept: Vec<String>,
}

/// Runs the command; gives the exit status: 0 when nothing is left of what was asked for, 1 otherwise.
pub fn main(words: &[String]) -> u8 {
    let options = match Options::parse(words) {
        Ok(Some(options)) => options,
        Ok(None) => return print(&COMMAND.usage()),
        Err(error) => return COMMAND.refuse(&error),
    };
    match clean(&options) {
        Ok(()) => 0,
        Err(error) => {
            complain(&format!("loden cleanup: {error}\n"));
            1
        }
    }
}

fn clean(options: &Options) -> Result<(), String> {
    let mut kernel = Kernel::open().map_err(|error| format!("{error}; run it as root"))?;
    let pods = pods::look(&mut kernel, options)?;
    if let Some(refusal) = pods.attached.filter(|_| options.cni) {
        return Err(refusal);
    }
    let mut tunnels = Tunnels::beside(&options.subnet_file);
    let networks = &options.networks;
    let mut acts = if options.only { Vec::new() } else { agents(&mut kernel, networks, &mut tunnels)? };
    let mut kept = Vec::new();
    let parts = [
        (options.cni, "--cni", "pods need it", pods.found),
        (options.flannel, "--flannel", "flanneld made it", flannel::look(&mut kernel, options)?),
        (options.files, "--files", "the node keeps its subnet by it", files::look(options)),
        (options.registry, "--registry", "it may hold the whole cluster's leases", files::registry()),
    ];
    for (wanted, flag, why, found) in parts {
        kept.extend(found.kept.into_iter().map(|line| format!("kept: {line}\n")));
        if wanted {
            acts.extend(found.acts);
        } else {
            kept.extend(found.acts.iter().map(|act| format!("kept, {why} ({flag}): {act}\n")));
        }
    }
    kept.extend(daemon().map(|line| format!("kept: {line}\n")));
    kept.extend(forwarding().into_iter().map(|line| format!("kept: {line}\n")));
    if acts.is_empty() {
        print("nothing of what was asked for is on this host\n");
    }
    let mut failures = Vec::new();
    for act in acts {
        print(&format!("{act}\n"));
        if !options.dry_run
            && let Err(error) = act.run(&mut kernel, &mut tunnels)
        {
            failures.push(error);
        }
    }
    let mut said = std::collections::BTreeSet::new();
    kept.retain(|line| said.insert(line.clone()));
    print(&kept.concat());
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

/// What the agent made in the kernel.
fn agents(kernel: &mut Kernel, networks: &[IpNet], tunnels: &mut Tunnels) -> Result<Vec<Act>, String> {
    let actual = ours(kernel, networks)?;
    let nothing = State::default();
    let found = diff(&nothing, &actual);
    // What is on a device goes with it; the routes first, so that no packet meets half a path.
    let (rest, links) = (found.rest.into_iter(), found.links.into_iter());
    let act = |step| Act::Step(Box::new(step));
    let mut acts: Vec<Act> = rest.map(act).collect();
    // Peers go with their tunnel.
    let within = |net: IpNet| networks.is_empty() || networks.iter().any(|ours| ours.contains(&net));
    let ends = |object: &Object| matches!(object, Object::Tunnel(t) if within(t.network.into()));
    let tunnels = tunnels.read().into_iter().filter(ends);
    acts.extend(tunnels.map(|tunnel| act(Step::Delete(tunnel))));
    acts.extend(links.map(act));
    for pins in fast::left(networks) {
        let (dir, files) = pins.files();
        acts.extend(files.into_iter().map(Act::File).chain([Act::Dir(dir.to_owned())]));
    }
    Ok(acts)
}

/// What is ours in this host's kernel, by marks and names alone; with `networks` only what belongs to these.
pub fn ours(kernel: &mut Kernel, networks: &[IpNet]) -> Result<State, String> {
    let text = |error: kernel::Error| error.to_string();
    let overlap = |net: &IpNet| networks.iter().any(|ours| ours.contains(net) || net.contains(ours));
    let links = kernel.rtnl().links().map_err(text)?;
    let addresses = kernel.rtnl().addresses(None).map_err(text)?;
    let within = |l: &LinkInfo| {
        let mut own = addresses.iter().filter(|a| a.index == l.index);
        networks.is_empty() || own.any(|a| overlap(&a.net))
    };
    let devices: BTreeSet<IfName> =
        links.iter().filter(|l| backend::is_our_link(&l.link) && within(l)).map(|l| l.link.name).collect();
    // Tables about devices that are gone as well. A kernel without nftables has none.
    let mut nft = Nft::open().map_err(text)?;
    let mut tables: BTreeSet<TableKey> = rules::table_keys().into();
    for family in [NftFamily::Ip, NftFamily::Ip6] {
        tables.extend(nft.tables(family).unwrap_or_default());
    }
    let mut guards: BTreeSet<TableKey> = sources::keys(devices.iter().copied()).collect();
    guards.extend(networks.iter().copied().map(backend::ipsec::table_key));
    tables.retain(|table| match networks {
        [] => rules::is_agents(table) || sources::is_ours(table) || backend::ipsec::is_guard(table),
        _ => {
            guards.contains(table) || rules::is_agents(table) && kernel.networks_of(table).iter().any(overlap)
        }
    });
    let iptables = rules::all_iptables_keys();
    // An agent that ended has left nexthop objects that nobody uses.
    let adopt = !networks.is_empty();
    let scope = Scope { devices, networks: networks.to_vec(), tables, iptables, adopt, ..Scope::default() };
    let mut state = kernel.read(&scope, &State::default()).map_err(text)?;
    state.extend(ipsec(kernel, networks)?);
    Ok(state)
}

/// What is left of the backend ipsec. Its guard policies have a mark of ours and name the cluster's network,
/// by which the rest is known.
fn ipsec(kernel: &mut Kernel, wanted: &[IpNet]) -> Result<State, String> {
    if !kernel::xfrm::is_there() {
        return Ok(State::default());
    }
    let everywhere = vec![IpNet::V4(Ipv4Net::default())];
    let scope = Scope { networks: everywhere, policies: true, ..Scope::default() };
    let mut state = kernel.read(&scope, &State::default()).map_err(|error| error.to_string())?;
    let guarded = |object: &Object| match object {
        Object::Policy(p) if p.priority == GUARD_PRIORITY => Some(p.key.dst),
        _ => None,
    };
    let mut networks: Vec<IpNet> = state.iter().filter_map(|(_, object)| guarded(object)).collect();
    networks.retain(|net| wanted.is_empty() || wanted.iter().any(|w| w.contains(net) || net.contains(w)));
    let within = |net: &IpNet| networks.iter().any(|n| n.contains(net));
    state.retain(|_, object| matches!(object, Object::Policy(policy) if policy.is_ours(within)));
    let v4: Vec<Ipv4Net> =
        networks.iter().filter_map(|n| if let IpNet::V4(n) = n { Some(*n) } else { None }).collect();
    if !v4.is_empty() {
        state.extend(charon::left(&v4));
    }
    Ok(state)
}

/// Others may use it.
fn daemon() -> Option<String> {
    let pid = std::fs::read_to_string("/var/run/charon.pid").ok()?;
    let running = std::fs::read_to_string(format!("/proc/{}/comm", pid.trim())).ok()?;
    let pid = pid.trim();
    (running.trim() == "charon").then(|| format!("charon runs, and others may use it: kill {pid} ends it"))
}

/// The bridge plugin turns forwarding on, and nobody knows who else counts on it now.
fn forwarding() -> Vec<String> {
    let on = |key: &str| kernel::sysctl::read(key).is_ok_and(|value| value.trim() == "1");
    let keys = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];
    let line = |key: &str| {
        let key = key.replace('/', ".");
        format!("{key} is 1, pods need it and other programs may: sysctl -w {key}=0 turns it off")
    };
    keys.into_iter().filter(|key| on(key)).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<Options> {
        Options::parse(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).ok().flatten()
    }

    #[test]
    fn flags_are_read() {
        let none = parse("").unwrap();
        assert!(![none.dry_run, none.files, none.cni, none.flannel, none.registry].contains(&true));
        let all = Options { files: true, cni: true, flannel: true, registry: true, ..none.clone() };
        let networks = ["10.1.0.0/16", "fd00::/48"].map(|net| net.parse().unwrap()).into();
        for (text, wanted) in [
            ("--dry-run --files", Some(Options { dry_run: true, files: true, ..none.clone() })),
            ("--all", Some(all)),
            ("--subnet-file /a", Some(Options { subnet_file: "/a".into(), ..none.clone() })),
            ("--cni --cni-conf-dir=/b", Some(Options { cni: true, conf_dir: "/b".into(), ..none.clone() })),
            ("--cni-bin-dir=/c", Some(Options { bin_dir: "/c".into(), ..none })),
            ("--cni-bin-dir", None),
            ("--only --flannel", Some(Options { only: true, flannel: true, ..parse("").unwrap() })),
            ("--only", None),
            ("--network=10.1.2.3/16 --network fd00::/48", Some(Options { networks, ..parse("").unwrap() })),
            ("--network", None),
            ("--network 10.1.0.0/16 --cni", None),
            ("--network ten", None),
            ("--cni=yes", None),
            ("--everything", None),
            ("files", None),
        ] {
            assert_eq!(parse(text), wanted, "{text}");
        }
    }
}
