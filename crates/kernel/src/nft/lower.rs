//! From meanings to instructions: a rule of the plan as the kernel's expressions.
//!
//! The forms are those of the `nft` program (seen with its netlink debug output), so that it lists our
//! rules as the text a person would have written.

use std::net::IpAddr;

use ipnet::IpNet;
use model::{Family, IfName};
use plan::state::{Match, NftFamily, NftRule, Statement, Verdict};

use super::expr::{self, Expr, REG_1, REG_2};

const LINK_HEADER: u32 = libc::NFT_PAYLOAD_LL_HEADER as u32;
const NETWORK_HEADER: u32 = libc::NFT_PAYLOAD_NETWORK_HEADER as u32;
const TRANSPORT_HEADER: u32 = libc::NFT_PAYLOAD_TRANSPORT_HEADER as u32;
const META_PROTOCOL: u32 = libc::NFT_META_PROTOCOL as u32;
const META_MARK: u32 = libc::NFT_META_MARK as u32;
const META_NFPROTO: u32 = libc::NFT_META_NFPROTO as u32;
const META_L4PROTO: u32 = libc::NFT_META_L4PROTO as u32;
const META_IIFNAME: u32 = libc::NFT_META_IIFNAME as u32;
/// `IPS_DST_NAT`
const STATUS_DST_NAT: u32 = 1 << 5;
const META_OIFNAME: u32 = libc::NFT_META_OIFNAME as u32;

/// `NFPROTO_…` of a table's family.
pub fn family_number(family: NftFamily) -> u8 {
    match family {
        NftFamily::Inet => 1,
        NftFamily::Ip => 2,
        NftFamily::Bridge => 7,
        NftFamily::Ip6 => 10,
    }
}

fn protocol_number(family: Family) -> u8 {
    family_number(if family == Family::V4 { NftFamily::Ip } else { NftFamily::Ip6 })
}

/// The expressions of a rule in a table of the given family.
pub fn lower(family: NftFamily, rule: &NftRule) -> Vec<Expr> {
    let mut out = Lowering { family, network: None, expressions: Vec::new() };
    for m in &rule.matches {
        out.matching(m);
    }
    out.statement(&rule.statement);
    out.expressions
}

/// The networks an address of the packet is compared with: the way back from [`lower`].
pub fn networks(expressions: &[Expr]) -> Vec<IpNet> {
    let mut found = Vec::new();
    for (at, expression) in expressions.iter().enumerate() {
        let Expr::Payload { base: NETWORK_HEADER, offset, .. } = expression else { continue };
        let family = match offset {
            12 | 16 => Family::V4,
            8 | 24 => Family::V6,
            _ => continue,
        };
        let (value, length) = match &expressions[at + 1..] {
            [Expr::Bitwise { mask, .. }, Expr::Compare { value, .. }, ..] => {
                (value, mask.iter().map(|byte| byte.count_ones()).sum::<u32>())
            }
            [Expr::Compare { value, .. }, ..] => (value, value.len() as u32 * 8),
            _ => continue,
        };
        let mut bytes = value.clone();
        bytes.resize(source_address(family).1 as usize, 0);
        let v4 = <[u8; 4]>::try_from(bytes.as_slice()).map(IpAddr::from);
        let address = v4.or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from));
        found.extend(address.ok().and_then(|address| IpNet::new(address, length as u8).ok()));
    }
    found
}

struct Lowering {
    family: NftFamily,
    /// What earlier matches made sure the network protocol is.
    network: Option<Family>,
    expressions: Vec<Expr>,
}

impl Lowering {
    fn push(&mut self, expressions: impl IntoIterator<Item = Expr>) {
        self.expressions.extend(expressions);
    }

