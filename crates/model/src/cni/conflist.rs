//! Lists of plugins as runtimes read them from a directory, and the document each plugin of a list receives
//! (cni.md 1.10 to 1.12).

use super::members::Members;
use super::version::{NEWEST, Version};
use crate::gojson::Json;

/// A network: a list of plugins.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkList {
    /// Its name.
    pub name: String,
    /// Version of all documents of the list.
    pub cni_version: String,
    /// CHECK does nothing.
    pub disable_check: bool,
    /// GC does nothing.
    pub disable_gc: bool,
    /// Files of the folder named like the network are no part of the list.
    pub only_inlined: bool,
    /// The plugins' objects in order.
    pub plugins: Vec<Json>,
}

impl NetworkList {
    /// Reads a list (`*.conflist`).
    ///
    /// # Errors
    /// One sentence without the file's name.
    pub fn parse(text: &[u8]) -> Result<NetworkList, String> {
        let doc = open(text)?;
        let members = members(&doc)?;
        let only_inlined = flag(&members, "loadOnlyInlinedPlugins")?;
        let plugins = match doc.get("plugins").filter(|p| !p.is_null()) {
            None if only_inlined => {
                return Err("error parsing configuration list: no 'plugins' key".to_owned());
            }
            None => Vec::new(),
            Some(list) => {
                let list =
                    list.as_array().ok_or("error parsing configuration list: invalid 'plugins' type")?;
                if list.is_empty() {
                    return Err("error parsing configuration list: no plugins in list".to_owned());
                }
                list.to_vec()
            }
        };
        plugins.iter().try_for_each(check_type)?;
        Ok(NetworkList {
            name: name(&members)?,
            cni_version: version(&members)?,
            disable_check: flag(&members, "disableCheck")?,
            disable_gc: flag(&members, "disableGC")?,
            only_inlined,
            plugins,
        })
    }

    /// Reads a single plugin (`*.conf`, `*.json`) as a list of one.
    ///
    /// # Errors
    /// One sentence without the file's name.
    pub fn of_one(text: &[u8]) -> Result<NetworkList, String> {
        let doc = open(text)?;
        check_type(&doc)?;
        let (name, cni_version) = (name(&members(&doc)?)?, version(&members(&doc)?)?);
        Ok(NetworkList {
            name,
            cni_version,
            disable_check: false,
            disable_gc: false,
            only_inlined: true,
            plugins: vec![doc],
        })
    }

    /// Appends the plugin of a file in the network's own folder.
    ///
    /// # Errors
    /// One sentence without the file's name.
    pub fn append(&mut self, text: &[u8]) -> Result<(), String> {
        let doc = open(text)?;
        check_type(&doc)?;
        self.plugins.push(doc);
        Ok(())
    }

    /// The version as a number; an absent one is 0.1.0.
    ///
    /// # Errors
    /// It is none.
    pub fn version(&self) -> Result<Version, String> {
        let text = if self.cni_version.is_empty() { "0.1.0" } else { &self.cni_version };
        text.parse().map_err(|e: super::version::BadVersion| format!("cniVersion: {e}"))
    }

    /// The document of one plugin: its own object with name and version of the list, the result of the
    /// plugin before, the capability values it declares, and what else the verb adds.
    pub fn document(
        &self,
        plugin: &Json,
        prev_result: Option<&Json>,
        capabilities: &Json,
        more: &[(&str, Json)],
    ) -> Json {
        let mut doc = plugin.clone();
        doc.set("name", self.name.as_str());
        doc.set("cniVersion", self.cni_version.as_str());
        let declared = |key: &str| {
            plugin.get("capabilities").and_then(|c| c.get_exact(key)).and_then(Json::as_bool) == Some(true)
        };
        let values = capabilities.members().unwrap_or_default().iter().filter(|(key, _)| declared(key));
        let values: Vec<(String, Json)> = values.cloned().collect();
        if !values.is_empty() {
            doc.set("runtimeConfig", Json::object(values));
        }
        if let Some(result) = prev_result {
            doc.set("prevResult", result.clone());
        }
        more.iter().for_each(|(key, value)| doc.set(key, value.clone()));
        doc
    }
}

/// The name a plugin's object is executed by.
pub fn plugin_type(plugin: &Json) -> &str {
    plugin.get("type").and_then(Json::as_str).unwrap_or_default()
}

fn open(text: &[u8]) -> Result<Json, String> {
    let doc = Json::parse(text).map_err(|e| format!("error parsing configuration: {e}"))?;
    members(&doc).map(drop)?;
    Ok(doc)
}

fn members(doc: &Json) -> Result<Members<'_>, String> {
    Members::of(doc, "NetConf").map_err(|e| format!("error parsing configuration: {e}"))
}

fn name(members: &Members<'_>) -> Result<String, String> {
    match members.string("name") {
        Ok(name) if !name.is_empty() => Ok(name),
        Ok(_) => Err("error parsing configuration list: no name".to_owned()),
        Err(_) => Err("error parsing configuration list: invalid name type".to_owned()),
    }
}

fn check_type(plugin: &Json) -> Result<(), String> {
    match plugin.get("type").map(Json::as_str) {
        Some(Some(kind)) if !kind.is_empty() => Ok(()),
        Some(None) => Err("error parsing configuration: invalid 'type'".to_owned()),
        _ => Err("error parsing configuration: missing 'type'".to_owned()),
    }
}

