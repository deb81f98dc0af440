//! `tap`: Debian's version of the plugins has none, so `ip` is the witness.

use crate::harness::{Answer, Host, ip_in, pod, with};
use crate::witness::Case;
use model::gojson::Json;

const DUAL: &str = r#""type": "host-local", "dataDir": "DIR", "ranges": [[{"subnet": "10.9.1.0/24"}],
    [{"subnet": "2001:db8:9::/64"}]], "routes": [{"dst": "10.8.0.0/16"}, {"dst": "2001:db8:8::/48"}]"#;

const fn case<'a>(version: &'a str, members: &'a str, ipam: &'a str) -> Case<'a> {
    Case { plugin: "tap", version, members, ipam, args: "" }
}

fn there(test: &str) -> bool {
    let there = std::path::Path::new("/dev/net/tun").exists();
    if !there {
        println!("SKIP {test}: this machine lacks /dev/net/tun");
    }
    there
}

#[test]
fn a_tap_device_as_configured() {
    if !there("tap::a_tap_device_as_configured") {
        return;
    }
    let own = r#""owner": 1001, "group": 1002, "multiQueue": true, "mtu": 1400, "mac": "0a:00:00:00:00:07""#;
    for (version, members, ipam, args, want) in [
        ("0.2.0", "", DUAL, "", vec!["persist on", "type tap pi off vnet_hdr on"]),
        ("0.3.1", "", "", "", vec!["persist on"]),
        (
            "0.4.0",
            own,
            DUAL,
            "",
            vec!["user 1001", "group 1002", "multi_queue numqueues", "mtu 1400", "0a:00:00:00:00:07"],
        ),
        ("1.0.0", own, "", "MAC=0a:00:00:00:00:08", vec!["0a:00:00:00:00:08"]),
        ("1.1.0", r#""owner": 0"#, DUAL, "", vec!["user root"]),
        (
            "1.0.0",
            r#""runtimeConfig": {"mac": "0a:00:00:00:00:09"}"#,
            "",
            "MAC=0a:00:00:00:00:08",
            vec!["0a:00:00:00:00:09"],
        ),
        ("1.0.0", r#""selinuxContext": "system_u:system_r:container_t:s0""#, "", "", vec!["type tap"]),
    ] {
        let host = Host::new();
        let (netns, pod) = pod("c1");
        let conf = case(version, members, ipam).conf(&host);
        let mut command = host.prepare(&[&host.bin().display().to_string()], "tap", "ADD", &pod);
        command.env("CNI_ARGS", args);
        let result = Answer::of(host.run(&mut command, &conf)).expect(&conf);
        let link = ip_in(&netns, "-d link show eth0");
        for want in want {
            assert!(link.contains(want), "{want:?} in {link}");
        }
        assert!(link.contains(",UP"), "{link}");
        if !ipam.is_empty() {
            let addresses = ip_in(&netns, "addr show eth0");
            assert!(
                addresses.contains("10.9.1.2/24") && addresses.contains("2001:db8:9::2/64"),
                "{addresses}"
            );
            assert!(ip_in(&netns, "route").contains("10.8.0.0/16 via 10.9.1.1"));
        }
        assert_eq!(
            kernel::sysctl::read_in(&netns, "net/ipv4/conf/eth0/arp_notify").ok().as_deref(),
            (!ipam.is_empty()).then_some("1").or(Some("0"))
        );
        if version >= "0.4.0" {
            let told = with(&conf, "prevResult", result);
            let mut command = host.prepare(&[&host.bin().display().to_string()], "tap", "CHECK", &pod);
            command.env("CNI_ARGS", args);
            Answer::of(host.run(&mut command, &told)).expect("CHECK");
            ip_in(&netns, "link del eth0");
            assert!(host.call("tap", "CHECK", &pod, &told).error().1.contains("not found"));
        }
        for _ in 0..2 {
            assert!(host.call("tap", "DEL", &pod, &conf).ok);
        }
        assert!(!ip_in(&netns, "link show").contains("eth0"));
        assert!(host.files("networks").iter().all(|f| !f.contains("10.9")));
        assert_eq!(host.files("state/attachments"), [""; 0]);
    }
}

#[test]
fn a_port_of_a_bridge_in_the_pod() {
    if !there("tap::a_port_of_a_bridge_in_the_pod") {
        return;
    }
    let host = Host::new();
    let (netns, pod) = pod("c1");
    let conf = case("1.0.0", r#""bridge": "br0""#, "").conf(&host);
    let (_, text) = host.call("tap", "ADD", &pod, &conf).error();
    assert!(text.contains("bridge br0: Link not found"), "{text}");
    assert!(!ip_in(&netns, "link show").contains("eth0"));
    ip_in(&netns, "link add br0 type bridge");
    host.call("tap", "ADD", &pod, &conf).expect("ADD");
    assert!(ip_in(&netns, "link show eth0").contains("master br0"));
}

#[test]
fn faults_leave_nothing() {
    for (case, want) in [
        (case("1.0.0", r#""owner": "x""#, DUAL), "NetConf.owner of type int"),
        (case("1.0.0", r#""group": -1"#, DUAL), "group: -1 is out of range"),
        (case("1.0.0", r#""multiQueue": "x""#, DUAL), "NetConf.multiQueue of type bool"),
        (case("1.0.0", r#""mtu": 1"#, DUAL), "invalid MTU 1"),
        (case("1.0.0", r#""selinuxContext": 1"#, DUAL), "NetConf.selinuxContext of type string"),
        (case("0.2.0", "", ""), "cannot convert: no valid IP addresses"),
    ] {
        let host = Host::new();
        let (netns, pod) = pod("c1");
        let (code, text) = host.call("tap", "ADD", &pod, &case.conf(&host)).error();
        assert!(text.contains(want), "{text}");
        assert_eq!(code, 7);
        assert!(!ip_in(&netns, "link show").contains("eth0"));
        assert!(host.files("networks").iter().all(|f| !f.contains("10.9")));
    }
    let host = Host::new();
    let (netns, pod) = pod("c1");
    ip_in(&netns, "link add eth0 type bridge");
    let conf = case("1.1.0", "", DUAL).conf(&host);
    assert!(
        host.call("tap", "ADD", &pod, &conf)
            .error()
            .1
            .contains("container interface name \"eth0\" already exists")
    );
    assert!(host.call("tap", "STATUS", &pod, &conf).ok);
    let gc = with(&conf, "cni.dev/valid-attachments", Json::array(Vec::<Json>::new()));
    assert!(host.call("tap", "GC", &pod, &gc).ok);
}