    fn matching(&mut self, m: &Match) {
        let equal = |value: &[u8]| Expr::Compare { not: false, value: value.to_vec() };
        match m {
            Match::Mark(value) => self.push([Expr::MetaLoad(META_MARK), equal(&value.to_ne_bytes())]),
            Match::MarkMasked { value, mask } => self.push([
                Expr::MetaLoad(META_MARK),
                masked(&mask.to_ne_bytes()),
                equal(&value.to_ne_bytes()),
            ]),
            Match::Source(net) => self.address(net, false, false),
            Match::SourceNot(net) => self.address(net, false, true),
            Match::Destination(net) => self.address(net, true, false),
            Match::DestinationNot(net) => self.address(net, true, true),
            Match::InputDevice(dev) => self.device(META_IIFNAME, *dev, false),
            Match::InputDeviceNot(dev) => self.device(META_IIFNAME, *dev, true),
            Match::OutputDevice(dev) => self.device(META_OIFNAME, *dev, false),
            Match::OutputDeviceNot(dev) => self.device(META_OIFNAME, *dev, true),
            Match::Protocol(number) => self.push([Expr::MetaLoad(META_L4PROTO), equal(&[*number])]),
            Match::DestinationPort(port) => self.push([
                Expr::Payload { base: TRANSPORT_HEADER, offset: 2, length: 2 },
                equal(&port.to_be_bytes()),
            ]),
            Match::DestinationPorts(first, last) => self.push([
                Expr::Payload { base: TRANSPORT_HEADER, offset: 2, length: 2 },
                Expr::Bound { upper: false, value: first.to_be_bytes().to_vec() },
                Expr::Bound { upper: true, value: last.to_be_bytes().to_vec() },
            ]),
            Match::DestinationTranslated => self.push([
                Expr::CtLoad(expr::CT_STATUS),
                masked(&STATUS_DST_NAT.to_ne_bytes()),
                Expr::Compare { not: true, value: vec![0; 4] },
            ]),
            Match::ConnectionMark { value, mask } => self.push([
                Expr::CtLoad(expr::CT_MARK),
                masked(&mask.to_ne_bytes()),
                equal(&value.to_ne_bytes()),
            ]),
            Match::DestinationLocal => self.push([
                Expr::Fib { result: expr::FIB_ADDRESS_TYPE, flags: expr::FIB_DESTINATION },
                equal(&u32::from(libc::RTN_LOCAL).to_ne_bytes()),
            ]),
            Match::ArpSender(mac, ip) => self.push([
                Expr::MetaLoad(META_PROTOCOL),
                equal(&(libc::ETH_P_ARP as u16).to_be_bytes()),
                Expr::Payload { base: NETWORK_HEADER, offset: 8, length: 6 },
                equal(&mac.0),
                Expr::Payload { base: NETWORK_HEADER, offset: 14, length: 4 },
                equal(&ip.octets()),
            ]),
            Match::IcmpType(number) => {
                self.push([Expr::Payload { base: TRANSPORT_HEADER, offset: 0, length: 1 }, equal(&[*number])])
            }
            // Behind type, code, checksum and flags.
            Match::NdTargetNot(net) => self.within(TRANSPORT_HEADER, 8, net, true),
            Match::SourceNotIn(family, set) => {
                self.network_is(*family);
                let (offset, length) = source_address(*family);
                self.push([
                    Expr::Payload { base: NETWORK_HEADER, offset, length },
                    Expr::Lookup { set: set.clone(), not: true },
                ]);
            }
            // Behind the 8 bytes of UDP and the flags.
            Match::VxlanId(vni) => self.push([
                Expr::Payload { base: TRANSPORT_HEADER, offset: 12, length: 3 },
                equal(&vni.to_be_bytes()[1..]),
            ]),
            // One byte: whether the route has a transformation.
            Match::IpsecMissing => self.push([Expr::Route(expr::ROUTE_IPSEC), equal(&[0])]),
            Match::SourceMac(mac) => {
                self.push([Expr::Payload { base: LINK_HEADER, offset: 6, length: 6 }, equal(&mac.0)])
            }
        }
    }

    fn device(&mut self, key: u32, dev: IfName, not: bool) {
        let mut name = [0; 16];
        name[..dev.as_str().len()].copy_from_slice(dev.as_str().as_bytes());
        self.push([Expr::MetaLoad(key), Expr::Compare { not, value: name.to_vec() }]);
    }

