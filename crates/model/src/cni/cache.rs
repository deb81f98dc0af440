//! What runtimes keep of an attachment between ADD and DEL (cni.md 1.12).

use super::members::Members;
use crate::gojson::Json;

/// One attachment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CacheEntry {
    /// Container id.
    pub container_id: String,
    /// Interface in the pod.
    pub ifname: String,
    /// Network.
    pub network: String,
    /// Path of the namespace.
    pub netns: String,
    /// The list as it was at ADD.
    pub config: Vec<u8>,
    /// `CNI_ARGS` in pairs.
    pub cni_args: Vec<(String, String)>,
    /// Capability values; an object, or `null` for none.
    pub capability_args: Json,
    /// Result of the last plugin.
    pub result: Json,
}

const KIND: &str = "cniCacheV1";

impl CacheEntry {
    /// Name of the file below `results`. Three names that may hold the separator: readers compare the
    /// members as well (B-45).
    pub fn file_name(network: &str, container_id: &str, ifname: &str) -> String {
        format!("{network}-{container_id}-{ifname}")
    }

    /// The file's content.
    pub fn to_json(&self) -> Json {
        let mut object = Json::object([
            ("kind", Json::from(KIND)),
            ("containerId", self.container_id.as_str().into()),
            ("config", base64(&self.config).into()),
            ("ifName", self.ifname.as_str().into()),
            ("networkName", self.network.as_str().into()),
        ]);
        if !self.netns.is_empty() {
            object.set("netns", self.netns.as_str());
        }
        if !self.cni_args.is_empty() {
            let pair = |(key, value): &(String, String)| Json::array([key.as_str(), value.as_str()]);
            object.set("cniArgs", Json::array(self.cni_args.iter().map(pair)));
        }
        if !self.capability_args.is_null() {
            object.set("capabilityArgs", self.capability_args.clone());
        }
        object.set("result", self.result.clone());
        object
    }

    /// Reads a file. An older one is a bare result; everything else is empty then.
    ///
    /// # Errors
    /// It is damaged.
    pub fn parse(text: &[u8]) -> Result<CacheEntry, String> {
        let value = Json::parse(text).map_err(|e| e.to_string())?;
        let m = Members::of(&value, "cachedInfo")?;
        if m.string("kind").unwrap_or_default() != KIND {
            return Ok(CacheEntry { result: value.clone(), ..CacheEntry::default() });
        }
        let mut cni_args = Vec::new();
        for pair in m.list("cniArgs")?.unwrap_or_default() {
            let words: Vec<&str> =
                pair.as_array().unwrap_or_default().iter().filter_map(Json::as_str).collect();
            let [key, value] = words.as_slice() else {
                return Err("cniArgs: not a pair of texts".to_owned());
            };
            cni_args.push(((*key).to_owned(), (*value).to_owned()));
        }
        Ok(CacheEntry {
            container_id: m.string("containerId")?,
            ifname: m.string("ifName")?,
            network: m.string("networkName")?,
            netns: m.string("netns")?,
            config: unbase64(&m.string("config")?).ok_or("config: not base64")?,
            cni_args,
            capability_args: m.get("capabilityArgs").cloned().unwrap_or_default(),
            result: m.get("result").cloned().unwrap_or_default(),
        })
    }
}

const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// RFC 4648 4, with padding.
fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |n: usize| u32::from(chunk.get(n).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for n in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * n) & 63) as usize];
            text.push(if n > chunk.len() { '=' } else { char::from(letter) });
        }
    }
    text
}

fn unbase64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=').as_bytes();
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for chunk in text.chunks(4) {
        let mut bits = 0;
        for letter in chunk {
            bits = bits << 6 | LETTERS.iter().position(|l| l == letter)? as u32;
        }
        bits <<= 6 * (4 - chunk.len());
        let count = match chunk.len() {
            1 => return None,
            n => n - 1,
        };
        bytes.extend_from_slice(&bits.to_be_bytes()[1..1 + count]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_rfc_4648() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
            assert_eq!(unbase64(text).as_deref(), Some(bytes.as_bytes()));
        }
        assert_eq!(unbase64("Z"), None);
        assert_eq!(unbase64("Z?=="), None);
    }

    #[test]
    fn entries_read_back() {
        let entry = CacheEntry {
            container_id: "c1".to_owned(),
            ifname: "eth0".to_owned(),
            network: "net".to_owned(),
            netns: "/run/netns/x".to_owned(),
            config: b"{}".to_vec(),
            cni_args: vec![("IgnoreUnknown".to_owned(), "1".to_owned())],
            capability_args: json!({"mac": "m"}),
            result: json!({"cniVersion": "1.0.0"}),
        };
        let text = entry.to_json().to_compact();
        assert!(
            text.starts_with(r#"{"kind":"cniCacheV1","containerId":"c1","config":"e30=","ifName":"eth0""#),
            "{text}"
        );
        assert_eq!(CacheEntry::parse(text.as_bytes()), Ok(entry));
        let bare = CacheEntry::parse(br#"{"cniVersion": "0.4.0", "ips": []}"#).unwrap();
        assert_eq!((bare.network.as_str(), bare.result.get("ips").is_some()), ("", true));
        assert!(CacheEntry::parse(b"{").is_err());
    }
}
