//! Reads plan values out of the Linux kernel and writes them in: rtnetlink, nftables, sysctls, namespaces.
//!
//! Takes a wanted [`plan::State`] or single requests; gives what the kernel holds, and errors with the
//! kernel's own words. Blocking, one writer; decides nothing about what should be there.

pub mod error;
pub mod link;
pub mod netlink;
pub mod netns;
pub mod rtnl;
mod sys;
pub mod sysctl;

pub use error::{Errno, Error, NetnsError};
pub use netns::Netns;
pub use rtnl::Rtnl;
