//! Static release programs: the musl target where the toolchain has it, static glibc otherwise.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::say;

/// Most bytes the programs may have with musl: `loden`, `loden-cni`.
const LIMITS: [(&str, u64); 2] = [("loden", 16 << 20), ("loden-cni", 2 << 20)];

/// What glibc adds: 0.75 MiB as measured, for a library that cannot leave out what is not called.
const GLIBC: u64 = 3 << 18;

/// C compilers of Debian for other machines, by the target's architecture: packages and program.
const COMPILERS: [(&str, &str, &str); 5] = [
    ("aarch64", "gcc-aarch64-linux-gnu libc6-dev-arm64-cross", "aarch64-linux-gnu-gcc"),
    ("armv7", "gcc-arm-linux-gnueabihf libc6-dev-armhf-cross", "arm-linux-gnueabihf-gcc"),
    ("powerpc64le", "gcc-powerpc64le-linux-gnu libc6-dev-ppc64el-cross", "powerpc64le-linux-gnu-gcc"),
    ("riscv64gc", "gcc-riscv64-linux-gnu libc6-dev-riscv64-cross", "riscv64-linux-gnu-gcc"),
    ("s390x", "gcc-s390x-linux-gnu libc6-dev-s390x-cross", "s390x-linux-gnu-gcc"),
];

/// Builds for one target into `dist/`, or into `dist/TARGET/` for another machine.
fn build(root: &Path, target: &str, dir: &Path) -> Result<(), String> {
    let mut environment = vec![format!("RUSTFLAGS={}", flags(target))];
    if let Some((_, package, compiler)) = COMPILERS
        .iter()
        .find(|(arch, ..)| target.starts_with(arch) && !target.starts_with(std::env::consts::ARCH))
    {
        if Command::new(compiler).arg("--version").output().is_err() {
            return Err(format!("{target} needs a C compiler: apt-get install {package}"));
        }
        let name = target.replace('-', "_");
        environment.push(format!("CARGO_TARGET_{}_LINKER={compiler}", name.to_uppercase()));
        environment.push(format!("CC_{name}={compiler}"));
    }
    let environment: Vec<&str> = environment.iter().map(String::as_str).chain(["cargo"]).collect();
    fs::create_dir_all(dir).map_err(|error| format!("make {}: {error}", dir.display()))?;
    for (package, program, profile) in [("node", "loden", "release"), ("cni", "loden-cni", "dist-cni")] {
        // Naming the target keeps the flags away from build scripts and procedural macros.
        let arguments = ["build", "--target", target, "--profile", profile, "-p", package, "-j2"];
        crate::run("env", &[environment.as_slice(), arguments.as_slice()].concat())?;
        let built = root.join("target").join(target).join(profile).join(program);
        fs::copy(&built, dir.join(program)).map_err(|error| format!("copy {}: {error}", built.display()))?;
    }
    for (program, limit) in LIMITS {
        let limit = if target.contains("gnu") { limit + GLIBC } else { limit };
        let size = fs::metadata(dir.join(program)).map_err(|e| format!("size of {program}: {e}"))?.len();
        say(&format!("{program:10} {:6.2} MiB of {:.2} MiB allowed\n", mib(size), mib(limit)));
        if size > limit {
            return Err(format!("{program} has {size} bytes, more than the {limit} allowed"));
        }
        if target.starts_with("x86_64") && target.contains("musl") {
            copies_by_itself(&dir.join(program))?;
        }
    }
    Ok(())
}

/// With musl the 28,000 addresses that a program puts right at its start are a bitmap instead of a table of 0.65 MiB, which
/// would stay resident (decision 0198). A linker that does not know how makes the table. glibc's own start reads bitmaps
/// since 2.36 only, and before that the program would crash.
fn flags(target: &str) -> &'static str {
    if target.contains("musl") {
        "-C target-feature=+crt-static -C relocation-model=pie -C link-arg=-Wl,-z,pack-relative-relocs"
    } else {
        "-C target-feature=+crt-static -C relocation-model=pie"
    }
}

/// Whether a program was linked with what `crates/memmove` puts in the place of musl's: nothing else would show it.
fn copies_by_itself(program: &Path) -> Result<(), String> {
    let name = b"loden_memmove";
    let content = fs::read(program).map_err(|error| format!("read {}: {error}", program.display()))?;
    let found = content.windows(name.len()).any(|window| window == name);
    found
        .then_some(())
        .ok_or_else(|| format!("{} copies memory as musl does (decision 0257)", program.display()))
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1048576.0
}

pub fn run() -> Result<(), String> {
    let root = crate::tidy::root()?;
    let dist = root.join("dist");
    build(&root, &target()?, &dist)?;
    let word = |path: std::path::PathBuf| path.display().to_string();
    packaging(&["share".to_owned(), word(dist.join("loden")), word(dist.join("share"))])
}

/// The programs of this machine and of the targets named, then both images with all of them.
pub fn images(targets: &[String]) -> Result<(), String> {
    let root = crate::tidy::root()?;
    let dist = root.join("dist");
    let own = target()?;
    build(&root, &own, &dist)?;
    let mut arches = vec![arch(&own, &dist)?];
    for target in targets {
        build(&root, target, &dist.join(target))?;
        arches.push(arch(target, &dist.join(target))?);
    }
    let mut words = vec!["image".to_owned(), dist.display().to_string()];
    words.extend(arches);
    packaging(&words)
}

/// Bills of materials of both programs.
pub fn sbom() -> Result<(), String> {
    let dist = crate::tidy::root()?.join("dist");
    fs::create_dir_all(&dist).map_err(|error| format!("make {}: {error}", dist.display()))?;
    packaging(&["sbom".to_owned(), dist.display().to_string()])
}

fn packaging(words: &[String]) -> Result<(), String> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let run_it = ["run", "--quiet", "-j2", "-p", "packaging", "--"];
    crate::run("cargo", &[run_it.as_slice(), words.as_slice()].concat())
}

/// `ARCH=DIR` as images name architectures.
fn arch(target: &str, dir: &Path) -> Result<String, String> {
    let name = match target.split('-').next().unwrap_or_default() {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "armv7" => "arm",
        "powerpc64le" => "ppc64le",
        "riscv64gc" => "riscv64",
        "s390x" => "s390x",
        _ => return Err(format!("images for {target} are not made")),
    };
    Ok(format!("{name}={}", dir.display()))
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
