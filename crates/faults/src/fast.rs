//! Whether packets go fast while things break: what the programs in the kernel count, read by `bpftool` before each fault
//! and after it until packets go fast again. Without that a row with the fast path on would prove nothing about it.

use std::time::{Duration, Instant};

use crate::Result;
use crate::picture::{PATIENCE, shell};
use crate::promise::Fast;
use crate::scene::{HOSTS, Scene};

/// What the programs of a host have counted since they were loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Figures {
    /// Number of the program: another one counts from nothing.
    program: u64,
    fast: u64,
    slow: u64,
}

/// Says which program is at the uplink, and dumps the counters it has. The agent is not asked, and need not be there.
const COUNTERS: &str = r#"
link=$(ls /sys/fs/bpf/loden/*/uplink_out-* 2>/dev/null | head -n 1); [ -n "$link" ] || exit 0
program=$(bpftool -j link show pinned "$link" | sed 's/.*"prog_id":\([0-9]*\).*/\1/')
for map in $(bpftool -j prog show id "$program" | sed 's/.*"map_ids":\[\([0-9,]*\)\].*/\1/; s/,/ /g'); do
  bpftool map show id "$map" | grep -q 'name counters ' && echo "program $program" && bpftool map dump id "$map"
done
true"#;

/// Rows of the counters (`crates/fastpath/bpf/layout.h`): out, in, from pod to pod; and what might have been.
const FAST: [u64; 3] = [0, 1, 2];
const SLOW: u64 = 3;

impl Figures {
    /// From what the script prints; none where no program is.
    fn of(text: &str) -> Option<Figures> {
        let mut lines = text.lines().map(str::trim);
        let program = lines.next()?.strip_prefix("program ")?.parse().ok()?;
        let mut figures = Figures { program, ..Figures::default() };
        let mut row = None;
        for line in lines {
            let number = |name: &str| line.strip_prefix(name)?.trim_end_matches(',').parse::<u64>().ok();
            if let Some(key) = number("\"key\": ") {
                row = Some(key);
            }
            let value = number("\"value\": ").unwrap_or(0);
            match row {
                Some(row) if FAST.contains(&row) => figures.fast += value,
                Some(SLOW) => figures.slow += value,
                _ => {}
            }
        }
        Some(figures)
    }

    /// What came since.
    fn since(self, before: Figures) -> Figures {
        if self.program != before.program {
            return self;
        }
        let Figures { program, fast, slow } = self;
        Figures { program, fast: fast.saturating_sub(before.fast), slow: slow.saturating_sub(before.slow) }
    }

    /// Whether that is how it looks when all is well.
    fn flows(self) -> bool {
        self.fast >= 10 && self.fast * 2 >= self.slow
    }
}

/// Follows the figures of all hosts through a row.
#[derive(Debug, Default)]
pub struct Watch {
    last: [Figures; HOSTS],
    /// What was seen until now.
    pub seen: Fast,
}

impl Watch {
    /// Waits until packets of all hosts go fast; from here on they are counted.
    ///
    /// # Errors
    /// They do not, with what the agent says.
    pub fn start(scene: &Scene) -> Result<Watch> {
        let mut watch = Watch::default();
        watch.again(scene)?;
        watch.seen = Fast::default();
        Ok(watch)
    }

    /// After a fault: waits until packets of all hosts go fast, and notes how long each took.
    ///
    /// # Errors
    /// As [`Watch::start`].
    pub fn again(&mut self, scene: &Scene) -> Result<()> {
        // Side by side: a look at one host is not to be held against the next.
        let looks: Vec<Result<Look>> = std::thread::scope(|scope| {
            let look = |(at, before): (usize, &Figures)| {
                let before = *before;
                scope.spawn(move || until_fast(scene, at + 1, before))
            };
            let threads: Vec<_> = self.last.iter().enumerate().map(look).collect();
            let panicked = || Err("a thread panicked".to_owned());
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| panicked())).collect()
        });
        for (last, look) in self.last.iter_mut().zip(looks) {
            let look = look?;
            *last = look.last;
            self.seen.packets += look.new.fast;
            self.seen.slow += look.new.slow;
            self.seen.again.push(look.took);
        }
        Ok(())
    }
}

/// The figures of the last host from some moment on, while nobody sends but one flow.
pub struct Alone(Figures);

