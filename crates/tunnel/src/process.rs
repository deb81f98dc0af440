//! Starts the process of a tunnel, so that it outlives whoever started it, and replaces one that runs.

use std::io::{self, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use model::IfName;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Signal, kill_process};

use crate::control::{self, Request, Shown};
use crate::run::{Options, words};

/// How long a tunnel may take to start.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes a tunnel what `options` say: takes over from the one that runs, or else starts one. Gives the process,
/// to be reaped when it ends.
///
/// # Errors
/// One sentence. A tunnel that ran before may go on.
pub fn start(options: &Options) -> io::Result<Child> {
    let take_over = match control::request(&options.socket, &Request::Show) {
        Ok(text) => {
            let fits =
                Shown::parse(&text).is_ok_and(|shown| shown.identity.device == options.identity.device);
            if !fits {
                // Of a version that says other things.
                end(&options.socket)?;
            }
            fits
        }
        Err(error) if control::is_nobody(&error) => false,
        Err(_) => {
            // It hangs.
            kill(&options.socket)?;
            false
        }
    };
    spawn(&words(&Options { take_over, detach: true, ..options.clone() }))
}

/// Starts WireGuard in user space for a device that is there, controlled at a path. Whoever is found there and is of
/// no use any more is ended first: it belongs to a device that is gone, or hangs. Gives the process, to be reaped
/// when it ends.
///
/// # Errors
/// One sentence.
pub fn start_wireguard(device: IfName, path: &Path) -> io::Result<Child> {
    kill(path)?;
    spawn(&crate::wireguard::run::words(device, path))
}

/// Ends the tunnel at a socket, asked or not.
///
/// # Errors
/// It cannot be ended.
pub fn end(path: &Path) -> io::Result<()> {
    match control::request(path, &Request::Stop) {
        Err(error) if control::is_nobody(&error) => Ok(()),
        Ok(text) if text == "ok\n" => gone(path),
        Ok(_) | Err(_) => kill(path),
    }
}

fn kill(path: &Path) -> io::Result<()> {
    if let Ok(pid) = control::process(path) {
        kill_process(pid, Signal::KILL)?;
    }
    gone(path)
}

/// Waits until the port is free, which it is when nobody has the socket.
fn gone(path: &Path) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while control::process(path).is_ok() {
        if Instant::now() >= deadline {
            return Err(io::Error::other(format!("the tunnel at {} does not end", path.display())));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn spawn(words: &[String]) -> io::Result<Child> {
    // Our own program, even if the file has been replaced meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("loden").args(words).env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let said = child.stderr.take().map(read_to_end).transpose();
    match said {
        Ok(Some(text)) if text.is_empty() => Ok(child),
        Ok(text) => {
            let _ = child.wait();
            Err(io::Error::other(text.unwrap_or_default().trim().to_owned()))
        }
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

/// What a process writes until it closes its output.
fn read_to_end(mut pipe: ChildStderr) -> io::Result<String> {
    let deadline = Instant::now() + PATIENCE;
    let mut text = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = rustix::event::Timespec::try_from(left).ok();
        if poll(&mut [PollFd::new(&pipe, PollFlags::IN)], left.as_ref())? == 0 {
            return Err(io::Error::other(format!(
                "the tunnel has not started within {} s",
                PATIENCE.as_secs()
            )));
        }
        let mut some = [0; 1024];
        match pipe.read(&mut some)? {
            0 => return Ok(String::from_utf8_lossy(&text).into_owned()),
            count => text.extend_from_slice(&some[..count]),
        }
    }
}
