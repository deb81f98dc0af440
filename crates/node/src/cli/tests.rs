//! The table of commands against itself, the sources and the reference.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use model::goflag::Kind;

use super::table;
use super::words::{Command, Words};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn all(visit: &mut dyn FnMut(&Command)) {
    fn walk(command: &Command, visit: &mut dyn FnMut(&Command)) {
        visit(command);
        command.sub.iter().for_each(|sub| walk(sub, visit));
    }
    table::commands().for_each(|command| walk(command, visit));
}

#[test]
fn definitions_are_whole() {
    let mut names = BTreeSet::new();
    for command in table::commands() {
        assert!(names.insert(command.name), "{} twice", command.name);
        assert!(!command.text.is_empty() && command.exit.ends_with('.'), "{}", command.name);
    }
    all(&mut |command| {
        let name = command.name;
        assert!(!command.summary.is_empty() && !command.summary.ends_with('.'), "{name}");
        let mut flags = BTreeSet::new();
        for flag in command.flags {
            assert!(!flag.help.is_empty() && !flag.help.ends_with('.'), "{name} {}", flag.name);
            for of in flag.names() {
                assert!(flags.insert(of) && of.starts_with('-'), "{name} {of}");
                assert!(of.len() == 2 || of.starts_with("--"), "{name} {of}: shells know -x and --xyz");
            }
        }
    });
    for line in super::usage().lines().chain(table::commands().flat_map(|c| {
        let text: &'static str = Box::leak(c.usage().into_boxed_str());
        text.lines()
    })) {
        assert!(line.chars().count() <= 110, "{line}");
    }
}

/// What the readers of command lines know is what the table knows: each flag of it is taken.
#[test]
fn every_flag_is_read() {
    for command in table::commands().filter(|command| !command.flags.is_empty()) {
        for flag in command.flags {
            for name in flag.names() {
                let line = match (flag.value, flag.optional) {
                    ("", _) | (_, true) => vec![name.to_owned()],
                    (value, false) => vec![name.to_owned(), sample(value).to_owned()],
                };
                let mut words = Words::new(&line, command);
                assert_eq!(words.word(), Ok(Some(flag.name)), "{} {name}", command.name);
                let read = match command.name {
                    "status" => super::status::understands(&line),
                    "top" => super::top::understands(&line),
                    "doctor" => super::doctor::understands(&line),
                    "drops" => super::drops::understands(&line),
                    "capture" => super::capture::understands(
                        &[line, ["host", "192.0.2.1"].map(str::to_owned).to_vec()].concat(),
                    ),
                    "bench" => bench::understands(&line),
                    "dump" => super::dump::understands(&line),
                    "trace" => super::trace::understands(&[line, vec!["192.0.2.1".to_owned()]].concat()),
                    "cleanup" => super::cleanup::understands(&line),
                    "cni" => super::cni::understands(
                        &[line, ["add", "n", "/p"].map(str::to_owned).to_vec()].concat(),
                    ),
                    // Read by letters, and in another room: `crates/node/tests/it/cli.rs`.
                    "mk-docker-opts" | "lab" => Ok(()),
                    other => panic!("{other} has flags, and nobody tries them here"),
                };
                let error = read.err().unwrap_or_default();
                assert!(!error.contains("there is no"), "{} {name}: {error}", command.name);
            }
        }
    }
}

/// A value a flag takes.
fn sample(value: &str) -> &str {
    match value {
        "CIDR" => "10.0.0.0/8",
        "SECONDS" | "PACKETS" | "PORT" | "N" => "5",
        choices if choices.contains('|') => choices.split('|').next().unwrap_or_default(),
        choice if choice.chars().all(|c| c.is_ascii_lowercase()) => choice,
        _ => "x",
    }
}

/// Rust sources that are in the programs.
fn sources(dir: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(dir).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs")
            && path.file_name().is_none_or(|name| name != "tests.rs")
        {
            let text = fs::read_to_string(&path).expect("a text");
            // Tests in the file stand at its end.
            found.push((path, text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned()));
        }
    }
}

