//! What happens between the hosts. The agents are to do nothing about it.

use std::time::{Duration, Instant};

use sim::Random;

use super::{host, right};
use crate::Result;
use crate::promise::Seen;
use crate::scene::{HOSTS, Scene};

fn rule(scene: &Scene, rule: &str, seconds: f32, seen: &mut Seen) -> Result<()> {
    let wire = scene.lab.place("wire");
    let nft = |text: &str| wire.stdout("nft", &[text]).map_err(|error| error.to_string());
    nft(&format!("table bridge loss {{ chain f {{ type filter hook forward priority 0; {rule}; }}; }}"))?;
    std::thread::sleep(Duration::from_secs_f32(seconds));
    nft("delete table bridge loss")?;
    (1..=HOSTS).try_for_each(|host| right(scene, host, Instant::now(), seen))
}

/// One in five, at random.
pub fn lossy(scene: &mut Scene, _: &mut Random, seen: &mut Seen) -> Result<()> {
    rule(scene, "numgen random mod 100 < 20 drop", 1.0, seen)
}

/// Everything one host sends.
pub fn one_way(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    rule(scene, &format!("iifname \"host{}\" drop", host(random)), 0.5, seen)
}
