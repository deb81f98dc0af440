//! Names derived from (network, container, interface) that other programs look for.

use sha2::{Digest, Sha512};

/// Hex SHA-512 of a text.
pub fn sha512(text: &str) -> String {
    let digit = |nibble: u8| char::from(b"0123456789abcdef"[usize::from(nibble)]);
    let bytes = Sha512::digest(text.as_bytes());
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Name of an iptables chain of one container in one network: `CNI-`, the prefix, and as much of a hash as
/// makes 28 characters (cni.md 2.0.6).
pub fn chain(prefix: &str, network: &str, container_id: &str) -> String {
    let mut name = format!("CNI-{prefix}{}", sha512(&format!("{network}{container_id}")));
    name.truncate(28);
    name
}

/// What marks an attachment in comments: `<h1>-<h2>` (cni.md 2.0.6, nftables).
pub fn mark(network: &str, container_id: &str, ifname: &str) -> String {
    format!("{}-{}", network_mark(network), attachment_mark(container_id, ifname))
}

/// `<h1>`: 16 hex digits of the network's name.
pub fn network_mark(network: &str) -> String {
    sha512(network)[..16].to_owned()
}

/// `<h2>`: 16 hex digits of interface and container.
pub fn attachment_mark(container_id: &str, ifname: &str) -> String {
    sha512(&format!("{ifname}:{container_id}"))[..16].to_owned()
}

/// Whether a comment marks an attachment of the network that is not among the valid ones.
pub fn is_stale(comment: &str, network: &str, valid: &[(String, String)]) -> bool {
    let network = network_mark(network);
    comment.strip_prefix(&network).and_then(|rest| rest.strip_prefix('-')).is_some_and(|rest| {
        valid.iter().all(|(container_id, ifname)| !rest.starts_with(&attachment_mark(container_id, ifname)))
    })
}

/// The comment on an attachment's rules, at most 127 bytes.
pub fn comment(network: &str, container_id: &str, ifname: &str) -> String {
    let mark = mark(network, container_id, ifname);
    let mut text = format!("{mark}, net: {network}, if: {ifname}, id: {container_id}");
    text.retain(|c| c != '"');
    while text.len() > 127 {
        text.pop();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_upstreams() {
        assert_eq!(chain("", "test", "1234"), "CNI-2bbe0c48b91a7d1b8a6753a8");
        assert_eq!(chain("PREFIX-", "test", "1234"), "CNI-PREFIX-2bbe0c48b91a7d1b8");
        assert_eq!(chain("", "testalongnamethatdoesnotmakesense", "1234"), "CNI-374f33fe84ab0ed84dcdebe3");
        let id = "icee6giejonei6sohng6ahngee7laquohquee9shiGo7fohferakah3Feiyoolu2pei7ciPhoh7shaoX6vai3vuf0ahfaeng8yohb9ceu0daez5hashee8ooYai5wa3y";
        assert_eq!(chain("DN-", "test", id), "CNI-DN-67e92b96e692a494b6b85");
        assert_eq!(chain("DN-", "testNetName", id), "CNI-DN-bfd599665540dd91d5d28");
        assert_eq!(network_mark("unit-test"), "6fd94d501e58f0aa");
        assert_eq!(attachment_mark("one", "eth0"), "287fc69eff0574a2");
        let text = comment("unit-test", "one", "eth0");
        assert_eq!(text, "6fd94d501e58f0aa-287fc69eff0574a2, net: unit-test, if: eth0, id: one");
        let pair = |id: &str, ifname: &str| (id.to_owned(), ifname.to_owned());
        assert!(is_stale(&text, "unit-test", &[]));
        assert!(is_stale(&text, "unit-test", &[pair("one", "eth1"), pair("two", "eth0")]));
        assert!(!is_stale(&text, "unit-test", &[pair("one", "eth0")]));
        assert!(!is_stale(&text, "other", &[]));
        assert_eq!(comment("n", &"é".repeat(200), "eth0").len(), 127);
    }
}
