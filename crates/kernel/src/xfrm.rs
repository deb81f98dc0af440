//! IPsec policies over NETLINK_XFRM (linux/xfrm.h): read as plan values, written, and watched.
//!
//! Only policies without mark, interface, protocol and ports are seen: the plan makes no other, and others have
//! another identity in the kernel. Associations are charon's and are left alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use plan::state::{Direction, Policy, PolicyAction, PolicyKey};
use plan::{Key, Object};

use crate::apply::errno_of;
use crate::netlink::{MULTICAST_BUFFER, MULTICAST_SKIP, Message, Protocol, Received, Reply, Socket};
use crate::rtnl::is_absent;
use crate::{Errno, Error, Kernel};

// XFRM_MSG_…
const NEWPOLICY: u16 = 0x13;
const DELPOLICY: u16 = 0x14;
const GETPOLICY: u16 = 0x15;
const POLEXPIRE: u16 = 0x1b;
const UPDPOLICY: u16 = 0x19;
const FLUSHPOLICY: u16 = 0x1d;
// XFRMA_…
const TMPL: u16 = 5;
const POLICY: u16 = 7;
const POLICY_TYPE: u16 = 16;
const MARK: u16 = 21;
const IF_ID: u16 = 31;
/// `XFRMNLGRP_POLICY`
const GROUP: u32 = 4;

/// Lengths of `struct xfrm_selector`, `xfrm_userpolicy_id`, `xfrm_userpolicy_info` and `xfrm_user_tmpl`.
const SELECTOR: usize = 56;
const ID: usize = 64;
const INFO: usize = 168;
const TEMPLATE: usize = 64;
/// Where priority, direction and action stand in the third.
const PRIORITY: usize = SELECTOR + 64 + 32;
const DIR: usize = PRIORITY + 8;
const ACTION: usize = DIR + 1;
const FLAGS: usize = ACTION + 1;

/// `XFRM_MODE_TUNNEL`
const TUNNEL: u8 = 1;
/// `XFRM_POLICY_BLOCK`
const BLOCK: u8 = 1;

fn number(dir: Direction) -> u8 {
    match dir {
        Direction::In => 0,
        Direction::Out => 1,
        Direction::Fwd => 2,
    }
}

