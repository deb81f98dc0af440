//! What a host's kernel holds, told by foreign witnesses (`ip`, `bridge`, `nft`) as sorted lines.

use std::time::{Duration, Instant};

use lab::Lab;

use crate::Result;

/// Devices of ours, what is on them, our routes and all rules, one line each.
const OURS: &str = r#"
for d in $(ls /sys/class/net); do case $d in flannel*)
  ip -o link show dev $d; ip -o addr show dev $d scope global
  ip neigh show dev $d nud permanent; ip -6 neigh show dev $d nud permanent; bridge fdb show dev $d;;
esac; done 2>/dev/null
ip route show proto 76; ip -6 route show proto 76; nft -s list ruleset
true"#;

/// What others put beside it (see [`FOREIGN`]).
const OTHERS: &str = r#"
ip route show table all proto static; ip -6 route show table all proto static; ip route show proto 77
ip -o addr show to 172.16.5.5; ip neigh show nud permanent dev eth0; ip -6 neigh show nud permanent dev eth0
ip -o link show dev other1; nft -s list table ip others; nft -s list table inet deny
true"#;

/// Objects that look a little like ours and are not: made at the start, they must stay as they are.
pub const FOREIGN: &str = r#"
set -e
ip route add 10.244.250.0/24 dev lo proto static
ip route add 10.244.251.0/24 dev lo proto 77
ip -6 route add fd00:10:244:fa::/64 dev lo proto static
ip addr add 172.16.5.5/32 dev lo
ip link add other1 type veth peer name other2
ip link set other1 up
ip neigh add 192.0.2.44 lladdr 02:00:00:00:00:44 dev eth0 nud permanent
nft add table ip others
nft add chain ip others forward '{ type filter hook forward priority 5; }'
"#;

/// Denies a port to all pods of the host, as another's firewall would.
pub const DENY: &str = "table inet deny { chain forward { type filter hook forward priority 10; \
                        udp dport 7777 drop; }; }";

/// Everything ours on a host.
///
/// # Errors
/// The host cannot be entered.
pub fn ours(lab: &Lab, host: usize) -> Result<Vec<String>> {
    let text = shell(lab, host, OURS)?;
    let lines = text.lines().map(plain).filter(|line| !line.is_empty() && !line.starts_with("flags"));
    let mut lines: Vec<String> = lines.collect();
    lines.sort();
    Ok(lines)
}

/// What others put there.
///
/// # Errors
/// The host cannot be entered.
pub fn others(lab: &Lab, host: usize) -> Result<Vec<String>> {
    let mut lines: Vec<String> = shell(lab, host, OTHERS)?.lines().map(plain).collect();
    lines.sort();
    Ok(lines)
}

/// A line without what differs though nothing changed: a device's index, comments, who owns a table.
fn plain(line: &str) -> String {
    let line = line.split('#').next().unwrap_or_default().trim();
    match line.split_once(": ") {
        Some((index, rest)) if index.parse::<u32>().is_ok() => rest.trim().to_owned(),
        _ => line.to_owned(),
    }
}

/// What is missing and what is too much.
pub fn difference(wanted: &[String], now: &[String]) -> Vec<String> {
    let missing = wanted.iter().filter(|line| !now.contains(line)).map(|line| format!("- {line}"));
    let extra = now.iter().filter(|line| !wanted.contains(line)).map(|line| format!("+ {line}"));
    missing.chain(extra).collect()
}

/// How long anything may take before a row counts as failed, on the busiest machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until a host looks as wanted; gives how long that took since `start`. The clock stops when the look began
/// that found all well.
///
/// # Errors
/// It does not, with the difference.
pub fn settles(lab: &Lab, host: usize, wanted: &[String], start: Instant) -> Result<Duration> {
    loop {
        let looked = start.elapsed();
        let now = ours(lab, host)?;
        if now == wanted {
            return Ok(looked);
        }
        if looked > PATIENCE {
            let lines = difference(wanted, &now).join("; ");
            return Err(format!("host{host} is not as before after {} s: {lines}", PATIENCE.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What a script prints inside a host; it may fail.
///
/// # Errors
/// The host cannot be entered.
pub fn shell(lab: &Lab, host: usize, script: &str) -> Result<String> {
    let output = lab.host(host).exec("sh", &["-c", script]).map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A script that must succeed.
///
/// # Errors
/// It does not, with what it complained of.
pub fn must(lab: &Lab, host: usize, script: &str) -> Result<String> {
    lab.host(host).stdout("sh", &["-c", script]).map_err(|error| error.to_string())
}
