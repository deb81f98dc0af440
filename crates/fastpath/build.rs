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
            Ok(output) if output.status.success() => {
                make_smaller(&object);
                continue;
            }
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

/// Takes out what is for debuggers. BTF, which the loader needs, comes only with it (`-g`).
fn make_smaller(object: &Path) {
    let smaller = std::fs::read(object).ok().and_then(|bytes| without_debug(&bytes));
    if let Some(Err(error)) = smaller.map(|smaller| std::fs::write(object, smaller)) {
        panic!("write {}: {error}", object.display());
    }
}

/// The same object (ELF of 64 bits, little-endian) with empty sections in the place of those for debuggers, so that the
/// numbers of sections stay. `None` for anything else.
fn without_debug(elf: &[u8]) -> Option<Vec<u8>> {
    const HEADER: usize = 64;
    let half = |bytes: &[u8], at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let word = |bytes: &[u8], at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let long =
        |bytes: &[u8], at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?) as usize);
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, number, names) = (long(elf, 0x28)?, half(elf, 0x3c)?, half(elf, 0x3e)?);
    let section = |n: u16| elf.get(table + usize::from(n) * HEADER..)?.get(..HEADER);
    let names = long(section(names)?, 24)?;
    let mut out = elf.get(..HEADER)?.to_vec();
    let mut headers = Vec::new();
    for n in 0..number {
        let mut header = section(n)?.to_vec();
        let name = elf.get(names + word(&header, 0)? as usize..)?;
        if name.starts_with(b".debug_") || name.starts_with(b".rel.debug_") {
            // SHT_NULL
            header[4..].fill(0);
        }
        let (kind, offset, bytes) = (word(&header, 4)?, long(&header, 24)?, long(&header, 32)?);
        /// `SHT_NOBITS`
        const EMPTY: u32 = 8;
        if bytes > 0 && kind != EMPTY {
            out.resize(out.len().next_multiple_of(long(&header, 48)?.max(1)), 0);
            header[24..32].copy_from_slice(&(out.len() as u64).to_le_bytes());
            out.extend(elf.get(offset..offset + bytes)?);
        }
        headers.extend(header);
    }
    out.resize(out.len().next_multiple_of(8), 0);
    let table = (out.len() as u64).to_le_bytes();
    out[0x28..0x30].copy_from_slice(&table);
    out.extend(headers);
    Some(out)
}