/// `cniVersion` and `cniVersions` together: the highest that is known, of the list if there is one.
fn version(members: &Members<'_>) -> Result<String, String> {
    let number = |text: &str| text.parse::<Version>().map_err(|e| format!("cniVersions: {e}"));
    let own = members.string("cniVersion").map_err(|_| "invalid cniVersion type".to_owned())?;
    let list = members.strings("cniVersions").map_err(|_| "invalid cniVersions type".to_owned())?;
    if list.is_empty() {
        return Ok(own);
    }
    let newest = number(NEWEST)?;
    let mut best: Option<(Version, String)> = None;
    for text in list.into_iter().chain(Some(own.clone()).filter(|own| !own.is_empty())) {
        let version = number(&text)?;
        if version <= newest && best.as_ref().is_none_or(|(best, _)| *best < version) {
            best = Some((version, text));
        }
    }
    Ok(best.map_or(own, |(_, text)| text))
}

/// A boolean, or its word in any case.
fn flag(members: &Members<'_>, key: &str) -> Result<bool, String> {
    let bad = || format!("error parsing configuration list: invalid {key} value");
    match members.get(key) {
        None => Ok(false),
        Some(value) => match (value.as_bool(), value.as_str().map(str::to_ascii_lowercase).as_deref()) {
            (Some(on), _) => Ok(on),
            (_, Some("true")) => Ok(true),
            (_, Some("false")) => Ok(false),
            _ => Err(bad()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        let read = |text: &str| NetworkList::parse(text.as_bytes());
        let list = read(
            r#"{"name": "n", "cniVersion": "0.4.0", "disableCheck": "True", "disableGC": false,
                "plugins": [{"type": "a", "name": "x", "capabilities": {"mac": true, "ips": false}}, {"type": "b"}]}"#,
        )
        .unwrap();
        assert!(list.disable_check && !list.disable_gc && !list.only_inlined);
        assert_eq!(list.version(), Ok(Version(0, 4, 0)));
        let values = json!({"mac": "m", "ips": ["1"], "other": 1});
        let doc = list.document(&list.plugins[0], Some(&json!({"ips": []})), &values, &[("k", json!(1))]);
        assert_eq!(
            doc.to_compact_sorted(),
            r#"{"capabilities":{"ips":false,"mac":true},"cniVersion":"0.4.0","k":1,"name":"n","prevResult":{"ips":[]},"runtimeConfig":{"mac":"m"},"type":"a"}"#
        );
        let doc = list.document(&list.plugins[1], None, &values, &[]);
        assert_eq!(doc.to_compact_sorted(), r#"{"cniVersion":"0.4.0","name":"n","type":"b"}"#);
        for (text, want) in [
            ("{", "error parsing configuration: "),
            ("[]", "error parsing configuration: "),
            (r#"{"plugins": [{"type": "a"}]}"#, "error parsing configuration list: no name"),
            (
                r#"{"name": 1, "plugins": [{"type": "a"}]}"#,
                "error parsing configuration list: invalid name type",
            ),
            (r#"{"name": "n", "plugins": []}"#, "error parsing configuration list: no plugins in list"),
            (r#"{"name": "n", "plugins": 1}"#, "error parsing configuration list: invalid 'plugins' type"),
            (
                r#"{"name": "n", "loadOnlyInlinedPlugins": true}"#,
                "error parsing configuration list: no 'plugins' key",
            ),
            (r#"{"name": "n", "plugins": [{}]}"#, "error parsing configuration: missing 'type'"),
            (
                r#"{"name": "n", "disableCheck": "yes", "plugins": [{"type": "a"}]}"#,
                "error parsing configuration list: invalid disableCheck value",
            ),
            (
                r#"{"name": "n", "cniVersions": ["x"], "plugins": [{"type": "a"}]}"#,
                "cniVersions: \"x\" is not",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(want), "{error}");
        }
        // Plugins may all be in the network's folder.
        let mut list = read(r#"{"name": "n"}"#).unwrap();
        assert!(list.plugins.is_empty());
        list.append(br#"{"type": "a"}"#).unwrap();
        assert!(list.append(br#"{"typ": "a"}"#).is_err());
        assert_eq!(plugin_type(&list.plugins[0]), "a");
        let one = NetworkList::of_one(br#"{"name": "n", "type": "t", "cniVersion": "1.0.0"}"#).unwrap();
        assert_eq!((one.name.as_str(), one.plugins.len(), one.cni_version.as_str()), ("n", 1, "1.0.0"));
    }

    #[test]
    fn the_highest_known_version_counts() {
        for (members, want) in [
            (r#""cniVersion": "0.3.1""#, "0.3.1"),
            (r#""cniVersions": ["0.3.1", "1.1.0", "1.0.0"]"#, "1.1.0"),
            (r#""cniVersions": ["0.3.1", "1.9.0"]"#, "0.3.1"),
            (r#""cniVersion": "1.0.0", "cniVersions": ["0.3.1"]"#, "1.0.0"),
            (r#""cniVersion": "1.0.0", "cniVersions": []"#, "1.0.0"),
            (r#""cniVersions": ["9.0.0"]"#, ""),
        ] {
            let text = format!(r#"{{"name": "n", {members}, "plugins": [{{"type": "a"}}]}}"#);
            assert_eq!(NetworkList::parse(text.as_bytes()).unwrap().cni_version, want, "{members}");
        }
    }
}
