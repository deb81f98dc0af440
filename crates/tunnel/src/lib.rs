//! The user-space data path: TUN devices with offloads, UDP with segmentation and coalescing, who the peers
//! are; the process that holds all this, and the socket it is controlled by (`docs/design/tunnel.md`).
//!
//! The process outlives the agent that started it, killed or not. It decides nothing: the agent's loop reads
//! what it does as a part of the kernel, compares and tells it.

pub mod alloc;
pub mod control;
pub mod packet;
pub mod peers;
pub mod process;
pub mod relay;
pub mod run;
mod sys;
pub mod tun;
pub mod udp;
pub mod wireguard;
