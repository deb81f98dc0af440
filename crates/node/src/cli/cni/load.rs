//! Networks out of a directory (cni.md 1.10).

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use model::cni::conflist::NetworkList;

/// A network and the text it was read from, which goes into the cache.
pub type Loaded = (NetworkList, Vec<u8>);

/// The first list of that name in name order of files, else the first single plugin.
///
/// # Errors
/// No such network, or a file on the way is malformed; the file is named.
pub fn by_name(dir: &Path, network: &str) -> Result<Loaded, String> {
    let lists = files(dir, &["conflist"])?;
    let single = files(dir, &["conf", "json"])?;
    if lists.is_empty() && single.is_empty() {
        return Err(format!("no net configurations found in {}", dir.display()));
    }
    for file in &lists {
        let text = read(file)?;
        let mut list = NetworkList::parse(&text).map_err(|e| format!("{}: {e}", file.display()))?;
        if list.name == network {
            complete(&mut list, dir)?;
            return Ok((list, text));
        }
    }
    for file in &single {
        let text = read(file)?;
        let one = NetworkList::of_one(&text).map_err(|e| format!("{}: {e}", file.display()))?;
        if one.name == network {
            return Ok((one, text));
        }
    }
    Err(format!("no net configuration with name {network:?} in {}", dir.display()))
}

/// A network as it was when an attachment was made, out of the cache.
///
/// # Errors
/// It is malformed.
pub fn from_text(text: &[u8], dir: Option<&Path>) -> Result<Loaded, String> {
    let mut list = NetworkList::parse(text).or_else(|e| NetworkList::of_one(text).map_err(|_| e))?;
    if list.plugins.is_empty()
        && let Some(dir) = dir
    {
        complete(&mut list, dir)?;
    }
    Ok((list, text.to_vec()))
}

/// Plugins of the folder named like the network come after the others.
fn complete(list: &mut NetworkList, dir: &Path) -> Result<(), String> {
    if !list.only_inlined {
        for file in files(&dir.join(&list.name), &["conf"])? {
            list.append(&read(&file)?).map_err(|e| format!("{}: {e}", file.display()))?;
        }
    }
    if list.plugins.is_empty() { Err("no plugin configs found".to_owned()) } else { Ok(()) }
}

/// Files with one of the endings, by name. A directory that is not there holds none.
fn files(dir: &Path, endings: &[&str]) -> Result<Vec<PathBuf>, String> {
    let failed = |e: std::io::Error| format!("read {}: {e}", dir.display());
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if endings.contains(&ending) && !path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    fs::read(file).map_err(|e| format!("read {}: {e}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_found_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let find = |name: &str| by_name(dir.path(), name).map(|(list, _)| list.plugins.len());
        let empty = find("x").unwrap_err();
        assert!(empty.starts_with("no net configurations found in "), "{empty}");
        put("20-a.conflist", r#"{"name": "a", "plugins": [{"type": "x"}]}"#);
        put("10-a.conf", r#"{"name": "a", "type": "y"}"#);
        put("30-b.json", r#"{"name": "b", "type": "y"}"#);
        put("05-c.txt", "no configuration");
        put("deep/c.conflist", "no configuration");
        put("40-folder.conflist", r#"{"name": "folder"}"#);
        put("folder/10.conf", r#"{"type": "x"}"#);
        put("folder/20.conf", r#"{"type": "y"}"#);
        put("folder/30.json", "no configuration");
        put("50-none.conflist", r#"{"name": "none"}"#);
        put("60-both.conflist", r#"{"name": "both", "plugins": [{"type": "x"}]}"#);
        put("both/1.conf", r#"{"type": "y"}"#);
        put(
            "70-only.conflist",
            r#"{"name": "only", "loadOnlyInlinedPlugins": "true", "plugins": [{"type": "x"}]}"#,
        );
        put("only/1.conf", r#"{"type": "y"}"#);
        for (name, plugins) in [("a", 1), ("b", 1), ("folder", 2), ("both", 2), ("only", 1)] {
            assert_eq!(find(name), Ok(plugins), "{name}");
        }
        assert_eq!(find("none"), Err("no plugin configs found".to_owned()));
        let missing = find("z").unwrap_err();
        assert!(missing.starts_with("no net configuration with name \"z\" in "), "{missing}");
        // A malformed file on the way is named, one behind it is not met.
        put("45-bad.conflist", "{");
        assert_eq!(find("a"), Ok(1));
        assert!(find("both").unwrap_err().contains("45-bad.conflist: error parsing configuration: "));
    }
}
