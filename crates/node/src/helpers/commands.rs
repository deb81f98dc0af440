//! Runs the commands of the extension backend, a few at a time, each with a limit of time and of output.
//!
//! Every command is one step of the loop, so of one peer there is never more than one at a time; a command
//! that hangs keeps one of the workers until its limit, and no other peer's from being run.

use std::io;
use std::process;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kernel::process::{Ended, run_combined};
use model::NetConf;
use plan::backend::extension::MOST_DATA;
use plan::state::{Command, CommandKey};
use plan::{Object, Step};

use super::queue::{Next, Queue};
use super::seconds;
use crate::inputs::Inbox;
use crate::rights::{Need, Rights};

/// Commands run at once.
const WORKERS: usize = 4;
/// Time a command has, unless `LODEN_COMMAND_TIMEOUT` says otherwise.
const LIMIT: Duration = Duration::from_secs(60);
/// Characters of a command's output that are shown.
const SHOWN: usize = 200;

/// The workers' end is the value's.
pub struct Commands {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Queue,
    limit: Duration,
    /// What `PreStartupCommand` printed.
    printed: Mutex<Option<String>>,
}

impl Commands {
    /// Starts the workers.
    pub fn start(conf: &NetConf, inbox: Arc<Inbox>, rights: &Rights) -> Commands {
        if conf.backend.get("ShutdownCommand").is_some_and(|json| json.as_str() != Some("")) {
            tracing::warn!(
                "network config: ShutdownCommand is not run, as in flannel: pods keep their network while the agent \
                 is away; run it by hand when the node is retired"
            );
        }
        let limit = seconds("LODEN_COMMAND_TIMEOUT", LIMIT, |name| std::env::var(name).ok());
        let shared = Arc::new(Shared { queue: Queue::new(inbox), limit, printed: Mutex::default() });
        for _ in 0..WORKERS {
            let shared = shared.clone();
            Queue::thread_with(rights, Need::Everything, "commands", move || shared.work());
        }
        Commands { shared }
    }

    /// Where steps go and results come from.
    pub fn queue(&self) -> &Queue {
        &self.shared.queue
    }

    /// What `PreStartupCommand` printed.
    pub fn printed(&self) -> Option<String> {
        self.shared.printed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        self.shared.queue.stop();
    }
}

impl Shared {
    fn work(&self) {
        while let Next::Job(step) = self.queue.next(None) {
            let (Step::Put(Object::Command(command)) | Step::Delete(Object::Command(command))) = &step else {
                continue;
            };
            let up = matches!(step, Step::Put(_));
            let done = carry_out(command, up, self.limit);
            // The lease waits for what it printed, which is a fact about the host.
            let prepared = command.key == CommandKey::Prepare && done.is_ok();
            let result = done.map(|output| {
                if prepared {
                    *self.printed.lock().unwrap_or_else(PoisonError::into_inner) = Some(output);
                } else if !output.is_empty() {
                    tracing::info!("{} printed: {}", what(command, up), shown(&output));
                }
            });
            self.queue.done(step, result, prepared);
        }
    }
}

/// `SubnetAddCommand for 10.244.2.0/24`
fn what(command: &Command, up: bool) -> String {
    match command.key {
        CommandKey::Peer(subnets) => format!("{} for {subnets}", command.name(up)),
        CommandKey::Prepare | CommandKey::Startup => command.name(up).to_owned(),
    }
}

/// Runs one direction; gives what it printed, trimmed. An error is a sentence.
fn carry_out(command: &Command, up: bool, limit: Duration) -> Result<String, String> {
    let Some(line) = command.line(up) else { return Ok(String::new()) };
    let what = what(command, up);
    let own = |name: &str| command.env.iter().find(|(n, _)| *n == name).map(|(_, value)| value.clone());
    let words = line.words(|name| own(name).or_else(|| std::env::var(name).ok()));
    let [program, arguments @ ..] = words.as_slice() else { return Ok(String::new()) };
    let mut child = process::Command::new(program);
    child.args(arguments).envs(command.env.iter().map(|(name, value)| (*name, value)));
    let input = format!("{}\n", command.input).into_bytes();
    let ended = run_combined(child, input, limit, MOST_DATA + 1);
    judge(&what, program, line.by_shell(), ended, limit).map_err(|why| format!("{why}; it was: {line}"))
}

