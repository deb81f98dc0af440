//! WireGuard in user space: the protocol's state machine of a library (gotatun), the data path of this room, and
//! the standard control socket, so that `wg` and the agent's loop see what they see of a kernel's device.

mod device;
mod relay;
pub mod run;
mod table;
