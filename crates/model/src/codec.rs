//! Exact wire forms: what other programs read and write of leases and subnets.
//!
//! Each part has a `write` (byte for byte as flannel does) and a `read` (as tolerant as flannel, without
//! its crashes). Text in, text out; files and stores are elsewhere.

pub mod annotation;
pub mod etcd_key;
pub mod last_good;
pub mod lease_json;
pub mod subnet_env;
pub mod vtep;
pub mod wg_uapi;
pub mod wireguard;
