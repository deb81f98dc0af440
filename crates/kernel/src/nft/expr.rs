//! The kernel's nftables expressions: the instructions a rule is made of (linux/netfilter/nf_tables.h).
//!
//! A typed value for each that Loden writes, encoded to and decoded from attributes. Decoding what was
//! encoded gives an equal value, whatever defaults the kernel adds; that is how a table is recognised.

use crate::netlink::{Attr, Attrs, Message};

/// `NFTA_LIST_ELEM`
const LIST_ELEMENT: u16 = 1;
/// Register for verdicts.
pub const REG_VERDICT: u32 = 0;
/// First and second data register of 16 bytes.
pub const REG_1: u32 = 1;
/// Second data register.
pub const REG_2: u32 = 2;
/// `NFT_FIB_RESULT_ADDRTYPE`
pub const FIB_ADDRESS_TYPE: u32 = 3;
/// `NFT_CMP_LTE`
const CMP_LTE: u32 = 3;
/// `NFT_CMP_GTE`
const CMP_GTE: u32 = 5;
/// `NFT_CT_STATUS`
pub const CT_STATUS: u32 = 2;
/// `NFT_CT_MARK`
pub const CT_MARK: u32 = 3;
/// `NFT_RT_XFRM`
pub const ROUTE_IPSEC: u32 = 4;
/// `NFTA_FIB_F_DADDR`
pub const FIB_DESTINATION: u32 = 2;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`
pub const NAT_FULLY_RANDOM: u32 = 1 << 4;
/// `NF_NAT_RANGE_PROTO_SPECIFIED`
pub const NAT_PORT: u32 = 1 << 1;
/// `NF_NAT_RANGE_MAP_IPS`, which the kernel adds by itself.
const NAT_ADDRESS: u32 = 1;

/// One instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// Packet property into register 1. Key is `NFT_META_…`.
    MetaLoad(u32),
    /// Register 1 into a packet property.
    MetaStore(u32),
    /// Part of the packet into register 1.
    Payload {
        /// `NFT_PAYLOAD_…_HEADER`
        base: u32,
        /// Bytes from the start of the header.
        offset: u32,
        /// Bytes.
        length: u32,
    },
    /// Register 1 becomes (itself AND mask) XOR xor.
    Bitwise {
        /// Bits kept.
        mask: Vec<u8>,
        /// Bits turned over.
        xor: Vec<u8>,
    },
    /// Compare register 1; the rule ends here if it does not hold.
    Compare {
        /// Holds if different, not if equal.
        not: bool,
        /// To what.
        value: Vec<u8>,
    },
    /// Compare register 1 in order; the rule ends here if it does not hold.
    Bound {
        /// Holds up to the value, not from the value on; the value included.
        upper: bool,
        /// The value, most significant byte first.
        value: Vec<u8>,
    },
    /// Property of the connection into register 1. Key is `NFT_CT_…`.
    CtLoad(u32),
    /// Register 1 into a property of the connection.
    CtStore(u32),
    /// A value into a register.
    Immediate {
        /// Register.
        register: u32,
        /// Bytes.
        value: Vec<u8>,
    },
    /// End with a verdict.
    Verdict {
        /// `NF_…` or `NFT_…`
        code: i32,
        /// Chain to go to.
        chain: Option<String>,
    },
    /// Property of an address in the routing tables into register 1.
    Fib {
        /// `NFT_FIB_RESULT_…`
        result: u32,
        /// `NFTA_FIB_F_…`
        flags: u32,
    },
    /// Property of the packet's route into register 1.
    Route(u32),
    /// Source translation to the address of the outgoing device; `NF_NAT_RANGE_…` flags.
    Masquerade(u32),
    /// Source translation to the address in register 1.
    Snat {
        /// `NFPROTO_…`
        family: u32,
    },
    /// Destination translation to the address in register 1 and the port in register 2.
    Dnat {
        /// `NFPROTO_…`
        family: u32,
        /// Whether register 2 holds a port.
        port: bool,
    },
    /// Look register 1 up in a set; the rule ends here if it is not in it.
    Lookup {
        /// Name of the set.
        set: String,
        /// Ends here if it is in the set, not if it is not.
        not: bool,
    },
    /// Packets and bytes are counted; how many does not matter.
    Counter,
    /// Anything we never write.
    Other(String),
}

// Attributes of the expressions, NFTA_…
const NAME: u16 = 1;
const DATA: u16 = 2;
const VALUE: u16 = 1;
const VERDICT: u16 = 2;

impl Expr {
    fn name(&self) -> &str {
        match self {
            Expr::MetaLoad(_) | Expr::MetaStore(_) => "meta",
            Expr::Payload { .. } => "payload",
            Expr::Bitwise { .. } => "bitwise",
            Expr::Compare { .. } | Expr::Bound { .. } => "cmp",
            Expr::CtLoad(_) | Expr::CtStore(_) => "ct",
            Expr::Immediate { .. } | Expr::Verdict { .. } => "immediate",
            Expr::Fib { .. } => "fib",
            Expr::Route(_) => "rt",
            Expr::Masquerade(_) => "masq",
            Expr::Snat { .. } | Expr::Dnat { .. } => "nat",
            Expr::Lookup { .. } => "lookup",
            Expr::Counter => "counter",
            Expr::Other(name) => name,
        }
    }

    /// Appends the expression as an element of a rule's list.
    pub fn encode(&self, m: &mut Message) {
        m.nest(LIST_ELEMENT, |m| {
            m.attr_text(NAME, self.name());
            m.nest(DATA, |m| self.encode_data(m));
        });
    }

    fn encode_data(&self, m: &mut Message) {
        let value = |m: &mut Message, kind, bytes: &[u8]| {
            m.nest(kind, |m| {
                m.attr(VALUE, bytes);
            });
        };
        match self {
            Expr::MetaLoad(key) => {
                m.attr_be32(2, *key).attr_be32(1, REG_1);
            }
            Expr::MetaStore(key) => {
                m.attr_be32(2, *key).attr_be32(3, REG_1);
            }
            Expr::Payload { base, offset, length } => {
                m.attr_be32(1, REG_1).attr_be32(2, *base).attr_be32(3, *offset).attr_be32(4, *length);
            }
            Expr::Bitwise { mask, xor } => {
                m.attr_be32(1, REG_1).attr_be32(2, REG_1).attr_be32(3, mask.len() as u32);
                value(m, 4, mask);
                value(m, 5, xor);
            }
            Expr::Compare { not, value: to } => {
                m.attr_be32(1, REG_1).attr_be32(2, u32::from(*not));
                value(m, 3, to);
            }
            Expr::Bound { upper, value: to } => {
                m.attr_be32(1, REG_1).attr_be32(2, if *upper { CMP_LTE } else { CMP_GTE });
                value(m, 3, to);
            }
            Expr::CtLoad(key) => {
                m.attr_be32(1, REG_1).attr_be32(2, *key);
            }
            Expr::CtStore(key) => {
                m.attr_be32(2, *key).attr_be32(4, REG_1);
            }
            Expr::Immediate { register, value: bytes } => {
                m.attr_be32(1, *register);
                value(m, 2, bytes);
            }
            Expr::Verdict { code, chain } => {
                m.attr_be32(1, REG_VERDICT).nest(2, |m| {
                    m.nest(VERDICT, |m| {
                        m.attr_be32(1, *code as u32);
                        if let Some(chain) = chain {
                            m.attr_text(2, chain);
                        }
                    });
                });
            }
            Expr::Fib { result, flags } => {
                m.attr_be32(1, REG_1).attr_be32(2, *result).attr_be32(3, *flags);
            }
            Expr::Route(key) => {
                m.attr_be32(1, REG_1).attr_be32(2, *key);
            }
            Expr::Masquerade(flags) => {
                if *flags != 0 {
                    m.attr_be32(1, *flags);
                }
            }
            Expr::Snat { family } => {
                // NFT_NAT_SNAT
                m.attr_be32(1, 0).attr_be32(2, *family).attr_be32(3, REG_1);
            }
            Expr::Dnat { family, port } => {
                // NFT_NAT_DNAT
                m.attr_be32(1, 1).attr_be32(2, *family).attr_be32(3, REG_1);
                if *port {
                    m.attr_be32(5, REG_2).attr_be32(7, NAT_PORT);
                }
            }
            Expr::Lookup { set, not } => {
                m.attr_text(1, set).attr_be32(2, REG_1).attr_be32(5, u32::from(*not));
            }
            Expr::Counter | Expr::Other(_) => {}
        }
    }

    /// The expressions of a rule (`NFTA_RULE_EXPRESSIONS`).
    pub fn decode_list(list: Attrs<'_>) -> Vec<Expr> {
        list.filter(|a| a.kind == LIST_ELEMENT)
            .map(|element| {
                let name = element.nested().find(NAME).and_then(|a| a.text()).unwrap_or_default();
                let data = element.nested().find(DATA).map_or(Attrs::new(&[]), |a| a.nested());
                Expr::decode(name, data).unwrap_or_else(|| Expr::Other(name.to_owned()))
            })
            .collect()
    }

    /// Whether an element of a rule counts packets, and so changes by itself.
    pub fn is_counter(element: &Attr<'_>) -> bool {
        element.nested().find(NAME).and_then(|a| a.text()) == Some("counter")
    }

    /// What an element has counted, if it is a counter.
    pub fn counted(element: &Attr<'_>) -> Option<super::Counted> {
        if !Expr::is_counter(element) {
            return None;
        }
        // NFTA_COUNTER_BYTES, NFTA_COUNTER_PACKETS
        let data = element.nested().find(DATA)?.nested();
        Some(super::Counted { bytes: data.find(1)?.be64()?, packets: data.find(2)?.be64()? })
    }

    fn decode(name: &str, data: Attrs<'_>) -> Option<Expr> {
        let number = |kind| data.find(kind).as_ref().and_then(Attr::be32);
        let bytes = |kind: u16| Some(data.find(kind)?.nested().find(VALUE)?.data.to_vec());
        let in_register_1 = |kind| number(kind) == Some(REG_1);
        match name {
            "meta" if in_register_1(1) => Some(Expr::MetaLoad(number(2)?)),
            "meta" if in_register_1(3) => Some(Expr::MetaStore(number(2)?)),
            // With NFTA_PAYLOAD_SREG it writes.
            "payload" if in_register_1(1) && number(5).is_none() => {
                Some(Expr::Payload { base: number(2)?, offset: number(3)?, length: number(4)? })
            }
            // NFTA_BITWISE_OP 0 is mask and xor, the others shift.
            "bitwise" if in_register_1(1) && in_register_1(2) && number(6).unwrap_or(0) == 0 => {
                Some(Expr::Bitwise { mask: bytes(4)?, xor: bytes(5)? })
            }
            "cmp" if in_register_1(1) => {
                let not = match number(2)? {
                    0 => false,
                    1 => true,
                    CMP_LTE => return Some(Expr::Bound { upper: true, value: bytes(3)? }),
                    CMP_GTE => return Some(Expr::Bound { upper: false, value: bytes(3)? }),
                    _ => return None,
                };
                Some(Expr::Compare { not, value: bytes(3)? })
            }
            // With NFTA_CT_DIRECTION it is not one of ours.
            "ct" if in_register_1(1) && data.find(3).is_none() => Some(Expr::CtLoad(number(2)?)),
            "ct" if in_register_1(4) && data.find(3).is_none() => Some(Expr::CtStore(number(2)?)),
            "immediate" if number(1)? == REG_VERDICT => {
                let verdict = data.find(2)?.nested().find(VERDICT)?.nested();
                Some(Expr::Verdict {
                    code: verdict.find(1)?.be32()? as i32,
                    chain: verdict.find(2).and_then(|a| a.text()).map(str::to_owned),
                })
            }
            "immediate" => Some(Expr::Immediate { register: number(1)?, value: bytes(2)? }),
            "fib" if in_register_1(1) => Some(Expr::Fib { result: number(2)?, flags: number(3)? }),
            "rt" if in_register_1(1) => Some(Expr::Route(number(2)?)),
            // With NFTA_LOOKUP_DREG it is a map.
            "lookup" if in_register_1(2) && data.find(3).is_none() => {
                let set = data.find(1)?.text()?.to_owned();
                Some(Expr::Lookup { set, not: number(5).unwrap_or(0) == 1 })
            }
            "counter" => Some(Expr::Counter),
            // With ports from registers it is not one of ours.
            "masq" if number(2).is_none() => Some(Expr::Masquerade(number(1).unwrap_or(0))),
            "nat" if number(1) == Some(0) && in_register_1(3) => Expr::decode_snat(data),
            "nat" if number(1) == Some(1) && in_register_1(3) => Expr::decode_dnat(data),
            _ => None,
        }
    }

    fn decode_snat(data: Attrs<'_>) -> Option<Expr> {
        let number = |kind| data.find(kind).as_ref().and_then(Attr::be32);
        let single = number(4).is_none_or(|r| r == REG_1) && number(5).is_none();
        let known = number(7).unwrap_or(0) & !NAT_ADDRESS == 0;
        (single && known).then_some(Expr::Snat { family: number(2)? })
    }

    fn decode_dnat(data: Attrs<'_>) -> Option<Expr> {
        let number = |kind| data.find(kind).as_ref().and_then(Attr::be32);
        // The kernel repeats the lower end of a range as the upper one.
        let single = number(4).is_none_or(|r| r == REG_1) && number(6).is_none_or(|r| Some(r) == number(5));
        let port = number(5) == Some(REG_2);
        let known = number(7).unwrap_or(0) & !(NAT_PORT | NAT_ADDRESS) == 0;
        (single && known && (port || number(5).is_none())).then_some(Expr::Dnat { family: number(2)?, port })
    }
}
