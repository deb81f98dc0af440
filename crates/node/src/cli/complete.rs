//! `loden completion SHELL`: a script for the shell, written from the definitions of commands and flags. The scripts hold
//! the words themselves and call no program, so a key pressed twice costs nothing.

use super::words::{Command, NONE, Words};
use super::{print, table};

/// What it is, for help, completion and manual.
pub const COMMAND: Command = Command {
    name: "completion",
    words: "",
    summary: "print a script that completes commands and flags in a shell",
    text: "\
Prints a completion script. To have it in every shell:

  loden completion bash > /usr/share/bash-completion/completions/loden
  loden completion zsh > /usr/share/zsh/vendor-completions/_loden
  loden completion fish > /usr/share/fish/vendor_completions.d/loden.fish

For this one: . <(loden completion bash)",
    flags: &[],
    exit: "0 printed, 2 there is no such shell.",
    sub: &[
        Command { name: "bash", summary: "4.0 and later", ..NONE },
        Command { name: "zsh", summary: "5.0 and later", ..NONE },
        Command { name: "fish", summary: "3.0 and later", ..NONE },
    ],
};

/// Runs the command; gives the exit status.
pub fn main(words: &[String]) -> u8 {
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["bash"] => print(&bash()),
        ["zsh"] => print(&zsh()),
        ["fish"] => print(&fish()),
        ["-h" | "-help" | "--help" | "help"] => print(&COMMAND.usage()),
        [] => COMMAND.refuse("for which shell?"),
        [shell] => COMMAND.refuse(&Words::new(words, &COMMAND).unknown(shell)),
        [_, more, ..] => COMMAND.refuse(&format!("{more:?} is too much")),
    }
}

/// A place in the tree of commands: what can be written there.
struct Place {
    /// `/lab/up`; empty at the top.
    path: String,
    /// Commands below it, with what they do.
    commands: Vec<(&'static str, &'static str)>,
    flags: Vec<Choice>,
}

/// A flag as shells see it.
struct Choice {
    names: Vec<String>,
    value: Value,
    help: String,
}

/// What follows a flag.
#[derive(Clone, PartialEq)]
enum Value {
    None,
    /// In the same word, after `=`, or not at all.
    Attached,
    Any,
    File,
    Directory,
    Of(Vec<&'static str>),
}

fn value(value: &'static str, optional: bool) -> Value {
    match value {
        "" => Value::None,
        _ if optional => Value::Attached,
        "FILE" | "PATH" => Value::File,
        "DIR" | "DIRS" => Value::Directory,
        choices if choices.contains('|') => Value::Of(choices.split('|').collect()),
        // The only choice there is.
        choice if choice.chars().all(|c| c.is_ascii_lowercase()) => Value::Of(vec![choice]),
        _ => Value::Any,
    }
}

/// All places, the top first.
fn places() -> Vec<Place> {
    let mut all: Vec<(&'static str, &'static str)> =
        table::commands().map(|command| (command.name, command.summary)).collect();
    all.extend([("version", "print the version"), ("help", "print what a command does and takes")]);
    let names: Vec<_> = table::commands().map(|command| (command.name, command.summary)).collect();
    let mut places = vec![
        Place { path: String::new(), commands: all, flags: Vec::new() },
        Place { path: "/help".to_owned(), commands: names, flags: Vec::new() },
    ];
    table::commands().for_each(|command| add(&mut places, String::new(), command, Vec::new()));
    places
}

fn add(places: &mut Vec<Place>, above: String, command: &'static Command, inherited: Vec<&'static Command>) {
    let path = format!("{above}/{}", command.name);
    let with: Vec<&Command> = inherited.iter().copied().chain([command]).collect();
    let ours = with.iter().flat_map(|command| command.flags);
    let mut flags: Vec<Choice> = ours
        .map(|flag| Choice {
            names: flag.names().map(str::to_owned).collect(),
            value: value(flag.value, flag.optional),
            help: flag.help.to_owned(),
        })
        .collect();
    if command.is_agent() {
        flags.extend(crate::args::FLAGS.iter().map(|flag| Choice {
            names: vec![format!("--{}", flag.name)],
            value: match (flag.kind, flag.name) {
                (model::goflag::Kind::Bool, _) => Value::None,
                (_, "log-format") => Value::Of(vec!["text", "json"]),
                (_, "fast-path") => Value::Of(vec!["off", "auto", "on"]),
                (_, name) if name.ends_with("file") || name.ends_with("path") => Value::File,
                _ => Value::Any,
            },
            help: flag.help.to_owned(),
        }));
    }
    flags.push(Choice { names: vec!["--help".to_owned()], value: Value::None, help: "help".to_owned() });
    let mut commands: Vec<_> = command.sub.iter().map(|sub| (sub.name, sub.summary)).collect();
    // `pod add|del|list …` is a choice as well.
    let first = command.words.split(' ').next().unwrap_or_default();
    if first.contains('|') && first.chars().all(|c| c.is_ascii_lowercase() || c == '|') {
        commands.extend(first.split('|').map(|word| (word, "")));
    }
    if command.name == "man" {
        commands.extend(table::commands().map(|command| (command.name, command.summary)));
    }
    places.push(Place { path: path.clone(), commands, flags });
    command.sub.iter().for_each(|sub| add(places, path.clone(), sub, with.clone()));
}

/// The paths below the top, for a pattern.
fn paths(places: &[Place], between: &str) -> String {
    places.iter().skip(1).map(|place| place.path.as_str()).collect::<Vec<_>>().join(between)
}

fn bash() -> String {
    let places = places();
    let mut text = format!(
        "\
# Completion of loden for bash, written by `loden completion bash`.
_loden() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} at= i words= flags=
    # A flag and its value are two words here, whether = or a blank is between them.
    if [[ $cur == '=' ]]; then
        cur=
    elif [[ $prev == '=' ]]; then
        prev=${{COMP_WORDS[COMP_CWORD-2]}}
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        case \"$at/${{COMP_WORDS[i]}}\" in
            {}) at=$at/${{COMP_WORDS[i]}} ;;
        esac
    done
    case \"$at $prev\" in
",
        paths(&places, " | ")
    );
    for place in &places {
        for flag in place.flags.iter().filter(|flag| !matches!(flag.value, Value::None | Value::Attached)) {
            let names: Vec<String> =
                flag.names.iter().map(|name| format!("'{} {name}'", place.path)).collect();
            let reply = match &flag.value {
                Value::File => "mapfile -t COMPREPLY < <(compgen -f -- \"$cur\")".to_owned(),
                Value::Directory => "mapfile -t COMPREPLY < <(compgen -d -- \"$cur\")".to_owned(),
                Value::Of(choices) => {
                    format!("mapfile -t COMPREPLY < <(compgen -W '{}' -- \"$cur\")", choices.join(" "))
                }
                _ => "COMPREPLY=(); compopt +o default +o bashdefault 2> /dev/null".to_owned(),
            };
            text += &format!("        {}) {reply}; return ;;\n", names.join(" | "));
        }
    }
    text += "    esac\n    case \"$at\" in\n";
    for place in &places {
        let names: Vec<&str> = place.commands.iter().map(|(name, _)| *name).collect();
        let flags: Vec<&str> = place.flags.iter().flat_map(|flag| &flag.names).map(String::as_str).collect();
        text += &format!(
            "        '{}') words='{}' flags='{}' ;;\n",
            place.path,
            names.join(" "),
            flags.join(" ")
        );
    }
    text += "\
    esac
    if [[ $cur == -* ]]; then
        words=$flags
    fi
    mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$cur\")
}
complete -o bashdefault -o default -F _loden loden
";
    text
}

