//! The command line as a value. Pure but for the files that options name.

use std::collections::VecDeque;
use std::path::Path;

use model::goflag::near;

use crate::error::{Doing, Error, Result};
use crate::spec::{DEFAULT_NAME, Spec, Stack, Topology};

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Print a help text: of one command, or of all.
    Help(Option<String>),
    /// Make a lab, show it, end it.
    Demo(Spec),
    /// Make a lab that stays.
    Up(Spec),
    /// Show a lab that is up.
    Show(String),
    /// Hosts and pods.
    Status(String),
    /// Names of all labs.
    List,
    /// Run a program in a place.
    Exec(String, String, Vec<String>),
    /// Log lines of a host's agent or of a pod.
    Logs(String, String),
    /// Add a pod to a host.
    PodAdd(String, String, Option<String>),
    /// Delete pods.
    PodDel(String, Vec<String>),
    /// List pods.
    PodList(String),
    /// Measure one pair.
    Ping(String, String, String),
    /// Follow a packet; IPv6 if true.
    Walk(String, String, String, bool),
    /// Do something to a host's agent.
    Agent(String, AgentVerb, String),
    /// End a lab.
    Down(String),
}

/// What to do with an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentVerb {
    /// SIGTERM.
    Stop,
    /// SIGKILL.
    Kill,
    /// Start it and wait.
    Start,
    /// Stop, then start.
    Restart,
}

/// How to print.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// JSON instead of text.
    pub json: bool,
    /// ASCII only.
    pub ascii: bool,
}

/// What a misspelt command may have meant.
const COMMANDS: &[&str] =
    &["demo", "up", "show", "status", "list", "exec", "logs", "pod", "ping", "walk", "agent", "down"];
/// What a misspelt option may have meant.
const OPTIONS: &[&str] = &[
    "--name",
    "--output",
    "--ascii",
    "--help",
    "--hosts",
    "--pods",
    "--backend",
    "--no-agents",
    "--direct-routing",
    "--topology",
    "--family",
    "--mtu",
    "--net-conf",
    "--conflist",
    "--cni-bin-dir",
];

