//! `loden bench` runs and says sane things. Nothing here looks at how fast anything is.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use kernel::Netns;
use kernel::sysctl::has_ipv6;
use serde_json::Value;

use crate::world::until;

fn bench(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loden"));
    command.arg("bench").args(words);
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Labs of a bench that are up.
fn labs(pid: u32) -> Vec<String> {
    let mine = format!("bench-{pid}-");
    lab::client::list().into_iter().filter(|name| name.starts_with(&mine)).collect()
}

fn plugins(test: &str) -> bool {
    let there = Path::new(env!("CARGO_BIN_EXE_loden")).with_file_name("loden-cni").is_file();
    if !there {
        println!("SKIP {test}: loden-cni is not built beside loden (`cargo build -p cni`)");
    }
    there
}

fn way<'a>(report: &'a Value, name: &str) -> &'a Value {
    let found = report["ways"].as_array().unwrap().iter().find(|way| way["name"] == name);
    found.unwrap_or_else(|| panic!("{name} is not in {report}"))
}

/// Every sample is a number greater than nothing, and as many as rounds.
fn sane(way: &Value, figures: &[&str], rounds: usize) {
    let names: Vec<&str> =
        way["figures"].as_array().unwrap().iter().map(|f| f["figure"].as_str().unwrap()).collect();
    assert_eq!(names, figures, "{way}");
    for figure in way["figures"].as_array().unwrap() {
        let samples = &figure["samples"];
        let values: Vec<f64> =
            samples["values"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
        assert_eq!(values.len(), rounds, "{figure}");
        // Processor time is counted in ticks of 10 ms: of a short span there may be none.
        let least =
            if figure["figure"].as_str().unwrap().starts_with("cpu") { 0.0 } else { f64::MIN_POSITIVE };
        assert!(values.iter().all(|value| *value >= least), "{figure}");
        let number = |key: &str| samples[key].as_f64().unwrap();
        assert!(number("least") <= number("median") && number("median") <= number("most"), "{figure}");
    }
}

const TRAFFIC: &[&str] = &[
    "tcp_one",
    "tcp_four",
    "cpu_per_gb",
    "datagrams",
    "cpu_per_datagram",
    "datagrams_answered",
    "cpu_per_answered",
    "connections",
    "trip_half",
    "trip_most",
];

#[test]
fn a_lab_is_measured_and_gone() {
    if !plugins("a_lab_is_measured_and_gone") {
        return;
    }
    let words = [
        "lab",
        "--what",
        "vxlan,routed-vxlan,udp,routed,cni,peers",
        "--rounds",
        "2",
        "--seconds",
        "0.1",
        "-o",
        "json",
    ];
    let child = bench(&words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["schema"], &report["place"]), (&"loden.bench/1".into(), &"lab".into()));
    assert_eq!(report["family"], "IPv4");
    let names: Vec<&str> =
        report["ways"].as_array().unwrap().iter().map(|way| way["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["wire", "vxlan", "routed-vxlan", "udp", "routed", "cni", "peers"]);
    for name in ["wire", "vxlan", "routed-vxlan", "udp", "routed"] {
        sane(way(&report, name), TRAFFIC, 2);
    }
    sane(way(&report, "cni"), &["pods_added", "pods_deleted"], 2);
    sane(way(&report, "peers"), &["peers_programmed"], 2);
    assert_eq!(way(&report, "vxlan")["figures"][0]["beside"]["what"], "wire");
    assert!(way(&report, "wire")["figures"][0].get("beside").is_none());
    until("the labs to be gone", || match labs(pid).as_slice() {
        [] => Ok(()),
        left => Err(left.join(" ")),
    });
}

/// All ways that carry IPv6, in it; what does not is named.
#[test]
fn a_lab_of_ipv6_is_measured() {
    if !plugins("a_lab_of_ipv6_is_measured") || !has_ipv6() {
        return;
    }
    let fast = if crate::fast::can("the fast path in IPv6") { ",fast,fast-host-gw" } else { "" };
    let what = format!("host-gw,vxlan,routed-vxlan,udp,fast-udp,bridge,routed,cni,peers{fast}");
    let words = ["--family", "6", "--what", &what, "--rounds", "1", "--seconds", "0.1", "-o", "json"];
    let output = bench(&words).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["family"], &report["place"]), (&"IPv6".into(), &"lab".into()));
    let udp = ["udp", "fast-udp"];
    for name in what.split(',').filter(|name| !udp.contains(name)) {
        let figures = match name {
            "cni" => &["pods_added", "pods_deleted"][..],
            "peers" => &["peers_programmed"],
            _ => TRAFFIC,
        };
        sane(way(&report, name), figures, 1);
    }
    sane(way(&report, "wire"), TRAFFIC, 1);
    for name in udp {
        assert_eq!(way(&report, name)["unavailable"], "flannel's udp carries IPv4 alone");
    }
}

