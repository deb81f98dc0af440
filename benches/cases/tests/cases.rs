//! What is measured does what its name says.

use std::collections::BTreeSet;

/// Larger ones take long without optimisation; the harness looks at them before it measures.
const LARGEST: usize = 2_000;

#[test]
fn every_case_gives_the_answer_it_must() {
    let small = cases::all().filter(|case| case.size() <= LARGEST);
    let wrong: Vec<String> = small.filter_map(|case| case.checked().err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// They are names of directories, and words of a command line.
#[test]
fn names_are_unique_and_plain() {
    let all: Vec<String> = cases::all().map(|case| case.name).collect();
    let names: BTreeSet<String> = all.iter().map(|name| name.replace('/', "_")).collect();
    assert_eq!(names.len(), all.len());
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c);
    assert!(names.iter().all(|name| name.chars().all(plain)), "{names:?}");
}