fn hint(word: &str, all: &[&'static str]) -> String {
    near(word, all.iter().copied()).map_or(String::new(), |near| format!("; did you mean {near}?"))
}

/// Options of every command, as they were found.
#[derive(Default)]
struct Found {
    spec: Spec,
    look: Look,
    help: bool,
    v6: bool,
    words: VecDeque<String>,
    rest: Vec<String>,
    /// Options that only `up` and `demo` take.
    building: Option<String>,
}

/// Reads the words after `loden lab`.
///
/// # Errors
/// A sentence that names the word.
pub fn parse(args: &[String]) -> Result<(Command, Look)> {
    let mut found = scan(args)?;
    let Some(verb) = found.words.pop_front() else {
        return Ok((Command::Help(None), found.look));
    };
    if found.help || verb == "help" {
        let topic = if verb == "help" { found.words.pop_front() } else { Some(verb) };
        return Ok((Command::Help(topic), found.look));
    }
    if let Some(option) = found.building.as_ref().filter(|_| verb != "up" && verb != "demo") {
        return Err(Error::Usage(format!("{option} belongs to `up` and `demo`, not to `{verb}`")));
    }
    if !found.rest.is_empty() && !["up", "demo", "exec"].contains(&verb.as_str()) {
        return Err(Error::Usage(format!("`{verb}` takes nothing after --")));
    }
    let look = found.look.clone();
    let command = command(&verb, &mut found)?;
    if let Some(word) = found.words.front() {
        return Err(Error::Usage(format!("`{verb}` does not expect {word:?}")));
    }
    Ok((command, look))
}

fn command(verb: &str, found: &mut Found) -> Result<Command> {
    let name = found.spec.name.clone();
    let words = &mut found.words;
    let mut next =
        |what: &str| words.pop_front().ok_or_else(|| Error::Usage(format!("`{verb}` needs {what}")));
    Ok(match verb {
        "demo" | "up" => {
            let mut spec = found.spec.clone();
            spec.agent_args = found.rest.clone();
            spec.check()?;
            if verb == "up" { Command::Up(spec) } else { Command::Demo(spec) }
        }
        "show" => Command::Show(name),
        "status" => Command::Status(name),
        "list" | "ls" => Command::List,
        "exec" => {
            let place = next("a host or pod, such as host1")?;
            // `exec host1 ip route` is as clear as with the dashes.
            let mut program: Vec<String> = found.words.drain(..).collect();
            program.append(&mut found.rest);
            if program.is_empty() {
                return Err(Error::Usage(format!(
                    "`exec` needs a program, such as `exec {place} -- ip route`"
                )));
            }
            Command::Exec(name, place, program)
        }
        "logs" => Command::Logs(name, next("a host or pod")?),
        "pod" => match next("add, del or list")?.as_str() {
            "add" => Command::PodAdd(name, next("a host")?, next("").ok()),
            "del" | "delete" => {
                let first = next("the pod to delete")?;
                let all = std::iter::once(first).chain(found.words.drain(..));
                Command::PodDel(name, all.collect())
            }
            "list" | "ls" => Command::PodList(name),
            other => return Err(Error::Usage(format!("`pod` knows add, del and list, not {other:?}"))),
        },
        "ping" => Command::Ping(name, next("who sends")?, next("who answers")?),
        "walk" => Command::Walk(name, next("a pod that sends")?, next("a pod that answers")?, found.v6),
        "agent" => {
            let verb = match next("stop, kill, start or restart")?.as_str() {
                "stop" => AgentVerb::Stop,
                "kill" => AgentVerb::Kill,
                "start" => AgentVerb::Start,
                "restart" => AgentVerb::Restart,
                other => {
                    let knows = "`agent` knows stop, kill, start and restart";
                    return Err(Error::Usage(format!("{knows}, not {other:?}")));
                }
            };
            Command::Agent(name, verb, next("a host")?)
        }
        "down" => Command::Down(name),
        other => {
            return Err(Error::Usage(format!("there is no command {other:?}{}", hint(other, COMMANDS))));
        }
    })
}

/// Splits options from words. After `exec PLACE` everything belongs to the program.
fn scan(args: &[String]) -> Result<Found> {
    let mut found = Found::default();
    DEFAULT_NAME.clone_into(&mut found.spec.name);
    let mut args = args.iter();
    while let Some(word) = args.next() {
        if word == "--" {
            found.rest.extend(args.by_ref().cloned());
            break;
        }
        if !word.starts_with('-') || word == "-" {
            found.words.push_back(word.clone());
            if found.words.len() == 3 && found.words.front().is_some_and(|w| w == "exec") {
                found.words.extend(args.by_ref().cloned());
                break;
            }
            continue;
        }
        let (option, inline) = match word.split_once('=') {
            Some((option, value)) => (option, Some(value.to_owned())),
            None => (word.as_str(), None),
        };
        let takes_none =
            matches!(option, "-h" | "--help" | "--ascii" | "--direct-routing" | "--no-agents" | "-6" | "-4");
        if takes_none && inline.is_some() {
            return Err(Error::Usage(format!("{option} takes no value")));
        }
        let value = || {
            let given = inline.or_else(|| args.next().cloned());
            given.ok_or_else(|| Error::Usage(format!("{option} needs a value")))
        };
        apply(option, value, &mut found)?;
    }
    Ok(found)
}

fn apply(option: &str, value: impl FnOnce() -> Result<String>, found: &mut Found) -> Result<()> {
    let spec = &mut found.spec;
    match option {
        "-h" | "--help" => found.help = true,
        "--name" => spec.name = value()?,
        "-o" | "--output" => {
            found.look.json = choose(option, &value()?, &[("text", false), ("json", true)])?;
        }
        "--ascii" => found.look.ascii = true,
        "-4" => found.v6 = false,
        "-6" => found.v6 = true,
        _ => {
            found.building = Some(option.to_owned());
            match option {
                "--hosts" => spec.hosts = number(option, &value()?)?,
                "--pods" => spec.pods = number(option, &value()?)?,
                "--backend" => spec.backend = value()?,
                "--no-agents" => spec.agents = false,
                "--direct-routing" => spec.direct_routing = true,
                "--topology" => {
                    let all = [("flat", Topology::Flat), ("routed", Topology::Routed)];
                    spec.topology = choose(option, &value()?, &all)?;
                }
                "--family" => {
                    let all = [("v4", Stack::V4), ("v6", Stack::V6), ("dual", Stack::Dual)];
                    spec.stack = choose(option, &value()?, &all)?;
                }
                "--mtu" => spec.mtu = number(option, &value()?)? as u32,
                "--net-conf" => spec.net_conf = Some(file(option, &value()?)?),
                "--conflist" => spec.conflist = Some(file(option, &value()?)?),
                "--cni-bin-dir" => spec.cni_bin_dir = Some(directory(&value()?)?),
                other => {
                    return Err(Error::Usage(format!("there is no option {other}{}", hint(other, OPTIONS))));
                }
            }
        }
    }
    Ok(())
}

fn number(option: &str, text: &str) -> Result<usize> {
    text.parse().map_err(|_| Error::Usage(format!("{option} needs a number, not {text:?}")))
}

fn choose<T: Copy>(option: &str, text: &str, all: &[(&str, T)]) -> Result<T> {
    all.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
        Error::Usage(format!("{option} is one of {}, not {text:?}", names.join(", ")))
    })
}