impl Alone {
    /// From now on.
    ///
    /// # Errors
    /// The host cannot be entered.
    pub fn start(scene: &Scene) -> Result<Alone> {
        Ok(Alone(figures(scene, HOSTS)?.unwrap_or_default()))
    }

    /// Whether so many packets went fast since.
    ///
    /// # Errors
    /// As [`Alone::start`].
    pub fn went_fast(&self, scene: &Scene, packets: u64) -> Result<bool> {
        Ok(figures(scene, HOSTS)?.is_some_and(|now| now.since(self.0).fast >= packets))
    }
}

/// Which program is at a host's uplink.
///
/// # Errors
/// The host cannot be entered.
pub fn program(scene: &Scene, host: usize) -> Result<Option<u64>> {
    Ok(figures(scene, host)?.map(|figures| figures.program))
}

/// Waits until another program is there: what went fast before may go on by that of an agent that is gone.
///
/// # Errors
/// It does not come.
pub fn taken_over(scene: &Scene, host: usize, before: Option<u64>) -> Result<()> {
    let start = Instant::now();
    while program(scene, host)? == before {
        if start.elapsed() > PATIENCE {
            return Err(format!("the fast path of host{host} is still that of the agent before"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn figures(scene: &Scene, host: usize) -> Result<Option<Figures>> {
    Ok(Figures::of(&shell(&scene.lab, host, COUNTERS)?))
}

/// What became of waiting for one host.
struct Look {
    took: Duration,
    last: Figures,
    new: Figures,
}

/// Waits until most packets of a host go fast between one look and the next. The clock stops when the first of these
/// two was over.
fn until_fast(scene: &Scene, host: usize, before: Figures) -> Result<Look> {
    let start = Instant::now();
    let (mut last, mut new, mut looked) = (before, Figures::default(), None);
    while start.elapsed() < PATIENCE {
        if let Some(now) = figures(scene, host)? {
            let came = now.since(last);
            new.fast += came.fast;
            new.slow += came.slow;
            last = now;
            // The first look tells what came before the fault was over.
            if let Some(took) = looked
                && came.flows()
            {
                return Ok(Look { took, last, new });
            }
            looked = Some(start.elapsed());
        }
        std::thread::sleep(Duration::from_millis(30));
    }
    // The agent knows why.
    let text = shell(&scene.lab, host, &format!("{} status -o json", scene.setup.program.display()))?;
    let part = text.split_once("\"fast_path\"").map_or(text.as_str(), |(_, part)| part);
    let said: String = part.chars().take(600).collect();
    Err(format!("packets of host{host} do not go fast: {said}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_sums_of_processors() {
        let row = |key: u64, values: [u64; 2]| {
            let value = |cpu: usize| format!("{{\n    \"cpu\": {cpu},\n  \"value\": {}\n  }}", values[cpu]);
            format!("{{\n  \"key\": {key},\n  \"values\": [{},{}]\n}}", value(0), value(1))
        };
        let rows = [row(0, [1, 2]), row(1, [4, 8]), row(2, [16, 32]), row(3, [64, 0]), row(4, [999, 999])];
        let text = format!("program 77\n[{}\n]\n", rows.join(","));
        for (text, wanted) in [
            (text.as_str(), Some(Figures { program: 77, fast: 63, slow: 64 })),
            ("program 5\n", Some(Figures { program: 5, fast: 0, slow: 0 })),
            ("", None),
            ("Error: no such program\n", None),
        ] {
            assert_eq!(Figures::of(text), wanted, "{text}");
        }
    }

    #[test]
    fn new_programs_count_from_nothing() {
        let figures = |program, fast, slow| Figures { program, fast, slow };
        for (now, before, came, flows) in [
            (figures(1, 30, 9), figures(1, 10, 4), figures(1, 20, 5), true),
            (figures(2, 30, 9), figures(1, 10, 4), figures(2, 30, 9), true),
            (figures(1, 30, 4), figures(1, 25, 4), figures(1, 5, 0), false),
            (figures(1, 30, 90), figures(1, 10, 4), figures(1, 20, 86), false),
        ] {
            let got = now.since(before);
            assert_eq!((got, got.flows()), (came, flows), "{now:?} {before:?}");
        }
    }
}
