//! Namespaces and mounts: what a process of the lab sees instead of the machine.
//!
//! Nothing is written to the machine's disk: `/run`, `/etc/cni`, `/var/lib/cni` and `/var/lib/loden` are memory, private
//! to each host, and vanish with the last process.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Doing, Error, Result};
use crate::sys;

/// What all hosts share: the store, the sockets for readiness, the plugins.
pub const SHARED: &str = "/run/loden-lab";
/// The CNI network list of each host.
pub const CONFLIST: &str = "/etc/cni/net.d/10-flannel.conflist";
/// What every place of the lab sees as `/etc/hosts`.
pub const HOSTS_FILE: &str = "/run/loden-lab/hosts";
/// Directories a host has for itself, beside `/run`.
const PRIVATE: [&str; 3] = ["/etc/cni", "/var/lib/cni", "/var/lib/loden"];

/// Moves the process, and the first child it will have, into namespaces of its own. Gives whether that
/// took a user namespace, because there are no root rights here.
///
/// # Errors
/// One sentence with the way out when the kernel does not allow it.
pub fn isolate() -> Result<bool> {
    let kinds = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWUTS;
    let (uid, gid) = (sys::euid(), sys::egid());
    if uid == 0 && sys::unshare(kinds).is_ok() {
        return Ok(false);
    }
    let refused = |e: io::Error| {
        let why = match () {
            () if reads("/proc/sys/kernel/unprivileged_userns_clone", "0") => {
                "kernel.unprivileged_userns_clone is 0; set it to 1, or run this with sudo"
            }
            () if reads("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") => {
                "AppArmor restricts user namespaces \
                 (kernel.apparmor_restrict_unprivileged_userns); run this with sudo"
            }
            () if reads("/proc/sys/user/max_user_namespaces", "0") => {
                "user.max_user_namespaces is 0; raise it, or run this with sudo"
            }
            () => "run this with sudo (in a container: with --privileged)",
        };
        Error::said(format!("make namespaces for the lab: {e}: {why}"))
    };
    sys::unshare(libc::CLONE_NEWUSER | kinds).map_err(refused)?;
    // The order is the kernel's: no setgroups before a group may be mapped without privilege.
    fs::write("/proc/self/setgroups", "deny").map_err(refused)?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1")).map_err(refused)?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1")).map_err(refused)?;
    Ok(true)
}

fn reads(path: &str, value: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.trim() == value)
}

/// Mounts what the whole lab shares; called in the lab's own namespaces.
///
/// # Errors
/// A mount the kernel refuses.
pub fn set_up(rootless: bool) -> Result<()> {
    let none = Path::new("/");
    // Nothing we mount gets out; what the machine unmounts goes here too, so we hold on to nothing.
    sys::mount("none", none, "", libc::MS_REC | libc::MS_SLAVE, "")
        .doing(|| "separate the lab's mounts from the machine's".to_owned())?;
    sys::mount("proc", Path::new("/proc"), "proc", MEMORY_FLAGS | libc::MS_NOEXEC, "")
        .doing(|| "mount /proc of the lab (in a container this takes --privileged)".to_owned())?;
    memory(Path::new("/run"))?;
    make_dir(Path::new(SHARED))?;
    make_dir(&Path::new(SHARED).join("notify"))?;
    for directory in PRIVATE {
        ensure_mount_point(Path::new(directory), rootless)?;
    }
    network_files();
    // Names are a convenience: where there is no such file to cover, there are none.
    let _ = fs::write(HOSTS_FILE, "127.0.0.1 localhost\n");
    let _ = sys::mount(HOSTS_FILE, Path::new("/etc/hosts"), "", libc::MS_BIND, "");
    Ok(())
}

/// Mounts what a host has for itself. Runs as `loden lab __host NAME`, in the host's namespaces.
///
/// # Errors
/// A mount the kernel refuses.
pub fn furnish_host(name: &str) -> Result<()> {
    sys::set_hostname(name).doing(|| format!("name the host {name}"))?;
    let shared = fs::File::open(SHARED).doing(|| format!("open {SHARED}"))?;
    memory(Path::new("/run"))?;
    make_dir(Path::new(SHARED))?;
    let source = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&shared));
    sys::mount(&source, Path::new(SHARED), "", libc::MS_BIND, "")
        .doing(|| format!("mount {SHARED} in {name}"))?;
    for directory in PRIVATE {
        memory(Path::new(directory))?;
    }
    let conflist = Path::new(CONFLIST);
    make_dir(conflist.parent().unwrap_or(conflist))?;
    let shared_list = Path::new(SHARED).join("conflist");
    fs::copy(shared_list, conflist).doing(|| format!("write {CONFLIST} in {name}"))?;
    network_files();
    Ok(())
}

/// Gives a pod its name and its own view of `/sys/class/net`.
///
/// # Errors
/// The host name cannot be set.
pub fn furnish_pod(name: &str) -> Result<()> {
    sys::set_hostname(name).doing(|| format!("name the pod {name}"))?;
    network_files();
    Ok(())
}

/// Makes `/sys` show the devices of this network namespace. Some containers forbid it; then tools that
/// read `/sys` show the machine's devices, which nothing in the lab relies on.
fn network_files() {
    let _ = sys::mount("sysfs", Path::new("/sys"), "sysfs", MEMORY_FLAGS | libc::MS_NOEXEC, "");
}

const MEMORY_FLAGS: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV;

fn memory(path: &Path) -> Result<()> {
    sys::mount("loden-lab", path, "tmpfs", MEMORY_FLAGS, "mode=0755")
        .doing(|| format!("mount memory on {}", path.display()))
}

fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).doing(|| format!("make directory {}", path.display()))
}

/// Makes sure a directory exists to mount on. Where the machine has none, an overlay in memory adds it
/// to its parent, so the machine's disk stays as it is.
fn ensure_mount_point(path: &Path, rootless: bool) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|p| p.is_dir()).ok_or_else(|| {
        Error::said(format!(
            "the lab needs the directory {0} to mount on; run `mkdir -p {0}`",
            path.display()
        ))
    })?;
    let mut store = PathBuf::from(SHARED).join("overlay");
    store.push(parent.to_string_lossy().replace('/', "_"));
    if store.is_dir() {
        // The parent is the lab's own view already.
        return make_dir(path);
    }
    let (upper, work) = (store.join("upper"), store.join("work"));
    make_dir(&upper)?;
    make_dir(&work)?;
    let options = format!(
        "lowerdir={},upperdir={},workdir={}{}",
        parent.display(),
        upper.display(),
        work.display(),
        if rootless { ",userxattr" } else { "" }
    );
    sys::mount("loden-lab", parent, "overlay", MEMORY_FLAGS, &options).map_err(|e| {
        Error::said(format!(
            "add {0} to the lab's view of {1}: {e}; the way round is `mkdir -p {0}`",
            path.display(),
            parent.display()
        ))
    })?;
    make_dir(path)
}
