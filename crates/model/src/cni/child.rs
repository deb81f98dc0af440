//! Configurations of macvlan, ipvlan and vlan: one interface on top of another (cni.md 2.8, 2.12, 2.13).

use super::common::{device, dns, flag, ipam_type, mac, number};
use super::members::Members;
use super::result::Dns;
use crate::{IfName, Mac};

/// Modes of macvlan and their numbers in the kernel.
pub const MACVLAN_MODES: &[(&str, u32)] = &[("bridge", 4), ("private", 1), ("vepa", 2), ("passthru", 8)];
/// Modes of ipvlan.
pub const IPVLAN_MODES: &[(&str, u16)] = &[("l2", 0), ("l3", 1), ("l3s", 2)];

/// What kind of interface is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildKind {
    /// macvlan, with the kernel's number of the mode and the length of the broadcast queue in packets.
    Macvlan {
        /// `MACVLAN_MODE_…`
        mode: u32,
        /// Packets; the kernel's default if absent.
        broadcast_queue: Option<u32>,
    },
    /// ipvlan, with the kernel's number of the mode.
    Ipvlan {
        /// `IPVLAN_MODE_…`
        mode: u16,
    },
    /// 802.1Q.
    Vlan {
        /// VLAN id.
        id: u16,
    },
}

/// What the three plugins are told to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildConf {
    /// The interface below; `None` is that of the first default route.
    pub master: Option<IfName>,
    /// Kind and mode.
    pub kind: ChildKind,
    /// MTU in bytes; `None` is that of the interface below. May be out of its range, see [`ChildConf::mtu`].
    pub wanted_mtu: Option<i64>,
    /// Hardware address; macvlan only.
    pub mac: Option<Mac>,
    /// The interface below is in the pod.
    pub link_in_container: bool,
    /// IPv6 duplicate address detection is waited for.
    pub enable_dad: bool,
    /// Type of the address manager; empty for none.
    pub ipam: String,
    /// Replaces the address manager's answer.
    pub dns: Option<Dns>,
}

impl ChildConf {
    /// Reads a macvlan document.
    ///
    /// # Errors
    /// One sentence, upstream's where it has one.
    pub fn macvlan(doc: &Members<'_>, cni_args: &str) -> Result<ChildConf, String> {
        let mode = mode(doc, MACVLAN_MODES, "macvlan")?;
        let kind =
            ChildKind::Macvlan { mode, broadcast_queue: number(doc, "bcqueuelen")?.filter(|n| *n != 0) };
        Ok(ChildConf { mac: mac(doc, cni_args)?, ..ChildConf::parse(doc, kind)? })
    }

    /// Reads an ipvlan document.
    ///
    /// # Errors
    /// One sentence, upstream's where it has one.
    pub fn ipvlan(doc: &Members<'_>) -> Result<ChildConf, String> {
        ChildConf::parse(doc, ChildKind::Ipvlan { mode: mode(doc, IPVLAN_MODES, "ipvlan")? })
    }

    /// Reads a vlan document.
    ///
    /// # Errors
    /// One sentence, upstream's where it has one.
    pub fn vlan(doc: &Members<'_>) -> Result<ChildConf, String> {
        let id = doc.integer("vlanId")?.unwrap_or(0);
        let bad = || format!("invalid VLAN ID {id} (must be between 0 and 4095 inclusive)");
        let fits = u16::try_from(id).ok().filter(|id| *id < 4095).ok_or_else(bad);
        let conf = ChildConf::parse(doc, ChildKind::Vlan { id: *fits.as_ref().unwrap_or(&0) })?;
        if conf.master.is_none() {
            let msg =
                "\"master\" field is required. It specifies the host interface name to create the VLAN for";
            return Err(msg.to_owned());
        }
        fits.map(|_| conf)
    }

    fn parse(doc: &Members<'_>, kind: ChildKind) -> Result<ChildConf, String> {
        Ok(ChildConf {
            master: device(doc, "master")?,
            kind,
            wanted_mtu: doc.integer("mtu")?.filter(|mtu| *mtu != 0),
            mac: None,
            link_in_container: flag(doc, "linkInContainer")?,
            enable_dad: flag(doc, "enabledad")?,
            ipam: ipam_type(doc)?,
            dns: dns(doc)?,
        })
    }

