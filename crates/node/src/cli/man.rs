//! `loden man [COMMAND]`: a manual page in roff (man(7)), written from the definitions of commands and flags.

use super::words::{Command, Words};
use super::{print, table};
use crate::start;

/// What it is, for help, completion and manual.
pub const COMMAND: Command = Command {
    name: "man",
    words: "[COMMAND]",
    summary: "print a manual page, in roff",
    text: "\
Prints the manual page of a command, or of them all together.

  loden man status | man -l -
  loden man > /usr/share/man/man1/loden.1",
    flags: &[],
    exit: "0 printed, 2 there is no such command.",
    sub: &[],
};

/// Runs the command; gives the exit status.
pub fn main(words: &[String]) -> u8 {
    let mut words = Words::new(words, &COMMAND);
    let page = match words.word() {
        Ok(None) => whole(),
        Ok(Some("--help")) => return print(&COMMAND.usage()),
        Ok(Some(name)) => match table::find(name) {
            Some(entry) => page(&entry.command),
            None => return super::unknown(name),
        },
        Err(error) => return COMMAND.refuse(&error),
    };
    match words.word() {
        Ok(None) => print(&page),
        Ok(Some(more)) => COMMAND.refuse(&format!("{more:?} is too much")),
        Err(error) => COMMAND.refuse(&error),
    }
}

/// Of the program.
fn whole() -> String {
    let mut text = head("loden", "the network under Kubernetes and Docker hosts; a drop-in for flannel");
    text += ".SH SYNOPSIS\n.B loden\nCOMMAND [ARGUMENT]...\n.SH DESCRIPTION\n";
    text += &prose(
        "Loden gives every host a subnet of the cluster network for its pods, and carries packets between hosts. The store of \
         the leases is chosen by LODEN_STORE.\n\nCalled as flanneld, this program is the agent; as mk-docker-opts.sh, that \
         script of flannel; as kubectl-loden, a plugin of kubectl.",
    );
    text += ".SH COMMANDS\n";
    for command in table::commands() {
        text += &item(command.name, command.summary);
    }
    text += &item("version", "print the version");
    text += &item("help", "print a list of commands, or what one does and takes");
    text += ".SH ENVIRONMENT\n";
    table::VARIABLES.iter().for_each(|variable| text += &item(variable.name, variable.help));
    text += ".SH FILES\n";
    for (file, what) in [
        ("/run/flannel/subnet.env", "what the plugins read; written by the agent"),
        ("/run/flannel/loden.sock", "the agent's socket"),
        ("/var/lib/loden/", "leases of the embedded store, the last good state"),
        ("/etc/cni/net.d/", "CNI configurations"),
    ] {
        text += &item(file, what);
    }
    let others: Vec<String> =
        table::commands().map(|command| format!(".BR loden\\-{} (1)", escaped(command.name))).collect();
    text + ".SH SEE ALSO\n" + &others.join(",\n") + "\n"
}

/// Of one command.
fn page(command: &Command) -> String {
    let mut text = head(&format!("loden-{}", command.name), command.summary);
    text += ".SH SYNOPSIS\n";
    for (at, line) in command.synopsis("loden").iter().enumerate() {
        let (name, rest) = line.split_at(line.find(" [").unwrap_or(line.len()));
        text += if at == 0 { "" } else { ".br\n" };
        text += &format!("\\fB{}\\fR{}\n", escaped(name), escaped(rest));
    }
    text += ".SH DESCRIPTION\n";
    text += &prose(command.text);
    if !command.sub.is_empty() {
        text += ".SH COMMANDS\n";
        for sub in command.sub {
            text += &item(format!("{} {}", sub.name, sub.words).trim(), sub.summary);
            let flags: String = sub.flags.iter().map(|flag| item(&flag.listed(), flag.help)).collect();
            if !flags.is_empty() {
                text += &format!(".RS\n{flags}.RE\n");
            }
        }
    }
    let listed = command.listed();
    if !listed.is_empty() {
        text += ".SH OPTIONS\n";
        listed.iter().for_each(|(name, help)| text += &item(name, help));
    }
    if !command.exit.is_empty() {
        text += &format!(".SH EXIT STATUS\n{}", prose(command.exit));
    }
    let by = |by: &str| by.split(", ").any(|by| by == command.name);
    let variables: String =
        table::VARIABLES.iter().filter(|v| by(v.by)).map(|v| item(v.name, v.help)).collect();
    if !variables.is_empty() {
        text += &format!(".SH ENVIRONMENT\n{variables}");
    }
    text + ".SH SEE ALSO\n.BR loden (1)\n"
}

/// Words are not divided and lines not filled up with blanks: people copy them.
fn head(name: &str, summary: &str) -> String {
    format!(
        ".TH {} 1 \"\" \"loden {}\" Loden\n.nh\n.ad l\n.SH NAME\n{} \\- {}\n",
        escaped(&name.to_uppercase()),
        start::VERSION,
        escaped(name),
        escaped(summary)
    )
}

/// A name and what it means.
fn item(name: &str, text: &str) -> String {
    format!(".TP\n\\fB{}\\fR\n{}\n", escaped(name), line(text))
}

/// Paragraphs; what is indented stays as it is.
fn prose(text: &str) -> String {
    let paragraph = |text: &str| match text.starts_with("  ") {
        true => format!(".PP\n.nf\n{}\n.fi\n", text.lines().map(line).collect::<Vec<_>>().join("\n")),
        false => format!(".PP\n{}\n", line(text)),
    };
    text.split("\n\n").map(paragraph).collect()
}

/// A line that begins with a point would be a command.
fn line(text: &str) -> String {
    let text = escaped(text);
    if text.starts_with('.') { format!("\\&{text}") } else { text }
}

fn escaped(text: &str) -> String {
    // Characters that a typesetter would make prettier, and that people copy.
    let pairs =
        [('\\', "\\e"), ('-', "\\-"), ('`', "\\(ga"), ('\'', "\\(aq"), ('^', "\\(ha"), ('~', "\\(ti")];
    let of = |c: char| {
        pairs.iter().find(|(plain, _)| *plain == c).map_or(c.to_string(), |(_, to)| (*to).to_owned())
    };
    text.chars().map(of).collect()
}
