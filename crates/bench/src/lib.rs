//! `loden bench`: how fast the ways packets take are beside the bare wire, in a lab of two hosts or between two real
//! ones.
//!
//! Takes what was asked for; gives one [`report::Report`], as a table, JSON or a page. All ways stand at once and are
//! measured in turn, in changing order, each with the traffic of [`traffic`]. Decision 0226.

mod args;
mod hosts;
mod machine;
mod rates;
mod report;
mod run;
mod show;
mod traffic;
mod ways;

use std::io::{self, Write as _};

use kernel::Netns;

pub use args::USAGE;

/// What goes wrong is one sentence.
pub type Result<T, E = String> = std::result::Result<T, E>;

/// Runs the command, whose words follow `bench`; gives the exit status: 0, 1 if something that was asked for by name
/// could not be measured, 2 if nothing could be.
pub fn main(words: &[String], version: &str) -> u8 {
    let done = args::parse(words).map_err(|why| format!("{why}; `loden bench --help` says more"));
    let done = done.and_then(|command| match command {
        args::Command::Help => say(USAGE).map(|()| 0),
        args::Command::Lab(plan) => run::lab(&plan, version),
        args::Command::Host(link, plan) => run::hosts(&link, &plan, version),
        args::Command::Serve(serve) => hosts::serve(&serve),
    });
    done.unwrap_or_else(|why| {
        tell(&why);
        2
    })
}

/// Whether the words make sense; for tests of who lists them.
///
/// # Errors
/// A sentence that names the word.
pub fn understands(words: &[String]) -> Result<()> {
    args::parse(words).map(drop)
}

/// Does something in a network namespace. One copy of what that takes, whatever is done.
fn inside<T: Send>(net: &Netns, work: impl FnOnce() -> T + Send) -> Result<T> {
    fn run(net: &Netns, work: &mut (dyn FnMut() + Send)) -> Result<()> {
        net.run(work).map_err(|error| error.to_string())
    }
    let (mut work, mut done) = (Some(work), None);
    run(net, &mut || done = work.take().map(|work| work()))?;
    done.ok_or_else(|| "nothing was done in the namespace".to_owned())
}

/// Starts a thread.
fn spawn(work: impl FnOnce() + Send + 'static) {
    fn start(work: Box<dyn FnOnce() + Send>) {
        std::thread::spawn(work);
    }
    start(Box::new(work));
}

/// Writes to standard output. A reader who has gone is no error.
fn say(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(format!("write the output: {error}")),
        _ => Ok(()),
    }
}

/// Tells the person at the terminal, beside the output.
fn tell(text: &str) {
    let _ = writeln!(io::stderr().lock(), "loden bench: {text}");
}