/// In single quotes, for a shell in which a quote ends them.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn zsh() -> String {
    let places = places();
    let mut text = format!(
        "\
#compdef loden
# Completion of loden for zsh, written by `loden completion zsh`.
_loden() {{
    local at= i
    local -a names
    for ((i = 2; i < CURRENT; i++)); do
        case \"$at/$words[i]\" in
            ({}) at=$at/$words[i] ;;
        esac
    done
    case \"$at $words[CURRENT-1]\" in
",
        paths(&places, "|")
    );
    for place in &places {
        for flag in place.flags.iter().filter(|flag| !matches!(flag.value, Value::None | Value::Attached)) {
            let names: Vec<String> =
                flag.names.iter().map(|name| format!("'{} {name}'", place.path)).collect();
            let reply = match &flag.value {
                Value::File => "_files".to_owned(),
                Value::Directory => "_files -/".to_owned(),
                Value::Of(choices) => format!("compadd -- {}", choices.join(" ")),
                _ => "_message value".to_owned(),
            };
            text += &format!("        ({}) {reply}; return ;;\n", names.join("|"));
        }
    }
    text += "    esac\n    case \"$at\" in\n";
    for place in &places {
        text += &format!("        ('{}')\n            if [[ $PREFIX == -* ]]; then\n", place.path);
        let line = |name: &str, help: &str| {
            format!("names+=({})\n", quoted(&format!("{}:{help}", name.replace(':', "\\:"))))
        };
        for flag in &place.flags {
            flag.names.iter().for_each(|name| text += &format!("                {}", line(name, &flag.help)));
        }
        text += "                :\n            else\n";
        place
            .commands
            .iter()
            .for_each(|(name, help)| text += &format!("                {}", line(name, help)));
        text += "                :\n            fi ;;\n";
    }
    text += "\
    esac
    if ((${#names})); then
        _describe loden names
    else
        _files
    fi
}
# Loaded by name, or read as a file.
if [[ $funcstack[1] == _loden ]]; then
    _loden \"$@\"
else
    compdef _loden loden
fi
";
    text
}

fn fish() -> String {
    let places = places();
    let quoted = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
    let mut text = format!(
        "\
# Completion of loden for fish, written by `loden completion fish`.
function __loden_at
    set -l at ''
    set -l words (commandline -opc)
    set -e words[1]
    for word in $words
        switch \"$at/$word\"
            case {}
                set at \"$at/$word\"
        end
    end
    echo \"at$at\"
end
",
        paths(&places, " ")
    );
    for place in &places {
        let when = format!("complete -c loden -n 'test (__loden_at) = at{}'", place.path);
        for (name, help) in &place.commands {
            text += &format!("{when} -f -a {name} -d {}\n", quoted(help));
        }
        for flag in &place.flags {
            let names = flag.names.iter().map(|name| match name.strip_prefix("--") {
                Some(long) => format!(" -l {long}"),
                None => format!(" -s {}", name.trim_start_matches('-')),
            });
            let value = match &flag.value {
                Value::None | Value::Attached => String::new(),
                Value::Any => " -x".to_owned(),
                Value::File => " -r -F".to_owned(),
                Value::Directory => " -x -a '(__fish_complete_directories)'".to_owned(),
                Value::Of(choices) => format!(" -x -a '{}'", choices.join(" ")),
            };
            text += &format!("{when}{}{value} -d {}\n", names.collect::<String>(), quoted(&flag.help));
        }
    }
    text
}
