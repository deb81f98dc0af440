//! `loden doctor` on hosts that were broken on purpose, and on healthy ones of many kinds. A fault is a line: what
//! breaks the host, and the name of the check that must come first.

use std::fs;
use std::path::Path;
use std::process::Command;

use kernel::Netns;
use serde_json::Value;
use tempfile::TempDir;

use crate::world::sh;

mod second;

/// A host: a namespace, and a directory for its files.
struct Patient {
    netns: Netns,
    root: TempDir,
}

const ENV: &str =
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
const CONF: &str = r#"{"name":"cbr0","cniVersion":"0.3.1","plugins":[{"type":"flannel","delegate":{"isDefaultGateway":true}},{"type":"portmap"}]}"#;

impl Patient {
    /// As an agent that ended in good order leaves a host of Kubernetes.
    fn healthy() -> Patient {
        let patient = Patient { netns: Netns::create().unwrap(), root: TempDir::new().unwrap() };
        for command in [
            "ip link set lo up",
            "ip link add eth0 type veth peer name wire0",
            "ip link set wire0 up",
            "ip link set eth0 up",
            "ip addr add 192.0.2.11/24 dev eth0",
            "ip route add default via 192.0.2.1",
            "ip link add flannel.1 type vxlan id 1 dev eth0 local 192.0.2.11 dstport 8472 nolearning",
            "ip link set flannel.1 mtu 1450 up",
            "ip addr add 10.244.1.0/32 dev flannel.1",
            "ip route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink",
            "ip neigh replace 10.244.2.0 lladdr 0e:00:00:00:00:02 dev flannel.1 nud permanent",
            "ip link add cni0 mtu 1450 type bridge",
            "ip link set cni0 up",
            "ip addr add 10.244.1.1/24 dev cni0",
            "sysctl -qw net.ipv4.ip_forward=1",
        ] {
            patient.sh(command);
        }
        patient.write("run/flannel/subnet.env", ENV);
        patient.write("etc/cni/net.d/10-flannel.conflist", CONF);
        for program in ["flannel", "bridge", "host-local", "portmap", "loopback"] {
            patient.write(&format!("opt/cni/bin/{program}"), "");
        }
        patient
    }

    fn sh(&self, command: &str) {
        sh(&self.netns, command);
    }

    fn nft(&self, text: &str) {
        let file = self.root.path().join("rules");
        let lines = text.replace("{ ", "{\n").replace(" }", "\n}").replace("} chain", "}\nchain");
        fs::write(&file, lines.replace("} table", "}\ntable") + "\n").unwrap();
        self.sh(&format!("nft -f {}", file.display()));
    }

