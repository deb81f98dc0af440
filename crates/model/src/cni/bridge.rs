//! Configuration of the bridge plugin (cni.md 2.1).

use super::args::Args;
use super::common::{dns, ipam_type, mtu};
use super::members::Members;
use super::result::Dns;
use crate::{IfName, Mac};

/// What the bridge plugin is told to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeConf {
    /// The bridge.
    pub bridge: IfName,
    /// Put the gateway address on the bridge.
    pub is_gateway: bool,
    /// Add default routes in the pod; implies `is_gateway`.
    pub is_default_gateway: bool,
    /// Replace another address on the bridge.
    pub force_address: bool,
    /// Masquerade what leaves the pod's network.
    pub ip_masq: bool,
    /// Named backend of the masquerading; empty for ours to choose.
    pub ip_masq_backend: String,
    /// MTU in bytes; `None` is the kernel's default.
    pub mtu: Option<u32>,
    /// Hairpin mode of the port.
    pub hairpin: bool,
    /// Promiscuous bridge.
    pub promiscuous: bool,
    /// VLAN of the port, 0 for none.
    pub vlan: u16,
    /// Tagged VLANs of the port, each an inclusive range.
    pub trunk: Vec<(u16, u16)>,
    /// Keep VLAN 1 on the port.
    pub preserve_default_vlan: bool,
    /// Drop frames with another source address than the pod's.
    pub mac_spoof_check: bool,
    /// Drop what does not come from the pod's addresses; ours (decision 0194).
    pub ip_spoof_check: bool,
    /// IPv6 duplicate address detection in the pod.
    pub enable_dad: bool,
    /// Leave the pod's interface down.
    pub disable_container_interface: bool,
    /// Isolated bridge port.
    pub port_isolation: bool,
    /// Replaces the address manager's answer.
    pub dns: Option<Dns>,
    /// Type of the address manager; empty for none (layer 2).
    pub ipam: String,
    /// Address of the pod's interface.
    pub mac: Option<Mac>,
}

impl BridgeConf {
    /// Reads and checks the whole document.
    ///
    /// # Errors
    /// One sentence, upstream's where it has one.
    pub fn parse(doc: &Members<'_>, cni_args: &str) -> Result<BridgeConf, String> {
        let flag = |key: &str| doc.boolean(key).map(Option::unwrap_or_default);
        let name = Some(doc.string("bridge")?).filter(|n| !n.is_empty()).unwrap_or_else(|| "cni0".to_owned());
        let is_default_gateway = flag("isDefaultGateway")?;
        let conf = BridgeConf {
            bridge: IfName::new(&name).map_err(|e| format!("bridge: {e}"))?,
            is_gateway: flag("isGateway")? || is_default_gateway,
            is_default_gateway,
            force_address: flag("forceAddress")?,
            ip_masq: flag("ipMasq")?,
            ip_masq_backend: doc.string("ipMasqBackend")?,
            mtu: mtu(doc)?,
            hairpin: flag("hairpinMode")?,
            promiscuous: flag("promiscMode")?,
            vlan: vlan(doc)?,
            trunk: trunk(doc)?,
            preserve_default_vlan: flag("preserveDefaultVlan")?,
            mac_spoof_check: flag("macspoofchk")?,
            ip_spoof_check: flag("ipspoofchk")?,
            enable_dad: flag("enabledad")?,
            disable_container_interface: flag("disableContainerInterface")?,
            port_isolation: flag("portIsolation")?,
            dns: dns(doc)?,
            ipam: ipam_type(doc)?,
            mac: mac(doc, cni_args)?,
        };
        conf.check()?;
        Ok(conf)
    }

    fn check(&self) -> Result<(), String> {
        if self.hairpin && self.promiscuous {
            return Err("cannot set hairpin mode and promiscuous mode at the same time".to_owned());
        }
        if self.disable_container_interface && !self.ipam.is_empty() {
            return Err("cannot use IPAM when DisableContainerInterface flag is set".to_owned());
        }
        if self.ip_spoof_check && self.ipam.is_empty() {
            return Err(
                "ipspoofchk needs ipam: without addresses there is nothing to compare with".to_owned()
            );
        }
        Ok(())
    }

    /// Whether the bridge has to filter VLANs.
    pub fn filters_vlans(&self) -> bool {
        self.vlan != 0 || !self.trunk.is_empty()
    }
}

fn vlan(doc: &Members<'_>) -> Result<u16, String> {
    let id = doc.integer("vlan")?.unwrap_or(0);
    let bad = || format!("invalid VLAN ID {id} (must be between 0 and 4094)");
    u16::try_from(id).ok().filter(|id| *id <= 4094).ok_or_else(bad)
}