fn address(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&ip.octets());
            bytes
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn family(ip: IpAddr) -> u16 {
    (if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u16
}

fn selector(key: &PolicyKey) -> [u8; SELECTOR] {
    let mut bytes = [0; SELECTOR];
    bytes[..16].copy_from_slice(&address(key.dst.network()));
    bytes[16..32].copy_from_slice(&address(key.src.network()));
    bytes[40..42].copy_from_slice(&family(key.src.network()).to_ne_bytes());
    (bytes[42], bytes[43]) = (key.dst.prefix_len(), key.src.prefix_len());
    bytes
}

/// Makes the policy, or changes the one with its key.
pub fn put(policy: &Policy) -> Message {
    let mut info = [0; INFO];
    info[..SELECTOR].copy_from_slice(&selector(&policy.key));
    // No limit of bytes and packets (`XFRM_INF`), none of time (0).
    info[SELECTOR..SELECTOR + 32].fill(0xff);
    info[PRIORITY..PRIORITY + 4].copy_from_slice(&policy.priority.to_ne_bytes());
    info[DIR] = number(policy.key.dir);
    info[ACTION] = if policy.action == PolicyAction::Block { BLOCK } else { 0 };
    let mut message = Message::new(UPDPOLICY, 0);
    message.bytes(&info);
    if let PolicyAction::Esp { from, to, reqid } = policy.action {
        let mut template = [0; TEMPLATE];
        template[..16].copy_from_slice(&address(to));
        template[20] = libc::IPPROTO_ESP as u8;
        template[24..26].copy_from_slice(&family(from).to_ne_bytes());
        template[28..44].copy_from_slice(&address(from));
        template[44..48].copy_from_slice(&reqid.to_ne_bytes());
        template[48] = TUNNEL;
        // Any algorithm: what is fit for the secret is charon's to say.
        template[52..].fill(0xff);
        message.attr(TMPL, &template);
    }
    message
}

/// Deletes the policy of a key.
pub fn delete(key: &PolicyKey) -> Message {
    let mut id = [0; ID];
    id[..SELECTOR].copy_from_slice(&selector(key));
    id[ID - 4] = number(key.dir);
    let mut message = Message::new(DELPOLICY, 0);
    message.bytes(&id);
    message
}

/// Asks for all policies.
pub fn dump() -> Message {
    let mut message = Message::new(GETPOLICY, 0);
    message.bytes(&[0; ID]);
    message
}

fn ip_at(reply: &[u8], at: usize, v4: bool) -> Option<IpAddr> {
    let bytes: [u8; 16] = reply.get(at..at + 16)?.try_into().ok()?;
    let [a, b, c, d, ..] = bytes;
    Some(if v4 { Ipv4Addr::new(a, b, c, d).into() } else { Ipv6Addr::from(bytes).into() })
}

/// The key from a selector and a direction; `None` for what the plan has no words for.
fn key(bytes: &[u8], dir: u8) -> Option<PolicyKey> {
    let dir = Direction::ALL.into_iter().find(|d| number(*d) == dir)?;
    let v4 = match i32::from(u16::from_ne_bytes(bytes.get(40..42)?.try_into().ok()?)) {
        libc::AF_INET => true,
        libc::AF_INET6 => false,
        _ => return None,
    };
    // Ports and their masks; protocol; interface and user.
    let plain = |range: std::ops::Range<usize>| bytes.get(range).is_some_and(|b| b.iter().all(|b| *b == 0));
    if !plain(32..40) || !plain(44..45) || !plain(48..SELECTOR) {
        return None;
    }
    let net = |at, length: u8| IpNet::new(ip_at(bytes, at, v4)?, length).ok().map(|net| net.trunc());
    Some(PolicyKey { dir, src: net(16, *bytes.get(43)?)?, dst: net(0, *bytes.get(42)?)? })
}

fn action(info: &[u8], template: Option<&[u8]>) -> Option<PolicyAction> {
    let (action, flags) = (*info.get(ACTION)?, *info.get(FLAGS)?);
    Some(match (action, template) {
        _ if flags != 0 => PolicyAction::Foreign,
        (0, None) => PolicyAction::Allow,
        (BLOCK, None) => PolicyAction::Block,
        (0, Some(t)) if t.len() == TEMPLATE => {
            let v4 = u16::from_ne_bytes(t[24..26].try_into().ok()?) == libc::AF_INET as u16;
            // The SPI, `share` and `optional`: with the last a packet may go in clear.
            let plain = t[16..20] == [0; 4] && t[49..51] == [0; 2] && t[52..].iter().all(|b| *b == 0xff);
            if t[20] == libc::IPPROTO_ESP as u8 && t[48] == TUNNEL && plain {
                let reqid = u32::from_ne_bytes(t[44..48].try_into().ok()?);
                PolicyAction::Esp { from: ip_at(t, 28, v4)?, to: ip_at(t, 0, v4)?, reqid }
            } else {
                PolicyAction::Foreign
            }
        }
        _ => PolicyAction::Foreign,
    })
}

/// A policy from an answer or a notification of a change.
pub fn decode(reply: &Reply<'_>) -> Option<Policy> {
    if reply.kind != NEWPOLICY && reply.kind != UPDPOLICY {
        return None;
    }
    let info: [u8; INFO] = reply.field(0)?;
    let attrs = reply.attrs(INFO);
    let zero = |kind| attrs.find(kind).is_none_or(|a| a.data.iter().all(|b| *b == 0));
    if !zero(MARK) || !zero(IF_ID) || !zero(POLICY_TYPE) {
        return None;
    }
    let template = attrs.find(TMPL).map(|a| a.data);
    Some(Policy {
        key: key(&info, info[DIR])?,
        priority: u32::from_ne_bytes(info[PRIORITY..PRIORITY + 4].try_into().ok()?),
        action: action(&info, template)?,
    })
}

/// What a notification says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// What is there now under a key.
    Object(Key, Option<Object>),
    /// Anything may have changed.
    All,
}

