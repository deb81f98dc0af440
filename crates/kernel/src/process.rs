//! Another program, run to its end or to a limit of time.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::sys;

/// Bytes kept of each output by [`run`]: `iptables-save` of half a million rules.
const MOST: usize = 64 << 20;
/// How long a signal that is held may wait for us to look.
const SLICE: Duration = Duration::from_millis(50);

/// Lets SIGINT and SIGTERM wait for [`end_is_pending`], in this thread and those it starts; programs we run do
/// not inherit it.
///
/// # Errors
/// None in practice.
pub fn hold_end_signals() -> io::Result<()> {
    sys::hold_end_signals()
}

/// Whether SIGINT or SIGTERM came since they are held.
pub fn end_is_pending() -> bool {
    sys::end_is_pending()
}

/// Keeps what this process and those it starts remember, keys among it, out of core dumps. The limit is 1 and not 0:
/// with 0 the kernel still hands the dump to a collector such as systemd-coredump (`fs/coredump.c`), with 1 to nobody.
/// Not `PR_SET_DUMPABLE`: that would also take `/proc/self` from an agent in a user namespace, such as the lab's.
///
/// # Errors
/// None in practice: a limit may always be lowered.
pub fn no_core_dumps() -> io::Result<()> {
    sys::limit_core_dumps(1)
}

/// Runs a command with `input` on its standard input and gives what it wrote. `None`: it did not end in
/// time and was killed, with all of its process group. A file that somebody writes in place cannot be
/// executed for a moment; that is tried for five seconds.
///
/// # Errors
/// It cannot be started; or it wrote more than 64 MiB; or we are to end ([`end_is_pending`]), and it was killed
/// (`Interrupted`).
pub fn run(command: &mut Command, input: Vec<u8>, limit: Duration) -> io::Result<Option<Output>> {
    let deadline = Instant::now() + limit;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = spawn(command)?;
    let stdout = child.stdout.take().map(|pipe| Box::new(pipe) as Pipe);
    let stderr = child.stderr.take().map(|pipe| Box::new(pipe) as Pipe);
    let Some((status, [stdout, stderr])) = finish(child, input, [stdout, stderr], MOST, deadline)? else {
        return Ok(None);
    };
    if stdout.cut || stderr.cut {
        return Err(io::Error::other(format!("it wrote more than {} MiB", MOST >> 20)));
    }
    Ok(Some(Output { status, stdout: stdout.kept, stderr: stderr.kept }))
}

/// How a program ended, and what it wrote to standard output and error, as one.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it wrote, from the beginning.
    pub text: Vec<u8>,
    /// It wrote more than is kept.
    pub cut: bool,
}

/// As [`run`], with both outputs in the order they were written, and no more than `most` bytes kept of them.
///
/// # Errors
/// As [`run`].
pub fn run_combined(
    mut command: Command,
    input: Vec<u8>,
    limit: Duration,
    most: usize,
) -> io::Result<Option<Ended>> {
    let deadline = Instant::now() + limit;
    let (reader, writer) = io::pipe()?;
    command.stdin(Stdio::piped()).stdout(writer.try_clone()?).stderr(writer).process_group(0);
    let child = spawn(&mut command)?;
    // It holds the pipe's other end, which would never be closed.
    drop(command);
    let ended = finish(child, input, [Some(Box::new(reader) as Pipe)], most, deadline)?;
    Ok(ended.map(|(status, [output])| Ended { status, text: output.kept, cut: output.cut }))
}

type Pipe = Box<dyn Read + Send>;

/// What came out of a pipe.
#[derive(Default)]
struct Text {
    kept: Vec<u8>,
    cut: bool,
}

/// Feeds a child and waits for its end; `None` if it had to be killed.
fn finish<const N: usize>(
    mut child: Child,
    input: Vec<u8>,
    outputs: [Option<Pipe>; N],
    most: usize,
    deadline: Instant,
) -> io::Result<Option<(ExitStatus, [Text; N])>> {
    let stdin = child.stdin.take();
    // A program may answer before it has read everything, or not read at all.
    thread::spawn(move || stdin.map(|mut pipe| pipe.write_all(&input)));
    let (sender, pipes) = mpsc::channel();
    for (n, pipe) in outputs.into_iter().enumerate() {
        let sender = sender.clone();
        thread::spawn(move || sender.send((n, pipe.map(|pipe| read(pipe, most)).unwrap_or_default())));
    }
    let mut texts = [const { Text { kept: Vec::new(), cut: false } }; N];
    for _ in 0..N {
        // A grandchild that holds the pipe counts as the program: the pipe's end is the end.
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match pipes.recv_timeout(left.min(SLICE)) {
                Ok((n, text)) => {
                    texts[n] = text;
                    break;
                }
                Err(_) if !left.is_zero() && !end_is_pending() => {}
                Err(_) => {
                    sys::kill_group(child.id())?;
                    child.wait()?;
                    return if left.is_zero() { Ok(None) } else { Err(io::ErrorKind::Interrupted.into()) };
                }
            }
        }
    }
    // Closed its outputs and goes on: that is not the end either. Most end at once.
    let end = sys::pidfd(child.id());
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some((status, texts)));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            sys::kill_group(child.id())?;
            child.wait()?;
            return Ok(None);
        }
        match &end {
            Ok(end) => drop(sys::poll([end.as_fd()], Some(left.min(SLICE)))),
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Reads to the end, so that the program can go on writing, and keeps the beginning.
fn read(mut pipe: Pipe, most: usize) -> Text {
    let mut text = Text::default();
    let _ = (&mut pipe).take(most as u64).read_to_end(&mut text.kept);
    text.cut = io::copy(&mut pipe, &mut io::sink()).is_ok_and(|more| more > 0);
    text
}

fn spawn(command: &mut Command) -> io::Result<Child> {
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
        let mut command = Command::new("sh");
        let endless =
            run(command.args(["-c", "head -c 70000000 /dev/zero"]), Vec::new(), Duration::from_secs(60));
        assert_eq!(endless.unwrap_err().to_string(), "it wrote more than 64 MiB");
    }

    #[test]
    fn both_outputs_are_one_and_bounded() {
        let sh = |script: &str, most| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            run_combined(command, "in".into(), Duration::from_secs(60), most).unwrap()
        };
        let ended = sh("cat; echo 1; echo 2 >&2; echo 3; exit 4", 100).unwrap();
        assert_eq!((ended.text.as_slice(), ended.cut), (&b"in1\n2\n3\n"[..], false));
        assert_eq!(ended.status.code(), Some(4));
        let ended = sh("yes | head -c 1000000", 100).unwrap();
        assert_eq!((ended.text.len(), ended.cut, ended.status.code()), (100, true, Some(0)));
        let mut command = Command::new("sh");
        command.args(["-c", "yes"]);
        assert!(run_combined(command, Vec::new(), Duration::from_millis(200), 100).unwrap().is_none());
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