#[test]
fn a_killed_bench_leaves_no_lab() {
    let words = ["lab", "--what", "wire", "--rounds", "100", "--seconds", "60"];
    for signal in ["-KILL", "-TERM"] {
        let mut child = bench(&words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let pid = child.id();
        until("a lab to be up", || if labs(pid).is_empty() { Err(String::new()) } else { Ok(()) });
        assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
        child.wait().unwrap();
        until("the lab to be gone", || match labs(pid).as_slice() {
            [] => Ok(()),
            left => Err(left.join(" ")),
        });
    }
}

#[test]
fn two_hosts_are_measured_with_a_token_only() {
    let host = Netns::create().unwrap();
    crate::world::sh(&host, "ip link set lo up");
    let mut command = bench(&["serve", "--listen", "127.0.0.1", "--network", "none"]);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut server = host.run(|| command.spawn()).unwrap().unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    // What it prints is what is to be typed on the other host.
    let ["loden", "bench", "host", "127.0.0.1:8477", "--token", token] = words.as_slice() else {
        panic!("{line}")
    };
    let on = |words: &[&str]| host.run(|| bench(words).output()).unwrap().unwrap();
    let output =
        on(&["host", "127.0.0.1", "--token", token, "--rounds", "1", "--seconds", "0.1", "-o", "json"]);
    assert!(output.status.success(), "{}", said(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["machines"].as_array().unwrap().len(), 2);
    sane(way(&report, "wire"), TRAFFIC, 1);
    assert!(way(&report, "pods")["unavailable"].as_str().unwrap().contains("--network none"));
    let output = on(&["host", "127.0.0.1", "--token", "somebody-else"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("does not take this token"), "{}", said(&output));
    let pid = server.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(server.wait().unwrap().success());
    let output = on(&["host", "127.0.0.1", "--token", token]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("does `loden bench serve` run there?"), "{}", said(&output));
}

/// Addresses host-local has given away in a host of a lab.
fn taken(lab: &lab::Lab, host: usize) -> String {
    let words = "ls /var/lib/cni/networks/cbr0 2>/dev/null | grep -c '^10' || true";
    lab.host(host).stdout("sh", &["-c", words]).unwrap().trim().to_owned()
}

#[test]
fn pods_of_two_hosts_are_measured_and_detached() {
    if !plugins("pods_of_two_hosts_are_measured_and_detached") {
        return;
    }
    let loden = env!("CARGO_BIN_EXE_loden");
    let stack = if has_ipv6() { lab::Stack::Dual } else { lab::Stack::V4 };
    let lab = lab::Lab::builder(loden).hosts(2).stack(stack).start().unwrap();
    let on = |host: usize, words: &[&str]| {
        let mut command = lab.host(host).command(loden).unwrap();
        command.arg("bench").args(words).env("CNI_PATH", "/run/loden-lab/bin");
        command
    };
    let token = ["--token", "one-that-nobody-knows"];
    let mut server = on(1, &["serve"]).args(token).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(taken(&lab, 1), "1");
    let ends = [("192.0.2.11", "IPv4"), ("2001:db8:0:1::11", "IPv6")];
    for (address, family) in ends.into_iter().filter(|(_, family)| *family == "IPv4" || has_ipv6()) {
        let words =
            ["host", address, "--family", &family[3..], "--rounds", "1", "--seconds", "0.1", "-o", "json"];
        let output = on(2, &words).args(token).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["family"], family);
        sane(way(&report, "wire"), TRAFFIC, 1);
        sane(way(&report, "pods"), TRAFFIC, 1);
        assert!(way(&report, "pods")["about"].as_str().unwrap().contains("vxlan"), "{report}");
        assert_eq!(taken(&lab, 2), "0");
    }
    // Told to end in the middle, it detaches its pod as well; so does the server.
    let words = ["host", "192.0.2.11", "--rounds", "100", "--seconds", "1"];
    let mut client = on(2, &words).args(token).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("a pod", || if taken(&lab, 2) == "1" { Ok(()) } else { Err(taken(&lab, 2)) });
    let end = |pattern: &str, host: usize| {
        // Inside, process numbers are the lab's own.
        lab.host(host).stdout("pkill", &["-TERM", "-f", pattern]).unwrap();
    };
    end("bench host 192.0.2.11", 2);
    client.wait().unwrap();
    assert_eq!(taken(&lab, 2), "0");
    end("bench serve", 1);
    server.wait().unwrap();
    assert_eq!(taken(&lab, 1), "0");
}

#[test]
fn mistakes_are_one_sentence() {
    for (words, want) in [
        (&["--what", "moon"][..], "\"moon\" is no way"),
        (&["host"], "host needs the address"),
        (&["lab", "--rounds", "many"], "--rounds is a number from 1 to 100"),
        (
            &["host", "2001:db8::1", "--token", "abcdefgh", "--family", "4"],
            "2001:db8::1 is IPv6, and --family asks for IPv4",
        ),
    ] {
        let output = bench(words).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        let text = said(&output);
        assert!(text.contains(want) && text.lines().count() == 1, "{words:?}: {text}");
    }
    // A person without rights.
    let mut command = bench(&["lab", "--what", "wire"]);
    match command.uid(65_534).output() {
        Ok(output) => {
            assert_eq!(output.status.code(), Some(2));
            assert!(said(&output).contains("needs root"), "{}", said(&output));
        }
        Err(error) => println!("SKIP mistakes_are_one_sentence: without root: {error}"),
    }
}
