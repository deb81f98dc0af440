//! What a cluster network *is*: addresses, configuration, leases, peers, the subnet pool, and their
//! exact wire forms.
//!
//! Takes text and values, gives values and text. Knows nothing of the kernel, of sockets, files or the
//! clock: time is passed in.

pub mod addr;
pub mod claims;
pub mod cni;
pub mod codec;
pub mod config;
pub mod goflag;
pub mod gojson;
pub mod lease;
pub mod peers;
pub mod pool;
#[cfg(test)]
mod testing;
pub mod wireguard;

pub use addr::{Family, IfName, Mac};
pub use config::{ConfError, FastPath, NetConf, VxlanConf, WireguardConf};
pub use gojson::Json;
pub use ipnet::{IpNet, Ipv4Net, Ipv6Net};
pub use lease::{Lease, LeaseAttrs, Subnets};
pub use peers::Peers;
