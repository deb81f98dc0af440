//! Keys of WireGuard: 32 bytes, written as base64 (RFC 4648 §4) as `wg` and flannel do.

use std::fmt;
use std::str::FromStr;

/// A Curve25519 public key: a node's name among its peers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

/// A private or preshared key. Nothing that prints shows it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret([u8; 32]);

/// Text that is no key. Does not repeat the text, which may be a secret with a typing error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a WireGuard key of 32 bytes in base64, such as `wg genkey` prints: {0}")]
pub struct BadKey(&'static str);

impl Secret {
    /// A key from its bytes.
    pub fn new(bytes: [u8; 32]) -> Secret {
        Secret(bytes)
    }

    /// The bytes, for whoever has to compute with them or hand them to the kernel.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The text, for a file of its own or the control socket of a tunnel.
    pub fn expose_text(&self) -> String {
        encode(&self.0)
    }

    /// The bytes in hexadecimal, as WireGuard's configuration protocol has keys.
    pub fn expose_hex(&self) -> String {
        hex(&self.0)
    }
}

impl PublicKey {
    /// The bytes in hexadecimal, as WireGuard's configuration protocol has keys.
    pub fn hex(&self) -> String {
        hex(&self.0)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl FromStr for PublicKey {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<PublicKey, BadKey> {
        let key = decode(text)?;
        // The product of this point and any private key is zero, so nobody has it (RFC 7748 §6.1).
        if key == [0; 32] {
            return Err(BadKey("it is zero"));
        }
        Ok(PublicKey(key))
    }
}

impl FromStr for Secret {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<Secret, BadKey> {
        decode(text).map(Secret)
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn encode(bytes: &[u8; 32]) -> String {
    let mut text = String::with_capacity(44);
    for three in bytes.chunks(3) {
        let [a, b, c] = [0, 1, 2].map(|at| u32::from(three.get(at).copied().unwrap_or(0)));
        let bits = a << 16 | b << 8 | c;
        for place in 0..=three.len() {
            text.push(char::from(ALPHABET[(bits >> (18 - 6 * place) & 63) as usize]));
        }
    }
    text.push('=');
    text
}

/// As Go's decoder: line ends anywhere do not count, nor do the last two bits.
fn decode(text: &str) -> Result<[u8; 32], BadKey> {
    let text: Vec<u8> = text.bytes().filter(|b| !matches!(b, b'\r' | b'\n')).collect();
    if text.len() != 44 {
        return Err(BadKey(if text.is_empty() { "it is empty" } else { "it has not 44 characters" }));
    }
    let Some((b'=', digits)) = text.split_last() else {
        return Err(BadKey("it does not end in one `=`"));
    };
    let mut bytes = Vec::with_capacity(33);
    for four in digits.chunks(4) {
        let mut bits = 0;
        for place in 0..4 {
            let digit = match four.get(place) {
                Some(byte) => ALPHABET.iter().position(|a| a == byte),
                None => Some(0),
            };
            bits = bits << 6 | digit.ok_or(BadKey("a character in it is none of base64"))?;
        }
        bytes.extend([bits >> 16, bits >> 8, bits].map(|b| b as u8));
    }
    bytes.truncate(32);
    bytes.try_into().map_err(|_| BadKey("it has not 32 bytes"))
}

fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_go_does_and_written_as_wg_does() {
        const KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
        for (text, want) in [
            (KEY, Ok(KEY)),
            ("xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\r\n", Ok(KEY)),
            ("xTIBA5rboUvnH4htodjb\n6e697QjLERt1NAB4mZqp8Dg=", Ok(KEY)),
            // Go ignores the bits that do not count.
            ("xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dj=", Ok(KEY)),
            (
                "//////////////////////////////////////////8=",
                Ok("//////////////////////////////////////////8="),
            ),
            ("", Err("it is empty")),
            ("xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg", Err("it has not 44 characters")),
            ("xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dgh", Err("it does not end in one `=`")),
            ("xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8D-=", Err("a character in it is none of base64")),
            ("xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8D==", Err("a character in it is none of base64")),
            (" xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8D=", Err("a character in it is none of base64")),
            ("ΓTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8D=", Err("a character in it is none of base64")),
            ("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", Err("it is zero")),
        ] {
            let got = text.parse::<PublicKey>().map(|key| key.to_string()).map_err(|e| e.to_string());
            let want = want.map(str::to_owned).map_err(|e| {
                format!("is not a WireGuard key of 32 bytes in base64, such as `wg genkey` prints: {e}")
            });
            assert_eq!(got, want, "{text:?}");
        }
        for seed in 0..=255 {
            let key = PublicKey(std::array::from_fn(|at| (at as u8).wrapping_mul(37) ^ seed));
            assert_eq!(key.to_string().parse(), Ok(key));
        }
        let bytes: [u8; 32] = std::array::from_fn(|at| at as u8);
        assert_eq!(
            PublicKey(bytes).hex(),
            "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
        );
    }

    #[test]
    fn a_secret_is_shown_to_nobody_by_accident() {
        let secret: Secret = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=".parse().expect("valid");
        assert_eq!(format!("{secret:?} {:?}", Some(&secret)), "(secret) Some((secret))");
        let bad =
            "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8D!=".parse::<Secret>().expect_err("a typing error");
        assert!(!bad.to_string().contains("xTIB"));
    }
}
