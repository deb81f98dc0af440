//! Members that many plugins have (cni.md 2.1, 2.8 to 2.17).

use super::args::Args;
use super::members::Members;
use super::result::Dns;
use crate::{IfName, Mac};

/// `mtu` in bytes; `None` is the default of the kind of device.
///
/// # Errors
/// It is no number, or out of range.
pub fn mtu(doc: &Members<'_>) -> Result<Option<u32>, String> {
    match doc.integer("mtu")?.unwrap_or(0) {
        0 => Ok(None),
        mtu @ 68..=65535 => Ok(Some(mtu as u32)),
        other => Err(format!("invalid MTU {other} (must be 0 for the default, or between 68 and 65535)")),
    }
}

/// `dns`. It counts as given if any of its own members is present, be it empty.
///
/// # Errors
/// A member of the wrong type.
pub fn dns(doc: &Members<'_>) -> Result<Option<Dns>, String> {
    let Some(dns) = doc.object("dns", "DNS")? else { return Ok(None) };
    let given = ["nameservers", "domain", "search", "options"].iter().any(|key| dns.get(key).is_some());
    Ok(if given { Some(Dns::parse(&dns)?) } else { None })
}

/// `ipam.type`; empty for none.
///
/// # Errors
/// A member of the wrong type.
pub fn ipam_type(doc: &Members<'_>) -> Result<String, String> {
    Ok(doc.object("ipam", "IPAM")?.map(|i| i.string("type")).transpose()?.unwrap_or_default())
}

/// A flag, false when absent.
///
/// # Errors
/// It is no boolean.
pub fn flag(doc: &Members<'_>, key: &str) -> Result<bool, String> {
    doc.boolean(key).map(Option::unwrap_or_default)
}

/// A member that names a device; `None` when absent or empty.
///
/// # Errors
/// It is no text, or the kernel has no such names.
pub fn device(doc: &Members<'_>, key: &str) -> Result<Option<IfName>, String> {
    let name = doc.string(key)?;
    if name.is_empty() { Ok(None) } else { IfName::new(&name).map(Some).map_err(|e| format!("{key}: {e}")) }
}

/// `mac` of the configuration, then `MAC` of `CNI_ARGS`, then `runtimeConfig.mac`: the last that names one
/// wins.
///
/// # Errors
/// One of them is no hardware address, or `CNI_ARGS` holds what is not known.
pub fn mac(doc: &Members<'_>, cni_args: &str) -> Result<Option<Mac>, String> {
    let args = Args::parse(cni_args, &["MAC"])?;
    let runtime = doc.object("runtimeConfig", "RuntimeConfig")?.map(|r| r.string("mac")).transpose()?;
    let sources =
        [doc.string("mac")?, args.get("MAC").unwrap_or_default().to_owned(), runtime.unwrap_or_default()];
    let given = sources.into_iter().rfind(|text| !text.is_empty());
    given.map(|text| text.parse().map_err(|e| format!("mac: {e}"))).transpose()
}

/// A number that has to fit its place; `None` when absent.
///
/// # Errors
/// It is no number, or out of range.
pub fn number<T: TryFrom<i64>>(doc: &Members<'_>, key: &str) -> Result<Option<T>, String> {
    let Some(value) = doc.integer(key)? else { return Ok(None) };
    T::try_from(value).map(Some).map_err(|_| format!("{key}: {value} is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_source_of_a_hardware_address_wins() {
        for (doc, args, want) in [
            (json!({}), "", Ok(None)),
            (json!({"mac": "0a:00:00:00:00:01"}), "", Ok(Some("0a:00:00:00:00:01"))),
            (json!({"mac": "0a:00:00:00:00:01"}), "MAC=0a:00:00:00:00:02", Ok(Some("0a:00:00:00:00:02"))),
            (
                json!({"mac": "0a:00:00:00:00:01", "runtimeConfig": {"mac": "0A:00:00:00:00:03"}}),
                "MAC=0a:00:00:00:00:02",
                Ok(Some("0a:00:00:00:00:03")),
            ),
            (json!({}), "IP=10.0.0.1", Err("ARGS: unknown args [\"IP=10.0.0.1\"]")),
            (json!({}), "IP=10.0.0.1;IgnoreUnknown=1", Ok(None)),
        ] {
            let got = mac(&Members::of(&doc, "NetConf").unwrap(), args);
            let got = got.map(|mac| mac.map(|m| m.to_string()));
            assert_eq!(got, want.map(|w| w.map(str::to_owned)).map_err(str::to_owned), "{doc:?} {args}");
        }
        let bad = json!({"mac": "no"});
        assert!(mac(&Members::of(&bad, "NetConf").unwrap(), "").unwrap_err().starts_with("mac: "));
    }

    #[test]
    fn numbers_and_devices_name_their_key() {
        let doc =
            json!({"a": 70000, "dev": "a name with spaces", "mtu": 67, "f": "true", "ipam": {"type": 5}});
        let doc = Members::of(&doc, "NetConf").unwrap();
        assert_eq!(number::<u16>(&doc, "a"), Err("a: 70000 is out of range".to_owned()));
        assert_eq!(number::<u32>(&doc, "a"), Ok(Some(70000)));
        assert!(device(&doc, "dev").unwrap_err().starts_with("dev: "));
        assert!(mtu(&doc).unwrap_err().starts_with("invalid MTU 67"));
        assert!(flag(&doc, "f").unwrap_err().contains("NetConf.f of type bool"));
        assert!(ipam_type(&doc).unwrap_err().contains("ipam.type of type string"));
    }
}