    fn write(&self, path: &str, text: &str) {
        let file = self.root.path().join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    fn remove(&self, path: &str) {
        fs::remove_file(self.root.path().join(path)).unwrap();
    }

    fn doctor(&self, words: &[&str], env: &[(&str, &str)]) -> (i32, String) {
        let root = self.root.path();
        let mut command = Command::new(env!("CARGO_BIN_EXE_loden"));
        command.args(["doctor", "--root"]).arg(root).args(words).envs(env.iter().copied());
        command.env("FLANNELD_SUBNET_FILE", root.join("run/flannel/subnet.env")).env_remove("LODEN_SOCKET");
        let output = self.netns.run(|| command.output()).unwrap().unwrap();
        (output.status.code().unwrap_or(-1), String::from_utf8(output.stdout).unwrap())
    }

    /// Names of the checks that found something, but for the agent, which no patient has.
    fn found(&self, env: &[(&str, &str)]) -> Vec<String> {
        let (_, text) = self.doctor(&["-o", "json"], env);
        let json: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let names = json["findings"].as_array().unwrap().iter().map(|finding| {
            for part in ["what", "seen", "so", "fix"] {
                assert!(!finding[part].as_str().unwrap_or_default().is_empty(), "{part} of {finding}");
            }
            finding["check"].as_str().unwrap().to_owned()
        });
        names.filter(|name| name != "agent").collect()
    }

    fn certificate(&self, first: (i32, u8, u8), last: (i32, u8, u8)) -> String {
        let mut parameters = rcgen::CertificateParams::new(vec!["etcd".to_owned()]).unwrap();
        parameters.not_before = rcgen::date_time_ymd(first.0, first.1, first.2);
        parameters.not_after = rcgen::date_time_ymd(last.0, last.1, last.2);
        let key = rcgen::KeyPair::generate().unwrap();
        self.write("etc/ca.pem", &parameters.self_signed(&key).unwrap().pem());
        self.root.path().join("etc/ca.pem").display().to_string()
    }
}

type Make = fn(&Patient);
/// Name, the check that must come first, how to bring it about.
type Fault = (&'static str, &'static str, Make);
/// Name, and what is odd about it and yet well.
type Variation = (&'static str, Make);

const FIREWALLD: &str = "table inet firewalld { chain filter_FORWARD { type filter hook forward priority 10; policy accept; \
     ct state established,related accept; reject with icmpx admin-prohibited; } }";

#[rustfmt::skip]
const FAULTS: &[Fault] = &[
    ("forwarding off", "forwarding", |p| p.sh("sysctl -qw net.ipv4.ip_forward=0")),
    ("forwarding off on the uplink", "forwarding-of-device", |p| p.sh("sysctl -qw net.ipv4.conf.eth0.forwarding=0")),
    ("forwarding off on cni0", "forwarding-of-device", |p| p.sh("sysctl -qw net.ipv4.conf.cni0.forwarding=0")),
    ("no IPv6 forwarding with IPv6 pods", "forwarding", |p| p.write("run/flannel/subnet.env", &format!("{ENV}FLANNEL_IPV6_NETWORK=fd00:10:244::/48\nFLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64\n"))),
    ("IPv6 off on cni0 with IPv6 pods", "ipv6-off", |p| {
        p.write("run/flannel/subnet.env", &format!("{ENV}FLANNEL_IPV6_NETWORK=fd00:10:244::/48\nFLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64\n"));
        p.sh("sysctl -qw net.ipv6.conf.all.forwarding=1");
        p.sh("sysctl -qw net.ipv6.conf.cni0.disable_ipv6=1");
    }),
    ("strict reverse path and another default route", "reverse-path", |p| {
        p.sh("ip link add eth1 type veth peer name wire1");
        p.sh("ip link set eth1 up"); p.sh("ip link set wire1 up");
        p.sh("ip addr add 198.51.100.2/24 dev eth1");
        p.sh("ip route replace default via 198.51.100.1");
        p.sh("sysctl -qw net.ipv4.conf.eth0.rp_filter=1");
    }),
    ("no default route", "default-route", |p| p.sh("ip route del default")),
    ("the uplink is down", "uplink-down", |p| { p.sh("ip link set eth0 down"); p.sh("ip link set flannel.1 up"); }),
    ("the cable is out", "uplink-down", |p| p.sh("ip link set wire0 down")),
    ("VirtualBox's address", "same-address-everywhere", |p| {
        p.sh("ip link del flannel.1");
        p.sh("ip addr add 10.0.2.15/24 dev eth0");
        p.sh("ip link add flannel.1 type vxlan id 1 dev eth0 local 10.0.2.15 dstport 8472 nolearning");
        p.sh("ip link set flannel.1 mtu 1450 up"); p.sh("ip addr add 10.244.1.0/32 dev flannel.1");
    }),
    ("two default routes of one metric", "two-default-routes", |p| {
        p.sh("ip link add eth1 type veth peer name wire1");
        p.sh("ip link set eth1 up"); p.sh("ip link set wire1 up");
        p.sh("ip addr add 198.51.100.2/24 dev eth1");
        p.sh("ip route append default via 198.51.100.1 dev eth1");
    }),
    ("hosts inside the network of pods", "network-overlap", |p| p.sh("ip addr add 10.244.77.5/24 dev eth0")),
    ("the network of pods inside the hosts'", "network-overlap", |p| p.sh("ip addr add 10.1.2.3/8 dev eth0")),
    ("an address on two devices", "duplicate-address", |p| p.sh("ip addr add 192.0.2.11/32 dev cni0")),
    ("two peers with one MAC", "duplicate-mac", |p| p.sh("ip neigh replace 10.244.3.0 lladdr 0e:00:00:00:00:02 dev flannel.1 nud permanent")),
    ("a peer with our MAC", "duplicate-mac", |p| { p.sh("ip link set flannel.1 address 0e:00:00:00:00:02"); p.sh("ip neigh replace 10.244.2.0 lladdr 0e:00:00:00:00:02 dev flannel.1 nud permanent"); }),
    ("flannel.1 is down", "tunnel-down", |p| p.sh("ip link set flannel.1 down")),
    ("flannel.1 without an address", "tunnel-address", |p| p.sh("ip addr flush dev flannel.1")),
    ("flannel.1 with yesterday's address", "tunnel-address", |p| { p.sh("ip addr flush dev flannel.1"); p.sh("ip addr add 10.244.9.0/32 dev flannel.1"); }),
    ("the tunnel's source is gone", "tunnel-source", |p| { p.sh("ip addr add 192.0.2.12/24 dev eth0"); p.sh("ip addr del 192.0.2.11/24 dev eth0"); p.sh("ip addr replace 192.0.2.12/24 dev eth0"); p.sh("ip route replace default via 192.0.2.1"); }),
    ("a user's process on the port", "port-taken", |_| ()),
    ("the tunnel's MTU is too large", "mtu", |p| p.sh("ip link set eth0 mtu 1400")),
    ("FLANNEL_MTU is too large", "mtu", |p| p.write("run/flannel/subnet.env", &ENV.replace("1450", "1500"))),
    ("cni0 has the MTU of before", "mtu", |p| p.sh("ip link set cni0 mtu 1500")),
    ("cni0 with yesterday's address", "stale-bridge", |p| { p.sh("ip addr flush dev cni0"); p.sh("ip addr add 10.244.8.1/24 dev cni0"); }),
    ("cni0 is down", "bridge-down", |p| p.sh("ip link set cni0 down")),
    ("docker0 outside the subnet", "docker-bridge", |p| {
        p.write("run/flannel_docker_opts.env", "DOCKER_OPT_BIP=\"--bip=10.244.1.1/24\"\n");
        p.sh("ip link add docker0 type bridge"); p.sh("ip addr add 172.17.0.1/16 dev docker0");
    }),
    ("a VPN's route to pods", "foreign-route", |p| {
        p.sh("ip tuntap add dev tun9 mode tun"); p.sh("ip link set tun9 up"); p.sh("ip route add 10.244.2.0/25 dev tun9");
    }),
    ("a rule before the main table", "policy-rule", |p| { p.sh("ip route add default via 192.0.2.1 table 99"); p.sh("ip rule add from all lookup 99 priority 1000"); }),
    ("a rule for pods' addresses", "policy-rule", |p| { p.sh("ip route add 10.244.0.0/16 via 192.0.2.1 table 99"); p.sh("ip rule add to 10.244.0.0/16 lookup 99 priority 1000"); }),
    ("Calico was here", "leftovers", |p| p.sh("ip link add cali0123456789a type veth peer name far0")),
    ("Cilium was here", "leftovers", |p| p.sh("ip link add cilium_host type veth peer name cilium_net")),
    ("Weave Net was here", "leftovers", |p| p.sh("ip link add weave type bridge")),
    ("kube-router was here", "leftovers", |p| p.sh("ip link add kube-bridge type bridge")),
    ("Calico's chains are there", "leftovers", |p| p.nft("table ip filter { chain cali-FORWARD { counter accept; } }")),
    ("firewalld", "firewalld", |p| p.nft(FIREWALLD)),
    ("ufw", "ufw", |p| { p.write("etc/ufw/ufw.conf", "ENABLED=yes\n"); p.write("etc/default/ufw", "DEFAULT_FORWARD_POLICY=\"DROP\"\n"); }),
    ("Docker's FORWARD DROP", "forward-policy", |p| p.nft("table ip filter { chain DOCKER { } chain FORWARD { type filter hook forward priority 0; policy drop; iifname docker0 jump DOCKER; } }")),
    ("an administrator's forward chain", "forward-policy", |p| p.nft("table inet filter { chain forward { type filter hook forward priority 0; policy drop; ct state established accept; } }")),
    ("REJECT at the end of FORWARD", "forward-refused", |p| p.nft("table ip filter { chain FORWARD { type filter hook forward priority 0; policy accept; ct state established,related accept; reject with icmp host-prohibited; } }")),
    ("the tunnel's port is shut", "tunnel-port-closed", |p| p.nft("table inet filter { chain input { type filter hook input priority 0; policy drop; ct state established accept; tcp dport 22 accept; } }")),
    ("REJECT at the end of INPUT", "tunnel-port-closed", |p| p.nft("table ip filter { chain INPUT { type filter hook input priority 0; policy accept; tcp dport 22 accept; reject with icmp host-prohibited; } }")),
    ("NetworkManager", "network-manager", |p| p.write("run/NetworkManager/x", "")),
    ("systemd-networkd with a wildcard", "networkd", |p| { p.write("run/systemd/netif/links/2", ""); p.write("etc/systemd/network/all.network", "[Match]\nName=*\n[Network]\nDHCP=yes\n"); }),
    ("systemd-networkd and foreign routes", "networkd", |p| p.write("run/systemd/netif/links/2", "")),
    ("no subnet.env", "subnet-file", |p| p.remove("run/flannel/subnet.env")),
    ("half a subnet.env", "subnet-file", |p| p.write("run/flannel/subnet.env", "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUB")),
    ("a subnet of another network", "subnet-file-stale", |p| {
        p.write("run/flannel/subnet.env", &ENV.replace("FLANNEL_NETWORK=10.244.0.0/16", "FLANNEL_NETWORK=10.42.0.0/16"));
    }),
    ("a conflist that is no JSON", "cni-config", |p| p.write("etc/cni/net.d/10-flannel.conflist", &CONF[..40])),
    ("a conflist without plugins", "cni-config", |p| p.write("etc/cni/net.d/10-flannel.conflist", r#"{"name":"cbr0","plugins":[]}"#)),
    ("another network goes first", "cni-config-order", |p| p.write("etc/cni/net.d/05-bridge.conf", r#"{"name":"net","type":"bridge"}"#)),
    ("no portmap", "cni-programs", |p| p.remove("opt/cni/bin/portmap")),
    ("no flannel program", "cni-programs", |p| p.remove("opt/cni/bin/flannel")),
    ("no address left", "addresses-used-up", |p| (2..255).for_each(|n| p.write(&format!("var/lib/cni/networks/cbr0/10.244.1.{n}"), "x"))),
];

#[rustfmt::skip]
const HEALTHY: &[Variation] = &[
    ("as it should be", |_| ()),
    ("a second interface with an address", |p| { p.sh("ip link add eth1 type veth peer name wire1"); p.sh("ip link set eth1 up"); p.sh("ip link set wire1 up"); p.sh("ip addr add 198.51.100.2/24 dev eth1"); }),
    ("two default routes with metrics", |p| { p.sh("ip link add eth1 type veth peer name wire1"); p.sh("ip link set eth1 up"); p.sh("ip link set wire1 up"); p.sh("ip addr add 198.51.100.2/24 dev eth1"); p.sh("ip route add default via 198.51.100.1 dev eth1 metric 500"); }),
    ("strict reverse path as distributions have it", |p| { p.sh("sysctl -qw net.ipv4.conf.all.rp_filter=1"); p.sh("sysctl -qw net.ipv4.conf.eth0.rp_filter=1"); }),
    ("loose reverse path", |p| p.sh("sysctl -qw net.ipv4.conf.all.rp_filter=2")),
    ("docker on its own network", |p| { p.sh("ip link add docker0 type bridge"); p.sh("ip addr add 172.17.0.1/16 dev docker0"); }),
    ("docker in our subnet", |p| { p.write("run/flannel_docker_opts.env", "x"); p.sh("ip link add docker0 type bridge"); p.sh("ip addr add 10.244.1.129/25 dev docker0"); }),
    ("Docker's DROP and our accepts", |p| p.nft("table ip filter { chain FLANNEL-FWD { ip saddr 10.244.0.0/16 accept; ip daddr 10.244.0.0/16 accept; } chain DOCKER { } chain FORWARD { type filter hook forward priority 0; policy drop; jump FLANNEL-FWD; iifname docker0 jump DOCKER; } }")),
    ("a forward chain that knows pods", |p| p.nft("table inet filter { chain forward { type filter hook forward priority 0; policy drop; iifname \"cni0\" accept; oifname \"cni0\" accept; } }")),
    ("an input chain that knows the port", |p| p.nft("table inet filter { chain input { type filter hook input priority 0; policy drop; udp dport 8472 accept; } }")),
    ("firewalld that knows pods", |p| p.nft("table inet firewalld { chain filter_FORWARD { type filter hook forward priority 10; policy accept; ip saddr 10.244.0.0/16 accept; reject with icmpx admin-prohibited; } }")),
    ("ufw that is off", |p| { p.write("etc/ufw/ufw.conf", "ENABLED=no\n"); p.write("etc/default/ufw", "DEFAULT_FORWARD_POLICY=\"DROP\"\n"); }),
    ("ufw that passes on", |p| { p.write("etc/ufw/ufw.conf", "ENABLED=yes\n"); p.write("etc/default/ufw", "DEFAULT_FORWARD_POLICY=\"ACCEPT\"\n"); }),
    ("kube-proxy's chains", |p| p.nft("table ip nat { chain KUBE-SERVICES { ip daddr 10.96.0.1 accept; } } table ip filter { chain KUBE-FORWARD { ct state invalid drop; } chain FORWARD { type filter hook forward priority 0; policy accept; jump KUBE-FORWARD; } }")),
    ("NetworkManager that leaves us alone", |p| { p.write("run/NetworkManager/x", ""); p.write("etc/NetworkManager/conf.d/k.conf", "[keyfile]\nunmanaged-devices=interface-name:flannel*;interface-name:cni0\n"); }),
    ("systemd-networkd that leaves us alone", |p| { p.write("run/systemd/netif/links/2", ""); p.write("etc/systemd/network/eth.network", "[Match]\nName=eth0\n[Network]\nDHCP=yes\n"); p.write("etc/systemd/networkd.conf", "[Network]\nManageForeignRoutes=no\n"); }),
    ("several CNI configurations, ours first", |p| p.write("etc/cni/net.d/87-podman.conflist", r#"{"name":"podman","plugins":[{"type":"bridge"}]}"#)),
    ("Canal", |p| { p.write("etc/cni/net.d/10-flannel.conflist", r#"{"name":"k8s-pod-network","plugins":[{"type":"calico"}]}"#); p.sh("ip link add cali0123456789a type veth peer name far0"); }),
    ("pods", |p| { p.sh("ip link add veth0 mtu 1450 type veth peer name pod0 mtu 1450"); p.sh("ip link set veth0 master cni0 up"); p.sh("ip link set pod0 up"); for n in 2..30 { p.write(&format!("var/lib/cni/networks/cbr0/10.244.1.{n}"), "x"); } }),
    ("a jumbo uplink", |p| { p.sh("ip link set eth0 mtu 9000"); }),
    ("another vxlan network on the port", |p| { p.sh("ip link add other type vxlan id 42 dev eth0 dstport 8472 nolearning"); }),
    ("a policy rule about something else", |p| p.sh("ip rule add from 198.51.100.0/24 lookup 99 priority 1000")),
    ("a static route elsewhere", |p| p.sh("ip route add 10.99.0.0/16 via 192.0.2.1")),
    ("rules with comments", |p| p.nft("table ip filter { chain FORWARD { type filter hook forward priority 0; policy accept; ip saddr 203.0.113.9 counter drop comment \"bad guy\"; } }")),
    ("no CNI at all, as under Docker", |p| { p.remove("etc/cni/net.d/10-flannel.conflist"); p.sh("ip link del cni0"); }),
    ("an IPv6 address beside", |p| p.sh("ip addr add 2001:db8::11/64 dev eth0 nodad")),
];

/// The gate: the right finding first in 95 of 100.
fn judge(faults: &[Fault], least: usize, look: impl Fn(&Patient, &str) -> Vec<String>) {
    let (mut right, mut wrong) = (0, Vec::new());
    for (name, check, fault) in faults {
        let patient = Patient::healthy();
        fault(&patient);
        let found = look(&patient, check);
        match found.first() {
            Some(first) if first == check => right += 1,
            _ => wrong.push(format!("{name}: {check} expected, found {found:?}")),
        }
    }
    let wrong = wrong.join("\n");
    println!("{right} of {} faults have the right finding first\n{wrong}", faults.len());
    assert!(faults.len() >= least);
    assert!(right * 100 >= faults.len() * 95, "{right} of {}:\n{wrong}", faults.len());
}

/// The gate: no alarm.
fn all_are_well(variations: &[Variation], least: usize) {
    let mut alarms = Vec::new();
    for (name, variation) in variations {
        let patient = Patient::healthy();
        variation(&patient);
        let found = patient.found(&[]);
        if !found.is_empty() {
            alarms.push(format!("{name}: {found:?}"));
        }
    }
    println!(
        "{} of {} healthy hosts without a false alarm",
        variations.len() - alarms.len(),
        variations.len()
    );
    assert!(variations.len() >= least);
    assert!(alarms.is_empty(), "{}", alarms.join("\n"));
}

#[test]
fn the_right_finding_comes_first() {
    judge(FAULTS, 40, |patient, check| {
        if check == "port-taken" {
            let socket = patient.netns.run(|| std::net::UdpSocket::bind("127.0.0.1:4789")).unwrap().unwrap();
            patient.sh("ip link del flannel.1");
            patient.sh(
                "ip link add flannel.1 type vxlan id 1 dev eth0 local 192.0.2.11 dstport 4789 nolearning",
            );
            patient.sh("ip link set flannel.1 mtu 1450");
            let found = patient.found(&[]);
            drop(socket);
            // It cannot come up, which is what is seen of it, and why.
            found.into_iter().filter(|name| name != "tunnel-down").collect()
        } else {
            patient.found(&[])
        }
    });
}

#[test]
fn health_raises_no_alarm() {
    all_are_well(HEALTHY, 20);
}

#[test]
fn certificates_are_looked_at() {
    for (first, last, found) in [
        ((2020, 1, 1), (2021, 1, 1), vec!["certificate"]),
        ((2090, 1, 1), (2091, 1, 1), vec!["certificate"]),
        ((2020, 1, 1), (2091, 1, 1), vec![]),
    ] {
        let patient = Patient::healthy();
        let file = patient.certificate(first, last);
        assert_eq!(patient.found(&[("FLANNELD_ETCD_CAFILE", &file)]), found, "{first:?} to {last:?}");
    }
}

#[test]
fn conflicting_tunnels_are_told() {
    // The kernel itself refuses the same VNI and port on one interface; on another one it does not.
    let patient = Patient::healthy();
    patient.sh("ip link add eth1 type veth peer name wire1");
    let other = "ip link add vxlan7 type vxlan id 1 dev eth1 local 198.51.100.2 dstport 8472 nolearning";
    let words: Vec<&str> = other.split(' ').collect();
    let made = patient.netns.run(|| Command::new(words[0]).args(&words[1..]).status()).unwrap().unwrap();
    if !made.success() {
        println!("SKIP conflicting_tunnels_are_told: this kernel refuses a second device of a VNI and port");
        return;
    }
    assert_eq!(patient.found(&[]).first().map(String::as_str), Some("conflicting-vxlan"));
}

#[test]
fn parameters_are_mended_on_request() {
    let patient = Patient::healthy();
    patient.sh("sysctl -qw net.ipv4.ip_forward=0");
    let (code, text) = patient.doctor(&[], &[]);
    assert_eq!(code, 1);
    for part in [
        "✗ IPv4 forwarding is off  [forwarding]",
        "    seen  net.ipv4.ip_forward = 0",
        "    do    sysctl -w net.ipv4.ip_forward=1",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains('\x1b'), "no colours in a pipe");
    patient.doctor(&["--fix"], &[]);
    assert_eq!(patient.found(&[]), Vec::<String>::new());
    for (words, want) in [(&["--help"][..], 0), (&["--nonsense"], 2), (&["-o", "yaml"], 2), (&["-o"], 2)] {
        assert_eq!(patient.doctor(words, &[]).0, want, "{words:?}");
    }
    assert!(Path::new(&patient.root.path().join("opt/cni/bin/flannel")).exists(), "files are left alone");
}
