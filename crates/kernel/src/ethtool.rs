//! Offloads of a device, by the names `ethtool -k` prints (linux/ethtool_netlink.h, Linux 5.7).

use std::collections::BTreeSet;

use model::IfName;

use crate::netlink::{Message, Protocol, Reply, Socket, generic};
use crate::{Errno, Error};

/// `ETHTOOL_GENL_NAME`
const FAMILY: &str = "ethtool";
/// `ETHTOOL_MSG_FEATURES_GET`
const FEATURES_GET: u8 = 11;
/// `ETHTOOL_MSG_FEATURES_SET`
const FEATURES_SET: u8 = 12;
/// `ETHTOOL_FLAG_OMIT_REPLY`: the acknowledgement says enough.
const OMIT_REPLY: u32 = 2;
// ETHTOOL_A_…
const FEATURES_HEADER: u16 = 1;
const FEATURES_WANTED: u16 = 3;
const FEATURES_ACTIVE: u16 = 4;
const HEADER_DEV_NAME: u16 = 2;
const HEADER_FLAGS: u16 = 3;
const BITSET_BITS: u16 = 3;
const BITS_BIT: u16 = 1;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;

/// Turns offloads of a device on or off, in the namespace of the calling thread. What a device cannot have stays off,
/// without an error: so the kernel does it.
///
/// # Errors
/// The kernel's refusal: there is no such device, or no such offload.
pub fn set_features(device: IfName, features: &[(&str, bool)]) -> Result<(), Error> {
    let refused = |errno| Error::kernel(format!("change the offloads of {device}"))(errno);
    let mut socket = Socket::open(Protocol::Generic)?;
    let family = generic::family(&mut socket, FAMILY).map_err(refused)?;
    let family = family.ok_or_else(|| refused(Errno::new(libc::EOPNOTSUPP)))?;
    socket.request(&message(family, device, features)).map_err(refused)
}

/// The offloads of a device that are on, in the namespace of the calling thread.
///
/// # Errors
/// The kernel's refusal.
pub fn features(device: IfName) -> Result<BTreeSet<String>, Error> {
    let refused = |errno| Error::kernel(format!("read the offloads of {device}"))(errno);
    let mut socket = Socket::open(Protocol::Generic)?;
    let family = generic::family(&mut socket, FAMILY).map_err(refused)?;
    let family = family.ok_or_else(|| refused(Errno::new(libc::EOPNOTSUPP)))?;
    let mut m = generic::message(family, FEATURES_GET, 0);
    m.nest(FEATURES_HEADER, |m| {
        m.attr_text(HEADER_DEV_NAME, device.as_str());
    });
    let mut on = BTreeSet::new();
    socket.query(&m, &mut |reply| on.extend(active(reply))).map_err(refused)?;
    Ok(on)
}

/// Of a bitset without a mask, each bit that is there is set.
fn active(reply: &Reply<'_>) -> Vec<String> {
    let set = reply.attrs(generic::HEADER).find(FEATURES_ACTIVE);
    let bits = set.and_then(|set| set.nested().find(BITSET_BITS));
    let names = bits.into_iter().flat_map(|bits| bits.nested());
    names.filter_map(|bit| bit.nested().find(BIT_NAME)?.text().map(str::to_owned)).collect()
}

fn message(family: u16, device: IfName, features: &[(&str, bool)]) -> Message {
    let mut m = generic::message(family, FEATURES_SET, 0);
    m.nest(FEATURES_HEADER, |m| {
        m.attr_text(HEADER_DEV_NAME, device.as_str());
        m.attr_u32(HEADER_FLAGS, OMIT_REPLY);
    });
    m.nest(FEATURES_WANTED, |m| {
        m.nest(BITSET_BITS, |m| {
            for (name, on) in features {
                m.nest(BITS_BIT, |m| {
                    m.attr_text(BIT_NAME, name);
                    if *on {
                        m.attr_flag(BIT_VALUE);
                    }
                });
            }
        });
    });
    m
}
