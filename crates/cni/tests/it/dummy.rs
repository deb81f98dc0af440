//! `dummy`: Debian's version of the plugins has none, so `ip` is the witness.

use crate::harness::{Host, ip_in, kernel_has, pod, with};
use crate::witness::Case;

const DUAL: &str = r#""type": "host-local", "dataDir": "DIR", "ranges": [[{"subnet": "10.9.1.0/24"}],
    [{"subnet": "2001:db8:9::/64"}]], "routes": [{"dst": "10.8.0.0/16"}]"#;

const fn case<'a>(version: &'a str, ipam: &'a str) -> Case<'a> {
    Case { plugin: "dummy", version, members: "", ipam, args: "" }
}

/// Rows of the conformance list (cni.md 4.3): created, also where the host has the name; ADD, CHECK, DEL.
#[test]
fn dummy_carries_its_addresses() {
    if !kernel_has("dummy_carries_its_addresses", "dummy") {
        return;
    }
    for version in ["0.2.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let host = Host::new();
        host.ip("link add eth0 type veth peer name other");
        let (netns, pod) = pod("c1");
        let conf = case(version, DUAL).conf(&host);
        let result = host.call("dummy", "ADD", &pod, &conf).expect("ADD");
        assert!(ip_in(&netns, "-d link show eth0").contains("dummy"));
        let addresses = ip_in(&netns, "addr show eth0");
        assert!(addresses.contains("10.9.1.2/24") && addresses.contains("2001:db8:9::2/64"), "{addresses}");
        assert!(!addresses.contains("tentative"), "{addresses}");
        assert!(ip_in(&netns, "route").contains("10.8.0.0/16 via 10.9.1.1"));
        if version >= "0.4.0" {
            let told = with(&conf, "prevResult", result);
            host.call("dummy", "CHECK", &pod, &told).expect("CHECK");
            ip_in(&netns, "link set eth0 down");
            assert!(host.call("dummy", "CHECK", &pod, &told).error().1.contains("interface eth0 is down"));
            ip_in(&netns, "link del eth0");
            assert!(host.call("dummy", "CHECK", &pod, &told).error().1.contains("not found"));
            let (_, text) = host.call("dummy", "CHECK", &pod, &conf).error();
            assert!(text.contains("dummy: Required prevResult missing"), "{text}");
        }
        for _ in 0..2 {
            assert!(host.call("dummy", "DEL", &pod, &conf).ok);
        }
        assert!(!ip_in(&netns, "link show").contains("eth0"));
        assert!(host.files("networks").iter().all(|f| !f.contains("10.9")));
        assert_eq!(host.files("state/attachments"), [""; 0]);
    }
}

#[test]
fn an_address_manager_is_needed() {
    let host = Host::new();
    let (_netns, pod) = pod("c1");
    for verb in ["ADD", "CHECK", "STATUS"] {
        let (code, text) = host.call("dummy", verb, &pod, &case("1.1.0", "").conf(&host)).error();
        assert_eq!(code, 7);
        assert!(text.starts_with("dummy interface requires an IPAM configuration"), "{text}");
    }
    assert!(host.call("dummy", "DEL", &pod, &case("1.1.0", "").conf(&host)).ok);
}
