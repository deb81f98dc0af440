//! A tar archive of texts: written as ustar (POSIX.1-2017, pax, "ustar Interchange Format"), read from whatever tar
//! packed it. Pure: bytes in, values out.

/// A block; everything in an archive is padded to it.
const BLOCK: usize = 512;
/// What a reader takes at the most, in bytes.
const MOST: usize = 512 << 20;

/// A file in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its path.
    pub name: String,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// The archive; all files have this time (seconds since 1970) and belong to root alone.
pub fn write(entries: &[Entry], time: u64) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        out.extend(header(&entry.name, entry.bytes.len(), time));
        out.extend(&entry.bytes);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    out.resize(out.len() + 2 * BLOCK, 0);
    out
}

fn header(name: &str, length: usize, time: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let (prefix, name) = split(name);
    let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, &name);
    put(100, "0000600\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{length:011o}\0"));
    put(136, &format!("{time:011o}\0"));
    put(156, "0");
    put(257, "ustar\x0000");
    put(265, "root\0");
    put(297, "root\0");
    put(345, &prefix);
    let sum = checksum(&block);
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// A path as prefix and name of a header. What fits into neither is cut.
fn split(name: &str) -> (String, String) {
    if name.len() <= 100 {
        return (String::new(), name.to_owned());
    }
    let (dir, base) = name.rsplit_once('/').unwrap_or(("", name));
    (cut(dir, 155), cut(base, 100))
}

fn cut(text: &str, most: usize) -> String {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// The sum of all bytes, those of the sum itself taken for blanks.
fn checksum(block: &[u8]) -> u32 {
    let byte = |(at, byte): (usize, &u8)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) };
    block.iter().enumerate().map(byte).sum()
}

/// The files of an archive, in order.
///
/// # Errors
/// Half a sentence about the archive: it is none, it is compressed, it ends early.
pub fn read(bytes: &[u8]) -> Result<Vec<Entry>, String> {
    match bytes {
        [] => return Err("is empty".to_owned()),
        [0x1f, 0x8b, ..] => return Err("is compressed: unpack it with gunzip first".to_owned()),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => return Err("is compressed: unpack it with unzstd first".to_owned()),
        _ if bytes.len() > MOST => return Err(format!("is longer than {} MiB", MOST >> 20)),
        _ => {}
    }
    let (mut entries, mut rest) = (Vec::new(), bytes);
    loop {
        let Some((block, after)) = rest.split_at_checked(BLOCK) else {
            return Err(match entries.is_empty() {
                true => "is no tar archive".to_owned(),
                false => "ends early: it was cut, fetch it again".to_owned(),
            });
        };
        if block.iter().all(|byte| *byte == 0) {
            return if entries.is_empty() { Err("is no tar archive".to_owned()) } else { Ok(entries) };
        }
        if octal(&block[148..156]) != Some(checksum(block) as usize) {
            return Err(match entries.is_empty() {
                true => "is no tar archive".to_owned(),
                false => "is damaged: the header of a file in it has a wrong checksum".to_owned(),
            });
        }
        let length = octal(&block[124..136]).filter(|length| *length <= MOST);
        let length = length.ok_or("is damaged: a file in it has no length")?;
        if after.len() < length.next_multiple_of(BLOCK) {
            return Err("ends early: it was cut, fetch it again".to_owned());
        }
        // Directories, and records about the next file that some programs write.
        if matches!(block[156], b'0' | 0) {
            entries.push(Entry { name: name(block), bytes: after[..length].to_vec() });
        }
        rest = &after[length.next_multiple_of(BLOCK)..];
    }
}

fn name(block: &[u8]) -> String {
    let text = |field: &[u8]| {
        let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
        String::from_utf8_lossy(&field[..end]).into_owned()
    };
    let (name, prefix) = (text(&block[..100]), text(&block[345..500]));
    // GNU's format, "ustar  ", has times where the prefix is.
    if prefix.is_empty() || &block[257..263] != b"ustar\0" { name } else { format!("{prefix}/{name}") }
}

fn octal(field: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(field).ok()?.trim_matches(|c: char| c == '\0' || c.is_ascii_whitespace());
    usize::from_str_radix(text, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, text: &str) -> Entry {
        Entry { name: name.to_owned(), bytes: text.as_bytes().to_vec() }
    }

    #[test]
    fn what_is_written_is_read() {
        let long = format!("loden-dump/cni/{}", "x".repeat(99));
        let all =
            [entry("a", "hello"), entry("d/empty", ""), entry(&long, &"y".repeat(1024)), entry("z", "\0")];
        assert_eq!(read(&write(&all, 1_800_000_000)).as_deref(), Ok(&all[..]));
    }

    #[test]
    fn names_that_do_not_fit_are_cut() {
        let name = format!("{}/{}", "d".repeat(200), "é".repeat(60));
        let read = read(&write(&[entry(&name, "")], 0)).unwrap();
        assert_eq!(read[0].name, format!("{}/{}", "d".repeat(155), "é".repeat(50)));
    }

    #[test]
    fn what_is_none_is_told() {
        let good = write(&[entry("a", "hello"), entry("b", &"x".repeat(600))], 0);
        for (bytes, want) in [
            (&b""[..], "is empty"),
            (&b"hello"[..], "is no tar archive"),
            (&[7; 2048][..], "is no tar archive"),
            (&[0; 2048][..], "is no tar archive"),
            (b"\x1f\x8b\x08\x00", "is compressed: unpack it with gunzip first"),
            (&good[..1024], "ends early: it was cut, fetch it again"),
            (&good[..1600], "ends early: it was cut, fetch it again"),
            (&good[..good.len() - 1024], "ends early: it was cut, fetch it again"),
        ] {
            assert_eq!(read(bytes), Err(want.to_owned()), "{} bytes", bytes.len());
        }
        let mut bad = good.clone();
        bad[1030] ^= 1;
        assert_eq!(read(&bad).unwrap_err(), "is damaged: the header of a file in it has a wrong checksum");
        // Whatever is changed or missing, it does not panic.
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] = 0xff;
            let _ = read(&bad);
            let _ = read(&good[..at]);
        }
    }
}
