//! `loden-cni install`: the program once, and a link for each plugin.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::Path;

use crate::plugin;

const PROGRAM: &str = "loden-cni";

/// Copies the running program to `DIR/loden-cni` and links every plugin's name to it. Each step is a
/// rename, so a runtime that executes a plugin meanwhile sees the old or the new one, whole; repeating
/// changes nothing.
///
/// # Errors
/// The directory cannot be made or written.
pub fn install(dir: &Path) -> Result<String, String> {
    let failed = |what: &Path, e: io::Error| format!("install {}: {e}", what.display());
    fs::DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(|e| failed(dir, e))?;
    let program = dir.join(PROGRAM);
    copy_self(dir, &program).map_err(|e| failed(&program, e))?;
    for plugin in plugin::ALL {
        let link = dir.join(plugin.name);
        if fs::read_link(&link).is_ok_and(|target| target == Path::new(PROGRAM)) {
            continue;
        }
        place(dir, &link, |temporary| symlink(PROGRAM, temporary)).map_err(|e| failed(&link, e))?;
    }
    let names: Vec<&str> = plugin::ALL.iter().map(|p| p.name).collect();
    Ok(format!("installed {} and links {}", program.display(), names.join(", ")))
}

fn copy_self(dir: &Path, program: &Path) -> io::Result<()> {
    let bytes = fs::read("/proc/self/exe")?;
    if fs::symlink_metadata(program).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o777 == 0o755)
        && fs::read(program).is_ok_and(|have| have == bytes)
    {
        return Ok(());
    }
    place(dir, program, |temporary| {
        fs::write(temporary, &bytes)?;
        fs::set_permissions(temporary, fs::Permissions::from_mode(0o755))?;
        fs::File::open(temporary)?.sync_all()
    })
}

/// Makes something under a temporary name and renames it into place.
fn place(dir: &Path, path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let temporary = dir.join(format!(".loden-cni.{}", std::process::id()));
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    make(&temporary).and_then(|()| fs::rename(&temporary, path)).inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}
