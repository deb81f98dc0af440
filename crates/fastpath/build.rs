//! Compiles the programs of `bpf/` with clang, if there is one: a machine without it builds all the rest, and the
//! agent says what is missing (decision 0216). With `LODEN_REQUIRE_FASTPATH=1`, as releases and tests are built,
//! a missing clang is an error.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=bpf");
    println!("cargo::rerun-if-env-changed=LODEN_REQUIRE_FASTPATH");
    println!("cargo::rerun-if-env-changed=CLANG");
    let out = std::env::var("OUT_DIR").unwrap_or_default();
    let clang = std::env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    // Debian keeps <asm/types.h> in a directory of the architecture, which clang does not look into for this target.
    // The programs are the same for all machines of one byte order.
    let arch = std::env::consts::ARCH;
    for program in ["fastpath", "drops"] {
        let object = Path::new(&out).join(format!("{program}.o"));
        let built = Command::new(&clang)
            .args([
                "-O2",
                "-g",
                "-target",
                "bpf",
                "-mcpu=v3",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-fdebug-prefix-map=bpf=.",
            ])
            .arg(format!("-I/usr/include/{arch}-linux-gnu"))
            .args(["-c", &format!("bpf/{program}.c"), "-o"])
            .arg(&object)
            .output();
        let why = match built {
            Ok(output) if output.status.success() => continue,
            Ok(output) => format!("{clang}: {}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => format!("start {clang}: {error}"),
        };
        let required = std::env::var("LODEN_REQUIRE_FASTPATH").is_ok_and(|value| value == "1");
        assert!(
            !required,
            "{program} cannot be built: {why}; on Debian: apt-get install clang linux-libc-dev"
        );
        println!("cargo::warning=built without {program}: {}", why.lines().next().unwrap_or_default());
        // An empty object says so at run time.
        if let Err(error) = std::fs::write(&object, []) {
            panic!("write {}: {error}", object.display());
        }
    }
}