    /// The MTU to set, given that of the interface below.
    ///
    /// # Errors
    /// It is negative or larger than that.
    pub fn mtu(&self, masters: u32) -> Result<Option<u32>, String> {
        let bad = |mtu: i64| format!("invalid MTU {mtu}, must be [0, master MTU({masters})]");
        let fits = |mtu: i64| u32::try_from(mtu).ok().filter(|mtu| *mtu <= masters).ok_or_else(|| bad(mtu));
        self.wanted_mtu.map(fits).transpose()
    }
}

fn mode<T: Copy>(doc: &Members<'_>, modes: &[(&str, T)], what: &str) -> Result<T, String> {
    let name = doc.string("mode")?;
    // The first is the default.
    let found = modes.iter().find(|(known, _)| *known == name || name.is_empty());
    found.map(|(_, number)| *number).ok_or_else(|| format!("unknown {what} mode: {name:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Parse = fn(&Members<'_>) -> Result<ChildConf, String>;
    const MACVLAN: Parse = |doc| ChildConf::macvlan(doc, "");

    #[test]
    fn kinds_and_modes() {
        for (parse, doc, want) in [
            (MACVLAN, json!({}), ChildKind::Macvlan { mode: 4, broadcast_queue: None }),
            (
                MACVLAN,
                json!({"mode": "passthru", "bcqueuelen": 500}),
                ChildKind::Macvlan { mode: 8, broadcast_queue: Some(500) },
            ),
            (MACVLAN, json!({"mode": "private"}), ChildKind::Macvlan { mode: 1, broadcast_queue: None }),
            (MACVLAN, json!({"mode": "vepa"}), ChildKind::Macvlan { mode: 2, broadcast_queue: None }),
            (ChildConf::ipvlan, json!({}), ChildKind::Ipvlan { mode: 0 }),
            (ChildConf::ipvlan, json!({"mode": "l3"}), ChildKind::Ipvlan { mode: 1 }),
            (ChildConf::ipvlan, json!({"mode": "l3s"}), ChildKind::Ipvlan { mode: 2 }),
            (ChildConf::vlan, json!({"master": "e", "vlanId": 4094}), ChildKind::Vlan { id: 4094 }),
            (ChildConf::vlan, json!({"master": "e"}), ChildKind::Vlan { id: 0 }),
        ] {
            let got = parse(&Members::of(&doc, "NetConf").unwrap());
            assert_eq!(got.map(|c| c.kind), Ok(want), "{doc:?}");
        }
    }

    #[test]
    fn faults_are_named() {
        for (parse, doc, want) in [
            (MACVLAN, json!({"mode": "x"}), "unknown macvlan mode: \"x\""),
            (MACVLAN, json!({"bcqueuelen": -1}), "bcqueuelen: -1 is out of range"),
            (
                MACVLAN,
                json!({"mode": 4}),
                "json: cannot unmarshal number into Go struct field NetConf.mode of type string",
            ),
            (ChildConf::ipvlan, json!({"mode": "bridge"}), "unknown ipvlan mode: \"bridge\""),
            (
                ChildConf::vlan,
                json!({"vlanId": 5}),
                "\"master\" field is required. It specifies the host interface name to create the VLAN for",
            ),
            (
                ChildConf::vlan,
                json!({"master": "e", "vlanId": 4095}),
                "invalid VLAN ID 4095 (must be between 0 and 4095 inclusive)",
            ),
            (
                ChildConf::vlan,
                json!({"master": "e", "vlanId": -1}),
                "invalid VLAN ID -1 (must be between 0 and 4095 inclusive)",
            ),
        ] {
            assert_eq!(parse(&Members::of(&doc, "NetConf").unwrap()), Err(want.to_owned()), "{doc:?}");
        }
    }

    #[test]
    fn an_mtu_fits_the_interface_below() {
        for (mtu, want) in [
            (0, Ok(None)),
            (1400, Ok(Some(1400))),
            (1500, Ok(Some(1500))),
            (9000, Err("invalid MTU 9000, must be [0, master MTU(1500)]".to_owned())),
            (-100, Err("invalid MTU -100, must be [0, master MTU(1500)]".to_owned())),
        ] {
            let doc = crate::Json::object([("mtu", mtu.into())]);
            let conf = MACVLAN(&Members::of(&doc, "NetConf").unwrap()).unwrap();
            assert_eq!(conf.mtu(1500), want);
        }
    }
}