fn programs() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for room in ["bench", "cni", "fastpath", "kernel", "lab", "model", "node", "plan", "store", "tunnel"] {
        sources(&root().join("crates").join(room).join("src"), &mut found);
    }
    found
}

/// The words in quotes that begin so.
fn quoted<'a>(text: &'a str, beginning: &str) -> Vec<&'a str> {
    let start = format!("\"{beginning}");
    let of = |(at, _): (usize, &str)| {
        let word = &text[at + 1..];
        let end = word.find(|c: char| !c.is_ascii_uppercase() && !c.is_ascii_digit() && c != '_')?;
        word[end..].starts_with('"').then(|| &word[..end])
    };
    text.match_indices(start.as_str()).filter_map(of).collect()
}

#[test]
fn every_variable_is_in_the_table() {
    let known: BTreeSet<&str> = table::VARIABLES.iter().map(|variable| variable.name).collect();
    assert_eq!(known.len(), table::VARIABLES.len(), "none twice");
    let mut seen = BTreeSet::new();
    for (path, text) in programs() {
        if path.ends_with("cli/table.rs") || path.ends_with("node/src/sim.rs") {
            continue;
        }
        let mut names = quoted(&text, "LODEN_");
        for call in ["var(", "var_os(", "env(", "either(", "set("] {
            let of = text.match_indices(call).filter_map(|(at, _)| {
                let name = text[at + call.len()..].strip_prefix('"')?.split('"').next()?;
                let plain = name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
                (plain && name.len() > 3).then_some(name)
            });
            names.extend(of);
        }
        for name in names {
            // Beginnings of names, and what is the system's own.
            let common =
                ["PATH", "LODEN_", "TERM", "LANG", "HOME"].contains(&name) || name.starts_with("LC_");
            let flag = name.strip_prefix("FLANNELD_").map(|flag| flag.to_lowercase().replace('_', "-"));
            let of_agent = flag.is_some_and(|flag| crate::args::FLAGS.iter().any(|known| known.name == flag));
            let subnet_env = name.starts_with("FLANNEL_");
            assert!(common || of_agent || subnet_env || known.contains(name), "{name} in {}", path.display());
            seen.insert(name.to_owned());
        }
    }
    for name in known {
        let text_only = programs()
            .iter()
            .any(|(path, text)| !path.ends_with("cli/table.rs") && text.contains(&format!("\"{name}\"")));
        assert!(seen.contains(name) || text_only || name == "LODEN_LOG_FORMAT", "{name}: nobody reads it");
    }
}

