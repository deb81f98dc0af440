//! Masquerading of a pod's addresses in iptables (cni.md 2.0.6).

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{Changes, Saved, comment, comment_of, host};
use crate::Family;

/// The chain of one container in one network.
pub struct Masquerade<'a> {
    /// `CNI-` and a hash of network and container.
    pub chain: &'a str,
    /// Network.
    pub network: &'a str,
    /// Container id.
    pub container_id: &'a str,
}

impl Masquerade<'_> {
    /// Lines that masquerade the addresses of one family.
    pub fn add(&self, saved: &Saved, addresses: &[IpNet]) -> Vec<String> {
        let Some(first) = addresses.first() else { return Vec::new() };
        let multicast = match Family::of_net(*first) {
            Family::V4 => "224.0.0.0/4",
            Family::V6 => "ff00::/8",
        };
        let comment = comment(&format!("name: \"{}\" id: \"{}\"", self.network, self.container_id));
        let mut changes = Changes::new(saved);
        let inside = |net: &IpNet| format!("-d {} {comment} -j ACCEPT", net.trunc());
        let mut rules: Vec<String> = Vec::new();
        for rule in addresses.iter().map(inside) {
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
        rules.push(format!("! -d {multicast} {comment} -j MASQUERADE"));
        changes.detach(self.chain);
        changes.fill(self.chain, &rules);
        let mut lines = changes.into_lines();
        lines.extend(
            addresses
                .iter()
                .map(|net| format!("-A POSTROUTING -s {} {comment} -j {}", host(net.addr()), self.chain)),
        );
        lines
    }

    /// Lines that remove the chain and all that leads to it.
    pub fn remove(&self, saved: &Saved) -> Vec<String> {
        let mut changes = Changes::new(saved);
        changes.remove(self.chain);
        changes.into_lines()
    }

    /// Whether the chain and a rule for each address are there.
    pub fn is_there(&self, saved: &Saved, addresses: &[IpNet]) -> bool {
        saved.has(self.chain) && saved.leading_to(self.chain).count() >= addresses.len()
    }

    /// Lines that remove the chains of a network whose containers are not among the valid ones. A chain
    /// without a rule that leads to it is found by the comment in it.
    pub fn keep_only(saved: &Saved, network: &str, is_valid: &dyn Fn(&str) -> bool) -> Vec<String> {
        let mut changes = Changes::new(saved);
        let begin = format!("name: \"{network}\" id: \"");
        let mut gone = BTreeSet::new();
        for (chain, rules) in saved.chains.iter().filter(|(name, _)| name.starts_with("CNI-")) {
            let id = rules.iter().find_map(|rule| {
                comment_of(rule)?.strip_prefix(&begin)?.strip_suffix('"').map(str::to_owned)
            });
            if id.is_some_and(|id| !is_valid(&id)) {
                gone.insert(chain.as_str());
            }
        }
        changes.remove_each(&gone);
        changes.into_lines()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_upstreams() {
        let masq = Masquerade { chain: "CNI-x", network: "net", container_id: "c1" };
        let comment = "-m comment --comment \"name: \\\"net\\\" id: \\\"c1\\\"\"";
        let lines = masq.add(&Saved::default(), &["10.1.2.3/24".parse().unwrap()]);
        assert_eq!(
            lines,
            [
                "-N CNI-x".to_owned(),
                format!("-A CNI-x -d 10.1.2.0/24 {comment} -j ACCEPT"),
                format!("-A CNI-x ! -d 224.0.0.0/4 {comment} -j MASQUERADE"),
                format!("-A POSTROUTING -s 10.1.2.3/32 {comment} -j CNI-x"),
            ]
        );
        let saved = Saved::parse(&format!(":CNI-x - [0:0]\n{}", lines[1..].join("\n")));
        assert!(masq.is_there(&saved, &["10.1.2.3/24".parse().unwrap()]));
        // Doing it again ends in the same.
        assert_eq!(masq.add(&saved, &["10.1.2.3/24".parse().unwrap()]).len(), 5);
        let gone = [
            format!("-D POSTROUTING -s 10.1.2.3/32 {comment} -j CNI-x"),
            "-F CNI-x".into(),
            "-X CNI-x".into(),
        ];
        assert_eq!(masq.remove(&saved), gone);
        assert_eq!(Masquerade::keep_only(&saved, "net", &|id| id == "c1"), [""; 0]);
        assert_eq!(Masquerade::keep_only(&saved, "other", &|_| false), [""; 0]);
        assert_eq!(Masquerade::keep_only(&saved, "net", &|_| false), gone);
    }
}
