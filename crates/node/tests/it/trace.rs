//! `loden trace` on hosts that are broken on purpose.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::capture::{Sandbox, pod, reaches};
use crate::traffic::Pod;
use crate::world::{Host, World, until};

const VXLAN: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;

fn trace(host: &Host, words: &[&str]) -> (i32, String) {
    let mut command = host.loden(&["trace"]);
    command.args(words);
    let output = host.netns.run(|| command.output()).unwrap().unwrap();
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    (output.status.code().unwrap_or(-1), String::from_utf8(text).unwrap())
}

fn devices(json: &Value, key: &str) -> Vec<String> {
    json[key].as_array().unwrap().iter().map(|step| step["device"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn model_and_packet_agree_until_something_breaks() {
    let world = World::with_config(2, VXLAN);
    let agents = world.start(&[]);
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    let far = peer.subnet("FLANNEL_SUBNET").network().to_string();
    let json = until("the way to work", || {
        let (code, text) = trace(host, &[&far, "-o", "json"]);
        let json: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        // Before the route is there, the default route leads through the uplink alone.
        if code == 0 && devices(&json, "model").len() == 2 { Ok(json) } else { Err(text) }
    });
    assert_eq!(devices(&json, "model"), ["flannel.1", "eth0"]);
    assert_eq!(devices(&json, "there"), ["flannel.1", "eth0"]);
    assert_eq!((&json["mtu"], &json["answered"]), (&1450.into(), &true.into()));
    let by = json["model"][0]["by"].as_str().unwrap();
    assert!(by.contains("neigh ") && by.contains("fdb 192.0.2.12, VNI 1 UDP 8472"), "{by}");
    let (_, screen) = trace(host, &[&far]);
    for part in
        ["✓ host flannel.1", "✓ host eth0", "192.0.2.12  beyond this host", "✓ the packet took the way"]
    {
        assert!(screen.contains(part), "{part}: {screen}");
    }

    let says = |what: &str, part: &str| {
        let (code, text) = trace(host, &[&far]);
        assert!(code == 1 && text.contains(part), "{what}: {code} {text}");
    };
    host.sh("nft add table inet fault");
    host.sh("nft add chain inet fault out { type filter hook output priority 0 ; }");
    host.sh("nft add rule inet fault out udp dport 8472 drop");
    says("our own filter", "seen on flannel.1 and not on eth0");
    host.sh("nft flush chain inet fault out");
    host.sh("nft add chain inet fault in { type filter hook prerouting priority -300 ; }");
    host.sh("nft add rule inet fault in udp dport 8472 drop");
    says("our own filter on the way back", "came back to eth0 and did not reach flannel.1");
    host.sh("nft delete table inet fault");
    peer.sh("nft add table inet fault");
    peer.sh("nft add chain inet fault in { type filter hook prerouting priority -300 ; }");
    peer.sh("nft add rule inet fault in udp dport 8472 drop");
    says("the peer's filter", "left through eth0 towards 192.0.2.12 and nothing came back");
    peer.sh("nft delete table inet fault");
    // Without agents nobody mends what is missing.
    drop(agents);
    let entry = host.sh(&format!("ip neigh show {far} dev flannel.1"));
    let mac = entry.split(' ').nth(2).unwrap().to_owned();
    host.sh(&format!("bridge fdb del {mac} dev flannel.1"));
    says("no forwarding entry", "`bridge fdb show dev flannel.1` has no");
    host.sh(&format!("ip neigh del {far} dev flannel.1"));
    says("no neighbour", "is empty: the peer is not programmed");
    host.sh(&format!("ip route del {}", peer.subnet("FLANNEL_SUBNET")));
    host.sh("ip route del default");
    says("no route", "finds no route");
    let picture = world.dir.path().join("way.svg").display().to_string();
    let page = world.dir.path().join("way.html").display().to_string();
    let (code, _) = trace(host, &[&far, "--svg", &picture, "--html", &page]);
    for file in [&picture, &page] {
        let text = std::fs::read_to_string(file).unwrap();
        let named = text.contains(&format!("host → {far}")) && text.contains("finds no route");
        assert!(code == 1 && named && text.contains("</svg>"), "{text}");
    }
    for (words, want) in [
        (&["--help"][..], 0),
        (&["host", &far, "--svg", "/proc/nowhere"], 2),
        (&[], 2),
        (&["nonsense"], 2),
        (&["10.244.0.9", &far], 2),
        (&["host", &far, "80"], 2),
        (&["host", &far, "80/sctp"], 2),
        (&["host", &far, "0/tcp"], 2),
        (&["80/tcp"], 2),
    ] {
        let (code, text) = trace(host, words);
        assert_eq!(code, want, "{words:?}: {text}");
    }
}

#[test]
fn a_pods_packet_passes_its_bridge() {
    let world = World::with_config(2, VXLAN);
    let _agents = world.start(&[]);
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    let (pod, _) = pod(host, 7);
    let far = peer.subnet("FLANNEL_SUBNET").network().to_string();
    let path = pod.netns.path().display().to_string();
    until("the pod's packet to come back", || {
        let (code, text) = trace(host, &[&path, &far]);
        let all = ["✓ pod  eth0", "✓ host cni0", "✓ host flannel.1", "✓ host eth0"];
        if code == 0 && all.iter().all(|part| text.contains(part)) { Ok(()) } else { Err(text) }
    });
}

/// A pod that the real plugins attached, as a runtime has them do it.
pub struct Attached {
    pub pod: Sandbox,
    pub address: String,
    pub state: PathBuf,
}

impl Attached {
    /// `None` if the plugins are not built.
    pub fn add(world: &World, host: &Host, id: &str, args: &str) -> Option<Attached> {
        let program = Path::new(env!("CARGO_BIN_EXE_loden")).with_file_name("loden-cni");
        if !program.is_file() {
            println!("SKIP {id}: loden-cni is not built beside loden (`cargo build -p cni`)");
            return None;
        }
        let (bin, state) = (world.dir.path().join("bin"), world.dir.path().join("state"));
        if !bin.exists() {
            assert!(
                Command::new(program).args(["install", "--bin-dir"]).arg(&bin).status().unwrap().success()
            );
        }
        let netns = kernel::Netns::create().unwrap();
        let conf = json!({"name": "cbr0", "cniVersion": "1.0.0", "type": "flannel", "subnetFile": host.subnet_file(),
            "dataDir": state.join("flannel"), "ipam": {"dataDir": state.join("networks")},
            "delegate": {"bridge": "cni0", "isDefaultGateway": true}});
        let mut command = Command::new(bin.join("flannel"));
        command
            .env("CNI_COMMAND", "ADD")
            .env("CNI_PATH", &bin)
            .env("CNI_CONTAINERID", id)
            .env("CNI_ARGS", args);
        command.env("CNI_IFNAME", "eth0").env("CNI_NETNS", netns.path()).env("LODEN_CNI_STATE_DIR", &state);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = host.netns.run(|| command.spawn()).unwrap().unwrap();
        child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}");
        let result: Value = serde_json::from_str(&text).unwrap();
        let address = result["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap().to_owned();
        Some(Attached { pod: Sandbox::hold(netns), address, state })
    }
}

#[test]
fn a_pod_is_called_by_its_name() {
    let world = World::with_config(2, VXLAN);
    let _agents = world.start(&[]);
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    let name = |namespace: &str, name: &str| {
        format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}")
    };
    let Some(web) = Attached::add(&world, host, "c1", &name("shop", "web-0")) else { return };
    let more = [("c2", name("shop", "db-0")), ("c3", name("test", "db-0")), ("c4", name("a", "\u{1b}[2J"))];
    let more = more.map(|(id, args)| Attached::add(&world, host, id, &args).unwrap());
    let run = |words: &[&str]| {
        let mut command = host.loden(words);
        command.env("LODEN_CNI_STATE_DIR", &web.state).env("FLANNELD_SUBNET_FILE", host.subnet_file());
        let output = host.netns.run(|| command.output()).unwrap().unwrap();
        let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
        (output.status.code().unwrap_or(-1), String::from_utf8(text).unwrap())
    };
    let far = peer.subnet("FLANNEL_SUBNET").network().to_string();
    // By name and by address, to another host.
    let head = format!("shop/web-0 ({}) → {far}", web.address);
    let path = web.pod.netns.path().display().to_string();
    until("the pod's packet to come back", || {
        let (code, text) = run(&["trace", "shop/web-0", &far]);
        if code == 0 && text.contains(&head) && text.contains("✓ pod  eth0") { Ok(()) } else { Err(text) }
    });
    for (word, shown) in [("web-0", &web.address), (&web.address, &web.address), (&path, &path)] {
        let (code, text) = run(&["trace", word, &far]);
        assert!(code == 0 && text.contains(&format!("shop/web-0 ({shown}) → {far}")), "{word}: {text}");
    }
    // Between two pods of the host, and what programs read.
    let (code, text) = run(&["trace", "web-0", "test/db-0", "-o", "json"]);
    let json: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let said = ["from", "from_pod", "to", "to_pod"].map(|key| json[key].as_str().unwrap());
    assert_eq!(said, [&web.address, "shop/web-0", &more[1].address, "test/db-0"], "{text}");
    assert_eq!(code, 0, "{text}");
    let several = "\"db-0\" is the name of several pods of this host: shop/db-0, test/db-0";
    for (words, want) in [
        (&["trace", "wbe-0", &far][..], "no pod of this host is called \"wbe-0\"; did you mean shop/web-0?"),
        (&["trace", "db-0", &far], several),
        (&["trace", "web-0", "db-0"], several),
        (
            &["trace", "web-0", "shop/web-7"],
            "did you mean shop/web-0?; of a pod of another host, give the address",
        ),
        (&["trace", "web-0", "10.244.1.300"], "is neither an address nor the name of a pod"),
        (&["trace", "10.244.1.300", &far], "is neither `host`, nor an address"),
        (&["trace", "a/\u{1b}[2J", &far], "\"a/\\u{1b}[2J\" is neither"),
        (&["capture", "db-0", &far], several),
        (&["capture", "web-0", "shop/web-7"], "of a pod of another host, give the address"),
    ] {
        let (code, text) = run(words);
        assert!(code == 2 && text.contains(want), "{words:?}: {code} {text}");
    }
    // What was seen on the way has the name.
    let (code, text) = run(&["capture", "web-0", &far, "--seconds", "1"]);
    assert!(code == 1 && text.contains("capturing shop/web-0 → "), "{code} {text}");
    // On the screen, and for programs.
    let (_, text) = run(&["top", "--once", "-o", "json"]);
    let look: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let pod_of = |address: &str| {
        let pods = look["pods"].as_array().unwrap();
        pods.iter().find(|pod| pod["addresses"][0] == address).unwrap_or_else(|| panic!("{look:#}"))["pod"]
            .clone()
    };
    assert_eq!(pod_of(&web.address), "shop/web-0");
    assert_eq!(pod_of(&more[0].address), "shop/db-0");
    // A name that could be none is none.
    assert_eq!(pod_of(&more[2].address), Value::Null);
    let (_, screen) = run(&["top", "--once"]);
    assert!(
        screen.lines().any(|line| line.contains("shop/web-0  ") && line.contains(&web.address)),
        "{screen}"
    );
    // Records are for root: others have addresses, as before, and are told why.
    let user = |words: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]);
        command.arg(env!("CARGO_BIN_EXE_loden")).args(words).env("LODEN_CNI_STATE_DIR", &web.state);
        host.netns.run(|| command.output()).unwrap().unwrap()
    };
    let output = user(&["top", "--once", "-o", "json"]);
    let look: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let pods = look["pods"].as_array().unwrap();
    assert!(pods.len() == 4 && pods.iter().all(|pod| pod["pod"].is_null()), "{look:#}");
    let output = user(&["trace", "web-0", &far]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && text.contains("cannot be read: Permission denied"), "{text}");
    // What was deleted without DEL is nobody.
    host.sh(&format!("ip link del {}", host_end(host, &web)));
    let (code, text) = run(&["trace", "web-0", &far]);
    assert!(code == 2 && text.contains("no pod of this host is called \"web-0\""), "{text}");
}

