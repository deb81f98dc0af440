//! The command line as people meet it: help, misspelt words, colours, completion in a real bash, manual pages through a
//! real groff, the lab's words, a plugin of kubectl.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

const LODEN: &str = env!("CARGO_BIN_EXE_loden");

fn run(program: &str, words: &[&str]) -> Output {
    Command::new(program).args(words).env_remove("LODEN_SOCKET").output().unwrap()
}

fn loden(words: &[&str]) -> Output {
    run(LODEN, words)
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn installed(program: &str, test: &str) -> bool {
    let there = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if there.is_err() {
        println!("SKIP {test}: {program} is not installed");
    }
    there.is_ok()
}

#[test]
fn misspelt_words_get_a_hint() {
    for (words, code, want) in [
        (
            &["statsu"][..],
            2,
            "loden: there is no command \"statsu\"; did you mean `loden status`?\n`loden help` lists",
        ),
        (&["reboot"], 2, "loden: there is no command \"reboot\"\n"),
        (&["help", "docter"], 2, "did you mean `loden doctor`?"),
        (&["man", "docter"], 2, "did you mean `loden doctor`?"),
        (&["status", "--jsn"], 2, "loden status: there is no \"--jsn\" here\n\nusage: loden status "),
        (&["status", "--wiat"], 2, "there is no \"--wiat\" here; did you mean --wait?"),
        (&["cleanup", "--flanel"], 2, "did you mean --flannel?"),
        (&["config", "gte"], 2, "did you mean get?"),
        (&["completion", "bsh"], 2, "did you mean bash?"),
        (&["agent", "--ifcae=eth0"], 2, "flag provided but not defined: -ifcae\ndid you mean -iface?\n"),
        (&["--iface=eth0"], 2, "--iface=eth0 is a flag of the agent; write `loden agent --iface=eth0 …`"),
        (&["lab", "stauts"], 2, "there is no command \"stauts\"; did you mean status?"),
        (&["lab", "up", "--hots", "3"], 2, "there is no option --hots; did you mean --hosts?"),
    ] {
        let done = loden(words);
        assert_eq!(done.status.code(), Some(code), "{words:?}");
        assert!(
            err(&done).contains(want) && out(&done).is_empty(),
            "{words:?}: {}{}",
            out(&done),
            err(&done)
        );
        // A mistake is not worth a page.
        assert!(err(&done).lines().count() < 16 || words[0] == "agent", "{words:?}: {}", err(&done));
    }
}

#[test]
fn every_command_has_help() {
    let all = out(&loden(&["help"]));
    let names: Vec<&str> =
        all.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).collect();
    assert!(names.len() > 12 && names.contains(&"status"), "{all}");
    for name in names.into_iter().filter(|name| !name.is_empty() && !["version", "help"].contains(name)) {
        let help = loden(&["help", name]);
        let text = out(&help) + &err(&help);
        assert_eq!(help.status.code(), Some(0), "{name}");
        assert!(text.to_lowercase().starts_with("usage: "), "{name}: {text}");
        let own = loden(&[name, "--help"]);
        assert_eq!(own.status.code(), Some(if name == "mk-docker-opts" { 1 } else { 0 }), "{name}");
    }
}

/// The lab reads its words itself: what its help shows is in our table, and what is in our table it knows.
#[test]
fn the_labs_words_are_those_of_the_table() {
    let of = |text: &str| {
        let word =
            |word: &str| word.trim_matches(|c: char| !c.is_ascii_alphanumeric() && c != '-').to_owned();
        let words = text.split(|c: char| c.is_whitespace() || ",`".contains(c)).map(word);
        let mut words: Vec<String> = words.filter(|word| word.len() > 3 && word.starts_with("--")).collect();
        words.sort();
        words.dedup();
        words
    };
    let lab = out(&loden(&["lab", "help"])) + &out(&loden(&["lab", "help", "up"]));
    let mut ours = of(&out(&loden(&["help", "lab"])));
    let mut theirs = of(&lab);
    ours.retain(|word| word != "--help");
    theirs.retain(|word| word != "--help");
    assert_eq!(ours, theirs);
    let ours_text = out(&loden(&["help", "lab"]));
    for line in lab.lines().filter_map(|line| line.strip_prefix("  loden lab ")) {
        let verb = line.split(' ').next().unwrap();
        assert!(ours_text.contains(&format!("\n  {verb}")), "{verb}: {ours_text}");
    }
    for flag in ours {
        // It is said to be for others, or lacks something; it is not unknown.
        let said = err(&loden(&["lab", "pod", &flag, "0", "frob"]));
        assert!(!said.contains("there is no option"), "{flag}: {said}");
    }
}

