//! UDP entries of the connection tracker that outlive a change of host ports (B-14).
//!
//! A datagram follows its entry, not the rules, as long as the entry lives. Only entries that a mapping
//! concerns are deleted: addressed to a local address and its port, or answered by the pod.

use std::net::IpAddr;

use kernel::netlink::{Attr, Attrs, Message, Protocol, Reply, Socket};
use kernel::rtnl::Rtnl;
use model::Family;

/// `NFNL_SUBSYS_CTNETLINK << 8`, with `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_CT_DELETE`
/// (linux/netfilter/nfnetlink_conntrack.h).
const GET: u16 = 0x0101;
const DELETE: u16 = 0x0102;
// CTA_…
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
// CTA_TUPLE_…, CTA_IP_…, CTA_PROTO_…
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const V4_SRC: u16 = 1;
const V4_DST: u16 = 2;
const V6_SRC: u16 = 3;
const V6_DST: u16 = 4;
const PROTO_NUM: u16 = 1;
const PROTO_DST_PORT: u16 = 3;
const UDP: u8 = 17;
/// `RTN_LOCAL`
const LOCAL: u8 = 2;
/// Length of `struct nfgenmsg`.
const HEADER: usize = 4;

/// A UDP port of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalPort {
    /// Its family.
    pub family: Family,
    /// Its number.
    pub port: u16,
    /// Its address; `None` is every address of the host.
    pub address: Option<IpAddr>,
}

/// Deletes the entries of UDP packets sent to these ports of the host.
///
/// # Errors
/// The kernel's refusal, in its words.
pub fn forget_ports(ports: &[LocalPort]) -> Result<(), String> {
    let mut rtnl = None;
    for family in Family::BOTH {
        let ports: Vec<&LocalPort> = ports.iter().filter(|p| p.family == family).collect();
        if ports.is_empty() {
            continue;
        }
        let candidates = list(family, |entry| {
            ports.iter().any(|p| p.port == entry.port && p.address.is_none_or(|a| a == entry.dst))
        })?;
        let rtnl = match &mut rtnl {
            Some(rtnl) => rtnl,
            none => none.insert(Rtnl::open().map_err(|e| e.to_string())?),
        };
        let addresses: Vec<IpAddr> = candidates.iter().map(|entry| entry.dst).collect();
        let kinds = rtnl.lookup(&addresses).map_err(|e| e.to_string())?;
        let local = candidates.into_iter().zip(kinds).filter(|(_, to)| to.is_some_and(|to| to.kind == LOCAL));
        delete(family, local.map(|(entry, _)| entry))?;
    }
    Ok(())
}

/// Deletes the entries of UDP packets that these pods answer.
///
/// # Errors
/// The kernel's refusal, in its words.
pub fn forget_pods(pods: &[IpAddr]) -> Result<(), String> {
    for family in Family::BOTH {
        if pods.iter().any(|pod| Family::of(*pod) == family) {
            delete(family, list(family, |entry| pods.contains(&entry.answered_by))?.into_iter())?;
        }
    }
    Ok(())
}

/// What we need of an entry, and what the kernel needs to find it again.
struct Entry {
    dst: IpAddr,
    port: u16,
    answered_by: IpAddr,
    key: Vec<(u16, Vec<u8>)>,
}

fn list(family: Family, keep: impl Fn(&Entry) -> bool) -> Result<Vec<Entry>, String> {
    let mut message = Message::new(GET, 0);
    message.bytes(&header(family));
    let mut socket = Socket::open(Protocol::Netfilter).map_err(|e| e.to_string())?;
    let entries = socket.dump(&message, |reply| decode(reply).filter(&keep));
    entries.map_err(|e| format!("list: {e}"))
}

fn delete(family: Family, entries: impl Iterator<Item = Entry>) -> Result<(), String> {
    let messages: Vec<Message> = entries.map(|entry| delete_message(family, &entry)).collect();
    if messages.is_empty() {
        return Ok(());
    }
    let mut socket = Socket::open(Protocol::Netfilter).map_err(|e| e.to_string())?;
    /// `ENOENT`: it timed out meanwhile.
    const GONE: i32 = 2;
    let failed = socket.batch(&messages).into_iter().filter_map(Result::err).find(|e| e.code != GONE);
    failed.map_or(Ok(()), |e| Err(format!("delete: {e}")))
}

fn delete_message(family: Family, entry: &Entry) -> Message {
    let mut message = Message::new(DELETE, 0);
    message.bytes(&header(family));
    for (kind, data) in &entry.key {
        match *kind {
            TUPLE_ORIG => message.nest(TUPLE_ORIG, |m| {
                m.bytes(data);
            }),
            kind => message.attr(kind, data),
        };
    }
    message
}

/// `struct nfgenmsg`
fn header(family: Family) -> [u8; HEADER] {
    const INET: u8 = 2;
    const INET6: u8 = 10;
    [if family == Family::V4 { INET } else { INET6 }, 0, 0, 0]
}

fn decode(reply: &Reply<'_>) -> Option<Entry> {
    let attrs = reply.attrs(HEADER);
    let orig = attrs.find(TUPLE_ORIG)?;
    let proto = orig.nested().find(TUPLE_PROTO)?.nested();
    if proto.find(PROTO_NUM)?.u8()? != UDP {
        return None;
    }
    let key = attrs.filter(|a| matches!(a.kind, TUPLE_ORIG | ID | ZONE)).map(|a| (a.kind, a.data.to_vec()));
    Some(Entry {
        dst: address(orig, V4_DST, V6_DST)?,
        port: proto.find(PROTO_DST_PORT)?.be16()?,
        answered_by: address(attrs.find(TUPLE_REPLY)?, V4_SRC, V6_SRC)?,
        key: key.collect(),
    })
}

fn address(tuple: Attr<'_>, v4: u16, v6: u16) -> Option<IpAddr> {
    let ip: Attrs<'_> = tuple.nested().find(TUPLE_IP)?.nested();
    ip.find(v4).or_else(|| ip.find(v6))?.ip()
}
