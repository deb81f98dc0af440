//! What the agent tells the world: `subnet.env`, systemd, readiness, the log.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

/// Writes a file so that a reader sees the old or the new content and never a part: temporary file in
/// the same directory, fsync, rename. Directory 0755, file 0644 whatever the umask (flannel.md 8.1).
///
/// # Errors
/// One sentence that names the file.
pub fn write_atomically(path: &Path, content: &str) -> Result<(), String> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| format!("write {}: not a file name", path.display()))?;
    let temporary = dir.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let write = || -> io::Result<()> {
        if !dir.exists() {
            fs::create_dir_all(dir)?;
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
        }
        let mut file = File::create(&temporary)?;
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|error| {
        // The temporary file may not exist; then there is nothing to remove.
        let _ = fs::remove_file(&temporary);
        format!(
            "write {}: {error}; pods cannot start until it can be written: free or remount the disk",
            path.display()
        )
    })
}

/// Sends a state such as `READY=1` to the service manager, if one asked for it (sd_notify(3)).
pub fn sd_notify(socket: Option<&str>, state: &str) {
    let Some(path) = socket.filter(|path| !path.is_empty()) else { return };
    let send = || -> io::Result<()> {
        let datagram = UnixDatagram::unbound()?;
        if let Some(name) = path.strip_prefix('@') {
            use std::os::linux::net::SocketAddrExt as _;
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            datagram.send_to_addr(state.as_bytes(), &address)?;
        } else {
            datagram.send_to(state.as_bytes(), path)?;
        }
        Ok(())
    };
    if let Err(error) = send() {
        tracing::warn!("tell the service manager {state:?} through NOTIFY_SOCKET {path}: {error}");
    }
}
