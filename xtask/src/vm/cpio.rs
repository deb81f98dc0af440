//! The archive format the kernel unpacks at its start: `newc` of cpio
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// An archive being written. A path is taken once; directories above it are made as needed.
pub struct Archive<W: Write> {
    out: W,
    /// Bytes written so far, for padding to four.
    at: usize,
    inode: u32,
    paths: BTreeSet<PathBuf>,
}

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

impl Archive<BufWriter<File>> {
    /// Begins a file.
    pub fn create(path: &Path) -> io::Result<Archive<BufWriter<File>>> {
        Ok(Archive::new(BufWriter::new(File::create(path)?)))
    }
}

impl<W: Write> Archive<W> {
    /// Begins an archive.
    pub fn new(out: W) -> Archive<W> {
        Archive { out, at: 0, inode: 0, paths: BTreeSet::from([PathBuf::from("/")]) }
    }

    /// An empty directory.
    pub fn directory(&mut self, path: &Path) -> io::Result<()> {
        if self.claim(path)? { self.entry(path, DIRECTORY | 0o755, (0, 0), &[]) } else { Ok(()) }
    }

    /// A file of the machine under a path of the guest, following links.
    pub fn copy(&mut self, from: &Path, path: &Path) -> io::Result<()> {
        if !self.claim(path)? {
            return Ok(());
        }
        let named = |error| io::Error::other(format!("read {}: {error}", from.display()));
        let mode = fs::metadata(from).map_err(named)?.permissions().mode() & 0o777;
        let content = fs::read(from).map_err(named)?;
        self.entry(path, FILE | mode, (0, 0), &content)
    }

    /// A file with this content.
    pub fn file(&mut self, path: &Path, content: &[u8]) -> io::Result<()> {
        if self.claim(path)? { self.entry(path, FILE | 0o644, (0, 0), content) } else { Ok(()) }
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &Path, target: &Path) -> io::Result<()> {
        let target = target.to_string_lossy().into_owned();
        if self.claim(path)? { self.entry(path, LINK | 0o777, (0, 0), target.as_bytes()) } else { Ok(()) }
    }

    /// A character device.
    pub fn device(&mut self, path: &Path, number: (u32, u32)) -> io::Result<()> {
        if self.claim(path)? { self.entry(path, CHARACTER | 0o600, number, &[]) } else { Ok(()) }
    }

    /// Ends the archive.
    pub fn finish(mut self) -> io::Result<()> {
        self.entry(Path::new("/TRAILER!!!"), 0, (0, 0), &[])?;
        self.out.flush()
    }

    /// Whether the path is new; makes what is above it.
    fn claim(&mut self, path: &Path) -> io::Result<bool> {
        if !self.paths.insert(path.to_owned()) {
            return Ok(false);
        }
        if let Some(parent) = path.parent().filter(|parent| !self.paths.contains(*parent)) {
            self.directory(parent)?;
        }
        Ok(true)
    }

    fn entry(&mut self, path: &Path, mode: u32, device: (u32, u32), content: &[u8]) -> io::Result<()> {
        self.inode += 1;
        let name = path.to_string_lossy();
        let name = name.trim_start_matches('/');
        let links = if mode & 0o170_000 == DIRECTORY { 2 } else { 1 };
        let size = u32::try_from(content.len()).map_err(|_| io::Error::other("a file of 4 GiB"))?;
        let name_size = name.len() as u32 + 1;
        let mut header = String::from("070701");
        for field in [self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0] {
            header.push_str(&format!("{field:08x}"));
        }
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.pad()?;
        self.put(content)?;
        self.pad()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len();
        self.out.write_all(bytes)
    }

    fn pad(&mut self) -> io::Result<()> {
        self.put(&[0; 3][..(4 - self.at % 4) % 4])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_padded_and_directories_come_first() {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        archive.file(Path::new("/etc/a"), b"hello").unwrap();
        archive.file(Path::new("/etc/a"), b"again").unwrap();
        archive.link(Path::new("/b"), Path::new("etc/a")).unwrap();
        archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let names: Vec<&str> =
            text.split("070701").skip(1).map(|e| &e[104..e[104..].find('\0').unwrap() + 104]).collect();
        assert_eq!(names, ["etc", "etc/a", "b", "TRAILER!!!"]);
        assert!(text.contains("hello") && !text.contains("again"));
    }
}
