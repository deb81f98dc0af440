//! An archive that `loden dump` made, read on any machine.

use std::collections::BTreeMap;
use std::io::Read as _;

use super::{DIR, MANIFEST, TITLE, VERSION};
use crate::archive;
use crate::doctor::{self, Facts};
use crate::status::{self, Status};

/// What is in it.
#[derive(Debug)]
pub struct Dump {
    /// Its path, for messages.
    path: String,
    /// When, where and by which version it was made.
    pub made: String,
    files: BTreeMap<String, Vec<u8>>,
}

impl Dump {
    /// Reads a file; `-` is standard input.
    ///
    /// # Errors
    /// One sentence: it cannot be read, or is not what `loden dump` makes.
    pub fn open(path: &str) -> Result<Dump, String> {
        let mut bytes = Vec::new();
        let read = if path == "-" {
            std::io::stdin().lock().read_to_end(&mut bytes)
        } else {
            std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes))
        };
        read.map_err(|error| format!("read {path}: {error}"))?;
        Dump::read(path, &bytes)
    }

    fn read(path: &str, bytes: &[u8]) -> Result<Dump, String> {
        let entries = archive::read(bytes).map_err(|problem| format!("{path} {problem}"))?;
        // Whoever packed it again may have written `./loden-dump/…`.
        let name = |name: &str| {
            let name = name.trim_start_matches("./");
            name.strip_prefix(DIR).map_or(name, |rest| rest.trim_start_matches('/')).to_owned()
        };
        let files: BTreeMap<String, Vec<u8>> =
            entries.into_iter().map(|entry| (name(&entry.name), entry.bytes)).collect();
        let foreign = || format!("{path} is a tar archive, and not one of `loden dump`");
        let manifest = String::from_utf8_lossy(files.get(MANIFEST).ok_or_else(foreign)?).into_owned();
        let mut lines = manifest.lines();
        let version = lines.next().and_then(|line| line.strip_prefix(TITLE)?.trim().parse::<u32>().ok());
        match version.filter(|version| *version > 0) {
            None => return Err(foreign()),
            Some(version) if version > VERSION => {
                return Err(format!(
                    "{path} is of a later Loden: layout {version}, and {VERSION} is known here"
                ));
            }
            Some(_) => {}
        }
        let made = lines.find_map(|line| line.strip_prefix("made ")).unwrap_or("at an unknown time");
        Ok(Dump { path: path.to_owned(), made: made.to_owned(), files })
    }

    /// What `loden status` was told.
    ///
    /// # Errors
    /// One sentence.
    pub fn status(&self) -> Result<Status, String> {
        self.part("status.json", status::json::read)
    }

    /// What `loden doctor` looked at.
    ///
    /// # Errors
    /// One sentence.
    pub fn facts(&self) -> Result<Facts, String> {
        let facts = self.part("facts.json", doctor::json::read)?;
        Ok(Facts { agent: self.status().ok(), ..facts })
    }

    fn part<T>(&self, name: &str, read: fn(&[u8]) -> Result<T, String>) -> Result<T, String> {
        let bytes = self.files.get(name).ok_or_else(|| format!("{} has no {name}", self.path))?;
        read(bytes).map_err(|problem| format!("{name} in {} is {problem}", self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::Entry;

    fn read(files: &[(&str, &str)]) -> Result<Dump, String> {
        let entry =
            |(name, text): &(&str, &str)| Entry { name: (*name).to_owned(), bytes: text.as_bytes().to_vec() };
        Dump::read("x.tar", &archive::write(&files.iter().map(entry).collect::<Vec<_>>(), 0))
    }

    #[test]
    fn other_archives_are_told_from_ours() {
        let foreign = "x.tar is a tar archive, and not one of `loden dump`";
        for (files, want) in [
            (&[("README", "hello")][..], foreign),
            (&[("loden-dump/MANIFEST", "hello")], foreign),
            (&[("MANIFEST", "")], foreign),
            (&[("MANIFEST", "loden-dump 0\n")], foreign),
            (
                &[("loden-dump/MANIFEST", "loden-dump 2\n")],
                "x.tar is of a later Loden: layout 2, and 1 is known here",
            ),
        ] {
            assert_eq!(read(files).unwrap_err(), want);
        }
        assert_eq!(Dump::read("x", b"hello").unwrap_err(), "x is no tar archive");
        assert!(Dump::open("/nonexistent/x.tar").unwrap_err().starts_with("read /nonexistent/x.tar: "));
    }

    #[test]
    fn parts_are_read_or_told() {
        let manifest = ("./loden-dump/MANIFEST", "loden-dump 1\nmade then\n");
        let bare = read(&[manifest]).unwrap();
        assert_eq!(bare.made, "then");
        assert_eq!(bare.status().unwrap_err(), "x.tar has no status.json");
        let bad = read(&[manifest, ("loden-dump/status.json", "{}")]).unwrap();
        assert_eq!(bad.status().unwrap_err(), "status.json in x.tar is not a status");
        assert_eq!(bad.facts().unwrap_err(), "x.tar has no facts.json");
        let status = status::json::write(&Status { ready: true, ..Status::default() }).to_indented();
        let good = read(&[manifest, ("loden-dump/status.json", &status)]).unwrap();
        assert!(good.status().unwrap().ready);
    }
}
