//! What a plugin call reads and writes, and which address a pod gets.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;
use model::Json;
use model::cni::bridge::BridgeConf;
use model::cni::conflist::NetworkList;
use model::cni::flannel::{Flannel, SubnetEnv};
use model::cni::host_local::HostLocal;
use model::cni::iptables::{HostPorts, Masquerade, Saved};
use model::cni::portmap::PortMap;
use model::cni::{CniResult, Interface, IpConfig, Members, PodName, Record, RouteConfig, Version};

use crate::{Row, Work};

pub const ROWS: &[Row] = &[
    Row { what: "cni/conflist/read", sizes: &[1], gives: |_| 3, make: list_read },
    // What each plugin of the list is handed.
    Row { what: "cni/conflist/documents", sizes: &[1], gives: |_| 3, make: documents },
    Row { what: "cni/flannel/delegate", sizes: &[1], gives: |n| n, make: delegated },
    Row { what: "cni/bridge/read", sizes: &[1], gives: |n| n, make: bridge_read },
    Row { what: "cni/host-local/read", sizes: &[1], gives: |n| n, make: host_local_read },
    // The order of addresses alone: whether one is free is asked of the disk.
    Row { what: "cni/host-local/next", sizes: &[250], gives: |_| 1, make: |n| found("10.244.1.0/24", n) },
    Row {
        what: "cni/host-local/last-free",
        sizes: &[65_000],
        gives: |_| 1,
        make: |n| found("10.244.0.0/16", n),
    },
    Row { what: "cni/result/read", sizes: &[1], gives: |n| n, make: result_read },
    Row { what: "cni/result/write", sizes: &[1], gives: |n| n, make: result_written },
    Row { what: "cni/record/read", sizes: &[250], gives: |n| n, make: records_read },
    Row { what: "cni/record/write", sizes: &[250], gives: |n| n, make: records_written },
    // A host with so many pods, each masqueraded and with a port.
    Row { what: "cni/iptables/read", sizes: &[250, 1_000], gives: |_| 1, make: saved_read },
    Row { what: "cni/iptables/add", sizes: &[250, 1_000], gives: |_| 9, make: pod_added },
    Row { what: "cni/iptables/delete", sizes: &[250, 1_000], gives: |_| 6, make: pod_deleted },
    // All containers are gone.
    Row { what: "cni/iptables/collect", sizes: &[250, 1_000], gives: |n| n * 6, make: collected },
];

const LIST: &str = r#"{
    "name": "cbr0", "cniVersion": "1.0.0",
    "plugins": [
        {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true, "ipMasq": false}},
        {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
        {"type": "bandwidth", "capabilities": {"bandwidth": true}}
    ]
}"#;

const DELEGATE: &str = r#"{
    "cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "bridge": "cni0", "mtu": 1450, "hairpinMode": true,
    "isDefaultGateway": true, "isGateway": true, "ipMasq": false,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:10:244:1::/64"}]],
             "routes": [{"dst": "10.244.0.0/16"}, {"dst": "fd00:10:244::/48"}]}
}"#;

const ENV: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fd00:10:244::/48\n\
    FLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

const PORTS: &str =
    r#"{"runtimeConfig": {"portMappings": [{"hostPort": 31000, "containerPort": 80, "protocol": "tcp"}]}}"#;

const ARGS: &str =
    "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=till-7d9c5b6f4-x2x8v;K8S_POD_UID=c0ffee";

const NETWORK: &str = "cbr0";

fn json(text: &str) -> Json {
    text.parse().expect("JSON in a constant")
}

fn list_read(_: usize) -> Work {
    Box::new(|| NetworkList::parse(LIST.as_bytes()).map_or(0, |list| list.plugins.len()))
}

fn documents(_: usize) -> Work {
    let list = NetworkList::parse(LIST.as_bytes()).expect("a list in a constant");
    let (result, values) = (json(&result().to_json("1.0.0").expect("a version that is known")), json(PORTS));
    let values = values.get("runtimeConfig").cloned().unwrap_or_default();
    Box::new(move || {
        let document = |plugin| list.document(plugin, Some(&result), &values, &[]).to_compact();
        list.plugins.iter().map(document).filter(|text| text.contains("prevResult")).count()
    })
}

fn delegated(_: usize) -> Work {
    let list = NetworkList::parse(LIST.as_bytes()).expect("a list in a constant");
    Box::new(move || {
        let composed = || {
            let env = SubnetEnv::parse(ENV, "subnet.env")?;
            let flannel = Flannel::parse(&Members::of(&list.plugins[0], "NetConf")?)?;
            flannel.compose(&env, NETWORK, "1.0.0").map(|json| json.to_compact())
        };
        composed().is_ok().into()
    })
}

fn bridge_read(_: usize) -> Work {
    Box::new(|| {
        let read = || {
            let document = Json::parse(DELEGATE.as_bytes()).map_err(|error| error.to_string())?;
            BridgeConf::parse(&Members::of(&document, "NetConf")?, ARGS)
        };
        read().is_ok().into()
    })
}

fn host_local(document: &Json) -> Result<HostLocal, String> {
    HostLocal::parse(&Members::of(document, "NetConf")?, ARGS, Version(1, 0, 0))
}

fn host_local_read(_: usize) -> Work {
    let document = json(DELEGATE);
    Box::new(move || host_local(&document).is_ok_and(|conf| conf.sets.len() == 2).into())
}

