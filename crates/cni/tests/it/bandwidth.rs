//! `bandwidth`: one row for each of its scenarios (cni.md 4.3), beside Debian's plugin, and measured.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::harness::{Host, Pod, ip_in, pod, run_in, twins, with};
use kernel::Netns;
use model::gojson::Json;

/// A pod behind a veth, addressed, as ptp would leave it.
fn dressed(host: &Host) -> (Netns, Pod, Json) {
    let (netns, pod) = pod("c1");
    host.ip(&format!("link add veth1 mtu 1400 type veth peer name eth0 netns {}", netns.path().display()));
    for (place, dev, address) in [(&host.netns, "veth1", "10.9.1.1/24"), (&netns, "eth0", "10.9.1.2/24")] {
        ip_in(place, &format!("addr add {address} dev {dev}"));
        ip_in(place, &format!("link set {dev} up"));
    }
    let result = r#"{"cniVersion": "1.0.0", "interfaces": [{"name": "veth1"}, {"name": "eth0", "sandbox": "/x"}],
                     "ips": [{"address": "10.9.1.2/24", "interface": 1}]}"#;
    (netns, pod, result.parse().unwrap())
}

fn conf(members: &str, prev: &Json) -> String {
    let text = format!(r#"{{"cniVersion": "1.0.0", "name": "net", "type": "bandwidth"{members}}}"#);
    with(&text, "prevResult", prev.clone())
}

/// Disciplines and filters of the host's devices, without what changes from run to run.
fn look(host: &Host) -> String {
    let mut text = String::new();
    let mut links = host.links();
    links.sort();
    for dev in links {
        let tc = |args: &[&str]| {
            let output = run_in(&host.netns, std::process::Command::new("tc").args(args), "");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let parent = tc(&["filter", "show", "dev", &dev, "parent", "ffff:"]);
        // Theirs sets two equal actions; one is enough.
        let redirects = parent.contains("mirred (Egress Redirect to device bwp");
        let detail = host.ip(&format!("-d link show dev {dev}"));
        let words: Vec<&str> = detail.split_whitespace().collect();
        let after =
            |key: &str| words.iter().position(|w| *w == key).and_then(|at| words.get(at + 1)).copied();
        text.push_str(&format!(
            "{dev} mtu {:?} up {}\n{}redirects {redirects}\n",
            after("mtu"),
            detail.contains(",UP"),
            tc(&["qdisc", "show", "dev", &dev])
        ));
    }
    text.lines().map(|l| l.split(" refcnt").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

const ROWS: &[&str] = &[
    r#", "ingressRate": 8000000, "ingressBurst": 160000, "egressRate": 16000000, "egressBurst": 80000"#,
    r#", "ingressRate": 8000000, "ingressBurst": 160000"#,
    r#", "egressRate": 8000000, "egressBurst": 160000"#,
    r#", "runtimeConfig": {"bandwidth": {"ingressRate": 8000000, "ingressBurst": 160000, "egressRate": 8000, "egressBurst": 16000}}"#,
    r#", "ingressRate": 8000000, "ingressBurst": 160000, "runtimeConfig": {"bandwidth": {"egressRate": 1, "egressBurst": 8}}"#,
    r#", "ingressRate": 10000000000, "ingressBurst": 2147483647"#,
    "",
];

#[test]
fn limits_are_debians() {
    for members in ROWS {
        twins("limits_are_debians", members, |host, dirs| {
            let (_netns, pod, prev) = dressed(host);
            let conf = conf(members, &prev);
            let mut result = host.call_with(dirs, "bandwidth", "ADD", &pod, &conf).expect("ADD");
            result.remove("dns");
            let made = look(host);
            // Theirs (1.1.1) panics without limits, and knows the direction to the pod only.
            if dirs[0] != crate::harness::DEBIAN {
                let checked = with(&conf, "prevResult", result.clone());
                host.call_with(dirs, "bandwidth", "CHECK", &pod, &checked).expect("CHECK");
                host.call_with(dirs, "bandwidth", "ADD", &pod, &conf).expect("a second ADD replaces (B-35)");
                assert_eq!(look(host), made);
            }
            for _ in 0..2 {
                assert!(host.call_with(dirs, "bandwidth", "DEL", &pod, &conf).ok);
            }
            assert_eq!(host.links(), ["veth1"]);
            let mut interfaces = result.get("interfaces").and_then(Json::as_array).unwrap().to_vec();
            for interface in &mut interfaces {
                if interface.get("name").and_then(Json::as_str).unwrap().starts_with("bwp") {
                    assert!(interface.get("mac").is_some());
                    interface.set("mac", "M");
                }
            }
            result.set("interfaces", interfaces);
            format!("{}\n{made}", result.to_compact_sorted())
        });
    }
}

/// Bytes sent one way in about a second, in bits per second, after the burst is spent.
fn throughput(from: &Netns, to: &Netns, address: &str) -> f64 {
    let listener = to.run(|| TcpListener::bind((address, 0))).unwrap().unwrap();
    let target = listener.local_addr().unwrap();
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = vec![0; 1 << 16];
        // The burst passes at any speed.
        let mut skipped = 0;
        while skipped < 400_000 {
            skipped += stream.read(&mut buffer).unwrap();
        }
        let (began, mut total) = (Instant::now(), 0);
        while began.elapsed() < Duration::from_secs(2) {
            total += stream.read(&mut buffer).unwrap();
        }
        total as f64 * 8.0 / began.elapsed().as_secs_f64()
    });
    let mut stream = from.run(|| TcpStream::connect(target)).unwrap().unwrap();
    let block = vec![0; 1 << 16];
    while stream.write_all(&block).is_ok() {}
    receiver.join().unwrap()
}

#[test]
fn packets_wait_for_their_turn() {
    let host = Host::new();
    let (netns, pod, prev) = dressed(&host);
    limited(&host, &netns, &pod, &prev);
}

/// The row of integration (cni.md 4.3): the same behind the plugin ptp.
#[test]
fn packets_of_ptp_wait_for_their_turn() {
    let host = Host::new();
    let (netns, pod) = pod("c1");
    let dir = host.path("networks");
    let ptp = format!(
        r#"{{"cniVersion": "1.0.0", "name": "net", "type": "ptp", "ipam": {{"type": "host-local", "dataDir": "{dir}",
            "subnet": "10.9.1.0/24", "routes": [{{"dst": "0.0.0.0/0"}}]}}}}"#
    );
    let prev = host.call("ptp", "ADD", &pod, &ptp).expect("ADD");
    limited(&host, &netns, &pod, &prev);
    assert!(host.call("bandwidth", "DEL", &pod, &conf("", &prev)).ok);
    assert!(host.call("ptp", "DEL", &pod, &ptp).ok);
    assert_eq!(host.links(), [""; 0]);
}

