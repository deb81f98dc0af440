//! What happens to the fast path itself.

use std::time::{Duration, Instant};

use sim::Random;

use super::{agent, host, moment, right};
use crate::Result;
use crate::picture::{PATIENCE, must, shell};
use crate::promise::Seen;
use crate::scene::Scene;

/// Links of a host, each with its file's number: another one is another link.
const LINKS: &str = "find /sys/fs/bpf/loden -type f -printf '%p %i\\n' 2>/dev/null | sort";

/// The links that are pinned on a host.
///
/// # Errors
/// It cannot be entered.
pub fn links(scene: &Scene, host: usize) -> Result<Vec<String>> {
    Ok(shell(&scene.lab, host, LINKS)?.lines().map(str::to_owned).collect())
}

/// Waits until as many links are there as before and these files are other ones; packets of a host may have taken the slow
/// path for so long.
fn tied_again(
    scene: &Scene,
    host: usize,
    before: &[String],
    other: &[String],
    seen: &mut Seen,
) -> Result<()> {
    let start = Instant::now();
    loop {
        let now = links(scene, host)?;
        if now.len() == before.len() && !other.iter().any(|link| now.contains(link)) {
            seen.stopped.push(start.elapsed());
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            return Err(format!(
                "host{host} had {} links of the fast path and has {}: {now:?}",
                before.len(),
                now.len()
            ));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Somebody takes a program from a device. The kernel tells nobody.
pub fn detached(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    let host = host(random);
    let before = links(scene, host)?;
    let link = random.pick(&before).ok_or(format!("host{host} has no links of the fast path"))?.clone();
    let file = link.split(' ').next().unwrap_or_default();
    must(&scene.lab, host, &format!("bpftool link detach pinned {file}"))?;
    tied_again(scene, host, &before, &[link], seen)?;
    right(scene, host, Instant::now(), seen)
}

/// Somebody clears `/sys/fs/bpf`: nothing changes, not even when the agent is killed a while later.
pub fn unpinned(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    let host = host(random);
    let before = links(scene, host)?;
    must(&scene.lab, host, "rm -r /sys/fs/bpf/loden")?;
    tied_again(scene, host, &before, &before, seen)?;
    agent::kill(scene, host)?;
    agent::again(scene, host, seen)
}

/// Somebody clears it, and the agent is killed before it is put back: packets take the slow path until the next one.
pub fn unpinned_and_killed(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    let host = host(random);
    must(&scene.lab, host, "rm -r /sys/fs/bpf/loden")?;
    moment(random, 100);
    agent::kill(scene, host)?;
    agent::again(scene, host, seen)
}
