//! Objects as the commands that make them.

use std::fmt;

use model::Family;

use super::{Object, Route, Rule, TABLE_MAIN, Via};

impl fmt::Display for Object {
    /// The command that makes the object; for an nftables table, whose text fills a page, its size.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Object::Nft(table) => {
                let rules: usize = table.chains.iter().map(|chain| chain.rules.len()).sum();
                write!(f, "nft replace table {} ({} chains, {rules} rules)", table.key, table.chains.len())
            }
            Object::Iptables(rules) => rules.fmt(f),
            Object::Link(link) => link.fmt(f),
            Object::Tunnel(tunnel) => tunnel.fmt(f),
            Object::TunnelPeer(peer) => peer.fmt(f),
            Object::Sysctl { path, value } => write!(f, "sysctl -w {path}={value}"),
            Object::Offload { dev, name, on } => {
                write!(f, "ethtool -K {dev} {name} {}", if *on { "on" } else { "off" })
            }
            Object::Addr(a) => write!(f, "ip address replace {} dev {}", a.net, a.dev),
            Object::Element(element) => write!(f, "nft add element {element}"),
            Object::Neigh(n) => {
                write!(f, "ip neigh replace {} lladdr {} dev {} nud permanent", n.dst, n.mac, n.dev)
            }
            Object::Fdb(e) => {
                write!(f, "bridge fdb replace {} dev {} dst {} self permanent", e.mac, e.dev, e.dst)
            }
            Object::WgPeer(peer) => peer.fmt(f),
            Object::Nexthop(n) => {
                write!(f, "ip nexthop replace id {} via {} dev {}", n.id, n.via, n.dev)?;
                f.write_str(if n.onlink { " onlink" } else { "" })?;
                write!(f, " proto {}", crate::ROUTE_PROTOCOL)
            }
            Object::Route(r) => write!(f, "ip route replace {r}"),
            Object::Rule(r) => write!(f, "ip rule add {r}"),
            Object::Policy(policy) => write!(f, "ip xfrm policy update {policy}"),
            Object::Command(command) => f.write_str(&command.shown(true)),
            Object::Charon => f.write_str("charon"),
            Object::Ike(ike) => ike.fmt(f),
            Object::CloudRoute(route) => write!(f, "tccli vpc CreateRoutes # {route}"),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.via == Via::Blackhole {
            f.write_str("blackhole ")?;
        }
        write!(f, "{}", self.dst)?;
        match self.via {
            Via::Dev(dev) => write!(f, " dev {dev}")?,
            Via::Behind(dev) => write!(f, " dev {dev} scope global")?,
            Via::Gateway { gateway, dev, onlink } => {
                write!(f, " via {gateway} dev {dev}")?;
                f.write_str(if onlink { " onlink" } else { "" })?;
            }
            Via::Nexthop(id) => write!(f, " nhid {id}")?,
            Via::Blackhole => {}
            Via::Foreign => f.write_str(" (several next hops)")?,
        }
        if self.table != TABLE_MAIN {
            write!(f, " table {}", self.table)?;
        }
        if self.priority != Route::default_priority(Family::of_net(self.dst)) {
            write!(f, " metric {}", self.priority)?;
        }
        write!(f, " proto {}", self.protocol)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "priority {}", self.priority)?;
        match &self.from {
            Some(net) => write!(f, " from {net}")?,
            None => f.write_str(" from all")?,
        }
        if let Some(net) = &self.to {
            write!(f, " to {net}")?;
        }
        if let Some(dev) = &self.iif {
            write!(f, " iif {dev}")?;
        }
        if let Some((mark, mask)) = &self.fwmark {
            write!(f, " fwmark {mark:#x}/{mask:#x}")?;
        }
        write!(f, " table {}", self.table)
    }
}
