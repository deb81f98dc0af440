//! `ptp` beside Debian's, and what ours does better.

use std::time::Duration;

use crate::harness::{Host, Pod, debian, ip_in, pod, with};
use crate::witness::Case;
use model::gojson::Json;

const V4: &str = r#""type": "host-local", "dataDir": "DIR", "subnet": "10.9.1.0/24""#;
const ROUTES: &str = r#""type": "host-local", "dataDir": "DIR", "ranges": [[{"subnet": "10.9.1.0/24"}],
    [{"subnet": "2001:db8:9::/66"}]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "192.168.0.0/16"},
    {"dst": "1.1.1.1/32", "gw": "10.9.1.1"}, {"dst": "2001:db8:9::3/128"}]"#;

const fn case<'a>(version: &'a str, members: &'a str, ipam: &'a str) -> Case<'a> {
    Case { plugin: "ptp", version, members, ipam, args: "" }
}

/// A row of the conformance list each (cni.md 4.3): versions, both families with routes, DNS.
#[test]
fn results_and_state_are_those_of_debians_plugins() {
    if !debian("ptp::results_and_state_are_those_of_debians_plugins") {
        return;
    }
    let dns = r#""dns": {"nameservers": ["10.1.2.123"], "domain": "some.domain.test", "search": ["search.test"], "options": ["option1:foo"]}"#;
    for case in [
        case("0.1.0", "", V4),
        case("0.2.0", "", V4),
        case("0.3.0", "", V4),
        case("0.3.1", r#""mtu": 5000"#, V4),
        case("0.4.0", r#""mtu": 1400"#, V4),
        case("1.0.0", "", V4),
        case("1.0.0", "", ROUTES),
        case("0.2.0", "", ROUTES),
        case("1.0.0", dns, V4),
        case("1.0.0", r#""dns": {"nameservers": []}"#, V4),
        case(
            "1.0.0",
            "",
            r#""type": "static", "addresses": [{"address": "10.9.1.7/24", "gateway": "10.9.1.1"}]"#,
        ),
    ] {
        let keys = ["net/ipv4/conf/eth0/arp_notify", "net/ipv6/conf/eth0/disable_ipv6"];
        // Ours announces itself; theirs does not here.
        case.same_as_debian(|_| (), &keys, |text| text.replace("arp_notify=1", "arp_notify=0"));
    }
}

/// No two ends share a segment, so there is no duplicate to look for (theirs takes 1.7 s).
#[test]
fn ipv6_is_usable_at_once() {
    let host = Host::new();
    let (netns, pod) = pod("c1");
    let conf = case("1.0.0", "", ROUTES).conf(&host);
    host.call("ptp", "ADD", &pod, &conf).expect("ADD");
    for netns in [&netns, &host.netns] {
        let text = ip_in(netns, "-6 addr show scope global");
        assert!(text.contains("2001:db8:9::") && !text.contains("tentative"), "{text}");
    }
    // Both families reach the gateway.
    for address in ["10.9.1.1:9", "[2001:db8:9::1]:9"] {
        let refused = netns.run(|| {
            let any = if address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
            let to = std::net::UdpSocket::bind(any).unwrap();
            to.connect(address).unwrap();
            to.send(b"x").unwrap();
            to.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            to.recv(&mut [0; 8]).unwrap_err().kind()
        });
        assert_eq!(refused.unwrap(), std::io::ErrorKind::ConnectionRefused, "{address}");
    }
}

/// Pods of one subnet reach each other through the host.
#[test]
fn pods_reach_each_other_through_the_host() {
    let host = Host::new();
    let (one, first) = pod("c1");
    let (two, second) = pod("c2");
    let conf = case("1.0.0", "", V4).conf(&host);
    host.call("ptp", "ADD", &first, &conf).expect("ADD");
    host.call("ptp", "ADD", &second, &conf).expect("ADD");
    let receiver = two.run(|| std::net::UdpSocket::bind("10.9.1.3:7000").unwrap()).unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    one.run(|| std::net::UdpSocket::bind("10.9.1.2:0").unwrap().send_to(b"hello", "10.9.1.3:7000").unwrap())
        .unwrap();
    let mut buffer = [0; 16];
    let (length, from) = receiver.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], from.ip().to_string().as_str()), (&b"hello"[..], "10.9.1.2"));
}

