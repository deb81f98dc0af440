//! What the agent counts, held against what was done to it.

use std::fs;
use std::io::Write as _;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::world::{Host, World, sh, until};

const VXLAN: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","CheckSources":true}}"#;

/// The value of one line of the page.
fn metric(host: &Host, port: u16, line: &str) -> Result<f64, String> {
    let (status, page) = host.http(port, "/metrics")?;
    let value = page.lines().find_map(|have| have.strip_prefix(line)?.strip_prefix(' '));
    let value = value.ok_or_else(|| format!("{status}: no {line} in {page}"))?;
    value.parse().map_err(|error| format!("{value}: {error}"))
}

fn becomes(host: &Host, port: u16, line: &str, want: f64) {
    until(&format!("{line} to be {want}"), || match metric(host, port, line)? {
        value if value == want => Ok(()),
        value => Err(format!("it is {value}")),
    });
}

#[test]
fn repairs_and_strangers_are_counted() {
    let world = World::with_config(2, VXLAN);
    let agents = world.start(&["--healthz-port=8081"]);
    let (host, peer) = (&world.hosts[0], &world.hosts[1]);
    becomes(host, 8081, "loden_ready", 1.0);
    becomes(host, 8081, "loden_lease_held", 1.0);
    becomes(host, 8081, "loden_peers{state=\"programmed\"}", 1.0);
    let end = metric(host, 8081, "loden_lease_expiry_timestamp_seconds").unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((end - now - 86_400.0).abs() < 600.0, "a lease lasts a day: {end} at {now}");

    // Three reads of everything that find all as it was are no repairs.
    for _ in 0..3 {
        assert_eq!(host.status(&[]).0, 0);
    }
    let (_, page) = host.http(8081, "/metrics").unwrap();
    assert!(!page.contains("loden_reconcile_repairs_total{"), "{page}");

    let route = format!("ip route del {}", peer.subnet("FLANNEL_SUBNET"));
    host.sh(&route);
    becomes(host, 8081, "loden_reconcile_repairs_total{kind=\"route\",cause=\"missing\"}", 1.0);
    let mac = peer.json("ip -j link show flannel.1")[0]["address"].as_str().unwrap().to_owned();
    host.sh(&format!("bridge fdb replace {mac} dev flannel.1 dst 192.0.2.99"));
    becomes(host, 8081, "loden_reconcile_repairs_total{kind=\"fdb\",cause=\"altered\"}", 1.0);
    host.sh("ip route add 10.244.0.0/24 dev eth0 proto 76");
    becomes(host, 8081, "loden_reconcile_repairs_total{kind=\"route\",cause=\"added\"}", 1.0);

    // A frame for our network from somebody who has no lease.
    sh(&world.hub, "ip addr add 192.0.2.1/24 dev wire");
    let mut datagram = vec![0x08, 0, 0, 0, 0, 0, 1, 0];
    datagram.extend([0; 60]);
    // A node's first packets may come before its lease does, so what was dropped by now is counted off.
    let stranger = "loden_source_check_dropped_packets_total{device=\"flannel.1\",family=\"ip\"}";
    let bytes = stranger.replace("packets", "bytes");
    let [packets, of_bytes] = [stranger, bytes.as_str()].map(|line| metric(host, 8081, line).unwrap());
    let of_peer = metric(peer, 8081, stranger).unwrap();
    let sent =
        world.hub.run(|| UdpSocket::bind("192.0.2.1:0")?.send_to(&datagram, "192.0.2.11:8472")).unwrap();
    assert_eq!(sent.unwrap(), datagram.len());
    becomes(host, 8081, stranger, packets + 1.0);
    becomes(host, 8081, &bytes, of_bytes + 20.0 + 8.0 + 68.0);
    becomes(peer, 8081, stranger, of_peer);
    // A scrape asks the loop for nothing.
    let rounds = "loden_reconcile_duration_seconds_count{kind=\"full\"}";
    let before = metric(host, 8081, rounds).unwrap();
    for _ in 0..20 {
        metric(host, 8081, rounds).unwrap();
    }
    assert!(metric(host, 8081, rounds).unwrap() <= before + 1.0, "one may fall due meanwhile");
    drop(agents);
}

#[test]
fn metrics_have_a_place_of_their_own_if_asked() {
    let world = World::with_config(1, VXLAN);
    let host = &world.hosts[0];
    let agent = host.agent_in(
        &["--healthz-port=8081"],
        &[("LODEN_STORE", host.store()), ("LODEN_METRICS", "127.0.0.1:9465")],
    );
    agent.ready();
    host.sh("ip link set lo up");
    becomes(host, 9465, "loden_ready", 1.0);
    assert_eq!(host.http(8081, "/readyz").unwrap().0, 200);
    assert_eq!(host.http(8081, "/metrics").unwrap().0, 404);
    assert_eq!(host.http(9465, "/readyz").unwrap().0, 404);
    drop(agent);
    let none =
        host.agent_in(&["--healthz-port=8081"], &[("LODEN_STORE", host.store()), ("LODEN_METRICS", "none")]);
    none.ready();
    // Another thread listens, and may be later.
    until("the health checks to be served", || host.http(8081, "/readyz").map(drop));
    assert_eq!(host.http(8081, "/metrics").unwrap().0, 404);
    drop(none);
    let wrong = host.agent_in(&[], &[("LODEN_STORE", host.store()), ("LODEN_METRICS", "9465")]);
    wrong.says("LODEN_METRICS=\"9465\" is no address with a port");
    assert_eq!(wrong.ends(), 1);
}

/// Prometheus' own program is the judge of rules, of what they say of sick and healthy nodes, and of a real page.
#[test]
fn promtool_takes_rules_and_page() {
    let promtool = |words: &[&str], input: &str| {
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/monitoring");
        let mut command = Command::new("promtool");
        command
            .args(words)
            .current_dir(deploy)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().ok()?;
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    };
    let Some((_, _)) = promtool(&["--version"], "") else {
        println!("SKIP promtool_takes_rules_and_page: promtool is not installed (package prometheus)");
        return;
    };
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/monitoring");
    let read = |file: &str| fs::read_to_string(deploy.join(file)).unwrap();
    for alert in read("alerts.yaml").lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(read("alerts_test.yaml").contains(&format!("alertname=\"{alert}\"")), "{alert} is not tried");
    }
    let world = World::with_config(2, VXLAN);
    let _agents = world.start(&["--healthz-port=8081"]);
    becomes(&world.hosts[0], 8081, "loden_ready", 1.0);
    let (_, page) = world.hosts[0].http(8081, "/metrics").unwrap();
    for (words, input) in [
        (&["check", "rules", "alerts.yaml"][..], ""),
        (&["test", "rules", "alerts_test.yaml"], ""),
        (&["check", "metrics"], &page),
    ] {
        let (fine, said) = promtool(words, input).unwrap();
        assert!(fine, "promtool {words:?}: {said}");
    }
}
