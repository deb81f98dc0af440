//! What to take back when a later step fails.

use model::cni::Error;

type Step<'a> = Box<dyn FnOnce() -> Result<(), Error> + 'a>;

/// Inverses of the steps done so far.
#[derive(Default)]
pub struct Undo<'a> {
    steps: Vec<Step<'a>>,
}

impl<'a> Undo<'a> {
    /// Notes how to take back the step just done (or about to be done).
    pub fn push(&mut self, step: impl FnOnce() -> Result<(), Error> + 'a) {
        self.steps.push(Box::new(step));
    }

    /// Passes a success on; on failure takes everything back, newest first. Failures of that are added to
    /// the details of the first error.
    ///
    /// # Errors
    /// The one given.
    pub fn finish<T>(self, result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|error| {
            self.steps.into_iter().rev().fold(error, |error, step| match step() {
                Ok(()) => error,
                Err(second) => error.also(format!("while undoing: {second}")),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn steps_are_taken_back_newest_first() {
        let log = RefCell::new(Vec::new());
        let run = |result: Result<(), Error>| {
            let mut undo = Undo::default();
            undo.push(|| {
                log.borrow_mut().push(1);
                Err(Error::internal("b"))
            });
            undo.push(|| {
                log.borrow_mut().push(2);
                Ok(())
            });
            undo.finish(result)
        };
        assert_eq!(run(Ok(())), Ok(()));
        assert!(log.borrow().is_empty());
        let error = run(Err(Error::internal("a"))).unwrap_err();
        assert_eq!(error.to_string(), "a; while undoing: b");
        assert_eq!(*log.borrow(), [2, 1]);
    }
}
