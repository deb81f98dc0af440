//! Everything that decodes bytes of others, as functions that must return, whatever the bytes are. A target may also
//! hold what it decoded against itself: what is read, written and read again must be the same.
//!
//! Three ways to run them: tests (a few seconds each), `cargo xtask fuzz TARGET` (as long as asked, stable Rust), and
//! libFuzzer with coverage (`fuzz/`, outside the workspace). `docs/decisions/0191-fuzzing.md` says why.

// `node` is a program, from which nothing can be linked; the file stands by itself.
#[path = "../../node/src/archive.rs"]
mod archive;
mod grown;
mod kernel_bytes;
mod kube;
mod mutate;
mod packets;
mod run;
mod texts;

pub use grown::{grown, keep, unpack};
pub use mutate::mutate;
pub use run::{Crash, Ran, corpus, input, run};

/// A decoder, or several that read the same kind of bytes.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folder in `corpus/`.
    pub name: &'static str,
    /// Must return.
    pub decode: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    target("net-conf", texts::net_conf),
    target("lease-json", texts::lease_json),
    target("etcd-key", texts::etcd_key),
    target("annotations", texts::annotations),
    target("kube-json", texts::kube_json),
    target("dump-archive", texts::dump_archive),
    target("subnet-env", texts::subnet_env),
    target("cni-stdin", texts::cni_stdin),
    target("last-good", texts::last_good),
    target("iptables-save", texts::iptables_save),
    target("tunnel-control", texts::tunnel_control),
    target("udp-datagram", packets::udp_datagram),
    target("tun-frame", packets::tun_frame),
    target("wireguard-data", packets::wireguard_data),
    target("dhcp", packets::dhcp),
    target("netlink", kernel_bytes::netlink),
    target("vici", packets::vici),
];

const fn target(name: &'static str, decode: fn(&[u8])) -> Target {
    Target { name, decode }
}

/// A target by name.
pub fn named(name: &str) -> Option<Target> {
    TARGETS.iter().copied().find(|target| target.name == name)
}