/// Masquerading goes with the attachment, also without namespace (B-08).
#[test]
fn masquerading_is_made_and_removed() {
    for path in [None, Some(""), Some("/run/netns/no-such")] {
        let host = Host::new();
        let (netns, pod) = pod("c1");
        let conf = case("1.1.0", r#""ipMasq": true"#, ROUTES).conf(&host);
        let result = host.call("ptp", "ADD", &pod, &conf).expect("ADD");
        assert!(
            host.rules().contains("ip saddr 10.9.1.2 ip daddr != 10.9.1.0/24 masquerade"),
            "{}",
            host.rules()
        );
        host.call("ptp", "CHECK", &pod, &with(&conf, "prevResult", result)).expect("CHECK");
        let gone = Pod { path: path.unwrap_or(&pod.path).to_owned(), ..pod.clone() };
        for _ in 0..2 {
            assert!(host.call("ptp", "DEL", &gone, &conf).ok);
        }
        assert!(!host.rules().contains("10.9.1.2"), "{}", host.rules());
        assert_eq!(host.links(), [""; 0]);
        assert!(!ip_in(&netns, "link show").contains("eth0"));
        assert_eq!(host.files("networks"), ["net/last_reserved_ip.0", "net/last_reserved_ip.1", "net/lock"]);
        assert_eq!(host.files("state/attachments"), [""; 0]);
    }
}

#[test]
fn check_finds_what_was_changed() {
    for (change, want) in [
        ("addr del 10.9.1.2/24 dev eth0", "Failed to match addr 10.9.1.2/24"),
        ("route del 192.168.0.0/16", "Expected Route {192.168.0.0/16"),
        ("route del 10.9.1.0/24", "Failed to find Gateway 10.9.1.0/24"),
        ("link set eth0 address 0a:00:00:00:00:01", "Mac doesn't match"),
        ("link del eth0", "not found"),
    ] {
        let host = Host::new();
        let (netns, pod) = pod("c1");
        let conf = case("1.0.0", "", ROUTES).conf(&host);
        let result = host.call("ptp", "ADD", &pod, &conf).expect("ADD");
        let told = with(&conf, "prevResult", result);
        ip_in(&netns, change);
        let (_, text) = host.call("ptp", "CHECK", &pod, &told).error();
        assert!(text.contains(want), "{change}: {text}");
    }
    let host = Host::new();
    let (_netns, pod) = pod("c1");
    let conf = case("1.0.0", "", V4).conf(&host);
    host.call("ptp", "ADD", &pod, &conf).expect("ADD");
    let (_, text) = host.call("ptp", "CHECK", &pod, &conf).error();
    assert!(text.starts_with("ptp: Required prevResult missing"), "{text}");
}

#[test]
fn faults_leave_nothing() {
    let static_without_gateway = r#""type": "static", "addresses": [{"address": "10.9.1.7/24"}]"#;
    let bad_route = r#""type": "host-local", "dataDir": "DIR", "subnet": "10.9.1.0/24",
        "routes": [{"dst": "10.0.0.0/8", "gw": "172.16.0.1"}]"#;
    for (case, code, want) in [
        (case("1.0.0", "", ""), 7, "no plugin name provided"),
        (case("1.0.0", r#""mtu": "1500""#, V4), 7, "failed to load netconf: json: cannot unmarshal string"),
        (case("1.0.0", r#""mtu": 5"#, V4), 7, "invalid MTU 5"),
        (case("1.0.0", r#""ipMasq": 1"#, V4), 7, "NetConf.ipMasq of type bool"),
        (case("1.0.0", r#""ipMasqBackend": "x""#, V4), 7, "unknown ipmasq backend \"x\""),
        (case("1.0.0", "", r#""type": "no-such""#), 7, "failed to find plugin \"no-such\""),
        (case("1.0.0", "", static_without_gateway), 7, "address 10.9.1.7/24 has no gateway"),
        (case("1.0.0", "", bad_route), 999, "failed to add route 10.0.0.0/8 via 172.16.0.1"),
    ] {
        let host = Host::new();
        let (netns, pod) = pod("c1");
        let answer = host.call("ptp", "ADD", &pod, &case.conf(&host));
        let (have, text) = answer.error();
        assert!(text.contains(want), "{text}");
        assert_eq!(have, code, "{text}");
        assert_eq!(host.links(), [""; 0]);
        assert!(!ip_in(&netns, "link show").contains("eth0"));
        assert!(host.files("networks").iter().all(|f| !f.contains("10.9")), "{:?}", host.files("networks"));
        assert_eq!(host.files("state/attachments"), [""; 0]);
    }
}

#[test]
fn a_second_add_and_a_taken_name_are_refused() {
    let host = Host::new();
    let (netns, pod) = pod("c1");
    let conf = case("1.0.0", "", V4).conf(&host);
    host.call("ptp", "ADD", &pod, &conf).expect("ADD");
    let before = crate::witness::picture(&netns);
    let (_, text) = host.call("ptp", "ADD", &pod, &conf).error();
    assert!(text.starts_with("container veth name (\"eth0\") peer provided (\"veth"), "{text}");
    assert_eq!(crate::witness::picture(&netns), before);
    let gc = with(
        &with(&conf, "cniVersion", "1.1.0"),
        "cni.dev/valid-attachments",
        Json::array(Vec::<Json>::new()),
    );
    assert!(host.call("ptp", "GC", &pod, &gc).ok);
    assert_eq!(host.links(), [""; 0], "GC removes what no valid attachment needs");
    assert!(host.files("networks").iter().all(|f| !f.contains("10.9")));
}
