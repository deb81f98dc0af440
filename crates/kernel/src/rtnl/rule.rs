//! Policy rules as rtnetlink messages (linux/fib_rules.h).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use model::{Family, IfName};
use plan::state::Rule;

use super::{family_number, family_of};
use crate::netlink::{Attr, Attrs, Message, Reply};

// FRA_…
const DST: u16 = 1;
const SRC: u16 = 2;
const IIFNAME: u16 = 3;
const PRIORITY: u16 = 6;
const FWMARK: u16 = 10;
const TABLE: u16 = 15;
const FWMASK: u16 = 16;
const PROTOCOL: u16 = 21;
/// `FR_ACT_TO_TBL`
const TO_TABLE: u8 = 1;
/// Length of `struct fib_rule_hdr`.
const HEADER: usize = 12;

/// A rule as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleInfo {
    /// The part Loden plans with.
    pub rule: Rule,
    /// `RTPROT_…`, tells whose it is.
    pub protocol: u8,
    /// `FR_ACT_…`: 1 looks in the table, 6 blackhole, 7 unreachable, 8 prohibit.
    pub action: u8,
    /// It has selectors besides those of [`Rule`].
    pub narrower: bool,
    /// It has selectors or an action besides those of [`Rule`].
    pub foreign: bool,
}

fn header(rule: &Rule) -> [u8; HEADER] {
    let length = |net: &Option<IpNet>| net.map_or(0, |n| n.prefix_len());
    let mut bytes = [0; HEADER];
    bytes[0] = family_number(rule.family);
    bytes[1] = length(&rule.to);
    bytes[2] = length(&rule.from);
    bytes[4] = u8::try_from(rule.table).unwrap_or(0);
    bytes[7] = TO_TABLE;
    bytes
}

fn message(kind: u16, flags: i32, rule: &Rule) -> Message {
    let mut m = Message::new(kind, flags);
    m.bytes(&header(rule));
    for (attr, net) in [(DST, rule.to), (SRC, rule.from)] {
        if let Some(net) = net.filter(|n| n.prefix_len() > 0) {
            m.attr_ip(attr, net.network());
        }
    }
    if let Some(iif) = rule.iif {
        m.attr_text(IIFNAME, iif.as_str());
    }
    m.attr_u32(PRIORITY, rule.priority);
    if let Some((mark, mask)) = rule.fwmark {
        m.attr_u32(FWMARK, mark).attr_u32(FWMASK, mask);
    }
    m.attr_u32(TABLE, rule.table);
    m
}

/// Adds a rule of ours.
pub fn add(rule: &Rule) -> Message {
    add_as(rule, plan::ROUTE_PROTOCOL)
}

/// Adds a rule of a protocol (`RTPROT_…`), 0 for none.
pub fn add_as(rule: &Rule, protocol: u8) -> Message {
    let mut m = message(libc::RTM_NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_EXCL, rule);
    m.attr_u8(PROTOCOL, protocol);
    m
}

/// Deletes the first rule with these selectors.
pub fn delete(rule: &Rule) -> Message {
    message(libc::RTM_DELRULE, 0, rule)
}

/// Asks for the rules of a family.
pub fn dump(family: Family) -> Message {
    let mut m = Message::new(libc::RTM_GETRULE, 0);
    let mut bytes = [0; HEADER];
    bytes[0] = family_number(family);
    m.bytes(&bytes);
    m
}

/// A rule from an `RTM_NEWRULE` or `RTM_DELRULE` message.
pub fn decode(reply: &Reply<'_>) -> Option<RuleInfo> {
    if reply.kind != libc::RTM_NEWRULE && reply.kind != libc::RTM_DELRULE {
        return None;
    }
    let [family, to_length, from_length, tos, table, _, _, action] = reply.field(0)?;
    let family = family_of(family)?;
    let attrs = reply.attrs(HEADER);
    let number = |kind| attrs.find(kind).as_ref().and_then(Attr::u32);
    // FRA_OIFNAME, FRA_TUN_ID, FRA_L3MDEV, FRA_UID_RANGE, ports and the like; 13 and 14 are the
    // suppressors, of which −1 means none.
    let narrower = tos != 0
        || u32::from_ne_bytes(reply.field(8)?) & 2 != 0
        || attrs.into_iter().any(|a| {
            matches!(a.kind, 11 | 12 | 17 | 20 | 22 | 23 | 24) && a.data.iter().any(|b| *b != 0)
                || matches!(a.kind, 13 | 14) && a.u32() != Some(u32::MAX)
        });
    Some(RuleInfo {
        rule: Rule {
            family,
            priority: number(PRIORITY).unwrap_or(0),
            from: selector(family, attrs, SRC, from_length),
            to: selector(family, attrs, DST, to_length),
            iif: attrs.find(IIFNAME).and_then(|a| a.text()).and_then(|n| IfName::new(n).ok()),
            fwmark: match (number(FWMARK), number(FWMASK)) {
                (mark, Some(mask)) => Some((mark.unwrap_or(0), mask)),
                (Some(mark), None) => Some((mark, u32::MAX)),
                (None, None) => None,
            },
            table: number(TABLE).unwrap_or(u32::from(table)),
        },
        protocol: attrs.find(PROTOCOL).as_ref().and_then(Attr::u8).unwrap_or(0),
        action,
        narrower,
        foreign: action != TO_TABLE || narrower,
    })
}

fn selector(family: Family, attrs: Attrs<'_>, kind: u16, length: u8) -> Option<IpNet> {
    let ip = attrs.find(kind).as_ref().and_then(Attr::ip).or(match family {
        _ if length == 0 => None,
        Family::V4 => Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        Family::V6 => Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
    })?;
    IpNet::new(ip, length).ok()
}
