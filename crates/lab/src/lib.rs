//! `loden lab`: N hosts as network namespaces joined by a wire, a real agent on each, real pods through
//! the real CNI plugins, and a show of it. Also the test bed of the other crates ([`Lab`]).
//!
//! Takes a [`Spec`]; gives a running lab that ends with its owner. Knows nothing of how the agent works:
//! it starts this same program as `flanneld`, and `loden-cni` from beside it. Writes nothing to the
//! machine's disk, runs no other program, needs no network. How it is built: `docs/design/lab.md`.

pub mod api;
mod cli;
pub mod client;
pub mod error;
pub mod icmp;
pub mod packet;
pub mod paint;
pub mod proto;
mod show;
pub mod spec;
mod supervisor;
mod sys;
pub mod walk;
mod web;
mod wire;

use std::io;

use kernel::Netns;

pub use api::{Builder, Inside, Lab};
pub use cli::{main, style};
pub use client::Client;
pub use error::{Error, Result};
pub use spec::{Spec, Stack, Topology};
pub use sys::{block_signals, wait_for_signal};

/// Runs a closure in a network namespace, on a thread of its own.
pub(crate) fn inside<T: Send>(net: &Netns, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    net.run(work).map_err(io::Error::other)?
}
