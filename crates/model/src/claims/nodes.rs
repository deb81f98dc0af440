//! Which Node may have which pod CIDR, where nodes are given their subnets by somebody else (Kubernetes).

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::Taken;
use crate::addr::Family;
use crate::lease::Subnets;

/// What a Node's own specification gives it.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// The Node.
    pub name: &'a str,
    /// When it was made, RFC 3339 in UTC: sorts as text.
    pub created: &'a str,
    /// Its pod CIDRs.
    pub subnets: Subnets,
}

/// What is left of a claim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    /// The subnets that count, in enabled families only.
    pub subnets: Subnets,
    /// Why something is missing, in one sentence that names the Node.
    pub refused: Option<String>,
}

/// Judges all claims together, each family on its own; answers are in the order of the claims.
///
/// A pod CIDR counts if it lies inside the network of its family (`None`: networks are unknown) and
/// overlaps none that goes before it. First goes `own`, whose pods are here and running; then CIDRs of the
/// length most Nodes have, so that nobody gains by claiming a wider or narrower part of another's; then the
/// older Node; then the name. So every node comes to the same verdict about all others. O(n log n).
pub fn grant(claims: &[Claim<'_>], own: Option<&str>, networks: Option<&[IpNet]>) -> Vec<Granted> {
    let mut granted = vec![Granted::default(); claims.len()];
    for family in Family::BOTH {
        let network = match networks {
            None => None,
            Some(networks) => match networks.iter().find(|net| Family::of_net(**net) == family) {
                Some(network) => Some(*network),
                None => continue,
            },
        };
        let mut order: Vec<(usize, IpNet)> = Vec::with_capacity(claims.len());
        for (index, claim) in claims.iter().enumerate() {
            let Some(net) = claim.subnets.of(family) else { continue };
            match network.filter(|network| !network.contains(&net)) {
                None => order.push((index, net)),
                Some(network) => refuse(
                    &mut granted[index],
                    format!(
                        "podCIDR {net} of Node {} is not inside the cluster network {network}",
                        claim.name
                    ),
                ),
            }
        }
        let usual = usual_length(&order);
        order.sort_by_key(|(index, net)| {
            let claim = &claims[*index];
            (Some(claim.name) != own, net.prefix_len() != usual, claim.created, claim.name)
        });
        let mut taken = Taken::default();
        let mut holders: BTreeMap<IpNet, usize> = BTreeMap::new();
        for (index, net) in order {
            if let Some(other) = taken.overlap(net) {
                let name = claims[index].name;
                let holder = holders.get(&other).map_or("", |holder| claims[*holder].name);
                let why = format!(
                    "podCIDR {net} of Node {name} overlaps {other} of Node {holder}, which goes before it; give {name} \
                     another one: kubectl delete node {name}, then restart its kubelet"
                );
                refuse(&mut granted[index], why);
                continue;
            }
            taken.insert(net);
            holders.insert(net, index);
            match net {
                IpNet::V4(net) => granted[index].subnets.v4 = Some(net),
                IpNet::V6(net) => granted[index].subnets.v6 = Some(net),
            }
        }
    }
    granted
}

fn refuse(granted: &mut Granted, why: String) {
    match &mut granted.refused {
        Some(text) => *text = format!("{text}; {why}"),
        none => *none = Some(why),
    }
}

/// The prefix length most have; of equally frequent ones the longest.
fn usual_length(order: &[(usize, IpNet)]) -> u8 {
    let mut counts = BTreeMap::new();
    for (_, net) in order {
        *counts.entry(net.prefix_len()).or_insert(0usize) += 1;
    }
    counts.into_iter().max_by_key(|(length, count)| (*count, *length)).map_or(0, |(length, _)| length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::annotation::pod_cidrs;

    /// `name created cidr,cidr`
    fn verdict(lines: &[&str], own: Option<&str>) -> Vec<String> {
        let parsed: Vec<(&str, &str, Subnets)> = lines
            .iter()
            .map(|line| {
                let words: Vec<&str> = line.split(' ').collect();
                let cidrs: Vec<&str> = words[2].split(',').filter(|cidr| !cidr.is_empty()).collect();
                (words[0], words[1], pod_cidrs(&cidrs, None).unwrap())
            })
            .collect();
        let claims: Vec<Claim<'_>> = parsed
            .iter()
            .map(|(name, created, subnets)| Claim { name, created, subnets: *subnets })
            .collect();
        let networks: Vec<IpNet> = vec!["10.244.0.0/16".parse().unwrap(), "fd00:1::/48".parse().unwrap()];
        let answers = grant(&claims, own, Some(&networks));
        answers
            .into_iter()
            .zip(&parsed)
            .map(|(granted, (name, ..))| match granted.refused {
                None => format!("{name}: {}", granted.subnets),
                Some(why) => format!("{name}: {} but {why}", granted.subnets),
            })
            .collect()
    }

    #[test]
    fn pod_cidrs_count_once_and_inside_the_network() {
        let both = verdict(&["a 2 10.244.1.0/24,fd00:1:0:1::/64", "b 1 10.244.1.0/24,fd00:1:0:2::/64"], None);
        assert_eq!(both[1], "b: 10.244.1.0/24 and fd00:1:0:2::/64");
        assert!(
            both[0].starts_with(
                "a: fd00:1:0:1::/64 but podCIDR 10.244.1.0/24 of Node a overlaps 10.244.1.0/24 of Node b"
            ),
            "{both:?}"
        );
        for (lines, own, good) in [
            // The older one, then the name; ours before all.
            (vec!["a 2 10.244.1.0/24", "b 1 10.244.1.0/24"], None, vec!["b"]),
            (vec!["b 1 10.244.1.0/24", "a 1 10.244.1.0/24"], None, vec!["a"]),
            (vec!["a 1 10.244.1.0/24", "b 2 10.244.1.0/24"], Some("b"), vec!["b"]),
            // The unusual length loses, wider and narrower, however old.
            (
                vec!["w 0 10.244.0.0/17", "a 1 10.244.1.0/24", "b 1 10.244.2.0/24", "n 0 10.244.2.0/25"],
                None,
                vec!["a", "b"],
            ),
            // Everything, and a stranger's network.
            (vec!["e 0 0.0.0.0/0", "f 0 10.245.0.0/24", "a 1 10.244.1.0/24"], None, vec!["a"]),
            (vec!["v 0 ::/0", "a 1 fd00:1:0:1::/64"], None, vec!["a"]),
            (vec!["a 1 ", "b 1 10.244.1.0/24"], None, vec!["a", "b"]),
        ] {
            let verdict = verdict(&lines, own);
            let accepted: Vec<&str> = verdict
                .iter()
                .filter(|text| !text.contains(" but "))
                .filter_map(|t| t.split(':').next())
                .collect();
            assert_eq!(accepted, good, "{verdict:?}");
        }
    }

    #[test]
    fn unknown_networks_refuse_nothing_and_a_switched_off_family_is_left_out() {
        let subnets = pod_cidrs(&["10.1.0.0/24", "fd00::/64"], None).unwrap();
        let claim = Claim { name: "a", created: "", subnets };
        assert_eq!(grant(&[claim], None, None)[0], Granted { subnets, refused: None });
        let v4 = [IpNet::V4("10.0.0.0/8".parse().unwrap())];
        let only = Subnets { v6: None, ..subnets };
        assert_eq!(grant(&[claim], None, Some(&v4))[0], Granted { subnets: only, refused: None });
    }
}