/// The host's end of a pod's veth.
fn host_end(host: &Host, pod: &Attached) -> String {
    let own: Value = serde_json::from_str(&crate::world::sh(&pod.pod.netns, "ip -j link show eth0")).unwrap();
    let links = host.json("ip -j link show");
    let link = links.as_array().unwrap().iter().find(|link| link["ifindex"] == own[0]["link_index"]);
    link.unwrap()["ifname"].as_str().unwrap().to_owned()
}

/// Ways in which a host may have a service: the script, and how it is named in the hop.
const SERVICES: &[(&str, &[&str], &str)] = &[
    (
        "kube-proxy, iptables",
        &[
            "iptables -t nat -N KUBE-SERVICES",
            "iptables -t nat -A PREROUTING -j KUBE-SERVICES",
            "iptables -t nat -A OUTPUT -j KUBE-SERVICES",
            "iptables -t nat -N KUBE-SEP-A",
            "iptables -t nat -A KUBE-SERVICES -d 10.96.0.10/32 -p tcp --dport 80 -j KUBE-SEP-A",
            "iptables -t nat -A KUBE-SERVICES -d 10.96.0.10/32 -p udp --dport 53 -j KUBE-SEP-A",
            "iptables -t nat -A KUBE-SEP-A -p tcp -j DNAT --to-destination END:8080",
            "iptables -t nat -A KUBE-SEP-A -p udp -j DNAT --to-destination END:5353",
        ],
        "by `-A KUBE-SEP-A",
    ),
    (
        "kube-proxy, nftables",
        &[
            "nft add table ip kube-proxy",
            "nft add chain ip kube-proxy endpoint-t",
            "nft add rule ip kube-proxy endpoint-t meta l4proto tcp dnat to END:8080",
            "nft add chain ip kube-proxy endpoint-u",
            "nft add rule ip kube-proxy endpoint-u meta l4proto udp dnat to END:5353",
            "nft add map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict ; }",
            "nft add element ip kube-proxy service-ips { 10.96.0.10 . tcp . 80 : goto endpoint-t , 10.96.0.10 . udp . 53 : goto endpoint-u }",
            "nft add chain ip kube-proxy pre { type nat hook prerouting priority dstnat ; }",
            "nft add rule ip kube-proxy pre ip daddr . meta l4proto . th dport vmap @service-ips",
            "nft add chain ip kube-proxy out { type nat hook output priority -100 ; }",
            "nft add rule ip kube-proxy out ip daddr . meta l4proto . th dport vmap @service-ips",
        ],
        "dnat to ",
    ),
    (
        "a map of addresses, as portmap has it",
        &[
            "nft add table ip hostports",
            "nft add map ip hostports ports { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service ; }",
            "nft add element ip hostports ports { 10.96.0.10 . tcp . 80 : END . 8080 , 10.96.0.10 . udp . 53 : END . 5353 }",
            "nft add chain ip hostports pre { type nat hook prerouting priority dstnat ; }",
            "nft add rule ip hostports pre dnat ip to ip daddr . meta l4proto . th dport map @ports",
            "nft add chain ip hostports out { type nat hook output priority -100 ; }",
            "nft add rule ip hostports out dnat ip to ip daddr . meta l4proto . th dport map @ports",
        ],
        " . 8080",
    ),
];

