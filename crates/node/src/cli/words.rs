//! What commands are: name, words, flags, texts. Command lines are read by these definitions, and help, completion,
//! manual and reference are written from them (decision 0222), so that none of them can know another flag than the
//! program. Pure but for the name the program was called by.

use model::goflag::{self, near};

use super::{complain, print};
use crate::doctor::show::wrapped;

/// Columns of help texts.
const WIDTH: usize = 100;
/// Where the texts of flags begin.
const INDENT: usize = 22;

/// A command.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// Its name.
    pub name: &'static str,
    /// What follows the flags, such as `[SOURCE] DESTINATION`.
    pub words: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// The same in paragraphs, with an empty line between. A paragraph that begins with two blanks stays as it is.
    pub text: &'static str,
    /// Its flags.
    pub flags: &'static [Flag],
    /// Exit statuses.
    pub exit: &'static str,
    /// Commands below it.
    pub sub: &'static [Command],
}

/// A command of which there is nothing to say yet.
pub const NONE: Command =
    Command { name: "", words: "", summary: "", text: "", flags: &[], exit: "", sub: &[] };

/// A flag of a command.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// With dashes.
    pub name: &'static str,
    /// Another name; empty for none.
    pub long: &'static str,
    /// What it takes: a word in capitals, the choices with bars between them; empty for a switch.
    pub value: &'static str,
    /// The value may be left out; if it is there it follows `=`.
    pub optional: bool,
    /// What it does.
    pub help: &'static str,
}

/// A flag with a value.
pub const fn flag(name: &'static str, value: &'static str, help: &'static str) -> Flag {
    Flag { name, long: "", value, optional: false, help }
}

/// A flag without one.
pub const fn switch(name: &'static str, help: &'static str) -> Flag {
    flag(name, "", help)
}

/// `-o`, which most commands have.
pub const FORMAT: Flag = flag(
    "-o",
    "table|json",
    "text for people (the default), coloured on a terminal unless NO_COLOR is set; \
     or one JSON document, with a version",
)
.long("--output");

/// `--socket`
pub const SOCKET: Flag = flag("--socket", "PATH", "ask the agent with this socket");

impl Flag {
    /// With another name.
    pub const fn long(self, long: &'static str) -> Flag {
        Flag { long, ..self }
    }

    /// With a value that may be left out.
    pub const fn maybe(self) -> Flag {
        Flag { optional: true, ..self }
    }

    /// Its names.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        [self.name, self.long].into_iter().filter(|name| !name.is_empty())
    }

    /// As in a synopsis: `-o FILE`, `--wait[=SECONDS]`.
    fn shown(&self, name: &str) -> String {
        match (self.value, self.optional) {
            ("", _) => name.to_owned(),
            (value, true) => format!("{name}[={value}]"),
            (value, false) => format!("{name} {value}"),
        }
    }

    /// As in a list: `-o, --output FILE`.
    pub fn listed(&self) -> String {
        let names: Vec<&str> = self.names().collect();
        self.shown(&names.join(", "))
    }
}

/// A flag as it is listed, and what it does.
pub type Listed = (String, String);

impl Command {
    /// Flags of the agent are Go's, and so is their table.
    pub fn is_agent(&self) -> bool {
        self.name == "agent" && self.words.is_empty() && self.flags.is_empty()
    }

    /// All flags for help, manual and reference.
    pub fn listed(&self) -> Vec<Listed> {
        if self.is_agent() {
            return crate::args::FLAGS.iter().map(of_agent).collect();
        }
        self.flags.iter().map(|flag| (flag.listed(), flag.help.to_owned())).collect()
    }

    /// The lines after `usage:`, one for each form.
    pub fn synopsis(&self, before: &str) -> Vec<String> {
        let name = if before.is_empty() { self.name.to_owned() } else { format!("{before} {}", self.name) };
        if !self.sub.is_empty() {
            return self.sub.iter().flat_map(|sub| sub.synopsis(&name)).collect();
        }
        let words = if self.words.is_empty() { String::new() } else { format!(" {}", self.words) };
        let flags: String = self.flags.iter().map(|flag| format!(" [{}]", flag.shown(flag.name))).collect();
        let line = format!("{name}{flags}{words}");
        // What does not fit into a line is better read in the list.
        if self.is_agent() || line.len() + "usage: ".len() > WIDTH {
            return vec![format!("{name} [FLAG]...{words}")];
        }
        vec![line]
    }

