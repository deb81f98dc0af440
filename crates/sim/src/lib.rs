//! A kernel in memory for simulations: the objects Loden writes, with the rules by which the real one drops
//! some of them when others go, and with failures on command. Linked into no program.
//!
//! What it does is held against the real kernel by `crates/kernel/tests/it/twin.rs`: the same random steps
//! and disturbances on both, the same state after each.

mod disturb;
mod fake;
mod random;

pub use disturb::Disturbance;
pub use fake::{FakeKernel, Fault, Notice};
pub use random::Random;
