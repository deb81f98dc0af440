//! The Container Network Interface as values: versions, errors, results, configuration members.
//!
//! Takes parsed JSON and text, gives values and the exact text of results and errors (cni.md 1). Runs no
//! plugin, opens no file, reads no environment.

/// JSON in tests: `json!({"a": [1, null]})`.
#[cfg(test)]
macro_rules! json {
    ($($token:tt)*) => {
        stringify!($($token)*).parse::<crate::gojson::Json>().unwrap()
    };
}

pub mod args;
pub mod bandwidth;
pub mod bridge;
pub mod cache;
pub mod child;
pub mod common;
pub mod conflist;
pub mod dhcp;
pub mod error;
pub mod firewall;
pub mod flannel;
pub mod host_device;
pub mod host_local;
pub mod iptables;
pub mod members;
pub mod portmap;
pub mod ptp;
pub mod range;
pub mod record;
pub mod result;
pub mod sbr;
pub mod static_ipam;
pub mod tap;
pub mod tuning;
pub mod version;
pub mod veth_to_host;
pub mod vrf;

pub use args::Args;
pub use error::{Error, code};
pub use members::Members;
pub use record::{PodName, Record};
pub use result::{CniResult, Dns, Interface, IpConfig, RouteConfig};
pub use version::Version;

/// Whether a text may be a container id or a network name: `^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$` (cni.md 1.2).
pub fn is_identifier(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// Checks `CNI_IFNAME` by the protocol's rules, which are wider than the kernel's (cni.md 1.2).
///
/// # Errors
/// Code 4 with the message of the table in 1.2.
pub fn check_ifname(name: &str) -> Result<(), Error> {
    if name.len() > 15 {
        let details = "interface name should be less than 16 characters";
        return Err(Error::new(code::ENVIRONMENT, "interface name is too long").details(details));
    }
    if name == "." || name == ".." {
        return Err(Error::new(code::ENVIRONMENT, "interface name is . or .."));
    }
    if name.chars().any(|c| c == '/' || c == ':' || c == '\0' || c.is_whitespace()) {
        let msg = "interface name contains / or : or whitespace characters";
        return Err(Error::new(code::ENVIRONMENT, msg));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_and_interface_names() {
        for (text, ok) in
            [("a", true), ("A.b_c-9", true), ("", false), ("-a", false), ("a b", false), ("ä", false)]
        {
            assert_eq!(is_identifier(text), ok, "{text:?}");
        }
        for (name, msg) in [
            ("eth0", None),
            ("123456789012345", None),
            ("1234567890123456", Some("interface name is too long")),
            (".", Some("interface name is . or ..")),
            ("..", Some("interface name is . or ..")),
            ("a/b", Some("interface name contains / or : or whitespace characters")),
            ("a\u{a0}b", Some("interface name contains / or : or whitespace characters")),
        ] {
            assert_eq!(check_ifname(name).err().map(|e| e.msg).as_deref(), msg, "{name:?}");
        }
    }
}
