//! `portmap`: what it refuses, and packets through its rules.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use crate::harness::{Host, Pod, ip_in, pod, run_in, with};
use kernel::Netns;
use model::gojson::Json;

const WAIT: Duration = Duration::from_secs(5);

/// A pod on a bridge; gives its result.
fn attach(host: &Host, pod: &Pod) -> Json {
    let dir = host.path("networks");
    let conf = format!(
        r#"{{"cniVersion": "1.1.0", "name": "net", "type": "bridge", "isDefaultGateway": true, "hairpinMode": true,
            "ipam": {{"type": "host-local", "dataDir": "{dir}",
                      "ranges": [[{{"subnet": "10.9.1.0/24"}}], [{{"subnet": "2001:db8:9::/64"}}]]}}}}"#
    );
    host.call("bridge", "ADD", pod, &conf).expect("bridge")
}

fn conf(members: &str, ports: &str) -> String {
    format!(
        r#"{{"cniVersion": "1.1.0", "name": "net", "type": "portmap"{members},
            "runtimeConfig": {{"portMappings": [{ports}]}}}}"#
    )
}

const TCP: &str = r#"{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}"#;
const UDP: &str = r#"{"hostPort": 5353, "containerPort": 53, "protocol": "UDP"}"#;

/// A TCP server that tells each client its address.
fn serve(netns: &Netns, address: &str) -> std::thread::JoinHandle<()> {
    let address: SocketAddr = address.parse().unwrap();
    let listener = netns.run(|| TcpListener::bind(address)).unwrap().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let peer = stream.peer_addr().map(|a| a.ip().to_string()).unwrap_or_default();
            if stream.write_all(peer.as_bytes()).is_err() || peer == "stop" {
                return;
            }
        }
    })
}

/// What the server says, asked from a namespace.
fn ask(netns: &Netns, address: &str) -> std::io::Result<String> {
    let address: SocketAddr = address.parse().unwrap();
    netns
        .run(move || {
            let mut stream = TcpStream::connect_timeout(&address, WAIT)?;
            stream.set_read_timeout(Some(WAIT))?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })
        .unwrap()
}

/// A client on a wire of its own, 192.0.2.0/24 and 2001:db8:2::/64, host at .1 and ::1.
fn client(host: &Host) -> Netns {
    let client = Netns::create().unwrap();
    let path = client.path();
    host.ip(&format!("link add wire type veth peer name eth0 netns {}", path.display()));
    for (netns, device, last) in [(&host.netns, "wire", 1), (&client, "eth0", 2)] {
        ip_in(netns, &format!("addr add 192.0.2.{last}/24 dev {device}"));
        ip_in(netns, &format!("addr add 2001:db8:2::{last}/64 dev {device} nodad"));
        ip_in(netns, &format!("link set {device} up"));
    }
    ip_in(&client, "link set lo up");
    client
}

