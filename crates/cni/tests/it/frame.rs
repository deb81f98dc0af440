//! The frame around every plugin: environment, document, versions, dispatch, installation.

use std::process::Command;

use crate::harness::{Host, OURS, Pod, pod};
use model::gojson::Json;

const CONF: &str = r#"{"cniVersion": "1.0.0", "name": "net", "ipam": {"type": "host-local", "subnet": "10.1.2.0/24", "dataDir": "DIR"}}"#;

#[test]
fn versions_and_names() {
    let host = Host::new();
    const ALL: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
    let usage = Command::new(OURS).arg("--help").output().unwrap();
    let usage = String::from_utf8_lossy(&usage.stdout).into_owned();
    let names: Vec<&str> = usage.rsplit("plugins:").next().unwrap().split_whitespace().collect();
    assert!(names.len() >= 21, "{names:?}");
    for name in names {
        let since = match name {
            "firewall" => "0.4.0",
            "bandwidth" => "0.3.0",
            "vrf" => "0.3.1",
            _ => "0.1.0",
        };
        let served = &ALL[ALL.iter().position(|v| *v == since).unwrap()..];
        let quoted: Vec<String> = served.iter().map(|v| format!("{v:?}")).collect();
        let want = format!("{{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[{}]}}\n", quoted.join(","));
        // By its link, by argument, and as a copy under its name.
        let copy = host.dir.join("copy");
        std::fs::create_dir_all(&copy).unwrap();
        std::fs::copy(OURS, copy.join(name)).unwrap();
        let commands = [host.command(host.bin().join(name)), host.command(copy.join(name)), {
            let mut command = host.command(OURS);
            command.arg(name);
            command
        }];
        for mut command in commands {
            let output = host.run(command.env("CNI_COMMAND", "VERSION"), "");
            assert!(output.status.success());
            assert_eq!(String::from_utf8_lossy(&output.stdout), want);
            let output = host.run(command.env_remove("CNI_COMMAND"), "");
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
            assert!(text.starts_with(&format!("CNI {name} plugin loden ")), "{text}");
            let list = served.join(", ");
            assert!(text.contains(&format!("CNI protocol versions supported: {list}")), "{text}");
        }
    }
    for (args, ok) in
        [(vec!["--version"], true), (vec!["--help"], true), (vec![], false), (vec!["nonsense"], false)]
    {
        let output = Command::new(OURS).args(&args).output().unwrap();
        assert_eq!(output.status.success(), ok, "{args:?}");
        let text = if ok { output.stdout } else { output.stderr };
        assert!(String::from_utf8_lossy(&text).contains("loden-cni"), "{args:?}");
    }
}

#[test]
fn installing_twice_changes_nothing() {
    let host = Host::new();
    let list = || {
        let output =
            Command::new("ls").args(["-lin", "--time-style=full-iso"]).arg(host.bin()).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let before = list();
    assert!(before.contains("bridge -> loden-cni"), "{before}");
    // A line for each plugin, besides the total and the program.
    let usage = Command::new(OURS).arg("--help").output().unwrap();
    let usage = String::from_utf8_lossy(&usage.stdout).into_owned();
    let plugins = usage.rsplit("plugins:").next().unwrap().split_whitespace().count();
    assert_eq!(before.lines().count(), plugins + 2, "{before}");
    let again = || Command::new(OURS).args(["install", "--bin-dir"]).arg(host.bin()).output().unwrap();
    assert!(again().status.success());
    assert_eq!(list(), before);
    // An older file is replaced by a rename: who runs it keeps it.
    std::fs::remove_file(host.bin().join("bridge")).unwrap();
    std::fs::write(host.bin().join("bridge"), "old").unwrap();
    std::fs::remove_file(host.bin().join("loden-cni")).unwrap();
    std::fs::copy("/bin/sleep", host.bin().join("loden-cni")).unwrap();
    let mut busy = Command::new(host.bin().join("loden-cni")).arg("60").spawn().unwrap();
    let done = again();
    busy.kill().unwrap();
    busy.wait().unwrap();
    assert!(done.status.success(), "{done:?}");
    assert_eq!(std::fs::read(host.bin().join("bridge")).unwrap(), std::fs::read(OURS).unwrap());
    let output = Command::new(OURS).args(["install", "--bin-dir", "/proc/nowhere"]).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("/proc/nowhere"), "{output:?}");
}

