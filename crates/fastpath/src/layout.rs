//! The bytes of the maps, as `bpf/layout.h` has them; the compiler of the programs checks its side
//! (`_Static_assert`), the tests here check ours. Pure.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Bytes of `struct config`.
pub const CONFIG: usize = 128;
/// Bytes of `struct tuple`.
pub const TUPLE: usize = 16;
/// Bytes of `struct tuple6`.
pub const TUPLE6: usize = 40;
/// Bytes of `struct flow`.
pub const FLOW: usize = 144;

/// What the programs are told; see `struct config`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Till when the agent is taken for alive, in ns of the monotonic clock; 0 switches off.
    pub alive_until: u64,
    /// How long a flow is believed after the slow path carried a packet of it, in ns.
    pub lifetime: u64,
    /// Flows of another generation are void.
    pub generation: u32,
    /// Index of the interface that carries the traffic between hosts.
    pub uplink: u32,
    /// The tunnel between nodes, if there is one.
    pub tunnel: Option<Tunnel>,
    /// The cluster's network in IPv4 and its prefix length, if there is one.
    pub network: Option<(Ipv4Addr, u8)>,
    /// The same in IPv6.
    pub network6: Option<(Ipv6Addr, u8)>,
    /// The tunnel that carries it, if there is one.
    pub tunnel6: Option<Tunnel6>,
}

/// The device of VXLAN that carries pods' IPv6 in IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel6 {
    /// Interface index, not 0.
    pub index: u32,
    /// Network identifier (24 bits).
    pub vni: u32,
    /// Outer address of this node.
    pub local: Ipv6Addr,
    /// UDP port.
    pub port: u16,
    /// As with [`Format::Vxlan`].
    pub sums: bool,
}

/// The tunnel device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Interface index of its device, not 0.
    pub index: u32,
    /// How it packs.
    pub format: Format,
    /// Outer address of this node.
    pub local: Ipv4Addr,
    /// UDP port.
    pub port: u16,
}

/// What is between the outer UDP header and the packet of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A header with a network identifier (24 bits), and an Ethernet header.
    Vxlan {
        /// Identifier.
        vni: u32,
        /// The device has checksums inside computed before it sends: the card would get them wrong.
        sums: bool,
    },
    /// Nothing: flannel's udp.
    Udp {
        /// The uplink hands packets on whose checksums nobody has computed: to a peer's socket, which expects that
        /// somebody has.
        bare: bool,
    },
}

impl Config {
    /// As the programs read it; beside it where conntrack keeps its status and the state of TCP, and what programs know each
    /// other by.
    pub fn bytes(&self, conntrack: [u16; 2], key: u64) -> [u8; CONFIG] {
        let mut out = [0; CONFIG];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        // Without a mask nothing of IPv4 is fast.
        let (net, length) = self.network.unwrap_or((Ipv4Addr::UNSPECIFIED, 0));
        let mask = u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0);
        let net = u32::from(net) & mask;
        put(&self.alive_until.to_ne_bytes());
        put(&self.lifetime.to_ne_bytes());
        put(&self.generation.to_ne_bytes());
        put(&self.uplink.to_ne_bytes());
        let (format, vni, bare, sums) = match self.tunnel.map(|tunnel| tunnel.format) {
            None => (0, 0, false, false),
            Some(Format::Vxlan { vni, sums }) => (1, vni, false, sums),
            Some(Format::Udp { bare }) => (2, 0, bare, false),
        };
        put(&self.tunnel.map_or(0, |t| t.index).to_ne_bytes());
        put(&vni.to_ne_bytes());
        put(&self.tunnel.map_or([0; 4], |t| t.local.octets()));
        put(&net.to_be_bytes());
        put(&mask.to_be_bytes());
        put(&self.tunnel.map_or(0, |t| t.port).to_be_bytes());
        put(&[format, u8::from(bare), u8::from(self.network6.is_some()), u8::from(sums)]);
        conntrack.into_iter().for_each(|place| put(&place.to_ne_bytes()));
        put(&[0; 2]);
        let (net6, length) = self.network6.unwrap_or((Ipv6Addr::UNSPECIFIED, 0));
        let mask6 = u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0);
        put(&(u128::from(net6) & mask6).to_be_bytes());
        put(&mask6.to_be_bytes());
        if let Some(tunnel) = self.tunnel6 {
            put(&tunnel.index.to_ne_bytes());
            put(&tunnel.vni.to_ne_bytes());
            put(&tunnel.local.octets());
            put(&tunnel.port.to_be_bytes());
            put(&[u8::from(tunnel.sums)]);
        }
        out[CONFIG - 8..].copy_from_slice(&key.to_ne_bytes());
        out
    }
}

