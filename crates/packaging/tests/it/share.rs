//! Manual and completions as packages get them.

use std::fs;

use packaging::share::{self, FILES, NAMES};
use tempfile::TempDir;

use crate::{output, programs, run, there};

#[test]
fn shells_and_man_take_what_is_built() {
    let test = "share::shells_and_man_take_what_is_built";
    let Some(programs) = programs(test) else { return };
    let dir = TempDir::new().unwrap();
    let count = share::write(&programs.join("loden"), dir.path()).unwrap();
    assert_eq!(count, FILES.len() + NAMES.len());
    let path = |file: &str| dir.path().join(file).display().to_string();
    for name in NAMES {
        assert_eq!(fs::read_to_string(path(&format!("man/man1/{name}.1"))).unwrap(), ".so man1/loden.1\n");
    }
    let bash = format!(". {}; complete -p loden", path("bash-completion/completions/loden"));
    assert!(run("bash", &["-c", &bash]).contains("loden"));
    for (shell, words) in
        [("groff", vec!["-man", "-ww", "-Tutf8", "-z"]), ("zsh", vec!["-n"]), ("fish", vec!["--no-execute"])]
    {
        let file = match shell {
            "groff" => path("man/man1/loden.1"),
            "zsh" => path("zsh/site-functions/_loden"),
            _ => path("fish/vendor_completions.d/loden.fish"),
        };
        if !there(test, shell) {
            continue;
        }
        let mut words = words;
        words.push(&file);
        let done = output(shell, &words);
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success() && said.is_empty(), "{shell}: {said}");
    }
}

#[test]
fn a_program_that_does_not_run_is_told() {
    let dir = TempDir::new().unwrap();
    for (program, part) in
        [("/nowhere/loden", "start /nowhere/loden"), ("/bin/false", "/bin/false man: exit status")]
    {
        let error = share::write(program.as_ref(), dir.path()).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}
