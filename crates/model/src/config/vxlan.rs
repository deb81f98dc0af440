//! The `Backend` object of type `vxlan` (flannel.md 2.3).

use super::ConfError;
use crate::gojson::Json;

/// Settings of the vxlan backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VxlanConf {
    /// `VNI`, VXLAN network identifier, 0 to 2^24-1; default 1.
    pub vni: u32,
    /// `Port`, UDP destination port; `None` (0 or absent) = the kernel's default 8472.
    pub port: Option<u16>,
    /// `MTU` of the outer packet in bytes; `None` (0 or absent) = the external interface's.
    pub mtu: Option<u32>,
    /// `GBP`: carry the group policy extension.
    pub gbp: bool,
    /// `Learning`: let the device learn hardware addresses.
    pub learning: bool,
    /// `DirectRouting`: plain routes to peers on the same link.
    pub direct_routing: bool,
    /// `CheckSources`, ours alone: take packets from the addresses of known nodes only; default false,
    /// because behind a NAT a node may send from an address it does not announce.
    pub check_sources: bool,
}

impl Default for VxlanConf {
    fn default() -> VxlanConf {
        VxlanConf {
            vni: 1,
            port: None,
            mtu: None,
            gbp: false,
            learning: false,
            direct_routing: false,
            check_sources: false,
        }
    }
}

impl VxlanConf {
    /// The port in use: `port`, or what Linux takes when none is named.
    pub fn udp_port(&self) -> u16 {
        self.port.unwrap_or(8472)
    }

    /// Decodes the `Backend` object.
    ///
    /// # Errors
    /// A key of another type, or a number outside what the kernel takes.
    pub fn decode(backend: &Json) -> Result<VxlanConf, ConfError> {
        let fields = backend.fields("Backend")?;
        let number = |key: &'static str, range: std::ops::RangeInclusive<i64>, default: i64| {
            let value = fields.int::<i64>(key)?.unwrap_or(default);
            if range.contains(&value) || value == default {
                return Ok(u32::try_from(value).unwrap_or(0));
            }
            let problem = format!("{value} must be between {} and {}", range.start(), range.end());
            Err(ConfError::value(key, problem))
        };
        Ok(VxlanConf {
            vni: number("VNI", 0..=0xff_ffff, 1)?,
            port: u16::try_from(number("Port", 0..=65535, 0)?).ok().filter(|port| *port != 0),
            // The least IPv4 lets through (68 bytes, RFC 791) and the 50 bytes of the outer headers.
            mtu: Some(number("MTU", 118..=65535, 0)?).filter(|mtu| *mtu != 0),
            gbp: fields.bool("GBP")?.unwrap_or(false),
            learning: fields.bool("Learning")?.unwrap_or(false),
            direct_routing: fields.bool("DirectRouting")?.unwrap_or(false),
            check_sources: fields.bool("CheckSources")?.unwrap_or(false),
        })
    }
}
