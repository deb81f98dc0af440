//! An empty file that waits to become a reservation.
//!
//! A new file is what costs most of an ADD on a disk where files come and go: ext4 gives out no inode that became
//! free a short while ago, and looks at each of those first (decision 0182). So DEL puts the file of its
//! address aside, emptied, and the next ADD writes into that. All of it under the store's lock.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The place of the file, which may be there or not.
pub struct Spare(PathBuf);

impl Spare {
    /// In the directory of an index.
    pub fn of(index: &Path) -> Spare {
        Spare(index.join("spare"))
    }

    /// Writes the file and gives it its name, which is taken by nobody. `None` if there is none to be used: one
    /// with content was not put aside to the end, one with a second name was given away but for that.
    ///
    /// # Errors
    /// The name is taken.
    pub fn give(&self, path: &Path, content: &[u8]) -> Option<io::Result<()>> {
        let mut file = File::options().write(true).open(&self.0).ok()?;
        let is_fit = file.metadata().is_ok_and(|meta| meta.is_file() && meta.nlink() == 1 && meta.len() == 0);
        let linked = match is_fit && file.write_all(content).is_ok() {
            true => fs::hard_link(&self.0, path),
            false => Err(ErrorKind::InvalidData.into()),
        };
        // What has content now is no spare file any more.
        let _ = fs::remove_file(&self.0);
        match linked {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => None,
            other => Some(other),
        }
    }

    /// Takes a file from its name, as the next spare one if that is possible.
    ///
    /// # Errors
    /// It is not there, or cannot be removed.
    pub fn keep(&self, path: &Path) -> io::Result<()> {
        if fs::rename(path, &self.0).is_err() {
            return fs::remove_file(path);
        }
        // A file that has both names keeps both: it was given away by a process that was killed before it took the
        // name here from it.
        match fs::remove_file(path) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        // Emptied here and not when it is used: the disk may lose power in between, and a reservation must
        // not name its last owner then.
        let emptied = File::options().write(true).open(&self.0).and_then(|file| file.set_len(0));
        emptied.or_else(|_| fs::remove_file(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_goes_round() {
        let dir = std::env::temp_dir().join(format!("loden-cni-spare-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (spare, path) = (Spare::of(&dir), dir.join("10.0.0.1"));
        assert!(spare.give(&path, b"x").is_none());
        assert!(spare.keep(&path).is_err());
        fs::write(&path, "a long owner").unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        spare.keep(&path).unwrap();
        assert!(!path.exists());
        spare.give(&path, b"b").unwrap().unwrap();
        assert_eq!(
            (fs::read(&path).unwrap().as_slice(), fs::metadata(&path).unwrap().ino()),
            (&b"b"[..], inode)
        );
        assert!(!spare.0.exists());
        // What a killed process left: a name given and not taken from here, and a file not emptied.
        fs::hard_link(&path, &spare.0).unwrap();
        assert!(spare.give(&dir.join("10.0.0.2"), b"c").is_none());
        assert_eq!(fs::read(&path).unwrap(), b"b");
        fs::write(&spare.0, "old").unwrap();
        assert!(spare.give(&dir.join("10.0.0.2"), b"c").is_none() && !spare.0.exists());
        // The address such a process reserved is released like any other.
        let both = dir.join("10.0.0.3");
        fs::write(&both, "owner").unwrap();
        fs::hard_link(&both, &spare.0).unwrap();
        spare.keep(&both).unwrap();
        assert!(!both.exists());
        assert_eq!(fs::metadata(&spare.0).unwrap().len(), 0);
        // A name that is taken stays as it is.
        fs::write(&spare.0, "").unwrap();
        let taken = spare.give(&path, b"d").unwrap().unwrap_err();
        assert_eq!((taken.kind(), fs::read(&path).unwrap()), (ErrorKind::AlreadyExists, b"b".to_vec()));
        fs::remove_dir_all(dir).unwrap();
    }
}
