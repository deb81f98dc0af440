//! A cluster of so many nodes, and the host that is one of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::Ipv4Net;
use model::codec::vtep::{self, Vtep};
use model::codec::wireguard::{self, Tunnel};
use model::wireguard::{PublicKey, Secret};
use model::{IfName, Lease, LeaseAttrs, Mac, NetConf, Peers, Subnets};
use plan::backend::{self, Backend};
use plan::facts::{Addresses, Facts, Uplink, WireguardFacts};
use plan::rules::{self, Choice};
use plan::{Assembly, Object};

/// What `flanneld --ip-masq` asks for.
const CHOICE: Choice = Choice { masquerade: true, fully_random: true, forward: true, blackhole: false };

/// A cluster as one of its nodes sees it.
pub struct Cluster {
    /// Its configuration.
    pub conf: NetConf,
    /// The backend of that.
    pub backend: Box<dyn Backend>,
    /// The node.
    pub facts: Facts,
    /// Its lease.
    pub own: Lease,
    /// All leases, with that of the node.
    pub peers: Peers,
}

impl Cluster {
    /// So many nodes beside ours, with a backend.
    pub fn of(kind: &str, size: usize) -> Cluster {
        let conf = conf(kind);
        let backend = backend::from_config(&conf).expect("a backend that is there");
        let leases: Vec<Lease> = (0..=size).map(|n| lease(kind, n, 0)).collect();
        let mut facts = facts(&leases[0]);
        if kind == "host-gw" {
            let publics = leases.iter().filter_map(|lease| lease.attrs.public_ip);
            facts.on_link = publics.map(|ip| (ip.into(), facts.uplink.name)).collect();
        }
        let own = leases[0].clone();
        let mut peers = Peers::default();
        peers.reset(leases);
        Cluster { conf, backend, facts, own, peers }
    }

    /// The leases of others by their subnets, as they are after judgement.
    pub fn accepted(&self) -> BTreeMap<Subnets, Arc<Lease>> {
        let others = self.peers.iter_shared().filter(|lease| lease.subnets != self.own.subnets);
        others.map(|lease| (lease.subnets, lease.clone())).collect()
    }

    /// The packet rules.
    pub fn rules(&self) -> Vec<Object> {
        rules::objects(&self.conf, &self.own.subnets, CHOICE, &self.facts.iptables, &self.facts.taken)
    }

    /// The wanted state.
    pub fn assembly(&self) -> Assembly {
        let mut assembly = Assembly::default();
        let (backend, accepted) = (self.backend.as_ref(), self.accepted());
        assembly.update(backend, &self.facts, Some(&self.own), self.rules(), &accepted, &[]);
        assembly
    }
}

/// The configuration, with room for 65,000 nodes.
pub fn conf(kind: &str) -> NetConf {
    let text = format!(
        r#"{{"Network":"10.0.0.0/8","SubnetLen":24,"EnableNFTables":true,"Backend":{{"Type":"{kind}"}}}}"#
    );
    NetConf::parse(text).and_then(NetConf::validate).expect("a valid configuration")
}

/// The lease of node `n`; `change` tells what it said at one time from what it says at another.
pub fn lease(kind: &str, n: usize, change: u8) -> Lease {
    let n = u32::try_from(n).expect("few nodes") + 1;
    let [_, _, high, low] = n.to_be_bytes();
    let net = Ipv4Net::new(Ipv4Addr::new(10, high, low, 0), 24).expect("a length");
    let data = match kind {
        "vxlan" => Some(vtep::write(&Vtep { vni: 1, mac: Mac([0x8e, 0, 0, change, high, low]) })),
        "wireguard" => {
            let mut key = [change; 32];
            key[30..].copy_from_slice(&[high, low]);
            Some(wireguard::write(&Tunnel { key: PublicKey(key), port: Some(51_820) }))
        }
        _ => None,
    };
    let attrs = LeaseAttrs {
        public_ip: Some(Ipv4Addr::from(0xac10_0000 + n)),
        backend_type: kind.to_owned(),
        backend_data: data.map(Into::into),
        ..LeaseAttrs::default()
    };
    Lease { subnets: Subnets { v4: Some(net), v6: None }, attrs }
}

/// The leases of so many nodes with vxlan, the first ours.
pub fn leases(size: usize) -> Vec<Lease> {
    (0..size).map(|n| lease("vxlan", n, 0)).collect()
}

fn facts(own: &Lease) -> Facts {
    let addresses = Addresses { v4: own.attrs.public_ip, v6: None };
    let local = own.attrs.public_ip.into_iter().chain([Ipv4Addr::LOCALHOST]);
    Facts {
        uplink: Uplink { name: IfName::fixed("eth0"), mtu: 1500, addresses },
        public: addresses,
        local: local.map(IpAddr::V4).collect(),
        devices: BTreeMap::new(),
        pinned_macs: BTreeMap::from([(IfName::fixed("flannel.1"), Mac([0x8e, 0, 0, 0, 0, 1]))]),
        published: None,
        on_link: BTreeMap::new(),
        tunnels: BTreeSet::new(),
        taken: BTreeSet::new(),
        nexthops_in_use: false,
        ipv6: false,
        machine_id: "0123456789abcdef".to_owned(),
        xfrm: false,
        printed: None,
        iptables: BTreeMap::new(),
        wireguard: Some(WireguardFacts {
            private: Secret::new([7; 32]),
            public: PublicKey([7; 32]),
            key_file: "/run/flannel/wgkey".to_owned(),
            in_kernel: true,
        }),
    }
}
