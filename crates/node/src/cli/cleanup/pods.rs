//! What pods of the flannel network needed on this host, and the plugins that made it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use kernel::{Kernel, Nft};
use model::IfName;
use model::cni::record::ATTACHMENTS;
use model::gojson::Json;
use plan::state::{LinkKind, NftFamily, TableKey};

use super::act::Act;
use super::files::{exists, tree};
use super::flannel::{SHARED, saved};
use super::iptables::{Signs, removal};
use super::{Found, Options};
use crate::pods::names::state_dir;

/// Name of the network in flannel's manifest, and its bridge.
const NETWORK: &str = "cbr0";
const BRIDGE: &str = "cni0";
/// The host's own directories of the chain's plugins.
const NETWORKS: &str = "/var/lib/cni/networks";
const SCRATCH: &str = "/var/lib/cni/flannel";
const PROGRAM: &str = "loden-cni";

/// What was found, and why nothing of it may go now.
pub struct Look {
    pub found: Found,
    pub attached: Option<String>,
}

/// What the configurations of the runtime say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Configured {
    /// Files with our network.
    ours: Vec<PathBuf>,
    /// Files with others.
    others: Vec<PathBuf>,
    networks: BTreeSet<String>,
    bridges: BTreeSet<String>,
}

pub fn look(kernel: &mut Kernel, options: &Options) -> Result<Look, String> {
    let configured = configured(&options.conf_dir);
    let mut found = Found::default();
    let mut attached = Vec::new();
    let links = kernel.rtnl().links().map_err(|error| error.to_string())?;
    for bridge in &configured.bridges {
        let is_it = |l: &&kernel::link::LinkInfo| {
            matches!(l.link.kind, LinkKind::Bridge(_)) && l.link.name.as_str() == bridge.as_str()
        };
        if let Some(link) = links.iter().find(is_it) {
            let ports = links.iter().filter(|port| port.master == Some(link.index));
            attached.extend(ports.map(|port| (link.link.name, port.link.name)));
            found.acts.push(Act::Link(link.index, link.link.name));
        }
    }
    tables(&mut found)?;
    host_ports(&mut found);
    files(options, &configured, &mut found);
    Ok(Look { found, attached: refusal(&attached) })
}

fn refusal(attached: &[(IfName, IfName)]) -> Option<String> {
    let (bridge, _) = attached.first()?;
    let ports: Vec<&str> = attached.iter().map(|(_, port)| port.as_str()).collect();
    Some(format!(
        "remove bridge {bridge} and the plugins: pods are attached to it by {}; delete these pods first (kubectl drain), for \
         their runtime ends them with the plugins",
        ports.join(", ")
    ))
}

/// The plugins' tables are shared by all networks and with the reference plugins: they go when no pod has
/// a rule in them.
fn tables(found: &mut Found) -> Result<(), String> {
    let mut nft = Nft::open().map_err(|error| error.to_string())?;
    for (family, name) in [
        (NftFamily::Inet, "cni_plugins_masquerade"),
        (NftFamily::Ip, "cni_hostport"),
        (NftFamily::Ip6, "cni_hostport"),
        (NftFamily::Ip, "loden-veth-to-host"),
        (NftFamily::Ip6, "loden-veth-to-host"),
        (NftFamily::Bridge, "loden-pods"),
    ] {
        let key = TableKey { family, name: name.to_owned() };
        let there = nft.table(&key).map_err(|errno| format!("read nftables table {key}: {errno}"))?;
        if there.is_none() {
            continue;
        }
        let rules = nft.rules(&key, None).map_err(|errno| format!("list the rules of {key}: {errno}"))?;
        match rules.iter().filter(|rule| rule.comment.is_some()).count() {
            0 => found.acts.push(Act::Table(key)),
            n => found.kept.push(format!("nftables table {key}, {n} rules of pods are in it")),
        }
    }
    Ok(())
}

/// The chains of portmap's iptables backend are shared as its tables are.
fn host_ports(found: &mut Found) {
    for (program, save) in ["iptables", "ip6tables"].into_iter().flat_map(saved) {
        let Some(input) = removal(&save, &Signs::host_ports()) else { continue };
        if save.contains(":CNI-DN-") {
            found.kept.push(format!("{program}'s chains CNI-HOSTPORT-*, pods have ports in them"));
        } else {
            found.acts.push(Act::Iptables(program, input));
            found.kept.push(SHARED.to_owned());
        }
    }
}

