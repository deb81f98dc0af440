//! Address managers: ours in the same process, foreign ones once the interface is there (decision 0110).

use crate::children::wire;
use crate::harness::{Host, ip_in, pod, with};
use model::gojson::Json;

/// One program is executed, whatever the chain below it.
#[test]
fn a_manager_of_ours_costs_no_process() {
    if !std::path::Path::new("/usr/bin/strace").exists() {
        println!("SKIP a_manager_of_ours_costs_no_process: strace is not installed");
        return;
    }
    let host = Host::new();
    wire(&host);
    let dir = host.path("networks");
    let local = format!(r#"{{"type": "host-local", "dataDir": "{dir}", "subnet": "10.9.1.0/24"}}"#);
    let fixed = r#"{"type": "static", "addresses": [{"address": "10.9.1.7/24", "gateway": "10.9.1.1"}]}"#;
    for (plugin, members) in [
        ("bridge", ""),
        ("ptp", ""),
        ("macvlan", r#", "master": "up0""#),
        ("host-device", r#", "device": "up1""#),
    ] {
        for ipam in [&local, fixed] {
            let (_netns, pod) = pod("c1");
            let conf = format!(
                r#"{{"cniVersion": "1.0.0", "name": "net", "type": "{plugin}"{members}, "ipam": {ipam}}}"#
            );
            for verb in ["ADD", "DEL"] {
                let log = host.path("strace");
                let plain = host.prepare(&[&host.bin().display().to_string()], plugin, verb, &pod);
                let mut command = host.command("/usr/bin/strace");
                command.args(["-f", "-qq", "-e", "trace=execve,clone,clone3,fork,vfork", "-o", &log]);
                command.arg(plain.get_program());
                command.envs(plain.get_envs().filter_map(|(k, v)| Some((k, v?))));
                let output = host.run(&mut command, &conf);
                assert!(output.status.success(), "{plugin} {verb}: {output:?}");
                let text = std::fs::read_to_string(&log).unwrap();
                assert_eq!(text.matches("execve(").count(), 1, "{plugin} {verb}: {text}");
                if verb == "ADD" {
                    // Threads wait for a lock or a carrier at most; no process.
                    assert!(
                        !text.lines().any(|l| l.contains("clone") && !l.contains("CLONE_THREAD")),
                        "{text}"
                    );
                }
            }
        }
    }
}

/// A foreign manager: a shell script.
fn manager(host: &Host, name: &str, text: &str) {
    let path = host.bin().join(name);
    let _ = std::fs::remove_file(&path);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, mode).unwrap();
}

/// A manager that speaks through the interface, as dhcp does, finds it; what it refuses leaves nothing.
#[test]
fn a_foreign_manager_finds_the_interface() {
    let host = Host::new();
    wire(&host);
    let script = |text: &str| manager(&host, "needy", &format!("cat >/dev/null\n{text}"));
    let looks = r#"echo "$CNI_COMMAND" >> "$LODEN_CNI_STATE_DIR.log"
        [ $CNI_COMMAND = ADD ] || exit 0
        nsenter --net=$CNI_NETNS ip link show $CNI_IFNAME >/dev/null || { echo '{"code": 142, "msg": "no interface"}'; exit 1; }
        echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.9.1.7/24", "gateway": "10.9.1.1"}]}'"#;
    let refuses = r#"echo "$CNI_COMMAND" >> "$LODEN_CNI_STATE_DIR.log"
        [ $CNI_COMMAND = ADD ] || exit 0
        echo '{"code": 142, "msg": "no luck"}'; exit 1"#;
    for (plugin, members) in [
        ("bridge", r#""isDefaultGateway": true"#),
        ("macvlan", r#""master": "up0""#),
        ("host-device", r#""device": "up1""#),
    ] {
        let conf = format!(
            r#"{{"cniVersion": "1.0.0", "name": "net", "type": "{plugin}", {members}, "ipam": {{"type": "needy"}}}}"#
        );
        let (netns, pod) = pod("c1");
        let log = || std::fs::read_to_string(host.path("state.log")).unwrap_or_default();
        script(looks);
        let result = host.call(plugin, "ADD", &pod, &conf).expect(plugin);
        assert!(ip_in(&netns, "addr show eth0").contains("10.9.1.7/24"));
        if plugin == "bridge" {
            assert!(host.ip("addr show cni0").contains("10.9.1.1/24"), "the gateway comes after");
            assert!(ip_in(&netns, "route").contains("default via 10.9.1.1"));
        }
        host.call(plugin, "CHECK", &pod, &with(&conf, "prevResult", result)).expect(plugin);
        host.call(plugin, "DEL", &pod, &conf).expect(plugin);
        assert!(!ip_in(&netns, "link show").contains("eth0"));
        assert_eq!(log(), "ADD\nCHECK\nDEL\n", "{plugin}");
        std::fs::remove_file(host.path("state.log")).unwrap();
        script(refuses);
        let (code, text) = host.call(plugin, "ADD", &pod, &conf).error();
        assert_eq!((code, text.as_str()), (142, "no luck; "), "{plugin}");
        assert_eq!(log(), "ADD\nDEL\n", "{plugin}: a manager that failed is told to release");
        std::fs::remove_file(host.path("state.log")).unwrap();
        assert!(!ip_in(&netns, "link show").contains("eth0"));
        assert!(host.ip("link show up1").contains("up1"));
        assert_eq!(host.files("state/attachments"), [""; 0]);
    }
}

/// SIGTERM during ADD (P-7): while a foreign manager hangs, and while everything else goes well.
#[test]
fn a_signal_to_end_is_an_error_and_nothing_stays() {
    let host = Host::new();
    wire(&host);
    let script = |text: &str| {
        manager(&host, "slow", &format!("[ $CNI_COMMAND = ADD ] || exit 0\nkill -TERM $PPID\n{text}"))
    };
    let answers = r#"cat >/dev/null
        echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.9.1.7/24", "gateway": "10.9.1.1"}]}'"#;
    for text in ["sleep 1000", answers] {
        script(text);
        for (plugin, members) in [
            ("bridge", r#""isDefaultGateway": true, "ipMasq": true"#),
            ("ptp", r#""ipMasq": true"#),
            ("macvlan", r#""master": "up0""#),
            ("host-device", r#""device": "up1""#),
        ] {
            let conf = format!(
                r#"{{"cniVersion": "1.0.0", "name": "net", "type": "{plugin}", {members}, "ipam": {{"type": "slow"}}}}"#
            );
            let (netns, pod) = pod("c1");
            let (code, said) = host.call(plugin, "ADD", &pod, &conf).error();
            assert!(code == 11 && said.starts_with("ended by a signal; "), "{plugin} {code} {said}");
            assert!(!ip_in(&netns, "link show").contains("eth0"), "{plugin}");
            let mut links = host.links();
            links.retain(|name| name != "cni0");
            links.sort();
            assert_eq!(links, ["up0", "up1"], "{plugin}");
            assert!(!host.rules().contains("10.9.1.7"), "{plugin}: {}", host.rules());
            assert_eq!(host.files("state/attachments"), [""; 0], "{plugin}");
        }
    }
}

/// Every verb and version of a plugin without configuration.
#[test]
fn verbs_of_loopback_and_static() {
    let host = Host::new();
    let (_netns, pod) = pod("c1");
    for plugin in ["loopback", "static"] {
        let conf = format!(
            r#"{{"cniVersion": "1.1.0", "name": "net", "type": "{plugin}", "ipam": {{"addresses": [{{"address": "10.9.1.7/24"}}]}}}}"#
        );
        let gc = with(&conf, "cni.dev/valid-attachments", Json::array(Vec::<Json>::new()));
        for (verb, conf) in [("STATUS", &conf), ("GC", &gc), ("DEL", &conf), ("DEL", &conf)] {
            let answer = host.call(plugin, verb, &pod, conf);
            assert!(answer.ok && answer.text.is_empty(), "{plugin} {verb}: {}", answer.text);
        }
        let version = host.call(plugin, "VERSION", &pod, "").expect("VERSION");
        assert!(version.to_compact().contains("\"1.1.0\""));
    }
}
