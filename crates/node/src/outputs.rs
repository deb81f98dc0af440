//! What the agent tells the world: `subnet.env`, the troubles beside it, systemd, the registry.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use store::Standing;
use tokio::sync::watch;

use crate::board::{Board, Troubles};

/// Writes a file so that a reader sees the old or the new content and never a part, even if the power
/// fails in between: temporary file in the same directory, fsync, rename. Directory 0755, file 0644
/// whatever the umask (flannel.md 8.1).
///
/// # Errors
/// What the disk said; the old content stands then.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    put(path, content, [0o755, 0o644])
}

/// [`replace`] with directory 0700, file 0600.
///
/// # Errors
/// The same.
pub fn replace_for_root(path: &Path, content: &[u8]) -> io::Result<()> {
    put(path, content, [0o700, 0o600])
}

/// [`replace`] for a key: directory 0755, file 0400 (flannel.md 6.5).
///
/// # Errors
/// The same.
pub fn replace_secret(path: &Path, content: &[u8]) -> io::Result<()> {
    put(path, content, [0o755, 0o400])
}

fn put(path: &Path, content: &[u8], [dir_mode, file_mode]: [u32; 2]) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
    let temporary = dir.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let write = || -> io::Result<()> {
        if !dir.exists() {
            DirBuilder::new().recursive(true).mode(dir_mode).create(dir)?;
            fs::set_permissions(dir, fs::Permissions::from_mode(dir_mode))?;
        }
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.set_permissions(fs::Permissions::from_mode(file_mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(dir)?.sync_all()
    };
    // The temporary file may not exist; then there is nothing to remove.
    write().inspect_err(|_| drop(fs::remove_file(&temporary)))
}

/// [`replace`] for the subnet file.
///
/// # Errors
/// One sentence that names the file.
pub fn write_subnet_file(path: &Path, content: &str) -> Result<(), String> {
    replace(path, content.as_bytes()).map_err(|error| {
        format!(
            "write {}: {error}; pods cannot start until it can be written: free or remount the disk",
            path.display()
        )
    })
}

/// Where the CNI plugins find the troubles: beside the subnet file, with `.trouble` after its name.
pub fn trouble_file(subnet_file: &str) -> PathBuf {
    let mut name = OsString::from(subnet_file);
    name.push(model::cni::flannel::TROUBLE_SUFFIX);
    PathBuf::from(name)
}

/// Writes the networks of the services where the plugin `veth-to-host` looks for them (decision 0167): beside the
/// subnet file. Without any there is no file, whoever wrote one.
///
/// # Errors
/// One sentence: a network that is none, or the disk.
pub fn tell_services(subnet_file: &str, networks: &str) -> Result<(), String> {
    let file = services_file(subnet_file);
    let list = model::cni::veth_to_host::service_networks(networks);
    let list = list.map_err(|error| {
        format!("LODEN_SERVICE_CIDRS {networks:?}: {error}; write networks such as 10.96.0.0/12,fd01::/112")
    })?;
    if list.is_empty() {
        let _ = fs::remove_file(file);
        return Ok(());
    }
    let lines: String = list.iter().map(|net| format!("{net}\n")).collect();
    replace(&file, lines.as_bytes()).map_err(|error| format!("write {}: {error}", file.display()))
}

/// Where [`tell_services`] writes.
pub fn services_file(subnet_file: &str) -> PathBuf {
    let mut name = OsString::from(subnet_file);
    name.push(model::cni::veth_to_host::SERVICES_SUFFIX);
    PathBuf::from(name)
}

/// Lines shown in files, answers and registries; the log has all.
pub const LINES: usize = 20;
/// Distance of tries to write the troubles.
const REWRITE: Duration = Duration::from_secs(1);

/// Shows the board to the service manager, the CNI plugins and the store, for ever; cancel by dropping.
pub async fn show(board: Arc<Board>, file: PathBuf, notify: Option<String>, store: watch::Sender<Standing>) {
    let mut seen = board.follow();
    let mut status = String::new();
    // Whatever lies there is of an earlier run.
    let mut written: Option<Vec<String>> = None;
    loop {
        let now = seen.borrow_and_update().clone();
        let lines = now.sentences(LINES);
        store.send_if_modified(|standing| {
            let next = Standing { ready: now.ready, troubles: lines.clone(), topics: now.topics() };
            std::mem::replace(standing, next.clone()) != next
        });
        let next = status_line(&now);
        if status != next {
            sd_notify(notify.as_deref(), &format!("STATUS={next}"));
            status = next;
        }
        if written.as_ref() != Some(&lines) {
            // A disk that hangs must not hold up leases.
            let (path, content) = (file.clone(), lines.clone());
            let done = tokio::task::spawn_blocking(move || write_troubles(&path, &content)).await;
            // That the disk cannot be written is said of the subnet file, which is in the same place.
            written = matches!(done, Ok(Ok(()))).then_some(lines);
        }
        tokio::select! {
            changed = seen.changed() => if changed.is_err() { return std::future::pending().await },
            () = tokio::time::sleep(REWRITE), if written.is_none() => {}
        }
    }
}

/// One sentence a line, the gravest first; no file when nothing is wrong.
fn write_troubles(path: &Path, lines: &[String]) -> io::Result<()> {
    if lines.is_empty() {
        return match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    }
    replace(path, (lines.join("\n") + "\n").as_bytes())
}

/// Who does not run has nothing to say.
pub fn withdraw_troubles(path: &Path) {
    let _ = fs::remove_file(path);
}

/// What `systemctl status` shows.
fn status_line(now: &Troubles) -> String {
    let state = if now.ready { "ready" } else { "not ready yet" };
    match (now.troubles.values().next(), now.troubles.len()) {
        (Some(first), 1) => format!("{state}: {}", first.text),
        (Some(first), n) => format!("{state}: {} (and {} more)", first.text, n - 1),
        (None, _) => state.to_owned(),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_told_beside_the_subnet_file() {
        let dir = std::env::temp_dir().join(format!("loden-outputs-{}", std::process::id()));
        let subnet_file = dir.join("subnet.env").display().to_string();
        let read = || fs::read_to_string(services_file(&subnet_file)).ok();
        tell_services(&subnet_file, "10.96.1.1/12, fd01::/112").unwrap();
        assert_eq!(read().as_deref(), Some("10.96.0.0/12\nfd01::/112\n"));
        // What is wrong changes nothing; nothing takes the file away, and nothing again is fine.
        let error = tell_services(&subnet_file, "10.96.0.0").unwrap_err();
        assert!(
            error.starts_with("LODEN_SERVICE_CIDRS \"10.96.0.0\": invalid CIDR address: 10.96.0.0; "),
            "{error}"
        );
        assert!(read().is_some());
        for _ in 0..2 {
            tell_services(&subnet_file, "").unwrap();
            assert_eq!(read(), None);
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
