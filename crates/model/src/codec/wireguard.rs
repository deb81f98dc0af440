//! What a wireguard node publishes of a tunnel: `{"PublicKey":"<base64>","Port":51820}` (flannel.md 6.5).

use crate::gojson::{Json, SyntaxError, TypeError};
use crate::wireguard::{BadKey, PublicKey};

/// A tunnel's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Who it is.
    pub key: PublicKey,
    /// UDP port it listens on; `None` (0 or absent, as with old nodes) = the reader's own.
    pub port: Option<u16>,
}

/// Why backend data names no usable tunnel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TunnelError {
    /// Not JSON.
    #[error("read wireguard backend data: {0}")]
    Syntax(#[from] SyntaxError),
    /// A field of another type.
    #[error("read wireguard backend data: {0}")]
    Type(#[from] TypeError),
    /// A `PublicKey` that is none.
    #[error("read wireguard backend data: PublicKey {0}")]
    Key(#[from] BadKey),
}

/// The data exactly as flannel writes it.
pub fn write(tunnel: &Tunnel) -> String {
    format!(r#"{{"PublicKey":"{}","Port":{}}}"#, tunnel.key, tunnel.port.unwrap_or(0))
}

/// Reads the data by Go's rules.
///
/// # Errors
/// Not JSON, a field of another type, or no key.
pub fn read(text: &str) -> Result<Tunnel, TunnelError> {
    let json: Json = text.parse()?;
    let fields = json.fields("wireguardLeaseAttrs")?;
    let key = fields.str("PublicKey")?.unwrap_or_default().parse()?;
    Ok(Tunnel { key, port: fields.int("Port")?.filter(|port| *port != 0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_read_by_gos_rules_and_written_exactly() {
        const KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
        let no_key = "PublicKey is not a WireGuard key of 32 bytes in base64, such as `wg genkey` prints: ";
        for (text, want) in [
            (format!(r#"{{"PublicKey":"{KEY}","Port":51820}}"#), Ok((KEY, 51820))),
            (format!(r#"{{"publickey":"{KEY}","port":65535,"More":1}}"#), Ok((KEY, 65535))),
            (format!(r#"{{"PublicKey":"{KEY}"}}"#), Ok((KEY, 0))),
            (format!(r#"{{"PublicKey":"{KEY}","Port":0}}"#), Ok((KEY, 0))),
            ("null".to_owned(), Err(format!("{no_key}it is empty"))),
            (r#"{"PublicKey":"abc="}"#.to_owned(), Err(format!("{no_key}it has not 44 characters"))),
            (
                format!(r#"{{"PublicKey":"{KEY}","Port":65536}}"#),
                Err("json: cannot unmarshal number 65536 into Go struct field wireguardLeaseAttrs.Port of type \
                     uint16"
                    .to_owned()),
            ),
            (
                r#"{"PublicKey":7}"#.to_owned(),
                Err("json: cannot unmarshal number into Go struct field wireguardLeaseAttrs.PublicKey of type \
                     string"
                    .to_owned()),
            ),
            (String::new(), Err("unexpected end of JSON input (line 1, column 1)".to_owned())),
        ] {
            let got = read(&text).map(|tunnel| write(&tunnel)).map_err(|e| e.to_string());
            let want = want
                .map(|(key, port)| format!(r#"{{"PublicKey":"{key}","Port":{port}}}"#))
                .map_err(|e| format!("read wireguard backend data: {e}"));
            assert_eq!(got, want, "{text}");
        }
    }
}
