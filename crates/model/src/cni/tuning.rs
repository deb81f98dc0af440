//! Configuration of the tuning plugin and its file of former values (cni.md 2.6).

use super::args::Args;
use super::members::Members;
use crate::gojson::Json;
use crate::{IfName, Mac};

/// Where former values are kept when the configuration does not say.
pub const DATA_DIR: &str = "/run/cni/tuning";

/// Attributes of a link. What is absent is left alone, and for [`Tuning`] was not asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Hardware address.
    pub mac: Option<Mac>,
    /// Take all frames.
    pub promisc: Option<bool>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Take all multicast frames.
    pub allmulti: Option<bool>,
    /// Transmit queue length in packets.
    pub txqlen: Option<u32>,
}

/// What the tuning plugin is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Keys as written, with their values, sorted by key.
    pub sysctl: Vec<(String, String)>,
    /// Of the pod's interface.
    pub link: Attributes,
    /// Directory of former values.
    pub data_dir: String,
}

impl Tuning {
    /// Reads the whole document. Of equal members the one in `args.cni` wins, for the hardware address
    /// before it `runtimeConfig`, before that `CNI_ARGS`.
    ///
    /// # Errors
    /// One sentence, upstream's where it has one.
    pub fn parse(doc: &Members<'_>, cni_args: &str) -> Result<Tuning, String> {
        let args = doc.object("args", "Args")?.map(|a| a.object("cni", "IPAMArgs")).transpose()?.flatten();
        let runtime = doc.object("runtimeConfig", "RuntimeConfig")?;
        let mut link = Attributes::read(doc, "")?;
        let arg = Args::parse(cni_args, &["MAC"])?.get("MAC").map(mac).transpose()?;
        link.mac = arg.or(link.mac);
        if let Some(given) = runtime.map(|r| r.string("mac")).transpose()?.filter(|m| !m.is_empty()) {
            link.mac = Some(mac(&given)?);
        }
        let mut sysctl = pairs(doc)?;
        if let Some(args) = &args {
            link = Attributes::read(args, "args.cni.")?.or(link);
            for (key, value) in pairs(args)? {
                sysctl.retain(|(known, _)| *known != key);
                sysctl.push((key, value));
            }
        }
        sysctl.sort();
        // DEL takes the usual one for a wrong one; who writes there does not.
        doc.string("dataDir")?;
        Ok(Tuning { sysctl, link, data_dir: data_dir(doc) })
    }
}

/// The directory of former values: all that DEL needs.
pub fn data_dir(doc: &Members<'_>) -> String {
    let dir = doc.string("dataDir").unwrap_or_default();
    if dir.is_empty() { DATA_DIR.to_owned() } else { dir }
}

/// Path of a kernel parameter below `/proc/sys` for a key: dots separate, the first `IFNAME` is the
/// interface, which may itself have dots.
///
/// # Errors
/// It is none of the network's.
pub fn sysctl_path(key: &str, ifname: &str) -> Result<String, String> {
    let slashed = key.replace('.', "/").replacen("IFNAME", ifname, 1);
    let parts: Vec<&str> = slashed.split('/').filter(|part| !part.is_empty()).collect();
    match parts.as_slice() {
        ["net", _, ..] if !parts.iter().any(|p| matches!(*p, "." | "..")) => Ok(parts.join("/")),
        _ => Err(format!("invalid net sysctl key: {slashed:?}")),
    }
}

impl Attributes {
    fn read(m: &Members<'_>, place: &str) -> Result<Attributes, String> {
        let number = |key: &str| -> Result<Option<u32>, String> {
            let Some(value) = m.integer(key)? else { return Ok(None) };
            let bad = |_| format!("invalid {place}{key} {value} (must be between 0 and {})", u32::MAX);
            u32::try_from(value).map(Some).map_err(bad)
        };
        let address = m.string("mac")?;
        Ok(Attributes {
            mac: if address.is_empty() { None } else { Some(mac(&address)?) },
            // Only "on" acts: the member cannot switch off.
            promisc: m.boolean("promisc")?.filter(|on| *on),
            mtu: number("mtu")?.filter(|mtu| *mtu != 0),
            allmulti: m.boolean("allmulti")?,
            txqlen: number("txQLen")?,
        })
    }

