//! Another program, run to its end or to a limit of time.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::sys;

/// Runs a command with `input` on its standard input and gives what it wrote. `None`: it did not end in
/// time and was killed, with all of its process group. A file that somebody writes in place cannot be
/// executed for a moment; that is tried for five seconds.
///
/// # Errors
/// It cannot be started.
pub fn run(command: &mut Command, input: Vec<u8>, limit: Duration) -> io::Result<Option<Output>> {
    let deadline = Instant::now() + limit;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = spawn(command)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    // A program may answer before it has read everything, or not read at all.
    thread::spawn(move || stdin.map(|mut pipe| pipe.write_all(&input)));
    let (sender, pipes) = mpsc::channel();
    for (n, pipe) in [stdout.map(Pipe::Out), stderr.map(Pipe::Err)].into_iter().enumerate() {
        let sender = sender.clone();
        thread::spawn(move || sender.send((n, pipe.map(Pipe::read).unwrap_or_default())));
    }
    let mut texts = [Vec::new(), Vec::new()];
    for _ in 0..texts.len() {
        // A grandchild that holds the pipe counts as the program: the pipe's end is the end.
        match pipes.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok((n, text)) => texts[n] = text,
            Err(_) => {
                sys::kill_group(child.id())?;
                child.wait()?;
                return Ok(None);
            }
        }
    }
    let [stdout, stderr] = texts;
    // Closed its outputs and goes on: that is not the end either.
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(Output { status, stdout, stderr }));
        }
        if Instant::now() >= deadline {
            sys::kill_group(child.id())?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(1));
    }
}

enum Pipe {
    Out(std::process::ChildStdout),
    Err(std::process::ChildStderr),
}

impl Pipe {
    fn read(self) -> Vec<u8> {
        let mut text = Vec::new();
        let _ = match self {
            Pipe::Out(mut pipe) => pipe.read_to_end(&mut text),
            Pipe::Err(mut pipe) => pipe.read_to_end(&mut text),
        };
        text
    }
}

fn spawn(command: &mut Command) -> io::Result<std::process::Child> {
    let mut tries = 50;
    loop {
        match command.spawn() {
            Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy && tries > 0 => {
                tries -= 1;
                thread::sleep(Duration::from_millis(100));
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, input: &str, limit: u64) -> Option<Output> {
        let mut command = Command::new("sh");
        run(command.args(["-c", script]), input.into(), Duration::from_millis(limit)).unwrap()
    }

    #[test]
    fn programs_run_to_their_end() {
        let output = shell("cat; echo e >&2; exit 3", "text", 60_000).unwrap();
        assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"text"[..], &b"e\n"[..]));
        assert_eq!(output.status.code(), Some(3));
        let many = "x".repeat(1 << 20);
        assert_eq!(shell("cat", &many, 60_000).unwrap().stdout.len(), 1 << 20);
        assert!(shell("exit 0", &many, 60_000).unwrap().status.success());
    }

    #[test]
    fn what_hangs_is_killed_with_its_children() {
        for script in [
            "sleep 1000",
            "sleep 1000 & exit 0",
            "exec >&- 2>&-; sleep 1000",
            "trap '' TERM; sleep 1000; true",
        ] {
            assert!(shell(script, "", 200).is_none(), "{script}");
        }
        assert!(run(&mut Command::new("/no/such"), Vec::new(), Duration::ZERO).is_err());
    }
}
