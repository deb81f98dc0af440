//! Tells when somebody has written to the file, by inotify on its folder. Only a hint: where inotify is
//! not to be had, or misses something, the slow poll still sees it.

use std::ffi::OsString;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};
use tokio::io::unix::AsyncFd;

/// A watch on the folder of one file.
pub(super) struct Hint {
    events: AsyncFd<OwnedFd>,
    /// Name of the file; its write-ahead log and its lock file begin with it.
    name: OsString,
}

impl Hint {
    /// `None` if the kernel has no inotify left for us.
    pub(super) fn new(file: &Path) -> Option<Hint> {
        let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = file.file_name()?.to_owned();
        let events = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).ok()?;
        let writes = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE;
        add_watch(&events, folder, writes | WatchFlags::ONLYDIR).ok()?;
        #[expect(
            deprecated,
            reason = "sound for an OwnedFd, whose number never changes; the successor is unsafe"
        )]
        let events = AsyncFd::new(events).ok()?;
        Some(Hint { events, name })
    }

    /// Waits until the file, or one of its companions, was touched.
    pub(super) async fn touched(&self) {
        loop {
            let Ok(mut ready) = self.events.readable().await else {
                // The descriptor is of no use any more; the poll goes on.
                return std::future::pending().await;
            };
            if self.drain() {
                return;
            }
            ready.clear_ready();
        }
    }

    /// Reads all that has happened; whether any of it was about our file.
    fn drain(&self) -> bool {
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(self.events.get_ref(), &mut space);
        let mut ours = false;
        while let Ok(event) = reader.next() {
            // Without a name it is about the folder, or the queue has overflowed.
            ours |= event.file_name().is_none_or(|n| n.to_bytes().starts_with(self.name.as_encoded_bytes()));
        }
        ours
    }
}