fn trunk(doc: &Members<'_>) -> Result<Vec<(u16, u16)>, String> {
    let mut ranges = Vec::new();
    for item in doc.objects("vlanTrunk", "VlanTrunk")? {
        let id = |key: &str| -> Result<Option<u16>, String> {
            let what = if key == "id" { "id" } else { key };
            let checked = |id: i64| u16::try_from(id).ok().filter(|id| (1..=4094).contains(id));
            let bad = || format!("incorrect trunk {what} parameter");
            item.integer(key)?.map(|id| checked(id).ok_or_else(bad)).transpose()
        };
        match (id("minID")?, id("maxID")?) {
            (Some(min), Some(max)) if min > max => {
                return Err("minID is greater than maxID in trunk parameter".to_owned());
            }
            (Some(min), Some(max)) => ranges.push((min, max)),
            (None, None) => {}
            (min, _) => {
                let missing = if min.is_some() { "maxID" } else { "minID" };
                return Err(format!(
                    "minID and maxID should be configured simultaneously, {missing} is missing"
                ));
            }
        }
        ranges.extend(id("id")?.map(|id| (id, id)));
    }
    Ok(ranges)
}

/// `CNI_ARGS`, then `args.cni`, then `runtimeConfig`: the last that names one wins.
fn mac(doc: &Members<'_>, cni_args: &str) -> Result<Option<Mac>, String> {
    let mut text = Args::parse(cni_args, &["MAC"])?.get("MAC").unwrap_or_default().to_owned();
    let cni = doc.object("args", "Args")?.map(|a| a.object("cni", "CNIArgs")).transpose()?.flatten();
    let runtime = doc.object("runtimeConfig", "RuntimeConfig")?;
    for source in [cni, runtime].into_iter().flatten() {
        let given = source.string("mac")?;
        if !given.is_empty() {
            text = given;
        }
    }
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(|e| format!("mac: {e}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_read() {
        let doc = json!({
            "isdefaultgateway": true, "HAIRPINMODE": true, "mtu": 1450, "ipam": {"type": "host-local"},
            "dns": {"search": []}, "args": {"cni": {"mac": "0a:00:00:00:00:01"}},
            "runtimeConfig": {"mac": "0a:00:00:00:00:02"}, "vlan": 5,
            "vlanTrunk": [{"id": 7}, {"minID": 10, "maxID": 12, "id": 20}]
        });
        let conf =
            BridgeConf::parse(&Members::of(&doc, "NetConf").unwrap(), "MAC=0a:00:00:00:00:03").unwrap();
        assert!(conf.is_gateway && conf.is_default_gateway && conf.hairpin && !conf.ip_masq);
        assert_eq!((conf.bridge.as_str(), conf.mtu, conf.vlan), ("cni0", Some(1450), 5));
        assert_eq!(conf.trunk, [(7, 7), (10, 12), (20, 20)]);
        assert_eq!(conf.dns, Some(Dns::default()));
        assert_eq!(conf.mac.map(|m| m.to_string()).as_deref(), Some("0a:00:00:00:00:02"));
    }

    #[test]
    fn faults_are_named() {
        for (doc, want) in [
            (json!({"vlan": 4095}), "invalid VLAN ID 4095 (must be between 0 and 4094)"),
            (json!({"vlanTrunk": [{"id": 0}]}), "incorrect trunk id parameter"),
            (json!({"vlanTrunk": [{"minID": 9999, "maxID": 1}]}), "incorrect trunk minID parameter"),
            (json!({"vlanTrunk": [{"minID": 1, "maxID": 9999}]}), "incorrect trunk maxID parameter"),
            (
                json!({"vlanTrunk": [{"minID": 9, "maxID": 1}]}),
                "minID is greater than maxID in trunk parameter",
            ),
            (
                json!({"vlanTrunk": [{"minID": 9}]}),
                "minID and maxID should be configured simultaneously, maxID is missing",
            ),
            (
                json!({"vlanTrunk": [{"maxID": 9}]}),
                "minID and maxID should be configured simultaneously, minID is missing",
            ),
            (
                json!({"hairpinMode": true, "promiscMode": true}),
                "cannot set hairpin mode and promiscuous mode at the same time",
            ),
            (
                json!({"disableContainerInterface": true, "ipam": {"type": "static"}}),
                "cannot use IPAM when DisableContainerInterface flag is set",
            ),
            (
                json!({"ipspoofchk": true}),
                "ipspoofchk needs ipam: without addresses there is nothing to compare with",
            ),
            (
                json!({"mtu": "1450"}),
                "json: cannot unmarshal string into Go struct field NetConf.mtu of type int",
            ),
        ] {
            let got = BridgeConf::parse(&Members::of(&doc, "NetConf").unwrap(), "");
            assert_eq!(got, Err(want.to_owned()), "{doc:?}");
        }
    }
}
