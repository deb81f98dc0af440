//! The commands of `loden`: what each is, is a definition in [`table`], by which it is read, helped with and
//! documented (decision 0222).

mod capture;
pub mod cleanup;
mod cni;
mod complete;
mod config;
mod docker_opts;
mod doctor;
mod drops;
mod dump;
mod man;
pub mod status;
mod table;
#[cfg(test)]
mod tests;
pub mod top;
mod trace;
mod words;

use std::io::Write as _;

use model::goflag::near;

use crate::start;

pub use docker_opts::main as docker_opts;

/// The help of all.
fn usage() -> String {
    let called = words::called();
    let mut text = format!(
        "Loden: the network under Kubernetes and Docker hosts; a drop-in for flannel.\n\nusage: {called} COMMAND \
         [ARGUMENT]...\n\n"
    );
    table::commands().for_each(|command| text += &words::row(command.name, command.summary));
    text += &words::row("version", "print the version");
    text += &words::row("help [COMMAND]", "print this, or what a command does and takes");
    text += "
The store is chosen by LODEN_STORE (`sqlite:PATH`, or `etcd` with the FLANNELD_ETCD_* variables).
Called as `flanneld`, this program is the agent; as `mk-docker-opts.sh`, that script of flannel; as
`kubectl-loden`, a plugin of kubectl.
";
    text
}

/// Runs a command; gives the exit status.
pub fn main(program: &str, mut words: Vec<String>) -> u8 {
    if words.is_empty() {
        complain(&usage());
        return 2;
    }
    let name = words.remove(0);
    if let Some(entry) = table::find(&name) {
        return (entry.run)(program, &words);
    }
    match name.as_str() {
        // Not for people at first hand: what the agent does for the backend udp.
        "tunnel" => tunnel::run::main(&words),
        "version" | "-version" | "--version" => print(&format!("loden {}\n", start::VERSION)),
        "help" | "-h" | "-help" | "--help" => match words.first() {
            None => print(&usage()),
            Some(about) => match table::find(about) {
                Some(entry) if entry.command.is_agent() => (entry.run)(program, &["-help".to_owned()]),
                Some(entry) => print(&entry.command.usage()),
                None => unknown(about),
            },
        },
        flag if flag.starts_with('-') => {
            complain(&format!("loden: {flag} is a flag of the agent; write `loden agent {flag} …`\n"));
            2
        }
        other => unknown(other),
    }
}

/// About a command that is not there.
fn unknown(name: &str) -> u8 {
    let called = words::called();
    let names = table::commands().map(|command| command.name).chain(["version", "help"]);
    let hint = near(name, names).map_or(String::new(), |near| format!("; did you mean `{called} {near}`?"));
    complain(&format!("{called}: there is no command {name:?}{hint}\n`{called} help` lists the commands\n"));
    2
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
