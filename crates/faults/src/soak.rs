//! Faults by chance, one a second, for as long as asked: does memory grow, does anything stay wrong? Restarts of agents
//! are left out, because a new process has not grown; row R01 has them.

use std::time::{Duration, Instant};

use sim::Random;

use crate::Result;
use crate::fast::Watch;
use crate::picture::PATIENCE;
use crate::promise::Seen;
use crate::run::fits;
use crate::scene::{HOSTS, Scene, Setup};
use crate::table::{Act, FAULTS, Way};
use crate::traffic::Traffic;

/// Rows that end agents.
const ENDS_AGENTS: [&str; 2] = ["R01", "R29"];
/// Between two looks at the agents' memory.
const LOOK: Duration = Duration::from_secs(10);

/// What came of it.
pub struct Soaked {
    /// Faults, traffic, leftovers.
    pub seen: Seen,
    /// Resident memory of all agents in KiB, with the second it was looked at.
    pub memory: Vec<(f64, f64)>,
    /// Lines the agents logged.
    pub lines: usize,
}

/// Runs on one scene for so long.
///
/// # Errors
/// The runner itself fails.
pub fn soak(setup: &Setup, backend: &str, time: Duration, seed: u64) -> Result<Soaked> {
    let mut scene = Scene::start(setup)?;
    let mut random = Random::new(seed);
    let acts: Vec<Act> = FAULTS
        .iter()
        .filter(|fault| !ENDS_AGENTS.contains(&fault.row))
        .filter_map(|fault| if let Way::Here(act) = fault.way { Some(act) } else { None })
        .filter(|act| fits(act, backend, setup))
        .collect();
    let (mut seen, mut memory) = (Seen::default(), Vec::new());
    let before = lines(&scene);
    let traffic = Traffic::start(&scene.ends, setup.load, &scene.denied)?;
    let mut watch = setup.fast.then(|| Watch::start(&scene)).transpose()?;
    let (start, mut looked) = (Instant::now(), None);
    while start.elapsed() < time {
        let next = Instant::now() + Duration::from_secs(1);
        let Some(act) = random.pick(&acts) else { break };
        seen.rounds += 1;
        if let Err(error) = (act.inject)(&mut scene, &mut random, &mut seen) {
            seen.troubles.push(error);
            seen.troubles.extend(scene.last_words());
            break;
        }
        if looked.is_none_or(|at: Instant| at.elapsed() >= LOOK) {
            looked = Some(Instant::now());
            memory.push((start.elapsed().as_secs_f64(), resident(&scene)?));
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let fast = watch.as_mut().map_or(Ok(()), |watch| watch.again(&scene));
    if let Err(error) = fast.and_then(|()| traffic.flows()) {
        seen.troubles.push(error);
    }
    traffic.finish(&mut seen);
    seen.fast = watch.map(|watch| watch.seen);
    seen.fast_within = PATIENCE;
    scene.compare(&mut seen)?;
    let lines = lines(&scene) - before;
    Ok(Soaked { seen, memory, lines })
}

fn resident(scene: &Scene) -> Result<f64> {
    let mut sum = 0;
    for host in 1..=HOSTS {
        sum += scene.agent_size(host)?.0;
    }
    Ok(sum as f64)
}

fn lines(scene: &Scene) -> usize {
    (1..=HOSTS).map(|host| scene.lab.logs(&format!("host{host}")).unwrap_or_default().len()).sum()
}

/// Growth in MiB an hour by least squares over the second half, when caches are warm.
pub fn slope(memory: &[(f64, f64)]) -> f64 {
    let points = &memory[memory.len() / 2..];
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count.max(1.0);
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let above: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let below: f64 = points.iter().map(|point| (point.0 - x) * (point.0 - x)).sum();
    if below > 0.0 { above / below * 3600.0 / 1024.0 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_of_the_second_half() {
        // 1 KiB a second is 3.5 MiB an hour; what comes before does not count.
        let grows: Vec<(f64, f64)> =
            (0..20).map(|n| (f64::from(n), f64::from(n + 100 * i32::from(n < 10)))).collect();
        assert!((slope(&grows) - 3.515_625).abs() < 1e-6, "{}", slope(&grows));
        assert!(slope(&[(0.0, 5.0), (1.0, 5.0), (2.0, 5.0), (3.0, 5.0)]).abs() < 1e-9);
        assert!(slope(&[]).abs() < 1e-9 && slope(&[(1.0, 1.0)]).abs() < 1e-9);
    }
}
