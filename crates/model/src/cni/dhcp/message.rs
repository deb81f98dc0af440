//! DHCP messages (RFC 2131 2, options of RFC 2132).

use std::net::Ipv4Addr;

use crate::Mac;

/// Numbers of options.
pub mod option {
    /// Mask of the subnet.
    pub const SUBNET_MASK: u8 = 1;
    /// Routers, the preferred first.
    pub const ROUTERS: u8 = 3;
    /// Classful static routes.
    pub const STATIC_ROUTES: u8 = 33;
    /// Address asked for.
    pub const REQUESTED: u8 = 50;
    /// Seconds the lease lasts.
    pub const LEASE_TIME: u8 = 51;
    /// Other fields hold options too.
    pub const OVERLOAD: u8 = 52;
    /// Kind of message.
    pub const MESSAGE_TYPE: u8 = 53;
    /// Address of the server.
    pub const SERVER: u8 = 54;
    /// Options asked for.
    pub const PARAMETERS: u8 = 55;
    /// Text of a refusal.
    pub const MESSAGE: u8 = 56;
    /// T1 in seconds.
    pub const RENEWAL: u8 = 58;
    /// T2 in seconds.
    pub const REBINDING: u8 = 59;
    /// Client id.
    pub const CLIENT_ID: u8 = 61;
    /// Classless static routes (RFC 3442).
    pub const CLASSLESS_ROUTES: u8 = 121;
}

/// Kinds of message (RFC 2132 9.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Client to all: who has an address?
    Discover = 1,
    /// Server: I have.
    Offer = 2,
    /// Client: I take it.
    Request = 3,
    /// Server: it is yours.
    Ack = 5,
    /// Server: it is not.
    Nak = 6,
    /// Client: I need it no more.
    Release = 7,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// 1 from a client, 2 from a server.
    pub op: u8,
    /// Chosen by the client, repeated by the server.
    pub xid: u32,
    /// Seconds since the client began.
    pub secs: u16,
    /// The answer has to be broadcast.
    pub broadcast: bool,
    /// Address the client has and answers for.
    pub ciaddr: Ipv4Addr,
    /// Address given.
    pub yiaddr: Ipv4Addr,
    /// Hardware address of the client.
    pub chaddr: Mac,
    /// Options in order.
    pub options: Vec<(u8, Vec<u8>)>,
}

const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Fixed part before the cookie.
const FIXED: usize = 236;
/// Smaller ones are dropped by old relays (RFC 1542 2.1).
const SMALLEST: usize = 300;
const PAD: u8 = 0;
const END: u8 = 255;

impl Message {
    /// The value of an option; several of one code are one value (RFC 3396).
    pub fn option(&self, code: u8) -> Option<&[u8]> {
        self.options.iter().find(|(known, _)| *known == code).map(|(_, value)| value.as_slice())
    }

    /// An option that is one address.
    pub fn address(&self, code: u8) -> Option<Ipv4Addr> {
        let bytes: [u8; 4] = self.option(code)?.try_into().ok()?;
        Some(bytes.into())
    }

    /// An option that is a number of seconds.
    pub fn seconds(&self, code: u8) -> Option<u32> {
        Some(u32::from_be_bytes(self.option(code)?.try_into().ok()?))
    }

    /// What the message says.
    pub fn kind(&self) -> Option<Kind> {
        match self.option(option::MESSAGE_TYPE)? {
            [1] => Some(Kind::Discover),
            [2] => Some(Kind::Offer),
            [3] => Some(Kind::Request),
            [5] => Some(Kind::Ack),
            [6] => Some(Kind::Nak),
            [7] => Some(Kind::Release),
            _ => None,
        }
    }

    /// The bytes after the UDP header.
    pub fn encode(&self) -> Vec<u8> {
        // htype 1 is Ethernet, its addresses have six bytes.
        let mut bytes = vec![self.op, 1, 6, 0];
        bytes.extend(self.xid.to_be_bytes());
        bytes.extend(self.secs.to_be_bytes());
        bytes.extend([if self.broadcast { 0x80 } else { 0 }, 0]);
        bytes.extend(self.ciaddr.octets());
        bytes.extend(self.yiaddr.octets());
        bytes.extend([0; 8]);
        bytes.extend(self.chaddr.0);
        bytes.resize(FIXED, 0);
        bytes.extend(COOKIE);
        for (code, value) in &self.options {
            bytes.push(*code);
            bytes.push(value.len().min(255) as u8);
            bytes.extend(&value[..value.len().min(255)]);
        }
        bytes.push(END);
        bytes.resize(bytes.len().max(SMALLEST), PAD);
        bytes
    }

