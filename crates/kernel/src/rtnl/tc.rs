//! Queueing disciplines and one kind of filter as rtnetlink messages (linux/pkt_sched.h, linux/pkt_cls.h):
//! a token bucket at the root, and the redirection of all that comes in.

use model::cni::bandwidth::Bucket;

use crate::netlink::{Message, Reply};

/// Length of `struct tcmsg`.
const HEADER: usize = 20;
// TCA_…
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
// TCA_TBF_…
const TBF_PARMS: u16 = 1;
const TBF_RATE64: u16 = 4;
/// `TC_H_ROOT`
const ROOT: u32 = u32::MAX;
/// `TC_H_INGRESS`
const INGRESS: u32 = 0xffff_fff1;
/// `1:`
const FIRST: u32 = 1 << 16;
/// `ffff:`
const INGRESS_HANDLE: u32 = 0xffff << 16;

/// A discipline as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QdiscInfo {
    /// Device.
    pub dev: u32,
    /// `tbf`, `ingress` …
    pub kind: String,
    /// Parent; the root is 0xffffffff.
    pub parent: u32,
    /// Of a token bucket.
    pub bucket: Option<Bucket>,
}

/// `struct tcmsg`
fn header(dev: u32, handle: u32, parent: u32, info: u32) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    for (n, value) in [dev, handle, parent, info].into_iter().enumerate() {
        bytes[4 + 4 * n..8 + 4 * n].copy_from_slice(&value.to_ne_bytes());
    }
    bytes
}

/// Puts a token bucket at the root of a device, in place of what is there.
pub fn put_bucket(dev: u32, bucket: &Bucket) -> Message {
    let mut m = Message::new(libc::RTM_NEWQDISC, libc::NLM_F_CREATE | libc::NLM_F_REPLACE);
    m.bytes(&header(dev, FIRST, ROOT, 0)).attr_text(KIND, "tbf");
    m.nest(OPTIONS, |m| {
        // struct tc_tbf_qopt: two struct tc_ratespec of twelve bytes, limit, buffer, mtu.
        let mut parms = [0; 36];
        let rate = u32::try_from(bucket.rate).unwrap_or(u32::MAX);
        parms[8..12].copy_from_slice(&rate.to_ne_bytes());
        parms[24..28].copy_from_slice(&bucket.limit.to_ne_bytes());
        parms[28..32].copy_from_slice(&bucket.buffer.to_ne_bytes());
        m.attr(TBF_PARMS, &parms);
        if bucket.rate > u64::from(u32::MAX) {
            m.attr(TBF_RATE64, &bucket.rate.to_ne_bytes());
        }
    });
    m
}

/// Makes the place where filters for incoming packets hang.
pub fn add_ingress(dev: u32) -> Message {
    let mut m = Message::new(libc::RTM_NEWQDISC, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
    m.bytes(&header(dev, INGRESS_HANDLE, INGRESS, 0)).attr_text(KIND, "ingress");
    m
}

/// Removes it with its filters.
pub fn delete_ingress(dev: u32) -> Message {
    let mut m = Message::new(libc::RTM_DELQDISC, 0);
    m.bytes(&header(dev, INGRESS_HANDLE, INGRESS, 0));
    m
}

/// Sends all that comes in by a device out by another one.
pub fn redirect_ingress(dev: u32, to: u32) -> Message {
    /// `ETH_P_ALL` and priority 1.
    const ALL: u32 = 1 << 16 | (3_u16.to_be() as u32);
    // TCA_U32_…, TCA_ACT_…, TCA_MIRRED_PARMS
    const SELECTOR: u16 = 5;
    const ACTIONS: u16 = 7;
    const ACT_KIND: u16 = 1;
    const ACT_OPTIONS: u16 = 2;
    const MIRRED_PARMS: u16 = 2;
    // TC_ACT_STOLEN, TCA_EGRESS_REDIR
    const STOLEN: u32 = 4;
    const REDIRECT: u32 = 1;
    let mut m = Message::new(libc::RTM_NEWTFILTER, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
    m.bytes(&header(dev, 0, INGRESS_HANDLE, ALL)).attr_text(KIND, "u32");
    m.nest(OPTIONS, |m| {
        // struct tc_u32_sel with TC_U32_TERMINAL and one key that any packet has.
        let mut selector = [0; 32];
        selector[0] = 1;
        selector[2] = 1;
        m.attr(SELECTOR, &selector);
        m.nest(ACTIONS, |m| {
            m.nest(1, |m| {
                m.attr_text(ACT_KIND, "mirred");
                m.nest(ACT_OPTIONS, |m| {
                    // struct tc_mirred: tc_gen (index, capabilities, action, two counts), what, where.
                    let words = [0, 0, STOLEN, 0, 0, REDIRECT, to];
                    let bytes: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
                    m.attr(MIRRED_PARMS, &bytes);
                });
            });
        });
    });
    m
}

/// Asks for the disciplines of a device.
pub fn dump(dev: u32) -> Message {
    let mut m = Message::new(libc::RTM_GETQDISC, 0);
    m.bytes(&header(dev, 0, 0, 0));
    m
}

/// The device that a notification about a discipline or a filter, old or new, is about.
pub fn changed(reply: &Reply<'_>) -> Option<u32> {
    let kinds = [libc::RTM_NEWQDISC, libc::RTM_DELQDISC, libc::RTM_NEWTFILTER, libc::RTM_DELTFILTER];
    let about = kinds.contains(&reply.kind);
    let index = reply.payload.get(4..8).filter(|_| about)?;
    Some(u32::from_ne_bytes(index.try_into().ok()?))
}

/// A discipline from an `RTM_NEWQDISC` message.
pub fn decode(reply: &Reply<'_>) -> Option<QdiscInfo> {
    if reply.kind != libc::RTM_NEWQDISC {
        return None;
    }
    let attrs = reply.attrs(HEADER);
    let options = attrs.find(OPTIONS);
    let bucket = || -> Option<Bucket> {
        let options = options?.nested();
        let parms = options.find(TBF_PARMS)?.data;
        let word = |at: usize| Some(u32::from_ne_bytes(parms.get(at..at + 4)?.try_into().ok()?));
        let wide = options.find(TBF_RATE64).and_then(|a| Some(u64::from_ne_bytes(a.data.try_into().ok()?)));
        let rate = wide.or(word(8).map(u64::from))?;
        Some(Bucket { rate, limit: word(24)?, buffer: word(28)? })
    };
    let kind = attrs.find(KIND)?.text()?.to_owned();
    Some(QdiscInfo {
        dev: u32::from_ne_bytes(reply.field(4)?),
        parent: u32::from_ne_bytes(reply.field(12)?),
        bucket: if kind == "tbf" { bucket() } else { None },
        kind,
    })
}
