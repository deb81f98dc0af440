//! Our plugins and Debian's calling each other.

use crate::chain::conflist;
use crate::harness::{DEBIAN, Host, debian, pod, stable, with};

#[test]
fn flannel_executes_a_foreign_bridge() {
    if !debian("flannel_executes_a_foreign_bridge") {
        return;
    }
    let run = |foreign: &[&str]| {
        let host = Host::new();
        let chain = conflist(&host, "1.0.0");
        let (_netns, pod) = pod("c1");
        // Only `flannel` is ours there; what it delegates to is found on CNI_PATH.
        let own = host.path("own");
        std::fs::create_dir_all(&own).unwrap();
        std::os::unix::fs::symlink(crate::harness::OURS, format!("{own}/flannel")).unwrap();
        let bin = host.bin().display().to_string();
        let mut dirs = vec![own.as_str()];
        dirs.extend(if foreign.is_empty() { vec![bin.as_str()] } else { foreign.to_vec() });
        let result = host.call_with(&dirs, "flannel", "ADD", &pod, &chain[0].1).expect("ADD");
        if foreign.is_empty() {
            // Theirs (1.1.1) does not find the routes it made itself when they were given without gateway.
            let told = with(&chain[0].1, "prevResult", result.clone());
            host.call_with(&dirs, "flannel", "CHECK", &pod, &told).expect("CHECK");
        }
        for _ in 0..2 {
            assert!(host.call_with(&dirs, "flannel", "DEL", &pod, &chain[0].1).ok);
        }
        assert_eq!(host.links(), ["cni0"]);
        assert_eq!(host.files("networks"), ["cbr0/last_reserved_ip.0", "cbr0/lock"]);
        stable(&result)
    };
    assert_eq!(run(&[]), run(&[DEBIAN]));
}

#[test]
fn a_foreign_bridge_executes_our_host_local() {
    if !debian("a_foreign_bridge_executes_our_host_local") {
        return;
    }
    let host = Host::new();
    let (_netns, pod) = pod("c1");
    let dir = host.path("networks");
    let conf = format!(
        r#"{{"cniVersion": "1.0.0", "name": "net", "type": "bridge", "isGateway": true,
            "ipam": {{"type": "host-local", "dataDir": "{dir}", "subnet": "10.9.1.0/24"}}}}"#
    );
    let bin = host.bin().display().to_string();
    std::fs::remove_file(host.bin().join("bridge")).unwrap();
    let dirs = [bin.as_str(), DEBIAN];
    let result = host.call_with(&dirs, "bridge", "ADD", &pod, &conf).expect("ADD");
    assert!(!host.files("state/ipam").is_empty(), "ours was executed");
    host.call_with(&dirs, "bridge", "CHECK", &pod, &with(&conf, "prevResult", result)).expect("CHECK");
    assert!(host.call_with(&dirs, "bridge", "DEL", &pod, &conf).ok);
    assert_eq!(host.files("networks"), ["net/last_reserved_ip.0", "net/lock"]);
}

/// A chain begun by upstream's programs is ended by ours, and the other way round (a migration).
#[test]
fn either_ends_what_the_other_began() {
    if !debian("either_ends_what_the_other_began") {
        return;
    }
    let ours = Host::new();
    let bin = ours.bin().display().to_string();
    for (first, second) in [(DEBIAN, bin.as_str()), (bin.as_str(), DEBIAN)] {
        let host = Host::new();
        let (_netns, pod) = pod("c1");
        let dir = host.path("networks");
        let conf = format!(
            r#"{{"cniVersion": "1.0.0", "name": "net", "type": "bridge", "isDefaultGateway": true,
                "ipam": {{"type": "host-local", "dataDir": "{dir}", "subnet": "10.9.1.0/24"}}}}"#
        );
        let result = host.call_with(&[first], "bridge", "ADD", &pod, &conf).expect("ADD");
        let told = with(&conf, "prevResult", result);
        host.call_with(&[second], "bridge", "CHECK", &pod, &told).expect("CHECK");
        assert!(host.call_with(&[second], "bridge", "DEL", &pod, &told).ok);
        assert_eq!(host.links(), ["cni0"]);
        assert_eq!(host.files("networks"), ["net/last_reserved_ip.0", "net/lock"]);
    }
}

/// Upstream's flannel plugin keeps the document under the container's id alone.
#[test]
fn a_document_of_upstreams_is_understood() {
    let host = Host::new();
    let chain = conflist(&host, "0.3.1");
    let (_netns, pod) = pod("c1");
    crate::chain::add(&host, &chain[..1], &pod);
    let own = host.path("flannel/c1:eth0");
    std::fs::remove_file(own).unwrap();
    assert_eq!(host.files("flannel"), ["c1"]);
    assert!(host.call("flannel", "DEL", &pod, &chain[0].1).ok);
    assert_eq!(host.links(), ["cni0"]);
    assert_eq!(host.files("flannel"), [""; 0]);
}

#[test]
fn a_delegates_error_is_handed_on() {
    let host = Host::new();
    let chain = conflist(&host, "1.0.0");
    let (_netns, pod) = pod("c1");
    let script = |text: &str| {
        let path = host.bin().join("bridge");
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, format!("#!/bin/sh\ncat >/dev/null\n{text}\n")).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).unwrap();
    };
    for (text, code, want) in [
        (
            r#"[ $CNI_COMMAND = DEL ] || { echo '{"code": 142, "msg": "no luck", "details": "d"}'; exit 1; }"#,
            142,
            "no luck; d",
        ),
        (
            "[ $CNI_COMMAND = DEL ] || { echo oops >&2; exit 3; }",
            999,
            "netplugin failed: \"oops\": exit status: 3; ",
        ),
        ("[ $CNI_COMMAND = DEL ] || exit 1", 999, "netplugin failed with no error message: exit status: 1; "),
        (
            "[ $CNI_COMMAND = DEL ] || { echo a b; exit 1; }",
            999,
            "netplugin failed but error parsing its diagnostic",
        ),
        ("echo '{'", 6, "read the result of plugin \"bridge\": "),
    ] {
        script(text);
        let (have, message) = host.call("flannel", "ADD", &pod, &chain[0].1).error();
        assert_eq!(have, code, "{message}");
        assert!(message.starts_with(want), "{message}");
        assert_eq!(host.files("flannel"), [""; 0], "{text}");
    }
    // A DEL that fails keeps the document for the next (F-150).
    script("[ $CNI_COMMAND = ADD ] && exit 0; echo '{\"code\": 11, \"msg\": \"later\"}'; exit 1");
    let scratch = host.path("flannel");
    std::fs::create_dir_all(&scratch).unwrap();
    std::fs::write(format!("{scratch}/c1"), r#"{"name": "cbr0", "type": "bridge"}"#).unwrap();
    let (have, _) = host.call("flannel", "DEL", &pod, &chain[0].1).error();
    assert_eq!((have, host.files("flannel")), (11, vec!["c1".to_owned()]));
    script("exit 0");
    assert!(host.call("flannel", "DEL", &pod, &chain[0].1).ok);
    assert_eq!(host.files("flannel"), [""; 0]);
    std::fs::remove_file(host.bin().join("bridge")).unwrap();
    let (_, message) = host.call("flannel", "ADD", &pod, &chain[0].1).error();
    assert!(message.contains("failed to find plugin \"bridge\" in path ["), "{message}");
}