/// Keys of the network configuration: key, backends (empty for the top level), what it says.
const KEYS: &[(&str, &str, &str)] = &[
    ("Network", "", "IPv4 network of all pods, such as `10.244.0.0/16`; needed with IPv4"),
    (
        "SubnetLen",
        "",
        "length of a node's IPv4 subnet, at most 30; default 24, or one bit more than `Network` if that is as long",
    ),
    ("SubnetMin", "", "first IPv4 subnet given to nodes; default the second of `Network`"),
    ("SubnetMax", "", "last IPv4 subnet given to nodes; default the last of `Network`"),
    ("EnableIPv4", "", "`true` (default) or `false`"),
    ("EnableIPv6", "", "`true` or `false` (default)"),
    ("IPv6Network", "", "IPv6 network of all pods, such as `fd00:10:244::/48`; needed with IPv6"),
    ("IPv6SubnetLen", "", "length of a node's IPv6 subnet; default 64"),
    ("IPv6SubnetMin", "", "first IPv6 subnet given to nodes"),
    ("IPv6SubnetMax", "", "last IPv6 subnet given to nodes"),
    ("EnableNFTables", "", "rules in nftables instead of iptables; default `false`"),
    ("Backend", "", "an object: how packets go to other nodes, with the keys below"),
    (
        "Type",
        "all",
        "`vxlan`, `host-gw`, `wireguard`, `ipip`, `udp`, `ipsec`, `extension`, `tencent-vpc`, `alloc`; without `Backend` it is `udp`",
    ),
    (
        "FastPath",
        "vxlan, host-gw",
        "established flows skip bridge and netfilter: `off` (default), `auto`, `on`; ours",
    ),
    ("VNI", "vxlan", "VXLAN network identifier, 0 to 16777215; default 1"),
    ("Port", "vxlan, udp", "UDP port; default 8472 for vxlan, 8285 for udp"),
    ("MTU", "vxlan, wireguard", "of the outer packet in bytes; default that of the interface"),
    ("GBP", "vxlan", "carry the group policy extension; default `false`"),
    ("Learning", "vxlan", "let the device learn hardware addresses; default `false`"),
    ("DirectRouting", "vxlan, ipip", "plain routes to nodes on the same link; default `false`"),
    (
        "CheckSources",
        "vxlan, ipip",
        "take tunnel packets from nodes with a lease only; default `true` for ipip, `false` for vxlan; ours",
    ),
    ("ListenPort", "wireguard", "UDP port; default 51820"),
    ("ListenPortV6", "wireguard", "UDP port of the second device of mode `separate`; default 51821"),
    (
        "Mode",
        "wireguard",
        "`separate` (default): a tunnel for each family; `auto`, `ipv4`, `ipv6`: one for both",
    ),
    (
        "PersistentKeepaliveInterval",
        "wireguard",
        "seconds between packets that keep a way through NAT open; 0 (default) for none",
    ),
    ("PSK", "wireguard, ipsec", "key that all nodes share; for ipsec needed, of 96 bytes and more"),
    ("UDPEncap", "ipsec", "ESP in UDP also where nothing translates addresses; default `false`"),
    (
        "ESPProposal",
        "ipsec",
        "cipher suite in strongSwan's words; default `aes128gcm16-sha256-prfsha256-ecp256`",
    ),
    ("PreStartupCommand", "extension", "command run first; what it prints is `BackendData` of the lease"),
    ("PostStartupCommand", "extension", "command run when there is a lease"),
    ("SubnetAddCommand", "extension", "command run for each node that comes"),
    ("SubnetRemoveCommand", "extension", "command run for each node that goes"),
    ("ShutdownCommand", "extension", "accepted and not run: pods keep their network while the agent is away"),
    (
        "AccessKeyID",
        "tencent-vpc",
        "who signs calls of the cloud's interface; else the variable `ACCESS_KEY_ID`",
    ),
    ("AccessKeySecret", "tencent-vpc", "with what; else the variable `ACCESS_KEY_SECRET`"),
];

/// What reads a key of the network configuration.
#[test]
fn every_key_of_the_network_configuration_is_in_the_table() {
    let files = [
        "model/src/config.rs",
        "model/src/config",
        "plan/src/backend/udp.rs",
        "plan/src/backend/ipip.rs",
        "plan/src/backend/extension.rs",
        "plan/src/backend/vxlan.rs",
        "node/src/helpers/commands.rs",
    ];
    let known: BTreeSet<&str> = KEYS.iter().map(|(key, ..)| *key).collect();
    let mut seen = BTreeSet::new();
    for file in files {
        let path = root().join("crates").join(file);
        let mut found = Vec::new();
        if path.is_dir() {
            sources(&path, &mut found);
        } else {
            let text = fs::read_to_string(&path).expect("a source");
            found.push((path, text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned()));
        }
        for (_, text) in found {
            for call in [
                ".bool(\"",
                ".str(\"",
                ".raw(\"",
                ".get(\"",
                "::<i64>(\"",
                "::<u64>(\"",
                "number(\"",
                "(&fields, \"",
                "flag(\"",
                "command(\"",
                "text(\"",
            ] {
                let of = text.match_indices(call);
                seen.extend(
                    of.filter_map(|(at, _)| text[at + call.len()..].split('"').next()).map(str::to_owned),
                );
            }
        }
    }
    seen.retain(|key| key.starts_with(|c: char| c.is_ascii_uppercase()));
    assert!(seen.len() > 20, "{seen:?}");
    let unknown: Vec<&String> = seen.iter().filter(|key| !known.contains(key.as_str())).collect();
    assert_eq!(unknown, [""; 0], "add them to KEYS");
}

