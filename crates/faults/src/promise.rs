//! What is promised of a fault, and the judgement over what was seen. Pure.

use std::time::Duration;

use crate::account::Line;

/// What a row of the catalogue promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// No packet is lost and no connection broken.
    NothingLost,
    /// What the fault itself interrupts flows again within this; connections outlive it.
    Gap(Duration),
}

impl Promise {
    /// For tables.
    pub fn words(self) -> String {
        match self {
            Promise::NothingLost => "0 lost".to_owned(),
            Promise::Gap(most) => format!("gap ≤ {} ms", most.as_millis()),
        }
    }
}

/// What was seen while a row ran.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// How often the fault was done.
    pub rounds: usize,
    /// Pings and numbered datagrams.
    pub lines: Vec<Line>,
    /// TCP connections, and how many of them broke.
    pub tcp: (usize, usize),
    /// The longest time a TCP connection waited for an answer.
    pub tcp_stall: Duration,
    /// Packets of the denied flow: sent, and seen where they must not be.
    pub denied: (u64, u64),
    /// Per round, how long after the fault the kernel was again as it should be.
    pub right: Vec<Duration>,
    /// Per round, for how long what was to stop still went on, or what was to come back did not.
    pub stopped: Vec<Duration>,
    /// How objects of others differ from before.
    pub foreign: Vec<String>,
    /// What is there that was not there before, such as devices, addresses, descriptors.
    pub leaked: Vec<String>,
    /// Packets the machine itself dropped meanwhile, of whomever, for want of a processor (`softnet_stat`).
    pub overrun: u64,
    /// Packets that devices of tunnels in user space dropped, because nobody read them in time.
    pub unread: u64,
    /// With the fast path: how much of the traffic took it.
    pub fast: Option<Fast>,
    /// How long it may have taken until packets went fast again.
    pub fast_within: Duration,
    /// Whatever else went wrong, in sentences.
    pub troubles: Vec<String>,
}

/// How packets between pods went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fast {
    /// TCP packets and datagrams that went fast, of all hosts.
    pub packets: u64,
    /// Those that could have, but took the slow path.
    pub slow: u64,
    /// Per round and host, how long after the fault packets went fast again.
    pub again: Vec<Duration>,
}

impl Fast {
    /// Percent that went fast.
    pub fn share(&self) -> u64 {
        self.packets * 100 / (self.packets + self.slow).max(1)
    }
}

impl Seen {
    /// All packets that did not arrive.
    pub fn lost(&self) -> u64 {
        self.lines.iter().map(|line| line.lost).sum()
    }

    /// All that were sent.
    pub fn sent(&self) -> u64 {
        self.lines.iter().map(|line| line.sent).sum()
    }

    /// The longest interruption of any flow.
    pub fn gap(&self) -> Duration {
        self.lines.iter().map(|line| line.gap).max().unwrap_or_default()
    }

    /// The `percent`th percentile of the times to right.
    pub fn right_at(&self, percent: usize) -> Duration {
        percentile(&self.right, percent)
    }

    /// The same of the times until something stopped or was back.
    pub fn stopped_at(&self, percent: usize) -> Duration {
        percentile(&self.stopped, percent)
    }

    /// The same of the times until packets went fast again.
    pub fn fast_at(&self, percent: usize) -> Duration {
        self.fast.as_ref().map_or(Duration::ZERO, |fast| percentile(&fast.again, percent))
    }
}

fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    let at = (times.len() * percent).div_ceil(100).saturating_sub(1);
    times.get(at).copied().unwrap_or_default()
}

/// Percent of the packets that must have gone fast, or a row shows nothing of the fast path.
const SHARE: u64 = 20;

/// How long an owned object may be wrong (issue: p99 within 1 s).
pub const RIGHT: Duration = Duration::from_secs(1);

/// Whether times count: on a machine that does other things too they say nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Times are held against their bounds.
    Counts,
    /// Only what must not happen at all is judged.
    Ignored,
}

