//! Archives of images: the same bytes twice, whole, and holding what flannel's manifests call.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use packaging::image::{self, KINDS};
use packaging::sbom;
use serde_json::Value;
use tempfile::TempDir;

use crate::{root, run};

/// A directory with programs of this content.
fn programs(content: &str) -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("loden"), format!("agent {content}")).unwrap();
    fs::write(dir.path().join("loden-cni"), format!("plugins {content}")).unwrap();
    dir
}

/// Unpacks an archive with tar(1).
fn unpack(bytes: &[u8], dir: &Path) {
    let file = dir.with_extension("tar");
    fs::write(&file, bytes).unwrap();
    fs::create_dir_all(dir).unwrap();
    run("tar", &["-xf", file.to_str().unwrap(), "-C", dir.to_str().unwrap()]);
}

fn json(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

/// Follows a descriptor; its size and its hash (by sha256sum) must be right.
fn blob(layout: &Path, descriptor: &Value) -> std::path::PathBuf {
    let hash = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let file = layout.join("blobs/sha256").join(hash);
    assert_eq!(fs::metadata(&file).unwrap().len(), descriptor["size"].as_u64().unwrap());
    assert!(run("sha256sum", &[file.to_str().unwrap()]).starts_with(hash));
    file
}

#[test]
fn the_same_programs_give_the_same_bytes() {
    for kind in KINDS {
        let build = |dir: &TempDir, created: u64| {
            image::build(kind, &[("amd64".to_owned(), dir.path().to_owned())], "{}\n", created, 9).unwrap()
        };
        let first = build(&programs("a"), 0);
        std::thread::sleep(std::time::Duration::from_millis(5));
        let second = build(&programs("a"), 0);
        assert_eq!(first.digest, second.digest);
        assert!(first.bytes == second.bytes, "{}: differs in the second run", kind.name);
        assert_ne!(first.digest, build(&programs("b"), 0).digest);
        assert_ne!(first.digest, build(&programs("a"), 1_785_000_000).digest);
    }
}

#[test]
fn layout_and_content_are_right_for_one_and_for_several_architectures() {
    let (own, other) = (programs("own"), programs("other"));
    let scratch = TempDir::new().unwrap();
    for kind in KINDS {
        for arches in [vec![("amd64", &own)], vec![("amd64", &own), ("arm64", &other), ("arm", &other)]] {
            let sources: Vec<_> =
                arches.iter().map(|(arch, dir)| ((*arch).to_owned(), dir.path().to_owned())).collect();
            let made = image::build(kind, &sources, "{\"bom\":1}\n", 0, 9).unwrap();
            let layout = scratch.path().join(format!("{}-{}", kind.name, arches.len()));
            unpack(&made.bytes, &layout);
            assert_eq!(json(&layout.join("oci-layout"))["imageLayoutVersion"], "1.0.0");
            let index = json(&layout.join("index.json"));
            let top = &index["manifests"][0];
            assert_eq!(top["annotations"]["io.containerd.image.name"], image::reference(kind));
            assert_eq!(top["digest"], made.digest);
            let manifests = match arches.len() {
                1 => vec![top.clone()],
                _ => json(&blob(&layout, top))["manifests"].as_array().unwrap().clone(),
            };
            assert_eq!(manifests.len(), arches.len());
            for (descriptor, (arch, dir)) in manifests.iter().zip(&arches) {
                assert_eq!(descriptor["platform"]["architecture"], *arch);
                assert_eq!(descriptor["platform"]["variant"] == "v7", *arch == "arm");
                let manifest = json(&blob(&layout, descriptor));
                let config = json(&blob(&layout, &manifest["config"]));
                assert_eq!((&config["architecture"], &config["os"]), (&(*arch).into(), &"linux".into()));
                assert_eq!(config["config"]["Labels"]["org.opencontainers.image.version"], image::VERSION);
                let packed = blob(&layout, &manifest["layers"][0]);
                let plain = Command::new("gzip").arg("-dc").arg(&packed).output().unwrap().stdout;
                let tree = scratch.path().join(format!("tree-{}-{}-{arch}", kind.name, arches.len()));
                unpack(&plain, &tree);
                let hash = run("sha256sum", &[tree.with_extension("tar").to_str().unwrap()]);
                assert!(
                    config["rootfs"]["diff_ids"][0]
                        .as_str()
                        .unwrap()
                        .ends_with(hash.split(' ').next().unwrap())
                );
                let content = |path: &str| fs::read(tree.join(path)).unwrap();
                let program = |name: &str| fs::read(dir.path().join(name)).unwrap();
                for path in ["flannel", "bin/cp", "opt/bin/install-conf", "opt/bin/loden-cni"] {
                    assert_eq!(content(path), program("loden-cni"), "{path}");
                }
                if kind.name == "loden" {
                    for path in ["opt/bin/loden", "opt/bin/flanneld", "opt/bin/mk-docker-opts.sh"] {
                        assert_eq!(content(path), program("loden"), "{path}");
                    }
                }
                assert_eq!(content(&format!("usr/share/sbom/{}.cdx.json", kind.name)), b"{\"bom\":1}\n");
            }
        }
    }
}

/// The links of the Containerfile's tree and those of the archives are the same.
#[test]
fn the_containerfile_makes_the_same_tree() {
    let own = programs("own");
    let scratch = TempDir::new().unwrap();
    for (kind, tree) in KINDS.iter().zip(["deploy/rootfs", "deploy/rootfs-cni"]) {
        let made = image::build(kind, &[("amd64".to_owned(), own.path().to_owned())], "", 0, 9).unwrap();
        let layout = scratch.path().join(kind.name);
        unpack(&made.bytes, &layout);
        let manifest = json(&blob(&layout, &json(&layout.join("index.json"))["manifests"][0]));
        let layer = blob(&layout, &manifest["layers"][0]);
        let listed = run("tar", &["-tvzf", layer.to_str().unwrap()]);
        let ours: BTreeMap<String, String> = listed
            .lines()
            .filter_map(|line| line.split_once(" -> "))
            .map(|(left, target)| (left.rsplit(' ').next().unwrap().to_owned(), target.to_owned()))
            .collect();
        let found = run("find", &[root().join(tree).to_str().unwrap(), "-type", "l", "-printf", "%P %l\n"]);
        let theirs: BTreeMap<String, String> = found
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(path, target)| (path.to_owned(), target.to_owned()))
            .collect();
        assert_eq!(ours, theirs, "{tree}");
        assert!(!ours.is_empty());
    }
}

/// `cargo metadata` is the source; every crate of a registry has its licence and its hash.
#[test]
fn bills_of_materials_are_complete_and_reproducible() {
    for kind in KINDS {
        let text = sbom::of(kind.packages).unwrap();
        assert_eq!(text, sbom::of(kind.packages).unwrap(), "{}: differs in the second run", kind.name);
        let bom: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&bom["bomFormat"], &bom["specVersion"]), (&"CycloneDX".into(), &"1.5".into()));
        let components = bom["components"].as_array().unwrap();
        let names: Vec<&str> = components.iter().map(|c| c["name"].as_str().unwrap()).collect();
        assert!(names.contains(&"cni") && names.contains(&"sha2"), "{names:?}");
        assert_eq!(names.contains(&"tokio"), kind.name == "loden", "{names:?}");
        for left_out in ["tempfile", "packaging", "xtask", "serde_derive", "syn", "cc"] {
            assert!(!names.contains(&left_out), "{left_out} is in no program");
        }
        for component in components {
            assert!(component["licenses"][0]["expression"].is_string(), "{component}");
            let ours = root().join("crates").join(component["name"].as_str().unwrap()).is_dir();
            assert_eq!(component["hashes"][0]["content"].is_string(), !ours, "{component}");
        }
    }
}
