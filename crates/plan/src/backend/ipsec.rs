//! ipsec: ESP tunnels between the subnets of nodes; policies in the kernel, keys by strongSwan's charon
//! (flannel.md 6.7).
//!
//! Better than upstream: policies are compared with the kernel's at all times (F-111), charon is an object like
//! a device and is made again when it dies (F-112), and nothing of a pod's leaves for the cluster's network in
//! clear: what has no peer's policy meets one that drops it, and while all policies are gone, a rule of nftables
//! (decision 0151).

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use model::config::IpsecConf;
use model::{Family, Lease, LeaseAttrs, NetConf};

use super::{Backend, Half};
use crate::facts::{Facts, Families};
use crate::state::{
    Chain, ChainType, Direction, GUARD_PRIORITY, Hook, Ike, IkeKey, Match, NftFamily, NftRule, NftTable,
    OWN_PRIORITY, Object, Policy, PolicyAction, PolicyKey, REQID, State, Statement, TableKey, Verdict,
};

/// The type in configurations and leases.
pub const KIND: &str = "ipsec";
/// The table of network 10.244.0.0/16 is called `loden-ipsec-10.244.0.0-16`.
const PREFIX: &str = "loden-ipsec-";

/// The table that lets nothing of a network leave in clear, whether wanted or not.
pub fn table_key(network: IpNet) -> TableKey {
    TableKey { family: NftFamily::Ip, name: format!("{PREFIX}{}", network.to_string().replace('/', "-")) }
}

/// Whether a table is such a one, by its name.
pub fn is_guard(table: &TableKey) -> bool {
    table.family == NftFamily::Ip && table.name.starts_with(PREFIX)
}

/// What leaves the own subnet for another one without IPsec is dropped and counted. Packets pass the hook once
/// before they are transformed, with a route that says whether they will be.
fn table(own: Ipv4Net, network: Ipv4Net) -> Object {
    let (own, network) = (IpNet::V4(own.trunc()), IpNet::V4(network.trunc()));
    let drop = NftRule {
        matches: vec![
            Match::Source(own),
            Match::Destination(network),
            Match::DestinationNot(own),
            Match::IpsecMissing,
        ],
        statement: Statement::Counted(Verdict::Drop),
        comment: None,
    };
    Object::Nft(Box::new(NftTable {
        key: table_key(network),
        comment: Some("nothing of this node's pods leaves in clear".to_owned()),
        owned: false,
        sets: Vec::new(),
        chains: vec![Chain {
            name: "postrouting".to_owned(),
            comment: None,
            hook: Some(Hook { kind: ChainType::Filter, number: 4, priority: 0 }),
            rules: vec![drop],
        }],
        drifted: false,
    }))
}

/// The backend `ipsec`.
#[derive(Clone, Debug)]
pub struct Ipsec {
    network: Option<Ipv4Net>,
    encap: bool,
    proposal: String,
}

impl Ipsec {
    /// Decodes the `Backend` object.
    ///
    /// # Errors
    /// IPv6, which it does not carry; what [`IpsecConf::decode`] finds.
    pub fn new(conf: &NetConf, families: Families) -> Result<Ipsec, String> {
        if families.v6 {
            return Err(
                "network config: the backend \"ipsec\" carries IPv4 only, and EnableIPv6 is true; set it to \
                        false, or use \"vxlan\" or \"host-gw\""
                    .to_owned(),
            );
        }
        let ipsec = IpsecConf::decode(&conf.backend).map_err(|e| e.to_string())?;
        Ok(Ipsec { network: conf.network, encap: ipsec.udp_encap, proposal: ipsec.esp_proposal })
    }

    /// Headers of ESP in tunnel mode at their largest.
    fn overhead(&self) -> u32 {
        77 + if self.encap { 8 } else { 0 }
    }
}

/// Our end of tunnels: the advertised address where it is ours, else the interface's, behind NAT.
fn local(facts: &Facts) -> Option<Ipv4Addr> {
    facts.public.v4.filter(|ip| facts.local.contains(&(*ip).into())).or(facts.uplink.addresses.v4)
}

