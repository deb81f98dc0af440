//! Runs a target over inputs made from its corpus.

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use sim::Random;

use crate::{Target, grown, mutate};

/// What a run came to.
#[derive(Clone, Copy, Debug)]
pub struct Ran {
    /// How many inputs.
    pub inputs: u64,
    /// The longest one took.
    pub slowest: Duration,
}

/// An input a target did not stand.
#[derive(Clone, Debug)]
pub struct Crash {
    /// Which of the seed's inputs it is: `--seed S --from N --count 1` does it again.
    pub number: u64,
    /// The bytes.
    pub input: Vec<u8>,
    /// What was wrong.
    pub why: String,
}

/// An input that takes more of a processor's time is a fault: somebody could hold the agent up with it. Not by the clock on
/// the wall, which goes on while a busy machine does something else.
const SLOW: Duration = Duration::from_secs(2);

/// The empty input, the files of a target's corpus in order of their names, and what libFuzzer grew from them.
pub fn corpus(name: &str) -> Vec<Vec<u8>> {
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut files: Vec<_> =
        fs::read_dir(place).into_iter().flatten().flatten().map(|file| file.path()).collect();
    files.sort();
    let read = files.iter().filter_map(|file| fs::read(file).ok());
    std::iter::once(Vec::new()).chain(read).chain(grown(name)).collect()
}

/// Input number `n` of a seed: first the corpus as it is, then changed.
pub fn input(corpus: &[Vec<u8>], seed: u64, number: u64) -> Vec<u8> {
    if let Some(whole) = corpus.get(number as usize) {
        return whole.clone();
    }
    let mut random = Random::new(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut input = random.pick(corpus).cloned().unwrap_or_default();
    let other = random.pick(corpus).cloned().unwrap_or_default();
    mutate(&mut random, &mut input, &other);
    input
}

/// Runs until the time or the number of inputs is over, whichever is first.
///
/// # Errors
/// The first input that the target does not stand.
pub fn run(target: Target, seed: u64, from: u64, count: u64, time: Duration) -> Result<Ran, Crash> {
    let corpus = corpus(target.name);
    let start = Instant::now();
    let mut ran = Ran { inputs: 0, slowest: Duration::ZERO };
    for number in from..from.saturating_add(count) {
        // The clock is looked at now and then.
        if number % 64 == 0 && start.elapsed() > time {
            break;
        }
        let input = input(&corpus, seed, number);
        let began = used();
        let done = panic::catch_unwind(AssertUnwindSafe(|| (target.decode)(&input)));
        let took = used().saturating_sub(began);
        let why = match done {
            Err(panic) => said(panic.as_ref()),
            Ok(()) if took > SLOW => format!("took {} ms", took.as_millis()),
            Ok(()) => {
                ran.inputs += 1;
                ran.slowest = ran.slowest.max(took);
                continue;
            }
        };
        return Err(Crash { number, input, why });
    }
    Ok(ran)
}

/// Processor time of this thread.
fn used() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned()
}
