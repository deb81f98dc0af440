//! What is done to hosts. Each function does its fault once, waits until the kernel is as it was, and notes how long
//! that took.

pub mod agent;
pub mod denied;
pub mod device;
pub mod fast;
pub mod kernel;
pub mod store;
pub mod underlay;
pub mod uplink;

use std::time::{Duration, Instant};

use sim::Random;

use crate::Result;
use crate::picture::must;
use crate::promise::Seen;
use crate::scene::{HOSTS, Scene};

/// Does a fault once.
pub type Inject = fn(&mut Scene, &mut Random, &mut Seen) -> Result<()>;

/// A host by chance.
fn host(random: &mut Random) -> usize {
    1 + random.below(HOSTS)
}

/// A moment by chance, up to so many milliseconds.
fn moment(random: &mut Random, most: usize) {
    std::thread::sleep(Duration::from_micros(random.below(most * 1000) as u64));
}

/// Runs a script on a host and waits until it is as before, counted from the script's end.
fn damage(scene: &Scene, host: usize, script: &str, seen: &mut Seen) -> Result<()> {
    must(&scene.lab, host, script)?;
    right(scene, host, Instant::now(), seen)
}

fn right(scene: &Scene, host: usize, start: Instant, seen: &mut Seen) -> Result<()> {
    seen.right.push(scene.settles(host, start)?);
    Ok(())
}
