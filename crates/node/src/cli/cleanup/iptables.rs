//! Finds rules in what `iptables-save` prints, flannel's of all eras (flannel.md 7.1, 7.2, 7.6) and the
//! plugins', and words their removal for `iptables-restore --noflush`.

use std::fmt::Write as _;

use ipnet::IpNet;

/// By what somebody's rules are known.
#[derive(Debug, Default)]
pub struct Signs {
    /// Chains that are theirs, with everything in them and every jump to them.
    chains: &'static [&'static str],
    /// Comments of rules in built-in chains, in quotes.
    comments: &'static [&'static str],
    /// Whole rules, by table.
    rules: Vec<(&'static str, String)>,
}

impl Signs {
    /// flannel's: chains since v0.20, nobody else's names; comments of v0.16 to v0.19; rules of v0.9 to v0.15,
    /// which have neither, by their whole text, which `nets` gives.
    pub fn flannel(nets: Option<Nets>) -> Signs {
        Signs {
            chains: &["FLANNEL-POSTRTG", "FLANNEL-FWD"],
            comments: &["\"flanneld masq\"", "\"flannel masq\"", "\"flanneld forward\""],
            rules: nets.map(old_rules).unwrap_or_default(),
        }
    }

    /// Of those only what is neither in a chain nor has a comment: rules that nobody makes any more.
    pub fn bare(nets: Option<Nets>) -> Signs {
        Signs { rules: nets.map(old_rules).unwrap_or_default(), ..Signs::default() }
    }

    /// What portmap's iptables backend keeps for all pods (cni.md 2.3).
    pub fn host_ports() -> Signs {
        let chains = &["CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-SETMARK", "CNI-HOSTPORT-MASQ"];
        Signs { chains, ..Signs::default() }
    }
}

/// A cluster network and the node's subnet in it, of one family.
#[derive(Clone, Copy, Debug)]
pub struct Nets {
    pub network: IpNet,
    pub subnet: Option<IpNet>,
}

/// What removes rules and chains with these signs; `None` if there are none.
pub fn removal(save: &str, signs: &Signs) -> Option<String> {
    let mut out = String::new();
    let (mut table, mut rules, mut chains) = ("", String::new(), Vec::new());
    for line in save.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
            rules.clear();
            chains.clear();
        } else if let Some(chain) = line.strip_prefix(':').and_then(|l| l.split(' ').next()) {
            if signs.chains.contains(&chain) {
                chains.push(chain);
            }
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let own_chain = rule.split(' ').next().is_some_and(|chain| signs.chains.contains(&chain));
            let target = rule.split(" -j ").nth(1).unwrap_or_default();
            let theirs =
                signs.chains.contains(&target) || signs.comments.iter().any(|comment| rule.contains(comment));
            let whole = signs.rules.iter().any(|(in_table, text)| *in_table == table && text == rule);
            if !own_chain && (theirs || whole) {
                let _ = writeln!(rules, "-D {rule}");
            }
        } else if line == "COMMIT" && !(rules.is_empty() && chains.is_empty()) {
            let _ = write!(out, "*{table}\n{rules}");
            // One of them may jump to another.
            chains.iter().for_each(|chain| out.push_str(&format!("-F {chain}\n")));
            chains.iter().for_each(|chain| out.push_str(&format!("-X {chain}\n")));
            out.push_str("COMMIT\n");
        }
    }
    (!out.is_empty()).then_some(out)
}

