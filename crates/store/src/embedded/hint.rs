//! Tells when somebody has written to the file, by inotify on its folder. Only a hint: where inotify is
//! not to be had, or misses something, the slow poll still sees it.

use std::ffi::OsString;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};
use tokio::io::unix::AsyncFd;

/// What was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touched {
    /// The file or a companion of it.
    File,
    /// The folder itself, which may be another one now: watch anew.
    Folder,
}

/// A watch on the folder of one file.
pub(super) struct Hint {
    events: AsyncFd<OwnedFd>,
    /// Name of the file; its write-ahead log and its lock file begin with it.
    name: OsString,
}

impl Hint {
    /// `None` if the kernel has no inotify left for us.
    pub(super) fn new(file: &Path) -> Option<Hint> {
        // SQLite follows links, and writes its log beside the file itself.
        let file = &file.canonicalize().unwrap_or_else(|_| file.to_owned());
        let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = file.file_name()?.to_owned();
        let events = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).ok()?;
        let writes = WatchFlags::MODIFY | WatchFlags::ATTRIB;
        let names = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM;
        let itself = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR;
        add_watch(&events, folder, writes | names | itself).ok()?;
        #[expect(
            deprecated,
            reason = "sound for an OwnedFd, whose number never changes; the successor is unsafe"
        )]
        let events = AsyncFd::new(events).ok()?;
        Some(Hint { events, name })
    }

    /// Waits until the file, or one of its companions, was touched.
    pub(super) async fn touched(&self) -> Touched {
        loop {
            let Ok(mut ready) = self.events.readable().await else {
                // The descriptor is of no use any more; the poll goes on.
                return std::future::pending().await;
            };
            if let Some(touched) = self.drain() {
                return touched;
            }
            ready.clear_ready();
        }
    }

    /// Reads all that has happened; what of it was about our file.
    fn drain(&self) -> Option<Touched> {
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(self.events.get_ref(), &mut space);
        let mut touched = None;
        while let Ok(event) = reader.next() {
            match event.file_name() {
                // Also when the queue has overflowed.
                None => touched = Some(Touched::Folder),
                Some(name) if name.to_bytes().starts_with(self.name.as_encoded_bytes()) => {
                    touched = touched.or(Some(Touched::File));
                }
                Some(_) => {}
            }
        }
        touched
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_folder_is_that_of_the_file_itself_and_says_when_it_goes() {
        let place = tempfile::tempdir().expect("a folder");
        let [real, link] = ["real", "link"].map(|name| place.path().join(name));
        fs::create_dir(&real).expect("a folder");
        fs::write(real.join("leases.db"), "a").expect("a file");
        std::os::unix::fs::symlink(real.join("leases.db"), &link).expect("a link");
        let hint = Hint::new(&link).expect("inotify");
        let told = async || tokio::time::timeout(Duration::from_secs(60), hint.touched()).await.ok();
        fs::write(real.join("leases.db-wal"), "b").expect("a file");
        assert_eq!(told().await, Some(Touched::File));
        fs::rename(&real, place.path().join("away")).expect("a folder");
        assert_eq!(told().await, Some(Touched::Folder));
    }
}
