//! Every target stands its corpus, what once brought it down, and some thousand changes of that.

use std::time::Duration;

use fuzz::{TARGETS, corpus, input, run};

#[test]
fn every_target_stands_what_is_made_of_its_corpus() {
    for target in TARGETS {
        assert!(corpus(target.name).len() > 1, "{} has no corpus", target.name);
        let ran = run(*target, 1, 0, 20_000, Duration::from_secs(3));
        assert!(ran.is_ok(), "{}: {ran:?}", target.name);
    }
}

#[test]
fn an_input_is_made_again_from_its_number() {
    let corpus = corpus("net-conf");
    assert_eq!(input(&corpus, 7, 5_000), input(&corpus, 7, 5_000));
    assert_ne!(input(&corpus, 7, 5_000), input(&corpus, 8, 5_000));
}

#[test]
fn every_folder_of_the_corpus_is_a_targets() {
    let place = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for folder in std::fs::read_dir(place).into_iter().flatten().flatten() {
        let name = folder.file_name().into_string().unwrap_or_default();
        assert!(TARGETS.iter().any(|target| target.name == name), "{name}");
    }
}
