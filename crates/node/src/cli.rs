//! The commands of `loden`.

mod capture;
mod cleanup;
mod cni;
mod config;
mod docker_opts;
mod doctor;
mod drops;
mod status;
mod trace;

use std::io::Write as _;

use crate::start;

pub use docker_opts::main as docker_opts;

const USAGE: &str = "\
Loden: the network under Kubernetes and Docker hosts; a drop-in for flannel.

usage: loden COMMAND [ARGUMENT]...

  agent [FLAG]...     run the node agent; the flags are flanneld's, see `loden agent -help`
  status              show how this node is, and why (`loden status --help`)
  doctor              say what is wrong with this host and how to mend it (`loden doctor --help`)
  capture FROM TO     record a pair's packets on every device at once, and where they are lost (`loden capture --help`)
  drops [-f]          say which packets this host drops, where and why (`loden drops --help`)
  trace [FROM] TO     follow a packet by the kernel's tables and by a real one (`loden trace --help`)
  lab COMMAND         hosts as network namespaces on this machine: demo, test bed (`loden lab help`)
  config get          print the network configuration in the store
  config put FILE     check a network configuration and write it to the store; - reads standard input
  cni VERB NET NETNS  attach a namespace to a network by CNI plugins, as runtimes do (`loden cni help`)
  cleanup             remove what is ours from this host: the kernel, on request files, pods, flannel
  mk-docker-opts      write Docker's options from subnet.env (`loden mk-docker-opts -h`)
  version             print the version
  help                print this

The store is chosen by LODEN_STORE (`sqlite:PATH`, or `etcd` with the FLANNELD_ETCD_* variables).
Called as `flanneld`, this program is the agent; as `mk-docker-opts.sh`, that script of flannel.
";

/// Runs a command; gives the exit status.
pub fn main(program: &str, mut words: Vec<String>) -> u8 {
    if words.is_empty() {
        complain(USAGE);
        return 2;
    }
    let command = words.remove(0);
    match command.as_str() {
        "agent" => start::agent(program, &words, start::Personality::Loden),
        "lab" => u8::try_from(lab::main(words)).unwrap_or(1),
        "config" => config::main(&words),
        "cni" => cni::main(&words),
        "status" => status::main(&words),
        "doctor" => doctor::main(&words),
        "capture" => capture::main(&words),
        "drops" => drops::main(&words),
        "trace" => trace::main(&words),
        "cleanup" => cleanup::main(&words),
        // Not for people at first hand: what the agent does for the backend udp.
        "tunnel" => tunnel::run::main(&words),
        "mk-docker-opts" => docker_opts(&words),
        "version" | "-version" | "--version" => print(&format!("loden {}\n", start::VERSION)),
        "help" | "-h" | "-help" | "--help" => print(USAGE),
        flag if flag.starts_with('-') => {
            complain(&format!("loden: {flag} is a flag of the agent; write `loden agent {flag} …`\n"));
            2
        }
        other => {
            complain(&format!("loden: there is no command {other:?}\n\n{USAGE}"));
            2
        }
    }
}

/// Words of a command line: flags as `--name value` or `--name=value`.
struct Words<'a> {
    rest: std::slice::Iter<'a, String>,
    name: &'a str,
    given: Option<&'a str>,
}

impl<'a> Words<'a> {
    fn new(words: &'a [String]) -> Words<'a> {
        Words { rest: words.iter(), name: "", given: None }
    }

    /// The next flag without its value, or the next word.
    fn word(&mut self) -> Option<&'a str> {
        let word = self.rest.next()?.as_str();
        (self.name, self.given) = match word.split_once('=') {
            Some((name, value)) if name.starts_with('-') => (name, Some(value)),
            _ => (word, None),
        };
        Some(self.name)
    }

    /// The value of this flag.
    fn value(&mut self, what: &str) -> Result<&'a str, String> {
        let value = self.given.or_else(|| self.rest.next().map(String::as_str));
        value.ok_or_else(|| format!("{} needs a value: {what}", self.name))
    }
}

/// Whether `-o` asks for JSON.
fn is_json(format: &str) -> Result<bool, String> {
    match format {
        "table" => Ok(false),
        "json" => Ok(true),
        other => Err(format!("-o {other:?} is no format; write table or json")),
    }
}

/// Prints to standard output; a closed pipe is no failure.
pub fn print(text: &str) -> u8 {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    0
}

/// Prints to standard error.
pub fn complain(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}
