//! The other end of the control socket: asks a lab that is up.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use crate::error::{Doing, Error, Result};
use crate::proto::{Reply, Request, Step};
use crate::supervisor::address;
use crate::sys::{self, Namespaces};

/// A lab by name.
#[derive(Clone, Debug)]
pub struct Client {
    name: String,
}

impl Client {
    /// Names a lab; nothing is asked yet.
    pub fn new(name: &str) -> Client {
        Client { name: name.to_owned() }
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// No such lab is up, or the lab's own sentence.
    pub fn ask<T: DeserializeOwned>(&self, request: &Request) -> Result<T> {
        self.ask_with_fds(request).map(|(answer, _)| answer)
    }

    fn ask_with_fds<T: DeserializeOwned>(&self, request: &Request) -> Result<(T, Vec<OwnedFd>)> {
        let mut stream = self.connect()?;
        let mut line =
            serde_json::to_vec(request).map_err(|e| Error::said(format!("write the request: {e}")))?;
        line.push(b'\n');
        stream.write_all(&line).doing(|| format!("ask the lab {:?}", self.name))?;
        let mut fds = Vec::new();
        let answer = outcome(&stream, &mut fds, &mut |_| {})?;
        let answer = serde_json::from_value(answer)
            .map_err(|e| Error::said(format!("understand the lab's answer: {e}")))?;
        Ok((answer, fds))
    }

    fn connect(&self) -> Result<UnixStream> {
        UnixStream::connect_addr(&address(&self.name)?).map_err(|e| match e.kind() {
            std::io::ErrorKind::ConnectionRefused => self.nobody(),
            _ => Error::Io(format!("connect to the lab {:?}", self.name), e),
        })
    }

    fn nobody(&self) -> Error {
        let others: Vec<String> = list().into_iter().filter(|n| *n != self.name).collect();
        let way_out = match others.as_slice() {
            [] => "start one with `loden lab up`".to_owned(),
            names => format!("there is {}: choose it with --name", names.join(", ")),
        };
        Error::said(format!("no lab called {:?} is up; {way_out}", self.name))
    }

    /// Makes `command` start inside a place of the lab, as a part of the lab.
    ///
    /// # Errors
    /// No such lab or place.
    pub fn start_inside(&self, place: &str, command: &mut Command) -> Result<()> {
        sys::start_inside(command, self.enter(place)?, 0);
        Ok(())
    }

    /// The namespaces of a place.
    ///
    /// # Errors
    /// No such lab or place.
    pub fn enter(&self, place: &str) -> Result<Namespaces> {
        let request = Request::Enter { place: place.to_owned() };
        let (kinds, fds) = self.ask_with_fds::<Vec<i32>>(&request)?;
        let mut inside = Namespaces::default();
        for (kind, fd) in kinds.into_iter().zip(fds) {
            match kind {
                libc::CLONE_NEWUSER => inside.user = Some(fd),
                libc::CLONE_NEWPID => inside.pid = Some(fd),
                libc::CLONE_NEWNET => inside.net = Some(fd),
                libc::CLONE_NEWUTS => inside.uts = Some(fd),
                _ => inside.mnt = Some(fd),
            }
        }
        Ok(inside)
    }

    /// Ends the lab and waits until nothing is left of it.
    ///
    /// # Errors
    /// No such lab is up, it belongs to another user, or it does not end in time.
    pub fn down(&self) -> Result<()> {
        self.ask::<serde_json::Value>(&Request::Down)?;
        self.wait_gone()
    }

    /// Waits until nothing is left of a lab that is ending.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn wait_gone(&self) -> Result<()> {
        let deadline = Instant::now() + sys::PATIENCE;
        // The name is free when the outermost process is gone, which waits for all others.
        while UnixStream::connect_addr(&address(&self.name)?).is_ok() {
            if Instant::now() > deadline {
                return Err(Error::said(format!("the lab {:?} does not end", self.name)));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

/// Reads lines up to the last one of an answer. Steps on the way go to `progress`.
///
/// # Errors
/// The lab's own sentence, or that it ended without one.
pub fn outcome(
    stream: &UnixStream,
    fds: &mut Vec<OwnedFd>,
    progress: &mut dyn FnMut(Step),
) -> Result<serde_json::Value> {
    let mut buf = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    loop {
        while let Some(end) = buf.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = buf.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(Reply::Step(step)) => progress(step),
                Ok(Reply::Done(value)) => return Ok(value),
                Ok(Reply::Error { what, log }) if log.is_empty() => return Err(Error::Said(what)),
                Ok(Reply::Error { what, log }) => return Err(Error::Failed { what, log }),
                Err(e) => return Err(Error::said(format!("understand the lab's answer: {e}"))),
            }
        }
        match sys::receive_with_fds(stream, &mut chunk, fds) {
            Ok(0) => return Err(Error::said("the lab ended without an answer")),
            Ok(len) => buf.extend_from_slice(&chunk[..len]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::Io("read the lab's answer".to_owned(), e)),
        }
    }
}

/// Names of all labs of this network namespace, in order.
pub fn list() -> Vec<String> {
    let table = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let mut names: Vec<String> = table
        .lines()
        .filter_map(|line| line.split_whitespace().last()?.strip_prefix("@loden-lab/"))
        .map(str::to_owned)
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}