fn files(options: &Options, configured: &Configured, found: &mut Found) {
    let all = |_: &Path| true;
    found.acts.extend(configured.ours.iter().map(|path| Act::File(path.clone())));
    found.acts.extend(tree(Path::new(SCRATCH), &all));
    for network in &configured.networks {
        found.acts.extend(tree(&Path::new(NETWORKS).join(network), &all));
    }
    let records = state_dir();
    let others = others_records(&records.join(ATTACHMENTS), &configured.networks);
    if others.is_empty() {
        found.acts.extend(tree(&records, &all));
    } else {
        found.kept.push(format!("{}, pods of {} are recorded there", records.display(), others.join(", ")));
    }
    if let [other, ..] = configured.others.as_slice() {
        let plugins = options.bin_dir.display();
        found.kept.push(format!("the plugins in {plugins}, {} may use them", other.display()));
    } else {
        found.acts.extend(plugins(&options.bin_dir));
    }
    // Made on the way to the files above, if nobody else has anything there.
    let ways = [PathBuf::from(NETWORKS), "/var/lib/cni".into(), options.bin_dir.clone()];
    let ways = ways.into_iter().chain(options.bin_dir.parent().map(Path::to_owned));
    if !found.acts.is_empty() {
        found.acts.extend(ways.filter(|way| exists(way)).map(Act::Dir));
    }
}

/// Networks not ours that have records.
fn others_records(attachments: &Path, ours: &BTreeSet<String>) -> Vec<String> {
    let dirs = fs::read_dir(attachments).into_iter().flatten().flatten();
    let used = dirs.filter(|dir| fs::read_dir(dir.path()).is_ok_and(|mut files| files.next().is_some()));
    used.map(|dir| dir.file_name().to_string_lossy().into_owned())
        .filter(|name| !ours.contains(name))
        .collect()
}

/// The program and the links to it; files of the same names that are not ours stay.
fn plugins(dir: &Path) -> Vec<Act> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_ours = |path: &PathBuf| match fs::read_link(path) {
        Ok(target) => target == Path::new(PROGRAM),
        Err(_) => path.file_name().is_some_and(|name| name == PROGRAM),
    };
    let mut paths: Vec<PathBuf> = entries.filter(is_ours).collect();
    paths.sort();
    paths.into_iter().map(Act::File).collect()
}

/// Reads the runtime's configurations as the runtime does: every file whose name ends as one does.
fn configured(dir: &Path) -> Configured {
    let mut configured = Configured::default();
    configured.networks.insert(NETWORK.to_owned());
    configured.bridges.insert(BRIDGE.to_owned());
    let mut paths: Vec<PathBuf> =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let kind = path.extension().map(|end| end.to_string_lossy().into_owned()).unwrap_or_default();
        if !["conf", "conflist", "json"].contains(&kind.as_str()) {
            continue;
        }
        let text = fs::read(&path).unwrap_or_default();
        match Json::parse(&text).ok().and_then(|json| flannels(&json)) {
            Some((network, bridge)) => {
                configured.networks.insert(network);
                configured.bridges.extend(bridge);
                configured.ours.push(path);
            }
            None => configured.others.push(path),
        }
    }
    configured
}

/// Name and bridge of a network with the plugin `flannel` in it. A name that is no plain file name is not
/// believed.
fn flannels(json: &Json) -> Option<(String, Option<String>)> {
    let own = [json.clone()];
    let plugins = json.get("plugins").and_then(Json::as_array).unwrap_or(&own);
    let flannel = plugins.iter().find(|p| p.get("type").and_then(Json::as_str) == Some("flannel"))?;
    let name = json.get("name").and_then(Json::as_str).unwrap_or(NETWORK);
    let bridge = flannel.get("delegate").and_then(|d| d.get("bridge")).and_then(Json::as_str);
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains('/');
    plain.then(|| (name.to_owned(), bridge.map(str::to_owned)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_of_flannel_are_recognised() {
        for (text, wanted) in [
            (r#"{"name":"cbr0","plugins":[{"type":"flannel"},{"type":"portmap"}]}"#, Some(("cbr0", None))),
            (r#"{"name":"a","type":"flannel","delegate":{"bridge":"br0"}}"#, Some(("a", Some("br0")))),
            (r#"{"type":"flannel"}"#, Some(("cbr0", None))),
            (r#"{"name":"podman","plugins":[{"type":"bridge","bridge":"cni0"}]}"#, None),
            (r#"{"name":"../../etc","type":"flannel"}"#, None),
            (r#"{"name":"..","type":"flannel"}"#, None),
            ("[]", None),
        ] {
            let wanted = wanted
                .map(|(name, bridge): (&str, Option<&str>)| (name.to_owned(), bridge.map(str::to_owned)));
            assert_eq!(flannels(&text.parse().unwrap()), wanted, "{text}");
        }
    }
}
