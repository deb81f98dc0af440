//! The bytes of the maps, as `bpf/layout.h` has them; the compiler of the programs checks its side
//! (`_Static_assert`), the tests here check ours. Pure.

use std::net::Ipv4Addr;

/// Bytes of `struct config`.
pub const CONFIG: usize = 56;
/// Bytes of `struct tuple`.
pub const TUPLE: usize = 16;
/// Bytes of `struct flow`.
pub const FLOW: usize = 104;

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
    /// VXLAN, if the backend is that.
    pub vxlan: Option<Vxlan>,
    /// The cluster's network and its prefix length.
    pub network: (Ipv4Addr, u8),
}

/// The tunnel device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// Interface index, not 0.
    pub index: u32,
    /// Network identifier, 24 bits.
    pub vni: u32,
    /// Outer address of this node.
    pub local: Ipv4Addr,
    /// UDP port.
    pub port: u16,
}

impl Config {
    /// As the programs read it.
    pub fn bytes(&self) -> [u8; CONFIG] {
        let mut out = [0; CONFIG];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        let mask = u32::MAX.checked_shl(32 - u32::from(self.network.1.min(32))).unwrap_or(0);
        let net = u32::from(self.network.0) & mask;
        put(&self.alive_until.to_ne_bytes());
        put(&self.lifetime.to_ne_bytes());
        put(&self.generation.to_ne_bytes());
        put(&self.uplink.to_ne_bytes());
        put(&self.vxlan.map_or(0, |v| v.index).to_ne_bytes());
        put(&self.vxlan.map_or(0, |v| v.vni).to_ne_bytes());
        put(&self.vxlan.map_or([0; 4], |v| v.local.octets()));
        put(&net.to_be_bytes());
        put(&mask.to_be_bytes());
        put(&self.vxlan.map_or(0, |v| v.port).to_be_bytes());
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
}

impl Counters {
    /// Rows of the map.
    pub const ROWS: u32 = 9;

    /// From the rows of the map, in order.
    pub fn of(rows: [u64; Counters::ROWS as usize]) -> Counters {
        let [fast_out, fast_in, fast_local, slow, learnt, renewed, untracked, too_big, full] = rows;
        Counters { fast_out, fast_in, fast_local, slow, learnt, renewed, untracked, too_big, full }
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
        let vxlan = Vxlan { index: 7, vni: 1, local: Ipv4Addr::new(192, 0, 2, 11), port: 8472 };
        let config = Config {
            alive_until: 0x0102_0304_0506_0708,
            lifetime: 1_000_000_000,
            generation: 3,
            uplink: 2,
            vxlan: Some(vxlan),
            network: (Ipv4Addr::new(10, 244, 9, 9), 16),
        };
        let bytes = config.bytes();
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
            (46, &[0; 10]),
        ] {
            assert_eq!(&bytes[at..at + wanted.len()], wanted, "offset {at}");
        }
        for (length, mask) in [(0, [0; 4]), (1, [128, 0, 0, 0]), (32, [255; 4])] {
            let config = Config { network: (Ipv4Addr::BROADCAST, length), vxlan: None, ..config };
            assert_eq!(
                (&config.bytes()[36..40], &config.bytes()[40..44]),
                (&mask[..], &mask[..]),
                "/{length}"
            );
            assert_eq!(config.bytes()[24..36], [0; 12]);
        }
    }
}
