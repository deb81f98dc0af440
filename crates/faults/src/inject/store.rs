//! The store goes away and comes again.

use std::time::{Duration, Instant};

use sim::Random;

use super::{agent, kernel, right};
use crate::Result;
use crate::promise::Seen;
use crate::scene::{HOSTS, Scene};

/// For two seconds.
pub fn away(scene: &mut Scene, _: &mut Random, seen: &mut Seen) -> Result<()> {
    scene.store_away()?;
    std::thread::sleep(Duration::from_secs(2));
    scene.store_back()?;
    (1..=HOSTS).try_for_each(|host| right(scene, host, Instant::now(), seen))
}

/// What is damaged meanwhile is put right without it.
pub fn away_and_damage(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    scene.store_away()?;
    kernel::flush_routes(scene, random, seen)?;
    scene.store_back()
}

/// An agent that finds no store leaves everything as it is.
pub fn away_and_restart(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    scene.store_away()?;
    let done = agent::killed(scene, random, seen);
    scene.store_back()?;
    done
}
