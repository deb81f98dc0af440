//! `loopback` beside Debian's.

use crate::harness::{DEBIAN, Host, Pod, debian, ip_in, pod, stable, with};
use model::gojson::Json;

fn conf(version: &str) -> String {
    format!(r#"{{"cniVersion": "{version}", "name": "lo", "type": "loopback"}}"#)
}

#[test]
fn lo_goes_up_and_down() {
    for version in ["0.1.0", "0.2.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let host = Host::new();
        let (netns, pod) = pod("c1");
        let pod = Pod { ifname: "lo".to_owned(), ..pod };
        let result = host.call("loopback", "ADD", &pod, &conf(version)).expect("ADD");
        assert!(ip_in(&netns, "link show lo").contains("UP"), "{version}");
        if version < "0.3.0" {
            let ip = |key: &str| result.get(key).and_then(|ip| ip.get("ip")).and_then(Json::as_str);
            assert_eq!((ip("ip4"), ip("ip6")), (Some("127.0.0.1/8"), Some("::1/128")));
        }
        if version == "1.0.0" && debian("lo_goes_up_and_down") {
            let theirs = host.call_with(&[DEBIAN], "loopback", "ADD", &pod, &conf(version)).expect("ADD");
            assert_eq!(stable(&result), stable(&theirs));
        }
        if version >= "0.4.0" {
            host.call("loopback", "CHECK", &pod, &with(&conf(version), "prevResult", result)).expect("CHECK");
        }
        for _ in 0..2 {
            assert!(host.call("loopback", "DEL", &pod, &conf(version)).ok);
        }
        assert!(!ip_in(&netns, "link show lo").contains("LOWER_UP"));
        if version >= "0.4.0" {
            let (_, text) = host.call("loopback", "CHECK", &pod, &conf(version)).error();
            assert!(text.contains("loopback interface is down"), "{text}");
        }
        for path in ["", "/no/such"] {
            assert!(
                host.call("loopback", "DEL", &Pod { path: path.to_owned(), ..pod.clone() }, &conf(version))
                    .ok
            );
        }
    }
}

#[test]
fn a_foreign_address_is_refused() {
    let host = Host::new();
    let (netns, pod) = pod("c1");
    ip_in(&netns, "addr add 10.0.0.1/32 dev lo");
    let (_, text) = host.call("loopback", "ADD", &pod, &conf("1.0.0")).error();
    assert!(text.contains("loopback interface found with non-loopback address \"10.0.0.1\""), "{text}");
}
