//! Host ports in iptables (cni.md 2.3).

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Changes, Saved, comment, comment_of, host, quote};
use crate::Family;
use crate::cni::portmap::{HostIp, Mapping, PortMap};

const DNAT: &str = "CNI-HOSTPORT-DNAT";
const SETMARK: &str = "CNI-HOSTPORT-SETMARK";
const MASQ: &str = "CNI-HOSTPORT-MASQ";
/// What `multiport` takes.
const PORTS_OF_A_RULE: usize = 15;
/// `XT_MAX_COMMENT_LEN` without its NUL.
const COMMENT: usize = 255;

/// The ports of one container in one network.
pub struct HostPorts<'a> {
    /// `CNI-DN-` and a hash of network and container.
    pub chain: &'a str,
    /// `CNI-SN-` and the same: of old releases.
    pub old_chain: &'a str,
    /// Network.
    pub network: &'a str,
    /// Container id.
    pub container_id: &'a str,
}

impl HostPorts<'_> {
    /// Lines that open the ports of the pod's family; none if no mapping concerns it.
    pub fn open(&self, saved: &Saved, conf: &PortMap, pod: IpNet) -> Vec<String> {
        let family = Family::of_net(pod);
        let mappings: Vec<&Mapping> = conf.mappings.iter().filter(|m| m.applies(family)).collect();
        if mappings.is_empty() {
            return Vec::new();
        }
        let mut changes = Changes::new(saved);
        let external = conf.external_set_mark_chain.as_str();
        let set_mark = if external.is_empty() { SETMARK } else { external };
        if conf.snat && external.is_empty() {
            let mark = format!("0x{0:x}/0x{0:x}", conf.mark());
            changes.ensure(SETMARK);
            changes.ensure(MASQ);
            let why = comment("CNI portfwd masquerade mark");
            changes.append(SETMARK, &format!("{why} -j MARK --set-xmark {mark}"));
            changes.append(MASQ, &format!("-m mark --mark {mark} -j MASQUERADE"));
            let why = comment("CNI portfwd requiring masquerade");
            changes.first("POSTROUTING", &format!("{why} -j {MASQ}"));
        }
        let mut rules = Vec::new();
        for mapping in &mappings {
            let base = base(mapping);
            if conf.snat {
                let sources = sources(conf, pod);
                rules.extend(sources.iter().map(|s| format!("-s {s} {base} -j {set_mark}")));
            }
            let to = match pod.addr() {
                IpAddr::V4(ip) => format!("{ip}:{}", mapping.container_port),
                IpAddr::V6(ip) => format!("[{ip}]:{}", mapping.container_port),
            };
            rules.push(format!("{base} -j DNAT --to-destination {to}"));
        }
        changes.ensure(DNAT);
        // A second ADD replaces the entries of the first.
        changes.detach(self.chain);
        changes.fill(self.chain, &rules);
        for parent in ["PREROUTING", "OUTPUT"] {
            changes.append(parent, &format!("-m addrtype --dst-type LOCAL -j {DNAT}"));
        }
        let mut lines = changes.into_lines();
        let entries = self.entries(conf, family, &mappings);
        lines.extend(entries.iter().map(|rule| format!("-A {DNAT} {rule}")));
        lines
    }

    /// The rules that lead into the container's chain: by protocol, at most 15 ports each.
    fn entries(&self, conf: &PortMap, family: Family, mappings: &[&Mapping]) -> Vec<String> {
        let mut text = format!("dnat name: \"{}\" id: \"{}\"", self.network, self.container_id);
        if text.len() > COMMENT {
            while text.len() > COMMENT - 2 {
                text.pop();
            }
            text.push_str("...");
            text.truncate(COMMENT);
        }
        let comment = comment(&text);
        let conditions: String =
            conf.conditions(family).iter().map(|word| format!("{} ", quote(word))).collect();
        let mut rules = Vec::new();
        for (number, name) in [(132, "sctp"), (6, "tcp"), (17, "udp")] {
            let ports: Vec<String> =
                mappings.iter().filter(|m| m.protocol == number).map(|m| m.host_port.to_string()).collect();
            for ports in ports.chunks(PORTS_OF_A_RULE) {
                let ports = ports.join(",");
                rules.push(format!(
                    "-p {name} {comment} -m multiport --dports {ports} {conditions}-j {}",
                    self.chain
                ));
            }
        }
        rules
    }

    /// Lines that close the container's ports.
    pub fn close(&self, saved: &Saved) -> Vec<String> {
        let mut changes = Changes::new(saved);
        changes.remove(self.chain);
        changes.remove(self.old_chain);
        changes.into_lines()
    }

    /// The first thing missing of what [`HostPorts::open`] makes.
    pub fn missing(&self, saved: &Saved, conf: &PortMap, pod: IpNet) -> Option<String> {
        let family = Family::of_net(pod);
        let mappings: Vec<&Mapping> = conf.mappings.iter().filter(|m| m.applies(family)).collect();
        let chain = self.chain;
        if mappings.is_empty() {
            return None;
        }
        if !saved.has(chain) {
            return Some(format!("chain {chain} not found in iptables table nat"));
        }
        let dnats = saved.rules(chain).iter().filter(|rule| rule.contains("-j DNAT ")).count();
        if dnats < mappings.len() {
            return Some(format!(
                "{} of {} DNAT rules missing in chain {chain}",
                mappings.len() - dnats,
                mappings.len()
            ));
        }
        let want = self.entries(conf, family, &mappings).len();
        let have = saved.leading_to(chain).filter(|(parent, _)| *parent == DNAT).count();
        if have < want {
            return Some(format!("rule [-j {chain}] in chain {DNAT} not found in table nat"));
        }
        let enter = |parent: &&str| !saved.leading_to(DNAT).any(|(chain, _)| chain == *parent);
        ["PREROUTING", "OUTPUT"].iter().find(|p| enter(p)).map(|parent| {
            format!("rule [-m addrtype --dst-type LOCAL -j {DNAT}] in chain {parent} not found in table nat")
        })
    }

    /// The container that already has one of the ports, as the comment on its rule says (B-15).
    pub fn taken(&self, saved: &Saved, conf: &PortMap, family: Family) -> Option<(u16, String)> {
        for mapping in conf.mappings.iter().filter(|m| m.applies(family)) {
            let wanted = base(mapping);
            for (chain, rules) in &saved.chains {
                let same = |rule: &String| rule.starts_with(&format!("{wanted} -j DNAT "));
                if chain.starts_with("CNI-DN-") && chain != self.chain && rules.iter().any(same) {
                    let owner = saved.leading_to(chain).find_map(|(_, rule)| comment_of(rule));
                    return Some((mapping.host_port, owner.unwrap_or_else(|| chain.clone())));
                }
            }
        }
        None
    }

    /// Lines that close the ports of a network's containers that are not among the valid ones.
    pub fn keep_only(saved: &Saved, network: &str, is_valid: &dyn Fn(&str) -> bool) -> Vec<String> {
        let mut changes = Changes::new(saved);
        let begin = format!("dnat name: \"{network}\" id: \"");
        let mut gone = BTreeSet::new();
        for rule in saved.rules(DNAT) {
            let (Some(text), Some(chain)) = (comment_of(rule), super::target_of(rule)) else { continue };
            let Some(id) = text.strip_prefix(&begin).and_then(|rest| rest.strip_suffix('"')) else {
                continue;
            };
            if !is_valid(id) {
                gone.insert(chain);
            }
        }
        changes.remove_each(&gone);
        changes.into_lines()
    }
}

/// Whose packets are marked: the pod that reaches itself through the host (B-16: not its whole subnet
/// unless asked for), and the host's programs that go by 127.0.0.1.
fn sources(conf: &PortMap, pod: IpNet) -> Vec<String> {
    let v4 = pod.addr().is_ipv4();
    if conf.masq_all {
        return vec![if v4 { "0.0.0.0/0" } else { "::/0" }.to_owned()];
    }
    let own = if conf.hairpin_subnet { pod.trunc().to_string() } else { host(pod.addr()) };
    std::iter::once(own).chain(v4.then(|| "127.0.0.1/32".to_owned())).collect()
}

fn base(mapping: &Mapping) -> String {
    let protocol = match mapping.protocol {
        6 => "tcp",
        17 => "udp",
        _ => "sctp",
    };
    let address = match mapping.host_ip {
        Some(HostIp::One(ip)) => format!("-d {} ", host(ip)),
        _ => String::new(),
    };
    format!("{address}-p {protocol} -m {protocol} --dport {}", mapping.host_port)
}
