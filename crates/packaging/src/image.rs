//! Container images without a daemon: one archive that is an OCI image layout (image-spec 1.1,
//! image-layout.md) and what `docker load` takes, byte for byte the same for the same programs.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;

use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::Result;
use crate::tar::{Archive, Entry};

/// Version of the images: the programs'.
pub const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));

/// An image we make.
#[derive(Debug)]
pub struct Kind {
    /// Its name, without a registry.
    pub name: &'static str,
    /// What it is.
    pub title: &'static str,
    /// Packages of the programs in it.
    pub packages: &'static [&'static str],
    programs: &'static [(&'static str, &'static str)],
    links: &'static [(&'static str, &'static str)],
    dirs: &'static [&'static str],
    entrypoint: &'static str,
}

/// Names are those flannel's manifests run (flannel.md 10.1, 10.3).
pub const KINDS: &[Kind] = &[
    Kind {
        name: "loden",
        title: "Loden: the network under Kubernetes and Docker hosts, a drop-in for flannel",
        packages: &["node", "cni"],
        programs: &[("flannel", "loden-cni"), ("opt/bin/loden", "loden")],
        links: &[
            ("bin/cp", "../flannel"),
            ("opt/bin/flanneld", "loden"),
            ("opt/bin/install-conf", "../../flannel"),
            ("opt/bin/loden-cni", "../../flannel"),
            ("opt/bin/mk-docker-opts.sh", "loden"),
        ],
        dirs: &["etc/cni/net.d", "etc/kube-flannel", "opt/cni/bin", "run/flannel", "tmp", "var/lib/loden"],
        entrypoint: "/opt/bin/flanneld",
    },
    Kind {
        name: "loden-cni",
        title: "The CNI plugins of Loden",
        packages: &["cni"],
        programs: &[("flannel", "loden-cni")],
        links: &[
            ("bin/cp", "../flannel"),
            ("opt/bin/install-conf", "../../flannel"),
            ("opt/bin/loden-cni", "../../flannel"),
        ],
        dirs: &["opt/cni/bin", "tmp"],
        entrypoint: "/opt/bin/loden-cni",
    },
];

/// A finished archive.
#[derive(Debug)]
pub struct Image {
    /// The archive.
    pub bytes: Vec<u8>,
    /// Digest of the manifest, or of the index if there are several architectures.
    pub digest: String,
    /// Architecture, bytes of its layer compressed and not.
    pub sizes: Vec<(String, usize, usize)>,
}

/// This machine's architecture as images name it.
///
/// # Errors
/// We know no such image.
pub fn this_architecture() -> Result<&'static str> {
    architecture(std::env::consts::ARCH)
}

/// The image name of an architecture as Rust's targets begin.
///
/// # Errors
/// We know no such image.
pub fn architecture(rust: &str) -> Result<&'static str> {
    Ok(match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "arm" | "armv7" => "arm",
        "powerpc64" | "powerpc64le" => "ppc64le",
        "s390x" => "s390x",
        "riscv64" | "riscv64gc" => "riscv64",
        other => return Err(format!("images for {other} are not made").into()),
    })
}

/// Time of all files, in seconds since 1970: `SOURCE_DATE_EPOCH`, or 0.
///
/// # Errors
/// The variable is no number.
pub fn created() -> Result<u64> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => {
            text.parse().map_err(|_| format!("SOURCE_DATE_EPOCH={text:?} is not a number of seconds").into())
        }
        Err(_) => Ok(0),
    }
}