#[test]
fn environment_and_document_are_checked_in_order() {
    let host = Host::new();
    let dir = host.path("networks");
    let conf = CONF.replace("DIR", &dir);
    let long = "x".repeat(16);
    let with = |key: &str, value: &str| conf.replacen('{', &format!("{{\"{key}\": {value}, "), 1);
    type Env<'a> = &'a [(&'a str, &'a str)];
    let cases: &[(Env<'_>, &str, u32, &str)] = &[
        (
            &[("CNI_CONTAINERID", ""), ("CNI_NETNS", "")],
            &conf,
            4,
            "required env variables [CNI_CONTAINERID,CNI_NETNS] missing; ",
        ),
        (&[("CNI_PATH", "")], &conf, 4, "required env variables [CNI_PATH] missing; "),
        (&[("CNI_CONTAINERID", "a/b")], &conf, 4, "invalid characters in containerID; a/b"),
        (
            &[("CNI_IFNAME", &long)],
            &conf,
            4,
            "interface name is too long; interface name should be less than 16 characters",
        ),
        (&[("CNI_IFNAME", "..")], &conf, 4, "interface name is . or ..; "),
        (&[("CNI_IFNAME", "a:b")], &conf, 4, "interface name contains / or : or whitespace characters; "),
        (&[], "", 6, "error unmarshall network config: unexpected end of JSON input"),
        (&[], "garbage", 6, "error unmarshall network config: invalid character 'g'"),
        (&[], "[]", 6, "error unmarshall network config: json: cannot unmarshal array"),
        (&[], "\u{feff}{}", 6, "error unmarshall network config: "),
        (&[], "{} {}", 6, "error unmarshall network config: "),
        (&[], r#"{"name": 1}"#, 6, "error unmarshall network config: "),
        (&[], r#"{"cniVersion": "1.0.0"}"#, 7, "missing network name; "),
        (&[], r#"{"name": "a b"}"#, 7, "invalid characters found in network name; a b"),
        (&[("CNI_COMMAND", "FOO")], &conf, 4, "unknown CNI_COMMAND: FOO; "),
        (
            &[("CNI_COMMAND", "CHECK")],
            r#"{"name": "n", "cniVersion": "0.3.1"}"#,
            1,
            "config version does not allow CHECK; ",
        ),
        (&[("CNI_COMMAND", "GC")], &conf, 1, "config version does not allow GC; "),
        (&[("CNI_COMMAND", "STATUS")], &conf, 1, "config version does not allow STATUS; "),
        (
            &[("CNI_COMMAND", "STATUS")],
            r#"{"name": "n", "cniVersion": "1.2.0"}"#,
            1,
            "plugin version does not allow STATUS; ",
        ),
        (&[("CNI_COMMAND", "CHECK")], r#"{"name": "n", "cniVersion": "x"}"#, 6, "cniVersion: \"x\" is not"),
        (
            &[],
            r#"{"name": "n", "cniVersion": "9.9.9"}"#,
            1,
            "incompatible CNI versions; config is \"9.9.9\", plugin supports [\"0.1.0\" \"0.2.0\"",
        ),
        (&[], &with("prevResult", r#"{"cniVersion": "0.4.0"}"#), 6, "could not parse prevResult: "),
        (&[("CNI_ARGS", "a")], &conf, 7, "ARGS: invalid pair \"a\"; "),
    ];
    for (env, input, code, want) in cases {
        let (_netns, pod) = pod("c1");
        let bin = host.bin().display().to_string();
        let mut command = host.prepare(&[&bin], "host-local", "ADD", &pod);
        let output = host.run(command.envs(env.iter().copied()), input);
        let json: Json = String::from_utf8_lossy(&output.stdout).parse().expect("one document");
        let text = |key| json.get(key).and_then(Json::as_str).unwrap_or_default();
        let have = format!("{}; {}", text("msg"), text("details"));
        assert_eq!(output.status.code(), Some(1), "{env:?} {input}");
        assert_eq!(json.get("code").and_then(Json::as_int), Some(*code), "{env:?} {input}: {have}");
        assert!(have.starts_with(want), "{env:?} {input}: {have}");
    }
    assert_eq!(host.files("networks"), [""; 0]);
    assert_eq!(host.files("state"), [""; 0]);
}

/// A document without version is one of 0.1.0, which not every plugin serves; and no document at all.
#[test]
fn a_document_without_version_and_none_at_all() {
    let host = Host::new();
    let (_netns, pod) = pod("c1");
    for plugin in ["firewall", "bandwidth", "vrf"] {
        let (code, text) = host.call(plugin, "ADD", &pod, r#"{"name": "net"}"#).error();
        assert_eq!(code, 1, "{plugin}: {text}");
        let want = "incompatible CNI versions; config is \"0.1.0\", plugin supports [\"0.";
        assert!(text.starts_with(want), "{plugin}: {text}");
    }
    let conf = CONF.replace("DIR", &host.path("networks")).replace(r#""cniVersion": "1.0.0", "#, "");
    let result = host.call("host-local", "ADD", &pod, &conf).expect("0.1.0");
    assert_eq!(result.get("cniVersion").and_then(Json::as_str), Some("0.1.0"));
    assert!(result.get("ip4").is_some(), "{result:?}");
    assert!(host.call("host-local", "DEL", &pod, &conf).ok);
    let bin = host.bin().display().to_string();
    let mut command = host.prepare(&[&bin], "host-local", "ADD", &pod);
    command.stdin(std::fs::File::open(&host.dir).unwrap());
    let output = host.netns.run(|| command.output()).unwrap().unwrap();
    let json: Json = String::from_utf8_lossy(&output.stdout).parse().unwrap();
    assert_eq!(json.get("code").and_then(Json::as_int), Some(5));
    let msg = json.get("msg").and_then(Json::as_str).unwrap_or_default().to_owned();
    assert!(msg.starts_with("error reading from stdin: Is a directory"), "{msg}");
}

/// Parameters that cannot be written, as in a container without rights to /proc/sys: no need to where
/// forwarding is on, a clear refusal where it is not.
#[test]
fn parameters_that_cannot_be_written() {
    let host = Host::new();
    let dir = host.path("networks");
    let conf = CONF.replace("DIR", &dir).replacen('{', r#"{"isGateway": true, "#, 1);
    for on in ["1", "0"] {
        kernel::sysctl::write_in(&host.netns, "net/ipv4/ip_forward", on).unwrap();
        let (netns, pod) = pod("c1");
        let plain = host.prepare(&[&host.bin().display().to_string()], "bridge", "ADD", &pod);
        let mut command = host.command("/usr/bin/unshare");
        let script = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$0\"";
        command.args(["--mount", "sh", "-c", script]).arg(plain.get_program());
        command.envs(plain.get_envs().filter_map(|(k, v)| Some((k, v?))));
        let answer = crate::harness::Answer::of(host.run(&mut command, &conf));
        if on == "1" {
            answer.expect("ADD");
            assert!(crate::harness::ip_in(&netns, "addr show eth0").contains("10.1.2.2/24"));
        } else {
            let (_, text) = answer.error();
            assert!(text.contains("net/ipv4/ip_forward") && text.contains("Read-only"), "{text}");
            assert!(!crate::harness::ip_in(&netns, "link show").contains("eth0"));
        }
        assert!(host.call("bridge", "DEL", &pod, &conf).ok);
        assert_eq!(host.links(), ["cni0"]);
        assert_eq!(host.files("state/attachments"), [""; 0]);
    }
}

#[test]
fn the_hosts_own_namespace_is_refused_before_anything_happens() {
    let host = Host::new();
    let own = host.netns.path().display().to_string();
    let dir = host.path("networks");
    let conf = CONF.replace("DIR", &dir).replacen('{', r#"{"isGateway": true, "#, 1);
    host.ip("link add eth0 type bridge");
    for verb in ["ADD", "CHECK", "DEL"] {
        let pod = Pod { id: "c1".to_owned(), ifname: "eth0".to_owned(), path: own.clone() };
        let (code, text) = host.call("bridge", verb, &pod, &conf).error();
        assert_eq!(code, 8);
        assert!(text.starts_with("plugin's netns and netns from CNI_NETNS should not be the same"), "{text}");
    }
    assert_eq!(host.links(), ["eth0"]);
    assert_eq!(host.files("networks"), [""; 0]);
}
