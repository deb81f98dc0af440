//! Bytes of a frame → what a person wants to see of it. Pure.
//!
//! Takes Ethernet with IPv4 or IPv6, looks through VXLAN (RFC 7348), and ends at ICMP echo. Anything
//! else decodes as far as it goes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Bytes of a UDP header.
pub const UDP: usize = 8;
/// Bytes of a VXLAN header.
pub const VXLAN: usize = 8;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Length on the device in bytes, Ethernet header included.
    pub bytes: usize,
    /// Source hardware address.
    pub mac_source: String,
    /// Destination hardware address.
    pub mac_destination: String,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// What the IP packet carries.
    pub content: Content,
}

/// What an IP packet carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Content {
    /// An ICMP or ICMPv6 echo.
    Echo {
        /// A request, not an answer.
        request: bool,
        /// Its sequence number.
        sequence: u16,
    },
    /// A frame in VXLAN in UDP.
    Vxlan {
        /// UDP source port, the kernel's hash of the inner flow.
        source_port: u16,
        /// UDP destination port.
        port: u16,
        /// Network identifier.
        vni: u32,
        /// The frame inside.
        inner: Box<Frame>,
    },
    /// Something else, by IP protocol number.
    Other {
        /// IP protocol or next header.
        protocol: u8,
    },
}

impl Frame {
    /// Bytes of this frame's IP header.
    pub fn ip_header(&self) -> usize {
        if self.source.is_ipv4() { 20 } else { 40 }
    }

    /// The frame a tunnel carries, or the frame itself.
    pub fn innermost(&self) -> &Frame {
        match &self.content {
            Content::Vxlan { inner, .. } => inner.innermost(),
            _ => self,
        }
    }

    /// Reads a frame. `vxlan_port` is the UDP port that means VXLAN; `None` is what is not IP.
    pub fn decode(bytes: &[u8], vxlan_port: u16) -> Option<Frame> {
        let ethernet = bytes.get(..ETHERNET)?;
        let packet = &bytes[ETHERNET..];
        let (source, destination, ttl, protocol, content): (IpAddr, IpAddr, u8, u8, &[u8]) =
            match u16::from_be_bytes([ethernet[12], ethernet[13]]) {
                0x0800 => {
                    let header = packet.get(..20)?;
                    let length = usize::from(header[0] & 15) * 4;
                    (
                        Ipv4Addr::from(<[u8; 4]>::try_from(&header[12..16]).ok()?).into(),
                        Ipv4Addr::from(<[u8; 4]>::try_from(&header[16..20]).ok()?).into(),
                        header[8],
                        header[9],
                        packet.get(length..)?,
                    )
                }
                0x86dd => {
                    let header = packet.get(..40)?;
                    (
                        Ipv6Addr::from(<[u8; 16]>::try_from(&header[8..24]).ok()?).into(),
                        Ipv6Addr::from(<[u8; 16]>::try_from(&header[24..40]).ok()?).into(),
                        header[7],
                        header[6],
                        &packet[40..],
                    )
                }
                _ => return None,
            };
        Some(Frame {
            bytes: bytes.len(),
            mac_source: mac(&ethernet[6..12]),
            mac_destination: mac(&ethernet[..6]),
            source,
            destination,
            ttl,
            content: Content::decode(protocol, content, vxlan_port),
        })
    }
}

impl Content {
    fn decode(protocol: u8, bytes: &[u8], vxlan_port: u16) -> Content {
        Content::echo(protocol, bytes)
            .or_else(|| Content::vxlan(protocol, bytes, vxlan_port))
            .unwrap_or(Content::Other { protocol })
    }

    fn echo(protocol: u8, bytes: &[u8]) -> Option<Content> {
        let request = match (protocol, bytes.first()?) {
            (1, 8) | (58, 128) => true,
            (1, 0) | (58, 129) => false,
            _ => return None,
        };
        let sequence = bytes.get(6..8)?;
        Some(Content::Echo { request, sequence: u16::from_be_bytes([sequence[0], sequence[1]]) })
    }

