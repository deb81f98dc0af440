//! The real program in namespaces of its own, driven as a runtime drives it, with Debian's plugins and
//! `ip -j`, `bridge -j`, `nft -j` as witnesses.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

mod bad;
mod bandwidth;
mod bridge;
mod chain;
mod children;
mod dhcp;
mod driver;
mod dummy;
mod firewall;
mod frame;
mod harness;
mod host_device;
mod host_local;
mod kill;
mod loopback;
mod manager;
mod mixed;
mod no_ipv6;
mod nonsense;
mod parallel;
mod podman;
mod portmap;
mod ptp;
mod record;
mod sbr;
mod static_ipam;
mod tap;
mod tuning;
mod underlay;
mod veth_to_host;
mod vrf;
mod witness;