fn file(option: &str, path: &str) -> Result<String> {
    std::fs::read_to_string(path).doing(|| format!("read {path} for {option}"))
}

/// Absolute, because the supervisor stands elsewhere.
fn directory(path: &str) -> Result<String> {
    let absolute = Path::new(path).canonicalize().doing(|| format!("find the directory {path}"))?;
    Ok(absolute.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn commands_are_read() {
        let name = || DEFAULT_NAME.to_owned();
        let text = |t: &str| t.to_owned();
        let base = Spec::default();
        for (line, want) in [
            ("", Command::Help(None)),
            ("--help", Command::Help(None)),
            ("help exec", Command::Help(Some(text("exec")))),
            ("pod --help", Command::Help(Some(text("pod")))),
            ("demo", Command::Demo(base.clone())),
            (
                "up --hosts 5 --pods=1 --backend host-gw --topology routed --family dual --name x --mtu 9000",
                Command::Up(Spec {
                    hosts: 5,
                    pods: 1,
                    backend: text("host-gw"),
                    topology: Topology::Routed,
                    stack: Stack::Dual,
                    name: text("x"),
                    mtu: 9000,
                    ..base.clone()
                }),
            ),
            (
                "demo --direct-routing -- --iface=eth0 -v=2",
                Command::Demo(Spec {
                    direct_routing: true,
                    agent_args: words("--iface=eth0 -v=2"),
                    ..base.clone()
                }),
            ),
            ("exec host1 -- ip -d link", Command::Exec(name(), text("host1"), words("ip -d link"))),
            ("exec host1 ip -d link", Command::Exec(name(), text("host1"), words("ip -d link"))),
            (
                "exec --name x pod1-1 -- sh -c true",
                Command::Exec(text("x"), text("pod1-1"), words("sh -c true")),
            ),
            ("pod add host2", Command::PodAdd(name(), text("host2"), None)),
            ("pod add host2 web", Command::PodAdd(name(), text("host2"), Some(text("web")))),
            ("pod del a b", Command::PodDel(name(), words("a b"))),
            ("pod list", Command::PodList(name())),
            ("walk a b -6", Command::Walk(name(), text("a"), text("b"), true)),
            ("ping a 10.0.0.1", Command::Ping(name(), text("a"), text("10.0.0.1"))),
            ("agent restart host1", Command::Agent(name(), AgentVerb::Restart, text("host1"))),
            ("logs host1", Command::Logs(name(), text("host1"))),
            ("down --name x", Command::Down(text("x"))),
            ("list", Command::List),
        ] {
            assert_eq!(parse(&words(line)).map(|p| p.0).map_err(|e| e.to_string()), Ok(want), "{line}");
        }
        assert!(parse(&words("status -o json")).unwrap().1.json);
    }

    #[test]
    fn mistakes_are_named() {
        let tail = "; `loden lab --help` lists the commands";
        for (line, want) in [
            ("bring-up", "there is no command \"bring-up\""),
            ("up --host 3", "there is no option --host; did you mean --hosts?"),
            ("up --hosts many", "--hosts needs a number, not \"many\""),
            ("up --hosts", "--hosts needs a value"),
            ("up --topology ring", "--topology is one of flat, routed, not \"ring\""),
            ("up --direct-routing=no", "--direct-routing takes no value"),
            ("status --hosts 3", "--hosts belongs to `up` and `demo`, not to `status`"),
            ("down now", "`down` does not expect \"now\""),
            ("exec", "`exec` needs a host or pod, such as host1"),
            ("exec host1", "`exec` needs a program, such as `exec host1 -- ip route`"),
            ("pod", "`pod` needs add, del or list"),
            ("pod frob", "`pod` knows add, del and list, not \"frob\""),
            ("agent start", "`agent` needs a host"),
            ("status -- x", "`status` takes nothing after --"),
        ] {
            let got = parse(&words(line)).err().map(|e| e.to_string());
            assert_eq!(got, Some(format!("{want}{tail}")), "{line}");
        }
    }
}
