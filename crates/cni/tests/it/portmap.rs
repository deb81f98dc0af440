//! `portmap`: what it refuses, and packets through its rules.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use crate::harness::{DEBIAN, Host, Pod, debian, ip_in, iptables, pod, run_in, twins, with};
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
fn iptables_rules_are_debians() {
    let result =
        r#"{"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/x"}], "ips": [IPS]}"#;
    let v4 = r#"{"address": "10.9.1.2/24", "interface": 0}"#;
    let v6 = r#"{"address": "2001:db8:9::2/64", "interface": 0}"#;
    let many: Vec<String> = (1..=17)
        .map(|n| format!(r#"{{"hostPort": {}, "containerPort": {n}, "protocol": "tcp"}}"#, 9000 + n))
        .collect();
    let local = r#"{"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"}"#;
    let any = r#"{"hostPort": 8082, "containerPort": 80, "protocol": "tcp", "hostIP": "0.0.0.0"}"#;
    let sctp = r#"{"hostPort": 8083, "containerPort": 80, "protocol": "sctp"}"#;
    for (members, ports, ips) in [
        ("", TCP.to_owned(), v4.to_owned()),
        ("", format!("{TCP}, {}", UDP.to_lowercase()), format!("{v4}, {v6}")),
        (r#", "snat": false"#, TCP.to_owned(), format!("{v4}, {v6}")),
        (r#", "markMasqBit": 5"#, TCP.to_owned(), v4.to_owned()),
        (r#", "externalSetMarkChain": "PLZ-SET-MARK""#, TCP.to_owned(), v4.to_owned()),
        (r#", "conditionsV4": ["!", "-d", "192.168.1.0/24"]"#, TCP.to_owned(), v4.to_owned()),
        (
            r#", "conditionsV4": ["-s", "10.0.0.0/8"], "conditionsV6": ["!", "-s", "12::34"]"#,
            TCP.to_owned(),
            format!("{v4}, {v6}"),
        ),
        ("", many.join(", "), v4.to_owned()),
        ("", format!("{local}, {any}, {sctp}, {TCP}"), v4.to_owned()),
    ] {
        let prev: Json = result.replace("IPS", &ips).parse().unwrap();
        let conf = conf(&format!(r#", "backend": "iptables", "hairpinSubnet": true{members}"#), &ports);
        let conf = with(&conf.replace("1.1.0", "1.0.0"), "prevResult", prev.clone());
        let conf = conf.replace("UDP", "udp");
        twins("iptables_rules_are_debians", &conf, |host, dirs| {
            host.ip("link add br0 type bridge");
            host.ip("addr add 10.9.1.1/24 dev br0");
            host.ip("link set br0 up");
            if members.contains("PLZ") {
                let args = ["-t", "nat", "-N", "PLZ-SET-MARK"];
                assert!(host.run(host.command("/usr/sbin/iptables").args(args), "").status.success());
            }
            let pod =
                Pod { id: "c1".to_owned(), ifname: "eth0".to_owned(), path: "/run/netns/no".to_owned() };
            let mut steps = Vec::new();
            for verb in ["ADD", "ADD", "CHECK", "DEL", "DEL"] {
                // Theirs (1.1.1) looks for the rules of v4 among those of v6.
                if verb == "CHECK" && dirs == [DEBIAN] {
                    continue;
                }
                let answer = host.call_with(dirs, "portmap", verb, &pod, &conf);
                assert!(answer.ok, "{verb} {} {dirs:?} {conf}", answer.text);
                if verb != "CHECK" {
                    steps.push(format!("after {verb}\n{}", iptables(host)));
                }
            }
            let localnet = kernel::sysctl::read_in(&host.netns, "net/ipv4/conf/br0/route_localnet").unwrap();
            format!("{}\nroute_localnet {localnet}", steps.join("\n"))
        });
    }
}

#[test]
fn ports_lead_into_the_pod_by_iptables() {
    let host = Host::new();
    let client = client(&host);
    let (netns, pod) = pod("c1");
    ip_in(&netns, "link set lo up");
    let result = attach(&host, &pod);
    let conf = with(&conf(r#", "backend": "iptables""#, TCP), "prevResult", result.clone());
    host.call("portmap", "ADD", &pod, &conf).expect("ADD");
    serve(&netns, "[::]:80");
    for (from, to, seen) in [
        (&client, "192.0.2.1:8080", "::ffff:192.0.2.2"),
        (&client, "[2001:db8:2::1]:8080", "2001:db8:2::2"),
        (&host.netns, "192.0.2.1:8080", "::ffff:192.0.2.1"),
        (&host.netns, "127.0.0.1:8080", "::ffff:10.9.1.1"),
        (&netns, "192.0.2.1:8080", "::ffff:10.9.1.1"),
    ] {
        assert_eq!(ask(from, to).unwrap_or_else(|e| format!("{to}: {e}")), seen, "{to}\n{}", iptables(&host));
    }
    host.call("portmap", "CHECK", &pod, &conf).expect("CHECK");
    let bare = r#"{"cniVersion": "1.1.0", "name": "net", "type": "portmap"}"#;
    for _ in 0..2 {
        assert!(host.call("portmap", "DEL", &pod, bare).ok);
    }
    assert_eq!(ask(&client, "192.0.2.1:8080").unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    let (_, text) = host.call("portmap", "CHECK", &pod, &conf).error();
    assert!(text.starts_with("could not check ipv4 dnat: chain CNI-DN-"), "{text}");
    let missing = with(&with(&conf, "backend", Json::Null), "externalSetMarkChain", "KUBE-MARK-MASQ");
    let (_, text) = host.call("portmap", "ADD", &pod, &missing).error();
    assert!(text.contains("externalSetMarkChain: chain KUBE-MARK-MASQ is not in iptables"), "{text}");
    assert!(!iptables(&host).contains("CNI-DN-"));
}

#[test]
fn taken_ports_and_gc_by_iptables() {
    let host = Host::new();
    let (_one, first) = pod("c1");
    let (_two, second) = pod("c2");
    let by_iptables = r#", "backend": "iptables""#;
    let result = attach(&host, &first);
    host.call("portmap", "ADD", &first, &with(&conf(by_iptables, TCP), "prevResult", result)).expect("ADD");
    let result = attach(&host, &second);
    let told = with(&conf(by_iptables, TCP), "prevResult", result.clone());
    let answer = host.call("portmap", "ADD", &second, &told);
    assert!(
        answer.ok && answer.stderr.contains("host port 8080 is taken by another pod"),
        "{}",
        answer.stderr
    );
    assert!(host.call("portmap", "DEL", &second, &told).ok);
    let exclusive = conf(r#", "backend": "iptables", "exclusiveHostPorts": true"#, TCP);
    let (code, text) = host.call("portmap", "ADD", &second, &with(&exclusive, "prevResult", result)).error();
    assert!(code == 100 && text.contains("id: \"c1\""), "{text}");
    let dnats = || iptables(&host).matches("-j DNAT").count();
    assert_eq!(dnats(), 2);
    assert!(host.call("portmap", "GC", &first, &told).ok);
    assert_eq!(dnats(), 2, "without a list nothing goes");
    for (id, left) in [("c1", 2), ("c9", 0)] {
        let keep = Json::array([Json::object([("containerID", id.into()), ("ifname", "eth0".into())])]);
        assert!(host.call("portmap", "GC", &first, &with(&told, "cni.dev/valid-attachments", keep)).ok);
        assert_eq!(dnats(), left, "{}", iptables(&host));
    }
}

/// Chains made and deleted by many calls at once (cni.md 4.3); each has its own, and the shared ones are there once.
#[test]
fn ports_come_and_go_at_once_by_iptables() {
    const PODS: usize = 12;
    let host = Host::new();
    let by_iptables = r#", "backend": "iptables""#;
    let pods: Vec<(Netns, Pod, Json)> = (0..PODS)
        .map(|n| {
            let (netns, pod) = pod(&format!("c{n}"));
            let result = attach(&host, &pod);
            (netns, pod, result)
        })
        .collect();
    let all = |verb: &str| {
        std::thread::scope(|scope| {
            for (n, (_, pod, result)) in pods.iter().enumerate() {
                let (host, port) = (&host, TCP.replace("8080", &format!("{}", 8000 + n)));
                scope.spawn(move || {
                    let conf = with(&conf(by_iptables, &port), "prevResult", result.clone());
                    let answer = host.call("portmap", verb, pod, &conf);
                    assert!(answer.ok, "{verb} {} {}", pod.id, answer.text);
                });
            }
        });
    };
    all("ADD");
    let rules = iptables(&host);
    assert_eq!(rules.matches("-j DNAT").count(), 2 * PODS, "{rules}");
    for once in ["-A PREROUTING", "-A OUTPUT", "-A POSTROUTING"] {
        assert_eq!(rules.matches(once).count(), 2, "{once}, once in each family: {rules}");
    }
    all("CHECK");
    for _ in 0..2 {
        all("DEL");
        let rules = iptables(&host);
        assert!(!rules.contains("DNAT --to") && !rules.contains("CNI-DN-"), "{rules}");
    }
}

#[test]
fn conditions_of_nft_limit_a_port() {
    let host = Host::new();
    let client = client(&host);
    let (netns, pod) = pod("c1");
    let result = attach(&host, &pod);
    serve(&netns, "0.0.0.0:80");
    for (words, open) in [
        (r#"["ip", "saddr", "192.0.2.2"]"#, true),
        (r#"["ip", "saddr", "!=", "192.0.2.0/24"]"#, false),
        (r#"["iifname", "wire"]"#, true),
        (r#"["iifname", "!=", "wire"]"#, false),
        // Words for the nft program.
        (r#"["ip saddr { 192.0.2.2, 192.0.2.77 }"]"#, true),
        (r#"["ip", "saddr", "192.0.2.77-192.0.2.99"]"#, false),
        (r#"["iifname", "\"wi*\"", "ct", "state", "new"]"#, true),
        (r#"["meta", "l4proto", "udp"]"#, false),
    ] {
        for snat in [true, false] {
            let members = format!(r#", "backend": "nftables", "snat": {snat}, "conditionsV4": {words}"#);
            let conf = with(&conf(&members, TCP), "prevResult", result.clone());
            // A second ADD takes the place of the first.
            host.call("portmap", "ADD", &pod, &conf).expect("ADD");
            host.call("portmap", "ADD", &pod, &conf).expect("ADD");
            assert_eq!(ask(&client, "192.0.2.1:8080").is_ok(), open, "{words} {}", host.rules());
            assert_eq!(host.rules().matches("dnat to 10.9.1.").count(), 1, "{words} {}", host.rules());
            host.call("portmap", "CHECK", &pod, &conf).expect("CHECK");
            assert!(host.call("portmap", "DEL", &pod, &conf).ok);
            assert!(!host.rules().contains("10.9.1."), "{words} {}", host.rules());
        }
    }
    // What nft does not understand is told in its words, and nothing stays.
    let nonsense =
        with(&conf(r#", "conditionsV4": ["ip", "saddr", "fly"]"#, TCP), "prevResult", result.clone());
    let (code, text) = host.call("portmap", "ADD", &pod, &nonsense).error();
    assert!(code == 7 && text.starts_with("conditionsV4: nft refuses \"ip saddr fly\": "), "{code} {text}");
    assert!(!host.rules().contains("10.9.1."), "{}", host.rules());
    let words = with(&conf(r#", "conditionsV4": ["ct", "state", "new"]"#, TCP), "prevResult", result);
    let mut command = host.prepare(&[&host.bin().display().to_string()], "portmap", "ADD", &pod);
    let output = host.run(command.env("PATH", "/none"), &words);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && text.contains("needs the program nft"), "{text}");
    assert!(!host.rules().contains("10.9.1."), "{}", host.rules());
}

/// `ipMasq` by iptables is what Debian's bridge makes, and either backend's rules go on DEL.
#[test]
fn masquerading_by_iptables_is_debians() {
    for subnets in
        [r#"[{"subnet": "10.9.1.0/24"}]"#, r#"[{"subnet": "10.9.1.0/24"}], [{"subnet": "2001:db8:9::/64"}]"#]
    {
        twins("masquerading_by_iptables_is_debians", subnets, |host, dirs| {
            let (_netns, pod) = pod("c1");
            let dir = host.path("networks");
            let conf = format!(
                r#"{{"cniVersion": "1.0.0", "name": "net", "type": "bridge", "isGateway": true, "ipMasq": true,
                    "ipMasqBackend": "iptables",
                    "ipam": {{"type": "host-local", "dataDir": "{dir}", "ranges": [{subnets}]}}}}"#
            );
            let result = host.call_with(dirs, "bridge", "ADD", &pod, &conf).expect("ADD");
            let made = iptables(host);
            host.call_with(dirs, "bridge", "CHECK", &pod, &with(&conf, "prevResult", result)).expect("CHECK");
            assert!(host.call_with(dirs, "bridge", "DEL", &pod, &conf).ok);
            format!("{made}\n{}", iptables(host))
        });
    }
}

/// A migration: what Debian's plugin masqueraded goes with the pod, also without its namespace (B-08).
#[test]
fn chains_of_debians_go_with_the_pod() {
    if !debian("chains_of_debians_go_with_the_pod") {
        return;
    }
    let host = Host::new();
    let (_netns, pod) = pod("c1");
    let dir = host.path("networks");
    let conf = format!(
        r#"{{"cniVersion": "1.0.0", "name": "net", "type": "bridge", "isGateway": true, "ipMasq": true,
            "ipam": {{"type": "host-local", "dataDir": "{dir}", "subnet": "10.9.1.0/24"}}}}"#
    );
    let result = host.call_with(&[DEBIAN], "bridge", "ADD", &pod, &conf).expect("ADD");
    let ports = with(&self::conf("", TCP).replace("1.1.0", "1.0.0"), "prevResult", result);
    host.call_with(&[DEBIAN], "portmap", "ADD", &pod, &ports).expect("ADD");
    assert!(iptables(&host).contains("MASQUERADE") && iptables(&host).contains("DNAT --to"));
    let gone = Pod { path: String::new(), ..pod };
    let bare = r#"{"cniVersion": "1.0.0", "name": "net", "type": "portmap"}"#;
    assert!(host.call("portmap", "DEL", &gone, bare).ok);
    assert!(host.call("bridge", "DEL", &gone, &conf).ok);
    let left = iptables(&host);
    assert!(!left.contains("10.9.1.") && !left.contains("CNI-DN-") && !left.contains("c1"), "{left}");
}

#[test]
fn what_is_not_served_is_refused() {
    let host = Host::new();
    let (_netns, pod) = pod("c1");
    let result: Json = r#"{"cniVersion": "1.1.0", "ips": [{"address": "10.9.1.2/24"}]}"#.parse().unwrap();
    for (members, ports, code, want) in [
        (r#", "backend": "x""#, TCP, 7, "failed to parse config: unrecognized backend \"x\""),
        (
            r#", "externalSetMarkChain": "A B""#,
            TCP,
            7,
            "failed to parse config: externalSetMarkChain: \"A B\" is no name of an iptables chain",
        ),
        (
            r#", "externalSetMarkChain": "KUBE", "markMasqBit": 3"#,
            TCP,
            7,
            "failed to parse config: Cannot specify externalSetMarkChain and markMasqBit",
        ),
        (
            r#", "conditionsV4": ["ip", "saddr", "10.0.0.1;", "flush", "ruleset"]"#,
            TCP,
            7,
            "conditionsV4: \"10.0.0.1;\" ends a rule",
        ),
        (
            r#", "backend": "iptables", "conditionsV4": ["ip", "saddr", "10.0.0.1"]"#,
            TCP,
            7,
            "failed to parse config: iptables backend was requested but configuration contains \
             nftables-specific options [conditionsV4]",
        ),
        (
            r#", "backend": "nftables", "conditionsV6": ["!", "-d", "::1"], "externalSetMarkChain": "K""#,
            TCP,
            7,
            "failed to parse config: nftables backend was requested but configuration contains \
             iptables-specific options [externalSetMarkChain conditionsV6]",
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
