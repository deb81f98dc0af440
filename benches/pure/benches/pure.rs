//! Criterion around the table of cases. Run by `cargo xtask bench pure`; what it says is read by `xtask/src/pure`.

use std::cell::{LazyCell, RefCell};
use std::time::Duration;

use criterion::Criterion;
use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use rustix::time::{ClockId, clock_gettime};

/// Processor time of the thread. What only computes waits for nothing, and what others do on the machine meanwhile is
/// left out as far as it can be.
struct Used;

impl Measurement for Used {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
    }

    fn end(&self, start: Duration) -> Duration {
        self.start().saturating_sub(start)
    }

    fn add(&self, one: &Duration, other: &Duration) -> Duration {
        *one + *other
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

fn main() {
    // A second for each: the whole table is for a tea break, not for a night.
    let mut criterion = Criterion::default()
        .with_measurement(Used)
        .sample_size(30)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .nresamples(10_000)
        .configure_from_args();
    for case in cases::all() {
        // Criterion asks once for each sample, and not at all for what was not asked for.
        let work = LazyCell::new(|| match case.checked() {
            Ok(work) => RefCell::new(work),
            Err(wrong) => panic!("{wrong}"),
        });
        criterion.bench_function(&case.name, |bencher| {
            let mut work = work.borrow_mut();
            bencher.iter(&mut **work);
        });
    }
    criterion.final_summary();
}
