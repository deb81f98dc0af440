//! The tutorials the project began from, with a real etcd: command lines, keys and outputs as their
//! authors wrote them.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};

use crate::world::{Etcd, Host, World, has_etcd, until};

/// `ca.pem`, `server.pem`, `client.pem` and keys, as cfssl would have made them.
pub fn certificates(dir: &Path, server: IpAddr) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(DnType::CommonName, "test authority");
    let ca_cert = ca.self_signed(&ca_key).unwrap();
    fs::write(dir.join("ca.pem"), ca_cert.pem()).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    for name in ["server", "client"] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names.push(SanType::IpAddress(server));
        let cert = params.signed_by(&key, &issuer).unwrap();
        fs::write(dir.join(format!("{name}.pem")), cert.pem()).unwrap();
        fs::write(dir.join(format!("{name}-key.pem")), key.serialize_pem()).unwrap();
    }
}

/// Debian's etcdctl inside a host.
fn etcdctl(host: &Host, etcd: &[&str], words: &[&str]) -> String {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3").args(etcd).args(words);
    let output = host.netns.run(|| command.output()).unwrap().unwrap();
    assert!(output.status.success(), "etcdctl {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn first_tutorial_two_hosts_host_gw_and_etcd_with_certificates() {
    if !has_etcd("first_tutorial") {
        return;
    }
    let world = World::new(2);
    let (one, two) = (&world.hosts[0], &world.hosts[1]);
    let certs = world.dir.path().join("cert");
    fs::create_dir(&certs).unwrap();
    certificates(&certs, "192.0.2.11".parse().unwrap());
    let _etcd = Etcd::on(one, "192.0.2.11", Some(&certs));
    let file = |name: &str| certs.join(name).display().to_string();
    let (ca, cert, key) = (file("ca.pem"), file("client.pem"), file("client-key.pem"));
    let access = ["--endpoints=https://192.0.2.11:2379", "--cacert", &ca, "--cert", &cert, "--key", &key];
    let config = r#"{"Network": "172.7.0.0/16", "Backend": {"Type": "host-gw"}}"#;
    etcdctl(one, &access, &["put", "/coreos.com/network/config", config]);

    let mut agents = Vec::new();
    for (host, third) in [(one, 21), (two, 22)] {
        // Both have the file of an earlier installation, so that the subnets are the hosts' numbers.
        let previous = format!(
            "FLANNEL_NETWORK=172.7.0.0/16\nFLANNEL_SUBNET=172.7.{third}.1/24\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=false\n"
        );
        fs::write(host.subnet_file(), previous).unwrap();
        let flags = [
            format!("--public-ip={}", host.public()),
            // Two of the three members are not there.
            "--etcd-endpoints=https://192.0.2.11:2379,https://192.0.2.11:2479,https://192.0.2.12:2379"
                .to_owned(),
            format!("--etcd-keyfile={key}"),
            format!("--etcd-certfile={cert}"),
            format!("--etcd-cafile={ca}"),
            "--iface=eth0".to_owned(),
            "--healthz-port=2401".to_owned(),
        ];
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        agents.push(host.agent_in(&flags, &[]));
    }
    for agent in &agents {
        agent.ready();
    }
    for (host, peer, subnet) in [(one, two, "172.7.22.0/24"), (two, one, "172.7.21.0/24")] {
        assert!(host.env("FLANNEL_SUBNET").starts_with("172.7.2"), "{}", host.env("FLANNEL_SUBNET"));
        let want = format!("{subnet} via {} dev eth0 proto 76", peer.public());
        until("the peer's route", || {
            let routes = host.sh("ip route show");
            if routes.lines().any(|l| l.trim() == want) { Ok(()) } else { Err(routes) }
        });
        assert_eq!(http(host, "127.0.0.1:2401", "/healthz"), (200, "flanneld is running".to_owned()));
        assert_eq!(http(host, "127.0.0.1:2401", "/readyz"), (200, "flanneld is ready".to_owned()));
    }
    // A web page fetched by a pod of the one from a pod of the other: the log shows the pod's address.
    one.sh("ip addr add 172.7.21.2/32 dev lo");
    two.sh("ip addr add 172.7.22.2/32 dev lo");
    one.sh("ip route replace 172.7.22.0/24 via 192.0.2.12 dev eth0 src 172.7.21.2 proto 76");
    until("pod to pod with its own address", || {
        let from = one.greet(two, "172.7.22.2".parse().unwrap())?;
        if from == "172.7.21.2".parse::<IpAddr>().unwrap() { Ok(()) } else { Err(from.to_string()) }
    });
    let lease =
        etcdctl(one, &access, &["get", "--print-value-only", "/coreos.com/network/subnets/172.7.22.0-24"]);
    assert_eq!(lease.trim(), r#"{"PublicIP":"192.0.2.12","PublicIPv6":null,"BackendType":"host-gw"}"#);
}

fn http(host: &Host, address: &str, path: &str) -> (u16, String) {
    use std::io::{Read as _, Write as _};
    let mut stream = host.netns.run(|| std::net::TcpStream::connect(address)).unwrap().unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: x\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    (status, text.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned())
}

#[test]
fn third_and_fifth_tutorial_vxlan_under_a_prefix() {
    if !has_etcd("third_and_fifth_tutorial") {
        return;
    }
    for (network, config) in [
        ("10.244.0.0/16", r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#),
        ("172.30.0.0/16", r#"{"Network":"172.30.0.0/16","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#),
    ] {
        let world = World::new(2);
        let (one, two) = (&world.hosts[0], &world.hosts[1]);
        let _etcd = Etcd::on(one, "192.0.2.11", None);
        let access = ["--endpoints=http://192.0.2.11:2379"];
        etcdctl(one, &access, &["put", "/kube-centos/network/config", config]);
        // As in /etc/sysconfig/flanneld: everything by environment.
        let env = [
            ("FLANNELD_ETCD_ENDPOINTS", "http://192.0.2.11:2379"),
            ("FLANNELD_ETCD_PREFIX", "/kube-centos/network"),
        ];
        let agents = [one.agent_in(&[], &env), two.agent_in(&[], &env)];
        for agent in &agents {
            agent.ready();
        }
        let keys =
            etcdctl(one, &access, &["get", "--prefix", "--keys-only", "/kube-centos/network/subnets/"]);
        for host in [one, two] {
            let subnet = host.subnet("FLANNEL_SUBNET");
            assert_eq!(subnet.prefix_len(), 24);
            assert!(network.parse::<ipnet::IpNet>().unwrap().contains(&subnet));
            let key = format!("/kube-centos/network/subnets/{}-24", subnet.network());
            assert!(keys.lines().any(|l| l == key), "{key} in {keys}");
            assert_eq!(host.env("FLANNEL_MTU"), "1450");
            assert_eq!(host.env("FLANNEL_NETWORK"), network);
            let mac = host.json("ip -j link show flannel.1")[0]["address"].as_str().unwrap().to_owned();
            let value = etcdctl(one, &access, &["get", "--print-value-only", &key]);
            let want = format!(
                r#"{{"PublicIP":"{}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#,
                host.public()
            );
            assert_eq!(value.trim(), want);
        }
        until("the tunnel", || one.greet(two, two.subnet("FLANNEL_SUBNET").network()));
    }
}

#[test]
fn a_store_outage_stops_nothing_and_ends_by_itself() {
    if !has_etcd("a_store_outage") {
        return;
    }
    let world = World::new(2);
    let (one, two) = (&world.hosts[0], &world.hosts[1]);
    let etcd = Etcd::on(one, "192.0.2.11", None);
    let config = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
    etcdctl(one, &["--endpoints=http://192.0.2.11:2379"], &["put", "/coreos.com/network/config", config]);
    let flags = ["--etcd-endpoints=http://192.0.2.11:2379"];
    let mut agents = [one.agent_in(&flags, &[]), two.agent_in(&flags, &[])];
    for agent in &agents {
        agent.ready();
    }
    let address = two.subnet("FLANNEL_SUBNET").network();
    until("the tunnel", || one.greet(two, address));
    drop(etcd);
    agents[0].says("watch leases in etcd at ");
    // Repairs go on without the store.
    one.sh("ip route flush proto 76");
    until("the tunnel without a store", || one.greet(two, address));
    assert!(agents.iter_mut().all(crate::world::Agent::alive));
}
