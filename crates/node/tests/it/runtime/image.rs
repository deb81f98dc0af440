//! An image made here: one static program of ours and nothing else, in the form `docker save` writes.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};

/// Its name; no registry has it.
pub const NAME: &str = "loden.test/pod:1";

/// Without a word it waits, as a pod's first program does; `/pod serve` tells every caller the address it
/// comes from, in both families; `/pod end` ends.
const PROGRAM: &str = r#"
use std::io::Write;
fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("serve") => {
            for stream in std::net::TcpListener::bind("[::]:80").unwrap().incoming() {
                let mut stream = stream.unwrap();
                let _ = write!(stream, "{}", stream.peer_addr().unwrap().ip().to_canonical());
            }
        }
        Some(_) => {}
        None => loop { std::thread::park() },
    }
}
"#;

/// Makes the image in a directory and gives the archive.
///
/// # Errors
/// Why no static program can be made here.
pub fn make(dir: &Path) -> Result<PathBuf, String> {
    let (source, root) = (dir.join("pod.rs"), dir.join("root"));
    fs::create_dir_all(&root).unwrap();
    fs::write(&source, PROGRAM).unwrap();
    let compiler = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let output = Command::new(compiler)
        .args(["--edition=2021", "-Ctarget-feature=+crt-static", "-Cpanic=abort", "-Cstrip=symbols", "-o"])
        .args([root.join("pod"), source])
        .output()
        .map_err(|error| format!("start rustc: {error}"))?;
    if !output.status.success() {
        return Err(format!("rustc: {}", String::from_utf8_lossy(&output.stderr).replace('\n', " ")));
    }
    let layer = dir.join("layer.tar");
    tar(&layer, &root, &["pod"]);
    let mut digest = String::new();
    for byte in Sha256::digest(fs::read(&layer).unwrap()) {
        let _ = write!(digest, "{byte:02x}");
    }
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = format!(
        r#"{{"architecture":"{architecture}","os":"linux","config":{{"Entrypoint":["/pod"]}},"rootfs":{{"type":"layers","diff_ids":["sha256:{digest}"]}}}}"#
    );
    fs::write(dir.join("config.json"), config).unwrap();
    let manifest = format!(r#"[{{"Config":"config.json","RepoTags":["{NAME}"],"Layers":["layer.tar"]}}]"#);
    fs::write(dir.join("manifest.json"), manifest).unwrap();
    let archive = dir.join("image.tar");
    tar(&archive, dir, &["manifest.json", "config.json", "layer.tar"]);
    Ok(archive)
}

fn tar(archive: &Path, dir: &Path, files: &[&str]) {
    let status = Command::new("tar")
        .args(["--owner=0", "--group=0", "--create", "--file"])
        .arg(archive)
        .arg("--directory")
        .arg(dir)
        .args(files)
        .status()
        .unwrap();
    assert!(status.success(), "tar: {status}");
}
