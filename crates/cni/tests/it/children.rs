//! Interfaces on top of others beside Debian's: macvlan here, ipvlan and VLANs where the kernel has them.
//! What not every kernel has is named in the tests' names: the guest of `cargo xtask vm` chooses by them.

use std::time::Duration;

use crate::harness::{Host, Pod, debian, ip_in, kernel_has, pod, with};
use crate::witness::Case;
use model::gojson::Json;

const V4: &str = r#""type": "host-local", "dataDir": "DIR", "subnet": "10.9.1.0/24", "gateway": "10.9.1.254",
    "routes": [{"dst": "0.0.0.0/0"}]"#;
const DUAL: &str = r#""type": "host-local", "dataDir": "DIR", "ranges": [[{"subnet": "10.9.1.0/24"}],
    [{"subnet": "2001:db8:9::/64"}]], "routes": [{"dst": "10.8.0.0/16"}, {"dst": "2001:db8:8::/48"}]"#;

const fn case<'a>(plugin: &'a str, version: &'a str, members: &'a str, ipam: &'a str) -> Case<'a> {
    Case { plugin, version, members, ipam, args: "" }
}

/// A host with a wire `up0` to a router, and a default route.
pub fn wire(host: &Host) {
    for command in [
        "link add up0 type veth peer name up1",
        "link set up0 address 0a:00:00:00:01:00",
        "link set up0 up",
        "link set up1 up",
        "addr add 192.0.2.1/24 dev up0",
        "route add default via 192.0.2.254",
    ] {
        host.ip(command);
    }
}

/// Rows of the conformance list (cni.md 4.3): creates in the pod, ADD and DEL, layer 2, without master in
/// the configuration, addresses from arguments and from the runtime.
#[test]
fn results_and_state_are_those_of_debians_plugins() {
    same_as_debian("macvlan");
}

#[test]
fn ipvlan_is_that_of_debians_plugins() {
    same_as_debian("ipvlan");
}

#[test]
fn vlan_is_that_of_debians_plugins() {
    same_as_debian("vlan");
}