    fn address(&mut self, net: &IpNet, destination: bool, not: bool) {
        let family = Family::of_net(*net);
        self.network_is(family);
        let (source, size) = source_address(family);
        let offset = if destination { source + size } else { source };
        self.within(NETWORK_HEADER, offset, net, not);
    }

    fn within(&mut self, base: u32, offset: u32, net: &IpNet, not: bool) {
        let (network, mask) = (octets(net.network()), octets(net.netmask()));
        let prefix = usize::from(net.prefix_len());
        // Whole bytes are compared as they are, others under a mask.
        let whole = prefix > 0 && prefix.is_multiple_of(8);
        let length = if whole { prefix / 8 } else { network.len() };
        self.push([Expr::Payload { base, offset, length: length as u32 }]);
        if !whole {
            self.push([masked(&mask)]);
        }
        self.push([Expr::Compare { not, value: network[..length].to_vec() }]);
    }

    /// In tables of more than one network protocol an address is meaningless without it.
    fn network_is(&mut self, family: Family) {
        if self.network.replace(family) == Some(family) {
            return;
        }
        let (key, value) = match self.family {
            NftFamily::Inet => (META_NFPROTO, vec![protocol_number(family)]),
            NftFamily::Bridge => {
                let ethertype = if family == Family::V4 { libc::ETH_P_IP } else { libc::ETH_P_IPV6 };
                (META_PROTOCOL, (ethertype as u16).to_be_bytes().to_vec())
            }
            NftFamily::Ip | NftFamily::Ip6 => return,
        };
        self.push([Expr::MetaLoad(key), Expr::Compare { not: false, value }]);
    }

    fn statement(&mut self, statement: &Statement) {
        match statement {
            Statement::Verdict(verdict) | Statement::Counted(verdict) => {
                if matches!(statement, Statement::Counted(_)) {
                    self.push([Expr::Counter]);
                }
                let (code, chain) = match verdict {
                    Verdict::Drop => (libc::NF_DROP, None),
                    Verdict::Accept => (libc::NF_ACCEPT, None),
                    Verdict::Jump(chain) => (libc::NFT_JUMP, Some(chain.clone())),
                    Verdict::Goto(chain) => (libc::NFT_GOTO, Some(chain.clone())),
                    Verdict::Return => (libc::NFT_RETURN, None),
                };
                self.push([Expr::Verdict { code, chain }]);
            }
            Statement::Masquerade { fully_random } => {
                let flags = if *fully_random { expr::NAT_FULLY_RANDOM } else { 0 };
                self.push([Expr::Masquerade(flags)]);
            }
            Statement::Snat { to } => {
                let family = u32::from(protocol_number(Family::of(*to)));
                self.push([Expr::Immediate { register: REG_1, value: octets(*to) }, Expr::Snat { family }]);
            }
            Statement::Dnat { to, port } => {
                let family = u32::from(protocol_number(Family::of(*to)));
                self.push([
                    Expr::Immediate { register: REG_1, value: octets(*to) },
                    Expr::Immediate { register: REG_2, value: port.to_be_bytes().to_vec() },
                    Expr::Dnat { family, port: true },
                ]);
            }
            Statement::OrMark(bits) => self.push([
                Expr::MetaLoad(META_MARK),
                Expr::Bitwise { mask: (!bits).to_ne_bytes().to_vec(), xor: bits.to_ne_bytes().to_vec() },
                Expr::MetaStore(META_MARK),
            ]),
            Statement::OrConnectionMark(bits) => self.push([
                Expr::CtLoad(expr::CT_MARK),
                Expr::Bitwise { mask: (!bits).to_ne_bytes().to_vec(), xor: bits.to_ne_bytes().to_vec() },
                Expr::CtStore(expr::CT_MARK),
            ]),
        }
    }
}

/// Place and size of the source address in the header; the destination's follows (RFC 791 3.1, RFC 8200 3).
fn source_address(family: Family) -> (u32, u32) {
    match family {
        Family::V4 => (12, 4),
        Family::V6 => (8, 16),
    }
}

fn masked(mask: &[u8]) -> Expr {
    Expr::Bitwise { mask: mask.to_vec(), xor: vec![0; mask.len()] }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