/// Makes an image from directories with programs, one per architecture. `bom` is the bill of materials,
/// `effort` what gzip takes, 1 to 9.
///
/// # Errors
/// A program is missing.
pub fn build(
    kind: &Kind,
    sources: &[(String, PathBuf)],
    bom: &str,
    created: u64,
    effort: u32,
) -> Result<Image> {
    let mut blobs = Blobs::default();
    let (mut manifests, mut sizes) = (Vec::new(), Vec::new());
    // `docker load` takes one architecture: this machine's if it is there.
    let here = this_architecture().unwrap_or_default();
    let loaded = sources.iter().position(|(arch, _)| arch == here).unwrap_or(0);
    let mut docker = Value::Null;
    for (at, (arch, dir)) in sources.iter().enumerate() {
        let layer = layer(kind, dir, bom, created)?;
        let packed = gzip(&layer, effort)?;
        sizes.push((arch.clone(), packed.len(), layer.len()));
        let mut config = json!({
            "created": date(created),
            "architecture": arch,
            "os": "linux",
            "config": {
                "Entrypoint": [kind.entrypoint],
                "Env": ["PATH=/opt/bin:/bin"],
                "WorkingDir": "/",
                "Labels": labels(kind),
            },
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
            "history": [{ "created": date(created), "created_by": "cargo xtask image" }],
        });
        let mut platform = json!({ "architecture": arch, "os": "linux" });
        if arch == "arm" {
            config["variant"] = json!("v7");
            platform["variant"] = json!("v7");
        }
        let config = blobs.add("application/vnd.oci.image.config.v1+json", config.to_string().into_bytes());
        let layer = blobs.add("application/vnd.oci.image.layer.v1.tar+gzip", packed);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": [layer],
            "annotations": labels(kind),
        });
        if at == loaded {
            docker = json!([{
                "Config": blob_path(&config),
                "RepoTags": [reference(kind)],
                "Layers": [blob_path(&layer)],
            }]);
        }
        let mut manifest =
            blobs.add("application/vnd.oci.image.manifest.v1+json", manifest.to_string().into_bytes());
        manifest["platform"] = platform;
        manifests.push(manifest);
    }
    let mut top = match manifests.as_slice() {
        [] => return Err("an image needs at least one architecture".into()),
        [only] => only.clone(),
        _ => {
            let index = json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.index.v1+json",
                "manifests": manifests,
                "annotations": labels(kind),
            });
            blobs.add("application/vnd.oci.image.index.v1+json", index.to_string().into_bytes())
        }
    };
    top["annotations"] = json!({
        "io.containerd.image.name": reference(kind),
        "org.opencontainers.image.ref.name": VERSION,
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [top],
    });
    let digest = top["digest"].as_str().unwrap_or_default().to_owned();
    let mut archive = Archive::new(created);
    let mut file =
        |path: &str, content: &[u8]| archive.add(path, &Entry::File { content, executable: false });
    file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    file("index.json", index.to_string().as_bytes())?;
    file("manifest.json", docker.to_string().as_bytes())?;
    for (hash, content) in &blobs.0 {
        file(&format!("blobs/sha256/{hash}"), content)?;
    }
    Ok(Image { bytes: archive.finish(), digest, sizes })
}

/// The name images are loaded under. `localhost` is nobody's registry: nothing can be pulled by mistake.
pub fn reference(kind: &Kind) -> String {
    format!("localhost/{}:{VERSION}", kind.name)
}

fn labels(kind: &Kind) -> Value {
    json!({
        "org.opencontainers.image.title": kind.title,
        "org.opencontainers.image.version": VERSION,
        "org.opencontainers.image.licenses": "Apache-2.0",
    })
}

/// The file system: parents before children, in the order of names.
fn layer(kind: &Kind, dir: &std::path::Path, bom: &str, created: u64) -> Result<Vec<u8>> {
    let mut programs = Vec::new();
    for (path, program) in kind.programs {
        let file = dir.join(program);
        let content = std::fs::read(&file)
            .map_err(|error| format!("read {}: {error}; make it with: cargo xtask dist", file.display()))?;
        programs.push((*path, content));
    }
    let bom_path = format!("usr/share/sbom/{}.cdx.json", kind.name);
    let mut entries: BTreeMap<String, Entry<'_>> = BTreeMap::new();
    entries.extend(kind.dirs.iter().map(|path| ((*path).to_owned(), Entry::Dir)));
    entries.extend(kind.links.iter().map(|(path, target)| ((*path).to_owned(), Entry::Link(target))));
    let files = programs.iter().map(|(path, content)| (*path, content.as_slice(), true));
    for (path, content, executable) in files.chain([(bom_path.as_str(), bom.as_bytes(), false)]) {
        entries.insert(path.to_owned(), Entry::File { content, executable });
    }
    let paths: Vec<String> = entries.keys().cloned().collect();
    for path in paths {
        for (at, _) in path.match_indices('/') {
            entries.entry(path[..at].to_owned()).or_insert(Entry::Dir);
        }
    }
    let mut archive = Archive::new(created);
    for (path, entry) in &entries {
        let slash = if *entry == Entry::Dir { "/" } else { "" };
        archive.add(&format!("{path}{slash}"), entry)?;
    }
    Ok(archive.finish())
}

fn gzip(bytes: &[u8], effort: u32) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::new(effort));
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(bytes))
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Content by its hash.
#[derive(Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    /// Gives the descriptor.
    fn add(&mut self, media_type: &str, content: Vec<u8>) -> Value {
        let hash = hex(&content);
        let descriptor =
            json!({ "mediaType": media_type, "digest": format!("sha256:{hash}"), "size": content.len() });
        self.0.insert(hash, content);
        descriptor
    }
}

fn blob_path(descriptor: &Value) -> String {
    format!("blobs/{}", descriptor["digest"].as_str().unwrap_or_default().replace(':', "/"))
}

/// RFC 3339, UTC.
fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (mut year, mut day) = (1970, days);
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    while day >= if leap(year) { 366 } else { 365 } {
        day -= if leap(year) { 366 } else { 365 };
        year += 1;
    }
    let lengths = [31, if leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    format!(
        "{year:04}-{month:02}-{:02}T{:02}:{:02}:{:02}Z",
        day + 1,
        rest / 3600,
        rest % 3600 / 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::date;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_785_000_000, "2026-07-25T17:20:00Z"),
        ] {
            assert_eq!(date(seconds), expected);
        }
    }
}
