//! `loden cni`: what a runtime does with a network's plugins, by hand (cni.md 1.10 to 1.12; compatible with
//! `cnitool`).

mod attach;
mod garbage;
mod load;
mod show;

use std::path::{Path, PathBuf};
use std::time::Duration;

use model::cni::{Args, Error, code};
use model::gojson::Json;

use super::words::{Command, NONE, Words, flag};
use super::{complain, print};
use attach::Runner;

/// What it is, for help, completion and manual.
pub const COMMAND: Command = Command {
    name: "cni",
    words: "",
    summary: "attach a namespace to a network by CNI plugins, as runtimes do",
    text: "\
NET is the name of a network in the configuration directory; NETNS is a path, or a name in /run/netns.

CNI_ARGS is handed to the plugins; CAP_ARGS holds values of capabilities as a JSON object, such as \
{\"portMappings\":[{\"hostPort\":8080,\"containerPort\":80,\"protocol\":\"tcp\"}]}.",
    flags: &[
        flag("-i", "IFNAME", "interface in the pod; CNI_IFNAME, else eth0").long("--ifname"),
        flag("-o", "json", "print JSON"),
        flag("--id", "ID", "container id; else cnitool- and a hash of NETNS"),
        flag("--conf-dir", "DIR", "configurations; NETCONFPATH, else /etc/cni/net.d"),
        flag("--bin-dir", "DIRS", "plugins, directories joined by colons; CNI_PATH, else /opt/cni/bin"),
        flag("--cache-dir", "DIR", "where results are kept, with those of runtimes; else /var/lib/cni"),
        flag("--timeout", "SECONDS", "limit for each plugin; else 120"),
    ],
    exit: "0 done, 1 a plugin or the configuration refuses, 2 the command line is not understood.",
    sub: &[
        Command { name: "add", words: "NET NETNS", summary: "attach a namespace to a network", ..NONE },
        Command {
            name: "check",
            words: "NET NETNS",
            summary: "compare the attachment with its result",
            ..NONE
        },
        Command { name: "del", words: "NET NETNS", summary: "detach it", ..NONE },
        Command { name: "status", words: "NET", summary: "can ADD be served?", ..NONE },
        Command {
            name: "gc",
            words: "NET",
            summary: "detach and release what belongs to no namespace that exists",
            ..NONE
        },
    ],
};

/// How the answer is printed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    Json,
}

/// What the command line and the environment say.
struct Options {
    format: Format,
    network: String,
    netns: String,
    conf_dir: PathBuf,
    runner: Runner,
}

/// Runs the command; gives the exit status.
pub fn main(words: &[String]) -> u8 {
    let helps = words.iter().any(|word| ["-h", "-help", "--help"].contains(&word.as_str()));
    if helps || words.first().is_some_and(|word| word == "help") {
        return print(&COMMAND.usage());
    }
    let (verb, options) = match options(words, &|key| std::env::var(key).ok()) {
        Ok(chosen) => chosen,
        Err(error) => return COMMAND.refuse(&error),
    };
    let options = match options {
        Ok(options) => options,
        Err(error) => {
            complain(&format!("loden cni: {error}\n"));
            return 2;
        }
    };
    match run(&verb, &options) {
        Ok(text) => print(&text),
        Err(error) if options.format == Format::Json => {
            print(&format!("{}\n", error.to_json(None)));
            1
        }
        Err(error) => {
            complain(&format!("loden cni {verb} {}: {error}\n", options.network));
            1
        }
    }
}

fn run(verb: &str, options: &Options) -> Result<String, Error> {
    let Options { format, network, netns, conf_dir, runner } = options;
    let list = load::by_name(conf_dir, network).map_err(Error::config)?;
    let text = match verb {
        "add" => {
            let done = runner.add(&list, netns)?;
            match format {
                Format::Json => done.result.to_indented(),
                Format::Text => show::added(&list.0, runner, netns, &done)?,
            }
        }
        "gc" => {
            let done = garbage::collect(runner, &list)?;
            match format {
                Format::Json => done.to_json(&list.0.name).to_indented(),
                Format::Text => done.to_text(&list.0),
            }
        }
        _ => {
            let steps = match verb {
                "del" => runner.del(&list, netns)?,
                "check" => runner.check(&list, netns)?,
                _ => runner.status(&list)?,
            };
            match format {
                Format::Json => show::steps_json(&list.0.name, verb, &steps).to_indented(),
                Format::Text => show::steps(&list.0, verb, runner, netns, &steps),
            }
        }
    };
    Ok(format!("{}\n", text.trim_end()))
}

