//! What became of numbered packets. Pure.

use std::time::Duration;

/// How one flow fared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// From where to where.
    pub what: String,
    /// How many were sent, or were to be.
    pub sent: u64,
    /// How many never arrived.
    pub lost: u64,
    /// The longest stretch between two that arrived with one lost in between, by the sender's clock.
    pub gap: Duration,
}

/// Which numbers arrived; grows as they come.
#[derive(Clone, Debug, Default)]
pub struct Arrived(Vec<u64>);

impl Arrived {
    /// Notes a number; gives whether it is new.
    pub fn note(&mut self, number: u64) -> bool {
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        let new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        new
    }

    /// Whether a number came.
    pub fn has(&self, number: u64) -> bool {
        self.0.get((number / 64) as usize).is_some_and(|word| word & (1 << (number % 64)) != 0)
    }
}

/// Loss and the longest gap of a flow: `sent[n]` is when number `n` left, in microseconds of any clock.
/// A flow whose end is lost has a gap up to its end.
pub fn account(what: &str, sent: &[u64], arrived: &Arrived) -> Line {
    let (mut lost, mut gap, mut since, mut open) = (0, 0, sent.first().copied().unwrap_or(0), false);
    for (number, at) in sent.iter().enumerate() {
        if arrived.has(number as u64) {
            if open {
                gap = gap.max(at - since);
            }
            (since, open) = (*at, false);
        } else {
            lost += 1;
            open = true;
        }
    }
    if let (true, Some(last)) = (open, sent.last()) {
        gap = gap.max(last - since);
    }
    Line { what: what.to_owned(), sent: sent.len() as u64, lost, gap: Duration::from_micros(gap) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_and_gaps() {
        // One packet each 10 ms.
        for (sent, arrived, lost, gap_ms) in [
            (0, &[][..], 0, 0),
            (4, &[0, 1, 2, 3], 0, 0),
            (4, &[0, 1, 3], 1, 20),
            (6, &[0, 3, 5], 3, 30),
            (5, &[0, 1], 3, 30),
            (5, &[3, 4], 3, 30),
            (5, &[], 5, 40),
        ] {
            let times: Vec<u64> = (0..sent).map(|n| n * 10_000).collect();
            let mut there = Arrived::default();
            for number in arrived {
                assert!(there.note(*number) && !there.note(*number));
            }
            let line = account("a", &times, &there);
            assert_eq!((line.lost, line.gap.as_millis()), (lost, gap_ms), "{sent} {arrived:?}");
        }
    }
}