fn same_as_debian(kind: &str) {
    let test = format!("children::{kind}_is_that_of_debians_plugins");
    if !kernel_has(&test, kind) || !debian(&test) {
        return;
    }
    let up0 = r#""master": "up0""#;
    let layer_2 = r#""master": "up0", "mode": "bridge""#;
    let runtime = r#""master": "up0", "runtimeConfig": {"mac": "0a:00:00:00:00:07"}"#;
    let rows = match kind {
        "macvlan" => vec![
            case(kind, "0.1.0", up0, V4),
            case(kind, "0.2.0", up0, DUAL),
            case(kind, "0.3.0", up0, V4),
            case(kind, "0.3.1", "", V4),
            case(kind, "0.4.0", r#""master": "up0", "mode": "private", "mtu": 1400"#, V4),
            case(kind, "1.0.0", r#""master": "up0", "mode": "vepa""#, DUAL),
            case(kind, "1.0.0", r#""master": "up0", "mode": "passthru""#, V4),
            case(kind, "1.0.0", layer_2, ""),
            case(kind, "0.3.1", layer_2, ""),
            case(kind, "1.0.0", runtime, V4),
            Case { args: "IgnoreUnknown=1;MAC=0a:00:00:00:00:08", ..case(kind, "1.0.0", up0, V4) },
            Case { args: "IgnoreUnknown=1;MAC=0a:00:00:00:00:08", ..case(kind, "1.0.0", runtime, V4) },
        ],
        "ipvlan" => vec![
            case(kind, "0.2.0", up0, V4),
            case(kind, "0.3.1", "", V4),
            case(kind, "0.4.0", r#""master": "up0", "mode": "l3""#, DUAL),
            case(kind, "1.0.0", r#""master": "up0", "mode": "l3s", "mtu": 1400"#, V4),
        ],
        _ => vec![
            case(kind, "0.2.0", r#""master": "up0", "vlanId": 100"#, V4),
            case(kind, "0.4.0", r#""master": "up0", "vlanId": 4094, "mtu": 1400"#, V4),
            case(kind, "1.0.0", r#""master": "up0", "vlanId": 1"#, DUAL),
        ],
    };
    for case in rows {
        let keys = ["net/ipv6/conf/eth0/disable_ipv6", "net/ipv6/conf/eth0/accept_dad"];
        case.same_as_debian(wire, &keys, str::to_owned);
    }
}

/// Pods on one master hear each other, and IPv6 does not wait for its duplicate detection.
#[test]
fn pods_on_one_master_hear_each_other() {
    hear_each_other("macvlan");
}

#[test]
fn ipvlan_pods_hear_each_other() {
    hear_each_other("ipvlan");
}

fn hear_each_other(kind: &str) {
    if !kernel_has(&format!("children::{kind}_pods_hear_each_other"), kind) {
        return;
    }
    let host = Host::new();
    wire(&host);
    let conf = case(kind, "1.1.0", r#""master": "up0""#, DUAL).conf(&host);
    let pods: Vec<_> = ["c1", "c2"].into_iter().map(pod).collect();
    for (netns, pod) in &pods {
        let result = host.call(kind, "ADD", pod, &conf).expect("ADD");
        let mtu = result.get("interfaces").and_then(|i| i.as_array()?[0].get("mtu").cloned());
        assert_eq!(mtu, Some(1500.into()), "the result of 1.1 tells the MTU");
        // Usable, though others on the wire are still being asked.
        let text = ip_in(netns, "-6 addr show dev eth0 scope global");
        assert!(text.contains("optimistic") || !text.contains("tentative"), "{text}");
        host.call(kind, "CHECK", pod, &with(&conf, "prevResult", result)).expect("CHECK");
    }
    for (from, to) in [("10.9.1.2:0", "10.9.1.3:7000"), ("[2001:db8:9::2]:0", "[2001:db8:9::3]:7000")] {
        let receiver = pods[1].0.run(|| std::net::UdpSocket::bind(to).unwrap()).unwrap();
        receiver.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let sender = pods[0].0.run(|| std::net::UdpSocket::bind(from).unwrap()).unwrap();
        let mut buffer = [0; 16];
        let heard = (0..100).any(|_| {
            let _ = sender.send_to(b"hello", to);
            receiver.recv_from(&mut buffer).is_ok()
        });
        assert!(heard, "{kind} {from} {to}");
    }
}

/// Chained after another plugin, ipvlan takes its addresses and its interface (cni.md 2.12).
#[test]
fn ipvlan_takes_the_addresses_of_the_plugin_before() {
    if !kernel_has("children::ipvlan_takes_the_addresses_of_the_plugin_before", "ipvlan") {
        return;
    }
    let host = Host::new();
    wire(&host);
    let (netns, pod) = pod("c1");
    let before = r#"{"cniVersion": "1.0.0", "interfaces": [{"name": "up0"}],
        "ips": [{"address": "10.9.1.7/24", "interface": 0}], "routes": [{"dst": "10.8.0.0/16", "gw": "10.9.1.1"}]}"#;
    let conf =
        with(&case("ipvlan", "1.0.0", "", "").conf(&host), "prevResult", before.parse::<Json>().unwrap());
    let result = host.call("ipvlan", "ADD", &pod, &conf).expect("ADD");
    assert!(ip_in(&netns, "addr show eth0").contains("10.9.1.7/24"));
    assert!(ip_in(&netns, "route").contains("10.8.0.0/16 via 10.9.1.1 dev eth0"));
    assert_eq!(result.get("interfaces").and_then(Json::as_array).map(<[Json]>::len), Some(1));
    assert!(host.call("ipvlan", "DEL", &pod, &conf).ok);
}

#[test]
fn vlan_reaches_the_other_end_of_its_wire() {
    if !kernel_has("children::vlan_reaches_the_other_end_of_its_wire", "vlan") {
        return;
    }
    let host = Host::new();
    wire(&host);
    host.ip("link add link up1 name far type vlan id 7");
    host.ip("addr add 10.9.1.200/24 dev far");
    host.ip("link set far up");
    let (netns, pod) = pod("c1");
    let conf = case("vlan", "1.0.0", r#""master": "up0", "vlanId": 7, "mtu": 1400"#, DUAL).conf(&host);
    let result = host.call("vlan", "ADD", &pod, &conf).expect("ADD");
    let told = with(&conf, "prevResult", result);
    host.call("vlan", "CHECK", &pod, &told).expect("CHECK");
    for (change, want) in [
        (with(&told, "vlanId", 8), "has vlan id 7, configured is 8"),
        (with(&told, "mtu", 1300), "has vlan MTU 1400, configured is 1300"),
    ] {
        let (_, text) = host.call("vlan", "CHECK", &pod, &change).error();
        assert!(text.contains(want), "{text}");
    }
    let refused = netns.run(|| {
        let to = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        to.connect("10.9.1.200:9").unwrap();
        to.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        (0..20).any(|_| {
            let _ = to.send(b"x");
            to.recv(&mut [0; 8]).is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
        })
    });
    assert!(refused.unwrap());
    // A second one of the same VLAN is the kernel's to refuse; nothing is left.
    let (other, second) = crate::harness::pod("c2");
    let (_, text) = host.call("vlan", "ADD", &second, &conf).error();
    assert!(text.contains("failed to create vlan"), "{text}");
    assert!(!ip_in(&other, "link show").contains("eth0"));
    assert!(!host.files("networks").contains(&"net/10.9.1.3".to_owned()));
}

#[test]
fn check_finds_what_was_changed() {
    let host = Host::new();
    wire(&host);
    let members = r#""master": "up0", "mode": "bridge""#;
    let conf = case("macvlan", "1.0.0", members, V4).conf(&host);
    for (n, (change, want)) in [
        ("addr flush dev eth0", "Failed to match addr 10.9.1."),
        ("route del default", "Expected Route {0.0.0.0/0"),
        ("link set eth0 address 0a:00:00:00:00:01", "Mac doesn't match"),
        ("link set eth0 type macvlan mode private", "macvlan mode private, configured is bridge"),
        ("link del eth0", "not found"),
    ]
    .into_iter()
    .enumerate()
    {
        let (netns, pod) = pod(&format!("c{n}"));
        let result = host.call("macvlan", "ADD", &pod, &conf).expect("ADD");
        let told = with(&conf, "prevResult", result);
        host.call("macvlan", "CHECK", &pod, &told).expect("CHECK");
        ip_in(&netns, change);
        let (_, text) = host.call("macvlan", "CHECK", &pod, &told).error();
        assert!(text.contains(want), "{change}: {text}");
        assert!(host.call("macvlan", "DEL", &pod, &conf).ok);
    }
    let (_netns, pod) = pod("c9");
    host.call("macvlan", "ADD", &pod, &conf).expect("ADD");
    let (_, text) = host.call("macvlan", "CHECK", &pod, &conf).error();
    assert!(text.starts_with("required prevResult missing"), "{text}");
}

/// Refused by name, and nothing is left in the pod (B-28), on the host or in the store. The rows of ipvlan
/// and vlan are refused before the kernel is asked.
#[test]
fn faults_leave_nothing() {
    let full = r#""type": "host-local", "dataDir": "DIR", "subnet": "10.9.1.0/30", "rangeStart": "10.9.1.1", "rangeEnd": "10.9.1.1""#;
    let bad_route = r#""type": "host-local", "dataDir": "DIR", "subnet": "10.9.1.0/24",
        "routes": [{"dst": "10.0.0.0/8", "gw": "172.16.0.1"}]"#;
    let up0 = r#""master": "up0""#;
    for (case, code, want) in [
        (
            case("macvlan", "1.0.0", r#""master": "no""#, V4),
            999,
            "failed to lookup master \"no\": Link not found",
        ),
        (case("macvlan", "1.0.0", r#""master": 5"#, V4), 7, "NetConf.master of type string"),
        (case("macvlan", "1.0.0", r#""mode": "x""#, V4), 7, "unknown macvlan mode: \"x\""),
        (case("macvlan", "1.0.0", r#""mode": true"#, V4), 7, "NetConf.mode of type string"),
        (
            case("macvlan", "1.0.0", r#""master": "up0", "mtu": 9000"#, V4),
            7,
            "invalid MTU 9000, must be [0, master MTU(1500)]",
        ),
        (case("macvlan", "1.0.0", r#""mtu": "x""#, V4), 7, "NetConf.mtu of type int"),
        (case("macvlan", "1.0.0", r#""mac": "x""#, V4), 7, "mac: "),
        (case("macvlan", "1.0.0", r#""bcqueuelen": "x""#, V4), 7, "NetConf.bcqueuelen of type int"),
        (case("macvlan", "1.0.0", r#""linkInContainer": 1"#, V4), 7, "NetConf.linkInContainer of type bool"),
        (case("macvlan", "1.0.0", r#""linkInContainer": true"#, V4), 7, "no default route interface found"),
        (
            case("macvlan", "1.0.0", up0, full),
            999,
            "no IP addresses available in range set: 10.9.1.1-10.9.1.1",
        ),
        (case("macvlan", "1.0.0", up0, bad_route), 999, "failed to add route 10.0.0.0/8 via 172.16.0.1"),
        (case("macvlan", "1.0.0", up0, r#""type": "no-such""#), 7, "failed to find plugin \"no-such\""),
        (case("macvlan", "0.2.0", up0, ""), 7, "cannot convert: no valid IP addresses"),
        (Case { args: "IP=1.2.3.4", ..case("macvlan", "1.0.0", up0, V4) }, 7, "unknown args"),
        (case("ipvlan", "1.0.0", r#""mode": "bridge""#, V4), 7, "unknown ipvlan mode: \"bridge\""),
        (case("ipvlan", "1.0.0", up0, ""), 7, "no plugin name provided"),
        (
            case(
                "ipvlan",
                "1.0.0",
                r#""prevResult": {"cniVersion": "1.0.0", "interfaces": [], "ips": []}"#,
                V4,
            ),
            7,
            "chained master failure. PrevResult lacks a single named interface",
        ),
        (case("vlan", "1.0.0", r#""vlanId": 7"#, V4), 7, "\"master\" field is required. It specifies"),
        (case("vlan", "1.0.0", r#""master": "up0", "vlanId": 4095"#, V4), 7, "invalid VLAN ID 4095 (must be"),
        (case("vlan", "1.0.0", r#""master": "up0", "vlanId": "7""#, V4), 7, "NetConf.vlanId of type int"),
        (
            case("vlan", "1.0.0", r#""master": "up0", "vlanId": 7, "mtu": -100"#, V4),
            7,
            "invalid MTU -100, must be [0, master MTU(1500)]",
        ),
        (
            case("vlan", "1.0.0", r#""master": "up0", "vlanId": 7"#, ""),
            7,
            "failed to execute IPAM delegate: no plugin name provided",
        ),
    ] {
        let host = Host::new();
        wire(&host);
        let (netns, pod) = pod("c1");
        let mut command = host.prepare(&[&host.bin().display().to_string()], case.plugin, "ADD", &pod);
        command.env("CNI_ARGS", case.args);
        let answer = crate::harness::Answer::of(host.run(&mut command, &case.conf(&host)));
        let (have, text) = answer.error();
        assert!(text.contains(want), "{text}");
        assert_eq!(have, code, "{text}");
        assert_eq!(host.links(), ["up1", "up0"]);
        assert!(!ip_in(&netns, "link show").contains("eth0"));
        assert!(host.files("networks").iter().all(|f| !f.contains("10.9")), "{:?}", host.files("networks"));
        assert_eq!(host.files("state/attachments"), [""; 0]);
        // A runtime that does not believe it calls DEL.
        assert!(host.call(case.plugin, "DEL", &pod, &case.conf(&host)).ok || have == 7);
    }
}

#[test]
fn del_needs_neither_namespace_nor_master() {
    let host = Host::new();
    wire(&host);
    let conf = case("macvlan", "1.0.0", r#""master": "up0""#, V4).conf(&host);
    for path in ["", "/run/netns/no-such", "plain"] {
        let (_netns, pod) = pod("c1");
        host.call("macvlan", "ADD", &pod, &conf).expect("ADD");
        let file = host.path("plain");
        std::fs::write(&file, "").unwrap();
        let path = if path == "plain" { &file } else { path };
        let gone = Pod { path: path.to_owned(), ..pod.clone() };
        let broken = with(&with(&conf, "master", "no-such"), "mode", "x");
        for _ in 0..3 {
            assert!(host.call("macvlan", "DEL", &gone, &broken).ok);
        }
        assert!(host.files("networks").iter().all(|f| !f.contains("10.9")));
        assert_eq!(host.files("state/attachments"), [""; 0]);
    }
    // STATUS looks for the master; GC forgets who is gone.
    let newer = with(&conf, "cniVersion", "1.1.0");
    let (_netns, pod) = pod("c2");
    host.call("macvlan", "ADD", &pod, &newer).expect("ADD");
    assert!(host.call("macvlan", "STATUS", &pod, &newer).ok);
    assert_eq!(host.call("macvlan", "STATUS", &pod, &with(&newer, "master", "no")).error().0, 50);
    let gc = with(&newer, "cni.dev/valid-attachments", Json::array(Vec::<Json>::new()));
    assert!(host.call("macvlan", "GC", &pod, &gc).ok);
    assert!(host.files("networks").iter().all(|f| !f.contains("10.9")));
    assert_eq!(host.files("state/attachments"), [""; 0]);
}

/// A master of the pod's own, as made by a plugin before.
#[test]
fn the_master_may_be_in_the_pod() {
    master_in_pod("macvlan", "");
}

#[test]
fn ipvlan_and_vlan_in_the_pod() {
    master_in_pod("ipvlan", "");
    master_in_pod("vlan", r#", "vlanId": 7"#);
}

fn master_in_pod(kind: &str, more: &str) {
    if !kernel_has(&format!("children::{kind}_in_the_pod"), kind) {
        return;
    }
    let host = Host::new();
    let (netns, pod) = pod("c1");
    ip_in(&netns, "link add in0 type veth peer name in1");
    let members = format!(r#""master": "in0", "linkInContainer": true{more}"#);
    let conf = case(kind, "1.0.0", &members, V4).conf(&host);
    // Its gateway is reached only when the master is up.
    ip_in(&netns, "link set in0 up");
    ip_in(&netns, "link set in1 up");
    let result = host.call(kind, "ADD", &pod, &conf).expect(kind);
    assert!(ip_in(&netns, "link show eth0").contains("eth0@in0"), "{}", ip_in(&netns, "link show"));
    host.call(kind, "CHECK", &pod, &with(&conf, "prevResult", result)).expect(kind);
    assert!(host.call(kind, "DEL", &pod, &conf).ok);
    assert!(!ip_in(&netns, "link show").contains("eth0"));
}

/// Waiting is for those who ask for it.
#[test]
fn duplicate_detection_on_request() {
    let host = Host::new();
    wire(&host);
    let (netns, pod) = pod("c1");
    let conf = case("macvlan", "1.0.0", r#""master": "up0", "enabledad": true"#, DUAL).conf(&host);
    host.call("macvlan", "ADD", &pod, &conf).expect("ADD");
    let text = ip_in(&netns, "-6 addr show dev eth0 scope global");
    assert!(
        text.contains("2001:db8:9::2") && !text.contains("tentative") && !text.contains("optimistic"),
        "{text}"
    );
}
