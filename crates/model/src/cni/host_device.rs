//! Configuration of the host-device plugin (cni.md 2.14).

use super::common::{device, dns, flag, ipam_type};
use super::members::Members;
use super::result::Dns;
use crate::{IfName, Mac};

/// How the device is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// `device`: its name on the host.
    Name(IfName),
    /// `hwaddr`.
    Mac(Mac),
    /// `kernelpath`, below `/sys/devices/`.
    Path(String),
    /// `pciBusID`, or a PCI address in `runtimeConfig.deviceID`.
    Pci(String),
    /// `runtimeConfig.deviceID` on the auxiliary bus.
    Auxiliary(String),
}

/// What the host-device plugin is told to move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDeviceConf {
    /// Which device.
    pub selector: Selector,
    /// IPv6 duplicate address detection is waited for.
    pub enable_dad: bool,
    /// Type of the address manager; empty for none.
    pub ipam: String,
    /// Replaces the address manager's answer.
    pub dns: Option<Dns>,
}

impl HostDeviceConf {
    /// Reads and checks the whole document.
    ///
    /// # Errors
    /// One sentence, upstream's where it has one.
    pub fn parse(doc: &Members<'_>) -> Result<HostDeviceConf, String> {
        Ok(HostDeviceConf {
            selector: selector(doc)?,
            enable_dad: flag(doc, "enabledad")?,
            ipam: ipam_type(doc)?,
            dns: dns(doc)?,
        })
    }
}

/// The runtime's device goes before the configuration's; among those the order is that of the message.
fn selector(doc: &Members<'_>) -> Result<Selector, String> {
    let runtime = doc.object("runtimeConfig", "RuntimeConfig")?;
    let id = runtime.map(|r| r.string("deviceID")).transpose()?.unwrap_or_default();
    let hwaddr = doc.string("hwaddr")?;
    let path = doc.string("kernelpath")?;
    let pci = doc.string("pciBusID")?;
    let name = device(doc, "device")?;
    if !id.is_empty() {
        one_component("runtimeConfig.deviceID", &id)?;
        return Ok(if is_pci(&id) { Selector::Pci(id) } else { Selector::Auxiliary(id) });
    }
    if let Some(name) = name {
        return Ok(Selector::Name(name));
    }
    if !hwaddr.is_empty() {
        return hwaddr.parse().map(Selector::Mac).map_err(|e| format!("hwaddr: {e}"));
    }
    if !path.is_empty() {
        if !path.starts_with("/sys/devices/") || path.split('/').any(|part| part == "..") {
            return Err(format!("kernel device path {path:?} must be absolute and begin with /sys/devices/"));
        }
        return Ok(Selector::Path(path));
    }
    if pci.is_empty() {
        return Err("specify either \"device\", \"hwaddr\", \"kernelpath\" or \"pciBusID\"".to_owned());
    }
    one_component("pciBusID", &pci)?;
    Ok(Selector::Pci(pci))
}

/// It becomes part of a path.
fn one_component(key: &str, text: &str) -> Result<(), String> {
    let fine = !text.contains('/') && text != "." && text != "..";
    if fine { Ok(()) } else { Err(format!("{key}: {text:?} is no device of a bus")) }
}

/// `0000:00:1f.6`
fn is_pci(text: &str) -> bool {
    let hex = |text: &str, length| text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit());
    let parts: Vec<&str> = text.split([':', '.']).collect();
    matches!(parts[..], [a, b, c, d] if hex(a, 4) && hex(b, 2) && hex(c, 2) && hex(d, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_in_five_ways() {
        let name = || Selector::Name(IfName::fixed("e0"));
        let none = "specify either \"device\", \"hwaddr\", \"kernelpath\" or \"pciBusID\"";
        for (doc, want) in [
            (json!({"device": "e0"}), Ok(name())),
            (json!({"device": "e0", "pciBusID": "0000:00:1f.6"}), Ok(name())),
            (json!({"hwaddr": "0A:00:00:00:00:01"}), Ok(Selector::Mac(Mac([10, 0, 0, 0, 0, 1])))),
            (json!({"kernelpath": "/sys/devices/x/y"}), Ok(Selector::Path("/sys/devices/x/y".to_owned()))),
            (json!({"pciBusID": "0000:00:1f.6"}), Ok(Selector::Pci("0000:00:1f.6".to_owned()))),
            (
                json!({"device": "e0", "runtimeConfig": {"deviceID": "0000:3b:00.1"}}),
                Ok(Selector::Pci("0000:3b:00.1".to_owned())),
            ),
            (
                json!({"runtimeConfig": {"deviceID": "mlx5_core.sf.4"}}),
                Ok(Selector::Auxiliary("mlx5_core.sf.4".to_owned())),
            ),
            (json!({}), Err(none)),
            (json!({"device": "", "hwaddr": ""}), Err(none)),
            (
                json!({"kernelpath": "/etc/x"}),
                Err("kernel device path \"/etc/x\" must be absolute and begin with /sys/devices/"),
            ),
            (
                json!({"kernelpath": "/sys/devices/../x"}),
                Err("kernel device path \"/sys/devices/../x\" must be absolute and begin with /sys/devices/"),
            ),
            (json!({"pciBusID": "../x"}), Err("pciBusID: \"../x\" is no device of a bus")),
            (
                json!({"device": 1}),
                Err("json: cannot unmarshal number into Go struct field NetConf.device of type string"),
            ),
        ] {
            let got = HostDeviceConf::parse(&Members::of(&doc, "NetConf").unwrap()).map(|c| c.selector);
            assert_eq!(got, want.map_err(str::to_owned), "{doc:?}");
        }
    }
}
