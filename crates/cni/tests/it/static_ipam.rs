//! `static` beside Debian's: the rows of the conformance list (cni.md 4.3), through ptp and alone.

use crate::harness::{Answer, DEBIAN, Host, Pod, debian, pod, stable, with};
use model::gojson::Json;

const ADDRESSES: &str = r#""addresses": [{"address": "10.10.0.1/24", "gateway": "10.10.0.254"},
    {"address": "3ffe:ffff:0:01ff::1/64", "gateway": "3ffe:ffff:0::1"}],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.168.0.0/16", "gw": "10.10.5.1"}, {"dst": "3ffe:ffff:0:01ff::1/64"}],
    "dns": {"nameservers": ["8.8.8.8"], "domain": "example.com", "search": ["example.com"], "options": ["a"]}"#;

fn conf(version: &str, members: &str, ipam: &str) -> String {
    let ipam =
        if ipam == "none" { String::new() } else { format!(", \"ipam\": {{\"type\": \"static\"{ipam}}}") };
    format!(r#"{{"cniVersion": "{version}", "name": "net", "type": "static"{members}{ipam}}}"#)
}

fn call(host: &Host, dir: &str, verb: &str, pod: &Pod, args: &str, conf: &str) -> Answer {
    let mut command = host.prepare(&[dir], "static", verb, pod);
    command.env("CNI_ARGS", args);
    Answer::of(host.run(&mut command, conf))
}

#[test]
fn results_are_those_of_debians_plugin() {
    if !debian("static_ipam::results_are_those_of_debians_plugin") {
        return;
    }
    let host = Host::new();
    let (_netns, pod) = pod("c1");
    let own = host.bin().display().to_string();
    let given = format!(", {ADDRESSES}");
    let runtime = r#", "runtimeConfig": {"ips": ["10.2.0.5/16", "fd00::5/64"]}"#;
    let args = r#", "args": {"cni": {"ips": ["10.1.0.5/16"]}}"#;
    let both = format!("{runtime}{args}");
    let two = r#", "addresses": [{"address": "10.0.0.1/24"}, {"address": "10.0.1.1/24"}]"#;
    for (version, members, ipam, cni_args) in [
        ("0.1.0", "", given.as_str(), ""),
        ("0.2.0", "", &given, ""),
        ("0.3.0", "", &given, ""),
        ("0.3.1", "", &given, ""),
        ("0.4.0", "", &given, ""),
        ("1.0.0", "", &given, ""),
        ("1.0.0", "", &given, "IP=10.10.0.2/24"),
        ("1.0.0", "", "", "IP=10.10.0.1/24;GATEWAY=10.10.0.254"),
        ("1.0.0", "", "", "IP=10.10.0.1/24,11.11.0.1/24;GATEWAY=10.10.0.254"),
        ("1.0.0", runtime, "", ""),
        ("1.0.0", args, "", ""),
        ("1.0.0", &both, "", "IP=10.10.0.1/24"),
        ("1.0.0", "", two, ""),
        ("0.2.0", "", two, ""),
        ("1.0.0", "", r#", "addresses": [{"address": "10.0.0.1"}]"#, ""),
        ("1.0.0", "", "", "IP=10.0.0.1"),
        ("1.0.0", "", "", "IP=10.0.0.1/24;GATEWAY=x"),
        ("1.0.0", r#", "args": {"cni": {"ips": ["10.0.0.1"]}}"#, "", ""),
        ("1.0.0", r#", "runtimeConfig": {"ips": ["10.0.0.1"]}"#, "", ""),
        ("1.0.0", runtime, "none", ""),
        ("1.0.0", args, "none", ""),
        ("1.0.0", "", "", "FOO=BAR"),
    ] {
        let conf = conf(version, members, ipam);
        let what = format!("{conf} {cni_args}");
        let [ours, theirs] = [own.as_str(), DEBIAN].map(|dir| call(&host, dir, "ADD", &pod, cni_args, &conf));
        assert_eq!(ours.ok, theirs.ok, "{what}: {} {}", ours.text, theirs.text);
        if ours.ok {
            assert_eq!(stable(&ours.json), stable(&theirs.json), "{what}");
        } else {
            // Whole texts, but for the place of the type in Go's own ones; the code says more than 999.
            let msg = |a: &Answer| a.json.get("msg").and_then(Json::as_str).unwrap_or_default().to_owned();
            let theirs_says = msg(&theirs);
            let (begin, _) = theirs_says.split_once("; ").unwrap_or((&theirs_says, ""));
            assert!(
                msg(&ours).starts_with(begin.split(": invalid CIDR").next().unwrap()),
                "{what}: {} / {}",
                ours.text,
                theirs.text
            );
            assert_eq!(ours.error().0, 7);
        }
        if ours.ok && version >= "0.4.0" {
            let told = with(&conf, "prevResult", ours.json.clone());
            assert!(call(&host, &own, "CHECK", &pod, cni_args, &told).ok, "{what}");
        }
        for _ in 0..2 {
            assert!(call(&host, &own, "DEL", &pod, cni_args, &conf).ok, "{what}");
        }
    }
}

#[test]
fn check_compares_gateways() {
    let host = Host::new();
    let (_netns, pod) = pod("c1");
    let conf = conf("1.0.0", "", &format!(", {ADDRESSES}"));
    let result = host.call("static", "ADD", &pod, &conf).expect("ADD");
    let told = with(&conf, "prevResult", result.clone());
    host.call("static", "CHECK", &pod, &told).expect("CHECK");
    let changed: Json = result.to_compact().replace("10.10.0.254", "10.10.0.253").parse().unwrap();
    let other = with(&conf, "prevResult", changed);
    let (_, text) = host.call("static", "CHECK", &pod, &other).error();
    assert!(text.contains("static: Failed to match addr 10.10.0.1/24 on interface eth0"), "{text}");
    let (_, text) = host.call("static", "CHECK", &pod, &conf).error();
    assert!(text.contains("Required prevResult missing"), "{text}");
}
