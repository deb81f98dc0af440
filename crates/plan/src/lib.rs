//! What the kernel *should* hold, and the ordered steps from what it holds to that.
//!
//! Takes configuration, leases and facts about the host; gives a [`State`] and [`Step`]s. Does not read
//! or write the kernel, knows no netlink bytes, and does not care which store the peers came from.

pub mod advice;
pub mod assembly;
pub mod backend;
pub mod diff;
pub mod facts;
pub mod handover;
pub mod order;
pub mod rules;
pub mod sources;
pub mod state;
pub mod tracker;
pub mod uplink;

pub use assembly::{Assembly, Touched};
pub use diff::{Step, diff, diff_within};
pub use facts::Facts;
pub use state::{Key, Object, State};

/// The route protocol number that marks a route or nexthop as ours (`ip route show proto 76`).
/// Chosen once, never to change: design.md, section 2. 76 is `L`.
pub const ROUTE_PROTOCOL: u8 = 76;
