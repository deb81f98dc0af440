//! The agent's Unix socket: whoever may be root on this node may ask how it is (decision 0094). HTTP/1, so
//! that `curl --unix-socket` can, too; `GET /v1/status` answers with the JSON of [`crate::status`]. For `loden top`
//! there is `/v1/look` (decision 0195), for `loden dump` `/v1/settings` (JSON), `/v1/metrics` and `/v1/log` (text), all
//! without secrets (decision 0220).
//!
//! The client is here as well, blocking and without a runtime: the path and the question belong together.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::net::UnixListener;
use tokio::sync::watch;

use crate::guests::Guests;
use crate::health::Health;
use crate::inputs::Inbox;
use crate::log::Tail;
use crate::settings::Settings;
use crate::status::{Status, gather, json, probed};
use crate::top::{self, Sample};

/// How long the loop may take for an answer; a round of ten thousand peers takes a fraction of a second.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long an answer waits for the first probes after a start; those of healthy peers take milliseconds.
const FIRST_PROBES: Duration = Duration::from_millis(4500);
/// How old the loop's part of a look may be.
const KEPT: Duration = Duration::from_secs(10);
/// Distance of tries to open the socket.
const REBIND: Duration = Duration::from_secs(5);

/// Where the socket is: as `LODEN_SOCKET` says, else beside the subnet file, which differs between several
/// agents of one host: `loden.sock` for `subnet.env`, `NAME.sock` for `NAME.env`. `None` for `none`.
pub fn path(said: Option<&str>, subnet_file: &str) -> Option<PathBuf> {
    match said.filter(|said| !said.is_empty()) {
        Some("none") => None,
        Some(path) => Some(PathBuf::from(path)),
        None => {
            let file = Path::new(subnet_file);
            let stem = file.file_stem().filter(|stem| *stem != "subnet");
            let name = stem.map_or("loden".into(), |stem| stem.to_string_lossy());
            Some(file.with_file_name(format!("{name}.sock")))
        }
    }
}

/// What the answers are made of.
pub struct Desk {
    /// Where to ask.
    pub inbox: Arc<Inbox>,
    /// Where the loop answers.
    pub answers: watch::Receiver<Option<Arc<Status>>>,
    /// What is known of the paths to others.
    pub probes: Arc<crate::probe::Board>,
    /// Who knows the metrics.
    pub health: Arc<Health>,
    /// What the agent was told.
    pub settings: Settings,
    /// Its last words.
    pub log: Arc<Tail>,
    /// What the loop answered last, and when.
    pub kept: Mutex<Option<(Instant, Arc<Status>)>>,
}

/// Serves for ever; cancel by dropping, which removes the socket.
pub async fn serve(path: Option<PathBuf>, desk: Arc<Desk>) {
    let Some(path) = path else { return std::future::pending().await };
    let mut said = String::new();
    let (listener, _place) = loop {
        match open(&path) {
            Ok(open) => break open,
            Err(error) => {
                let text = format!(
                    "open the socket {} for `loden status`: {error}; the network goes on without, tried again \
                     every 5 s; LODEN_SOCKET names another path, or `none`",
                    path.display()
                );
                if said != text {
                    tracing::warn!("{text}");
                    said = text;
                }
            }
        }
        tokio::time::sleep(REBIND).await;
    };
    let mut guests = Guests::default();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            guests.make_room().await;
            continue;
        };
        let desk = desk.clone();
        guests.serve(stream, move |request| {
            let desk = desk.clone();
            async move { desk.answer(request).await }
        });
    }
}

