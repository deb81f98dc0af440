//! What happens to the interface the tunnel leaves by.

use sim::Random;

use super::{damage, host};
use crate::Result;
use crate::promise::Seen;
use crate::scene::Scene;

/// Puts back what the kernel takes with an interface or its addresses, as a network manager does.
const BACK: &str = "eval \"$addresses\"; eval \"$routes\"; ip neigh replace 192.0.2.44 lladdr 02:00:00:00:00:44 dev \
                    eth0 nud permanent";

/// Notes addresses and default routes as commands.
const NOTE: &str = r#"
addresses=$(ip -o addr show dev eth0 scope global | sed 's/.* inet6\? \(\S*\) .*/ip addr replace \1 dev eth0 nodad;/')
routes=$(ip route show default | sed 's/^/ip route replace /;s/$/;/'; ip -6 route show default | sed 's/^/ip -6 route replace /;s/$/;/')
"#;

/// Down and up at once.
pub fn flap(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    damage(scene, host(random), &format!("{NOTE} ip link set eth0 down; ip link set eth0 up; {BACK}"), seen)
}

/// As with a DHCP lease that is renewed too late.
pub fn address(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    damage(
        scene,
        host(random),
        &format!("{NOTE} ip addr flush dev eth0 scope global; sleep 0.1; {BACK}"),
        seen,
    )
}

/// As a VPN that starts and ends.
pub fn second_default(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    let script = "ip route add default dev other1 metric 50; ip -6 route add default dev other1 metric 50; \
                  sleep 0.3; ip route del default dev other1 metric 50; ip -6 route del default dev other1 metric 50";
    damage(scene, host(random), script, seen)
}

/// For half a second: everything that is longer than before is said to be too long.
pub fn mtu(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    let script = "ip link set eth0 mtu 1400; sleep 0.5; ip link set eth0 mtu 1500";
    damage(scene, host(random), script, seen)
}

/// As a card that is exchanged, or a standby that takes over: it says so to its neighbours.
pub fn hardware(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    let script = format!(
        "{NOTE} for n in ipv4/conf/eth0/arp_notify ipv6/conf/eth0/ndisc_notify; do echo 1 > /proc/sys/net/$n; done; \
         ip link set eth0 address 02:00:00:{:02x}:{:02x}:77; {BACK}",
        random.below(256),
        random.below(256)
    );
    damage(scene, host(random), &script, seen)
}
