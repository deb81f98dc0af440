//! One lease as it lies in a store that keeps flannel's keys and values (flannel.md 3.1, 3.2): etcd and
//! the embedded file.

use model::codec::{etcd_key, lease_json};
use model::{Family, Lease, LeaseAttrs};

/// Reads a lease from the last part of its key and its value.
///
/// # Errors
/// Why the two are not a lease, without the key.
pub(crate) fn read(name: &str, value: &[u8]) -> Result<Lease, String> {
    let subnets = etcd_key::read(name)
        .ok_or("the key is not a subnet, such as 10.5.52.0-24 or 10.5.52.0-24&fd00:5:52::-64")?;
    // Two keys for one subnet would be two owners.
    let proper = etcd_key::write(&subnets);
    if proper != name {
        return Err(format!("the key must be written {proper}"));
    }
    let attrs = lease_json::read(value).map_err(|e| e.to_string())?;
    Ok(Lease { subnets, attrs })
}

/// Who holds a lease, for messages.
pub(crate) fn owner(attrs: &LeaseAttrs) -> String {
    let addresses: Vec<_> =
        Family::BOTH.into_iter().filter_map(|f| attrs.public(f)).map(|ip| ip.to_string()).collect();
    if addresses.is_empty() { "a node without a public address".to_owned() } else { addresses.join(" and ") }
}