    /// Reads what came after the UDP header; `None` if it is no message for an Ethernet.
    pub fn decode(bytes: &[u8]) -> Option<Message> {
        if bytes.len() < FIXED + COOKIE.len() || bytes[FIXED..FIXED + 4] != COOKIE || bytes[1..3] != [1, 6] {
            return None;
        }
        let word = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        let mut options = Vec::new();
        read_options(&bytes[FIXED + 4..], &mut options);
        let overload = options.iter().find(|(code, _): &&(u8, Vec<u8>)| *code == option::OVERLOAD);
        let overload = overload.and_then(|(_, value)| value.first().copied()).unwrap_or(0);
        // RFC 2131 4.1: first `file`, then `sname`.
        if overload & 1 != 0 {
            read_options(&bytes[108..236], &mut options);
        }
        if overload & 2 != 0 {
            read_options(&bytes[44..108], &mut options);
        }
        Some(Message {
            op: bytes[0],
            xid: u32::from_be_bytes(word(4)),
            secs: u16::from_be_bytes([bytes[8], bytes[9]]),
            broadcast: bytes[10] & 0x80 != 0,
            ciaddr: word(12).into(),
            yiaddr: word(16).into(),
            chaddr: Mac([bytes[28], bytes[29], bytes[30], bytes[31], bytes[32], bytes[33]]),
            options,
        })
    }
}

/// A malformed end is left out.
fn read_options(mut bytes: &[u8], options: &mut Vec<(u8, Vec<u8>)>) {
    while let Some((code, rest)) = bytes.split_first() {
        match *code {
            PAD => bytes = rest,
            END => return,
            code => {
                let Some((length, rest)) = rest.split_first() else { return };
                let Some(value) = rest.get(..usize::from(*length)) else { return };
                match options.iter_mut().find(|(known, _)| *known == code) {
                    Some((_, known)) => known.extend(value),
                    None => options.push((code, value.to_vec())),
                }
                bytes = &rest[value.len()..];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_read_back() {
        let message = Message {
            op: 1,
            xid: 0x0102_0304,
            secs: 5,
            broadcast: true,
            ciaddr: Ipv4Addr::new(10, 0, 0, 1),
            yiaddr: Ipv4Addr::UNSPECIFIED,
            chaddr: Mac([2, 0, 0, 0, 0, 1]),
            options: vec![(option::MESSAGE_TYPE, vec![1]), (option::SERVER, vec![10, 0, 0, 9])],
        };
        let bytes = message.encode();
        assert_eq!((bytes.len(), &bytes[..8]), (300, &[1, 1, 6, 0, 1, 2, 3, 4][..]));
        assert_eq!(Message::decode(&bytes), Some(message.clone()));
        assert_eq!(
            (message.kind(), message.address(option::SERVER)),
            (Some(Kind::Discover), Some([10, 0, 0, 9].into()))
        );
        // Any cut is harmless.
        for end in 0..bytes.len() {
            if let Some(cut) = Message::decode(&bytes[..end]) {
                assert_eq!(cut.xid, message.xid);
            }
        }
    }

    #[test]
    fn options_may_be_split_and_stand_elsewhere() {
        let mut message = Message::decode(&{
            let mut bytes = vec![0; FIXED];
            bytes[..3].copy_from_slice(&[2, 1, 6]);
            bytes[108..112].copy_from_slice(&[12, 1, b'f', END]);
            bytes[44..48].copy_from_slice(&[12, 1, b's', END]);
            bytes.extend(COOKIE);
            bytes.extend([12, 1, b'o', PAD, option::OVERLOAD, 1, 3, END, 99]);
            bytes
        })
        .unwrap();
        message.options.sort();
        assert_eq!(message.options, [(12, b"ofs".to_vec()), (option::OVERLOAD, vec![3])]);
    }
}
