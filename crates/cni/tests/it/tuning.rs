//! `tuning`: one row for each of its scenarios (cni.md 4.3), beside Debian's plugin where that one can.

use crate::harness::{DEBIAN, Host, Pod, debian, ip_in, pod, run_in, with};
use kernel::Netns;
use model::gojson::Json;

/// A pod with an interface, as a plugin before would have left it.
fn dressed(id: &str) -> (Netns, Pod, Json) {
    let (netns, pod) = pod(id);
    ip_in(&netns, "link add eth0 address 0a:00:00:00:00:99 type veth peer name far");
    ip_in(&netns, "link set eth0 up");
    let result = format!(
        r#"{{"cniVersion": "0.4.0", "interfaces": [
             {{"name": "vethX", "mac": "0a:00:00:00:00:01"}},
             {{"name": "eth0", "mac": "0a:00:00:00:00:99", "sandbox": "{}"}}],
            "ips": [{{"version": "4", "address": "10.1.2.3/24", "interface": 1}}]}}"#,
        pod.path
    );
    (netns, pod, result.parse().unwrap())
}

fn conf(members: &str, dir: &str, prev: &Json) -> String {
    let text =
        format!(r#"{{"cniVersion": "0.4.0", "name": "net", "type": "tuning", "dataDir": "{dir}"{members}}}"#);
    with(&text, "prevResult", prev.clone())
}

/// What tuning can change, as `ip` and `/proc` tell it.
fn look(netns: &Netns) -> String {
    let links: Json = ip_in(netns, "-j -d link show eth0").parse().unwrap();
    let link = &links.as_array().unwrap()[0];
    let members = ["address", "mtu", "flags", "txqlen", "promiscuity", "allmulti"];
    let text = |key: &&str| format!("{key} {}", link.get(key).unwrap_or(&Json::Null).to_compact());
    let mut lines: Vec<String> = members.iter().map(text).collect();
    for key in ["net/core/somaxconn", "net/ipv4/conf/eth0/arp_filter", "net/ipv4/ip_unprivileged_port_start"]
    {
        let cat = run_in(netns, std::process::Command::new("cat").arg(format!("/proc/sys/{key}")), "");
        lines.push(format!("{key} {}", String::from_utf8_lossy(&cat.stdout).trim()));
    }
    lines.join("\n")
}

/// Members of the configuration; whether Debian's 1.1.1 knows them all.
const ROWS: &[(&str, bool)] = &[
    ("", true),
    (r#", "sysctl": {"net.core.somaxconn": "500"}"#, true),
    (r#", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1", "net/core/somaxconn": "600"}"#, true),
    (r#", "mac": "0a:00:00:00:00:42""#, true),
    (r#", "mac": "0A:00:00:00:00:42", "runtimeConfig": {"mac": "0a:00:00:00:00:43"}"#, true),
    (r#", "mtu": 1454"#, true),
    (r#", "promisc": true"#, true),
    (r#", "promisc": false"#, true),
    (r#", "allmulti": true"#, true),
    (r#", "allmulti": false"#, true),
    (r#", "txQLen": 20000"#, false),
    (r#", "txQLen": 0"#, false),
    (
        r#", "args": {"cni": {"mac": "0a:00:00:00:00:44", "mtu": 1300, "promisc": true, "allmulti": true}}"#,
        true,
    ),
    (r#", "args": {"cni": {"sysctl": {"net.core.somaxconn": "700"}}}"#, false),
    (
        r#", "sysctl": {"net.core.somaxconn": "1"}, "args": {"cni": {"sysctl": {"net.core.somaxconn": "701"}}}"#,
        true,
    ),
    (r#", "mac": "0a:00:00:00:00:45", "mtu": 1400, "promisc": true, "allmulti": true"#, true),
];

#[test]
fn each_key_does_what_debians_does() {
    let with_debian = debian("each_key_does_what_debians_does (the comparison)");
    for (members, known) in ROWS {
        let run = |theirs: bool| {
            let host = Host::new();
            let (netns, pod, prev) = dressed("c1");
            let bin = host.bin().display().to_string();
            let dirs = [if theirs { DEBIAN } else { &*bin }];
            let conf = conf(members, &host.path("tuning"), &prev);
            let before = look(&netns);
            let result = host.call_with(&dirs, "tuning", "ADD", &pod, &conf).expect("ADD");
            let after = look(&netns);
            let kept = host.files("tuning");
            let text = kept.first().map(|f| {
                std::fs::read_to_string(host.dir.join("tuning").join(f))
                    .unwrap()
                    .parse::<Json>()
                    .unwrap()
                    .to_compact_sorted()
            });
            let upper = members.contains("0A:");
            // Theirs compares spelling, misses IFNAME, and takes absence of promisc for "off" (B-34).
            if !theirs || !(upper || members.contains("IFNAME") || members.contains("allmulti")) {
                host.call_with(&dirs, "tuning", "CHECK", &pod, &conf).expect("CHECK");
            }
            let mut back = Vec::new();
            for _ in 0..2 {
                assert!(host.call_with(&dirs, "tuning", "DEL", &pod, &conf).ok);
                back.push(look(&netns));
            }
            assert_eq!(host.files("tuning"), [""; 0]);
            assert_eq!(host.files("state/attachments"), [""; 0]);
            let links = |text: &str| text.lines().take(6).map(str::to_owned).collect::<Vec<_>>();
            assert_eq!(links(&back[0]), links(&before), "{members}");
            let result = result.to_compact_sorted().replace(&pod.path, "S");
            format!("{result}\n{after}\n{kept:?} {text:?}\n{back:?}")
        };
        let ours = run(false);
        if with_debian && *known {
            assert_eq!(ours, run(true), "{members}");
        }
    }
}

#[test]
fn a_hardware_address_by_cni_args() {
    let host = Host::new();
    let (netns, pod, prev) = dressed("c1");
    let conf = conf(r#", "mac": "0a:00:00:00:00:01""#, &host.path("tuning"), &prev);
    let mut command = host.prepare(&[&host.bin().display().to_string()], "tuning", "ADD", &pod);
    command.env("CNI_ARGS", "IgnoreUnknown=true;MAC=0a:00:00:00:00:77;K8S_POD_NAME=x");
    let output = host.run(&mut command, &conf);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("0a:00:00:00:00:77"));
    assert!(look(&netns).contains("0a:00:00:00:00:77"));
}

#[test]
fn changes_are_noticed() {
    let host = Host::new();
    for (members, change, want) in [
        (
            r#", "mtu": 1400"#,
            "link set eth0 mtu 1300",
            "Error: Tuning configured MTU of eth0 is 1400, current value is 1300",
        ),
        (
            r#", "mac": "0a:00:00:00:00:42""#,
            "link set eth0 address 0a:00:00:00:00:43",
            "Error: Tuning configured Ethernet of eth0 is",
        ),
        (
            r#", "promisc": true"#,
            "link set eth0 promisc off",
            "Error: Tuning configured promisc of eth0 is true, current value is false",
        ),
        (
            r#", "allmulti": true"#,
            "link set eth0 allmulticast off",
            "Error: Tuning configured all-multicast mode of eth0",
        ),
        (
            r#", "txQLen": 500"#,
            "link set eth0 txqueuelen 1",
            "Error: Tuning configured transmission queue length of eth0",
        ),
        (r#", "mtu": 1400"#, "link del eth0", "failed to lookup \"eth0\": Link not found"),
    ] {
        let (netns, pod, prev) = dressed("c1");
        let conf = conf(members, &host.path("tuning"), &prev);
        host.call("tuning", "ADD", &pod, &conf).expect("ADD");
        host.call("tuning", "CHECK", &pod, &conf).expect("CHECK");
        ip_in(&netns, change);
        let (_, text) = host.call("tuning", "CHECK", &pod, &conf).error();
        assert!(text.starts_with(want), "{text}");
        assert!(host.call("tuning", "DEL", &pod, &conf).ok);
    }
    let (netns, pod, prev) = dressed("c1");
    let conf = conf(r#", "sysctl": {"net.core.somaxconn": "500"}"#, &host.path("tuning"), &prev);
    host.call("tuning", "ADD", &pod, &conf).expect("ADD");
    kernel::sysctl::write_in(&netns, "net/core/somaxconn", "501").unwrap();
    let (_, text) = host.call("tuning", "CHECK", &pod, &conf).error();
    let want = "Error: Tuning configured value of /proc/sys/net/core/somaxconn is 500, current value is 501";
    assert!(text.starts_with(want), "{text}");
}

#[test]
fn what_is_wrong_is_named_and_nothing_stays() {
    let host = Host::new();
    let dir = host.path("tuning");
    for (members, code, want) in [
        (
            r#", "sysctl": {"net.core.a": "1", "net.core.a": "2"}"#,
            7,
            "failed to load netconf: duplicated sysctl keys are not allowed",
        ),
        (r#", "sysctl": {"kernel.shmmax": "1"}"#, 7, "invalid net sysctl key: \"kernel/shmmax\""),
        (
            r#", "sysctl": {"net.core.somaxconn": "500", "net.nothing": "1"}"#,
            999,
            "write \"1\" to /proc/sys/net/nothing: ",
        ),
        (r#", "sysctl": {"net.core.somaxconn": "500"}, "mtu": 10"#, 999, "failed to tune \"eth0\": "),
        (
            r#", "sysctl": {"net.core.somaxconn": "500"}, "mtu": 1300, "mac": "01:00:5e:00:00:01""#,
            999,
            "failed to tune \"eth0\": ",
        ),
        (r#", "mac": "XX""#, 7, "failed to load netconf: invalid args XX for MAC addr: "),
        (
            r#", "mtu": "1400""#,
            7,
            "failed to load netconf: json: cannot unmarshal string into Go struct field",
        ),
        (r#", "sysctl": ["a"]"#, 7, "failed to load netconf: json: cannot unmarshal array"),
    ] {
        let (netns, pod, prev) = dressed("c1");
        let before = look(&netns);
        let conf = conf(members, &dir, &prev);
        let (have, text) = host.call("tuning", "ADD", &pod, &conf).error();
        assert_eq!(have, code, "{text}");
        assert!(text.starts_with(want), "{text}");
        assert_eq!(look(&netns), before, "{members}");
        assert_eq!(host.files("tuning"), [""; 0], "{members}");
        assert_eq!(host.files("state/attachments"), [""; 0], "{members}");
        assert!(host.call("tuning", "DEL", &pod, &conf).ok);
    }
    let (_netns, pod, _) = dressed("c1");
    let bare = r#"{"cniVersion": "0.4.0", "name": "net", "type": "tuning"}"#;
    for verb in ["ADD", "CHECK"] {
        let (_, text) = host.call("tuning", verb, &pod, bare).error();
        assert!(text.starts_with("Required prevResult missing"), "{text}");
    }
    let slash = Pod { ifname: "a/b".to_owned(), ..pod };
    let (code, text) = host.call("tuning", "ADD", &slash, bare).error();
    assert_eq!(code, 4);
    assert!(text.starts_with("interface name contains /"), "{text}");
}

/// Runs one call with a list of allowed keys in place; the mount ends with the call.
fn with_allow_list(host: &Host, pod: &Pod, list: &str, conf: &str) -> std::process::Output {
    let mut command = host.prepare(&[&host.bin().display().to_string()], "tuning", "ADD", pod);
    let script = format!(
        "mount -t tmpfs none /etc && mkdir -p /etc/cni/tuning && printf '{list}' > /etc/cni/tuning/allowlist.conf && exec {}",
        command.get_program().display()
    );
    let mut wrapped = std::process::Command::new("unshare");
    wrapped.args(["--mount", "sh", "-c", &script]);
    wrapped.env_clear().envs(command.get_envs().filter_map(|(k, v)| Some((k, v?))));
    drop(std::mem::replace(&mut command, wrapped));
    host.run(&mut command, conf)
}

#[test]
fn only_allowed_keys_are_written() {
    let host = Host::new();
    let dir = host.path("tuning");
    for (list, members, want) in [
        (r"^net\\.core\\.somaxconn$\n\n", r#", "sysctl": {"net.core.somaxconn": "500"}"#, None),
        (
            r"^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$\n",
            r#", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}"#,
            None,
        ),
        (r"^net\\.core\\.somaxconn$\n", r#", "mtu": 1400"#, None),
        (
            r"^net\\.core\\.somaxconn$\n^net\\.x\n",
            r#", "sysctl": {"net.core.somaxconn": "500", "net.ipv4.ip_forward": "1"}"#,
            Some(
                r"Sysctl net.ipv4.ip_forward is not allowed. Only the following sysctls are allowed: [^net\\.core\\.somaxconn$ ^net\\.x]",
            ),
        ),
        (
            r"zz",
            r#", "args": {"cni": {"sysctl": {"net.core.somaxconn": "1"}}}"#,
            Some("Sysctl net.core.somaxconn is not allowed."),
        ),
        (
            "",
            r#", "sysctl": {"net.core.somaxconn": "500"}"#,
            Some("Sysctl net.core.somaxconn is not allowed."),
        ),
        ("(", r#", "sysctl": {"net.core.somaxconn": "500"}"#, Some("allowlist.conf: ")),
    ] {
        let (_netns, pod, prev) = dressed("c1");
        let output = with_allow_list(&host, &pod, list, &conf(members, &dir, &prev));
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(
            output.status.success(),
            want.is_none(),
            "{text} {}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(want.is_none_or(|want| text.contains(want)), "{text}");
    }
}

#[test]
fn del_needs_nothing_and_gc_forgets() {
    let host = Host::new();
    let (_netns, pod, prev) = dressed("c1");
    let (_other, kept, _) = dressed("c2");
    let conf = conf(r#", "mtu": 1400"#, &host.path("tuning"), &prev).replace("0.4.0", "1.1.0");
    let conf = conf.replace(r#""version":"4","#, "");
    for pod in [&pod, &kept] {
        host.call("tuning", "ADD", pod, &conf).expect("ADD");
    }
    assert_eq!(host.files("tuning"), ["c1_eth0.json", "c2_eth0.json"]);
    assert!(host.call("tuning", "GC", &pod, &conf).ok, "without a list nothing is known to be gone");
    assert_eq!(host.files("tuning").len(), 2);
    // Records of a process that was killed before it wrote them, of this plugin and of another.
    let records = host.files("state/attachments");
    let (network, _) = records[0].split_once('/').unwrap();
    let place = |name: &str| format!("{}/{network}/{name}", host.path("state/attachments"));
    for name in ["0123456789abcdef.tuning", "0123456789abcdef.portmap"] {
        std::fs::write(place(name), "").unwrap();
    }
    let keep = Json::array([Json::object([("containerID", "c2".into()), ("ifname", "eth0".into())])]);
    assert!(host.call("tuning", "GC", &pod, &with(&conf, "cni.dev/valid-attachments", keep)).ok);
    assert_eq!(host.files("tuning"), ["c2_eth0.json"]);
    let left = host.files("state/attachments");
    let foreign = left.iter().filter(|file| file.ends_with("0123456789abcdef.portmap")).count();
    assert_eq!((left.len(), foreign), (records.len(), 1), "one stale record went, one unreadable: {left:?}");
    std::fs::remove_file(place("0123456789abcdef.portmap")).unwrap();
    // The namespace is gone, or never was: the file goes all the same (B-34).
    for path in ["", "/run/netns/no-such"] {
        let gone = Pod { path: path.to_owned(), ..kept.clone() };
        assert!(host.call("tuning", "DEL", &gone, &conf).ok);
        assert_eq!(host.files("tuning"), [""; 0]);
    }
    assert!(host.call("tuning", "STATUS", &pod, &conf).ok);
}