/// The socket in the file system; removed with the value, unless another one has taken its place.
struct Place {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for Place {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            // Somebody else may have been quicker.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    fs::symlink_metadata(path).map(|data| (data.dev(), data.ino()))
}

/// Made under another name with its mode and then renamed, so that nobody meets it half made, and a socket
/// that a killed agent left behind is replaced.
fn open(path: &Path) -> Result<(UnixListener, Place), String> {
    if UnixStream::connect(path).is_ok() {
        return Err("another agent answers there; give each its own --subnet-file".to_owned());
    }
    if identity(path).is_ok() && !is_socket(path) {
        return Err("the path is taken by something that is no socket; remove it".to_owned());
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = dir.join(format!(".sock.{}", std::process::id()));
    let make = || -> io::Result<(UnixListener, Place)> {
        if !dir.exists() {
            fs::create_dir_all(dir)?;
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
        }
        // Of an agent with our process id before a reboot.
        let _ = fs::remove_file(&temporary);
        let listener = UnixListener::bind(&temporary)?;
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
        fs::rename(&temporary, path)?;
        let place = Place { path: path.to_owned(), identity: identity(path)? };
        Ok((listener, place))
    };
    make().map_err(|error| {
        // It may not have been made.
        let _ = fs::remove_file(&temporary);
        error.to_string()
    })
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    fs::symlink_metadata(path).is_ok_and(|data| data.file_type().is_socket())
}

impl Desk {
    async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
        const TEXT: &str = "text/plain; charset=utf-8";
        const JSON: &str = "application/json";
        let known = ["/v1/status", "/v1/look", "/v1/settings", "/v1/metrics", "/v1/log"];
        let hangs = || {
            let text = "the agent's loop has not answered for 5 s; if that lasts, restart the agent";
            (StatusCode::SERVICE_UNAVAILABLE, TEXT, text.to_owned())
        };
        let (code, kind, text) = match (request.method(), request.uri().path()) {
            (&Method::GET, "/v1/status") => match self.ask().await {
                Some(status) => (StatusCode::OK, JSON, json::write(&status).to_indented()),
                None => hangs(),
            },
            (&Method::GET, "/v1/look") => match self.look().await {
                Some(sample) => (StatusCode::OK, JSON, top::json::write(&sample).to_compact()),
                None => hangs(),
            },
            (&Method::GET, "/v1/settings") => {
                let conf = self.inbox.look(|inputs| inputs.conf.clone());
                (StatusCode::OK, JSON, self.settings.json(conf.as_ref()).to_indented())
            }
            (&Method::GET, "/v1/metrics") => (StatusCode::OK, TEXT, self.health.metrics()),
            (&Method::GET, "/v1/log") => (StatusCode::OK, TEXT, self.settings.clean(&self.log.text())),
            (_, path) if known.contains(&path) => {
                (StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET".to_owned())
            }
            _ => (
                StatusCode::NOT_FOUND,
                TEXT,
                format!(
                    "there is only {}; this agent may be older than the command that asks",
                    known.join(", ")
                ),
            ),
        };
        let mut response = Response::new(Full::new(Bytes::from(text + "\n")));
        *response.status_mut() = code;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        Ok(response)
    }

    async fn ask(&self) -> Option<Arc<Status>> {
        let patience = tokio::time::Instant::now() + FIRST_PROBES;
        while !self.probes.is_judged() && tokio::time::Instant::now() < patience {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.ask_loop().await
    }

    /// A look for those who look each second: what probes found and what was counted is of now; the loop reads the whole
    /// kernel for its part of the answer, so that is asked for when it is old, or peers or troubles came or went.
    pub async fn look(&self) -> Option<Sample> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let board = self.health.troubles();
        let counted = self.health.peers();
        let same = |status: &Status| {
            let peers = status.peers.as_ref();
            let told = peers.map_or((0, 0), |peers| (peers.programmed as usize, peers.left_out.len()));
            let now = status.troubles.iter().filter(|trouble| !trouble.over).map(|trouble| &trouble.text);
            told == counted
                && status.ready == board.ready
                && now.eq(board.troubles.values().map(|trouble| &trouble.text))
        };
        let fresh = kept.filter(|(at, status)| at.elapsed() < KEPT && same(status));
        let (at, last) = match fresh {
            Some(fresh) => fresh,
            None => {
                let answer = (Instant::now(), self.ask_loop().await?);
                *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer.clone());
                answer
            }
        };
        let (view, own, heard, name) = self.inbox.look(|inputs| {
            (inputs.view.clone(), inputs.own.clone(), inputs.heard.clone(), inputs.store.clone())
        });
        let mut status = Status::clone(&last);
        let left_out = status.peers.as_ref().map_or(&[][..], |peers| &peers.left_out);
        let own = own.map(|own| own.subnets);
        let peers = top::collect::peers(&view.peers, &view.names, own, &self.probes, left_out);
        if let Some(agent) = &mut status.agent {
            agent.uptime_s += at.elapsed().as_secs();
        }
        status.store = Some(gather::store(name, &heard, view.complete));
        status.probes = Some(probed::gather(&self.probes, &view.names));
        let compared_ms = u64::try_from(at.elapsed().as_millis()).ok();
        let repairs = self.health.repairs();
        Some(Sample { status, compared_ms, peers, repairs, ..Sample::default() })
    }

    async fn ask_loop(&self) -> Option<Arc<Status>> {
        let mut answers = self.answers.clone();
        answers.mark_unchanged();
        self.inbox.ask();
        tokio::time::timeout(PATIENCE, answers.changed()).await.ok()?.ok()?;
        answers.borrow_and_update().clone()
    }
}

/// Asks an agent how it is. `None` is an agent without a socket.
///
/// # Errors
/// One sentence.
pub fn ask(path: Option<&Path>) -> Result<Status, String> {
    json::read(get(path, "/v1/status")?.as_bytes()).map_err(|error| format!("the agent's answer is {error}"))
}

/// Asks an agent for one of its pages.
///
/// # Errors
/// One sentence.
pub fn get(path: Option<&Path>, page: &str) -> Result<String, String> {
    let path = path.ok_or("the agent has no socket: LODEN_SOCKET is none")?;
    let sentence = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => format!("no agent runs here: there is no socket {}", path.display()),
        io::ErrorKind::ConnectionRefused => {
            format!("no agent runs here: nobody listens at {}, an agent was killed", path.display())
        }
        io::ErrorKind::PermissionDenied => {
            format!("ask the agent at {}: {error}; run it as root", path.display())
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => format!(
            "the agent at {} has not answered for {} s; if that lasts, restart it",
            path.display(),
            (PATIENCE + FIRST_PROBES).as_secs()
        ),
        _ => format!("ask the agent at {}: {error}", path.display()),
    };
    let exchange = || -> io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE + FIRST_PROBES))?;
        stream.write_all(format!("GET {page} HTTP/1.0\r\n\r\n").as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().map_err(sentence)?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let Some((head, body)) = end.map(|at| (&answer[..at], &answer[at + 4..])) else {
        return Err(format!("the agent at {} does not speak HTTP; is it Loden's?", path.display()));
    };
    let (head, body) = (String::from_utf8_lossy(head), String::from_utf8_lossy(body));
    match head.split_whitespace().nth(1) {
        Some("200") => Ok(body.into_owned()),
        _ => Err(body.trim().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_agent_of_a_host_has_a_socket_of_its_own() {
        for (said, file, want) in [
            (None, "/run/flannel/subnet.env", Some("/run/flannel/loden.sock")),
            (Some(""), "/run/flannel/subnet.env", Some("/run/flannel/loden.sock")),
            (None, "/run/flannel/second.env", Some("/run/flannel/second.sock")),
            (None, "./subnet.env", Some("./loden.sock")),
            (None, "subnet.env", Some("loden.sock")),
            (Some("/run/other.sock"), "/run/flannel/subnet.env", Some("/run/other.sock")),
            (Some("none"), "/run/flannel/subnet.env", None),
        ] {
            assert_eq!(path(said, file), want.map(PathBuf::from), "{said:?} {file}");
        }
    }
}