#[test]
fn ports_lead_into_the_pod() {
    let host = Host::new();
    let client = client(&host);
    let (netns, pod) = pod("c1");
    ip_in(&netns, "link set lo up");
    let told = |conf: &str, result: &Json| with(conf, "prevResult", result.clone());
    let result = attach(&host, &pod);
    let conf = conf("", TCP);
    let out = host.call("portmap", "ADD", &pod, &told(&conf, &result)).expect("ADD");
    assert_eq!(out, result, "the result is handed on");
    serve(&netns, "[::]:80");
    for (from, to, seen) in [
        (&client, "192.0.2.1:8080", "::ffff:192.0.2.2"),
        (&client, "[2001:db8:2::1]:8080", "2001:db8:2::2"),
        // A program of the host, by its own address and by 127.0.0.1 (masqueraded to the bridge's).
        (&host.netns, "192.0.2.1:8080", "::ffff:192.0.2.1"),
        (&host.netns, "127.0.0.1:8080", "::ffff:10.9.1.1"),
        // The pod itself through the host (hairpin).
        (&netns, "192.0.2.1:8080", "::ffff:10.9.1.1"),
    ] {
        assert_eq!(ask(from, to).unwrap_or_else(|e| format!("{to}: {e}")), seen, "{to}\n{}", host.rules());
    }
    // Repeating ADD changes nothing.
    let before = host.rules().matches("dnat to").count();
    host.call("portmap", "ADD", &pod, &told(&conf, &result)).expect("ADD");
    assert_eq!(host.rules().matches("dnat to").count(), before);
    host.call("portmap", "CHECK", &pod, &told(&conf, &result)).expect("CHECK");
    // DEL needs no port mappings.
    let bare = r#"{"cniVersion": "1.1.0", "name": "net", "type": "portmap"}"#;
    for _ in 0..2 {
        assert!(host.call("portmap", "DEL", &pod, bare).ok);
    }
    assert_eq!(ask(&client, "192.0.2.1:8080").unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    let (_, text) = host.call("portmap", "CHECK", &pod, &told(&conf, &result)).error();
    assert!(text.contains("missing hostport rules in \"hostports\" chain"), "{text}");
}

#[test]
fn a_host_address_limits_a_port() {
    let host = Host::new();
    let client = client(&host);
    let (netns, pod) = pod("c1");
    let result = attach(&host, &pod);
    host.ip("addr add 192.0.2.9/24 dev wire");
    let ports = r#"{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.9"}"#;
    host.call("portmap", "ADD", &pod, &with(&conf("", ports), "prevResult", result)).expect("ADD");
    serve(&netns, "0.0.0.0:80");
    assert_eq!(ask(&client, "192.0.2.9:8080").unwrap(), "192.0.2.2");
    assert_eq!(ask(&client, "192.0.2.1:8080").unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(!host.rules().contains("table ip6 cni_hostport"));
}

#[test]
fn a_taken_port_is_told() {
    let host = Host::new();
    let (_one, first) = pod("c1");
    let (_two, second) = pod("c2");
    let result = attach(&host, &first);
    host.call("portmap", "ADD", &first, &with(&conf("", TCP), "prevResult", result)).expect("ADD");
    let result = attach(&host, &second);
    let answer = host.call("portmap", "ADD", &second, &with(&conf("", TCP), "prevResult", result.clone()));
    assert!(answer.ok);
    assert!(
        answer.stderr.contains("host port 8080 is taken") && answer.stderr.contains("id: c1"),
        "{}",
        answer.stderr
    );
    assert!(host.call("portmap", "DEL", &second, &conf("", TCP)).ok);
    let exclusive = conf(r#", "exclusiveHostPorts": true"#, TCP);
    let (code, text) = host.call("portmap", "ADD", &second, &with(&exclusive, "prevResult", result)).error();
    assert_eq!(code, 100);
    assert!(text.contains("id: c1"), "{text}");
    assert!(!host.rules().contains("id: c2"));
}

#[test]
fn datagrams_follow_a_new_port_at_once() {
    let host = Host::new();
    if !conntrack_can_be_listed(&host) {
        println!("SKIP datagrams_follow_a_new_port_at_once: the kernel lacks nf_conntrack_netlink");
        return;
    }
    let client = client(&host);
    let (netns, pod) = pod("c1");
    let result = attach(&host, &pod);
    // Any rule of type nat makes the kernel track connections.
    host.call("portmap", "ADD", &pod, &with(&conf("", TCP), "prevResult", result.clone())).expect("ADD");
    let bind = |netns: &Netns, address: &str| {
        let address: SocketAddr = address.parse().unwrap();
        let socket = netns.run(|| UdpSocket::bind(address)).unwrap().unwrap();
        socket.set_read_timeout(Some(WAIT)).unwrap();
        socket
    };
    let on_host = bind(&host.netns, "192.0.2.1:5353");
    let other = bind(&host.netns, "192.0.2.1:5354");
    let sender = bind(&client, "192.0.2.2:40000");
    let mut buffer = [0; 16];
    for (to, receiver) in [("192.0.2.1:5353", &on_host), ("192.0.2.1:5354", &other)] {
        sender.send_to(b"x", to).unwrap();
        receiver.recv_from(&mut buffer).unwrap();
    }
    let tracked = |port: u16| {
        let args = ["-L", "-p", "udp", "--orig-port-dst", &port.to_string()];
        let output = run_in(&host.netns, std::process::Command::new("conntrack").args(args), "");
        String::from_utf8_lossy(&output.stdout).contains("192.0.2.2")
    };
    assert!(tracked(5353) && tracked(5354));
    host.call("portmap", "ADD", &pod, &with(&conf("", UDP), "prevResult", result)).expect("ADD");
    assert!(!tracked(5353), "the flow of the new port is forgotten");
    assert!(tracked(5354), "others are not (B-14)");
    let inside = bind(&netns, "0.0.0.0:53");
    sender.send_to(b"y", "192.0.2.1:5353").unwrap();
    inside.recv_from(&mut buffer).expect("the datagram reaches the pod");
    assert!(tracked(5353));
    assert!(host.call("portmap", "DEL", &pod, &conf("", UDP)).ok);
    assert!(!tracked(5353), "what the pod answered is forgotten");
    sender.send_to(b"z", "192.0.2.1:5353").unwrap();
    on_host.recv_from(&mut buffer).expect("the datagram reaches the host again");
}

fn conntrack_can_be_listed(host: &Host) -> bool {
    let mut command = std::process::Command::new("conntrack");
    std::path::Path::new("/usr/sbin/conntrack").exists()
        && run_in(&host.netns, command.arg("-L"), "").status.success()
}

#[test]
fn what_is_not_served_is_refused() {
    let host = Host::new();
    let (_netns, pod) = pod("c1");
    let result: Json = r#"{"cniVersion": "1.1.0", "ips": [{"address": "10.9.1.2/24"}]}"#.parse().unwrap();
    for (members, ports, code, want) in [
        (r#", "backend": "iptables""#, TCP, 7, "backend: this version writes nftables rules only"),
        (r#", "backend": "x""#, TCP, 7, "failed to parse config: unrecognized backend \"x\""),
        (r#", "externalSetMarkChain": "KUBE""#, TCP, 7, "externalSetMarkChain: "),
        (
            r#", "conditionsV4": ["ip", "saddr", "10.0.0.1"]"#,
            TCP,
            2,
            "conditionsV4/conditionsV6 \"ip saddr 10.0.0.1\"",
        ),
        (
            "",
            r#"{"hostPort": 0, "containerPort": 1, "protocol": "tcp"}"#,
            7,
            "failed to parse config: Invalid host port",
        ),
        (
            "",
            r#"{"hostPort": 1, "containerPort": 1, "protocol": "tcp", "hostIP": "x"}"#,
            7,
            "failed to parse config: Invalid hostIP",
        ),
    ] {
        let conf = with(&conf(members, ports), "prevResult", result.clone());
        let (have, text) = host.call("portmap", "ADD", &pod, &conf).error();
        assert_eq!(have, code, "{text}");
        assert!(text.starts_with(want), "{text}");
    }
    let (_, text) = host.call("portmap", "ADD", &pod, &conf("", TCP)).error();
    assert!(text.starts_with("must be called as chained plugin"), "{text}");
    // No route to the pod: localhost cannot be led there, and no rule stays.
    let (_, text) =
        host.call("portmap", "ADD", &pod, &with(&conf("", TCP), "prevResult", result.clone())).error();
    assert!(text.contains("unable to enable route_localnet: no route to 10.9.1.2"), "{text}");
    for none in ["", "null"] {
        let conf = conf("", "").replace("[]", if none.is_empty() { "[]" } else { none });
        let out = host.call("portmap", "ADD", &pod, &with(&conf, "prevResult", result.clone())).expect("ADD");
        assert_eq!(out.get("ips"), result.get("ips"));
    }
    assert_eq!(host.rules(), "");
}
