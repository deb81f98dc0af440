//! What goes into the guest's file system.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::cpio::Archive;
use super::guest::{PLAN, Plan, Run};
use super::kernels::Kernel;
use super::{MODULES, TOOLS, TREES, modules, output};
use crate::say;

/// Writes the archive.
pub fn write(path: &Path, kernel: &Kernel, runs: &[Run]) -> Result<(), String> {
    let (modules, missing) = modules::closure(&kernel.modules, MODULES)?;
    if !missing.is_empty() {
        say(&format!("vm: built into {} or absent: {}\n", kernel.version, missing.join(", ")));
    }
    // The file may have been built anew since we were started; the one we run from is always there.
    let myself = Path::new("/proc/self/exe");
    let loaded = format!("/proc/{}/exe", std::process::id());
    let mut programs: BTreeSet<PathBuf> = runs.iter().map(|run| run.program.clone()).collect();
    programs.extend(beside(&runs.iter().map(|run| run.program.as_path()).collect::<Vec<_>>()));
    let mut tools = Vec::new();
    for tool in TOOLS {
        match which(tool) {
            Some(path) => tools.push(path),
            None => say(&format!("vm: {tool} is not on this machine, tests that need it will say so\n")),
        }
    }
    let fail = |error: std::io::Error| format!("write {}: {error}", path.display());
    let mut archive = Archive::create(path).map_err(fail)?;
    for (link, target) in
        [("/bin", "usr/bin"), ("/sbin", "usr/sbin"), ("/lib", "usr/lib"), ("/lib64", "usr/lib64")]
    {
        archive.link(Path::new(link), Path::new(target)).map_err(fail)?;
    }
    for dir in ["/dev", "/proc", "/run", "/sys", "/tmp", "/var/tmp", "/var/lib", "/etc", "/opt", "/root"] {
        archive.directory(Path::new(dir)).map_err(fail)?;
    }
    archive.link(Path::new("/var/run"), Path::new("/run")).map_err(fail)?;
    archive.device(Path::new("/dev/console"), (5, 1)).map_err(fail)?;
    // tcpdump gives up root's rights for those of a user of its name.
    let users = b"root:x:0:0:root:/root:/bin/sh\ntcpdump:x:100:100::/:/bin/false\n";
    archive.file(Path::new("/etc/passwd"), users).map_err(fail)?;
    archive.file(Path::new("/etc/machine-id"), b"0123456789abcdef0123456789abcdef\n").map_err(fail)?;
    archive.copy(myself, Path::new("/init")).map_err(fail)?;
    libraries(&mut archive, Path::new(&loaded))?;
    for program in programs.iter().chain(&tools) {
        archive.copy(program, &merged(program)).map_err(fail)?;
        libraries(&mut archive, program)?;
    }
    for tree in TREES {
        tree_of(&mut archive, Path::new(tree))?;
    }
    for run in runs {
        archive.directory(&run.dir).map_err(fail)?;
        // Data of tests, read by path.
        tree_of(&mut archive, &run.dir.join("tests"))?;
    }
    let inside = |module: &PathBuf| Path::new("/modules").join(module.file_name().unwrap_or_default());
    for module in &modules {
        archive.copy(module, &inside(module)).map_err(fail)?;
    }
    let require = std::env::var("LODEN_REQUIRE").unwrap_or_default();
    let plan = Plan { modules: modules.iter().map(inside).collect(), runs: runs.to_vec(), require };
    archive.file(Path::new(PLAN), plan.to_text().as_bytes()).map_err(fail)?;
    archive.finish().map_err(fail)
}

/// The project's programs that tests start: those in the directory above the test programs.
fn beside(tests: &[&Path]) -> Vec<PathBuf> {
    let dirs: BTreeSet<&Path> = tests.iter().filter_map(|path| path.parent()?.parent()).collect();
    let programs = dirs.into_iter().flat_map(|dir| ["loden", "loden-cni"].map(|name| dir.join(name)));
    programs.filter(|path| path.exists()).collect()
}

fn which(tool: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/usr/bin"].iter().map(|dir| Path::new(dir).join(tool)).find(|path| path.exists())
}

/// Debian's root directories are links into /usr; the guest's are, too.
fn merged(path: &Path) -> PathBuf {
    let moved =
        ["/bin/", "/sbin/", "/lib/", "/lib64/"].iter().any(|dir| path.to_string_lossy().starts_with(dir));
    if moved { Path::new("/usr").join(path.strip_prefix("/").unwrap_or(path)) } else { path.to_owned() }
}

/// The shared libraries of a program, by the loader's own word.
fn libraries(archive: &mut Archive<impl std::io::Write>, program: &Path) -> Result<(), String> {
    // A static program, or a script, makes ldd fail: nothing is needed then.
    let Ok(text) = output("ldd", &[&program.display().to_string()]) else { return Ok(()) };
    for word in text.split_whitespace().filter(|word| word.starts_with('/')) {
        let path = Path::new(word);
        archive.copy(path, &merged(path)).map_err(|error| format!("copy {word}: {error}"))?;
    }
    Ok(())
}

/// A directory or file with all below it.
fn tree_of(archive: &mut Archive<impl std::io::Write>, path: &Path) -> Result<(), String> {
    if !path.exists() {
        return Ok(());
    }
    let fail = |error: std::io::Error| format!("copy {}: {error}", path.display());
    if path.is_dir() {
        archive.directory(&merged(path)).map_err(fail)?;
        for entry in fs::read_dir(path).map_err(fail)?.filter_map(Result::ok) {
            tree_of(archive, &entry.path())?;
        }
        return Ok(());
    }
    archive.copy(path, &merged(path)).map_err(fail)?;
    if path.extension().is_some_and(|end| end == "so") {
        libraries(archive, path)?;
    }
    Ok(())
}