    /// The whole help.
    pub fn usage(&self) -> String {
        let mut text = self.short(called());
        text.push('\n');
        text += &paragraphs(self.text);
        if !self.sub.is_empty() {
            text.push('\n');
            for sub in self.sub {
                text += &row(&format!("{} {}", sub.name, sub.words), sub.summary);
                let own = sub.flags.iter().map(|flag| row(&format!("  {}", flag.listed()), flag.help));
                text += &own.collect::<String>();
            }
        }
        let listed = self.listed();
        if !listed.is_empty() {
            text.push('\n');
            listed.iter().for_each(|(name, help)| text += &row(name, help));
        }
        if !self.exit.is_empty() {
            text += &format!("\n{}", paragraphs(&format!("Exit status: {}", self.exit)));
        }
        text
    }

    /// `usage:` and the forms.
    fn short(&self, before: &str) -> String {
        let mut text = String::new();
        for (at, line) in self.synopsis(before).iter().enumerate() {
            text += &format!("{} {line}\n", if at == 0 { "usage:" } else { "      " });
        }
        text
    }

    /// Runs a command by what was read of its words: help, a mistake, or what is asked for. Gives the exit status; what
    /// cannot be done is a sentence, and 2.
    pub fn serve<W>(&self, read: Result<Option<W>, String>, run: impl FnOnce(W) -> Result<u8, String>) -> u8 {
        match read.map(|wish| wish.map(run)) {
            Ok(Some(Ok(code))) => code,
            Ok(Some(Err(error))) => {
                complain(&format!("{} {}: {error}\n", called(), self.name));
                2
            }
            Ok(None) => print(&self.usage()),
            Err(error) => self.refuse(&error),
        }
    }

    /// Complains about a command line; gives the exit status.
    pub fn refuse(&self, error: &str) -> u8 {
        let called = called();
        let usage = self.short(called);
        complain(&format!(
            "{called} {0}: {error}\n\n{usage}\n`{called} {0} --help` tells what they do\n",
            self.name
        ));
        2
    }

    /// The command below it of this name.
    pub fn below(&self, name: &str) -> Option<&'static Command> {
        self.sub.iter().find(|sub| sub.name == name)
    }
}

fn of_agent(flag: &goflag::Flag) -> Listed {
    let takes = match flag.kind {
        goflag::Kind::Bool => "",
        goflag::Kind::Int => " NUMBER",
        goflag::Kind::Text | goflag::Kind::List => " TEXT",
    };
    let default = match (flag.kind, flag.default) {
        (_, "" | "false" | "0") => String::new(),
        (_, default) => format!(" (default {default})"),
    };
    (format!("--{}{takes}", flag.name), format!("{}{default}", flag.help))
}

/// How whoever typed the command called this program.
pub fn called() -> &'static str {
    let program = std::env::args().next().unwrap_or_default();
    // What kubectl runs for `kubectl loden`.
    if program.rsplit('/').next() == Some("kubectl-loden") { "kubectl loden" } else { "loden" }
}

/// A name and its text, in two columns.
pub fn row(name: &str, text: &str) -> String {
    let mut out = format!("  {name}");
    let mut column = out.chars().count();
    if column + 2 > INDENT {
        out.push('\n');
        column = 0;
    }
    for (at, line) in wrapped(text, WIDTH - INDENT).iter().enumerate() {
        let gap = if at == 0 { INDENT - column } else { INDENT };
        out += &format!("{}{line}\n", " ".repeat(gap));
    }
    out
}

/// Paragraphs in lines.
pub fn paragraphs(text: &str) -> String {
    let of = |paragraph: &str| match paragraph.starts_with("  ") {
        true => format!("{paragraph}\n"),
        false => wrapped(paragraph, WIDTH).iter().map(|line| format!("{line}\n")).collect(),
    };
    text.split("\n\n").filter(|paragraph| !paragraph.is_empty()).map(of).collect::<Vec<_>>().join("\n")
}

/// Words of a command line: flags as `--name value` or `--name=value`, with one dash or two.
#[derive(Debug)]
pub struct Words<'a> {
    rest: std::slice::Iter<'a, String>,
    command: &'a Command,
    flag: Option<&'a Flag>,
    /// What follows `=`.
    pub given: Option<&'a str>,
}

