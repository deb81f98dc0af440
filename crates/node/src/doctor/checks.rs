//! The table of checks. What others follow from goes first. All of them are pure.

mod files;
mod filter;
mod host;
mod network;
mod others;

use super::{Check, Facts, Finding};

/// Every check.
pub fn all() -> impl Iterator<Item = &'static Check> {
    host::CHECKS
        .iter()
        .chain(network::CHECKS)
        .chain(others::CHECKS)
        .chain(filter::CHECKS)
        .chain(files::CHECKS)
}

const fn check(name: &'static str, look: fn(&Facts) -> Vec<Finding>) -> Check {
    Check { name, look }
}