/// A free address, where so many are taken behind the one that was given last.
fn found(subnet: &str, size: usize) -> Work {
    let conf = host_local(&json(&format!(r#"{{"ipam": {{"subnet": "{subnet}"}}}}"#)));
    let set = conf.map(|conf| conf.sets).unwrap_or_default().remove(0);
    let taken: HashSet<IpAddr> = set.candidates(None).take(size).map(|(ip, _)| ip).collect();
    let last = set.candidates(None).next().map(|(ip, _)| ip);
    Box::new(move || set.candidates(last).find(|(ip, _)| !taken.contains(ip)).is_some().into())
}

fn net(n: usize) -> IpNet {
    format!("10.244.{}.{}/16", n >> 8, n & 255).parse().expect("an address")
}

fn result() -> CniResult {
    let interface = |name: &str, sandbox: &str| Interface {
        name: name.to_owned(),
        mac: "0a:58:0a:f4:01:05".to_owned(),
        sandbox: sandbox.to_owned(),
        ..Interface::default()
    };
    let gateway = Some(IpAddr::from([10, 244, 1, 1]));
    let default = "0.0.0.0/0".parse().expect("a network");
    CniResult {
        interfaces: vec![
            interface("cni0", ""),
            interface("veth1a2b3c4d", ""),
            interface("eth0", "/run/netns/cni-0c2b3f8e-8f14-4b5c-9d21-5a8a1be7d0a1"),
        ],
        ips: vec![IpConfig { interface: Some(2), address: net(261), gateway }],
        routes: vec![RouteConfig::new(net(0).trunc(), None), RouteConfig::new(default, gateway)],
        ..CniResult::default()
    }
}

fn result_read(_: usize) -> Work {
    let text = result().to_json("1.0.0").expect("a version that is known");
    Box::new(move || {
        let read = Json::parse(text.as_bytes()).map(|json| CniResult::parse(&json, "1.0.0"));
        read.is_ok_and(|result| result.is_ok_and(|result| result.interfaces.len() == 3)).into()
    })
}

fn result_written(_: usize) -> Work {
    let result = result();
    Box::new(move || result.to_json("1.0.0").is_ok().into())
}

fn container(n: usize) -> String {
    format!("{:016x}", (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)).repeat(4)
}

fn record(n: usize) -> Record {
    Record {
        plugin: "bridge".to_owned(),
        container_id: container(n),
        ifname: "eth0".to_owned(),
        netns: "/run/netns/cni-0c2b3f8e-8f14-4b5c-9d21-5a8a1be7d0a1".to_owned(),
        host_interface: format!("veth{n:08x}"),
        addresses: vec![net(n)],
        masquerade: None,
        pod: PodName::from_args(ARGS),
        is_complete: true,
    }
}

fn records_read(size: usize) -> Work {
    let texts: Vec<String> = (0..size).map(|n| record(n).text()).collect();
    Box::new(move || texts.iter().filter(|text| Record::parse(text).is_some()).count())
}

fn records_written(size: usize) -> Work {
    let records: Vec<Record> = (0..size).map(record).collect();
    Box::new(move || records.iter().filter(|record| record.text().len() > 200).count())
}

/// The chains and the pod of container `n`.
struct Pod {
    masquerade: String,
    ports: String,
    id: String,
    net: IpNet,
}

impl Pod {
    fn new(n: usize) -> Pod {
        let id = container(n);
        let hash = &id[..24];
        Pod { masquerade: format!("CNI-{hash}"), ports: format!("CNI-DN-{hash}"), net: net(n), id }
    }

    fn masquerade(&self) -> Masquerade<'_> {
        Masquerade { chain: &self.masquerade, network: NETWORK, container_id: &self.id }
    }

    fn ports(&self) -> HostPorts<'_> {
        HostPorts { chain: &self.ports, old_chain: "CNI-SN-0", network: NETWORK, container_id: &self.id }
    }

    fn lines(&self, saved: &Saved, conf: &PortMap) -> Vec<String> {
        let mut lines = self.masquerade().add(saved, &[self.net]);
        lines.extend(self.ports().open(saved, conf, self.net));
        lines
    }
}

fn ports() -> PortMap {
    let document = json(PORTS);
    let members = Members::of(&document, "NetConf").expect("an object");
    PortMap::parse(&members).expect("ports in a constant")
}

/// The table of a host with so many pods.
fn saved(size: usize) -> String {
    let (nothing, conf) = (Saved::default(), ports());
    let mut text =
        String::from(":PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n");
    let mut rules = Vec::new();
    for n in 0..size {
        for line in Pod::new(n).lines(&nothing, &conf) {
            match line.strip_prefix("-N ") {
                Some(chain) if n == 0 || !chain.starts_with("CNI-HOSTPORT") => {
                    let _ = writeln!(text, ":{chain} - [0:0]");
                }
                Some(_) => {}
                // What all pods share is there once.
                None if n == 0 || line.contains(&container(n)[..24]) => rules.push(line),
                None => {}
            }
        }
    }
    // What goes to the head of a chain is printed as what is in it.
    text + &rules.join("\n").replace("-I ", "-A ") + "\n"
}

fn saved_read(size: usize) -> Work {
    let (text, chain) = (saved(size), Pod::new(size - 1).ports);
    Box::new(move || Saved::parse(&text).leading_to(&chain).count())
}

fn pod_added(size: usize) -> Work {
    let (saved, pod, conf) = (Saved::parse(&saved(size)), Pod::new(size), ports());
    Box::new(move || pod.lines(&saved, &conf).len())
}

fn pod_deleted(size: usize) -> Work {
    let (saved, pod) = (Saved::parse(&saved(size)), Pod::new(size / 2));
    Box::new(move || pod.masquerade().remove(&saved).len() + pod.ports().close(&saved).len())
}

fn collected(size: usize) -> Work {
    let saved = Saved::parse(&saved(size));
    Box::new(move || {
        let nobody = |_: &str| false;
        let masquerades = Masquerade::keep_only(&saved, NETWORK, &nobody);
        masquerades.len() + HostPorts::keep_only(&saved, NETWORK, &nobody).len()
    })
}
