//! Finds flannel's rules in what `iptables-save` prints, of all eras (flannel.md 7.1, 7.2, 7.6), and words
//! their removal for `iptables-restore --noflush`.

use std::fmt::Write as _;

use ipnet::IpNet;

/// Chains since v0.20; nobody else's names.
const CHAINS: [&str; 2] = ["FLANNEL-POSTRTG", "FLANNEL-FWD"];
/// Comments of v0.16 to v0.19, where the rules stand in the built-in chains.
const COMMENTS: [&str; 3] = ["\"flanneld masq\"", "\"flannel masq\"", "\"flanneld forward\""];

/// A cluster network and the node's subnet in it, of one family.
#[derive(Clone, Copy, Debug)]
pub struct Nets {
    pub network: IpNet,
    pub subnet: Option<IpNet>,
}

/// What removes flannel's rules and chains; `None` if there are none. Rules of v0.9 to v0.15 have neither
/// chain nor comment: they are recognised by their whole text, which `nets` gives.
pub fn removal(save: &str, nets: Option<Nets>) -> Option<String> {
    let plain = nets.map(old_rules).unwrap_or_default();
    let mut out = String::new();
    let (mut table, mut rules, mut chains) = ("", String::new(), String::new());
    for line in save.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
            rules.clear();
            chains.clear();
        } else if let Some(chain) = line.strip_prefix(':').and_then(|l| l.split(' ').next()) {
            if CHAINS.contains(&chain) {
                let _ = writeln!(chains, "-F {chain}\n-X {chain}");
            }
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let mut words = rule.split(' ');
            let own_chain = words.next().is_some_and(|chain| CHAINS.contains(&chain));
            let target = rule.split(" -j ").nth(1).unwrap_or_default();
            let flannels = CHAINS.contains(&target) || COMMENTS.iter().any(|comment| rule.contains(comment));
            let old = plain.iter().any(|(in_table, text)| *in_table == table && text == rule);
            if !own_chain && (flannels || old) {
                let _ = writeln!(rules, "-D {rule}");
            }
        } else if line == "COMMIT" && !(rules.is_empty() && chains.is_empty()) {
            let _ = write!(out, "*{table}\n{rules}{chains}COMMIT\n");
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
        let foreign = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -j KUBE-POSTROUTING\nCOMMIT\n";
        for (name, save, nets, wanted) in [
            ("v0.21 and later", now, None, Some(now_gone)),
            ("v0.16 to v0.19", middle, None, Some(middle_gone)),
            ("v0.9 to v0.15", old, Some(nets()), Some(old_gone)),
            ("the same with the network unknown", old, None, None),
            ("somebody else's", foreign, Some(nets()), None),
            ("nothing", "", Some(nets()), None),
        ] {
            assert_eq!(removal(save, nets).as_deref(), wanted, "{name}");
        }
    }
}