/// Whole texts of the rules of v0.9 to v0.15, with their table. v0.11 added `--random-fully`.
fn old_rules(Nets { network: net, subnet }: Nets) -> Vec<(&'static str, String)> {
    let multicast = if net.addr().is_ipv4() { "224.0.0.0/4" } else { "ff00::/8" };
    let mut rules = vec![
        ("filter", format!("FORWARD -s {net} -j ACCEPT")),
        ("filter", format!("FORWARD -d {net} -j ACCEPT")),
        ("nat", format!("POSTROUTING -s {net} -d {net} -j RETURN")),
    ];
    for random in ["", " --random-fully"] {
        rules.push(("nat", format!("POSTROUTING -s {net} ! -d {multicast} -j MASQUERADE{random}")));
        rules.push(("nat", format!("POSTROUTING ! -s {net} -d {net} -j MASQUERADE{random}")));
    }
    rules.extend(subnet.map(|pod| ("nat", format!("POSTROUTING ! -s {net} -d {pod} -j RETURN"))));
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets() -> Nets {
        let net = |text: &str| text.parse().unwrap();
        Nets { network: net("172.7.0.0/16"), subnet: Some(net("172.7.21.0/24")) }
    }

    #[test]
    fn exactly_flannels_rules_go() {
        let now = "*filter\n:INPUT ACCEPT [1:2]\n:FORWARD DROP [0:0]\n:FLANNEL-FWD - [0:0]\n-A FORWARD -j KUBE-FORWARD\n\
            -A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n\
            -A FLANNEL-FWD -s 172.7.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT\nCOMMIT\n\
            *nat\n:POSTROUTING ACCEPT [0:0]\n:FLANNEL-POSTRTG - [0:0]\n:KUBE-POSTROUTING - [0:0]\n\
            -A POSTROUTING -m comment --comment \"kubernetes\" -j KUBE-POSTROUTING\n\
            -A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\nCOMMIT\n";
        let now_gone = "*filter\n-D FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n-F FLANNEL-FWD\n\
            -X FLANNEL-FWD\nCOMMIT\n*nat\n-D POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\n\
            -F FLANNEL-POSTRTG\n-X FLANNEL-POSTRTG\nCOMMIT\n";
        let middle = "*nat\n:POSTROUTING ACCEPT [0:0]\n\
            -A POSTROUTING -s 172.7.0.0/16 -d 172.7.0.0/16 -m comment --comment \"flanneld masq\" -j RETURN\nCOMMIT\n";
        let middle_gone = "*nat\n-D POSTROUTING -s 172.7.0.0/16 -d 172.7.0.0/16 -m comment --comment \"flanneld masq\" \
            -j RETURN\nCOMMIT\n";
        let old = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -s 172.7.0.0/16 -j ACCEPT\n-A FORWARD -s 172.17.0.0/16 -j ACCEPT\n\
            -A FORWARD -d 172.7.0.0/16 -j ACCEPT\nCOMMIT\n*nat\n-A POSTROUTING ! -s 172.7.0.0/16 -d 172.7.21.0/24 -j RETURN\n\
            -A POSTROUTING -s 172.7.21.0/24 ! -o docker0 -j MASQUERADE\n\
            -A POSTROUTING -s 172.7.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully\nCOMMIT\n";
        let old_gone = "*filter\n-D FORWARD -s 172.7.0.0/16 -j ACCEPT\n-D FORWARD -d 172.7.0.0/16 -j ACCEPT\nCOMMIT\n*nat\n\
            -D POSTROUTING ! -s 172.7.0.0/16 -d 172.7.21.0/24 -j RETURN\n\
            -D POSTROUTING -s 172.7.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully\nCOMMIT\n";
        let ports = "*nat\n:PREROUTING ACCEPT [0:0]\n:CNI-HOSTPORT-DNAT - [0:0]\n:CNI-HOSTPORT-MASQ - [0:0]\n\
            -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n-A PREROUTING -j KUBE-SERVICES\n\
            -A POSTROUTING -m comment --comment \"CNI portfwd requiring masquerade\" -j CNI-HOSTPORT-MASQ\n\
            -A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE\nCOMMIT\n";
        let ports_gone = "*nat\n-D PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n\
            -D POSTROUTING -m comment --comment \"CNI portfwd requiring masquerade\" -j CNI-HOSTPORT-MASQ\n\
            -F CNI-HOSTPORT-DNAT\n-F CNI-HOSTPORT-MASQ\n-X CNI-HOSTPORT-DNAT\n-X CNI-HOSTPORT-MASQ\nCOMMIT\n";
        assert_eq!(removal(ports, &Signs::host_ports()).as_deref(), Some(ports_gone));
        assert_eq!(removal(now, &Signs::host_ports()), None);
        let foreign = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -j KUBE-POSTROUTING\nCOMMIT\n";
        for (name, save, nets, wanted) in [
            ("v0.21 and later", now, None, Some(now_gone)),
            ("v0.16 to v0.19", middle, None, Some(middle_gone)),
            ("v0.9 to v0.15", old, Some(nets()), Some(old_gone)),
            ("the same with the network unknown", old, None, None),
            ("somebody else's", foreign, Some(nets()), None),
            ("nothing", "", Some(nets()), None),
        ] {
            assert_eq!(removal(save, &Signs::flannel(nets)).as_deref(), wanted, "{name}");
        }
    }
}
