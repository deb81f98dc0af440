//! `loden doctor`: what is wrong with this host.

use std::path::{Path, PathBuf};

use kernel::sysctl;

use super::{Words, complain, print, status};
use crate::doctor::{Finding, collect, examine, show};
use crate::{args, socket};

const USAGE: &str = "\
usage: loden doctor [--fix] [-o table|json] [--root DIR]

Looks at this host and says what keeps packets of pods from arriving, or will: for each finding what was seen, what
follows, and the command that mends it; the gravest first. Works before the first start of the agent and without it.

  --fix        write the kernel parameters that findings ask for, until the next boot; everything else is for people
  -o table     text for people (the default), coloured on a terminal unless NO_COLOR is set
  -o json      one JSON document, with a version
  --root DIR   files of the host are below DIR (for containers); the network is that of the calling process

Exit status: 0 nothing found, 1 something found, 2 not everything could be looked at, and nothing found.
";

struct Wish {
    fix: bool,
    json: bool,
    root: PathBuf,
}

/// Runs the command; gives the exit status.
pub fn main(words: &[String]) -> u8 {
    let wish = match parse(words) {
        Ok(Some(wish)) => wish,
        Ok(None) => return print(USAGE),
        Err(error) => {
            complain(&format!("loden doctor: {error}\n\n{USAGE}"));
            return 2;
        }
    };
    let options = args::from_environment();
    let subnet_file = Path::new(&options.subnet_file);
    let said = std::env::var("LODEN_SOCKET").ok();
    let answer = match socket::path(said.as_deref(), &options.subnet_file) {
        Some(path) => socket::ask(&path),
        None => Err("the agent has no socket: LODEN_SOCKET is none".to_owned()),
    };
    let agent = answer.unwrap_or_else(|silent| status::alone(silent, subnet_file));
    let certificates =
        [&options.etcd_certfile, &options.etcd_cafile].into_iter().filter(|file| !file.is_empty());
    let place = collect::Place {
        root: wish.root,
        subnet_file: subnet_file.to_owned(),
        certificates: certificates.map(PathBuf::from).collect(),
    };
    let facts = collect::facts(&place, agent);
    let found = examine(&facts);
    if wish.json {
        print(&format!("{}\n", show::json(&found, &facts).to_indented()));
    } else {
        let style = lab::style(false);
        print(&style.lines(&show::show(&found, &facts, style)));
    }
    if wish.fix {
        fix(&found);
    }
    match (found.is_empty(), facts.missing.is_empty()) {
        (false, _) => 1,
        (true, true) => 0,
        (true, false) => 2,
    }
}

fn fix(found: &[Finding]) {
    for (path, value) in found.iter().filter_map(|finding| finding.sysctl.as_ref()) {
        let name = path.replace('/', ".");
        match sysctl::write(path, value) {
            Ok(_) => complain(&format!(
                "done: {name} = {value}; to keep it: echo {name}={value} > /etc/sysctl.d/90-loden.conf\n"
            )),
            Err(error) => complain(&format!("loden doctor: {error}\n")),
        }
    }
    let rest = found.iter().filter(|finding| finding.sysctl.is_none()).count();
    if rest > 0 {
        complain(&format!("{rest} findings are for people to mend, see above\n"));
    }
}

/// `None` for help.
fn parse(words: &[String]) -> Result<Option<Wish>, String> {
    let mut wish = Wish { fix: false, json: false, root: PathBuf::from("/") };
    let mut words = Words::new(words);
    while let Some(name) = words.word() {
        match name {
            "--fix" | "-fix" => wish.fix = true,
            "-o" | "--output" => wish.json = super::is_json(words.value("table or json")?)?,
            "--root" => wish.root = PathBuf::from(words.value("a directory")?),
            "-h" | "-help" | "--help" | "help" => return Ok(None),
            other => return Err(format!("there is no {other:?} here")),
        }
    }
    Ok(Some(wish))
}
