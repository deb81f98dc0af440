//! The agent, its file, and the configuration of CNI.

use model::{Family, Json};

use super::others::is_canal;
use super::{Check, Facts, Finding, check};
use crate::doctor::Weight::{Broken, Risk};
use crate::doctor::finding;

pub const CHECKS: &[Check] = &[
    check("agent", agent),
    check("agent-troubles", agent_troubles),
    check("paths", paths),
    check("store", store),
    check("subnet-file", subnet_file),
    check("subnet-file-stale", subnet_file_stale),
    check("cni-config", cni_config),
    check("cni-config-order", cni_config_order),
    check("cni-programs", cni_programs),
    check("addresses-used-up", addresses_used_up),
];

fn agent(facts: &Facts) -> Vec<Finding> {
    let Some(status) = facts.agent.as_ref().filter(|status| status.agent.is_none()) else {
        return Vec::new();
    };
    let why = status.silent.clone().unwrap_or_default();
    let runs = facts.tunnels().next().is_some() || facts.subnet_env.is_some();
    let found = finding(if runs { Risk } else { Broken }, "no agent answers", why)
        .so(if runs {
            "what is in the kernel works on, and follows no change: nodes that come are not reached"
        } else {
            "no pod of this node reaches another node"
        })
        .fix("systemctl start loden, or look at its pod: kubectl -n kube-flannel get pods -o wide");
    vec![found]
}

fn agent_troubles(facts: &Facts) -> Vec<Finding> {
    let Some(status) = facts.agent.as_ref().filter(|status| status.agent.is_some()) else {
        return Vec::new();
    };
    let now = status.troubles.iter().filter(|trouble| !trouble.over);
    let told = now.map(|trouble| {
        let weight = if status.ready { Risk } else { Broken };
        finding(weight, "the agent has a trouble", trouble.text.clone())
            .so(if status.ready {
                "the node works, less well than it could"
            } else {
                "the node is not ready"
            })
            .fix("as the sentence says; loden status --why shows more")
    });
    told.take(3).collect()
}

fn paths(facts: &Facts) -> Vec<Finding> {
    let probes = facts.agent.as_ref().and_then(|status| status.probes.as_ref());
    let bad = probes.into_iter().flat_map(|probes| &probes.paths).filter(|path| path.bad);
    let told = bad.map(|path| {
        let who = path.node.clone().unwrap_or_else(|| path.public.clone());
        finding(
            Broken,
            format!("packets to {who} do not arrive ({})", path.verdict.replace('_', " ")),
            path.text.clone(),
        )
        .so(format!("pods here and those of {} do not reach each other as they should", path.subnet))
        .fix(format!(
            "loden doctor on both hosts; ping {} and ping -M do -s 1422 {}",
            path.public, path.inner
        ))
    });
    told.take(3).collect()
}

fn store(facts: &Facts) -> Vec<Finding> {
    let store = facts.agent.as_ref().and_then(|status| status.store.as_ref());
    let Some(store) = store.filter(|store| !store.name.is_empty()) else { return Vec::new() };
    /// The longest silence of a healthy watch is well below.
    const LONG_MS: u64 = 600_000;
    if store.heard_ms.is_some_and(|ms| ms < LONG_MS) {
        return Vec::new();
    }
    let seen = store
        .heard_ms
        .map_or("it has not answered since the start".to_owned(), |ms| format!("silent for {} s", ms / 1000));
    let found = finding(Broken, "the store is not reached", format!("{}: {seen}", store.name))
        .so("known nodes are reached, new ones are not; without a lease of its own the node does nothing")
        .fix("see docs/guide/when-the-store-is-down.md; try it by hand: curl -m 3 and its address");
    vec![found]
}

fn subnet_file(facts: &Facts) -> Vec<Finding> {
    let file = &facts.subnet_file;
    let Some(text) = &facts.subnet_env else {
        let pods =
            !facts.cni_confs.is_empty() || facts.device("cni0").is_some() || facts.tunnels().next().is_some();
        let found = finding(Broken, format!("there is no {file}"), "the agent writes it once it is ready")
            .so("pods fail with \"open /run/flannel/subnet.env: no such file or directory\"")
            .fix("loden status says what the agent waits for; without an agent, start it");
        return if pods { vec![found] } else { Vec::new() };
    };
    let Err(error) = model::codec::subnet_env::read_for_pods(file, text) else { return Vec::new() };
    let found = finding(Broken, format!("{file} cannot be used"), error.to_string())
        .so("pods cannot start")
        .fix(format!("rm {file}; restart the agent, which writes it anew"));
    vec![found]
}

fn subnet_file_stale(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    let lease = facts.agent.as_ref().and_then(|status| status.lease.as_ref());
    for family in Family::BOTH {
        let Some(subnet) = facts.subnet(family) else { continue };
        let told = lease.map(|lease| lease.subnets.clone()).unwrap_or_default();
        if !told.is_empty() && !told.contains(&subnet.to_string()) {
            found.push(
                finding(
                    Broken,
                    format!("{} is of another lease", facts.subnet_file),
                    format!("{subnet} there, the lease is {}", told.join(" and ")),
                )
                .so("new pods get addresses that others send elsewhere")
                .fix("restart the agent, then make this node's pods anew"),
            );
        }
        let networks = facts.networks();
        if !networks.is_empty() && !networks.iter().any(|net| net.contains(&subnet)) {
            found.push(
                finding(
                    Broken,
                    format!("the subnet of {} is not of its network", facts.subnet_file),
                    format!(
                        "{subnet} is not in {}",
                        networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
                    ),
                )
                .so("packets of pods are not masqueraded or forwarded as they should")
                .fix(format!("rm {}; restart the agent", facts.subnet_file)),
            );
        }
    }
    found
}