/// `docs/guide/reference.md`, from the tables.
fn reference() -> String {
    let mut text = "\
# Reference: commands, flags, variables, keys

Written from the program's own tables by a test; `LODEN_BLESS=1 cargo test -p node --bin loden cli::` writes it anew. The same texts \
are in `loden help COMMAND` and `loden man COMMAND`.

"
    .to_owned();
    let cell = |text: &str| text.replace('|', "\\|");
    let table = |head: [&str; 2], rows: Vec<(String, String)>| {
        let mut out = format!("| {} | {} |\n| --- | --- |\n", head[0], head[1]);
        for (left, right) in rows {
            out += &format!("| `{}` | {} |\n", cell(&left), cell(&right));
        }
        out
    };
    text += "## Commands\n\n";
    let summaries = table::commands().map(|c| (format!("loden {}", c.name), c.summary.to_owned()));
    text += &table(["Command", "What it does"], summaries.collect());
    for command in table::commands() {
        text += &format!("\n### loden {}\n\n```text\n", command.name);
        command.synopsis("loden").iter().for_each(|line| text += &format!("{line}\n"));
        text += &format!("```\n\n{}\n", super::words::paragraphs(command.text).trim_end());
        if !command.sub.is_empty() {
            let rows = command
                .sub
                .iter()
                .map(|sub| (format!("{} {}", sub.name, sub.words).trim().to_owned(), sub.summary.to_owned()));
            text += &format!("\n{}", table(["Word", "What it does"], rows.collect()));
            let mut shown = BTreeSet::new();
            for sub in command.sub.iter().filter(|sub| !sub.flags.is_empty()) {
                let rows = sub.listed();
                let same: Vec<&str> = command
                    .sub
                    .iter()
                    .filter(|other| other.listed() == rows)
                    .map(|other| other.name)
                    .collect();
                if shown.insert(same.clone()) {
                    let head = format!("Flag of {}", same.join(", "));
                    text += &format!("\n{}", table([&head, "What it does"], rows));
                }
            }
        }
        if command.is_agent() {
            text += "\n| Flag | Takes | Default | What it does |\n| --- | --- | --- | --- |\n";
            for flag in crate::args::FLAGS {
                let takes = match flag.kind {
                    Kind::Bool => "`true`, `false`; alone it is `true`",
                    Kind::Int => "number",
                    Kind::Text => "text",
                    Kind::List => "text, may be repeated",
                };
                let default =
                    if flag.default.is_empty() { String::new() } else { format!("`{}`", flag.default) };
                text += &format!("| `--{}` | {takes} | {default} | {} |\n", flag.name, cell(flag.help));
            }
        } else if !command.flags.is_empty() {
            text += &format!("\n{}", table(["Flag", "What it does"], command.listed()));
        }
        text += &format!("\nExit status: {}\n", command.exit);
    }
    text += "\n## Variables\n\nEach flag of the agent is also a variable: `FLANNELD_` and its name in capitals, with `_` for `-`. Besides:\n\n";
    text += "| Variable | Read by | What it says |\n| --- | --- | --- |\n";
    for variable in table::VARIABLES {
        text += &format!("| `{}` | {} | {} |\n", variable.name, variable.by, cell(variable.help));
    }
    text += "\n## Keys of the network configuration\n\nUpper and lower case are the same, as for flannel. Keys nobody knows are ignored.\n\n";
    text += "| Key | Backends | What it says |\n| --- | --- | --- |\n";
    for (key, backends, help) in KEYS {
        let backends = if backends.is_empty() { "(top level)" } else { backends };
        text += &format!("| `{key}` | {backends} | {} |\n", cell(help));
    }
    text += "
## Log lines as JSON

With `--log-format json` (or `LODEN_LOG_FORMAT=json`) the agent writes one object a line to stderr. Keys are added, never renamed or given
another meaning; `v` tells when that has to be.

| Key | What it says |
| --- | --- |
| `v` | version of the keys, 1 |
| `ts` | time, RFC 3339 in UTC with microseconds |
| `level` | `error`, `warn`, `info`; with `-v=2` `debug`, with `-v=5` `trace` |
| `file`, `line` | where in the source |
| `msg` | the sentence, the same as in the text form |
| `topic` | what it is about, one word: that of the metric `loden_troubles{topic}`, or `ready`, `peer` |
| `state` | `begins`, `changes` (the same trouble, another sentence), `over` |
| `object` | which kernel object, or which value that two nodes announce |
| `peer` | the other node's subnet |
| `peers`, `objects` | how many, when the node is ready |
";
    text
}

