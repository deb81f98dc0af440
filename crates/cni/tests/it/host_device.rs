//! `host-device` beside Debian's: the rows of the conformance list (cni.md 4.3).

use crate::harness::{DEBIAN, Host, Pod, debian, ip_in, pod, with};
use crate::witness::{Case, picture};
use model::gojson::Json;

const V4: &str =
    r#""type": "host-local", "dataDir": "DIR", "subnet": "10.9.1.0/24", "routes": [{"dst": "10.8.0.0/16"}]"#;
const DUAL: &str = r#""type": "host-local", "dataDir": "DIR", "ranges": [[{"subnet": "10.9.1.0/24"}],
    [{"subnet": "2001:db8:9::/64"}]], "routes": [{"dst": "10.8.0.0/16"}, {"dst": "2001:db8:8::/48"}]"#;

const fn case<'a>(version: &'a str, members: &'a str, ipam: &'a str) -> Case<'a> {
    Case { plugin: "host-device", version, members, ipam, args: "" }
}

/// A device to give away, with its other end up.
fn device(host: &Host) {
    host.ip("link add nic0 address 0a:00:00:00:01:00 type veth peer name nic1");
    host.ip("link set nic1 up");
}

#[test]
fn results_and_state_are_those_of_debians_plugins() {
    if !debian("host_device::results_and_state_are_those_of_debians_plugins") {
        return;
    }
    let nic0 = r#""device": "nic0""#;
    for case in [
        case("0.2.0", nic0, V4),
        case("0.3.0", nic0, V4),
        case("0.3.1", nic0, ""),
        case("0.4.0", nic0, V4),
        case("1.0.0", nic0, ""),
        case("1.0.0", nic0, DUAL),
        case("1.0.0", r#""hwaddr": "0a:00:00:00:01:00""#, V4),
    ] {
        // Theirs fails at the second DEL, so it is compared after one.
        let run = |dirs: &[&str]| {
            let host = Host::new();
            device(&host);
            let (netns, pod) = pod("c1");
            let conf = case.conf(&host);
            let result = host.call_with(dirs, "host-device", "ADD", &pod, &conf).expect(&conf);
            let text =
                format!("{}\n{}{}", crate::harness::stable(&result), picture(&netns), picture(&host.netns));
            if dirs != [DEBIAN] && case.version >= "0.4.0" {
                host.call("host-device", "CHECK", &pod, &with(&conf, "prevResult", result)).expect("CHECK");
            }
            let ours = host.bin().display().to_string();
            let back = if dirs == [DEBIAN] { &[DEBIAN][..] } else { &[ours.as_str()] };
            assert!(host.call_with(back, "host-device", "DEL", &pod, &conf).ok, "{conf}");
            format!("{text}after {}{}{:?}", picture(&netns), picture(&host.netns), host.files("networks"))
        };
        let ours = Host::new();
        assert_eq!(
            run(&[&ours.bin().display().to_string()]),
            run(&[DEBIAN]),
            "{} {}",
            case.version,
            case.members
        );
    }
}

#[test]
fn either_brings_back_what_the_other_moved() {
    if !debian("host_device::either_brings_back_what_the_other_moved") {
        return;
    }
    let ours = Host::new();
    let bin = ours.bin().display().to_string();
    for (first, second) in [(DEBIAN, bin.as_str()), (bin.as_str(), DEBIAN)] {
        let host = Host::new();
        device(&host);
        let (netns, pod) = pod("c1");
        let conf = case("1.0.0", r#""device": "nic0""#, V4).conf(&host);
        host.call_with(&[first], "host-device", "ADD", &pod, &conf).expect("ADD");
        assert!(ip_in(&netns, "link show eth0").contains("alias nic0"));
        assert!(host.call_with(&[second], "host-device", "DEL", &pod, &conf).ok);
        assert_eq!(host.links(), ["nic1", "nic0"]);
    }
}

/// DEL fails while another device has the old name and the device stays in the pod; then it succeeds.
#[test]
fn a_name_clash_on_the_way_back() {
    let host = Host::new();
    device(&host);
    let (netns, pod) = pod("c1");
    let conf = case("1.0.0", r#""device": "nic0""#, V4).conf(&host);
    host.call("host-device", "ADD", &pod, &conf).expect("ADD");
    host.ip("link add nic0 type veth peer name other");
    // On the host a device may be called like the pod's.
    host.ip("link add eth0 type veth peer name third");
    let (_, text) = host.call("host-device", "DEL", &pod, &conf).error();
    assert!(text.contains("failed to move \"eth0\" back to the host as nic0"), "{text}");
    assert!(text.contains("free the name nic0 on the host"), "{text}");
    let link = ip_in(&netns, "link show eth0");
    assert!(link.contains("UP") && link.contains("alias nic0"), "{link}");
    assert!(host.files("networks").contains(&"net/10.9.1.2".to_owned()), "the address goes with the device");
    host.ip("link del nic0");
    for _ in 0..2 {
        assert!(host.call("host-device", "DEL", &pod, &conf).ok);
    }
    assert!(host.ip("link show nic0").contains("state DOWN"));
    assert!(!ip_in(&netns, "link show").contains("eth0"));
    assert_eq!(host.files("networks"), ["net/last_reserved_ip.0", "net/lock"]);
    assert_eq!(host.files("state/attachments"), [""; 0]);
}

/// A device like the pod's interface, and one in the pod like the device, are in nobody's way.
#[test]
fn equal_names_elsewhere_do_not_matter() {
    let host = Host::new();
    device(&host);
    host.ip("link add eth0 type veth peer name third");
    let (netns, pod) = pod("c1");
    ip_in(&netns, "link add nic0 type veth peer name x");
    let conf = case("1.0.0", r#""device": "nic0""#, "").conf(&host);
    host.call("host-device", "ADD", &pod, &conf).expect("ADD");
    assert!(ip_in(&netns, "link show eth0").contains("0a:00:00:00:01:00"));
    assert!(ip_in(&netns, "link show nic0").contains("nic0@x"));
    ip_in(&netns, "link del nic0");
    assert!(host.call("host-device", "DEL", &pod, &conf).ok);
    assert!(host.ip("link show nic0").contains("0a:00:00:00:01:00"));
}

/// Without namespace the address is released, and a device the kernel brought back gets its name (B-31).
#[test]
fn del_without_namespace() {
    for path in ["", "/run/netns/no-such"] {
        let host = Host::new();
        device(&host);
        let (_netns, pod) = pod("c1");
        let conf = case("1.1.0", r#""device": "nic0""#, V4).conf(&host);
        host.call("host-device", "ADD", &pod, &conf).expect("ADD");
        // As a physical device comes back from a namespace that ended.
        host.ip("link add dev5 type veth peer name x");
        host.ip("link set dev5 alias nic0");
        let gone = Pod { path: path.to_owned(), ..pod.clone() };
        for _ in 0..2 {
            assert!(host.call("host-device", "DEL", &gone, &conf).ok);
        }
        assert!(host.links().contains(&"nic0".to_owned()), "{:?}", host.links());
        assert_eq!(host.files("networks"), ["net/last_reserved_ip.0", "net/lock"]);
        let gc = with(&conf, "cni.dev/valid-attachments", Json::array(Vec::<Json>::new()));
        assert!(host.call("host-device", "GC", &pod, &gc).ok);
    }
}

#[test]
fn faults_leave_the_device_where_it_was() {
    let bad_route = r#""type": "host-local", "dataDir": "DIR", "subnet": "10.9.1.0/24",
        "routes": [{"dst": "10.0.0.0/8", "gw": "172.16.0.1"}]"#;
    for (case, code, want) in [
        (case("1.0.0", "", V4), 7, "specify either \"device\", \"hwaddr\", \"kernelpath\" or \"pciBusID\""),
        (case("1.0.0", r#""device": 1"#, V4), 7, "NetConf.device of type string"),
        (case("1.0.0", r#""device": "no""#, V4), 999, "failed to find host device \"no\": Link not found"),
        (case("1.0.0", r#""hwaddr": "x""#, V4), 7, "hwaddr: "),
        (
            case("1.0.0", r#""hwaddr": "0a:00:00:00:09:09""#, V4),
            999,
            "failed to find host device 0a:00:00:00:09:09",
        ),
        (case("1.0.0", r#""kernelpath": "/tmp""#, V4), 7, "must be absolute and begin with /sys/devices/"),
        (
            case("1.0.0", r#""pciBusID": "ffff:00:00.0""#, V4),
            999,
            "/sys/bus/pci/devices/ffff:00:00.0: Link not found",
        ),
        (case("0.2.0", r#""device": "nic0""#, ""), 7, "cannot convert: no valid IP addresses"),
        (
            case("1.0.0", r#""device": "nic0""#, bad_route),
            999,
            "failed to add route 10.0.0.0/8 via 172.16.0.1",
        ),
        (
            case("1.0.0", r#""device": "nic0""#, r#""type": "no-such""#),
            7,
            "failed to find plugin \"no-such\"",
        ),
    ] {
        let host = Host::new();
        device(&host);
        let (netns, pod) = pod("c1");
        let (have, text) = host.call("host-device", "ADD", &pod, &case.conf(&host)).error();
        assert!(text.contains(want), "{text}");
        assert_eq!(have, code, "{text}");
        let mut links = host.links();
        links.sort();
        assert_eq!(links, ["nic0", "nic1"]);
        assert!(!ip_in(&netns, "link show").contains("eth0"));
        assert!(host.files("networks").iter().all(|f| !f.contains("10.9")));
        assert_eq!(host.files("state/attachments"), [""; 0]);
    }
    // A taken name in the pod: nothing moves, and DEL leaves what it did not bring.
    let host = Host::new();
    device(&host);
    let (netns, pod) = pod("c1");
    ip_in(&netns, "link add eth0 type veth peer name x");
    let conf = case("1.0.0", r#""device": "nic0""#, V4).conf(&host);
    let (_, text) = host.call("host-device", "ADD", &pod, &conf).error();
    assert!(text.contains("container interface name \"eth0\" already exists"), "{text}");
    assert!(host.links().contains(&"nic0".to_owned()));
}
