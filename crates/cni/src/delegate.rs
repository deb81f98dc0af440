//! Calling another plugin: in process when the file `CNI_PATH` leads to is this very program, else by
//! executing it (cni.md 1.13).

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kernel::process;
use model::cni::{CniResult, Error, code, version};
use model::gojson::Json;

use crate::plugin;
use crate::skel::{Call, Env, Verb, invoke};

/// Calls the plugin `kind` with the document `input`. Only ADD gives a result.
///
/// # Errors
/// The plugin is not found, or its own error, code and message unchanged.
pub fn call(kind: &str, verb: Verb, env: &Env, input: Vec<u8>) -> Result<Option<CniResult>, Error> {
    let file = find(kind, &env.path)?;
    if let Some(plugin) = plugin::by_name(kind)
        && is_own_program(&file)
    {
        // Who calls has compared the namespaces.
        let env = Env { command: verb.name().to_owned(), netns_override: true, ..env.clone() };
        env.check()?;
        return invoke(plugin, &Call::new(plugin, env, input)?);
    }
    let output = execute(&file, verb, &input)?;
    if verb != Verb::Add {
        return Ok(None);
    }
    let unreadable = |e: String| Error::new(code::DECODE, format!("read the result of plugin {kind:?}: {e}"));
    let value = Json::parse(&output).map_err(|e| unreadable(e.to_string()))?;
    CniResult::parse(&value, &config_version(&input)).map(Some).map_err(unreadable)
}

/// [`call`] with the verb and the document of the caller itself, for the verbs without result.
///
/// # Errors
/// As [`call`].
pub fn forward(kind: &str, call: &Call) -> Result<(), Error> {
    self::call(kind, call.verb, &call.env, call.input.clone()).map(|_| ())
}

/// The address manager a document names; `None` in layer-2 mode.
pub fn ipam_type(call: &Call) -> Option<String> {
    let ipam = call.conf().object("ipam", "IPAM").ok().flatten()?;
    ipam.string("type").ok().filter(|kind| !kind.is_empty())
}

/// Fails unless there is a plugin of that name.
///
/// # Errors
/// As said.
pub fn look_for(kind: &str, env: &Env) -> Result<(), Error> {
    find(kind, &env.path).map(drop)
}

/// First regular file of that name in the directories.
fn find(kind: &str, path: &str) -> Result<PathBuf, Error> {
    if kind.is_empty() {
        return Err(Error::config("no plugin name provided"));
    }
    if kind.contains('/') {
        return Err(Error::config(format!("invalid plugin name: {kind}")));
    }
    let dirs: Vec<&str> = path.split(':').filter(|dir| !dir.is_empty()).collect();
    let files = dirs.iter().map(|dir| Path::new(dir).join(kind));
    let found = files.into_iter().find(|file| file.metadata().is_ok_and(|meta| meta.is_file()));
    found.ok_or_else(|| match dirs.is_empty() {
        true => Error::config("no paths provided"),
        false => Error::config(format!("failed to find plugin {kind:?} in path [{}]", dirs.join(" "))),
    })
}

/// Same device and inode, or a copy: same length and same bytes.
fn is_own_program(file: &Path) -> bool {
    let same = || -> std::io::Result<bool> {
        let own = Path::new("/proc/self/exe");
        let (a, b) = (own.metadata()?, file.metadata()?);
        if (a.dev(), a.ino()) == (b.dev(), b.ino()) {
            return Ok(true);
        }
        Ok(a.len() == b.len() && same_bytes(&mut File::open(own)?, &mut File::open(file)?)?)
    };
    same().unwrap_or(false)
}

fn same_bytes(a: &mut File, b: &mut File) -> std::io::Result<bool> {
    let (mut left, mut right) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let n = a.read(&mut left)?;
        if n == 0 {
            return Ok(true);
        }
        match b.read_exact(&mut right[..n]) {
            Ok(()) if left[..n] == right[..n] => {}
            Ok(()) => return Ok(false),
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(false),
            Err(e) => return Err(e),
        }
    }
}

/// How long a foreign plugin may take (decision 0121): less than its caller waits for ours, so that the
/// answer names the one that hangs. Runtimes allow two minutes and more for ADD, one for DEL.
fn limit(verb: Verb) -> Duration {
    let own = std::env::var("LODEN_CNI_TIMEOUT").ok().and_then(|text| text.parse().ok());
    let default = match verb {
        Verb::Add => 100,
        Verb::Status => 10,
        Verb::Del | Verb::Check | Verb::Gc => 50,
    };
    Duration::from_secs(own.filter(|seconds| *seconds > 0).unwrap_or(default))
}

fn execute(file: &Path, verb: Verb, input: &[u8]) -> Result<Vec<u8>, Error> {
    let failed = |e: std::io::Error| Error::internal(format!("execute plugin {}: {e}", file.display()));
    let (limit, mut command) = (limit(verb), Command::new(file));
    command.env("CNI_COMMAND", verb.name());
    let output = process::run(&mut command, input.to_vec(), limit).map_err(failed)?;
    let Some(output) = output else {
        let (file, verb, limit) = (file.display(), verb.name(), limit.as_secs());
        let msg = format!("plugin {file} did not answer {verb} within {limit} s and was killed");
        let way_out = "see what it waits for; LODEN_CNI_TIMEOUT sets another limit in seconds";
        return Err(Error::new(code::TRY_LATER, msg).details(way_out));
    };
    if output.status.success() {
        let _ = std::io::stderr().lock().write_all(&output.stderr);
        return Ok(output.stdout);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(Error::of_failure(text.trim(), stderr.trim(), &output.status.to_string()))
}

fn config_version(input: &[u8]) -> String {
    let document = Json::parse(input).unwrap_or_default();
    let text = document.get("cniVersion").and_then(Json::as_str);
    text.filter(|v| !v.is_empty()).unwrap_or(version::ALL[0]).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_are_searched_in_order() {
        for (kind, path, want) in [
            ("", "/x", "no plugin name provided"),
            ("a/b", "/x", "invalid plugin name: a/b"),
            ("x", "", "no paths provided"),
            ("x", "/no/such:/nor/that", "failed to find plugin \"x\" in path [/no/such /nor/that]"),
        ] {
            assert_eq!(find(kind, path).unwrap_err().msg, want);
        }
        // A directory is no plugin; links are followed.
        assert_eq!(find("exe", "/proc:/proc/self").unwrap(), Path::new("/proc/self/exe"));
    }

    #[test]
    fn own_program_is_recognised_also_as_a_copy() {
        let dir = std::env::temp_dir().join(format!("loden-cni-own-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let copy = dir.join("bridge");
        std::fs::copy("/proc/self/exe", &copy).unwrap();
        assert!(is_own_program(Path::new("/proc/self/exe")));
        assert!(is_own_program(&copy));
        let mut bytes = std::fs::read(&copy).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&copy, bytes).unwrap();
        assert!(!is_own_program(&copy));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
