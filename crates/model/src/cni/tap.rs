//! Configuration of the tap plugin (cni.md 2.17).

use super::common::{device, dns, flag, ipam_type, mac, mtu, number};
use super::members::Members;
use super::result::Dns;
use crate::{IfName, Mac};

/// What the tap plugin is told to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapConf {
    /// Several queues.
    pub multi_queue: bool,
    /// MTU in bytes; `None` is the kernel's default.
    pub mtu: Option<u32>,
    /// Hardware address.
    pub mac: Option<Mac>,
    /// User id that may open the device.
    pub owner: Option<u32>,
    /// Group id that may open it.
    pub group: Option<u32>,
    /// SELinux context the device gets; empty for that of the caller.
    pub selinux_context: String,
    /// A bridge in the pod it joins.
    pub bridge: Option<IfName>,
    /// Type of the address manager; empty for none.
    pub ipam: String,
    /// Replaces the address manager's answer.
    pub dns: Option<Dns>,
}

impl TapConf {
    /// Reads and checks the whole document.
    ///
    /// # Errors
    /// One sentence that names the member.
    pub fn parse(doc: &Members<'_>, cni_args: &str) -> Result<TapConf, String> {
        Ok(TapConf {
            multi_queue: flag(doc, "multiQueue")?,
            mtu: mtu(doc)?,
            mac: mac(doc, cni_args)?,
            owner: number(doc, "owner")?,
            group: number(doc, "group")?,
            selinux_context: doc.string("selinuxContext")?,
            bridge: device(doc, "bridge")?,
            ipam: ipam_type(doc)?,
            dns: dns(doc)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_named() {
        for (doc, want) in [
            (json!({"owner": -1}), "owner: -1 is out of range"),
            (json!({"group": "x"}), "cannot unmarshal string into Go struct field NetConf.group of type int"),
            (json!({"multiQueue": 1}), "NetConf.multiQueue of type bool"),
            (json!({"bridge": "/"}), "bridge: "),
        ] {
            let got = TapConf::parse(&Members::of(&doc, "NetConf").unwrap(), "").unwrap_err();
            assert!(got.contains(want), "{got}");
        }
    }
}
