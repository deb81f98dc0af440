//! Command lines by the rules of Go's `flag` package (flannel.md 1.1), which differ from GNU habits in
//! every corner: one or two dashes are the same, booleans take a value only after `=`, the first word
//! that is not a flag ends parsing.
//!
//! Takes the declared flags and the words, gives settings in order. Sets nothing itself.

use std::fmt::Write as _;

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// True or false; alone it means true.
    Bool,
    /// A number of 64 bits in Go's base-0 syntax.
    Int,
    /// Any text.
    Text,
    /// Any text, may be repeated.
    List,
}

/// A declared flag.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// Name without dashes.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// Default as text; empty for none.
    pub default: &'static str,
    /// One line for the usage text.
    pub help: &'static str,
}

/// A value of its flag's kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Of [`Kind::Bool`].
    Bool(bool),
    /// Of [`Kind::Int`].
    Int(i64),
    /// Of [`Kind::Text`] and [`Kind::List`].
    Text(String),
}

/// What the words say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// Flag name and value, in order.
    pub settings: Vec<(&'static str, Value)>,
    /// Words after the first that is not a flag. flannel ignores them silently (F-02).
    pub rest: Vec<String>,
}

/// Why parsing stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// `-h`, `-help` or `--help`.
    Help,
    /// A mistake, in Go's words.
    Error(String),
}

/// Reads the words after the program's name.
///
/// # Errors
/// Asked for help, an unknown flag, a missing or bad value.
pub fn parse(flags: &[Flag], words: &[String]) -> Result<Parsed, Stop> {
    let mut parsed = Parsed::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let Some(name) = word.strip_prefix('-').filter(|rest| !rest.is_empty()) else {
            parsed.rest.push(word.clone());
            break;
        };
        let name = name.strip_prefix('-').unwrap_or(name);
        if name.is_empty() {
            // `--` ends the flags and is not itself a word.
            break;
        }
        if name.starts_with(['-', '=']) {
            return Err(Stop::Error(format!("bad flag syntax: {word}")));
        }
        let (name, given) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (name, None),
        };
        let Some(flag) = flags.iter().find(|flag| flag.name == name) else {
            if name == "h" || name == "help" {
                return Err(Stop::Help);
            }
            return Err(Stop::Error(format!("flag provided but not defined: -{name}")));
        };
        let text = match (given, flag.kind) {
            (Some(value), _) => value,
            (None, Kind::Bool) => "true",
            (None, _) => match words.next() {
                Some(value) => value.as_str(),
                None => return Err(Stop::Error(format!("flag needs an argument: -{name}"))),
            },
        };
        let value = value(flag.kind, text).map_err(|why| {
            Stop::Error(match flag.kind {
                Kind::Bool => format!("invalid boolean value {text:?} for -{name}: {why}"),
                _ => format!("invalid value {text:?} for flag -{name}: {why}"),
            })
        })?;
        parsed.settings.push((flag.name, value));
    }
    parsed.rest.extend(words.cloned());
    Ok(parsed)
}

/// Reads the text of one value.
///
/// # Errors
/// Go's words: `parse error` or `value out of range`.
pub fn value(kind: Kind, text: &str) -> Result<Value, &'static str> {
    match kind {
        Kind::Text | Kind::List => Ok(Value::Text(text.to_owned())),
        Kind::Bool => match text {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(Value::Bool(false)),
            _ => Err("parse error"),
        },
        Kind::Int => integer(text).map(Value::Int),
    }
}

/// `strconv.ParseInt(text, 0, 64)`: sign, base prefix, digits, and underscores only with a base prefix
/// or between digits as in Go source.
fn integer(text: &str) -> Result<i64, &'static str> {
    const SYNTAX: &str = "parse error";
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, body) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    // An underscore may follow a base prefix and stand between digits, nowhere else.
    let after_prefix = radix != 10;
    let misplaced = body.contains("__") || body.ends_with('_') || (body.starts_with('_') && !after_prefix);
    let plain: String = body.chars().filter(|c| *c != '_').collect();
    if plain.is_empty() || misplaced || !plain.chars().all(|c| c.is_digit(radix)) {
        return Err(SYNTAX);
    }
    let signed = if negative { format!("-{plain}") } else { plain };
    i64::from_str_radix(&signed, radix).map_err(|_| "value out of range")
}

/// The usage text: `Usage: <program> [OPTION]...`, then the flags in alphabetical order.
pub fn usage(program: &str, flags: &[Flag]) -> String {
    let mut sorted: Vec<&Flag> = flags.iter().collect();
    sorted.sort_by_key(|flag| flag.name);
    let mut text = format!("Usage: {program} [OPTION]...\n");
    for flag in sorted {
        let takes = match flag.kind {
            Kind::Bool => "",
            Kind::Int => " int",
            Kind::Text => " string",
            Kind::List => " value",
        };
        let default = match (flag.kind, flag.default) {
            (_, "" | "false" | "0") => String::new(),
            (Kind::Text, default) => format!(" (default {default:?})"),
            (_, default) => format!(" (default {default})"),
        };
        // Go keeps a switch of one letter on the line of its text.
        let gap = if flag.name.len() + takes.len() == 1 { "\t" } else { "\n    \t" };
        let _ = writeln!(text, "  -{}{takes}{gap}{}{default}", flag.name, flag.help);
    }
    text
}

/// The candidate a misspelt word most likely means: at most a third of its letters wrong, missing, too many or in the
/// wrong order (distance of Damerau and Levenshtein, adjacent letters), or its only continuation.
pub fn near<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let candidates: Vec<&str> = candidates.into_iter().collect();
    let mut longer = candidates.iter().filter(|candidate| word.len() > 1 && candidate.starts_with(word));
    if let (Some(only), None) = (longer.next(), longer.next()) {
        return Some(only);
    }
    let most = word.chars().count().div_ceil(3);
    let distances = candidates.into_iter().map(|candidate| (distance(word, candidate), candidate));
    distances.filter(|(distance, _)| *distance <= most).min_by_key(|(distance, _)| *distance).map(|(_, c)| c)
}

