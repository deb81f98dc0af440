//! What a round did, in words. Forty thousand steps of a start among ten thousand peers are counted, but not all put into
//! words: that took a tenth of the round, and nobody reads them.

/// Steps put into words, at most; logs and `status` show fewer.
const IN_WORDS: usize = 1_000;

/// Steps done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Done {
    words: Vec<String>,
    count: usize,
}

impl Done {
    /// Notes one.
    pub fn push(&mut self, step: &impl std::fmt::Display) {
        if self.words.len() < IN_WORDS {
            self.words.push(step.to_string());
        }
        self.count += 1;
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The first thousand, as commands.
    pub fn words(&self) -> &[String] {
        &self.words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_counted_and_the_first_are_told() {
        let mut done = Done::default();
        (0..IN_WORDS + 5).for_each(|step| done.push(&step));
        assert_eq!((done.count(), done.words().len()), (IN_WORDS + 5, IN_WORDS));
        assert_eq!(done.words().last().map(String::as_str), Some("999"));
    }
}