/// Everything that breaks the promise, in sentences; none is good.
pub fn judge(promise: Promise, clock: Clock, seen: &Seen) -> Vec<String> {
    let mut broken = seen.troubles.clone();
    // Beside others, what the machine dropped itself is nobody's fault; alone, it is to be run again.
    let excused = seen.lost() <= seen.overrun;
    if promise == Promise::NothingLost && !(excused && clock == Clock::Ignored) {
        for line in seen.lines.iter().filter(|line| line.lost > 0) {
            let gap = line.gap.as_millis();
            broken.push(format!("{} of {} lost within {gap} ms, {}", line.lost, line.sent, line.what));
        }
        if seen.lost() > 0 && seen.overrun > 0 {
            broken
                .push(format!("the machine dropped {} packets itself meanwhile: run it alone", seen.overrun));
        }
        if seen.lost() > 0 && seen.unread > 0 {
            broken.push(format!("tunnels in user space did not read {} packets in time", seen.unread));
        }
    }
    if let (Promise::Gap(most), Clock::Counts) = (promise, clock) {
        for line in seen.lines.iter().filter(|line| line.gap > most) {
            broken.push(format!("a gap of {} ms, {}", line.gap.as_millis(), line.what));
        }
    }
    if seen.tcp.1 > 0 {
        broken.push(format!("{} of {} connections broke", seen.tcp.1, seen.tcp.0));
    }
    if seen.denied.1 > 0 {
        broken.push(format!("{} of {} denied packets passed", seen.denied.1, seen.denied.0));
    }
    if clock == Clock::Counts && seen.right_at(99) > RIGHT {
        broken.push(format!("right after {} ms (p99)", seen.right_at(99).as_millis()));
    }
    if seen.lines.iter().any(|line| line.sent == 0) || seen.denied.0 == 0 {
        broken.push("some flow sent nothing: nothing was measured".to_owned());
    }
    if let Some(fast) = seen.fast.as_ref().filter(|fast| fast.share() < SHARE) {
        let all = fast.packets + fast.slow;
        broken
            .push(format!("{} of {all} packets went fast: nothing was shown of the fast path", fast.packets));
    }
    if clock == Clock::Counts && seen.stopped_at(99) > seen.fast_within {
        broken.push(format!("stopped, or back, after {} ms (p99)", seen.stopped_at(99).as_millis()));
    }
    if clock == Clock::Counts && seen.fast_at(99) > seen.fast_within {
        broken.push(format!("fast again after {} ms (p99)", seen.fast_at(99).as_millis()));
    }
    broken.extend(seen.foreign.iter().map(|line| format!("of others: {line}")));
    broken.extend(seen.leaked.iter().map(|line| format!("left behind: {line}")));
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(lost: u64, gap: u64) -> Line {
        Line { what: "a to b".to_owned(), sent: 100, lost, gap: Duration::from_millis(gap) }
    }

    #[test]
    fn promises_are_kept_or_named() {
        let good =
            Seen { rounds: 1, lines: vec![line(0, 0)], tcp: (9, 0), denied: (5, 0), ..Seen::default() };
        let lossy = |lost, gap| Seen { lines: vec![line(lost, gap)], ..good.clone() };
        let slow = Seen { right: vec![Duration::from_millis(1200)], ..good.clone() };
        let fast = |packets, slow, again| {
            let fast = Fast { packets, slow, again: vec![Duration::from_millis(again)] };
            Seen { fast: Some(fast), fast_within: Duration::from_secs(1), ..good.clone() }
        };
        let second = Promise::Gap(Duration::from_secs(1));
        use Clock::{Counts, Ignored};
        for (promise, clock, seen, want) in [
            (Promise::NothingLost, Counts, &good, &[][..]),
            (Promise::NothingLost, Ignored, &lossy(1, 20), &["1 of 100 lost within 20 ms, a to b"]),
            (Promise::NothingLost, Ignored, &Seen { overrun: 1, ..lossy(1, 20) }, &[]),
            (
                Promise::NothingLost,
                Ignored,
                &Seen { overrun: 1, ..lossy(2, 20) },
                &[
                    "2 of 100 lost within 20 ms, a to b",
                    "the machine dropped 1 packets itself meanwhile: run it alone",
                ],
            ),
            (
                Promise::NothingLost,
                Counts,
                &Seen { unread: 3, ..lossy(2, 20) },
                &[
                    "2 of 100 lost within 20 ms, a to b",
                    "tunnels in user space did not read 3 packets in time",
                ],
            ),
            (Promise::NothingLost, Counts, &Seen { unread: 3, ..good.clone() }, &[]),
            (second, Counts, &lossy(90, 900), &[]),
            (second, Counts, &lossy(90, 1100), &["a gap of 1100 ms, a to b"]),
            (second, Ignored, &lossy(90, 1100), &[]),
            (second, Counts, &slow, &["right after 1200 ms (p99)"]),
            (second, Ignored, &slow, &[]),
            (second, Counts, &Seen { tcp: (9, 2), ..good.clone() }, &["2 of 9 connections broke"]),
            (second, Counts, &Seen { denied: (5, 1), ..good.clone() }, &["1 of 5 denied packets passed"]),
            (
                second,
                Counts,
                &Seen { denied: (0, 0), ..good.clone() },
                &["some flow sent nothing: nothing was measured"],
            ),
            (second, Counts, &Seen { foreign: vec!["- x".to_owned()], ..good.clone() }, &["of others: - x"]),
            (second, Counts, &Seen { leaked: vec!["y".to_owned()], ..good.clone() }, &["left behind: y"]),
            (second, Counts, &fast(20, 80, 900), &[]),
            (
                second,
                Ignored,
                &fast(1, 99, 1100),
                &["1 of 100 packets went fast: nothing was shown of the fast path"],
            ),
            (second, Counts, &fast(50, 50, 1100), &["fast again after 1100 ms (p99)"]),
            (second, Ignored, &fast(50, 50, 1100), &[]),
        ] {
            assert_eq!(judge(promise, clock, seen), want, "{promise:?} {clock:?} {seen:?}");
        }
    }

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let right = [5, 1, 4, 2, 3].map(Duration::from_millis).to_vec();
        let seen = Seen { right, ..Seen::default() };
        assert_eq!([50, 99, 100].map(|p| seen.right_at(p).as_millis()), [3, 5, 5]);
        assert_eq!(Seen::default().right_at(99), Duration::ZERO);
    }
}
