//! Manual and completions, as the program itself writes them, where distributions have them (decision 0204).

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::Result;

/// Words the program is asked with, and the file below `share`.
pub const FILES: &[(&[&str], &str)] = &[
    (&["man"], "man/man1/loden.1"),
    (&["completion", "bash"], "bash-completion/completions/loden"),
    (&["completion", "zsh"], "zsh/site-functions/_loden"),
    (&["completion", "fish"], "fish/vendor_completions.d/loden.fish"),
];

/// Other names of the program, whose page is the same.
pub const NAMES: &[&str] = &["flanneld", "kubectl-loden"];

/// Writes them below a directory; gives how many.
///
/// # Errors
/// The program does not run here, or the files cannot be written.
pub fn write(program: &Path, share: &Path) -> Result<usize> {
    let put = |file: &str, text: &[u8]| -> Result<()> {
        let path = share.join(file);
        let made = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, text));
        made.map_err(|error| format!("write {}: {error}", path.display()).into())
    };
    for (words, file) in FILES {
        let output = Command::new(program).args(*words).output();
        let output = output.map_err(|error| format!("start {}: {error}", program.display()))?;
        if !output.status.success() || output.stdout.is_empty() {
            return Err(format!("{} {}: {}", program.display(), words.join(" "), output.status).into());
        }
        put(file, &output.stdout)?;
    }
    for name in NAMES {
        put(&format!("man/man1/{name}.1"), b".so man1/loden.1\n")?;
    }
    Ok(FILES.len() + NAMES.len())
}
