//! The double as a client meets it: over HTTP and HTTPS, in order and out of order.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests fail by panicking and print skips")]

mod faults;
mod http;
mod program;
mod transcript;
