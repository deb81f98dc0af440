//! Whether the host's rules see what bridges forward (module br_netfilter; flannel.md 1.5 step 11).
//!
//! Needed where a service proxy rewrites a pod's packet to a service into one to a pod on the same bridge:
//! the answer crosses the bridge alone, and without the module nobody puts the service's address back, so
//! the first pod drops it. Everything else works without, so unlike flannel we go on and are ready
//! (decision 0089).

use std::sync::Arc;
use std::time::Duration;

use model::{Family, NetConf};

use crate::board::{Board, Topic};

/// Where the kernel shows the switches; there when the module is.
const SWITCHES: &str = "/proc/sys/net/bridge";
/// Distance of looks while something is wrong, and while nothing is.
const LOOK: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// Looks for ever; cancel by dropping.
pub async fn watch(conf: &NetConf, board: Arc<Board>) {
    let [soon, late] = LOOK;
    let families: Vec<Family> = conf.families().collect();
    loop {
        let trouble = trouble(&families, |name| std::fs::read_to_string(format!("{SWITCHES}/{name}")).ok());
        let wait = if trouble.is_some() { soon } else { late };
        match trouble {
            Some(trouble) => board.set(Topic::BridgeNetfilter, trouble),
            None => board.clear(&Topic::BridgeNetfilter),
        }
        tokio::time::sleep(wait).await;
    }
}

fn trouble(families: &[Family], read: impl Fn(&str) -> Option<String>) -> Option<String> {
    const EFFECT: &str = "a pod cannot reach a service whose pod is on this same node";
    let switch = |family: &Family| match family {
        Family::V4 => "bridge-nf-call-iptables",
        Family::V6 => "bridge-nf-call-ip6tables",
    };
    let found = families.iter().map(|family| (switch(family), read(switch(family)))).collect::<Vec<_>>();
    if found.iter().any(|(_, value)| value.is_none()) {
        return Some(format!(
            "the kernel module br_netfilter is not loaded, so {EFFECT}; load it: modprobe br_netfilter, and for \
             the next boot: echo br_netfilter > /etc/modules-load.d/br_netfilter.conf"
        ));
    }
    let off = |value: &Option<String>| value.as_ref().is_some_and(|text| text.trim() == "0");
    let off: Vec<String> =
        found.iter().filter(|(_, v)| off(v)).map(|(name, _)| format!("net.bridge.{name}=1")).collect();
    if off.is_empty() {
        return None;
    }
    Some(format!(
        "bridged packets do not pass the host's rules, so {EFFECT}; switch it on: sysctl -w {}",
        off.join(" ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_enabled_family_has_its_switch() {
        use Family::{V4, V6};
        for (families, v4, v6, want) in [
            (&[V4][..], Some("1\n"), None, ""),
            (&[V6], None, Some("1\n"), ""),
            (&[V4, V6], Some("1\n"), Some("2\n"), ""),
            (&[V4], None, Some("1\n"), "load it: modprobe br_netfilter,"),
            (&[V4, V6], Some("1\n"), None, "load it: modprobe br_netfilter,"),
            (&[V4], Some("0\n"), Some("0\n"), ": sysctl -w net.bridge.bridge-nf-call-iptables=1"),
            (
                &[V4, V6],
                Some("0\n"),
                Some("0\n"),
                "-w net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1",
            ),
        ] {
            let read = |name: &str| if name.contains("ip6") { v6 } else { v4 }.map(str::to_owned);
            let found = trouble(families, read).unwrap_or_default();
            assert!(found.contains(want) && found.is_empty() == want.is_empty(), "{v4:?} {v6:?}: {found:?}");
        }
    }
}