fn distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in other.iter().enumerate() {
            let mut least = (last[j] + usize::from(a != b)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == other[j - 1] && one[i - 1] == *b {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: &[Flag] = &[
        Flag { name: "ip-masq", kind: Kind::Bool, default: "false", help: "set up masquerade" },
        Flag { name: "v", kind: Kind::Int, default: "0", help: "log level" },
        Flag { name: "iface", kind: Kind::List, default: "", help: "interface" },
        Flag { name: "subnet-file", kind: Kind::Text, default: "/run/x", help: "file" },
    ];

    fn check(line: &str, want: &str) {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let got = match parse(FLAGS, &words) {
            Ok(parsed) => {
                let settings = parsed.settings.iter().map(|(name, value)| match value {
                    Value::Bool(b) => format!("{name}={b}"),
                    Value::Int(n) => format!("{name}={n}"),
                    Value::Text(t) => format!("{name}={t}"),
                });
                let rest = if parsed.rest.is_empty() {
                    String::new()
                } else {
                    format!("| {}", parsed.rest.join(" "))
                };
                settings.chain([rest].into_iter().filter(|r| !r.is_empty())).collect::<Vec<_>>().join(" ")
            }
            Err(Stop::Help) => "help".to_owned(),
            Err(Stop::Error(error)) => format!("error: {error}"),
        };
        assert_eq!(got, want, "{line}");
    }

    #[test]
    fn words_are_read_as_go_reads_them() {
        for (line, want) in [
            ("", ""),
            ("-ip-masq --v 4", "ip-masq=true v=4"),
            ("--ip-masq=F -v=0x10", "ip-masq=false v=16"),
            ("-ip-masq false -v 4", "ip-masq=true | false -v 4"),
            ("-iface eth0 --iface=eth1,eth2", "iface=eth0 iface=eth1,eth2"),
            ("-subnet-file -v -v 3", "subnet-file=-v v=3"),
            ("-subnet-file= -v 3", "subnet-file= v=3"),
            ("-v 1 -- -v 2", "v=1 | -v 2"),
            ("-v 1 - -v 2", "v=1 | - -v 2"),
            ("-v 010 -v 0o17 -v 0b11 -v 1_000 -v -5", "v=8 v=15 v=3 v=1000 v=-5"),
            ("-v 1 -v 2", "v=1 v=2"),
            ("-h", "help"),
            ("--help", "help"),
            ("-nope", "error: flag provided but not defined: -nope"),
            ("---v", "error: bad flag syntax: ---v"),
            ("-=v", "error: bad flag syntax: -=v"),
            ("-v", "error: flag needs an argument: -v"),
            ("-v x", "error: invalid value \"x\" for flag -v: parse error"),
            ("-v 08", "error: invalid value \"08\" for flag -v: parse error"),
            ("-v 1__0", "error: invalid value \"1__0\" for flag -v: parse error"),
            (
                "-v 99999999999999999999",
                "error: invalid value \"99999999999999999999\" for flag -v: value out of range",
            ),
            ("-ip-masq=yes", "error: invalid boolean value \"yes\" for -ip-masq: parse error"),
            ("-ip-masq=", "error: invalid boolean value \"\" for -ip-masq: parse error"),
            ("-v=", "error: invalid value \"\" for flag -v: parse error"),
            ("-v 0_7 -v 0x_1f -v 0O17 -v +5 -v -0x10", "v=7 v=31 v=15 v=5 v=-16"),
            ("-v -9223372036854775808", "v=-9223372036854775808"),
            (
                "-v 9223372036854775808",
                "error: invalid value \"9223372036854775808\" for flag -v: value out of range",
            ),
            ("-v _1", "error: invalid value \"_1\" for flag -v: parse error"),
            ("-v 1_", "error: invalid value \"1_\" for flag -v: parse error"),
            ("-v 0b", "error: invalid value \"0b\" for flag -v: parse error"),
            ("-v 0é", "error: invalid value \"0é\" for flag -v: parse error"),
            ("-v=1=2", "error: invalid value \"1=2\" for flag -v: parse error"),
            ("-subnet-file=a=b", "subnet-file=a=b"),
            ("-h=3", "help"),
            ("--=v", "error: bad flag syntax: --=v"),
        ] {
            check(line, want);
        }
    }

    #[test]
    fn misspelt_words_have_a_neighbour() {
        let words = ["status", "doctor", "trace", "dump", "lab", "config", "cni", "cleanup", "version"];
        for (word, want) in [
            ("statsu", Some("status")),
            ("satus", Some("status")),
            ("Status", Some("status")),
            ("stat", Some("status")),
            ("docter", Some("doctor")),
            ("dum", Some("dump")),
            ("trase", Some("trace")),
            ("cnf", Some("cni")),
            ("clean", Some("cleanup")),
            ("c", None),
            ("", None),
            ("pods", None),
            ("reboot", None),
        ] {
            assert_eq!(near(word, words), want, "{word}");
        }
    }

    #[test]
    fn usage_is_alphabetical() {
        let text = usage("flanneld", FLAGS);
        let first: Vec<&str> = text.lines().take(3).collect();
        assert_eq!(first, ["Usage: flanneld [OPTION]...", "  -iface value", "    \tinterface"]);
        assert!(text.contains("  -ip-masq\n    \tset up masquerade\n"), "{text}");
        assert!(text.contains("file (default \"/run/x\")"), "{text}");
    }
}