impl<'a> Words<'a> {
    /// Those after the name of the command.
    pub fn new(words: &'a [String], command: &'a Command) -> Words<'a> {
        Words { rest: words.iter(), command, flag: None, given: None }
    }

    /// The first name of the next flag, without its value; `--help`; or the next word.
    ///
    /// # Errors
    /// A flag that the command does not have, or a value for one that takes none.
    pub fn word(&mut self) -> Result<Option<&'a str>, String> {
        (self.flag, self.given) = (None, None);
        let Some(word) = self.rest.next() else { return Ok(None) };
        let (name, given) = match word.split_once('=') {
            Some((name, value)) if name.starts_with('-') => (name, Some(value)),
            _ => (word.as_str(), None),
        };
        let helps = name == "help" && self.command.words.is_empty() && self.command.sub.is_empty();
        if helps || ["-h", "-help", "--help"].contains(&name) {
            return Ok(Some("--help"));
        }
        if name == "-" || !name.starts_with('-') {
            return Ok(Some(word));
        }
        let is =
            |flag: &Flag| flag.names().any(|known| known == name || known.strip_prefix('-') == Some(name));
        let flag = self.command.flags.iter().find(|flag| is(flag)).ok_or_else(|| self.unknown(name))?;
        if given.is_some() && flag.value.is_empty() {
            return Err(format!("{name} takes no value"));
        }
        (self.flag, self.given) = (Some(flag), given);
        Ok(Some(flag.name))
    }

    /// The value of this flag.
    ///
    /// # Errors
    /// There is none.
    pub fn value(&mut self) -> Result<&'a str, String> {
        let value = self.given.or_else(|| self.rest.next().map(String::as_str));
        let (name, what) = self.flag.map_or(("it", "a value"), |flag| (flag.name, flag.value));
        value.ok_or_else(|| format!("{name} needs a value: {what}"))
    }

    /// About a word that is not known here.
    pub fn unknown(&self, word: &str) -> String {
        let names = self.command.flags.iter().flat_map(Flag::names);
        let names = names.chain(self.command.sub.iter().map(|sub| sub.name)).chain(["--help"]);
        let hint = near(word, names.collect::<Vec<_>>());
        let hint = hint.map_or(String::new(), |name| format!("; did you mean {name}?"));
        format!("there is no {word:?} here{hint}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMAND: Command = Command {
        name: "look",
        words: "",
        summary: "look at something",
        text: "Looks.\n\n  loden look\n  loden look --why\n\nAgain.",
        flags: &[FORMAT, switch("--why", "tell why"), flag("--wait", "SECONDS", "wait").maybe()],
        exit: "0 seen, 1 not.",
        sub: &[],
    };

    fn read(line: &str) -> Result<String, String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let mut words = Words::new(&words, &COMMAND);
        let mut all = Vec::new();
        while let Some(name) = words.word()? {
            all.push(match name {
                "-o" => format!("-o={}", words.value()?),
                "--wait" => format!("--wait={:?}", words.given),
                other => other.to_owned(),
            });
        }
        Ok(all.join(" "))
    }

    #[test]
    fn words_are_read_by_the_definitions() {
        for (line, want) in [
            ("", Ok("")),
            ("-o json --why x -", Ok("-o=json --why x -")),
            ("--output=json -why", Ok("-o=json --why")),
            ("--wait=5 --wait", Ok("--wait=Some(\"5\") --wait=None")),
            ("-h", Ok("--help")),
            ("help", Ok("--help")),
            ("--why=yes", Err("--why takes no value")),
            ("-o", Err("-o needs a value: table|json")),
            ("--whi", Err("there is no \"--whi\" here; did you mean --why?")),
            ("--outptu=json", Err("there is no \"--outptu\" here; did you mean --output?")),
            ("--nonsense", Err("there is no \"--nonsense\" here")),
        ] {
            assert_eq!(read(line), want.map(str::to_owned).map_err(str::to_owned), "{line}");
        }
    }

    #[test]
    fn help_is_written_from_them() {
        let text = COMMAND.usage();
        let want = "\
usage: loden look [-o table|json] [--why] [--wait[=SECONDS]]

Looks.

  loden look
  loden look --why

Again.

  -o, --output table|json
                      text for people (the default), coloured on a terminal unless NO_COLOR is set;
                      or one JSON document, with a version
  --why               tell why
  --wait[=SECONDS]    wait

Exit status: 0 seen, 1 not.
";
        assert_eq!(text, want);
    }
}
