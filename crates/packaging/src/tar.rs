//! Tar archives (POSIX.1-2001, ustar), the same bytes for the same content: owner 0, no times but the one
//! given, entries in the order they are added.

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// A directory.
    Dir,
    /// A file that may be run or not.
    File {
        /// Its content.
        content: &'a [u8],
        /// Mode 0755, otherwise 0644.
        executable: bool,
    },
    /// A symbolic link to this path.
    Link(&'a str),
}

/// An archive under construction.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    seconds: u64,
}

const BLOCK: usize = 512;

impl Archive {
    /// All entries get this time, in seconds since 1970.
    pub fn new(seconds: u64) -> Archive {
        Archive { bytes: Vec::new(), seconds }
    }

    /// Adds an entry; the path is relative, of at most 100 bytes.
    ///
    /// # Errors
    /// The path or the target of the link is too long.
    pub fn add(&mut self, path: &str, entry: &Entry<'_>) -> crate::Result<()> {
        let (kind, mode, content, target): (u8, u32, &[u8], &str) = match entry {
            Entry::Dir => (b'5', 0o755, &[], ""),
            Entry::File { content, executable } => {
                (b'0', if *executable { 0o755 } else { 0o644 }, content, "")
            }
            Entry::Link(target) => (b'2', 0o777, &[], target),
        };
        if path.len() > 100 || target.len() > 100 {
            return Err(format!("tar: {path} is longer than the 100 bytes a name may have").into());
        }
        let mut header = [0_u8; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, path.as_bytes());
        put(100, format!("{mode:07o}\0").as_bytes());
        put(108, b"0000000\x000000000\0");
        put(124, format!("{:011o}\0{:011o}\0        ", content.len(), self.seconds).as_bytes());
        put(156, &[kind]);
        put(157, target.as_bytes());
        put(257, b"ustar\x0000");
        put(329, b"0000000\x000000000\0");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        Ok(())
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }
}