/// What the programs have counted, all processors together, since they were loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets from a pod to the uplink.
    pub fast_out: u64,
    /// Packets from the uplink to a pod.
    pub fast_in: u64,
    /// Packets from pod to pod of this node.
    pub fast_local: u64,
    /// TCP and UDP between pods that went over the slow path for want of a live flow.
    pub slow: u64,
    /// Flows that became fast.
    pub learnt: u64,
    /// Flows that stayed so after the slow path was asked again.
    pub renewed: u64,
    /// Packets whose connection is not established, not assured, or has NAT.
    pub untracked: u64,
    /// Packets longer than an MTU on the way.
    pub too_big: u64,
    /// Flows there was no room for.
    pub full: u64,
    /// Packets whose checksum a peer's socket would have got unfinished, or not at all.
    pub unfinished: u64,
    /// Frames out of which the packet was taken before the kernel makes trains.
    pub early: u64,
}

impl Counters {
    /// Rows of the map.
    pub const ROWS: u32 = 11;

    /// From the rows of the map, in order.
    pub fn of(rows: [u64; Counters::ROWS as usize]) -> Counters {
        let [
            fast_out,
            fast_in,
            fast_local,
            slow,
            learnt,
            renewed,
            untracked,
            too_big,
            full,
            unfinished,
            early,
        ] = rows;
        Counters {
            fast_out,
            fast_in,
            fast_local,
            slow,
            learnt,
            renewed,
            untracked,
            too_big,
            full,
            unfinished,
            early,
        }
    }

    /// All that went fast.
    pub fn fast(&self) -> u64 {
        self.fast_out + self.fast_in + self.fast_local
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_has_the_bytes_of_the_struct() {
        let local = Ipv4Addr::new(192, 0, 2, 11);
        let vxlan = Tunnel { index: 7, format: Format::Vxlan { vni: 1, sums: true }, local, port: 8472 };
        let config = Config {
            alive_until: 0x0102_0304_0506_0708,
            lifetime: 1_000_000_000,
            generation: 3,
            uplink: 2,
            tunnel: Some(vxlan),
            network: Some((Ipv4Addr::new(10, 244, 9, 9), 16)),
            network6: None,
            tunnel6: None,
        };
        let bytes = config.bytes([0x102, 3], 0x0807_0605_0403_0201);
        // Offsets are those of the assertions in bpf/layout.h.
        for (at, wanted) in [
            (0, &0x0102_0304_0506_0708u64.to_ne_bytes()[..]),
            (8, &1_000_000_000u64.to_ne_bytes()),
            (16, &3u32.to_ne_bytes()),
            (20, &2u32.to_ne_bytes()),
            (24, &7u32.to_ne_bytes()),
            (28, &1u32.to_ne_bytes()),
            (32, &[192, 0, 2, 11]),
            (36, &[10, 244, 0, 0]),
            (40, &[255, 255, 0, 0]),
            (44, &[0x21, 0x18]),
            (46, &[1, 0]),
            (48, &[0, 1]),
            (50, &0x102u16.to_ne_bytes()),
            (52, &3u16.to_ne_bytes()),
            (54, &[0; 66]),
            (120, &0x0807_0605_0403_0201u64.to_ne_bytes()),
        ] {
            assert_eq!(&bytes[at..at + wanted.len()], wanted, "offset {at}");
        }
        for (length, mask) in
            [(None, [0; 4]), (Some(0), [0; 4]), (Some(1), [128, 0, 0, 0]), (Some(32), [255; 4])]
        {
            let network = length.map(|length| (Ipv4Addr::BROADCAST, length));
            let config = Config { network, tunnel: None, ..config };
            assert_eq!(
                (&config.bytes([0; 2], 0)[36..40], &config.bytes([0; 2], 0)[40..44]),
                (&mask[..], &mask[..]),
                "{length:?}"
            );
            assert_eq!(config.bytes([0; 2], 0)[24..36], [0; 12]);
            assert_eq!(config.bytes([0; 2], 0)[44..], [0; 84]);
        }
        let network6 = Some(("fd00::1".parse().unwrap_or(Ipv6Addr::LOCALHOST), 56));
        let bytes = Config { network6, ..config }.bytes([0; 2], 0);
        let halves = [[0xfd, 0, 0, 0, 0, 0, 0, 0], [0; 8], [255, 255, 255, 255, 255, 255, 255, 0], [0; 8]];
        assert_eq!((bytes[48], &bytes[56..88], &bytes[88..]), (1, halves.as_flattened(), &[0; 40][..]));
        let tunnel6 = Some(Tunnel6 { index: 8, vni: 5, local: Ipv6Addr::LOCALHOST, port: 8472, sums: true });
        let bytes = Config { network6, tunnel6, ..config }.bytes([0; 2], 0);
        let words = [&8u32.to_ne_bytes()[..], &5u32.to_ne_bytes(), &[0; 15], &[1, 0x21, 0x18, 1], &[0; 13]];
        assert_eq!(bytes[88..], words.concat());
        for (bare, wanted) in [(false, [2, 0]), (true, [2, 1])] {
            let udp = Tunnel { index: 7, format: Format::Udp { bare }, local, port: 8285 };
            let bytes = Config { tunnel: Some(udp), ..config }.bytes([0; 2], 0);
            assert_eq!(
                (&bytes[28..32], &bytes[44..48]),
                (&[0; 4][..], &[&[0x20, 0x5d], &wanted[..]].concat()[..])
            );
        }
    }
}
