//! What the host and the pod shall hold, as data (cni.md 2.19.6). Touches nothing.
//!
//! | Mode | The pod's way out | The host's table for packets from the pod |
//! | --- | --- | --- |
//! | reference | the host, but the underlay itself | the pod's subnets, back over the pod |
//! | tutorial | same | the routes of the result, back over the pod: others circle |
//! | split | the underlay; services over the host | none, or with `keepSource` as reference |
//!
//! A table without a route for a destination passes it on to the next rule, so none has to say so.

use std::net::IpAddr;

use ipnet::IpNet;
use kernel::rtnl::{NeighInfo, RouteInfo};
use model::cni::RouteConfig;
use model::cni::veth_to_host::{Mode, VethToHostConf};
use model::{Family, IfName, Mac};
use plan::state::{Match, NftRule, Rule, Statement};

/// Preference of the rule that sends packets from the pod to its own table.
pub const PRIORITY: u32 = 1024;
/// Preference of the rule that sends answers of node ports to the main table.
pub const NODE_PORT_PRIORITY: u32 = 512;
/// `RT_SCOPE_LINK`
const SCOPE_LINK: u8 = 253;

/// One end of the pair.
#[derive(Clone, Copy, Debug)]
pub struct PairEnd {
    /// Name.
    pub name: IfName,
    /// Index in its namespace.
    pub index: u32,
    /// Hardware address.
    pub mac: Mac,
}

/// What the plan is made of.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// Configuration.
    pub conf: &'a VethToHostConf,
    /// Addresses of the pod, of families the host has as well.
    pub pod: Vec<IpNet>,
    /// Global addresses of the host's interface, the first of a family being the next hop.
    pub host: Vec<IpAddr>,
    /// Routes of the result.
    pub routes: &'a [RouteConfig],
    /// The pair's end on the host.
    pub outer: PairEnd,
    /// The pair's end in the pod.
    pub inner: PairEnd,
}