/// Whether the words make sense.
#[cfg(test)]
pub fn understands(words: &[String]) -> Result<(), String> {
    options(words, &|_| None).map(drop)
}

type Chosen = (String, Result<Options, String>);

/// Inside: what the words say makes no sense to us; what they say makes no sense to a plugin.
fn options(words: &[String], env: &dyn Fn(&str) -> Option<String>) -> Result<Chosen, String> {
    let env = |key: &str| env(key).filter(|value| !value.is_empty());
    let or = |key: &str, default: &str| env(key).unwrap_or_else(|| default.to_owned());
    let (mut format, mut plain) = (Format::Text, Vec::new());
    let (mut conf_dir, mut path) = (or("NETCONFPATH", "/etc/cni/net.d"), or("CNI_PATH", "/opt/cni/bin"));
    let (mut ifname, mut cache, mut seconds) = (or("CNI_IFNAME", "eth0"), "/var/lib/cni".to_owned(), 120);
    let mut id = None;
    let mut words = Words::new(words, &COMMAND);
    while let Some(word) = words.word()? {
        match word {
            "-i" => ifname = words.value()?.to_owned(),
            "-o" => match words.value()? {
                "json" => format = Format::Json,
                other => return Err(format!("-o {other:?} is no format; write json")),
            },
            "--id" => id = Some(words.value()?.to_owned()),
            "--conf-dir" => conf_dir = words.value()?.to_owned(),
            "--bin-dir" => path = words.value()?.to_owned(),
            "--cache-dir" => cache = words.value()?.to_owned(),
            "--timeout" => {
                let text = words.value()?;
                let told = || format!("--timeout {text:?} is no number of seconds above 0");
                seconds = text.parse().ok().filter(|s| *s > 0).ok_or_else(told)?;
            }
            word => plain.push(word.to_owned()),
        }
    }
    let mut plain = plain.into_iter();
    let verb = plain.next().ok_or("it needs a verb")?;
    let form = COMMAND.below(&verb).ok_or_else(|| words.unknown(&verb))?;
    let network = plain.next().ok_or_else(|| format!("{verb} needs {}", form.words))?;
    let needs_netns = form.words == "NET NETNS";
    let netns = plain.next().unwrap_or_default();
    if needs_netns && netns.is_empty() {
        return Err(format!("{verb} needs {}", form.words));
    }
    if let Some(more) = plain.next().or_else(|| (!needs_netns && !netns.is_empty()).then(|| netns.clone())) {
        return Err(format!("{more:?} is too much: {verb} takes {}", form.words));
    }
    let netns = if netns.is_empty() || netns.contains('/') { netns } else { format!("/run/netns/{netns}") };
    let made = || {
        let cni_args = env("CNI_ARGS").unwrap_or_default();
        // Every key is allowed here: the plugins say which they know.
        Args::parse(
            &format!("{cni_args}{}IgnoreUnknown=1", if cni_args.is_empty() { "" } else { ";" }),
            &[],
        )?;
        let capabilities = match env("CAP_ARGS") {
            None => Json::Null,
            Some(text) => {
                let value: Json = text.parse().map_err(|e| format!("CAP_ARGS: {e}"))?;
                value.members().ok_or("CAP_ARGS: not a JSON object")?;
                value
            }
        };
        let runner = Runner {
            container_id: id.unwrap_or_else(|| attach::container_id(&netns)),
            ifname,
            path,
            cni_args,
            capabilities,
            results: Path::new(&cache).join("results"),
            limit: Duration::from_secs(seconds),
        };
        Ok(Options { format, network, netns: netns.clone(), conf_dir: conf_dir.into(), runner })
    };
    Ok((verb, made()))
}

/// A failure of the disk.
fn disk(action: &str, path: &Path, cause: &std::io::Error) -> Error {
    Error::new(code::IO, format!("{action} {}: {cause}", path.display()))
}

#[cfg(test)]
mod tests;