#[test]
fn a_service_is_followed_to_its_pod() {
    let world = World::with_config(2, VXLAN);
    let _agents = world.start(&["--ip-masq"]);
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    let ((client, from), (server, end)) = (pod(host, 7), pod(peer, 9));
    reaches(&client.netns, &end);
    for (name, script, by) in SERVICES {
        let fresh = ["iptables -t nat -F", "nft delete table ip kube-proxy", "nft delete table ip hostports"];
        fresh.iter().for_each(|command| drop(host.try_sh(command)));
        script.iter().for_each(|command| drop(host.sh(&command.replace("END", &end))));
        let ask = |words: &[&str]| {
            let (code, text) = trace(host, &[words, &["-o", "json"]].concat());
            (
                code,
                serde_json::from_str::<Value>(&text)
                    .unwrap_or_else(|error| panic!("{name}: {error}: {text}")),
            )
        };
        // Nobody listens: the pod's refusal comes back, which is told apart from silence.
        let (code, json) = ask(&[&from, "10.96.0.10", "80/tcp"]);
        let verdict = json["verdict"].as_str().unwrap();
        assert!(code == 1 && verdict.contains("the port is closed"), "{name}: {json:#}");
        let way = devices(&json, "model");
        // With br_netfilter the bridge's port translates, without it the bridge.
        let at = way.iter().position(|device| device == "NAT").unwrap_or_else(|| panic!("{name}: {json:#}"));
        assert!([1, 2].contains(&at), "{name}: {json:#}");
        let alone: Vec<&String> = way.iter().filter(|device| *device != "NAT").collect();
        assert_eq!(alone, ["eth0", "cni0", "flannel.1", "eth0"], "{name}: {json:#}");
        let hop = json["model"][at]["by"].as_str().unwrap();
        assert!(
            hop.contains(&format!("to 10.96.0.10:80 becomes {end}:8080")) && hop.contains(by),
            "{name}: {hop}"
        );

        let listener =
            server.netns.run(|| std::net::TcpListener::bind((end.as_str(), 8080)).unwrap()).unwrap();
        let (code, json) = ask(&[&from, "10.96.0.10", "80/tcp"]);
        assert_eq!((code, &json["answered"]), (0, &true.into()), "{name}: {json:#}");
        // Of the host itself: translated before any device sees it.
        let (code, json) = ask(&["10.96.0.10", "80/tcp"]);
        assert_eq!(
            (code, devices(&json, "model")),
            (0, ["NAT", "flannel.1", "eth0"].map(str::to_owned).to_vec()),
            "{name}: {json:#}"
        );
        drop(listener);
        let socket = server.netns.run(|| std::net::UdpSocket::bind((end.as_str(), 5353)).unwrap()).unwrap();
        let (code, json) = ask(&[&from, "10.96.0.10", "53/udp"]);
        let verdict = json["verdict"].as_str().unwrap();
        assert!(
            code == 1 && verdict.ends_with("need not answer a datagram it does not understand"),
            "{name}: {json:#}"
        );
        assert_eq!(json["model"][at]["device"], "NAT", "{name}: {json:#}");
        drop(socket);
        // A port nobody translates, of an address that rules name.
        let (code, json) = ask(&[&from, "10.96.0.10", "81/tcp"]);
        let verdict = json["verdict"].as_str().unwrap();
        assert!(
            code == 1 && verdict.contains("a rule of this host names 10.96.0.10 and did not translate it"),
            "{name}: {verdict}"
        );
    }
    // What leaves the pods' network is masqueraded, which an echo shows, too.
    let (_, json) = trace(host, &[&from, &peer.public(), "-o", "json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    let hop = json["model"].as_array().unwrap().iter().find(|step| step["device"] == "NAT");
    let hop = hop.unwrap_or_else(|| panic!("{json:#}"))["by"].as_str().unwrap();
    assert_eq!(hop, format!("from {from} becomes {}, masqueraded", host.public()));
}

/// The same in IPv6: a service by nftables, and what leaves is masqueraded.
#[test]
fn a_service_of_ipv6_is_followed_to_its_pod() {
    let config = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10::/48","EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#;
    let world = World::with_config(2, config);
    let _agents = world.start(&["--ip-masq"]);
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    let keys = ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"];
    let (client, server) = (Pod::on(host, &keys), Pod::on(peer, &keys));
    let end = server.addresses[1].to_string();
    reaches(&client.netns, &end);
    for command in [
        "nft add table ip6 kube-proxy",
        "nft add chain ip6 kube-proxy endpoint",
        &format!("nft add rule ip6 kube-proxy endpoint meta l4proto tcp dnat to [{end}]:8080"),
        "nft add chain ip6 kube-proxy pre { type nat hook prerouting priority dstnat ; }",
        "nft add rule ip6 kube-proxy pre ip6 daddr fd00:96::10 tcp dport 80 goto endpoint",
    ] {
        host.sh(command);
    }
    let source = client.netns.path().display().to_string();
    let ask = |words: &[&str]| {
        let (code, text) = trace(host, &[words, &["-o", "json"]].concat());
        (code, serde_json::from_str::<Value>(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
    };
    let listener = server.netns.run(|| std::net::TcpListener::bind((end.as_str(), 8080)).unwrap()).unwrap();
    let (code, json) = ask(&[&source, "fd00:96::10", "80/tcp"]);
    assert_eq!((code, &json["answered"]), (0, &true.into()), "{json:#}");
    let way = devices(&json, "model");
    let at = way.iter().position(|device| device == "NAT").unwrap_or_else(|| panic!("{json:#}"));
    let alone: Vec<&String> = way.iter().filter(|device| *device != "NAT").collect();
    assert_eq!(alone, ["eth0", "cni0", "flannel-v6.1", "eth0"], "{json:#}");
    let hop = json["model"][at]["by"].as_str().unwrap();
    assert!(hop.contains(&format!("becomes [{end}]:8080")) && hop.contains("dnat to "), "{hop}");
    drop(listener);
    let (code, json) = ask(&[&source, "fd00:96::10", "80/tcp"]);
    assert!(code == 1 && json["verdict"].as_str().unwrap().contains("the port is closed"), "{json:#}");
    let (_, json) = ask(&[&source, &peer.public6()]);
    let hop = json["model"].as_array().unwrap().iter().find(|step| step["device"] == "NAT");
    let hop = hop.unwrap_or_else(|| panic!("{json:#}"))["by"].as_str().unwrap();
    assert!(hop.ends_with(&format!("becomes {}, masqueraded", host.public6())), "{hop}");
}
