//! Packages of the backports of this machine's release, for a machine that does not have them among its sources: from the
//! places its own sources name, with the keys they name, and lists of packages in a directory of ours. The machine's own
//! sources and lists stay as they are (sources.list(5), apt.conf(5)).

use std::fs;
use std::path::Path;

use super::output;

/// Fetches the lists into a directory. Gives the options with which apt's programs use them, and what went wrong if
/// packages are missing from them.
pub fn lists(dir: &Path) -> Result<(Vec<String>, String), String> {
    let fail = |error: std::io::Error| format!("write in {}: {error}", dir.display());
    let (sources, lists) = (dir.join("sources"), dir.join("lists"));
    let _ = fs::remove_dir_all(&sources);
    fs::create_dir_all(&sources).map_err(fail)?;
    fs::create_dir_all(lists.join("partial")).map_err(fail)?;
    let mut some = false;
    let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().filter_map(Result::ok);
    for path in parts.map(|entry| entry.path()).chain(["/etc/apt/sources.list".into()]) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        // Other files apt does not read either.
        let backports = match path.extension().and_then(|end| end.to_str()) {
            Some("sources") => stanzas(&text),
            Some("list") => lines(&text),
            _ => continue,
        };
        if let Some(name) = path.file_name().filter(|_| !backports.is_empty()) {
            fs::write(sources.join(name), backports).map_err(fail)?;
            some = true;
        }
    }
    if !some {
        return Err("no source in /etc/apt is of a release that could have backports".to_owned());
    }
    let options: Vec<String> = [
        "Dir::Etc::sourcelist=/dev/null".to_owned(),
        format!("Dir::Etc::sourceparts={}", sources.display()),
        format!("Dir::State::lists={}", lists.display()),
        "Dir::Cache::pkgcache=".to_owned(),
        "Dir::Cache::srcpkgcache=".to_owned(),
        // Else a place that cannot be reached is only a warning.
        "APT::Update::Error-Mode=any".to_owned(),
    ]
    .into_iter()
    .flat_map(|option| ["-o".to_owned(), option])
    .collect();
    // Others whose packages the machine has may have no backports, so a failure alone says nothing.
    let update: Vec<&str> = options.iter().map(String::as_str).chain(["update", "-qq"]).collect();
    let trouble = match output("apt-get", &update) {
        Ok(_) => "it is not among the backports of this machine's sources".to_owned(),
        Err(error) => {
            let errors: Vec<&str> =
                error.lines().filter_map(|line| Some(line.split_once("E: ")?.1)).collect();
            format!("apt-get update: {}", errors.join("; "))
        }
    };
    Ok((options, trouble))
}

/// The backports of a suite that is a release; one for its updates has a longer name, or is a path.
fn of(suite: &str) -> Option<String> {
    (!suite.contains(['-', '/'])).then(|| format!("{suite}-backports"))
}

/// Sources in stanzas of fields.
fn stanzas(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines.split(|line| line.trim().is_empty()).filter_map(stanza).collect()
}

fn stanza(lines: &[&str]) -> Option<String> {
    let (mut fields, mut suites) = (String::new(), Vec::new());
    // A line that begins with a space belongs to the field above it.
    for field in lines.chunk_by(|_, next| next.starts_with([' ', '\t'])) {
        let (name, first) = field[0].split_once(':')?;
        let mut words = [&[first], &field[1..]].concat().into_iter().flat_map(str::split_whitespace);
        match name.to_ascii_lowercase().as_str() {
            "types" => words.any(|word| word == "deb").then(|| fields.push_str("Types: deb\n"))?,
            "suites" => suites = words.filter_map(of).collect(),
            "enabled" if words.any(|word| ["no", "false"].contains(&word)) => return None,
            _ => fields.extend(field.iter().map(|line| format!("{line}\n"))),
        }
    }
    (!suites.is_empty()).then(|| format!("{fields}Suites: {}\n\n", suites.join(" ")))
}

/// Sources of one line each.
fn lines(text: &str) -> String {
    text.lines().filter_map(line).collect()
}

fn line(line: &str) -> Option<String> {
    let rest = line.split('#').next()?.trim().strip_prefix("deb")?;
    let rest = rest.strip_prefix([' ', '\t'])?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map(|(options, rest)| (format!("[{options}] "), rest))?,
        None => (String::new(), rest),
    };
    let mut words = rest.split_whitespace();
    let (place, suite) = (words.next()?, of(words.next()?)?);
    Some(format!("deb {options}{place} {suite} {}\n", words.collect::<Vec<_>>().join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_of_stanzas() {
        let text = "\
# ours
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm
 bookworm-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security

types: deb-src
Suites: bookworm
\t
Types: deb
Enabled: no
Suites: bookworm
";
        let wanted = "\
Types: deb
URIs: http://mirror.example/debian
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
Suites: bookworm-backports

";
        assert_eq!(stanzas(text), wanted);
    }

    #[test]
    fn sources_of_lines() {
        for (text, wanted) in [
            (
                "deb http://mirror.example/debian bookworm main non-free",
                "deb http://mirror.example/debian bookworm-backports main non-free\n",
            ),
            (
                "deb [ signed-by=/k.gpg arch=amd64 ]\thttp://mirror.example/debian trixie main # ours",
                "deb [ signed-by=/k.gpg arch=amd64 ] http://mirror.example/debian trixie-backports main\n",
            ),
            ("deb http://mirror.example/debian bookworm-updates main", ""),
            ("deb http://mirror.example/security buster/updates main", ""),
            ("deb-src http://mirror.example/debian bookworm main", ""),
            ("# deb http://mirror.example/debian bookworm main", ""),
            ("deb http://mirror.example/debian", ""),
            ("", ""),
        ] {
            assert_eq!(lines(text), wanted, "{text}");
        }
    }
}
