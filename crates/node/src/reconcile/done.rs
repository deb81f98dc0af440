//! What a round did, to be put into words. Forty thousand steps of a start among ten thousand peers are counted, but
//! not all kept, and none is put into words before somebody reads them: a thousand took longer than a millisecond.

use plan::Step;

/// Steps kept, at most; logs and `status` show fewer.
const KEPT: usize = 1_000;

/// Steps done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Done {
    steps: Vec<Step>,
    count: usize,
}

impl Done {
    /// Notes one.
    pub fn push(&mut self, step: &Step) {
        self.extend(std::slice::from_ref(step));
    }

    /// Notes many.
    pub fn extend(&mut self, steps: &[Step]) {
        let room = KEPT.saturating_sub(self.steps.len());
        self.steps.extend(steps.iter().take(room).cloned());
        self.count += steps.len();
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The first thousand, as commands.
    pub fn words(&self) -> impl Iterator<Item = String> {
        self.steps.iter().map(Step::to_string)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plan::Object;

    #[test]
    fn all_are_counted_and_the_first_are_told() {
        let mut done = Done::default();
        let sysctl = |n: usize| Object::Sysctl { path: format!("net/{n}"), value: n.to_string() };
        (0..KEPT + 5).for_each(|n| done.push(&Step::Put(sysctl(n))));
        assert_eq!((done.count(), done.words().count()), (KEPT + 5, KEPT));
        assert_eq!(done.words().last().as_deref(), Some("sysctl -w net/999=999"));
    }
}
