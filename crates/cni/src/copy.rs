//! `cp` and `install-conf`: what the init containers of flannel's manifests run, in images that hold
//! nothing but our programs (decision 0095).
//!
//! Both write a new file beside the old one and rename it (F-160): a runtime that executes a plugin or
//! reads a configuration meanwhile sees the old or the new file, whole, and no "text file busy".

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::install::place;

/// A program of this file: its name and what it does with its arguments.
pub type Tool = fn(&[&str]) -> Result<(), String>;

/// The program of that name.
pub fn by_name(name: &str) -> Option<Tool> {
    match name {
        "cp" => Some(cp),
        "install-conf" => Some(install_conf),
        _ => None,
    }
}

/// `cp [-f] [--] SOURCE DEST`, one regular file; a directory as DEST gets a file of the source's name.
///
/// # Errors
/// Other arguments; a file that cannot be read or written.
pub fn cp(words: &[&str]) -> Result<(), String> {
    let mut files = Vec::new();
    let mut options = true;
    for word in words {
        match *word {
            "--" if options => options = false,
            "-f" | "--force" if options => {}
            option if options && option.starts_with('-') && option.len() > 1 => {
                return Err(format!(
                    "cp: {option} is not an option of this cp, which copies one file into place: write cp -f SOURCE DEST"
                ));
            }
            file => files.push(file),
        }
    }
    let [source, dest] = files[..] else {
        return Err(format!("cp: {} file names given, two are needed: write cp -f SOURCE DEST", files.len()));
    };
    let mut dest = PathBuf::from(dest);
    if dest.is_dir() {
        let name = Path::new(source).file_name();
        dest.push(name.ok_or_else(|| format!("cp: {source:?} has no file name: name a regular file"))?);
    }
    copy(Path::new(source), &dest).map_err(|error| format!("cp: {error}"))
}

/// `install-conf SOURCE DEST` (flannel.md 10.4).
///
/// # Errors
/// As [`cp`].
pub fn install_conf(words: &[&str]) -> Result<(), String> {
    let [source, dest] = words[..] else {
        return Err(format!("usage: install-conf SOURCE DEST ({} arguments given)", words.len()));
    };
    copy(Path::new(source), Path::new(dest)).map_err(|error| format!("install-conf: {error}"))
}

/// Puts a copy of `source`, with its permissions, in the place of `dest`. Links are followed in `source`
/// (files of a ConfigMap are links) and replaced in `dest`.
fn copy(source: &Path, dest: &Path) -> Result<(), String> {
    let unreadable = |error: io::Error| format!("read {}: {error}", source.display());
    let meta = fs::metadata(source).map_err(|error| {
        let way_out =
            if error.kind() == io::ErrorKind::NotFound { "; mount the volume that holds it" } else { "" };
        format!("read {}: {error}{way_out}", source.display())
    })?;
    if !meta.is_file() {
        return Err(format!("read {}: it is not a regular file; name one", source.display()));
    }
    let mut from = File::open(source).map_err(unreadable)?;
    let dir = dest.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    place(dir, dest, |temporary| {
        let mut to = File::create_new(temporary)?;
        io::copy(&mut from, &mut to)?;
        to.set_permissions(fs::Permissions::from_mode(meta.permissions().mode() & 0o7777))?;
        to.sync_all()
    })
    .and_then(|()| File::open(dir)?.sync_all())
    .map_err(|error| {
        let way_out = match error.kind() {
            io::ErrorKind::NotFound => "; make the directory, or mount it",
            io::ErrorKind::ReadOnlyFilesystem => "; mount the directory for writing",
            io::ErrorKind::IsADirectory => "; name a file",
            io::ErrorKind::StorageFull => "; free space there",
            _ => "",
        };
        format!("write {}: {error}{way_out}", dest.display())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use super::*;

    /// Arguments, and the sentence or none.
    #[test]
    fn arguments_are_few_and_refusals_say_what_to_write() {
        let dir = std::env::temp_dir().join(format!("loden-copy-{}", std::process::id()));
        fs::create_dir_all(dir.join("sub")).unwrap();
        let file = dir.join("a");
        fs::write(&file, "content").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o750)).unwrap();
        let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
        let (a, b, sub, none) = (path("a"), path("b"), path("sub"), path("none"));
        let long = path("none/b");
        let cases: &[(Tool, &[&str], &str)] = &[
            (cp, &["-f", &a, &b], ""),
            (cp, &[&a, &b], ""),
            (cp, &["--force", "--", &a, &sub], ""),
            (install_conf, &[&a, &b], ""),
            (cp, &["-r", &a, &b], "-r is not an option"),
            (cp, &["-f", &a], "1 file names given"),
            (cp, &[&a, &a, &b], "3 file names given"),
            (cp, &["-f", &none, &b], "No such file or directory (os error 2); mount the volume"),
            (cp, &["-f", &sub, &b], "not a regular file"),
            (cp, &["-f", &a, &long], "make the directory"),
            (install_conf, &["-f", &a, &b], "usage: install-conf SOURCE DEST (3 arguments given)"),
            (install_conf, &[&a, &sub], "os error 21"),
        ];
        for (tool, words, expected) in cases {
            let done = tool(words);
            match done {
                Ok(()) => assert_eq!(*expected, "", "{words:?}"),
                Err(error) => assert!(!expected.is_empty() && error.contains(expected), "{words:?}: {error}"),
            }
        }
        for made in [&b, &path("sub/a")] {
            assert_eq!(fs::read_to_string(made).unwrap(), "content");
            assert_eq!(fs::metadata(made).unwrap().permissions().mode() & 0o7777, 0o750);
        }
        let left: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left.len(), 3, "temporary files stay: {left:?}");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_link_at_the_destination_is_replaced_not_written_through() {
        let dir = std::env::temp_dir().join(format!("loden-copy-link-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (source, program, link) = (dir.join("new"), dir.join("loden-cni"), dir.join("flannel"));
        fs::write(&source, "new").unwrap();
        fs::write(&program, "old").unwrap();
        std::os::unix::fs::symlink("loden-cni", &link).unwrap();
        cp(&["-f", source.to_str().unwrap(), link.to_str().unwrap()]).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_file());
        assert_eq!(
            (fs::read_to_string(&link).unwrap(), fs::read_to_string(&program).unwrap()),
            ("new".into(), "old".into())
        );
        fs::remove_dir_all(&dir).unwrap();
    }
}
