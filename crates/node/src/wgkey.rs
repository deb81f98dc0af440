//! This node's WireGuard key (flannel.md 6.5): read from its file, or made. Peers know the node by it, so it is
//! kept with care: a file that was lost is written again with the same key, and a copy on the disk outlives a
//! reboot, which the file in `/run` does not (F-105, decision 0147).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aws_lc_rs::agreement::{PrivateKey, X25519};
use model::wireguard::{PublicKey, Secret};
use sha2::{Digest as _, Sha256};

use crate::{last_good, outputs};

/// Where the key is unless `WIREGUARD_KEY_FILE` says otherwise.
const FILE: &str = "/run/flannel/wgkey";
/// How the names of copies begin.
pub const COPY: &str = "wgkey-";

/// Where the key is.
pub fn file() -> PathBuf {
    said().unwrap_or_else(|| FILE.into())
}

fn said() -> Option<PathBuf> {
    std::env::var_os("WIREGUARD_KEY_FILE").filter(|file| !file.is_empty()).map(PathBuf::from)
}

/// The key and its places.
pub struct Keeper {
    file: PathBuf,
    copy: Option<PathBuf>,
    known: Option<Secret>,
    copied: bool,
}

impl Keeper {
    /// The places by the environment. A copy belongs to one machine, so that a disk cloned to another does not
    /// bring the key along; an operator who names the file keeps it himself.
    pub fn new(machine_id: &str) -> Keeper {
        let digest = Sha256::digest(machine_id.as_bytes());
        let name: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        let copy = last_good::dir().join(format!("{COPY}{name}"));
        let copy = (said().is_none() && !machine_id.is_empty()).then_some(copy);
        Keeper { file: file(), copy, known: None, copied: false }
    }

    /// The file the key is in.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The key as it is in its file now, and the public one that belongs to it.
    ///
    /// # Errors
    /// One sentence: the file holds no key, cannot be read, or cannot be made.
    pub fn get(&mut self) -> Result<(Secret, PublicKey), String> {
        let key = match read(&self.file)? {
            Some(key) => key,
            None => {
                // A copy that is none is no reason to stop, as the file itself is.
                let copy = || self.copy.as_deref().and_then(|copy| read(copy).ok().flatten());
                let key = self.known.or_else(copy).map_or_else(generate, Ok)?;
                outputs::replace_secret(&self.file, key.expose_text().as_bytes()).map_err(|error| {
                    format!(
                        "write the WireGuard key to {}: {error}; make the directory writable, or name another file with \
                         WIREGUARD_KEY_FILE",
                        self.file.display()
                    )
                })?;
                key
            }
        };
        if self.known != Some(key) {
            self.known = Some(key);
            self.copied = false;
        }
        self.save(key);
        Ok((key, public(key)?))
    }

    /// Tried once for each key: without a copy everything works until the next reboot.
    fn save(&mut self, key: Secret) {
        let Some(copy) = self.copy.as_deref().filter(|_| !self.copied) else { return };
        self.copied = true;
        if read(copy).is_ok_and(|there| there == Some(key)) {
            return;
        }
        if let Err(error) = outputs::replace_secret(copy, key.expose_text().as_bytes()) {
            tracing::warn!(
                "keep a copy of the WireGuard key in {}: {error}; after a reboot this node has a new key, which all \
                 others must learn",
                copy.display()
            );
        }
    }
}

/// The key in a file; `None` if there is no file.
fn read(path: &Path) -> Result<Option<Secret>, String> {
    let shown = path.display();
    match fs::read(path) {
        Ok(text) => {
            let key: Secret = String::from_utf8_lossy(&text).parse().map_err(|error| {
                format!("the content of {shown} {error}; delete the file, and a new key is made")
            })?;
            Ok(Some(clamped(*key.expose())))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("read the WireGuard key from {shown}: {error}")),
    }
}

/// As the kernel stores it (RFC 7748 §5), so that what is read back is equal.
fn clamped(mut bytes: [u8; 32]) -> Secret {
    bytes[0] &= 248;
    bytes[31] = bytes[31] & 127 | 64;
    Secret::new(bytes)
}

fn generate() -> Result<Secret, String> {
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| "make a WireGuard key: no random numbers")?;
    Ok(clamped(bytes))
}

