//! Decoders of texts: stores, files and what a runtime hands a plugin.

use std::collections::BTreeSet;

use crate::{archive, kube};
use model::claims;
use model::cni::members::Members;
use model::cni::version::Version;
use model::cni::{self, CniResult};
use model::codec::annotation::{Annotations, Item, Names, pod_cidrs};
use model::codec::last_good::LastGood;
use model::codec::{etcd_key, lease_json, subnet_env, vtep, wg_uapi, wireguard};
use model::{IpNet, Json, Lease, NetConf, Peers, Subnets};

/// `Name: value` lines and the like begin after the first line.
fn halves(text: &str) -> (&str, &str) {
    text.split_once('\n').unwrap_or((text, ""))
}

pub fn net_conf(bytes: &[u8]) {
    if let Ok(conf) = NetConf::parse(bytes) {
        // What is understood is of use: it has families, and its text can be written.
        let _ = (conf.families().count(), format!("{conf:?}"));
    }
}

/// Key in the first line, value behind it. What such a lease may claim is checked as the agent does.
pub fn lease_json(bytes: &[u8]) {
    let cut = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    let (key, value) = (String::from_utf8_lossy(&bytes[..cut]), &bytes[cut.min(bytes.len())..]);
    let Ok(attrs) = lease_json::read(value) else { return };
    let again = lease_json::read(lease_json::write(&attrs).as_bytes());
    assert_eq!(again.as_ref().ok(), Some(&attrs), "what was written is read as it was");
    for data in [&attrs.backend_data, &attrs.backend_v6_data].into_iter().flatten() {
        let _ = (vtep::read(data).is_ok(), wireguard::read(data).is_ok());
    }
    let Some(subnets) = etcd_key::read(&key) else { return };
    claimed(Lease { subnets, attrs });
}

/// A claim of anybody's is refused or lies in the cluster's network beside ours.
fn claimed(lease: Lease) {
    let text = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10::/48"}"#;
    let Ok(conf) = NetConf::parse(text) else { return };
    let (Ok(IpNet::V4(v4)), Ok(IpNet::V6(v6))) =
        ("10.244.1.0/24".parse::<IpNet>(), "fd00:10:0:1::/64".parse::<IpNet>())
    else {
        return;
    };
    let own = Lease { subnets: Subnets { v4: Some(v4), v6: Some(v6) }, attrs: lease.attrs.clone() };
    let mut peers = Peers::default();
    peers.reset([lease]);
    let verdict = claims::check(&conf, &own, &BTreeSet::new(), &peers);
    let (Some(network), Some(network6)) = (conf.network, conf.ipv6_network) else { return };
    for net in verdict.accepted.iter().flat_map(|lease| lease.subnets.nets()) {
        let inside = match net {
            IpNet::V4(net) => network.contains(&net) && !net.contains(&v4) && !v4.contains(&net),
            IpNet::V6(net) => network6.contains(&net) && !net.contains(&v6) && !v6.contains(&net),
        };
        assert!(inside, "{net} was let through");
    }
}

pub fn etcd_key(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(subnets) = etcd_key::read(&text) {
        let again = etcd_key::read(&etcd_key::write(&subnets));
        assert_eq!(again, Some(subnets), "what was written is read as it was");
    }
}

/// A line is a number of an annotation and its value; other lines are pod CIDRs.
pub fn annotations(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (prefix, rest) = halves(&text);
    let _ = Names::new(prefix).is_ok();
    let Ok(names) = Names::new("flannel.alpha.coreos.com") else { return };
    let (mut all, mut cidrs) = (Annotations::default(), Vec::new());
    for line in rest.lines() {
        match line.split_once(' ').and_then(|(n, value)| Some((n.parse::<usize>().ok()?, value))) {
            Some((n, value)) => all.set(Item::ALL[n % Item::ALL.len()], value),
            None => cidrs.push(line),
        }
    }
    let (attrs, _) = all.read(&names, None);
    let _ = all.read(&names, Some(&attrs));
    let _ = all.changes(&names, &attrs);
    if let Ok(subnets) = pod_cidrs(&cidrs, None) {
        claimed(Lease { subnets, attrs });
    }
}

pub fn kube_json(bytes: &[u8]) {
    kube::scan(bytes);
    let _ = Json::parse(bytes).map(|json| json.to_indented_sorted());
}

pub fn subnet_env(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = subnet_env::read_previous(&text);
    let _ = subnet_env::variables(&text);
    let _ = subnet_env::read_for_pods("/run/flannel/subnet.env", &text).is_ok();
    let _ = cni::flannel::SubnetEnv::parse(&text, "/run/flannel/subnet.env").is_ok();
}

