//! What the processes that hold namespaces do: furnish them, say `ready`, stay.

use std::io::{self, Read, Write};

use super::stage;
use crate::error::{Doing, Result};
use crate::web;

/// Entry of `loden lab __host NAME`.
pub fn host(name: &str) -> i32 {
    finish(stage::furnish_host(name).and_then(|()| ready()).map(|()| stay()))
}

/// Entry of `loden lab __pod NAME HOST`: serves the page besides.
pub fn pod(name: &str, host: &str) -> i32 {
    let served = stage::furnish_pod(name).and_then(|()| ready()).and_then(|()| {
        std::thread::spawn(|| {
            stay();
            crate::sys::exit_now(0)
        });
        web::serve(name, host).doing(|| format!("serve the page of {name}"))
    });
    finish(served)
}

fn ready() -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "ready").and_then(|()| out.flush()).doing(|| "report readiness".to_owned())
}

/// Until the supervisor closes the pipe.
fn stay() {
    let _ = io::stdin().lock().read_to_end(&mut Vec::new());
}

fn finish(outcome: Result<()>) -> i32 {
    match outcome {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(io::stderr().lock(), "{error}");
            1
        }
    }
}
