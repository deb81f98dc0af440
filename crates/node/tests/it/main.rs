//! Real agents on hosts made of network namespaces; `ip`, `bridge`, `nft` and a real etcd are the
//! witnesses.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests fail by panicking and print skips")]

mod backends;
mod bad_input;
mod capture;
mod changing;
mod cleanup;
mod docker;
mod docker_opts;
mod doctor;
mod drops;
mod extension;
mod fast;
mod faults;
mod firewalld;
mod golden;
mod instances;
mod ipsec;
mod iptables;
mod kube;
mod kube_troubles;
mod last_good;
mod machine;
mod metrics;
mod migrate;
mod nat;
mod overload;
mod probe;
mod reservations;
mod rights;
mod runtime;
mod sources;
mod status;
mod table;
mod tencent;
mod trace;
mod traffic;
mod troubles;
mod tutorials;
mod udp;
mod uplink;
mod wireguard;
mod world;