fn policy(dir: Direction, src: Ipv4Net, dst: Ipv4Net, priority: u32, action: PolicyAction) -> Object {
    let (src, dst) = (IpNet::V4(src.trunc()), IpNet::V4(dst.trunc()));
    Object::Policy(Box::new(Policy { key: PolicyKey { dir, src, dst }, priority, action }))
}

impl Backend for Ipsec {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn check(&self, facts: &Facts) -> Result<(), String> {
        if local(facts).is_none() {
            return Err(format!(
                "interface {} has no IPv4 address, which the tunnels need; add one or choose another interface with \
                 --iface",
                facts.uplink.name
            ));
        }
        // RFC 791: an IPv4 link carries at least 68 bytes.
        if facts.uplink.mtu < 68 + self.overhead() {
            return Err(format!(
                "MTU {0} of {1} leaves {2} bytes inside the tunnels, less than the 68 needed; raise it with: ip link \
                 set {1} mtu 1500",
                facts.uplink.mtu,
                facts.uplink.name,
                self.mtu(facts)
            ));
        }
        Ok(())
    }

    fn mtu(&self, facts: &Facts) -> u32 {
        facts.uplink.mtu.saturating_sub(self.overhead())
    }

    fn attrs(&self, facts: &Facts) -> LeaseAttrs {
        LeaseAttrs { public_ip: facts.public.v4, backend_type: KIND.to_owned(), ..LeaseAttrs::default() }
    }

    /// Pods of this node may talk to each other through it; to the rest of the cluster by a peer's policy only.
    fn base(&self, _: &Facts, own: Option<&Lease>) -> State {
        let mut state = State::default();
        state.put(Object::Charon);
        if let (Some(own), Some(network)) = (own.and_then(|own| own.subnets.v4), self.network) {
            state.put(policy(Direction::Out, own, own, OWN_PRIORITY, PolicyAction::Allow));
            state.put(policy(Direction::Out, own, network, GUARD_PRIORITY, PolicyAction::Block));
            state.put(table(own, network));
        }
        state
    }