/// The document of a plugin, as every plugin reads it; `CNI_ARGS` is the first line.
pub fn cni_stdin(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (args, document) = halves(&text);
    let _ = cni::args::Args::parse(args, &["IgnoreUnknown", "MAC", "IP"]).is_ok();
    let _ = args.parse::<Version>().is_ok();
    let _ = cni::error::Error::parse(&text);
    let _ = cni::cache::CacheEntry::parse(bytes).is_ok();
    let _ = cni::record::PodName::from_args(args);
    let _ = cni::record::Record::parse(document);
    if let Ok(list) = cni::conflist::NetworkList::parse(document.as_bytes()) {
        let _ = list.version().is_ok();
    }
    let Ok(json) = Json::parse(document.as_bytes()) else { return };
    let _ = CniResult::parse(&json, "1.0.0").is_ok();
    let Ok(doc) = Members::of(&json, "document") else { return };
    let version = Version(1, 0, 0);
    let _ = cni::bandwidth::Bandwidth::parse(&doc).is_ok();
    let _ = cni::bridge::BridgeConf::parse(&doc, args).is_ok();
    let _ = cni::dhcp::DhcpConf::parse(&doc, args).is_ok();
    let _ = cni::firewall::FirewallConf::parse(&doc).is_ok();
    let _ = cni::flannel::Flannel::parse(&doc).is_ok();
    let _ = cni::host_device::HostDeviceConf::parse(&doc).is_ok();
    let _ = cni::host_local::HostLocal::parse(&doc, args, version).is_ok();
    let _ = cni::portmap::PortMap::parse(&doc).is_ok();
    let _ = cni::ptp::PtpConf::parse(&doc).is_ok();
    let _ = cni::sbr::Sbr::parse(&doc).is_ok();
    let _ = cni::static_ipam::StaticIpam::parse(&doc, args, version).is_ok();
    let _ = cni::tap::TapConf::parse(&doc, args).is_ok();
    let _ = cni::tuning::Tuning::parse(&doc, args).is_ok();
    let _ = cni::veth_to_host::VethToHostConf::parse(&doc, args).is_ok();
    let _ = cni::vrf::VrfConf::parse(&doc).is_ok();
    let _ = cni::child::ChildConf::macvlan(&doc, args).is_ok();
    let _ = cni::child::ChildConf::ipvlan(&doc).is_ok();
    let _ = cni::child::ChildConf::vlan(&doc).is_ok();
}

/// As they are, and as lines whose checksum is right: a disk that errs is one thing, an older agent another.
pub fn last_good(bytes: &[u8]) {
    let _ = LastGood::decode(bytes).is_ok();
    let sealed = LastGood::seal(&String::from_utf8_lossy(bytes));
    if let Ok(state) = LastGood::decode(sealed.as_bytes()) {
        let again = LastGood::decode(state.encode().as_bytes());
        assert!(
            again.is_ok_and(|again| again.encode() == state.encode()),
            "what was written is read as it was"
        );
    }
}

pub fn iptables_save(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let saved = cni::iptables::Saved::parse(&text);
    let _ = (saved.has("FLANNEL-POSTRTG"), saved.leading_to("CNI-HOSTPORT-DNAT").count());
}

/// What is said to tunnels in user space, both kinds.
pub fn tunnel_control(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = wg_uapi::Request::parse(&text).is_ok();
    let _ = wg_uapi::Shown::parse(&text).is_ok();
    let _ = wg_uapi::errno(&text);
    let _ = tunnel::control::Request::parse(&text).is_ok();
    let _ = tunnel::control::Shown::parse(&text).is_ok();
}

/// What `loden status --from` is given. Sums of headers are put right as well, or hardly a changed one would be looked into.
pub fn dump_archive(bytes: &[u8]) {
    let mut summed = bytes.to_vec();
    for block in summed.as_chunks_mut::<512>().0 {
        if block.iter().any(|byte| *byte != 0) {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    for bytes in [bytes, &summed] {
        let Ok(entries) = archive::read(bytes) else { continue };
        let contents = |entries: Vec<archive::Entry>| entries.into_iter().map(|entry| entry.bytes);
        let again = archive::read(&archive::write(&entries, 0)).unwrap_or_default();
        assert!(contents(again).eq(contents(entries.clone())), "what was read is written and read as it was");
        for entry in &entries {
            let _ = Json::parse(&entry.bytes).is_ok();
        }
    }
}
