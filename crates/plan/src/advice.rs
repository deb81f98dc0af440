//! What a person can do about a step the kernel refuses. A pure table of step and errno.

use crate::diff::Step;
use crate::state::{Link, LinkKind, Object, Wireguard};

// Linux numbers of the generic ABI; those used here are the same on all its architectures but Alpha, MIPS,
// PA-RISC and SPARC.
const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const EINVAL: i32 = 22;
const EPROTONOSUPPORT: i32 = 93;
const EOPNOTSUPP: i32 = 95;
const EADDRINUSE: i32 = 98;
const ENETUNREACH: i32 = 101;
const ENOBUFS: i32 = 105;
const EHOSTUNREACH: i32 = 113;

/// The way out, as the end of a sentence; `None` where the kernel's own words must do.
pub fn advice(step: &Step, errno: i32) -> Option<String> {
    match step {
        Step::Put(Object::Nft(table)) if crate::sources::is_of_wireguard(&table.key) && errno != EPERM => Some(
            "packets from a node between two addresses may go round in the tunnel: modprobe nf_tables".to_owned(),
        ),
        Step::Put(Object::Nft(table)) if crate::sources::is_ours(&table.key) && errno != EPERM => Some(
            "packets for the tunnel are taken from any address: modprobe nf_tables, or set CheckSources of the \
             backend to false"
                .to_owned(),
        ),
        Step::Put(Object::Nft(table)) if crate::backend::ipsec::is_guard(&table.key) && errno != EPERM => Some(
            "while somebody flushes the IPsec policies packets of pods leave in clear: modprobe nf_tables".to_owned(),
        ),
        Step::Put(Object::Nft(table)) => match errno {
            EPERM | EEXIST => {
                Some(format!("another program owns table {}; stop it, or remove its table", table.key))
            }
            ENOENT | EOPNOTSUPP => Some(
                "this kernel lacks nftables with NAT: modprobe -a nf_tables nft_masq nft_chain_nat"
                    .to_owned(),
            ),
            _ => None,
        },
        _ if errno == EPERM => {
            Some("the agent needs CAP_NET_ADMIN: run it as root, or in a container with NET_ADMIN".to_owned())
        }
        Step::Put(Object::Link(link)) | Step::Change(link) => link_advice(link, errno),
        Step::Put(Object::Route(route)) => match errno {
            ENETUNREACH | EHOSTUNREACH | EINVAL => Some(format!(
                "the gateway is not on a network of this host; compare `ip route` with {}",
                route.dst
            )),
            _ => None,
        },
        Step::Put(Object::Policy(_)) if errno == EPROTONOSUPPORT => {
            Some("this kernel has no IPsec: modprobe -a xfrm_user esp4, or use the backend vxlan".to_owned())
        }
        Step::Put(Object::Neigh(_)) if errno == ENOBUFS => {
            Some("the neighbour table is full; raise net.ipv4.neigh.default.gc_thresh3".to_owned())
        }
        _ => None,
    }
}

fn link_advice(link: &Link, errno: i32) -> Option<String> {
    let vxlan = match &link.kind {
        LinkKind::Vxlan(vxlan) => vxlan,
        LinkKind::Wireguard(Wireguard { port: Some(port), .. }) if errno == EADDRINUSE => {
            return Some(format!(
                "another program uses UDP port {port}; find it with `ss -lunp sport = {port}`, stop it or choose \
                 another ListenPort"
            ));
        }
        LinkKind::Ipip(_) if errno == EOPNOTSUPP => {
            return Some("this kernel has no ipip: modprobe ipip, or use the backend vxlan".to_owned());
        }
        _ => return None,
    };
    match errno {
        EEXIST => Some(format!(
            "another device has VNI {} on port {}; find it with `ip -d link show type vxlan`, remove it or choose \
             another VNI",
            vxlan.vni, vxlan.port
        )),
        EADDRINUSE => Some(format!(
            "another program uses UDP port {0}; find it with `ss -lunp sport = {0}`, stop it or choose another Port",
            vxlan.port
        )),
        EOPNOTSUPP => Some("this kernel has no vxlan: modprobe vxlan, or use the backend host-gw".to_owned()),
        ENODEV => {
            vxlan.lower.map(|lower| format!("interface {lower} is gone; it is tried again when it is back"))
        }
        _ => None,
    }
}
