//! Files of the BPF file system by which links outlive the process that made them.

use std::path::{Path, PathBuf};

/// `BPF_FS_MAGIC`, include/uapi/linux/magic.h
const MAGIC: u32 = 0xcafe_4a11;
/// Where the kernel offers a place for it.
const MOUNT: &str = "/sys/fs/bpf";

/// The directory with the links of one agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    dir: PathBuf,
}

impl Pins {
    /// Mounts the file system where the kernel offers a place for it, unless it is there. Needs CAP_SYS_ADMIN.
    ///
    /// # Errors
    /// One sentence.
    pub fn mount() -> Result<(), String> {
        if !is_bpf() {
            let flags = rustix::mount::MountFlags::empty();
            rustix::mount::mount("bpf", MOUNT, "bpf", flags, None::<&std::ffi::CStr>)
                .map_err(|error| format!("mount -t bpf bpf {MOUNT}: {error}"))?;
        }
        Ok(())
    }

    /// The directory `name` under `/sys/fs/bpf/loden`, made with what is missing; the file system is mounted if
    /// nothing is. In a container without the host's, links end with the container.
    ///
    /// # Errors
    /// One sentence.
    pub fn open(name: &str) -> Result<Pins, String> {
        Pins::mount()?;
        let dir = Path::new(MOUNT).join("loden").join(name);
        std::fs::create_dir_all(&dir).map_err(|error| format!("mkdir -p {}: {error}", dir.display()))?;
        Ok(Pins { dir })
    }

    /// Makes the directory again if somebody took it away; whether it is there.
    pub(crate) fn make(&self) -> bool {
        is_bpf() && std::fs::create_dir_all(&self.dir).is_ok()
    }

    /// The same directory if it is there, and nothing is made.
    pub fn find(name: &str) -> Option<Pins> {
        let dir = Path::new(MOUNT).join("loden").join(name);
        dir.is_dir().then_some(Pins { dir })
    }

    /// Those whose names begin like this.
    pub fn all(prefix: &str) -> Vec<Pins> {
        let dirs = std::fs::read_dir(Path::new(MOUNT).join("loden")).into_iter().flatten().flatten();
        let ours = dirs.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
        ours.map(|entry| Pins { dir: entry.path() }).collect()
    }

    /// The directory, and the links in it, in the order in which they may go.
    pub fn files(&self) -> (&Path, Vec<PathBuf>) {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        files.sort();
        (&self.dir, files)
    }

    /// Where a program's link to a device is. The file system allows no dots in names, devices do: by index.
    pub(crate) fn file(&self, program: &str, index: u32) -> PathBuf {
        self.dir.join(format!("{program}-{index}"))
    }

    /// Removes the files that are not kept.
    pub(crate) fn sweep(&self, kept: impl Fn(&Path) -> bool) {
        let files = self.files().1.into_iter().filter(|file| !kept(file));
        files.for_each(|file| drop(std::fs::remove_file(file)));
    }

    /// Unties everything that was pinned here.
    pub fn clear(&self) {
        self.sweep(|_| false);
        drop(std::fs::remove_dir(&self.dir));
    }
}

/// Whether the file system is there.
fn is_bpf() -> bool {
    rustix::fs::statfs(MOUNT).is_ok_and(|fs| fs.f_type as u32 == MAGIC)
}
