//! Kernels for the guests: Debian's packages, unpacked below `target/vm` and never installed, since that would build this
//! machine an initramfs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{backports, output};

/// Where a kernel comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// This machine's own release of Debian.
    Own,
    /// The backports of that release: years newer, and with conntrack as a module.
    Backports,
}

/// A kernel image and its modules.
pub struct Kernel {
    /// What `uname -r` will say.
    pub version: String,
    pub image: PathBuf,
    /// `lib/modules/VERSION`
    pub modules: PathBuf,
}

/// A release's kernel; an error is the reason why there is no guest with it here.
pub fn get(root: &Path, release: Release) -> Result<Kernel, String> {
    if !cfg!(target_arch = "x86_64") {
        return Err("the guest is x86-64, this machine is not".to_owned());
    }
    if output("qemu-system-x86_64", &["--version"]).is_err() {
        return Err("no qemu on this machine (Debian: qemu-system-x86)".to_owned());
    }
    let dir = match release {
        Release::Own => root.join("target/vm"),
        Release::Backports => root.join("target/vm/backports"),
    };
    fs::create_dir_all(&dir).map_err(|error| format!("make {}: {error}", dir.display()))?;
    if let Some(kernel) = unpacked(&dir) {
        return suits(kernel, release);
    }
    let (apt, trouble) = match release {
        Release::Own => (Vec::new(), "run: apt-get update".to_owned()),
        Release::Backports => backports::lists(&dir)?,
    };
    let depends = output("apt-cache", &words(&apt, &["depends", "linux-image-cloud-amd64"]));
    let package = depends.ok().and_then(|text| {
        let package =
            text.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-").map(str::trim))?;
        Some(format!("linux-image-{package}"))
    });
    let package =
        package.ok_or_else(|| format!("Debian's linux-image-cloud-amd64 is not to be had; {trouble}"))?;
    let mut download = Command::new("apt-get");
    download.args(words(&apt, &["download", "-qq", &package])).current_dir(&dir);
    if !download.status().is_ok_and(|status| status.success()) {
        return Err(format!("apt-get download {package} failed"));
    }
    unpack(&dir)?;
    suits(unpacked(&dir).ok_or_else(|| format!("{package} holds no kernel"))?, release)
}

fn words<'a>(options: &'a [String], words: &[&'a str]) -> Vec<&'a str> {
    options.iter().map(String::as_str).chain(words.iter().copied()).collect()
}

/// Unpacks the packages of a directory into its `kernel`, which is there when all is.
fn unpack(dir: &Path) -> Result<(), String> {
    let fail = |error: std::io::Error| format!("unpack in {}: {error}", dir.display());
    let new = dir.join("kernel.new");
    let _ = fs::remove_dir_all(&new);
    for entry in fs::read_dir(dir).map_err(fail)?.filter_map(Result::ok) {
        let path = entry.path();
        if path.extension().is_some_and(|e| e == "deb") {
            output("dpkg-deb", &["-x", &path.display().to_string(), &new.display().to_string()])?;
            fs::remove_file(path).map_err(fail)?;
        }
    }
    // The kernel could do that, too, but who reads what modules need cannot.
    let new = new.display().to_string();
    output("find", &[&new, "-name", "*.ko.xz", "-exec", "xz", "--decompress", "{}", "+"])?;
    fs::rename(&new, dir.join("kernel")).map_err(fail)
}

fn unpacked(dir: &Path) -> Option<Kernel> {
    let boot = fs::read_dir(dir.join("kernel/boot")).ok()?;
    let image = boot
        .filter_map(Result::ok)
        .map(|e| e.path())
        .find(|p| p.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))?;
    let version = image.file_name()?.to_string_lossy().strip_prefix("vmlinuz-")?.to_owned();
    let modules = ["lib/modules", "usr/lib/modules"].map(|p| dir.join("kernel").join(p).join(&version));
    let modules = modules.into_iter().find(|path| path.is_dir())?;
    Some(Kernel { version, image, modules })
}

/// The kernel, if it shows what it is there for.
fn suits(kernel: Kernel, release: Release) -> Result<Kernel, String> {
    if release == Release::Own {
        return Ok(kernel);
    }
    if !has_tcx(&kernel.version) {
        return Err(format!("{} is older than the fast path, which begins with 6.6", kernel.version));
    }
    let (_, missing) = super::modules::closure(&kernel.modules, &["nf_conntrack"])?;
    if !missing.is_empty() {
        return Err(format!("{} has conntrack built in, as this kernel may", kernel.version));
    }
    Ok(kernel)
}

fn has_tcx(version: &str) -> bool {
    let mut numbers = version.split(['.', '-', '+']).map_while(|word| word.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(6))
}

#[cfg(test)]
mod tests {
    use super::has_tcx;

    #[test]
    fn versions_are_read() {
        for (version, has) in [
            ("6.1.0-51-cloud-amd64", false),
            ("5.19.11+deb11-cloud-amd64", false),
            ("6.6-rc1", true),
            ("6.12.95+deb12-cloud-amd64", true),
            ("7.0.1-cloud-amd64", true),
            ("new", false),
        ] {
            assert_eq!(has_tcx(version), has, "{version}");
        }
    }
}
