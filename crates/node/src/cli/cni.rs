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

use super::{complain, print};
use attach::Runner;

const USAGE: &str = "\
usage: loden cni add NET NETNS      attach a namespace to a network
       loden cni check NET NETNS    compare the attachment with its result
       loden cni del NET NETNS      detach it
       loden cni status NET         can ADD be served?
       loden cni gc NET             detach and release what belongs to no namespace that exists

NET is the name of a network in the configuration directory; NETNS is a path, or a name in /run/netns.

  -i IFNAME          interface in the pod; CNI_IFNAME, else eth0
  -o json            print JSON
  --id ID            container id; else cnitool- and a hash of NETNS
  --conf-dir DIR     configurations; NETCONFPATH, else /etc/cni/net.d
  --bin-dir DIRS     plugins, directories joined by colons; CNI_PATH, else /opt/cni/bin
  --cache-dir DIR    where results are kept, with those of runtimes; else /var/lib/cni
  --timeout SECONDS  limit for each plugin; else 120

CNI_ARGS is handed to the plugins; CAP_ARGS holds values of capabilities as a JSON object, such as
{\"portMappings\":[{\"hostPort\":8080,\"containerPort\":80,\"protocol\":\"tcp\"}]}.
";

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
    if matches!(words.first().map(String::as_str), Some("-h" | "-help" | "--help" | "help")) {
        return print(USAGE);
    }
    let Some((verb, options)) = options(words, &|key| std::env::var(key).ok()) else {
        complain(USAGE);
        return 2;
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

type Chosen = (String, Result<Options, String>);

/// `None` if the words are not understood at all.
fn options(words: &[String], env: &dyn Fn(&str) -> Option<String>) -> Option<Chosen> {
    let env = |key: &str| env(key).filter(|value| !value.is_empty());
    let or = |key: &str, default: &str| env(key).unwrap_or_else(|| default.to_owned());
    let (mut format, mut plain) = (Format::Text, Vec::new());
    let (mut conf_dir, mut path) = (or("NETCONFPATH", "/etc/cni/net.d"), or("CNI_PATH", "/opt/cni/bin"));
    let (mut ifname, mut cache, mut seconds) = (or("CNI_IFNAME", "eth0"), "/var/lib/cni".to_owned(), 120);
    let mut id = None;
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        match word.as_str() {
            "-i" | "--ifname" => ifname = rest.next()?.clone(),
            "-o" if rest.next()? == "json" => format = Format::Json,
            "--id" => id = Some(rest.next()?.clone()),
            "--conf-dir" => conf_dir = rest.next()?.clone(),
            "--bin-dir" => path = rest.next()?.clone(),
            "--cache-dir" => cache = rest.next()?.clone(),
            "--timeout" => seconds = rest.next()?.parse().ok().filter(|s| *s > 0)?,
            flag if flag.starts_with('-') => return None,
            _ => plain.push(word.clone()),
        }
    }
    let mut plain = plain.into_iter();
    let verb = plain.next()?;
    let network = plain.next()?;
    let needs_netns = match verb.as_str() {
        "add" | "del" | "check" => true,
        "status" | "gc" => false,
        _ => return None,
    };
    let netns = plain.next().unwrap_or_default();
    if plain.next().is_some() || needs_netns == netns.is_empty() {
        return None;
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
    Some((verb, made()))
}

/// A failure of the disk.
fn disk(action: &str, path: &Path, cause: &std::io::Error) -> Error {
    Error::new(code::IO, format!("{action} {}: {cause}", path.display()))
}

#[cfg(test)]
mod tests;
