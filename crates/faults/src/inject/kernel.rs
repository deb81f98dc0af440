//! What others do to a host's rules, routes and neighbours.

use std::time::Instant;

use sim::Random;

use super::{damage, host, right};
use crate::Result;
use crate::picture::{DENY, must, shell};
use crate::promise::Seen;
use crate::scene::Scene;

/// As a reload of another's firewall: everything goes, and the other's own rules are back in the same transaction.
pub fn flush_ruleset(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    let script = format!(
        "nft 'flush ruleset; {DENY} ; add table ip others; \
         add chain ip others forward {{ type filter hook forward priority 5; }}'"
    );
    damage(scene, host(random), &script, seen)
}

/// As old scripts do it.
pub fn flush_iptables(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    let script = "for p in iptables ip6tables; do $p -w -F; $p -w -t nat -F; $p -w -t mangle -F; done";
    damage(scene, host(random), script, seen)
}

/// Every route of ours.
pub fn flush_routes(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    damage(scene, host(random), "ip route flush proto 76; ip -6 route flush proto 76", seen)
}

/// What somebody does who changed rules and wants them obeyed.
pub fn forget_connections(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    damage(scene, host(random), "conntrack -F", seen)
}

/// A storm of notifications that a socket cannot hold, with a loss of ours among them.
pub fn burst(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    let host = host(random);
    let script = "
        for n in $(seq 0 2499); do
          a=192.168.$((n / 250)).$((n % 250 + 1))
          echo \"neigh add $a lladdr 02:00:00:00:00:01 dev other1\"
        done > /run/add; sed s/add/del/ /run/add | sed 's/lladdr [^ ]*//' > /run/del
        ip -force -batch /run/add
        ip route flush proto 76; ip -6 route flush proto 76
        ip -force -batch /run/del";
    must(&scene.lab, host, script)?;
    right(scene, host, Instant::now(), seen)
}

/// What a line of `ip` or `bridge` names, and two ways to harm it.
struct Kind {
    list: &'static str,
    harm: [&'static str; 2],
}

/// `$line` is one line of the list. What is altered may refuse an alteration; then it is deleted.
const KINDS: &[Kind] = &[
    Kind {
        list: "ip route show proto 76 | grep -v ^blackhole",
        harm: ["ip route del $one proto 76", "ip route replace blackhole $one"],
    },
    Kind {
        list: "ip -6 route show proto 76 | grep -v ^blackhole",
        harm: ["ip -6 route del $one proto 76", "ip -6 route del $one proto 76"],
    },
    Kind {
        list: "for d in $(ls /sys/class/net | grep ^flannel); do ip neigh show dev $d nud permanent | sed \"s/^\\S*/& dev $d/\"; done",
        harm: [
            "ip neigh del $one dev $dev",
            "ip neigh replace $one lladdr 02:00:00:00:00:99 dev $dev nud permanent",
        ],
    },
    Kind {
        list: "for d in $(ls /sys/class/net | grep ^flannel); do ip -6 neigh show dev $d nud permanent | sed \"s/^\\S*/& dev $d/\"; done",
        harm: [
            "ip -6 neigh del $one dev $dev",
            "ip -6 neigh replace $one lladdr 02:00:00:00:00:98 dev $dev nud permanent",
        ],
    },
    Kind {
        list: "for d in $(ls /sys/class/net | grep ^flannel); do bridge fdb show dev $d | sed \"s/^\\S*/& dev $d/\"; done",
        harm: [
            "bridge fdb del $one dev $dev self",
            "bridge fdb append 02:00:00:00:00:97 dev $dev dst 192.0.2.99 self permanent",
        ],
    },
    Kind {
        list: "for d in $(ls /sys/class/net | grep ^flannel); do ip -o addr show dev $d scope global | sed \"s/.* inet6\\? \\(\\S*\\).*/\\1 dev $d/\"; done",
        harm: ["ip addr del $one dev $dev", "ip link set $dev mtu 1300"],
    },
];

/// One object by chance, deleted or altered.
pub fn one_object(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    let host = host(random);
    // Not every backend and family has every kind.
    for _ in 0..100 {
        let Some(kind) = random.pick(KINDS) else { break };
        let text = shell(&scene.lab, host, kind.list)?;
        let lines: Vec<&str> = text.lines().collect();
        let Some(line) = random.pick(&lines) else { continue };
        let words: Vec<&str> = line.split_whitespace().collect();
        let dev = words.iter().position(|word| *word == "dev").and_then(|at| words.get(at + 1));
        let set = format!("one={}; dev={};", words.first().unwrap_or(&""), dev.unwrap_or(&""));
        let harm = kind.harm[random.below(2)];
        return damage(scene, host, &format!("{set} {harm} || {}", kind.harm[0]), seen);
    }
    Err(format!("host{host} has no object to harm"))
}
