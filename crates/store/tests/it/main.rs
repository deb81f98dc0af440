//! Stores against the same list of cases, and each against its own faults: a real etcd with
//! certificates, passwords, dead members, cut lines; a file that is full, locked or not a
//! database; an API server that refuses, forgets, breaks off and falls silent.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says by panic or SKIP line that it cannot go on"
)]

mod conformance;
mod embedded;
mod etcd;
mod kube;
mod kube_faults;
mod orders;
mod proxy;
mod server;
mod world;
