//! Agents and pods that come and go.

use std::time::Instant;

use sim::Random;

use super::{host, moment, right};
use crate::Result;
use crate::fast;
use crate::picture::must;
use crate::promise::Seen;
use crate::scene::{HOSTS, Scene};

fn start(scene: &Scene, host: usize) -> Result<()> {
    let before = fast::program(scene, host)?;
    scene.lab.agent_start(host).map_err(|error| format!("{error}\n{}", error.log().join("\n")))?;
    if scene.setup.fast { fast::taken_over(scene, host, before) } else { Ok(()) }
}

/// SIGKILL.
pub fn kill(scene: &Scene, host: usize) -> Result<()> {
    scene.lab.agent_kill(host).map_err(|error| error.to_string())
}

/// What an agent left is right without it, and stays so when the next one has begun.
pub fn again(scene: &Scene, host: usize, seen: &mut Seen) -> Result<()> {
    right(scene, host, Instant::now(), seen)?;
    start(scene, host)?;
    right(scene, host, Instant::now(), seen)
}

/// SIGKILL at a random moment.
pub fn killed(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    let host = host(random);
    moment(random, 100);
    kill(scene, host)?;
    again(scene, host, seen)
}

/// SIGKILL at a random moment of the first quarter of a second of its life.
pub fn killed_early(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    let host = host(random);
    kill(scene, host)?;
    let script = format!(
        "{} >/run/early.log 2>&1 & sleep 0.{:03}; kill -9 $! || true",
        command(scene),
        random.below(250)
    );
    must(&scene.lab, host, &script)?;
    again(scene, host, seen)
}

/// SIGTERM, as an upgrade does it.
pub fn ended(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    let host = host(random);
    scene.lab.agent_stop(host).map_err(|error| error.to_string())?;
    again(scene, host, seen)
}

/// Another release takes over from ours and hands back; a pod of each is detached by the other's plugins. In between
/// the releases are one cluster.
pub fn exchanged(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    let host = host(random);
    let pod = || scene.lab.pod_add(host, None).map_err(|error| error.to_string());
    let mut pods = vec![pod()?];
    for other in [true, false] {
        scene.release(other)?;
        scene.lab.agent_stop(host).map_err(|error| error.to_string())?;
        moment(random, 100);
        start(scene, host)?;
        for pod in pods.drain(..) {
            scene.lab.pod_del(&pod.name).map_err(|error| error.to_string())?;
        }
        if other {
            pods.push(pod()?);
            moment(random, 500);
        }
    }
    right(scene, host, Instant::now(), seen)
}

/// None is left for a moment.
pub fn all_killed(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    for host in 1..=HOSTS {
        kill(scene, host)?;
    }
    moment(random, 300);
    (1..=HOSTS).try_for_each(|host| again(scene, host, seen))
}

/// The agent as the lab starts it, for a shell.
fn command(scene: &Scene) -> String {
    format!(
        "LODEN_STORE=sqlite:/run/loden-lab/store.db {} agent --iface=eth0 --ip-masq",
        scene.setup.program.display()
    )
}

/// As a rollout that does not wait for the old one.
pub fn two_at_once(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    let host = host(random);
    let script = format!("{} >/run/second.log 2>&1 </dev/null & echo $!", command(scene));
    let second = must(&scene.lab, host, &script)?.trim().to_owned();
    moment(random, 500);
    kill(scene, host)?;
    moment(random, 500);
    right(scene, host, Instant::now(), seen)?;
    must(&scene.lab, host, &format!("kill -9 {second}"))?;
    again(scene, host, seen)
}

/// Eight pods at once on one host, and away again.
pub fn pods_churn(scene: &mut Scene, random: &mut Random, seen: &mut Seen) -> Result<()> {
    let host = host(random);
    let lab = &scene.lab;
    let one = || -> Result<()> {
        let pod = lab.pod_add(host, None).map_err(|error| error.to_string())?;
        lab.pod_del(&pod.name).map(drop).map_err(|error| error.to_string())
    };
    let done: Vec<Result<()>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(one)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err("a thread panicked".to_owned())))
            .collect()
    });
    done.into_iter().collect::<Result<Vec<()>>>()?;
    right(scene, host, Instant::now(), seen)
}
