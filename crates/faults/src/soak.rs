//! Faults by chance, one a second, for as long as asked: does memory grow, does anything stay wrong? Restarts of agents
//! are left out, because a new process has not grown; row R01 has them. Now and then the store, an etcd, is away.

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
/// Three fifths of a turn the store is there. In the fourth it is away and nothing else happens, so that what agents log
/// is about it; in the last faults go on without it.
const TURN: Duration = Duration::from_secs(300);
/// Lines of an agent that the lab keeps.
const KEPT: usize = 2000;
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

/// What goes on at a moment of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Faults,
    Away,
    FaultsAndAway,
}

fn phase(since: Duration, turn: Duration) -> Phase {
    let fifth = since.as_secs_f64() % turn.as_secs_f64() / turn.as_secs_f64() * 5.0;
    match fifth as u32 {
        0..=2 => Phase::Faults,
        3 => Phase::Away,
        _ => Phase::FaultsAndAway,
    }
}

/// Runs on one scene for so long.
///
/// # Errors
/// The runner itself fails.
pub fn soak(setup: &Setup, backend: &str, time: Duration, seed: u64) -> Result<Soaked> {
    let mut scene = Scene::start(&Setup { etcd: true, ..setup.clone() })?;
    let turn = TURN.min(time / 4);
    let mut random = Random::new(seed);
    let acts: Vec<Act> = FAULTS
        .iter()
        .filter(|fault| !ENDS_AGENTS.contains(&fault.row))
        .filter_map(|fault| if let Way::Here(act) = fault.way { Some(act) } else { None })
        .filter(|act| fits(act, backend, setup))
        .collect();
    let (mut seen, mut memory) = (Seen::default(), Vec::new());
    let (mut outages, mut now, mut said) = (Vec::new(), Phase::Faults, Vec::new());
    let before: usize = lines(&scene).iter().sum();
    let traffic = Traffic::start(&scene.ends, setup.load, &scene.denied)?;
    let mut watch = setup.fast.then(|| Watch::start(&scene)).transpose()?;
    let (start, mut looked) = (Instant::now(), None);
    while start.elapsed() < time {
        let next = Instant::now() + Duration::from_secs(1);
        let then = std::mem::replace(&mut now, phase(start.elapsed(), turn));
        if then != now {
            if then == Phase::Away {
                let new = lines(&scene).iter().zip(&said).map(|(now, then)| now - then).max();
                outages.push(new.unwrap_or(0));
            }
            match now {
                Phase::Faults => scene.store_back()?,
                Phase::Away => {
                    said = lines(&scene);
                    scene.store_away()?;
                }
                Phase::FaultsAndAway => {}
            }
        }
        if now == Phase::Away {
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            continue;
        }
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
    if now != Phase::Faults {
        scene.store_back()?;
    }
    let fast = watch.as_mut().map_or(Ok(()), |watch| watch.again(&scene));
    if let Err(error) = fast.and_then(|()| traffic.flows()) {
        seen.troubles.push(error);
    }
    traffic.finish(&mut seen);
    seen.fast = watch.map(|watch| watch.seen);
    seen.fast_within = PATIENCE;
    scene.compare(&mut seen)?;
    let lines = lines(&scene);
    if lines.iter().any(|lines| *lines >= KEPT) {
        seen.troubles.push(format!("an agent logged more than {KEPT} lines, which are not counted"));
    }
    let lines = lines.iter().sum::<usize>() - before;
    Ok(Soaked { seen, memory, lines, outages, quiet: turn / 5 })
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
    fn a_turn_has_five_parts() {
        use Phase::*;
        for (second, wanted) in
            [(0, Faults), (179, Faults), (180, Away), (239, Away), (240, FaultsAndAway), (300, Faults), (485, Away)]
        {
            assert_eq!(phase(Duration::from_secs(second), TURN), wanted, "{second}");
        }
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