/// 8 Mbit/s to the pod at 10.9.1.2, 16 from it, and no more.
fn limited(host: &Host, netns: &Netns, pod: &Pod, prev: &Json) {
    let members =
        r#", "ingressRate": 8000000, "ingressBurst": 800000, "egressRate": 16000000, "egressBurst": 800000"#;
    host.call("bandwidth", "ADD", pod, &conf(members, prev)).expect("ADD");
    for (what, speed, want) in [
        ("to the pod", throughput(&host.netns, netns, "10.9.1.2"), 8e6),
        ("from the pod", throughput(netns, &host.netns, "10.9.1.1"), 16e6),
    ] {
        // A busy machine sends less, never more.
        assert!(speed < want * 1.15 && speed > want * 0.3, "{what}: {speed} instead of {want} bit/s");
    }
}

#[test]
fn what_is_wrong_is_named_and_nothing_stays() {
    let host = Host::new();
    let (netns, pod, prev) = dressed(&host);
    for (members, want) in [
        (
            r#", "ingressRate": 8"#,
            "failed to parse network configuration: if rate is set, burst must also be set",
        ),
        (
            r#", "ingressBurst": 8"#,
            "failed to parse network configuration: if burst is set, rate must also be set",
        ),
        (
            r#", "egressRate": 8, "egressBurst": 34359738368"#,
            "failed to parse network configuration: burst cannot be more than 4GB",
        ),
        (r#", "egressRate": "8""#, "failed to parse network configuration: json: cannot unmarshal string"),
    ] {
        let (code, text) = host.call("bandwidth", "ADD", &pod, &conf(members, &prev)).error();
        assert_eq!(code, 7, "{text}");
        assert!(text.starts_with(want), "{text}");
    }
    let members = r#", "egressRate": 8000, "egressBurst": 8000"#;
    let bare = format!(r#"{{"cniVersion": "1.0.0", "name": "net", "type": "bandwidth"{members}}}"#);
    let none: Json = r#"{"cniVersion": "1.0.0"}"#.parse().unwrap();
    let other =
        r#"{"cniVersion": "1.0.0", "interfaces": [{"name": "vethX"}, {"name": "eth0", "sandbox": "/x"}]}"#;
    let other: Json = other.parse().unwrap();
    for (conf, want) in [
        (bare.clone(), "must be called as chained plugin"),
        (with(&bare, "prevResult", none), "no interfaces provided"),
        (with(&bare, "prevResult", other), "no veth peer of container interface found in host ns"),
    ] {
        let (_, text) = host.call("bandwidth", "ADD", &pod, &conf).error();
        assert!(text.starts_with(want), "{text}");
    }
    ip_in(&netns, "link add br0 type bridge");
    let bridge = Pod { ifname: "br0".to_owned(), ..pod.clone() };
    let (_, text) = host.call("bandwidth", "ADD", &bridge, &conf(members, &prev)).error();
    assert!(text.starts_with("container interface br0 has no veth peer: it is no veth"), "{text}");
    assert_eq!(host.links(), ["veth1"]);
    assert_eq!(host.files("state/attachments"), [""; 0]);
    // CHECK tells a change, and the device that is gone; GC ends what is not valid.
    let newer = conf(members, &prev).replace("1.0.0", "1.1.0");
    host.call("bandwidth", "ADD", &pod, &newer).expect("ADD");
    let (_, text) = host
        .call("bandwidth", "CHECK", &pod, &newer.replace("\"egressRate\":8000", "\"egressRate\":9000"))
        .error();
    assert!(text.starts_with("Rate doesn't match on bwp"), "{text}");
    let keep = Json::array([Json::object([("containerID", "c9".into()), ("ifname", "eth0".into())])]);
    assert!(host.call("bandwidth", "GC", &pod, &with(&newer, "cni.dev/valid-attachments", keep)).ok);
    assert_eq!(host.links(), ["veth1"]);
    let (_, text) = host.call("bandwidth", "CHECK", &pod, &newer).error();
    assert!(text.contains("of the egress limit not found"), "{text}");
    let gone = Pod { path: String::new(), ..pod };
    assert!(host.call("bandwidth", "DEL", &gone, &bare).ok);
}
