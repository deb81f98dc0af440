//! The `Backend` object of type `wireguard` (flannel.md 2.3).

use super::ConfError;
use crate::gojson::Json;
use crate::wireguard::Secret;

/// Settings of the wireguard backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireguardConf {
    /// `ListenPort`, UDP port; default 51820.
    pub port: u16,
    /// `ListenPortV6`, UDP port of the second device of [`Mode::Separate`]; default 51821.
    pub port_v6: u16,
    /// `MTU` of the outer packet in bytes; `None` (0 or absent) = the external interface's.
    pub mtu: Option<u32>,
    /// `PSK`, mixed into every handshake.
    pub psk: Option<Secret>,
    /// `PersistentKeepaliveInterval` in seconds; 0 = off.
    pub keepalive_s: u16,
    /// `Mode`
    pub mode: Mode,
}

/// Which tunnels there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One for each family, over that family.
    Separate,
    /// One for both, over the family that fits each peer.
    Auto,
    /// One for both, over IPv4.
    Ipv4,
    /// One for both, over IPv6.
    Ipv6,
}

impl Default for WireguardConf {
    fn default() -> WireguardConf {
        WireguardConf {
            port: 51820,
            port_v6: 51821,
            mtu: None,
            psk: None,
            keepalive_s: 0,
            mode: Mode::Separate,
        }
    }
}

impl WireguardConf {
    /// Decodes the `Backend` object.
    ///
    /// # Errors
    /// A key of another type, a number out of range, a `PSK` that is no key, an unknown `Mode`. The sentence
    /// does not repeat the `PSK`.
    pub fn decode(backend: &Json) -> Result<WireguardConf, ConfError> {
        let base = WireguardConf::default();
        let fields = backend.fields("Backend")?;
        let number = |key: &'static str, least: u16, default: u16| {
            let value = fields.int::<i64>(key)?.unwrap_or(i64::from(default));
            u16::try_from(value).ok().filter(|value| *value >= least).ok_or_else(|| {
                ConfError::value(key, format!("{value} must be between {least} and {}", u16::MAX))
            })
        };
        let psk = fields.str("PSK")?.unwrap_or_default();
        Ok(WireguardConf {
            port: number("ListenPort", 1, base.port)?,
            port_v6: number("ListenPortV6", 1, base.port_v6)?,
            mtu: match number("MTU", 0, 0)? {
                0 => None,
                // The least IPv4 lets through (68 bytes, RFC 791) and the 80 bytes of the outer headers.
                mtu @ 148.. => Some(u32::from(mtu)),
                mtu => return Err(ConfError::value("MTU", format!("{mtu} must be between 148 and 65535"))),
            },
            psk: match psk {
                "" => None,
                text => Some(text.parse().map_err(|e| ConfError::value("PSK", format!("{e}")))?),
            },
            keepalive_s: number("PersistentKeepaliveInterval", 0, 0)?,
            mode: match fields.str("Mode")?.unwrap_or_default() {
                "" | "separate" => Mode::Separate,
                "auto" => Mode::Auto,
                "ipv4" => Mode::Ipv4,
                "ipv6" => Mode::Ipv6,
                other => {
                    let problem = format!("{other:?} must be \"separate\", \"auto\", \"ipv4\" or \"ipv6\"");
                    return Err(ConfError::value("Mode", problem));
                }
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_decoded_and_checked() {
        let base = WireguardConf::default();
        let psk: Secret = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=".parse().expect("valid");
        let int =
            |key| format!("json: cannot unmarshal string into Go struct field Backend.{key} of type int");
        for (text, want) in [
            ("{}", Ok(base.clone())),
            (r#"{"PSK":"","MTU":0,"Mode":"","PersistentKeepaliveInterval":null}"#, Ok(base.clone())),
            (
                r#"{"listenport":5000,"ListenPortV6":5001,"mtu":1500,"PersistentKeepaliveInterval":25,"mode":"auto"}"#,
                Ok(WireguardConf {
                    port: 5000,
                    port_v6: 5001,
                    mtu: Some(1500),
                    keepalive_s: 25,
                    mode: Mode::Auto,
                    ..base.clone()
                }),
            ),
            (
                r#"{"PSK":"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=","Mode":"ipv6"}"#,
                Ok(WireguardConf { psk: Some(psk), mode: Mode::Ipv6, ..base.clone() }),
            ),
            (r#"{"Mode":"ipv4"}"#, Ok(WireguardConf { mode: Mode::Ipv4, ..base.clone() })),
            (r#"{"ListenPort":0}"#, Err("ListenPort 0 must be between 1 and 65535".to_owned())),
            (r#"{"ListenPort":"51820"}"#, Err(int("ListenPort"))),
            (r#"{"ListenPortV6":65536}"#, Err("ListenPortV6 65536 must be between 1 and 65535".to_owned())),
            (r#"{"MTU":100}"#, Err("MTU 100 must be between 148 and 65535".to_owned())),
            (r#"{"MTU":-1}"#, Err("MTU -1 must be between 0 and 65535".to_owned())),
            (r#"{"PersistentKeepaliveInterval":"25s"}"#, Err(int("PersistentKeepaliveInterval"))),
            (
                r#"{"PersistentKeepaliveInterval":70000}"#,
                Err("PersistentKeepaliveInterval 70000 must be between 0 and 65535".to_owned()),
            ),
            (
                r#"{"Mode":"IPv4"}"#,
                Err(r#"Mode "IPv4" must be "separate", "auto", "ipv4" or "ipv6""#.to_owned()),
            ),
            (
                r#"{"PSK":1}"#,
                Err("json: cannot unmarshal number into Go struct field Backend.PSK of type string".to_owned()),
            ),
            (
                r#"{"PSK":"hunter2"}"#,
                Err("PSK is not a WireGuard key of 32 bytes in base64, such as `wg genkey` prints: it has not 44 \
                     characters"
                    .to_owned()),
            ),
        ] {
            let json = Json::parse(text.as_bytes()).expect(text);
            let got = WireguardConf::decode(&json).map_err(|e| e.to_string());
            assert_eq!(got, want.map_err(|e| format!("read network config: {e}")), "{text}");
        }
    }
}