    fn vxlan(protocol: u8, bytes: &[u8], vxlan_port: u16) -> Option<Content> {
        let header = bytes.get(..UDP + VXLAN)?;
        let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        // The I flag says that the VNI is valid.
        if protocol != 17 || port(2) != vxlan_port || header[UDP] & 0x08 == 0 {
            return None;
        }
        let inner = Frame::decode(&bytes[UDP + VXLAN..], vxlan_port)?;
        Some(Content::Vxlan {
            source_port: port(0),
            port: port(2),
            vni: u32::from_be_bytes([0, header[12], header[13], header[14]]),
            inner: Box::new(inner),
        })
    }
}

fn mac(bytes: &[u8]) -> String {
    let six: [u8; 6] = bytes.try_into().unwrap_or_default();
    model::Mac(six).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    fn line(frame: &Frame) -> String {
        let content = match &frame.content {
            Content::Echo { request, sequence } => {
                format!("echo {} {sequence}", if *request { "request" } else { "reply" })
            }
            Content::Vxlan { source_port, port, vni, inner } => {
                format!("{source_port}>{port} vni {vni} [{}]", line(inner))
            }
            Content::Other { protocol } => format!("protocol {protocol}"),
        };
        format!(
            "{} > {} {} > {} ttl {} {} bytes: {content}",
            frame.mac_source, frame.mac_destination, frame.source, frame.destination, frame.ttl, frame.bytes
        )
    }

    #[test]
    fn frames_decode_through_the_tunnel() {
        let echo4 = "0a0000000002 0a0000000001 0800 45000024 00004000 3f010000 0af40102 0af40202
                     0800 0000 0007 0003 6c6f6465 6e2d7761";
        let echo6 = "0a0000000002 0a0000000001 86dd 60000000 0008 3a 3f
                     fd000010024400010000000000000002 fd000010024400020000000000000002
                     81 00 0000 0007 0009";
        let outer = "0e0000000002 0e0000000001 0800 45000056 00000000 40110000 c000020b c000020c
                     b001 2118 0042 0000 08000000 000001 00";
        for (bytes, want) in [
            (
                echo4.to_owned(),
                "0a:00:00:00:00:01 > 0a:00:00:00:00:02 10.244.1.2 > 10.244.2.2 ttl 63 50 bytes: echo request 3",
            ),
            (
                echo6.to_owned(),
                "0a:00:00:00:00:01 > 0a:00:00:00:00:02 fd00:10:244:1::2 > fd00:10:244:2::2 ttl 63 62 bytes: echo reply 9",
            ),
            (
                format!("{outer}{echo4}"),
                "0e:00:00:00:00:01 > 0e:00:00:00:00:02 192.0.2.11 > 192.0.2.12 ttl 64 100 bytes: 45057>8472 vni 1 [0a:00:00:00:00:01 > 0a:00:00:00:00:02 10.244.1.2 > 10.244.2.2 ttl 63 50 bytes: echo request 3]",
            ),
            // The I flag is off: not VXLAN.
            (
                format!("{}{echo4}", outer.replace("08000000 000001", "00000000 000001")),
                "0e:00:00:00:00:01 > 0e:00:00:00:00:02 192.0.2.11 > 192.0.2.12 ttl 64 100 bytes: protocol 17",
            ),
        ] {
            let bytes = hex(&bytes);
            assert_eq!(line(&Frame::decode(&bytes, 8472).unwrap()), want);
            // Cut anywhere: less is seen, nothing breaks.
            for end in 0..bytes.len() {
                let _ = Frame::decode(&bytes[..end], 8472);
            }
        }
        assert_eq!(Frame::decode(&hex("ffffffffffff 0a0000000001 0806 0001"), 8472), None);
    }
}