    fn peer(&self, facts: &Facts, own: &Lease, family: Family, peer: &Lease) -> Result<Half, String> {
        let v4 = peer.subnets.v4.filter(|_| family == Family::V4);
        let (Some(net), Some(own)) = (v4, own.subnets.v4) else { return Ok(Half::default()) };
        let remote = peer.attrs.public_ip.ok_or("its lease has no public IPv4 address")?;
        let (Some(local), Some(id)) = (local(facts), facts.public.v4) else { return Ok(Half::default()) };
        let esp = |from: Ipv4Addr, to: Ipv4Addr| PolicyAction::Esp {
            from: from.into(),
            to: to.into(),
            reqid: REQID,
        };
        let policies = Direction::ALL.map(|dir| match dir {
            Direction::Out => policy(dir, own, net, 0, esp(local, remote)),
            Direction::In | Direction::Fwd => policy(dir, net, own, 0, esp(remote, local)),
        });
        let key = IkeKey { local, local_net: own.trunc(), remote_net: net.trunc(), remote };
        let ike = Ike { key, id, encap: self.encap, proposal: self.proposal.clone() };
        Ok(Half { entries: policies.into_iter().chain([Object::Ike(Box::new(ike))]).collect(), hop: None })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{expect, facts, lease, text};
    use super::*;

    const V4: Families = Families { v4: true, v6: false };

    fn backend(members: &str, families: Families) -> Result<Ipsec, String> {
        let psk = "s3cr3t".repeat(16);
        let text = format!(r#"{{"Network":"10.244.0.0/16","Backend":{{"PSK":"{psk}"{members}}}}}"#);
        Ipsec::new(&NetConf::parse(text).expect("a configuration"), families)
    }

    #[test]
    fn a_peer_is_three_policies_and_a_connection() {
        let ipsec = backend("", V4).expect("valid");
        let own = lease("10.244.1.0/24", "192.0.2.10", "ipsec", ["", ""]);
        let peers = [
            lease("10.244.2.0/24", "192.0.2.12", "ipsec", ["", ""]),
            lease("10.244.4.0/24", "192.0.2.14", "vxlan", ["", ""]),
            lease("10.244.5.0/24", "", "ipsec", ["", ""]),
        ];
        let shown = |address: &str| {
            format!(
                "nft replace table ip loden-ipsec-10.244.0.0-16 (1 chains, 1 rules)
                 ip xfrm policy update src 10.244.1.0/24 dst 10.244.0.0/16 dir out priority 76001 action block
                 ip xfrm policy update src 10.244.1.0/24 dst 10.244.1.0/24 dir out priority 76000 action allow
                 ip xfrm policy update src 10.244.1.0/24 dst 10.244.2.0/24 dir out priority 0 tmpl src {address} dst 192.0.2.12 proto esp reqid 11 mode tunnel
                 ip xfrm policy update src 10.244.2.0/24 dst 10.244.1.0/24 dir in priority 0 tmpl src 192.0.2.12 dst {address} proto esp reqid 11 mode tunnel
                 ip xfrm policy update src 10.244.2.0/24 dst 10.244.1.0/24 dir fwd priority 0 tmpl src 192.0.2.12 dst {address} proto esp reqid 11 mode tunnel
                 charon
                 swanctl --load-conns # {address}-10.244.1.0/24-10.244.2.0/24-192.0.2.12 esp aes128gcm16-sha256-prfsha256-ecp256
                 left out 10.244.4.0/24: its backend is \"vxlan\", ours is \"ipsec\"
                 left out 10.244.5.0/24: its lease has no public IPv4 address"
            )
        };
        let mut facts = facts();
        expect(&text(&ipsec, &facts, Some(&own), &peers), &shown("192.0.2.10"));
        expect(&text(&ipsec, &facts, None, &peers), "charon");
        assert_eq!(ipsec.attrs(&facts), own.attrs);
        assert_eq!(ipsec.mtu(&facts), 1423);
        assert_eq!(backend(r#","UDPEncap":true"#, V4).expect("valid").mtu(&facts), 1415);
        // Behind NAT the tunnel leaves from the interface, and the peer knows us by the other address.
        facts.public.v4 = Some([203, 0, 113, 1].into());
        expect(&text(&ipsec, &facts, Some(&own), &peers), &shown("192.0.2.10"));
        let half = ipsec.peer(&facts, &own, Family::V4, &peers[0]).expect("a half");
        let Some(Object::Ike(ike)) = half.entries.last() else { panic!("{half:?}") };
        assert_eq!(ike.id, Ipv4Addr::new(203, 0, 113, 1));
        facts.public.v4 = Some([198, 51, 100, 7].into());
        facts.local.insert([198, 51, 100, 7].into());
        expect(&text(&ipsec, &facts, Some(&own), &peers), &shown("198.51.100.7"));
    }

    #[test]
    fn a_rule_stands_behind_the_policies() {
        let table = table(net("10.244.1.7/24"), net("10.244.0.0/16"));
        let Object::Nft(table) = table else { panic!("{table}") };
        assert!(is_guard(&table.key) && !is_guard(&TableKey { family: NftFamily::Ip6, ..table.key.clone() }));
        assert_eq!(
            table.chains[0].rules[0].to_string(),
            "ip saddr 10.244.1.0/24 ip daddr 10.244.0.0/16 ip daddr != 10.244.1.0/24 rt ipsec missing counter drop"
        );
        assert!(!crate::Key::Nft(table.key).is_critical());
    }

    fn net(text: &str) -> Ipv4Net {
        text.parse().expect("a network")
    }

    #[test]
    fn what_cannot_work_is_said() {
        let dual = backend("", Families { v4: true, v6: true }).expect_err("IPv6");
        assert!(dual.contains("carries IPv4 only"), "{dual}");
        let short = Ipsec::new(
            &NetConf::parse(r#"{"Backend":{"Type":"ipsec","PSK":"s3cr3t"}}"#).expect("a configuration"),
            V4,
        );
        let short = short.expect_err("short");
        assert!(short.contains("PSK has 6 bytes") && !short.contains("s3cr3t"), "{short}");
        let ipsec = backend("", V4).expect("valid");
        let mut facts = facts();
        assert_eq!(ipsec.check(&facts), Ok(()));
        facts.uplink.mtu = 140;
        assert!(ipsec.check(&facts).expect_err("MTU").contains("MTU 140 of eth0 leaves 63 bytes"));
        (facts.uplink.addresses.v4, facts.public.v4) = (None, None);
        assert!(ipsec.check(&facts).expect_err("address").contains("eth0 has no IPv4 address"));
    }
}
