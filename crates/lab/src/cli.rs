//! `loden lab …`: the command line.

mod args;
mod help;
mod run;

pub use run::style;

use crate::error::Error;
use crate::supervisor;

/// Entry of `loden lab ARGS`; `args` is what follows `lab`. Gives the exit status: 0, 1 after a failure,
/// 2 for a command line that cannot be understood, that of the program for `exec`.
pub fn main(args: Vec<String>) -> i32 {
    // The lab's own processes are this same program under verbs nobody types.
    let hidden: Vec<&str> = args.iter().map(String::as_str).collect();
    match hidden.as_slice() {
        ["__supervise", _name] => return supervisor::main(),
        ["__host", name] => return supervisor::hold::host(name),
        ["__pod", name, host] => return supervisor::hold::pod(name, host),
        _ => {}
    }
    let (command, look) = match args::parse(&args) {
        Ok(parsed) => parsed,
        Err(error) => {
            run::complain(&error);
            return 2;
        }
    };
    match run::run(command, &look) {
        Ok(status) => status,
        Err(error) => {
            run::complain(&error);
            if matches!(error, Error::Usage(_)) { 2 } else { 1 }
        }
    }
}