fn change(reply: &Reply<'_>) -> Option<Change> {
    match reply.kind {
        NEWPOLICY | UPDPOLICY => {
            let policy = decode(reply)?;
            Some(Change::Object(Key::Policy(policy.key), Some(Object::Policy(Box::new(policy)))))
        }
        DELPOLICY => {
            let id: [u8; ID] = reply.field(0)?;
            let attrs = reply.attrs(ID);
            let dir = attrs.find(POLICY).and_then(|a| a.data.get(DIR).copied());
            Some(Change::Object(Key::Policy(key(&id, dir.unwrap_or(id[ID - 4]))?), None))
        }
        FLUSHPOLICY | POLEXPIRE => Some(Change::All),
        _ => None,
    }
}

/// Whether the kernel has IPsec's netlink in this namespace already: it listens itself then. Asking it would
/// load the module.
pub fn is_there() -> bool {
    let sockets = std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap_or_default();
    let protocol = libc::NETLINK_XFRM.to_string();
    sockets.lines().skip(1).any(|line| line.split_whitespace().nth(1) == Some(protocol.as_str()))
}

/// Receives the kernel's notifications of policies, for one thread of its own.
#[derive(Debug)]
pub struct Watch {
    socket: Socket,
    /// Changes were lost, and the socket has not been found empty since.
    lost: bool,
}

impl Watch {
    /// Listens in the namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel has no IPsec.
    pub fn open() -> Result<Watch, Error> {
        let socket = Socket::with_groups(Protocol::Xfrm, &[GROUP], MULTICAST_BUFFER)?;
        Ok(Watch { socket, lost: false })
    }

    /// Waits for changes.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn next_changes(&mut self) -> Result<Vec<Change>, Error> {
        let action = "receive changes of IPsec policies";
        if self.lost {
            self.lost = !self.socket.skip(MULTICAST_SKIP).map_err(Error::kernel(action))?;
            return Ok(vec![Change::All]);
        }
        match self.socket.receive(true).map_err(Error::kernel(action))? {
            Received::Data(data) => Ok(Reply::split(data).filter_map(|reply| change(&reply)).collect()),
            Received::Overrun => {
                self.lost = true;
                self.next_changes()
            }
            Received::Nothing => Ok(Vec::new()),
        }
    }
}

impl Kernel {
    fn xfrm(&mut self) -> Result<&mut Socket, Error> {
        let socket = match self.xfrm.take() {
            Some(socket) => socket,
            None => match &self.netns {
                Some(netns) => Socket::open_in(std::os::fd::AsFd::as_fd(netns), Protocol::Xfrm)?,
                None => Socket::open(Protocol::Xfrm)?,
            },
        };
        Ok(self.xfrm.insert(socket))
    }

    /// All policies the plan has words for; none where the kernel has no IPsec.
    pub(crate) fn policies(&mut self) -> Result<Vec<Policy>, Error> {
        let socket = match self.xfrm() {
            Ok(socket) => socket,
            Err(error) if error.code() == Some(libc::EPROTONOSUPPORT) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        socket.dump(&dump(), decode).map_err(Error::kernel("list IPsec policies"))
    }

    pub(crate) fn put_policy(&mut self, policy: &Policy) -> Result<(), Errno> {
        self.xfrm().map_err(errno_of)?.request(&put(policy))
    }

    pub(crate) fn delete_policy(&mut self, key: &PolicyKey) -> Result<(), Errno> {
        match self.xfrm().map_err(errno_of)?.request(&delete(key)) {
            Err(errno) if is_absent(errno.code) => Ok(()),
            other => other,
        }
    }
}
