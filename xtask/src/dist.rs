//! Static release programs: the musl target where the toolchain has it, static glibc otherwise.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::say;

/// Most bytes the programs may have: `loden`, `loden-cni`.
const LIMITS: [(&str, u64); 2] = [("loden", 16 << 20), ("loden-cni", 2 << 20)];

fn run_in(root: &Path) -> Result<(), String> {
    let target = target()?;
    let flags = "-C target-feature=+crt-static -C relocation-model=pie";
    fs::create_dir_all(root.join("dist")).map_err(|error| format!("make dist/: {error}"))?;
    for (package, program, profile) in [("node", "loden", "release"), ("cni", "loden-cni", "dist-cni")] {
        // Naming the target keeps the flags away from build scripts and procedural macros.
        let arguments = ["build", "--target", &target, "--profile", profile, "-p", package, "-j2"];
        crate::run("env", &[&[&format!("RUSTFLAGS={flags}"), "cargo"], arguments.as_slice()].concat())?;
        let built = root.join("target").join(&target).join(profile).join(program);
        fs::copy(&built, root.join("dist").join(program))
            .map_err(|error| format!("copy {}: {error}", built.display()))?;
    }
    for (program, limit) in LIMITS {
        let size = fs::metadata(root.join("dist").join(program))
            .map_err(|e| format!("size of {program}: {e}"))?
            .len();
        say(&format!("{program:10} {:6.2} MiB of {} MiB allowed\n", size as f64 / 1048576.0, limit >> 20));
        if size > limit {
            return Err(format!("{program} has {size} bytes, more than the {limit} allowed"));
        }
    }
    Ok(())
}

pub fn run() -> Result<(), String> {
    run_in(&crate::tidy::root()?)
}

/// musl where Rust has its library and C its compiler (Debian's musl-tools): SQLite and the TLS provider
/// are C. A process of it starts in a third of the time one of static glibc takes.
fn target() -> Result<String, String> {
    let output =
        Command::new("rustc").arg("-vV").output().map_err(|error| format!("start rustc: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host =
        text.lines().find_map(|l| l.strip_prefix("host: ")).ok_or("rustc -vV names no host")?.to_owned();
    let musl = host.replace("-gnu", "-musl");
    let libraries = Command::new("rustc").args(["--print", "target-libdir", "--target", &musl]).output();
    let rust = libraries.is_ok_and(|out| Path::new(String::from_utf8_lossy(&out.stdout).trim()).is_dir());
    let c = Command::new("musl-gcc").arg("--version").output().is_ok_and(|out| out.status.success());
    for (there, missing) in
        [(rust, format!("`rustup target add {musl}`")), (c, "Debian's musl-tools".to_owned())]
    {
        if !there {
            say(&format!("static glibc: for musl, which starts faster, install {missing}\n"));
        }
    }
    Ok(if rust && c { musl } else { host })
}
