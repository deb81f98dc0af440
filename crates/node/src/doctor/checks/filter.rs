//! Packet filters, and other programs that configure the network.

use super::{Check, Facts, Finding, check};
use crate::doctor::Weight::{Broken, Risk};
use crate::doctor::finding;
use crate::doctor::ruleset::Chain;

pub const CHECKS: &[Check] = &[
    check("firewalld", firewalld),
    check("ufw", ufw),
    check("forward-policy", forward_policy),
    check("forward-refused", forward_refused),
    check("tunnel-port-closed", tunnel_port_closed),
    check("two-iptables", two_iptables),
    check("network-manager", network_manager),
    check("networkd", networkd),
];

/// What a rule that accepts packets of pods mentions.
fn words(facts: &Facts) -> Vec<String> {
    let networks = facts.networks().into_iter().map(|net| net.to_string());
    let devices = facts.tunnels().map(|tunnel| tunnel.name.clone());
    networks.chain(devices).chain(["cni0".to_owned(), "flannel".to_owned()]).collect()
}

fn firewalld(facts: &Facts) -> Vec<Finding> {
    let of: Vec<&Chain> =
        facts.ruleset.chains.iter().filter(|chain| chain.table.ends_with(" firewalld")).collect();
    if of.is_empty() {
        return Vec::new();
    }
    let words = words(facts);
    let trusted =
        of.iter().any(|chain| chain.rules.iter().any(|rule| words.iter().any(|word| rule.contains(word))));
    if trusted {
        return Vec::new();
    }
    let network = facts.networks().first().map_or("NETWORK".to_owned(), ToString::to_string);
    let found = finding(Broken, "firewalld does not know the network of pods", "table inet firewalld without a word of it")
        .so("it refuses forwarded packets (\"admin prohibited\"), and the tunnel's port")
        .fix(format!(
            "firewall-cmd --permanent --zone=trusted --add-source={network}; firewall-cmd --permanent --add-port=8472/udp; \
             firewall-cmd --reload"
        ));
    vec![found]
}

fn ufw(facts: &Facts) -> Vec<Finding> {
    let Some(text) = &facts.ufw else { return Vec::new() };
    let value = |key: &str| {
        let line = text.lines().map(str::trim).find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.map(|value| value.trim().trim_matches('"').to_lowercase())
    };
    if value("ENABLED").as_deref() != Some("yes")
        || value("DEFAULT_FORWARD_POLICY").is_none_or(|p| p == "accept")
    {
        return Vec::new();
    }
    let words = words(facts);
    let open = facts.ruleset.at("forward").any(|chain| facts.ruleset.accepts(chain, &words));
    if open {
        return Vec::new();
    }
    let found = finding(
        Broken,
        "ufw drops what the host passes on",
        "DEFAULT_FORWARD_POLICY is not ACCEPT in /etc/default/ufw",
    )
    .so("packets of pods to other hosts are dropped")
    .fix("ufw default allow routed; ufw allow 8472/udp; ufw reload");
    vec![found]
}

fn forward_policy(facts: &Facts) -> Vec<Finding> {
    let words = words(facts);
    let docker = facts.ruleset.named("DOCKER").is_some();
    let shut =
        facts.ruleset.at("forward").filter(|chain| chain.drops && !facts.ruleset.accepts(chain, &words));
    shut.filter(|chain| !chain.table.ends_with(" firewalld") && !ufw_owns(facts, chain))
        .map(|chain| {
            let who = if docker { "Docker" } else { "a firewall" };
            let iptables = chain.table.contains("filter") && chain.name == "FORWARD";
            let fix = if iptables {
                "run the agent with --iptables-forward-rules=true, or: iptables -P FORWARD ACCEPT".to_owned()
            } else {
                let network = facts.networks().first().map_or("NETWORK".to_owned(), ToString::to_string);
                format!(
                    "nft insert rule {} {} ip daddr {network} accept (and saddr), in its own configuration",
                    chain.table, chain.name
                )
            };
            finding(
                Broken,
                format!("{who} drops what the host passes on"),
                format!("policy drop of {} in {}, and no rule for pods", chain.name, chain.table),
            )
            .so("packets of pods to other hosts are dropped")
            .fix(fix)
        })
        .collect()
}

fn ufw_owns(facts: &Facts, chain: &Chain) -> bool {
    facts.ufw.is_some() && chain.rules.iter().any(|rule| rule.contains("ufw-"))
}

fn forward_refused(facts: &Facts) -> Vec<Finding> {
    let words = words(facts);
    let refused =
        facts.ruleset.at("forward").filter_map(|chain| Some((chain, facts.ruleset.refusal(chain, &words)?)));
    refused
        .filter(|(chain, _)| !chain.table.ends_with(" firewalld"))
        .map(|(chain, rule)| {
            finding(Broken, "a rule refuses what the host passes on", format!("{rule} in {} of {}", chain.name, chain.table))
                .so("packets of pods to other hosts are answered with \"prohibited\", or dropped")
                .fix("put an accept for the network of pods before it, in the service that makes it (iptables-services: /etc/sysconfig/iptables)")
        })
        .collect()
}

