//! The catalogue is whole, and every test it and the guides name is there.

use std::fs;
use std::path::{Path, PathBuf};

use faults::table::{FAULTS, Way};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The complaint when a test of `module::name` or `module::` is not in the tree.
fn absent(package: &str, program: &str, filter: &str) -> Option<String> {
    // A name without a module is a test of the program's root.
    let (module, name) = filter.rsplit_once("::").unwrap_or(("main", filter));
    let path = module.replace("::", "/");
    let base = root().join("crates").join(package);
    let file = match program {
        "lib" => base.join("src").join(format!("{path}.rs")),
        tests => base.join("tests").join(tests).join(format!("{path}.rs")),
    };
    let Ok(text) = fs::read_to_string(&file) else {
        return Some(format!("{filter}: there is no {}", file.display()));
    };
    let there =
        if name.is_empty() { text.contains("#[test]") } else { text.contains(&format!("fn {name}(")) };
    (!there).then(|| format!("{filter} is not in {}", file.display()))
}

#[test]
fn every_row_of_the_catalogue_is_there() {
    for number in 1..=31 {
        let row = format!("R{number:02}");
        // The soak is a command of its own.
        assert!(row == "R31" || FAULTS.iter().any(|fault| fault.row == row), "{row}");
    }
}

#[test]
fn every_test_the_table_names_is_there() {
    for fault in FAULTS {
        if let Way::Tests(by) = fault.way {
            for (package, program, filter) in by {
                assert_eq!(absent(package, program, filter), None, "{}", fault.row);
            }
        }
    }
}

/// Lines of the guides such as "cargo test -p node --test it faults::nothing_foreign_is_touched".
#[test]
fn every_test_the_guides_name_is_there() {
    for guide in ["promises.md", "security.md"] {
        let text = fs::read_to_string(root().join("docs/guide").join(guide)).unwrap_or_default();
        let mut found = 0;
        for command in text.split('`').filter(|piece| piece.starts_with("cargo test ")) {
            let words: Vec<&str> = command.split_whitespace().collect();
            let after = |word: &str| words.iter().position(|w| *w == word).map(|at| words[at + 1]);
            let package = after("-p").unwrap_or_else(|| panic!("{guide}: {command} names no package"));
            let program = after("--test").unwrap_or("lib");
            let filter = words.last().unwrap();
            assert_eq!(absent(package, program, filter), None, "{guide}: {command}");
            found += 1;
        }
        assert!(found > 0 || text.is_empty(), "{guide} names no test");
    }
}