impl Facts<'_> {
    /// Families of the pod's addresses.
    pub fn families(&self) -> impl Iterator<Item = Family> {
        Family::BOTH.into_iter().filter(|family| self.pod.iter().any(|net| Family::of_net(*net) == *family))
    }

    /// The next hop of the pod's packets.
    fn hop(&self, family: Family) -> Option<IpAddr> {
        self.host.iter().copied().find(|ip| Family::of(*ip) == family)
    }

    fn in_use(&self) -> impl Iterator<Item = IpAddr> {
        let families: Vec<Family> = self.families().collect();
        self.host.iter().copied().filter(move |ip| families.contains(&Family::of(*ip)))
    }

    /// Routes of the pod: to the host's addresses directly, to the rest over the first of them.
    pub fn pod_routes(&self) -> Vec<RouteInfo> {
        let dev = Some(self.inner.index);
        let direct = self.in_use().map(|ip| RouteInfo { dev, scope: scope(ip), ..RouteInfo::to(ip.into()) });
        let over = self.over_host().into_iter().filter_map(|dst| {
            let gateway = self.hop(Family::of_net(dst));
            gateway.map(|_| RouteInfo { dev, gateway, ..RouteInfo::to(dst) })
        });
        direct.chain(over).collect()
    }

    /// Destinations the pod reaches over the host.
    pub fn over_host(&self) -> Vec<IpNet> {
        let families: Vec<Family> = self.families().collect();
        let given = match self.conf.mode {
            Mode::Split => self.conf.through_host.clone(),
            Mode::Reference | Mode::Tutorial => families.iter().filter_map(|f| default_of(*f)).collect(),
        };
        given.into_iter().filter(|dst| families.contains(&Family::of_net(*dst))).collect()
    }

    /// Routes of the host's main table to the pod.
    pub fn host_routes(&self) -> Vec<RouteInfo> {
        let to_pod = |net: &IpNet| {
            let ip = net.addr();
            // Answers go over the pair only if they are for an address the pod routes there.
            let src = self.hop(Family::of(ip)).filter(|_| self.conf.mode == Mode::Split);
            RouteInfo { dev: Some(self.outer.index), scope: scope(ip), src, ..RouteInfo::to(ip.into()) }
        };
        self.pod.iter().map(to_pod).collect()
    }

    /// Routes of the pod's own table on the host.
    pub fn table_routes(&self, table: u32) -> Vec<RouteInfo> {
        let route = |dst: IpNet, gateway: IpAddr| RouteInfo {
            dev: Some(self.outer.index),
            gateway: Some(gateway),
            table,
            ..RouteInfo::to(dst)
        };
        if self.conf.mode != Mode::Tutorial {
            let mut all: Vec<RouteInfo> = Vec::new();
            for net in &self.pod {
                let back = route(*net, net.addr());
                // Two addresses of one subnet have one way.
                if all.iter().all(|known| known.dst != back.dst) {
                    all.push(back);
                }
            }
            return all;
        }
        let first = |family| self.pod.iter().find(|net| Family::of_net(**net) == family);
        let back = |told: &RouteConfig| Some(route(told.dst, first(Family::of_net(told.dst))?.addr()));
        let mut all: Vec<RouteInfo> = self.routes.iter().filter_map(back).collect();
        all.sort_by_key(|route| route.dst.to_string());
        all.dedup_by_key(|route| route.dst);
        all
    }

    /// Rules of the host that send packets from the pod to its table.
    pub fn policy_rules(&self, table: u32) -> Vec<Rule> {
        self.families().map(|family| policy_rule(family, self.outer.name, table)).collect()
    }

    /// The rule for answers of node ports.
    pub fn node_port_rules(&self) -> Vec<Rule> {
        if self.conf.node_ports.is_none() {
            return Vec::new();
        }
        self.families().map(|family| node_port_rule(family, self.conf.node_port_mark)).collect()
    }

    /// Neighbours that are known without asking: the host may answer for none of its other addresses.
    pub fn neighbours(&self) -> (Vec<NeighInfo>, Vec<NeighInfo>) {
        let pod = self.in_use().map(|ip| NeighInfo::permanent(self.inner.index, ip, self.outer.mac));
        let host =
            self.pod.iter().map(|net| NeighInfo::permanent(self.outer.index, net.addr(), self.inner.mac));
        (pod.collect(), host.collect())
    }

    /// Source translation on the host, for one family; the published form is made elsewhere.
    pub fn masquerade(&self, family: Family, comment: &str) -> Vec<NftRule> {
        let mode = self.conf.mode;
        let wanted = mode == Mode::Split || (mode == Mode::Reference && self.conf.ip_masq);
        let Some(hop) = self.hop(family).filter(|_| wanted) else { return Vec::new() };
        let rule = |matches: Vec<Match>, statement| NftRule {
            matches,
            statement,
            comment: Some(comment.to_owned()),
        };
        let mine = self.pod.iter().filter(|net| Family::of_net(**net) == family);
        mine.flat_map(|net| {
            let from = Match::Source(net.addr().into());
            let (back, away) =
                (Match::OutputDevice(self.outer.name), Match::OutputDeviceNot(self.outer.name));
            let mut leaving = vec![from.clone(), away];
            if mode == Mode::Split {
                leaving.push(Match::DestinationTranslated);
            }
            [
                // Back to the pod: with an address the pod sends over the pair, whatever else the host has.
                rule(vec![from, back, Match::DestinationTranslated], Statement::Snat { to: hop }),
                rule(leaving, Statement::Masquerade { fully_random: false }),
            ]
        })
        .collect()
    }

    /// Marks connections that come in by a node port; the same for all pods of a host.
    pub fn node_port_marks(&self, comment: &str) -> Vec<NftRule> {
        let Some((first, last)) = self.conf.node_ports else { return Vec::new() };
        let rule = |protocol| NftRule {
            matches: vec![
                Match::InputDevice(self.conf.host_interface),
                Match::Protocol(protocol),
                Match::DestinationPorts(first, last),
            ],
            statement: Statement::OrConnectionMark(self.conf.node_port_mark),
            comment: Some(comment.to_owned()),
        };
        // TCP and UDP.
        vec![rule(6), rule(17)]
    }

    /// Gives the pod's answers the mark of their connection.
    pub fn answer_mark(&self, comment: &str) -> Option<NftRule> {
        let mark = self.conf.node_port_mark;
        self.conf.node_ports.map(|_| NftRule {
            matches: vec![
                Match::InputDevice(self.outer.name),
                Match::ConnectionMark { value: mark, mask: mark },
            ],
            statement: Statement::OrMark(mark),
            comment: Some(comment.to_owned()),
        })
    }
}

/// The rule that sends packets from a pod to its table.
pub fn policy_rule(family: Family, outer: IfName, table: u32) -> Rule {
    Rule { family, priority: PRIORITY, from: None, to: None, iif: Some(outer), fwmark: None, table }
}

/// The rule that sends marked packets to the main table.
pub fn node_port_rule(family: Family, mark: u32) -> Rule {
    let fwmark = Some((mark, mark));
    let table = plan::state::TABLE_MAIN;
    Rule { family, priority: NODE_PORT_PRIORITY, from: None, to: None, iif: None, fwmark, table }
}

fn scope(ip: IpAddr) -> Option<u8> {
    ip.is_ipv4().then_some(SCOPE_LINK)
}

