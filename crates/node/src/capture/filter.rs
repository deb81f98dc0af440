//! The program that a packet socket runs on every frame: only those of the pair are copied. Pure.
//!
//! Classic BPF (Documentation/networking/filter.rst). A load behind the end of a frame ends the program with "no".

use std::net::IpAddr;

use lab::walk::Instruction;

/// Who talks to whom; without `from` everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// One end.
    pub from: Option<IpAddr>,
    /// The other.
    pub to: IpAddr,
}

/// UDP ports that mean a tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// A frame in VXLAN (RFC 7348).
    pub vxlan: Vec<u16>,
    /// A bare packet: flannel's backend udp.
    pub udp: Vec<u16>,
}

/// Longest program the kernel takes (`BPF_MAXINSNS`).
pub const MOST: usize = 4096;

/// Bytes of a frame that are copied: all.
const ALL: u32 = 0x40000;
/// `SKF_AD_OFF + SKF_AD_HATYPE`: the `ARPHRD_…` of the device.
const HARDWARE: u32 = 0xffff_f000 + 28;
/// Devices without a link layer: `ARPHRD_NONE`, `ARPHRD_TUNNEL`, `ARPHRD_TUNNEL6`, `ARPHRD_SIT`, `ARPHRD_IPGRE`.
pub const BARE: [u16; 5] = [0xfffe, 768, 769, 776, 778];
const ETHERNET: u32 = 14;
const UDP: u32 = 8;
const VXLAN: u32 = 8;

const WORD: u16 = 0x20;
const HALF: u16 = 0x28;
const BYTE: u16 = 0x30;
const SHIFT: u16 = 0x74;
const JUMP: u16 = 0x05;
const EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

type Code = Vec<Instruction>;

const fn op(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

/// Runs `body` if what `load` loads is `k`, and goes on behind it otherwise.
fn when(load: &[Instruction], k: u32, body: Code) -> Code {
    let mut code = load.to_vec();
    code.push(Instruction { code: EQUAL, jt: 1, jf: 0, k });
    // Conditional jumps are short, this one is not.
    code.push(op(JUMP, body.len() as u32));
    code.extend(body);
    code
}

/// The program for pairs.
pub fn program(pairs: &[Pair], ports: &Ports) -> Code {
    let mut code = Code::new();
    for hardware in BARE {
        let mut bare = packet(0, pairs, ports);
        bare.push(op(RETURN, 0));
        // One copy serves all kinds: each but the last jumps over the tests that follow it.
        if hardware == BARE[BARE.len() - 1] {
            code.extend(when(&[op(WORD, HARDWARE)], u32::from(hardware), bare));
        } else {
            let left = BARE.iter().rev().take_while(|h| **h != hardware).count() as u32;
            code.extend(when(&[op(WORD, HARDWARE)], u32::from(hardware), vec![op(JUMP, 4 * left - 1)]));
        }
    }
    code.extend(packet(ETHERNET, pairs, ports));
    code.push(op(RETURN, 0));
    code
}

fn version(at: u32) -> [Instruction; 2] {
    [op(BYTE, at), op(SHIFT, 4)]
}

/// A packet of the pair, or one that carries one.
fn packet(at: u32, pairs: &[Pair], ports: &Ports) -> Code {
    let mut code = plain(at, pairs);
    for (number, protocol, header) in [(4, at + 9, 20), (6, at + 6, 40)] {
        let inside = at + header;
        let mut carried = Code::new();
        for tunnel in [4, 41] {
            carried.extend(when(&[op(BYTE, protocol)], tunnel, plain(inside, pairs)));
        }
        let mut datagram = Code::new();
        for port in &ports.vxlan {
            let inner = plain(inside + UDP + VXLAN + ETHERNET, pairs);
            datagram.extend(when(&[op(HALF, inside + 2)], u32::from(*port), inner));
        }
        for port in &ports.udp {
            datagram.extend(when(&[op(HALF, inside + 2)], u32::from(*port), plain(inside + UDP, pairs)));
        }
        carried.extend(when(&[op(BYTE, protocol)], 17, datagram));
        code.extend(when(&version(at), number, carried));
    }
    code
}

/// A packet of the pair itself.
fn plain(at: u32, pairs: &[Pair]) -> Code {
    let mut code = Code::new();
    for (number, source, bytes, v6) in [(4, at + 12, 4, false), (6, at + 8, 16, true)] {
        let mut body = Code::new();
        for pair in pairs.iter().filter(|pair| pair.to.is_ipv6() == v6) {
            for (from, to) in [(pair.from, Some(pair.to)), (Some(pair.to), pair.from)] {
                let accept = address(source + bytes, to, vec![op(RETURN, ALL)]);
                body.extend(address(source, from, accept));
            }
        }
        if !body.is_empty() {
            code.extend(when(&version(at), number, body));
        }
    }
    code
}

/// Runs `body` if the address at this place is this one.
fn address(at: u32, address: Option<IpAddr>, body: Code) -> Code {
    let bytes = match address {
        None => return body,
        Some(IpAddr::V4(address)) => address.octets().to_vec(),
        Some(IpAddr::V6(address)) => address.octets().to_vec(),
    };
    let words = bytes.chunks_exact(4).map(|w| u32::from_be_bytes([w[0], w[1], w[2], w[3]]));
    let places: Vec<(u32, u32)> = (at..).step_by(4).zip(words).collect();
    places.into_iter().rev().fold(body, |body, (at, word)| when(&[op(WORD, at)], word, body))
}