fn judge(
    what: &str,
    program: &str,
    by_shell: bool,
    ended: io::Result<Option<Ended>>,
    limit: Duration,
) -> Result<String, String> {
    let ended = match ended {
        Ok(Some(ended)) => ended,
        Ok(None) => {
            return Err(format!(
                "{what} did not end within {} s and was killed with all it started; what it leaves running must \
                 close its output, and LODEN_COMMAND_TIMEOUT (seconds) sets another limit",
                limit.as_secs()
            ));
        }
        Err(error) if by_shell => {
            return Err(format!(
                "{what} needs a shell for its syntax, and starting sh failed: {error}; write it without, or run the \
                 agent where there is one"
            ));
        }
        Err(error) => {
            return Err(format!(
                "{what}: start {program}: {error}; put the program where the agent runs, or correct the command"
            ));
        }
    };
    let text = String::from_utf8_lossy(&ended.text);
    let text = text.trim();
    if !ended.status.success() {
        let said = if text.is_empty() { "it printed nothing".to_owned() } else { shown(text) };
        return Err(format!("{what} failed with {}: {said}", ended.status));
    }
    if ended.cut && what.starts_with("Pre") {
        return Err(format!(
            "{what} printed more than the {} KiB a lease can carry; let it print what other nodes need and no more",
            MOST_DATA / 1024
        ));
    }
    Ok(text.to_owned())
}

/// The end of a text, where errors usually are, on one line and fit for a log.
fn shown(text: &str) -> String {
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    let count = text.chars().count();
    let end: String = text.chars().skip(count.saturating_sub(SHOWN)).map(printable).collect();
    format!("{:?}", format!("{}{end}", if count > SHOWN { "…" } else { "" }))
}

#[cfg(test)]
mod tests {
    use plan::state::Line;

    use super::*;

    fn run(line: &str, input: &str, limit_ms: u64) -> Result<String, String> {
        let key = CommandKey::Peer(model::Subnets { v4: "10.244.2.0/24".parse().ok(), v6: None });
        let env = vec![("SUBNET", "10.244.2.0/24".to_owned())];
        let command = Command { key, up: Line::new(line), down: None, env, input: input.to_owned() };
        carry_out(&command, true, Duration::from_millis(limit_ms))
    }

    #[test]
    fn commands_get_their_variables_and_input() {
        for (line, input, output) in [
            ("echo $SUBNET ${SUBNET}", "", "10.244.2.0/24 10.244.2.0/24"),
            ("read A B; echo \"$B $A\"; read C || echo end", "x y", "y x\nend"),
            ("cat", "data", "data"),
            ("", "data", ""),
            ("printf '\\377\\n\\n'", "", "\u{fffd}"),
            ("cat | wc -c", &"x".repeat(1 << 20), "1048577"),
            ("exec <&-; echo deaf", &"x".repeat(1 << 20), "deaf"),
        ] {
            assert_eq!(run(line, input, 60_000).as_deref(), Ok(output), "{line}");
        }
        assert_eq!(run("head -c 1000000 /dev/zero", "", 60_000).map(|text| text.len()), Ok(MOST_DATA + 1));
    }

    #[test]
    fn what_fails_is_one_sentence() {
        for (line, limit_ms, sentence) in [
            (
                "/no/such $SUBNET",
                60_000,
                "SubnetAddCommand for 10.244.2.0/24: start /no/such: No such file or directory (os error 2); put the \
                 program where the agent runs, or correct the command; it was: /no/such $SUBNET",
            ),
            (
                "echo one; echo \"tw\to\" >&2; exit 3",
                60_000,
                "SubnetAddCommand for 10.244.2.0/24 failed with exit status: 3: \"one tw o\"; it was: sh -c 'echo one; \
                 echo \"tw\to\" >&2; exit 3'",
            ),
            (
                "false",
                60_000,
                "SubnetAddCommand for 10.244.2.0/24 failed with exit status: 1: it printed nothing; it was: false",
            ),
            (
                "sleep 1000",
                1_000,
                "SubnetAddCommand for 10.244.2.0/24 did not end within 1 s and was killed with all it started; what it \
                 leaves running must close its output, and LODEN_COMMAND_TIMEOUT (seconds) sets another limit; it was: \
                 sleep 1000",
            ),
        ] {
            assert_eq!(run(line, "", limit_ms).as_ref().map_err(String::as_str), Err(sentence), "{line}");
        }
        let long = run("yes garbage | head -c 5000; exit 1", "", 60_000).expect_err("it fails");
        assert!(long.len() < 600 && long.contains("…") && !long.contains('\n'), "{long}");
    }
}
