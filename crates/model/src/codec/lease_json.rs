//! The value of a lease in etcd (flannel.md 3.2).

use std::net::IpAddr;

use crate::addr::parse_ip;
use crate::gojson::{Fields, Json, SyntaxError, TypeError};
use crate::lease::LeaseAttrs;

/// Why a value is not a lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// Not JSON.
    #[error("read lease value: {0}")]
    Syntax(#[from] SyntaxError),
    /// A field of another type.
    #[error("read lease value: {0}")]
    Type(#[from] TypeError),
    /// A field that should hold an address.
    #[error("read lease value: {field} {text} is not an {family} address in quotes")]
    Address {
        /// `PublicIP` or `PublicIPv6`.
        field: &'static str,
        /// What it holds, as JSON.
        text: String,
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
}

/// The value exactly as flannel writes it: field order, `PublicIPv6` always, empty fields left out.
/// Backend data that is not JSON is left out.
pub fn write(attrs: &LeaseAttrs) -> String {
    let v4 = attrs.public_ip.map_or_else(|| "0.0.0.0".to_owned(), |ip| ip.to_string());
    let v6 = attrs.public_ip6.map(|ip| ip.to_string());
    let mut members = vec![("PublicIP", Json::from(v4)), ("PublicIPv6", Json::from(v6))];
    if !attrs.backend_type.is_empty() {
        members.push(("BackendType", attrs.backend_type.as_str().into()));
    }
    for (name, data) in [("BackendData", &attrs.backend_data), ("BackendV6Data", &attrs.backend_v6_data)] {
        if let Some(data) = data.as_deref().and_then(|text| text.parse::<Json>().ok()) {
            members.push((name, data));
        }
    }
    Json::object(members).to_compact()
}

/// Reads a value, also those of flannel ≤ 0.14, which have no `PublicIPv6`. An unspecified address is
/// none; backend data `null` is none, other data is kept as compact JSON.
///
/// # Errors
/// Not JSON, a field of another type, `PublicIP` null, or an address of the other family.
pub fn read(value: &[u8]) -> Result<LeaseAttrs, LeaseError> {
    let json = Json::parse(value)?;
    let fields = json.fields("LeaseAttrs")?;
    let v4 = match fields.raw("PublicIP") {
        None => None,
        Some(json) => match json.as_str().and_then(parse_ip) {
            Some(IpAddr::V4(ip)) => Some(ip),
            _ => return Err(bad_address("PublicIP", json, "IPv4")),
        },
    };
    let v6 = match fields.raw("PublicIPv6") {
        None | Some(Json::Null) => None,
        Some(json) => match json.as_str().and_then(parse_ip) {
            Some(IpAddr::V6(ip)) => Some(ip),
            _ => return Err(bad_address("PublicIPv6", json, "IPv6")),
        },
    };
    Ok(LeaseAttrs {
        public_ip: v4.filter(|ip| !ip.is_unspecified()),
        public_ip6: v6.filter(|ip| !ip.is_unspecified()),
        backend_type: fields.str("BackendType")?.unwrap_or_default().to_owned(),
        backend_data: data(&fields, "BackendData"),
        backend_v6_data: data(&fields, "BackendV6Data"),
    })
}

fn bad_address(field: &'static str, json: &Json, family: &'static str) -> LeaseError {
    LeaseError::Address { field, text: json.to_compact(), family }
}

fn data(fields: &Fields<'_>, name: &str) -> Option<Box<str>> {
    fields.raw(name).filter(|json| !json.is_null()).map(|json| json.to_compact().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const VXLAN: &str = r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;
    const DUAL: &str = r#"{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"BackendV6Data":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:45"}}"#;

    #[test]
    fn values_are_written_as_flannel_does() {
        for value in [
            r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#,
            r#"{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1"}"#,
            r#"{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"host-gw"}"#,
            r#"{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"extension","BackendData":"a\u0026b"}"#,
            VXLAN,
            DUAL,
        ] {
            let attrs = read(value.as_bytes()).expect(value);
            assert_eq!(write(&attrs), value);
        }
        let lost = LeaseAttrs { backend_data: Some("{no json".into()), ..LeaseAttrs::default() };
        assert_eq!(write(&lost), r#"{"PublicIP":"0.0.0.0","PublicIPv6":null}"#);
    }

    #[test]
    fn values_are_read_tolerantly() {
        for (value, want) in [
            (r#"{"PublicIP":"1.2.3.4"}"#, Ok(r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#)),
            (r#" {"publicip":"1.2.3.4","X":[]} "#, Ok(r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#)),
            ("{}", Ok(r#"{"PublicIP":"0.0.0.0","PublicIPv6":null}"#)),
            (
                r#"{"PublicIP":"1.2.3.4","BackendType":null,"BackendData":null}"#,
                Ok(r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#),
            ),
            (r#"{"PublicIP":null}"#, Err("read lease value: PublicIP null is not an IPv4 address in quotes")),
            (r#"{"PublicIP":5}"#, Err("read lease value: PublicIP 5 is not an IPv4 address in quotes")),
            (
                r#"{"PublicIP":"fd00::1"}"#,
                Err(r#"read lease value: PublicIP "fd00::1" is not an IPv4 address in quotes"#),
            ),
            (
                r#"{"PublicIPv6":"1.2.3.4"}"#,
                Err(r#"read lease value: PublicIPv6 "1.2.3.4" is not an IPv6 address in quotes"#),
            ),
            (
                r#"{"BackendType":1}"#,
                Err("read lease value: json: cannot unmarshal number into Go struct field \
                     LeaseAttrs.BackendType of type string"),
            ),
            ("", Err("read lease value: unexpected end of JSON input (line 1, column 1)")),
            ("[]", Err("read lease value: json: cannot unmarshal array into Go value of type LeaseAttrs")),
        ] {
            let got = read(value.as_bytes()).map(|attrs| write(&attrs)).map_err(|e| e.to_string());
            assert_eq!(got.as_deref().map_err(String::as_str), want, "{value}");
        }
    }
}
