//! `loden doctor`: what is wrong with this host.

use std::path::{Path, PathBuf};

use kernel::sysctl;

use super::words::{Command, FORMAT, Words, flag, switch};
use super::{complain, print, status};
use crate::doctor::{Facts, Finding, collect, examine, show};
use crate::dump::open::Dump;
use crate::{args, socket};

/// What it is, for help, completion and manual.
pub const COMMAND: Command = Command {
    name: "doctor",
    words: "",
    summary: "say what is wrong with this host and how to mend it",
    text: "\
Looks at this host and says what keeps packets of pods from arriving, or will: for each finding what was seen, what \
follows, and the command that mends it; the gravest first. Works before the first start of the agent and without it.",
    flags: &[
        switch(
            "--fix",
            "write the kernel parameters that findings ask for, until the next boot; everything else is for people",
        ),
        FORMAT,
        flag(
            "--root",
            "DIR",
            "files of the host are below DIR (for containers); the network is that of the calling process",
        ),
        flag("--from", "FILE", "look at what `loden dump` collected in this archive; - is standard input"),
    ],
    exit: "0 nothing found, 1 something found, 2 not everything could be looked at, and nothing found.",
    sub: &[],
};

struct Wish {
    fix: bool,
    json: bool,
    root: PathBuf,
    from: Option<String>,
}

/// Runs the command; gives the exit status.
pub fn main(words: &[String]) -> u8 {
    COMMAND.serve(parse(words), |wish| run(&wish))
}

fn run(wish: &Wish) -> Result<u8, String> {
    let facts = match &wish.from {
        None => here(&wish.root),
        Some(file) => recorded(file)?,
    };
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
    Ok(match (found.is_empty(), facts.missing.is_empty()) {
        (false, _) => 1,
        (true, true) => 0,
        (true, false) => 2,
    })
}

/// What an archive says.
fn recorded(file: &str) -> Result<Facts, String> {
    let dump = Dump::open(file)?;
    let facts = dump.facts()?;
    complain(&format!("as of {}\n", dump.made));
    Ok(facts)
}

/// What this host says.
fn here(root: &Path) -> Facts {
    let options = args::from_environment();
    let subnet_file = Path::new(&options.subnet_file);
    let said = std::env::var("LODEN_SOCKET").ok();
    let answer = socket::ask(socket::path(said.as_deref(), &options.subnet_file).as_deref());
    let agent = answer.unwrap_or_else(|silent| status::alone(silent, subnet_file));
    collect::facts(&collect::Place::of(root, &options), agent)
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

/// Whether the words make sense.
#[cfg(test)]
pub fn understands(words: &[String]) -> Result<(), String> {
    parse(words).map(drop)
}

/// `None` for help.
fn parse(words: &[String]) -> Result<Option<Wish>, String> {
    let mut wish = Wish { fix: false, json: false, root: PathBuf::from("/"), from: None };
    let mut words = Words::new(words, &COMMAND);
    while let Some(name) = words.word()? {
        match name {
            "--fix" => wish.fix = true,
            "-o" => wish.json = super::is_json(words.value()?)?,
            "--root" => wish.root = PathBuf::from(words.value()?),
            "--from" => wish.from = Some(words.value()?.to_owned()),
            "--help" => return Ok(None),
            other => return Err(words.unknown(other)),
        }
    }
    if wish.from.is_some() && wish.fix {
        return Err("--fix changes this host, and --from is about another one".to_owned());
    }
    Ok(Some(wish))
}
