//! What happens to the tunnel's device.

use std::time::{Duration, Instant};

use sim::Random;

use super::{damage, host, right};
use crate::Result;
use crate::picture::must;
use crate::promise::Seen;
use crate::scene::Scene;

/// For each device of ours.
fn each(scene: &Scene, random: &mut Random, what: &str, seen: &mut Seen) -> Result<()> {
    let script = format!("for d in $(ls /sys/class/net | grep ^flannel); do {what}; done");
    damage(scene, host(random), &script, seen)
}

/// Somebody deletes it.
pub fn deleted(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    each(scene, random, "ip link del $d", seen)
}

/// Somebody sets it down.
pub fn down(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    each(scene, random, "ip link set $d down", seen)
}

/// Somebody thinks to know the MTU better.
pub fn mtu(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    each(scene, random, "ip link set $d mtu 1300", seen)
}

/// As systemd-udevd did.
pub fn address(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    each(scene, random, "ip link set $d address 02:00:00:00:55:0${#d}", seen)
}

/// A new one is made beside it, which its VNI forbids until the old one is gone.
pub fn renamed(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    each(scene, random, "ip link set $d down; ip link set $d name lost; ip link del lost", seen)
}

/// Somebody else's device in its place: left alone as long as it is there.
pub fn taken(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    let host = host(random);
    let lab = &scene.lab;
    // The agent may be quicker than the one who takes the name.
    must(
        lab,
        host,
        "until ip link del flannel.1; ip link add flannel.1 type veth peer name other3; do :; done",
    )?;
    std::thread::sleep(Duration::from_secs(1));
    must(lab, host, "ip link show other3 && ip link del flannel.1")?;
    right(scene, host, Instant::now(), seen)
}
