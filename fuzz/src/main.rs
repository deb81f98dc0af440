//! libFuzzer over the target that `LODEN_FUZZ_TARGET` names.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

fn target() -> fuzz::Target {
    static TARGET: OnceLock<fuzz::Target> = OnceLock::new();
    *TARGET.get_or_init(|| {
        let name = std::env::var("LODEN_FUZZ_TARGET").unwrap_or_default();
        fuzz::named(&name).expect("LODEN_FUZZ_TARGET names no target")
    })
}

fuzz_target!(|bytes: &[u8]| (target().decode)(bytes));