#[test]
fn colours_are_for_terminals_alone() {
    let plain = out(&loden(&["status", "--socket", "/nonexistent"]));
    assert!(!plain.contains('\x1b'), "{plain:?}");
    if !installed("script", "colours_are_for_terminals_alone") {
        return;
    }
    let terminal = |env: &str| {
        let line = format!("{env} {LODEN} status --socket /nonexistent");
        let output = Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .stdin(Stdio::null())
            .output();
        out(&output.unwrap())
    };
    assert!(terminal("").contains("\x1b[1m"), "{:?}", terminal(""));
    assert!(!terminal("NO_COLOR=1").contains('\x1b'), "{:?}", terminal("NO_COLOR=1"));
    assert!(!terminal("TERM=dumb").contains('\x1b'), "{:?}", terminal("TERM=dumb"));
}

/// What bash offers for a line; the last word is the one being written.
fn offered(script: &Path, line: &[&str], dir: &Path) -> Vec<String> {
    let code = format!(
        ". {}; COMP_WORDS=(\"$@\"); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _loden; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        script.display()
    );
    let mut words = vec!["--noprofile", "--norc", "-uc", &code, "bash"];
    words.extend(line);
    let output = Command::new("bash").args(words).current_dir(dir).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{line:?}: {}", err(&output));
    out(&output).lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_flags_and_values() {
    let dir = TempDir::new().unwrap();
    let script = dir.path().join("loden.bash");
    fs::write(&script, loden(&["completion", "bash"]).stdout).unwrap();
    fs::create_dir(dir.path().join("folder")).unwrap();
    fs::write(dir.path().join("file with blank.tar"), "").unwrap();
    for (line, want) in [
        (&["loden", "st"][..], &["status"][..]),
        (&["loden", "co"], &["config", "completion"]),
        (&["loden", "status", "--w"], &["--wait", "--why"]),
        (&["loden", "status", "-o", ""], &["table", "json"]),
        (&["loden", "status", "--output", "=", "j"], &["json"]),
        (&["loden", "status", "--output", "="], &["table", "json"]),
        (&["loden", "status", "--from", "f"], &["file with blank.tar", "folder"]),
        (&["loden", "dump", "--root", "f"], &["folder"]),
        (&["loden", "dump", "--socket", "x", "--r"], &["--root"]),
        (&["loden", "agent", "--etcd-p"], &["--etcd-prefix", "--etcd-password"]),
        (&["loden", "agent", "--log-format", ""], &["text", "json"]),
        (&["loden", "lab", "d"], &["demo", "down"]),
        (&["loden", "lab", "up", "--to"], &["--topology"]),
        (&["loden", "lab", "up", "--topology", "r"], &["routed"]),
        (&["loden", "lab", "down", "--h"], &["--help"]),
        (&["loden", "lab", "agent", "s"], &["stop", "start"]),
        (&["loden", "help", "tr"], &["trace"]),
        (&["loden", "man", "do"], &["doctor"]),
        (&["loden", "cni", "g"], &["gc"]),
        (&["loden", "completion", ""], &["bash", "zsh", "fish"]),
        (&["loden", "nonsense", ""], &[]),
    ] {
        let mut got = offered(&script, line, dir.path());
        let mut want: Vec<&str> = want.to_vec();
        got.sort();
        want.sort_unstable();
        if line == ["loden", "nonsense", ""] {
            assert!(got.contains(&"status".to_owned()), "{line:?}: {got:?}");
        } else {
            assert_eq!(got, want, "{line:?}");
        }
    }
}

/// What zsh would show: the functions of its completion system print what they are given.
const ZSH: &str = r#"
compdef() { : }
_describe() { print -rl -- ${(P)2} }
compadd() { shift; print -rl -- $@ }
_files() { print -r -- FILES $@ }
_message() { : }
. $1
words=($=2) CURRENT=$#words PREFIX=$words[-1]
_loden
"#;

#[test]
fn zsh_and_fish_complete_the_same() {
    let dir = TempDir::new().unwrap();
    for shell in ["zsh", "fish"] {
        let script = dir.path().join(shell);
        fs::write(&script, loden(&["completion", shell]).stdout).unwrap();
        let text = fs::read_to_string(&script).unwrap();
        for part in ["status", "log-format", "topology", "show how this node is, and why"] {
            assert!(text.contains(part), "{shell}: {part}");
        }
        if !installed(shell, &format!("zsh_and_fish_complete_the_same, {shell}")) {
            continue;
        }
        for (line, want, never) in [
            ("loden st", "status", "--wait"),
            ("loden status --w", "--wait", "demo"),
            ("loden status -o t", "table", "--why"),
            ("loden lab d", "demo", "doctor"),
            ("loden lab up --topology r", "routed", "doctor"),
            ("loden lab up --no", "--no-agents", "doctor"),
            ("loden agent --log-f", "--log-format", "--topology"),
            ("loden man tr", "trace", "--topology"),
        ] {
            let path = script.to_str().unwrap();
            let source = format!("source {path}; complete -C '{line}'");
            let words = match shell {
                "zsh" => vec!["-f", "-c", ZSH, "zsh", path, line],
                _ => vec!["--no-config", "-c", &source],
            };
            let mut command = Command::new(shell);
            let done = command.args(words).env("HOME", dir.path()).current_dir(&dir).output().unwrap();
            let got = out(&done);
            let offers = |word: &str| got.lines().any(|l| l.split([':', '\t']).next() == Some(word));
            assert!(done.status.success() && offers(want), "{shell} {line}: {got}{}", err(&done));
            assert!(!offers(never), "{shell} {line}: {got}");
        }
    }
}

#[test]
fn manual_pages_are_without_warnings() {
    if !installed("groff", "manual_pages_are_without_warnings") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let names = ["", "agent", "status", "doctor", "trace", "dump", "lab", "config", "cni", "cleanup", "man"];
    for name in names.into_iter().chain(["mk-docker-opts", "completion"]) {
        let words: Vec<&str> = ["man", name].into_iter().filter(|word| !word.is_empty()).collect();
        let page = loden(&words);
        assert!(page.status.success(), "{name}: {}", err(&page));
        let file = dir.path().join("page.1");
        fs::write(&file, &page.stdout).unwrap();
        let shown = run("groff", &["-man", "-Tutf8", "-ww", "-P-cbou", "-rLL=100n", file.to_str().unwrap()]);
        assert!(shown.status.success() && shown.stderr.is_empty(), "{name}: {}", err(&shown));
        let text = out(&shown);
        for heading in ["NAME", "SYNOPSIS", "DESCRIPTION", "SEE ALSO"] {
            assert!(text.contains(heading), "{name} {heading}: {text}");
        }
        if name == "status" {
            for part in
                ["loden-status", "-o, --output table|json", "--wait[=SECONDS]", "EXIT STATUS", "LODEN_SOCKET"]
            {
                assert!(text.contains(part), "{part}: {text}");
            }
        }
        if name == "agent" {
            assert!(text.contains("--etcd-endpoints") && text.contains("--log-format"), "{text}");
        }
    }
}

#[test]
fn a_plugin_of_kubectl() {
    let dir = TempDir::new().unwrap();
    let plugin = dir.path().join("kubectl-loden");
    symlink(LODEN, &plugin).unwrap();
    let direct = run(plugin.to_str().unwrap(), &["statsu"]);
    assert_eq!(direct.status.code(), Some(2));
    assert!(err(&direct).contains("did you mean `kubectl loden status`?"), "{}", err(&direct));
    if !installed("kubectl", "a_plugin_of_kubectl") {
        return;
    }
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap_or_default());
    let kubectl = |words: &[&str]| Command::new("kubectl").args(words).env("PATH", &path).output().unwrap();
    let version = kubectl(&["loden", "version"]);
    assert!(out(&version).starts_with("loden v"), "{}{}", out(&version), err(&version));
    let help = out(&kubectl(&["loden", "status", "--help"]));
    assert!(help.starts_with("usage: kubectl loden status "), "{help}");
    assert!(out(&kubectl(&["plugin", "list"])).contains("kubectl-loden"));
}