#[test]
fn the_reference_is_what_the_program_knows() {
    let path = root().join("docs/guide/reference.md");
    let want = reference();
    if std::env::var_os("LODEN_BLESS").is_some() {
        fs::write(&path, &want).expect("the guide can be written");
    }
    let is = fs::read_to_string(&path).unwrap_or_default();
    if let Some((at, (is, want))) =
        is.lines().chain([""]).zip(want.lines().chain([""])).enumerate().find(|(_, (is, want))| is != want)
    {
        panic!("line {}: LODEN_BLESS=1 writes it anew\n  is   {is}\n  want {want}", at + 1);
    }
    assert_eq!(is.len(), want.len());
}

/// Command lines in guides are ones the program reads.
#[test]
fn guides_show_commands_that_exist() {
    let mut seen = 0;
    for entry in fs::read_dir(root().join("docs/guide")).expect("the guides").flatten() {
        let text = fs::read_to_string(entry.path()).expect("a text");
        let file = entry.file_name();
        for word in text.split(|c: char| c.is_whitespace() || "`(),:;|".contains(c)) {
            let word = word.trim_end_matches('.');
            let there = !word.starts_with("deploy/") || root().join(word).exists();
            assert!(there, "{file:?} names {word}, which does not exist");
        }
        let blocks = text.split("\n```sh\n").skip(1).filter_map(|block| block.split("\n```").next());
        for line in blocks.flat_map(str::lines) {
            let line = line.split(['>', '|', '#']).next().unwrap_or_default();
            let Some((_, line)) = line.split_once("loden ").filter(|(before, _)| {
                let before = before.trim_end_matches('/');
                before.is_empty()
                    || before.ends_with("-- ")
                    || before.ends_with("/opt/bin")
                    || before == "kubectl "
            }) else {
                continue;
            };
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            let name = words.first().map_or("", String::as_str);
            if ["version", "help"].contains(&name) {
                continue;
            }
            let entry = table::find(name).unwrap_or_else(|| panic!("{file:?}: there is no `loden {name}`"));
            let mut command = &entry.command;
            let mut rest = &words[1..];
            if let Some(sub) = rest.first().and_then(|word| command.below(word)) {
                assert!(!sub.name.is_empty());
                let known = |word: &String| {
                    let name = word.split('=').next().unwrap_or_default();
                    !word.starts_with('-')
                        || sub.flags.iter().chain(command.flags).any(|flag| flag.names().any(|n| n == name))
                };
                let own = rest.iter().take_while(|word| *word != "--");
                own.for_each(|word| assert!(known(word), "{file:?}: {line}"));
                (command, rest) = (sub, &[]);
            } else if rest.first().is_some_and(|word| !command.sub.is_empty() && !word.starts_with('-')) {
                panic!("{file:?}: {line}");
            }
            let agent = command.is_agent() || command.name == "mk-docker-opts";
            let mut words = Words::new(if agent { &[] } else { rest }, command);
            while let Some(_word) = words.word().unwrap_or_else(|error| panic!("{file:?}: {line}: {error}")) {
            }
            seen += 1;
        }
    }
    assert!(seen > 20, "{seen}");
}