fn tunnel_port_closed(facts: &Facts) -> Vec<Finding> {
    let Some((device, port)) =
        facts.tunnels().find_map(|tunnel| Some((tunnel.name.clone(), tunnel.vxlan?.1)))
    else {
        return Vec::new();
    };
    let words = [port.to_string()];
    let shut = facts.ruleset.at("input").filter(|chain| {
        let refuses = chain.drops || facts.ruleset.refusal(chain, &words).is_some();
        refuses && !facts.ruleset.accepts(chain, &words) && !chain.table.ends_with(" firewalld")
    });
    shut.filter(|chain| !ufw_owns(facts, chain))
        .map(|chain| {
            finding(
                Broken,
                format!("a firewall keeps packets for {device} out"),
                format!("{} of {} drops, and no rule names port {port}", chain.name, chain.table),
            )
            .so("nothing comes in from other nodes through the tunnel")
            .fix(if chain.table.contains("iptables") || chain.name == "INPUT" {
                format!("iptables -I INPUT -p udp --dport {port} -j ACCEPT, and in what makes the rules")
            } else {
                format!(
                    "nft insert rule {} {} udp dport {port} accept, and in /etc/nftables.conf",
                    chain.table, chain.name
                )
            })
        })
        .collect()
}

fn two_iptables(facts: &Facts) -> Vec<Finding> {
    let rules = |of: &dyn Fn(&Chain) -> bool| {
        facts.ruleset.chains.iter().filter(|chain| of(chain)).map(|chain| chain.rules.len()).sum::<usize>()
    };
    let legacy = rules(&|chain| chain.table.starts_with("iptables-legacy"));
    let nft = rules(&|chain| chain.table == "ip filter" || chain.table == "ip nat");
    if legacy == 0 || nft == 0 {
        return Vec::new();
    }
    let found = finding(Risk, "both kinds of iptables hold rules", format!("{legacy} of iptables-legacy, {nft} of iptables-nft"))
        .so("each packet passes both, and each program shows only its own")
        .fix("iptables-legacy -F; iptables-legacy -t nat -F, or update-alternatives --set iptables to the one in use");
    vec![found]
}

/// Whether a pattern list of NetworkManager or networkd names our devices.
fn leaves_alone(text: &str) -> bool {
    ["flannel", "cni0"].iter().any(|word| text.contains(word))
}

fn network_manager(facts: &Facts) -> Vec<Finding> {
    let Some(text) = &facts.network_manager else { return Vec::new() };
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    if lines.filter(|line| line.starts_with("unmanaged-devices")).any(leaves_alone)
        || text.contains("managed=0")
    {
        return Vec::new();
    }
    let found = finding(Risk, "NetworkManager may configure our devices", "no unmanaged-devices names flannel*")
        .so("it takes down or re-addresses flannel.1, cni0 and veths when its connections change")
        .fix(
            "printf '[keyfile]\\nunmanaged-devices=interface-name:flannel*;interface-name:cni0;interface-name:veth*\\n' \
             > /etc/NetworkManager/conf.d/loden.conf; systemctl reload NetworkManager",
        );
    vec![found]
}

fn networkd(facts: &Facts) -> Vec<Finding> {
    let Some(files) = &facts.networkd else { return Vec::new() };
    let mut found = Vec::new();
    let bare = |text: &str| -> Vec<String> {
        text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])).map(str::to_owned).collect()
    };
    let keeps = |key: &str| {
        files.iter().any(|(_, text)| bare(text).iter().any(|l| l.eq_ignore_ascii_case(&format!("{key}=no"))))
    };
    let unmanaged = files.iter().any(|(_, text)| {
        let lines = bare(text);
        lines.iter().any(|l| l.eq_ignore_ascii_case("Unmanaged=yes")) && leaves_alone(text)
    });
    let greedy = files.iter().filter(|(name, text)| {
        let lines = bare(text);
        let all =
            lines.iter().any(|l| ["Name=*", "Name=en* eth* *", "Kind=*", "Type=*"].contains(&l.as_str()));
        name.ends_with(".network") && all && !lines.iter().any(|l| l.starts_with("Unmanaged=yes"))
    });
    for (name, _) in greedy.filter(|_| !unmanaged) {
        found.push(
            finding(Broken, "systemd-networkd configures our devices", format!("{name} matches every device"))
                .so("it gives flannel.1 and cni0 addresses and takes theirs away")
                .fix("printf '[Match]\\nName=flannel* cni0 veth*\\n[Link]\\nUnmanaged=yes\\n' > /etc/systemd/network/00-loden.network; networkctl reload"),
        );
    }
    if !keeps("ManageForeignRoutes") && !unmanaged {
        found.push(
            finding(Risk, "systemd-networkd may remove our routes", "ManageForeignRoutes is not set to no")
                .so("when it restarts it removes routes and rules that it has not made")
                .fix("printf '[Network]\\nManageForeignRoutes=no\\nManageForeignRoutingPolicyRules=no\\n' > /etc/systemd/networkd.conf.d/loden.conf; systemctl restart systemd-networkd"),
        );
    }
    found
}
