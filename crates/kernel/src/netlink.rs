//! Netlink: messages built and taken apart, and a socket that sends them one by one, in batches or as dumps.
//!
//! Takes messages with a payload made by `rtnl` or `nft`; gives replies as borrowed bytes and errors with
//! the kernel's explanation. Knows the frame (RFC 3549 §2.3, linux/netlink.h), not what the messages mean.

mod attrs;
pub mod generic;
mod message;
mod socket;

pub use attrs::{Attr, Attrs, Reply};
pub use message::Message;
pub(crate) use socket::outcome;
pub use socket::{MULTICAST_BUFFER, MULTICAST_SKIP, Protocol, Received, Socket};

/// Length in bytes of a message header.
pub(crate) const HEADER: usize = 16;

/// Rounds up to the alignment of messages and attributes.
pub(crate) const fn align(length: usize) -> usize {
    (length + 3) & !3
}

#[cfg(test)]
mod tests;
