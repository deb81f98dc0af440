//! A node that starts: a thousand pods, dozens of calls at any moment.
//!
//! What one call waits is the number of calls at once over how many the machine ends a second, whatever
//! the order; so the figures also tell how many that are. All pods live on one bridge, which floods what each
//! new one announces to all that are there: the kernel's part grows with them, and the first ones are told apart.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::case::{Case, Step};
use super::{Pod, Side, ms, timed};
use crate::figure::{Figure, Goal, Samples, Table};
use crate::{Options, Result};

const PODS: usize = 1_000;
const AT_ONCE: usize = 64;
/// More than a node has in most clusters.
const FIRST: usize = 250;

/// ADD of all, then DEL of all.
pub fn measure(options: &Options, case: Case, table: &mut Table) -> Result<()> {
    let name = format!("{PODS} pods, {AT_ONCE} at once, {}", case.name());
    let mut side = Side::ours(options, &name)?;
    let steps = case.steps(&side)?;
    let pods: Vec<Pod> = (0..PODS).map(|_| side.pod()).collect::<Result<_>>()?;
    for (verb, goal) in [("ADD", Goal::AtMost(50.0)), ("DEL", Goal::None)] {
        let start = Instant::now();
        let (times, faults) = calls(&side, &steps[0], verb, &pods);
        let first = Samples(times.0.iter().copied().take(FIRST).collect());
        let rate = PODS as f64 / start.elapsed().as_secs_f64();
        let alone =
            |what: &str, value: f64, goal| Figure::alone(format!("{verb} {name}: {what}"), value, goal);
        table.figures.extend([
            alone("half of them within, ms", times.median(), Goal::None),
            alone("99 % of them within, ms", times.quantile(0.99), goal),
            alone(&format!("99 % of the first {FIRST} within, ms"), first.quantile(0.99), goal),
            alone("calls a second", rate, Goal::None),
            alone("errors", faults.len() as f64, Goal::AtMost(0.0)),
        ]);
        table.skipped.extend(faults.first().map(|fault| format!("{verb} {name}: the first error: {fault}")));
    }
    Ok(())
}

/// A call for each pod, so many at a time.
fn calls(side: &Side, step: &Step, verb: &str, pods: &[Pod]) -> (Samples, Vec<String>) {
    let (next, out) = (AtomicUsize::new(0), Mutex::new((Samples::default(), Vec::new())));
    let work = || {
        while let Some(pod) = pods.get(next.fetch_add(1, Ordering::Relaxed)) {
            let called = side.command(step.plugin, verb, pod).and_then(|mut c| timed(&mut c, &step.document));
            let Ok(mut out) = out.lock() else { return };
            match called {
                Ok((time, _)) => out.0.0.push(ms(time)),
                Err(error) => out.1.push(error.to_string()),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                if let (Err(error), Ok(mut out)) = (side.host.run(work), out.lock()) {
                    out.1.push(error.to_string());
                }
            });
        }
    });
    out.into_inner().unwrap_or_default()
}
