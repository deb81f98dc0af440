//! Faults by chance, one a second, for as long as asked: does memory grow, does anything stay wrong? Restarts of agents
//! are left out, because a new process has not grown; row R01 has them. Now and then the store, an etcd, is away.

use std::time::{Duration, Instant};

use lab::proto::LOG_LINES;
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
/// Three fifths of a turn the store is there. In the fourth it is away and nothing else happens, so that what agents log
/// is about it; in the last faults go on without it.
const TURN: Duration = Duration::from_secs(300);
/// MiB an hour by which memory may grow, where it was looked at for long enough to say.
pub const SLOPE: f64 = 1.0;
/// A shorter soak says nothing of it: caches are warm in its second half.
pub const LONG: Duration = Duration::from_secs(1200);
/// Lines an agent may log in a minute while the store is away.
pub const LINES: f64 = 10.0;

/// What came of it.
pub struct Soaked {
    /// Faults, traffic, leftovers.
    pub seen: Seen,
    /// Resident memory of all agents in KiB, with the second it was looked at.
    pub memory: Vec<(f64, f64)>,
    /// Lines the agents logged.
    pub lines: usize,
    /// Per outage, the lines of the agent that logged most while nothing else happened.
    pub outages: Vec<usize>,
    /// How long nothing else happened.
    pub quiet: Duration,
}

impl Soaked {
    /// What a minute of an outage logs at most; a shorter one counts as a minute.
    pub fn lines_in_outages(&self) -> f64 {
        let most = self.outages.iter().max().copied().unwrap_or(0);
        most as f64 / (self.quiet.as_secs_f64() / 60.0).max(1.0)
    }
}

/// What goes on.
struct Soak {
    scene: Scene,
    acts: Vec<Act>,
    random: Random,
    seen: Seen,
    memory: Vec<(f64, f64)>,
    start: Instant,
}

impl Soak {
    /// A fault a second for so long; gives whether to go on.
    fn faults(&mut self, time: Duration) -> Result<bool> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            let next = Instant::now() + Duration::from_secs(1);
            let Some(act) = self.random.pick(&self.acts) else { return Ok(false) };
            self.seen.rounds += 1;
            if let Err(error) = (act.inject)(&mut self.scene, &mut self.random, &mut self.seen) {
                self.seen.troubles.push(error);
                self.seen.troubles.extend(self.scene.last_words());
                return Ok(false);
            }
            let now = self.start.elapsed().as_secs_f64();
            if self.memory.last().is_none_or(|(at, _)| now - at >= LOOK.as_secs_f64()) {
                self.memory.push((now, resident(&self.scene)?));
            }
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        Ok(true)
    }

    /// The store goes away, and nothing else happens for so long; gives the most lines an agent logged.
    fn outage(&mut self, time: Duration) -> Result<usize> {
        let before = lines(&self.scene);
        self.scene.store_away()?;
        std::thread::sleep(time);
        Ok(lines(&self.scene).iter().zip(&before).map(|(now, then)| now - then).max().unwrap_or(0))
    }
}

/// Runs on one scene for so long.
///
/// # Errors
/// The runner itself fails.
pub fn soak(setup: &Setup, backend: &str, time: Duration, seed: u64) -> Result<Soaked> {
    let scene = Scene::start(&Setup { etcd: true, ..setup.clone() })?;
    let acts: Vec<Act> = FAULTS
        .iter()
        .filter(|fault| !ENDS_AGENTS.contains(&fault.row))
        .filter_map(|fault| if let Way::Here(act) = fault.way { Some(act) } else { None })
        .filter(|act| fits(act, backend, &Setup { etcd: false, ..setup.clone() }))
        .collect();
    let before: usize = lines(&scene).iter().sum();
    let traffic = Traffic::start(&scene.ends, setup.load, &scene.denied)?;
    let mut watch = setup.fast.then(|| Watch::start(&scene)).transpose()?;
    let (random, start) = (Random::new(seed), Instant::now());
    let mut soak = Soak { scene, acts, random, seen: Seen::default(), memory: Vec::new(), start };
    let (fifth, mut outages) = (TURN.min(time / 4) / 5, Vec::new());
    while start.elapsed() < time && soak.faults(fifth * 3)? {
        outages.push(soak.outage(fifth)?);
        let goes_on = soak.faults(fifth)?;
        soak.scene.store_back()?;
        if !goes_on {
            break;
        }
    }
    let Soak { scene, mut seen, memory, .. } = soak;
    let fast = watch.as_mut().map_or(Ok(()), |watch| watch.again(&scene));
    if let Err(error) = fast.and_then(|()| traffic.flows()) {
        seen.troubles.push(error);
    }
    traffic.finish(&mut seen);
    seen.fast = watch.map(|watch| watch.seen);
    seen.fast_within = PATIENCE;
    scene.compare(&mut seen)?;
    let lines = lines(&scene);
    if lines.iter().any(|lines| *lines >= LOG_LINES) {
        seen.troubles.push(format!("an agent logged more than {LOG_LINES} lines, which are not counted"));
    }
    let lines = lines.iter().sum::<usize>() - before;
    Ok(Soaked { seen, memory, lines, outages, quiet: fifth })
}

fn resident(scene: &Scene) -> Result<f64> {
    let mut sum = 0;
    for host in 1..=HOSTS {
        sum += scene.agent_size(host)?.0;
    }
    Ok(sum as f64)
}

/// Of each host's agent.
fn lines(scene: &Scene) -> Vec<usize> {
    (1..=HOSTS).map(|host| scene.lab.logs(&format!("host{host}")).unwrap_or_default().len()).collect()
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
    fn lines_are_counted_by_the_minute() {
        let soaked = |outages: &[usize], quiet| Soaked {
            seen: Seen::default(),
            memory: Vec::new(),
            lines: 0,
            outages: outages.to_vec(),
            quiet: Duration::from_secs(quiet),
        };
        assert!((soaked(&[2, 3], 60).lines_in_outages() - 3.0).abs() < 1e-9);
        assert!((soaked(&[2, 3], 3).lines_in_outages() - 3.0).abs() < 1e-9, "three lines in three seconds");
        assert!((soaked(&[30], 120).lines_in_outages() - 15.0).abs() < 1e-9);
    }

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