fn is_flannels(text: &str) -> bool {
    text.contains("\"flannel\"")
}

fn cni_config(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    for (name, text) in &facts.cni_confs {
        let bad = match Json::parse(text.as_bytes()) {
            Err(error) => Some(format!("not JSON: {error}")),
            Ok(json) => {
                let list = name.ends_with(".conflist");
                let empty = json.get_exact("plugins").and_then(Json::as_array).is_none_or(<[Json]>::is_empty);
                let named = json.get_exact("name").and_then(Json::as_str).is_some();
                let typed = json.get_exact("type").and_then(Json::as_str).is_some();
                match (named, list && empty, !list && !typed) {
                    (false, ..) => Some("it has no name".to_owned()),
                    (_, true, _) => Some("it lists no plugins".to_owned()),
                    (.., true) => Some("it has no type".to_owned()),
                    _ => None,
                }
            }
        };
        if let Some(bad) = bad {
            found.push(
                finding(Broken, format!("{name} is no CNI configuration"), bad)
                    .so("runtimes pass over it or fail: \"cni config uninitialized\", nodes stay NotReady")
                    .fix(format!("mend or remove /etc/cni/net.d/{name}")),
            );
        }
    }
    let agent = facts.agent.as_ref().is_some_and(|status| status.agent.is_some());
    // Only CNI's plugins make it.
    let pods = facts.device("cni0").is_some();
    if facts.cni_confs.is_empty() && facts.cni_programs.is_some() && (agent || pods) {
        found.push(
            finding(
                if pods { Broken } else { Risk },
                "there is no CNI configuration",
                "nothing in /etc/cni/net.d",
            )
            .so("if this is a node of Kubernetes it stays NotReady; Docker hosts need none")
            .fix("apply the manifest again, or copy its cni-conf.json to /etc/cni/net.d/10-flannel.conflist"),
        );
    }
    found
}

fn cni_config_order(facts: &Facts) -> Vec<Finding> {
    let Some((first, text)) = facts.cni_confs.first() else { return Vec::new() };
    let ours = facts.cni_confs.iter().skip(1).find(|(_, text)| is_flannels(text));
    let canal = is_canal(text) || text.contains("\"multus\"");
    let Some((ours, _)) = ours.filter(|_| !is_flannels(text) && !canal) else { return Vec::new() };
    let found =
        finding(Broken, "another CNI configuration goes before ours", format!("{first} before {ours}"))
            .so("runtimes take the first by name: pods get another network")
            .fix(format!("mv /etc/cni/net.d/{first} /etc/cni/{first}.off, then make this node's pods anew"));
    vec![found]
}

fn cni_programs(facts: &Facts) -> Vec<Finding> {
    let Some((name, text)) = facts.cni_confs.iter().find(|(_, text)| is_flannels(text)) else {
        return Vec::new();
    };
    let Ok(json) = Json::parse(text.as_bytes()) else { return Vec::new() };
    let plugins = json.get_exact("plugins").and_then(Json::as_array).unwrap_or_default();
    let kinds = plugins.iter().filter_map(|plugin| plugin.get_exact("type").and_then(Json::as_str));
    // flannel delegates to bridge, which delegates to host-local; runtimes add loopback.
    let needed = kinds.chain(["bridge", "host-local", "loopback"]);
    let dirs = if facts.cni_dirs.is_empty() { "/opt/cni/bin".to_owned() } else { facts.cni_dirs.join(" ") };
    let there = facts.cni_programs.clone().unwrap_or_default();
    let absent: Vec<&str> = needed.filter(|kind| !there.iter().any(|have| have == kind)).collect();
    if absent.is_empty() {
        return Vec::new();
    }
    let found = finding(Broken, format!("CNI programs are missing: {}", absent.join(", ")), format!("{name} needs them in {dirs}"))
        .so(format!("pods fail with \"failed to find plugin … in path [{dirs}]\""))
        .fix(format!(
            "loden-cni install --bin-dir {} (the manifest's init container does), or the package containernetworking-plugins",
            facts.cni_dirs.first().map_or("/opt/cni/bin", String::as_str)
        ));
    vec![found]
}

fn addresses_used_up(facts: &Facts) -> Vec<Finding> {
    let Some(subnet) = facts.subnet(Family::V4) else { return Vec::new() };
    let size = 1usize.checked_shl(u32::from(32 - subnet.prefix_len())).unwrap_or(usize::MAX);
    let full = facts.reserved.iter().filter(|(_, used)| **used + 4 >= size);
    let told = |(network, used): (&String, &usize)| {
        finding(
            Broken,
            "the addresses for pods are used up",
            format!("{used} of {size} reserved in /var/lib/cni/networks/{network}"),
        )
        .so("pods fail with \"no IP addresses available in range set\"")
        .fix(format!("loden cni gc {network} frees those of pods that are gone; else give nodes larger subnets (SubnetLen)"))
    };
    full.map(told).collect()
}
