//! The Internet checksum (RFC 1071), as fast as the processor can read.

/// A sum of 16-bit words in network order, folded to 16 bits; odd data counts as if a zero byte followed.
pub fn sum(data: &[u8]) -> u32 {
    // The sum of words in the machine's order is the sum in network order with its bytes exchanged.
    let sum = fold64(wide(data));
    u32::from(if cfg!(target_endian = "little") { sum.swap_bytes() } else { sum })
}

/// The checksum of data whose sum, or sums added up, is this.
pub fn finish(sum: u32) -> u16 {
    !fold(sum)
}

/// A sum with its carries added in.
pub fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum + (sum >> 16)) as u16
}

/// What the pseudo header of TCP and UDP adds (RFC 793, 8200): addresses, protocol and length.
pub fn pseudo(addresses: &[u8], protocol: u8, length: usize) -> u32 {
    let length = length as u32;
    sum(addresses) + u32::from(protocol) + (length & 0xffff) + (length >> 16)
}

fn fold64(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

fn wide(data: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        return crate::sys::wide_avx2(data);
    }
    wide_by_words(data)
}

/// Written so that the compiler makes vector instructions of it, which a check for overflow would prevent; there is
/// none with less than sixteen gigabytes.
#[inline(always)]
pub(crate) fn wide_by_words(data: &[u8]) -> u64 {
    let word = |bytes: &[u8]| u64::from(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    let mut lanes = [0u64; 16];
    let mut blocks = data.chunks_exact(64);
    for block in &mut blocks {
        for (lane, bytes) in lanes.iter_mut().zip(block.chunks_exact(4)) {
            *lane = lane.wrapping_add(word(bytes));
        }
    }
    let mut words = blocks.remainder().chunks_exact(4);
    let mut sum: u64 = lanes.iter().sum();
    for bytes in &mut words {
        sum += word(bytes);
    }
    let mut last = [0; 4];
    let rest = words.remainder();
    last[..rest.len()].copy_from_slice(rest);
    sum + word(&last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::testing::Dice;

    /// As in RFC 1071, word by word.
    fn plain(data: &[u8]) -> u16 {
        let words = data.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0)));
        let mut sum: u64 = words.map(u64::from).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_fast_sum_is_the_plain_one() {
        let mut dice = Dice::new(1);
        let mut data = vec![0; 4096];
        data.iter_mut().for_each(|b| *b = dice.next() as u8);
        for length in (0..200).chain([1447, 1448, 1460, 4095, 4096]) {
            for start in 0..3.min(data.len() - length + 1) {
                let part = &data[start..start + length];
                assert_eq!(fold(sum(part)), plain(part), "{start}+{length}");
            }
        }
        let ones = vec![0xff; 65_535];
        assert_eq!(fold(sum(&ones)), plain(&ones));
        // The header of RFC 1071's successors' favourite example.
        let header =
            [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
        assert_eq!(finish(sum(&header)), 0xb861);
    }
}
