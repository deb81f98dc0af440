//! `loden-cni install`: the program once, and a link for each plugin.
//!
//! In a cluster (`--keep`) other plugins' files stay, and `flannel` is a file of its own: flannel's own
//! `cp -f` writes through a link, and would put its plugin into the place of all of ours (decision 0095).

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::plugin;

const PROGRAM: &str = "loden-cni";

/// Copies the running program to `DIR/loden-cni` and links every plugin's name to it. Each step is a
/// rename, so a runtime that executes a plugin meanwhile sees the old or the new one, whole; repeating
/// changes nothing. `keep` leaves files of these names that are not our links, but for `flannel`.
///
/// # Errors
/// The directory cannot be made or written.
pub fn install(dir: &Path, keep: bool) -> Result<String, String> {
    let failed = |what: &Path, e: io::Error| format!("install {}: {e}", what.display());
    fs::DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(|e| failed(dir, e))?;
    let program = dir.join(PROGRAM);
    copy_self(dir, &program).map_err(|e| failed(&program, e))?;
    let (mut linked, mut kept) = (Vec::new(), Vec::new());
    for plugin in plugin::ALL {
        let link = dir.join(plugin.name);
        if keep && plugin.name == "flannel" {
            copy_self(dir, &link).map_err(|e| failed(&link, e))?;
            continue;
        }
        let ours = fs::read_link(&link).is_ok_and(|target| target == Path::new(PROGRAM));
        if keep && !ours && fs::symlink_metadata(&link).is_ok() {
            kept.push(plugin.name);
            continue;
        }
        linked.push(plugin.name);
        if ours {
            continue;
        }
        place(dir, &link, |temporary| symlink(PROGRAM, temporary)).map_err(|e| failed(&link, e))?;
    }
    let mut report = format!("installed {} and links {}", program.display(), linked.join(", "));
    if keep {
        report.push_str("; flannel is a copy");
    }
    if !kept.is_empty() {
        report.push_str(&format!("; kept {} of others", kept.join(", ")));
    }
    Ok(report)
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

/// Makes something under a temporary name and renames it into place. The name is new each time: in
/// containers every program is process 1.
pub fn place(dir: &Path, path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let temporary = dir.join(format!(".{name}.tmp{}", now ^ (u64::from(std::process::id()) << 32)));
    make(&temporary).and_then(|()| fs::rename(&temporary, path)).inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}