fn default_of(family: Family) -> Option<IpNet> {
    match family {
        Family::V4 => "0.0.0.0/0".parse().ok(),
        Family::V6 => "::/0".parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use model::Json;
    use model::cni::Members;

    fn conf(more: &str) -> VethToHostConf {
        let text = format!(r#"{{"hostInterface": "eth0", "containerInterface": "veth0"{more}}}"#);
        let doc: Json = text.parse().unwrap();
        VethToHostConf::parse(&Members::of(&doc, "NetConf").unwrap(), "").unwrap()
    }

    fn facts<'a>(conf: &'a VethToHostConf, routes: &'a [RouteConfig]) -> Facts<'a> {
        let end = |name, index| PairEnd {
            name: IfName::fixed(name),
            index,
            mac: Mac([2, 0, 0, 0, 0, index as u8]),
        };
        Facts {
            conf,
            pod: ["10.10.20.53/24", "2001:db8:20::53/64", "10.10.20.54/24"]
                .map(|n| n.parse().unwrap())
                .to_vec(),
            host: ["10.10.20.152", "10.10.30.1", "2001:db8:20::152"].map(|n| n.parse().unwrap()).to_vec(),
            routes,
            outer: end("veth01234567", 9),
            inner: end("veth0", 4),
        }
    }

    fn text<T: ToString>(list: impl IntoIterator<Item = T>) -> Vec<String> {
        list.into_iter().map(|item| item.to_string()).collect()
    }

    #[test]
    fn routes_of_each_mode() {
        let given = ["0.0.0.0/0", "::/0", "10.8.0.0/16"];
        let given = given.map(|dst| RouteConfig::new(dst.parse().unwrap(), None));
        let direct = [
            "10.10.20.152/32 dev 4 proto 3",
            "10.10.30.1/32 dev 4 proto 3",
            "2001:db8:20::152/128 dev 4 proto 3",
        ];
        let defaults =
            ["0.0.0.0/0 via 10.10.20.152 dev 4 proto 3", "::/0 via 2001:db8:20::152 dev 4 proto 3"];
        let services =
            ["10.96.0.0/12 via 10.10.20.152 dev 4 proto 3", "fd01::/112 via 2001:db8:20::152 dev 4 proto 3"];
        let own = [
            "10.10.20.0/24 via 10.10.20.53 dev 9 table 596 proto 3",
            "2001:db8:20::/64 via 2001:db8:20::53 dev 9 table 596 proto 3",
        ];
        let published = [
            "0.0.0.0/0 via 10.10.20.53 dev 9 table 596 proto 3",
            "10.8.0.0/16 via 10.10.20.53 dev 9 table 596 proto 3",
            "::/0 via 2001:db8:20::53 dev 9 table 596 proto 3",
        ];
        let split = r#", "serviceCIDRs": ["10.96.0.0/12", "fd01::/112"]"#;
        for (more, over, table) in [
            ("", defaults, &own[..]),
            (r#", "mode": "tutorial""#, defaults, &published),
            (split, services, &own),
        ] {
            let conf = conf(more);
            let facts = facts(&conf, &given);
            assert_eq!(text(facts.pod_routes()), [&direct[..], &over].concat(), "{more}");
            assert_eq!(text(facts.table_routes(596)), table, "{more}");
            let host = text(facts.host_routes());
            let src = if conf.mode == Mode::Split { " src 10.10.20.152" } else { "" };
            assert_eq!(host[0], format!("10.10.20.53/32 dev 9{src} proto 3"));
            assert_eq!(host.len(), 3);
        }
    }

    #[test]
    fn rules_of_each_mode() {
        let back =
            "ip saddr 10.10.20.53 oifname \"veth01234567\" ct status dnat snat to 10.10.20.152 comment \"c\"";
        let away = "ip saddr 10.10.20.53 oifname != \"veth01234567\" masquerade comment \"c\"";
        let split =
            "ip saddr 10.10.20.53 oifname != \"veth01234567\" ct status dnat masquerade comment \"c\"";
        for (more, want) in [
            ("", &[][..]),
            (r#", "ipMasq": true"#, &[back, away]),
            (r#", "serviceCIDRs": ["10.96.0.0/12"]"#, &[back, split]),
            (r#", "ipMasq": true, "mode": "tutorial""#, &[]),
        ] {
            let conf = conf(more);
            let rules = text(facts(&conf, &[]).masquerade(Family::V4, "c"));
            assert_eq!(rules.iter().take(2).map(String::as_str).collect::<Vec<_>>(), want, "{more}");
        }
        let conf = conf(r#", "nodePorts": "30000:32767""#);
        let facts = facts(&conf, &[]);
        let marks = text(facts.node_port_marks("n"));
        let want = "iifname \"eth0\" tcp dport 30000-32767 ct mark set ct mark | 0x00001000 comment \"n\"";
        assert_eq!((marks.len(), marks[0].as_str()), (2, want));
        let want = "iifname \"veth01234567\" ct mark & 0x00001000 == 0x00001000 meta mark set meta mark | 0x00001000";
        assert!(facts.answer_mark("c").unwrap().to_string().starts_with(want));
        assert_eq!(facts.node_port_rules().len(), 2);
        assert_eq!(facts.policy_rules(7).len(), 2);
    }
}
