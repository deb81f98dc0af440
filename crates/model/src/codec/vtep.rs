//! What a vxlan node publishes of its tunnel end: `{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}`
//! (flannel.md 6.2).

use crate::addr::{BadMac, Mac};
use crate::gojson::{Json, SyntaxError, TypeError};

/// A VXLAN tunnel end point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vtep {
    /// VXLAN network identifier; 0 if the data has none, as that of flannel ≤ 0.12.
    pub vni: u32,
    /// Hardware address of the device. Always a unicast address.
    pub mac: Mac,
}

/// Why backend data names no usable tunnel end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VtepError {
    /// Not JSON.
    #[error("read vxlan backend data: {0}")]
    Syntax(#[from] SyntaxError),
    /// A field of another type.
    #[error("read vxlan backend data: {0}")]
    Type(#[from] TypeError),
    /// No `VtepMAC`.
    #[error("read vxlan backend data: it has no VtepMAC")]
    NoMac,
    /// A `VtepMAC` that is no hardware address.
    #[error("read vxlan backend data: VtepMAC {0}")]
    Mac(#[from] BadMac),
    /// A `VtepMAC` no single device can have.
    #[error("read vxlan backend data: VtepMAC {0} is zero or a multicast address")]
    NotUnicast(Mac),
}

/// The data exactly as flannel writes it.
pub fn write(vtep: &Vtep) -> String {
    format!(r#"{{"VNI":{},"VtepMAC":"{}"}}"#, vtep.vni, vtep.mac)
}

/// Reads the data by Go's rules. The VNI is not compared with ours, as in flannel.
///
/// # Errors
/// Not JSON, a field of another type, or no address of six bytes that one device can have.
pub fn read(text: &str) -> Result<Vtep, VtepError> {
    if let Some(vtep) = as_written(text) {
        return Ok(vtep);
    }
    let json: Json = text.parse()?;
    let fields = json.fields("vxlanLeaseAttrs")?;
    let mac: Mac = fields.str("VtepMAC")?.ok_or(VtepError::NoMac)?.parse()?;
    if !mac.is_unicast() {
        return Err(VtepError::NotUnicast(mac));
    }
    Ok(Vtep { vni: fields.int("VNI")?.unwrap_or(0), mac })
}

/// The text as [`write`] has it, which almost all of ten thousand leases have; what differs is for [`read`] to say.
fn as_written(text: &str) -> Option<Vtep> {
    let (vni, mac) = text.strip_prefix("{\"VNI\":")?.strip_suffix("\"}")?.split_once(',')?;
    let mac = mac.strip_prefix("\"VtepMAC\":\"")?;
    let digits = vni.bytes().all(|byte| byte.is_ascii_digit()) && (vni.len() == 1 || !vni.starts_with('0'));
    let mac: Mac = mac.parse().ok().filter(|mac: &Mac| mac.is_unicast())?;
    Some(Vtep { vni: vni.parse().ok().filter(|_| digits)?, mac })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever is changed in a text that is as written: it is read as without the short cut, or left to the long way.
    #[test]
    fn the_short_cut_reads_the_same() {
        let written = br#"{"VNI":14096,"VtepMAC":"c6:d2:32:6f:8f:44"}"#;
        let mut taken = 0;
        for at in 0..written.len() {
            for byte in b"09fF:-+.,\"\\ {}\0" {
                for changed in [vec![*byte], vec![], vec![written[at], *byte], vec![*byte, written[at]]] {
                    let text = [&written[..at], &changed, &written[at + 1..]].concat();
                    let text = String::from_utf8(text).expect("text");
                    let Some(vtep) = as_written(&text) else { continue };
                    // White space before makes it take the long way.
                    assert_eq!(read(&format!(" {text}")).map_err(|e| e.to_string()), Ok(vtep), "{text}");
                    taken += 1;
                }
            }
        }
        assert!(taken > 100, "{taken}");
    }

    #[test]
    fn data_is_read_by_gos_rules_and_written_exactly() {
        for (text, want) in [
            (r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#, Ok(r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#)),
            (r#"{"vtepmac":"C6-D2-32-6F-8F-44"}"#, Ok(r#"{"VNI":0,"VtepMAC":"c6:d2:32:6f:8f:44"}"#)),
            (r#"{"VNI":null,"VtepMAC":"c6d2.326f.8f44"}"#, Ok(r#"{"VNI":0,"VtepMAC":"c6:d2:32:6f:8f:44"}"#)),
            ("null", Err("it has no VtepMAC")),
            (r#"{"VNI":1}"#, Err("it has no VtepMAC")),
            (
                r#"{"VtepMAC":""}"#,
                Err("VtepMAC \"\" is not a hardware address of six bytes, such as 0e:2a:00:00:00:01"),
            ),
            (
                r#"{"VtepMAC":"00:00:00:00:00:00"}"#,
                Err("VtepMAC 00:00:00:00:00:00 is zero or a multicast address"),
            ),
            (
                r#"{"VtepMAC":"01:00:5e:00:00:01"}"#,
                Err("VtepMAC 01:00:5e:00:00:01 is zero or a multicast address"),
            ),
            (
                r#"{"VNI":-1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#,
                Err(
                    "json: cannot unmarshal number -1 into Go struct field vxlanLeaseAttrs.VNI of type uint32",
                ),
            ),
            ("", Err("unexpected end of JSON input (line 1, column 1)")),
        ] {
            let got = read(text).map(|vtep| write(&vtep)).map_err(|e| e.to_string());
            let want = want.map(str::to_owned).map_err(|e| format!("read vxlan backend data: {e}"));
            assert_eq!(got, want, "{text}");
        }
    }
}
