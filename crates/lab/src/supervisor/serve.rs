//! The control socket: one request a connection, one thread a connection.

use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::failure;
use super::measure;
use super::world::World;
use crate::error::{Error, Result};
use crate::proto::{Reply, Request};
use crate::sys;

/// Longest request in bytes.
const LONGEST: u64 = 1 << 20;

/// Serves until the process ends.
pub fn run(listener: &UnixListener, world: &Arc<World>) -> i32 {
    for stream in listener.incoming().flatten() {
        let world = world.clone();
        std::thread::spawn(move || connection(stream, &world));
    }
    1
}

fn connection(mut stream: UnixStream, world: &World) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
    let mut fds = Vec::new();
    let request = read(&stream);
    let down = matches!(request, Ok(Request::Down));
    let reply = match request.and_then(|r| handle(r, world, &mut fds)) {
        Ok(value) => Reply::Done(value),
        Err(error) => failure(&error),
    };
    if let Ok(mut line) = serde_json::to_vec(&reply) {
        line.push(b'\n');
        // A caller that has gone needs no answer.
        if let Ok(sent) = sys::send_with_fds(&stream, &line, &fds) {
            let _ = std::io::Write::write_all(&mut stream, &line[sent..]);
        }
    }
    if down {
        sys::exit_now(0);
    }
}

/// Reads one request of a caller who is allowed to ask: anybody can connect to an abstract socket.
fn read(stream: &UnixStream) -> Result<Request> {
    let mut line = String::new();
    let mut reader = BufReader::new(stream.take(LONGEST));
    reader.read_line(&mut line).map_err(|e| Error::Io("read the request".to_owned(), e))?;
    // Only now: closing a socket with something unread would cost the caller our answer.
    let uid = sys::peer_uid(stream).map_err(|e| Error::Io("ask who is calling".to_owned(), e))?;
    if uid != 0 {
        return Err(Error::said("this lab belongs to another user; only that user can control it"));
    }
    serde_json::from_str(&line).map_err(|e| Error::said(format!("understand the request: {e}")))
}

fn handle(request: Request, world: &World, fds: &mut Vec<OwnedFd>) -> Result<Value> {
    match request {
        Request::Status => value(measure::status(world)?),
        Request::Enter { place } => {
            let entries = world.enter(&place)?.in_order();
            let kinds: Vec<i32> = entries.iter().map(|(_, kind)| *kind).collect();
            fds.extend(entries.into_iter().map(|(fd, _)| fd));
            value(kinds)
        }
        Request::PodAdd { host, name } => {
            let (at, _) = world.host(&host)?;
            let pod = world.pod_add(at, name)?;
            world.names_changed();
            value(pod)
        }
        Request::PodDel { name } => value(world.pod_del(&name)?),
        Request::Logs { place } => value(world.logs(&place)?),
        Request::AgentStop { host, kill } => {
            world.agent_stop(world.host(&host)?.1, kill);
            Ok(Value::Null)
        }
        Request::AgentStart { host } => value(world.agent_start(world.host(&host)?.1)?),
        Request::Matrix { count } => value(measure::matrix(world, count)?),
        Request::Ping { from, to, count, patience_ms } => {
            value(measure::ping(world, &from, &to, count, Duration::from_millis(patience_ms))?)
        }
        Request::Walk { from, to, v6 } => value(measure::walk(world, &from, &to, v6)?),
        Request::Fetch { from, to, v6 } => value(measure::fetch(world, &from, &to, v6)?),
        Request::Down => Ok(Value::Null),
    }
}

fn value(answer: impl Serialize) -> Result<Value> {
    serde_json::to_value(answer).map_err(|e| Error::said(format!("write the answer: {e}")))
}