/// The public key of a private one.
pub fn public(key: Secret) -> Result<PublicKey, String> {
    let refused = |_| "compute the public WireGuard key: the private one is refused".to_owned();
    let private = PrivateKey::from_private_key(&X25519, key.expose()).map_err(refused)?;
    let public = private.compute_public_key().map_err(|_| "compute the public WireGuard key".to_owned())?;
    let bytes = public.as_ref().try_into().map_err(|_| "compute the public WireGuard key".to_owned())?;
    Ok(PublicKey(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};

    fn keeper(dir: &Path) -> Keeper {
        Keeper {
            file: dir.join("run/flannel/wgkey"),
            copy: Some(dir.join("lib/wgkey-x")),
            known: None,
            copied: false,
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_key_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = keeper(dir.path());
        let (key, public) = first.get().unwrap();
        let file = dir.path().join("run/flannel/wgkey");
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!((text.len(), text.parse::<Secret>()), (44, Ok(key)), "no newline");
        assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o400, 0o755));
        assert_eq!(mode(&dir.path().join("lib/wgkey-x")), 0o400);
        // Another process, a lost file, a reboot.
        assert_eq!(keeper(dir.path()).get(), Ok((key, public)));
        fs::remove_dir_all(dir.path().join("lib")).unwrap();
        fs::remove_file(&file).unwrap();
        assert_eq!(first.get(), Ok((key, public)));
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
        assert_eq!(keeper(dir.path()).get(), Ok((key, public)), "and saved again");
        fs::remove_dir_all(dir.path().join("run")).unwrap();
        assert_eq!(keeper(dir.path()).get(), Ok((key, public)));
    }

    #[test]
    fn a_key_of_flannel_or_wg_is_taken_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let mut keeper = keeper(dir.path());
        keeper.get().unwrap();
        // `wg genkey`, `wg pubkey`
        const KEY: &str = "qKYFdHq1kV8jW4wlJ3bBg3sKvd4JLyC8CNN0BtkV8lM=";
        const PUBLIC: &str = "XI3b1Ut4LSvEQOHeVXgyE6yw1u1zCJqjXz/+zYhHEh4=";
        outputs::replace_secret(&keeper.file, format!("{KEY}\r\n").as_bytes()).unwrap();
        let (key, public) = keeper.get().unwrap();
        assert_eq!((key.expose_text().as_str(), public.to_string().as_str()), (KEY, PUBLIC));
        assert_eq!(fs::read_to_string(dir.path().join("lib/wgkey-x")).unwrap(), KEY, "the copy follows");
        assert_eq!(fs::read_to_string(&keeper.file).unwrap(), format!("{KEY}\r\n"), "the file stays");
    }

    #[test]
    fn what_is_no_key_is_named_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let mut keeper = keeper(dir.path());
        let (key, _) = keeper.get().unwrap();
        for content in ["", "geheim", "qKYFdHq1kV8jW4wlJ3bBg3sKvd4JLyC8CNN0BtkV8l=="] {
            outputs::replace_secret(&keeper.file, content.as_bytes()).unwrap();
            let said = keeper.get().unwrap_err();
            assert!(
                said.contains("wgkey is not a WireGuard key") && said.contains("delete the file"),
                "{said}"
            );
            assert!(content.is_empty() || !said.contains(content), "{said}");
        }
        fs::remove_file(&keeper.file).unwrap();
        assert_eq!(keeper.get().unwrap().0, key, "the advice helps");
        // A broken copy is no obstacle, nor is a place that cannot be written, but for the file itself.
        fs::remove_file(&keeper.file).unwrap();
        fs::remove_file(dir.path().join("lib/wgkey-x")).unwrap();
        let options = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).clone();
        drop(options.open(dir.path().join("lib/wgkey-x")).unwrap());
        let mut fresh = super::tests::keeper(dir.path());
        assert_ne!(fresh.get().unwrap().0, key);
        fs::remove_dir_all(dir.path().join("run")).unwrap();
        fs::write(dir.path().join("run"), "").unwrap();
        let said = super::tests::keeper(dir.path()).get().unwrap_err();
        assert!(said.contains("WireGuard key") && said.contains("wgkey: "), "{said}");
    }
}
