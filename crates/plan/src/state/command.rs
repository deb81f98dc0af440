//! A command of the extension backend as an object: it stands when its command has succeeded.
//!
//! Nobody can read from a kernel what a command did, so what stands is known to the process that ran it;
//! after a restart all are run again, as flannel does (decision 0150).

use std::fmt;

use model::Subnets;

/// Which command. The order is that of running; each needs the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CommandKey {
    /// `PreStartupCommand`, before the lease.
    Prepare,
    /// `PostStartupCommand`, after it.
    Startup,
    /// `SubnetAddCommand` and `SubnetRemoveCommand` of a peer.
    Peer(Subnets),
}

/// A command, and what undoes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Which one.
    pub key: CommandKey,
    /// Run to bring it about; without one it stands by itself.
    pub up: Option<Line>,
    /// Run when it is no longer wanted.
    pub down: Option<Line>,
    /// Variables besides the agent's own.
    pub env: Vec<(&'static str, String)>,
    /// Standard input, less its newline.
    pub input: String,
}

impl Command {
    /// The key in the configuration of the command for one direction.
    pub fn name(&self, up: bool) -> &'static str {
        match (self.key, up) {
            (CommandKey::Prepare, _) => "PreStartupCommand",
            (CommandKey::Startup, _) => "PostStartupCommand",
            (CommandKey::Peer(_), true) => "SubnetAddCommand",
            (CommandKey::Peer(_), false) => "SubnetRemoveCommand",
        }
    }

    /// The command of one direction.
    pub fn line(&self, up: bool) -> Option<&Line> {
        if up { self.up.as_ref() } else { self.down.as_ref() }
    }

    /// One direction with its variables, as a shell would take it. The input is left out: it is the peer's
    /// word, and may be long.
    pub fn shown(&self, up: bool) -> String {
        let mut text = String::new();
        for (name, value) in &self.env {
            text.push_str(&format!("{name}={value} "));
        }
        text + &self.line(up).map_or_else(|| format!("true # no {}", self.name(up)), ToString::to_string)
    }
}

/// A command as the configuration has it. One without any syntax of a shell is run directly, as flannel does
/// since v0.28.2; any other can only have worked with `sh -c`, as flannel ran it until then (F-120).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    text: String,
    shell: bool,
}

/// What only a shell knows.
const BUILTINS: &[&str] = &[
    "!", ".", ":", "alias", "case", "cd", "command", "eval", "exec", "exit", "export", "for", "getopts",
    "hash", "if", "local", "read", "readonly", "return", "set", "shift", "source", "times", "trap", "type",
    "ulimit", "umask", "unset", "until", "wait", "while", "{",
];

impl Line {
    /// `None` for a text without a word.
    pub fn new(text: &str) -> Option<Line> {
        let text = text.trim();
        (!text.is_empty()).then(|| Line { text: text.to_owned(), shell: needs_shell(text) })
    }

    /// Program and arguments. `variable` gives the value of a variable, which may be absent.
    pub fn words(&self, variable: impl Fn(&str) -> Option<String>) -> Vec<String> {
        if self.shell {
            return ["sh", "-c", &self.text].map(str::to_owned).into();
        }
        self.text.split_whitespace().map(|word| expand(word, &variable)).collect()
    }

    /// Whether it is run by `sh`.
    pub fn by_shell(&self) -> bool {
        self.shell
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.shell {
            write!(f, "sh -c '{}'", self.text.replace('\'', "'\\''"))
        } else {
            f.write_str(&self.text)
        }
    }
}

/// A reference to a variable at the start of a text that begins with `$`: its name, and the length of all.
fn reference(text: &str) -> Option<(&str, usize)> {
    let (inner, braces) = match text.strip_prefix("${") {
        Some(inner) => (inner, true),
        None => (text.strip_prefix('$')?, false),
    };
    let length = inner.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
    let name = &inner[..length];
    let fine = name.bytes().next().is_some_and(|b| !b.is_ascii_digit());
    match braces {
        _ if !fine => None,
        true => inner[length..].starts_with('}').then_some((name, length + 3)),
        false => Some((name, length + 1)),
    }
}

fn needs_shell(text: &str) -> bool {
    let first = text.split_whitespace().next().unwrap_or_default();
    // An assignment in front of the command.
    let assigns = first.split_once('=').is_some_and(|(name, _)| {
        name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !name.is_empty()
    });
    if assigns || BUILTINS.contains(&first) {
        return true;
    }
    let mut before = ' ';
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skip = match c {
            '"' | '\'' | '\\' | '&' | ';' | '|' | '<' | '>' | '(' | ')' | '`' | '*' | '?' | '[' | '\n' => {
                return true;
            }
            '#' | '~' if before.is_whitespace() => return true,
            '$' => match reference(rest) {
                Some((_, length)) => length,
                None => return true,
            },
            _ => c.len_utf8(),
        };
        before = c;
        rest = &rest[skip..];
    }
    false
}

fn expand(word: &str, variable: &impl Fn(&str) -> Option<String>) -> String {
    let mut text = String::new();
    let mut rest = word;
    while let Some(place) = rest.find('$') {
        text.push_str(&rest[..place]);
        rest = &rest[place..];
        let Some((name, length)) = reference(rest) else { break };
        text.push_str(&variable(name).unwrap_or_default());
        rest = &rest[length..];
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_is_used_where_only_a_shell_will_do() {
        let variable = |name: &str| match name {
            "SUBNET" => Some("10.244.2.0/24".to_owned()),
            "PUBLIC_IP" => Some("192.0.2.12".to_owned()),
            _ => None,
        };
        for (text, words) in [
            ("ip route add $SUBNET via ${PUBLIC_IP}", "ip|route|add|10.244.2.0/24|via|192.0.2.12"),
            ("  /opt/tool\tup  x$SUBNET$PUBLIC_IP.y $NONE ", "/opt/tool|up|x10.244.2.0/24192.0.2.12.y|"),
            ("tool key=value $_x1", "tool|key=value|"),
            ("ip -4 r a:b @%+,-_/{}", "ip|-4|r|a:b|@%+,-_/{}"),
        ] {
            let line = Line::new(text).unwrap();
            assert!(!line.by_shell(), "{text}");
            assert_eq!(line.words(variable).join("|"), words, "{text}");
            assert_eq!(line.to_string(), text.trim(), "{text}");
        }
        for text in [
            "read MAC; ip route add $SUBNET",
            "echo 'x'",
            "echo \"x\"",
            "a && b",
            "a || b",
            "a | b",
            "cat < /etc/hostname",
            "echo x > /tmp/x",
            "echo $(hostname)",
            "echo `hostname`",
            "(a)",
            "a &",
            "ls *.conf",
            "ls a?",
            "ls [ab]",
            "ls ~/x",
            "a # comment",
            "a \\; b",
            "A=b c",
            "export A=b",
            "cd /",
            "{ a; }",
            "echo $1",
            "echo $$",
            "echo ${A:-b}",
            "echo $",
            "first\nsecond",
            "if true; then a; fi",
        ] {
            let line = Line::new(text).unwrap();
            assert_eq!(line.words(variable), ["sh", "-c", text], "{text}");
        }
        assert_eq!(Line::new(" \n\t "), None);
        assert_eq!(Line::new("echo 'x'").unwrap().to_string(), "sh -c 'echo '\\''x'\\'''");
    }
}