    /// These, and of the others what is absent here.
    pub fn or(self, other: Attributes) -> Attributes {
        Attributes {
            mac: self.mac.or(other.mac),
            promisc: self.promisc.or(other.promisc),
            mtu: self.mtu.or(other.mtu),
            allmulti: self.allmulti.or(other.allmulti),
            txqlen: self.txqlen.or(other.txqlen),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Attributes::default()
    }

    /// The file of former values, in upstream's form.
    pub fn to_json(&self) -> Json {
        let mut object = Json::empty();
        if let Some(mac) = self.mac {
            object.set("mac", mac.to_string());
        }
        for (key, value) in [("promisc", self.promisc), ("allmulti", self.allmulti)] {
            if let Some(on) = value {
                object.set(key, on);
            }
        }
        for (key, value) in [("mtu", self.mtu), ("txQLen", self.txqlen)] {
            if let Some(value) = value {
                object.set(key, value);
            }
        }
        object
    }

    /// Reads the file of former values, ours or upstream's.
    ///
    /// # Errors
    /// It is damaged.
    pub fn parse(text: &str) -> Result<Attributes, String> {
        let value: Json = text.parse().map_err(|e: crate::gojson::SyntaxError| e.to_string())?;
        let m = Members::of(&value, "configToRestore")?;
        let mut read = Attributes::read(&m, "")?;
        read.promisc = m.boolean("promisc")?;
        Ok(read)
    }
}

/// Name of the file of former values of an attachment.
pub fn backup_name(container_id: &str, ifname: IfName) -> String {
    format!("{container_id}_{ifname}.json")
}

fn mac(text: &str) -> Result<Mac, String> {
    text.parse().map_err(|e| format!("invalid args {text} for MAC addr: {e}"))
}

fn pairs(m: &Members<'_>) -> Result<Vec<(String, String)>, String> {
    let Some(value) = m.get("sysctl") else { return Ok(Vec::new()) };
    let members = value.members().ok_or_else(|| wrong("sysctl", value.kind()))?;
    let mut found: Vec<(String, String)> = Vec::new();
    for (key, value) in members {
        if found.iter().any(|(known, _)| known == key) {
            return Err("duplicated sysctl keys are not allowed".to_owned());
        }
        let text = value.as_str().ok_or_else(|| wrong(&format!("sysctl.{key}"), value.kind()))?;
        found.push((key.clone(), text.to_owned()));
    }
    Ok(found)
}

fn wrong(member: &str, kind: &str) -> String {
    format!("json: cannot unmarshal {kind} into Go struct field TuningConf.{member} of type string")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(doc: &Json, args: &str) -> Result<Tuning, String> {
        Tuning::parse(&Members::of(doc, "TuningConf").unwrap(), args)
    }

    #[test]
    fn sources_keep_their_order() {
        let mac = |n| Some(Mac([10, 0, 0, 0, 0, n]));
        let plain = json!({"mac": "0a:00:00:00:00:01", "sysctl": {"b": "1", "a": "2"}, "txQLen": 0});
        let got = parse(&plain, "").unwrap();
        assert_eq!((got.link.mac, got.link.txqlen), (mac(1), Some(0)));
        assert_eq!(got.sysctl, [("a".into(), "2".into()), ("b".into(), "1".into())]);
        assert_eq!(parse(&plain, "MAC=0a:00:00:00:00:02;IgnoreUnknown=1").unwrap().link.mac, mac(2));
        let runtime = json!({"runtimeConfig": {"mac": "0a:00:00:00:00:03"}, "dataDir": "/x"});
        let got = parse(&runtime, "MAC=0a:00:00:00:00:02").unwrap();
        assert_eq!((got.link.mac, got.data_dir.as_str()), (mac(3), "/x"));
        let all = json!({
            "mtu": 1400, "promisc": true, "allmulti": true, "sysctl": {"a": "1"},
            "runtimeConfig": {"mac": "0a:00:00:00:00:03"},
            "args": {"cni": {"mac": "0a:00:00:00:00:04", "mtu": 1300, "allmulti": false, "sysctl": {"a": "9"}}}
        });
        let got = parse(&all, "").unwrap();
        assert_eq!((got.link.mac, got.link.mtu, got.link.promisc), (mac(4), Some(1300), Some(true)));
        assert_eq!(got.link.allmulti, Some(false));
        assert_eq!(got.sysctl, [("a".into(), "9".into())]);
        // Upstream panics here (B-34).
        let alone = json!({"args": {"cni": {"sysctl": {"net.core.somaxconn": "500"}}}});
        assert_eq!(parse(&alone, "").unwrap().sysctl.len(), 1);
        assert_eq!(parse(&json!({"promisc": false}), "").unwrap().link.promisc, None);
    }

    #[test]
    fn faults_are_named() {
        for (doc, args, want) in [
            (json!({"sysctl": {"a": "1", "a": "2"}}), "", "duplicated sysctl keys are not allowed"),
            (json!({"mac": "XX"}), "", "invalid args XX for MAC addr: "),
            (json!({}), "MAC=YY", "invalid args YY for MAC addr: "),
            (
                json!({"sysctl": {"a": 1}}),
                "",
                "json: cannot unmarshal number into Go struct field TuningConf.sysctl.a",
            ),
            (
                json!({"mtu": "9"}),
                "",
                "json: cannot unmarshal string into Go struct field TuningConf.mtu of type int",
            ),
            (json!({"mtu": -1}), "", "invalid mtu -1 (must be between 0 and 4294967295)"),
            (json!({}), "FOO=1", "ARGS: unknown args [\"FOO=1\"]"),
        ] {
            let error = parse(&doc, args).unwrap_err();
            assert!(error.starts_with(want), "{error}");
        }
    }

    #[test]
    fn keys_become_paths() {
        for (key, want) in [
            ("net.ipv4.conf.IFNAME.arp_filter", Ok("net/ipv4/conf/a.b/arp_filter")),
            ("net/core/somaxconn", Ok("net/core/somaxconn")),
            ("kernel.shmmax", Err("invalid net sysctl key: \"kernel/shmmax\"")),
            ("net", Err("invalid net sysctl key: \"net\"")),
            ("net/../kernel/shmmax", Ok("net/kernel/shmmax")),
            ("/proc/sys/net/core", Err("invalid net sysctl key: \"/proc/sys/net/core\"")),
        ] {
            assert_eq!(sysctl_path(key, "a.b"), want.map(str::to_owned).map_err(str::to_owned), "{key}");
        }
    }

    #[test]
    fn former_values_read_back() {
        let text = r#"{"mac":"0a:00:00:00:00:01","promisc":false,"mtu":1500,"txQLen":1000}"#;
        let read = Attributes::parse(text).unwrap();
        assert_eq!((read.promisc, read.mtu, read.txqlen), (Some(false), Some(1500), Some(1000)));
        assert_eq!(Attributes::parse(&read.to_json().to_compact()), Ok(read));
        assert!(Attributes::parse("").is_err());
    }
}
