//! Changes an input a little, by chance. No I/O.

use sim::Random;

/// Numbers at which decoders stumble.
const EDGES: [u8; 10] = [0, 1, 2, 4, 16, 31, 127, 128, 254, 255];

/// Words of our formats.
const WORDS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\u0000",
    "null",
    "true",
    "-1",
    "1e999",
    "9223372036854775808",
    "0.0.0.0/0",
    "::/0",
    "10.244.1.0/24",
    "255.255.255.255",
    "fd00::/48",
    "::ffff:10.0.0.1",
    "\n",
    "=",
    "&",
    "/",
    "-",
    "\u{0}",
    "é",
    "Network",
    "Backend",
    "Type",
    "vxlan",
    "PublicIP",
    "BackendData",
    "VtepMAC",
    "FLANNEL_SUBNET",
    "cniVersion",
    "ipam",
    "ranges",
];

/// Longest input made.
const LONGEST: usize = 8192;

/// One to eight changes of `input`, with pieces of `other` now and then.
pub fn mutate(random: &mut Random, input: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..=random.below(8) {
        let at = random.below(input.len() + 1);
        let end = (at + 1 + random.below(32)).min(input.len());
        match random.below(11) {
            0 => drop(input.drain(at.min(end)..end)),
            1 => input.truncate(at),
            2 => input.insert(at, random.bits() as u8),
            3 => {
                let piece = input[at.min(end)..end].to_vec();
                splice(input, at, &piece);
            }
            4 => {
                let from = random.below(other.len() + 1);
                let to = (from + random.below(64)).min(other.len());
                splice(input, at, &other[from..to]);
            }
            5 => splice(input, at, random.pick(WORDS).unwrap_or(&"").as_bytes()),
            6 => {
                // A whole number of a binary format, either way round.
                let value = (*random.pick(&EDGES).unwrap_or(&0) as u16).wrapping_sub(random.below(2) as u16);
                let bytes = if random.chance(50) { value.to_le_bytes() } else { value.to_be_bytes() };
                for (n, byte) in bytes.iter().enumerate() {
                    if let Some(place) = input.get_mut(at + n) {
                        *place = *byte;
                    }
                }
            }
            kind => {
                if let Some(place) = input.get_mut(at) {
                    *place = match kind {
                        7 => random.bits() as u8,
                        8 => *place ^ (1 << random.below(8)),
                        9 => place.wrapping_add(random.below(5) as u8).wrapping_sub(2),
                        _ => *random.pick(&EDGES).unwrap_or(&0),
                    };
                }
            }
        }
        input.truncate(LONGEST);
    }
}

fn splice(input: &mut Vec<u8>, at: usize, piece: &[u8]) {
    let at = at.min(input.len());
    drop(input.splice(at..at, piece.iter().copied()));
}
