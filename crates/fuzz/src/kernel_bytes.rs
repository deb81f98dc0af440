//! Decoders of what the kernel says over netlink: replies and notifications of every family.

use kernel::netlink::Reply;
use kernel::nft::message as nft;
use kernel::rtnl::{addr, neigh, nexthop, route, rule, tc};
use kernel::{link, xfrm};

/// A stretch of messages; each goes through all decoders, whatever its kind says.
pub fn netlink(bytes: &[u8]) {
    for reply in Reply::split(bytes) {
        let _ = (link::decode(&reply), link::decode_vlans(&reply));
        let _ = (addr::decode(&reply), route::decode(&reply), rule::decode(&reply), tc::decode(&reply));
        let _ = (neigh::decode(&reply), neigh::decode_fdb(&reply), nexthop::decode(&reply));
        let _ = (nft::decode_generation(&reply), nft::decode_table(&reply), nft::decode_chain(&reply));
        let _ = (nft::decode_rule(&reply), nft::decode_set(&reply), nft::decode_elements(&reply));
        let _ = (nft::decode_notification(&reply), xfrm::decode(&reply));
    }
}
