//! `dhcp`: addresses from a DHCP server of the network the interface is in (cni.md 2.18).
//!
//! A lease has to be renewed as long as the pod lives, so a daemon keeps it (`loden-cni dhcp daemon`); the
//! plugin hands it the call over a Unix socket: one JSON document there, one back.

pub mod daemon;
mod task;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use model::cni::dhcp::{DhcpConf, socket};
use model::cni::{CniResult, Error, code};
use model::gojson::Json;

use crate::skel::Call;

/// The daemon gives up on a server after 208 s if nothing else is said; then it answers.
const LIMIT: Duration = Duration::from_secs(300);
/// STATUS and DEL are not to wait.
const SHORT_LIMIT: Duration = Duration::from_secs(10);

/// Asks the daemon for an address.
///
/// # Errors
/// The configuration, no daemon, or no server that answers.
pub fn add(call: &Call) -> Result<CniResult, Error> {
    let conf = parse(call)?;
    let answer = ask(&conf.socket, call, LIMIT)?;
    let unreadable = |e: String| Error::new(code::DECODE, format!("read the answer of the DHCP daemon: {e}"));
    CniResult::parse(&answer, model::cni::version::NEWEST).map_err(unreadable)
}

/// Has the daemon give the address back. Without a daemon nobody renews the lease, and it ends by itself
/// (B-47).
///
/// # Errors
/// The daemon's.
pub fn del(call: &Call) -> Result<(), Error> {
    match ask(&socket(&call.conf()), call, SHORT_LIMIT) {
        Err(error) if error.code == code::TRY_LATER => {
            let _ = writeln!(std::io::stderr().lock(), "dhcp: {error}; the lease ends by itself");
            Ok(())
        }
        other => other.map(|_| ()),
    }
}

/// Fails unless the daemon has a living lease.
///
/// # Errors
/// As said.
pub fn check(call: &Call) -> Result<(), Error> {
    ask(&parse(call)?.socket, call, SHORT_LIMIT).map(|_| ())
}

/// Code 50 while the daemon does not answer.
///
/// # Errors
/// As said.
pub fn status(call: &Call) -> Result<(), Error> {
    let conf = parse(call)?;
    ask(&conf.socket, call, SHORT_LIMIT).map(|_| ()).map_err(|e| Error { code: code::NOT_READY, ..e })
}

/// Has the daemon give back the addresses of attachments that are not valid.
///
/// # Errors
/// The list is malformed, or the daemon's own.
pub fn gc(call: &Call) -> Result<(), Error> {
    if call.valid_attachments()?.is_none() {
        return Ok(());
    }
    match ask(&socket(&call.conf()), call, SHORT_LIMIT) {
        Err(error) if error.code == code::TRY_LATER => Ok(()),
        other => other.map(|_| ()),
    }
}

fn parse(call: &Call) -> Result<DhcpConf, Error> {
    let failed = |e: String| Error::config(format!("failed to load netconf: {e}"));
    DhcpConf::parse(&call.conf(), &call.env.args).map_err(failed)
}

fn ask(path: &str, call: &Call, limit: Duration) -> Result<Json, Error> {
    let dial = |e: std::io::Error| {
        Error::new(code::TRY_LATER, format!("error dialing DHCP daemon: {path}: {e}"))
            .details("start it on this node: loden-cni dhcp daemon")
    };
    let lost = |e: std::io::Error| {
        let msg = format!("the DHCP daemon at {path} did not answer: {e}");
        Error::internal(msg).details("read the daemon's log")
    };
    let document = Json::parse(&call.input).map_err(|e| Error::new(code::DECODE, e.to_string()))?;
    let request = Json::object([
        ("verb", Json::from(call.verb.name())),
        ("containerID", call.env.container_id.as_str().into()),
        ("network", call.network.as_str().into()),
        ("ifname", call.env.ifname.as_str().into()),
        ("netns", call.env.netns.as_str().into()),
        ("args", call.env.args.as_str().into()),
        ("document", document),
    ]);
    let mut stream = UnixStream::connect(path).map_err(dial)?;
    let mut text = Vec::new();
    let talked = stream
        .set_read_timeout(Some(limit))
        .and_then(|()| stream.write_all(request.to_compact().as_bytes()))
        .and_then(|()| stream.shutdown(Shutdown::Write))
        .and_then(|()| stream.read_to_end(&mut text));
    talked.map_err(lost)?;
    let bad = || Error::new(code::DECODE, format!("the DHCP daemon at {path} is none of ours"));
    let answer = Json::parse(&text).map_err(|_| bad())?;
    match answer.get("error") {
        Some(error) => Err(Error::parse(&error.to_compact()).unwrap_or_else(bad)),
        None => Ok(answer.get("result").cloned().unwrap_or_default()),
    }
}
