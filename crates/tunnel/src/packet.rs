//! Packets as bytes: what a TUN device with offloads and a UDP socket with segmentation hand over, cut into
//! packets and put together again. Values in, values out; nothing here makes a system call.
//!
//! Whatever comes from the network is checked before it is believed: no length of a header is used before it
//! is known to lie inside the packet.

pub mod checksum;
pub mod coalesce;
pub mod header;
pub mod icmp;
pub mod outbox;
pub mod segment;
pub mod vnet;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
