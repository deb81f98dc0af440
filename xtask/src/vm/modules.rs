//! Which module files the guest needs, in the order of loading. Dependencies are read from the modules
//! themselves, so that no index has to be made.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Files of `wanted` and of all they depend on, each after what it needs; and the wanted ones that the
/// kernel does not have as modules.
pub fn closure(dir: &Path, wanted: &[&str]) -> Result<(Vec<PathBuf>, Vec<String>), String> {
    let mut files = BTreeMap::new();
    collect(dir, &mut files)?;
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    let mut missing = Vec::new();
    for name in wanted {
        if !visit(&normal(name), &files, &mut seen, &mut order)? {
            missing.push((*name).to_owned());
        }
    }
    Ok((order, missing))
}

fn visit(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    seen: &mut BTreeSet<String>,
    order: &mut Vec<PathBuf>,
) -> Result<bool, String> {
    let Some(path) = files.get(name) else { return Ok(false) };
    if !seen.insert(name.to_owned()) {
        return Ok(true);
    }
    let bytes = fs::read(path).map_err(|error| format!("read {}: {error}", path.display()))?;
    for needed in depends(&bytes) {
        visit(&normal(&needed), files, seen, order)?;
    }
    order.push(path.clone());
    Ok(true)
}

/// The `depends=` line of a module's information section.
fn depends(module: &[u8]) -> Vec<String> {
    const MARK: &[u8] = b"\0depends=";
    let Some(at) = module.windows(MARK.len()).position(|window| window == MARK) else { return Vec::new() };
    let rest = &module[at + MARK.len()..];
    let line = &rest[..rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len())];
    let line = String::from_utf8_lossy(line);
    line.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// The kernel takes both signs for the same.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

fn collect(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<(), String> {
    let entries = fs::read_dir(dir).map_err(|error| format!("read {}: {error}", dir.display()))?;
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        if path.is_dir() && !path.is_symlink() {
            collect(&path, files)?;
        } else if let Some(name) = path.file_name().and_then(|n| n.to_str()?.strip_suffix(".ko").map(normal))
        {
            files.insert(name, path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::depends;

    #[test]
    fn dependencies_are_read_from_the_module() {
        assert_eq!(
            depends(b"x\0license=GPL\0depends=udp_tunnel,ip6_udp_tunnel\0name=vxlan\0"),
            ["udp_tunnel", "ip6_udp_tunnel"]
        );
        assert!(depends(b"x\0depends=\0y").is_empty() && depends(b"no module").is_empty());
    }
}
